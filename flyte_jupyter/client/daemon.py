"""The broker's process: a client that finds none starts it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from .. import errors, runtime


def start_daemon(folder: Path) -> subprocess.Popen[bytes] | None:
    """Start a broker, unless another process is doing just that. Ten clients at once start one."""
    with open(folder / "start.lock", "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        logs = runtime.log_folder(folder)
        logs.mkdir(mode=0o700, exist_ok=True)
        with open(logs / "broker.out", "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
            # Detached in every way: whoever reads this process's pipes must not wait for the daemon's end.
            # It inherits the start lock, so that nobody starts a second one before this one has its own lock.
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "flyte_jupyter.broker"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
                env={**os.environ, runtime.VARIABLE: str(folder)},
            )


def start_failure(folder: Path, how: str) -> errors.BrokerUnavailable:
    """Why it could not be started, with the end of what it has printed."""
    out = runtime.log_folder(folder) / "broker.out"
    tail = ""
    with suppress(OSError):
        tail = "\n".join(out.read_text("utf-8", "replace").splitlines()[-10:])
    return errors.BrokerUnavailable(how, str(runtime.broker_log(folder)), tail)
