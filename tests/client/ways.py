"""The ways in which a task is called."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import flyte_jupyter as flyte

Task = flyte.Task[..., Any]
Way = Callable[..., Any]


def work(x: object = None) -> object:
    raise AssertionError("no replica here runs anything")


def blocking(task: Task, x: object) -> Any:
    return task(x)


def awaited(task: Task, x: object) -> Any:
    return asyncio.run(task.aio(x))


def mapped(task: Task, x: object) -> Any:
    (value,) = flyte.map(task, [x], return_exceptions=False)
    return value


def submitted(task: Task, x: object) -> Any:
    with flyte.pool(task.environment).executor() as executor:
        return executor.submit(task, x).result()


WAYS = [blocking, awaited, mapped, submitted]
