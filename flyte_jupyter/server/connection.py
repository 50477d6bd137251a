"""The Jupyter server's connection to the user's own broker, on its event loop: no thread, and nothing that blocks."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

from .. import _version, errors, runtime
from ..core import protocol as p
from ..core.dialogue import (
    ANSWER_S,
    Answer,
    Dialogue,
    Mailbox,
    Question,
    Reply,
    Send,
    none_runs,
    of_another_user,
)
from ..core.timeline import TimelineView

Absence = Literal["no-broker", "version-mismatch", "unavailable"]

_ABSENCES: Final = (
    errors.BrokerGone,
    errors.BrokerSilent,
    errors.BrokerUnavailable,
    errors.ProtocolError,
    errors.VersionMismatch,
)


class Unreachable(Exception):
    """The state of a server that has no broker to talk to (any more); `str()` is for people.

    Args:
        state: What is the matter.
        message: The same, for people.
        version: Of the broker, where that is the matter.
    """

    def __init__(self, state: Absence, message: str, version: str | None = None) -> None:
        super().__init__(message)
        self.state = state
        self.version = version

    @classmethod
    def because(cls, problem: errors.BaseRuntimeError) -> Unreachable:
        if isinstance(problem, errors.VersionMismatch):
            return cls("version-mismatch", errors.whole_text(problem), problem.other)
        if isinstance(problem, errors.BrokerGone):
            return cls("no-broker", errors.whole_text(none_runs()))  # the panel cannot call a task again
        return cls("unavailable", errors.whole_text(problem))


class Connection:
    """The event loop's driver of a dialogue with the broker. Every method raises BrokerGone once it has ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = p.Hello(version=_version.__version__, label="Jupyter server", kind="server", pid=os.getpid())
        self._reader = reader
        self._writer = writer
        self._dialogue = Dialogue(hello, ANSWER_S)
        self._mailbox = Mailbox()

    async def greet(self) -> None:
        """Raises BrokerSilent, VersionMismatch or ProtocolError, as they say."""
        pid = runtime.peer_pid(self._writer.get_extra_info("socket")) or None
        self._deliver(self._dialogue.connect(now=_now(), pid=pid))
        while self._dialogue.state != "open":
            await self._step()

    @property
    def version(self) -> str:
        return self._dialogue.version

    @property
    def pid(self) -> int:
        assert self._dialogue.pid is not None
        return self._dialogue.pid

    async def send(self, *messages: p.Message) -> None:
        self._writer.writelines(map(self._dialogue.tell, messages))
        await self._drain()

    async def receive(self) -> p.FromBroker:
        """The next message that answers no question."""
        while not self._mailbox.notices:
            await self._step()
        return self._mailbox.notices.popleft()

    async def snapshot(self, *, usage: bool = False) -> p.Snapped:
        """The broker's state; raises ProtocolError if it did not understand what was sent before."""
        answer = await self._ask(p.Watch(once=True, usage=usage))
        assert isinstance(answer, p.Snapped)
        return answer

    async def timeline(self, pool: str, since: str | None) -> TimelineView | None:
        """What a pool did in the last minutes; None if there is no such pool."""
        answer = await self._ask(p.AskTimeline(pool=pool, since=since))
        assert isinstance(answer, p.ToldTimeline)
        return answer.timeline

    async def _ask(self, question: Question) -> Answer:
        number, line = self._dialogue.ask(question, now=_now())
        self._writer.write(line)
        while not self._mailbox.has(number):
            await self._step()
        return self._mailbox.take(number)

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._writer.drain()
        except TimeoutError:
            raise self._dialogue.silent(ANSWER_S) from None
        except OSError:
            raise self._dialogue.gone() from None

    async def _step(self) -> None:
        """Wait for bytes, or for an instant of the dialogue's."""
        due = self._dialogue.next_deadline()
        try:
            async with asyncio.timeout_at(None if due == math.inf else due):
                data = await self._reader.read(1 << 16)
        except TimeoutError:
            self._deliver(self._dialogue.tick(now=_now()))
            return
        except OSError:
            data = b""
        if data:
            self._deliver(self._dialogue.receive(data, now=_now()))
        else:
            self._dialogue.disconnect()
            self._deliver(self._dialogue.end())  # the feed looks for another broker on a connection of its own

    def _deliver(self, replies: list[Reply]) -> None:
        for reply in replies:
            match reply:
                case Send(data):
                    self._writer.write(data)
                case _:  # what it waits for is not said: nobody sits at this process's terminal
                    self._mailbox.put(reply)


@asynccontextmanager
async def connected() -> AsyncIterator[Connection]:
    """A connection to the broker that runs; never starts one.

    Raises:
        Unreachable: None runs, it does not answer, or it speaks another protocol; also whenever it ends.
    """
    try:
        # A missing folder is not made: looking leaves no traces.
        if not runtime.runtime_folder().exists():
            raise errors.BrokerGone()
        async with _stream(runtime.broker_socket(runtime.private_folder())) as (reader, writer):
            connection = Connection(reader, writer)
            await connection.greet()
            yield connection
    except _ABSENCES as problem:
        raise Unreachable.because(problem) from None


@asynccontextmanager
async def _stream(path: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(path)
    except TimeoutError:
        raise errors.BrokerSilent(None, ANSWER_S) from None
    except OSError:
        raise errors.BrokerGone() from None
    try:
        if runtime.peer_uid(writer.get_extra_info("socket")) != os.getuid():
            raise of_another_user(path, runtime.VARIABLE)
        yield reader, writer
    finally:
        writer.close()


def _now() -> float:
    return asyncio.get_running_loop().time()
