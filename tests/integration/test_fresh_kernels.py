"""A call without reuse has a process of its own, in whatever way calls are made, and nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import START_S, TIME_SCALE, Counter, OwnBroker, alive, assert_quiet, attempt, mark, wait_until
from test_notebook import Notebook

import flyte_jupyter as flyte
from flyte_jupyter.client import broker

pytestmark = pytest.mark.kernel

CALLS = 5
Left = tuple[int, int, int]

plain = flyte.TaskEnvironment("fresh-plain")
warm = flyte.TaskEnvironment("fresh-warm", reusable=flyte.ReusePolicy(replicas=1))
left: list[int] = []


@pytest.fixture(scope="module", autouse=True)
def _pools(shared_broker: Path) -> Iterator[None]:
    yield
    flyte.pool(warm).stop(force=True)


@pytest.fixture(autouse=True)
def _nothing_left(_pools: None) -> Iterator[None]:
    yield
    assert_quiet(warm, timeout=START_S)
    wait_until(lambda: not fresh_replicas(), START_S, lambda: f"still there: {fresh_replicas()}")


def fresh_replicas() -> list[str]:
    pools = broker.connect().snapshot().snapshot.pools
    return [replica.name for pool in pools if pool.single_use for replica in pool.replicas]


def leave(x: int) -> Left:
    """Which process this is, and how many calls have left something in a module and in the environment."""
    left.append(x)
    os.environ["FRESH_LEFT"] = os.environ.get("FRESH_LEFT", "") + "x"
    return os.getpid(), len(left), len(os.environ["FRESH_LEFT"])


@plain.task
def plain_sync(x: int) -> Left:
    return leave(x)


@plain.task
async def plain_async(x: int) -> Left:
    return leave(x)


@warm.task
def warm_sync(x: int) -> Left:
    return leave(x)


@warm.task
async def warm_async(x: int) -> Left:
    return leave(x)


TASKS = {
    "plain, sync": plain_sync,
    "plain, async": plain_async,
    "off, sync": warm_sync.override(reusable="off"),
    "off, async": warm_async.override(reusable="off"),
    "off, with variables": warm_sync.override(reusable="off", env_vars={"MODE": "fast"}),
}


def in_turn(task: Any) -> list[Left]:
    async def all_of_them() -> list[Left]:
        return [await task.aio(x) for x in range(CALLS)]

    return asyncio.run(all_of_them()) if task.is_async else [task(x) for x in range(CALLS)]


def awaited_in_turn(task: Any) -> list[Left]:
    async def all_of_them() -> list[Left]:
        return [await task.aio(x) for x in range(CALLS)]

    return asyncio.run(all_of_them())


def gathered(task: Any) -> list[Left]:
    async def all_of_them() -> list[Left]:
        return await asyncio.gather(*(task.aio(x) for x in range(CALLS)))

    return asyncio.run(all_of_them())


def mapped(task: Any) -> list[Left]:
    return list(flyte.map(task, range(CALLS)))


def run(task: Any) -> list[Left]:
    return [tuple(flyte.run(task, x).outputs()) for x in range(CALLS)]


def in_threads(task: Any) -> list[Left]:
    def call(x: int) -> Left:
        return asyncio.run(task.aio(x)) if task.is_async else task(x)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(CALLS) as threads:
        return list(threads.map(call, range(CALLS)))


def submitted(task: Any) -> list[Left]:
    with flyte.pool(warm).executor() as executor:
        return [future.result() for future in [executor.submit(task, x) for x in range(CALLS)]]


def mapped_by_an_executor(task: Any) -> list[Left]:
    with flyte.pool(warm).executor() as executor:
        return list(executor.map(task, range(CALLS), chunksize=2))


WAYS: dict[str, Callable[[Any], list[Left]]] = {
    "in turn": in_turn,
    "awaited in turn": awaited_in_turn,
    "gather": gathered,
    "map": mapped,
    "run": run,
    "threads": in_threads,
    "executor": submitted,
    "chunks": mapped_by_an_executor,
}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("way", WAYS)
def test_each_call_has_a_process_of_its_own_and_finds_nothing_of_others(kind: str, way: str) -> None:
    results = WAYS[way](TASKS[kind])
    assert [each[1:] for each in results] == [(1, 1)] * CALLS
    pids = {pid for pid, *_ in results}
    assert len(pids) == CALLS
    wait_until(lambda: not any(map(alive, pids)), START_S)


@warm.task
def calls_in_turn() -> list[Left]:
    return [plain_sync(x) for x in range(CALLS)]


@warm.task
async def gathers() -> list[Left]:
    return await asyncio.gather(*(plain_async(x) for x in range(CALLS)))


@warm.task
def maps() -> list[Left]:
    return list(flyte.map(plain_sync, range(CALLS)))


@plain.task
async def mixes() -> list[Left]:
    return [leave(0), *await asyncio.gather(plain_async(1), plain_sync.aio(2)), await plain_async(3), leave(4)][:CALLS]


@pytest.mark.parametrize("task", [calls_in_turn, gathers, maps], ids=lambda task: str(task.short_name))
def test_each_nested_call_has_a_process_of_its_own(task: Any) -> None:
    results = asyncio.run(task.aio())
    assert [each[1:] for each in results] == [(1, 1)] * CALLS
    assert len({pid for pid, *_ in results}) == CALLS


def test_a_fresh_kernel_that_calls_others_keeps_its_own_state() -> None:
    first, *others, last = asyncio.run(mixes.aio())
    assert first[0] == last[0]
    assert last[1:] == (2, 2)
    assert [each[1:] for each in others] == [(1, 1)] * 3
    assert len({pid for pid, *_ in [first, *others]}) == 4


# --- how many at once


@plain.task
async def descend(n: int) -> int:
    return 0 if n == 0 else 1 + await descend(n - 1)


@plain.task
def descend_blocking(n: int) -> int:
    return 0 if n == 0 else 1 + descend_blocking(n - 1)


@pytest.mark.parametrize("task", [descend, descend_blocking], ids=["async", "sync"])
def test_a_recursion_twenty_deep_returns(task: Any) -> None:
    assert asyncio.run(task.aio(20)) == 20


@plain.task
async def meets(path: str, count: int) -> int:
    mark(path)
    while len(Counter(Path(path))) < count:
        await asyncio.sleep(0.01)
    return os.getpid()


def test_more_than_eight_run_at_once(tmp_path: Path) -> None:
    path = tmp_path / "met"

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(meets.aio(str(path), 12) for _ in range(12)))

    assert len(set(asyncio.run(all_of_them()))) == 12


def test_who_waits_for_the_limit_is_told_so(own_broker: OwnBroker) -> None:
    code = """
        env = flyte.TaskEnvironment("limited")
        release = SAID + ".release"
        @env.task
        async def waits(n: int) -> int:
            say("began")
            while not os.path.exists(release):
                await asyncio.sleep(0.01)
            return os.getpid()
        async def main():
            calls = [asyncio.ensure_future(waits(n)) for n in range(5)]
            say(len(set(await asyncio.gather(*calls))))
        asyncio.run(main())
    """
    script = own_broker.start(code, name="limited", FLYTE_JUPYTER_MAX_FRESH_KERNELS="2")
    own_broker.wait_said("limited", 2)

    def told() -> str | None:
        (view,) = own_broker.snapshot().pools
        assert len(view.replicas) == 2
        return view.waits_for

    assert wait_until(told, START_S) == "one of 2 fresh kernels to end (limit 2: FLYTE_JUPYTER_MAX_FRESH_KERNELS)"
    (own_broker.home / "limited.release").touch()
    assert script.wait(START_S * TIME_SCALE) == 0
    assert own_broker.said("limited") == [*["began"] * 5, "5"]


@plain.task
def fails() -> None:
    left.append(0)
    raise ValueError(f"{os.getpid()} {len(left)}")


def test_a_failed_call_ends_its_kernel_and_a_retry_has_another() -> None:
    errors = [attempt(fails), attempt(fails.override(retries=1))]
    said = [str(error).split() for error in errors]
    assert len({pid for pid, _ in said}) == 2
    assert {count for _, count in said} == {"1"}


# --- where they come from


imports = flyte.TaskEnvironment("fresh-imports", reusable=flyte.ReusePolicy(replicas=(0, 1)))


@imports.task
def imported() -> tuple[bool, bool]:
    return "colorsys" in sys.modules, "wave" in sys.modules


@pytest.mark.skipif(sys.platform != "linux", reason="replicas are forked on Linux only")
@pytest.mark.skipif("TEST_SPAWNED" in os.environ, reason="replicas are spawned")
def test_a_call_without_reuse_is_forked_from_what_its_environment_is_forked_from() -> None:
    off = imported.override(reusable="off")
    try:
        flyte.pool(imports, preimport=["colorsys"])
        assert (imported(), off()) == ((True, False), (True, False))
        zygotes = broker.connect().snapshot().zygotes
        assert sum("colorsys" in zygote.preimports for zygote in zygotes) == 1
        flyte.pool(imports, preimport=["colorsys", "wave"])
        assert off() == (True, True)
    finally:
        flyte.pool(imports).stop(force=True)


# --- cells

SETUP = """
%load_ext flyte_jupyter
import flyte_jupyter; flyte_jupyter.PoolHandle.view = None
import asyncio, os, time
import flyte_jupyter as flyte
env = flyte.TaskEnvironment("fresh-cells", reusable=flyte.ReusePolicy(replicas=(0, 1)))
plain = flyte.TaskEnvironment("fresh-notebook")
left = []
@plain.task
def leave(x):
    left.append(x)
    return os.getpid(), len(left)
