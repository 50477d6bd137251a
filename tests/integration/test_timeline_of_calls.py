"""What real replicas say of their calls: in the snapshot, in the timeline, and when nothing runs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support import START_S, Counter, assert_quiet, attempt, mark, ready, view_of, wait_until

import flyte_jupyter as flyte
from flyte_jupyter import cli, errors
from flyte_jupyter.cli.connection import talk
from flyte_jupyter.client import broker, leases
from flyte_jupyter.client.identity import describe_client
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.snapshot import LeaseView, ReplicaView
from flyte_jupyter.core.timeline import SpanView, TimelineView

pytestmark = pytest.mark.kernel

lanes = flyte.TaskEnvironment("lanes", reusable=flyte.ReusePolicy(replicas=(1, 1)))
pair = flyte.TaskEnvironment("pair", reusable=flyte.ReusePolicy(replicas=(1, 1), concurrency=4))
many = flyte.TaskEnvironment("many", reusable=flyte.ReusePolicy(replicas=(1, 1)))
POOL = flyte.pool(lanes)
PAIR = flyte.pool(pair)


@lanes.task
def nothing() -> None:
    pass


@many.task
def one_of_many(number: int) -> None:
    pass


@lanes.task
def nap(seconds: float) -> None:
    time.sleep(seconds)


@lanes.task
def other(seconds: float) -> None:
    time.sleep(seconds)


@lanes.task
def hold(go: str) -> None:
    """As long as the test wants."""
    while not os.path.exists(go):
        time.sleep(0.01)


@lanes.task
def hold_again(go: str) -> None:
    while not os.path.exists(go):
        time.sleep(0.01)


@lanes.task
def fail() -> None:
    raise ValueError("a value that nobody else may see")


@lanes.task
def die(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


@pair.task
async def meet(there: str, count: int) -> None:
    """Until so many are there, and a while yet: times are told in tenths of a millisecond."""
    mark(there)
    while len(Counter(Path(there))) < count:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)


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

    wait_until(look, what=lambda: f"spans of {task}: {found}")
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


@contextmanager
def in_thread_until_let_go(tmp_path: Path, *tasks: Callable[[str], object]) -> Iterator[list[Path]]:
    """These run one after the other, each until its file is there."""
    files = [tmp_path / f"go{number}" for number in range(len(tasks))]
    with in_thread(lambda: [task(str(file)) for task, file in zip(tasks, files, strict=True)]):
        try:
            yield files
        finally:
            for file in files:
                file.touch()


def test_a_call_is_a_span_with_its_task_its_notebook_and_its_time() -> None:
    began = time.monotonic()
    nap(0.2)
    ended = time.monotonic()
    [span] = until_spans("lanes.nap", lambda found: found and found[0].ended, began)
    assert span.ended is not None
    assert began <= span.began <= span.ended <= ended
    assert span.ended - span.began >= 0.2
    assert (span.outcome, span.calls, span.client) == ("succeeded", 1, describe_client().label)
    [lane] = [lane for lane in timeline().lanes if lane.ended_at is None]
    assert (span.replica, lane.name) == (lane.replica, "lanes[0]")


@pytest.fixture
def lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease is kept for the next call although the machine is busy."""
    monkeypatch.setattr(leases, "LINGER_S", 2.0)


def test_a_running_call_is_told_while_it_runs_and_by_its_own_name(tmp_path: Path, lingering: None) -> None:
    began = time.monotonic()
    with in_thread_until_let_go(tmp_path, hold, hold_again) as [go, _]:  # through one lease
        [lease] = wait_until(lambda: [each for each in running() if each.since > began and each.task == "lanes.hold"])
        [first] = until_spans("lanes.hold", len, began)
        assert (first.ended, first.outcome) == (None, None)
        let_go = time.monotonic()
        go.touch()
        [second] = wait_until(lambda: [each for each in running() if each.task == "lanes.hold_again"])
        assert second.lease == lease.lease
        assert second.since >= let_go


def test_a_replica_is_not_busy_while_its_client_only_keeps_the_slot(tmp_path: Path, lingering: None) -> None:
    nap(0.15)
    wait_until(lambda: view_of(lanes).state == "ready")
    idle = replica()
    assert (idle.state, [lease.running for lease in idle.leases]) == ("ready", [False])  # it is held all the same
    with in_thread_until_let_go(tmp_path, hold):
        wait_until(lambda: view_of(lanes).state == "busy")


