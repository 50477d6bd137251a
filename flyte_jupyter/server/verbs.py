"""What a request may order: its body, and the message to the broker that it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ..core import protocol as p
from ..core.snapshot import LeaseView, PoolView, ReplicaView, Snapshot

T = TypeVar("T")


class Body(BaseModel, Generic[T]):
    """A verb. `message` raises ValueError if it does not fit what it is for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def message(self, target: T) -> p.Message:
        raise NotImplementedError


class Scale(Body[PoolView]):
    minimum: int = Field(ge=0)
    maximum: int = Field(ge=1)

    @field_validator("maximum")
    @classmethod
    def _not_below_the_minimum(cls, maximum: int, info: ValidationInfo) -> int:
        if maximum < info.data.get("minimum", 0):
            raise ValueError("maximum is less than minimum")
        return maximum

    def message(self, target: PoolView) -> p.Message:
        sizes = {"min_replicas": self.minimum, "max_replicas": self.maximum}
        return p.Scale(pool=target.key, scaling=target.scaling.model_copy(update=sizes))


class Warm(Body[PoolView]):
    replicas: int | None = Field(default=None, ge=1)

    def message(self, target: PoolView) -> p.Message:
        wanted = self.replicas or max(target.scaling.min_replicas, 1)
        if wanted > target.scaling.max_replicas:
            raise ValueError(f"Pool {target.name} has at most {target.scaling.max_replicas} replicas, not {wanted}.")
        return p.Warm(pool=target.key, replicas=wanted)


class Keep(Body[PoolView]):
    seconds: float = Field(ge=0, allow_inf_nan=False)

    def message(self, target: PoolView) -> p.Message:
        return p.Keep(pool=target.key, seconds=self.seconds)


class Drain(Body[PoolView]):
    def message(self, target: PoolView) -> p.Message:
        return p.StopPool(pool=target.key)


class Stop(Body[PoolView]):
    force: bool = False

    def message(self, target: PoolView) -> p.Message:
        return p.StopPool(pool=target.key, force=self.force)


class RestartPool(Body[PoolView]):
    def message(self, target: PoolView) -> p.Message:
        return p.RestartPool(pool=target.key)


class RestartReplica(Body[ReplicaView]):
    force: bool = False

    def message(self, target: ReplicaView) -> p.Message:
        return p.RestartReplica(replica=target.id, force=self.force)


class Interrupt(Body[ReplicaView]):
    def message(self, target: ReplicaView) -> p.Message:
        return p.Interrupt(replica=target.id)


class Cancel(Body[LeaseView]):
    def message(self, target: LeaseView) -> p.Message:
        return p.Cancel(lease=target.lease)


class LookBody(BaseModel):
    """What somebody wants to see of a replica."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    expressions: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(default=[], max_length=20)
    stack: bool = True
    gpu: bool = False


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A kind of things, its verbs, and how one of them is found."""

    noun: str
    find: Callable[[Snapshot, str], T | None]
    verbs: dict[str, type[Body[T]]]


def find_lease(snapshot: Snapshot, id_: str) -> LeaseView | None:
    held = (lease for pool in snapshot.pools for replica in pool.replicas for lease in replica.leases)
    waiting = (request for pool in snapshot.pools for request in pool.queue)
    return next((lease for leases in (held, waiting) for lease in leases if lease.lease == id_), None)


POOL: Final[Kind[Any]] = Kind(
    "pool",
    Snapshot.pool,
    {"scale": Scale, "warm": Warm, "keep": Keep, "drain": Drain, "stop": Stop, "restart": RestartPool},
)
REPLICA: Final[Kind[Any]] = Kind("replica", Snapshot.replica, {"restart": RestartReplica, "interrupt": Interrupt})
LEASE: Final[Kind[Any]] = Kind("lease", find_lease, {"cancel": Cancel})
