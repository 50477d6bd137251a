"""What a timeline remembers of literal histories, and what it tells whom."""

from __future__ import annotations

from typing import Any

from flyte_jupyter.core import timeline as t
from flyte_jupyter.core.commands import Command
from flyte_jupyter.core.events import (
    AttachRequested,
    Call,
    CallsReported,
    ClientConnected,
    ClientGone,
    Event,
    LeaseCancelled,
    LeaseEnded,
    LeaseReleased,
    LeaseRequested,
    LeaseUse,
    PoolDeclared,
    PoolScaled,
    PoolStopped,
    PoolWarmed,
    ReplicaExited,
    ReplicaFailed,
    ReplicaLoading,
    ReplicaReady,
    Tick,
)
from flyte_jupyter.core.scheduler import Scheduler
from flyte_jupyter.core.spec import DeviceRequest, Scaling
from flyte_jupyter.core.timeline import SpanView, Timeline, TimelineView

SCALING = Scaling(min_replicas=1, max_replicas=2, idle_ttl=300, scaledown_ttl=60)


class Broker:
    """A scheduler and a timeline, told the same things at literal instants."""

    def __init__(self, low: int = 1, high: int = 2) -> None:
        self.scheduler = Scheduler()
        self.timeline = Timeline("b", self.scheduler.index_of)
        scaling = SCALING.model_copy(update={"min_replicas": low, "max_replicas": high})
        self.do(0, ClientConnected("ada", "ada.ipynb", "notebook", 1))
        self.do(0, PoolDeclared("ada", "p", "gpu", scaling, DeviceRequest()))

    def do(self, at: float, *events: Event) -> list[Command]:
        done: list[Command] = []
        for event in events:
            commands = self.scheduler.handle(event, now=at)
            self.timeline.record(event, commands, now=at)
            done += commands
        return done

    def view(self, at: float, since: str | None = None, pool: str = "p") -> TimelineView:
        view = self.timeline.view(pool, since, now=at, epoch_offset=1000)
        assert view is not None
        return view

    def spans(self, at: float, kind: str = "running") -> list[SpanView]:
        return [span for span in self.view(at).spans if span.kind == kind]


def warm() -> Broker:
    """With one replica, "p-1", that is ready at 0.5."""
    broker = Broker()
    broker.do(0, PoolWarmed("p"), ReplicaLoading("p-1", 7))
    broker.do(0.5, ReplicaReady("p-1"))
    return broker


def ask(lease: str, task: str = "train") -> LeaseRequested:
    return LeaseRequested("ada", lease, "p", task)


def open_by(client: str, lease: str, *, shared: bool = False) -> AttachRequested:
    return AttachRequested(client, lease, "p-1", "shared console" if shared else "attached notebook", shared)


def call(number: int, began: float, ended: float | None, **changes: Any) -> Call:
    fields: dict[str, Any] = {
        "lease": "l1",
        "task": "train",
        "client": "ada.ipynb",
        "outcome": None if ended is None else "succeeded",
        "calls": 1,
    }
    return Call(number, began=began, ended=ended, **fields | changes)


def told(*calls: Call, uses: tuple[LeaseUse, ...] = (), replica: str = "p-1") -> CallsReported:
    return CallsReported(replica, calls, uses, sum(each.calls for each in calls if each.ended))


def short(spans: Any) -> list[tuple[Any, ...]]:
    return [(span.kind, span.replica, span.began, span.ended, span.outcome) for span in spans]


def test_a_cold_start_is_a_wait_a_start_and_a_preload() -> None:
    broker = Broker(low=0)
    broker.do(10, ask("l1"))
    broker.do(10.4, ReplicaLoading("p-1", 7))
    broker.do(12, ReplicaReady("p-1"))
    view = broker.view(13)
    assert sorted(short(view.spans)) == [
        ("loading", "p-1", 10.4, 12, "succeeded"),
        ("starting", "p-1", 10, 10.4, "succeeded"),
        ("waiting", "p-1", 10, 12, "succeeded"),
    ]
    [lane] = view.lanes
    assert (lane.name, lane.index, lane.started_at, lane.ready_at, lane.ended_at) == ("gpu[0]", 0, 10, 12, None)
    assert lane.why == "a call waits"
    assert [(change.at, change.text) for change in view.changes] == [(10, "gpu[0] starts: a call waits")]
    assert (view.now, view.epoch_offset, view.window_s, view.whole) == (1013, 1000, 600, True)


