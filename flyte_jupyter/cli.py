"""`flyte-jupyter`: what runs, and the verbs for it, from a terminal.

Exit codes: 0 done (also when there was nothing to do), 1 it did not work, 2 the command line names something
that does not exist, 130 interrupted. Everything printed goes through `text.visible`.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from . import _version, errors, runtime
from .client import text
from .client.arguments import parse_count, parse_duration, parse_replicas
from .core import protocol as p
from .core.snapshot import DeviceView, PoolView, ReplicaView
from .core.usage import Usage

OK: Final = 0
FAILED: Final = 1
UNKNOWN: Final = 2
INTERRUPTED: Final = 130

ANSWER_S: Final = 5.0
"""How long the broker may take to answer before it counts as hanging."""
POLITE_S: Final = 15.0
"""How long the broker may take to end what it started; it gives running tasks some seconds."""
TERM_S: Final = 5.0
GUARDIAN_S: Final = 6.0
APPLIED_S: Final = 5.0
REDRAW_S: Final = 1.0
MEASURED_S: Final = 8.0
"""How long a driver may take; the broker gives up on it before that."""
BIG_LIBRARIES: Final = ("torch", "tensorflow", "jax", "cupy", "numpy")
ADVISED: Final = {"tornado": "6.5.7"}
"""Floors of packages that we do not require, but that must not be older where they are installed."""
NETWORK_FILE_SYSTEMS: Final = (
    "nfs",
    "cifs",
    "smb",
    "sshfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "glusterfs",
    "afs",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 still shows everything
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (errors.PoolError, Closed) as failure:
        problem = errors.BrokerGone() if isinstance(failure, Closed) else failure
        for part in (str(problem), *getattr(problem, "__notes__", ())):
            print(text.visible(part, keep="\n\t"), file=sys.stderr)
        return UNKNOWN if isinstance(problem, errors.NoSuchPool | errors.NoSuchReplica) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


# --- talking to the broker


class Closed(Exception):
    """The broker ended the conversation."""


class Conversation:
    """The protocol without threads: a command asks, waits a limited time, and goes.

    Args:
        stream: Connected to the broker's socket.
        answer_s: How long an answer may take.
    """

    def __init__(self, stream: socket.socket, answer_s: float = ANSWER_S) -> None:
        self._stream = stream
        self._answer_s = answer_s
        self._lines: list[bytes] = []
        self._rest = b""
        self.send(p.Hello(version=_version.__version__, label="flyte-jupyter", kind="cli", pid=os.getpid()))
        answer = self.receive(answer_s)
        if isinstance(answer, p.Rejected):
            raise errors.VersionMismatch(_version.__version__, answer.version, "broker")
        if not isinstance(answer, p.Welcome):
            raise _hangs()
        self.version = answer.version
        self.pid = answer.pid

    def send(self, message: p.ToBroker) -> None:
        try:
            self._stream.sendall(p.to_line(message))
        except TimeoutError:
            raise _hangs() from None
        except OSError:
            raise Closed from None

    def receive(self, timeout: float) -> p.FromBroker | None:
        """The next message; None if there is none in time. Raises Closed."""
        deadline = time.monotonic() + timeout
        while not self._lines:
            self._stream.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._stream.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError:
                raise Closed from None
            finally:
                self._stream.settimeout(self._answer_s)
            if not data:
                raise Closed
            *self._lines, self._rest = (self._rest + data).split(b"\n")
        try:
            return p.from_broker.validate_json(self._lines.pop(0))
        except ValidationError as problem:
            raise errors.ProtocolError(f"the broker said something unknown ({problem.title})") from None

    def snapshot(self, *, usage: bool = False) -> p.Snapped:
        """The state now; with `usage` it is measured what is used, if that is quick."""
        self.send(p.Watch(once=True, usage=usage))
        deadline = time.monotonic() + self._answer_s
        while (left := deadline - time.monotonic()) > 0:
            match self.receive(left):
                case p.Snapped() as snapped:
                    return snapped
                case p.Failed(why=why):
                    raise errors.ProtocolError(f"the broker did not understand: {why}")
        raise _hangs()

    def first_measurement(self) -> p.Snapped:
        """The state once it is known what is used, or why that is not known."""
        self.send(p.Watch(usage=True))
        deadline = time.monotonic() + MEASURED_S
        while (left := deadline - time.monotonic()) > 0:
            message = self.receive(left)
            if isinstance(message, p.Snapped) and message.usage.measured_at is not None:
                return message
        raise _hangs()

    def until(self, holds: Callable[[p.Snapped], bool], timeout: float) -> p.Snapped | None:
        """The first state in which `holds`; None if `timeout` passes before."""
        deadline = time.monotonic() + timeout
        while True:
            snapped = self.snapshot()
            if holds(snapped):
                return snapped
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def _hangs() -> errors.BrokerUnavailable:
    holder = _lock_holder(runtime.runtime_folder())
    return errors.BrokerUnavailable(
        f"a broker runs{f' (pid {holder})' if holder else ''}, but it does not answer",
        do="Run `flyte-jupyter stop`, which ends it; the next call starts another.",
    )


@contextlib.contextmanager
def _talk(answer_s: float = ANSWER_S) -> Iterator[Conversation | None]:
    """A conversation with the broker, or None if none runs."""
    path = runtime.broker_socket(runtime.private_folder())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(answer_s)
        try:
            stream.connect(str(path))
            if runtime.peer_uid(stream) != os.getuid():
                raise errors.BrokerUnavailable(
                    f"the process that answers at {path} belongs to another user",
                    do=f"Set {runtime.VARIABLE} to a folder of your own.",
                )
            conversation = Conversation(stream, answer_s)
        except (FileNotFoundError, ConnectionRefusedError, Closed):
            conversation = None
        except (TimeoutError, BlockingIOError):
            raise _hangs() from None
        yield conversation


@contextlib.contextmanager
def _pool(wanted: str) -> Iterator[tuple[Conversation, PoolView]]:
    """The one pool that a verb is for."""
    with _talk() as broker:
        if broker is None:
            raise errors.NoSuchPool(wanted, gpus=0)
        found = _named(wanted, broker.snapshot().snapshot.pools)
        if len(found) > 1:
            found = [view for view in found if not (view.single_use or view.retiring)] or found
        if len(found) > 1:
            keys = ", ".join(f"{view.key[:8]} ({text.pool_state(view)})" for view in found)
            _complain(f"Several pools are named {wanted}. Say which: {keys}.")
            raise SystemExit(UNKNOWN)
        try:
            yield broker, found[0]
        except Closed:
            raise errors.BrokerGone() from None


def _named(wanted: str, pools: Sequence[PoolView]) -> list[PoolView]:
    """By name, or by the beginning of the key. Raises NoSuchPool."""
    found = [view for view in pools if view.name == wanted]
    if not found and re.fullmatch("[0-9a-f]{6,}", wanted):
        found = [view for view in pools if view.key.startswith(wanted)]
    if not found:
        raise errors.NoSuchPool(wanted, {view.name: text.pool_state(view) for view in pools}, gpus=0)
    return found


# --- printing


def _say(*lines: str) -> None:
    for line in lines:
        print(text.visible(line, keep="\n\t"), flush=True)


def _complain(*lines: str) -> None:
    for line in lines:
        print(text.visible(line, keep="\n\t"), file=sys.stderr)


def _say_json(value: Any) -> None:
    # ASCII only: control characters and bidi overrides come out as escapes; DEL is the one that JSON leaves.
    print(json.dumps(value, indent=2).replace("\x7f", "\\u007f"), flush=True)


def _dump(value: Any, offset: float) -> Any:
    """JSON of a part of a snapshot; instants become Unix time."""
    if isinstance(value, list):
        return [_dump(item, offset) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: item + offset
        if isinstance(item, int | float) and (name in ("now", "since") or name.endswith(("_at", "_since", "_until")))
        else _dump(item, offset)
        for name, item in value.items()
    }


def _pool_json(view: PoolView, snapped: p.Snapped) -> Any:
    return _dump(view.model_dump(mode="json"), snapped.epoch_offset)


def _clock(snapped: p.Snapped) -> float:
    """Now, on the clock of the snapshot."""
    return time.time() - snapped.epoch_offset


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# --- status


def _status(options: argparse.Namespace) -> int:
    with contextlib.suppress(KeyboardInterrupt):
        if options.watch:
            return _watch(options)
        with _talk() as broker:
            if broker is None:
                _show_none(options)
            else:
                _show(options, broker, broker.snapshot(usage=True))
        return OK
    return OK if options.watch else INTERRUPTED


def _watch(options: argparse.Namespace) -> int:
    alone = False
    while True:
        with _talk() as broker:
            if broker is None:
                if not alone:
                    _draw(lambda: _show_none(options))
                alone = True
                time.sleep(REDRAW_S / 4)
                continue
            alone = False
            broker.send(p.Watch(usage=True))
            last: p.Snapped | None = None
            with contextlib.suppress(Closed):
                while True:
                    message = broker.receive(REDRAW_S)
                    if isinstance(message, p.Snapped):
                        last = message
                    elif message is not None or not sys.stdout.isatty() or options.json:
                        continue  # only a terminal gets its countdowns redrawn
                    if last is not None:
                        snapped, said_by = last, broker
                        _draw(lambda: _show(options, said_by, snapped))  # noqa: B023


def _draw(show: Callable[[], None]) -> None:
    if not sys.stdout.isatty():
        show()
        return
    import io

    with io.StringIO() as page:
        with contextlib.redirect_stdout(page):
            show()
        lines = page.getvalue().splitlines()
    room = shutil.get_terminal_size().lines - 1
    if len(lines) > room:
        lines = [*lines[: room - 1], f"... {len(lines) - room + 1} more lines"]
    sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
    sys.stdout.flush()


def _show_none(options: argparse.Namespace) -> None:
    if options.json:
        _say_json({"broker": None})
    else:
        _say(f"No broker runs in {runtime.runtime_folder()}. It starts with the first call of a task.")


def _show(options: argparse.Namespace, broker: Conversation, snapped: p.Snapped) -> None:
    snapshot = snapped.snapshot
    snapshot = snapshot.model_copy(
        update={"clients": tuple(client for client in snapshot.clients if client.pid != os.getpid())}
    )
    pools = None if options.pool is None else _named(options.pool, snapshot.pools)
    if options.json:
        shown = _dump(snapshot.model_dump(mode="json"), snapped.epoch_offset)
        if pools is not None:
            keys = {view.key for view in pools}
            shown["pools"] = [view for view in shown["pools"] if view["key"] in keys]
        zygotes = [zygote.model_dump(mode="json") for zygote in snapped.zygotes]
        forks = {"zygotes": zygotes, "spawned": snapped.spawned}
        usage = _dump(snapped.usage.model_dump(mode="json"), snapped.epoch_offset)
        facts = {"broker": _broker_facts(broker), "taken_at": time.time(), "usage": usage}
        _say_json({**facts, **forks, **shown})
        return
    parts = [text.snapshot_table(snapshot, now=_clock(snapped), pools=pools, usage=snapped.usage)]
    if pools is None:
        parts.insert(0, _broker_line(broker))
        parts.append(text.zygotes_table(snapped.zygotes, snapped.spawned, snapshot.pools))
    _say("\n\n".join(filter(None, parts)))


def _broker_facts(broker: Conversation) -> dict[str, Any]:
    import psutil

    facts: dict[str, Any] = {
        "pid": broker.pid,
        "version": broker.version,
        "folder": str(runtime.runtime_folder()),
        "started_at": None,
        "memory_bytes": None,
    }
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(broker.pid)
        facts["started_at"] = process.create_time()
        facts["memory_bytes"] = process.memory_info().rss
    return facts


def _broker_line(broker: Conversation) -> str:
    facts = _broker_facts(broker)
    words = [f"broker {facts['pid']}", f"flyte_jupyter {facts['version']}"]
    if facts["started_at"] is not None:
        words += [f"up {text.duration(time.time() - facts['started_at'])}", text.size(facts["memory_bytes"])]
    return " · ".join((*words, facts["folder"]))


# --- gpu


def _gpu(options: argparse.Namespace) -> int:
    devices, problem, usage = _measured()
    if options.json:
        used = usage.model_dump(mode="json")["devices"]
        gpus = [device.model_dump(mode="json") | {"usage": used.get(device.uuid)} for device in devices]
        _say_json({"gpus": gpus, "problem": problem or usage.problem})
    else:
        _say(text.usage_table(devices, usage) if devices else text.no_devices(problem))
    if usage.problem is None:
        return OK
    _complain(f"What is used could not be measured: {usage.problem}.")
    return FAILED


def _measured() -> tuple[tuple[DeviceView, ...], str | None, Usage]:
    """The GPUs, why there are none, and what is used of them; from the broker, if one runs: it knows its replicas."""
    with _talk() as broker:
        if broker is None:
            return _measure_here()
        snapped = broker.snapshot(usage=True)
        if snapped.usage.measured_at is None:
            snapped = broker.first_measurement()
        return snapped.snapshot.devices, snapped.snapshot.device_problem, snapped.usage


def _measure_here() -> tuple[tuple[DeviceView, ...], str | None, Usage]:
    from .devices import DECLARED, DriverFailed, find_devices, in_time
    from .usage import Processes

    found = find_devices()
    views = tuple(DeviceView(**asdict(device), replica=None, replica_name=None) for device in found.devices)
    if DECLARED in os.environ or not found.devices:
        return views, found.problem, Usage()
    try:
        used, _ = Processes().usage(in_time(lambda driver: driver.read()), {})
    except DriverFailed as problem:
        return views, None, Usage(problem=str(problem))
    return views, None, Usage(devices=used)


# --- stop


def _stop(options: argparse.Namespace) -> int:
    return _stop_all(options) if options.pool is None else _stop_pool(options)


def _stop_pool(options: argparse.Namespace) -> int:
    with _talk() as broker:
        if broker is None:
            if options.json:
                _say_json({"stopped": [], "broker": None})
            else:
                _say("No broker runs, so no pool does.")
            return OK
        found = _named(options.pool, broker.snapshot().snapshot.pools)
        keys = {view.key for view in found}
        replicas = [replica.name for view in found for replica in view.replicas]
        users = _users(**_in_use(replica for view in found for replica in view.replicas))

        def gone(snapped: p.Snapped) -> bool:
            return not any(view.replicas for view in snapped.snapshot.pools if view.key in keys)

        try:
            for key in keys:
                broker.send(p.StopPool(pool=key, force=options.force))
            if users and not options.force and not options.json:
                _say(f"{users} may end first; --force ends them now.")
            over = broker.until(gone, options.timeout) is not None
        except Closed:
            over = True
    if options.json:
        _say_json({"stopped": replicas if over else [], "broker": broker.pid})
    elif over:
        _say(f"Stopped {_listed(replicas)}. The next call starts the pool again.")
    if not over:
        _complain(
            f"Pool {options.pool} still has {users or 'a replica'} after {options.timeout:g} s;"
            " it stops when that ends.",
            f"To end it now: `flyte-jupyter stop {options.pool} --force`.",
        )
    return OK if over else FAILED


def _stop_all(options: argparse.Namespace) -> int:
    import psutil

    folder = runtime.private_folder()
    holder = _lock_holder(folder)
    stopped: dict[str, Any] = {"broker": holder, "replicas": [], **_in_use(()), "how": None, "leftovers": []}
    if holder is not None:
        try:
            process = psutil.Process(holder)
            if not _is_broker(process):
                _complain(
                    f"The lock {runtime.broker_lock(folder)} names pid {holder}, which is not a broker"
                    " of yours; nothing was ended.",
                    "If the broker runs in a container or on another machine, stop it there.",
                )
                return FAILED
            stopped["how"] = _end_broker(process, options.force, stopped)
        except psutil.NoSuchProcess:
            stopped["how"] = "ended by itself"
    deadline = time.monotonic() + TERM_S
    while _lock_holder(folder) == holder is not None and time.monotonic() < deadline:
        time.sleep(0.02)  # a killed process is a zombie some moments before its last thread lets go of the lock
    if _lock_holder(folder) is None:  # else a client has started another, which sweeps up itself
        stopped["leftovers"] = sorted(_end_leftovers(folder, GUARDIAN_S if holder is not None else 0.0))
    left = _lock_holder(folder) == holder is not None
    if options.json:
        _say_json(stopped)
    elif holder is None and not stopped["leftovers"]:
        _say("No broker runs.")
    else:
        _say(*_what_stopped(stopped))
    if left:
        _complain(f"The broker (pid {holder}) could not be ended.")
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
    words = [_plural(tasks, "running task")] * bool(tasks) + [_plural(attached, "attached front end")] * bool(attached)
    return " and ".join(words)


def _listed(replicas: list[str]) -> str:
    return f"{_plural(len(replicas), 'replica')} ({', '.join(replicas)})" if replicas else "no replicas"


def _end_broker(process: Any, force: bool, stopped: dict[str, Any]) -> str:
    """Ask it, then SIGTERM, then SIGKILL; psutil makes sure that each is meant for this very process."""
    asked = False
    with contextlib.suppress(errors.PoolError, Closed), _talk(min(ANSWER_S, 3.0)) as broker:
        if broker is not None:
            pools = broker.snapshot().snapshot.pools
            replicas = [replica for view in pools for replica in view.replicas]
            stopped["replicas"] = [replica.name for replica in replicas]
            stopped.update(_in_use(replicas))
            if force:
                for view in pools:
                    broker.send(p.StopPool(pool=view.key, force=True))
            broker.send(p.Shutdown())
            asked = True
    if asked and _wait_gone(process, POLITE_S):
        return "it ended as asked"
    process.terminate()
    if _wait_gone(process, TERM_S):
        return "it did not answer, so SIGTERM"
    process.kill()
    _wait_gone(process, TERM_S)
    return "it did not answer, so SIGKILL"


def _wait_gone(process: Any, timeout: float) -> bool:
    import psutil

    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            # A zombie is gone: its parent may be a notebook that looks after it later.
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def _is_broker(process: Any) -> bool:
    return process.uids().real == os.getuid() and "flyte_jupyter.broker" in process.cmdline()


def _lock_holder(folder: Path) -> int | None:
    """The pid of the broker that runs in `folder`: it holds the lock for life; without it a pid is old."""
    try:
        lock = open(runtime.broker_lock(folder), encoding="utf-8")  # noqa: SIM115
    except OSError:
        return None
    with lock:
        for _ in range(50):
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                lock.seek(0)
                pid = lock.read().strip()
                if pid.isdigit():
                    return int(pid)
            time.sleep(0.02)  # it has the lock, and is about to write its pid
    return None


def _replica_processes(folder: Path) -> dict[int, str]:
    """Every process that belongs to a replica of this runtime folder, and which replica that is."""
    from . import orphans

    # The folder alone is no proof: a shell that sets the variable has it, too.
    tag = f"{orphans.REPLICA_TAG}=".encode()
    found = {}
    for pid in orphans.tagged(**{orphans.RUNTIME_TAG: str(folder)}):
        with contextlib.suppress(OSError):
            for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if variable.startswith(tag):
                    found[pid] = os.fsdecode(variable[len(tag) :])
    return found


def _end_leftovers(folder: Path, patience: float) -> list[int]:
    """Give the guardian a moment, then kill what is still there."""
    from . import orphans

    deadline = time.monotonic() + patience
    while (left := _replica_processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    ended: list[int] = []
    for replica in set(left.values()):
        tags = {orphans.RUNTIME_TAG: str(folder), orphans.REPLICA_TAG: replica}
        ended += orphans.end(**tags)
    return ended


# --- scale, warm, keep


def _scale(options: argparse.Namespace) -> int:
    lowest, highest = options.replicas
    with _pool(options.pool) as (broker, view):
        scaling = view.scaling.model_copy(update={"min_replicas": lowest, "max_replicas": highest})
        broker.send(p.Scale(pool=view.key, scaling=scaling))
        return _report(broker, view, options, lambda now: now.scaling == scaling)


def _keep(options: argparse.Namespace) -> int:
    with _pool(options.pool) as (broker, view):
        before = view.kept_until
        broker.send(p.Keep(pool=view.key, seconds=options.duration))
        return _report(broker, view, options, lambda now: now.kept_until != before or not (options.duration or before))


def _warm(options: argparse.Namespace) -> int:
    with _pool(options.pool) as (broker, view):
        wanted = options.replicas or max(view.scaling.min_replicas, 1)
        if wanted > view.scaling.max_replicas:
            _complain(
                f"Pool {view.name} has at most {_plural(view.scaling.max_replicas, 'replica')}.",
                f"To raise that: `flyte-jupyter scale {view.name} {view.scaling.min_replicas}:{wanted}`.",
            )
            return UNKNOWN
        attempts = view.failures
        broker.send(p.Warm(pool=view.key, replicas=wanted))
        if options.no_wait:
            return _report(broker, view, options, lambda now: bool(now.replicas))

        def settled(now: PoolView) -> bool:
            ready = sum(replica.state in ("ready", "busy", "attached") for replica in now.replicas)
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


def _restart(options: argparse.Namespace) -> int:
    name, index = _parted(options.what)
    if index is not None:
        with _replica(name, index) as (broker, view, replica):
            broker.send(p.RestartReplica(replica=replica.id, force=options.force))
            return _report(broker, view, options, lambda now: _stays(now, {replica.id}) == set())
    if options.force:
        _complain(f"--force is for one replica: `flyte-jupyter restart '{name}[0]' --force`.")
        return UNKNOWN
    with _pool(name) as (broker, view):
        before = {replica.id for replica in view.replicas}
        broker.send(p.RestartPool(pool=view.key))
        return _report(broker, view, options, lambda now: _stays(now, before) == set())


def _interrupt(options: argparse.Namespace) -> int:
    name, index = _parted(options.what)
    if index is None:
        _complain(f"Say which replica: `flyte-jupyter interrupt '{name}[0]'`.")
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
    with _pool(name) as (broker, view):
        for replica in view.replicas:
            if replica.index == index and replica.state != "stopping":
                yield broker, view, replica
                return
        there = ", ".join(replica.name for replica in view.replicas) or "none"
        _complain(f"Pool {view.name} has no replica {index}; there is: {there}.")
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
        state = "gone" if after is None else text.pool_line(after, after.scaling, now=_clock(latest))
        _complain(f"Not done after {timeout:g} s. {view.name}: {state}")
        return FAILED
    after = snapped.snapshot.pool(view.key)
    assert after is not None
    if options.json:
        _say_json(_pool_json(after, snapped))
    else:
        _say(f"{text.visible(after.name)}: {text.pool_line(after, after.scaling, now=_clock(snapped))}")
    return OK


# --- logs


def _logs(options: argparse.Namespace) -> int:
    folder = runtime.private_folder()
    log = runtime.broker_log(folder) if options.broker else _find_log(folder, options.what)
    if log is None or not log.exists():
        _complain(
            "There is no log yet." if options.what is None else f'There is no log of "{options.what}".',
            f"Logs are in {runtime.log_folder(folder)}; the newest 50 are kept."
            " Name a pool, a replica (gpu[0]) or a replica's id, or use --broker.",
        )
        return UNKNOWN
    with log.open("rb") as file:
        _seek_tail(file, options.tail)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                data = file.read(1 << 16)
                if data:
                    sys.stdout.write(text.visible(decoder.decode(data), keep="\n\t"))
                    continue
                sys.stdout.flush()
                if not options.follow:
                    break
                time.sleep(0.1)
    return OK


# --- attach, peek


def _attach(options: argparse.Namespace) -> int:
    import signal
    import subprocess

    _find_replica(options.replica)  # what is not there is said here
    command = [sys.executable, "-m", "flyte_jupyter.attach", "--terminal", "--replica", options.replica]
    command += ["--shared"] if options.shared else []
    command += ["-f", str(options.existing_file)] if options.existing_file is not None else []
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the console
    return OK if subprocess.call(command) == 0 else FAILED


def _peek(options: argparse.Namespace) -> int:
    from .peek import peek

    replica, now = _find_replica(options.replica, busy=True)
    stack = options.stack or not (options.expressions or options.gpu)
    peeked = peek(replica, options.expressions, stack=stack, gpu=options.gpu, timeout=options.timeout)
    if options.json:
        _say_json(asdict(peeked) | {"replica": replica.name, "pid": replica.pid})
    else:
        _say(*peeked.lines(now, stack=stack))
    return OK


def _find_replica(wanted: str, *, busy: bool = False) -> tuple[ReplicaView, float]:
    from .client.attached import find_replica

    with _talk() as broker:
        if broker is None:
            raise errors.NoSuchReplica(wanted)
        snapped = broker.snapshot()
        try:
            return find_replica(snapped.snapshot, wanted, busy=busy)[1], _clock(snapped)
        except argparse.ArgumentTypeError as problem:
            _complain(str(problem))
            raise SystemExit(UNKNOWN) from None


def _seek_tail(file: Any, lines: int) -> None:
    """Move to the start of the last `lines` lines."""
    end = position = file.seek(0, os.SEEK_END)
    tail = b""
    while position and tail.rstrip(b"\n").count(b"\n") < lines:
        step = min(position, 1 << 16)
        position = file.seek(position - step)
        tail = file.read(step) + tail
    kept = b"".join(tail.splitlines(keepends=True)[-lines:]) if lines else b""
    file.seek(end - len(kept))


def _find_log(folder: Path, what: str | None) -> Path | None:
    """The newest log of a replica, of a pool's replicas, or of any replica."""
    logs = runtime.log_folder(folder)
    newest = sorted(logs.glob("*-*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    if what is None:
        return newest[0] if newest else None
    names = _past_names(folder) | _present_names()
    for log in newest:
        name = names.get(log.stem, "")
        if what in (log.stem, name, name.rpartition("[")[0]):
            return log
    return None


def _present_names() -> dict[str, str]:
    with contextlib.suppress(errors.PoolError, Closed), _talk(2.0) as broker:
        if broker is not None:
            pools = broker.snapshot().snapshot.pools
            return {replica.id: replica.name for view in pools for replica in view.replicas}
    return {}


def _past_names(folder: Path) -> dict[str, str]:
    """Names of replicas that are gone: the broker's log tells which were started."""
    names = {}
    log = runtime.broker_log(folder)
    for path in (log.with_name(f"{log.name}.1"), log):
        with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if started := re.search(r": start (.+) \(([0-9a-f]{8}-\d+)\): ", line):
                    names[started[2]] = started[1]
    return names


# --- doctor


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: what is so, and what to do about it."""

    state: Literal["ok", "warn", "fail"]
    about: str
    found: str
    do: str = ""


def _doctor(options: argparse.Namespace) -> int:
    checks = [_check_versions, _check_folder, _check_broker, _check_devices, _check_leftovers, _check_imports]
    if options.call:
        checks.append(_check_call)
    findings = []
    for check in checks:
        try:
            found = list(check())
        except (errors.PoolError, OSError, Closed) as problem:
            notes = getattr(problem, "__notes__", ())
            found = [
                Finding(
                    "fail",
                    check.__name__.removeprefix("_check_"),
                    " ".join((str(problem), *notes[:-1])),
                    *notes[-1:],
                )
            ]
        findings += found
        if not options.json:
            for finding in found:
                _say(f"{finding.state:4}  {text.visible(finding.about)}: {text.visible(finding.found)}")
                if finding.do:
                    _say(f"      -> {text.visible(finding.do)}")
    bad = any(finding.state == "fail" for finding in findings)
    if options.json:
        _say_json({"ok": not bad, "findings": [asdict(finding) for finding in findings]})
    return FAILED if bad else OK


def _check_versions() -> Iterable[Finding]:
    from importlib import metadata

    python = sys.version.split()[0]
    yield Finding("ok", "Python", f"{python}, {sys.executable}")
    yield Finding("ok", "flyte_jupyter", f"{_version.__version__}, {Path(__file__).parent}")
    try:
        requirements = metadata.requires("flyte-jupyter") or []
    except metadata.PackageNotFoundError:
        yield Finding(
            "warn",
            "packages",
            "flyte-jupyter is not installed, only importable",
            "Run `pip install flyte-jupyter`.",
        )
        return
    good = []
    for package, floor in (*_floors(requirements), *ADVISED.items()):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            if package not in ADVISED:
                yield Finding("fail", package, "not installed", f"Run `pip install '{package}>={floor}'`.")
            continue
        if _numbers(version) < _numbers(floor):
            yield Finding(
                "warn" if package in ADVISED else "fail",
                package,
                f"{version}, older than {floor}",
                f"Run `pip install -U '{package}>={floor}'`.",
            )
        else:
            good.append(f"{package} {version}")
    yield Finding("ok", "packages", ", ".join(good))


def _floors(requirements: Iterable[str]) -> Iterator[tuple[str, str]]:
    for requirement in requirements:
        what, _, marker = requirement.partition(";")
        floor = re.search(r">=\s*([0-9.]+)", what)
        name = re.match(r"[A-Za-z0-9._-]+", what)
        if floor and name and "extra" not in marker:
            yield name[0], floor[1]


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in release[0].split(".")] if release else []
    while numbers and not numbers[-1]:  # 6.0 is 6
        numbers.pop()
    return tuple(numbers)


def _check_folder() -> Iterable[Finding]:
    import psutil

    folder = runtime.private_folder()
    room = runtime.MAX_SOCKET_PATH - runtime.LONGEST_NAME - len(str(folder))
    kind, mount = "unknown", ""
    for partition in psutil.disk_partitions(all=True):
        if len(partition.mountpoint) >= len(mount) and Path(partition.mountpoint) in (
            folder,
            *folder.parents,
        ):
            kind, mount = partition.fstype, partition.mountpoint
    yield Finding("ok", "runtime folder", f"{folder}, yours alone (0700), {room} characters to spare, on {kind}")
    if any(name in kind.lower() for name in NETWORK_FILE_SYSTEMS):
        yield Finding(
            "fail",
            "runtime folder",
            f"{kind} is a network file system: sockets and locks do not work there reliably",
            f"Set {runtime.VARIABLE} to a folder on this machine.",
        )
    free = shutil.disk_usage(folder).free
    if free < 100 * 2**20:
        yield Finding("warn", "runtime folder", f"only {text.size(free)} free", "Logs need some room: make space.")


def _check_broker() -> Iterable[Finding]:
    with _talk() as broker:
        if broker is None:
            holder = _lock_holder(runtime.runtime_folder())
            if holder is not None:
                yield Finding(
                    "warn",
                    "broker",
                    f"pid {holder} has the lock, but no socket",
                    "Wait a moment, or `flyte-jupyter stop`.",
                )
            else:
                yield Finding("ok", "broker", "none runs; it starts with the first call of a task")
            return
        asked = time.perf_counter()
        snapped = broker.snapshot()
        took = (time.perf_counter() - asked) * 1000
        yield Finding("ok", "broker", f"pid {broker.pid} answers in {took:.1f} ms")
        if broker.version != _version.__version__:
            yield Finding(
                "warn",
                "broker",
                f"it is version {broker.version}, this is {_version.__version__}",
                "Run `flyte-jupyter stop` when nothing runs; the next call starts this version.",
            )
        for view in snapped.snapshot.pools:
            if not view.single_use:
                how = snapped.spawned.get(view.key, "forked from a warm process") if view.replicas else "none now"
                yield Finding("ok", f"pool {view.name}", f"replicas: {text.visible(how)}")
            if view.failure is not None:
                said = view.failure.cause.strip().splitlines() or ["unknown"]
                where = view.failure.replica
                yield Finding(
                    "warn",
                    f"pool {view.name}",
                    f"{where} failed: {said[-1]}",
                    f"See `flyte-jupyter logs {where}`; then `flyte-jupyter warm {view.name}`.",
                )


def _check_devices() -> Iterable[Finding]:
    from .devices import DECLARED, find_devices

    found = find_devices()
    declared = f" (declared in {DECLARED})" if DECLARED in os.environ else ""
    if found.devices:
        names = ", ".join(f"{device.index} · {device.model}" for device in found.devices)
        yield Finding("ok", "GPUs", f"{names}{declared}")
    else:
        yield Finding(
            "warn",
            "GPUs",
            f"{found.problem or 'none'}{declared}",
            f"Pools on the CPU work. For others correct {DECLARED}."
            if declared
            else "Pools on the CPU work. For others check that `nvidia-smi` lists a GPU here.",
        )


def _check_leftovers() -> Iterable[Finding]:
    import psutil

    folder = runtime.runtime_folder()
    there = _replica_processes(folder)
    known: set[str | int | None] = set()
    with _talk() as broker:
        if broker is not None:
            snapped = broker.snapshot()
            replicas = [replica for view in snapped.snapshot.pools for replica in view.replicas]
            # By id: what a replica has started. By pid: a forked one carries its zygote's tag.
            known = {each for replica in replicas for each in (replica.id, replica.pid)}
            known |= {zygote.pid for zygote in snapped.zygotes}
    left = [pid for pid, replica in there.items() if replica not in known and pid not in known]
    if left:
        time.sleep(0.5)  # it may just be ending
        left = [pid for pid in left if pid in _replica_processes(folder) and psutil.pid_exists(pid)]
    if left:
        yield Finding(
            "warn",
            "processes",
            f"left behind by an earlier broker: pid {', '.join(map(str, left))}",
            "Run `flyte-jupyter stop`, which ends them.",
        )
    else:
        yield Finding("ok", "processes", f"{len(there)} of replicas, none left behind")


def _check_imports() -> Iterable[Finding]:
    import flyte_jupyter as flyte

    for name in flyte.__all__:
        getattr(flyte, name)
    loaded = [name for name in BIG_LIBRARIES if name in sys.modules]
    if loaded:
        yield Finding("warn", "imports", f"`import flyte_jupyter` also loads {', '.join(loaded)}", "Please report it.")
    else:
        yield Finding("ok", "imports", "`import flyte_jupyter` loads neither CUDA nor torch")
    holder = _lock_holder(runtime.runtime_folder())
    if holder is not None:
        with contextlib.suppress(OSError):
            if b"libcuda.so" in Path(f"/proc/{holder}/maps").read_bytes():
                yield Finding("fail", "imports", "the broker has loaded CUDA and holds GPU memory", "Please report it.")


def _check_call() -> Iterable[Finding]:
    """One call in a kernel that is used once."""
    import psutil

    import flyte_jupyter as flyte

    with _talk() as broker:
        was_there = broker is not None
    environment = flyte.TaskEnvironment("doctor")

    @environment.task
    def nothing() -> int:
        return 42

    began = time.perf_counter()
    answer = nothing()
    took = time.perf_counter() - began
    if answer == 42:
        yield Finding("ok", "call", f"a kernel was started, ran a task and answered in {took:.2f} s")
    else:
        yield Finding("fail", "call", f"the task answered {answer!r}, not 42", "Please report it.")
    if not was_there:
        from .client.broker import current

        connection = current()
        if connection is not None and len(connection.snapshot().snapshot.clients) == 1:
            with contextlib.suppress(psutil.NoSuchProcess):
                started = psutil.Process(connection.broker_pid)
                connection.send(p.Shutdown())
                _wait_gone(started, POLITE_S)


# --- the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flyte-jupyter",
        description="Pools of warm Jupyter kernels for Flyte tasks: what runs, and the verbs for it.",
        epilog="exit codes: 0 done, 1 it did not work, 2 no such pool or bad arguments, 130 interrupted\n"
        f"The runtime folder is {runtime.VARIABLE} or the platform's; `flyte-jupyter doctor` shows it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"flyte-jupyter {_version.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace], int], help: str, example: str, codes: str
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=f"example: {example}\nexit codes: {codes}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        one.set_defaults(command=command)
        return one

    status = add(
        "status",
        _status,
        "show pools, their replicas and queues, GPUs and clients",
        "flyte-jupyter status gpu --watch",
        "0 also when no broker runs, 1 it does not answer, 2 no such pool",
    )
    status.add_argument("pool", nargs="?", metavar="POOL", help="only this one, by name or key")
    status.add_argument("--watch", action="store_true", help="draw again on every change; Ctrl-C ends")
    status.add_argument("--json", action="store_true", help="instants are seconds since 1970")

    gpu = add(
        "gpu",
        _gpu,
        "show the GPUs, and who uses their memory: replicas, other notebooks, other processes",
        "flyte-jupyter gpu --json",
        "0 also when there is no GPU, 1 what is used cannot be measured",
    )
    gpu.add_argument("--json", action="store_true")

    stop = add(
        "stop",
        _stop,
        "stop a pool; without POOL the broker and everything it started",
        "flyte-jupyter stop gpu --force",
        "0 also when nothing ran, 1 it still runs, 2 no such pool",
    )
    stop.add_argument("pool", nargs="?", metavar="POOL", help="only this one, by name or key")
    stop.add_argument("--force", "--now", action="store_true", help="do not wait for running tasks")
    stop.add_argument("--timeout", type=parse_duration, default=30.0, metavar="T", help="wait for a pool's tasks (30s)")
    stop.add_argument("--json", action="store_true")

    logs = add(
        "logs",
        _logs,
        "print the newest log of a pool, of a replica (also a dead one) or of the broker",
        "flyte-jupyter logs 'gpu[0]' --follow",
        "0 printed, 2 there is no such log",
    )
    logs.add_argument("what", nargs="?", metavar="POOL|NAME[i]|ID", help="default: the newest of all replicas")
    logs.add_argument("--broker", action="store_true", help="the broker's own log")
    logs.add_argument("--tail", type=parse_count(0), default=100, metavar="N", help="the last N lines (100)")
    logs.add_argument("--follow", "-f", action="store_true", help="go on as it grows; Ctrl-C ends")

    attach = add(
        "attach",
        _attach,
        "open a console on a warm kernel, which stays as warm as it was",
        "flyte-jupyter attach 'gpu[1]'",
        "0 detached, 1 the kernel ended, 2 no such pool or replica",
    )
    attach.add_argument("replica", metavar="POOL|NAME[i]")
    attach.add_argument("--shared", action="store_true", help="tasks may still run there meanwhile")
    attach.add_argument(
        "--existing-file",
        type=Path,
        metavar="PATH",
        help="serve this connection file for another client (`jupyter console --existing PATH`); written if not there",
    )

    peek = add(
        "peek",
        _peek,
        "show what a replica does now, and values in it, without disturbing it",
        "flyte-jupyter peek 'gpu[1]' step 'loss.shape'",
        "0 shown, 1 it does not answer, 2 no such pool or replica",
    )
    peek.add_argument("replica", metavar="POOL|NAME[i]")
    peek.add_argument("expressions", nargs="*", metavar="EXPR", help="with the names of the code that runs")
    peek.add_argument("--stack", action="store_true", help="where it is; also shown when nothing else is asked for")
    peek.add_argument("--gpu", action="store_true", help="the GPU memory that its torch holds")
    peek.add_argument("--timeout", type=parse_duration, default=2.0, metavar="T", help="wait this long (2s)")
    peek.add_argument("--json", action="store_true")

    scale = add(
        "scale",
        _scale,
        "set how few and how many replicas a pool has; running tasks are not disturbed",
        "flyte-jupyter scale gpu 1:4",
        "0 done, 1 no answer, 2 no such pool",
    )
    scale.add_argument("pool", metavar="POOL")
    scale.add_argument("replicas", type=parse_replicas, metavar="MIN[:MAX]")
    scale.add_argument("--json", action="store_true")

    warm = add(
        "warm",
        _warm,
        "start replicas now, and wait until they are ready; also after a failed preload",
        "flyte-jupyter warm gpu 2",
        "0 ready, 1 they failed or are not ready in time, 2 no such pool, or more than its maximum",
    )
    warm.add_argument("pool", metavar="POOL")
    warm.add_argument("replicas", nargs="?", type=parse_count(1), metavar="N", help="default: the pool's minimum, or 1")
    warm.add_argument("--no-wait", action="store_true", help="return once the first one is starting")
    warm.add_argument("--timeout", type=parse_duration, default=600.0, metavar="T", help="wait this long (10m)")
    warm.add_argument("--json", action="store_true")

    keep = add(
        "keep",
        _keep,
        "let no replica of a pool go for being idle, for a while",
        "flyte-jupyter keep gpu 2h",
        "0 done, 1 no answer, 2 no such pool",
    )
    keep.add_argument("pool", metavar="POOL")
    keep.add_argument("duration", type=parse_duration, metavar="DURATION", help="30m, 2h, 1h30m; 0 ends it")
    keep.add_argument("--json", action="store_true")

    restart = add(
        "restart",
        _restart,
        "replace a pool's replicas one by one while the old ones answer, or one replica after its running task",
        "flyte-jupyter restart 'gpu[0]'",
        "0 begun, 1 no answer, 2 no such pool or replica",
    )
    restart.add_argument("what", metavar="POOL|NAME[i]")
    restart.add_argument("--force", "--now", action="store_true", help="one replica: do not wait for its running task")
    restart.add_argument("--json", action="store_true")

    interrupt = add(
        "interrupt",
        _interrupt,
        "stop what runs on a replica; it stays, with what it has loaded",
        "flyte-jupyter interrupt 'gpu[0]'",
        "0 told, 1 no answer, 2 no such pool or replica",
    )
    interrupt.add_argument("what", metavar="NAME[i]")
    interrupt.add_argument("--json", action="store_true")

    doctor = add(
        "doctor",
        _doctor,
        "check versions, the runtime folder, the broker, GPUs and processes, and say what to do",
        "flyte-jupyter doctor --call",
        "0 nothing failed (warnings may be there), 1 something failed",
    )
    doctor.add_argument("--call", action="store_true", help="also start a kernel and run a task in it")
    doctor.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
