"""`scale`, `keep`, `warm`, `restart`, `interrupt`: an order to the broker, and the state in which it shows."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Final

from .. import errors
from ..client import text
from ..core import protocol as p
from ..core.snapshot import PoolView, ReplicaView
from .conversation import Conversation, one_pool
from .terminal import FAILED, OK, UNKNOWN, clock, complain, plural, pool_json, say, say_json

APPLIED_S: Final = 5.0


def run_scale(options: argparse.Namespace) -> int:
    lowest, highest = options.replicas
    with one_pool(options.pool) as (broker, view):
        scaling = view.scaling.model_copy(update={"min_replicas": lowest, "max_replicas": highest})
        broker.send(p.Scale(pool=view.key, scaling=scaling))
        return _report(broker, view, options, lambda now: now.scaling == scaling)


def run_keep(options: argparse.Namespace) -> int:
    with one_pool(options.pool) as (broker, view):
        before = view.kept_until
        broker.send(p.Keep(pool=view.key, seconds=options.duration))
        return _report(broker, view, options, lambda now: now.kept_until != before or not (options.duration or before))


def run_warm(options: argparse.Namespace) -> int:
    with one_pool(options.pool) as (broker, view):
        wanted = options.replicas or max(view.scaling.min_replicas, 1)
        if wanted > view.scaling.max_replicas:
            complain(
                f"Pool {view.name} has at most {plural(view.scaling.max_replicas, 'replica')}.",
                f"To raise that: `flyte-jupyter scale {view.name} {view.scaling.min_replicas}:{wanted}`.",
            )
            return UNKNOWN
        attempts = view.failures
        broker.send(p.Warm(pool=view.key, replicas=wanted))
        if options.no_wait:
            return _report(broker, view, options, lambda now: bool(now.replicas))

        def settled(now: PoolView) -> bool:
            ready = sum(replica.warm for replica in now.replicas)
            return ready >= wanted or (now.failures > attempts and now.failure is not None)

        code = _report(broker, view, options, settled, options.timeout)
        after = broker.snapshot().snapshot.pool(view.key)
        if after is not None and after.failures > attempts and after.failure is not None:
            cause = after.failure.cause.strip()
            raise errors.PoolFailed(
                view.name,
                cause.splitlines()[-1] if cause else "unknown",
                after.failure.replica,
                traceback=cause,
            )
        return code


def run_restart(options: argparse.Namespace) -> int:
    name, index = _parted(options.what)
    if index is not None:
        with _replica(name, index) as (broker, view, replica):
            broker.send(p.RestartReplica(replica=replica.id, force=options.force))
            return _report(broker, view, options, lambda now: _stays(now, {replica.id}) == set())
    if options.force:
        complain(f"--force is for one replica: `flyte-jupyter restart '{name}[0]' --force`.")
        return UNKNOWN
    with one_pool(name) as (broker, view):
        before = {replica.id for replica in view.replicas}
        broker.send(p.RestartPool(pool=view.key))
        return _report(broker, view, options, lambda now: _stays(now, before) == set())


def run_interrupt(options: argparse.Namespace) -> int:
    name, index = _parted(options.what)
    if index is None:
        complain(f"Say which replica: `flyte-jupyter interrupt '{name}[0]'`.")
        return UNKNOWN
    with _replica(name, index) as (broker, view, replica):
        broker.send(p.Interrupt(replica=replica.id))
        return _report(broker, view, options, lambda _: True)


def _parted(what: str) -> tuple[str, int | None]:
    """A pool's name and a replica's number, if it has one: "gpu[0]"."""
    found = re.fullmatch(r"(.+)\[([0-9]+)\]", what)
    return (found[1], int(found[2])) if found else (what, None)


@contextlib.contextmanager
def _replica(name: str, index: int) -> Iterator[tuple[Conversation, PoolView, ReplicaView]]:
    with one_pool(name) as (broker, view):
        for replica in view.replicas:
            if replica.index == index and replica.state != "stopping":
                yield broker, view, replica
                return
        there = ", ".join(replica.name for replica in view.replicas) or "none"
        complain(f"Pool {view.name} has no replica {index}; there is: {there}.")
        raise SystemExit(UNKNOWN)


def _stays(view: PoolView, replicas: set[str]) -> set[str]:
    """Those of them that will not be replaced."""
    ends = ("draining", "stopping")
    return {each.id for each in view.replicas if each.generation_current and each.state not in ends} & replicas


def _report(
    broker: Conversation,
    view: PoolView,
    options: argparse.Namespace,
    applied: Callable[[PoolView], bool],
    timeout: float = APPLIED_S,
) -> int:
    """Wait until the order shows in the state, then print the pool."""

    def holds(snapped: p.Snapped) -> bool:
        now = snapped.snapshot.pool(view.key)
        return now is not None and applied(now)

    snapped = broker.until(holds, timeout)
    if snapped is None:
        latest = broker.snapshot()
        after = latest.snapshot.pool(view.key)
        state = "gone" if after is None else text.pool_line(after, after.scaling, now=clock(latest))
        complain(f"Not done after {timeout:g} s. {view.name}: {state}")
        return FAILED
    after = snapped.snapshot.pool(view.key)
    assert after is not None
    if options.json:
        say_json(pool_json(after, snapped))
    else:
        say(f"{text.visible(after.name)}: {text.pool_line(after, after.scaling, now=clock(snapped))}")
    return OK
