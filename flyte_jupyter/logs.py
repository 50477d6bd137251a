"""Logs, in pieces."""

from __future__ import annotations

import codecs
import os
from dataclasses import dataclass
from typing import BinaryIO, Final

from . import runtime

MOST_BYTES: Final = 256 * 1024
CHUNK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `offset` to `next` of a file, as text."""

    text: str
    offset: int
    next: int


def seek_tail(file: BinaryIO, lines: int, most: int | None = None) -> int:
    """Move to where the last `lines` lines begin, at most that many bytes before the end; that offset."""
    end = position = file.seek(0, os.SEEK_END)
    first = 0 if most is None else max(0, end - most)
    tail = b""
    while position > first and tail.rstrip(b"\n").count(b"\n") < lines:
        step = min(position - first, CHUNK_BYTES)
        position = file.seek(position - step)
        tail = file.read(step) + tail
    kept = b"".join(tail.splitlines(keepends=True)[-lines:]) if lines else b""
    return file.seek(end - len(kept))


def read_log(replica: str, *, tail: int, since: int | None) -> Piece:
    """What was written since that offset, or the last `tail` lines; at most MOST_BYTES.

    Args:
        replica: An id, which the caller has checked: it becomes part of a path.

    Raises:
        FileNotFoundError: There is no such log.
    """
    path = runtime.log_folder(runtime.runtime_folder()) / f"{replica}.log"
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
        size = file.seek(0, os.SEEK_END)
        offset = file.seek(since) if since is not None and since <= size else seek_tail(file, tail, MOST_BYTES)
        data = file.read(MOST_BYTES)
    # The first bytes of a character that is not written yet come with the next piece.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return Piece(text, offset, offset + len(data) - len(decoder.getstate()[0]))
