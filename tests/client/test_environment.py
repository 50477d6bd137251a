"""Declaring environments and tasks: what Flyte accepts, refuses and makes of it."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import io
import logging
import pickle
import re
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

import cloudpickle
import pytest

from flyte_jupyter import errors
from flyte_jupyter.client.environment import Task, TaskEnvironment
from flyte_jupyter.client.image import Image
from flyte_jupyter.client.pools import pool
from flyte_jupyter.client.runs import trace
from flyte_jupyter.core.policy import Cache, RetryStrategy, ReusePolicy, Secret, Timeout
from flyte_jupyter.core.resources import TPU, Resources

PYTHON = "/usr/bin/python3"
GOOD_NAMES = ["a", "1", "a_b-c", "a" * 63]
BAD_NAMES = ["A", "a__b", "a--b", "_a", "a_", "a.b", "a b", "", "é", "a\n"]
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"image": 5}, TypeError, "Expected image"),
    ({"depends_on": [1]}, TypeError, "Expected depends_on"),
    ({"resources": {}}, TypeError, "Expected resources"),
    ({"env_vars": [1]}, TypeError, "Expected env_vars"),
    ({"secrets": 5}, TypeError, "Expected secrets"),
    ({"cache": 5}, TypeError, "Expected cache"),
    ({"reusable": {"replicas": 1}}, TypeError, "Expected reusable to be of type ReusePolicy"),
    ({"reusable": 5}, TypeError, "Expected reusable to be of type ReusePolicy"),
    ({"pod_template": 5}, TypeError, "Expected pod_template"),
    ({"service_account": 5}, TypeError, "Expected service_account"),
    ({"include": "a.py"}, TypeError, "sequence of str paths"),
    ({"include": (1,)}, TypeError, "include entries must be str"),
    ({"queueue": "x"}, TypeError, "unexpected keyword argument"),
]


LOCK = threading.Lock()


def warm(**kwargs: Any) -> TaskEnvironment:
    return TaskEnvironment("warm", **({"reusable": ReusePolicy(2)} | kwargs))


def plain(a: int, b: str = "x") -> int:
    return a


async def waits(a: int) -> int:
    return a


async def yields(a: int):  # type: ignore[no-untyped-def]
    yield a


module_env = TaskEnvironment("module", resources=Resources(cpu=1))


@module_env.task
def in_module(a: int) -> int:
    return a + 1


# --- environments (1.2) ---


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_name_is_accepted(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert TaskEnvironment(name).name == name
    assert not caplog.records


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be in snake_case or kebab-case"):
        TaskEnvironment(name)


@pytest.mark.parametrize("name", [5, None])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    with pytest.raises(TypeError):
        TaskEnvironment(name)


def test_a_name_too_long_for_a_cluster_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    TaskEnvironment("a" * 64)
    assert "a cluster allows 63" in caplog.text


@pytest.mark.parametrize(("given", "error", "phrase"), REFUSED)
def test_an_environment_refuses(given: dict[str, Any], error: type[Exception], phrase: str) -> None:
    with pytest.raises(error, match=phrase):
        TaskEnvironment("e", **given)


def test_flyte_accepts_and_refuses_the_same_environments() -> None:
    flyte = pytest.importorskip("flyte")
    for name in GOOD_NAMES:
        assert flyte.TaskEnvironment(name).name == name
    for name in BAD_NAMES:
        with pytest.raises(ValueError, match="must be in snake_case or kebab-case"):
            flyte.TaskEnvironment(name)
    for given, error, phrase in REFUSED:
        with pytest.raises(error, match=phrase):
            flyte.TaskEnvironment("e", **given)
    for ours, theirs in (
        (TaskEnvironment, flyte.TaskEnvironment),
        (TaskEnvironment.task, flyte.TaskEnvironment.task),
        (TaskEnvironment.clone_with, flyte.TaskEnvironment.clone_with),
        (in_module.override, flyte.TaskEnvironment("e").task(plain).override),
    ):
        names = [name for name in inspect.signature(ours).parameters if name != "unexpected"]
        assert names == list(inspect.signature(theirs).parameters)


def test_a_pool_is_of_an_environment_of_ours() -> None:
    theirs = type("TaskEnvironment", (), {"__module__": "flyte._task_environment"})
    with pytest.raises(TypeError, match=r"got flyte\._task_environment\.TaskEnvironment: .*flyte_jupyter as flyte"):
        pool(theirs())
    with pytest.raises(TypeError, match=r"got builtins\.str$"):
        pool("gpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no reusable policy"):
        pool(TaskEnvironment("cold"))


@pytest.mark.parametrize("called", [lambda task: task(LOCK), lambda task: asyncio.run(task.aio(LOCK))])
def test_what_a_call_raises_by_itself_is_an_error_of_the_real_package_too(
    called: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = types.ModuleType("flyte.errors")
    theirs.RuntimeUserError = type("RuntimeUserError", (RuntimeError,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flyte.errors", theirs)
    task = warm().task(plain)
    with pytest.raises(errors.ArgumentNotSerializable) as caught:
        called(task)
    assert isinstance(caught.value, theirs.RuntimeUserError)


def test_plugins_do_not_go_with_reuse_and_pod_templates_do() -> None:
    with pytest.raises(ValueError, match="Cannot set plugin_config when environment is reusable"):
        warm(plugin_config=5)
    assert warm(pod_template="x").pod_template == "x"


@pytest.mark.parametrize("keyword", ["reuse_policy", "reusabel"])
def test_a_misspelt_reusable_is_recognised(keyword: str) -> None:
    with pytest.raises(TypeError, match="did you mean reusable="):
        TaskEnvironment("e", **{keyword: ReusePolicy()})


def test_what_is_normalised(caplog: pytest.LogCaptureFixture) -> None:
    values: Any = {"A": 1}
    include: Any = ["a.py"]
    env = TaskEnvironment("e", description="x" * 300, include=include, env_vars=values)
    assert (len(env.description or ""), env.include) == (255, ("a.py",))
    assert "its str() is used" in caplog.text
    assert env.spec(PYTHON).env_vars == (("A", "1"),)


def test_environments_are_equal_by_value_and_unhashable() -> None:
    assert warm(queue="q") == warm(queue="q")
    assert warm() != warm(queue="q")
    with pytest.raises(TypeError):
        hash(warm())


def test_positional_arguments_are_in_the_order_of_flyte() -> None:
    other = TaskEnvironment("o")
    env = TaskEnvironment("e", [other], "pod", "text", "token", {"A": "1"}, Resources(cpu=1), True)
    assert (env.depends_on, env.secrets, env.interruptible) == ([other], "token", True)


def test_a_clone_keeps_what_is_not_given_but_no_tasks() -> None:
    env = warm(queue="q", interruptible=True, secrets="s", env_vars={"A": "1"})
    env.task(plain)
    clone = env.clone_with("driver", depends_on=[env], env_vars={"B": "2"})
    assert (clone.name, clone.queue, clone.interruptible, clone.secrets) == ("driver", "q", True, "s")
    assert (clone.reusable, clone.env_vars, clone.depends_on) == (env.reusable, {"B": "2"}, [env])
    assert clone.tasks == {}
    assert env.clone_with("driver", reusable=None).reusable is None
    assert env.clone_with("driver", cache="auto").cache == "auto"


@pytest.mark.parametrize("keyword", ["queue", "plugin_config", "pod_template", "bogus"])
def test_a_clone_refuses_other_keywords(keyword: str) -> None:
    with pytest.raises(TypeError, match="Unexpected keyword arguments"):
        warm().clone_with("c", **{keyword: None})


def test_dependencies_are_added_once_and_never_on_itself() -> None:
    env, other = TaskEnvironment("e"), TaskEnvironment("o")
    env.add_dependency(other)
    env.add_dependency(other)
    assert env.depends_on == [other]
    for same in (env, TaskEnvironment("e", queue="q")):
        with pytest.raises(ValueError, match="Cannot add self as a dependency"):
            env.add_dependency(same)
    assert env.depends_on == [other]
    with pytest.raises(TypeError, match="Expected Environment"):
        env.add_dependency(5)  # type: ignore[arg-type]


# --- tasks ---


def test_a_task_is_named_after_environment_and_function_and_replaced_by_name() -> None:
    env = warm()
    first, second = env.task(plain), env.task(short_name="shown", retries=2)(plain)
    assert (first.name, first.short_name, second.short_name) == ("warm.plain", "plain", "shown")
    assert env.tasks == {"warm.plain": second}
    assert env.task(lambda: 1).name == "warm.<lambda>"
    assert (first.retries, second.retries) == (RetryStrategy(0), RetryStrategy(2))
    assert (first.timeout, first.time_limits.seconds("max_runtime")) == (0, None)


def test_a_task_looks_like_its_function() -> None:
    assert inspect.signature(in_module) == inspect.signature(in_module.func)
    assert (in_module.__name__, in_module.__module__) == ("in_module", __name__)
    assert in_module.forward(1) == 2
    assert in_module.func(1) == 2
    assert warm().task(waits).is_async
    assert not in_module.is_async


@pytest.mark.parametrize(
    ("given", "error", "phrase"),
    [
        ({"retries": -1}, ValueError, "must be greater than or equal to 0"),
        ({"retries": "1"}, ValueError, "retries must be an int"),
        ({"retries": 1.5}, ValueError, "retries must be an int"),
        ({"cache": "bogus"}, ValueError, "Invalid cache behavior"),
        ({"timeout": "x"}, ValueError, "Timeout must be"),
        ({"timeout": -1}, ValueError, "greater than or equal to 0"),
        ({"pod_template": "x"}, ValueError, "Cannot set pod_template when environment is reusable"),
        (
            {"service_account": "x"},
            ValueError,
            "Cannot override service_account when environment is reusable",
        ),
        *(
            ({name: None}, TypeError, "unexpected keyword argument")
            for name in ("resources", "secrets", "env_vars", "image", "reusable", "name", "bogus")
        ),
    ],
)
def test_a_task_refuses(given: dict[str, Any], error: type[Exception], phrase: str) -> None:
    with pytest.raises(error, match=phrase):
        warm().task(**given)(plain)


def test_a_wrong_cache_passes_the_environment_and_fails_at_the_task() -> None:
    env = TaskEnvironment("e", cache="bogus")
    with pytest.raises(ValueError, match="Invalid cache behavior"):
        env.task(plain)
    assert TaskEnvironment("e", cache="on").task(plain).cache == Cache("auto")


def test_a_function_with_variable_arguments_is_refused() -> None:
    def collects(*args: int) -> None: ...
    def names(**kwargs: int) -> None: ...

    for function in (collects, names):
        with pytest.raises(ValueError, match="cannot have variable positional or keyword arguments"):
            warm().task(function)


class Model:
    def __init__(self, scale: int = 1) -> None:
        self.scale = scale

    def __call__(self, x: int) -> int:
        return x * self.scale

    def apply(self, x: int) -> int:
        return x * self.scale

    @classmethod
    def named(cls, x: int) -> str:
        return cls.__name__ * x


NO_FUNCTIONS: list[tuple[Any, str, str]] = [
    (Model(), "this Model object: it can be called, but it is no function", "makes or receives the object"),
    (Model, "class Model: a task is a function", "makes the object"),
    (int, "class int: a task is a function", "makes the object"),
    (functools.partial(plain, 1), "this partial object", r"calls plain\(\), or give flyte.map a partial"),
    (functools.partialmethod(Model.apply, 1), "this partialmethod object", "directly above the def"),
    (classmethod(plain), "this classmethod object: .* cannot be called", "directly above the def"),
    (property(plain), "this property object: .* cannot be called", "directly above the def"),
    (yields(1), "this async_generator object: a call has returned it", "without its parentheses"),
    (iter([1]), "this list_iterator object: .* cannot be called", "above a function; options have names"),
    ("name", "this str object: .* cannot be called", "above a function; options have names"),
    (5, "this int object: .* cannot be called", "above a function; options have names"),
    (min, "min: its parameters are not known", r"def with_min\(\.\.\.\)"),
    (in_module, "module.in_module: it is a task already", r"task\(in_module\.func\)"),
]


@pytest.mark.parametrize(("given", "why", "do"), NO_FUNCTIONS)
@pytest.mark.parametrize("options", [None, {"retries": 2}])
def test_what_is_no_function_is_refused_with_the_reason_and_the_cure(
    given: Any, why: str, do: str, options: dict[str, Any] | None
) -> None:
    env = warm()
    with pytest.raises(TypeError, match="Cannot make a task of " + why) as caught:
        env.task(given) if options is None else env.task(**options)(given)
    assert re.search(do, caught.value.__notes__[0])
    assert env.tasks == {}


def test_the_call_of_a_function_is_no_function() -> None:
    call = waits(1)
    with pytest.raises(TypeError, match="this coroutine object: a call has returned it") as caught:
        warm().task(call)  # type: ignore[call-overload]
    assert caught.value.__notes__ == ["Give the function itself, without its parentheses: task(waits)."]
    call.close()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,
        yields,
        len,
        Model(3).apply,
        Model.named,
        Model.apply,
        functools.cache(plain),
        functools.singledispatch(plain),
        functools.update_wrapper(functools.partial(plain, 1), plain),
    ],
)
def test_what_has_a_name_and_parameters_is_a_function(function: Any) -> None:
    task = warm().task(function)
    assert task.name == f"warm.{function.__name__}"
    assert task.func is function


# --- tasks in a class ---


def refusal(caught: pytest.ExceptionInfo[BaseException]) -> TypeError:
    """The TypeError itself: Python 3.11 wraps what a class statement finds when its body is over."""
    error = caught.value if isinstance(caught.value, TypeError) else caught.value.__cause__
    assert isinstance(error, TypeError)
    return error


def test_a_method_is_refused_at_the_decorator() -> None:
    env = warm()
    with pytest.raises(TypeError, match=r"method .*Trainer\.fit: nothing would give it its self\.") as caught:

        class Trainer:
            @env.task
            def fit(self, x: int) -> int:
                return x

    assert "outside of the class" in caught.value.__notes__[0]
    assert "@staticmethod above @env.task" in caught.value.__notes__[0]
    with pytest.raises(TypeError, match=r"method .*Loader\.load: nothing would give it its cls\.") as caught:

        class Loader:
            @env.task(
                retries=2,
            )
            @trace
            async def load(cls, x: int) -> int:
                return x

    assert "@classmethod above @env.task" in caught.value.__notes__[0]
    assert env.tasks == {}


def test_a_method_that_another_decorator_made_a_task_is_refused_by_the_class() -> None:
    env = warm()

    def gpu(function: Any) -> Any:
        return env.task(function)

    with pytest.raises((TypeError, RuntimeError)) as caught:

        class Trainer:
            @gpu
            def fit(self, x: int) -> int:
                return x

    assert re.search(r"method .*Trainer\.fit: nothing would give it its self\.", str(refusal(caught)))

    with pytest.raises((TypeError, RuntimeError)) as caught:

        class Later:
            def fit(self, x: int) -> int:
                return x

            fit = env.task(fit)  # type: ignore[assignment]

    assert "Later.fit" in str(refusal(caught))


def test_a_task_stands_in_a_class_where_something_gives_it_its_arguments() -> None:
    env = warm()

    class Trainer:
        @staticmethod
        @env.task
        def outside(x: int) -> int:
            return x

        @env.task
        @staticmethod
        def inside(x: int) -> int:
            return x

        @env.task
        def bare(x: int) -> int:  # type: ignore[misc]
            return x

        @classmethod
        @env.task
        def named(cls, x: int) -> int:
            return x

        @property
        @env.task
        def shown(self) -> int:
            return 1

        @functools.cached_property
        @env.task
        def kept(self) -> int:
            return 1

        borrowed = in_module
        unbound = env.task(Model.apply)
        later = env.task(lambda x: x)

    for task in (Trainer.outside, Trainer().outside, Trainer.inside, Trainer().inside, Trainer.bare):
        assert isinstance(task, Task)
        assert task.forward(2) == 2
    assert isinstance(Trainer.unbound, Task)
    assert Trainer.unbound.forward(Model(3), 2) == 6
    assert len(env.tasks) == 8


def test_a_task_may_call_its_first_parameter_self_outside_of_a_class() -> None:
    @warm().task
    def apply(self: Model, x: int) -> int:
        return self.apply(x)

    assert apply.forward(Model(3), 2) == 6


def test_the_function_in_a_static_method_is_the_task() -> None:
    env = warm(reusable=ReusePolicy(2, concurrency=10))

    class Trainer:
        @env.task
        @staticmethod
        async def fit(x: int) -> int:
            return x

    assert Trainer.fit.is_async
    assert inspect.isfunction(Trainer.fit.func)


def test_a_parameter_without_annotation_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    warm().task(lambda x: x)
    assert "has parameter x without type annotation. Data will be pickled." in caplog.text
    assert (caplog.records[0].name, caplog.records[0].levelno) == ("flyte", logging.WARNING)


@pytest.mark.parametrize("function", [plain, yields])
def test_concurrency_needs_async(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="only supported for async tasks") as caught:
        warm(reusable=ReusePolicy(2, concurrency=10)).task(function)
    assert f"async def {function.__name__}(a" in caught.value.__notes__[1]
    with pytest.raises(ValueError, match="only supported for async tasks"):
        warm().task(function).override(reusable=ReusePolicy(2, concurrency=10))
    assert warm(reusable=ReusePolicy(2, concurrency=10)).task(waits).is_async


class Pair(NamedTuple):
    x: int
    y: str


def test_the_interface_comes_from_the_annotations() -> None:
    interface = warm().task(plain).native_interface
    empty = inspect.Parameter.empty
    assert interface.inputs == {"a": (int, empty), "b": (str, "x")}
    assert (interface.outputs, interface.required_inputs()) == ({"o0": int}, ["a"])

    def outputs(annotation: Any) -> dict[str, Any]:
        def function() -> None: ...

        function.__annotations__ = {} if annotation is empty else {"return": annotation}
        return warm().task(function).native_interface.outputs

    assert outputs(tuple[int, str]) == {"o0": int, "o1": str}
    assert outputs((int, str)) == {"o0": int, "o1": str}
    assert outputs(()) == {}
    assert outputs(Pair) == {"x": int, "y": str}
    assert outputs(None) == {}
    assert outputs(Optional[int]) == {"o0": Optional[int]}  # noqa: UP045
    with pytest.raises(TypeError, match="Variable length tuples"):
        outputs(tuple[int, ...])
    with pytest.raises(TypeError, match="Please don't use a tuple if you're just returning one thing"):
        outputs((int,))


def test_an_annotation_that_names_nothing_is_kept_as_text(caplog: pytest.LogCaptureFixture) -> None:
    def function(a: int) -> None: ...

    function.__annotations__ = {"a": "Nowhere"}
    task = warm().task(function)
    assert list(task.native_interface.inputs) == ["a"]
    assert "Could not get type hints" in caplog.text


# --- override ---


@pytest.mark.parametrize(
    ("given", "phrase"),
    [
        ({"resources": Resources()}, "Cannot override resources when reusable is set"),
        ({"env_vars": {}}, "Cannot override env when reusable is set"),
        ({"env_vars": {"A": "1"}}, "Cannot override env when reusable is set"),
        ({"secrets": "x"}, "Cannot override secrets when reusable is set"),
        ({"service_account": "x"}, "Cannot override service_account when reusable is set"),
        ({"reusable": ReusePolicy(3), "resources": Resources()}, "Cannot override resources"),
    ],
)
def test_a_reusable_task_keeps_what_its_replicas_have(given: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ValueError, match=phrase) as caught:
        warm().task(plain).override(**given)
    assert str(caught.value).startswith("FJ701 Cannot change")
    assert "reusable='off'" in str(caught.value)
    assert "clone_with" in caught.value.__notes__[1]


def test_turning_reuse_on_does_not_go_with_new_resources() -> None:
    task = TaskEnvironment("cold").task(plain)
    assert task.override(resources=Resources(cpu=2)).resources == Resources(cpu=2)
    with pytest.raises(ValueError, match="FJ701"):
        task.override(reusable=ReusePolicy(2), resources=Resources(cpu=2))


def test_off_lifts_that_and_keeps_what_is_not_given() -> None:
    task = warm(env_vars={"A": "1"}, secrets="s").task(plain)
    off = task.override(reusable="off", resources=Resources(cpu="4"))
    assert (off.reusable, off.env_vars, off.secrets) == (None, {"A": "1"}, "s")
    assert off.override(resources=Resources(cpu="8")).resources == Resources(cpu="8")
    assert off.override(env_vars={}).env_vars == {"A": "1"}
    assert task.reusable == ReusePolicy(2)
    assert task.resources is None


@pytest.mark.parametrize(
    ("given", "error", "phrase"),
    [
        *(({"reusable": junk}, TypeError, 'ReusePolicy or "off"') for junk in ("on", "OFF", 5)),
        *(({name: "x"}, ValueError, "cannot be overridden") for name in ("name", "image", "docs", "interface")),
        *(({name: 1}, TypeError, "unexpected keyword argument") for name in ("bogus", "func", "task_type")),
        ({"reuse_policy": 1}, TypeError, "did you mean reusable="),
        ({"retries": -1}, ValueError, "greater than or equal to 0"),
        ({"retries": "x"}, ValueError, "retries must be an int"),
        ({"cache": "bogus"}, ValueError, "Invalid cache behavior"),
        ({"plugin_config": 5}, ValueError, "No task plugin found"),
        ({"timeout": -1}, ValueError, "greater than or equal to 0"),
        ({"reusable": "off", "resources": 5}, TypeError, "Expected resources"),
        ({"reusable": "off", "env_vars": 5}, TypeError, "Expected env_vars"),
        ({"reusable": "off", "secrets": 5}, TypeError, "Expected secrets"),
    ],
)
def test_an_override_refuses(given: dict[str, Any], error: type[Exception], phrase: str) -> None:
    with pytest.raises(error, match=phrase):
        warm().task(plain).override(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"short_name": "z"},
        {"short_name": ""},
        {"retries": 0},
        {"timeout": 0},
        {"queue": ""},
        {"links": ()},
        {"reusable": None},
        {"interruptible": None},
        {},
    ],
)
def test_what_is_empty_keeps_its_value(given: dict[str, Any]) -> None:
    task = warm().task(retries=3, timeout=5, queue="q", links=("l",), interruptible=True, short_name="z")(plain)
    other = task.override(**given)
    assert other is not task
    assert other == task


def test_what_is_given_replaces() -> None:
    task = warm().task(interruptible=True)(plain)
    other = task.override(
        short_name="z",
        retries=2,
        timeout=Timeout(5),
        cache="auto",
        interruptible=False,
        report=True,
        queue="q",
    )
    assert (other.short_name, other.retries, other.queue) == ("z", RetryStrategy(2), "q")
    assert (other.time_limits, other.cache.behavior) == (Timeout(5), "auto")
    assert (other.interruptible, other.report, other.name) == (False, True, "warm.plain")
    assert task.override(pod_template="p").pod_template == "p"  # the one Flyte does not refuse
    assert task != other
    with pytest.raises(TypeError):
        hash(task)


# --- calling ---


def described(*, keyword: int, a: int = 0) -> None: ...
def by_place(a: int, /, b: int = 0) -> None: ...


BINDS: list[tuple[Any, tuple[Any, ...], dict[str, Any], str | None]] = [
    (plain, (1,), {}, None),
    (plain, (1, "y"), {}, None),
    (plain, (), {"a": 1}, None),
    (plain, (1,), {"b": "y"}, None),
    (plain, (), {}, "Missing required inputs: a"),
    (plain, (), {"b": "y"}, "Missing required inputs: a"),
    (plain, (1, 2, 3), {}, "Too many positional arguments"),
    (plain, (1,), {"z": 1}, "Too many keyword arguments"),
    (plain, (1,), {"a": 1}, "given twice.*: a"),
    (described, (), {"keyword": 1}, None),
    (described, (), {}, "Missing required inputs: keyword"),
    (described, (1,), {}, "Too many positional arguments"),
    (by_place, (1,), {"b": 1}, None),
    (by_place, (), {"a": 1}, "Too many keyword arguments"),
]


@pytest.mark.parametrize(("function", "args", "kwargs", "phrase"), BINDS)
def test_arguments_are_checked_before_anything_is_sent(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], phrase: str | None
) -> None:
    task = warm().task(function)
    if phrase is None:
        task.bind(args, kwargs)
        task.forward(*args, **kwargs)
    else:
        with pytest.raises(ValueError, match=phrase):
            task.bind(args, kwargs)


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, Any, Any]]:
    calls: list[tuple[str, Any, Any, Any]] = []
    module: Any = types.ModuleType("flyte_jupyter.client.remote")

    def call(task: Any, args: Any, kwargs: Any) -> str:
        calls.append(("call", task, args, kwargs))
        return "value"

    async def acall(task: Any, args: Any, kwargs: Any) -> str:
        calls.append(("acall", task, args, kwargs))
        return "awaited"

    module.call, module.acall = call, acall
    package = sys.modules["flyte_jupyter.client"]
    monkeypatch.setitem(sys.modules, "flyte_jupyter.client.remote", module)
    monkeypatch.setattr(package, "remote", module, raising=False)
    return calls


def test_a_call_is_handed_to_remote(remote: list[tuple[str, Any, Any, Any]]) -> None:
    sync, later = warm().task(plain), warm().task(waits)
    results = [sync(1, b="y") for _ in range(2)]
    assert results == ["value", "value"]
    assert asyncio.run(later(1)) == "awaited"  # type: ignore[comparison-overlap]
    assert asyncio.run(later.aio(1)) == "awaited"  # type: ignore[comparison-overlap]
    assert asyncio.run(sync.aio(1)) == "awaited"  # type: ignore[comparison-overlap]
    assert [name for name, *_ in remote] == ["call", "call", "acall", "acall", "acall"]
    assert remote[0][1] is sync
    assert remote[0][2:] == ((1,), {"b": "y"})


# --- what the broker is told ---


def test_a_reusable_environment_is_a_pool_with_its_scaling() -> None:
    env = TaskEnvironment(
        "gpu",
        resources=Resources(cpu=("500m", 2), memory=("1Gi", "2Gi"), gpu="A100:2", shm="auto"),
        env_vars={"B": "2", "A": "1"},
        secrets=["hf-token", Secret("key", group="aws")],
        reusable=ReusePolicy((1, 4), concurrency=10),
    )
    spec = env.spec(PYTHON)
    assert (spec.name, spec.interpreter, spec.cpu, spec.memory_bytes) == ("gpu", PYTHON, "0.5", 2**31)
    assert (spec.devices.count, spec.devices.model, spec.shm) == (2, "A100", "auto")
    assert (spec.env_vars, spec.secrets) == ((("A", "1"), ("B", "2")), ("AWS_KEY", "HF_TOKEN"))
    assert not spec.single_use
    scaling = env.scaling()
    assert (scaling.min_replicas, scaling.max_replicas, scaling.concurrency) == (1, 4, 10)
    task = env.task(waits)
    assert task.spec(PYTHON) == spec
    assert task.spec(PYTHON) is task.spec(PYTHON)
    assert task.spec("/other").interpreter == "/other"
    assert task.scaling() == scaling


def test_without_reuse_a_replica_serves_one_call() -> None:
    for task in (TaskEnvironment("cold").task(plain), warm().task(plain).override(reusable="off")):
        assert task.spec(PYTHON).single_use
        assert task.scaling().min_replicas == 0
        assert (task.scaling().max_replicas, task.scaling().idle_ttl) == (64, 30)
    assert TaskEnvironment("cold").scaling() == task.scaling()
    assert TaskEnvironment("cold").spec(PYTHON).single_use


def test_a_variable_says_how_many_fresh_kernels_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYTE_JUPYTER_MAX_FRESH_KERNELS", "3")
    for task in (TaskEnvironment("cold").task(plain), warm().task(plain).override(reusable="off")):
        assert task.scaling().max_replicas == 3
    assert warm().task(plain).scaling().max_replicas == warm().scaling().max_replicas


@pytest.mark.parametrize("stated", ["0", "-1", "many", "2.5", " "])
def test_another_value_than_a_number_of_fresh_kernels_is_refused(stated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLYTE_JUPYTER_MAX_FRESH_KERNELS", stated)
    with pytest.raises(ValueError, match=f"FLYTE_JUPYTER_MAX_FRESH_KERNELS must be a whole .* got '{stated}'"):
        TaskEnvironment("cold").scaling()


def test_an_override_has_its_own_pool_and_scaling_is_no_identity() -> None:
    task = warm().task(plain)
    off = task.override(reusable="off", env_vars={"A": "1"})
    assert off.spec(PYTHON).key != task.spec(PYTHON).key
    wider = task.override(reusable=ReusePolicy(5))
    assert wider.spec(PYTHON).key == task.spec(PYTHON).key
    assert wider.scaling().max_replicas == 5


def test_a_device_of_a_cluster_is_refused_when_the_pool_must_start() -> None:
    env = warm(resources=Resources(gpu=TPU("V5E")))
    with pytest.raises(errors.NoUsableGPU):
        env.spec(PYTHON)


# --- going to a replica ---


def test_a_task_is_rebuilt_from_its_declaration() -> None:
    other = TaskEnvironment("other")
    env = warm(env_vars={"A": "1"}, depends_on=[other])
    other.add_dependency(env)
    task = env.task(retries=2, timeout=5)(plain).override(reusable="off", resources=Resources(cpu=2))
    environment, options = pickle.loads(pickle.dumps(task.declaration()))
    again = TaskEnvironment.remake(environment, options, plain)
    assert again == task
    assert again.spec(PYTHON) == task.spec(PYTHON)
    assert "depends_on" not in environment


class Space:
    @staticmethod
    @module_env.task
    def outside(a: int) -> int:
        return a

    @module_env.task
    @staticmethod
    def inside(a: int) -> int:
        return a


class Hasher(pickle._Pickler):
    """A pickler with a method of its own for something else, such as joblib's."""

    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        super().save(obj, save_persistent_id)


