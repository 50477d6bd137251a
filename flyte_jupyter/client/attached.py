"""A replica that somebody opens by hand: which one, where its channels are, and the slots that keep others out."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from .. import errors, runtime
from ..core import protocol as p
from ..core.snapshot import PoolView, ReplicaView, Snapshot
from . import text
from .arguments import parse_replica
from .broker import Connection
from .identity import describe_client
from .leases import Channel, Lease, LeaseGroup, Waiter

RETRY_S: Final = 0.1
NO_LEASE: Final = ""
GRANTED_S: Final = 1.0
"""How long the broker may take to grant slots that are free."""


def find_replica(
    snapshot: Snapshot, wanted: str = "", *, again: str = "", busy: bool = False
) -> tuple[PoolView, ReplicaView]:
    """The replica that "gpu[1]" or "gpu" names; without a name, one of the pool that was last used.

    Args:
        again: The id of a replica that is preferred to all others.
        busy: Prefer one that works, and not one that is free.

    Raises:
        NoSuchPool: There is no pool of that name.
        NoSuchReplica: It has no such replica, or none that is ready.
        ArgumentTypeError: `wanted` is not the name of a replica.
    """
    pools = [view for view in snapshot.pools if not view.single_use]
    states = {view.name: text.pool_state(view) for view in pools}
    number = None
    if wanted:
        name, number = parse_replica(wanted)
        pools = [view for view in pools if view.name == name or (len(name) >= 6 and view.key.startswith(name))]
        if not pools:
            raise errors.NoSuchPool(name, states, gpus=0)
    found = [
        (view, replica)
        for view in pools
        for replica in view.replicas
        if replica.state in ("ready", "busy") and number in (None, replica.index)
    ]
    if not found:
        raise errors.NoSuchReplica(wanted, states)

    def rank(each: tuple[PoolView, ReplicaView]) -> tuple[bool, bool, float, float]:
        view, replica = each
        crowd = len(replica.leases) / view.scaling.concurrency
        return replica.id != again, view.retiring, -_used_at(view), -crowd if busy else crowd

    return min(found, key=rank)


def _used_at(view: PoolView) -> float:
    instants = [replica.idle_since or 0.0 for replica in view.replicas]
    instants += [replica.ready_at or 0.0 for replica in view.replicas]
    instants += [lease.since for replica in view.replicas for lease in replica.leases]
    return max(instants)


def jupyter_channels(replica: ReplicaView) -> dict[str, Any]:
    """What is in its connection file.

    Raises:
        NoSuchReplica: It has just ended.
    """
    for path in runtime.private_folder().glob(f"*/{replica.id}/kernel.json"):
        with suppress(OSError, ValueError):
            info: dict[str, Any] = json.loads(path.read_text())
            return info
    raise errors.NoSuchReplica(replica.name)


class HeldSlots(LeaseGroup):
    """Slots of one replica that stay with whoever attached to it, however many wait for them."""

    def __init__(self, connection: Connection, pool: str, session: str, lost: Callable[[str], None]) -> None:
        super().__init__(connection, pool, None, "local")
        self._session = session
        self._on_lost = lost

    def recalled(self, lease: str) -> None:
        """A person has it open: others wait, or are served by other replicas."""

    def lost(self, message: p.Lost) -> None:
        super().lost(message)
        self._on_lost(message.cause)

    def broken(self, lease: str, error: errors.BaseRuntimeError) -> None:
        super().broken(lease, error)
        self._on_lost(str(error))

    def hello(self, lease: Lease) -> bytes:
        return self.hello_of(lease.id)

    def hello_of(self, lease: str) -> bytes:
        # The replica stops what this session runs when the connection breaks.
        return json.dumps(
            {
                "role": "calls",
                "lease": lease or f"attached-{self._session}",
                "notebook": describe_client().notebook,
                "cwd": "",
                "sys_path": [],
                "run": self.run,
                "replica": "",
                "session": self._session,
            }
        ).encode()


class Attachment:
    """One front end's hold on one replica, from `take` until `close` or the end of this process.

    Args:
        task: What every view shows as running there.
        session: The Jupyter session in whose name requests go to the replica.
        lost: Called once, on another thread, with the reason, when the replica is gone.
    """

    def __init__(
        self,
        connection: Connection,
        pool: PoolView,
        replica: ReplicaView,
        *,
        task: str,
        session: str,
        lost: Callable[[str], None],
    ) -> None:
        self.connection = connection
        self.pool = pool
        self.replica = replica
        self._task = task
        self._lost = lost
        self._told = False
        self._group = HeldSlots(connection, pool.key, session, self._tell)
        self._leases: list[Lease] = []
        self._closed = threading.Event()
        self._watch: Any = None
        self._channel: Channel | None = None

    def take(self, *, shared: bool, waits: Callable[[list[str]], None]) -> None:
        """Return when the replica is ours as far as it can be now.

        Exclusively: at least one slot, and those of its other slots that are still busy follow by `complete`.
        Shared: one slot if there is one beside another, so that the replica is kept; nobody is kept out.

        Args:
            waits: Called with what runs there, once, if it has to be waited for.

        Raises:
            NoSuchReplica: It ended meanwhile.
        """
        self._watch = self.connection.watching(self._look)
        self._watch.__enter__()
        told = False
        while not self._closed.is_set():
            view, replica = self._now()
            slots = view.scaling.concurrency
            if not shared or slots - len(replica.leases) > 1:
                self._grab(view, replica, 1 if shared else slots)
            if self._leases or shared:
                break
            if not told and replica.leases:
                told = True
                waits([f"{lease.task} ({lease.client})" for lease in replica.leases])
            time.sleep(RETRY_S)
        else:
            return
        self._channel = self._open()

    def _open(self) -> Channel | None:
        """Whose end tells the replica that the front end is gone."""
        address = str(Path(jupyter_channels(self.replica)["ip"]).with_name("task.sock"))
        with suppress(OSError):
            return self._leases[0].channel() if self._leases else Channel(address, self._group.hello_of(NO_LEASE))
        return None

    def complete(self) -> None:
        """Take the slots that were busy, as they become free; returns when all are ours."""
        while not self._closed.is_set() and self._leases:
            view, replica = self._now()
            slots = view.scaling.concurrency
            if len(self._leases) >= slots:
                return
            if len(replica.leases) < slots:
                self._grab(view, replica, slots - len(self._leases))
            time.sleep(RETRY_S)

    def close(self) -> None:
        """Back into rotation."""
        self._closed.set()
        self._told = True
        if self._channel is not None:
            self._channel.close()
        self._group.close()
        if self._watch is not None:
            watch, self._watch = self._watch, None
            with suppress(errors.BrokerGone, ValueError):
                watch.__exit__(None, None, None)

    def _now(self) -> tuple[PoolView, ReplicaView]:
        for view in self.connection.snapshot().snapshot.pools:
            for replica in view.replicas:
                if replica.id == self.replica.id and replica.state in ("ready", "busy", "draining"):
                    return view, replica
        raise errors.NoSuchReplica(self.replica.name)

    def _grab(self, view: PoolView, replica: ReplicaView, wanted: int) -> None:
        """Up to `wanted` of its free slots. The broker chooses replicas, so all free ones are asked for at once."""
        if replica.state == "draining":
            raise errors.NoSuchReplica(replica.name)
        slots = view.scaling.concurrency
        free = sum(slots - len(each.leases) for each in view.replicas if each.state in ("ready", "busy"))
        if free <= 0 or len(replica.leases) >= slots:
            return
        waiters = [self._group.ask(self._task) for _ in range(free)]  # never more: the pool must not grow for it
        deadline = time.monotonic() + GRANTED_S
        for waiter in waiters:
            lease = _granted(waiter, deadline)
            if lease is None:
                continue
            if lease.replica == self.replica.id and wanted > 0:
                wanted -= 1
                self._leases.append(lease)
            else:
                self._group.drop(lease)

    def _look(self, snapped: p.Snapped | None) -> None:
        if snapped is None:
            self._tell("the broker ended")
        elif all(each.id != self.replica.id for view in snapped.snapshot.pools for each in view.replicas):
            self._tell("it was stopped")

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._lost(why)


def _granted(waiter: Waiter, deadline: float) -> Lease | None:
    with suppress(TimeoutError, errors.BaseRuntimeError):
        return waiter.future.result(max(0.0, deadline - time.monotonic()))
    if not waiter.future.done():
        waiter.withdraw()
    elif not waiter.future.cancelled() and waiter.future.exception() is None:
        return waiter.future.result()
    return None
