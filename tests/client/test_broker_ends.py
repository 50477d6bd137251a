"""A broker that ends under calls, and slots that the caller's own thread holds: nobody waits for ever.

Broker and replicas are scripted, and the calls go through the public interface alone.
"""

from __future__ import annotations

import asyncio

import pytest
from scripted import Stage
from served import Service
from ways import WAYS, Way, work

from flyte_jupyter import errors
from flyte_jupyter.core import protocol as p

every_way = pytest.mark.parametrize("way", WAYS)


def next_broker(stage: Stage) -> None:
    stage.broker.end()
    stage.broker.start()


@every_way
def test_a_call_that_runs_delivers_its_outcome_although_the_broker_has_ended(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        stage.broker.end()
        wire.answer(call, "done")
        assert wire.rest() == b""

    with stage.plays(script, all_released=False):
        assert way(stage.environment().task(work), 1) == "done"


@every_way
def test_the_call_after_it_is_made_with_the_next_broker(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        call = wire.call(1)
        next_broker(stage)
        wire.answer(call, "done")
        stage.broker.expect(p.Declare)
        stage.broker.expect(p.Declare)
        wire = stage.grant()
        wire.answer(wire.call(2), "next")

    task = stage.environment().task(work)
    with stage.plays(script, all_released=False):
        assert way(task, 1) == "done"
        assert way(task, 2) == "next"


@every_way
def test_a_call_that_waits_for_a_slot_is_asked_for_again_with_the_next_broker(stage: Stage, way: Way) -> None:
    def script() -> None:
        stage.asked()
        next_broker(stage)
        wire = stage.grant()
        wire.answer(wire.call(1), "done")

    with stage.plays(script, all_released=False):
        assert way(stage.environment().task(work), 1) == "done"


@every_way
def test_its_request_comes_after_the_declaration_of_its_pool(stage: Stage, way: Way) -> None:
    def script() -> None:
        stage.asked()
        before = len(stage.broker.messages)
        next_broker(stage)
        wire = stage.grant()
        wire.answer(wire.call(1), "done")
        sent = stage.broker.messages[before:]  # other pools with a preload are declared, too
        asked = next(index for index, each in enumerate(sent) if isinstance(each, p.Acquire))
        pool = sent[asked].pool
        assert any(isinstance(each, p.Declare) and each.declaration.spec.key == pool for each in sent[:asked])

    with stage.plays(script, all_released=False):
        assert way(stage.environment().task(work), 1) == "done"


def test_all_calls_that_wait_are_asked_for_again_and_run_once_in_order(stage: Stage) -> None:
    service = Service(stage)

    def script() -> None:
        stage.asked()
        next_broker(stage)
        service()

    task = stage.environment().task(work)

    async def main() -> list[object]:
        return await asyncio.gather(*(task.aio(number) for number in range(20)))

    with stage.plays(script, all_released=False):
        assert asyncio.run(main()) == [*range(20)]
        service.over.set()
    assert service.ran == [*range(20)]


@every_way
def test_a_call_whose_replica_never_took_it_is_asked_for_again_with_the_next_broker(stage: Stage, way: Way) -> None:
    def script() -> None:
        replica = stage.replica(deaf=True)
        stage.say_granted(stage.asked(), replica)
        replica.wait_visited()
        stage.broker.end()
        replica.die()
        stage.broker.start()
        wire = stage.grant()
        wire.answer(wire.call(1), "done")

    with stage.plays(script, all_released=False):
        assert way(stage.environment().task(work), 1) == "done"


@every_way
def test_a_call_that_may_have_begun_fails_if_broker_and_replica_end(stage: Stage, way: Way) -> None:
    def script() -> None:
        wire = stage.grant()
        wire.call(1)
        next_broker(stage)
        wire.end()

    with stage.plays(script, all_released=False), pytest.raises(errors.BrokerGone):
        way(stage.environment().task(work), 1)


# --- one slot, which the caller's own thread has


def test_an_awaited_call_finds_the_slot_of_a_blocking_one(stage: Stage) -> None:
    service = Service(stage)
    task = stage.environment().task(work)

    async def main() -> list[object]:
        return [task(1), await task.aio(2), *[await asyncio.to_thread(task, 3)]]

    with stage.plays(service):
        assert asyncio.run(main()) == [1, 2, 3]
        service.over.set()
    assert service.ran == [1, 2, 3]


@pytest.mark.parametrize("times", [1, 3])
def test_a_blocking_call_finds_the_slot_of_an_awaited_one(stage: Stage, times: int) -> None:
    service = Service(stage, patience=1.0)
    task = stage.environment().task(work)

    async def main() -> list[object]:
        values: list[object] = []
        for number in range(times):
            values += [await task.aio(number), task(-number)]
        return values

    with stage.plays(service):
        assert asyncio.run(main()) == [sign * number for number in range(times) for sign in (1, -1)]
        service.over.set()
