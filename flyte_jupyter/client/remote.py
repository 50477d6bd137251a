"""One task on a leased kernel: send, show its output, return or raise; retry and time out; stop it when told.

The blocking form is here, on the calling thread without a hop; the awaited one is a call of the `pipeline`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from .. import errors
from ..core import context, failure
from ..errors.shown import show_as_ours
from . import gpu_memory, runs
from .attempts import Attempts, Limits
from .drivers import ChannelLost, drive, interruptible
from .leases import Lease, Waiter
from .pipeline import AwaitedCall
from .stopping import stop_interrupted, stop_late
from .target import Outgoing, Target, stalled_cell, target_of

if TYPE_CHECKING:
    from .environment import Task


# --- entry points of Task


def call(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a task on a replica and wait for its value.

    Raises:
        SyncTaskCallInAsyncContextError: Inside an async task, whose replica would stand still meanwhile.
    """
    if context.current.get() is not None:
        runs.refuse_in_trace(task.name)
        if _loop_is_running():
            raise errors.SyncTaskCallInAsyncContextError(
                f"Sync task {task.name} was called inside an async task: await {task.name.rpartition('.')[2]}.aio(...)"
            )
    __tracebackhide__ = True
    task.bind(args, kwargs)
    try:
        return blocking(target_of(task), task, args, kwargs)
    except BaseException as error:
        if not says_all(error):
            raise
        raise without_our_frames(error)  # noqa: B904 - it is the same error


async def acall(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same as a coroutine: nothing blocks the loop that awaits it."""
    __tracebackhide__ = True
    if context.current.get() is not None:
        runs.refuse_in_trace(task.name)
    task.bind(args, kwargs)
    try:
        return await awaiting(target_of(task), task, args, kwargs)
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


# --- the blocking driver


def blocking(target: Target, task: Task[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not context.cell.get():
        return _blocking(target, task, args, kwargs)
    token = context.stalls.set(stalled_cell())
    try:
        return _blocking(target, task, args, kwargs)
    finally:
        context.stalls.reset(token)


def _blocking(target: Target, task: Task[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    attempts: Attempts | None = None
    limits = Limits(task) if task is not None and target.limited else None
    while True:
        number = 0 if attempts is None else attempts.number
        outgoing = target.encode(args, kwargs, number)
        try:
            return _attempt(target, outgoing, limits, number)
        except ChannelLost:
            attempts = attempts or Attempts(task)
            pause = attempts.requeue()
            if pause is None:
                raise errors.ReplicaDied(target.name, target.pool.name) from None
            time.sleep(pause)
        except Exception as error:
            attempts = attempts or Attempts(task)
            delay = attempts.delay(error)
            if delay is None:
                if gpu_memory.ran_out(error):
                    gpu_memory.name_holders(error, target.name)
                raise
            time.sleep(delay if limits is None else limits.pause(delay))
            if limits is not None and limits.over():
                raise limits.exceeded(False) from None


def _attempt(target: Target, outgoing: Outgoing, limits: Limits | None, attempt: int) -> Any:
    group = target.group()
    lease = group.take()
    if lease is None:
        lease = _wait(group.ask(target.shown, priority=target.priority), limits)
    done = False
    try:
        channel = lease.channel()
        number, pieces = outgoing.on(channel)
        talk = outgoing.talk(number)
        until = None if limits is None else limits.while_running()
        try:
            frame = drive(channel, talk, pieces, until)
        except TimeoutError:
            assert limits is not None
            became = stop_late(target, lease, channel, talk)
            raise limits.exceeded(True, became) from None
        except KeyboardInterrupt:
            if channel.cut:
                raise  # half a call: it has not begun
            done = True  # the lease is seen to below
            stop_interrupted(target, lease, channel, talk)
            raise
        group.give_back(lease)
        done = True
    except (ChannelLost, OSError) as problem:
        if isinstance(problem, ChannelLost) and problem.started:
            raise target.lost(lease, lease.why_lost(), attempt) from None
        raise ChannelLost(started=False) from None
    finally:
        if not done:
            group.drop(lease)
    return target.result(frame, lease)  # outside: a task's own OSError is not one of the connection


def _wait(waiter: Waiter, limits: Limits | None) -> Lease:
    until = None if limits is None else limits.while_queued()
    try:
        return waiter.future.result(None if until is None else max(0.0, until - time.monotonic()))
    except TimeoutError:
        waiter.withdraw()
        assert limits is not None
        raise limits.exceeded(False) from None
    except KeyboardInterrupt:
        waiter.withdraw()
        raise


# --- the awaited form


async def awaiting(target: Target, task: Task[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    __tracebackhide__ = True
    call = AwaitedCall(asyncio.get_running_loop(), target, task, args, kwargs)
    call.encode()  # now: what cannot be sent is told here, and small arguments are sent as they are now
    with interruptible():
        call.start()
        try:
            await call.future
        except asyncio.CancelledError:
            call.cancel()
            raise
    if call.error is not None:
        raise call.error
    return call.value
