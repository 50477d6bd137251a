"""Task cells as a person at a notebook meets them: a real ipykernel that runs the magics, with real replicas."""

from __future__ import annotations

import queue
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import pytest
from support import START_S, TIME_SCALE, wait_until, within
from test_notebook import Cell, Notebook

from flyte_jupyter.client import broker
from flyte_jupyter.core.timeline import RecentView

pytestmark = pytest.mark.kernel

SETUP = """
%load_ext flyte_jupyter
import flyte_jupyter; flyte_jupyter.PoolHandle.view = None  # a card's messages come at any time
import os, sys, time
from IPython.display import clear_output, display
import flyte_jupyter as flyte
from flyte_jupyter.core import call as life
life.GRACE_S = 1.0
env = flyte.TaskEnvironment("magic", reusable=flyte.ReusePolicy(replicas=(1, 2)))
factor = 3
class Box:
    def __init__(self, value): self.value = value
    def __eq__(self, other): return type(other) is Box and other.value == self.value
def times(number): return number * factor
"""
PRELOAD = """%%flyte_preload magic
import os
model = {"pid": os.getpid()}
def pipe(text): return text.upper()
"""
FOOTER = re.compile(r"magic\[\d\] · \d+\.\d s run · \d+\.\d s wait")


@pytest.fixture(scope="module")
def kernel(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("nb"))
    notebook.setup = SETUP
    try:
        notebook.begin()
        assert notebook.run(PRELOAD).error == ""
        yield notebook
        notebook.run("%flyte_pool stop magic --now")
    finally:
        notebook.end()


@pytest.fixture
def notebook(kernel: Notebook) -> Notebook:
    assert kernel.run("%flyte_pool warm magic").error == ""
    return kernel


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def frames(cell: Cell) -> str:
    """A traceback without the numbers of the cell and its lines, the line of the magic, and parameters of functions."""
    lines = [line for line in cell.traceback.splitlines() if "%%flyte_task" not in line]
    lines = [re.sub(r"(, in \w+)\(.*\)", r"\1()", line) for line in lines]
    return re.sub(r"In\[\d+\], line \d+|\b\d+\b", "#", "\n".join(lines))


def final(cell: Cell) -> str:
    """The text of the last display, as it is after all updates."""
    return ["", *(content["data"]["text/plain"] for kind, content in cell.messages if kind.endswith("display_data"))][
        -1
    ]


def settled(notebook: Notebook, asked: str, text: str) -> Cell:
    """A cell that is over, once its display shows `text`: a background cell goes on showing."""

    def there() -> bool:
        with suppress(queue.Empty):
            notebook._take(0.2)
        return text in final(Cell(notebook._seen[asked]))

    wait_until(there, START_S, text)
    return Cell(notebook._seen[asked])


def test_a_cell_is_a_call_of_its_notebook_in_every_view(notebook: Notebook) -> None:
    began = time.monotonic()
    assert (
        notebook.run("%%flyte_task magic\nimport time, asyncio\ntime.sleep(0.1)\nawait asyncio.sleep(0.1)").error == ""
    )
    job = "%%flyte_task magic --bg --as failing\n1 / 0"
    assert notebook.run(job).error == ""

    def spans() -> list[RecentView]:
        return [span for span in broker.connect().snapshot().recent if span.began >= began]

    failed, done = wait_until(lambda: (found := spans())[1:] and found)
    assert (done.outcome, failed.outcome) == ("succeeded", "failed")
    assert done.task.startswith("cell #")
    assert done.ended is not None
    assert done.ended - done.began >= 0.2
    assert notebook.run("%flyte_cancel failing").error == ""


# --- what is shown

BODY = """
print("one")
print("two", file=sys.stderr)
handle = display("three", display_id=True)
handle.update("four")
clear_output(wait=True)
print("five", end="")
6
"""


def test_a_quiet_cell_shows_exactly_what_a_local_one_does(notebook: Notebook) -> None:
    there = notebook.run(f"%%flyte_task magic --quiet\nimport sys\nfrom IPython.display import *{BODY}")
    assert there.shown == notebook.run(BODY).shown
    counts = [content["execution_count"] for kind, content in there.messages if kind == "execute_result"]
    assert notebook.run(f"Out[{counts[0]}]").shown == [("execute_result", "6")]


