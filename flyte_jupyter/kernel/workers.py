"""Worker processes that a task starts get what the notebook defines by value: they cannot import it.

joblib and loky do so by themselves. The pickler of multiprocessing, which serves spawned and fork-server processes,
pools, queues and torch's DataLoader, is taught it here as soon as something imports it; in a worker, when the first
such object comes.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any, Final

from ..core.definitions import ORIGIN
from ..core.payload import follow
from . import seams

_LRU_CACHE: Final[Any] = type(functools.lru_cache(len))


def install() -> None:
    """Teach multiprocessing, now or when it is imported; once is enough."""
    _when_imported(
        {
            "multiprocessing.reduction": _teach_pickler,
            "multiprocessing.spawn": _keep_main,
            "cloudpickle.cloudpickle": _teach_caches,
            "joblib.externals.cloudpickle.cloudpickle": _teach_caches,
        }
    )


def _teach_pickler(reduction: Any) -> None:
    reduction.ForkingPickler.reducer_override = _reducer_override


def _reducer_override(pickler: Any, obj: Any) -> Any:
    if isinstance(obj, type | FunctionType) and _goes_by_value(obj):
        seams.prepare_pickler(pickler)
        by_value = seams.reduce_class(obj) if isinstance(obj, type) else seams.reduce_function(pickler, obj)
        return _reduced(obj, *by_value)
    if isinstance(obj, type) and obj.__module__ == "builtins":  # `code` and others that are not where they say
        return seams.reduce_builtin_class(obj)
    return _reduce_cached(obj) if isinstance(obj, _LRU_CACHE) else NotImplemented


def _goes_by_value(obj: Any) -> bool:
    """Whether it is the notebook's, or a function that no module has: methods of a namedtuple say otherwise."""
    if obj.__module__ == "__main__" or isinstance(obj, type):
        return bool(obj.__module__ == "__main__")
    return follow(vars(sys.modules.get(obj.__module__, sys)), obj.__qualname__) is not obj


def _teach_caches(cloudpickle: Any) -> None:
    """It takes a cached function for one that can be imported."""
    seams.teach_type(cloudpickle, _LRU_CACHE, _reduce_cached)


def _reduce_cached(obj: Any) -> Any:
    if getattr(obj, "__module__", None) != "__main__":
        return obj.__reduce__()
    parameters = obj.cache_parameters()
    return cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])


def _reduced(
    obj: Any,
    maker: Callable[..., Any],
    arguments: tuple[Any, ...],
    state: Any,
    _: None,
    __: None,
    setter: Callable[..., Any],
) -> Any:
    origin = getattr(obj, "__globals__", {}).get(ORIGIN)
    home = "" if origin is None else _key(origin)
    return make, (home, obj.__qualname__, id(obj), maker, *arguments), (setter, state), None, None, fill


def _key(origin: Any) -> str:
    return f"{origin.notebook_id}:{origin.process.token}:{id(origin)}"


def _here() -> Any:
    """The names of the notebook whose task runs here: in a replica, and in what is forked from it."""
    return getattr(sys.modules["__main__"], ORIGIN, None)


_homes: Final[dict[str, dict[str, Any]]] = {}
"""In a worker that was not forked: the globals of each notebook that has sent it functions, and what they have set."""
_received: Final[dict[int, dict[str, Any]]] = {}
"""By the id of such globals, the plain values that came last."""


def make(home: str, path: str, identity: int, maker: Callable[..., Any], *arguments: Any) -> Any:
    """A class or function without its state. In the worker: what it sends back goes by value, too."""
    install()
    origin = _here()
    is_home = origin is not None and home == _key(origin)
    known = None if origin is None else _bare(follow(origin.names, path))
    if is_home and id(known) == identity:
        return known  # the process is forked from the notebook's, and has it already
    if isinstance(known, type) and seams.class_tracker(known) in arguments:
        return known
    if home:
        code, head, *rest = arguments
        return maker(code, origin.names if is_home else _homes.setdefault(home, head), *rest)
    return maker(*arguments)


def fill(made: Any, state: tuple[Callable[..., Any], Any]) -> None:
    """Give it its state, unless the process has it already. Names that a worker's initializer has set stay."""
    setter, given = state
    origin = _here()
    if origin is not None and _bare(follow(origin.names, made.__qualname__)) is made:
        return
    if isinstance(made, FunctionType):
        there, sent = made.__globals__, given[1]["__globals__"]
        if ORIGIN in there:
            fresh = {name: value for name, value in sent.items() if name not in there}
        else:
            last = _received.setdefault(id(there), {})
            fresh = {
                n: value for n, value in sent.items() if n not in there or n not in last or not _same(last[n], value)
            }
            last.update((name, value) for name, value in sent.items() if type(value) in _PLAIN)
        given[1]["__globals__"] = fresh
    setter(made, given)


def _bare(found: Any) -> Any:
    return found.__wrapped__ if isinstance(found, _LRU_CACHE) else found


def _same(last: Any, value: Any) -> bool:
    return type(last) is type(value) and last == value


_PLAIN: Final = frozenset({int, float, bool, str, bytes, type(None)})


def cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    """A function with a cache: the one that the process has, or an empty one."""
    known = follow(function.__globals__, function.__qualname__)
    if isinstance(known, _LRU_CACHE) and known.__wrapped__ is function:
        return known
    return functools.lru_cache(maxsize, typed)(function)


def _keep_main(spawn: Any) -> None:
    prepare: Callable[..., dict[str, Any]] = spawn.get_preparation_data

    @functools.wraps(prepare)
    def without_main(*arguments: Any) -> dict[str, Any]:
        found = prepare(*arguments)
        # Else a worker would run the script whose task has started it.
        found.pop("init_main_from_path", None)
        found.pop("init_main_from_name", None)
        return found

    spawn.get_preparation_data = without_main


# --- as soon as a module is imported


class _Watcher:
    """A finder of modules that finds nothing itself, and does something when certain ones are imported."""

    def __init__(self) -> None:
        self.waiting: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        then = self.waiting.pop(name, None)
        spec = None if then is None else importlib.util.find_spec(name)
        if then is None or spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            then(module)

        loader.exec_module = exec_module
        return spec


_watcher: Final = _Watcher()


def _when_imported(wanted: dict[str, Callable[[ModuleType], None]]) -> None:
    if _watcher in sys.meta_path:
        return
    sys.meta_path.insert(0, _watcher)
    for name, then in wanted.items():
        if name in sys.modules:
            then(sys.modules[name])
        else:
            _watcher.waiting[name] = then
