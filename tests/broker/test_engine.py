"""The engine's real loop over a fake launcher, on a clock that jumps: an hour costs milliseconds."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from anyio import CancelScope, current_time, sleep

from flyte_jupyter.broker.engine import MEMORY_S, SHUTDOWN_S, Engine
from flyte_jupyter.broker.exits import Exit
from flyte_jupyter.broker.life import Orders
from flyte_jupyter.core import commands, events
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.inventory import Device
from flyte_jupyter.core.scheduler import Scheduler
from flyte_jupyter.core.spec import DeviceRequest, EnvironmentSpec, Scaling

NO_GPU = events.DevicesFound((), "no driver")
POLITE_S = 0.5


class FakeLauncher:
    """Replicas without processes: loading at once, ready after `ready_s`; they end when told, or by `crash`."""

    def __init__(self, ready_s: float = 2.0, *, deaf: bool = False) -> None:
        self.ready_s = ready_s
        self.deaf = deaf  # they obey nothing but a kill
        self.living: dict[str, commands.StartReplica] = {}
        self.started: list[str] = []
        self.preloads: list[str] = []
        self.crashes: dict[str, anyio.Event] = {}
        self.failure: Exception | None = None

    def address(self, replica: str) -> str:
        return f"/run/{replica}/task.sock"

    async def live(
        self,
        command: commands.StartReplica,
        declaration: p.Declaration,
        name: str,
        post: Callable[[events.Event], None],
        ended: Callable[[str], None],
        orders: Orders,
    ) -> Exit:
        replica = command.replica
        self.living[replica] = command
        self.started.append(name)
        self.preloads.append(declaration.preload.generation if declaration.preload else "")
        self.crashes[replica] = anyio.Event()
        try:
            if self.failure is not None:
                raise self.failure
            post(events.ReplicaLoading(replica, 4711))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._end_when, tasks, orders.kill, 0)
                tasks.start_soon(self._end_when, tasks, self.crashes[replica], 0)
                if not self.deaf:
                    tasks.start_soon(self._end_when, tasks, orders.stop, POLITE_S)
                await sleep(self.ready_s)
                post(events.ReplicaReady(replica))
                await sleep(math.inf)
        finally:
            with CancelScope(shield=True):
                await sleep(0.01)  # as reaping a process takes a moment
            del self.living[replica]
        return Exit("signal SIGKILL", signal="SIGKILL", log_tail="last line")

    async def _end_when(self, tasks: Any, event: anyio.Event, delay: float) -> None:
        await event.wait()
        await sleep(delay)
        tasks.cancel_scope.cancel()


class Client:
    """What a connection is to the engine."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name = engine, name
        self.said: list[Any] = []
        self._news = anyio.Event()
        engine.connect(name, self._hear)
        engine.post(events.ClientConnected(name, f"{name}.ipynb", "notebook", 1))

    def _hear(self, message: Any) -> None:
        self.said.append(message)
        news, self._news = self._news, anyio.Event()
        news.set()

    async def hear(self, kind: type, count: int = 1) -> Any:
        while len(found := [each for each in self.said if isinstance(each, kind)]) < count:
            await self._news.wait()
        return found[count - 1]

    def acquire(self, lease: str, pool: str, parent: str | None = None) -> None:
        self.engine.post(events.LeaseRequested(self.name, lease, pool, f"task-{lease}", parent))


def declaration(
    name: str = "cpu",
    low: int = 0,
    high: int = 1,
    *,
    concurrency: int = 1,
    idle_ttl: float = 1800,
    scaledown_ttl: float = 300,
    gpus: int = 0,
    preload: str = "",
    single_use: bool = False,
) -> p.Declaration:
    devices = DeviceRequest(count=gpus)
    return p.Declaration(
        spec=EnvironmentSpec(name=name, interpreter="/python", devices=devices, single_use=single_use),
        scaling=Scaling(
            min_replicas=low,
            max_replicas=high,
            concurrency=concurrency,
            idle_ttl=idle_ttl,
            scaledown_ttl=scaledown_ttl,
        ),
        preload=p.Preload(generation=preload, names=("model",), payload=b"") if preload else None,
    )


Scenario = Callable[[Engine, FakeLauncher], Awaitable[None]]


def play(
    scenario: Scenario,
    launcher: FakeLauncher | None = None,
    *,
    find_devices: Callable[[], events.DevicesFound] = lambda: NO_GPU,
    find_memory: Callable[[], events.MemoryMeasured] | None = None,
    end: bool = True,
) -> float:
    """Run an engine and a scenario beside it; return the virtual time that it took. Nothing may be left."""
    launcher = launcher or FakeLauncher()

    async def main() -> float:
        engine = Engine(Scheduler(), launcher, find_devices=find_devices, find_memory=find_memory)
        began = current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.run)
            await scenario(engine, launcher)
            if end:
                engine.end()
        assert launcher.living == {}
        assert engine._lives == {}
        return current_time() - began

    options = {"clock": trio.testing.MockClock(autojump_threshold=0)}
    return anyio.run(main, backend="trio", backend_options=options)


