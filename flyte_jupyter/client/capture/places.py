"""Where an object can be found by a name: in a module that can be imported, or in the notebook."""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Mapping
from types import CodeType
from typing import Any

from ..identity import ipython
from .watch import LRU_CACHE

Names = dict[str, Any]


def is_importable(module: str | None) -> bool:
    """Whether another process that has this one's `sys.path` can be expected to import the module."""
    if module is None or module in ("__main__", "__mp_main__"):
        return False
    found = sys.modules.get(module)
    if found is None:
        return False
    # If it is not loaded, or another thread is loading it just now, nothing is registered.
    registry = getattr(sys.modules.get("cloudpickle.cloudpickle"), "list_registry_pickle_by_value", None)
    if registry is not None:
        by_value = registry()
        if any(module == name or module.startswith(f"{name}.") for name in by_value):
            return False
    # A module that a program made has none of these; one that a package made (six.moves) has a parent.
    made_by_import = any(getattr(found, name, None) for name in ("__spec__", "__loader__", "__file__"))
    return made_by_import or is_importable(module.rpartition(".")[0] or None)


def importable_path(obj: object) -> tuple[str, str] | None:
    """The module and the dotted attribute under which any process finds this very object."""
    module, path = _attribute(obj, "__module__"), _attribute(obj, "__qualname__")
    if not isinstance(module, str) or not isinstance(path, str) or not is_importable(module):
        return None
    return (module, path) if follow(vars(sys.modules[module]), path) is obj else None


def _attribute(obj: object, name: str) -> Any:
    """An object's attribute, or None: a `__getattr__` of the user's may raise anything, as `dict.__getitem__` does."""
    try:
        return getattr(obj, name, None)
    except Exception:
        return None


_IPYTHON_ONLY = re.compile(r"_{1,3}|_i{1,3}|_i?\d+|_[iod]h|In|Out|get_ipython")


def is_ipython(name: str, obj: Any) -> bool:
    """Names that IPython keeps in every notebook; a replica has its own, and `_` may hold anything.

    A user may give them to something else: `_ = gettext.gettext`, `class In`, or in a script, where no IPython is.
    """
    if _IPYTHON_ONLY.fullmatch(name):
        shell: Any = ipython()
        if name == "get_ipython" or shell is None:
            return name == "get_ipython"
        if name in ("In", "Out"):
            return obj is shell.user_ns.get(f"_{name[0].lower()}h")
        return name.strip("_") != "" or not hasattr(shell.displayhook, name) or obj is getattr(shell.displayhook, name)
    # IPython puts its own `open` among the names of a notebook; a user's function of that name is theirs.
    if name in ("exit", "quit", "open"):
        module = getattr(obj, "__globals__", {}).get("__name__") or type(obj).__module__
        return str(module).startswith("IPython.")
    return False


def is_dispatcher(obj: object) -> bool:
    """Whether `functools.singledispatch` made it: what was registered later is not in its source."""
    code = getattr(obj, "__code__", None)
    return isinstance(code, CodeType) and code.co_qualname == "singledispatch.<locals>.wrapper"


def path_of_task(bare: Any, task: Any = None) -> tuple[str, str] | None:
    """Where to import the task from that a module made of this function."""
    module, path = getattr(bare, "__module__", None), getattr(bare, "__qualname__", None)
    if not isinstance(path, str) or not is_importable(module):
        return None
    found = vars(sys.modules[str(module)]).get(path)
    capture = getattr(type(found), "__flyte_capture__", None)
    same = found is task if task is not None else capture is not None and capture(found)[0] is bare
    return (str(module), path) if same else None


def follow(names: Mapping[str, Any], path: str) -> object:
    """The object at a dotted path, or None."""
    root, *attributes = path.split(".")
    if root not in names:  # None has attributes, too: `object.__init__` is one
        return None
    found = names[root]
    for attribute in attributes:
        if found is None:  # which has the attributes that every object has: `object.__hash__`
            return None
        # What a class inherits is its parent's.
        found = (
            vars(found).get(attribute) if isinstance(found, type) else inspect.getattr_static(found, attribute, None)
        )
        if isinstance(found, classmethod):  # looking it up makes another object each time
            return None
        if isinstance(found, staticmethod):
            found = found.__func__
    return found


def notebook_path(obj: object, names: Names) -> str | None:
    """Where among the notebook's names this function, class or task is; None if nowhere, or if importable."""
    capture = getattr(type(obj), "__flyte_capture__", None)
    if capture is not None:
        obj_name = getattr(capture(obj)[0], "__name__", None)
        return obj_name if obj_name is not None and names.get(obj_name) is obj else None
    if not callable(obj):
        return None
    path = _attribute(obj, "__qualname__")
    if not isinstance(path, str) or is_importable(_attribute(obj, "__module__")):
        return None
    # IPython takes `_` back, and every replica has its own.
    return path if follow(names, path) is obj and not is_ipython(path, obj) else None


def aliases(names: Names) -> dict[int, str]:
    """By id, functions and classes that no module has, and what the notebook calls them: `g = make(5)`."""
    found: dict[int, str] = {}
    for name, value in list(names.items()):
        is_code = isinstance(value, types.FunctionType | type | LRU_CACHE)
        if is_code and importable_path(value) is None and not is_ipython(name, value):
            found.setdefault(id(value), name)
    return found


def sentinel(obj: Any) -> tuple[str, str] | None:
    """Where an importable module keeps this very object, if it has no content: `dataclasses.MISSING`."""
    cls: Any = type(obj)
    if (
        cls.__reduce_ex__ is not object.__reduce_ex__
        or cls.__reduce__ is not object.__reduce__
        or cls.__getstate__ is not object.__getstate__
        or cls.__basicsize__ > object.__basicsize__ + 16
        or _attribute(obj, "__dict__")
        or not is_importable(cls.__module__)
    ):
        return None
    for name, value in list(vars(sys.modules[cls.__module__]).items()):
        if value is obj:
            return cls.__module__, name
    return None
