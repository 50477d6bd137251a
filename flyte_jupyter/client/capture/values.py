"""Pickles one object of a notebook by value; `kernel.rebuilding` loads it. Imports cloudpickle, so it is loaded late.

Functions go as code, defaults, attributes and what their closures hold; classes as bases and attributes: nothing that
once made them is run again. What has a name in the notebook goes by that name, so that a class is one class on both
sides.

The same object gives the same bytes in every process: where code stands, and cloudpickle's ids of classes, are kept in
lists beside the pickle.
"""

from __future__ import annotations

import abc
import copyreg
import enum
import functools
import io
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import cloudpickle

from ...core.code import canonical
from ...core.definitions import fill, make
from ...core.payload import VARIABLES, is_tensor, reduce_tensor, stream
from .code import mentioned, names_in_strings
from .places import (
    aliases,
    follow,
    importable_path,
    is_dispatcher,
    is_importable,
    notebook_path,
    path_of_task,
    sentinel,
)
from .stands import Foreign, Shell, Stand, attributes_of
from .watch import EMPTY, INVERTED, LRU_CACHE, Watch, content_of

Names = dict[str, Any]
Links = Mapping[int, tuple[str, int]]


class NeedsSource(Exception):
    """A class whose metaclass a library brings: the library must see it being made."""


@dataclass(slots=True)
class Pickled:
    """An object's bytes, and what was met on the way.

    Attributes:
        early: Names that must be there when it is loaded; `first` ones before.
        shaping: Those of them whose object it holds; `linked`: parts of whose object it holds.
        late: Names that code inside it uses when it runs.
        modules: Submodules that such code reaches by attribute.
        imports: Modules whose functions and classes stand in it by where they can be imported from.
        places: As in `ValueDefinition`.
        kept: The objects of `ValueDefinition.kept`, in that order.
        codes: The outermost code objects inside.
        caches: There is an `lru_cache` in it.
        found: Position in the pickle, and object, by the object's id: what another pickle may refer to.
        named: What stands in it by its name.
        root: The object's own position; -1 if it has none.
    """

    data: bytes
    early: set[str]
    first: set[str]
    shaping: set[str]
    linked: set[str]
    late: set[str]
    modules: set[str]
    imports: set[str]
    places: list[tuple[str, int]]
    kept: list[Any]
    codes: list[types.CodeType]
    watch: Watch
    caches: bool
    found: dict[int, tuple[int, Any]]
    named: dict[str, Any]
    root: int


def pickle_value(
    value: object,
    scope: Names,
    *,
    name: str = "",
    links: Links | None = None,
    forced: bool = False,
    aliases: Callable[[], dict[int, str]] | None = None,
) -> Pickled:
    """`value` by value, as seen from the globals `scope`.

    Args:
        name: What it is called there; it is not replaced by its own name. For a dictionary of objects that need each
            other to be made, all of their names, joined by "+".
        links: By id, objects that belong to what another name stands for: that name, and the position in its pickle.
        forced: Do without `NeedsSource`.
        aliases: `places.aliases` of the globals, where somebody has it.

    Raises:
        NeedsSource: `value` is a class that only its text can make.
        Exception: Whatever pickling a part of it raises.
    """
    pickler = _pickler(scope, name, value, links or {})
    pickler.forced = forced
    pickler.find_aliases = aliases
    pickler.dump(value)
    pickler.watch.value(value)
    return pickler.pickled()


def _pickler(scope: Names, name: str, root: object, links: Links) -> _ByValue:
    return (_Linked if links else _ByValue)(scope, name, root, links)


def bytes_of(scope: Names, name: str, root: object, links: Links, value: object) -> bytes:
    """For `Watch`: a part of `root` alone, which refers to the whole by its name; or all of it."""
    pickler = _pickler(scope, name if value is root else "", value, links)
    pickler.watch = Watch(lambda value: b"")  # a class may keep its instances there, whose class it is
    pickler.dump(value)
    return pickler.file.getvalue()


