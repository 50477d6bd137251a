"""Any split of the byte stream gives the same frames; a broken stream is noticed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyte_jupyter.core import frames as frames_module
from flyte_jupyter.core.frames import (
    HEADER,
    LIMIT_BUFFERS,
    MAX_FRAME_BYTES,
    SCRATCH_BYTES,
    FileTicket,
    Frame,
    FrameReader,
    Kind,
    encode,
    join_small,
)
from flyte_jupyter.errors import ProtocolError

Content = tuple[int, int, int, bytes, list[bytes]]


def contents(frame: Frame) -> Content:
    return frame.kind, frame.call, frame.flags, bytes(frame.body), [bytes(each) for each in frame.buffers]


def encoded(content: Content) -> bytes:
    kind, call, flags, body, buffers = content
    return b"".join(bytes(piece) for piece in encode(kind, call, body, buffers, flags))


def read(reader: FrameReader) -> list[Content]:
    return [contents(frame) for frame in iter(reader.next_frame, None)]


def of_size(size: int) -> bytes:
    return bytes(range(256)) * (size // 256) + bytes(size % 256)


sizes = st.one_of(
    st.integers(0, 300),
    st.integers(SCRATCH_BYTES - 40, SCRATCH_BYTES + 40),
    st.integers(0, 200 * 1024),
)
frames = st.tuples(
    st.sampled_from(list(Kind)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    sizes.map(of_size),
    st.lists(sizes.map(of_size), max_size=4),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(frames, min_size=1, max_size=5), st.lists(st.integers(1, 90_000), min_size=1, max_size=30))
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(sent: list[Content], cuts: list[int]) -> None:
    stream = b"".join(encoded(content) for content in sent)
    reader, received, at, turn = FrameReader(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        reader.feed(stream[at : at + size])
        received += read(reader)
        at, turn = at + size, turn + 1
    assert received == sent


@settings(max_examples=30, deadline=None)
@given(st.lists(frames, min_size=1, max_size=4), st.integers(1, 70_000))
def test_a_reader_always_has_room_for_the_next_bytes(sent: list[Content], most: int) -> None:
    # As a driver does it: receive straight into get_buffer(), which must never be empty.
    stream = b"".join(encoded(content) for content in sent)
    reader, at = FrameReader(), 0
    while at < len(stream):
        space = reader.get_buffer()
        count = min(space.nbytes, most, len(stream) - at)
        assert count
        space[:count] = stream[at : at + count]
        reader.buffer_updated(count)
        at += count
    assert read(reader) == sent


def test_many_small_frames_come_out_of_one_read() -> None:
    sent: list[Content] = [(Kind.OUTPUT, n, 1, b"line\n", []) for n in range(500)]
    reader = FrameReader()
    reader.feed(b"".join(map(encoded, sent)))
    assert read(reader) == sent


def test_one_byte_at_a_time_is_enough() -> None:
    sent: Content = (Kind.CALL, 7, 0, b"body", [b"", b"abc", b""])
    reader = FrameReader()
    for byte in encoded(sent):
        assert reader.next_frame() is None
        reader.feed(bytes([byte]))
    assert read(reader) == [sent]


def test_a_body_larger_than_the_scratch_arrives_whole() -> None:
    sent: Content = (Kind.OUTCOME, 1, 0, of_size(3 * SCRATCH_BYTES), [b"", of_size(SCRATCH_BYTES), b""])
    reader = FrameReader()
    reader.feed(encoded(sent) + encoded(sent))
    assert read(reader) == [sent, sent]


@pytest.mark.parametrize("size", [10, 1000, SCRATCH_BYTES + 1])
def test_buffers_are_writable_and_survive_the_next_read(size: int) -> None:
    reader = FrameReader()
    reader.feed(encoded((Kind.CALL, 1, 0, b"", [b"a" * size])))
    frame = reader.next_frame()
    assert frame is not None
    (buffer,) = frame.buffers
    reader.feed(encoded((Kind.CALL, 2, 0, b"", [b"b" * size])))
    assert bytes(buffer) == b"a" * size
    memoryview(buffer)[0:1] = b"z"  # the memory that an array is made of
    second = reader.next_frame()
    assert second is not None
    assert bytes(second.buffers[0]) == b"b" * size


def test_a_small_frame_is_one_piece_and_large_buffers_are_not_copied() -> None:
    large = bytearray(SCRATCH_BYTES + 1)
    assert len(encode(Kind.CALL, 1, b"body", [b"x", b"y"])) == 1
    pieces = encode(Kind.CALL, 1, b"body", [b"x", large, b"y"])
    assert [len(piece) > SCRATCH_BYTES for piece in pieces] == [False, True, False]
    assert pieces[1] is large
    assert join_small([b"a", b"b", large, b"c"]) == [b"ab", large, b"c"]


def test_a_buffer_of_numbers_counts_bytes() -> None:
    numbers = memoryview(struct.pack("4d", 1, 2, 3, 4)).cast("d")
    reader = FrameReader()
    reader.feed(b"".join(bytes(piece) for piece in encode(Kind.CALL, 1, b"", [numbers])))
    assert read(reader) == [(Kind.CALL, 1, 0, b"", [bytes(numbers)])]


@pytest.mark.parametrize(
    "stream",
    [
        HEADER.pack(0, 0, 0, 1, 0),
        HEADER.pack(max(Kind) + 1, 0, 0, 1, 0),
        HEADER.pack(Kind.CALL, 0, LIMIT_BUFFERS + 1, 1, 0),
        HEADER.pack(Kind.CALL, 0, 0, 1, MAX_FRAME_BYTES + 1),
        HEADER.pack(Kind.CALL, 0, 1, 1, 10) + struct.pack("!Q", 2**62),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b'{"type": "hello", "version": "1"}\n',
    ],
)
def test_what_is_not_a_frame_is_a_protocol_error(stream: bytes) -> None:
    reader = FrameReader()
    with pytest.raises(ProtocolError, match="not a frame"):
        reader.feed(stream)


def test_frames_before_the_broken_one_are_not_lost() -> None:
    sent: Content = (Kind.OUTPUT, 1, 1, b"last words", [])
    reader = FrameReader()
    with pytest.raises(ProtocolError):
        reader.feed(encoded(sent) + bytes(HEADER.size))
    assert read(reader) == [sent]


def test_a_frame_that_memory_cannot_hold_is_a_protocol_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> bytearray:
        raise MemoryError

    reader = FrameReader()
    monkeypatch.setattr(frames_module, "bytearray", full, raising=False)
    with pytest.raises(ProtocolError, match="a frame of 1000000 bytes does not fit"):
        reader.feed(HEADER.pack(Kind.CALL, 0, 0, 1, 1_000_000))


def test_more_buffers_than_a_frame_can_count_are_refused() -> None:
    assert len(encode(Kind.CALL, 1, b"", [b""] * LIMIT_BUFFERS)) == 1
    with pytest.raises(ProtocolError, match="at most 4096 buffers"):
        encode(Kind.CALL, 1, b"", [b""] * (LIMIT_BUFFERS + 1))


def test_a_frame_says_what_it_is() -> None:
    frame = Frame(Kind.CALL, 3, 1, b"abc", [b"1234"])
    assert repr(frame) == "<CALL call=3 flags=1 body=3 buffers=[4]>"


# --- buffers beside the stream


def with_files(mapped: dict[int, bytearray]) -> FrameReader:
    def map_file(ticket: int, nbytes: int) -> memoryview:
        assert len(mapped[ticket]) == nbytes
        return memoryview(mapped.pop(ticket))

    return FrameReader(map_file)


@pytest.mark.parametrize("inline", [10, SCRATCH_BYTES - 60, SCRATCH_BYTES * 3])
@pytest.mark.parametrize("step", [1, 7, 1000, 10**9])
def test_a_buffer_in_a_memory_file_stands_where_it_was_sent(inline: int, step: int) -> None:
    if step == 1 and inline > 10:
        step = 5
    sent = [b"a" * inline, FileTicket(5, 4), b"b", FileTicket(6, 2)]
    stream = b"".join(bytes(piece) for piece in encode(Kind.CALL, 1, b"f", sent) + encode(Kind.CANCEL, 2))
    mapped = {5: bytearray(b"five"), 6: bytearray(b"66")}
    reader, received = with_files(mapped), []
    for at in range(0, len(stream), step):
        reader.feed(stream[at : at + step])
        received += read(reader)
    first, second = received
    assert first == (Kind.CALL, 1, 0, b"f", [sent[0], b"five", b"b", b"66"])
    assert second[0] == Kind.CANCEL
    assert mapped == {}


def test_a_memory_file_costs_the_stream_eight_bytes() -> None:
    (piece,) = encode(Kind.OUTCOME, 1, b"", [FileTicket(1, 1 << 30)])
    assert len(piece) == HEADER.size + 8 + 8


def test_a_memory_file_where_none_can_come_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="memory file 3 of 9 bytes"):
        FrameReader().feed(encode(Kind.CALL, 1, b"", [FileTicket(3, 9)])[0])


def test_a_memory_file_of_more_than_a_terabyte_is_no_frame() -> None:
    with pytest.raises(ProtocolError, match="not a frame"):
        with_files({}).feed(encode(Kind.CALL, 1, b"", [FileTicket(3, MAX_FRAME_BYTES + 1)])[0])
