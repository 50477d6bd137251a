"""Asks the machine which GPUs it has and what is used of them: NVML, or the inventory in FLYTE_JUPYTER_GPUS."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .core.events import DevicesFound
from .core.inventory import Device

DECLARED = "FLYTE_JUPYTER_GPUS"
PATIENCE_S = 20.0
"""Opening a driver takes some seconds where nothing else holds it open; longer, and it hangs."""

T = TypeVar("T")


class DriverFailed(Exception):
    """The driver says nothing about any GPU; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the driver says of one device, None where it does not. `processes` has bytes by process id."""

    used_bytes: int | None
    utilization: int | None
    temperature_c: int | None
    processes: Mapping[int, int | None]


class Driver:
    """NVML, open from the first question until `close`: opening it takes long. It makes no context on a GPU."""

    def __init__(self) -> None:
        self._nvml: Any = None

    def devices(self) -> tuple[Device, ...]:
        """Every GPU, MIG instances instead of the cards they are cut from. Raises DriverFailed."""
        return tuple(device for device, _, _ in self._ask())

    def read(self) -> dict[str, Reading]:
        """What is used of each device, by UUID. A driver may hang for ever. Raises DriverFailed."""
        return {device.uuid: self._reading(part, card) for device, part, card in self._ask()}

    def close(self) -> None:
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlShutdown()

    def _ask(self) -> list[tuple[Device, Any, Any]]:
        """Devices, their handles, and those of their cards."""
        if self._nvml is None:
            self._open()
        try:
            return list(_parts(self._nvml))
        except self._nvml.NVMLError as problem:
            self.close()  # it may have been loaded anew
            raise DriverFailed(f"the NVIDIA driver failed ({problem})") from None

    def _open(self) -> None:
        try:
            import pynvml
        except ImportError as problem:  # pragma: no cover - a declared dependency
            raise DriverFailed(f"the NVML library for Python is missing ({problem})") from None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as problem:
            raise DriverFailed(f"the NVIDIA driver did not answer ({problem})") from None
        self._nvml = pynvml

    def _reading(self, part: Any, card: Any) -> Reading:
        nvml = self._nvml
        memory = self._perhaps(nvml.nvmlDeviceGetMemoryInfo, part)
        load = self._perhaps(nvml.nvmlDeviceGetUtilizationRates, part)
        processes: dict[int, int | None] = {}
        for list_processes in (
            nvml.nvmlDeviceGetComputeRunningProcesses,
            nvml.nvmlDeviceGetGraphicsRunningProcesses,
            nvml.nvmlDeviceGetMPSComputeRunningProcesses,
        ):
            for process in self._perhaps(list_processes, part) or ():
                # One that computes and draws is in both lists, with the same number.
                used = process.usedGpuMemory
                processes[process.pid] = processes.get(process.pid) if used is None else int(used)
        return Reading(
            used_bytes=None if memory is None else int(memory.used),
            utilization=None if load is None else int(load.gpu),
            temperature_c=self._perhaps(nvml.nvmlDeviceGetTemperature, card, nvml.NVML_TEMPERATURE_GPU),
            processes=processes,
        )

    def _perhaps(self, ask: Callable[..., Any], *args: Any) -> Any:
        """None where this card, this driver or this user's rights do not allow to ask."""
        try:
            return ask(*args)
        except (self._nvml.NVMLError, self._nvml.NVMLLibraryMismatchError):
            return None


def find_devices() -> DevicesFound:
    """Every GPU, MIG instances instead of the cards they are cut from.

    FLYTE_JUPYTER_GPUS, if set, is believed instead of the driver: a JSON list of objects with `uuid`, `model` and,
    if they matter, `memory_bytes` and `partition`. An empty list hides the machine's GPUs.
    """
    declared = os.environ.get(DECLARED)
    if declared is not None:
        return _declared(declared)
    try:
        return DevicesFound(in_time(lambda driver: driver.devices()))
    except DriverFailed as problem:
        return DevicesFound((), str(problem))


def in_time(question: Callable[[Driver], T]) -> T:
    """The answer of a driver that is opened for this question. Raises DriverFailed, also if it takes too long."""

    def ask() -> None:
        driver = Driver()
        try:
            answers.append(question(driver))
        except BaseException as problem:
            problems.append(problem)
        finally:
            driver.close()

    answers: list[T] = []
    problems: list[BaseException] = []
    asking = threading.Thread(target=ask, name="flyte_jupyter: driver", daemon=True)  # it may never come back
    asking.start()
    asking.join(PATIENCE_S)
    if problems:
        raise problems[0]
    if not answers:
        raise DriverFailed(f"the NVIDIA driver does not answer within {PATIENCE_S:g} s")
    return answers[0]


def _declared(text: str) -> DevicesFound:
    try:
        rows = json.loads(text)
        devices = tuple(
            Device(
                uuid=str(row["uuid"]),
                model=str(row["model"]),
                memory_bytes=int(row.get("memory_bytes", 0)),
                partition=row.get("partition"),
                index=index,
            )
            for index, row in enumerate(rows)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        return DevicesFound((), f"{DECLARED} is not a JSON list of objects with uuid and model: {problem!r}")
    if len({device.uuid for device in devices}) < len(devices):
        return DevicesFound((), f"{DECLARED} declares a uuid twice")
    return DevicesFound(devices, None if devices else f"{DECLARED} declares no GPU")


def _parts(nvml: Any) -> Iterator[tuple[Device, Any, Any]]:
    """Raises NVMLError only if not even one of the cards answers."""
    error: type[Exception] = nvml.NVMLError
    count: int = nvml.nvmlDeviceGetCount()
    lost: Exception | None = None
    found = 0
    for index in range(count):
        try:
            card = list(_one(nvml, index))
        except error as problem:  # it has fallen off the bus: the others still work
            lost = problem
            continue
        found += len(card)
        yield from card
    if lost is not None and not found:
        raise lost


def _one(nvml: Any, index: int) -> Iterator[tuple[Device, Any, Any]]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    model = _text(nvml.nvmlDeviceGetName(handle))
    instances = list(_instances(nvml, handle, index, model))
    if instances:
        yield from instances
    else:
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
        yield Device(uuid, model, _memory(nvml, handle), None, index), handle, handle


def _memory(nvml: Any, handle: Any) -> int:
    error: type[Exception] = nvml.NVMLError
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except error:  # memory shared with the processor (Grace, Jetson) is not counted
        return 0


def _instances(nvml: Any, handle: Any, index: int, model: str) -> Iterator[tuple[Device, Any, Any]]:
    error: type[Exception] = nvml.NVMLError
    try:
        mode, _ = nvml.nvmlDeviceGetMigMode(handle)
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if mode else 0
    except error:  # not a card that can be cut
        return
    for number in range(most):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except error:
            continue
        name = _text(nvml.nvmlDeviceGetName(part))  # "NVIDIA H100 MIG 1g.10gb"
        uuid = _text(nvml.nvmlDeviceGetUUID(part))
        yield Device(uuid, model, _memory(nvml, part), name.rpartition(" ")[2], index), part, handle


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
