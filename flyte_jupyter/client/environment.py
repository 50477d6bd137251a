"""Environments, as a user declares them.

Names, signatures and refusals are Flyte's (SDK 2.12.1); nothing here starts a process or touches a socket.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import FrameType, NoneType
from typing import Any, ParamSpec, TypeVar, get_overloads, overload

from ..core.policy import (
    Cache,
    CacheRequest,
    RetryStrategy,
    ReusePolicy,
    Secret,
    SecretRequest,
    cache_from_request,
    retries_from_request,
)
from ..core.resources import Resources
from ..core.spec import EnvironmentSpec, Scaling
from ..errors import with_notes
from .checks import check_env_vars, check_pod_template, did_you_mean, expect
from .fresh import fresh_scaling
from .functions import task_function
from .handle import handle_of
from .image import Image
from .options import MAX_INLINE_IO_BYTES, OF_THE_ENVIRONMENT, TimeoutType, pool_spec
from .task import Task

__all__ = ["Task", "TaskEnvironment"]

logger = logging.getLogger("flyte")

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

_LONGEST_NAME = 63  # what the platform's interface definition allows
_LONGEST_DESCRIPTION = 255
_NAME = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")


def _hinting(cls: C) -> C:
    # Around the generated constructor, so that its signature stays exactly Flyte's.
    construct: Callable[..., None] = cls.__init__  # type: ignore[misc]
    known = [each.name for each in fields(cls) if each.init]

    @functools.wraps(construct)
    def hinting(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known:
                hint = did_you_mean(name, known)
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
        for entry in tuple(given.include):
            if not isinstance(entry, str):
                raise TypeError(f"include entries must be str, got {type(entry)}")
        for dependency in given.depends_on:
            expect("depends_on", dependency, TaskEnvironment, "List[Environment]")
        expect("image", given.image, (str, Image, NoneType), "str or Image")
        expect("resources", given.resources, (Resources, NoneType), "Resources")
        expect("secrets", given.secrets, (str, Secret, list, NoneType), "SecretRequest")
        expect("service_account", given.service_account, (str, NoneType), "str")
        expect("cache", given.cache, (str, Cache), "str or Cache")
        if given.reusable:
            expect("reusable", given.reusable, ReusePolicy, "ReusePolicy")
        check_env_vars(given.env_vars)
        check_pod_template(given.pod_template)

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

    def task(self, _func: Callable[..., Any] | None = None, **stated: Any) -> Any:
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
        for name in stated:
            if name not in TASK_ARGUMENTS:
                raise _unexpected_task_option(name)
        if self.reusable and stated.get("pod_template") is not None:
            raise ValueError("Cannot set pod_template when environment is reusable.")
        if self.reusable and stated.get("service_account") not in (None, self.service_account):
            raise ValueError("Cannot override service_account when environment is reusable.")
        options = self._options(stated)

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

    def _options(self, stated: dict[str, Any]) -> dict[str, Any]:
        """What is stated for a task, over what is stated here for all."""
        options = {**stated, **{name: getattr(self, name) for name in OF_THE_ENVIRONMENT}}
        options["reusable"] = self.reusable or None
        options["short_name"] = stated.get("short_name") or ""
        options["retries"] = retries_from_request(stated.get("retries", 0))
        for name in ("cache", "pod_template", "interruptible"):
            if stated.get(name) is None:
                options[name] = getattr(self, name)
        options["cache"] = cache_from_request(options["cache"])
        for name in ("queue", "service_account"):
            options[name] = stated.get(name) or getattr(self, name)
        for name in ("triggers", "links"):
            value = stated.get(name, ())
            options[name] = value if isinstance(value, tuple) else (value,)
        return options

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
            hint = did_you_mean(unknown[0], ("cache", "reusable", "resources", "env_vars", "secrets"))
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
        return pool_spec(
            name=self.name,
            interpreter=interpreter,
            resources=self.resources,
            env_vars=self.env_vars,
            secrets=self.secrets,
            reusable=self.reusable,
        )

    def scaling(self) -> Scaling:
        """Return how many replicas the pool may have, and for how long."""
        return self.reusable.scaling() if self.reusable else fresh_scaling()

    @staticmethod
    def remake(environment: dict[str, Any], options: dict[str, Any], function: Any) -> Task[..., Any]:
        """Return the task that `Task.declaration` described, around `function`: how a replica gets its own.

        `function` may also be another task of the same function.
        """
        func = function.func if isinstance(function, Task) else function
        return Task(func, TaskEnvironment(**environment), options)

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

# `task` has the signature of its second overload; so whatever that lists is listed once.
TASK_ARGUMENTS = tuple(inspect.signature(get_overloads(TaskEnvironment.task)[1]).parameters)[2:]
TaskEnvironment.task.__signature__ = inspect.signature(get_overloads(TaskEnvironment.task)[1])  # type: ignore[attr-defined]


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
