"""One task on a leased kernel: send, show its output, return or raise.

`Conversation` is the life of a call as a pure object: frames in, frames out. Two drivers move the bytes: a blocking
one, which is a cell's sync call without a thread hop, and one for `await`.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import select
import signal as signals
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from ..core import context, failure, payload
from ..core.definitions import Closure, is_notebook_module, notebook_module_name
from ..core.frames import Buffer, Frame, FrameReader, Kind, Status, encode
from . import broker, outputs, runs
from .capture import Captured
from .handle import PoolHandle, handle_of
from .leases import Channel, Lease, LeaseGroup, Waiter

if TYPE_CHECKING:
    from ..core import protocol as p
    from .environment import Task

GRACE_S: Final = 5.0
"""How long a cancelled task may take to stop before its replica is killed."""
QUICK_S: Final = 0.4
"""How long an interrupted cell waits to hear that its task has stopped before it comes back."""
REQUEUES: Final = 10
"""How often a call that never started may be sent elsewhere."""
TICK_S: Final = 0.1


class ChannelLost(Exception):
    """The replica's end is closed. `started` is False when it is certain that the call had not begun."""

    def __init__(self, started: bool) -> None:
        self.started = started


class Conversation:
    """A call, from its first frame to its outcome. Frames in, frames out; no I/O."""

    __slots__ = ("_closures", "_number", "answered", "body", "buffers", "outcome", "status")

    def __init__(self, number: int, closures: Sequence[Closure]) -> None:
        self._number = number
        self._closures = closures
        self.answered = False  # the replica has shown that it knows of this call
        self.outcome: Frame | None = None

    def receive(self, frame: Frame) -> list[Buffer] | None:
        """Take one frame; what to send back, if anything."""
        if frame.call != self._number:
            return None  # of a call before, which was given up
        self.answered = True
        if frame.kind == Kind.OUTCOME:
            self.outcome = frame
        elif frame.kind == Kind.OUTPUT:
            outputs.show(frame.flags, frame.body)
        elif frame.kind == Kind.NEED:
            digests: dict[str, str] = pickle.loads(frame.body)
            missing = [closure.beyond(digests) for closure in self._closures]
            return encode(Kind.DEFINE, self._number, pickle.dumps(missing, 5))
        return None


class Target:
    """A callable and the pool it runs in: all that does not change from call to call."""

    def __init__(self, function: Callable[..., Any], name: str, pool: PoolHandle, *, limited: bool = False) -> None:
        self.name = name
        self.pool = pool
        self.limited = limited  # it has a time limit of some kind
        self._captured = Captured(function)
        self._closure: Closure | None = None
        self._reference = b""
        self._extra: dict[frozenset[str], Captured] = {}
        self._groups: dict[str | None, LeaseGroup] = {}

    # --- what is sent

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any], attempt: int) -> Outgoing:
        """The call as bytes. ArgumentNotSerializable if an argument cannot leave this process."""
        closure = self._captured.closure()
        if closure is not self._closure:
            self._closure = closure
            self._reference = json.dumps([[closure.digest], self.name]).encode()
        try:
            home = home_module()
            meta = runs.call_meta()
            sent = (args, kwargs) if meta is None else (args, kwargs, meta)
            pickled = payload.dump_arguments(sent, home)
        except errors.BaseRuntimeError:
            raise
        except Exception as problem:
            raise self._not_serializable(args, kwargs, problem) from None
        if not pickled.names:
            return Outgoing(self._reference, (closure,), pickled, attempt)
        # Classes of the notebook that only the arguments use.
        captured = self._extra.get(pickled.names)
        if captured is None:
            captured = self._extra[pickled.names] = Captured.of_names(pickled.names, vars(sys.modules[home]))
        extra = captured.closure()
        reference = json.dumps([[extra.digest, closure.digest], self.name]).encode()
        return Outgoing(reference, (extra, closure), pickled, attempt)

    def _not_serializable(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], problem: Exception
    ) -> errors.ArgumentNotSerializable:
        named = {**{f"argument {index + 1}": value for index, value in enumerate(args)}, **kwargs}
        for name, value in named.items():
            try:
                payload.dump_arguments(value, home_module())
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
        parent = None if task is None else task.lease
        group = self._groups.get(parent)
        if (
            group is None
            or group.connection.closed
            or group.connection.declared.get(self.pool.key) is not (self.pool.declaration())
        ):
            connection = self.pool.connection()
            if group is None or group.connection is not connection:
                group = _group(connection, self.pool.key, parent, "local" if task is None else task.action.run_name)
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
        if why.out_of_memory:
            error = errors.OOMError("OOMKilled", f"Replica {lease.name} ran {why.cause} while running {self.name}.")
            error.add_note("A replacement is loading. The task was not repeated.")
            error.add_note('Give the environment more memory, or call task.override(reusable="off", resources=...).')
            return error
        number = None if why.signal is None else int(getattr(signals, why.signal, 0)) or None
        hint = None
        if why.signal == "SIGKILL" or why.exit_code == 137:
            hint = "possibly the system's out-of-memory killer"
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
        if frame.flags == Status.OK:
            try:
                return payload.load(frame.body, frame.buffers, find_here, _NOTEBOOK)
            except Exception as problem:
                raise _result_unknown_here(problem) from problem
        if frame.flags == Status.CANCELLED:
            raise errors.TaskCancelled(self.name, replica=lease.name)
        described: failure.Failure = pickle.loads(frame.body)
        raise failure.rebuild(described, find_here, where=f"{self.name} raised this on {lease.name}.")


