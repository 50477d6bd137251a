"""Starts, watches and ends kernel processes: `jupyter_client` with a provisioner of our own."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import anyio
import anyio.abc
import psutil
from anyio import to_thread
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from .. import orphans
from ..core.commands import StartReplica
from ..core.events import Call, CallsReported, Event, LeaseUse, ReplicaFailed, ReplicaLoading, ReplicaReady
from ..core.frames import Buffer, FrameReader, Kind, encode
from ..core.protocol import Declaration
from ..usage import Processes
from .zygotes import CannotFork, ForkedProcess, Zygotes

log = logging.getLogger(__name__)

POLITE_S: Final = 3.0
"""How long an idle replica may take to end itself."""
LAST_WORDS_S: Final = 0.1
"""How long the end of a replica's connection is waited for: a process that it has forked may hold it open."""
LOG_TAIL_LINES: Final = 40
MEMORY_CHECK_S: Final = 0.5
KEPT_LOGS: Final = 50


@dataclass(slots=True)
class Orders:
    """What the engine wants of a living replica."""

    stop: anyio.Event = field(default_factory=anyio.Event)
    kill: anyio.Event = field(default_factory=anyio.Event)
    said: anyio.Event = field(default_factory=anyio.Event)
    words: deque[tuple[Kind, str]] = field(default_factory=deque)

    def ask_after(self, lease: str) -> None:
        """Let the replica say when nothing runs in this lease any more."""
        self._say(Kind.ASK, lease)

    def interrupt(self, lease: str | None) -> None:
        """Stop the call that runs in this lease; without one, all that run."""
        self._say(Kind.INTERRUPT, lease or "")

    def _say(self, kind: Kind, body: str) -> None:
        self.words.append((kind, body))
        self.said.set()


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended. `cause` is for people."""

    cause: str
    exit_code: int | None = None
    signal: str | None = None
    out_of_memory: bool = False
    log_tail: str = ""


Child = subprocess.Popen[bytes] | ForkedProcess


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
        with open(self.log_path, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
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
                environment = self._environment(command, declaration, name, listening)
                provisioner.fork = partial(self._fork, command, declaration, listening)
                await manager.start_kernel(env=environment, cwd=str(place))
            assert provisioner.child is not None
            self.children.add(provisioner.child.pid)
            exit_ = await self._watch(provisioner.child, command, declaration, post, ended, orders)
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
        manager._kernel_spec = spec
        manager.provisioner = provisioner
        manager.kernel_id = replica
        return manager

    async def _fork(
        self,
        command: StartReplica,
        declaration: Declaration,
        listening: socket.socket,
        cmd: list[str],
        environment: dict[str, str],
        cwd: str,
    ) -> Child | None:
        """A forked replica; None where it has to be spawned, and then `spawned` says why."""
        if not self.zygotes.possible:
            return None
        base = self._base_environment(declaration)
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

    def _base_environment(self, declaration: Declaration) -> dict[str, str]:
        """What all replicas of an environment start with: a zygote's environment. No secrets, no devices."""
        spec = declaration.spec
        environment = {"PATH": os.defpath, **declaration.inherited_env}
        if spec.cpu is not None:
            threads = str(max(1, math.ceil(_cpus(spec.cpu))))
            for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                environment.setdefault(variable, threads)
        environment.update(spec.env_vars)
        environment.update(
            {
                # Tagged like a replica: a forked one shows its zygote's environment to whoever looks for leftovers.
                orphans.BROKER_TAG: self._tag,
                orphans.REPLICA_TAG: "zygote",
                orphans.RUNTIME_TAG: str(self._runtime),
                "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            }
        )
        return environment

    def _environment(
        self, command: StartReplica, declaration: Declaration, name: str, listening: socket.socket
    ) -> dict[str, str]:
        environment = self._base_environment(declaration)
        environment.update({key: value.get_secret_value() for key, value in declaration.secret_values.items()})
        environment.update(declaration.spec.env_vars)
        environment.update(
            {
                # A pool without GPUs sees none: it must not take memory from those that have one.
                "CUDA_VISIBLE_DEVICES": ",".join(command.devices),
                orphans.REPLICA_TAG: command.replica,
                "FLYTE_JUPYTER_REPLICA_NAME": name,
                "FLYTE_JUPYTER_PARENT": str(os.getpid()),
                "FLYTE_JUPYTER_TASK_FD": str(listening.fileno()),
            }
        )
        return environment

    # --- watch

    async def _watch(
        self,
        process: Child,
        command: StartReplica,
        declaration: Declaration,
        post: Callable[[Event], None],
        ended: Callable[[str], None],
        orders: Orders,
    ) -> Exit:
        replica = command.replica
        note: dict[str, str] = {}
        heard = anyio.Event()
        async with (
            await anyio.connect_unix(self.address(replica)) as supervisor,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(self._set_up, supervisor, command, declaration, post, ended, note, heard)
            tasks.start_soon(self._obey, supervisor, process, orders, note)
            if declaration.spec.memory_bytes:
                tasks.start_soon(self._watch_memory, process, declaration.spec.memory_bytes, note)
            await wait_exit(process)
            with anyio.move_on_after(LAST_WORDS_S):
                await heard.wait()
            tasks.cancel_scope.cancel()
        return describe_exit(process.returncode, note, self._tail(replica))

    async def _set_up(
        self,
        supervisor: anyio.abc.SocketStream,
        command: StartReplica,
        declaration: Declaration,
        post: Callable[[Event], None],
        ended: Callable[[str], None],
        note: dict[str, str],
        heard: anyio.Event,
    ) -> None:
        """Hand it the preload, and hear what it says; `heard` is set once it will say nothing more."""
        replica = command.replica
        payload = declaration.preload.payload if declaration.preload is not None else b""
        reader = FrameReader()
        ready = False
        with anyio.CancelScope() as patience:
            patience.deadline = anyio.current_time() + declaration.start_timeout
            with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):  # it died: the watcher knows
                for piece in encode(Kind.HELLO, 0, json.dumps({"role": "supervisor"}).encode()):
                    await supervisor.send(bytes(piece))
                for piece in encode(Kind.SETUP, 0, payload):
                    await supervisor.send(bytes(piece))
                while True:
                    reader.feed(await supervisor.receive())
                    while (frame := reader.next_frame()) is not None:
                        if frame.kind == Kind.ENDED:
                            ended(str(frame.body, "utf-8"))
                            continue
                        if frame.kind == Kind.CALLS:
                            post(_calls(replica, frame.body))
                            continue
                        state = json.loads(frame.body)
                        if state["state"] == "loading":
                            post(ReplicaLoading(replica, int(state["pid"])))
                        elif state["state"] == "ready":
                            ready = True
                            note["ready"] = "yes"
                            patience.deadline = math.inf
                            post(ReplicaReady(replica))
                        else:
                            patience.deadline = math.inf
                            post(ReplicaFailed(replica, str(state["cause"])))
        heard.set()
        if patience.cancelled_caught and not ready:
            note["cause"] = f"not ready after {declaration.start_timeout:g} s (start_timeout)"
            post(ReplicaFailed(replica, note["cause"]))

    async def _obey(
        self,
        supervisor: anyio.abc.SocketStream,
        process: Child,
        orders: Orders,
        note: dict[str, str],
    ) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._kill_when_told, process, orders)
            tasks.start_soon(self._pass_on, supervisor, orders)
            await orders.stop.wait()
            with contextlib.suppress(anyio.BrokenResourceError):
                for piece in encode(Kind.STOP):
                    await supervisor.send(bytes(piece))
            await anyio.sleep(POLITE_S)
            orders.kill.set()

    async def _pass_on(self, supervisor: anyio.abc.SocketStream, orders: Orders) -> None:
        with contextlib.suppress(anyio.BrokenResourceError):
            while True:
                await orders.said.wait()
                orders.said = anyio.Event()
                while orders.words:
                    kind, body = orders.words.popleft()
                    for piece in encode(kind, 0, body.encode()):
                        await supervisor.send(bytes(piece))

    async def _kill_when_told(self, process: Child, orders: Orders) -> None:
        await orders.kill.wait()
        kill_group(process.pid)

    async def _watch_memory(self, process: Child, limit: int, note: dict[str, str]) -> None:
        processes = Processes()
        while True:
            used = await to_thread.run_sync(processes.tree_bytes, process.pid)
            if used > limit:
                note["out_of_memory"] = f"it used {used / 2**30:.2f} GiB of its limit of {limit / 2**30:.2f} GiB"
                kill_group(process.pid)
                return
            await anyio.sleep(MEMORY_CHECK_S)

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


def _calls(replica: str, body: Buffer) -> CallsReported:
    said = json.loads(bytes(body))
    return CallsReported(
        replica,
        calls=tuple(Call(*each) for each in said["calls"]),
        uses=tuple(LeaseUse(*each) for each in said["uses"]),
        ended=said["ended"],
    )


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


def describe_exit(code: int | None, note: dict[str, str], tail: str) -> Exit:
    """An exit status in words."""
    if "ready" not in note and tail:
        # Nobody has seen its log, and there is no other explanation.
        note.setdefault("cause", f"the process ended with {_status(code)}\n{tail}")
    if "out_of_memory" in note:
        return Exit(f"out of memory: {note['out_of_memory']}", signal="SIGKILL", out_of_memory=True, log_tail=tail)
    cause = note.get("cause", _status(code))
    if code is not None and code < 0:
        return Exit(cause, signal=_status(code).removeprefix("signal "), log_tail=tail)
    return Exit(cause, exit_code=code, log_tail=tail)


def _status(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name if -code in set(signal.Signals) else -code}"


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


def _cpus(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
