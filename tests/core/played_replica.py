"""The replica's half of a connection for calls: the rules of `kernel.calls`, without sockets, threads and user code.

Each method is one step that the real one takes without a pause; what comes in between is the test's choice.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from flyte_jupyter.core.frames import Frame, FrameReader, Kind, Status, encode


class Wire:
    """A socket between a client and a replica, with the bytes that neither side has taken yet."""

    def __init__(self) -> None:
        self.up = bytearray()
        self.down = bytearray()
        self.hung_up = False
        """The client has closed its end."""
        self.ended = False
        """The replica has."""
        self.reset = False
        """Bytes were left unread then."""


@dataclass
class Running:
    """A call between its arrival and its outcome."""

    frame: Frame
    begun: bool = False
    cancels: int = 0
    raised: int = 0


class PlayedReplica:
    """One lease's calls, in order, one at a time.

    Args:
        known: The function that it has already.
        began: Is told of the frame of each call that begins.
        stopped: Is told of the frame of each call that is interrupted while it runs.
    """

    def __init__(self, known: bytes, began: Callable[[Frame], None], stopped: Callable[[Frame], None]) -> None:
        self.wire = Wire()
        self.running: Running | None = None
        self.backlog = bytearray()
        self.closed = False
        self._told_began = began
        self._told_stopped = stopped
        self._reader = FrameReader()
        self._frames: deque[Frame] = deque()
        self._undefined: Frame | None = None
        self._known = {known}
        self._withdrawn: set[int] = set()
        self._begun = 0

    # --- bytes

    def read(self, count: int) -> None:
        self._reader.feed(self.wire.up[:count])
        del self.wire.up[:count]
        while (frame := self._reader.next_frame()) is not None:
            if frame.kind in (Kind.CALL, Kind.DEFINE):
                self._frames.append(frame)
        self._advance()

    def flush(self, count: int) -> None:
        """So many bytes go into the client's socket."""
        if not self.wire.hung_up:
            self.wire.down += self.backlog[:count]
        del self.backlog[:count]
        self._advance()

    def notice(self) -> None:
        """That the client has hung up."""
        if self.wire.hung_up:
            self.closed = True
            self.backlog.clear()
            if self.running is not None:
                self.running.cancels += 1

    def die(self) -> None:
        self.wire.ended = True
        self.wire.reset = bool(self.wire.up)
        self.closed = True
        self.running = None
        self.backlog.clear()

    def send(self, kind: Kind, call: int, body: bytes = b"", flags: int = 0) -> None:
        if not self.closed:
            self.backlog += b"".join(encode(kind, call, body, flags=flags))

    # --- the control thread

    def withdraw(self, first: int, last: int) -> None:
        first = max(first, self._begun + 1)
        self._withdrawn.update(range(first, last + 1))
        self.send(Kind.WITHDRAWN, first, flags=max(0, last + 1 - first))
        self._forget_undefined()

    def cancel(self, number: int, *, by_client: bool = True) -> None:
        if number <= self._begun:
            running = self.running
            if running is not None and running.frame.call == number:
                running.cancels += 1
            return
        self._withdrawn.add(number)
        if by_client:
            self.send(Kind.WITHDRAWN, number, flags=1)
        else:
            self.send(Kind.OUTCOME, number, flags=Status.CANCELLED)
        self._forget_undefined()

    def interrupt(self) -> None:
        """The broker stops what runs in this lease."""
        if self.running is not None:
            self.cancel(self.running.frame.call, by_client=False)

    # --- the main thread

    def begin(self) -> None:
        """The turn of the call that was taken up has come."""
        running = self.running
        assert running is not None
        number = running.frame.call
        if self._dismissed(number):
            self._finish()
            return
        self._begun = number
        running.begun = True
        if running.cancels:
            self.end(Status.CANCELLED)
        else:
            self._told_began(running.frame)

    def say(self, kind: Kind) -> None:
        assert self.running is not None
        self.send(kind, self.running.frame.call)

    def meet_interrupt(self) -> None:
        """It is raised in the running call, whose client hears so."""
        running = self.running
        assert running is not None
        running.raised = running.cancels
        self._told_stopped(running.frame)
        self.send(Kind.INTERRUPTED, running.frame.call)

    def end(self, status: Status) -> None:
        assert self.running is not None
        self.send(Kind.OUTCOME, self.running.frame.call, bytes(self.running.frame.buffers[0]), status)
        self._finish()

    def _finish(self) -> None:
        self.running = None
        self._advance()

    def _advance(self) -> None:
        while (frame := self._next()) is not None:
            if frame.kind == Kind.DEFINE:
                waiting, self._undefined = self._undefined, None
                assert waiting is not None
                assert waiting.call == frame.call
                self._known.add(bytes(waiting.body))
                frame = waiting
            if self._dismissed(frame.call):
                continue
            if bytes(frame.body) in self._known:
                self.running = Running(frame)
            else:
                self._undefined = frame
                self.send(Kind.NEED, frame.call, pickle.dumps({}, 5))

    def _next(self) -> Frame | None:
        if self.running is not None or self.closed or self.backlog:
            return None
        if self._undefined is None:
            # The definitions of a call that was dismissed meanwhile are of no use.
            while self._frames and self._frames[0].kind == Kind.DEFINE:
                self._frames.popleft()
            return self._frames.popleft() if self._frames else None
        for index, frame in enumerate(self._frames):
            if frame.kind == Kind.DEFINE and frame.call == self._undefined.call:
                del self._frames[index]
                return frame
        return None

    def _forget_undefined(self) -> None:
        if self._undefined is not None and self._dismissed(self._undefined.call):
            self._undefined = None
            self._advance()

    def _dismissed(self, number: int) -> bool:
        if number in self._withdrawn:
            self._withdrawn.discard(number)
            return True
        return False
