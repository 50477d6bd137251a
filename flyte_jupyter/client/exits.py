"""The end of the interpreter, which waits for what executors have been given, as it does for the standard library's."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

from . import outputs
from .identity import ipython

NOTE_S: Final = 2.0
"""After so long the user is told what the interpreter waits for."""
STOP_S: Final = 5.0
"""How long calls may take to stop after Ctrl-C."""


class Line(Protocol):
    """The calls that somebody has given to an executor."""

    outstanding: dict[int, Any]

    def wait(self, timeout: float | None) -> None: ...
    def abort(self) -> None: ...


_lines: Final[weakref.WeakSet[Line]] = weakref.WeakSet()
_ended = False


def check() -> None:
    """Raises: RuntimeError if the interpreter ends."""
    if _ended:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")


def wait_for(line: Line) -> None:
    """The interpreter shall not end before the calls of this line."""
    _lines.add(line)


def _finish() -> None:
    """On the main thread, while all other threads still run."""
    global _ended  # noqa: PLW0603
    _ended = True
    note_at: float | None = time.monotonic() + NOTE_S
    with _interruptible():
        try:
            while lines := _busy():
                lines[0].wait(None if note_at is None else max(0.0, note_at - time.monotonic()))
                if note_at is not None and time.monotonic() >= note_at and (lines := _busy()):
                    note_at = None
                    outputs.note(f"Python ends when {_described(lines)} done. Ctrl-C stops them.")
        except KeyboardInterrupt:
            lines = _busy()
            outputs.note(f"Interrupted: {_described(lines)} stopped.")
            for line in lines:
                line.abort()
            for line in lines:
                line.wait(STOP_S)


def _busy() -> list[Line]:
    return [line for line in list(_lines) if line.outstanding]


def _described(lines: list[Line]) -> str:
    """What they have to do: "3 calls of pool 'gpu' are"."""
    pools = Counter(call.target.pool.name for line in lines for call in list(line.outstanding.values()))
    count = pools.total()
    names = ", ".join(map(repr, pools))
    return f"{count} {'call' if count == 1 else 'calls'} of pool {names} {'is' if count == 1 else 'are'}"


@contextmanager
def _interruptible() -> Iterator[None]:
    """A kernel ignores Ctrl-C while no cell runs; here it must not."""
    if ipython() is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


try:
    # Its hook ends the threads that calls need, and the one that was registered last runs first.
    import concurrent.futures.thread  # noqa: F401

    # Before atexit's functions: those close what calls need. Source: concurrent.futures.thread, which does the same.
    threading._register_atexit(_finish)  # type: ignore[attr-defined]
except RuntimeError:  # first imported while the interpreter ends
    _ended = True
os.register_at_fork(after_in_child=_lines.clear)
