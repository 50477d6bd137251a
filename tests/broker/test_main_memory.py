"""What counts as free main memory, on a machine and in a container of either kind."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from flyte_jupyter.broker.memory import find_memory

MIB = 2**20


def test_without_a_limit_it_is_the_machines(tmp_path: Path) -> None:
    found = find_memory(tmp_path)
    assert found.total == psutil.virtual_memory().total
    assert 0 < found.free <= found.total


def test_a_container_without_a_limit_has_the_machines(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    assert find_memory(tmp_path).total == psutil.virtual_memory().total


V2 = {"memory.max": "67108864\n", "memory.current": "50331648\n", "memory.stat": "anon 1\ninactive_file 16777216\n"}
V1 = {
    "memory/memory.limit_in_bytes": "67108864\n",
    "memory/memory.usage_in_bytes": "50331648\n",
    "memory/memory.stat": "cache 1\ninactive_file 5\ntotal_inactive_file 16777216\n",
}


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_a_containers_limit_counts_and_cached_files_are_free(files: dict[str, str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = find_memory(tmp_path)
    assert (found.free, found.total) == (32 * MIB, 64 * MIB)


def test_more_used_than_allowed_is_nothing_free(tmp_path: Path) -> None:
    for name, text in {**V2, "memory.current": "134217728\n"}.items():
        (tmp_path / name).write_text(text)
    assert find_memory(tmp_path).free == 0
