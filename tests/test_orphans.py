"""Leftovers are found by their tag and ended, and nobody else is."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flyte_jupyter import orphans
from flyte_jupyter.broker import __main__ as daemon

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tags are read from /proc")

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that sleeps, with these variables in its environment; it is up when this returns."""
    started: list[subprocess.Popen[bytes]] = []

    def run(code: str = "", **variables: str) -> subprocess.Popen[bytes]:
        program = f"import sys, time\n{code}\nsys.stdout.write('up')\nsys.stdout.flush()\ntime.sleep(600)"
        process = subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE, env=variables)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.read(2) == b"up"
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def tag() -> str:
    return secrets.token_hex(6)


def test_only_processes_with_all_tags_are_found(start: Start, tag: str) -> None:
    both = start(A=tag, B="1")
    start(A=tag, B="2")
    start(A=f"{tag}x", B="1")
    start(XA=tag, B="1")
    assert list(orphans.tagged(A=tag, B="1")) == [both.pid]
    assert list(orphans.tagged(A=secrets.token_hex(6))) == []


def test_whoever_asks_is_not_found(monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    monkeypatch.setattr(os, "getpid", lambda: int(os.readlink("/proc/self")))
    name, value = next(iter(os.environ.items()))
    assert os.getpid() not in list(orphans.tagged(**{name: value}))


def test_end_kills_them_all_and_their_descendants(start: Start, tag: str) -> None:
    fork = "import os\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)"
    other = start(A="other")
    parent = start(fork, A=tag)
    ended = orphans.end(A=tag)
    assert len(ended) == 2
    assert parent.pid in ended
    assert parent.wait(5) == -9
    assert other.poll() is None
    assert orphans.end(A=tag) == []


def test_a_process_that_keeps_forking_is_ended_too(start: Start, tag: str) -> None:
    start("import os\nfor _ in range(5):\n    if os.fork():\n        time.sleep(600)\n", A=tag)
    orphans.end(A=tag)
    assert [pid for pid in orphans.tagged(A=tag) if not orphans._is_zombie(pid)] == []


def test_a_zombie_counts_as_gone(start: Start, tag: str) -> None:
    process = start(A=tag)
    process.kill()
    while not orphans._is_zombie(process.pid):
        os.sched_yield()
    began = time.monotonic()
    assert orphans.end(A=tag) == []
    assert time.monotonic() - began < orphans.PATIENCE_S / 2


def test_kill_spares_a_process_that_only_got_the_same_id(start: Start, tag: str) -> None:
    stranger = start(A="other")
    assert not orphans.kill(stranger.pid, A=tag)
    assert stranger.poll() is None
    assert orphans.kill(stranger.pid, A="other")
    assert stranger.wait(5) == -9
    assert not orphans.kill(stranger.pid, A="other")


def test_the_guardian_ends_what_its_dead_broker_left(start: Start, tag: str, tmp_path: Path) -> None:
    (tmp_path / tag / "replica").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    replica, stranger = start(**{orphans.BROKER_TAG: tag}), start(**{orphans.BROKER_TAG: "other"})
    guardian = subprocess.Popen(
        [sys.executable, "-I", "-S", orphans.__file__, tag, str(tmp_path)], stdin=subprocess.PIPE, env={}
    )
    assert guardian.stdin is not None
    with guardian, guardian.stdin:
        while not _ignores(guardian.pid, signal.SIGTERM):
            os.sched_yield()
        guardian.stdin.write(b"anything")
        guardian.stdin.flush()
        guardian.terminate()  # it must outlive a group that is told to end
        assert replica.poll() is None
    assert guardian.returncode == 0
    assert replica.wait(5) == -9
    assert stranger.poll() is None
    assert [each.name for each in tmp_path.iterdir()] == ["other"]


def _ignores(pid: int, number: int) -> bool:
    [mask] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn")]
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


# --- what a broker does at its start


def test_a_new_broker_sweeps_replicas_that_nobody_guarded(start: Start, tmp_path: Path) -> None:
    folder = str(tmp_path)
    replica = start(**{orphans.RUNTIME_TAG: folder, orphans.REPLICA_TAG: "r1"})
    client = start(**{orphans.RUNTIME_TAG: folder})
    daemon._sweep(tmp_path)
    assert replica.wait(5) == -9
    assert client.poll() is None


def test_the_sweep_removes_what_brokers_make_and_nothing_else(tmp_path: Path) -> None:
    # The runtime folder may be one that somebody had already, private and full of other things.
    for name in ("fj012abc", "logs", "thesis", "012abc", "fj012abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "fj999999").symlink_to(tmp_path / "thesis")
    (tmp_path / "fjaaaaaa").touch()
    daemon._sweep(tmp_path)
    left = {each.name for each in tmp_path.iterdir()}
    assert left == {"logs", "thesis", "012abc", "fj012abcd", "fj999999", "fjaaaaaa"}
    assert (tmp_path / "thesis" / "file").exists()


def test_only_one_broker_holds_the_lock(tmp_path: Path) -> None:
    first = daemon._lock(tmp_path)
    assert first is not None
    with first:
        assert daemon._lock(tmp_path) is None
        assert (tmp_path / "broker.lock").read_text() == f"{os.getpid()}\n"
    second = daemon._lock(tmp_path)
    assert second is not None
    second.close()
