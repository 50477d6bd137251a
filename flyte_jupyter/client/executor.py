"""A pool as a `concurrent.futures.Executor`, and what `map` shares with it: calls in line on an event loop.

Both are used from threads that block. Their calls are made on one background loop per process, each in a copy of
its caller's context, so that what a task prints appears in the cell that asked for it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import functools
import inspect
import itertools
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, ParamSpec, TypeGuard, TypeVar

from .. import errors
from ..core import failure
from ..core.call_events import Request
from ..core.context import current
from . import broker, exits
from .calling import refuse_in_trace
from .looping import LoopCall
from .running import RunningPool
from .target import Target
from .task import Task
from .task_request import request_of, shown_name

P = ParamSpec("P")
T = TypeVar("T")


RECENT: Final = 32
RECENT_S: Final = 0.25
"""So long, at least, and at most twice as long, an executor knows a callable after it was submitted, and so many."""
TURN_S: Final = 1.0
"""How long the loop may take to come to a thread that waits for its next turn."""

# --- the background loop

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_before_fork: list[asyncio.AbstractEventLoop | None] = []


def background() -> asyncio.AbstractEventLoop:
    """The event loop that makes the calls of blocked threads. Its daemon thread starts when first asked for."""
    global _loop  # noqa: PLW0603
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_serve, args=(_loop,), name="flyte_jupyter-map", daemon=True)
            thread.start()
            atexit.register(_stop, _loop, thread)
        return _loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    calls = asyncio.all_tasks(loop)
    for call in calls:
        call.cancel()
    loop.run_until_complete(asyncio.gather(*calls, return_exceptions=True))
    loop.close()


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if loop is _loop:  # else it was the parent's
        loop.call_soon_threadsafe(loop.stop)
        thread.join(1.0)


def _forget_after_fork() -> None:
    global _loop, _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _before_fork.append(_loop)  # never closed here: its selector is the parent's, too
    _loop = None


os.register_at_fork(after_in_child=_forget_after_fork)


# --- calls in line


class LineCall(LoopCall):
    """A call that a thread waits for while it is made on a loop. `over` may be looked at by any thread."""

    def __init__(
        self,
        line: Line,
        target: Target,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: contextvars.Context,
    ) -> None:
        super().__init__(line.loop, target, args, kwargs, context)
        self.line = line
        self.index = next(line.numbers)
        self.started = False

    def ended(self) -> None:
        self.line.ended(self)

    def settle(self) -> None:
        """Tell whoever waits. On the loop."""
        raise NotImplementedError


def plain(error: BaseException) -> BaseException:
    """A task's error, or one of ours, with the task's lines as its traceback, not ours."""
    if isinstance(error, errors.BaseRuntimeError):
        failure.catchable(error)
    elif failure.of(error) is None:
        return error
    return BaseException.with_traceback(error, failure.remote_frames(error))


class Line:
    """Calls on one event loop, at most `limit()` of them at a time. Any thread may add and abort."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: Callable[[], int] | None = None) -> None:
        self.loop = loop
        self.outstanding: dict[int, LineCall] = {}
        self.numbers = itertools.count()
        self._limit = limit
        self._waiting: deque[LineCall] = deque()
        self._active = 0
        self._awake = False
        self._last: float = float("inf")  # later ones are not made any more
        self._empty: list[Callable[[], object]] = []  # told when nothing is outstanding

    def add(self, call: LineCall) -> None:
        """Put a call in line."""
        self.outstanding[call.index] = call
        self._waiting.append(call)
        if not self._awake:
            self._awake = True
            self._post(self._advance)

    def abort(self, after: float = -1) -> None:
        """Stop the calls with a higher index than `after`, those that run included."""
        self._last = min(self._last, after)
        if self.outstanding and not self.loop.is_closed():
            self._post(self._abort)

    def cancel(self, call: LineCall) -> None:
        """Stop that one."""
        self._post(self._cancel, call)

    def wait(self, timeout: float | None) -> None:
        """Until none is outstanding."""
        if asyncio._get_running_loop() is self.loop:  # a generator may be collected anywhere
            return
        done = threading.Event()
        if self.outstanding and not self.loop.is_closed():
            self._post(self._tell_when_empty, done.set)
            done.wait(timeout)

    def catch_up(self) -> None:
        """Until each call that was added has a slot, if one is free: whoever has just added them cannot know."""
        connection = broker.current()
        if connection is None or not self.outstanding or asyncio._get_running_loop() is self.loop:
            return
        self._turn()  # all are asked for
        with suppress(errors.PoolError):
            connection.snapshot()  # the broker answers in the order of the questions
        self._turn()  # all answers are taken

    def _turn(self) -> None:
        done = threading.Event()
        if not self.loop.is_closed():
            self._post(done.set)
            done.wait(TURN_S)

    async def wait_async(self, timeout: float) -> None:
        done = asyncio.Event()
        self._tell_when_empty(done.set)
        with suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), timeout)

    def ended(self, call: LineCall) -> None:
        """It has its outcome, or none will come. On the loop."""
        if call.started:
            self._active -= 1
            if self._waiting:
                self._advance()
        call.settle()
        self.outstanding.pop(call.index, None)  # only now: who finds none outstanding finds all settled
        if not self.outstanding and self._empty:
            self._tell_empty()

    # --- on the loop, but for `_post`

    def _post(self, callback: Callable[..., object], *args: Any) -> None:
        if asyncio._get_running_loop() is self.loop:
            self.loop.call_soon(callback, *args)
        else:
            self.loop.call_soon_threadsafe(callback, *args)

    def _advance(self) -> None:
        self._awake = False  # before looking: what is added from now on wakes it again
        while self._waiting and (self._limit is None or self._active < self._limit()):
            call = self._waiting.popleft()
            if call.over:
                continue
            if call.index > self._last:
                self._cancel(call)
                continue
            self._active += 1
            call.started = True
            call.start()

    def _abort(self) -> None:
        for call in [each for each in list(self.outstanding.values()) if each.index > self._last]:
            self._cancel(call)

    def _cancel(self, call: LineCall) -> None:
        if call.over:
            return
        call.error = errors.TaskCancelled(call.target.name)  # before it is over: who waits looks at once
        call.cancel()
        self.ended(call)

    def _tell_when_empty(self, tell: Callable[[], object]) -> None:
        self._empty.append(tell)
        if not self.outstanding:
            self._tell_empty()

    def _tell_empty(self) -> None:
        empty, self._empty = self._empty, []
        for tell in empty:
            tell()


