"""Which GPUs the machine has, and which replica holds which."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU or a MIG instance. `uuid` is what CUDA_VISIBLE_DEVICES takes; memory is in bytes."""

    uuid: str
    model: str
    memory_bytes: int = 0
    partition: str | None = None
    index: int = 0