# --- grants and losses


def test_a_request_is_granted_once_its_replica_is_ready() -> None:
    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        ada, pool = Client(engine, "ada"), declaration()
        await engine.declare("ada", pool)
        ada.acquire("l1", pool.spec.key)
        granted = await ada.hear(p.Granted)
        assert current_time() - began[0] == pytest.approx(2.0)
        assert (granted.lease, granted.name) == ("l1", "cpu[0]")
        assert granted.address == f"/run/{granted.replica}/task.sock"

    began = [0.0]

    async def timed(engine: Engine, launcher: FakeLauncher) -> None:
        began[0] = current_time()
        await scenario(engine, launcher)

    play(timed)


def test_memory_is_measured_again_and_again_while_a_fresh_kernel_waits_for_it_and_else_never() -> None:
    measured: list[float] = []

    def find_memory() -> events.MemoryMeasured:
        measured.append(current_time())
        return events.MemoryMeasured(2**33 if len(measured) > 5 else 0, 2**34)

    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        ada, warm, fresh = Client(engine, "ada"), declaration(), declaration("fresh", high=8, single_use=True)
        await engine.declare("ada", warm)
        await engine.declare("ada", fresh)
        ada.acquire("l0", warm.spec.key)
        assert not (await ada.hear(p.Granted)).single_use
        assert measured == []
        ada.acquire("l1", fresh.spec.key)
        ada.acquire("l2", fresh.spec.key)
        assert (await ada.hear(p.Granted, 3)).single_use
        assert [round(later - earlier, 3) for earlier, later in pairwise(measured)] == [MEMORY_S] * 5
        await sleep(3600)
        assert len(measured) == 6

    play(scenario, find_memory=find_memory)


def test_a_pool_that_nobody_declared_is_refused() -> None:
    async def scenario(engine: Engine, _: FakeLauncher) -> None:
        ada = Client(engine, "ada")
        ada.acquire("l1", "0123")
        assert (await ada.hear(p.Refused)).reason == "no-such-pool"

    play(scenario)


def test_a_lease_is_asked_back_for_a_client_that_has_none() -> None:
    async def scenario(engine: Engine, _: FakeLauncher) -> None:
        ada, bob, pool = Client(engine, "ada"), Client(engine, "bob"), declaration()
        await engine.declare("ada", pool)
        ada.acquire("l1", pool.spec.key)
        await ada.hear(p.Granted)
        bob.acquire("l2", pool.spec.key)
        assert (await ada.hear(p.Recalled)).lease == "l1"
        engine.post(events.LeaseReleased("l1"))
        assert (await bob.hear(p.Granted)).lease == "l2"

    play(scenario)


def test_a_crash_is_told_with_how_it_ended_and_the_replica_is_replaced() -> None:
    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        ada, pool = Client(engine, "ada"), declaration(low=1)
        await engine.declare("ada", pool)
        ada.acquire("l1", pool.spec.key)
        granted = await ada.hear(p.Granted)
        launcher.crashes[granted.replica].set()
        lost = await ada.hear(p.Lost)
        assert (lost.lease, lost.replica, lost.name) == ("l1", granted.replica, "cpu[0]")
        assert (lost.signal, lost.log_tail) == ("SIGKILL", "last line")
        ada.acquire("l2", pool.spec.key)
        assert (await ada.hear(p.Granted, 2)).replica != granted.replica
        assert engine._exits == {}

    play(scenario)


def test_a_replica_that_cannot_even_be_watched_is_a_failure_not_the_brokers_end() -> None:
    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        launcher.failure = RuntimeError("bad state")
        ada, pool = Client(engine, "ada"), declaration()
        await engine.declare("ada", pool)
        ada.acquire("l1", pool.spec.key)
        refused = await ada.hear(p.Refused)
        assert refused.reason == "pool-failed"
        assert "bad state" in refused.detail["cause"]

    play(scenario)


def test_a_revoked_lease_ends_its_replica_at_once() -> None:
    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        ada, pool = Client(engine, "ada"), declaration()
        await engine.declare("ada", pool)
        ada.acquire("l1", pool.spec.key)
        await ada.hear(p.Granted)
        before = current_time()
        engine.post(events.LeaseRevoked("l1", "it does not stop"))
        assert (await ada.hear(p.Lost)).cause == "it does not stop"
        assert current_time() - before < POLITE_S

    play(scenario, FakeLauncher(deaf=True))


