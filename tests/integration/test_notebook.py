"""What a person at a notebook does and sees: a real ipykernel, and the messages that its front end gets."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager
from support import START_S, TIME_SCALE, Counter, wait_until, within

from flyte_jupyter.client import broker
from flyte_jupyter.core import protocol as p

pytestmark = pytest.mark.kernel

BACK_S = 1.0
"""How soon after Interrupt a cell must be back."""
GRACE_S = 1.0
"""How long the notebook's tasks may ignore an interrupt; 5 seconds, if nobody says otherwise."""

SETUP = """
import asyncio, os, sys, time
import flyte_jupyter as flyte
from IPython.display import clear_output, display
from flyte_jupyter.core import call as life
from support import mark

flyte.PoolHandle.view = None  # a card's messages come at any time
life.GRACE_S = {grace}
env = flyte.TaskEnvironment("notebook", reusable=flyte.ReusePolicy(replicas=2))
alone = flyte.TaskEnvironment("alone", reusable=flyte.ReusePolicy(replicas=(1, 1)))

@flyte.pool(env).preload
def model() -> list:
    mark({loads!r}, str(os.getpid()))
    print("loading the model")
    print("it is large", file=sys.stderr)
    return [os.getpid()]

@env.task
def where(seconds: float = 0.0) -> tuple:
    time.sleep(seconds)
    return os.getpid(), id(model())

@env.task
def shows() -> int:
    print("one")
    print("two", file=sys.stderr)
    handle = display("three", display_id=True)
    handle.update("four")
    clear_output(wait=True)
    print("five", end="")
    return 6

@env.task
async def talks(name: str) -> str:
    for number in range(5):
        print(name, number)
        await asyncio.sleep(0.02)
    return name

def average(total: int, count: int) -> float:
    share = total / count
    return share

@env.task
def fails(count: int) -> float:
    return average(3, count)

@env.task
async def fails_async(count: int) -> float:
    await asyncio.sleep(0)
    return average(3, count)

@env.task
def asks() -> str:
    return input("name? ")

@env.task
def sleeps() -> None:
    mark({began!r}, str(os.getpid()))
    time.sleep(60)

@env.task
def spins() -> None:
    mark({began!r}, str(os.getpid()))
    while True:
        pass

@env.task
async def sleeps_async() -> None:
    mark({began!r}, str(os.getpid()))
    await asyncio.sleep(60)

@env.task
def stubborn() -> None:
    mark({began!r}, str(os.getpid()))
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass

@alone.task
def nap(seconds: float) -> int:
    mark({began!r}, str(os.getpid()))
    time.sleep(seconds)
    return os.getpid()
"""


class Cell:
    """One execution: the messages that a front end got for it, in order, until its kernel was idle again."""

    def __init__(self, messages: list[tuple[str, dict[str, Any]]]) -> None:
        self.messages = messages

    def text(self, stream: str = "stdout") -> str:
        return "".join(content["text"] for kind, content in self.messages if (kind, content.get("name")) == _of(stream))

    @property
    def shown(self) -> list[tuple[str, Any]]:
        """Every message in short; neighbouring pieces of a stream are joined, as a front end joins them."""
        shown: list[tuple[str, Any]] = []
        for kind, content in self.messages:
            if kind == "stream":
                name = content["name"]
                before = shown.pop()[1] if shown and shown[-1][0] == name else ""
                shown.append((name, before + content["text"]))
            elif kind == "clear_output":
                shown.append((kind, content["wait"]))
            elif kind == "error":
                shown.append((kind, content["ename"]))
            else:
                shown.append((kind, content["data"].get("text/plain")))
        return shown

    @property
    def value(self) -> Any:
        [value] = [content["data"]["text/plain"] for kind, content in self.messages if kind == "execute_result"]
        return ast.literal_eval(value)

    @property
    def error(self) -> str:
        """The name of the exception; empty if it ended well."""
        return "".join(content["ename"] for kind, content in self.messages if kind == "error")

    @property
    def traceback(self) -> str:
        """As a person reads it, without colours."""
        [lines] = [content["traceback"] for kind, content in self.messages if kind == "error"]
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))


def _of(stream: str) -> tuple[str, str]:
    return "stream", stream


