"""Looking into a replica while it works: a subshell beside its main thread, for as long as one question takes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from .. import errors
from ..core.cells import PEEK
from ..core.snapshot import ReplicaView
from . import text
from .attached import jupyter_channels

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
        work = [f"{each.task} ({each.client}, {text.duration(now - each.since)})" for each in replica.running]
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
            held = (
                f"{text.size(device['allocated'])} held + {text.size(device['reserved'] - device['allocated'])} cached"
            )
            lines.append(
                f"GPU {device['device']} {device['name']}: {held}; "
                f"{text.size(device['free'])} of {text.size(device['total'])} free"
            )
        return lines


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
        expressions: Evaluated with the names of the innermost frame of the user's code, in a thread of the replica.
        stack: The frames of the main thread, innermost first.
        gpu: The GPU memory that its torch holds.
        timeout: Seconds.

    Raises:
        NoSuchReplica: It has just ended.
        ReplicaSilent: It does not answer in time.
    """
    import zmq
    from jupyter_client.session import Session

    info = jupyter_channels(replica)
    session = Session(key=info["key"].encode(), signature_scheme=info["signature_scheme"])
    context: Any = zmq.Context()
    identity = PEEK + uuid.uuid4().hex.encode()
    sockets = {}
    for channel in ("control", "shell"):
        made = sockets[channel] = context.socket(zmq.DEALER)
        made.linger = 0
        made.setsockopt(zmq.ROUTING_ID, identity)
        made.connect(f"ipc://{info['ip']}-{info[f'{channel}_port']}")

    def ask(channel: str, kind: str, content: dict[str, Any], seconds: float, **header: str) -> dict[str, Any]:
        message = session.msg(kind, content)
        message["header"].update(header)
        session.send(sockets[channel], message)
        if not sockets[channel].poll(int(seconds * 1000)):
            raise errors.ReplicaSilent(replica.name, seconds)
        answer: Any = session.recv(sockets[channel])[1]
        found: dict[str, Any] = answer["content"]
        return found

    subshell = ""
    try:
        subshell = ask("control", "create_subshell_request", {}, timeout)["subshell_id"]
        code = f"__import__('flyte_jupyter.kernel.peek', fromlist=['']).look({list(expressions)!r}, {stack}, {gpu})"
        question = {"code": "", "silent": True, "store_history": False, "allow_stdin": False, "stop_on_error": False,
                    "user_expressions": {"seen": code}}  # fmt: skip
        answer = ask("shell", "execute_request", question, timeout, subshell_id=subshell)
        seen = answer["user_expressions"]["seen"]
        if seen["status"] != "ok":
            raise errors.ProtocolError(f"{replica.name} cannot be looked into: {seen['ename']}: {seen['evalue']}")
        content = seen["data"]["application/json"]
    finally:
        if subshell:
            with suppress(errors.ReplicaSilent):  # the request is on its way; and it goes by itself
                ask("control", "delete_subshell_request", {"subshell_id": subshell}, DELETED_S)
        context.destroy(linger=100)
    return Peeked(
        replica=replica,
        stack=tuple(content["stack"]),
        values=tuple(content["values"]),
        gpu=tuple(content["gpu"]) if "gpu" in content else None,
    )
