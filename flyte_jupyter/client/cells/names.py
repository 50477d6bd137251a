"""The names that a cell would find on a replica, for completion and for errors."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final

from ... import errors
from ...core import payload
from ...core.call_events import Request
from .. import blocking, broker, outputs
from ..leases import LeaseGroup
from ..running import RunningPool
from ..target import Outgoing, Target
from .sessions import open_session

NAMES_S: Final = 0.2
"""How long completion may wait for the names on a replica."""
NAMES_FRESH_S: Final = 5.0

_names: dict[tuple[str, str, str], tuple[float, list[str]]] = {}


def names(pool: RunningPool, scope: str, session: str) -> list[str]:
    """The names that a cell would find on a replica; [] if that cannot be told at once. Nothing is started for it."""
    key = (pool.key, scope, session)
    known = _names.get(key)
    if known is None or time.monotonic() - known[0] > NAMES_FRESH_S:
        asking = threading.Thread(target=copy_context().run, args=(_ask_names, pool, key), daemon=True)
        asking.start()
        asking.join(NAMES_S)
    return _names.get(key, (0.0, []))[1]


class _Names(Target):
    """The question for a replica's names. It waits for nothing that takes long, and disturbs nobody."""

    def __init__(self, pool: RunningPool, group: LeaseGroup | None, scope: str, session: str) -> None:
        request = Request("names", pool.name, max_queued=NAMES_S, deadline=NAMES_S, on_interrupt="leave")
        super().__init__(_nothing, request, pool)
        self._asked = payload.dump_arguments(((scope, session), {}))
        self._group = group

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any], attempt: int) -> Outgoing:
        return Outgoing(b'[[], "names", "names"]', (), self._asked, 0, vars(sys.modules["__main__"]))

    def group(self) -> LeaseGroup:
        return self._group or super().group()


def _ask_names(pool: RunningPool, key: tuple[str, str, str]) -> None:
    outputs.mute()
    if broker.current() is None:
        return
    with suppress(errors.BaseRuntimeError, OSError):
        session = open_session(pool, key[2]) if key[1] == "session" else None
        asking = _Names(pool, session, key[1], key[2])
        if asking.group().has_idle or (session is None and _has_free_replica(pool)):
            found = blocking.call(asking, (), {})
            _names[key] = (time.monotonic(), list(found))


def _has_free_replica(pool: RunningPool) -> bool:
    view = pool.status()
    if view is None or view.waiting:
        return False
    return any(replica.state == "ready" and not replica.calls for replica in view.replicas)


def forget_names() -> None:
    """A cell may have made others."""
    _names.clear()


def _nothing() -> None:
    """The question has a verb of the replica instead."""
