"""The broker's own life: how it starts, who may talk to it, and what is left when it or a client is killed."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support import (
    START_S,
    TIME_SCALE,
    OwnBroker,
    alive,
    guardians,
    interrupt,
    leftovers,
    mark,
    tagged,
    wait_until,
    within,
)

from flyte_jupyter import errors, runtime
from flyte_jupyter.core import protocol as p

pytestmark = pytest.mark.kernel

ONE_SLOT = """
from flyte_jupyter.client import broker
env = flyte.TaskEnvironment("one", reusable=flyte.ReusePolicy(replicas=(1, 1)))

@env.task
def pid() -> int:
    return os.getpid()

@env.task
def sleep(seconds: float) -> int:
    say("running", os.getpid())
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        say("cancelled")
        raise
    return os.getpid()
"""


# --- start


def test_ten_processes_at_once_start_one_broker(own_broker: OwnBroker) -> None:
    names = [f"client{number}" for number in range(10)]
    clients = [
        own_broker.start(ONE_SLOT + "replica = pid()\nsay(replica, broker.current().broker_pid)", name=name)
        for name in names
    ]
    for client, name in zip(clients, names, strict=True):
        assert client.wait(4 * START_S) == 0, own_broker.output(name)
    answers = {line for name in names for line in own_broker.said(name)}
    assert len(answers) == 1, "one replica, one broker"
    [answer] = answers
    assert answer.split()[1] == str(own_broker.pid)
    assert len(guardians(own_broker.folder)) == 1


def test_what_a_crash_left_behind_is_in_nobodys_way(own_broker: OwnBroker) -> None:
    folder = own_broker.folder
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(runtime.broker_socket(folder)))
    runtime.broker_lock(folder).write_text("999999\n")
    (folder / "start.lock").touch()
    (folder / "fjabcdef" / "01234567-1").mkdir(parents=True)
    (folder / "fjabcdef" / "01234567-1" / "kernel.json").write_text("{}")
    mine = folder / "mine"
    mine.mkdir()
    said = own_broker.run(ONE_SLOT + "say(pid() > 0)")
    assert said == ["True"]
    assert not (folder / "fjabcdef").exists()
    mine.rmdir()  # it is still there: only what is surely a broker's is removed


def test_a_replica_that_outlived_its_broker_and_guardian_is_ended_by_the_next_broker(own_broker: OwnBroker) -> None:
    tags = {
        "FLYTE_JUPYTER_REPLICA": "x",
        "FLYTE_JUPYTER_BROKER": "y",
        runtime.VARIABLE: str(own_broker.folder),
    }
    left = subprocess.Popen(["sleep", "600"], env={**os.environ, **tags})
    try:
        own_broker.run(ONE_SLOT + "pid()")
        assert left.wait(1) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()


def test_a_folder_that_cannot_be_trusted_or_used_is_named_at_once(own_broker: OwnBroker, tmp_path: Path) -> None:
    places = {
        "open": own_broker.folder / "open",
        "link": own_broker.folder / "link",
        "file": own_broker.folder / "file",
        "long": own_broker.folder / ("long" * 20),
    }
    try:
        places["open"].mkdir(mode=0o755)
        places["open"].chmod(0o755)
        places["link"].symlink_to(tmp_path)
        places["file"].touch()
        said = own_broker.run(
            ONE_SLOT
            + f"""
for name, place in { ({name: str(place) for name, place in places.items()})!r}.items():
    os.environ["FLYTE_JUPYTER_RUNTIME_DIR"] = place
    started = time.monotonic()
    try:
        pid()
    except errors.BrokerUnavailable as error:
        text = " ".join([str(error), *error.__notes__])
        say(name, place in text, "FLYTE_JUPYTER_RUNTIME_DIR" in text, time.monotonic() - started < 2, text)
    else:
        say(name, "no error")