class Notebook:
    """A front end with one kernel."""

    def __init__(self, folder: Path) -> None:
        self.loads = Counter(folder / "loads")
        self.began = Counter(folder / "began")
        self.setup = SETUP.format(grace=GRACE_S, loads=self.loads.path, began=self.began.path)
        # Over Unix sockets: no TCP port is open on a shared machine.
        self.manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(folder / "k"))
        env = {
            **os.environ,
            "JPY_SESSION_NAME": str(folder / "work.ipynb"),
            "IPYTHONDIR": str(folder / "ipython"),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")])
            ),
        }
        self.manager.start_kernel(env=env, cwd=str(folder))
        self.client = self.manager.client()
        self._seen: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        self._ended: set[str] = set()

    def restart(self, setup: str = "") -> None:
        """Restart the kernel, and run the cells above again."""
        self.manager.restart_kernel(now=True)
        self.begin(setup)

    def begin(self, setup: str = "") -> None:
        """What follows a start or a restart: the cells above are run."""
        self.client.stop_channels()
        self.client = self.manager.client()  # which counts its messages from 1 again
        self._seen.clear()
        self._ended.clear()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=START_S * TIME_SCALE)
        assert self.run(setup or self.setup).error == ""

    def start(self, code: str) -> str:
        """Run a cell; what `wait` wants to know of it."""
        asked: str = self.client.execute(code, stop_on_error=False)  # else an error drops a cell that comes soon after
        self._seen[asked] = []
        return asked

    def wait(self, asked: str, timeout: float = START_S) -> Cell:
        deadline = time.monotonic() + timeout * TIME_SCALE
        while asked not in self._ended:
            self._take(deadline - time.monotonic())
        return Cell(self._seen[asked])

    def wait_text(self, asked: str, text: str) -> None:
        """Until a cell has printed `text`, be it over or not."""
        deadline = time.monotonic() + START_S * TIME_SCALE
        while text not in Cell(self._seen[asked]).text():
            self._take(deadline - time.monotonic())

    def wait_shown(self, asked: str, text: str) -> None:
        """Until a cell has displayed something with `text` in it."""
        deadline = time.monotonic() + START_S * TIME_SCALE
        while not any(text in content.get("data", {}).get("text/plain", "") for _, content in self._seen[asked]):
            self._take(deadline - time.monotonic())

    def run(self, code: str) -> Cell:
        return self.wait(self.start(code))

    def interrupt(self, asked: str) -> Cell:
        """Stop in the tool bar; the cell, which must be back soon."""
        with within(BACK_S):
            self.manager.interrupt_kernel()
            return self.wait(asked)

    def _take(self, timeout: float) -> None:
        message = self.client.get_iopub_msg(timeout=max(0.0, timeout))
        asked, kind = message["parent_header"].get("msg_id"), message["msg_type"]
        if asked not in self._seen:
            assert kind in ("status", "iopub_welcome", "shutdown_reply"), f"outside of every cell: {message['content']}"
        elif kind == "status":
            if message["content"]["execution_state"] == "idle":
                self._ended.add(asked)
        elif kind != "execute_input":
            self._seen[asked].append((kind, message["content"]))

    def where(self) -> dict[int, int]:
        """Both replicas, each with the identity of the object that its preload has made."""
        # The second lease may come when the first call is over already: then both run in the first.
        for seconds in (0.1, 0.5, 2.0):
            both = dict(self.run(f"await asyncio.gather(where.aio({seconds}), where.aio({seconds}))").value)
            if len(both) == 2:
                return both
        raise AssertionError("two replicas")

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


@pytest.fixture(scope="module")
def kernel(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    folder = tmp_path_factory.mktemp("nb")
    notebook = Notebook(folder)
    try:
        notebook.begin()
        yield notebook
        notebook.run("flyte.pool(env).stop(); flyte.pool(alone).stop()")
    finally:
        notebook.end()


@pytest.fixture
def notebook(kernel: Notebook) -> Notebook:
    """Warm; nothing has begun yet."""
    assert kernel.run("flyte.pool(env).warm(); flyte.pool(alone).warm()").error == ""
    Path(kernel.began.path).unlink(missing_ok=True)
    return kernel


# --- output


def test_what_a_task_shows_arrives_in_its_cell_in_order(notebook: Notebook) -> None:
    cell = notebook.run("shows()")
    assert cell.shown == [
        ("stdout", "one\n"),
        ("stderr", "two\n"),
        ("display_data", "'three'"),
        ("update_display_data", "'four'"),
        ("clear_output", True),
        ("stdout", "five"),
        ("execute_result", "6"),
    ]
    made, updated = (content["transient"] for kind, content in cell.messages if kind.endswith("display_data"))
    assert made["display_id"] == updated["display_id"]


def test_what_a_task_prints_is_there_while_it_runs(notebook: Notebook) -> None:
    asked = notebook.start("await asyncio.gather(talks('a'), sleeps_async())")
    notebook.wait_text(asked, "a 4\n")
    assert notebook.interrupt(asked).error == "CancelledError"


def test_two_cells_at_a_time_keep_their_output_apart(notebook: Notebook) -> None:
    first = notebook.start("first = asyncio.create_task(talks('first'))\nawait asyncio.sleep(0)")
    second = notebook.start("await talks('second')")
    last = notebook.start("await first")
    cells = [notebook.wait(asked) for asked in (first, second, last)]
    notebook.wait_text(first, "first 4\n")
    assert cells[0].text() == "".join(f"first {number}\n" for number in range(5))
    assert cells[1].text() == "".join(f"second {number}\n" for number in range(5))
    assert (cells[1].value, cells[2].value, cells[2].text()) == ("second", "first", "")


def test_tasks_that_run_together_in_a_cell_do_not_tear_each_others_lines(notebook: Notebook) -> None:
    cell = notebook.run("await asyncio.gather(*(talks(name) for name in 'abcd'))")
    lines = cell.text().splitlines()
    for name in "abcd":
        assert [line for line in lines if line.startswith(name)] == [f"{name} {number}" for number in range(5)]
    assert (len(lines), cell.value) == (20, list("abcd"))


def test_what_a_preload_prints_is_in_its_replicas_log(notebook: Notebook) -> None:
    asked = [sys.executable, "-m", "flyte_jupyter.cli", "logs", "notebook"]
    printed = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=START_S * TIME_SCALE).stdout
    assert sorted(printed.splitlines()) == ["it is large", "loading the model"]


