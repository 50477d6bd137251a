"""FlyteKernel: an ipykernel that opens a task channel, and the application that runs it."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import ctypes
import getpass
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from . import seams

if "ipykernel.debugger" not in sys.modules:  # before ipykernel is imported: it is most of a plain kernel's start-up
    seams.hide_debugger()

import zmq
from ipykernel.iostream import IOPubThread
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from tornado.ioloop import IOLoop
from traitlets import Type
from traitlets.config import Config

from ..core.cells import PEEK
from ..core.context import cell, current
from . import comms, descriptors, logs, outputs, shell, workers
from .cells import Cells
from .namespaces import Namespaces
from .replica import Replica
from .runner import Runner
from .surroundings import Surroundings

IOPUB_MARK = 100_000
"""Messages that a console attached by hand may lag behind before the printing code waits."""

PEEK_S = 5.0
"""A subshell that somebody made to look in, and did not delete, goes after this long."""
BUSY_S = 0.5


class FlyteKernel(IPythonKernel):
    """A kernel that answers everything that a Jupyter kernel answers, except the debugger."""

    shell_class = Type(shell.ReplicaShell)
    # Else traitlets looks for the class that the module above does not have, and no replica starts.
    debugger_class = None  # type: ignore[assignment]

    def __init__(self, **kwargs: Any) -> None:
        self.lease_of: Callable[[bytes], str] = lambda session: ""
        self.surroundings = Surroundings()
        self._latest = b""
        self._subshells: dict[str, bytes] = {}  # and the routing id of who made it
        super().__init__(**kwargs)

    def set_parent(self, ident: Any, parent: Any, channel: str = "shell") -> None:
        """As in ipykernel; and it is known whose request the main thread last began."""
        super().set_parent(ident, parent, channel)
        if channel == "shell" and threading.current_thread() is threading.main_thread():
            self._latest = bytes(ident[0]) if ident else b""
            cell.set(self.lease_of(self._latest))

    async def do_debug_request(self, msg: Any) -> Any:
        return None

    def raw_input(self, prompt: object = "") -> str:
        """`input()`, of a task and of a console."""
        return super().raw_input(prompt) if current.get() is None else outputs.ask(str(prompt), False)

    def getpass(self, prompt: str = "Password: ", stream: Any = None, **options: Any) -> str:
        return super().getpass(prompt, stream, **options) if current.get() is None else outputs.ask(str(prompt), True)

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """As in ipykernel; and what a person's cell changes in the process stays, unlike what a task changes."""
        if ident and bytes(ident[0]).startswith(PEEK):  # it only looks
            await super().execute_request(stream, ident, parent)
            return
        with self.surroundings.by_hand():
            await super().execute_request(stream, ident, parent)

    # --- front ends that come and go

    async def interrupt_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """As in ipykernel; and a cell that only waits in its loop hears of it, too."""
        await super().interrupt_request(stream, ident, parent)
        ReplicaApp.instance().wake()

    async def create_subshell_request(self, socket: Any, ident: Any, parent: Any) -> None:
        """As in ipykernel; and it is known whose it is, so that it goes with them."""
        manager = self.shell_channel_thread.manager
        before = set(manager.list_subshell())
        await super().create_subshell_request(socket, ident, parent)
        for made in set(manager.list_subshell()) - before:
            self._subshells[made] = bytes(ident[0])
            if self._subshells[made].startswith(PEEK):
                asyncio.get_running_loop().call_later(PEEK_S, self._delete_subshell, made)

    async def delete_subshell_request(self, socket: Any, ident: Any, parent: Any) -> None:
        """As in ipykernel; but one that is busy goes later: this thread must not wait for it."""
        subshell = parent["content"].get("subshell_id")
        if self.session and subshell in self.shell_channel_thread.manager.list_subshell():
            self._delete_subshell(subshell)
            self.session.send(socket, "delete_subshell_reply", {"status": "ok"}, parent, ident)
        else:
            await super().delete_subshell_request(socket, ident, parent)

    def front_end_interrupted(self, session: str) -> None:
        """Stop what it runs. On the control thread."""
        if self._latest == session.encode():
            # Nothing but a request of a front end can be hit: tasks have a handler that knows its call.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            ReplicaApp.instance().wake()

    def front_end_left(self, session: str) -> None:
        """Stop what it was running, and delete its subshells. On the control thread."""
        owner = session.encode()
        if self._latest == owner:
            self.front_end_interrupted(session)
            self._latest = b""
        for subshell in [each for each, whose in self._subshells.items() if whose == owner]:
            self._delete_subshell(subshell)

    def _delete_subshell(self, subshell: str) -> None:
        manager = self.shell_channel_thread.manager
        if subshell not in manager.list_subshell():
            self._subshells.pop(subshell, None)
        elif seams.is_busy(manager, subshell):
            asyncio.get_running_loop().call_later(BUSY_S, self._delete_subshell, subshell)
        else:
            self._subshells.pop(subshell, None)
            seams.delete_subshell(manager, subshell)

    async def do_shutdown(self, restart: bool) -> dict[str, Any]:
        reply = await super().do_shutdown(restart)
        ReplicaApp.instance().leave()
        return reply  # type: ignore[no-any-return]


