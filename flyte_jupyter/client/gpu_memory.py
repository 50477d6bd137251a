"""Says who holds a GPU's memory, in the notes of an error that says that there is too little of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from .. import errors
from ..core import failure
from ..core.snapshot import DeviceView
from ..core.usage import DeviceUsage, OwnerView, Usage
from . import broker
from .text import visible

CODE: Final = "FJ501"
WAIT_S: Final = 2.0
"""How long an error is held back for a measurement, and how old that may be. Opening a driver takes some time."""
PAUSE_S: Final = 0.05
GIB: Final = 1 << 30

_SAYS_SO: Final = re.compile(r"OutOfMemoryError|CUDA\b.*\bout of memory", re.IGNORECASE)
"""torch's error, also where its class is not known here, and what others call the same."""


def ran_out(error: BaseException) -> bool:
    """Whether a task, or a preload, found too little memory on its GPU."""
    if isinstance(error, errors.PoolFailed):
        return bool(_SAYS_SO.search(error.traceback or error.cause))
    # What its replica has said of it: the error itself is a user's, and may raise when it is asked for its text.
    described = failure.of(error)
    return described is not None and bool(_SAYS_SO.search(f"{described.code} {described.name}: {described.message}"))


def name_holders(error: BaseException, task: str) -> None:
    """Add notes on who holds the memory now. It waits for a measurement; without one, nothing is added."""
    if any(note.startswith(CODE) for note in getattr(error, "__notes__", ())):
        return  # it comes from a task that this task has called
    where: str | None = getattr(error, "_flyte_jupyter_replica", None)
    devices, usage = _measured()
    mine = [device for device in devices if device.uuid in usage.devices and where in (None, device.replica_name)]
    if not mine:
        return
    what = "The preload" if isinstance(error, errors.PoolFailed) else f"Task {task}"
    free = ", ".join(_free(device, usage.devices[device.uuid]) for device in mine)
    held = _held(owner for device in mine for owner in usage.devices[device.uuid].owners)
    errors.with_notes(
        error,
        f"{CODE} {what} ran out of GPU memory{f' on {where}' if where else ''}: {free}.",
        f"Held by: {held}." if held else None,
        "Use a smaller batch, or free what is held: `flyte-jupyter restart 'NAME[i]'` replaces a replica with all that"
        " it has loaded, `flyte-jupyter stop POOL` ends a pool.",
    )


def _measured() -> tuple[tuple[DeviceView, ...], Usage]:
    connection = broker.current()
    since = time.monotonic()  # one clock for all processes
    with suppress(errors.PoolError):
        while connection is not None and time.monotonic() < since + WAIT_S:
            snapped = connection.snapshot(usage=True)
            at = snapped.usage.measured_at
            if at is not None and at > since - WAIT_S:
                return snapped.snapshot.devices, snapped.usage
            time.sleep(PAUSE_S)
    return (), Usage()


def _free(device: DeviceView, usage: DeviceUsage) -> str:
    if not device.memory_bytes:  # it shares the processor's, and nobody says how much there is
        return f"{usage.used_bytes / GIB:.1f} GiB in use on GPU {device.index}"
    free = max(0, device.memory_bytes - usage.used_bytes)
    return f"{free / GIB:.1f} of {device.memory_bytes / GIB:.1f} GiB free on GPU {device.index}"


def _held(owners: Iterable[OwnerView]) -> str:
    """By whom, the largest first; what a replica has started counts as its own."""
    amounts: dict[str, int] = {}
    for owner in owners:
        name = _name(owner)
        amounts[name] = amounts.get(name, 0) + (owner.bytes or 0)
    ordered = sorted(amounts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {much / GIB:.1f}" if much else name for name, much in ordered)


def _name(owner: OwnerView) -> str:
    label = visible(owner.label)
    if owner.kind == "replica":
        return label
    if owner.kind == "notebook":
        return f'the notebook "{label}"'
    return f'another process "{label}"' + (f" of user {visible(owner.user)}" if owner.user else "")