def test_a_call_is_a_span_that_goes_on_and_then_ends() -> None:
    broker = warm()
    broker.do(5, ask("l1"), told(call(1, 5, None)))
    [span] = broker.spans(6)
    assert (span.task, span.client, span.ended, span.outcome) == ("train", "ada.ipynb", None, None)
    broker.do(7, told(call(1, 5, 6.9, outcome="failed")))
    [ended] = broker.spans(7)
    assert (ended.id, ended.ended, ended.outcome) == (span.id, 6.9, "failed")


def test_only_what_is_new_or_has_changed_is_told_since_a_mark() -> None:
    broker = warm()
    broker.do(5, ask("l1"), told(call(1, 5, 5.1), call(2, 5.2, None)))
    first = broker.view(6)
    assert (first.whole, len(first.spans)) == (True, 4)
    again = broker.view(6, first.mark)
    assert (again.whole, again.spans, again.changes, again.mark) == (False, (), (), first.mark)
    assert again.lanes == first.lanes
    broker.do(
        8, told(call(2, 5.2, 7.5), call(3, 7.6, None)), PoolScaled("p", broker.scheduler.snapshot().pools[0].scaling)
    )
    news = broker.view(8, again.mark)
    assert not news.whole
    assert [(span.began, span.ended) for span in news.spans] == [(5.2, 7.5), (7.6, None)]
    assert news.spans[0].id == first.spans[-1].id
    assert [change.text for change in news.changes] == ["scaled by hand to 1 to 2 replicas"]


def test_a_mark_of_another_broker_is_answered_with_everything() -> None:
    broker = warm()
    mark = broker.view(1).mark
    for strange in ("", "x.1", "1", "b.", "b.-1", "b.999999", "b.1.1", "c" + mark, "b.²", "b." + "9" * 40, "\x00"):
        assert broker.view(1, strange).whole, strange
    assert not broker.view(1, mark).whole
    assert not broker.view(1, "b.0").whole


def test_an_unknown_pool_has_no_timeline() -> None:
    assert warm().timeline.view("q", None, now=1, epoch_offset=0) is None


def test_calls_that_are_merged_further_replace_their_span() -> None:
    broker = warm()
    broker.do(5, ask("l1"), told(call(1, 5, 5.1, calls=900)))
    broker.do(6, told(call(1, 5, 5.2, calls=1900)))
    assert [(span.ended, span.calls) for span in broker.spans(6)] == [(5.2, 1900)]
    assert [view.calls for view in broker.timeline.recent()] == [1900]


def test_numbers_of_two_replicas_do_not_meet() -> None:
    broker = Broker(low=2)
    broker.do(0, PoolWarmed("p"), ReplicaReady("p-1"), ReplicaReady("p-2"))
    broker.do(5, told(call(1, 4, 5)), told(call(1, 3, 5), replica="p-2"), told(call(2, 5, None), replica="p-9"))
    assert [(span.replica, span.began) for span in broker.spans(5)] == [("p-1", 4), ("p-2", 3)]


def test_what_runs_when_a_replica_dies_is_lost() -> None:
    broker = warm()
    broker.do(5, ask("l1"), told(call(1, 5, None), uses=(LeaseUse("l1", True, "train", 5),)))
    broker.do(9, ReplicaExited("p-1", "signal SIGKILL"))
    view = broker.view(9)
    assert [each for each in short(view.spans) if each[0] == "running"] == [("running", "p-1", 5, 9, "lost")]
    assert (view.lanes[0].ended_at, view.changes[1].text) == (9, "gpu[0] ended unexpectedly")


def test_a_call_that_kills_its_replica_before_it_was_told_is_lost_too() -> None:
    broker = warm()
    broker.do(5, ask("l1", "crash"))
    broker.do(5.01, ReplicaExited("p-1", "signal SIGSEGV"))
    [span] = broker.spans(6)
    assert (span.task, span.client, span.began, span.ended, span.outcome) == ("crash", "ada.ipynb", 5, 5.01, "lost")


