"""Memory files at their receiver: mapped copy-on-write, and kept for what the owner writes next."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import time
import weakref
from typing import Any, Final

from .idle import KEEP_S, Idle


class _Mapping:
    """A receiver's mapping of one file, private to this process. Lent to one buffer at a time.

    While it is lent, `lock` is the descriptor that tells the owner so.
    """

    __slots__ = ("address", "lent", "lock", "memory", "size", "used_at")

    def __init__(self, fd: int, size: int) -> None:
        self.lock = -1
        self.lent: weakref.ref[Any] | None = None
        self.used_at = 0.0
        self.size = size
        # Of a description of its own: that of `fd` has the lock, which must not live as long as this mapping.
        own = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.memory = mmap.mmap(own, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(own)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))

    def lend(self, fd: int, nbytes: int) -> memoryview:
        """Its first bytes. When the last view of them is gone, `fd` is closed."""
        holder = (ctypes.c_char * nbytes).from_buffer(self.memory)
        self.lock = fd
        _lent.add(self)  # else it might be collected before the last view is gone, and nobody closed `fd`
        self.lent = weakref.ref(holder, self._given_back)
        return memoryview(holder).cast("B")

    def _given_back(self, _: object) -> None:
        # The collector may call this anywhere: no locks here.
        self.used_at = time.monotonic()
        fd, self.lock = self.lock, -1
        if fd >= 0:
            os.close(fd)
        self.lent = None
        _lent.discard(self)

    def is_clean(self) -> bool:
        """Whether no page was written here: the kernel notes which pages belong to this process, not to the file."""
        pages = self.size // mmap.PAGESIZE
        try:
            pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            entries = os.pread(pagemap, 8 * pages, 8 * (self.address // mmap.PAGESIZE))
        finally:
            os.close(pagemap)
        return len(entries) == 8 * pages and not any(entries[7::8].translate(_WRITTEN).lstrip(b"\0"))


def _written(top: int) -> bool:
    """Of a page in `/proc/self/pagemap`, by the highest byte of its entry; see the kernel's pagemap.rst."""
    present, swapped, of_a_file = top & 0x80, top & 0x40, top & 0x20
    return bool((present or swapped) and not of_a_file)


_WRITTEN: Final = bytes(_written(top) for top in range(256))


class Mappings:
    """What a process has received: mappings in use, and those kept for the next content of their file.

    A file that its process does not own any more goes with the last mapping of it: KEEP_S later at the latest.
    """

    def __init__(self, keep_s: float = KEEP_S) -> None:
        self._keep_s = keep_s
        self._known: dict[tuple[int, int], _Mapping] = {}
        self._idle = Idle("mappings", keep_s, self._drop_idle)

    def map(self, fd: int, nbytes: int) -> memoryview:
        """The content of a memory file, writable, and private to this process.

        A mapping needs a descriptor for its whole life. When half of those that the process may have are open, the
        content is copied instead: somebody may hold a thousand results.

        Takes `fd` over, also when it fails: OSError or ValueError.
        """
        try:
            if _descriptors_are_scarce(fd):
                content = _copy(fd, nbytes)
                os.close(fd)
                return content
            status = os.fstat(fd)
            if nbytes > status.st_size:
                raise ValueError(f"it has {status.st_size} bytes")
            key = status.st_dev, status.st_ino
            with self._idle.lock:
                known = self._known.get(key)
                if known is None or known.lent is not None or not known.is_clean():
                    known = self._known[key] = _Mapping(fd, status.st_size)
                view = known.lend(fd, nbytes)
                self._idle.watch()
            return view
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Drop what is not in use."""
        with self._idle.lock:
            self._drop(float("inf"))
            self._idle.lock.notify_all()

    def _drop(self, limit: float) -> None:
        for key in [key for key, each in self._known.items() if each.lent is None and each.used_at <= limit]:
            del self._known[key]

    def _drop_idle(self, limit: float) -> float | None:
        self._drop(limit)
        return self._keep_s if self._known else None  # what is lent now may be given back at any time

    def forget(self) -> None:
        """In a forked child. What was lent is here, too, and keeps its lock until its last view is gone here."""
        self._idle.forget()
        self._known = {}


def map_file(fd: int, nbytes: int) -> memoryview:
    """The content of a memory file, writable, and private to this process; see `Mappings.map`."""
    return mappings.map(fd, nbytes)


def _descriptors_are_scarce(fd: int) -> bool:
    """Whether half of them are in use: the lowest free number is given out. `fd` itself is low each time."""
    try:
        free = os.dup(fd)
    except OSError:
        return True
    os.close(free)
    return 0 < resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 <= free


def _copy(fd: int, nbytes: int) -> memoryview:
    view = memoryview(bytearray(nbytes))
    done = 0
    while done < nbytes:
        count = os.preadv(fd, [view[done:]], done)
        if count == 0:
            raise ValueError(f"it has {done} bytes")
        done += count
    return view


mappings: Final = Mappings()
"""Those of this process."""
_lent: Final[set[_Mapping]] = set()