# --- time


def test_an_idle_replica_above_the_minimum_goes_and_the_rest_after_the_idle_ttl() -> None:
    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        ada, pool = Client(engine, "ada"), declaration(low=1, high=2, idle_ttl=3600, scaledown_ttl=60)
        await engine.declare("ada", pool)
        for lease in ("l1", "l2"):
            ada.acquire(lease, pool.spec.key)
        await ada.hear(p.Granted, 2)
        for lease in ("l1", "l2"):
            engine.post(events.LeaseReleased(lease))
        released = current_time()
        await sleep(59)
        assert len(launcher.living) == 2
        await sleep(2)
        assert len(launcher.living) == 1
        await sleep(released + 3599 - current_time())
        assert len(launcher.living) == 1
        await sleep(2)
        assert launcher.living == {}

    assert play(scenario) > 3600


def test_the_broker_ends_after_ten_minutes_without_clients_and_replicas() -> None:
    async def nobody(engine: Engine, _: FakeLauncher) -> None:
        pass

    assert play(nobody, end=False) == pytest.approx(600, abs=0.1)


def test_a_client_or_a_replica_keeps_the_broker_alive() -> None:
    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        pool = declaration(idle_ttl=5000, scaledown_ttl=5000)
        ada = Client(engine, "ada")
        await engine.declare("ada", pool)
        ada.acquire("l1", pool.spec.key)
        await ada.hear(p.Granted)
        engine.post(events.LeaseReleased("l1"))
        await sleep(3000)
        assert not engine._ending.is_set()
        engine.disconnect("ada")
        await sleep(1000)
        assert len(launcher.living) == 1

    # The replica's ttl began when it was released, then the broker's own ten minutes.
    assert play(scenario, end=False) == pytest.approx(2 + 5000 + 600, abs=2)


def test_a_spectator_does_not_keep_the_broker_alive_and_hears_goodbye() -> None:
    said: list[p.Message] = []

    async def scenario(engine: Engine, _: FakeLauncher) -> None:
        engine.look_on("panel", said.append)

    assert play(scenario, end=False) == pytest.approx(600, abs=0.1)
    assert [type(message) for message in said] == [p.Goodbye]


def test_a_client_that_comes_back_in_time_finds_the_broker() -> None:
    async def scenario(engine: Engine, _: FakeLauncher) -> None:
        await sleep(599)
        Client(engine, "ada")
        await sleep(1000)
        assert not engine._ending.is_set()
        engine.disconnect("ada")

    assert play(scenario, end=False) == pytest.approx(599 + 1000 + 600, abs=0.1)


def test_watchers_hear_of_a_change_at_once_and_of_many_ten_times_a_second() -> None:
    async def scenario(engine: Engine, _: FakeLauncher) -> None:
        seen: list[tuple[float, p.Snapped]] = []

        async def watch() -> None:
            async for snapped in engine.watch():
                seen.append((current_time(), snapped))  # noqa: PERF401 - it never ends

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            ada, pool = Client(engine, "ada"), declaration()
            await engine.declare("ada", pool)
            for number in range(50):
                ada.acquire(f"l{number}", pool.spec.key)
                await sleep(0.01)
            await sleep(10)
            tasks.cancel_scope.cancel()
        gaps = [later[0] - earlier[0] for earlier, later in pairwise(seen)]
        assert max(gaps[:8]) < 0.02
        assert min(gaps[12:-1]) >= 0.099
        [view] = seen[-1][1].snapshot.pools
        assert (view.waiting, view.replicas[0].state) == (49, "busy")

    play(scenario)


# --- devices


def test_a_pool_with_gpus_waits_until_the_machine_has_been_asked() -> None:
    def two() -> events.DevicesFound:
        return events.DevicesFound((Device("GPU-a", "H100"), Device("GPU-b", "H100", index=1)))

    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        ada, pool = Client(engine, "ada"), declaration(gpus=1, high=2)
        await engine.declare("ada", pool)
        for lease in ("l1", "l2"):
            ada.acquire(lease, pool.spec.key)
        await ada.hear(p.Granted, 2)
        assert sorted(each.devices for each in launcher.living.values()) == [("GPU-a",), ("GPU-b",)]

    play(scenario, find_devices=two)


def test_a_driver_that_breaks_leaves_a_broker_without_gpus() -> None:
    def broken() -> events.DevicesFound:
        raise OSError("libnvidia-ml.so is damaged")

    async def scenario(engine: Engine, _: FakeLauncher) -> None:
        ada, pool = Client(engine, "ada"), declaration(gpus=1)
        await engine.declare("ada", pool)
        ada.acquire("l1", pool.spec.key)
        refused = await ada.hear(p.Refused)
        assert refused.reason == "no-gpu"
        assert "libnvidia-ml.so is damaged" in refused.detail["problem"]

    play(scenario, find_devices=broken)