"""
CELL = """%%flyte_task fresh-cells --fresh --quiet
import builtins, os
builtins.left = getattr(builtins, "left", 0) + 1
os.getpid(), builtins.left"""


@pytest.fixture(scope="module")
def notebook(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    kernel = Notebook(tmp_path_factory.mktemp("nb"))
    kernel.setup = SETUP
    try:
        kernel.begin()
        yield kernel
    finally:
        kernel.end()


def test_cells_that_run_all_asks_for_at_once_have_kernels_of_their_own(notebook: Notebook) -> None:
    asked = [notebook.start(CELL) for _ in range(3)]
    values = [notebook.wait(each).value for each in asked]
    assert [count for _, count in values] == [1, 1, 1]
    assert len({pid for pid, _ in values}) == 3
    wait_until(lambda: not any(alive(pid) for pid, _ in values), START_S)


def test_background_cells_have_kernels_of_their_own(notebook: Notebook) -> None:
    code = CELL.replace("--quiet", "--quiet --bg --as job{n} -o found{n}") + "\nfound{n} = os.getpid(), builtins.left"
    for n in range(3):
        assert notebook.run(code.format(n=n)).error == ""
    values = notebook.run("[job.result() for job in (job0, job1, job2)]; found0, found1, found2").value
    assert [count for _, count in values] == [1, 1, 1]
    assert len({pid for pid, _ in values}) == 3


def test_the_waiting_line_of_a_cell_says_what_it_waits_for(notebook: Notebook, tmp_path: Path) -> None:
    release = tmp_path / "release"
    holds = f"import os, time\nwhile not os.path.exists({str(release)!r}): time.sleep(0.01)"
    assert notebook.run("os.environ['FLYTE_JUPYTER_MAX_FRESH_KERNELS'] = '1'").error == ""
    try:
        assert notebook.run(f"%%flyte_task fresh-cells --fresh --bg --as held\n{holds}").error == ""
        assert notebook.run("while held.state() != 'running': time.sleep(0.01)").error == ""
        asked = notebook.start("%%flyte_task fresh-cells --fresh --progress-after 0.1\n7")
        notebook.wait_shown(asked, "waits for one of 1 fresh kernels to end (limit 1: FLYTE_JUPYTER_MAX_FRESH_KERNELS)")
    finally:
        release.touch()
    assert notebook.wait(asked).value == 7
    assert notebook.run("del os.environ['FLYTE_JUPYTER_MAX_FRESH_KERNELS']; held.result()").error == ""


def test_calls_of_a_notebook_have_kernels_of_their_own(notebook: Notebook) -> None:
    asked = [notebook.start("[leave(1), leave(2)]"), notebook.start("await asyncio.gather(leave.aio(3), leave.aio(4))")]
    values = [value for each in asked for value in notebook.wait(each).value]
    assert [count for _, count in values] == [1, 1, 1, 1]
    assert len({pid for pid, _ in values}) == 4
