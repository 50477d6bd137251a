"""What the replicas of each pool did in the last ten minutes, and who had them open: lanes, spans, why the pool scaled.

A recorder beside the scheduler: the engine tells it each event and the commands that followed. It decides nothing.
A view asks with the mark of its last answer and gets what is new or has changed since.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from .commands import Command, ForgetPool, Grant, Refuse, StartReplica, StopReplica
from .events import (
    AttachRequested,
    CallsReported,
    ClientConnected,
    ClientGone,
    Event,
    LeaseEnded,
    LeaseReleased,
    LeaseRequested,
    PoolDeclared,
    PoolScaled,
    ReplicaExited,
    ReplicaFailed,
    ReplicaLoading,
    ReplicaReady,
)
from .spec import Frozen

WINDOW_S: Final = 600.0
"""How far back a timeline goes."""
MOST_SPANS: Final = 20_000
"""Of one pool; beyond it the oldest are forgotten before their time."""
MOST_ENDED_LANES: Final = 200
MOST_CHANGES: Final = 200
MOST_RECENT: Final = 20
SHORTEST_WAIT_S: Final = 0.05
"""A request that is served sooner has not waited."""
PRUNE_S: Final = 1.0

SpanKind = Literal["starting", "loading", "running", "waiting", "attached"]
SpanOutcome = Literal["succeeded", "failed", "cancelled", "lost"]


class SpanView(Frozen):
    """A stretch of time on a lane; `ended` is None while it goes on.

    A `running` one may stand for several short calls in a row, of one task and with one outcome: `calls`. The `replica`
    of one that is `waiting` is None until it gets one. While one is `attached`, somebody has the replica open; `task`
    says with what.
    """

    id: int
    replica: str | None
    kind: SpanKind
    task: str
    client: str
    began: float
    ended: float | None
    outcome: SpanOutcome | None
    calls: int


class RecentView(SpanView):
    """A call that ended not long ago, with the key of its pool."""

    pool: str


class LaneView(Frozen):
    """A replica, also one that has ended; `why` says what it was started for."""

    replica: str
    name: str
    index: int
    started_at: float
    ready_at: float | None
    ended_at: float | None
    why: str


class ChangeView(Frozen):
    """One thing that changed the pool's size, for people."""

    id: int
    at: float
    text: str


class TimelineView(Frozen):
    """One pool's last minutes, or what is new of them. `mark` goes into the next question.

    `whole`: it replaces what the view has. Else lanes are all of them, and spans and changes are those that are new or
    have changed, to be replaced by `id`. `now` is Unix time; the other instants are the scheduler's.
    """

    now: float
    epoch_offset: float
    mark: str
    whole: bool
    window_s: float
    lanes: tuple[LaneView, ...]
    spans: tuple[SpanView, ...]
    changes: tuple[ChangeView, ...]


@dataclass(slots=True, eq=False)
class _Lane:
    view: LaneView
    history: _History
    setup: int | None = None  # the span that goes on until it is ready
    calls: dict[int, int] = field(default_factory=dict)  # number there -> id of its span
    running: dict[int, str] = field(default_factory=dict)  # spans that go on -> their lease
    told_to_stop: bool = False


@dataclass(slots=True, eq=False)
class _Kept:
    view: SpanView
    revision: int
    number: int = 0  # of the call on its replica


@dataclass(slots=True, eq=False)
class _Lease:
    """A request, then the slot that it got, or the replica that somebody has open."""

    id: str
    client: str
    label: str
    history: _History
    task: str
    since: float
    lane: _Lane | None = None
    span: int | None = None  # of its wait, then of the attachment
    idle: bool = False  # its replica says that nothing runs in it
    attaches: bool = False
    shared: bool = False  # of an attachment


@dataclass(slots=True, eq=False)
class _History:
    """One pool's."""

    key: str
    name: str
    lanes: dict[str, _Lane] = field(default_factory=dict)
    spans: OrderedDict[int, _Kept] = field(default_factory=OrderedDict)  # those that changed last at the end
    changes: deque[ChangeView] = field(default_factory=lambda: deque(maxlen=MOST_CHANGES))
    waiting: dict[str, _Lease] = field(default_factory=dict)
    pruned_at: float = 0.0


