"""A loader runs once per process, by whomever and however often it is called at once."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from flyte_jupyter.loader import PreloadFunction, cached


def test_a_loader_runs_once_per_arguments() -> None:
    loads: list[str] = []

    @cached
    def model(name: str = "small") -> object:
        loads.append(name)
        return object()

    assert model() is model()
    assert model("large") is not model()
    assert loads == ["small", "large"]
    assert model.__name__ == "model"


def test_threads_that_call_at_once_share_one_load() -> None:
    loads: list[int] = []
    together = threading.Barrier(8)
    inside, go_on = threading.Event(), threading.Event()

    @cached
    def model() -> object:
        loads.append(1)
        inside.set()
        assert go_on.wait(5)
        return object()

    def call(_: int) -> object:
        together.wait(5)
        return model()

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(call, number) for number in range(8)]
        assert inside.wait(5)
        go_on.set()
        assert len({id(each.result(5)) for each in calls}) == 1
    assert loads == [1]


def test_a_loader_may_call_itself_and_another() -> None:
    @cached
    def model(size: int) -> int:
        return 0 if size == 0 else 1 + model(size - 1)

    assert model(10) == 10


def test_a_load_that_fails_is_tried_again() -> None:
    outcomes = [RuntimeError("no network"), "model"]

    @cached
    def model() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(RuntimeError, match="no network"):
        model()
    assert model() == "model"


def test_coroutines_that_call_at_once_share_one_load() -> None:
    loads: list[int] = []

    @cached
    async def model() -> object:
        loads.append(1)
        await asyncio.sleep(0)
        return object()

    async def main() -> None:
        found = await asyncio.gather(*(model() for _ in range(5)))
        assert len(set(map(id, found))) == 1
        assert await model() is found[0]

    asyncio.run(main())
    assert loads == [1]
    assert inspect.iscoroutinefunction(model)


def test_a_waiter_that_is_cancelled_does_not_cancel_the_load() -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        @cached
        async def model() -> str:
            await go_on.wait()
            return "model"

        first, second = asyncio.create_task(model()), asyncio.create_task(model())
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go_on.set()
        assert await second == "model"

    asyncio.run(main())


def test_a_load_that_fails_after_its_only_waiter_left_is_tried_again() -> None:
    async def main() -> None:
        go_on, loads = asyncio.Event(), []

        @cached
        async def model() -> int:
            loads.append(1)
            await go_on.wait()
            if len(loads) == 1:
                raise RuntimeError("no network")
            return len(loads)

        waiter = asyncio.create_task(model())
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        go_on.set()
        await asyncio.sleep(0)
        assert await model() == 2

    asyncio.run(main())


def test_everybody_who_waits_for_a_load_hears_of_its_failure() -> None:
    async def main() -> None:
        loads: list[int] = []

        @cached
        async def model() -> str:
            loads.append(1)
            await asyncio.sleep(0)
            if len(loads) == 1:
                raise RuntimeError("no network")
            return "model"

        outcomes = await asyncio.gather(model(), model(), return_exceptions=True)
        assert [str(each) for each in outcomes] == ["no network", "no network"]
        assert await model() == "model"
        assert loads == [1, 1]

    asyncio.run(main())


def test_a_loop_of_its_own_finds_what_another_has_loaded_and_loads_what_that_has_not() -> None:
    loads: list[str] = []

    @cached
    async def model(name: str) -> str:
        loads.append(name)
        await asyncio.sleep(0 if name != "slow" or loads.count("slow") > 1 else 3600)
        return name

    async def begin() -> None:
        assert await model("quick") == "quick"
        waiter = asyncio.create_task(model("slow"))
        await asyncio.sleep(0)
        waiter.cancel()

    asyncio.run(begin())  # a sync task that uses asyncio.run
    assert asyncio.run(model("quick")) == "quick"
    assert asyncio.run(model("slow")) == "slow"
    assert loads == ["quick", "slow", "slow"]


def test_what_an_async_loader_sets_in_its_context_is_its_first_callers_too() -> None:
    setting: ContextVar[str] = ContextVar("setting", default="unset")

    @cached
    async def load() -> None:
        await asyncio.sleep(0)
        setting.set("by the loader")

    async def call() -> str:
        await load()
        return setting.get()

    async def both() -> list[str]:
        return await asyncio.gather(call(), call())

    assert asyncio.run(both()) == ["by the loader", "unset"]


def plain(name: str = "small") -> list[str]:
    """Loads."""
    return [name]


def test_a_preload_function_looks_like_the_loader_and_travels_as_it() -> None:
    made = PreloadFunction(plain)
    assert made() is made()
    assert (made.__name__, made.__doc__, repr(made)) == ("plain", "Loads.", "<preload plain>")
    function, wrap = made.__flyte_capture__()
    assert function is plain
    again = pickle.loads(wrap)(function)
    assert again() == made()
    assert not made.is_async