class _ByValue(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, scope: Names, name: str, root: object, links: Links) -> None:
        self.file = io.BytesIO()
        super().__init__(self.file, protocol=5)
        self.links = links
        self.forced = False
        self._scope = scope
        self._own = frozenset(name.split("+"))
        self._root = root
        self._roots = set(map(id, root.values())) if "+" in name and isinstance(root, dict) else {id(root)}
        self._early: set[str] = set()
        self._first: set[str] = set()
        self._shaping: set[str] = set()
        self._linked: set[str] = set()
        self._late: set[str] = set()
        self._modules: set[str] = set()
        self._imports: set[str] = set()
        self._places: list[tuple[str, int]] = []
        self._kept: list[Any] = []
        self._codes: list[types.CodeType] = []
        self._caches = False
        self.find_aliases: Callable[[], dict[int, str]] | None = None
        self._aliases: dict[int, str] | None = None
        self._by_names: dict[str, Any] = {}
        self._inlined: dict[int, Any] = {}
        self._shells: dict[int, Shell] = {}  # of cells
        self._filled: set[int] = set()
        self._foreign: dict[int, Foreign] = {}
        self._notebook = Stand("globals")
        self.watch = Watch(functools.partial(bytes_of, scope, name, root, links))

    def pickled(self) -> Pickled:
        memo = self.memo.copy()
        named = set(map(id, self._by_names.values()))
        found = {k: (index, obj) for k, (index, obj) in memo.items() if k not in named and self._is_shareable(k, obj)}
        for key, shell in self._shells.items():
            if (entry := memo.get(id(shell))) is not None:
                found[key] = (entry[0], shell.cell)
        late = self._late - self._early - self._own
        root = memo.get(id(self._root))
        return Pickled(
            self.file.getvalue(), self._early, self._first, self._shaping, self._linked, late, self._modules,
            self._imports, self._places, self._kept, self._codes, self.watch, self._caches, found, self._by_names,
            -1 if root is None else root[0],
        )  # fmt: skip

    def _is_shareable(self, key: int, obj: object) -> bool:
        if isinstance(obj, types.FunctionType | type | LRU_CACHE):
            return key in self._inlined
        return not isinstance(obj, _NEVER_SHARED)

    # --- reducing

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is types.FunctionType:
            return self._function(obj)
        if kind is types.CodeType:
            return self._code(obj)
        if issubclass(kind, type):
            return self._class(obj)
        if kind is types.CellType:
            return make, ("cell_of", self._shell(obj, -1, 0)), self._unfilled([obj]), None, None, fill
        if kind is LRU_CACHE:
            return self._lru_cache(obj)
        if hasattr(kind, "__flyte_capture__"):
            return self._task(obj)
        if isinstance(obj, Stand):
            return obj.reduced()
        if isinstance(obj, enum.Enum):
            return self._member(obj)
        if is_tensor(kind):  # torch's own pickle holds an address
            return reduce_tensor(obj)
        if kind in _VARIABLES:
            return self._variable(obj)
        if kind is staticmethod or kind is classmethod:
            function: Any = obj.__func__
            own = {name: value for name, value in vars(obj).items() if getattr(function, name, EMPTY) is not value}
            own.pop("__wrapped__", None)
            return make, ("method", kind, obj.__func__), own, None, None, fill
        if kind is functools.cached_property:
            return make, ("cached_property", obj.func), (obj.attrname, obj.__doc__), None, None, fill
        if (path := self._named(obj)) is not None:
            return self._by_name(path, obj)
        if (place := sentinel(obj) or stream(obj)) is not None:
            return make, ("import", *place)
        return super().reducer_override(obj)

    def _named(self, obj: Any) -> str | None:
        if id(obj) in self._roots:
            return None
        path = notebook_path(obj, self._scope)
        if path is None and isinstance(obj, types.FunctionType | type | LRU_CACHE):
            if self._aliases is None:
                self._aliases = aliases(self._scope) if self.find_aliases is None else self.find_aliases()
            path = self._aliases.get(id(obj))
        # What is called by the name itself, or is a part of that, would be defined by itself.
        return None if path is None or path.partition(".")[0] in self._own else path

    def _is_importable(self, obj: object) -> bool:
        path = importable_path(obj)
        if path is not None:
            self._imports.add(path[0])
        return path is not None

    def _by_name(self, path: str, obj: Any) -> Any:
        root = path.partition(".")[0]
        self._by_names[path] = obj
        self._early.add(root)
        self._shaping.add(root)
        return make, ("name", path)

    def _function(self, function: types.FunctionType) -> Any:
        if (path := self._named(function)) is not None:
            return self._by_name(path, function)
        if is_dispatcher(function) and not is_importable(function.__module__):
            registry: Any = function.registry  # type: ignore[attr-defined]
            self._inlined[id(function)] = function
            self.watch.mapping(registry)
            return make, ("dispatching", registry[object]), list(registry.items()), None, None, fill
        if self._is_importable(function):
            return NotImplemented
        self._inlined[id(function)] = function
        self.watch.function(function)
        if function is self._root:  # it is made with its cells
            self._first.update(self.links[id(cell)][0] for cell in function.__closure__ or () if id(cell) in self.links)
        code = function.__code__
        closure = function.__closure__
        names = self._globals(function)
        if not (isinstance(names, Stand) and names.is_module):
            self._codes.append(code)
        index = self._keep(function)
        shells = None if closure is None else tuple(self._shell(cell, index, n) for n, cell in enumerate(closure))
        made = "function", index, code, names, function.__name__, shells
        state = {
            "module": function.__module__,
            "qualname": function.__qualname__,
            "doc": function.__doc__,
            "defaults": function.__defaults__,
            "keywords": function.__kwdefaults__,
            "annotations": self._annotations(function),
            "attributes": dict(function.__dict__),
            "cells": self._unfilled(closure or ()),
            "globals": self._subset(function),
        }
        if getattr(function, "__type_params__", ()):  # Python 3.12
            state["type_params"] = getattr(function, "__type_params__")  # noqa: B009
        return make, made, state, None, None, fill

    def _globals(self, function: types.FunctionType) -> Any:
        names = function.__globals__
        if names is self._scope:
            self._uses(function.__code__)
            return self._notebook
        module = names.get("__name__")
        if isinstance(module, str) and is_importable(module) and vars(sys.modules[module]) is names:
            # Names that no file can have were put there by what rewrote it, as pytest does.
            used = mentioned(function.__code__).names
            odd = {name: names[name] for name in used if name[:1] == "@" and name in names}
            return Stand("module_globals", module, odd, is_module=True)
        foreign = self._foreign.get(id(names))
        if foreign is None:
            foreign = self._foreign[id(names)] = Foreign(self._keep(None), names)
        return foreign

    def _subset(self, function: types.FunctionType) -> Names | None:
        """Of the globals of a function that belongs to no module, and not to the notebook: those that it uses."""
        names = function.__globals__
        if id(names) not in self._foreign:
            return None
        used = mentioned(function.__code__)
        self._modules.update(used.submodules(names.get))
        self.watch.globals(names, used.names)
        return {name: names[name] for name in sorted(used.names) if name in names}

    def _uses(self, code: types.CodeType) -> None:
        used = mentioned(code)
        self._late |= used.names
        self._modules.update(used.submodules(self._scope.get))

    def _annotations(self, function: types.FunctionType) -> Any:
        """They go by name even where a name means another class by now: a loader keeps what it has loaded then."""
        found = function.__annotations__
        self._late |= names_in_strings(found)
        if all(isinstance(each, str | None) or (type(each) is type and each in _PLAIN) for each in found.values()):
            return found
        pickler = _Lenient(self._scope, "+".join(self._own), None, {})
        pickler._places, pickler._kept, pickler._codes = self._places, self._kept, self._codes
        try:
            pickler.dump(found)
        except Exception:  # nothing that runs needs them
            return {name: str(value) for name, value in found.items()}
        self._early |= pickler._early
        self._late |= pickler._late
        self._modules |= pickler._modules
        return pickler.file.getvalue()

    def _keep(self, obj: Any) -> int:
        """Where the object's own identity goes."""
        self._kept.append(obj)
        return len(self._kept) - 1

    def _shell(self, cell: types.CellType, function: int, number: int) -> Shell:
        """The cell, empty; it is that function's variable of that number."""
        shell = self._shells.get(id(cell))
        if shell is None:
            shell = self._shells[id(cell)] = Shell(cell, self._keep(None), function, number)
        return shell

    def _unfilled(self, cells: Any) -> list[tuple[Shell, Any]]:
        """What is in those cells that no other function has announced."""
        found: list[tuple[Shell, Any]] = []
        for cell in cells:
            if id(cell) not in self._filled:
                self._filled.add(id(cell))
                if (content := content_of(cell)) is not EMPTY:
                    found.append((self._shells[id(cell)], content))
        return found

    def _code(self, code: types.CodeType) -> Any:
        self._places.append((code.co_filename, code.co_firstlineno))
        return make, ("code", len(self._places) - 1, canonical(code))

    def _class(self, cls: Any) -> Any:
        if (path := self._named(cls)) is not None:
            return self._by_name(path, cls)
        if not cls.__flags__ & _HEAP_TYPE or self._is_importable(cls):
            return super().reducer_override(cls)
        if is_importable(type(cls).__module__) and type(cls).__module__ not in _PLAIN_METACLASSES:
            if cls is self._root and not self.forced:
                raise NeedsSource
            return super().reducer_override(cls)
        self._inlined[id(cls)] = cls
        self.watch.cls(cls)
        attributes = attributes_of(cls)
        skeleton: Names = {name: attributes.pop(name) for name in _SKELETON if name in attributes}
        skeleton["__qualname__"] = cls.__qualname__
        registered: list[Any] = []
        if isinstance(cls, abc.ABCMeta):
            found = [reference() for reference in abc._get_dump(cls)[0]]  # type: ignore[attr-defined]
            registered = sorted(filter(None, found), key=lambda virtual: (virtual.__module__, virtual.__qualname__))
        self._late |= names_in_strings(attributes.get("__annotations__", {}))
        if cls is self._root:
            self._before(cls)
        made = "class", self._keep(cls), type(cls), cls.__name__, cls.__bases__, skeleton
        return make, made, (attributes, registered), None, None, fill

    def _before(self, cls: Any) -> None:
        """Note the names of what must be there before this class can be."""
        for needed in (*cls.__bases__, type(cls)):
            if (path := self._named(needed)) is not None:
                self._first.add(path.partition(".")[0])
            elif needed.__flags__ & _HEAP_TYPE and importable_path(needed) is None:
                self._before(needed)

    def _member(self, member: enum.Enum) -> Any:
        cls = type(member)
        if id(cls) not in self._inlined:
            # By the class, whatever its `_missing_` or its values do.
            members: dict[str, Any] = cls._member_map_
            is_named = members.get(member.name) is member
            return (make, ("member", cls, member.name)) if is_named else super().reducer_override(member)
        base: Any = cls._member_type_  # type: ignore[attr-defined]
        arguments: tuple[Any, ...] = ()
        if base is not object:
            function, arguments, *_ = base.__reduce_ex__(member, 2)
            if function is _NEW_OBJECT:
                arguments = arguments[1:]
        own = {name: value for name, value in vars(member).items() if name != INVERTED}
        return make, ("raw_member", cls, base, arguments), own, None, None, fill

    def _lru_cache(self, cached: Any) -> Any:
        if (path := self._named(cached)) is not None:
            return self._by_name(path, cached)
        if self._is_importable(cached):
            return NotImplemented
        self._inlined[id(cached)] = cached
        self._caches = True
        parameters = cached.cache_parameters()
        attributes = {name: value for name, value in vars(cached).items() if name not in _OF_A_WRAPPER}
        made = "cached", self._keep(cached), cached.__wrapped__, parameters["maxsize"], parameters["typed"]
        return make, made, attributes, None, None, fill

    def _task(self, task: Any) -> Any:
        if (path := self._named(task)) is not None:
            return self._by_name(path, task)
        bare, wrap = type(task).__flyte_capture__(task)
        if (place := path_of_task(bare, task)) is not None:
            return make, ("import", *place)
        return make, ("wrap", self._keep(None), wrap, bare)

    def _variable(self, variable: Any) -> Any:
        name = variable.__name__
        if self._scope.get(name) is variable and name not in self._own:
            return self._by_name(name, variable)
        module = sys.modules.get(str(variable.__module__))
        if module is not None and is_importable(module.__name__) and vars(module).get(name) is variable:
            return make, ("import", module.__name__, name)
        arguments: tuple[Any, ...] = ()
        options: Names = {}
        if isinstance(variable, typing.NewType):
            arguments = (variable.__supertype__,)
        elif not isinstance(variable, typing.TypeVarTuple):
            options = {"covariant": variable.__covariant__, "contravariant": variable.__contravariant__}
            options["bound"] = variable.__bound__
            arguments = getattr(variable, "__constraints__", ())
        made = self._keep(variable), type(variable), name, variable.__module__, arguments, options
        return make, ("variable", *made)


