"""The broker's socket as a client meets it: a real Unix socket, on asyncio as in the daemon."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from support import TIME_SCALE
from test_engine import NO_GPU, FakeLauncher, declaration

from flyte_jupyter.broker import server
from flyte_jupyter.broker.engine import Engine
from flyte_jupyter.broker.server import serve
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.scheduler import Scheduler


class Talk:
    """A client's end of a connection."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._lines = BufferedByteReceiveStream(stream)

    async def say(self, *messages: Any) -> None:
        await self.raw(b"".join(p.to_line(message) for message in messages))

    async def raw(self, data: bytes) -> None:
        await self.stream.send(data)

    async def hear(self, kind: type | None = None) -> Any:
        while True:
            message = p.from_broker.validate_json(await self._lines.receive_until(b"\n", 1 << 24))
            if kind is None or isinstance(message, kind):
                return message

    async def ended(self) -> bool:
        try:
            while True:
                await self._lines.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return True


class Broker:
    def __init__(self, path: Path, engine: Engine) -> None:
        self.path, self.engine = path, engine
        self.talks: list[Talk] = []

    async def connect(self) -> Talk:
        talk = Talk(await anyio.connect_unix(self.path))
        self.talks.append(talk)
        return talk

    async def close(self) -> None:
        for talk in self.talks:
            await talk.stream.aclose()

    async def client(self, **fields: Any) -> Talk:
        talk = await self.connect()
        await talk.say(hello(**fields))
        assert isinstance(await talk.hear(), p.Welcome)
        return talk

    async def clients(self, count: int) -> None:
        """Until so many are known to the scheduler."""
        while len(self.engine.scheduler.snapshot().clients) != count:
            await anyio.sleep(0.001)


def hello(**fields: Any) -> p.Hello:
    return p.Hello(**{"version": "1", "label": "a.ipynb", "kind": "notebook", "pid": 1, **fields})


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Broker]:
    engine = Engine(Scheduler(), FakeLauncher(ready_s=0), find_devices=lambda: NO_GPU)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.run)
        tasks.start_soon(serve, path, engine)
        while not path.exists():
            await anyio.sleep(0.001)
        broker = Broker(path, engine)
        try:
            yield broker
        finally:
            engine.end()
            tasks.cancel_scope.cancel()


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Callable[[Broker], Awaitable[None]]], None]:
    """Run a conversation with a broker, to its end, within ten seconds."""

    def run(conversation: Callable[[Broker], Awaitable[None]]) -> None:
        async def main() -> None:
            with anyio.fail_after(10 * TIME_SCALE):
                async with running(tmp_path / "b.sock") as broker:
                    try:
                        await conversation(broker)
                    finally:
                        with anyio.CancelScope(shield=True):
                            await broker.close()

        anyio.run(main)
        assert not (tmp_path / "b.sock").exists()

    return run


Play = Callable[[Callable[[Broker], Awaitable[None]]], None]


def test_a_client_says_hello_declares_and_gets_a_lease(play: Play) -> None:
    async def conversation(broker: Broker) -> None:
        talk, pool = await broker.client(), declaration()
        await talk.say(p.Declare(declaration=pool), p.Acquire(lease="l1", pool=pool.spec.key, task="t"))
        assert (await talk.hear()).lease == "l1"
        await talk.say(p.Release(lease="l1"), p.Watch(once=True))
        [view] = (await talk.hear(p.Snapped)).snapshot.clients
        assert (view.label, view.kind, view.pid) == ("a.ipynb", "notebook", 1)

    play(conversation)


def test_a_server_looks_on_and_is_no_client(play: Play) -> None:
    async def conversation(broker: Broker) -> None:
        talk = await broker.client(kind="server")
        await talk.say(p.Watch(once=True))
        snapped = await talk.hear(p.Snapped)
        assert snapped.snapshot.clients == ()
        await talk.stream.aclose()
        while broker.engine._spectators:
            await anyio.sleep(0.001)
        events = {type(event).__name__ for _, event, _ in broker.engine.scheduler.story}
        assert {"ClientConnected", "ClientGone"} & events == set()

    play(conversation)


def test_an_answer_shows_all_that_its_asker_has_said_before(play: Play) -> None:
    """Else a pool would still be busy with a slot that was just given back."""

    async def conversation(broker: Broker) -> None:
        talk, pool = await broker.client(), declaration()
        key = pool.spec.key
        for number in range(1, 20):
            scaled = p.Scale(pool=key, scaling=pool.scaling.model_copy(update={"max_replicas": number}))
            await talk.say(p.Declare(declaration=pool), scaled, p.Watch(once=True, usage=number % 2 == 0))
            [view] = (await talk.hear(p.Snapped)).snapshot.pools
            assert view.scaling.max_replicas == number
        other = declaration("other")
        await talk.say(p.Declare(declaration=other), p.AskTimeline(pool=other.spec.key))
        assert (await talk.hear(p.ToldTimeline)).timeline is not None
        await talk.say(p.Acquire(lease="l1", pool=key, task="t"), p.Watch())
        [view] = (await talk.hear(p.Snapped)).snapshot.clients
        assert view.leases + view.waiting == 1

    play(conversation)


