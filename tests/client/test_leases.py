"""Who gets which slot on the client's side, with a connection that only remembers what it was told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from flyte_jupyter import errors
from flyte_jupyter.client import leases
from flyte_jupyter.client.leases import LINGER_S, Lease, LeaseGroup
from flyte_jupyter.core import protocol as p


class FakeConnection:
    """The broker's part is played by the test; timers run when the test says that time has passed."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.tasks: dict[str, str] = {}
        self.released: list[str] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.gone = False

    def listen(self, lease: str, listener: Any) -> None:
        pass

    def send(self, message: p.Acquire) -> None:
        if self.gone:
            raise errors.BrokerGone()
        self.asked.append(message.lease)
        self.tasks[message.lease] = message.task

    def release(self, lease: str) -> None:
        self.released.append(lease)

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        self.timers.append((delay, callback))


class Play:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.connection: Any = FakeConnection()
        self.group = LeaseGroup(self.connection, "0123", None, "run")

    def grant(self, lease: str) -> None:
        self.group.granted(p.Granted(lease=lease, replica=f"r-{lease}", name="gpu[0]", address="/nowhere"))

    def refuse(self, lease: str, **detail: str) -> None:
        self.group.refused(p.Refused(lease=lease, reason="pool-stopped", detail={"pool": "gpu", **detail}))

    def lose(self, lease: str) -> None:
        self.group.lost(p.Lost(lease=lease, replica="r", name="gpu[0]", cause="signal SIGKILL"))

    def held(self) -> Lease:
        """A lease that was asked for, granted, and is in use."""
        waiter = self.group.ask("t")
        self.grant(self.connection.asked[-1])
        return waiter.future.result(0)

    def later(self, seconds: float) -> None:
        self.now += seconds
        due, self.connection.timers = self.connection.timers, []
        for _, callback in due:
            callback()


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    return Play(monkeypatch)


def test_a_call_without_an_idle_lease_asks_for_one(play: Play) -> None:
    assert play.group.take() is None
    waiter = play.group.ask("train")
    assert [play.connection.tasks[lease] for lease in play.connection.asked] == ["train"]
    assert not waiter.future.done()
    play.grant(play.connection.asked[0])
    assert waiter.future.result(0).name == "gpu[0]"


def test_a_higher_priority_is_served_first_and_the_same_in_order(play: Play) -> None:
    order = [("low", -1), ("one", 0), ("two", 0), ("high", 1), ("higher", 1), ("three", 0)]
    waiters = {name: play.group.ask(name, priority=priority) for name, priority in order}
    served = []
    for lease in list(play.connection.asked):
        play.grant(lease)
        served += [name for name, waiter in waiters.items() if waiter.future.done() and name not in served]
    assert served == ["high", "higher", "one", "two", "three", "low"]


def test_an_idle_lease_is_taken_without_asking(play: Play) -> None:
    lease = play.held()
    play.group.give_back(lease)
    assert play.group.take() is lease
    assert play.group.take() is None
    assert len(play.connection.asked) == 1


def test_an_idle_lease_lingers_and_is_then_released(play: Play) -> None:
    lease = play.held()
    play.group.give_back(lease)
    assert play.connection.released == []
    play.later(LINGER_S)
    assert play.connection.released == [lease.id]
    assert play.group.unused()
    assert play.connection.timers == []


def test_a_lease_in_use_does_not_linger_away(play: Play) -> None:
    lease = play.held()
    play.group.give_back(lease)
    assert play.group.take() is lease
    play.later(LINGER_S)
    assert play.connection.released == []


def test_one_timer_serves_all_idle_leases(play: Play) -> None:
    first, second = play.held(), play.held()
    play.group.give_back(first)
    play.now += LINGER_S / 2
    play.group.give_back(second)
    assert len(play.connection.timers) == 1
    play.later(LINGER_S / 2)
    assert play.connection.released == [first.id]
    play.later(LINGER_S)
    assert play.connection.released == [first.id, second.id]


def test_a_lease_given_back_goes_to_who_waits_and_the_request_is_withdrawn(play: Play) -> None:
    lease, waiter = play.held(), play.group.ask("next")
    play.group.give_back(lease)
    assert waiter.future.result(0) is lease
    assert play.connection.released == [play.connection.asked[1]]


