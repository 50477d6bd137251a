"""Calls on an event loop, for `await`, `map` and executors: in line for leases, and pipelined over them.

A `Call` is one call with all its attempts. A `Pipeline` is what one loop has under way in one pool. A `Stream` is one
lease of it: while calls are short, it sends the next ones before the outcome of the first is there, so that neither
side waits for the other. A replica still runs one call of a lease at a time; should that one take long after all, those
behind it are taken back and sent elsewhere. Nothing here blocks, and all of it runs on the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from ..core.frames import OUTCOME, Buffer, Frame, Kind, join_small
from . import broker, gpu_memory, stopping
from .attempts import Attempts, Limits
from .drivers import Conversation
from .leases import Lease, LeaseGroup, Waiter, line_up
from .target import Outgoing, Target

if TYPE_CHECKING:
    from .environment import Task

AHEAD_S: Final = 0.005
"""About so much work is sent ahead on a lease; a call that takes longer is sent when its turn has come."""
AHEAD_CALLS: Final = 32
AHEAD_BYTES: Final = 64 * 1024
"""A call with more to send is not sent ahead."""
STALL_S: Final = 0.02
"""A call that runs this long gets the calls behind it taken back."""
LOOP_CHECK_S: Final = 1.0
"""How often a pipeline with leases looks whether its loop was closed."""
PACE_WEIGHT: Final = 0.3
"""How quickly the estimate of a task's duration follows what is measured."""


