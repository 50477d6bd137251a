"""Cells that run on replicas: what is sent for one, where its slot comes from, and its life in the background.

A cell is a call like a task's: leases, retries, time limits, interrupts and errors are those of `remote`.
"""

from __future__ import annotations

import json
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any, Final, Literal

from .. import errors
from ..core import failure, payload
from ..core import protocol as p
from ..core.call_events import Request
from ..core.cells import CellReply, CellRequest, Scope
from ..core.definitions import ImportDefinition, SourceDefinition, ValueDefinition
from ..core.format import last_line
from ..core.frames import Buffer, Frame, Status
from ..core.snapshot import PoolView
from . import blocking, broker, comms, outputs, runs
from .capture import Captured
from .channel import Channel
from .identity import describe_client
from .lease import Lease
from .leases import LeaseGroup
from .lending import BorrowingGroup, LendingGroup, borrow
from .looping import awaiting
from .running import RunningPool
from .target import Outgoing, Target, locate, ran_on

SESSION_IDLE_S: Final = 1800.0
"""How long a session that nobody uses keeps its replica."""
SHARE_S: Final = 1.0
"""How long a session waits for a slot of its own before it shares one."""
RETRY_S: Final = 0.1
GRANTED_S: Final = 1.0
"""How long the broker may take to grant slots that are free."""
NAMES_S: Final = 0.2
"""How long completion may wait for the names on a replica."""
NAMES_FRESH_S: Final = 5.0
RETRY_REASONS: Final[Mapping[str, Callable[[BaseException], bool]]] = {
    "oom": lambda error: (
        isinstance(error, MemoryError)
        or isinstance(failure.flyte_error(error), errors.OOMError)
        or "OutOfMemory" in type(error).__name__  # torch's own
    ),
    "crash": lambda error: isinstance(error, errors.ReplicaDied),
    "timeout": lambda error: isinstance(error, errors.TaskTimeoutError),
}
"""What a cell may be repeated for, if it asks for certain reasons only."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a user wants of a cell.

    Attributes:
        code, filename, first_line, scope, session, pull: As in `CellRequest`.
        name: What views and errors call it: "cell #12".
        push: Names and values from the notebook; functions, classes and modules go by definition.
        timeout: Seconds that one attempt may run.
        retries: Attempts beyond the first.
        retry_on: For what it is repeated; empty is for whatever happens.
        priority: Which of this notebook's waiting cells and calls goes first.
        on_interrupt: "int" raises KeyboardInterrupt in the cell; "term" also replaces its replica, after what else that
            runs; "kill" ends its replica at once.
    """

    code: str
    filename: str
    name: str
    first_line: int = 1
    scope: Scope = "fresh"
    session: str = ""
    push: Mapping[str, Any] = field(default_factory=dict)
    pull: tuple[str, ...] = ()
    timeout: float | None = None
    retries: int = 0
    retry_on: tuple[str, ...] = ()
    on_interrupt: Literal["int", "term", "kill"] = "int"
    priority: Literal["low", "normal", "high"] = "normal"


PRIORITIES: Final = {"low": -1, "normal": 0, "high": 1}


@dataclass(slots=True)
class Times:
    """What happened to a cell, on the monotonic clock; for its footer."""

    asked_at: float = 0.0
    began_at: float | None = None
    ended_at: float | None = None
    replica: str = ""  # "gpu[1]"
    replica_id: str = ""
    on_begin: Callable[[], None] | None = None


