"""What real replicas say of their calls: in the snapshot, in the timeline, and when nothing runs."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support import START_S, TIME_SCALE, assert_quiet, attempt, ready, view_of, wait_until

import flyte_jupyter as flyte
from flyte_jupyter import errors
from flyte_jupyter.client import broker, leases
from flyte_jupyter.client.identity import describe_client
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.snapshot import LeaseView, ReplicaView
from flyte_jupyter.core.timeline import SpanView, TimelineView

pytestmark = pytest.mark.kernel

lanes = flyte.TaskEnvironment("lanes", reusable=flyte.ReusePolicy(replicas=(1, 1)))
pair = flyte.TaskEnvironment("pair", reusable=flyte.ReusePolicy(replicas=(1, 1), concurrency=4))
POOL = flyte.pool(lanes)
PAIR = flyte.pool(pair)


@lanes.task
def nothing(number: int = 0) -> None:
    pass


@lanes.task
def nap(seconds: float) -> None:
    time.sleep(seconds)


@lanes.task
def other(seconds: float) -> None:
    time.sleep(seconds)


@lanes.task
def fail() -> None:
    raise ValueError("a value that nobody else may see")


@lanes.task
def die(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


@pair.task
async def doze(seconds: float) -> None:
    await asyncio.sleep(seconds)


@pytest.fixture(autouse=True)
def _warm(shared_broker: Path) -> Iterator[None]:
    POOL.warm()
    PAIR.warm()
    yield
    assert_quiet(lanes, pair, timeout=START_S)


def timeline(pool: flyte.PoolHandle = POOL, since: str | None = None) -> TimelineView:
    view = broker.connect().timeline(pool.key, since)
    assert view is not None
    return view


def spans(task: str, pool: flyte.PoolHandle = POOL, since: float = 0.0) -> list[SpanView]:
    """The calls of that task."""
    found = [span for span in timeline(pool).spans if span.task == task and span.kind == "running"]
    return [span for span in found if span.began >= since]


def until_spans(
    task: str, condition: Callable[[list[SpanView]], object], since: float, *, pool: flyte.PoolHandle = POOL
) -> list[SpanView]:
    found: list[SpanView] = []

    def look() -> bool:
        found[:] = spans(task, pool, since)
        return bool(condition(found))

    wait_until(look, what=f"spans of {task}: {found}")
    return found


def replica() -> ReplicaView:
    [found] = ready(lanes)
    return found


def running() -> list[LeaseView]:
    return list(replica().running)


@contextmanager
def in_thread(task: Callable[..., object], *args: object) -> Iterator[None]:
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(task, *args)
        yield
        future.exception()


def test_a_call_is_a_span_with_its_task_its_notebook_and_its_time() -> None:
    began = time.monotonic()
    nap(0.2)
    ended = time.monotonic()
    [span] = until_spans("lanes.nap", lambda found: found and found[0].ended, began)
    assert span.ended is not None
    assert began <= span.began <= span.ended <= ended
    assert 0.2 <= span.ended - span.began < 0.5 * TIME_SCALE
    assert (span.outcome, span.calls, span.client) == ("succeeded", 1, describe_client().label)
    [lane] = [lane for lane in timeline().lanes if lane.ended_at is None]
    assert (span.replica, lane.name) == (lane.replica, "lanes[0]")


def test_a_running_call_is_told_within_a_moment_and_by_its_own_name() -> None:
    began = time.monotonic()
    seconds = 0.6 * TIME_SCALE
    with in_thread(lambda: (nap(seconds), other(seconds))):  # through one lease
        [first] = until_spans("lanes.nap", len, began)
        [lease] = running()
        assert time.monotonic() - began < seconds
        assert (first.ended, first.outcome) == (None, None)
        [second] = wait_until(lambda: [each for each in running() if each.task == "lanes.other"])
        assert second.lease == lease.lease
        assert second.since >= lease.since + seconds


def test_a_replica_is_not_busy_while_its_client_only_keeps_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LINGER_S", 2.0)
    nap(0.15)
    wait_until(lambda: view_of(lanes).state == "ready", 1.0)
    idle = replica()
    assert (idle.state, [lease.running for lease in idle.leases]) == ("ready", [False])  # it is held all the same
    began = time.monotonic()
    with in_thread(nap, 0.5 * TIME_SCALE):
        wait_until(lambda: view_of(lanes).state == "busy", 1.0)
        assert time.monotonic() - began < 0.5 * TIME_SCALE


def test_a_failed_and_a_cancelled_call_end_as_such() -> None:
    began = time.monotonic()
    assert isinstance(attempt(fail), ValueError)
    until_spans("lanes.fail", lambda found: [span.outcome for span in found] == ["failed"], began)
    with in_thread(nap, 30):
        until_spans("lanes.nap", len, began)  # a lease is held before the call in it has begun
        [lease] = running()
        broker.connect().send(p.Cancel(lease=lease.lease))
    until_spans("lanes.nap", lambda found: [span.outcome for span in found] == ["cancelled"], began)
    assert "nobody else" not in timeline().model_dump_json()


def test_async_calls_at_once_are_spans_beside_each_other() -> None:
    began = time.monotonic()

    async def four() -> None:
        await asyncio.gather(*(doze(0.3) for _ in range(4)))

    asyncio.run(four())
    found = until_spans(
        "pair.doze", lambda found: [span.outcome for span in found] == ["succeeded"] * 4, began, pool=PAIR
    )
    assert max(span.began for span in found) < min(span.ended or 0 for span in found)


def test_two_thousand_short_calls_are_few_spans_and_all_are_counted() -> None:
    before, began = view_of(lanes), time.monotonic()
    list(flyte.map(nothing, range(2000)))
    wait_until(lambda: view_of(lanes).calls == before.calls + 2000)
    found = spans("lanes.nothing", since=began)
    assert sum(span.calls for span in found) == 2000
    assert len(found) <= 20 * (time.monotonic() - began + 1)
    assert view_of(lanes).cold_starts_avoided >= before.cold_starts_avoided + 1999


def test_calls_of_an_executor_are_spans_too() -> None:
    began = time.monotonic()
    with POOL.executor() as executor:
        assert executor.submit(len, "abc").result() == 3
    until_spans("lanes.len", lambda found: [span.outcome for span in found] == ["succeeded"], began)


def test_a_short_name_is_what_views_show() -> None:
    began = time.monotonic()
    named = nap.override(short_name="a nap")
    with in_thread(named, 0.5 * TIME_SCALE):
        wait_until(lambda: [each.task for each in running() if each.since > began] == ["a nap"])
    with POOL.executor() as executor:
        executor.submit(named, 0.0).result()
    until_spans("a nap", lambda found: [span.outcome for span in found] == ["succeeded"] * 2, began)
    assert spans("lanes.nap", since=began) == []


def test_what_dies_is_lost_and_the_lane_ends() -> None:
    began = time.monotonic()
    assert isinstance(attempt(die, 0.3), errors.ReplicaDied)
    [late] = until_spans("lanes.die", len, began)
    POOL.warm()
    assert isinstance(attempt(die, 0.0), errors.ReplicaDied)  # before it has told anything
    [_, soon] = until_spans("lanes.die", lambda found: len(found) == 2, began)
    assert [late.outcome, soon.outcome] == ["lost", "lost"]
    ended = {lane.replica for lane in timeline().lanes if lane.ended_at is not None}
    assert {late.replica, soon.replica} <= ended
    assert "lanes[0] ended unexpectedly" in [change.text for change in timeline().changes]


def test_the_last_calls_of_a_replica_are_told_before_it_ends() -> None:
    """A kernel for one call ends as soon as it is over."""
    once = nothing.override(reusable="off")
    once()
    connection = broker.connect()

    def recent() -> list[str]:
        return [span.task for span in connection.snapshot().recent if span.pool not in (POOL.key, PAIR.key)]

    wait_until(lambda: "lanes.nothing" in recent(), START_S)


def test_a_later_question_gets_what_is_new_only() -> None:
    nap(0.06)
    mark = wait_until(lambda: (told := timeline()).spans and told).mark
    began = time.monotonic()
    other(0.06)
    wait_until(lambda: spans("lanes.other", since=began))
    news = timeline(since=mark)
    assert not news.whole
    assert [span.task for span in news.spans if span.kind == "running" and span.began >= began] == ["lanes.other"]
    assert len(news.spans) < len(timeline().spans)
    assert broker.connect().timeline("0" * 16) is None


def test_an_idle_replica_does_nothing() -> None:
    nap(0.06)
    wait_until(lambda: not replica().leases)
    pids = [replica().pid, broker.connect().broker_pid]
    processes = [psutil.Process(pid) for pid in pids]
    settled = threading.Event()
    settled.wait(0.3)

    def switches() -> int:
        return sum(process.num_ctx_switches().voluntary for process in processes)

    def times() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    used, woken = times(), switches()
    settled.wait(2.0)
    assert times() - used <= 0.01
    assert switches() - woken <= 10  # a timer of ten a second would be twenty
