"""What calls take along besides their arguments: the name of their run, a group, the custom context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from .. import errors
from ..core.context import current

DEFAULT_RUN: Final = "local"
"""The run of a task that was called without `run`."""

calling: Final[ContextVar[dict[str, Any] | None]] = ContextVar("flyte_jupyter_calling", default=None)
"""What calls from here take along, beside what the task that makes them hands on."""
tracing: Final[ContextVar[bool]] = ContextVar("flyte_jupyter_tracing", default=False)
"""Whether a traced function runs."""


def call_meta() -> dict[str, Any] | None:
    """What the next call takes along besides its arguments: run, group and custom context; None if nothing.

    Inside a task, its own are handed on.
    """
    own = calling.get()
    task = current.get()
    if task is None:
        return own
    meta: dict[str, Any] = {}
    if task.action.run_name != DEFAULT_RUN:
        meta["run"] = task.action.run_name
    if task.group_data is not None:
        meta["group"] = task.group_data.name
    if task.custom_context:
        meta["custom_context"] = dict(task.custom_context)
    if own is not None:
        custom = {**meta.get("custom_context", {}), **own.get("custom_context", {})}
        meta.update(own)
        if custom:
            meta["custom_context"] = custom
    return meta or None


@contextmanager
def with_calls(**said: Any) -> Iterator[None]:
    token = calling.set({**(calling.get() or {}), **said})
    try:
        yield
    finally:
        calling.reset(token)


def set_group(name: str) -> None:
    """Calls from this context on are made in that group."""
    calling.set({**(calling.get() or {}), "group": name})


def refuse_in_trace(name: str) -> None:
    """Raises TraceDoesNotAllowNestedTasksError inside a traced function. Asked inside tasks only."""
    if tracing.get():
        raise errors.with_notes(
            errors.TraceDoesNotAllowNestedTasksError(f"Task {name} was called inside a traced function."),
            f"Call it outside, or call {name.rpartition('.')[2]}.forward(...), which runs it in place.",
        )
