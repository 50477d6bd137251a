"""What a client and the broker say to each other: one JSON object a line, over the broker's Unix socket.

The first line of a client is `Hello`; the answer is `Welcome` or `Rejected`. A request is undone by `Release`
at any stage, and everything a connection holds ends with the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, Literal

from pydantic import Base64Bytes, Field, SecretStr, TypeAdapter, field_serializer

from . import events
from .commands import RefusalReason
from .snapshot import Snapshot
from .spec import EnvironmentSpec, Frozen, Scaling
from .timeline import RecentView, TimelineView
from .usage import Usage

PROTOCOL: Final = 6
MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""A declaration carries the preload's code; nothing else comes near this."""


Message = Frozen
"""What all of these are."""


# --- client to broker


class Hello(Frozen):
    type: Literal["hello"] = "hello"
    version: str
    protocol: int = PROTOCOL
    label: str  # for people: "train.ipynb"
    kind: str  # "notebook", "script", "terminal", "replica", "cli", "server"
    pid: int


class Preload(Frozen):
    """Code that every replica runs before its first task; opaque to the broker."""

    generation: str
    names: tuple[str, ...]
    payload: Base64Bytes


class Declaration(Frozen):
    """An environment, with what a new replica of it is started with."""

    spec: EnvironmentSpec
    scaling: Scaling
    preload: Preload | None = None
    secret_values: dict[str, SecretStr] = {}
    inherited_env: dict[str, str] = {}
    preimports: tuple[str, ...] = ()  # modules that a zygote imports before it forks replicas
    start_timeout: float = Field(default=600, gt=0)

    @field_serializer("secret_values", when_used="json")
    def _reveal(self, values: dict[str, SecretStr]) -> dict[str, str]:
        # To the broker's socket only: it must start processes with them. Snapshots never hold a declaration.
        return {name: value.get_secret_value() for name, value in values.items()}


class Declare(Frozen):
    type: Literal["declare"] = "declare"
    declaration: Declaration


class Acquire(Frozen):
    """Ask for a slot; a `session` keeps it between its cells."""

    type: Literal["acquire"] = "acquire"
    lease: str
    pool: str
    task: str
    parent: str | None = None
    session: str | None = None


class Attach(Frozen):
    """Open that replica by hand, alone or (`shared`) beside its calls: a lease for as long as it is open."""

    type: Literal["attach"] = "attach"
    lease: str
    replica: str
    task: str
    shared: bool = False


class Kept(Frozen):
    """Another session keeps that slot from now on."""

    type: Literal["kept"] = "kept"
    lease: str
    session: str


class Release(Frozen):
    type: Literal["release"] = "release"
    lease: str


class Order(Frozen):
    """An act on pools, replicas or somebody else's calls, which the broker logs. It carries neither code nor data."""

    def event(self) -> events.Event:
        """The fact that the scheduler is told."""
        raise NotImplementedError


class Revoke(Order):
    """The task in this lease does not stop: kill its replica."""

    type: Literal["revoke"] = "revoke"
    lease: str
    why: str

    def event(self) -> events.Event:
        return events.LeaseRevoked(self.lease, self.why)


class Warm(Order):
    type: Literal["warm"] = "warm"
    pool: str
    replicas: int = 0

    def event(self) -> events.Event:
        return events.PoolWarmed(self.pool, self.replicas)


class Scale(Order):
    type: Literal["scale"] = "scale"
    pool: str
    scaling: Scaling

    def event(self) -> events.Event:
        return events.PoolScaled(self.pool, self.scaling)


class Keep(Order):
    type: Literal["keep"] = "keep"
    pool: str
    seconds: float = Field(ge=0)

    def event(self) -> events.Event:
        return events.PoolKept(self.pool, self.seconds)


class StopPool(Order):
    type: Literal["stop-pool"] = "stop-pool"
    pool: str
    force: bool = False

    def event(self) -> events.Event:
        return events.PoolStopped(self.pool, self.force)


class RestartPool(Order):
    """Replace every replica, one by one."""

    type: Literal["restart-pool"] = "restart-pool"
    pool: str

    def event(self) -> events.Event:
        return events.PoolRestarted(self.pool)


class RestartReplica(Order):
    """Replace one replica, after its running tasks or (`force`) at once."""

    type: Literal["restart-replica"] = "restart-replica"
    replica: str
    force: bool = False

    def event(self) -> events.Event:
        return events.ReplicaRestarted(self.replica, self.force)


class Interrupt(Order):
    """Stop the calls that run on a replica; it stays."""

    type: Literal["interrupt"] = "interrupt"
    replica: str

    def event(self) -> events.Event:
        return events.ReplicaInterrupted(self.replica)


