"""A call's arguments and its outcome as bytes and out-of-band buffers, and an exception as fields.

Both sides use plain pickle protocol 5 where it will do, which is a microsecond, and cloudpickle where it will not. Names
of a notebook (`__main__` at the client) live in a module of their own on a replica: `find` translates.
"""

from __future__ import annotations

import io
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType, TracebackType
from typing import Any, Final

from .. import errors
from .frames import LIMIT_BUFFERS, Buffer

OUT_OF_BAND_BYTES: Final = 64 * 1024
"""A buffer of at least this many bytes travels beside the pickle; below it a copy is cheaper than another piece."""
MAX_FRAMES: Final = 100  # of a traceback that travel: a runaway recursion has thousands, all alike
MAX_CAUSES: Final = 5

Find = Callable[[str, str], Any]
"""`find_class` of an unpickler: module, name -> object."""


@dataclass(slots=True)
class Pickled:
    data: bytes
    buffers: list[Buffer]
    names: frozenset[str] = frozenset()
    """Notebook names inside that the other side must know before it can load this."""


def dump_arguments(arguments: object, home: str) -> Pickled:
    """What a client sends. Classes and functions of the notebook go by name, and are listed in `names`.

    Args:
        home: The module that holds the notebook's names here: `__main__`, or a replica's own module for it.

    Raises:
        Exception: Whatever the pickling of an object raises; the caller knows which argument it was.
    """
    keep = _BufferSink()
    try:
        data = pickle.dumps(arguments, 5, buffer_callback=keep)
    except Exception:  # a lambda, a local class, a thing that only cloudpickle knows
        pass
    else:
        if home.encode() not in data:
            return Pickled(data, keep.views)
    keep = _BufferSink()
    file = io.BytesIO()
    pickler = _notebook_pickler()(file, home, protocol=5, buffer_callback=keep)
    pickler.dump(arguments)
    return Pickled(file.getvalue(), keep.views, frozenset(pickler.names))


def dump_result(value: object) -> Pickled:
    """What a replica sends back."""
    keep = _BufferSink()
    try:
        return Pickled(pickle.dumps(value, 5, buffer_callback=keep), keep.views)
    except Exception:
        import cloudpickle

        keep = _BufferSink()
        return Pickled(cloudpickle.dumps(value, 5, buffer_callback=keep), keep.views)


def load(data: Buffer, buffers: Sequence[Buffer], find: Find, marker: bytes) -> Any:
    """The object again. `find` is asked only when `marker` occurs, as it is slow."""
    if marker not in data:
        return pickle.loads(data, buffers=buffers)
    return _Finder(io.BytesIO(data), buffers=buffers, find=find).load()


class _BufferSink:
    """A pickler's `buffer_callback`: keeps large buffers out of the pickle. A true return value means in band."""

    __slots__ = ("views",)

    def __init__(self) -> None:
        self.views: list[Buffer] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if view.nbytes < OUT_OF_BAND_BYTES or len(self.views) >= LIMIT_BUFFERS - 1:
            return True
        self.views.append(view)
        return False


class _Finder(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, *, buffers: Sequence[Buffer], find: Find) -> None:
        super().__init__(file, buffers=buffers)
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        return self._find(module, name)


def _notebook_pickler() -> Any:
    """cloudpickle's pickler, except that what a notebook defined goes by name. Made on first use: the import is slow."""
    global _pickler_class  # noqa: PLW0603
    if _pickler_class is None:
        import cloudpickle

        class NotebookPickler(cloudpickle.Pickler):  # type: ignore[misc]
            def __init__(self, file: io.BytesIO, home: str, **kwargs: Any) -> None:
                super().__init__(file, **kwargs)
                self.names: set[str] = set()
                self._home = home
                self._names = vars(sys.modules[home])

            def reducer_override(self, obj: Any) -> Any:
                if isinstance(obj, FunctionType | type) and obj.__module__ == self._home:
                    name = obj.__qualname__
                    if self._names.get(name) is obj:
                        self.names.add(name)
                        return NotImplemented  # the default: by reference
                return super().reducer_override(obj)

        _pickler_class = NotebookPickler
    return _pickler_class


_pickler_class: Any = None


def find_unpicklable(value: object, path: str) -> tuple[str, object]:
    """The innermost part of `value` that cannot be pickled, and where it is: `result["a"][0]`."""
    for step, part in _parts(value):
        try:
            dump_result(part)
        except Exception:
            return find_unpicklable(part, path + step)
    return path, value


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in list(value.items())[:1000])
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", part) for index, part in enumerate(value[:1000]))
    elif isinstance(getattr(value, "__dict__", None), dict) and not isinstance(value, type | FunctionType):
        yield from ((f".{name}", part) for name, part in list(vars(value).items())[:1000])


# --- exceptions


