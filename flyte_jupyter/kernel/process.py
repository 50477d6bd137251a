"""Whose names a replica holds, and whether anybody can still ask for them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psutil


@dataclass(frozen=True, slots=True)
class Process:
    """A process that makes calls: a kernel, a script. `started` is in seconds since the epoch; 0 if nobody knows."""

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


class Watch:
    """The processes whose end is waited for; all of it on the thread of `loop`.

    Args:
        ended: Is told the token of one that has ended.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Callable[[str], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._watched: set[str] = set()

    def add(self, process: Process) -> None:
        """Watch it as well. Once is enough."""
        if not process.pid or process.token in self._watched:
            return
        self._watched.add(process.token)
        try:
            fd = os.pidfd_open(process.pid)
        except (OSError, AttributeError):  # it has ended already; or not Linux
            self._look(process)
        else:
            self._loop.add_reader(fd, self._over, process, fd)

    def _look(self, process: Process) -> None:
        if process.has_ended():
            self._over(process)
        else:
            self._loop.call_later(LOOK_S, self._look, process)

    def _over(self, process: Process, fd: int = -1) -> None:
        if fd >= 0:
            self._loop.remove_reader(fd)
            os.close(fd)
        self._watched.discard(process.token)
        self._ended(process.token)


LOOK_S: Final = 5.0
"""Between two looks at a process, where its end is not told."""
NOBODY: Final = Process()
