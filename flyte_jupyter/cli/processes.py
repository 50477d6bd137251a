"""The broker's and the replicas' processes, found without asking the broker."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Any

from .. import runtime


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


def lock_holder(folder: Path) -> int | None:
    """The pid of the broker that runs in `folder`: it holds the lock for life; without it a pid is old."""
    try:
        lock = open(runtime.broker_lock(folder), encoding="utf-8")  # noqa: SIM115
    except OSError:
        return None
    with lock:
        for _ in range(50):
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            except BlockingIOError:
                lock.seek(0)
                pid = lock.read().strip()
                if pid.isdigit():
                    return int(pid)
            time.sleep(0.02)  # it has the lock, and is about to write its pid
    return None


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
