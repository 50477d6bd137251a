"""Flyte's own names, with Flyte's constructors, and what carries the text of every error here."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NoReturn, Self, TypeVar

from .shown import lines_shown

ErrorKind = Literal["system", "unknown", "user"]
E = TypeVar("E", bound=BaseException)


def with_notes(error: E, *notes: str | None) -> E:
    """Return `error` with each note that says something: `raise with_notes(ValueError(what), why, do)`."""
    kept = vars(error).get("__notes__")
    for note in notes:
        if note and isinstance(kept, list):
            kept.append(note)
        elif note:
            kept = vars(error)["__notes__"] = [note]  # not `add_note`: a frozen class refuses it
    return error


def whole_text(error: BaseException) -> str:
    """What happened, why, and what to do, in one line of text."""
    return " ".join((str(error), *getattr(error, "__notes__", ())))


def _rebuild(cls: type[E], args: tuple[Any, ...], state: dict[str, Any]) -> E:
    # Not cls(*args): a constructor that takes facts cannot be called with the finished message.
    error = cls.__new__(cls, *args)
    BaseException.__setattr__(error, "args", args)  # a user's subclass may be frozen
    vars(error).update(state)
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
        return _rebuild(cls, (message,), state)

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
