"""The client's end of the broker's protocol: instants are literals, and bytes come cut anywhere."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyte_jupyter import errors
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.dialogue import (
    ANSWER_S,
    SLOW_S,
    Answered,
    Dialogue,
    Ended,
    Greeted,
    Noticed,
    Reply,
    Send,
    Unanswered,
    Waiting,
)
from flyte_jupyter.core.scheduler import Scheduler

EMPTY = Scheduler().snapshot()
HELLO = p.Hello(version="1.2", label="a.ipynb", kind="notebook", pid=7)
WELCOME = p.Welcome(version="1.2", pid=4711)
GRANTED = p.Granted(lease="l", replica="r", name="gpu[0]", address="/task.sock")
NEW_NOTICE = b'{"type": "weather", "sky": "clear"}\n'


FEW = settings(max_examples=30, deadline=None)


def snapped(question: int | None = None) -> p.Snapped:
    return p.Snapped(epoch_offset=0, log_dir="", snapshot=EMPTY, question=question)


def told(question: int | None = None) -> p.ToldTimeline:
    return p.ToldTimeline(pool="0123", timeline=None, question=question)


def lines(*messages: p.Message) -> bytes:
    return b"".join(map(p.to_line, messages))


def connected(**options: Any) -> Dialogue:
    """A dialogue that greets the broker since 0."""
    dialogue = Dialogue(HELLO, **options)
    dialogue.connect(now=0, pid=4711)
    return dialogue


def opened(**options: Any) -> Dialogue:
    """A dialogue whose broker has said welcome at 0."""
    dialogue = connected(**options)
    dialogue.receive(lines(WELCOME), now=0)
    return dialogue


def asked(dialogue: Dialogue, question: p.Watch | p.AskTimeline | None = None, *, now: float = 0) -> int:
    return dialogue.ask(question or p.Watch(once=True), now=now)[0]


def problem_of(reply: Reply) -> errors.BaseRuntimeError:
    assert isinstance(reply, Unanswered | Ended), reply
    return reply.error


def whole(error: BaseException) -> str:
    return errors.whole_text(error)


# --- greeting


def test_the_first_line_is_hello() -> None:
    dialogue = Dialogue(HELLO)
    assert dialogue.connect(now=0) == [Send(p.to_line(HELLO))]
    assert dialogue.state == "greeting"


def test_a_welcome_opens_the_dialogue_and_says_who_answers() -> None:
    dialogue = connected()
    assert dialogue.receive(lines(WELCOME), now=1) == [Greeted(WELCOME)]
    assert (dialogue.state, dialogue.pid, dialogue.version) == ("open", 4711, "1.2")
    assert dialogue.next_deadline() == math.inf


def test_another_version_ends_the_dialogue_and_is_named() -> None:
    dialogue = connected()
    rejected = p.Rejected(version="1.0", protocol=3, pid=4711)
    error = problem_of(*dialogue.receive(lines(rejected), now=0))
    assert isinstance(error, errors.VersionMismatch)
    assert str(error).endswith("different flyte_jupyter versions (notebook 1.2, broker 1.0).")
    assert dialogue.state == "over"


def test_two_states_of_one_version_are_told_apart_by_their_protocols() -> None:
    rejected = p.Rejected(version="1.2", protocol=3, pid=4711)
    error = problem_of(*connected().receive(lines(rejected), now=0))
    assert f"(notebook 1.2 protocol {p.PROTOCOL}, broker 1.2 protocol 3)" in str(error)


def test_a_newer_brokers_rejection_is_read_whatever_else_it_says() -> None:
    line = b'{"type": "rejected", "version": "3.0", "since": "2030"}\n'
    error = problem_of(*connected().receive(line, now=0))
    assert isinstance(error, errors.VersionMismatch)
    assert error.other == "3.0"


@pytest.mark.parametrize("kind", ["server", "cli", "script", "terminal", "replica", "notebook"])
def test_a_mismatch_says_in_which_environment_to_act(kind: str) -> None:
    dialogue = Dialogue(HELLO.model_copy(update={"kind": kind}))
    dialogue.connect(now=0)
    text = whole(problem_of(*dialogue.receive(b'{"type": "rejected", "version": "3.0"}\n', now=0)))
    this = {"server": "Jupyter server", "cli": "command", "terminal": "session", "replica": "task"}.get(kind, kind)
    assert f"This {this} and the broker use different" in text
    assert ("restart Jupyter" in text) == (kind == "server")
    assert "`flyte-jupyter stop`" in text


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1\n", b"\xff\n", b"null\n", b"\n", NEW_NOTICE, lines(snapped())])
def test_any_other_answer_to_the_greeting_is_an_error(line: bytes) -> None:
    dialogue = connected()
    assert isinstance(problem_of(*dialogue.receive(line, now=0)), errors.ProtocolError)
    assert dialogue.state == "over"


def test_a_broker_that_does_not_greet_in_time_is_silent() -> None:
    dialogue = connected()
    assert dialogue.next_deadline() == SLOW_S == 3
    assert dialogue.tick(now=2.9) == []
    assert dialogue.tick(now=3) == [
        Waiting("Waiting for the broker (pid 4711), which does not answer. Ctrl-C ends the wait, not the broker.")
    ]
    assert dialogue.next_deadline() == ANSWER_S == 10
    assert dialogue.tick(now=9.9) == []
    error = problem_of(*dialogue.tick(now=10))
    assert str(error) == "FJ107 The broker (pid 4711) does not answer."
    assert "silent for 10 s" in whole(error)
    assert "`flyte-jupyter stop`" in whole(error)
    assert (dialogue.state, dialogue.next_deadline()) == ("over", math.inf)


def test_a_broker_that_hangs_up_instead_of_greeting_is_gone_and_not_silent() -> None:
    dialogue = connected()
    dialogue.disconnect()
    assert dialogue.next_deadline() == math.inf
    assert isinstance(problem_of(*dialogue.end()), errors.BrokerGone)


# --- questions and answers


def test_a_question_goes_out_with_a_number_of_its_own() -> None:
    dialogue = opened()
    first, line = dialogue.ask(p.Watch(once=True, usage=True), now=0)
    second, other = dialogue.ask(p.AskTimeline(pool="0123", since="m"), now=0)
    assert p.to_broker.validate_json(line) == p.Watch(once=True, usage=True, question=first)
    assert p.to_broker.validate_json(other) == p.AskTimeline(pool="0123", since="m", question=second)
    assert first != second


def test_an_answer_goes_to_its_question() -> None:
    dialogue = opened()
    number = asked(dialogue)
    assert dialogue.receive(lines(snapped(number)), now=1) == [Answered(number, snapped(number))]
    assert dialogue.next_deadline() == math.inf


@FEW
@given(st.permutations(range(6)))
def test_answers_may_come_in_any_order(order: list[int]) -> None:
    dialogue = opened()
    numbers = [asked(dialogue, p.AskTimeline(pool="0123") if each % 2 else None) for each in range(6)]
    answers = [told(number) if each % 2 else snapped(number) for each, number in enumerate(numbers)]
    replies = dialogue.receive(lines(*(answers[each] for each in order)), now=1)
    assert replies == [Answered(numbers[each], answers[each]) for each in order]


def test_a_message_that_answers_no_question_is_a_notice() -> None:
    dialogue = opened()
    asked(dialogue)
    notices = [GRANTED, snapped(), p.Recalled(lease="l")]
    assert dialogue.receive(lines(*notices), now=1) == [Noticed(each) for each in notices]


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_that_nobody_waits_for_is_dropped(late: bool) -> None:
    dialogue = opened()
    number = asked(dialogue)
    if late:
        dialogue.tick(now=10)
    else:
        dialogue.withdraw(number)
    assert dialogue.next_deadline() == math.inf
    assert dialogue.receive(lines(snapped(number), GRANTED), now=11) == [Noticed(GRANTED)]


def test_an_answer_of_another_kind_is_an_error_of_that_question_alone() -> None:
    dialogue = opened()
    wrong, right = asked(dialogue), asked(dialogue)
    refused, answered = dialogue.receive(lines(told(wrong), snapped(right)), now=1)
    assert isinstance(problem_of(refused), errors.ProtocolError)
    assert answered == Answered(right, snapped(right))


@pytest.mark.parametrize("line", ['{"type": "forecast", "question": %d}', '{"type": "snapshot", "question": %d}'])
def test_an_answer_of_an_unknown_kind_is_an_error_and_no_wait(line: str) -> None:
    dialogue = opened()
    number = asked(dialogue)
    (refused,) = dialogue.receive(f"{line % number}\n".encode(), now=1)
    error = problem_of(refused)
    assert isinstance(error, errors.ProtocolError)
    assert "the broker's answer is of an unknown kind" in str(error)
    assert dialogue.state == "open"


@pytest.mark.parametrize(
    "line", [NEW_NOTICE, b"\xff\n", b"[]\n", b"\n", b'{"type": "goodbye"}\n', b'{"question": "1"}\n']
)
def test_an_unknown_notice_is_ignored_and_all_else_goes_on(line: bytes) -> None:
    dialogue = opened()
    number = asked(dialogue)
    replies = dialogue.receive(line + lines(GRANTED, snapped(number)), now=1)
    assert replies == [Noticed(GRANTED), Answered(number, snapped(number))]


def test_a_question_that_was_not_understood_says_so() -> None:
    dialogue = opened()
    first, second = asked(dialogue), asked(dialogue)
    (refused,) = dialogue.receive(lines(p.Failed(why="no such field.", question=second)), now=1)
    assert "the broker did not understand a message (no such field)" in str(problem_of(refused))
    assert dialogue.receive(lines(snapped(first)), now=1) == [Answered(first, snapped(first))]


def test_an_order_that_was_not_understood_fails_the_next_question() -> None:
    dialogue = opened()
    dialogue.tell(p.Keep(pool="0123", seconds=1))
    number = asked(dialogue)
    (refused,) = dialogue.receive(lines(p.Failed(why="?")), now=1)
    assert isinstance(refused, Unanswered)
    assert refused.number == number


def test_an_order_that_was_not_understood_is_reported_once_also_if_nobody_waits() -> None:
    dialogue = opened()
    dialogue.tell(p.Keep(pool="0123", seconds=1))
    assert dialogue.receive(lines(p.Failed(why="?")), now=1) == []
    with pytest.raises(errors.ProtocolError, match="did not understand"):
        asked(dialogue)
    asked(dialogue)


# --- patience


def test_a_question_is_waited_for_so_long_and_its_wait_is_explained_once() -> None:
    dialogue = opened()
    number = asked(dialogue, now=5)
    assert dialogue.next_deadline() == 8
    assert [type(reply) for reply in dialogue.tick(now=8)] == [Waiting]
    assert dialogue.tick(now=14.9) == []
    assert dialogue.next_deadline() == 15
    (refused,) = dialogue.tick(now=15)
    assert isinstance(refused, Unanswered)
    assert (refused.number, str(refused.error)) == (number, "FJ107 The broker (pid 4711) does not answer.")


def test_one_silent_answer_does_not_end_the_dialogue() -> None:
    dialogue = opened()
    asked(dialogue)
    dialogue.tick(now=10)
    later = asked(dialogue, now=11)
    assert dialogue.receive(lines(snapped(later)), now=12) == [Answered(later, snapped(later))]


def test_each_question_has_its_own_patience() -> None:
    dialogue = opened(patience_s=2)
    long, _ = dialogue.ask(p.Watch(once=True), now=0, patience_s=2.5)
    short = asked(dialogue, now=0)
    assert dialogue.next_deadline() == 2
    assert [reply.number for reply in dialogue.tick(now=2) if isinstance(reply, Unanswered)] == [short]
    assert dialogue.next_deadline() == 2.5
    assert [reply.number for reply in dialogue.tick(now=2.5) if isinstance(reply, Unanswered)] == [long]


def test_a_tick_at_the_deadline_moves_the_deadline() -> None:
    dialogue = connected()
    for instant in (0, 1, 2.5):
        asked(dialogue, now=instant)
    passed = []
    while (due := dialogue.next_deadline()) < math.inf:
        passed.append(due)
        assert dialogue.tick(now=due) != []
    assert passed == sorted(set(passed))


def test_an_answer_beside_a_deadline_that_has_passed_is_taken() -> None:
    dialogue = opened()
    number = asked(dialogue)
    assert dialogue.receive(lines(snapped(number)), now=60) == [Answered(number, snapped(number))]
    assert dialogue.tick(now=60) == []


# --- gone, and back


def test_questions_fail_with_the_reason_when_the_broker_has_ended() -> None:
    dialogue = opened()
    numbers = [asked(dialogue), asked(dialogue)]
    dialogue.receive(lines(p.Goodbye(why="stopped by cli")), now=1)
    dialogue.disconnect()
    *refused, ended = dialogue.end()
    assert [reply.number for reply in refused if isinstance(reply, Unanswered)] == numbers
    problems = [problem_of(reply) for reply in (*refused, ended)]
    assert all("It stopped (stopped by cli)." in whole(error) for error in problems)
    assert len(set(map(id, problems))) == 3  # each is raised on its own, and has its own traceback
    assert dialogue.end() == []


@pytest.mark.parametrize("state", ["away", "greeting", "over"])
def test_an_order_needs_a_broker_that_listens(state: str) -> None:
    dialogue = connected()
    if state != "greeting":
        dialogue.disconnect()
    if state == "over":
        dialogue.end()
        with pytest.raises(errors.BrokerGone):
            asked(dialogue)
    with pytest.raises(errors.BrokerGone):
        dialogue.tell(p.Release(lease="l"))


def test_questions_stay_while_the_broker_is_away_and_the_next_one_is_asked() -> None:
    dialogue = opened()
    first, second = asked(dialogue), asked(dialogue, p.AskTimeline(pool="0123"))
    dialogue.receive(lines(snapped(first)), now=1)
    dialogue.disconnect()
    third, line = dialogue.ask(p.Watch(once=True), now=2)
    assert (dialogue.state, line) == ("away", b"")
    assert dialogue.connect(now=4, pid=4712) == [Send(p.to_line(HELLO))]
    again = p.Welcome(version="1.2", pid=4712)
    assert dialogue.receive(lines(again), now=5) == [
        Greeted(again),
        Send(lines(p.AskTimeline(pool="0123", question=second))),
        Send(lines(p.Watch(once=True, question=third))),
    ]
    assert dialogue.receive(lines(snapped(third), told(second)), now=6) == [
        Answered(third, snapped(third)),
        Answered(second, told(second)),
    ]


def test_a_question_is_not_kept_for_ever_while_no_broker_comes() -> None:
    dialogue = opened()
    number = asked(dialogue)
    dialogue.disconnect()
    assert dialogue.tick(now=3) == [Waiting("Waiting for another broker. Ctrl-C ends the wait.")]
    (refused,) = dialogue.tick(now=10)
    assert isinstance(refused, Unanswered)
    assert refused.number == number
    assert isinstance(refused.error, errors.BrokerGone)
    assert dialogue.state == "away"


def test_another_broker_has_its_own_time_to_answer() -> None:
    dialogue = opened()
    asked(dialogue)
    dialogue.disconnect()
    dialogue.connect(now=8)
    dialogue.receive(lines(WELCOME), now=9)
    assert dialogue.next_deadline() == 12
    assert [type(reply) for reply in dialogue.tick(now=12)] == [Waiting]
    assert dialogue.next_deadline() == 19


def test_half_a_line_of_a_broker_that_is_gone_is_forgotten() -> None:
    dialogue = opened()
    dialogue.receive(lines(GRANTED)[:20], now=1)
    dialogue.disconnect()
    assert dialogue.receive(b"more of it\n", now=1) == []
    dialogue.connect(now=2)
    assert dialogue.receive(lines(WELCOME), now=2) == [Greeted(WELCOME)]


def test_another_broker_of_another_version_fails_the_questions() -> None:
    dialogue = opened()
    asked(dialogue)
    dialogue.disconnect()
    dialogue.connect(now=1)
    replies = dialogue.receive(lines(p.Rejected(version="3.0", protocol=9, pid=1), GRANTED), now=1)
    assert [type(reply) for reply in replies] == [Unanswered, Ended]
    assert all(isinstance(problem_of(reply), errors.VersionMismatch) for reply in replies)


def test_a_goodbye_is_not_the_next_brokers() -> None:
    dialogue = opened()
    dialogue.receive(lines(p.Goodbye(why="stopped by cli")), now=1)
    dialogue.disconnect()
    dialogue.connect(now=2)
    assert dialogue.gone().cause is None


# --- bytes


STORY = lines(WELCOME, GRANTED, snapped(1)) + NEW_NOTICE + lines(p.Lost(lease="l", replica="r", name="ü", cause="x"))


def replay(*pieces: bytes) -> list[Reply]:
    dialogue = connected()
    asked(dialogue)
    return [reply for piece in pieces for reply in dialogue.receive(piece, now=1)]


def test_bytes_may_be_cut_at_every_position() -> None:
    expected = replay(STORY)
    assert [type(reply) for reply in expected] == [Greeted, Send, Noticed, Answered, Noticed]
    for place in range(len(STORY) + 1):
        assert replay(STORY[:place], STORY[place:]) == expected
    assert replay(*(STORY[place : place + 1] for place in range(len(STORY)))) == expected


@FEW
@given(st.lists(st.integers(0, len(STORY)), max_size=8))
def test_bytes_may_be_cut_into_any_pieces(places: list[int]) -> None:
    cuts = [0, *sorted(places), len(STORY)]
    assert replay(*(STORY[one:other] for one, other in pairwise(cuts))) == replay(STORY)


def test_a_line_without_an_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p, "MAX_LINE_BYTES", 100)
    dialogue = opened()
    asked(dialogue)
    assert dialogue.receive(b"x" * 100, now=1) == []
    replies = dialogue.receive(b"x", now=1)
    assert [type(reply) for reply in replies] == [Unanswered, Ended]
    assert "a line is longer than 100 bytes" in str(problem_of(replies[0]))
    assert dialogue.receive(b"x" * 100, now=1) == []


@FEW
@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([b"\n", NEW_NOTICE, lines(GRANTED)])), max_size=20))
def test_no_bytes_bring_the_machine_out_of_step(pieces: list[bytes]) -> None:
    dialogue = opened()
    number = asked(dialogue)
    for piece in pieces:
        dialogue.receive(piece, now=1)
    assert Answered(number, snapped(number)) in dialogue.receive(b"\n" + lines(snapped(number)), now=1)


def test_a_number_that_is_no_number_is_no_question() -> None:
    dialogue = opened()
    asked(dialogue)
    for number in (True, 1.0, "1", None, [1], 2):
        assert dialogue.receive(json.dumps({"type": "new", "question": number}).encode() + b"\n", now=1) == []
