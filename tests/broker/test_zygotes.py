"""Zygotes as real processes; what they fork is no kernel here, but a module that says what it was given."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from anyio import lowlevel
from support import START_S, alive, wait_until

from flyte_jupyter.broker.exits import become_subreaper, reap_strangers, wait_exit
from flyte_jupyter.broker.zygotes import CannotFork, ForkedProcess, Zygote, Zygotes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="replicas are forked on Linux only")

FAKE_REPLICA = """
import json, os, random, signal, stat
import flyte_jupyter.kernel.__main__ as kernel

def main(arguments):
    listening = int(os.environ.pop("FLYTE_JUPYTER_TASK_FD"))
    sockets = [fd for fd in range(3, 256) if is_socket(fd)]
    told = {
        "environment": dict(os.environ), "cwd": os.getcwd(), "parent": os.getppid(), "session": os.getsid(0),
        "sockets_are_mine": sockets == [listening], "random": random.random(), "stdin": os.readlink("/proc/self/fd/0"),
        "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_DFL,
    }
    os.write(1, (json.dumps(told) + "\\n").encode())
    if arguments[0] == "stay":
        signal.pause()
    os._exit(int(arguments[0]))

def is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False

kernel.main = main
"""

STARTS_A_THREAD = """
import threading
threading.Thread(target=threading.Event().wait, name="eager", daemon=True).start()
"""

STARTS_A_THREAD_LATER = """
import threading, signal
def start(*_):
    threading.Thread(target=threading.Event().wait, name="late", daemon=True).start()
signal.signal(signal.SIGUSR1, start)
"""


class Nursery:
    """Zygotes with a folder for the modules that they import and for what their children write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.children: set[int] = set()
        self.zygotes = Zygotes(self.logs, self.children)
        self.base = {"PATH": os.defpath, "PYTHONPATH": str(folder), "COLOUR": "of the zygote"}
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        (folder / "fake_replica.py").write_text(FAKE_REPLICA)

    async def fork(
        self, *modules: str, does: str = "stay", idle_ttl: float = 600, base: dict[str, str] | None = None, n: int = 0
    ) -> ForkedProcess:
        request = {
            "environment": {"PATH": os.defpath, "SIZE": "large"},
            "cwd": str(self.folder),
            "arguments": [does],
        }
        log_path = self.logs / f"replica-{n}.log"
        preimports = ("fake_replica", *modules)
        with anyio.fail_after(START_S):
            return await self.zygotes.fork(
                sys.executable, base or self.base, preimports, idle_ttl, request, log_path, self.listening
            )

    async def why_not(self, *modules: str) -> str:
        with pytest.raises(CannotFork) as refusal:
            await self.fork(*modules)
        return str(refusal.value)

    @property
    def all(self) -> list[Zygote]:
        return list(self.zygotes._zygotes.values())

    @property
    def pids(self) -> list[int]:
        return [zygote.process.pid for zygote in self.all]

    def zygote_log(self) -> str:
        return "".join(path.read_text() for path in self.logs.glob("zygote-*.log"))

    async def told(self, n: int = 0) -> dict[str, Any]:
        """What the replica with this number has written into its log."""
        path = self.logs / f"replica-{n}.log"
        with anyio.fail_after(START_S):
            while not path.read_text().endswith("\n"):
                await anyio.sleep(0.005)
        said: dict[str, Any] = json.loads(path.read_text())
        return said

    async def kill(self, replica: ForkedProcess) -> None:
        os.kill(replica.pid, signal.SIGKILL)
        with anyio.fail_after(START_S):
            await wait_exit(replica)
        self.children.discard(replica.pid)
        self.zygotes.gone(replica.pid)


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    """This process is a subreaper meanwhile, as the broker is one. Ends what it has started, and checks that."""
    become_subreaper()
    before = {child.pid for child in psutil.Process().children()}
    nursery = Nursery(tmp_path)
    try:
        yield nursery
        left = [child for child in psutil.Process().children() if child.pid not in before]
        zygotes = {child.pid for child in left} & set(nursery.pids)
        assert not zygotes, f"a test must end its zygotes: {zygotes}"
    finally:
        nursery.listening.close()
        for pid in nursery.children:  # one that was forked just now may not be a child yet
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            replica = ForkedProcess(pid)
            wait_until(lambda replica=replica: replica.poll() is not None, 5)
        for child in psutil.Process().children():
            if child.pid not in before:
                child.kill()
                child.wait(5)
        import ctypes

        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)