class Call:
    """One call of a task and all its attempts. `ended` is called once, with `value` or `error` set.

    Args:
        context: The call's own copy of its caller's context: whose output it is, and which run it belongs to.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: Target,
        task: Task[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: contextvars.Context,
    ) -> None:
        self.loop = loop
        self.target = target
        self.task = task
        self.args = args
        self.kwargs = kwargs
        self.context = context
        self.value: Any = None
        self.error: BaseException | None = None
        self.over = False
        self.number = 0
        self.end = 0  # where it ends among all bytes of its stream
        self.abandoned = False  # sent, and nobody waits for its outcome any more
        self.outgoing: Outgoing | None = None
        self.stream: Stream | None = None
        self.pipeline: Pipeline | None = None
        self.talk: Conversation | None = None
        self._attempts: Attempts | None = None
        self._limits: Limits | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- for subclasses

    def begin(self) -> bool:
        """Asked when it is about to be sent; False if nobody wants it any more."""
        return True

    def ended(self) -> None:
        """It is over: `error` is raised if there is one, else `value` returned."""
        raise NotImplementedError

    # --- what its owner does

    def start(self) -> None:
        """Put it in line. The first call of a process connects to the broker before, which may take a while."""
        if self.target.limited and self.task is not None:
            self._limits = Limits(self.task)
        if broker.current() is None:
            connecting = self.loop.run_in_executor(None, self.context.copy().run, self.target.group)
            connecting.add_done_callback(self._connected)
        else:
            self._enter()

    @property
    def priority(self) -> int:
        return self.target.priority

    @property
    def attempt(self) -> int:
        """0 for the first one."""
        return 0 if self._attempts is None else self._attempts.number

    def encode(self) -> Outgoing:
        """The call as bytes. Arguments are read now, but for big buffers, which are read when it is sent."""
        if self.outgoing is None:
            self.outgoing = self.context.run(self.target.encode, self.args, self.kwargs, self.attempt)
        return self.outgoing

    def cancel(self) -> None:
        """Nobody waits for it any more: if it has begun, it is stopped. `ended` is not called."""
        if self.over:
            return
        self._finish()
        if self.stream is not None:
            self.abandoned = True
            self.stream.abandon(self)
        elif self.pipeline is not None:
            self.pipeline.remove(self)

    # --- what the pipeline and the stream tell it

    def give_up(self, problem: Exception) -> None:
        """It is under way, and cannot go on."""
        if self.over:
            return
        self.error = problem
        self.cancel()
        self.ended()

    def sent(self, stream: Stream) -> None:
        self.stream = stream
        if self._limits is not None:
            self._arm(self._limits.while_running())

    def receive(self, frame: Frame) -> list[Buffer] | None:
        """A frame of its own that is not its outcome; what to send back, if anything."""
        if self.talk is None:
            self.talk = self.encode().talk(self.number)
        if self.abandoned and frame.kind == Kind.OUTPUT:
            return None
        return self.context.run(self.talk.receive, frame)

    def outcome(self, frame: Frame, lease: Lease) -> None:
        try:
            self.value = self.context.run(self.target.result, frame, lease)
        except BaseException as error:  # a task may well raise KeyboardInterrupt
            self.failed(error)
        else:
            self._finish()
            self.ended()

    def failed(self, error: BaseException) -> None:
        """This attempt has failed; the next one, or the end."""
        self.stream = None
        if self.over:
            return
        delay = self._tries().delay(error) if isinstance(error, Exception) else None
        if delay is not None:
            self._again(delay)
            return
        self.error = error
        self._finish()
        if gpu_memory.ran_out(error):
            asking = self.loop.run_in_executor(None, gpu_memory.name_holders, error, self.target.name)
            asking.add_done_callback(lambda _: self.ended())
        else:
            self.ended()

    def never_began(self) -> None:
        """Its replica went away before its turn came: not an attempt, it is sent elsewhere."""
        self.stream = None
        if self.over:
            return
        pause = self._tries().requeue()
        if pause is None:
            self.failed(errors.ReplicaDied(self.target.name, self.target.pool.name))
        else:
            self._again(pause)

    def taken_back(self) -> None:
        self.stream = None
        self.talk = None
        self._disarm()

    # --- private

    def _connected(self, connecting: asyncio.Future[LeaseGroup]) -> None:
        error = None if connecting.cancelled() else connecting.exception()
        if self.over or connecting.cancelled():
            return
        if error is not None:
            self.failed(error)
        else:
            self._enter()

    def _enter(self) -> None:
        if self.over:
            return
        if self._limits is not None and self._limits.over():
            self.failed(self._limits.exceeded(False))
            return
        try:
            group = self.context.run(self.target.group)
        except Exception as error:
            self.failed(error)
            return
        if self._limits is not None:
            self._arm(self._limits.while_queued())
        self.pipeline = pipeline_of(group, self.loop)
        self.pipeline.add(self)

    def _again(self, delay: float) -> None:
        self._disarm()
        self.outgoing = None
        self.talk = None
        self.pipeline = None
        self._timer = self.loop.call_later(self._limits.pause(delay) if self._limits else delay, self._enter)

    def _tries(self) -> Attempts:
        if self._attempts is None:
            self._attempts = Attempts(self.task)
        return self._attempts

    def _arm(self, until: float | None) -> None:
        self._disarm()
        if until is not None:
            self._timer = self.loop.call_later(max(0.0, until - time.monotonic()), self._expired)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        assert self._limits is not None
        if self.stream is not None:
            self.stream.expire(self, self._limits)
        elif self.pipeline is not None:
            self.pipeline.remove(self)
            self.failed(self._limits.exceeded(False))

    def _finish(self) -> None:
        self.over = True
        self._disarm()


class AwaitedCall(Call):
    """A call that a coroutine awaits: `await call.future`, which says only that it is over."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: Target,
        task: Task[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        super().__init__(loop, target, task, args, kwargs, contextvars.copy_context())
        self.future: asyncio.Future[None] = loop.create_future()

    def ended(self) -> None:
        # Not the error itself: StopIteration could not be one, and asyncio reports what nobody retrieves.
        if not self.future.done():
            self.future.set_result(None)


def ahead(target: Target) -> int:
    """How many calls of it may be under way on one lease."""
    if target.pace is None or target.limited or target.pace * 2 > AHEAD_S:
        return 1
    return min(AHEAD_CALLS, int(AHEAD_S / target.pace))


def pipeline_of(group: LeaseGroup, loop: asyncio.AbstractEventLoop) -> Pipeline:
    pipeline = group.pipelines.get(loop)
    if pipeline is None:
        for each in [each for each in group.pipelines if each.is_closed()]:
            del group.pipelines[each]
        pipeline = group.pipelines[loop] = Pipeline(group, loop)
    return pipeline


class Pipeline:
    """The calls of one event loop that wait for a lease of one group, and the leases that it has."""

    def __init__(self, group: LeaseGroup, loop: asyncio.AbstractEventLoop) -> None:
        self.group = group
        self.loop = loop
        self.waiting: deque[Call] = deque()
        self._streams: list[Stream] = []
        self._waiters: dict[Waiter, None] = {}
        self._full = False  # nothing can be sent until something has ended
        self._watched = False

    def add(self, call: Call) -> None:
        line_up(self.waiting, call)
        if not self._full:
            self.pump()
        elif len(self._waiters) < self._wanted():
            self._ask()

    def remove(self, call: Call) -> None:
        with suppress(ValueError):
            self.waiting.remove(call)
            self._ask()

    def put_back(self, calls: list[Call]) -> None:
        """They have been sent, and will not begin there: first in line again."""
        self.waiting.extendleft(reversed(calls))
        self._full = False

    def pump(self) -> None:
        """Send whatever can be sent, and ask for leases for the rest."""
        for stream in self._streams:
            if stream.idle and self.waiting:
                stream.fill(1)
        while self.waiting:
            lease = self.group.take()
            if lease is None:
                break
            self._open(lease)
        if self.waiting and self._streams:
            share = -(-len(self.waiting) // len(self._streams))
            for stream in sorted(self._streams, key=Stream.__len__):
                stream.fill(share)
        self._full = bool(self.waiting)
        self._ask()

    def closed(self, stream: Stream) -> None:
        self._streams.remove(stream)
        self._full = False

    # --- private

    def _open(self, lease: Lease) -> None:
        while self.waiting and not self.waiting[0].begin():
            self.waiting.popleft()
        if not self.waiting:
            self.group.give_back(lease)
            return
        try:
            self.waiting[0].context.run(lease.channel)
        except OSError:  # its replica has just gone
            self.group.drop(lease)
            self.waiting.popleft().never_began()
            return
        stream = Stream(self, lease)
        self._streams.append(stream)
        self._watch()
        stream.fill(1)
        stream.rest()

    def _wanted(self) -> int:
        """How many requests to have in the queue: more than the pool has slots would only be work for the broker."""
        if not self.waiting:
            return 0
        return min(len(self.waiting), self.waiting[0].target.pool.scaling.slots)

    def _ask(self) -> None:
        wanted = self._wanted()
        while len(self._waiters) > wanted:
            waiter, _ = self._waiters.popitem()
            waiter.withdraw()
        for call in list(islice(self.waiting, len(self._waiters), wanted)):
            waiter = call.context.run(self.group.ask, call.target.shown, self, call.priority)
            self._waiters[waiter] = None
            waiter.future.add_done_callback(partial(self._answered, waiter))
            self._watch()

    def _answered(self, waiter: Waiter, future: Future[Lease]) -> None:
        """On any thread, with the group's lock held."""
        try:
            self.loop.call_soon_threadsafe(self._granted, waiter)
        except RuntimeError:  # the loop was closed meanwhile
            if not future.cancelled() and future.exception() is None:
                self.group.connection.call_later(0, partial(self.group.give_back, future.result()))

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            self.group.connection.call_later(LOOP_CHECK_S, self._look_at_loop)

    def _look_at_loop(self) -> None:
        """On the connection's thread: a loop that was closed with calls under way takes nobody's slot for ever."""
        if self.loop.is_closed():
            for call in list(self.waiting):
                call.cancel()
            for stream in list(self._streams):
                stream.orphaned()
            return
        self._watched = False
        if self._streams or self._waiters:
            self._watch()

    def _granted(self, waiter: Waiter) -> None:
        future = waiter.future
        if future.cancelled():
            return  # withdrawn
        withdrawn = self._waiters.pop(waiter, _GONE) is _GONE
        error = future.exception()
        if error is None:
            if withdrawn:
                return  # `withdraw` has given it back
            self._open(future.result())
        elif not withdrawn:
            for call in self.waiting:
                if call.target.shown == waiter.task:
                    self.waiting.remove(call)
                    call.failed(error)
                    break
        self._full = False
        self.pump()


_GONE: Final = object()


class Stream:
    """One lease in use by a pipeline: the calls sent over its connection, of which the first one runs."""

    def __init__(self, pipeline: Pipeline, lease: Lease) -> None:
        self.lease = lease
        self._pipeline = pipeline
        self._loop = pipeline.loop
        self._channel = lease.channel()
        self._calls: deque[Call] = deque()
        self._unsent: list[Buffer] = []
        self._queued = 0  # bytes, sent or not
        self._sent = 0
        self._writing = False
        self._cut = False  # nothing can be written any more; what came before is still to be read
        self._closed = False
        self._resting = False
        self._taking_back = False
        self._moved_at = 0.0  # when the first call's turn came
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._channel.socket, self._on_readable)

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def idle(self) -> bool:
        """It has no call, and is about to give its lease back."""
        return not self._calls

    # --- out

    def fill(self, count: int = AHEAD_CALLS) -> None:
        """Send as many of the waiting calls as may be under way here, at most `count`."""
        if self._closed or self._cut or self._taking_back or self.lease.recalled:
            return
        if self._calls and time.monotonic() - self._moved_at >= STALL_S:
            return  # behind one that takes long they would only be taken back again
        waiting = self._pipeline.waiting
        room = ahead(waiting[0].target) if waiting else 0
        if room > 1 and self._pipeline.group.contended(self._pipeline):
            room = 1
        pieces: list[Buffer] = []
        room = min(room, len(self._calls) + count)
        while waiting and len(self._calls) < room:
            call = waiting[0]
            if not call.begin():
                waiting.popleft()
                continue
            try:
                outgoing = call.encode()
                if self._calls and (call.target is not self._calls[-1].target or outgoing.nbytes > AHEAD_BYTES):
                    break
                waiting.popleft()
                call.number, more = call.context.run(outgoing.on, self._channel)
            except Exception as error:
                if waiting and waiting[0] is call:
                    waiting.popleft()
                call.failed(error)
                continue
            if not self._calls:
                self._moved_at = time.monotonic()
            self._calls.append(call)
            call.sent(self)
            pieces += more
            call.end = self._queued = self._queued + sum(memoryview(piece).nbytes for piece in more)
        if pieces:
            self._write(pieces)
        if len(self._calls) > 1 and self._timer is None:
            self._timer = self._loop.call_later(STALL_S, self._look)

    def _write(self, pieces: list[Buffer]) -> None:
        self._unsent += join_small(pieces) if len(pieces) > 1 else pieces
        if not self._cut:
            self._on_writable()

    def _on_writable(self) -> None:
        try:
            while self._unsent:
                piece = self._unsent[0]
                count = self._channel.socket.send(piece, socket.MSG_DONTWAIT)
                self._sent += count
                if count == memoryview(piece).nbytes:
                    self._unsent.pop(0)
                else:
                    self._unsent[0] = memoryview(piece).cast("B")[count:]
        except (BlockingIOError, InterruptedError):
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._channel.socket, self._on_writable)
            return
        except OSError:
            self._cut = True  # the reader will see it, too, after the outcomes that have come
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._channel.socket)

    # --- in

    def _on_readable(self) -> None:
        reader = self._channel.reader
        try:
            count = self._channel.socket.recv_into(reader.get_buffer(), 0, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._lost(True)
            return
        if count == 0:
            self._lost(False)
            return
        ended = 0
        first = self._calls[0].target if self._calls else None
        since, now = self._moved_at, time.monotonic()
        try:
            reader.buffer_updated(count)
            while not self._closed and (frame := reader.next_frame()) is not None:
                if frame.kind == OUTCOME and self._calls and frame.call == self._calls[0].number:
                    call = self._calls.popleft()
                    ended += 1
                    if not call.abandoned:
                        call.stream = None
                        call.outcome(frame, self.lease)
                else:
                    self._other(frame)
        except errors.ProtocolError as problem:
            self._broken(problem)
            return
        if ended:
            if first is not None:
                each = (now - since) / ended
                first.pace = each if first.pace is None else first.pace + PACE_WEIGHT * (each - first.pace)
            self._moved_at = max(now, self._moved_at)
            if self._closed:
                return
            if not self._pipeline.group.contended(self._pipeline):
                self.fill()
            self.rest()

    def _other(self, frame: Frame) -> None:
        if frame.kind == Kind.WITHDRAWN:
            self._taken_back(frame.call, frame.flags)
            return
        for call in self._calls:
            if call.number == frame.call:
                try:
                    reply = call.receive(frame)
                except Exception as problem:  # it cannot be shown, or its code cannot be sent
                    call.give_up(problem)
                    return
                if reply is not None:
                    self._queued += sum(memoryview(piece).nbytes for piece in reply)
                    self._write(reply)
                return

    # --- calls that take longer than thought

    def _look(self) -> None:
        self._timer = None
        if self._closed or len(self._calls) < 2:
            return
        running = time.monotonic() - self._moved_at
        if running >= STALL_S:
            target = self._calls[0].target
            target.pace = max(target.pace or 0.0, running)
            self._take_back()
        self._timer = self._loop.call_later(STALL_S, self._look)

    def _take_back(self) -> None:
        if not self._taking_back:
            self._taking_back = True
            self.lease.withdraw(self._calls[0].number + 1, self._calls[-1].number)

    def _taken_back(self, first: int, count: int) -> None:
        # Only those: a late answer to a stream before this one must not touch what was sent since.
        self._taking_back = False
        back = [call for call in self._calls if first <= call.number < first + count]
        if back and back[0] is self._calls[0]:
            self._moved_at = time.monotonic()
        for call in back:
            self._calls.remove(call)
            call.taken_back()
        self._pipeline.put_back([call for call in back if not call.abandoned])
        if not self._see_off():
            self.rest()
        self._pipeline.pump()

    # --- the end

    def rest(self) -> None:
        """If nothing is under way: give the lease back, unless the next call comes before the loop's next turn."""
        if not self._calls and not self._resting and not self._closed:
            self._resting = True
            self._loop.call_soon(self._rested)

    def _rested(self) -> None:
        self._resting = False
        if self._closed or self._calls:
            return
        contended = self._pipeline.group.contended(self._pipeline)
        if self._pipeline.waiting and not contended:
            self.fill()
        if not self._calls:
            self._leave()
            self._pipeline.group.give_back(self.lease)
            if self._pipeline.waiting:
                self._pipeline.pump()

    def orphaned(self) -> None:
        """Its loop was closed: nobody will hear of its calls."""
        if not self._calls:
            self._leave()
            self._pipeline.group.give_back(self.lease)
        for call in list(self._calls):
            call.cancel()

    def abandon(self, call: Call) -> None:
        """Stop that call. Its outcome is waited for, so that the slot is known to be free."""
        if self._closed:
            return
        self.lease.cancel(call.number)
        if not self._see_off() and call is self._calls[0]:
            self._take_back()

    def expire(self, call: Call, limits: Limits) -> None:
        """Its time is up. It is alone here: calls with limits are not sent ahead."""
        self._leave()
        if self._unsent:  # half a call: it has not begun
            self._pipeline.group.drop(self.lease)
            call.failed(limits.exceeded(True))
            return
        talk = call.talk or call.encode().talk(call.number)
        stopped = self._loop.run_in_executor(None, stopping.stop_late, call.target, self.lease, self._channel, talk)

        def failed(stopped: asyncio.Future[str]) -> None:
            self._pipeline.group.drop(self.lease)
            unsaid = stopped.cancelled() or stopped.exception() is not None
            call.failed(limits.exceeded(True, *([] if unsaid else [stopped.result()])))

        stopped.add_done_callback(failed)

    def _see_off(self) -> bool:
        """When nobody waits for any call here, a thread does: the loop may be about to end."""
        if not self._calls or not all(call.abandoned for call in self._calls):
            return False
        self._leave()
        calls = list(self._calls)
        self._calls.clear()
        if self._unsent:  # half a call; what follows it would not be understood
            self._pipeline.group.drop(self.lease)
        else:
            talks = [call.talk or call.encode().talk(call.number) for call in calls]
            stopping.see_off(calls[0].target, self.lease, self._channel, *talks)
        return True

    def _lost(self, reset: bool) -> None:
        if self._closed:
            return
        self._leave()
        calls = list(self._calls)
        self._calls.clear()
        explained = False
        if calls:
            head = calls.pop(0)
            answered = head.talk is not None and head.talk.answered
            # Reset: it was closed with bytes unread. If nothing else was sent, those are of a call that had not begun.
            unread = reset and self._sent <= head.end
            began = answered or (self._sent >= head.end and not unread)
            if head.abandoned:
                pass
            elif began:
                explained = True
                self._explain(head)
            else:
                head.never_began()
            for call in calls:
                if not call.abandoned:
                    call.never_began()
        if not explained:
            self._pipeline.group.drop(self.lease)
        self._pipeline.pump()

    def _explain(self, call: Call) -> None:
        """What the broker says about it, which comes a moment later; the lease is kept until then."""

        def explained(why: asyncio.Future[Any]) -> None:
            self._pipeline.group.drop(self.lease)
            if not why.cancelled():
                call.failed(call.target.lost(self.lease, why.result(), call.attempt))

        self._loop.run_in_executor(None, self.lease.why_lost).add_done_callback(explained)

    def _broken(self, problem: Exception) -> None:
        self._leave()
        calls = list(self._calls)
        self._calls.clear()
        self._pipeline.group.drop(self.lease)
        for call in calls:  # all of them: which ones have begun will never be known
            if not call.abandoned:
                call.failed(problem)
        self._pipeline.pump()

    def _leave(self) -> None:
        """Let go of the connection; the lease is somebody else's matter from here."""
        self._closed = True
        self._loop.remove_reader(self._channel.socket)
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._channel.socket)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pipeline.closed(self)
