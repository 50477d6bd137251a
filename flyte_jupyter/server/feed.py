"""What the panel is shown: the state as JSON, made once for each change and shared by all sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from .. import _version
from ..core import protocol as p
from ..core.usage import Usage
from .connection import Connection, Unreachable, connected

log = logging.getLogger(__name__)

RETRY_S: Final = 0.5
"""How often a broker is looked for while somebody watches and none runs."""

_HERE: Final = secrets.token_hex(4)  # so that no tag of another server's life is taken for one of ours


@dataclass(frozen=True, slots=True)
class State:
    """One state, see docs/server-api.md. `tag` differs whenever anything but the time does."""

    tag: str
    rest: str  # the JSON object without its beginning: the time, and what is of one user alone

    def text(self, refused: Mapping[str, str]) -> str:
        """For somebody who is refused this, and why; see `access.refusals`."""
        return f'{{"now": {time.time():.3f}, "refused": {json.dumps(refused)}, {self.rest}'

    @classmethod
    def of(cls, broker: Connection, snapped: p.Snapped) -> State:
        fields = snapped.model_dump(mode="json", exclude={"type", "log_dir", "question"})
        for pool in fields["snapshot"]["pools"]:
            if failure := pool["failure"]:  # the whole traceback shows code
                failure["cause"] = last_line(failure["cause"])
        tag = f"{_HERE}.{broker.pid}.{snapped.snapshot.revision}.{snapped.usage.measured_at}"
        return cls._made(tag, "connected", None, broker.version, broker_pid=broker.pid, **fields)

    @classmethod
    def without(cls, why: Unreachable) -> State:
        tag = f"{_HERE}.{why.state}.{zlib.crc32(str(why).encode())}"
        return cls._made(
            tag,
            why.state,
            str(why),
            why.version,
            broker_pid=None,
            epoch_offset=None,
            zygotes=[],
            spawned={},
            usage=Usage().model_dump(mode="json"),
            recent=[],
            snapshot=None,
        )

    @classmethod
    def _made(cls, tag: str, state: str, message: str | None, broker: str | None, **fields: Any) -> State:
        versions = {"server": _version.__version__, "broker": broker}
        known = {"tag": tag, "state": state, "message": message, "versions": versions, **fields}
        return cls(tag, json.dumps(known)[1:])


async def look() -> State:
    """The state now, on a connection of its own."""
    try:
        async with connected() as broker:
            return State.of(broker, await broker.snapshot(usage=True))
    except Unreachable as why:
        return State.without(why)


class Feed:
    """The state as it changes. There is a connection to the broker as long as somebody watches, and no longer."""

    def __init__(self) -> None:
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None
        self._state: State | None = None
        self._changed = asyncio.Event()

    async def state(self) -> State:
        """The newest; asks for it if nobody watches."""
        return self._state or await look()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[AsyncIterator[State]]:
        """States, the first one as soon as it is known; who takes them slowly misses some, and gets the newest."""
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._follow())  # the first watcher's, and the last one's to end
        try:
            yield self._states()
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._task.cancel()
                self._task = self._state = None

    async def _states(self) -> AsyncIterator[State]:
        seen: State | None = None
        while True:
            changed = self._changed
            if self._state is not None and self._state is not seen:
                seen = self._state
                yield seen
            else:
                await changed.wait()

    async def _follow(self) -> None:
        """Show what the broker says; look for another one when it ends."""
        while True:
            try:
                async with connected() as broker:
                    await broker.send(p.Watch(usage=True))
                    while True:
                        message = await broker.receive()
                        if isinstance(message, p.Snapped):
                            self._show(State.of(broker, message))
            except Unreachable as why:
                self._show(State.without(why))
            except Exception as problem:
                log.exception("the pools cannot be shown")
                self._show(State.without(Unreachable("unavailable", f"The pools cannot be shown: {problem!r}")))
            await asyncio.sleep(RETRY_S)

    def _show(self, state: State) -> None:
        if self._state is None or self._state.tag != state.tag:
            self._state = state
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()


def last_line(cause: str) -> str:
    return cause.strip().rpartition("\n")[2]
