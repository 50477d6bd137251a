"""What tests with real kernels share: waiting for a condition, a broker of one's own, what holds after a fault."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

import flyte_jupyter as flyte
from flyte_jupyter import orphans, runtime
from flyte_jupyter.client import broker
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.snapshot import PoolView, ReplicaView, Snapshot

T = TypeVar("T")

TIME_SCALE = float(os.environ.get("TIME_SCALE") or (3 if os.environ.get("CI") else 1))
START_S = 15.0
"""How long a replica may take to start on a loaded machine; no time bound of a fault."""


def wait_until(condition: Callable[[], T], timeout: float = 5.0, what: str | Callable[[], str] = "") -> T:
    """The first true value of `condition`; fails after `timeout` seconds, times TIME_SCALE, and says `what` then."""
    deadline = time.monotonic() + timeout * TIME_SCALE
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {(what() if callable(what) else what) or condition}")
        time.sleep(0.01)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block must take no longer than that, times TIME_SCALE."""
    started = time.monotonic()
    yield
    took = time.monotonic() - started
    assert took <= seconds * TIME_SCALE, f"took {took:.2f} s, may take {seconds:g} s"


def attempt(function: Callable[..., Any], *args: Any) -> BaseException:
    """The exception that a call raises, whatever it is."""
    try:
        value = function(*args)
    except BaseException as error:
        return error
    raise AssertionError(f"no error, but {value!r}")


def whole_text(error: BaseException) -> str:
    """What a cell shows of an error: its text and its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


class Counter:
    """A file in which every execution of a task leaves a line: what ran, how often, and when."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def lines(self) -> list[str]:
        with suppress(FileNotFoundError):
            return Path(self.path).read_text().splitlines()
        return []

    def __len__(self) -> int:
        return len(self.lines())

    def wait(self, count: int = 1, timeout: float = START_S) -> list[str]:
        wait_until(lambda: len(self) >= count, timeout, lambda: f"{count} lines in {self.path}: {self.lines()}")
        return self.lines()


def mark(path: str, text: str = "x") -> None:
    """One line, appended in one write; for task bodies."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{text}\n".encode())
    os.close(fd)


# --- looking at a broker


def tagged(folder: Path) -> list[int]:
    """Living processes that carry this runtime folder in their environment, replicas and what they started."""
    return [pid for pid in orphans.tagged(**{orphans.RUNTIME_TAG: str(folder)}) if not orphans._is_zombie(pid)]


def replicas_of(folder: Path) -> list[int]:
    return [pid for pid in tagged(folder) if _has_variable(pid, orphans.REPLICA_TAG)]


def _has_variable(pid: int, name: str) -> bool:
    with suppress(OSError):
        return any(
            each.startswith(name.encode() + b"=") for each in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        )
    return False


def guardians(folder: Path) -> list[int]:
    """The guardian has an empty environment; its command line names the folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if str(folder) in line and any(part.endswith("orphans.py") for part in line):
            found.append(process.pid)
    return found


def leftovers(folder: Path) -> list[str]:
    """Files and folders that a broker which ended properly does not leave; locks and logs may stay."""
    kept = {"logs", "broker.lock", "start.lock"}
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in kept) if folder.exists() else []


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and not orphans._is_zombie(pid)


