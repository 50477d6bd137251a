"""This process's connection to the broker: started on demand, shared by all threads, re-made when it breaks.

One daemon thread reads what the broker says and runs the timers of lingering leases. Requests are written by the
thread that makes them.
"""

from __future__ import annotations

import heapq
import math
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol, TypeVar

from .. import _version, errors, memory, runtime
from ..core import protocol as p
from ..core.dialogue import (
    ANSWER_S,
    SLOW_S,
    Answer,
    Answered,
    Dialogue,
    Ended,
    Greeted,
    Noticed,
    Question,
    Reply,
    Send,
    Unanswered,
    Waiting,
    none_runs,
)
from ..core.timeline import TimelineView
from .daemon import start_daemon, start_failure
from .dialing import dial
from .identity import describe_client

T = TypeVar("T")

CONNECT_S: Final = 15.0
"""How long a broker may take to start."""


class LeaseListener(Protocol):
    """Who asked for a lease hears what became of it; on the connection's thread."""

    def granted(self, message: p.Granted) -> None: ...
    def refused(self, message: p.Refused) -> None: ...
    def recalled(self, lease: str) -> None: ...
    def lost(self, message: p.Lost) -> None: ...
    def broken(self, lease: str, error: errors.BaseRuntimeError) -> None: ...
    def forget(self) -> None: ...


