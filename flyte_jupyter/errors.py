"""Every exception a user can meet. Imports nothing of ours, so that every process may raise them.

First Flyte's own names, with Flyte's constructors, so that `except errors.OOMError` means the same here
and on a cluster; then ours, one per thing a caller can do about it. One of ours says what happened in its
text, and why and what to do in its notes. Flyte's error objects do not survive pickling; these do.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, NoReturn, Self, TypeVar, cast

__all__ = [
    "ActionAbortedError",
    "ArgumentNotSerializable",
    "BaseRuntimeError",
    "BrokerGone",
    "BrokerUnavailable",
    "CustomError",
    "DeadlineExceededError",
    "GPUFaultError",
    "GPUFaultSystemError",
    "GPUFaultUserError",
    "ImagePullBackOffError",
    "InitializationError",
    "InlineIOMaxBytesBreached",
    "InvalidImageNameError",
    "MaxQueuedTimeExceededError",
    "MaxRuntimeExceededError",
    "NameNotOnReplica",
    "NoRoom",
    "NoSuchPool",
    "NoSuchReplica",
    "NoUsableGPU",
    "NonRecoverableError",
    "NotInTaskContextError",
    "OOMError",
    "PoolError",
    "PoolFailed",
    "PoolStopped",
    "PrimaryContainerNotFoundError",
    "ProtocolError",
    "ReplicaDied",
    "ReplicaSilent",
    "ResultNotSerializable",
    "RetriesExhaustedError",
    "RuntimeDataValidationError",
    "RuntimeSystemError",
    "RuntimeUnknownError",
    "RuntimeUserError",
    "StarvationError",
    "SyncTaskCallInAsyncContextError",
    "TaskCancelled",
    "TaskInterruptedError",
    "TaskTimeoutError",
    "TraceDoesNotAllowNestedTasksError",
    "VersionMismatch",
    "lines_shown",
    "users_frames",
    "whole_text",
    "with_notes",
]

ErrorKind = Literal["system", "unknown", "user"]
E = TypeVar("E", bound=BaseException)


def with_notes(error: E, *notes: str | None) -> E:
    """Return `error` with each note that says something: `raise with_notes(ValueError(what), why, do)`."""
    for note in notes:
        if note:
            error.add_note(note)
    return error


def whole_text(error: BaseException) -> str:
    """What happened, why, and what to do, in one line of text."""
    return " ".join((str(error), *getattr(error, "__notes__", ())))


def users_frames(tb: TracebackType | None) -> TracebackType | None:
    """A traceback without our frames, and without those of Python's library that ours have called.

    It is a copy: a debugger that is started later still finds all of them.
    """
    kept = []
    ours = False
    while tb is not None:
        path = tb.tb_frame.f_code.co_filename
        ours = path.startswith(_PACKAGE) or (ours and path.startswith(_LIBRARY) and "site-packages" not in path)
        if not ours:
            kept.append(tb)
        tb = tb.tb_next
    shown = None
    for each in reversed(kept):
        shown = TracebackType(shown, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return shown


_PACKAGE: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARY: Final = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


def lines_shown(error: BaseException) -> list[str]:
    """What IPython shows of an error that says all there is to say: the lines of the user's code, and none of ours."""
    import IPython

    shell: Any = IPython.get_ipython()
    tb = users_frames(error.__traceback__)
    around = os.path.dirname(IPython.__file__) + os.sep
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(around):
        tb = tb.tb_next
    lines: list[str] = (
        shell.InteractiveTB.get_exception_only(type(error), error)
        if tb is None
        else shell.InteractiveTB.structured_traceback(type(error), error, tb, tb_offset=0)
    )
    return lines


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    # Not cls(*args): a constructor that takes facts cannot be called with the finished message.
    error = cls.__new__(cls, *args)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


