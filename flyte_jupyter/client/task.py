"""A task: a function that is handed to `remote` when it is called."""

from __future__ import annotations

import functools
import inspect
import logging
import pickle
import sys
import typing
from collections.abc import Callable, Coroutine, Mapping
from types import FrameType, FunctionType, NoneType
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from ..core.policy import (
    CacheRequest,
    RetryStrategy,
    ReusePolicy,
    Secret,
    SecretRequest,
    cache_from_request,
    retries_from_request,
    timeout_from_request,
)
from ..core.resources import Resources
from ..core.spec import EnvironmentSpec, Scaling
from ..errors import with_notes
from .checks import check_env_vars, did_you_mean, expect
from .dispatch import calls
from .fresh import fresh_scaling
from .functions import first_parameter, no_method
from .interface import NativeInterface, outputs
from .options import OPTIONS, Options, TimeoutType, pool_spec

logger = logging.getLogger("flyte")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_NEVER_ENOUGH = sys.maxsize


class Environment(Protocol):
    """What a task has to know of its environment."""

    name: str

    def declaration(self) -> dict[str, Any]:
        """Return the keyword arguments that declare the same environment in a replica."""

    @staticmethod
    def remake(environment: dict[str, Any], options: dict[str, Any], function: Any) -> Task[..., Any]:
        """Return the task that `Task.declaration` described, around `function`: how a replica gets its own."""


