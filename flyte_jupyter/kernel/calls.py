"""The calls of one lease: a connection of the task channel, with its calls in order, one at a time."""

from __future__ import annotations

import functools
import json
import pickle
import socket
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..core.definitions import Closure, ImportDefinition
from ..core.frames import CALL, Buffer, Frame, FrameReader, Kind, Status, encode
from ..errors import ProtocolError
from ..memory import Exchange
from .cells import SessionKey
from .interrupts import waits, whole
from .modules import NOWHERE
from .namespace import NotebookModule, NotSent
from .outbox import Outbox
from .outputs import OutputSink
from .questions import Questions
from .recorder import Span
from .runner import RunningCall, dump_failure, enter, make_context

if TYPE_CHECKING:
    from .replica import Replica

READ_AHEAD: Final = 64
"""Calls of one lease that may wait in this process; the rest wait in the socket."""
MOST_ASKED: Final = 10
"""How often one call may ask for its definitions, while other calls of its process bring other ones."""


@dataclass(frozen=True, slots=True)
class CallerHello:
    """The owner of a connection for calls."""

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


class CallChannel:
    """One lease's calls, in order, one at a time. Lives on the main thread; `send` may be called by any.

    The control thread makes it and answers for calls that have not begun, so that they need not wait for a main
    thread that is busy. `_begin` protects what it and the main thread must agree on: which calls have begun, and which
    never will.
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
        self._folder = ""
        self._arguments: list[str] = []
        self._place = NOWHERE
        self.number = 0  # of the call that is defined, or runs
        self._asked = 0  # for definitions of the present call
        self._defining: NotebookModule  # where those will be
        self._reading = True
        self._loop = replica.runner.loop
        self._questions = Questions(self, self._loop)
        self.out = Outbox(connection, self._loop, self._advance)
        self.send = self.out.send
        self._recorder = replica.recorder

    def open(self) -> None:
        """Begin with what came along with the greeting. Cancels and withdrawals can reach it before."""
        self.module = self.replica.namespaces.notebook(self.hello.notebook, *self.hello.process)
        self.replica.watch(self.module.process)
        self._loop.add_reader(self.connection, self.read)
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
    def read(self) -> None:
        """Take what has come, without waiting for it."""
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
                self._questions.answers.append(frame)
            elif frame.kind == Kind.LEAVE:
                self.replica.cells.leave(self.hello.process[0], self._sessions_called(json.loads(frame.body)))
            elif frame.kind == Kind.COMM:
                self.replica.comms.receive(frame, OutputSink(frame.call, self.send_output, self.replica.later))
            else:
                self._frames.append(frame)
        self._advance()
        if self._reading and len(self._frames) >= READ_AHEAD and self._undefined is None:
            self._reading = False
            self._loop.remove_reader(self.connection)

    def _sessions_called(self, name: str) -> list[SessionKey]:
        return [key for key in self.sessions if key[1] == name]

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
            self._loop.add_reader(self.connection, self.read)

    def _next(self) -> Frame | None:
        # No call begins before the outcomes of those before it are in the client's socket: should this process die,
        # the client knows which call had begun.
        if self.running is not None or self.closed or not self._frames or not self.out.is_empty():
            return None
        if self._undefined is None:
            return self._frames.popleft()
        for index, frame in enumerate(self._frames):
            # Only a call's own definitions may overtake the calls behind it.
            if frame.kind == Kind.DEFINE and frame.call == self._undefined.call:
                del self._frames[index]
                return frame
        return None

    def withdraw(self, first: int, last: int) -> None:
        """The client takes back those of these calls that have not begun. On the control thread."""
        with self._begin:
            first = max(first, self._begun + 1)
            self._withdrawn.update(range(first, last + 1))
            # Before the next call can begin: should that end this process, the client knows that these have not begun.
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

        Its client hears that it is withdrawn, which it may be before its turn comes. A call that somebody else cancels
        has an outcome; that is only done to the call whose turn it is.
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
        self.number = frame.call
        try:
            self.replica.modules.enter(self._place, self._questions, frame.call)
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
            self.replica.modules.enter(self._place, self._questions, waiting.call)
            closures: list[Closure] = pickle.loads(frame.body)
            for definition in (each for closure in closures for each in closure.definitions):
                if isinstance(definition, ImportDefinition):
                    self.replica.modules.check(definition.module)
            if module is self.module:
                # A call that runs here at the same time goes on with the names that it began with.
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
        ask = functools.partial(self._questions.ask, frame.call)
        sink = OutputSink(frame.call, self.send_output, self.replica.later, ask)
        context = make_context(frame.call, name, self, frame.flags, sink, module.module, self._questions.want)
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
        with self._questions.lock:  # a thread that it leaves behind reads from the connection until it has its answer
            self.running = None
        self.number = 0
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
    def send_output(self, pieces: list[Buffer]) -> None:
        """Like `send`, but the task waits when its client does not keep up: nothing is dropped."""
        self.send(pieces)
        if self.out.is_crowded() and not self.replica.on_control_thread():
            self.out.wait()  # not there: a few gathered bytes, for which cancels must not wait
        if self.postponed is not None:
            self._interrupt_now(self.postponed)

    @waits
    def _interrupt_now(self, call: RunningCall) -> None:
        # A task that does nothing but print would hardly ever meet an interrupt elsewhere.
        self.postponed = None
        self.replica.runner.interrupt(call)

    def tell_interrupted(self, call: RunningCall) -> None:
        """An interrupt has been raised in it. On the control thread. Its outcome is its last word."""
        self.out.send_while(lambda: not call.ended, encode(Kind.INTERRUPTED, call.number))

    def close(self) -> None:
        """The client is gone. Stop its call: nobody would get the outcome."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self.connection)
        self.out.close()
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
