"""How the error of a task arrives in the notebook that called it: as itself, named, and with what helps."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_notebook import Cell, Notebook

pytestmark = pytest.mark.kernel

SETUP = """
import asyncio, concurrent.futures, dataclasses, os, sys
import flyte_jupyter as flyte
from flyte_jupyter import errors
from pydantic import BaseModel, ValidationError

flyte.PoolHandle.view = None  # a card's messages come at any time
env = flyte.TaskEnvironment("errs", reusable=flyte.ReusePolicy(replicas=2))
few = flyte.TaskEnvironment("few", reusable=flyte.ReusePolicy(replicas=1, concurrency=2))

class Item(BaseModel):
    n: int

class Final(Exception):
    def __init_subclass__(cls):
        raise RuntimeError("final")

class FinalOOMError(Exception):
    def __init_subclass__(cls):
        raise RuntimeError("final")

@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    left: int

class HasKind(Exception):
    def __init__(self):
        super().__init__("m")
        self.kind, self.worker, self.code = "fruit", 7, 404

def fail(how):
    if how == "invalid":
        Item(n="abc")
    if how == "frozen":
        raise Frozen(3)
    if how == "kind":
        raise HasKind
    raise {"final": Final, "oom": FinalOOMError}[how]("so it is")

@env.task
def child(how):
    fail(how)

@env.task
async def child_async(how):
    await asyncio.sleep(0)
    fail(how)

@env.task
def parent(how):
    child(how)

@env.task(retries=2)
def tries(how, path):
    with open(path, "a") as file:
        file.write("x")
    if how == "fatal":
        raise errors.NonRecoverableError("no use")
    fail(how)

def caught(call, *args):
    try:
        call(*args)
    except Exception as error:
        return error
