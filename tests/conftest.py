"""One broker for all tests that start kernels, in a folder of its own; and what must hold when they are over."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import OwnBroker, end_broker, memory_files

from flyte_jupyter import runtime
from flyte_jupyter.client import broker

NOBODYS = f"/tmp/fj-none-{os.getpid()}"
"""A runtime folder without a broker."""


def pytest_configure() -> None:
    """Tests press Ctrl-C in processes that they start; a shell's background job would have them all ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Without a broker of its own a test must not find that of the user.
    os.environ[runtime.VARIABLE] = NOBODYS


def pytest_unconfigure() -> None:
    shutil.rmtree(NOBODYS, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_broker() -> Iterator[Path]:
    """The runtime folder of the broker that this process's calls start. Ended, and checked, after the last test."""
    folder = Path(tempfile.mkdtemp(prefix="fj-", dir="/tmp"))
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("FLYTE_JUPYTER_")]:
        patch.delenv(name)
    patch.setenv(runtime.VARIABLE, str(folder))
    patch.setenv("FLYTE_JUPYTER_GPUS", "[]")
    if os.environ.get("TEST_SPAWNED"):  # the same tests with replicas that are not forked
        patch.setenv("FLYTE_JUPYTER_ZYGOTE", "0")
    shared_memory = set(os.listdir("/dev/shm"))
    try:
        yield folder
        connection = broker.current()
        end_broker(folder)
        if connection is not None:
            connection._thread.join(5)
            if connection.daemon is not None:
                connection.daemon.wait(5)
        assert memory_files(os.getpid()) == []
        assert {name for name in os.listdir("/dev/shm") if name.startswith("fj")} <= shared_memory
    finally:
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _kernels(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("kernel") is not None:
        request.getfixturevalue("shared_broker")


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[OwnBroker]:
    """A broker apart, for tests that kill it. It starts with the first script that needs it."""
    own = OwnBroker(tmp_path)
    yield own
    own.end()
