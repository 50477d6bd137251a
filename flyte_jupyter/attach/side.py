"""The two sides between which a proxy passes messages: channels, keys, and what is answered on the spot."""

from __future__ import annotations

import hmac
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import zmq
from jupyter_client.session import DELIM, Session

from .. import _version
from ..client import text

MARK: Final = 100_000
"""Messages that a front end may lag behind."""
CHANNELS: Final = ("shell", "control", "stdin")

Header = dict[str, Any]


@dataclass
class Request:
    """One message of the front end, as it came."""

    channel: str
    idents: list[bytes]
    header: Header
    parts: list[bytes]  # header, parent, metadata, content, buffers

    @property
    def type(self) -> str:
        return str(self.header.get("msg_type", ""))

    @property
    def id(self) -> str:
        return str(self.header.get("msg_id", ""))

    @property
    def silent(self) -> bool:
        """Whether nobody sees this execution."""
        return bool(json.loads(self.parts[3]).get("silent"))


@dataclass
class Side:
    """The channels of one connection file, and its key."""

    info: dict[str, Any]
    sockets: dict[str, zmq.Socket[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.session = Session(
            key=self.info["key"].encode(), signature_scheme=self.info.get("signature_scheme") or "hmac-sha256"
        )

    def url(self, channel: str) -> str:
        port = self.info[f"{channel}_port"]
        if self.info.get("transport") == "ipc":
            return f"ipc://{self.info['ip']}-{port}"
        return f"tcp://{self.info['ip']}:{port}"

    def open(self, context: zmq.Context[Any], channel: str, kind: int) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = context.socket(kind)
        self.sockets[channel] = made
        made.linger = 1000
        made.set_hwm(MARK if channel == "iopub" else 0)
        return made

    def accept(self, frames: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Identities and parts of a message. Raises ValueError if it is not signed with this side's key."""
        at = frames.index(DELIM)
        signature, parts = frames[at + 1], list(frames[at + 2 :])
        if self.info["key"] and not hmac.compare_digest(self.session.sign(parts[:4]), signature):
            raise ValueError("a message has a wrong signature")
        return list(frames[:at]), parts

    def pass_on(self, channel: str, idents: list[bytes], parts: list[bytes]) -> None:
        self.sockets[channel].send_multipart([*idents, DELIM, self.session.sign(parts[:4]), *parts])

    def close(self) -> None:
        for each in self.sockets.values():
            each.close()
        self.sockets.clear()


class FrontEnd(Side):
    """The front end's side, where this process is the kernel."""

    def bind(self, context: zmq.Context[Any]) -> None:
        for channel in (*CHANNELS, "hb"):
            self.open(context, channel, zmq.ROUTER).bind(self.url(channel))
        published = self.open(context, "iopub", zmq.XPUB)
        published.setsockopt(zmq.XPUB_VERBOSER, 1)  # each client is welcomed, and its end is heard of
        published.bind(self.url("iopub"))

    def reply(self, request: Request, content: dict[str, Any]) -> None:
        """Answer as a kernel does: busy, the reply, idle."""
        self.publish("status", {"execution_state": "busy"}, request.header)
        kind = request.type.replace("_request", "_reply")
        self.session.send(
            self.sockets[request.channel],
            self.session.msg(kind, content, parent={"header": request.header}),
            ident=request.idents,
        )
        self.publish("status", {"execution_state": "idle"}, request.header)

    def reply_error(self, request: Request, name: str, message: str) -> None:
        content = {"ename": name, "evalue": message, "traceback": [f"{name}: {message}"]}
        if request.type == "execute_request":
            self.publish("error", content, request.header)
        self.reply(request, {"status": "error", "execution_count": 0, **content})

    def write(self, words: str, parent: Header, stream: str = "stdout") -> None:
        self.publish("stream", {"name": stream, "text": text.visible(words, keep="\n\t")}, parent)

    def publish(self, kind: str, content: dict[str, Any], parent: Header) -> None:
        message = self.session.msg(kind, content, parent={"header": parent} if parent else None)
        self.session.send(self.sockets["iopub"], message, ident=kind.encode())


@dataclass
class ReplicaSide(Side):
    """The replica's side, where this process is one more client, known by `identity`."""

    identity: str = ""

    def connect(self, context: zmq.Context[Any]) -> None:
        for channel in CHANNELS:
            # One routing id on all: the kernel asks on stdin whom it heard on shell.
            dealer = self.open(context, channel, zmq.DEALER)
            dealer.setsockopt(zmq.ROUTING_ID, self.identity.encode())
            dealer.connect(self.url(channel))
        listener = self.open(context, "iopub", zmq.SUB)
        listener.subscribe(b"")
        listener.connect(self.url("iopub"))

    def ask(self, kind: str) -> None:
        """Send a request of this process. On control: it answers whatever the main thread does."""
        self.session.send(self.sockets["control"], kind, {})


def kernel_info() -> dict[str, Any]:
    """Before there is a replica that could be asked."""
    version = sys.version.partition(" ")[0]
    return {
        "status": "ok",
        "protocol_version": "5.5",
        "implementation": "flyte_jupyter",
        "implementation_version": _version.__version__,
        "language_info": {
            "name": "python",
            "version": version,
            "mimetype": "text/x-python",
            "codemirror_mode": {"name": "ipython", "version": 3},
            "pygments_lexer": "ipython3",
            "nbconvert_exporter": "python",
            "file_extension": ".py",
        },
        "banner": "A warm kernel of flyte_jupyter",
        "help_links": [],
        "supported_features": [],
    }