class CellTarget(Target):
    """A cell and the pool it runs in."""

    def __init__(self, cell: Cell, pool: RunningPool) -> None:
        super().__init__(_no_function, request_of(cell, pool.name), pool)
        self.cell = cell
        self.times = Times()
        self.attempt = 0  # retries so far
        self.pinned: PinnedGroup | None = None  # the slot it has to run in
        self.priority = PRIORITIES[cell.priority]
        self._checked: Outgoing | None = None
        self._defined = tuple(sorted(name for name, value in cell.push.items() if is_definition(value)))
        self._captured = Captured.of_names(self._defined, _main())
        self._request = CellRequest(
            code=cell.code,
            filename=cell.filename,
            first_line=cell.first_line,
            scope=cell.scope,
            session=cell.session,
            push={name: value for name, value in cell.push.items() if name not in self._defined},
            definitions=self._defined,
            pull=cell.pull,
        )

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any], attempt: int) -> Outgoing:
        self.attempt = attempt
        if self._checked is not None:
            checked, self._checked = self._checked, None
            return checked
        meta = runs.call_meta()
        sent = ((self._request,), {}) if meta is None else ((self._request,), {}, meta)
        try:
            pickled = payload.dump_arguments(sent)
        except Exception as problem:
            raise self._not_serializable((), dict(self._request.push), problem) from None
        closures = []
        if pickled.names:  # classes of the notebook, whose instances are pushed
            closures.append(Captured.of_names(pickled.names, _main()).closure())
        if self._defined:
            self._closure = self._captured.closure()
            closures.append(self._closure)
        reference = json.dumps([[closure.digest for closure in closures], self.name, "cell"]).encode()
        return _Noted(Outgoing(reference, closures, pickled, attempt, _main()), self.times)

    def group(self) -> LeaseGroup:
        if not self.times.asked_at:
            self.times.asked_at = time.monotonic()
        if self.pinned is not None:
            return self.pinned
        if self.cell.scope != "session":
            return super().group()
        return session_group(self.pool, self.cell.session)

    def check(self) -> None:
        """Raises ArgumentNotSerializable if something in it cannot be sent; what it has encoded is sent first."""
        self._checked = self.encode((), {}, 0)

    def parcels(self) -> dict[str, tuple[str, int]]:
        """What is sent besides the code: how, and how many bytes. Raises as `check`."""
        self.check()
        found = {}
        for name, value in self.cell.push.items():
            if name not in self._defined:
                pickled = payload.dump_arguments(value)
                found[name] = "a copy", sum(memoryview(part).nbytes for part in (pickled.data, *pickled.buffers))
        for definition in self._captured.closure().definitions if self._defined else ():
            match definition:
                case ImportDefinition():
                    found[definition.name] = "an import", len(definition.module)
                case SourceDefinition(text=text):
                    found[definition.name] = "its source", len(text.lines)
                case ValueDefinition(pickled=data, texts=texts):
                    found[definition.name] = "its code" if texts else "a copy", len(data)
        return found

    def result(self, frame: Frame, lease: Lease) -> Any:
        self.times.ended_at = time.monotonic()
        self.times.replica = lease.name
        self.times.replica_id = lease.replica
        if frame.flags != Status.ERROR:
            return super().result(frame, lease)
        described: failure.Failure = pickle.loads(frame.body)
        if self._closure is not None:
            locate(described, self._closure.definitions)
        raise ran_on(
            failure.rebuild(described, payload.plain_find), lease
        )  # as a local cell's: the footer names the replica


class _Noted(Outgoing):
    """Notes when it is sent, and how a widget reaches the replica."""

    __slots__ = ("_plain", "_times")

    def __init__(self, plain: Outgoing, times: Times) -> None:
        self.closures = plain.closures
        self.names = plain.names
        self.nbytes = plain.nbytes
        self._plain = plain
        self._times = times

    def on(self, channel: Channel) -> tuple[int, list[Buffer]]:
        self._times.began_at = time.monotonic()
        if self._times.on_begin is not None:
            self._times.on_begin()
        comms.to_replica.set(comms.Link(channel.address, outputs.show))
        return self._plain.on(channel)


def _no_function() -> None:
    """A cell has a text instead."""


def _main() -> dict[str, Any]:
    return vars(sys.modules["__main__"])


def is_definition(value: object) -> bool:
    """Whether it goes to a replica as what it is made of (source, an import), not as a copy."""
    return isinstance(value, FunctionType | ModuleType | type) or hasattr(type(value), "__flyte_capture__")


# --- running


def request_of(cell: Cell, pool: str) -> Request:
    """What a call of this cell may do."""
    reasons = [RETRY_REASONS[reason] for reason in cell.retry_on]

    def repeats(error: BaseException) -> bool:
        return not reasons or any(reason(error) for reason in reasons)

    return Request(
        cell.name,
        pool,
        max_runtime=cell.timeout,
        retries=cell.retries,
        repeats=repeats,
        on_interrupt=cell.on_interrupt,
    )


def run(target: CellTarget) -> CellReply:
    """Run a cell and wait for its end; Ctrl-C stops it.

    Raises: Whatever the cell raises, with the user's frames only; errors of `errors` about the pool.
    """
    token = comms.to_replica.set(None)  # what the call sets is its own
    try:
        reply: CellReply = blocking.call(target, (), {})
        return reply
    finally:
        comms.to_replica.reset(token)
        _let_go(target)


async def run_async(target: CellTarget) -> CellReply:
    """The same for an event loop."""
    reply: CellReply = await awaiting(target, (), {})
    return reply


