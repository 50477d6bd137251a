"""A digest of what a pickle says: equal for equal objects, in every process.

A pickle writes a string that it has met before as a reference. Python makes one object of equal names now and then, not
in the same way everywhere; and the order of a set differs from process to process.
"""

from __future__ import annotations

import hashlib
import pickletools
from typing import Any, Final

MOST_BYTES: Final = 1 << 18
"""A larger pickle is mostly data; its own bytes must do."""


def content_digest(pickled: bytes, *, has_code: bool) -> str:
    """Digest of a pickle of protocol 5, in hexadecimal digits.

    Args:
        has_code: There are functions or classes in it, whose names are such strings.
    """
    if len(pickled) > MOST_BYTES or not (has_code or _ADD_TO_SET in pickled or _FROZENSET in pickled):
        parts = [pickled]
    else:
        parts = _Reader(pickled, has_sets=False).parts() or _Reader(pickled, has_sets=True).parts()
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


class _Reader:
    """Goes through a pickle once."""

    def __init__(self, pickled: bytes, has_sets: bool) -> None:
        self._pickled = pickled
        self._has_sets = has_sets
        self._memo: list[bytes | int] = []  # the text at that position, or which of the others it is
        self._others = 0

    def parts(self) -> list[bytes]:
        """Its content, piece by piece; nothing if there is a set, and that was not expected.

        What has no text in it is one piece: most of the time goes by here.
        """
        pickled, memo, sizes, has_sets = self._pickled, self._memo, _FIXED, self._has_sets
        parts: list[bytes] = []
        position, begin, end = 0, 0, len(pickled)
        while position < end:
            code = pickled[position]
            size = sizes[code]
            if size and not (has_sets and code == _MARK):
                position += size
            elif code == _MEMOIZE:  # of no text
                memo.append(self._others)
                self._others += 1
                position += 1
            elif code in _TEXTS or code in _GETS or code == _FRAME:
                parts.append(pickled[begin:position])
                begin, part, text = self._next(position, b"")
                parts.append(part)
                if text and begin < end and pickled[begin] == _MEMOIZE:
                    memo.append(text)
                    begin += 1
                position = begin
            elif code in _SETS and not has_sets:
                return []
            elif code == _MARK and (found := self._set(position)) is not None:
                parts.append(pickled[begin:position])
                begin, elements = found
                parts += sorted(elements)
                position = begin
            else:
                position = _after(pickled, code, position + 1)
        parts.append(pickled[begin:])
        return parts

    def _next(self, position: int, last: bytes) -> tuple[int, bytes, bytes]:
        """The next position, what this opcode means, and the text if it is one."""
        pickled, code = self._pickled, self._pickled[position]
        start, position = position, position + 1
        if code in _TEXTS:
            width = _TEXTS[code]
            size = int.from_bytes(pickled[position : position + width], "little")
            position += width + size
            text = b"text%d:" % size + pickled[position - size : position]
            return position, text, text
        if code == _MEMOIZE:
            self._memo.append(last or self._others)
            self._others += not last
            return position, b"", b""
        if code in _GETS:
            width = _GETS[code]
            found = self._memo[int.from_bytes(pickled[position : position + width], "little")]
            return position + width, found if isinstance(found, bytes) else b"ref%d:" % found, b""
        if code == _FRAME:
            return position + 8, b"", b""
        position = _after(pickled, code, position)
        return position, pickled[start:position], b""

    def _set(self, position: int) -> tuple[int, list[bytes]] | None:
        """If a set of numbers and texts begins here: where it ends, and its elements."""
        known, others = len(self._memo), self._others
        elements: list[bytes] = []
        position, last = position + 1, b""
        while position < len(self._pickled):
            code = self._pickled[position]
            if code in _SETS:
                return position, elements
            if code not in _SIMPLE:
                break
            position, part, last = self._next(position, last)
            if part:
                elements.append(part)
        del self._memo[known:]
        self._others = others
        return None


def _after(pickled: bytes, code: int, position: int) -> int:
    """Where the next opcode is."""
    size = _SIZES[code]
    if size >= 0:
        return position + size
    width = _COUNTED.get(size, 0)
    if not width:  # up to the end of a line, or two; nothing that protocol 5 writes
        return pickled.index(b"\n", position) + 1
    return position + width + int.from_bytes(pickled[position : position + width], "little")


_OPCODES: Final[Any] = pickletools.opcodes
_SIZES: Final[dict[int, int]] = {ord(op.code): 0 if op.arg is None else op.arg.n for op in _OPCODES}
_TEXTS: Final = {0x8C: 1, ord("X"): 4, 0x8D: 8}  # SHORT_BINUNICODE, BINUNICODE, BINUNICODE8; width of the length
_GETS: Final = {ord("h"): 1, ord("j"): 4}  # BINGET, LONG_BINGET
_MARK: Final = ord("(")
_MEMOIZE: Final = 0x94
_FRAME: Final = 0x95
_ADD_TO_SET: Final = 0x90
_FROZENSET: Final = 0x91
_SETS: Final = {_ADD_TO_SET, _FROZENSET}
_SIMPLE: Final = {*_TEXTS, *_GETS, _MEMOIZE, _FRAME, *map(ord, "NKMJG"), 0x88, 0x89, 0x8A}  # None, numbers, booleans
_COUNTED: Final = {-2: 1, -3: 4, -4: 4, -5: 8}  # pickletools: TAKEN_FROM_ARGUMENT1, 4, 4U, 8U
_LOOKED_AT: Final = {*_TEXTS, *_GETS, *_SETS, _MEMOIZE, _FRAME}
_FIXED: Final = [0 if code in _LOOKED_AT else 1 + max(_SIZES.get(code, -1), -1) for code in range(256)]
"""How many bytes an opcode takes; 0 of one to look at, or whose argument says it."""
