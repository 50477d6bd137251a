"""A call that its caller gives up, by Ctrl-C, by a cancel or at a time limit; and leases that the broker wants back.

Broker and replicas are scripted, and the calls go through the public interface alone.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from scripted import Stage
from scripted_broker import PATIENCE_S
from scripted_replica import Wire
from served import Service
from support import wait_until
from ways import WAYS, Task, Way, awaited, blocking, mapped, submitted, work

import flyte_jupyter as flyte
from flyte_jupyter import errors
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.frames import Frame, Kind

BIG = b"x" * 900_000
"""More than a socket holds, and less than what goes in a memory file."""

every_way = pytest.mark.parametrize("way", WAYS)
pressed_in = pytest.mark.parametrize("way", [blocking, awaited, mapped])


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt here, whoever has started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def expect_cancel(stage: Stage, wire: Wire, call: Frame) -> None:
    """The call is cancelled by its number, over a connection of its own."""
    order = stage.replica_of(wire).order(Kind.CANCEL)
    assert (order.call, order.body.decode()) == (call.call, wire.lease)


def serve_next(stage: Stage, argument: object) -> None:
    """The next call, on a new lease."""
    wire = stage.grant()
    wire.answer(wire.call(argument), "next")


# --- Ctrl-C


@pressed_in
def test_ctrl_c_while_it_waits_for_a_slot_withdraws_the_request(stage: Stage, way: Way) -> None:
    def script() -> None:
        request = stage.asked()
        stage.interrupt()
        stage.broker.expect(p.Release, request.lease)
        serve_next(stage, 2)

    task = stage.environment().task(work)
    with stage.plays(script):
        with pytest.raises(KeyboardInterrupt):
            way(task, 1)
        assert way(task, 2) == "next"


@pressed_in
def test_ctrl_c_in_the_middle_of_sending_ends_the_connection(stage: Stage, way: Way) -> None:
    """Half a call was written, so nothing that followed would be understood."""

    def script() -> None:
        wire = stage.grant()
        wire.read(1000)
        stage.interrupt()
        assert len(wire.rest()) < len(BIG)
        stage.broker.expect(p.Release, wire.lease)
        serve_next(stage, 2)
        if way is blocking:
            assert stage.replica_of(wire).orders == []

    task = stage.environment().task(work)
    with stage.plays(script):
        with pytest.raises(KeyboardInterrupt):
            way(task, BIG)
        assert way(task, 2) == "next"


def outcome_cancelled(wire: Wire, call: Frame) -> None:
    wire.cancelled(call.call)


def outcome_all_the_same(wire: Wire, call: Frame) -> None:
    wire.answer(call, "too late")


def outcome_withdrawn(wire: Wire, call: Frame) -> None:
    wire.withdrawn(call.call)


@pressed_in
@pytest.mark.parametrize("outcome", [outcome_cancelled, outcome_all_the_same, outcome_withdrawn])
def test_ctrl_c_after_sending_cancels_that_call_and_keeps_the_lease(
    stage: Stage, way: Way, outcome: Callable[[Wire, Frame], None]
) -> None:
    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        stage.interrupt()
        expect_cancel(stage, wire, call)
        outcome(wire, call)
        assert wire.rest() == b""

    task = stage.environment().task(work)
    if way is blocking and outcome is outcome_all_the_same:  # the task has dealt with the interrupt
        with stage.plays(script):
            assert way(task, 1) == "too late"
    else:
        with stage.plays(script), pytest.raises(KeyboardInterrupt):
            way(task, 1)


@pressed_in
def test_after_ctrl_c_the_next_call_works_on_the_lease_or_on_another(stage: Stage, way: Way) -> None:
    service = Service(stage)

    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        stage.interrupt()
        expect_cancel(stage, wire, call)
        wire.cancelled(call.call)
        stage.broker.expect(p.Release, wire.lease)
        service()

    task = stage.environment().task(work)
    with stage.plays(script):
        with pytest.raises(KeyboardInterrupt):
            way(task, 1)
        wait_until(lambda: stage.broker.said(p.Release))
        assert way(task, 2) == 2
        service.over.set()
    assert service.ran == [2]


def test_after_ctrl_c_the_lease_is_good_for_the_next_call(stage: Stage) -> None:
    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        stage.interrupt()
        expect_cancel(stage, wire, call)
        wire.cancelled(call.call)
        wire.answer(wire.call(2), "next")

    task = stage.environment().task(work)
    with stage.plays(script):
        with pytest.raises(KeyboardInterrupt):
            task(1)
        assert task(2) == "next"


@pressed_in
def test_ctrl_c_while_the_outcome_arrives_reads_it_to_its_end(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        the_rest = wire.half_answer(call, "done")
        stage.interrupt()
        expect_cancel(stage, wire, call)
        the_rest()
        assert wire.rest() == b""

    task = stage.environment().task(work)
    if way is blocking:
        with stage.plays(script):
            assert way(task, 1) == "done"
    else:
        with stage.plays(script), pytest.raises(KeyboardInterrupt):
            way(task, 1)


@pytest.mark.parametrize("way", [awaited, mapped])
def test_a_call_that_does_not_stop_at_once_is_seen_to_its_end_elsewhere(stage: Stage, way: Way) -> None:
    """The caller comes back, its next call has another slot, and the first one is given back when it has ended."""
    back = threading.Event()

    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        stage.interrupt()
        expect_cancel(stage, wire, call)
        if way is not mapped:  # which waits longer
            assert back.wait(5)
            serve_next(stage, 2)
        wire.cancelled(call.call)
        stage.broker.expect(p.Release)

    task = stage.environment(replicas=2).task(work)
    with stage.plays(script):
        with pytest.raises(KeyboardInterrupt):
            way(task, 1)
        back.set()
        if way is not mapped:
            assert way(task, 2) == "next"


@pressed_in
def test_a_replica_that_dies_of_a_cancel_is_given_back(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        stage.interrupt()
        expect_cancel(stage, wire, call)
        wire.end()
        stage.broker.expect(p.Release, wire.lease)
        serve_next(stage, 2)

    task = stage.environment().task(work)
    with stage.plays(script):
        with pytest.raises(KeyboardInterrupt):
            way(task, 1)
        assert way(task, 2) == "next"


def test_ctrl_c_twice_ends_the_replica(stage: Stage) -> None:
    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        stage.interrupt()
        expect_cancel(stage, wire, call)
        stage.interrupt()
        stage.broker.expect(p.Revoke, wire.lease)
        stage.broker.expect(p.Release, wire.lease)
        serve_next(stage, 2)

    task = stage.environment().task(work)
    with stage.plays(script):
        with pytest.raises(KeyboardInterrupt):
            task(1)
        assert task(2) == "next"


# --- time limits


def limited(stage: Stage, *, retries: int = 0, **limits: float) -> Task:
    timeout = flyte.Timeout(**{name: timedelta(seconds=seconds) for name, seconds in limits.items()})
    return stage.environment().task(work, timeout=timeout, retries=retries)


@every_way
def test_a_call_that_waits_too_long_for_a_slot_withdraws_its_request(stage: Stage, way: Way) -> None:
    def script() -> None:
        stage.broker.expect(p.Release, stage.asked().lease)

    with stage.plays(script), pytest.raises(errors.MaxQueuedTimeExceededError):
        way(limited(stage, max_queued_time=0.05), 1)


@every_way
@pytest.mark.parametrize("outcome", [outcome_cancelled, outcome_all_the_same, outcome_withdrawn])
def test_a_call_that_runs_too_long_is_cancelled(stage: Stage, way: Way, outcome: Callable[[Wire, Frame], None]) -> None:
    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        expect_cancel(stage, wire, call)
        outcome(wire, call)
        stage.broker.expect(p.Release, wire.lease)

    with stage.plays(script), pytest.raises(errors.MaxRuntimeExceededError):
        way(limited(stage, max_runtime=0.05), 1)
    assert stage.broker.said(p.Revoke) == []


@every_way
def test_a_call_that_passed_its_limit_is_tried_again_if_it_has_retries(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        expect_cancel(stage, wire, call)
        wire.cancelled(call.call)
        wire.answer(wire.call(1), "next")  # its slot is free, and as good as any

    with stage.plays(script):
        assert way(limited(stage, max_runtime=0.2, retries=1), 1) == "next"


@every_way
def test_no_attempt_begins_after_the_deadline(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        wire.fail(wire.call(1), ValueError("first"))
        stage.broker.expect(p.Release, wire.lease)
        wire = stage.grant()
        call = wire.call(1)
        expect_cancel(stage, wire, call)
        wire.cancelled(call.call)

    backoff = flyte.RetryStrategy(count=9, backoff=flyte.Backoff(base=timedelta(seconds=0.1)))
    task = stage.environment().task(work, timeout=flyte.Timeout(deadline=timedelta(seconds=0.4)), retries=backoff)
    with stage.plays(script), pytest.raises(errors.DeadlineExceededError):
        way(task, 1)


def test_a_slot_that_comes_just_when_the_time_for_it_is_up_is_not_used_for_that_attempt(stage: Stage) -> None:
    """The loop hears of the grant after the limit, and before the next attempt has asked for a slot."""
    due, granted = threading.Event(), threading.Event()
    service = Service(stage)

    def script() -> None:
        request = stage.asked()
        assert due.wait(PATIENCE_S)
        service(request)

    async def main() -> object:
        loop = asyncio.get_running_loop()

        def when_both_are_due() -> None:
            due.set()
            wait_until(lambda: service.held)
            stage.heard()
            granted.set()

        call = asyncio.ensure_future(limited(stage, max_queued_time=0.05, retries=1).aio(1))
        loop.call_later(0.04, when_both_are_due)
        loop.call_later(0.03, wait_until, lambda: time.monotonic() > began + 0.2)
        return await call

    began = time.monotonic()
    with stage.plays(script):
        assert asyncio.run(main()) == 1
        service.over.set()
    assert granted.is_set()
    assert service.ran == [1]


@every_way
def test_the_deadline_counts_while_it_waits_for_a_slot(stage: Stage, way: Way) -> None:
    def script() -> None:
        stage.broker.expect(p.Release, stage.asked().lease)

    with stage.plays(script), pytest.raises(errors.DeadlineExceededError):
        way(limited(stage, deadline=0.05), 1)


def test_a_replica_that_ignores_a_cancel_is_ended_after_a_while(stage: Stage) -> None:
    """Whoever has given the call up: all of them at once, as it takes seconds."""

    def script() -> None:
        stage.notes.patience = 3 * PATIENCE_S
        wires = [stage.grant() for _ in range(3)]
        for wire in wires:
            wire.call(1)
        for wire in wires:
            stage.broker.expect(p.Revoke, wire.lease)
            stage.lose(wire)
            wire.close()

    def fails(way: Way, task: Task) -> None:
        with pytest.raises(errors.MaxRuntimeExceededError, match="FJ503"):
            way(task, 1)

    tasks = [limited(stage, max_runtime=0.05) for _ in range(3)]
    with stage.plays(script):
        threads = [
            threading.Thread(target=fails, args=each)
            for each in zip([blocking, awaited, submitted], tasks, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


# --- an answer of the broker crosses a withdrawal


def given_up(task: Task, asked: threading.Event) -> None:
    """A call that is cancelled while it waits for its slot."""

    async def main() -> None:
        call = asyncio.ensure_future(task.aio(1))
        await asyncio.to_thread(asked.wait)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())


def refuse(stage: Stage, request: p.Acquire) -> None:
    stage.broker.send(p.Refused(lease=request.lease, reason="pool-stopped", detail={"pool": "scripted"}))


def grant_late(stage: Stage, request: p.Acquire) -> None:
    stage.say_granted(request, stage.replica())


@pytest.mark.parametrize("answer", [grant_late, refuse])
def test_an_answer_that_crosses_a_withdrawal_is_nobodys(
    stage: Stage, answer: Callable[[Stage, p.Acquire], None]
) -> None:
    asked = threading.Event()

    def script() -> None:
        request = stage.asked()
        asked.set()
        stage.broker.expect(p.Release, request.lease)
        answer(stage, request)
        stage.heard()
        serve_next(stage, 2)

    task = stage.environment().task(work)
    with stage.plays(script):
        given_up(task, asked)
        assert task(2) == "next"


@pytest.mark.parametrize("answer", [grant_late, refuse])
def test_an_answer_that_crosses_a_withdrawal_hurts_nobody_who_waits(
    stage: Stage, answer: Callable[[Stage, p.Acquire], None]
) -> None:
    both = threading.Event()

    def script() -> None:
        requests = {each.lease: each for each in (stage.asked(), stage.asked())}
        both.set()
        withdrawn = requests.pop(stage.broker.expect(p.Release).lease)
        answer(stage, withdrawn)
        stage.heard()
        (left,) = requests.values()
        wire = stage.grant(left)
        wire.answer(wire.call(2), "next")

    task = stage.environment(replicas=2).task(work)

    async def main() -> object:
        first, second = asyncio.ensure_future(task.aio(1)), asyncio.ensure_future(task.aio(2))
        await asyncio.to_thread(both.wait)
        first.cancel()
        return (await asyncio.gather(first, second, return_exceptions=True))[1]

    with stage.plays(script):
        assert asyncio.run(main()) == "next"


def test_a_slot_that_was_granted_to_who_gives_up_goes_to_the_next(stage: Stage) -> None:
    """The grant has been heard, and the loop has not had its turn when the call is cancelled."""
    both = threading.Event()

    def script() -> None:
        requests = [stage.asked(), stage.asked()]
        both.set()
        service(*requests)

    service = Service(stage)
    task = stage.environment(replicas=2).task(work)

    async def main() -> list[object]:
        first, second = asyncio.ensure_future(task.aio(1)), asyncio.ensure_future(task.aio(2))
        await asyncio.to_thread(both.wait)
        wait_until(lambda: service.held)
        stage.heard()
        first.cancel()
        return await asyncio.gather(first, second, return_exceptions=True)

    with stage.plays(script):
        outcomes = asyncio.run(main())
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert outcomes[1] == 2
        service.over.set()
    assert service.ran.count(2) == 1


def test_grants_and_cancels_at_any_moment_lose_no_slot(stage: Stage) -> None:
    service = Service(stage)
    task = stage.environment().task(work)

    async def main() -> None:
        for number in range(100):
            first, second = asyncio.ensure_future(task.aio(-number)), asyncio.ensure_future(task.aio(number))
            await asyncio.sleep(number % 10 * 0.0005)
            first.cancel()
            assert await second == number
            await asyncio.gather(first, return_exceptions=True)

    with stage.plays(service):
        asyncio.run(main())
        service.over.set()
    assert [each for each in service.ran if each > 0] == [*range(1, 100)]
    assert len(set(service.ran)) == len(service.ran) - service.ran.count(0) + 1


# --- the broker wants a lease back


@every_way
def test_an_idle_lease_that_is_recalled_goes_at_once(stage: Stage, way: Way) -> None:
    recalled = threading.Event()

    def script() -> None:
        wire = stage.grant()
        wire.answer(wire.call(1), "first")
        stage.broker.send(p.Recalled(lease=wire.lease))
        stage.broker.expect(p.Release, wire.lease)
        recalled.set()
        assert wire.rest() == b""
        serve_next(stage, 2)

    task = stage.environment().task(work)
    with stage.plays(script):
        assert way(task, 1) == "first"
        assert recalled.wait(5)
        assert way(task, 2) == "next"


@every_way
def test_a_lease_that_is_recalled_in_use_goes_after_its_call(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        stage.broker.send(p.Recalled(lease=wire.lease))
        stage.heard()
        assert stage.broker.said(p.Release) == []
        wire.answer(call, "first")
        stage.broker.expect(p.Release, wire.lease)
        assert wire.rest() == b""
        serve_next(stage, 2)

    task = stage.environment().task(work)
    with stage.plays(script):
        assert way(task, 1) == "first"
        assert way(task, 2) == "next"
