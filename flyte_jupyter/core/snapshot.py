"""What every view shows: one immutable picture of all pools, devices and clients.

Instants are those of the scheduler's monotonic clock; the broker converts them where they leave it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from heapq import nsmallest
from itertools import islice
from typing import Literal

from .. import errors
from . import forecast
from .format import last_line
from .inventory import Device, Inventory
from .policy import MAX_FRESH_VARIABLE
from .pool import Client, Lease, Pool, Replica
from .spec import DeviceRequest, Frozen, Scaling

SHOWN_REQUESTS = 100  # of a queue; `PoolView.waiting` counts all

PoolState = Literal["failed", "busy", "ready", "starting", "waiting", "stopping", "stopped"]
ReplicaState = Literal["starting", "loading", "ready", "busy", "attached", "draining", "stopping"]


class LeaseView(Frozen):
    """A slot that somebody holds. `client` is the client's label; `task` runs in it `since` then.

    Between two calls, and after the last one until the client lets go, it is not `running`: `task` is the one before,
    and `since` when it ended. Or it is somebody who has `attached` to the replica, or still waits for it: then it is
    not `running`. A `session` keeps it between its cells; "" is the one without a name.
    """

    lease: str
    task: str
    client: str
    since: float
    running: bool = True
    attached: bool = False
    session: str | None = None

    @property
    def keeper(self) -> str:
        """The session that keeps it, for people: 'session "s" of a.ipynb'; empty if none does."""
        return "" if self.session is None else _keeper(self.session, self.client)


class RequestView(LeaseView):
    """A call that waits; position 0 is served next, as far as one can tell now.

    It is likely to start at `expected_at`, if calls and starts take as long as usual. That is None if nothing is known,
    and has passed if it takes longer.
    """

    running: bool = False
    position: int
    expected_at: float | None = None


class ReplicaView(Frozen):
    """One warm kernel. `why` says what it was started for, or why it has to go.

    It is `attached` while somebody has opened it, or waits for that, alone: it takes no calls. `leases` holds them,
    and those who share it, after the calls that run.

    `generation_current` is False for one that will be replaced: its preload has changed, or the pool is restarted.
    """

    id: str
    index: int
    name: str
    state: ReplicaState
    pid: int | None
    devices: tuple[str, ...]
    leases: tuple[LeaseView, ...]
    started_at: float
    ready_at: float | None
    idle_since: float | None
    stops_at: float | None
    generation_current: bool
    why: str

    @property
    def warm(self) -> bool:
        """Whether it has become ready, and does not go."""
        return self.state in ("ready", "busy", "attached")

    @property
    def calls(self) -> tuple[LeaseView, ...]:
        return tuple(lease for lease in self.leases if not lease.attached)

    @property
    def running(self) -> tuple[LeaseView, ...]:
        """Its leases in which a task runs."""
        return tuple(lease for lease in self.leases if lease.running)


class FailureView(Frozen):
    """Why the last start failed; `retry_at` is None once the pool has given up."""

    cause: str
    replica: str
    attempts: int
    retry_at: float | None

    def error(self, pool: str) -> errors.PoolFailed:
        """The same, for the one who waits for the pool of that name."""
        return errors.PoolFailed(pool, last_line(self.cause), self.replica, traceback=self.cause.strip())


class PoolView(Frozen):
    """One environment.

    `calls` have ended on its replicas. Each but the first of each replica found it warm: `cold_starts_avoided`.
    `cold_start_s` is how long a replica took from the order to start it until it was ready, on average.
    """

    key: str
    name: str
    state: PoolState
    scaling: Scaling
    devices: DeviceRequest
    single_use: bool
    retiring: bool
    declared_by: tuple[str, ...]
    replicas: tuple[ReplicaView, ...]
    queue: tuple[RequestView, ...]
    waiting: int
    idle_stops_at: float | None
    kept_until: float | None
    failure: FailureView | None
    notes: tuple[str, ...]
    waits_for: str | None
    starts: int
    failures: int
    calls: int
    cold_starts_avoided: int
    cold_start_s: float | None

    def end_of_session(self, name: str) -> str:
        """What ends a session of that name in this pool, if its notebook runs it."""
        return _end_of_session(name, self.name)

    def replica_at(self, index: int) -> ReplicaView:
        """The replica of that number, as 0 of "gpu[0]".

        Raises:
            NoSuchReplica: There is none, or it is stopping.
        """
        there = [each for each in self.replicas if each.state != "stopping"]
        for replica in there:
            if replica.index == index:
                return replica
        raise errors.NoSuchReplica(f"{self.name}[{index}]", existing=[each.index for each in there])


class DeviceView(Frozen):
    """A GPU and the replica that holds it, by id and by name."""

    uuid: str
    index: int
    model: str
    partition: str | None
    memory_bytes: int
    replica: str | None
    replica_name: str | None


class ClientView(Frozen):
    client: str
    label: str
    kind: str
    pid: int
    leases: int
    waiting: int


class Snapshot(Frozen):
    """`revision` goes up whenever anything here changes; `now` is the instant of the last event."""

    revision: int
    now: float
    pools: tuple[PoolView, ...]
    devices: tuple[DeviceView, ...]
    device_problem: str | None
    clients: tuple[ClientView, ...]

    def pool(self, key: str) -> PoolView | None:
        """The pool with that key; None if the broker knows none."""
        return next((view for view in self.pools if view.key == key), None)

    def replica(self, id_: str) -> ReplicaView | None:
        """The replica with that id; None if it is gone."""
        return next((replica for view in self.pools for replica in view.replicas if replica.id == id_), None)


def describe(
    *,
    pools: Mapping[str, Pool],
    clients: Mapping[str, Client],
    replicas: Mapping[str, Replica],
    inventory: Inventory,
    hungry: Mapping[str, Pool],
    pressed: Mapping[str, Pool],
    revision: int,
    now: float,
) -> Snapshot:
    """The state as a picture; a call waits for devices in `hungry` pools, for memory in `pressed` ones."""
    return Snapshot(
        revision=revision,
        now=now,
        pools=tuple(
            _pool_view(
                pool,
                clients,
                (*_notes(pool, inventory), *_session_notes(pool, clients), *_attached_note(pool, clients)),
                holders_text(inventory, pool.devices, replicas)
                if pool.key in hungry
                else _fresh_text(pool, pool.key in pressed),
                now,
            )
            for pool in pools.values()
        ),
        devices=tuple(_device_view(device, inventory, replicas) for device in inventory.devices),
        device_problem=inventory.problem,
        clients=tuple(
            ClientView(
                client=client.id,
                label=client.label,
                kind=client.kind,
                pid=client.pid,
                leases=(held := sum(lease.replica is not None for lease in client.leases.values())),
                waiting=len(client.leases) - held,
            )
            for client in clients.values()
        ),
    )


def holders_text(inventory: Inventory, request: DeviceRequest, replicas: Mapping[str, Replica]) -> str:
    """Who holds the devices that such a replica could use, for people: "GPU 0: infer[0]"."""
    held = [
        f"{'GPU' if device.partition is None else device.partition} {device.index}: {replicas[holder].name}"
        for device in inventory.matching(request)
        if (holder := inventory.holders.get(device.uuid)) is not None
    ]
    return ", ".join(held)


def _fresh_text(pool: Pool, lacks_memory: bool) -> str | None:
    """What a call waits for that will have a kernel of its own, if not only for that to start."""
    if lacks_memory:
        return "free memory for one more fresh kernel"
    most = pool.scaling.max_replicas
    if pool.single_use and pool.waiting > pool.coming and pool.full and pool.room >= most:
        return f"one of {pool.live} fresh kernels to end (limit {most}: {MAX_FRESH_VARIABLE})"
    return None


def _pool_view(
    pool: Pool, clients: Mapping[str, Client], notes: tuple[str, ...], waits_for: str | None, now: float
) -> PoolView:
    failure = pool.failure
    return PoolView(
        key=pool.key,
        name=pool.name,
        state=_pool_state(pool),
        scaling=pool.scaling,
        devices=pool.devices,
        single_use=pool.single_use,
        retiring=pool.retiring,
        declared_by=tuple(clients[client].label for client in pool.declared_by),
        replicas=_replica_views(pool, clients),
        queue=_queue_view(pool, clients),
        waiting=pool.waiting,
        idle_stops_at=_instant(pool.idle_stops_at),
        kept_until=pool.kept_until if pool.kept_until > now else None,
        failure=None
        if failure is None
        else FailureView(
            cause=failure.cause,
            replica=failure.replica,
            attempts=failure.attempts,
            retry_at=None if pool.failed else pool.retry_at,
        ),
        notes=notes,
        waits_for=waits_for,
        starts=pool.starts,
        failures=pool.failures_seen,
        calls=pool.calls,
        cold_starts_avoided=pool.cold_starts_avoided,
        cold_start_s=pool.cold_start_s,
    )


def _pool_state(pool: Pool) -> PoolState:
    if pool.failed:
        return "failed"
    if any(replica.busy for replica in pool.replicas.values()):
        return "busy"
    if pool.count["ready"]:
        return "ready"
    if pool.coming:
        return "starting"
    if pool.waiting:
        return "waiting"
    return "stopping" if pool.replicas else "stopped"


def _replica_views(pool: Pool, clients: Mapping[str, Client]) -> tuple[ReplicaView, ...]:
    stops_at = dict.fromkeys(pool.idle.in_order(), pool.idle_stops_at)
    kept = -math.inf if pool.retiring else pool.kept_until
    for replica_id in islice(stops_at, max(0, pool.count["ready"] - pool.floor)):
        alone = max(pool.replicas[replica_id].idle_since + pool.scaling.scaledown_ttl, kept)
        stops_at[replica_id] = min(stops_at[replica_id], alone)
    return tuple(
        ReplicaView(
            id=replica.id,
            index=replica.index,
            name=replica.name,
            state=_replica_state(replica),
            pid=replica.pid,
            devices=replica.devices,
            leases=tuple(
                LeaseView(
                    lease=lease.id,
                    task=lease.task,
                    client=_label(lease, clients),
                    since=lease.since,
                    running=lease.running,
                    attached=lease.opens is not None,
                    session=lease.session,
                )
                for lease in (*replica.leases.values(), *replica.guests.values())
            ),
            started_at=replica.started_at,
            ready_at=replica.ready_at,
            idle_since=replica.idle_since if replica.id in stops_at else None,
            stops_at=_instant(stops_at.get(replica.id, math.inf)),
            generation_current=replica.current,
            why=replica.why,
        )
        for replica in sorted(pool.replicas.values(), key=lambda replica: replica.index)
    )


def _replica_state(replica: Replica) -> ReplicaState:
    if replica.state != "ready":
        return replica.state
    if replica.attached:
        return "attached"
    return "busy" if replica.busy else "ready"


def _queue_view(pool: Pool, clients: Mapping[str, Client]) -> tuple[RequestView, ...]:
    # The client that holds the fewest leases is served first, and holds one more then.
    turns = (
        (pool.queue.is_late(share), share.held + place, share.turn, lease.order, lease)
        for share in pool.queue.shares()
        if share.waiting
        for place, lease in enumerate(islice(share.waiting.values(), SHOWN_REQUESTS))
    )
    first = [turn[4] for turn in nsmallest(SHOWN_REQUESTS, turns, key=lambda turn: turn[:4])]
    return tuple(
        RequestView(
            lease=lease.id,
            task=lease.task,
            client=_label(lease, clients),
            since=lease.since,
            position=position,
            expected_at=expected_at,
        )
        for position, (lease, expected_at) in enumerate(zip(first, forecast.starts(pool, first), strict=True))
    )


def _device_view(device: Device, inventory: Inventory, replicas: Mapping[str, Replica]) -> DeviceView:
    holder = inventory.holders.get(device.uuid)
    return DeviceView(
        uuid=device.uuid,
        index=device.index,
        model=device.model,
        partition=device.partition,
        memory_bytes=device.memory_bytes,
        replica=holder,
        replica_name=None if holder is None else replicas[holder].name,
    )


def _notes(pool: Pool, inventory: Inventory) -> tuple[str, ...]:
    request = pool.devices
    if not request.count:
        return ()
    matching = inventory.matching(request)
    notes = []
    if matching and inventory.falls_back(request):
        models = ", ".join(dict.fromkeys(device.model for device in matching))
        notes.append(f"asked for {request.model}, this machine has {models}")
    if not inventory.devices:
        notes.append(f"asked for {request.count} GPUs; {inventory.problem or 'no GPU was found'}")
    elif pool.room < pool.scaling.max_replicas:
        notes.append(
            f"at most {pool.room:g} of {pool.scaling.max_replicas} replicas: "
            f"each needs {request.count} of this machine's {len(matching)} matching GPUs"
        )
    return tuple(notes)


def _session_notes(pool: Pool, clients: Mapping[str, Client]) -> Iterator[str]:
    """Which slots are not free although nothing runs in them, and how to free them."""
    for replica in pool.replicas.values():
        for lease in replica.leases.values():
            if lease.session is not None:
                keeper, end = _keeper(lease.session, _label(lease, clients)), _end_of_session(lease.session, pool.name)
                yield f"{replica.name} is held by {keeper}: `{end}` there frees it"


def _keeper(session: str, client: str) -> str:
    return f'session "{session}" of {client}' if session else f"the session of {client}"


def _end_of_session(name: str, pool: str) -> str:
    return f"%flyte_cancel --session {shlex.quote(name)} --pool {shlex.quote(pool)}"


def _attached_note(pool: Pool, clients: Mapping[str, Client]) -> Iterator[str]:
    """What calls wait for, if people have all that could serve them."""
    serving = [replica for replica in pool.replicas.values() if replica.state != "stopping"]
    occupied = all(replica.attached or replica.stalled for replica in serving)
    if pool.waiting and serving and pool.live >= pool.cap and occupied:
        until = []
        if alone := [each for each in serving if each.attached]:
            holders = [f"{each.name} ({_label(next(iter(each.guests.values())), clients)})" for each in alone]
            until.append(f"somebody leaves {', '.join(holders)}")
        for each in serving:
            if not each.attached:
                caller = next(guest for guest in each.guests.values() if guest.children)
                until.append(f"the cell of {_label(caller, clients)} in {each.name} goes on")
        yield f"calls wait until {' or '.join(until)}, or for a higher maximum"


def _label(lease: Lease, clients: Mapping[str, Client]) -> str:
    client = clients.get(lease.client)
    return "a client that is gone" if client is None else client.label


def _instant(instant: float) -> float | None:
    return instant if math.isfinite(instant) else None
