"""FJ2xx: the machine has too little of something."""

from __future__ import annotations

from collections.abc import Mapping

from .flyte import RuntimeUserError
from .ours import PoolError


class NoRoom(PoolError, RuntimeUserError):
    """The machine has too little of something for even one replica, or for one more.

    Args:
        what: What was asked for and what there is, in one sentence.
        held_by: Who holds it, and how much: `{"gpu[0]": "6.6"}`.
        do: What can be done about it.
    """

    fj_code = "FJ201"

    def __init__(self, what: str, held_by: Mapping[str, str] | None = None, do: str | None = None) -> None:
        holders = dict(held_by or {})
        held = ", ".join(f"{name} {much}".strip() for name, much in holders.items())
        self._explain("user", what, f"Held by: {held}." if held else None, do)
        self.held_by = holders

    @classmethod
    def gpus(
        cls,
        environment: str,
        wanted: int,
        total: int,
        held_by: Mapping[str, str] | None = None,
        model: str = "",
    ) -> NoRoom:
        """Return the error for an environment that wants `wanted` of the `total` GPUs per replica."""
        card = f"{model} GPUs" if model else "GPUs"
        fewer = f"Ask for at most {total}: `resources=Resources(gpu={total})`." if total else ""
        return cls(
            f'Not enough GPUs to start a replica of "{environment}": {wanted} {card} wanted per replica,'
            f" this machine has {total}.",
            held_by,
            fewer or "Leave `gpu` out to run on the CPU.",
        )


class NoUsableGPU(PoolError, RuntimeUserError):
    """A pool asks for a GPU, and none can be used at all.

    Args:
        reason: Why not: `"the NVIDIA driver did not answer"`.
        wanted: How many GPUs one replica asks for.
        device: What is asked for, if it is not just any GPU: `"TPU V5E"`.
    """

    fj_code = "FJ202"

    def __init__(self, reason: str, wanted: float = 1, device: str | None = None) -> None:
        if device is None:
            requested = f"{wanted:g} GPU was" if wanted == 1 else f"{wanted:g} GPUs were"
            why = f"{requested} requested, but {reason}."
            do = (
                "Check that the driver tool lists a GPU in a terminal."
                " `flyte-jupyter doctor` shows what was found. To continue on the CPU, leave `gpu` out of the"
                " environment's resources."
            )
        else:
            why = f"{device} was requested, but {reason}."
            do = "Use `gpu=1` here, or leave `gpu` out to run on the CPU; keep the device for the cluster."
        self._explain("user", "No GPU can be used by this pool.", why, do)
        self.reason = reason
        self.wanted = wanted
        self.device = device
