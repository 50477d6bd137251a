"""The verbs: name, arguments, check and message of each, in one table that every surface reads.

A verb is a model: its fields are the body of a request to the server, and what the card sends. `POOL`, `REPLICA` and
`LEASE` list the verbs of each kind of thing. The command line, the magics, the server and the card have no list of
their own, so that a new verb needs its class here and its place in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from . import protocol as p
from .arguments import parse_count, parse_duration, parse_replicas
from .snapshot import LeaseView, PoolView, ReplicaView, Snapshot
from .spec import Scaling


class PoolTarget(Protocol):
    """A pool, as a view or as a handle."""

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def scaling(self) -> Scaling: ...


T = TypeVar("T")
V = TypeVar("V", bound="Verb[Any]")


@dataclass(frozen=True)
class Word:
    """The argument that stands after the name: `2h` in `keep gpu 2h`. `fields` raises ArgumentTypeError."""

    metavar: str
    fields: Callable[[str], Mapping[str, Any]]
    help: str
    example: str
    optional: bool = False


class Verb(BaseModel, Generic[T]):
    """An order about one thing, with its arguments.

    `does` completes "flyte-jupyter NAME: ..." and is its help. An order with a field `force` can be told not to wait
    for running calls.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: ClassVar[str]
    does: ClassVar[str]
    word: ClassVar[Word | None] = None

    @classmethod
    def of(cls: type[V], **fields: Any) -> V:
        """The order with these arguments. Raises ValueError, in one line."""
        try:
            return cls(**fields)
        except ValidationError as problem:
            raise ValueError(f"{cls.name}: {explained(problem)}") from None

    @classmethod
    def forcible(cls) -> bool:
        return "force" in cls.model_fields

    def message(self, target: T) -> p.ToBroker:
        """What the broker is told. Raises ValueError if the order does not fit the target."""
        raise NotImplementedError

    def shows(self, target: T, before: PoolView, now: PoolView) -> bool:
        """Whether the pool shows that the broker has taken the order."""
        return True

    def said(self, name: str) -> str:
        """What a notebook prints after it, if the pool that it shows does not say it."""
        return ""


class Scale(Verb[PoolTarget]):
    name: ClassVar[str] = "scale"
    does: ClassVar[str] = "set the minimum and the maximum number of replicas; running calls are not disturbed"
    word: ClassVar[Word] = Word(
        "MIN[:MAX]",
        lambda word: dict(zip(("minimum", "maximum"), parse_replicas(word), strict=True)),
        "how many replicas at least and at most",
        "1:4",
    )
    minimum: int = Field(ge=0)
    maximum: int = Field(ge=1)

    @field_validator("maximum")
    @classmethod
    def _not_below_the_minimum(cls, maximum: int, info: ValidationInfo) -> int:
        if maximum < info.data.get("minimum", 0):
            raise ValueError("maximum is less than minimum")
        return maximum

    def scaling(self, target: PoolTarget) -> Scaling:
        return target.scaling.model_copy(update={"min_replicas": self.minimum, "max_replicas": self.maximum})

    def message(self, target: PoolTarget) -> p.ToBroker:
        return p.Scale(pool=target.key, scaling=self.scaling(target))

    def shows(self, target: PoolTarget, before: PoolView, now: PoolView) -> bool:
        return now.scaling == self.scaling(before)


class Warm(Verb[PoolTarget]):
    name: ClassVar[str] = "warm"
    does: ClassVar[str] = "start replicas now, and wait until they are ready; also after a failed preload"
    word: ClassVar[Word] = Word(
        "N", lambda word: {"replicas": parse_count(1)(word)}, "default: the pool's minimum, or 1", "2", optional=True
    )
    replicas: int | None = Field(default=None, ge=1)

    def count(self, target: PoolTarget) -> int:
        """How many are to be ready."""
        wanted = self.replicas or max(target.scaling.min_replicas, 1)
        most = target.scaling.max_replicas
        if wanted > most:
            replicas = f"{most} replica{'s' * (most != 1)}"
            raise ValueError(f"Pool {target.name} has at most {replicas}, not {wanted}; `scale` changes that.")
        return wanted

    def message(self, target: PoolTarget) -> p.ToBroker:
        return p.Warm(pool=target.key, replicas=self.count(target))

    def shows(self, target: PoolTarget, before: PoolView, now: PoolView) -> bool:
        return bool(now.replicas)


class Keep(Verb[PoolTarget]):
    name: ClassVar[str] = "keep"
    does: ClassVar[str] = "keep a pool's idle replicas running for a given time"
    word: ClassVar[Word] = Word(
        "DURATION", lambda word: {"seconds": parse_duration(word)}, "30m, 2h, 1h30m; 0 ends it", "2h"
    )
    seconds: float = Field(ge=0, allow_inf_nan=False)

    def message(self, target: PoolTarget) -> p.ToBroker:
        return p.Keep(pool=target.key, seconds=self.seconds)

    def shows(self, target: PoolTarget, before: PoolView, now: PoolView) -> bool:
        return now.kept_until != before.kept_until or not (self.seconds or before.kept_until)


