"""The pool of an environment, for its user."""

from __future__ import annotations

from collections.abc import Sequence

from .environment import TaskEnvironment
from .handle import PoolHandle, handle_of


def pool(environment: TaskEnvironment, *, preimport: Sequence[str] | None = None) -> PoolHandle:
    """Return the handle of an environment's pool of warm kernels. Starts nothing.

    Args:
        preimport: Modules, such as "torch", that are imported once in the process that replicas are forked from: a new
            replica then has them at once, and all replicas share their memory. What a preload imports is preimported
            without being named here. Not for modules that start threads or CUDA when they are imported: their
            replicas are started without, and `flyte-jupyter status` says so.

    Raises:
        TypeError: `environment` is not a TaskEnvironment, or `preimport` is not a sequence of names.
        ValueError: The environment has no reusable policy, or a name is not that of a module.

    Example:
        >>> import flyte_jupyter as flyte
        >>> env = flyte.TaskEnvironment("docs", reusable=flyte.ReusePolicy(2))
        >>> flyte.pool(env).name
        'docs'
    """
    if not isinstance(environment, TaskEnvironment):
        raise _no_environment(environment)
    if not environment.reusable:
        raise ValueError(
            f"environment {environment.name!r} has no reusable policy, so each of its calls runs in a fresh kernel; "
            "give it reusable=ReusePolicy(...) to have a pool"
        )
    handle = handle_of(environment)
    if preimport is not None:
        handle.set_preimport(preimport)
    return handle


def _no_environment(given: object) -> TypeError:
    kind = type(given)
    hint = ": declare it with `import flyte_jupyter as flyte`" if kind.__module__.startswith("flyte.") else ""
    return TypeError(f"pool() takes a TaskEnvironment of ours, got {kind.__module__}.{kind.__qualname__}{hint}")
