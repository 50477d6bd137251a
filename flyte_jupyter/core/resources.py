"""What one replica may use of a machine: processors, memory, accelerators. Declared by a user.

Names and refusals are Flyte's. What they mean on this machine is at the end: threads, bytes, a DeviceRequest.
"""

from __future__ import annotations

import logging  # deprecated GPU names are announced where Flyte announces them
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from ..errors import NoUsableGPU, with_notes
from .spec import DeviceRequest

logger = logging.getLogger("flyte")

DeviceClass = Literal["GPU", "TPU", "NEURON", "AMD_GPU", "HABANA_GAUDI", "APPLE_SILICON"]

_SHARED = " shared"
# The largest count of each card that Flyte has a string for.
_NVIDIA_COUNTS: dict[str, int] = {
    "A2": 1,
    "A10": 8,
    "A10G": 8,
    "A100": 8,
    "A100_80G": 8,
    "B200": 8,
    "H100": 8,
    "H200": 8,
    "L4": 8,
    "L40s": 8,
    "T4": 8,
    "V100": 8,
    "RTX_PRO_4500": 1,
    "RTX_PRO_6000": 2,
    "GB10": 1,
    # NVIDIA's own spelling of the L40S, unlike the whole card above: so it is in Flyte.
    "T4 shared": 1,
    "L4 shared": 1,
    "A10G shared": 1,
    "A10 shared": 1,
    "L40S shared": 1,
}
_NEURON_COUNTS: dict[str, tuple[int, ...]] = {
    "Inf1": tuple(range(1, 17)),
    "Inf2": tuple(range(1, 13)),
    "Trn1": (1, 4, 8, 16),
    "Trn1n": (1, 4, 8, 16),
    "Trn2": (1, 4, 8, 16),
    "Trn2u": (1, 4, 8, 16),
}
_AMD = ("MI100", "MI210", "MI250", "MI250X", "MI300A", "MI300X", "MI325X", "MI350X", "MI355X")
_GAUDI = ("Gaudi1",)
_APPLE = "AppleSilicon"
_RENAMED = {"A100 80G": "A100_80G", "RTX PRO 6000": "RTX_PRO_6000"}

