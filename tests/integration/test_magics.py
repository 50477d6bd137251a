"""Every verb and every magic does what it says: seen from the pool, not only from what is printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from support import START_S, wait_until
from test_cells import final, settled
from test_notebook import Cell, Notebook

pytestmark = pytest.mark.kernel

SETUP = """
%load_ext flyte_jupyter
import flyte_jupyter; flyte_jupyter.PoolHandle.view = None  # a card's messages come at any time
import flyte_jupyter as flyte
"""


CREATE = "%flyte_pool create tool --replicas 1:3 --env KIND=of_tool"


LOADING_S = 2.0
SLOW = f"""
slow = flyte.TaskEnvironment("slow", reusable=flyte.ReusePolicy(2))
@flyte.pool(slow).preload
def load():
    import time
    time.sleep({LOADING_S})
@slow.task
def where() -> int:
    import os
    return os.getpid()
pids = lambda: [each.pid for each in flyte.pool(slow).status().replicas if each.warm]

import threading, time
served, took, over = set(), [], threading.Event()
def call_again_and_again():
    while not over.wait(0.05):
        began = time.monotonic()
        served.add(where())
        took.append(time.monotonic() - began)
others = threading.Thread(target=call_again_and_again)
"""


@pytest.fixture(scope="module")
def kernel(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("nb"))
    notebook.setup = SETUP
    try:
        notebook.begin()
        yield notebook
    finally:
        notebook.end()


@pytest.fixture
def notebook(kernel: Notebook) -> Iterator[Notebook]:
    """With a pool `tool` that is ready."""
    for line in (CREATE, "%flyte_pool scale tool 1:3", "%flyte_pool warm tool"):
        assert kernel.run(line).error == ""
    yield kernel
    kernel.run("%flyte_cancel --mine")
    kernel.run("%flyte_pool stop tool --now")


@pytest.fixture(autouse=True)
def _handle(notebook: Notebook) -> None:
    notebook.run("pool = %flyte_pool show tool")
    notebook.run("replicas = lambda: [each.pid for each in pool.status().replicas if each.state in ('ready', 'busy')]")


def replicas(notebook: Notebook) -> list[int]:
    found: list[int] = notebook.run("replicas()").value
    return found


def begin(notebook: Notebook, name: str = "job", seconds: float = 60) -> str:
    asked = notebook.start(
        f"%%flyte_task tool --bg --as {name}\nimport time\nprint('on')\ntime.sleep({seconds})\n'over'"
    )
    notebook.wait(asked)
    settled(notebook, asked, "\non")
    return asked


# --- pools


def test_create_makes_what_it_was_told(notebook: Notebook) -> None:
    assert notebook.run("%%flyte_task tool --quiet\nimport os\nos.environ['KIND']").value == "of_tool"
    assert notebook.run("(pool.scaling.min_replicas, pool.scaling.max_replicas)").value == (1, 3)


def test_list_and_show_name_states(notebook: Notebook) -> None:
    assert re.search(r"^tool: 1 (ready|busy) · 1 to 3 replicas", notebook.run("%flyte_pool list").text(), re.MULTILINE)
    cell = notebook.run("%flyte_pool show tool")
    [shown] = [content["data"] for kind, content in cell.messages if kind == "execute_result"]
    assert "┌ tool ── 1 " in shown["text/plain"]
    assert ">┌ " in shown["text/html"], "what a saved notebook shows"
    assert "Run the cell again to reconnect." in shown["text/html"]
    assert str(replicas(notebook)[0]) in shown["text/html"]


def test_scale_and_warm_change_how_many_there_are(notebook: Notebook) -> None:
    assert notebook.run("%flyte_pool warm tool 2").error == ""
    assert len(replicas(notebook)) == 2
    assert notebook.run("%flyte_pool scale tool 3:3").error == ""
    wait_until(lambda: len(replicas(notebook)) == 3, START_S, "three replicas")
    assert "changes that" in notebook.run("%flyte_pool warm tool 9").text("stderr")
    assert notebook.run("%flyte_pool scale tool 1:3").error == ""


def test_keep_puts_off_the_end_of_the_pool(notebook: Notebook) -> None:
    assert "(kept)" not in notebook.run("%flyte_status tool").text()
    assert notebook.run("%flyte_pool keep tool 2h").error == ""
    kept = re.compile(r"idle off in (2:00:00|1:59:\d\d) \(kept\)")
    wait_until(lambda: kept.search(notebook.run("%flyte_status tool").text()), what="it is idle, and kept")


def test_stop_lets_what_runs_finish_and_starts_nothing(notebook: Notebook) -> None:
    asked = begin(notebook, seconds=1.5)
    [pid] = replicas(notebook)
    assert "tool stops when this has ended" in notebook.run("%flyte_pool stop tool").text()
    settled(notebook, asked, "done")
    assert "'over'" in final(Cell(notebook._seen[asked]))
    wait_until(lambda: not psutil.pid_exists(pid), START_S, "the replica ends")
    assert replicas(notebook) == []
    assert notebook.run("%%flyte_task tool --quiet\n6 * 7").value == 42, "the next call starts it again"


def test_restart_of_one_replica_gives_another_in_its_place(notebook: Notebook) -> None:
    [before] = replicas(notebook)
    name = notebook.run("pool.status().replicas[0].name").value
    assert "replaced" in notebook.run(f"%flyte_pool restart {name}").text()
    wait_until(lambda: replicas(notebook) not in ([], [before]), START_S, "another process")
    assert "is for a whole pool: tool" in notebook.run("%flyte_pool stop tool[0]").text("stderr")
    missing = notebook.run("%flyte_pool restart tool[9]").traceback
    assert re.search(r'FJ106 The pool "tool" has no replica 9 \(existing: \d', missing)


def test_interrupt_stops_what_runs_and_keeps_the_process(notebook: Notebook) -> None:
    asked = begin(notebook)
    before = replicas(notebook)
    assert "are stopped" in notebook.run("%flyte_pool interrupt tool[0]").text()
    settled(notebook, asked, "cancelled")
    assert replicas(notebook) == before


def test_restart_replaces_every_process(notebook: Notebook) -> None:
    before = set(replicas(notebook))
    assert notebook.run("%flyte_pool restart tool").error == ""
    wait_until(lambda: (after := set(replicas(notebook))) and not after & before, START_S, "other processes")


def test_a_pool_that_is_restarted_answers_all_the_while(notebook: Notebook) -> None:
    """Its replicas load for two seconds each, one after the other; no call waits for that."""
    notebook.run(SLOW)
    notebook.run("flyte.pool(slow).warm(2)")
    before = set(notebook.run("pids()").value)
    assert len(before) == 2
    notebook.run("others.start()")
    assert notebook.run("%flyte_pool restart slow --timeout 10").error == ""
    wait_until(lambda: not set(notebook.run("pids()").value) & before, START_S, "other processes")
    notebook.run("over.set(); others.join()")
    assert notebook.run("max(took)").value < LOADING_S / 2
    assert notebook.run("(len(served) > 1, len(took) > 20)").value == (True, True)
    notebook.run("%flyte_pool stop slow --now")


def test_only_one_replica_is_restarted_at_once(notebook: Notebook) -> None:
    before = replicas(notebook)
    said = notebook.run("%flyte_pool restart tool --now").text("stderr")
    assert "--now is for one replica, such as tool[0]" in said
    assert replicas(notebook) == before
    assert "is replaced" in notebook.run("%flyte_pool restart tool[0] --now").text()


def test_stop_asks_while_work_runs_and_does_it_when_told(notebook: Notebook) -> None:
    asked = begin(notebook)
    [pid] = replicas(notebook)
    said = notebook.run("%flyte_pool stop tool").text()
    assert re.match(r"tool stops when this has ended: cell #\d+ \(work\.ipynb\)\. To end it now: .* --now", said)
    assert psutil.pid_exists(pid)
    assert "Stopped tool." in notebook.run("%flyte_pool stop tool --now").text()
    settled(notebook, asked, "failed")
    assert not psutil.pid_exists(pid)


# --- cells in the background


def test_cancel_stops_one_all_or_those_that_wait(notebook: Notebook) -> None:
    assert notebook.run("%flyte_pool scale tool 1:1").error == ""
    first = begin(notebook, "first")
    second = notebook.start("%%flyte_task tool --bg --as second\n1")
    notebook.wait(second)
    assert re.fullmatch(r"cell #\d+ is stopped\.\n", notebook.run("%flyte_cancel --queued").text())
    settled(notebook, second, "cancelled")
    assert notebook.run("first.done()").value is False
    assert "is stopped" in notebook.run("%flyte_cancel --mine").text()
    settled(notebook, first, "cancelled")
    assert notebook.run("%flyte_cancel --mine").text() == "Nothing to stop.\n"
    assert "TASK, --mine or --queued" in notebook.run("%flyte_cancel").text("stderr")


def test_wait_waits_and_result_returns(notebook: Notebook) -> None:
    begin(notebook, seconds=1.5)
    assert re.match(
        r"cell #\d+ is not over after 0\.1 s; it goes on", notebook.run("%flyte_wait job --timeout 0.1").text()
    )
    assert notebook.run("job.done()").value is False
    assert notebook.run("%flyte_wait job").error == ""
    assert notebook.run("job.done()").value is True
    number = notebook.run("%flyte_task tool --bg --as sum -- 6 * 7")
    assert number.error == ""
    assert notebook.run("%flyte_result sum").value == 42
    assert notebook.run("%flyte_result sum -o kept\nkept").value == 42
    assert notebook.run("%flyte_result job --output").text() == "on\n'over'\n"
    assert "is no task cell of this notebook" in notebook.run("%flyte_result 12345").text("stderr")


# --- looking


def test_status_shows_what_runs_and_follows_it(notebook: Notebook) -> None:
    begin(notebook)
    everything = notebook.run("%flyte_status").text()
    assert everything.startswith("broker ")
    assert "┌ tool ── 1 busy" in everything
    assert re.search(r"│ \d +busy .* cell #\d+", notebook.run("%flyte_status tool").text())
    asked = notebook.start("%flyte_status tool --watch")
    notebook.wait_text(asked, "1 busy")
    assert notebook.interrupt(asked).error == ""


def test_logs_show_what_no_cell_wrote(notebook: Notebook) -> None:
    assert notebook.run("%%flyte_preload tool\nprint('loading one')\nprint('loading two')").error == ""
    assert notebook.run("%%flyte_task tool --quiet\n1").value == 1
    assert notebook.run("%flyte_logs tool").text().splitlines()[-2:] == ["loading one", "loading two"]
    assert notebook.run("%flyte_logs tool --grep two").text() == "loading two\n"
    assert notebook.run("%flyte_logs tool --tail 1").text() == "loading two\n"


def test_the_gpus_and_who_uses_them(notebook: Notebook) -> None:
    assert notebook.run("%flyte_gpu").text() == "GPUs: none (FLYTE_JUPYTER_GPUS declares no GPU)\n"


def test_the_memory_of_replicas_is_in_their_table(notebook: Notebook) -> None:
    def shown() -> bool:  # of one that has just started nothing may be known yet
        return (
            re.search(r"^│ # +state +GPU +memory ", notebook.run("%flyte_status tool").text(), re.MULTILINE) is not None
        )

    wait_until(shown)


def test_the_doctor_says_of_each_pool_where_its_replicas_come_from(notebook: Notebook) -> None:
    found = notebook.run("%flyte_doctor").text()
    assert re.search(
        r"^ok +pool tool: replicas: (forked from a warm process|(spawned|forked) .+)$", found, re.MULTILINE
    )
    assert re.search(r"^ok +broker: pid \d+ answers", found, re.MULTILINE)


def test_config_changes_what_cells_do(notebook: Notebook) -> None:
    try:
        shown = notebook.run("%flyte_config --quiet --timeout 0.3 --pool tool").text()
        assert re.search(r"^timeout +0\.3s? .*notebook", shown, re.MULTILINE), shown
        assert notebook.run("%%flyte_task\n1").shown == [("execute_result", "1")]
        assert notebook.run("%%flyte_task\nimport time\ntime.sleep(60)").error == "MaxRuntimeExceededError"
    finally:
        notebook.run("%flyte_config --no-quiet --timeout 0")
    assert len(notebook.run("%%flyte_task tool\n1").shown) == 2


def test_help_lists_every_magic(notebook: Notebook) -> None:
    text = notebook.run("%flyte").text()
    there = notebook.run(
        "sorted(n for kind in get_ipython().magics_manager.magics.values() for n in kind if 'flyte' in n)"
    )
    assert [name for name in set(there.value) if name not in text] == []


# --- what is left in a file


def test_a_saved_notebook_keeps_what_it_showed(shared_broker: Path, tmp_path: Path) -> None:
    nbclient: Any = pytest.importorskip("nbclient")
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    sources = [
        "%load_ext flyte_jupyter",
        "%flyte_pool create saved --replicas 1:1",
        "%flyte_pool warm saved",
        "%%flyte_task saved --bg --as job\nprint('early')\n6 * 7",
        "%flyte_wait job",
        "%%flyte_task saved --progress-after 0\nprint('there')\n'a value'",
        "%flyte_config --output-limit 1KB\n",
        "%%flyte_task saved --quiet\nfor n in range(1000): print('line', n)",
        "%flyte_pool stop saved --now",
    ]
    book.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    client = nbclient.NotebookClient(
        book, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    nbformat.validate(book)
    outputs = {cell.source.partition("\n")[0]: cell.outputs for cell in book.cells}
    [pool] = [each.data for each in outputs["%flyte_pool warm saved"] if "data" in each]
    assert "1 ready" in pool["text/plain"]
    assert ">┌ " in pool["text/html"]
    assert "<script" not in pool["text/html"]
    job = outputs["%%flyte_task saved --bg --as job"][0].data["text/plain"]
    assert re.match(r"cell #\d+ · done · saved\[0\] .*\nearly\n42", job), job
    cell = outputs["%%flyte_task saved --progress-after 0"]
    assert [each.output_type for each in cell] == ["stream", "execute_result", "display_data"], (
        "the waiting line is gone"
    )
    assert re.fullmatch(r"saved\[0\] · \d+\.\d s run · \d+\.\d s wait", cell[2].data["text/plain"])
    flood = outputs["%%flyte_task saved --quiet"]
    assert re.search(r"more than 1 ?K.*not shown here\. To see the rest: %flyte_result \d+ --output", flood[-1].text)
