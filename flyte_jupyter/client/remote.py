"""Calls a task: checks the place and the arguments, makes the call, and leaves only the user's lines in its errors."""

from __future__ import annotations

import asyncio
from typing import Any

from .. import errors
from ..core import context, failure
from ..errors.shown import show_as_ours
from . import blocking
from .calling import refuse_in_trace
from .looping import awaiting
from .task import Task
from .task_target import target_of

# --- entry points of Task


def call(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a task on a replica and wait for its value.

    Raises:
        SyncTaskCallInAsyncContextError: Inside an async task, whose replica would stand still meanwhile.
    """
    if context.current.get() is not None:
        refuse_in_trace(task.name)
        if _loop_is_running():
            raise errors.SyncTaskCallInAsyncContextError(
                f"Sync task {task.name} was called inside an async task: await {task.name.rpartition('.')[2]}.aio(...)"
            )
    __tracebackhide__ = True
    task.bind(args, kwargs)
    try:
        return blocking.call(target_of(task), args, kwargs)
    except BaseException as error:
        if not says_all(error):
            raise
        raise without_our_frames(error)  # noqa: B904 - it is the same error


async def acall(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same as a coroutine: nothing blocks the loop that awaits it."""
    __tracebackhide__ = True
    if context.current.get() is not None:
        refuse_in_trace(task.name)
    task.bind(args, kwargs)
    try:
        return await awaiting(target_of(task), args, kwargs)
    except BaseException as error:
        if not says_all(error):
            raise
        raise without_our_frames(error)  # noqa: B904 - it is the same error


def says_all(error: BaseException) -> bool:
    """Whether our frames add nothing to an error; it is a task's own, or says all there is to say, or is of the user.

    Any other is a fault of ours.
    """
    return isinstance(error, KeyboardInterrupt | asyncio.CancelledError) or failure.flyte_error(error) is not None


def without_our_frames(error: BaseException) -> BaseException:
    """What a user shall see: the line that called, then the lines of the task."""
    if isinstance(error, errors.BaseRuntimeError):
        failure.catchable(error)
    elif failure.of(error) is None and context.current.get() is None:  # an interrupt, or a cancellation
        show_as_ours(error)
    return BaseException.with_traceback(error, failure.remote_frames(error))


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
