"""Warm Jupyter kernels for Flyte tasks: `import flyte_jupyter as flyte`."""

from typing import Any as _Any

from . import errors
from ._version import __version__
from .client.environment import Task, TaskEnvironment
from .client.handle import PoolHandle, pool
from .client.image import Image
from .client.runs import Run, ctx, group, init, init_from_config, logger, map, run, trace, with_runcontext
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


def _view(pool: PoolHandle) -> dict[str, _Any]:
    from .widgets import view

    return view(pool)


PoolHandle.view = staticmethod(_view)


def load_ipython_extension(shell: _Any) -> None:
    """`%load_ext flyte_jupyter`: the magics."""
    from .magics import load

    load(shell)


def unload_ipython_extension(shell: _Any) -> None:
    """`%unload_ext flyte_jupyter`."""
    from .magics import unload

    unload(shell)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "flyte_jupyter.server"}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    return [{"src": "labextension", "dest": "flyte-jupyter"}]
