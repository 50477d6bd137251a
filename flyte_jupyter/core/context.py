"""Which call is running here: set by the replica around each task, read by the client for nested calls.

A context variable, so that concurrent tasks do not see each other's; it is also the fence of a cancel: an interrupt
is raised only where this variable names the call that it is meant for.

Beside it, of cells that a person runs in a replica by hand: whose cell it is, and whether it stands still.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple


class Action(NamedTuple):  # a frozen dataclass takes twice as long to make, and each call makes one
    """Source: flyte.models.ActionID, its two fields that mean something on one machine."""

    name: str
    run_name: str


@dataclass(frozen=True, slots=True)
class GroupData:
    name: str


@dataclass(slots=True, eq=False)  # not frozen: making one is on the path of every call, and that takes 2 us longer
class TaskContext:
    """What `flyte_jupyter.ctx()` tells a task about itself.

    Attributes:
        action: The task's own name and that of its run.
        attempt_number: 0 for the first attempt, 1 for the first retry.
        replica: The warm kernel it runs on, for people: "gpu[0]".
        lease: The slot it holds; nested calls name it as their parent.
    """

    action: Action
    attempt_number: int = 0
    group_data: GroupData | None = None
    custom_context: Mapping[str, str] = field(default_factory=dict)
    mode: str = "local"
    replica: str = ""
    lease: str = ""
    task: str = ""
    notebook: str = ""
    process: tuple[str, int] = ("", 0)  # whose names these are: its token and its pid
    main: Any = None  # the module that is `__main__` for the task
    sink: Any = None  # where the task's output goes; the replica's own
    want: Any = None  # asks the client for a name of the notebook that something looks for; where it is

    def is_in_cluster(self) -> bool:
        return False


current: Final[ContextVar[TaskContext | None]] = ContextVar("flyte_jupyter_task", default=None)

cell: Final[ContextVar[str]] = ContextVar("flyte_jupyter_cell", default="")
"""Of a cell that runs in a replica: the lease of the front end that is attached there; "" of any other."""

stalls: Final[ContextVar[str | None]] = ContextVar("flyte_jupyter_stalls", default=None)
"""The lease of the cell that stands still, and its replica with it, until the calls made here have been served."""
