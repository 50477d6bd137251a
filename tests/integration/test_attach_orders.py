"""What becomes of an attached front end when somebody interrupts, restarts, stops or kills what it is attached to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import front_ends
import psutil
import pytest
from front_ends import ANSWER_S, FrontEnd
from support import START_S, assert_quiet, pids, ready, view_of, wait_until, within

import flyte_jupyter as flyte
from flyte_jupyter.client import broker
from flyte_jupyter.core import protocol as p

pytestmark = pytest.mark.kernel

pool = flyte.TaskEnvironment("mortal", reusable=flyte.ReusePolicy(replicas=1, concurrency=2))
RESTARTED = "ended: it was restarted by hand. Its names are gone; the next cell attaches anew."


@pool.task
async def works() -> bool:
    return True


@pytest.fixture(autouse=True)
def _warm(shared_broker: Path) -> Iterator[None]:
    flyte.pool(pool).scale(1, 1).warm(timeout=START_S)
    yield
    flyte.pool(pool).warm(timeout=START_S)
    assert_quiet(pool)


@contextmanager
def console(**options: Any) -> Iterator[FrontEnd]:
    with front_ends.front_end("mortal", **options) as opened:
        assert opened.run("mine = 1").status == "ok"
        yield opened


def send(message: p.Message) -> None:
    broker.connect().send(message)


def replica_id() -> str:
    (replica,) = view_of(pool).replicas
    return replica.id


def statuses(front_end: FrontEnd, until: str) -> list[str]:
    """The states that the kernel announced, up to that one."""
    seen: list[str] = []
    while until not in seen:
        message = front_end.client.get_iopub_msg(timeout=ANSWER_S)
        if message["msg_type"] == "status":
            seen.append(message["content"]["execution_state"])
    return seen


def attaches_anew(front_end: FrontEnd, before: list[int]) -> str:
    """Run a cell on another replica; what it showed."""
    ran = front_end.run("import os; ('mine' in globals(), os.getpid())")
    (pid,) = pids(pool)
    assert ran.result == f"(False, {pid})"
    assert pid not in before
    assert re.search(r"attached to mortal\[\d\] \(pid ", ran.text)
    return ran.text


def test_a_replica_that_dies_under_a_cell_is_reported_and_the_next_cell_finds_its_successor() -> None:
    with console() as front_end:
        before = pids(pool)
        ran = front_end.run("import os; os.kill(os.getpid(), 9)")
        assert ran.status == "error"
        assert "ended: signal SIGKILL. Its names are gone" in ran.error
        attaches_anew(front_end, before)


def test_a_replica_that_dies_between_two_cells_is_reported_as_a_restarted_kernel() -> None:
    with console() as front_end:
        before = pids(pool)
        psutil.Process(before[0]).kill()
        assert statuses(front_end, until="restarting")
        assert "ended: signal SIGKILL. Its names are gone" in attaches_anew(front_end, before)


def test_a_forced_restart_ends_the_cell_and_the_next_one_attaches_anew() -> None:
    with console() as front_end:
        before = pids(pool)
        asked = front_end.begin("import time; print('in'); time.sleep(60)")
        with within(3):
            send(p.RestartReplica(replica=replica_id(), force=True))
            reply = front_end.reply(asked)
        assert reply["ename"] == "ReplicaDied"
        assert reply["evalue"].endswith(RESTARTED)
        attaches_anew(front_end, before)


def test_a_restart_waits_for_the_front_end_and_tells_it() -> None:
    with console() as front_end:
        before = pids(pool)
        send(p.RestartReplica(replica=replica_id()))
        wait_until(lambda: view_of(pool).replicas[0].state == "draining")
        while not (ran := front_end.run("mine")).text:
            pass  # the kernel hears of it a moment later
        assert ran.result == "1"
        assert re.sub(r"\[\d\]", "[0]", ran.text) == (
            "mortal[0] will end when this kernel leaves it: it was restarted by hand. "
            "Restart this kernel to attach to another.\n"
        )
        assert front_end.run("mine").text == ""
        front_end.restart()
        attaches_anew(front_end, before)


def test_a_cell_that_runs_is_told_of_it_and_the_next_one_not_again(tmp_path: Path) -> None:
    go = tmp_path / "go"
    with console() as front_end:
        asked = front_end.begin(
            f"import pathlib, time; print('in')\nwhile not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)"
        )
        send(p.RestartReplica(replica=replica_id()))
        try:
            while "will end when" not in front_end.client.get_iopub_msg(timeout=START_S)["content"].get("text", ""):
                pass
        finally:
            go.touch()
        assert front_end.reply(asked)["status"] == "ok"
        assert front_end.run("mine").text == ""


def test_what_a_front_end_runs_unseen_is_not_told_of_it_and_the_next_cell_is(tmp_path: Path) -> None:
    began, go = tmp_path / "began", tmp_path / "go"
    with console() as front_end:
        unseen = front_end.client.execute(
            f"import pathlib, time; pathlib.Path({str(began)!r}).touch()\n"
            f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)",
            silent=True,
        )
        try:
            wait_until(began.exists, START_S)
            send(p.RestartReplica(replica=replica_id()))
            wait_until(lambda: view_of(pool).replicas[0].state == "draining")
            front_end.client.kernel_info(reply=True, timeout=ANSWER_S)  # its command answers, and has heard of it
        finally:
            go.touch()
        assert front_end.reply(unseen)["status"] == "ok"
        wait_until(lambda: "will end when" in front_end.run("mine").text, START_S)


def test_a_restart_of_the_pool_replaces_it_while_calls_go_on() -> None:
    with console() as front_end:
        before = pids(pool)
        send(p.RestartPool(pool=flyte.pool(pool).key))
        assert asyncio.run(works.aio())  # there is room for one more, which serves
        assert front_end.run("mine").result == "1"
        front_end.restart()
        attaches_anew(front_end, before)


def test_a_stopped_pool_ends_it_by_force_and_says_what_to_do() -> None:
    with console() as front_end:
        send(p.StopPool(pool=flyte.pool(pool).key, force=True))
        assert statuses(front_end, until="restarting")
        ran = front_end.run("mine")
        assert ran.status == "error"
        assert "FJ106 There is no replica mortal." in ran.error
        assert "flyte-jupyter warm mortal" in ran.error
        flyte.pool(pool).warm(timeout=START_S)
        assert "mine" in front_end.run("mine").error


@pytest.mark.parametrize("whole", [True, False])
def test_an_interrupt_from_the_panel_stops_its_cell(whole: bool) -> None:
    with console() as front_end:
        before = pids(pool)
        asked = front_end.begin("import time; print('in'); time.sleep(60)")
        (lease,) = view_of(pool).replicas[0].leases
        with within(1):
            send(p.Interrupt(replica=replica_id()) if whole else p.Cancel(lease=lease.lease))
            assert front_end.reply(asked)["ename"] == "KeyboardInterrupt"
        # ipykernel may still drop what comes right after an error.
        wait_until(lambda: front_end.run("mine").result == "1")
        assert pids(pool) == before


def test_who_waits_is_told_for_whom_and_gives_up_on_an_interrupt() -> None:
    with console(), console_that_waits() as second:
        asked = second.client.execute("1")
        text = ""
        while "waiting until" not in text:
            message = second.client.get_iopub_msg(timeout=ANSWER_S)
            text += message["content"].get("text", "")
        assert text == "waiting until this has ended: attached console (console)\n"
        (replica,) = ready(pool)
        assert [lease.task for lease in replica.leases] == ["attached console"] * 2
        second.manager.interrupt_kernel()
        assert second.reply(asked)["ename"] == "KeyboardInterrupt"


def console_that_waits() -> AbstractContextManager[FrontEnd]:
    return front_ends.front_end("mortal")


def test_a_second_one_gets_it_when_the_first_has_left() -> None:
    with ExitStack() as first:
        first.enter_context(console())
        with console_that_waits() as second:
            first.close()
            assert second.run("mine").result == "1"


def test_one_that_is_still_starting_is_waited_for() -> None:
    before = pids(pool)
    send(p.RestartReplica(replica=replica_id(), force=True))
    with console_that_waits() as front_end:
        attaches_anew(front_end, before)
