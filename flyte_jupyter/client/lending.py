"""Slots that are kept and not used at the moment, for other calls of their process.

A session keeps a slot between its cells. Its names are a layer of their own, so that another call in its slot disturbs
none of them; and without that, a notebook would wait for itself where a pool has no other slot.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Final, Generic, TypeVar
from weakref import WeakSet

from .broker import Connection
from .lease import Lease
from .leases import LeaseGroup

BORROW_S: Final = 0.05
"""How long the broker may take to grant a slot that is free, before one is borrowed."""
NONE_S: Final = 1.0
"""How long it is believed to have none afterwards: the next call of a loop borrows at once."""

G = TypeVar("G", bound=LeaseGroup)


class LendingGroup(LeaseGroup):
    """A group that keeps its leases, and lends those that it does not use."""

    def __init__(self, connection: Connection, pool: str, parent: str | None, run: str) -> None:
        super().__init__(connection, pool, parent, run)
        self._lent: set[Lease] = set()
        _lenders.add(self)

    def lend(self, replica: str = "") -> Lease | None:
        """A lease that nobody uses or waits for here, on the replica of that name; it is given back to this group."""
        with self._lock:
            lease = next((each for each in self._idle if replica in ("", each.name)), None)
            if lease is None or self._lines:
                return None
            self._idle.remove(lease)
            self._lent.add(lease)
            return lease

    def give_back(self, lease: Lease) -> None:
        with self._lock:
            self._lent.discard(lease)
        super().give_back(lease)
        if self.has_idle:
            for other in _borrowers.beside(self):
                other.borrow()

    def drop(self, lease: Lease, *, close: bool = True) -> None:
        with self._lock:
            self._lent.discard(lease)
        super().drop(lease, close=close)

    def close(self, *, but: Collection[Lease] = ()) -> None:
        _lenders.discard(self)
        super().close(but=but)


class BorrowingGroup(LeaseGroup):
    """A group whose calls may run in slots of others: where the broker has none, those that others keep."""

    patience_s: float = BORROW_S

    def __init__(
        self, connection: Connection, pool: str, parent: str | None, run: str, slots: Callable[[], int] | None = None
    ) -> None:
        super().__init__(connection, pool, parent, run, slots)
        self._none_until = 0.0
        self._looks = False  # in a moment, whether it has to borrow
        _borrowers.add(self)

    def take(self) -> Lease | None:
        lease = super().take()
        if lease is None and self._none_until and time.monotonic() < self._none_until:
            lease = self._borrowed()
        return lease

    @property
    def has_idle(self) -> bool:
        return super().has_idle or any(each.has_idle for each in _lenders.beside(self))

    def adjust(self) -> None:
        super().adjust()
        if self._requests and not self._looks and _lenders.beside(self):
            self._looks = True
            self.connection.call_later(self.patience_s, self._look)

    def borrow(self) -> None:
        """Serve those who wait with what others keep."""
        while self._somebody_waits() and (lease := self._borrowed()) is not None:
            with self._lock:
                served = self._serve(lease)
            if not served:
                lease.group.give_back(lease)
        self.adjust()

    def _look(self) -> None:
        self._looks = False
        if self._requests:
            self.borrow()

    def _somebody_waits(self) -> bool:
        with self._lock:
            return self._next() is not None

    def _borrowed(self) -> Lease | None:
        lease = borrow(self)
        if lease is not None:
            self._none_until = time.monotonic() + NONE_S
        return lease


def borrow(group: LeaseGroup, replica: str = "") -> Lease | None:
    """A lease of this group's pool that another group keeps; on the replica of that name. Give it back to its group."""
    return next((lease for each in _lenders.beside(group) if (lease := each.lend(replica)) is not None), None)


class _Known(Generic[G]):
    """The groups of this process, as long as somebody uses them."""

    def __init__(self) -> None:
        self.clear()
        os.register_at_fork(after_in_child=self.clear)

    def clear(self) -> None:
        self._lock = threading.Lock()
        self._groups: WeakSet[G] = WeakSet()

    def add(self, group: G) -> None:
        with self._lock:
            self._groups.add(group)

    def discard(self, group: G) -> None:
        with self._lock:
            self._groups.discard(group)

    def beside(self, group: LeaseGroup) -> list[G]:
        """Those that have leases of the same pool."""
        if not self._groups:
            return []
        with self._lock:
            known = list(self._groups)
        return [
            each
            for each in known
            if each is not group and each.pool == group.pool and each.connection is group.connection
        ]


_lenders: Final[_Known[LendingGroup]] = _Known()
_borrowers: Final[_Known[BorrowingGroup]] = _Known()
