"""When calls that wait are likely to start, from literal histories."""

from __future__ import annotations

from test_scheduler import Machine, scaling, started, warm

from flyte_jupyter.core.events import (
    AttachRequested,
    Call,
    CallsReported,
    LeaseUse,
    PoolStopped,
    PoolWarmed,
    ReplicaLoading,
    Tick,
)
from flyte_jupyter.core.usual import MOST_TASKS, Usual


def seen(machine: Machine, task: str, *seconds: float, calls: int = 1, outcome: str = "succeeded") -> None:
    """Calls of that task took so long."""
    at = machine.now
    told = tuple(
        Call(number, "x", task, "ada.ipynb", at, at + each, outcome, calls)  # type: ignore[arg-type]
        for number, each in enumerate(seconds)
    )
    machine.do(CallsReported("p-1", told, (), len(told) * calls))


def expected(machine: Machine) -> dict[str, float | None]:
    return {request.lease: request.expected_at for request in machine.pool().queue}


def test_a_call_is_expected_when_the_one_before_it_has_taken_as_long_as_usual() -> None:
    machine = warm(1, 1)
    seen(machine, "task-a", 10)
    machine.ask("a", at=100)
    machine.ask("b", client="bob", at=103)
    assert expected(machine) == {"b": 110}


def test_who_is_further_behind_waits_for_all_before_them() -> None:
    machine = warm(1, 1)
    seen(machine, "task-a", 10)
    seen(machine, "task-b", 4)
    machine.ask("a", at=100)
    machine.ask("b", client="bob", at=101)
    machine.ask("c", client="cyd", at=102)
    assert expected(machine) == {"b": 110, "c": 114}


def test_the_first_slot_that_comes_free_is_expected() -> None:
    machine = warm(1, 1, concurrency=2)
    seen(machine, "task-a", 10)
    seen(machine, "task-b", 30)
    machine.ask("b", client="bob", at=100)
    machine.ask("a", at=105)
    machine.ask("c", client="cyd", at=106)
    assert expected(machine) == {"c": 115}


def test_a_task_that_has_not_run_yet_is_expected_to_be_like_the_others() -> None:
    machine = warm(1, 1)
    seen(machine, "else", 6)
    machine.ask("a", at=100)
    machine.ask("b", client="bob")
    assert expected(machine) == {"b": 106}


def test_nothing_is_expected_before_anything_has_run() -> None:
    machine = warm(1, 1)
    machine.ask("a", at=100)
    machine.ask("b", client="bob")
    machine.ask("c", client="cyd")
    assert expected(machine) == {"b": None, "c": None}


def test_what_the_replica_says_of_its_call_counts_and_not_when_the_slot_was_taken() -> None:
    machine = warm(1, 1)
    seen(machine, "task-a", 10)
    seen(machine, "other", 3)
    machine.ask("a", at=100)
    machine.ask("b", client="bob", at=101)
    machine.do(CallsReported("p-1", (), (LeaseUse("a", True, "other", 140.0),), 1), at=141)
    assert expected(machine) == {"b": 143}


def test_time_that_passes_changes_no_expectation() -> None:
    machine = warm(1, 1)
    seen(machine, "task-a", 10)
    machine.ask("a", at=100)
    machine.ask("b", client="bob")
    machine.do(Tick(), at=170)
    assert expected(machine) == {"b": 110}  # it has passed: that call takes longer than usual


def test_a_replica_that_starts_is_expected_when_it_has_taken_as_long_as_usual() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 3))
    machine.do(PoolWarmed("p"))
    machine.ready("p-1", at=40)
    machine.ask("a", at=100)
    assert started(machine.ask("b", "c", client="bob", at=101)) == ["p-2", "p-3"]
    assert expected(machine) == {"b": 141, "c": 141}
    machine.do(ReplicaLoading("p-2", 7), at=105)
    assert expected(machine) == {"b": 141, "c": 141}


def test_a_first_start_is_not_known_to_take_any_time() -> None:
    machine = Machine()
    machine.declare("p", scaling(0, 1))
    machine.ask("a", at=5)
    assert expected(machine) == {"a": None}


def test_each_slot_of_a_replica_that_starts_is_for_one_call() -> None:
    machine = Machine()
    machine.declare("p", scaling(0, 1, concurrency=2))
    machine.do(PoolWarmed("p", 1))
    machine.ready("p-1", at=40)
    machine.do(PoolStopped("p"), at=50)
    machine.exit("p-1")
    machine.ask("a", "b", "c", at=100)
    # Only its notebook knows what it will do with the slots that it gets.
    assert expected(machine) == {"a": 140, "b": 140, "c": None}


def test_a_notebook_that_has_a_slot_keeps_it_for_its_own_calls() -> None:
    machine = warm(1, 1)
    seen(machine, "task-a", 10)
    machine.ask("a", "more", at=100)
    assert expected(machine) == {"more": None}
    machine.ask("b", client="bob", at=101)
    assert expected(machine) == {"b": 110, "more": 120}


def test_who_has_a_slot_already_gets_no_other_of_one_who_needs_it() -> None:
    machine = warm(1, 1, concurrency=2)
    seen(machine, "task-a", 10)
    machine.ask("a", client="ada", at=100)
    machine.ask("b", "b2", client="bob", at=100)
    assert expected(machine) == {"b2": 110}  # ada has nothing more to do, as far as one knows
    machine.ask("a2", client="ada", at=101)
    assert expected(machine) == {"a2": None, "b2": None}


def test_what_somebody_has_open_is_not_expected_to_come_free() -> None:
    machine = warm(1, 1)
    seen(machine, "task-a", 10)
    machine.do(AttachRequested("cyd", "x", "p-1", "attached console"), at=100)
    machine.ask("b", client="bob", at=101)
    assert expected(machine) == {"b": None}


def test_the_last_calls_count_most() -> None:
    usual = Usual()
    for seconds in (4, 6):
        usual.note("t", seconds)
    assert usual.seconds("t") == 5
    for _ in range(50):
        usual.note("t", 60)
    assert 59 < usual.seconds("t") <= 60


def test_short_calls_in_a_row_count_each() -> None:
    machine = warm(1, 1)
    seen(machine, "task-a", 50, calls=100)
    machine.ask("a", at=100)
    machine.ask("b", client="bob")
    assert expected(machine) == {"b": 100.5}


def test_a_call_that_was_stopped_says_nothing_of_how_long_others_take() -> None:
    machine = warm(1, 1)
    seen(machine, "task-a", 10)
    seen(machine, "task-a", 500, outcome="cancelled")
    seen(machine, "task-a", 10, outcome="failed")
    machine.ask("a", at=100)
    machine.ask("b", client="bob")
    assert expected(machine) == {"b": 110}


def test_as_many_tasks_are_known_as_are_needed() -> None:
    usual = Usual()
    for number in range(MOST_TASKS + 50):
        usual.note(f"t{number}", number)
        usual.note("often", 1)
    assert len(usual._tasks) == MOST_TASKS
    assert usual.seconds("often") == 1
    assert usual.seconds(f"t{MOST_TASKS + 49}") == MOST_TASKS + 49
    assert usual.seconds("t0") != 0  # forgotten: what all take
