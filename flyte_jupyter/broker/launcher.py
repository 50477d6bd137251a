"""Starts and ends kernel processes: `jupyter_client` with a provisioner of our own."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import anyio
from anyio import to_thread
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from .. import orphans, runtime
from ..core.commands import StartReplica
from ..core.events import Event, ReplicaFailed
from ..core.protocol import Declaration
from . import seams
from .exits import Child, Exit, kill_group, reap_strangers, wait_exit
from .life import Life, Orders
from .variables import base_environment, replica_environment
from .zygotes import CannotFork, Zygotes

log = logging.getLogger(__name__)

LOG_TAIL_LINES: Final = 40
KEPT_LOGS: Final = 50


class ReplicaProvisioner(LocalProvisioner):
    """Runs a kernel in a session of its own, with the task channel's socket and a log file instead of a terminal."""

    listening: socket.socket
    log_path: Path
    child: Child | None = None
    fork: Callable[[list[str], dict[str, str], str], Awaitable[Child | None]]

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        self.child = await self.fork(cmd, kwargs["env"], kwargs["cwd"])
        if self.child is None:
            self.child = self._spawn(cmd, kwargs)
        self.process = cast(Any, self.child)  # it has the part of Popen's interface that is used
        self.pid = self.pgid = self.child.pid
        return self.connection_info

    def _spawn(self, cmd: list[str], kwargs: dict[str, Any]) -> Child:
        with open(self.log_path, "ab", opener=runtime.private) as log:
            # From the broker's main thread: the child asks the system to end it with the thread that started it.
            return subprocess.Popen(
                cmd,
                env=kwargs["env"],
                cwd=kwargs["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(self.listening.fileno(),),
            )


class Launcher:
    """The processes of one broker. `folder` is the runtime folder, `tag` marks what this broker started."""

    def __init__(self, folder: Path, tag: str) -> None:
        self._folder = folder / tag
        self._logs = folder / "logs"
        self._runtime = folder
        self._tag = tag
        self._logs.mkdir(mode=0o700, exist_ok=True)
        self.children: set[int] = set()
        self.zygotes = Zygotes(self._logs, self.children)
        self.spawned: dict[str, str] = {}  # pool -> why its replicas are not forked

    def address(self, replica: str) -> str:
        """Path of a replica's task channel."""
        return str(self._folder / replica / "task.sock")

    def log_path(self, replica: str) -> Path:
        return self._logs / f"{replica}.log"

    async def live(
        self,
        command: StartReplica,
        declaration: Declaration,
        name: str,
        post: Callable[[Event], None],
        ended: Callable[[str], None],
        orders: Orders,
    ) -> Exit:
        """A replica's whole life: start, preload, watch, end. Nothing of it is left when this returns.

        `post` gets the events of its life except its end, `ended` the leases whose abandoned call has stopped.
        """
        replica = command.replica
        place = self._folder / replica
        exit_ = Exit("did not start")
        provisioner = ReplicaProvisioner(kernel_id=replica)
        manager: AsyncKernelManager | None = None
        self._prune_logs()
        try:
            place.mkdir(mode=0o700, parents=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
                listening.bind(self.address(replica))
                listening.listen(256)
                provisioner.listening = listening
                provisioner.log_path = self.log_path(replica)
                manager = self._manager(place, replica, declaration, provisioner)
                base = base_environment(declaration, self._runtime, self._tag)
                environment = replica_environment(command, declaration, base, name, listening.fileno())
                provisioner.fork = partial(self._fork, command, declaration, base, listening)
                await manager.start_kernel(env=environment, cwd=str(place))
            assert provisioner.child is not None
            self.children.add(provisioner.child.pid)
            life = Life(replica, provisioner.child, declaration, post, ended, orders)
            await life.watch(self.address(replica))
            exit_ = life.exit(self._tail(replica))
        except (OSError, ValueError) as problem:
            command_line = declaration.spec.interpreter
            cause = f"{command_line}: {getattr(problem, 'strerror', None) or problem}"
            post(ReplicaFailed(replica, cause))
            exit_ = Exit(cause)
        finally:
            with anyio.CancelScope(shield=True):
                if manager is not None and provisioner.child is not None:
                    exit_ = await self._end(manager, provisioner.child, replica, exit_)
                shutil.rmtree(place, ignore_errors=True)
        return exit_

    # --- start

    def _manager(
        self, place: Path, replica: str, declaration: Declaration, provisioner: ReplicaProvisioner
    ) -> AsyncKernelManager:
        manager = AsyncKernelManager(
            kernel_name="flyte-replica",
            connection_file=str(place / "kernel.json"),
            transport="ipc",
            ip=str(place / "k"),
        )
        spec = KernelSpec(
            # -P: what happens to lie in a folder must not be imported by accident.
            argv=[
                declaration.spec.interpreter,
                "-P",
                "-m",
                "flyte_jupyter.kernel",
                "-f",
                "{connection_file}",
            ],
            display_name="flyte_jupyter replica",
            language="python",
        )
        provisioner.kernel_spec = spec
        provisioner.parent = manager
        seams.set_kernel_spec(manager, spec)
        manager.provisioner = provisioner
        manager.kernel_id = replica
        return manager

    async def _fork(
        self,
        command: StartReplica,
        declaration: Declaration,
        base: dict[str, str],
        listening: socket.socket,
        cmd: list[str],
        environment: dict[str, str],
        cwd: str,
    ) -> Child | None:
        """A forked replica; None where it has to be spawned, and then `spawned` says why."""
        if not self.zygotes.possible:
            return None
        request = {"environment": environment, "cwd": cwd, "arguments": cmd[cmd.index("-f") :]}
        reason = ""
        for preimports in dict.fromkeys((declaration.preimports, ())):  # without them rather than not at all
            try:
                child = await self.zygotes.fork(
                    declaration.spec.interpreter,
                    base,
                    preimports,
                    declaration.scaling.idle_ttl,
                    request,
                    self.log_path(command.replica),
                    listening,
                )
            except CannotFork as problem:
                reason = reason or str(problem)
                log.info("cannot fork with preimports (%s): %s", ", ".join(preimports), problem)
            else:
                self.spawned.pop(command.pool, None)
                if reason:
                    self.spawned[command.pool] = f"forked without preimports: {reason}"
                return child
        self.spawned[command.pool] = f"spawned, not forked: {reason}"
        return None

    # --- end

    async def _end(self, manager: AsyncKernelManager, process: Child, replica: str, exit_: Exit) -> Exit:
        kill_group(process.pid)
        await wait_exit(process)
        self.children.discard(process.pid)
        self.zygotes.gone(process.pid)
        # Whatever it started in a session of its own carries its tag, and is ours since its parent died.
        await to_thread.run_sync(lambda: orphans.end(**{orphans.REPLICA_TAG: replica, orphans.BROKER_TAG: self._tag}))
        reap_strangers(self.children)
        with contextlib.suppress(Exception):
            await manager.cleanup_resources()
        return exit_

    def _tail(self, replica: str) -> str:
        try:
            with self.log_path(replica).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 16_384))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _prune_logs(self) -> None:
        logs = sorted(self._logs.glob("*-*.log"), key=lambda path: path.stat().st_mtime)
        for old in logs[:-KEPT_LOGS]:
            old.unlink(missing_ok=True)
