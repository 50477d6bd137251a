"""An exception's content as bytes, and an exception of that content again. Called by `failure` alone."""

from __future__ import annotations

import io
import pickle
from contextlib import suppress
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final

from .payload import Find, Finder, notebook_pickler


def dump(error: BaseException) -> bytes | None:
    """What `load` makes an exception of; None if nothing of it can be pickled."""
    cls = type(error)
    own_ways = isinstance(cls.__reduce__, FunctionType) or isinstance(cls.__reduce_ex__, FunctionType)
    if own_ways or not isinstance(cls.__init__, FunctionType):
        with suppress(Exception):
            return _checked(pickle.dumps(error, 5))
    # The class, the arguments and the attributes apart: loading them calls no constructor, which may want other
    # arguments than `args`, or would make another text of them.
    outside = outside_dict(error)
    with suppress(Exception):
        return _checked(pickle.dumps((cls, error.args, outside, vars(error)), 5))
    with suppress(Exception):
        args = tuple(arg if _survives(arg) else repr(arg) for arg in error.args)
        outside = {name: value for name, value in outside.items() if _survives(value)}
        attributes = {name: value for name, value in vars(error).items() if _survives(value)}
        return _checked(_by_name((cls, args, outside, attributes), notebook_pickler()))
    return None


def _by_name(value: object, pickler: Any) -> bytes:
    """What the notebook has defined goes by name: `except` asks for that very class."""
    file = io.BytesIO()
    pickler(file, protocol=5).dump(value)
    return file.getvalue()


def _checked(data: bytes) -> bytes:
    pickle.loads(data)  # some things can be pickled and not loaded
    return data


def _survives(value: object) -> bool:
    try:
        pickle.loads(_by_name(value, notebook_pickler()))
    except Exception:  # a lock, a socket, a cursor: the error is worth more than these
        return False
    return True


def load(pickled: bytes | None, find: Find) -> BaseException | None:
    """The exception; None if its class is not known here, or its content makes none."""
    if pickled is None:
        return None
    try:
        loaded = Finder(pickled, find).load()
        if isinstance(loaded, tuple):
            own, args, outside, attributes = loaded
            loaded = fill(own, args, outside, attributes)
    except Exception:
        return None
    return loaded if isinstance(loaded, BaseException) else None


def fill(
    cls: type[BaseException],
    args: tuple[Any, ...],
    outside: dict[str, Any],
    attributes: dict[str, Any],
) -> BaseException | None:
    """A `cls` with this content. No constructor of a user's is called: it may want any arguments."""
    builtin: Any = cls
    while builtin.__flags__ & _MADE_IN_PYTHON:
        builtin = builtin.__base__  # the one whose memory layout it has: the only __new__ that Python allows
    try:
        error: BaseException = builtin.__new__(cls, *args)
    except Exception:
        try:
            error = builtin.__new__(cls)
        except Exception:  # an ExceptionGroup whose parts are not known
            return None
    with suppress(Exception):
        builtin.__init__(error, *args)
    error.args = args
    for name, value in outside.items():
        with suppress(Exception):
            setattr(error, name, value)
    error.__dict__.update(attributes)
    return error


_MADE_IN_PYTHON: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def outside_dict(error: BaseException) -> dict[str, Any]:
    """What builtin exceptions keep beside `args` and `__dict__`: errno, filename, lineno, name ..."""
    found = {}
    for cls in type(error).__mro__:
        if not cls.__flags__ & _MADE_IN_PYTHON and cls not in (BaseException, Exception, object):
            for name, slot in vars(cls).items():
                if isinstance(slot, MemberDescriptorType | GetSetDescriptorType):
                    value = getattr(error, name, None)
                    if value is not None:
                        found[name] = value
    return found