class BaseRuntimeError(RuntimeError):
    """What every error here derives from.

    Args:
        code: Names the error for programs; a task's `KeyError` has the code `"KeyError"`.
        kind: Whose fault it is: `"user"`, `"system"` or `"unknown"`.
        root_cause_message: The text for people.
        worker: What it happened on, where that is known.

    Source: flyte.errors.BaseRuntimeError.
    """

    code: str
    kind: ErrorKind
    worker: str | None

    def __init__(self, code: str, kind: ErrorKind, root_cause_message: str, worker: str | None = None) -> None:
        super().__init__(root_cause_message)
        self.code = code
        self.kind = kind
        self.worker = worker

    @classmethod
    def from_fields(cls, code: str, kind: ErrorKind, message: str, worker: str | None = None) -> Self:
        """Return an error of this class from what was sent of it; constructors differ, so none is called."""
        state = {"code": code, "kind": kind, "worker": worker}
        return cast("Self", _rebuild(cls, (message,), state))

    def __reduce__(self) -> tuple[Any, ...]:
        state = dict(self.__dict__)
        if "__notes__" in state:
            # A copy must not grow when somebody adds a note to the original.
            state["__notes__"] = list(state["__notes__"])
        return _rebuild, (type(self), self.args, state)

    def _render_traceback_(self) -> list[str]:
        """IPython asks for it. Hiding our frames is not enough: it shows the last one even so."""
        return lines_shown(self)

    # `gather(..., return_exceptions=True)` leaves errors among the results; as in Flyte, a sum raises them.
    def __add__(self, other: object) -> NoReturn:
        raise self

    def __radd__(self, other: object) -> NoReturn:
        raise self


class RuntimeUserError(BaseRuntimeError):
    """The user's code failed: `code` is the class name of what it raised.

    Source: flyte.errors.RuntimeUserError.
    """

    def __init__(self, code: str, message: str, worker: str | None = None) -> None:
        super().__init__(code, "user", message, worker)


class RuntimeSystemError(BaseRuntimeError):
    """What runs the user's code failed. Source: flyte.errors.RuntimeSystemError."""

    def __init__(self, code: str, message: str, worker: str | None = None) -> None:
        super().__init__(code, "system", message, worker)


class RuntimeUnknownError(BaseRuntimeError):
    """It cannot be said who failed. Source: flyte.errors.RuntimeUnknownError."""

    def __init__(self, code: str, message: str, worker: str | None = None) -> None:
        super().__init__(code, "unknown", message, worker)


class InitializationError(BaseRuntimeError):
    """Something was used before it was set up. Source: flyte.errors.InitializationError."""


class OOMError(RuntimeUserError):
    """The task used more memory than its replica may have. Source: flyte.errors.OOMError."""


class TaskInterruptedError(RuntimeUserError):
    """The task was interrupted from outside. Source: flyte.errors.TaskInterruptedError."""


class PrimaryContainerNotFoundError(RuntimeUserError):
    """Of the cluster only; here so that code which catches it runs. Source: flyte.errors, same name."""


class RetriesExhaustedError(RuntimeUserError):
    """Of the cluster only: here the last attempt's own error is raised. Source: flyte.errors, same name."""


class InvalidImageNameError(RuntimeUserError):
    """Of the cluster only; here so that code which catches it runs. Source: flyte.errors, same name."""


class ImagePullBackOffError(RuntimeUserError):
    """Of the cluster only; here so that code which catches it runs. Source: flyte.errors, same name."""


class NotInTaskContextError(RuntimeUserError):
    """Something that needs a running task was used outside one. Source: flyte.errors, same name."""


class NonRecoverableError(RuntimeUserError):
    """Raise it in a task to say that another attempt is pointless: its `retries` are not used.

    Source: flyte.errors.NonRecoverableError.
    """

    def __init__(self, message: str, code: str = "NonRecoverableError") -> None:
        super().__init__(code, message)


class CustomError(RuntimeUserError):
    """Raise it in a task to choose the `code` that the caller sees. Source: flyte.errors.CustomError."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message, worker="user")

    @classmethod
    def from_exception(cls, e: Exception) -> CustomError:
        """Return `e` as a CustomError: its class name is the code, and `e` the cause."""
        error = cls(type(e).__name__, str(e))
        error.__cause__ = e
        return error


class TaskTimeoutError(RuntimeUserError):
    """A task, or its wait for a slot, took longer than its `timeout` allows.

    Source: flyte.errors.TaskTimeoutError.
    """

    def __init__(self, message: str, code: str = "TaskTimeoutError") -> None:
        super().__init__(code, message, worker="user")


class MaxRuntimeExceededError(TaskTimeoutError):
    """One attempt ran longer than `Timeout.max_runtime`. Source: flyte.errors, same name."""

    fj_code: ClassVar[str] = "FJ503"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="MaxRuntimeExceededError")


class MaxQueuedTimeExceededError(TaskTimeoutError):
    """One attempt waited longer than `Timeout.max_queued_time`. Source: flyte.errors, same name."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="MaxQueuedTimeExceededError")


