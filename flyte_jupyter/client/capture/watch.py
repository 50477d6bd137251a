"""Notices that a captured object is no longer what it was. Asked at every call, so it compares identities.

Functions: code, defaults, attributes and what their closures hold. Classes: bases and attributes. Plain containers and
instances, `MOST_ELEMENTS` of them for one captured object: each element. The rest is pickled again and compared.
"""

from __future__ import annotations

import abc
import collections
import copyreg
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import inspect
import operator
import pathlib
import pickle
import re
import types
import typing
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

MOST_ELEMENTS: Final = 200

_ATOMS: Final = frozenset({int, float, complex, bool, str, bytes, range, type(None), type(...), type(NotImplemented)})
_SETTLED: Final = (
    types.BuiltinFunctionType, types.ModuleType, types.GenericAlias, types.UnionType, types.CodeType,
    types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType, types.MethodDescriptorType,
    types.ClassMethodDescriptorType, types.MethodWrapperType,
    typing.TypeVar, typing.ParamSpec, typing.TypeVarTuple, typing.NewType, typing.ForwardRef,
    typing._Final,
    enum.Enum, enum.property, re.Pattern, pathlib.PurePath, datetime.date, datetime.time, datetime.timedelta,
    datetime.tzinfo, decimal.Decimal, fractions.Fraction, uuid.UUID,
    operator.attrgetter, operator.itemgetter, operator.methodcaller, inspect.Signature, inspect.Parameter,
    dataclasses.Field, type(dataclasses.MISSING), dataclasses._DataclassParams,  # type: ignore[attr-defined]
    type(collections.namedtuple("_", "a").a),  # type: ignore[attr-defined]
)  # fmt: skip
"""Instances of these mean the same for as long as they are the same object."""
_OF_THE_INTERPRETER: Final = frozenset({"__dict__", "__weakref__", "__slotnames__", "__abstractmethods__", "_abc_impl"})
_OF_AN_ENUM: Final = frozenset(
    "_member_map_ _member_names_ _value2member_map_ _unhashable_values_ _unhashable_values_map_ _hashable_values_"
    " _member_type_ _new_member_ _generate_next_value_ _boundary_".split()
)
INVERTED: Final = "_inverted_"
"""Where Python keeps the opposite of a flag, once somebody has asked for it."""
_ELEMENTS: Final = frozenset({list, set, collections.deque})
_NOTHING: Final[Any] = object()

LRU_CACHE: Final[Any] = type(functools.lru_cache(len))


def is_fixed(value: object) -> bool:
    """Whether the object means the same for as long as it is the same object, as far as can be told from itself."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if isinstance(value, tuple | frozenset) and kind in (tuple, frozenset):
        return all(map(is_fixed, value))
    return isinstance(value, _SETTLED)


def _is_inert(value: object) -> bool:
    """Whether it is numbers and text, and containers of them: no Python code takes part in pickling it."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if isinstance(value, list | tuple | set | frozenset) and kind in (list, tuple, set, frozenset):
        return all(map(_is_inert, value))
    if isinstance(value, dict) and kind is dict:
        return all(map(_is_inert, value)) and all(map(_is_inert, value.values()))
    return False


_LOOKED_AT: Final = tuple(
    "_cells _classes _dicts _functions _inert _kinds _lists _members _names _pickles _registrations".split()
)