def test_a_footer_tells_where_it_ran_and_how_long(notebook: Notebook) -> None:
    cell = notebook.run("%%flyte_task\nmodel['pid'] > 1")
    assert cell.shown[0] == ("execute_result", "True")
    assert FOOTER.fullmatch(cell.shown[1][1])
    assert len(cell.shown) == 2


def test_the_directive_and_the_line_form_are_the_same(notebook: Notebook) -> None:
    assert notebook.run("#| flyte_task: magic --quiet\npipe('a')").value == "A"
    assert notebook.run("%flyte_task magic --quiet -- pipe('a')").value == "A"
    notebook.run("loud = %flyte_task magic --quiet -- pipe('a')")
    assert notebook.run("loud").value == "A"
    there = notebook.run("%flyte_task magic --quiet -- __import__('threading').Lock()")
    assert "unlocked _thread.lock" in there.shown[0][1], "what cannot come here is at least shown"


def test_values_definitions_and_results_cross(notebook: Notebook) -> None:
    cell = notebook.run("%%flyte_task magic -i times,factor,Box -o y,made=box\ny = times(2)\nmade = Box(y)")
    assert cell.error == ""
    assert notebook.run("y, box == Box(6)").value == (6, True)


def test_a_name_that_is_not_made_is_named(notebook: Notebook) -> None:
    cell = notebook.run("%%flyte_task magic -o made,missing\nmade = 1")
    assert (cell.error, notebook.run("made").value) == ("NameError", 1)
    assert "-o missing: not defined when the cell ends" in cell.traceback


# --- errors

FAILING = """
def average(total, count):
    share = total / count
    return share

average(3, 0)
"""


def test_an_error_is_shown_as_that_of_a_local_cell(notebook: Notebook) -> None:
    there, here = notebook.run(f"%%flyte_task magic --quiet{FAILING}"), notebook.run(FAILING.lstrip("\n"))
    assert there.error == here.error == "ZeroDivisionError"
    assert frames(there) == frames(here)
    assert "line 6" in there.traceback


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise SystemExit(3)", "SystemExit"),
        ("raise ExceptionGroup('all', [ValueError(1)])", "ExceptionGroup"),
        ("exec('a b')", "SyntaxError"),
    ],
)
def test_errors_that_ipython_treats_in_its_own_way_show_none_of_our_lines(
    code: str, error: str, notebook: Notebook
) -> None:
    cell = notebook.run(f"%%flyte_task magic --quiet\n{code}")
    assert cell.shown == [("error", error)]
    assert code in cell.traceback
    assert "flyte_jupyter" not in cell.traceback


def test_a_captured_cell_keeps_what_it_shows(notebook: Notebook) -> None:
    assert notebook.run("%%capture kept\n%%flyte_task magic --quiet\nprint('one')\n6 * 7").shown == []
    assert notebook.run("kept.stdout, [each.data['text/plain'] for each in kept.outputs]").value == ("one\n", ["42"])


def test_a_syntax_error_is_shown_as_that_of_a_local_cell(notebook: Notebook) -> None:
    there, here = notebook.run("%%flyte_task magic\nx = 1\ny = = 2"), notebook.run("x = 1\ny = = 2")
    assert there.error == here.error == "SyntaxError"
    assert frames(there) == frames(here)


def test_an_error_stops_run_all(notebook: Notebook) -> None:
    asked = notebook.client.execute("%%flyte_task magic\n1 / 0", stop_on_error=True)
    notebook._seen[asked] = []
    reply = notebook.client.get_shell_msg(timeout=START_S)
    while reply["parent_header"].get("msg_id") != asked:
        reply = notebook.client.get_shell_msg(timeout=START_S)
    assert reply["content"]["status"] == "error"
    notebook.wait(asked)


