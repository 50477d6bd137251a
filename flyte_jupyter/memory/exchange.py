"""Memory files on their way: the socket beside a task channel that carries their descriptors."""

from __future__ import annotations

import array
import os
import socket
import threading
import weakref
from collections.abc import Sequence
from typing import Final

from ..core.frames import TICKET, Buffer, FileTicket
from ..errors import ProtocolError
from . import writing
from .mapping import map_file
from .shared import LEND_BYTES, sharing
from .writing import MemoryFile

LIMIT_FILES: Final = 128
"""Of one frame; its other buffers go with it. One message of a socket carries no more than 253."""

_RECEIVE_FLAGS: Final = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_NOSIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)

_open: weakref.WeakSet[Exchange] = weakref.WeakSet()


class Exchange:
    """One connection's socket for memory files; both directions.

    A file is sent when its frame is made, and the frame names its ticket. So it is there when the frame is read;
    and where the socket takes no more, the buffer simply goes with the frame.
    """

    __slots__ = ("__weakref__", "_arrived", "_lock", "_next", "_socket")

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()
        self._next = 0
        self._arrived: dict[int, int] = {}
        _open.add(self)

    def lend(self, pieces: Sequence[Buffer]) -> Sequence[Buffer | FileTicket]:
        """The same pieces, flat bytes, except that big ones are in memory files that are on their way."""
        for piece in pieces:
            if len(piece) >= LEND_BYTES:
                return self._lend(pieces)
        return pieces

    def _lend(self, pieces: Sequence[Buffer]) -> Sequence[Buffer | FileTicket]:
        shared = sharing.get()
        lent: dict[int, MemoryFile] = {}
        try:
            for index, piece in enumerate(pieces):
                if len(piece) < LEND_BYTES:
                    continue
                file = (None if shared is None else shared.file_of(piece)) or writing.files.write(piece)
                if file is None:
                    break
                lent[index] = file
                if len(lent) == LIMIT_FILES:
                    break
            if not lent:
                return pieces
            tickets = self._send(list(lent.values()))
        except OSError:  # it is full, too much is in flight, or the other end is gone, which the channel will say
            return pieces
        finally:
            for file in lent.values():
                file.close()
        mixed: list[Buffer | FileTicket] = list(pieces)
        for index, ticket in zip(lent, tickets, strict=True):
            mixed[index] = ticket
        return mixed

    def _send(self, lent: list[MemoryFile]) -> list[FileTicket]:
        """In one message, whose text is the first one's number."""
        with self._lock:
            fds = array.array("i", [file.fd for file in lent])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
            self._socket.sendmsg([TICKET.pack(self._next)], rights, socket.MSG_DONTWAIT | _NOSIGNAL)
            tickets = [FileTicket(self._next + index, file.nbytes) for index, file in enumerate(lent)]
            self._next += len(lent)
        return tickets

    def map(self, ticket: int, nbytes: int) -> memoryview:
        """The buffer that a frame names. ProtocolError if it did not come, or cannot be mapped."""
        with self._lock:
            try:
                while ticket not in self._arrived:
                    text, fds = receive_with_fds(self._socket, TICKET.size, LIMIT_FILES)
                    if not fds:
                        raise ProtocolError(f"memory file {ticket} of {nbytes} bytes is named, and did not come")
                    self._arrived.update(enumerate(fds, TICKET.unpack(text)[0]))
                return map_file(self._arrived.pop(ticket), nbytes)
            except (OSError, ValueError) as problem:
                raise ProtocolError(f"memory file {ticket} of {nbytes} bytes: {problem}") from None

    def close(self) -> None:
        self._socket.close()
        arrived, self._arrived = self._arrived, {}
        for fd in arrived.values():  # of frames that nobody read
            os.close(fd)


def receive_with_fds(stream: socket.socket, nbytes: int, limit: int) -> tuple[bytes, list[int]]:
    """Like `socket.recv_fds`, which ignores its flags in some versions: without waiting, and nobody inherits them."""
    fds = array.array("i")
    data, ancillary, _, _ = stream.recvmsg(nbytes, socket.CMSG_LEN(limit * fds.itemsize), _RECEIVE_FLAGS)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def exchange_pair() -> tuple[Exchange, int] | None:
    """Both ends: this process's, and a descriptor for the other process. None where there are no memory files."""
    if not writing.SUPPORTED:
        return None
    ours, theirs = socket.socketpair()
    return Exchange(ours.detach()), theirs.detach()


def forget() -> None:
    """In a forked child: the sockets are the parent's."""
    for each in list(_open):
        each.close()
