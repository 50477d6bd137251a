"""How long calls usually take: what a forecast is made from."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

MOST_TASKS: Final = 100
"""Of a pool whose usual durations are kept; those that were not called for longest are forgotten."""
WEIGHT: Final = 0.2
"""Of a new duration beside all before it, once there are a few: recent ones count more."""


class Usual:
    """How long calls of a pool's tasks take, on average of the last few."""

    __slots__ = ("_any", "_tasks")

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, tuple[float, int]] = OrderedDict()  # mean, and of how many
        self._any: tuple[float, int] = (0.0, 0)

    def note(self, task: str, seconds: float) -> None:
        self._any = _mean(self._any, seconds)
        self._tasks[task] = _mean(self._tasks.get(task, (0.0, 0)), seconds)
        self._tasks.move_to_end(task)
        if len(self._tasks) > MOST_TASKS:
            self._tasks.popitem(last=False)

    def seconds(self, task: str) -> float:
        """Of a task that has not been seen that of all together; infinity while there is none."""
        mean, known = self._tasks.get(task, self._any)
        return mean if known else math.inf


def _mean(before: tuple[float, int], seconds: float) -> tuple[float, int]:
    mean, known = before
    return mean + (seconds - mean) * max(WEIGHT, 1 / (known + 1)), known + 1
