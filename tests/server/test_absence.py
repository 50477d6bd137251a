"""No broker, a dead one, one of another version, one that does not answer: states, not errors, and none is started."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asking import Ask, server_config
from support import START_S, TIME_SCALE, OwnBroker, tagged, wait_until
from traitlets.config import Config

from flyte_jupyter import runtime
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.scheduler import Scheduler
from flyte_jupyter.server import connection

NOTICED_S = 2.0
EMPTY = Scheduler().snapshot()


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder that does not exist yet."""
    parent = Path(tempfile.mkdtemp(prefix="fj-", dir="/tmp"))
    monkeypatch.setenv(runtime.VARIABLE, str(parent / "r"))
    yield parent / "r"
    shutil.rmtree(parent)


@pytest.fixture
def jp_server_config() -> Config:
    return server_config()


@asynccontextmanager
async def answering(folder: Path, *answers: bytes) -> AsyncIterator[None]:
    """Somebody at the broker's socket who says just that to everyone's first lines, and is silent then."""
    folder.mkdir(mode=0o700)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for each in answers:
            await reader.readline()
            writer.write(each)
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(answer, runtime.broker_socket(folder)):
        yield


async def next_state(socket: Any) -> Any:
    return json.loads(await asyncio.wait_for(socket.read_message(), NOTICED_S * TIME_SCALE))


async def test_without_a_broker_there_is_a_state_and_none_is_started(folder: Path, ask: Ask, jp_ws_fetch: Any) -> None:
    answer = await ask("pools")
    assert answer.code == 200
    assert answer.body.pop("now") > 0
    tag = answer.body.pop("tag")
    assert answer.body == {
        "refused": {},
        "state": "no-broker",
        "message": "FJ104 No broker runs. It starts with the first task that is called.",
        "versions": {"server": "0.1.0", "broker": None},
        "broker_pid": None,
        "epoch_offset": None,
        "zygotes": [],
        "recent": [],
        "spawned": {},
        "usage": {"measured_at": None, "devices": {}, "replicas": {}, "problem": None},
        "snapshot": None,
    }
    assert (await ask("pools", params={"since": tag})).code == 204
    socket = await jp_ws_fetch("flyte-jupyter", "stream")
    assert (await next_state(socket))["tag"] == tag
    order = await ask("pools/0123456789abcdef/stop", {})
    assert (order.code, order.body["message"]) == (503, answer.body["message"])
    assert (await ask("replicas/01234567-1/log")).code == 404
    await asyncio.sleep(1.2)
    socket.close()
    assert not folder.exists()
    assert tagged(folder) == []


async def test_a_socket_that_nobody_serves_is_no_broker(folder: Path, ask: Ask) -> None:
    async with answering(folder):
        os.rename(runtime.broker_socket(folder), folder / "kept")
    os.rename(folder / "kept", runtime.broker_socket(folder))
    assert (await ask("pools")).body["state"] == "no-broker"


async def test_another_protocol_is_named_with_its_version(folder: Path, ask: Ask) -> None:
    async with answering(folder, p.to_line(p.Rejected(version="9.9", protocol=99, pid=1))):
        state = (await ask("pools")).body
        order = await ask("pools/0123456789abcdef/stop", {})
    assert (state["state"], state["versions"]["broker"]) == ("version-mismatch", "9.9")
    assert "This Jupyter server and the broker use different" in state["message"]
    assert "(Jupyter server 0.1.0, broker 9.9)" in state["message"]
    assert (order.code, order.body["message"]) == (503, state["message"])


async def test_a_broker_of_a_later_version_may_say_anything(folder: Path, ask: Ask) -> None:
    welcome = p.to_line(p.Welcome(version="1", pid=1))
    snapped = p.Snapped(epoch_offset=0, log_dir="", snapshot=EMPTY, question=1)
    async with answering(folder, welcome, b'{"type": "weather"}\n\xff\n' + p.to_line(snapped)):
        assert (await ask("pools")).body["state"] == "connected"


async def test_a_broker_that_does_not_answer_is_not_waited_for(
    folder: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 0.1)
    for answers in ((), (p.to_line(p.Welcome(version="1", pid=os.getpid())),)):
        async with answering(folder, *answers):
            state = (await ask("pools")).body
        assert (state["state"], state["snapshot"]) == ("unavailable", None)
        assert f"FJ107 The broker (pid {os.getpid()}) does not answer" in state["message"]
        shutil.rmtree(folder)


async def test_another_users_broker_is_not_spoken_to(folder: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []
    monkeypatch.setattr(runtime, "peer_uid", lambda _: os.getuid() + 1)
    folder.mkdir(mode=0o700)

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read())
        writer.close()

    async with await asyncio.start_unix_server(listen, runtime.broker_socket(folder)):
        state = (await ask("pools")).body
        assert state["state"] == "unavailable"
        assert "belongs to another user" in state["message"]
        while not heard:
            await asyncio.sleep(0.01)
    assert heard == [b""]


async def test_a_folder_that_others_may_write_to_is_not_looked_into(folder: Path, ask: Ask) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    state = (await ask("pools")).body
    assert state["state"] == "unavailable"
    assert "open to others" in state["message"]


@pytest.mark.kernel
async def test_a_broker_that_comes_dies_and_comes_again_is_noticed(
    own_broker: OwnBroker, jp_ws_fetch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(runtime.VARIABLE, str(own_broker.folder))
    code = """
        env = flyte.TaskEnvironment("mine", reusable=flyte.ReusePolicy(1))
        flyte.pool(env).warm()
        say("ready")
        time.sleep(100)
    """
    socket = await jp_ws_fetch("flyte-jupyter", "stream")
    seen = [(await next_state(socket))["state"]]
    tags = set()
    for name in ("first", "second"):
        client = await asyncio.to_thread(own_broker.start, code, name=name)
        while (state := json.loads(await asyncio.wait_for(socket.read_message(), 20)))["state"] != "connected":
            pass
        seen.append("connected")
        tags.add(state["tag"].split(".")[1])
        await asyncio.to_thread(wait_until, lambda name=name: own_broker.said(name), START_S)
        if name == "second":
            break
        client.kill()
        os.kill(own_broker.pid, signal.SIGKILL)
        while (state := await next_state(socket))["state"] == "connected":
            pass
        seen.append(state["state"])
        await asyncio.to_thread(wait_until, lambda: not tagged(own_broker.folder), 10)
    assert seen == ["no-broker", "connected", "no-broker", "connected"]
    assert len(tags) == 2
    socket.close()


@pytest.mark.kernel
async def test_a_broker_that_is_stopped_is_noticed(
    own_broker: OwnBroker, jp_ws_fetch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(runtime.VARIABLE, str(own_broker.folder))
    await asyncio.to_thread(
        own_broker.run, 'flyte.pool(flyte.TaskEnvironment("m", reusable=flyte.ReusePolicy(1))).warm()'
    )
    socket = await jp_ws_fetch("flyte-jupyter", "stream")
    assert (await next_state(socket))["state"] == "connected"
    with own_broker.connected() as client:
        client.send(p.Shutdown())
        while json.loads(await asyncio.wait_for(socket.read_message(), 10))["state"] != "no-broker":
            pass
    socket.close()
