"""`python -m flyte_jupyter.attach -f CONNECTION_FILE`: the kernel of a front end that is a guest in a warm one.

The process binds the channels of the front end's connection file, holds a lease on a replica, and passes messages to
the replica's own channels and back, signed anew with the key of the other side. Identities travel along, so replies,
input requests and several clients of one front end need no table. What it answers itself: the heartbeat,
`kernel_info_request`, and `shutdown_request`, after which the replica is as warm as before.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import importlib.util
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final, Literal

import zmq
from jupyter_client.session import DELIM, Session

from . import _version, errors, runtime
from .client import broker, text
from .client.attached import Attachment, find_replica
from .client.identity import present_as
from .peek import jupyter_channels

WANTED: Final = "FLYTE_JUPYTER_ATTACH"
SHARED: Final = "FLYTE_JUPYTER_ATTACH_SHARED"
KERNEL: Final = "flyte-attach"
METADATA: Final = "flyte_jupyter"
"""A notebook's metadata `{"flyte_jupyter": {"attach": "gpu[1]"}}` name its replica."""
MARK: Final = 100_000
"""Messages that a front end may lag behind."""
POLL_MS: Final = 500
LEAVE_S: Final = 2.0
"""How long a cell that still runs may take to stop when its front end leaves."""
CHANNELS: Final = ("shell", "control", "stdin")

Header = dict[str, Any]


@dataclass
class Request:
    """One message of the front end, as it came."""

    channel: str
    idents: list[bytes]
    header: Header
    parts: list[bytes]  # header, parent, metadata, content, buffers

    @property
    def type(self) -> str:
        return str(self.header.get("msg_type", ""))

    @property
    def id(self) -> str:
        return str(self.header.get("msg_id", ""))

    @property
    def silent(self) -> bool:
        """Whether nobody sees this execution."""
        return bool(json.loads(self.parts[3]).get("silent"))


