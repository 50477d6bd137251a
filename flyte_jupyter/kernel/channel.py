"""The replica's end of the task channel: a Unix stream socket beside the Jupyter channels.

The control thread accepts and greets connections, so that a busy main thread hides nobody. A connection for calls is
then the main thread's: one lease, one connection, one call at a time. A connection for control stays where it is:
it carries cancels, and the broker's orders.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import json
import os
import pickle
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from IPython.core.error import StdinNotImplementedError

from ..core.context import TaskContext
from ..core.definitions import ORIGIN, Closure, ImportDefinition, Mark
from ..core.frames import CALL, FIRST_CALL, Answer, Buffer, Frame, FrameReader, Kind, Status, encode
from ..errors import ProtocolError
from ..memory import Exchange, receive_with_fds
from ..runtime import peer_pid, peer_uid
from . import descriptors
from .cells import Cells, SessionKey
from .comms import Comms
from .interrupts import waits, whole
from .modules import NOWHERE, Modules
from .namespace import NotebookModule, NotSent
from .namespaces import Namespaces
from .outputs import NOBODY_TO_ASK, OutputSink
from .process import Process, Watch
from .recorder import Recorder, Span
from .runner import Runner, RunningCall, dump_failure, enter, make_context

T = TypeVar("T")

HANDSHAKE_S: Final = 5.0
GREETING_BYTES: Final = 64 * 1024
STALLED_MS: Final = 5000
"""How long a peer on a control connection may read nothing of what it is sent."""
READ_AHEAD: Final = 64
"""Calls of one lease that may wait in this process; the rest wait in the socket."""
WANTED_S: Final = 10.0
"""How long something may wait for a name that the notebook has not sent."""
MOST_ASKED: Final = 10
"""How often one call may ask for its definitions, while other calls of its process bring other ones."""
BACKLOG_BYTES: Final = 8 * 1024 * 1024
"""Output that a client has not taken yet; a task that writes more waits."""


@dataclass(frozen=True, slots=True)
class CallerHello:
    """Who a connection for calls belongs to."""

    lease: str
    label: str
    """For people: "train.ipynb"."""
    notebook: str
    process: tuple[str, int]
    """Whose names these are: its token and its pid."""
    run: str
    replica: str
    files: Exchange | None
    """Where big buffers come and go."""
    session: str = ""
    """Of a front end that is attached to the Jupyter channels: its routing id there. It makes no calls here."""


def _hung_up(connection: socket.socket) -> bool:
    if not hasattr(select, "POLLRDHUP"):
        return False
    poller = select.poll()
    poller.register(connection, select.POLLRDHUP)
    return bool(poller.poll(0))


class CallChannel:
    """One lease's calls, in order, one at a time. Lives on the main thread; `send` may be called by any.

    The control thread makes it and answers for calls that have not begun, so that they need not wait for a main
    thread that is busy.
    """

    module: NotebookModule

    def __init__(self, connection: socket.socket, reader: FrameReader, hello: CallerHello, replica: Replica) -> None:
        self.connection = connection
        self.hello = hello
        self.replica = replica
        self.running: RunningCall | None = None
        self.postponed: RunningCall | None = None  # its interrupt has come while something was being sent
        self.span: Span | None = None  # of the last call, if it was a short one
        self._withdrawn: set[int] = set()  # calls that their client has taken back or cancelled: they do not begin
        self._begun = 0  # the last call that was begun
        self._begin = threading.Lock()
        self.sessions: set[SessionKey] = set()  # that its cells use
        self.closed = False
        self._reader = reader
        self._frames: deque[Frame] = deque()
        self._undefined: Frame | None = None  # a call that waits for its definitions
        self._answers: deque[Frame] = deque()
        self._folder = ""
        self._arguments: list[str] = []
        self._place = NOWHERE
        self._number = 0  # of the call that is defined, or runs
        self._asked = 0  # for definitions of the present call
        self._defining: NotebookModule  # where those will be
        self._pid = os.getpid()
        self._asking = threading.RLock()  # held by the thread that reads the client's answer
        self._lock = threading.Lock()
        self._backlog: deque[memoryview] = deque()
        self._backlog_bytes = 0
        self._reading = True
        self._loop = replica.runner.loop
        self._recorder = replica.recorder

    def open(self) -> None:
        """Begin with what came along with the greeting. Cancels and withdrawals can reach it before."""
        self.module = self.replica.namespaces.notebook(self.hello.notebook, *self.hello.process)
        self.replica.watch(self.module.process)
        self._loop.add_reader(self.connection, self._on_readable)
        self._take_frames()

    def _move(self, where: Mapping[str, Any]) -> None:
        """The client is there: see `client.place`."""
        self._folder, self._arguments = where["folder"], where["arguments"]
        self._place = self.replica.modules.place(self.hello.process[0], where["path"], *where["modules"])

    def enter(self) -> None:
        """A task begins: where its caller is, and with its caller's arguments."""
        enter(self._folder, self._arguments)

    # --- in

    @whole
    def _on_readable(self) -> None:
        try:
            count = self.connection.recv_into(self._reader.get_buffer(), 0, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if count == 0:
            self.close()
            return
        try:
            self._reader.buffer_updated(count)
        except ProtocolError as problem:
            self.replica.log(f"lease {self.hello.lease}: {problem}; connection closed")
            self.close()
            return
        self._take_frames()

    def _take_frames(self) -> None:
        while (frame := self._reader.next_frame()) is not None:
            if frame.kind == CALL:
                self._frames.append(frame)
            elif frame.kind in (Kind.ANSWER, Kind.GIVE):
                self._answers.append(frame)
            elif frame.kind == Kind.LEAVE:
                self.replica.cells.leave(self.hello.process[0], self.sessions)
            elif frame.kind == Kind.COMM:
                self.replica.comms.receive(frame, OutputSink(frame.call, self.send_output, self.replica.later))
            else:
                self._frames.append(frame)
        self._advance()
        if self._reading and len(self._frames) >= READ_AHEAD and self._undefined is None:
            self._reading = False
            self._loop.remove_reader(self.connection)

    def _advance(self) -> None:
        while (frame := self._next()) is not None:
            if frame.kind == CALL:
                self._on_call(frame)
            elif frame.kind == Kind.DEFINE and self._undefined is not None:
                waiting, self._undefined = self._undefined, None
                self._on_define(frame, waiting)
            elif frame.kind == Kind.PLACE:
                self._move(json.loads(frame.body))
            else:
                self.replica.log(f"lease {self.hello.lease}: unexpected {frame!r}")
        wanted = len(self._frames) < READ_AHEAD // 2 or self._undefined is not None  # definitions come last
        if not self._reading and not self.closed and wanted:
            self._reading = True
            self._loop.add_reader(self.connection, self._on_readable)

    def _ask(self, number: int, prompt: str, password: bool) -> str:
        """Wait for the user's answer, on the main thread."""
        question = pickle.dumps({"prompt": prompt, "password": password}, 5)
        answer = self._answer(encode(Kind.INPUT, number, question), number, Kind.ANSWER, None)
        if answer is None:
            raise EOFError("the client that could be asked is gone")
        if answer.flags == Answer.NOBODY:
            raise StdinNotImplementedError(NOBODY_TO_ASK)
        return str(answer.body, "utf-8")

    def _want(self, task: TaskContext, name: str) -> Mapping[str, Any]:
        """Where the call finds what its notebook calls so: the client is asked once for each name.

        What the call has brought along stays as it was then.
        """
        call = self.running
        module: NotebookModule = getattr(task.main, ORIGIN)
        if call is None or call.context is not task or any(name in module.manifests.get(d, ()) for d in call.digests):
            return module.names
        if os.getpid() != self._pid:  # a worker that the task has forked has the names of then
            return module.names
        if call.task is not None and threading.current_thread() is not threading.main_thread():
            found = self._on_main_thread(functools.partial(self._want, task, name))
            return module.names if found is None else found
        with self._asking:  # a thread of a sync task: the main thread only waits for it, or asks, too
            if name not in call.asked and self.running is call:
                call.asked[name] = module.names  # if making it needs it
                call.asked[name] = self._given(call.number, module, name)
            return call.asked.get(name, module.names)

    def _on_main_thread(self, function: Callable[[], T]) -> T | None:
        """What the function returns there; None if that thread has not come to it soon."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def do() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(function())
                except BaseException as error:
                    done.set_exception(error)

        self._loop.call_soon_threadsafe(do, context=contextvars.copy_context())
        try:
            return done.result(WANTED_S)
        except TimeoutError:
            return None if done.cancel() else done.result()

    def _given(self, number: int, module: NotebookModule, name: str) -> Mapping[str, Any]:
        in_use = self.replica.manifests_in_use(module)
        there = module
        while True:
            question = pickle.dumps((name, there.marks()), 5)
            given = self._answer(encode(Kind.WANT, number, question), number, Kind.GIVE, WANTED_S)
            if given is None:
                return module.names
            if not given.body:  # the notebook has no such name, or none that it can send
                if any(name in manifest for manifest in in_use):
                    return {}
                module.let_go(name)
                return module.names
            closure: Closure = pickle.loads(given.body)
            beside = there if there is not module else module.beside([closure], in_use)
            if beside is there:
                there.define(closure)
                return there.names
            there = beside  # what runs here goes on with the names that it began with

    def module_text(self, number: int, name: str) -> str | None:
        """The text that the client has loaded that module from; None if it does not say."""
        if threading.current_thread() is not threading.main_thread() or self.closed or self._number != number:
            return None
        with self._asking:
            given = self._answer(encode(Kind.WANT, number, pickle.dumps((name, None), 5)), number, Kind.GIVE, WANTED_S)
        return pickle.loads(given.body) if given is not None and given.body else None

    def _answer(self, question: list[Buffer], number: int, kind: Kind, patience: float | None) -> Frame | None:
        """Ask the client and wait, while the loop stands still. A cancel interrupts it as it interrupts anything.

        None if the client is gone, or has not answered within `patience` seconds.
        """
        with self._asking:
            self._answers.clear()
            self.send(question)
            until = None if patience is None else time.monotonic() + patience
            poller = select.poll()
            while not self.closed:
                # The loop stands still meanwhile: what it would read and write is done here.
                poller.register(self.connection, select.POLLIN | (0 if self._drain() else select.POLLOUT))
                left = None if until is None else max(0.0, until - time.monotonic())
                if not poller.poll(None if left is None else left * 1000) and left == 0.0:
                    return None
                self._on_readable()
                while self._answers:
                    answer = self._answers.popleft()
                    if answer.call == number and answer.kind == kind:  # else to a question that nobody asks any more
                        return answer
            return None

    def _next(self) -> Frame | None:
        # No call begins before the outcomes of those before it are in the client's socket: should this process die,
        # the client knows which call had begun.
        if self.running is not None or self.closed or not self._frames or self._backlog:
            return None
        if self._undefined is None:
            return self._frames.popleft()
        for index, frame in enumerate(self._frames):
            if frame.kind == Kind.DEFINE:  # only a call's definitions may overtake the calls behind it
                del self._frames[index]
                return frame
        return None

    def withdraw(self, first: int, last: int) -> None:
        """The client takes back those of these calls that have not begun. On the control thread."""
        with self._begin:
            first = max(first, self._begun + 1)
            self._withdrawn.update(range(first, last + 1))
        self.send(encode(Kind.WITHDRAWN, first, flags=max(0, last + 1 - first)))
        self._loop.call_soon_threadsafe(self._forget_undefined)

    def _forget_undefined(self) -> None:
        """Go on without definitions that will not come."""
        waiting = self._undefined
        if waiting is not None and self._dismissed(waiting.call):
            self._undefined = None
            self._advance()

    def cancel(self, number: int, *, by_client: bool) -> RunningCall | None:
        """That call, if it has begun; if not, it never will, and its client hears so. On the control thread.

        Its client hears that it is withdrawn, which it may be before its turn comes. What somebody else cancels has
        an outcome; that is only done to the call whose turn it is.
        """
        with self._begin:
            if number <= self._begun:
                call = self.running
                return call if call is not None and call.number == number else None
            self._withdrawn.add(number)
        if by_client:
            self.send(encode(Kind.WITHDRAWN, number, flags=1))
        else:
            self.send(encode(Kind.OUTCOME, number, flags=Status.CANCELLED))
        self._loop.call_soon_threadsafe(self._forget_undefined)
        return None

    def _dismissed(self, number: int) -> bool:
        """Whether its client has taken it back, or cancelled it; `withdraw` has said so."""
        if number in self._withdrawn:
            self._withdrawn.discard(number)
            return True
        return False

    def _on_call(self, frame: Frame) -> None:
        if self._dismissed(frame.call):
            return
        self._number = frame.call
        try:
            self.replica.modules.enter(self._place, self, frame.call)
        except BaseException as error:
            self.send(encode(Kind.OUTCOME, frame.call, dump_failure(error), flags=Status.ERROR))
            return
        digests, name, verb = _reference(bytes(frame.body))
        function = None
        for digest in digests:  # the function last; what only its arguments need first
            function = self.module.lookup(digest)
            if function is None:
                self._asked = 0
                self._need(frame, self.module)
                return
        self._run(frame, name, verb, function, self.module, digests)

    def _need(self, frame: Frame, module: NotebookModule) -> None:
        self._undefined = frame
        self._defining = module
        self._asked += 1
        self.send(encode(Kind.NEED, frame.call, pickle.dumps(module.marks(), 5)))

    def _run(
        self, frame: Frame, name: str, verb: str | None, function: Any, module: NotebookModule, digests: tuple[str, ...]
    ) -> None:
        if verb is not None:
            function = self.replica.cells.function(verb, module, self.sessions)
        self._start(frame, name, function, verb is None or verb != "names", module, digests)

    def _on_define(self, frame: Frame, waiting: Frame) -> None:
        if self._dismissed(waiting.call):
            return
        digests, name, verb = _reference(bytes(waiting.body))
        module = self._defining
        try:
            self.replica.modules.enter(self._place, self, waiting.call)
            closures: list[Closure] = pickle.loads(frame.body)
            for definition in (each for closure in closures for each in closure.definitions):
                if isinstance(definition, ImportDefinition):
                    self.replica.modules.check(definition.module)
            if module is self.module:
                # What runs here at the same time goes on with the names that it began with.
                module = module.beside(closures, self.replica.manifests_in_use(module))
                if module is not self.module:
                    self._need(waiting, module)
                    return
            function: Any = None
            for closure in closures:
                function = module.lookup(closure.digest) or module.define(closure)
        except NotSent as problem:
            # Another call of the same process has come between question and answer.
            if self._asked < MOST_ASKED:
                self._need(waiting, module)
            else:
                failed = LookupError(str(problem))
                self.send(encode(Kind.OUTCOME, waiting.call, dump_failure(failed), flags=Status.ERROR))
        except BaseException as error:
            self.send(encode(Kind.OUTCOME, waiting.call, dump_failure(error), flags=Status.ERROR))
        else:
            self._run(waiting, name, verb, function, module, digests)

    def _start(
        self,
        frame: Frame,
        name: str,
        function: Any,
        recorded: bool,
        module: NotebookModule,
        digests: tuple[str, ...],
    ) -> None:
        ask = functools.partial(self._ask, frame.call)
        sink = OutputSink(frame.call, self.send_output, self.replica.later, ask)
        context = make_context(frame.call, name, self, frame.flags, sink, module.module, self._want)
        self.running = RunningCall(self, frame.call, name, function, frame.buffers, context, sink, recorded, digests)
        self.replica.runner.start(self.running)

    def begin(self, call: RunningCall) -> bool:
        """Its turn has come; False if it is not wanted any more."""
        with self._begin:  # a cancel or withdrawal finds it either before or after this
            if self._dismissed(call.number):
                return False
            self._begun = call.number
        if call.recorded:
            self._recorder.began(call)
        return True

    # --- out

    def finished(self, call: RunningCall, reply: list[Buffer], now: float) -> None:
        """The runner's last word on a call. There is none on one that did not begin."""
        with self._asking:  # a thread that it leaves behind reads from the connection until it has its answer
            self.running = None
        self._number = 0
        if reply and not self.closed:
            self.send(reply)
        if call.began:  # noted while the client reads already
            self._recorder.ended(call, now)
        self.replica.modules.left()
        if self.closed:
            self.replica.left_for_good(self)
            return
        if self._frames:
            self._advance()

    @whole
    def send(self, pieces: Sequence[Buffer]) -> None:
        with self._lock:
            if self._put(pieces):
                return
        self._loop.call_soon_threadsafe(self._drain_later)

    def _put(self, pieces: Sequence[Buffer]) -> bool:
        """Send it or keep it, with the lock held; whether nothing is left to be sent later."""
        if self.closed:
            return True
        if not self._backlog:
            pieces = self._write(pieces)
            if not pieces:
                return True
        for piece in pieces:
            view = memoryview(piece).cast("B")
            self._backlog.append(view)
            self._backlog_bytes += view.nbytes
        return False

    def tell_interrupted(self, call: RunningCall) -> None:
        """An interrupt has been raised in it. On the control thread."""
        with self._lock:  # its outcome is sent under it, too, and is its last word
            if call.ended or self._put(encode(Kind.INTERRUPTED, call.number)):
                return
        self._loop.call_soon_threadsafe(self._drain_later)

    @whole
    def send_output(self, pieces: list[Buffer]) -> None:
        """Like `send`, but the task waits when its client does not keep up: nothing is dropped."""
        self.send(pieces)
        if self._backlog_bytes > BACKLOG_BYTES and not self.replica.on_control_thread():
            self._wait_for_client()  # not there: a few gathered bytes, for which cancels must not wait
        if self.postponed is not None:
            self._interrupt_now(self.postponed)

    @waits
    def _interrupt_now(self, call: RunningCall) -> None:
        # A task that does nothing but print would hardly ever meet an interrupt elsewhere.
        self.postponed = None
        self.replica.runner.interrupt(call)

    @waits
    def _wait_for_client(self) -> None:
        while self._backlog_bytes > BACKLOG_BYTES and not self.closed:
            select.select([], [self.connection], [], 0.1)
            self._drain()

    def _write(self, pieces: Sequence[Buffer]) -> Sequence[Buffer]:
        """Write as much as the socket takes now; what is left."""
        try:
            if len(pieces) == 1:
                sent = self.connection.send(pieces[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                sent = self.connection.sendmsg(pieces[:64], (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return pieces
        except OSError:  # the client is gone; the reader side closes the channel
            return []
        rest: list[Buffer] = []
        for piece in pieces:
            size = memoryview(piece).nbytes
            if sent >= size:
                sent -= size
            else:
                rest.append(memoryview(piece).cast("B")[sent:] if sent else piece)
                sent = 0
        return rest

    @whole
    def _drain(self) -> bool:
        with self._lock:
            while self._backlog:
                rest = self._write(list(self._backlog)[:64])
                taken = min(64, len(self._backlog)) - len(rest)
                for _ in range(taken):
                    self._backlog_bytes -= self._backlog.popleft().nbytes
                if rest:
                    head = memoryview(rest[0]).cast("B")
                    self._backlog_bytes -= self._backlog[0].nbytes - head.nbytes
                    self._backlog[0] = head
                    return False
            return True

    def _drain_later(self) -> None:
        if self.closed:
            return
        if self._drain():
            self._loop.remove_writer(self.connection)
            self._advance()
        else:
            self._loop.add_writer(self.connection, self._drain_later)

    def close(self) -> None:
        """The client is gone. What it was running is stopped; nobody would get the outcome."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self.connection)
        self._loop.remove_writer(self.connection)
        with self._lock:
            self._backlog.clear()
            self._backlog_bytes = 0
        self.replica.forget(self)
        self.connection.close()
        if self.hello.files is not None:
            self.hello.files.close()
        if self.running is not None:
            self.replica.runner.cancel(self.running)
        else:
            self.replica.abandoned_call_ended(self.hello.lease)


_references: dict[bytes, tuple[tuple[str, ...], str, str | None]] = {}


def _reference(body: bytes) -> tuple[tuple[str, ...], str, str | None]:
    """Which function a CALL names, or what it wants of the replica itself: "cell", "names".

    The same bytes come with every call of a task, so they are read once.
    """
    known = _references.get(body)
    if known is None:
        digests, name, *verb = json.loads(body)
        known = _references[body] = (tuple(digests), name, verb[0] if verb else None)
        if len(_references) > 10_000:
            _references.clear()
    return known


class Listener:
    """Accepts connections on the control thread and listens there to cancels, hang-ups and the broker."""

    def __init__(self, listening: socket.socket, loop: asyncio.AbstractEventLoop, replica: Replica) -> None:
        self._loop = loop
        self._replica = replica
        self._socket = listening
        self._socket.setblocking(False)
        self._hangups = select.epoll() if hasattr(select, "epoll") else None
        loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._loop.add_reader(self._socket, self._accept)
        if self._hangups is not None:
            # The main thread reads the calls, so here only the end of a connection is watched for: a client that
            # dies is noticed while its own task keeps the main thread busy.
            self._loop.add_reader(self._hangups.fileno(), self._on_hangup)

    def watch_hangup(self, connection: socket.socket) -> None:
        if self._hangups is not None:
            self._hangups.register(connection.fileno(), select.EPOLLRDHUP | select.EPOLLHUP)

    def unwatch(self, connection: socket.socket) -> None:
        if self._hangups is not None:
            with contextlib.suppress(OSError, ValueError):
                self._hangups.unregister(connection.fileno())

    def _on_hangup(self) -> None:
        assert self._hangups is not None
        for fd, _ in self._hangups.poll(0):
            with contextlib.suppress(OSError):
                self._hangups.unregister(fd)
            self._replica.hung_up(fd)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        if peer_uid(connection) != os.getuid():
            connection.close()
            return
        connection.setblocking(False)
        greeting = _Greeting(connection, self._loop, self._greeted)
        self._loop.call_later(HANDSHAKE_S, greeting.expire)

    def _greeted(
        self, connection: socket.socket, reader: FrameReader, hello: dict[str, Any], files: Exchange | None
    ) -> None:
        if hello["role"] == "calls":
            caller = CallerHello(
                lease=hello["lease"],
                label=hello.get("label", ""),
                notebook=hello["notebook"],
                process=(hello["process"], hello["pid"] or peer_pid(connection)),
                run=hello["run"],
                replica=hello["replica"],
                files=files,
                session=hello.get("session", ""),
            )
            connection.setblocking(True)
            self._replica.connected(connection, reader, caller)
        else:
            ControlChannel(connection, reader, self._loop, self._replica, supervisor=hello["role"] == "supervisor")


class _Greeting:
    """Waits for the HELLO of a new connection."""

    def __init__(
        self,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        done: Callable[[socket.socket, FrameReader, dict[str, Any], Exchange | None], None],
    ) -> None:
        self._connection: socket.socket | None = connection
        self._loop = loop
        self._done = done
        self._reader = FrameReader()
        self._files: Exchange | None = None
        loop.add_reader(connection, self._on_readable)

    def _on_readable(self) -> None:
        connection = self._connection
        assert connection is not None
        try:
            data, fds = receive_with_fds(connection, GREETING_BYTES, 1)
            if fds:
                self._files = Exchange(fds[0])
                self._reader.map_file = self._files.map
            if not data:
                raise ProtocolError("closed before its HELLO")
            self._reader.feed(data)
            frame = self._reader.next_frame()
            if frame is None:
                return
            if frame.kind != Kind.HELLO:
                raise ProtocolError(f"the first frame must be HELLO, not {frame!r}")
            hello = json.loads(frame.body)
            self._loop.remove_reader(connection)
            self._connection = None
            self._done(connection, self._reader, hello, self._files)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ProtocolError, ValueError, KeyError):
            self.expire()

    def expire(self) -> None:
        if self._connection is not None:
            self._loop.remove_reader(self._connection)
            self._connection.close()
            self._connection = None
            if self._files is not None:
                self._files.close()


class ControlChannel:
    """Orders that must be heard whatever the main thread does: cancels; and from the broker, set-up and stop."""

    def __init__(
        self,
        connection: socket.socket,
        reader: FrameReader,
        loop: asyncio.AbstractEventLoop,
        replica: Replica,
        *,
        supervisor: bool,
    ) -> None:
        self._connection = connection
        self._reader = reader
        self._loop = loop
        self._replica = replica
        self._supervisor = supervisor
        self._lock = threading.Lock()
        # Of widgets. Its timer is not this thread's: it must not wait for a front end.
        main = replica.runner.loop
        self._sink = OutputSink(
            0, self._send_pieces, lambda delay, callback: main.call_soon_threadsafe(main.call_later, delay, callback)
        )
        loop.add_reader(connection, self._on_readable)
        if supervisor:
            replica.supervisor = self
        self._take_frames()

    def _on_readable(self) -> None:
        try:
            count = self._connection.recv_into(self._reader.get_buffer())
            if count == 0:
                raise ProtocolError("closed")
            self._reader.buffer_updated(count)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ProtocolError):
            self._loop.remove_reader(self._connection)
            self._sink.closed = True
            if self._supervisor:
                self._replica.supervisor = None
            self._connection.close()
            return
        self._take_frames()

    def _take_frames(self) -> None:
        while (frame := self._reader.next_frame()) is not None:
            if frame.kind == Kind.COMM:
                self._replica.runner.loop.call_soon_threadsafe(self._replica.comms.receive, frame, self._sink)
            elif frame.kind == Kind.CANCEL:
                self._replica.cancel(str(frame.body, "utf-8"), frame.call)
            elif frame.kind == Kind.WITHDRAW:
                lease, last = json.loads(frame.body)
                self._replica.withdraw(lease, frame.call, last)
            elif frame.kind == Kind.SETUP and self._supervisor:
                self._replica.runner.loop.call_soon_threadsafe(self._replica.set_up, bytes(frame.body))
            elif frame.kind == Kind.ASK and self._supervisor:
                self._replica.ask_after(str(frame.body, "utf-8"))
            elif frame.kind == Kind.INTERRUPT and self._supervisor:
                self._replica.interrupt(str(frame.body, "utf-8"))
            elif frame.kind == Kind.STOP and self._supervisor:
                self._replica.runner.loop.call_soon_threadsafe(self._replica.stop)
            else:
                self._replica.log(f"unexpected on a control connection: {frame!r}")

    def ready(self) -> bool:
        """Whether a few bytes can be sent without waiting."""
        poller = select.poll()
        poller.register(self._connection, select.POLLOUT)
        return bool(poller.poll(0))

    def send(self, kind: Kind, body: bytes) -> None:
        """A few bytes to the broker, from any thread."""
        self._send_pieces(encode(kind, 0, body))

    def _send_pieces(self, pieces: list[Buffer]) -> None:
        poller = select.poll()
        with self._lock, contextlib.suppress(OSError):
            poller.register(self._connection, select.POLLOUT)
            for piece in pieces:
                view = memoryview(piece).cast("B")
                while view:
                    # Not for ever: a front end that does not read must not hold up its replica.
                    if not poller.poll(STALLED_MS):
                        self._connection.shutdown(socket.SHUT_RDWR)
                        return
                    with contextlib.suppress(BlockingIOError):
                        view = view[self._connection.send(view) :]


class Replica:
    """All channels of this process, and what they share."""

    def __init__(
        self,
        runner: Runner,
        namespaces: Namespaces,
        cells: Cells,
        comms: Comms,
        control_loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.runner = runner
        self.namespaces = namespaces
        self.modules = Modules(namespaces.reloaded)
        self.cells = cells
        self.comms = comms
        self.supervisor: ControlChannel | None = None
        self.recorder = Recorder(self.later, self._running_calls, self._can_tell, self._tell)
        self._control_loop = control_loop
        self._control_thread = 0
        control_loop.call_soon_threadsafe(self._note_control_thread)
        self._lock = threading.Lock()
        self._channels: dict[str, CallChannel] = {}
        self._by_fd: dict[int, CallChannel] = {}
        self._left: set[CallChannel] = set()  # by their client, and something still runs there
        self._early_cancels: dict[str, dict[int, bool]] = {}  # lease -> calls, and whether their client cancels them
        self._listener: Listener | None = None
        self._processes = Watch(control_loop, self._process_ended)
        self._ended: set[str] = set()  # processes of which something still runs
        self.front_end_interrupted: Callable[[str], None] = lambda session: None
        self.front_end_left: Callable[[str], None] = lambda session: None
        """What a front end that was attached by hand leaves behind is the kernel's to end; on the control thread."""

    def _note_control_thread(self) -> None:
        self._control_thread = threading.get_ident()

    def listen(self, listening: socket.socket) -> None:
        self._listener = Listener(listening, self._control_loop, self)

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call `callback` on the control thread, where a busy task cannot hold it up."""
        if self.on_control_thread():
            self._control_loop.call_later(delay, callback)
        else:
            self._control_loop.call_soon_threadsafe(self._control_loop.call_later, delay, callback)

    def on_control_thread(self) -> bool:
        return threading.get_ident() == self._control_thread

    def log(self, text: str) -> None:
        descriptors.log(f"flyte_jupyter: {text}\n")

    # --- on the main thread

    def attach(self, channel: CallChannel) -> None:
        if _hung_up(channel.connection):  # while this thread was busy: its calls must not begin any more
            channel.close()
            return
        if self._listener is not None:
            self._listener.watch_hangup(channel.connection)
        channel.open()

    def manifests_in_use(self, module: NotebookModule) -> list[Mapping[str, Mark]]:
        """What the calls that run now take from that module, or from one beside it."""
        with self._lock:
            calls = [each.running for each in (*self._channels.values(), *self._left)]
        mains = [(call, getattr(call.context.main, ORIGIN)) for call in calls if call is not None]
        found = (main.manifests.get(d) for call, main in mains if module in (main, main.aside_of) for d in call.digests)
        return [manifest for manifest in found if manifest is not None]

    def forget(self, channel: CallChannel) -> None:
        if self._listener is not None:
            self._listener.unwatch(channel.connection)
        with self._lock:
            self._channels.pop(channel.hello.lease, None)
            if channel.running is not None:
                self._left.add(channel)
            self._by_fd.pop(channel.connection.fileno(), None)
        if channel.hello.session:
            self._control_loop.call_soon_threadsafe(self.front_end_left, channel.hello.session)

    def lease_of(self, session: bytes) -> str:
        """That of the front end whose Jupyter session this is; "" if it is attached to nothing."""
        with self._lock:
            found = (lease for lease, each in self._channels.items() if each.hello.session)
            return next((lease for lease in found if self._channels[lease].hello.session.encode() == session), "")

    def watch(self, process: Process) -> None:
        """Free what it leaves here once it has ended."""
        self._control_loop.call_soon_threadsafe(self._processes.add, process)

    def _free(self, token: str) -> None:
        self.cells.process_ended(token)
        if self.namespaces.process_ended(token):
            self._ended.discard(token)
        else:
            self._ended.add(token)

    def set_up(self, body: bytes) -> None:
        from .preload import run_preload

        run_preload(self, body)

    def stop(self) -> None:
        self.runner.exit()

    # --- on the control thread

    def _process_ended(self, token: str) -> None:
        self.runner.loop.call_soon_threadsafe(self._free, token)

    def connected(self, connection: socket.socket, reader: FrameReader, hello: CallerHello) -> None:
        """Calls will come here. They wait for the main thread, their cancels do not."""
        channel = CallChannel(connection, reader, hello, self)
        with self._lock:
            self._channels[hello.lease] = channel
            self._by_fd[connection.fileno()] = channel
            early = self._early_cancels.pop(hello.lease, {})
        for number, by_client in early.items():
            channel.cancel(number, by_client=by_client)
        self.runner.loop.call_soon_threadsafe(self.attach, channel)

    def cancel(self, lease: str, number: int, *, by_client: bool = True) -> None:
        with self._lock:
            channel = self._channels.get(lease)
            if channel is None:
                early = self._early_cancels.setdefault(lease, {})
                early[number] = by_client or early.get(number, False)
                return
        call = channel.cancel(number, by_client=by_client)
        if call is not None:
            self.runner.cancel(call)

    def interrupt(self, lease: str) -> None:
        """Stop the call, or an attached front end's cell, that runs in this lease; in all of them if none is named."""
        with self._lock:
            channels = [each for each in self._channels.values() if lease in ("", each.hello.lease)]
        calls = [(each, each.running) for each in channels]
        for channel, call in calls:
            if call is not None and channel.cancel(call.number, by_client=False) is call:
                self.runner.cancel(call)
        guests = [each.hello.session for each in channels if each.hello.session]
        if lease and not guests and not any(call for _, call in calls):
            # It was granted a moment ago, and its call is still to come; a later one is not what somebody has seen.
            self.cancel(lease, FIRST_CALL, by_client=False)
        for session in guests:
            self.front_end_interrupted(session)

    def withdraw(self, lease: str, first: int, last: int) -> None:
        with self._lock:
            channel = self._channels.get(lease)
        if channel is not None:  # else it is not connected yet: its calls run when their turn comes
            channel.withdraw(first, last)

    def hung_up(self, fd: int) -> None:
        with self._lock:
            channel = self._by_fd.get(fd)
            call = None if channel is None else channel.running
        if channel is not None and channel.hello.session:
            self.front_end_left(channel.hello.session)
        if call is not None:
            self.runner.cancel(call)

    def ask_after(self, lease: str) -> None:
        """The broker lost this lease's client. If it never connected, nothing else will say that it is over."""
        with self._lock:
            known = lease in self._channels
        if not known:
            self.abandoned_call_ended(lease)

    # --- to the broker

    def report(self, state: str, **fields: Any) -> None:
        if self.supervisor is not None:
            self.supervisor.send(Kind.STATE, json.dumps({"state": state, **fields}).encode())

    def _running_calls(self) -> list[RunningCall]:
        with self._lock:
            calls = [each.running for each in (*self._channels.values(), *self._left)]
        return [call for call in calls if call is not None and call.began]

    def _can_tell(self) -> bool:
        return self.supervisor is None or self.supervisor.ready()

    def _tell(self, body: bytes) -> None:
        if self.supervisor is not None:
            self.supervisor.send(Kind.CALLS, body)

    def left_for_good(self, channel: CallChannel) -> None:
        """Its client was gone already; now nothing runs there any more."""
        with self._lock:
            self._left.discard(channel)
        self.abandoned_call_ended(channel.hello.lease)
        if channel.hello.process[0] in self._ended:
            self._free(channel.hello.process[0])

    def abandoned_call_ended(self, lease: str) -> None:
        if self.supervisor is not None:
            self.supervisor.send(Kind.ENDED, lease.encode())
