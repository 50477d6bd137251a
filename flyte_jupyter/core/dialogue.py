"""The client's end of the broker's protocol: a machine without socket, clock or thread.

A driver passes on bytes and instants, and carries out the replies. The three drivers (a thread in `client/broker.py`,
a blocking one in `cli/connection.py`, an event loop in `server/connection.py`) differ in nothing else: which broker is
the right one, which answer belongs to which question, how long a client waits, and the text of each error are here.

A dialogue is `away` (nobody is connected), `greeting`, `open` or `over`. It begins `away`, and is so again after
`disconnect`: its questions stay, and the next broker that says welcome is asked them again. A driver that does not
look for another broker calls `end` then.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from typing import Any, Final, Literal

from pydantic import ValidationError

from ..errors import BaseRuntimeError, BrokerGone, BrokerSilent, BrokerUnavailable, ProtocolError, VersionMismatch
from . import protocol as p

ANSWER_S: Final = 10.0
"""How long a broker may be silent. An answer takes milliseconds, or seconds while the machine swaps. A person who
reads "does not answer" may stop the broker, and loses everything warm: so all clients wait for ten seconds."""
SLOW_S: Final = 3.0
"""After this time a person is told what the wait is for."""

State = Literal["away", "greeting", "open", "over"]
Question = p.Watch | p.AskTimeline
Answer = p.Snapped | p.ToldTimeline


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes for the broker."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Greeted:
    """The end of the greeting: orders and questions may follow."""

    welcome: p.Welcome


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to the question of that number."""

    number: int
    answer: Answer


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The question of that number will get no answer; `error` says why."""

    number: int
    error: BaseRuntimeError


@dataclass(frozen=True, slots=True)
class Noticed:
    """A message that answers no question."""

    notice: p.FromBroker


@dataclass(frozen=True, slots=True)
class Waiting:
    """A line for the person who waits: the broker is slow. It comes once for each wait."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of the dialogue: the driver hangs up."""

    error: BaseRuntimeError


Reply = Send | Greeted | Answered | Unanswered | Noticed | Waiting | Ended


@dataclass(slots=True)
class _Wait:
    """One wait for the broker, from `since`; for the answer to a question, or for its welcome."""

    since: float
    patience_s: float
    question: Question | None = None
    slow_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.restart(self.since)

    def restart(self, now: float) -> None:
        self.since = now
        self.slow_at = now + SLOW_S

    @property
    def ends_at(self) -> float:
        return self.since + self.patience_s

    @property
    def deadline(self) -> float:
        return min(self.slow_at, self.ends_at)


