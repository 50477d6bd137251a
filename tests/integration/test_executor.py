"""A pool as a `concurrent.futures.Executor`, with real kernels."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import itertools
import math
import os
import pickle
import signal
import sys
import textwrap
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from support import START_S, TIME_SCALE, Counter, assert_quiet, mark, pids, wait_until, within

import flyte_jupyter as flyte
from flyte_jupyter import errors
from flyte_jupyter.client import blocking
from flyte_jupyter.client import executor as executors
from flyte_jupyter.client.executor import BrokenPool, Line, LineCall, PoolExecutor, SubmittedTarget
from flyte_jupyter.client.task_target import target_of

pytestmark = pytest.mark.kernel

wide = flyte.TaskEnvironment("wide-executor", reusable=flyte.ReusePolicy(replicas=2, concurrency=4))
single = flyte.TaskEnvironment("single-executor", reusable=flyte.ReusePolicy(replicas=(1, 1)))


@pytest.fixture(scope="module", autouse=True)
def _pools(shared_broker: Path) -> Iterator[None]:
    for environment in (wide, single):
        flyte.pool(environment).warm()
    yield
    for environment in (wide, single):
        flyte.pool(environment).stop(force=True)


@pytest.fixture(autouse=True)
def _quiet(_pools: None) -> Iterator[None]:
    yield
    assert_quiet(wide, single, timeout=START_S)


@pytest.fixture
def executor() -> Iterator[PoolExecutor]:
    with flyte.pool(wide).executor() as executor:
        yield executor


@pytest.fixture
def one_slot() -> Iterator[PoolExecutor]:
    with flyte.pool(single).executor() as executor:
        yield executor


# --- what is submitted


def double(x: int) -> int:
    return 2 * x


async def triple(x: int) -> int:
    await asyncio.sleep(0)
    return 3 * x


@wide.task
async def hold_async(held: Any) -> Any:
    return held


@wide.task
async def quadruple(x: int) -> int:
    return 4 * x


def fail(text: str) -> None:
    raise ValueError(text)


def say(text: str) -> None:
    print(text)


def nap(path: str, seconds: float) -> str:
    mark(path, "start")
    time.sleep(seconds)
    mark(path, "end")
    return path


async def nap_async(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- submit


def test_any_callable_can_be_submitted(executor: PoolExecutor) -> None:
    factor = 5
    submitted = [
        executor.submit(double, 2),
        executor.submit(double, x=2),
        executor.submit(triple, 2),  # type: ignore[list-item]
        executor.submit(quadruple, 2),  # type: ignore[list-item]
        executor.submit(quadruple.func, 2),  # type: ignore[list-item]
        executor.submit(lambda x: factor * x, 2),
        executor.submit(functools.partial(pow, 2), 3),
        executor.submit(functools.partial(triple, 4)),  # type: ignore[list-item]
        executor.submit("abc".upper),  # type: ignore[list-item]
    ]
    assert [future.result(30) for future in submitted] == [4, 4, 6, 8, 8, 10, 8, 12, "ABC"]
    assert executor.submit(math.gcd, 4, 6).result(30) == 2
    assert isinstance(executor, Executor)
    with pytest.raises(TypeError, match="takes a callable"):
        executor.submit(3)  # type: ignore[arg-type]


def test_the_tasks_own_error_is_the_futures(executor: PoolExecutor) -> None:
    future = executor.submit(fail, "wrong")
    with pytest.raises(ValueError, match="wrong"):
        future.result(30)
    assert isinstance(future.exception(), errors.RuntimeUserError)


def test_what_cannot_be_sent_is_the_futures_error(executor: PoolExecutor) -> None:
    with pytest.raises(errors.ArgumentNotSerializable):
        executor.submit(double, threading.Lock()).result(30)  # type: ignore[arg-type]


def test_a_callable_is_looked_at_once_for_many_calls(executor: PoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    factor = 3
    made: list[object] = []
    make = SubmittedTarget.__init__
    monkeypatch.setattr(executors, "RECENT_S", START_S)  # however slow the machine is
    monkeypatch.setattr(SubmittedTarget, "__init__", lambda self, *args: (made.append(args[0]), make(self, *args))[1])
    wait([executor.submit(functools.partial(double), x) for x in range(50)])
    for x in range(5):
        assert executor.submit(double, x).result(30) == 2 * x
    assert made == [double]
    assert list(executor.map(lambda x: factor * x, range(100))) == [3 * x for x in range(100)]
    assert len(made) == 2
    for closure in (lambda x: factor * x, functools.partial(double).func, "abc".upper):
        before = len(made)
        args = () if closure == "abc".upper else (1,)
        for _ in range(5):
            executor.submit(closure, *args).result(30)  # type: ignore[operator]
        assert len(made) - before <= 1


# --- what is let go


class Held:
    """Something whose end can be seen, on the side that made it."""

    def method(self) -> str:
        return "called"

    def raising(self) -> None:
        raise ValueError("wrong")

    def __call__(self) -> str:
        return "called"


def hold(held: Held) -> Held:
    return held


def fail_with(held: Held) -> None:
    raise ValueError(held)


def closing_over(held: Held) -> Callable[[], str]:
    def closure() -> str:
        return held.method()

    return closure


SUBMITTED: dict[str, Callable[[Executor, Held], Future[Any]]] = {
    "a bound method": lambda executor, held: executor.submit(held.method),
    "an instance": lambda executor, held: executor.submit(held),
    "a closure": lambda executor, held: executor.submit(closing_over(held)),
    "a default": lambda executor, held: executor.submit(lambda held=held: held.method()),
    "a partial": lambda executor, held: executor.submit(functools.partial(hold, held)),
    "an argument": lambda executor, held: executor.submit(hold, held),
    "a keyword argument": lambda executor, held: executor.submit(hold, held=held),
    "a task's argument": lambda executor, held: executor.submit(hold_async, held),
    "one that raises": lambda executor, held: executor.submit(held.raising),
    "an argument that is raised": lambda executor, held: executor.submit(fail_with, held),
}


@pytest.mark.parametrize("what", SUBMITTED)
def test_nothing_is_kept_alive_once_its_future_is_done(what: str, executor: PoolExecutor) -> None:
    held = Held()
    gone = weakref.ref(held)
    gc.disable()  # nothing may wait for the collector
    try:
        future = SUBMITTED[what](executor, held)
        del held
        future.exception(30)
        wait_until(lambda: gone() is None, what=lambda: f"held by {gc.get_referrers(gone())}")
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["cancelled", "not sent", "not captured", "its replica died"])
def test_nothing_is_kept_alive_by_a_call_that_had_no_outcome(how: str, one_slot: PoolExecutor, tmp_path: Path) -> None:
    held = Held()
    gone = weakref.ref(held)
    gc.disable()
    try:
        if how == "cancelled":
            runs = Counter(tmp_path / "runs")
            first = one_slot.submit(nap, runs.path, 0.3)
            future: Future[Any] = one_slot.submit(hold, held)
            runs.wait()
            assert future.cancel()
            first.result(30)
        elif how == "not sent":
            future = one_slot.submit(lambda *_: None, held, threading.Lock())
            wait([future])
        elif how == "not captured":
            lock = threading.Lock()
            future = one_slot.submit(lambda held: lock, held)
            wait([future])
            del lock
        else:
            future = one_slot.submit(lambda _: die(), held)
            wait([future])
        del future, held
        wait_until(lambda: gone() is None, what=lambda: f"held by {gc.get_referrers(gone())}")
    finally:
        gc.enable()


def test_a_result_lives_as_long_as_its_future(executor: PoolExecutor) -> None:
    gc.disable()
    try:
        future = executor.submit(Held)
        gone = weakref.ref(future.result(30))
        assert gone() is not None
        del future
        wait_until(lambda: gone() is None, what=lambda: f"held by {gc.get_referrers(gone())}")
        for each in executor.map(hold, [Held(), Held(), Held()]):
            yielded = weakref.ref(each)
            del each
            wait_until(lambda gone=yielded: gone() is None)  # type: ignore[misc]
    finally:
        gc.enable()


def test_a_function_that_its_module_no_longer_has_is_let_go(executor: PoolExecutor) -> None:
    module = types.ModuleType("of_a_test")
    sys.modules["of_a_test"] = module
    try:
        exec("def function(): return 1", vars(module))
        assert executor.submit(module.function).result(30) == 1
        gone = weakref.ref(module.function)
        exec("def function(): return 2", vars(module))
        assert executor.submit(module.function).result(30) == 2
        # What was captured of a module refers to itself.
        wait_until(lambda: gc.collect() >= 0 and gone() is None)
    finally:
        del sys.modules["of_a_test"]


def test_futures_work_with_as_completed(executor: PoolExecutor) -> None:
    futures = {executor.submit(double, x): x for x in range(30)}
    assert {futures[future]: future.result() for future in as_completed(futures, 30)} == {x: 2 * x for x in range(30)}


def test_what_a_submitted_function_prints_appears_here(
    executor: PoolExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    executor.submit(say, "hello").result(30)
    assert capsys.readouterr().out == "hello\n"


def test_as_many_run_as_the_pool_has_slots(executor: PoolExecutor) -> None:
    with within(2.0):
        replicas = [future.result(30) for future in [executor.submit(nap_async, 0.4) for _ in range(8)]]
    assert len(set(replicas)) == 2


def test_an_executor_says_how_many_workers_it_has_as_those_of_the_standard_library(executor: PoolExecutor) -> None:
    assert executor._max_workers == 8
    assert flyte.pool(single).executor()._max_workers == 1


# --- retries


class MustNotBeRepeated(errors.NonRecoverableError):
    """A user's own."""


