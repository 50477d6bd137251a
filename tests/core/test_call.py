"""The life of one call, event by event, at literal instants."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import pytest

from flyte_jupyter import errors
from flyte_jupyter.core.call import GRACE_S, NOTE_S, REQUEUES, Call, State, may_repeat
from flyte_jupyter.core.call_events import (
    CANCELLED,
    INTERRUPTED,
    TICK,
    TURN,
    Broken,
    Cancelled,
    Command,
    Do,
    Event,
    Explained,
    Failed,
    Granted,
    Note,
    OnInterrupt,
    Raise,
    Refused,
    Reply,
    Request,
    Revoke,
    Sending,
    Sent,
)
from flyte_jupyter.core.frames import Frame, FrameReader, Kind, Status

SLOT = Granted("gpu[0]")
DIED = errors.ReplicaDied("gpu.embed", "gpu[0]")


def frame(kind: Kind, flags: int = 0, body: bytes = b"", call: int = 1) -> Frame:
    return Frame(kind, call, flags, body, [])


OK = frame(Kind.OUTCOME, Status.OK)
ERROR = frame(Kind.OUTCOME, Status.ERROR)
STOPPED = frame(Kind.OUTCOME, Status.CANCELLED)
OUTPUT = frame(Kind.OUTPUT, 1, b"epoch 1")
RAISED = frame(Kind.INTERRUPTED)
WITHDRAWN = frame(Kind.WITHDRAWN, 1)


class Life:
    """A call, and an instant that only moves forward."""

    def __init__(self, **request: Any) -> None:
        self.call = Call(Request("gpu.embed", "gpu", **request), now=0.0)
        self.now = 0.0

    def __call__(self, event: Event, at: float | None = None) -> list[Command]:
        self.now = self.now if at is None else at
        return list(self.call.handle(event, now=self.now))

    def asked(self) -> Life:
        assert list(self.call.start(now=self.now)) == [Do.ASK]
        return self

    def sending(self) -> Life:
        assert self.asked()(SLOT) == [Do.SEND]
        return self

    def running(self, number: int = 1, closures: Sequence[Any] = ()) -> Life:
        assert self.sending()(Sent(number, closures)) == []
        return self

    def stopping(self) -> Life:
        assert self.running()(INTERRUPTED) == [Do.CANCEL]
        return self

    @property
    def due(self) -> float:
        return self.call.next_deadline()

    @property
    def state(self) -> State:
        return self.call.state


def error_of(commands: Sequence[Command]) -> BaseException:
    """What the last command raises."""
    last = commands[-1]
    assert isinstance(last, Raise)
    return last.error


def without_error(commands: Sequence[Command]) -> list[Command]:
    error_of(commands)
    return list(commands[:-1])


# --- what goes well


def test_a_call_asks_for_a_slot_is_sent_and_returns() -> None:
    life = Life()
    assert list(life.call.start(now=0.0)) == [Do.ASK]
    assert life(SLOT, 1.0) == [Do.SEND]
    assert life(Sent(1)) == []
    assert life.state is State.RUNNING
    assert life(OK, 2.0) == [Do.GIVE_BACK, Do.RETURN]
    assert life.due == float("inf")


def test_a_driver_that_has_a_slot_already_need_not_ask() -> None:
    assert Life()(SLOT) == [Do.SEND]


def test_a_call_without_limits_needs_no_tick() -> None:
    for life in (Life().asked(), Life().sending(), Life().running()):
        assert life.due == float("inf")


@pytest.mark.parametrize("outcome", [OK, ERROR, STOPPED], ids=["value", "error", "cancelled by somebody else"])
def test_every_outcome_goes_to_the_driver(outcome: Frame) -> None:
    assert Life().running()(outcome) == [Do.GIVE_BACK, Do.RETURN]


def test_output_and_questions_are_passed_on_while_it_runs() -> None:
    life = Life().running()
    assert life(OUTPUT) == [Do.SHOW]
    assert life(frame(Kind.INPUT)) == [Do.ANSWER]
    assert life(frame(Kind.WANT)) == [Do.GIVE]
    assert life(OK) == [Do.GIVE_BACK, Do.RETURN]


class Closure:
    """The definitions of a function: only what the machine asks of them."""

    def beyond(self, has: object) -> object:
        return ["missing", has]


def test_missing_definitions_are_sent() -> None:
    life = Life().running(7, [Closure()])
    [reply] = life(frame(Kind.NEED, body=pickle.dumps({"m": None}), call=7))
    assert isinstance(reply, Reply)
    reader = FrameReader(None)
    data = b"".join(reply.pieces)
    reader.get_buffer()[: len(data)] = data
    reader.buffer_updated(len(data))
    sent = reader.next_frame()
    assert sent is not None
    assert (sent.kind, sent.call) == (Kind.DEFINE, 7)
    assert pickle.loads(sent.body) == [["missing", {"m": None}]]


def test_definitions_that_cannot_be_sent_end_the_call_and_stop_it_there() -> None:
    class Refusing:
        def beyond(self, has: object) -> object:
            raise ValueError("a lock")

    life = Life(retries=5).running(1, [Refusing()])
    commands = life(frame(Kind.NEED, body=pickle.dumps({})))
    assert without_error(commands) == [Do.CANCEL]
    assert str(error_of(commands)) == "a lock"


def test_frames_of_other_calls_are_nothing_to_it() -> None:
    life = Life().running(5)
    for kind in (Kind.OUTCOME, Kind.OUTPUT, Kind.NEED, Kind.INPUT, Kind.WANT, Kind.INTERRUPTED):
        assert life(frame(kind, call=4)) == []
    assert life(frame(Kind.WITHDRAWN, 2, call=3)) == []  # 3 and 4
    assert not life.call.has_answered
    assert life.state is State.RUNNING


def test_what_comes_after_its_end_is_nothing_to_it() -> None:
    life = Life().running()
    life(OK)
    for event in (OK, OUTPUT, WITHDRAWN, Broken(), Sent(2), Refused(DIED), Explained(DIED), TICK):
        assert life(event) == []


# --- a slot


def test_a_refusal_is_raised() -> None:
    error = errors.PoolStopped("gpu")
    assert error_of(Life(retries=3).asked()(Refused(error))) is error


def test_a_slot_that_crosses_the_withdrawal_is_given_back() -> None:
    life = Life().asked()
    assert life(CANCELLED) == [Do.WITHDRAW]
    assert life(SLOT) == [Do.GIVE_BACK]
    assert life.call.is_over


def test_a_refusal_that_crosses_the_withdrawal_is_nothing() -> None:
    life = Life().asked()
    life(CANCELLED)
    assert life(Refused(errors.PoolStopped("gpu"))) == []


def test_a_broker_that_died_is_asked_again() -> None:
    life = Life().asked()
    assert life(Refused(errors.BrokerGone())) == []
    assert life.state is State.PAUSED
    assert life(TICK, life.due) == [Do.ASK]
    assert life(SLOT) == [Do.SEND]


def test_a_broker_that_was_stopped_is_not_asked_again() -> None:
    gone = errors.BrokerGone(cause="`flyte-jupyter stop`")
    assert error_of(Life().asked()(Refused(gone))) is gone


def test_a_broker_that_dies_again_and_again_is_named() -> None:
    life, gone = Life().asked(), errors.BrokerGone()
    for _ in range(REQUEUES):
        assert life(Refused(gone)) == []
        assert life(TICK, life.due) == [Do.ASK]
    assert error_of(life(Refused(gone))) is gone


def test_what_cannot_be_encoded_leaves_the_line() -> None:
    error = errors.ArgumentNotSerializable("x", "lock", None, "no")
    assert without_error(Life().asked()(Failed(error))) == [Do.WITHDRAW]


def test_what_cannot_be_encoded_for_its_slot_lets_the_slot_go() -> None:
    assert without_error(Life().sending()(Failed(ValueError("lock")))) == [Do.DROP]


# --- a connection that ends


def test_what_was_left_unread_is_sent_elsewhere() -> None:
    life = Life().running()
    assert life(Broken(unread=True), 1.0) == [Do.DROP]
    assert life.due == pytest.approx(1.001)
    assert life(TICK, 1.001) == [Do.ASK]


def test_half_a_call_is_sent_elsewhere() -> None:
    life = Life().sending()
    assert life(Broken()) == [Do.DROP]
    assert life.state is State.PAUSED


def test_what_was_read_is_never_sent_twice() -> None:
    life = Life().running()
    assert life(Broken()) == [Do.EXPLAIN]
    commands = life(Explained(DIED))
    assert without_error(commands) == [Do.DROP]
    assert error_of(commands) is DIED


@pytest.mark.parametrize("said", [OUTPUT, frame(Kind.INPUT), frame(Kind.WANT), RAISED])
def test_what_the_replica_has_answered_to_had_begun_although_bytes_were_left_unread(said: Frame) -> None:
    life = Life().running()
    life(said)
    assert life.call.has_answered
    assert life(Broken(unread=True)) == [Do.EXPLAIN]


def test_a_call_that_waits_for_its_definitions_has_not_begun() -> None:
    life = Life().running(1, [])
    life(frame(Kind.NEED, body=pickle.dumps({})))
    assert life(Broken(unread=True)) == [Do.DROP]
    assert life.state is State.PAUSED


def test_an_answer_to_an_earlier_attempt_says_nothing_of_this_one() -> None:
    life = Life(retries=1).running()
    life(OUTPUT)
    life(Broken())
    life(Explained(DIED))
    assert life(TICK, life.due) == [Do.ASK]
    assert life(SLOT) == [Do.SEND]
    assert not life.call.has_answered
    life(Sent(1))
    assert life(Broken(unread=True)) == [Do.DROP]


def test_the_waits_before_it_is_sent_elsewhere_grow_to_half_a_second() -> None:
    life, waits = Life().asked(), []
    for _ in range(REQUEUES):
        life(SLOT)
        life(Sent(1))
        assert life(Broken(unread=True)) == [Do.DROP]
        waits.append(life.due - life.now)
        assert life(TICK, life.due) == [Do.ASK]
    assert waits == pytest.approx([0.001 * 2**n for n in range(10)])
    life(SLOT)
    commands = life(Broken(unread=True))
    assert without_error(commands) == [Do.DROP]
    assert isinstance(error_of(commands), errors.ReplicaDied)


def test_being_sent_elsewhere_uses_up_no_retry() -> None:
    life = Life(retries=1).running()
    life(Broken(unread=True))
    life(TICK, life.due)
    assert life.call.attempt == 0


def test_calls_that_were_taken_back_go_first() -> None:
    life = Life().running(4)
    assert life(frame(Kind.WITHDRAWN, 3, call=2)) == [Do.ASK_FIRST]  # 2, 3 and 4
    assert life(SLOT) == [Do.SEND]


@pytest.mark.parametrize(("said", "commands"), [(WITHDRAWN, [Do.ASK_FIRST]), (STOPPED, [Do.GIVE_BACK, Do.RETURN])])
def test_a_replica_may_speak_of_a_call_before_all_of_it_is_written(said: Frame, commands: list[Command]) -> None:
    life = Life().sending()
    assert life(Sending(1)) == []
    assert life(said) == commands


def test_a_slot_that_comes_after_the_time_for_it_is_not_used() -> None:
    life = Life(max_queued=1.0, retries=1).asked()
    assert life(TICK, 1.0) == [Do.WITHDRAW]
    assert life.state is State.PAUSED
    assert life(SLOT) == [Do.GIVE_BACK]


# --- behind another call


def test_a_cancelled_call_behind_another_one_does_not_end_their_replica() -> None:
    life = Life().running()
    assert life(Cancelled(behind=True), 1.0) == [Do.CANCEL]
    assert life.due == float("inf")


def test_its_grace_begins_when_its_turn_comes() -> None:
    life = Life().running()
    life(Cancelled(behind=True), 1.0)
    assert life(TURN, 9.0) == []
    assert life.due == 9.0 + GRACE_S
    assert life(TICK, life.due) == [Revoke("gpu.embed ignored its cancellation for 5 s"), Do.EXPLAIN]


def test_a_turn_is_nothing_to_a_call_that_is_not_cancelled() -> None:
    life = Life().running()
    assert life(TURN) == []
    assert life.due == float("inf")


# --- retries


def test_an_error_is_raised_without_retries() -> None:
    life, error = Life().running(), ValueError("no")
    life(ERROR)
    assert error_of(life(Failed(error))) is error
    assert life.call.is_over


def test_retries_are_counted_and_wait_as_asked() -> None:
    life = Life(retries=2, backoff=lambda attempt: 1.0 + attempt).running()
    error = ValueError("no")
    life(ERROR, 10.0)
    assert life(Failed(error), 10.0) == []
    assert (life.due, life.call.attempt) == (11.0, 1)
    assert life(TICK, 10.9) == []
    assert life(TICK, 11.0) == [Do.ASK]
    life(SLOT)
    life(Sent(2))
    life(frame(Kind.OUTCOME, Status.ERROR, call=2))
    assert life(Failed(error)) == []
    assert (life.due, life.call.attempt) == (13.0, 2)
    life(TICK, 13.0)
    life(SLOT)
    life(Sent(3))
    life(frame(Kind.OUTCOME, Status.ERROR, call=3))
    assert error_of(life(Failed(error))) is error


FINAL = [
    errors.TaskCancelled("gpu.embed"),
    errors.PoolStopped("gpu"),
    errors.DeadlineExceededError("late"),
    errors.NonRecoverableError("no"),
    errors.StarvationError("a", "b", "gpu", max_replicas=1, concurrency=1),
]


@pytest.mark.parametrize("error", FINAL, ids=lambda error: type(error).__name__)
def test_some_errors_are_never_repeated(error: Exception) -> None:
    assert not may_repeat(error)
    life = Life(retries=5).running()
    life(ERROR)
    assert error_of(life(Failed(error))) is error


@pytest.mark.parametrize("error", [ValueError("no"), DIED, errors.MaxRuntimeExceededError("slow"), OSError(5, "io")])
def test_others_are(error: Exception) -> None:
    assert may_repeat(error)


def test_a_cell_is_repeated_only_for_the_reasons_that_it_names() -> None:
    life = Life(retries=5, repeats=lambda error: isinstance(error, MemoryError)).running()
    life(ERROR)
    assert life(Failed(MemoryError())) == []
    life(TICK, life.due)
    life(SLOT)
    life(Sent(2))
    life(frame(Kind.OUTCOME, Status.ERROR, call=2))
    assert isinstance(error_of(life(Failed(ValueError()))), ValueError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2), GeneratorExit()])
def test_what_is_no_plain_error_is_not_repeated(error: BaseException) -> None:
    life = Life(retries=5).running()
    life(ERROR)
    assert error_of(life(Failed(error))) is error


# --- time limits


def test_a_slot_that_does_not_come_in_time_is_not_waited_for() -> None:
    life = Life(max_queued=3.0).asked()
    assert life.due == 3.0
    commands = life(TICK, 3.0)
    assert without_error(commands) == [Do.WITHDRAW]
    assert isinstance(error_of(commands), errors.MaxQueuedTimeExceededError)
    assert "waited 3 s" in str(error_of(commands))


def test_the_limit_of_the_wait_ends_with_the_wait() -> None:
    life = Life(max_queued=3.0).asked()
    life(SLOT, 2.9)
    assert life.due == float("inf")


def test_a_call_that_runs_too_long_is_stopped_and_its_slot_is_free() -> None:
    life = Life(max_runtime=10.0).running()
    assert life.due == 10.0
    assert life(TICK, 10.0) == [Do.CANCEL]
    commands = life(STOPPED, 10.2)
    assert without_error(commands) == [Do.GIVE_BACK]
    error = error_of(commands)
    assert isinstance(error, errors.MaxRuntimeExceededError)
    assert "limit of 10 s" in str(error)
    assert error.__notes__ == ["gpu[0] is ready again; what it has loaded was kept."]


@pytest.mark.parametrize("outcome", [OK, ERROR])
def test_an_outcome_after_the_limit_is_too_late(outcome: Frame) -> None:
    life = Life(max_runtime=10.0).running()
    life(TICK, 10.0)
    assert isinstance(error_of(life(outcome, 10.1)), errors.MaxRuntimeExceededError)


@pytest.mark.parametrize("raised", [False, True])
def test_a_replica_that_ignores_the_limit_is_ended(raised: bool) -> None:
    life = Life(max_runtime=10.0).running()
    life(TICK, 10.0)
    if raised:
        life(RAISED, 10.1)
    assert life.due == 10.0 + GRACE_S
    assert life(TICK, 15.0) == [Revoke("gpu.embed ignored its timeout for 5 s"), Do.EXPLAIN]
    commands = life(Explained(DIED), 15.1)
    assert without_error(commands) == [Do.DROP]
    assert isinstance(error_of(commands), errors.MaxRuntimeExceededError)
    assert "was ended" in error_of(commands).__notes__[0]


def test_the_limit_of_a_run_is_retried_and_starts_anew() -> None:
    life = Life(max_runtime=10.0, retries=1).running()
    life(TICK, 10.0)
    assert life(STOPPED, 10.5) == [Do.GIVE_BACK]
    assert life(TICK, 10.5) == [Do.ASK]
    life(SLOT, 20.0)
    assert life.due == 30.0


def test_the_deadline_is_shared_by_all_attempts() -> None:
    life = Life(deadline=8.0, retries=9, backoff=lambda _: 5.0).running()
    life(ERROR, 2.0)
    assert life(Failed(ValueError())) == []
    assert life(TICK, 7.0) == [Do.ASK]
    assert life.due == 8.0
    commands = life(TICK, 8.0)
    assert without_error(commands) == [Do.WITHDRAW]
    assert isinstance(error_of(commands), errors.DeadlineExceededError)


def test_the_deadline_cuts_a_pause_short() -> None:
    life = Life(deadline=8.0, retries=9, backoff=lambda _: 60.0).running()
    life(ERROR, 2.0)
    life(Failed(ValueError()))
    assert life.due == 8.0
    assert isinstance(error_of(life(TICK, 8.0)), errors.DeadlineExceededError)


def test_an_interrupt_by_somebody_else_takes_no_limit_away() -> None:
    life = Life(max_runtime=10.0).running()
    assert life(RAISED, 1.0) == []
    assert life.due == 10.0
    assert life(TICK, 10.0) == [Do.CANCEL]
    assert life.due == 10.0 + GRACE_S


def test_half_a_call_at_its_limit_is_dropped() -> None:
    life = Life(max_runtime=1.0).sending()
    commands = life(TICK, 1.0)
    assert without_error(commands) == [Do.DROP]
    assert isinstance(error_of(commands), errors.MaxRuntimeExceededError)


def test_a_question_that_must_not_disturb_is_given_up_at_its_limit() -> None:
    life = Life(deadline=0.2, on_interrupt="leave").running()
    commands = life(TICK, 0.2)
    assert without_error(commands) == [Do.DROP]
    assert isinstance(error_of(commands), errors.DeadlineExceededError)


def test_a_tick_before_its_time_is_nothing() -> None:
    for life in (Life(max_queued=3.0).asked(), Life(max_runtime=3.0).running()):
        assert life(TICK, 2.9) == []


# --- Ctrl-C


def test_an_interrupt_before_there_is_a_slot_leaves_the_line() -> None:
    commands = Life().asked()(INTERRUPTED)
    assert without_error(commands) == [Do.WITHDRAW]
    assert isinstance(error_of(commands), KeyboardInterrupt)


def test_an_interrupt_in_the_middle_of_sending_closes_the_connection() -> None:
    commands = Life().sending()(INTERRUPTED)
    assert without_error(commands) == [Do.DROP]
    assert isinstance(error_of(commands), KeyboardInterrupt)


def test_an_interrupt_during_a_pause_is_raised_at_once() -> None:
    life = Life(retries=1, backoff=lambda _: 60.0).running()
    life(ERROR)
    life(Failed(ValueError()))
    assert isinstance(error_of(life(INTERRUPTED)), KeyboardInterrupt)


def test_an_interrupt_that_ends_the_call_is_raised_and_the_slot_is_free() -> None:
    commands = Life().stopping()(STOPPED)
    assert without_error(commands) == [
        Do.GIVE_BACK,
        Note("Interrupted on gpu[0]; what it has loaded is still there."),
    ]
    assert isinstance(error_of(commands), KeyboardInterrupt)


@pytest.mark.parametrize("outcome", [OK, ERROR], ids=["value", "error"])
def test_code_that_deals_with_the_interrupt_decides_what_comes_of_it(outcome: Frame) -> None:
    life = Life().stopping()
    assert life(RAISED) == []
    assert life(OUTPUT) == [Do.SHOW]
    assert life(outcome, 100.0) == [Do.GIVE_BACK, Do.RETURN]


def test_what_an_interrupted_call_raises_is_not_repeated() -> None:
    life, error = Life(retries=5).stopping(), ValueError("not saved")
    life(ERROR)
    assert error_of(life(Failed(error))) is error


def test_code_that_cleans_up_is_never_ended_by_the_first_interrupt() -> None:
    life = Life().stopping()
    life(RAISED, 0.1)
    assert life.due == NOTE_S
    [note] = life(TICK, 2.0)
    assert isinstance(note, Note)
    assert "is still running" in note.text
    assert "Stop again to end the replica" in note.text
    assert life.due == float("inf")


def test_a_replica_that_does_not_raise_the_interrupt_is_ended() -> None:
    life = Life().stopping()
    [note] = life(TICK, 2.0)
    assert isinstance(note, Note)
    assert "has not reacted" in note.text
    assert "ended in 3 s" in note.text
    assert life.due == GRACE_S
    commands = life(TICK, 5.0)
    assert commands[0] == Revoke("gpu.embed ignored its interrupt for 5 s")
    assert isinstance(commands[1], Note)
    assert commands[2] is Do.DROP
    assert isinstance(error_of(commands), KeyboardInterrupt)


def test_an_interrupt_that_is_raised_late_saves_the_replica() -> None:
    life = Life().stopping()
    life(TICK, 2.0)
    life(RAISED, 4.9)
    assert life(TICK, 5.0) == []
    assert life(OK, 60.0) == [Do.GIVE_BACK, Do.RETURN]


@pytest.mark.parametrize("raised", [False, True])
def test_a_second_interrupt_ends_the_replica(raised: bool) -> None:
    life = Life().stopping()
    if raised:
        life(RAISED)
    commands = life(INTERRUPTED, 1.0)
    assert commands[0] == Revoke("gpu.embed was interrupted twice")
    assert commands[2] is Do.DROP
    assert isinstance(error_of(commands), KeyboardInterrupt)


@pytest.mark.parametrize(
    ("how", "expected"), [("int", [Do.CANCEL]), ("term", [Do.CANCEL, Do.REPLACE]), ("leave", [Do.CANCEL])]
)
def test_what_an_interrupt_does_is_stated(how: OnInterrupt, expected: list[Command]) -> None:
    assert Life(on_interrupt=how).running()(INTERRUPTED) == expected


def test_an_interrupt_may_end_the_replica_at_once() -> None:
    commands = Life(on_interrupt="kill").running()(INTERRUPTED)
    assert commands[0] == Revoke("gpu.embed was interrupted")
    assert isinstance(error_of(commands), KeyboardInterrupt)


def test_after_term_a_fresh_replica_is_announced() -> None:
    life = Life(on_interrupt="term").running()
    life(INTERRUPTED)
    commands = life(STOPPED)
    assert commands[1] == Note("Interrupted on gpu[0]; a fresh replica takes its place.")


def test_a_call_that_had_not_begun_when_it_was_interrupted_is_given_back() -> None:
    commands = Life().stopping()(WITHDRAWN)
    assert commands[0] is Do.GIVE_BACK
    assert isinstance(error_of(commands), KeyboardInterrupt)


def test_a_replica_that_dies_of_an_interrupt_is_let_go() -> None:
    commands = Life().stopping()(Broken())
    assert without_error(commands) == [Do.DROP]
    assert isinstance(error_of(commands), KeyboardInterrupt)


def test_an_interrupt_while_the_reason_of_a_death_is_found_out_is_raised() -> None:
    life = Life().running()
    life(Broken())
    commands = life(INTERRUPTED)
    assert without_error(commands) == [Do.DROP]
    assert isinstance(error_of(commands), KeyboardInterrupt)


def test_an_interrupt_while_a_late_call_is_stopped_ends_its_replica() -> None:
    life = Life(max_runtime=1.0, retries=5).running()
    life(TICK, 1.0)
    commands = life(INTERRUPTED, 1.5)
    assert isinstance(commands[0], Revoke)
    assert isinstance(error_of(commands), KeyboardInterrupt)


def test_an_interrupt_that_comes_with_the_outcome_is_raised() -> None:
    life = Life().running()
    life(OK)
    assert isinstance(error_of(life(INTERRUPTED)), KeyboardInterrupt)


# --- nobody waits any more


def test_a_cancelled_call_is_stopped_and_its_outcome_frees_the_slot() -> None:
    life = Life().running()
    assert life(CANCELLED) == [Do.CANCEL]
    assert life.call.is_abandoned
    assert life(OUTPUT) == []
    assert life(OK) == [Do.GIVE_BACK]
    assert life.call.is_over


def test_a_cancelled_call_that_had_not_begun_frees_the_slot() -> None:
    life = Life().running()
    life(CANCELLED)
    assert life(WITHDRAWN) == [Do.GIVE_BACK]


def test_a_replica_that_ignores_a_cancel_is_ended() -> None:
    life = Life().running()
    life(CANCELLED)
    assert life.due == GRACE_S
    assert life(TICK, 5.0) == [Revoke("gpu.embed ignored its cancellation for 5 s"), Do.EXPLAIN]
    assert life(Explained(DIED)) == [Do.DROP]
    assert life.call.is_over


def test_code_that_cleans_up_after_a_cancel_is_left_alone() -> None:
    life = Life().running()
    life(CANCELLED)
    life(RAISED, 1.0)
    assert life.due == float("inf")
    assert life(OK, 600.0) == [Do.GIVE_BACK]


def test_a_cancel_during_a_pause_ends_it() -> None:
    life = Life().running()
    life(Broken(unread=True))
    assert life(CANCELLED) == []
    assert life(TICK, 100.0) == []
    assert life.call.is_over


def test_a_cancel_after_an_interrupt_is_not_told_twice() -> None:
    life = Life().stopping()
    assert life(CANCELLED) == []
    assert life(OK) == [Do.GIVE_BACK]


def test_a_cancel_while_the_reason_of_a_death_is_found_out_ends_there() -> None:
    life = Life(retries=5).running()
    life(Broken())
    assert life(CANCELLED) == []
    assert life(Explained(DIED)) == [Do.DROP]
    assert life.call.is_over


def test_a_cancelled_call_whose_replica_dies_is_over() -> None:
    life = Life(retries=5).running()
    life(CANCELLED)
    assert life(Broken()) == [Do.DROP]
    assert life.call.is_over


@pytest.mark.parametrize("events", [[], [OUTPUT], [RAISED]])
def test_output_that_cannot_be_shown_stops_the_call(events: list[Frame]) -> None:
    life = Life(retries=5).running()
    for event in events:
        life(event)
    error = UnicodeEncodeError("ascii", "é", 0, 1, "no")
    commands = life(Failed(error))
    assert without_error(commands) == [Do.CANCEL]
    assert error_of(commands) is error
    assert life(STOPPED) == [Do.GIVE_BACK]


def test_a_request_says_whether_it_has_limits() -> None:
    assert not Request("a", "p").limited
    assert all(Request("a", "p", **{name: 1.0}).limited for name in ("max_runtime", "max_queued", "deadline"))