def test_a_failed_and_a_cancelled_call_end_as_such() -> None:
    began = time.monotonic()
    assert isinstance(attempt(fail), ValueError)
    until_spans("lanes.fail", lambda found: [span.outcome for span in found] == ["failed"], began)
    with in_thread(nap, 30):
        [lease] = wait_until(lambda: [each for each in running() if each.task == "lanes.nap" and each.since > began])
        until_spans("lanes.nap", len, began)
        broker.connect().send(p.Cancel(lease=lease.lease))
    until_spans("lanes.nap", lambda found: [span.outcome for span in found] == ["cancelled"], began)
    assert "nobody else" not in timeline().model_dump_json()


def test_another_notebook_is_told_when_it_gets_its_turn_if_calls_take_as_long_as_usual(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gate, began = tmp_path / "gate", time.monotonic()
    named = hold.override(short_name="gated")
    with in_thread(named, str(gate)):
        until_spans("gated", len, began)
        gate.touch()
    [span] = until_spans("gated", lambda found: found and found[0].ended, began)
    assert span.ended is not None
    gate.unlink()
    with in_thread(named, str(gate)), talk() as other:
        try:
            wait_until(lambda: [each for each in running() if each.since > span.ended])
            assert other is not None
            other.send(p.Acquire(lease="other", pool=POOL.key, task="gated"))
            view = wait_until(lambda: (view := view_of(lanes)).queue and view)
            [lease], [request] = view.replicas[0].leases, view.queue
            assert request.expected_at == pytest.approx(lease.since + span.ended - span.began, abs=0.001)
            assert cli.main(["status", "lanes"]) == 0
            assert re.search(r"gated .*, waits 0:\d\d, (starts in about \d+ s|longer)", capfd.readouterr().out)
        finally:
            gate.touch()


def test_async_calls_at_once_are_spans_beside_each_other(tmp_path: Path) -> None:
    began = time.monotonic()

    async def four() -> None:
        await asyncio.gather(*(meet(str(tmp_path / "there"), 4) for _ in range(4)))

    asyncio.run(four())
    found = until_spans(
        "pair.meet", lambda found: [span.outcome for span in found] == ["succeeded"] * 4, began, pool=PAIR
    )
    assert max(span.began for span in found) < min(span.ended or 0 for span in found)


def test_two_thousand_short_calls_are_few_spans_and_all_are_counted() -> None:
    """In a pool of their own: the last call of another test might be told only now."""
    pool = flyte.pool(many).warm()
    began = time.monotonic()
    list(flyte.map(one_of_many, range(2000)))
    wait_until(lambda: view_of(many).calls == 2000, what=lambda: str(view_of(many).calls))
    found = spans("many.one_of_many", pool)
    assert sum(span.calls for span in found) == 2000
    assert len(found) <= 20 * (time.monotonic() - began + 1)
    assert view_of(many).cold_starts_avoided >= 1999
    pool.stop()


def test_calls_of_an_executor_are_spans_too() -> None:
    began = time.monotonic()
    with POOL.executor() as executor:
        assert executor.submit(len, "abc").result() == 3
    until_spans("lanes.len", lambda found: [span.outcome for span in found] == ["succeeded"], began)


def test_a_short_name_is_what_views_show(tmp_path: Path) -> None:
    began = time.monotonic()
    named = hold.override(short_name="a hold")
    with in_thread_until_let_go(tmp_path, named) as [go]:
        wait_until(lambda: [each.task for each in running() if each.since > began] == ["a hold"])
        until_spans("a hold", len, began)
    with POOL.executor() as executor:
        executor.submit(named, str(go)).result()
    until_spans("a hold", lambda found: [span.outcome for span in found] == ["succeeded"] * 2, began)
    assert spans("lanes.hold", since=began) == []


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
    window = threading.Event()

    def switches() -> int:
        return sum(process.num_ctx_switches().voluntary for process in processes)

    def times() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def rests() -> bool:
        used, woken = times(), switches()
        window.wait(2.0)
        return times() - used <= 0.01 and switches() - woken <= 10  # a timer of ten a second would be twenty

    wait_until(rests, START_S, "two seconds in which they do nothing")
