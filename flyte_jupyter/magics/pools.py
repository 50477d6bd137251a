"""Which pool a name means, and the magics about pools and the broker."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand

from .. import errors
from ..client import broker, text
from ..client import handle as handles
from ..client.attached import find_replica
from ..client.environment import TaskEnvironment
from ..client.handle import AttachedPool, PoolHandle
from ..client.leases import LINGER_S
from ..client.pools import pool as pool_of
from ..client.running import RunningPool
from ..core.policy import ReusePolicy
from ..core.resources import Resources
from ..core.snapshot import LeaseView, PoolView, ReplicaView
from ..core.usage import Usage
from ..core.verbs import POOL, REPLICA, Stop, Verbs, Warm
from ..peek import peek
from .options import (
    argument,
    magic_arguments,
    parse,
    parse_count,
    parse_duration,
    parse_replica,
    parse_replicas,
)
from .present import tidy
from .settings import Settings

READY_S: Final = 600.0
ATTACH_KERNEL: Final = "flyte-attach"
ATTACH_NAME: Final = "Flyte: attach to a warm kernel"
ATTACH_VARIABLE: Final = "FLYTE_JUPYTER_ATTACH"

OURS: Final = {"create": "make a pool of an environment of that name", "list": "name all pools", "show": "show one"}
"""Verbs that are no order to the broker."""
VERBS: Final = tuple(dict.fromkeys((*OURS, *POOL, *REPLICA)))
VALUES: Final = "; ".join(
    f"{name}: {verb.word.metavar}, such as {verb.word.example}" for name, verb in POOL.items() if verb.word
)


def described() -> dict[str, str]:
    """Each verb of `%flyte_pool`, with what it does."""
    orders = {name: "; ".join(verbs[name].does for verbs in (POOL, REPLICA) if name in verbs) for name in VERBS}
    return orders | OURS


class Pools:
    """The pools that this notebook can name."""

    def __init__(self, shell: Any, settings: Settings) -> None:
        self.shell = shell
        self._settings = settings
        self._made: dict[str, PoolHandle] = {}  # by `%flyte_pool create`; nobody else may hold them
        self.last: RunningPool | None = None

    def find(self, name: str = "") -> RunningPool:
        """The pool of an environment, by variable or by name; without a name the default, the last or the only one.

        Raises:
            NoSuchPool: There is none of that name.
            UsageError: There are several, and none was named.
        """
        pool = self._named(name) if name else self._default()
        self.last = pool
        return pool

    def find_declared(self, name: str = "") -> PoolHandle:
        """The same, if this notebook has its declaration. Raises UsageError if it was declared elsewhere, as `find`."""
        pool = self.find(name)
        if not isinstance(pool, PoolHandle):
            raise UsageError(f"pool {pool.name} was declared elsewhere; run its declaration here first")
        return pool

    def create(self, environment: TaskEnvironment) -> PoolHandle:
        made = self._made[environment.name] = self.last = pool_of(environment)
        return made

    def here(self) -> dict[str, PoolHandle]:
        """Those declared by this process, by name; an environment that is a variable now is what its name means."""
        declared = [value for value in self.shell.user_ns.values() if isinstance(value, TaskEnvironment)]
        present = {env.name: handles.handle_of(env) for env in declared if env.reusable}
        return {pool.name: pool for pool in handles.known_pools()} | self._made | present

    def names(self) -> list[str]:
        """What can be written for a pool; asks nobody."""
        variables = [
            name
            for name, value in self.shell.user_ns.items()
            if isinstance(value, TaskEnvironment | RunningPool) and not name.startswith("_")
        ]
        return sorted({*variables, *self.here()})

    def known(self, name: str) -> RunningPool | None:
        """The same, if that can be told without asking anybody."""
        name = name or self._settings.pool
        value = self.shell.user_ns.get(name)
        if isinstance(value, RunningPool):
            return value
        if isinstance(value, TaskEnvironment):
            return handles.handle_of(value)
        if not name:
            return self.last
        found = self.here().get(name)
        return self.last if found is None and self.last is not None and self.last.name == name else found

    def _named(self, name: str) -> RunningPool:
        pool = self.known(name)
        if pool is not None:
            return pool
        known = self.here()
        there = _views()
        found = [view for view in there if view.name == name]
        if found:
            return AttachedPool(found[-1])
        states = {view.name: text.pool_state(view) for view in there}
        error = errors.NoSuchPool(name, {**dict.fromkeys(known, "not started"), **states})
        meant, _, _ = error.__notes__[-1].partition("Create one")
        error.__notes__[-1] = f"{meant}Create one with `%flyte_pool create {name} --replicas 1:2`."
        raise error

    def _default(self) -> RunningPool:
        if self._settings.pool:
            return self._named(self._settings.pool)
        if self.last is not None:
            return self.last
        known = self.here()
        if len(known) == 1:
            return next(iter(known.values()))
        there = {view.name: view for view in _views()} if not known else {}
        if len(there) == 1:
            return AttachedPool(next(iter(there.values())))
        names = ", ".join(sorted({*known, *there}))
        if names:
            raise UsageError(f"Which pool? There are {names}; write one of them after the magic.")
        raise UsageError("There is no pool yet. Create one with `%flyte_pool create NAME --replicas 1:2`.")


def _views() -> list[PoolView]:
    """What the broker knows, if one runs."""
    try:
        connection = broker.current() or broker.connect(start=False)
        pools = connection.snapshot().snapshot.pools
    except (errors.BrokerUnavailable, errors.BrokerGone):
        return []
    return [view for view in pools if not (view.single_use or view.retiring)]


def _usage() -> Usage:
    """What is used, if a broker runs."""
    try:
        return (broker.current() or broker.connect(start=False)).snapshot(usage=True).usage
    except (errors.BrokerUnavailable, errors.BrokerGone):
        return Usage()


def command(*arguments: str, only: str = "") -> None:
    """Run `flyte-jupyter` and print what it prints, while it prints it; `only` lines that contain that.

    In a process of its own: what it checks (imports, say) must not be what this notebook has made of it.
    """
    asked = [sys.executable, "-m", "flyte_jupyter.cli", *arguments]
    with subprocess.Popen(
        asked, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as running:
        assert running.stdout is not None
        try:
            for line in running.stdout:
                if only in line:
                    sys.stdout.write(line)
        except KeyboardInterrupt:
            running.terminate()


def _pair(value: str) -> tuple[str, str]:
    name, found, what = value.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{value!r} is not NAME=VALUE")
    return name, what


@magics_class
class PoolMagics(Magics):
    """The magics about pools and the broker."""

    shell: Any

    def __init__(self, shell: Any, pools: Pools) -> None:
        super().__init__(shell)
        self.pools = pools

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument("verb", choices=VERBS, help="; ".join(f"{name}: {about}" for name, about in described().items()))
    @argument("pool", nargs="?", metavar="NAME[i]", help="a pool or one of its replicas, also by its variable")
    @argument("value", nargs="?", metavar="VALUE", help=VALUES)
    @argument("--gpus", type=parse_count(0), default=0, metavar="N", help="create: whole GPUs for each replica")
    @argument("--cpu", action="store_true", help="create: no GPU, which is what happens without --gpus, too")
    @argument("--memory", metavar="SIZE", help="create: what a replica may use, such as 8Gi")
    @argument("--replicas", type=parse_replicas, default=(1, 1), metavar="MIN:MAX", help="create: how many (1)")
    @argument("--concurrency", type=parse_count(1), default=1, metavar="N", help="create: slots of a replica (1)")
    @argument("--idle-ttl", type=parse_duration, metavar="T", help="create: the pool stops after that long without use")
    @argument("--scaledown-ttl", type=parse_duration, metavar="T", help="create: so does a replica above MIN")
    @argument("--env", type=_pair, action="append", default=[], metavar="K=V", help="create: an environment variable")
    @argument("--now", action="store_true", help="stop, restart NAME[i]: do not wait for running calls")
    @argument("--timeout", type=parse_duration, default=READY_S, metavar="T", help="warm: wait this long (10m)")
    def flyte_pool(self, line: str) -> RunningPool | None:
        """Create, show and steer pools of warm kernels.

        Example: %flyte_pool create gpu --gpus 1 --replicas 1:3
        """
        options = parse(self.shell, self.flyte_pool, line)
        if options.pool is None and options.verb not in ("create", "list", "show", "warm"):
            raise UsageError(f"%flyte_pool {options.verb}: which pool? There are {', '.join(self.pools.names())}.")
        with tidy(self.shell):
            match options.verb:
                case "create":
                    return self._create(options)
                case "list":
                    self._list()
                    return None
                case "show":
                    return self.pools.find(options.pool or "")
                case verb:
                    return self._order(verb, options)

    def _order(self, verb: str, options: argparse.Namespace) -> RunningPool | None:
        """Give an order of the table."""
        name, number = _parsed(parse_replica, options.pool, verb, "gpu") if options.pool else ("", None)
        verbs: Verbs[Any] = POOL if number is None else REPLICA
        order_type = verbs.get(verb)
        if order_type is None:
            about = f"is for a whole pool: {name}" if number is not None else f"is for one replica, such as {name}[0]"
            raise UsageError(f"%flyte_pool {verb} {about}")
        fields: dict[str, Any] = {}
        if order_type.word is not None and not (options.value is None and order_type.word.optional):
            fields |= _parsed(order_type.word.fields, options.value, verb, order_type.word.example)
        if options.now and not order_type.forcible():
            raise UsageError(f"%flyte_pool {verb} --now is for one replica, such as {name}[0]")
        if order_type.forcible():
            fields["force"] = options.now
        pool = self.pools.find(name)
        try:
            order = order_type.of(**fields)
            if isinstance(order, Warm):
                return pool.warm(order.replicas, timeout=options.timeout)
            if isinstance(order, Stop):
                self._stop(pool, order)
                return None
            pool = pool.order(order) if number is None else pool.order_at(number, order)
        except ValueError as problem:
            raise UsageError(f"%flyte_pool {verb}: {problem}") from None
        said = order.said(pool.name if number is None else f"{pool.name}[{number}]")
        if said:
            print(said)
        return pool if number is None else None

    def _create(self, options: argparse.Namespace) -> PoolHandle:
        if options.pool is None:
            raise UsageError("%flyte_pool create: what is it to be called?")
        resources = None
        if options.gpus or options.memory:
            resources = Resources(gpu=options.gpus or None, memory=options.memory)
        try:
            policy = ReusePolicy(
                options.replicas,
                concurrency=max(options.concurrency, 2),
                **{
                    name: value
                    for name, value in (("idle_ttl", options.idle_ttl), ("scaledown_ttl", options.scaledown_ttl))
                    if value is not None
                },
            )
            # Not at once: of one slot Flyte warns, since tasks that call tasks could starve. Cells do not do that.
            policy.concurrency = options.concurrency
            environment = TaskEnvironment(
                options.pool, resources=resources, reusable=policy, env_vars=dict(options.env) or None
            )
        except (ValueError, TypeError) as problem:
            raise UsageError(str(problem)) from None
        pool = self.pools.create(environment)
        if pool.scaling.min_replicas:
            pool.warm(wait=False)
        return pool

    def _list(self) -> None:
        views = {view.name: view for view in _views()}
        pools = self.pools.here()
        if not views and not pools:
            print("No pool yet. Create one with `%flyte_pool create NAME --replicas 1:2`.")
        now = time.monotonic()
        for name in sorted({*views, *pools}):
            view = views.get(name)
            scaling = pools[name].scaling if view is None else view.scaling
            print(f"{text.visible(name)}: {text.pool_line(view, scaling, now=now)}")

    def _stop(self, pool: RunningPool, order: Stop) -> None:
        """Stop it, and say what it waits for instead of waiting."""
        running = _running(pool)
        if running and not order.force:
            time.sleep(2 * LINGER_S)  # the last call's slot is kept for the next one, for a moment
            running = _running(pool)
        waits = running and not order.force
        pool.stop(force=order.force, wait=not waits)
        if waits:
            what = ", ".join(f"{lease.task} ({lease.client})" for lease in running[:3])
            print(f"{pool.name} stops when this has ended: {what}. To end it now: %flyte_pool stop {pool.name} --now")
        else:
            print(f"Stopped {pool.name}. The next call starts it again.")

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument("pool", nargs="?", metavar="NAME", help="only this pool")
    @argument("--watch", action="store_true", help="print again whenever something changes; Stop ends it")
    def flyte_status(self, line: str) -> None:
        """Show pools, replicas, queues, GPUs and clients as text."""
        options = parse(self.shell, self.flyte_status, line)
        with tidy(self.shell):
            if options.pool is None and not options.watch:
                command("status")
                return
            pool = None if options.pool is None else self.pools.find(options.pool)
            if not options.watch:
                assert pool is not None
                view, usage = pool.status(), _usage()
                print(text.pool_table(pool.name, view, pool.scaling, now=time.monotonic(), usage=usage))
                return
            self._watch(pool)

    def _watch(self, pool: RunningPool | None) -> None:
        from IPython.display import clear_output

        connection = broker.connect()
        shown = ""
        try:
            while True:
                snapped = connection.snapshot(usage=True)
                now = time.time() - snapped.epoch_offset
                views = None if pool is None else [v for v in snapped.snapshot.pools if v.key == pool.key]
                table = text.snapshot_table(snapped.snapshot, now=now, pools=views, usage=snapped.usage)
                if table != shown:
                    clear_output(wait=True)
                    print(table)
                    shown = table
                time.sleep(1.0)
        except KeyboardInterrupt:
            return

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument("what", nargs="?", metavar="NAME[i]", help="a pool or one of its replicas; default: the last one")
    @argument("--tail", type=parse_count(0), default=100, metavar="N", help="the last N lines (100)")
    @argument("--grep", metavar="TEXT", help="only lines that contain it")
    @argument("--follow", action="store_true", help="go on as it grows; Stop ends it")
    def flyte_logs(self, line: str) -> None:
        """Print the newest log of a pool or of a replica: what its preload and other programs wrote."""
        options = parse(self.shell, self.flyte_logs, line)
        what = options.what
        if what is not None and isinstance(self.shell.user_ns.get(what), TaskEnvironment | RunningPool):
            what = self.shell.user_ns[what].name
        arguments = ["logs", *([what] if what else []), "--tail", str(options.tail)]
        arguments += ["--follow"] if options.follow else []
        command(*arguments, only=options.grep or "")

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument("what", nargs="?", default="", metavar="NAME[i]", help="a pool or one of its replicas; default: the last")
    @argument("--shared", action="store_true", help="tasks may still run there meanwhile")
    def flyte_attach(self, line: str) -> None:
        """Say how to open a replica: as a notebook's kernel, or in a terminal."""
        options = parse(self.shell, self.flyte_attach, line)
        with tidy(self.shell):
            replica, _ = self._replica(options.what)
            name = shlex.quote(replica.name)
            shared = " --shared" if options.shared else ""
            variables = f"{ATTACH_VARIABLE}={name}{f' {ATTACH_VARIABLE}_SHARED=1' if options.shared else ''}"
            lines = (
                f"{replica.name} is {replica.state} (pid {replica.pid}). It stays warm when what you open closes.",
                f"terminal  flyte-jupyter attach {name}{shared}",
                f'notebook  choose the kernel "{ATTACH_NAME}" ({ATTACH_KERNEL}); it opens what {ATTACH_VARIABLE}',
                f"          names ({variables} jupyter lab), else the pool that was last used",
            )
            print(text.visible("\n".join(lines), keep="\n"))

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument("what", metavar="NAME[i]", help="a pool (then a replica that is busy), or one of its replicas")
    @argument("expressions", nargs="*", metavar="EXPR", help="evaluated with the names of the code that runs")
    @argument("--stack", action="store_true", help="where it is; also shown when nothing else is asked for")
    @argument("--gpu", action="store_true", help="the GPU memory that its torch holds")
    def flyte_peek(self, line: str) -> None:
        """Look into a replica while it works, without disturbing it.

        Example: %flyte_peek gpu[1] step loss.item() --stack
        """
        options = parse(self.shell, self.flyte_peek, line)
        stack = options.stack or not (options.expressions or options.gpu)
        with tidy(self.shell):
            replica, now = self._replica(options.what, busy=True)
            peeked = peek(replica, options.expressions, stack=stack, gpu=options.gpu)
            print(text.visible("\n".join(peeked.lines(now, stack=stack)), keep="\n\t"))

    def _replica(self, what: str, *, busy: bool = False) -> tuple[ReplicaView, float]:
        """By name, by the variable of its environment, or that of the last pool; and now, on the snapshot's clock."""
        name, bracket, number = what.partition("[")
        known = self.pools.known(name)
        wanted = f"{name if known is None else known.name}{bracket}{number}"
        try:
            snapped = (broker.current() or broker.connect(start=False)).snapshot()
            replica = find_replica(snapped.snapshot, wanted, busy=busy)[1]
        except errors.BrokerUnavailable:
            raise errors.NoSuchReplica(wanted) from None
        except argparse.ArgumentTypeError as problem:
            raise UsageError(str(problem)) from None
        return replica, time.time() - snapped.epoch_offset

    @no_var_expand
    @line_magic
    @magic_arguments()
    def flyte_gpu(self, line: str) -> None:
        """Show the GPUs, and who uses their memory: replicas, other notebooks, other processes."""
        parse(self.shell, self.flyte_gpu, line)
        command("gpu")

    @no_var_expand
    @line_magic
    @magic_arguments()
    @argument("--call", action="store_true", help="also start a kernel and run a task in it")
    def flyte_doctor(self, line: str) -> None:
        """Check versions, the runtime folder, the broker, GPUs and processes, and say what to do."""
        options = parse(self.shell, self.flyte_doctor, line)
        command("doctor", *(["--call"] if options.call else []))


