"""Random histories: whatever happens in whatever order, the scheduler's promises hold."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flyte_jupyter.core.commands import (
    Command,
    ForgetPool,
    Grant,
    Interrupt,
    Lose,
    Recall,
    Refuse,
    StartReplica,
    StopReplica,
)
from flyte_jupyter.core.events import (
    AttachRequested,
    Call,
    CallsReported,
    ClientConnected,
    ClientGone,
    DevicesFound,
    Event,
    LeaseCancelled,
    LeaseEnded,
    LeaseReleased,
    LeaseRequested,
    LeaseRevoked,
    LeaseUse,
    MemoryMeasured,
    PoolDeclared,
    PoolInterrupted,
    PoolKept,
    PoolRestarted,
    PoolScaled,
    PoolStopped,
    PoolWarmed,
    ReplicaExited,
    ReplicaFailed,
    ReplicaInterrupted,
    ReplicaLoading,
    ReplicaReady,
    ReplicaRestarted,
    Tick,
)
from flyte_jupyter.core.inventory import Device
from flyte_jupyter.core.scheduler import FRESH_BYTES, Scheduler
from flyte_jupyter.core.snapshot import Snapshot
from flyte_jupyter.core.spec import DeviceRequest, Scaling
from flyte_jupyter.core.timeline import Timeline

GPUS = tuple(Device(uuid=f"GPU-{index}", model="NVIDIA RTX 4090", index=index) for index in range(2))
REQUESTS = {
    "cpu": DeviceRequest(count=0),
    "gpu": DeviceRequest(count=1),
    "wide": DeviceRequest(count=2),
    "twin": DeviceRequest(count=1),
    "once": DeviceRequest(count=0),
}
POOLS = st.sampled_from(["cpu", "cpu", "gpu", "gpu", *REQUESTS])
SELDOM = st.integers(0, 5).map(lambda number: number == 5)  # most of a history should be work
SCALINGS = st.builds(
    lambda low, more, concurrency, idle, down: Scaling(
        min_replicas=low,
        max_replicas=max(1, low + more),
        concurrency=concurrency,
        idle_ttl=idle,
        scaledown_ttl=down,
    ),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from([30.0, 100.0]),
    st.sampled_from([30.0, 200.0]),
)
ONE = Scaling(min_replicas=0, max_replicas=1, concurrency=1, idle_ttl=30, scaledown_ttl=30)
CLIENTS = ("ada", "bob", "cyd")
MEMORY_BYTES = 2**30


class World(RuleBasedStateMachine):
    """Plays the engine: it keeps books of what it was told, and compares them with the scheduler's."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler()
        self.timeline = Timeline("b", self.scheduler.index_of)
        self.now = 0.0
        self.clients: set[str] = set()
        self.scaling: dict[str, Scaling] = {}
        self.declared: dict[str, Scaling] = {}
        self.generation: dict[str, str] = {}
        self.starts: dict[str, StartReplica] = {}  # every process that has not exited
        self.ready: set[str] = set()
        self.stopped: set[str] = set()
        self.waiting: dict[str, tuple[str, str]] = {}  # lease: (client, pool)
        self.held: dict[str, tuple[str, str, str]] = {}  # lease: (client, pool, replica)
        self.guests: dict[str, tuple[str, str, bool]] = {}  # attachment: (client, replica, whether it shares)
        self.inside: set[str] = set()  # those that are granted
        self.called_by: dict[str, str] = {}  # lease: who waits for it
        self.recalled: set[str] = set()
        self.abandoned: set[str] = set()
        self.count = 0
        self.picture: Snapshot = self.scheduler.snapshot()

    def play(self, event: Event) -> None:
        commands = self.scheduler.handle(event, now=self.now)
        self.timeline.record(event, commands, now=self.now)
        for command in commands:
            self.perform(command)
        picture = self.scheduler.snapshot()
        if picture.revision == self.picture.revision:
            assert picture.model_copy(update={"now": self.picture.now}) == self.picture
        self.picture = picture

    def perform(self, command: Command) -> None:
        match command:
            case Grant(client, lease, replica) if lease in self.guests:
                _, _, shared = guest = self.guests[lease]
                assert guest[:2] == (client, replica)
                assert lease not in self.inside
                assert replica in self.ready - self.stopped
                assert shared or self.alone_in(replica) is None, "two have it alone"
                self.inside.add(lease)
            case Grant(client, lease, replica):
                assert all(shared for _, at, shared in self.guests.values() if at == replica), "a call among guests"
                assert not self.stalled(replica), "a call behind a cell that stands still"
                assert self.waiting.pop(lease) == (client, self.starts[replica].pool)
                assert replica in self.ready - self.stopped
                pool = self.starts[replica].pool
                self.held[lease] = (client, pool, replica)
                sold = sum(holder == replica for _, _, holder in self.held.values())
                assert sold <= (1 if pool == "once" else self.scaling[pool].concurrency), "a slot sold twice"
            case Refuse(client, lease, reason, detail):
                if lease in self.guests:
                    assert reason in {"no-such-replica", "cancelled"}
                    assert lease not in self.inside
                    assert self.guests.pop(lease)[0] == client
                else:
                    assert reason == "no-such-pool" or self.waiting.pop(lease)[0] == client
                assert all(isinstance(value, str) for value in detail.values())
            case Recall(client, lease):
                assert (self.held.get(lease) or self.guests[lease])[0] == client
                assert lease not in self.recalled
                self.recalled.add(lease)
            case Lose(client, lease):
                assert (self.held.pop(lease, None) or self.guests.pop(lease))[0] == client
                self.inside.discard(lease)
            case StartReplica(replica, pool, _, devices, why):
                held = {uuid for start in self.starts.values() for uuid in start.devices}
                assert held.isdisjoint(devices), "a GPU held twice"
                assert len(devices) == REQUESTS[pool].count
                self.starts[replica] = command
                live = [r for r, s in self.starts.items() if s.pool == pool and r not in self.stopped]
                if pool == "once" and self.nested_in(pool):
                    live = [r for r in live if not self.waits(r)]
                extra = why in {"the preload has changed", "the pool is being restarted"}
                assert len(live) <= self.scaling[pool].max_replicas + extra, "above the maximum"
            case Interrupt(replica, lease):
                assert replica in self.starts
                assert lease is None or replica in (self.held.get(lease) or self.guests[lease])
            case StopReplica(replica):
                assert replica in self.starts
                self.stopped.add(replica)
            case ForgetPool(pool):
                assert pool not in {start.pool for start in self.starts.values()}
                del self.scaling[pool], self.declared[pool], self.generation[pool]

    @initialize(gpus=st.integers(0, 2), scalings=st.lists(SCALINGS, min_size=5, max_size=5))
    def boot(self, gpus: int, scalings: list[Scaling]) -> None:
        self.play(DevicesFound(GPUS[:gpus], None if gpus else "no driver"))
        for client in CLIENTS[:2]:
            self.connect(client)
        for pool, scaling in zip(REQUESTS, scalings, strict=True):
            self.declare(CLIENTS[pool == "twin"], pool, scaling, "A")

    @rule(client=st.sampled_from(CLIENTS))
    def connect(self, client: str) -> None:
        self.clients.add(client)
        self.play(ClientConnected(client, f"{client}.ipynb", "notebook", 1))

    @rule(client=st.sampled_from(CLIENTS), pool=POOLS, scaling=SCALINGS, generation=st.sampled_from("AAB"))
    def declare(self, client: str, pool: str, scaling: Scaling, generation: str) -> None:
        self.connect(client)
        name = "gpu" if pool == "twin" else pool
        if self.declared.get(pool) != scaling:
            self.declared[pool] = self.scaling[pool] = scaling
        self.generation[pool] = generation
        devices = REQUESTS[pool]
        once = pool == "once"
        self.play(
            PoolDeclared(
                client, pool, name, scaling, devices, generation, single_use=once, memory_bytes=once * MEMORY_BYTES
            )
        )

    @rule(pool=POOLS, scaling=SCALINGS)
    def scale(self, pool: str, scaling: Scaling) -> None:
        if pool in self.scaling:
            self.scaling[pool] = scaling
        self.play(PoolScaled(pool, scaling))

    @rule(pool=POOLS, replicas=st.integers(0, 3))
    def warm(self, pool: str, replicas: int) -> None:
        self.play(PoolWarmed(pool, replicas))

    @rule(pool=POOLS, seconds=st.sampled_from([10.0, 500.0]))
    def keep(self, pool: str, seconds: float) -> None:
        self.play(PoolKept(pool, seconds))

    @rule(pool=POOLS, force=st.booleans(), seldom=SELDOM)
    def stop(self, pool: str, force: bool, seldom: bool) -> None:
        if seldom:
            self.play(PoolStopped(pool, force))

    @rule(pool=POOLS, seldom=SELDOM)
    def restart(self, pool: str, seldom: bool) -> None:
        if seldom:
            self.play(PoolRestarted(pool))
            self.play(PoolInterrupted(pool))

    @precondition(lambda self: self.starts)
    @rule(data=st.data(), force=st.booleans(), seldom=SELDOM)
    def restart_one(self, data: st.DataObject, force: bool, seldom: bool) -> None:
        replica = data.draw(st.sampled_from([*self.starts]))
        self.play(ReplicaRestarted(replica, force) if seldom else ReplicaInterrupted(replica))

    @precondition(lambda self: self.held or self.waiting or self.guests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.play(LeaseCancelled(data.draw(st.sampled_from([*self.held, *self.waiting, *self.guests]))))

    @precondition(lambda self: self.starts)
    @rule(client=st.sampled_from(CLIENTS), shared=st.booleans(), data=st.data())
    def attach(self, client: str, shared: bool, data: st.DataObject) -> None:
        self.connect(client)
        self.count += 1
        lease = f"guest-{self.count}"
        replica = data.draw(st.sampled_from([*self.starts]))
        self.guests[lease] = (client, replica, shared)
        self.play(AttachRequested(client, lease, replica, "console", shared))

    @precondition(lambda self: self.guests)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        self.leave(data.draw(st.sampled_from([*self.guests])))

    def leave(self, lease: str) -> None:
        self.forget_lease(lease)
        self.play(LeaseEnded(lease) if lease in self.abandoned else LeaseReleased(lease))

    def alone_in(self, replica: str) -> str | None:
        found = (lease for lease in self.inside if self.guests[lease][1:] == (replica, False))
        return next(found, None)

    def stalled(self, replica: str) -> bool:
        """Whether a cell of somebody who shares it waits for a call."""
        waits = {self.called_by.get(lease) for lease in (*self.waiting, *self.held)}
        return any(self.guests[lease][1:] == (replica, True) for lease in self.inside & waits)

    def waits(self, replica: str) -> bool:
        """Whether a task there has called others that have not ended."""
        waits = {self.called_by.get(lease) for lease in (*self.waiting, *self.held)}
        return any(at == replica and lease in waits for lease, (_, _, at) in self.held.items())

    def nested_in(self, pool: str) -> bool:
        """Whether a call of a task waits there."""
        return any(at == pool and lease in self.called_by for lease, (_, at) in self.waiting.items())

    @rule(free=st.integers(0, 4), total=st.integers(1, 4))
    def measure(self, free: int, total: int) -> None:
        self.play(MemoryMeasured(free * FRESH_BYTES, total * MEMORY_BYTES))

    @rule(client=st.sampled_from(CLIENTS), pool=POOLS, many=st.integers(1, 4), data=st.data())
    def request(self, client: str, pool: str, many: int, data: st.DataObject) -> None:
        parents = [*self.held, *sorted(self.inside), None]
        parent = data.draw(st.sampled_from(parents))
        for _ in range(many):
            self.request_one(client, pool, parent)

    def request_one(self, client: str, pool: str, parent: str | None) -> None:
        self.connect(client)
        if pool not in self.scaling:
            self.declare(client, pool, self.declared.get(pool, ONE), "A")
        self.count += 1
        self.waiting[f"lease-{self.count}"] = (client, pool)
        if parent is not None:
            self.called_by[f"lease-{self.count}"] = parent
        self.play(LeaseRequested(client, f"lease-{self.count}", pool, f"task{self.count}", parent))

    @precondition(lambda self: self.held or self.waiting)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from([*self.held, *self.waiting]))
        self.forget_lease(lease)
        self.play(LeaseReleased(lease))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), running=st.booleans(), number=st.integers(1, 9))
    def report(self, data: st.DataObject, running: bool, number: int) -> None:
        lease = data.draw(st.sampled_from([*self.held]))
        ended = None if running else self.now
        call = Call(number, lease, "t", "a.ipynb", self.now, ended, None if running else "succeeded", 1)
        replica = self.held[lease][2]
        self.play(CallsReported(replica, (call,), (LeaseUse(lease, running, "t", self.now),), not running))
        shown = [each for pool in self.picture.pools for r in pool.replicas for each in r.leases]
        assert next(each for each in shown if each.lease == lease).running is running

    @precondition(lambda self: self.held)
    @rule(data=st.data(), seldom=SELDOM)
    def revoke(self, data: st.DataObject, seldom: bool) -> None:
        if seldom:
            self.play(LeaseRevoked(data.draw(st.sampled_from([*self.held])), "it does not listen"))

    @rule(client=st.sampled_from(CLIENTS), seldom=SELDOM)
    def disconnect(self, client: str, seldom: bool = True) -> None:
        if not seldom:
            return
        for lease, (holder, *_) in list(self.waiting.items()):
            if holder == client:
                self.forget_lease(lease)
        for lease, (holder, _, shared) in list(self.guests.items()):
            if holder == client and (shared or lease not in self.inside):
                self.forget_lease(lease)
        # What it was running keeps its slot until the replica says that it has stopped.
        kept = {**self.held, **self.guests}
        self.abandoned |= {lease for lease, (holder, *_) in kept.items() if holder == client}
        self.clients.discard(client)
        self.play(ClientGone(client))

    @precondition(lambda self: self.abandoned & {*self.held, *self.guests})
    @rule(data=st.data())
    def an_abandoned_call_stops(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(sorted(self.abandoned & {*self.held, *self.guests})))
        self.forget_lease(lease)
        self.play(LeaseEnded(lease))

    @rule(client=st.sampled_from(CLIENTS), generation=st.sampled_from("ABC"))
    def edit_preload(self, client: str, generation: str) -> None:
        if "cpu" in self.declared and "gpu" in self.declared:
            self.declare(client, "cpu", self.declared["cpu"], generation)
            self.declare(client, "gpu", self.declared["gpu"], generation)

    @rule(pool=POOLS, many=st.integers(1, 3))
    def request_and_serve(self, pool: str, many: int) -> None:
        for number in range(many):
            self.request_one(CLIENTS[number % 2], pool, None)
        self.all_ready()

    @rule()
    def all_ready(self) -> None:
        for replica in list(self.starts):
            self.ready.add(replica)
            self.play(ReplicaReady(replica))

    @precondition(lambda self: self.starts)
    @rule(data=st.data(), what=st.sampled_from(["ready", "ready", "loading", "fail", "exit"]))
    def progress(self, data: st.DataObject, what: str) -> None:
        replica = data.draw(st.sampled_from([*self.starts]))
        if what == "exit":
            self.exit(replica)
        elif what == "ready":
            self.ready.add(replica)
            self.play(ReplicaReady(replica))
        elif what == "loading":
            self.play(ReplicaLoading(replica, 7))
        elif replica not in self.ready:
            self.play(ReplicaFailed(replica, "ImportError"))

    @precondition(lambda self: self.stopped)
    @rule(data=st.data())
    def obey(self, data: st.DataObject) -> None:
        self.exit(data.draw(st.sampled_from(sorted(self.stopped))))

    @rule(seconds=st.sampled_from([0.5, 1.0, 20.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now = min(self.now + seconds, max(self.now, self.scheduler.next_deadline()))
        self.play(Tick())

    @precondition(lambda self: self.starts and self.scheduler.next_deadline() < math.inf)
    @rule(data=st.data(), seldom=SELDOM)
    def one_dies_just_when_a_tick_is_due(self, data: st.DataObject, seldom: bool) -> None:
        if seldom:
            self.now = max(self.now, self.scheduler.next_deadline())
            self.exit(data.draw(st.sampled_from(sorted(self.starts))))

    @rule()
    def late_facts(self) -> None:
        before = self.scheduler.revision
        for event in (ReplicaReady("x"), ReplicaExited("x", "?"), LeaseReleased("x"), PoolKept("x", 1)):
            assert self.scheduler.handle(event, now=self.now) == []
        assert self.scheduler.revision == before

    def exit(self, replica: str) -> None:
        del self.starts[replica]
        self.ready.discard(replica)
        self.stopped.discard(replica)
        self.play(ReplicaExited(replica, "signal SIGKILL"))
        assert all(holder != replica for _, _, holder in self.held.values()), "a lease outlived its replica"
        assert all(at != replica for _, at, _ in self.guests.values()), "a guest outlived its replica"

    def forget_lease(self, lease: str) -> None:
        self.held.pop(lease, None)
        self.waiting.pop(lease, None)
        self.guests.pop(lease, None)
        self.inside.discard(lease)

    @invariant()
    def a_tick_at_the_deadline_moves_the_deadline(self) -> None:
        assert self.scheduler.next_deadline() > self.now

    @invariant()
    def the_snapshot_tells_what_was_commanded(self) -> None:
        pools = {pool.key: pool for pool in self.picture.pools}
        assert set(pools) == set(self.scaling)
        shown = {lease.lease for pool in pools.values() for r in pool.replicas for lease in r.leases}
        assert shown == {*self.held, *self.guests}
        assert {request.lease for pool in pools.values() for request in pool.queue} == set(self.waiting)
        assert {r.id for pool in pools.values() for r in pool.replicas} == set(self.starts)
        Snapshot.model_validate_json(self.picture.model_dump_json())

    @invariant()
    def the_timeline_tells_what_was_commanded(self) -> None:
        for pool in self.picture.pools:
            view = self.timeline.view(pool.key, None, now=self.now, epoch_offset=0)
            assert view is not None
            assert {lane.replica for lane in view.lanes if lane.ended_at is None} == {r.id for r in pool.replicas}
            assert {lane.replica for lane in view.lanes if lane.ready_at is not None} >= {
                replica.id for replica in pool.replicas if replica.ready_at is not None
            }
            going_on = [span for span in view.spans if span.ended is None]
            assert all(span.replica in {r.id for r in pool.replicas} for span in going_on if span.kind != "waiting")
            here = [lease.lease for r in pool.replicas for lease in r.leases if lease.attached]
            inside = self.inside.intersection(here)
            assert sum(span.kind == "attached" for span in going_on) == len(inside)
            assert sum(span.kind == "waiting" for span in going_on) <= pool.waiting + len(here) - len(inside)
            assert len({span.id for span in view.spans}) == len(view.spans)
            assert self.timeline.view(pool.key, view.mark, now=self.now, epoch_offset=0) == view.model_copy(
                update={"whole": False, "spans": (), "changes": ()}
            )

    @invariant()
    def nobody_waits_beside_a_free_slot(self) -> None:
        for pool in self.picture.pools:
            assert pool.scaling == self.scaling[pool.key]
            slots = 1 if pool.single_use else pool.scaling.concurrency
            for replica in pool.replicas:
                serves = replica.state in {"ready", "busy"} and not self.stalled(replica.id)
                if pool.waiting and serves and replica.generation_current:
                    assert len(replica.leases) >= slots

    @invariant()
    def nobody_waits_to_attach_beside_a_free_slot(self) -> None:
        for pool in self.picture.pools:
            for replica in pool.replicas:
                inside = [lease for lease in replica.leases if lease.lease in self.held]
                alone = [lease for lease, guest in self.guests.items() if guest[1:] == (replica.id, False)]
                if replica.state in {"ready", "busy", "attached"}:
                    assert (replica.state == "attached") == bool(alone)
                    assert all(lease in self.inside for lease, guest in self.guests.items()
                               if guest[1:] == (replica.id, True))  # fmt: skip
                    full = len(inside) >= pool.scaling.concurrency
                    assert not alone or full or self.alone_in(replica.id) is not None
                assert not self.guests_of(replica.id) or replica.stops_at is None

    def guests_of(self, replica: str) -> list[str]:
        return [lease for lease, (_, at, _) in self.guests.items() if at == replica]

    @invariant()
    def who_lacks_memory_is_told_so(self) -> None:
        told = [pool.key for pool in self.picture.pools if pool.waits_for and "memory" in pool.waits_for]
        assert bool(told) == self.scheduler.lacks_memory
        assert set(told) <= {"once"}

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        for pool in self.picture.pools:
            something_will_happen = (
                any(pool.replicas)
                or pool.waits_for
                or (pool.failure and pool.failure.retry_at and self.scheduler.next_deadline() < math.inf)
            )
            assert not pool.waiting or something_will_happen

    def teardown(self) -> None:
        # Play on: all is served, then given back. Where there is no memory, one fresh kernel runs at a time.
        for _ in range(2000):
            if not (self.waiting or self.held or self.starts or self.guests):
                break
            self.serve_one_round()
        assert not self.waiting
        assert not self.held
        assert not self.guests
        for client in CLIENTS:
            self.disconnect(client)
        for _ in range(200):
            if not self.picture.pools:
                break
            self.serve_one_round()
        assert self.picture.pools == ()
        assert all(device.replica is None for device in self.picture.devices)
        assert self.scheduler.next_deadline() == math.inf
        assert self.scaling == {}
        assert self.timeline._leases == {}

    def serve_one_round(self) -> None:
        for replica in list(self.starts):
            if replica in self.stopped:
                self.exit(replica)
            elif replica not in self.ready:
                self.ready.add(replica)
                self.play(ReplicaReady(replica))
        for lease in [*self.held, *self.guests]:
            if lease in self.held or lease in self.guests:
                self.leave(lease)
        if not self.stopped and self.scheduler.next_deadline() < math.inf:
            self.now = self.scheduler.next_deadline()
            self.play(Tick())


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
