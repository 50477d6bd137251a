"""Buffers that many calls send: each is written once."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Final

from ..core.frames import Buffer
from . import writing
from .writing import MemoryFile

LEND_BYTES: Final = 1024 * 1024
"""From this size on a buffer travels as a memory file."""


class Shared:
    """Buffers that many calls send: each is written once, as it was then, and not recycled before `close`.

    Args:
        buffers: Those of the objects that the calls share. They are held, so that no other buffer gets their address.
    """

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        big = [memoryview(buffer) for buffer in buffers if len(buffer) >= LEND_BYTES]
        self._views = {_place(view): view for view in big}
        self._written: dict[tuple[int, int], MemoryFile] = {}
        self._lock = threading.Lock()

    def file_of(self, buffer: Buffer) -> MemoryFile | None:
        """A handle of a shared buffer's file, to be closed as any other; None for what is not shared."""
        if not self._views:
            return None
        place = _place(buffer)
        with self._lock:
            view = self._views.get(place)
            file = self._written.get(place)
            if file is None and view is not None:
                file = writing.files.write(view)
                if file is not None:
                    self._written[place] = file
            # Another descriptor: `close` may come from another thread before this one is sent.
            return None if file is None else MemoryFile(os.dup(file.fd), file.nbytes)

    def close(self) -> None:
        with self._lock:
            self._views.clear()
            written, self._written = self._written, {}
        for file in written.values():
            file.close()


def _place(buffer: Buffer) -> tuple[int, int]:
    """Where a buffer is: its address and size."""
    raw = (ctypes.c_void_p * 16)()  # a Py_buffer, which is smaller; the address is its first field
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), ctypes.byref(raw), 0)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(raw))
    return raw[0] or 0, len(buffer)


sharing: ContextVar[Shared | None] = ContextVar("flyte_jupyter_sharing", default=None)
"""What the calls made in this context share."""