def _running(pool: RunningPool) -> list[LeaseView]:
    view = pool.status()
    return [] if view is None else [lease for replica in view.replicas for lease in replica.running]


def _parsed(parser: Callable[[str], Any], value: str | None, verb: str, example: str) -> Any:
    if value is None:
        raise UsageError(f"%flyte_pool {verb}: write it after the pool's name, such as {example}")
    try:
        return parser(value)
    except argparse.ArgumentTypeError as problem:
        raise UsageError(f"%flyte_pool {verb}: {problem}") from None


def greeting() -> str:
    """What runs, in a few words: the broker, GPUs, pools. Starts nothing."""
    try:
        connection = broker.current() or broker.connect(start=False)
        snapshot = connection.snapshot().snapshot
    except errors.BrokerUnavailable:
        return "the broker starts with the first call"
    except errors.BaseRuntimeError as problem:
        return str(problem)
    gpus = len(snapshot.devices)
    words = [
        f"broker running (pid {connection.broker_pid})",
        f"{gpus or 'no'} GPU{'' if gpus == 1 else 's'}",
    ]
    pools = [f"{view.name} ({text.pool_state(view)})" for view in snapshot.pools if not view.single_use]
    words += [f"pools: {', '.join(pools)}"] if pools else []
    return " · ".join(words)