class Connection:
    """The thread's driver of a dialogue with one broker. Once `closed`, it stays so; ask `connect()` for another.

    Args:
        stream: Connected to the broker's socket.
    """

    def __init__(self, stream: socket.socket) -> None:
        who = describe_client()
        hello = p.Hello(version=_version.__version__, label=who.label, kind=who.kind, pid=os.getpid())
        self.daemon: subprocess.Popen[bytes] | None = None  # if this process started it
        self.closed = False
        self.declared: dict[str, p.Declaration] = {}
        self._socket = stream
        self._write_lock = threading.Lock()
        self._lock = threading.Lock()
        self._dialogue = Dialogue(hello, ANSWER_S)  # with the lock held, but for what only reads
        self._greeted: Future[p.Welcome] = Future()
        self._answers: dict[int, Future[Answer]] = {}
        self._listeners: dict[str, LeaseListener] = {}
        self._watchers: list[Callable[[p.Snapped | None], None]] = []
        self._watch_lock = threading.Lock()
        self._watching = 0
        self._ending = False  # the broker has said goodbye
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._wake_at = math.inf
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_w, False)
        self._thread = threading.Thread(target=self._run, name="flyte_jupyter", daemon=True)
        self._thread.start()

    def greet(self) -> None:
        """Return once the broker has said welcome.

        Raises:
            BrokerGone: It hung up; it was just ending.
            BrokerSilent, VersionMismatch, ProtocolError: As they say.
        """
        with self._lock:
            replies = self._dialogue.connect(now=time.monotonic(), pid=runtime.peer_pid(self._socket) or None)
        self._deliver(replies)
        self._wait(self._greeted)

    @property
    def broker_pid(self) -> int:
        assert self._dialogue.pid is not None
        return self._dialogue.pid

    # --- requests, from any thread

    def send(self, message: p.Message) -> None:
        """Raises BrokerGone if the broker is not there any more."""
        self._write(self._dialogue.tell(message))

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
        """The broker's state now; with `usage` it measures what is used, if that is quick.

        Raises:
            BrokerSilent: It does not answer in time.
            BrokerGone: It has ended.
        """
        answer = self._ask(p.Watch(once=True, usage=usage))
        assert isinstance(answer, p.Snapped)
        return answer

    def timeline(self, pool: str, since: str | None = None) -> TimelineView | None:
        """What a pool did in the last minutes, or what is new since that mark; None if there is no such pool.

        Raises:
            BrokerSilent: The broker does not answer in time.
            BrokerGone: It has ended.
        """
        answer = self._ask(p.AskTimeline(pool=pool, since=since))
        assert isinstance(answer, p.ToldTimeline)
        return answer.timeline

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    # --- the dialogue

    def _ask(self, question: Question) -> Answer:
        answer: Future[Answer] = Future()
        with self._lock:
            number, line = self._dialogue.ask(question, now=time.monotonic())
            self._answers[number] = answer
        try:
            self._write(line, ANSWER_S)
            return self._wait(answer)
        finally:  # also by Ctrl-C
            with self._lock:
                self._dialogue.withdraw(number)
                self._answers.pop(number, None)

    def _wait(self, awaited: Future[T]) -> T:
        """Wait as long as the dialogue says. The waiting thread runs its clock, since only waits have deadlines."""
        while True:
            with self._lock:
                due = self._dialogue.next_deadline()
            if wait([awaited], None if due == math.inf else max(0.0, due - time.monotonic())).done:
                return awaited.result()
            with self._lock:
                replies = self._dialogue.tick(now=time.monotonic())
            self._deliver(replies)

    def _write(self, line: bytes, patience_s: float = math.inf) -> None:
        """Send a line; wait up to `patience_s` while the broker reads nothing. An order has no limit."""
        left = memoryview(line)
        try:
            with self._write_lock:
                while left:
                    try:
                        left = left[self._socket.send(left, socket.MSG_DONTWAIT) :]
                    except BlockingIOError:
                        self._wait_until_it_reads(patience_s)
        except OSError:
            raise self._dialogue.gone() from None
        except BaseException:  # Ctrl-C, or it is silent
            if 0 < len(left) < len(line):
                self.close()  # the broker would take the next line for the rest of this one
            raise

    def _wait_until_it_reads(self, patience_s: float) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLOUT)
        if poller.poll(min(patience_s, SLOW_S) * 1000):
            return
        if patience_s > SLOW_S:
            _say(self._dialogue.waits_for())
            if poller.poll(None if patience_s == math.inf else (patience_s - SLOW_S) * 1000):
                return
        raise self._dialogue.silent(patience_s)

    def _deliver(self, replies: list[Reply]) -> None:
        for reply in replies:
            match reply:
                case Send(data):
                    self._write(data)
                case Greeted(welcome):
                    self._greeted.set_result(welcome)
                case Answered(number, answer):
                    with self._lock:
                        asked = self._answers.pop(number, None)
                    if asked is not None:
                        asked.set_result(answer)
                case Unanswered(number, error):
                    with self._lock:
                        asked = self._answers.pop(number, None)
                    if asked is not None:
                        asked.set_exception(error)
                case Noticed(notice):
                    self._notice(notice)
                case Waiting(text):
                    _say(text)
                case Ended(error):
                    if not self._greeted.done():
                        self._greeted.set_exception(error)
                    self.close()

    # --- the thread

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(self._wake_r, select.POLLIN)
        try:
            while True:
                ready = dict(poller.poll(self._until_next_timer()))
                if self._wake_r in ready:
                    os.read(self._wake_r, 4096)
                if self._socket.fileno() in ready:
                    data = self._socket.recv(1 << 16)
                    if not data:
                        return
                    with self._lock:
                        replies = self._dialogue.receive(data, now=time.monotonic())
                    self._deliver(replies)
                self._run_timers()
        except (OSError, errors.BrokerGone):
            pass
        finally:
            self._close()

    def _until_next_timer(self) -> float | None:
        with self._lock:
            self._wake_at = self._timers[0][0] if self._timers else math.inf
            return None if not self._timers else max(0.0, (self._wake_at - time.monotonic()) * 1000)

    def _run_timers(self) -> None:
        while True:
            with self._lock:
                if not self._timers or self._timers[0][0] > time.monotonic():
                    return
                _, _, callback = heapq.heappop(self._timers)
            callback()

    def _notice(self, notice: p.FromBroker) -> None:
        match notice:
            case p.Granted():
                listener = self._listener(notice.lease)
                if listener is None:  # withdrawn meanwhile
                    return
                listener.granted(notice)
            case p.Refused():
                listener = self._forget(notice.lease)
                if listener is not None:
                    listener.refused(notice)
            case p.Recalled():
                listener = self._listener(notice.lease)
                if listener is not None:
                    listener.recalled(notice.lease)
            case p.Lost():
                listener = self._forget(notice.lease)
                if listener is not None and self._ending:
                    listener.broken(notice.lease, self._dialogue.gone())  # that is why its replica was ended
                elif listener is not None:
                    listener.lost(notice)
            case p.Snapped():
                self._tell_watchers(notice)
            case p.Goodbye():
                self._ending = True

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
        with self._lock:
            self._dialogue.disconnect()
            replies = self._dialogue.end()  # another broker may come, but not on this connection
        self._socket.close()
        with self._lock:
            orphaned, self._listeners = self._listeners, {}
            self._timers.clear()
            for fd in (self._wake_r, self._wake_w):
                os.close(fd)
            self._wake_at = -math.inf  # so that nobody writes to the closed pipe
        if self.daemon is not None:
            with suppress(ChildProcessError):
                os.waitpid(self.daemon.pid, os.WNOHANG)
        for lease, listener in orphaned.items():
            listener.broken(lease, self._dialogue.gone())
        self._tell_watchers(None)
        self._deliver(replies)

    def forget(self) -> None:
        """In a forked child: the dialogue and its leases are the parent's, and its thread does not exist here."""
        self.closed = True
        self._lock, self._write_lock = threading.Lock(), threading.Lock()
        self._socket.close()
        self._wake_at = -math.inf
        for fd in (self._wake_r, self._wake_w):
            with suppress(OSError):
                os.close(fd)
        for listener in self._listeners.values():
            listener.forget()
        self._listeners.clear()


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
        BrokerSilent: One runs, but does not answer.
        VersionMismatch: The broker that runs speaks another protocol.
    """
    global _connection  # noqa: PLW0603
    with _lock:
        connection = current()
        if connection is None:
            connection = _connection = _open(start=start)
        return connection


def _open(*, start: bool) -> Connection:
    folder = runtime.private_folder()
    deadline = time.monotonic() + CONNECT_S
    slow_at: float = time.monotonic() + SLOW_S
    daemon: subprocess.Popen[bytes] | None = None
    try:
        while True:
            stream = dial(folder, ANSWER_S)
            how = f"it does not answer after {CONNECT_S:g} s"
            if stream is not None:
                try:
                    connection = _shake_hands(stream)
                    break
                except errors.BrokerGone:  # met a broker that was just ending
                    how = "it hangs up"
            elif not start:
                raise none_runs()
            elif daemon is None or daemon.poll() is not None:
                if daemon is not None and daemon.returncode:
                    raise start_failure(folder, f"it ended with exit code {daemon.returncode}")
                daemon = start_daemon(folder)
            if time.monotonic() > deadline:
                raise _not_started(folder, daemon, how)
            if time.monotonic() > slow_at:
                slow_at = math.inf
                _say("Waiting for the broker to start. Ctrl-C ends the wait, not the broker.")
            time.sleep(0.01)
    finally:
        if daemon is not None and daemon.poll() is None:
            daemon.returncode = 0  # it outlives this process: no complaint that it still runs
    if daemon is not None and daemon.pid == connection.broker_pid:
        connection.daemon = daemon
    return connection


def _not_started(folder: Path, daemon: subprocess.Popen[bytes] | None, how: str) -> errors.PoolError:
    """Why none answers: another one may have the lock, and neither serve its socket nor end."""
    holder = runtime.lock_holder(folder)
    if holder is not None and (daemon is None or daemon.pid != holder):
        return errors.BrokerSilent(holder, CONNECT_S)
    return start_failure(folder, how)


def _shake_hands(stream: socket.socket) -> Connection:
    """A connection whose broker has said welcome. Raises as `Connection.greet` does."""
    connection = Connection(stream)
    try:
        connection.greet()
    except BaseException:
        connection.close()
        raise
    return connection


def _say(text: str) -> None:
    """Tell the person who waits. Only the main thread has one, who can press Ctrl-C."""
    if threading.current_thread() is threading.main_thread():
        print(f"flyte_jupyter: {text}", file=sys.stderr, flush=True)


def _forget_after_fork() -> None:
    global _connection, _lock  # noqa: PLW0603
    if _connection is not None:
        _connection.forget()
    _connection = None
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_after_fork)
