"""Looking into a replica while it works: a subshell beside its main thread, for as long as one question takes.

Asked by programs that may block, and by the Jupyter server, which may not. What comes back is JSON.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from . import errors, runtime
from .core.cells import PEEK
from .core.format import duration, size, visible
from .core.snapshot import ReplicaView

ANSWER_S: Final = 2.0
"""How long the replica may take; a GIL that is held for longer is what somebody wants to know of."""
DELETED_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Peeked:
    """What was seen: JSON as `kernel.peek` made it."""

    replica: ReplicaView
    stack: tuple[dict[str, Any], ...]
    values: tuple[dict[str, Any], ...]
    gpu: tuple[dict[str, Any], ...] | None

    def lines(self, now: float, *, stack: bool = True) -> list[str]:
        """For people; `now` is on the snapshot's clock."""
        replica = self.replica
        work = [f"{each.task} ({each.client}, {duration(now - each.since)})" for each in replica.running]
        lines = [f"{replica.name} · pid {replica.pid} · {', '.join(work) or replica.state}"]
        if stack:
            if not self.stack:
                lines.append("nothing runs on its main thread")
            for frame in self.stack:
                mark = "→" if frame["user"] else " "
                lines.append(f"{mark} {frame['function']}  {frame['file']}:{frame['line']}  {frame['source']}".rstrip())
        for value in self.values:
            shown = value.get("value")
            lines.append(f"{value['expression']} = {shown}" if shown is not None else
                         f"{value['expression']}: {value['error']}")  # fmt: skip
        if self.gpu is not None and not self.gpu:
            lines.append("GPU: its torch holds none")
        for device in self.gpu or ():
            held = f"{size(device['allocated'])} held + {size(device['reserved'] - device['allocated'])} cached"
            lines.append(
                f"GPU {device['device']} {device['name']}: {held}; "
                f"{size(device['free'])} of {size(device['total'])} free"
            )
        return [visible(line, keep="\n\t") for line in lines]


@dataclass(frozen=True, slots=True)
class Look:
    """What somebody wants to see.

    Args:
        expressions: Evaluated with the names of the innermost frame of the user's code, in a thread of the replica.
        stack: The frames of the main thread, innermost first.
        gpu: The GPU memory that its torch holds.
        timeout: Seconds that each answer may take.
    """

    expressions: tuple[str, ...] = ()
    stack: bool = True
    gpu: bool = False
    timeout: float = ANSWER_S


def peek(
    replica: ReplicaView,
    expressions: Sequence[str] = (),
    *,
    stack: bool = True,
    gpu: bool = False,
    timeout: float = ANSWER_S,
) -> Peeked:
    """What a replica does now. Its task goes on undisturbed, and nothing of the look stays there.

    Args:
        expressions, stack, gpu, timeout: As of `Look`.

    Raises:
        NoSuchReplica: It has just ended.
        ReplicaSilent: It does not answer in time.
    """
    import zmq

    look = Look(tuple(expressions), stack, gpu, timeout)
    with _sockets(zmq.Context(), replica) as channels:
        talk = _talk(replica, look, channels.session)
        question = next(talk)
        while True:
            stream = channels[question.channel]
            stream.send_multipart(question.frames)
            answered = stream.poll(int(question.seconds * 1000))
            frames = stream.recv_multipart() if answered else None
            try:
                question = talk.send(frames)
            except StopIteration as end:
                return _seen(replica, end.value)


async def peek_async(replica: ReplicaView, look: Look) -> Peeked:
    """The same for an event loop, which goes on meanwhile."""
    import zmq.asyncio

    with _sockets(zmq.asyncio.Context(), replica) as channels:
        talk = _talk(replica, look, channels.session)
        question = next(talk)
        while True:
            stream = channels[question.channel]
            await stream.send_multipart(question.frames)
            answered = await stream.poll(int(question.seconds * 1000))
            frames = await stream.recv_multipart() if answered else None
            try:
                question = talk.send(frames)
            except StopIteration as end:
                return _seen(replica, end.value)