"""


@pytest.fixture(scope="module")
def notebook(shared_broker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path_factory.mktemp("nb"))
    notebook.setup = SETUP
    try:
        notebook.begin()
        yield notebook
        notebook.run("flyte.pool(env).stop(); flyte.pool(few).stop()")
    finally:
        notebook.end()


# --- classes that cannot be Flyte's, too


@pytest.mark.parametrize(
    "call",
    [
        "child('invalid')",
        "await child.aio('invalid')",
        "await child_async('invalid')",
        "list(flyte.map(child, ['invalid'], return_exceptions=False))",
        "flyte.pool(env).executor().submit(fail, 'invalid').result()",
        "parent('invalid')",
    ],
)
def test_a_validation_error_is_caught_as_itself(notebook: Notebook, call: str) -> None:
    assert notebook.run(
        f"try: {call}\nexcept ValidationError as error: seen = error\n"
        "flytes = seen.__cause__\n"
        "seen.error_count(), type(flytes).__name__, flytes.code, 'raised this on errs[' in seen.__notes__[0],"
        "'in fail' in seen.remote_traceback"
    ).value == (1, "RuntimeUserError", "ValidationError", True, True)


def test_it_is_shown_with_the_lines_of_the_task_and_once(notebook: Notebook) -> None:
    for call in ("child('invalid')", "await child.aio('invalid')"):
        cell = notebook.run(call)
        assert cell.error == "ValidationError"
        assert '    Item(n="abc")' in cell.traceback
        assert "flyte_jupyter" not in cell.traceback
        assert "RuntimeUserError" not in cell.traceback
        assert cell.traceback.count("1 validation error") == 1
        assert "errs.child raised this on errs[" in cell.traceback


def test_it_passes_through_a_parent_with_the_lines_and_notes_of_both(notebook: Notebook) -> None:
    cell = notebook.run("parent('final')")
    assert cell.error == "Final"
    assert [line in cell.traceback for line in ("child(how)", "fail(how)", "errs.child raised this on",
                                                "errs.parent raised this on")] == [True] * 4  # fmt: skip
    assert "RuntimeUserError" not in cell.traceback


def test_its_own_cause_stands_behind_flytes(notebook: Notebook) -> None:
    notebook.run("@env.task\ndef chained():\n    try: {}['lr']\n    except KeyError as why: raise Final('m') from why")
    assert notebook.run(
        "error = caught(chained)\n[type(e).__name__ for e in (error, error.__cause__, error.__cause__.__cause__)]"
    ).value == ["Final", "RuntimeUserError", "KeyError"]
    cell = notebook.run("chained()")
    assert "KeyError: 'lr'" in cell.traceback
    assert "direct cause" in cell.traceback
    assert "RuntimeUserError" not in cell.traceback


def test_an_error_that_cannot_be_written_to_keeps_its_notes_and_traceback(notebook: Notebook) -> None:
    for call in ("child", "parent"):
        assert notebook.run(
            f"error = caught({call}, 'frozen')\n"
            "isinstance(error, Frozen), isinstance(error, errors.RuntimeUserError), error.left, len(error.__notes__)"
        ).value == (True, True, 3, 1 if call == "child" else 2)
    assert notebook.run("child('frozen')").error == "Frozen"


def test_whether_it_is_tried_again_does_not_depend_on_its_class(notebook: Notebook, tmp_path: Path) -> None:
    for how, count in (("final", 3), ("invalid", 3), ("fatal", 1)):
        path = tmp_path / how
        notebook.run(f"caught(tries, {how!r}, {str(path)!r})")
        assert path.read_text() == "x" * count
    assert notebook.run("isinstance(caught(child, 'oom').__cause__, errors.OOMError)").value is True


def test_attributes_that_are_called_as_flytes_are_the_users(notebook: Notebook) -> None:
    assert notebook.run("e = caught(child, 'kind'); e.kind, e.worker, e.code").value == ("fruit", 7, 404)


# --- what would end more than a task


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("sys.exit(2)", "SystemExit: 2. The task exited, as sys.exit() does; its replica goes on."),
        ("__import__('argparse').ArgumentParser().parse_args(['--no'])", "SystemExit: 2. The task exited"),
        ("__import__('pytest').skip('later')", "Skipped: later. The task raised it, and only the task ended."),
        ("raise KeyboardInterrupt", "KeyboardInterrupt. The task raised it itself; nobody interrupted it."),
        ("raise GeneratorExit", "GeneratorExit. The task raised it, and only the task ended."),
        ("raise StopIteration(3)", "StopIteration: 3. The task raised it, and only the task ended."),
        ("raise asyncio.CancelledError", "CancelledError. Code in its replica raised it; nobody cancelled the call."),
    ],
)
def test_what_would_end_more_than_a_task_is_named(notebook: Notebook, code: str, text: str) -> None:
    notebook.run(f"@env.task\ndef ends():\n    {code}\n@env.task\ndef passes_on():\n    ends()")
    for call in ("ends", "passes_on"):
        error, code_, said = notebook.run(f"e = caught({call}); type(e).__name__, e.code, str(e)").value
        assert (error, code_) == ("RuntimeUserError", text.partition(":")[0].partition(".")[0])
        assert said.startswith(text)


# --- cancellations that nobody asked for


@pytest.mark.parametrize(
    "how", ["raise asyncio.CancelledError", "asyncio.current_task().cancel(); await asyncio.sleep(0)"]
)
def test_a_cancellation_of_the_tasks_own_is_its_error(notebook: Notebook, how: str) -> None:
    notebook.run(f"@few.task\nasync def gives_up():\n    {how}")
    name, code, text = notebook.run(
        "async def calls():\n"
        "    try: await gives_up.aio()\n"
        "    except Exception as error: return error\n"
        "error = await calls()\n"
        "type(error).__name__, error.code, str(error)"
    ).value
    assert (name, code) == ("RuntimeUserError", "CancelledError")
    assert text == "CancelledError. Code in its replica raised it; nobody cancelled the call."


def test_a_cancellation_in_a_sync_tasks_own_loop_is_its_error(notebook: Notebook) -> None:
    notebook.run(
        "@env.task\ndef gives_up_inside():\n"
        "    async def inside():\n"
        "        asyncio.current_task().cancel()\n"
        "        await asyncio.sleep(0)\n"
        "    asyncio.run(inside())"
    )
    assert notebook.run("caught(gives_up_inside).code").value == "CancelledError"


def test_a_cancelled_future_of_the_tasks_own_is_its_error(notebook: Notebook) -> None:
    notebook.run(
        "@env.task\ndef waits_for_nothing():\n"
        "    future = concurrent.futures.Future()\n"
        "    future.cancel()\n"
        "    future.result()"
    )
    assert notebook.run(
        "error = caught(waits_for_nothing)\n"
        "isinstance(error, concurrent.futures.CancelledError), isinstance(error, errors.RuntimeUserError)"
    ).value == (True, True)
    assert notebook.run("await asyncio.gather(waits_for_nothing.aio(), return_exceptions=True)").error == ""


def test_a_task_that_cancels_others_of_its_replica_is_not_told_as_the_caller(notebook: Notebook) -> None:
    notebook.run(
        "@few.task\nasync def sleeps():\n    await asyncio.sleep(60)\n"
        "@few.task\nasync def clears():\n"
        "    for task in asyncio.all_tasks() - {asyncio.current_task()}:\n"
        "        if 'run_async' in repr(task): task.cancel()\n"
        "    return any('run_async' in repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()})"
    )
    assert (
        notebook.run(
            "slept = asyncio.ensure_future(sleeps.aio())\n"
            "while not await clears.aio(): pass\n"
            "(await asyncio.gather(slept, return_exceptions=True))[0].code"
        ).value
        == "CancelledError"
    )


# --- names of the notebook that the capture cannot see

NOTE = 'FJ401 "unseen" exists in your notebook, but the task does not mention it by name (eval, globals()).'
count = itertools.count()


def read(cell: Cell) -> str:
    return re.sub(r"unseen\d+", "unseen", cell.traceback)


def explained(notebook: Notebook, body: str) -> Cell:
    name = f"unseen{next(count)}"  # what one task has sent is there for all of them
    notebook.run(
        f"{name} = 7\n@env.task\ndef looks():\n    {body.replace('unseen', name)}\n"
        "@env.task\ndef passes_on():\n    looks()"
    )
    return notebook.run("looks()")


@pytest.mark.parametrize(
    "body",
    [
        "return eval('unseen + 1')",
        "exec('print(unseen)')",
        "return globals()['unseen']",
        "names = globals()\n    return names['unseen']",
        "return vars()['unseen'] + locals()['unseen']",
        "return '{unseen}'.format(**globals())",
        "return __import__('string').Template('$unseen').substitute(globals())",
        "return __import__('operator').itemgetter('unseen')(globals())",
        "return vars(sys.modules['__main__'])['unseen']",
        "import pandas\n    return pandas.DataFrame({'a': [1]}).query('a > @unseen')",
    ],
)
def test_a_name_that_a_task_does_not_mention_is_explained(notebook: Notebook, body: str) -> None:
    cell = explained(notebook, body)
    assert cell.error in ("NameError", "KeyError", "AttributeError", "ImportError", "UndefinedVariableError")
    assert cell.traceback.count("FJ401") == 1
    assert f"{NOTE}\nPass it as an argument, or mention it in the task." in read(cell)


@pytest.mark.parametrize(
    "body",
    [
        "return eval('unseen + 1', {'unseen': {}}['nothing'])",
        "return {}['unseen']",
        "return eval('nowhere')",
        "raise NameError('another text')",
        "return getattr(sys, 'unseen')",
        "return unseen, eval('nowhere')",
    ],
)
def test_other_names_are_not(notebook: Notebook, body: str) -> None:
    cell = explained(notebook, body)
    assert cell.error
    assert "FJ401" not in cell.traceback


def test_a_name_that_a_child_misses_is_explained_once(notebook: Notebook) -> None:
    explained(notebook, "return eval('unseen')")
    assert read(notebook.run("passes_on()")).count(NOTE) == 1
    assert read(notebook.run("await passes_on.aio()")).count(NOTE) == 1
