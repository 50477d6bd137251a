"""What a person reads when a task cell, a magic or a call goes wrong: the code, what happened, and what to do."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import START_S, OwnBroker, alive, wait_until
from test_notebook import GRACE_S, Cell, Notebook

from flyte_jupyter import runtime

pytestmark = pytest.mark.kernel

SETUP = f"""
%load_ext flyte_jupyter
import flyte_jupyter; flyte_jupyter.PoolHandle.view = None  # a card's messages come at any time
import os, sqlite3, threading
import flyte_jupyter as flyte
from flyte_jupyter.core import call as life
life.GRACE_S = {GRACE_S}
env = flyte.TaskEnvironment("wrong", reusable=flyte.ReusePolicy(replicas=1))
tokenizer = "x" * 12_000_000
conn = sqlite3.connect(":memory:")

@env.task
def child() -> int:
    return 1

@env.task
def parent() -> int:
    return child()
"""
PRELOAD = "%%flyte_preload wrong\nmodel = [1]\ndef pipe(text): return text"


@pytest.fixture(scope="module")
def kernel(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("nb"))
    notebook.setup = SETUP
    try:
        notebook.begin()
        assert notebook.run(PRELOAD).error == ""
        yield notebook
        notebook.run("%flyte_pool stop wrong --now")
    finally:
        notebook.end()


@pytest.fixture
def notebook(kernel: Notebook) -> Notebook:
    assert kernel.run("%flyte_pool warm wrong").error == ""
    return kernel


def assert_reads(cell: Cell, error: str, first: str, *lines: str) -> None:
    """The exception's first line, and its notes in their order, each by how it begins."""
    assert cell.error == error
    assert re.search(rf"^{error}: {first}$", cell.traceback, re.MULTILINE), cell.traceback
    assert re.search("^" + r".*\n(?:.*\n)*?".join(lines), cell.traceback, re.MULTILINE), cell.traceback
    assert "flyte_jupyter/magics" not in cell.traceback
    assert "flyte_jupyter/client" not in cell.traceback


def test_there_is_no_pool_of_that_name(notebook: Notebook) -> None:
    for cell in ("%%flyte_task wrung\n1", "%flyte_pool show wrung", "%flyte_status wrung"):
        assert_reads(
            notebook.run(cell),
            "NoSuchPool",
            r'FJ102 There is no pool named "wrung"\.',
            r"Existing pools: .*wrong \(1 (ready|busy)\)",
            r"Did you mean `wrong`\? Create one with `%flyte_pool create wrung --replicas 1:2`\.",
        )


def test_no_gpu_can_be_used(notebook: Notebook) -> None:
    assert notebook.run("%flyte_pool create nogpu --gpus 1 --replicas 0:1").error == ""
    for cell in ("%%flyte_task nogpu\n1", "%flyte_pool warm nogpu"):
        assert_reads(
            notebook.run(cell),
            "NoUsableGPU",
            r"FJ202 No GPU can be used by this pool\.",
            r"1 GPU was requested, but ",
            r"Check that the driver tool lists a GPU in a terminal\..* To continue on the CPU, ",
        )
    notebook.run("%flyte_pool stop nogpu --now")


def test_a_gpu_that_flyte_does_not_know() -> None:
    """Raised where it is written, so IPython shows it as any other error of a call."""
    import flyte_jupyter as flyte

    with pytest.raises(ValueError, match=r'^FJ203 gpu="RTX4090:1" is not a name that Flyte knows') as caught:
        flyte.Resources(gpu="RTX4090:1")
    assert caught.value.__notes__[0] == "Flyte accepts a fixed list of data-centre cards."
    assert caught.value.__notes__[1].startswith("Use `gpu=1` here.")


