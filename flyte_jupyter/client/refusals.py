"""Why the broker gives no slot, as errors."""

from __future__ import annotations

from .. import errors
from ..core import protocol as p
from ..core.format import last_line


def explain_refusal(message: p.Refused) -> errors.BaseRuntimeError:
    """The broker's reason as the error that a caller sees."""
    detail = message.detail
    pool = detail.get("pool", "")
    match message.reason:
        case "no-such-pool":
            return errors.NoSuchPool(pool, [name for name in detail.get("pools", "").split(", ") if name])
        case "no-such-replica":
            return errors.NoSuchReplica(detail.get("replica", ""))
        case "no-gpu":
            return errors.NoUsableGPU(detail.get("problem") or "this machine has none", float(detail.get("wanted", 1)))
        case "no-room":
            held: dict[str, str] = {}
            for part in filter(None, detail.get("held", "").split(", ")):  # "GPU 0: infer[0]"
                device, _, holder = part.partition(": ")
                held[holder] = f"{held[holder]} and {device}" if holder in held else device
            return errors.NoRoom.gpus(pool, int(detail["wanted"]), int(detail["total"]), held)
        case "pool-failed":
            cause = detail.get("cause", "").strip()
            return errors.PoolFailed(
                pool,
                last_line(cause),
                detail.get("replica"),
                traceback=cause,
                preload=detail.get("state") != "starting",
            )
        case "pool-stopped":
            return errors.PoolStopped(pool)
        case "cancelled":
            return errors.TaskCancelled(detail["task"], queued=True)
        case "starvation":
            return errors.StarvationError(
                detail["parent"],
                detail["child"],
                pool,
                max_replicas=int(detail["replicas"]),
                concurrency=int(detail["concurrency"]),
                cell=detail.get("cell", ""),
                memory=detail.get("lacks") == "memory",
            )
