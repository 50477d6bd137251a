"""An exception's content as bytes, and an exception of that content again. Called by `failure` alone."""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Iterator
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, Final

from .. import errors
from .payload import Find, Finder, notebook_pickler


def dump(error: BaseException) -> bytes | None:
    """What `load` makes an exception of; None if nothing of it can be pickled."""
    cls = type(error)
    apart = isinstance(cls.__init__, FunctionType) or any(_slots(cls))
    if _has_own_ways(cls) or is_native(cls) or not apart:
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
    with suppress(Exception):
        return _checked(_by_name(error, _pickler_of_parts()))
    return None


def _by_name(value: object, pickler: Any) -> bytes:
    """What the notebook has defined goes by name: `except` asks for that very class."""
    file = io.BytesIO()
    pickler(file, protocol=5).dump(value)
    return file.getvalue()


def _has_own_ways(cls: type[BaseException]) -> bool:
    if cls.__reduce__ is errors.BaseRuntimeError.__reduce__:  # which knows no slots of a user's subclass
        return False
    return isinstance(cls.__reduce__, FunctionType) or isinstance(cls.__reduce_ex__, FunctionType)


def _checked(data: bytes) -> bytes:
    loaded = pickle.loads(data)  # some things can be pickled and not loaded
    if isinstance(loaded, tuple):
        fill(*loaded)
    return data


@functools.cache
def _pickler_of_parts() -> Any:
    """A pickler for an exception that holds others, or what cannot be pickled: its text takes the place of that.

    Made late: the import is slow.
    """

    class Parts(notebook_pickler()):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, BaseException) and not _has_own_ways(type(obj)):
                parts = type(obj), obj.args, outside_dict(obj), vars(obj)
                with suppress(Exception):
                    fill(*parts)
                    return fill, parts
            reduced = super().reducer_override(obj)
            if reduced is not NotImplemented or isinstance(obj, type | FunctionType):
                return reduced
            try:
                return reduced if type(obj) in self.dispatch_table else obj.__reduce_ex__(5)
            except Exception:
                return str, (repr(obj),)

    return Parts


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
) -> BaseException:
    """A `cls` with this content. No constructor of a user's is called: it may want any arguments.

    Raises: Exception if only that can make one, or, of a group, if its parts are not known.
    """
    builtin: Any = cls
    while builtin.__flags__ & _MADE_IN_PYTHON and not _makes_its_own(builtin):
        builtin = builtin.__base__  # the one whose memory layout it has: the only __new__ that Python allows
    try:
        error: BaseException = builtin.__new__(cls, *args)
    except Exception:
        error = builtin.__new__(cls)
    with suppress(Exception):
        builtin.__init__(error, *args)
    write(error, "args", args)
    for name, value in outside.items():
        with suppress(Exception):
            write(error, name, value)
    vars(error).update(attributes)
    return error


def write(error: BaseException, name: str, value: object) -> None:
    """Set an attribute of an exception, also of one that does not let itself be written to, as a frozen dataclass."""
    BaseException.__setattr__(error, name, value)


def is_native(cls: type[BaseException]) -> bool:
    """Whether its objects may hold what only C or Rust knows of, as pydantic's errors do."""
    return any(_makes_its_own(each) and each.__module__ != "builtins" for each in cls.__mro__)


def _makes_its_own(cls: type) -> bool:
    return isinstance(vars(cls).get("__new__"), BuiltinFunctionType)


_MADE_IN_PYTHON: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE


def outside_dict(error: BaseException) -> dict[str, Any]:
    """What is kept beside `args` and `__dict__`: a builtin's errno, filename, lineno, name ..., and a user's slots."""
    found = {}
    for cls in type(error).__mro__:
        if not cls.__flags__ & _MADE_IN_PYTHON and cls not in (BaseException, Exception, object):
            for name, slot in vars(cls).items():
                if isinstance(slot, MemberDescriptorType | GetSetDescriptorType):
                    value = getattr(error, name, None)
                    if value is not None:
                        found[name] = value
    for name, slot in _slots(type(error)):
        with suppress(AttributeError):  # it is not set
            found[name] = slot.__get__(error)
    return found


def _slots(cls: type) -> Iterator[tuple[str, MemberDescriptorType]]:
    """What `__slots__` of classes that are made in Python have become."""
    for each in cls.__mro__:
        if each.__flags__ & _MADE_IN_PYTHON:
            for name, slot in vars(each).items():
                if isinstance(slot, MemberDescriptorType):
                    yield name, slot
