"""`gpu`: who uses the memory of which GPU."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from ..client import text
from ..core.snapshot import DeviceView
from ..core.usage import Usage
from .connection import talk
from .terminal import FAILED, OK, complain, say, say_json


def run_gpu(options: argparse.Namespace) -> int:
    devices, problem, usage = _measured()
    if options.json:
        used = usage.model_dump(mode="json")["devices"]
        gpus = [device.model_dump(mode="json") | {"usage": used.get(device.uuid)} for device in devices]
        say_json({"gpus": gpus, "problem": problem or usage.problem})
    else:
        say(text.usage_table(devices, usage) if devices else text.no_devices(problem))
    if usage.problem is None:
        return OK
    complain(f"What is used could not be measured: {usage.problem}.")
    return FAILED


def _measured() -> tuple[tuple[DeviceView, ...], str | None, Usage]:
    """The GPUs, why there are none, and what is used of them; from the broker, if one runs: it knows its replicas."""
    with talk() as broker:
        if broker is None:
            return _measure_here()
        snapped = broker.snapshot(usage=True)
        if snapped.usage.measured_at is None:
            snapped = broker.first_measurement()
        return snapped.snapshot.devices, snapped.snapshot.device_problem, snapped.usage


def _measure_here() -> tuple[tuple[DeviceView, ...], str | None, Usage]:
    from ..devices import DECLARED, DriverFailed, find_devices, in_time
    from ..usage import Processes

    found = find_devices()
    views = tuple(DeviceView(**asdict(device), replica=None, replica_name=None) for device in found.devices)
    if DECLARED in os.environ or not found.devices:
        return views, found.problem, Usage()
    try:
        used, _ = Processes().usage(in_time(lambda driver: driver.read()), {})
    except DriverFailed as problem:
        return views, None, Usage(problem=str(problem))
    return views, None, Usage(devices=used)
