"""Pickles one value of a notebook. Imports cloudpickle, so `capture` loads it with the first value it meets.

What the notebook defines goes by name, so that a class is one class on each side; code that has no source
goes as its code object and finds its globals in the notebook's module on the replica.
"""

from __future__ import annotations

import functools
import io
import types
from dataclasses import dataclass
from typing import Any

import cloudpickle

from ..core.definitions import notebook_attribute, notebook_globals
from .source import code_references, follow, is_dispatcher, is_importable, is_ipython


@dataclass(frozen=True, slots=True)
class PickledValue:
    """`early` names must be defined before it is loaded, `late` ones are used by code inside it."""

    data: bytes
    early: frozenset[str]
    late: frozenset[str]


def pickle_value(value: object, name: str, names: dict[str, Any]) -> PickledValue:
    """`value`, which is to be called `name` among the `names` of its notebook.

    Raises:
        Exception: Whatever the value's own pickling raises.
    """
    file = io.BytesIO()
    pickler = _ByName(file, name, names)
    pickler.dump(value)
    late = pickler.late - pickler.early - {name}
    return PickledValue(file.getvalue(), frozenset(pickler.early), frozenset(late))


class _ByName(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, name: str, names: dict[str, Any]) -> None:
        super().__init__(file, protocol=5)
        self._name = name
        self._names = names
        self.early: set[str] = set()
        self.late: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        path = notebook_path(obj, self._names)
        if path is not None:
            root = path.partition(".")[0]
            if root != self._name:  # else it would be defined by itself
                self.early.add(root)
                return notebook_attribute, (path,)
        if type(obj) is types.FunctionType and obj.__globals__ is self._names:
            return self._reduce_code(obj)
        if type(obj) is _LRU_CACHE:
            parameters = obj.cache_parameters()
            return _cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])
        if is_dispatcher(obj) and not is_importable(obj.__module__):
            return _dispatching, (obj.registry[object], list(obj.registry.items()))
        return super().reducer_override(obj)

    def _reduce_code(self, function: types.FunctionType) -> Any:
        self.late |= code_references(function.__code__)
        # Cells are filled afterwards: an inner function that calls itself is in one of its own.
        empty = len(function.__closure__ or ())
        contents = [_contents(cell) for cell in function.__closure__ or ()]
        state = {
            "__qualname__": function.__qualname__,
            "__defaults__": function.__defaults__,
            "__kwdefaults__": function.__kwdefaults__,
            "__annotations__": function.__annotations__,
            "__doc__": function.__doc__,
            "__dict__": dict(function.__dict__),
        }
        made = (function.__code__, _Globals(), function.__name__, empty)
        return _make_function, made, (state, contents), None, None, _finish_function


def notebook_path(obj: object, names: dict[str, Any]) -> str | None:
    """Where among the notebook's names this function, class or task is; None if nowhere, or if importable."""
    capture = getattr(type(obj), "__flyte_capture__", None)
    if capture is not None:
        obj_name = getattr(capture(obj)[0], "__name__", None)
        return obj_name if obj_name is not None and names.get(obj_name) is obj else None
    if not callable(obj):
        return None
    path = getattr(obj, "__qualname__", None)
    if not isinstance(path, str) or is_importable(getattr(obj, "__module__", None)):
        return None
    # IPython takes `_` back, and every replica has its own.
    return path if follow(names, path) is obj and not is_ipython(path, obj) else None


class _Globals:
    """Pickles as the notebook's globals, which must not be pickled themselves."""

    def __reduce__(self) -> Any:
        return notebook_globals, ()


def _make_function(code: types.CodeType, names: dict[str, Any], name: str, cells: int) -> types.FunctionType:
    return types.FunctionType(code, names, name, None, tuple(types.CellType() for _ in range(cells)))


def _finish_function(function: types.FunctionType, state: tuple[dict[str, Any], list[Any]]) -> None:
    attributes, contents = state
    for cell, content in zip(function.__closure__ or (), contents, strict=True):
        if content:
            [cell.cell_contents] = content
    function.__dict__.update(attributes.pop("__dict__"))
    for name, value in attributes.items():
        setattr(function, name, value)


def _contents(cell: types.CellType) -> tuple[()] | tuple[Any]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not assigned yet
        return ()


def _cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _dispatching(base: Any, registered: list[tuple[type, Any]]) -> Any:
    function = functools.singledispatch(base)
    for cls, implementation in registered:
        function.register(cls, implementation)
    return function


_LRU_CACHE = type(_cached(_cached, 1, False))
