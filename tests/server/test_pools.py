"""What the extension shows of a real broker with real replicas, and what its verbs bring about."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from asking import Ask, server_config
from support import START_S, TIME_SCALE, Counter, attempt, mark, pids, ready, view_of
from traitlets.config import Config

import flyte_jupyter as flyte
from flyte_jupyter import errors, runtime
from flyte_jupyter.client import broker
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.spec import EnvironmentSpec, Scaling
from flyte_jupyter.server import connection as to_broker
from flyte_jupyter.server.feed import Feed, State

pytestmark = pytest.mark.kernel

PUSH_S = 0.5
shown = flyte.TaskEnvironment("shown", reusable=flyte.ReusePolicy(replicas=(1, 2)))
POOL = flyte.pool(shown)


@shown.task
def busy(path: str) -> None:
    mark(path)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(0.01)


held = bytearray()


@shown.task
def take(megabytes: int) -> None:
    held[:] = b"x" * (megabytes << 20)


@pytest.fixture
def jp_server_config() -> Config:
    return server_config()


@pytest.fixture(autouse=True)
def _one_ready(shared_broker: Path) -> None:
    POOL.scale(1, 2).warm()


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


@contextmanager
def own_connection() -> Iterator[broker.Connection]:
    connection = broker._open(start=False)
    try:
        yield connection
    finally:
        connection.close()
        connection._thread.join(5)


async def until(condition: Callable[[], Any], timeout: float = START_S) -> Any:
    """The first true value; the server goes on meanwhile."""
    deadline = time.monotonic() + timeout * TIME_SCALE
    while not (value := await asyncio.to_thread(condition)):
        assert time.monotonic() < deadline, condition
        await asyncio.sleep(0.01)
    return value


def pool_of(state: Any, key: str = POOL.key) -> Any:
    return next(pool for pool in state["snapshot"]["pools"] if pool["key"] == key)


async def next_state(socket: Any) -> Any:
    return json.loads(await asyncio.wait_for(socket.read_message(), 5 * TIME_SCALE))


# --- the state


async def test_the_state_is_the_brokers_snapshot_with_times_that_become_unix_time(ask: Ask) -> None:
    snapped = await asyncio.to_thread(broker.connect().snapshot)
    state = (await ask("pools")).body
    while state["snapshot"]["revision"] != snapped.snapshot.revision:  # the last call's lease lingers
        snapped = await asyncio.to_thread(broker.connect().snapshot)
        state = (await ask("pools")).body
    assert (state["state"], state["message"]) == ("connected", None)
    assert state["versions"] == {"server": flyte.__version__, "broker": flyte.__version__}
    assert state["broker_pid"] == broker.connect().broker_pid
    theirs = snapped.snapshot.model_dump(mode="json")
    assert pool_of(state) == pool_of({"snapshot": theirs})
    assert {**state["snapshot"], "pools": []} == {**theirs, "pools": []}
    [replica] = pool_of(state)["replicas"]
    started = replica["started_at"] + state["epoch_offset"]
    assert 0 < state["now"] - started < 3600
    assert abs(state["now"] - time.time()) < 60
    assert state.keys() == {
        *("now", "refused", "tag", "state", "message", "versions", "broker_pid"),
        *("epoch_offset", "zygotes", "spawned", "usage", "recent", "snapshot"),
    }


async def test_the_memory_of_a_replica_is_measured_for_who_looks(ask: Ask, thread: ThreadPoolExecutor) -> None:
    [replica] = view_of(shown).replicas

    async def used() -> int:
        usage = (await ask("pools")).body["usage"]
        assert (usage["devices"], usage["problem"]) == ({}, None)
        return int(usage["replicas"].get(replica.id, {}).get("memory_bytes", 0))

    while (before := await used()) < 2**20:  # an answer waits for the first measurement, but not for long
        await asyncio.sleep(0.1)
    assert thread.submit(take, 200).result() is None
    while await used() < before + 180 * 2**20:
        await asyncio.sleep(0.1)
    thread.submit(take, 0).result()


async def test_nothing_is_sent_to_who_has_it_already(ask: Ask) -> None:
    tag = None
    async with asyncio.timeout(START_S * TIME_SCALE):
        while (answer := await ask("pools", params={"since": tag} if tag else {})).code == 200:
            tag = answer.body["tag"]  # the last test may have left something that still changes
    assert (answer.code, answer.body) == (204, None)
    await asyncio.to_thread(POOL.keep, 3)
    await until(lambda: view_of(shown).kept_until)
    changed = await ask("pools", params={"since": tag})
    assert (changed.code, changed.body["tag"] != tag) == (200, True)


async def test_a_timeline_tells_what_ran_and_then_what_is_new(
    ask: Ask, thread: ThreadPoolExecutor, tmp_path: Path
) -> None:
    whole = (await ask(f"pools/{POOL.key}/timeline")).body
    assert whole.keys() == {"now", "epoch_offset", "mark", "whole", "window_s", "lanes", "spans", "changes"}
    assert abs(whole["now"] - time.time()) < 60
    assert whole["whole"]
    assert {"starting", "loading"} <= {span["kind"] for span in whole["spans"]}
    asked = time.time() - whole["epoch_offset"]
    job = thread.submit(attempt, busy, str(tmp_path / "ran"))

    async def span(ended: bool) -> Any:
        while True:
            news = (await ask(f"pools/{POOL.key}/timeline", params={"since": whole["mark"]})).body
            assert not news["whole"]
            found = [each for each in news["spans"] if each["kind"] == "running" and each["began"] >= asked]
            if found and (found[0]["ended"] is not None) is ended:
                assert found[0]["replica"] in {lane["replica"] for lane in news["lanes"]}
                return found[0]
            await asyncio.sleep(0.02)

    async with asyncio.timeout(START_S * TIME_SCALE):
        running = await span(False)
        assert (running["task"], running["outcome"], running["calls"]) == ("shown.busy", None, 1)
        await ask(f"replicas/{running['replica']}/interrupt", {})
        stopped = await span(True)
    await until(job.done)
    assert stopped == {**running, "ended": stopped["ended"], "outcome": "cancelled"}
    assert {**stopped, "pool": POOL.key} in (await ask("pools")).body["recent"]


async def test_there_is_no_timeline_of_what_nobody_declared(ask: Ask) -> None:
    answer = await ask(f"pools/{'0' * 16}/timeline")
    assert (answer.code, answer.body["message"]) == (404, f"There is no pool {'0' * 16}.")
    strange = await ask(f"pools/{POOL.key}/timeline", params={"since": "<script>"})
    assert (strange.code, strange.body["whole"]) == (200, True)


async def test_markup_in_a_name_is_text(ask: Ask, jp_fetch: Any) -> None:
    name = "</script><img src=x onerror=alert(1)> %s 100%"
    spec = EnvironmentSpec(name=name, interpreter="/none")
    scaling = Scaling(min_replicas=0, max_replicas=1, idle_ttl=60, scaledown_ttl=60)
    with own_connection() as connection:
        connection.declare(p.Declaration(spec=spec, scaling=scaling))
        await asyncio.to_thread(connection.snapshot)
        response = await jp_fetch("flyte-jupyter", "pools")
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert pool_of(json.loads(response.body), spec.key)["name"] == name
        answer = await ask(f"pools/{spec.key}/warm", {"replicas": 2})
        assert (answer.code, answer.body["message"]) == (
            400,
            f"Pool {name} has at most 1 replica, not 2; `scale` changes that.",
        )


async def test_of_a_failure_the_state_has_one_line_and_the_rest_is_asked_for(ask: Ask) -> None:
    broken = flyte.TaskEnvironment("broken", reusable=flyte.ReusePolicy(replicas=(0, 1)))
    pool = flyte.pool(broken)

    @pool.preload
    def load() -> None:
        token = "hunter" + "2"
        raise ImportError("no module named transformers", token[:0])

    assert isinstance(await asyncio.to_thread(attempt, pool.warm), errors.PoolFailed)
    shown_cause = pool_of((await ask("pools")).body, pool.key)["failure"]["cause"]
    whole = (await ask(f"pools/{pool.key}/failure")).body
    assert shown_cause.startswith("ImportError: ")
    assert "\n" not in shown_cause
    assert "Traceback" in whole["cause"]
    assert whole["cause"].strip().endswith(shown_cause)
    assert whole["replica"].startswith("broken[")
    await asyncio.to_thread(pool.stop, force=True)


# --- the stream


async def test_two_sockets_hear_of_a_change_at_once_over_one_connection(
    jp_ws_fetch: Any, ask: Ask, connections: Connections
) -> None:
    sockets = [await jp_ws_fetch("flyte-jupyter", "stream") for _ in range(2)]
    first = [await next_state(socket) for socket in sockets]
    assert first[0]["tag"] == first[1]["tag"]
    changed = time.monotonic()
    broker.connect().send(p.Keep(pool=POOL.key, seconds=30))
    for socket in sockets:
        while pool_of(state := await next_state(socket))["kept_until"] is None:
            pass
        assert time.monotonic() - changed <= PUSH_S * TIME_SCALE
        assert abs(pool_of(state)["kept_until"] + state["epoch_offset"] - time.time() - 30) < 5
    assert connections.seen == 1
    while (await ask("pools")).body["tag"] != state["tag"]:
        state = await next_state(sockets[-1])  # it was told of just then
    assert connections.seen == 1
    for socket in sockets:
        socket.close()
    await until(lambda: connections.there == 0)
    await asyncio.to_thread(POOL.keep, 0)


def kept_s(told: State) -> float:
    state = json.loads(told.text({}))
    until_ = pool_of(state)["kept_until"]
    return 0.0 if until_ is None else float(until_ + state["epoch_offset"] - state["now"])


async def test_who_reads_slowly_gets_the_newest_state() -> None:
    feed = Feed()
    async with feed.watching() as states:
        await anext(states)
        for seconds in (100, 300, 500, 700):
            broker.connect().send(p.Keep(pool=POOL.key, seconds=seconds))
            await until(lambda seconds=seconds: feed._state is not None and abs(kept_s(feed._state) - seconds) < 99)
        assert abs(kept_s(await anext(states)) - 700) < 99
        with suppress(TimeoutError):  # but for what was measured meanwhile
            assert abs(kept_s(await asyncio.wait_for(anext(states), 0.3)) - 700) < 99
    assert (feed._task, feed._state) == (None, None)
    await asyncio.to_thread(POOL.keep, 0)


async def test_nothing_is_done_while_nobody_watches(jp_ws_fetch: Any, connections: Connections) -> None:
    await asyncio.sleep(0.7)
    assert connections == Connections(seen=0, there=0)
    assert [client for client in broker.connect().snapshot().snapshot.clients if client.kind == "server"] == []


@dataclass
class Connections:
    """Of this server to the broker."""

    seen: int = 0
    there: int = 0


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Connections:
    counted = Connections()
    connect = to_broker._stream

    @asynccontextmanager
    async def counting(path: Path) -> AsyncIterator[Any]:
        async with connect(path) as streams:
            counted.seen += 1
            counted.there += 1
            try:
                yield streams
            finally:
                counted.there -= 1

    monkeypatch.setattr(to_broker, "_stream", counting)
    return counted


# --- verbs


async def test_a_pool_is_scaled_warmed_kept_and_stopped(ask: Ask) -> None:
    pool = f"pools/{POOL.key}"
    assert (await ask(f"{pool}/scale", {"minimum": 0, "maximum": 3})).code == 202
    await until(lambda: (view_of(shown).scaling.min_replicas, view_of(shown).scaling.max_replicas) == (0, 3))
    assert (await ask(f"{pool}/keep", {"seconds": 600})).code == 202
    await until(lambda: view_of(shown).kept_until)
    assert (await ask(f"{pool}/warm", {"replicas": 2})).code == 202
    await until(lambda: len(ready(shown)) == 2)
    assert (await ask(f"{pool}/stop", {})).code == 202
    await until(lambda: not view_of(shown).replicas)
    assert (await ask(f"{pool}/warm", "")).code == 202
    await until(lambda: len(ready(shown)) == 1)
    await ask(f"{pool}/keep", {"seconds": 0})


async def test_a_pool_and_a_replica_are_restarted(ask: Ask) -> None:
    [old] = pids(shown)
    assert (await ask(f"pools/{POOL.key}/restart", {})).code == 202
    await until(lambda: pids(shown) and old not in pids(shown))
    await until(lambda: len(view_of(shown).replicas) == 1)
    [replica] = ready(shown)
    assert (await ask(f"replicas/{replica.id}/restart", {"force": True})).code == 202
    await until(lambda: pids(shown) and replica.pid not in pids(shown))


async def test_a_call_is_interrupted_cancelled_or_ended_with_its_pool(
    ask: Ask, tmp_path: Path, thread: ThreadPoolExecutor
) -> None:
    await asyncio.to_thread(POOL.scale, 1, 1)
    await until(lambda: len(view_of(shown).replicas) == 1)
    for turn, order in enumerate(("interrupt", "cancel", "stop")):
        ran = Counter(tmp_path / str(turn))
        running = thread.submit(attempt, busy, ran.path)
        await until(lambda ran=ran: len(ran))
        [replica] = ready(shown)
        queued = thread.submit(attempt, busy, ran.path)
        [request] = await until(lambda: view_of(shown).queue)
        assert (await ask(f"leases/{request.lease}/cancel", {})).code == 202
        assert isinstance(await asyncio.to_thread(queued.result, START_S), errors.TaskCancelled)
        path, body = {
            "interrupt": (f"replicas/{replica.id}/interrupt", {}),
            "cancel": (f"leases/{replica.leases[0].lease}/cancel", {}),
            "stop": (f"pools/{POOL.key}/stop", {"force": True}),
        }[order]
        assert (await ask(path, body)).code == 202
        error = await asyncio.to_thread(running.result, START_S)
        assert isinstance(error, errors.PoolStopped if order == "stop" else errors.TaskCancelled)
        assert len(ran) == 1


@pytest.mark.parametrize(
    ("path", "body", "code", "message"),
    [
        ("scale", {"minimum": 1}, 400, "maximum: Field required"),
        ("scale", {"minimum": 3, "maximum": 2}, 400, "maximum is less than minimum"),
        ("scale", {"minimum": "1", "maximum": 2}, 400, "minimum: "),
        ("keep", {"seconds": -1}, 400, "seconds: "),
        ("keep", '{"seconds": NaN}', 400, "seconds: "),
        ("stop", {"force": 1}, 400, "force: "),
        ("stop", {"force": True, "code": "x"}, 400, "code: "),
        ("stop", "[]", 400, "The body does not fit"),
        ("stop", "{", 400, "The body does not fit"),
        ("stop", " " * 20_000, 413, "longer than 16384 bytes"),
        ("explode", {}, 404, "A pool has no verb explode; it has scale, warm, keep, stop, restart, interrupt."),
    ],
)
async def test_what_does_not_fit_is_refused_with_a_reason(
    ask: Ask, path: str, body: Any, code: int, message: str
) -> None:
    answer = await ask(f"pools/{POOL.key}/{path}", body)
    assert answer.code == code
    assert message in answer.body["message"]
    assert answer.body["reason"]


@pytest.mark.parametrize("path", ["pools/0123456789abcdef/stop", "replicas/01234567-99/interrupt", "leases/0a/cancel"])
async def test_what_is_not_there_is_named(ask: Ask, path: str) -> None:
    noun, id_, _ = path.split("/")
    answer = await ask(path, {})
    assert (answer.code, answer.body["message"]) == (404, f"There is no {noun[:-1]} {id_}.")


# --- logs


async def test_the_log_of_a_living_replica_is_read(ask: Ask) -> None:
    [replica] = ready(shown)
    log = runtime.log_folder(runtime.runtime_folder()) / f"{replica.id}.log"
    with log.open("a") as file:
        file.write("one\ntwo\n")
    answer = await ask(f"replicas/{replica.id}/log", params={"tail": 1})
    assert answer.body == {"text": "two\n", "offset": log.stat().st_size - 4, "next": log.stat().st_size}
    with log.open("a") as file:
        file.write("three\n")
    more = await ask(f"replicas/{replica.id}/log", params={"since": answer.body["next"]})
    assert more.body["text"] == "three\n"


@pytest.mark.parametrize("number", ["-1", "x", "10001", "٣", "9" * 30])
async def test_a_number_that_is_none_is_refused(ask: Ask, number: str) -> None:
    answer = await ask("replicas/01234567-1/log", params={"tail": number})
    assert answer.code == 400
    assert number in answer.body["message"]


@pytest.mark.parametrize("id_", ["broker", "..%2Fbroker", "01234567-1%2F..%2Fbroker", "01234567-"])
async def test_only_the_log_of_a_replica_can_be_named(jp_fetch: Any, id_: str) -> None:
    with pytest.raises(Exception, match="404"):
        await jp_fetch(f"flyte-jupyter/replicas/{id_}/log")
