"""A map under way: its items, its calls, and the results in order."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextvars import Context, copy_context
from typing import Any, Final

from .. import errors, memory
from ..core import payload
from ..core.context import current, stalls
from . import looping, outputs
from .calling import refuse_in_trace, set_group
from .executor import Line, LineCall, background, plain
from .remote import without_our_frames
from .stream import ahead
from .target import Target, stalled_cell
from .task import Task
from .task_target import target_of

WINDOW: Final = 4
"""A map looks this many times its capacity ahead, so that one slow call at the head does not idle the slots."""
STOP_S: Final = 5.0
"""How long a map that ends early waits for its calls to end."""
TURN_S: Final = 0.001
"""How long a map may read items before the rest of its event loop has a turn."""


class MappedCall(LineCall):
    """One item's call."""

    settled: Callable[[MappedCall], None]

    def settle(self) -> None:
        self.settled(self)


def _parameter_left(mapped: functools.partial[Any], task: Task[..., Any], iterables: int) -> str | None:
    """Which parameter of a partial gets the items: its name; None if by position."""
    names = [each.name for each in task.parameters]
    bound = {*names[: len(mapped.args)], *mapped.keywords}
    left = [name for name in names if name not in bound]
    if len(left) != 1 or iterables > 1:
        raise TypeError(
            f"map takes a partial of {task.name} that leaves exactly one parameter, and one iterable for it; this one"
            f" leaves {', '.join(left) or 'none'}, and there are {iterables} iterables"
        )
    by_position = names.index(left[0]) == len(mapped.args)
    return None if by_position else left[0]


