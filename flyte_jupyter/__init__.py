"""Warm Jupyter kernels for Flyte tasks: `import flyte_jupyter as flyte`.

Each name is imported when it is first used (PEP 562): Jupyter servers, kernels and the command line import this
package, too, and have no use for most of it.
"""

import sys as _sys
import typing as _typing
from importlib import import_module as _import_module

from ._version import __version__
from .client.dispatch import register_calls as _register_calls
from .client.views import register_view as _register_view

if _sys.platform == "win32":
    raise ImportError(
        "flyte_jupyter needs Unix sockets and processes that can be forked and signalled: it runs on Linux and macOS."
        " On Windows, use it inside WSL 2."
    )

if _typing.TYPE_CHECKING:
    from . import errors
    from .client.environment import TaskEnvironment
    from .client.handle import PoolHandle
    from .client.image import Image
    from .client.pools import pool
    from .client.runs import Run, ctx, group, init, init_from_config, logger, map, run, trace, with_runcontext
    from .client.task import Task
    from .core.policy import Backoff, Cache, RetryStrategy, ReusePolicy, Secret, Timeout
    from .core.resources import AMD_GPU, APPLE_SILICON, GPU, HABANA_GAUDI, TPU, Device, Neuron, Resources

__all__ = [
    "AMD_GPU",
    "APPLE_SILICON",
    "GPU",
    "HABANA_GAUDI",
    "TPU",
    "Backoff",
    "Cache",
    "Device",
    "Image",
    "Neuron",
    "PoolHandle",
    "Resources",
    "RetryStrategy",
    "ReusePolicy",
    "Run",
    "Secret",
    "Task",
    "TaskEnvironment",
    "Timeout",
    "__version__",
    "ctx",
    "errors",
    "group",
    "init",
    "init_from_config",
    "logger",
    "map",
    "pool",
    "run",
    "trace",
    "with_runcontext",
]

# The same once more for the interpreter; tests/test_layers.py compares them.
_HOMES = {
    ".client.environment": "TaskEnvironment",
    ".client.handle": "PoolHandle",
    ".client.image": "Image",
    ".client.pools": "pool",
    ".client.runs": "Run ctx group init init_from_config logger map run trace with_runcontext",
    ".client.task": "Task",
    ".core.policy": "Backoff Cache RetryStrategy ReusePolicy Secret Timeout",
    ".core.resources": "AMD_GPU APPLE_SILICON GPU HABANA_GAUDI TPU Device Neuron Resources",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

if not _typing.TYPE_CHECKING:  # a checker would take every misspelt name for one of these

    def __getattr__(name: str) -> _typing.Any:
        if name == "errors":
            return _import_module(".errors", __name__)
        if name not in _HOME_OF:
            unknown = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(unknown, name=name, obj=_sys.modules[__name__])
        found = globals()[name] = getattr(_import_module(_HOME_OF[name], __name__), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _card(pool: _typing.Any) -> dict[str, _typing.Any]:
    from .widgets import view

    return view(pool)


_register_view(_card)


def _remote() -> _typing.Any:
    from .client import remote

    return remote


_register_calls(_remote)


def load_ipython_extension(shell: _typing.Any) -> None:
    """`%load_ext flyte_jupyter`: the magics."""
    from .magics import load

    load(shell)


def unload_ipython_extension(shell: _typing.Any) -> None:
    """`%unload_ext flyte_jupyter`."""
    from .magics import unload

    unload(shell)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "flyte_jupyter.server"}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "flyte-jupyter"}]
