"""Slots on certain replicas, or on all that are there."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

from ... import errors
from ...core.snapshot import PoolView
from ..lease import Lease
from ..leases import LeaseGroup
from ..lending import borrow
from ..running import RunningPool

RETRY_S: Final = 0.1
GRANTED_S: Final = 1.0
"""How long the broker may take to grant slots that are free."""


class PinnedGroup(LeaseGroup):
    """One slot that was chosen before: no longer held after its call, and there is no other."""

    def __init__(self, group: LeaseGroup, lease: Lease) -> None:
        super().__init__(group.connection, group.pool, group.parent, group.run)
        self.replica = lease.name
        if lease.group is group:
            group.hand(lease, self)
        self._idle.append(lease)  # else it is borrowed

    def give_back(self, lease: Lease) -> None:
        if lease.group is self:
            self.drop(lease)
        else:
            super().give_back(lease)

    def take(self) -> Lease | None:
        lease = super().take()
        if lease is None:
            raise errors.ReplicaDied("a cell", "the replica that was chosen for it")
        return lease

    def let_go(self) -> None:
        """Give the slot back if it was not used."""
        lease = super().take()
        if lease is not None:
            self.give_back(lease)

    def _wanted(self) -> int:
        return 0


def slots_on(pool: RunningPool, name: str, number: int | None = None) -> list[PinnedGroup]:
    """A slot on the replica of that number, or one on each replica that is there.

    Waits until they are free, or kept by a session of this notebook that does not use them. Never asks for more slots
    than are free: the pool must not grow for it.

    Raises:
        NoSuchPool, PoolFailed: As for a call.
        ValueError: There is no replica of that number.
    """
    group = LeaseGroup(pool.connection(), pool.key, None, "local")
    while True:
        view = pool.status()
        there = [] if view is None else [each for each in view.replicas if each.warm]
        wanted = [each.name for each in there if number is None or each.index == number]
        if view is not None and there and not wanted:
            raise ValueError(f"there is no replica {number} of {pool.name}: {', '.join(each.name for each in there)}")
        if view is None or not wanted:  # nothing runs: one call's slot starts it
            waiter = group.ask(name)
            try:
                group.drop(waiter.future.result())
            except KeyboardInterrupt:
                waiter.withdraw()
                raise
        elif chosen := _chosen(group, name, wanted, _free_slots(view)):
            return [PinnedGroup(group, lease) for lease in chosen]
        else:
            time.sleep(RETRY_S)


def _free_slots(view: PoolView) -> dict[str, int]:
    """How many slots of each replica nobody has."""
    slots = view.scaling.concurrency
    return {each.name: 0 if each.state == "attached" else slots - len(each.calls) for each in view.replicas}


def _chosen(group: LeaseGroup, name: str, wanted: list[str], free: dict[str, int]) -> list[Lease]:
    """A slot on each of these replicas; [] if one of them has none."""
    kept = {each: lease for each in wanted if free[each] < 1 and (lease := borrow(group, each)) is not None}
    asked = [each for each in wanted if each not in kept]
    found: list[Lease] = []
    try:
        if all(free[each] > 0 for each in asked):
            found = _granted(group, name, asked, sum(max(count, 0) for count in free.values())) if asked else []
            if len(found) == len(asked):
                chosen = {**kept, **dict(zip(asked, found, strict=True))}
                kept = {}
                return [chosen[each] for each in wanted]
        return []
    finally:
        for lease in kept.values():
            group.give_back(lease)


def _granted(group: LeaseGroup, name: str, wanted: list[str], slots: int) -> list[Lease]:
    """One slot of each wanted replica out of those that are free; [] if somebody else was faster."""
    waiters = [group.ask(name) for _ in range(slots)]
    deadline = time.monotonic() + GRANTED_S
    chosen: dict[str, Lease] = {}
    others = []
    try:
        for waiter in waiters:
            with suppress(TimeoutError):
                lease = waiter.future.result(max(0.0, deadline - time.monotonic()))
                if lease.name in wanted and lease.name not in chosen:
                    chosen[lease.name] = lease
                else:
                    others.append(lease)
            if len(chosen) == len(wanted):
                break
    finally:
        complete = len(chosen) == len(wanted)
        for lease in others if complete else [*others, *chosen.values()]:
            group.drop(lease)
        for waiter in waiters:
            if not waiter.future.done():
                waiter.withdraw()
            elif waiter.future.exception() is None and waiter.future.result() not in [*others, *chosen.values()]:
                group.drop(waiter.future.result())
    return [chosen[each] for each in wanted] if complete else []
