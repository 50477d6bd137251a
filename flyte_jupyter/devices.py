"""Asks the machine which GPUs it has: NVML, or the inventory declared in FLYTE_JUPYTER_GPUS."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from .core.events import DevicesFound
from .core.inventory import Device

DECLARED = "FLYTE_JUPYTER_GPUS"


def find_devices() -> DevicesFound:
    """Every GPU, MIG instances instead of the cards they are cut from.

    FLYTE_JUPYTER_GPUS, if set, is believed instead of the driver: a JSON list of objects with `uuid`, `model` and,
    if they matter, `memory_bytes` and `partition`. An empty list hides the machine's GPUs.
    """
    declared = os.environ.get(DECLARED)
    if declared is not None:
        return _declared(declared)
    try:
        import pynvml
    except ImportError as problem:  # pragma: no cover - a declared dependency
        return DevicesFound((), f"the NVML library for Python is missing ({problem})")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as problem:
        return DevicesFound((), f"the NVIDIA driver did not answer ({problem})")
    try:
        return DevicesFound(tuple(_ask(pynvml)))
    except pynvml.NVMLError as problem:
        return DevicesFound((), f"the NVIDIA driver failed ({problem})")
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


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


def _ask(nvml: Any) -> Iterator[Device]:
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


def _one(nvml: Any, index: int) -> Iterator[Device]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    model = _text(nvml.nvmlDeviceGetName(handle))
    instances = list(_instances(nvml, handle, index, model))
    if instances:
        yield from instances
    else:
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
        yield Device(uuid, model, _memory(nvml, handle), None, index)


def _memory(nvml: Any, handle: Any) -> int:
    error: type[Exception] = nvml.NVMLError
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except error:  # memory shared with the processor (Grace, Jetson) is not counted
        return 0


def _instances(nvml: Any, handle: Any, index: int, model: str) -> Iterator[Device]:
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
        yield Device(uuid, model, _memory(nvml, part), name.rpartition(" ")[2], index)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
