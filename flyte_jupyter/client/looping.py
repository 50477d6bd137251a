"""Makes calls on an event loop, for `await`, `map` and executors: in line for leases, and sent ahead over them.

A `LoopCall` is one call with all its attempts. A `Pipeline` is what one loop has under way in one pool; a `Stream` is
one lease of it.

Nothing here blocks, and all of it runs on the loop, unless the loop stands still: while its thread makes a blocking
call, or when user code does not return to it and others wait for its slots. Then a thread drives what is under way, and
the outcomes wait for the loop. Therefore each pipeline has a lock.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, Final

from ..core.call_events import Broken
from .lease import Lease
from .leases import LeaseGroup
from .loop_call import CallOnLoop
from .stream import Stream
from .target import Target

CHECK_S: Final = 0.25
"""How often a loop whose slots others wait for has to show that it turns."""
CLOSED_S: Final = 1.0
"""How often a pipeline with leases looks whether its loop was closed."""
WAKE_S: Final = 0.1


class LoopCall(CallOnLoop):
    """A call of the pipelines."""

    def loop_line(self, group: LeaseGroup) -> Pipeline:
        return pipeline_of(group, self.loop)


class AwaitedCall(LoopCall):
    """A call that a coroutine awaits: `await call.future`, which says only that it is over."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(loop, target, args, kwargs, contextvars.copy_context())
        self.future: asyncio.Future[None] = loop.create_future()

    def ended(self) -> None:
        # Not the error itself: StopIteration could not be one, and asyncio reports what nobody retrieves.
        if not self.future.done():
            self.future.set_result(None)


