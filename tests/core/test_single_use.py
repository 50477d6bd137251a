"""Fresh kernels in the scheduler: how many at once, who comes first, what memory has to say."""

from __future__ import annotations

from test_scheduler import Machine, granted, refused, scaling, started, stopped

from flyte_jupyter.core.commands import Command
from flyte_jupyter.core.events import ClientConnected, MemoryMeasured, PoolDeclared, ReplicaLoading
from flyte_jupyter.core.scheduler import FRESH_BYTES, FRESH_STARTS
from flyte_jupyter.core.spec import DeviceRequest

GIB = 2**30


def machine_with(limit: int, *, memory_bytes: int | None = None) -> Machine:
    """One environment without reuse, `p`; the tasks that call tasks are clients called like their leases."""
    machine = Machine()
    declare(machine, "p", limit, memory_bytes=memory_bytes)
    return machine


def declare(machine: Machine, key: str, limit: int, *, memory_bytes: int | None = None) -> None:
    machine.do(PoolDeclared("ada", key, key, scaling(0, limit), DeviceRequest(), "", True, memory_bytes))


def call_from(machine: Machine, parent: str, *leases: str, pool: str = "p", at: float | None = None) -> list[Command]:
    machine.do(ClientConnected(parent, f"in {parent}", "replica", 2))
    return machine.ask(*leases, pool=pool, client=parent, parent=parent, at=at)


def measure(machine: Machine, free: int, total: int = 8 * GIB) -> list[Command]:
    return machine.do(MemoryMeasured(free, total))


def test_no_more_run_at_once_than_the_limit_allows_and_who_waits_is_told_so() -> None:
    machine = machine_with(2)
    assert started(machine.ask("a", "b", "c")) == ["p-1", "p-2"]
    assert machine.pool("p").waits_for == ("one of 2 fresh kernels to end (limit 2: FLYTE_JUPYTER_MAX_FRESH_KERNELS)")
    machine.ready("p-1", "p-2")
    commands = machine.release("b")
    assert (stopped(commands), started(commands)) == (["p-2"], ["p-3"])
    assert machine.pool("p").waits_for is None


def test_a_recursion_goes_deeper_than_the_limit() -> None:
    machine = machine_with(1)
    machine.ask("call-0")
    for depth in range(1, 21):
        assert granted(machine.ready(f"p-{depth}")) == [(f"call-{depth - 1}", f"p-{depth}")]
        assert started(call_from(machine, f"call-{depth - 1}", f"call-{depth}")) == [f"p-{depth + 1}"]


def test_a_recursion_through_two_environments_goes_deeper_than_their_limits() -> None:
    machine = machine_with(1)
    declare(machine, "q", 1)
    machine.ask("call-0")
    for depth in range(1, 21):
        here, there = ("p", "q") if depth % 2 else ("q", "p")
        machine.ready(f"{here}-{depth}")
        assert started(call_from(machine, f"call-{depth - 1}", f"call-{depth}", pool=there)) == [f"{there}-{depth + 1}"]


def test_calls_of_tasks_come_before_those_that_have_waited_longer() -> None:
    machine = machine_with(1)
    machine.ask("a")
    machine.ready("p-1")
    assert started(machine.ask("b", client="bob")) == []
    assert started(call_from(machine, "a", "child")) == ["p-2"]
    assert [request.lease for request in machine.pool("p").queue] == ["child", "b"]
    assert granted(machine.ready("p-2")) == [("child", "p-2")]


def test_tasks_that_wait_let_no_others_begin_that_would_wait_too() -> None:
    machine = machine_with(2)
    machine.ask("a", "b")
    machine.ready("p-1", "p-2")
    assert started(machine.ask("c")) == []
    assert started(call_from(machine, "a", "child-a")) == ["p-3"]
    assert started(call_from(machine, "b", "child-b")) == ["p-4"]
    machine.ready("p-3", "p-4")
    assert started(machine.release("child-a")) == []
    assert started(machine.release("a")) == []  # b and its child are two
    assert started(machine.release("child-b")) == ["p-5"]


def test_the_children_of_one_task_run_as_many_at_once_as_the_limit_allows() -> None:
    machine = machine_with(2)
    machine.ask("a")
    machine.ready("p-1")
    assert started(call_from(machine, "a", "x", "y", "z")) == ["p-2", "p-3"]
    machine.ready("p-2", "p-3")
    assert started(machine.release("y")) == ["p-4"]