class InterruptPool(Order):
    """Stop the calls that run on any of its replicas; they stay."""

    type: Literal["interrupt-pool"] = "interrupt-pool"
    pool: str

    def event(self) -> events.Event:
        return events.PoolInterrupted(self.pool)


class Cancel(Order):
    """Withdraw somebody's request, or stop the call that runs in somebody's lease."""

    type: Literal["cancel"] = "cancel"
    lease: str

    def event(self) -> events.Event:
        return events.LeaseCancelled(self.lease)


class Watch(Frozen):
    """Send a snapshot now and after every change (at most ten a second); `once` ends after the first.

    `usage` has it measured what is used: every two seconds, or for that one answer. That one repeats the number
    `question`, so that a client which is also told of changes knows it from those.
    """

    type: Literal["watch"] = "watch"
    once: bool = False
    usage: bool = False
    question: int | None = None


class Unwatch(Frozen):
    """No more snapshots, until the next Watch."""

    type: Literal["unwatch"] = "unwatch"


class AskTimeline(Frozen):
    """What the pool did in the last minutes, or what is new `since` the mark of an answer; `ToldTimeline` follows."""

    type: Literal["ask-timeline"] = "ask-timeline"
    pool: str
    since: str | None = None
    question: int | None = None  # a number that the answer repeats


class Shutdown(Frozen):
    """End the broker and everything it started."""

    type: Literal["shutdown"] = "shutdown"


ToBroker = Annotated[
    Hello
    | Declare
    | Acquire
    | Attach
    | Kept
    | Release
    | Revoke
    | Cancel
    | Warm
    | Scale
    | Keep
    | StopPool
    | RestartPool
    | RestartReplica
    | Interrupt
    | InterruptPool
    | Watch
    | Unwatch
    | AskTimeline
    | Shutdown,
    Field(discriminator="type"),
]


# --- broker to client


class Welcome(Frozen):
    type: Literal["welcome"] = "welcome"
    version: str
    pid: int


class Rejected(Frozen):
    """The versions do not fit; nothing else will be answered."""

    type: Literal["rejected"] = "rejected"
    version: str
    protocol: int
    pid: int


class Granted(Frozen):
    type: Literal["granted"] = "granted"
    lease: str
    replica: str
    name: str  # for people: "gpu[0]"
    address: str  # path of the task channel
    single_use: bool = False  # the replica serves one call: the lease is over after it


class Refused(Frozen):
    type: Literal["refused"] = "refused"
    lease: str
    reason: RefusalReason
    detail: dict[str, str] = {}


class Recalled(Frozen):
    type: Literal["recalled"] = "recalled"
    lease: str


class Lost(Frozen):
    """The replica under a lease is gone."""

    type: Literal["lost"] = "lost"
    lease: str
    replica: str
    name: str
    cause: str
    exit_code: int | None = None
    signal: str | None = None
    out_of_memory: bool = False  # it passed its own limit and was stopped for that; never a guess
    log_tail: str = ""


class ZygoteView(Frozen):
    """A process that forks replicas."""

    pid: int
    preimports: tuple[str, ...]
    memory_bytes: int
    age_s: float
    replicas: int  # of those that live now


class Snapped(Frozen):
    type: Literal["snapshot"] = "snapshot"
    epoch_offset: float  # add it to an instant of the snapshot to get Unix time
    log_dir: str
    zygotes: tuple[ZygoteView, ...] = ()
    spawned: dict[str, str] = {}  # pool -> why its replicas are spawned and not forked
    usage: Usage = Usage()
    recent: tuple[RecentView, ...] = ()  # the calls of all pools that ended last, the newest first
    snapshot: Snapshot
    question: int | None = None  # that of the `Watch` which it answers


class ToldTimeline(Frozen):
    """The answer to `AskTimeline`; None if there is no such pool."""

    type: Literal["told-timeline"] = "told-timeline"
    pool: str
    timeline: TimelineView | None
    question: int | None = None  # that of the `AskTimeline` which it answers


class Goodbye(Frozen):
    """The broker ends on purpose; `why` is for people."""

    type: Literal["goodbye"] = "goodbye"
    why: str


class Failed(Frozen):
    """A request made no sense; the connection goes on."""

    type: Literal["failed"] = "failed"
    why: str
    question: int | None = None  # that of the request, if it had one


FromBroker = Annotated[
    Welcome | Rejected | Granted | Refused | Recalled | Lost | Snapped | ToldTimeline | Goodbye | Failed,
    Field(discriminator="type"),
]

to_broker: Final[TypeAdapter[ToBroker]] = TypeAdapter(ToBroker)
from_broker: Final[TypeAdapter[FromBroker]] = TypeAdapter(FromBroker)


Send = Callable[[Message], None]


def to_line(message: Message) -> bytes:
    """One message as it crosses the socket."""
    return message.model_dump_json().encode() + b"\n"
