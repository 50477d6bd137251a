"""Where a task dies, hangs or misbehaves, and what its caller must see: the crash table, with real kernels."""

from __future__ import annotations

import asyncio
import ctypes
import getpass
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import (
    START_S,
    TIME_SCALE,
    Counter,
    OwnBroker,
    assert_quiet,
    attempt,
    interrupt,
    mark,
    open_files,
    pids,
    view_of,
    wait_until,
    whole_text,
    within,
)

import flyte_jupyter as flyte
from flyte_jupyter import errors, memory
from flyte_jupyter.client import broker
from flyte_jupyter.client.leases import LeaseGroup
from flyte_jupyter.core import call as life

pytestmark = pytest.mark.kernel

pair = flyte.TaskEnvironment("pair", reusable=flyte.ReusePolicy(replicas=2))
wide = flyte.TaskEnvironment("wide", reusable=flyte.ReusePolicy(replicas=(1, 1), concurrency=5))
single = flyte.TaskEnvironment("single", reusable=flyte.ReusePolicy(replicas=(1, 1)))


@pytest.fixture(autouse=True)
def _always(shared_broker: Path) -> Iterator[None]:
    """Warm before, quiet after: no test may take anything from the next one."""
    for environment in (pair, wide, single):
        flyte.pool(environment).warm()
    yield
    assert_quiet(pair, wide, single, timeout=START_S)


# --- what tasks do


def die(how: str, ran: str) -> None:
    mark(ran, str(time.monotonic()))
    if how == "kill -9":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    elif how == "os._exit(137)":
        os._exit(137)
    elif how == "os._exit(0)":
        os._exit(0)
    elif how == "segfault":
        ctypes.string_at(0)
    else:
        os.abort()


@pair.task
def dies(how: str, ran: str) -> None:
    die(how, ran)


@pair.task
async def dies_async(how: str, ran: str) -> None:
    await asyncio.sleep(0)
    die(how, ran)


@pair.task
def bystander(seconds: float, ran: str) -> int:
    mark(ran)
    time.sleep(seconds)
    return os.getpid()


@pair.task
def pid() -> int:
    return os.getpid()


@single.task
def single_pid() -> int:
    return os.getpid()


@single.task
async def single_async_pid() -> int:
    return os.getpid()


@wide.task
async def wide_pid() -> int:
    return os.getpid()


# --- the process dies under its task


@pytest.mark.parametrize("task", [dies, dies_async], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("how", "signal_number", "exit_code", "says"),
    [
        ("kill -9", signal.SIGKILL, None, "signal 9, possibly the system's out-of-memory killer"),
        ("os._exit(137)", None, 137, "exit code 137, possibly the system's out-of-memory killer"),
        ("os._exit(0)", None, 0, "exit code 0"),
        ("segfault", signal.SIGSEGV, None, "SIGSEGV"),
        ("abort", signal.SIGABRT, None, "SIGABRT"),
    ],
)
def test_a_task_whose_replica_dies_says_so_and_hurts_nobody_else(
    task: Any, how: str, signal_number: int | None, exit_code: int | None, says: str, tmp_path: Path
) -> None:
    ran, beside = Counter(tmp_path / "ran"), Counter(tmp_path / "beside")
    with ThreadPoolExecutor(3) as threads:
        innocent = threads.submit(bystander, 0.5, beside.path)
        beside.wait()
        victim = threads.submit(attempt, lambda: run(task, how, ran.path))
        queued = threads.submit(bystander, 0.0, beside.path)
        error = victim.result(START_S)
        seen = time.monotonic()
        assert innocent.result(START_S) > 0
        assert queued.result(START_S) > 0
    assert isinstance(error, errors.ReplicaDied)
    assert len(ran) == 1, "the body ran once"
    assert seen - float(ran.lines()[0]) <= 1.0 * TIME_SCALE
    assert (error.signal, error.exit_code, error.attempt) == (signal_number, exit_code, 0)
    assert error.task == task.name
    assert re.fullmatch(r"pair\[\d\]", error.replica)
    text = whole_text(error)
    assert task.name in text
    assert error.replica in text
    assert says in text
    assert "may have had side effects" in text
    assert "retries=1" in text
    if how == "segfault":
        assert "Fatal Python error: Segmentation fault" in error.log_tail
        assert "in die" in error.log_tail
    with within(START_S):
        assert pid() > 0
    wait_until(lambda: len(set(pids(pair))) == 2, START_S, "the pool is complete again")


