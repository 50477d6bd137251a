"""Slots on replicas, from the side that uses them: asked for once, kept while there is work and a little longer.

A warm call takes an idle lease and goes straight to the kernel; the broker is asked only when none is idle.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Final, Protocol

from .. import errors
from ..core import protocol as p
from ..core.context import current
from .broker import Connection
from .identity import describe_client, process_token
from .lease import Lease
from .refusals import explain_refusal

LINGER_S: Final = 0.05
"""How long an idle lease is kept: the next call of a loop is then one round trip."""
MAX_REQUESTS: Final = 128
"""Leases asked for at once per environment; further calls wait in this process."""


class Slots(Protocol):
    """A source of slots for the calls of one thread."""

    @property
    def connection(self) -> Connection: ...
    def take(self) -> Lease | None: ...
    def ask(self, task: str, priority: int = 0) -> ThreadWaiter: ...
    def give_back(self, lease: Lease) -> None: ...
    def drop(self, lease: Lease) -> None: ...


class LeaseGroup:
    """The leases of one environment that one caller holds: this process, or one task when it calls tasks.

    Its queue is the only one in the process. The calls of all threads are one line in it, those of each event loop
    another; the lines are served in turn, and in each a higher priority goes first, then who came first.

    Args:
        slots: How many the pool has at most. Event loops ask for no more than that; their calls are many.
    """

    looks = 1
    """How often it looks in the linger time."""

    def __init__(
        self, connection: Connection, pool: str, parent: str | None, run: str, slots: Callable[[], int] | None = None
    ) -> None:
        self.connection = connection
        self.pool = pool
        self.parent = parent
        self.run = run
        self._lock = threading.Lock()
        self._idle: list[Lease] = []
        self._held: dict[str, Lease] = {}
        self._lines: dict[object, deque[Waiter]] = {}  # by owner; the one that was served last is the last
        self._slots = slots
        self._requests: dict[str, str] = {}  # lease -> task, asked for and not granted yet
        self._timer = False
        self.session: str | None = None  # that keeps the leases between its cells
        self.pipelines: dict[asyncio.AbstractEventLoop, object] = {}
        """What each event loop has under way here; see `looping`."""

    @property
    def linger_s(self) -> float:
        """How long an idle lease is kept."""
        return LINGER_S

    def take(self) -> Lease | None:
        """An idle lease, if there is one."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    @property
    def has_idle(self) -> bool:
        """Whether it has a lease that no call uses."""
        return bool(self._idle)

    def ask(self, task: str, priority: int = 0) -> ThreadWaiter:
        """Wait for a lease; `future` of what is returned gets it, or the reason why there will be none."""
        waiter = ThreadWaiter(self, task, priority)
        self.line_up(waiter)
        with self._lock:
            if self._idle:  # given back since the caller looked
                self._serve(self._idle.pop())
        self.adjust()
        return waiter

    @property
    def may_ask(self) -> bool:
        """Whether one more call of an event loop may be a reason to ask the broker for another lease."""
        return self._slots is None or len(self._requests) < self._slots()

    @property
    def has_line(self) -> bool:
        """Whether any call waits."""
        return bool(self._lines)

    def line_up(self, waiter: Waiter, *, first: bool = False) -> None:
        """Put it behind those of its own priority that came before it, and before those of a lower one; or before all.

        `adjust` has to follow.
        """
        with self._lock:
            line = self._lines.setdefault(waiter.owner, deque())
            place = 0 if first else len(line)
            rank = (waiter.priority, -waiter.ticket)
            while place and (line[place - 1].priority, -line[place - 1].ticket) < rank:
                place -= 1
            line.insert(place, waiter)

    def adjust(self) -> None:
        """Ask the broker for as many leases as there are calls for; withdraw what is too much."""
        if not self._lines and not self._requests:
            return
        with self._lock:
            more: list[tuple[str, str]] = []
            wanted = self._wanted()
            while len(self._requests) < wanted:
                task = self._unasked()
                lease = uuid.uuid4().hex[:16]
                self._requests[lease] = task
                more.append((lease, task))
            surplus = self._surplus(wanted)
        for lease, task in more:
            self._send_request(lease, task)
        for lease in surplus:
            self.connection.release(lease)

    def first(self, owner: object) -> Waiter | None:
        """The next of this owner's calls in line."""
        line = self._lines.get(owner)
        try:
            return line[0] if line else None
        except IndexError:  # another thread has just served the last one
            return None

    def of(self, owner: object) -> list[Waiter]:
        """All of this owner's calls in line."""
        with self._lock:
            return list(self._lines.get(owner, ()))

    def pop(self, waiter: Waiter) -> bool:
        """Take it out of the line, because its owner has a slot for it; False if it is not in it any more."""
        with self._lock:
            return self._remove(waiter)

    def contended(self, owner: object) -> bool:
        """Whether somebody else in this process waits for a lease, and could use one."""
        lines = self._lines
        if not lines or (len(lines) == 1 and owner in lines):
            return False
        with self._lock:
            return any(line[0].can_start for each, line in lines.items() if each is not owner)

    def waiting(self, owner: object) -> int:
        """How many of this owner's calls are in line."""
        return len(self._lines.get(owner, ()))

    def give_back(self, lease: Lease) -> None:
        """The call in it is over: the next one waiting gets it, or it lingers. A borrowed one goes to its own group."""
        if lease.group is not self:
            lease.group.give_back(lease)
            return
        with self._lock:
            over = lease.is_lost or lease.recalled or (lease.single_use and lease.spent)
            served = False
            if not over and not (self._lines and (served := self._serve(lease))):
                lease.idle_since = time.monotonic()
                self._idle.append(lease)
                if not self._timer:
                    self._timer = True
                    self.connection.call_later(LINGER_S, self._let_go)
        if over:
            self.drop(lease)
        if served:
            self.adjust()

    def drop(self, lease: Lease, *, close: bool = True) -> None:
        """It is not used again: its replica is gone, it was recalled, or its call did not end.

        Args:
            close: Close its connection, too; else the caller does.
        """
        if lease.group is not self:
            lease.group.drop(lease, close=close)
            return
        with self._lock:
            self._held.pop(lease.id, None)
            with suppress(ValueError):
                self._idle.remove(lease)
        if close:
            lease.close()
        self.connection.release(lease.id)

    def hand(self, lease: Lease, other: LeaseGroup) -> None:
        """The lease, which somebody uses now, belongs to the other group from now on."""
        with self._lock:
            self._held.pop(lease.id, None)
        lease.group = other
        other._held[lease.id] = lease
        self.connection.listen(lease.id, other)

    def close(self, *, but: Collection[Lease] = ()) -> None:
        """Give every lease back, also those that linger, but not these."""
        with self._lock:
            leases = [lease for lease in self._held.values() if lease not in but]
            requests = list(self._requests)
            self._requests.clear()
        for lease in leases:
            self.drop(lease)
        for request in requests:
            self.connection.release(request)

    def forget(self) -> None:
        """In a forked child: the leases are its parent's, and so is what comes over their connections."""
        self._lock = threading.Lock()
        for lease in self._held.values():
            lease.close()
        self._held.clear()
        self._idle.clear()
        self._lines.clear()
        self._requests.clear()
        self.pipelines.clear()

    def unused(self) -> bool:
        with self._lock:
            return not self._held and not self._lines and not self._requests

    def hello(self, lease: Lease) -> bytes:
        task, client = current.get(), describe_client()
        return json.dumps(
            {
                "role": "calls",
                "lease": lease.id,
                "label": client.label,
                # A task that calls a task speaks for its notebook: both share the names there.
                "notebook": client.notebook if task is None else task.notebook,
                "process": process_token() if task is None else task.process[0],
                "pid": 0 if task is None else task.process[1],  # 0 is this one
                "run": self.run,
                "replica": lease.name,
            }
        ).encode()

    def withdraw(self, waiter: Waiter) -> None:
        """Nobody waits there any more. A lease that came at the same moment goes to the next."""
        with self._lock:
            self._remove(waiter)
        granted = waiter.leave()
        if granted is not None:
            self.give_back(granted)
        self.adjust()

    # --- what the broker says; on the connection's thread

    def granted(self, message: p.Granted) -> None:
        with self._lock:
            if self._requests.pop(message.lease, None) is None:
                return  # withdrawn while the grant was on its way; the release is, too
            lease = self._held[message.lease] = Lease(self, message)
        self.give_back(lease)

    def refused(self, message: p.Refused) -> None:
        with self._lock:
            if message.lease not in self._requests:
                return  # withdrawn while the refusal was on its way
            task = self._requests.pop(message.lease)
            waiter = next((each for each in self._all() if each.task == task), None) or next(self._all(), None)
            if waiter is not None:
                self._remove(waiter)
        if waiter is not None:
            if waiter.parent:  # the broker knows only for whom the parent's lease was asked first
                message = message.model_copy(update={"detail": {**message.detail, "parent": waiter.parent}})
            waiter.refuse(explain_refusal(message))
        self.adjust()

    def recalled(self, lease: str) -> None:
        with self._lock:
            held = self._held.get(lease)
            if held is None:
                return
            held.recalled = True
            idle = self._unlist(held)
        if idle:
            self.drop(held)

    def lost(self, message: p.Lost) -> None:
        with self._lock:
            lease = self._held.get(message.lease)
            idle = lease is not None and self._unlist(lease)
        if lease is not None:
            _tell(lease, message)
            if idle:
                self.drop(lease)

    def broken(self, lease: str, error: errors.BaseRuntimeError) -> None:
        with self._lock:
            held = self._held.get(lease)
            self._requests.pop(lease, None)
            waiting = list(self._all())
            self._lines.clear()
            idle, self._idle = self._idle, []
            for each in idle:
                self._held.pop(each.id, None)
        if held is not None:
            _tell(held, error)
        for each in idle:
            each.close()
        for waiter in waiting:
            waiter.refuse(error)

    # --- with the lock held

    def _unlist(self, lease: Lease) -> bool:
        """Let nobody take it any more; False if somebody has."""
        if lease not in self._idle:
            return False
        self._idle.remove(lease)
        return True

    def _all(self) -> Iterator[Waiter]:
        return itertools.chain.from_iterable(self._lines.values())

    def _wanted(self) -> int:
        """How many requests to have at the broker: more than the pool has slots would only be work for it."""
        slots = MAX_REQUESTS if self._slots is None else self._slots()
        wanted = sum(len(line) if owner is None else min(len(line), slots) for owner, line in self._lines.items())
        return min(wanted, MAX_REQUESTS)

    def _unasked(self) -> str:
        """The first task in line for which there is no request yet."""
        asked = Counter(self._requests.values())
        task = ""
        for waiter in self._all():
            task = waiter.task
            if not asked[task]:
                break
            asked[task] -= 1
        return task

    def _remove(self, waiter: Waiter) -> bool:
        line = self._lines.get(waiter.owner)
        if not line:
            return False
        if line[0] is waiter:
            line.popleft()
        else:
            try:
                line.remove(waiter)
            except ValueError:
                return False
        if not line:
            del self._lines[waiter.owner]
        return True

    def _next(self) -> Waiter | None:
        heads = [line[0] for line in self._lines.values() if line[0].can_start]
        return max(heads, key=lambda waiter: waiter.priority, default=None)  # of equal ones the first

    def _serve(self, lease: Lease) -> bool:
        while (waiter := self._next()) is not None:
            self._remove(waiter)
            if waiter.owner in self._lines:  # the others have their turn before
                self._lines[waiter.owner] = self._lines.pop(waiter.owner)
            if waiter.grant(lease):
                return True
        return False

    def _surplus(self, wanted: int) -> list[str]:
        surplus = []
        while len(self._requests) > wanted:
            lease, _ = self._requests.popitem()
            surplus.append(lease)
        return surplus

    # --- without it

    def _send_request(self, lease: str, task: str) -> None:
        self.connection.listen(lease, self)
        try:
            self.connection.send(
                p.Acquire(lease=lease, pool=self.pool, task=task, parent=self.parent, session=self.session)
            )
        except errors.BrokerGone as gone:  # for those who wait; the caller may be one whose own call went well
            self.broken(lease, gone)
            return
        with self._lock:
            withdrawn = lease not in self._requests and lease not in self._held
        if withdrawn:  # by another thread, whose release may have overtaken the request: then it would never end
            self.connection.release(lease)

    def _let_go(self) -> None:
        """Release what has been idle for the linger time; look again while anything is held."""
        now, linger_s = time.monotonic(), self.linger_s
        with self._lock:
            old = [lease for lease in self._idle if now - lease.idle_since >= linger_s]
            self._idle = [lease for lease in self._idle if now - lease.idle_since < linger_s]
            self._timer = bool(self._idle)
            if self._timer:
                self.connection.call_later(linger_s / self.looks, self._let_go)
        for lease in old:
            self.drop(lease)


