"""The life of one call as a pure machine: no socket, loop, clock or thread.

`Call.handle` takes one event and returns the commands that follow from it, to be carried out in order; `next_deadline`
is the instant at which it needs a `Tick`. A driver moves the bytes: the calling thread, or an event loop. A call that
fails is tried again only if its request allows that, and at once if it had certainly not begun; a call that had begun
never begins twice by itself.

The commonest path allocates nothing here: a received frame is its own event, and most commands are constants.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, Final, Literal

from .. import errors
from . import failure
from .call_events import (
    Broken,
    Cancelled,
    Commands,
    Do,
    Event,
    Explained,
    Failed,
    Granted,
    Interrupted,
    Note,
    Raise,
    Refused,
    Reply,
    Request,
    Revoke,
    Sending,
    Sent,
    Tick,
    Turn,
)
from .definitions import Closure
from .frames import OUTCOME, WITHDRAWN, Frame, Kind, Status, encode

GRACE_S: Final = 5.0
"""How long a cancelled call may take to react before its replica is ended."""
NOTE_S: Final = 2.0
"""A call that has not ended so long after an interrupt is mentioned, with what a second one would do."""
REQUEUES: Final = 10
"""How often a call that had not begun may be sent elsewhere."""
_NEVER: Final = float("inf")

_NOTHING: Final[Commands] = ()
_ASK: Final = (Do.ASK,)
_ASK_FIRST: Final = (Do.ASK_FIRST,)
_SEND: Final = (Do.SEND,)
_SHOW: Final = (Do.SHOW,)
_ANSWER: Final = (Do.ANSWER,)
_GIVE: Final = (Do.GIVE,)
_DROP: Final = (Do.DROP,)
_CANCEL: Final = (Do.CANCEL,)
_WITHDRAW: Final = (Do.WITHDRAW,)
_GIVE_BACK: Final = (Do.GIVE_BACK,)
_EXPLAIN: Final = (Do.EXPLAIN,)
_RETURN: Final = (Do.GIVE_BACK, Do.RETURN)


class State(Enum):
    """Where a call is in its life."""

    NEW = auto()
    WAITING = auto()  # in line for a slot
    SENDING = auto()  # has a slot; its bytes are not all written
    RUNNING = auto()  # all its bytes are written
    STOPPING = auto()  # the replica was told to stop it
    LOST = auto()  # the replica has ended, and the reason is being found out
    PAUSED = auto()  # until it is tried again
    RETURNED = auto()  # its outcome has come
    OVER = auto()


_WAITING: Final = State.WAITING
_SENDING: Final = State.SENDING
_RUNNING: Final = State.RUNNING
_STOPPING: Final = State.STOPPING
_RETURNED: Final = State.RETURNED
_OVER: Final = State.OVER
_ON_A_REPLICA: Final = frozenset({State.SENDING, State.RUNNING, State.STOPPING})

Why = Literal["", "interrupt", "limit", "nobody waits"]


class Call:
    """One call, with all of its attempts.

    Args:
        request: What is called, and what may be done about it.
        now: Seconds on the clock that `handle` is told.
    """

    state = State.NEW
    attempt = 0
    """Retries so far."""
    number = 0
    """On its connection; 0 while it has none."""
    replica = ""
    """The replica of its slot, such as "gpu[0]"."""
    # Class attributes, as most calls change few of them.
    _deadline = _NEVER
    _until = _NEVER
    _requeues = 0
    _answered = False
    _raised = False
    _closures: Sequence[Closure] = ()
    _why: Why = ""
    _note_at = _NEVER
    _kill_at = _NEVER
    _pending: Exception | None = None

    def __init__(self, request: Request, *, now: float) -> None:
        self.request = request
        if request.deadline is not None:
            self._deadline = now + request.deadline

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be done for it."""
        return self.state is _OVER

    @property
    def is_abandoned(self) -> bool:
        """Whether it is only stopped, and nobody waits for it."""
        return self._why == "nobody waits"

    @property
    def has_answered(self) -> bool:
        """Whether the replica has shown that it knows of the present attempt."""
        return self._answered

    def next_deadline(self) -> float:
        """When it needs a `Tick`; infinity if it needs none."""
        return self._until

    def start(self, *, now: float) -> Commands:
        """The first commands."""
        return self._ask(now)

    def handle(self, event: Event, *, now: float) -> Commands:
        """What follows from an event; an event that comes too late has no effect."""
        return _HANDLERS[type(event)](self, event, now)

    # --- a slot

    def _ask(self, now: float) -> Commands:
        self.state = _WAITING
        limit = self.request.max_queued
        self._until = self._deadline if limit is None else min(now + limit, self._deadline)
        return _ASK

    def _granted(self, event: Granted, now: float) -> Commands:
        if self.state is not _WAITING and self.state is not State.NEW:
            return _GIVE_BACK  # it crossed the withdrawal
        self.state = _SENDING
        self.replica = event.replica
        limit = self.request.max_runtime
        self._until = self._deadline if limit is None else min(now + limit, self._deadline)
        return _SEND

    def _being_sent(self, event: Sending, now: float) -> Commands:
        self.number = event.number
        self._closures = event.closures
        return _NOTHING

    def _sent(self, event: Sent, now: float) -> Commands:
        self.number = event.number
        self._closures = event.closures
        if self.state is _SENDING:
            self.state = _RUNNING
        return _NOTHING

    def _refused(self, event: Refused, now: float) -> Commands:
        error = event.error
        if self.state is not _WAITING:
            return _NOTHING
        if isinstance(error, errors.BrokerGone) and error.cause is None:
            return self._again_elsewhere(error, now)  # the next broker is asked
        return self._failed(error, now)

    # --- on a replica

    def _received(self, frame: Frame, now: float) -> Commands:
        kind = frame.kind
        if kind == WITHDRAWN:
            return self._withdrawn(frame, now)
        if frame.call != self.number or self.state not in _ON_A_REPLICA:
            return _NOTHING
        if kind == OUTCOME:
            if self.state is _STOPPING:
                return self._stopped(frame.flags, now)
            self.state = _RETURNED
            self._until = _NEVER
            return _RETURN
        if kind == Kind.NEED:
            try:
                has: dict[str, tuple[str, ...] | None] = pickle.loads(frame.body)
                missing = pickle.dumps([closure.beyond(has) for closure in self._closures], 5)
            except Exception as error:
                return self._failed_with(Failed(error), now)
            return (Reply(encode(Kind.DEFINE, self.number, missing)),)
        self._answered = True
        if kind == Kind.OUTPUT:
            return _NOTHING if self.is_abandoned else _SHOW
        if kind == Kind.INPUT:
            return _ANSWER
        if kind == Kind.WANT:
            return _GIVE
        if kind == Kind.INTERRUPTED:
            self._raised = True
            if self.state is _STOPPING and self._why != "limit":  # else somebody else has interrupted it
                self._kill_at = _NEVER
                self._until = self._note_at
        return _NOTHING

    def _withdrawn(self, frame: Frame, now: float) -> Commands:
        """It will not begin there."""
        if not frame.call <= self.number < frame.call + frame.flags or self.state not in _ON_A_REPLICA:
            return _NOTHING
        if self.state is _STOPPING:
            return self._stopped(Status.CANCELLED, now)
        self.state = _WAITING
        self.number = 0
        self._answered = False
        self._until = self._deadline
        return _ASK_FIRST

    def _broken(self, event: Broken, now: float) -> Commands:
        if self.state not in _ON_A_REPLICA:
            return _NOTHING
        if self.state is _STOPPING:
            return (*_DROP, *self._ended(now))
        began = self._answered or (self.state is _RUNNING and not event.unread)
        if began:
            self.state = State.LOST
            self._until = _NEVER
            return _EXPLAIN
        return (*_DROP, *self._again_elsewhere(errors.ReplicaDied(self.request.name, self.replica), now))

    def _explained(self, event: Explained, now: float) -> Commands:
        if self.state is not State.LOST:
            return _NOTHING
        if self._why:
            return (*_DROP, *self._ended(now))
        return (*_DROP, *self._failed(event.error, now))

    # --- stopping

    def _cancelled(self, event: Cancelled, now: float) -> Commands:
        state = self.state
        if state in (_OVER, _RETURNED):
            self.state = _OVER
            return _NOTHING
        if state in _ON_A_REPLICA:
            told = state is _STOPPING
            self._stop("nobody waits", now)
            if event.behind:  # it cannot react yet, and the call that runs there must not suffer for it
                self._kill_at = self._until = _NEVER
            return _NOTHING if told else _CANCEL
        if state is State.LOST:
            self._why = "nobody waits"
            return _NOTHING
        self._over()
        return _WITHDRAW if state is _WAITING else _NOTHING

    def _turn_came(self, event: Turn, now: float) -> Commands:
        if self.state is _STOPPING and self._kill_at == _NEVER and not self._raised:
            self._kill_at = self._until = now + GRACE_S
        return _NOTHING

    def _interrupted(self, event: Interrupted, now: float) -> Commands:
        state, request = self.state, self.request
        interrupt = KeyboardInterrupt()
        if state is _OVER or self.is_abandoned:
            return _NOTHING
        if state is _RUNNING and request.on_interrupt != "kill":
            self._stop("interrupt", now)
            return (Do.CANCEL, Do.REPLACE) if request.on_interrupt == "term" else _CANCEL
        if state is _RUNNING or state is _STOPPING:
            return self._end_replica(f"{request.name} was interrupted{'' if state is _RUNNING else ' twice'}")
        self._over()
        if state is _WAITING:
            return (Do.WITHDRAW, Raise(interrupt))
        if state is _SENDING or state is State.LOST:
            return (Do.DROP, Raise(interrupt))  # half a call has not begun
        return (Raise(interrupt),)

    def _stop(self, why: Why, now: float) -> None:
        if self.state is not _STOPPING:
            self._kill_at = now + GRACE_S
        self._note_at = now + NOTE_S if why == "interrupt" else _NEVER
        self.state = _STOPPING
        self._why = why
        if self._raised and why != "limit":
            self._kill_at = _NEVER
        self._until = min(self._note_at, self._kill_at)

    def _stopped(self, status: int, now: float) -> Commands:
        """Its outcome came after it was told to stop."""
        if self._why == "interrupt" and status != Status.CANCELLED:
            self.state = _RETURNED  # the user's code has dealt with the interrupt
            self._until = _NEVER
            return _RETURN
        return (*_GIVE_BACK, *self._ended(now, f"{self.replica} is ready again; what it has loaded was kept."))

    def _ended(self, now: float, ready: str = "") -> Commands:
        """It does not run any more, having been told to stop."""
        why, self._why = self._why, ""
        if why == "limit":
            return self._failed(self._pending or self._exceeded(now, running=True, note=ready), now)
        self._over()
        if why == "nobody waits":
            self._why = why
            return _NOTHING
        if not ready:
            return (Raise(KeyboardInterrupt()),)
        replaced = self.request.on_interrupt == "term"
        kept = "a fresh replica takes its place" if replaced else "what it has loaded is still there"
        return (Note(f"Interrupted on {self.replica}; {kept}."), Raise(KeyboardInterrupt()))

    def _kill(self, why: str, now: float) -> Commands:
        """It does not react: its replica is ended."""
        if self._why == "interrupt":
            return self._end_replica(why)
        if self._why == "limit":
            self._pending = self._exceeded(
                now,
                running=True,
                note=f"It did not stop when told, so the replica {self.replica} was ended; a replacement is loading.",
            )
        self.state = State.LOST
        self._until = _NEVER
        return (Revoke(why), Do.EXPLAIN)

    def _end_replica(self, why: str) -> Commands:
        """Nobody waits for the end of a replica where the call was interrupted."""
        self._over()
        note = Note(f"The replica {self.replica} was ended; a replacement is loading.")
        return (Revoke(why), note, Do.DROP, Raise(KeyboardInterrupt()))

    # --- time

    def _tick(self, event: Tick, now: float) -> Commands:
        if now < self._until:
            return _NOTHING
        match self.state:
            case State.WAITING:
                return (*_WITHDRAW, *self._failed(self._exceeded(now, running=False), now))
            case State.SENDING:
                return (*_DROP, *self._failed(self._exceeded(now, running=True), now))  # half a call has not begun
            case State.RUNNING if self.request.on_interrupt == "leave":
                self._over()
                return (*_DROP, Raise(self._exceeded(now, running=True)))
            case State.RUNNING:
                self._stop("limit", now)
                return _CANCEL
            case State.STOPPING:
                return self._tick_while_stopping(now)
            case State.PAUSED:
                if now >= self._deadline:
                    self._over()
                    return (Raise(self._exceeded(now, running=False)),)
                return self._ask(now)
        return _NOTHING

    def _tick_while_stopping(self, now: float) -> Commands:
        name = self.request.name
        if now >= self._kill_at:
            limit = self._why == "limit"
            ignored = "timeout" if limit else "interrupt" if self._why == "interrupt" else "cancellation"
            return self._kill(f"{name} ignored its {ignored} for {GRACE_S:g} s", now)
        self._note_at = _NEVER
        self._until = self._kill_at
        if self._raised:
            return (
                Note(
                    f"{name} on {self.replica} got the interrupt and is still running (cleaning up or saving). "
                    f"Stop again to end the replica, with what it has loaded."
                ),
            )
        return (
            Note(
                f"{name} on {self.replica} has not reacted to the interrupt yet; its replica is ended in "
                f"{self._kill_at - now:.0f} s. Stop again to end it now."
            ),
        )

    def _exceeded(self, now: float, *, running: bool, note: str = "") -> errors.TaskTimeoutError:
        name, request = self.request.name, self.request
        notes = [note] if note else []
        late: errors.TaskTimeoutError
        if now >= self._deadline:
            late = errors.DeadlineExceededError(f"Task {name} passed its deadline and was stopped.")
        elif running:
            limit = f"{request.max_runtime:g} s"
            late = errors.MaxRuntimeExceededError(f"FJ503 Task {name} reached its limit of {limit} and was stopped.")
        else:
            return errors.MaxQueuedTimeExceededError(f"Task {name} waited {request.max_queued:g} s for a slot.")
        return errors.with_notes(late, *notes)

    # --- again, or the end

    def _again_elsewhere(self, error: Exception, now: float) -> Commands:
        """It had not begun, so this was no attempt. The waits grow, from 1 ms to 0.5 s: until the broker knows of a
        death it grants the dead replica again."""
        if self._requeues >= REQUEUES:
            self._over()
            return (Raise(error),)
        pause = 0.001 * 2.0**self._requeues
        self._requeues += 1
        return self._pause(pause, now)

    def _failed_with(self, event: Failed, now: float) -> Commands:
        error = event.error
        if self.state is _OVER:
            return _NOTHING
        if self.state in (_RUNNING, _STOPPING):  # its output cannot be shown, or what it asks for cannot be sent
            self._stop("nobody waits", now)
            return (Do.CANCEL, Raise(error))
        slot: Commands = _NOTHING
        if self.state is _SENDING:  # it could not be encoded
            slot = _DROP
        elif self.state is _WAITING:
            slot = _WITHDRAW
        if self._why or not isinstance(error, Exception):  # an interrupted call is not repeated
            self._over()
            return (*slot, Raise(error))
        return (*slot, *self._failed(error, now))

    def _failed(self, error: Exception, now: float) -> Commands:
        if self.attempt >= self.request.retries or not may_repeat(error) or not self.request.repeats(error):
            self._over()
            return (Raise(error),)
        delay = self.request.backoff(self.attempt)
        self.attempt += 1
        return self._pause(delay, now)

    def _pause(self, seconds: float, now: float) -> Commands:
        self.state = State.PAUSED
        self.number = 0
        self._answered = self._raised = False
        self._why = ""
        self._pending = None
        self._until = min(now + seconds, self._deadline)
        return _NOTHING

    def _over(self) -> None:
        self.state = _OVER
        self._until = _NEVER


def may_repeat(error: Exception) -> bool:
    """Whether a call with retries left is tried again after this error: the one rule for tasks, cells and executors."""
    final = errors.DeadlineExceededError | errors.TaskCancelled | errors.StarvationError | errors.PoolError
    if isinstance(error, final) and not isinstance(error, errors.ReplicaDied):
        return False
    return failure.flyte_code(error) != "NonRecoverableError"


_HANDLERS: Final[dict[type, Callable[[Call, Any, float], Commands]]] = {
    Frame: Call._received,
    Granted: Call._granted,
    Refused: Call._refused,
    Sending: Call._being_sent,
    Sent: Call._sent,
    Turn: Call._turn_came,
    Broken: Call._broken,
    Explained: Call._explained,
    Failed: Call._failed_with,
    Cancelled: Call._cancelled,
    Interrupted: Call._interrupted,
    Tick: Call._tick,
}
