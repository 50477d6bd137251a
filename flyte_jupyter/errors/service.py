"""FJ1xx: the broker, and what it is asked for and does not know."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from .flyte import RuntimeSystemError, RuntimeUserError
from .ours import PoolError, listed, sentence


class BrokerGone(PoolError, RuntimeSystemError):
    """The broker stopped while it was needed.

    Args:
        cause: How it ended, for people: `"exit 137: out of memory"`.
        replicas: Its replicas that are still alive; a new broker adopts them.
    """

    fj_code = "FJ101"

    def __init__(self, cause: str | None = None, replicas: Sequence[str | int] = ()) -> None:
        why = [f"It stopped ({cause})"] if cause else []
        if replicas:
            noun = "replica" if len(replicas) == 1 else "replicas"
            why.append(f"Your {noun} {listed(replicas)} {'is' if len(replicas) == 1 else 'are'} still alive")
        adopted = "; they will be adopted, nothing has to be loaded again" if replicas else ""
        self._explain(
            "system",
            "The broker is not running.",
            ". ".join(why) + "." if why else None,
            f"Call the task again: that starts it{adopted}. `flyte-jupyter doctor` checks the rest.",
        )
        self.cause = cause
        self.replicas = tuple(replicas)


class BrokerUnavailable(PoolError, RuntimeSystemError):
    """There is no broker to talk to: it could not be started, or none runs and none is to be started.

    Args:
        cause: What was tried and what came of it; may be empty.
        log_path: The broker's log file.
        log_tail: Its last lines.
        do: What to do about it, where that is known.
        what: What is the matter, where it was not started.
    """

    fj_code = "FJ104"

    def __init__(
        self,
        cause: str,
        log_path: str | None = None,
        log_tail: str = "",
        *,
        do: str | None = None,
        what: str = "The broker could not be started.",
    ) -> None:
        tail = f"\n{log_tail.rstrip()}" if log_tail else ""
        where = f" The whole log: {log_path}." if log_path else ""
        self._explain(
            "system",
            what,
            f"{sentence(cause)}{tail}" if cause else None,
            (do or "Run `python -m flyte_jupyter.broker` in a terminal to see it fail.") + where,
        )
        self.cause = cause
        self.log_path = log_path
        self.log_tail = log_tail


class BrokerSilent(PoolError, RuntimeSystemError):
    """The broker runs, but does not answer.

    Args:
        pid: Its process, where that is known.
        seconds: How long it was waited for.
    """

    fj_code = "FJ107"

    def __init__(self, pid: int | None, seconds: float) -> None:
        self._explain(
            "system",
            f"The broker{'' if pid is None else f' (pid {pid})'} does not answer.",
            f"It runs, but it has been silent for {seconds:g} s. Either it was paused (by Ctrl-Z or a debugger),"
            " or this machine is out of memory or much too busy.",
            "Try again: calls that already run go on meanwhile. If that does not help, run `flyte-jupyter stop`, which"
            " ends the broker and its replicas; the next call starts another.",
        )
        self.pid = pid
        self.seconds = seconds


class ProtocolError(PoolError, RuntimeSystemError):
    """What arrived on a socket is not what two of our processes say to each other.

    Args:
        problem: What is wrong with it.
    """

    fj_code = "FJ105"

    def __init__(self, problem: str) -> None:
        self._explain(
            "system",
            f"The connection to another process of flyte_jupyter broke: {problem}.",
            "Either that process ended in the middle of a message, or it is of another version.",
            "Call the task again; if that does not help, run `flyte-jupyter stop` and try once more.",
        )
        self.problem = problem


class NoSuchPool(PoolError, RuntimeUserError):
    """A pool was asked for by a name that nobody declared.

    Args:
        pool: The name that was asked for.
        pools: Every pool there is, and its state: `{"gpu": "2 ready"}`; a plain list of names is fine.
        gpus: How many GPUs the suggested command asks for.
    """

    fj_code = "FJ102"

    def __init__(self, pool: str, pools: Mapping[str, str] | Iterable[str] = (), gpus: int = 1) -> None:
        known = dict(pools) if isinstance(pools, Mapping) else dict.fromkeys(pools, "")
        listed = ", ".join(f"{name} ({state})" if state else name for name, state in known.items())
        close = difflib.get_close_matches(pool, known, n=1)
        resources = f" resources=flyte_jupyter.Resources(gpu={gpus})," if gpus else ""
        meant = f"Did you mean `{close[0]}`? " if close else ""
        self._explain(
            "user",
            f'There is no pool named "{pool}".',
            f"Existing pools: {listed}." if listed else "No pool exists yet.",
            f"{meant}Create one with `env = flyte_jupyter.TaskEnvironment({pool!r},{resources}"
            " reusable=flyte_jupyter.ReusePolicy(1))` and `flyte_jupyter.pool(env).warm()`.",
        )
        self.pool = pool
        self.pools = known


class NoSuchReplica(PoolError, RuntimeUserError, LookupError):
    """A replica was asked for, to look into it, to attach to it or to give it an order, and there is none.

    Args:
        wanted: What was asked for: `"gpu[1]"`, `"gpu"`, or `""` for any.
        pools: Every pool there is, and its state, as in `NoSuchPool`.
        existing: The numbers of the replicas that the pool has, if that is known.
    """

    fj_code = "FJ106"

    def __init__(
        self, wanted: str, pools: Mapping[str, str] | None = None, existing: Sequence[int] | None = None
    ) -> None:
        listed = ", ".join(f"{name} ({state})" for name, state in (pools or {}).items())
        name, _, number = wanted.removesuffix("]").partition("[")
        pool = name or next(iter(pools or {}), "POOL")
        if existing is None or not number:
            what = f"There is no replica {wanted}." if wanted else "There is no replica."
        else:
            what = f'The pool "{name}" has no replica {number} (existing: {", ".join(map(str, existing)) or "none"}).'
        self._explain(
            "user",
            what,
            f"Existing pools: {listed}." if listed else None if existing else "No pool exists yet.",
            f"`flyte-jupyter status {pool}` shows them."
            if existing and number
            else f"Call one of its tasks, or run `flyte-jupyter warm {pool}`, then try again.",
        )
        self.wanted = wanted
        self.pools = dict(pools or {})
        self.existing = None if existing is None else tuple(existing)


class VersionMismatch(PoolError, RuntimeSystemError):
    """Two processes that talk to each other run different versions of this package.

    Args:
        kernel: The version in this process.
        other: The version at the other end.
        where: What is at the other end: `"server"` (the Jupyter server) or `"broker"`.
        here: The kind of this process, as it introduces itself to the broker.
    """

    fj_code = "FJ103"

    def __init__(
        self, kernel: str, other: str, where: Literal["server", "broker"] = "broker", here: str = "notebook"
    ) -> None:
        this = _HERE.get(here, "notebook")
        if where == "server":
            what = (
                "This notebook and the Jupyter server use different flyte_jupyter versions"
                f" (kernel {kernel}, server {other})."
            )
            why = "They live in two environments, so the side panel cannot show this pool."
            do = (
                f"Calls work. To fix the panel, install {kernel} in the environment that runs Jupyter,"
                " then reload the page."
            )
        else:
            what = f"This {this} and the broker use different flyte_jupyter versions ({this} {kernel}, broker {other})."
            why = "The broker was started by another version, and the two do not understand each other."
            do = (
                "Install the same version in both environments, then run `flyte-jupyter stop` and restart Jupyter."
                if here == "server"
                else "Stop it with `flyte-jupyter stop` (its replicas go too); the next call starts"
                f" version {kernel}. Or install {other} in this {this}'s environment."
            )
        self._explain("system", what, why, do)
        self.kernel = kernel
        self.other = other
        self.where = where


_HERE: Final = {
    "server": "Jupyter server",
    "cli": "command",
    "script": "script",
    "terminal": "session",
    "replica": "task",
}
