"""What `@pool.preload` makes of a function: called once per process, however often and by whomever it is called."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import pickle
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Loader = TypeVar("Loader", bound=Callable[..., Any])


class PreloadFunction:
    """What `@pool.preload` leaves under the function's name, in the notebook and on every replica: its cached self."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function, updated=())
        self._function = function
        self._cached = cached(function)
        self.is_async = inspect.iscoroutinefunction(function)

    __name__: str
    __wrapped__: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._cached(*args, **kwargs)

    def __flyte_capture__(self) -> tuple[Callable[..., Any], bytes]:
        return self._function, pickle.dumps(PreloadFunction)

    def __repr__(self) -> str:
        return f"<preload {self.__name__}>"


def cached(function: Loader) -> Loader:
    """`functools.cache`, and the same for a coroutine function: concurrent first callers share one load.

    A loader that raises is not remembered: the next call tries again.
    """
    if not inspect.iscoroutinefunction(function):
        return _cached_sync(function)  # type: ignore[return-value]
    loads: dict[Any, asyncio.Future[Any]] = {}

    @functools.wraps(function)
    async def load(*args: Any, **kwargs: Any) -> Any:
        key = functools._make_key(args, kwargs, typed=False)
        future = loads.get(key)
        if future is not None and _is_usable(future):
            return await asyncio.shield(future)
        coroutine: Coroutine[Any, Any, Any] = function(*args, **kwargs)
        context = contextvars.copy_context()
        future = loads[key] = asyncio.get_running_loop().create_task(coroutine, context=context)
        future.add_done_callback(lambda load: load.cancelled() or load.exception())  # seen, if all waiters left
        # One waiter's cancellation must not cancel the load that others wait for.
        value = await asyncio.shield(future)
        for variable in context:  # what the loader has set, such as NumPy's error handling, is its first caller's, too
            variable.set(context[variable])
        return value

    return load  # type: ignore[return-value]


def _cached_sync(function: Callable[..., Any]) -> Callable[..., Any]:
    remembered = functools.cache(function)
    lock = threading.RLock()  # a loader may call itself

    @functools.wraps(function)
    def load(*args: Any, **kwargs: Any) -> Any:
        with lock:  # two threads of a task must not load the model twice
            return remembered(*args, **kwargs)

    return load


def _is_usable(future: asyncio.Future[Any]) -> bool:
    """It has loaded, or will on this very loop. `asyncio.run` inside a task has a loop of its own, for a while."""
    if future.done():
        return not future.cancelled() and future.exception() is None
    return future.get_loop() is asyncio.get_running_loop()