class Dialogue:
    """The client's end of the protocol, with one broker after another.

    All instants are the `now` of its methods, in seconds of a clock that never goes back.

    Args:
        hello: How this client introduces itself.
        patience_s: How long the broker may take to say welcome, and to answer a question that states no other time.
    """

    def __init__(self, hello: p.Hello, patience_s: float = ANSWER_S) -> None:
        self.state: State = "away"
        self.pid: int | None = None
        """Of the broker; known once it has said welcome, or from the system."""
        self.version = ""
        self.goodbye: str | None = None
        """Why the broker ends, if it has said so."""
        self._hello = hello
        self._patience_s = patience_s
        self._greeting: _Wait | None = None
        self._waits: dict[int, _Wait] = {}  # for answers, in the order of the questions
        self._asked = 0
        self._complaint: str | None = None
        self._rest = bytearray()  # of a line that has not wholly arrived

    def connect(self, *, now: float, pid: int | None = None) -> list[Reply]:
        """A broker is connected, the first one or another; the dialogue was `away`."""
        assert self.state == "away", self.state
        self.state, self.pid, self.goodbye = "greeting", pid, None
        self._greeting = _Wait(now, self._patience_s)
        return [Send(p.to_line(self._hello))]

    def disconnect(self) -> None:
        """The connection is gone. Questions go on waiting, since another broker may come."""
        if self.state != "over":
            self.state, self._greeting, self._complaint = "away", None, None
            self._rest.clear()  # the next broker does not continue this one's line

    def end(self) -> list[Reply]:
        """No other broker will come: all questions fail, since this one is gone."""
        return [] if self.state == "over" else self._end(self.gone)

    def tell(self, message: p.Message) -> bytes:
        """The line of an order, which has no answer. Raises BrokerGone unless the dialogue is open."""
        if self.state != "open":
            raise self.gone()
        return p.to_line(message)

    def ask(self, question: Question, *, now: float, patience_s: float | None = None) -> tuple[int, bytes]:
        """The number of a new question, and its line; empty if there is no broker yet, which is asked when it comes.

        Raises:
            BrokerGone: The dialogue is over.
            ProtocolError: The broker did not understand an order that was given before.
        """
        if self.state == "over":
            raise self.gone()
        if self._complaint is not None:
            why, self._complaint = self._complaint, None
            raise _not_understood(why)
        self._asked += 1
        numbered = question.model_copy(update={"question": self._asked})
        self._waits[self._asked] = _Wait(now, self._patience_s if patience_s is None else patience_s, numbered)
        return self._asked, p.to_line(numbered) if self.state == "open" else b""

    def withdraw(self, number: int) -> None:
        """Nobody waits for that answer any more. It is dropped if it comes."""
        self._waits.pop(number, None)

    def receive(self, data: bytes, *, now: float) -> list[Reply]:
        """Take bytes, cut anywhere."""
        replies: list[Reply] = []
        if self.state in ("away", "over"):
            return replies
        self._rest += data
        if b"\n" in data:  # else a long line would be looked through again with each piece
            *lines, self._rest = self._rest.split(b"\n")
            for line in map(bytes, lines):
                if self.state == "over":
                    break
                replies += self._greet(line, now) if self.state == "greeting" else self._take(line)
        if len(self._rest) > p.MAX_LINE_BYTES:
            replies += self._end(partial(ProtocolError, f"a line is longer than {p.MAX_LINE_BYTES} bytes"))
        return replies

    def tick(self, *, now: float) -> list[Reply]:
        """Time has passed."""
        replies: list[Reply] = []
        if self._greeting is not None and now >= self._greeting.ends_at:
            return self._end(partial(self.silent, self._greeting.patience_s))
        for number, wait in list(self._waits.items()):
            if now >= wait.ends_at:
                del self._waits[number]
                error = self.gone() if self.state == "away" else self.silent(wait.patience_s)
                replies.append(Unanswered(number, error))
        for wait in self._all_waits():
            if now >= wait.slow_at:
                wait.slow_at = math.inf
                replies.append(Waiting(self.waits_for()))
        return replies

    def next_deadline(self) -> float:
        """When a `tick` would change something at the latest; infinity when nobody waits."""
        return min((wait.deadline for wait in self._all_waits()), default=math.inf)

    def _all_waits(self) -> Iterator[_Wait]:
        if self._greeting is not None:
            yield self._greeting
        yield from self._waits.values()

    def gone(self) -> BrokerGone:
        return BrokerGone(cause=self.goodbye)

    def silent(self, seconds: float) -> BrokerSilent:
        return BrokerSilent(self.pid, seconds)

    def waits_for(self) -> str:
        if self.state == "away":
            return "Waiting for another broker. Ctrl-C ends the wait."
        who = "the broker" if self.pid is None else f"the broker (pid {self.pid})"
        return f"Waiting for {who}, which does not answer. Ctrl-C ends the wait, not the broker."

    def _greet(self, line: bytes, now: float) -> list[Reply]:
        try:
            message = p.from_broker.validate_json(line)
        except ValidationError:
            message = None
        if isinstance(message, p.Welcome):
            self.state, self._greeting = "open", None
            self.pid, self.version = message.pid, message.version
            replies: list[Reply] = [Greeted(message)]
            for wait in self._waits.values():
                assert wait.question is not None
                wait.restart(now)  # another broker has its own time to answer
                replies.append(Send(p.to_line(wait.question)))
            return replies
        said = _object(line)
        if said.get("type") == "rejected":  # read leniently: another version's may have more or fewer fields
            return self._end(partial(self._mismatch, str(said.get("version")), said.get("protocol")))
        return self._end(partial(ProtocolError, "the broker answers the greeting with something unknown"))

    def _take(self, line: bytes) -> list[Reply]:
        try:
            message = p.from_broker.validate_json(line)
        except ValidationError:
            # A newer broker's notice: this version can do without it, and all else goes on. But with an unknown answer,
            # its question would wait in vain.
            number = _object(line).get("question")
            return self._refuse(number, "the broker's answer is of an unknown kind") if type(number) is int else []
        match message:
            case p.Snapped(question=int() as number) | p.ToldTimeline(question=int() as number):
                return self._answered(number, message)
            case p.Failed(question=None, why=why):
                return self._complained(why)
            case p.Failed(question=int() as number, why=why):
                return self._refuse(number, _not_understood(why).problem)
            case p.Goodbye(why=why):
                self.goodbye = why
        return [Noticed(message)]

    def _answered(self, number: int, answer: Answer) -> list[Reply]:
        wait = self._waits.get(number)
        if wait is None:  # withdrawn, or given up
            return []
        if isinstance(answer, p.Snapped) is not isinstance(wait.question, p.Watch):
            return self._refuse(number, f"the broker answers a question with {answer.type!r}")
        del self._waits[number]
        return [Answered(number, answer)]

    def _refuse(self, number: int, problem: str) -> list[Reply]:
        wait = self._waits.pop(number, None)
        return [] if wait is None else [Unanswered(number, ProtocolError(problem))]

    def _complained(self, why: str) -> list[Reply]:
        # An order has no number. The broker reads in order, so the next question fails in its place. To end the whole
        # dialogue instead would cost all other calls of this process.
        number = next(iter(self._waits), None)
        if number is not None:
            return self._refuse(number, _not_understood(why).problem)
        self._complaint = why
        return []

    def _mismatch(self, version: str, protocol: object) -> VersionMismatch:
        ours, theirs = self._hello.version, version
        if ours == theirs:  # two states of one version under development
            ours, theirs = f"{ours} protocol {self._hello.protocol}", f"{theirs} protocol {protocol}"
        return VersionMismatch(ours, theirs, "broker", self._hello.kind)

    def _end(self, error: Callable[[], BaseRuntimeError]) -> list[Reply]:
        """Each question gets an error object of its own, since each is raised in another place."""
        waits, self._waits = self._waits, {}
        self.state, self._greeting = "over", None
        self._rest.clear()
        return [*(Unanswered(number, error()) for number in waits), Ended(error())]


