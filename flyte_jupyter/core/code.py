"""Code objects as bytes that are equal for equal code, wherever it stands."""

from __future__ import annotations

import marshal
from types import CodeType
from typing import Final

_DETERMINISTIC: Final = 2
"""Later versions of `marshal` write references, which depend on who else holds a constant."""


def canonical(code: CodeType) -> bytes:
    """The code without the file and the line where it stands: the same in every process.

    Lines and columns within it stay, so that a traceback never points into an older text.
    """
    return marshal.dumps(_without_place(code, code.co_firstlineno), _DETERMINISTIC)


def placed(data: bytes, filename: str, first_line: int) -> CodeType:
    """The code of `canonical` again, at a place."""
    code: CodeType = marshal.loads(data)
    return _at(code, filename, first_line)


def _without_place(code: CodeType, first: int) -> CodeType:
    consts = tuple(_without_place(each, first) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.replace(co_filename="", co_firstlineno=max(0, code.co_firstlineno - first), co_consts=consts)


def _at(code: CodeType, filename: str, first: int) -> CodeType:
    consts = tuple(_at(each, filename, first) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.replace(co_filename=filename, co_firstlineno=code.co_firstlineno + first, co_consts=consts)
