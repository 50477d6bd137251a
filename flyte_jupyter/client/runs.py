"""Flyte's run-level functions, here on warm kernels: run, map, group, trace, ctx.

Calls take along what a run tells them: see `calling`.
"""

from __future__ import annotations

import functools
import inspect
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, Final, ParamSpec, TypeVar, cast

from .. import errors, runtime
from ..core.context import GroupData, TaskContext, current
from .calling import DEFAULT_RUN, calling, tracing, with_calls
from .task import Task

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("flyte")


# --- run


class Outputs(tuple[Any, ...]):
    """What a run returned, by position and by name: `o0`, `o1`, or the fields of a NamedTuple.

    Example:
        >>> outputs = Outputs((3, "b"), ("o0", "o1"))
        >>> outputs, outputs[0], outputs.o1
        (o0=3, o1='b', 3, 'b')
        >>> Outputs.of(None, {})
        (None,)
    """

    names: tuple[str, ...]

    def __new__(cls, values: Iterable[Any], names: tuple[str, ...] = ()) -> Outputs:
        made = super().__new__(cls, values)
        made.names = names
        return made

    @classmethod
    def of(cls, value: Any, declared: Mapping[str, Any], task: str = "") -> Outputs:
        """Return the outputs of a task that returned `value`; `declared` is its interface's `outputs`.

        Raises:
            RuntimeDataValidationError: Several outputs are declared, and it returned something else.
        """
        names = tuple(declared)
        if value is None and len(names) <= 1:
            return cls((None,))
        if len(names) <= 1:
            return cls((value,), names or ("o0",))  # without an annotation, too: notebooks have few
        if not isinstance(value, tuple) or len(value) != len(names):
            found = f"{len(value)} values" if isinstance(value, tuple) else type(value).__name__
            raise errors.RuntimeDataValidationError(
                names[0], f"{len(names)} outputs are declared and it returned {found}", task
            )
        return cls(value, names)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[self.__dict__["names"].index(name)]
        except (KeyError, ValueError):
            raise AttributeError(f"no output {name!r}; there are {', '.join(self.names) or 'none'}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Outputs, (tuple(self), self.names)

    def __repr__(self) -> str:
        if not self.names:
            return super().__repr__()
        return ", ".join(f"{name}={value!r}" for name, value in zip(self.names, self, strict=True))


class Run:
    """A run that is over: `run` waits for its task. Source: flyte's Run, the part that means something here.

    Attributes:
        name: As given to `with_runcontext`, or made up.
    """

    def __init__(self, name: str, outputs: Outputs) -> None:
        self.name = name
        self._outputs = outputs

    @property
    def url(self) -> str:
        """The log of the broker, where the run's story is."""
        return str(runtime.broker_log(runtime.runtime_folder()))

    def outputs(self) -> Outputs:
        """Return what the task returned: `outputs()[0]`; `(None,)` if that was nothing."""
        return self._outputs

    def wait(self, quiet: bool = False, wait_for: str = "terminal") -> None:
        """Return at once: the run is over."""

    def __repr__(self) -> str:
        return f"<run {self.name}: {self._outputs!r}>"


class RunFunction:
    """`flyte_jupyter.run`: run a task and wait for it, be it sync or async; `run.aio` is the awaitable form.

    Example:
        >>> from flyte_jupyter import TaskEnvironment, run
        >>> env = TaskEnvironment("docs")
        >>> @env.task
        ... async def double(x: int) -> int:
        ...     return 2 * x
        >>> run(double, 2).outputs()[0]  # doctest: +SKIP
        4
    """

    def __init__(self, name: str | None = None, custom_context: Mapping[str, str] | None = None) -> None:
        self._name = name
        self._custom_context = dict(custom_context or {})

    def __call__(self, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Run:
        """Block until the task has run. Also inside a notebook's running event loop; Ctrl-C stops the task.

        Raises:
            TypeError: It is not a task.
            ValueError: An argument is missing, unknown or given twice.
            SyncTaskCallInAsyncContextError: Inside an async task: await `run.aio(...)` there.
            BaseException: What the task raises, directly.
        """
        from . import remote

        __tracebackhide__ = True
        declared = _declared_outputs(task)
        said = self._said()
        with with_calls(**said):
            value = remote.call(task, args, kwargs)
        return Run(said["run"], Outputs.of(value, declared, task.name))

    async def aio(self, task: Task[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Run:
        """Run a task without blocking the event loop; otherwise the same."""
        from . import remote

        __tracebackhide__ = True
        declared = _declared_outputs(task)
        said = self._said()
        with with_calls(**said):
            value = await remote.acall(task, args, kwargs)
        return Run(said["run"], Outputs.of(value, declared, task.name))

    def _said(self) -> dict[str, Any]:
        parent = current.get()
        name = self._name
        if name is None:
            nested = parent is not None and parent.action.run_name != DEFAULT_RUN
            name = parent.action.run_name if parent is not None and nested else f"r{uuid.uuid4().hex[:10]}"
        said: dict[str, Any] = {"run": name}
        if self._custom_context:
            said["custom_context"] = self._custom_context
        return said


def _declared_outputs(task: Task[..., Any]) -> dict[str, Any]:
    if not isinstance(task, Task):
        raise TypeError(
            f"On Flyte tasks can be run, not generic functions or methods; got {type(task).__name__} {task!r}"
        )
    return task.native_interface.outputs


run: Final = RunFunction()


class RunContext:
    """What `with_runcontext` returns: `.run(task, ...)` and `.run.aio(task, ...)` with what was stated."""

    def __init__(self, run: RunFunction) -> None:
        self.run = run


def with_runcontext(
    mode: str | None = None,
    name: str | None = None,
    env_vars: Mapping[str, str] | None = None,
    custom_context: Mapping[str, str] | None = None,
    **accepted_and_ignored: Any,
) -> RunContext:
    """State how tasks are run: `with_runcontext(name="sweep").run(task, 1)`.

    Args:
        mode: None or `"local"`. The other modes need a cluster.
        name: `ctx().action.run_name` in the task and in those it calls.
        env_vars: Accepted and ignored, as in Flyte's local mode: a warm kernel has its environment already.
        custom_context: `ctx().custom_context` in the task and in those it calls.
        accepted_and_ignored: What else Flyte takes: it means something on a cluster only.

    Raises:
        InitializationError: `mode` asks for a cluster.
        ValueError: There is no such mode.
        TypeError: The custom context is not a mapping of str to str.

    Source: flyte.with_runcontext.
    """
    if mode in ("remote", "hybrid"):
        raise errors.with_notes(
            errors.InitializationError(
                "ClientNotInitializedError", "user", f"mode={mode!r} runs on a cluster, and none is configured."
            ),
            'Tasks of flyte_jupyter run on this machine\'s warm kernels: mode="local", or none.',
        )
    if mode not in (None, "local"):
        raise ValueError(f"mode must be None, 'local', 'remote' or 'hybrid', got {mode!r}")
    for key, value in (custom_context or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"custom_context must map str to str, got {key!r}: {value!r}")
    return RunContext(RunFunction(name, custom_context))


def init(*args: Any, **kwargs: Any) -> None:
    """Do nothing: warm kernels need no set-up. Source: flyte.init, so that a script for a cluster runs here."""


def init_from_config(*args: Any, **kwargs: Any) -> None:
    """Do nothing, as `init`. Source: flyte.init_from_config."""


# --- ctx, group, trace


class _Outside(TaskContext):
    """The context outside a task: false, and every field of it is None."""

    __slots__ = ()

    def __init__(self) -> None:
        """No field is set, so that each is looked for by `__getattr__`."""

    def __getattr__(self, name: str) -> None:
        if name in _FIELDS:
            return
        raise AttributeError(f"a task context has no {name!r}")

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "<outside a task>"


_FIELDS: Final = frozenset(each.name for each in fields(TaskContext))
_OUTSIDE: Final = _Outside()


def ctx() -> TaskContext:
    """Return what the running task knows about itself; outside a task a false object whose fields are None.

    Source: flyte.ctx.

    Example:
        >>> bool(ctx()), ctx().action, ctx().is_in_cluster()
        (False, None, False)
    """
    task = current.get()
    if task is None:
        return _OUTSIDE
    said = calling.get()
    if said is not None and "group" in said:
        return replace(task, group_data=GroupData(said["group"]))
    return task


@contextmanager
def group(name: str) -> Iterator[None]:
    """Tag the calls made inside: `ctx().group_data.name` in them, and in what they call.

    Source: flyte.group.
    """
    with with_calls(group=name):
        yield


def trace(function: F) -> F:
    """Mark a function as a step of its task that calls no other task; it runs in place, as it would without.

    Inside a task, calling a task from it raises TraceDoesNotAllowNestedTasksError; `.forward` is allowed.

    Source: flyte.trace.

    Example:
        >>> @trace
        ... def step(x: int) -> int:
        ...     return x + 1
        >>> step(1)
        2
    """
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def stream(*args: Any, **kwargs: Any) -> Any:
            inner = function(*args, **kwargs)
            try:
                while True:
                    token = tracing.set(True)
                    try:
                        value = await inner.__anext__()
                    except StopAsyncIteration:
                        return
                    finally:
                        tracing.reset(token)
                    yield value
            finally:
                await inner.aclose()

        return cast(F, stream)
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def step(*args: Any, **kwargs: Any) -> Any:
            token = tracing.set(True)
            try:
                return await function(*args, **kwargs)
            finally:
                tracing.reset(token)

        return cast(F, step)

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        token = tracing.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            tracing.reset(token)

    return cast(F, plain)


# --- map


class MapFunction:
    """`flyte_jupyter.map`: one call per item, on as many slots as the pool has; results in order.

    Args:
        mapped: A task, sync or async; or a `functools.partial` of one that leaves exactly one parameter.
        iterables: Zipped into arguments, so the shortest decides. Read as calls are started, never all at once.
        group_name: As `group(name)` around the calls.
        concurrency: The most calls at a time; 0 is what the pool has room for.
        return_exceptions: True yields a failed call's exception in its place. False raises the first one in order:
            what comes after it is cancelled as soon as it fails, and has ended when it is raised.

    Closing the iterator, or Ctrl-C, stops the calls that run. Large arrays that all calls share (in a partial, or in
    `itertools.repeat`) are written once, when the first call is made.

    Raises:
        TypeError: It is no task, or a partial that leaves none or several parameters.
        ValueError: The task does not take that many arguments, or `concurrency` is negative.
        SyncTaskCallInAsyncContextError: Without `.aio` inside an async task.

    Source: flyte.map.
    """

    def __call__(
        self,
        mapped: Task[..., Any] | functools.partial[Any],
        /,
        *iterables: Iterable[Any],
        group_name: str | None = None,
        concurrency: int = 0,
        return_exceptions: bool = True,
    ) -> Iterator[Any]:
        """Return a lazy iterator over the results; nothing runs before its first `next`."""
        from .mapping import TaskMap

        mapping = TaskMap(mapped, iterables, group_name, concurrency, return_exceptions)
        mapping.check_place(blocking=True)
        return mapping.results()

    def aio(
        self,
        mapped: Task[..., Any] | functools.partial[Any],
        /,
        *iterables: Iterable[Any],
        group_name: str | None = None,
        concurrency: int = 0,
        return_exceptions: bool = True,
    ) -> AsyncIterator[Any]:
        """Return the same as an asynchronous iterator: `async for result in map.aio(...)`."""
        from .mapping import TaskMap

        mapping = TaskMap(mapped, iterables, group_name, concurrency, return_exceptions)
        mapping.check_place(blocking=False)
        return mapping.results_async()


map: Final = MapFunction()