def none_runs() -> BrokerUnavailable:
    return BrokerUnavailable("", what="No broker runs.", do="It starts with the first task that is called.")


def of_another_user(path: PurePath, variable: str) -> BrokerUnavailable:
    """Somebody else's process answers at `path`; `variable` names the folder."""
    return BrokerUnavailable(
        f"the process that answers at {path} belongs to another user",
        what="The broker is not yours.",
        do=f"Set {variable} to a folder of your own.",
    )


def _not_understood(why: str) -> ProtocolError:
    return ProtocolError(f"the broker did not understand a message ({why.rstrip('.')})")


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; empty if it is none."""
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


class Mailbox:
    """What has come of a dialogue, until its driver asks for it: for drivers that wait for one thing at a time."""

    def __init__(self) -> None:
        self.notices: deque[p.FromBroker] = deque()
        self._outcomes: dict[int, Answer | BaseRuntimeError] = {}

    def put(self, reply: Reply) -> None:
        """Keep it. Raises the error of the dialogue's end."""
        match reply:
            case Answered(number, answer):
                self._outcomes[number] = answer
            case Unanswered(number, error):
                self._outcomes[number] = error
            case Noticed(notice):
                self.notices.append(notice)
            case Ended(error):
                raise error

    def has(self, number: int) -> bool:
        """Whether that question has its outcome."""
        return number in self._outcomes

    def take(self, number: int) -> Answer:
        """Its answer. Raises its error if there is none."""
        outcome = self._outcomes.pop(number)
        if isinstance(outcome, BaseRuntimeError):
            raise outcome
        return outcome
