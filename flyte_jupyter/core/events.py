"""What can happen. Each event records one fact; `Scheduler.handle` is the only reader.

Identifiers are opaque strings made by whoever reports the event first. Instants are never part of an
event: `handle(event, now=...)` carries them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .inventory import Device
from .spec import DeviceRequest, Scaling


@dataclass(frozen=True, slots=True)
class ClientConnected:
    """`label` is for people: "train.ipynb"; `kind` is "notebook", "script", "terminal", "replica" or "cli"."""

    client: str
    label: str
    kind: str
    pid: int


@dataclass(frozen=True, slots=True)
class ClientGone:
    """The connection ended: its requests are withdrawn; what it was running is cancelled by the replicas.

    Such a lease keeps its slot until `LeaseEnded`, or until its replica has to be killed.
    """

    client: str


@dataclass(frozen=True, slots=True)
class PoolDeclared:
    """A client named a pool. The latest declaration's scaling and generation hold for everybody.

    `generation` identifies the preload code; replicas of another generation are renewed one by one.
    Declaring starts nothing. A client that declared another `pool` under the same `name` before has
    changed its mind: that older pool retires unless somebody else declared it too. A replica of a
    `single_use` pool serves one lease and then stops; such a pool supersedes no other and is not superseded.
    `memory_bytes` is what one of its replicas may use.
    """

    client: str
    pool: str
    name: str
    scaling: Scaling
    devices: DeviceRequest
    generation: str = ""
    single_use: bool = False
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PoolWarmed:
    """Start the minimum (or `replicas`, if more, up to the maximum) now; also ends a FAILED verdict."""

    pool: str
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class PoolScaled:
    pool: str
    scaling: Scaling


@dataclass(frozen=True, slots=True)
class PoolKept:
    """No replica of the pool goes away for being idle in the next `seconds`."""

    pool: str
    seconds: float


@dataclass(frozen=True, slots=True)
class PoolStopped:
    """Stop every replica: after its running tasks (`force=False`: nothing new is granted), or at once."""

    pool: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class PoolRestarted:
    """Replace every replica, one by one, as if its preload had changed; also ends a FAILED verdict."""

    pool: str


@dataclass(frozen=True, slots=True)
class PoolInterrupted:
    """Somebody wants the calls that run on all its replicas to stop; the replicas stay, and waiting calls start."""

    pool: str


@dataclass(frozen=True, slots=True)
class LeaseRequested:
    """`parent` is the lease of the task that makes this call, when a task calls a task.

    A `session` keeps the slot between its cells; "" is the one without a name.
    """

    client: str
    lease: str
    pool: str
    task: str
    parent: str | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class AttachRequested:
    """A person wants that replica to themselves, or (`shared`) beside the calls that run there.

    `replica` leaves rotation at once, and is granted when it is ready and has a free slot: calls that still run there
    end by themselves. Those who want it, too, follow in order of arrival. It ends as every lease does.
    """

    client: str
    lease: str
    replica: str
    task: str
    shared: bool = False


@dataclass(frozen=True, slots=True)
class LeaseKept:
    """From now on that session keeps the slot: the one that kept it is over."""

    lease: str
    session: str


@dataclass(frozen=True, slots=True)
class LeaseReleased:
    """Undoes `LeaseRequested` or `AttachRequested` at any stage; where that is lost already, it is ignored."""

    lease: str


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    """A replica says that nothing runs in this lease any more, and that its client has hung up."""

    lease: str


@dataclass(frozen=True, slots=True)
class LeaseRevoked:
    """The task in this lease ignores its cancellation: its replica must be killed."""

    lease: str
    why: str


@dataclass(frozen=True, slots=True)
class LeaseCancelled:
    """Somebody else than its client wants it to end: a request is refused, a running call is interrupted."""

    lease: str


@dataclass(frozen=True, slots=True)
class ReplicaInterrupted:
    """Somebody wants whatever runs there to stop; the replica stays."""

    replica: str


@dataclass(frozen=True, slots=True)
class ReplicaRestarted:
    """Replace this replica, after its running tasks or (`force`) at once; also ends a FAILED verdict."""

    replica: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaLoading:
    """The process is up and runs the preload."""

    replica: str
    pid: int


@dataclass(frozen=True, slots=True)
class ReplicaReady:
    replica: str


@dataclass(frozen=True, slots=True)
class ReplicaFailed:
    """It will never be ready: the process could not start, or the preload raised; `ReplicaExited` follows."""

    replica: str
    cause: str


@dataclass(frozen=True, slots=True)
class ReplicaExited:
    """The process is gone, so its devices are free. `cause` says how, for people: "signal SIGKILL"."""

    replica: str
    cause: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call that runs on a replica, or ran there; or several short ones in a row, of one task and with one outcome.

    `number` is the replica's own, from 1; what is said of a number again replaces what was said before. `client` is
    for people: "train.ipynb". Instants are of the clock of `handle`, which all processes of a machine share.
    """

    number: int
    lease: str
    task: str
    client: str
    began: float
    ended: float | None
    outcome: Literal["succeeded", "failed", "cancelled"] | None
    calls: int


@dataclass(frozen=True, slots=True)
class LeaseUse:
    """What a lease is used for: `task` runs in it, or ran last, `since` that instant."""

    lease: str
    running: bool
    task: str
    since: float


@dataclass(frozen=True, slots=True)
class CallsReported:
    """A replica tells what it did since it last told, at most ten times a second. `ended` is the number of calls."""

    replica: str
    calls: tuple[Call, ...]
    uses: tuple[LeaseUse, ...]
    ended: int


@dataclass(frozen=True, slots=True)
class DevicesFound:
    """What the machine has. `problem` says why nothing is there, if the driver could not be asked."""

    devices: tuple[Device, ...]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class MemoryMeasured:
    """The main memory that new processes could have now, and all there is, in bytes.

    It is measured when a call asks for a fresh kernel, and again and again while one waits for memory.
    """

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; nothing else did."""


Event = (
    ClientConnected
    | ClientGone
    | PoolDeclared
    | PoolWarmed
    | PoolScaled
    | PoolKept
    | PoolStopped
    | PoolRestarted
    | PoolInterrupted
    | LeaseRequested
    | AttachRequested
    | LeaseKept
    | LeaseReleased
    | LeaseEnded
    | LeaseRevoked
    | LeaseCancelled
    | ReplicaInterrupted
    | ReplicaRestarted
    | ReplicaLoading
    | ReplicaReady
    | ReplicaFailed
    | ReplicaExited
    | CallsReported
    | DevicesFound
    | MemoryMeasured
    | Tick
)
