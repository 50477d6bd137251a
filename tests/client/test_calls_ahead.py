"""Calls that were sent ahead of their turn, on one lease: what becomes of each when the lease ends, or stands still."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from scripted import Stage, learn_pace
from scripted_replica import Wire
from served import Service
from ways import Task, work

from flyte_jupyter import errors
from flyte_jupyter.core.frames import Frame, Kind

CALLS = ["call1", "call2", "call3"]
"""As long as `SHORT`, so that each takes as many bytes."""


class Together:
    """Calls that are made at once, after some short ones: the caller's side and what the script does first."""

    def __init__(self, stage: Stage, *, retries: int = 0) -> None:
        self._stage = stage
        self._task: Task = stage.environment().task(work, retries=retries)
        self._learnt = threading.Event()

    def outcomes(self) -> list[Any]:
        """In the order of the calls; errors as their classes."""

        async def main() -> list[Any]:
            await learn_pace(self._task)
            self._learnt.set()
            return await asyncio.gather(*(self._task.aio(each) for each in CALLS), return_exceptions=True)

        return [type(each) if isinstance(each, BaseException) else each for each in asyncio.run(main())]

    def sent(self, read: int = len(CALLS)) -> tuple[Wire, list[Frame]]:
        """The lease on which all of them were sent; and those calls that were read."""
        wire = self._stage.grant()
        wire.answer_short_ones(self._learnt)
        wire.wait_unread(len(CALLS) * wire.length)
        return wire, [wire.call(each) for each in CALLS[:read]]


def serve(stage: Stage, calls: list[str]) -> None:
    """These calls come on another lease, in this order."""
    if calls:
        wire = stage.grant()
    for each in calls:
        wire.answer(wire.call(each), elsewhere(each))


def elsewhere(call: str) -> str:
    return f"{call} elsewhere"


def test_calls_are_sent_ahead_and_answered_in_order(stage: Stage) -> None:
    together = Together(stage)

    def script() -> None:
        wire, calls = together.sent()
        for number, call in enumerate(calls):
            wire.answer(call, number)

    with stage.plays(script):
        assert together.outcomes() == [0, 1, 2]
    assert len(stage.asked_for()) == 1


# --- the connection ends


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_at_its_end_only_the_call_whose_turn_it_was_is_lost(stage: Stage, answered: int) -> None:
    together = Together(stage)

    def script() -> None:
        wire, calls = together.sent()
        for call in calls[:answered]:
            wire.answer(call, "done")
        wire.end()
        stage.lose(wire)
        serve(stage, CALLS[answered + 1 :])

    with stage.plays(script):
        assert together.outcomes() == [
            *["done"] * answered,
            errors.ReplicaDied,
            *map(elsewhere, CALLS[answered + 1 :]),
        ]


@pytest.mark.parametrize("read", [0, 1, 2])
def test_a_reset_does_not_say_whether_the_first_of_several_had_begun(stage: Stage, read: int) -> None:
    """Something was not read: it may be one of the calls behind."""
    together = Together(stage)

    def script() -> None:
        wire, _ = together.sent(read)
        wire.reset()
        stage.lose(wire)
        serve(stage, CALLS[1:])

    with stage.plays(script):
        assert together.outcomes() == [errors.ReplicaDied, *map(elsewhere, CALLS[1:])]


def test_after_a_reset_the_last_one_has_not_begun_if_it_was_its_turn(stage: Stage) -> None:
    together = Together(stage)

    def script() -> None:
        wire, calls = together.sent(read=2)
        for call in calls:
            wire.answer(call, "done")
        wire.reset()
        serve(stage, CALLS[2:])

    with stage.plays(script):
        assert together.outcomes() == ["done", "done", elsewhere(CALLS[2])]


def test_with_retries_the_lost_one_runs_again_after_all(stage: Stage) -> None:
    together = Together(stage, retries=1)

    service = Service(stage)

    def script() -> None:
        wire, _ = together.sent()
        wire.end()
        stage.lose(wire)
        service()

    with stage.plays(script):
        assert together.outcomes() == CALLS
        service.over.set()
    assert sorted(service.ran) == CALLS
    assert [each for each in service.ran if each != CALLS[0]] == CALLS[1:]


