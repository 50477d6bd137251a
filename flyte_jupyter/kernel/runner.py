"""One task in one slot: load its arguments, call it, send its outcome; and stop it when asked.

An async task runs on the replica's one event loop. A sync task runs on the main thread **between** two runs of that
loop: signals reach it, `asyncio.run()` inside it works, CUDA and matplotlib see the main thread.

A cancel is fenced. It comes in on the control thread and names a call; an interrupt raises only where the context
variable `current` names that call, so it can hit neither the call before nor the call after it. Each cancel raises one
interrupt, and once it is raised the call's client is told: code that handles it may take all the time that it needs.
"""

from __future__ import annotations

import _signal
import asyncio
import contextvars
import functools
import inspect
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from ..core import failure, payload
from ..core.context import Action, GroupData, TaskContext, current
from ..core.frames import OK, OUTCOME, Buffer, FileTicket, Status, encode
from ..memory import LEND_BYTES
from . import cells
from .cells import Begun, Finished
from .interrupts import may_raise_in
from .outputs import OutputSink, Router, show_open_figures
from .surroundings import Surroundings

if TYPE_CHECKING:
    from .calls import CallChannel
    from .recorder import Span

set_handler: Final = _signal.signal
"""The bare function: the one in `signal` turns numbers into enums and back, for 2 us, twice a call."""
TURN_S: Final = 0.002
"""How long short sync tasks may follow one another before the event loop has its turn."""
STUCK_LOOP_S: Final = 0.25
"""A cancelled async task that has not noticed after this long may block the loop: then it is interrupted too."""
AGAIN_S: Final = 0.001
"""An interrupt that must not be raised where the main thread is comes again after this long."""


class RunningCall:
    """A call between its arrival and its outcome."""

    __slots__ = (
        "arguments",
        "asked",
        "began",
        "cancels",
        "channel",
        "context",
        "digests",
        "ended",
        "function",
        "name",
        "number",
        "raised",
        "recorded",
        "sink",
        "span",
        "status",
        "task",
    )

    def __init__(
        self,
        channel: CallChannel,
        number: int,
        name: str,
        function: Callable[..., Any],
        arguments: list[Buffer],
        context: TaskContext,
        sink: OutputSink,
        recorded: bool,
        digests: tuple[str, ...],
    ) -> None:
        self.channel = channel
        self.number = number
        self.name = name
        self.function = function
        self.arguments = arguments
        self.context = context
        self.sink = sink
        self.cancels = 0  # that have come for it
        self.raised = 0  # how many of them it has met as an interrupt
        self.ended = False
        self.task: asyncio.Task[None] | None = None
        self.recorded = recorded
        self.digests = digests  # of the closures that it uses
        self.asked: dict[str, Mapping[str, Any]] = {}  # names that it has looked for, and where they are
        self.began = 0.0  # stays so where nobody is told of it
        self.span: Span | None = None  # once it is known to take long
        self.status = OK


