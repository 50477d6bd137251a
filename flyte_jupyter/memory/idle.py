"""Keeps what a store may need again for a while, and then lets go of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

KEEP_S: Final = 60.0
"""For how long, after the last use: as long as it takes to look at a result and run the cell again."""


class Idle:
    """The lock of a store, and a thread that lets go of what has idled there; it ends when nothing is left.

    Args:
        name: Of the thread.
        keep_s: How long something may idle.
        drop: Lets go of what has not been used since that instant; returns in how many seconds to look again, None if
            nothing is left. Called with the lock held.
    """

    def __init__(self, name: str, keep_s: float, drop: Callable[[float], float | None]) -> None:
        self.lock = threading.Condition()
        self._name = name
        self._keep_s = keep_s
        self._drop = drop
        self.looking = False

    def watch(self) -> None:
        """Something is there. With the lock held."""
        if not self.looking:
            self.looking = True
            threading.Thread(target=self._look, name=f"flyte_jupyter: {self._name}", daemon=True).start()

    def _look(self) -> None:
        with self.lock:
            while (pause := self._drop(time.monotonic() - self._keep_s)) is not None:
                self.lock.wait(pause)
            self.looking = False

    def forget(self) -> None:
        """In a forked child: the threads that hold the lock are the parent's."""
        self.lock = threading.Condition()
        self.looking = False
