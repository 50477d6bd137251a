"""Slots on replicas, from the side that uses them: asked for once, kept while there is work and a little longer.

A lease is one slot on one replica, and one connection to it. A warm call takes an idle lease and goes straight to the
kernel; the broker is asked only when none is idle.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from .. import errors
from ..core import protocol as p
from ..core.context import current
from ..core.format import last_line
from ..core.frames import FIRST_CALL, Buffer, FrameReader, Kind, encode
from ..memory import Exchange, exchange_pair
from ..runtime import peer_uid
from .broker import Connection
from .identity import describe_client, process_token
from .place import Place

if TYPE_CHECKING:
    from .pipeline import Pipeline

LINGER_S: Final = 0.05
"""How long an idle lease is kept: the next call of a loop is then one round trip."""
MAX_REQUESTS: Final = 128
"""Leases asked for at once per environment; further calls wait in this process."""
LOST_S: Final = 2.0
"""How long the broker may take to say why a replica is gone."""


class Channel:
    """The client's end of a lease's connection. `drivers` and the `pipeline` move the bytes."""

    __slots__ = ("_told", "address", "calls", "cut", "files", "reader", "socket")

    def __init__(self, address: str, hello: bytes) -> None:
        self.address = address
        self._told: Place | None = None
        self.files: Exchange | None = None
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(address)
            if peer_uid(self.socket) != os.getuid():
                raise errors.ProtocolError(f"the process at {address} belongs to another user")
            self._say_hello(b"".join(encode(Kind.HELLO, 0, hello)))
        except BaseException:
            self.close()
            raise
        self.reader = FrameReader(None if self.files is None else self.files.map)
        self.calls = FIRST_CALL - 1  # the number of the last one
        self.cut = False  # in the middle of a frame: what followed would not be understood

    def moved(self) -> list[Buffer]:
        """What the replica must hear before the next call: where this process is, if that is new."""
        if self._told is not None and self._told.still_holds():
            return []
        before, self._told = self._told, Place.here()
        return [] if self._told == before else encode(Kind.PLACE, 0, self._told.described().encode())

    def send(self, pieces: list[Buffer]) -> None:
        """All of it; an interrupt may come in between."""
        self.cut = True
        for piece in pieces:
            self.socket.sendall(piece)
        self.cut = False

    def _say_hello(self, data: bytes) -> None:
        """Along with the first byte goes the replica's end of the socket for memory files."""
        pair = exchange_pair()
        sent = 0
        if pair is not None:
            self.files, theirs = pair
            try:
                sent = socket.send_fds(self.socket, [data], [theirs])
            finally:
                os.close(theirs)
        self.socket.sendall(data[sent:])

    def close(self) -> None:
        self.socket.close()
        if self.files is not None:
            self.files.close()


