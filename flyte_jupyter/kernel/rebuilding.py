"""Makes objects again from what `client.capture.values` pickled, in the module of their notebook.

Where the replica has an earlier generation of an object, that is used again as far as it may be: a function that only
moved keeps what it has cached, a class on which something was set stays the class of its instances.
"""

from __future__ import annotations

import abc
import builtins
import collections
import functools
import importlib
import io
import operator
import pickle
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ..core import definitions
from ..core.code import placed
from ..core.definitions import Mark, ValueDefinition
from ..core.payload import Finder, plain_find
from . import seams


class Home(Protocol):
    """The module that objects are made in."""

    names: dict[str, Any]
    objects: MutableMapping[str, Any]
    """Functions and classes by which objects of the notebook they are."""

    def is_used(self, key: str, besides: str) -> bool: ...
    def attribute(self, path: str) -> Any: ...
    def shared(self, name: str, position: int) -> Any: ...
    def find_class(self, module: str, name: str) -> Any: ...


@dataclass(slots=True, eq=False)
class Bound:
    """The product of a definition.

    Attributes:
        deep: What all that it uses was like when it was made; `mixed` once that has changed, as its caches may then
            hold results of both.
        made: Its parts that can be used again, by their place in `kept`, which is the definition's.
        parts: By position, the objects that another definition may refer to.
        preloaded: It is the preload's, and the same for all notebooks.
        step: When it was made, as a count of what was made in its module.
        uses: Names that it mentions.
        module: Where it was imported from.
    """

    value: Any
    mark: Mark
    identity: str = ""
    shaping: frozenset[str] = frozenset()
    linked: frozenset[str] = frozenset()
    deep: str = ""
    mixed: bool = False
    made: dict[int, Any] = field(default_factory=dict)
    kept: tuple[tuple[str, str], ...] = ()
    parts: dict[int, Any] = field(default_factory=dict)
    preloaded: bool = False
    step: int = 0
    uses: frozenset[str] = frozenset()
    module: str = ""


