"""The idle slot of a session and the calls of the same process, with a connection that only remembers."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from test_leases import FakeConnection

from flyte_jupyter.client.cells.pinned import PinnedGroup
from flyte_jupyter.client.cells.sessions import SessionGroup
from flyte_jupyter.client.lease import Lease
from flyte_jupyter.client.leases import LeaseGroup
from flyte_jupyter.client.lending import BorrowingGroup, borrow
from flyte_jupyter.core import protocol as p

POOL = "0123"


class Play:
    """One session that has its slot, and a group of plain calls in the same pool."""

    def __init__(self) -> None:
        self.connection: Any = FakeConnection()
        self.session = SessionGroup(self.connection, POOL, "s")
        self.plain = BorrowingGroup(self.connection, POOL, None, "local")
        asked = self.session.ask("cell #1")
        self.grant(self.session)
        self.slot = asked.future.result(0)

    def grant(self, group: LeaseGroup, number: int = 0) -> None:
        lease = self.connection.asked[-1]
        group.granted(p.Granted(lease=lease, replica=f"r{number}", name=f"gpu[{number}]", address="/nowhere"))

    def a_moment_later(self) -> None:
        due, self.connection.timers = self.connection.timers, []
        for _, callback in due:
            callback()


@pytest.fixture
def play() -> Play:
    return Play()


def test_a_call_that_gets_nothing_from_the_broker_runs_in_the_idle_slot_of_a_session(play: Play) -> None:
    play.session.give_back(play.slot)
    waiter = play.plain.ask("train")
    request = play.connection.asked[-1]
    assert not waiter.future.done(), "another replica may be free"
    play.a_moment_later()
    assert waiter.future.result(0) is play.slot
    assert play.connection.released == [request]


def test_a_call_that_the_broker_serves_leaves_the_slot_of_a_session_alone(play: Play) -> None:
    play.session.give_back(play.slot)
    waiter = play.plain.ask("train")
    play.grant(play.plain, 1)
    play.a_moment_later()
    assert waiter.future.result(0).name == "gpu[1]"
    assert play.session.take() is play.slot


def test_a_loop_of_calls_borrows_at_once_after_the_first(play: Play) -> None:
    play.session.give_back(play.slot)
    waiter = play.plain.ask("train")
    play.a_moment_later()
    play.plain.give_back(waiter.future.result(0))
    asked = len(play.connection.asked)
    for _ in range(3):
        assert play.plain.take() is play.slot
        play.plain.give_back(play.slot)
    assert len(play.connection.asked) == asked


def test_the_next_cell_of_the_session_comes_before_further_calls(play: Play) -> None:
    play.session.give_back(play.slot)
    calls = [play.plain.ask("train") for _ in range(2)]
    play.a_moment_later()
    cell = play.session.ask("cell #2")
    assert [each.future.done() for each in (*calls, cell)] == [True, False, False]
    play.plain.give_back(play.slot)
    assert cell.future.result(0) is play.slot
    play.session.give_back(play.slot)
    assert calls[1].future.result(0) is play.slot


def test_a_call_that_waits_gets_the_slot_when_the_cell_of_the_session_is_over(play: Play) -> None:
    waiter = play.plain.ask("train")
    play.a_moment_later()
    assert not waiter.future.done()
    play.session.give_back(play.slot)
    assert waiter.future.result(0) is play.slot


def test_calls_of_an_event_loop_hear_that_the_session_waits(play: Play) -> None:
    play.session.give_back(play.slot)
    owner = object()
    assert borrow(play.plain) is play.slot
    assert not play.slot.group.contended(owner)
    play.session.ask("cell #2")
    assert play.slot.group.contended(owner)


def test_a_session_that_lost_its_slot_to_a_call_asks_for_another(play: Play) -> None:
    play.session.give_back(play.slot)
    waiter = play.plain.ask("train")
    play.a_moment_later()
    cell = play.session.ask("cell #2")
    asked = len(play.connection.asked)
    play.plain.drop(waiter.future.result(0))
    assert len(play.connection.asked) == asked + 1
    play.grant(play.session)
    assert isinstance(cell.future.result(0), Lease)


def test_the_broker_hears_which_session_keeps_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[p.Acquire] = []
    monkeypatch.setattr(FakeConnection, "send", lambda _, message: said.append(message))
    connection: Any = FakeConnection()
    SessionGroup(connection, POOL, "s").ask("cell #1")
    BorrowingGroup(connection, POOL, None, "local").ask("train")
    assert [each.session for each in said] == ["s", None]


@pytest.mark.parametrize("lent", [True, False])
def test_a_session_that_ends_gives_its_slot_back_when_a_call_in_it_is_over(
    lent: bool, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[tuple[Lease, str]] = []
    monkeypatch.setattr(Lease, "leave", lambda lease, session: left.append((lease, session)))
    play.session.give_back(play.slot)
    if lent:
        assert borrow(play.plain) is play.slot
    play.session.end("s")
    assert left == ([] if lent else [(play.slot, "s")])
    assert borrow(play.plain) is None
    if lent:
        play.plain.give_back(play.slot)
    assert left == [(play.slot, "s")]
    assert play.connection.released == [play.slot.id]


class Shared(Play):
    """Two sessions that keep one slot, which nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[p.Kept] = []
        send = self.connection.send
        self.connection.send = lambda said: self.told.append(said) if isinstance(said, p.Kept) else send(said)
        self.other = SessionGroup(self.connection, POOL, "other")
        self.session.give_back(self.slot)
        self.other._may_share = True
        cell = self.other.ask("cell #2")
        self.other.borrow()
        self.other.give_back(cell.future.result(0))


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sessions that a replica was told to forget."""
    sessions: list[str] = []
    monkeypatch.setattr(Lease, "leave", lambda _, session: sessions.append(session))
    return sessions


@pytest.mark.parametrize(("first", "second"), [("s", "other"), ("other", "s")])
def test_the_slot_of_two_sessions_is_given_back_with_the_second(first: str, second: str, left: list[str]) -> None:
    play = Shared()
    assert play.session.end(first) == second
    assert [each.session for each in play.told] == (["other"] if first == "s" else [])
    assert left == [first]
    assert play.connection.released[1:] == []
    assert play.session.end(second) == ""
    assert left == [first, second]
    assert play.connection.released[1:] == [play.slot.id]


def test_a_session_that_ends_waits_until_the_cell_of_another_is_over_in_their_slot(left: list[str]) -> None:
    play = Shared()
    lease = play.session.take()
    assert lease is play.slot
    assert play.session.end("s") == "other"
    assert left == [], "something is being written on the connection"
    play.session.give_back(lease)
    assert left == ["s"]


def test_a_session_that_ended_without_a_slot_ends_once(left: list[str]) -> None:
    play = Shared()
    play.session.drop(play.slot)
    assert play.session.end("s") == "other"
    play.session.take_in("s")
    cell = play.session.ask("cell #3")
    play.grant(play.session)
    play.session.give_back(cell.future.result(0))
    assert left == []


def test_another_pool_gets_nothing(play: Play) -> None:
    play.session.give_back(play.slot)
    assert borrow(BorrowingGroup(play.connection, "4567", None, "local")) is None
    other: Any = FakeConnection()
    assert borrow(BorrowingGroup(other, POOL, None, "local")) is None


def test_a_slot_on_a_certain_replica_is_borrowed_from_the_session_that_is_there(play: Play) -> None:
    play.session.give_back(play.slot)
    assert borrow(play.plain, "gpu[1]") is None
    lease = borrow(play.plain, "gpu[0]")
    assert lease is play.slot
    pinned = PinnedGroup(play.plain, lease)
    assert pinned.take() is lease
    pinned.give_back(lease)
    assert play.session.take() is lease
    assert play.connection.released == []


def test_a_slot_on_a_certain_replica_that_is_not_used_goes_back(play: Play) -> None:
    play.session.give_back(play.slot)
    lease = borrow(play.plain)
    assert lease is not None
    PinnedGroup(play.plain, lease).let_go()
    assert play.session.take() is lease


def test_no_call_is_served_twice_when_the_slot_and_a_grant_come_together(play: Play) -> None:
    play.session.give_back(play.slot)
    waiters = [play.plain.ask("train") for _ in range(2)]
    play.grant(play.plain, 1)
    play.a_moment_later()
    served: list[Future[Lease]] = [each.future for each in waiters]
    assert {each.result(0).name for each in served} == {"gpu[0]", "gpu[1]"}