def jupyter_channels(replica: ReplicaView) -> dict[str, Any]:
    """What is in its connection file.

    Raises:
        NoSuchReplica: It has just ended.
    """
    for path in runtime.private_folder().glob(f"*/{replica.id}/kernel.json"):
        with suppress(OSError, ValueError):
            info: dict[str, Any] = json.loads(path.read_text())
            return info
    raise errors.NoSuchReplica(replica.name)


# --- the conversation, whoever moves its frames


@dataclass(frozen=True, slots=True)
class _Question:
    channel: str
    frames: list[bytes]
    seconds: float


Talk = Generator[_Question, list[bytes] | None, dict[str, Any]]
"""Yields questions, gets the frames of each answer or None if none came in time, returns what was seen."""


def _talk(replica: ReplicaView, look: Look, session: Any) -> Talk:
    def ask(
        channel: str, kind: str, content: dict[str, Any], seconds: float, **header: str
    ) -> Generator[_Question, list[bytes] | None, dict[str, Any]]:
        message = session.msg(kind, content)
        message["header"].update(header)
        frames = yield _Question(channel, session.serialize(message), seconds)
        if frames is None:
            jupyter_channels(replica)  # which raises if it has ended since
            raise errors.ReplicaSilent(replica.name, seconds)
        found: dict[str, Any] = session.deserialize(session.feed_identities(frames)[1])["content"]
        return found

    subshell = (yield from ask("control", "create_subshell_request", {}, look.timeout))["subshell_id"]
    arguments = f"{list(look.expressions)!r}, {look.stack}, {look.gpu}"
    code = f"__import__('flyte_jupyter.kernel.peek', fromlist=['']).look({arguments})"
    question = {"code": "", "silent": True, "store_history": False, "allow_stdin": False, "stop_on_error": False,
                "user_expressions": {"seen": code}}  # fmt: skip
    silent: errors.PoolError | None = None
    try:
        answer = yield from ask("shell", "execute_request", question, look.timeout, subshell_id=subshell)
    except (errors.ReplicaSilent, errors.NoSuchReplica) as problem:
        silent = problem
    # No `finally`: who gives up in between asks nothing more, and the subshell goes by itself.
    with suppress(errors.ReplicaSilent, errors.NoSuchReplica):  # then the request is on its way
        yield from ask("control", "delete_subshell_request", {"subshell_id": subshell}, DELETED_S)
    if silent is not None:
        raise silent
    seen = answer["user_expressions"]["seen"]
    if seen["status"] != "ok":
        raise errors.ProtocolError(f"{replica.name} cannot be looked into: {seen['ename']}: {seen['evalue']}")
    content: dict[str, Any] = seen["data"]["application/json"]
    return content


@dataclass(frozen=True, slots=True)
class _Channels:
    session: Any
    sockets: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, channel: str) -> Any:
        return self.sockets[channel]


@contextmanager
def _sockets(context: Any, replica: ReplicaView) -> Iterator[_Channels]:
    import zmq
    from jupyter_client.session import Session

    try:
        info = jupyter_channels(replica)
        channels = _Channels(Session(key=info["key"].encode(), signature_scheme=info["signature_scheme"]))
        identity = PEEK + uuid.uuid4().hex.encode()
        for channel in ("control", "shell"):
            made = channels.sockets[channel] = context.socket(zmq.DEALER)
            made.setsockopt(zmq.ROUTING_ID, identity)
            made.connect(f"ipc://{info['ip']}-{info[f'{channel}_port']}")
        yield channels
    finally:
        context.destroy(linger=0)  # which waits here, for an event loop too: what is not taken by now is given up


def _seen(replica: ReplicaView, content: dict[str, Any]) -> Peeked:
    return Peeked(
        replica=replica,
        stack=tuple(content["stack"]),
        values=tuple(content["values"]),
        gpu=tuple(content["gpu"]) if "gpu" in content else None,
    )
