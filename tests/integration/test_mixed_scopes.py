"""A session in a pool without a slot to spare: the other cells and calls of its notebook go on, and others are told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import START_S, wait_until
from test_cells import final, settled
from test_notebook import Cell, Notebook

pytestmark = pytest.mark.kernel

SETUP = """
%load_ext flyte_jupyter
import asyncio, os, threading
import flyte_jupyter as flyte
flyte.PoolHandle.view = None  # a card's messages come at any time
one = flyte.TaskEnvironment("single", reusable=flyte.ReusePolicy(replicas=1))
two = flyte.TaskEnvironment("double", reusable=flyte.ReusePolicy(replicas=1, concurrency=2))
@one.task
def where(number: int = 0) -> int: return os.getpid()
@one.task
async def awhere(number: int = 0) -> int: return os.getpid()
@two.task
async def both(number: int = 0) -> int: return os.getpid()
"""
SESSIONS = {"--scope session": "''", "--session s": "s", "--session 'a b'": "'a b'"}


@pytest.fixture(scope="module")
def kernel(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("nb"))
    notebook.setup = SETUP
    try:
        notebook.begin()
        yield notebook
        notebook.run("%flyte_pool stop single --now\n%flyte_pool stop double --now")
    finally:
        notebook.end()


@pytest.fixture
def notebook(kernel: Notebook) -> Iterator[Notebook]:
    assert kernel.run("%flyte_pool warm single\n%flyte_pool warm double").error == ""
    yield kernel
    for pool in ("single", "double"):
        for name in SESSIONS.values():
            kernel.run(f"%flyte_cancel --session {name} --pool {pool}")


def keep(notebook: Notebook, option: str = "--session s", pool: str = "single") -> int:
    """The process of the replica where a session has its names now."""
    pid: int = notebook.run(f"%%flyte_task {pool} {option} --quiet\nimport os\nkept = 1\nos.getpid()").value
    return pid


OTHERS = {
    "a cell": "%%flyte_task single --quiet\nimport os\nos.getpid()",
    "a line": "%flyte_task single --quiet -- __import__('os').getpid()",
    "a cell in the replica's names": "%%flyte_task single --scope replica --quiet\nimport os\nos.getpid()",
    "a call": "where()",
    "a loop of calls": "[where(n) for n in range(20)][-1]",
    "a map": "list(flyte.map(where, range(20)))[-1]",
    "an awaited call": "await awhere()",
    "awaited calls": "(await asyncio.gather(*(awhere(n) for n in range(20))))[-1]",
    "a call of a thread": "await asyncio.to_thread(where)",
    "a call of an executor": "flyte.pool(one).executor().submit(os.getpid).result()",
    "a cell on that replica": "%%flyte_task single --replica {number} --quiet\nimport os\nos.getpid()",
}


@pytest.mark.parametrize("option", SESSIONS)
@pytest.mark.parametrize("other", [pytest.param(name, id=name.replace(" ", "-")) for name in OTHERS])
def test_the_rest_of_the_notebook_runs_where_its_session_has_its_names(
    other: str, option: str, notebook: Notebook
) -> None:
    pid = keep(notebook, option)
    number = notebook.run("flyte.pool(one).status().replicas[0].index").value
    assert notebook.run(OTHERS[other].replace("{number}", str(number))).value == pid
    assert notebook.run(f"%%flyte_task single {option} --quiet\nkept, os.getpid()").value == (1, pid)


def test_sessions_without_a_replica_each_share_one(notebook: Notebook) -> None:
    pid = keep(notebook)
    assert [keep(notebook, option) for option in SESSIONS] == [pid] * 3
    for number, option in enumerate(SESSIONS):
        assert notebook.run(f"%%flyte_task single {option}\nkept = {number}").error == ""
    for number, option in enumerate(SESSIONS):
        assert notebook.run(f"%%flyte_task single {option} --quiet\nkept").value == number
    held = r"single\[\d+\] is still held by the session {}\.\n"
    assert re.fullmatch(held.format("of this notebook"), notebook.run("%flyte_cancel --session s").text())
    assert 'held by session "s"' not in notebook.run("%flyte_status single").text()
    assert re.fullmatch(held.format("a b"), notebook.run("%flyte_cancel --session ''").text())
    assert notebook.run("%%flyte_task single --session 'a b' --quiet\nkept").value == 2
    assert 'held by session "a b"' in notebook.run("%flyte_status single").text()
    assert notebook.run("%%flyte_task single --session s --quiet\n'kept' in globals()").value is False


def test_a_cell_on_all_replicas_runs_on_that_of_a_session_too(notebook: Notebook) -> None:
    pid = keep(notebook)
    assert notebook.run("%%flyte_task single --all -o pids\nimport os\npids = os.getpid()").error == ""
    assert notebook.run("pids").value == [pid]
    assert keep(notebook) == pid


def test_what_another_cell_makes_is_no_name_of_the_session(notebook: Notebook) -> None:
    keep(notebook)
    assert notebook.run("%%flyte_task single --quiet\nkept").error == "NameError"
    assert notebook.run("%%flyte_task single --quiet\nkept = 2").error == ""
    assert notebook.run("%%flyte_task single --session s --quiet\nkept").value == 1


def test_a_cell_of_the_session_that_runs_is_waited_for(notebook: Notebook, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    keep(notebook)
    busy = f"import os, time\nprint('on')\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.05)"
    asked = notebook.start(f"%%flyte_task single --session s --bg --as busy\n{busy}")
    settled(notebook, asked, "\non")
    assert notebook.run("job = asyncio.ensure_future(awhere())").error == ""
    assert notebook.run("await asyncio.sleep(0.3)\njob.done()").value is False
    gate.touch()
    assert notebook.run("await job").value == keep(notebook)


def test_the_next_cell_of_a_session_waits_only_for_the_call_that_runs_in_its_slot(
    notebook: Notebook, tmp_path: Path
) -> None:
    gates = [tmp_path / name for name in ("first", "second")]
    pid = keep(notebook)
    wait = "import os, time\nprint('on')\nwhile not os.path.exists({!r}): time.sleep(0.05)"
    jobs = []
    for index, gate in enumerate(gates):
        jobs.append(notebook.start(f"%%flyte_task single --bg --as plain{index}\n{wait.format(str(gate))}"))
        notebook.wait(jobs[-1])
        if not index:
            settled(notebook, jobs[0], "\non")
    cell = notebook.start("%%flyte_task single --session s --quiet\nkept, os.getpid()")
    gates[0].touch()
    assert notebook.wait(cell).value == (1, pid)
    gates[1].touch()
    settled(notebook, jobs[1], "done")


def test_two_slots_serve_a_session_and_two_calls(notebook: Notebook) -> None:
    pid = keep(notebook, pool="double")
    assert set(notebook.run("await asyncio.gather(*(both(n) for n in range(8)))").value) == {pid}
    assert notebook.run("%%flyte_task double --quiet\nimport os\nos.getpid()").value == pid
    assert keep(notebook, pool="double") == pid


def test_stop_of_a_call_in_the_slot_of_a_session_leaves_its_names(notebook: Notebook) -> None:
    pid = keep(notebook)
    asked = notebook.start("%%flyte_task single\nimport time\nprint('on')\ntime.sleep(60)")
    notebook.wait_text(asked, "on")
    assert notebook.interrupt(asked).error == "KeyboardInterrupt"
    assert notebook.run("%%flyte_task single --session s --quiet\nkept, os.getpid()").value == (1, pid)


def test_a_call_that_loses_its_replica_leaves_a_session_that_begins_anew(notebook: Notebook) -> None:
    pid = keep(notebook)
    assert notebook.run("%%flyte_task single --quiet\nimport os\nos.abort()").error == "ReplicaDied"
    again = notebook.run("%%flyte_task single --session s --quiet\nimport os\n'kept' in globals(), os.getpid()").value
    assert again[0] is False
    assert again[1] != pid


def test_an_ended_session_ends_when_the_call_in_its_slot_is_over(notebook: Notebook, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    keep(notebook)
    busy = f"import os, time\nprint('on')\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.05)\n'all of it'"
    asked = notebook.start(f"%%flyte_task single --bg --as busy\n{busy}")
    settled(notebook, asked, "\non")
    assert "is free again" in notebook.run("%flyte_cancel --session s").text()
    gate.touch()
    settled(notebook, asked, "all of it")
    assert notebook.run("%%flyte_task single --session s --quiet\n'kept' in globals()").value is False


# --- what is said


@pytest.fixture
def other(notebook: Notebook, tmp_path: Path) -> Iterator[Notebook]:
    """Another notebook, which has a session."""
    made = Notebook(tmp_path)
    made.setup = SETUP
    try:
        made.begin("import os; os.environ['JPY_SESSION_NAME'] = 'other.ipynb'\n" + SETUP)
        yield made
    finally:
        made.end()


@pytest.mark.parametrize(("option", "name"), SESSIONS.items())
def test_whoever_waits_for_a_session_of_another_notebook_is_told(
    option: str, name: str, notebook: Notebook, other: Notebook
) -> None:
    keep(other, option)
    session = option.partition(" ")[2].strip("'")
    keeper = f'session "{session}"' if option.startswith("--session") else "the session"
    end = f"`%flyte_cancel --session {name} --pool single` there frees it"
    asked = notebook.start("%%flyte_task single --progress-after 0.1\nimport os\nos.getpid()")
    line = rf"Waiting for single: .*single\[\d+\] held by {keeper} of \S+ \({re.escape(end)}\)"
    wait_until(lambda: notebook._take(START_S) or re.fullmatch(line, final(Cell(notebook._seen[asked]))), START_S, line)
    note = rf"single\[\d+\] is held by {keeper} of \S+: {re.escape(end)}"
    assert re.search(note, other.run("%flyte_status single").text())
    assert "is free again" in other.run(f"%flyte_cancel --session {name} --pool single").text()
    assert notebook.wait(asked).error == ""
    assert "is held by" not in other.run("%flyte_status single").text()


def test_the_own_session_is_named_in_the_status(notebook: Notebook) -> None:
    keep(notebook)
    status = notebook.run("%flyte_status single").text()
    assert re.search(r'is held by session "s" of \S+: `%flyte_cancel --session s --pool single`', status)
