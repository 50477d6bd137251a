"""How many events a second the scheduler decides on, with no process anywhere: `python benchmarks/scheduler.py`.

One pool of 1,000 replicas, one slot each, and a queue that is kept at a given length: a lease ends, the next request is
granted, another one comes.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import count

from flyte_jupyter.core.commands import Grant, StartReplica
from flyte_jupyter.core.events import (
    ClientConnected,
    LeaseReleased,
    LeaseRequested,
    PoolDeclared,
    PoolWarmed,
    ReplicaLoading,
    ReplicaReady,
)
from flyte_jupyter.core.scheduler import Scheduler
from flyte_jupyter.core.spec import DeviceRequest, Scaling

REPLICAS = 1_000
EVENTS = 100_000
CLIENTS = 10


def measure(queue: int) -> float:
    """Events a second with `queue` requests waiting."""
    scheduler = Scheduler()
    for number in range(CLIENTS):
        scheduler.handle(ClientConnected(f"client{number}", f"{number}.ipynb", "notebook", 1), now=0)
    scaling = Scaling(min_replicas=REPLICAS, max_replicas=REPLICAS, concurrency=1, idle_ttl=1800, scaledown_ttl=300)
    scheduler.handle(PoolDeclared("client0", "pool", "pool", scaling, DeviceRequest()), now=0)
    for command in scheduler.handle(PoolWarmed("pool"), now=0):
        if isinstance(command, StartReplica):
            scheduler.handle(ReplicaLoading(command.replica, 1), now=0)
            scheduler.handle(ReplicaReady(command.replica), now=0)
    numbers = count()
    running: deque[str] = deque()

    def request(now: float) -> None:
        number = next(numbers)
        event = LeaseRequested(f"client{number % CLIENTS}", f"lease{number}", "pool", "task")
        running.extend(each.lease for each in scheduler.handle(event, now=now) if isinstance(each, Grant))

    for _ in range(REPLICAS + queue):
        request(1.0)
    assert len(running) == REPLICAS
    started = time.perf_counter()
    for number in range(EVENTS // 2):
        now = 1 + number / 1000
        granted = scheduler.handle(LeaseReleased(running.popleft()), now=now)
        running.extend(each.lease for each in granted if isinstance(each, Grant))
        request(now)
    took = time.perf_counter() - started
    assert len(running) == REPLICAS
    return EVENTS / took


def main() -> None:
    print("| waiting requests | events a second |\n|---|---|")
    for queue in (100, 1_000, 10_000):
        print(f"| {queue:,} | {measure(queue):,.0f} |")


if __name__ == "__main__":
    main()