class DeadlineExceededError(TaskTimeoutError):
    """All attempts together took longer than `Timeout.deadline`. Source: flyte.errors, same name."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="DeadlineExceededError")


class ActionAbortedError(RuntimeUserError):
    """A task was ended from outside. Source: flyte.errors.ActionAbortedError."""

    def __init__(self, message: str) -> None:
        super().__init__("ActionAbortedError", message, worker="user")


class SyncTaskCallInAsyncContextError(RuntimeUserError):
    """An async task called a sync task without `.aio`, which would block every sibling on its replica.

    Source: flyte.errors.SyncTaskCallInAsyncContextError.
    """

    def __init__(self, message: str) -> None:
        super().__init__("SyncTaskCallInAsyncContextError", message, worker="user")


class RuntimeDataValidationError(RuntimeUserError):
    """A value is not of the type that the task's annotation promises.

    Source: flyte.errors.RuntimeDataValidationError.
    """

    def __init__(self, var: str, e: Exception | str, task_name: str = "") -> None:
        super().__init__(
            "DataValidationError",
            f"In task {task_name} variable {var}, failed to serialize/deserialize because of {e}",
        )


class InlineIOMaxBytesBreached(RuntimeUserError):
    """Arguments or results are larger than `max_inline_io_bytes`. Source: flyte.errors, same name."""

    def __init__(self, message: str) -> None:
        super().__init__("InlineIOMaxBytesBreached", message, worker="user")


class TraceDoesNotAllowNestedTasksError(RuntimeUserError):
    """A task was called inside a `flyte.trace`. Source: flyte.errors, same name."""

    def __init__(self, message: str) -> None:
        super().__init__("TraceDoesNotAllowNestedTasksError", message)


class GPUFaultError(BaseRuntimeError):
    """The GPU itself reported a fault; the keyword arguments are what it said.

    Source: flyte.errors.GPUFaultError.
    """

    def __init__(
        self,
        code: str,
        kind: ErrorKind,
        message: str,
        worker: str | None = None,
        *,
        fault_kind: str | None = None,
        fault_code: int | None = None,
        fault_name: str | None = None,
        severity: str | None = None,
        gpu_uuid: str | None = None,
        gpu_index: int | None = None,
        node: str | None = None,
        pci_bus_id: str | None = None,
        process: str | None = None,
    ) -> None:
        BaseRuntimeError.__init__(self, code, kind, message, worker)
        self.fault_kind = fault_kind
        self.fault_code = fault_code
        self.fault_name = fault_name
        self.severity = severity
        self.gpu_uuid = gpu_uuid
        self.gpu_index = gpu_index
        self.node = node
        self.pci_bus_id = pci_bus_id
        self.process = process

    @property
    def xid(self) -> int | None:
        """The driver's Xid number, if that is the kind of fault it is."""
        return self.fault_code if self.fault_kind == "xid" else None

    @property
    def sxid(self) -> int | None:
        """The switch's SXid number, if that is the kind of fault it is."""
        return self.fault_code if self.fault_kind == "sxid" else None


class GPUFaultSystemError(GPUFaultError, RuntimeSystemError):
    """A GPU fault that the user's code did not cause. Source: flyte.errors, same name."""

    def __init__(self, code: str, message: str, worker: str | None = None, **fault: Any) -> None:
        GPUFaultError.__init__(self, code, "system", message, worker, **fault)


class GPUFaultUserError(GPUFaultError, RuntimeUserError):
    """A GPU fault that the user's code caused. Source: flyte.errors, same name."""

    def __init__(self, code: str, message: str, worker: str | None = None, **fault: Any) -> None:
        GPUFaultError.__init__(self, code, "user", message, worker, **fault)


class PoolError(BaseRuntimeError):
    """An error about a pool of warm kernels: one base for all of ours, beside the Flyte class each one has.

    `fj_code` is stable and can be looked up in the documentation; it also opens the text.
    """

    fj_code: ClassVar[str] = "FJ000"

    def _explain(self, kind: ErrorKind, what: str, *notes: str | None, worker: str | None = None) -> None:
        # Named base, not super(): a subclass has Flyte's class and maybe TypeError after this one, each of
        # which wants other arguments.
        BaseRuntimeError.__init__(self, type(self).__name__, kind, f"{self.fj_code} {what}", worker)
        with_notes(self, *notes)


