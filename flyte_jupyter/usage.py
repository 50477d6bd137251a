"""Who uses how much: puts the driver's numbers and the table of processes together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, Literal, NamedTuple

import psutil

from .core.usage import DeviceUsage, OwnerView, ReplicaUsage
from .devices import Reading

DEEPEST: Final = 64
"""Ancestors of a process that are looked at."""


@dataclass(frozen=True, slots=True)
class Known:
    """A process that the broker knows: a replica, by name and id, or a client, by its label."""

    label: str
    replica: str | None = None


class _Facts(NamedTuple):
    label: str
    kind: Literal["notebook", "process"]
    user: str | None


class Processes:
    """The table of processes, kept between two looks: asking about each one again would be most of the work."""

    def __init__(self) -> None:
        self._parents: dict[int, int] = {}
        self._facts: dict[int, _Facts] = {}

    def usage(
        self, readings: Mapping[str, Reading], known: Mapping[int, Known]
    ) -> tuple[dict[str, DeviceUsage], dict[str, ReplicaUsage]]:
        """Devices by UUID and replicas by id.

        Args:
            readings: What the driver said.
            known: By process id. What such a process has started counts as its own.
        """
        self._look()
        devices = {}
        seen: dict[int, _Facts] = {}
        for uuid, reading in readings.items():
            owners = [self._owner(pid, used, known, seen) for pid, used in reading.processes.items()]
            used = reading.used_bytes
            if used is None:  # memory shared with the processor: there is only what each process has
                used = sum(owner.bytes or 0 for owner in owners)
            devices[uuid] = DeviceUsage(
                used_bytes=used,
                utilization=reading.utilization,
                temperature_c=reading.temperature_c,
                owners=tuple(sorted(owners, key=lambda owner: (-(owner.bytes or 0), owner.pid))),
            )
        self._facts = seen
        return devices, self._replicas(known)

    def tree_bytes(self, pid: int) -> int:
        """Main memory of a process and of what it has started."""
        self._look()
        return self._replicas({pid: Known("", "it")})["it"].memory_bytes

    def _look(self) -> None:
        here = psutil.pids()
        alive = {0, *here}
        parents = {}
        for pid in here:
            parent = self._parents.get(pid)
            if parent is None or parent not in alive:  # new, or its parent has ended
                with suppress(psutil.Error):
                    parents[pid] = psutil.Process(pid).ppid()
            else:
                parents[pid] = parent
        self._parents = parents

    def _holder(self, pid: int, known: Mapping[int, Known]) -> Known | None:
        """The nearest of its ancestors that is known, itself first."""
        for _ in range(DEEPEST):
            if pid in known:
                return known[pid]
            if pid not in self._parents:
                break
            pid = self._parents[pid]
        return None

    def _replicas(self, known: Mapping[int, Known]) -> dict[str, ReplicaUsage]:
        used = {holder.replica: 0 for holder in known.values() if holder.replica is not None}
        for pid in self._parents:
            holder = self._holder(pid, known)
            if holder is not None and holder.replica is not None:
                with suppress(psutil.Error):
                    used[holder.replica] += private_bytes(psutil.Process(pid))
        return {replica: ReplicaUsage(memory_bytes=count) for replica, count in used.items()}

    def _owner(self, pid: int, used: int | None, known: Mapping[int, Known], seen: dict[int, _Facts]) -> OwnerView:
        facts = seen[pid] = self._facts.get(pid) or _facts(pid)
        holder = self._holder(pid, known)
        if holder is not None and holder.replica is not None:
            return OwnerView(
                label=holder.label, kind="replica", replica=holder.replica, pid=pid, user=facts.user, bytes=used
            )
        label, kind = (facts.label, facts.kind) if holder is None else (holder.label, "notebook")
        return OwnerView(label=label, kind=kind, replica=None, pid=pid, user=facts.user, bytes=used)


def private_bytes(process: psutil.Process) -> int:
    """Without what is shared: arrays that a caller wrote and is charged for, and the zygote's pages of files."""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def _facts(pid: int) -> _Facts:
    """Of a process of anybody; much of it may be denied, and in a container the id may mean nothing."""
    try:
        process = psutil.Process(pid)
        name, user = process.name(), process.username()
    except psutil.Error:
        return _Facts("unknown", "process", None)
    with suppress(psutil.Error):
        if any("ipykernel" in word for word in process.cmdline()[:4]):
            # The notebook's path, which the Jupyter server says to its kernels.
            path = process.environ().get("JPY_SESSION_NAME", "")
            return _Facts(PurePath(path).name or "a notebook", "notebook", user)
    return _Facts(name, "process", user)
