"""Cells of an attached front end call tasks: of the pool that serves them, and of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import front_ends
import pytest
from front_ends import FrontEnd
from support import START_S, assert_quiet, wait_until

import flyte_jupyter as flyte

pytestmark = pytest.mark.kernel

pool = flyte.TaskEnvironment("inside", reusable=flyte.ReusePolicy(replicas=1))
other = flyte.TaskEnvironment("outside", reusable=flyte.ReusePolicy(replicas=1))
TASKS = """
import asyncio, os
import flyte_jupyter as flyte

inside = flyte.TaskEnvironment("inside", reusable=flyte.ReusePolicy(replicas=1))
outside = flyte.TaskEnvironment("outside", reusable=flyte.ReusePolicy(replicas=1))

@inside.task
def blocks(x: int = 0) -> int:
    return os.getpid()

@inside.task
async def awaits() -> int:
    return os.getpid()

@outside.task
def elsewhere() -> int:
    return os.getpid()

@outside.task
def and_back() -> int:
    return blocks()

here = os.getpid()
"""
REFUSED = 'FJ601 This would wait for ever: a cell in a replica of "inside" waits for "inside.'


@pytest.fixture(autouse=True)
def _warm(shared_broker: Path) -> Iterator[None]:
    for each in (pool, other):
        flyte.pool(each).scale(1, 1).warm(timeout=START_S)
    yield
    assert_quiet(pool, other)


def console(*, shared: bool = True) -> AbstractContextManager[FrontEnd]:
    return front_ends.front_end("inside", shared=shared)


def goes_on(front_end: FrontEnd, code: str) -> None:
    """It is true; asked again, since ipykernel may drop what comes right after an error."""
    wait_until(lambda: front_end.run(code).result == "True", START_S, code)


@pytest.mark.parametrize("call", ["blocks()", "await awaits()"])
def test_who_has_the_only_replica_alone_is_told_that_nobody_is_left_to_serve_the_call(call: str) -> None:
    with console(shared=False) as front_end:
        assert front_end.run(TASKS + call).error.startswith(f"StarvationError: {REFUSED}")
        goes_on(front_end, "os.getpid() == here")


@pytest.mark.parametrize("call", ["blocks()", "flyte.run(awaits)", "list(flyte.map(blocks, [1]))[0]",
                                  "await awaits(); blocks()"])  # fmt: skip
def test_so_is_who_shares_it_and_would_block_it(call: str) -> None:
    with console() as front_end:
        ran = front_end.run(TASKS + call)
        assert REFUSED in ran.error + ran.result
        goes_on(front_end, "await awaits() == await blocks.aio() == here")


def test_a_call_that_comes_back_through_another_pool_is_refused_there() -> None:
    with console() as front_end:
        assert "FJ601 This would wait for ever" in front_end.run(f"{TASKS}and_back()").error
        goes_on(front_end, "await awaits() == here")


@pytest.mark.parametrize("call", ["await awaits()", "await blocks.aio()", "await flyte.run.aio(awaits)",
                                  "[x async for x in flyte.map.aio(blocks, [1, 2])]",
                                  "await asyncio.to_thread(blocks)"])  # fmt: skip
def test_what_a_shared_cell_awaits_runs_beside_it(call: str) -> None:
    with console() as front_end:
        assert "FJ601" not in front_end.run(TASKS + call).error
        assert front_end.run(f"str(here) in str({call})").result == "True"


def test_a_shared_cell_may_block_on_a_call_to_another_pool() -> None:
    with console() as front_end:
        assert front_end.run(f"{TASKS}elsewhere() not in (here, await awaits())").result == "True"


def test_what_it_would_block_is_served_by_another_replica() -> None:
    flyte.pool(pool).scale(1, 2)
    with console() as front_end:
        assert front_end.run(f"{TASKS}await awaits() == here != blocks()").result == "True"
