"""A call whose connection ends: sent again by itself if it certainly has not begun, and failed by name if it may have.

Broker and replicas are scripted, and the calls go through the public interface alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from scripted import Stage
from scripted_replica import Wire
from ways import WAYS, Way, awaited, blocking, work

from flyte_jupyter import errors
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.frames import Kind

BIG = b"x" * 900_000
"""More than a socket holds, and less than what goes in a memory file."""

every_way = pytest.mark.parametrize("way", WAYS)


@every_way
def test_a_call_is_sent_and_its_value_comes_back(stage: Stage, way: Way, capsys: pytest.CaptureFixture[str]) -> None:
    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        wire.need(call)
        wire.next(Kind.DEFINE)
        wire.print(call, "said")
        wire.answer(call, "done")

    with stage.plays(script):
        assert way(stage.environment().task(work), 1) == "done"
    assert capsys.readouterr().out == "said"


# --- it has certainly not begun


def nobody_listens(stage: Stage) -> None:
    replica = stage.replica(deaf=True)
    replica.die()
    stage.say_granted(stage.asked(), replica)


def not_accepted(stage: Stage) -> None:
    replica = stage.replica(deaf=True)
    stage.say_granted(stage.asked(), replica)
    replica.wait_visited()
    replica.die()


def closed_after_the_greeting(stage: Stage) -> None:
    stage.grant().close()


def reset_with_the_call_unread(stage: Stage) -> None:
    stage.grant().reset()


def reset_with_half_the_call_read(stage: Stage) -> None:
    wire = stage.grant()
    wire.read(10)
    wire.reset()


def deaf_to_the_definitions(stage: Stage) -> None:
    wire = stage.grant()
    call = wire.any_call()
    wire.stop_reading()
    wire.need(call)
    wire.close()


BEFORE = [
    nobody_listens,
    not_accepted,
    closed_after_the_greeting,
    reset_with_the_call_unread,
    reset_with_half_the_call_read,
    deaf_to_the_definitions,
]


@every_way
@pytest.mark.parametrize("size", ["small", "big"])
@pytest.mark.parametrize("ends", BEFORE)
def test_a_call_that_has_not_begun_is_sent_elsewhere(
    stage: Stage, way: Way, ends: Callable[[Stage], None], size: str
) -> None:
    argument = 1 if size == "small" else BIG

    def script() -> None:
        ends(stage)
        wire = stage.grant()
        wire.answer(wire.call(argument), "done")
        assert wire.rest() == b""

    with stage.plays(script):
        assert way(stage.environment().task(work), argument) == "done"
    assert len(stage.asked_for()) == 2


@every_way
def test_it_is_sent_elsewhere_more_than_once(stage: Stage, way: Way) -> None:
    def script() -> None:
        for ends in BEFORE:
            ends(stage)
        wire = stage.grant()
        wire.answer(wire.call(1), "done")

    with stage.plays(script):
        assert way(stage.environment().task(work), 1) == "done"


@pytest.mark.parametrize("way", [blocking, awaited])
def test_it_fails_by_name_if_no_replica_takes_it(stage: Stage, way: Way) -> None:
    failed = threading.Event()

    def script() -> None:
        replica = stage.replica(deaf=True)
        replica.die()
        while (request := stage.broker.next(p.Acquire, until=failed)) is not None:
            stage.say_granted(request, replica)

    with stage.plays(script):
        with pytest.raises(errors.ReplicaDied):
            way(stage.environment().task(work), 1)
        failed.set()
    assert len(stage.asked_for()) > 3


@every_way
def test_a_lease_whose_replica_went_while_it_was_idle_is_no_attempt(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        wire.answer(wire.call(1), "first")
        wire.close()  # with the second call there or not
        wire = stage.grant()
        wire.answer(wire.call(2), "second")

    task = stage.environment().task(work)
    with stage.plays(script):
        assert way(task, 1) == "first"
        assert way(task, 2) == "second"


# --- it may have begun


def end_with_the_call_unread(stage: Stage) -> Wire:
    """Not a reset: nothing says that the call was not read."""
    wire = stage.grant()
    wire.end_unread()
    return wire


def end_after_the_call(stage: Stage) -> Wire:
    wire = stage.grant()
    wire.call(1)
    wire.end()
    return wire


def end_after_a_need(stage: Stage) -> Wire:
    wire = stage.grant()
    wire.need(wire.call(1))
    wire.next(Kind.DEFINE)
    wire.end()
    return wire


def reset_after_a_need(stage: Stage) -> Wire:
    wire = stage.grant()
    wire.need(wire.call(1))
    wire.reset()
    return wire


def end_after_output(stage: Stage) -> Wire:
    wire = stage.grant()
    wire.print(wire.call(1), "said")
    wire.end()
    return wire


def end_after_half_an_outcome(stage: Stage) -> Wire:
    wire = stage.grant()
    wire.half_answer(wire.call(1), "done")
    wire.end()
    return wire


AFTER = [
    end_with_the_call_unread,
    end_after_the_call,
    end_after_a_need,
    end_after_output,
    end_after_half_an_outcome,
]


@every_way
@pytest.mark.parametrize("ends", AFTER)
def test_a_call_that_may_have_begun_is_never_sent_twice(stage: Stage, way: Way, ends: Callable[[Stage], Wire]) -> None:
    def script() -> None:
        stage.lose(ends(stage))

    with stage.plays(script), pytest.raises(errors.ReplicaDied, match="signal 9"):
        way(stage.environment().task(work), 1)
    assert len(stage.asked_for()) == 1


@every_way
@pytest.mark.parametrize("ends", AFTER)
def test_with_retries_it_is(stage: Stage, way: Way, ends: Callable[[Stage], Wire]) -> None:
    def script() -> None:
        stage.lose(ends(stage))
        wire = stage.grant()
        call = wire.call(1)
        assert call.flags == 1, "the number of the attempt"
        wire.answer(call, "done")

    with stage.plays(script):
        assert way(stage.environment().task(work, retries=1), 1) == "done"
    assert len(stage.asked_for()) == 2


@every_way
def test_what_is_no_frame_fails_the_call(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        wire.call(1)
        wire.write(b"\xff" * 64)

    with stage.plays(script), pytest.raises(errors.ProtocolError):
        way(stage.environment().task(work), 1)
    assert len(stage.asked_for()) == 1


# --- it has an outcome


@every_way
@pytest.mark.parametrize("retries", [0, 1])
def test_an_error_is_an_outcome_and_is_retried_only_as_often_as_was_asked(stage: Stage, way: Way, retries: int) -> None:
    def script() -> None:
        wire = stage.grant()
        for attempt in range(retries + 1):
            call = wire.call(1)
            assert call.flags == attempt
            wire.fail(call, ValueError(f"attempt {attempt}"))

    with stage.plays(script), pytest.raises(ValueError, match=f"attempt {retries}"):
        way(stage.environment().task(work, retries=retries), 1)


@every_way
def test_an_error_that_says_so_is_not_retried(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        wire.fail(wire.call(1), errors.NonRecoverableError("pointless"))
        assert wire.rest() == b""

    with stage.plays(script), pytest.raises(errors.RuntimeUserError, match="pointless"):
        way(stage.environment().task(work, retries=3), 1)


@every_way
def test_a_cancel_by_somebody_else_is_an_outcome_and_is_not_retried(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        wire.cancelled(wire.call(1).call)
        assert wire.rest() == b""

    with stage.plays(script), pytest.raises(errors.TaskCancelled):
        way(stage.environment().task(work, retries=3), 1)


@every_way
def test_a_refusal_fails_the_call_by_its_reason(stage: Stage, way: Way) -> None:
    def script() -> None:
        stage.broker.send(p.Refused(lease=stage.asked().lease, reason="pool-stopped", detail={"pool": "scripted"}))

    with stage.plays(script, all_released=False), pytest.raises(errors.PoolStopped, match="scripted"):
        way(stage.environment().task(work, retries=3), 1)