# --- declarations


def test_a_pool_declared_while_its_last_client_leaves_can_still_start() -> None:
    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        pool = declaration()
        Client(engine, "ada")
        await engine.declare("ada", pool)
        await trio.testing.wait_all_tasks_blocked()
        # The old kernel of a notebook goes and its new one comes: both are in the inbox at once.
        engine.disconnect("ada")
        bob = Client(engine, "bob")
        await engine.declare("bob", pool)
        bob.acquire("l1", pool.spec.key)
        await bob.hear(p.Granted)

    play(scenario)


def test_the_declaration_of_a_pool_that_nobody_needs_is_forgotten() -> None:
    async def scenario(engine: Engine, _: FakeLauncher) -> None:
        Client(engine, "ada")
        await engine.declare("ada", declaration())
        engine.disconnect("ada")
        await trio.testing.wait_all_tasks_blocked()
        assert engine._declarations == {}  # it held secrets
        assert not +engine._coming

    play(scenario)


def test_a_nested_declaration_does_not_take_the_preload_away() -> None:
    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        ada, pool = Client(engine, "ada"), declaration(preload="g1")
        await engine.declare("ada", pool)
        engine.connect("replica", lambda message: None, nested=True)
        engine.post(events.ClientConnected("replica", "cpu[0]", "replica", 2))
        await engine.declare("replica", declaration())
        ada.acquire("l1", pool.spec.key)
        await ada.hear(p.Granted)
        assert launcher.preloads == ["g1"]

    play(scenario)


# --- the end


@pytest.mark.parametrize("deaf", [False, True])
def test_the_end_stops_every_replica_and_says_goodbye(deaf: bool) -> None:
    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        ada, pool = Client(engine, "ada"), declaration(low=3, high=3)
        await engine.declare("ada", pool)
        engine.post(events.PoolWarmed(pool.spec.key, 3))
        ada.acquire("l1", pool.spec.key)
        await ada.hear(p.Granted)
        assert len(launcher.living) == 3
        ended[0] = current_time()
        engine.end()
        await ada.hear(p.Goodbye)
        engine.disconnect("ada")
        while launcher.living:
            await sleep(0.01)
        assert len(launcher.started) == 3  # none was started in their place
        ended[0] = current_time() - ended[0]

    ended = [0.0]
    play(scenario, FakeLauncher(deaf=deaf))
    assert ended[0] == pytest.approx(SHUTDOWN_S if deaf else POLITE_S, abs=0.1)


def test_a_replica_in_its_preload_is_stopped_too() -> None:
    async def scenario(engine: Engine, launcher: FakeLauncher) -> None:
        ada, pool = Client(engine, "ada"), declaration()
        await engine.declare("ada", pool)
        ada.acquire("l1", pool.spec.key)
        await sleep(1)
        assert len(launcher.living) == 1

    play(scenario, FakeLauncher(ready_s=1000))


def test_what_is_said_after_the_end_is_ignored() -> None:
    async def main() -> None:
        engine = Engine(Scheduler(), FakeLauncher(), find_devices=lambda: NO_GPU)
        client = Client(engine, "ada")
        engine.end()
        await engine.run()
        engine.disconnect(client.name)
        engine.post(events.Tick())

    anyio.run(main, backend="trio")


@pytest.mark.parametrize("steps", range(0, 120, 3))
def test_cancelled_at_any_point_nothing_is_left(steps: int) -> None:
    launcher = FakeLauncher(ready_s=0.05)

    async def busy(engine: Engine) -> None:
        ada, pool = Client(engine, "ada"), declaration(low=2, high=3)
        await engine.declare("ada", pool)
        for number in range(3):
            ada.acquire(f"l{number}", pool.spec.key)
        granted = await ada.hear(p.Granted)
        launcher.crashes[granted.replica].set()
        await ada.hear(p.Lost)
        engine.post(events.LeaseReleased("l1"))
        engine.end()

    async def main() -> None:
        engine = Engine(Scheduler(), launcher, find_devices=lambda: NO_GPU)
        with CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(engine.run)
                tasks.start_soon(busy, engine)
                for _ in range(steps):
                    await sleep(0 if steps < 60 else 0.01)
                scope.cancel()
        assert launcher.living == {}
        assert engine._lives == {}

    anyio.run(main, backend="trio", backend_options={"clock": trio.testing.MockClock(autojump_threshold=0)})