def test_a_name_of_the_notebook_is_suggested_and_not_sent(notebook: Notebook) -> None:
    cell = notebook.run("%%flyte_task magic\nprint(factor)")
    assert cell.error == "NameError"
    assert 'FJ401 "factor" exists in your notebook' in cell.traceback
    assert "see only the preload names" in cell.traceback
    assert "Send it with `-i factor`" in cell.traceback

    def listed() -> bool:
        return "the preload names: model, os, pipe." in notebook.run("%%flyte_task magic\nprint(factor)").traceback

    wait_until(listed, what="a replica that can say at once which names it has")
    assert "FJ401" not in notebook.run("%%flyte_task magic\nprint(nowhere)").traceback
    for code in ("globals()['factor']", "eval('factor')"):
        assert 'FJ401 "factor" exists in your notebook' in notebook.run(f"%%flyte_task magic\n{code}").traceback
    assert "FJ401" not in notebook.run("%%flyte_task magic\n{}['factor']").traceback


def test_what_cannot_be_sent_is_named(notebook: Notebook) -> None:
    cell = notebook.run("import threading\nlock = threading.Lock()")
    cell = notebook.run("%%flyte_task magic -i lock\n1")
    assert (cell.error, cell.shown) == ("ArgumentNotSerializable", [("error", "ArgumentNotSerializable")])
    assert 'FJ402 "lock" cannot be sent to the pool' in cell.traceback


def test_a_limit_and_a_death_say_which_option_helps(notebook: Notebook) -> None:
    late = notebook.run("%%flyte_task magic --timeout 0.3\nimport time\ntime.sleep(60)")
    assert late.error == "MaxRuntimeExceededError"
    assert "--timeout" in late.traceback
    dead = notebook.run("%%flyte_task magic\nimport os\nos._exit(3)")
    assert dead.error == "ReplicaDied"
    assert "add `--retries 1`" in dead.traceback
    assert "tasks.py" not in late.traceback + dead.traceback


def test_a_cell_is_repeated_only_for_what_it_says(notebook: Notebook, tmp_path: Path) -> None:
    mark = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"
    assert notebook.run(f"%%flyte_task magic --retry-on crash\n{mark}\n1 / 0").error == "ZeroDivisionError"
    assert (tmp_path / "runs").read_text() == "x"
    assert notebook.run(f"%%flyte_task magic --retry-on crash\n{mark}.flush\nimport os\nos._exit(1)").error
    assert len((tmp_path / "runs").read_text()) >= 1
    assert notebook.run(f"%%flyte_task magic --retries 2\n{mark}\n1 / 0").error == "ZeroDivisionError"
    assert (tmp_path / "runs").read_text().count("x") >= 4


# --- questions and widgets


def test_a_cell_asks_its_user(notebook: Notebook) -> None:
    asked = notebook.start("%%flyte_task magic --quiet\ninput('who? ')")
    question = notebook.client.get_stdin_msg(timeout=START_S)
    assert question["content"] == {"prompt": "who? ", "password": False}
    notebook.client.input("Ann")
    assert notebook.wait(asked).value == "Ann"


def test_where_nobody_can_be_asked_it_is_told_at_once(notebook: Notebook) -> None:
    asked = notebook.client.execute("%%flyte_task magic\ninput('who? ')", allow_stdin=False, stop_on_error=False)
    notebook._seen[asked] = []
    cell = notebook.wait(asked)
    assert cell.error == "StdinNotImplementedError"
    assert "flyte_jupyter" not in cell.traceback


def test_a_widget_lives_on_after_its_cell(notebook: Notebook) -> None:
    made = notebook.start(
        "%%flyte_task magic --quiet\nimport ipywidgets\nslider = ipywidgets.IntSlider(value=3)\n"
        "def follow(change):\n    print('now', change['new'])\n    slider.description = 'moved'\n"
        "slider.observe(follow, 'value')\nslider.model_id"
    )
    cell = notebook.wait(made)
    opened = [content["comm_id"] for kind, content in cell.messages if kind == "comm_open"]
    [model] = [content["data"]["text/plain"].strip("'") for kind, content in cell.messages if kind == "execute_result"]
    assert model in opened
    update = {"method": "update", "state": {"value": 42}, "buffer_paths": []}
    notebook.client.shell_channel.send(notebook.client.session.msg("comm_msg", {"comm_id": model, "data": update}))

    def states() -> list[Any]:
        return [content["data"].get("state", {}) for kind, content in notebook._seen[made] if kind == "comm_msg"]

    def moved() -> bool:
        message = notebook.client.get_iopub_msg(timeout=START_S)
        if message["parent_header"].get("msg_id") == made:
            notebook._seen[made].append((message["msg_type"], message["content"]))
        return "now 42" in Cell(notebook._seen[made]).text() and {"description": "moved"} in states()

    wait_until(moved, START_S, "the widget's answer in the cell that made it")