async def fail_again(path: str, cls: type[Exception]) -> None:
    mark(path)
    raise cls("wrong")


repeated = wide.task(retries=2)(fail_again)
REPEATS: list[tuple[type[Exception], int]] = [
    (ValueError, 3),
    (errors.RuntimeUserError, 3),
    (errors.NonRecoverableError, 1),
    (MustNotBeRepeated, 1),
]


@pytest.mark.parametrize(("cls", "times"), REPEATS)
@pytest.mark.parametrize("way", ["task", "awaited task", "map", "submit", "executor's map"])
def test_an_error_that_must_not_be_repeated_runs_once_everywhere(
    way: str, cls: type[Exception], times: int, executor: PoolExecutor, tmp_path: Path
) -> None:
    runs = Counter(tmp_path / "runs")
    made: Any = functools.partial(cls, "Code") if cls is errors.RuntimeUserError else cls
    ways: dict[str, Callable[[], object]] = {
        "task": lambda: asyncio.run(repeated(runs.path, made)),
        "awaited task": lambda: asyncio.run(repeated.aio(runs.path, made)),
        "map": lambda: list(flyte.map(repeated, [runs.path], [made], return_exceptions=False)),
        "submit": lambda: executor.submit(repeated, runs.path, made).result(30),
        "executor's map": lambda: list(executor.map(repeated, [runs.path], [made])),
    }
    with pytest.raises(ValueError if cls is ValueError else errors.RuntimeUserError):
        ways[way]()
    assert len(runs) == times