def test_every_verb_reaches_the_scheduler(play: Play) -> None:
    async def conversation(broker: Broker) -> None:
        talk, pool = await broker.client(), declaration()
        key = pool.spec.key
        await talk.say(
            p.Declare(declaration=pool),
            p.Warm(pool=key, replicas=1),
            p.Scale(pool=key, scaling=pool.scaling.model_copy(update={"max_replicas": 7})),
            p.Keep(pool=key, seconds=60),
            p.Revoke(lease="nobody's", why="test"),
            p.Cancel(lease="nobody's"),
            p.RestartPool(pool=key),
            p.RestartReplica(replica="none"),
            p.Interrupt(replica="none"),
            p.StopPool(pool=key),
            p.Watch(once=True),
        )
        while (view := (await talk.hear(p.Snapped)).snapshot.pools)[:1] == () or view[0].scaling.max_replicas != 7:
            await talk.say(p.Watch(once=True))
        events = {type(event).__name__ for _, event, _ in broker.engine.scheduler.story}
        assert {"PoolWarmed", "PoolScaled", "PoolKept", "LeaseRevoked", "PoolStopped"} <= events
        assert {"LeaseCancelled", "PoolRestarted", "ReplicaRestarted", "ReplicaInterrupted"} <= events

    play(conversation)


def test_a_timeline_is_told_to_who_asks(play: Play) -> None:
    async def conversation(broker: Broker) -> None:
        talk, pool = await broker.client(), declaration()
        key = pool.spec.key
        await talk.say(
            p.AskTimeline(pool="0" * 16), p.Declare(declaration=pool), p.Acquire(lease="l", pool=key, task="t")
        )
        assert await talk.hear() == p.ToldTimeline(pool="0" * 16, timeline=None)
        await talk.hear(p.Granted)
        await talk.say(p.AskTimeline(pool=key))
        whole = (await talk.hear(p.ToldTimeline)).timeline
        assert (whole.whole, [lane.name for lane in whole.lanes]) == (True, ["cpu[0]"])
        await talk.say(p.AskTimeline(pool=key, since=whole.mark))
        assert not (await talk.hear(p.ToldTimeline)).timeline.whole

    play(conversation)


@pytest.mark.parametrize(
    "line",
    [
        p.to_line(hello(protocol=p.PROTOCOL + 1)),
        json.dumps({"type": "hello", "protocol": 99, "words": "of a later version"}).encode() + b"\n",
        b'{"type": "hello"}\n',
    ],
)
def test_another_protocol_is_rejected_whatever_else_it_says(play: Play, line: bytes) -> None:
    async def conversation(broker: Broker) -> None:
        talk = await broker.connect()
        await talk.raw(line)
        rejected = await talk.hear()
        assert isinstance(rejected, p.Rejected)
        assert (rejected.protocol, rejected.pid) == (p.PROTOCOL, os.getpid())
        assert await talk.ended()

    play(conversation)


@pytest.mark.parametrize(
    "first",
    [
        b"junk\n",
        b"\xff\xfe\n",
        b"[1]\n",
        p.to_line(p.Shutdown()),
        b'{"type": "hello", "protocol": 1}\n',
        b"GET / HTTP/1.1\r\n",
        b"x" * (server.MAX_HELLO_BYTES + 1),
    ],
)
def test_who_does_not_say_hello_is_hung_up_on(play: Play, first: bytes) -> None:
    async def conversation(broker: Broker) -> None:
        talk = await broker.connect()
        await talk.raw(first)
        assert await talk.ended()
        await broker.client()  # the others are served
        await broker.clients(1)

    play(conversation)


