"""How much of the machine is used, and by whom. It is measured only while somebody watches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from .spec import Frozen

NOTICED_BYTES: Final = 1 << 20
NOTICED_PART: Final = 0.02
NOTICED_PERCENT: Final = 5
NOTICED_DEGREES: Final = 2


class OwnerView(Frozen):
    """A process that has memory of a GPU; `bytes` is None where the driver does not say how much.

    `label` is a replica's name, a notebook's, or that of the program. `user` is None if the process cannot be seen.
    """

    label: str
    kind: Literal["replica", "notebook", "process"]
    replica: str | None
    pid: int
    user: str | None
    bytes: int | None


class DeviceUsage(Frozen):
    """What a GPU does; `utilization` in percent. Owners come in order of what they have, the largest first."""

    used_bytes: int
    utilization: int | None
    temperature_c: int | None
    owners: tuple[OwnerView, ...]

    def differs(self, shown: DeviceUsage) -> bool:
        """Whether a person would notice."""
        mine, theirs = ({owner.pid: owner.bytes for owner in each.owners} for each in (self, shown))
        return (
            _moved(self.used_bytes, shown.used_bytes)
            or _apart(self.utilization, shown.utilization, NOTICED_PERCENT)
            or _apart(self.temperature_c, shown.temperature_c, NOTICED_DEGREES)
            or mine.keys() != theirs.keys()
            or any(_moved(mine[pid], theirs[pid]) for pid in mine)
        )


class ReplicaUsage(Frozen):
    """Main memory of a replica and of what it has started, without pages that are shared."""

    memory_bytes: int

    def differs(self, shown: ReplicaUsage) -> bool:
        return _moved(self.memory_bytes, shown.memory_bytes)


class Usage(Frozen):
    """GPUs by UUID, replicas by id; what is not known is not there.

    `measured_at` is None while nobody has measured; `problem` says why there is nothing about any GPU.
    """

    measured_at: float | None = None
    devices: Mapping[str, DeviceUsage] = {}
    replicas: Mapping[str, ReplicaUsage] = {}
    problem: str | None = None

    def differs(self, shown: Usage) -> bool:
        """Whether a person who is shown `shown` would notice."""
        return (
            shown.measured_at is None
            or self.problem != shown.problem
            or self.devices.keys() != shown.devices.keys()
            or self.replicas.keys() != shown.replicas.keys()
            or any(usage.differs(shown.devices[uuid]) for uuid, usage in self.devices.items())
            or any(usage.differs(shown.replicas[replica]) for replica, usage in self.replicas.items())
        )


def _moved(now: int | None, before: int | None) -> bool:
    if now is None or before is None:
        return now is not before
    return abs(now - before) >= max(NOTICED_BYTES, NOTICED_PART * max(now, before))


def _apart(now: int | None, before: int | None, least: int) -> bool:
    if now is None or before is None:
        return now is not before
    return abs(now - before) >= least