def wait_dead(pidfd: int) -> None:
    """Until all threads of that process have ended, so that its sockets are closed."""
    try:
        assert select.select([pidfd], [], [], 5 * TIME_SCALE)[0]
    finally:
        os.close(pidfd)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory_files(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            target = os.readlink(entry)
            if "memfd:flyte" in target or "memfd:fj" in target:
                found.append(target)
    return found


def view_of(pool: flyte.TaskEnvironment) -> PoolView:
    view = flyte.pool(pool).status()
    assert view is not None, f"the broker knows no pool {pool.name!r}"
    return view


def ready(pool: flyte.TaskEnvironment) -> list[ReplicaView]:
    return [replica for replica in view_of(pool).replicas if replica.state in ("ready", "busy", "attached")]


def pids(pool: flyte.TaskEnvironment) -> list[int]:
    return [replica.pid for replica in ready(pool) if replica.pid is not None]


def assert_quiet(*environments: flyte.TaskEnvironment, timeout: float = 5.0) -> None:
    """What always holds soon after a fault: no lease, no queue, each pool at its minimum, no stray process."""
    connection = broker.connect()
    names = {environment.name for environment in environments}

    def complaints() -> list[str]:
        snapped = connection.snapshot()
        snapshot = snapped.snapshot
        known = {replica.pid for pool in snapshot.pools for replica in pool.replicas}
        known |= {zygote.pid for zygote in snapped.zygotes}
        found = [f"stray process {pid}" for pid in replicas_of(runtime.runtime_folder()) if pid not in known]
        found += [f"{client.label} has {client.leases} leases, {client.waiting} waiting"
                  for client in snapshot.clients if client.leases or client.waiting]  # fmt: skip
        for pool in snapshot.pools:
            busy = [replica for replica in pool.replicas if replica.leases]
            live = [replica for replica in pool.replicas if replica.state == "ready"]
            if pool.waiting or busy:
                found.append(f"pool {pool.name} has work: {pool.waiting} waiting, {busy}")
            if pool.name in names and not pool.single_use and not pool.retiring:
                odd = [replica for replica in pool.replicas if replica.state != "ready"]
                if len(live) < pool.scaling.min_replicas or odd:
                    found.append(f"pool {pool.name}: {len(live)} ready, others {odd}")
        return found

    deadline = time.monotonic() + timeout * TIME_SCALE
    while found := complaints():
        assert time.monotonic() < deadline, f"not quiet after {timeout:g} s: {found}"
        time.sleep(0.02)


# --- a broker of one's own


class OwnBroker:
    """A runtime folder of one's own, with client processes that are scripts. Nothing of it outlives the test."""

    def __init__(self, home: Path, **variables: str) -> None:
        self.home = home
        self.folder = Path(tempfile.mkdtemp(prefix="fj-", dir="/tmp"))
        self.variables = {
            "FLYTE_JUPYTER_GPUS": "[]",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
            **variables,
        }
        self.scripts: list[subprocess.Popen[str]] = []
        self._count = 0

    # --- clients

    def start(self, code: str, *, name: str = "", **variables: str) -> subprocess.Popen[str]:
        """Run `code` as the `__main__` of a client process; `say(...)` there leaves a line in `said(name)`."""
        self._count += 1
        name = name or f"client{self._count}"
        script = self.home / f"{name}.py"
        script.write_text(f"SAID = {str(self.home / name)!r}\n{_PROLOGUE}\n{textwrap.dedent(code)}")
        with open(self.home / f"{name}.out", "w") as out:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", str(script)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.home,
                env=self._environment(variables),
                start_new_session=True,
            )
        self.scripts.append(process)
        return process

    def run(self, code: str, *, name: str = "", timeout: float = 20.0, **variables: str) -> list[str]:
        """The same, to its end, which must be exit code 0; what it said."""
        process = self.start(code, name=name, **variables)
        name = name or f"client{self._count}"
        try:
            code_ = process.wait(timeout * TIME_SCALE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} does not end:\n{self.output(name)}") from None
        assert code_ == 0, self.output(name)
        return self.said(name)

    def said(self, name: str) -> list[str]:
        return Counter(self.home / name).lines()

    def wait_said(self, name: str, count: int = 1, timeout: float = START_S) -> list[str]:
        wait_until(
            lambda: len(self.said(name)) >= count or any(s.poll() for s in self.scripts), timeout, f"{name} said"
        )
        assert len(self.said(name)) >= count, self.output(name)
        return self.said(name)

    def log(self) -> str:
        return runtime.broker_log(self.folder).read_text()

    def output(self, name: str) -> str:
        return (self.home / f"{name}.out").read_text()

    def _environment(self, variables: dict[str, str]) -> dict[str, str]:
        base = {k: v for k, v in os.environ.items() if not k.startswith("FLYTE_JUPYTER_")}
        return {**base, runtime.VARIABLE: str(self.folder), **self.variables, **variables}

    # --- the broker

    @property
    def pid(self) -> int:
        return int(runtime.broker_lock(self.folder).read_text().strip())

    def snapshot(self) -> Snapshot:
        """As another client sees it; on a connection of its own."""
        with self.connected() as connection:
            return connection.snapshot().snapshot

    @contextmanager
    def connected(self) -> Iterator[broker.Connection]:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.connect(str(runtime.broker_socket(self.folder)))
        connection = broker._shake_hands(stream)
        try:
            yield connection
        finally:
            connection.close()
            connection._thread.join(5)

    def end(self) -> None:
        """End all of it; fails if anything is left."""
        for process in self.scripts:
            if process.poll() is None:
                process.kill()
            process.wait()
        try:
            end_broker(self.folder)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


_PROLOGUE = """
import asyncio, os, signal, sys, threading, time
import flyte_jupyter as flyte
from flyte_jupyter import errors
from support import mark

def say(*words):
    mark(SAID, " ".join(map(str, words)))

def wait_said(word, count=1):
    while True:
        if os.path.exists(SAID):
            with open(SAID) as file:
                if file.read().count(word) >= count:
                    return
        time.sleep(0.01)
"""


def end_broker(folder: Path, *, patience: float = 12.0) -> None:
    """Shut the broker of `folder` down, and check that nothing of it is left."""
    path = runtime.broker_socket(folder)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.connect(str(path))
    except OSError:
        stream.close()
    else:
        connection = broker._shake_hands(stream)
        watchdog = guardians(folder)
        connection.send(p.Shutdown())
        connection._thread.join(patience * TIME_SCALE)
        wait_until(lambda: not alive(connection.broker_pid), patience, f"broker {connection.broker_pid} does not end")
        assert watchdog, "the broker had no guardian"
    wait_until(
        lambda: not tagged(folder), 5, lambda: f"processes of {folder}: {[_line(pid) for pid in tagged(folder)]}"
    )
    wait_until(lambda: not guardians(folder), 5, "the guardian is still there")
    assert leftovers(folder) == []


def _line(pid: int) -> str:
    with suppress(psutil.Error):
        return f"{pid} {' '.join(psutil.Process(pid).cmdline())}"
    return str(pid)


def interrupt(process: subprocess.Popen[str]) -> float:
    """Ctrl-C; the instant at which it was pressed, on the clock that all processes share."""
    pressed = time.monotonic()
    process.send_signal(signal.SIGINT)
    return pressed
