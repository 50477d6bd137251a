"""Output that reaches descriptors 1 and 2 past Python: `os.system`, subprocesses, C libraries. It is the call's.

Both are files and not pipes. So a writer never waits, not even a C library that prints while it holds the interpreter's
lock; and what a process said last, before it crashed, is in the log. Descriptor 2 is the log itself, 1 is a file
without a name. A thread shows what is written as it comes; a look at two sizes, before each output and each outcome,
keeps the order. Linux only: elsewhere both go to the log, as they always did.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import fcntl
import os
import stat
import sys
import tempfile
import threading
from collections import deque
from typing import Any, Final

from ..core.frames import Output
from .interrupts import whole
from .outputs import Router

CHUNK_BYTES: Final = 64 * 1024
FREE_BYTES: Final = 4 * 1024 * 1024
"""So much of the nameless file may have been read before it is freed."""

IN_MODIFY: Final = 2
PUNCH_HOLE: Final = 3  # and keep the size, so that whoever appends at this moment loses nothing
LINE_BUFFERED: Final = 1


def log(text: str) -> None:
    """Write to the replica's log, and to no call."""
    data = text.encode("utf-8", "backslashreplace")
    if _descriptors is None:
        os.write(2, data)
    else:
        _descriptors.log(data)


class LogStream:
    """The log as a stream, for what ipykernel shall repeat there."""

    def write(self, text: str) -> int:
        log(text)
        return len(text)

    def flush(self) -> None:
        """Nothing: it is not buffered."""


class Descriptors:
    """The files behind descriptors 1 and 2, and how far they have been read."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._log = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._own: deque[tuple[int, int]] = deque()  # parts of the log that `log` wrote: no call's
        self._own_lock = threading.Lock()
        # Without a name, so that nothing is left of it. A memfd would do, if changes of one were notified.
        with tempfile.TemporaryFile(buffering=0, dir=os.path.dirname(os.readlink("/proc/self/fd/2"))) as nameless:
            unnamed = os.dup(nameless.fileno())
        fcntl.fcntl(unnamed, fcntl.F_SETFL, os.O_APPEND)
        os.dup2(unnamed, 1)
        self._files = (
            _File(Output.STDOUT, unnamed),
            _File(Output.STDERR, os.open("/proc/self/fd/2", os.O_RDONLY | os.O_CLOEXEC)),
        )
        self._freed = 0
        self._reading = threading.Lock()

    def log(self, data: bytes) -> None:
        with self._own_lock:
            written = os.write(self._log, data)
            end = os.lseek(self._log, 0, os.SEEK_CUR)
            start = end - written
            err = self._files[1]
            if start == err.at:
                err.at = end
            else:
                self._own.append((start, end))

    @whole
    def settle(self) -> None:
        """Hand over what has been written since the last time. Nearly free if that is nothing."""
        out, err = self._files
        if os.lseek(out.fd, 0, os.SEEK_END) != out.at or os.lseek(err.fd, 0, os.SEEK_END) != err.at:
            with self._reading:
                self._read_out(out)
                self._read_err(err)

    def watch(self) -> None:
        """Hand it over as it comes, for ever; in a thread."""
        libc = ctypes.CDLL(None)
        events = libc.inotify_init1(os.O_CLOEXEC)
        for file in self._files:
            libc.inotify_add_watch(events, f"/proc/self/fd/{file.fd}".encode(), IN_MODIFY)
        while events >= 0:
            os.read(events, CHUNK_BYTES)
            with contextlib.suppress(Exception):  # of one call's connection; the next call needs this thread
                self.settle()

    def _read_out(self, file: _File) -> None:
        while data := os.pread(file.fd, CHUNK_BYTES, file.at):
            file.at += len(data)
            if not self._show(file, data):
                self.log(data)
            if file.at - self._freed >= FREE_BYTES:
                fallocate = ctypes.CDLL(None).fallocate
                fallocate(file.fd, PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(file.at))
                self._freed = file.at

    def _read_err(self, file: _File) -> None:
        while True:
            with self._own_lock:  # so that all of our own up to here is known
                size = os.lseek(file.fd, 0, os.SEEK_END)
                while self._own and self._own[0][0] <= file.at:
                    file.at = max(file.at, self._own.popleft()[1])
                until = min([size, *(start for start, _ in self._own)])
            if file.at >= until:
                file.at = min(file.at, size)  # somebody has cut the log
                return
            data = os.pread(file.fd, min(CHUNK_BYTES, until - file.at), file.at)
            file.at += len(data)
            self._show(file, data)

    def _show(self, file: _File, data: bytes) -> bool:
        """To the only call there is; False if it is nobody's, or nobody knows whose."""
        sink = self._router.only_sink()
        if sink is None:
            file.decoder.reset()
            return False
        text = file.decoder.decode(data)
        if text:
            sink.write(file.stream, text)
        return True


class _File:
    def __init__(self, stream: Output, fd: int) -> None:
        self.stream = stream
        self.fd = fd
        self.at = os.lseek(fd, 0, os.SEEK_END)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")


_descriptors: Descriptors | None = None


def install(router: Router) -> None:
    """Once per replica, whose standard error is its log."""
    global _descriptors  # noqa: PLW0603
    if sys.platform != "linux" or not stat.S_ISREG(os.fstat(2).st_mode):
        return
    fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_APPEND)
    _descriptors = Descriptors(router)
    router.settle = _descriptors.settle
    # A C library's lines appear when they are complete, and not at the end of the process.
    libc = ctypes.CDLL(None)
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, LINE_BUFFERED, ctypes.c_size_t(0))
    plain: Any = sys.__stdout__
    plain.reconfigure(line_buffering=True)
    threading.Thread(target=_descriptors.watch, name="descriptors", daemon=True).start()
