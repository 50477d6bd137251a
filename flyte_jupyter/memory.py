"""Memory files: big buffers between processes of one host, written once, mapped copy-on-write, recycled.

Who reads a file is counted by the kernel, so nobody has to say that he is done, and `kill -9` is no special case:
what is sent is an open file description of its own that holds a shared lock (`flock`). It lives as long as any
descriptor of it, also one that is in flight or in a forked child. When the owner gets the exclusive lock,
nobody reads any more, and the file is written again: its pages are there already, and page faults are what costs.

For the same reason a receiver keeps its mapping of a file that is written again and again: as long as nothing was
written into it there, it shows what the owner has written since, without a single fault.

The descriptors go over a socket of their own beside each task channel. Receiving one takes `recvmsg`, which is
slower than `recv_into` by more than a microsecond, and calls without big buffers need not pay for it.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import resource
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

from .core.frames import TICKET, Buffer, FileTicket
from .errors import ProtocolError

LEND_BYTES: Final = 1024 * 1024
"""From this size on a buffer travels as a memory file."""
KEEP_BYTES: Final = 1 << 30
"""The most that a process keeps for the next buffers; and no more than an eighth of the physical memory."""
KEEP_FILES: Final = 64
"""And as many files: each takes two descriptors, of which the user's code may need many."""
KEEP_S: Final = 60.0
"""For how long, after the last use: as long as it takes to look at a result and run the cell again."""
LIMIT_FILES: Final = 128
"""Of one frame; its other buffers go with it. One message of a socket carries no more than 253."""
WASTE: Final = 4
"""A file this many times larger than a buffer is not taken for it."""
MAP_AT_USE: Final = 2
"""From its second use on a file is written through a mapping: a copy is then three times faster than `pwrite`, but
making the mapping costs as much as two of those."""

_GRAIN: Final = 1024 * 1024
_CHUNK: Final = 8 * 1024 * 1024
"""A copy into a mapping holds the GIL this long: below a millisecond."""
_PWRITE: Final = 64 * 1024 * 1024
_RECEIVE_FLAGS: Final = getattr(socket, "MSG_DONTWAIT", 0) | getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_SUPPORTED: Final = hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


class MemoryFile:
    """A buffer that was written, as its receiver gets it: a read-only descriptor under the shared lock."""

    __slots__ = ("__weakref__", "fd", "nbytes")

    def __init__(self, fd: int, nbytes: int) -> None:
        self.fd = fd
        self.nbytes = nbytes
        _live.add(self)

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


class _Idle:
    """The lock of a store, and a thread that lets go of what has idled there; it ends when nothing is left.

    Args:
        name: Of the thread.
        keep_s: How long something may idle.
        drop: Lets go of what has not been used since that instant; returns in how many seconds to look again, None if
            nothing is left. Called with the lock held.
    """

    def __init__(self, name: str, keep_s: float, drop: Callable[[float], float | None]) -> None:
        self.lock = threading.Condition()
        self._name = name
        self._keep_s = keep_s
        self._drop = drop
        self.looking = False

    def watch(self) -> None:
        """Something is there. With the lock held."""
        if not self.looking:
            self.looking = True
            threading.Thread(target=self._look, name=f"flyte_jupyter: {self._name}", daemon=True).start()

    def _look(self) -> None:
        with self.lock:
            while (pause := self._drop(time.monotonic() - self._keep_s)) is not None:
                self.lock.wait(pause)
            self.looking = False

    def forget(self) -> None:
        """In a forked child: the threads that hold the lock are the parent's."""
        self.lock = threading.Condition()
        self.looking = False


class MemoryFiles:
    """The memory files of a process, with those it keeps to be written again. Any thread may call."""

    def __init__(self, keep_bytes: int | None = None, keep_s: float = KEEP_S) -> None:
        self._keep_bytes = _keep_bytes() if keep_bytes is None else keep_bytes
        self._files: list[_Kept] = []
        self._idle = _Idle("memory files", keep_s, self._drop_idle)

    def write(self, buffer: Buffer) -> MemoryFile | None:
        """A memory file with a copy of `buffer`, to be closed when it is sent; None if this machine has no room."""
        if not _SUPPORTED:
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
        self._idle = _Idle("mappings", keep_s, self._drop_idle)

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


