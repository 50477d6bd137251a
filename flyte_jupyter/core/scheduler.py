"""Who gets which slot, and which replicas exist: the one place where that is decided.

The engine reports each fact with `handle` and carries out the commands that come back; their outcomes
return as events. An event's handler only records it (and kills what has failed or been revoked) and marks the
pools it touched; `_settle` then decides, for those pools alone, so that an event costs the same beside ten
requests or ten thousand.

A replica is `starting`, `loading` (the process is up, the preload runs) and `ready`. A ready one that must go
but still has leases is `draining`; one told to end is `stopping`. Its devices are free
only once it has exited.

A person may attach to a replica. Alone, they keep out all calls and each other; the replica waits for them
when it has to go, unless it is forced. Who shares it keeps it from going for being idle, and stands in nobody's way,
but while a cell of theirs stands still until a call of its own has been served: nothing else can run there then.

A fresh kernel is a replica of a `single_use` pool. It starts where there is memory, and serves one call. The calls of
tasks come first, and a task that waits for them does not count toward the maximum: so a recursion comes to its end.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from heapq import nsmallest

from .commands import (
    POOL_STOPPED,
    AskAfter,
    Command,
    ForgetPool,
    Grant,
    Interrupt,
    Lose,
    Recall,
    RefusalReason,
    Refuse,
    StartReplica,
    StopReplica,
)
from .events import (
    AttachRequested,
    CallsReported,
    ClientConnected,
    ClientGone,
    DevicesFound,
    Event,
    LeaseCancelled,
    LeaseEnded,
    LeaseKept,
    LeaseReleased,
    LeaseRequested,
    LeaseRevoked,
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
from .inventory import Inventory
from .pool import Client, Lease, Pool, Replica
from .ranking import Ranking
from .snapshot import Snapshot, describe, holders_text
from .starvation import Starvation

ABANDONED_S = 6.0  # a call whose client is gone is being cancelled; then its replica is killed
STORY_LENGTH = 1000
FRESH_BYTES = 256 * 2**20  # free memory without which no fresh kernel starts, for each that starts just now
FRESH_STARTS = 8  # processes that a pool starts at a time: more would all be ready late, and none early


class Scheduler:
    """The state machine of the broker; it does no I/O and reads no clock.

    All instants are the `now` of `handle`, in seconds of a clock that never goes back. Until the first
    `DevicesFound` the machine counts as one without GPUs.
    """

    def __init__(self) -> None:
        self.revision = 0
        self.story: deque[tuple[float, Event, tuple[Command, ...]]] = deque(maxlen=STORY_LENGTH)
        self._now = 0.0
        self._pools: dict[str, Pool] = {}
        self._clients: dict[str, Client] = {}
        self._leases: dict[str, Lease] = {}
        self._replicas: dict[str, Replica] = {}
        self._inventory = Inventory()
        self._started = 0
        self._requested = 0
        self._commands: list[Command] = []
        self._dirty: dict[str, Pool] = {}
        self._deadlines = Ranking()
        self._abandoned = Ranking()  # leases of clients that are gone, until their call has stopped
        # Pools that lack devices, those that lacked them first in front: for a waiting request, for the rest.
        self._hungry: dict[str, Pool] = {}
        self._wanting: dict[str, Pool] = {}
        self._memory = MemoryMeasured(sys.maxsize, sys.maxsize)
        self._unseen: dict[str, Replica] = {}  # fresh kernels whose memory was not in use when it was measured
        self._pressed: dict[str, Pool] = {}  # pools whose calls wait for memory
        self._starvation = Starvation(self._inventory, self._replicas, self._pools, self._hungry, self._pressed)

    def handle(self, event: Event, *, now: float) -> list[Command]:
        """Record one event, then return what must be done; `now` is in seconds, monotonic."""
        self._now = now
        commands = self._commands = []
        while self._deadlines.first_rank() <= now:
            self._touch(self._pools[self._deadlines.pop()])
        self._record(event, now)
        while self._abandoned.first_rank() <= now:  # the event may be the end of one
            stuck = self._leases[self._abandoned.pop()]
            assert stuck.replica is not None
            self._stop(stuck.replica, f"{stuck.task} does not stop, and its client is gone", force=True)
        self._settle(now)
        # Those come several a second, for hours: they would push out the rest.
        if not isinstance(event, CallsReported | MemoryMeasured):
            self.story.append((now, event, tuple(commands)))
        return commands

    def next_deadline(self) -> float:
        """When a `Tick` would change something at the latest; infinity when nothing is due."""
        return min(self._deadlines.first_rank(), self._abandoned.first_rank(), self._starvation.next_deadline())

    @property
    def lacks_memory(self) -> bool:
        """Whether a call waits for memory: it has to be measured again from time to time."""
        return bool(self._pressed)

    def name_of(self, replica: str) -> str:
        """What people call a replica: "gpu[0]"."""
        return self._replicas[replica].name

    def index_of(self, replica: str) -> int:
        """Its number in its pool."""
        return self._replicas[replica].index

    def snapshot(self) -> Snapshot:
        """What every view shows, as of the last event."""
        return describe(
            pools=self._pools,
            clients=self._clients,
            replicas=self._replicas,
            inventory=self._inventory,
            hungry=self._hungry,
            pressed=self._pressed,
            revision=self.revision,
            now=self._now,
        )

    # Facts

    def _record(self, event: Event, now: float) -> None:
        match event:
            case LeaseRequested():
                self._request(event, now)
            case AttachRequested():
                self._invite(event, now)
            case LeaseKept(lease, session):
                if kept := self._leases.get(lease):
                    kept.session = session
                    self.revision += 1
            case LeaseReleased(lease):
                if held := self._leases.get(lease):
                    if held.replica and held.opens is None:
                        held.pool.streak = 0
                    self._end(held, now)
            case CallsReported(replica):
                if told := self._replicas.get(replica):
                    self._note_calls(told, event)
            case ReplicaReady(replica):
                self._become_ready(replica, now)
            case ReplicaLoading(replica, pid):
                self._become_loading(replica, pid)
            case ReplicaFailed(replica, cause):
                failed = self._replicas.get(replica)
                if failed and failed.state != "stopping":
                    failed.pool.count_failure(failed, cause, now)
                    self._stop(failed, "it failed to start", force=True)
            case ReplicaExited(replica, cause):
                if gone := self._replicas.get(replica):
                    self._exit(gone, cause, now)
            case LeaseEnded(lease):
                ended = self._leases.get(lease)
                if ended and ended.abandoned:
                    self._end(ended, now)
                elif ended:
                    # Before its client is known to be gone: the two come over different connections. Or its release
                    # is on the way. Not ended here: its slot must not go to a request of the same dying client.
                    ended.over = True
            case LeaseRevoked(lease, why):
                revoked = self._leases.get(lease)
                if revoked and revoked.replica:
                    revoked.lost_why = why
                    self._stop(revoked.replica, why, force=True)
            case LeaseCancelled(lease):
                unwanted = self._leases.get(lease)
                if unwanted and unwanted.replica:
                    self._commands.append(Interrupt(unwanted.replica.id, lease))
                elif unwanted:
                    self._refuse(unwanted, "cancelled", {"task": unwanted.task}, now)
            case ReplicaInterrupted(replica):
                if replica in self._replicas:
                    self._commands.append(Interrupt(replica))
            case PoolInterrupted(key):
                if busy := self._pools.get(key):
                    self._commands += [Interrupt(each.id) for each in busy.replicas.values() if each.leases]
            case ReplicaRestarted(replica, force):
                if worn := self._replicas.get(replica):
                    self._restart(worn, force=force)
            case ClientConnected(client, label, kind, pid):
                self._clients.setdefault(client, Client(client, label, kind, pid))
                self.revision += 1
            case ClientGone(client):
                if left := self._clients.pop(client, None):
                    self._leave(left, now)
            case PoolDeclared():
                self._declare(event)
            case DevicesFound(devices, problem):
                self._inventory.update(devices, problem)
                self.revision += 1
                for pool in self._pools.values():
                    if pool.devices.count:
                        pool.room = self._inventory.room(pool.devices)
                        self._touch(pool)
            case MemoryMeasured():
                self._memory = event
                self._unseen = {key: each for key, each in self._unseen.items() if each.ready_at is None}
                for pool in self._pressed.values():
                    self._touch(pool)
            case PoolWarmed() | PoolScaled() | PoolKept() | PoolStopped() | PoolRestarted():
                if known := self._pools.get(event.pool):
                    self._order(known, event, now)
            case Tick():
                pass

    def _request(self, event: LeaseRequested, now: float) -> None:
        client = self._clients.get(event.client)
        if client is None or event.lease in self._leases:
            return
        pool = self._pools.get(event.pool)
        if pool is None:
            names = ", ".join(sorted({pool.name for pool in self._pools.values()}))
            self._commands.append(Refuse(event.client, event.lease, "no-such-pool", {"pools": names}))
            return
        self._requested += 1
        lease = Lease(event.lease, event.client, pool, event.task, now, self._requested, session=event.session)
        self._leases[lease.id] = client.leases[lease.id] = lease
        parent = self._leases.get(event.parent) if event.parent else self._holder_in(client)
        if parent and parent.replica:
            lease.parent = parent
            self._starvation.watch(pool)
            if parent.opens is not None or parent.pool.single_use:
                self._touch(parent.pool)  # its cell stands still from now on, or it makes room for others
        pool.enqueue(lease)
        pool.active = True
        pool.used_at = now
        self._touch(pool)

    def _holder_in(self, client: Client) -> Lease | None:
        """Whose cell calls, if the client is a replica that somebody has alone."""
        if client.kind != "replica":
            return None
        return next((replica.holder for replica in self._replicas.values() if replica.pid == client.pid), None)

    def _invite(self, event: AttachRequested, now: float) -> None:
        client, replica = self._clients.get(event.client), self._replicas.get(event.replica)
        if client is None or event.lease in self._leases:
            return
        if replica is None or replica.state in {"draining", "stopping"} or replica.pool.single_use:
            name = event.replica if replica is None else replica.name
            self._commands.append(Refuse(event.client, event.lease, "no-such-replica", {"replica": name}))
            return
        pool = replica.pool
        self._requested += 1
        guest = Lease(
            event.lease,
            client.id,
            pool,
            event.task,
            now,
            self._requested,
            running=False,
            opens=replica,
            shared=event.shared,
        )
        self._leases[guest.id] = client.leases[guest.id] = guest
        pool.invite(guest, replica)
        pool.used_at = now
        if not guest.shared:
            pool.spare_leases(replica)
            for lease in replica.leases.values():
                self._recall(lease)
        self._touch(pool)

    def _end(self, lease: Lease, now: float) -> None:
        """A lease is over, at whatever stage."""
        pool, replica = lease.pool, lease.replica
        del self._leases[lease.id]
        self._abandoned.drop(lease.id)
        pool.unlink(lease)
        if client := self._clients.get(lease.client):
            client.leases.pop(lease.id, None)
        if lease.opens is not None:
            lease.opens.idle_since = now
            pool.part(lease, lease.opens)
        elif replica is None:
            pool.unqueue(lease)
        else:
            replica.idle_since = now
            pool.free_lease(lease, replica)
        if replica is not None and replica.state == "draining" and not replica.leases and not replica.attached:
            pool.leaving.append(replica)
        if lease.parent is not None and lease.parent.opens is not None and lease.parent.replica is not None:
            self._touch(lease.parent.pool)  # the cell that waited for it stands still no longer
        pool.used_at = now
        self._touch(pool)

    def _become_loading(self, replica_id: str, pid: int) -> None:
        replica = self._replicas.get(replica_id)
        if replica is None:
            return
        replica.pid = pid
        if replica.state == "starting":
            replica.pool.move(replica, "loading")
        self._touch(replica.pool)

    def _become_ready(self, replica_id: str, now: float) -> None:
        replica = self._replicas.get(replica_id)
        if replica is None or replica.state not in {"starting", "loading"}:
            return
        replica.pool.note_ready(replica, now)
        replica.pool.move(replica, "ready")
        replica.pool.used_at = now
        self._touch(replica.pool)

    def _note_calls(self, replica: Replica, event: CallsReported) -> None:
        # Nothing to decide: who may use a slot depends on leases alone.
        replica.pool.count_calls(replica, event.ended)
        for call in event.calls:
            if call.ended is not None and call.outcome != "cancelled":
                replica.pool.usual.note(call.task, (call.ended - call.began) / call.calls)
        for use in event.uses:
            lease = replica.leases.get(use.lease)
            if lease:
                lease.task, lease.since, lease.running = use.task, use.since, use.running
        self.revision += 1

    def _exit(self, replica: Replica, cause: str, now: float) -> None:
        pool = replica.pool
        # A death under a task is the task's doing: the pool itself works, and is not slowed down.
        if not replica.leases and not replica.guests and replica.state not in {"draining", "stopping"}:
            pool.count_failure(replica, cause, now)
        del self._replicas[replica.id]
        self._unseen.pop(replica.id, None)
        pool.remove(replica)
        self._turn_away(replica, now)
        for lease in [*replica.leases.values(), *replica.guests.values()]:
            self._commands.append(Lose(lease.client, lease.id, lease.lost_why or cause))
            self._end(lease, now)
        if replica.devices:
            self._inventory.release(replica.devices)
            for other in (*self._hungry.values(), *self._wanting.values()):
                self._touch(other)
        if pool.single_use:
            for other in self._pressed.values():
                self._touch(other)
        self._touch(pool)

    def _leave(self, client: Client, now: float) -> None:
        self.revision += 1
        for lease in list(client.leases.values()):
            # What a guest among others leaves running is the replica's to stop: it must not take the others along.
            if lease.replica is None or lease.over or lease.shared:
                self._end(lease, now)
            else:
                lease.abandoned = True
                self._abandoned.put(lease.id, now + ABANDONED_S)
                # It may never have got as far as connecting to the replica, which then has nothing to say by itself.
                self._commands.append(AskAfter(lease.replica.id, lease.id))
        for key in client.declared:
            pool = self._pools[key]
            del pool.declared_by[client.id]
            self._touch(pool)

    def _declare(self, event: PoolDeclared) -> None:
        client = self._clients.get(event.client)
        if client is None:
            return
        pool = self._pools.get(event.pool)
        if pool is None:
            pool = self._pools[event.pool] = Pool(
                event.pool,
                event.name,
                event.scaling,
                event.devices,
                event.generation,
                event.single_use,
                event.memory_bytes or 0,
            )
            if pool.devices.count:
                pool.room = self._inventory.room(pool.devices)
        if event.scaling != pool.declared:  # said again, it must not undo what somebody set by hand since
            pool.declared = event.scaling
            pool.rescale(event.scaling)
        if event.generation != pool.generation:
            pool.set_generation(event.generation)
            pool.forgive()
        pool.retiring = False
        pool.declared_by[client.id] = None
        client.declared[pool.key] = None
        if not pool.single_use:
            older = client.latest.get(pool.name)
            client.latest[pool.name] = pool.key
            if older is not None and older != pool.key:
                self._supersede(older, client)
        self._touch(pool)

    def _supersede(self, key: str, client: Client) -> None:
        del client.declared[key]
        older = self._pools[key]
        del older.declared_by[client.id]
        older.retiring = not older.declared_by
        self._touch(older)

    def _restart(self, replica: Replica, *, force: bool) -> None:
        pool = replica.pool
        pool.forgive()
        self._touch(pool)
        if replica.state not in {"draining", "stopping"} and not pool.single_use:
            pool.owed += 1
        why = "it was restarted by hand"
        if force:
            self._kill(replica, why)
        else:
            self._drain(replica, why)

    def _order(
        self, pool: Pool, event: PoolWarmed | PoolScaled | PoolKept | PoolStopped | PoolRestarted, now: float
    ) -> None:
        """What somebody asked for by hand."""
        match event:
            case PoolWarmed(_, replicas):
                pool.active = True
                pool.used_at = now
                pool.warm_goal = max(pool.warm_goal, replicas)
                pool.forgive()
            case PoolScaled(_, scaling):
                pool.rescale(scaling)
            case PoolKept(_, seconds):
                pool.kept_until = now + seconds
            case PoolStopped(_, force):
                pool.active = False
                pool.killed = force
                pool.stop_why = POOL_STOPPED
            case PoolRestarted():
                pool.forgive()
                pool.outdate("the pool is being restarted")
        self._touch(pool)

    def _touch(self, pool: Pool) -> None:
        self._dirty[pool.key] = pool
        self.revision += 1

    # Decisions

    def _settle(self, now: float) -> None:
        """Decide for every touched pool until nothing is left to decide.

        The order of the steps is the policy: work that waits takes free slots first, then devices; only
        what is left then may keep a minimum warm.
        """
        while self._dirty or self._resolve_starvation(now):
            pools = list(self._dirty.values())
            if len(pools) > 1 and self._hungry:
                age = {key: place for place, key in enumerate(self._hungry)}
                pools.sort(key=lambda pool: age.get(pool.key, len(age)))
            self._dirty = {}
            for step in (self._serve, self._retire, self._grow, self._keep_warm, self._close):
                for pool in pools:
                    step(pool, now)

    def _resolve_starvation(self, now: float) -> bool:
        """Refuse one call that would wait for ever; True if one was."""
        victim = self._starvation.victim(now)
        if victim is not None:
            self._refuse(victim, "starvation", self._starvation.explain(victim), now)
        return victim is not None

    def _serve(self, pool: Pool, now: float) -> None:
        for wanted in list(pool.wanted.values()):
            self._admit(wanted, now)
        if pool.waiting:
            refusal = self._hopeless(pool)
            if refusal is not None:
                for lease in list(pool.queue):
                    self._refuse(lease, *refusal, now)
            while pool.waiting and (replica := pool.free_slot()):
                self._grant(pool, replica, now)
            while found := pool.queue.unfair_lease():
                lease, share = found
                pool.queue.claim(lease, share)
                self._recall(lease)
        pool.shaken = False

    def _admit(self, replica: Replica, now: float) -> None:
        """Let in who shares it at once, and the first of those who want it alone as soon as a slot is free."""
        for guest in [guest for guest in replica.guests.values() if guest.replica is None]:
            free = guest.shared or (replica.holder is None and len(replica.leases) < replica.pool.slots)
            if free and replica.state == "ready":
                replica.pool.admit(guest, replica)
                guest.since, guest.running = now, True
                self._commands.append(Grant(guest.client, guest.id, replica.id))

    def _turn_away(self, replica: Replica, now: float) -> None:
        """Nobody will be let in any more."""
        for guest in list(replica.guests.values()):
            if guest.replica is None:
                detail = {"pool": replica.pool.name, "replica": replica.name}
                self._commands.append(Refuse(guest.client, guest.id, "no-such-replica", detail))
                self._end(guest, now)

    def _hopeless(self, pool: Pool) -> tuple[RefusalReason, dict[str, str]] | None:
        """Why those who wait now must not go on waiting, if so."""
        if not pool.active:
            return "pool-stopped", {}
        failure = pool.failure
        if failure and (pool.failed or pool.shaken) and not pool.count["ready"]:
            detail = {"cause": failure.cause, "replica": failure.replica, "attempts": str(failure.attempts)}
            return "pool-failed", detail | {"state": failure.state}
        if pool.room >= 1 or pool.live:
            return None
        wanted = str(pool.devices.count)
        if not self._inventory.devices:
            return "no-gpu", {"problem": self._inventory.problem or "no GPU was found", "wanted": wanted}
        total = str(len(self._inventory.matching(pool.devices)))
        held = holders_text(self._inventory, pool.devices, self._replicas)
        return "no-room", {"wanted": wanted, "total": total, "held": held}

    def _refuse(self, lease: Lease, reason: RefusalReason, detail: dict[str, str], now: float) -> None:
        self._commands.append(Refuse(lease.client, lease.id, reason, {"pool": lease.pool.name, **detail}))
        self._end(lease, now)

    def _grant(self, pool: Pool, replica: Replica, now: float) -> None:
        lease = pool.queue.first()
        lease.since = now
        pool.unqueue(lease)
        pool.hold(lease, replica)
        self._commands.append(Grant(lease.client, lease.id, replica.id, pool.single_use))
        if pool.single_use:
            self._drain(replica, "it serves one call only")

    def _retire(self, pool: Pool, now: float) -> None:
        while pool.leaving:
            replica = pool.leaving.pop()
            if replica.state != "stopping":
                self._stop(replica, replica.why)
        if pool.killed:
            pool.killed = False
            for killed in list(pool.replicas.values()):
                self._kill(killed, pool.stop_why)
        if now >= pool.idle_stops_at:
            pool.active = False
            ttl = pool.scaling.idle_ttl
            pool.stop_why = "another environment took its name" if pool.retiring else f"nothing ran for {ttl:g} s"
        if not pool.active:
            pool.warm_goal = pool.owed = 0
            if pool.coming or pool.count["ready"]:
                for replica in list(pool.replicas.values()):
                    self._drain(replica, pool.stop_why)
            return
        if pool.renewing and pool.renewing.state == "ready":
            pool.renewing = None
            self._drain_stale(pool)
        surplus = pool.coming + pool.count["ready"] - pool.scaling.max_replicas - bool(pool.renewing)
        if surplus > 0:
            self._drain_surplus(pool, surplus)
        while now >= pool.scaledown_at:
            self._stop_idle(pool, f"idle for {pool.scaling.scaledown_ttl:g} s")

    def _drain_stale(self, pool: Pool) -> None:
        stale = [r for r in pool.replicas.values() if r.state == "ready" and not r.current]
        if stale:
            self._drain(min(stale, key=lambda r: (r.attached, len(r.leases), r.index)), pool.renewal)

    def _drain_surplus(self, pool: Pool, surplus: int) -> None:
        # Of those without work, one that is still starting has less to lose than a warm one.
        staying = [r for r in pool.replicas.values() if r.state in {"starting", "loading", "ready"}]
        order = nsmallest(
            surplus,
            staying,
            key=lambda r: (r.attached, len(r.leases), bool(r.guests), r.state == "ready", r.current, -r.index),
        )
        for replica in order:
            self._drain(replica, f"the maximum is now {pool.scaling.max_replicas}")

    def _stop_idle(self, pool: Pool, why: str) -> None:
        first = pool.idle.first()
        assert first is not None
        self._stop(pool.replicas[first], why)

    def _grow(self, pool: Pool, now: float) -> None:
        lacking = pressed = False
        # While a preload is being renewed, replicas come one at a time: see `_keep_warm`.
        if pool.waiting and pool.active and not pool.failed and not pool.stale and now >= pool.retry_at:
            while pool.waiting > pool.coming * pool.slots and not pool.full and not lacking:
                if pool.single_use:
                    pressed = not self._has_memory(pool)
                    if pressed or pool.count["starting"] >= FRESH_STARTS:
                        break
                lacking = not self._add(pool, "a call waits", now)
        if pressed:
            self._pressed[pool.key] = pool
        else:
            self._pressed.pop(pool.key, None)
        if lacking:
            self._hungry.setdefault(pool.key, pool)
            self._make_room(pool, now)
        elif self._hungry.pop(pool.key, None):
            for other in self._wanting.values():
                self._touch(other)

    def _has_memory(self, pool: Pool) -> bool:
        """Whether a fresh kernel more may start: memory is free, and not all of it is promised to those that run."""
        fresh = [other for other in self._pools.values() if other.single_use]
        if not any(other.live for other in fresh):
            return True  # nothing would come of waiting
        total = self._memory.total
        promised = sum(other.memory_bytes * other.working for other in fresh if other.memory_bytes)
        free = self._memory.free - FRESH_BYTES * len(self._unseen)
        # One alone may ask for more than there is.
        return free >= FRESH_BYTES and min(promised, total) + min(pool.memory_bytes, total) <= total

    def _make_room(self, pool: Pool, now: float) -> None:
        """Stop idle replicas of other pools early if that is enough for one replica of this one."""
        lacking = pool.devices.count
        spare: dict[str, int] = {}
        useful: dict[str, int] = {}  # idle replicas, and how many of their devices would serve
        for device in self._inventory.matching(pool.devices):
            holder = self._replicas.get(self._inventory.holders.get(device.uuid, ""))
            if holder is None or holder.state == "stopping":
                lacking -= 1  # free, or about to be
                continue
            other = holder.pool
            spare.setdefault(other.key, other.spare if now >= other.kept_until else 0)
            unused = holder.state == "ready" and not holder.leases and not holder.guests
            if unused and (holder.id in useful or spare[other.key] > 0):
                spare[other.key] -= holder.id not in useful
                useful[holder.id] = useful.get(holder.id, 0) + 1
        if not 0 < lacking <= sum(useful.values()):
            return
        for replica_id in sorted(useful, key=lambda id: self._replicas[id].idle_since):
            if lacking > 0:
                lacking -= useful[replica_id]
                self._stop(self._replicas[replica_id], f"a call to {pool.name} needs its GPU")

    def _keep_warm(self, pool: Pool, now: float) -> None:
        lacking = False
        if pool.active and not pool.failed and now >= pool.retry_at:
            if pool.stale:
                lacking = self._renew(pool, now)
            present = pool.coming + pool.count["ready"]
            goal = max(pool.floor, min(max(pool.warm_goal, present + pool.owed), pool.scaling.max_replicas))
            while pool.coming + pool.count["ready"] < goal and pool.live < pool.cap and not (lacking or pool.stale):
                lacking = self._contested(pool) or not self._add(pool, "kept warm", now)
            if not pool.stale and pool.coming + pool.count["ready"] >= pool.scaling.max_replicas:
                pool.owed = 0
            # A wish to be warm is heard once; what idles later goes like any other idle replica.
            pool.warm_goal = 0
        if lacking:
            self._wanting[pool.key] = pool
        else:
            self._wanting.pop(pool.key, None)

    def _renew(self, pool: Pool, now: float) -> bool:
        """Replace one replica of an older generation; True if that fails for want of devices."""
        if pool.coming or pool.live > pool.scaling.max_replicas:
            return False
        if self._contested(pool):
            return True
        pool.renewing = self._start(pool, pool.renewal, now)
        if pool.renewing is None and not pool.count["draining"] and not pool.count["stopping"]:
            pool.owed += 1
            self._drain_stale(pool)
        return pool.renewing is None

    def _contested(self, pool: Pool) -> bool:
        """Whether another pool's waiting request lacks a device that this one could take."""
        if not pool.devices.count:
            return False
        mine = set(self._inventory.matching(pool.devices))
        return any(
            not mine.isdisjoint(self._inventory.matching(other.devices))
            for other in self._hungry.values()
            if other is not pool
        )

    def _close(self, pool: Pool, now: float) -> None:
        """Note when the pool is due next, and whether it can be forgotten."""
        if not (pool.active or pool.replicas or pool.waiting or pool.declared_by):
            del self._pools[pool.key]
            self._dirty.pop(pool.key, None)
            self._deadlines.drop(pool.key)
            self._commands.append(ForgetPool(pool.key))
            return
        due = pool.kept_until if now < pool.kept_until else math.inf
        if pool.active:
            due = min(due, pool.idle_stops_at, pool.scaledown_at)
            short = pool.waiting or pool.stale or pool.owed or pool.coming + pool.count["ready"] < pool.floor
            if short and not pool.failed and now < pool.retry_at:
                due = min(due, pool.retry_at)
        if pool.devices.count and now >= pool.kept_until and pool.spare and pool.key not in self._hungry:
            for other in self._hungry.values():
                self._touch(other)
        if due == math.inf:
            self._deadlines.drop(pool.key)
        else:
            self._deadlines.put(pool.key, due)

    def _add(self, pool: Pool, why: str, now: float) -> bool:
        """Start one replica more; False for want of devices."""
        started = self._start(pool, why, now) is not None
        pool.owed -= started and pool.owed > 0
        return started

    def _start(self, pool: Pool, why: str, now: float) -> Replica | None:
        replica_id = f"{pool.key[:8]}-{self._started + 1}"
        devices = self._inventory.reserve(pool.devices, replica_id)
        if devices is None:
            return None
        self._started += 1
        replica = Replica(replica_id, pool, pool.take_index(), pool.generation, devices, now, why)
        self._replicas[replica_id] = replica
        if pool.single_use:
            self._unseen[replica_id] = replica
        pool.add(replica)
        self._commands.append(StartReplica(replica_id, pool.key, pool.generation, devices, why))
        return replica

    def _drain(self, replica: Replica, why: str) -> None:
        """Let it finish what it has; with nothing to finish, stop it."""
        if replica.state in {"draining", "stopping"}:
            return
        self._turn_away(replica, self._now)
        if not replica.leases and not replica.attached:
            self._stop(replica, why)
            return
        replica.why = why
        replica.pool.move(replica, "draining")
        if not replica.pool.single_use:
            for lease in [*replica.leases.values(), *replica.guests.values()]:
                self._recall(lease)  # its client keeps a lease as long as it has calls for it
        self._touch(replica.pool)

    def _kill(self, replica: Replica, why: str) -> None:
        """End it at once, with all that runs there."""
        for lease in replica.leases.values():
            lease.lost_why = lease.lost_why or why
        self._stop(replica, why, force=True)

    def _recall(self, lease: Lease) -> None:
        if not lease.recalled:
            lease.recalled = True
            self._commands.append(Recall(lease.client, lease.id))

    def _stop(self, replica: Replica, why: str, *, force: bool = False) -> None:
        replica.why = why
        self._turn_away(replica, self._now)
        for guest in replica.guests.values():
            guest.lost_why = guest.lost_why or why
        if replica.state != "stopping":
            replica.pool.move(replica, "stopping")
        self._commands.append(StopReplica(replica.id, why, force=force))
        self._touch(replica.pool)