def run(task: Any, *args: Any) -> Any:
    value = task(*args)
    return asyncio.run(_await(value)) if asyncio.iscoroutine(value) else value


async def _await(value: Any) -> Any:
    return await value


def test_other_async_tasks_of_a_dying_replica_fail_with_it_and_the_queue_goes_on(tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")

    async def all_of_it() -> list[Any]:
        beside = [asyncio.ensure_future(wide_sleep(30, ran.path)) for _ in range(4)]
        while len(ran) < 4:
            await asyncio.sleep(0.01)
        victim = asyncio.ensure_future(wide_dies(0.2))
        await asyncio.sleep(0.05)
        queued = [asyncio.ensure_future(wide_pid()) for _ in range(3)]
        return await asyncio.gather(*beside, victim, *queued, return_exceptions=True)

    *dead, one, two, three = asyncio.run(all_of_it())
    assert [type(error) for error in dead] == [errors.ReplicaDied] * 5
    assert isinstance(one, int)
    assert one == two == three
    assert len(ran) == 4


@wide.task
async def wide_sleep(seconds: float, ran: str) -> int:
    mark(ran)
    await asyncio.sleep(seconds)
    return os.getpid()


@wide.task
async def wide_dies(after: float) -> None:
    await asyncio.sleep(after)
    os._exit(1)


# --- an idle replica dies


def test_the_death_of_an_idle_replica_is_not_noticed() -> None:
    for _ in range(3):
        before = single_pid()
        os.kill(before, signal.SIGKILL)
        assert single_pid() != before  # at once, on the lease that lingers
    before = single_pid()
    time.sleep(0.2)  # the lease has been given back
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: before not in pids(single))
    assert asyncio.run(_await(single_async_pid())) != before


def test_a_request_that_is_withdrawn_while_it_is_being_sent_is_released_after_it() -> None:
    log: list[tuple[str, str]] = []

    class Connection:
        def listen(self, lease: str, listener: LeaseGroup) -> None:
            listener.withdraw(listener.of(None)[0])  # another thread, at the worst moment

        def send(self, message: Any) -> None:
            log.append((message.type, message.lease))

        def release(self, lease: str) -> None:
            log.append(("release", lease))

    LeaseGroup(Connection(), "pool", None, "run").ask("task")  # type: ignore[arg-type]
    [first, (kind, lease), last] = log
    assert (kind, last) == ("acquire", first)
    assert first == ("release", lease)


@pytest.mark.parametrize("round_", range(4))
def test_a_killed_replica_among_many_callers_costs_no_call(round_: int) -> None:
    victim = pids(pair)[round_ % 2]
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(pid) for _ in range(40)]
        os.kill(victim, signal.SIGKILL)
        calls += [threads.submit(pid) for _ in range(40)]
        outcomes = [call.exception(START_S) for call in calls]
    # The one that was being run there may fail, by name; no other.
    assert sum(error is not None for error in outcomes) <= 1
    assert all(error is None or isinstance(error, errors.ReplicaDied) for error in outcomes)


# --- retries


@pair.task(retries=2)
def dies_twice(ran: str) -> tuple[int, int]:
    mark(ran, str(flyte.ctx().attempt_number))
    if len(Path(ran).read_text().splitlines()) < 3:
        os._exit(5)
    return flyte.ctx().attempt_number, os.getpid()


