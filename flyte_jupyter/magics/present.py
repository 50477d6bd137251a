"""How task cells look: errors as those of local cells, a line while they wait, a line when they are over."""

from __future__ import annotations

import functools
import html
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from types import TracebackType
from typing import Any, Final

from .. import errors
from ..client import broker
from ..client.cells.lines import waiting_line
from ..client.cells.target import CellTarget
from ..client.remote import says_all
from ..client.running import RunningPool
from ..core import failure
from ..errors.shown import without_flytes

REDRAW_S: Final = 0.5


# --- errors


@contextmanager
def tidy(shell: Any) -> Iterator[None]:
    """Errors that leave the block show the user's own lines, and none of ours."""
    try:
        yield
    except BaseException as error:
        if not says_all(error):
            raise
        raise presentable(shell, error, failure.remote_frames(error)) from None


def presentable(shell: Any, error: BaseException, tb: TracebackType | None) -> BaseException:
    """The error to raise, so that IPython shows it with the frames of `tb` that are not ours, and no others."""
    tb = errors.users_frames(tb)
    if isinstance(error, SyntaxError):
        # IPython shows one together with the frames that raised it here, whatever else is said: so it gets another.
        frames = [tuple(frame) for frame in _extract(tb)]
        kind = type(error)  # or an IndentationError
        plain = kind(error.msg, (error.filename, error.lineno, error.offset, error.text, *_end(error)))
        lines = shell.SyntaxTB.structured_traceback(kind, plain, frames)
        return _with_lines(stand_in(kind.__name__, str(error)), lines)
    remote = failure.of(error)
    if isinstance(error, BaseExceptionGroup):
        # IPython leaves one to Python's own traceback, and that begins with our frames.
        return _with_lines(stand_in(type(error).__name__, str(error)), _formatted(error, tb))
    if remote is not None and remote.steers:  # such a class does not leave its process
        cause = error.__cause__
        error = stand_in(remote.name.rpartition(".")[2], remote.message, *getattr(error, "__notes__", ()))
        error.__cause__ = cause
    with without_flytes(error):
        lines = (
            shell.InteractiveTB.get_exception_only(type(error), error)
            if tb is None
            else shell.InteractiveTB.structured_traceback(type(error), error, tb, tb_offset=0)
        )
    return _with_lines(error, lines)


def _formatted(error: BaseException, tb: TracebackType | None) -> list[str]:
    with without_flytes(error):
        return ["".join(traceback.format_exception(type(error), error, tb))]


def stand_in(name: str, message: str, *notes: str) -> errors.RuntimeUserError:
    """An error that is shown as `name: message`, without a traceback."""
    made: type[errors.RuntimeUserError] = type(name, (errors.RuntimeUserError,), {"__module__": "builtins"})
    return errors.with_notes(made.from_fields(name, "user", message), *notes)


def _with_lines(error: BaseException, lines: list[str]) -> BaseException:
    vars(error)["_render_traceback_"] = functools.partial(list, lines)  # IPython asks for it
    return error


def _extract(tb: TracebackType | None) -> list[Any]:
    return list(traceback.extract_tb(tb)) if tb is not None else []


def _end(error: SyntaxError) -> tuple[int | None, int | None]:
    return error.end_lineno, error.end_offset


# --- lines of ours


def is_terminal(shell: Any) -> bool:
    return getattr(shell, "kernel", None) is None


def say(shell: Any, line: str) -> None:
    """One line of ours below a cell: dim, and a display of its own, so that it is no part of what the cell printed."""
    if not is_terminal(shell):
        shell.display_pub.publish(_bundle(line), {})
    elif sys.stdout.isatty():
        print(f"\x1b[2m{line}\x1b[0m")
    else:
        print(line)


def _bundle(line: str) -> dict[str, str]:
    styled = f'<span style="opacity: 0.6; font-size: smaller">{html.escape(line)}</span>' if line else ""
    return {"text/plain": line, "text/html": styled}


class WaitingLine:
    """While a cell waits for longer than `after` seconds: one line that says for what. It goes away by itself.

    Args:
        alone: Nothing else is in the cell's output yet, so that clearing it takes away this line only.
    """

    def __init__(self, shell: Any, pool: RunningPool, target: CellTarget, after: float, *, alone: bool) -> None:
        self._shell = shell
        self._pool = pool
        self._target = target
        self._after = after
        self._alone = alone
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._id = uuid.uuid4().hex
        self._shown = ""

    def __enter__(self) -> WaitingLine:
        # Its context is the cell's, or what it shows would go to whichever cell runs then.
        threading.Thread(target=copy_context().run, args=(self._watch,), daemon=True).start()
        self._target.times.on_begin = self.end
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Before anything else is shown: it must not take that away with it."""
        with self._lock:
            self._over.set()
            if self._shown:
                self._remove()
                self._shown = ""

    def _watch(self) -> None:
        if self._over.wait(self._after):
            return
        while True:
            self._show(self._line())
            if self._over.wait(REDRAW_S):
                return

    def _line(self) -> str:
        connection = broker.current()
        if connection is not None:
            with suppress(errors.BaseRuntimeError):
                return waiting_line(self._pool, connection.snapshot(), self._target.name)
        return f"Waiting for {self._pool.name}: the broker is starting"

    def _show(self, line: str) -> None:
        with self._lock:
            if self._over.is_set() or line == self._shown:
                return
            if not is_terminal(self._shell):
                bundle = _bundle(line)
                self._shell.display_pub.publish(
                    bundle, {}, transient={"display_id": self._id}, update=bool(self._shown)
                )
            elif sys.stderr.isatty():
                print(f"\r\x1b[K\x1b[2m{line}\x1b[0m", end="", file=sys.stderr, flush=True)
            elif not self._shown:  # in a log, a line a second would be too much
                print(line, file=sys.stderr, flush=True)
            self._shown = line

    def _remove(self) -> None:
        if is_terminal(self._shell):
            if sys.stderr.isatty():
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        elif self._alone:
            self._shell.display_pub.clear_output(wait=True)
        else:
            self._shell.display_pub.publish(_bundle(""), {}, transient={"display_id": self._id}, update=True)