_A100_80G_SLICES = ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
_MIG_SLICES: dict[str, tuple[str, ...]] = {
    "A100": ("1g.5gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"),
    "A100_80G": _A100_80G_SLICES,
    "H100": ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"),
    "H200": ("1g.18gb", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb"),
    "RTX_PRO_6000": ("1g.24gb", "2g.48gb", "4g.96gb"),
}
_FLAT_SLICES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBE_SLICES = (
    "2x2x1",
    "2x2x2",
    "2x4x4",
    "4x4x4",
    "4x4x8",
    "4x8x8",
    "8x8x8",
    "8x8x16",
    "8x16x16",
    "16x16x16",
    "16x16x24",
)
_TPU_SLICES: dict[str, tuple[str, ...]] = {"V5E": _FLAT_SLICES, "V5P": _CUBE_SLICES, "V6E": _FLAT_SLICES}


def _accelerators() -> dict[str, tuple[DeviceClass, str, int]]:
    table: dict[str, tuple[DeviceClass, str, int]] = {}
    for card, most in _NVIDIA_COUNTS.items():
        for count in range(1, most + 1):
            table[f"{card}:{count}"] = ("GPU", card, count)
    for chip, counts in _NEURON_COUNTS.items():
        for count in counts:
            table[f"{chip}:{count}"] = ("NEURON", chip, count)
    table |= {f"{card}:1": ("AMD_GPU", card, 1) for card in _AMD}
    table |= {f"{card}:1": ("HABANA_GAUDI", card, 1) for card in _GAUDI}
    return table | dict.fromkeys((_APPLE, f"{_APPLE}:1"), ("APPLE_SILICON", _APPLE, 1))


ACCELERATORS = _accelerators()
"""Every text that `gpu` accepts: its class, model and count."""


@dataclass(frozen=True)
class Device:
    """Accelerators of one kind. Prefer GPU(), TPU() and the rest, which check names.

    Args:
        quantity: How many, at least 1.
        device_class: What they are: `"GPU"`, `"TPU"` and so on; not checked.
        device: The model; None is any. Not checked, so it can name a workstation card: `"RTX4090"`.
        partition: A part of one: a MIG profile or a TPU topology.

    Raises:
        ValueError: `quantity` is below 1.

    Source: flyte.Device.
    """

    quantity: int
    device_class: DeviceClass
    device: str | None = None
    partition: str | None = None

    def __post_init__(self) -> None:
        if self.quantity < 1:
            raise ValueError("GPU quantity must be at least 1")

    def __repr__(self) -> str:
        parts = [f"{self.quantity!r}, {self.device_class!r}"]
        parts += [f"{name}={getattr(self, name)!r}" for name in ("device", "partition") if getattr(self, name)]
        return f"Device({', '.join(parts)})"


def GPU(device: str, quantity: int, partition: str | None = None) -> Device:
    """Return NVIDIA GPUs of one model.

    Args:
        device: The model, as Flyte spells it: `"A100"`, `"L40s"`, `"T4 shared"`.
        quantity: How many, at least 1.
        partition: A MIG profile: `"1g.10gb"`; here an existing MIG device of that profile is used.

    Raises:
        ValueError: The model or its partition is unknown, or a shared GPU has a partition.

    Source: flyte.GPU.

    Example:
        >>> GPU("A100", 2)
        Device(2, 'GPU', device='A100')
    """
    device = _renamed(device)
    if quantity < 1:
        raise ValueError("GPU quantity must be at least 1")
    _check_name("GPU", device, tuple(_NVIDIA_COUNTS))
    if partition is not None:
        if device.endswith(_SHARED):
            raise ValueError(
                f"A shared GPU takes no partition, got {partition!r} for {device}."
                " Request a plain device to use a MIG partition."
            )
        _check_partition(device, partition, _MIG_SLICES.get(device))
    return Device(quantity=quantity, device_class="GPU", device=device, partition=partition)


def TPU(device: str, partition: str | None = None) -> Device:
    """Return a TPU slice. For the cluster: a pool on this machine refuses to start with one.

    Raises:
        ValueError: The model (V5E, V5P, V6E) or the topology is unknown.

    Source: flyte.TPU.
    """
    _check_name("TPU", device, tuple(_TPU_SLICES))
    if partition is not None:
        _check_partition(device, partition, _TPU_SLICES[device])
    return Device(quantity=1, device_class="TPU", device=device, partition=partition)


def Neuron(device: str) -> Device:
    """Return an AWS Neuron device, for the cluster. Raises ValueError for an unknown model.

    Source: flyte.Neuron.
    """
    _check_name("Neuron", device, tuple(_NEURON_COUNTS))
    return Device(quantity=1, device_class="NEURON", device=device)


def AMD_GPU(device: str) -> Device:
    """Return an AMD GPU, for the cluster. Raises ValueError for an unknown model.

    Source: flyte.AMD_GPU.
    """
    _check_name("AMD GPU", device, _AMD)
    return Device(quantity=1, device_class="AMD_GPU", device=device)


def HABANA_GAUDI(device: str) -> Device:
    """Return a Habana Gaudi device, for the cluster. Raises ValueError for an unknown model.

    Source: flyte.HABANA_GAUDI.
    """
    _check_name("Habana Gaudi", device, _GAUDI)
    return Device(quantity=1, device_class="HABANA_GAUDI", device=device)


def APPLE_SILICON() -> Device:
    """Return an Apple Silicon GPU, for the cluster. Source: flyte.APPLE_SILICON."""
    return Device(quantity=1, device_class="APPLE_SILICON", device=_APPLE)


def _renamed(device: str) -> str:
    if device not in _RENAMED:
        return device
    logger.warning("GPU type %r is deprecated, use %r instead.", device, _RENAMED[device])
    return _RENAMED[device]


def _check_name(kind: str, device: str, known: tuple[str, ...]) -> None:
    if device not in known:
        raise ValueError(f"Invalid {kind} type: {device}. Must be one of {known}")


def _check_partition(device: str, partition: str, known: tuple[str, ...] | None) -> None:
    # Flyte knows the profiles of some cards only; for the others the machine decides.
    if known is not None and partition not in known:
        raise ValueError(f"Invalid partition for {device}: {partition}. Must be one of {known}")


CpuQuantity = int | float | str


@dataclass
class Resources:
    """What one replica may use. Request and limit may differ where a pair is accepted.

    Args:
        cpu: Cores: a number, at least 0, or a Kubernetes quantity (`"500m"` is half a core), or a pair
            `(request, limit)`. Here the first sets how many threads numerical libraries start.
        memory: A Kubernetes quantity (`"1Gi"`, `"500M"`, `"1024"` bytes) or a pair. Here the last
            is the limit.
        gpu: A count of any model, one of Flyte's texts (`"A100:2"`), or a Device.
        disk: A Kubernetes quantity, for the cluster.
        shm: Shared memory: a Kubernetes quantity or `"auto"`, for the cluster.

    Raises:
        ValueError: A value is of another type, negative, or a GPU name is unknown.

    Source: flyte.Resources, whose names, order and refusals these are.

    Example:
        >>> Resources(gpu="A100:2").get_device()
        Device(2, 'GPU', device='A100')
    """

    cpu: CpuQuantity | tuple[CpuQuantity, CpuQuantity] | None = None
    memory: str | tuple[str, str] | None = None
    gpu: str | int | Device | None = None
    disk: str | None = None
    shm: str | None = None

    def __post_init__(self) -> None:
        for cpu in _elements("cpu", self.cpu):
            if not isinstance(cpu, (int, float, str)):
                raise ValueError(
                    "cpu must be a core count or a Kubernetes quantity string such as 1, 0.5 or '100m', got"
                    f" {type(cpu).__name__}: {cpu!r}"
                )
            if not isinstance(cpu, str) and cpu < 0:
                raise ValueError(f"cpu must be greater than or equal to 0, got {cpu}")
        for memory in _elements("memory", self.memory):
            _check_quantity("memory", memory)
        for name in ("disk", "shm"):
            if getattr(self, name) is not None:
                _check_quantity(name, getattr(self, name))
        self.gpu = _checked_gpu(self.gpu)

    def get_device(self) -> Device | None:
        """Return the accelerators as a Device; None without any."""
        if isinstance(self.gpu, Device):
            return self.gpu
        if isinstance(self.gpu, str):
            device_class, model, count = ACCELERATORS[self.gpu]
            return Device(quantity=count, device_class=device_class, device=model)
        return Device(quantity=self.gpu, device_class="GPU") if self.gpu else None

    def get_shared_memory(self) -> str | None:
        """Return `shm` as Kubernetes wants it: an empty text stands for `"auto"`."""
        return "" if self.shm == "auto" else self.shm


def _elements(name: str, value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, tuple):
        return (value,)
    if len(value) != 2:
        raise ValueError(f"{name} tuple must have exactly two elements, got {len(value)}")
    if None in value:
        raise ValueError(f"{name} pair elements must both be set, got None")
    return value


def _check_quantity(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(
            f"{name} must be a Kubernetes quantity string such as '1Gi', '512Mi' or '2G', got"
            f" {type(value).__name__}: {value!r}"
        )


def _checked_gpu(gpu: Any) -> str | int | Device | None:
    if gpu is None or isinstance(gpu, Device):
        return gpu
    if isinstance(gpu, int):
        if gpu < 0:
            raise ValueError(f"gpu must be greater than or equal to 0, got {gpu}")
        return gpu
    if not isinstance(gpu, str):
        raise ValueError(
            "gpu must be an accelerator string such as 'A100:4', a device count, or a GPU()/TPU()/Device()"
            f" instance, got {type(gpu).__name__}: {gpu!r}"
        )
    model, colon, count = gpu.partition(":")
    name = f"{_RENAMED[model]}{colon}{count}" if model in _RENAMED else gpu
    if name not in ACCELERATORS:
        listed = ", ".join(ACCELERATORS)
        raise with_notes(
            ValueError(f'FJ203 gpu="{gpu}" is not a name that Flyte knows: gpu must be one of {listed}'),
            "Flyte accepts a fixed list of data-centre cards.",
            "Use `gpu=1` here. For the cluster choose a name from its list. To insist on a workstation card:"
            ' `Device(quantity=1, device_class="GPU", device="RTX4090")`.',
        )
    if name != gpu:
        _renamed(model)
    return name


_QUANTITY = re.compile(r"\+?(\d+\.?\d*|\.\d+)(?:([eE][+-]?\d+)|([numkKMGTPE]i?|))")
_SUFFIXES = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_FRACTIONS = {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3")}


def _quantity(name: str, text: str) -> Decimal:
    found = _QUANTITY.fullmatch(text.strip())
    if not found or (found[3] and found[3][0] in _FRACTIONS and len(found[3]) > 1):
        raise ValueError(f"{name}={text!r} is not a Kubernetes quantity, such as '1Gi', '500M', '2' or '500m'")
    number, exponent, suffix = found.groups()
    value = Decimal(number + (exponent or ""))
    if not suffix:
        return value
    if suffix in _FRACTIONS:
        return value * _FRACTIONS[suffix]
    return value * Decimal(1024 if suffix.endswith("i") else 1000) ** _SUFFIXES[suffix[0]]


def memory_bytes(memory: str | tuple[str, str] | None) -> int | None:
    """Return the limit in bytes: the last element, rounded up; None without one.

    Raises:
        ValueError: It is not a Kubernetes quantity. Flyte finds that out on its platform only.

    Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/

    Example:
        >>> memory_bytes(("1Gi", "500M"))
        500000000
    """
    if memory is None:
        return None
    return math.ceil(_quantity("memory", memory[-1] if isinstance(memory, tuple) else memory))


def cpu_cores(cpu: CpuQuantity | tuple[CpuQuantity, CpuQuantity] | None) -> float | None:
    """Return how many cores are requested: the first element; None without one.

    Raises:
        ValueError: It is not a Kubernetes quantity, or not finite.

    Example:
        >>> cpu_cores("500m")
        0.5
    """
    if cpu is None:
        return None
    first = cpu[0] if isinstance(cpu, tuple) else cpu
    cores = float(_quantity("cpu", first)) if isinstance(first, str) else float(first)
    if not math.isfinite(cores):
        raise ValueError(f"cpu={first!r} is not a count of cores")
    return cores


def device_request(resources: Resources | None) -> DeviceRequest:
    """Return the GPUs one replica needs on this machine.

    Raises:
        NoUsableGPU: The device is of a kind that only a cluster has.
        ValueError: The quantity is no whole number.
    """
    device = resources.get_device() if resources is not None else None
    if device is None:
        return DeviceRequest(count=0)
    if device.device_class != "GPU":
        named = " ".join(part for part in (device.device_class, device.device, device.partition) if part)
        raise NoUsableGPU("pools on this machine use NVIDIA GPUs only", wanted=device.quantity, device=named)
    if device.quantity != int(device.quantity):
        raise ValueError(f"a replica cannot have {device.quantity} GPUs; name a MIG partition to use part of one")
    # A time-sliced card is a whole one here until replicas can share: the model is what can be looked for.
    model = device.device.removesuffix(_SHARED) if device.device else None
    return DeviceRequest(count=int(device.quantity), model=model, partition=device.partition)
