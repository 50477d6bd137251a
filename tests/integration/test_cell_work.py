"""Task cells under load and under Stop: several at once on one replica, floods, and work that does not want to end."""

from __future__ import annotations

import os
import queue
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import START_S, wait_until, within
from test_cells import final, settled
from test_notebook import GRACE_S, Cell, Notebook

from flyte_jupyter.client import broker

pytestmark = pytest.mark.kernel

SETUP = f"""
%load_ext flyte_jupyter
import flyte_jupyter; flyte_jupyter.PoolHandle.view = None  # a card's messages come at any time
import asyncio, os
import flyte_jupyter as flyte
from flyte_jupyter.core import call as life
life.GRACE_S = {GRACE_S}
three = flyte.TaskEnvironment("three", reusable=flyte.ReusePolicy(replicas=1, concurrency=3))
one = flyte.TaskEnvironment("one", reusable=flyte.ReusePolicy(replicas=1))
"""
PRELOAD = """%%flyte_preload {}
import os
model = [os.getpid()]
"""
WHERE = "%%flyte_task {} --quiet\nmodel, id(model), os.getpid()"
LINES = 1000
COUNTED = f"import asyncio\nfor n in range({LINES}):\n    print(NAME, n)\n    await asyncio.sleep(0)"


def begin(folder: Path) -> Notebook:
    notebook = Notebook(folder)
    notebook.setup = SETUP
    notebook.begin()
    for pool in ("three", "one"):
        assert notebook.run(PRELOAD.format(pool)).error == ""
    return notebook