_NOTEBOOK: Final = b"notebook_"


def home_module() -> str:
    """Where the notebook's names live in this process: a task that calls a task is in a replica."""
    task = context.current.get()
    return "__main__" if task is None else notebook_module_name(task.notebook)


def find_here(module: str, name: str) -> Any:
    """`find_class` for outcomes: what replicas call `notebook_...` is `__main__` in the notebook itself."""
    if is_notebook_module(module) and module not in sys.modules:
        module = "__main__"
    return payload.plain_find(module, name)


class Outgoing:
    """A call, ready to be sent on any lease."""

    __slots__ = ("_attempt", "_pieces", "_reference", "closures")

    def __init__(self, reference: bytes, closures: Sequence[Closure], pickled: payload.Pickled, attempt: int) -> None:
        self._reference = reference
        self.closures = closures
        self._pieces: list[Buffer] = [pickled.data, *pickled.buffers]
        self._attempt = attempt

    def on(self, channel: Channel) -> tuple[int, list[Buffer]]:
        channel.calls += 1
        return channel.calls, encode(Kind.CALL, channel.calls, self._reference, self._pieces, flags=self._attempt)


_groups: dict[tuple[str, str | None], LeaseGroup] = {}
_groups_lock = threading.Lock()


def _group(connection: broker.Connection, pool: str, parent: str | None, run: str) -> LeaseGroup:
    """One group for all tasks of a pool, so that they share its idle leases."""
    with _groups_lock:
        group = _groups.get((pool, parent))
        if group is None or group.connection is not connection:
            for key in [key for key, old in _groups.items() if old.connection.closed or (key[1] and old.unused())]:
                del _groups[key]
            group = _groups[pool, parent] = LeaseGroup(connection, pool, parent, run)
        return group


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


def target_of(task: Task[..., Any]) -> Target:
    target: Target | None = task.__dict__.get("_target")
    if target is None:
        limits = task.time_limits
        limited = any((limits.seconds("max_runtime"), limits.seconds("max_queued_time"), limits.seconds("deadline")))
        target = Target(task.func, task.name, handle_of(task), limited=limited)
        task.__dict__["_target"] = target
    return target


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


def drive(channel: Channel, talk: Conversation, pieces: list[Buffer], until: float | None) -> Frame:
    """Move bytes until the outcome is there; TimeoutError at `until` (monotonic seconds)."""
    stream, reader = channel.socket, channel.reader
    sent = False
    try:
        send_all(stream, pieces)
        sent = True
        while True:
            while (frame := reader.next_frame()) is not None:
                reply = talk.receive(frame)
                if reply is not None:
                    send_all(stream, reply)
            if talk.outcome is not None:
                return talk.outcome
            if until is not None:
                _wait_readable(stream, until)
            count = stream.recv_into(reader.get_buffer())
            if count == 0:
                raise ChannelLost(started=True)
            reader.buffer_updated(count)
    except (ConnectionResetError, BrokenPipeError):
        # Reset: it was closed with our bytes unread. So the call had not begun, unless it has spoken already.
        raise ChannelLost(started=sent and talk.answered) from None


