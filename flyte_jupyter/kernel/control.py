"""A connection for control: it is read on the control thread, whatever the main thread does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import threading
from typing import TYPE_CHECKING, Final

from ..core.frames import Buffer, FrameReader, Kind, encode
from ..errors import ProtocolError
from .outputs import OutputSink

if TYPE_CHECKING:
    from .replica import Replica

STALLED_MS: Final = 5000
"""How long a peer on a control connection may read nothing of what it is sent."""


class ControlChannel:
    """Orders that must be heard whatever the main thread does: cancels; and from the broker, set-up and stop.

    `_lock` keeps what one thread sends in one piece.
    """

    def __init__(
        self,
        connection: socket.socket,
        reader: FrameReader,
        loop: asyncio.AbstractEventLoop,
        replica: Replica,
        *,
        supervisor: bool,
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._loop = loop
        self._replica = replica
        self._supervisor = supervisor
        self._lock = threading.Lock()
        # Of widgets. Its timer is not this thread's: it must not wait for a front end.
        main = replica.runner.loop
        self._sink = OutputSink(
            0, self._send_pieces, lambda delay, callback: main.call_soon_threadsafe(main.call_later, delay, callback)
        )
        loop.add_reader(connection, self._on_readable)
        if supervisor:
            replica.supervisor = self
        self._take_frames()

    def _on_readable(self) -> None:
        try:
            count = self._connection.recv_into(self._reader.get_buffer())
            if count == 0:
                raise ProtocolError("closed")
            self._reader.buffer_updated(count)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ProtocolError):
            self._loop.remove_reader(self._connection)
            self._sink.closed = True
            if self._supervisor:
                self._replica.supervisor = None
            self._connection.close()
            return
        self._take_frames()

    def _take_frames(self) -> None:
        while (frame := self._reader.next_frame()) is not None:
            if frame.kind == Kind.COMM:
                self._replica.runner.loop.call_soon_threadsafe(self._replica.comms.receive, frame, self._sink)
            elif frame.kind == Kind.CANCEL:
                self._replica.cancel(str(frame.body, "utf-8"), frame.call)
            elif frame.kind == Kind.WITHDRAW:
                lease, last = json.loads(frame.body)
                self._replica.withdraw(lease, frame.call, last)
            elif frame.kind == Kind.SETUP and self._supervisor:
                self._replica.runner.loop.call_soon_threadsafe(self._replica.set_up, bytes(frame.body))
            elif frame.kind == Kind.ASK and self._supervisor:
                self._replica.ask_after(str(frame.body, "utf-8"))
            elif frame.kind == Kind.INTERRUPT and self._supervisor:
                self._replica.interrupt(str(frame.body, "utf-8"))
            elif frame.kind == Kind.STOP and self._supervisor:
                self._replica.runner.loop.call_soon_threadsafe(self._replica.stop)
            else:
                self._replica.log(f"unexpected on a control connection: {frame!r}")

    def ready(self) -> bool:
        """Whether a few bytes can be sent without waiting."""
        poller = select.poll()
        poller.register(self._connection, select.POLLOUT)
        return bool(poller.poll(0))

    def send(self, kind: Kind, body: bytes) -> None:
        """A few bytes to the broker, from any thread."""
        self._send_pieces(encode(kind, 0, body))

    def _send_pieces(self, pieces: list[Buffer]) -> None:
        poller = select.poll()
        with self._lock, contextlib.suppress(OSError):
            poller.register(self._connection, select.POLLOUT)
            for piece in pieces:
                view = memoryview(piece).cast("B")
                while view:
                    # Not for ever: a front end that does not read must not hold up its replica.
                    if not poller.poll(STALLED_MS):
                        self._connection.shutdown(socket.SHUT_RDWR)
                        return
                    with contextlib.suppress(BlockingIOError):
                        view = view[self._connection.send(view) :]