def test_a_task_that_begins_to_wait_makes_room_for_others_of_its_parent() -> None:
    machine = machine_with(1)
    declare(machine, "q", 1)
    machine.ask("a")
    machine.ready("p-1")
    assert started(call_from(machine, "a", "x", "y")) == ["p-2"]
    machine.ready("p-2")
    assert started(call_from(machine, "x", "deeper", pool="q")) == ["p-3", "q-4"]


def test_only_so_many_processes_start_at_a_time() -> None:
    machine = machine_with(64)
    calls = [f"call-{n}" for n in range(FRESH_STARTS + 2)]
    assert len(started(machine.ask(*calls))) == FRESH_STARTS
    assert len(started(machine.do(ReplicaLoading("p-1", 7)))) == 1


# Memory


def test_a_fresh_kernel_starts_where_there_is_memory_and_who_waits_is_told_so() -> None:
    machine = machine_with(64)
    measure(machine, 2 * FRESH_BYTES)
    assert started(machine.ask("a", "b", "c")) == ["p-1", "p-2"]
    assert machine.scheduler.lacks_memory
    assert machine.pool("p").waits_for == "free memory for one more fresh kernel"
    machine.ready("p-1")
    assert started(measure(machine, 2 * FRESH_BYTES)) == ["p-3"]  # p-1 has taken its part, p-2 is still to do so
    assert not machine.scheduler.lacks_memory


def test_one_fresh_kernel_starts_in_any_case() -> None:
    machine = machine_with(64)
    measure(machine, 0)
    assert started(machine.ask("a", "b")) == ["p-1"]
    machine.ready("p-1")
    assert started(machine.release("a")) == ["p-2"]


def test_memory_that_calls_ask_for_is_promised_once() -> None:
    machine = machine_with(64, memory_bytes=3 * GIB)
    measure(machine, 8 * GIB)
    assert started(machine.ask("a", "b", "c")) == ["p-1", "p-2"]
    machine.ready("p-1", "p-2")
    assert started(measure(machine, 8 * GIB)) == []
    assert started(machine.release("a")) == ["p-3"]


def test_a_call_that_asks_for_more_memory_than_there_is_runs_alone() -> None:
    machine = machine_with(64, memory_bytes=30 * GIB)
    measure(machine, 8 * GIB)
    assert started(machine.ask("a", "b")) == ["p-1"]
    machine.ready("p-1")
    assert started(call_from(machine, "a", "child")) == ["p-2"]


def test_who_asks_for_no_certain_memory_runs_beside_who_asks_for_all_of_it() -> None:
    machine = machine_with(64, memory_bytes=30 * GIB)
    declare(machine, "q", 64)
    measure(machine, 8 * GIB)
    assert started(machine.ask("a")) == ["p-1"]
    assert started(machine.ask("b", pool="q")) == ["q-2"]


def test_who_waits_for_memory_is_served_when_a_kernel_of_another_environment_ends() -> None:
    machine = machine_with(64, memory_bytes=6 * GIB)
    declare(machine, "q", 64, memory_bytes=6 * GIB)
    measure(machine, 8 * GIB)
    machine.ask("a")
    assert started(machine.ask("b", pool="q")) == []
    machine.ready("p-1")
    assert started([*machine.release("a"), *machine.exit("p-1")]) == ["q-2"]


def test_a_recursion_that_has_taken_all_memory_is_told_so() -> None:
    machine = machine_with(64)
    declare(machine, "q", 64)
    measure(machine, 0)
    machine.ask("a", at=10)
    machine.ready("p-1")
    assert call_from(machine, "a", "child", pool="q", at=20) == []
    assert machine.scheduler.next_deadline() == 21
    measure(machine, 0)
    [refusal] = refused(machine.do(MemoryMeasured(0, GIB), at=21))
    assert refusal == ("child", "starvation")


def test_a_call_waits_for_memory_as_long_as_another_fresh_kernel_works() -> None:
    machine = machine_with(64)
    measure(machine, 2 * FRESH_BYTES)
    machine.ask("a", "b", at=10)
    machine.ready("p-1", "p-2")
    measure(machine, 0)
    assert call_from(machine, "a", "child", at=20) == []
    assert refused(machine.do(MemoryMeasured(0, GIB), at=30)) == []
    assert started(machine.do(MemoryMeasured(GIB, GIB), at=40)) == ["p-3"]
