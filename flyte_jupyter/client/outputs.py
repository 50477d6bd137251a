"""What a call wrote and displayed, shown where it was called: in the cell, or on a script's stdout.

The screen is a context variable, so that a background call has one of its own; what floods is cut off and kept aside.
"""

from __future__ import annotations

import codecs
import pickle
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from .. import runtime
from ..core.frames import Buffer, Output
from . import comms, seams
from .identity import ipython
from .text import size

LIMIT_BYTES: Final = 2 * 1024 * 1024
"""What a cell shows of one call's output, unless told otherwise."""
SPOOL_BYTES: Final = 64 * 1024 * 1024
"""What is kept aside of the rest."""

_muted = threading.local()


class Screen:
    """Where the output of calls goes; this one is the cell of the context that it is used in, or stdout."""

    interactive = True
    """Whether a call may ask its user for input."""
    _wrote = ""
    """The stream that was written last. A kernel gathers each for itself: what came first would be shown second."""

    def take(self, output: int, body: Buffer) -> None:
        """Show one OUTPUT frame."""
        if output in (Output.STDOUT, Output.STDERR):
            self.text("stdout" if output == Output.STDOUT else "stderr", str(body, "utf-8", "replace"))
        elif output == Output.DISPLAY:
            self.display(pickle.loads(body))
        elif output == Output.RESULT:
            self.result(pickle.loads(body))
        elif output == Output.COMM:
            self._settle("")
            comms.publish(pickle.loads(body))
        elif output == Output.CLEAR:
            self.clear(wait=bytes(body) == b"\x01")

    def text(self, stream: str, text: str) -> None:
        file = sys.stdout if stream == "stdout" else sys.stderr
        self._settle(stream)
        file.write(text)
        if ipython() is None:
            file.flush()  # live, also into a pipe; a kernel's streams flush themselves

    def _settle(self, stream: str) -> None:
        """Have the front end see what was written, before something follows that is not of this stream."""
        before, self._wrote = self._wrote, stream
        if before and before != stream:
            (sys.stdout if before == "stdout" else sys.stderr).flush()

    def display(self, content: dict[str, Any]) -> None:
        shell = ipython()
        if shell is not None:
            shell.display_pub.publish(
                content["data"], content["metadata"], transient=content["transient"], update=content["update"]
            )
        elif not content["update"]:
            print(content["data"].get("text/plain", ""), flush=True)

    def result(self, content: dict[str, Any]) -> None:
        """The value of a cell's last expression: `Out[n]`, as that of a local one."""
        shown = RemoteValue(content["data"], content["metadata"])
        shell = ipython()
        if shell is None:
            print(shown, flush=True)
        elif sys.displayhook is not shell.displayhook:
            sys.displayhook(shown)  # %%capture has put its own in its place
        else:
            _display_result(shell.displayhook, shown)

    def clear(self, *, wait: bool) -> None:
        shell = ipython()
        if shell is not None:
            shell.display_pub.clear_output(wait)


