"""Front ends of the kernelspec `flyte-attach`: what they start, what they run, and what they see of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from support import START_S, TIME_SCALE, view_of

import flyte_jupyter as flyte

SPEC = json.loads((Path(__file__).parents[2] / "share/jupyter/kernels/flyte-attach/kernel.json").read_text())
ANSWER_S = START_S * TIME_SCALE


class Ran:
    """What a cell showed, and how it ended."""

    def __init__(self) -> None:
        self.status = ""
        self.text = ""
        self.result = ""
        self.error = ""

    def take(self, message: dict[str, Any]) -> None:
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                self.text += content["text"]
            case "execute_result":
                self.result = content["data"]["text/plain"]
            case "error":
                self.error = f"{content['ename']}: {content['evalue']}"


class Console:
    """A client of a kernel's channels."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client

    def run(self, code: str, *, answer: str | None = None) -> Ran:
        """A cell, to its end; `answer` is what it gets from `input()`."""
        ran = Ran()
        options: dict[str, Any] = {}
        if answer is not None:
            options = {"allow_stdin": True, "stdin_hook": lambda message: self.client.input(answer)}
        reply = self.client.execute_interactive(code, timeout=ANSWER_S, output_hook=ran.take, **options)
        ran.status = reply["content"]["status"]
        return ran

    def begin(self, code: str, until: str = "in\n") -> str:
        """A cell, only until it has shown that text; the id of its request."""
        asked = str(self.client.execute(code))
        ran = Ran()
        while until not in ran.text:
            message = self.client.get_iopub_msg(timeout=ANSWER_S)
            if message["parent_header"].get("msg_id") == asked:
                ran.take(message)
        return asked

    def reply(self, asked: str) -> dict[str, Any]:
        """The content of the reply to that request; to others there may be some before it."""
        while True:
            message = self.client.get_shell_msg(timeout=ANSWER_S)
            if message["parent_header"].get("msg_id") == asked:
                content: dict[str, Any] = message["content"]
                return content


class FrontEnd(Console):
    """What Jupyter does with the kernelspec: starts its command, and talks to the channels."""

    def __init__(self, wanted: str, *, shared: bool = False, **variables: str) -> None:
        self.manager = KernelManager()
        self.manager._kernel_spec = KernelSpec(**SPEC)
        environment = {**os.environ, "FLYTE_JUPYTER_ATTACH": wanted, **variables}
        if shared:
            environment["FLYTE_JUPYTER_ATTACH_SHARED"] = "1"
        self.manager.start_kernel(env=environment)
        super().__init__(self.manager.client())
        self.client.start_channels()
        self.client.wait_for_ready(timeout=ANSWER_S)

    @property
    def pid(self) -> int:
        assert self.manager.provisioner is not None
        return int(self.manager.provisioner.process.pid)  # type: ignore[attr-defined]

    def restart(self) -> None:
        self.manager.restart_kernel()
        self.client.wait_for_ready(timeout=ANSWER_S)

    def close(self) -> None:
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel()


@contextmanager
def front_end(wanted: str, **options: Any) -> Iterator[FrontEnd]:
    opened = FrontEnd(wanted, **options)
    try:
        yield opened
    finally:
        opened.close()


def holders(pool: flyte.TaskEnvironment) -> list[str]:
    """Who has a slot, or has attached."""
    return [lease.task for replica in view_of(pool).replicas for lease in replica.leases]