@dataclass(slots=True)
class Failure:
    """An exception as fields: what is text always arrives, and what is pickled is loaded apart.

    Flyte's own errors do not survive pickling, and a class may exist on one side only.
    """

    module: str
    name: str
    message: str
    text: str  # the formatted traceback, causes included
    frames: list[tuple[str, str, int]]  # file, function, line; outermost first
    pickled: bytes | None = None
    code: str | None = None  # of an error that is one of Flyte's already
    kind: str | None = None
    worker: str | None = None
    flyte_name: str | None = None
    notes: list[str] = field(default_factory=list)
    cause: Failure | None = None
    suppress_context: bool = False


def describe(error: BaseException, *, skip_file: str = "", depth: int = 0) -> Failure:
    """Make `error` ready to travel. Frames up to the last one in `skip_file` (the runner's) are left out."""
    tb = _user_traceback(error.__traceback__, skip_file)
    known: Failure | None = getattr(error, "_flyte_jupyter_failure", None)
    frames = [(frame.filename, frame.name, frame.lineno or 0) for frame in _summary(tb)]
    text = _format(error, tb)
    notes = list(getattr(error, "__notes__", ()))
    if known is not None:  # a child task's error on its way through its parent
        return Failure(
            known.module, known.name, known.message, text, frames, known.pickled, known.code, known.kind,
            known.worker, known.flyte_name, notes, known.cause, known.suppress_context,
        )  # fmt: skip
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    failure = Failure(
        module=type(error).__module__,
        name=type(error).__qualname__,
        message=_text(error),
        text=text,
        frames=frames,
        notes=notes,
        pickled=_pickle_exception(error),
        suppress_context=error.__suppress_context__ and error.__cause__ is None,
        cause=describe(cause, skip_file=skip_file, depth=depth + 1) if cause and depth < MAX_CAUSES else None,
    )
    if all(hasattr(error, name) for name in ("code", "kind", "worker")):
        failure.code, failure.kind, failure.worker = (str(getattr(error, name)) for name in ("code", "kind", "worker"))
        failure.flyte_name = next((c.__name__ for c in type(error).__mro__ if c.__name__ in vars(errors)), None)
    return failure


def rebuild(failure: Failure, find: Find, *, where: str = "") -> BaseException:
    """The exception to raise at the caller: Flyte's class and its own class at once, with the remote traceback.

    Source: R35 to R38 of Flyte's semantics: which Flyte class and which code an exception becomes.
    """
    original = _load_exception(failure, find)
    if isinstance(original, errors.BaseRuntimeError) and getattr(original, "fj_code", None):
        error: BaseException = original  # our own, which do survive pickling
    else:
        error = _as_flyte(failure, original)
    error.__notes__ = list(failure.notes)
    if where:
        error.add_note(where)
    if original is None and failure.flyte_name is None and failure.module != "builtins":
        error.add_note(
            f"{failure.module}.{failure.name} could not be loaded here, so `except {failure.name}` misses it."
        )
    error._flyte_jupyter_failure = failure  # type: ignore[attr-defined]
    error.remote_traceback = failure.text  # type: ignore[attr-defined]
    if failure.cause is not None:
        cause = rebuild(failure.cause, find)
        error.__cause__ = cause
    error.__suppress_context__ = True
    error.remote_frames = _make_traceback(failure.frames)  # type: ignore[attr-defined]
    return error.with_traceback(error.remote_frames)  # type: ignore[attr-defined]


def _as_flyte(failure: Failure, original: BaseException | None) -> errors.BaseRuntimeError:
    base, code = _flyte_class(failure)
    message = failure.message
    if (
        isinstance(original, Exception)
        and not isinstance(original, StopIteration | StopAsyncIteration | errors.BaseRuntimeError)
        # those two change meaning inside a generator or coroutine; Flyte's own need no second class
    ):
        dual = _dual_class(base, type(original))
        if dual is not None:
            return _instance(dual, original, code, message, failure)
    kind = failure.kind if failure.kind in ("user", "system", "unknown") else None
    return base.from_fields(code, kind or _KINDS.get(base, "user"), message, failure.worker or "user")


def _flyte_class(failure: Failure) -> tuple[type[errors.BaseRuntimeError], str]:
    if failure.flyte_name is not None and failure.code is not None:
        known = getattr(errors, failure.flyte_name)
        if issubclass(known, errors.NonRecoverableError):
            return errors.RuntimeUserError, "NonRecoverableError"
        if issubclass(known, errors.CustomError):
            return errors.RuntimeUserError, failure.code
        return known, failure.code
    name = failure.name.rpartition(".")[2]
    for part, base in (
        ("OOM", errors.OOMError),
        ("Interrupted", errors.TaskInterruptedError),
        ("Unknown", errors.RuntimeUnknownError),
    ):
        if part in (name.upper() if part == "OOM" else name):
            return base, name
    return errors.RuntimeUserError, name


