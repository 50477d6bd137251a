"""A front end opens a warm replica through the kernelspec, and leaves it as warm as it was."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import front_ends
import psutil
import pytest
from front_ends import ANSWER_S, Console, FrontEnd
from jupyter_client.blocking.client import BlockingKernelClient
from support import START_S, OwnBroker, alive, assert_quiet, pids, ready, wait_until, within

import flyte_jupyter as flyte
from flyte_jupyter import cli, runtime
from flyte_jupyter.attach.target import session_target
from flyte_jupyter.client import broker
from flyte_jupyter.core.timeline import SpanView

pytestmark = pytest.mark.kernel

pool = flyte.TaskEnvironment("attached", reusable=flyte.ReusePolicy(replicas=1, concurrency=2))


def model() -> dict[str, int]:
    return {"weights": 42}


@pool.task
async def works() -> bool:
    return True


@pool.task
async def where_the_model_is() -> int:
    from IPython import get_ipython

    return id(get_ipython().user_ns["model"]())


@pool.task
async def until_told() -> bool:
    print("begun")
    while not sys.flyte_test_go:  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)
    return True


@contextmanager
def front_end(wanted: str = "attached", **options: Any) -> Iterator[FrontEnd]:
    with front_ends.front_end(wanted, **options) as opened:
        yield opened


def holders() -> list[str]:
    return front_ends.holders(pool)


@pytest.fixture(scope="module", autouse=True)
def _preload(shared_broker: Path) -> None:
    global model  # noqa: PLW0603
    model = flyte.pool(pool).preload(model)


@pytest.fixture(autouse=True)
def _warm(shared_broker: Path) -> Iterator[None]:
    flyte.pool(pool).warm(timeout=START_S)
    before = pids(pool)
    yield
    assert_quiet(pool)
    assert pids(pool) == before, "the replica did not survive"
    wait_until(lambda: subshells() == 0, what="subshells")
    assert_quiet(pool)  # the lease of that question, too: the next test looks at who holds any


def subshells() -> int:
    """Threads of the replica that somebody opened to look in."""

    @pool.task
    async def count() -> int:
        return sum(thread.name.startswith("subshell-") for thread in threading.enumerate())

    return int(run(count))


def run(task: Callable[..., Any], *args: Any) -> Any:
    async def call() -> Any:
        return await task(*args)

    return asyncio.run(call())


def test_a_console_reads_what_the_preload_made() -> None:
    loaded = run(where_the_model_is)
    with within(2), front_end() as console:
        ran = console.run(f"(model(), id(model()) == {loaded})")
        assert ran.text.startswith("attached to attached[0] (pid "), vars(ran)
        assert ran.result == "({'weights': 42}, True)"


def test_the_replica_is_out_of_rotation_meanwhile_and_every_view_says_why() -> None:
    with front_end() as console:
        console.run("1")
        wait_until(lambda: holders() == ["attached console"])
        (replica,) = ready(pool)
        assert (replica.state, replica.leases[0].client) == ("attached", "console")
    wait_until(lambda: holders() == [])


def test_the_timeline_tells_who_had_a_replica_open(capfd: pytest.CaptureFixture[str]) -> None:
    def spans() -> list[SpanView]:
        told = broker.connect().timeline(flyte.pool(pool).key)
        assert told is not None
        return [span for span in told.spans if span.kind == "attached" and span.began >= began]

    began = time.monotonic()
    (replica,) = ready(pool)
    with front_end(shared=True) as console:
        console.run("1")
        (span,) = wait_until(spans)
        assert (span.task, span.client, span.replica) == ("attached console, shared", "console", replica.id)
        assert (span.ended, span.outcome) == (None, None)
    (left,) = wait_until(lambda: [each for each in spans() if each.ended is not None])
    assert (left.id, left.outcome) == (span.id, "succeeded")
    assert cli.main(["story", "attached"]) == 0
    assert "attached[0]: attached console, shared (console) left after" in capfd.readouterr().out


def test_restart_and_shutdown_leave_process_and_names() -> None:
    (pid,) = pids(pool)
    with front_end() as console:
        console.run("kept = model(); kept['seen'] = True")
        console.restart()
        ran = console.run("import os; (os.getpid(), kept is model(), model()['seen'])")
        assert ran.result == f"({pid}, True, True)"
        assert ran.text.startswith("again attached to attached[0]")
        console.run("del kept, model()['seen']")
        with within(1):
            console.manager.shutdown_kernel()
    assert alive(pid)


@pytest.mark.parametrize("waits", ["import time; print('in'); time.sleep(60)",
                                   "import asyncio; print('in'); await asyncio.sleep(60)"])  # fmt: skip
def test_an_interrupt_stops_the_cell(waits: str) -> None:
    with front_end() as console:
        asked = console.begin(waits)
        with within(1):
            console.manager.interrupt_kernel()
            reply = console.reply(asked)
        assert reply["status"] == "error"
        assert reply["ename"] in ("KeyboardInterrupt", "CancelledError")
        # ipykernel may still drop what comes right after an error.
        wait_until(lambda: console.run("model()['weights']").result == "42")


def test_an_interrupt_request_on_the_control_channel_does_the_same() -> None:
    with front_end() as console:
        asked = console.begin("import time; print('in'); time.sleep(60)")
        client = console.client
        with within(1):
            client.control_channel.send(client.session.msg("interrupt_request"))
            assert client.get_control_msg(timeout=START_S)["content"]["status"] == "ok"
            assert console.reply(asked)["status"] == "error"


def test_input_reaches_the_one_who_asked() -> None:
    with front_end() as console:
        assert console.run("input('name? ') + '!'", answer="Ann").result == "'Ann!'"


def test_a_killed_front_end_gives_its_slots_back_and_its_cell_stops() -> None:
    with front_end() as console:
        console.begin("import time; print('in')\nfor _ in range(600): time.sleep(0.1)")
        assert holders() == ["attached console"]
        with within(3):
            psutil.Process(console.pid).kill()
            wait_until(lambda: holders() == [])
            assert run(works)


def test_leaving_stops_the_cell_that_still_runs() -> None:
    with front_end() as console:
        console.begin("import time; print('in'); time.sleep(60)")
        with within(3):
            console.manager.shutdown_kernel()
            assert run(works)


def test_without_a_warm_kernel_the_first_cell_says_so(own_broker: OwnBroker) -> None:
    with front_end(wanted="", FLYTE_JUPYTER_RUNTIME_DIR=str(own_broker.folder)) as console:
        ran = console.run("1 + 1")
        assert ran.status == "error"
        assert "FJ106 There is no replica." in ran.error
        assert "flyte-jupyter warm" in ran.error


def test_a_broker_that_dies_takes_the_names_along_and_the_next_cell_finds_its_successor(own_broker: OwnBroker) -> None:
    owner = """
        env = flyte.TaskEnvironment("short-lived", reusable=flyte.ReusePolicy(1))
        flyte.pool(env).warm()
        say("warm")
        time.sleep(60)
    """
    own_broker.start(owner, name="first")
    own_broker.wait_said("first")
    with front_end(wanted="short-lived", FLYTE_JUPYTER_RUNTIME_DIR=str(own_broker.folder)) as console:
        asked = console.begin("import time; print('in'); time.sleep(60)")
        with within(3):
            os.kill(own_broker.pid, signal.SIGKILL)
            said = console.reply(asked)["evalue"]
        assert said.startswith("short-lived[0] ended: the broker ended. Its names are gone")
        assert "FJ106 There is no replica short-lived." in console.run("1").error
        own_broker.start(owner, name="second")
        own_broker.wait_said("second")
        assert console.run("1").result == "1"


def test_an_unknown_pool_or_replica_is_named() -> None:
    with front_end(wanted="atached") as console:
        error = console.run("1").error
        assert 'FJ102 There is no pool named "atached".' in error
        assert "Did you mean `attached`?" in error
    with front_end(wanted="attached[7]") as console:
        assert 'FJ106 The pool "attached" has no replica 7 (existing: ' in console.run("1").error


@pytest.mark.parametrize("name", ["attached", "attached[0]", "flyte-attach/attached[0]/0123abcd"])
def test_a_console_names_its_target_in_its_session(name: str, tmp_path: Path) -> None:
    for session in (name, str(tmp_path / name)):
        with front_end(wanted="", JPY_SESSION_NAME=session) as console:
            assert console.run("model()").text.startswith("attached to attached[0]")


def test_a_target_that_is_not_there_is_the_error_of_the_first_cell() -> None:
    for name, error in (
        ("flyte-attach/gone/0123abcd", 'FJ102 There is no pool named "gone".'),
        ("flyte-attach/attached[7]/0123abcd", 'FJ106 The pool "attached" has no replica 7 (existing: '),
        ("attached[7]", 'FJ106 The pool "attached" has no replica 7 (existing: '),
        ("flyte-attach/attached[/0123abcd", "'attached[' is not NAME or NAME[1]"),
    ):
        with front_end(wanted="", JPY_SESSION_NAME=f"/notebooks/{name}") as console:
            assert error in console.run("1").error


def notebook(path: Path, metadata: Any) -> str:
    path.write_text(json.dumps({"cells": [], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return str(path)


def test_a_notebook_names_its_target_in_its_metadata(tmp_path: Path) -> None:
    session = notebook(tmp_path / "a.ipynb", {"flyte_jupyter": {"attach": "attached[0]"}})
    with front_end(wanted="", JPY_SESSION_NAME=session) as console:
        assert console.run("model()").text.startswith("attached to attached[0]")
        assert holders() == ["attached notebook"]
        (lease,) = ready(pool)[0].leases
        assert lease.client == "a.ipynb"
    session = notebook(tmp_path / "b.ipynb", {"flyte_jupyter": {"attach": ["<b>"]}})
    with front_end(wanted="", JPY_SESSION_NAME=session) as console:
        assert """'["<b>"]' is not NAME or NAME[1]""" in console.run("1").error


def test_the_variable_goes_before_the_session(tmp_path: Path) -> None:
    with front_end(wanted="attached", JPY_SESSION_NAME="/notebooks/flyte-attach/gone/0123abcd") as console:
        assert console.run("model()").status == "ok"


@pytest.mark.parametrize("metadata", [{}, {"flyte_jupyter": {}}, {"flyte_jupyter": "attach"}, [], None])
def test_a_session_that_names_nothing_gets_the_pool_that_was_last_used(metadata: Any, tmp_path: Path) -> None:
    written = [notebook(tmp_path / "a.ipynb", metadata)] if metadata is not None else []
    (tmp_path / "not.ipynb").write_text("not JSON")
    for session in [*written, str(tmp_path / "Console 1"), str(tmp_path / "none.ipynb"), str(tmp_path / "not.ipynb")]:
        assert target_of(session) == ""


def target_of(session: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JPY_SESSION_NAME", session)
        return session_target(["attached"])


def test_two_front_ends_share_a_replica_with_each_other_and_with_tasks() -> None:
    with front_end(shared=True) as one, front_end(shared=True) as two:
        assert one.run("mine = 1; id(model())").result == two.run("id(model())").result
        assert two.run("mine").result == "1"
        assert holders() == ["attached console, shared"] * 2
        assert ready(pool)[0].state == "ready"
        assert one.run("input()", answer="one").result == "'one'"
        assert two.run("input()", answer="two").result == "'two'"
        assert run(works)
        one.run("del mine")


def test_an_exclusive_front_end_waits_for_another_and_says_so() -> None:
    with front_end() as one:
        one.run("1")
        wait_until(lambda: holders() == ["attached console"])
        with front_end() as two:
            asked = two.begin("7 * 6", until="waiting until this has ended: attached console (console)\n")
            one.manager.shutdown_kernel()
            assert two.reply(asked)["status"] == "ok"


def test_a_front_end_whose_server_dies_detaches(tmp_path: Path) -> None:
    script = """
        import sys, time
        sys.path.insert(0, sys.argv[1])
        from front_ends import FrontEnd
        opened = FrontEnd("attached")
        opened.run("1")
        print(opened.pid, flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(Path(__file__).parent)]
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        proxy = int(server.stdout.readline())
        assert holders() == ["attached console"]
        server.kill()
        with within(2):
            wait_until(lambda: not alive(proxy) and holders() == [])


