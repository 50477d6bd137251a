"""One task on a leased kernel: send, show its output, return or raise; retry and time out; stop it when told.

The blocking and the awaited form stand side by side; what they share is in `drivers` and `target`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from ..core import context, failure
from . import broker, outputs, runs
from .drivers import ChannelLost, Conversation, drive, drive_async, interruptible, seen
from .leases import Channel, Lease, Waiter
from .target import Outgoing, Target, target_of

if TYPE_CHECKING:
    from .environment import Task

GRACE_S: Final = 5.0
"""How long a cancelled task may take to stop before its replica is killed."""
QUICK_S: Final = 0.4
"""How long an interrupted cell waits to hear that its task has stopped before it comes back."""
REQUEUES: Final = 10
"""How often a call that never started may be sent elsewhere."""


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
    except _PLAIN as error:
        raise _without_our_frames(error)  # noqa: B904 - it is the same error


async def acall(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same as a coroutine: nothing blocks the loop that awaits it."""
    __tracebackhide__ = True
    if context.current.get() is not None:
        runs.refuse_in_trace(task.name)
    task.bind(args, kwargs)
    try:
        return await awaiting(target_of(task), task, args, kwargs)
    except _PLAIN as error:
        raise _without_our_frames(error)  # noqa: B904 - it is the same error


_PLAIN = (errors.BaseRuntimeError, KeyboardInterrupt, asyncio.CancelledError)
"""Exceptions that say all there is to say; any other is a fault of ours, whose frames are needed."""


def _without_our_frames(error: BaseException) -> BaseException:
    """What a user shall see: the line that called, then the lines of the task. IPython hides even this frame."""
    __tracebackhide__ = True
    return error.with_traceback(failure.remote_frames(error))


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Limits:
    """A task's time limits as instants. All attempts share the deadline; the others start anew with each."""

    __slots__ = ("deadline", "max_queued", "max_runtime", "name")

    def __init__(self, task: Task[..., Any]) -> None:
        limits = task.time_limits
        self.name = task.name
        self.max_runtime = limits.seconds("max_runtime")
        self.max_queued = limits.seconds("max_queued_time")
        total = limits.seconds("deadline")
        self.deadline = None if total is None else time.monotonic() + total

    def while_queued(self) -> float | None:
        """The instant until which an attempt may wait for its slot."""
        return _earlier(None if self.max_queued is None else time.monotonic() + self.max_queued, self.deadline)

    def while_running(self) -> float | None:
        return _earlier(None if self.max_runtime is None else time.monotonic() + self.max_runtime, self.deadline)

    def exceeded(self, running: bool) -> errors.TaskTimeoutError:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return errors.DeadlineExceededError(f"Task {self.name} passed its deadline and was stopped.")
        if running:
            return errors.MaxRuntimeExceededError(
                f"Task {self.name} reached its limit of {self.max_runtime:g} s and was stopped."
            )
        return errors.MaxQueuedTimeExceededError(f"Task {self.name} waited {self.max_queued:g} s for a slot.")


def _earlier(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)


class Attempts:
    """Whether a failed call is tried again: only if it asked for retries, and its error allows one."""

    __slots__ = ("_left", "_requeues", "_task", "number")

    def __init__(self, task: Task[..., Any] | None) -> None:
        self._task = task
        self._left = 0 if task is None else task.retries.count
        self._requeues = REQUEUES
        self.number = 0

    def requeue(self) -> float | None:
        """It never started, so this was no attempt: the seconds until it is sent elsewhere; None after many.

        The waits grow, from 1 ms to 0.5 s: until the broker knows of a death it grants the dead replica again.
        """
        self._requeues -= 1
        return 0.001 * 2.0 ** (REQUEUES - 1 - self._requeues) if self._requeues >= 0 else None

    def delay(self, error: BaseException) -> float | None:
        """Seconds until the next attempt; None if there is none."""
        final = errors.DeadlineExceededError | errors.TaskCancelled | errors.StarvationError | errors.PoolError
        if isinstance(error, final) and not isinstance(error, errors.ReplicaDied):
            return None
        if getattr(error, "code", None) == "NonRecoverableError" or self._left <= 0 or self._task is None:
            return None
        self._left -= 1
        seconds: float = self._task.retries.delay(self.number)
        self.number += 1
        return seconds


# --- the blocking driver


