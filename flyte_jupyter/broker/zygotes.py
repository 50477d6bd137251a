"""Keeps the zygotes: one for each interpreter, environment and set of preimports, started when first needed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import psutil

from .. import runtime
from ..core.protocol import ZygoteView

log = logging.getLogger(__name__)

START_S: Final = 120.0
"""Importing may take this long; torch from a cold disk does."""
FORK_S: Final = 10.0
DIED: Final = "the zygote died; its log says why"


class CannotFork(Exception):
    """This zygote is of no use now; says why. The replica is spawned instead."""


class ForkedProcess:
    """The part of `subprocess.Popen` that the launcher uses, for a process that a zygote has forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # not adopted yet; or somebody else has collected it
                if not psutil.pid_exists(self.pid):
                    self.returncode = -signal.SIGKILL
            else:
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int | None:
        """After its pidfd has said that it ended."""
        while self.poll() is None:
            os.sched_yield()
        return self.returncode


@dataclass(slots=True)
class Zygote:
    """One process, and how to talk to it."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    preimports: tuple[str, ...]
    idle_ttl: float
    started_at: float
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    ready: bool = False
    used_at: float = 0.0
    replicas: set[int] = field(default_factory=set)

    async def ask(self, request: dict[str, Any], timeout: float, descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Its answer. CannotFork if it has died, dies, or says nothing in time."""
        try:
            socket.send_fds(self.control, [json.dumps(request).encode()], descriptors)
        except OSError:
            raise CannotFork(DIED) from None
        try:
            with anyio.fail_after(timeout):
                await anyio.wait_readable(self.control)
        except TimeoutError:
            raise CannotFork(f"the zygote did not answer within {timeout:g} s") from None
        try:
            packet = self.control.recv(1 << 16)
        except OSError:
            packet = b""
        if not packet:
            raise CannotFork(DIED)
        answer: dict[str, Any] = json.loads(packet)
        if answer.get("problem"):
            raise CannotFork(str(answer["problem"]))
        return answer


class Zygotes:
    """All zygotes of one broker."""

    def __init__(self, logs: Path, children: set[int]) -> None:
        self._logs = logs
        self._children = children
        self._zygotes: dict[str, Zygote] = {}
        self._starting: dict[str, anyio.Lock] = {}
        self._refused: dict[str, str] = {}  # why the zygote of this key must not be used

    @property
    def possible(self) -> bool:
        """Fork and all that hangs on it; elsewhere replicas are spawned."""
        return sys.platform == "linux" and os.environ.get("FLYTE_JUPYTER_ZYGOTE", "1") != "0"

    async def fork(
        self,
        interpreter: str,
        base: dict[str, str],
        preimports: tuple[str, ...],
        idle_ttl: float,
        request: dict[str, Any],
        log_path: Path,
        listening: socket.socket,
    ) -> ForkedProcess:
        """A new replica, from the zygote of this interpreter, environment and preimports.

        Raises:
            CannotFork: With the reason for people; the next request may be tried again only if it was not a guard.
        """
        key = hashlib.sha256(json.dumps([interpreter, sorted(base.items()), preimports]).encode()).hexdigest()[:12]
        if key in self._refused:
            raise CannotFork(self._refused[key])
        zygote = await self._get(key, interpreter, base, preimports, idle_ttl)
        async with zygote.lock:
            # Shielded: once asked, its answer must be read, or the next request would get this one's process.
            with (
                anyio.CancelScope(shield=True),
                open(log_path, "ab", opener=runtime.private) as log_file,
            ):
                try:
                    answer = await zygote.ask(request, FORK_S, [log_file.fileno(), listening.fileno()])
                except CannotFork:
                    await self._give_up(key, zygote)
                    raise
        pid = int(answer["pid"])
        self._children.add(pid)
        zygote.replicas.add(pid)
        zygote.used_at = anyio.current_time()
        return ForkedProcess(pid)

    def gone(self, pid: int) -> None:
        """A replica has ended."""
        for zygote in self._zygotes.values():
            if pid in zygote.replicas:
                zygote.replicas.discard(pid)
                zygote.used_at = anyio.current_time()

    async def retire(self) -> None:
        """End those that nothing has used for their environment's idle_ttl; for ever."""
        while True:
            await anyio.sleep(5)
            now = anyio.current_time()
            for key, zygote in list(self._zygotes.items()):
                over = not zygote.replicas and now >= zygote.used_at + zygote.idle_ttl
                # One that is starting is its starter's: it may be waiting for the answer.
                if zygote.ready and (zygote.process.poll() is not None or over):
                    await self._give_up(key, zygote)

    async def end(self) -> None:
        """End all."""
        for key, zygote in list(self._zygotes.items()):
            await self._give_up(key, zygote)

    def views(self) -> tuple[ZygoteView, ...]:
        """What `status` shows."""
        now = anyio.current_time()
        views = []
        for zygote in self._zygotes.values():
            with contextlib.suppress(psutil.Error):
                views.append(
                    ZygoteView(
                        pid=zygote.process.pid,
                        preimports=zygote.preimports,
                        memory_bytes=psutil.Process(zygote.process.pid).memory_info().rss,
                        age_s=now - zygote.started_at,
                        replicas=len(zygote.replicas),
                    )
                )
        return tuple(views)

    async def _get(
        self, key: str, interpreter: str, base: dict[str, str], preimports: tuple[str, ...], idle_ttl: float
    ) -> Zygote:
        async with self._starting.setdefault(key, anyio.Lock()):
            zygote = self._zygotes.get(key)
            if zygote is not None and zygote.process.poll() is not None:
                log.warning("zygote %d died; starting another", zygote.process.pid)
                await self._give_up(key, zygote)
                zygote = None
            if zygote is None:
                zygote = self._zygotes[key] = self._start(key, interpreter, base, preimports, idle_ttl)
                try:
                    await zygote.ask({"preimports": preimports}, START_S)
                except CannotFork as reason:
                    await self._give_up(key, zygote)
                    self._refused[key] = str(reason)
                    raise
                zygote.ready = True
                zygote.used_at = anyio.current_time()
                log.info("zygote %d is ready: %s", zygote.process.pid, ", ".join(preimports) or "no preimports")
            zygote.idle_ttl = max(zygote.idle_ttl, idle_ttl)
            return zygote

    def _start(
        self, key: str, interpreter: str, base: dict[str, str], preimports: tuple[str, ...], idle_ttl: float
    ) -> Zygote:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with (
            theirs,
            open(self._logs / f"zygote-{key}.log", "wb", opener=runtime.private) as log_file,
        ):
            process = subprocess.Popen(
                [interpreter, "-P", "-m", "flyte_jupyter.broker.zygote", str(theirs.fileno())],
                env=base,
                cwd=self._logs,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
            )
        ours.setblocking(False)
        self._children.add(process.pid)
        return Zygote(process, ours, preimports, idle_ttl, anyio.current_time())

    async def _give_up(self, key: str, zygote: Zygote) -> None:
        if self._zygotes.get(key) is zygote:
            del self._zygotes[key]
        zygote.control.close()
        with contextlib.suppress(ProcessLookupError):
            zygote.process.kill()
        with anyio.CancelScope(shield=True):
            while zygote.process.poll() is None:
                await anyio.sleep(0.005)
        self._children.discard(zygote.process.pid)
