"""Carries out those commands of a call that are the same on a thread and on an event loop."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .. import errors, modules
from ..core.call_events import Command, Do, Revoke
from ..core.frames import Answer, Buffer, Frame, Kind, encode
from ..core.protocol import RestartReplica
from ..core.protocol import Revoke as RevokeLease
from . import outputs
from .capture import Captured
from .lease import Lease


def order(command: Command, lease: Lease, number: int) -> None:
    """Have a call stopped, or its replica ended."""
    match command:
        case Do.CANCEL:
            lease.cancel(number)
        case Do.REPLACE:
            with suppress(errors.BrokerGone):
                lease.group.connection.send(RestartReplica(replica=lease.replica))
        case Revoke(why):
            with suppress(errors.BrokerGone):
                lease.group.connection.send(RevokeLease(lease=lease.id, why=why))


def answer(command: Command, frame: Frame, names: dict[str, Any], *, nobody: bool = False) -> list[Buffer] | None:
    """Show the output in a frame, or return the answer to the question in it, to be sent.

    Args:
        names: The globals of the notebook that calls.
        nobody: Nobody waits for the call any more: output is not shown, and the user is not asked.
    """
    if command is Do.SHOW:
        if not nobody:
            outputs.show(frame.flags, frame.body)
        return None
    if command is Do.ANSWER:
        text, flags = (b"", Answer.NOBODY) if nobody else outputs.answer(frame.body)
        return encode(Kind.ANSWER, frame.call, text, flags=flags)
    return encode(Kind.GIVE, frame.call, _given(names, *pickle.loads(frame.body)))


def _given(names: dict[str, Any], name: str, has: Mapping[str, tuple[str, ...] | None] | None) -> bytes:
    """The definitions of a name that a task looks for; empty if the notebook has no such name, or cannot send it.

    Or, if `has` is None, the text that the module of that name was loaded from.
    """
    if has is None:
        loaded = modules.loaded(name)
        return b"" if loaded is None else pickle.dumps(loaded.text, 5)
    try:
        closure = Captured.of_names([name], names).closure()
    except (NameError, errors.ArgumentNotSerializable):
        return b""
    return pickle.dumps(closure.beyond(has), 5)
