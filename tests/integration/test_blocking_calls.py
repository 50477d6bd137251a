"""Blocking calls on a thread whose event loop has awaited calls of the same pool, which has one slot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from seen import cell, clean, opened, value
from support import START_S, TIME_SCALE, OwnBroker, interrupt
from test_notebook import Notebook

pytestmark = pytest.mark.kernel

TASKS = """
import time
@env.task
def s(x=1): return x
@env.task
def nap(seconds):
    time.sleep(seconds)
    return seconds
one = flyte.TaskEnvironment("sees-one", reusable=flyte.ReusePolicy(replicas=(1, 1)))
@one.task
async def a(x=2):
    return x
@one.task
def b(x=3): return x
@one.task
def long(seconds):
    time.sleep(seconds)
    return seconds
"""


@pytest.fixture(scope="module")
def opened_notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    yield from opened(tmp_path_factory.mktemp("blocking"))


@pytest.fixture
def notebook(opened_notebook: Notebook) -> Iterator[Notebook]:
    cell(opened_notebook, TASKS)
    yield opened_notebook
    cell(opened_notebook, "flyte.pool(one).stop(force=True)")
    clean(opened_notebook)


WAYS = {
    "a call": ("b()", 3),
    "run": ("flyte.run(b).outputs()[0]", 3),
    "map": ("list(flyte.map(b, [1, 2, 3]))", [1, 2, 3]),
    "an executor": ("flyte.pool(one).executor().submit(b, 4).result()", 4),
    "an executor's map": ("list(flyte.pool(one).executor().map(b, [1, 2]))", [1, 2]),
    "a cell": ("get_ipython().run_line_magic('flyte_task', 'sees-one --quiet -- 6 * 7')", 42),
}
BEFORE = {
    "awaited": "first = await a()",
    "awaited, then busy": "first = await a(); time.sleep(0.3)",
    "awaited, sync": "first = await b.aio(2)",
    "gathered": "first = (await asyncio.gather(*(a() for _ in range(20))))[0]",
    "iterated": "first = [x async for x in flyte.map.aio(a, [2])][0]",
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize(("code", "expected"), WAYS.values(), ids=WAYS)
def test_a_blocking_call_after_an_awaited_one(notebook: Notebook, before: str, code: str, expected: object) -> None:
    assert value(notebook, f"{before}\n(first, {code})") == (2, expected)


@pytest.mark.parametrize(("code", "expected"), WAYS.values(), ids=WAYS)
def test_a_blocking_call_while_awaited_ones_are_under_way(notebook: Notebook, code: str, expected: object) -> None:
    cell(notebook, "b()")
    found = value(
        notebook,
        "calls = [asyncio.ensure_future(long.aio(0.4)), asyncio.ensure_future(a()), asyncio.ensure_future(a(5))]\n"
        f"await asyncio.sleep(0.1)\nfound = {code}\n(found, await asyncio.gather(*calls))",
    )
    assert found == (expected, [0.4, 2, 5])


def test_what_an_awaited_call_prints_meanwhile_is_shown(notebook: Notebook) -> None:
    cell(
        notebook,
        "@one.task\nasync def says():\n    print('said')\n    time.sleep(0.3)\n    print('again')\n    return 1",
    )
    ran = notebook.run("call = asyncio.ensure_future(says())\nawait asyncio.sleep(0.1)\nprint(b())\nprint(await call)")
    assert ran.error == "", ran.traceback
    assert sorted(ran.text("stdout").split()) == ["1", "3", "again", "said"]


def test_an_error_of_an_awaited_call_is_kept_for_its_future(notebook: Notebook) -> None:
    cell(notebook, "@one.task\nasync def bad():\n    time.sleep(0.2)\n    raise ValueError('no')")
    found = value(
        notebook,
        "call = asyncio.ensure_future(bad())\nawait asyncio.sleep(0.1)\nfound = b()\n"
        "try: await call\nexcept ValueError as error: found = found, str(error)\nfound",
    )
    assert found == (3, "no")


def test_stop_ends_a_blocking_call_in_a_cell_that_awaits(notebook: Notebook) -> None:
    cell(notebook, "b()")
    asked = notebook.start("print(await a())\nlong(60)")
    notebook.wait_text(asked, "2\n")
    ran = notebook.interrupt(asked)
    assert ran.error == "KeyboardInterrupt"
    assert value(notebook, "b()") == 3


_SCRIPT = """
env = flyte.TaskEnvironment("one", reusable=flyte.ReusePolicy(replicas=1))

@env.task
def b(x: int = 3) -> int:
    return x

@env.task
def long(seconds: float) -> None:
    say("running")
    time.sleep(seconds)

async def main():
    await b.aio(1)
    try:
        long(60)
    except KeyboardInterrupt:
        say("stopped")
    say(b())

asyncio.run(main())
"""


def test_ctrl_c_ends_a_blocking_call_under_asyncio_run(own_broker: OwnBroker, tmp_path: Path) -> None:
    script = own_broker.start(_SCRIPT, name="script")
    own_broker.wait_said("script", 1)
    interrupt(script)
    assert script.wait(START_S * TIME_SCALE) == 0, own_broker.output("script")
    assert own_broker.said("script") == ["running", "stopped", "3"]
