"""Measures what is used, every two seconds, while somebody watches; else it does nothing.

A driver may hang for ever, so it is asked in a thread that nobody waits for.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar

import anyio

from ..core.snapshot import Snapshot
from ..core.usage import Usage
from ..devices import DECLARED, Driver, DriverFailed, Reading
from ..usage import Known, Processes

log = logging.getLogger(__name__)

PERIOD_S: Final = 2.0
PATIENCE_S: Final = 5.0
"""How long a measurement may take before it is given up."""
QUICK_S: Final = 0.3
"""How long an answer may be delayed for a measurement."""
LINGER_S: Final = 10.0
"""The driver stays open that long after the last one looked: opening it is slow, and who polls comes back."""

T = TypeVar("T")


class Aside:
    """Runs one function at a time in a thread that may never come back."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._busy = False

    async def run(self, function: Callable[[], T], patience: float = math.inf) -> T:
        """What `function` returns. TimeoutError if it takes too long, and at once while an earlier one still does."""
        if self._busy:
            raise TimeoutError
        outcome: list[tuple[T | None, BaseException | None]] = []
        reading, writing = os.pipe()
        self._busy = True

        def work() -> None:
            try:
                outcome.append((function(), None))
            except BaseException as problem:
                outcome.append((None, problem))
            self._busy = False
            os.close(writing)  # which wakes the reader, if there still is one

        # A daemon: a broker must be able to end although the driver hangs.
        threading.Thread(target=work, name=self._name, daemon=True).start()
        try:
            with anyio.fail_after(patience):
                await anyio.wait_readable(reading)
        finally:
            os.close(reading)
        value, problem = outcome[0]
        if problem is not None:
            raise problem
        return value  # type: ignore[return-value]


class Sampler:
    """What is used, as it is shown now.

    Args:
        driver: None where the GPUs are declared and there is no driver to ask.
    """

    def __init__(self, driver: Driver | None = None) -> None:
        self.usage = Usage()
        self._driver = driver
        self._asking = Aside("flyte_jupyter: driver")
        self._processes = Processes()
        self._looking = Aside("flyte_jupyter: processes")
        self._watchers = 0
        self._watched = anyio.Event()
        self._measured = anyio.Event()
        self._measured_at = -math.inf

    @classmethod
    def of_this_machine(cls) -> Sampler:
        return cls(None if DECLARED in os.environ else Driver())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure for as long as the block lasts."""
        self._watchers += 1
        self._watched.set()
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._watched = anyio.Event()

    async def fresh(self) -> None:
        """Wait until what is shown has been measured just now, but not long."""
        if anyio.current_time() > self._measured_at + PERIOD_S:
            with self.watching(), anyio.move_on_after(QUICK_S):
                await self._measured.wait()

    async def run(self, state: Callable[[], Snapshot], changed: Callable[[], None]) -> None:
        """For ever.

        Args:
            state: Which devices, replicas and clients there are.
            changed: Called when `usage` is another one.
        """
        while True:
            await self._watched.wait()
            while self._watchers:
                try:
                    await self._measure(state(), changed)
                except Exception:  # pools do not depend on it
                    log.exception("what is used could not be measured")
                await anyio.sleep(PERIOD_S)
            with anyio.move_on_after(LINGER_S):
                await self._watched.wait()
            if not self._watchers:
                self.usage, self._measured_at = Usage(), -math.inf
                if self._driver is not None:
                    try:
                        await self._asking.run(self._driver.close, PATIENCE_S)
                    except TimeoutError:
                        pass
                    except Exception:
                        log.exception("the driver could not be closed")

    async def _measure(self, state: Snapshot, changed: Callable[[], None]) -> None:
        readings: Mapping[str, Reading] = {}
        problem = None
        if self._driver is not None and state.devices:
            try:
                readings = await self._asking.run(self._driver.read, PATIENCE_S)
            except TimeoutError:
                problem = f"the NVIDIA driver does not answer within {PATIENCE_S:g} s"
            except DriverFailed as failure:
                problem = str(failure)
        known = _known(state)
        devices, replicas = await self._looking.run(lambda: self._processes.usage(readings, known), PATIENCE_S)
        self._measured_at = anyio.current_time()
        usage = Usage(measured_at=self._measured_at, devices=devices, replicas=replicas, problem=problem)
        if usage.differs(self.usage):
            self.usage = usage
            changed()
        measured, self._measured = self._measured, anyio.Event()
        measured.set()


def _known(state: Snapshot) -> dict[int, Known]:
    known = {client.pid: Known(client.label) for client in state.clients}
    replicas = [replica for pool in state.pools for replica in pool.replicas]
    return known | {replica.pid: Known(replica.name, replica.id) for replica in replicas if replica.pid is not None}
