"""What `@pool.preload` makes of a function: called once per process, however often and by whomever it is called."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Loader = TypeVar("Loader", bound=Callable[..., Any])


def cached(function: Loader) -> Loader:
    """`functools.cache`, and the same for a coroutine function: concurrent first callers share one load.

    A loader that raises is not remembered: the next call tries again.
    """
    if not inspect.iscoroutinefunction(function):
        return functools.cache(function)  # type: ignore[return-value]
    loads: dict[Any, asyncio.Future[Any]] = {}

    @functools.wraps(function)
    async def load(*args: Any, **kwargs: Any) -> Any:
        key = functools._make_key(args, kwargs, typed=False)
        future = loads.get(key)
        if future is None:
            coroutine: Coroutine[Any, Any, Any] = function(*args, **kwargs)
            future = loads[key] = asyncio.ensure_future(coroutine)
        try:
            # One waiter's cancellation must not cancel the load that others wait for.
            return await asyncio.shield(future)
        except BaseException:
            if future.done() and (future.cancelled() or future.exception()) and loads.get(key) is future:
                del loads[key]
            raise

    return load  # type: ignore[return-value]
