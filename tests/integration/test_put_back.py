"""What a preload has set in its process is there in each task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import START_S, assert_quiet, attempt

import flyte_jupyter as flyte

pytestmark = pytest.mark.kernel

set_up = flyte.TaskEnvironment("set-up", reusable=flyte.ReusePolicy(replicas=(1, 1)))


def load() -> None:
    import numpy

    numpy.seterr(all="raise")


async def load_more() -> None:
    import numpy

    numpy.set_printoptions(precision=2)


@pytest.fixture(autouse=True)
def _always(shared_broker: Path) -> Iterator[None]:
    for loader in (load, load_more):
        flyte.pool(set_up).preload(loader)
    flyte.pool(set_up).warm()
    yield
    assert_quiet(set_up, timeout=START_S)


@set_up.task(timeout=20)
def state() -> Any:
    import numpy

    return numpy.geterr(), numpy.get_printoptions()["precision"]


@set_up.task(timeout=20)
def divide_by_zero() -> None:
    import numpy

    numpy.float64(1) / numpy.float64(0)


def test_what_a_preload_has_set_is_there_in_each_task() -> None:
    for _ in range(2):
        assert state() == (dict.fromkeys(("divide", "over", "under", "invalid"), "raise"), 2)
        assert isinstance(attempt(divide_by_zero), FloatingPointError)