# --- floods and waiting


def test_a_flood_ends_with_the_command_that_shows_the_rest(notebook: Notebook) -> None:
    notebook.run("%flyte_config --output-limit 1KB")
    cell = notebook.run("%%flyte_task magic --quiet\nfor n in range(1000): print('line', n)")
    notebook.run("%flyte_config --output-limit 2MiB")
    assert len(cell.text()) == 1000
    [command] = re.findall(r"%flyte_result \d+ --output", cell.text("stderr"))
    assert (cell.text() + notebook.run(command).text()).splitlines() == [f"line {n}" for n in range(1000)]


def test_a_cell_that_waits_says_for_what_and_then_no_more(notebook: Notebook) -> None:
    hogs = [notebook.start(f"%%flyte_task magic --bg --as hog{n}\nimport time\ntime.sleep(1.5)") for n in range(2)]
    cell = notebook.run("%%flyte_task magic --progress-after 0.2\n'mine'")
    kinds = [kind for kind, _ in cell.messages]
    waiting = cell.messages[0][1]["data"]["text/plain"]
    assert re.match(r"Waiting for magic: .*(busy|starting|loading) 0:0\d", waiting)
    assert kinds.index("clear_output") < kinds.index("execute_result"), "it is taken away before anything else is shown"
    for number, asked in enumerate(hogs):
        notebook.wait(asked)
        assert notebook.run(f"hog{number}.result(10)").error == ""


# --- interrupt


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("", "what it has loaded is still there"),
        (" --on-interrupt term", "a fresh replica takes its place"),
        (" --on-interrupt kill", "was ended"),
    ],
)
def test_stop_stops_the_work(option: str, says: str, notebook: Notebook) -> None:
    asked = notebook.start(f"%%flyte_task magic{option}\nimport time\nprint('on')\ntime.sleep(60)")
    notebook.wait_text(asked, "on")
    cell = notebook.interrupt(asked)
    assert cell.error == "KeyboardInterrupt"
    assert says in cell.text("stderr")
    assert "tasks.py" not in cell.traceback


# --- where it runs


def test_a_session_keeps_its_names_and_its_replica(notebook: Notebook) -> None:
    assert notebook.run("%%flyte_task magic --session s --quiet\nkept = model['pid']").error == ""
    assert notebook.run("%%flyte_task magic --session s --quiet\nkept == model['pid']").value is True
    assert notebook.run("%%flyte_task magic --quiet\nkept").error == "NameError"
    assert re.match(r"magic\[\d\] is free again", notebook.run("%flyte_cancel --session s").text())


def test_every_replica_or_a_certain_one(notebook: Notebook) -> None:
    assert notebook.run("%flyte_pool warm magic 2").error == ""
    assert notebook.run("%%flyte_task magic --all -o pids\npids = model['pid']").error == ""
    pids = notebook.run("pids").value
    assert len(set(pids)) == 2
    index = notebook.run("flyte.pool(env).status().replicas[1].index").value
    assert notebook.run(f"%%flyte_task magic --replica {index} --quiet\nmodel['pid']").value == pids[1]
    assert "there is no replica 99" in notebook.run("%%flyte_task magic --replica 99\n1").text("stderr")


def test_a_fresh_kernel_has_the_preload_and_ends(notebook: Notebook) -> None:
    pid = notebook.run("%%flyte_task magic --fresh --quiet\nmodel['pid']").value
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), START_S)