class RemoteValue:
    """How a value that stayed on its replica looks; what `Out[n]` and `_` hold after a task cell.

    Attributes:
        data: Its representations, by mime type.
        metadata: What belongs to them.
    """

    def __init__(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.data = data
        self.metadata = metadata

    def __repr__(self) -> str:
        return str(self.data.get("text/plain", ""))

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.data, self.metadata


def _display_result(hook: Any, value: RemoteValue) -> None:
    """What the shell's display hook does, less what its replica has done: to format it, and to look for a `;`."""
    hook.check_for_underscore()
    hook.start_displayhook()
    hook.write_output_prompt()
    hook.update_user_ns(value)
    hook.fill_exec_result(value)
    hook.write_format_data(value.data, value.metadata)
    hook.log_output(value.data)
    for stream in (sys.stdout, sys.stderr):
        if seams.has_unsent(stream):
            break
    else:
        if seams.send_result(hook):
            return
    hook.finish_displayhook()


# --- the screen of this context

_cell: Final = Screen()
_screen: ContextVar[Screen] = ContextVar("flyte_jupyter_screen", default=_cell)


@contextmanager
def shown_on(screen: Screen) -> Iterator[None]:
    """Calls that are made inside show their output there."""
    token = _screen.set(screen)
    try:
        yield
    finally:
        _screen.reset(token)


def show(output: int, body: Buffer) -> None:
    """Show one OUTPUT frame, in the context of the call that it belongs to."""
    if not getattr(_muted, "yes", False):
        _screen.get().take(output, body)


def answer(body: Buffer) -> tuple[bytes, int]:
    """What the user types when a call asks, and the flags of the ANSWER: 1 if nobody can be asked here."""
    if getattr(_muted, "yes", False) or not _screen.get().interactive:
        return b"", 1
    return comms.ask(**pickle.loads(body))


def note(text: str) -> None:
    """A line of ours, for people."""
    print(text, file=sys.stderr, flush=True)


def mute() -> None:
    """Nobody looks at this thread's calls any more."""
    _muted.yes = True


# --- against floods


class Spool:
    """The rest of an output that was too much to show: a file without a name, so that nothing of it is left behind."""

    def __init__(self, limit: int = SPOOL_BYTES) -> None:
        self._file = tempfile.TemporaryFile(dir=runtime.private_folder())  # noqa: SIM115 - it ends with this object
        self._left = limit
        self.dropped = 0

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        kept = data[: self._left]
        self._left -= len(kept)
        self.dropped += len(data) - len(kept)
        self._file.write(kept)

    def read(self) -> Iterator[str]:
        """What is there, in pieces; the last one says what was not kept."""
        self._file.flush()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        position = 0
        while True:
            self._file.seek(position)
            data = self._file.read(1 << 16)
            self._file.seek(0, 2)
            if not data:
                break
            position += len(data)
            yield decoder.decode(data)
        if self.dropped:
            yield f"\n... {size(self.dropped)} more were not kept\n"

    def close(self) -> None:
        self._file.close()


class Guard(Screen):
    """Shows on another screen, until `limit` bytes; the rest goes into `spool`, with one line that says so.

    What is overwritten is no flood: updates of a display, a progress bar's line, and whatever was cleared.

    Args:
        screen: Where to show it.
        limit: Bytes of one call; 0 is no limit.
        command: What shows the rest, for people.
    """

    def __init__(self, screen: Screen, limit: int, command: str) -> None:
        self.interactive = screen.interactive
        self.spool: Spool | None = None
        self._screen = screen
        self._limit = limit
        self._left = limit
        self._command = command

    def take(self, output: int, body: Buffer) -> None:
        if output in (Output.COMM, Output.RESULT) or not self._limit:
            self._screen.take(output, body)
        elif output == Output.CLEAR:
            self._left = self._limit
            self._screen.take(output, body)
        elif self._left > 0:
            self._left -= _weight(output, bytes(body))
            if self._left >= 0:
                self._screen.take(output, body)
            else:
                self._cut(output, body)
        elif output == Output.DISPLAY and pickle.loads(body)["update"]:
            self._screen.take(output, body)
        else:
            self._keep(output, body)

    def _cut(self, output: int, body: Buffer) -> None:
        if output != Output.DISPLAY:  # up to the limit, so that where it stops can be told
            end = len(body) + self._left
            self._screen.take(output, bytes(body)[:end])
            body = bytes(body)[end:]
        self._left = 0
        self._keep(output, body)
        self._screen.text(
            "stderr", f"\n... more than {size(self._limit)}: not shown here. To see the rest: {self._command}\n"
        )

    def _keep(self, output: int, body: Buffer) -> None:
        if self.spool is None:
            self.spool = Spool()
        if output == Output.DISPLAY:
            self.spool.write(f"{pickle.loads(body)['data'].get('text/plain', '')}\n")
        else:
            self.spool.write(str(body, "utf-8", "replace"))


def _weight(output: int, body: bytes) -> int:
    if output == Output.DISPLAY:
        return 0 if pickle.loads(body)["update"] else len(body)
    return 0 if b"\r" in body and b"\n" not in body else len(body)