class Timeline:
    """The recorder of all pools.

    Args:
        name: Tells the marks of this broker from those of another.
        index_of: The number of a replica in its pool, asked when it has just been started.
    """

    def __init__(self, name: str, index_of: Callable[[str], int]) -> None:
        self._name = name
        self._index_of = index_of
        self._revision = 0
        self._histories: dict[str, _History] = {}
        self._lanes: dict[str, _Lane] = {}  # of replicas that live
        self._labels: dict[str, str] = {}  # of clients
        self._leases: dict[str, _Lease] = {}
        self._recent: OrderedDict[int, RecentView] = OrderedDict()

    def record(self, event: Event, commands: Iterable[Command], *, now: float) -> None:
        """Take note of what the scheduler was told, and of what it answered."""
        self._take(event, now)
        for command in commands:
            self._follow(command, now)

    def recent(self) -> tuple[RecentView, ...]:
        """The calls of all pools that ended last, the newest first."""
        return tuple(sorted(self._recent.values(), key=lambda view: view.ended or 0.0, reverse=True))

    def view(self, pool: str, since: str | None, *, now: float, epoch_offset: float) -> TimelineView | None:
        """What is new since that mark, or all if it is None or not of this broker; None if there is no such pool."""
        history = self._histories.get(pool)
        if history is None:
            return None
        for lease in history.waiting.values():
            self._show_wait(lease, now)
        self._prune(history, now)
        seen = self._read(since)
        spans = []
        for kept in reversed(history.spans.values()):
            if kept.revision <= seen:
                break
            spans.append(kept.view)
        return TimelineView(
            now=now + epoch_offset,
            epoch_offset=epoch_offset,
            mark=f"{self._name}.{self._revision}",
            whole=seen < 0,
            window_s=WINDOW_S,
            lanes=tuple(lane.view for lane in history.lanes.values()),
            spans=tuple(reversed(spans)),
            changes=tuple(change for change in history.changes if change.id > seen),
        )

    def _read(self, mark: str | None) -> int:
        """The revision that a mark stands for; -1 if it is none of ours."""
        name, _, revision = (mark or "").rpartition(".")
        ours = name == self._name and revision.isascii() and revision.isdigit() and len(revision) < 16
        return int(revision) if ours and int(revision) <= self._revision else -1

    # --- what happened

    def _take(self, event: Event, now: float) -> None:
        match event:
            case CallsReported(replica):
                if lane := self._lanes.get(replica):
                    self._note_calls(lane, event, now)
            case LeaseRequested(client, lease, pool, task):
                if (history := self._histories.get(pool)) and client in self._labels:
                    self._expect(_Lease(lease, client, self._labels[client], history, task, now))
            case AttachRequested(client, lease, replica, task, shared):
                if (lane := self._lanes.get(replica)) and client in self._labels:
                    label = self._labels[client]
                    self._expect(_Lease(lease, client, label, lane.history, task, now, attaches=True, shared=shared))
            case LeaseReleased(lease):
                self._give_up(lease, now)
            case LeaseEnded(lease):
                if (held := self._leases.get(lease)) and held.lane:
                    self._give_up(lease, now)
            case ReplicaLoading(replica):
                if (lane := self._lanes.get(replica)) and lane.view.ready_at is None:
                    self._end_setup(lane, "succeeded", now)
                    self._begin_setup(lane, "loading", now)
            case ReplicaReady(replica):
                if (lane := self._lanes.get(replica)) and lane.view.ready_at is None:
                    self._end_setup(lane, "succeeded", now)
                    lane.view = lane.view.model_copy(update={"ready_at": _rounded(now)})
            case ReplicaFailed(replica):
                if lane := self._lanes.get(replica):
                    self._end_setup(lane, "failed", now)
                    self._say(lane.history, f"{lane.view.name} failed to start", now)
            case ReplicaExited(replica):
                if lane := self._lanes.pop(replica, None):
                    self._close(lane, now)
            case ClientConnected(client, label):
                self._labels.setdefault(client, label)
            case ClientGone(client):
                if self._labels.pop(client, None) is not None:
                    # What runs in a lease, or in a replica that it has alone, still has to stop.
                    theirs = [each for each in self._leases.values() if each.client == client]
                    for gone in theirs:
                        if gone.lane is None or gone.shared:
                            self._give_up(gone.id, now)
            case PoolDeclared(client, pool, name) if client in self._labels:
                self._histories.setdefault(pool, _History(pool, name))
            case PoolScaled(pool, scaling):
                if history := self._histories.get(pool):
                    low, high = scaling.min_replicas, scaling.max_replicas
                    span = str(high) if low == high else f"{low} to {high}"
                    self._say(history, f"scaled by hand to {span} replica{'s' if high > 1 else ''}", now)

    def _follow(self, command: Command, now: float) -> None:
        match command:
            case Grant(_, lease, replica):
                self._serve(self._leases[lease], self._lanes[replica], now)
            case Refuse(_, lease, reason):
                self._give_up(lease, now, "cancelled" if reason == "cancelled" else "failed")
            case StartReplica(replica, pool, _, _, why):
                self._open(self._histories[pool], replica, why, now)
            case StopReplica(replica, why):
                lane = self._lanes[replica]
                if not lane.told_to_stop:
                    lane.told_to_stop = True
                    self._say(lane.history, f"{lane.view.name} stops: {why}", now)
            case ForgetPool(pool):
                for lease in [each.id for each in self._leases.values() if each.history.key == pool]:
                    del self._leases[lease]
                del self._histories[pool]

    # --- replicas

    def _open(self, history: _History, replica: str, why: str, now: float) -> None:
        index = self._index_of(replica)
        view = LaneView(
            replica=replica,
            name=f"{history.name}[{index}]",
            index=index,
            started_at=_rounded(now),
            ready_at=None,
            ended_at=None,
            why=why,
        )
        lane = self._lanes[replica] = history.lanes[replica] = _Lane(view, history)
        self._begin_setup(lane, "starting", now)
        self._say(history, f"{view.name} starts: {why}", now)

    def _begin_setup(self, lane: _Lane, kind: SpanKind, now: float) -> None:
        lane.setup = self._begin(lane.history, kind, lane.history.name, "", now, replica=lane.view.replica)

    def _end_setup(self, lane: _Lane, outcome: SpanOutcome, now: float) -> None:
        if lane.setup is not None:
            self._end(lane.history, lane.setup, outcome, now)
            lane.setup = None

    def _close(self, lane: _Lane, now: float) -> None:
        """The process is gone, and so is what ran in it."""
        if lane.setup is not None:
            self._end_setup(lane, "cancelled" if lane.told_to_stop else "lost", now)
        told = set(lane.running.values())
        for span in lane.running:
            self._end(lane.history, span, "lost", now)
        for lease in [each for each in self._leases.values() if each.lane is lane]:
            if lease.attaches:
                self._give_up(lease.id, now, "lost")
                continue
            if not lease.idle and lease.id not in told:  # it died before it could say what it ran
                span = self._begin(lane.history, "running", lease.task, lease.label, lease.since, lane.view.replica)
                self._end(lane.history, span, "lost", now)
            del self._leases[lease.id]
        if not lane.told_to_stop:
            self._say(lane.history, f"{lane.view.name} ended unexpectedly", now)
        lane.running.clear()
        lane.view = lane.view.model_copy(update={"ended_at": _rounded(now)})
        self._prune(lane.history, now)

    def _note_calls(self, lane: _Lane, event: CallsReported, now: float) -> None:
        history = lane.history
        for call in event.calls:
            self._revision += 1
            span = lane.calls.setdefault(call.number, self._revision)
            view = SpanView(
                id=span,
                replica=lane.view.replica,
                kind="running",
                task=call.task,
                client=call.client,
                began=_rounded(call.began),
                ended=None if call.ended is None else _rounded(call.ended),
                outcome=call.outcome,
                calls=call.calls,
            )
            if call.ended is None:
                lane.running[span] = call.lease
            else:
                lane.running.pop(span, None)
            self._keep(history, view, call.number)
        for use in event.uses:
            if lease := self._leases.get(use.lease):
                lease.idle, lease.since = not use.running, use.since
                lease.task = use.task
        if now - history.pruned_at >= PRUNE_S:
            self._prune(history, now)

    # --- requests

    def _expect(self, request: _Lease) -> None:
        if request.id not in self._leases:
            self._leases[request.id] = request.history.waiting[request.id] = request

    def _serve(self, lease: _Lease, lane: _Lane, now: float) -> None:
        history, replica = lease.history, lane.view.replica
        del history.waiting[lease.id]
        self._show_wait(lease, now)
        if lease.span is not None:
            self._end(history, lease.span, "succeeded", now, replica=replica)
        lease.lane, lease.since, lease.span = lane, now, None
        if lease.attaches:
            lease.span = self._begin(history, "attached", lease.task, lease.label, now, replica)

    def _give_up(self, id: str, now: float, outcome: SpanOutcome | None = None) -> None:
        """It is over. If it was still waiting, it got nothing."""
        lease = self._leases.pop(id, None)
        if lease is None:
            return
        lease.history.waiting.pop(id, None)
        if lease.span is not None:
            self._end(lease.history, lease.span, outcome or ("succeeded" if lease.lane else "cancelled"), now)

    def _show_wait(self, lease: _Lease, now: float) -> None:
        """A request that is still there has waited, if it took long enough."""
        if lease.span is None and now - lease.since >= SHORTEST_WAIT_S:
            lease.span = self._begin(lease.history, "waiting", lease.task, lease.label, lease.since)

    # --- spans

    def _begin(
        self, history: _History, kind: SpanKind, task: str, client: str, began: float, replica: str | None = None
    ) -> int:
        span = self._revision + 1
        view = SpanView(
            id=span,
            replica=replica,
            kind=kind,
            task=task,
            client=client,
            began=_rounded(began),
            ended=None,
            outcome=None,
            calls=1,
        )
        self._keep(history, view)
        return span

    def _end(self, history: _History, span: int, outcome: SpanOutcome, now: float, **changes: str) -> None:
        kept = history.spans[span]
        changed = {"ended": _rounded(now), "outcome": outcome, **changes}
        self._keep(history, kept.view.model_copy(update=changed), kept.number)

    def _keep(self, history: _History, view: SpanView, number: int = 0) -> None:
        self._revision += 1
        history.spans[view.id] = _Kept(view, self._revision, number)
        history.spans.move_to_end(view.id)
        if view.kind == "running" and view.ended is not None:
            self._recent[view.id] = RecentView.model_construct(**dict(view), pool=history.key)
            self._recent.move_to_end(view.id)
            if len(self._recent) > MOST_RECENT:
                self._recent.popitem(last=False)

    def _say(self, history: _History, text: str, now: float) -> None:
        self._revision += 1
        history.changes.append(ChangeView(id=self._revision, at=_rounded(now), text=text))

    def _prune(self, history: _History, now: float) -> None:
        """Forget what is too old, or too much. What goes on stays."""
        history.pruned_at = now
        horizon = now - WINDOW_S
        surplus = len(history.spans) - MOST_SPANS
        past: list[int] = []
        for id, kept in history.spans.items():
            if kept.view.ended is None:
                continue
            if kept.view.ended >= horizon and surplus <= len(past):
                break
            past.append(id)
        for id in past:
            self._drop(history, id)
        ended = [lane.view for lane in history.lanes.values() if lane.view.ended_at is not None]
        late = len(ended) - MOST_ENDED_LANES
        old = {view.replica for view in ended[: max(0, late)]}
        old |= {view.replica for view in ended if view.ended_at is not None and view.ended_at < horizon}
        if old:
            for id in [id for id, kept in history.spans.items() if kept.view.replica in old]:
                self._drop(history, id)
            for replica in old:
                del history.lanes[replica]
        while history.changes and history.changes[0].at < horizon:
            history.changes.popleft()

    def _drop(self, history: _History, id: int) -> None:
        kept = history.spans.pop(id)
        if (lane := history.lanes.get(kept.view.replica or "")) is not None:
            lane.calls.pop(kept.number, None)


def _rounded(instant: float) -> float:
    """To a tenth of a millisecond: a timeline has thousands of them."""
    return round(instant, 4)
