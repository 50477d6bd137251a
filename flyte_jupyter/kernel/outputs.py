"""Text and displays of a task, routed by context variable to the call that made it.

Output that belongs to no call (a console attached by hand, a preload) goes where it would go in any kernel.
"""

from __future__ import annotations

import contextvars
import functools
import io
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, Final

from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.jsonutil import encode_images, json_clean
from ipykernel.subshell import SubshellThread
from ipykernel.zmqshell import ZMQDisplayPublisher
from IPython.core.error import StdinNotImplementedError

from ..core.context import TaskContext, current
from ..core.frames import Buffer, Kind, Output, encode
from . import seams
from .interrupts import whole

_STDOUT: Final = Output.STDOUT
QUIET_S: Final = 0.001
"""A stream that was silent this long sends at once; one that floods is gathered."""
GATHER_S: Final = 0.004
GATHER_BYTES: Final = 32 * 1024


class OutputSink:
    """One call's output on its way to the client, in the order in which it was made. Any thread may write."""

    def __init__(
        self,
        number: int,
        send: Callable[[list[Buffer]], None],
        later: Callable[[float, Callable[[], None]], object],
        ask: Callable[[str, bool], str] | None = None,
    ) -> None:
        self.ask = ask  # its user: prompt, whether it is a password
        self._number = number
        self._send = send
        self._later = later
        self._lock = threading.RLock()
        self._stream = _STDOUT
        self._gathered: list[str] = []
        self._size = 0
        self._sent_at = 0.0
        self._timer = False
        self._held: list[Buffer] = []
        self.closed = False

    @whole
    def write(self, stream: Output, text: str) -> None:
        with self._lock:
            if stream is not self._stream:
                self.flush()
                self._stream = stream
            self._gathered.append(text)
            self._size += len(text)
            now = time.monotonic()
            if self._size >= GATHER_BYTES or (text.endswith("\n") and now - self._sent_at > QUIET_S):
                self.flush()
            elif not self._timer:
                self._timer = True
                self._later(GATHER_S, self._on_timer)

    @whole
    def flush(self) -> None:
        with self._lock:
            if not self._gathered:
                if self._held:
                    self._send(self._take_held())
                return
            body = "".join(self._gathered).encode("utf-8", "surrogatepass")
            self._gathered.clear()
            self._size = 0
            self._sent_at = time.monotonic()
            self._put(self._stream, body)

    @whole
    def display(self, content: dict[str, Any]) -> None:
        with self._lock:
            self.flush()
            self._put(Output.DISPLAY, pickle.dumps(content, 5))

    @whole
    def result(self, content: dict[str, Any], *, last: bool = False) -> None:
        """With `last` it travels with the outcome, or with what comes before that after all: one message less."""
        with self._lock:
            self.flush()
            if self.closed:
                return
            self._held = encode(Kind.OUTPUT, self._number, pickle.dumps(content, 5), flags=Output.RESULT)
            if not last:
                self.flush()

    @whole
    def comm(self, content: dict[str, Any]) -> None:
        with self._lock:
            self.flush()
            self._put(Output.COMM, pickle.dumps(content, 5))

    @whole
    def clear(self, wait: bool) -> None:
        with self._lock:
            self.flush()
            self._put(Output.CLEAR, b"\x01" if wait else b"\x00")

    @whole
    def close(self) -> list[Buffer]:
        """Nothing of this call may follow its outcome: a thread that goes on writing writes to the log.

        Returns: What is to be sent just before the outcome.
        """
        with self._lock:
            if self._gathered:
                self.flush()
            self.closed = True
            return self._take_held()

    def _put(self, output: Output, body: bytes) -> None:
        if not self.closed:
            self._send([*self._take_held(), *encode(Kind.OUTPUT, self._number, body, flags=output)])

    def _take_held(self) -> list[Buffer]:
        held, self._held = self._held, []
        return held

    def _on_timer(self) -> None:
        # On the control thread, which must never wait: not for a writer that holds the lock, nor for a slow client.
        if not self._lock.acquire(blocking=False):
            self._later(GATHER_S, self._on_timer)
            return
        try:
            self._timer = False
            self.flush()
        finally:
            self._lock.release()