def start(target: CellTarget, screen: outputs.Screen) -> Future[CellReply]:
    """Run a cell in the background. Cancelling the future stops the cell."""
    import asyncio

    from .executor import background

    with outputs.shown_on(screen):
        future = asyncio.run_coroutine_threadsafe(run_async(target), background())
    future.add_done_callback(lambda _: _let_go(target))
    return future


def _let_go(target: CellTarget) -> None:
    """A slot that was held for a cell, whether it has come to use it or not."""
    if target.pinned is not None:
        target.pinned.let_go()


# --- a certain replica


class PinnedGroup(LeaseGroup):
    """One slot that was chosen before: no longer held after its call, and there is no other."""

    def __init__(self, group: LeaseGroup, lease: Lease) -> None:
        super().__init__(group.connection, group.pool, group.parent, group.run)
        self.replica = lease.name
        if lease.group is group:
            group.hand(lease, self)
        self._idle.append(lease)  # else it is borrowed

    def give_back(self, lease: Lease) -> None:
        if lease.group is self:
            self.drop(lease)
        else:
            super().give_back(lease)

    def take(self) -> Lease | None:
        lease = super().take()
        if lease is None:
            raise errors.ReplicaDied("a cell", "the replica that was chosen for it")
        return lease

    def let_go(self) -> None:
        """Give the slot back if it was not used."""
        lease = super().take()
        if lease is not None:
            self.give_back(lease)

    def _wanted(self) -> int:
        return 0


def slots_on(pool: RunningPool, name: str, number: int | None = None) -> list[PinnedGroup]:
    """A slot on the replica of that number, or one on each replica that is there.

    Waits until they are free, or kept by a session of this notebook that does not use them. Never asks for more slots
    than are free: the pool must not grow for it.

    Raises:
        NoSuchPool, PoolFailed: As for a call.
        ValueError: There is no replica of that number.
    """
    group = LeaseGroup(pool.connection(), pool.key, None, "local")
    while True:
        view = pool.status()
        there = [] if view is None else [each for each in view.replicas if each.warm]
        wanted = [each.name for each in there if number is None or each.index == number]
        if view is not None and there and not wanted:
            raise ValueError(f"there is no replica {number} of {pool.name}: {', '.join(each.name for each in there)}")
        if view is None or not wanted:  # nothing runs: one call's slot starts it
            waiter = group.ask(name)
            try:
                group.drop(waiter.future.result())
            except KeyboardInterrupt:
                waiter.withdraw()
                raise
        elif chosen := _chosen(group, name, wanted, _free_slots(view)):
            return [PinnedGroup(group, lease) for lease in chosen]
        else:
            time.sleep(RETRY_S)


def _free_slots(view: PoolView) -> dict[str, int]:
    """How many slots of each replica nobody has."""
    slots = view.scaling.concurrency
    return {each.name: 0 if each.state == "attached" else slots - len(each.calls) for each in view.replicas}


def _chosen(group: LeaseGroup, name: str, wanted: list[str], free: dict[str, int]) -> list[Lease]:
    """A slot on each of these replicas; [] if one of them has none."""
    kept = {each: lease for each in wanted if free[each] < 1 and (lease := borrow(group, each)) is not None}
    asked = [each for each in wanted if each not in kept]
    found: list[Lease] = []
    try:
        if all(free[each] > 0 for each in asked):
            found = _granted(group, name, asked, sum(max(count, 0) for count in free.values())) if asked else []
            if len(found) == len(asked):
                chosen = {**kept, **dict(zip(asked, found, strict=True))}
                kept = {}
                return [chosen[each] for each in wanted]
        return []
    finally:
        for lease in kept.values():
            group.give_back(lease)


def _granted(group: LeaseGroup, name: str, wanted: list[str], slots: int) -> list[Lease]:
    """One slot of each wanted replica out of those that are free; [] if somebody else was faster."""
    waiters = [group.ask(name) for _ in range(slots)]
    deadline = time.monotonic() + GRANTED_S
    chosen: dict[str, Lease] = {}
    others = []
    try:
        for waiter in waiters:
            with suppress(TimeoutError):
                lease = waiter.future.result(max(0.0, deadline - time.monotonic()))
                if lease.name in wanted and lease.name not in chosen:
                    chosen[lease.name] = lease
                else:
                    others.append(lease)
            if len(chosen) == len(wanted):
                break
    finally:
        complete = len(chosen) == len(wanted)
        for lease in others if complete else [*others, *chosen.values()]:
            group.drop(lease)
        for waiter in waiters:
            if not waiter.future.done():
                waiter.withdraw()
            elif waiter.future.exception() is None and waiter.future.result() not in [*others, *chosen.values()]:
                group.drop(waiter.future.result())
    return [chosen[each] for each in wanted] if complete else []