def blocking(target: Target, task: Task[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    attempts = Attempts(task)
    limits = Limits(task) if task is not None and target.limited else None
    while True:
        outgoing = target.encode(args, kwargs, attempts.number)
        try:
            return _attempt(target, outgoing, limits, attempts.number)
        except ChannelLost:
            pause = attempts.requeue()
            if pause is None:
                raise errors.ReplicaDied(target.name, target.pool.name) from None
            time.sleep(pause)
        except Exception as error:
            delay = attempts.delay(error)
            if delay is None:
                raise
            time.sleep(delay)


def _attempt(target: Target, outgoing: Outgoing, limits: Limits | None, attempt: int) -> Any:
    group = target.group()
    lease = group.take()
    if lease is None:
        lease = _wait(group.ask(target.name), limits)
    done = False
    try:
        channel = lease.channel()
        number, pieces = outgoing.on(channel)
        talk = Conversation(number, outgoing.closures)
        until = None if limits is None else limits.while_running()
        try:
            frame = drive(channel, talk, pieces, until)
        except TimeoutError:
            assert limits is not None
            _stop_late(target, lease, channel, talk)
            raise limits.exceeded(True) from None
        except KeyboardInterrupt:
            done = True  # the lease is seen to below
            _stop_interrupted(target, lease, channel, talk)
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


def _stop_late(target: Target, lease: Lease, channel: Channel, talk: Conversation) -> None:
    """Its time is up: stop it, and kill it if it does not stop. The caller waits, so that the slot is free again."""
    lease.cancel(channel.calls)
    try:
        drive(channel, talk, [], time.monotonic() + GRACE_S)
    except (TimeoutError, ChannelLost, KeyboardInterrupt):
        _revoke(lease, f"{target.name} ignored its timeout for {GRACE_S:g} s")
        lease.why_lost(GRACE_S)


def _stop_interrupted(target: Target, lease: Lease, channel: Channel, talk: Conversation) -> None:
    """Ctrl-C in the cell that waits: the cell comes back at once, and the work is seen to its end."""
    lease.cancel(channel.calls)
    try:
        if target.kill_on_interrupt:
            raise KeyboardInterrupt
        drive(channel, talk, [], time.monotonic() + QUICK_S)
    except TimeoutError:
        outputs.note(f"{target.name} on {lease.name} does not stop yet; its kernel is ended in {GRACE_S:g} s.")
        _see_off(target, lease, channel, talk)
    except KeyboardInterrupt:  # pressed again
        _revoke(lease, f"{target.name} was interrupted twice")
        outputs.note(f"The kernel {lease.name} was ended; a replacement is loading.")
        lease.group.drop(lease)
    except ChannelLost:
        lease.group.drop(lease)
    else:
        outputs.note(f"Interrupted on {lease.name}; what it has loaded is still there.")
        lease.group.give_back(lease)


def _see_off(target: Target, lease: Lease, channel: Channel, talk: Conversation) -> None:
    """Wait elsewhere for a cancelled call to end, then give its lease back; or kill its replica."""

    def wait() -> None:
        outputs.mute()
        try:
            drive(channel, talk, [], time.monotonic() + GRACE_S)
        except TimeoutError:
            with suppress(errors.BrokerGone):
                _revoke(lease, f"{target.name} ignored its cancellation for {GRACE_S:g} s")
            lease.why_lost(GRACE_S)
            lease.group.drop(lease)
        except (ChannelLost, OSError):
            lease.group.drop(lease)
        else:
            lease.group.give_back(lease)

    threading.Thread(target=wait, name=f"flyte_jupyter: stopping {target.name}", daemon=True).start()


def _revoke(lease: Lease, why: str) -> None:
    from ..core.protocol import Revoke

    lease.group.connection.send(Revoke(lease=lease.id, why=why))


# --- the driver for await


async def awaiting(target: Target, task: Task[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    attempts = Attempts(task)
    limits = Limits(task) if task is not None and target.limited else None
    while True:
        outgoing = target.encode(args, kwargs, attempts.number)
        try:
            return await _attempt_async(target, outgoing, limits, attempts.number)
        except ChannelLost:
            pause = attempts.requeue()
            if pause is None:
                raise errors.ReplicaDied(target.name, target.pool.name) from None
            await asyncio.sleep(pause)
        except Exception as error:
            delay = attempts.delay(error)
            if delay is None:
                raise
            await asyncio.sleep(delay)


async def _attempt_async(target: Target, outgoing: Outgoing, limits: Limits | None, attempt: int) -> Any:
    if broker.current() is None:  # connecting may start the broker, which takes a while
        group = await asyncio.to_thread(target.group)
    else:
        group = target.group()
    with interruptible():
        lease = group.take()
        if lease is None:
            lease = await _wait_async(group.ask(target.name), limits)
        done = False
        try:
            channel = lease.channel()
            number, pieces = outgoing.on(channel)
            talk = Conversation(number, outgoing.closures)
            until = None if limits is None else limits.while_running()
            try:
                frame = await drive_async(channel, talk, pieces, until)
            except TimeoutError:
                assert limits is not None
                await asyncio.to_thread(_stop_late, target, lease, channel, talk)
                raise limits.exceeded(True) from None
            except asyncio.CancelledError:
                done = True
                lease.cancel(channel.calls)
                _see_off(target, lease, channel, talk)
                raise
            group.give_back(lease)
            done = True
        except (ChannelLost, OSError) as problem:
            if isinstance(problem, ChannelLost) and problem.started:
                why = await asyncio.to_thread(lease.why_lost)
                raise target.lost(lease, why, attempt) from None
            raise ChannelLost(started=False) from None
        finally:
            if not done:
                group.drop(lease)
    return target.result(frame, lease)  # outside: a task's own OSError is not one of the connection


async def _wait_async(waiter: Waiter, limits: Limits | None) -> Lease:
    until = None if limits is None else limits.while_queued()
    granted = asyncio.wrap_future(waiter.future)
    granted.add_done_callback(seen)
    try:
        async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
            # Shielded: a lease that is granted just when the wait is cancelled must find its way back.
            return await asyncio.shield(granted)
    except TimeoutError:
        waiter.withdraw()
        assert limits is not None
        raise limits.exceeded(False) from None
    except asyncio.CancelledError:
        waiter.withdraw()
        raise
