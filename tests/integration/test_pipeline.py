"""Many short calls: sent ahead of their turn, taken back when one takes long, none lost and none run twice."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import signal
import threading
import time
from collections import Counter as Count
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from support import START_S, Counter, OwnBroker, assert_quiet, attempt, mark, pids, wait_dead, wait_until, within

import flyte_jupyter as flyte
from flyte_jupyter import errors
from flyte_jupyter.client import broker, stream
from flyte_jupyter.client.stream import Stream
from flyte_jupyter.client.task_target import target_of
from flyte_jupyter.core.frames import Frame

pytestmark = pytest.mark.kernel

MANY = 600

two = flyte.TaskEnvironment("pipelined", reusable=flyte.ReusePolicy(replicas=2))
one = flyte.TaskEnvironment("pipelined-one", reusable=flyte.ReusePolicy(replicas=1))


@pytest.fixture(scope="module", autouse=True)
def _pools(shared_broker: Path) -> Iterator[None]:
    for environment in (two, one):
        flyte.pool(environment).warm()
    yield
    for environment in (two, one):
        flyte.pool(environment).stop(force=True)


@pytest.fixture(autouse=True)
def _quiet(_pools: None) -> Iterator[None]:
    yield
    assert_quiet(two, one, timeout=START_S)


@two.task
def echo(x: int) -> int:
    return x


@two.task
def waits_at(path: str, x: int, where: int) -> int:
    """Short for every item but one, which waits for all others."""
    if x == where:
        mark(path, f"begin {x}")
        Counter(path).wait(MANY)
    mark(path, f"end {x}")
    return x


class Unreadable(errors.RuntimeUserError):
    def __init__(self) -> None:
        super().__init__("Unreadable", "text")

    def __str__(self) -> str:
        raise KeyError("no text")


@two.task
def raises_what_has_no_text(_: int = 0) -> None:
    raise Unreadable


@two.task
def long_at(x: int, where: int) -> int:
    """Short for every item but one."""
    if x == where:
        time.sleep(1.0)
    return x


@two.task
def dies_at(path: str, x: int, where: int) -> int:
    mark(path, str(x))
    if x == where:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@two.task
async def short(path: str, x: int) -> int:
    mark(path, str(x))
    return x


@one.task
def says(x: int) -> int:
    print(f"line {x}")
    return x


@one.task
def quick(path: str, x: int) -> int:
    mark(path, str(x))
    time.sleep(0.0005)
    return x


@one.task
def naps(path: str, seconds: float) -> None:
    mark(path)
    time.sleep(seconds)


@one.task
def falls_at(path: str, x: int, where: int) -> int:
    mark(path, str(x))
    if x == where:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@one.task(
    retries=flyte.RetryStrategy(count=3, backoff=flyte.Backoff(base=timedelta(seconds=30))),
    timeout=flyte.Timeout(deadline=1),
)
def fails_in_time() -> None:
    raise ValueError


@one.task
def who() -> str:
    return flyte.ctx().replica


def gather(task: flyte.Task[..., int], *rows: tuple[object, ...]) -> list[int]:
    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(task.aio(*row) for row in rows))

    return asyncio.run(all_of_them())


def test_thousands_of_short_calls_come_back_in_order() -> None:
    expected = list(range(3000))
    assert list(flyte.map(echo, range(3000))) == expected
    assert gather(echo, *((x,) for x in range(3000))) == expected
    with flyte.pool(two).executor() as executor:
        assert list(executor.map(echo, range(3000))) == expected


@pytest.mark.parametrize("where", [200, 203])
def test_a_long_call_does_not_keep_those_sent_behind_it(tmp_path: Path, where: int) -> None:
    runs = Counter(tmp_path / "runs")
    rows = [(runs.path, x, where) for x in range(MANY)]
    assert gather(waits_at, *rows) == list(range(MANY))
    lines = runs.lines()
    assert len(lines) == MANY + 1, "every call ran once"
    assert lines[-1] == f"end {where}", "all others ended while it ran"


def test_of_many_calls_on_a_replica_that_dies_one_fails_and_none_runs_twice(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    results = list(flyte.map(_at(dies_at, runs.path, where=300), range(700)))
    died = [x for x, result in enumerate(results) if isinstance(result, errors.ReplicaDied)]
    assert died == [300]
    assert [x for x in results if isinstance(x, int)] == [x for x in range(700) if x != 300]
    ran = Count(map(int, runs.lines()))
    assert ran == Count(range(700)), "a call that was behind the one that died ran elsewhere, and ran once"


def test_outcomes_that_came_before_a_death_count_even_if_they_are_read_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Counter(tmp_path / "runs")
    monkeypatch.setattr(stream, "AHEAD_S", 60.0)  # all are sent ahead, however slow the machine is

    async def after(death: int) -> int:
        wait_dead(death)  # and nobody has read an outcome
        return await falls_at.aio(runs.path, 20, 10)

    async def some() -> list[object]:
        await asyncio.gather(*(falls_at.aio(os.devnull, x, -1) for x in range(100)))
        death = os.pidfd_open(pids(one)[0])
        await who.aio()
        return await asyncio.gather(
            *(falls_at.aio(runs.path, x, 10) for x in range(20)), after(death), return_exceptions=True
        )

    results = asyncio.run(some())
    assert [x for x, result in enumerate(results) if isinstance(result, errors.ReplicaDied)] == [10]
    assert Count(map(int, runs.lines())) == Count(range(21))


def test_calls_sent_to_a_dead_replica_go_elsewhere(tmp_path: Path) -> None:
    async def some() -> list[object]:
        await asyncio.gather(*(quick.aio(os.devnull, x) for x in range(100)))
        [pid] = pids(one)
        death = os.pidfd_open(pid)
        daemon = broker.connect().broker_pid
        await who.aio()
        os.kill(daemon, signal.SIGSTOP)  # it would say at once that the lease is gone
        os.kill(pid, signal.SIGKILL)
        wait_dead(death)
        asyncio.get_running_loop().call_later(0.1, os.kill, daemon, signal.SIGCONT)
        return await asyncio.gather(*(quick.aio(os.devnull, x) for x in range(20)), return_exceptions=True)

    assert asyncio.run(some()) == list(range(20))


def _at(task: flyte.Task[..., int], path: str, where: int) -> object:
    return functools.partial(task, path, where=where)


def test_gathered_calls_that_are_cancelled_do_not_begin_any_more(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")

    async def some() -> None:
        calls = [asyncio.ensure_future(short.aio(runs.path, x)) for x in range(5000)]
        while len(runs) < 50:
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(some())
    assert_quiet(two, timeout=START_S)
    seen = len(runs)
    assert seen < 5000
    assert echo(7) == 7
    assert len(runs) == seen
    assert max(Count(runs.lines()).values()) == 1


def test_a_loop_of_short_calls_lets_other_threads_have_their_turn(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    answered: list[int] = []
    thread = threading.Thread(target=lambda: (who(), answered.append(len(runs))))

    async def many() -> None:
        calls = [asyncio.ensure_future(quick.aio(runs.path, x)) for x in range(3000)]
        while len(runs) < 100:
            await asyncio.sleep(0.001)
        thread.start()
        await asyncio.gather(*calls)

    asyncio.run(many())
    thread.join(30)
    assert answered
    assert answered[0] < 2000, "it did not have to wait for the end"


def test_output_of_calls_sent_ahead_stays_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(flyte.map(says, range(500))) == list(range(500))
    assert capsys.readouterr().out.splitlines() == [f"line {x}" for x in range(500)]


@pytest.mark.parametrize(
    "call",
    [
        raises_what_has_no_text,
        lambda: asyncio.run(asyncio.wait_for(raises_what_has_no_text.aio(), START_S)),
        lambda: list(flyte.map(raises_what_has_no_text, [0], return_exceptions=False)),
    ],
    ids=["call", "await", "map"],
)
def test_an_error_that_has_no_text_arrives_as_itself(call: Callable[[], object]) -> None:
    with pytest.raises(Unreadable):
        call()


def test_a_generator_without_end_is_read_as_needed() -> None:
    read = itertools.count()
    results = flyte.map(echo, read)
    with within(10.0):
        for _ in range(20_000):
            next(results)
    results.close()  # type: ignore[attr-defined]
    assert next(read) < 20_000 + 200


def test_leases_go_back_when_nobody_reads_on() -> None:
    results = flyte.map(echo, range(10**6))
    assert next(results) == 0
    wait_until(lambda: not _busy(two), START_S, "leases given back")
    assert next(results) == 1
    results.close()  # type: ignore[attr-defined]


def _busy(environment: flyte.TaskEnvironment) -> bool:
    view = flyte.pool(environment).status()
    return view is None or any(replica.leases for replica in view.replicas)


def test_output_that_cannot_be_shown_fails_its_call_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from flyte_jupyter.client import outputs

    def show(*_: object) -> None:
        raise ValueError("closed")

    async def some() -> list[object]:
        monkeypatch.setattr(outputs, "show", show)
        calls = [
            asyncio.ensure_future(says.aio(1)),
            *(asyncio.ensure_future(quick.aio(os.devnull, x)) for x in range(9)),
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    said, *rest = asyncio.run(some())
    assert isinstance(said, ValueError)
    assert rest == list(range(9))


def test_a_call_whose_code_cannot_be_sent_leaves_its_lease_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from flyte_jupyter.core.definitions import Closure

    def refuse(*_: object) -> object:
        raise ValueError("gone")

    @one.task
    def fresh() -> int:
        return 1

    async def both() -> tuple[object, object]:
        with monkeypatch.context() as patch:
            patch.setattr(Closure, "beyond", refuse)
            [failed] = await asyncio.gather(fresh.aio(), return_exceptions=True)
        return failed, await fresh.aio()

    with within(4.0):  # killing the replica of a call that does not end takes longer
        failed, value = asyncio.run(both())
    assert isinstance(failed, ValueError)
    assert value == 1


def test_calls_that_are_cancelled_together_leave_their_replica_alone(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    before = pids(one)

    async def rounds() -> None:
        for count in range(40):
            await asyncio.gather(*(naps.aio(runs.path, 0) for _ in range(30)))  # known as short: sent ahead
            ended = len(runs)
            calls = [asyncio.ensure_future(naps.aio(runs.path, 0.3 * (x == 0))) for x in range(12)]
            while len(runs) == ended:
                await asyncio.sleep(0)
            await asyncio.sleep(0.001 * (count % 25))
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    with within(30.0):
        asyncio.run(rounds())
        assert_quiet(one, timeout=START_S)
    assert pids(one) == before


def test_a_call_that_is_taken_back_need_not_be_known_to_its_replica(own_broker: OwnBroker) -> None:
    said = own_broker.run(
        """
        one = flyte.TaskEnvironment("one", reusable=flyte.ReusePolicy(replicas=1))

        @one.task
        def nap(x: object) -> int:
            time.sleep(x if isinstance(x, float) else 0)
            return 1

        class Known: pass
        class OnlyHere: pass

        async def main():
            await nap.aio(Known())
            await asyncio.gather(*(nap.aio(x) for x in range(300)))
            # Sent ahead with classes that the replica lacks, and taken back from behind the first.
            calls = [nap.aio(x) for x in (0.2, 1, OnlyHere(), 2, 0.2, 3)]
            return await asyncio.wait_for(asyncio.gather(*calls), 5)

        say(asyncio.run(main()))
        """,
        name="client",
    )
    assert said == [str([1] * 6)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("running", [1, 3])
def test_a_loop_that_is_closed_under_its_calls_keeps_no_slot(tmp_path: Path, running: int) -> None:
    runs = Counter(tmp_path / "runs")
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    calls = [loop.create_task(naps.aio(runs.path, 0.2)) for _ in range(running)]
    while len(runs) == 0:
        loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    asyncio.set_event_loop(None)
    wait_until(lambda: not _busy(one), 4.0, "leases given back")
    with within(4.0):
        assert who()
    for call in calls:
        call._log_destroy_pending = False  # type: ignore[attr-defined]


def test_a_map_with_a_limit_knows_how_long_its_calls_take() -> None:
    rows = itertools.repeat(0.03, 6)
    list(flyte.map(functools.partial(naps, os.devnull), rows, concurrency=1))
    pace = target_of(naps).pace
    assert pace is not None
    assert pace > 0.01


def test_short_calls_are_not_sent_behind_one_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    taken_back: list[int] = []
    original = Stream._taken_back

    def note(self: Stream, frame: Frame) -> None:
        taken_back.append(frame.flags)
        original(self, frame)

    async def some() -> None:
        await asyncio.gather(*(long_at.aio(x, -1) for x in range(300)))
        long = asyncio.ensure_future(long_at.aio(0, 0))
        while not long.done():
            await asyncio.gather(*(long_at.aio(x, 0) for x in range(1, 6)))

    monkeypatch.setattr(Stream, "_taken_back", note)
    asyncio.run(some())
    assert len(taken_back) < 5


def test_a_deadline_passes_while_the_next_attempt_is_waited_for() -> None:
    with within(4.0):
        assert isinstance(attempt(fails_in_time), errors.DeadlineExceededError)
    with within(4.0):
        assert isinstance(attempt(lambda: asyncio.run(fails_in_time.aio())), errors.DeadlineExceededError)