class Rebuilder(pickle.Unpickler):
    """An unpickler that loads one definition.

    Args:
        old: What this name stood for before, if there is anything that may be used again.
    """

    def __init__(self, home: Home, definition: ValueDefinition, old: Bound | None = None) -> None:
        super().__init__(io.BytesIO(definition.pickled))
        self._home = home
        self._definition = definition
        self._places = definition.places
        self._kept = definition.kept
        self.made: dict[int, Any] = {}
        self._old: Bound | None = None
        self._renewed: Any = None
        self._keep_caches = False
        self._old_value: Any = None
        if old is not None:
            same = bool(definition.identity) and old.identity == definition.identity
            self._old_value = old.value if same else None
            if old.mark.content == definition.mark.content:
                self._old = old
                self._keep_caches = same or (not old.mixed and old.deep == definition.mark.deep)

    def root(self) -> Any:
        """The object itself, while it is being loaded. KeyError if it is not there yet."""
        return self.part(self._definition.root)

    def part(self, position: int) -> Any:
        """The object at that position. KeyError if it is not there yet."""
        return self.memo.copy()[position]

    def parts(self) -> dict[int, Any]:
        """All that others may refer to. An object that cannot change needs no reference."""
        memo: dict[int, Any] = self.memo.copy()
        if self._renewed is not None:
            memo[self._definition.root] = self._renewed
        return {position: obj for position, obj in memo.items() if not isinstance(obj, _UNCHANGING)}

    def renewed(self, value: Any) -> Any:
        """The object to bind: the same container as before, with its new content, if it is the same in the notebook.

        What a task has left on the replica may hold it: a cached model its configuration.
        """
        old = self._old_value
        if old is None or type(old) is not type(value) or old is value or self._holds_itself():
            return value
        if isinstance(value, dict) and type(value) is dict:
            old.clear()
            old.update(value)
        elif type(value) in (list, collections.deque):
            old.clear()
            old.extend(value)
        elif isinstance(value, set) and type(value) is set:
            old.clear()
            old.update(value)
        elif _is_plain(type(value)):
            vars(old).clear()
            vars(old).update(vars(value))
        else:
            return value
        self._renewed = old
        return old

    def _holds_itself(self) -> bool:
        """Whether a part of it may refer to the whole, or it is itself a part of something else."""
        whole = self._definition.root
        if whole < 0:
            return True
        references = {b"h%c" % whole} if whole < 256 else {b"j" + whole.to_bytes(4, "little")}
        return any(reference in self._definition.pickled for reference in references)

    # --- pickle

    def find_class(self, module: str, name: str) -> Any:
        if module == definitions.__name__:
            return self._make if name == definitions.make.__name__ else self._fill
        return self._home.find_class(module, name)

    def persistent_load(self, link: tuple[str, int]) -> Any:
        return self._home.shared(*link)

    def _make(self, kind: str, *arguments: Any) -> Any:
        return _MAKERS[kind](self, *arguments)

    def _fill(self, made: Any, state: Any) -> None:
        if isinstance(made, types.FunctionType) and isinstance(state, dict):
            self._fill_function(made, state)
        elif isinstance(made, types.CellType):
            _fill_cells(state)
        elif isinstance(made, type):
            _fill_class(made, *state)
        elif isinstance(made, functools.cached_property):
            made.attrname, made.__doc__ = state
        elif isinstance(made, types.FunctionType):
            for cls, implementation in state:
                made.register(cls, implementation)  # type: ignore[attr-defined]
        else:
            vars(made).update(state)

    def _again(self, index: int, kind: Any) -> Any:
        """The object to use again for that part: the same object of the notebook, or an equal one before it."""
        key, _ = self._kept[index]
        found = self._home.objects.get(key) if key else None
        if found is None and self._old is not None:
            found = self._old.made.get(index)
            before, _ = self._old.kept[index]
            if before and before != key:  # from now on it is this object of the notebook, and not that one
                if self._home.is_used(before, self._definition.name):
                    return None
                self._home.objects.pop(before, None)
        return found if isinstance(found, kind) else None

    def _remember(self, index: int, part: Any) -> Any:
        self.made[index] = part
        key, tracker = self._kept[index]
        if key:
            self._home.objects[key] = part
        if tracker:
            _track(tracker, part)
        return part

    # --- makers

    def _name(self, path: str) -> Any:
        return self._home.attribute(path)

    def _import(self, module: str, path: str) -> Any:
        return plain_find(module, path)

    def _globals(self) -> dict[str, Any]:
        return self._home.names

    def _module_globals(self, module: str, odd: dict[str, Any]) -> dict[str, Any]:
        names = vars(importlib.import_module(module))
        for name, value in odd.items():
            names.setdefault(name, value)
        return names

    def _namespace(self, index: int, head: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] | None = self._again(index, dict)
        names: dict[str, Any] = {} if found is None else found
        names.clear()
        names.update(head, __builtins__=builtins)
        self._remember(index, names)
        return names

    def _code(self, index: int, data: bytes) -> types.CodeType:
        return placed(data, *self._places[index])

    def _function(
        self,
        index: int,
        code: types.CodeType,
        names: dict[str, Any],
        name: str,
        closure: tuple[types.CellType, ...] | None,
    ) -> Any:
        found: Any = self._again(index, types.FunctionType)
        if found is not None and found.__globals__ is names and _are_same(found.__closure__ or (), closure or ()):
            found.__code__ = code  # at its new place
            found.__name__ = name
        else:
            found = types.FunctionType(code, names, name, None, closure)
        return self._remember(index, found)

    def _fill_function(self, function: types.FunctionType, state: dict[str, Any]) -> None:
        function.__module__ = state["module"]
        function.__qualname__ = state["qualname"]
        function.__doc__ = state["doc"]
        function.__defaults__ = state["defaults"]
        function.__kwdefaults__ = state["keywords"]
        annotations = state["annotations"]
        if isinstance(annotations, bytes):
            annotations = self._inner(annotations)
        function.__annotations__ = annotations
        function.__dict__.clear()
        function.__dict__.update(state["attributes"])
        if "type_params" in state:
            function.__type_params__ = state["type_params"]  # type: ignore[attr-defined]
        _fill_cells(state["cells"])
        if state["globals"] is not None:
            function.__globals__.update(state["globals"])

    def _inner(self, pickled: bytes) -> Any:
        inner = Rebuilder(self._home, ValueDefinition("", Mark(""), pickled, ""))
        inner._places, inner._kept, inner._old, inner.made = self._places, self._kept, self._old, self.made
        return inner.load()

    def _cell(self, index: int, function: int, number: int) -> types.CellType:
        owner = self._again(function, types.FunctionType) if function >= 0 else None
        closure = () if owner is None else owner.__closure__ or ()
        found: types.CellType = closure[number] if number < len(closure) else types.CellType()
        with suppress(ValueError):
            del found.cell_contents
        return found

    def _cell_of(self, cell: types.CellType) -> types.CellType:
        return cell

    def _class(self, index: int, meta: Any, name: str, bases: tuple[type, ...], skeleton: dict[str, Any]) -> Any:
        found = self._again(index, type)
        if found is None or not _fits(found, meta, bases, skeleton):
            found = _new_class(meta, name, bases, skeleton)
        else:
            found.__name__ = name
            found.__qualname__ = skeleton["__qualname__"]
            found.__doc__ = skeleton["__doc__"]
        return self._remember(index, found)

    def _cached(self, index: int, function: Any, maxsize: int | None, typed: bool) -> Any:
        key, _ = self._kept[index]
        found = self._again(index, _LRU_CACHE) if self._keep_caches or key in self._home.objects else None
        if found is None or found.__wrapped__ is not function:
            found = functools.lru_cache(maxsize, typed)(function)
        return self._remember(index, found)

    def _frozenset(self, elements: list[str]) -> frozenset[str]:
        return frozenset(elements)

    def _dispatching(self, base: Any) -> Any:
        return functools.singledispatch(base)

    def _method(self, kind: Any, function: Any) -> Any:
        return kind(function)

    def _cached_property(self, function: Any) -> Any:
        return functools.cached_property(function)

    def _wrap(self, index: int, wrap: bytes, bare: Any) -> Any:
        made = Finder(wrap, self._home.find_class).load()(bare)
        found = self._again(index, type(made)) if self._keep_caches else None
        return self._remember(index, made if found is None else found)

    def _member(self, cls: Any, name: str) -> Any:
        return cls._member_map_[name]

    def _raw_member(self, cls: Any, base: Any, arguments: Iterable[Any]) -> Any:
        return base.__new__(cls, *arguments)

    def _variable(
        self, index: int, kind: Any, name: str, module: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        found = self._again(index, kind)
        if found is None:
            found = kind(name, *arguments, **options)
            found.__module__ = module  # it takes its caller's
        return self._remember(index, found)


_MAKERS: Final[Mapping[str, Callable[..., Any]]] = {
    kind: getattr(Rebuilder, f"_{kind}")
    for kind in (
        "name import globals module_globals namespace code function cell cell_of class cached frozenset dispatching"
        " method cached_property wrap member raw_member variable"
    ).split()
}
_LRU_CACHE: Final[Any] = type(functools.lru_cache(len))
_UNCHANGING: Final = (str, bytes, int, float, complex, tuple, frozenset, types.CodeType, types.ModuleType)


def _is_plain(kind: Any) -> bool:
    """Whether an instance is what is in its `__dict__`, and nothing else."""
    return (
        kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getstate__ is object.__getstate__
        and kind.__module__ == "__main__"
        and kind.__dictoffset__ != 0
        and not any(vars(base).get("__slots__") for base in kind.__mro__)
        and all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)
    )


