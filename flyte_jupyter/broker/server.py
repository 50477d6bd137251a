"""The broker's Unix socket: one task per connection, messages to events and back."""

from __future__ import annotations

import logging
import os
import socket
import struct
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
from anyio import (
    BrokenResourceError,
    ClosedResourceError,
    EndOfStream,
    IncompleteRead,
    create_memory_object_stream,
)
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream
from pydantic import ValidationError

from .. import _version
from ..core import events
from ..core import protocol as p
from .engine import Engine

log = logging.getLogger(__name__)

HANDSHAKE_S: Final = 5.0
UNSENT: Final = 10_000
"""Messages that a client may lag behind before it is disconnected."""


async def serve(path: Path, engine: Engine) -> None:
    """Accept connections at `path` until cancelled. The caller holds the lock that makes the path ours."""
    temporary = path.with_name(f"{path.name}.new")
    async with await anyio.create_unix_listener(temporary, mode=0o600) as listener:
        # Complete before it is visible: nobody can meet a socket that does not answer yet.
        os.rename(temporary, path)
        try:
            await listener.serve(lambda stream: _connection(stream, engine))
        finally:
            path.unlink(missing_ok=True)


async def _connection(stream: SocketStream, engine: Engine) -> None:
    async with stream:
        if peer_uid(stream) != os.getuid():
            log.warning("refused a connection of another user")
            return
        lines = BufferedByteReceiveStream(stream)
        hello = None
        with suppress(EndOfStream, IncompleteRead, BrokenResourceError, ValidationError, anyio.DelimiterNotFound):
            with anyio.move_on_after(HANDSHAKE_S):
                hello = p.to_broker.validate_json(await lines.receive_until(b"\n", p.MAX_LINE_BYTES))
        if not isinstance(hello, p.Hello):
            return
        if hello.protocol != p.PROTOCOL:
            with suppress(BrokenResourceError):
                await stream.send(
                    p.to_line(p.Rejected(version=_version.__version__, protocol=p.PROTOCOL, pid=os.getpid()))
                )
            return
        await _converse(stream, lines, engine, hello)


async def _converse(stream: SocketStream, lines: BufferedByteReceiveStream, engine: Engine, hello: p.Hello) -> None:
    client = uuid.uuid4().hex[:12]
    sender, outbox = create_memory_object_stream[p.Message](UNSENT)
    with suppress(BrokenResourceError, ClosedResourceError):
        async with anyio.create_task_group() as tasks, sender, outbox:

            def send(message: p.Message) -> None:
                try:
                    sender.send_nowait(message)
                except (anyio.WouldBlock, BrokenResourceError):
                    log.warning("client %s (%s) does not read: disconnected", client, hello.label)
                    tasks.cancel_scope.cancel()

            send(p.Welcome(version=_version.__version__, pid=os.getpid()))
            engine.connect(client, send, nested=hello.kind == "replica")
            engine.post(events.ClientConnected(client, hello.label, hello.kind, hello.pid))
            log.info("client %s: %s %s, pid %d", client, hello.kind, hello.label, hello.pid)
            try:
                tasks.start_soon(_write, stream, outbox)
                await _read(lines, engine, client, send, tasks)
            finally:
                engine.disconnect(client)
                log.info("client %s is gone", client)
            tasks.cancel_scope.cancel()


async def _write(stream: SocketStream, outbox: MemoryObjectReceiveStream[p.Message]) -> None:
    async for message in outbox:
        await stream.send(p.to_line(message))


async def _read(
    lines: BufferedByteReceiveStream, engine: Engine, client: str, send: p.Send, tasks: anyio.abc.TaskGroup
) -> None:
    while True:
        try:
            line = await lines.receive_until(b"\n", p.MAX_LINE_BYTES)
        except (EndOfStream, IncompleteRead, BrokenResourceError):
            return
        except anyio.DelimiterNotFound:
            send(p.Failed(why=f"a message is longer than {p.MAX_LINE_BYTES} bytes"))
            return
        try:
            message = p.to_broker.validate_json(line)
        except ValidationError as problem:
            send(p.Failed(why=str(problem)))
            continue
        await _handle(message, engine, client, send, tasks)


async def _handle(message: p.ToBroker, engine: Engine, client: str, send: p.Send, tasks: anyio.abc.TaskGroup) -> None:
    match message:
        case p.Acquire(lease=lease, pool=pool, task=task, parent=parent):
            engine.post(events.LeaseRequested(client, lease, pool, task, parent))
        case p.Release(lease=lease):
            engine.post(events.LeaseReleased(lease))
        case p.Declare(declaration=declaration):
            await engine.declare(client, declaration)
        case p.Revoke(lease=lease, why=why):
            engine.post(events.LeaseRevoked(lease, why))
        case p.Warm(pool=pool, replicas=replicas):
            engine.post(events.PoolWarmed(pool, replicas))
        case p.Scale(pool=pool, scaling=scaling):
            engine.post(events.PoolScaled(pool, scaling))
        case p.Keep(pool=pool, seconds=seconds):
            engine.post(events.PoolKept(pool, seconds))
        case p.StopPool(pool=pool, force=force):
            engine.post(events.PoolStopped(pool, force))
        case p.Watch(once=True):
            send(engine.snapped())
        case p.Watch():
            tasks.start_soon(_watch, engine, send)
        case p.Shutdown():
            log.info("client %s asked to shut down", client)
            engine.end()
        case p.Hello():
            send(p.Failed(why="hello was said already"))


async def _watch(engine: Engine, send: p.Send) -> None:
    async for snapped in engine.watch():
        send(snapped)


def peer_uid(stream: SocketStream) -> int:
    """The user at the other end, as the operating system knows it."""
    raw: socket.socket = stream.extra(SocketAttribute.raw_socket)
    if hasattr(socket, "SO_PEERCRED"):
        return int(struct.unpack("3i", raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])
    return int(struct.unpack_from("=II", raw.getsockopt(0, 0x001, 76))[1])  # macOS: struct xucred
