"""This process's connection to the broker: started on demand, shared by all threads, re-made when it breaks.

One daemon thread reads what the broker says and runs the timers of lingering leases. Requests are written by the
thread that makes them.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol, TypeVar

from pydantic import ValidationError

from .. import _version, errors, memory, runtime
from ..core import protocol as p
from ..core.timeline import TimelineView
from .identity import describe_client

T = TypeVar("T")

CONNECT_S: Final = 15.0
ANSWER_S: Final = 10.0


class LeaseListener(Protocol):
    """Who asked for a lease hears what became of it; on the connection's thread."""

    def granted(self, message: p.Granted) -> None: ...
    def refused(self, message: p.Refused) -> None: ...
    def recalled(self, lease: str) -> None: ...
    def lost(self, message: p.Lost) -> None: ...
    def broken(self, lease: str, error: errors.BaseRuntimeError) -> None: ...
    def forget(self) -> None: ...


class Connection:
    """A conversation with one broker. Once `closed`, it stays so; ask `connect()` for another."""

    def __init__(self, stream: socket.socket, pid: int) -> None:
        self.broker_pid = pid
        self.daemon: subprocess.Popen[bytes] | None = None  # if this process started it
        self.closed = False
        self.declared: dict[str, p.Declaration] = {}
        self._socket = stream
        self._write_lock = threading.Lock()
        self._lock = threading.Lock()
        self._listeners: dict[str, LeaseListener] = {}
        self._watchers: list[Callable[[p.Snapped | None], None]] = []
        self._watch_lock = threading.Lock()
        self._watching = 0
        self._questions = itertools.count()
        self._ask_lock = threading.Lock()
        self._timelines: deque[Future[p.ToldTimeline | None]] = deque()  # asked for, in order
        self._goodbye: str | None = None
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._wake_at = float("inf")
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_w, False)
        self._thread = threading.Thread(target=self._run, name="flyte_jupyter", daemon=True)
        self._thread.start()

    # --- requests, from any thread

    def send(self, message: p.Message) -> None:
        """Raises BrokerGone if the broker is not there any more."""
        line = p.to_line(message)
        try:
            with self._write_lock:
                self._socket.sendall(line)
        except OSError:
            raise self._gone() from None

    def listen(self, lease: str, listener: LeaseListener) -> None:
        with self._lock:
            self._listeners[lease] = listener

    def release(self, lease: str) -> None:
        """Give a lease back, or withdraw its request; it is over either way."""
        with self._lock:
            self._listeners.pop(lease, None)
        with suppress(errors.BrokerGone):
            self.send(p.Release(lease=lease))

    def declare(self, declaration: p.Declaration) -> None:
        """Make sure that the broker knows this environment as it is now."""
        spec = declaration.spec
        if self.declared.get(spec.key) is declaration:
            return
        self.send(p.Declare(declaration=declaration))
        if not spec.single_use:
            # The broker lets the pool go that had this name: who wants that one again has to say so.
            for key, other in list(self.declared.items()):
                if other.spec.name == spec.name and not other.spec.single_use:
                    self.declared.pop(key, None)
        self.declared[spec.key] = declaration

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        """Run `callback` on the connection's thread in `delay` seconds."""
        at = time.monotonic() + delay
        with self._lock:
            self._timer_count += 1
            heapq.heappush(self._timers, (at, self._timer_count, callback))
            late = at < self._wake_at
        if late:
            with suppress(OSError):
                os.write(self._wake_w, b"\0")

    @contextmanager
    def watching(self, callback: Callable[[p.Snapped | None], None]) -> Iterator[None]:
        """Call back with every snapshot, on the connection's thread; with None when the broker is gone."""
        with self._lock:
            self._watchers.append(callback)
        try:
            with self._watch_lock:
                # Every watcher asks anew, since each wants a first snapshot; further ones come only once.
                self.send(p.Watch(once=self._watching > 0))
                self._watching += 1
            yield
        finally:
            with self._lock:
                self._watchers.remove(callback)
            with self._watch_lock, suppress(errors.BrokerGone):
                self._watching -= 1
                if not self._watching:
                    self.send(p.Unwatch())

    def snapshot(self, *, usage: bool = False) -> p.Snapped:
        """The broker's state now; with `usage` it measures what is used, if that is quick."""
        answer: Future[p.Snapped | None] = Future()
        question = next(self._questions)

        def take(snapped: p.Snapped | None) -> None:
            if (snapped is None or snapped.question == question) and not answer.done():
                answer.set_result(snapped)

        with self._lock:
            self._watchers.append(take)
        try:
            self.send(p.Watch(once=True, usage=usage, question=question))
            return self._answer(answer)
        finally:
            with self._lock:
                self._watchers.remove(take)

    def timeline(self, pool: str, since: str | None = None) -> TimelineView | None:
        """What a pool did in the last minutes, or what is new since that mark; None if there is no such pool."""
        answer: Future[p.ToldTimeline | None] = Future()
        with self._ask_lock:  # answers come in the order of the questions
            self._timelines.append(answer)
            self.send(p.AskTimeline(pool=pool, since=since))
        return self._answer(answer).timeline

    def _answer(self, answer: Future[T | None]) -> T:
        try:
            said = answer.result(ANSWER_S)
        except TimeoutError:
            raise errors.BrokerUnavailable(
                f"broker {self.broker_pid} did not answer within {ANSWER_S:g} s",
                do="Run `flyte-jupyter stop`, then try again.",
            ) from None
        if said is None:
            raise self._gone()
        return said

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # --- the thread

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(self._wake_r, select.POLLIN)
        buffer = bytearray()
        try:
            while True:
                ready = dict(poller.poll(self._until_next_timer()))
                if self._wake_r in ready:
                    os.read(self._wake_r, 4096)
                if self._socket.fileno() in ready:
                    data = self._socket.recv(1 << 16)
                    if not data:
                        return
                    buffer += data
                    *lines, rest = buffer.split(b"\n")
                    buffer = bytearray(rest)
                    for line in lines:
                        self._receive(bytes(line))
                self._run_timers()
        except OSError:
            pass
        finally:
            self._close()

    def _until_next_timer(self) -> float | None:
        with self._lock:
            self._wake_at = self._timers[0][0] if self._timers else float("inf")
            return None if not self._timers else max(0.0, (self._wake_at - time.monotonic()) * 1000)

    def _run_timers(self) -> None:
        while True:
            with self._lock:
                if not self._timers or self._timers[0][0] > time.monotonic():
                    return
                _, _, callback = heapq.heappop(self._timers)
            callback()

    def _receive(self, line: bytes) -> None:
        try:
            message = p.from_broker.validate_json(line)
        except ValidationError:
            return  # a newer broker's word for something that this version does not know
        match message:
            case p.Granted():
                listener = self._listener(message.lease)
                if listener is None:  # withdrawn meanwhile
                    return
                listener.granted(message)
            case p.Refused():
                listener = self._forget(message.lease)
                if listener is not None:
                    listener.refused(message)
            case p.Recalled():
                listener = self._listener(message.lease)
                if listener is not None:
                    listener.recalled(message.lease)
            case p.Lost():
                listener = self._forget(message.lease)
                if listener is not None and self._goodbye is not None:
                    listener.broken(message.lease, self._gone())  # that is why its replica was ended
                elif listener is not None:
                    listener.lost(message)
            case p.Snapped():
                self._tell_watchers(message)
            case p.ToldTimeline():
                self._timelines.popleft().set_result(message)
            case p.Goodbye():
                self._goodbye = message.why
            case p.Failed():
                print(f"flyte_jupyter: the broker did not understand: {message.why}", file=sys.stderr)

    def _listener(self, lease: str) -> LeaseListener | None:
        with self._lock:
            return self._listeners.get(lease)

    def _forget(self, lease: str) -> LeaseListener | None:
        with self._lock:
            return self._listeners.pop(lease, None)

    def _tell_watchers(self, snapped: p.Snapped | None) -> None:
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher(snapped)

    def _close(self) -> None:
        self.closed = True
        memory.close()
        self._socket.close()
        with self._lock:
            orphaned, self._listeners = self._listeners, {}
            self._timers.clear()
            for fd in (self._wake_r, self._wake_w):
                os.close(fd)
            self._wake_at = float("-inf")  # so that nobody writes to the closed pipe
        if self.daemon is not None:
            with suppress(ChildProcessError):
                os.waitpid(self.daemon.pid, os.WNOHANG)
        for lease, listener in orphaned.items():
            listener.broken(lease, self._gone())
        self._tell_watchers(None)
        while self._timelines:
            self._timelines.popleft().set_result(None)

    def forget(self) -> None:
        """In a forked child: the conversation and its leases are the parent's, and its thread does not exist here."""
        self.closed = True
        self._lock, self._write_lock = threading.Lock(), threading.Lock()
        self._socket.close()
        self._wake_at = float("-inf")
        for fd in (self._wake_r, self._wake_w):
            with suppress(OSError):
                os.close(fd)
        for listener in self._listeners.values():
            listener.forget()
        self._listeners.clear()

    def _gone(self) -> errors.BrokerGone:
        return errors.BrokerGone(cause=self._goodbye)


