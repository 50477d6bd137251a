"""A callable and the pool it runs in: what is sent for a call, over whose leases, and what comes back."""

from __future__ import annotations

import json
import linecache
import pickle
import re
import signal as signals
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from ..core import context, failure, payload
from ..core.call_events import Request
from ..core.commands import POOL_STOPPED
from ..core.definitions import Closure, Definition, Text, texts_of
from ..core.frames import CALL, OK, Buffer, Frame, Status, encode, join_small
from . import broker
from .calling import call_meta
from .capture import Captured
from .capture.places import is_ipython
from .channel import Channel
from .lease import Lease
from .leases import LeaseGroup
from .lending import BorrowingGroup
from .running import RunningPool

if TYPE_CHECKING:
    from ..core import protocol as p


class Target:
    """A callable and the pool it runs in: all that does not change from call to call.

    Args:
        request: What a call of it may do, and its name in errors.
        shown: What views call it, if that is something else.
    """

    priority = 0
    """Among the calls that wait in this process for a slot of the pool: a higher one goes first."""

    def __init__(self, function: Callable[..., Any], request: Request, pool: RunningPool, *, shown: str = "") -> None:
        self.request = request
        self.name = request.name
        self.shown = shown or request.name
        self.pool = pool
        self.limited = request.limited
        self.pace: float | None = None  # about how long a call takes, in seconds; None before the first one
        self._captured = captured_of(function)
        self._closure: Closure | None = None
        self._reference = b""
        self._extra: dict[tuple[int, frozenset[str]], Captured] = {}
        self._groups: dict[str | None, LeaseGroup] = {}

    # --- what is sent

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any], attempt: int) -> Outgoing:
        """The call as bytes. ArgumentNotSerializable if an argument cannot leave this process."""
        closure = self._captured.closure()
        if closure is not self._closure:
            self._closure = closure
            self._reference = json.dumps([[closure.digest], self.shown]).encode()
        try:
            meta = call_meta()
            sent = (args, kwargs) if meta is None else (args, kwargs, meta)
            pickled = payload.dump_arguments(sent)
        except errors.BaseRuntimeError:
            raise
        except Exception as problem:
            raise self._not_serializable(args, kwargs, problem) from None
        home = vars(sys.modules["__main__"])
        if not pickled.names:
            return Outgoing(self._reference, (closure,), pickled, attempt, home)
        # Classes of the notebook that only the arguments use.
        captured = self._extra.get((id(home), pickled.names))
        if captured is None:
            captured = self._extra[id(home), pickled.names] = Captured.of_names(pickled.names, home)
        extra = captured.closure()
        reference = json.dumps([[extra.digest, closure.digest], self.shown]).encode()
        return Outgoing(reference, (extra, closure), pickled, attempt, home)

    def _not_serializable(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], problem: Exception
    ) -> errors.ArgumentNotSerializable:
        named = {**{f"argument {index + 1}": value for index, value in enumerate(args)}, **kwargs}
        for name, value in named.items():
            try:
                payload.dump_arguments(value)
            except Exception as inner:
                path, part = payload.find_unpicklable(value, name)
                return errors.ArgumentNotSerializable.for_value(
                    path=path, type_name=type(part).__qualname__, problem=f"{type(inner).__name__}: {inner}"
                )
        return errors.ArgumentNotSerializable.for_value(path="?", type_name="?", problem=str(problem))

    # --- leases

    def group(self) -> LeaseGroup:
        """The leases that this caller holds in the pool; connects, and starts the broker, if need be."""
        task = context.current.get()
        parent = context.stalls.get() if task is None else task.lease
        group = self._groups.get(parent)
        if group is None or group.connection.closed or not self.pool.is_known_to(group.connection):
            connection = self.pool.connection()
            if group is None or group.connection is not connection:
                run = "local" if task is None else task.action.run_name
                group = _group(connection, self.pool, parent, run)
                if len(self._groups) > 100:  # of tasks that are over
                    self._groups.clear()
                self._groups[parent] = group
        return group

    # --- errors

    def lost(self, lease: Lease, why: p.Lost | errors.BaseRuntimeError | None, attempt: int) -> errors.BaseRuntimeError:
        """The error of a call whose replica is gone."""
        if isinstance(why, errors.BaseRuntimeError):
            return why
        if why is None:
            return errors.ReplicaDied(self.name, lease.name, attempt=attempt)
        if why.cause == POOL_STOPPED:
            return errors.PoolStopped(self.pool.name)
        if why.out_of_memory:
            error = errors.OOMError("OOMKilled", f"Replica {lease.name} ran {why.cause} while running {self.name}.")
            error.add_note("A replacement is loading. The task was not repeated.")
            error.add_note('Give the environment more memory, or call task.override(reusable="off", resources=...).')
            return error
        number = None if why.signal is None else int(getattr(signals, why.signal, 0)) or None
        hint = None
        if why.signal == "SIGKILL" or why.exit_code == 137:
            ours = why.cause not in {"signal SIGKILL", "exit code 137"}  # the broker killed it, and says why
            hint = why.cause if ours else "possibly the system's out-of-memory killer"
        return errors.ReplicaDied(
            self.name,
            lease.name,
            signal=number,
            exit_code=why.exit_code,
            attempt=attempt,
            log_tail=why.log_tail,
            hint=hint or (None if number is None else why.signal),
        )

    def result(self, frame: Frame, lease: Lease) -> Any:
        """The value of an outcome, or its exception."""
        if frame.flags == OK:
            # A big pickle is in a memory file, too: then the body is empty, and it is the first buffer.
            data, *buffers = (frame.body, *frame.buffers) if frame.body else frame.buffers
            try:
                return payload.load(data, buffers)
            except Exception as problem:
                raise _result_unknown_here(problem) from problem
        if frame.flags == Status.CANCELLED:
            raise errors.TaskCancelled(self.name, replica=lease.name)
        described: failure.Failure = pickle.loads(frame.body)
        if self._closure is not None:
            locate(described, self._closure.definitions)
        error = failure.rebuild(described, payload.plain_find, where=f"{self.name} raised this on {lease.name}.")
        self._explain_name(error, described)
        raise ran_on(error, lease)

    def _explain_name(self, error: BaseException, described: failure.Failure) -> None:
        """Say why a name that is here was not there, if the code misses it in a way that the capture cannot see."""
        name = missing_name(error, described)
        names = self._captured.namespace
        if name is None or name not in names or is_ipython(name, names[name]) or _mentioned(name, error, described):
            return
        sent = self._closure is not None and name in self._closure.manifest
        code = errors.NameNotOnReplica.fj_code
        if not sent and not any(note.startswith(code) for note in vars(error)["__notes__"]):
            errors.with_notes(
                error,
                f'{code} "{name}" exists in your notebook, but the task does not mention it by name (eval, globals()).',
                "Pass it as an argument, or mention it in the task.",
            )


