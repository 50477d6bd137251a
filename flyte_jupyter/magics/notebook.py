"""What the magics of one notebook share: its settings, its pools, and the cells that have run."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from IPython.core.error import UsageError

from ..client import outputs
from .crossing import Crossing
from .jobs import Job
from .pools import Pools
from .settings import Settings

KEPT: Final = 50
"""Cells whose job, or whose cut-off output, can still be asked for."""


@dataclass(slots=True)
class Ran:
    """A cell that has been started."""

    name: str
    guard: outputs.Guard
    job: Job | None = None


class Notebook(Crossing):
    """One shell with the extension loaded."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.settings = Settings()
        self.pools = Pools(shell, self.settings)
        self.ran: OrderedDict[str, Ran] = OrderedDict()

    def remember(self, number: str, ran: Ran) -> None:
        self.ran[number] = ran
        while len(self.ran) > KEPT:
            _, old = self.ran.popitem(last=False)
            if old.guard.spool is not None:
                old.guard.spool.close()

    def number(self, count: int) -> str:
        """What a cell is called in magics: its number, with another one if it starts several."""
        found = str(count)
        again = 0
        while found in self.ran:
            again += 1
            found = f"{count}.{again}"
        return found

    def find(self, task: str) -> Ran:
        """A cell by its number, or by the variable of its job. Raises UsageError."""
        value = self.shell.user_ns.get(task)
        if isinstance(value, Job):
            return next((ran for ran in self.ran.values() if ran.job is value), Ran(value.name, _no_guard(), value))
        found = self.ran.get(task.removeprefix("#"))
        if found is None:
            known = ", ".join(self.ran) or "none"
            raise UsageError(
                f"{task!r} is no task cell of this notebook. By number: {known}. Or write a job's variable."
            )
        return found

    def jobs(self) -> list[Job]:
        """The background cells that are not over."""
        return [ran.job for ran in self.ran.values() if ran.job is not None and not ran.job.done()]


def _no_guard() -> outputs.Guard:
    return outputs.Guard(outputs.Screen(), 0, "")
