"""One slot on one replica, and one connection to it."""

from __future__ import annotations

import json
import socket
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, Protocol

from .. import errors
from ..core import protocol as p
from ..core.call_events import Granted
from ..core.frames import FIRST_CALL, Kind, encode
from .broker import Connection
from .channel import Channel

LOST_S: Final = 2.0
"""How long the broker may take to say why a replica is gone."""


class Holder(Protocol):
    """The group that a lease belongs to, whoever uses it."""

    connection: Connection

    def hello(self, lease: Lease) -> bytes: ...
    def give_back(self, lease: Lease) -> None: ...
    def drop(self, lease: Lease, *, close: bool = True) -> None: ...
    def contended(self, owner: object) -> bool: ...


class Lease:
    """One slot, while this process holds it."""

    __slots__ = (
        "_channel", "address", "granted", "group", "id", "idle_since", "is_lost", "lost", "name", "recalled", "replica",
        "single_use",
    )  # fmt: skip

    def __init__(self, group: Holder, granted: p.Granted) -> None:
        self.group = group
        self.id = granted.lease
        self.replica = granted.replica
        self.name = granted.name
        self.granted = Granted(granted.name)  # what a call is told that gets it
        self.address = granted.address
        self.single_use = granted.single_use
        self.recalled = False
        self.idle_since = 0.0
        self.is_lost = False  # as `lost.done()`, which takes longer to ask
        self.lost: Future[p.Lost | errors.BaseRuntimeError] = Future()
        self._channel: Channel | None = None

    @property
    def spent(self) -> bool:
        """Whether no further call may be sent in it: it was recalled, or its replica serves one call and has had it."""
        return self.recalled or (self.single_use and self._channel is not None and self._channel.calls >= FIRST_CALL)

    def channel(self) -> Channel:
        """Its connection; made at the first use. OSError if the replica is gone."""
        if self._channel is None:
            self._channel = Channel(self.address, self.group.hello(self))
        return self._channel

    def why_lost(self, timeout: float = LOST_S) -> p.Lost | errors.BaseRuntimeError | None:
        """After the connection broke: what the broker says about it; None if it says nothing in time."""
        try:
            return self.lost.result(timeout)
        except TimeoutError:
            return None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def leave(self, session: str) -> None:
        """This session, which has used it, is over for this process."""
        if self._channel is not None and not self._channel.cut:
            with suppress(OSError):
                self._channel.send(encode(Kind.LEAVE, 0, json.dumps(session).encode()))

    def cancel(self, call: int) -> None:
        """Stop that call and no other."""
        self._order(Kind.CANCEL, call, self.id)

    def withdraw(self, first: int, last: int) -> None:
        """Take back those of these calls that have not begun; a WITHDRAWN on the channel says which."""
        self._order(Kind.WITHDRAW, first, json.dumps([self.id, last]))

    def _order(self, kind: Kind, call: int, body: str) -> None:
        """On a connection of its own, which the replica's control thread reads."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.connect(self.address)
            pieces = encode(Kind.HELLO, 0, b'{"role": "control"}') + encode(kind, call, body.encode())
            control.sendall(b"".join(pieces))