class Watch:
    """What was looked at when an object was captured.

    Args:
        pickled: Pickles a part that cannot be looked into; may raise anything.
    """

    __slots__ = (
        "_cells", "_classes", "_dicts", "_elements", "_functions", "_inert", "_kinds", "_lists", "_members", "_names",
        "_pickled", "_pickles", "_registrations", "_seen", "parts",
    )  # fmt: skip

    def __init__(self, pickled: Callable[[object], bytes]) -> None:
        self._pickled = pickled
        self._functions: list[tuple[Any, Any, Any, Any, int, str, Any]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._classes: list[tuple[type, Any, str, list[str], list[Any]]] = []
        self._registrations: list[Any] = []
        self._lists: list[tuple[Any, list[Any]]] = []
        self._dicts: list[tuple[Mapping[Any, Any], list[Any], list[Any]]] = []
        self._names: list[tuple[dict[str, Any], str, Any]] = []
        self._kinds: list[tuple[Any, type]] = []
        self._members: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._inert: list[tuple[Any, bytes]] = []
        self._pickles: list[tuple[Callable[[object], bytes], Any, bytes]] = []
        self._elements = 0
        self._seen: set[int] = set()
        self.parts: list[Any] = []
        """The mutable objects among it, each once, in an order that is the same for equal content."""

    @classmethod
    def all_of(cls, watches: Iterable[Watch]) -> Watch:
        """One that looks at what all of them look at."""
        made = cls(lambda value: b"")
        for watch in watches:
            for name in _LOOKED_AT:
                getattr(made, name).extend(getattr(watch, name))
        return made

    def changed(self) -> bool:
        """Whether anything differs now."""
        return any(check() for check in self.checks())

    def checks(self) -> tuple[Callable[[], bool], ...]:
        """Each says whether something differs now; only those that have something to look at."""
        found: list[Callable[[], bool]] = []
        if self._functions:
            found.append(self._functions_changed)
        if self._dicts:
            found.append(self._dicts_changed)
        if self._classes:
            found.append(self._classes_changed)
        if self._inert:
            found.append(self._inert_changed)
        if self._lists or self._cells or self._names or self._kinds or self._members or self._pickles:
            found.append(self._others_changed)
        return tuple(found)

    def _functions_changed(self) -> bool:
        for function, code, defaults, keywords, attributes, name, doc in self._functions:
            if (
                function.__code__ is not code
                or function.__defaults__ is not defaults
                or function.__kwdefaults__ is not keywords
                or len(function.__dict__) != attributes
                or function.__name__ is not name
                or function.__doc__ is not doc
            ):
                return True
        return False

    def _inert_changed(self) -> bool:
        return any(_dumps(value) != pickled for value, pickled in self._inert)

    def _dicts_changed(self) -> bool:
        for mapping, keys, values in self._dicts:
            if len(mapping) != len(keys) or not (_same(mapping.values(), values) and _same(mapping, keys)):
                return True
        return False

    def _classes_changed(self) -> bool:
        for cls, bases, name, keys, values in self._classes:
            attributes = cls.__dict__
            if cls.__bases__ is not bases or not _same(attributes.values(), values) or [*attributes] != keys:
                return True
            if cls.__name__ is not name:
                return True
        # Some class was registered with some abstract one since.
        return bool(self._registrations) and abc.get_cache_token() != min(self._registrations)

    def _others_changed(self) -> bool:
        for elements, before in self._lists:
            if len(elements) != len(before) or not _same(elements, before):
                return True
        for cell, content in self._cells:
            if content_of(cell) is not content:
                return True
        for names, name, value in self._names:
            if names.get(name, _NOTHING) is not value:
                return True
        for instance, kind in self._kinds:
            if type(instance) is not kind:
                return True
        for attributes, own in self._members:
            if len(attributes) - (INVERTED in attributes) != len(own):
                return True
            if any(attributes.get(name, _NOTHING) is not value for name, value in own.items()):
                return True
        return any(self._differs(pickled, value, before) for pickled, value, before in self._pickles)

    @staticmethod
    def _differs(pickled: Callable[[object], bytes], value: object, before: bytes) -> bool:
        try:
            return pickled(value) != before
        except Exception:  # capturing it again says what is wrong, and with which name
            return True

    # --- what is looked at

    def function(self, function: types.FunctionType) -> None:
        """A function that goes by value."""
        if self._is_new(function):
            keywords = function.__kwdefaults__
            attributes = function.__dict__
            self._functions.append(
                (
                    function,
                    function.__code__,
                    function.__defaults__,
                    keywords,
                    len(attributes),
                    function.__name__,
                    function.__doc__,
                )
            )
            self.parts.append(attributes)
            if attributes:
                self._items(attributes)
            if keywords:
                self.mapping(keywords)
            self.value(function.__defaults__)
            for cell in function.__closure__ or ():
                self._cell(cell)

    def cls(self, cls: type) -> None:
        """A class that goes by value."""
        if id(cls) not in self._seen:
            self.attributes(cls)
            skipped = _OF_THE_INTERPRETER | _OF_AN_ENUM if isinstance(cls, enum.EnumMeta) else _OF_THE_INTERPRETER
            for name, value in list(vars(cls).items()):
                if name not in skipped:
                    self.value(value)
            if isinstance(cls, enum.EnumMeta):
                for member in cls._member_map_.values():
                    self._member(vars(member))

    def attributes(self, cls: type) -> None:
        """Which attributes a class has, and not what is in them."""
        if self._is_new(cls):
            with suppress(Exception):  # else pickling the first instance would add that to the class
                copyreg._slotnames(cls)  # type: ignore[attr-defined]
            attributes = dict(vars(cls))
            self._classes.append((cls, cls.__bases__, cls.__name__, list(attributes), list(attributes.values())))
            if isinstance(cls, abc.ABCMeta):
                self._registrations.append(abc.get_cache_token())

    def globals(self, names: dict[str, Any], wanted: Iterable[str]) -> None:
        """Globals of code that belongs to no module."""
        for name in wanted:
            value = names.get(name, _NOTHING)
            self._names.append((names, name, value))
            if value is not _NOTHING:
                self.value(value)

    def value(self, value: Any) -> None:
        """Any part of what is captured."""
        kind = type(value)
        if kind in _ATOMS or isinstance(value, types.FunctionType | type):
            return  # what goes by value is announced when it is pickled; the rest has a name of its own
        if kind is tuple or kind is frozenset:
            for part in value:
                self.value(part)
        elif kind is staticmethod or kind is classmethod:
            if self._is_new(value):
                self.value(value.__func__)
                self.mapping(vars(value))
        elif kind is property:
            self.value((value.fget, value.fset, value.fdel))
        elif kind is functools.cached_property:
            self.value(value.func)
        elif kind is types.MethodType:
            self.value((value.__func__, value.__self__))
        elif kind is LRU_CACHE:
            if self._is_new(value):
                self.value(value.__wrapped__)
                self.mapping(value.__dict__)
        elif not hasattr(kind, "__flyte_capture__") and not isinstance(value, _SETTLED) and self._is_new(value):
            self._inside(value, kind)

    def _inside(self, value: Any, kind: type) -> None:
        plain = _is_plain(kind)
        size = len(vars(value)) if plain else len(value) if kind in _ELEMENTS or kind is dict else 0
        if self._elements + size > MOST_ELEMENTS:
            plain = False
            kind = object
        self._elements += size
        if plain:
            self._kinds.append((value, kind))
            self.mapping(vars(value))
        elif kind is dict:
            self._items(value)
        elif kind in _ELEMENTS:
            elements = list(value)
            self._lists.append((value, elements))
            for element in elements:
                self.value(element)
        elif kind is functools.partial:
            self.value((value.func, value.args))
            self.mapping(value.keywords)
            self.mapping(vars(value))
        elif _is_inert(value):
            self._inert.append((value, _dumps(value)))
        else:
            self._pickles.append((self._pickled, value, self._pickled(value)))

    def mapping(self, mapping: Mapping[Any, Any]) -> None:
        """Its keys and values."""
        if self._is_new(mapping):
            self._items(mapping)

    def _items(self, mapping: Mapping[Any, Any]) -> None:
        keys, values = list(mapping), list(mapping.values())
        self._dicts.append((mapping, keys, values))
        for part in (*keys, *values):
            self.value(part)

    def _member(self, attributes: dict[str, Any]) -> None:
        """The value of an enum's member, and what else was set on it."""
        own = {name: value for name, value in attributes.items() if name != INVERTED}
        self._members.append((attributes, own))
        for value in own.values():
            self.value(value)

    def _cell(self, cell: types.CellType) -> None:
        if self._is_new(cell):
            content = content_of(cell)
            self._cells.append((cell, content))
            if content is not EMPTY:
                self.value(content)

    def _is_new(self, part: object) -> bool:
        if id(part) in self._seen:
            return False
        self._seen.add(id(part))
        self.parts.append(part)
        return True


EMPTY: Final[Any] = type("EMPTY", (), {"__slots__": ()})()
"""What a cell holds whose variable is not assigned yet."""


def content_of(cell: types.CellType) -> Any:
    """What a closure's cell holds, or EMPTY."""
    try:
        return cell.cell_contents
    except ValueError:
        return EMPTY


def _dumps(value: object) -> bytes:
    try:
        return pickle.dumps(value, 5)
    except Exception:  # something was put in that is more than numbers and text
        return b""


def _same(now: Iterable[Any], before: list[Any]) -> bool:
    return all(map(operator.is_, now, before))


def _is_plain(kind: type) -> bool:
    """Whether instances are pickled as what is in their `__dict__`, and nothing else."""
    own: Any = kind
    return (
        own.__reduce_ex__ is object.__reduce_ex__
        and own.__reduce__ is object.__reduce__
        and own.__getstate__ is object.__getstate__
        and own.__dictoffset__ != 0
        and not any(hasattr(kind, name) for name in ("__getnewargs__", "__getnewargs_ex__", "__setstate__"))
        and all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)
        and not any(vars(base).get("__slots__") for base in kind.__mro__)
    )


_HEAP_TYPE: Final = 1 << 9
