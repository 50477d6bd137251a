"""Moves the bytes of a call: blocking, which is a cell's sync call without a thread hop, or for `await`.

`Conversation` is the life of a call as a pure object, frames in and frames out; both drivers serve it.
"""

from __future__ import annotations

import asyncio
import pickle
import select
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from ..core.definitions import Closure
from ..core.frames import Buffer, Frame, FrameReader, Kind, encode
from . import outputs
from .leases import Channel

TICK_S: Final = 0.1


class ChannelLost(Exception):
    """The replica's end is closed. `started` is False when it is certain that the call had not begun."""

    def __init__(self, started: bool) -> None:
        self.started = started


class Conversation:
    """A call, from its first frame to its outcome. Frames in, frames out; no I/O."""

    __slots__ = ("_closures", "_number", "answered", "outcome")

    def __init__(self, number: int, closures: Sequence[Closure]) -> None:
        self._number = number
        self._closures = closures
        self.answered = False  # the replica has shown that it knows of this call
        self.outcome: Frame | None = None

    def receive(self, frame: Frame) -> list[Buffer] | None:
        """Take one frame; what to send back, if anything."""
        if frame.call != self._number:
            return None  # of a call before, which was given up
        self.answered = True
        if frame.kind == Kind.OUTCOME:
            self.outcome = frame
        elif frame.kind == Kind.OUTPUT:
            outputs.show(frame.flags, frame.body)
        elif frame.kind == Kind.INPUT:
            text, nobody = outputs.answer(frame.body)
            return encode(Kind.ANSWER, self._number, text, flags=nobody)
        elif frame.kind == Kind.NEED:
            digests: dict[str, str] = pickle.loads(frame.body)
            missing = [closure.beyond(digests) for closure in self._closures]
            return encode(Kind.DEFINE, self._number, pickle.dumps(missing, 5))
        return None


def drive(channel: Channel, talk: Conversation, pieces: list[Buffer], until: float | None) -> Frame:
    """Move bytes until the outcome is there; TimeoutError at `until` (monotonic seconds)."""
    stream, reader = channel.socket, channel.reader
    sent = False
    try:
        send_all(stream, pieces)
        sent = True
        while True:
            while (frame := reader.next_frame()) is not None:
                reply = talk.receive(frame)
                if reply is not None:
                    send_all(stream, reply)
            if talk.outcome is not None:
                return talk.outcome
            if until is not None:
                _wait_readable(stream, until)
            count = stream.recv_into(reader.get_buffer())
            if count == 0:
                raise ChannelLost(started=True)
            reader.buffer_updated(count)
    except (ConnectionResetError, BrokenPipeError):
        # Reset: it was closed with our bytes unread. So the call had not begun, unless it has spoken already.
        raise ChannelLost(started=sent and talk.answered) from None


def send_all(stream: socket.socket, pieces: list[Buffer]) -> None:
    for piece in pieces:
        stream.sendall(piece)


def _wait_readable(stream: socket.socket, until: float) -> None:
    poller = select.poll()
    poller.register(stream, select.POLLIN)
    if not poller.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError


def seen(future: asyncio.Future[Any]) -> None:
    """Whoever waited may be gone: asyncio need not report, at some later time, that nobody took the exception."""
    if not future.cancelled():
        future.exception()


async def drive_async(channel: Channel, talk: Conversation, pieces: list[Buffer], until: float | None) -> Frame:
    """The same as `drive` on the running event loop. Nothing else may read the channel meanwhile."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Frame] = loop.create_future()
    done.add_done_callback(seen)
    driver = _AsyncDriver(loop, channel.socket, channel.reader, talk, done)
    driver.start(pieces)
    try:
        if until is None:
            return await done
        async with asyncio.timeout(max(0.0, until - time.monotonic())):
            return await done
    finally:
        driver.stop()


class _AsyncDriver:
    """Callbacks of one call on the event loop; they run in the context of the task that awaits."""

    __slots__ = ("_done", "_loop", "_reader", "_sent", "_stream", "_talk", "_unsent", "_writing")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stream: socket.socket,
        reader: FrameReader,
        talk: Conversation,
        done: asyncio.Future[Frame],
    ) -> None:
        self._loop = loop
        self._stream = stream
        self._reader = reader
        self._talk = talk
        self._done = done
        self._unsent: list[memoryview] = []
        self._writing = False
        self._sent = False

    def start(self, pieces: list[Buffer]) -> None:
        self._send(pieces)
        self._loop.add_reader(self._stream, self._on_readable)

    def stop(self) -> None:
        self._loop.remove_reader(self._stream)
        if self._writing:
            self._loop.remove_writer(self._stream)

    def _send(self, pieces: list[Buffer]) -> None:
        self._unsent.extend(memoryview(piece).cast("B") for piece in pieces)
        self._on_writable()

    def _on_writable(self) -> None:
        try:
            while self._unsent:
                view = self._unsent[0]
                count = self._stream.send(view, socket.MSG_DONTWAIT)
                if count == view.nbytes:
                    self._unsent.pop(0)
                else:
                    self._unsent[0] = view[count:]
            self._sent = True
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._stream, self._on_writable)
            return
        except OSError:
            self._lost()
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._stream)

    def _on_readable(self) -> None:
        try:
            count = self._stream.recv_into(self._reader.get_buffer(), 0, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._lost()
            return
        if count == 0:
            self._lost(started=True)
            return
        try:
            self._reader.buffer_updated(count)
            while (frame := self._reader.next_frame()) is not None:
                reply = self._talk.receive(frame)
                if reply is not None:
                    self._send(reply)
        except Exception as problem:
            if not self._done.done():
                self._done.set_exception(problem)
            return
        if self._talk.outcome is not None and not self._done.done():
            self._done.set_result(self._talk.outcome)

    def _lost(self, started: bool = False) -> None:
        if not self._done.done():
            self._done.set_exception(ChannelLost(started or (self._sent and self._talk.answered)))


class interruptible:
    """While a cell awaits, wake the loop now and then.

    ipykernel notices Ctrl-C only when its loop wakes up (ipykernel issue 881), and nothing may happen for minutes.
    """

    _ticking: int = 0
    _handle: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if "ipykernel" not in sys.modules or threading.current_thread() is not threading.main_thread():
            self._counted = False
            return
        self._counted = True
        cls = type(self)
        cls._ticking += 1
        if cls._handle is None:
            self._tick(asyncio.get_running_loop())

    def __exit__(self, *_: object) -> None:
        if self._counted:
            type(self)._ticking -= 1

    @classmethod
    def _tick(cls, loop: asyncio.AbstractEventLoop) -> None:
        cls._handle = loop.call_later(TICK_S, cls._tick, loop) if cls._ticking else None
