"""run, map, group, ctx and trace with real kernels."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import START_S, Counter, OwnBroker, assert_quiet, interrupt, mark, within

import flyte_jupyter as flyte
from flyte_jupyter import errors
from flyte_jupyter.client.stream import AHEAD_CALLS

pytestmark = pytest.mark.kernel

wide = flyte.TaskEnvironment("wide-map", reusable=flyte.ReusePolicy(replicas=2, concurrency=4))
narrow = flyte.TaskEnvironment("narrow-map", reusable=flyte.ReusePolicy(replicas=2))


@pytest.fixture(scope="module", autouse=True)
def _pools(shared_broker: Path) -> Iterator[None]:
    for environment in (wide, narrow):
        flyte.pool(environment).warm()
    yield
    for environment in (wide, narrow):
        flyte.pool(environment).stop(force=True)


@pytest.fixture(autouse=True)
def _quiet(_pools: None) -> Iterator[None]:
    yield
    assert_quiet(wide, narrow, timeout=START_S)


# --- what tasks do


@wide.task
async def double(x: int) -> int:
    return 2 * x


@wide.task
async def slow_first(x: int) -> int:
    await asyncio.sleep(0.3 if x == 0 else 0)
    return x


@wide.task
async def nap(path: str, x: int, seconds: float = 30.0) -> int:
    mark(path, f"start {x}")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        mark(path, f"stop {x}")
        raise
    mark(path, f"end {x}")
    return x


@wide.task
async def odd_fails(path: str, x: int) -> int:
    mark(path, str(x))
    if x % 2:
        raise ValueError(f"odd: {x}")
    return x


@wide.task
async def say(x: int) -> None:
    print(f"item {x}", flush=True)


@wide.task
async def affine(x: int, slope: int = 1, shift: int = 0) -> int:
    return slope * x + shift


@wide.task
async def add_up(count: int) -> list[int]:
    return [result async for result in flyte.map.aio(double, range(count))]


@narrow.task
def triple(x: int) -> int:
    return 3 * x


@narrow.task
def pair(x: int) -> tuple[int, str]:
    return x, str(x)


@narrow.task
def fail(text: str) -> None:
    raise KeyError(text)


@narrow.task
def where() -> dict[str, object]:
    task = flyte.ctx()
    return {
        "inside": bool(task),
        "run": task.action.run_name,
        "group": task.group_data and task.group_data.name,
        "custom": dict(task.custom_context),
    }


@wide.task
async def where_nested(group: str = "") -> list[dict[str, object]]:
    here = flyte.ctx()
    found = {
        "run": here.action.run_name,
        "group": here.group_data and here.group_data.name,
        "custom": dict(here.custom_context),
    }
    if not group:
        return [found, await where.aio()]
    with flyte.group(group):
        assert flyte.ctx().group_data.name == group  # type: ignore[union-attr]
        return [found, await where.aio()]


@flyte.trace
async def step(x: int) -> int:
    return await triple.aio(x)


@wide.task
async def traced(x: int) -> str:
    try:
        await step(x)
    except errors.TraceDoesNotAllowNestedTasksError as error:
        return str(error)
    return "allowed"


@narrow.task
def logged() -> tuple[str | None, str | None, str]:
    from flyte_jupyter.kernel import logs

    logs.install()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("flyte").addHandler(handler)
    logging.getLogger("flyte").error("here")
    logging.getLogger("flyte").removeHandler(handler)
    return records[0].run_name, records[0].action_name, records[0].getMessage()  # type: ignore[attr-defined]


# --- run


def test_run_blocks_for_sync_and_async_tasks() -> None:
    assert flyte.run(triple, 2).outputs()[0] == 6
    assert flyte.run(double, x=2).outputs()[0] == 4
    assert repr(flyte.run(pair, 1).outputs()) == "o0=1, o1='1'"
    assert flyte.run(say, 1).outputs() == (None,)


def test_run_works_inside_a_running_loop_and_has_an_awaitable_form() -> None:
    async def cell() -> tuple[int, int]:
        blocking = flyte.run(double, 2)
        awaited = await flyte.run.aio(triple, 2)
        return blocking.outputs()[0], awaited.outputs()[0]

    assert asyncio.run(cell()) == (4, 6)


def test_run_raises_what_the_task_raises() -> None:
    with pytest.raises(KeyError, match="lost"):
        flyte.run(fail, "lost")


def test_run_name_group_and_custom_context_reach_the_task_and_those_it_calls() -> None:
    with flyte.group("g"):
        run = flyte.with_runcontext(name="sweep", custom_context={"user": "ann"}).run(where_nested)
    expected = {"run": "sweep", "group": "g", "custom": {"user": "ann"}}
    here, child = run.outputs()[0]
    assert here == expected
    assert child == {"inside": True, **expected}
    assert run.name == "sweep"


def test_a_group_inside_a_task_tags_what_it_calls() -> None:
    here, child = flyte.run(where_nested, "inner").outputs()[0]
    assert here["group"] is None
    assert child["group"] == "inner"
    assert here["run"] == child["run"] != "local"


def test_a_call_without_run_has_nothing_of_the_runs_before() -> None:
    flyte.with_runcontext(name="before", custom_context={"a": "b"}).run(where)
    assert where() == {"inside": True, "run": "local", "group": None, "custom": {}}


def test_a_task_called_in_a_trace_is_refused() -> None:
    assert "test_map" not in str(flyte.run(traced, 1).outputs()[0])
    assert "narrow-map.triple was called inside a traced function" in flyte.run(traced, 1).outputs()[0]


def test_log_records_name_the_run() -> None:
    run_name, action_name, text = flyte.with_runcontext(name="logs").run(logged).outputs()
    assert (run_name, text) == ("logs", "here")
    assert action_name is not None
    assert action_name.startswith("narrow-map.logged-")


# --- map


@pytest.mark.parametrize("task", [double, triple])
def test_map_keeps_the_order(task: flyte.Task[..., object]) -> None:
    factor = 2 if task is double else 3
    assert list(flyte.map(task, range(40))) == [factor * x for x in range(40)]


def test_a_slow_head_does_not_hold_up_the_others() -> None:
    assert list(flyte.map(slow_first, range(20))) == list(range(20))


def test_map_zips_and_takes_partials() -> None:
    assert list(flyte.map(affine, [1, 2, 3], itertools.count(10))) == [10, 22, 36]
    assert list(flyte.map(functools.partial(affine, 1, 2), [5])) == [7]
    assert list(flyte.map(functools.partial(affine, x=1, shift=2), [5, 6])) == [7, 8]


def test_map_is_asynchronous_too() -> None:
    async def cell() -> list[int]:
        return [result async for result in flyte.map.aio(double, range(40))]

    assert asyncio.run(cell()) == [2 * x for x in range(40)]
    assert flyte.run(add_up, 10).outputs()[0] == [2 * x for x in range(10)]


def test_a_generator_of_a_million_items_is_read_as_needed() -> None:
    read = itertools.count()

    def items() -> Iterator[int]:
        for x in range(10**6):
            next(read)
            yield x

    results = flyte.map(double, items())
    assert [next(results) for _ in range(50)] == [2 * x for x in range(50)]
    results.close()  # type: ignore[attr-defined]
    assert next(read) <= 50 + 2 * AHEAD_CALLS * 8


def test_nothing_runs_before_the_first_result_is_asked_for(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    results = flyte.map(functools.partial(odd_fails, runs.path), range(3))
    time.sleep(0.1)
    assert len(runs) == 0
    next(results)


def test_map_runs_as_many_as_the_pool_has_room_for_or_as_it_was_told(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    with within(3.0):
        assert list(flyte.map(functools.partial(nap, runs.path, seconds=0.3), range(8))) == list(range(8))
    lines = [line.split()[0] for line in runs.lines()]
    assert lines[:8] == ["start"] * 8
    few = Counter(tmp_path / "few")
    list(flyte.map(functools.partial(nap, few.path, seconds=0.05), range(6), concurrency=2))
    running = list(itertools.accumulate(1 if line.startswith("start") else -1 for line in few.lines()))
    assert max(running) == 2


def test_errors_are_yielded_in_place(tmp_path: Path) -> None:
    found = list(flyte.map(functools.partial(odd_fails, str(tmp_path / "runs")), range(4)))
    assert [found[0], found[2]] == [0, 2]
    assert [str(error) for error in (found[1], found[3])] == ["odd: 1", "odd: 3"]
    assert isinstance(found[1], ValueError)
    assert isinstance(found[1], errors.RuntimeUserError)


def test_the_first_error_is_raised_and_the_rest_cancelled(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    results = flyte.map(functools.partial(odd_fails, runs.path), range(10**6), return_exceptions=False)
    assert next(results) == 0
    with pytest.raises(ValueError, match="odd: 1"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    assert len(runs) <= 2 * AHEAD_CALLS * 8, "a million were to be read"


def test_the_first_error_is_raised_in_the_async_form(tmp_path: Path) -> None:
    seen = []

    async def cell() -> None:
        partial = functools.partial(odd_fails, str(tmp_path / "runs"))
        async for value in flyte.map.aio(partial, range(100), return_exceptions=False):
            seen.append(value)  # noqa: PERF401 - what came before the error

    with pytest.raises(ValueError, match="odd: 1"):
        asyncio.run(cell())
    assert seen == [0]


def test_closing_the_iterator_stops_what_runs(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    results = flyte.map(functools.partial(_nap_unless_first, runs.path), range(20))
    assert next(results) == 0
    runs.wait(2)
    with within(2.0):
        results.close()  # type: ignore[attr-defined]


@wide.task
async def _nap_unless_first(path: str, x: int) -> int:
    if x:
        return int(await nap.forward(path, x))
    while len(Counter(Path(path))) < 2:  # as long as the first result is not there, the map reads on
        await asyncio.sleep(0.01)
    return x


def test_leaving_the_async_loop_stops_what_runs(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")

    async def cell() -> None:
        results = flyte.map.aio(functools.partial(_nap_unless_first, runs.path), range(20))
        async for result in results:
            assert result == 0
            break
        await results.aclose()  # type: ignore[attr-defined]

    asyncio.run(cell())
    assert_quiet(wide, timeout=START_S)
    lines = [line.split() for line in runs.lines()]
    started = {x for what, x in lines if what == "start"}
    assert started
    assert {x for what, x in lines if what == "stop"} == started


def test_what_mapped_tasks_print_appears_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(flyte.map(say, range(5))) == [None] * 5
    assert sorted(capsys.readouterr().out.split("\n")[:-1]) == [f"item {x}" for x in range(5)]


def test_a_map_works_in_a_forked_child() -> None:
    list(flyte.map(double, [1]))
    threads = {thread.name for thread in threading.enumerate()}
    assert "flyte_jupyter-map" in threads
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, repr(list(flyte.map(double, [1, 2, 3]))).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    assert said == b"[2, 4, 6]"
    assert list(flyte.map(double, [1])) == [2]


def test_ctrl_c_in_a_map_stops_the_remote_work(own_broker: OwnBroker, tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    script = own_broker.start(
        f"""
        env = flyte.TaskEnvironment("interrupted", reusable=flyte.ReusePolicy(replicas=(1, 1), concurrency=2))

        @env.task
        async def nap(x: int) -> None:
            mark({runs.path!r}, "start")
            try:
                await asyncio.sleep(60)
            finally:
                mark({runs.path!r}, "stop")

        try:
            list(flyte.map(nap, range(5)))
        except KeyboardInterrupt:
            say("interrupted")
        """,
        name="mapping",
    )
    runs.wait(2)
    interrupt(script)
    own_broker.wait_said("mapping")
    assert sorted(runs.wait(4)) == ["start", "start", "stop", "stop"]
    assert script.wait(10) == 0
