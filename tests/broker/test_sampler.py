"""When it is measured what is used, and what happens when the driver does not answer."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator

import anyio
import pytest
from standin import CARD
from standin import Driver as StandIn

from flyte_jupyter.broker import sampler as module
from flyte_jupyter.broker.sampler import Aside, Sampler
from flyte_jupyter.core.snapshot import DeviceView, Snapshot
from flyte_jupyter.devices import Driver

GIB = 1 << 30
GPU = DeviceView(
    uuid="GPU-a", index=0, model="L4", partition=None, memory_bytes=24 * GIB, replica=None, replica_name=None
)
STATE = Snapshot(revision=1, now=0.0, pools=(), devices=(GPU,), device_problem=None, clients=())


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    driver = StandIn(tmp_path_factory.mktemp("driver"))
    with driver.loaded():
        yield driver


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"PERIOD_S": 0.05, "PATIENCE_S": 0.5, "LINGER_S": 0.1}.items():
        monkeypatch.setattr(module, name, seconds)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.005)


class Engine:
    """What the sampler sees of it; counts how often it was measured, and how often there was something to show."""

    def __init__(self, picture: Snapshot) -> None:
        self.picture = picture
        self.samples = 0
        self.changes = 0

    def state(self) -> Snapshot:
        self.samples += 1
        return self.picture

    def changed(self) -> None:
        self.changes += 1


def play(
    scenario: Callable[[Sampler, Engine], Awaitable[None]],
    driver: Driver | None = None,
    state: Snapshot = STATE,
) -> None:
    async def main() -> None:
        sampler, engine = Sampler(driver), Engine(state)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sampler.run, engine.state, engine.changed)
            await scenario(sampler, engine)
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_it_is_measured_while_somebody_watches_and_the_driver_is_open_that_long(standin: StandIn) -> None:
    standin.say({**CARD, "used": GIB})

    async def scenario(sampler: Sampler, engine: Engine) -> None:
        opened, closed = standin.calls("init"), standin.calls("shutdown")
        await anyio.wait_all_tasks_blocked()
        assert (engine.samples, standin.calls("init")) == (0, opened)
        with sampler.watching(), sampler.watching():
            await until(lambda: engine.samples >= 3)
            assert (standin.calls("init"), standin.calls("shutdown")) == (opened + 1, closed)
            assert sampler.usage.devices["GPU-a"].used_bytes == GIB
            assert engine.changes == 1  # nothing else has changed
        await until(lambda: standin.calls("shutdown") == closed + 1)
        assert sampler.usage.measured_at is None
        done = engine.samples
        await anyio.sleep(10 * module.PERIOD_S)
        assert engine.samples == done

    play(scenario, Driver())


def test_only_what_a_person_would_notice_is_a_change(standin: StandIn) -> None:
    standin.say({**CARD, "used": GIB})

    async def scenario(sampler: Sampler, engine: Engine) -> None:
        with sampler.watching():
            await until(lambda: engine.changes == 1)
            standin.say({**CARD, "used": GIB + 5000})
            seen = engine.samples
            await until(lambda: engine.samples >= seen + 2)
            assert (engine.changes, sampler.usage.devices["GPU-a"].used_bytes) == (1, GIB)
            standin.say({**CARD, "used": 2 * GIB})
            await until(lambda: engine.changes == 2)
            assert sampler.usage.devices["GPU-a"].used_bytes == 2 * GIB

    play(scenario, Driver())


def test_a_driver_that_hangs_is_asked_once_and_said_so(standin: StandIn) -> None:
    standin.say(CARD, hang=1)

    async def scenario(sampler: Sampler, engine: Engine) -> None:
        threads = threading.active_count()
        with sampler.watching():
            await until(lambda: sampler.usage.problem is not None)
            assert sampler.usage.problem == "the NVIDIA driver does not answer within 0.5 s"
            seen = engine.samples
            await until(lambda: engine.samples >= seen + 5)
            assert threading.active_count() <= threads + 2  # the one that hangs, and one that looks at processes
            standin.say(CARD)
            await until(lambda: sampler.usage.devices.keys() == {"GPU-a"})
            assert sampler.usage.problem is None

    play(scenario, Driver())


def test_an_answer_does_not_wait_long_for_a_measurement(standin: StandIn) -> None:
    standin.say(CARD, hang=1)

    async def scenario(sampler: Sampler, engine: Engine) -> None:
        began = anyio.current_time()
        await sampler.fresh()
        assert anyio.current_time() < began + 2 * module.QUICK_S
        assert sampler.usage.devices == {}
        standin.say(CARD)
        await until(lambda: not sampler._asking._busy)
        await sampler.fresh()
        assert sampler.usage.devices.keys() == {"GPU-a"}

    play(scenario, Driver())


def test_a_driver_that_fails_says_why(standin: StandIn) -> None:
    standin.say(init="!9")

    async def scenario(sampler: Sampler, engine: Engine) -> None:
        await sampler.fresh()
        assert sampler.usage.problem == "the NVIDIA driver did not answer (Driver Not Loaded)"

    play(scenario, Driver())


def test_a_driver_that_cannot_be_closed_ends_nothing(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.say({**CARD, "used": GIB})
    tries = 0

    def close(self: Driver) -> None:
        nonlocal tries
        tries += 1
        raise OSError("the library is gone")

    monkeypatch.setattr(Driver, "close", close)

    async def scenario(sampler: Sampler, engine: Engine) -> None:
        for _ in range(2):
            before = tries
            with sampler.watching():
                await until(lambda: sampler.usage.measured_at is not None)
            await until(lambda before=before: tries > before)  # type: ignore[misc]

    play(scenario, Driver())


def test_without_a_gpu_no_driver_is_asked(standin: StandIn) -> None:
    async def scenario(sampler: Sampler, engine: Engine) -> None:
        opened = standin.calls("init")
        await sampler.fresh()
        assert (standin.calls("init"), sampler.usage.problem) == (opened, None)
        assert sampler.usage.measured_at is not None

    play(scenario, Driver(), STATE.model_copy(update={"devices": ()}))


def test_what_is_run_aside_returns_or_raises() -> None:
    async def main() -> None:
        aside = Aside("test")
        assert await aside.run(lambda: 4) == 4
        with pytest.raises(ZeroDivisionError):
            await aside.run(lambda: 1 // 0)
        assert await aside.run(lambda: None) is None

    anyio.run(main)
