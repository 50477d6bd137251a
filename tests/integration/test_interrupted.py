"""A replica says when an interrupt has been raised in a call, and the call's outcome is that of the user's own code."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bare_wire import BareWire
from support import START_S, TIME_SCALE, Counter, assert_quiet, mark, within

import flyte_jupyter as flyte
from flyte_jupyter.client.cells.request import Cell
from flyte_jupyter.client.cells.target import CellTarget
from flyte_jupyter.client.target import Target
from flyte_jupyter.client.task_target import target_of
from flyte_jupyter.core import payload
from flyte_jupyter.core.cells import CellReply
from flyte_jupyter.core.frames import Frame, Kind, Output, Status

pytestmark = pytest.mark.kernel

env = flyte.TaskEnvironment("interrupted", reusable=flyte.ReusePolicy(replicas=1))
TOLD_S = 0.5
"""So soon the replica has told, on a busy machine."""


@pytest.fixture(autouse=True)
def _quiet(shared_broker: Path) -> Iterator[None]:
    yield
    assert_quiet(env, timeout=START_S)


@pytest.fixture(scope="module", autouse=True)
def _stop(shared_broker: Path) -> Iterator[None]:
    yield
    flyte.pool(env).stop(force=True)


class Wire(BareWire):
    """And what its frames say."""

    def wait(self, kind: Kind, timeout: float = START_S) -> Frame:
        """The next frame of that kind."""
        until = time.monotonic() + timeout * TIME_SCALE
        while (frame := self.next(max(0.0, until - time.monotonic()))) is not None:
            if frame.kind == kind:
                return frame
        raise AssertionError(f"no {kind.name}, but {self.seen[-8:]}")

    def result(self) -> object:
        frame = self.wait(Kind.OUTCOME)
        assert frame.flags == Status.OK, frame
        return payload.load(frame.body, frame.buffers)

    def printed(self) -> str:
        return b"".join(bytes(f.body) for f in self.seen if f.kind == Kind.OUTPUT and f.flags == Output.STDOUT).decode()

    def told(self) -> int:
        """How often the replica has said that an interrupt was raised."""
        return sum(frame.kind == Kind.INTERRUPTED for frame in self.seen)


@pytest.fixture
def wire() -> Iterator[Callable[[Target], Wire]]:
    made: list[Wire] = []

    def open_wire(target: Target) -> Wire:
        made.append(Wire(target))
        return made[-1]

    yield open_wire
    for each in made:
        each.close()


def wait_for(gate: str) -> None:
    while not os.path.exists(gate):
        time.sleep(0.01)


@env.task
def saves(ran: str, gate: str) -> str:
    try:
        mark(ran)
        time.sleep(60)
    except KeyboardInterrupt:
        print("saving", flush=True)
        wait_for(gate)
        print("saved", flush=True)
        return "saved"
    return "slept"


@env.task
async def saves_in_a_loop(ran: str, gate: str) -> str:
    try:
        mark(ran)
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("saving", flush=True)
        wait_for(gate)  # it blocks the loop, as code that saves does
        await asyncio.sleep(0)
        print("saved", flush=True)
        return "saved"
    return "slept"


@env.task
async def saves_after_it_blocked(ran: str, gate: str) -> str:
    try:
        mark(ran)
        time.sleep(60)
    except KeyboardInterrupt:
        print("saving", flush=True)
        wait_for(gate)
        await asyncio.sleep(0)
        print("saved", flush=True)
        return "saved"
    return "slept"


def cell(code: str, ran: str, gate: str, *pull: str) -> CellTarget:
    push = {"ran": ran, "gate": gate}
    return CellTarget(Cell(BEFORE + code, "cell.py", "cell #1", push=push, pull=pull), flyte.pool(env))


BEFORE = """
import asyncio, os, time
def mark(path): open(path, "a").write("x\\n")
def wait_for(gate):
    while not os.path.exists(gate): time.sleep(0.01)
