"""One lease in use by an event loop: calls are sent ahead over it while they are short.

A replica runs one call of a lease at a time; should that one take long after all, those behind it are taken back and
sent elsewhere.
"""

from __future__ import annotations

import asyncio
import select
import socket
import threading
import time
from typing import Final, Protocol

from .. import errors
from ..core.call import State
from ..core.call_events import TICK, TURN, Broken, Command, Do, Explained, Failed, Note, Reply, Sending, Sent
from ..core.frames import OUTCOME, Buffer, Frame, Kind, join_small
from ..core.sent_calls import SentCalls
from . import outputs
from .answering import answer, order
from .lease import Lease
from .loop_call import CallOnLoop, LoopLine, on_loop
from .target import Outgoing, Target

AHEAD_S: Final = 0.005
"""About so much work is sent ahead on a lease; a call that takes longer is sent when its turn has come."""
AHEAD_CALLS: Final = 32
AHEAD_BYTES: Final = 64 * 1024
"""A call with more to send is not sent ahead."""
STALL_S: Final = 0.02
"""If the running call takes longer than this, the calls sent behind it are taken back."""
_SEND: Final = (Do.SEND,)
PACE_WEIGHT: Final = 0.3
"""How quickly the estimate of a task's duration follows what is measured."""


def ahead(target: Target) -> int:
    """How many calls of it may be under way on one lease."""
    if target.pace is None or target.limited or target.pace * 2 > AHEAD_S:
        return 1
    return min(AHEAD_CALLS, int(AHEAD_S / target.pace))


class StreamOwner(LoopLine, Protocol):
    """The pipeline of a stream."""

    loop: asyncio.AbstractEventLoop

    def first(self) -> CallOnLoop | None: ...
    def put_back(self, calls: list[CallOnLoop]) -> None: ...
    def closed(self, stream: Stream) -> None: ...
    def take_granted(self) -> None: ...


