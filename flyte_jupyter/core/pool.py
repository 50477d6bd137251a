"""What is known of pools, replicas, leases and clients, and the questions that are asked about them.

Only the scheduler changes them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal

from .queue import Queue
from .ranking import Ranking
from .spec import DeviceRequest, Scaling
from .usual import Usual

LONGEST_BACKOFF_S = 60.0
FAILURE_WINDOW_S = 120.0  # as many failures as `Pool.failures` holds within this time are a verdict
PROVEN_S = 300.0  # a replica that has been ready for so long shows that the preload works

State = Literal["starting", "loading", "ready", "draining", "stopping"]


@dataclass(slots=True, eq=False)
class Lease:
    """The right to one slot, or to the replica that it names: queued while `replica` is None, held afterwards."""

    id: str
    client: str
    pool: Pool
    task: str
    since: float  # requested, then granted, then as its replica says
    order: int
    parent: Lease | None = None  # the lease of the task that waits for this one
    children: dict[str, Lease] = field(default_factory=dict)  # those it waits for, queued or held
    replica: Replica | None = None
    running: bool = True  # while it is held: as far as one knows; its replica says when nothing runs in it
    abandoned: bool = False  # its client is gone; the replica is stopping what runs in it
    over: bool = False  # its replica says that its client has hung up, and that nothing runs in it
    recalled: bool = False  # its client was asked to give it back after the call that runs
    lost_why: str | None = None  # what its client shall hear when the replica exits, if we know better
    opens: Replica | None = None  # of an attachment: that one and no other
    shared: bool = False  # of an attachment: calls go on there
    session: str | None = None  # that keeps it between its cells

    def waits_for(self, stuck: Container[str]) -> bool:
        return any(
            child.pool.key in stuck if child.replica is None else child.waits_for(stuck)
            for child in self.children.values()
        )

    def ancestors(self) -> Iterator[Lease]:
        ancestor = self.parent
        while ancestor is not None:
            yield ancestor
            ancestor = ancestor.parent


@dataclass(slots=True, eq=False)
class Replica:
    id: str
    pool: Pool
    index: int
    generation: str
    devices: tuple[str, ...]
    started_at: float
    why: str
    state: State = "starting"
    current: bool = True  # nothing has to replace it: a changed preload, a restart of the pool
    pid: int | None = None
    ready_at: float | None = None
    idle_since: float = 0.0
    leases: dict[str, Lease] = field(default_factory=dict)  # of calls
    guests: dict[str, Lease] = field(default_factory=dict)  # attachments, those that wait for it among them
    calls: int = 0  # that have ended

    @property
    def busy(self) -> bool:
        """Whether a task runs, or is about to: a lease alone may be one that its client keeps for the next call."""
        return any(lease.running for lease in self.leases.values())

    @property
    def waits(self) -> bool:
        """Whether a task here has called others that have not ended."""
        return any(lease.children for lease in self.leases.values())

    @property
    def attached(self) -> bool:
        """Whether somebody has it, or waits for it, alone: it takes no calls."""
        return bool(self.guests) and any(not guest.shared for guest in self.guests.values())

    @property
    def holder(self) -> Lease | None:
        """Who has it alone."""
        return next((guest for guest in self.guests.values() if guest.replica and not guest.shared), None)

    @property
    def stalled(self) -> bool:
        """Whether it serves nobody because a cell of somebody who shares it stands still on the main thread."""
        return bool(self.guests) and any(guest.shared and guest.children for guest in self.guests.values())

    def pinned(self, stuck: Container[str]) -> int:
        """How many of its leases wait, directly or through others, for a call queued in a `stuck` pool."""
        return sum(lease.waits_for(stuck) for leases in (self.leases, self.guests) for lease in leases.values())

    def is_stuck(self, stuck: Container[str], slots: int) -> bool:
        """Whether none of its slots can come free as long as `stuck` serves nobody."""
        if any(guest.shared and guest.waits_for(stuck) for guest in self.guests.values()):
            return True
        if self.holder is not None:
            return self.holder.waits_for(stuck)
        return self.pinned(stuck) >= (slots if self.state == "ready" else 1)

    @property
    def name(self) -> str:
        return f"{self.pool.name}[{self.index}]"


@dataclass(slots=True, eq=False)
class Client:
    id: str
    label: str
    kind: str
    pid: int
    leases: dict[str, Lease] = field(default_factory=dict)  # queued and held
    declared: dict[str, None] = field(default_factory=dict)  # keys of pools
    latest: dict[str, str] = field(default_factory=dict)  # the pool last declared under a name


@dataclass(frozen=True, slots=True)
class Failure:
    cause: str
    replica: str
    attempts: int
    state: str  # how far the replica had come: "starting", or "loading" if its preload ran


@dataclass(slots=True, eq=False)
class Pool:
    key: str
    name: str
    scaling: Scaling
    devices: DeviceRequest
    generation: str
    single_use: bool
    memory_bytes: int = 0  # that one replica may use; 0 if that is not limited
    room: float = math.inf  # how many of its replicas the machine's devices allow

    declared: Scaling | None = None  # `scaling` differs from it after an explicit PoolScaled
    declared_by: dict[str, None] = field(default_factory=dict)
    active: bool = False  # it keeps its minimum warm; an inactive pool only winds down
    retiring: bool = False  # superseded: it serves what it has, and nothing is kept warm
    stop_why: str = ""
    killed: bool = False  # PoolStopped(force=True), until carried out
    used_at: float = -math.inf  # the last moment at which something ran, waited, became ready or was warmed
    kept_until: float = -math.inf
    warm_goal: int = 0  # PoolWarmed, until carried out
    owed: int = 0  # replicas that were taken away to be replaced, and are not replaced yet

    replicas: dict[str, Replica] = field(default_factory=dict)
    count: dict[State, int] = field(
        default_factory=lambda: {"starting": 0, "loading": 0, "ready": 0, "draining": 0, "stopping": 0}
    )
    stale: int = 0  # ready replicas that are not current
    renewal: str = ""  # why they have to be replaced
    renewing: Replica | None = None  # the one that will replace a stale one
    leaving: list[Replica] = field(default_factory=list)  # may stop now: drained, or outdated before ready
    free: Ranking = field(default_factory=Ranking)  # replicas with a free slot, best first
    idle: Ranking = field(default_factory=Ranking)  # ready replicas that nobody uses, idle longest first
    wanted: dict[str, Replica] = field(default_factory=dict)  # replicas that somebody waits for, to attach to them
    guests: int = 0  # attachments
    _indices: list[int] = field(default_factory=list)
    _next_index: int = 0

    queue: Queue[Lease] = field(init=False)
    running: int = 0
    queued_children: int = 0  # requests with a parent
    waiting_parents: int = 0  # leases held here that wait for another, in whatever pool

    failure: Failure | None = None
    failed: bool = False  # the verdict: no further attempt
    shaken: bool = False  # a start has just failed; until `_serve` has told those who wait
    failures: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    streak: int = 0
    retry_at: float = -math.inf

    starts: int = 0
    failures_seen: int = 0
    calls: int = 0
    cold_starts_avoided: int = 0
    made_ready: int = 0
    start_s: float = 0.0  # of those that were made ready, all together
    usual: Usual = field(default_factory=Usual)

    def __post_init__(self) -> None:
        self.queue = Queue(nested_first=self.single_use)

    # Sizes

    @property
    def waiting(self) -> int:
        return self.queue.waiting

    @property
    def coming(self) -> int:
        return self.count["starting"] + self.count["loading"]

    @property
    def live(self) -> int:
        """Replicas that count towards the maximum: a draining one still works, a stopping one does not."""
        count = self.count
        return count["starting"] + count["loading"] + count["ready"] + count["draining"]

    @property
    def cap(self) -> float:
        return min(self.scaling.max_replicas, self.room)

    @property
    def working(self) -> int:
        """Live replicas without those whose tasks wait for others."""
        return sum(each.state != "stopping" and not each.waits for each in self.replicas.values())

    @property
    def full(self) -> bool:
        """Whether none may be added for those who wait.

        A single-use pool serves calls of tasks first, and for those it leaves out the replicas that wait for others:
        else a recursion would hold all of them and wait for one more.
        """
        if self.live < self.cap:
            return False
        nested = self.single_use and self.queued_children > self.coming
        return not nested or self.working >= self.scaling.max_replicas

    @property
    def floor(self) -> int:
        if self.retiring or self.single_use:
            return 0
        return min(self.scaling.min_replicas, self.scaling.max_replicas)

    @property
    def spare(self) -> int:
        """How many of its idle replicas it could do without."""
        return max(0, min(len(self.idle), self.count["ready"] - self.floor))

    @property
    def slots(self) -> int:
        return 1 if self.single_use else self.scaling.concurrency

    @property
    def cold_start_s(self) -> float | None:
        return self.start_s / self.made_ready if self.made_ready else None

    # Instants

    @property
    def idle_stops_at(self) -> float:
        """When all replicas go for want of work; infinity while there is some, or a model is being loaded."""
        if not self.active or self.running or self.waiting or self.guests:
            return math.inf
        if self.retiring:
            return -math.inf
        # A model may take longer to load than idle_ttl: the clock starts again when it is ready.
        return math.inf if self.coming else max(self.used_at + self.scaling.idle_ttl, self.kept_until)

    @property
    def scaledown_at(self) -> float:
        """When the replica idle for longest goes; infinity while none is above the minimum."""
        if self.count["ready"] <= self.floor:
            return math.inf
        ttl = 0.0 if self.retiring else self.scaling.scaledown_ttl
        return max(self.idle.first_rank() + ttl, -math.inf if self.retiring else self.kept_until)

    @property
    def stuck_from(self) -> int:
        """With fewer parents than these waiting on its leases, some slot of it must come free."""
        ready = [replica for replica in self.replicas.values() if replica.state == "ready"] if self.guests else []
        held = sum(replica.holder is not None or replica.stalled for replica in ready)
        return (self.count["ready"] - held) * self.slots + held

    # Replicas

    def note_ready(self, replica: Replica, now: float) -> None:
        replica.ready_at = replica.idle_since = now
        self.made_ready += 1
        self.start_s += now - replica.started_at

    def count_calls(self, replica: Replica, ended: int) -> None:
        self.calls += ended
        self.cold_starts_avoided += max(0, ended - (not replica.calls))
        replica.calls += ended

    def take_index(self) -> int:
        if self._indices:
            return heappop(self._indices)
        self._next_index += 1
        return self._next_index - 1

    def add(self, replica: Replica) -> None:
        self.replicas[replica.id] = replica
        self.count[replica.state] += 1
        self.starts += 1

    def remove(self, replica: Replica) -> None:
        self.move(replica, "stopping")
        self.count["stopping"] -= 1
        del self.replicas[replica.id]
        heappush(self._indices, replica.index)

    def move(self, replica: Replica, state: State) -> None:
        self.count[replica.state] -= 1
        self.stale -= replica.state == "ready" and not replica.current
        replica.state = state
        self.count[state] += 1
        self.stale += state == "ready" and not replica.current
        if state in {"draining", "stopping"}:
            if self.renewing is replica:
                self.renewing = None
            self.spare_leases(replica)
        self.place(replica)

    def spare_leases(self, replica: Replica) -> None:
        """Recall none of its leases for the sake of others: that would free no slot."""
        for lease in replica.leases.values():
            self.queue.spare(lease)

    def note_stall(self, replica: Replica) -> None:
        """A cell there may have begun to stand still, or go on: until then none of its slots can come free."""
        if replica.stalled:
            self.spare_leases(replica)
        elif replica.state == "ready":
            for lease in replica.leases.values():
                if not lease.recalled:
                    self.queue.offer(lease)
        self.place(replica)

    def place(self, replica: Replica) -> None:
        """Rank a replica anew: its state, leases, guests or generation changed, or the pool's concurrency."""
        leases = len(replica.leases)
        if replica.state == "ready" and leases < self.slots and not (replica.attached or replica.stalled):
            outdated = replica.generation != self.generation
            self.free.put(replica.id, outdated, not replica.current, leases, replica.index)
        else:
            self.free.drop(replica.id)
        if replica.state == "ready" and not leases and not replica.guests:
            self.idle.put(replica.id, replica.idle_since, -replica.index)
        else:
            self.idle.drop(replica.id)

    def set_generation(self, generation: str) -> None:
        self.generation = generation
        self.renewal = "the preload has changed"
        for replica in self.replicas.values():
            self._set_current(replica, replica.generation == generation)
        self._count_stale()

    def outdate(self, why: str) -> None:
        """Every replica has to be replaced."""
        self.renewal = why
        for replica in self.replicas.values():
            self.owed += replica.state in {"starting", "loading"} and not self.single_use
            self._set_current(replica, False)
        self._count_stale()

    def _set_current(self, replica: Replica, current: bool) -> None:
        replica.current = current
        if not current and replica.state in {"starting", "loading"}:
            replica.why = self.renewal
            self.leaving.append(replica)
        self.place(replica)

    def _count_stale(self) -> None:
        self.stale = sum(r.state == "ready" and not r.current for r in self.replicas.values())

    def free_slot(self) -> Replica | None:
        """The replica that serves next: the least loaded, of the lowest index."""
        first = self.free.first()
        if first is None:
            return None
        replica = self.replicas[first]
        # What the old preload made must not answer beside what the new one made.
        return replica if replica.generation == self.generation or self.count["ready"] == self.stale else None

    # Leases

    def enqueue(self, lease: Lease) -> None:
        parent = lease.parent
        if parent is not None:
            parent.pool.waiting_parents += not parent.children
            parent.children[lease.id] = lease
            if parent.opens is not None:
                parent.pool.note_stall(parent.opens)
            self.queued_children += 1
        self.queue.add(lease)

    def unqueue(self, lease: Lease) -> None:
        """It waits no longer; `hold` follows if it was granted."""
        self.queued_children -= lease.parent is not None
        self.queue.remove(lease)

    def hold(self, lease: Lease, replica: Replica) -> None:
        lease.replica = replica
        replica.leases[lease.id] = lease
        self.running += 1
        self.queue.serve(lease)
        self.place(replica)

    def free_lease(self, lease: Lease, replica: Replica) -> None:
        lease.replica = None
        del replica.leases[lease.id]
        self.waiting_parents -= bool(lease.children)
        self.running -= 1
        self.queue.take_back(lease)
        self.place(replica)

    def unlink(self, lease: Lease) -> None:
        """Its parent waits for it no longer."""
        parent = lease.parent
        if parent is not None:
            del parent.children[lease.id]
            parent.pool.waiting_parents -= parent.replica is not None and not parent.children
            if parent.opens is not None:
                parent.pool.note_stall(parent.opens)

    # Attachments

    def invite(self, guest: Lease, replica: Replica) -> None:
        """Somebody waits to attach to this replica."""
        replica.guests[guest.id] = guest
        self.guests += 1
        self.wanted[replica.id] = replica
        self.place(replica)

    def admit(self, guest: Lease, replica: Replica) -> None:
        guest.replica = replica
        if all(each.replica for each in replica.guests.values()):
            self.wanted.pop(replica.id, None)

    def part(self, guest: Lease, replica: Replica) -> None:
        """An attachment is over, or will not be."""
        guest.replica = None
        del replica.guests[guest.id]
        self.guests -= 1
        self.waiting_parents -= bool(guest.children)
        if all(each.replica for each in replica.guests.values()):
            self.wanted.pop(replica.id, None)
        self.note_stall(replica)

    # What went wrong

    def count_failure(self, replica: Replica, cause: str, now: float) -> None:
        since = self.failures[-1] if self.failures else -math.inf
        proven = (r.ready_at + PROVEN_S for r in self.replicas.values() if r.ready_at is not None)
        if any(since < instant <= now for instant in proven):
            self.streak = 0
        self.streak += 1
        self.failures_seen += 1
        self.failures.append(now)
        self.retry_at = now + min(LONGEST_BACKOFF_S, 2.0 ** min(self.streak - 1, 6))
        enough = len(self.failures) == self.failures.maxlen
        self.failed = self.failed or (enough and now - self.failures[0] <= FAILURE_WINDOW_S)
        attempts = len(self.failures) if self.failed else self.streak
        self.failure = Failure(cause, replica.name, attempts, replica.state)
        self.shaken = True

    def forgive(self) -> None:
        """Somebody changed the preload, or says that it works now: start again without delay."""
        self.failure = None
        self.failed = False
        self.failures.clear()
        self.streak = 0
        self.retry_at = -math.inf

    def rescale(self, scaling: Scaling) -> None:
        self.scaling = scaling
        for replica in self.replicas.values():
            self.place(replica)
