"""Random histories of calls and replicas: whatever happens at whatever byte, each call begins once and ends once."""

from __future__ import annotations

import math
from collections import deque

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from played_replica import PlayedReplica

from flyte_jupyter import errors
from flyte_jupyter.core.call import Call, State
from flyte_jupyter.core.call_events import (
    INTERRUPTED,
    TICK,
    Broken,
    Cancelled,
    Commands,
    Do,
    Event,
    Explained,
    Failed,
    Granted,
    Raise,
    Refused,
    Reply,
    Request,
    Revoke,
    Sending,
    Sent,
    Turn,
)
from flyte_jupyter.core.frames import Frame, FrameReader, Kind, Status, encode
from flyte_jupyter.core.sent_calls import SentCalls

SLOTS = 2
AHEAD = 4
MOST = 12
KNOWN = b"f"
"""The function that replicas know already."""
SOON_S = 0.6
"""Longer than any pause before a call is sent elsewhere."""
SOME = st.sampled_from([1, 3, 30, 10_000])
"""How many bytes move at once."""
SELDOM = st.integers(0, 7).map(lambda number: number == 7)


class Closure:
    def beyond(self, has: object) -> object:
        return None


class Played:
    """A call of a thread, which waits for it `alone`, or of an event loop."""

    def __init__(self, index: int, request: Request, function: bytes, *, alone: bool, now: float) -> None:
        self.index = index
        self.life = Call(request, now=now)
        self.function = function
        self.alone = alone
        self.number = 0
        self.end = 0
        self.connection: Connection | None = None
        self.given_up = False
        self.slots = 0
        self.ends: list[object] = []
        self.told_to_stop: set[int] = set()
        """Attempts for which a CANCEL was sent."""


class Connection:
    """A lease, and its calls: the client's half, as `client.stream` and `client.blocking` drive it."""

    def __init__(self, replica: PlayedReplica) -> None:
        self.replica = replica
        self.wire = replica.wire
        self.reader = FrameReader()
        self.number = 0
        self.closed = False
        self.cut = False
        self.revoked = False
        self.open()

    def open(self) -> None:
        """It is in use, for the first time or once more."""
        self.sent: SentCalls[Played] = SentCalls()
        self.unsent = bytearray()
        self.alone = False
        self.taking_back = False

    def put(self, data: bytes) -> None:
        self.unsent += data


