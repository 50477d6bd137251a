"""A console and a notebook on a warm replica, opened as JupyterLab opens them: by the sessions of a Jupyter server."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asking import server_config
from support import START_S, TIME_SCALE, assert_quiet, pids, view_of, within
from traitlets.config import Config

import flyte_jupyter as flyte
from flyte_jupyter.client import broker
from flyte_jupyter.core import protocol as p

pytestmark = pytest.mark.kernel

SPEC = json.loads((Path(__file__).parents[2] / "share/jupyter/kernels/flyte-attach/kernel.json").read_text())
opened = flyte.TaskEnvironment("opened", reusable=flyte.ReusePolicy(replicas=1))
POOL = flyte.pool(opened)


def model() -> dict[str, int]:
    return {"weights": 42}


@pytest.fixture
def jp_server_config(jp_data_dir: Path) -> Config:
    folder = jp_data_dir / "kernels" / "flyte-attach"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(SPEC | {"argv": [sys.executable, *SPEC["argv"][1:]]}))
    return server_config()


@pytest.fixture(autouse=True)
def _warm(shared_broker: Path) -> Iterator[None]:
    POOL.preload(model)
    POOL.warm(timeout=START_S)
    yield
    POOL.warm(timeout=START_S)
    assert_quiet(opened)


class Session:
    """A kernel of a session, and one client's socket."""

    def __init__(self, id_: str, kernel: str, socket: Any) -> None:
        self.id = id_
        self.kernel = kernel
        self.socket = socket
        self.printed = ""

    async def receive(self) -> Any:
        message = await asyncio.wait_for(self.socket.read_message(), START_S * TIME_SCALE)
        assert message is not None, "the server hung up"
        return json.loads(message)

    async def run(self, code: str) -> str:
        """The text of a cell's result, or of its error; what it prints is in `printed`."""
        asked = uuid.uuid4().hex
        header = {"msg_id": asked, "msg_type": "execute_request", "username": "", "session": "s", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        request = {"header": header, "parent_header": {}, "metadata": {}, "channel": "shell", "content": content}
        await self.socket.write_message(json.dumps(request))
        result, self.printed, waits_for = "", "", {"idle", "execute_reply"}
        while waits_for:
            message = await self.receive()
            if message["parent_header"].get("msg_id") != asked:
                continue
            content = message["content"]
            match message["msg_type"]:
                case "stream":
                    self.printed += content["text"]
                case "execute_result":
                    result = content["data"]["text/plain"]
                case "error":
                    result = f"{content['ename']}: {content['evalue']}"
                case "status":
                    waits_for.discard(content["execution_state"])
                case kind:
                    waits_for.discard(kind)
        return result


Opens = Callable[..., Awaitable[Session]]


@pytest.fixture
def open_session(jp_fetch: Any, jp_ws_fetch: Any, jp_serverapp: Any, jp_asyncio_loop: Any) -> Iterator[Opens]:
    async def open_(path: str, name: str, kind: str) -> Session:
        body = {"path": path, "name": name, "type": kind, "kernel": {"name": "flyte-attach"}}
        answer = json.loads((await jp_fetch("api", "sessions", method="POST", body=json.dumps(body))).body)
        kernel = answer["kernel"]["id"]
        return Session(answer["id"], kernel, await jp_ws_fetch("api", "kernels", kernel, "channels"))

    yield open_
    jp_asyncio_loop.run_until_complete(jp_serverapp.kernel_manager.shutdown_all())


async def test_a_console_reads_what_the_preload_made(open_session: Opens) -> None:
    name = view_of(opened).replicas[0].name
    with within(2):
        console = await open_session(f"flyte-attach/{name}/0123abcd", name, "console")
        assert await console.run("model()") == "{'weights': 42}"
    assert console.printed.startswith(f"attached to {name} (pid ")
    assert [lease.task for lease in view_of(opened).replicas[0].leases] == ["attached console"]


async def test_a_notebook_says_which_replica(open_session: Opens, jp_root_dir: Path) -> None:
    metadata = {"flyte_jupyter": {"attach": "opened[7]"}}
    (jp_root_dir / "a.ipynb").write_text(json.dumps({"cells": [], "metadata": metadata, "nbformat": 4}))
    notebook = await open_session("a.ipynb", "a.ipynb", "notebook")
    assert 'FJ106 The pool "opened" has no replica 7 (existing: ' in await notebook.run("1")


async def test_restart_and_shutdown_in_the_front_end_leave_process_and_object(
    open_session: Opens, jp_fetch: Any, jp_ws_fetch: Any
) -> None:
    (pid,) = pids(opened)
    console = await open_session("flyte-attach/opened/0123abcd", "opened", "console")
    identity = await console.run("import os; kept = model(); (os.getpid(), id(kept))")
    await jp_fetch("api", "kernels", console.kernel, "restart", method="POST", body="{}")
    console.socket.close()
    console.socket = await jp_ws_fetch("api", "kernels", console.kernel, "channels")
    assert await console.run("(os.getpid(), id(kept))") == identity
    assert console.printed.startswith(f"again attached to {view_of(opened).replicas[0].name} ")
    await jp_fetch("api", "sessions", console.id, method="DELETE")
    again = await open_session("flyte-attach/opened/0123abce", "opened", "console")
    assert await again.run("(os.getpid(), id(kept))") == identity
    assert identity.startswith(f"({pid}, ")
    await again.run("del kept")


async def test_a_replica_that_is_replaced_shows_as_a_restarted_kernel(open_session: Opens) -> None:
    console = await open_session("flyte-attach/opened/0123abcd", "opened", "console")
    await console.run("kept = 1")
    replica = view_of(opened).replicas[0]
    broker.connect().send(p.RestartReplica(replica=replica.id, force=True))
    while (await console.receive())["content"].get("execution_state") != "restarting":
        pass
    assert await console.run("import os; (os.getpid(), 'kept' in globals())") == f"({pids(opened)[0]}, False)"
    assert "ended: it was restarted by hand. Its names are gone" in console.printed
    assert pids(opened) != [replica.pid]