@pytest.fixture(scope="module")
def kernel(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = begin(tmp_path_factory.mktemp("nb"))
    try:
        yield notebook
        notebook.run("%flyte_pool stop three --now\n%flyte_pool stop one --now")
    finally:
        notebook.end()


@pytest.fixture
def notebook(kernel: Notebook) -> Notebook:
    assert kernel.run("%flyte_pool warm three\n%flyte_pool warm one").error == ""
    return kernel


def where(notebook: Notebook, pool: str = "one") -> Any:
    """The preloaded object, its identity, and the process in which it is."""
    return notebook.run(WHERE.format(pool)).value


def expected(name: str) -> list[str]:
    return [f"{name} {number}" for number in range(LINES)]


# --- at once


def test_three_jobs_on_one_replica_keep_their_lines_apart(notebook: Notebook) -> None:
    asked = {
        name: notebook.start(f"%%flyte_task three --bg --as {name}\nNAME = {name!r}\n{COUNTED}\nos.getpid()")
        for name in ("red", "green", "blue")
    }
    processes = set()
    for name, cell in asked.items():
        settled(notebook, cell, "done")
        lines = notebook.run(f"%flyte_result {name} --output").text().splitlines()
        assert lines[:-1] == expected(name)
        processes.add(lines[-1])
    assert len(processes) == 1


def test_three_cells_that_are_awaited_together_keep_their_lines_apart(notebook: Notebook) -> None:
    """Three executions of one notebook, as a front end's: each line is in the cell that its task was awaited for."""
    code = (
        "@three.task\nasync def count(name):\n"
        f"    for n in range({LINES}):\n        print(name, n)\n        await asyncio.sleep(0)\n    return os.getpid()"
    )
    assert notebook.run(code).error == ""
    started = [notebook.start(f"{name} = asyncio.create_task(count({name!r}))") for name in ("red", "green", "blue")]
    assert len(set(notebook.run("await asyncio.gather(red, green, blue)").value)) == 1
    for name, asked in zip(("red", "green", "blue"), started, strict=True):
        notebook.wait_text(asked, f"{name} {LINES - 1}\n")
        assert Cell(notebook._seen[asked]).text().splitlines() == expected(name)


def test_three_notebooks_on_one_replica_keep_their_lines_apart(
    notebook: Notebook, tmp_path_factory: pytest.TempPathFactory
) -> None:
    notebooks = {"red": notebook}
    try:
        for name in ("green", "blue"):
            notebooks[name] = Notebook(tmp_path_factory.mktemp(name))
            notebooks[name].begin("%load_ext flyte_jupyter")
        asked = {
            name: each.start(f"%%flyte_task three --quiet\nNAME = {name!r}\n{COUNTED}\nos.getpid()")
            for name, each in notebooks.items()
        }
        cells = {name: notebooks[name].wait(cell) for name, cell in asked.items()}
    finally:
        for name in notebooks.keys() - {"red"}:
            notebooks[name].end()
    assert [cell.text().splitlines() for cell in cells.values()] == [expected(name) for name in cells]
    assert len({cell.value for cell in cells.values()}) == 1


# --- floods


def rss(*pids: int) -> list[float]:
    return [psutil.Process(pid).memory_info().rss / 2**20 for pid in pids]


@pytest.mark.parametrize("code", ["print('x' * 49 * 1024)", "print('x' * 99)"], ids=["wide", "narrow"])
def test_fifty_megabytes_of_output_leave_memory_as_it_was(code: str, notebook: Notebook) -> None:
    count = 50 * 2**20 // eval(code.removeprefix("print(").removesuffix(")")).__len__()
    processes = [notebook.run("os.getpid()").value, broker.connect().broker_pid, where(notebook)[2]]
    before = rss(*processes)
    asked = notebook.start(f"%%flyte_task one --quiet\nfor n in range({count}): {code}")
    peaks = before
    while asked not in notebook._ended:
        notebook._take(START_S)
        peaks = [max(pair) for pair in zip(peaks, rss(*processes), strict=True)]
    cell = Cell(notebook._seen[asked])
    assert cell.error == ""
    assert len(cell.text()) <= 2 * 2**20 + 2**16, "the rest is kept aside"
    grown = [after - first for first, after in zip(before, peaks, strict=True)]
    assert max(grown) < 40, f"MiB by which the notebook, the broker and the replica grew: {grown}"
    assert where(notebook)[2] == processes[2], "the same replica serves the next cell"


# --- Stop

WORK = {
    "sleep": "import time\nprint('on', flush=True)\ntime.sleep(60)",
    "numpy": "import numpy as np\na = np.ones((300, 300))\nprint('on', flush=True)\nwhile True: a = a @ a / 300",
    "await": "import asyncio\nprint('on', flush=True)\nawait asyncio.sleep(60)",
    "loop": "print('on', flush=True)\nwhile True: pass",
}


@pytest.mark.parametrize("name", WORK)
def test_stop_ends_a_cell_and_leaves_what_is_loaded(name: str, notebook: Notebook) -> None:
    before = where(notebook)
    asked = notebook.start(f"%%flyte_task one\n{WORK[name]}")
    notebook.wait_text(asked, "on\n")
    cell = notebook.interrupt(asked)
    assert cell.error == "KeyboardInterrupt"
    assert re.search(r"Interrupted on one\[\d+\]; what it has loaded is still there", cell.text("stderr"))
    with within(1):
        assert where(notebook) == before


def test_stop_withdraws_a_cell_that_waits(notebook: Notebook) -> None:
    before = where(notebook)
    hog = notebook.start("%%flyte_task one --bg --as hog\nimport time\ntime.sleep(60)")
    notebook.wait(hog)
    settled(notebook, hog, "running")
    asked = notebook.start("%%flyte_task one --progress-after 0.1\nopen('never', 'w')")
    wait_until(lambda: notebook._take(START_S) or "Waiting" in final(Cell(notebook._seen[asked])), START_S, "waiting")
    cell = notebook.interrupt(asked)
    assert cell.error == "KeyboardInterrupt"
    wait_until(lambda: notebook.run("flyte.pool(one).status().waiting").value == 0)
    assert "is stopped" in notebook.run("%flyte_cancel hog").text()
    settled(notebook, hog, "cancelled")
    assert where(notebook) == before
    assert notebook.run("os.path.exists('never')").value is False, "it never ran"


def test_a_cell_that_waits_says_which_place_it_has(notebook: Notebook) -> None:
    hog = notebook.start("%%flyte_task one --bg --as hog\nimport time\nprint('on')\ntime.sleep(60)")
    settled(notebook, hog, "\non")
    notebook.wait(notebook.start("%%flyte_task one --bg --as before\n1"))
    asked = notebook.start("%%flyte_task one --progress-after 0.1\n'mine'")
    line = r"Waiting for one: 2nd in the queue · one\[\d+\] busy 0:\d\d \(cell #\d+, work\.ipynb\)"
    wait_until(lambda: notebook._take(START_S) or re.fullmatch(line, final(Cell(notebook._seen[asked]))), START_S, line)
    assert notebook.interrupt(asked).error == "KeyboardInterrupt"
    assert len(notebook.run("%flyte_cancel --mine").text().splitlines()) == 2
    settled(notebook, hog, "cancelled")


STUBBORN = {
    "swallows": "import time\nprint('on', flush=True)\nwhile True:\n"
    "    try: time.sleep(60)\n    except KeyboardInterrupt: pass",
    "holds the lock": "import ctypes\nprint('on', flush=True)\nctypes.PyDLL(None).sleep(60)",
}


def pressed(notebook: Notebook, asked: str) -> bool:
    """Stop, once more; whether the cell is over a moment later."""
    notebook.manager.interrupt_kernel()
    with suppress(queue.Empty):
        while asked not in notebook._ended:
            notebook._take(0.1)
    return asked in notebook._ended


@pytest.mark.parametrize("name", [pytest.param(name, id=name.replace(" ", "-")) for name in STUBBORN])
def test_a_second_stop_ends_what_ignores_the_first(name: str, notebook: Notebook) -> None:
    pid = where(notebook)[2]
    asked = notebook.start(f"%%flyte_task one\n{STUBBORN[name]}")
    notebook.wait_text(asked, "on\n")
    with within(1):
        wait_until(lambda: pressed(notebook, asked), START_S, "the cell is back")
    cell = Cell(notebook._seen[asked])
    assert cell.error == "KeyboardInterrupt"
    assert re.search(r"The replica one\[\d+\] was ended; a replacement is loading\.", cell.text("stderr"))
    wait_until(lambda: not psutil.pid_exists(pid), START_S, "the replica ends")
    assert where(notebook)[2] not in (pid, os.getpid())


def stopped(notebook: Notebook, asked: str) -> Cell:
    """The cell after one Stop, however long it takes."""
    notebook.manager.interrupt_kernel()
    return notebook.wait(asked)


def test_what_does_not_react_to_a_stop_is_ended_after_its_grace(notebook: Notebook) -> None:
    pid = where(notebook)[2]
    asked = notebook.start(f"%%flyte_task one\n{STUBBORN['holds the lock']}")
    notebook.wait_text(asked, "on\n")
    cell = stopped(notebook, asked)
    assert cell.error == "KeyboardInterrupt"
    assert re.search(r"The replica one\[\d+\] was ended; a replacement is loading\.", cell.text("stderr"))
    wait_until(lambda: not psutil.pid_exists(pid), GRACE_S + START_S, "the replica ends")
    assert where(notebook)[2] != pid


SAVES = """
import time
hist = []
try:
    while True:
        hist.append(len(hist)); print('on', flush=True); time.sleep(0.05)
except KeyboardInterrupt:
    print('saving', flush=True)
    time.sleep({seconds})
    print('saved')
{then}
print('rest')
"""


@pytest.mark.parametrize("seconds", [0.1, 2.5 * GRACE_S], ids=["quickly", "for longer than the grace"])
def test_a_stop_that_the_cell_handles_is_that_of_a_local_cell(notebook: Notebook, seconds: float) -> None:
    pid = where(notebook)[2]
    asked = notebook.start(f"%%flyte_task one -o hist\n{SAVES.format(seconds=seconds, then='')}")
    notebook.wait_text(asked, "on\n")
    cell = stopped(notebook, asked)
    assert cell.error == "", cell.traceback
    assert cell.text("stdout").endswith("saving\nsaved\nrest\n")
    assert notebook.run("hist[:1]").value == [0]
    assert where(notebook)[2] == pid


def test_a_stop_that_the_cell_answers_with_an_error_raises_that_error(notebook: Notebook) -> None:
    pid = where(notebook)[2]
    code = SAVES.format(seconds=0.1, then="    raise ValueError('not saved') from None")
    asked = notebook.start(f"%%flyte_task one --retries 3\n{code}")
    notebook.wait_text(asked, "on\n")
    cell = stopped(notebook, asked)
    assert cell.error == "ValueError"
    assert cell.text("stdout").count("saving") == 1
    assert where(notebook)[2] == pid


def test_a_second_stop_ends_a_cell_that_saves(notebook: Notebook) -> None:
    pid = where(notebook)[2]
    asked = notebook.start(f"%%flyte_task one\n{SAVES.format(seconds=60, then='')}")
    notebook.wait_text(asked, "on\n")
    notebook.manager.interrupt_kernel()
    notebook.wait_text(asked, "saving\n")
    assert notebook.interrupt(asked).error == "KeyboardInterrupt"
    wait_until(lambda: not psutil.pid_exists(pid), START_S, "the replica ends")


def test_what_a_second_stop_would_do_is_said_after_a_while(notebook: Notebook) -> None:
    asked = notebook.start(f"%%flyte_task one\n{SAVES.format(seconds=4, then='')}")
    notebook.wait_text(asked, "on\n")
    cell = stopped(notebook, asked)
    assert cell.error == ""
    assert "got the interrupt and is still running" in cell.text("stderr")
    assert "Stop again to end the replica" in cell.text("stderr")


def test_lines_behind_a_stopped_command_decide_what_comes_of_the_cell(notebook: Notebook) -> None:
    asked = notebook.start(
        "%%flyte_task one -o done\nprint('on', flush=True)\n!echo begun; sleep 20\ndone = 1\nprint('rest')"
    )
    notebook.wait_text(asked, "begun")
    cell = stopped(notebook, asked)
    assert cell.error == ""
    assert "rest" in cell.text("stdout")
    assert notebook.run("done").value == 1