# --- errors


@pytest.mark.parametrize("call", ["fails(0)", "await fails_async(0)", "await fails.aio(0)", "flyte.run(fails, 0)"])
def test_an_error_marks_the_users_own_lines_and_hides_ours(call: str, notebook: Notebook) -> None:
    cell = notebook.run(f"answer = 42\n{call}")
    assert_points_to_the_users_lines(cell, call)
    assert re.search(r"raised this on notebook\[\d+\]", cell.traceback)


def assert_points_to_the_users_lines(cell: Cell, call: str) -> None:
    assert cell.error == "ZeroDivisionError"
    marked = [line.partition("> ")[2].split(maxsplit=1)[1] for line in cell.traceback.splitlines() if "--> " in line]
    assert (marked[0], marked[-2:]) == (call, ["return average(3, count)", "share = total / count"]), cell.traceback
    assert len(re.findall(r"^Cell In\[\d+\], line \d+", cell.traceback, re.MULTILINE)) == 3
    assert_no_frame_of_ours(cell)


def assert_no_frame_of_ours(cell: Cell) -> None:
    assert not re.search(r"flyte_jupyter/\w+|skipping hidden", cell.traceback), cell.traceback


def test_an_error_of_a_cell_that_has_changed_since_still_shows_its_lines(notebook: Notebook) -> None:
    """The function has not, so its replica keeps it; the old cell ended with its kernel."""
    cell = notebook.setup.replace("def average", "# changed\n\ndef average")
    notebook.run("fails(1)")
    notebook.restart(cell)
    assert_points_to_the_users_lines(notebook.run("fails(0)"), "fails(0)")


@pytest.mark.parametrize(
    "call",
    [
        "sleeps()",
        "await sleeps_async()",
        "await asyncio.gather(sleeps.aio(), where.aio())",
        "flyte.run(sleeps)",
        "list(flyte.map(nap, [60.0], return_exceptions=False))",
    ],
)
def test_a_call_that_somebody_else_cancels_shows_its_own_line_and_no_other(call: str, notebook: Notebook) -> None:
    asked = notebook.start(f"answer = 42\n{call}")
    [pid] = notebook.began.wait()
    connection = broker.connect()
    pools = connection.snapshot().snapshot.pools
    [replica] = [each.id for pool in pools for each in pool.replicas if each.pid == int(pid)]
    connection.send(p.Interrupt(replica=replica))
    cell = notebook.wait(asked)
    assert cell.error == "TaskCancelled"
    assert_shows_only(cell, call)


def test_an_error_about_a_pool_shows_the_users_line_and_no_other(notebook: Notebook) -> None:
    wants = "flyte.TaskEnvironment('nowhere', resources=flyte.Resources(gpu=1), reusable=flyte.ReusePolicy((0, 1)))"
    cell = notebook.run(f"nowhere = {wants}\nflyte.pool(nowhere).warm(1)")
    assert cell.error == "NoUsableGPU"
    assert_shows_only(cell, "flyte.pool(nowhere).warm(1)")
    assert notebook.run("flyte.pool(nowhere).stop()").error == ""


def assert_shows_only(cell: Cell, line: str) -> None:
    assert_no_frame_of_ours(cell)
    marked = [each.partition("> ")[2].split(maxsplit=1)[1] for each in cell.traceback.splitlines() if "--> " in each]
    assert marked == [line], cell.traceback
    assert "  File " not in cell.traceback