class Router:
    """The receiver of output: the call of this context, or the only call there is (for threads of a task)."""

    def __init__(self) -> None:
        self.running: dict[int, TaskContext] = {}
        self.settle: Callable[[], None] = _nothing
        """Take in what was written to descriptors 1 and 2 until now."""

    def only_sink(self) -> OutputSink | None:
        """That of the only call there is."""
        running = list(self.running.values())
        sink: OutputSink | None = running[0].sink if len(running) == 1 else None
        return None if sink is None or sink.closed else sink

    def sink(self) -> OutputSink | None:
        """Where a piece of output goes that is made here and now; None: it is no call's."""
        context = current.get()
        if context is None and len(self.running) == 1:
            # A thread starts with an empty context. With one call in the replica there is no doubt whose it is,
            # unless the main thread itself is between calls, or a front end uses a subshell meanwhile.
            thread = threading.current_thread()
            if thread is threading.main_thread() or isinstance(thread, SubshellThread):
                return None
            context = next(iter(self.running.values()), None)
        if context is None or context.sink is None or context.sink.closed:
            return None
        self.settle()
        sink: OutputSink = context.sink
        return sink


def _nothing() -> None:
    pass


class TaskStream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` of a replica."""

    def __init__(self, stream: Output, otherwise: Any, router: Router) -> None:
        super().__init__()
        self._stream = stream
        self._otherwise = otherwise
        self._router = router
        self._child: Any = None  # in a forked child: its descriptor

    @property
    def name(self) -> str:
        return "<stdout>" if self._stream is Output.STDOUT else "<stderr>"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._child is not None:
            return int(self._child.write(text))
        sink = self._router.sink()
        if sink is None:
            self._otherwise.write(text)
        elif text:
            sink.write(self._stream, text)
        return len(text)

    def flush(self) -> None:
        if self._child is not None:
            self._child.flush()
            return
        sink = self._router.sink()
        if sink is None:
            self._otherwise.flush()
        else:
            sink.flush()

    def in_child(self) -> None:
        """After a fork: a child has its parent's descriptors, and no thread that would send what was gathered."""
        raw = io.BufferedWriter(io.FileIO(self.fileno(), "w", closefd=False))
        self._child = io.TextIOWrapper(raw, "utf-8", "replace", line_buffering=True)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return 1 if self._stream is Output.STDOUT else 2

    def __getattr__(self, name: str) -> Any:  # set_parent and friends, which ipykernel asks of its streams
        return getattr(self._otherwise, name)


NOBODY_TO_ASK: Final = "stdin is not available in tasks; pass what it asks for as an argument"


def ask(prompt: str, password: bool) -> str:
    """The text that the user of the running call types; the call waits for it.

    Raises:
        StdinNotImplementedError: There is nobody to ask, or it is asked from another thread than the task's own.
    """
    task = current.get()
    if task is None or task.sink is None or task.sink.ask is None or task.sink.closed:
        raise StdinNotImplementedError(NOBODY_TO_ASK)
    if threading.current_thread() is not threading.main_thread():
        raise StdinNotImplementedError("input() works in a task itself, not in its threads; ask before starting them")
    task.sink.flush()
    answer: str = task.sink.ask(prompt, password)
    return answer


class NoInput(io.TextIOBase):
    """`sys.stdin` of a replica: whoever asks is told at once, and nobody waits for ever."""

    def readable(self) -> bool:
        return True

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        # Not EOFError: a debugger would take that for "quit" and hide the reason.
        raise StdinNotImplementedError(NOBODY_TO_ASK)

    def read(self, size: int | None = -1) -> str:
        return self.readline()

    def close(self) -> None:
        """Not even by `exit()`, which a task may call."""


class TaskDisplayPublisher(ZMQDisplayPublisher):
    """A publisher by which `display()` in a task reaches the cell that called it."""

    router: Router | None = None

    def _sink(self) -> OutputSink | None:
        return None if self.router is None else self.router.sink()

    def publish(  # type: ignore[override]
        self,
        data: Any,
        metadata: Any = None,
        *,
        transient: Any = None,
        update: bool = False,
        **kwargs: Any,
    ) -> None:
        sink = self._sink()
        if sink is None:
            super().publish(data, metadata, transient=transient, update=update, **kwargs)
            return
        seams.check_display(self, data, metadata or {})
        content = {
            "data": encode_images(data),
            "metadata": metadata or {},
            "transient": transient or {},
        }
        sink.display({**json_clean(content), "update": update})

    def clear_output(self, wait: bool = False) -> None:
        sink = self._sink()
        if sink is None:
            super().clear_output(wait)
        else:
            sink.clear(wait)


formatting_result: Final[ContextVar[bool]] = ContextVar("flyte_jupyter_formatting_result", default=False)
"""Then an error, which IPython only shows, is the cell's. Source: ipykernel, `_last_traceback_during_displayhook`."""


class TaskDisplayHook(ZMQShellDisplayHook):
    """The value of a cell's last expression is shown where the cell is."""

    router: Router | None = None

    def __call__(self, result: Any = None) -> None:
        sink = None if self.router is None else self.router.sink()
        if sink is None:
            super().__call__(result)
            return
        if result is None:
            return
        token = formatting_result.set(True)
        try:
            data, metadata = self.compute_format_data(result)
        finally:
            formatting_result.reset(token)
        shell: Any = self.shell
        shell.remember(result)
        if data:  # an `_ipython_display_` has shown itself
            content = {"data": json_clean(encode_images(data)), "metadata": json_clean(metadata)}
            sink.result(content, last=shell.ast_node_interactivity.startswith("last_expr"))


def install(shell: Any, router: Router, log: Any) -> None:
    """Put the router between the process and its streams and displays; `log` gets what is no call's."""
    shell.router = shell.display_pub.router = shell.displayhook.router = router
    out: Any = sys.stdout
    err: Any = sys.stderr
    # Output that no call wrote, such as a preload's prints, is also in the log.
    out.echo = err.echo = log
    sys.stdout, sys.stderr = streams = (
        TaskStream(Output.STDOUT, out, router),
        TaskStream(Output.STDERR, err, router),
    )
    if router.settle is not _nothing:  # somebody reads the descriptors

        def in_child() -> None:
            router.settle = _nothing
            for stream in streams:
                stream.in_child()

        os.register_at_fork(after_in_child=in_child)
    sys.stdin = NoInput()
    # For good: cells come and go while others run, and a nested `run_cell`, as of `%%capture`, must not set it again.
    seams.display_for_good(shell)
    _run_in_context_of_creator()
    _draw_inline()


def _run_in_context_of_creator() -> None:
    """Threads of a call, and what it submits to an executor, are part of that call."""
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit

    def start_in_context(thread: threading.Thread) -> None:
        if current.get() is not None:
            context = contextvars.copy_context()
            run = thread.run

            def run_in_context() -> None:
                del thread.run  # the instance's: it refers to the thread
                context.run(run)

            thread.run = run_in_context  # type: ignore[method-assign]
        start(thread)

    def submit_in_context(executor: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        if current.get() is not None:
            function = functools.partial(contextvars.copy_context().run, function)
        return submit(executor, function, *args, **kwargs)

    threading.Thread.start = start_in_context  # type: ignore[method-assign, assignment]
    ThreadPoolExecutor.submit = submit_in_context  # type: ignore[method-assign]


def _draw_inline() -> None:
    """Where a zygote has imported matplotlib already, the kernel's choice of a backend came too late for it."""
    matplotlib = sys.modules.get("matplotlib")
    backend = os.environ.get("MPLBACKEND")
    # Looking it up in the usual way would choose one.
    if matplotlib is not None and backend and not isinstance(dict.get(matplotlib.rcParams, "backend"), str):
        matplotlib.rcParams["backend"] = backend


def show_open_figures() -> None:
    """Show figures that were drawn and not shown, as a cell does at its end."""
    if "matplotlib.pyplot" not in sys.modules or "matplotlib_inline.backend_inline" not in sys.modules:
        return
    import matplotlib_inline.backend_inline as inline

    inline.flush_figures()
