"""What a task leaves changed in its process is put back; what a preload or a person set there stays."""

from __future__ import annotations

import argparse
import asyncio
import builtins
import contextlib
import io
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from front_ends import Console
from support import START_S, OwnBroker, assert_quiet, attempt, ready, wait_until

import flyte_jupyter as flyte
from flyte_jupyter import errors
from flyte_jupyter.peek import peek

pytestmark = pytest.mark.kernel

plain = flyte.TaskEnvironment("plain", reusable=flyte.ReusePolicy(replicas=(1, 1)))
set_up = flyte.TaskEnvironment("set-up", reusable=flyte.ReusePolicy(replicas=(1, 1)))
many = flyte.TaskEnvironment("put-back-many", reusable=flyte.ReusePolicy(replicas=(1, 1), concurrency=3))


class Tee(io.StringIO):
    """A stream that a preload puts in the place of `sys.stdout`; it passes on what it gets."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        return int(self.stream.write(f"<{text}>" if text.strip() else text))


def load() -> None:
    import numpy

    sys.argv = ["of the preload"]
    sys.stdout = Tee(sys.stdout)
    sys.excepthook = print
    sys.setrecursionlimit(2345)
    warnings.filterwarnings("error", "of the preload")
    numpy.seterr(all="raise")


async def load_more() -> None:
    import numpy

    numpy.set_printoptions(precision=2)


@pytest.fixture(autouse=True)
def _always(shared_broker: Path) -> Iterator[None]:
    for loader in (load, load_more):
        flyte.pool(set_up).preload(loader)
    for environment in (plain, set_up, many):
        flyte.pool(environment).warm()
    yield
    assert_quiet(plain, set_up, many, timeout=START_S)


def state() -> dict[str, Any]:
    """What tasks change; comparable from call to call."""
    import numpy

    hooks = (sys.stdout, sys.stderr, sys.stdin, sys.displayhook, sys.excepthook, builtins.print, warnings.showwarning)
    return {
        "objects": [id(each) for each in hooks],
        "filters": [str(each) for each in warnings.filters],
        "same filters": id(warnings.filters),
        "recursion": sys.getrecursionlimit(),
        "argv": sys.argv,
        "numpy": (numpy.geterr(), numpy.get_printoptions()["precision"]),
    }


def replace_stdout() -> None:
    sys.stdout = io.StringIO()


def delete_stdout() -> None:
    del sys.stdout


def replace_the_other_streams() -> None:
    sys.stderr = sys.stdin = io.StringIO()


def replace_hooks() -> None:
    sys.displayhook = sys.excepthook = lambda *_: None


def replace_print() -> None:
    builtins.print = lambda *_: None  # as training scripts do on all processes but the first


def make_warnings_errors() -> None:
    warnings.simplefilter("error")


def ignore_some_warnings() -> None:
    warnings.filterwarnings("ignore", "nothing", append=True)


def reset_warnings() -> None:
    warnings.resetwarnings()


def record_warnings() -> None:
    warnings.catch_warnings(record=True).__enter__()


def show_warnings_otherwise() -> None:
    warnings.showwarning = lambda *_: None


def limit_recursion() -> None:
    sys.setrecursionlimit(800)


def change_arguments() -> None:
    sys.argv.append("--more")


def replace_arguments() -> None:
    sys.argv = ["mine"]


def set_numpy() -> None:
    import numpy

    numpy.seterr(all="call")
    numpy.set_printoptions(precision=5)


CHANGES = [
    replace_stdout,
    delete_stdout,
    replace_the_other_streams,
    replace_hooks,
    replace_print,
    make_warnings_errors,
    ignore_some_warnings,
    reset_warnings,
    record_warnings,
    show_warnings_otherwise,
    limit_recursion,
    change_arguments,
    replace_arguments,
    set_numpy,
]


@plain.task(timeout=20)
def do(what: Callable[[], Any]) -> Any:
    return what()


@plain.task(timeout=20)
async def do_async(what: Callable[[], Any]) -> Any:
    value = what()
    await asyncio.sleep(0)
    return value


@many.task(timeout=20)
async def do_beside(what: Callable[[], Any]) -> Any:
    return what()


@set_up.task(timeout=20)
def do_set_up(what: Callable[[], Any]) -> Any:
    return what()


def fail_after(change: Callable[[], None]) -> None:
    change()
    raise ValueError("after the change")


# --- each


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("task", [do, do_set_up], ids=["plain", "set up by a preload"])
def test_what_a_task_leaves_changed_is_put_back(change: Callable[[], None], task: Any) -> None:
    before = task(state)
    task(change)
    assert task(state) == before


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_an_async_task_leaves_changed_is_put_back(change: Callable[[], None]) -> None:
    before = do(state)
    asyncio.run(do_async(change))
    assert do(state) == before


def test_it_is_put_back_after_a_task_that_failed() -> None:
    before = do(state)
    for task in (do, lambda change: asyncio.run(do_async(change))):
        assert isinstance(attempt(task, lambda: fail_after(replace_stdout)), ValueError)
        assert do(state) == before


def test_it_is_put_back_after_a_task_that_was_stopped() -> None:
    before = do(state)
    assert isinstance(attempt(stopped), errors.TaskTimeoutError)
    assert do(state) == before


@plain.task(timeout=1)
def stopped() -> None:
    import time

    sys.stdout = io.StringIO()
    time.sleep(60)


def test_a_task_prints_although_the_one_before_left_stdout_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    do(replace_stdout)
    do(lambda: print("heard"))
    assert capsys.readouterr().out == "heard\n"


def test_a_warning_is_no_error_although_the_task_before_made_it_one() -> None:
    do(make_warnings_errors)
    do(lambda: warnings.warn("only a warning", stacklevel=1))


# --- what a preload or a person has set


def test_what_a_preload_has_set_is_there_in_each_task() -> None:
    for _ in range(2):
        found = do_set_up(state)
        assert "of the preload" in str(found["filters"])
        assert found["recursion"] == 2345
        assert found["numpy"] == (dict.fromkeys(("divide", "over", "under", "invalid"), "raise"), 2)
        assert do_set_up(lambda: sys.excepthook is print)
        assert isinstance(attempt(do_set_up, divide_by_zero), FloatingPointError)


def divide_by_zero() -> None:
    import numpy

    numpy.float64(1) / numpy.float64(0)


def test_a_stream_that_a_preload_has_replaced_stays(capsys: pytest.CaptureFixture[str]) -> None:
    do_set_up(replace_stdout)
    do_set_up(lambda: print("heard"))
    assert capsys.readouterr().out == "<heard>\n"


@pytest.fixture
def console(shared_broker: Path) -> Iterator[Console]:
    """Attached by hand to the replica of `many`."""
    from jupyter_client.blocking.client import BlockingKernelClient

    [replica] = ready(many)
    [file] = shared_broker.glob(f"*/{replica.id}/kernel.json")
    client = BlockingKernelClient(connection_file=str(file))
    client.load_connection_file()
    client.start_channels()
    client.wait_for_ready(timeout=START_S)
    yield Console(client)
    client.stop_channels()
    flyte.pool(many).stop()  # what was set by hand is no other test's
    flyte.pool(many).warm()


def test_what_a_person_sets_by_hand_stays(console: Console) -> None:
    def beside(what: Callable[[], Any]) -> Any:
        return asyncio.run(do_beside(what))

    beside(state)
    console.run("import sys, warnings\nwarnings.filterwarnings('error', 'by hand'); sys.setrecursionlimit(3456)")
    for _ in range(2):
        found = beside(state)
        assert "by hand" in str(found["filters"])
        assert found["recursion"] == 3456
        beside(make_warnings_errors)
        beside(limit_recursion)


def test_what_a_person_sets_while_a_task_waits_stays(console: Console, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(asyncio.run, until_told(str(tmp_path)))
        wait_until((tmp_path / "in").exists, START_S)
        console.run("import sys\nsys.setrecursionlimit(4567)")
        (tmp_path / "go").touch()
        waits.result(START_S)
    assert asyncio.run(do_beside(sys.getrecursionlimit)) == 4567


def test_a_look_into_a_replica_is_no_change_by_hand(tmp_path: Path, shared_broker: Path) -> None:
    before = asyncio.run(do_beside(state))
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(asyncio.run, leave_it_to(str(tmp_path), make_warnings_errors))
        wait_until((tmp_path / "left").exists, START_S)
        assert peek(ready(many)[0]).stack
        (tmp_path / "go too").touch()
        waits.result(START_S)
    assert asyncio.run(do_beside(state)) == before


# --- imports

SETS_AT_IMPORT = """
import sys
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    warnings.warn("nobody sees it")
warnings.filterwarnings("ignore", "of the module")
sys.setrecursionlimit(sys.getrecursionlimit() + 1)
"""


def import_it() -> int:
    import sets_at_import  # noqa: F401

    make_warnings_errors()
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(sys.getrecursionlimit() + 100)
    replace_stdout()
    return sys.getrecursionlimit()


def test_what_a_module_sets_when_a_task_imports_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sets_at_import.py").write_text(SETS_AT_IMPORT)
    monkeypatch.syspath_prepend(tmp_path)
    before = do(state)
    assert_quiet(plain)  # the next lease takes the path along
    assert do(import_it) == before["recursion"] + 101
    for _ in range(2):
        found = do(state)
        rules = [rule for rule in found["filters"] if "of the module" in rule]
        assert len(rules) == 1
        assert found["filters"] == rules + before["filters"]
        assert found["recursion"] == before["recursion"] + 1
        assert found["objects"] == before["objects"]
        assert do(import_it) == before["recursion"] + 101


def import_it_contained() -> None:
    with warnings.catch_warnings():
        import sets_contained  # noqa: F401


def test_what_an_import_sets_inside_catch_warnings_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sets_contained.py").write_text("import warnings\nwarnings.simplefilter('ignore')\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = do(state)
    assert_quiet(plain)
    do(import_it_contained)
    assert do(state) == before


def import_what_fails() -> str:
    try:
        import fails_at_import  # noqa: F401
    except ValueError:
        return traceback.format_exc()
    raise AssertionError


def test_a_failed_import_shows_no_lines_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fails_at_import.py").write_text("import json\nraise ValueError('not today')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert_quiet(plain)
    for shown in (do(import_what_fails), import_what_fails()):
        files = re.findall(r'File "(.*)", line', shown)
        assert [Path(file).name for file in files] == ["test_put_back.py", "fails_at_import.py"]


# --- several at once


async def wait_for(path: str) -> None:
    while not Path(path).exists():
        await asyncio.sleep(0.005)


@many.task(timeout=20)
async def until_told(folder: str) -> str:
    """What it prints until the file `go` is there; it shows what it prints after that."""
    with contextlib.redirect_stdout(io.StringIO()) as caught:
        print("caught before")
        Path(folder, "in").touch()
        await wait_for(f"{folder}/go")
        print("caught after")
    print("shown")
    return caught.getvalue()


@many.task(timeout=20)
async def leave_it_to(folder: str, what: Callable[[], None]) -> None:
    what()
    Path(folder, "left").touch()
    await wait_for(f"{folder}/go too")


def test_a_task_that_ends_leaves_what_another_has_redirected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def together() -> tuple[str, bool]:
        before = await do_beside(state)
        waits = asyncio.ensure_future(until_told(str(tmp_path)))
        await wait_for(f"{tmp_path}/in")
        await do_beside(make_warnings_errors)
        (tmp_path / "go").touch()
        return await waits, await do_beside(state) == before

    assert asyncio.run(together()) == ("caught before\ncaught after\n", True)
    assert capsys.readouterr().out == "shown\n"


def test_all_is_put_back_when_the_last_of_several_tasks_ends(tmp_path: Path) -> None:
    async def together() -> tuple[str, bool]:
        before = await do_beside(state)
        waits = asyncio.ensure_future(until_told(str(tmp_path)))
        await wait_for(f"{tmp_path}/in")
        leaves = asyncio.ensure_future(leave_it_to(str(tmp_path), make_warnings_errors))
        await wait_for(f"{tmp_path}/left")
        (tmp_path / "go").touch()
        said = await waits
        (tmp_path / "go too").touch()
        await leaves
        return said, await do_beside(state) == before

    assert asyncio.run(together()) == ("caught before\ncaught after\n", True)


# --- arguments


def test_a_task_sees_the_arguments_of_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["train.py", "--lr", "0.1"], ["other.py"]):
        monkeypatch.setattr(sys, "argv", arguments)
        assert_quiet(plain)  # the lease of the call before, and its connection, are given back
        assert do(lambda: list(sys.argv)) == arguments
        assert asyncio.run(do_async(lambda: list(sys.argv))) == arguments
        assert do(lambda: argparse.ArgumentParser().prog) == arguments[0]


def test_odd_arguments_hinder_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, seen in ((["x", Path("y"), 3, "\udcff"], ["x", "y", "3", "\udcff"]), (None, [""]), ([], [])):
        monkeypatch.setattr(sys, "argv", arguments)
        assert_quiet(plain)
        assert do(lambda: list(sys.argv)) == seen
    monkeypatch.delattr(sys, "argv")
    assert_quiet(plain)
    assert do(lambda: list(sys.argv)) == [""]


def test_a_preload_sees_no_arguments_and_a_task_those_of_its_script(own_broker: OwnBroker) -> None:
    said = own_broker.run(
        """
        env = flyte.TaskEnvironment("model", reusable=flyte.ReusePolicy(replicas=(1, 1)))

        @flyte.pool(env).preload
        def arguments() -> list:
            return list(sys.argv)

        @env.task
        def seen() -> tuple:
            return arguments(), list(sys.argv)

        of_preload, of_task = seen()
        say(of_preload, of_task == sys.argv, os.path.basename(of_task[0]))
        """,
        name="script",
    )
    assert said == ["[''] True script.py"]