def test_those_who_wait_are_served_in_order(play: Play) -> None:
    lease = play.held()
    waiters = [play.group.ask(f"t{number}") for number in range(3)]
    for waiter in waiters:
        play.group.give_back(lease)
        assert waiter.future.done()
    assert [waiter.future.result(0) for waiter in waiters] == [lease] * 3
    assert set(play.connection.released) == set(play.connection.asked[1:])


def test_a_grant_that_nobody_needs_any_more_lingers(play: Play) -> None:
    lease, waiter = play.held(), play.group.ask("next")
    request = play.connection.asked[1]
    play.group.withdraw(waiter)
    play.grant(request)  # it was on its way when the request was withdrawn
    assert play.connection.released == [request]
    play.group.give_back(lease)
    assert play.group.take() is lease
    assert play.group.take() is None


def test_recalled_while_idle_it_goes_at_once(play: Play) -> None:
    lease = play.held()
    play.group.give_back(lease)
    play.group.recalled(lease.id)
    assert play.connection.released == [lease.id]
    assert play.group.take() is None


def test_recalled_while_in_use_it_goes_after_the_call_although_others_wait(play: Play) -> None:
    lease, waiter = play.held(), play.group.ask("next")
    play.group.recalled(lease.id)
    assert play.connection.released == []
    play.group.give_back(lease)
    assert play.connection.released == [lease.id]
    assert not waiter.future.done()
    play.group.recalled("unknown")


def test_lost_while_idle_it_is_forgotten(play: Play) -> None:
    lease = play.held()
    play.group.give_back(lease)
    play.lose(lease.id)
    assert play.group.take() is None
    assert play.group.unused()
    play.lose("unknown")


def test_lost_while_in_use_the_call_learns_why_and_it_is_not_used_again(play: Play) -> None:
    lease = play.held()
    assert lease.why_lost(0) is None
    play.lose(lease.id)
    why = lease.why_lost(0)
    assert isinstance(why, p.Lost)
    assert why.cause == "signal SIGKILL"
    play.group.broken(lease.id, errors.BrokerGone())  # what was said first holds
    assert lease.why_lost(0) is why
    play.group.give_back(lease)
    assert play.group.take() is None


def test_a_refusal_goes_to_a_waiter_of_that_task(play: Play) -> None:
    first, second = play.group.ask("a"), play.group.ask("b")
    play.refuse(play.connection.asked[1])
    assert isinstance(second.future.exception(0), errors.PoolStopped)
    assert not first.future.done()


def test_a_refusal_whose_task_was_served_goes_to_the_next(play: Play) -> None:
    lease, _, last = play.held(), play.group.ask("a"), play.group.ask("b")
    play.group.give_back(lease)  # serves a; one of the two requests is withdrawn
    left = next(each for each in play.connection.asked[1:] if each not in play.connection.released)
    play.refuse(left)
    assert isinstance(last.future.exception(0), errors.PoolStopped)


def test_withdrawing_leaves_the_others_waiting(play: Play) -> None:
    first, second = play.group.ask("a"), play.group.ask("b")
    first.withdraw()
    assert first.future.cancelled()
    assert len(play.connection.released) == 1
    left = next(each for each in play.connection.asked if each not in play.connection.released)
    play.grant(left)
    assert second.future.done()


def test_a_lease_that_came_while_its_waiter_withdrew_goes_to_the_next(play: Play) -> None:
    first, second = play.group.ask("a"), play.group.ask("b")
    play.grant(play.connection.asked[0])
    assert first.future.done()
    first.withdraw()
    assert second.future.result(0) is first.future.result(0)
    assert play.connection.released == [play.connection.asked[1]]


def test_withdrawing_after_a_refusal_is_nothing(play: Play) -> None:
    waiter = play.group.ask("a")
    play.refuse(play.connection.asked[0])
    waiter.withdraw()
    assert play.group.unused()