_HEAP_TYPE: Final = 1 << 9


def _are_same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _fill_cells(contents: Iterable[tuple[types.CellType, Any]]) -> None:
    for cell, content in contents:
        cell.cell_contents = content


# --- classes

_FIXED: Final = frozenset(
    "__module__ __qualname__ __doc__ __slots__ __orig_bases__ __dict__ __weakref__ _abc_impl __abstractmethods__"
    " __static_attributes__ __firstlineno__".split()
)
"""Attributes of a class that stay, or are made with it."""


def _new_class(meta: Any, name: str, bases: tuple[type, ...], skeleton: dict[str, Any]) -> Any:
    """A class without attributes. Those to come hold all that metaclasses and parents did when it was made."""
    definer = _definer(bases)
    if definer is not None and vars(definer)["__module__"] == "__main__":
        with _silent(definer):
            made = type.__new__(meta, name, bases, dict(skeleton))
    else:
        try:
            made = type.__new__(meta, name, bases, dict(skeleton))
        except Exception:  # a library that wants keywords, or attributes
            if definer is None:
                raise
            with _silent(definer):
                made = type.__new__(meta, name, bases, dict(skeleton))
    if isinstance(made, abc.ABCMeta):
        seams.complete_abstract(made)
    return made


def _definer(bases: tuple[type, ...]) -> type | None:
    """Whose `__init_subclass__` is called for a subclass of these, if anybody's but Python's."""
    found = (cls for base in bases for cls in base.__mro__ if "__init_subclass__" in vars(cls))
    definer = next(found, object)
    return None if definer is object or definer.__module__ in ("typing", "builtins") else definer


@contextmanager
def _silent(definer: type) -> Iterator[None]:
    own = vars(definer)["__init_subclass__"]
    type.__setattr__(definer, "__init_subclass__", classmethod(lambda cls, **keywords: None))
    try:
        yield
    finally:
        type.__setattr__(definer, "__init_subclass__", own)


def _fits(cls: Any, meta: Any, bases: tuple[type, ...], skeleton: dict[str, Any]) -> bool:
    """Whether this class can become the new one: what is fixed when a class is made is the same."""
    slots = vars(cls).get("__slots__")
    return (
        type(cls) is meta
        and _are_same(cls.__bases__, bases)
        and (slots is None) == ("__slots__" not in skeleton)
        and (slots is None or list(slots) == list(skeleton["__slots__"]))
    )


def _fill_class(cls: type, attributes: dict[str, Any], registered: list[type]) -> None:
    for name, value in list(vars(cls).items()):
        own = getattr(value, "__objclass__", None) is cls
        made_by_python = own and isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType)
        if name not in attributes and name not in _FIXED and not made_by_python:
            type.__delattr__(cls, name)
    for name, value in attributes.items():
        type.__setattr__(cls, name, value)
    for virtual in registered:
        cls.register(virtual)  # type: ignore[attr-defined]


def _track(tracker: str, made: Any) -> None:
    from cloudpickle import cloudpickle

    with cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:
        cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[tracker] = made
        cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS[made] = tracker
