"""What a program has submitted and does not wait for is done before its interpreter ends."""

from __future__ import annotations

import signal
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.manager import start_new_kernel
from support import START_S, TIME_SCALE, Counter, OwnBroker, wait_until, within

import flyte_jupyter as flyte

pytestmark = pytest.mark.kernel

environment = flyte.TaskEnvironment("at-exit", reusable=flyte.ReusePolicy(2))
PROLOGUE = """
import os, sys, threading, time
import flyte_jupyter as flyte
pool = flyte.pool(flyte.TaskEnvironment("at-exit", reusable=flyte.ReusePolicy(2)))
executor = pool.executor()

def work(number, seconds=0.1):
    print("begun", flush=True)
    time.sleep(seconds)
    say(number)

def submit(count=9, seconds=0.1):
    return [executor.submit(work, number, seconds) for number in range(count)]
"""

ENDS = {
    "at its last line": "submit()",
    "with the executor forgotten": "submit(); del executor",
    "with the executor shut down": "submit(); executor.shutdown(wait=False)",
    "with results that map would yield": "executor.map(work, range(9))",
    "by an exception": "submit(); raise_at_end = 1; raise SystemExit(0)",
    "in a function": "def main():\n    submit()\nmain()",
    "while a thread runs": "threading.Thread(target=submit).start(); time.sleep(1)",
    "with a loop of its own": "import asyncio\nasync def main():\n    submit()\nasyncio.run(main())",
    "after a task of the same pool": "submit()[0].result()",
}


@pytest.mark.parametrize("how", ENDS)
def test_a_script_ends_when_all_is_done(how: str, own_broker: OwnBroker) -> None:
    assert sorted(own_broker.run(PROLOGUE + ENDS[how], timeout=START_S)) == [str(number) for number in range(9)]


def test_a_script_says_what_it_waits_for_and_ctrl_c_ends_it(own_broker: OwnBroker) -> None:
    script = own_broker.start(PROLOGUE + "submit(3, 600)", name="script")
    wait_until(lambda: "Python ends when" in own_broker.output("script"), START_S)
    assert "Python ends when 3 calls of pool 'at-exit' are done. Ctrl-C stops them.\n" in own_broker.output("script")
    with within(5.0):
        script.send_signal(signal.SIGINT)
        assert script.wait(START_S * TIME_SCALE) == 0
    assert "Interrupted: 3 calls of pool 'at-exit' are stopped.\n" in own_broker.output("script")
    assert "Traceback" not in own_broker.output("script")


def test_nothing_is_said_where_nothing_is_left(own_broker: OwnBroker) -> None:
    own_broker.run(PROLOGUE + "[each.result() for each in submit()]", name="script")
    assert "Python ends" not in own_broker.output("script")


def test_nothing_can_be_submitted_once_the_interpreter_ends(own_broker: OwnBroker) -> None:
    code = """
    import atexit

    @atexit.register
    def late():
        for made in (executor, pool.executor()):
            try:
                made.submit(work, 1)
            except RuntimeError as error:
                say(error)

    executor.submit(work, 0).result()
    """
    said = own_broker.run(PROLOGUE + textwrap.dedent(code))
    assert said == ["0", *["cannot schedule new futures after interpreter shutdown"] * 2]


def test_a_first_executor_may_be_asked_for_when_the_interpreter_ends(own_broker: OwnBroker) -> None:
    code = """
    import atexit
    import flyte_jupyter as flyte
    pool = flyte.pool(flyte.TaskEnvironment("at-exit", reusable=flyte.ReusePolicy(2)))

    @atexit.register
    def late():
        try:
            pool.executor().submit(len, "")
        except RuntimeError as error:
            say(error)
    """
    assert own_broker.run(code) == ["cannot schedule new futures after interpreter shutdown"]


def test_a_forked_child_does_not_wait_for_its_parents_calls(own_broker: OwnBroker) -> None:
    code = """
    futures = submit(2, 1.0)
    while not any(future.running() for future in futures):
        time.sleep(0.01)
    child = os.fork()
    if child == 0:
        sys.exit(7)
    began = time.monotonic()
    status = os.waitpid(child, 0)[1]
    say((os.waitstatus_to_exitcode(status), any(future.running() for future in futures)))
    """
    assert own_broker.run(PROLOGUE + textwrap.dedent(code))[0] == "(7, True)"


# --- a notebook


@pytest.fixture
def notebook(tmp_path: Path, shared_broker: Path) -> Iterator[tuple[Any, Any]]:
    flyte.pool(environment).warm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jupyter_client itself
        manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        yield manager, client
    finally:
        client.stop_channels()
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)
        flyte.pool(environment).stop(force=True)


def submit_in(client: Any, runs: Counter, count: int, seconds: float) -> None:
    client.execute(f"def say(text):\n    open({runs.path!r}, 'a').write(f'{{text}}\\n')" + PROLOGUE)
    reply = client.execute(f"submit({count}, {seconds}); None", reply=True, timeout=START_S * TIME_SCALE)
    assert reply["content"]["status"] == "ok", reply


def text_of(client: Any, wanted: str) -> str:
    """What the notebook shows until that is among it."""
    text = ""
    deadline = time.monotonic() + START_S * TIME_SCALE
    while wanted not in text:
        message = client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
        text += message["content"].get("text", "")
    return text


@pytest.mark.parametrize("end", ["exit", "shutdown"])
def test_a_kernel_ends_when_all_is_done(end: str, notebook: tuple[Any, Any], tmp_path: Path) -> None:
    manager, client = notebook
    kernel = psutil.Process(manager.provisioner.pid)
    runs = Counter(tmp_path / "runs")
    submit_in(client, runs, 6, 0.2)
    if end == "exit":
        client.execute("exit")
    else:
        client.shutdown()
    manager.provisioner.process.wait(START_S * TIME_SCALE)
    assert not kernel.is_running()
    assert sorted(runs.lines()) == [str(number) for number in range(6)]


def test_a_kernel_says_what_it_waits_for_and_an_interrupt_ends_it(notebook: tuple[Any, Any], tmp_path: Path) -> None:
    manager, client = notebook
    submit_in(client, Counter(tmp_path / "runs"), 3, 600)
    client.execute("exit")
    assert "Python ends when 3 calls of pool 'at-exit' are done. Ctrl-C stops them." in text_of(client, "stops them")
    with within(5.0):
        manager.interrupt_kernel()
        manager.provisioner.process.wait(START_S * TIME_SCALE)


def test_a_kernel_that_waits_is_restarted_within_jupyters_grace(notebook: tuple[Any, Any], tmp_path: Path) -> None:
    manager, client = notebook
    submit_in(client, Counter(tmp_path / "runs"), 3, 600)
    with within(manager.shutdown_wait_time + 5.0):
        manager.restart_kernel()
    client.wait_for_ready(timeout=START_S * TIME_SCALE)
