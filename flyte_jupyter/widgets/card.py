"""The pool card: an anywidget whose view is a function of the broker's snapshot.

The browser counts down from deadlines, so that a message comes only when something has changed. They are sent by a
thread of this module, which goes on while a cell blocks.
"""

from __future__ import annotations

import threading
import time
import weakref
from pathlib import Path
from typing import Any, Final

import anywidget
from traitlets import Dict, Unicode

from .. import errors
from ..client import broker
from ..client.handle import PoolHandle
from ..core import protocol as p

PUSH_S: Final = 0.2
"""At most one message in this time."""
LOOK_S: Final = 2.0
"""How often a broker is looked for, while this process has none."""

HERE: Final = Path(__file__).parent


class PoolCard(anywidget.AnyWidget):
    """One pool. All its views, in several cells or tabs, show the same state.

    Attributes:
        state: `now` (seconds since 1970), `epoch_offset` (to be added to the instants of `pool`), `pool` (a PoolView as
            JSON, None while the broker knows nothing of it), `devices`, `spawned` (why its replicas are not forked, or
            None) and `broker` (whether there is one).
    """

    _esm = HERE / "card.js"
    _css = HERE / "card.css"
    name = Unicode().tag(sync=True)
    key = Unicode().tag(sync=True)
    state = Dict().tag(sync=True)

    def __init__(self, pool: PoolHandle) -> None:
        super().__init__(name=pool.name, key=pool.key, state={"now": time.time(), "broker": False, "pool": None})
        self._pool = weakref.ref(pool)
        self.on_msg(self._on_message)

    def show(self, snapped: p.Snapped | None) -> None:
        """Send what has changed to every view."""
        if snapped is None:
            self.state = {**self.state, "now": time.time(), "broker": False}
            return
        found = snapped.snapshot.pool(self.key)
        self.state = {
            "now": time.time(),
            "broker": True,
            "epoch_offset": snapped.epoch_offset,
            "pool": None if found is None else found.model_dump(mode="json"),
            "devices": [device.model_dump(mode="json") for device in snapped.snapshot.devices],
            "spawned": snapped.spawned.get(self.key),
        }

    def _on_message(self, _: object, content: dict[str, Any], __: object) -> None:
        # Not here: this may be the main thread, and a stop waits for running tasks.
        threading.Thread(target=self._do, args=(content,), name="flyte_jupyter: card", daemon=True).start()

    def _do(self, content: dict[str, Any]) -> None:
        pool = self._pool()
        if pool is None:
            return
        try:
            self._order(pool, str(content.get("verb")), content.get("body") or {})
        except Exception as problem:
            self.send({"error": str(problem)})

    def _order(self, pool: PoolHandle, verb: str, body: dict[str, Any]) -> None:
        match verb:  # the verbs of the server's REST endpoint, and their bodies
            case "scale":
                pool.scale(int(body["minimum"]), int(body["maximum"]))
            case "warm":
                pool.warm(wait=False)
            case "keep":
                pool.keep(float(body["seconds"]))
            case "drain":
                pool.stop(wait=False)
            case "stop":
                pool.stop(force=bool(body.get("force")), wait=False)
            case _:
                raise ValueError(f"a card cannot {verb!r}")


_cards: weakref.WeakKeyDictionary[PoolHandle, PoolCard] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_follower: threading.Thread | None = None


def card_of(pool: PoolHandle) -> PoolCard:
    """The pool's card; made when first asked for."""
    global _follower  # noqa: PLW0603
    with _lock:
        card = _cards.get(pool)
        if card is None:
            card = _cards[pool] = PoolCard(pool)
        if _follower is None or not _follower.is_alive():
            _follower = threading.Thread(target=_follow, name="flyte_jupyter: cards", daemon=True)
            _follower.start()
    return card


def _follow() -> None:
    """Show every change on every card, for as long as there are cards."""
    looked_at = float("-inf")
    while _cards:
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
                while True:
                    with changed:
                        changed.wait_for(lambda latest=latest: latest)  # type: ignore[misc]
                        snapped = latest.pop()
                    _show(snapped)
                    if snapped is None:
                        break
                    time.sleep(PUSH_S)
        except errors.BrokerGone:
            _show(None)


def _show(snapped: p.Snapped | None) -> None:
    for card in list(_cards.values()):
        card.show(snapped)