# --- cancel


def test_a_queued_future_is_cancelled_and_never_starts(one_slot: PoolExecutor, tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    first = one_slot.submit(nap, runs.path, 1.0 * TIME_SCALE)
    queued = [one_slot.submit(nap, runs.path, 0.0) for _ in range(3)]
    runs.wait(1)
    assert first.running()
    assert not first.cancel()
    assert not queued[0].running()
    assert queued[0].cancel()
    assert queued[2].cancel()
    assert {queued[0], queued[2]} <= wait(queued, 0.3).done
    with pytest.raises(CancelledError):
        queued[0].result()
    assert (first.result(30), queued[1].result(30)) == (runs.path, runs.path)
    assert runs.lines() == ["start", "end"] * 2


def test_a_future_without_a_lease_can_be_cancelled(one_slot: PoolExecutor, tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    with flyte.pool(single).executor() as other:  # each puts its own call to the broker
        first = one_slot.submit(nap, runs.path, 1.0 * TIME_SCALE)
        runs.wait(1)
        waiting = other.submit(nap, runs.path, 0.0)
        time.sleep(0.1)
        assert not waiting.running()
        assert waiting.cancel()
        assert waiting in wait([waiting], 2).done
        assert first.result(30)
        time.sleep(0.1)
        assert runs.lines() == ["start", "end"]


# --- shutdown


def test_after_shutdown_nothing_is_accepted() -> None:
    executor = flyte.pool(wide).executor()
    future = executor.submit(nap_async, 0.2)
    executor.shutdown()
    assert future.done()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(double, 1)
    executor.shutdown()
    flyte.pool(wide).executor().shutdown()


def test_shutdown_cancels_what_is_queued_if_told_so(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    executor = flyte.pool(single).executor()
    first = executor.submit(nap, runs.path, 0.5)
    rest = [executor.submit(nap, runs.path, 0.0) for _ in range(5)]
    runs.wait(1)
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in rest)
    assert not first.done()
    executor.shutdown()
    assert first.result(0) == runs.path
    assert len(runs) == 2


def test_what_has_a_free_slot_is_not_cancelled_by_a_shutdown_that_follows_at_once(tmp_path: Path) -> None:
    executor = flyte.pool(wide).executor()
    futures = [executor.submit(nap_async, 0.2) for _ in range(40)]
    executor.shutdown(cancel_futures=True)
    assert [future.cancelled() for future in futures] == [False] * 8 + [True] * 32
    assert all(future.result(0) for future in futures[:8])


def test_ctrl_c_in_the_with_block_stops_what_runs(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    futures: list[Future[str]] = []

    def cell() -> None:
        with flyte.pool(single).executor() as executor:
            futures.extend(executor.submit(nap, runs.path, 30.0) for _ in range(3))
            runs.wait(1)
            raise KeyboardInterrupt

    with within(3.0), pytest.raises(KeyboardInterrupt):
        cell()
    assert isinstance(futures[0].exception(0), errors.TaskCancelled)
    assert futures[1].cancelled()
    assert futures[2].cancelled()


# --- broken


def test_a_dead_replica_breaks_its_future_and_no_other(one_slot: PoolExecutor) -> None:
    dead = one_slot.submit(die)
    after = one_slot.submit(double, 1)
    error = dead.exception(30)
    assert isinstance(error, BrokenPool)
    assert isinstance(error, errors.ReplicaDied)
    assert isinstance(error, BrokenExecutor)
    assert isinstance(error, BrokenProcessPool)  # which this module has imported
    assert type(pickle.loads(pickle.dumps(error))) is BrokenPool
    assert str(copy.copy(error)) == str(error)
    assert error.signal == signal.SIGKILL
    assert after.result(30) == 2
    assert one_slot.submit(double, 2).result(30) == 4


# --- asyncio


def test_run_in_executor(executor: PoolExecutor) -> None:
    async def cell() -> list[int]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, double, x) for x in range(10)]
        with pytest.raises(ValueError, match="wrong"):
            await loop.run_in_executor(executor, fail, "wrong")
        return list(await asyncio.gather(*calls))

    assert asyncio.run(cell()) == [2 * x for x in range(10)]


# --- map


def test_map_keeps_the_order(executor: PoolExecutor) -> None:
    assert list(executor.map(double, range(30))) == [2 * x for x in range(30)]
    assert list(executor.map(pow, [2, 3, 4], itertools.count(1))) == [2, 9, 64]
    assert list(executor.map(double, range(10), chunksize=4)) == [2 * x for x in range(10)]
    assert list(executor.map(triple, range(10), chunksize=4)) == [3 * x for x in range(10)]
    assert list(executor.map(quadruple, range(10), chunksize=4)) == [4 * x for x in range(10)]
    assert list(executor.map(double, [])) == []


def test_map_raises_at_the_place_of_the_error(executor: PoolExecutor) -> None:
    results = executor.map(fail, ["one", "two"])
    with pytest.raises(ValueError, match="one"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_times_out(executor: PoolExecutor) -> None:
    results = executor.map(nap_async, [0.0, 3.0], timeout=2.0)
    assert next(results)
    with pytest.raises(TimeoutError):
        next(results)


def test_map_with_a_buffer_reads_as_needed(executor: PoolExecutor) -> None:
    read = itertools.count()
    items = (next(read) for _ in range(10**6))
    results = executor.map(double, items, buffersize=8)
    assert [next(results) for _ in range(50)] == [2 * x for x in range(50)]
    assert next(read) <= 60
    results.close()  # type: ignore[attr-defined]
    for bad in (0, -1):
        with pytest.raises(ValueError, match="buffersize"):
            executor.map(double, [], buffersize=bad)
    with pytest.raises(TypeError, match="buffersize"):
        executor.map(double, [], buffersize="8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(double, [], chunksize=0)


def test_many_threads_submit(executor: PoolExecutor) -> None:
    found: list[int] = []

    def submit_some(first: int) -> None:
        found.extend(executor.map(double, range(first, first + 20)))

    threads = [threading.Thread(target=submit_some, args=(20 * index,)) for index in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: not any(thread.is_alive() for thread in threads), 30)
    assert sorted(found) == [2 * x for x in range(100)]


# --- in a notebook


def test_output_goes_to_the_cell_that_asked_for_it(tmp_path: Path) -> None:
    from jupyter_client.manager import start_new_kernel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jupyter_client itself
        manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    cells: dict[str, str] = {}

    def run(code: str) -> str:
        cell: str = client.execute(textwrap.dedent(code))
        while True:
            message = client.get_iopub_msg(timeout=60)
            content, parent = message["content"], message["parent_header"].get("msg_id", "none")
            if message["msg_type"] == "stream":
                cells[parent] = cells.get(parent, "") + content["text"]
            elif message["msg_type"] == "error":
                cells[parent] = "\n".join(content["traceback"])
            elif message["msg_type"] == "status" and parent == cell and content["execution_state"] == "idle":
                return cell

    try:
        first = run(
            """
            import time
            import flyte_jupyter as flyte
            env = flyte.TaskEnvironment("notebook-executor", reusable=flyte.ReusePolicy(2))
            executor = flyte.pool(env).executor()
            prefix = "item"

            @flyte.trace
            def text(x):
                return f"{prefix} {x}"

            @env.task
            def say(x: int) -> None:
                print(text(x))

            @env.task
            def late(x: int) -> None:
                time.sleep(0.5)
                print("late")

            say(0)
            future = executor.submit(late, 1)
            """
        )
        second = run("future.result(); [f.result() for f in [executor.submit(lambda x: print(x + 1), 1)]]")
        third = run("list(flyte.map(say, range(3)))")
        fourth = run("[r async for r in flyte.map.aio(say, range(2), concurrency=1)]")
        run("flyte.pool(env).stop(force=True)")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert cells[first] == "item 0\nlate\n"
    assert cells[second] == "2\n"
    assert sorted(cells[third].splitlines()) == ["item 0", "item 1", "item 2"]
    assert cells[fourth] == "item 0\nitem 1\n"


def test_a_future_cancelled_just_when_its_turn_comes_does_not_hold_up_the_shutdown(
    tmp_path: Path, one_slot: PoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Counter(tmp_path / "runs")
    first = one_slot.submit(nap, runs.path, 0.3)
    runs.wait()
    late = one_slot.submit(nap, runs.path, 0)
    with monkeypatch.context() as patch:
        patch.setattr(late, "_invoke_callbacks", lambda: None)  # this thread gets no further for a moment
        assert late.cancel()
        assert one_slot.submit(double, 2).result(START_S) == 4  # its turn came before this one's
    late._invoke_callbacks()  # type: ignore[attr-defined]
    first.result(START_S)
    thread = threading.Thread(target=one_slot.shutdown, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


def test_calls_may_be_added_while_others_are_aborted() -> None:
    loop = asyncio.new_event_loop()
    line = Line(loop)

    class Call(LineCall):
        over = True

        @property
        def index(self) -> int:  # as another thread may at any time
            line.outstanding[len(line.outstanding)] = self
            return 1

    line.outstanding[0] = Call.__new__(Call)
    line._abort()
    loop.close()


@wide.task
async def weigh(data: bytes) -> int:
    return len(data)


def test_an_interrupt_while_a_call_is_written_does_not_end_a_busy_replica(tmp_path: Path) -> None:
    runs = Counter(tmp_path / "runs")
    before = pids(wide)
    with flyte.pool(wide).executor() as executor:
        naps = [executor.submit(nap, runs.path, 6.5) for _ in range(2)]  # each blocks its replica's loop
        runs.wait(2)
        timer = threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            blocking.call(target_of(weigh), (os.urandom(900_000),), {})
        assert [each.result() for each in naps] == [runs.path] * 2
    assert pids(wide) == before
