"""The client's end of the connection that a lease has to its replica."""

from __future__ import annotations

import os
import socket

from .. import errors
from ..core.frames import FIRST_CALL, Buffer, FrameReader, Kind, encode
from ..memory import Exchange, exchange_pair
from ..runtime import peer_uid
from .place import Place


class Channel:
    """The client's end of a lease's connection. `blocking` and `looping` move the bytes."""

    __slots__ = ("_told", "address", "calls", "cut", "files", "reader", "socket")

    def __init__(self, address: str, hello: bytes) -> None:
        self.address = address
        self._told: Place | None = None
        self.files: Exchange | None = None
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(address)
            if peer_uid(self.socket) != os.getuid():
                raise errors.ProtocolError(f"the process at {address} belongs to another user")
            self._say_hello(b"".join(encode(Kind.HELLO, 0, hello)))
        except BaseException:
            self.close()
            raise
        self.reader = FrameReader(None if self.files is None else self.files.map)
        self.calls = FIRST_CALL - 1  # the number of the last one
        self.cut = False  # in the middle of a frame: what followed would not be understood

    def moved(self) -> list[Buffer]:
        """What the replica must hear before the next call: where this process is, if that is new."""
        if self._told is not None and self._told.still_holds():
            return []
        before, self._told = self._told, Place.here()
        return [] if self._told == before else encode(Kind.PLACE, 0, self._told.described().encode())

    def send(self, pieces: list[Buffer]) -> None:
        """All of it; an interrupt may come in between."""
        self.cut = True
        for piece in pieces:
            self.socket.sendall(piece)
        self.cut = False

    def _say_hello(self, data: bytes) -> None:
        """Along with the first byte goes the replica's end of the socket for memory files."""
        pair = exchange_pair()
        sent = 0
        if pair is not None:
            self.files, theirs = pair
            try:
                sent = socket.send_fds(self.socket, [data], [theirs])
            finally:
                os.close(theirs)
        self.socket.sendall(data[sent:])

    def close(self) -> None:
        self.socket.close()
        if self.files is not None:
            self.files.close()
