"""Whether a call is tried again, and how long it may take: shared by the blocking and the awaited form."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from ..core import failure

if TYPE_CHECKING:
    from .environment import Task

REQUEUES: Final = 10
"""How often a call that never started may be sent elsewhere."""


class Limits:
    """A task's time limits as instants. All attempts share the deadline; the others start anew with each."""

    __slots__ = ("deadline", "max_queued", "max_runtime", "name")

    def __init__(self, task: Task[..., Any]) -> None:
        limits = task.time_limits
        self.name = task.name
        self.max_runtime = limits.seconds("max_runtime")
        self.max_queued = limits.seconds("max_queued_time")
        total = limits.seconds("deadline")
        self.deadline = None if total is None else time.monotonic() + total

    def while_queued(self) -> float | None:
        """The instant until which an attempt may wait for its slot."""
        return _earlier(None if self.max_queued is None else time.monotonic() + self.max_queued, self.deadline)

    def while_running(self) -> float | None:
        return _earlier(None if self.max_runtime is None else time.monotonic() + self.max_runtime, self.deadline)

    def pause(self, delay: float) -> float:
        """What the deadline leaves of the pause before another attempt."""
        return delay if self.deadline is None else min(delay, max(0.0, self.deadline - time.monotonic()))

    def over(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def exceeded(self, running: bool, *notes: str) -> errors.TaskTimeoutError:
        """The error; `notes` say what became of the replica."""
        if self.over():
            late: errors.TaskTimeoutError = errors.DeadlineExceededError(
                f"Task {self.name} passed its deadline and was stopped."
            )
            return errors.with_notes(late, *notes)
        if running:
            limit = f"{self.max_runtime:g} s"
            late = errors.MaxRuntimeExceededError(
                f"FJ503 Task {self.name} reached its limit of {limit} and was stopped."
            )
            return errors.with_notes(late, *notes)
        return errors.MaxQueuedTimeExceededError(f"Task {self.name} waited {self.max_queued:g} s for a slot.")


def _earlier(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)


class Attempts:
    """Whether a failed call is tried again: only if it asked for retries, and its error allows one."""

    __slots__ = ("_left", "_requeues", "_task", "number")

    def __init__(self, task: Task[..., Any] | None) -> None:
        self._task = task
        self._left = 0 if task is None else task.retries.count
        self._requeues = REQUEUES
        self.number = 0

    def requeue(self) -> float | None:
        """It never started, so this was no attempt: the seconds until it is sent elsewhere; None after many.

        The waits grow, from 1 ms to 0.5 s: until the broker knows of a death it grants the dead replica again.
        """
        self._requeues -= 1
        return 0.001 * 2.0 ** (REQUEUES - 1 - self._requeues) if self._requeues >= 0 else None

    def delay(self, error: BaseException) -> float | None:
        """Seconds until the next attempt; None if there is none."""
        final = errors.DeadlineExceededError | errors.TaskCancelled | errors.StarvationError | errors.PoolError
        if isinstance(error, final) and not isinstance(error, errors.ReplicaDied):
            return None
        if failure.flyte_code(error) == "NonRecoverableError" or self._left <= 0 or self._task is None:
            return None
        self._left -= 1
        seconds: float = self._task.retries.delay(self.number)
        self.number += 1
        return seconds
