"""`stop`: a pool, or the broker and everything it started."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

from .. import errors, runtime
from ..core import protocol as p
from ..core.dialogue import ANSWER_S
from ..core.snapshot import ReplicaView
from ..core.verbs import Stop
from .connection import named, talk
from .processes import end_leftovers, is_broker, wait_gone
from .terminal import FAILED, OK, complain, plural, say, say_json

POLITE_S: Final = 15.0
"""How long the broker may take to end what it started; it gives running tasks some seconds."""
TERM_S: Final = 5.0
GUARDIAN_S: Final = 6.0


def run_stop(options: argparse.Namespace) -> int:
    return _stop_all(options) if options.pool is None else _stop_pool(options)


def _stop_pool(options: argparse.Namespace) -> int:
    with talk() as broker:
        if broker is None:
            if options.json:
                say_json({"stopped": [], "broker": None})
            else:
                say("No broker runs, so no pool does.")
            return OK
        found = named(options.pool, broker.snapshot().snapshot.pools)
        order = Stop(force=options.force)
        keys = {view.key for view in found}
        replicas = [replica.name for view in found for replica in view.replicas]
        users = _users(**_in_use(replica for view in found for replica in view.replicas))

        def gone(snapped: p.Snapped) -> bool:
            return not any(view.replicas for view in snapped.snapshot.pools if view.key in keys)

        try:
            for view in found:
                broker.send(order.message(view))
            if users and not options.force and not options.json:
                say(f"{users} may end first; --force ends them now.")
            over = broker.until(gone, options.timeout) is not None
        except errors.BrokerGone:
            over = True
    if options.json:
        say_json({"stopped": replicas if over else [], "broker": broker.pid})
    elif over:
        say(f"Stopped {_listed(replicas)}. The next call starts the pool again.")
    if not over:
        complain(
            f"Pool {options.pool} still has {users or 'a replica'} after {options.timeout:g} s;"
            " it stops when that ends.",
            f"To end it now: `flyte-jupyter stop {options.pool} --force`.",
        )
    return OK if over else FAILED


def _stop_all(options: argparse.Namespace) -> int:
    import psutil

    folder = runtime.private_folder()
    holder = runtime.lock_holder(folder)
    stopped: dict[str, Any] = {"broker": holder, "replicas": [], **_in_use(()), "how": None, "leftovers": []}
    if holder is not None:
        try:
            process = psutil.Process(holder)
            if not is_broker(process):
                complain(
                    f"The lock {runtime.broker_lock(folder)} names pid {holder}, which is not a broker"
                    " of yours; nothing was ended.",
                    "If the broker runs in a container or on another machine, stop it there.",
                )
                return FAILED
            stopped["how"] = _end_broker(process, options.force, stopped)
        except psutil.NoSuchProcess:
            stopped["how"] = "ended by itself"
    deadline = time.monotonic() + TERM_S
    while runtime.lock_holder(folder) == holder is not None and time.monotonic() < deadline:
        time.sleep(0.02)  # a killed process is a zombie some moments before its last thread lets go of the lock
    if runtime.lock_holder(folder) is None:  # else a client has started another, which sweeps up itself
        stopped["leftovers"] = sorted(end_leftovers(folder, GUARDIAN_S if holder is not None else 0.0))
    left = runtime.lock_holder(folder) == holder is not None
    if options.json:
        say_json(stopped)
    elif holder is None and not stopped["leftovers"]:
        say("No broker runs.")
    else:
        say(*_what_stopped(stopped))
    if left:
        complain(f"The broker (pid {holder}) could not be ended.")
    return FAILED if left else OK


def _what_stopped(stopped: dict[str, Any]) -> Iterator[str]:
    if stopped["broker"] is not None:
        users = _users(stopped["tasks"], stopped["attached"])
        replicas = _listed(stopped["replicas"]) + (f", with {users}" if users else "")
        yield f"Stopped the broker (pid {stopped['broker']}, {stopped['how']}) and {replicas}."
    if stopped["leftovers"]:
        yield f"Ended what was left behind: pid {', '.join(map(str, stopped['leftovers']))}."


def _in_use(replicas: Iterable[ReplicaView]) -> dict[str, int]:
    """How many tasks run there, and how many front ends have one open."""
    leases = [lease for replica in replicas for lease in replica.running]
    attached = sum(lease.attached for lease in leases)
    return {"tasks": len(leases) - attached, "attached": attached}


def _users(tasks: int, attached: int) -> str:
    """ "1 running task and 2 attached front ends"; empty if there is nobody."""
    words = [plural(tasks, "running task")] * bool(tasks) + [plural(attached, "attached front end")] * bool(attached)
    return " and ".join(words)


def _listed(replicas: list[str]) -> str:
    return f"{plural(len(replicas), 'replica')} ({', '.join(replicas)})" if replicas else "no replicas"


def _end_broker(process: Any, force: bool, stopped: dict[str, Any]) -> str:
    """Ask it, then SIGTERM, then SIGKILL; psutil makes sure that each is meant for this very process."""
    asked = False
    with contextlib.suppress(errors.PoolError), talk(min(ANSWER_S, 3.0)) as broker:
        if broker is not None:
            pools = broker.snapshot().snapshot.pools
            replicas = [replica for view in pools for replica in view.replicas]
            stopped["replicas"] = [replica.name for replica in replicas]
            stopped.update(_in_use(replicas))
            if force:
                for view in pools:
                    broker.send(Stop(force=True).message(view))
            broker.send(p.Shutdown())
            asked = True
    if asked and wait_gone(process, POLITE_S):
        return "it ended as asked"
    process.terminate()
    if wait_gone(process, TERM_S):
        return "it did not answer, so SIGTERM"
    process.kill()
    wait_gone(process, TERM_S)
    return "it did not answer, so SIGKILL"
