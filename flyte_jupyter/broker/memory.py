"""Asks the machine, or the container that the broker runs in, how much main memory is free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from ..core.events import MemoryMeasured

CGROUPS: Final = Path("/sys/fs/cgroup")
"""Inside a container this is its own group."""
_V2: Final = ("memory.max", "memory.current", "memory.stat", "inactive_file")
_V1: Final = (
    "memory/memory.limit_in_bytes",
    "memory/memory.usage_in_bytes",
    "memory/memory.stat",
    "total_inactive_file",
)


def find_memory(cgroups: Path = CGROUPS) -> MemoryMeasured:
    """What is free counts what the system would give back at once, such as cached files."""
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    for limit, left in _limits(cgroups):
        free, total = min(free, left), min(total, limit)
    return MemoryMeasured(free, total)


def _limits(cgroups: Path) -> Iterator[tuple[int, int]]:
    """A limit that holds for the broker and its replicas, and what is left of it."""
    for limit_file, usage_file, stat_file, cached in (_V2, _V1):
        # No such file where there is no such limit; "max" is none either.
        with suppress(OSError, ValueError):
            limit = int((cgroups / limit_file).read_text())
            used = int((cgroups / usage_file).read_text())
            words = (cgroups / stat_file).read_text().split()
            used -= int(words[words.index(cached) + 1])
            yield limit, max(0, limit - used)
