"""What a task wrote and displayed, shown where it was called: in the cell, or on a script's stdout."""

from __future__ import annotations

import pickle
import sys
import threading
from typing import Any

from ..core.frames import Buffer, Output
from .identity import ipython

_muted = threading.local()


def show(output: int, body: Buffer) -> None:
    """Show one OUTPUT frame, in the context of the call that it belongs to."""
    if getattr(_muted, "yes", False):
        return
    if output in (Output.STDOUT, Output.STDERR):
        stream = sys.stdout if output == Output.STDOUT else sys.stderr
        stream.write(str(body, "utf-8", "replace"))
        if ipython() is None:
            stream.flush()  # live, also into a pipe; a kernel's streams flush themselves
    elif output == Output.DISPLAY:
        _display(pickle.loads(body))
    elif output == Output.CLEAR:
        _clear(wait=bytes(body) == b"\x01")


def note(text: str) -> None:
    """A line of ours, for people."""
    print(text, file=sys.stderr, flush=True)


def mute() -> None:
    """Nobody looks at this thread's calls any more."""
    _muted.yes = True


def _display(content: dict[str, Any]) -> None:
    shell = ipython()
    if shell is not None:
        shell.display_pub.publish(
            content["data"],
            content["metadata"],
            transient=content["transient"],
            update=content["update"],
        )
    elif not content["update"]:
        print(content["data"].get("text/plain", ""), flush=True)


def _clear(*, wait: bool) -> None:
    shell = ipython()
    if shell is not None:
        shell.display_pub.clear_output(wait)
