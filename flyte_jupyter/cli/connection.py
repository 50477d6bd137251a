"""The command line's connection to the broker: a command asks, waits a limited time, and goes."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from .. import _version, errors, runtime
from ..client import text
from ..client.dialing import dial
from ..core import protocol as p
from ..core.dialogue import (
    ANSWER_S,
    Answer,
    Dialogue,
    Mailbox,
    Question,
    Reply,
    Send,
    Waiting,
)
from ..core.snapshot import PoolView
from ..core.timeline import TimelineView
from .terminal import UNKNOWN, complain

MEASURED_S: Final = 8.0
"""How long a driver may take; the broker gives up on it before that."""


class Connection:
    """The blocking driver of a dialogue with the broker. Every method raises BrokerGone once it has ended.

    Args:
        stream: Connected to the broker's socket.
        patience_s: How long an answer may take.

    Raises:
        BrokerSilent, VersionMismatch, ProtocolError: As they say.
    """

    def __init__(self, stream: socket.socket, patience_s: float = ANSWER_S) -> None:
        hello = p.Hello(version=_version.__version__, label="flyte-jupyter", kind="cli", pid=os.getpid())
        self._stream = stream
        self._patience_s = patience_s
        self._dialogue = Dialogue(hello, patience_s)
        self._mailbox = Mailbox()
        self._deliver(self._dialogue.connect(now=time.monotonic(), pid=runtime.peer_pid(stream) or None))
        while self._dialogue.state != "open":
            self._step()

    @property
    def version(self) -> str:
        return self._dialogue.version

    @property
    def pid(self) -> int:
        assert self._dialogue.pid is not None
        return self._dialogue.pid

    def send(self, message: p.Message) -> None:
        self._write(self._dialogue.tell(message))

    def receive(self, timeout: float) -> p.FromBroker | None:
        """The next message that answers no question; None if there is none in time."""
        deadline = time.monotonic() + timeout
        while not self._mailbox.notices and time.monotonic() < deadline:
            self._step(deadline)
        return self._mailbox.notices.popleft() if self._mailbox.notices else None

    def snapshot(self, *, usage: bool = False) -> p.Snapped:
        """The state now; with `usage` it is measured what is used, if that is quick."""
        answer = self._ask(p.Watch(once=True, usage=usage))
        assert isinstance(answer, p.Snapped)
        return answer

    def timeline(self, pool: str) -> TimelineView:
        """What that pool did in the last minutes. Raises NoSuchPool if it has just been forgotten."""
        answer = self._ask(p.AskTimeline(pool=pool))
        assert isinstance(answer, p.ToldTimeline)
        if answer.timeline is None:
            raise errors.NoSuchPool(pool, gpus=0)
        return answer.timeline

    def first_measurement(self) -> p.Snapped:
        """The state once it is known what is used, or why that is not known."""
        self.send(p.Watch(usage=True))
        deadline = time.monotonic() + MEASURED_S
        while (notice := self.receive(deadline - time.monotonic())) is not None:
            if isinstance(notice, p.Snapped) and notice.usage.measured_at is not None:
                return notice
        raise self._dialogue.silent(MEASURED_S)

    def until(self, holds: Callable[[p.Snapped], bool], timeout: float) -> p.Snapped | None:
        """The first state in which `holds`; None if `timeout` passes before."""
        deadline = time.monotonic() + timeout
        while True:
            snapped = self.snapshot()
            if holds(snapped):
                return snapped
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)

    def _ask(self, question: Question) -> Answer:
        number, line = self._dialogue.ask(question, now=time.monotonic())
        self._write(line)
        while not self._mailbox.has(number):
            self._step()
        return self._mailbox.take(number)

    def _write(self, line: bytes) -> None:
        self._stream.settimeout(self._patience_s)
        try:
            self._stream.sendall(line)
        except TimeoutError:
            raise self._dialogue.silent(self._patience_s) from None
        except OSError:
            raise self._dialogue.gone() from None

    def _step(self, until: float = math.inf) -> None:
        """Wait for bytes, for an instant of the dialogue's, or `until`."""
        due = min(until, self._dialogue.next_deadline())
        self._stream.settimeout(None if due == math.inf else max(0.001, due - time.monotonic()))
        try:
            data = self._stream.recv(1 << 16)
        except TimeoutError:
            self._deliver(self._dialogue.tick(now=time.monotonic()))
            return
        except OSError:
            data = b""
        if data:
            self._deliver(self._dialogue.receive(data, now=time.monotonic()))
        else:
            self._dialogue.disconnect()
            self._deliver(self._dialogue.end())  # a command waits for no other broker

    def _deliver(self, replies: list[Reply]) -> None:
        for reply in replies:
            match reply:
                case Send(data):
                    self._write(data)
                case Waiting(text=line):
                    complain(line)
                case _:
                    self._mailbox.put(reply)


@contextlib.contextmanager
def talk(patience_s: float = ANSWER_S) -> Iterator[Connection | None]:
    """A connection to the broker, or None if none runs."""
    stream = dial(runtime.private_folder(), patience_s)
    if stream is None:
        yield None
        return
    with stream:
        try:
            connection = Connection(stream, patience_s)
        except errors.BrokerGone:  # it was just ending
            connection = None
        yield connection


@contextlib.contextmanager
def one_pool(wanted: str) -> Iterator[tuple[Connection, PoolView]]:
    """The one pool that a verb is for."""
    with talk() as broker:
        if broker is None:
            raise errors.NoSuchPool(wanted, gpus=0)
        found = named(wanted, broker.snapshot().snapshot.pools)
        if len(found) > 1:
            found = [view for view in found if not (view.single_use or view.retiring)] or found
        if len(found) > 1:
            keys = ", ".join(f"{view.key[:8]} ({text.pool_state(view)})" for view in found)
            complain(f"Several pools are named {wanted}. Say which: {keys}.")
            raise SystemExit(UNKNOWN)
        yield broker, found[0]


def named(wanted: str, pools: Sequence[PoolView]) -> list[PoolView]:
    """By name, or by the beginning of the key. Raises NoSuchPool."""
    found = [view for view in pools if view.name == wanted]
    if not found and re.fullmatch("[0-9a-f]{6,}", wanted):
        found = [view for view in pools if view.key.startswith(wanted)]
    if not found:
        raise errors.NoSuchPool(wanted, {view.name: text.pool_state(view) for view in pools}, gpus=0)
    return found
