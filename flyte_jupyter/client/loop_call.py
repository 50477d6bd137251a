"""One call that is made on an event loop, with all its attempts."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from .. import errors
from ..core.call import Call, State
from ..core.call_events import CANCELLED, TICK, Cancelled, Command, Commands, Do, Event, Failed, Raise, Refused
from ..core.frames import Frame
from . import broker, gpu_memory
from .lease import Lease
from .leases import LeaseGroup, Waiter
from .target import Outgoing, Target

_NEVER: Final = float("inf")
_GIVE_BACK: Final = Do.GIVE_BACK
_RETURN: Final = Do.RETURN


class LoopLine(Protocol):
    """The calls of one loop in one group of leases."""

    group: LeaseGroup
    lock: threading.RLock
    stands_still: bool

    def add(self, call: CallOnLoop) -> None: ...
    def granted(self, call: CallOnLoop, lease: Lease) -> bool: ...
    def pump(self) -> None: ...


class Road(Protocol):
    """The connection that a call was sent on."""

    lease: Lease

    def carry_out(self, call: CallOnLoop, command: Command, frame: Frame | None) -> None: ...
    def is_behind(self, call: CallOnLoop) -> bool: ...
    def was_abandoned(self, call: CallOnLoop) -> None: ...


class CallOnLoop(Waiter):
    """One call and all its attempts. `ended` is called once, with `value` or `error` set.

    Args:
        context: The call's own copy of its caller's context: whose output it is, and which run it belongs to.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: contextvars.Context,
    ) -> None:
        super().__init__(target.shown, target.priority)
        self.loop = loop
        self.target = target
        self.args = args
        self.kwargs = kwargs
        self.context = context
        self.value: Any = None
        self.error: BaseException | None = None
        self.over = False
        self.life = Call(target.request, now=time.monotonic())
        self.number = 0
        self.end = 0  # where it ends among all bytes of its stream
        self.outgoing: Outgoing | None = None
        self.owner: LoopLine | None = None
        self.stream: Road | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- for subclasses

    def begin(self) -> bool:
        """Whether somebody still wants it; asked when it is about to be sent."""
        return True

    def ended(self) -> None:
        """It is over: `error` is raised if there is one, else `value` returned. On the loop."""
        raise NotImplementedError

    def loop_line(self, group: LeaseGroup) -> LoopLine:
        """The line of its loop for leases of this group."""
        raise NotImplementedError

    # --- for its owner, on the loop

    def start(self) -> None:
        """Put it in line."""
        self.carry_out(self.life.start(now=time.monotonic()))

    def encode(self) -> Outgoing:
        """The call as bytes. Arguments are read now, but for big buffers, which are read when it is sent."""
        if self.outgoing is None:
            self.outgoing = self.context.run(self.target.encode, self.args, self.kwargs, self.life.attempt)
        return self.outgoing

    def cancel(self) -> None:
        """Nobody waits for it any more: if it has begun, it is stopped. `ended` is not called."""
        if self.over:
            return
        self.over = True
        pipeline = self.owner
        if pipeline is not None:
            with pipeline.lock:
                self.handle(Cancelled(behind=self.stream is not None and self.stream.is_behind(self)))
                if self.stream is not None:
                    self.stream.was_abandoned(self)
        else:
            self.handle(CANCELLED)

    # --- in line; the group's lock is held

    def grant(self, lease: Lease) -> bool:
        if self.over:
            return False
        assert self.owner is not None
        return self.owner.granted(self, lease)

    def refuse(self, error: errors.BaseRuntimeError) -> None:
        on_loop(self.loop, functools.partial(self._refused, error))

    def leave(self) -> Lease | None:
        return None  # a lease on its way is given back when it arrives

    @property
    def can_start(self) -> bool:
        assert self.owner is not None
        return not self.owner.stands_still

    # --- events and commands; the pipeline's lock is held

    def handle(self, event: Event) -> None:
        """Tell its machine, and do what follows."""
        self.carry_out(self.life.handle(event, now=time.monotonic()))

    def carry_out(self, commands: Commands, frame: Frame | None = None) -> None:
        for command in commands:
            if command is _GIVE_BACK:
                continue  # its stream sees to the lease when all of its calls are over
            if command is _RETURN:
                assert frame is not None
                assert self.stream is not None
                self._return(frame, self.stream.lease)
            elif type(command) is Raise:
                self._raise(command.error)
            elif command is Do.ASK or command is Do.ASK_FIRST:
                self._ask(first=command is Do.ASK_FIRST)
            elif command is Do.WITHDRAW:
                if self.owner is not None:
                    self.owner.group.withdraw(self)
            elif self.stream is not None:
                self.stream.carry_out(self, command, frame)
        if self._timer is not None or self.life.next_deadline() != _NEVER:
            self.arm()

    def _refused(self, error: errors.BaseRuntimeError) -> None:
        assert self.owner is not None
        with self.owner.lock:
            self.handle(Refused(error))
            self.owner.pump()

    def _ask(self, *, first: bool) -> None:
        if self.over:
            return
        self.stream = None
        if first:
            return  # the stream that had it puts it back, with all others, in order
        if self.life.attempt:
            self.outgoing = None
        if broker.current() is None or self.loop in _connecting:  # which may take a while, if a broker is started
            waiting = _connecting.setdefault(self.loop, [])
            waiting.append(self)
            if len(waiting) == 1:
                connecting = self.loop.run_in_executor(None, self.context.copy().run, self.target.group)
                connecting.add_done_callback(functools.partial(_connected, self.loop))
        else:
            self._line_up()

    def connected(self, error: BaseException | None) -> None:
        """There is a broker now, or there is none for that reason."""
        if self.over:
            return
        if isinstance(error, Exception):
            self.handle(Refused(error))
        else:
            self._line_up()

    def _line_up(self) -> None:
        if self.life.state is not State.WAITING:
            return  # its time was up
        try:
            group = self.context.run(self.target.group)
        except Exception as error:
            self.handle(Refused(error))
            return
        self.owner = self.loop_line(group)
        self.owner.add(self)

    def _return(self, frame: Frame, lease: Lease) -> None:
        self.stream = None
        if self.over:
            return
        try:
            self.value = self.context.run(self.target.result, frame, lease)
        except BaseException as error:  # a task may well raise KeyboardInterrupt
            self.outgoing = None
            self.handle(Failed(error))
        else:
            self._finish()

    def _raise(self, error: BaseException) -> None:
        if self.over:
            return
        self.error = error
        if gpu_memory.ran_out(error):
            self.over = True
            on_loop(self.loop, functools.partial(self._name_holders, error))
        else:
            self._finish()

    def _name_holders(self, error: BaseException) -> None:
        asking = self.loop.run_in_executor(None, gpu_memory.name_holders, error, self.target.name)
        asking.add_done_callback(lambda _: self.ended())

    def _finish(self) -> None:
        self.over = True
        on_loop(self.loop, self.ended)

    def arm(self) -> None:
        """Have a Tick when the machine wants one. A thread that drives the stream looks at the clock itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        until = self.life.next_deadline()
        if until != _NEVER and not self.life.is_over:
            on_loop(self.loop, functools.partial(self._set_timer, until))

    def _set_timer(self, until: float) -> None:
        if self._timer is None and self.life.next_deadline() == until:
            self._timer = self.loop.call_later(max(0.0, until - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        pipeline = self.owner
        if pipeline is not None:
            with pipeline.lock:
                self.handle(TICK)
        else:
            self.handle(TICK)


def on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Call it on the loop's thread: now, if this is it."""
    if asyncio._get_running_loop() is loop:
        function()
    else:
        with suppress(RuntimeError):  # the loop was closed: nobody waits there
            loop.call_soon_threadsafe(function)


_connecting: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[CallOnLoop]]] = weakref.WeakKeyDictionary()
"""The calls of each loop that wait for the broker, in order."""


def _connected(loop: asyncio.AbstractEventLoop, connecting: asyncio.Future[LeaseGroup]) -> None:
    error = asyncio.CancelledError() if connecting.cancelled() else connecting.exception()
    for call in _connecting.pop(loop, []):
        call.connected(error)