def test_what_is_no_frame_fails_all_of_them(stage: Stage) -> None:
    """Which ones have begun will never be known."""
    together = Together(stage)

    def script() -> None:
        wire, _ = together.sent()
        wire.write(b"\xff" * 64)

    with stage.plays(script):
        assert together.outcomes() == [errors.ProtocolError] * 3
    assert len(stage.asked_for()) == 1


# --- the first one takes long: the others are taken back


def test_calls_behind_a_long_one_run_elsewhere_in_order(stage: Stage) -> None:
    together = Together(stage)

    def script() -> None:
        wire, calls = together.sent()
        order = stage.replica_of(wire).order(Kind.WITHDRAW)
        assert (order.call, order_body(order)) == (calls[1].call, [wire.lease, calls[2].call])
        wire.withdrawn(calls[1].call, 2)
        serve(stage, CALLS[1:])
        wire.answer(calls[0], "at last")

    with stage.plays(script):
        assert together.outcomes() == ["at last", *map(elsewhere, CALLS[1:])]


def test_calls_that_are_not_wholly_written_are_taken_back_too(stage: Stage) -> None:
    """The replica reads nothing while it runs the first one, and a socket holds only so much."""
    task = stage.environment().task(work)
    learnt = threading.Event()
    calls = [f"{number}" + 50_000 * "x" for number in range(9)]

    def script() -> None:
        wire = stage.grant()
        wire.answer_short_ones(learnt)
        first = wire.call(calls[0])
        order = stage.replica_of(wire).order(Kind.WITHDRAW)
        last = json.loads(order.body)[1]
        assert last - first.call > 5, "all of it fits into the socket"
        wire.withdrawn(order.call, last + 1 - order.call)
        serve(stage, calls[1:])
        wire.answer(first, "at last")

    async def main() -> list[Any]:
        await learn_pace(task)
        learnt.set()
        return await asyncio.gather(*map(task.aio, calls))

    with stage.plays(script):
        assert asyncio.run(main()) == ["at last", *map(elsewhere, calls[1:])]


def test_only_those_are_taken_back_that_the_replica_names(stage: Stage) -> None:
    together = Together(stage)

    def script() -> None:
        wire, calls = together.sent()
        stage.replica_of(wire).order(Kind.WITHDRAW)
        wire.answer(calls[0], "at last")  # and the second one begins
        wire.withdrawn(calls[2].call, 1)
        serve(stage, CALLS[2:])
        wire.answer(calls[1], "after it")

    with stage.plays(script):
        assert together.outcomes() == ["at last", "after it", elsewhere(CALLS[2])]


def test_calls_that_were_taken_back_too_late_end_where_they_are(stage: Stage) -> None:
    together = Together(stage)

    def script() -> None:
        wire, calls = together.sent()
        stage.replica_of(wire).order(Kind.WITHDRAW)
        for number, call in enumerate(calls):
            wire.answer(call, number)

    with stage.plays(script):
        assert together.outcomes() == [0, 1, 2]
    assert len(stage.asked_for()) == 1


def test_calls_that_were_taken_back_are_not_lost_with_the_long_one(stage: Stage) -> None:
    together = Together(stage)

    def script() -> None:
        wire, calls = together.sent()
        stage.replica_of(wire).order(Kind.WITHDRAW)
        wire.withdrawn(calls[1].call, 2)
        serve(stage, CALLS[1:])
        wire.end()
        stage.lose(wire)

    with stage.plays(script):
        assert together.outcomes() == [errors.ReplicaDied, *map(elsewhere, CALLS[1:])]


def test_calls_that_were_not_taken_back_yet_when_the_replica_died_run_elsewhere(stage: Stage) -> None:
    together = Together(stage)

    def script() -> None:
        wire, _ = together.sent()
        stage.replica_of(wire).order(Kind.WITHDRAW)
        wire.end()
        stage.lose(wire)
        serve(stage, CALLS[1:])

    with stage.plays(script):
        assert together.outcomes() == [errors.ReplicaDied, *map(elsewhere, CALLS[1:])]


def order_body(order: Frame) -> object:
    return json.loads(order.body)
