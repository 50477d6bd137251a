"""The options of a task: one table of their names, types and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from ..core.policy import Cache, RetryStrategy, ReusePolicy, SecretRequest, Timeout, secret_names
from ..core.resources import Resources, cpu_cores, device_request, memory_bytes
from ..core.spec import EnvironmentSpec

TimeoutType = Timeout | int | timedelta
MAX_INLINE_IO_BYTES = 10 * 1024 * 1024


class Options:
    """Effective values: whoever makes a task has resolved environment < task < override."""

    short_name: str = ""
    cache: Cache = Cache("disable")
    retries: RetryStrategy = RetryStrategy(0)
    timeout: TimeoutType = 0
    docs: Any = None
    pod_template: Any = None
    report: bool = False
    interruptible: bool = False
    max_inline_io_bytes: int = MAX_INLINE_IO_BYTES
    queue: str | None = None
    service_account: str | None = None
    triggers: tuple[Any, ...] = ()
    links: tuple[Any, ...] = ()
    task_resolver: Any = None
    entrypoint: bool = False
    produces_artifacts: bool = False
    resources: Resources | None = None
    env_vars: dict[str, str] | None = None
    secrets: SecretRequest | None = None
    reusable: ReusePolicy | None = None

    def options(self) -> dict[str, Any]:
        """Return all of them by name."""
        return {name: getattr(self, name) for name in OPTIONS}

    def stated(self) -> dict[str, Any]:
        """Return those that are not the defaults."""
        return {name: value for name, value in self.options().items() if value is not getattr(Options, name)}


OPTIONS = tuple(Options.__annotations__)
OF_THE_ENVIRONMENT = ("resources", "env_vars", "secrets", "reusable")
"""A task gets them from its environment, or by an override."""


def pool_spec(
    *,
    name: str,
    interpreter: str,
    resources: Resources | None,
    env_vars: Mapping[str, object] | None,
    secrets: SecretRequest | None,
    reusable: ReusePolicy | None,
) -> EnvironmentSpec:
    """Return what makes the pool of these options the pool it is; `interpreter` is the path of a Python."""
    cores = cpu_cores(resources.cpu) if resources else None
    return EnvironmentSpec(
        name=name,
        interpreter=interpreter,
        devices=device_request(resources),
        cpu=None if cores is None else f"{cores:g}",
        memory_bytes=memory_bytes(resources.memory) if resources else None,
        shm=resources.shm if resources else None,
        env_vars=tuple(sorted((str(key), str(value)) for key, value in (env_vars or {}).items())),
        secrets=secret_names(secrets),
        single_use=not reusable,
    )
