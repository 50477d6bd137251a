"""Runs the preload of a pool in a new replica, and tells the broker how far it is."""

from __future__ import annotations

import asyncio
import os
import pickle
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

from ..core.definitions import Closure
from ..errors import users_frames
from ..loader import PreloadFunction
from .runner import enter
from .shell import preloading

if TYPE_CHECKING:
    from .replica import Replica


def run_preload(replica: Replica, payload: bytes) -> None:
    """Define and run each loader of `payload` in turn, on the main thread; `payload` may be empty."""
    replica.report("loading", pid=os.getpid())
    try:
        where, texts, wanted = _read(payload)
        enter(where["folder"], [""])  # it is not one client's: their arguments differ, and must not renew the replicas
        replica.modules.give(texts)
        replica.modules.enter(replica.modules.place("", where["path"], *where["modules"]))
        base = replica.runner.base
        base.run(preloading.set, replica.namespaces.preload.module)
        for _, closure in wanted:
            base.run(replica.namespaces.define_preload, closure)
        loaders = deque(replica.namespaces.preload.attribute(name) for name, _ in wanted)
    except BaseException as error:
        _report_failure(replica, error)
        return
    _next(replica, loaders)


def _read(payload: bytes) -> tuple[dict[str, Any], list[str], list[tuple[str, Closure]]]:
    nowhere = {"folder": "", "path": [], "modules": ["", ""]}
    return pickle.loads(payload) if payload else (nowhere, [], [])


def _next(replica: Replica, loaders: deque[PreloadFunction]) -> None:
    if not loaders:
        replica.cells.show_preload()
        replica.modules.preloaded()
        replica.report("ready")
        return
    loader = loaders.popleft()
    if loader.is_async:
        task = replica.runner.loop.create_task(loader(), context=replica.runner.base)
        task.add_done_callback(lambda task: _after(replica, task, loaders))
        return

    def work() -> None:
        try:
            replica.runner.base.run(loader)
        except BaseException as error:
            _report_failure(replica, error)
        else:
            _next(replica, loaders)

    replica.runner.between_loops(work)


def _after(replica: Replica, task: asyncio.Task[Any], loaders: deque[PreloadFunction]) -> None:
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    if error is not None:
        _report_failure(replica, error)
    else:
        _next(replica, loaders)


def _report_failure(replica: Replica, error: BaseException) -> None:
    tb = users_frames(error.__traceback__) or error.__traceback__
    text = "".join(traceback.format_exception(type(error), error, tb))
    replica.log(f"preload failed\n{text}")
    replica.report("failed", cause=text)
