"""The task channel's framing: bytes in, frames out. No I/O: two drivers (blocking, asyncio) move the bytes.

A frame is a fixed header, the lengths of its buffers, a body and the buffers:

    kind u8 | flags u8 | buffers u16 | call u32 | body length u64 | buffer lengths u64 * buffers | body | ...

`FrameReader` has the shape of `asyncio.BufferedProtocol` (`get_buffer`, `buffer_updated`), so that a big buffer
is received where it will stay: no copy between the socket and the array that is made of it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Final

from ..errors import ProtocolError

HEADER: Final = struct.Struct("!BBHIQ")
SCRATCH_BYTES: Final = 64 * 1024
MAX_FRAME_BYTES: Final = 1 << 40
"""A length above this is a broken peer, not a request: a terabyte is more than any machine here has."""
LIMIT_BUFFERS: Final = 4096
"""So that the lengths always fit into the scratch."""

Buffer = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a frame says.

    Client to replica: HELLO, CALL, DEFINE, CANCEL, ANSWER, COMM; broker to replica: SETUP, ASK, STOP.
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
    buffers: Sequence[Buffer] = (),
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
    if len(buffers) > LIMIT_BUFFERS:
        raise ProtocolError(f"a frame carries at most {LIMIT_BUFFERS} buffers, not {len(buffers)}")
    sizes = [memoryview(buffer).nbytes for buffer in buffers]
    head = HEADER.pack(kind, flags, len(buffers), call, len(body)) + struct.pack(f"!{len(sizes)}Q", *sizes)
    pieces: list[Buffer] = [head, body, *buffers]
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


class FrameReader:
    """Turns a stream of bytes into frames.

    Read into `get_buffer()`, tell how much it was by `buffer_updated(n)`, then take `next_frame()` until it is
    None. Once `buffer_updated` or `feed` has raised ProtocolError the stream is lost: close the connection.
    """

    def __init__(self) -> None:
        self._scratch = bytearray(SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._start = 0  # of the bytes in scratch that are not parsed yet
        self._end = 0
        self._frames: deque[Frame] = deque()
        self._partial: _Partial | None = None

    def get_buffer(self) -> memoryview:
        if self._partial is not None:
            return self._partial.space()
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == SCRATCH_BYTES:
            rest = self._end - self._start
            self._scratch[:rest] = self._scratch[self._start : self._end]
            self._start, self._end = 0, rest
        return self._view[self._end :]

    def buffer_updated(self, count: int) -> None:
        if self._partial is not None:
            frame = self._partial.filled(count)
            if frame is not None:
                self._partial = None
                self._frames.append(frame)
            return
        self._end += count
        while self._parse():
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
        if available < HEADER.size:
            return False
        kind, flags, count, call, body_size = HEADER.unpack_from(self._scratch, self._start)
        head = HEADER.size + 8 * count
        if count > LIMIT_BUFFERS or not Kind.HELLO <= kind <= LAST_KIND:
            raise ProtocolError(f"not a frame: kind {kind}, {count} buffers")
        if available < head:
            return False
        sizes = struct.unpack_from(f"!{count}Q", self._scratch, self._start + HEADER.size) if count else ()
        total = body_size + sum(sizes)
        if total > MAX_FRAME_BYTES:
            raise ProtocolError(f"not a frame: {total} bytes")
        at = self._start + head
        if head + total <= available:
            body = bytes(self._view[at : at + body_size])
            at += body_size
            buffers: list[Buffer] = []
            for size in sizes:
                # A copy: the scratch is overwritten by the next read, and arrays are made of this memory.
                buffers.append(bytearray(self._view[at : at + size]))
                at += size
            self._start = at
            self._frames.append(Frame(kind, call, flags, body, buffers))
            return True
        if head + total <= SCRATCH_BYTES:
            if self._start and self._start + head + total > SCRATCH_BYTES:
                self._scratch[:available] = self._scratch[self._start : self._end]
                self._start, self._end = 0, available
            return False
        self._partial = _Partial(kind, flags, call, (body_size, *sizes))
        self._partial.take(self._view[at : self._end])
        self._start = self._end = 0
        return False


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