@dataclass
class Side:
    """The channels of one connection file, and its key."""

    info: dict[str, Any]
    sockets: dict[str, zmq.Socket[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.session = Session(
            key=self.info["key"].encode(), signature_scheme=self.info.get("signature_scheme") or "hmac-sha256"
        )

    def url(self, channel: str) -> str:
        port = self.info[f"{channel}_port"]
        if self.info.get("transport") == "ipc":
            return f"ipc://{self.info['ip']}-{port}"
        return f"tcp://{self.info['ip']}:{port}"

    def open(self, context: zmq.Context[Any], channel: str, kind: int) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = context.socket(kind)
        self.sockets[channel] = made
        made.linger = 1000
        made.set_hwm(MARK if channel == "iopub" else 0)
        return made

    def accept(self, frames: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Identities and parts of a message. Raises ValueError if it is not signed with this side's key."""
        at = frames.index(DELIM)
        signature, parts = frames[at + 1], list(frames[at + 2 :])
        if self.info["key"] and not hmac.compare_digest(self.session.sign(parts[:4]), signature):
            raise ValueError("a message has a wrong signature")
        return list(frames[:at]), parts

    def pass_on(self, channel: str, idents: list[bytes], parts: list[bytes]) -> None:
        self.sockets[channel].send_multipart([*idents, DELIM, self.session.sign(parts[:4]), *parts])

    def close(self) -> None:
        for each in self.sockets.values():
            each.close()
        self.sockets.clear()


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
        self._state: Literal["looking", "opening", "attached", "failed", "leaving"] = "looking"
        self._problem = ""
        self._context: zmq.Context[Any] = zmq.Context()
        self._front = Side(json.loads(path.read_text()))
        self._back: Side | None = None
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
        for channel in CHANNELS:
            self._front.open(self._context, channel, zmq.ROUTER).bind(self._front.url(channel))
        self._front.open(self._context, "hb", zmq.ROUTER).bind(self._front.url("hb"))
        published = self._front.open(self._context, "iopub", zmq.XPUB)
        published.setsockopt(zmq.XPUB_VERBOSER, 1)  # each client is welcomed, and its end is heard of
        published.bind(self._front.url("iopub"))
        self._publish("status", {"execution_state": "starting"}, {})
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
        kind = "notebook" if _notebook() else "console"
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
                self._write(f"{self._problem}\n", request.header)

    def _open(self, attachment: Attachment, info: dict[str, Any]) -> None:
        if attachment is not self._attachment:  # lost since
            return
        self._state = "opening"
        back = self._back = Side(info)
        for channel in CHANNELS:
            # One routing id on all: the kernel asks on stdin whom it heard on shell.
            dealer = back.open(self._context, channel, zmq.DEALER)
            dealer.setsockopt(zmq.ROUTING_ID, self._identity.encode())
            dealer.connect(back.url(channel))
        listener = back.open(self._context, "iopub", zmq.SUB)
        listener.subscribe(b"")
        listener.connect(back.url("iopub"))
        self._welcome, self._info = False, None
        # On control: it answers whatever the main thread does.
        back.session.send(back.sockets["control"], "kernel_info_request", {})

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
            self._refuse(request)

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
            self._answer_error(request, "ReplicaDied", message)
        for state in ("restarting", "starting"):  # as where a server starts a kernel anew: front ends say so
            self._publish("status", {"execution_state": state}, {})

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
                self._write(f"{warning}\n", cell.header, "stderr")
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
                self._publish("iopub_welcome", {"subscription": frames[0][1:].decode("utf-8", "replace")}, {})
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
            self._reply(request, {"status": "ok"})
        elif request.type == "kernel_info_request":
            self._reply(request, self._info or _kernel_info())
        elif self._state == "attached":
            self._forward(request)
        elif channel == "stdin":
            return  # an answer to nobody
        elif self._state == "failed" and request.type == "execute_request":
            self._queue.append(request)
            self._look()
        elif self._state == "failed":
            self._refuse(request)
        else:
            self._queue.append(request)
            if self._problem and request.type == "execute_request":
                self._write(f"{self._problem}\n", request.header)

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
            self._write(f"{self._warning}\n", request.header, "stderr")
            self._warning = ""
        if self._note is not None:
            self._write(self._note, request.header)
            self._note = None

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        self._calls.put((lambda: self._leave(restart=False)) if self._foreground else self._interrupt)

    def _interrupt(self) -> None:
        if self._back is not None and self._running:  # else it would hit somebody else's
            self._back.session.send(self._back.sockets["control"], "interrupt_request", {})
            return
        waiting, self._queue = self._queue, []
        for request in waiting:
            self._answer_error(request, "KeyboardInterrupt", self._problem or "not attached yet")

    def _shut_down(self, request: Request) -> None:
        content = json.loads(request.parts[3])
        restart = bool(content.get("restart"))
        self._reply(request, {"status": "ok", "restart": restart})
        self._publish("shutdown_reply", {"status": "ok", "restart": restart}, request.header)
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

    # --- in the replica's place

    def _reply(self, request: Request, content: dict[str, Any]) -> None:
        """Answer as a kernel does: busy, the reply, idle."""
        self._publish("status", {"execution_state": "busy"}, request.header)
        kind = request.type.replace("_request", "_reply")
        session = self._front.session
        session.send(
            self._front.sockets[request.channel],
            session.msg(kind, content, parent={"header": request.header}),
            ident=request.idents,
        )
        self._publish("status", {"execution_state": "idle"}, request.header)

    def _refuse(self, request: Request) -> None:
        self._answer_error(request, "NoSuchReplica", self._problem)

    def _answer_error(self, request: Request, name: str, message: str) -> None:
        content = {"ename": name, "evalue": message, "traceback": [f"{name}: {message}"]}
        if request.type == "execute_request":
            self._publish("error", content, request.header)
        self._reply(request, {"status": "error", "execution_count": 0, **content})

    def _write(self, words: str, parent: Header, stream: str = "stdout") -> None:
        self._publish("stream", {"name": stream, "text": text.visible(words, keep="\n\t")}, parent)

    def _publish(self, kind: str, content: dict[str, Any], parent: Header) -> None:
        session = self._front.session
        message = session.msg(kind, content, parent={"header": parent} if parent else None)
        session.send(self._front.sockets["iopub"], message, ident=kind.encode())

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


def session_target(pools: Sequence[str]) -> str:
    """The replica or the pool that the front end's session names; "" if it names none.

    Jupyter servers tell a kernel the folder and the name of its session, and of a nameless one the path. A notebook
    says it in its metadata; a console is called `flyte-attach/gpu[1]/` with 8 hex digits behind it, `gpu[1]`, or as
    one of `pools`.
    """
    session = os.environ.get("JPY_SESSION_NAME", "")
    if session.endswith(".ipynb"):
        return _target_of_notebook(Path(session))
    marked = re.search(rf"(?:^|/){KERNEL}/(.+)/[0-9a-f]{{8}}$", session)
    if marked is not None:
        return marked[1]
    name = session.rpartition("/")[2]
    return name if name in pools or re.fullmatch(r".+\[\d+\]", name) else ""


def _target_of_notebook(path: Path) -> str:
    try:
        metadata = json.loads(path.read_text())["metadata"]
    except (OSError, ValueError, LookupError, TypeError):  # not there, or not yet what it shall be
        return ""
    own = metadata.get(METADATA, {}) if isinstance(metadata, dict) else {}
    target = own.get("attach", "") if isinstance(own, dict) else ""
    return target if isinstance(target, str) else json.dumps(target)


def _notebook() -> str:
    """The notebook that this kernel is for, as Jupyter servers tell it."""
    path = os.environ.get("JPY_SESSION_NAME", "")
    return Path(path).name if path.endswith(".ipynb") else ""


def _kernel_info() -> dict[str, Any]:
    """Before there is a replica that could be asked."""
    version = sys.version.partition(" ")[0]
    return {
        "status": "ok",
        "protocol_version": "5.5",
        "implementation": "flyte_jupyter",
        "implementation_version": _version.__version__,
        "language_info": {
            "name": "python",
            "version": version,
            "mimetype": "text/x-python",
            "codemirror_mode": {"name": "ipython", "version": 3},
            "pygments_lexer": "ipython3",
            "nbconvert_exporter": "python",
            "file_extension": ".py",
        },
        "banner": "A warm kernel of flyte_jupyter",
        "help_links": [],
        "supported_features": [],
    }


def terminal(wanted: str, *, shared: bool, file: Path | None) -> int:
    """A console on a warm kernel in this terminal, or its channels for any other client; the exit code.

    Args:
        wanted: "gpu[1]" or "gpu".
        file: Serve this connection file until Ctrl-C; it is written if it is not there.
    """
    with contextlib.ExitStack() as clean:
        path = file
        if path is None:
            folder = runtime.private_folder() / f"a{os.getpid()}"
            folder.mkdir(mode=0o700)
            clean.callback(shutil.rmtree, folder, ignore_errors=True)
            path = folder / "kernel.json"
        if not path.exists():
            for made in _write_connection(path.absolute()):
                clean.callback(made.unlink, missing_ok=True)
        if file is None and importlib.util.find_spec("jupyter_console") is not None:
            return _console(path, wanted, shared)
        if file is None:
            _say("There is no jupyter_console here (pip install jupyter_console); any other Jupyter client will do:")
        _say(f"  jupyter console --existing {path}")
        _say("Ctrl-C detaches; the kernel stays warm.")
        return Proxy(path, wanted, shared, foreground=True).run()


def _say(line: str) -> None:
    print(text.visible(line), flush=True)


def _write_connection(path: Path) -> list[Path]:
    """Unix sockets beside the file; all that has to be removed in the end."""
    ports = {f"{channel}_port": number for number, channel in enumerate((*CHANNELS, "iopub", "hb"), 1)}
    info = {"transport": "ipc", "ip": str(path.with_suffix("")), "key": uuid.uuid4().hex, **ports,
            "signature_scheme": "hmac-sha256", "kernel_name": "flyte-attach"}  # fmt: skip
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as out:
        json.dump(info, out)
    return [path, *(Path(f"{info['ip']}-{port}") for port in ports.values())]


def _console(path: Path, wanted: str, shared: bool) -> int:
    # Both are in the terminal's foreground, and Ctrl-C reaches the proxy, which interrupts.
    signal.signal(signal.SIGINT, lambda *_: None)
    options = ["--shared"] if shared else []
    command = [sys.executable, "-m", "flyte_jupyter.attach", "-f", str(path), "--replica", wanted, *options]
    with subprocess.Popen(command) as proxy:
        try:
            return subprocess.call([sys.executable, "-m", "jupyter_console", "--existing", str(path)])
        finally:
            proxy.terminate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the kernel of one front end; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flyte_jupyter.attach", description=__doc__)
    parser.add_argument("-f", dest="file", type=Path, metavar="CONNECTION_FILE")
    parser.add_argument("--terminal", action="store_true", help="a console here; with -f only the channels")
    parser.add_argument("--replica", default=os.environ.get(WANTED, ""), metavar="NAME[1]")
    parser.add_argument("--shared", action="store_true", default=os.environ.get(SHARED, "") not in ("", "0"))
    options = parser.parse_args(arguments)
    os.umask(0o077)
    present_as(_notebook() or "console", "attached")
    if options.terminal:
        return terminal(options.replica, shared=options.shared, file=options.file)
    if options.file is None:
        parser.error("-f CONNECTION_FILE is missing")
    return Proxy(options.file, options.replica, options.shared).run()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # the threads that wait for the broker need not end first
