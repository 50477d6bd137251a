"""A broker and replicas that do what a test's script says. Only the sockets and the client's half of a call are real.

The main thread of a test calls tasks. The script runs beside it on a thread of its own, and plays all other parts:

    def script() -> None:
        wire = stage.grant()                    # waits for the request, grants it, and takes the connection
        wire.answer(wire.call(1), "done")

    with stage.plays(script):
        assert task(1) == "done"

Nothing is read of a connection for calls but what the script reads. Each wait of a script ends, at the latest, after
`PATIENCE_S`; then all sockets are closed, so that the main thread does not wait for ever.
"""

from __future__ import annotations

import fcntl
import itertools
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripted_broker import PATIENCE_S, Notes, ScriptedBroker
from scripted_replica import SHORT, ScriptedReplica, Wire

import flyte_jupyter as flyte
from flyte_jupyter.core import protocol as p


class Stage:
    """A broker, its replicas, and an environment of their own in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = Notes()
        self.broker = ScriptedBroker(folder, self.notes)
        self._lock = open(folder / "start.lock", "w")  # noqa: SIM115 - held, so that no client starts a real broker
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.broker.start()
        self._replicas: list[ScriptedReplica] = []
        self._any = self.environment()
        self._names = (f"r{number}" for number in itertools.count())

    def environment(self, replicas: int = 1) -> flyte.TaskEnvironment:
        name = f"scripted-{next(_numbers)}"
        return flyte.TaskEnvironment(name, reusable=flyte.ReusePolicy(replicas=replicas))

    # --- for scripts

    def replica(self, *, deaf: bool = False) -> ScriptedReplica:
        """A new one, which nobody knows yet. A deaf one accepts no connection."""
        replica = ScriptedReplica(self.folder / next(self._names), self.notes, deaf=deaf)
        self._replicas.append(replica)
        return replica

    def asked(self) -> p.Acquire:
        """The next request for a slot."""
        return self.broker.expect(p.Acquire)

    def grant(self, request: p.Acquire | None = None, replica: ScriptedReplica | None = None) -> Wire:
        """Grant the next request (or that one) on a new replica (or that one); the connection that comes of it."""
        request = request or self.asked()
        replica = replica or self.replica()
        self.say_granted(request, replica)
        wire = replica.wire()
        assert wire.lease == request.lease
        return wire

    def say_granted(self, request: p.Acquire, replica: ScriptedReplica) -> None:
        self.broker.send(
            p.Granted(lease=request.lease, replica=replica.name, name=replica.name, address=replica.address)
        )

    def lose(self, wire: Wire) -> None:
        """Tell the client that the replica under that lease was killed."""
        self.broker.send(p.Lost(lease=wire.lease, replica="r", name="r", cause="signal SIGKILL", signal="SIGKILL"))

    def replica_of(self, wire: Wire) -> ScriptedReplica:
        return next(replica for replica in self._replicas if wire in replica._opened)

    def heard(self) -> None:
        """Until the client has heard all that the broker has said."""
        flyte.pool(self._any).status()  # the answers to questions come in order, too

    def wires(self) -> list[Wire]:
        """All connections for calls so far."""
        return [wire for replica in self._replicas for wire in replica._opened if wire.lease]

    def interrupt(self) -> None:
        """Ctrl-C, as soon as the main thread waits for something."""
        wait_until_it_waits(threading.main_thread())
        signal.pthread_kill(_ident(threading.main_thread()), signal.SIGINT)

    # --- for tests

    @contextmanager
    def plays(self, script: Callable[[], object], *, all_released: bool = True) -> Iterator[None]:
        """Run the script beside the block. In the end every lease that was asked for must have been released."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                script()
            except BaseException as error:
                failed.append(error)
                self.give_up()

        thread = threading.Thread(target=run, name="script", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            if failed:
                raise failed[0] from error
            self.give_up()  # what the script still waits for does not come
            thread.join(PATIENCE_S)
            raise
        thread.join(PATIENCE_S)
        if failed:
            raise failed[0]
        assert not thread.is_alive(), "the script does not end"
        if all_released:
            self.expect_all_released()

    def asked_for(self) -> list[str]:
        """The leases that were asked for so far."""
        return [asked.lease for asked in self.broker.said(p.Acquire)]

    def expect_all_released(self) -> None:
        """Nobody keeps a slot, nobody waits for one."""

        def look() -> bool | None:
            return set(self.asked_for()) <= {said.lease for said in self.broker.said(p.Release)} or None

        self.notes.wait(look, lambda: f"Release of every lease; it said {self.broker.messages}")

    def give_up(self) -> None:
        """Hang up on everybody, and greet nobody any more."""
        self.notes.over = True
        for replica in self._replicas:
            replica.close()
        self.broker.hang_up()
        self.notes.tell()

    def close(self) -> None:
        self.give_up()
        self.broker.end()
        self._lock.close()


_numbers = itertools.count()


@contextmanager
def open_stage() -> Iterator[Stage]:
    """A stage in a runtime folder of its own, whose environment variable is the caller's matter."""
    folder = Path(tempfile.mkdtemp(prefix="fj-", dir="/tmp"))
    stage = Stage(folder)
    try:
        yield stage
    finally:
        stage.close()
        shutil.rmtree(folder, ignore_errors=True)


async def learn_pace(task: flyte.Task[..., Any]) -> None:
    """Make calls of `SHORT` until the last ones took so little that several are sent at a time."""
    quick = 0
    while quick < 15:
        began = time.monotonic()
        await task.aio(SHORT)
        quick = quick + 1 if time.monotonic() - began < 0.001 else 0


def wait_until_it_waits(thread: threading.Thread) -> None:
    """Until a thread stands still: the same instruction at ten looks, and the system says that it sleeps."""
    deadline = time.monotonic() + PATIENCE_S
    seen, count = None, 0
    while count < 10:
        assert time.monotonic() < deadline, f"{thread.name} does not wait for anything"
        time.sleep(0.001)
        frame = sys._current_frames()[_ident(thread)]
        now = (id(frame), frame.f_lasti) if _sleeps(thread) else None
        count = count + 1 if now is not None and now == seen else 0
        seen = now


def _sleeps(thread: threading.Thread) -> bool:
    try:
        text = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    except FileNotFoundError:  # not Linux
        return True
    return text.rpartition(")")[2].split()[0] == "S"


def _ident(thread: threading.Thread) -> int:
    assert thread.ident is not None
    return thread.ident