class Stop(Verb[PoolTarget]):
    name: ClassVar[str] = "stop"
    does: ClassVar[str] = "stop every replica after its running calls, or with force at once"
    force: bool = False

    def message(self, target: PoolTarget) -> p.ToBroker:
        return p.StopPool(pool=target.key, force=self.force)

    def shows(self, target: PoolTarget, before: PoolView, now: PoolView) -> bool:
        return not now.replicas


class RestartPool(Verb[PoolTarget]):
    name: ClassVar[str] = "restart"
    does: ClassVar[str] = "replace all replicas, one by one; the old ones answer until the new ones are ready"

    def message(self, target: PoolTarget) -> p.ToBroker:
        return p.RestartPool(pool=target.key)

    def shows(self, target: PoolTarget, before: PoolView, now: PoolView) -> bool:
        return not _staying(now).intersection(replica.id for replica in before.replicas)

    def said(self, name: str) -> str:
        return f"The replicas of {name} are replaced one by one; the old ones answer until the new ones are ready."


class InterruptPool(Verb[PoolTarget]):
    name: ClassVar[str] = "interrupt"
    does: ClassVar[str] = "stop all calls that run now; waiting calls start, and what is loaded stays"

    def message(self, target: PoolTarget) -> p.ToBroker:
        return p.InterruptPool(pool=target.key)

    def said(self, name: str) -> str:
        return f"The calls that run on {name} are stopped."


class RestartReplica(Verb[ReplicaView]):
    name: ClassVar[str] = "restart"
    does: ClassVar[str] = "replace one replica after its running calls, or with force at once"
    force: bool = False

    def message(self, target: ReplicaView) -> p.ToBroker:
        return p.RestartReplica(replica=target.id, force=self.force)

    def shows(self, target: ReplicaView, before: PoolView, now: PoolView) -> bool:
        return target.id not in _staying(now)

    def said(self, name: str) -> str:
        return f"{name} {'is' if self.force else 'finishes what runs there, then is'} replaced."


class InterruptReplica(Verb[ReplicaView]):
    name: ClassVar[str] = "interrupt"
    does: ClassVar[str] = "stop the calls that run on one replica, which keeps what it has loaded"

    def message(self, target: ReplicaView) -> p.ToBroker:
        return p.Interrupt(replica=target.id)

    def said(self, name: str) -> str:
        return f"The calls that run on {name} are stopped."


class Cancel(Verb[LeaseView]):
    name: ClassVar[str] = "cancel"
    does: ClassVar[str] = "withdraw a waiting call, or stop a running one"

    def message(self, target: LeaseView) -> p.ToBroker:
        return p.Cancel(lease=target.lease)


class Verbs(Mapping[str, type[Verb[T]]]):
    """A kind of things, how one of them is found, and its verbs by name.

    Looking up a verb that is not there raises LookupError with those that are.
    """

    def __init__(self, noun: str, find: Callable[[Snapshot, str], T | None], *verbs: type[Verb[T]]) -> None:
        self.noun = noun
        self.find = find
        self._verbs = {verb.name: verb for verb in verbs}

    def __getitem__(self, name: str) -> type[Verb[T]]:
        verb = self._verbs.get(name)
        if verb is None:
            raise NoSuchVerb(f"A {self.noun} has no verb {name}; it has {', '.join(self._verbs)}.")
        return verb

    def __iter__(self) -> Any:
        return iter(self._verbs)

    def __len__(self) -> int:
        return len(self._verbs)


class NoSuchVerb(KeyError):
    """Of a name that is not in the table."""

    def __str__(self) -> str:
        return str(self.args[0])


def find_lease(snapshot: Snapshot, id_: str) -> LeaseView | None:
    held = (lease for pool in snapshot.pools for replica in pool.replicas for lease in replica.leases)
    waiting = (request for pool in snapshot.pools for request in pool.queue)
    return next((lease for leases in (held, waiting) for lease in leases if lease.lease == id_), None)


def explained(problem: ValidationError) -> str:
    """What does not fit, in one line."""
    parts = (".".join(map(str, each["loc"])) + ": " + each["msg"] for each in problem.errors(include_url=False))
    return "; ".join(part.removeprefix(": ") for part in parts)


def _staying(pool: PoolView) -> set[str]:
    """The replicas that will not be replaced."""
    ending = ("draining", "stopping")
    return {each.id for each in pool.replicas if each.generation_current and each.state not in ending}


POOL: Final[Verbs[PoolTarget]] = Verbs("pool", Snapshot.pool, Scale, Warm, Keep, Stop, RestartPool, InterruptPool)
REPLICA: Final[Verbs[ReplicaView]] = Verbs("replica", Snapshot.replica, RestartReplica, InterruptReplica)
LEASE: Final[Verbs[LeaseView]] = Verbs("lease", find_lease, Cancel)