class World(RuleBasedStateMachine):
    """Plays the drivers, the broker and the replicas. It keeps books of what has begun, stopped and ended."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.calls: list[Played] = []
        self.line: deque[Played] = deque()
        self.granted: list[Played] = []
        self.free = SLOTS
        self.idle: list[Connection] = []
        self.busy: list[Connection] = []
        self.left: list[Connection] = []
        """Connections that the client has closed."""
        self.orders: list[tuple[Connection, int, int | None]] = []
        self.unexplained: list[tuple[Connection, Played, list[tuple[Played, bool]]]] = []
        self.begun: set[tuple[int, int]] = set()

    # --- what replicas say

    def began(self, frame: Frame) -> None:
        call, attempt = self.calls[int(bytes(frame.buffers[0]))], frame.flags
        assert (call.index, attempt) not in self.begun, "a call began twice"
        assert call.life.attempt == attempt, "an attempt began after it was over"
        self.begun.add((call.index, attempt))

    def stopped(self, frame: Frame) -> None:
        call = self.calls[int(bytes(frame.buffers[0]))]
        by_broker = frame.call in self.interrupted_by_broker
        assert by_broker or frame.flags in call.told_to_stop, "a cancel hit another call"

    interrupted_by_broker: frozenset[int] = frozenset()

    # --- commands

    def tell(self, call: Played, event: Event, frame: Frame | None = None) -> None:
        self.do(call, call.life.handle(event, now=self.now), frame)

    def do(self, call: Played, commands: Commands, frame: Frame | None = None) -> None:
        connection = call.connection
        for command in commands:
            match command:
                case Do.ASK:
                    call.connection = None
                    self.line.append(call)
                case Do.ASK_FIRST:
                    call.slots -= 1  # its connection puts it back, in order
                case Do.WITHDRAW:
                    if call in self.line:
                        self.line.remove(call)
                case Do.GIVE_BACK:
                    call.slots -= 1
                case Do.DROP:
                    call.slots -= 1
                    if connection is not None and call in connection.sent:
                        self.give_up(connection)
                case Do.RETURN:
                    assert frame is not None
                    self.take_outcome(call, frame)
                case Raise(error):
                    call.ends.append(error)
                case Reply(pieces):
                    assert connection is not None
                    self.reply(connection, b"".join(pieces))
                case Do.ANSWER | Do.GIVE:
                    assert connection is not None
                    self.reply(connection, b"".join(encode(Kind.GIVE, call.number)))
                case Do.CANCEL:
                    assert connection is not None
                    call.told_to_stop.add(call.life.attempt)
                    self.orders.append((connection, call.number, None))
                case Revoke():
                    assert connection is not None
                    running = connection.replica.running
                    if running is not None and running.begun:
                        assert running.frame.call == call.number, "a call that does not stop has hit another one"
                    connection.revoked = True
                case Do.EXPLAIN:
                    assert connection is not None
                    others = connection.sent.end(reset=False)
                    self.close(connection)
                    self.unexplained.append((connection, call, [each for each in others if each[0] is not call]))
        assert 0 <= call.slots <= 1, "a slot was given back twice"

    def take_outcome(self, call: Played, frame: Frame) -> None:
        assert not frame.body or int(frame.body) == call.index, "the outcome of another call"
        if frame.flags == Status.OK:
            call.ends.append("value")
        else:
            self.tell(call, Failed(ValueError() if frame.flags == Status.ERROR else errors.TaskCancelled("f")))

    # --- connections

    def start(self, call: Played, connection: Connection) -> bool:
        """Send it there; False if it does not want a slot any more."""
        commands = call.life.handle(Granted("gpu[0]"), now=self.now)
        if Do.SEND not in commands:
            return False
        call.slots += 1
        assert call.slots == 1
        connection.number += 1
        call.number = connection.number
        call.connection = connection
        body = str(call.index).encode()
        data = b"".join(encode(Kind.CALL, call.number, call.function, [body], call.life.attempt))
        connection.sent.add(call, len(data))
        connection.put(data)
        self.tell(call, Sending(call.number, (Closure(),)))  # type: ignore[arg-type]
        return True

    def reply(self, connection: Connection, data: bytes) -> None:
        connection.sent.reply(len(data))
        connection.put(data)

    def close(self, connection: Connection) -> None:
        if not connection.closed:
            connection.closed = connection.wire.hung_up = True
            self.busy.remove(connection)
            self.left.append(connection)

    def drop(self, connection: Connection) -> None:
        self.close(connection)
        self.free += 1

    def give_up(self, connection: Connection) -> None:
        calls = connection.sent.end(reset=False)
        self.drop(connection)
        for call, unread in calls:
            self.tell(call, Broken(unread))

    def rest(self, connection: Connection) -> None:
        """If nothing is under way there, the slot is free."""
        if connection.closed or connection.sent:
            return
        if connection.unsent or connection.cut or connection.revoked:
            self.drop(connection)
        else:
            self.busy.remove(connection)
            self.idle.append(connection)
            self.free += 1

    def lost(self, connection: Connection) -> None:
        calls = connection.sent.end(reset=connection.wire.reset)
        self.close(connection)
        for call, unread in calls:
            self.tell(call, Broken(unread))
        if not any(each[0] is connection for each in self.unexplained):
            self.free += 1

    def take_back(self, connection: Connection) -> None:
        first, last = connection.sent.first, connection.sent.last
        if first is not None and last is not None and first is not last and not connection.taking_back:
            connection.taking_back = True
            self.orders.append((connection, first.number + 1, last.number))

    def receive(self, connection: Connection, count: int) -> None:
        wire = connection.wire
        if not wire.down:
            if wire.ended:
                self.lost(connection)
            return
        connection.reader.feed(wire.down[:count])
        del wire.down[:count]
        while not connection.closed and (frame := connection.reader.next_frame()) is not None:
            self.received(connection, frame)
        self.rest(connection)

    def received(self, connection: Connection, frame: Frame) -> None:
        first = connection.sent.first
        if frame.kind == Kind.WITHDRAWN:
            connection.taking_back = False
            back = connection.sent.take_back(frame)
            for call in back:
                self.tell(call, frame)
                call.connection = None
            again = [call for call in back if call.life.state is State.WAITING]
            self.line.extendleft(reversed(again))
        elif frame.kind == Kind.OUTCOME and first is not None and first.number == frame.call:
            connection.sent.pop_first()
            self.tell(first, frame, frame)
        else:
            call = connection.sent.find(frame.call)
            if call is not None:
                assert call is first, "a call spoke that had not begun"
                self.tell(call, frame)
        turn = connection.sent.first
        if turn is not None and turn is not first:
            self.tell(turn, Turn())

    def is_out(self, connection: Connection) -> bool:
        """A thread that waits for one call writes all before it reads anything."""
        return not (connection.alone and connection.unsent)

    # --- rules: calls

    @precondition(lambda self: len(self.calls) < MOST)
    @rule(
        alone=st.booleans(),
        function=st.sampled_from([b"f", b"g"]),
        retries=st.integers(0, 1),
        limit=st.sampled_from([None, None, None, 3.0]),
        on_interrupt=st.sampled_from(["int", "term", "kill"]),
        many=st.integers(1, 2),
    )
    def call(
        self, alone: bool, function: bytes, retries: int, limit: float | None, on_interrupt: str, many: int
    ) -> None:
        request = Request("f", "gpu", limit, limit, retries=retries, on_interrupt=on_interrupt)  # type: ignore[arg-type]
        for _ in range(many):
            call = Played(len(self.calls), request, function, alone=alone, now=self.now)
            self.calls.append(call)
            self.do(call, call.life.start(now=self.now))

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def give_up_call(self, data: st.DataObject) -> None:
        """A task is cancelled, or Ctrl-C comes where a thread waits."""
        waiting = [call for call in self.calls if not (call.ends or call.given_up)]
        if not waiting:
            return
        call = data.draw(st.sampled_from(waiting))
        connection = call.connection
        if call.alone:
            self.tell(call, INTERRUPTED)
        else:
            call.given_up = True
            behind = connection is not None and connection.sent.first is not call
            self.tell(call, Cancelled(behind))
            if connection is not None and not connection.closed:
                self.was_abandoned(connection, call)

    def was_abandoned(self, connection: Connection, call: Played) -> None:
        if all(each.given_up for each in connection.sent):
            if connection.unsent:
                self.give_up(connection)
        elif call is connection.sent.first:
            self.take_back(connection)

    # --- rules: the broker

    @precondition(lambda self: self.line and self.free)
    @rule()
    def grant(self) -> None:
        self.free -= 1
        self.granted.append(self.line.popleft())

    @precondition(lambda self: self.granted)
    @rule(data=st.data())
    def take_granted(self, data: st.DataObject) -> None:
        """The grant may have crossed a withdrawal; then the next one gets it."""
        call = self.granted.pop(data.draw(st.integers(0, len(self.granted) - 1)))
        if self.idle and data.draw(st.booleans()):
            connection = self.idle.pop()
            connection.open()
        else:
            connection = Connection(PlayedReplica(KNOWN, self.began, self.stopped))
        self.busy.append(connection)
        while not self.start(call, connection):
            if not self.line:
                self.rest(connection)
                return
            call = self.line.popleft()
        connection.alone = call.alone

    @precondition(lambda self: self.line)
    @rule(data=st.data(), gone=st.booleans(), seldom=SELDOM)
    def refuse(self, data: st.DataObject, gone: bool, seldom: bool) -> None:
        if seldom:
            call = self.line.popleft()
            self.tell(call, Refused(errors.BrokerGone() if gone else errors.PoolStopped("gpu")))

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), seldom=SELDOM)
    def somebody_else_interrupts(self, data: st.DataObject, seldom: bool) -> None:
        connection = data.draw(st.sampled_from(self.busy))
        running = connection.replica.running
        if seldom and running is not None:
            self.interrupted_by_broker |= {running.frame.call}
            connection.replica.interrupt()

    # --- rules: what the client does with a connection

    @precondition(lambda self: self.busy and self.line)
    @rule(data=st.data())
    def send_ahead(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from(self.busy))
        last = connection.sent.last
        while self.line and last is not None and not (connection.alone or connection.taking_back or connection.cut):
            call = self.line[0]
            limited = call.life.request.limited or last.life.request.limited
            if call.alone or limited or call.function != last.function or len(connection.sent) >= AHEAD:
                break
            self.line.popleft()
            self.start(call, connection)

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), at_once=st.booleans())
    def take_back_all(self, data: st.DataObject, at_once: bool) -> None:
        connection = data.draw(st.sampled_from(self.busy))
        self.take_back(connection)
        while at_once and self.orders:
            self.obey_one(*self.orders.pop(0))

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), count=SOME)
    def write(self, data: st.DataObject, count: int) -> None:
        self.write_some(data.draw(st.sampled_from(self.busy)), count)

    def write_some(self, connection: Connection, count: int) -> None:
        if connection.wire.ended:
            connection.cut = True
            if not self.is_out(connection):
                self.lost(connection)
            return
        written = connection.unsent[:count]
        del connection.unsent[:count]
        connection.wire.up += written
        connection.sent.wrote(len(written))
        for call in connection.sent.wholly_written():
            self.tell(call, Sent(call.number, (Closure(),)))  # type: ignore[arg-type]

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), count=SOME)
    def take(self, data: st.DataObject, count: int) -> None:
        connection = data.draw(st.sampled_from(self.busy))
        if self.is_out(connection):
            self.receive(connection, count)

    @precondition(lambda self: self.unexplained)
    @rule()
    def explain(self) -> None:
        connection, call, others = self.unexplained.pop(0)
        self.end_replica(connection)
        for other, unread in others:
            self.tell(other, Broken(unread))
        self.free += 1
        self.tell(call, Explained(errors.ReplicaDied("f", "gpu[0]")))

    # --- rules: replicas

    @property
    def replicas(self) -> list[Connection]:
        return [each for each in (*self.busy, *self.left) if not each.wire.ended]

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), count=SOME, flush=st.booleans())
    def move(self, data: st.DataObject, count: int, flush: bool) -> None:
        connection = data.draw(st.sampled_from(self.replicas))
        if flush:
            connection.replica.flush(count)
        else:
            connection.replica.read(count)

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), flush=st.booleans())
    def work(self, data: st.DataObject, flush: bool) -> None:
        """A call begins, goes on, or ends."""
        self.work_at(data.draw(st.sampled_from(self.replicas)), data, flush)

    def work_at(self, connection: Connection, data: st.DataObject, flush: bool) -> None:
        self.work_on(connection.replica, data)
        if flush and connection.replica.backlog:
            connection.replica.flush(10_000)
            if connection in self.busy and self.is_out(connection):
                self.receive(connection, 10_000)
            if connection in self.busy:
                self.write_some(connection, 10_000)

    def work_on(self, replica: PlayedReplica, data: st.DataObject) -> None:
        running = replica.running
        if running is None:
            return
        if not running.begun:
            replica.begin()
            return
        stops = running.cancels > running.raised
        steps = [Kind.OUTPUT, Kind.WANT, Status.OK, Status.OK, Status.ERROR, *[Kind.INTERRUPTED] * stops]
        step = data.draw(st.sampled_from([*steps, *[Status.CANCELLED] * bool(running.raised)]))
        if step is Kind.INTERRUPTED:
            replica.meet_interrupt()
        elif isinstance(step, Status):
            replica.end(step)
        else:
            replica.say(step)

    @precondition(lambda self: len(self.calls) < MOST)
    @rule(data=st.data(), many=st.integers(1, 3), count=SOME)
    def call_and_send(self, data: st.DataObject, many: int, count: int) -> None:
        """Most of a history should be work."""
        self.call(False, KNOWN, 0, None, "int", many)
        self.send_all(data, count)

    @rule(data=st.data(), count=SOME)
    def send_all(self, data: st.DataObject, count: int) -> None:
        if self.free and self.line:
            self.grant()
        if self.granted:
            self.take_granted(data)
        if self.busy:
            self.send_ahead(data)
        for connection in list(self.busy):
            self.carry(connection, count)

    @rule(data=st.data(), flush=st.booleans())
    def work_everywhere(self, data: st.DataObject, flush: bool) -> None:
        for connection in self.replicas:
            self.work_at(connection, data, flush)

    def carry(self, connection: Connection, count: int = 10_000) -> None:
        """So many bytes to the replica, and what it says to them into the client's socket."""
        self.write_some(connection, count)
        if not connection.wire.ended:
            connection.replica.read(10_000)
            connection.replica.flush(10_000)

    @precondition(lambda self: self.orders)
    @rule(data=st.data())
    def obey(self, data: st.DataObject) -> None:
        """Each order has a connection of its own: they may overtake one another."""
        self.obey_one(*self.orders.pop(data.draw(st.integers(0, len(self.orders) - 1))))

    def obey_one(self, connection: Connection, first: int, last: int | None) -> None:
        if connection.wire.ended:
            return
        if last is None:
            connection.replica.cancel(first)
        else:
            connection.replica.withdraw(first, last)

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def notice(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from(self.left))
        connection.replica.notice()
        if connection.replica.running is None:
            self.left.remove(connection)

    @precondition(lambda self: self.replicas)
    @rule(data=st.data(), dies=st.integers(0, 2).map(lambda number: number == 2))
    def die(self, data: st.DataObject, dies: bool) -> None:
        connection = data.draw(st.sampled_from(self.replicas))
        if dies or connection.revoked:
            self.end_replica(connection)

    @precondition(lambda self: any(each.wire.up and each.replica.running for each in self.replicas))
    @rule(data=st.data())
    def die_with_something_unread(self, data: st.DataObject) -> None:
        """While a call runs: was it of that call?"""
        found = [each for each in self.replicas if each.wire.up and each.replica.running]
        connection = data.draw(st.sampled_from(found))
        self.end_replica(connection)
        if connection in self.busy and self.is_out(connection):
            while connection in self.busy:
                self.receive(connection, 10_000)

    def end_replica(self, connection: Connection) -> None:
        if not connection.wire.ended:
            connection.replica.die()

    # --- rules: time

    @precondition(lambda self: self.due < math.inf)
    @rule(seldom=SELDOM)
    def time_passes(self, seldom: bool) -> None:
        if seldom or self.due - self.now <= SOON_S:
            self.pass_time()

    def pass_time(self) -> None:
        self.now = max(self.now, self.due)
        for call in self.calls:
            if call.life.next_deadline() <= self.now:
                self.tell(call, TICK)
                at_once = call.life.state is State.PAUSED  # until it is tried again
                assert at_once or call.life.next_deadline() > self.now, "a tick at the deadline did not move it"

    @property
    def due(self) -> float:
        return min((call.life.next_deadline() for call in self.calls), default=math.inf)

    # --- what holds at any time

    @invariant()
    def slots_are_counted(self) -> None:
        assert self.free + len(self.granted) + len(self.busy) + len(self.unexplained) == SLOTS

    @invariant()
    def each_call_ends_once(self) -> None:
        for call in self.calls:
            assert len(call.ends) <= 1, call.ends
            assert not (call.given_up and call.ends), "nobody waited for it"

    @invariant()
    def those_in_a_connection_are_in_order(self) -> None:
        for connection in self.busy:
            numbers = [call.number for call in connection.sent]
            assert numbers == sorted(numbers)

    def teardown(self) -> None:
        # Play on: every call that somebody waits for ends, and every slot is free.
        for _ in range(60 * max(1, len(self.calls))):
            if self.is_at_rest():
                break
            self.play_on()
        assert self.is_at_rest(), [(call.index, call.life.state, call.number) for call in self.calls]
        lost = [(call.index, call.life.state) for call in self.calls if not (call.ends or call.given_up)]
        assert not lost, "a call was lost"
        assert all(call.slots == 0 for call in self.calls), "a slot was kept"
        assert self.free == SLOTS

    def is_at_rest(self) -> bool:
        return not (self.line or self.granted or self.busy or self.unexplained or self.due < math.inf)

    def play_on(self) -> None:
        while self.orders:
            self.obey_one(*self.orders.pop(0))
        for connection in [each for each in self.replicas if each.revoked]:
            self.end_replica(connection)
        for connection in list(self.busy):
            self.carry(connection)
            running = connection.replica.running
            if running is not None and not running.begun:
                connection.replica.begin()
            elif running is not None:
                connection.replica.end(Status.CANCELLED if running.cancels else Status.OK)
            if not connection.wire.ended:
                connection.replica.flush(10_000)
            if not connection.closed:
                self.receive(connection, 10_000)
        while self.unexplained:
            self.explain()
        if self.due - self.now <= SOON_S:
            self.pass_time()
        while self.line and self.free:
            self.grant()
        while self.granted:
            call = self.granted.pop(0)
            connection = Connection(PlayedReplica(KNOWN, self.began, self.stopped))
            self.busy.append(connection)
            connection.alone = call.alone
            if not self.start(call, connection):
                self.rest(connection)


World.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestHistories = World.TestCase
