"""Which GPUs the machine has, and which replica holds which.

A device belongs to one replica at a time, from the decision to start it until its process is gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .spec import DeviceRequest


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU or a MIG instance. `uuid` is what CUDA_VISIBLE_DEVICES takes; memory is in bytes."""

    uuid: str
    model: str
    memory_bytes: int = 0
    partition: str | None = None
    index: int = 0


@dataclass(slots=True)
class Inventory:
    """The machine's devices, in the order of their index, and their holders (replica ids by UUID)."""

    devices: tuple[Device, ...] = ()
    problem: str | None = None
    holders: dict[str, str] = field(default_factory=dict)
    _matching: dict[DeviceRequest, tuple[Device, ...]] = field(default_factory=dict)

    def update(self, devices: tuple[Device, ...], problem: str | None) -> None:
        # Holders stay, also of a device that is no longer listed: the driver may have failed to answer once.
        self.devices = tuple(sorted(devices, key=lambda device: (device.index, device.uuid)))
        self.problem = problem
        self._matching.clear()

    def matching(self, request: DeviceRequest) -> tuple[Device, ...]:
        """The devices that one replica with this request could use, held or not."""
        if request not in self._matching:
            kind = [device for device in self.devices if _same_partition(device, request)]
            named = [device for device in kind if request.model and _is_model(device, request.model)]
            self._matching[request] = tuple(named or kind)
        return self._matching[request]

    def falls_back(self, request: DeviceRequest) -> bool:
        """Whether the machine has no card of the model asked for, so that any card will do."""
        return bool(request.model) and not any(
            _is_model(device, request.model or "") for device in self.matching(request)
        )

    def room(self, request: DeviceRequest) -> int:
        """How many such replicas the whole machine could hold; `request.count` is at least 1."""
        return len(self.matching(request)) // request.count

    def free(self, request: DeviceRequest) -> list[Device]:
        return [device for device in self.matching(request) if device.uuid not in self.holders]

    def reserve(self, request: DeviceRequest, replica: str) -> tuple[str, ...] | None:
        """Give `replica` the first free devices; None, and nothing changes, if there are too few."""
        if not request.count:
            return ()
        free = self.free(request)[: request.count]
        if len(free) < request.count:
            return None
        self.holders.update((device.uuid, replica) for device in free)
        return tuple(device.uuid for device in free)

    def release(self, devices: tuple[str, ...]) -> None:
        for uuid in devices:
            self.holders.pop(uuid, None)


def _same_partition(device: Device, request: DeviceRequest) -> bool:
    if request.partition is None or device.partition is None:
        return device.partition is request.partition
    return device.partition.casefold() == request.partition.casefold()


def _is_model(device: Device, model: str) -> bool:
    letters = [re.escape(letter) for letter in model if letter not in " _-"]
    # A digit must not follow: "L4" is no "L40S", yet "A100" is an "A100 80GB".
    return re.search(r"[\s_-]*".join(letters) + r"(?!\d)", device.model, re.IGNORECASE) is not None
