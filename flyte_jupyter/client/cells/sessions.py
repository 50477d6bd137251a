"""Sessions: cells that find each other's names, on one replica that is kept for them."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from ... import errors
from ...core import protocol as p
from .. import broker
from ..lease import Lease
from ..leases import LeaseGroup
from ..lending import BorrowingGroup, LendingGroup, borrow
from ..running import RunningPool

SESSION_IDLE_S: Final = 1800.0
"""How long a session that nobody uses keeps its replica."""
SHARE_S: Final = 1.0
"""How long a session waits for a slot of its own before it shares one."""


class SessionGroup(LendingGroup, BorrowingGroup):
    """One slot that its session keeps between cells, so that they all run on one replica and find their names.

    Where a pool has no slot for a further session of this process, two of them keep one slot together.
    """

    patience_s = SHARE_S
    looks = 10

    @property
    def linger_s(self) -> float:
        return SESSION_IDLE_S

    def __init__(self, connection: broker.Connection, pool: str, session: str) -> None:
        super().__init__(connection, pool, None, "local")
        self.session = session  # that the broker tells of
        self._name = session
        self._kept_for = {session: None}
        self._ended: list[str] = []  # sessions, of which the replica is to hear yet
        self._may_share = False

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    def take(self) -> Lease | None:
        return LeaseGroup.take(self)

    def recalled(self, lease: str) -> None:
        """Others wait for it, and have to: the names in it cannot be made again elsewhere."""

    def replica(self) -> str:
        """Where it runs: "gpu[0]"; "" if it has no slot now."""
        with self._lock:
            return next((lease.name for lease in self._held.values()), "")

    def end(self, session: str) -> str:
        """The session is over: its replica lets go of its names. The session that keeps the slot yet, or ""."""
        with self._lock:
            self._kept_for.pop(session, None)
            if self._held:
                self._ended.append(session)
            idle = self._idle.pop() if self._idle else None
            left = next(iter(self._kept_for), None)
        if idle is not None:
            self.give_back(idle)  # which tells the replica
        if left is None:
            self.close()
            return ""
        if self.session == session:
            self._tell_broker(left)
        return left or "of this notebook"

    def close(self, *, but: Collection[Lease] = ()) -> None:
        """The cell that runs ends with its session; another call in the slot does not."""
        with self._lock:
            lent = set(self._lent)
            own = [lease for lease in self._held.values() if lease not in lent]
        for lease in own:
            self._leave(lease)
        super().close(but={*but, *lent})

    def give_back(self, lease: Lease) -> None:
        self._leave(lease)
        if self._kept_for:
            super().give_back(lease)
        else:
            self.drop(lease)

    def drop(self, lease: Lease, *, close: bool = True) -> None:
        super().drop(lease, close=close)
        self.adjust()

    # --- one slot for two

    def borrow(self) -> None:
        if self._may_share:
            super().borrow()

    def _look(self) -> None:
        self._looks = False
        if self._requests:  # not here: the answer comes on this thread
            threading.Thread(target=self._look_at_pool, name="flyte_jupyter: a session", daemon=True).start()

    def _look_at_pool(self) -> None:
        """Share a slot if no replica of its own is on its way."""
        with suppress(errors.BaseRuntimeError):
            view = self.connection.snapshot().snapshot.pool(self.pool)
            coming = view is not None and any(each.state in ("starting", "loading") for each in view.replicas)
            self._may_share = not coming
            self.borrow()
            self.adjust()

    def _borrowed(self) -> Lease | None:
        lease = borrow(self)
        if lease is not None and isinstance(lease.group, SessionGroup):
            lease.group.take_in(self._name)
        return lease

    def take_in(self, session: str) -> None:
        """That session has its names on this replica, too, from now on."""
        self._kept_for[session] = None
        _sessions[self.pool, session] = self

    def _leave(self, lease: Lease) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
        for session in ended:
            lease.leave(session)

    def _tell_broker(self, session: str) -> None:
        self.session = session
        for lease in list(self._held):
            with suppress(errors.BrokerGone):
                self.connection.send(p.Kept(lease=lease, session=session))

    def _wanted(self) -> int:
        # One at a time: a second slot could be on another replica.
        return 0 if self._held else min(1, super()._wanted())


_sessions: dict[tuple[str, str], SessionGroup] = {}


def session_group(pool: RunningPool, session: str) -> SessionGroup:
    """The slot of a session, kept until `end_session`, for half an hour without a cell, or for this process's life."""
    connection = pool.connection()
    group = _sessions.get((pool.key, session))
    if group is None or group.connection is not connection:
        group = _sessions[pool.key, session] = SessionGroup(connection, pool.key, session)
    return group


def open_session(pool: RunningPool, session: str) -> SessionGroup | None:
    """Its slot, if it has been used."""
    return _sessions.get((pool.key, session))


def end_session(pool: RunningPool, session: str) -> tuple[str, str]:
    """Let go of its names, and of its slot unless another session keeps that: the replica, and that session."""
    group = _sessions.pop((pool.key, session), None)
    if group is None:
        return "", ""
    replica = group.replica()
    return replica, group.end(session)


def end_sessions() -> None:
    """Give back what all sessions hold."""
    while _sessions:
        (_, session), group = _sessions.popitem()
        group.end(session)