class Stream:
    """One lease in use by a pipeline: the calls sent over its connection, of which the first one runs."""

    def __init__(self, pipeline: StreamOwner, lease: Lease) -> None:
        self.lease = lease
        self._pipeline = pipeline
        self._lock = pipeline.lock
        self._loop = pipeline.loop
        self._channel = lease.channel()
        self._calls: SentCalls[CallOnLoop] = SentCalls()
        self._unsent: list[Buffer] = []
        self._writing = False
        self._cut = False  # nothing can be written any more; what came before is still to be read
        self._closed = False
        self._driven = False  # by a thread, as its loop does not turn
        self._watched_by_loop = False  # although a thread drives it
        self._resting = False
        self._taking_back = False
        self._moved_at = 0.0  # when the first call's turn came
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._channel.socket, self._on_readable)

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def idle(self) -> bool:
        """It has no call, and is about to give its lease back."""
        return not self._calls

    @property
    def is_free(self) -> bool:
        """Whether it may take a call at once."""
        return not self._calls and not self._takes_no_more and not self.is_wanted

    @property
    def _takes_no_more(self) -> bool:
        return self._closed or self._cut or self._driven or self._taking_back or self.lease.spent

    @property
    def is_wanted(self) -> bool:
        """Whether somebody else waits for its lease, or for another one of its group."""
        group, own = self._pipeline.group, self.lease.group
        return group.contended(self._pipeline) or (own is not group and own.contended(self._pipeline))

    # --- out

    def fill(self, count: int = AHEAD_CALLS, first: CallOnLoop | None = None) -> None:
        """Send as many of the waiting calls as may be under way here, at most `count`; `first` before them."""
        if first is None and self._takes_no_more:
            return
        now = time.monotonic()
        if self._calls and now - self._moved_at >= STALL_S:
            return  # behind one that takes long they would only be taken back again
        pieces: list[Buffer] = []
        under_way, last = len(self._calls), self._calls.last
        most = 1 if self.is_wanted else under_way + count
        while (call := first or self._pipeline.first()) is not None:
            if under_way >= most or (under_way and under_way >= ahead(call.target)):
                break
            try:
                outgoing = call.outgoing or call.encode()
            except Exception as error:
                first = None
                call.handle(Failed(error))  # which takes it out of the line
                continue
            if last is not None and (call.target is not last.target or outgoing.nbytes > AHEAD_BYTES):
                break
            if call is first or (self._pipeline.group.pop(call) and call.begin()):
                more = self._put(call, outgoing, now)
                if more:
                    pieces += more
                    under_way, last = under_way + 1, call
            first = None
        if pieces:
            self._write(pieces)
            if self._unsent:
                for call in self._calls.unwritten():
                    call.life.handle(Sending(call.number, call.encode().closures), now=now)
        if len(self._calls) > 1 and self._timer is None:
            self._timer = self._loop.call_later(STALL_S, self._look)

    def _put(self, call: CallOnLoop, outgoing: Outgoing, now: float) -> list[Buffer]:
        if call.life.handle(self.lease.granted, now=now)[:1] != _SEND:
            return []  # it does not want a slot any more: its time was up while the grant was on its way
        try:
            call.number, pieces = call.context.run(outgoing.on, self._channel)
        except Exception as error:
            call.handle(Failed(error))
            return []
        if not self._calls:
            self._moved_at = time.monotonic()  # its arguments may have taken a while
        self._calls.add(call, size_of(pieces))
        call.stream = self
        return pieces

    def _write(self, pieces: list[Buffer]) -> None:
        self._unsent += join_small(pieces) if len(pieces) > 1 else pieces
        if not self._cut:
            self._on_writable()

    def _on_writable(self) -> None:
        with self._lock:
            self._send_some()

    def _send_some(self) -> None:
        try:
            while self._unsent:
                piece = self._unsent[0]
                count = self._channel.socket.send(piece, socket.MSG_DONTWAIT)
                self._calls.wrote(count)
                if count == memoryview(piece).nbytes:
                    self._unsent.pop(0)
                else:
                    self._unsent[0] = memoryview(piece).cast("B")[count:]
        except (BlockingIOError, InterruptedError):
            self._report_sent()
            if not self._writing and not self._driven:
                self._writing = True
                self._loop.add_writer(self._channel.socket, self._on_writable)
            return
        except OSError:
            self._cut = True  # the reader will see it, too, after the outcomes that have come
        self._report_sent()
        self._stop_writing()

    def _report_sent(self) -> None:
        now = time.monotonic()
        for call in self._calls.wholly_written():
            closures = () if call.outgoing is None else call.outgoing.closures
            call.life.handle(Sent(call.number, closures), now=now)  # no commands follow
            if call.target.limited:
                call.arm()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._channel.socket)

    # --- in

    def _on_readable(self) -> None:
        with self._lock:
            if self._driven or self._closed:
                self._loop.remove_reader(self._channel.socket)
            else:
                self._receive()

    def _receive(self) -> None:
        reader = self._channel.reader
        try:
            count = self._channel.socket.recv_into(reader.get_buffer(), 0, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._lost(True)
            return
        if count == 0:
            self._lost(False)
            return
        ended = 0
        first = self._calls.first
        target = None if first is None else first.target
        since, now = self._moved_at, time.monotonic()
        try:
            reader.buffer_updated(count)
            while not self._closed and (frame := reader.next_frame()) is not None:
                call = self._calls.first
                if frame.kind == OUTCOME and call is not None and frame.call == call.number:
                    self._calls.pop_first()
                    ended += 1
                    call.carry_out(call.life.handle(frame, now=now), frame)
                    call.stream = None
                    self._next_turn()
                else:
                    self._other(frame)
        except errors.ProtocolError as problem:
            self._broken(problem)
            return
        if ended:
            if target is not None:
                each = (now - since) / ended
                target.pace = each if target.pace is None else target.pace + PACE_WEIGHT * (each - target.pace)
            self._moved_at = max(now, self._moved_at)
            if self._closed:
                return
            if not self.is_wanted:
                self.fill()
            self.rest()

    def is_behind(self, call: CallOnLoop) -> bool:
        """Whether another call runs before it."""
        return call is not self._calls.first

    def _next_turn(self) -> None:
        first = self._calls.first
        if first is not None and first.over:  # else it does not matter to it
            first.handle(TURN)

    def _other(self, frame: Frame) -> None:
        if frame.kind == Kind.WITHDRAWN:
            self._taken_back(frame)
            return
        call = self._calls.find(frame.call)
        if call is not None:
            call.carry_out(call.life.handle(frame, now=time.monotonic()), frame)
            if call.over:  # it cannot go on
                self.was_abandoned(call)

    def carry_out(self, call: CallOnLoop, command: Command, frame: Frame | None) -> None:
        """Do what a call of this stream needs, beside its value or error."""
        try:
            match command:
                case Do.SHOW | Do.ANSWER | Do.GIVE:
                    assert frame is not None
                    pieces = call.context.run(answer, command, frame, call.encode().names, nobody=call.over)
                    if pieces is not None:
                        self._reply(pieces)
                case Reply(pieces):
                    self._reply(pieces)
                case Do.DROP if call in self._calls:
                    self._give_up()  # half a call: what followed it would not be understood
                case Do.EXPLAIN:
                    self._explain(call)
                case Note(text):
                    outputs.note(text)
                case Do.DROP | Do.SEND:
                    pass  # its lease is seen to when all of its calls are over
                case _:
                    order(command, self.lease, call.number)
        except Exception as problem:  # it cannot be shown, or its code cannot be sent
            call.handle(Failed(problem))

    def _reply(self, pieces: list[Buffer]) -> None:
        self._calls.reply(size_of(pieces))
        self._write(pieces)

    # --- calls that take longer than thought

    def _look(self) -> None:
        with self._lock:
            self._timer = None
            first = self._calls.first
            if self._closed or self._driven or first is None or len(self._calls) < 2:
                return
            running = time.monotonic() - self._moved_at
            if running >= STALL_S:
                target = first.target
                target.pace = max(target.pace or 0.0, running)
                self._take_back()
            self._timer = self._loop.call_later(STALL_S, self._look)

    def _take_back(self) -> None:
        first, last = self._calls.first, self._calls.last
        if not self._taking_back and first is not None and last is not None and first is not last:
            self._taking_back = True
            self.lease.withdraw(first.number + 1, last.number)

    def _taken_back(self, frame: Frame) -> None:
        self._taking_back = False
        first = self._calls.first
        back = self._calls.take_back(frame)
        if back and back[0] is first:
            self._moved_at = time.monotonic()
        for call in back:
            call.carry_out(call.life.handle(frame, now=time.monotonic()))
            call.stream = None
        self._next_turn()
        self._pipeline.put_back([call for call in back if call.life.state is State.WAITING])
        self.rest()
        self._pipeline.pump()

    # --- the end

    def rest(self) -> None:
        """If nothing is under way: give the lease back, unless the next call comes before the loop's next turn."""
        if self._calls or self._closed:
            return
        if self._driven:
            self._leave()
        elif not self._resting:
            self._resting = True
            self._loop.call_soon(self._rested)

    def _rested(self) -> None:
        with self._lock:
            self._resting = False
            if self._closed or self._calls or self._driven:
                return
            if not self.is_wanted:
                self.fill()
            if not self._calls:
                self._leave()
                if self._pipeline.first() is not None:
                    self._pipeline.pump()
                else:
                    self._pipeline.group.adjust()

    def was_abandoned(self, call: CallOnLoop) -> None:
        """Its outcome is waited for, so that the slot is known to be free.

        A thread waits if nothing else is under way: the loop may be about to end.
        """
        if not self._closed and all(each.over for each in self._calls):
            if self._unsent:
                self._give_up()
            else:
                self.hand_over()
        elif not self._closed and call is self._calls.first:
            self._take_back()

    def _give_up(self) -> None:
        """In the middle of a message: the connection ends, and with it what was sent over it."""
        self._close()
        calls = self._calls.end(reset=False)
        self._pipeline.group.drop(self.lease)
        for call, unread in calls:
            call.handle(Broken(unread))

    def abandon(self) -> None:
        """Its loop was closed: nobody will hear of its calls."""
        for call in list(self._calls):
            call.cancel()
        self.hand_over()

    def hand_over(self) -> None:
        """Its loop does not turn, or may end soon: a thread drives what is under way to its end."""
        if self._driven or self._closed:
            return
        if self._loop.is_closed() or asyncio._get_running_loop() is self._loop:
            self._forget_loop()
        else:
            self._watched_by_loop = True  # the loop alone may change what it watches
        self._driven = True
        first = self._calls.first
        if first is None:
            self._leave()
            return
        self._take_back()  # the calls behind the first one may begin elsewhere
        name = f"flyte_jupyter: {first.target.name}"
        threading.Thread(target=self._drive, name=name, daemon=True).start()

    def _drive(self) -> None:
        """The life of that thread."""
        stream = self._channel.socket
        while True:
            with self._lock:
                if self._closed:
                    return
                until = min((call.life.next_deadline() for call in self._calls), default=0.0)
                wanted = select.POLLIN | (select.POLLOUT if self._unsent and not self._cut else 0)
            poller = select.poll()
            poller.register(stream, wanted)
            left = min(max(0.0, until - time.monotonic()), 1.0)
            ready = dict(poller.poll(left * 1000)).get(stream.fileno(), 0)
            with self._lock:
                if not self._calls:
                    return  # it was told to end meanwhile
                if ready & select.POLLOUT:
                    self._send_some()
                if ready & ~select.POLLOUT:
                    self._receive()
                for call in list(self._calls):
                    if time.monotonic() >= call.life.next_deadline():
                        call.handle(TICK)
                self.rest()

    def _forget_loop(self) -> None:
        """On the loop, or when it is closed."""
        if not self._loop.is_closed():
            self._loop.remove_reader(self._channel.socket)
            self._loop.remove_writer(self._channel.socket)
        self._writing = False
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lost(self, reset: bool) -> None:
        if self._closed:
            return
        self._close()
        calls = self._calls.end(reset=reset)
        for call, unread in calls:
            call.handle(Broken(unread))
        if not any(call.life.state is State.LOST for call, _ in calls):
            self._pipeline.group.drop(self.lease)
        self._pump()

    def _explain(self, call: CallOnLoop) -> None:
        """What the broker says of the end of a replica comes a moment later; the lease is kept until then."""
        others: list[tuple[CallOnLoop, bool]] = []
        if not self._closed:  # it was told to end: nothing more is read
            self._close()
            others = [each for each in self._calls.end(reset=False) if each[0] is not call]

        def explained() -> None:
            why = self.lease.why_lost()
            error = call.target.lost(self.lease, why, call.life.attempt)
            with self._lock:
                self._pipeline.group.drop(self.lease)
                call.handle(Explained(error))
                for other, unread in others:  # not before: while the replica lived they could still begin there
                    other.handle(Broken(unread))

        threading.Thread(target=explained, name="flyte_jupyter: a lost replica", daemon=True).start()

    def _broken(self, problem: Exception) -> None:
        self._close()
        calls = self._calls.end(reset=False)
        self._pipeline.group.drop(self.lease)
        for call, _ in calls:  # all of them: which ones have begun will never be known
            call.handle(Failed(problem))
        self._pump()

    def _pump(self) -> None:
        on_loop(self._loop, self._pipeline.take_granted)

    def _leave(self) -> None:
        """Nothing is under way any more: the next one may have the lease."""
        group = self._pipeline.group
        self._close()
        if self._watched_by_loop:
            group.drop(self.lease, close=False)
            on_loop(self._loop, self._let_go)
        elif self._unsent or self._cut:
            group.drop(self.lease)  # half a message: what followed would not be understood
        else:
            group.give_back(self.lease)

    def _let_go(self) -> None:
        """On the loop, which has watched the socket meanwhile: until then no other socket may have its number."""
        self._forget_loop()
        self.lease.close()

    def _close(self) -> None:
        """Let go of the connection; the lease is somebody else's matter from here."""
        self._closed = True
        if not self._driven:
            self._loop.remove_reader(self._channel.socket)
            self._stop_writing()
            self._stop_timer()
        self._pipeline.closed(self)


def size_of(pieces: list[Buffer]) -> int:
    """In bytes."""
    return sum(memoryview(piece).nbytes for piece in pieces)