def run(nursery: Nursery, test: Callable[[], Awaitable[None]]) -> None:
    """A test's body on asyncio, as in the broker; no zygote is left after it, whatever it does."""

    async def and_end() -> None:
        try:
            await test()
        finally:
            with anyio.CancelScope(shield=True):
                await nursery.zygotes.end()

    anyio.run(and_end)


# --- one zygote for one key


def test_a_zygote_is_reused_for_the_same_key_and_only_for_that(nursery: Nursery) -> None:
    async def test() -> None:
        first = await nursery.fork(n=1)
        (zygote,) = nursery.pids
        second = await nursery.fork(n=2)
        assert first.pid != second.pid
        assert nursery.pids == [zygote]
        await nursery.fork("sqlite3", n=3)
        assert len(nursery.pids) == 2, "other preimports"
        await nursery.fork(base={**nursery.base, "COLOUR": "red"}, n=4)
        assert len(nursery.pids) == 3, "another environment"
        assert nursery.pids[0] == zygote
        assert nursery.children >= {first.pid, second.pid, *nursery.pids}

    run(nursery, test)


def test_forks_at_once_start_one_zygote_and_each_gets_its_own_process(nursery: Nursery) -> None:
    async def test() -> None:
        got: list[int] = []

        async def one(n: int) -> None:
            got.append((await nursery.fork(n=n)).pid)

        async with anyio.create_task_group() as tasks:
            for n in range(6):
                tasks.start_soon(one, n)
        assert len(nursery.pids) == 1
        assert len(set(got)) == 6
        told = [await nursery.told(n) for n in range(6)]
        assert len({each["session"] for each in told}) == 6
        assert len({each["random"] for each in told}) == 6, "each draws numbers of its own"
        assert {each["session"] for each in told} == set(got), "the log file went to the right one"

    run(nursery, test)


def test_a_forked_process_is_a_child_of_the_broker_and_has_nothing_of_the_zygote(nursery: Nursery) -> None:
    async def test() -> None:
        replica = await nursery.fork()
        told = await nursery.told()
        environment = {key: value for key, value in told["environment"].items() if key != "LC_CTYPE"}
        assert environment == {"PATH": os.defpath, "SIZE": "large"}
        assert told["cwd"] == str(nursery.folder)
        assert told["parent"] == os.getpid()
        assert told["session"] == replica.pid
        assert told["stdin"] == os.devnull
        assert told["interrupt"], "Ctrl-C is not ignored, as it is by the zygote"
        assert told["sockets_are_mine"], "the task channel is there, the zygote's control socket is not"
        assert replica.poll() is None
        (zygote,) = nursery.pids
        assert psutil.Process(zygote).num_threads() >= 1
        assert [child for child in psutil.Process(zygote).children() if child.status() == "zombie"] == []

    run(nursery, test)


# --- a zygote that dies


def test_a_killed_zygote_is_replaced_and_its_replicas_live_on(nursery: Nursery) -> None:
    async def test() -> None:
        before = await nursery.fork(n=1)
        await nursery.told(1)
        (zygote,) = nursery.pids
        os.kill(zygote, signal.SIGKILL)
        wait_until(lambda: not alive(zygote))
        after = await nursery.fork(n=2)
        (another,) = nursery.pids
        assert another != zygote
        assert zygote not in nursery.children
        assert before.poll() is None
        assert after.poll() is None

    run(nursery, test)