class BrokerGone(PoolError, RuntimeSystemError):
    """The broker stopped while it was needed.

    Args:
        stopped_s: Seconds since it stopped.
        cause: How it ended, for people: `"exit 137: out of memory"`.
        replicas: Its replicas that are still alive; a new broker adopts them.
    """

    fj_code = "FJ101"

    def __init__(
        self, stopped_s: float | None = None, cause: str | None = None, replicas: Sequence[str | int] = ()
    ) -> None:
        why = [] if stopped_s is None else [f"It stopped {_duration(stopped_s)} ago"]
        if cause:
            why = [f"{why[0] if why else 'It stopped'} ({cause})"]
        if replicas:
            noun = "replica" if len(replicas) == 1 else "replicas"
            why.append(f"Your {noun} {_and(replicas)} {'is' if len(replicas) == 1 else 'are'} still alive")
        adopted = "; they will be adopted, nothing has to be loaded again" if replicas else ""
        self._explain(
            "system",
            "The pool service is not running.",
            ". ".join(why) + "." if why else None,
            f"Call the task again: that starts it{adopted}. `flyte-jupyter doctor` checks the rest.",
        )
        self.stopped_s = stopped_s
        self.cause = cause
        self.replicas = tuple(replicas)


class BrokerUnavailable(PoolError, RuntimeSystemError):
    """The broker could not be started, or does not answer.

    Args:
        cause: What was tried and what came of it.
        log_path: The broker's log file.
        log_tail: Its last lines.
        do: What to do about it, where that is known.
    """

    fj_code = "FJ104"

    def __init__(self, cause: str, log_path: str | None = None, log_tail: str = "", *, do: str | None = None) -> None:
        tail = f"\n{log_tail.rstrip()}" if log_tail else ""
        where = f" The whole log: {log_path}." if log_path else ""
        self._explain(
            "system",
            "The pool service could not be started.",
            f"{_sentence(cause)}{tail}",
            (do or "Run `python -m flyte_jupyter.broker` in a terminal to see it fail.") + where,
        )
        self.cause = cause
        self.log_path = log_path
        self.log_tail = log_tail


class ProtocolError(PoolError, RuntimeSystemError):
    """What arrived on a socket is not what two of our processes say to each other.

    Args:
        problem: What is wrong with it.
    """

    fj_code = "FJ105"

    def __init__(self, problem: str) -> None:
        self._explain(
            "system",
            f"The connection to another process of flyte_jupyter broke: {problem}.",
            "Either that process ended in the middle of a message, or it is of another version.",
            "Call the task again; if that does not help, run `flyte-jupyter stop` and try once more.",
        )
        self.problem = problem


class NoSuchPool(PoolError, RuntimeUserError):
    """A pool was asked for by a name that nobody declared.

    Args:
        pool: The name that was asked for.
        pools: Every pool there is, and its state: `{"gpu": "2 ready"}`; a plain list of names is fine.
        gpus: How many GPUs the suggested command asks for.
    """

    fj_code = "FJ102"

    def __init__(self, pool: str, pools: Mapping[str, str] | Iterable[str] = (), gpus: int = 1) -> None:
        known = dict(pools) if isinstance(pools, Mapping) else dict.fromkeys(pools, "")
        listed = ", ".join(f"{name} ({state})" if state else name for name, state in known.items())
        close = difflib.get_close_matches(pool, known, n=1)
        resources = f" resources=flyte_jupyter.Resources(gpu={gpus})," if gpus else ""
        meant = f"Did you mean `{close[0]}`? " if close else ""
        self._explain(
            "user",
            f'There is no pool named "{pool}".',
            f"Existing pools: {listed}." if listed else "No pool exists yet.",
            f"{meant}Create one with `env = flyte_jupyter.TaskEnvironment({pool!r},{resources}"
            " reusable=flyte_jupyter.ReusePolicy(1))` and `flyte_jupyter.pool(env).warm()`.",
        )
        self.pool = pool
        self.pools = known


