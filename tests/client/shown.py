"""What can be seen of an object, as plain data that two worlds can compare. Imports little: replicas import it."""

from __future__ import annotations

import types
from typing import Any


def show(value: Any, depth: int = 4) -> Any:
    """What can be seen of an object, as plain data that two worlds can compare."""
    if depth == 0:
        return "..."
    if value is None or isinstance(value, int | float | str | bytes | bool):
        return f"{type(value).__name__}:{value!r}" if type(value) in _PLAIN else [type(value).__name__, str(value)]
    if isinstance(value, list | tuple):
        return [type(value).__name__, *(show(each, depth - 1) for each in value)]
    if isinstance(value, dict):
        return ["dict", *((show(key, 1), show(each, depth - 1)) for key, each in value.items())]
    if isinstance(value, set | frozenset):
        return [type(value).__name__, *sorted(map(repr, value))]
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__, {n: show(v, depth - 1) for n, v in vars(value).items() if n[:1] != "_"}]
    if isinstance(value, type):
        return _class(value, depth)
    if callable(value) and hasattr(value, "__name__"):
        return _function(value, depth)
    return ["instance", type(value).__name__, show(getattr(value, "__dict__", {}), depth - 1), _methods(value, depth)]


_PLAIN = (int, float, str, bytes, bool, type(None))


def _function(function: Any, depth: int) -> Any:
    attributes = (
        {k: v for k, v in vars(function).items() if k != "__wrapped__"} if hasattr(function, "__dict__") else {}
    )
    return [
        "function",
        function.__name__,
        function.__module__,
        show(getattr(function, "__defaults__", None), depth - 1),
        show(getattr(function, "__kwdefaults__", None), depth - 1),
        show(attributes, depth - 1) if not hasattr(function, "cache_info") else None,
        _call(function, depth),
    ]


def _call(function: Any, depth: int, *arguments: Any) -> Any:
    try:
        return show(function(*arguments), depth - 1)
    except RecursionError:
        return "recursion"
    except Exception as error:
        return [type(error).__name__, str(error)]


def _class(cls: Any, depth: int) -> Any:
    shown = {
        name: show(value, depth - 1)
        for name, value in sorted(vars(cls).items())
        if name[:1] != "_" and not isinstance(value, property | types.MemberDescriptorType)
        and not isinstance(value, classmethod | staticmethod) and type(value).__name__ != "_tuplegetter"
        and not isinstance(value, types.FunctionType)
    }  # fmt: skip
    bases = [base.__name__ for base in cls.__mro__]
    made = _call(cls, depth) if depth > 1 else None
    return ["class", cls.__qualname__, cls.__module__, type(cls).__name__, bases, shown, made]


def _methods(value: Any, depth: int) -> Any:
    found = {}
    for name in sorted(dir(type(value))):
        if name[:1] != "_":
            try:
                attribute = getattr(value, name)
            except Exception as error:
                found[name] = [type(error).__name__, str(error)]
                continue
            found[name] = _call(attribute, depth) if callable(attribute) else show(attribute, depth - 1)
    return found
