"""What must be done. The engine carries a command out; its outcome comes back as an event."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

RefusalReason = Literal[
    "no-such-pool", "no-such-replica", "no-gpu", "no-room", "pool-failed", "pool-stopped", "starvation", "cancelled"
]


@dataclass(frozen=True, slots=True)
class StartReplica:
    """Start a kernel process bound to `devices` (UUIDs), then run the preload of `generation`."""

    replica: str
    pool: str
    generation: str
    devices: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class StopReplica:
    """End the process: politely, or at once (`force`)."""

    replica: str
    why: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """The lease has its slot; on a `single_use` replica it is one for a single call."""

    client: str
    lease: str
    replica: str
    single_use: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """`detail` holds what the message of this reason needs: names, counts, the preload's traceback."""

    client: str
    lease: str
    reason: RefusalReason
    detail: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recall:
    """Another client waits: give this lease back after the call that runs in it.

    Of an attachment: the replica has to go, and will when it is left.
    """

    client: str
    lease: str


POOL_STOPPED: Final = "the pool was stopped"
"""The cause of a lease that is lost because somebody stops its pool at once."""


@dataclass(frozen=True, slots=True)
class Lose:
    """The replica under this lease is gone; the lease is over."""

    client: str
    lease: str
    cause: str


@dataclass(frozen=True, slots=True)
class AskAfter:
    """The client of this lease is gone: the replica shall say `LeaseEnded` when nothing runs in it (any more)."""

    replica: str
    lease: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The replica shall stop the call that runs in this lease; without one, all that run."""

    replica: str
    lease: str | None = None


@dataclass(frozen=True, slots=True)
class ForgetPool:
    """Nobody declares the pool any more and nothing of it is left."""

    pool: str


Command = StartReplica | StopReplica | Grant | Refuse | Recall | Lose | AskAfter | Interrupt | ForgetPool