"""
        )
    finally:
        for place in places.values():
            place.unlink(missing_ok=True) if place.name != "open" else shutil.rmtree(place)
    assert [line.split()[:4] for line in said] == [[name, "True", "True", "True"] for name in places]
    for line, reason in zip(
        said, ["mode 0755", "is a symbolic link", "cannot be used", "too long for Unix sockets"], strict=True
    ):
        assert reason in line


def test_a_script_that_starts_the_broker_ends_although_its_pipes_are_read(own_broker: OwnBroker) -> None:
    script = own_broker.home / "piped.py"
    script.write_text(f"SAID = {str(own_broker.home / 'piped')!r}\nfrom support import mark\n" + ONE_SLOT_PIPED)
    done = subprocess.run(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=START_S * TIME_SCALE,
        cwd=own_broker.home,
        env=own_broker._environment({}),
        check=True,
    )
    assert done.stdout == "True\n"
    assert done.stderr == ""
    assert alive(own_broker.pid)
    process = psutil.Process(own_broker.pid)
    assert process.terminal() is None
    assert os.getsid(process.pid) == process.pid
    assert process.cwd() == str(own_broker.folder)


ONE_SLOT_PIPED = """
import os
import flyte_jupyter as flyte
env = flyte.TaskEnvironment("one", reusable=flyte.ReusePolicy(replicas=(1, 2)))

@env.task
def pid() -> int:
    return os.getpid()

print(pid() > 0)
"""


# --- conversation


def test_two_protocol_versions_refuse_each_other_by_name(
    own_broker: OwnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_broker.run(ONE_SLOT + "say(pid())")
    monkeypatch.setattr(p, "Hello", functools.partial(p.Hello, protocol=99, version="9.9"))
    with pytest.raises(errors.VersionMismatch) as caught, own_broker.connected():
        pass
    text = "\n".join([str(caught.value), *caught.value.__notes__])
    assert "the broker use different flyte_jupyter versions" in text
    assert "flyte-jupyter stop" in text
    monkeypatch.undo()
    assert own_broker.snapshot().pools[0].name == "one"


@pytest.mark.parametrize(
    "junk", [b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100_000, b'{"type": "hello"', b'{"type": "shutdown"}\n', b""]
)
def test_junk_on_its_socket_does_not_disturb_the_broker(own_broker: OwnBroker, junk: bytes) -> None:
    with own_broker_without_replicas(own_broker):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(runtime.broker_socket(own_broker.folder)))
            stream.sendall(junk)
        assert own_broker.snapshot().pools == ()


class own_broker_without_replicas:
    """A broker that the test has started itself, so that its exit code can be seen."""

    def __init__(self, own: OwnBroker, **variables: str) -> None:
        self.own = own
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flyte_jupyter.broker"], env=own._environment(variables), cwd="/"
        )

    def __enter__(self) -> subprocess.Popen[bytes]:
        wait_until(lambda: runtime.broker_socket(self.own.folder).exists(), START_S)
        return self.process

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.wait(10 * TIME_SCALE) == 0


# --- a client is killed


def test_the_work_of_a_killed_client_ends_and_the_next_client_is_served(own_broker: OwnBroker) -> None:
    doomed = own_broker.start(
        ONE_SLOT
        + """
for _ in range(20):
    threading.Thread(target=sleep, args=(60,), daemon=True).start()
threading.Event().wait()
""",
        name="doomed",
    )
    own_broker.wait_said("doomed")
    other = own_broker.start(ONE_SLOT + "say(broker.connect().broker_pid)\nsay(pid(), time.monotonic())", name="other")
    own_broker.wait_said("other")
    wait_until(lambda: own_broker.snapshot().pools[0].waiting == 20)
    doomed.kill()
    killed = time.monotonic()
    wait_until(lambda: own_broker.snapshot().pools[0].waiting <= 1, 2, "its queue vanishes")
    assert other.wait(START_S) == 0, own_broker.output("other")
    replica, served = own_broker.said("other")[1].split()
    assert float(served) - killed <= 2 * TIME_SCALE
    assert own_broker.said("doomed") == [f"running {replica}", "cancelled"], "and the model stays loaded"
    time.sleep(0.3)
    assert len(own_broker.said("doomed")) == 2, "no further body starts"
    [pool] = wait_until(lambda: [each for each in own_broker.snapshot().pools if not each.replicas[0].leases])
    assert (pool.waiting, [r.state for r in pool.replicas]) == (0, ["ready"])


def test_a_client_that_ends_while_calls_are_queued_ends_at_once(own_broker: OwnBroker) -> None:
    own_broker.run(
        ONE_SLOT
        + """