def test_a_wrong_call_is_explained_where_it_was_made(notebook: Notebook) -> None:
    cell = notebook.run("fails(1, 2)")
    assert cell.error == "ValueError"
    assert "Too many positional arguments" in cell.traceback
    assert "----> 1 fails(1, 2)" in cell.traceback
    assert len(re.findall(r"flyte_jupyter/\w+/", cell.traceback)) <= 1


def test_a_task_asks_its_user(notebook: Notebook) -> None:
    asked = notebook.start("asks()")
    assert notebook.client.get_stdin_msg(timeout=START_S)["content"] == {"prompt": "name? ", "password": False}
    notebook.client.input("Ann")
    assert notebook.wait(asked).value == "Ann"


def test_a_task_that_asks_where_nobody_can_be_asked_is_told_at_once(notebook: Notebook) -> None:
    asked = notebook.client.execute("asks()", allow_stdin=False, stop_on_error=False)
    notebook._seen[asked] = []
    with within(2):
        cell = notebook.wait(asked)
    assert cell.error == "StdinNotImplementedError"
    assert "stdin is not available in tasks" in cell.traceback


def test_interrupt_stops_a_task_that_waits_for_an_answer(notebook: Notebook) -> None:
    before = notebook.where()
    asked = notebook.start("asks()")
    notebook.client.get_stdin_msg(timeout=START_S)
    assert notebook.interrupt(asked).error == "KeyboardInterrupt"
    assert notebook.where() == before


# --- Interrupt


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        ("sleeps()", "KeyboardInterrupt", r"Interrupted on notebook\[\d+\]; what it has loaded is still there\.\n"),
        ("spins()", "KeyboardInterrupt", r"Interrupted on notebook\[\d+\]; what it has loaded is still there\.\n"),
        ("await sleeps_async()", "CancelledError", ""),
        ("await sleeps.aio()", "CancelledError", ""),
        ("list(flyte.map(nap, [60.0]))", "KeyboardInterrupt", r"Interrupted: 1 call of alone\.nap is stopped\.\n"),
    ],
)
def test_interrupt_stops_the_work_and_keeps_the_replica_with_its_model(
    call: str, error: str, says: str, notebook: Notebook
) -> None:
    before, loaded = notebook.where(), len(notebook.loads)
    asked = notebook.start(call)
    notebook.began.wait()
    time.sleep(0.1)
    cell = notebook.interrupt(asked)
    assert cell.error == error
    assert re.fullmatch(says, cell.text("stderr"))
    assert_no_frame_of_ours(cell)
    with within(BACK_S):
        assert notebook.where() == before
    assert len(notebook.loads) == loaded


def test_interrupt_withdraws_a_call_that_waits_in_the_queue(notebook: Notebook) -> None:
    first = notebook.start(
        "import threading\nbusy = threading.Thread(target=nap, args=(3.0,))\nbusy.start()\nnap(60.0)"
    )
    [pid] = notebook.began.wait()
    queued = broker.connect()
    wait_until(lambda: any(pool.waiting for pool in queued.snapshot().snapshot.pools), what="the second call waits")
    cell = notebook.interrupt(first)
    assert cell.error == "KeyboardInterrupt"
    wait_until(lambda: notebook.run("flyte.pool(alone).status().waiting").value == 0)
    assert notebook.run("busy.join()\nnap(0.0)").value == int(pid)
    assert notebook.began.lines() == [pid, pid], "the withdrawn call never ran"


def test_a_task_that_swallows_the_interrupt_loses_its_replica_by_the_second_one(notebook: Notebook) -> None:
    before = notebook.where()
    asked = notebook.start("stubborn()")
    [pid] = notebook.began.wait()
    time.sleep(0.1)
    notebook.manager.interrupt_kernel()
    time.sleep(2 * GRACE_S)  # it is never ended for the first one
    assert Path(f"/proc/{pid}").exists()
    cell = notebook.interrupt(asked)
    assert cell.error == "KeyboardInterrupt"
    assert re.search(r"The replica notebook\[\d+\] was ended; a replacement is loading\.", cell.text("stderr"))
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), GRACE_S + START_S, "the stubborn replica ends")
    assert notebook.run("flyte.pool(env).warm()").error == ""
    after = notebook.where()
    assert len(before.keys() & after.keys()) == 1
    assert int(pid) not in after


# --- restart


def test_a_restarted_kernel_finds_its_replicas_and_their_model_again(notebook: Notebook) -> None:
    before, loaded = notebook.where(), len(notebook.loads)
    notebook.restart()
    assert_points_to_the_users_lines(notebook.run("fails(0)"), "fails(0)")
    assert notebook.where() == before
    assert len(notebook.loads) == loaded