def test_a_waiter_that_was_cancelled_is_passed_over(play: Play) -> None:
    first, second = play.group.ask("a"), play.group.ask("b")
    first.future.cancel()  # as asyncio.wrap_future does
    play.grant(play.connection.asked[0])
    assert second.future.done()
    first.withdraw()
    assert set(play.connection.released) == {play.connection.asked[1]}


def test_no_more_than_the_limit_is_asked_for_at_once(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "MAX_REQUESTS", 2)
    waiters = [play.group.ask(f"t{number}") for number in range(5)]
    assert len(play.connection.asked) == 2
    for number in range(5):
        play.grant(play.connection.asked[number])
    assert all(waiter.future.done() for waiter in waiters)
    assert play.connection.released == []


def test_closing_gives_everything_back(play: Play) -> None:
    lease, idle = play.held(), play.held()
    play.group.ask("waiting")
    play.group.close()
    assert set(play.connection.released) == {lease.id, idle.id, play.connection.asked[2]}


def test_who_asks_while_a_lease_is_idle_gets_it_at_once(play: Play) -> None:
    lease = play.held()
    play.group.give_back(lease)
    assert play.group.ask("next").future.result(0) is lease


def test_a_broken_connection_fails_who_waits_and_who_runs(play: Play) -> None:
    lease, waiter = play.held(), play.group.ask("next")
    gone = errors.BrokerGone()
    for each in play.connection.asked:
        play.group.broken(each, gone)
    assert waiter.future.exception(0) is gone
    assert lease.why_lost(0) is gone
    play.group.give_back(lease)
    assert play.group.unused()


def test_grants_and_withdrawals_at_the_same_moment_lose_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    play = Play(monkeypatch)
    for _ in range(200):
        waiter = play.group.ask("t")
        request = play.connection.asked[-1]
        thread = threading.Thread(target=play.grant, args=(request,))
        thread.start()
        waiter.withdraw()
        thread.join()
        idle = play.group.take()
        assert (request in play.connection.released) != (idle is not None)
        if idle is not None:
            play.group.drop(idle)
    assert play.group.unused()


# --- known to be wrong in leases.py


def test_a_refusal_of_a_withdrawn_request_hurts_nobody(play: Play) -> None:
    first = play.group.ask("a")
    request = play.connection.asked[0]
    first.withdraw()
    second = play.group.ask("b")
    play.refuse(request)  # its listener is forgotten a moment after the request
    assert not second.future.done()


def test_those_beyond_the_limit_are_asked_for_after_a_refusal(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "MAX_REQUESTS", 1)
    play.group.ask("a")
    second = play.group.ask("b")
    play.refuse(play.connection.asked[0])
    play.refuse(play.connection.asked[1])
    assert isinstance(second.future.exception(0), errors.PoolStopped)


def test_a_lease_that_became_idle_between_take_and_ask_is_used(play: Play) -> None:
    lease = play.held()
    assert play.group.take() is None
    play.group.give_back(lease)
    assert play.group.ask("t").future.done()


def test_giving_back_to_a_broker_that_is_gone_does_not_fail_the_call(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "MAX_REQUESTS", 1)
    lease = play.held()
    waiters = [play.group.ask(f"t{number}") for number in range(3)]
    play.group._requests.clear()  # its grant is being handled on the connection's thread
    play.connection.gone = True
    play.group.give_back(lease)
    assert waiters[0].future.result(0) is lease
    assert isinstance(waiters[1].future.exception(0), errors.BrokerGone)


def test_a_broken_connection_closes_idle_leases(play: Play) -> None:
    lease = play.held()
    play.group.give_back(lease)
    play.group.broken(lease.id, errors.BrokerGone())
    assert play.group.unused()


@pytest.mark.parametrize("word", ["recalled", "lost"])
def test_an_idle_lease_that_goes_is_taken_by_nobody(play: Play, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    lease = play.held()
    play.group.give_back(lease)
    taken = []
    drop = play.group.drop
    monkeypatch.setattr(play.group, "drop", lambda each: (taken.append(play.group.take()), drop(each)))
    if word == "lost":
        play.lose(lease.id)
    else:
        play.group.recalled(lease.id)
    assert taken == [None], "another thread found it between the decision and the deed"