class Runner:
    """The life of the main thread, which runs calls. Everything here but `cancel` is called there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, router: Router, surroundings: Surroundings) -> None:
        self.loop = loop
        self.router = router
        self.surroundings = surroundings
        self.exiting = False
        self.now = 0.0  # when a call ended last
        self._sync: deque[Callable[[], None]] = deque()
        self._targets: set[RunningCall] = set()  # of the interrupts that are on their way
        self._main = threading.main_thread().ident or 0
        self.base = contextvars.copy_context()
        """The context of preloads. Each call begins with a copy of it."""

    def run(self) -> None:
        """The main thread's life: the loop, and between its runs the sync tasks."""
        while True:
            try:
                self.loop.run_forever()
            except KeyboardInterrupt:
                continue  # it was raised in a step of a task, which has recorded it
            if self._sync:
                self.now = time.monotonic()
                until = self.now + TURN_S
                while self._sync and self.now < until:
                    self._sync.popleft()()
                if self._sync:
                    self.loop.call_soon(self.loop.stop)
            elif self.exiting:
                return

    def between_loops(self, work: Callable[[], None]) -> None:
        """Run `work` on the main thread while the loop stands still."""

        def timed() -> None:
            work()
            self.now = time.monotonic()

        self._sync.append(timed)
        self.loop.stop()

    def exit(self) -> None:
        self.exiting = True
        self.loop.stop()

    # --- calls

    def start(self, call: RunningCall) -> None:
        self.router.settle()  # what was written before it is not this call's
        self.router.running[id(call)] = call.context
        if _is_async(call.function):
            self._start_task(call, self.base.copy())
        else:
            self._sync.append(lambda: self._run_sync(call))
            self.loop.stop()

    def _start_task(self, call: RunningCall, context: contextvars.Context, begun: Begun | None = None) -> None:
        call.task = self.loop.create_task(self._run_async(call, begun), context=context)
        call.task.add_done_callback(lambda task: self._make_sure(call, task))
        if begun is not None:
            call.task.add_done_callback(lambda _: begun.rest.close())
        if call.cancels > call.raised:  # before there was a task that could be cancelled
            self._cancel_task(call, call.cancels)

    def _run_sync(self, call: RunningCall) -> None:
        if not call.channel.begin(call):
            self._finish(call, [])
            return
        previous = set_handler(signal.SIGINT, self._on_interrupt)
        context = self.base.copy()
        surroundings = self.surroundings
        beside = surroundings.begin_beside() if surroundings.tasks else None
        if not surroundings.known:
            surroundings.note()
        try:
            reply = context.run(self._invoke, call)
        except KeyboardInterrupt:  # a second one, while the first was being reported
            reply = _cancelled(call)
        finally:
            set_handler(signal.SIGINT, previous)
            # asyncio.run() inside a task leaves the thread without a current loop.
            asyncio.set_event_loop(self.loop)
        if isinstance(reply, Begun):
            self.now = time.monotonic()
            self._start_task(call, context, reply)
        else:
            self._finish(call, reply)
        if beside is None:  # while its client reads already; no other call begins before this returns
            surroundings.put_back()
        else:
            surroundings.end_beside(beside)

    def _invoke(self, call: RunningCall) -> list[Buffer] | Begun:
        try:
            current.set(call.context)
            if call.cancels:
                return _cancelled(call)
            args, kwargs = self._load(call)
            value = call.function(*args, **kwargs)
            if isinstance(value, Begun):
                return value
            show_open_figures()
            return self._dump(call, value)
        except BaseException as error:
            return self._failed(call, error)
        finally:
            # From here on an interrupt for this call is late, and ignored.
            current.set(None)

    async def _run_async(self, call: RunningCall, begun: Begun | None = None) -> None:
        if begun is None and not call.channel.begin(call):
            self._finish(call, [])
            return
        current.set(call.context)
        set_handler(signal.SIGINT, self._on_interrupt)
        surroundings = self.surroundings
        if not surroundings.tasks and not surroundings.known:
            surroundings.note()
        surroundings.tasks += 1
        try:
            try:
                if begun is None:
                    args, kwargs = self._load(call)
                    value = await call.function(*args, **kwargs)
                else:
                    value = await begun.rest
                show_open_figures()
                reply = self._dump(call, value)
            except BaseException as error:
                reply = self._failed(call, error)
            current.set(None)
            self._finish(call, reply)
        finally:
            surroundings.tasks -= 1
            if not surroundings.tasks:
                surroundings.put_back()

    def _make_sure(self, call: RunningCall, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()  # seen
        if not call.ended:  # cancelled before its first step, or interrupted while it reported an error
            self._finish(call, self._failed(call, asyncio.CancelledError()))

    def _load(self, call: RunningCall) -> tuple[tuple[Any, ...], dict[str, Any]]:
        data, *buffers = call.arguments
        call.arguments = []  # so that the task alone decides how long its arguments live
        call.channel.enter()
        args, kwargs, *meta = payload.load(data, buffers)
        if meta:
            self._take_along(call, meta[0])
        return args, kwargs

    def _take_along(self, call: RunningCall, meta: dict[str, Any]) -> None:
        """Note what the caller said about its run; see `client.calling.call_meta`."""
        known = call.context
        call.context = replace(
            known,
            action=Action(known.action.name, meta.get("run", known.action.run_name)),
            group_data=GroupData(meta["group"]) if "group" in meta else None,
            custom_context=meta.get("custom_context", {}),
        )
        current.set(call.context)
        self.router.running[id(call)] = call.context
        if call.cancels > call.raised and call.task is None:  # an interrupt between the two lines above knew no call
            self._note_raised(call)
            raise KeyboardInterrupt

    def _dump(self, call: RunningCall, value: object) -> list[Buffer]:
        if value is None:
            return encode(OUTCOME, call.number, _NONE, flags=OK)
        try:
            pickled = value.dump() if isinstance(value, Finished) else payload.dump_result(value)
        except errors.ResultNotSerializable:
            raise
        except Exception as error:
            path, part = payload.find_unpicklable(value, "result")
            raise errors.ResultNotSerializable.for_value(
                path=path, type_name=type(part).__qualname__, problem=f"{type(error).__name__}: {error}"
            ) from None
        files = call.channel.hello.files
        if files is None or (not pickled.buffers and len(pickled.data) < LEND_BYTES):
            return encode(OUTCOME, call.number, pickled.data, pickled.buffers, flags=OK)
        data, *buffers = files.lend((pickled.data, *pickled.buffers))
        if isinstance(data, FileTicket):  # only buffers can be files
            return encode(OUTCOME, call.number, b"", (data, *buffers), flags=OK)
        return encode(OUTCOME, call.number, data, buffers, flags=OK)

    def _failed(self, call: RunningCall, error: BaseException) -> list[Buffer]:
        # Code may raise either by itself: a library that cancels what it has started, a task that is told to stop.
        if call.cancels and isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            return _cancelled(call)
        call.status = Status.ERROR
        return encode(OUTCOME, call.number, dump_failure(error), flags=Status.ERROR)

    def _finish(self, call: RunningCall, reply: list[Buffer]) -> None:
        self.router.settle()
        rest = call.sink.close()
        call.ended = True
        self._targets.discard(call)
        self.router.running.pop(id(call), None)
        self.now = time.monotonic()
        call.channel.finished(call, [*rest, *reply], self.now)

    # --- cancel

    def cancel(self, call: RunningCall) -> None:
        """Interrupt it, once more if it has gone on after an earlier one. On the control thread, mostly."""
        if call.ended:
            return
        call.cancels += 1
        if call.task is None:
            self.interrupt(call)
            return
        self.loop.call_soon_threadsafe(self._cancel_task, call, call.cancels)
        call.channel.replica.later(STUCK_LOOP_S, functools.partial(self._interrupt_stuck, call, call.cancels))

    def _cancel_task(self, call: RunningCall, number: int) -> None:
        # While it blocked the loop, a signal may have been faster.
        if call.raised < number and call.task is not None and call.task.cancel():
            # Told at once: the coroutine has its turn next, and may block the loop for as long as it cleans up.
            self._note_raised(call)

    def _interrupt_stuck(self, call: RunningCall, number: int) -> None:
        if call.raised < number:
            self.interrupt(call)

    def interrupt(self, call: RunningCall) -> None:
        """Raise what it has not met yet, if the main thread is in it. On any thread."""
        if call.raised < call.cancels and not call.ended:
            self._targets.add(call)
            signal.pthread_kill(self._main, signal.SIGINT)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        context = current.get()
        for call in list(self._targets):
            if call.context is context:
                self._targets.discard(call)
                if not may_raise_in(frame):
                    call.channel.postponed = call
                    call.channel.replica.later(AGAIN_S, functools.partial(self.interrupt, call))
                    return
                self._note_raised(call)
                raise KeyboardInterrupt
        # It was meant for a call that has just ended, or came from outside: not for what runs now.

    def _note_raised(self, call: RunningCall) -> None:
        """Its client hears of it from the control thread: this one may hold a lock, or be busy for long."""
        call.raised = call.cancels
        call.channel.replica.later(0, functools.partial(call.channel.tell_interrupted, call))


def _is_async(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    if code is not None and not function.__dict__:  # a plain function, as most are: `inspect` takes 2 us to find that
        return bool(code.co_flags & inspect.CO_COROUTINE)
    return inspect.iscoroutinefunction(function)


_NONE: Final = payload.dump_result(None).data


def _cancelled(call: RunningCall) -> list[Buffer]:
    call.status = Status.CANCELLED
    return encode(OUTCOME, call.number, flags=Status.CANCELLED)


def dump_failure(error: BaseException) -> bytes:
    """An exception as it travels; whatever it is, something readable arrives."""
    import pickle

    try:
        return pickle.dumps(failure.describe(error, skip_file=(__file__, cells.__file__)), 5)
    except Exception as problem:
        text = f"{type(error).__name__}: {failure.text_of(error)}\n(describing it failed: {problem!r})"
        return pickle.dumps(failure.Failure("builtins", type(error).__name__, failure.text_of(error), text, []), 5)


def make_context(
    number: int,
    name: str,
    channel: CallChannel,
    attempt: int,
    sink: OutputSink,
    main: ModuleType,
    want: Callable[[TaskContext, str], Mapping[str, Any]],
) -> TaskContext:
    """The context that `flyte_jupyter.ctx()` shows inside the call."""
    return TaskContext(
        action=Action(f"{name}-{number}", channel.hello.run),
        attempt_number=attempt,
        replica=channel.hello.replica,
        lease=channel.hello.lease,
        task=name,
        notebook=channel.hello.notebook,
        process=channel.hello.process,
        main=main,
        sink=sink,
        want=want,
    )


def enter(folder: str, arguments: list[str]) -> None:
    """A task starts in its caller's folder and with its `sys.argv`: `open("data.csv")` and `argparse` work as there."""
    try:
        same = sys.argv == arguments
    except Exception:  # it was deleted, or holds what cannot be compared
        same = False
    if not same:
        sys.argv = arguments.copy()
    try:
        if folder and os.getcwd() != folder:
            os.chdir(folder)
    except OSError as problem:  # the folder was removed; the task may not need it
        print(f"flyte_jupyter: {folder}: {problem}", file=sys.__stderr__)