def send_all(stream: socket.socket, pieces: list[Buffer]) -> None:
    for piece in pieces:
        stream.sendall(piece)


def _wait_readable(stream: socket.socket, until: float) -> None:
    poller = select.poll()
    poller.register(stream, select.POLLIN)
    if not poller.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError


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


async def drive_async(channel: Channel, talk: Conversation, pieces: list[Buffer], until: float | None) -> Frame:
    """The same as `drive` on the running event loop. Nothing else may read the channel meanwhile."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Frame] = loop.create_future()
    driver = _AsyncDriver(loop, channel.socket, channel.reader, talk, done)
    driver.start(pieces)
    try:
        if until is None:
            return await done
        async with asyncio.timeout(max(0.0, until - time.monotonic())):
            return await done
    finally:
        driver.stop()


class _AsyncDriver:
    """Callbacks of one call on the event loop; they run in the context of the task that awaits."""

    __slots__ = ("_done", "_loop", "_reader", "_sent", "_stream", "_talk", "_unsent", "_writing")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stream: socket.socket,
        reader: FrameReader,
        talk: Conversation,
        done: asyncio.Future[Frame],
    ) -> None:
        self._loop = loop
        self._stream = stream
        self._reader = reader
        self._talk = talk
        self._done = done
        self._unsent: list[memoryview] = []
        self._writing = False
        self._sent = False

    def start(self, pieces: list[Buffer]) -> None:
        self._send(pieces)
        self._loop.add_reader(self._stream, self._on_readable)

    def stop(self) -> None:
        self._loop.remove_reader(self._stream)
        if self._writing:
            self._loop.remove_writer(self._stream)

    def _send(self, pieces: list[Buffer]) -> None:
        self._unsent.extend(memoryview(piece).cast("B") for piece in pieces)
        self._on_writable()

    def _on_writable(self) -> None:
        try:
            while self._unsent:
                view = self._unsent[0]
                count = self._stream.send(view, socket.MSG_DONTWAIT)
                if count == view.nbytes:
                    self._unsent.pop(0)
                else:
                    self._unsent[0] = view[count:]
            self._sent = True
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._stream, self._on_writable)
            return
        except OSError:
            self._lost()
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._stream)

    def _on_readable(self) -> None:
        try:
            count = self._stream.recv_into(self._reader.get_buffer(), 0, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._lost()
            return
        if count == 0:
            self._lost(started=True)
            return
        try:
            self._reader.buffer_updated(count)
            while (frame := self._reader.next_frame()) is not None:
                reply = self._talk.receive(frame)
                if reply is not None:
                    self._send(reply)
        except Exception as problem:
            if not self._done.done():
                self._done.set_exception(problem)
            return
        if self._talk.outcome is not None and not self._done.done():
            self._done.set_result(self._talk.outcome)

    def _lost(self, started: bool = False) -> None:
        if not self._done.done():
            self._done.set_exception(ChannelLost(started or (self._sent and self._talk.answered)))


class interruptible:
    """While a cell awaits, wake the loop now and then.

    ipykernel notices Ctrl-C only when its loop wakes up (ipykernel issue 881), and nothing may happen for minutes.
    """

    _ticking: int = 0
    _handle: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if "ipykernel" not in sys.modules or threading.current_thread() is not threading.main_thread():
            self._counted = False
            return
        self._counted = True
        cls = type(self)
        cls._ticking += 1
        if cls._handle is None:
            self._tick(asyncio.get_running_loop())

    def __exit__(self, *_: object) -> None:
        if self._counted:
            type(self)._ticking -= 1

    @classmethod
    def _tick(cls, loop: asyncio.AbstractEventLoop) -> None:
        cls._handle = loop.call_later(TICK_S, cls._tick, loop) if cls._ticking else None


def _result_unknown_here(problem: Exception) -> Exception:
    name = getattr(problem, "name", None)
    if isinstance(problem, AttributeError) and name:
        return errors.ResultNotSerializable(str(name), cause=str(problem))
    if isinstance(problem, AttributeError | ImportError):
        return errors.ResultNotSerializable("?", cause=str(problem))
    return problem
