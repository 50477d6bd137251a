"""What a person does to replicas and calls by hand: restart, interrupt, cancel."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import START_S, Counter, assert_quiet, attempt, mark, pids, ready, view_of, wait_until

import flyte_jupyter as flyte
from flyte_jupyter import errors
from flyte_jupyter.client import broker
from flyte_jupyter.core import protocol as p

pytestmark = pytest.mark.kernel

hand = flyte.TaskEnvironment("hand", reusable=flyte.ReusePolicy(replicas=(1, 2)))
side = flyte.TaskEnvironment("side", reusable=flyte.ReusePolicy(replicas=1, concurrency=2))
POOL = flyte.pool(hand)


@pytest.fixture(autouse=True)
def _always(shared_broker: Path) -> Iterator[None]:
    POOL.scale(1, 1).warm()
    wait_until(lambda: len(view_of(hand).replicas) == 1, START_S)
    yield
    assert_quiet(hand, timeout=START_S)


def number() -> int:
    """Of the one replica; a restarted one has another as long as the old process is there."""
    [replica] = ready(hand)
    return replica.index


@hand.task
def pid() -> int:
    return os.getpid()


@hand.task
def busy(path: str, seconds: float = 60) -> int:
    mark(path)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return os.getpid()


@hand.task
async def waits(path: str) -> None:
    mark(path)
    await asyncio.sleep(60)


@side.task
async def blocks(path: str) -> None:
    """Also the others of its replica, which wait for their turn."""
    mark(path)
    while True:
        time.sleep(0.01)


@side.task
async def runs(path: str) -> None:
    mark(path)


@hand.task
def deaf(path: str) -> None:
    mark(path)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            mark(path, "ignored")


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as threads:
        yield threads


def test_a_restarted_pool_has_other_processes_and_answers_meanwhile() -> None:
    POOL.scale(2, 2).warm(2)
    before = set(pids(hand))
    POOL.restart()
    answers = set()
    wait_until(lambda: answers.add(pid()) or (len(ready(hand)) == 2 and not before & set(pids(hand))), START_S * 2)
    assert len(before) == 2
    assert answers <= before | set(pids(hand))
    assert pid() not in before


def test_a_restarted_replica_finishes_its_call_first(tmp_path: Path, thread: ThreadPoolExecutor) -> None:
    ran = Counter(tmp_path / "ran")
    [old] = pids(hand)
    call = thread.submit(busy, ran.path, 0.5)
    ran.wait()
    POOL.restart(number())
    assert call.result(START_S) == old
    wait_until(lambda: pids(hand) and old not in pids(hand), START_S)


def test_a_restart_by_force_ends_a_task_that_does_not_listen(tmp_path: Path, thread: ThreadPoolExecutor) -> None:
    ran = Counter(tmp_path / "ran")
    call = thread.submit(attempt, deaf, ran.path)
    ran.wait()
    POOL.interrupt(number())
    ran.wait(2)
    assert not call.done()
    POOL.restart(number(), force=True)
    error = call.result(START_S)
    assert isinstance(error, errors.ReplicaDied)
    assert "it was restarted by hand" in str(error) + "".join(error.__notes__)


@pytest.mark.parametrize("call", [busy, lambda path: asyncio.run(waits(path))], ids=["sync", "async"])
def test_an_interrupted_replica_drops_its_call_and_stays(
    call: Callable[[str], object], tmp_path: Path, thread: ThreadPoolExecutor
) -> None:
    ran = Counter(tmp_path / "ran")
    before = pids(hand)
    running = thread.submit(attempt, call, ran.path)
    ran.wait()
    POOL.interrupt(number())
    assert isinstance(running.result(START_S), errors.TaskCancelled)
    assert pids(hand) == before
    assert pid() == before[0]


def test_an_interrupted_pool_drops_the_calls_of_all_replicas_which_stay(
    tmp_path: Path, thread: ThreadPoolExecutor
) -> None:
    POOL.scale(2).warm()
    before = pids(hand)
    ran = [Counter(tmp_path / str(number)) for number in range(2)]
    running = [thread.submit(attempt, busy, each.path) for each in ran]
    for each in ran:
        each.wait()
    assert POOL.interrupt() is POOL
    assert [type(each.result(START_S)) for each in running] == [errors.TaskCancelled] * 2
    assert pids(hand) == before


def test_a_call_is_cancelled_by_its_lease_and_a_waiting_one_never_runs(
    tmp_path: Path, thread: ThreadPoolExecutor
) -> None:
    ran = Counter(tmp_path / "ran")
    first = Counter(tmp_path / "first")
    running = thread.submit(attempt, busy, first.path)
    first.wait()
    queued = thread.submit(attempt, busy, ran.path)
    [request] = wait_until(lambda: view_of(hand).queue)
    connection = broker.connect()
    connection.send(p.Cancel(lease=request.lease))
    refused = queued.result(START_S)
    assert isinstance(refused, errors.TaskCancelled)
    assert "had not begun" in "".join([str(refused), *refused.__notes__])
    [lease] = view_of(hand).replicas[0].leases
    connection.send(p.Cancel(lease=lease.lease))
    assert isinstance(running.result(START_S), errors.TaskCancelled)
    assert len(ran) == 0


def test_a_granted_call_that_has_not_begun_never_runs(tmp_path: Path, thread: ThreadPoolExecutor) -> None:
    def lease_of(task: str) -> list[str]:
        view = view_of(side)
        return [lease.lease for replica in view.replicas for lease in replica.leases if lease.task == task]

    blocked, ran = Counter(tmp_path / "blocked"), Counter(tmp_path / "ran")
    first = thread.submit(attempt, lambda: asyncio.run(blocks(blocked.path)))
    blocked.wait()
    second = thread.submit(attempt, lambda: asyncio.run(runs(ran.path)))
    connection = broker.connect()
    for task in ("side.runs", "side.blocks"):  # the replica hears of them in this order
        [lease] = wait_until(lambda task=task: lease_of(task))  # type: ignore[misc]
        connection.send(p.Cancel(lease=lease))
    assert isinstance(first.result(START_S), errors.TaskCancelled)
    assert isinstance(second.result(START_S), errors.TaskCancelled)
    assert len(ran) == 0
    assert_quiet(side, timeout=START_S)
    flyte.pool(side).stop()


def test_a_client_that_watches_gets_the_answer_to_its_own_question() -> None:
    """And not what it was told of a change before."""
    connection = broker.connect()
    with connection.watching(lambda snapped: None):
        for maximum in range(2, 60):
            POOL.scale(1, maximum)
            assert view_of(hand).scaling.max_replicas == maximum
    POOL.scale(1, 2)


def test_a_replica_that_is_not_there_is_named() -> None:
    with pytest.raises(LookupError, match=r'The pool "hand" has no replica 7 \(existing: \d'):
        POOL.interrupt(7)
    with pytest.raises(ValueError, match="the number of one replica"):
        POOL.restart(force=True)
