"""The life of a call, seen from outside: its request, what happens to it, and what follows.

`call.Call` takes the events and returns the commands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal

from .definitions import Closure
from .frames import Buffer, Frame

OnInterrupt = Literal["int", "term", "kill", "leave"]


def _always(error: BaseException) -> bool:
    return True


def _at_once(attempt: int) -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """All that a call has to know of what it calls.

    Attributes:
        name: The name in errors, such as "gpu.embed" or "cell #12".
        pool: The pool's name.
        max_runtime: Seconds that one attempt may run; None is no limit.
        max_queued: Seconds that one attempt may wait for a slot; None is no limit.
        deadline: Seconds for all attempts together, from the first request for a slot; None is no limit.
        retries: Attempts beyond the first.
        backoff: Gives the seconds before retry 0, 1, ...
        repeats: Whether an error may be tried again, among those that may be at all.
        on_interrupt: "int" only interrupts; "term" also replaces the replica afterwards; "kill" ends it at once.
            "leave" is for questions that must not disturb a replica: past its time limit the call is given up.
    """

    name: str
    pool: str
    max_runtime: float | None = None
    max_queued: float | None = None
    deadline: float | None = None
    retries: int = 0
    backoff: Callable[[int], float] = _at_once
    repeats: Callable[[BaseException], bool] = _always
    on_interrupt: OnInterrupt = "int"

    @property
    def limited(self) -> bool:
        """Whether it has a time limit of any kind."""
        return any((self.max_runtime, self.max_queued, self.deadline))


# --- events; a Frame that was received is one, too


@dataclass(frozen=True, slots=True)
class Granted:
    """A slot on this replica. It may come before the call has asked for one."""

    replica: str


@dataclass(frozen=True, slots=True)
class Refused:
    """There will be no slot."""

    error: Exception


@dataclass(slots=True)
class Sending:
    """It is being written to its connection, under this number: from now on the replica may speak of it."""

    number: int
    closures: Sequence[Closure] = ()


@dataclass(slots=True)
class Sent:
    """It was written to its connection, under this number."""

    number: int
    closures: Sequence[Closure] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """The calls before it on its connection are over: it runs now, or will at once."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection ended.

    Attributes:
        unread: The replica has certainly not read all of this call: it was not wholly written, or the connection was
            reset, which says that something was left unread, and nothing was written after this call.
    """

    unread: bool = False


@dataclass(frozen=True, slots=True)
class Explained:
    """The reason of the end of a replica, as an error of this call."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Failed:
    """It could not be encoded, or its outcome is this error."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody waits for it any more.

    Attributes:
        behind: Another call runs before it on its connection; a `Turn` says when that is over.
    """

    behind: bool = False


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Ctrl-C where somebody waits for it."""


@dataclass(frozen=True, slots=True)
class Tick:
    """`next_deadline` has come."""


Event = Frame | Granted | Refused | Sending | Sent | Turn | Broken | Explained | Failed | Cancelled | Interrupted | Tick

CANCELLED: Final = Cancelled()
INTERRUPTED: Final = Interrupted()
TICK: Final = Tick()
TURN: Final = Turn()


# --- commands


class Do(Enum):
    """The commands without arguments. Those about a frame mean the one that was just received."""

    ASK = auto()  # get in line for a slot
    ASK_FIRST = auto()  # the same, before all others: it was sent and taken back
    SEND = auto()  # encode this attempt, write it, report Sent
    WITHDRAW = auto()  # leave the line
    CANCEL = auto()  # tell the replica to stop this call and no other
    REPLACE = auto()  # have the replica replaced after its calls
    GIVE_BACK = auto()  # its slot is free for the next call
    DROP = auto()  # its slot and the connection are not used again
    EXPLAIN = auto()  # find out why the replica ended, report Explained
    SHOW = auto()  # show the output in the frame
    ANSWER = auto()  # ask the user what the frame asks, send the answer
    GIVE = auto()  # send the definitions of the name that the frame asks for
    RETURN = auto()  # return what is in the frame; if that raises, report Failed


@dataclass(frozen=True, slots=True)
class Reply:
    """Write this."""

    pieces: list[Buffer]


@dataclass(frozen=True, slots=True)
class Revoke:
    """Have the replica ended at once."""

    why: str


@dataclass(frozen=True, slots=True)
class Note:
    """Show this line where the call was made."""

    text: str


@dataclass(frozen=True, slots=True)
class Raise:
    """It is over, with this error."""

    error: BaseException


Command = Do | Reply | Revoke | Note | Raise
Commands = Sequence[Command]
