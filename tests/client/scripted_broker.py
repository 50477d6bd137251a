"""The broker's part, as a test's script plays it: see `scripted`."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from support import TIME_SCALE

from flyte_jupyter import _version, runtime
from flyte_jupyter.core import protocol as p
from flyte_jupyter.core.snapshot import Snapshot

T = TypeVar("T")
M = TypeVar("M", bound=p.Message)

PATIENCE_S: Final = 5.0 * TIME_SCALE
"""How long a script waits for what the client has to do next."""


class Notes:
    """What has arrived, for threads that wait for it."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.over = False
        self.patience = PATIENCE_S

    def wait(self, look: Callable[[], T | None], what: Callable[[], str]) -> T:
        """The first value of `look` that is not None."""
        deadline = time.monotonic() + self.patience
        with self.changed:
            while True:
                found = look()
                if found is not None:
                    return found
                assert not self.over, f"the stage was closed while the script waited for {what()}"
                assert time.monotonic() < deadline, f"the client did not do it: {what()}"
                self.changed.wait(0.05)

    def tell(self) -> None:
        with self.changed:
            self.changed.notify_all()


class ScriptedBroker:
    """Greets clients, and remembers what they say. It answers `Watch` at once; all else is the script's matter."""

    def __init__(self, folder: Path, notes: Notes) -> None:
        self.messages: list[p.Message] = []
        """All that was said, in order."""
        self._unread: list[p.Message] = []
        self._path = runtime.broker_socket(folder)
        self._notes = notes
        self._streams: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listening: socket.socket | None = None
        self._send_lock = threading.Lock()

    def start(self) -> None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(self._path))
        listening.listen()
        self._listening = listening
        self._begin(self._accept, listening)

    def end(self) -> None:
        """End as a broker that was killed. Returns when its clients have seen it; `start` starts the next one."""
        listening, self._listening = self._listening, None
        if listening is not None:
            self._path.unlink()
            listening.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._threads.clear()

    def hang_up(self) -> None:
        while self._streams:
            with suppress(OSError):
                self._streams.pop().shutdown(socket.SHUT_WR)

    def expect(self, kind: type[M], lease: str | None = None) -> M:
        """The next message of that kind (about that lease); those of other kinds wait."""
        return self._notes.wait(
            lambda: self._take((kind,), lease), lambda: f"{kind.__name__} {lease or ''}; it said {self.messages}"
        )

    def next(self, *kinds: type[M], until: threading.Event, patience: float | None = None) -> M | None:
        """The next message of one of these kinds; None once `until` is set. It fails after `patience` seconds."""
        deadline = None if patience is None else time.monotonic() + patience
        while not until.is_set():
            assert not self._notes.over, "the stage was closed while the script served calls"
            assert deadline is None or time.monotonic() < deadline, f"the client keeps others waiting: {self.messages}"
            if (message := self._take(kinds, None)) is not None:
                return message
            time.sleep(0.001)
        return None

    def said(self, kind: type[M]) -> list[M]:
        """All messages of that kind so far."""
        return [message for message in list(self.messages) if isinstance(message, kind)]

    def send(self, message: p.Message) -> None:
        with self._send_lock:
            self._streams[-1].sendall(p.to_line(message))

    # --- private

    def _take(self, kinds: tuple[type[M], ...], lease: str | None) -> M | None:
        with self._notes.changed:
            for message in self._unread:
                if isinstance(message, kinds) and (lease is None or vars(message).get("lease") == lease):
                    self._unread.remove(message)
                    return message
        return None

    def _begin(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listening: socket.socket) -> None:
        with listening, suppress(OSError):
            while True:
                stream, _ = listening.accept()
                self._streams.append(stream)
                self._begin(self._listen, stream)

    def _listen(self, stream: socket.socket) -> None:
        with stream, stream.makefile("rb") as lines, suppress(OSError):
            for line in lines:
                self._receive(stream, p.to_broker.validate_json(line))

    def _receive(self, stream: socket.socket, message: p.ToBroker) -> None:
        match message:
            case p.Hello() if self._notes.over:
                stream.sendall(p.to_line(p.Rejected(version="over", protocol=0, pid=0)))
            case p.Hello():
                stream.sendall(p.to_line(p.Welcome(version=_version.__version__, pid=os.getpid())))
            case p.Watch(question=question):
                nothing = Snapshot(revision=0, now=0, pools=(), devices=(), device_problem=None, clients=())
                self.send(p.Snapped(epoch_offset=0, log_dir="", snapshot=nothing, question=question))
            case _:
                with self._notes.changed:
                    self.messages.append(message)
                    self._unread.append(message)
                    self._notes.changed.notify_all()
