"""An ended session, and a closed notebook, leave no names and no memory on a replica."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support import START_S, wait_until
from test_notebook import Notebook

import flyte_jupyter as flyte

pytestmark = pytest.mark.kernel

SETUP = """
%load_ext flyte_jupyter
import os
import flyte_jupyter as flyte
flyte.PoolHandle.view = None  # a card's messages come at any time
env = flyte.TaskEnvironment("ended", reusable=flyte.ReusePolicy(replicas=1))
@env.task
def keep(big: bytes) -> int:
    global kept
    kept = big
    return os.getpid()
sent = None
@env.task
def uses_sent() -> int:
    return len(sent)
"""
MIB = 2**20
BIG = "b'x' * (200 * 2**20)"
pool = flyte.TaskEnvironment("ended", reusable=flyte.ReusePolicy(replicas=1))


@pytest.fixture
def notebook(shared_broker: Path, tmp_path: Path) -> Iterator[Notebook]:
    flyte.pool(pool).warm()
    made = Notebook(tmp_path)
    made.setup = SETUP
    try:
        made.begin()
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module", autouse=True)
def _stop(shared_broker: Path) -> Iterator[None]:
    yield
    flyte.pool(pool).stop(force=True)


@pytest.fixture
def memory(notebook: Notebook) -> Callable[[], int]:
    """What the replica holds."""
    process = psutil.Process(notebook.run("%%flyte_task ended --quiet\nimport os, gc\nos.getpid()").value)
    return lambda: int(process.memory_info().rss)


def wait_freed(memory: Callable[[], int], before: int) -> None:
    wait_until(lambda: memory() <= before * 1.1, START_S, lambda: f"{memory() // MIB} MiB, {before // MIB} MiB before")


USES = {
    "a name": f"big = {BIG}",
    "a displayed value": f"class Shown(bytes): __repr__ = lambda self: 'shown'\nShown({BIG})",
    "a name that a function of its own holds": f"big = {BIG}\ndef f(): return big\nclass C:\n    call = f",
    "the frames of an error": f"def f():\n    big = {BIG}\n    1 / 0\nbefore = {BIG}\nf()",
    "an error that a name keeps": f"def f():\n    big = {BIG}\n    1 / 0\ntry: f()\nexcept Exception as e: error = e",
    "a cell that waits": f"import asyncio\nbig = {BIG}\nawait asyncio.sleep(0)\nbig = big",
}


def cancelled(notebook: Notebook) -> None:
    assert "is free again" in notebook.run("%flyte_cancel --session s").text()


def closed(notebook: Notebook) -> None:
    notebook.end()


def restarted(notebook: Notebook) -> None:
    notebook.restart(SETUP)


@pytest.mark.parametrize("use", USES)
def test_a_cancelled_session_frees_its_memory_and_begins_empty(
    use: str, notebook: Notebook, memory: Callable[[], int]
) -> None:
    before = memory()
    notebook.run(f"%%flyte_task ended --session s --quiet\n{USES[use]}")
    if use != "the frames of an error":
        assert memory() > before + 190 * MIB
    cancelled(notebook)
    wait_freed(memory, before)
    names = "%%flyte_task ended --session s --quiet\n[n in globals() for n in ('big', 'f', 'error', 'before')]"
    assert notebook.run(names).value == [False] * 4
    cancelled(notebook)


@pytest.mark.parametrize("option", ["--session s", "--scope session"])
@pytest.mark.parametrize("end", [closed, restarted])
def test_a_session_ends_with_its_notebook(
    end: Callable[[Notebook], None], option: str, notebook: Notebook, memory: Callable[[], int]
) -> None:
    before = memory()
    assert notebook.run(f"%%flyte_task ended {option} --quiet\nbig = {BIG}").error == ""
    assert memory() > before + 190 * MIB
    end(notebook)
    wait_freed(memory, before)
    if end is restarted:
        assert notebook.run(f"%%flyte_task ended {option} --quiet\n'big' in globals()").value is False


@pytest.mark.parametrize("end", [closed, restarted])
def test_values_of_a_notebook_go_with_it(
    end: Callable[[Notebook], None], notebook: Notebook, memory: Callable[[], int]
) -> None:
    before = memory()
    assert notebook.run(f"keep({BIG})").error == ""
    assert notebook.run(f"sent = bytearray({BIG})\nuses_sent()").value == 200 * MIB
    assert memory() > before + 390 * MIB
    end(notebook)
    wait_freed(memory, before)
