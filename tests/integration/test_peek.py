"""Somebody looks into a replica that works: an answer at once, and the work goes on as if nobody had looked."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from IPython.core.interactiveshell import InteractiveShell
from support import START_S, Counter, assert_quiet, attempt, mark, pids, wait_until, within

import flyte_jupyter as flyte
from flyte_jupyter import cli, errors, magics
from flyte_jupyter.client import broker
from flyte_jupyter.client.attached import find_replica
from flyte_jupyter.peek import Peeked, peek

pytestmark = pytest.mark.kernel

pool = flyte.TaskEnvironment("peeked", reusable=flyte.ReusePolicy(replicas=1))


@pool.task
def sleeps(path: str, go: str, seconds: float) -> tuple[int, float]:
    step = 7
    many = list(range(1_000_000))
    mark(path)
    print("begun")
    started = time.monotonic()
    deadline = started + seconds
    while time.monotonic() < deadline and not Path(go).exists():
        time.sleep(0.05)
    return step + len(many), time.monotonic() - started


@pool.task
def sleeps_once(path: str) -> None:
    mark(path)
    time.sleep(30)


@pool.task
async def awaits(path: str) -> int:
    inner = 3
    mark(path)
    await asyncio.sleep(30)
    return inner


@pool.task
def holds_the_lock(path: str, gate: str) -> None:
    """Until somebody writes to `gate`."""
    import ctypes

    mark(path)
    os.close(ctypes.PyDLL(None).open(gate.encode(), os.O_RDONLY))


@pool.task
def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


@contextmanager
def running(path: Path, function: Any, *args: Any) -> Iterator[Future[Any]]:
    """In a thread of this process, begun."""
    counter = Counter(path)
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(function, counter.path, *args)
        counter.wait()
        yield future


@contextmanager
def cancelled_later(function: Any, path: Path) -> Iterator[None]:
    """The task runs, and still does at the end of the block; then it is cancelled."""
    stop = threading.Event()

    async def call() -> bool:
        task = asyncio.ensure_future(function.aio(str(path)))
        while not stop.is_set():
            await asyncio.sleep(0.01)
        ran = not task.done()
        task.cancel()
        await asyncio.wait([task])
        return ran

    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(asyncio.run, call())
        try:
            Counter(path).wait()
            yield
        finally:
            stop.set()
            ran = future.result(START_S)
    assert ran, "it ended before its time"


def look(*expressions: str, **options: Any) -> Peeked:
    snapped = broker.connect().snapshot()
    _, replica = find_replica(snapped.snapshot, "peeked", busy=True)
    return peek(replica, expressions, **options)


@pytest.fixture(autouse=True)
def _warm(shared_broker: Path) -> Iterator[None]:
    flyte.pool(pool).warm(timeout=START_S)
    before = pids(pool)
    yield
    assert_quiet(pool)
    assert pids(pool) == before
    # What came too late for its asker goes after some seconds.
    wait_until(lambda: not any(name.startswith("subshell-") for name in threads()), 15)


def test_a_look_into_a_task_that_sleeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go = tmp_path / "go"
    with running(tmp_path / "begun", sleeps, str(go), 30.0) as future:
        with within(0.5):
            seen = look("step", "step + 1", "len(many)", "many", "nothing", gpu=True)
        assert not future.done()
        go.touch()
        assert future.result(START_S)[0] == 1_000_007
    first = next(frame for frame in seen.stack if frame["user"])
    assert (first["function"], first["source"]) == ("sleeps", "time.sleep(0.05)")
    values = {value["expression"]: value for value in seen.values}
    assert [values[name]["value"] for name in ("step", "step + 1", "len(many)")] == ["7", "8", "1000000"]
    assert values["many"]["value"].endswith("18, 19, ...]")
    assert values["nothing"]["error"] == "NameError: name 'nothing' is not defined"
    assert seen.gpu == ()
    assert capsys.readouterr().out == "begun\n", "the look wrote into the task's output"


def test_one_long_sleep_is_not_cut_short(tmp_path: Path) -> None:
    with cancelled_later(sleeps_once, tmp_path / "begun"):
        for _ in range(2):
            with within(0.5):
                assert look().stack[0]["source"] == "time.sleep(30)"


def test_an_async_task_shows_where_it_waits(tmp_path: Path) -> None:
    with cancelled_later(awaits, tmp_path / "begun"), within(0.5):
        seen = look("inner")
    assert [frame["function"] for frame in seen.stack if frame["user"]] == ["awaits"]
    assert seen.values[0]["value"] == "3"


def test_an_idle_replica_says_that_nothing_runs() -> None:
    seen = look("1 + 1")
    assert seen.stack == ()
    assert seen.values[0]["value"] == "2"


def test_a_replica_whose_lock_is_held_is_reported(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with running(tmp_path / "begun", holds_the_lock, str(gate)) as future:
        try:
            with within(1):
                error = attempt(lambda: look(timeout=0.5))
        finally:
            gate.write_bytes(b"")
        assert isinstance(error, errors.ReplicaSilent)
        assert "peeked[0] does not answer within 0.5 s" in str(error)
        future.result(START_S)


def test_nothing_of_a_look_is_left() -> None:
    (pid,) = pids(pool)
    look()
    process = psutil.Process(pid)
    counted, opened = process.num_threads(), process.num_fds()
    for _ in range(5):
        look("1")
    # ipykernel looks every 10 s for descriptors of threads that have ended.
    wait_until(lambda: process.num_threads() <= counted and process.num_fds() <= opened, 25)


def test_the_command_and_the_magic_show_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go = tmp_path / "go"
    shell = InteractiveShell()
    magics.load(shell)
    with running(tmp_path / "begun", sleeps, str(go), 30.0) as future:
        wait_until(lambda: "begun" in capsys.readouterr().out)
        assert cli.main(["peek", "peeked[0]", "step", "--stack"]) == 0
        printed = capsys.readouterr().out
        shell.run_line_magic("flyte_peek", "peeked[0] step --stack")
        shown = capsys.readouterr().out
        shell.run_line_magic("flyte_attach", "peeked[0]")
        advice = capsys.readouterr().out
        go.touch()
        future.result(START_S)
    for text in (printed, shown):
        assert "peeked[0] · pid" in text
        assert "→ sleeps" in text
        assert "step = 7" in text
    assert "flyte-jupyter attach 'peeked[0]'" in advice
    assert "flyte-attach" in advice
    assert cli.main(["peek", "peeked[9]"]) == 2
    assert "FJ106" in capsys.readouterr().err