def test_what_a_subshell_prints_while_a_task_runs_is_not_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    with front_end(shared=True) as console, ThreadPoolExecutor(1) as executor:
        console.run("import sys; sys.flyte_test_go = False")
        client = console.client
        client.control_channel.send(client.session.msg("create_subshell_request"))
        subshell = client.get_control_msg(timeout=START_S)["content"]["subshell_id"]
        task = executor.submit(run, until_told)
        wait_until(lambda: "begun" in capsys.readouterr().out)
        code = "print('from beside'); sys.flyte_test_go = True"
        asked = client.session.msg("execute_request", {"code": code, "silent": False})
        asked["header"]["subshell_id"] = subshell
        client.shell_channel.send(asked)
        printed = ""
        while "from beside" not in printed:
            message = client.get_iopub_msg(timeout=START_S)
            if message["parent_header"].get("msg_id") == asked["header"]["msg_id"]:
                printed += message["content"].get("text", "")
        assert task.result(START_S)
        console.run("del sys.flyte_test_go, sys")
    assert "from beside" not in capsys.readouterr().out


def test_nothing_of_a_front_end_is_left() -> None:
    (pid,) = pids(pool)
    with front_end() as console:  # the first opens what stays: an event loop's, a library's
        console.run("1")
    wait_until(lambda: holders() == [])
    threads = psutil.Process(pid).num_threads()
    opened = psutil.Process(pid).num_fds()
    before = sorted(os.listdir(runtime.runtime_folder()))
    with front_end() as console:
        client = console.client
        client.control_channel.send(client.session.msg("create_subshell_request"))
        assert client.get_control_msg(timeout=START_S)["content"]["status"] == "ok"
        proxy = console.pid
    wait_until(lambda: not alive(proxy))
    wait_until(lambda: psutil.Process(pid).num_threads() <= threads, what="threads")
    wait_until(lambda: psutil.Process(pid).num_fds() <= opened, 25, "descriptors")  # ipykernel looks every 10 s
    assert sorted(os.listdir(runtime.runtime_folder())) == before


def test_the_import_of_the_proxy_needs_no_kernel() -> None:
    code = "import sys, flyte_jupyter.attach.proxy; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"ipykernel", "IPython", "torch", "anyio"} & set(loaded) == set()


def test_the_command_serves_a_connection_file_until_it_is_told_to_end(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    command = [sys.executable, "-m", "flyte_jupyter.cli", "attach", "attached[0]", "--existing-file", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == f"jupyter console --existing {path}"
        assert path.stat().st_mode & 0o077 == 0
        client = BlockingKernelClient(connection_file=str(path))
        client.load_connection_file()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=ANSWER_S)
            assert Console(client).run("model()").result == "{'weights': 42}"
        finally:
            client.stop_channels()
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(START_S) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_what_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attach", "nowhere"]) == 2
    assert "FJ102" in capfd.readouterr().err
