"""The pool card: an anywidget whose view is a function of the broker's snapshot.

The browser counts down from deadlines, so that a message comes only when something has changed. They are sent by a
thread of this module, which goes on while a cell blocks.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import anywidget
from traitlets import Dict, Unicode

from .. import errors
from ..client import broker
from ..client.handle import handle_with
from ..client.identity import describe_client
from ..client.running import RunningPool
from ..core import protocol as p
from ..core.snapshot import PoolView, Snapshot
from ..core.verbs import POOL, REPLICA
from ..logs import read_log
from ..peek import peek
from . import seams
from .esm import packed

PUSH_S: Final = 0.2
"""At most one message in this time."""
LOOK_S: Final = 2.0
"""How often a broker is looked for, while this process has none."""
MEASURE_S: Final = 3.0
"""How often it is measured what replicas use."""
SAME_S: Final = 0.05
"""What the offset of a clock may differ by without being sent."""
RUNNING: Final = frozenset(("starting", "loading", "busy", "attached"))
"""States in which what a replica uses may change."""

HERE: Final = Path(__file__).parent


class PoolCard(anywidget.AnyWidget):
    """One pool. All its views, in several cells or tabs, show the same state.

    Once the notebook has used its pool, and declares another one under the same name, it is that one's card.

    Attributes:
        key: Of the pool that `state` tells of.
        client: What other notebooks call this one.
        state: `now` (seconds since 1970), `epoch_offset` (to be added to the instants of `pool`), `pool` (a PoolView as
            JSON, None while the broker knows nothing of it), `devices`, `usage` (of memory), `spawned` (why its
            replicas are not forked, or None) and `broker` (whether there is one).
    """

    _esm = packed(HERE / "card.js")
    _css = HERE / "card.css"
    name = Unicode().tag(sync=True)
    key = Unicode().tag(sync=True)
    client = Unicode().tag(sync=True)
    state = Dict().tag(sync=True)

    def __init__(self, pool: RunningPool) -> None:
        super().__init__(
            name=pool.name,
            key=pool.key,
            client=describe_client().label,
            state={"now": time.time(), "broker": False, "pool": None},
        )
        self._pool = weakref.ref(pool)
        self._declared = False  # until then ours may be the newer one
        seams.answer_where_asked(self.comm)  # a card can answer from any thread
        self.on_msg(self._on_message)

    def show(self, snapped: p.Snapped | None) -> None:
        """Send what has changed to every view."""
        if snapped is None:
            self._send_state({**self.state, "broker": False})
            return
        with self.hold_sync():
            self._turn(snapped.snapshot)
            self._send_state(self._state(snapped))

    def shows(self, pool: RunningPool) -> bool:
        return self._handle() is pool

    def _handle(self) -> RunningPool | None:
        """Of our pool; another one than before if it was given up and then declared again as it was."""
        return self._pool() or handle_with(self.key)

    def _turn(self, snapshot: Snapshot) -> None:
        """Turn to the pool that this notebook has declared in place of ours."""
        pools = (view for view in snapshot.pools if view.name == self.name and not view.single_use)
        declared = {view.key for view in pools if self.client in view.declared_by}
        if self.key in declared:
            self._declared = True
        elif self._declared:
            pool = next(filter(None, map(handle_with, declared)), None)
            if pool is not None:
                self._pool, self.key = weakref.ref(pool), pool.key

    def _state(self, snapped: p.Snapped) -> dict[str, Any]:
        found = snapped.snapshot.pool(self.key)
        return {
            "broker": True,
            "epoch_offset": self._offset(snapped.epoch_offset),
            "pool": None if found is None else found.model_dump(mode="json"),
            "devices": [device.model_dump(mode="json") for device in snapped.snapshot.devices],
            "usage": self._part(snapped, found),
            "spawned": snapped.spawned.get(self.key),
        }

    def _offset(self, told: float) -> float:
        """Two clocks, read one after the other: what differs by that alone is the same."""
        known: float = self.state.get("epoch_offset", math.inf)
        return known if abs(told - known) < SAME_S else told

    def _part(self, snapped: p.Snapped, pool: PoolView | None) -> dict[str, Any]:
        """What this pool uses, as it was when somebody measured last."""
        if pool is None or snapped.usage.measured_at is None:
            usage: dict[str, Any] = self.state.get("usage", {"devices": {}, "replicas": {}})
            return usage
        replicas, devices = snapped.usage.replicas, snapped.usage.devices
        held = dict.fromkeys(uuid for replica in pool.replicas for uuid in replica.devices)
        return {
            "devices": {uuid: devices[uuid].model_dump(mode="json") for uuid in held if uuid in devices},
            "replicas": {each.id: replicas[each.id].model_dump() for each in pool.replicas if each.id in replicas},
        }

    def _send_state(self, state: dict[str, Any]) -> None:
        # Much of what happens is about other pools.
        if state | {"now": 0} != self.state | {"now": 0}:
            self.state = state | {"now": time.time()}

    def _on_message(self, _: object, content: dict[str, Any], __: object) -> None:
        # Not here: this may be the main thread, and a look into a replica takes its time.
        threading.Thread(target=self._answer, args=(content,), name="flyte_jupyter: card", daemon=True).start()

    def _answer(self, content: dict[str, Any]) -> None:
        number, verb, body = content.get("number"), str(content.get("verb")), content.get("body") or {}
        try:
            pool = self._handle()
            if pool is None:
                raise LookupError(f"pool {self.name!r} was declared anew here: run the cell again for its card")
            if content.get("replica") is None:
                answer = self._of_pool(pool, verb, body)
            else:
                answer = self._of_replica(pool, verb, body, str(content["replica"]))
            self.send({"number": number, "answer": answer})
        except Exception as problem:
            self.send({"number": number, "error": errors.whole_text(problem)})

    # The verbs of the server's REST endpoint, with their bodies and answers; and what time it is here.

    def _of_pool(self, pool: RunningPool, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case "timeline":
                return self._timeline(pool, body.get("since"))
            case "clock":
                return {"now": time.time()}
            case _:
                pool.order(POOL[verb].of(**body))
        return {}

    def _timeline(self, pool: RunningPool, since: str | None) -> dict[str, Any]:
        told = broker.connect(start=False).timeline(pool.key, since)
        if told is None:
            raise LookupError(f"the broker knows no pool {pool.name!r} yet: the next call of a task starts it")
        return told.model_dump(mode="json")

    def _of_replica(self, pool: RunningPool, verb: str, body: dict[str, Any], replica: str) -> dict[str, Any]:
        found = pool.status()
        view = next((each for each in found.replicas if each.id == replica), None) if found is not None else None
        if view is None:
            raise LookupError(f"pool {pool.name!r} has no replica {replica!r} any more")
        match verb:
            case "peek":
                return {"lines": peek(view).lines(time.monotonic())}
            case "log":
                return asdict(read_log(replica, tail=int(body.get("tail", 200)), since=None))
            case _:
                pool.order_at(view.index, REPLICA[verb].of(**body))
        return {}


_cards: list[PoolCard] = []
"""Those that were shown; ipywidgets keeps them, too."""
_lock = threading.Lock()
_follower: threading.Thread | None = None


def card_of(pool: RunningPool) -> PoolCard:
    """The pool's card; made when first asked for."""
    global _follower  # noqa: PLW0603
    with _lock:
        _cards[:] = _open_cards()
        card = next((card for card in _cards if card.shows(pool)), None)
        if card is None:
            card = PoolCard(pool)
            _cards.append(card)
        if _follower is None or not _follower.is_alive():
            _follower = threading.Thread(target=_follow, name="flyte_jupyter: cards", daemon=True)
            _follower.start()
    return card


