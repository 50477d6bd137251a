"""Runs a cell: here, while its notebook waits, or in the background."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from ...core.cells import CellReply
from .. import blocking, comms, outputs
from ..executor import background
from ..looping import awaiting
from .target import CellTarget


def run(target: CellTarget) -> CellReply:
    """Run a cell and wait for its end; Ctrl-C stops it.

    Raises: Whatever the cell raises, with the user's frames only; errors of `errors` about the pool.
    """
    token = comms.to_replica.set(None)  # what the call sets is its own
    try:
        reply: CellReply = blocking.call(target, (), {})
        return reply
    finally:
        comms.to_replica.reset(token)
        _let_go(target)


async def run_async(target: CellTarget) -> CellReply:
    """The same for an event loop."""
    reply: CellReply = await awaiting(target, (), {})
    return reply


def start(target: CellTarget, screen: outputs.Screen) -> Future[CellReply]:
    """Run a cell in the background. Cancelling the future stops the cell."""
    with outputs.shown_on(screen):
        future = asyncio.run_coroutine_threadsafe(run_async(target), background())
    future.add_done_callback(lambda _: _let_go(target))
    return future


def _let_go(target: CellTarget) -> None:
    """A slot that was held for a cell, whether it has come to use it or not."""
    if target.pinned is not None:
        target.pinned.let_go()