for _ in range(200):
    threading.Thread(target=sleep, args=(60,), daemon=True).start()
wait_said("running")
say("leaving", time.monotonic())
""",
        name="short",
    )
    left = time.monotonic()
    said = [line for line in own_broker.said("short") if line.startswith("leaving")]
    assert left - float(said[0].split()[1]) <= 2 * TIME_SCALE
    wait_until(lambda: own_broker.snapshot().pools[0].waiting == 0, 2)
    wait_until(lambda: own_broker.snapshot().pools[0].replicas[0].state == "ready", 2)


def test_a_forked_child_does_not_speak_on_its_parents_connection(own_broker: OwnBroker) -> None:
    said = own_broker.run(
        ONE_SLOT
        + """
mine = pid()
child = os.fork()
if child == 0:
    try:
        say("child", pid() == mine)
    finally:
        os._exit(0)
os.waitpid(child, 0)
say("parent", pid() == mine)
"""
    )
    assert said == ["child True", "parent True"]


# --- the broker is killed


def test_nothing_outlives_a_killed_broker_and_the_next_call_starts_another(own_broker: OwnBroker) -> None:
    client = own_broker.start(
        """
import ctypes, subprocess
from flyte_jupyter.client import broker
env = flyte.TaskEnvironment("three", reusable=flyte.ReusePolicy(replicas=3))

@env.task
def stuck(how: str) -> int:
    if how == "gil":
        say("running", os.getpid())
        ctypes.PyDLL(None).sleep(60)
    elif how == "child":
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        say("running", os.getpid(), child.pid)
        child.wait()
    elif how == "sleep":
        say("running", os.getpid())
        time.sleep(60)
    return os.getpid()

def caller(how):
    try:
        stuck(how)
    except errors.BrokerGone as error:
        say("gone", time.monotonic(), how)
    except BaseException as error:
        say("wrong", repr(error))

async def acaller():
    say("served", await stuck.aio("queued") > 0)  # it had not begun: the next broker is asked

callers = [threading.Thread(target=caller, args=(how,)) for how in ("gil", "child", "sleep")]
for each in callers:
    each.start()
wait_said("running", 3)
old = broker.current().broker_pid
asyncio.run(acaller())
for each in callers:
    each.join()
started = time.monotonic()
say("next", stuck("") > 0, broker.current().broker_pid != old, time.monotonic() - started)
""",
        name="client",
    )
    own_broker.wait_said("client", 3)
    wait_until(lambda: own_broker.snapshot().pools[0].waiting == 1)
    mine = {int(word) for line in own_broker.said("client") for word in line.split()[1:]}
    mine |= {r.pid for r in own_broker.snapshot().pools[0].replicas if r.pid}
    assert len(mine) == 4
    os.kill(own_broker.pid, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: not any(alive(pid) for pid in mine), 5, "replicas and their children are gone")
    assert client.wait(START_S * TIME_SCALE) == 0, own_broker.output("client")
    said = own_broker.said("client")[3:]
    gone = [float(line.split()[1]) - killed for line in said if line.startswith("gone")]
    assert len(gone) == 3, said
    assert "served True" in said
    assert max(gone) <= 3 * TIME_SCALE
    word, works, another, took = said[-1].split()
    assert (word, works, another) == ("next", "True", "True")
    assert float(took) <= 10 * TIME_SCALE


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_broker_ends_everything_it_started(own_broker: OwnBroker, how: signal.Signals) -> None:
    with own_broker_without_replicas(own_broker) as daemon:
        client = own_broker.start(
            ONE_SLOT
            + """
env2 = flyte.TaskEnvironment("idle", reusable=flyte.ReusePolicy(replicas=1, concurrency=2))
flyte.pool(env2).warm()
try:
    sleep(60)
except errors.BrokerGone as error:
    say("gone", time.monotonic(), error, *error.__notes__)