class NoSuchReplica(PoolError, RuntimeUserError):
    """A warm kernel was asked for, to look into it or to attach to it, and there is none.

    Args:
        wanted: What was asked for: `"gpu[1]"`, `"gpu"`, or `""` for any.
        pools: Every pool there is, and its state, as in `NoSuchPool`.
    """

    fj_code = "FJ106"

    def __init__(self, wanted: str, pools: Mapping[str, str] | None = None) -> None:
        listed = ", ".join(f"{name} ({state})" for name, state in (pools or {}).items())
        pool = wanted.partition("[")[0] or next(iter(pools or {}), "POOL")
        self._explain(
            "user",
            f"There is no warm kernel {wanted}." if wanted else "There is no warm kernel.",
            f"Existing pools: {listed}." if listed else "No pool exists yet.",
            f"Call one of its tasks, or run `flyte-jupyter warm {pool}`, then try again.",
        )
        self.wanted = wanted
        self.pools = dict(pools or {})


class VersionMismatch(PoolError, RuntimeSystemError):
    """Two processes that talk to each other run different versions of this package.

    Args:
        kernel: The version in this process.
        other: The version at the other end.
        where: What is at the other end: `"server"` (the Jupyter server) or `"broker"` (the pool service).
    """

    fj_code = "FJ103"

    def __init__(self, kernel: str, other: str, where: Literal["server", "broker"] = "broker") -> None:
        if where == "server":
            what = (
                "This notebook and the Jupyter server use different flyte_jupyter versions"
                f" (kernel {kernel}, server {other})."
            )
            why = "They live in two environments, so the side panel cannot show this pool."
            do = (
                f"Calls work. To fix the panel, install {kernel} in the environment that runs Jupyter,"
                " then reload the page."
            )
        else:
            what = (
                "This notebook and the pool service use different flyte_jupyter versions"
                f" (kernel {kernel}, service {other})."
            )
            why = "The service was started by another version, and the two do not understand each other."
            do = (
                "Stop it with `flyte-jupyter stop` (its replicas go too); the next call starts"
                f" version {kernel}. Or install {other} in this notebook's environment."
            )
        self._explain("system", what, why, do)
        self.kernel = kernel
        self.other = other
        self.where = where


class NoRoom(PoolError, RuntimeUserError):
    """The machine has too little of something for even one replica, or for one more.

    Args:
        what: What was asked for and what there is, in one sentence.
        held_by: Who holds it, and how much: `{"gpu[0]": "6.6"}`.
        do: What can be done about it.
    """

    fj_code = "FJ201"

    def __init__(self, what: str, held_by: Mapping[str, str] | None = None, do: str | None = None) -> None:
        holders = dict(held_by or {})
        held = ", ".join(f"{name} {much}".strip() for name, much in holders.items())
        self._explain("user", what, f"Held by: {held}." if held else None, do)
        self.held_by = holders

    @classmethod
    def gpus(
        cls,
        environment: str,
        wanted: int,
        total: int,
        held_by: Mapping[str, str] | None = None,
        model: str = "",
    ) -> NoRoom:
        """Return the error for an environment that wants `wanted` of the `total` GPUs per replica."""
        card = f"{model} GPUs" if model else "GPUs"
        fewer = f"Ask for at most {total}: `resources=Resources(gpu={total})`." if total else ""
        return cls(
            f'Not enough GPUs to start a replica of "{environment}": {wanted} {card} wanted per replica,'
            f" this machine has {total}.",
            held_by,
            fewer or "Leave `gpu` out to run on the CPU.",
        )


class NoUsableGPU(PoolError, RuntimeUserError):
    """A pool asks for a GPU, and none can be used at all.

    Args:
        reason: Why not: `"the NVIDIA driver did not answer"`.
        wanted: How many GPUs one replica asks for.
        device: What is asked for, if it is not just any GPU: `"TPU V5E"`.
    """

    fj_code = "FJ202"

    def __init__(self, reason: str, wanted: float = 1, device: str | None = None) -> None:
        if device is None:
            requested = f"{wanted:g} GPU was" if wanted == 1 else f"{wanted:g} GPUs were"
            why = f"{requested} requested, but {reason}."
            do = (
                "Check that the driver tool lists a GPU in a terminal."
                " `flyte-jupyter doctor` shows what was found. To continue on the CPU, leave `gpu` out of the"
                " environment's resources."
            )
        else:
            why = f"{device} was requested, but {reason}."
            do = "Use `gpu=1` here, or leave `gpu` out to run on the CPU; keep the device for the cluster."
        self._explain("user", "No GPU can be used by this pool.", why, do)
        self.reason = reason
        self.wanted = wanted
        self.device = device


