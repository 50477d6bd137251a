"""Every exception a user can meet. Imports nothing of ours, so that every process may raise them.

First Flyte's own names, with Flyte's constructors, so that `except errors.OOMError` means the same here
and on a cluster; then ours, one per thing a caller can do about it. One of ours says what happened in its
text, and why and what to do in its notes. Flyte's error objects do not survive pickling; these do.
"""

from __future__ import annotations

from .calls import ReplicaDied, ReplicaSilent, StarvationError, TaskCancelled
from .flyte import (
    ActionAbortedError,
    BaseRuntimeError,
    CustomError,
    DeadlineExceededError,
    GPUFaultError,
    GPUFaultSystemError,
    GPUFaultUserError,
    ImagePullBackOffError,
    InitializationError,
    InlineIOMaxBytesBreached,
    InvalidImageNameError,
    MaxQueuedTimeExceededError,
    MaxRuntimeExceededError,
    NonRecoverableError,
    NotInTaskContextError,
    OOMError,
    PrimaryContainerNotFoundError,
    RetriesExhaustedError,
    RuntimeDataValidationError,
    RuntimeSystemError,
    RuntimeUnknownError,
    RuntimeUserError,
    SyncTaskCallInAsyncContextError,
    TaskInterruptedError,
    TaskTimeoutError,
    TraceDoesNotAllowNestedTasksError,
    whole_text,
    with_notes,
)
from .flyte import ErrorKind as ErrorKind
from .ours import PoolError
from .pools import PoolFailed, PoolStopped
from .resources import NoRoom, NoUsableGPU
from .service import (
    BrokerGone,
    BrokerSilent,
    BrokerUnavailable,
    NoSuchPool,
    NoSuchReplica,
    ProtocolError,
    VersionMismatch,
)
from .shown import lines_shown, users_frames
from .values import ArgumentNotSerializable, NameNotOnReplica, ResultNotSerializable

__all__ = [
    "ActionAbortedError",
    "ArgumentNotSerializable",
    "BaseRuntimeError",
    "BrokerGone",
    "BrokerSilent",
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

# Where a user finds them is what tracebacks and pickles say.
for _name in __all__:
    globals()[_name].__module__ = __name__