async def awaiting(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value of a call; nothing blocks the loop that awaits it."""
    __tracebackhide__ = True
    call = AwaitedCall(asyncio.get_running_loop(), target, args, kwargs)
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


def pipeline_of(group: LeaseGroup, loop: asyncio.AbstractEventLoop) -> Pipeline:
    pipeline = group.pipelines.get(loop)
    if not isinstance(pipeline, Pipeline):
        for each in [each for each in group.pipelines if each.is_closed()]:
            del group.pipelines[each]
        pipeline = group.pipelines[loop] = Pipeline(group, loop)
        of_loop = _pipelines.setdefault(id(loop), [])
        of_loop[:] = [each for each in of_loop if not each.loop.is_closed() and not each.group.connection.closed]
        of_loop.append(pipeline)
    return pipeline


class Pipeline:
    """The calls of one event loop in one group of leases, and the leases that it has."""

    def __init__(self, group: LeaseGroup, loop: asyncio.AbstractEventLoop) -> None:
        self.group = group
        self.loop = loop
        self.lock = threading.RLock()
        self.streams: list[Stream] = []
        self._inbox: deque[tuple[CallOnLoop, Lease]] = deque()  # granted, and not yet seen by the loop
        self.stands_still = False  # its loop does not turn: no call of it can begin
        self._full = False  # nothing can be sent until something has ended
        self._watched = False
        self._turned_at = 0.0  # when the loop has last shown that it turns
        self._asked_at = 0.0

    @property
    def _is_wanted(self) -> bool:
        """Whether somebody else waits for a slot that this loop has."""
        return self.group.contended(self) or any(stream.is_wanted for stream in self.streams)

    # --- calls in line

    def add(self, call: CallOnLoop) -> None:
        with self.lock:
            for stream in self.streams:
                if stream.is_free and not self.group.has_line and call.begin():
                    stream.fill(1, call)  # it need not wait in line
                    return
            self.group.line_up(call)
            if not self._full:
                self.pump()
            elif self.group.may_ask:
                self.group.adjust()
            self._watch()

    def granted(self, call: CallOnLoop, lease: Lease) -> bool:
        """On any thread, with the group's lock held: no lock is taken here."""
        self._inbox.append((call, lease))
        try:
            self.loop.call_soon_threadsafe(self.take_granted)
        except RuntimeError:  # the loop was closed meanwhile
            with suppress(ValueError):
                self._inbox.remove((call, lease))
            return False
        return True

    def take_granted(self) -> None:
        with self.lock:
            while self._inbox:
                self._open(*self._inbox.popleft())
            self._full = False
            self.pump()

    def put_back(self, calls: list[CallOnLoop]) -> None:
        """They have been sent, and will not begin there: first in line again."""
        for call in reversed(calls):
            self.group.line_up(call, first=True)
        self._full = False

    def first(self) -> CallOnLoop | None:
        """The next call in line, if it is one of this loop."""
        while True:
            waiter = self.group.first(self)
            if not isinstance(waiter, CallOnLoop):
                return None
            if not waiter.over:
                return waiter
            self.group.pop(waiter)

    def next(self) -> CallOnLoop | None:
        """The same, out of the line; somebody still wants it."""
        while (call := self.first()) is not None:
            if self.group.pop(call) and call.begin():
                return call
        return None

    def pump(self) -> None:
        """Send whatever can be sent, and ask for leases for the rest."""
        for stream in self.streams:
            if stream.idle and self.first() is not None:
                stream.fill(1)
        while self.first() is not None:
            lease = self.group.take()
            if lease is None:
                break
            self._open(None, lease)
        waiting = self.group.waiting(self)
        if waiting and self.streams:
            share = -(-waiting // len(self.streams))
            for stream in sorted(self.streams, key=Stream.__len__):
                stream.fill(share)
        self._full = self.first() is not None
        self.group.adjust()

    def closed(self, stream: Stream) -> None:
        self.streams.remove(stream)
        self._full = False

    # --- while the loop stands still

    def hand_over(self) -> None:
        """The loop does not turn: others use its slots, and a thread drives what is under way."""
        with self.lock:
            self.stands_still = True
            granted, self._inbox = self._inbox, deque()
            for call, lease in granted:
                self.group.line_up(call, first=True)
                self.group.give_back(lease)
            for stream in list(self.streams):
                stream.hand_over()
        with suppress(RuntimeError):  # it was closed
            self.loop.call_soon_threadsafe(self._turns)

    def _turns(self) -> None:
        """On the loop: it turns again."""
        with self.lock:
            self._turned_at = time.monotonic()
            if self.stands_still:
                self.stands_still = False
                self._full = False
                self.pump()

    def _look_at_loop(self) -> None:
        """On the connection's thread."""
        self._watched = False
        if self.loop.is_closed():
            self._loop_was_closed()
        elif self.streams or self._inbox or self.group.waiting(self):
            now = time.monotonic()
            if not self._is_wanted or self.stands_still:
                self._asked_at = 0.0
            elif not self._asked_at or self._turned_at >= self._asked_at:
                # Somebody else waits for a slot that this loop has: it has to show that it turns.
                self._asked_at = now
                with suppress(RuntimeError):
                    self.loop.call_soon_threadsafe(self._turns)
            elif now - self._asked_at >= CHECK_S:
                self._asked_at = 0.0
                self.hand_over()
            self._watch()

    def _loop_was_closed(self) -> None:
        """A loop that was closed with calls under way takes nobody's slot for ever."""
        for call in self.group.of(self):
            if isinstance(call, CallOnLoop):
                call.cancel()
        with self.lock:
            for stream in list(self.streams):
                stream.abandon()

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            soon = CHECK_S if self._is_wanted else CLOSED_S
            self.group.connection.call_later(soon, self._look_at_loop)

    def _open(self, call: CallOnLoop | None, lease: Lease) -> None:
        """Begin with the call for which it was granted, or with the next in line."""
        if call is None or call.over or not call.begin():
            call = self.next()
        if call is None:
            self.group.give_back(lease)
            return
        try:
            call.context.run(lease.channel)
        except OSError:  # its replica has just gone
            self.group.drop(lease)
            call.handle(lease.granted)
            call.handle(Broken(unread=True))
            return
        stream = Stream(self, lease)
        self.streams.append(stream)
        self._watch()
        stream.fill(1, call)
        stream.rest()


# --- a thread with an event loop that makes a blocking call

_pipelines: Final[dict[int, list[Pipeline]]] = {}
"""By the id of their loops."""


def hand_over() -> None:
    """This thread is about to block: if it runs an event loop, that loop's slots are free for others meanwhile."""
    loop = asyncio._get_running_loop()
    if loop is not None:
        for pipeline in list(_pipelines.get(id(loop), ())):
            if pipeline.loop is loop:
                pipeline.hand_over()


def is_handled_by_loop(handler: Any) -> bool:
    """Whether this handler of a signal only tells this thread's event loop."""
    if asyncio._get_running_loop() is None:
        return False
    function = getattr(handler, "func", handler)  # asyncio's is a partial
    module: str = getattr(function, "__module__", None) or ""
    return module.partition(".")[0] in ("asyncio", "ipykernel")


os.register_at_fork(after_in_child=_pipelines.clear)


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
        cls._handle = loop.call_later(WAKE_S, cls._tick, loop) if cls._ticking else None
