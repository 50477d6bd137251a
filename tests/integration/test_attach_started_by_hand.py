"""Some front ends, VS Code among them, start a kernelspec's command by themselves: no Jupyter server, no variables."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import front_ends
import psutil
import pytest
from front_ends import ANSWER_S, SPEC, Console
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from support import START_S, alive, assert_quiet, pids, wait_until, within

import flyte_jupyter as flyte
from flyte_jupyter import runtime

pytestmark = pytest.mark.kernel

pool = flyte.TaskEnvironment("by-hand", reusable=flyte.ReusePolicy(replicas=1))


@pool.task
def works() -> bool:
    return True


@pytest.fixture(autouse=True)
def _warm(shared_broker: Path) -> Iterator[None]:
    flyte.pool(pool).warm(timeout=START_S)
    before = pids(pool)
    works()  # the pool that was last used
    yield
    assert_quiet(pool)
    assert pids(pool) == before


def variables() -> dict[str, str]:
    """Of a program that was started from a desktop."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    return {**kept, runtime.VARIABLE: str(runtime.runtime_folder())}


def command(path: Path) -> list[str]:
    argv = [each.replace("{connection_file}", str(path)) for each in SPEC["argv"]]
    return [sys.executable, *argv[1:]]


class Started(Console):
    """A connection file, the command, and a client of its channels."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "kernel-v2-1.json"
        write_connection_file(str(self.path), ip="127.0.0.1", transport="tcp", key=b"5e1f")
        known = json.loads(self.path.read_text())
        self.path.write_text(json.dumps({name: value for name, value in known.items() if name != "kernel_name"}))
        self.process = subprocess.Popen(
            command(self.path), cwd=folder, env=variables(), stdin=subprocess.DEVNULL, start_new_session=True
        )
        super().__init__(BlockingKernelClient(connection_file=str(self.path)))

    def connect(self) -> None:
        open_channels(self.client)

    def close(self) -> None:
        self.client.stop_channels()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(START_S)


def open_channels(client: BlockingKernelClient) -> None:
    client.load_connection_file()
    client.start_channels()

    def answers() -> bool:
        with suppress(RuntimeError):  # without a manager, a command that has not begun to listen counts as dead
            client.wait_for_ready(timeout=ANSWER_S)
            return True
        return False

    wait_until(answers, START_S)


@pytest.fixture
def front_end(tmp_path: Path) -> Iterator[Started]:
    opened = Started(tmp_path)
    try:
        opened.connect()
        yield opened
    finally:
        opened.close()


def holders() -> list[str]:
    return front_ends.holders(pool)


def test_a_front_end_that_is_no_jupyter_server_has_all_that_a_kernel_has(front_end: Started) -> None:
    (pid,) = pids(pool)
    info = front_end.client.kernel_info(reply=True, timeout=ANSWER_S)["content"]
    assert (info["status"], info["language_info"]["name"]) == ("ok", "python")
    ran = front_end.run("import os; os.getpid()")
    assert ran.text.startswith("attached to by-hand[0] (pid ")
    assert ran.result == str(pid)
    assert front_end.run("input('name? ')", answer="Ann").result == "'Ann'"
    assert front_end.run("1 / 0").error == "ZeroDivisionError: division by zero"
    assert "real" in front_end.client.complete("(1).re", reply=True, timeout=ANSWER_S)["content"]["matches"][0]
    assert holders() == ["attached console"]


@pytest.mark.parametrize("waits", ["import time; time.sleep(60)", "import asyncio; await asyncio.sleep(60)",
                                   "while True: pass"])  # fmt: skip
def test_a_signal_interrupts_the_cell(front_end: Started, waits: str) -> None:
    assert SPEC.get("interrupt_mode", "signal") == "signal"
    asked = front_end.begin(f"print('in')\n{waits}")
    with within(1):
        front_end.process.send_signal(signal.SIGINT)
        assert front_end.reply(asked)["ename"] in ("KeyboardInterrupt", "CancelledError")
    # ipykernel may still drop what comes right after an error.
    wait_until(lambda: front_end.run("1 + 1").result == "2")


def test_a_shutdown_request_ends_the_command_and_leaves_the_replica(front_end: Started) -> None:
    front_end.run("kept = 1")
    with within(2):
        front_end.client.shutdown()
        assert front_end.process.wait(START_S) == 0
        wait_until(lambda: holders() == [])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_gives_the_replica_back_and_its_cell_stops(front_end: Started, how: signal.Signals) -> None:
    front_end.begin("import time; print('in')\nfor _ in range(600): time.sleep(0.1)")
    assert holders() == ["attached console"]
    with within(3):
        front_end.process.send_signal(how)
        assert works()


def test_a_front_end_that_dies_leaves_no_command_behind(tmp_path: Path) -> None:
    """It has set no variable that names it as the parent."""
    script = """
        import sys, time
        sys.path[:0] = sys.argv[1:3]
        from pathlib import Path
        from test_attach_started_by_hand import Started
        opened = Started(Path(sys.argv[3]))
        opened.connect()
        opened.run("1")
        print(opened.process.pid, flush=True)
        time.sleep(60)
    """
    tests = Path(__file__).parent
    started = [sys.executable, "-c", textwrap.dedent(script), str(tests), str(tests.parent), str(tmp_path)]
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True, env=variables()) as process:
        assert process.stdout is not None
        proxy = int(process.stdout.readline())
        assert holders() == ["attached console"]
        process.kill()
        with within(3):
            wait_until(lambda: not alive(proxy) and holders() == [])


def test_a_command_whose_starter_ends_serves_on(tmp_path: Path) -> None:
    """A wrapper that ends at once is no front end that has died."""
    path = tmp_path / "kernel.json"
    write_connection_file(str(path), ip="127.0.0.1", transport="tcp")
    script = """
        import sys
        from subprocess import DEVNULL, Popen
        print(Popen(sys.argv[1:], stdout=DEVNULL, stderr=DEVNULL).pid)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *command(path)],
        env=variables(),
        capture_output=True,
        text=True,
        check=True,
    )
    proxy = psutil.Process(int(done.stdout))
    client = BlockingKernelClient(connection_file=str(path))
    try:
        open_channels(client)
        assert Console(client).run("1 + 1").result == "2"
    finally:
        client.stop_channels()
        proxy.kill()
