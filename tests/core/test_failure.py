"""Exceptions on their way between two processes; here both ends are this one."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import functools
import gc
import linecache
import pickle
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pydantic_core
import pytest

from flyte_jupyter import errors
from flyte_jupyter.core import failure, payload
from flyte_jupyter.core.failure import describe, rebuild
from flyte_jupyter.core.payload import plain_find

# --- exceptions


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def travelled(error: BaseException, find: payload.Find = plain_find) -> Any:
    """As the caller gets it: described, sent as bytes, rebuilt."""
    return rebuild(pickle.loads(pickle.dumps(describe(raised(error)), 5)), find)


def named(name: str) -> Exception:
    made: Exception = type(name, (Exception,), {"__module__": "gone"})("text")
    return made


@pytest.mark.parametrize(
    ("error", "cls", "code", "kind"),
    [
        (errors.NonRecoverableError("m"), errors.RuntimeUserError, "NonRecoverableError", "user"),
        (errors.NonRecoverableError("m", "own"), errors.RuntimeUserError, "NonRecoverableError", "user"),
        (errors.RuntimeSystemError("C", "m"), errors.RuntimeSystemError, "C", "system"),
        (errors.RuntimeUnknownError("C", "m"), errors.RuntimeUnknownError, "C", "unknown"),
        (errors.OOMError("C", "m"), errors.OOMError, "C", "user"),
        (errors.RuntimeUserError("C", "m"), errors.RuntimeUserError, "C", "user"),
        (errors.CustomError("mine", "m"), errors.RuntimeUserError, "mine", "user"),
        (errors.MaxRuntimeExceededError("m"), errors.MaxRuntimeExceededError, "MaxRuntimeExceededError", "user"),
        (errors.DeadlineExceededError("m"), errors.DeadlineExceededError, "DeadlineExceededError", "user"),
        (errors.TaskTimeoutError("m"), errors.TaskTimeoutError, "TaskTimeoutError", "user"),
        (errors.PoolStopped("gpu"), errors.PoolStopped, "PoolStopped", "user"),
        (errors.ReplicaDied("t", "gpu[0]"), errors.ReplicaDied, "ReplicaDied", "system"),
        (errors.GPUFaultUserError("C", "m", fault_kind="xid"), errors.GPUFaultUserError, "C", "user"),
        (ValueError("m"), errors.RuntimeUserError, "ValueError", "user"),
        (MemoryError("m"), errors.RuntimeUserError, "MemoryError", "user"),
        (InterruptedError("m"), errors.TaskInterruptedError, "InterruptedError", "user"),
        (named("OutOfMemoryError"), errors.RuntimeUserError, "OutOfMemoryError", "user"),
        (named("GpuOomError"), errors.OOMError, "GpuOomError", "user"),
        (named("MyOOMError"), errors.OOMError, "MyOOMError", "user"),
        (named("UnknownHost"), errors.RuntimeUnknownError, "UnknownHost", "unknown"),
        (named("SleepInterrupted"), errors.TaskInterruptedError, "SleepInterrupted", "user"),
        (named("RetriesExhausted"), errors.RetriesExhaustedError, "RetriesExhausted", "user"),
        (named("PrimaryContainerNotFound"), errors.PrimaryContainerNotFoundError, "PrimaryContainerNotFound", "user"),
        (named("InvalidImageName"), errors.InvalidImageNameError, "InvalidImageName", "user"),
        (named("ImagePullBackOff"), errors.ImagePullBackOffError, "ImagePullBackOff", "user"),
        (StopIteration(3), errors.RuntimeUserError, "StopIteration", "user"),
        (SystemExit(3), errors.RuntimeUserError, "SystemExit", "user"),
        (KeyboardInterrupt(), errors.RuntimeUserError, "KeyboardInterrupt", "user"),
        (GeneratorExit(), errors.RuntimeUserError, "GeneratorExit", "user"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)  # fmt: skip
def test_flytes_class_and_code(error: BaseException, cls: type, code: str, kind: str) -> None:
    rebuilt = travelled(error)
    assert isinstance(rebuilt, cls)
    flyte = [each for each in type(rebuilt).__mro__ if each.__module__ == errors.__name__]
    assert flyte[0] is cls
    assert (rebuilt.code, rebuilt.kind) == (code, kind)
    assert str(error) in str(rebuilt)
    if not isinstance(error, errors.BaseRuntimeError):
        assert rebuilt.worker == "user"


@pytest.mark.parametrize("error", [StopIteration(3), StopAsyncIteration(), SystemExit(3), KeyboardInterrupt()])
def test_what_would_steer_the_callers_own_process_is_only_flytes_error(error: BaseException) -> None:
    rebuilt = travelled(error)
    assert not isinstance(rebuilt, type(error))
    assert isinstance(rebuilt, Exception)


def test_a_sum_over_results_raises_the_error_among_them() -> None:
    rebuilt = travelled(ValueError("m"))
    with pytest.raises(ValueError, match="m") as caught:
        sum([1, rebuilt])
    assert caught.value is rebuilt


class TwoArguments(Exception):
    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}:{line}")
        self.line = line


class WithFile(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "no such thing", path)


class HasCode(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"HTTP {code}")
        self.code = code


class Slotted(Exception):
    __slots__ = ("x",)


class SlottedUserError(errors.RuntimeUserError):
    __slots__ = ("x",)


def decode_error() -> UnicodeDecodeError:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"ab\xff".decode()
    return caught.value


def open_error() -> FileNotFoundError:
    with pytest.raises(FileNotFoundError) as caught:
        Path("/no/such/file").read_text()
    return caught.value


def syntax_error() -> SyntaxError:
    with pytest.raises(SyntaxError) as caught:
        compile("a b", "cell.py", "exec")
    return caught.value


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (ValueError("m"), []),
        (KeyError("lr"), []),
        (KeyError(("a", 1)), []),
        (OSError(28, "No space left"), ["errno", "strerror"]),
        (open_error(), ["errno", "strerror", "filename"]),
        (OSError(18, "Cross-device", "a", None, "b"), ["filename", "filename2"]),
        (InterruptedError(4, "Interrupted"), ["errno"]),
        (decode_error(), ["encoding", "object", "start", "end", "reason"]),
        (syntax_error(), ["filename", "lineno", "offset", "text", "msg"]),
        (ImportError("m", name="transformers", path="/x"), ["name", "path"]),
        (ModuleNotFoundError("m", name="transformers"), ["name"]),
        (NameError("m", name="tokenizer"), []),
        (AttributeError("m"), []),
        (RecursionError("m"), []),
        (TwoArguments("a.py", 3), ["line"]),
        (WithFile("/x"), ["errno", "filename"]),
        (HasCode(404), ["code"]),
        (ExceptionGroup("several", [ValueError("a"), KeyError("b")]), ["message"]),
        (np.linalg.LinAlgError("m"), []),
        (Slotted("m"), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_is_its_own_class_too(error: Exception, attributes: list[str]) -> None:
    rebuilt = travelled(error)
    for again in (rebuilt, pickle.loads(pickle.dumps(rebuilt)), copy.copy(rebuilt), copy.deepcopy(rebuilt)):
        assert isinstance(again, type(error))
        assert isinstance(again, errors.RuntimeUserError)
        assert type(again).__name__ == type(error).__name__
        assert str(again) == str(error)
        assert repr(again.args) == repr(error.args)
        for name in attributes:
            assert getattr(again, name) == getattr(error, name)
        assert (again.kind, again.worker) == ("user", "user")


def test_except_star_reaches_into_a_group() -> None:
    caught: list[BaseException] = []
    try:
        raise travelled(ExceptionGroup("several", [ValueError("a"), KeyError("b")]))
    except* KeyError as group:
        caught.extend(group.exceptions)
    except* ValueError:
        pass
    assert repr(caught) == "[KeyError('b')]"


def test_a_group_of_errors_of_child_tasks_keeps_them() -> None:
    rebuilt = travelled(ExceptionGroup("several", [travelled(ValueError("a"))]))
    (inner,) = rebuilt.exceptions
    assert isinstance(inner, ValueError)
    assert isinstance(inner, errors.RuntimeUserError)
    assert inner.code == "ValueError"


def test_another_error_can_be_made_of_the_class_of_a_rebuilt_one() -> None:
    rebuilt = travelled(ValueError("m"))
    another = type(rebuilt)(f"{rebuilt}, and more")
    assert type(another) is ValueError
    assert str(another) == "m, and more"


def test_a_notebooks_class_is_found_under_its_name_here(home: types.ModuleType) -> None:
    here = home.Mine
    rebuilt = travelled(home.Mine("a.py", 3))
    assert isinstance(rebuilt, here)
    assert rebuilt.line == 3
    assert type(pickle.loads(pickle.dumps(rebuilt))) is type(rebuilt)


def test_a_class_that_is_unknown_here_is_named_in_a_note(home: types.ModuleType) -> None:
    failure = describe(raised(home.Mine("a.py", 3)))
    del home.Mine
    rebuilt = rebuild(failure, plain_find)
    assert type(rebuilt) is errors.RuntimeUserError
    assert (rebuilt.code, str(rebuilt)) == ("Mine", "a.py:3")
    note = "__main__.Mine could not be loaded here, so `except Mine` misses it."
    assert rebuilt.__notes__ == [note]
    assert rebuild(describe(raised(rebuilt)), plain_find).__notes__ == [note]


def test_what_cannot_be_pickled_inside_an_error_is_left_behind(home: types.ModuleType) -> None:
    error = home.Mine("a.py", 3)
    error.lock = threading.Lock()
    error.args = ("text", error.lock)
    rebuilt = travelled(error)
    assert isinstance(rebuilt, home.Mine)
    assert rebuilt.line == 3
    assert not hasattr(rebuilt, "lock")
    assert rebuilt.args[0] == "text"
    assert "lock" in rebuilt.args[1]  # its repr


def test_a_subclass_of_flytes_error_stays_what_it_is(home: types.ModuleType) -> None:
    class Quota(errors.RuntimeUserError):
        def __init__(self, left: int) -> None:
            super().__init__("Quota", f"{left} left")
            self.left = left

    Quota.__module__, Quota.__qualname__ = "__main__", "Quota"
    home.Quota = Quota
    rebuilt = travelled(Quota(3))
    assert type(rebuilt) is Quota
    assert (rebuilt.left, rebuilt.code, str(rebuilt)) == (3, "Quota", "3 left")


def test_a_broken_str_does_not_hide_the_error() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    class Falsy(Exception):
        def __bool__(self) -> bool:
            raise RuntimeError("no")

    error = Broken()
    error.__cause__ = Falsy("the cause")
    rebuilt = travelled(error)
    assert rebuilt.code == "Broken"
    assert str(rebuilt) == "<Broken whose __str__ failed>"
    assert str(rebuilt.__cause__) == "the cause"


# --- classes that cannot be two at once, and objects that do not let themselves be written to


class Item(pydantic.BaseModel):
    n: int


def invalid(value: object) -> pydantic.ValidationError:
    with pytest.raises(pydantic.ValidationError) as caught:
        Item(n=value)  # type: ignore[arg-type]
    return caught.value


class Final(Exception):
    def __init_subclass__(cls) -> None:
        raise RuntimeError("final")


class Sealed(type):
    def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
        if any(isinstance(base, cls) for base in bases):
            return None  # type: ignore[return-value]
        return super().__new__(cls, name, bases, body)


class OfASealedClass(Exception, metaclass=Sealed):
    pass


class FinalOOMError(Exception):
    def __init_subclass__(cls) -> None:
        raise RuntimeError("final")


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    left: int


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlots(Exception):
    left: int
    right: str | None = None


class Unwritable(Exception):
    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        BaseException.__setattr__(self, "left", left)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)

    def add_note(self, note: str) -> None:
        raise AttributeError("no notes")


class UnwritableFinal(Unwritable):
    __slots__ = ("__private",)

    def __init__(self, left: int) -> None:
        super().__init__(left)
        BaseException.__setattr__(self, "_UnwritableFinal__private", -left)

    def private(self) -> int:
        return self.__private  # type: ignore[no-any-return,attr-defined]

    def __init_subclass__(cls) -> None:
        raise RuntimeError("final")


class Custom(pydantic_core.PydanticCustomError):
    def __new__(cls, left: int) -> Custom:
        return super().__new__(cls, "kind", "{left} left", {"left": left})


ALONE = [invalid("abc"), Custom(3), Final("m"), OfASealedClass("m"), UnwritableFinal(3)]
UNWRITABLE = [Frozen(3), Frozen(left=3), FrozenSlots(3, "r"), FrozenSlots(3), Unwritable(3), UnwritableFinal(3)]


@pytest.mark.parametrize("error", ALONE, ids=lambda error: type(error).__name__)
def test_what_cannot_be_two_classes_is_its_own_and_flytes_error_is_its_cause(error: Exception) -> None:
    rebuilt = rebuild(describe(raised(error)), plain_find, where="here")
    assert type(rebuilt) is type(error)
    assert str(rebuilt) == str(error)
    assert vars(error).items() <= vars(rebuilt).items()
    flytes: Any = rebuilt.__cause__
    assert type(flytes) is errors.RuntimeUserError
    assert (flytes.code, flytes.kind, flytes.worker) == (type(error).__name__, "user", "user")
    assert str(flytes) == str(error)
    assert flytes.__cause__ is None
    assert rebuilt.__notes__ == ["here"]
    assert "raised" in [function for _, function, _ in frames(rebuilt)]
    assert "in raised" in rebuilt.remote_traceback  # type: ignore[attr-defined]
    assert failure.flyte_error(rebuilt) is flytes
    assert failure.flyte_code(rebuilt) == type(error).__name__


def test_a_validation_error_still_lists_what_is_wrong() -> None:
    rebuilt = travelled(invalid("abc"))
    assert rebuilt.errors() == invalid("abc").errors()
    assert (rebuilt.title, rebuilt.error_count()) == ("Item", 1)


def test_what_cannot_be_pickled_in_an_error_with_ways_of_its_own_is_told_by_its_text() -> None:
    (wrong,) = travelled(invalid({"lock": threading.Lock(), "n": 1})).errors()
    assert wrong["type"] == "int_type"
    assert wrong["input"]["n"] == 1
    assert "lock" in wrong["input"]["lock"]


def test_what_a_group_holds_arrives_as_itself_too() -> None:
    lock = ValueError(threading.Lock())
    rebuilt = travelled(ExceptionGroup("all", [TwoArguments("a.py", 3), invalid("abc"), lock]))
    two, wrong, text = rebuilt.exceptions
    assert (type(two), str(two), two.line) == (TwoArguments, "a.py:3", 3)
    assert wrong.error_count() == 1
    assert "lock" in text.args[0]


def test_the_own_cause_of_such_an_error_stands_behind_flytes() -> None:
    error = Final("m")
    error.__cause__ = Final("why")
    rebuilt = travelled(error)
    chain = [rebuilt]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    assert [(type(each).__name__, str(each)) for each in chain] == [
        ("Final", "m"), ("RuntimeUserError", "m"), ("Final", "why"), ("RuntimeUserError", "why"),
    ]  # fmt: skip
    assert all(each.__suppress_context__ for each in chain)


def test_such_an_error_is_told_once_in_a_traceback_that_travels_on() -> None:
    rebuilt = travelled(Final("m"))
    assert "RuntimeUserError" not in describe(raised(rebuilt)).text
    outer = ValueError("outer")
    outer.__cause__ = rebuilt
    text = describe(raised(outer)).text
    assert text.count("Final: m") == 1
    assert "RuntimeUserError" not in text
    assert rebuilt.__cause__ is failure.flyte_error(rebuilt), "it is only left out"
    again = travelled(outer)
    assert type(again.__cause__) is Final
    assert type(again.__cause__.__cause__) is errors.RuntimeUserError


def test_flytes_error_beside_such_an_error_can_be_raised_alone() -> None:
    flytes = travelled(Final("m")).__cause__
    again = travelled(flytes)
    assert type(again) is errors.RuntimeUserError
    assert (again.code, str(again)) == ("Final", "m")


def test_flyte_decides_by_the_name_of_such_an_error_too() -> None:
    rebuilt = travelled(FinalOOMError("m"))
    assert type(rebuilt) is FinalOOMError
    assert isinstance(failure.flyte_error(rebuilt), errors.OOMError)


def test_copies_of_such_an_error_know_flytes_too() -> None:
    rebuilt = travelled(Final("m"))
    for again in (copy.copy(rebuilt), pickle.loads(pickle.dumps(rebuilt))):
        assert type(again) is Final
        assert isinstance(failure.flyte_error(again), errors.RuntimeUserError)
    assert failure.flyte_error(ValueError("local")) is None
    assert failure.flyte_code(ValueError("local")) is None


@pytest.mark.parametrize("error", UNWRITABLE, ids=lambda error: type(error).__name__)
def test_an_error_that_cannot_be_written_to_keeps_all_it_has(error: Any) -> None:
    first: Any = rebuild(pickle.loads(pickle.dumps(describe(raised(error)), 5)), plain_find, where="child")
    second: Any = rebuild(pickle.loads(pickle.dumps(describe(raised(first)), 5)), plain_find, where="parent")
    for rebuilt in (first, second):
        assert isinstance(rebuilt, type(error))
        assert isinstance(failure.flyte_error(rebuilt), errors.RuntimeUserError)
        assert str(rebuilt) == str(error)
        assert rebuilt.args == error.args
        assert rebuilt.left == 3
        assert getattr(rebuilt, "right", None) == getattr(error, "right", None)
        assert "in raised" in rebuilt.remote_traceback
        assert frames(rebuilt)
    assert second.__notes__ == ["child", "parent"]
    if not isinstance(error, UnwritableFinal):
        with pytest.raises(type(error)) as caught, passes():
            raise second
        assert caught.value is second
        with pytest.raises(AttributeError):
            second.left = 4
    if isinstance(error, UnwritableFinal):
        assert second.private() == -3


@contextlib.contextmanager
def passes() -> Iterator[None]:
    yield


def test_slots_that_are_not_set_stay_so() -> None:
    assert not hasattr(travelled(Slotted("m")), "x")
    error = Slotted("m")
    error.x = None
    assert travelled(error).x is None
    flytes = SlottedUserError("C", "m")
    flytes.x = 3
    rebuilt = travelled(flytes)
    assert (type(rebuilt), rebuilt.code, rebuilt.x) == (SlottedUserError, "C", 3)


# --- attributes that are called as Flyte's


class HasKind(Exception):
    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind
        self.worker = 7
        self.code = [404]


class OfAKind(Exception):
    kind = "fruit"

    @property
    def code(self) -> int:
        return 9

    def __getattr__(self, name: str) -> str:
        if name == "worker":
            return "bee"
        raise AttributeError(name)


@pytest.mark.parametrize(
    ("error", "values"),
    [
        (HasKind("apple"), ([404], "apple", 7)),
        (OfAKind("m"), (9, "fruit", "bee")),
        (ValueError("m"), ("ValueError", "user", "user")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_attributes_of_the_users_win_over_flytes(error: Exception, values: tuple[Any, ...]) -> None:
    rebuilt = travelled(error)
    for again in (rebuilt, travelled(rebuilt), copy.copy(rebuilt), pickle.loads(pickle.dumps(rebuilt))):
        assert (again.code, again.kind, again.worker) == values
        assert isinstance(again, errors.RuntimeUserError)
        assert failure.flyte_code(again) == type(error).__name__


# --- what would end more than a task


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SystemExit(2), "SystemExit: 2. The task exited, as sys.exit() does; its replica goes on."),
        (SystemExit(), "SystemExit. The task exited, as sys.exit() does; its replica goes on."),
        (SystemExit("usage!"), "SystemExit: usage! The task exited, as sys.exit() does; its replica goes on."),
        (KeyboardInterrupt(), "KeyboardInterrupt. The task raised it itself; nobody interrupted it."),
        (asyncio.CancelledError(), "CancelledError. Code in its replica raised it; nobody cancelled the call."),
        (StopIteration(3), "StopIteration: 3. The task raised it, and only the task ended."),
        (GeneratorExit(), "GeneratorExit. The task raised it, and only the task ended."),
        (pytest.fail.Exception("no luck"), "Failed: no luck. The task raised it, and only the task ended."),
        (pytest.skip.Exception("later"), "Skipped: later. The task raised it, and only the task ended."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_would_end_more_than_a_task_is_named(error: BaseException, text: str) -> None:
    rebuilt = travelled(error)
    again = travelled(rebuilt)
    for each in (rebuilt, again):
        assert type(each) is errors.RuntimeUserError
        assert str(each) == text
        assert each.code == type(error).__name__


def test_what_would_end_more_than_a_task_is_named_where_its_class_is_unknown(home: types.ModuleType) -> None:
    home.Left = type("Left", (BaseException,), {"__module__": "__main__"})
    described = describe(raised(home.Left("2")))
    del home.Left
    assert str(rebuild(described, plain_find)) == "Left: 2. The task raised it, and only the task ended."


# --- chains, notes, tracebacks


def test_causes_and_contexts_arrive_as_a_chain() -> None:
    def fail() -> None:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise ValueError("second")  # noqa: B904
        except ValueError as error:
            raise TypeError("third") from error

    with pytest.raises(TypeError) as caught:
        fail()
    rebuilt = travelled(caught.value)
    chain = [rebuilt, rebuilt.__cause__, rebuilt.__cause__.__cause__]
    assert [(each.code, str(each)) for each in chain] == [
        ("TypeError", "third"), ("ValueError", "second"), ("KeyError", "'first'"),
    ]  # fmt: skip
    assert isinstance(chain[2], KeyError)


def test_a_context_that_was_suppressed_stays_so() -> None:
    def fail() -> None:
        try:
            raise KeyError
        except KeyError:
            raise ValueError("m") from None

    with pytest.raises(ValueError, match="m") as caught:
        fail()
    assert travelled(caught.value).__cause__ is None


def test_a_long_chain_is_cut() -> None:
    error = ValueError(0)
    for number in range(1, 50):
        following = ValueError(number)
        following.__cause__ = error
        error = following
    depth, link = 0, travelled(error)
    while link.__cause__ is not None:
        depth, link = depth + 1, link.__cause__
    assert depth == failure.MAX_CAUSES


def test_notes_arrive_and_the_place_is_one_more() -> None:
    error = ValueError("m")
    error.add_note("try a smaller batch")
    rebuilt = rebuild(describe(error), plain_find, where="train raised this on gpu[0].")
    assert rebuilt.__notes__ == ["try a smaller batch", "train raised this on gpu[0]."]
    copied = copy.copy(rebuilt)
    rebuilt.add_note("later")
    assert len(copied.__notes__) == 2
    error.__notes__ = "not a list"  # type: ignore[assignment]
    assert rebuild(describe(error), plain_find).__notes__ == []


def cell(name: str, source: str) -> Callable[..., Any]:
    """A function `run` from a cell that both sides keep in linecache."""
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    names: dict[str, Any] = {"errors": errors}
    exec(compile(source, name, "exec"), names)
    run: Callable[..., Any] = names["run"]
    return run


def frames(error: BaseException) -> list[tuple[str, str, int | None]]:
    return [(f.filename, f.name, f.lineno) for f in traceback.extract_tb(error.__traceback__)]


def test_the_traceback_names_the_users_lines() -> None:
    run = cell("<cell 7>", "def inner(x):\n    return 1 / x\n\ndef run():\n    return inner(0)\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run()
    failure = pickle.loads(pickle.dumps(describe(caught.value, skip_file=__file__)))
    rebuilt = rebuild(failure, plain_find)
    assert frames(rebuilt) == [("<cell 7>", "run", 5), ("<cell 7>", "inner", 2)]
    shown = "".join(traceback.format_exception(rebuilt))
    assert "return 1 / x" in shown
    assert shown.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "return inner(0)" in rebuilt.remote_traceback


def test_an_error_without_a_traceback_has_none_here() -> None:
    rebuilt = rebuild(describe(ValueError("m")), plain_find)
    assert rebuilt.__traceback__ is None
    assert failure.remote_frames(ValueError()) is None


def test_a_runaway_recursion_keeps_its_first_and_last_frames() -> None:
    run = cell("<cell 8>", "def run(n):\n    return run(n + 1)\n")
    with pytest.raises(RecursionError) as caught:
        run(0)
    described = describe(caught.value, skip_file=__file__)
    assert len(described.frames) == 2 * failure.MAX_FRAMES
    rebuilt = rebuild(described, plain_find)
    assert isinstance(rebuilt, RecursionError)
    assert len(frames(rebuilt)) == 2 * failure.MAX_FRAMES


@pytest.mark.parametrize(
    "error",
    [ValueError("m"), InterruptedError(4, "m"), errors.OOMError("C", "m"), errors.CustomError("mine", "m"),
     errors.ReplicaDied("t", "gpu[0]"), KeyError("k"), SystemExit(1)],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_the_error_of_a_nested_task_passes_through_its_parent(error: BaseException) -> None:
    child = cell("<child>", "def run(error):\n    raise error\n")
    parent = cell("<parent>", "def run(error):\n    raise error\n")

    def leave(run: Callable[..., Any], error: BaseException, where: str) -> BaseException:
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            run(error)
        return rebuild(pickle.loads(pickle.dumps(describe(caught.value, skip_file=__file__))), plain_find, where=where)

    first: Any = leave(child, error, "child")
    second: Any = leave(parent, first, "parent")
    assert type(second) is type(first)
    assert (second.code, second.kind, second.worker) == (first.code, first.kind, first.worker)
    assert (str(second), second.args) == (str(first), first.args)
    assert frames(second) == [("<parent>", "run", 2), ("<child>", "run", 2)]
    assert second.__notes__[-2:] == ["child", "parent"]


def test_a_rebuilt_error_that_was_raised_can_be_pickled_and_copied() -> None:
    for error in (ValueError("m"), errors.OOMError("C", "m"), errors.ReplicaDied("t", "gpu[0]")):
        rebuilt = raised(travelled(error))
        for again in (pickle.loads(pickle.dumps(rebuilt)), copy.copy(rebuilt)):
            assert type(again) is type(rebuilt)
            assert vars(again) == vars(rebuilt)


# --- the real package beside us


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands for `flyte.errors`; its classes have the constructors that make them impossible to unpickle."""
    source = """
class BaseRuntimeError(RuntimeError):
    def __init__(self, code, kind, root_cause_message, worker=None):
        super().__init__(root_cause_message)
        self.code, self.kind, self.worker = code, kind, worker
class RuntimeUserError(BaseRuntimeError):
    def __init__(self, code, message, worker=None):
        super().__init__(code, "user", message, worker)
class RuntimeSystemError(BaseRuntimeError):
    def __init__(self, code, message, worker=None):
        super().__init__(code, "system", message, worker)
class OOMError(RuntimeUserError): pass
class TaskInterruptedError(RuntimeUserError): pass
class CustomError(RuntimeUserError):
    def __init__(self, code, message):
        super().__init__(code, message, "user")
"""
    module = types.ModuleType("flyte.errors")
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, "flyte", types.ModuleType("flyte"))
    monkeypatch.setitem(sys.modules, "flyte.errors", module)
    return module


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("m"), "RuntimeUserError"),
        (InterruptedError(4, "m"), "TaskInterruptedError"),
        (SystemExit(1), "RuntimeUserError"),
        (errors.OOMError("C", "m"), "OOMError"),
        (errors.ReplicaDied("t", "gpu[0]"), "RuntimeSystemError"),
        (errors.ArgumentNotSerializable("x", "socket.socket"), "RuntimeUserError"),
        (errors.NameNotOnReplica("x", "gpu[0]"), "RuntimeUserError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_beside_the_real_package_errors_are_its_own_too(real: Any, error: BaseException, name: str) -> None:
    rebuilt = travelled(error)
    for again in (rebuilt, pickle.loads(pickle.dumps(rebuilt)), copy.copy(rebuilt)):
        assert isinstance(again, getattr(real, name))
        assert isinstance(again, getattr(errors, name))
        assert str(error) in str(again)
        assert type(again).__name__ == (type(error).__name__ if name not in str(type(again)) else name)
        if not isinstance(error, SystemExit):
            assert isinstance(again, type(error))
    assert rebuilt.code == (getattr(error, "code", None) if isinstance(error, errors.BaseRuntimeError)
                            else type(error).__name__)  # fmt: skip


def test_beside_an_error_that_is_its_own_class_alone_stands_one_of_the_real_packages(real: Any) -> None:
    rebuilt = travelled(Final("m"))
    assert type(rebuilt) is Final
    assert isinstance(rebuilt.__cause__, real.RuntimeUserError)
    assert isinstance(rebuilt.__cause__, errors.RuntimeUserError)


def test_an_error_of_the_real_package_keeps_its_code(real: Any) -> None:
    custom, oom = travelled(real.CustomError("mine", "m")), travelled(real.OOMError("OOM", "m"))
    assert isinstance(custom, errors.RuntimeUserError)
    assert isinstance(custom, real.RuntimeUserError)
    assert (custom.code, str(custom)) == ("mine", "m")
    assert isinstance(oom, errors.OOMError)
    assert isinstance(oom, real.OOMError)


def test_a_users_subclass_of_the_real_packages_error_keeps_its_class(real: Any, home: types.ModuleType) -> None:
    home.Quota = type("Quota", (real.RuntimeUserError,), {"__module__": "__main__"})
    rebuilt = travelled(home.Quota("Q", "m"))
    assert isinstance(rebuilt, home.Quota)
    assert isinstance(rebuilt, errors.RuntimeUserError)
    assert rebuilt.code == "Q"


def test_our_own_errors_become_catchable_in_place(real: Any) -> None:
    error = errors.ReplicaDied("t", "gpu[0]")
    assert failure.catchable(error) is error
    assert isinstance(error, real.RuntimeSystemError)
    assert isinstance(error, errors.ReplicaDied)
    assert (error.task, error.code) == ("t", "ReplicaDied")
    assert failure.catchable(error) is error


def test_without_the_real_package_nothing_is_changed() -> None:
    error = errors.OOMError("C", "m")
    assert type(failure.catchable(error)) is errors.OOMError
    assert functools.reduce(getattr, ["errors"], sys.modules["flyte_jupyter"]) is errors
    assert Path(errors.__file__).parent.name == "errors"


def test_ipython_marks_the_line_that_raised_and_not_the_def() -> None:
    from IPython.core.ultratb import VerboseTB

    source = "def run():\n    first = 1\n    return first / 0\n"
    scope: dict[str, Any] = {}
    exec(compile(source, "<cell 12>", "exec"), scope)
    linecache.cache["<cell 12>"] = (len(source), None, source.splitlines(keepends=True), "<cell 12>")
    try:
        scope["run"]()
    except ZeroDivisionError as error:
        described = failure.describe(error)
    rebuilt = failure.rebuild(described, payload.plain_find)
    shown = VerboseTB(theme_name="nocolor").text(type(rebuilt), rebuilt, rebuilt.__traceback__)
    assert "----> 3     return first / 0" in shown
    assert "^^^" not in "".join(traceback.format_exception(rebuilt))


def test_an_error_of_a_task_keeps_nothing_of_its_caller_alive() -> None:
    class Held:
        pass

    described = describe(raised(ValueError("wrong")))

    def caller() -> tuple[BaseException, weakref.ref[Held]]:
        held = Held()
        return rebuild(described, plain_find), weakref.ref(held)

    gc.disable()  # nothing may wait for the collector
    try:
        error, gone = caller()
        assert error.__traceback__ is not None
        assert gone() is None
        left = weakref.ref(error)
        del error
        assert left() is None
    finally:
        gc.enable()