def test_a_dry_run_sends_nothing(notebook: Notebook) -> None:
    cell = notebook.run("%%flyte_task magic --dry-run -i factor,times -o y --timeout 2m\n1 / 0")
    assert cell.error == ""
    lines = cell.text().splitlines()
    assert [line.split()[0] for line in lines] == ["to", "code", "in", "in", "out", "limits", "queue"]
    assert lines[2] == "in        factor: a copy, 5 bytes"
    assert re.fullmatch(r"in        times: its code, [1-9]\d* bytes", lines[3])


# --- in the background


def test_a_job_shows_its_output_in_the_cell_that_started_it(notebook: Notebook) -> None:
    code = "import time\nprint('early')\ntime.sleep(0.5)\nprint('late')\ny = 7\n'end'"
    with within(0.5):
        asked = notebook.start(f"%%flyte_task magic --bg --as job -o y\n{code}")
        assert notebook.wait(asked).error == ""
    assert notebook.run("job.done()").value is False
    cell = settled(notebook, asked, "done")
    assert "early\nlate\n'end'" in final(cell)
    assert notebook.run("y = 0\njob.result(), y").value == (7, 7)
    assert notebook.run("%flyte_result job --output").text() == "early\nlate\n'end'\n"


def test_a_job_goes_on_in_its_own_cell_while_another_is_captured(notebook: Notebook, tmp_path: Path) -> None:
    go, seen = str(tmp_path / "go"), tmp_path / "seen"
    wait = "import pathlib, time\nwhile not pathlib.Path({}).exists(): time.sleep(0.01)".format
    job = notebook.start(f"%%flyte_task magic --bg --as job\n{wait(repr(go))}\nprint('on')")
    notebook.wait(job)
    captured = notebook.start(f"%%capture kept\nopen({go!r}, 'w').close()\n{wait(repr(str(seen)))}")
    try:
        settled(notebook, job, "done")
    finally:
        seen.touch()
    assert notebook.wait(captured).error == ""
    assert notebook.run("kept.outputs").value == []


def test_a_job_fails_as_its_cell_would(notebook: Notebook) -> None:
    asked = notebook.start("%%flyte_task magic --bg --as job\n1 / 0")
    cell = settled(notebook, asked, "failed")
    assert "ZeroDivisionError: division by zero" in final(cell)
    waited = notebook.run("%flyte_wait job")
    assert waited.error == "ZeroDivisionError"
    assert "----> 2 1 / 0" in waited.traceback
    assert "jobs.py" not in waited.traceback


@pytest.mark.parametrize("library", ["asyncio", "concurrent.futures"])
def test_a_job_that_raises_a_cancellation_itself_has_failed(library: str, notebook: Notebook) -> None:
    asked = notebook.start(f"%%flyte_task magic --bg --as job\nimport {library}\nraise {library}.CancelledError")
    settled(notebook, asked, "failed")
    waited = notebook.run("job.result()")
    assert waited.error == "CancelledError"
    assert "FJ504" not in waited.traceback


def test_a_job_of_an_expression_returns_its_value(notebook: Notebook) -> None:
    notebook.run("jobs = [get_ipython().run_line_magic('flyte_task', f'magic --bg -- [{n}] * 2') for n in range(3)]")
    assert notebook.run("[job.result() for job in jobs]").value == [[0, 0], [1, 1], [2, 2]]
    assert notebook.run("'_flyte_value' in globals()").value is False


def test_what_was_shown_before_stays_when_a_waiting_line_goes(notebook: Notebook) -> None:
    hogs = [notebook.start(f"%%flyte_task magic --bg --as hog{n}\nimport time\ntime.sleep(1)") for n in range(2)]
    cell = notebook.run("print('before')\n%flyte_task magic --progress-after 0.1 -- 6 * 7")
    kinds = [kind for kind, _ in cell.messages]
    assert "clear_output" not in kinds
    assert (cell.text(), cell.value) == ("before\n", 42)
    for number, asked in enumerate(hogs):
        notebook.wait(asked)
        notebook.run(f"hog{number}.result(10)")


