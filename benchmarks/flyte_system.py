"""This package as one of the systems of the side-by-side benchmark: what a user of it would write."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from typing import Any

from systems.base import System, parse_ticks


class Flyte(System):
    no_async = None
    note = "sync and async tasks on warm Jupyter kernels"

    def prepare(self) -> None:
        # Our own runtime folder, with a path short enough for Unix sockets.
        self.folder = tempfile.TemporaryDirectory(prefix="fjb", dir="/tmp")
        os.environ["FLYTE_JUPYTER_RUNTIME_DIR"] = self.folder.name
        import flyte_jupyter  # noqa: F401

    def start(self, n_workers: int, concurrency: int = 1, preload: str | None = None) -> None:
        self.concurrency = concurrency
        self._declare(n_workers, preload)
        self.pool.warm(n_workers)

    def _declare(self, n_workers: int, preload: str | None = None) -> None:
        """Declared again with another number, the environment has the same pool, resized."""
        import flyte_jupyter as flyte

        policy = flyte.ReusePolicy(replicas=n_workers, concurrency=self.concurrency)
        self.env = flyte.TaskEnvironment("bench", reusable=policy)
        self.pool = flyte.pool(self.env, preimport=preload.split(",") if preload else None)
        self.tasks: dict[Any, Any] = {}

    def _task(self, function: Any) -> Any:
        task = self.tasks.get(function)
        if task is None:
            task = self.tasks[function] = self.env.task(function)
        return task

    def call(self, fn: Any, *args: Any) -> Any:
        return self._task(fn)(*args)

    def map(self, fn: Any, items: list[Any]) -> list[Any]:
        import flyte_jupyter as flyte

        return list(flyte.map(self._task(fn), items, return_exceptions=False))

    def amap(self, fn: Any, items: list[Any]) -> list[Any]:
        task = self._task(fn)

        async def run() -> list[Any]:
            return await asyncio.gather(*(task.aio(item) for item in items))

        return asyncio.run(run())

    async def acall(self, fn: Any, *args: Any) -> Any:
        return await self._task(fn).aio(*args)

    def extra_latencies(self, n: int) -> dict[str, list[int]]:
        import work

        task, clock = self._task(work.noop), time.perf_counter_ns

        async def run() -> list[int]:
            out = []
            for i in range(n):
                started = clock()
                await task.aio(i)
                out.append(clock() - started)
            return out

        return {"await task.aio()": asyncio.run(run())}

    def scale(self, preload: str | None = None) -> int:
        import work

        before = set(self.worker_pids())
        self._declare(len(before) + 1, preload)
        self.pool.warm(len(before) + 1)
        # Calls until the new replica answers: a lease may go to any of them.
        while True:
            pids = self.map(work.ready, [preload] * 2 * (len(before) + 1))
            if new := set(pids) - before:
                return int(new.pop())

    def stdout(self, n: int, gap: float, flush: bool) -> list[int]:
        """What the task prints is written to this process's stdout: watch what arrives there."""
        import contextlib
        import io

        import work

        ticks: list[int] = []

        class Watch(io.StringIO):
            def write(self, text: str) -> int:
                ticks.extend(parse_ticks(text, time.monotonic_ns()))
                return len(text)

        with contextlib.redirect_stdout(Watch()):
            self._task(work.ticker)(n, gap, flush)
        return ticks

    def worker_pids(self) -> list[int]:
        view = self.pool.status()
        return [] if view is None else [each.pid for each in view.replicas if each.pid is not None]

    def extra_pids(self) -> list[int]:
        from flyte_jupyter.client import broker

        connection = broker.current()
        return [] if connection is None else [connection.broker_pid]

    def stop(self) -> None:
        from flyte_jupyter.client import broker
        from flyte_jupyter.core.protocol import Shutdown

        connection = broker.current()
        if connection is not None:
            connection.send(Shutdown())
            while not connection.closed:
                time.sleep(0.005)
        self.folder.cleanup()