def test_a_preload_that_fails_and_is_corrected(notebook: Notebook) -> None:
    assert notebook.run("%flyte_pool create broken --replicas 0:1").error == ""
    assert notebook.run("%%flyte_preload broken\nimport nowhere_to_be_found").error == ""
    cell = notebook.run("%%flyte_task broken\n1")
    assert_reads(
        cell,
        "PoolFailed",
        r"FJ301 Preload failed on replica broken\[\d\], so it will not be used\.",
        r"ModuleNotFoundError: No module named 'nowhere_to_be_found', in the pool's Python",
        r"Install it there: `python -m pip install nowhere_to_be_found`, then start the pool again",
    )
    assert "    import nowhere_to_be_found\n" in cell.traceback, "the user's line"
    assert notebook.run("%%flyte_preload broken\nmodel = 7").error == ""
    assert notebook.run("%%flyte_task broken --quiet\nmodel").value == 7
    notebook.run("%flyte_pool stop broken --now")


def test_a_name_that_only_the_notebook_has(notebook: Notebook) -> None:
    assert_reads(
        notebook.run("%%flyte_task wrong\ntokenizer"),
        "NameError",
        r"name 'tokenizer' is not defined",
        r'FJ401 "tokenizer" exists in your notebook; task cells run on wrong\[\d\] and see only the preload names: '
        r"model, pipe\.",
        r"Send it with `-i tokenizer` \(12 MB\), or create it in `%%flyte_preload wrong`\.",
    )


def test_what_cannot_be_sent(notebook: Notebook) -> None:
    assert_reads(
        notebook.run("%%flyte_task wrong -i conn\nconn.cursor()"),
        "ArgumentNotSerializable",
        r'FJ402 "conn" cannot be sent to the pool\.',
        r"Connection objects cannot be copied to another process\.",
        r"Open the connection inside the task, or put it into the preload code\.",
    )


def test_what_cannot_be_brought_back(notebook: Notebook) -> None:
    assert_reads(
        notebook.run("%%flyte_task wrong -o out\nclass Batch: pass\nout = Batch()"),
        "ResultNotSerializable",
        r'FJ403 The result "out" cannot be brought back\.',
        r"Its class `Batch` was defined in the task cell and does not exist in this notebook\.",
        r"Return plain data, or define `Batch` in a module or in a notebook cell",
    )
    assert notebook.run("'out' in globals()").value is False


def test_a_replica_that_dies(notebook: Notebook) -> None:
    cell = notebook.run(
        "%%flyte_task wrong\nimport os, signal, time\nprint('until here', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)"
    )
    assert cell.text() == "until here\n"
    assert_reads(
        cell,
        "ReplicaDied",
        r"FJ502 Replica wrong\[\d\] died while running cell #\d+ \(signal 9, possibly the system's out-of-memory "
        r"killer\)\.",
        r"Output up to that moment is above\. A replacement is loading\. The cell was not repeated, because it may "
        r"have had side effects\.",
        r"Run it again when ready, or add `--retries 1`\.",
    )


@pytest.mark.parametrize(
    ("code", "became"),
    [
        ("time.sleep(60)", r"wrong\[\d\] is ready again; what it has loaded was kept\."),
        (
            "while True:\n    try: time.sleep(60)\n    except KeyboardInterrupt: pass",
            r"It did not stop when told, so the replica wrong\[\d\] was ended; a replacement is loading\.",
        ),
    ],
    ids=["stops", "does-not"],
)
def test_a_cell_that_takes_too_long(code: str, became: str, notebook: Notebook) -> None:
    assert_reads(
        notebook.run(f"%%flyte_task wrong --timeout 0.3\nimport time\n{code}"),
        "MaxRuntimeExceededError",
        r"FJ503 Your cell reached its limit of 0\.3 s and was stopped\.",
        became,
        r"Raise `--timeout`, or use `--bg` for long work\.",
    )
    assert notebook.run("%%flyte_task wrong --quiet\nmodel").value == [1]


