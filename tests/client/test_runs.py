"""What run, map, ctx, group and trace say before anything is sent."""

from __future__ import annotations

import contextvars
import functools
import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import flyte_jupyter as flyte
from flyte_jupyter import errors
from flyte_jupyter.client import calling, mapping
from flyte_jupyter.client.calling import call_meta
from flyte_jupyter.client.executor import Line, Submission
from flyte_jupyter.client.runs import Outputs, Run
from flyte_jupyter.client.task import Task
from flyte_jupyter.client.task_target import target_of
from flyte_jupyter.core.context import Action, TaskContext, current

env = flyte.TaskEnvironment("unit", reusable=flyte.ReusePolicy(2))


@env.task
def add(x: int, y: int = 1, z: int = 0) -> int:
    return x + y + z


@env.task
def two(x: int) -> tuple[int, str]:
    return x, str(x)


def types(x: int) -> None: ...


types.__annotations__["return"] = (int, str)  # as `-> (int, str)` without the import from __future__


@env.task
def many(x: int) -> tuple[int, ...]:
    return (x,)


class Point(NamedTuple):
    lat: float
    lon: float


@pytest.fixture
def inside() -> Iterator[TaskContext]:
    task = TaskContext(Action("unit.add-1", "sweep"), custom_context={"user": "ann"})
    token = current.set(task)
    yield task
    current.reset(token)


# --- run


