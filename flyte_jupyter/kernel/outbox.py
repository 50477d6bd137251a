"""Frames on their way to a client: sent at once, or kept until its socket takes them."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from ..core.frames import Buffer
from .interrupts import waits, whole

BACKLOG_BYTES: Final = 8 * 1024 * 1024
"""Output that a client has not taken yet; a task that writes more waits."""


class Outbox:
    """The sending half of a connection for calls. Any thread may send; the rest is the main thread's.

    `_lock` protects the socket's sending side, `_backlog`, its size and `closed`.

    Args:
        drained: Is called on the main thread once nothing is kept any more.
    """

    def __init__(self, connection: socket.socket, loop: asyncio.AbstractEventLoop, drained: Callable[[], None]) -> None:
        self.closed = False
        self._connection = connection
        self._loop = loop
        self._drained = drained
        self._lock = threading.Lock()
        self._backlog: deque[memoryview] = deque()
        self._bytes = 0

    def is_empty(self) -> bool:
        """Whether the client's socket has taken everything."""
        return not self._backlog

    def is_crowded(self) -> bool:
        """Whether more is kept than should be."""
        return self._bytes > BACKLOG_BYTES

    def close(self) -> None:
        """Send nothing any more."""
        self._loop.remove_writer(self._connection)
        with self._lock:
            self.closed = True
            self._backlog.clear()
            self._bytes = 0

    @whole
    def send(self, pieces: Sequence[Buffer]) -> None:
        with self._lock:
            if self._put(pieces):
                return
        self._loop.call_soon_threadsafe(self._drain_later)

    def _put(self, pieces: Sequence[Buffer]) -> bool:
        """Send it or keep it, with the lock held; whether nothing is left to be sent later."""
        if self.closed:
            return True
        if not self._backlog:
            pieces = self._write(pieces)
            if not pieces:
                return True
        for piece in pieces:
            view = memoryview(piece).cast("B")
            self._backlog.append(view)
            self._bytes += view.nbytes
        return False

    def send_while(self, goes_on: Callable[[], bool], pieces: Sequence[Buffer]) -> None:
        """Send it only if that holds: nothing that is sent when it holds no longer can be before it."""
        with self._lock:
            if not goes_on() or self._put(pieces):
                return
        self._loop.call_soon_threadsafe(self._drain_later)

    @waits
    def wait(self) -> None:
        """Until the client has taken enough of it."""
        while self.is_crowded() and not self.closed:
            select.select([], [self._connection], [], 0.1)
            self.drain()

    def _write(self, pieces: Sequence[Buffer]) -> Sequence[Buffer]:
        """Write as much as the socket takes now; what is left."""
        try:
            if len(pieces) == 1:
                sent = self._connection.send(pieces[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                sent = self._connection.sendmsg(pieces[:64], (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return pieces
        except OSError:  # the client is gone; the reader side closes the channel
            return []
        rest: list[Buffer] = []
        for piece in pieces:
            size = memoryview(piece).nbytes
            if sent >= size:
                sent -= size
            else:
                rest.append(memoryview(piece).cast("B")[sent:] if sent else piece)
                sent = 0
        return rest

    @whole
    def drain(self) -> bool:
        """Send what is kept, as much as the socket takes now; whether that is all."""
        with self._lock:
            while self._backlog:
                rest = self._write(list(self._backlog)[:64])
                taken = min(64, len(self._backlog)) - len(rest)
                for _ in range(taken):
                    self._bytes -= self._backlog.popleft().nbytes
                if rest:
                    head = memoryview(rest[0]).cast("B")
                    self._bytes -= self._backlog[0].nbytes - head.nbytes
                    self._backlog[0] = head
                    return False
            return True

    def _drain_later(self) -> None:
        if self.closed:
            return
        if self.drain():
            self._loop.remove_writer(self._connection)
            self._drained()
        else:
            self._loop.add_writer(self._connection, self._drain_later)
