"""Where the local sockets, locks and logs are: one private folder per user, found by client and broker alike."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct
import time
import warnings
from pathlib import Path
from typing import Final

from .errors import BrokerUnavailable

VARIABLE: Final = "FLYTE_JUPYTER_RUNTIME_DIR"
MAX_SOCKET_PATH: Final = 100
LONGEST_NAME: Final = len("/fj012345/01234567-99999/task.sock")
"""The longest path below the runtime folder that a socket gets."""


def runtime_folder() -> Path:
    """The folder's path; it need not exist yet. FLYTE_JUPYTER_RUNTIME_DIR overrides the platform's place."""
    stated = os.environ.get(VARIABLE)
    if stated:
        return Path(os.path.abspath(os.path.expanduser(stated)))
    import platformdirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its fallback below /tmp is checked as strictly as any other place
        return Path(platformdirs.user_runtime_dir("flyte_jupyter"))


def private_folder() -> Path:
    """The folder, made if needed, and certainly ours alone.

    Raises:
        BrokerUnavailable: It cannot be made, belongs to somebody else, is a symbolic link, others may write there
            or to a folder above it, or its path is too long for a Unix socket. The message names the path and
            what to do.
    """
    folder = runtime_folder()
    length = len(os.fsencode(folder))
    if length + LONGEST_NAME > MAX_SOCKET_PATH:
        raise BrokerUnavailable(
            f"the runtime folder's path is too long for Unix sockets ({length} bytes, "
            f"at most {MAX_SOCKET_PATH - LONGEST_NAME}): {folder}",
            do=f"Set {VARIABLE} to a shorter path, for example below /tmp.",
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        problem = _danger(folder)
    except OSError as error:
        raise BrokerUnavailable(
            f"the runtime folder cannot be used: {folder}: {error.strerror}",
            do=f"Make it writable, or set {VARIABLE} to another path.",
        ) from None
    if problem is not None:
        raise BrokerUnavailable(
            f"the runtime folder is not safe: {problem}",
            do=f"Repair it (chmod 700), or set {VARIABLE} to another path.",
        )
    return folder


def _danger(folder: Path) -> str | None:
    """Why somebody else could read, write or replace the folder."""
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"{folder} is a symbolic link"
    if not stat.S_ISDIR(status.st_mode):
        return f"{folder} is not a folder"
    if status.st_uid != os.getuid():
        return f"{folder} belongs to user {status.st_uid}, not to you ({os.getuid()})"
    if status.st_mode & 0o077:
        return f"{folder} is open to others (mode {stat.S_IMODE(status.st_mode):04o}, must be 0700)"
    for parent in folder.parent.resolve().joinpath("x").parents:
        mode = parent.stat().st_mode
        if mode & 0o002 and not mode & stat.S_ISVTX:
            # Whoever may write there can put a folder of his own in the place of ours.
            return f"others may write to {parent} above it (mode {stat.S_IMODE(mode):04o}, not sticky)"
    return None


def broker_socket(folder: Path) -> Path:
    return folder / "broker.sock"


def broker_lock(folder: Path) -> Path:
    return folder / "broker.lock"


def broker_log(folder: Path) -> Path:
    return folder / "logs" / "broker.log"


def log_folder(folder: Path) -> Path:
    return folder / "logs"


def private(path: str, flags: int) -> int:
    """For `open(opener=...)`: a file that is made is its owner's alone."""
    return os.open(path, flags, 0o600)


def lock_holder(folder: Path) -> int | None:
    """The pid of the broker that runs in `folder`: it holds the lock for life; without it a pid is old."""
    try:
        lock = open(broker_lock(folder), encoding="utf-8")  # noqa: SIM115
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


def peer_uid(stream: socket.socket) -> int:
    """The user at the other end of a Unix socket, as the operating system knows it."""
    if hasattr(socket, "SO_PEERCRED"):
        return int(struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])
    local_peercred, xucred_bytes = 0x001, 76  # macOS: struct xucred begins with a version and the uid
    return int(struct.unpack_from("=II", stream.getsockopt(0, local_peercred, xucred_bytes))[1])


def peer_pid(stream: socket.socket) -> int:
    """The process at the other end of a Unix socket, as the operating system knows it; 0 if it cannot be seen here."""
    if hasattr(socket, "SO_PEERCRED"):
        return int(struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    local_peerpid = 0x002  # macOS
    return int(struct.unpack("=i", stream.getsockopt(0, local_peerpid, 4))[0])
