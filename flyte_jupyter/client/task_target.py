"""What a call of a task is: its function, its limits, and its pool."""

from __future__ import annotations

from typing import Any

from .handle import handle_of
from .target import Target
from .task import Task
from .task_request import request_of, shown_name


def target_of(task: Task[..., Any]) -> Target:
    target: Target | None = task.__dict__.get("_target")
    if target is None:
        pool = handle_of(task)
        target = Target(task.func, request_of(task, task.name, pool.name), pool, shown=shown_name(task))
        task.__dict__["_target"] = target
    return target