def test_a_zygote_that_is_stopped_in_the_middle_of_a_fork_is_given_up_for_this_time(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        await nursery.fork(n=1)
        (zygote,) = nursery.pids
        os.kill(zygote, signal.SIGSTOP)
        monkeypatch.setattr("flyte_jupyter.broker.zygotes.FORK_S", 0.05)
        assert await nursery.why_not() == "the zygote did not answer within 0.05 s"
        assert not alive(zygote)
        monkeypatch.undo()
        await nursery.fork(n=2)  # it is no guard that has refused: tried again
        assert nursery.pids != [zygote]

    run(nursery, test)


@pytest.mark.parametrize("gone", [False, True], ids=["while-it-is-asked", "before-it-is-asked"])
def test_an_interpreter_that_ends_at_once_is_a_reason_and_not_an_error(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    start = nursery.zygotes._start

    def start_and_wait(*arguments: Any) -> Zygote:
        zygote = start(*arguments)
        os.waitid(os.P_PID, zygote.process.pid, os.WEXITED | os.WNOWAIT)
        return zygote

    if gone:
        monkeypatch.setattr(nursery.zygotes, "_start", start_and_wait)

    async def test() -> None:
        with pytest.raises(CannotFork, match="died"):
            await nursery.zygotes.fork(
                "/bin/true", nursery.base, (), 600, {}, nursery.logs / "replica.log", nursery.listening
            )
        assert nursery.all == []

    run(nursery, test)


def test_a_fork_that_is_cancelled_does_not_give_its_process_to_the_next(nursery: Nursery) -> None:
    async def test() -> None:
        await nursery.fork(n=1)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: nursery.fork(n=2))
                for _ in range(2):
                    await lowlevel.checkpoint()
                scope.cancel()
        third = await nursery.fork(n=3)
        assert (await nursery.told(3))["session"] == third.pid

    run(nursery, test)


# --- imports


def test_an_import_that_starts_a_thread_refuses_the_fork_for_good(nursery: Nursery) -> None:
    (nursery.folder / "eager.py").write_text(STARTS_A_THREAD)

    async def test() -> None:
        reason = await nursery.why_not("eager")
        assert reason == "an import has started a thread: eager"
        assert nursery.all == []
        started: list[Any] = []
        nursery.zygotes._start = lambda *arguments: started.append(arguments)  # type: ignore[method-assign, return-value]
        assert await nursery.why_not("eager") == reason
        assert started == [], "it is remembered, and not tried again"
        del nursery.zygotes._start  # type: ignore[method-assign]
        assert (await nursery.fork()).poll() is None, "without that import it works"

    run(nursery, test)


def test_a_thread_that_starts_later_refuses_the_fork_too(nursery: Nursery) -> None:
    (nursery.folder / "late.py").write_text(STARTS_A_THREAD_LATER)

    async def test() -> None:
        await nursery.fork("late", n=1)
        (zygote,) = nursery.pids
        os.kill(zygote, signal.SIGUSR1)
        wait_until(lambda: psutil.Process(zygote).num_threads() > 1 or "late" in nursery.zygote_log(), 5)
        assert await nursery.why_not("late") == "an import has started a thread: late"
        assert nursery.all == []

    run(nursery, test)


@pytest.mark.parametrize("body", [None, "raise SystemExit(1)", "1 / 0"], ids=["unknown", "exits", "fails"])
def test_a_preimport_that_cannot_be_imported_is_only_logged(nursery: Nursery, body: str | None) -> None:
    if body is not None:
        (nursery.folder / "troubled.py").write_text(body)

    async def test() -> None:
        assert (await nursery.fork("troubled")).poll() is None
        assert "troubled" in nursery.zygote_log()
        assert "Traceback" in nursery.zygote_log()

    run(nursery, test)


# --- their end


def test_a_zygote_without_replicas_retires_after_its_idle_ttl(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        replica = await nursery.fork(idle_ttl=60)
        (zygote,) = nursery.all
        now = zygote.used_at
        await look(nursery, monkeypatch, now + 10_000)
        assert nursery.all == [zygote], "its replica lives: the next scale-up wants it"
        monkeypatch.setattr("flyte_jupyter.broker.zygotes.anyio.current_time", lambda: now + 20_000)
        await nursery.kill(replica)
        assert zygote.used_at == now + 20_000
        await look(nursery, monkeypatch, now + 20_059)
        assert nursery.all == [zygote]
        await look(nursery, monkeypatch, now + 20_060)
        assert nursery.all == []
        assert not alive(zygote.process.pid)
        assert zygote.process.pid not in nursery.children

    run(nursery, test)


def test_the_longest_idle_ttl_of_its_environments_counts(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        for n, idle_ttl in enumerate((10.0, 90.0, 20.0)):
            await nursery.kill(await nursery.fork(idle_ttl=idle_ttl, n=n))
        (zygote,) = nursery.all
        assert zygote.idle_ttl == 90
        await look(nursery, monkeypatch, zygote.used_at + 89)
        assert nursery.all == [zygote]
        await look(nursery, monkeypatch, math.inf)
        assert nursery.all == []

    run(nursery, test)


def test_a_dead_zygote_is_collected_before_its_time(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        await nursery.fork()
        (zygote,) = nursery.all
        os.kill(zygote.process.pid, signal.SIGKILL)
        wait_until(lambda: not alive(zygote.process.pid))
        await look(nursery, monkeypatch, zygote.used_at)
        assert nursery.all == []
        assert not psutil.pid_exists(zygote.process.pid)

    run(nursery, test)


class Looked(Exception):
    """Instead of the second sleep."""


async def look(nursery: Nursery, monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """One round of `retire` at that instant."""
    real, rounds = anyio.sleep, iter([None])

    async def sleep(seconds: float) -> None:
        if seconds < 1:
            await real(seconds)
        elif next(rounds, Looked) is Looked:
            raise Looked

    with monkeypatch.context() as patch:
        patch.setattr("flyte_jupyter.broker.zygotes.anyio.sleep", sleep)
        patch.setattr("flyte_jupyter.broker.zygotes.anyio.current_time", lambda: now)
        with pytest.raises(Looked):
            await nursery.zygotes.retire()


def test_end_leaves_no_zygote_and_takes_no_replica_along(nursery: Nursery) -> None:
    async def test() -> None:
        replica = await nursery.fork(n=1)
        await nursery.told(1)
        await nursery.fork("sqlite3", n=2)
        pids = nursery.pids
        assert len(pids) == 2
        await nursery.zygotes.end()
        assert nursery.all == []
        assert not any(psutil.pid_exists(pid) for pid in pids)
        assert not nursery.children & set(pids)
        assert replica.poll() is None
        assert [file for file in os.listdir("/proc/self/fd") if _is_control(int(file))] == []

    run(nursery, test)


def _is_control(descriptor: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            return copy.type == socket.SOCK_SEQPACKET
    except OSError:
        return False


def test_a_zygote_ends_when_its_broker_closes_the_socket(nursery: Nursery) -> None:
    async def test() -> None:
        await nursery.fork()
        (zygote,) = nursery.all
        zygote.control.close()
        wait_until(lambda: zygote.process.poll() is not None)
        assert zygote.process.returncode == 0

    run(nursery, test)


# --- what is shown


def test_views_show_each_zygote_and_count_the_living_replicas(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        assert nursery.zygotes.views() == ()
        first = await nursery.fork(n=1)
        await nursery.fork(n=2)
        (zygote,) = nursery.all
        monkeypatch.setattr("flyte_jupyter.broker.zygotes.anyio.current_time", lambda: zygote.started_at + 7)
        (view,) = nursery.zygotes.views()
        assert (view.pid, view.preimports, view.replicas) == (zygote.process.pid, ("fake_replica",), 2)
        assert view.age_s == 7
        assert 2**20 < view.memory_bytes < 2**30
        await nursery.kill(first)
        assert [view.replicas for view in nursery.zygotes.views()] == [1]
        nursery.zygotes.gone(first.pid)  # nor is it an error twice, or for a replica that was spawned
        assert [view.replicas for view in nursery.zygotes.views()] == [1]

    run(nursery, test)


# --- ForkedProcess


@pytest.mark.parametrize(
    ("script", "returncode"),
    [("exit 3", 3), ("exit 0", 0), ("kill -KILL $$", -9), ("kill -TERM $$", -15)],
)
def test_a_forked_process_tells_how_it_ended(script: str, returncode: int) -> None:
    process = child("read nothing; " + script)
    assert process.poll() is None
    os.write(process.pipe, b"\n")
    anyio.run(wait_exit, process)
    assert process.returncode == process.poll() == process.wait() == returncode


def test_a_forked_process_that_somebody_else_has_collected_counts_as_killed() -> None:
    process = child("exit 3")
    os.waitpid(process.pid, 0)
    assert process.poll() == -signal.SIGKILL


def test_the_end_of_a_replica_that_the_zygote_forked_is_told(nursery: Nursery) -> None:
    async def test() -> None:
        ends = await nursery.fork(does="3", n=1)
        with anyio.fail_after(START_S):
            await wait_exit(ends)
        assert ends.returncode == 3
        killed = await nursery.fork(n=2)
        os.kill(killed.pid, signal.SIGKILL)
        reap_strangers(nursery.children)  # it is none
        with anyio.fail_after(START_S):
            await wait_exit(killed)
        assert killed.returncode == -9

    run(nursery, test)


class Child(ForkedProcess):
    """One that ends when something is written into `pipe`."""

    pipe: int

    def __del__(self) -> None:
        os.close(self.pipe)


def child(script: str) -> Child:
    # Not os.fork(): this process may have threads by now. To `waitpid` it is the same.
    reading, writing = os.pipe()
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", script], {}, file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)])
    os.close(reading)
    process = Child(pid)
    process.pipe = writing
    return process


# --- where it is possible


@pytest.mark.parametrize(("value", "possible"), [(None, True), ("1", True), ("0", False)])
def test_a_variable_turns_forking_off(
    value: str | None, possible: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("FLYTE_JUPYTER_ZYGOTE", raising=False)
    else:
        monkeypatch.setenv("FLYTE_JUPYTER_ZYGOTE", value)
    assert Zygotes(tmp_path, set()).possible is possible


def test_importing_the_zygote_imports_nothing_of_the_kernel() -> None:
    code = "import sys, flyte_jupyter.broker.zygote; print([m for m in ('zmq', 'ipykernel') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
