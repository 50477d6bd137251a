"""FJ5xx and FJ6xx: calls that ended, or can never begin."""

from __future__ import annotations

from .flyte import ActionAbortedError, RuntimeSystemError, RuntimeUserError
from .ours import PoolError


class ReplicaDied(PoolError, RuntimeSystemError):
    """The process that ran the task ended; the task was not run again unless it asked for `retries`.

    Args:
        task: The task's name.
        replica: Where it ran: `"gpu[0]"`.
        signal: The signal that ended the process.
        exit_code: Its exit code, when no signal did.
        attempt: Which attempt it was, from 0.
        log_tail: The last lines of the replica's log.
        hint: What likely happened, for people.
        retries: What to advise: `retries=` on the task, unless it has some already.
    """

    fj_code = "FJ502"

    def __init__(
        self,
        task: str,
        replica: str,
        *,
        signal: int | None = None,
        exit_code: int | None = None,
        attempt: int = 0,
        log_tail: str = "",
        hint: str | None = None,
        retries: int = 1,
    ) -> None:
        how = (
            f"signal {signal}"
            if signal is not None
            else "no exit code known"
            if exit_code is None
            else f"exit code {exit_code}"
        )
        self._explain(
            "system",
            f"Replica {replica} died while running {task} ({how}{f', {hint}' if hint else ''}).",
            "Output up to that moment is above. A replacement is loading."
            " The task was not repeated, because it may have had side effects.",
            f"Run it again when ready, or add `retries={retries}` to the task.",
            f"Last lines of its log:\n{log_tail.rstrip()}" if log_tail else None,
            worker=replica,
        )
        self.task = task
        self.replica = replica
        self.signal = signal
        self.exit_code = exit_code
        self.attempt = attempt
        self.log_tail = log_tail


class TaskCancelled(PoolError, ActionAbortedError):
    """The task was cancelled.

    Args:
        task: The task's name.
        forced: It did not stop when asked, so its replica was ended, with everything that was loaded there.
        replica: Where it ran: `"gpu[0]"`.
        by: Who cancelled it, for people: `"train.ipynb"`.
        queued: It was still waiting for a replica.
    """

    fj_code = "FJ504"

    def __init__(
        self,
        task: str,
        forced: bool = False,
        replica: str | None = None,
        by: str | None = None,
        *,
        queued: bool = False,
    ) -> None:
        where = f"replica {replica}" if replica else "its replica"
        why = (
            f"It did not stop when asked, so {where} was ended; a replacement is loading."
            if forced
            else f"It stopped when asked; {where} is ready again and what it had loaded was kept."
        )
        if queued:
            why = "It was still waiting for a replica, and had not begun."
        self._explain(
            "user",
            f"Task {task} was cancelled{f' by {by}' if by else ''}.",
            why,
            "Call it again if you want its result.",
            worker=replica or "user",
        )
        self.task = task
        self.forced = forced
        self.replica = replica
        self.by = by


class ReplicaSilent(PoolError, RuntimeSystemError):
    """A replica lives, and does not answer in time when somebody wants to look into it.

    Args:
        replica: Its name, such as `"gpu[0]"`.
        waited_s: How long it was given, in seconds.
    """

    fj_code = "FJ505"

    def __init__(self, replica: str, waited_s: float) -> None:
        self._explain(
            "system",
            f"{replica} does not answer within {waited_s:g} s.",
            "Something in it holds Python's global lock, as C code can that runs for long.",
            "Try again, or look from outside: `py-spy dump --pid` with its process number from `flyte-jupyter status`.",
            worker=replica,
        )
        self.replica = replica


class StarvationError(PoolError, RuntimeUserError):
    """A task waits for a task that can never start, because the waiting ones hold every slot.

    Args:
        parent: The task that waits.
        child: The task it waits for.
        pool: The pool both need.
        max_replicas: The pool's maximum.
        concurrency: Slots per replica.
        possible: The most replicas the machine has room for, when that is what limits the pool.
        cell: "alone" or "shared" if no task waits but a cell, of somebody who has opened a replica of the pool so.
        memory: The child needs a kernel of its own, and those that wait have all the memory.
    """

    fj_code = "FJ601"

    def __init__(
        self,
        parent: str,
        child: str,
        pool: str,
        *,
        max_replicas: int = 1,
        concurrency: int = 1,
        possible: int | None = None,
        cell: str = "",
        memory: bool = False,
    ) -> None:
        replicas = max_replicas if possible is None else min(max_replicas, possible)
        held = "the only replica" if replicas * concurrency == 1 else "a slot, like every other waiting task,"
        limited = "" if possible is None or possible >= max_replicas else f" (this machine has room for {possible})"
        if memory:
            what = f'task "{parent}" waits for "{child}", and no memory is left for another fresh kernel of "{pool}"'
        elif cell:
            what = f'a cell in a replica of "{pool}" waits for "{child}", and keeps that replica from serving it'
        else:
            what = f'task "{parent}" holds {held} of "{pool}" and waits for "{child}", which needs the same pool'
        match cell:
            case "alone":
                cure = f"await it in a kernel that shares its replica: `flyte-jupyter attach {pool} --shared`"
            case "shared":
                cure = f"await the call: `await {child.rpartition('.')[2]}.aio(...)`"
            case _:
                cure = f'make the parent use no replica: `{parent.rpartition(".")[2]}.override(reusable="off")`'
        if memory:
            cure = f'free some memory, or let its calls share kernels: `TaskEnvironment("{pool}", reusable=...)`'
        elif not limited:
            cure = f"run `flyte-jupyter scale {pool} {max_replicas}:{max_replicas + 1}`, or {cure}"
        self._explain(
            "user",
            f"This would wait for ever: {what}.",
            "Each of its calls has a kernel of its own, which is there until the calls that it waits for have ended."
            if memory
            else f"replicas max {max_replicas}{limited} × concurrency {concurrency}.",  # noqa: RUF001
            f"{cure[0].upper()}{cure[1:]}. Nothing was started.",
        )
        self.parent = parent
        self.child = child
        self.pool = pool
        self.max_replicas = max_replicas
        self.concurrency = concurrency