# --- sessions


class SessionGroup(LendingGroup, BorrowingGroup):
    """One slot that its session keeps between cells, so that they all run on one replica and find their names.

    Where a pool has no slot for a further session of this process, two of them keep one slot together.
    """

    patience_s = SHARE_S

    def __init__(self, connection: broker.Connection, pool: str, session: str) -> None:
        super().__init__(connection, pool, None, "local")
        self.session = session  # that the broker tells of
        self._name = session
        self._kept_for = {session: None}
        self._ended: list[str] = []  # while the slot was lent
        self._may_share = False

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    def take(self) -> Lease | None:
        return LeaseGroup.take(self)

    def recalled(self, lease: str) -> None:
        """Others wait for it, and have to: the names in it cannot be made again elsewhere."""

    def replica(self) -> str:
        """Where it runs: "gpu[0]"; "" if it has no slot now."""
        with self._lock:
            return next((lease.name for lease in self._held.values()), "")

    def end(self, session: str) -> str:
        """The session is over: its replica lets go of its names. The session that keeps the slot yet, or ""."""
        with self._lock:
            self._kept_for.pop(session, None)
            self._ended.append(session)
            leases = [lease for lease in self._held.values() if lease not in self._lent]
            lent = set(self._lent)
            left = next(iter(self._kept_for), None)
        for lease in leases:
            self._leave(lease)
        if left is None:
            self.close(but=lent)
            return ""
        self._tell_broker(left)
        return left or "of this notebook"

    def give_back(self, lease: Lease) -> None:
        self._leave(lease)
        if self._kept_for:
            super().give_back(lease)
        else:
            self.drop(lease)

    def drop(self, lease: Lease, *, close: bool = True) -> None:
        super().drop(lease, close=close)
        self.adjust()

    # --- one slot for two

    def borrow(self) -> None:
        if self._may_share:
            super().borrow()

    def _look(self) -> None:
        self._looks = False
        if self._requests:  # not here: the answer comes on this thread
            threading.Thread(target=self._look_at_pool, name="flyte_jupyter: a session", daemon=True).start()

    def _look_at_pool(self) -> None:
        """Share a slot if no replica of its own is on its way."""
        with suppress(errors.BaseRuntimeError):
            view = self.connection.snapshot().snapshot.pool(self.pool)
            coming = view is not None and any(each.state in ("starting", "loading") for each in view.replicas)
            self._may_share = not coming
            self.borrow()
            self.adjust()

    def _borrowed(self) -> Lease | None:
        lease = borrow(self)
        if lease is not None and isinstance(lease.group, SessionGroup):
            lease.group.take_in(self._name)
        return lease

    def take_in(self, session: str) -> None:
        """That session has its names on this replica, too, from now on."""
        self._kept_for[session] = None
        _sessions[self.pool, session] = self

    def _leave(self, lease: Lease) -> None:
        with self._lock:
            ended, self._ended = self._ended, []
        for session in ended:
            lease.leave(session)

    def _tell_broker(self, session: str) -> None:
        self.session = session
        for lease in list(self._held):
            with suppress(errors.BrokerGone):
                self.connection.send(p.Kept(lease=lease, session=session))

    def _wanted(self) -> int:
        # One at a time: a second slot could be on another replica.
        return 0 if self._held else min(1, super()._wanted())

    def _let_go(self) -> None:
        now = time.monotonic()
        with self._lock:
            old = [lease for lease in self._idle if now - lease.idle_since >= SESSION_IDLE_S]
            self._idle = [lease for lease in self._idle if lease not in old]
            self._timer = bool(self._idle)
            if self._timer:
                self.connection.call_later(SESSION_IDLE_S / 10, self._let_go)
        for lease in old:
            self.drop(lease)


_sessions: dict[tuple[str, str], SessionGroup] = {}


def session_group(pool: RunningPool, session: str) -> SessionGroup:
    """The slot of a session, kept until `end_session`, for half an hour without a cell, or for this process's life."""
    connection = pool.connection()
    group = _sessions.get((pool.key, session))
    if group is None or group.connection is not connection:
        group = _sessions[pool.key, session] = SessionGroup(connection, pool.key, session)
    return group


def end_session(pool: RunningPool, session: str) -> tuple[str, str]:
    """Let go of its names, and of its slot unless another session keeps that: the replica, and that session."""
    group = _sessions.pop((pool.key, session), None)
    if group is None:
        return "", ""
    replica = group.replica()
    return replica, group.end(session)


