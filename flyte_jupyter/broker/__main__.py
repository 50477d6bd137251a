"""`python -m flyte_jupyter.broker`: the daemon. The first client that finds none starts it."""

from __future__ import annotations

import fcntl
import logging
import logging.handlers
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Final

import anyio

from .. import _version, orphans, runtime
from ..core.scheduler import Scheduler
from ..devices import find_devices
from ..errors import BrokerUnavailable
from .engine import Engine
from .memory import find_memory
from .sampler import Sampler
from .server import serve

log = logging.getLogger("flyte_jupyter.broker")

PREFIX: Final = "fj"
"""Of the folder below the runtime folder in which one broker keeps the sockets of its replicas."""


def main() -> int:
    """Run until told to stop, or idle for long. 0: ended, or another broker runs already; 2: cannot run."""
    os.umask(0o077)
    try:
        folder = runtime.private_folder()
        lock = _lock(folder)
    except (BrokerUnavailable, OSError) as problem:
        print(f"flyte_jupyter broker: {problem}", file=sys.stderr)
        return 2
    if lock is None:
        return 0
    with lock:
        os.environ[runtime.VARIABLE] = str(folder)
        os.chdir(folder)
        _log_to(runtime.broker_log(folder))
        log.info("broker %s, pid %d, Python %s", _version.__version__, os.getpid(), sys.executable)
        try:
            anyio.run(_run, folder)
        except Exception:
            log.exception("the broker failed")
            return 1
        log.info("ended")
    return 0


def _lock(folder: Path) -> IO[str] | None:
    """Held for life. Only its holder may touch the socket, so two brokers never own the same pools."""
    # Opened without truncating: a loser of the race must not wipe the winner's pid.
    lock = open(os.open(runtime.broker_lock(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    lock.truncate()
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


async def _run(folder: Path) -> None:
    # jupyter_client is most of the daemon's start-up; the socket need not wait for it.
    tag = PREFIX + secrets.token_hex(3)
    _sweep(folder)
    async with anyio.create_task_group() as tasks:
        from .exits import become_subreaper
        from .launcher import Launcher

        become_subreaper()
        launcher = Launcher(folder, tag)
        guardian = _start_guardian(folder, tag)
        launcher.children.add(guardian.pid)
        engine = Engine(
            Scheduler(),
            launcher,
            idle_s=float(os.environ.get("FLYTE_JUPYTER_BROKER_IDLE_S", "600")),
            find_devices=find_devices,
            log_dir=str(runtime.log_folder(folder)),
            zygotes=launcher.zygotes.views,
            spawned=launcher.spawned,
            sampler=Sampler.of_this_machine(),
            find_memory=find_memory,
        )
        tasks.start_soon(_on_signals, engine)
        tasks.start_soon(launcher.zygotes.retire)
        tasks.start_soon(serve, runtime.broker_socket(folder), engine)
        try:
            await engine.run()
        finally:
            with anyio.CancelScope(shield=True):
                await launcher.zygotes.end()
            assert guardian.stdin is not None
            guardian.stdin.close()
            guardian.wait(10)
            shutil.rmtree(folder / tag, ignore_errors=True)
        tasks.cancel_scope.cancel()


async def _on_signals(engine: Engine) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("signal %s", signal.Signals(number).name)
            engine.end()


def _start_guardian(folder: Path, tag: str) -> subprocess.Popen[bytes]:
    """A process that outlives a killed broker just long enough to end what it started."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", orphans.__file__, tag, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        start_new_session=True,
    )


def _sweep(folder: Path) -> None:
    """What an earlier broker left behind although its guardian died too."""
    mine = {orphans.RUNTIME_TAG: str(folder)}
    for pid in orphans.tagged(**mine):
        if orphans.is_replica(pid) and orphans.kill(pid, **mine):
            log.warning("ended a leftover of an earlier broker: pid %d", pid)
    for entry in folder.iterdir():
        # Nothing else: somebody may have named a folder of his own as the runtime folder.
        if re.fullmatch(PREFIX + "[0-9a-f]{6}", entry.name) and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)


def _log_to(path: Path) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=2_000_000, backupCount=1)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=os.environ.get("FLYTE_JUPYTER_LOG", "INFO"))


if __name__ == "__main__":
    sys.exit(main())
