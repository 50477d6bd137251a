"""Widgets of a task: what they say goes to the client of their call, and what its front end says comes back to them."""

from __future__ import annotations

import contextvars
import pickle
from typing import Any

import comm
from ipykernel.comm.comm import BaseComm
from ipykernel.jsonutil import json_clean
from ipykernel.kernelbase import Kernel

from ..core.context import Action, TaskContext, current
from ..core.frames import Frame
from .interrupts import waits
from .outputs import OutputSink, Router


class TaskComm(BaseComm):
    """A comm that was opened inside a call, or is used by one."""

    def publish_msg(
        self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any
    ) -> None:
        sink = None if _comms is None else _comms.sink(self.comm_id)
        if sink is None:
            super().publish_msg(msg_type, data, metadata, buffers, **keys)
            return
        self.kernel = self.kernel or Kernel.instance()  # ipywidgets takes a comm without one for a closed one
        sink.comm(
            {
                "msg_type": msg_type,
                "content": json_clean({"data": data or {}, "comm_id": self.comm_id, **keys}),
                "metadata": json_clean(metadata or {}),
                "buffers": [bytes(buffer) for buffer in buffers or ()],
            }
        )
        if msg_type == "comm_close" and _comms is not None:
            _comms.forget(self.comm_id)


class Comms:
    """The places where the front end of each widget is. `receive` is for the main thread."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._homes: dict[str, OutputSink] = {}  # of widgets whose front end has spoken: where it listens

    def sink(self, comm_id: str) -> OutputSink | None:
        """The running call's, else that of the connection on which the widget's front end was heard last."""
        sink = self._router.sink() or self._homes.get(comm_id)
        return None if sink is None or sink.closed else sink

    def forget(self, comm_id: str) -> None:
        self._homes.pop(comm_id, None)

    def receive(self, frame: Frame, sink: OutputSink) -> None:
        """A message of a front end to its widget. The output of the widget's callbacks goes to `sink`."""
        context = contextvars.copy_context()
        context.run(self._handle, pickle.loads(frame.body), sink)

    @waits  # its callbacks are the user's
    def _handle(self, message: dict[str, Any], sink: OutputSink) -> None:
        current.set(TaskContext(Action("widget", "widget"), sink=sink))
        comm_id, msg_type = message["content"]["comm_id"], message["msg_type"]
        self._homes[comm_id] = sink
        handle = getattr(comm.get_comm_manager(), msg_type)
        handle(None, None, {"header": {"msg_type": msg_type}, **message})
        sink.flush()
        if msg_type == "comm_close":
            self.forget(comm_id)


_comms: Comms | None = None


def install(router: Router) -> Comms:
    """Let every comm from now on know about calls."""
    global _comms  # noqa: PLW0603
    _comms = Comms(router)
    return _comms


comm.create_comm = TaskComm  # at once: what a zygote imports may keep a reference to it
