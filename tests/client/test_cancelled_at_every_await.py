"""A task that makes calls is cancelled after 0, 1, 2, ... turns of its loop, until it ends before that."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from scripted import Stage, open_stage
from scripted_broker import PATIENCE_S
from served import Service
from ways import Task, work

import flyte_jupyter as flyte
from flyte_jupyter import runtime
from flyte_jupyter.client import broker
from flyte_jupyter.client.looping import interruptible
from flyte_jupyter.core.frames import Kind

MOST = 300
"""More turns than any of these takes."""


class CountingLoop(asyncio.SelectorEventLoop):
    """A loop that cancels a task after so many turns."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns
        self.victim: asyncio.Task[Any] | None = None
        self.problems: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.problems.append(context))

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]
        if self.victim is not None and not self.victim.done():
            if self.turns == 0:
                self.victim.cancel()
            self.turns -= 1

    @property
    def has_cancelled(self) -> bool:
        return self.turns < 0

    @property
    def sockets(self) -> int:
        """That it watches, beside its own."""
        return len(self._selector.get_map()) - 1  # type: ignore[attr-defined]

    @property
    def timers(self) -> list[asyncio.TimerHandle]:
        own = interruptible._handle
        return [each for each in self._scheduled if not each.cancelled() and each is not own]  # type: ignore[attr-defined]


class Cancelled:
    """The task that is cancelled, and what its calls have as their arguments; what runs beside it."""

    arguments: frozenset[object] = frozenset([1])

    async def victim(self, task: Task) -> object:
        return await task.aio(1)

    async def beside(self, task: Task) -> None:
        pass


class OneOfThree(Cancelled):
    async def beside(self, task: Task) -> None:
        assert await asyncio.gather(task.aio(2), task.aio(3)) == [2, 3]


class Mapped(Cancelled):
    arguments = frozenset([1, 2, 3])

    async def victim(self, task: Task) -> object:
        return [each async for each in flyte.map.aio(task, [1, 2, 3])]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.001)


async def settle(awaitable: Awaitable[object]) -> object:
    (outcome,) = await asyncio.gather(awaitable, return_exceptions=True)
    return outcome


def cancel_after(turns: int, stage: Stage, case: Cancelled, slots: int, *, warm: bool) -> bool:
    """Whether it was cancelled before it ended."""
    task = stage.environment(replicas=slots).task(work)
    service = Service(stage, slots)
    loop = CountingLoop(turns)

    async def main() -> None:
        if warm:
            assert await task.aio(0) == 0
        loop.victim = loop.create_task(case.victim(task))
        beside = loop.create_task(case.beside(task))
        outcome = await settle(loop.victim)
        assert isinstance(outcome, asyncio.CancelledError) or outcome in (1, [1, 2, 3])
        await beside
        assert await task.aio(9) == 9
        await until(lambda: not loop.sockets)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with stage.plays(service):
        try:
            loop.run_until_complete(main())
            assert loop.timers == []
        finally:
            loop.close()
        stage.expect_all_released()
        service.over.set()
    gc.collect()
    assert loop.problems == []
    assert len(service.ran) == len(set(service.ran)), "a call was made twice"
    told = [(wire, order) for wire in stage.wires() for order in stage.replica_of(wire).orders]
    cancelled = [(wire.lease, order.call) for wire, order in told if order.kind == Kind.CANCEL]
    assert len(cancelled) == len(set(cancelled)), "it was told twice"
    assert {service.numbers.get(each) for each in cancelled} <= {*case.arguments, None}, "another call was cancelled"
    return loop.has_cancelled


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("warm", [False, True], ids=["with a new broker", "with a lease"])
@pytest.mark.parametrize("case", [Cancelled(), OneOfThree(), Mapped()], ids=["await", "gather", "map"])
def test_a_call_can_be_cancelled_at_every_await(
    case: Cancelled, warm: bool, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for turns in itertools.count():
        with open_stage() as stage, monkeypatch.context() as patch:
            patch.setenv(runtime.VARIABLE, str(stage.folder))
            patch.setattr(broker, "_connection", None)
            if not cancel_after(turns, stage, case, slots, warm=warm):
                break
        assert turns < MOST
    assert turns > 1
