"""A replica's log, in pieces."""

from __future__ import annotations

import codecs
import os
from dataclasses import dataclass
from typing import Final

from . import runtime

MOST_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `offset` to `next` of a file, as text."""

    text: str
    offset: int
    next: int


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
        if since is not None and since <= size:
            offset = file.seek(since)
            data = file.read(MOST_BYTES)
        else:
            offset = file.seek(max(0, size - MOST_BYTES))
            lines = file.read(MOST_BYTES).splitlines(keepends=True)
            offset += sum(map(len, lines[: max(0, len(lines) - tail)]))
            data = b"".join(lines[max(0, len(lines) - tail) :])
    # The first bytes of a character that is not written yet come with the next piece.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    return Piece(text, offset, offset + len(data) - len(decoder.getstate()[0]))
