"""Finds calls that would wait for ever: for a slot that is held by a task which waits for that very call."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

from .inventory import Inventory
from .pool import Lease, Pool, Replica

STARVATION_S = 1.0  # a caller may be about to cancel its child, or a slot about to be released


class Starvation:
    """Which pools can never serve the calls of tasks that are queued there, and since when.

    Args:
        inventory: The machine's devices.
        replicas: All there are.
        pools: All there are.
        hungry: Pools with a request that lacks devices.
        pressed: Pools whose calls wait for memory. All five are the scheduler's, which changes them.
    """

    def __init__(
        self,
        inventory: Inventory,
        replicas: Mapping[str, Replica],
        pools: Mapping[str, Pool],
        hungry: Mapping[str, Pool],
        pressed: Mapping[str, Pool],
    ) -> None:
        self._inventory = inventory
        self._replicas = replicas
        self._pools = pools
        self._hungry = hungry
        self._pressed = pressed
        self._nested: dict[str, Pool] = {}  # pools in which a task's own call is queued
        self._stuck: dict[str, float] = {}  # those that can never serve it, and since when

    def watch(self, pool: Pool) -> None:
        """A task's own call is queued in this pool."""
        self._nested[pool.key] = pool

    def next_deadline(self) -> float:
        return min(self._stuck.values()) + STARVATION_S if self._stuck else math.inf

    def victim(self, now: float) -> Lease | None:
        """A call that has to be refused: it would wait for ever, and that has been so for a while."""
        if not self._nested:
            self._stuck = {}
            return None
        stuck = self._stuck_pools()
        self._stuck = {key: self._stuck.get(key, now) for key in stuck}
        if not stuck or now < min(self._stuck.values()) + STARVATION_S:
            return None
        self._stuck = {}
        victims = [
            lease
            for pool in stuck.values()
            for lease in pool.queue
            if any(self._is_needed(ancestor, pool, stuck) for ancestor in lease.ancestors())
        ]
        return max(victims, key=lambda lease: lease.order, default=None)

    def _is_needed(self, held: Lease, pool: Pool, stuck: Container[str]) -> bool:
        """Whether a request of `pool` could be served if that lease ended."""
        if held.replica is None:
            return False
        has_memory = pool.key in self._pressed and held.pool.single_use
        return held.pool.key in stuck or bool(held.replica.devices) or has_memory

    def _stuck_pools(self) -> dict[str, Pool]:
        """The pools whose queued children can never be served: the greatest set that explains itself."""
        self._nested = {key: pool for key, pool in self._nested.items() if pool.queued_children}
        stuck = {
            key: pool
            for key, pool in self._nested.items()
            if not pool.coming and pool.waiting_parents >= pool.stuck_from
        }
        while released := [key for key, pool in stuck.items() if not self._is_stuck(pool, stuck)]:
            for key in released:
                del stuck[key]
        return stuck

    def _is_stuck(self, pool: Pool, stuck: dict[str, Pool]) -> bool:
        """Whether no slot can come free and no replica can start, given that `stuck` serves nobody."""
        if pool.key in self._pressed:
            # Memory comes free when a fresh kernel ends that does not wait for it.
            fresh = [each for other in self._pools.values() if other.single_use for each in other.replicas.values()]
            return all(each.state != "stopping" and each.is_stuck(stuck, 1) for each in fresh)
        if not pool.full and not pool.failed:
            # It could grow, unless the devices are held by those who wait for it.
            if pool.key not in self._hungry:
                return False
            holders = (
                self._replicas.get(self._inventory.holders.get(device.uuid, ""))
                for device in self._inventory.matching(pool.devices)
            )
            reachable = sum(holder is None or not holder.pinned(stuck) for holder in holders)
            if reachable >= pool.devices.count:
                return False
        return all(
            replica.is_stuck(stuck, pool.slots) for replica in pool.replicas.values() if replica.state != "stopping"
        )

    def explain(self, lease: Lease) -> dict[str, str]:
        """The detail of its refusal: who waits for whom, and how much room there is."""
        pool = lease.pool
        tasks = [lease.task, *(ancestor.task for ancestor in lease.ancestors())]
        detail = {
            "parent": tasks[1],
            "child": lease.task,
            "pool": pool.name,
            "replicas": str(pool.scaling.max_replicas),
            "concurrency": str(pool.slots),
            "chain": " -> ".join(reversed(tasks)),
        }
        if lease.parent is not None and lease.parent.opens is not None and lease.parent.pool is pool:
            detail["cell"] = "shared" if lease.parent.shared else "alone"
        if pool.key in self._pressed:
            detail["lacks"] = "memory"
        return detail