def _follow() -> None:
    """Show every change on every card, for as long as there are cards that are open."""
    global _follower  # noqa: PLW0603
    looked_at = float("-inf")
    while True:
        with _lock:
            if not _open_cards():
                _follower = None  # whoever makes the next card starts another
                return
        connection = broker.current()
        if connection is None:
            try:
                if time.monotonic() - looked_at >= LOOK_S:  # another notebook may have started one
                    connection = broker.connect(start=False)
            except errors.BaseRuntimeError:
                looked_at = time.monotonic()
                _show(None)
        if connection is None:
            time.sleep(PUSH_S)
            continue
        changed = threading.Condition()
        latest: list[p.Snapped | None] = []

        def take(snapped: p.Snapped | None, changed: Any = changed, latest: Any = latest) -> None:
            with changed:
                latest[:] = [snapped]
                changed.notify()

        try:
            with connection.watching(take):
                measured, measured_at = -1, -math.inf
                due: float | None = None
                while _open_cards():
                    left = None if due is None else max(0.0, due - time.monotonic())
                    with changed:
                        heard = changed.wait_for(lambda latest=latest: bool(latest), left)  # type: ignore[misc]
                        snapped = latest.pop() if heard else None
                    if not heard or (due is not None and time.monotonic() >= due):
                        snapped = connection.snapshot(usage=True)
                        measured, measured_at = snapped.snapshot.revision, time.monotonic()
                    _show(snapped)
                    if snapped is None:
                        break
                    # What is used is measured while something goes on, and once after that: a card that nobody looks at
                    # must not cost anything.
                    moved = snapped.snapshot.revision != measured or _something_runs(snapped)
                    due = measured_at + MEASURE_S if moved else None
                    time.sleep(PUSH_S)
        except (errors.BrokerGone, errors.BrokerSilent, errors.BrokerUnavailable):
            _show(None)


def _open_cards() -> list[PoolCard]:
    """Those whose front end has not let them go."""
    return [card for card in list(_cards) if card.comm is not None]


def _something_runs(snapped: p.Snapped) -> bool:
    pools = (snapped.snapshot.pool(card.key) for card in _open_cards())
    return any(replica.state in RUNNING for pool in pools if pool is not None for replica in pool.replicas)


def _show(snapped: p.Snapped | None) -> None:
    for card in _open_cards():
        card.show(snapped)
