"""What a replica notes of its calls and tells its broker. Time stands still unless the test moves it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from flyte_jupyter.core.frames import Status
from flyte_jupyter.kernel import recorder as r
from flyte_jupyter.kernel.recorder import Recorder


class Replica:
    """A recorder with a clock, one timer and a broker that takes reports."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.listens = True
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.reports: list[dict[str, Any]] = []
        monkeypatch.setattr(r, "monotonic", lambda: self.now)
        self.recorder = Recorder(
            lambda delay, callback: self.timers.append((self.now + delay, callback)),
            lambda: list(self.running),
            lambda: self.listens,
            lambda report: self.reports.append(json.loads(report)),
        )
        self.running: list[Any] = []
        self._channels: dict[str, Any] = {}

    def begin(self, task: str = "t", lease: str = "l") -> Any:
        hello = SimpleNamespace(lease=lease, label="a.ipynb")
        channel = self._channels.setdefault(lease, SimpleNamespace(hello=hello, span=None))
        call: Any = _Call(channel, task)
        self.running.append(call)
        self.recorder.began(call)
        return call

    def end(self, call: Any, status: Status = Status.OK) -> None:
        call.status, call.ended = status, True
        self.running.remove(call)
        self.recorder.ended(call, self.now)

    def run(self, task: str = "t", seconds: float = 0.0, lease: str = "l", status: Status = Status.OK) -> None:
        call = self.begin(task, lease)
        self.now += seconds
        self.end(call, status)

    def tell(self) -> dict[str, Any] | None:
        """Let the timer ring; what is reported then."""
        [(due, callback)] = self.timers
        self.timers.clear()
        self.now = max(self.now, due)
        before = len(self.reports)
        callback()
        assert len(self.reports) <= before + 1
        return self.reports[-1] if len(self.reports) > before else None

    def rest(self) -> None:
        while self.timers:
            self.tell()

    def calls(self) -> list[list[Any]]:
        """All that was told, as the broker has it then: number, lease, task, label, began, ended, outcome, calls."""
        return list({call[0]: call for report in self.reports for call in report["calls"]}.values())

    def loop(self, seconds: float, task: str = "t") -> None:
        """Calls of a millisecond, one after the other; the timer rings meanwhile."""
        until = self.now + seconds
        while self.now < until:
            self.run(task, seconds=0.001)
            if self.timers[0][0] <= self.now:
                self.tell()

    def uses(self) -> list[list[Any]]:
        """What was told of leases: lease, running, task, since."""
        return [use for report in self.reports for use in report["uses"]]


class _Call:
    def __init__(self, channel: Any, name: str) -> None:
        self.channel, self.name = channel, name
        self.began, self.span, self.status, self.ended = 0.0, None, Status.OK, False


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    return Replica(monkeypatch)


def test_a_short_call_is_told_once(replica: Replica) -> None:
    replica.run(seconds=0.003)
    assert replica.tell() == {
        "calls": [[1, "l", "t", "a.ipynb", 100.0, 100.003, "succeeded", 1]],
        "uses": [["l", False, "t", 100.003]],
        "ended": 1,
    }
    assert replica.timers == []


def test_a_long_call_is_told_while_it_runs_and_when_it_has_ended(replica: Replica) -> None:
    call = replica.begin()
    assert replica.tell() == {
        "calls": [[1, "l", "t", "a.ipynb", 100.0, None, None, 1]],
        "uses": [["l", True, "t", 100.0]],
        "ended": 0,
    }
    assert replica.timers == []  # nothing happens while it runs
    replica.now = 170.0
    replica.end(call, Status.ERROR)
    assert replica.tell() == {
        "calls": [[1, "l", "t", "a.ipynb", 100.0, 170.0, "failed", 1]],
        "uses": [["l", False, "t", 170.0]],
        "ended": 1,
    }
    assert replica.timers == []


def test_short_calls_in_a_row_are_one_span(replica: Replica) -> None:
    for _ in range(2000):
        replica.run(seconds=0.00002)
    assert len(replica.timers) == 1
    report = replica.tell()
    assert report is not None
    assert [call[-1] for call in report["calls"]] == [2000]
    assert report["ended"] == 2000
    assert [use[1] for use in report["uses"]] == [False]


@pytest.mark.parametrize(
    "second",
    [
        lambda replica: replica.run("other"),
        lambda replica: replica.run(status=Status.ERROR),
        lambda replica: replica.run(lease="other"),
        lambda replica: replica.run(seconds=2 * r.SHORT_S),
    ],
)
def test_what_differs_or_takes_long_has_a_span_of_its_own(replica: Replica, second: Callable[[Replica], None]) -> None:
    replica.run()
    second(replica)
    replica.rest()
    assert [call[-1] for call in replica.calls()] == [1, 1]


@pytest.mark.parametrize("told", [True, False])
def test_a_short_call_after_a_long_one_has_a_span_of_its_own(replica: Replica, told: bool) -> None:
    call = replica.begin()
    if told:
        replica.tell()
    replica.now += 2 * r.SHORT_S
    replica.end(call)
    replica.run()
    replica.rest()
    assert [call[-1] for call in replica.calls()] == [1, 1]


def test_a_pause_divides_and_a_second_is_the_longest(replica: Replica) -> None:
    replica.run()
    replica.now += 0.02
    replica.run()
    replica.rest()
    assert len(replica.calls()) == 2
    for _ in range(300):
        replica.run(seconds=0.01)
    replica.rest()
    assert all(ended - began <= r.LONGEST_S for _, _, _, _, began, ended, _, _ in replica.calls())
    assert sum(call[-1] for call in replica.calls()) == 302