_KINDS: Final[dict[type, errors.ErrorKind]] = {
    errors.RuntimeSystemError: "system",
    errors.RuntimeUnknownError: "unknown",
}

_dual_classes: dict[tuple[type, type], type[errors.BaseRuntimeError] | None] = {}


def _dual_class(base: type[errors.BaseRuntimeError], own: type[Exception]) -> type[errors.BaseRuntimeError] | None:
    """A class that is both: `except ValueError` and `except RuntimeUserError` catch it. None if Python forbids it."""
    key = (base, own)
    if key not in _dual_classes:
        body = {
            "__module__": own.__module__,
            "__qualname__": own.__qualname__,
            "__doc__": own.__doc__,
            "__str__": lambda self: self._flyte_jupyter_failure.message,
            "__reduce__": lambda self: (_rebuild_here, (self._flyte_jupyter_failure,)),
        }
        try:
            made: Any = type(own.__name__, (base, own), body)
        except TypeError:  # two memory layouts that do not fit together, or a final class
            made = None
        _dual_classes[key] = made
    return _dual_classes[key]


def _instance(dual: Any, original: Exception, code: str, message: str, failure: Failure) -> errors.BaseRuntimeError:
    # Neither constructor is called with its own arguments: an exception may take any. What the builtin part keeps outside
    # __dict__ (errno, start, lineno ...) is set by the builtin's initialiser.
    builtin: Any = next(c for c in type(original).__mro__ if c.__module__ == "builtins")
    error: Any = builtin.__new__(dual)
    try:
        builtin.__init__(error, *original.args)
    except Exception:
        error = builtin.__new__(dual)
    error.args = original.args
    error.__dict__.update(original.__dict__)
    error.__dict__.pop("__notes__", None)
    flyte = errors.RuntimeUserError(code, message, failure.worker or "user")
    for name, value in vars(flyte).items():
        if name in ("code", "kind", "worker") and not (name == "code" and "code" in original.__dict__):
            error.__dict__[name] = value
    return error  # type: ignore[no-any-return]


def _rebuild_here(failure: Failure) -> BaseException:
    return rebuild(failure, plain_find)


def plain_find(module: str, name: str) -> Any:
    return pickle.Unpickler(io.BytesIO()).find_class(module, name)


def _pickle_exception(error: BaseException) -> bytes | None:
    try:
        data = pickle.dumps(error, 5)
        pickle.loads(data)  # a constructor with two arguments pickles well and does not load
    except Exception:
        try:
            import cloudpickle

            # The class, the arguments and the attributes apart: no constructor is called by loading them.
            data = cloudpickle.dumps((type(error), error.args, dict(error.__dict__)), 5)
            pickle.loads(data)
        except Exception:
            return None
    return data


def _load_exception(failure: Failure, find: Find) -> BaseException | None:
    if failure.pickled is None:
        return None
    try:
        loaded = _Finder(io.BytesIO(failure.pickled), buffers=(), find=find).load()
        if isinstance(loaded, tuple):
            own, args, attributes = loaded
            loaded = own.__new__(own)
            loaded.args = args
            loaded.__dict__.update(attributes)
    except Exception:
        return None
    return loaded if isinstance(loaded, BaseException) else None


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a broken __str__ must not hide the error
        return f"<{type(error).__name__} whose __str__ failed>"


def _user_traceback(tb: TracebackType | None, skip_file: str) -> TracebackType | None:
    start = tb
    while tb is not None:
        if tb.tb_frame.f_code.co_filename == skip_file:
            start = tb.tb_next
        tb = tb.tb_next
    return start


def _summary(tb: TracebackType | None) -> list[traceback.FrameSummary]:
    frames = [
        traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name, lookup_line=False)
        for frame, line in traceback.walk_tb(tb)
    ]
    if len(frames) > 2 * MAX_FRAMES:
        del frames[MAX_FRAMES:-MAX_FRAMES]
    return frames


def _format(error: BaseException, tb: TracebackType | None) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, tb, limit=-MAX_FRAMES))
    except Exception:
        return f"{type(error).__name__}: {_text(error)}\n"


def _make_traceback(frames: list[tuple[str, str, int]]) -> TracebackType | None:
    import tblib

    made: dict[str, Any] | None = None
    for filename, name, line in reversed(frames):
        made = {
            "tb_frame": {
                "f_globals": {"__name__": name, "__file__": filename},
                "f_locals": {},
                "f_code": {"co_filename": filename, "co_name": name},
                "f_lineno": line,
            },
            "tb_lineno": line,
            "tb_next": made,
        }
    return None if made is None else tblib.Traceback.from_dict(made).as_traceback()  # type: ignore[no-any-return]
