"""The life of one replica's process as its supervisor sees it: setup, reports, orders, end."""

from __future__ import annotations

import contextlib
import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import anyio
import anyio.abc
from anyio import to_thread

from ..core.events import Call, CallsReported, Event, LeaseUse, ReplicaFailed, ReplicaLoading, ReplicaReady
from ..core.frames import Buffer, Frame, FrameReader, Kind, encode
from ..core.protocol import Declaration
from ..usage import Processes
from .exits import Child, Exit, exit_of, kill_group, status_text, wait_exit

POLITE_S: Final = 3.0
"""How long an idle replica may take to end itself."""
LAST_WORDS_S: Final = 0.1
"""How long the end of a replica's connection is waited for: a process that it has forked may hold it open."""
MEMORY_CHECK_S: Final = 0.5


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


@dataclass(slots=True)
class Life:
    """One replica's process, from its setup to its end.

    Args:
        replica: Its id.
        post: Gets the events of its life except its end.
        ended: Gets the leases whose abandoned call has stopped.
        orders: Of the engine.
    """

    replica: str
    process: Child
    declaration: Declaration
    post: Callable[[Event], None]
    ended: Callable[[str], None]
    orders: Orders
    _ready: bool = False
    _cause: str = ""
    _out_of_memory: str = ""
    _patience: anyio.CancelScope = field(default_factory=anyio.CancelScope)  # until it is ready, or has failed
    _heard: anyio.Event = field(default_factory=anyio.Event)  # it will report nothing more

    async def watch(self, address: str) -> None:
        """Set it up and carry out orders, until its process has ended."""
        async with await anyio.connect_unix(address) as supervisor, anyio.create_task_group() as tasks:
            tasks.start_soon(self._set_up, supervisor)
            tasks.start_soon(self._obey, supervisor)
            if self.declaration.spec.memory_bytes:
                tasks.start_soon(self._watch_memory, self.declaration.spec.memory_bytes)
            await wait_exit(self.process)
            with anyio.move_on_after(LAST_WORDS_S):
                await self._heard.wait()
            tasks.cancel_scope.cancel()

    def exit(self, tail: str) -> Exit:
        """How it ended; `tail` is the end of its log."""
        code = self.process.returncode
        cause = self._cause
        if not (self._ready or cause) and tail:
            # Nobody has seen its log, and there is no other explanation.
            cause = f"the process ended with {status_text(code)}\n{tail}"
        return exit_of(code, tail, cause, self._out_of_memory)

    async def _set_up(self, supervisor: anyio.abc.SocketStream) -> None:
        """Hand it the preload, and hear its reports."""
        payload = self.declaration.preload.payload if self.declaration.preload is not None else b""
        reader = FrameReader()
        with self._patience as patience:
            patience.deadline = anyio.current_time() + self.declaration.start_timeout
            with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):  # it died: the watcher knows
                await _send(supervisor, Kind.HELLO, json.dumps({"role": "supervisor"}).encode())
                await _send(supervisor, Kind.SETUP, payload)
                while True:
                    reader.feed(await supervisor.receive())
                    while (frame := reader.next_frame()) is not None:
                        self._note(frame)
        self._heard.set()
        if patience.cancelled_caught and not self._ready:
            self._cause = f"not ready after {self.declaration.start_timeout:g} s (start_timeout)"
            self.post(ReplicaFailed(self.replica, self._cause))

    def _note(self, frame: Frame) -> None:
        if frame.kind == Kind.ENDED:
            self.ended(str(frame.body, "utf-8"))
            return
        if frame.kind == Kind.CALLS:
            self.post(_calls(self.replica, frame.body))
            return
        state = json.loads(frame.body)
        if state["state"] == "loading":
            self.post(ReplicaLoading(self.replica, int(state["pid"])))
            return
        self._patience.deadline = math.inf
        if state["state"] == "ready":
            self._ready = True
            self.post(ReplicaReady(self.replica))
        else:
            self.post(ReplicaFailed(self.replica, str(state["cause"])))

    async def _obey(self, supervisor: anyio.abc.SocketStream) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._kill_when_told)
            tasks.start_soon(self._pass_on, supervisor)
            await self.orders.stop.wait()
            with contextlib.suppress(anyio.BrokenResourceError):
                await _send(supervisor, Kind.STOP)
            await anyio.sleep(POLITE_S)
            self.orders.kill.set()

    async def _pass_on(self, supervisor: anyio.abc.SocketStream) -> None:
        orders = self.orders
        with contextlib.suppress(anyio.BrokenResourceError):
            while True:
                await orders.said.wait()
                orders.said = anyio.Event()
                while orders.words:
                    kind, body = orders.words.popleft()
                    await _send(supervisor, kind, body.encode())

    async def _kill_when_told(self) -> None:
        await self.orders.kill.wait()
        kill_group(self.process.pid)

    async def _watch_memory(self, limit: int) -> None:
        processes = Processes()
        while True:
            used = await to_thread.run_sync(processes.tree_bytes, self.process.pid)
            if used > limit:
                self._out_of_memory = f"it used {used / 2**30:.2f} GiB of its limit of {limit / 2**30:.2f} GiB"
                kill_group(self.process.pid)
                return
            await anyio.sleep(MEMORY_CHECK_S)


async def _send(supervisor: anyio.abc.SocketStream, kind: Kind, body: bytes = b"") -> None:
    for piece in encode(kind, 0, body):
        await supervisor.send(bytes(piece))


def _calls(replica: str, body: Buffer) -> CallsReported:
    said = json.loads(bytes(body))
    return CallsReported(
        replica,
        calls=tuple(Call(*each) for each in said["calls"]),
        uses=tuple(LeaseUse(*each) for each in said["uses"]),
        ended=said["ended"],
    )