def test_only_tasks_can_be_run() -> None:
    with pytest.raises(TypeError, match="tasks can be run, not generic functions"):
        flyte.run(lambda: 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "Missing required inputs: x"),
        ((1, 2, 3, 4), {}, "Too many positional arguments"),
        ((1,), {"x": 2}, "given twice"),
        ((1,), {"w": 2}, "Too many keyword arguments"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    args: tuple[int, ...], kwargs: dict[str, int], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        flyte.run(add, *args, **kwargs)
    with pytest.raises(ValueError, match=says):
        flyte.with_runcontext(name="n").run(add, *args, **kwargs)


def test_a_tuple_of_unknown_length_is_refused_before_the_run() -> None:
    with pytest.raises(TypeError, match="Variable length tuples"):
        flyte.run(many, 1)


@pytest.mark.parametrize("task", [two, env.task(types)], ids=["tuple of types", "types"])
def test_outputs_are_tuples_with_names(task: Task[..., Any]) -> None:
    outputs = Outputs.of((3, "b"), task.native_interface.outputs)
    assert outputs == (3, "b")
    assert repr(outputs) == "o0=3, o1='b'"
    assert outputs.o1 == "b"
    assert pickle.loads(pickle.dumps(outputs)).o0 == 3
    with pytest.raises(AttributeError, match="no output 'o2'"):
        _ = outputs.o2


def test_one_output_none_and_named_ones() -> None:
    assert repr(Outputs.of(5, {"o0": int})) == "o0=5"
    assert Outputs.of(None, {}) == (None,)
    assert Outputs.of(None, {"o0": int | None}) == (None,)
    assert Outputs.of([1, 2], {}) == ([1, 2],)
    assert Outputs.of(Point(1.0, 2.0), {"lat": float, "lon": float}).lon == 2.0


def test_a_tuple_of_another_length_is_no_tuple_of_outputs() -> None:
    for value in ((1,), 1, None):
        with pytest.raises(errors.RuntimeDataValidationError, match="2 outputs are declared"):
            Outputs.of(value, {"o0": int, "o1": str}, "unit.two")


def test_a_run_is_over() -> None:
    run = Run("r1", Outputs.of(5, {"o0": int}))
    run.wait()
    assert run.outputs()[0] == 5
    assert repr(run) == "<run r1: o0=5>"


def test_modes_of_a_cluster_are_refused_and_the_rest_is_ignored() -> None:
    with pytest.raises(errors.InitializationError, match="runs on a cluster"):
        flyte.with_runcontext("remote")
    with pytest.raises(ValueError, match="mode must be"):
        flyte.with_runcontext("lokal")
    with pytest.raises(TypeError, match="str to str"):
        flyte.with_runcontext(custom_context={"n": 1})  # type: ignore[dict-item]
    flyte.with_runcontext("local", overwrite_cache=True, project="p", env_vars={"A": "1"})


# --- ctx, group, trace


def test_outside_a_task_the_context_is_false_and_empty() -> None:
    context = flyte.ctx()
    assert not context
    assert context.action is context.group_data is context.custom_context is context.attempt_number is None
    assert context.is_in_cluster() is False
    with pytest.raises(AttributeError):
        _ = context.no_such_field  # type: ignore[attr-defined]


def test_a_call_outside_takes_nothing_along() -> None:
    assert call_meta() is None
    with flyte.group("sweep"):
        assert call_meta() == {"group": "sweep"}
        with flyte.group("inner"):
            assert call_meta() == {"group": "inner"}
        assert call_meta() == {"group": "sweep"}
    assert call_meta() is None


def test_a_nested_call_inherits_run_group_and_custom_context(inside: TaskContext) -> None:
    assert call_meta() == {"run": "sweep", "custom_context": {"user": "ann"}}
    assert flyte.ctx() is inside
    with flyte.group("g"):
        assert call_meta() == {"run": "sweep", "custom_context": {"user": "ann"}, "group": "g"}
        context = flyte.ctx()
        assert context.group_data is not None
        assert context.group_data.name == "g"
        assert context.action is inside.action
    with calling.with_calls(custom_context={"more": "1"}):
        assert (call_meta() or {})["custom_context"] == {"user": "ann", "more": "1"}


@flyte.trace
def traced(x: int) -> int:
    return int(add(x))


@flyte.trace
def traced_forward(x: int) -> int:
    return add.forward(x)


@flyte.trace
async def traced_async(x: int) -> int:
    return int(await add.aio(x))


@flyte.trace
async def traced_stream(x: int) -> Any:
    yield x
    yield await add.aio(x)


def test_nothing_is_traced_outside() -> None:
    assert traced_forward(1) == 2
    assert traced.__name__ == "traced"


def test_no_task_is_called_inside_a_trace(inside: TaskContext) -> None:
    with pytest.raises(errors.TraceDoesNotAllowNestedTasksError, match=r"unit.add was called inside"):
        traced(1)
    assert traced_forward(1) == 2
    assert not calling.tracing.get()


def test_no_task_is_awaited_inside_a_trace(inside: TaskContext) -> None:
    import asyncio

    async def body() -> None:
        with pytest.raises(errors.TraceDoesNotAllowNestedTasksError):
            await traced_async(1)
        stream = traced_stream(1)
        assert await stream.__anext__() == 1
        assert not calling.tracing.get()
        with pytest.raises(errors.TraceDoesNotAllowNestedTasksError):
            await stream.__anext__()

    asyncio.run(body())


# --- map


def test_no_iterables_give_nothing() -> None:
    assert list(flyte.map(add)) == []


@pytest.mark.parametrize(
    ("partial", "iterables"),
    [
        (functools.partial(add, 1), 1),
        (functools.partial(add, 1, 2, 3), 1),
        (functools.partial(add, y=1), 1),
        (functools.partial(add, y=1, z=1), 2),
    ],
)
def test_a_partial_must_leave_exactly_one_parameter(partial: Any, iterables: int) -> None:
    with pytest.raises(TypeError, match="exactly one parameter"):
        flyte.map(partial, *[range(3)] * iterables)


def test_map_takes_tasks_that_take_so_many_arguments() -> None:
    with pytest.raises(TypeError, match="takes a task"):
        flyte.map(abs, range(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Too many positional"):
        flyte.map(two, [1], [2])
    with pytest.raises(ValueError, match="concurrency must be"):
        flyte.map(two, [1], concurrency=-1)


@pytest.mark.parametrize(
    ("partial", "keyword"),
    [
        (functools.partial(add, 1, 2), None),
        (functools.partial(add, y=1, z=2), None),
        (functools.partial(add, 1, y=2), "z"),
        (functools.partial(add, 1, z=2), None),
    ],
)
def test_the_items_go_where_the_partial_left_room(partial: Any, keyword: str | None) -> None:
    assert mapping._parameter_left(partial, add, 1) == keyword


def test_a_map_in_an_async_task_needs_aio(inside: TaskContext) -> None:
    import asyncio

    async def body() -> None:
        with pytest.raises(errors.SyncTaskCallInAsyncContextError, match=r"map\.aio"):
            flyte.map(add, [1])

    asyncio.run(body())


# --- the line


def submission(line: Line) -> Submission:
    return Submission(line, target_of(add), (), {}, contextvars.copy_context())


def test_a_future_that_waits_in_line_can_be_cancelled() -> None:
    import asyncio

    async def body() -> None:
        line = Line(asyncio.get_running_loop(), lambda: 0)
        first, other = submission(line), submission(line)
        line.add(first)
        line.add(other)
        assert first.future.cancel()
        await asyncio.sleep(0.01)
        assert list(line.outstanding.values()) == [other]
        line.abort()
        await line.wait_async(1)
        assert other.future.cancelled()
        assert not line.outstanding

    asyncio.run(body())


def test_a_broken_future_is_both_errors() -> None:
    from concurrent.futures import BrokenExecutor

    from flyte_jupyter.client.executor import BrokenPool, _broken

    died = errors.ReplicaDied("unit.add", "unit[0]", signal=9)
    broken = _broken(died)
    assert isinstance(broken, BrokenPool)
    assert isinstance(broken, errors.ReplicaDied)
    assert isinstance(broken, BrokenExecutor)
    assert (str(broken), broken.signal, broken.__notes__) == (str(died), 9, died.__notes__)
    assert isinstance(pickle.loads(pickle.dumps(broken)), BrokenPool)
    assert isinstance(_broken(ValueError("x")), ValueError)


def test_stdlib_states_are_reached_once() -> None:
    import asyncio

    async def body() -> None:
        line = Line(asyncio.get_running_loop(), lambda: 0)
        begun, waiting = submission(line), submission(line)
        assert begun.begin()
        assert begun.begin()
        assert begun.future.running()
        waiting.future.cancel()
        assert not waiting.begin()
        assert not waiting.begin()

    asyncio.run(body())
