"""A conversation with the user's own broker, on the Jupyter server's event loop: no thread, and nothing that blocks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import ValidationError

from .. import _version, errors, runtime
from ..core import protocol as p
from ..core.timeline import TimelineView

M = TypeVar("M", bound=p.Message)

ANSWER_S: Final = 5.0

Absence = Literal["no-broker", "version-mismatch", "unavailable"]


class Unreachable(Exception):
    """There is nobody to talk to (any more); `str()` is for people.

    Args:
        state: What is the matter.
        message: The same, for people.
        version: Of the broker, where that is the matter.
    """

    def __init__(self, state: Absence, message: str, version: str | None = None) -> None:
        super().__init__(message)
        self.state = state
        self.version = version


class Link:
    """One connection, greeted. Raises Unreachable as soon as it breaks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, welcome: p.Welcome) -> None:
        self._reader = reader
        self._writer = writer
        self.version = welcome.version
        self.pid = welcome.pid

    async def send(self, *messages: p.Message) -> None:
        try:
            self._writer.writelines(map(p.to_line, messages))
            await self._writer.drain()
        except OSError:
            raise _no_broker() from None

    async def receive(self) -> p.FromBroker:
        """The next message that this version knows."""
        while True:
            try:
                line = await self._reader.readline()
            except OSError:
                line = b""
            if not line:
                raise _no_broker()
            with suppress(ValidationError):
                return p.from_broker.validate_json(line)

    async def snapshot(self, *, usage: bool = False) -> p.Snapped:
        """The broker's state; raises ValueError if it did not understand what was sent before."""
        async with _patience():
            await self.send(p.Watch(once=True, usage=usage))
            return await self._hear(p.Snapped)

    async def timeline(self, pool: str, since: str | None) -> TimelineView | None:
        """What a pool did in the last minutes; None if there is no such pool."""
        async with _patience():
            await self.send(p.AskTimeline(pool=pool, since=since))
            return (await self._hear(p.ToldTimeline)).timeline

    async def _hear(self, kind: type[M]) -> M:
        while True:
            message = await self.receive()
            if isinstance(message, p.Failed):
                raise ValueError(message.why)
            if isinstance(message, kind):
                return message


@asynccontextmanager
async def connected() -> AsyncIterator[Link]:
    """A conversation with the broker that runs; never starts one.

    Raises:
        Unreachable: None runs, it does not answer, or it speaks another protocol; also whenever it ends.
    """
    try:
        # A missing folder is not made: looking leaves no traces.
        folder = runtime.private_folder() if runtime.runtime_folder().exists() else None
    except errors.BrokerUnavailable as problem:
        raise Unreachable("unavailable", errors.whole_text(problem)) from None
    if folder is None:
        raise _no_broker()
    async with _stream(runtime.broker_socket(folder)) as (reader, writer):
        yield await _greet(reader, writer)


@asynccontextmanager
async def _stream(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        async with _patience():
            reader, writer = await asyncio.open_unix_connection(path, limit=p.MAX_LINE_BYTES)
    except OSError:
        raise _no_broker() from None
    try:
        if runtime.peer_uid(writer.get_extra_info("socket")) != os.getuid():
            raise Unreachable("unavailable", f"The process that answers at {path} belongs to another user.")
        yield reader, writer
    finally:
        writer.close()


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Link:
    hello = p.Hello(version=_version.__version__, label="Jupyter server", kind="server", pid=os.getpid())
    try:
        async with _patience():
            writer.write(p.to_line(hello))
            answer = p.from_broker.validate_json(await reader.readline() or b"null")
    except (OSError, ValidationError):
        raise _no_broker() from None  # it was just ending
    if isinstance(answer, p.Welcome):
        return Link(reader, writer, answer)
    version = answer.version if isinstance(answer, p.Rejected) else "unknown"
    raise Unreachable(
        "version-mismatch",
        f"This Jupyter server has flyte_jupyter {_version.__version__}, and the broker {version} of another "
        "protocol. Install the same version in both environments, then run `flyte-jupyter stop` and restart Jupyter.",
        version,
    )


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ANSWER_S):
            yield
    except TimeoutError:
        raise Unreachable(
            "unavailable", f"The broker does not answer within {ANSWER_S:g} s. Run `flyte-jupyter stop`."
        ) from None


def _no_broker() -> Unreachable:
    return Unreachable("no-broker", "No broker runs. It starts with the first task that is called.")