class PoolFailed(PoolError, RuntimeUserError):
    """No replica of the pool can be used, because its preload fails.

    Args:
        pool: The pool's name.
        cause: The last line of what went wrong: `'ModuleNotFoundError: No module named "transformers"'`.
        replica: The replica that failed last, by its number.
        traceback: The preload's traceback, as text.
        serving: The replicas that still serve.
        preload: False if the process ended before its preload began.
    """

    fj_code = "FJ301"

    def __init__(
        self,
        pool: str,
        cause: str,
        replica: str | int | None = None,
        traceback: str = "",
        serving: Sequence[str | int] = (),
        *,
        preload: bool = True,
    ) -> None:
        where = "" if replica is None else f" on replica {replica}"
        so = f', so the pool "{pool}"' if replica is None else ", so it"
        module = _missing_module(cause)
        name = None if replica is None else str(replica)
        if name is not None and "[" not in name:
            name = f"{pool}[{name}]"
        again = f"start the pool again: `flyte-jupyter warm {pool}`"
        if module:
            why = f"{cause.strip().rstrip('.')}, in the pool's Python (not in the notebook's)."
            do = f"Install it there: `python -m pip install {module}`, then {again}."
        else:
            why = _sentence(cause)
            do = f"Correct the preload and run its cell again, or {again}." if preload else f"To try again, {again}."
            if name is not None:
                do += f" Its log: `flyte-jupyter logs {name}`."
        if serving:
            do += f" {_replicas(serving)} still {'serves' if len(serving) == 1 else 'serve'}."
        self._explain(
            "user",
            f"{'Preload failed' if preload else 'The kernel did not start'}{where}{so} will not be used.",
            why,
            do,
            traceback.rstrip() or None,
            worker=name,
        )
        self.pool = pool
        self.cause = cause
        self.replica = replica
        self.traceback = traceback
        self.serving = tuple(serving)


class PoolStopped(PoolError, ActionAbortedError):
    """The pool was stopped by hand while the task waited or ran.

    Args:
        pool: The pool's name.
        by: Who stopped it, for people: `"train.ipynb"`.
    """

    fj_code = "FJ302"

    def __init__(self, pool: str, by: str | None = None) -> None:
        self._explain(
            "user",
            f'The pool "{pool}" was stopped.',
            f"It was stopped by {by}." if by else "Somebody stopped it: a notebook, the side panel or a terminal.",
            "Call the task again: that starts the pool again, and its preload runs.",
            worker="user",
        )
        self.pool = pool
        self.by = by


class NameNotOnReplica(PoolError, RuntimeUserError, NameError):
    """A task uses a name that its replica does not have.

    Args:
        missing: The name.
        replica: Where it is missing: `"gpu[1]"`.
        preload: The names that the pool's preload made.
        size: Roughly how large the notebook's value is, in bytes.
    """

    # `missing`, because NameError's own `name` makes Python suggest similar names from our frames.
    fj_code = "FJ401"

    def __init__(
        self,
        missing: str,
        replica: str,
        preload: Iterable[str] = (),
        size: int | None = None,
        in_notebook: bool = True,
    ) -> None:
        names = tuple(preload)
        only = f"task cells run elsewhere and see only the preload names: {', '.join(names) or '(none)'}"
        size_text = "" if size is None else f" ({_size(size)})"
        pool = replica.partition("[")[0]
        self._explain(
            "user",
            f'The name "{missing}" is not defined on replica {replica}.',
            f"It exists in your notebook; {only}." if in_notebook else f"{only[0].upper()}{only[1:]}.",
            (f"Pass it to the task as an argument{size_text}, or create" if in_notebook else "Create")
            + f" it in a function under `@flyte_jupyter.pool(env).preload`, where env is {pool!r}.",
            worker=replica,
        )
        self.missing = missing
        self.replica = replica
        self.preload = names
        self.size = size


