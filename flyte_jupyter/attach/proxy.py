"""The proxy: a process that passes messages between a front end and a warm kernel.

It binds the channels of the front end's connection file, holds a lease on a replica, and passes messages to
the replica's own channels and back, signed anew with the key of the other side. Identities travel along, so replies,
input requests and several clients of one front end need no table. What it answers itself: the heartbeat,
`kernel_info_request`, and `shutdown_request`, after which the replica is as warm as before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal

import zmq

from .. import errors, runtime
from ..client import broker, text
from ..client.attached import Attachment, find_replica
from ..peek import jupyter_channels
from .side import FrontEnd, ReplicaSide, Request, kernel_info
from .target import notebook, session_target

POLL_MS: Final = 500
LEAVE_S: Final = 2.0
"""How long a cell that still runs may take to stop when its front end leaves."""


class Proxy:
    """The kernel that a front end sees.

    Args:
        path: Its connection file.
        wanted: "gpu[1]", "gpu", or "" for the one that its session names, or else of the pool that was last used.
        shared: Leave the replica in rotation.
        foreground: Ctrl-C ends it, instead of interrupting what runs.
    """

    def __init__(self, path: Path, wanted: str, shared: bool, *, foreground: bool = False) -> None:
        self._foreground = foreground
        self._path = path
        self._wanted = wanted
        self._shared = shared
        self._state: Literal["looking", "opening", "attached", "failed"] = "looking"
        self._problem = ""
        self._context: zmq.Context[Any] = zmq.Context()
        self._front = FrontEnd(json.loads(path.read_text()))
        self._back: ReplicaSide | None = None
        self._identity = uuid.uuid4().hex
        self._attachment: Attachment | None = None
        self._queue: list[Request] = []
        self._running: dict[str, Request] = {}  # executions that the replica has got
        self._welcome = False
        self._info: dict[str, Any] | None = None
        self._note: str | None = None
        self._warning = ""
        self._leave_at = 0.0
        self._exit: int | None = None
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._parent = os.getppid()
        self._listeners = 0
        self._heard = False  # somebody has listened once
        self._again = self._take_mark()

    # --- life

    def run(self) -> int:
        """Serve the front end until it leaves; the exit code."""
        self._front.bind(self._context)
        self._front.publish("status", {"execution_state": "starting"}, {})
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._on_sigint)
        signal.signal(signal.SIGTERM, lambda *_: self._calls.put(lambda: self._leave(restart=False)))
        self._look()
        try:
            while self._exit is None:
                self._step()
        finally:
            if self._attachment is not None:
                self._attachment.close()
            if self._back is not None:
                self._back.close()
            self._front.close()
            self._context.term()
        return self._exit

    def _step(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_r, zmq.POLLIN)
        sides = [("front", self._front)] + ([("back", self._back)] if self._back is not None else [])
        known = {}
        for side, channels in sides:
            for channel, each in channels.sockets.items():
                poller.register(each, zmq.POLLIN)
                known[each] = getattr(self, f"_from_{side}"), channel
        for ready, _ in poller.poll(POLL_MS):
            if ready == self._wake_r:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_r, 4096)
                continue
            handler, channel = known[ready]
            with contextlib.suppress(zmq.Again):
                while not ready.closed:
                    handler(channel, ready.recv_multipart(zmq.NOBLOCK))
        with contextlib.suppress(queue.Empty):
            while True:
                self._calls.get_nowait()()
        if self._leave_at and (not self._running or time.monotonic() > self._leave_at):
            self._exit = 0
        if os.getppid() != self._parent and ("JPY_PARENT_PID" in os.environ or (self._heard and not self._listeners)):
            self._exit = 0  # the front end died, or nobody is left of those who came

    def _later(self, call: Callable[[], None]) -> None:
        """Run `call` on the main thread."""
        self._calls.put(call)
        with contextlib.suppress(OSError):
            os.write(self._wake_w, b"\0")

    # --- attach; `_find` and what it calls on a thread of its own

    def _look(self) -> None:
        self._state = "looking"
        threading.Thread(target=self._find, name="flyte_jupyter_attach", daemon=True).start()

    def _find(self) -> None:
        try:
            attachment = None
            while attachment is None:
                attachment = self._take()
            info = jupyter_channels(attachment.replica)
            self._later(lambda: self._open(attachment, info))
        except (errors.BaseRuntimeError, OSError, ValueError, argparse.ArgumentTypeError) as error:
            problem = "\n".join([str(error), *getattr(error, "__notes__", [])])
            self._later(lambda: self._fail(problem))

    def _take(self) -> Attachment | None:
        """None if the replica ended just then, so that another one has to be found."""
        runtime.private_folder()  # which raises if it is not safe
        try:
            connection = broker.connect(start=False)
        except errors.BrokerUnavailable:
            raise errors.NoSuchReplica(self._wanted) from None
        snapshot = connection.snapshot().snapshot
        wanted = self._wanted or session_target([view.name for view in snapshot.pools])
        _, replica = find_replica(snapshot, wanted, again=self._again)
        kind = "notebook" if notebook() else "console"
        attachment = self._attachment = Attachment(
            connection,
            replica,
            shared=self._shared,
            task=f"attached {kind}, shared" if self._shared else f"attached {kind}",
            session=self._identity,
            lost=lambda why: self._later(lambda: self._lose(attachment, why)),
            leaving=lambda: self._later(self._warn),
        )
        try:
            attachment.take(lambda what: self._later(lambda: self._say_wait(what)))
        except errors.NoSuchReplica:
            attachment.close()
            return None
        return attachment

    def _say_wait(self, what: str) -> None:
        self._problem = what
        for request in self._queue:
            if request.type == "execute_request":
                self._front.write(f"{self._problem}\n", request.header)

    def _open(self, attachment: Attachment, info: dict[str, Any]) -> None:
        if attachment is not self._attachment:  # lost since
            return
        self._state = "opening"
        self._back = ReplicaSide(info, identity=self._identity)
        self._back.connect(self._context)
        self._welcome, self._info = False, None
        self._back.ask("kernel_info_request")

    def _opened(self) -> None:
        if self._state != "opening" or not self._welcome or self._info is None or self._attachment is None:
            return
        self._state = "attached"
        replica = self._attachment.replica
        how = "again attached to" if self._again == replica.id else "attached to"
        since = f"warm for {text.duration(time.monotonic() - replica.ready_at)}" if replica.ready_at else "warm"
        shared = ", shared with tasks" if self._shared else ""
        self._problem = ""
        self._note = (
            f"{how} {replica.name} (pid {replica.pid}, {since}{shared}); "
            "its names stay when this kernel restarts or shuts down\n"
        )
        self._again = ""
        waiting, self._queue = self._queue, []
        for request in waiting:
            self._forward(request)

    def _fail(self, problem: str) -> None:
        self._part()
        self._state = "failed"
        self._problem = problem
        waiting, self._queue = self._queue, []
        for request in waiting:
            self._front.reply_error(request, "NoSuchReplica", self._problem)

    def _lose(self, attachment: Attachment, why: str) -> None:
        """The replica is gone, and with it all that this kernel was; the next cell finds another."""
        if attachment is not self._attachment:
            return
        message = f"{attachment.replica.name} ended: {why}. Its names are gone; the next cell attaches anew."
        asked = [*self._running.values(), *self._queue]
        self._running, self._queue = {}, []
        self._part()
        self._state, self._problem = "failed", message
        self._warning = "" if asked else message
        for request in asked:
            self._front.reply_error(request, "ReplicaDied", message)
        for state in ("restarting", "starting"):  # as where a server starts a kernel anew: front ends say so
            self._front.publish("status", {"execution_state": state}, {})

    def _part(self) -> None:
        if self._attachment is not None:
            self._attachment.close()
        if self._back is not None:
            self._back.close()
        self._attachment = self._back = None

    def _warn(self) -> None:
        """The replica has to go, and does when this front end leaves it."""
        if self._attachment is None:
            return
        with contextlib.suppress(errors.BaseRuntimeError):
            warning = (
                f"{self._attachment.replica.name} will end when this kernel leaves it: {self._attachment.why()}. "
                "Restart this kernel to attach to another."
            )
            cells = [request for request in self._running.values() if not request.silent]
            for cell in cells:
                self._front.write(f"{warning}\n", cell.header, "stderr")
            if not cells:
                self._warning = warning  # for the next one

    # --- from the front end

    def _from_front(self, channel: str, frames: list[bytes]) -> None:
        if channel == "hb":
            self._front.sockets["hb"].send_multipart(frames)
            return
        if channel == "iopub":  # a subscription
            joined = frames[0][:1] == b"\x01"
            self._listeners += 1 if joined else -1
            self._heard = True
            if joined:
                self._front.publish("iopub_welcome", {"subscription": frames[0][1:].decode("utf-8", "replace")}, {})
            return
        try:
            idents, parts = self._front.accept(frames)
            request = Request(channel, idents, json.loads(parts[0]), parts)
        except (ValueError, IndexError) as problem:
            print(f"flyte_jupyter.attach: {problem}", file=sys.stderr)
            return
        if request.type == "shutdown_request":
            self._shut_down(request)
        elif request.type == "interrupt_request":
            self._interrupt()
            self._front.reply(request, {"status": "ok"})
        elif request.type == "kernel_info_request":
            self._front.reply(request, self._info or kernel_info())
        elif self._state == "attached":
            self._forward(request)
        elif channel == "stdin":
            return  # an answer to nobody
        elif self._state == "failed" and request.type == "execute_request":
            self._queue.append(request)
            self._look()
        elif self._state == "failed":
            self._front.reply_error(request, "NoSuchReplica", self._problem)
        else:
            self._queue.append(request)
            if self._problem and request.type == "execute_request":
                self._front.write(f"{self._problem}\n", request.header)

    def _forward(self, request: Request) -> None:
        assert self._back is not None
        if request.type == "execute_request":
            if not request.silent:
                self._say_news(request)
            if request.channel == "shell" and not request.header.get("subshell_id"):
                self._running[request.id] = request
        self._back.pass_on(request.channel, request.idents, request.parts)

    def _say_news(self, request: Request) -> None:
        """What has happened since the last cell."""
        if self._warning:
            self._front.write(f"{self._warning}\n", request.header, "stderr")
            self._warning = ""
        if self._note is not None:
            self._front.write(self._note, request.header)
            self._note = None

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        self._calls.put((lambda: self._leave(restart=False)) if self._foreground else self._interrupt)

    def _interrupt(self) -> None:
        if self._back is not None and self._running:  # else it would hit somebody else's
            self._back.ask("interrupt_request")
            return
        waiting, self._queue = self._queue, []
        for request in waiting:
            self._front.reply_error(request, "KeyboardInterrupt", self._problem or "not attached yet")

    def _shut_down(self, request: Request) -> None:
        content = json.loads(request.parts[3])
        restart = bool(content.get("restart"))
        self._front.reply(request, {"status": "ok", "restart": restart})
        self._front.publish("shutdown_reply", {"status": "ok", "restart": restart}, request.header)
        self._leave(restart=restart)

    def _leave(self, *, restart: bool) -> None:
        if restart and self._attachment is not None:
            with contextlib.suppress(OSError):
                self._mark.write_text(self._attachment.replica.id)
        self._interrupt()
        self._leave_at = time.monotonic() + LEAVE_S

    # --- from the replica

    def _from_back(self, channel: str, frames: list[bytes]) -> None:
        assert self._back is not None
        try:
            idents, parts = self._back.accept(frames)
        except (ValueError, IndexError) as problem:
            print(f"flyte_jupyter.attach: {problem}", file=sys.stderr)
            return
        header = json.loads(parts[0])
        if channel == "iopub":
            if header.get("msg_type") == "iopub_welcome":
                self._welcome = True
                self._opened()
            elif header.get("msg_type") != "shutdown_reply":  # the replica's end is not the front end's
                self._front.pass_on("iopub", idents, parts)
            return
        if not idents:  # an answer to this process
            if header.get("msg_type") == "kernel_info_reply":
                self._info = json.loads(parts[3])
                self._opened()
            return
        if header.get("msg_type") == "execute_reply":
            self._running.pop(json.loads(parts[1]).get("msg_id", ""), None)
        self._front.pass_on(channel, idents, parts)

    # --- restart: another process of this kind, with the same connection file

    @property
    def _mark(self) -> Path:
        return self._path.with_name(f"{self._path.name}.attached")

    def _take_mark(self) -> str:
        try:
            replica = self._mark.read_text()
            self._mark.unlink()
        except OSError:
            return ""
        return replica