"""
CELL = """
value = "slept"
try:
    mark(ran)
    {sleep}
except (KeyboardInterrupt, asyncio.CancelledError):
    print("saving", flush=True)
    wait_for(gate)
    print("saved", flush=True)
    value = "saved"
print("rest of the cell")
"""


def value_of(result: object) -> object:
    return result.pulled["value"] if isinstance(result, CellReply) else result


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(lambda *_: target_of(saves), id="task"),
        pytest.param(lambda *_: target_of(saves_in_a_loop), id="async task"),
        pytest.param(lambda *_: target_of(saves_after_it_blocked), id="async task that blocks"),
        pytest.param(lambda *paths: cell(CELL.format(sleep="time.sleep(60)"), *paths, "value"), id="cell"),
        pytest.param(
            lambda *paths: cell(CELL.format(sleep="await asyncio.sleep(60)"), *paths, "value"), id="async cell"
        ),
        pytest.param(
            lambda *paths: cell(CELL.format(sleep="await asyncio.sleep(0); time.sleep(60)"), *paths, "value"),
            id="async cell that blocks",
        ),
        pytest.param(
            lambda *paths: cell(CELL.format(sleep="asyncio.run(asyncio.sleep(60))"), *paths, "value"),
            id="cell with a loop of its own",
        ),
    ],
)
def test_code_that_handles_an_interrupt_is_told_of_and_ends_with_its_own_value(
    target: Callable[[str, str], Target], wire: Callable[[Target], Wire], tmp_path: Path
) -> None:
    ran, gate = Counter(tmp_path / "ran"), tmp_path / "gate"
    chosen = target(ran.path, str(gate))
    line = wire(chosen)
    line.send(*() if isinstance(chosen, CellTarget) else (ran.path, str(gate)))
    while not len(ran):
        line.next(0.05)
    assert line.told() == 0
    line.cancel()
    line.wait(Kind.INTERRUPTED, TOLD_S)
    while "saving" not in line.printed():
        line.wait(Kind.OUTPUT)
    # It is not interrupted a second time, while it goes on.
    assert line.next(0.6) is None
    gate.touch()
    assert value_of(line.result()) == "saved"
    assert "saved\n" in line.printed(), "output goes on after the interrupt"
    assert line.told() == 1
    assert line.next(0.1) is None, "the outcome is a call's last word"


@env.task
def ends_as_told(ran: str, how: str) -> None:
    try:
        mark(ran)
        time.sleep(60)
    except KeyboardInterrupt:
        if how == "raises":
            raise ValueError("no room to save") from None
        raise


@env.task
async def ends_as_told_in_a_loop(ran: str, how: str) -> None:
    try:
        mark(ran)
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        if how == "raises":
            raise ValueError("no room to save") from None
        raise


@pytest.mark.parametrize("task", [ends_as_told, ends_as_told_in_a_loop])
@pytest.mark.parametrize(("how", "status"), [("raises", Status.ERROR), ("ends", Status.CANCELLED)])
def test_an_interrupt_may_end_a_call(
    task: object, how: str, status: Status, wire: Callable[[Target], Wire], tmp_path: Path
) -> None:
    ran = Counter(tmp_path / "ran")
    line = wire(target_of(task))
    line.send(ran.path, how)
    while not len(ran):
        line.next(0.05)
    line.cancel()
    outcome = line.wait(Kind.OUTCOME)
    assert outcome.flags == status
    assert b"no room to save" in outcome.body or how == "ends"
    assert line.told() <= 1
    assert line.next(0.1) is None, "the outcome is a call's last word"


@env.task
def stubborn(ran: str) -> int:
    caught = 0
    while caught < 3:
        try:
            mark(ran, str(caught))
            time.sleep(60)
        except KeyboardInterrupt:
            caught += 1
    return caught


@env.task
async def stubborn_in_a_loop(ran: str) -> int:
    caught = 0
    while caught < 3:
        try:
            mark(ran, str(caught))
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            caught += 1
    return caught


@pytest.mark.parametrize("task", [stubborn, stubborn_in_a_loop])
def test_each_cancel_interrupts_once(task: object, wire: Callable[[Target], Wire], tmp_path: Path) -> None:
    ran = Counter(tmp_path / "ran")
    line = wire(target_of(task))
    line.send(ran.path)
    for caught in range(3):
        while len(ran) < caught + 1:
            line.next(0.05)
        line.cancel()
        if caught < 2:  # of the last one the outcome may tell
            line.wait(Kind.INTERRUPTED, TOLD_S)
    assert line.result() == 3
    assert line.told() in (2, 3)


@env.task
def masked(ran: str, gate: str) -> str:
    """As C code that does not return: no signal reaches it."""
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        mark(ran)
        wait_for(gate)
        return "not interrupted"
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def test_an_interrupt_that_is_not_raised_is_not_told_of(wire: Callable[[Target], Wire], tmp_path: Path) -> None:
    ran, gate = Counter(tmp_path / "ran"), tmp_path / "gate"
    line = wire(target_of(masked))
    line.send(ran.path, str(gate))
    while not len(ran):
        line.next(0.05)
    line.cancel()
    assert line.next(1.0) is None
    gate.touch()
    assert line.result() == "not interrupted"
    assert line.told() == 0


@env.task
def sleeps(ran: str) -> None:
    mark(ran)
    time.sleep(60)


def test_the_next_call_of_the_connection_is_not_told_of_an_earlier_interrupt(
    wire: Callable[[Target], Wire], tmp_path: Path
) -> None:
    ran = Counter(tmp_path / "ran")
    line = wire(target_of(sleeps))
    for turn in range(20):
        line.send(ran.path)
        while len(ran) < turn + 1:
            line.next(0.01)
        assert line.told() == 0
        line.cancel()
        assert line.wait(Kind.OUTCOME).flags == Status.CANCELLED
        assert line.told() <= 1


def test_lines_behind_a_command_run_after_an_interrupt(wire: Callable[[Target], Wire], tmp_path: Path) -> None:
    ran, gate = Counter(tmp_path / "ran"), tmp_path / "gate"
    line = wire(cell("mark(ran)\n!sleep 60\nvalue = 'after'\nprint(value)", ran.path, str(gate), "value"))
    line.send()
    while not len(ran):
        line.next(0.05)
    line.next(0.3)  # so that the command has begun
    line.cancel()
    line.wait(Kind.INTERRUPTED, TOLD_S)
    with within(10):
        assert value_of(line.result()) == "after"
    assert "after" in line.printed()


@env.task
def prints(ran: str) -> list[int]:
    """Prints without end, and goes on after each interrupt; the number of lines at each."""
    counts: list[int] = []
    number = 0
    while len(counts) < 3:
        try:
            mark(ran)
            while True:
                sys.stdout.write(f"line {number}\n")
                number += 1
        except KeyboardInterrupt:
            counts.append(number)
    return counts


def test_an_interrupt_cuts_no_output_in_two(wire: Callable[[Target], Wire], tmp_path: Path) -> None:
    line = wire(target_of(prints))
    for turn in range(30):
        ran = Counter(tmp_path / f"ran{turn}")
        line.send(ran.path)
        for interrupts in range(1, 4):
            while len(ran) < interrupts:
                line.next(0.05)
            line.cancel()
            if interrupts < 3:  # of the last one the outcome may tell
                line.wait(Kind.INTERRUPTED)
        counts = line.result()
        assert isinstance(counts, list)
        numbers = [int(each.removeprefix("line ")) for each in line.printed().splitlines() if each]
        # Between the print and the count the number of a line may come twice, but none is missing.
        assert sorted(set(numbers)) == list(range(max(numbers) + 1))
        assert max(numbers) in (counts[-1], counts[-1] - 1)
