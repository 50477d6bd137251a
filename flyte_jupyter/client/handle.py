"""A pool, for whoever wants more than calling its tasks: preload, warm, scale, keep, stop, status, an executor."""

from __future__ import annotations

import base64
import logging
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, overload

from pydantic import SecretStr

from ..core import protocol as p
from ..core import verbs
from ..core.definitions import Closure, digest_of
from ..core.snapshot import PoolView
from ..core.spec import EnvironmentSpec, Scaling
from ..loader import PreloadFunction
from . import broker
from .capture import Captured
from .capture.preimports import imported_modules, users_modules
from .fresh import fresh_scaling
from .place import Place
from .running import Declared, RunningPool
from .views import View, registered_view

if TYPE_CHECKING:
    from .executor import PoolExecutor

logger = logging.getLogger("flyte")

F = TypeVar("F", bound=Callable[..., Any])

READY_S: Final = 600.0

# What a replica gets of the environment of the notebook that declares its pool: what a process needs to run at all and
# what GPU libraries look at. Everything else is the user's to name in `env_vars`; tokens of servers never go along.
_ALLOWED: Final = frozenset(
    "PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TMPDIR TEMP TERM VIRTUAL_ENV LD_LIBRARY_PATH LD_PRELOAD "
    "DYLD_LIBRARY_PATH IPYTHONDIR HF_HOME HF_HUB_OFFLINE HF_HUB_CACHE HF_DATASETS_CACHE TORCH_HOME MPLBACKEND "
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY "
    "http_proxy https_proxy no_proxy all_proxy".split()
)
_ALLOWED_PREFIXES: Final = (
    "LC_ XDG_ PYTHON CONDA_ CUDA_ NVIDIA_ NCCL_ CUDNN_ CUBLAS_ OMP_ KMP_ MKL_ OPENBLAS_ GOMP_ NUMEXPR_ PYTORCH_ TORCH_ "
    "TRITON_ TRANSFORMERS_ TOKENIZERS_ JAX_ XLA_ TF_ MPL FLYTE_JUPYTER_"
).split()
_WITHHELD: Final = frozenset(
    "CUDA_VISIBLE_DEVICES FLYTE_JUPYTER_BROKER FLYTE_JUPYTER_REPLICA FLYTE_JUPYTER_REPLICA_NAME "
    "FLYTE_JUPYTER_ATTACH FLYTE_JUPYTER_ATTACH_SHARED".split()
)


def inherited_environment() -> dict[str, str]:
    """The part of this process's environment that replicas start with."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _WITHHELD and (name in _ALLOWED or name.startswith(tuple(_ALLOWED_PREFIXES)))
    }


class _Pool(RunningPool):
    """A pool as its user has it, whoever declared it."""

    def executor(self) -> PoolExecutor:
        """A `concurrent.futures.Executor` whose workers are this pool's replicas."""
        from .executor import PoolExecutor

        return PoolExecutor(self)

    def pool_of(self, declared: Declared) -> RunningPool:
        return handle_of(declared)

    def _shown_by(self) -> View | None:
        return PoolHandle.view