""",
            name="client",
        )
        own_broker.wait_said("client")
        assert len(tagged(own_broker.folder)) >= 2
        told = time.monotonic()
        daemon.send_signal(how)
        assert daemon.wait(10 * TIME_SCALE) == 0
        assert client.wait(START_S) == 0, own_broker.output("client")
        line = own_broker.said("client")[-1]
        assert "the broker was stopped" in line
        assert float(line.split()[1]) - told <= 10 * TIME_SCALE
        assert tagged(own_broker.folder) == []
        assert guardians(own_broker.folder) == []
        assert leftovers(own_broker.folder) == []


# --- the broker runs, but does not answer


@contextmanager
def paused(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


IMPATIENT = (
    ONE_SLOT
    + """
broker.ANSWER_S, broker.CONNECT_S, broker.SLOW_S = 0.5, 1.0, 0.2

def silent(ask):
    try:
        say("answered", ask())
    except errors.BrokerSilent as error:
        say(error, *error.__notes__)
"""
)


def test_a_client_of_a_paused_broker_is_told_so_and_goes_on_when_it_answers_again(own_broker: OwnBroker) -> None:
    client = own_broker.start(
        IMPATIENT
        + """
pool = flyte.pool(env)
say(pid() > 0)
wait_said("paused")
silent(pool.status)
silent(broker.current().snapshot)
silent(lambda: broker.current().timeline(pool.key))
say(repr(pool))
say(pool._repr_mimebundle_()["text/plain"])
wait_said("resumed")
broker.current()._dialogue._patience_s = 10.0
say(pool.status().name, pid() > 0)
""",
        name="client",
    )
    own_broker.wait_said("client")
    with paused(own_broker.pid):
        mark(str(own_broker.home / "client"), "paused")
        own_broker.wait_said("client", 7)
    mark(str(own_broker.home / "client"), "resumed")
    assert client.wait(START_S * TIME_SCALE) == 0, own_broker.output("client")
    _, _, *said, _, last = own_broker.said("client")
    silent = f"FJ107 The broker (pid {own_broker.pid}) does not answer."
    assert len(said) == 5
    assert all(silent in line for line in said), said
    assert all("`flyte-jupyter stop`" in line for line in (*said[:3], said[4])), said
    assert last == "one True"


def test_a_new_client_of_a_paused_broker_is_told_that_it_runs(own_broker: OwnBroker) -> None:
    own_broker.run(ONE_SLOT + "say(pid())")
    with paused(own_broker.pid):
        said = own_broker.run(
            IMPATIENT + "silent(pid)\nsilent(flyte.pool(env).status)\nsilent(lambda: broker.connect(start=False))"
        )
    assert [line.partition(".")[0] for line in said] == [f"FJ107 The broker (pid {own_broker.pid}) does not answer"] * 3
    assert all("could not be started" not in line for line in said)


def test_a_broker_that_has_the_lock_and_no_socket_is_named(own_broker: OwnBroker) -> None:
    with runtime.broker_lock(own_broker.folder).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        (said,) = own_broker.run(IMPATIENT + "silent(pid)")
        wait_until(lambda: not tagged(own_broker.folder), START_S, "those that it has started have ended")
    assert said.startswith(f"FJ107 The broker (pid {os.getpid()}) does not answer.")
    assert "flyte_jupyter: Waiting for the broker to start. Ctrl-C ends the wait" in own_broker.output("client1")


@pytest.mark.parametrize("ask", ["flyte.pool(env).status()", "broker.current().timeline('0' * 16)", "declare()"])
def test_a_wait_for_a_paused_broker_is_explained_and_ends_with_ctrl_c(own_broker: OwnBroker, ask: str) -> None:
    client = own_broker.start(
        ONE_SLOT
        + f"""
from flyte_jupyter.core import dialogue, protocol as p
dialogue.SLOW_S = broker.SLOW_S = 0.2

def declare():  # more than the socket takes
    for number in range(10_000):
        broker.current().send(p.Release(lease=f"{{number:0200}}"))

say(pid() > 0)
wait_said("paused")
try:
    {ask}
except KeyboardInterrupt:
    say("stopped")
