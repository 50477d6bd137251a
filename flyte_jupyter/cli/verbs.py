"""The verbs of `core.verbs` as commands: an order to the broker, and the state in which it shows."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

from ..client import text
from ..core import protocol as p
from ..core.arguments import parse_duration, parse_replica
from ..core.snapshot import PoolView
from ..core.verbs import POOL, REPLICA, Verbs, Warm
from .connection import Connection, one_pool
from .terminal import FAILED, OK, UNKNOWN, clock, complain, pool_json, say, say_json

APPLIED_S: Final = 5.0
READY_S: Final = 600.0
NAMES: Final = tuple(dict.fromkeys((*POOL, *REPLICA)))


def about(name: str) -> str:
    """The help of a verb: about a pool, about one of its replicas, or about either."""
    pool, replica = POOL.get(name), REPLICA.get(name)
    if pool is None or replica is None:
        return next(verb.does for verb in (pool, replica) if verb is not None)
    return f"{pool.does}; with NAME[i], {replica.does}"


def example(name: str) -> str:
    verb = POOL.get(name)
    if verb is None or name in REPLICA:
        return f"flyte-jupyter {name} 'gpu[0]'"
    return f"flyte-jupyter {name} gpu{f' {verb.word.example}' if verb.word else ''}"


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Those that the verb has about a pool, and about a replica."""
    there = [verb for verb in (POOL.get(name), REPLICA.get(name)) if verb is not None]
    metavar = "POOL" if name not in REPLICA else "POOL|NAME[i]" if name in POOL else "NAME[i]"
    parser.add_argument("target", type=parse_replica, metavar=metavar, help="a pool goes by name or key")
    for word in (verb.word for verb in there if verb.word is not None):
        count = "?" if word.optional else None
        parser.add_argument("fields", type=word.fields, metavar=word.metavar, help=word.help, nargs=count)
    if any(verb.forcible() for verb in there):
        only = "" if all(verb.forcible() for verb in there) else "one replica: "
        parser.add_argument(
            "--force", "--now", action="store_true", help=f"{only}do not wait for running calls, which fail"
        )
    parser.set_defaults(verb=name)


def run_verb(options: argparse.Namespace) -> int:
    """Give the order and wait until the pool shows it."""
    name, index = options.target
    verbs: Verbs[Any] = POOL if index is None else REPLICA
    order_type = verbs.get(options.verb)
    if order_type is None:
        complain(
            f"{options.verb} is for a whole pool: `flyte-jupyter {options.verb} {name}`."
            if index is not None
            else f"Say which replica: `flyte-jupyter {options.verb} '{name}[0]'`."
        )
        return UNKNOWN
    fields = dict(getattr(options, "fields", None) or {})
    if getattr(options, "force", False):
        if not order_type.forcible():
            complain(f"--force is for one replica: `flyte-jupyter {options.verb} '{name}[0]' --force`.")
            return UNKNOWN
        fields["force"] = True
    with one_pool(name) as (broker, view):
        target = view if index is None else view.replica_at(index)
        try:
            order = order_type.of(**fields)
            message = order.message(target)
        except ValueError as problem:
            complain(str(problem))
            return UNKNOWN
        broker.send(message)
        if isinstance(order, Warm) and not options.no_wait:
            return _wait_ready(broker, view, order.count(view), options)
        return _report(broker, view, options, lambda now: order.shows(target, view, now))


def add_warm_arguments(parser: argparse.ArgumentParser) -> None:
    """`warm` alone waits for more than that the order has been taken."""
    parser.add_argument("--no-wait", action="store_true", help="return once the first one is starting")
    parser.add_argument("--timeout", type=parse_duration, default=READY_S, metavar="T", help="wait this long (10m)")


def _wait_ready(broker: Connection, view: PoolView, wanted: int, options: argparse.Namespace) -> int:
    def settled(now: PoolView) -> bool:
        ready = sum(replica.warm for replica in now.replicas)
        return ready >= wanted or (now.failures > view.failures and now.failure is not None)

    code = _report(broker, view, options, settled, options.timeout)
    after = broker.snapshot().snapshot.pool(view.key)
    if after is not None and after.failures > view.failures and after.failure is not None:
        raise after.failure.error(view.name)
    return code


def _report(
    broker: Connection,
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
