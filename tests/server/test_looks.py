"""The panel looks into a replica that works: what comes back, how soon, and what it costs those who work."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asking import Answer, Ask, server_config
from support import START_S, TIME_SCALE, Counter, mark, view_of, wait_until, within
from traitlets.config import Config

import flyte_jupyter as flyte
from flyte_jupyter import peek
from flyte_jupyter.client import broker
from flyte_jupyter.core import protocol as p

pytestmark = pytest.mark.kernel

MARKUP = "<img src=x onerror=alert(1)>\x1b[31m"
looked_at = flyte.TaskEnvironment("looked-at", reusable=flyte.ReusePolicy(replicas=1))
POOL = flyte.pool(looked_at)


@looked_at.task
def sleeps(path: str, name: str) -> None:
    step = 7
    mark(path)
    time.sleep(30)
    assert step


@looked_at.task
def holds_the_lock(path: str, gate: str) -> None:
    """Until somebody writes to `gate`."""
    import ctypes

    mark(path)
    os.close(ctypes.PyDLL(None).open(gate.encode(), os.O_RDONLY))


@looked_at.task
def threads() -> list[str]:
    import threading

    return [thread.name for thread in threading.enumerate()]


@pytest.fixture
def jp_server_config() -> Config:
    return server_config()


@pytest.fixture(autouse=True)
def _warm(shared_broker: Path) -> Iterator[None]:
    POOL.warm(timeout=START_S)
    yield
    POOL.warm(timeout=START_S)
    wait_until(lambda: not any(name.startswith("subshell-") for name in threads()), 15)


@asynccontextmanager
async def running(path: Path, function: Any, *args: Any) -> AsyncIterator[None]:
    """In a thread of this process, begun; interrupted at the end if it lasts."""
    counter = Counter(path)
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(function, counter.path, *args)
        await asyncio.to_thread(counter.wait)
        try:
            yield
        finally:
            broker.connect().send(p.Interrupt(replica=replica_id()))
            await asyncio.to_thread(future.exception, START_S)


@asynccontextmanager
async def locked(tmp_path: Path) -> AsyncIterator[None]:
    """No other thread of the replica runs during the block."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with running(tmp_path / "begun", holds_the_lock, str(gate)):
        try:
            yield
        finally:
            gate.write_bytes(b"")


def replica_id() -> str:
    return view_of(looked_at).replicas[0].id


async def look(ask: Ask, body: Any = "{}") -> Answer:
    return await ask(f"replicas/{replica_id()}/peek", body, request_timeout=20)


async def test_a_look_into_a_task_that_sleeps(ask: Ask, tmp_path: Path) -> None:
    async with running(tmp_path / "begun", sleeps, MARKUP):
        with within(0.5):
            answer = await look(ask, {"expressions": ["step", "name", "<b>"], "gpu": True})
    assert answer.code == 200
    lines, stack, values = (answer.body[key] for key in ("lines", "stack", "values"))
    first = next(frame for frame in stack if frame["user"])
    assert (first["function"], first["source"]) == ("sleeps", "time.sleep(30)")
    assert {*first} == {"file", "line", "function", "source", "user"}
    assert values[:2] == [{"expression": "step", "value": "7"}, {"expression": "name", "value": repr(MARKUP)}]
    assert values[2]["error"].startswith("SyntaxError")
    assert answer.body["gpu"] == []
    assert lines[0].startswith("looked-at[0] · pid ")
    assert "step = 7" in lines
    assert "GPU: its torch holds none" in lines


async def test_without_a_body_it_is_the_stack(ask: Ask) -> None:
    answer = await look(ask)
    assert answer.code == 200
    assert answer.body["lines"][1:] == ["nothing runs on its main thread"]
    assert (answer.body["stack"], answer.body["values"], answer.body["gpu"]) == ([], [], None)


async def test_control_characters_are_shown_as_text(ask: Ask) -> None:
    class_ = "type('X', (), {'__repr__': lambda self: '\\x1b[2J<script>'})()"
    answer = await look(ask, {"expressions": [class_], "stack": False})
    assert answer.body["values"][0]["value"] == "\x1b[2J<script>"
    assert answer.body["lines"][1].endswith(" = \\x1b[2J<script>")


async def test_ten_looks_at_once(ask: Ask, tmp_path: Path) -> None:
    async with running(tmp_path / "begun", sleeps, ""):
        with within(2):
            answers = await asyncio.gather(*(look(ask, {"expressions": [f"step + {n}"]}) for n in range(10)))
    assert [answer.body["values"][0]["value"] for answer in answers] == [str(7 + n) for n in range(10)]


async def test_a_replica_that_does_not_answer_keeps_nobody_else_waiting(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with locked(tmp_path):
        asked = asyncio.ensure_future(look(ask))
        while not asked.done():
            with within(0.5):
                assert (await ask("pools")).code == 200
            await asyncio.sleep(0.05)
        answer = await asked
    assert answer.code == 504
    assert "looked-at[0] does not answer within 2 s." in answer.body["message"]
    assert "py-spy dump" in answer.body["message"]


async def test_looks_into_one_that_stands_still_do_not_hold_up_the_server(ask: Ask) -> None:
    pid = view_of(looked_at).replicas[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        looks = asyncio.gather(*(look(ask) for _ in range(5)))
        pauses = [time.monotonic()]
        while not looks.done():
            await asyncio.sleep(0.005)
            pauses.append(time.monotonic())
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [answer.code for answer in await looks] == [504] * 5
    assert max(after - before for before, after in itertools.pairwise(pauses)) < 0.2 * TIME_SCALE


async def test_a_replica_that_dies_while_it_is_asked(ask: Ask) -> None:
    with within(3):
        answer = await look(ask, {"expressions": ["__import__('os').kill(__import__('os').getpid(), 9)"]})
    assert answer.code == 404
    assert answer.body["message"] == "looked-at[0] has just ended, or is not up yet."


async def test_one_that_is_not_there(ask: Ask) -> None:
    answer = await ask("replicas/01234567-1/peek", {})
    assert (answer.code, answer.body["message"]) == (404, "There is no replica 01234567-1.")


@pytest.mark.parametrize("body", ["{", "[]", {"expressions": "x"}, {"expressions": [""]}, {"stack": 1}, {"more": 1},
                                  {"expressions": ["x"] * 21}, {"expressions": ["x" * 1001]}])  # fmt: skip
async def test_a_body_that_does_not_fit_is_refused(ask: Ask, body: Any) -> None:
    answer = await look(ask, body)
    assert answer.code == 400
    assert answer.body["message"].startswith("The body does not fit: ")


async def test_a_look_that_is_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    """As when the server ends meanwhile."""
    async with locked(tmp_path):
        (replica,) = view_of(looked_at).replicas
        asked = asyncio.ensure_future(peek.peek_async(replica, peek.Look()))
        for _ in range(5):
            await asyncio.sleep(0)  # until it waits for the answer
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