class Exchange:
    """One connection's socket for memory files; both directions.

    A file is sent when its frame is made, and the frame names its ticket. So it is there when the frame is read;
    and where the socket takes no more, the buffer simply goes with the frame.
    """

    __slots__ = ("__weakref__", "_arrived", "_lock", "_next", "_socket")

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lock = threading.Lock()
        self._next = 0
        self._arrived: dict[int, int] = {}
        _live.add(self)

    def lend(self, pieces: Sequence[Buffer]) -> Sequence[Buffer | FileTicket]:
        """The same pieces, flat bytes, except that big ones are in memory files that are on their way."""
        for piece in pieces:
            if len(piece) >= LEND_BYTES:
                return self._lend(pieces)
        return pieces

    def _lend(self, pieces: Sequence[Buffer]) -> Sequence[Buffer | FileTicket]:
        shared = sharing.get()
        lent: dict[int, MemoryFile] = {}
        try:
            for index, piece in enumerate(pieces):
                if len(piece) < LEND_BYTES:
                    continue
                file = (None if shared is None else shared.file_of(piece)) or files.write(piece)
                if file is None:
                    break
                lent[index] = file
                if len(lent) == LIMIT_FILES:
                    break
            if not lent:
                return pieces
            tickets = self._send(list(lent.values()))
        except OSError:  # it is full, too much is in flight, or the other end is gone, which the channel will say
            return pieces
        finally:
            for file in lent.values():
                file.close()
        mixed: list[Buffer | FileTicket] = list(pieces)
        for index, ticket in zip(lent, tickets, strict=True):
            mixed[index] = ticket
        return mixed

    def _send(self, lent: list[MemoryFile]) -> list[FileTicket]:
        """In one message, whose text is the first one's number."""
        with self._lock:
            fds = array.array("i", [file.fd for file in lent])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
            self._socket.sendmsg([TICKET.pack(self._next)], rights, socket.MSG_DONTWAIT | _NOSIGNAL)
            tickets = [FileTicket(self._next + index, file.nbytes) for index, file in enumerate(lent)]
            self._next += len(lent)
        return tickets

    def map(self, ticket: int, nbytes: int) -> memoryview:
        """The buffer that a frame names. ProtocolError if it did not come, or cannot be mapped."""
        with self._lock:
            try:
                while ticket not in self._arrived:
                    text, fds = receive_with_fds(self._socket, TICKET.size, LIMIT_FILES)
                    if not fds:
                        raise ProtocolError(f"memory file {ticket} of {nbytes} bytes is named, and did not come")
                    self._arrived.update(enumerate(fds, TICKET.unpack(text)[0]))
                return map_file(self._arrived.pop(ticket), nbytes)
            except (OSError, ValueError) as problem:
                raise ProtocolError(f"memory file {ticket} of {nbytes} bytes: {problem}") from None

    def close(self) -> None:
        self._socket.close()
        arrived, self._arrived = self._arrived, {}
        for fd in arrived.values():  # of frames that nobody read
            os.close(fd)


def receive_with_fds(stream: socket.socket, nbytes: int, limit: int) -> tuple[bytes, list[int]]:
    """Like `socket.recv_fds`, which ignores its flags in some versions: without waiting, and nobody inherits them."""
    fds = array.array("i")
    data, ancillary, _, _ = stream.recvmsg(nbytes, socket.CMSG_LEN(limit * fds.itemsize), _RECEIVE_FLAGS)
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def exchange_pair() -> tuple[Exchange, int] | None:
    """Both ends: this process's, and a descriptor for the other process. None where there are no memory files."""
    if not _SUPPORTED:
        return None
    ours, theirs = socket.socketpair()
    return Exchange(ours.detach()), theirs.detach()


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
                file = files.write(view)
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

_live: weakref.WeakSet[MemoryFile | Exchange] = weakref.WeakSet()
_NOSIGNAL: Final = getattr(socket, "MSG_NOSIGNAL", 0)

files: Final = MemoryFiles()
mappings: Final = Mappings()
_lent: Final[set[_Mapping]] = set()


def close() -> None:
    """Give back what is kept, in both directions."""
    files.close()
    mappings.close()


def _forget_after_fork() -> None:
    # A child that kept a descriptor would hold its lock, and files that nobody reads would never be free.
    files.forget()
    mappings.forget()
    for each in list(_live):
        each.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
