"""The broker's and the replicas' processes, found without asking the broker."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any


def wait_gone(process: Any, timeout: float) -> bool:
    import psutil

    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            # A zombie is gone: its parent may be a notebook that looks after it later.
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def is_broker(process: Any) -> bool:
    return process.uids().real == os.getuid() and "flyte_jupyter.broker" in process.cmdline()


def replica_processes(folder: Path) -> dict[int, str]:
    """Every process that belongs to a replica of this runtime folder, and which replica that is."""
    from .. import orphans

    # The folder alone is no proof: a shell that sets the variable has it, too.
    tag = f"{orphans.REPLICA_TAG}=".encode()
    found = {}
    for pid in orphans.tagged(**{orphans.RUNTIME_TAG: str(folder)}):
        with contextlib.suppress(OSError):
            for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if variable.startswith(tag):
                    found[pid] = os.fsdecode(variable[len(tag) :])
    return found


def end_leftovers(folder: Path, patience: float) -> list[int]:
    """Give the guardian a moment, then kill what is still there."""
    from .. import orphans

    deadline = time.monotonic() + patience
    while (left := replica_processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    ended: list[int] = []
    for replica in set(left.values()):
        tags = {orphans.RUNTIME_TAG: str(folder), orphans.REPLICA_TAG: replica}
        ended += orphans.end(**tags)
    return ended