class ArgumentNotSerializable(PoolError, RuntimeUserError, TypeError):
    """An argument, or a value that the task's code uses, cannot be copied to another process.

    Args:
        argument: The name of the argument or variable.
        type_name: Its type, with the module: `"sqlite3.Connection"`.
        line: The line of the task that uses it.
        cause: What the pickler said.
    """

    fj_code = "FJ402"

    def __init__(self, argument: str, type_name: str, line: int | None = None, cause: str | None = None) -> None:
        uses = "" if line is None else f" (line {line} uses it)"
        said = f" The pickler said: {cause}" if cause else ""
        noun = type_name.rpartition(".")[2].lower()
        make = "Open the connection" if "connection" in noun else "Create it"
        self._explain(
            "user",
            f'"{argument}" cannot be sent to the pool.',
            f"{type_name} objects cannot be copied to another process{uses}.{said}",
            f"{make} inside the task, or put it into the preload code.",
        )
        self.argument = argument
        self.type_name = type_name
        self.line = line
        self.cause = cause

    @classmethod
    def for_value(cls, *, path: str, type_name: str, problem: str) -> ArgumentNotSerializable:
        """Return the error for the part of an argument at `path`, such as `config["db"]`."""
        return cls(path, type_name, cause=problem)


class ResultNotSerializable(PoolError, RuntimeUserError, TypeError):
    """A task's result cannot be copied back.

    Args:
        type_name: The class of the value.
        result: The name of the result, if it has one.
        cause: What the pickler said; without it, the class is one that this notebook does not have.
    """

    fj_code = "FJ403"

    def __init__(self, type_name: str, result: str | None = None, cause: str | None = None) -> None:
        name = type_name.rpartition(".")[2]
        named = f' "{result}"' if result else ""
        if cause is None:
            why = f"Its class `{name}` was defined in the task cell and does not exist in this notebook."
            do = f"Return plain data, or define `{name}` in a module or in a notebook cell that the task uses."
        else:
            why = f"{type_name} objects cannot be copied to another process. The pickler said: {cause}"
            do = "Return plain data: numbers, text, arrays, or lists and dictionaries of them."
        self._explain("user", f"The result{named} cannot be brought back.", why, do)
        self.type_name = type_name
        self.result = result
        self.cause = cause

    @classmethod
    def for_value(cls, *, path: str, type_name: str, problem: str) -> ResultNotSerializable:
        """Return the error for the part of a result at `path`, such as `result["model"].lock`."""
        return cls(type_name, None if path == "result" else path, problem)


class ReplicaDied(PoolError, RuntimeSystemError):
    """The process that ran the task ended; the task was not run again unless it asked for `retries`.

    Args:
        task: The task's name.
        replica: Where it ran: `"gpu[0]"`.
        signal: The signal that ended the process.
        exit_code: Its exit code, when no signal did.
        attempt: Which attempt it was, from 0.
        log_tail: The last lines of the replica's log.
        hint: What likely happened, for people.
        loading_s: Roughly how many seconds the replacement needs.
        retries: What to advise: `retries=` on the task, unless it has some already.
    """

    fj_code = "FJ502"

    def __init__(
        self,
        task: str,
        replica: str,
        *,
        signal: int | None = None,
        exit_code: int | None = None,
        attempt: int = 0,
        log_tail: str = "",
        hint: str | None = None,
        loading_s: float | None = None,
        retries: int = 1,
    ) -> None:
        how = (
            f"signal {signal}"
            if signal is not None
            else "no exit code known"
            if exit_code is None
            else f"exit code {exit_code}"
        )
        about = "" if loading_s is None else f" (about {_duration(loading_s)})"
        self._explain(
            "system",
            f"Replica {replica} died while running {task} ({how}{f', {hint}' if hint else ''}).",
            f"Output up to that moment is above. A replacement is loading{about}."
            " The task was not repeated, because it may have had side effects.",
            f"Run it again when ready, or add `retries={retries}` to the task.",
            f"Last lines of its log:\n{log_tail.rstrip()}" if log_tail else None,
            worker=replica,
        )
        self.task = task
        self.replica = replica
        self.signal = signal
        self.exit_code = exit_code
        self.attempt = attempt
        self.log_tail = log_tail


