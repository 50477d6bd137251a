"""A pool's executor with the constructor of the standard library's, for the interpreter's own tests of executors."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any, Final

import flyte_jupyter as flyte
from flyte_jupyter.client.executor import PoolExecutor

WORKERS: Final = 5
"""As many as most of those tests ask for."""

_numbers: Final = itertools.count(1)


@functools.cache
def environment(workers: int) -> flyte.TaskEnvironment:
    """A pool of so many workers, which stays warm from test to test."""
    return flyte.TaskEnvironment(f"standard-{workers}", reusable=flyte.ReusePolicy(workers))


def _with_initializer(workers: int, initializer: Callable[..., object], initargs: tuple[Any, ...]) -> flyte.PoolHandle:
    name = f"standard-{workers}-{os.getpid()}-{next(_numbers)}"
    pool = flyte.pool(flyte.TaskEnvironment(name, reusable=flyte.ReusePolicy(workers)))

    @pool.preload
    def initialize() -> None:
        initializer(*initargs)

    return pool


class StandardExecutor(PoolExecutor):
    """What `concurrent.futures.ProcessPoolExecutor(...)` would be, on a pool of its own size.

    Args:
        mp_context: Not looked at: how replicas start is the broker's matter.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: object = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        workers = WORKERS if max_workers is None else max_workers
        if workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        self._own = initializer is not None
        pool = _with_initializer(workers, initializer, initargs) if initializer else flyte.pool(environment(workers))
        super().__init__(pool)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        if self._own and wait:
            self.pool.stop(force=True)
