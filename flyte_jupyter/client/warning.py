"""Warnings about the user's own program, which show the user's own line."""

from __future__ import annotations

import pathlib
import sys
import warnings
from typing import Final

_PACKAGE: Final = str(pathlib.Path(__file__).parents[1])


def warn(text: str) -> None:
    """A `UserWarning`, at the line that called this package."""
    level, frame = 1, sys._getframe()
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)