def test_nothing_is_lost_that_did_not_run() -> None:
    broker = warm()
    broker.do(5, ask("l1"), told(call(1, 5, 5.5), uses=(LeaseUse("l1", False, "train", 5.5),)))
    broker.do(6, ReplicaExited("p-1", "signal SIGKILL"))
    assert [span.outcome for span in broker.spans(6)] == ["succeeded"]


def test_a_wait_that_goes_on_is_shown_and_a_short_one_is_none() -> None:
    broker = Broker(high=1)
    broker.do(0, PoolWarmed("p"), ReplicaReady("p-1"))
    broker.do(5, ask("l1"), ask("l2", "second"))
    assert broker.spans(5.04, "waiting") == []
    [span] = broker.spans(5.06, "waiting")
    assert (span.task, span.replica, span.began, span.ended) == ("second", None, 5, None)
    broker.do(7, ask("l3"), LeaseReleased("l1"))
    [served] = broker.spans(7, "waiting")
    assert (served.id, served.replica, served.ended, served.outcome) == (span.id, "p-1", 7, "succeeded")
    broker.do(7.01, LeaseReleased("l2"))  # l3 gets its turn after 10 ms
    assert len(broker.spans(8, "waiting")) == 1


def test_how_a_wait_ends_without_a_replica() -> None:
    broker = Broker(high=1)
    broker.do(0, ClientConnected("bob", "bob.py", "script", 2), PoolWarmed("p"), ReplicaReady("p-1"))
    broker.do(1, ask("l0"), ask("withdrawn"), ask("cancelled"), LeaseRequested("bob", "gone", "p", "t"), ask("refused"))
    broker.view(2)
    broker.do(3, LeaseReleased("withdrawn"), LeaseCancelled("cancelled"), ClientGone("bob"), PoolStopped("p"))
    waits = broker.spans(4, "waiting")
    assert [(span.ended, span.outcome) for span in waits] == [(3, "cancelled")] * 3 + [(3, "failed")]
    assert {span.replica for span in waits} == {None}


def test_who_opens_a_replica_is_a_span_until_they_leave_it() -> None:
    broker = warm()
    broker.do(5, open_by("ada", "x"))
    [span] = broker.spans(6, "attached")
    assert (span.replica, span.task, span.client) == ("p-1", "attached notebook", "ada.ipynb")
    assert (span.began, span.ended, span.outcome) == (5, None, None)
    broker.do(9, LeaseReleased("x"))
    [left] = broker.spans(9, "attached")
    assert (left.id, left.ended, left.outcome) == (span.id, 9, "succeeded")
    assert broker.spans(9, "waiting") == []
    assert broker.timeline._leases == {}


def test_who_wants_a_replica_alone_waits_for_its_call_and_who_shares_it_does_not() -> None:
    broker = warm()
    broker.do(5, ask("l1"), open_by("ada", "alone"), open_by("ada", "beside", shared=True))
    assert [span.task for span in broker.spans(6, "attached")] == ["shared console"]
    broker.do(7, LeaseReleased("l1"))
    assert short(broker.spans(8, "waiting")) == [("waiting", "p-1", 5, 7, "succeeded")]
    assert [(span.task, span.began) for span in broker.spans(8, "attached")] == [
        ("shared console", 5),
        ("attached notebook", 7),
    ]


def test_who_gets_no_replica_has_waited_and_opened_none() -> None:
    broker = warm()
    broker.do(5, ask("l1"), open_by("ada", "withdrawn"), open_by("ada", "refused"), open_by("nobody", "ignored"))
    broker.view(6)
    broker.do(7, LeaseReleased("withdrawn"), PoolStopped("p"))
    assert [(span.ended, span.outcome) for span in broker.spans(8, "waiting")] == [(7, "cancelled"), (7, "failed")]
    broker.do(8, AttachRequested("ada", "late", "p-1", "attached console"))  # it has to go
    broker.do(8, AttachRequested("ada", "lost", "p-9", "attached console"))  # there is none
    assert broker.spans(9, "attached") == []
    assert list(broker.timeline._leases) == ["l1"]