def ran_on(error: BaseException, lease: Lease) -> BaseException:
    """The error, which knows its replica from now on."""
    vars(error)["_flyte_jupyter_replica"] = lease.name
    return error


def stalled_cell() -> str | None:
    """The lease of the cell that makes its replica stand still if the thread that asks waits now."""
    lease = context.cell.get()
    return lease if lease and threading.current_thread() is threading.main_thread() else None


class Outgoing:
    """A call, ready to be sent on any lease."""

    __slots__ = ("_attempt", "_pieces", "_reference", "closures", "names", "nbytes")

    def __init__(
        self,
        reference: bytes,
        closures: Sequence[Closure],
        pickled: payload.Pickled,
        attempt: int,
        names: dict[str, Any],
    ) -> None:
        self._reference = reference
        self.closures = closures
        self.names = names  # of the notebook that calls
        self._pieces: list[Buffer] = [pickled.data, *pickled.buffers]
        self.nbytes = len(pickled.data)
        if pickled.buffers:
            self.nbytes += sum(memoryview(buffer).nbytes for buffer in pickled.buffers)
        self._attempt = attempt

    def on(self, channel: Channel) -> tuple[int, list[Buffer]]:
        channel.calls += 1
        pieces = self._pieces if channel.files is None else channel.files.lend(self._pieces)
        call = encode(CALL, channel.calls, self._reference, pieces, flags=self._attempt)
        moved = channel.moved()
        return channel.calls, join_small([*moved, *call]) if moved else call


_captured: Final[weakref.WeakValueDictionary[int, Captured]] = weakref.WeakValueDictionary()


def captured_of(function: Callable[..., Any]) -> Captured:
    """One for each function: a task and its overrides are the same function on a replica."""
    found = _captured.get(id(function))
    if found is None or found.function is not function:
        found = Captured(function)
        _captured[id(function)] = found
    return found


