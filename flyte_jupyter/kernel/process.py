"""Whose names a replica holds, and whether anybody can still ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psutil


@dataclass(frozen=True, slots=True)
class Process:
    """Who makes calls: a kernel, a script. `started` is when it was (seconds since the epoch); 0 if nobody knows."""

    token: str = ""
    pid: int = 0
    started: float = 0.0

    @classmethod
    def of(cls, token: str, pid: int) -> Process:
        """A process that is alive now."""
        try:
            return cls(token, pid, psutil.Process(pid).create_time() if pid else 0.0)
        except (psutil.Error, OSError):
            return cls(token, pid, 0.0)

    def has_ended(self) -> bool:
        """Whether it certainly has."""
        if not self.pid:
            return False
        try:
            process = psutil.Process(self.pid)
            return bool(process.create_time() != self.started or process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
        except (psutil.Error, OSError):
            return False


NOBODY: Final = Process()
