"""When calls that wait are likely to start: what `snapshot` tells beside their places in the queue.

Each slot is expected to come free when its call has taken as long as calls of that task usually do, and those of a
replica that starts when it has taken as long as replicas usually do. Calls take them in their order. Only its client
knows how many calls it still has for a slot that it holds, so nothing is said of what depends on that: a client keeps
its slots for its own calls, until another one that has none waits.

Instants follow from what has happened, not from the present one: a call that takes longer than usual is expected at an
instant that has passed, and views say so.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Final

from .pool import Lease, Pool

NOBODY: Final = ""


def starts(pool: Pool, queue: Sequence[Lease]) -> list[float | None]:
    """The instant at which each of these requests is likely to be served, in their order; None if nothing is known."""
    if not queue:
        return []
    free = sorted(slot for slot in (*_held(pool), *_coming(pool, len(queue))) if slot[0] < math.inf)
    having = {lease.client for replica in pool.replicas.values() for lease in replica.leases.values()}
    waiting = Counter(request.client for request in queue)
    hopeless: set[str] = set()  # nothing is known of what such a client waits for, nor of what it waits for next
    found: list[float | None] = []
    for request in queue:
        client = request.client
        place = None
        if client not in hopeless:
            place = next(
                (
                    place
                    for place, (_, owner) in enumerate(free)
                    if owner != client and (not waiting[owner] or client not in having)
                ),
                None,
            )
        if place is None:
            hopeless.add(client)
            found.append(None)
            continue
        at, _ = free.pop(place)
        found.append(at)
        having.add(client)
        waiting[client] -= 1
        if (end := at + pool.usual.seconds(request.task)) < math.inf:
            insort(free, (end, client))
    return found


def _held(pool: Pool) -> Iterator[tuple[float, str]]:
    """When slots are likely to come free, and who has them."""
    for replica in pool.replicas.values():
        if replica.state == "ready" and not replica.attached:
            for lease in replica.leases.values():
                yield lease.since + pool.usual.seconds(lease.task), lease.client


def _coming(pool: Pool, most: int) -> Iterator[tuple[float, str]]:
    """Those that nobody has yet."""
    if pool.cold_start_s is not None:
        for replica in pool.replicas.values():
            if replica.state in {"starting", "loading"}:
                yield from repeat((replica.started_at + pool.cold_start_s, NOBODY), min(pool.slots, most))