class Submission(LineCall):
    """A call of an executor, and its future."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.future: Future[Any] = Future()
        self._told = False  # whoever waits for the future has heard that it runs or was cancelled
        # Weakly: a future that is kept for its result must not keep the arguments.
        self.future.add_done_callback(functools.partial(_cancelled, weakref.ref(self)))

    def begin(self) -> bool:
        """False if it was cancelled while it waited."""
        if not self._told:
            self._told = True
            return self.future.set_running_or_notify_cancel()
        return not self.future.cancelled()

    def settle(self) -> None:
        if isinstance(self.error, errors.TaskCancelled) and not self._told:
            self.future.cancel()  # it had not begun
        if not self.begin() or self.future.done():
            return
        future, error = self.future, self.error
        self.future, self.error = _SETTLED, None  # an error may have frames in its causes that lead back here
        if error is None:
            future.set_result(self._taken())
        else:
            future.set_exception(_broken(plain(error)))

    def _taken(self) -> Any:
        """Its value, which nothing here may keep: whoever waits for it may look at once whether it is gone."""
        value, self.value = self.value, None
        return value


_SETTLED: Final[Future[Any]] = Future()
_SETTLED.set_result(None)


def _cancelled(submission: weakref.ref[Submission], future: Future[Any]) -> None:
    # Also if the loop has seen it meanwhile: it only leaves out what was cancelled.
    call = submission() if future.cancelled() else None
    if call is not None and not call.over:
        call.line.cancel(call)


# --- the executor


class SubmittedTarget(Target):
    """A callable that was submitted.

    Attributes:
        given: The task or function itself. It lives as long as this, so that its identity is not another's meanwhile.
    """

    def __init__(self, given: Callable[..., Any], pool: RunningPool) -> None:
        self.given = given
        bare = given.func if isinstance(given, Task) else given
        if isinstance(given, Task) and _needs_fresh_kernel(given):
            pool = pool.pool_of(given)  # each of its calls has a kernel of its own
        name = f"{pool.name}.{getattr(bare, '__name__', type(bare).__name__)}"
        if isinstance(given, Task):
            super().__init__(bare, request_of(given, name, pool.name), pool, shown=shown_name(given))
        else:
            super().__init__(bare, Request(name, pool.name), pool)


class BrokenPool(errors.ReplicaDied, BrokenExecutor):
    """The replica that ran a submitted call died. Only that call failed: others, and the executor, go on."""


def _broken(error: BaseException) -> BaseException:
    if not isinstance(error, errors.ReplicaDied):
        return error
    standard = sys.modules.get("concurrent.futures.process")  # who would catch its class has imported it
    cls = BrokenPool if standard is None else _broken_as(standard.BrokenProcessPool)
    made = cls.__new__(cls)
    made.args = error.args
    made.__dict__.update(error.__dict__)
    return failure.catchable(made)


@functools.cache
def _broken_as(standard: type[BrokenExecutor]) -> type[BrokenPool]:
    """A `BrokenPool` that is a `BrokenProcessPool`, too. Pickled, it is a `BrokenPool` again."""
    body = {"__module__": __name__, "__doc__": BrokenPool.__doc__, "__reduce__": _reduce_broken}
    made: type[BrokenPool] = type("BrokenPool", (BrokenPool, standard), body)
    return made


def _reduce_broken(error: BrokenPool) -> tuple[Any, ...]:
    return BrokenPool.__new__, (BrokenPool, *error.args), vars(error)


class PoolExecutor(Executor):
    """A `concurrent.futures.Executor` whose workers are a pool's slots. Made by `pool.executor()`.

    Any callable can be submitted: functions of modules and of the notebook, lambdas, partials, tasks, and
    coroutine functions, whose result is the future's. Sync functions are allowed whatever the pool's concurrency is;
    while one runs, its replica does nothing else.

    A future can be cancelled until its call has a slot. A task's own exception comes out of `future.result()` so
    that `except ValueError` catches it. As elsewhere, `loop.run_in_executor(executor, function, x)` awaits it.

    Args:
        pool: Whose replicas do the work, but for tasks without reuse: those have kernels of their own. As many calls
            as it has slots run at a time; the others wait in line.
    """

    def __init__(self, pool: RunningPool) -> None:
        self.pool = pool
        self._lock = threading.Lock()
        self._closed = False
        self._line: Line | None = None
        self._targets: weakref.WeakValueDictionary[int, SubmittedTarget] = weakref.WeakValueDictionary()
        self._recent: dict[int, SubmittedTarget] = {}
        self._older: dict[int, SubmittedTarget] = {}
        self._forgetting = False

    @property
    def _max_workers(self) -> int:
        """As the executors of the standard library call it; dask and others read it."""
        return self.pool.scaling.slots

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` on a replica; what it prints appears where it was submitted.

        Raises:
            RuntimeError: The executor was shut down.
            TypeError: `fn` cannot be called.

        The future raises ArgumentNotSerializable if `fn` or an argument cannot leave this process, and BrokenPool if
        its replica dies.
        """
        if not callable(fn):
            raise TypeError(f"submit takes a callable, got {type(fn).__name__}")
        function, args_, kwargs_ = _unwrapped(fn, args, kwargs)
        if current.get() is not None:
            refuse_in_trace(getattr(function, "__name__", "?"))
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            exits.check()
            target = self._target(function)
            loop = background()
            if self._line is None or self._line.loop is not loop:
                self._line = Line(loop)
                exits.wait_for(self._line)
            call = Submission(self._line, target, args_, kwargs_, contextvars.copy_context())
            future = call.future
            self._line.add(call)
            return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Like the built-in `map`, concurrently; the results come in order.

        Args:
            timeout: Seconds after which waiting for the next result raises TimeoutError, counted from this call.
            chunksize: Items per call: more than 1 pays for many short ones. Tasks without reuse get one in any case.
            buffersize: The most calls whose results have not been yielded; None reads the iterables to their
                end at once, as the standard library does.

        Raises: ValueError if a size is less than 1.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        deadline = None if timeout is None else time.monotonic() + timeout
        items = zip(*iterables)  # noqa: B905 - the shortest wins
        function, args, kwargs = _unwrapped(fn, (), {})
        if chunksize == 1 or _needs_fresh_kernel(function):
            more = (functools.partial(self.submit, fn, *item) for item in items)
            return self._results(more, deadline, buffersize)
        bare = function.func if isinstance(function, Task) else function
        run_chunk = _run_chunk_async if inspect.iscoroutinefunction(bare) else _run_chunk
        chunks = iter(lambda: list(itertools.islice(items, chunksize)), [])
        calls: Iterator[Callable[[], Future[Any]]] = (
            functools.partial(self.submit, run_chunk, bare, args, kwargs, chunk) for chunk in chunks
        )
        return itertools.chain.from_iterable(self._results(calls, deadline, buffersize))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept nothing more. The pool stays warm: it belongs to the broker.

        Args:
            wait: Return when every future is done.
            cancel_futures: Cancel those that have no slot yet. Those get one first for which the pool has one free.
        """
        with self._lock:
            self._closed = True
            self._recent, self._older = {}, {}
        if self._line is None:
            return
        if cancel_futures:
            self._line.catch_up()
            for call in list(self._line.outstanding.values()):
                assert isinstance(call, Submission)
                call.future.cancel()
        if wait:
            self._line.wait(None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self._line is not None:
            self._closed = True
            self._line.abort()  # Ctrl-C ends the processes of the standard library's pool, too
        self.shutdown(wait=True)

    def __repr__(self) -> str:
        waiting = 0 if self._line is None else len(self._line.outstanding)
        return f"<executor of pool {self.pool.name!r}: {'shut down' if self._closed else f'{waiting} futures'}>"

    # --- private

    def _target(self, function: Callable[..., Any]) -> SubmittedTarget:
        """The one of this callable: while a call of it is under way, and for a moment after, as the next may follow."""
        found = self._recent.get(id(function))  # by identity, as callables may be equal or unhashable
        if found is not None:
            return found
        found = self._targets.get(id(function))
        if found is None:
            found = self._targets[id(function)] = SubmittedTarget(function, self.pool)
        if len(self._recent) >= RECENT:
            self._recent.clear()
        self._recent[id(function)] = found
        if not self._forgetting:
            self._forgetting = True
            background().call_soon_threadsafe(_forget_later, weakref.ref(self))
        return found

    def _forget(self) -> bool:
        """Let go of what was not submitted for a while; whether something is left."""
        with self._lock:
            self._older, self._recent = self._recent, {}
            self._forgetting = bool(self._older)
            return self._forgetting

    @staticmethod
    def _results(more: Iterator[Callable[[], Future[T]]], deadline: float | None, ahead: int | None) -> Iterator[T]:
        futures = deque(submit() for submit in itertools.islice(more, ahead))

        def results() -> Iterator[T]:
            try:
                while futures:
                    if ahead is not None and (submit := next(more, None)) is not None:
                        futures.append(submit())
                    # Popped before it is waited for, so that no reference keeps what was yielded alive.
                    yield _result_or_cancel(futures.popleft(), deadline)
            finally:
                for future in futures:
                    future.cancel()

        return results()


def _forget_later(executor: weakref.ref[PoolExecutor]) -> None:
    asyncio.get_running_loop().call_later(RECENT_S, _forget_now, executor)


def _forget_now(executor: weakref.ref[PoolExecutor]) -> None:
    found = executor()
    if found is not None and found._forget():
        _forget_later(executor)


def _result_or_cancel(future: Future[T], deadline: float | None) -> T:
    try:
        return future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
    finally:
        future.cancel()
        del future


def _needs_fresh_kernel(function: Callable[..., Any]) -> TypeGuard[Task[..., Any]]:
    """Whether it is a task without reuse, which runs in a kernel of its own whoever submits it."""
    return isinstance(function, Task) and not function.reusable


def _unwrapped(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """A partial's function: what was bound is an argument, so that its code is shipped once."""
    if type(fn) is functools.partial:
        return fn.func, (*fn.args, *args), {**fn.keywords, **kwargs}
    return fn, args, kwargs


def _run_chunk(
    function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], chunk: list[tuple[Any, ...]]
) -> list[T]:
    return [function(*args, *item, **kwargs) for item in chunk]


async def _run_chunk_async(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], chunk: list[tuple[Any, ...]]
) -> list[Any]:
    return [await function(*args, *item, **kwargs) for item in chunk]