class TaskCancelled(PoolError, ActionAbortedError):
    """The task was cancelled.

    Args:
        task: The task's name.
        forced: It did not stop when asked, so its replica was ended, with everything that was loaded there.
        replica: Where it ran: `"gpu[0]"`.
        by: Who cancelled it, for people: `"train.ipynb"`.
        queued: It was still waiting for a replica.
    """

    fj_code = "FJ504"

    def __init__(
        self,
        task: str,
        forced: bool = False,
        replica: str | None = None,
        by: str | None = None,
        *,
        queued: bool = False,
    ) -> None:
        where = f"replica {replica}" if replica else "its replica"
        why = (
            f"It did not stop when asked, so {where} was ended; a replacement is loading."
            if forced
            else f"It stopped when asked; {where} is ready again and what it had loaded was kept."
        )
        if queued:
            why = "It was still waiting for a replica, and had not begun."
        self._explain(
            "user",
            f"Task {task} was cancelled{f' by {by}' if by else ''}.",
            why,
            "Call it again if you want its result.",
            worker=replica or "user",
        )
        self.task = task
        self.forced = forced
        self.replica = replica
        self.by = by


class ReplicaSilent(PoolError, RuntimeSystemError):
    """A replica lives, and does not answer in time when somebody wants to look into it.

    Args:
        replica: Its name, such as `"gpu[0]"`.
        waited_s: How long it was given, in seconds.
    """

    fj_code = "FJ505"

    def __init__(self, replica: str, waited_s: float) -> None:
        self._explain(
            "system",
            f"{replica} does not answer within {waited_s:g} s.",
            "Something in it holds Python's global lock, as C code can that runs for long.",
            "Try again, or look from outside: `py-spy dump --pid` with its process number from `flyte-jupyter status`.",
            worker=replica,
        )
        self.replica = replica


class StarvationError(PoolError, RuntimeUserError):
    """A task waits for a task that can never start, because the waiting ones hold every slot.

    Args:
        parent: The task that waits.
        child: The task it waits for.
        pool: The pool both need.
        max_replicas: The pool's maximum.
        concurrency: Slots per replica.
        possible: The most replicas the machine has room for, when that is what limits the pool.
        cell: "alone" or "shared" if no task waits but a cell, of somebody who has opened a replica of the pool so.
    """

    fj_code = "FJ601"

    def __init__(
        self,
        parent: str,
        child: str,
        pool: str,
        *,
        max_replicas: int = 1,
        concurrency: int = 1,
        possible: int | None = None,
        cell: str = "",
    ) -> None:
        replicas = max_replicas if possible is None else min(max_replicas, possible)
        held = "the only replica" if replicas * concurrency == 1 else "a slot, like every other waiting task,"
        limited = "" if possible is None or possible >= max_replicas else f" (this machine has room for {possible})"
        if cell:
            what = f'a cell in a replica of "{pool}" waits for "{child}", and keeps that replica from serving it'
        else:
            what = f'task "{parent}" holds {held} of "{pool}" and waits for "{child}", which needs the same pool'
        match cell:
            case "alone":
                cure = f"await it in a kernel that shares its replica: `flyte-jupyter attach {pool} --shared`"
            case "shared":
                cure = f"await the call: `await {child.rpartition('.')[2]}.aio(...)`"
            case _:
                cure = f'make the parent use no replica: `{parent.rpartition(".")[2]}.override(reusable="off")`'
        if not limited:
            cure = f"run `flyte-jupyter scale {pool} {max_replicas}:{max_replicas + 1}`, or {cure}"
        self._explain(
            "user",
            f"This would wait for ever: {what}.",
            f"replicas max {max_replicas}{limited} × concurrency {concurrency}.",  # noqa: RUF001
            f"{cure[0].upper()}{cure[1:]}. Nothing was started.",
        )
        self.parent = parent
        self.child = child
        self.pool = pool
        self.max_replicas = max_replicas
        self.concurrency = concurrency


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _and(names: Sequence[str | int]) -> str:
    words = [str(name) for name in names]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _replicas(names: Sequence[str | int]) -> str:
    return f"{'Replica' if len(names) == 1 else 'Replicas'} {_and(names)}"


def _sentence(text: str) -> str:
    return text if text.rstrip().endswith((".", "!", "?")) else f"{text.rstrip()}."


def _missing_module(cause: str) -> str | None:
    _, found, rest = cause.partition("o module named ")
    return rest.strip().strip("\"'.").partition(".")[0] if found else None
