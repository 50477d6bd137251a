"""Moves the bytes of a blocking call: a cell's sync call, without a thread hop.

`Conversation` is the life of a call as a pure object, frames in and frames out; the `pipeline` serves it, too.
"""

from __future__ import annotations

import asyncio
import pickle
import select
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from .. import errors, modules
from ..core.definitions import Closure
from ..core.frames import OUTCOME, WITHDRAWN, Buffer, Frame, Kind, encode
from . import outputs
from .capture import Captured
from .leases import Channel

TICK_S: Final = 0.1


class ChannelLost(Exception):
    """The replica's end is closed. `started` is False when it is certain that the call had not begun."""

    def __init__(self, started: bool) -> None:
        self.started = started


class Conversation:
    """A call, from its first frame to its outcome. Frames in, frames out; no I/O."""

    __slots__ = ("_closures", "_names", "_number", "answered", "outcome")

    def __init__(self, number: int, closures: Sequence[Closure], names: dict[str, Any]) -> None:
        self._number = number
        self._closures = closures
        self._names = names  # of the notebook that calls
        self.answered = False  # the replica has shown that it knows of this call
        self.outcome: Frame | None = None

    def receive(self, frame: Frame) -> list[Buffer] | None:
        """Take one frame; what to send back, if anything."""
        if frame.kind == WITHDRAWN and frame.call <= self._number < frame.call + frame.flags:
            self.outcome = frame  # it will not begin, and nothing else will come of it
            return None
        if frame.call != self._number:
            return None  # of a call before, which was given up
        self.answered = True
        if frame.kind == OUTCOME:
            self.outcome = frame
        elif frame.kind == Kind.OUTPUT:
            outputs.show(frame.flags, frame.body)
        elif frame.kind == Kind.INPUT:
            text, nobody = outputs.answer(frame.body)
            return encode(Kind.ANSWER, self._number, text, flags=nobody)
        elif frame.kind == Kind.NEED:
            has: dict[str, tuple[str, ...] | None] = pickle.loads(frame.body)
            missing = [closure.beyond(has) for closure in self._closures]
            return encode(Kind.DEFINE, self._number, pickle.dumps(missing, 5))
        elif frame.kind == Kind.WANT:
            return encode(Kind.GIVE, self._number, _given(self._names, *pickle.loads(frame.body)))
        return None


def _given(names: dict[str, Any], name: str, has: dict[str, tuple[str, ...] | None] | None) -> bytes:
    """The definitions of a name that a task looks for; empty if the notebook has no such name, or cannot send it.

    Or, if `has` is None, the text that the module of that name was loaded from.
    """
    if has is None:
        loaded = modules.loaded(name)
        return b"" if loaded is None else pickle.dumps(loaded.text, 5)
    try:
        closure = Captured.of_names([name], names).closure()
    except (NameError, errors.ArgumentNotSerializable):
        return b""
    return pickle.dumps(closure.beyond(has), 5)


class Conversations(Conversation):
    """Several calls of one channel; over when all of them are."""

    __slots__ = ("_talks",)

    def __init__(self, talks: Sequence[Conversation]) -> None:
        super().__init__(talks[-1]._number, (), {})
        self._talks = talks

    def receive(self, frame: Frame) -> list[Buffer] | None:
        reply = None
        for talk in self._talks:
            reply = talk.receive(frame) or reply
        if all(talk.outcome is not None for talk in self._talks):
            self.outcome = self._talks[-1].outcome
        return reply


def drive(channel: Channel, talk: Conversation, pieces: list[Buffer], until: float | None) -> Frame:
    """Move bytes until the outcome is there; TimeoutError at `until` (monotonic seconds)."""
    stream, reader = channel.socket, channel.reader
    sent = False
    try:
        channel.send(pieces)
        sent = True
        while True:
            while (frame := reader.next_frame()) is not None:
                reply = talk.receive(frame)
                if reply is not None:
                    channel.send(reply)
            if talk.outcome is not None:
                return talk.outcome
            if until is not None:
                _wait_readable(stream, until)
            count = stream.recv_into(reader.get_buffer())
            if count == 0:
                raise ChannelLost(started=True)
            reader.buffer_updated(count)
    except (ConnectionResetError, BrokenPipeError):
        # Reset: it was closed with our bytes unread. So the call had not begun, unless it has spoken already.
        raise ChannelLost(started=sent and talk.answered) from None


def _wait_readable(stream: socket.socket, until: float) -> None:
    poller = select.poll()
    poller.register(stream, select.POLLIN)
    if not poller.poll(max(0.0, until - time.monotonic()) * 1000):
        raise TimeoutError


class interruptible:
    """While a cell awaits, wake the loop now and then.

    ipykernel notices Ctrl-C only when its loop wakes up (ipykernel issue 881), and nothing may happen for minutes.
    """

    _ticking: int = 0
    _handle: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if "ipykernel" not in sys.modules or threading.current_thread() is not threading.main_thread():
            self._counted = False
            return
        self._counted = True
        cls = type(self)
        cls._ticking += 1
        if cls._handle is None:
            self._tick(asyncio.get_running_loop())

    def __exit__(self, *_: object) -> None:
        if self._counted:
            type(self)._ticking -= 1

    @classmethod
    def _tick(cls, loop: asyncio.AbstractEventLoop) -> None:
        cls._handle = loop.call_later(TICK_S, cls._tick, loop) if cls._ticking else None