def test_a_front_end_that_dies_has_left_once_its_cell_has_stopped() -> None:
    broker = warm()
    broker.do(5, ClientConnected("bob", "bob.ipynb", "notebook", 2), open_by("bob", "x"))
    broker.do(7, ClientGone("bob"))
    assert short(broker.spans(7.5, "attached")) == [("attached", "p-1", 5, None, None)]
    broker.do(8, LeaseEnded("x"))
    assert short(broker.spans(9, "attached")) == [("attached", "p-1", 5, 8, "succeeded")]
    broker.do(9, ClientConnected("cyd", "cyd.ipynb", "notebook", 3), open_by("cyd", "y"))
    broker.do(10, LeaseEnded("y"))  # the replica has heard of it first
    broker.do(10.1, ClientGone("cyd"))
    assert [span.ended for span in broker.spans(11, "attached")] == [8, 10]


def test_a_guest_among_others_has_left_when_their_client_is_gone() -> None:
    broker = warm()
    broker.do(5, ClientConnected("bob", "bob.ipynb", "notebook", 2), open_by("bob", "x", shared=True))
    broker.do(7, ClientGone("bob"))
    assert short(broker.spans(8, "attached")) == [("attached", "p-1", 5, 7, "succeeded")]


def test_who_has_a_replica_that_dies_has_lost_it() -> None:
    broker = warm()
    broker.do(5, open_by("ada", "x"))
    broker.do(7, ReplicaExited("p-1", "signal SIGKILL"))
    assert short(broker.spans(8, "attached")) == [("attached", "p-1", 5, 7, "lost")]
    assert broker.spans(8, "running") == []


def test_attachments_are_bounded_like_other_spans() -> None:
    broker = warm()
    for number in range(t.MOST_SPANS + 100):
        broker.do(10 + number / 1000, open_by("ada", f"x{number}"), LeaseReleased(f"x{number}"))
    broker.do(31, open_by("ada", "x"))
    spans = broker.spans(32, "attached")
    assert len(spans) <= t.MOST_SPANS
    assert broker.spans(700, "attached") == [spans[-1]]  # it goes on


def test_a_start_that_fails_and_one_that_is_called_off() -> None:
    broker = Broker(low=2)
    broker.do(0, PoolWarmed("p"), ReplicaLoading("p-1", 7))
    broker.do(1, ReplicaFailed("p-1", "Traceback: secret = 42"), ReplicaExited("p-1", "exit code 1"))
    broker.do(2, PoolStopped("p"), ReplicaExited("p-2", "exit code 0"))
    view = broker.view(3)
    ends = {(span.kind, span.replica): (span.ended, span.outcome) for span in view.spans}
    assert ends[("loading", "p-1")] == (1, "failed")
    assert ends[("starting", "p-2")] == (2, "cancelled")
    texts = [change.text for change in view.changes]
    assert "gpu[0] failed to start" in texts
    assert "gpu[1] stops: the pool was stopped" in texts
    assert not any("secret" in text for text in texts)


def test_a_stopped_pool_keeps_its_lanes_for_the_window() -> None:
    broker = warm()
    broker.do(5, told(call(1, 4, 5)), PoolStopped("p"))
    broker.do(6, ReplicaExited("p-1", "exit code 0"))
    assert [lane.ended_at for lane in broker.view(605).lanes] == [6]
    assert len(broker.spans(604)) == 1
    assert (broker.view(605.5).lanes[0].name, broker.spans(605.5)) == ("gpu[0]", [])
    over = broker.view(607)
    assert (over.lanes, over.spans, over.changes) == ((), (), ())


def test_a_forgotten_pool_is_gone_and_a_new_one_of_its_key_begins_anew() -> None:
    broker = warm()
    broker.do(5, told(call(1, 4, 5)))
    mark = broker.view(5).mark
    broker.do(6, ClientGone("ada"), PoolStopped("p"), ReplicaExited("p-1", "exit code 0"))
    assert broker.timeline.view("p", None, now=7, epoch_offset=0) is None
    assert [view.pool for view in broker.timeline.recent()] == ["p"]
    broker.do(8, ClientConnected("ada", "ada.ipynb", "notebook", 1))
    broker.do(8, PoolDeclared("ada", "p", "gpu", SCALING, DeviceRequest()))
    assert broker.view(9, mark).spans == ()


