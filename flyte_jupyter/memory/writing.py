"""Memory files at their owner: written, sent, and written again when nobody reads them any more."""

from __future__ import annotations

import fcntl
import mmap
import os
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from ..core.frames import Buffer
from .idle import KEEP_S, Idle

KEEP_BYTES: Final = 1 << 30
"""The most that a process keeps for the next buffers; and no more than an eighth of the physical memory."""
KEEP_FILES: Final = 64
"""And as many files: each takes two descriptors, of which the user's code may need many."""
WASTE: Final = 4
"""A file this many times larger than a buffer is not taken for it."""
MAP_AT_USE: Final = 2
"""From its second use on a file is written through a mapping: a copy is then three times faster than `pwrite`, but
making the mapping costs as much as two of those."""
SUPPORTED: Final = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")

_GRAIN: Final = 1024 * 1024
_CHUNK: Final = 8 * 1024 * 1024
"""A copy into a mapping holds the GIL this long: below a millisecond."""
_PWRITE: Final = 64 * 1024 * 1024

_sent: weakref.WeakSet[MemoryFile] = weakref.WeakSet()


class MemoryFile:
    """A buffer that was written, as its receiver gets it: a read-only descriptor under the shared lock."""

    __slots__ = ("__weakref__", "fd", "nbytes")

    def __init__(self, fd: int, nbytes: int) -> None:
        self.fd = fd
        self.nbytes = nbytes
        _sent.add(self)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


class _Kept:
    """A file that this process owns and writes."""

    __slots__ = ("busy", "dropped", "fd", "mapping", "present", "size", "used_at", "uses")

    def __init__(self, nbytes: int) -> None:
        self.size = -(-nbytes // _GRAIN) * _GRAIN
        self.present = 0  # pages up to here exist: writing there through a mapping cannot fail for lack of memory
        self.uses = 0
        self.used_at = 0.0
        self.busy = True
        self.dropped = False
        self.mapping: mmap.mmap | None = None
        self.fd = -1
        self.fd = os.memfd_create("flyte", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.size)
            # A receiver's mapping must not lose its ground: that would be SIGBUS there.
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except BaseException:
            self.close()
            raise

    def is_free(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return True

    def fill(self, view: memoryview) -> None:
        self.uses += 1
        if self.uses >= MAP_AT_USE and self.mapping is None:
            with suppress(OSError):
                self.mapping = mmap.mmap(self.fd, self.size)
        done = 0
        if self.mapping is not None:
            with memoryview(self.mapping) as target:
                limit = min(self.present, view.nbytes)
                while done < limit:
                    end = min(done + _CHUNK, limit)
                    target[done:end] = view[done:end]
                    done = end
        while done < view.nbytes:
            done += os.pwrite(self.fd, view[done : done + _PWRITE], done)
        self.present = max(self.present, -(-done // mmap.PAGESIZE) * mmap.PAGESIZE)

    def lend(self, nbytes: int) -> MemoryFile:
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        except BaseException:
            os.close(fd)
            raise
        return MemoryFile(fd, nbytes)

    def close(self) -> None:
        mapping, self.mapping = self.mapping, None
        if mapping is not None:
            with suppress(BufferError):  # a thread copies, in the parent of this forked process
                mapping.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close  # an interrupt may come at any point of a write


class MemoryFiles:
    """The memory files of a process, with those it keeps to be written again. Any thread may call."""

    def __init__(self, keep_bytes: int | None = None, keep_s: float = KEEP_S) -> None:
        self._keep_bytes = _keep_bytes() if keep_bytes is None else keep_bytes
        self._files: list[_Kept] = []
        self._idle = Idle("memory files", keep_s, self._drop_idle)

    def write(self, buffer: Buffer) -> MemoryFile | None:
        """A memory file with a copy of `buffer`, to be closed when it is sent; None if this machine has no room."""
        if not SUPPORTED:
            return None
        view = memoryview(buffer).cast("B")
        file = None
        try:
            file = self._take(view.nbytes) or _Kept(view.nbytes)
            file.fill(view)
            lent = file.lend(view.nbytes)
        except BaseException as problem:
            if file is not None:
                file.dropped = True
                self._put(file)
            if isinstance(problem, OSError | ValueError):  # no descriptor, no memory, no /proc
                return None
            raise
        self._put(file)
        return lent

    def close(self) -> None:
        """Give back all that is kept. What was sent lives on with its receivers."""
        with self._idle.lock:
            self._drop(list(self._files))
            self._idle.lock.notify_all()

    def kept_bytes(self) -> int:
        with self._idle.lock:
            return sum(file.size for file in self._files)

    def _take(self, nbytes: int) -> _Kept | None:
        with self._idle.lock:
            for file in sorted(self._files, key=lambda each: each.size):
                if nbytes <= file.size <= max(WASTE * nbytes, _GRAIN) and not file.busy and file.is_free():
                    file.busy = True
                    return file
        return None

    def _put(self, file: _Kept) -> None:
        with self._idle.lock:
            file.busy = False
            file.used_at = time.monotonic()
            if file.dropped:
                self._drop([file])
                return
            if file not in self._files:
                self._files.append(file)
                over = sum(each.size for each in self._files) - self._keep_bytes
                for old in sorted(self._files, key=lambda each: each.used_at):
                    if over <= 0 and len(self._files) <= KEEP_FILES:
                        break
                    over -= old.size
                    self._drop([old])
            if self._files:
                self._idle.watch()

    def _drop(self, files: Iterable[_Kept]) -> None:
        """With the lock held. One that somebody still reads is only forgotten here: it ends with its last reader."""
        for file in files:
            if file in self._files:
                self._files.remove(file)
            file.dropped = True
            if not file.busy:
                file.close()

    def _drop_idle(self, limit: float) -> float | None:
        self._drop([file for file in self._files if file.used_at <= limit])
        return min(file.used_at for file in self._files) - limit if self._files else None

    def forget(self) -> None:
        """In a forked child: the files are the parent's."""
        self._idle.forget()
        files, self._files = self._files, []
        for file in files:
            file.close()


def _keep_bytes() -> int:
    return min(KEEP_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8)


files: Final = MemoryFiles()
"""Those of this process."""


def forget() -> None:
    """In a forked child, which would hold the locks of its parent's files, so that they would never be free."""
    files.forget()
    for each in list(_sent):
        each.close()
