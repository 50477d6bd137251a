"""A broker and replicas that do what a test's script says. Only the sockets and the client's half of a call are real.

The main thread of a test calls tasks. The script runs beside it on a thread of its own, and plays all other parts:

    def script() -> None:
        wire = stage.grant()                    # waits for the request, grants it, and takes the connection
        wire.answer(wire.call(), "done")

    with stage.plays(script):
        assert task(1) == "done"

Nothing is read of a connection for calls but what the script reads. Each wait of a script ends, at the latest, after
`PATIENCE_S`; then all sockets are closed, so that the main thread does not wait for ever.
"""

from __future__ import annotations

import array
import fcntl
import itertools
import json
import os
import pickle
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from support import TIME_SCALE

import flyte_jupyter as flyte
from flyte_jupyter import _version, runtime
from flyte_jupyter.core import failure, payload
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.frames import HEADER, Frame, Kind, Output, Status, encode
from flyte_jupyter.core.snapshot import Snapshot

T = TypeVar("T")
M = TypeVar("M", bound=p.Message)

SHORT: Final = "short"
"""The argument of calls that are only made so that the client learns how long a call takes."""
PATIENCE_S: Final = 5.0 * TIME_SCALE
"""How long a script waits for what the client has to do next."""


class Notes:
    """What has arrived, for threads that wait for it."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.over = False
        self.patience = PATIENCE_S

    def wait(self, look: Callable[[], T | None], what: Callable[[], str]) -> T:
        """The first value of `look` that is not None."""
        deadline = time.monotonic() + self.patience
        with self.changed:
            while True:
                found = look()
                if found is not None:
                    return found
                assert not self.over, f"the stage was closed while the script waited for {what()}"
                assert time.monotonic() < deadline, f"the client did not do it: {what()}"
                self.changed.wait(0.05)

    def tell(self) -> None:
        with self.changed:
            self.changed.notify_all()


class ScriptedBroker:
    """Greets clients, and remembers what they say. It answers `Watch` at once; all else is the script's matter."""

    def __init__(self, folder: Path, notes: Notes) -> None:
        self.messages: list[p.Message] = []
        """All that was said, in order."""
        self._unread: list[p.Message] = []
        self._path = runtime.broker_socket(folder)
        self._notes = notes
        self._streams: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listening: socket.socket | None = None
        self._send_lock = threading.Lock()

    def start(self) -> None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(self._path))
        listening.listen()
        self._listening = listening
        self._begin(self._accept, listening)

    def end(self) -> None:
        """End as a broker that was killed. Returns when its clients have seen it; `start` starts the next one."""
        listening, self._listening = self._listening, None
        if listening is not None:
            self._path.unlink()
            listening.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._threads.clear()

    def hang_up(self) -> None:
        while self._streams:
            with suppress(OSError):
                self._streams.pop().shutdown(socket.SHUT_WR)

    def expect(self, kind: type[M], lease: str | None = None) -> M:
        """The next message of that kind (about that lease); those of other kinds wait."""
        return self._notes.wait(
            lambda: self._take((kind,), lease), lambda: f"{kind.__name__} {lease or ''}; it said {self.messages}"
        )

    def next(self, *kinds: type[M], until: threading.Event) -> M | None:
        """The next message of one of these kinds; None once `until` is set."""
        while not until.is_set():
            if (message := self._take(kinds, None)) is not None:
                return message
            time.sleep(0.001)
        return None

    def said(self, kind: type[M]) -> list[M]:
        """All messages of that kind so far."""
        return [message for message in list(self.messages) if isinstance(message, kind)]

    def send(self, message: p.Message) -> None:
        with self._send_lock:
            self._streams[-1].sendall(p.to_line(message))

    # --- private

    def _take(self, kinds: tuple[type[M], ...], lease: str | None) -> M | None:
        with self._notes.changed:
            for message in self._unread:
                if isinstance(message, kinds) and (lease is None or vars(message).get("lease") == lease):
                    self._unread.remove(message)
                    return message
        return None

    def _begin(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listening: socket.socket) -> None:
        with listening, suppress(OSError):
            while True:
                stream, _ = listening.accept()
                self._streams.append(stream)
                self._begin(self._listen, stream)

    def _listen(self, stream: socket.socket) -> None:
        with stream, stream.makefile("rb") as lines, suppress(OSError):
            for line in lines:
                self._receive(stream, p.to_broker.validate_json(line))

    def _receive(self, stream: socket.socket, message: p.ToBroker) -> None:
        match message:
            case p.Hello() if self._notes.over:
                stream.sendall(p.to_line(p.Rejected(version="over", protocol=0, pid=0)))
            case p.Hello():
                stream.sendall(p.to_line(p.Welcome(version=_version.__version__, pid=os.getpid())))
            case p.Watch(question=question):
                nothing = Snapshot(revision=0, now=0, pools=(), devices=(), device_problem=None, clients=())
                self.send(p.Snapped(epoch_offset=0, log_dir="", snapshot=nothing, question=question))
            case _:
                with self._notes.changed:
                    self.messages.append(message)
                    self._unread.append(message)
                    self._notes.changed.notify_all()


