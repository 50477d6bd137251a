"""What a user wants of a cell, and what its call may do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ... import errors
from ...core import failure
from ...core.call_events import Request
from ...core.cells import Scope

RETRY_REASONS: Final[Mapping[str, Callable[[BaseException], bool]]] = {
    "oom": lambda error: (
        isinstance(error, MemoryError)
        or isinstance(failure.flyte_error(error), errors.OOMError)
        or "OutOfMemory" in type(error).__name__  # torch's own
    ),
    "crash": lambda error: isinstance(error, errors.ReplicaDied),
    "timeout": lambda error: isinstance(error, errors.TaskTimeoutError),
}
"""What a cell may be repeated for, if it asks for certain reasons only."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a user wants of a cell.

    Attributes:
        code, filename, first_line, scope, session, pull: As in `CellRequest`.
        name: What views and errors call it: "cell #12".
        push: Names and values from the notebook; functions, classes and modules go by definition.
        timeout: Seconds that one attempt may run.
        retries: Attempts beyond the first.
        retry_on: For what it is repeated; empty is for whatever happens.
        priority: Which of this notebook's waiting cells and calls goes first.
        on_interrupt: "int" raises KeyboardInterrupt in the cell; "term" also replaces its replica, after what else that
            runs; "kill" ends its replica at once.
    """

    code: str
    filename: str
    name: str
    first_line: int = 1
    scope: Scope = "fresh"
    session: str = ""
    push: Mapping[str, Any] = field(default_factory=dict)
    pull: tuple[str, ...] = ()
    timeout: float | None = None
    retries: int = 0
    retry_on: tuple[str, ...] = ()
    on_interrupt: Literal["int", "term", "kill"] = "int"
    priority: Literal["low", "normal", "high"] = "normal"


PRIORITIES: Final = {"low": -1, "normal": 0, "high": 1}


def request_of(cell: Cell, pool: str) -> Request:
    """What a call of this cell may do."""
    reasons = [RETRY_REASONS[reason] for reason in cell.retry_on]

    def repeats(error: BaseException) -> bool:
        return not reasons or any(reason(error) for reason in reasons)

    return Request(
        cell.name,
        pool,
        max_runtime=cell.timeout,
        retries=cell.retries,
        repeats=repeats,
        on_interrupt=cell.on_interrupt,
    )
