"""The ends of processes: waited for, brought about, and described."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import anyio
import psutil

from .zygotes import ForkedProcess

Child = subprocess.Popen[bytes] | ForkedProcess


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. `cause` is for people."""

    cause: str
    exit_code: int | None = None
    signal: str | None = None
    out_of_memory: bool = False
    log_tail: str = ""


def exit_of(code: int | None, tail: str, cause: str = "", out_of_memory: str = "") -> Exit:
    """The end of a process with this exit status.

    Args:
        tail: The end of its log.
        cause: A better explanation than the status, if there is one.
        out_of_memory: How much it used, if it was ended for that.
    """
    if out_of_memory:
        return Exit(f"out of memory: {out_of_memory}", signal="SIGKILL", out_of_memory=True, log_tail=tail)
    cause = cause or status_text(code)
    if code is not None and code < 0:
        return Exit(cause, signal=status_text(code).removeprefix("signal "), log_tail=tail)
    return Exit(cause, exit_code=code, log_tail=tail)


def status_text(code: int | None) -> str:
    """An exit status in words."""
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name if -code in set(signal.Signals) else -code}"


async def wait_exit(process: Child) -> None:
    """Return once the process has ended; it is reaped then."""
    if not hasattr(os, "pidfd_open"):
        while process.poll() is None:
            await anyio.sleep(0.02)
        return
    if process.poll() is not None:
        return
    fd = os.pidfd_open(process.pid)
    try:
        await anyio.wait_readable(fd)
    finally:
        os.close(fd)
    process.wait()


def kill_group(pid: int) -> None:
    """SIGKILL to a process group that we created."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def become_subreaper() -> None:
    """Descendants of a dead replica become our children, not init's: so they can be found and reaped (Linux)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def reap_strangers(ours: set[int]) -> None:
    """Collect dead processes that were adopted; `ours` are left to their Popen."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if child.pid not in ours and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
