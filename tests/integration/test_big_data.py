"""Big arguments and results, with real kernels: they arrive as they were, cost one copy, and leave nothing."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import START_S, attempt, memory_files, ready, wait_until

import flyte_jupyter as flyte
from flyte_jupyter import errors, memory

pytestmark = pytest.mark.kernel

MIB = 1 << 20

big = flyte.TaskEnvironment("big-data", reusable=flyte.ReusePolicy(replicas=1))
wide = flyte.TaskEnvironment("big-data-async", reusable=flyte.ReusePolicy(replicas=1, concurrency=3))


@pytest.fixture(scope="module", autouse=True)
def _pools(shared_broker: Path) -> Iterator[None]:
    for environment in (big, wide):
        flyte.pool(environment).warm()
    yield
    for environment in (big, wide):
        flyte.pool(environment).stop(force=True)


@pytest.fixture(autouse=True)
def _nothing_lent(_pools: None) -> Iterator[None]:
    yield
    memory.close()
    wait_until(lambda: memory_files(os.getpid()) == [], what=lambda: f"memory files: {memory_files(os.getpid())}")


# --- what tasks do


@big.task
def echo(value: Any) -> Any:
    return value


@wide.task
async def echo_async(value: Any) -> Any:
    return value


@big.task
def negate(array: np.ndarray) -> float:
    array *= -1
    return float(array.sum())


@big.task
def is_writable(array: np.ndarray) -> bool:
    return bool(array.flags.writeable)


@big.task
def lives_in_a_memory_file(value: Any) -> bool:
    address = value.data_ptr() if hasattr(value, "data_ptr") else value.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return "memfd:flyte" in line
    return False


@big.task
def total(weights: np.ndarray, item: int) -> int:
    return int(weights.sum()) + item


@big.task
def end_holding(array: np.ndarray) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return float(array[0])


@big.task
def fail_with(array: np.ndarray) -> None:
    raise ValueError(f"{array.nbytes} bytes")


@big.task
def files_held() -> list[str]:
    return memory_files(os.getpid())


# --- they arrive as they were


@pytest.mark.parametrize("size", [MIB - 8, MIB, MIB + 8, 5 * MIB])
def test_an_array_comes_back_equal_and_writable(size: int) -> None:
    array = np.random.default_rng(size).integers(0, 255, size, np.uint8)
    found = echo(array)
    np.testing.assert_array_equal(found, array)
    found[:] = 0
    assert array.any()
    np.testing.assert_array_equal(asyncio.run(echo_async.aio(array)), array)


def test_64_mib_make_the_round_trip() -> None:
    array = np.arange(8 * MIB, dtype=np.float64)
    for _ in range(5):
        array += 1
        np.testing.assert_array_equal(echo(array), array)


@pytest.mark.parametrize(
    "value",
    [b"0123456789abcdef" * MIB, "ä" * 2 * MIB, bytearray(2 * MIB), list(range(MIB)), b"__main__" * MIB],
    ids=["bytes", "text", "bytearray", "list", "like a name"],
)
def test_large_values_that_are_in_the_pickle_itself(value: Any) -> None:
    assert echo(value) == value
    assert asyncio.run(echo_async.aio(value)) == value


def test_many_arrays_in_one_call() -> None:
    arrays = [np.full(MIB, number % 256, np.uint8) for number in range(400)]
    found = echo(arrays)
    assert [int(each[-1]) for each in found] == [number % 256 for number in range(400)]


def test_fortran_order_and_slices() -> None:
    for array in (np.asfortranarray(np.random.rand(600, 600)), np.random.rand(1200, 1200)[::2, 1::2]):
        np.testing.assert_array_equal(echo(array), array)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_tensors() -> None:
    import torch

    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64):
        tensor = torch.arange(MIB).reshape(1024, -1).to(dtype)
        found = echo(tensor)
        assert found.dtype == dtype
        assert torch.equal(found, tensor)
        found.zero_()
    assert lives_in_a_memory_file(tensor)


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed")
def test_data_frames() -> None:
    import pandas as pd

    frame = pd.DataFrame({"a": np.arange(MIB), "b": np.random.rand(MIB), "c": ["x", "y"] * (MIB // 2)})
    found = echo(frame)
    pd.testing.assert_frame_equal(found, frame)
    found.loc[0, "a"] = 7
    assert frame.loc[0, "a"] == 0


# --- each side has its own


def test_a_task_that_changes_its_argument_does_not_change_the_callers() -> None:
    array = np.ones(MIB)
    assert negate(array) == -MIB
    assert array.sum() == MIB
    assert negate(array) == -MIB


def test_an_argument_is_mapped_and_writable() -> None:
    array = np.ones(MIB)
    assert lives_in_a_memory_file(array)
    assert is_writable(array)


def test_results_that_are_held_are_not_written_over() -> None:
    arrays = [np.full(MIB, number, np.float64) for number in range(6)]
    found = [echo(array) for array in arrays]
    for number, each in enumerate(found):
        assert (each == number).all()


# --- what calls share is written once


@pytest.mark.parametrize("way", ["partial", "keyword", "repeat"])
def test_an_argument_that_the_calls_of_a_map_share_is_written_once(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = memory.writing.files.write

    def counted(buffer: Any) -> Any:
        written.append(len(buffer))
        return write(buffer)

    monkeypatch.setattr(memory.writing.files, "write", counted)
    weights = np.ones(MIB, np.int64)
    if way == "repeat":
        results = flyte.map(total, itertools.repeat(weights), range(20))
    elif way == "keyword":
        results = flyte.map(functools.partial(total, weights=weights), range(20))
    else:
        results = flyte.map(functools.partial(total, weights), range(20))
    assert list(results) == [MIB + item for item in range(20)]
    assert written == [8 * MIB]


def test_items_of_a_map_are_not_taken_for_what_is_shared() -> None:
    shared = np.zeros(MIB, np.int64)
    items = (np.full(MIB, number, np.int64) for number in range(12))
    found = list(flyte.map(add, itertools.repeat(shared), items))
    assert found == [number * MIB for number in range(12)]


@wide.task
async def add(one: np.ndarray, other: np.ndarray) -> int:
    return int(one.sum() + other.sum())


# --- nothing is left


def test_a_replica_keeps_no_file_of_a_call_that_is_over() -> None:
    array = np.ones(4 * MIB)
    echo(array)
    with pytest.raises(ValueError, match="33554432 bytes"):
        fail_with(array)
    kept = {line for line in wait_until(files_held) if "deleted" in line}
    assert len(kept) <= 1  # its own, for the next result


def test_a_replica_that_is_killed_leaves_no_file() -> None:
    error = attempt(end_holding, np.ones(4 * MIB))
    assert isinstance(error, errors.ReplicaDied)
    assert len(memory_files(os.getpid())) == 1  # kept for the next call
    memory.close()
    assert memory_files(os.getpid()) == []
    wait_until(lambda: ready(big), START_S)


def test_without_memory_files_the_buffers_go_with_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.writing.files, "write", lambda _: None)
    array = np.random.rand(MIB)
    np.testing.assert_array_equal(echo(array), array)
