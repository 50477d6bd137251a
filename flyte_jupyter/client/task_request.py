"""What a call of a task may do, and what it is called."""

from __future__ import annotations

from typing import Any

from ..core.call_events import Request
from .task import Task


def request_of(task: Task[..., Any], name: str, pool: str) -> Request:
    """What a call of this task may do."""
    limits, retries = task.time_limits, task.retries
    return Request(
        name,
        pool,
        max_runtime=limits.seconds("max_runtime"),
        max_queued=limits.seconds("max_queued_time"),
        deadline=limits.seconds("deadline"),
        retries=retries.count,
        backoff=retries.delay,
    )


def shown_name(task: Task[..., Any]) -> str:
    """The short name that somebody gave it; "" if nobody did."""
    return "" if task.short_name == task.func.__name__ else task.short_name
