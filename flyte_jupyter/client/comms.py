"""Between a replica's widgets or questions and this kernel's front end."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any, Final

from ..core.cells import PARENT
from ..core.frames import Buffer, FrameReader, Kind, encode
from ..runtime import peer_uid
from .identity import ipython


class Link:
    """A connection to a replica for the widgets of one call, also when the call is over. Made when one is used.

    Args:
        address: The replica's socket.
        show: Takes what the widgets answer, in the context in which this is made: an OUTPUT's flags and body.
    """

    def __init__(self, address: str, show: Callable[[int, Buffer], None]) -> None:
        self._address = address
        self._show = show
        self._context = copy_context()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._over = False

    def send(self, pieces: list[Buffer]) -> None:
        """Write a frame; nothing happens if the replica is gone."""
        with self._lock, suppress(OSError):
            if self._socket is None and not self._over:
                self._socket = self._connect()
            if self._socket is not None:
                self._socket.sendall(b"".join(pieces))

    def _connect(self) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.connect(self._address)
            if peer_uid(stream) != os.getuid():
                raise PermissionError(f"the process at {self._address} belongs to another user")
            stream.sendall(b"".join(encode(Kind.HELLO, 0, b'{"role": "control"}')))
        except OSError:
            stream.close()
            self._over = True
            raise
        threading.Thread(target=self._context.run, args=(self._listen, stream), daemon=True).start()
        return stream

    def _listen(self, stream: socket.socket) -> None:
        reader = FrameReader()
        with suppress(OSError):
            while count := stream.recv_into(reader.get_buffer()):
                reader.buffer_updated(count)
                while (frame := reader.next_frame()) is not None:
                    if frame.kind == Kind.OUTPUT:
                        self._show(frame.flags, frame.body)
        with self._lock:
            self._socket, self._over = None, True
            stream.close()


to_replica: ContextVar[Link | None] = ContextVar("flyte_jupyter_to_replica", default=None)
"""How a widget that opens in this context hears what its user does."""


class Shadow:
    """Stands in this kernel for a widget that lives in a replica, and hands on what its user does.

    Everything about it is on the replica. When that is gone, what the front end shows stays as it is.
    """

    def __init__(self, comm_id: str, target_name: str, link: Link | None) -> None:
        self.comm_id = comm_id
        self.target_name = target_name
        self._link = link
        self._closed = False  # the manager sets it, as with its own

    def handle_msg(self, message: dict[str, Any]) -> None:
        self._forward("comm_msg", message)

    def handle_close(self, message: dict[str, Any]) -> None:
        self._forward("comm_close", message)

    def close(self, *_: object, **__: object) -> None:
        """What ipywidgets asks of every comm when the kernel ends: nothing is left to do here."""

    def _forward(self, kind: str, message: dict[str, Any]) -> None:
        if self._link is None:
            return
        content = {
            "msg_type": kind,
            "content": message["content"],
            "metadata": message.get("metadata", {}),
            "buffers": [bytes(buffer) for buffer in message.get("buffers", ())],
        }
        self._link.send(encode(Kind.COMM, 0, pickle.dumps(content, 5)))


_lock: Final = threading.Lock()


def publish(message: dict[str, Any]) -> None:
    """Publish a replica's comm message as this kernel's own, for the cell of this context."""
    kernel = getattr(ipython(), "kernel", None)
    if kernel is None:
        return  # a terminal has no widgets; their text comes as a display
    kind, content = message["msg_type"], message["content"]
    comm_id = content["comm_id"]
    parent = kernel.get_parent()
    state = content.get("data", {}).get("state", {})
    if state.get("msg_id") == PARENT:  # an Output widget takes what this cell shows from now on
        state["msg_id"] = parent.get("header", {}).get("msg_id", "")
    with _lock:
        comms = kernel.comm_manager.comms
        if kind == "comm_open":
            comms[comm_id] = Shadow(comm_id, content.get("target_name", ""), to_replica.get())
        elif kind == "comm_close":
            comms.pop(comm_id, None)
    kernel.session.send(
        kernel.iopub_socket,
        kind,
        content,
        metadata=message["metadata"],
        parent=parent,
        ident=f"comm-{comm_id}".encode(),
        buffers=message["buffers"],
    )


def ask(prompt: str, password: bool) -> tuple[bytes, int]:
    """What the user of this process types: the body and the flags of an ANSWER; flags 1 if nobody can be asked."""
    import getpass
    import warnings

    try:
        if password:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a terminal that cannot hide what is typed
                return getpass.getpass(prompt).encode(), 0
        return input(prompt).encode(), 0
    except (EOFError, OSError, NotImplementedError):  # the last is a front end's that does not take input
        return b"", 1
