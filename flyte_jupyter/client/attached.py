"""A replica that somebody opens by hand: which one, where its channels are, and the lease that makes it theirs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Final

from .. import errors
from ..core import protocol as p
from ..core.arguments import parse_replica
from ..core.snapshot import PoolView, ReplicaView, Snapshot
from . import text
from .broker import Connection
from .channel import Channel
from .identity import describe_client, process_token
from .refusals import explain_refusal

SOON_S: Final = 0.3
"""Who waits for longer is told what for."""
_COMING: Final = ("starting", "loading")


def find_replica(
    snapshot: Snapshot, wanted: str = "", *, again: str = "", busy: bool = False
) -> tuple[PoolView, ReplicaView]:
    """The replica that "gpu[1]" or "gpu" names; without a name, one of the pool that was last used.

    Args:
        again: The id of a replica that is preferred to all others.
        busy: To look into: rather one that works than one that is free. Else to attach to: rather one that is free,
            then one that is on its way, then one that somebody else has.

    Raises:
        NoSuchPool: There is no pool of that name.
        NoSuchReplica: It has no such replica, or none of use.
        ArgumentTypeError: `wanted` is not the name of a replica.
    """
    pools = [view for view in snapshot.pools if not view.single_use]
    states = {view.name: text.pool_state(view) for view in pools}
    number = None
    others = ("draining",) if busy else _COMING
    if wanted:
        name, number = parse_replica(wanted)
        pools = [view for view in pools if view.name == name or (len(name) >= 6 and view.key.startswith(name))]
        if not pools:
            raise errors.NoSuchPool(name, states, gpus=0)
    found = [
        (view, replica)
        for view in pools
        for replica in view.replicas
        if (replica.warm or replica.state in others) and number in (None, replica.index)
    ]
    if not found:
        existing = [replica.index for view in pools for replica in view.replicas if replica.warm]
        raise errors.NoSuchReplica(wanted, states, existing)

    def rank(each: tuple[PoolView, ReplicaView]) -> tuple[bool, bool, float, bool, bool, float]:
        view, replica = each
        crowd = len(replica.leases) / view.scaling.concurrency
        taken = replica.state == "attached" and not busy
        order = (taken, replica.state in _COMING, -crowd if busy else crowd)
        return replica.id != again, view.retiring, -_used_at(view), *order

    return min(found, key=rank)


def _used_at(view: PoolView) -> float:
    instants = [replica.idle_since or 0.0 for replica in view.replicas]
    instants += [replica.ready_at or 0.0 for replica in view.replicas]
    instants += [lease.since for replica in view.replicas for lease in replica.leases]
    return max(instants)


class Attachment:
    """One front end's hold on one replica, from `take` until `close` or the end of this process.

    Args:
        shared: Calls go on there.
        task: What every view shows there.
        session: The Jupyter session in whose name requests go to the replica.
        lost: Called once, on another thread, with the reason, when the replica is gone.
        leaving: Called on another thread when the replica has to go, and waits for this front end to leave it.
    """

    def __init__(
        self,
        connection: Connection,
        replica: ReplicaView,
        *,
        shared: bool,
        task: str,
        session: str,
        lost: Callable[[str], None],
        leaving: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.replica = replica
        self._shared = shared
        self._task = task
        self._session = session
        self._on_lost = lost
        self._on_leaving = leaving
        self._lease = uuid.uuid4().hex[:16]
        self._granted: Future[p.Granted] = Future()
        self._channel: Channel | None = None
        self._over = False

    def take(self, waits: Callable[[str], None]) -> None:
        """Return when the replica is ours, however long somebody else has it.

        Args:
            waits: Called once, with what has to be waited for, if it lasts.

        Raises:
            NoSuchReplica: It ended meanwhile.
            TaskCancelled: Somebody withdrew the request, or `close` was called.
        """
        self.connection.listen(self._lease, self)
        self.connection.send(p.Attach(lease=self._lease, replica=self.replica.id, task=self._task, shared=self._shared))
        try:
            granted = self._granted.result(SOON_S)
        except TimeoutError:
            waits(self._what_for())
            granted = self._granted.result()
        self.replica = self._now()
        with suppress(OSError):  # else it has just ended, and the broker says so
            # Its end tells the replica that the front end is gone.
            self._channel = Channel(granted.address, self._hello())

    def close(self) -> None:
        """Back into rotation."""
        self._over = True
        if self._channel is not None:
            self._channel.close()
        self.connection.release(self._lease)
        self._refuse(errors.TaskCancelled(self._task, queued=True))

    def why(self) -> str:
        """Why the replica has to go."""
        return self._now().why

    def _now(self) -> ReplicaView:
        replica = self.connection.snapshot().snapshot.replica(self.replica.id)
        if replica is None:
            raise errors.NoSuchReplica(self.replica.name)
        return replica

    def _what_for(self) -> str:
        with suppress(errors.NoSuchReplica):
            replica = self._now()
            if replica.state in _COMING:
                return f"waiting until {replica.name} is ready; it is {replica.state}"
            others = [
                each.keeper if each.session is not None and not each.running else f"{each.task} ({each.client})"
                for each in replica.leases
                if each.lease != self._lease
            ]
            return f"waiting until this has ended: {', '.join(others)}"
        return f"waiting for {self.replica.name}"

    def _hello(self) -> bytes:
        # The replica stops what this session runs when the connection breaks.
        return json.dumps(
            {
                "role": "calls",
                "lease": self._lease,
                "notebook": describe_client().notebook,
                "process": process_token(),
                "pid": 0,
                "run": "local",
                "replica": "",
                "session": self._session,
            }
        ).encode()

    def _refuse(self, error: errors.BaseRuntimeError) -> bool:
        """Whether somebody still waited for it."""
        with suppress(InvalidStateError):
            self._granted.set_exception(error)
            return True
        return False

    def _tell(self, why: str) -> None:
        if not self._over:
            self._over = True
            self._on_lost(why)

    # --- what the broker says; on the connection's thread

    def granted(self, message: p.Granted) -> None:
        with suppress(InvalidStateError):
            self._granted.set_result(message)

    def refused(self, message: p.Refused) -> None:
        self._refuse(explain_refusal(message))

    def recalled(self, lease: str) -> None:
        self._on_leaving()

    def lost(self, message: p.Lost) -> None:
        self._tell(message.cause)

    def broken(self, lease: str, error: errors.BaseRuntimeError) -> None:
        if not self._refuse(error):
            self._tell("the broker ended")

    def forget(self) -> None:
        """Nothing of it is in a forked child."""