""",
        name="client",
    )
    own_broker.wait_said("client")
    with paused(own_broker.pid):
        mark(str(own_broker.home / "client"), "paused")
        waits = f"flyte_jupyter: Waiting for the broker (pid {own_broker.pid}), which does not answer."
        wait_until(lambda: waits in own_broker.output("client"), START_S, lambda: own_broker.output("client"))
        pressed = interrupt(client)
        assert client.wait(START_S * TIME_SCALE) == 0, own_broker.output("client")
        assert time.monotonic() - pressed < 5 * TIME_SCALE
    assert own_broker.said("client")[-1] == "stopped"


# --- the broker has nothing to do


def test_a_broker_that_nobody_needs_ends_itself(own_broker: OwnBroker) -> None:
    said = own_broker.run(
        """
env = flyte.TaskEnvironment("once")

@env.task
def pid() -> int:
    return os.getpid()

say(pid())
""",
        FLYTE_JUPYTER_BROKER_IDLE_S="1",
    )
    broker = own_broker.pid
    wait_until(lambda: not alive(int(said[0])), 3, "a replica for one call goes after it")
    wait_until(lambda: not alive(broker), 4, "nobody needs the broker")
    assert leftovers(own_broker.folder) == []
    assert guardians(own_broker.folder) == []


def test_an_idle_broker_and_its_replicas_use_no_processor(own_broker: OwnBroker) -> None:
    own_broker.start(ONE_SLOT + "say(pid())\ntime.sleep(60)", name="client")
    replica = int(own_broker.wait_said("client")[0])

    def used(pid: int) -> float:
        times = psutil.Process(pid).cpu_times()
        return times.user + times.system

    watched = {"broker": own_broker.pid, "replica": replica, "guardian": guardians(own_broker.folder)[0]}
    watched["client"] = own_broker.scripts[0].pid
    share: dict[str, float] = {}

    def rest() -> bool:
        before = {name: used(pid) for name, pid in watched.items()}
        time.sleep(3)
        share.update({name: (used(pid) - before[name]) / 3 for name, pid in watched.items()})
        return all(part < (0.02 if name == "replica" else 0.01) for name, part in share.items())

    wait_until(rest, START_S, lambda: f"three seconds of rest, after what a start leaves to do: {share}")


# --- a pool that cannot start


def test_a_preload_that_fails_is_shown_with_its_cause_and_harms_no_other_pool(own_broker: OwnBroker) -> None:
    said = own_broker.run(
        """
import ctypes, json

def environment(name):
    return flyte.TaskEnvironment(name, reusable=flyte.ReusePolicy(replicas=(0, 1), concurrency=2))

raising, crashing, slow, fine = map(environment, ("raising", "crashing", "slow", "fine"))

@flyte.pool(raising).preload
def load_raising():
    import a_module_that_is_not_there

@flyte.pool(crashing).preload
def load_crashing():
    ctypes.string_at(0)

@flyte.pool(slow).preload(start_timeout=1.0)
def load_slow():
    time.sleep(60)

@raising.task
async def one() -> int:
    return 1

@crashing.task
async def two() -> int:
    return 2

@slow.task
async def three() -> int:
    return 3

@fine.task
async def four() -> int:
    return 4

async def main():
    outcomes = await asyncio.gather(one(), two(), three(), four(), return_exceptions=True)
    for outcome in outcomes:
        text = "; ".join([str(outcome), *getattr(outcome, "__notes__", [])])
        say(type(outcome).__name__, json.dumps(text))

asyncio.run(main())
"""
    )
    raising, crashing, slow, fine = said
    assert raising.startswith("PoolFailed")
    assert "No module named" in raising
    assert "in load_raising" in raising
    assert crashing.startswith("PoolFailed")
    assert "SIGSEGV" in crashing
    assert "in load_crashing" in crashing, "with the last lines of its log"
    assert slow.startswith("PoolFailed")
    assert "not ready after 1 s (start_timeout)" in slow
    assert fine.startswith("int")
    with within(1):
        failed = {pool.name: pool.failure for pool in own_broker.snapshot().pools}
    assert failed["fine"] is None
    assert failed["raising"] is not None
    assert "in load_raising" in failed["raising"].cause
