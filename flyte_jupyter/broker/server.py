"""The broker's Unix socket: one task per connection, messages to events and back."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
from anyio import (
    BrokenResourceError,
    CancelScope,
    ClosedResourceError,
    EndOfStream,
    IncompleteRead,
    create_memory_object_stream,
)
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream
from pydantic import ValidationError

from .. import _version, runtime
from ..core import events
from ..core import protocol as p
from .engine import WATCH_INTERVAL_S, Engine

log = logging.getLogger(__name__)

HANDSHAKE_S: Final = 5.0
LAST_WORDS_S: Final = 1.0
MAX_HELLO_BYTES: Final = 64 * 1024
_ACTS: Final = (p.Attach, p.Order, p.Shutdown)
"""Messages that the log quotes, with their sender. None of them carries code or data."""
UNSENT: Final = 10_000
"""Messages that a client may lag behind before it is disconnected."""


_HUNG_UP: Final = (EndOfStream, IncompleteRead, BrokenResourceError, ClosedResourceError)


async def serve(path: Path, engine: Engine) -> None:
    """Accept connections at `path` until cancelled. The caller holds the lock that makes the path ours."""
    temporary = path.with_name(f"{path.name}.new")
    async with await anyio.create_unix_listener(temporary, mode=0o600) as listener:
        # Complete before it is visible: nobody can meet a socket that does not answer yet.
        os.rename(temporary, path)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_withdraw, path, engine)
                await listener.serve(lambda stream: _serve_one(stream, engine))
        finally:
            path.unlink(missing_ok=True)


async def _withdraw(path: Path, engine: Engine) -> None:
    """An ending broker cannot be found any more: whoever comes now waits for the next one."""
    await engine.ending.wait()
    path.unlink(missing_ok=True)


async def _serve_one(stream: SocketStream, engine: Engine) -> None:
    try:
        await _connection(stream, engine)
    except* _HUNG_UP:
        pass
    except* Exception:
        log.exception("a connection failed")  # one client's trouble; the others' replicas live on


async def _connection(stream: SocketStream, engine: Engine) -> None:
    async with stream:
        if engine.ending.is_set():
            return
        if peer_uid(stream) != os.getuid():
            log.warning("refused a connection of another user")
            return
        lines = BufferedByteReceiveStream(stream)
        hello = None
        with anyio.move_on_after(HANDSHAKE_S):
            try:
                hello = _read_hello(await lines.receive_until(b"\n", MAX_HELLO_BYTES))
            except (EndOfStream, IncompleteRead, ValueError, anyio.DelimiterNotFound):
                return
        if hello is None:
            return
        if isinstance(hello, p.Rejected):
            await stream.send(p.to_line(hello))
            return
        await _converse(stream, lines, engine, hello)


def _read_hello(line: bytes) -> p.Hello | p.Rejected:
    """ValueError if it is neither a Hello nor that of another protocol, which may say more or less than ours."""
    said = json.loads(line)
    if not isinstance(said, dict) or said.get("type") != "hello":
        raise ValueError("the first line must be a hello")
    if said.get("protocol") != p.PROTOCOL:
        return p.Rejected(version=_version.__version__, protocol=p.PROTOCOL, pid=os.getpid())
    return p.Hello.model_validate_json(line)


async def _converse(stream: SocketStream, lines: BufferedByteReceiveStream, engine: Engine, hello: p.Hello) -> None:
    client = uuid.uuid4().hex[:12]
    who = f"{hello.kind} {hello.label!r}, pid {hello.pid}"
    # These come every second, to look and to go; what they do is said by itself.
    level = logging.DEBUG if hello.kind in ("server", "cli") else logging.INFO
    sender, outbox = create_memory_object_stream[p.Message](UNSENT)
    writing = CancelScope(shield=True)
    async with sender, outbox, anyio.create_task_group() as tasks:

        def send(message: p.Message) -> None:
            try:
                sender.send_nowait(message)
            except anyio.WouldBlock:
                log.warning("client %s (%s) does not read: disconnected", client, hello.label)
                writing.cancel()
                tasks.cancel_scope.cancel()
            except ClosedResourceError:  # it is just being disconnected
                pass

        def behind() -> bool:
            return sender.statistics().current_buffer_used > 0

        send(p.Welcome(version=_version.__version__, pid=os.getpid()))
        if hello.kind == "server":
            engine.look_on(client, send)
        else:
            engine.connect(client, send, nested=hello.kind == "replica")
            engine.post(events.ClientConnected(client, hello.label, hello.kind, hello.pid))
        log.log(level, "client %s: %s", client, who)
        try:
            tasks.start_soon(_write, stream, outbox, writing)
            await _Reader(lines, engine, client, who, send, behind, tasks).read()
        finally:
            engine.disconnect(client)
            log.log(level, "client %s is gone", client)
            # What was said last, a Goodbye perhaps, is still written, if it reads.
            sender.close()
            writing.deadline = anyio.current_time() + LAST_WORDS_S
        tasks.cancel_scope.cancel()


async def _write(stream: SocketStream, outbox: MemoryObjectReceiveStream[p.Message], writing: CancelScope) -> None:
    with writing:
        async for message in outbox:
            await stream.send(p.to_line(message))


@dataclass(slots=True)
class _Reader:
    """One client's messages, in order."""

    lines: BufferedByteReceiveStream
    engine: Engine
    client: str
    who: str
    send: p.Send
    behind: Callable[[], bool]
    tasks: anyio.abc.TaskGroup
    watching: anyio.CancelScope | None = None

    async def read(self) -> None:
        """Until the client hangs up."""
        while True:
            try:
                line = await self.lines.receive_until(b"\n", p.MAX_LINE_BYTES)
            except _HUNG_UP:
                return
            except anyio.DelimiterNotFound:
                # Where its next message begins cannot be said: the end.
                self.send(p.Failed(why=f"a message is longer than {p.MAX_LINE_BYTES} bytes"))
                return
            try:
                message = p.to_broker.validate_json(line)
            except ValidationError as problem:
                self.send(p.Failed(why=str(problem), question=_question(line)))
                continue
            await self._handle(message)

    async def _handle(self, message: p.ToBroker) -> None:
        engine, send = self.engine, self.send
        if isinstance(message, _ACTS):
            facts = message.model_dump(exclude={"type"}, exclude_defaults=True)
            log.info("client %s: %s: %s %s", self.client, self.who, message.type, facts)
        if isinstance(message, p.Watch | p.AskTimeline):
            await engine.caught_up()  # with what this client has said before it asked
        match message:
            case p.Acquire(lease=lease, pool=pool, task=task, parent=parent, session=session):
                engine.post(events.LeaseRequested(self.client, lease, pool, task, parent, session))
            case p.Attach(lease=lease, replica=replica, task=task, shared=shared):
                engine.post(events.AttachRequested(self.client, lease, replica, task, shared))
            case p.Kept(lease=lease, session=session):
                engine.post(events.LeaseKept(lease, session))
            case p.Release(lease=lease):
                engine.post(events.LeaseReleased(lease))
            case p.Declare(declaration=declaration):
                await engine.declare(self.client, declaration)
            case p.Order():
                engine.post(message.event())
            case p.Watch(once=True, usage=True, question=question):
                self.tasks.start_soon(self._measure, question)
            case p.Watch(once=once, usage=usage, question=question):
                if once or self.watching is not None:
                    send(engine.snapped(question))
                else:
                    self.watching = anyio.CancelScope()
                    self.tasks.start_soon(self._watch, self.watching, usage)
            case p.Unwatch():
                if self.watching is not None:
                    self.watching.cancel()
                    self.watching = None
            case p.AskTimeline(pool=pool, since=since, question=question):
                send(engine.timeline(pool, since, question))
            case p.Shutdown():
                engine.end()
            case p.Hello():
                send(p.Failed(why="hello was said already"))

    async def _measure(self, question: int | None) -> None:
        self.send(await self.engine.measured(question))

    async def _watch(self, scope: anyio.CancelScope, usage: bool) -> None:
        with scope, self.engine.sampler.watching() if usage else nullcontext():
            async for snapped in self.engine.watch(usage=usage):
                self.send(snapped)
                while self.behind():  # who reads slowly gets fewer snapshots, not a longer queue of old ones
                    await anyio.sleep(WATCH_INTERVAL_S)


def _question(line: bytes) -> int | None:
    """The number of a question that could not be read as a whole."""
    try:
        number = json.loads(line)["question"]
    except (ValueError, TypeError, KeyError):
        return None
    return number if type(number) is int else None


def peer_uid(stream: SocketStream) -> int:
    """The user at the other end."""
    return runtime.peer_uid(stream.extra(SocketAttribute.raw_socket))