class PoolHandle(_Pool):
    """One environment's warm kernels. Made by `flyte_jupyter.pool(env)`; the same environment gives the same handle.

    The pool belongs to the broker, not to this object: it stays when the notebook goes.
    """

    view: ClassVar[View | None] = staticmethod(registered_view)
    """What a notebook shows beside text. None: nothing."""

    def __init__(self, spec: EnvironmentSpec, scaling: Scaling) -> None:
        super().__init__(spec.name, spec.key, scaling)
        self.spec = spec
        self._policy = scaling
        self.start_timeout: float = READY_S
        self._preimport: tuple[str, ...] = ()
        self._loaders: dict[str, PreloadFunction] = {}
        self._lock = threading.Lock()
        self._declaration: p.Declaration | None = None

    # --- for dispatch

    def declaration(self) -> p.Declaration:
        """What the broker is told; the same object until something in it changes."""
        if self._declaration is None:
            with self._lock:
                self._declaration = p.Declaration(
                    spec=self.spec,
                    scaling=self.scaling,
                    preload=self._preload(),
                    secret_values=self._secrets(),
                    inherited_env=inherited_environment(),
                    preimports=self._preimports(),
                    start_timeout=self.start_timeout,
                )
        return self._declaration

    def set_preimport(self, names: Sequence[str]) -> None:
        """Replicas that start from now on have these modules; see `pool`."""
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f'preimport must be a list of module names such as ["torch"], got {names!r}')
        for name in names:
            if not all(part.isidentifier() for part in name.split(".")):
                raise ValueError(f"preimport: {name!r} is not the name of a module")
        if tuple(names) != self._preimport:
            self._preimport = tuple(names)
            self._declare_anew()

    def resize(self, scaling: Scaling) -> None:
        """The environment was defined again with another policy."""
        if scaling != self._policy:  # what `scale()` has set since stays
            self.scaling = self._policy = scaling
            self._declaration = None

    def connection(self) -> broker.Connection:
        """A connection that knows this pool."""
        connection = broker.connect()
        if not connection.declared:
            # A new broker: it must know each preload before a task of one pool calls a task of another.
            for handle in list(_handles.values()):
                if handle._loaders:
                    connection.declare(handle.declaration())
        connection.declare(self.declaration())
        return connection

    def _declare_anew(self) -> None:
        """What replicas start with has changed, also for calls of this environment without reuse."""
        self._declaration = None
        for handle in list(_handles.values()):
            if handle.spec.single_use and handle.name == self.name:
                handle._declaration = None

    def is_known_to(self, connection: broker.Connection) -> bool:
        return connection.declared.get(self.key) is self.declaration()

    @property
    def uses_gpus(self) -> bool:
        return self.spec.devices.count > 0

    # --- preload

    @overload
    def preload(self, function: F, /) -> F: ...
    @overload
    def preload(self, /, *, start_timeout: float | timedelta | None = None) -> Callable[[F], F]: ...

    def preload(self, function: Any = None, /, *, start_timeout: Any = None) -> Any:
        """Run a loader ahead of time on every replica, and once per process however often it is called.

        The decorated function is `functools.cache`d: a task that calls it gets what the replica has loaded already,
        and the notebook may call it too. Replicas start loading at once; changing the loader and running the cell
        again renews them one by one, while the old ones answer.

        Args:
            function: The loader, `def` or `async def`, without arguments.
            start_timeout: Seconds (or a timedelta) that a replica may take to become ready; 600 if not given.

        Raises:
            ArgumentNotSerializable: It uses a value of the notebook that cannot be sent to a replica.
        """
        if start_timeout is not None:
            limit = start_timeout.total_seconds() if isinstance(start_timeout, timedelta) else float(start_timeout)
            if not limit > 0:
                raise ValueError(f"start_timeout must be more than 0 seconds, got {start_timeout!r}")
            self.start_timeout = limit
        if function is None:
            return self.preload
        if not callable(function):
            raise TypeError(f"preload decorates a function, got {type(function).__name__}")
        made = PreloadFunction(function)
        self._loaders[function.__name__] = made
        self._declare_anew()
        self.declaration()  # what cannot be captured is said here, where it was written
        if self.scaling.min_replicas:
            self._send(verbs.Warm(replicas=self.scaling.min_replicas))
        elif (connection := broker.current()) is not None:
            connection.declare(self.declaration())
        return made

    __flyte_decorates__ = True

    def _preload(self) -> p.Preload | None:
        if not self._loaders:
            return None
        loaders = [(name, _loader_closure(made)) for name, made in self._loaders.items()]
        # With the place where they were written: a loader imports what lies beside its notebook.
        here = Place.here()
        used = users_modules((closure for _, closure in loaders), here.modules)
        texts = [each.text for each in used.modules.values()]
        digests = [*(closure.digest for _, closure in loaders), *map(digest_of, texts)]
        return p.Preload(
            generation=digest_of(*digests)[:16],
            names=tuple(self._loaders),
            payload=base64.b64encode(pickle.dumps((replace(here, modules=used).as_json(), texts, loaders), 5)),
        )

    def _preimports(self) -> tuple[str, ...]:
        """What was asked for, and what the loaders import; in a fixed order, since it identifies a zygote."""
        warm = _by_name.get(f"{self.name}:False") if self.spec.single_use else None
        if warm is not None:  # a call without reuse is forked from what its environment's replicas are forked from
            return warm._preimports()
        found: set[str] = set()
        for made in self._loaders.values():
            found.update(imported_modules(_loader_closure(made)))
        return (*self._preimport, *sorted(found.difference(self._preimport)))

    def _secrets(self) -> dict[str, SecretStr]:
        missing = [name for name in self.spec.secrets if name not in os.environ]
        if missing:
            logger.warning(
                "environment %r: secret %s is not set here, so its tasks will not have it",
                self.name,
                ", ".join(missing),
            )
        return {name: SecretStr(os.environ[name]) for name in self.spec.secrets if name not in missing}

    # --- private

    def _rescaled(self, scaling: Scaling, connection: broker.Connection) -> None:
        super()._rescaled(scaling, connection)
        # Said again, the declaration must not undo it.
        self._declaration = None
        connection.declared[self.key] = self.declaration()


class AttachedPool(_Pool):
    """A pool that somebody else has declared: all but its declaration is known from a view."""

    def __init__(self, view: PoolView) -> None:
        super().__init__(view.name, view.key, view.scaling)
        self._devices = view.devices

    @property
    def uses_gpus(self) -> bool:
        return self._devices.count > 0


def fresh_pool(pool: PoolHandle) -> PoolHandle:
    """A pool like this one whose replicas serve one call each: a cold start, and nothing of an earlier cell."""
    made = PoolHandle(pool.spec.model_copy(update={"single_use": True}), fresh_scaling())
    made._loaders = pool._loaders
    made.set_preimport(pool._preimport)
    made.start_timeout = pool.start_timeout
    return made


def _loader_closure(made: PreloadFunction) -> Closure:
    """The loader under its own name, as a task that calls it will capture it: so both are one object."""
    scope = getattr(made.__wrapped__, "__globals__", {})
    return Captured.of_names([made.__name__], scope, made={made.__name__: made}).closure()


_handles: weakref.WeakValueDictionary[str, PoolHandle] = weakref.WeakValueDictionary()
_by_name: dict[str, PoolHandle] = {}


def handle_of(declared: Declared) -> PoolHandle:
    """The handle of an environment's pool, or of the pool that an overridden task has of its own."""
    spec = declared.spec(sys.executable)
    scaling = declared.scaling()
    key = spec.key
    handle = _handles.get(key)
    if handle is None:
        handle = _handles[key] = PoolHandle(spec, scaling)
        # The handle lives as long as it is the latest of its name: its preload belongs to the pool.
        _by_name[f"{spec.name}:{spec.single_use}"] = handle
    else:
        handle.resize(scaling)
    return handle


def handle_with(key: str) -> PoolHandle | None:
    """The handle of the pool with that key, if this process has it."""
    return _handles.get(key)


def known_pools() -> list[PoolHandle]:
    """The pools that this process has declared and still holds; the latest of each name."""
    return [handle for handle in list(_by_name.values()) if not handle.spec.single_use]
