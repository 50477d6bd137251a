"""A cell and the pool it runs in: what is sent for it, over whose leases, and what comes back."""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from ...core import failure, payload
from ...core.cells import CellRequest
from ...core.definitions import ImportDefinition, SourceDefinition, ValueDefinition
from ...core.frames import Buffer, Frame, Status
from .. import comms, outputs
from ..calling import call_meta
from ..capture import Captured
from ..channel import Channel
from ..lease import Lease
from ..leases import LeaseGroup
from ..running import RunningPool
from ..target import Outgoing, Target, locate, ran_on
from .pinned import PinnedGroup
from .request import PRIORITIES, Cell, request_of
from .sessions import session_group


@dataclass(slots=True)
class Times:
    """What happened to a cell, on the monotonic clock; for its footer."""

    asked_at: float = 0.0
    began_at: float | None = None
    ended_at: float | None = None
    replica: str = ""  # "gpu[1]"
    replica_id: str = ""
    on_begin: Callable[[], None] | None = None


class CellTarget(Target):
    """A cell and the pool it runs in."""

    def __init__(self, cell: Cell, pool: RunningPool) -> None:
        super().__init__(_no_function, request_of(cell, pool.name), pool)
        self.cell = cell
        self.times = Times()
        self.attempt = 0  # retries so far
        self.pinned: PinnedGroup | None = None  # the slot it has to run in
        self.priority = PRIORITIES[cell.priority]
        self._checked: Outgoing | None = None
        self._defined = tuple(sorted(name for name, value in cell.push.items() if is_definition(value)))
        self._captured = Captured.of_names(self._defined, _main())
        self._request = CellRequest(
            code=cell.code,
            filename=cell.filename,
            first_line=cell.first_line,
            scope=cell.scope,
            session=cell.session,
            push={name: value for name, value in cell.push.items() if name not in self._defined},
            definitions=self._defined,
            pull=cell.pull,
        )

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any], attempt: int) -> Outgoing:
        self.attempt = attempt
        if self._checked is not None:
            checked, self._checked = self._checked, None
            return checked
        meta = call_meta()
        sent = ((self._request,), {}) if meta is None else ((self._request,), {}, meta)
        try:
            pickled = payload.dump_arguments(sent)
        except Exception as problem:
            raise self._not_serializable((), dict(self._request.push), problem) from None
        closures = []
        if pickled.names:  # classes of the notebook, whose instances are pushed
            closures.append(Captured.of_names(pickled.names, _main()).closure())
        if self._defined:
            self._closure = self._captured.closure()
            closures.append(self._closure)
        reference = json.dumps([[closure.digest for closure in closures], self.name, "cell"]).encode()
        return _Noted(Outgoing(reference, closures, pickled, attempt, _main()), self.times)

    def group(self) -> LeaseGroup:
        if not self.times.asked_at:
            self.times.asked_at = time.monotonic()
        if self.pinned is not None:
            return self.pinned
        if self.cell.scope != "session":
            return super().group()
        return session_group(self.pool, self.cell.session)

    def check(self) -> None:
        """Raises ArgumentNotSerializable if something in it cannot be sent; what it has encoded is sent first."""
        self._checked = self.encode((), {}, 0)

    def parcels(self) -> dict[str, tuple[str, int]]:
        """What is sent besides the code: how, and how many bytes. Raises as `check`."""
        self.check()
        found = {}
        for name, value in self.cell.push.items():
            if name not in self._defined:
                pickled = payload.dump_arguments(value)
                found[name] = "a copy", sum(memoryview(part).nbytes for part in (pickled.data, *pickled.buffers))
        for definition in self._captured.closure().definitions if self._defined else ():
            match definition:
                case ImportDefinition():
                    found[definition.name] = "an import", len(definition.module)
                case SourceDefinition(text=text):
                    found[definition.name] = "its source", len(text.lines)
                case ValueDefinition(pickled=data, texts=texts):
                    found[definition.name] = "its code" if texts else "a copy", len(data)
        return found

    def result(self, frame: Frame, lease: Lease) -> Any:
        self.times.ended_at = time.monotonic()
        self.times.replica = lease.name
        self.times.replica_id = lease.replica
        if frame.flags != Status.ERROR:
            return super().result(frame, lease)
        described: failure.Failure = pickle.loads(frame.body)
        if self._closure is not None:
            locate(described, self._closure.definitions)
        raise ran_on(
            failure.rebuild(described, payload.plain_find), lease
        )  # as a local cell's: the footer names the replica


class _Noted(Outgoing):
    """Notes when it is sent, and how a widget reaches the replica."""

    __slots__ = ("_plain", "_times")

    def __init__(self, plain: Outgoing, times: Times) -> None:
        self.closures = plain.closures
        self.names = plain.names
        self.nbytes = plain.nbytes
        self._plain = plain
        self._times = times

    def on(self, channel: Channel) -> tuple[int, list[Buffer]]:
        self._times.began_at = time.monotonic()
        if self._times.on_begin is not None:
            self._times.on_begin()
        comms.to_replica.set(comms.Link(channel.address, outputs.show))
        return self._plain.on(channel)


def _no_function() -> None:
    """A cell has a text instead."""


def _main() -> dict[str, Any]:
    return vars(sys.modules["__main__"])


def is_definition(value: object) -> bool:
    """Whether it goes to a replica as what it is made of (source, an import), not as a copy."""
    return isinstance(value, FunctionType | ModuleType | type) or hasattr(type(value), "__flyte_capture__")
