"""The replica's end of the task channel: a Unix stream socket beside the Jupyter channels.

The control thread accepts and greets connections, so that a busy main thread hides nobody. A connection for calls is
then the main thread's (`calls`): one lease, one connection, one call at a time. A connection for control stays where it
is (`control`): it carries cancels, and the broker's orders.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..core.frames import FrameReader, Kind
from ..errors import ProtocolError
from ..memory import Exchange, receive_with_fds
from ..runtime import peer_pid, peer_uid
from .calls import CallerHello
from .control import ControlChannel

if TYPE_CHECKING:
    from .replica import Replica

HANDSHAKE_S: Final = 5.0
GREETING_BYTES: Final = 64 * 1024


class Listener:
    """The listening socket: accepts connections on the control thread, and hears there of hang-ups."""

    def __init__(self, listening: socket.socket, loop: asyncio.AbstractEventLoop, replica: Replica) -> None:
        self._loop = loop
        self._replica = replica
        self._socket = listening
        self._socket.setblocking(False)
        self._hangups = select.epoll() if hasattr(select, "epoll") else None
        loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._loop.add_reader(self._socket, self._accept)
        if self._hangups is not None:
            # The main thread reads the calls, so here only the end of a connection is watched for: a client that
            # dies is noticed while its own task keeps the main thread busy.
            self._loop.add_reader(self._hangups.fileno(), self._on_hangup)

    def watch_hangup(self, connection: socket.socket) -> None:
        if self._hangups is not None:
            self._hangups.register(connection.fileno(), select.EPOLLRDHUP | select.EPOLLHUP)

    def unwatch(self, connection: socket.socket) -> None:
        if self._hangups is not None:
            with contextlib.suppress(OSError, ValueError):
                self._hangups.unregister(connection.fileno())

    def _on_hangup(self) -> None:
        assert self._hangups is not None
        for fd, _ in self._hangups.poll(0):
            with contextlib.suppress(OSError):
                self._hangups.unregister(fd)
            self._replica.hung_up(fd)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        if peer_uid(connection) != os.getuid():
            connection.close()
            return
        connection.setblocking(False)
        greeting = _Greeting(connection, self._loop, self._greeted)
        self._loop.call_later(HANDSHAKE_S, greeting.expire)

    def _greeted(
        self, connection: socket.socket, reader: FrameReader, hello: dict[str, Any], files: Exchange | None
    ) -> None:
        if hello["role"] == "calls":
            caller = CallerHello(
                lease=hello["lease"],
                label=hello.get("label", ""),
                notebook=hello["notebook"],
                process=(hello["process"], hello["pid"] or peer_pid(connection)),
                run=hello["run"],
                replica=hello["replica"],
                files=files,
                session=hello.get("session", ""),
            )
            connection.setblocking(True)
            self._replica.connected(connection, reader, caller)
        else:
            ControlChannel(connection, reader, self._loop, self._replica, supervisor=hello["role"] == "supervisor")


class _Greeting:
    """A new connection, until its HELLO has come."""

    def __init__(
        self,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[socket.socket, FrameReader, dict[str, Any], Exchange | None], None],
    ) -> None:
        self._connection: socket.socket | None = connection
        self._loop = loop
        self._done = done
        self._reader = FrameReader()
        self._files: Exchange | None = None
        loop.add_reader(connection, self._on_readable)

    def _on_readable(self) -> None:
        connection = self._connection
        assert connection is not None
        try:
            data, fds = receive_with_fds(connection, GREETING_BYTES, 1)
            if fds:
                self._files = Exchange(fds[0])
                self._reader.map_file = self._files.map
            if not data:
                raise ProtocolError("closed before its HELLO")
            self._reader.feed(data)
            frame = self._reader.next_frame()
            if frame is None:
                return
            if frame.kind != Kind.HELLO:
                raise ProtocolError(f"the first frame must be HELLO, not {frame!r}")
            hello = json.loads(frame.body)
            self._loop.remove_reader(connection)
            self._connection = None
            self._done(connection, self._reader, hello, self._files)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ProtocolError, ValueError, KeyError):
            self.expire()

    def expire(self) -> None:
        if self._connection is not None:
            self._loop.remove_reader(self._connection)
            self._connection.close()
            self._connection = None
            if self._files is not None:
                self._files.close()