def end_sessions() -> None:
    """Give back what all sessions hold."""
    while _sessions:
        (_, session), group = _sessions.popitem()
        group.end(session)


# --- names, for completion

_names: dict[tuple[str, str, str], tuple[float, list[str]]] = {}


def names(pool: RunningPool, scope: str, session: str) -> list[str]:
    """The names that a cell would find on a replica; [] if that cannot be told at once. Nothing is started for it."""
    key = (pool.key, scope, session)
    known = _names.get(key)
    if known is None or time.monotonic() - known[0] > NAMES_FRESH_S:
        asking = threading.Thread(target=copy_context().run, args=(_ask_names, pool, key), daemon=True)
        asking.start()
        asking.join(NAMES_S)
    return _names.get(key, (0.0, []))[1]


class _Names(Target):
    """The question for a replica's names. It waits for nothing that takes long, and disturbs nobody."""

    def __init__(self, pool: RunningPool, group: LeaseGroup | None, scope: str, session: str) -> None:
        request = Request("names", pool.name, max_queued=NAMES_S, deadline=NAMES_S, on_interrupt="leave")
        super().__init__(_no_function, request, pool)
        self._asked = payload.dump_arguments(((scope, session), {}))
        self._group = group

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any], attempt: int) -> Outgoing:
        return Outgoing(b'[[], "names", "names"]', (), self._asked, 0, _main())

    def group(self) -> LeaseGroup:
        return self._group or super().group()


def _ask_names(pool: RunningPool, key: tuple[str, str, str]) -> None:
    outputs.mute()
    if broker.current() is None:
        return
    with suppress(errors.BaseRuntimeError, OSError):
        session = _sessions.get((key[0], key[2])) if key[1] == "session" else None
        asking = _Names(pool, session, key[1], key[2])
        if asking.group().has_idle or (session is None and _has_free_replica(pool)):
            found = blocking.call(asking, (), {})
            _names[key] = (time.monotonic(), list(found))


def _has_free_replica(pool: RunningPool) -> bool:
    view = pool.status()
    if view is None or view.waiting:
        return False
    return any(replica.state == "ready" and not replica.calls for replica in view.replicas)


def forget_names() -> None:
    """A cell may have made others."""
    _names.clear()


# --- where a cell waits


def waiting_line(pool: RunningPool, snapped: p.Snapped, name: str) -> str:
    """Why a cell has no replica yet, for people: "gpu: 2nd in the queue · replica 0 busy 0:12 (cell #3, a.ipynb)"."""
    from . import text

    now = time.time() - snapped.epoch_offset
    view = snapped.snapshot.pool(pool.key)
    if view is None:
        return f"{pool.name}: starting"
    label = describe_client().label
    ours = (request for request in view.queue if request.task == name and request.client == label)
    ask = next(ours, None)
    words = []
    if ask is not None:
        place = "next in the queue" if ask.position == 0 else f"{_ordinal(ask.position + 1)} in the queue"
        words.append(f"{place if view.waiting > 1 else ''}{text.expectation(ask, now, 'about')}".removeprefix(", "))
    if view.waits_for:
        words.append(f"waits for {view.waits_for}")
    for replica in view.replicas:
        if replica.state in ("starting", "loading"):
            words.append(f"{replica.name} {replica.state} {text.countdown(now - replica.started_at)}")
        elif replica.running:
            lease = replica.running[0]
            since = text.countdown(now - lease.since)
            words.append(f"{replica.name} {replica.state} {since} ({lease.task}, {lease.client})")
        else:
            words += [text.kept(lease, replica, view) for lease in replica.calls if lease.session is not None]
    if view.failure is not None and view.failure.cause.strip():
        words.append(f"last start failed: {last_line(view.failure.cause)}")
    said = " · ".join([word for word in words if word][:4])
    return text.visible(f"Waiting for {view.name}: {said or text.pool_state(view)}")


def _ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def footer(pool: RunningPool, times: Times) -> str:
    """One line about a cell that has run: "gpu[1] · GPU 0 · 0.8 s run · 0.0 s wait"; "" if it reached no replica."""
    if times.began_at is None or times.ended_at is None:
        return ""
    words = [times.replica]
    connection = broker.current()
    if connection is not None and pool.uses_gpus:
        with suppress(errors.BaseRuntimeError):
            devices = connection.snapshot().snapshot.devices
            held = [str(device.index) for device in devices if device.replica == times.replica_id]
            words += [f"GPU {', '.join(held)}"] if held else []
    words.append(f"{times.ended_at - times.began_at:.1f} s run")
    words.append(f"{times.began_at - times.asked_at:.1f} s wait")
    return " · ".join(words)