_tickets: Final = itertools.count()


class Waiter:
    """One call in line for a lease.

    Attributes:
        owner: The pipeline of the event loop that makes the call; None for a thread's.
        ticket: Counts the calls of this process: one that has to ask again comes before those that are younger.
        parent: The task that makes the call, if it is one.
    """

    owner: object = None

    def __init__(self, task: str, priority: int) -> None:
        self.task = task
        self.priority = priority
        self.ticket = next(_tickets)
        caller = current.get()
        self.parent = "" if caller is None else caller.task

    @property
    def can_start(self) -> bool:
        """Whether it could use a lease now."""
        return True

    def grant(self, lease: Lease) -> bool:
        """It gets this lease; False if it does not want one any more. The group's lock is held."""
        raise NotImplementedError

    def refuse(self, error: errors.BaseRuntimeError) -> None:
        """There will be none."""
        raise NotImplementedError

    def leave(self) -> Lease | None:
        """It is out of the line; the lease that it was given at the same moment."""
        raise NotImplementedError


class ThreadWaiter(Waiter):
    """A call of a thread that blocks on `future`."""

    def __init__(self, group: LeaseGroup, task: str, priority: int) -> None:
        super().__init__(task, priority)
        self.group = group
        self.future: Future[Lease] = Future()

    def withdraw(self) -> None:
        self.group.withdraw(self)

    def grant(self, lease: Lease) -> bool:
        if not self.future.set_running_or_notify_cancel():
            return False
        self.future.set_result(lease)
        return True

    def refuse(self, error: errors.BaseRuntimeError) -> None:
        with suppress(InvalidStateError):  # it was cancelled at the same moment
            self.future.set_exception(error)

    def leave(self) -> Lease | None:
        if self.future.cancel() or self.future.exception() is not None:
            return None
        return self.future.result()


def _tell(lease: Lease, why: p.Lost | errors.BaseRuntimeError) -> None:
    with suppress(InvalidStateError):  # the broker said why, and then it ended, too
        lease.is_lost = True
        lease.lost.set_result(why)
