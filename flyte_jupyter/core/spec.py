"""What a declared environment is to the broker: its identity, its scaling, what it asks of the machine.

These models cross the socket; the client makes them from a `TaskEnvironment`.
"""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeviceRequest(Frozen):
    """The GPUs one replica needs."""

    count: int = Field(default=0, ge=0)
    model: str | None = None  # as Flyte spells it: "A100", "L40s"; None is any card
    partition: str | None = None  # a MIG profile: "1g.10gb"


class EnvironmentSpec(Frozen):
    """What makes a pool the pool it is; another value is another pool. Scaling is not part of it.

    Source: https://github.com/flyteorg/flyte `flyteidl2/environment`, which splits Spec from Scaling.
    """

    name: str
    interpreter: str
    devices: DeviceRequest = DeviceRequest()
    cpu: str | None = None
    memory_bytes: int | None = None
    shm: str | None = None
    env_vars: tuple[tuple[str, str], ...] = ()  # sorted by name
    secrets: tuple[str, ...] = ()  # names of environment variables, sorted; never values
    single_use: bool = False  # a replica serves one lease and then stops: `reusable="off"`

    @property
    def key(self) -> str:
        """The pool's identity, also safe as part of a file name: hex digits only."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class Scaling(Frozen):
    """How many replicas, how much each takes on, and for how long; changing it resizes a live pool.

    Times are in seconds.
    """

    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=1)
    concurrency: int = Field(default=1, ge=1)
    idle_ttl: float = Field(gt=0)
    scaledown_ttl: float = Field(gt=0)

    @property
    def slots(self) -> int:
        """How many tasks the pool runs at once when it is as large as it may be."""
        return self.max_replicas * self.concurrency
