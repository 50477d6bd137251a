"""A pool, for whoever wants more than calling its tasks: preload, warm, scale, keep, stop, status, an executor."""

from __future__ import annotations

import base64
import logging
import os
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, overload

from pydantic import SecretStr

from .. import errors
from ..core import protocol as p
from ..core import verbs
from ..core.definitions import Closure, digest_of
from ..core.snapshot import PoolView, ReplicaView
from ..core.spec import EnvironmentSpec, Scaling
from ..loader import PreloadFunction
from . import broker, text
from .capture import Captured
from .capture.preimports import imported_modules, users_modules
from .leases import LeaseGroup
from .place import Place
from .views import View, registered_view

if TYPE_CHECKING:
    from .environment import Task, TaskEnvironment
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


class PoolHandle:
    """One environment's warm kernels. Made by `flyte_jupyter.pool(env)`; the same environment gives the same handle.

    The pool belongs to the broker, not to this object: it stays when the notebook goes.
    """

    view: ClassVar[View | None] = staticmethod(registered_view)
    """What a notebook shows beside text. None: nothing."""

    def __init__(self, spec: EnvironmentSpec, scaling: Scaling) -> None:
        self.spec = spec
        self.key = spec.key
        self.scaling = scaling
        self._policy = scaling
        self.start_timeout: float = READY_S
        self._preimport: tuple[str, ...] = ()
        self._loaders: dict[str, PreloadFunction] = {}
        self._lock = threading.Lock()
        self._declaration: p.Declaration | None = None

    @property
    def name(self) -> str:
        return self.spec.name

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

    # --- verbs

    def warm(self, replicas: int | None = None, *, wait: bool = True, timeout: float | None = None) -> PoolHandle:
        """Start the minimum of replicas, or `replicas` of them, and wait until they are ready.

        Args:
            replicas: How many; at most the pool's maximum.
            wait: False returns at once.
            timeout: Seconds to wait; None waits until they are ready or have failed.

        Raises:
            PoolFailed: The preload raises.
            NoUsableGPU, NoRoom: The machine does not have the GPUs.
            TimeoutError: They are not ready in time; they go on loading.
        """
        order = verbs.Warm.of(replicas=replicas)
        connection = self._send(order)
        if wait:
            self._wait_ready(connection, order.count(self), timeout)
        return self

    def scale(self, minimum: int, maximum: int | None = None) -> PoolHandle:
        """Resize the live pool; running tasks are not disturbed.

        Args:
            minimum: The fewest replicas, or the fixed number if `maximum` is not given.
            maximum: The most replicas, at least 1 and at least `minimum`.
        """
        return self.order(verbs.Scale.of(minimum=minimum, maximum=minimum if maximum is None else maximum))

    def keep(self, duration: float | timedelta) -> PoolHandle:
        """Keep idle replicas running during the next `duration` (seconds or a timedelta); 0 ends it."""
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
        return self.order(verbs.Keep.of(seconds=seconds))

    def stop(self, *, force: bool = False, wait: bool = True, timeout: float = 30.0) -> None:
        """Stop every replica after its running calls, or with `force` at once. The next call starts the pool again.

        Args:
            force: Do not wait for running calls; they raise `PoolStopped`.
            wait: False returns at once; the pool stops when its calls have ended.
            timeout: How many seconds to wait for that.

        Raises:
            TimeoutError: Some task still runs, or somebody is attached, after `timeout` seconds; the pool stops when
                that ends.
        """
        connection = self._send(verbs.Stop(force=force))
        if not wait:
            return

        def gone(view: PoolView | None) -> bool:
            return view is None or not view.replicas

        if not self._wait_until(connection, gone, timeout):
            raise TimeoutError(f"pool {self.name!r} is still in use after {timeout:g} s; use stop(force=True)")

    def restart(self, replica: int | None = None, *, force: bool = False) -> PoolHandle:
        """Replace the pool's replicas by fresh ones, which run the preload anew. Returns at once.

        Without a number all of them, one by one: the old ones answer until their successors are ready, where there is
        room for both. With one, that replica takes no further call, and is replaced after those that it runs.

        Args:
            replica: A replica's number, the 0 of "gpu[0]".
            force: Replace that one replica at once; its running tasks raise `ReplicaDied`.

        Raises:
            NoSuchReplica: There is none of that number, which is a LookupError, too.
            ValueError: `force` without a number; that is `stop(force=True)`.
        """
        if replica is not None:
            return self.order_at(replica, verbs.RestartReplica(force=force))
        if force:
            raise ValueError("restart(force=True) needs the number of one replica; stop(force=True) ends them all")
        return self.order(verbs.RestartPool())

    def interrupt(self, replica: int | None = None) -> PoolHandle:
        """Stop the tasks that run on all replicas, or on one; they raise `TaskCancelled`. What is loaded stays.

        Calls that wait start then.

        A task that catches the interrupt, or is in a C function that does not return, goes on;
        `restart(replica, force=True)` ends it.

        Args:
            replica: A replica's number, the 0 of "gpu[0]"; None is all of them.

        Raises:
            NoSuchReplica: There is none of that number, which is a LookupError, too.
        """
        if replica is None:
            return self.order(verbs.InterruptPool())
        return self.order_at(replica, verbs.InterruptReplica())

    def order(self, order: verbs.Verb[verbs.PoolTarget]) -> PoolHandle:
        """Send an order about the pool, and wait for nothing. The verbs above are made of this."""
        self._send(order)
        return self

    def order_at(self, replica: int, order: verbs.Verb[ReplicaView]) -> PoolHandle:
        """The same, about one of its replicas.

        Raises:
            NoSuchReplica: There is none of that number.
        """
        connection = self.connection()
        pool = self._find(connection.snapshot())
        if pool is None:
            raise errors.NoSuchReplica(f"{self.name}[{replica}]", existing=())
        connection.send(order.message(pool.replica_at(replica)))
        return self

    def status(self) -> PoolView | None:
        """What the broker knows about this pool; None if it knows nothing (yet, or any more).

        Instants in it are seconds on the system's monotonic clock.

        Raises:
            BrokerSilent: The broker runs, but does not answer.
        """
        try:
            connection = broker.current() or broker.connect(start=False)
            return self._find(connection.snapshot())
        except (errors.BrokerUnavailable, errors.BrokerGone):
            return None

    def executor(self) -> PoolExecutor:
        """A `concurrent.futures.Executor` whose workers are this pool's replicas."""
        from .executor import PoolExecutor

        return PoolExecutor(self)

    # --- views

    def __repr__(self) -> str:
        try:
            shown = text.pool_line(self.status(), self.scaling, now=time.monotonic())
        except errors.BrokerSilent as problem:
            shown = str(problem)
        return f"<pool {self.name!r}: {shown}>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        try:
            plain = text.pool_table(self.name, self.status(), self.scaling, now=time.monotonic())
        except errors.BrokerSilent as problem:
            return {"text/plain": f"{self.name}: {errors.whole_text(problem)}"}
        still = text.still(plain, time.strftime("%Y-%m-%d %H:%M:%S"))
        bundle: dict[str, Any] = {"text/plain": plain, "text/html": still}
        return bundle if PoolHandle.view is None else {**bundle, **PoolHandle.view(self)}

    # --- private

    def _send(self, order: verbs.Verb[verbs.PoolTarget]) -> broker.Connection:
        message = order.message(self)
        # A pool can be stopped, too, whose declaration cannot be made any more.
        stops = isinstance(message, p.StopPool)
        connection = (broker.current() or broker.connect()) if stops else self.connection()
        connection.send(message)
        if isinstance(message, p.Scale):  # said again, the declaration must not undo it
            self.scaling = message.scaling
            self._declaration = None
            connection.declared[self.key] = self.declaration()
        return connection

    def _find(self, snapped: p.Snapped) -> PoolView | None:
        return snapped.snapshot.pool(self.key)

    def _wait_ready(self, connection: broker.Connection, wanted: int, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        view = self.status()
        if view is None or not any(_is_ready(replica) for replica in view.replicas):
            # A slot, once: whatever keeps the pool from serving is told to whoever asks for one.
            group = LeaseGroup(connection, self.key, None, "local")
            waiter = group.ask(f"{self.name}.warm")
            try:
                group.drop(waiter.future.result(timeout))
            except (TimeoutError, KeyboardInterrupt):
                waiter.withdraw()
                raise
        failed: list[PoolView] = []

        def settled(view: PoolView | None) -> bool:
            if view is None:
                return False
            ready = sum(_is_ready(replica) for replica in view.replicas)
            starting = any(replica.state in ("starting", "loading") for replica in view.replicas)
            if ready < wanted and view.failure is not None and not starting:
                failed.append(view)
                return True
            return ready >= wanted or (ready > 0 and not starting)

        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._wait_until(connection, settled, left):
            raise TimeoutError(f"pool {self.name!r} is not ready after {timeout:g} s; it goes on loading")
        if failed and failed[0].failure is not None:
            raise failed[0].failure.error(self.name)

    def _wait_until(
        self,
        connection: broker.Connection,
        condition: Callable[[PoolView | None], bool],
        timeout: float | None,
    ) -> bool:
        """Wait on snapshots; interruptible. False if `timeout` passed first."""
        met = threading.Event()
        gone: list[bool] = []

        def look(snapped: p.Snapped | None) -> None:
            if snapped is None:
                gone.append(True)
                met.set()
            elif condition(self._find(snapped)):
                met.set()

        with connection.watching(look):
            done = met.wait(timeout)
        if gone:
            raise errors.BrokerGone()
        return done


def _loader_closure(made: PreloadFunction) -> Closure:
    """The loader under its own name, as a task that calls it will capture it: so both are one object."""
    scope = getattr(made.__wrapped__, "__globals__", {})
    return Captured.of_names([made.__name__], scope, made={made.__name__: made}).closure()


_handles: weakref.WeakValueDictionary[str, PoolHandle] = weakref.WeakValueDictionary()
_by_name: dict[str, PoolHandle] = {}


def handle_of(declared: TaskEnvironment | Task[..., Any]) -> PoolHandle:
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
    from .environment import TaskEnvironment

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


def _is_ready(replica: ReplicaView) -> bool:
    return replica.generation_current and replica.warm