class TaskMap:
    """One map: its items, and the window of calls between the item read last and the result yielded last."""

    def __init__(
        self,
        mapped: Any,
        iterables: tuple[Iterable[Any], ...],
        group_name: str | None,
        concurrency: int,
        return_exceptions: bool,
    ) -> None:
        partial = mapped if isinstance(mapped, functools.partial) else functools.partial(mapped)
        task = partial.func
        if not isinstance(task, Task):
            raise TypeError(f"map takes a task or a functools.partial of one, got {mapped!r}")
        if concurrency < 0:
            raise ValueError(f"concurrency must be 0 or more, got {concurrency}")
        self._keyword: str | None = None
        if partial is mapped:
            self._keyword = _parameter_left(partial, task, len(iterables))
        elif iterables:
            task.bind((None,) * len(iterables), {})
        self.task: Task[..., Any] = task
        self._args = partial.args
        self._keywords = partial.keywords
        # What repeat() repeats; taking an item might be one too many.
        self._repeated = [gc.get_referents(each)[-1] for each in iterables if isinstance(each, itertools.repeat)]
        # No iterables, no calls; zip() of nothing is empty.
        self._items = zip(*iterables)  # noqa: B905 - the shortest wins
        self._group = group_name
        self._concurrency = concurrency
        self._return_exceptions = return_exceptions
        self._window: deque[MappedCall] = deque()
        self._head: MappedCall | None = None  # whose result is waited for
        self._exhausted = False

    def check_place(self, *, blocking: bool) -> None:
        if current.get() is None:
            return
        refuse_in_trace(self.task.name)
        if blocking and asyncio._get_running_loop() is not None:
            raise errors.SyncTaskCallInAsyncContextError(
                f"map over {self.task.name} was called inside an async task: use `async for ... in map.aio(...)`"
            )

    def results(self) -> Iterator[Any]:
        """In order; on the calling thread, while the calls are made on the background loop."""
        line = self._open(background())
        self._context.run(stalls.set, stalled_cell())
        looping.hand_over()
        arrived = threading.Event()
        self._tell = arrived.set
        try:
            while self._read_on():
                head = self._window[0]
                while not head.over:
                    while self._may_look_ahead():
                        self._pull()
                    arrived.clear()
                    self._head = head
                    if not head.over:
                        arrived.wait()
                yield self._value(self._window.popleft())
        except KeyboardInterrupt as interrupt:
            count = len(line.outstanding)
            calls = "1 call" if count == 1 else f"{count} calls"
            outputs.note(f"Interrupted: {calls} of {self.task.name} {'is' if count == 1 else 'are'} stopped.")
            raise without_our_frames(interrupt)  # noqa: B904 - it is the same one
        finally:
            self._exhausted = True
            line.abort()
            line.wait(STOP_S)
            self._shared.close()

    async def results_async(self) -> AsyncIterator[Any]:
        """The same; the calls are made on the running event loop."""
        line = self._open(asyncio.get_running_loop())
        arrived = asyncio.Event()
        self._tell = arrived.set
        turn = 0.0
        try:
            while self._read_on():
                head = self._window[0]
                while not head.over or time.monotonic() - turn > TURN_S:
                    while self._may_look_ahead() and time.monotonic() - turn < TURN_S:
                        self._pull()
                    arrived.clear()
                    self._head = head
                    if self._may_look_ahead() or head.over:
                        await asyncio.sleep(0)  # iterables may be slow, and what was started goes on
                    else:
                        await arrived.wait()
                    turn = time.monotonic()
                yield self._value(self._window.popleft())
        finally:
            self._exhausted = True
            line.abort()
            try:
                await line.wait_async(STOP_S)
            finally:
                self._shared.close()

    def _open(self, loop: asyncio.AbstractEventLoop) -> Line:
        # The calls' output belongs where the iterator is used: in that cell.
        self._context: Context = copy_context()
        if self._group is not None:
            self._context.run(set_group, self._group)
        self._target: Target = target_of(self.task)
        self._shared = _shared_buffers((self._args, self._keywords, self._repeated))
        self._context.run(memory.sharing.set, self._shared)
        self._line = Line(loop, self._capacity if self._concurrency else None)
        return self._line

    def _capacity(self) -> int:
        slots = self._target.pool.scaling.slots  # asked anew: the pool may be scaled meanwhile
        return min(self._concurrency, slots) if self._concurrency else slots

    def _size(self) -> int:
        """How many calls there may be between the item read last and the result yielded last."""
        return self._capacity() * (WINDOW if self._concurrency else max(WINDOW, 2 * ahead(self._target)))

    def _read_on(self) -> bool:
        """Start one call for the result that is about to be yielded; False when there are no more results.

        And more, if the items come quickly: the slots shall have work while the caller looks at the result.
        """
        until = time.monotonic() + TURN_S
        if not self._exhausted and len(self._window) < self._size():
            self._pull()
        while not self._exhausted and len(self._window) <= self._capacity() and time.monotonic() < until:
            self._pull()
        return bool(self._window)

    def _may_look_ahead(self) -> bool:
        """Only while the next result is not there: then reading items costs nobody time."""
        return not self._exhausted and not self._window[0].over and len(self._window) < self._size()

    def _pull(self) -> None:
        try:
            item = next(self._items)
        except StopIteration:
            self._exhausted = True
            return
        if self._keyword is None:
            args, keywords = (*self._args, *item), self._keywords
        else:
            args, keywords = self._args, {**self._keywords, self._keyword: item[0]}
        call = MappedCall(self._line, self._target, args, keywords, self._context.copy())
        call.settled = self._settled
        self._window.append(call)
        self._line.add(call)

    def _settled(self, call: MappedCall) -> None:
        """On the loop."""
        if call.error is not None and not self._return_exceptions:
            self._line.abort(after=call.index)
        if self._head is call:
            self._head = None
            self._tell()

    def _value(self, call: MappedCall) -> Any:
        error = call.error
        if error is None:
            return call.value
        if self._return_exceptions and isinstance(error, Exception):
            return plain(error)
        self._exhausted = True
        raise plain(error)


def _shared_buffers(arguments: tuple[Any, ...]) -> memory.Shared:
    """The big buffers of what all calls of a map send; they are written once."""
    try:
        return memory.Shared(payload.dump_arguments(arguments).buffers)
    except Exception:  # each call will say what cannot be sent
        return memory.Shared(())
