"""A call that is cancelled before it begins, on a replica whose event loop stands still, ends at once and alone."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bare_wire import BareWire
from support import START_S, Counter, assert_quiet, mark, pids, view_of, wait_until

import flyte_jupyter as flyte
from flyte_jupyter.client import broker
from flyte_jupyter.client.task_target import target_of
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.frames import OK, Frame, Kind, Status

pytestmark = pytest.mark.kernel

PATIENCE_S = 60.0

shared = flyte.TaskEnvironment("shared-loop", reusable=flyte.ReusePolicy(replicas=1, concurrency=3))


@pytest.fixture(autouse=True)
def _quiet(shared_broker: Path) -> Iterator[None]:
    flyte.pool(shared).warm()
    yield
    assert_quiet(shared, timeout=START_S)


@pytest.fixture(scope="module", autouse=True)
def _stop(shared_broker: Path) -> Iterator[None]:
    yield
    flyte.pool(shared).stop(force=True)


@shared.task
async def blocks(ran: str, gate: str, name: str) -> tuple[str, int]:
    """The whole event loop, until the gate is there."""
    mark(ran, name)
    while not os.path.exists(gate):
        time.sleep(0.01)
    return name, os.getpid()


def held() -> int:
    return sum(len(replica.leases) for replica in view_of(shared).replicas)


class Line(BareWire):
    """And the end of the call that was sent on it last."""

    def __init__(self) -> None:
        super().__init__(target_of(blocks))

    def end(self) -> Frame:
        while (frame := self.next(PATIENCE_S)) is not None:
            if frame.kind in (Kind.OUTCOME, Kind.WITHDRAWN):
                return frame
        raise AssertionError(f"no end, but {self.seen[-8:]}")

    def cancel_and_end(self) -> Frame:
        self.cancel()
        return self.end()


@pytest.fixture
def lines() -> Iterator[Callable[[], Line]]:
    made: list[Line] = []

    def line() -> Line:
        made.append(Line())
        return made[-1]

    yield line
    for each in made:
        each.close()


def test_a_call_that_waits_for_a_blocked_loop_is_cancelled_alone(tmp_path: Path) -> None:
    (before,) = pids(shared)
    ran, gate = Counter(tmp_path / "ran"), tmp_path / "gate"

    async def both() -> tuple[str, int]:
        first = asyncio.ensure_future(blocks(ran.path, str(gate), "first"))
        await asyncio.to_thread(ran.wait)
        second = asyncio.ensure_future(blocks(ran.path, str(gate), "second"))
        await asyncio.to_thread(wait_until, lambda: held() == 2, START_S)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        # Its slot is free while the first one still blocks; and nobody ends the replica for it.
        await asyncio.to_thread(wait_until, lambda: held() == 1, START_S)
        assert not first.done()
        gate.touch()
        return await first

    assert asyncio.run(both()) == ("first", before)
    assert pids(shared) == [before]
    assert ran.lines() == ["first"]


@pytest.mark.parametrize("connected", [True, False], ids=["a connection in use", "a new connection"])
def test_a_blocked_loop_does_not_hold_up_a_cancel(lines: Callable[[], Line], connected: bool, tmp_path: Path) -> None:
    ran, gate = Counter(tmp_path / "ran"), tmp_path / "gate"
    busy, line = lines(), lines()
    if connected:
        line.send(ran.path, str(tmp_path), "before")
        assert line.end().flags == OK
    busy.send(ran.path, str(gate), "first")
    ran.wait(1 + connected)
    line.send(ran.path, str(tmp_path), "second")
    assert line.cancel_and_end().kind == Kind.WITHDRAWN
    line.send(ran.path, str(tmp_path), "third")  # the connection is as good as before
    gate.touch()
    assert busy.end().flags == OK
    assert line.end().flags == OK
    assert ran.lines()[connected:] == ["first", "third"]


def one_of_two_begins(lines: Callable[[], Line], ran: Counter, gate: Path) -> tuple[Line, Line]:
    """Two calls that the loop has taken in the same turn: the one that blocks it, and the one that is behind."""
    first = gate.with_name("first")
    busy, *both = lines(), lines(), lines()
    for line in both:  # with the code there and the connections made, one turn of the loop takes both calls
        line.send(ran.path, str(gate.parent), "warm")
        assert line.end().flags == OK
    busy.send(ran.path, str(first), "busy")
    ran.wait(3)
    for number, line in enumerate(both):
        line.send(ran.path, str(gate), str(number))
    first.touch()
    assert busy.end().flags == OK
    begun = int(ran.wait(4)[3])
    return both[begun], both[1 - begun]


def test_a_call_that_the_loop_knows_and_has_not_begun_is_cancelled_at_once(
    lines: Callable[[], Line], tmp_path: Path
) -> None:
    ran, gate = Counter(tmp_path / "ran"), tmp_path / "gate"
    begun, behind = one_of_two_begins(lines, ran, gate)
    assert behind.cancel_and_end().kind == Kind.WITHDRAWN
    gate.touch()
    assert begun.end().flags == OK
    assert len(ran) == 4, "at most once, and here not once"


def test_a_call_that_somebody_else_cancels_before_it_begins_has_its_outcome_at_once(
    lines: Callable[[], Line], tmp_path: Path
) -> None:
    ran, gate = Counter(tmp_path / "ran"), tmp_path / "gate"
    begun, behind = one_of_two_begins(lines, ran, gate)
    broker.connect().send(p.Cancel(lease=behind.lease.id))
    outcome = behind.end()
    assert (outcome.kind, outcome.flags) == (Kind.OUTCOME, Status.CANCELLED)
    gate.touch()
    assert begun.end().flags == OK
    assert len(ran) == 4


def test_a_cancel_that_comes_before_the_connection_is_answered_too(lines: Callable[[], Line], tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")
    line = lines()
    line.lease.cancel(1)
    line.send(ran.path, str(tmp_path), "first")
    assert line.end().kind == Kind.WITHDRAWN
    line.send(ran.path, str(tmp_path), "second")
    assert line.end().flags == OK
    assert ran.lines() == ["second"]


def test_a_call_that_has_begun_is_not_taken_for_one_that_has_not(tmp_path: Path) -> None:
    """Cancelled at whatever moment, a call either never begins or is seen to its end."""
    (before,) = pids(shared)
    ran = Counter(tmp_path / "ran")

    async def both(number: int) -> None:
        calls = [asyncio.ensure_future(blocks(ran.path, str(tmp_path), str(number))) for _ in range(3)]
        await asyncio.sleep(number % 20 * 0.0002)
        cancelled = calls[1].cancel()
        values = await asyncio.gather(*calls, return_exceptions=True)
        assert values.pop(1) == (str(number), before) or cancelled
        assert values == [(str(number), before)] * 2

    async def all_of_it() -> None:
        for number in range(200):
            try:
                await both(number)
            except BaseException as problem:
                raise AssertionError(number) from problem

    asyncio.run(all_of_it())
    assert pids(shared) == [before]