def hasher_dumps(value: object) -> bytes:
    file = io.BytesIO()
    Hasher(file).dump(value)
    return file.getvalue()


BY_NAME = [pickle.dumps, pickle._dumps, functools.partial(pickle.dumps, protocol=2), hasher_dumps]


@pytest.mark.parametrize("dumps", [*BY_NAME, cloudpickle.dumps])
@pytest.mark.parametrize("task", [in_module, Space.outside, Space.inside], ids=lambda task: task.__name__)
def test_a_task_of_a_module_is_pickled_by_its_name(dumps: Callable[..., bytes], task: Task[..., Any]) -> None:
    assert pickle.loads(dumps(task)) is task
    other = task.override(retries=2)
    changed = pickle.loads(dumps(other))
    assert (changed, changed.func) == (other, task.func)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Task[..., Any]:
    """A task of a notebook, which is found in `__main__` under its name."""
    namespace: dict[str, Any] = {"env": warm(), "__name__": "__main__"}
    exec("@env.task(retries=2)\ndef cell(a: int) -> int:\n    return a * 3\n", namespace)
    task: Task[..., Any] = namespace["cell"]
    monkeypatch.setattr(sys.modules["__main__"], "cell", task, raising=False)
    return task


@pytest.mark.parametrize("dumps", BY_NAME)
def test_a_task_of_a_notebook_is_pickled_by_its_name_as_a_function_is(
    dumps: Callable[..., bytes], cell: Task[..., Any]
) -> None:
    assert pickle.loads(dumps([cell, cell])) == [cell, cell]
    assert pickle.loads(dumps(cell)) is cell
    other = cell.override(retries=5)
    changed = pickle.loads(dumps(other))
    assert (changed, changed.func, changed.retries) == (other, cell.func, RetryStrategy(5))