class ReplicaApp(IPKernelApp):
    """IPKernelApp less what a shared workstation must not have: TCP listeners, a history file, the current folder."""

    kernel_class = Type(FlyteKernel, klass=IPythonKernel)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.update_config(
            Config(
                {
                    "IPKernelApp": {"capture_fd_output": False, "parent_handle": 0},
                    "HistoryManager": {"enabled": False},
                }
            )
        )
        self.runner: Runner | None = None
        self.replica: Replica | None = None

    def init_path(self) -> None:
        """Nothing: a notebook's folders come with its first call, and the process's own folder is nobody's."""

    def log_connection_info(self) -> None:
        """Remember the ports; and leave out of the log what ipykernel tells people at a terminal."""
        self.parent_handle = 1
        super().log_connection_info()
        self.parent_handle = 0

    def init_iopub(self, context: zmq.Context[Any]) -> None:
        self.iopub_socket = context.socket(zmq.XPUB)
        self.iopub_socket.linger = 1000
        if hasattr(zmq, "XPUB_VERBOSE"):
            self.iopub_socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # else only the first front end is welcomed
        # Wait instead of dropping: a subscriber that is slow must not lose lines from the middle.
        self.iopub_socket.setsockopt(zmq.SNDHWM, IOPUB_MARK)
        if hasattr(zmq, "XPUB_NODROP"):
            self.iopub_socket.setsockopt(zmq.XPUB_NODROP, 1)
        self.iopub_port = seams.bind(self, self.iopub_socket, self.iopub_port)
        self.configure_tornado_logger()
        # Without `pipe` no TCP socket is opened for forked children; their output goes to the log.
        self.iopub_thread = IOPubThread(self.iopub_socket, pipe=False, session=self.session)
        self.iopub_thread.start()
        self.iopub_socket = self.iopub_thread.background_socket

    def open_task_channel(self, listening: socket.socket) -> None:
        """Answer calls on `listening`, a Unix socket. The broker bound it, and may have connected already."""
        loop = seams.asyncio_loop(IOLoop.current())
        router = outputs.Router()
        own: Any = self.shell
        descriptors.install(router)
        outputs.install(own, router, descriptors.LogStream())
        sys.modules["__main__"] = shell.route_main(sys.modules["__main__"])
        builtins.input, getpass.getpass = self.kernel.raw_input, self.kernel.getpass
        builtins.get_ipython = own.get_ipython  # type: ignore[attr-defined] # `!` and `%` in a function call it
        logs.install()
        workers.install()
        self.kernel.surroundings.watch_imports()
        self.runner = Runner(loop, router, self.kernel.surroundings)
        control = seams.asyncio_loop(self.kernel.control_thread.io_loop)
        namespaces = Namespaces()
        replica = self.replica = Replica(
            self.runner,
            namespaces,
            Cells(own, namespaces, loop, self.kernel.surroundings),
            comms.install(router),
            control,
        )
        namespaces.in_use = lambda module: bool(replica.manifests_in_use(module))
        signal.signal(signal.SIGTERM, lambda *_: self.leave())
        self.kernel.lease_of = replica.lease_of
        replica.front_end_interrupted = self.kernel.front_end_interrupted
        replica.front_end_left = self.kernel.front_end_left
        _let_children_end()
        replica.listen(listening)

    def wake(self) -> None:
        """Let the main thread's loop look at what a signal handler has left it."""
        if self.runner is not None:
            self.runner.loop.call_soon_threadsafe(lambda: None)

    def leave(self) -> None:
        """End the process once the main thread is free."""
        if self.runner is not None:
            self.runner.exiting = True
            self.runner.loop.call_soon_threadsafe(self.runner.loop.stop)

    def start(self) -> None:
        """The kernel's main loop; returns when the replica shall end."""
        assert self.runner is not None
        assert self.replica is not None
        self.kernel.start()
        self.runner.run()
        self.replica.recorder.tell(last=True)


def _let_children_end() -> None:
    """Give forked children of tasks the default SIGTERM, by which multiprocessing ends its workers.

    Blocked meanwhile: one that comes between the fork and the interpreter's own clean-up after it would be forgotten.
    """
    blocked = {signal.SIGTERM}

    def in_child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, blocked),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked),
        after_in_child=in_child,
    )


def die_with_parent(parent: int) -> None:
    """End with the process that started this one, even while C code holds the interpreter's lock (Linux)."""
    pr_set_pdeathsig = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
