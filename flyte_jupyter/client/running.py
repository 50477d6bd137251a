"""A pool that runs, whoever has declared it: what can be ordered, known and shown of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, Self

from .. import errors
from ..core import protocol as p
from ..core import verbs
from ..core.snapshot import PoolView, ReplicaView
from ..core.spec import EnvironmentSpec, Scaling
from . import broker, text
from .leases import LeaseGroup
from .views import View


class Declared(Protocol):
    """An environment, or a task."""

    def spec(self, interpreter: str, /) -> EnvironmentSpec: ...
    def scaling(self) -> Scaling: ...


class RunningPool:
    """The warm kernels of one environment. They belong to the broker, and stay when the notebook goes.

    Args:
        name: Of the environment.
        key: What the broker tells pools apart by.
        scaling: How many replicas it has, and for how long.
    """

    def __init__(self, name: str, key: str, scaling: Scaling) -> None:
        self._name = name
        self.key = key
        self.scaling = scaling

    @property
    def name(self) -> str:
        return self._name

    # --- for dispatch

    def connection(self) -> broker.Connection:
        """A connection that knows this pool."""
        return broker.connect()

    def is_known_to(self, connection: broker.Connection) -> bool:
        """Whether the broker need not be told of it over this connection."""
        return True

    def pool_of(self, declared: Declared) -> RunningPool:
        """The pool of an environment or of a task, as far as this process knows pools."""
        raise NotImplementedError

    @property
    def uses_gpus(self) -> bool:
        """Whether its replicas have GPUs."""
        raise NotImplementedError

    # --- verbs

    def warm(self, replicas: int | None = None, *, wait: bool = True, timeout: float | None = None) -> Self:
        """Start the minimum of replicas, or `replicas` of them, and wait until they are ready.

        Args:
            replicas: How many; at most the pool's maximum.
            wait: False returns at once.
            timeout: Seconds to wait; None waits until they are ready or have failed.

        Raises:
            PoolFailed: The preload raises.
            NoUsableGPU, NoRoom: The machine does not have the GPUs.
            TimeoutError: They are not ready in time; they go on loading.
        """
        order = verbs.Warm.of(replicas=replicas)
        connection = self._send(order)
        if wait:
            self._wait_ready(connection, order.count(self), timeout)
        return self

    def scale(self, minimum: int, maximum: int | None = None) -> Self:
        """Resize the live pool; running tasks are not disturbed.

        Args:
            minimum: The fewest replicas, or the fixed number if `maximum` is not given.
            maximum: The most replicas, at least 1 and at least `minimum`.
        """
        return self.order(verbs.Scale.of(minimum=minimum, maximum=minimum if maximum is None else maximum))

    def keep(self, duration: float | timedelta) -> Self:
        """Keep idle replicas running during the next `duration` (seconds or a timedelta); 0 ends it."""
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
        return self.order(verbs.Keep.of(seconds=seconds))

    def stop(self, *, force: bool = False, wait: bool = True, timeout: float = 30.0) -> None:
        """Stop every replica after its running calls, or with `force` at once. The next call starts the pool again.

        Args:
            force: Do not wait for running calls; they raise `PoolStopped`.
            wait: False returns at once; the pool stops when its calls have ended.
            timeout: How many seconds to wait for that.

        Raises:
            TimeoutError: Some task still runs, or somebody is attached, after `timeout` seconds; the pool stops when
                that ends.
        """
        connection = self._send(verbs.Stop(force=force))
        if not wait:
            return

        def gone(view: PoolView | None) -> bool:
            return view is None or not view.replicas

        if not self._wait_until(connection, gone, timeout):
            raise TimeoutError(f"pool {self.name!r} is still in use after {timeout:g} s; use stop(force=True)")

    def restart(self, replica: int | None = None, *, force: bool = False) -> Self:
        """Replace the pool's replicas by fresh ones, which run the preload anew. Returns at once.

        Without a number all of them, one by one: the old ones answer until their successors are ready, where there is
        room for both. With one, that replica takes no further call, and is replaced after those that it runs.

        Args:
            replica: A replica's number, the 0 of "gpu[0]".
            force: Replace that one replica at once; its running tasks raise `ReplicaDied`.

        Raises:
            NoSuchReplica: There is none of that number, which is a LookupError, too.
            ValueError: `force` without a number; that is `stop(force=True)`.
        """
        if replica is not None:
            return self.order_at(replica, verbs.RestartReplica(force=force))
        if force:
            raise ValueError("restart(force=True) needs the number of one replica; stop(force=True) ends them all")
        return self.order(verbs.RestartPool())

    def interrupt(self, replica: int | None = None) -> Self:
        """Stop the tasks that run on all replicas, or on one; they raise `TaskCancelled`. What is loaded stays.

        Calls that wait start then.

        A task that catches the interrupt, or is in a C function that does not return, goes on;
        `restart(replica, force=True)` ends it.

        Args:
            replica: A replica's number, the 0 of "gpu[0]"; None is all of them.

        Raises:
            NoSuchReplica: There is none of that number, which is a LookupError, too.
        """
        if replica is None:
            return self.order(verbs.InterruptPool())
        return self.order_at(replica, verbs.InterruptReplica())

    def order(self, order: verbs.Verb[verbs.PoolTarget]) -> Self:
        """Send an order about the pool, and wait for nothing. The verbs above are made of this."""
        self._send(order)
        return self

    def order_at(self, replica: int, order: verbs.Verb[ReplicaView]) -> Self:
        """The same, about one of its replicas.

        Raises:
            NoSuchReplica: There is none of that number.
        """
        connection = self.connection()
        pool = self._find(connection.snapshot())
        if pool is None:
            raise errors.NoSuchReplica(f"{self.name}[{replica}]", existing=())
        connection.send(order.message(pool.replica_at(replica)))
        return self

    def status(self) -> PoolView | None:
        """What the broker knows about this pool; None if it knows nothing (yet, or any more).

        Instants in it are seconds on the system's monotonic clock.

        Raises:
            BrokerSilent: The broker runs, but does not answer.
        """
        try:
            connection = broker.current() or broker.connect(start=False)
            return self._find(connection.snapshot())
        except (errors.BrokerUnavailable, errors.BrokerGone):
            return None

    # --- views

    def __repr__(self) -> str:
        try:
            shown = text.pool_line(self.status(), self.scaling, now=time.monotonic())
        except errors.BrokerSilent as problem:
            shown = str(problem)
        return f"<pool {self.name!r}: {shown}>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        try:
            plain = text.pool_table(self.name, self.status(), self.scaling, now=time.monotonic())
        except errors.BrokerSilent as problem:
            return {"text/plain": f"{self.name}: {errors.whole_text(problem)}"}
        still = text.still(plain, time.strftime("%Y-%m-%d %H:%M:%S"))
        bundle: dict[str, Any] = {"text/plain": plain, "text/html": still}
        view = self._shown_by()
        return bundle if view is None else {**bundle, **view(self)}

    def _shown_by(self) -> View | None:
        """What a notebook shows of it beside text."""
        raise NotImplementedError

    # --- private

    def _send(self, order: verbs.Verb[verbs.PoolTarget]) -> broker.Connection:
        message = order.message(self)
        # A pool can be stopped, too, whose declaration cannot be made any more.
        stops = isinstance(message, p.StopPool)
        connection = (broker.current() or broker.connect()) if stops else self.connection()
        connection.send(message)
        if isinstance(message, p.Scale):
            self._rescaled(message.scaling, connection)
        return connection

    def _rescaled(self, scaling: Scaling, connection: broker.Connection) -> None:
        self.scaling = scaling

    def _find(self, snapped: p.Snapped) -> PoolView | None:
        return snapped.snapshot.pool(self.key)

    def _wait_ready(self, connection: broker.Connection, wanted: int, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        view = self.status()
        if view is None or not any(_is_ready(replica) for replica in view.replicas):
            # A slot, once: whatever keeps the pool from serving is told to whoever asks for one.
            group = LeaseGroup(connection, self.key, None, "local")
            waiter = group.ask(f"{self.name}.warm")
            try:
                group.drop(waiter.future.result(timeout))
            except (TimeoutError, KeyboardInterrupt):
                waiter.withdraw()
                raise
        failed: list[PoolView] = []

        def settled(view: PoolView | None) -> bool:
            if view is None:
                return False
            ready = sum(_is_ready(replica) for replica in view.replicas)
            starting = any(replica.state in ("starting", "loading") for replica in view.replicas)
            if ready < wanted and view.failure is not None and not starting:
                failed.append(view)
                return True
            return ready >= wanted or (ready > 0 and not starting)

        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._wait_until(connection, settled, left):
            raise TimeoutError(f"pool {self.name!r} is not ready after {timeout:g} s; it goes on loading")
        if failed and failed[0].failure is not None:
            raise failed[0].failure.error(self.name)

    def _wait_until(
        self,
        connection: broker.Connection,
        condition: Callable[[PoolView | None], bool],
        timeout: float | None,
    ) -> bool:
        """Wait on snapshots; interruptible. False if `timeout` passed first."""
        met = threading.Event()
        gone: list[bool] = []

        def look(snapped: p.Snapped | None) -> None:
            if snapped is None:
                gone.append(True)
                met.set()
            elif condition(self._find(snapped)):
                met.set()

        with connection.watching(look):
            done = met.wait(timeout)
        if gone:
            raise errors.BrokerGone()
        return done


def _is_ready(replica: ReplicaView) -> bool:
    return replica.generation_current and replica.warm