def test_a_silent_client_is_cut_off(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_S", 0.05)

    async def conversation(broker: Broker) -> None:
        silent, slow = await broker.connect(), await broker.connect()
        await slow.raw(b'{"type": "he')
        assert await silent.ended()
        assert await slow.ended()

    play(conversation)


@pytest.mark.parametrize("line", [b"junk\n", b"{}\n", b'{"type": "dance"}\n', b'{"type": "release"}\n', b"\n"])
def test_a_line_that_makes_no_sense_is_answered_and_the_talk_goes_on(play: Play, line: bytes) -> None:
    async def conversation(broker: Broker) -> None:
        talk = await broker.client()
        await talk.raw(line)
        assert isinstance(await talk.hear(), p.Failed)
        await talk.say(hello())
        assert (await talk.hear(p.Failed)).why == "hello was said already"
        await talk.say(p.Watch(once=True))
        assert isinstance(await talk.hear(), p.Snapped)

    play(conversation)


def test_the_answer_to_a_question_repeats_its_number(play: Play) -> None:
    async def conversation(broker: Broker) -> None:
        talk = await broker.client()
        await talk.say(p.Watch(once=True, question=3), p.AskTimeline(pool="0" * 16, question=4))
        assert (await talk.hear(p.Snapped)).question == 3
        assert (await talk.hear(p.ToldTimeline)).question == 4
        for line, question in (
            (b'{"type": "dance", "question": 5}\n', 5),
            (b'{"question": "6"}\n', None),
            (b"[7]\n", None),
        ):
            await talk.raw(line)
            assert (await talk.hear(p.Failed)).question == question

    play(conversation)


def test_a_line_that_is_too_long_ends_the_talk_with_the_reason(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p, "MAX_LINE_BYTES", 1000)

    async def conversation(broker: Broker) -> None:
        talk = await broker.client()
        await talk.raw(b"x" * 1001)
        assert (await talk.hear()).why == "a message is longer than 1000 bytes"
        assert await talk.ended()
        await broker.clients(0)

    play(conversation)


def test_many_messages_in_one_write_and_one_message_in_many(play: Play) -> None:
    async def conversation(broker: Broker) -> None:
        talk = await broker.client()
        await talk.raw(p.to_line(p.Watch(once=True)) * 20)
        for _ in range(20):
            assert isinstance(await talk.hear(), p.Snapped)
        for byte in p.to_line(p.Watch(once=True)):
            await talk.raw(bytes([byte]))
        assert isinstance(await talk.hear(), p.Snapped)

    play(conversation)


def test_who_hangs_up_is_gone_and_its_request_with_it(play: Play) -> None:
    async def conversation(broker: Broker) -> None:
        talk, pool = await broker.client(), declaration()
        await talk.say(p.Declare(declaration=pool), p.Acquire(lease="l1", pool=pool.spec.key, task="t"))
        await talk.hear(p.Granted)
        await talk.stream.aclose()
        await broker.clients(0)

    play(conversation)


def test_who_hangs_up_while_it_is_written_to_disturbs_nobody(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def conversation(broker: Broker) -> None:
        other = await broker.client(label="other")
        for _ in range(20):
            talk = await broker.client()
            await talk.raw(p.to_line(p.Watch(once=True)) * 500)
            await talk.stream.aclose()
        await broker.clients(1)
        await other.say(p.Watch(once=True))
        assert isinstance(await other.hear(), p.Snapped)

    with caplog.at_level(logging.ERROR):
        play(conversation)
    assert caplog.records == []


def test_who_only_looks_leaves_no_line_in_the_log(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def conversation(broker: Broker) -> None:
        for kind in ("server", "cli"):
            talk = await broker.client(kind=kind)
            await talk.say(p.Watch(once=True), p.AskTimeline(pool="none"), p.Watch())
            for expected in (p.Snapped, p.ToldTimeline, p.Snapped):
                await talk.hear(expected)
            await talk.stream.aclose()

    with caplog.at_level(logging.INFO, server.__name__):
        play(conversation)
    assert [record.getMessage() for record in caplog.records if record.name == server.__name__] == []


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (p.Cancel(lease="l1"), "cancel {'lease': 'l1'}"),
        (p.StopPool(pool="gpu", force=True), "stop-pool {'pool': 'gpu', 'force': True}"),
        (p.RestartReplica(replica="r1"), "restart-replica {'replica': 'r1'}"),
        (p.Interrupt(replica="r1\nr2"), r"interrupt {'replica': 'r1\nr2'}"),
        (p.Revoke(lease="l1", why="it ignores"), "revoke {'lease': 'l1', 'why': 'it ignores'}"),
    ],
    ids=lambda value: value.type if isinstance(value, p.Message) else "",
)
def test_who_acts_is_logged_once_with_what_is_done(
    play: Play, caplog: pytest.LogCaptureFixture, act: Any, said: str
) -> None:
    async def conversation(broker: Broker) -> None:
        talk = await broker.client(kind="server", label="Jupyter\nserver", pid=42)
        await talk.say(act, p.Watch(once=True))
        await talk.hear(p.Snapped)

    with caplog.at_level(logging.INFO, server.__name__):
        play(conversation)
    [line] = [record.getMessage() for record in caplog.records if record.name == server.__name__]
    assert line.endswith(rf": server 'Jupyter\nserver', pid 42: {said}")


def test_a_client_that_never_reads_is_disconnected(
    play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "UNSENT", 50)

    async def conversation(broker: Broker) -> None:
        talk, other = await broker.client(label="deaf"), await broker.client()

        async def flood() -> None:
            while True:
                await talk.raw(p.to_line(p.Watch(once=True)) * 100)

        with pytest.raises(anyio.BrokenResourceError):
            await flood()
        await broker.clients(1)
        await other.say(p.Watch(once=True))
        assert isinstance(await other.hear(), p.Snapped)

    play(conversation)
    assert "(deaf) does not read: disconnected" in caplog.text


def test_a_watcher_that_reads_slowly_gets_fewer_snapshots(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UNSENT", 5)
    monkeypatch.setattr(server, "WATCH_INTERVAL_S", 0.001)
    monkeypatch.setattr("flyte_jupyter.broker.engine.WATCH_INTERVAL_S", 0.001)

    async def conversation(broker: Broker) -> None:
        slow, other = await broker.client(), await broker.client()
        await slow.say(p.Watch(), p.Watch())
        for number in range(400):  # each changes the snapshot, whose size fills the socket's buffer
            await other.say(p.Declare(declaration=declaration(f"{'x' * 400}{number % 20}")), p.Watch(once=True))
            await other.hear(p.Snapped)
        revision = broker.engine.scheduler.revision
        while (await slow.hear(p.Snapped)).snapshot.revision < revision:
            pass

    play(conversation)


def test_who_watches_no_more_hears_nothing(play: Play) -> None:
    async def conversation(broker: Broker) -> None:
        watcher, other, witness = await broker.client(), await broker.client(), await broker.client()
        await watcher.say(p.Watch())
        await watcher.hear(p.Snapped)
        await watcher.say(p.Unwatch(), p.Watch(once=True))
        await watcher.hear(p.Snapped)
        await witness.say(p.Watch())
        for name in ("one", "two"):
            await other.say(p.Declare(declaration=declaration(name)))
            while name not in [pool.name for pool in (await witness.hear(p.Snapped)).snapshot.pools]:
                pass
        await watcher.say(p.Watch(once=True))
        assert (await watcher.hear(p.Snapped)).snapshot.revision == broker.engine.scheduler.revision

    play(conversation)


def test_another_users_connection_is_closed_before_it_is_read(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "peer_uid", lambda stream: os.getuid() + 1)

    async def conversation(broker: Broker) -> None:
        talk = await broker.connect()
        assert await talk.ended()
        await broker.clients(0)

    play(conversation)


def test_the_peers_user_is_known(play: Play) -> None:
    async def conversation(broker: Broker) -> None:
        talk = await broker.connect()
        assert server.peer_uid(talk.stream) == os.getuid()

    play(conversation)


def test_the_socket_is_private_and_replaces_a_stale_one(play: Play, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:  # a broker was killed between two steps
        stale.bind(str(tmp_path / "b.sock.new"))
    old_umask = os.umask(0)

    async def conversation(broker: Broker) -> None:
        assert stat.S_IMODE(broker.path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(broker.path.stat().st_mode)
        assert [each.name for each in broker.path.parent.iterdir()] == ["b.sock"]

    try:
        play(conversation)
    finally:
        os.umask(old_umask)


def test_shutdown_says_goodbye_to_everybody(play: Play) -> None:
    async def conversation(broker: Broker) -> None:
        first, second = await broker.client(), await broker.client()
        await first.say(p.Shutdown())
        assert isinstance(await first.hear(), p.Goodbye)
        assert isinstance(await second.hear(), p.Goodbye)

    play(conversation)


def test_goodbye_arrives_although_the_server_ends_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "b.sock"
        with anyio.fail_after(10 * TIME_SCALE):
            async with running(path) as broker:
                talks = [await broker.client() for _ in range(5)]
                broker.engine.end()
            for talk in talks:
                assert isinstance(await talk.hear(), p.Goodbye)
                assert await talk.ended()
            await broker.close()

    anyio.run(main)


def test_a_fault_in_one_conversation_is_logged_and_the_others_go_on(
    play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation(broker: Broker) -> None:
        first, second = await broker.client(), await broker.client()

        def broken(question: int | None = None) -> p.Snapped:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(broker.engine, "snapped", broken)
            await first.say(p.Watch(once=True))
            assert await first.ended()
        await second.say(p.Watch(once=True))
        assert isinstance(await second.hear(), p.Snapped)

    play(conversation)
    assert "a bug" in caplog.text
