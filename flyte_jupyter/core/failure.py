"""An exception as fields that always arrive, and those fields as an exception again, at the caller.

It is raised as an instance of Flyte's error class and of its own class at once, with the remote traceback, in which
every frame shows the user's own line.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import FunctionType, TracebackType
from typing import Any, Final, cast

from .. import errors
from ..errors.ours import sentence
from ..errors.shown import beside, put_beside, without_flytes
from . import content
from .payload import Find

MAX_FRAMES: Final = 100  # of a traceback that travel: a runaway recursion has thousands, all alike
MAX_CAUSES: Final = 5

RemoteFrame = tuple[str, str, int, int]
"""File, function, its first line, the line."""


@dataclass(slots=True)
class Failure:
    """An exception as fields: what is text always arrives, and what is pickled is loaded apart.

    Flyte's own errors do not survive pickling, and a class may exist on one side only.
    """

    module: str
    name: str
    message: str
    text: str  # the formatted traceback, causes included
    frames: list[RemoteFrame]  # outermost first
    pickled: bytes | None = None
    code: str | None = None  # of an error that is one of Flyte's already
    kind: str | None = None
    worker: str | None = None
    flyte_name: str | None = None
    notes: list[str] = field(default_factory=list)
    cause: Failure | None = None
    steers: bool = False  # it would end more than the call that raises it, so only Flyte's error arrives
    sources: dict[str, str] = field(default_factory=dict)  # what the frames' files hold that are no files


def describe(error: BaseException, *, skip_file: str | tuple[str, ...] = (), depth: int = 0) -> Failure:
    """Make `error` ready to travel. Frames up to the last one in `skip_file` (the runner's, or more) are left out."""
    tb = _user_traceback(error.__traceback__, skip_file)
    frames = _frames(tb)
    text = _format(error, tb)
    notes = _notes(error)
    known = of(error)
    if known is not None:  # a child task's error on its way through its parent
        sources = known.sources | _sources(frames)
        return replace(known, text=text, frames=frames, notes=notes, sources=sources)
    cause = error.__cause__
    if cause is None and not error.__suppress_context__:
        cause = error.__context__
    failure = Failure(
        module=type(error).__module__,
        name=type(error).__qualname__,
        message=text_of(error),
        text=text,
        frames=frames,
        notes=notes,
        pickled=content.dump(error),
        flyte_name=_flyte_name(type(error)),
        # Those two change meaning inside a generator or coroutine.
        steers=not isinstance(error, Exception) or isinstance(error, StopIteration | StopAsyncIteration),
        sources=_sources(frames),
    )
    if cause is not None and depth < MAX_CAUSES:
        failure.cause = describe(cause, skip_file=skip_file, depth=depth + 1)
    if failure.flyte_name is not None:
        failure.code, failure.kind, failure.worker = (
            None if value is None else str(value)
            for value in (getattr(error, name, None) for name in ("code", "kind", "worker"))
        )
    return failure


def rebuild(failure: Failure, find: Find, *, where: str = "") -> BaseException:
    """The exception to raise at the caller: Flyte's class and its own class at once, with the remote traceback.

    Where one object cannot be both, it is its own class, and Flyte's error is its cause; what caused it is the cause
    of that. Where the `flyte` package is loaded in this process, it is an instance of that package's class, too.

    Source: flyte's remote errors: which of its classes and which code an exception becomes.
    """
    original = content.load(failure.pickled, find)
    if isinstance(original, errors.BaseRuntimeError) and type(original) not in _LOSE_THEIR_CLASS:
        error: BaseException = original  # ours survive pickling, unlike Flyte's
        vars(error).setdefault("code", failure.code or failure.name)
        vars(error).setdefault("kind", "user")
        vars(error).setdefault("worker", failure.worker)
        catchable(original)
    else:
        error = _as_flyte(failure, original)
    vars(error).update(_flyte_jupyter_failure=failure, remote_traceback=failure.text, __notes__=list(failure.notes))
    errors.with_notes(error, where)
    if original is None and failure.flyte_name is None and failure.module != "builtins" and not failure.steers:
        note = f"{failure.module}.{failure.name} could not be loaded here, so `except {failure.name}` misses it."
        if note not in failure.notes:
            errors.with_notes(error, note)
    last = error
    if (flytes := beside(error)) is not None:
        content.write(error, "__cause__", flytes)
        last = flytes
    if failure.cause is not None:
        content.write(last, "__cause__", rebuild(failure.cause, find))
    for each in (error, last):
        content.write(each, "__suppress_context__", True)
    return BaseException.with_traceback(error, remote_frames(error))


def of(error: BaseException) -> Failure | None:
    """What was told of an error that comes from a task; None of any other."""
    found: Failure | None = vars(error).get("_flyte_jupyter_failure")
    return found


def flyte_error(error: BaseException) -> errors.BaseRuntimeError | None:
    """The error as Flyte's: itself, or what stands beside it; None if it comes from no task."""
    found = error if isinstance(error, errors.BaseRuntimeError) else beside(error)
    return found if isinstance(found, errors.BaseRuntimeError) else None


def flyte_code(error: BaseException) -> str | None:
    """Flyte's code of it, also where its own class has another `code`; None if it comes from no task."""
    failure = of(error)
    if failure is not None:
        return _flyte_class(failure)[1]
    return error.code if isinstance(error, errors.BaseRuntimeError) else None


def remote_frames(error: BaseException) -> TracebackType | None:
    """The remote traceback of a rebuilt error, without the frames that raising it here has put in front."""
    failure = of(error)
    return None if failure is None else _make_traceback(failure.frames)


def catchable(error: errors.BaseRuntimeError) -> errors.BaseRuntimeError:
    """Make an error of ours one of the `flyte` package's, too, if that is loaded here. Returns `error`."""
    own = type(error)
    if "_flyte_jupyter_parts" not in vars(own) and _real_class(own) is not None:
        with suppress(TypeError):  # a user's subclass, laid out in another way
            content.write(error, "__class__", _class_for(own, None))
    return error


_LOSE_THEIR_CLASS: Final = (errors.NonRecoverableError, errors.CustomError)
"""Flyte's callers see a RuntimeUserError in place of these."""

_BY_NAME: Final[tuple[tuple[str, type[errors.BaseRuntimeError]], ...]] = (
    ("Interrupted", errors.TaskInterruptedError),
    ("PrimaryContainerNotFound", errors.PrimaryContainerNotFoundError),
    ("RetriesExhausted", errors.RetriesExhaustedError),
    ("Unknown", errors.RuntimeUnknownError),
    ("InvalidImageName", errors.InvalidImageNameError),
    ("ImagePullBackOff", errors.ImagePullBackOffError),
)
"""What the name of a user's exception class may contain, and what Flyte then takes it for."""


def _flyte_name(cls: type[BaseException]) -> str | None:
    """The Flyte class that `cls` is or derives from: ours, or the `flyte` package's own."""
    for base in cls.__mro__:
        if base.__module__ in (errors.__name__, _FLYTE_ERRORS):
            ours = getattr(errors, base.__name__, None)
            if isinstance(ours, type) and issubclass(ours, errors.BaseRuntimeError):
                return base.__name__
    return None


def _as_flyte(failure: Failure, original: BaseException | None) -> BaseException:
    """Both classes at once, or its own, or, if that is not known or would steer the caller's process, Flyte's alone."""
    base, code = _flyte_class(failure)
    kind = cast("errors.ErrorKind", failure.kind or _KINDS.get(base, "user"))
    worker = failure.worker or "user"
    # Flyte's own need no second class.
    alone = original is None or failure.steers or type(original).__module__ in (errors.__name__, _FLYTE_ERRORS)
    if isinstance(original, Exception) and not alone:
        own = type(original)
        made = _class_for(base, own)
        if own in made.__mro__ and not content.is_native(own):
            attributes = {name: value for name, value in vars(original).items() if name != "__notes__"}
            flytes_own = {"code": code, "kind": kind, "worker": worker}
            # An HTTPError's own code is a number, and its own.
            attributes |= {name: value for name, value in flytes_own.items() if not _has(original, name)}
            with suppress(Exception):
                return content.fill(made, original.args, content.outside_dict(original), attributes)
    message = _in_words(failure) if failure.steers else failure.message
    flytes = _class_for(base, None).from_fields(code, kind, message, worker)
    if isinstance(original, Exception) and not alone:
        put_beside(original, flytes)
        return original
    return flytes


def _has(error: BaseException, name: str) -> bool:
    try:
        return hasattr(error, name)
    except Exception:  # it is computed, and fails
        return True


def _in_words(failure: Failure) -> str:
    name = failure.name.rpartition(".")[2]
    said = f"{name}: {failure.message}" if failure.message else name
    return f"{sentence(said)} {_WHAT_IT_DID.get(name, 'The task raised it, and only the task ended.')}"


_WHAT_IT_DID: Final = {
    "SystemExit": "The task exited, as sys.exit() does; its replica goes on.",
    "KeyboardInterrupt": "The task raised it itself; nobody interrupted it.",
    "CancelledError": "Code in its replica raised it; nobody cancelled the call.",
}


def _flyte_class(failure: Failure) -> tuple[type[errors.BaseRuntimeError], str]:
    name = failure.name.rpartition(".")[2]
    if failure.flyte_name is not None:
        known = getattr(errors, failure.flyte_name)
        if issubclass(known, errors.NonRecoverableError):
            return errors.RuntimeUserError, "NonRecoverableError"
        if issubclass(known, errors.CustomError):
            known = errors.RuntimeUserError
        return known, failure.code or name
    if "OOM" in name.upper():
        return errors.OOMError, name
    return next((base for part, base in _BY_NAME if part in name), errors.RuntimeUserError), name


_KINDS: Final[dict[type, errors.ErrorKind]] = {
    errors.RuntimeSystemError: "system",
    errors.RuntimeUnknownError: "unknown",
}


# --- classes that are two classes, or three

_FLYTE_ERRORS: Final = "flyte.errors"

_classes: dict[tuple[type, type | None, type | None], type[errors.BaseRuntimeError]] = {}


def _real_class(base: type[errors.BaseRuntimeError]) -> type | None:
    """The class of the real `flyte` package that `base` stands for, if that package is loaded."""
    module = sys.modules.get(_FLYTE_ERRORS)
    if module is None:
        return None
    for cls in base.__mro__:
        real = getattr(module, cls.__name__, None) if cls.__module__ == errors.__name__ else None
        if isinstance(real, type) and issubclass(real, BaseException):
            return real
    return None


def _class_for(base: type[errors.BaseRuntimeError], own: type[Exception] | None) -> type[errors.BaseRuntimeError]:
    """A class that is all of it: `except ValueError` and `except RuntimeUserError` catch it.

    Only `base`, and what `flyte` calls it, if Python forbids the rest.
    """
    real = _real_class(base)
    key = (base, own, real)
    if key not in _classes:
        bases: list[type] = [base]
        if real is not None and not (own is not None and issubclass(own, real)):
            bases.append(real)
        if own is not None:
            bases.append(own)
        _classes[key] = _combine(base, own, bases)
    return _classes[key]


def _combine(
    base: type[errors.BaseRuntimeError], own: type[Exception] | None, bases: list[type]
) -> type[errors.BaseRuntimeError]:
    if len(bases) == 1:
        return base
    like = own or base
    body: dict[str, Any] = {
        "__module__": like.__module__,
        "__qualname__": like.__qualname__,
        "__doc__": like.__doc__,
        "__reduce__": _reduce,
        "_flyte_jupyter_parts": (base, own),
    }
    if own is not None:
        body["__str__"] = _message
        # `raise type(error)(text) from error`: another of that class, which knows nothing of this one.
        body["__new__"] = lambda cls, *args, **kwargs: own(*args, **kwargs)
        if own.__setattr__ is not BaseException.__setattr__:
            body["__setattr__"] = _write
    try:
        made: Any = type(like.__name__, tuple(bases), body)
        if like in made.__mro__:
            return made  # type: ignore[no-any-return]
    except Exception:  # memory layouts that do not fit together, a final class, a class that wants to be asked
        pass
    return base if own is None else _class_for(base, None)


def _message(self: Any) -> str:
    return str(self._flyte_jupyter_failure.message)


def _write(self: Any, name: str, value: object) -> None:
    """Let Python write what belongs to it, as a context manager does, also where the user's class refuses all."""
    python = name.startswith("__") and name.endswith("__")
    (BaseException if python else self._flyte_jupyter_parts[1]).__setattr__(self, name, value)


def _reduce(self: Any) -> tuple[Any, ...]:
    base, own = self._flyte_jupyter_parts
    attributes = dict(self.__dict__)
    if "__notes__" in attributes:
        attributes["__notes__"] = list(attributes["__notes__"])  # a copy must not grow with the original
    return _restore, (base, own, self.args, content.outside_dict(self), attributes)


def _restore(
    base: type[errors.BaseRuntimeError],
    own: type[Exception] | None,
    args: tuple[Any, ...],
    outside: dict[str, Any],
    attributes: dict[str, Any],
) -> BaseException:
    made = _class_for(base, own)
    return content.fill(made, args, outside, attributes)


# --- text and frames


def text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a broken __str__ must not hide the error
        return f"<{type(error).__name__} whose __str__ failed>"


def _notes(error: BaseException) -> list[str]:
    notes = vars(error).get("__notes__")
    return [str(note) for note in notes] if isinstance(notes, list | tuple) else []


def _user_traceback(tb: TracebackType | None, skip_file: str | tuple[str, ...]) -> TracebackType | None:
    start = tb
    while tb is not None:
        if tb.tb_frame.f_code.co_filename.startswith(skip_file):
            start = tb.tb_next
        tb = tb.tb_next
    return start


def _frames(tb: TracebackType | None) -> list[RemoteFrame]:
    frames = [
        (frame.f_code.co_filename, frame.f_code.co_name, frame.f_code.co_firstlineno, line)
        for frame, line in traceback.walk_tb(tb)
    ]
    if len(frames) > 2 * MAX_FRAMES:
        del frames[MAX_FRAMES:-MAX_FRAMES]
    return frames


def _sources(frames: list[RemoteFrame]) -> dict[str, str]:
    """The cells among the frames' files: nobody can read them elsewhere, nor after their kernel has ended."""
    found = {}
    for filename in {filename for filename, *_ in frames}:
        entry = linecache.cache.get(filename, ())
        if len(entry) == 4 and entry[1] is None:  # no time of change: not from a disk
            found[filename] = "".join(entry[2])
    return found


def _format(error: BaseException, tb: TracebackType | None) -> str:
    try:
        with without_flytes(error):
            return "".join(traceback.format_exception(type(error), error, tb, limit=-MAX_FRAMES))
    except Exception:
        return f"{type(error).__name__}: {text_of(error)}\n"


def _make_traceback(frames: list[RemoteFrame]) -> TracebackType | None:
    """Frames of another process, as a traceback that every tool shows with the user's own lines.

    tblib does this too, but its frames claim to begin at the line that raised, and IPython then marks another one.
    """
    made: TracebackType | None = None
    for filename, name, first_line, line in reversed(frames):
        code = _STAND_IN.replace(
            co_filename=filename,
            co_name=name,
            co_qualname=name,
            co_firstlineno=first_line,
            co_linetable=_all_on_line(line - first_line, len(_STAND_IN.co_code) // 2),
        )
        # Of a generator that was never started: any other frame keeps its caller's alive, with all that is in them.
        frame = FunctionType(code, {"__name__": name, "__file__": filename})().gi_frame
        made = TracebackType(made, frame, 0, line)
    return made


def _stand_in() -> Iterator[None]:
    yield


_STAND_IN: Final = _stand_in.__code__


def _all_on_line(offset: int, instructions: int) -> bytes:
    """A code object's location table: every instruction `offset` lines below the first, columns unknown.

    Without columns nothing underlines a part of the user's line. Source: CPython, `Objects/locations.md`.
    """
    no_columns, longest = 13, 8
    table = bytearray()
    while instructions > 0:
        length = min(longest, instructions)
        instructions -= length
        table.append(0x80 | no_columns << 3 | length - 1)
        number = offset << 1 if offset >= 0 else -offset << 1 | 1
        while number >= 0x40:
            table.append(number & 0x3F | 0x40)
            number >>= 6
        table.append(number)
        offset = 0  # each entry counts from the one before
    return bytes(table)
