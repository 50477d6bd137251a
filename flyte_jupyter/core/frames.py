"""The task channel's framing: bytes in, frames out. No I/O: two drivers (blocking, asyncio) move the bytes.

A frame is a fixed header, the lengths of its buffers, a body and the buffers:

    kind u8 | flags u8 | buffers u16 | call u32 | body length u64 | buffer lengths u64 * buffers | body | ...

`FrameReader` has the shape of `asyncio.BufferedProtocol` (`get_buffer`, `buffer_updated`), so that a big buffer
is received where it will stay: no copy between the socket and the array that is made of it.

A buffer whose length has the top bit is in a memory file (see `memory`): the stream carries only its ticket, 8 bytes.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from ..errors import ProtocolError

HEADER: Final = struct.Struct("!BBHIQ")
_HEADER_OF_ONE: Final = struct.Struct("!BBHIQQ")
SCRATCH_BYTES: Final = 64 * 1024
MAX_FRAME_BYTES: Final = 1 << 40
"""A length above this is a broken peer, not a request: a terabyte is more than any machine here has."""
LIMIT_BUFFERS: Final = 4096
"""So that the lengths always fit into the scratch."""

FIRST_CALL: Final = 1
"""A client numbers the calls of a connection from here."""

FILE_BIT: Final = 1 << 63
_SIZE: Final = struct.Struct("!Q")
TICKET: Final = struct.Struct("!Q")

Buffer = bytes | bytearray | memoryview


class FileTicket(NamedTuple):
    """Stands for a buffer that goes in a memory file, beside the stream."""

    number: int
    nbytes: int


MapFile = Callable[[int, int], memoryview]
"""Ticket and size -> the content of a memory file that came. Raises ProtocolError."""


class Kind(IntEnum):
    """What a frame says.

    From a client: HELLO, PLACE, CALL, DEFINE, GIVE, CANCEL, WITHDRAW, ANSWER, COMM, LEAVE; from the broker: SETUP, ASK,
    INTERRUPT, STOP.
    """

    HELLO = 1  # who is calling: lease, notebook, folder
    CALL = 2  # run this; body: which function; buffers: arguments
    NEED = 3  # the replica lacks definitions of the CALL's function
    DEFINE = 4  # here they are
    OUTPUT = 5  # something the task wrote or displayed
    OUTCOME = 6  # the task's end: a value, an error, or its cancellation
    CANCEL = 7  # stop that call and no other
    SETUP = 8  # run the preload
    STATE = 9  # how far the replica is: loading, ready, failed
    STOP = 10  # end yourself
    ENDED = 11  # nothing runs in that lease any more, and its client has hung up
    ASK = 12  # say ENDED, at once or when it is so
    INPUT = 13  # the call asks its user; body: a pickled dict: prompt, password
    ANSWER = 14  # what the user typed, as text; flags: an Answer
    COMM = 15  # a message of the user's front end to a widget that lives in the replica
    WITHDRAW = 16  # do not begin these calls; body: lease and last number
    WITHDRAWN = 17  # that many calls, from this one on (flags), will not begin: send them elsewhere
    INTERRUPT = 18  # stop what runs in that lease; if the body is empty, all that runs
    CALLS = 19  # which calls ran since the last of these, and which do now
    PLACE = 20  # where the client is, for the calls that follow: its folder, import path, arguments, modules
    WANT = 21  # the call looks for a name that was not sent; body: that name and what the replica has, pickled
    GIVE = 22  # its definitions, pickled; empty: there is no such name
    INTERRUPTED = 23  # what a CANCEL asked for has been raised in the call; its OUTCOME may come in its place
    LEAVE = 24  # a session that calls of this connection have used, by name, is over for this process


class Status(IntEnum):
    """The flags of an OUTCOME."""

    OK = 0
    ERROR = 1
    CANCELLED = 2


class Output(IntEnum):
    """The flags of an OUTPUT: which body it has."""

    STDOUT = 1  # text
    STDERR = 2  # text
    DISPLAY = 3  # a pickled dict: data, metadata, transient, update
    CLEAR = 4  # one byte: wait for the next output
    RESULT = 5  # a pickled dict: data, metadata; what a display hook publishes as the cell's result
    COMM = 6  # a pickled dict: msg_type, content, metadata, buffers


class Answer(IntEnum):
    """The flags of an ANSWER."""

    TEXT = 0
    NOBODY = 1  # nobody can be asked where the call was made


# What every call asks for. An enum is slow to look up its members; these names take no time.
CALL: Final = Kind.CALL
OUTCOME: Final = Kind.OUTCOME
WITHDRAWN: Final = Kind.WITHDRAWN
OK: Final = Status.OK
FIRST_KIND: Final = min(Kind)
LAST_KIND: Final = max(Kind)


class Frame:
    """One message. `buffers` follow the body; each is writable memory of its own if it is large."""

    __slots__ = ("body", "buffers", "call", "flags", "kind")

    def __init__(self, kind: int, call: int, flags: int, body: bytes | bytearray, buffers: list[Buffer]) -> None:
        self.kind = kind
        self.call = call
        self.flags = flags
        self.body = body
        self.buffers = buffers

    def __repr__(self) -> str:
        sizes = [len(buffer) for buffer in self.buffers]
        name = Kind(self.kind).name
        return f"<{name} call={self.call} flags={self.flags} body={len(self.body)} buffers={sizes}>"


def encode(
    kind: int,
    call: int = 0,
    body: Buffer = b"",
    buffers: Sequence[Buffer | FileTicket] = (),
    flags: int = 0,
) -> list[Buffer]:
    """The pieces to write, one after the other. What is small is one piece: one write, one read.

    Raises:
        ProtocolError: More buffers than a frame can count (4,096).
    """
    if not buffers:
        if len(body) <= SCRATCH_BYTES:
            return [HEADER.pack(kind, flags, 0, call, len(body)) + body]
        return [HEADER.pack(kind, flags, 0, call, len(body)), body]
    if len(buffers) == 1 and type(buffers[0]) is bytes and len(buffers[0]) <= SCRATCH_BYTES:  # most calls
        size = len(buffers[0])
        return [_HEADER_OF_ONE.pack(kind, flags, 1, call, len(body), size) + body + buffers[0]]
    if len(buffers) > LIMIT_BUFFERS:
        raise ProtocolError(f"a frame carries at most {LIMIT_BUFFERS} buffers, not {len(buffers)}")
    sizes: list[int] = []
    pieces: list[Buffer] = [b"", body]
    for buffer in buffers:
        if isinstance(buffer, FileTicket):
            sizes.append(buffer.nbytes | FILE_BIT)
            pieces.append(TICKET.pack(buffer.number))
        else:
            sizes.append(memoryview(buffer).nbytes)
            pieces.append(buffer)
    pieces[0] = HEADER.pack(kind, flags, len(buffers), call, len(body)) + struct.pack(f"!{len(sizes)}Q", *sizes)
    return join_small(pieces)


def join_small(pieces: Iterable[Buffer]) -> list[Buffer]:
    """Neighbouring small pieces become one, large ones stay as they are (and are not copied)."""
    joined: list[Buffer] = []
    small: list[Buffer] = []
    for piece in pieces:
        if memoryview(piece).nbytes <= SCRATCH_BYTES:
            small.append(piece)
            continue
        if small:
            joined.append(b"".join(small))
            small = []
        joined.append(piece)
    if small:
        joined.append(b"".join(small))
    return joined


_NO_FILES: Final[dict[int, int]] = {}


class FrameReader:
    """Turns a stream of bytes into frames.

    Read into `get_buffer()`, tell how much it was by `buffer_updated(n)`, then take `next_frame()` until it is
    None. Once `buffer_updated` or `feed` has raised ProtocolError the stream is lost: close the connection.
    """

    def __init__(self, map_file: MapFile | None = None) -> None:
        self.map_file = map_file
        self._scratch = bytearray(SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._start = 0  # of the bytes in scratch that are not parsed yet
        self._end = 0
        self._frames: deque[Frame] = deque()
        self._partial: _Partial | None = None
        self._files = _NO_FILES  # of the partial frame: which buffers are in files, and their sizes

    def get_buffer(self) -> memoryview:
        if self._partial is not None:
            return self._partial.space()
        if self._start == self._end:
            self._start = self._end = 0
            return self._view
        if self._end == SCRATCH_BYTES:
            rest = self._end - self._start
            self._scratch[:rest] = self._scratch[self._start : self._end]
            self._start, self._end = 0, rest
        return self._view[self._end :]

    def buffer_updated(self, count: int) -> None:
        if self._partial is not None:
            frame = self._partial.filled(count)
            if frame is not None:
                self._partial = None
                self._complete(frame, self._files)
            return
        self._end += count
        while self._end - self._start >= HEADER.size and self._parse():
            pass

    def feed(self, data: Buffer) -> None:
        """For bytes that somebody else has received already."""
        view = memoryview(data)
        while view.nbytes:
            space = self.get_buffer()
            count = min(space.nbytes, view.nbytes)
            space[:count] = view[:count]
            self.buffer_updated(count)
            view = view[count:]

    def next_frame(self) -> Frame | None:
        return self._frames.popleft() if self._frames else None

    def _parse(self) -> bool:
        available = self._end - self._start
        kind, flags, count, call, body_size = HEADER.unpack_from(self._scratch, self._start)
        head = HEADER.size + 8 * count
        if count > LIMIT_BUFFERS or not FIRST_KIND <= kind <= LAST_KIND:
            raise ProtocolError(f"not a frame: kind {kind}, {count} buffers")
        if available < head:
            return False
        if count < 2:  # most calls and outcomes: no more than this is needed if it is all there
            at = self._start + head
            end = at + body_size
            size = _SIZE.unpack_from(self._scratch, at - 8)[0] if count else 0
            if end + size <= self._end:  # a file's size is far larger
                buffers: list[Buffer] = [bytearray(self._view[end : end + size])] if count else []
                self._frames.append(Frame(kind, call, flags, bytes(self._view[at:end]), buffers))
                self._start = end + size
                return True
        sizes = struct.unpack_from(f"!{count}Q", self._scratch, self._start + HEADER.size) if count else ()
        files = _NO_FILES
        if count and max(sizes) >= FILE_BIT:
            files = {index: size - FILE_BIT for index, size in enumerate(sizes) if size >= FILE_BIT}
            sizes = tuple(TICKET.size if index in files else size for index, size in enumerate(sizes))
        total = body_size + sum(sizes)
        if total + sum(files.values()) > MAX_FRAME_BYTES:
            raise ProtocolError(f"not a frame: {total + sum(files.values())} bytes")
        at = self._start + head
        if head + total <= available:
            body = bytes(self._view[at : at + body_size])
            at += body_size
            buffers = []
            for size in sizes:
                # A copy: the scratch is overwritten by the next read, and arrays are made of this memory.
                buffers.append(bytearray(self._view[at : at + size]))
                at += size
            self._start = at
            frame = Frame(kind, call, flags, body, buffers)
            if files:
                self._complete(frame, files)
            else:
                self._frames.append(frame)
            return True
        if head + total <= SCRATCH_BYTES:
            if self._start and self._start + head + total > SCRATCH_BYTES:
                self._scratch[:available] = self._scratch[self._start : self._end]
                self._start, self._end = 0, available
            return False
        self._partial = _Partial(kind, flags, call, (body_size, *sizes))
        self._files = files
        self._partial.take(self._view[at : self._end])
        self._start = self._end = 0
        return False

    def _complete(self, frame: Frame, files: dict[int, int]) -> None:
        """Put the content of memory files where their tickets are."""
        for index, nbytes in files.items():
            (ticket,) = TICKET.unpack(frame.buffers[index])
            if self.map_file is None:
                raise ProtocolError(f"memory file {ticket} of {nbytes} bytes is named where none can come")
            frame.buffers[index] = self.map_file(ticket, nbytes)
        self._frames.append(frame)


class _Partial:
    """A frame that is larger than the scratch: each part is received into memory of its own."""

    def __init__(self, kind: int, flags: int, call: int, sizes: tuple[int, ...]) -> None:
        self._head = (kind, call, flags)
        try:
            self._parts = [bytearray(size) for size in sizes]
        except MemoryError:
            raise ProtocolError(f"a frame of {sum(sizes)} bytes does not fit into this process") from None
        self._index = 0
        self._offset = 0
        self._skip_full()

    def space(self) -> memoryview:
        return memoryview(self._parts[self._index])[self._offset :]

    def filled(self, count: int) -> Frame | None:
        self._offset += count
        self._skip_full()
        if self._index < len(self._parts):
            return None
        body, *buffers = self._parts
        kind, call, flags = self._head
        return Frame(kind, call, flags, body, list(buffers))

    def take(self, data: memoryview) -> None:
        while data.nbytes:
            space = self.space()
            count = min(space.nbytes, data.nbytes)
            space[:count] = data[:count]
            data = data[count:]
            self.filled(count)

    def _skip_full(self) -> None:
        while self._index < len(self._parts) and self._offset == len(self._parts[self._index]):
            self._index += 1
            self._offset = 0