class Task(Options, Generic[P, R]):
    """A function that runs on a replica when it is called. Made by `@env.task`; keeps the signature.

    Call a sync task for its value, `await` an async one; `.aio(...)` can be awaited for both. `.forward(...)`
    and `.func(...)` run the function here. Tasks with equal function and options are equal; none is hashable.

    Attributes:
        name: `<environment>.<function>`.
        func: The function itself.
        environment: The environment it belongs to.
        is_async: It is an `async def`.
        resources, env_vars, secrets, reusable: What its replicas get: the environment's, or an override's.
        retries, cache: A RetryStrategy and a Cache, whatever was written.
        timeout, time_limits: As written, and as a Timeout.

    Source: flyte.TaskTemplate.
    """

    task_type = "python"
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self, func: Callable[P, R], environment: Environment, options: Mapping[str, Any] | None = None
    ) -> None:
        self.__dict__.update(options or {})
        self.func = func
        self.environment = environment
        self.parent_env_name = environment.name
        self.name = f"{environment.name}.{func.__name__}"
        self.short_name = self.short_name or func.__name__
        self.is_async = inspect.iscoroutinefunction(func)
        self.time_limits = timeout_from_request(self.timeout)
        functools.update_wrapper(self, func, updated=())
        self._read_signature(func)
        if self.reusable and self.reusable.concurrency > 1 and not self.is_async:
            raise _needs_async(func)
        # Plain attributes, replaced by remote's functions at the first call: a warm call looks nothing up.
        self._dispatch: Callable[[Any, Any, Any], Any] = _first_acall if self.is_async else _first_call
        self._dispatch_aio: Callable[[Any, Any, Any], Any] = _first_aio
        self._spec: EnvironmentSpec | None = None
        self._scaling: Scaling | None = None

    def _read_signature(self, func: Callable[..., Any]) -> None:
        signature = inspect.signature(func)
        self.signature = signature
        self.parameters = tuple(signature.parameters.values())
        kinds = inspect.Parameter
        if any(each.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) for each in self.parameters):
            raise ValueError(f"Function {func.__name__} cannot have variable positional or keyword arguments.")
        required = [each for each in self.parameters if each.default is kinds.empty]
        positional = [each for each in self.parameters if each.kind is not kinds.KEYWORD_ONLY]
        self._required = tuple(each.name for each in required)
        self._positional = tuple(each.name for each in positional)
        self._keywords = frozenset(each.name for each in self.parameters if each.kind is not kinds.POSITIONAL_ONLY)
        self._most = len(positional)
        # How many positional arguments are enough on their own; never, if a keyword-only one is required.
        only_by_keyword = any(each.kind is kinds.KEYWORD_ONLY for each in required)
        self._enough = _NEVER_ENOUGH if only_by_keyword else len(required)

    def __set_name__(self, owner: type, name: str) -> None:
        # The class statement asks this of what stands in its body at the end: a method that became a task without
        # being seen by `task_function`, as another decorator called `env.task`. 3.11 makes it a RuntimeError's cause.
        first = first_parameter(self.func)
        own = f"{owner.__qualname__}.{self.func.__name__}"
        if first and self.func.__module__ == owner.__module__ and self.func.__qualname__ == own:
            raise no_method(self.func, first)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run on a replica: a sync task returns the value, an async one a coroutine."""
        __tracebackhide__ = True  # IPython shows the caller's line and the task's
        return cast(R, self._dispatch(self, args, kwargs))

    @overload
    def aio(self: Task[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]: ...

    @overload
    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...

    def aio(self, *args: Any, **kwargs: Any) -> Any:
        """Run on a replica without blocking: returns a coroutine, for sync and async tasks alike."""
        return self._dispatch_aio(self, args, kwargs)

    def __flyte_capture__(self) -> tuple[Callable[P, R], bytes]:
        """The function itself, and what makes it a task again on a replica; see `capture`."""
        return self.func, pickle.dumps(functools.partial(self.environment.remake, *self.declaration()))

    def forward(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function here, in this process; its errors arrive as they are."""
        return self.func(*args, **kwargs)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Check that the function can be called so, before anything is sent anywhere.

        Raises:
            ValueError: An argument is missing, unknown, given twice, or there are too many.
        """
        count = len(args)
        if not kwargs and self._enough <= count <= self._most:
            return
        expected = [each.name for each in self.parameters]
        if count > self._most:
            raise ValueError(f"Too many positional arguments provided, expected inputs {expected}, got {count}")
        for key in kwargs:
            if key not in self._keywords:
                hint = did_you_mean(key, expected)
                raise ValueError(f"Too many keyword arguments provided, expected inputs {expected}, got {key!r}{hint}")
        given = self._positional[:count]
        twice = [key for key in given if key in kwargs]
        if twice:
            raise ValueError(f"Inputs given twice, by position and by name: {', '.join(twice)}")
        missing = [key for key in self._required if key not in kwargs and key not in given]
        if missing:
            raise ValueError(f"Missing required inputs: {', '.join(missing)}")

    def override(
        self,
        *,
        short_name: str | None = None,
        resources: Resources | None = None,
        cache: CacheRequest | None = None,
        retries: int | RetryStrategy = 0,
        timeout: TimeoutType | None = None,
        reusable: ReusePolicy | Literal["off"] | None = None,
        env_vars: dict[str, str] | None = None,
        secrets: SecretRequest | None = None,
        service_account: str | None = None,
        max_inline_io_bytes: int | None = None,
        pod_template: Any = None,
        queue: str | None = None,
        interruptible: bool | None = None,
        entrypoint: bool | None = None,
        produces_artifacts: bool | None = None,
        links: Any = (),
        plugin_config: Any = None,
        **kwargs: Any,
    ) -> Task[P, R]:
        """Return a task like this one with other options; this one stays as it is.

        What is None, 0 or empty keeps its value, as in Flyte: an override cannot take retries away. What is
        given replaces and never merges. `reusable="off"` runs each call in a fresh replica; only then can
        resources, env_vars, secrets and service_account be given.

        Raises:
            ValueError: They are given while the task is reusable; a sync task would get concurrency above 1;
                a name, image, docs or interface is given; a value is not what it may be.
            TypeError: An argument is unknown or of another type.

        Source: flyte.TaskTemplate.override.

        Example:
            >>> from flyte_jupyter import Resources, ReusePolicy, TaskEnvironment
            >>> env = TaskEnvironment("gpu", reusable=ReusePolicy(replicas=2))
            >>> @env.task
            ... def train(lr: float) -> float:
            ...     return lr
            >>> train.override(reusable="off", resources=Resources(memory="8Gi")).resources.memory
            '8Gi'
        """
        report = kwargs.pop("report", None)
        for name in kwargs:
            if name in ("name", "image", "docs", "interface"):
                raise ValueError(f"{name.capitalize()} cannot be overridden")
            hint = did_you_mean(name, OPTIONS)
            raise TypeError(f"override() got an unexpected keyword argument {name!r}{hint}")
        if plugin_config is not None:
            raise ValueError(
                f"No task plugin found for config type {type(plugin_config)}; pools on this machine run plain"
                " Python functions only"
            )
        changes: dict[str, Any] = {}
        effective = self.reusable
        if reusable:
            if reusable != "off" and not isinstance(reusable, ReusePolicy):
                raise TypeError(f'Expected reusable to be a ReusePolicy or "off", got {reusable!r}')
            effective = None if isinstance(reusable, str) else reusable
            changes["reusable"] = effective
        pinned = {
            "resources": resources,
            "env_vars": env_vars,
            "secrets": secrets,
            "service_account": service_account,
        }
        for name, value in pinned.items():
            if value is None:
                continue
            if effective:
                raise _reuse_is_on(self.func.__name__, name)
            if value or name == "resources":
                changes[name] = value
        expect("resources", resources, (Resources, NoneType), "Resources")
        expect("secrets", secrets, (str, Secret, list, NoneType), "SecretRequest")
        check_env_vars(env_vars)
        if retries:
            changes["retries"] = retries_from_request(retries)
        if cache:
            changes["cache"] = cache_from_request(cache)
        falsy_keeps = {
            "short_name": short_name,
            "timeout": timeout,
            "max_inline_io_bytes": max_inline_io_bytes,
            "pod_template": pod_template,
            "queue": queue,
            "links": links if isinstance(links, tuple) or not links else (links,),
        }
        changes |= {name: value for name, value in falsy_keeps.items() if value}
        none_keeps = {
            "interruptible": interruptible,
            "entrypoint": entrypoint,
            "produces_artifacts": produces_artifacts,
            "report": report,
        }
        changes |= {name: value for name, value in none_keeps.items() if value is not None}
        return Task(self.func, self.environment, self.options() | changes)

    @functools.cached_property
    def native_interface(self) -> NativeInterface:
        """Inputs and outputs, from the annotations.

        Raises:
            TypeError: It returns a tuple of unknown length, or a tuple of one type.
        """
        try:
            hints = typing.get_type_hints(self.func, include_extras=True)
        except NameError as error:
            # Flyte refuses the function here. In a notebook it still runs, so say so and keep the text.
            logger.warning("Could not get type hints for function %s: %s", self.short_name, error)
            hints = {}
        return NativeInterface(
            inputs={each.name: (hints.get(each.name, each.annotation), each.default) for each in self.parameters},
            outputs=outputs(hints.get("return", self.signature.return_annotation)),
        )

    def spec(self, interpreter: str) -> EnvironmentSpec:
        """Return what makes the pool that runs this task the pool it is; as `TaskEnvironment.spec`."""
        spec = self._spec
        if spec is None or spec.interpreter != interpreter:
            spec = pool_spec(
                name=self.parent_env_name,
                interpreter=interpreter,
                resources=self.resources,
                env_vars=self.env_vars,
                secrets=self.secrets,
                reusable=self.reusable,
            )
            self._spec = spec
        return spec

    def scaling(self) -> Scaling:
        """Return how many replicas that pool may have, and for how long."""
        if self._scaling is None:
            self._scaling = self.reusable.scaling() if self.reusable else fresh_scaling()
        return self._scaling

    def declaration(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what `Environment.remake` needs besides the function: environment and task options."""
        return self.environment.declaration(), self.stated()

    def __reduce__(self) -> str | tuple[Any, ...]:
        # pickle finds a function under its name, and what is found under that of a task's function is the task: so
        # the task goes by that name, as the function would. cloudpickle sends functions of __main__ whole, for
        # processes with another __main__; then the function has to be in the pickle, which pickle itself refuses.
        function: Any = self.func
        whole = function.__module__ == "__main__" and _sends_functions_whole(sys._getframe(1))
        found = None if whole else _importable(function)
        if found is self:
            return str(function.__qualname__)
        if isinstance(found, Task) and found.func is function:
            function = found
        return self.environment.remake, (*self.declaration(), function)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Task):
            return NotImplemented
        return self.func is other.func and self.name == other.name and self.options() == other.options()

    def __repr__(self) -> str:
        kind = "async " if self.is_async else ""
        return f"<{kind}task {self.name}{self.signature} reusable={self.reusable!r}>"