def test_what_goes_on_is_never_forgotten() -> None:
    broker = warm()
    broker.do(5, ask("l1"), told(call(1, 5, None)))
    broker.do(6, told(call(2, 5, 6, lease="l2")))
    assert short(broker.spans(5000)) == [("running", "p-1", 5, None, None)]
    broker.do(5001, told(call(1, 5, 5001)))
    assert [span.ended for span in broker.spans(5002)] == [5001]


def test_there_is_a_bound_and_the_oldest_go_first() -> None:
    broker = warm()
    most = t.MOST_SPANS
    for first in range(0, most + 2000, 1000):
        at = 10 + first / 1000
        broker.do(at, told(*(call(first + n + 1, at, at, task=str(first + n)) for n in range(1000))))
    spans = broker.spans(40)
    assert len(spans) == most
    assert spans[0].task == "2000"
    assert len(broker.timeline._histories["p"].lanes["p-1"].calls) == most


def test_five_thousand_calls_are_less_than_a_megabyte() -> None:
    broker = warm()
    for number in range(1, 5001):
        at = 4000 + number * 0.1
        broker.do(at, told(call(number, at - 0.0712, at - 0.0013, task="gpu.embed_documents", client="train.ipynb")))
    view = broker.view(4501)
    assert sum(span.kind == "running" for span in view.spans) == 5000
    assert len(view.model_dump_json()) < 1_000_000
    assert len(broker.view(4501, view.mark).model_dump_json()) < 1000


def test_ended_lanes_are_bounded() -> None:
    broker = Broker(low=0, high=1)
    for number in range(1, t.MOST_ENDED_LANES + 12):
        broker.do(number * 0.1, ask(f"l{number}"), ReplicaReady(f"p-{number}"))
        broker.do(number * 0.1, ReplicaExited(f"p-{number}", "signal SIGKILL"), LeaseReleased(f"l{number}"))
    view = broker.view(60)
    assert len([lane for lane in view.lanes if lane.ended_at is not None]) == t.MOST_ENDED_LANES
    assert {span.replica for span in view.spans if span.replica} <= {lane.replica for lane in view.lanes}
    assert len(view.changes) <= t.MOST_CHANGES


def test_the_newest_calls_of_all_pools_are_at_hand() -> None:
    broker = warm()
    broker.do(50, told(*(call(n, n, n + 0.5) for n in range(1, 31)), call(31, 50, None)))
    recent = broker.timeline.recent()
    assert [view.ended for view in recent] == [n + 0.5 for n in range(30, 10, -1)]
    assert {view.pool for view in recent} == {"p"}


def test_late_and_strange_facts_are_ignored() -> None:
    broker = warm()
    broker.do(1, LeaseRequested("nobody", "x", "p", "t"), LeaseRequested("ada", "y", "nowhere", "t"))
    broker.do(1, LeaseReleased("z"), ReplicaReady("p-1"), ReplicaLoading("p-1", 7), ReplicaExited("q", ""), Tick())
    broker.do(2, ask("l1"), ask("l1"), ask("l2"), LeaseEnded("l2"), LeaseEnded("l1"), LeaseEnded("l1"))
    assert [span.task for span in broker.spans(3, "waiting")] == ["train"]
    broker.do(3, ReplicaReady("p-2"), LeaseReleased("l1"), LeaseReleased("l2"))
    assert broker.timeline._leases == {}


def test_a_replica_that_ends_just_when_it_would_be_killed_is_no_surprise() -> None:
    broker = warm()
    broker.do(1, LeaseRequested("ada", "l", "p", "t"), ClientGone("ada"))
    broker.do(7, ReplicaExited("p-1", "signal SIGKILL"))  # its client is gone for six seconds: a Tick was due, too
    assert [lane.ended_at for lane in broker.view(8).lanes if lane.replica == "p-1"] == [7]


def test_a_pool_of_a_client_that_is_gone_already_is_none() -> None:
    broker = Broker()
    broker.do(1, PoolDeclared("nobody", "q", "cpu", SCALING, DeviceRequest()))
    assert broker.timeline.view("q", None, now=2, epoch_offset=0) is None