class Lease:
    """One slot, while this process holds it."""

    __slots__ = ("_channel", "address", "group", "id", "idle_since", "is_lost", "lost", "name", "recalled", "replica")

    def __init__(self, group: LeaseGroup, granted: p.Granted) -> None:
        self.group = group
        self.id = granted.lease
        self.replica = granted.replica
        self.name = granted.name
        self.address = granted.address
        self.recalled = False
        self.idle_since = 0.0
        self.is_lost = False  # as `lost.done()`, which takes longer to ask
        self.lost: Future[p.Lost | errors.BaseRuntimeError] = Future()
        self._channel: Channel | None = None

    def channel(self) -> Channel:
        """Its connection; made at the first use. OSError if the replica is gone."""
        if self._channel is None:
            self._channel = Channel(self.address, self.group.hello(self))
        return self._channel

    def why_lost(self, timeout: float = LOST_S) -> p.Lost | errors.BaseRuntimeError | None:
        """After the connection broke: what the broker says about it; None if it says nothing in time."""
        try:
            return self.lost.result(timeout)
        except TimeoutError:
            return None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def cancel(self, call: int) -> None:
        """Stop that call and no other."""
        self._order(Kind.CANCEL, call, self.id)

    def withdraw(self, first: int, last: int) -> None:
        """Take back those of these calls that have not begun; a WITHDRAWN on the channel says which."""
        self._order(Kind.WITHDRAW, first, json.dumps([self.id, last]))

    def _order(self, kind: Kind, call: int, body: str) -> None:
        """On a connection of its own, which the replica's control thread reads."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.connect(self.address)
            pieces = encode(Kind.HELLO, 0, b'{"role": "control"}') + encode(kind, call, body.encode())
            control.sendall(b"".join(pieces))


class LeaseGroup:
    """The leases of one environment that one caller holds: this process, or one task when it calls tasks."""

    def __init__(self, connection: Connection, pool: str, parent: str | None, run: str) -> None:
        self.connection = connection
        self.pool = pool
        self.parent = parent
        self.run = run
        self._lock = threading.Lock()
        self._idle: list[Lease] = []
        self._held: dict[str, Lease] = {}
        self._waiting: deque[Waiter] = deque()
        self._requests: dict[str, str] = {}  # lease -> task, asked for and not granted yet
        self._timer = False
        self.pipelines: dict[asyncio.AbstractEventLoop, Pipeline] = {}

    def take(self) -> Lease | None:
        """An idle lease, if there is one."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def ask(self, task: str, owner: object = None, priority: int = 0) -> Waiter:
        """Wait for a lease; `waiter.future` gets it, or the reason why there will be none.

        Args:
            owner: Who keeps leases as long as it has calls for them, and asks `contended` whether it may.
            priority: Who has a higher one is served first, among those who wait in this group.
        """
        waiter = Waiter(self, task, owner, priority)
        with self._lock:
            line_up(self._waiting, waiter)
            if self._idle:  # given back since the caller looked
                self._serve(self._idle.pop())
            request = self._request(task)
        if request is not None:
            self._send_request(*request)
        return waiter

    def contended(self, owner: object) -> bool:
        """Whether anybody else in this process waits for a lease of this group."""
        return bool(self._waiting) and any(waiter.owner is not owner for waiter in list(self._waiting))

    def give_back(self, lease: Lease) -> None:
        """The call in it is over: the next one waiting gets it, or it lingers."""
        surplus: Iterable[str] = ()
        more: tuple[str, str] | None = None
        with self._lock:
            over = lease.recalled or lease.is_lost
            if over:
                pass
            elif self._serve(lease):
                surplus = self._surplus()
                more = self._request(self._waiting[0].task) if self._waiting else None
            else:
                lease.idle_since = time.monotonic()
                self._idle.append(lease)
                if not self._timer:
                    self._timer = True
                    self.connection.call_later(LINGER_S, self._let_go)
        if over:
            self.drop(lease)
        if more is not None:
            self._send_request(*more)
        for request in surplus:
            self.connection.release(request)

    def drop(self, lease: Lease) -> None:
        """It is not used again: its replica is gone, it was recalled, or its call did not end."""
        with self._lock:
            self._held.pop(lease.id, None)
            with suppress(ValueError):
                self._idle.remove(lease)
        lease.close()
        self.connection.release(lease.id)

    def close(self) -> None:
        """Give every lease back, also those that linger."""
        with self._lock:
            leases = list(self._held.values())
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
        self._waiting.clear()
        self._requests.clear()
        self.pipelines.clear()

    def unused(self) -> bool:
        with self._lock:
            return not self._held and not self._waiting and not self._requests

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
            with suppress(ValueError):
                self._waiting.remove(waiter)
            surplus = self._surplus()
        if not waiter.future.cancel() and waiter.future.exception() is None:
            self.give_back(waiter.future.result())
        for request in surplus:
            self.connection.release(request)

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
            waiter = next((each for each in self._waiting if each.task == task), None)
            if waiter is None and self._waiting:
                waiter = self._waiting[0]
            if waiter is not None:
                self._waiting.remove(waiter)
            more = self._request(self._waiting[0].task) if self._waiting else None
        if more is not None:
            self._send_request(*more)
        if waiter is not None:
            if waiter.parent:  # the broker knows only for whom the parent's lease was asked first
                message = message.model_copy(update={"detail": {**message.detail, "parent": waiter.parent}})
            _fail(waiter, explain_refusal(message))

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
            waiting, self._waiting = self._waiting, deque()
            idle, self._idle = self._idle, []
            for each in idle:
                self._held.pop(each.id, None)
        if held is not None:
            _tell(held, error)
        for each in idle:
            each.close()
        for waiter in waiting:
            _fail(waiter, error)

    # --- with the lock held

    def _unlist(self, lease: Lease) -> bool:
        """Let nobody take it any more; False if somebody has."""
        if lease not in self._idle:
            return False
        self._idle.remove(lease)
        return True

    def _request(self, task: str) -> tuple[str, str] | None:
        if len(self._requests) >= min(len(self._waiting), MAX_REQUESTS):
            return None
        lease = uuid.uuid4().hex[:16]
        self._requests[lease] = task
        return lease, task

    def _serve(self, lease: Lease) -> bool:
        while self._waiting:
            waiter = self._waiting.popleft()
            if waiter.future.set_running_or_notify_cancel():
                waiter.future.set_result(lease)
                return True
        return False

    def _surplus(self) -> Iterable[str]:
        surplus = []
        while len(self._requests) > len(self._waiting):
            lease, _ = self._requests.popitem()
            surplus.append(lease)
        return surplus

    # --- without it

    def _send_request(self, lease: str, task: str) -> None:
        self.connection.listen(lease, self)
        try:
            self.connection.send(p.Acquire(lease=lease, pool=self.pool, task=task, parent=self.parent))
        except errors.BrokerGone as gone:  # for those who wait; the caller may be one whose own call went well
            self.broken(lease, gone)
            return
        with self._lock:
            withdrawn = lease not in self._requests and lease not in self._held
        if withdrawn:  # by another thread, whose release may have overtaken the request: then it would never end
            self.connection.release(lease)

    def _let_go(self) -> None:
        """Release what has been idle for the linger time; look again while anything is held."""
        now = time.monotonic()
        with self._lock:
            old = [lease for lease in self._idle if now - lease.idle_since >= LINGER_S]
            self._idle = [lease for lease in self._idle if now - lease.idle_since < LINGER_S]
            self._timer = bool(self._idle)
            if self._timer:
                self.connection.call_later(LINGER_S, self._let_go)
        for lease in old:
            self.drop(lease)


