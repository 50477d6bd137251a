"""A look into a replica while it works. Runs in a subshell, beside the main thread."""

from __future__ import annotations

import asyncio
import os
import reprlib
import sys
import threading
import traceback
import types
from pathlib import Path
from typing import Any, Final

LONGEST: Final = 2000
FRAMES: Final = 40
_OWN: Final = str(Path(__file__).parent.parent)

_short: Final = reprlib.Repr()
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = _short.maxfrozenset = _short.maxdeque = 20
_short.maxstring = _short.maxother = _short.maxlong = LONGEST
_short.maxlevel = 4


class View:
    """The findings of `look`; the protocol takes it as JSON."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return {"application/json": self._content, "text/plain": ""}


def look(expressions: list[str], stack: bool, gpu: bool) -> View:
    """The stack of what runs, innermost frame first; values in its innermost user frame; GPU memory.

    Nothing is written, and no reference is kept.
    """
    frames = _running()
    content: dict[str, Any] = {"stack": [_describe(frame, line) for frame, line in frames[:FRAMES]] if stack else []}
    users = [frame for frame, _ in frames if _is_users(frame)]
    content["values"] = [_evaluate(each, users[0] if users else None) for each in expressions]
    if gpu:
        content["gpu"] = _gpu()
    del frames, users
    return View(content)


def _running() -> list[tuple[types.FrameType, int]]:
    """Frames of the main thread without those that are always there; of its async tasks where it waits for them."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    found = [each for each in traceback.walk_stack(frame) if not _is_machinery(each[0])]
    if found:
        return found
    del frame
    from .kernel import ReplicaApp

    runner = ReplicaApp.instance().runner
    if runner is not None:
        for task in asyncio.all_tasks(runner.loop):
            waiting: Any = task.get_coro()
            chain = []
            while waiting is not None:  # get_stack() shows the outermost coroutine only
                inner = getattr(waiting, "cr_frame", None) or getattr(waiting, "gi_frame", None)
                if inner is not None:
                    chain.append((inner, inner.f_lineno))
                waiting = getattr(waiting, "cr_await", None) or getattr(waiting, "gi_yieldfrom", None)
            found += [each for each in reversed(chain) if not _is_machinery(each[0])]
    return found


def _is_machinery(frame: types.FrameType) -> bool:
    path = frame.f_code.co_filename
    return (
        path.startswith((_OWN, "<frozen"))
        or any(f"{os.sep}{name}{os.sep}" in path for name in ("ipykernel", "IPython", "tornado", "asyncio"))
        or path.endswith(f"{os.sep}selectors.py")
    )


def _is_users(frame: types.FrameType) -> bool:
    path = frame.f_code.co_filename
    return "site-packages" not in path and not path.startswith(os.path.dirname(os.__file__))


def _describe(frame: types.FrameType, line: int) -> dict[str, Any]:
    import linecache

    code = frame.f_code
    return {
        "file": code.co_filename,
        "line": line,
        "function": code.co_qualname,
        "source": linecache.getline(code.co_filename, line, frame.f_globals).strip(),
        "user": _is_users(frame),
    }


def _evaluate(expression: str, frame: types.FrameType | None) -> dict[str, Any]:
    from IPython import get_ipython

    shell: Any = get_ipython()
    names = {**shell.user_ns, **({} if frame is None else {**frame.f_globals, **frame.f_locals})}
    try:
        shown = _short.repr(eval(expression, names))
    except BaseException as error:
        return {"expression": expression, "error": f"{type(error).__name__}: {error}"[:LONGEST]}
    return {"expression": expression, "value": shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."}


def _gpu() -> list[dict[str, Any]]:
    """The memory that this process's torch holds; a library that is not loaded holds nothing."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append(
            {
                "device": index,
                "name": torch.cuda.get_device_name(index),
                "allocated": torch.cuda.memory_allocated(index),
                "reserved": torch.cuda.memory_reserved(index),
                "free": free,
                "total": total,
            }
        )
    return found