# --- the one connection of this process

_lock = threading.Lock()
_connection: Connection | None = None


def current() -> Connection | None:
    """The live connection, if there is one."""
    connection = _connection
    return None if connection is None or connection.closed else connection


def connect(*, start: bool = True) -> Connection:
    """This process's connection; starts the broker when none answers, unless told not to.

    Raises:
        BrokerUnavailable: No broker runs and `start` is False, or it cannot be started; says why.
        VersionMismatch: The broker that runs speaks another protocol.
    """
    global _connection  # noqa: PLW0603
    with _lock:
        connection = current()
        if connection is None:
            connection = _connection = _open(start=start)
        return connection


def _open(*, start: bool, deadline: float | None = None) -> Connection:
    folder = runtime.private_folder()
    path = runtime.broker_socket(folder)
    deadline = deadline or time.monotonic() + CONNECT_S
    daemon: subprocess.Popen[bytes] | None = None
    stream = _try(path)
    if stream is None and not start:
        raise errors.BrokerUnavailable("no broker runs", do="It starts with the first task that is called.")
    while stream is None:
        if daemon is None or daemon.poll() is not None:
            if daemon is not None and daemon.returncode:
                raise _start_failure(folder, f"it ended with exit code {daemon.returncode}")
            daemon = _start(folder)
        if time.monotonic() > deadline:
            raise _start_failure(folder, f"it does not answer after {CONNECT_S:g} s")
        time.sleep(0.01)
        stream = _try(path)
    try:
        connection = _shake_hands(stream)
    except ConnectionError as problem:  # met a broker that was just ending
        if time.monotonic() > deadline:
            raise _start_failure(folder, f"it hangs up: {problem!r}") from None
        time.sleep(0.01)
        return _open(start=start, deadline=deadline)
    if daemon is not None and daemon.pid == connection.broker_pid:
        connection.daemon = daemon
        daemon.returncode = 0  # it outlives this process: no complaint that it still runs
    return connection


