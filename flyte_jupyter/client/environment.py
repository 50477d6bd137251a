"""What a user declares: environments and their tasks. A call of a task is handed to `remote`.

Names, signatures and refusals are Flyte's (SDK 2.12.1); nothing here starts a process or touches a socket.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import pickle
import re
import sys
import typing
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from types import FrameType, FunctionType, NoneType
from typing import Any, Generic, Literal, ParamSpec, TypeVar, cast, overload

from ..core.policy import (
    SINGLE_USE_SCALING,
    Cache,
    CacheRequest,
    RetryStrategy,
    ReusePolicy,
    Secret,
    SecretRequest,
    Timeout,
    cache_from_request,
    retries_from_request,
    secret_names,
    timeout_from_request,
)
from ..core.resources import Resources, cpu_cores, device_request, memory_bytes
from ..core.spec import EnvironmentSpec, Scaling
from ..errors import with_notes
from .functions import first_parameter, no_method, task_function
from .image import Image

logger = logging.getLogger("flyte")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
C = TypeVar("C", bound=type)

TimeoutType = Timeout | int | timedelta
MAX_INLINE_IO_BYTES = 10 * 1024 * 1024
_LONGEST_NAME = 63  # what the platform's interface definition allows
_LONGEST_DESCRIPTION = 255
_NAME = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
# Spelled so in places of Flyte's own documentation; too far from `reusable` for a similarity search.
_KNOWN_TYPOS = {"reuse_policy": "reusable", "reuse": "reusable", "policy": "reusable"}


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = [_KNOWN_TYPOS[name]] if name in _KNOWN_TYPOS else difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}=?" if close else ""


def _hinting(cls: C) -> C:
    # Around the generated constructor, so that its signature stays exactly Flyte's.
    construct: Callable[..., None] = cls.__init__  # type: ignore[misc]
    known = [each.name for each in fields(cls) if each.init]

    @functools.wraps(construct)
    def hinting(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known:
                hint = _did_you_mean(name, known)
                raise TypeError(f"{cls.__name__}.__init__() got an unexpected keyword argument {name!r}{hint}")
        construct(self, *args, **kwargs)

    cls.__init__ = hinting  # type: ignore[misc]
    return cls


@_hinting
@dataclass
class TaskEnvironment:
    """Where tasks run: on warm replicas if `reusable` is given, else in a fresh one per call.

    Args:
        name: Lower-case words joined by `-` or `_`; a cluster allows 63 characters.
        depends_on: Other environments whose tasks are called from this one. For the cluster.
        pod_template: For the cluster.
        description: At most 255 characters; more are cut off.
        secrets: A name, a Secret, or a list of them: environment variables copied from this machine.
        env_vars: Environment variables of the replica, set before any user code.
        resources: What one replica may use.
        interruptible: For the cluster.
        image: For the cluster; replicas use this machine's Python.
        include: Files to take along, for the cluster.
        service_account: For the cluster.
        cache: `"auto"`, `"override"`, `"disable"` or a Cache, for every task that states none.
        reusable: How many replicas stay warm, and for how long; None keeps nothing warm.
        plugin_config: For the cluster.
        queue: For the cluster.

    Raises:
        ValueError: The name is malformed, or `plugin_config` and `reusable` are both given.
        TypeError: An argument is of another type, or unknown.

    Source: flyte.TaskEnvironment.

    Example:
        >>> env = TaskEnvironment("gpu", reusable=ReusePolicy(replicas=(1, 4)))
        >>> @env.task
        ... def double(x: int) -> int:
        ...     return 2 * x
        >>> double.name, double.forward(2)  # forward runs it here
        ('gpu.double', 4)
    """

    name: str
    depends_on: list[TaskEnvironment] = field(default_factory=list)
    pod_template: Any = None
    description: str | None = None
    secrets: SecretRequest | None = None
    env_vars: dict[str, str] | None = None
    resources: Resources | None = None
    interruptible: bool = False
    image: str | Image | None = "auto"
    include: tuple[str, ...] = ()
    service_account: str | None = None
    cache: CacheRequest = "disable"
    reusable: ReusePolicy | None = None
    plugin_config: Any = None
    queue: str | None = None
    _tasks: dict[str, Task[..., Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    __flyte_decorates__ = True  # `@env.task` is not part of the function that a replica runs

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"Environment name {self.name!r} must be in snake_case or kebab-case format:"
                " lower-case letters and digits, words joined by one - or _"
            )
        if len(self.name) > _LONGEST_NAME:
            logger.warning(
                "Environment name %r has %d characters; a cluster allows %d.",
                self.name,
                len(self.name),
                _LONGEST_NAME,
            )
        self._check_types()
        if self.reusable and self.plugin_config is not None:
            raise ValueError("Cannot set plugin_config when environment is reusable.")
        if self.description is not None and len(self.description) > _LONGEST_DESCRIPTION:
            self.description = self.description[:_LONGEST_DESCRIPTION]

    def _check_types(self) -> None:
        # The annotations say what is right; notebooks are not type-checked, so what arrives is anything.
        given: Any = self
        if isinstance(given.include, str):
            raise TypeError(f"Expected include to be a sequence of str paths, got a bare str ({given.include!r})")
        self.include = tuple(given.include)
        for entry in cast("tuple[object, ...]", self.include):
            if not isinstance(entry, str):
                raise TypeError(f"include entries must be str, got {type(entry)}")
        for dependency in given.depends_on:
            _expect("depends_on", dependency, TaskEnvironment, "List[Environment]")
        _expect("image", given.image, (str, Image, NoneType), "str or Image")
        _expect("resources", given.resources, (Resources, NoneType), "Resources")
        _expect("secrets", given.secrets, (str, Secret, list, NoneType), "SecretRequest")
        _expect("service_account", given.service_account, (str, NoneType), "str")
        _expect("cache", given.cache, (str, Cache), "str or Cache")
        if given.reusable:
            _expect("reusable", given.reusable, ReusePolicy, "ReusePolicy")
        _check_env_vars(given.env_vars)
        _check_pod_template(given.pod_template)

    @overload
    def task(self, _func: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(
        self,
        _func: None = None,
        *,
        short_name: str | None = None,
        cache: CacheRequest | None = None,
        retries: int | RetryStrategy = 0,
        timeout: TimeoutType = 0,
        docs: Any = None,
        pod_template: Any = None,
        report: bool = False,
        interruptible: bool | None = None,
        max_inline_io_bytes: int = MAX_INLINE_IO_BYTES,
        queue: str | None = None,
        service_account: str | None = None,
        triggers: Any = (),
        links: Any = (),
        task_resolver: Any = None,
        entrypoint: bool = False,
        produces_artifacts: bool = False,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(
        self,
        _func: Callable[..., Any] | None = None,
        *,
        short_name: str | None = None,
        cache: CacheRequest | None = None,
        retries: int | RetryStrategy = 0,
        timeout: TimeoutType = 0,
        docs: Any = None,
        pod_template: Any = None,
        report: bool = False,
        interruptible: bool | None = None,
        max_inline_io_bytes: int = MAX_INLINE_IO_BYTES,
        queue: str | None = None,
        service_account: str | None = None,
        triggers: Any = (),
        links: Any = (),
        task_resolver: Any = None,
        entrypoint: bool = False,
        produces_artifacts: bool = False,
        **unexpected: Any,
    ) -> Any:
        """Make a task of a function: `@env.task`, or `@env.task(retries=2)`.

        Args:
            short_name: What views show instead of the full name, `<environment>.<function>`.
            cache: As the environment's, for this task.
            retries: Attempts beyond the first: an int, at least 0, or a RetryStrategy.
            timeout: Seconds or a `timedelta` for one attempt, or a Timeout; 0 is no limit.
            report: The task writes a report.
            max_inline_io_bytes: How large arguments and results may be on a cluster.
            interruptible, queue, service_account, pod_template: As the environment's, for this task.
            docs, triggers, links, task_resolver, entrypoint, produces_artifacts: For the cluster.

        Raises:
            ValueError: The function takes `*args` or `**kwargs`; it is not `async` although the environment's
                concurrency is above 1; `pod_template` or `service_account` differ in a reusable environment;
                retries, timeout or cache are not what they may be.
            TypeError: An argument is unknown: resources and the like belong to the environment. Or it is given no
                function: a class, an object that can be called, a partial, a task, a method in its class.

        Source: flyte.TaskEnvironment.task.
        """
        if unexpected:
            raise _unexpected_task_option(next(iter(unexpected)))
        if self.reusable and pod_template is not None:
            raise ValueError("Cannot set pod_template when environment is reusable.")
        if self.reusable and service_account is not None and service_account != self.service_account:
            raise ValueError("Cannot override service_account when environment is reusable.")
        options: dict[str, Any] = {
            "short_name": short_name,
            "cache": cache_from_request(self.cache if cache is None else cache),
            "retries": retries_from_request(retries),
            "timeout": timeout,
            "docs": docs,
            "pod_template": self.pod_template if pod_template is None else pod_template,
            "report": report,
            "interruptible": self.interruptible if interruptible is None else interruptible,
            "max_inline_io_bytes": max_inline_io_bytes,
            "queue": queue or self.queue,
            "service_account": service_account or self.service_account,
            "triggers": triggers if isinstance(triggers, tuple) else (triggers,),
            "links": links if isinstance(links, tuple) else (links,),
            "task_resolver": task_resolver,
            "entrypoint": entrypoint,
            "produces_artifacts": produces_artifacts,
            "resources": self.resources,
            "env_vars": self.env_vars,
            "secrets": self.secrets,
            "reusable": self.reusable or None,
        }

        def decorate(given: Callable[..., Any], at: FrameType | None = None) -> Task[..., Any]:
            if isinstance(given, Task):
                raise _is_a_task(given)
            task: Task[..., Any] = Task(task_function(given, at or sys._getframe(1)), self, options)
            for parameter in task.parameters:
                if parameter.annotation is inspect.Parameter.empty:
                    logger.warning(
                        "Function %s has parameter %s without type annotation. Data will be pickled.",
                        task.short_name,
                        parameter.name,
                    )
            # By name, so that running a cell again replaces the task instead of adding one.
            self._tasks[task.name] = task
            return task

        return decorate if _func is None else decorate(_func, sys._getframe(1))

    @property
    def tasks(self) -> dict[str, Task[..., Any]]:
        """The tasks by full name, in the order in which they were first defined."""
        return self._tasks

    def add_dependency(self, *environments: TaskEnvironment) -> None:
        """Add to `depends_on` what is not there yet.

        Raises:
            TypeError: One is not an environment.
            ValueError: One is this environment, or has its name.
        """
        for environment in environments:
            if not isinstance(environment, TaskEnvironment):
                raise TypeError(f"Expected Environment, got {type(environment)}")
            if environment.name == self.name:
                both = None if environment is self else f"Both environments are called {self.name!r}."
                raise with_notes(ValueError("Cannot add self as a dependency"), both)
            if not any(known is environment for known in self.depends_on):
                self.depends_on.append(environment)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        """Its pool's card, as the last expression of a cell."""
        from .handle import handle_of

        return {} if self.reusable is None else handle_of(self)._repr_mimebundle_(include, exclude)

    def clone_with(
        self,
        name: str,
        image: str | Image | None = None,
        resources: Resources | None = None,
        env_vars: dict[str, str] | None = None,
        secrets: SecretRequest | None = None,
        depends_on: list[TaskEnvironment] | None = None,
        description: str | None = None,
        interruptible: bool | None = None,
        include: tuple[str, ...] | None = None,
        service_account: str | None = None,
        **kwargs: Any,
    ) -> TaskEnvironment:
        """Return another environment like this one, without its tasks, under a new name.

        What is None stays as it is here, `reusable` and `queue` included. Besides the parameters, `cache=`
        and `reusable=` may be given; `reusable=None` turns reuse off.

        Raises:
            TypeError: Another keyword is given.

        Source: flyte.TaskEnvironment.clone_with.
        """
        unknown = [key for key in kwargs if key not in ("cache", "reusable")]
        if unknown:
            hint = _did_you_mean(unknown[0], ("cache", "reusable", "resources", "env_vars", "secrets"))
            raise TypeError(f"Unexpected keyword arguments: {unknown}{hint}")
        given = {
            "image": image,
            "resources": resources,
            "env_vars": env_vars,
            "secrets": secrets,
            "depends_on": depends_on,
            "description": description,
            "interruptible": interruptible,
            "include": include,
            "service_account": service_account,
        }
        changes = {key: value for key, value in given.items() if value is not None} | kwargs
        kept = self._declared() | {"depends_on": list(self.depends_on)}
        return TaskEnvironment(**(kept | changes | {"name": name}))

    def spec(self, interpreter: str) -> EnvironmentSpec:
        """Return what makes this environment's pool the pool it is; `interpreter` is the path of a Python.

        Raises:
            NoUsableGPU: It asks for a device that only a cluster has.
            ValueError: A quantity or a secret's name cannot be read.
        """
        return _spec(
            name=self.name,
            interpreter=interpreter,
            resources=self.resources,
            env_vars=self.env_vars,
            secrets=self.secrets,
            reusable=self.reusable,
        )

    def scaling(self) -> Scaling:
        """Return how many replicas the pool may have, and for how long."""
        return self.reusable.scaling() if self.reusable else SINGLE_USE_SCALING

    def declaration(self) -> dict[str, Any]:
        """Return the keyword arguments that declare the same environment in a replica.

        Without `depends_on`: two environments may depend on each other, and no replica asks for it.
        """
        return {name: value for name, value in self._declared().items() if value is not _FIELD_DEFAULTS.get(name)}

    def _declared(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name in _FIELD_DEFAULTS}

    def __getstate__(self) -> dict[str, Any]:
        # Its tasks stay behind: each of them brings its environment along.
        return {key: value for key, value in self.__dict__.items() if key != "_tasks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _tasks={})


_FIELD_DEFAULTS = {each.name: each.default for each in fields(TaskEnvironment) if each.init} | {"include": ()}
del _FIELD_DEFAULTS["depends_on"]


def _expect(name: str, value: object, types: type | tuple[type, ...], expected: str) -> None:
    if not isinstance(value, types):
        raise TypeError(f"Expected {name} to be of type {expected}, got {type(value)}")


def _check_env_vars(env_vars: object) -> None:
    if env_vars is None:
        return
    if not isinstance(env_vars, dict):
        raise TypeError(f"Expected env_vars to be of type Dict[str, str], got {type(env_vars)}")
    for name, value in env_vars.items():
        if not isinstance(value, str):
            logger.warning("env_vars[%r] is of type %s; its str() is used.", name, type(value).__name__)


def _check_pod_template(pod_template: object) -> None:
    # By name: Flyte's own class is accepted without importing it.
    if pod_template is not None and not (isinstance(pod_template, str) or type(pod_template).__name__ == "PodTemplate"):
        raise TypeError(f"Expected pod_template to be of type str or PodTemplate, got {type(pod_template)}")


def _unexpected_task_option(name: str) -> TypeError:
    error = TypeError(f"TaskEnvironment.task() got an unexpected keyword argument {name!r}")
    if name in ("resources", "env_vars", "secrets", "reusable", "image"):
        return with_notes(
            error,
            f"All tasks of an environment share its {name}.",
            f"Put {name}= into the TaskEnvironment, or use env.clone_with(...) for a second one.",
        )
    return with_notes(error, "The name is always <environment>.<function>." if name == "name" else None)


def _is_a_task(task: Task[..., Any]) -> TypeError:
    name = task.func.__name__
    return with_notes(
        TypeError(f"Cannot make a task of {task.name}: it is a task already."),
        f"Use its function, task({name}.func), for one more environment, or {name}.override(...) for other options.",
    )


def _spec(
    *,
    name: str,
    interpreter: str,
    resources: Resources | None,
    env_vars: Mapping[str, object] | None,
    secrets: SecretRequest | None,
    reusable: ReusePolicy | None,
) -> EnvironmentSpec:
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


@dataclass(frozen=True)
class NativeInterface:
    """A task's inputs and outputs as Python types.

    `inputs` is (type, default) by name, with `inspect.Parameter.empty` for what is missing; `outputs` is the
    type by name: `o0`, `o1` for a tuple or a tuple of types, the field names for a NamedTuple, nothing for None.
    """

    inputs: dict[str, tuple[Any, Any]]
    outputs: dict[str, Any]

    def required_inputs(self) -> list[str]:
        """Return the names of the inputs without a default."""
        return [name for name, (_, default) in self.inputs.items() if default is inspect.Parameter.empty]

    def num_required_inputs(self) -> int:
        """Return how many inputs have no default."""
        return len(self.required_inputs())

    def has_outputs(self) -> bool:
        """Return whether the task returns something other than None."""
        return bool(self.outputs)

    def get_input_types(self) -> dict[str, Any]:
        """Return the type of each input by name."""
        return {name: annotation for name, (annotation, _) in self.inputs.items()}


def _outputs(annotation: Any) -> dict[str, Any]:
    if annotation in (inspect.Parameter.empty, None, NoneType):
        return {}
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        return dict(typing.get_type_hints(annotation))
    if typing.get_origin(annotation) is tuple:
        types = typing.get_args(annotation)
        if Ellipsis in types:
            raise TypeError("Variable length tuples are not supported as return types.")
        return {f"o{position}": each for position, each in enumerate(types)}
    if isinstance(annotation, tuple):
        if len(annotation) == 1:  # Flyte's words
            raise TypeError("Please don't use a tuple if you're just returning one thing.")
        return {f"o{position}": each for position, each in enumerate(annotation)}
    return {"o0": annotation}


_OPTION_DEFAULTS: dict[str, Any] = {
    "short_name": None,
    "cache": None,
    "retries": None,
    "timeout": 0,
    "docs": None,
    "pod_template": None,
    "report": False,
    "interruptible": False,
    "max_inline_io_bytes": MAX_INLINE_IO_BYTES,
    "queue": None,
    "service_account": None,
    "triggers": (),
    "links": (),
    "task_resolver": None,
    "entrypoint": False,
    "produces_artifacts": False,
    "resources": None,
    "env_vars": None,
    "secrets": None,
    "reusable": None,
}
_NEVER_ENOUGH = sys.maxsize


class Task(Generic[P, R]):
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
        self, func: Callable[P, R], environment: TaskEnvironment, options: Mapping[str, Any] | None = None
    ) -> None:
        # `options` are effective values: whoever makes the task has resolved environment < task < override.
        merged = _OPTION_DEFAULTS | dict(options or {})
        self._options = merged
        self.func = func
        self.environment = environment
        self.parent_env_name = environment.name
        self.name = f"{environment.name}.{func.__name__}"
        self.short_name: str = merged["short_name"] or func.__name__
        self.is_async = inspect.iscoroutinefunction(func)
        self.resources: Resources | None = merged["resources"]
        self.env_vars: dict[str, str] | None = merged["env_vars"]
        self.secrets: SecretRequest | None = merged["secrets"]
        self.reusable: ReusePolicy | None = merged["reusable"]
        self.cache: Cache = merged["cache"] or Cache("disable")
        self.retries: RetryStrategy = merged["retries"] or RetryStrategy(0)
        self.timeout: TimeoutType = merged["timeout"]
        self.time_limits = timeout_from_request(merged["timeout"])
        self.docs: Any = merged["docs"]
        self.pod_template: Any = merged["pod_template"]
        self.report: bool = merged["report"]
        self.interruptible: bool = merged["interruptible"]
        self.max_inline_io_bytes: int = merged["max_inline_io_bytes"]
        self.queue: str | None = merged["queue"]
        self.service_account: str | None = merged["service_account"]
        self.triggers: tuple[Any, ...] = merged["triggers"]
        self.links: tuple[Any, ...] = merged["links"]
        self.task_resolver: Any = merged["task_resolver"]
        self.entrypoint: bool = merged["entrypoint"]
        self.produces_artifacts: bool = merged["produces_artifacts"]
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
        return self.func, pickle.dumps(functools.partial(task_from_declaration, *self.declaration()))

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
                hint = _did_you_mean(key, expected)
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
            hint = _did_you_mean(name, _OPTION_DEFAULTS)
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
        _expect("resources", resources, (Resources, NoneType), "Resources")
        _expect("secrets", secrets, (str, Secret, list, NoneType), "SecretRequest")
        _check_env_vars(env_vars)
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
        return Task(self.func, self.environment, self._options | changes)

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
            outputs=_outputs(hints.get("return", self.signature.return_annotation)),
        )

    def spec(self, interpreter: str) -> EnvironmentSpec:
        """Return what makes the pool that runs this task the pool it is; as `TaskEnvironment.spec`."""
        spec = self._spec
        if spec is None or spec.interpreter != interpreter:
            spec = _spec(
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
            self._scaling = self.reusable.scaling() if self.reusable else SINGLE_USE_SCALING
        return self._scaling

    def declaration(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what `task_from_declaration` needs besides the function: environment and task options."""
        options = {name: value for name, value in self._options.items() if value is not _OPTION_DEFAULTS[name]}
        return self.environment.declaration(), options

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
        return task_from_declaration, (*self.declaration(), function)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Task):
            return NotImplemented
        return self.func is other.func and self.name == other.name and self._options == other._options

    def __repr__(self) -> str:
        kind = "async " if self.is_async else ""
        return f"<{kind}task {self.name}{self.signature} reusable={self.reusable!r}>"


def task_from_declaration(
    environment_declaration: dict[str, Any], task_options: dict[str, Any], function: Any
) -> Task[..., Any]:
    """Return the task that `Task.declaration` described, around `function`: how a replica gets its own.

    `function` may also be another task of the same function.
    """
    func = function.func if isinstance(function, Task) else function
    return Task(func, TaskEnvironment(**environment_declaration), task_options)


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
    from . import remote

    __tracebackhide__ = True
    task._dispatch = remote.call
    return remote.call(task, args, kwargs)


def _first_acall(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from . import remote

    task._dispatch = remote.acall
    return remote.acall(task, args, kwargs)


def _first_aio(task: Task[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from . import remote

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