def test_a_loop_of_short_calls_is_running_all_the_time(replica: Replica) -> None:
    replica.run(seconds=0.001)
    while replica.now < 100.5:
        [(due, _)] = replica.timers
        while replica.now < due:
            replica.run(seconds=0.001)
        replica.tell()
    assert {(lease, running) for lease, running, *_ in replica.uses()} == {("l", True)}
    replica.rest()
    assert replica.uses()[-1][:2] == ["l", False]


def test_what_is_over_after_a_moment_is_told_once(replica: Replica) -> None:
    for _ in range(2000):
        replica.run(seconds=0.00004)  # so the first look comes just after the last of them
    replica.rest()
    [report] = replica.reports
    assert report["ended"] == 2000
    assert [use[:2] for use in report["uses"]] == [["l", False]]


def test_while_a_loop_goes_on_it_is_told_once_a_second_and_its_end_at_once(replica: Replica) -> None:
    replica.loop(0.2)
    before = len(replica.reports)
    assert replica.uses() == [["l", True, "t", 100.0]]
    replica.loop(10)
    assert len(replica.reports) <= before + 11
    assert sum(report["ended"] for report in replica.reports) > 9000
    over = replica.now
    replica.rest()
    assert replica.now <= over + 2 * r.TELL_S
    assert replica.uses()[-1][:2] == ["l", False]
    assert sum(report["ended"] for report in replica.reports) == sum(call[-1] for call in replica.calls())


@pytest.mark.parametrize("task", ["t", "other"])
def test_a_long_call_after_a_loop_is_told_within_a_moment(replica: Replica, task: str) -> None:
    replica.loop(0.57)
    began = replica.now
    call = replica.begin(task)
    while replica.timers:
        replica.tell()
    assert replica.now <= began + 2 * r.TELL_S
    assert replica.calls()[-1][2:] == [task, "a.ipynb", began, None, None, 1]
    assert replica.uses()[-1] == ["l", True, task, began]
    replica.end(call)


def test_the_last_report_of_a_process_is_complete(replica: Replica) -> None:
    replica.loop(0.57)
    replica.recorder.tell(last=True)
    calls = replica.calls()
    assert sum(report["ended"] for report in replica.reports) == sum(call[-1] for call in calls)
    assert calls[-1][5] == replica.now


def test_the_next_task_in_the_same_lease_is_told_by_its_own_name(replica: Replica) -> None:
    replica.run("first", 0.2)
    call = replica.begin("second")
    replica.rest()
    assert replica.uses()[-1][:3] == ["l", True, "second"]
    replica.end(call)
    replica.rest()
    assert replica.uses()[-1][:3] == ["l", False, "second"]


def test_a_flood_of_different_tasks_is_bounded(replica: Replica) -> None:
    for number in range(50_000):
        replica.run(f"t{number % 7}", 0.0001, status=Status.ERROR if number == 4000 else Status.OK)
        if replica.timers[0][0] <= replica.now:
            replica.tell()
    replica.rest()
    calls = replica.calls()
    assert sum(call[-1] for call in calls) == sum(report["ended"] for report in replica.reports) == 50_000
    assert len(calls) <= 6 * (r.MOST_SPANS + 2)
    assert r.SEVERAL in {call[2] for call in calls}
    assert [call[2:] for call in calls if call[6] == "failed"] == [["t3", "a.ipynb", *calls_at(calls, "failed"), 1]]
    assert len(replica.reports) <= 5 * 10 + 2


def calls_at(calls: list[list[Any]], outcome: str) -> list[Any]:
    return next(call[4:7] for call in calls if call[6] == outcome)


def test_many_calls_at_once_are_bounded_too(replica: Replica) -> None:
    calls = [replica.begin("t", f"l{number}") for number in range(200)]
    replica.tell()
    assert len(replica.calls()) == r.MOST_SPANS
    for call in calls:
        replica.end(call)
    replica.rest()
    told = replica.calls()
    assert all(call[5] is not None for call in told)
    assert sum(call[-1] for call in told) == 200
    assert len(told) <= r.MOST_SPANS + 1


def test_what_nobody_takes_is_kept_for_a_while_and_bounded(replica: Replica) -> None:
    replica.listens = False
    for number in range(2 * r.MOST_UNTOLD):
        replica.run(f"t{number}", 1.0)
        if replica.timers[0][0] <= replica.now:
            assert replica.tell() is None
    replica.listens = True
    replica.rest()
    [report] = replica.reports
    assert len(report["calls"]) == r.MOST_UNTOLD
    assert report["ended"] == 2 * r.MOST_UNTOLD


def test_long_names_are_cut(replica: Replica) -> None:
    replica.run("x" * 100_000, 0.2)
    replica.rest()
    assert replica.calls()[0][2] == "x" * r.LONGEST_NAME


def test_what_is_noted_while_a_report_is_sent_is_told_by_the_next_one(replica: Replica) -> None:
    late: list[Any] = [None]

    def send(report: bytes) -> None:
        replica.reports.append(json.loads(report))
        if late:
            late.clear()
            replica.run("late")

    replica.recorder._send = send
    replica.run("early")
    replica.rest()
    assert [call[2] for call in replica.calls()] == ["early", "late"]


def test_noting_a_call_takes_no_time_to_speak_of(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(r, "monotonic", time.monotonic)
    call = replica.begin()

    def each() -> float:
        started = time.perf_counter()
        for _ in range(1000):
            replica.recorder.began(call)
            replica.recorder.ended(call, time.monotonic())
        return (time.perf_counter() - started) / 1000

    best = min(each() for _ in range(20))
    assert best < 3e-6, "it takes 0.4 us where nothing else runs"