def test_a_job_can_be_stopped(notebook: Notebook) -> None:
    asked = notebook.start("%%flyte_task magic --bg --as job\nimport time\ntime.sleep(60)")
    notebook.wait(asked)
    assert "is stopped" in notebook.run("%flyte_cancel job").text()
    settled(notebook, asked, "cancelled")
    assert notebook.run("job.result()").error == "TaskCancelled"
    assert "was over already" in notebook.run("%flyte_cancel job").text()


def test_a_cell_of_a_higher_priority_goes_first(notebook: Notebook, tmp_path: Path) -> None:
    notebook.run(
        "alone = flyte.TaskEnvironment('alone', reusable=flyte.ReusePolicy(replicas=1)); flyte.pool(alone).warm()"
    )
    gate, ran = tmp_path / "gate", tmp_path / "ran"
    wait = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    assert notebook.run(f"%%flyte_task alone --bg --as first\n{wait}").error == ""
    wait_until(lambda: notebook.run("flyte.pool(alone).status().replicas[0].leases != ()").value)
    for name in ("low", "normal", "high"):
        write = f"with open({str(ran)!r}, 'a') as file: file.write('{name} ')"
        assert notebook.run(f"%%flyte_task alone --bg --as {name} --priority {name}\n{write}").error == ""
    gate.touch()
    assert notebook.run("%flyte_wait first low normal high").error == ""
    assert ran.read_text().split() == ["high", "normal", "low"]
    notebook.run("flyte.pool(alone).stop(force=True)")


# --- completion


def test_names_of_the_replica_are_completed_in_the_cell(notebook: Notebook) -> None:
    code = "%%flyte_task magic\nmod"

    def matches() -> list[str]:
        found: list[str] = notebook.client.complete(code, len(code), reply=True, timeout=START_S)["content"]["matches"]
        return found

    wait_until(lambda: "model" in matches(), what="a slot is free, and the replica answers at once")


# --- other notebooks, other front ends


def test_a_restarted_notebook_finds_the_pool_by_its_name(notebook: Notebook) -> None:
    notebook.restart("%load_ext flyte_jupyter")
    assert notebook.run("%%flyte_task magic --quiet\npipe('again')").value == "AGAIN"
    assert "declared elsewhere" in notebook.run("%%flyte_preload magic\nx = 1").text("stderr")
    notebook.restart()
    assert notebook.run(PRELOAD).error == ""


def test_a_terminal_shows_text(shared_broker: Path, tmp_path: Path) -> None:
    lines = [
        "%load_ext flyte_jupyter",
        "%flyte_pool create terminal --replicas 1:2",
        "%flyte_task terminal -- 6 * 7",
        "%flyte_task terminal --bg --as job -- print('from afar')",
        "%flyte_wait",
        "%flyte_result job --output",
        "%flyte_pool stop terminal --now",
    ]
    shell = [sys.executable, "-m", "IPython", "--no-banner", "--simple-prompt", "--colors=nocolor"]
    done = subprocess.run(
        [*shell, f"--ipython-dir={tmp_path}"], input="\n".join([*lines, "exit", ""]), capture_output=True, text=True,
        check=True, timeout=60 * TIME_SCALE,
    )  # fmt: skip
    assert "Out[3]: 42" in done.stdout
    assert re.search(r"terminal\[0\] · \d+\.\d s run", done.stdout)
    assert "from afar" in done.stdout
    assert "Stopped terminal" in done.stdout


def test_papermill_runs_task_cells_and_stops_at_an_error(shared_broker: Path, tmp_path: Path) -> None:
    papermill: Any = pytest.importorskip("papermill")
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    sources = [
        "%load_ext flyte_jupyter",
        "pool = %flyte_pool create milled --replicas 1:2",
        "%%flyte_task milled\nprint('there')\n6 * 7",
        "%%flyte_task milled\ninput('who? ')",
        "'never'",
    ]
    book.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(book, tmp_path / "in.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match="stdin is not available"):
        papermill.execute_notebook(
            str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb"), progress_bar=False, cwd=str(tmp_path)
        )
    run = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    outputs = next(cell.outputs for cell in run.cells if "6 * 7" in cell.source)
    assert [output.output_type for output in outputs] == ["stream", "execute_result", "display_data"]
    assert outputs[1]["data"]["text/plain"] == "42"