def locate(described: failure.Failure, definitions: Sequence[Definition]) -> None:
    """Let the frames of an error point to where the code stands here.

    A replica keeps what has not changed under the name that its cell had then, which ends with the kernel of that
    cell. Where the code is found nowhere here, its lines are shown under the old name.
    """
    gone = {name: text.split("\n") for name, text in described.sources.items() if not linecache.getlines(name)}
    sources = [text for each in definitions for text in texts_of(each)]
    for index, (filename, function, first, line) in enumerate(described.frames):
        if filename in gone:
            moved = _moved(gone[filename], line, sources)
            if moved is None:
                text = described.sources[filename]
                linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
            else:
                here, by = moved
                described.frames[index] = (here, function, first + by, line + by)
    if described.cause is not None:
        locate(described.cause, definitions)


def missing_name(error: BaseException, described: failure.Failure) -> str | None:
    """The global of a notebook that an error misses: by its name, in `globals()`, or as an attribute of `__main__`."""
    for cls, pattern in _MISSES:
        found = pattern.match(described.message) if isinstance(error, cls) else None
        if found is None or found.groupdict().get("module", "__main__") != "__main__":
            continue
        if cls is not KeyError or any(map(_NAMES_AS_DICT.search, _lines(described))):
            return found["name"]
    return None


_MISSES: Final[tuple[tuple[type[Exception], re.Pattern[str]], ...]] = (
    # The second is what pandas says of `@name` in a query.
    (NameError, re.compile(r"(?:name|local variable) '(?P<name>\w+)' is not defined")),
    (AttributeError, re.compile(r"module '(?P<module>[\w.]+)' has no attribute '(?P<name>\w+)'")),
    (AttributeError, re.compile(r"Can't get attribute '(?P<name>\w+)' on <module '(?P<module>[\w.]+)'")),
    (ImportError, re.compile(r"cannot import name '(?P<name>\w+)' from '(?P<module>[\w.]+)'")),
    (KeyError, re.compile(r"'(?P<name>\w+)'$")),
)
_NAMES_AS_DICT: Final = re.compile(r"\b(?:globals|locals|vars)\(\)|\b__main__\b|\buser_ns\b")


def _lines(described: failure.Failure) -> Iterator[str]:
    """Each line that called or raised; and of the innermost function that has lines, those before it, too."""
    innermost = True
    for filename, _, first, line in reversed(described.frames):
        there = linecache.getlines(filename)[:line]
        yield from there[first - 1 :] if innermost else there[-1:]
        innermost = innermost and not there


def _mentioned(name: str, error: BaseException, described: failure.Failure) -> bool:
    """Whether the code that ran has the name itself: then the name came later, or is missing elsewhere, too."""
    if not isinstance(error, NameError) or not described.frames:
        return False
    filename, _, _, line = described.frames[-1]
    return re.search(rf"\b{name}\b", linecache.getline(filename, line)) is not None


def _moved(there: list[str], line: int, sources: list[Text]) -> tuple[str, int] | None:
    """The file here of the definition that has this line of that file, and how many lines further down it stands."""
    for source in sources:
        lines = source.lines.removesuffix("\n").split("\n")
        for start in range(max(0, line - len(lines)), line):
            if there[start : start + len(lines)] == lines:
                return source.filename, source.first_line - 1 - start
    return None


_groups: dict[tuple[str, str | None], LeaseGroup] = {}
_groups_lock = threading.Lock()


def _group(connection: broker.Connection, pool: RunningPool, parent: str | None, run: str) -> LeaseGroup:
    """One group for all tasks of a pool, so that they share its idle leases."""
    with _groups_lock:
        group = _groups.get((pool.key, parent))
        if group is None or group.connection is not connection:
            for key in [key for key, old in _groups.items() if old.connection.closed or (key[1] and old.unused())]:
                del _groups[key]
            group = BorrowingGroup(connection, pool.key, parent, run, lambda: pool.scaling.slots)
            _groups[pool.key, parent] = group
        return group


def _result_unknown_here(problem: Exception) -> Exception:
    name = getattr(problem, "name", None)
    if isinstance(problem, AttributeError) and name:
        return errors.ResultNotSerializable(str(name), cause=str(problem))
    if isinstance(problem, AttributeError | ImportError):
        return errors.ResultNotSerializable("?", cause=str(problem))
    return problem
