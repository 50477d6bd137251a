"""Talking to the broker without threads: ask, wait a limited time, go."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from pydantic import ValidationError

from .. import _version, errors, runtime
from ..client import text
from ..core import protocol as p
from ..core.snapshot import PoolView
from ..core.timeline import TimelineView
from .terminal import UNKNOWN, complain

M = TypeVar("M", bound=p.Message)

ANSWER_S: Final = 5.0
"""How long the broker may take to answer before it counts as hanging."""
MEASURED_S: Final = 8.0
"""How long a driver may take; the broker gives up on it before that."""


class Closed(Exception):
    """The broker ended the conversation."""


class Conversation:
    """The protocol without threads: a command asks, waits a limited time, and goes.

    Args:
        stream: Connected to the broker's socket.
        answer_s: How long an answer may take.
    """

    def __init__(self, stream: socket.socket, answer_s: float = ANSWER_S) -> None:
        self._stream = stream
        self._answer_s = answer_s
        self._lines: list[bytes] = []
        self._rest = b""
        self.send(p.Hello(version=_version.__version__, label="flyte-jupyter", kind="cli", pid=os.getpid()))
        answer = self.receive(answer_s)
        if isinstance(answer, p.Rejected):
            raise errors.VersionMismatch(_version.__version__, answer.version, "broker")
        if not isinstance(answer, p.Welcome):
            raise _hangs()
        self.version = answer.version
        self.pid = answer.pid

    def send(self, message: p.ToBroker) -> None:
        try:
            self._stream.sendall(p.to_line(message))
        except TimeoutError:
            raise _hangs() from None
        except OSError:
            raise Closed from None

    def receive(self, timeout: float) -> p.FromBroker | None:
        """The next message; None if there is none in time. Raises Closed."""
        deadline = time.monotonic() + timeout
        while not self._lines:
            self._stream.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._stream.recv(1 << 16)
            except TimeoutError:
                return None
            except OSError:
                raise Closed from None
            finally:
                self._stream.settimeout(self._answer_s)
            if not data:
                raise Closed
            *self._lines, self._rest = (self._rest + data).split(b"\n")
        try:
            return p.from_broker.validate_json(self._lines.pop(0))
        except ValidationError as problem:
            raise errors.ProtocolError(f"the broker said something unknown ({problem.title})") from None

    def snapshot(self, *, usage: bool = False) -> p.Snapped:
        """The state now; with `usage` it is measured what is used, if that is quick."""
        self.send(p.Watch(once=True, usage=usage))
        return self._hear(p.Snapped)

    def first_measurement(self) -> p.Snapped:
        """The state once it is known what is used, or why that is not known."""
        self.send(p.Watch(usage=True))
        return self._hear(p.Snapped, lambda snapped: snapped.usage.measured_at is not None, MEASURED_S)

    def timeline(self, pool: str) -> TimelineView:
        """What that pool did in the last minutes. Raises NoSuchPool if it has just been forgotten."""
        self.send(p.AskTimeline(pool=pool))
        timeline = self._hear(p.ToldTimeline).timeline
        if timeline is None:
            raise errors.NoSuchPool(pool, gpus=0)
        return timeline

    def _hear(self, kind: type[M], fits: Callable[[M], bool] = lambda message: True, seconds: float | None = None) -> M:
        """The first message of that kind that fits; it may take so many seconds, or as long as any answer."""
        deadline = time.monotonic() + (self._answer_s if seconds is None else seconds)
        while (left := deadline - time.monotonic()) > 0:
            message = self.receive(left)
            if isinstance(message, p.Failed):
                raise errors.ProtocolError(f"the broker did not understand: {message.why}")
            if isinstance(message, kind) and fits(message):
                return message
        raise _hangs()

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


def _hangs() -> errors.BrokerUnavailable:
    holder = runtime.lock_holder(runtime.runtime_folder())
    return errors.BrokerUnavailable(
        f"a broker runs{f' (pid {holder})' if holder else ''}, but it does not answer",
        do="Run `flyte-jupyter stop`, which ends it; the next call starts another.",
    )


@contextlib.contextmanager
def talk(answer_s: float = ANSWER_S) -> Iterator[Conversation | None]:
    """A conversation with the broker, or None if none runs."""
    path = runtime.broker_socket(runtime.private_folder())
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        stream.settimeout(answer_s)
        try:
            stream.connect(str(path))
            if runtime.peer_uid(stream) != os.getuid():
                raise errors.BrokerUnavailable(
                    f"the process that answers at {path} belongs to another user",
                    do=f"Set {runtime.VARIABLE} to a folder of your own.",
                )
            conversation = Conversation(stream, answer_s)
        except (FileNotFoundError, ConnectionRefusedError, Closed):
            conversation = None
        except (TimeoutError, BlockingIOError):
            raise _hangs() from None
        yield conversation


@contextlib.contextmanager
def one_pool(wanted: str) -> Iterator[tuple[Conversation, PoolView]]:
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
        try:
            yield broker, found[0]
        except Closed:
            raise errors.BrokerGone() from None


def named(wanted: str, pools: Sequence[PoolView]) -> list[PoolView]:
    """By name, or by the beginning of the key. Raises NoSuchPool."""
    found = [view for view in pools if view.name == wanted]
    if not found and re.fullmatch("[0-9a-f]{6,}", wanted):
        found = [view for view in pools if view.key.startswith(wanted)]
    if not found:
        raise errors.NoSuchPool(wanted, {view.name: text.pool_state(view) for view in pools}, gpus=0)
    return found
