"""Where an interrupt may be raised: not in the middle of code that sends or keeps what a call has written.

A signal comes between any two bytecodes of the main thread. In the user's code that is as it should be; in code that
has put half a frame into a socket, it would break the connection of a call that goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

DEEPEST: Final = 32
"""Frames that such code may have above it, those of the standard library included."""

_whole: Final[set[CodeType]] = set()
_waits: Final[set[CodeType]] = set()


def whole(function: F) -> F:
    """Mark code that an interrupt must not cut in two. It takes no time where it is called."""
    _whole.add(function.__code__)
    return function


def waits(function: F) -> F:
    """Mark code that may be interrupted, although it is called by code that may not: it waits, or calls the user's."""
    _waits.add(function.__code__)
    return function


def may_raise_in(frame: FrameType | None) -> bool:
    """Whether an interrupt may be raised where the main thread is: in the frame that its signal handler was given."""
    for _ in range(DEEPEST):
        if frame is None or frame.f_code in _waits:
            return True
        if frame.f_code in _whole:
            return False
        frame = frame.f_back
    return True