class Ranked(Protocol):
    """Who waits in a line."""

    @property
    def priority(self) -> int: ...


R = TypeVar("R", bound=Ranked)


def line_up(line: deque[R], new: R) -> None:
    """Put it behind all of its own priority, and before those of a lower one."""
    place = len(line)
    while place and line[place - 1].priority < new.priority:
        place -= 1
    line.insert(place, new)


class Waiter:
    """One call that waits for a lease."""

    __slots__ = ("future", "group", "owner", "parent", "priority", "task")

    def __init__(self, group: LeaseGroup, task: str, owner: object = None, priority: int = 0) -> None:
        self.group = group
        self.task = task
        self.owner = owner
        self.priority = priority
        caller = current.get()
        self.parent = "" if caller is None else caller.task
        self.future: Future[Lease] = Future()

    def withdraw(self) -> None:
        self.group.withdraw(self)


def _fail(waiter: Waiter, error: BaseException) -> None:
    with suppress(InvalidStateError):  # it was cancelled at the same moment
        waiter.future.set_exception(error)


def _tell(lease: Lease, why: p.Lost | errors.BaseRuntimeError) -> None:
    with suppress(InvalidStateError):  # the broker said why, and then it ended, too
        lease.is_lost = True
        lease.lost.set_result(why)


def explain_refusal(message: p.Refused) -> errors.BaseRuntimeError:
    """The broker's reason as the error that a caller sees."""
    detail = message.detail
    pool = detail.get("pool", "")
    match message.reason:
        case "no-such-pool":
            return errors.NoSuchPool(pool, [name for name in detail.get("pools", "").split(", ") if name])
        case "no-such-replica":
            return errors.NoSuchReplica(detail.get("replica", ""))
        case "no-gpu":
            return errors.NoUsableGPU(detail.get("problem") or "this machine has none", float(detail.get("wanted", 1)))
        case "no-room":
            held: dict[str, str] = {}
            for part in filter(None, detail.get("held", "").split(", ")):  # "GPU 0: infer[0]"
                device, _, holder = part.partition(": ")
                held[holder] = f"{held[holder]} and {device}" if holder in held else device
            return errors.NoRoom.gpus(pool, int(detail["wanted"]), int(detail["total"]), held)
        case "pool-failed":
            cause = detail.get("cause", "").strip()
            return errors.PoolFailed(
                pool,
                last_line(cause),
                detail.get("replica"),
                traceback=cause,
                preload=detail.get("state") != "starting",
            )
        case "pool-stopped":
            return errors.PoolStopped(pool)
        case "cancelled":
            return errors.TaskCancelled(detail["task"], queued=True)
        case "starvation":
            return errors.StarvationError(
                detail["parent"],
                detail["child"],
                pool,
                max_replicas=int(detail["replicas"]),
                concurrency=int(detail["concurrency"]),
                cell=detail.get("cell", ""),
            )
