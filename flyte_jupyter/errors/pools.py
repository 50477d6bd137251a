"""FJ3xx: the pool itself cannot serve."""

from __future__ import annotations

from collections.abc import Sequence

from .flyte import ActionAbortedError, RuntimeUserError
from .ours import PoolError, listed, sentence


class PoolFailed(PoolError, RuntimeUserError):
    """No replica of the pool can be used, because its preload fails.

    Args:
        pool: The pool's name.
        cause: The last line of what went wrong: `'ModuleNotFoundError: No module named "transformers"'`.
        replica: The replica that failed last, by its number.
        traceback: The preload's traceback, as text.
        serving: The replicas that still serve.
        preload: False if the process ended before its preload began.
    """

    fj_code = "FJ301"

    def __init__(
        self,
        pool: str,
        cause: str,
        replica: str | int | None = None,
        traceback: str = "",
        serving: Sequence[str | int] = (),
        *,
        preload: bool = True,
    ) -> None:
        where = "" if replica is None else f" on replica {replica}"
        so = f', so the pool "{pool}"' if replica is None else ", so it"
        module = _missing_module(cause)
        name = None if replica is None else str(replica)
        if name is not None and "[" not in name:
            name = f"{pool}[{name}]"
        again = f"start the pool again: `flyte-jupyter warm {pool}`"
        if module:
            why = f"{cause.strip().rstrip('.')}, in the pool's Python (not in the notebook's)."
            do = f"Install it there: `python -m pip install {module}`, then {again}."
        else:
            why = sentence(cause)
            do = f"Correct the preload and run its cell again, or {again}." if preload else f"To try again, {again}."
            if name is not None:
                do += f" Its log: `flyte-jupyter logs {name}`."
        if serving:
            do += f" {_replicas(serving)} still {'serves' if len(serving) == 1 else 'serve'}."
        self._explain(
            "user",
            f"{'Preload failed' if preload else 'The process did not start'}{where}{so} will not be used.",
            why,
            do,
            traceback.rstrip() or None,
            worker=name,
        )
        self.pool = pool
        self.cause = cause
        self.replica = replica
        self.traceback = traceback
        self.serving = tuple(serving)


class PoolStopped(PoolError, ActionAbortedError):
    """The pool was stopped by hand while the task waited or ran.

    Args:
        pool: The pool's name.
        by: Who stopped it, for people: `"train.ipynb"`.
    """

    fj_code = "FJ302"

    def __init__(self, pool: str, by: str | None = None) -> None:
        self._explain(
            "user",
            f'The pool "{pool}" was stopped.',
            f"It was stopped by {by}." if by else "Somebody stopped it: a notebook, the side panel or a terminal.",
            "Call the task again: that starts the pool again, and its preload runs.",
            worker="user",
        )
        self.pool = pool
        self.by = by


def _replicas(names: Sequence[str | int]) -> str:
    return f"{'Replica' if len(names) == 1 else 'Replicas'} {listed(names)}"


def _missing_module(cause: str) -> str | None:
    _, found, rest = cause.partition("o module named ")
    return rest.strip().strip("\"'.").partition(".")[0] if found else None