def test_a_task_that_asked_for_retries_is_run_again_after_a_death(tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")
    number, where = dies_twice(ran.path)
    assert number == 2
    assert ran.lines() == ["0", "1", "2"]
    assert where in pids(pair)


@pair.task(retries=1)
def dies_always(ran: str) -> None:
    mark(ran)
    os._exit(5)


def test_after_the_last_retry_the_last_death_is_the_error(tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")
    error = attempt(dies_always, ran.path)
    assert isinstance(error, errors.ReplicaDied)
    assert (error.exit_code, error.attempt, len(ran)) == (5, 1, 2)


# --- exceptions that are not errors


@single.task
def raises_exit(how: str, ran: str) -> None:
    mark(ran)
    if how == "sys.exit(3)":
        sys.exit(3)
    elif how == "exit()":
        exit()  # noqa: PLR1722
    elif how == "quit()":
        quit()  # noqa: PLR1722
    elif how == "KeyboardInterrupt":
        raise KeyboardInterrupt
    elif how == "GeneratorExit":
        raise GeneratorExit
    raise BaseException("bare")


@single.task
async def raises_exit_async(how: str, ran: str) -> None:
    await asyncio.sleep(0)
    raises_exit.forward(how, ran)


@pytest.mark.parametrize("task", [raises_exit, raises_exit_async], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("sys.exit(3)", "SystemExit"),
        ("exit()", "SystemExit"),
        ("quit()", "SystemExit"),
        ("KeyboardInterrupt", "KeyboardInterrupt"),
        ("GeneratorExit", "GeneratorExit"),
        ("BaseException", "BaseException"),
    ],
)
def test_a_task_that_tries_to_leave_fails_alone(task: Any, how: str, code: str, tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")
    before = single_pid()
    with within(1):
        error = attempt(run, task, how, ran.path)
    assert isinstance(error, errors.RuntimeUserError)
    assert error.code == code
    assert task.name in whole_text(error)
    assert len(ran) == 1
    assert single_pid() == before


@single.task
def raises_os_error(kind: str, ran: str) -> None:
    mark(ran)
    raise {"missing": FileNotFoundError, "late": TimeoutError, "reset": ConnectionResetError, "fd": OSError}[kind](
        2, "of the task"
    )


@pytest.mark.parametrize("aio", [False, True], ids=["sync", "aio"])
@pytest.mark.parametrize(
    ("kind", "cls"),
    [("missing", FileNotFoundError), ("late", TimeoutError), ("reset", ConnectionResetError), ("fd", OSError)],
)
def test_the_tasks_own_os_error_is_not_taken_for_ours(
    kind: str, cls: type[Exception], aio: bool, tmp_path: Path
) -> None:
    ran = Counter(tmp_path / "ran")
    error = attempt(run, raises_os_error.aio if aio else raises_os_error, kind, ran.path)
    assert isinstance(error, cls)
    assert isinstance(error, errors.RuntimeUserError)
    assert len(ran) == 1, "at most once"


# --- cancelled, and too late


def test_a_queued_call_that_is_cancelled_never_runs(tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")

    async def all_of_it() -> int:
        busy = asyncio.ensure_future(loops.aio(0.6, ran.path))
        while not len(ran):
            await asyncio.sleep(0.01)
        queued = asyncio.ensure_future(loops.aio(0, ran.path))
        after = asyncio.ensure_future(single_pid.aio())
        await asyncio.sleep(0.05)
        queued.cancel()
        with within(0.2), pytest.raises(asyncio.CancelledError):
            await queued
        await busy
        return await after

    assert asyncio.run(all_of_it()) == single_pid()
    assert len(ran) == 1


@single.task
def loops(seconds: float, ran: str) -> int:
    mark(ran)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return os.getpid()


@single.task
async def sleeps(seconds: float, ran: str) -> None:
    mark(ran)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        mark(ran, "cancelled")
        raise


@single.task
async def blocks_the_loop(seconds: float, ran: str) -> None:
    mark(ran)
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        mark(ran, "cancelled")
        raise


@pytest.mark.parametrize("task", [loops, sleeps, blocks_the_loop])
def test_a_running_task_that_is_cancelled_stops_and_its_replica_stays(task: Any, tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")
    before = single_pid()

    async def all_of_it() -> float:
        call = asyncio.ensure_future(task.aio(60.0, ran.path))
        while not len(ran):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        call.cancel()
        with within(0.5), pytest.raises(asyncio.CancelledError):
            await call
        with within(1):
            assert await single_pid.aio() == before
        return 0

    asyncio.run(all_of_it())
    if task is not loops:
        assert ran.lines() == ["x", "cancelled"]


@single.task
def stubborn(seconds: float, ran: str) -> None:
    mark(ran)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            time.sleep(0.01)
        except KeyboardInterrupt:
            continue


@single.task
async def stubborn_async(seconds: float, ran: str) -> None:
    mark(ran)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue


@single.task
def holds_the_gil(seconds: float, ran: str) -> None:
    mark(ran)
    ctypes.PyDLL(None).sleep(int(seconds))


@pytest.mark.parametrize("task", [holds_the_gil])
def test_a_task_that_does_not_react_is_ended_with_its_replica(
    task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "GRACE_S", 0.7)
    ran = Counter(tmp_path / "ran")
    before = single_pid()

    async def all_of_it() -> None:
        call = asyncio.ensure_future(task.aio(60.0, ran.path))
        while not len(ran):
            await asyncio.sleep(0.01)
        call.cancel()
        cancelled = time.monotonic()
        with within(0.5), pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0.1)
        with within(0.2):  # everybody else is served meanwhile
            broker.connect().snapshot()
        with within(0.5):
            await pid.aio()
        while before in pids(single):
            await asyncio.sleep(0.01)
        assert time.monotonic() - cancelled <= (0.7 + 1) * TIME_SCALE
        assert await single_pid.aio() != before

    asyncio.run(all_of_it())
    assert len(ran) == 1


@single.task(timeout=1)
def too_long(ran: str) -> None:
    mark(ran)
    while True:
        pass


@single.task(timeout=1)
async def too_long_async(ran: str) -> None:
    mark(ran)
    await asyncio.sleep(60)


@single.task(timeout=1)
def too_long_and_stubborn(ran: str) -> None:
    stubborn.forward(60, ran)


@single.task(timeout=1)
def too_long_in_c(ran: str) -> None:
    holds_the_gil.forward(60, ran)


@pytest.mark.parametrize(
    ("task", "stays"),
    [(too_long, True), (too_long_async, True), (too_long_and_stubborn, False), (too_long_in_c, False)],
)
def test_a_task_that_takes_too_long_is_stopped_and_its_slot_is_free(
    task: Any, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "GRACE_S", 0.5)
    ran = Counter(tmp_path / "ran")
    before = single_pid()
    with within(1 + 0.5 + 1):
        error = attempt(run, task, ran.path)
    assert type(error) is errors.MaxRuntimeExceededError
    assert "limit of 1 s" in str(error)
    assert task.name in str(error)
    assert len(ran) == 1
    with within(0.5 if stays else START_S):
        assert (single_pid() == before) is stays


@single.task(timeout=flyte.Timeout(max_queued_time=1))
def impatient() -> None:
    pass


@single.task(retries=5, timeout=flyte.Timeout(deadline=1))
def doomed(ran: str) -> None:
    mark(ran)
    time.sleep(0.3)
    raise ValueError


def test_a_call_may_limit_its_wait_and_all_its_attempts_together(tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")
    with ThreadPoolExecutor(1) as threads:
        busy = threads.submit(loops, 1.5, ran.path)
        ran.wait()
        with within(1.5):
            error = attempt(impatient)
        assert type(error) is errors.MaxQueuedTimeExceededError
        busy.result(START_S)
    ran = Counter(tmp_path / "doomed")
    with within(2):
        error = attempt(doomed, ran.path)
    assert type(error) is errors.DeadlineExceededError
    assert 2 <= len(ran) <= 4


# --- the same with Ctrl-C: a process that blocks in a sync call

_NOTEBOOK = """
from flyte_jupyter.core import call as life
life.GRACE_S = 1.0
env = flyte.TaskEnvironment("cells", reusable=flyte.ReusePolicy(replicas=2))

@env.task
def task(how: str, seconds: float) -> int:
    import ctypes
    say("running", how)
    until = time.monotonic() + seconds
    if how == "gil":
        ctypes.PyDLL(None).sleep(int(seconds))
    while time.monotonic() < until:
        try:
            time.sleep(0.01) if how != "loop" else None
        except KeyboardInterrupt:
            if how != "stubborn":
                raise
    return os.getpid()

def cell(how):
    try:
        task(how, 60)
    except KeyboardInterrupt:
        say("back", time.monotonic())

async def async_cell(how):
    await task.aio(how, 60)

before = task("warm", 0)
"""


@pytest.mark.parametrize(("how", "stays"), [("loop", True), ("sleep", True), ("gil", False)])
def test_ctrl_c_brings_the_cell_back_and_stops_its_task_alone(how: str, stays: bool, own_broker: OwnBroker) -> None:
    notebook = own_broker.start(
        _NOTEBOOK
        + f"""
beside = []
other = threading.Thread(target=lambda: beside.append(task("beside", 2.0)))
other.start()
wait_said("beside")
cell({how!r})
try:
    say("next", task("next", 0) > 0)
except KeyboardInterrupt:
    say("hit the next one")
other.join()
say("beside", bool(beside))
say("end")
""",
        name="notebook",
    )
    own_broker.wait_said("notebook", 3)  # warm, beside, how
    time.sleep(0.1)
    busy = {r.pid for pool in own_broker.snapshot().pools for r in pool.replicas}
    pressed = interrupt(notebook)
    assert notebook.wait(START_S * TIME_SCALE) == 0, own_broker.output("notebook")
    said = own_broker.said("notebook")
    back = next(float(line.split()[1]) for line in said if line.startswith("back"))
    assert back - pressed <= (0.5 if stays else 1.0 + 0.5) * TIME_SCALE  # the grace
    assert said[-1] == "end"
    assert "beside True" in said
    assert "next True" in said
    note = own_broker.output("notebook")
    assert ("what it has loaded is still there" in note) is stays
    wait_until(
        lambda: (
            all(not r.leases and r.state == "ready" for pool in own_broker.snapshot().pools for r in pool.replicas)
            and sum(len(pool.replicas) for pool in own_broker.snapshot().pools) == 2
        ),
        START_S,
        "the pool is whole again",
    )
    after = {r.pid for pool in own_broker.snapshot().pools for r in pool.replicas}
    assert len(busy & after) == (2 if stays else 1), own_broker.log()


def test_ctrl_c_withdraws_a_queued_call_and_a_second_one_ends_a_stubborn_replica_at_once(
    own_broker: OwnBroker,
) -> None:
    notebook = own_broker.start(
        _NOTEBOOK
        + """
life.GRACE_S = 30.0
others = [threading.Thread(target=lambda: task("sleep", 1.5)) for _ in range(2)]
for each in others:
    each.start()
wait_said("sleep", 2)
say("queueing")
cell("queued")
for each in others:
    each.join()
cell("stubborn")
say("next", task("next", 0) > 0)
""",
        name="notebook",
    )
    own_broker.wait_said("notebook", 4)
    wait_until(lambda: own_broker.snapshot().pools[0].waiting == 1)
    pressed = interrupt(notebook)
    said = own_broker.wait_said("notebook", 5)
    assert float(said[-1].split()[1]) - pressed <= 0.2 * TIME_SCALE
    own_broker.wait_said("notebook", 6)
    assert own_broker.said("notebook")[-1] == "running stubborn"
    interrupt(notebook)
    time.sleep(0.1)
    pressed = interrupt(notebook)
    said = own_broker.wait_said("notebook", 7)
    assert float(said[6].split()[1]) - pressed <= 0.5 * TIME_SCALE
    assert notebook.wait(START_S * TIME_SCALE) == 0, own_broker.output("notebook")
    assert own_broker.said("notebook")[-1] == "next True"
    assert "running queued" not in own_broker.said("notebook")


def test_ctrl_c_in_a_cell_that_awaits_stops_the_task(own_broker: OwnBroker) -> None:
    notebook = own_broker.start(
        _NOTEBOOK
        + """
async def main():
    try:
        await task.aio("loop", 60)
    except asyncio.CancelledError:
        say("back", time.monotonic())
        raise
try:
    asyncio.run(main())
except KeyboardInterrupt:
    say("interrupted")
say("next", task("next", 0) > 0)
time.sleep(60)
""",
        name="notebook",
    )
    own_broker.wait_said("notebook", 2)
    time.sleep(0.1)
    pressed = interrupt(notebook)
    said = own_broker.wait_said("notebook", 6)
    assert float(said[2].split()[1]) - pressed <= 0.5 * TIME_SCALE
    assert said[3:] == ["interrupted", "running next", "next True"]
    wait_until(
        lambda: not any(r.leases for pool in own_broker.snapshot().pools for r in pool.replicas), 1, "no work left"
    )


# --- around the very end of a task


@single.task
def short(seconds: float) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "a"


@single.task
async def short_async(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "a"


@single.task
def behind(number: int) -> int:
    for _ in range(100):  # somewhere for a stray interrupt to hit
        time.sleep(0.00001)
    return number


@pytest.mark.parametrize("task", [short, short_async], ids=["sync", "async"])
def test_a_cancel_at_the_end_of_a_task_never_hits_the_next_one(task: Any) -> None:
    before = single_pid()
    rng = random.Random(13)
    ends: list[str] = []

    async def once(number: int) -> None:
        a = asyncio.ensure_future(task.aio(0.01))
        b = asyncio.ensure_future(behind.aio(number))
        await asyncio.sleep(0.01 + rng.uniform(-0.005, 0.01))
        a.cancel()
        async with asyncio.timeout(5 * TIME_SCALE):
            assert await b == number
            try:
                ends.append(await a)
            except asyncio.CancelledError:
                ends.append("cancelled")

    async def all_of_it() -> None:
        for number in range(80):
            await once(number)

    asyncio.run(all_of_it())
    assert len(ends) == 80
    assert single_pid() == before, "nothing had to be killed"


# --- cancelled beside others


def test_one_of_five_async_tasks_of_a_replica_is_cancelled_alone(tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")

    async def all_of_it() -> list[Any]:
        calls = [asyncio.ensure_future(wide_sleep(0.6, ran.path)) for _ in range(5)]
        while len(ran) < 5:
            await asyncio.sleep(0.01)
        calls[2].cancel()
        with within(1), pytest.raises(asyncio.CancelledError):
            await calls[2]
        calls[2] = asyncio.ensure_future(wide_pid())
        return await asyncio.gather(*calls)

    with within(2):
        assert len(set(asyncio.run(all_of_it()))) == 1
    assert len(ran) == 5


# --- results and errors that do not travel


class Odd:
    def __init__(self) -> None:
        self.inside = [1, {"lock": threading.Lock()}]


@pair.task
def gives(what: str) -> Any:
    return {
        "lock": threading.Lock,
        "generator": lambda: (x for x in ()),
        "nested": lambda: {"a": [0, {"b": (x for x in ())}]},
        "attribute": Odd,
    }[what]()


@pair.task
async def gives_async(what: str) -> Any:
    return gives.forward(what)


@pytest.mark.parametrize("task", [gives, gives_async], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("what", "type_name", "where"),
    [
        ("lock", "lock", None),
        ("generator", "generator", None),
        ("nested", "generator", "result['a'][1]['b']"),
        ("attribute", "lock", "result.inside[1]['lock']"),
    ],
)
def test_a_result_that_cannot_travel_is_named_with_its_place(
    task: Any, what: str, type_name: str, where: str | None
) -> None:
    before = set(pids(pair))
    with within(1):
        error = attempt(run, task, what)
    assert isinstance(error, errors.ResultNotSerializable)
    assert isinstance(error, TypeError)
    assert (error.type_name, error.result) == (type_name, where)
    text = whole_text(error)
    assert type_name in text
    assert task.name in text
    assert "Return plain data" in text
    assert set(pids(pair)) == before


class Trap:
    def __reduce__(self) -> Any:
        return spring, (os.getpid(),)


def spring(born: int) -> str:
    if os.getpid() != born:
        raise RuntimeError("the trap is sprung")
    return "not here"


@pair.task
async def trapped(number: int) -> Any:
    return Trap() if number == 3 else number


def test_a_result_that_fails_while_it_is_loaded_hurts_only_its_own_call() -> None:
    async def all_of_it() -> list[Any]:
        return await asyncio.gather(*(trapped(number) for number in range(6)), return_exceptions=True)

    (*results,) = asyncio.run(all_of_it())
    error = results.pop(3)
    assert results == [0, 1, 2, 4, 5]
    assert isinstance(error, RuntimeError)
    assert "the trap is sprung" in whole_text(error)
    names = []
    tb = error.__traceback__
    while tb is not None:
        names.append(tb.tb_frame.f_code.co_name)
        tb = tb.tb_next
    assert names[-1] == "spring", "with the loader's traceback"


class TwoArguments(Exception):
    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{number}: {text}")
        self.number = number


class HoldsALock(Exception):
    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


@pair.task
def raises(what: str) -> None:
    if what == "two":
        raise TwoArguments(3, "words")
    if what == "lock":
        raise HoldsALock

    class OnlyThere(ValueError):
        def __init__(self, file: Any) -> None:
            super().__init__("unheard of")
            self.file = file

    raise OnlyThere(threading.Lock())


@pytest.mark.parametrize(
    ("what", "catch", "code", "message"),
    [
        ("two", TwoArguments, "TwoArguments", "3: words"),
        ("lock", errors.RuntimeUserError, "HoldsALock", "held"),
        ("local", errors.RuntimeUserError, "OnlyThere", "unheard of"),
    ],
)
def test_an_exception_that_does_not_travel_well_arrives_readable(
    what: str, catch: type[Exception], code: str, message: str
) -> None:
    error = attempt(raises, what)
    assert isinstance(error, catch)
    assert isinstance(error, errors.RuntimeUserError)
    assert error.code == code
    assert str(error) == message
    remote_text = error.remote_traceback  # type: ignore[attr-defined]
    assert "in raises" in remote_text
    assert message in remote_text
    if what == "two":
        assert error.number == 3  # type: ignore[attr-defined]
    assert "pair.raises raised this on pair[" in whole_text(error)


def test_a_very_deep_result_fails_clearly_and_its_replica_goes_on() -> None:
    before = single_pid()
    for what in ("result", "recursion"):
        with within(2):
            error = attempt(deep, what)
        assert isinstance(error, errors.BaseRuntimeError)
        assert "recursion" in whole_text(error)
    assert single_pid() == before


@single.task
def deep(what: str) -> Any:
    if what == "recursion":
        return deep.forward(what)
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


# --- nobody is there to answer


@pair.task
def asks(how: str) -> str:
    if how == "input":
        return input("name? ")
    if how == "getpass":
        return getpass.getpass()
    if how == "stdin":
        return str(len(sys.stdin.read()))
    breakpoint()
    return "went on"


@pytest.mark.parametrize("how", ["input", "getpass", "pdb"])
@pytest.mark.filterwarnings("ignore::getpass.GetPassWarning")
def test_a_task_that_asks_for_input_fails_instead_of_waiting(how: str) -> None:
    before = set(pids(pair))
    with within(2):
        error = attempt(asks, how)
    assert isinstance(error, errors.RuntimeUserError)
    assert "stdin is not available in tasks" in whole_text(error)
    assert set(pids(pair)) == before
    assert pid() in before


# --- nothing piles up


def test_many_calls_cancels_and_errors_leave_nothing_open(tmp_path: Path) -> None:
    from support import memory_files

    ran = Counter(tmp_path / "ran")

    async def burst() -> None:
        calls = [asyncio.ensure_future(wide_sleep(0.02, ran.path)) for _ in range(30)]
        calls += [asyncio.ensure_future(big.aio(3_000_000)) for _ in range(5)]
        await asyncio.sleep(0.03)
        for call in calls[::3]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def count() -> dict[str, int]:
        assert_quiet(pair, wide, single)
        time.sleep(0.15)
        where = {
            "client": os.getpid(),
            "broker": broker.connect().broker_pid,
            "wide": pids(wide)[0],
            "single": single_pid(),
        }
        time.sleep(0.15)
        # Memory files are kept for a while, and counted at the end.
        return {name: open_files(number) - len(memory_files(number)) for name, number in where.items()}

    asyncio.run(burst())
    before = count()
    for _ in range(4):
        asyncio.run(burst())
    wait_until(lambda: count() == before, 3, lambda: f"{before}, then {count()}")
    memory.close()
    assert memory_files(os.getpid()) == []


@single.task
def big(size: int) -> bytearray:
    return bytearray(size)


def test_the_view_is_back_to_where_it_was() -> None:
    view = view_of(pair)
    assert view.waiting == 0
    assert view.failure is None, "a death under a task is not the pool's failure"
    assert len(view.replicas) == 2