def test_a_task_of_a_notebook_is_sent_whole_by_cloudpickle(cell: Task[..., Any]) -> None:
    for task in (cell, cell.override(retries=5)):
        again = pickle.loads(cloudpickle.dumps(task))
        assert again.func is not cell.func
        assert (again.name, again.retries, again.forward(2)) == ("warm.cell", task.retries, 6)


def test_a_task_that_has_lost_its_name_is_pickled_no_more_than_its_function(
    cell: Task[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def local(a: int) -> int:
        return a

    monkeypatch.setattr(sys.modules["__main__"], "cell", warm().task(plain))
    for task in (cell, warm().task(local)):
        with pytest.raises((pickle.PicklingError, AttributeError)) as of_the_function:
            pickle.dumps(task.func)
        with pytest.raises(type(of_the_function.value), match=re.escape(str(of_the_function.value))):
            pickle.dumps(task)
        assert pickle.loads(cloudpickle.dumps(task)).forward(1) == task.forward(1)


def test_a_task_beside_its_function_is_pickled_with_it() -> None:
    task = warm().task(plain)
    assert pickle.loads(pickle.dumps(task)) == task
    bound: Any = functools.partial(plain, 1)
    bound.__name__ = "bound"
    assert pickle.loads(pickle.dumps(warm().task(bound))).forward() == 1


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_of_a_task_are_equal(copied: Callable[[Any], Any], cell: Task[..., Any]) -> None:
    local = warm().task(lambda x: x)
    for task in (in_module, cell, cell.override(retries=5), local):
        assert copied(task) == task
        assert copied(task).func is task.func


def test_environments_can_be_pickled_and_copied() -> None:
    env, other = warm(image=Image.from_debian_base()), TaskEnvironment("other")
    env.add_dependency(other)
    other.add_dependency(env)
    env.task(plain)
    again = pickle.loads(pickle.dumps(env))
    assert (again.name, again.image, again.reusable, again.tasks) == ("warm", env.image, env.reusable, {})
    assert again.depends_on[0].depends_on[0] is again
    assert copy.copy(env).name == "warm"


# --- images ---


def test_an_image_records_any_chain_of_calls() -> None:
    image = Image.from_debian_base(python_version=(3, 11)).with_pip_packages("torch", pre=True)
    same = Image.from_debian_base(python_version=(3, 11)).with_pip_packages("torch", pre=True)
    assert image.record[1] == ("with_pip_packages", ("torch",), {"pre": True})
    assert (image, hash(image)) == (same, hash(same))
    assert image != image.with_env_vars({"A": "1"})
    assert pickle.loads(pickle.dumps(image)) == copy.deepcopy(image) == image
    assert repr(image) == "Image.from_debian_base(python_version=(3, 11)).with_pip_packages('torch', pre=True)"
    with pytest.raises(AttributeError):
        image.build  # noqa: B018
    with pytest.raises(AttributeError):
        Image.form_base  # noqa: B018


def test_an_image_is_replayed_on_the_real_class() -> None:
    assert Image.from_base("python:3.11").with_workdir("/app").replay(Image) == (
        Image.from_base("python:3.11").with_workdir("/app")
    )


def test_an_environment_is_shown_as_its_pool() -> None:
    warm = TaskEnvironment("shown-by-its-environment", reusable=ReusePolicy(2))
    assert warm._repr_mimebundle_()["text/plain"].startswith("shown-by-its-environment: not started")
    assert TaskEnvironment("cold")._repr_mimebundle_() == {}
