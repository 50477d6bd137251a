"""The calls that ran in this replica and when, told to the broker a few times a second.

The main thread notes; the control thread tells, at most ten times a second, and only while there is something to tell.
Short calls in a row become one span where they are noted, and while nothing but their number changes it is told once a
second: so a flood of them costs nobody anything.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Final

from ..core.frames import Status

if TYPE_CHECKING:
    from .runner import RunningCall

TELL_S: Final = 0.1
COUNT_S: Final = 0.95
"""After a report, while a loop of short calls goes on and there is nothing to tell but how many they are."""
SHORT_S: Final = 0.05
"""A shorter call may share its span with others, and nobody is told that it runs."""
GAP_S: Final = 0.01
"""Between two short calls of one span."""
LONGEST_S: Final = 1.0
"""Of a span of several calls."""
MOST_SPANS: Final = 20
"""In one second; what ends beyond that shares one span for each outcome."""
MOST_UNTOLD: Final = 1000
"""While the broker does not listen; then the oldest are forgotten."""
SEVERAL: Final = "several tasks"
LONGEST_NAME: Final = 200

_OUTCOMES: Final = {None: None, Status.OK: "succeeded", Status.ERROR: "failed", Status.CANCELLED: "cancelled"}


@dataclass(slots=True, eq=False)
class Span:
    """One call, or several short ones in a row. `status` is None while it goes on."""

    number: int
    lease: str
    task: str
    label: str
    began: float
    ended: float = 0.0
    status: Status | None = None
    calls: int = 1
    told: int = 0
    """Of its calls, those that were counted in a report."""
    noted: bool = False
    """There is something to tell of it."""


class Recorder:
    """The calls of one replica.

    Instants are those of `time.monotonic`, which on Linux and macOS is one clock for all processes.

    Args:
        later: Has the control thread call something after so many seconds.
        running: The calls that run now.
        ready: Whether `send` would not wait.
        send: Takes a report to the broker.
    """

    def __init__(
        self,
        later: Callable[[float, Callable[[], None]], None],
        running: Callable[[], list[RunningCall]],
        ready: Callable[[], bool],
        send: Callable[[bytes], None],
    ) -> None:
        self._later = later
        self._running = running
        self._ready = ready
        self._send = send
        self._telling = threading.Lock()
        self._lock = threading.Lock()
        self._awake = False  # the control thread, so that it will look soon
        self._reported = 0.0  # when the last report was made
        self._untold: dict[int, Span] = {}
        self._used: dict[str, Span] = {}  # leases that were in use, until they are told to be idle
        self._told: dict[str, tuple[str, float]] = {}  # leases that were told to be in use: task, and since when
        self._paused: set[str] = set()  # leases between two calls, or after the last: the next look will tell
        self._missed = 0  # calls that ended in spans that nobody will be told of
        self._number = 0
        self._second = 0.0  # when the present one began
        self._spans = 0  # that were made in it
        self._crowd: dict[Status, Span] = {}  # what the others of it share

    # --- on the main thread

    def began(self, call: RunningCall) -> None:
        call.began = monotonic()
        if not self._awake:
            self._wake()

    def ended(self, call: RunningCall, now: float) -> None:
        """It is marked as ended already: see `_open`."""
        began = call.began
        span = call.channel.span
        if (
            span is not None
            and now - began < SHORT_S
            and began - span.ended < GAP_S
            and now - span.began < LONGEST_S
            and span.task == call.name
            and span.status is call.status
            and call.span is None
        ):
            # Nearly every call goes here, without the lock: only this thread writes these two, and `tell` takes
            # `noted` back before it reads them.
            span.calls += 1
            span.ended = now
            if span.noted:
                return  # so the control thread is awake, or reads this now
            with self._lock:
                self._note(span, call)
        else:
            with self._lock:
                span = call.span or self._span(call, now)
                # A call that follows a long one is no part of it.
                call.channel.span = span if now - began < SHORT_S else None
                span.status = call.status
                span.ended = now
                self._note(span, call)
        if not self._awake:
            self._wake()

    def _wake(self) -> None:
        self._awake = True
        self._later(TELL_S, self.tell)

    def _note(self, span: Span, call: RunningCall) -> None:
        span.noted = True
        self._untold[span.number] = span
        self._used[call.channel.hello.lease] = span

    def _span(self, call: RunningCall, now: float) -> Span:
        """For a call that has ended: its own, or that of the crowd."""
        if self._room(now):
            return self._new(call)
        crowd = self._crowd.get(call.status)
        if crowd is None:
            crowd = self._crowd[call.status] = self._new(call)
            return crowd
        crowd.calls += 1
        crowd.began = min(crowd.began, call.began)
        if crowd.task != call.name:
            crowd.task = SEVERAL
        return crowd

    def _room(self, now: float) -> bool:
        if now - self._second >= 1:
            self._second, self._spans = now, 0
            self._crowd.clear()
        return self._spans < MOST_SPANS

    def _new(self, call: RunningCall) -> Span:
        self._spans += 1
        self._number += 1
        hello = call.channel.hello
        return Span(self._number, hello.lease, call.name, hello.label, call.began)

    # --- on the control thread; and at the end of the process on the main thread

    def tell(self, *, last: bool = False) -> None:
        """Report what is new; drop it if nobody is there. With `last` nothing is left for later."""
        with self._telling:
            ready = self._ready()
            with self._lock:
                # First of all: whatever is noted from here on wakes this thread again.
                self._awake = False
                report, again = self._report(monotonic(), last) if ready else (None, True)
                while len(self._untold) > MOST_UNTOLD:
                    self._missed += _newly_ended(self._untold.pop(next(iter(self._untold))))
            if report is not None:
                self._send(json.dumps(report).encode())
        if again and not self._awake:
            self._wake()

    def _report(self, now: float, last: bool) -> tuple[dict[str, object] | None, bool]:
        """The news, if there are any; and whether to look again soon although nobody wakes this thread."""
        running: dict[str, tuple[str, float]] = {}
        again = opened = False
        for call in self._running():
            if call.span is None and now - call.began >= SHORT_S and self._room(now):
                self._open(call)
                opened = True
            again = again or call.span is None
            running[call.channel.hello.lease] = (call.name, _loop_began(call) if call.span is None else call.began)
        paused = {lease for lease, span in self._used.items() if lease not in running and now - span.ended < SHORT_S}
        for lease in paused & (self._told.keys() | self._paused):
            span = self._used[lease]
            running[lease] = (span.task, span.began)  # between two calls of a loop
        again = again or bool(paused)
        self._paused = paused - running.keys()
        idle = [(lease, span) for lease, span in self._used.items() if lease not in running and lease not in paused]
        uses = [(lease, True, task[:LONGEST_NAME], since) for lease, (task, since) in running.items()
                if self._told.get(lease) != (task, since)]  # fmt: skip
        uses += [(lease, False, span.task[:LONGEST_NAME], span.ended) for lease, span in idle]
        for lease, _ in idle:
            del self._used[lease]
        self._told = running
        nothing_new = again and not (uses or opened or last)
        if nothing_new and (self._paused or now - self._reported < COUNT_S):
            return None, again
        if not (self._untold or uses):
            return None, again
        self._reported = now
        ended = self._missed + sum(map(_newly_ended, self._untold.values()))
        self._missed = 0
        calls = [_described(span) for span in self._untold.values()]
        self._untold.clear()
        return {"calls": calls, "uses": uses, "ended": ended}, again

    def _open(self, call: RunningCall) -> None:
        """It takes long: tell that it runs."""
        span = call.span = self._new(call)
        if not call.ended:
            self._untold[span.number] = span
        else:  # it has just ended, and may not have seen that it has a span
            call.span = None


def _loop_began(call: RunningCall) -> float:
    """Since when calls like this one, which is short as yet, follow one another."""
    span = call.channel.span
    if span is not None and span.task == call.name and call.began - span.ended < GAP_S:
        return span.began
    return call.began


def _newly_ended(span: Span) -> int:
    """How many of its calls have ended since this was asked last."""
    span.noted = False
    new = 0 if span.status is None else span.calls - span.told
    span.told += new
    return new


def _described(span: Span) -> tuple[object, ...]:
    task, label = span.task[:LONGEST_NAME], span.label[:LONGEST_NAME]
    ended = None if span.status is None else span.ended
    return (span.number, span.lease, task, label, span.began, ended, _OUTCOMES[span.status], span.calls)