def _try(path: Path) -> socket.socket | None:
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        stream.close()
        return None
    if runtime.peer_uid(stream) != os.getuid():
        stream.close()
        raise errors.BrokerUnavailable(
            f"the process that answers at {path} belongs to another user",
            do=f"Set {runtime.VARIABLE} to a folder of your own.",
        )
    return stream


def _start(folder: Path) -> subprocess.Popen[bytes] | None:
    """Start a broker, unless another process is doing just that. Ten clients at once start one."""
    with open(folder / "start.lock", "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        logs = runtime.log_folder(folder)
        logs.mkdir(mode=0o700, exist_ok=True)
        with open(logs / "broker.out", "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            # Detached in every way: whoever reads this process's pipes must not wait for the daemon's end.
            # It inherits the start lock, so that nobody starts a second one before this one has its own lock.
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "flyte_jupyter.broker"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
                env={**os.environ, runtime.VARIABLE: str(folder)},
            )


def _start_failure(folder: Path, how: str) -> errors.BrokerUnavailable:
    out = runtime.log_folder(folder) / "broker.out"
    tail = ""
    with suppress(OSError):
        tail = "\n".join(out.read_text("utf-8", "replace").splitlines()[-10:])
    return errors.BrokerUnavailable(f"the broker could not be started: {how}", str(runtime.broker_log(folder)), tail)


def _shake_hands(stream: socket.socket) -> Connection:
    who = describe_client()
    stream.settimeout(ANSWER_S)
    answer = b""
    try:
        stream.sendall(
            p.to_line(p.Hello(version=_version.__version__, label=who.label, kind=who.kind, pid=os.getpid()))
        )
        while not answer.endswith(b"\n"):
            data = stream.recv(4096)
            if not data:
                raise ConnectionResetError
            answer += data
        welcome = p.from_broker.validate_json(answer)
    except ConnectionError:
        stream.close()
        raise
    except (OSError, ValidationError) as problem:
        stream.close()
        raise errors.BrokerUnavailable(
            f"the broker answered with {problem!r}", do="Run `flyte-jupyter stop`, then try again."
        ) from None
    if not isinstance(welcome, p.Welcome):
        stream.close()
        ours, theirs = _version.__version__, getattr(welcome, "version", "unknown")
        if ours == theirs:  # two states of one version under development
            ours, theirs = f"{ours} protocol {p.PROTOCOL}", f"{theirs} protocol {getattr(welcome, 'protocol', '?')}"
        raise errors.VersionMismatch(ours, theirs, "broker")
    stream.settimeout(None)
    return Connection(stream, welcome.pid)


def _forget_after_fork() -> None:
    global _connection, _lock  # noqa: PLW0603
    if _connection is not None:
        _connection.forget()
    _connection = None
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