class Wire:
    """A replica's end of a connection for calls. The script says what is read of it, and what is written."""

    def __init__(self, stream: socket.socket, lease: str) -> None:
        self.lease = lease
        self.length = 0
        """Bytes of the frame that was read last."""
        self._stream = stream

    # --- in

    def read(self, count: int) -> bytes:
        """Exactly that many bytes."""
        data = b""
        while len(data) < count:
            more = self._stream.recv(count - len(data))
            if not more:
                raise EOFError(f"the client hung up after {len(data)} of {count} bytes")
            data += more
        return data

    def frame(self) -> Frame:
        """The next frame, and not a byte more."""
        kind, flags, count, call, size = HEADER.unpack(self.read(HEADER.size))
        sizes = struct.unpack(f"!{count}Q", self.read(8 * count))
        self.length = HEADER.size + 8 * count + size + sum(sizes)
        return Frame(kind, call, flags, self.read(size), [self.read(each) for each in sizes])

    def call(self, *args: object) -> Frame:
        """The next call, which must have these arguments. Where the client is, which it says before, is passed over."""
        frame = self.any_call()
        assert arguments(frame) == args
        return frame

    def any_call(self) -> Frame:
        frame = self.next(Kind.PLACE, Kind.CALL)
        while frame.kind != Kind.CALL:
            frame = self.next(Kind.PLACE, Kind.CALL)
        return frame

    def answer_short_ones(self, until: threading.Event) -> None:
        """Answer calls of `SHORT` at once, until another call comes after that is set. It is not read."""
        while True:
            assert select.select([self._stream], [], [], PATIENCE_S)[0], "no call comes"
            if until.is_set():
                return
            self.answer(self.call(SHORT))

    def next(self, *kinds: Kind) -> Frame:
        frame = self.frame()
        assert frame.kind in kinds, frame
        return frame

    def unread(self) -> int:
        """How many bytes lie here that nobody has read."""
        count = array.array("i", [0])
        fcntl.ioctl(self._stream, termios.FIONREAD, count)
        return count[0]

    def wait_unread(self, least: int = 1) -> None:
        """Until that many bytes lie here."""
        deadline = time.monotonic() + PATIENCE_S
        while self.unread() < least:
            assert time.monotonic() < deadline, f"only {self.unread()} of {least} bytes have come"
            time.sleep(0.001)

    def rest(self) -> bytes:
        """What the client wrote until it hung up."""
        data = b""
        with suppress(ConnectionResetError):
            while more := self._stream.recv(1 << 16):
                data += more
        return data

    # --- out

    def write(self, data: bytes) -> None:
        self._stream.sendall(data)

    def send(self, kind: int, call: int, body: bytes = b"", flags: int = 0) -> None:
        self.write(b"".join(encode(kind, call, body, flags=flags)))

    def answer(self, call: Frame, value: object = None) -> None:
        """Its value is the outcome."""
        self.send(Kind.OUTCOME, call.call, payload.dump_result(value).data, Status.OK)

    def half_answer(self, call: Frame, value: object = None) -> Callable[[], None]:
        """The first half of the outcome; what is returned sends the rest."""
        data = b"".join(encode(Kind.OUTCOME, call.call, payload.dump_result(value).data, flags=Status.OK))
        half = HEADER.size // 2 if len(data) < 2 * HEADER.size else len(data) // 2
        self.write(data[:half])
        return lambda: self.write(data[half:])

    def fail(self, call: Frame, error: BaseException) -> None:
        self.send(Kind.OUTCOME, call.call, pickle.dumps(failure.describe(error), 5), Status.ERROR)

    def cancelled(self, call: int) -> None:
        self.send(Kind.OUTCOME, call, flags=Status.CANCELLED)

    def withdrawn(self, first: int, count: int = 1) -> None:
        self.send(Kind.WITHDRAWN, first, flags=count)

    def print(self, call: Frame, text: str) -> None:
        self.send(Kind.OUTPUT, call.call, text.encode(), Output.STDOUT)

    def need(self, call: Frame) -> None:
        self.send(Kind.NEED, call.call, pickle.dumps({}, 5))

    def end(self) -> None:
        """Close it after all was read: the client sees the end of the stream."""
        assert not self.unread(), "that would be a reset"
        self.close()

    def end_unread(self) -> None:
        """The end of the stream, although something was not read."""
        self.wait_unread()
        self._stream.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close it with something unread: the client sees a reset."""
        self.wait_unread()
        self.close()

    def close(self) -> None:
        self._stream.close()

    def shut_down(self) -> None:
        """Close it, also under a thread that reads."""
        with suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()


class ScriptedReplica:
    """Greets connections. Orders (cancel, withdraw) are read as they come; calls by the script."""

    def __init__(self, path: Path, notes: Notes, *, deaf: bool = False) -> None:
        self.address = str(path)
        self.name = path.name
        self.orders: list[Frame] = []
        self._notes = notes
        self._wires: deque[Wire] = deque()
        self._opened: list[Wire] = []
        self._unread_orders: deque[Frame] = deque()
        self._controls: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.address)
        self._listening.listen()
        self._threads: list[threading.Thread] = []
        if not deaf:
            self._begin(self._accept)

    def wire(self) -> Wire:
        """The next connection for calls."""
        return self._notes.wait(
            lambda: self._wires.popleft() if self._wires else None, lambda: f"a connection to {self.name}"
        )

    def order(self, kind: Kind) -> Frame:
        """The next order, which must be of that kind."""
        found = self._notes.wait(
            lambda: self._unread_orders.popleft() if self._unread_orders else None,
            lambda: f"{kind.name} to {self.name}",
        )
        assert found.kind == kind, found
        return found

    def wait_visited(self) -> None:
        """Until somebody has connected to a deaf one."""
        assert select.select([self._listening], [], [], PATIENCE_S)[0]

    def die(self) -> None:
        """Nobody listens here any more. Connections that were not accepted are reset."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        if not self._threads:
            self._listening.close()

    def close(self) -> None:
        self.die()
        for wire in self._opened:
            wire.shut_down()
        for control in self._controls:
            with suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)

    # --- private

    def _begin(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with self._listening, suppress(OSError):
            while True:
                stream, _ = self._listening.accept()
                stream.settimeout(PATIENCE_S)
                wire = Wire(stream, "")
                self._opened.append(wire)
                with suppress(EOFError, ConnectionError):
                    hello = json.loads(wire.next(Kind.HELLO).body)
                    if hello["role"] == "control":
                        self._controls.append(stream)
                        self._begin(self._take_orders, wire)
                    else:
                        wire.lease = hello["lease"]
                        self._wires.append(wire)
                        self._notes.tell()

    def _take_orders(self, wire: Wire) -> None:
        with suppress(EOFError, OSError):
            while True:
                order = wire.frame()
                self.orders.append(order)
                self._unread_orders.append(order)
                self._notes.tell()


class Stage:
    """A broker, its replicas, and an environment of their own in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = Notes()
        self.broker = ScriptedBroker(folder, self.notes)
        self._lock = open(folder / "start.lock", "w")  # noqa: SIM115 - held, so that no client starts a real broker
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.broker.start()
        self._replicas: list[ScriptedReplica] = []
        self._any = self.environment()
        self._names = (f"r{number}" for number in itertools.count())

    def environment(self, replicas: int = 1) -> flyte.TaskEnvironment:
        name = f"scripted-{next(_numbers)}"
        return flyte.TaskEnvironment(name, reusable=flyte.ReusePolicy(replicas=replicas))

    # --- for scripts

    def replica(self, *, deaf: bool = False) -> ScriptedReplica:
        """A new one, which nobody knows yet. A deaf one accepts no connection."""
        replica = ScriptedReplica(self.folder / next(self._names), self.notes, deaf=deaf)
        self._replicas.append(replica)
        return replica

    def asked(self) -> p.Acquire:
        """The next request for a slot."""
        return self.broker.expect(p.Acquire)

    def grant(self, request: p.Acquire | None = None, replica: ScriptedReplica | None = None) -> Wire:
        """Grant the next request (or that one) on a new replica (or that one); the connection that comes of it."""
        request = request or self.asked()
        replica = replica or self.replica()
        self.say_granted(request, replica)
        wire = replica.wire()
        assert wire.lease == request.lease
        return wire

    def say_granted(self, request: p.Acquire, replica: ScriptedReplica) -> None:
        self.broker.send(
            p.Granted(lease=request.lease, replica=replica.name, name=replica.name, address=replica.address)
        )

    def lose(self, wire: Wire) -> None:
        """Tell the client that the replica under that lease was killed."""
        self.broker.send(p.Lost(lease=wire.lease, replica="r", name="r", cause="signal SIGKILL", signal="SIGKILL"))

    def replica_of(self, wire: Wire) -> ScriptedReplica:
        return next(replica for replica in self._replicas if wire in replica._opened)

    def heard(self) -> None:
        """Until the client has heard all that the broker has said."""
        flyte.pool(self._any).status()  # the answers to questions come in order, too

    def interrupt(self) -> None:
        """Ctrl-C, as soon as the main thread waits for something."""
        wait_until_it_waits(threading.main_thread())
        signal.pthread_kill(_ident(threading.main_thread()), signal.SIGINT)

    # --- for tests

    @contextmanager
    def plays(self, script: Callable[[], object]) -> Iterator[None]:
        """Run the script beside the block. In the end every lease that was asked for must have been released."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                script()
            except BaseException as error:
                failed.append(error)
                self.give_up()

        thread = threading.Thread(target=run, name="script", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            if failed:
                raise failed[0] from error
            self.give_up()  # what the script still waits for does not come
            thread.join(PATIENCE_S)
            raise
        thread.join(PATIENCE_S)
        if failed:
            raise failed[0]
        assert not thread.is_alive(), "the script does not end"
        self.expect_all_released()

    def asked_for(self) -> list[str]:
        """The leases that were asked for so far."""
        return [asked.lease for asked in self.broker.said(p.Acquire)]

    def expect_all_released(self) -> None:
        """Nobody keeps a slot, nobody waits for one."""

        def look() -> bool | None:
            return set(self.asked_for()) <= {said.lease for said in self.broker.said(p.Release)} or None

        self.notes.wait(look, lambda: f"Release of every lease; it said {self.broker.messages}")

    def give_up(self) -> None:
        """Hang up on everybody, and greet nobody any more."""
        self.notes.over = True
        for replica in self._replicas:
            replica.close()
        self.broker.hang_up()
        self.notes.tell()

    def close(self) -> None:
        self.give_up()
        self.broker.end()
        self._lock.close()


_numbers = itertools.count()


@contextmanager
def open_stage() -> Iterator[Stage]:
    """A stage in a runtime folder of its own, whose environment variable is the caller's matter."""
    folder = Path(tempfile.mkdtemp(prefix="fj-", dir="/tmp"))
    stage = Stage(folder)
    try:
        yield stage
    finally:
        stage.close()
        shutil.rmtree(folder, ignore_errors=True)


def arguments(call: Frame) -> tuple[Any, ...]:
    """The positional arguments of a call."""
    data, *buffers = call.buffers
    args: tuple[Any, ...] = payload.load(data, buffers)[0]
    return args


async def learn_pace(task: flyte.Task[..., Any]) -> None:
    """Make calls of `SHORT` until the last ones took so little that several are sent at a time."""
    quick = 0
    while quick < 15:
        began = time.monotonic()
        await task.aio(SHORT)
        quick = quick + 1 if time.monotonic() - began < 0.001 else 0


def wait_until_it_waits(thread: threading.Thread) -> None:
    """Until a thread stands still: the same instruction at ten looks, and the system says that it sleeps."""
    deadline = time.monotonic() + PATIENCE_S
    seen, count = None, 0
    while count < 10:
        assert time.monotonic() < deadline, f"{thread.name} does not wait for anything"
        time.sleep(0.001)
        frame = sys._current_frames()[_ident(thread)]
        now = (id(frame), frame.f_lasti) if _sleeps(thread) else None
        count = count + 1 if now is not None and now == seen else 0
        seen = now


def _sleeps(thread: threading.Thread) -> bool:
    try:
        text = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    except FileNotFoundError:  # not Linux
        return True
    return text.rpartition(")")[2].split()[0] == "S"


def _ident(thread: threading.Thread) -> int:
    assert thread.ident is not None
    return thread.ident