def _sends_functions_whole(asking: FrameType) -> bool:
    """Whether a pickler asks that can do more with a function than name it, as those of cloudpickle and dill can.

    Theirs extend those of pickle, and a method of theirs asks. pickle's own is C code, which has no frame.
    """
    pickler = asking.f_locals.get("self")
    if not isinstance(pickler, pickle.Pickler | pickle._Pickler):
        return False
    by_name = vars(pickle._Pickler)["save_global"]
    own_way = getattr(pickler, "dispatch", {}).get(FunctionType, by_name) is not by_name
    return own_way or hasattr(pickler, "reducer_override")


def _importable(function: Any) -> object:
    found: object = sys.modules.get(function.__module__)
    for part in getattr(function, "__qualname__", function.__name__).split("."):
        found = getattr(found, part, None)
    return found


def _first_call(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    remote = calls()
    __tracebackhide__ = True
    task._dispatch = remote.call
    return remote.call(task, args, kwargs)


def _first_acall(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    remote = calls()
    task._dispatch = remote.acall
    return remote.acall(task, args, kwargs)


def _first_aio(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    remote = calls()
    task._dispatch_aio = remote.acall
    return remote.acall(task, args, kwargs)


def _needs_async(func: Callable[..., Any]) -> ValueError:
    generator = inspect.isasyncgenfunction(func)
    return with_notes(
        ValueError(
            "Reusable environments with concurrency greater than 1 are only supported for async tasks."
            f" {func.__name__} is not one: please use an async function or set concurrency to 1"
        ),
        "An async generator is not an async function: collect what it yields, and return it."
        if generator
        else "A sync task blocks its replica, so no second one could run beside it.",
        f"Write: async def {func.__name__}{inspect.signature(func)}: ...",
    )


def _reuse_is_on(task: str, name: str) -> ValueError:
    flyte_name = "env" if name == "env_vars" else name
    return with_notes(
        ValueError(
            f"FJ701 Cannot change {name} of a reusable task."
            f" Cannot override {flyte_name} when reusable is set (set reusable='off')"
        ),
        "The replicas already run with fixed GPU, memory, environment and secrets.",
        f'Use `{task}.override({name}=..., reusable="off")` for one cold run, or `env.clone_with(...)` for a'
        " second pool.",
    )