class _Linked(_ByValue):
    """Some objects belong to other pickles. Asking for each object is slow, so there are two classes."""

    def persistent_id(self, obj: Any) -> tuple[str, int] | None:
        shared = obj.cell if type(obj) is Shell else obj
        link = self.links.get(id(shared))
        if link is not None:
            self._early.add(link[0])
            self._linked.add(link[0])
            if type(obj) is Shell:
                self._filled.add(id(shared))
        return link


class _Lenient(_ByValue):
    """For annotations."""

    def _named(self, obj: Any) -> str | None:
        path = getattr(obj, "__qualname__", None)
        if isinstance(obj, type) and isinstance(path, str) and obj.__module__ == self._scope.get("__name__"):
            found = follow(self._scope, path)
            if isinstance(found, type):
                return path
        return super()._named(obj)


_HEAP_TYPE: Final = 1 << 9
_NEW_OBJECT: Final[Any] = copyreg.__newobj__  # type: ignore[attr-defined]
_NEVER_SHARED: Final = (
    str, bytes, int, float, complex, tuple, frozenset, range, type(None), types.BuiltinFunctionType, types.CodeType,
    types.ModuleType, Stand, enum.Enum, memoryview, types.MemberDescriptorType, types.GetSetDescriptorType,
    types.WrapperDescriptorType, types.MethodDescriptorType,
)  # fmt: skip
"""What cannot change, and what text and bytes are made of on the other side."""
_PLAIN_METACLASSES: Final = frozenset({"builtins", "abc", "enum", "typing", "_py_abc", "typing_extensions"})
_PLAIN: Final = frozenset({int, float, bool, str, bytes, list, dict, tuple, set, object})
_SKELETON: Final = ("__module__", "__slots__", "__orig_bases__", "__doc__")
_OF_A_WRAPPER: Final = frozenset({*functools.WRAPPER_ASSIGNMENTS, "__wrapped__"})
_VARIABLES: Final = frozenset(VARIABLES)
