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
    if isinstance(obj, type | FunctionType) and obj.__module__ == "__main__":
        from cloudpickle import Pickler
        from cloudpickle.cloudpickle import _dynamic_class_reduce

        if "globals_ref" not in vars(pickler):  # what cloudpickle's way of reducing a function asks its pickler for
            pickler.globals_ref = {}
            pickler._function_getnewargs = functools.partial(Pickler._function_getnewargs, pickler)
            # Code, cells, properties and other parts of them.
            pickler.dispatch_table = {**Pickler.dispatch_table, **pickler.dispatch_table}
        is_class = isinstance(obj, type)
        return _reduced(*(_dynamic_class_reduce(obj) if is_class else Pickler._dynamic_function_reduce(pickler, obj)))
    if isinstance(obj, type) and obj.__module__ == "builtins":  # `code` and others that are not where they say
        from cloudpickle.cloudpickle import _class_reduce

        return _class_reduce(obj)
    return _reduce_cached(obj) if isinstance(obj, _LRU_CACHE) else NotImplemented


def _teach_caches(cloudpickle: Any) -> None:
    """It takes a cached function for one that can be imported."""
    cloudpickle.Pickler._dispatch_table[_LRU_CACHE] = _reduce_cached


def _reduce_cached(obj: Any) -> Any:
    if getattr(obj, "__module__", None) != "__main__":
        return obj.__reduce__()
    parameters = obj.cache_parameters()
    return cached, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])


def _reduced(
    maker: Callable[..., Any], arguments: tuple[Any, ...], state: Any, _: None, __: None, setter: Callable[..., Any]
) -> Any:
    return make, (maker, *arguments), state, None, None, setter


def make(maker: Callable[..., Any], *arguments: Any) -> Any:
    """A class or function without its state. In the worker: what it sends back goes by value, too."""
    install()
    return maker(*arguments)


def cached(function: Any, maxsize: int | None, typed: bool) -> Any:
    """A function with a cache of its own, which is empty."""
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