def test_a_cell_that_would_wait_for_ever(notebook: Notebook) -> None:
    cells = {
        "%%flyte_task wrong -i child\nchild()": r"`%flyte_pool scale wrong 1:2`, or call it from the notebook itself\.",
        "parent()": r"`flyte-jupyter scale wrong 1:2`, or make the parent use no replica: "
        r"`parent\.override\(reusable=\"off\"\)`\.",
    }
    for code, advice in cells.items():
        cell = notebook.run(code)
        assert cell.error == "StarvationError"
        said = (
            r'FJ601 This would wait for ever: task "(cell #\d+|wrong\.parent)" holds the only replica of "wrong" and '
        )
        assert re.search(said + r'waits for "wrong\.child", which needs the same pool\.\n', cell.traceback)
        assert "replicas max 1 × concurrency 1.\n" in cell.traceback  # noqa: RUF001
        assert re.search(f"Run {advice}" + r" Nothing was started\.", cell.traceback), cell.traceback


def test_resources_of_a_pool_that_runs(notebook: Notebook) -> None:
    cell = notebook.run("child.override(resources=flyte.Resources(cpu=2))()")
    assert cell.error == "ValueError"
    assert "ValueError: FJ701 Cannot change resources of a reusable task." in cell.traceback
    assert "The replicas already run with fixed GPU, memory, environment and secrets.\n" in cell.traceback
    assert 'Use `child.override(resources=..., reusable="off")` for one cold run' in cell.traceback


def test_a_magic_below_the_first_line(notebook: Notebook) -> None:
    cell = notebook.run("x = 1\n%%flyte_task wrong\n1")
    assert "%%flyte_task is on line 2; it has to be the first line of its cell." in cell.text("stderr") + str(
        cell.messages
    )


def test_a_pool_that_somebody_stops(notebook: Notebook, tmp_path_factory: pytest.TempPathFactory) -> None:
    asked = notebook.start("%%flyte_task wrong\nimport time\nprint('on', flush=True)\ntime.sleep(60)")
    notebook.wait_text(asked, "on\n")
    other = Notebook(tmp_path_factory.mktemp("other"))
    try:
        other.begin("%load_ext flyte_jupyter")
        assert "Stopped wrong" in other.run("%flyte_pool stop wrong --now").text()
    finally:
        other.end()
    assert_reads(notebook.wait(asked), "PoolStopped", r'FJ302 The pool "wrong" was stopped\.', r"Somebody stopped it: ")


# --- the broker itself


@pytest.fixture
def apart(own_broker: OwnBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    """A notebook with a broker of its own, which a test may end."""
    for name, value in own_broker._environment({}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(runtime.VARIABLE, str(own_broker.folder))
    notebook = Notebook(tmp_path)
    notebook.setup = "%load_ext flyte_jupyter\n%flyte_pool create apart\n%flyte_pool warm apart"
    try:
        notebook.begin()
        yield notebook
    finally:
        notebook.end()


def test_the_broker_ends_under_a_cell(apart: Notebook, own_broker: OwnBroker) -> None:
    asked = apart.start("%%flyte_task apart\nimport time\nprint('on', flush=True)\ntime.sleep(60)")
    apart.wait_text(asked, "on\n")
    pid = own_broker.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), START_S)
    cell = apart.wait(asked)
    assert re.search(r"FJ101 The broker is not running\.\n(.*\n)?Call the task again: that starts it", cell.traceback)
    assert apart.run("%%flyte_task apart --quiet\n6 * 7").value == 42


def test_the_broker_is_of_another_version(apart: Notebook) -> None:
    older = "import functools\nfrom flyte_jupyter.core import protocol as p\n"
    older += "p.Hello = functools.partial(p.Hello, protocol=99, version='9.9')\n%load_ext flyte_jupyter"
    apart.restart(older)
    cell = apart.run("%flyte_pool create apart\n%flyte_task apart -- 1")
    assert cell.error == "VersionMismatch"
    assert "FJ103 This notebook and the broker use different flyte_jupyter versions" in cell.traceback
    assert "`flyte-jupyter stop`" in cell.traceback
