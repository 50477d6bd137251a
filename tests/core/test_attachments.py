"""A person opens a replica by hand: who waits for whom, and what happens to a replica that somebody has open."""

from __future__ import annotations

import math

from test_scheduler import Machine, granted, refused, scaling, started, stopped, warm

from flyte_jupyter.core.commands import AskAfter, Command, Grant, Interrupt, Lose, Recall, Refuse, StopReplica
from flyte_jupyter.core.events import (
    AttachRequested,
    ClientConnected,
    ClientGone,
    LeaseCancelled,
    LeaseEnded,
    LeaseReleased,
    LeaseRequested,
    PoolRestarted,
    PoolScaled,
    PoolStopped,
    PoolWarmed,
    ReplicaFailed,
    ReplicaLoading,
    ReplicaRestarted,
    Tick,
)


def attach(
    machine: Machine, lease: str, replica: str = "p-1", *, client: str = "cyd", shared: bool = False
) -> list[Command]:
    task = "shared console" if shared else "attached console"
    return machine.do(AttachRequested(client, lease, replica, task, shared))


def lines(machine: Machine, index: int = 0) -> list[str]:
    return [lease.task for lease in machine.pool().replicas[index].leases]


# Alone


def test_a_free_replica_is_granted_whole_at_once() -> None:
    machine = warm(1, 1, concurrency=10)
    assert attach(machine, "x") == [Grant("cyd", "x", "p-1")]
    (replica,) = machine.pool().replicas
    assert (replica.state, replica.calls) == ("attached", ())
    assert [(lease.task, lease.client, lease.attached) for lease in replica.leases] == [
        ("attached console", "cyd.ipynb", True)
    ]


def test_calls_go_to_other_replicas_which_are_started_for_them() -> None:
    machine = warm(1, 2)
    attach(machine, "x")
    assert started(machine.ask("a")) == ["p-2"]
    assert granted(machine.ready("p-2")) == [("a", "p-2")]


def test_where_there_is_no_other_replica_calls_wait_and_the_pool_says_for_whom() -> None:
    machine = warm(1, 1)
    attach(machine, "x")
    assert machine.ask("a") == []
    assert machine.pool().notes == ("calls wait until somebody leaves p[0] (cyd.ipynb), or for a higher maximum",)
    assert granted(machine.release("x")) == [("a", "p-1")]
    assert machine.pool().notes == ()


def test_a_call_that_waits_is_served_by_a_higher_maximum() -> None:
    machine = warm(1, 1)
    attach(machine, "x")
    machine.ask("a")
    assert started(machine.do(PoolScaled("p", scaling(1, 2)))) == ["p-2"]


def test_a_busy_replica_takes_no_further_call_and_is_granted_when_a_slot_is_free() -> None:
    machine = warm(1, 1, concurrency=2)
    machine.ask("a", "b", "c")
    assert attach(machine, "x") == [Recall("ada", "a"), Recall("ada", "b")]
    assert machine.states() == {"p-1": "attached"}
    assert lines(machine) == ["task-a", "task-b", "attached console"]
    assert machine.release("a") == [Grant("cyd", "x", "p-1")]
    assert machine.release("b") == []
    assert granted(machine.release("x")) == [("c", "p-1")]


def test_the_second_one_waits_for_the_first() -> None:
    machine = warm(1, 1, concurrency=2)
    attach(machine, "x")
    assert attach(machine, "y", client="bob") == []
    assert machine.release("x") == [Grant("bob", "y", "p-1")]


def test_one_who_gave_up_before_is_not_waited_for() -> None:
    machine = warm(1, 1)
    machine.ask("a", "b")
    attach(machine, "x")
    attach(machine, "y", client="bob")
    assert machine.release("x") == []
    assert machine.release("a") == [Grant("bob", "y", "p-1")]
    assert granted(machine.release("y")) == [("b", "p-1")]


def test_a_waiting_one_can_be_cancelled_by_hand_and_a_present_one_interrupted() -> None:
    machine = warm(1, 1)
    machine.ask("a")
    attach(machine, "x")
    assert refused(machine.do(LeaseCancelled("x"))) == [("x", "cancelled")]
    attach(machine, "y")
    machine.release("a")
    assert machine.do(LeaseCancelled("y")) == [Interrupt("p-1", "y")]


def test_no_lease_of_an_attached_replica_is_recalled_for_a_fair_share() -> None:
    machine = warm(2, 2)
    machine.ask("a1", "a2")
    attach(machine, "x")
    assert machine.ask("b", client="bob") == [Recall("ada", "a2")]


def test_one_that_is_still_starting_is_granted_when_it_is_ready() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 1))
    machine.ask("a")
    assert attach(machine, "x") == []
    assert machine.ready("p-1") == [Grant("cyd", "x", "p-1")]
    assert granted(machine.release("x")) == [("a", "p-1")]


def test_there_must_be_such_a_replica_and_it_must_stay() -> None:
    machine = warm(1, 1)
    assert attach(machine, "x", "p-9") == [Refuse("cyd", "x", "no-such-replica", {"replica": "p-9"})]
    machine.ask("a")
    machine.do(PoolStopped("p"))
    assert refused(attach(machine, "y")) == [("y", "no-such-replica")]


def test_one_that_serves_one_call_only_is_nobodys_to_open() -> None:
    machine = Machine()
    machine.declare("p", scaling(0, 1), single_use=True)
    machine.ask("a")
    assert refused(attach(machine, "x")) == [("x", "no-such-replica")]


def test_a_client_that_is_gone_and_a_name_that_is_taken_are_ignored() -> None:
    machine = warm(1, 1)
    attach(machine, "x")
    revision = machine.scheduler.revision
    assert attach(machine, "x", client="bob") == []
    assert attach(machine, "y", client="nobody") == []
    assert machine.scheduler.revision == revision


def test_it_counts_neither_as_a_call_nor_for_a_fair_share() -> None:
    machine = warm(2, 2)
    attach(machine, "x", client="ada")
    assert machine.pool().calls == 0
    assert machine.pool().waiting == 0
    machine.ask("b", client="bob")
    machine.ask("b2", client="bob")
    machine.ask("a", client="ada")
    assert granted(machine.release("b")) == [("a", "p-2")], "what ada has open was held against her"


# Shared


def test_sharing_takes_no_slot() -> None:
    machine = warm(1, 1)
    assert attach(machine, "x", shared=True) == [Grant("cyd", "x", "p-1")]
    assert machine.states() == {"p-1": "ready"}
    assert granted(machine.ask("a")) == [("a", "p-1")]
    assert attach(machine, "y", client="bob", shared=True) == [Grant("bob", "y", "p-1")]
    assert machine.states() == {"p-1": "busy"}
    assert lines(machine) == ["task-a", "shared console", "shared console"]


def test_sharing_goes_beside_one_who_has_it_alone() -> None:
    machine = warm(1, 1)
    attach(machine, "x")
    assert granted(attach(machine, "y", client="bob", shared=True)) == [("y", "p-1")]
    machine.release("y")
    assert machine.states() == {"p-1": "attached"}


def test_one_who_shares_stands_in_nobodys_way() -> None:
    machine = warm(1, 1)
    attach(machine, "x", shared=True)
    assert granted(attach(machine, "y", client="bob")) == [("y", "p-1")]
    machine.release("y")
    assert stopped(machine.do(ReplicaRestarted("p-1"))) == ["p-1"]
    assert Lose("cyd", "x", "it was restarted by hand") in machine.exit("p-1")


# Time


def test_an_attached_replica_does_not_go_for_being_idle() -> None:
    for shared in (False, True):
        machine = warm(0, 2, idle_ttl=100, scaledown_ttl=60)
        machine.ask("a")
        machine.ready("p-1", at=0)
        machine.release("a", at=0)
        attach(machine, "x", shared=shared)
        assert machine.scheduler.next_deadline() == math.inf
        assert machine.pool().idle_stops_at is None
        assert machine.do(Tick(), at=1000) == []
        machine.release("x", at=1000)
        assert machine.scheduler.next_deadline() == 1060, shared
        assert stopped(machine.do(Tick(), at=1060)) == ["p-1"]


def test_the_others_above_the_minimum_go_as_ever() -> None:
    machine = warm(0, 2, scaledown_ttl=60)
    machine.ask("a", "b")
    machine.ready("p-1", "p-2")
    machine.release("a", "b", at=5)
    attach(machine, "x")
    assert stopped(machine.do(Tick(), at=65)) == ["p-2"]


def test_it_counts_for_the_minimum_and_for_the_maximum() -> None:
    machine = warm(1, 1)
    attach(machine, "x")
    assert started(machine.do(Tick(), at=50)) == []
    assert started(machine.ask("a")) == []


def test_its_gpu_is_not_taken_for_another_pool() -> None:
    machine = Machine(gpus=1)
    machine.declare("p", scaling(0, 1), gpus=1)
    machine.ask("a")
    machine.ready("p-1")
    machine.release("a")
    attach(machine, "x", shared=True)
    machine.declare("q", scaling(0, 1), gpus=1)
    assert stopped(machine.ask("b", pool="q")) == []
    assert machine.pool("q").waits_for == "GPU 0: p[0]"
    assert stopped(machine.release("x")) == ["p-1"]


# Going


def test_a_drained_pool_waits_for_who_has_a_replica_alone_and_tells_them() -> None:
    machine = warm(2, 2)
    attach(machine, "x")
    assert machine.do(PoolStopped("p")) == [Recall("cyd", "x"), StopReplica("p-2", "the pool was stopped")]
    assert machine.states() == {"p-1": "draining", "p-2": "stopping"}
    assert machine.release("x") == [StopReplica("p-1", "the pool was stopped")]


def test_force_waits_for_nobody() -> None:
    for event in (PoolStopped("p", force=True), ReplicaRestarted("p-1", force=True)):
        machine = warm(1, 1)
        attach(machine, "x")
        attach(machine, "y", client="bob")
        commands = machine.do(event)
        assert ("y", "no-such-replica") in refused(commands)
        assert any(isinstance(each, StopReplica) and each.force for each in commands)
        (lost,) = [each for each in machine.exit("p-1") if isinstance(each, Lose)]
        assert (lost.client, lost.lease) == ("cyd", "x")
        assert lost.cause in ("the pool was stopped", "it was restarted by hand")


def test_a_replica_restarted_by_hand_is_replaced_when_it_is_left() -> None:
    machine = warm(1, 1)
    attach(machine, "x")
    assert machine.do(ReplicaRestarted("p-1")) == [Recall("cyd", "x")]
    commands = machine.release("x")
    assert (stopped(commands), started(commands)) == (["p-1"], ["p-2"])


def test_of_several_that_have_to_go_the_attached_one_is_the_last() -> None:
    machine = warm(3, 3)
    attach(machine, "x", "p-2")
    machine.ask("a")
    assert stopped(machine.do(PoolScaled("p", scaling(1, 2)))) == ["p-3"]
    assert machine.do(PoolScaled("p", scaling(1, 1))) == [Recall("ada", "a")]
    assert machine.states()["p-2"] == "attached"


def test_a_renewal_leaves_it_for_last_and_does_not_stop_there() -> None:
    machine = warm(2, 2)
    attach(machine, "x")
    assert started(machine.do(PoolRestarted("p"))) == ["p-3"]
    commands = machine.ready("p-3")
    assert (stopped(commands), started(commands)) == (["p-2"], ["p-4"])
    assert machine.ready("p-4") == [Recall("cyd", "x")]
    assert granted(machine.ask("a", "b")) == [("a", "p-3"), ("b", "p-4")]
    assert stopped(machine.release("x")) == ["p-1"]


def test_a_pool_that_lost_its_name_stays_for_who_is_in_it() -> None:
    machine = warm(1, 1)
    attach(machine, "x")
    assert stopped(machine.declare("q", scaling(1, 1), name="p")) == []
    assert stopped(machine.release("x")) == ["p-1"]


def test_its_death_is_told_and_no_failure_of_the_pool() -> None:
    machine = warm(1, 1)
    attach(machine, "x")
    attach(machine, "y", client="bob")
    commands = machine.exit("p-1", "signal SIGKILL")
    assert Lose("cyd", "x", "signal SIGKILL") in commands
    assert refused(commands) == [("y", "no-such-replica")]
    assert machine.pool().failures == 0
    assert started(commands) == ["p-2"]


def test_who_waits_for_one_that_never_gets_ready_is_refused() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 1))
    machine.ask("a")
    attach(machine, "x")
    assert ("x", "no-such-replica") in refused(machine.do(ReplicaFailed("p-1", "ImportError")))


def test_a_front_end_that_dies_keeps_it_until_its_cell_has_stopped() -> None:
    machine = warm(1, 1)
    attach(machine, "x")
    machine.ask("a")
    assert machine.do(ClientGone("cyd")) == [AskAfter("p-1", "x")]
    assert machine.pool().replicas[0].leases[0].client == "a client that is gone"
    assert machine.do(LeaseEnded("x")) == [Grant("ada", "a", "p-1")]


def test_a_cell_that_does_not_stop_takes_its_replica_along() -> None:
    machine = warm(1, 1)
    attach(machine, "x")
    machine.do(ClientGone("cyd"), at=0)
    assert machine.scheduler.next_deadline() == 6
    assert stopped(machine.do(Tick(), at=6)) == ["p-1"]


def test_one_who_shared_it_and_died_does_not_take_along_what_others_run_there() -> None:
    machine = warm(1, 1)
    attach(machine, "x", shared=True)
    machine.ask("a")
    assert machine.do(ClientGone("cyd"), at=0) == []
    assert stopped(machine.do(Tick(), at=60)) == []
    assert machine.states() == {"p-1": "busy"}


def test_a_front_end_that_dies_while_it_waits_is_forgotten() -> None:
    machine = warm(1, 1)
    machine.ask("a", "b")
    attach(machine, "x")
    machine.do(ClientGone("cyd"))
    assert granted(machine.release("a")) == [("b", "p-1")]


# Calls from an attached cell


def with_a_cell_inside(low: int, high: int, concurrency: int = 1, *, shared: bool = False) -> Machine:
    """Somebody has p-1 open, and a cell there calls a task of the same pool."""
    machine = Machine()
    machine.declare("p", scaling(low, high, concurrency))
    machine.ask("first")
    machine.do(ReplicaLoading("p-1", 4711))
    machine.ready("p-1")
    machine.release("first")
    attach(machine, "x", shared=shared)
    machine.do(ClientConnected("inside", "p[0]", "replica", 4711))
    return machine


def test_a_cell_that_calls_its_own_pool_is_not_left_to_wait_for_itself() -> None:
    for concurrency in (1, 3):
        machine = with_a_cell_inside(1, 1, concurrency)
        machine.do(LeaseRequested("inside", "c", "p", "embed"), at=10)
        assert machine.scheduler.next_deadline() == 11
        (refusal,) = machine.do(Tick(), at=11)
        assert isinstance(refusal, Refuse)
        assert (refusal.lease, refusal.reason, refusal.detail["parent"]) == ("c", "starvation", "attached console")
        assert machine.scheduler.next_deadline() == math.inf


def test_it_gets_another_replica_where_there_is_one() -> None:
    machine = with_a_cell_inside(1, 2)
    assert started(machine.do(LeaseRequested("inside", "c", "p", "embed"))) == ["p-2"]
    machine.do(Tick(), at=10)
    assert granted(machine.ready("p-2")) == [("c", "p-2")]


def test_a_call_that_a_person_can_let_through_is_not_refused() -> None:
    machine = warm(2, 2)
    attach(machine, "x", "p-2")
    machine.ask("a")
    machine.ask("child", parent="a")
    assert machine.scheduler.next_deadline() == math.inf
    assert granted(machine.do(LeaseReleased("x"))) == [("child", "p-2")]


def call(
    machine: Machine, lease: str, pool: str = "p", *, parent: str | None = "x", at: float | None = None
) -> list[Command]:
    """A cell in p-1 calls a task; with a parent it stands still until then."""
    return machine.do(LeaseRequested("inside", lease, pool, "embed", parent), at=at)


def test_a_cell_of_who_shares_a_replica_is_not_served_by_the_thread_that_it_blocks() -> None:
    for concurrency in (1, 3):
        machine = with_a_cell_inside(1, 1, concurrency, shared=True)
        assert call(machine, "c", at=10) == []
        assert machine.pool().notes == (
            "calls wait until the cell of cyd.ipynb in p[0] goes on, or for a higher maximum",
        )
        (refusal,) = machine.do(Tick(), at=11)
        assert isinstance(refusal, Refuse)
        assert (refusal.lease, refusal.reason) == ("c", "starvation")
        assert (refusal.detail["parent"], refusal.detail["cell"]) == ("shared console", "shared")
        assert granted(machine.ask("a")) == [("a", "p-1")]


def test_nor_by_somebody_who_waits_to_have_it_alone() -> None:
    machine = with_a_cell_inside(1, 1, shared=True)
    call(machine, "c", at=10)
    attach(machine, "y", client="bob")
    assert refused(machine.do(Tick(), at=11)) == [("c", "starvation")]


def test_it_is_served_by_another_replica_even_by_one_that_has_to_be_started() -> None:
    machine = with_a_cell_inside(1, 2, concurrency=2, shared=True)
    assert started(call(machine, "c")) == ["p-2"]
    assert granted(machine.ready("p-2")) == [("c", "p-2")]
    assert granted(machine.ask("a")) == [("a", "p-2")]
    assert machine.ask("b") == []
    assert granted(machine.release("c")) == [("b", "p-1")]


def test_while_it_waits_for_another_pool_its_replica_serves_nobody() -> None:
    machine = with_a_cell_inside(1, 1, shared=True)
    machine.declare("q", scaling(1, 1))
    machine.ready(*started(machine.do(PoolWarmed("q"))))
    assert granted(call(machine, "c", "q", at=10)) == [("c", "q-2")]
    assert machine.ask("a") == []
    assert machine.do(Tick(), at=60) == []
    assert granted(machine.release("c")) == [("a", "p-1")]


def recalled(commands: list[Command]) -> list[str]:
    return [command.lease for command in commands if isinstance(command, Recall)]


def test_a_slot_behind_it_is_not_recalled_for_the_sake_of_others() -> None:
    """That slot cannot come free before the call is served, so who holds another one has to give that one back."""
    machine = with_a_cell_inside(2, 2, shared=True)
    machine.ready("p-2")
    assert granted(machine.ask("a", "b", client="bob")) == [("a", "p-1"), ("b", "p-2")]
    assert recalled(call(machine, "c")) == ["b"]
    assert granted(machine.release("b")) == [("c", "p-2")]


def test_nor_is_it_waited_for_if_it_was_recalled_before() -> None:
    machine = with_a_cell_inside(2, 2, shared=True)
    machine.ready("p-2")
    machine.ask("a", "b", client="bob")
    assert recalled(machine.ask("d")) == ["a"]
    machine.declare("q", scaling(1, 1))
    machine.ready(*started(machine.do(PoolWarmed("q"))))
    assert recalled(call(machine, "c", "q")) == ["b"]


def test_a_slot_is_recalled_again_once_the_cell_goes_on() -> None:
    for end in (LeaseReleased("c"), LeaseReleased("x"), ClientGone("cyd")):
        machine = with_a_cell_inside(1, 1, concurrency=2, shared=True)
        machine.ask("a", "b", client="bob")
        machine.declare("q", scaling(1, 1))
        machine.ready(*started(machine.do(PoolWarmed("q"))))
        call(machine, "c", "q")
        assert recalled(machine.ask("d")) == []
        assert recalled(machine.do(end)) == ["a"]


def test_a_call_that_comes_back_to_it_through_another_pool_starves() -> None:
    machine = with_a_cell_inside(1, 1, concurrency=2, shared=True)
    machine.declare("q", scaling(1, 1))
    machine.ready(*started(machine.do(PoolWarmed("q"))))
    call(machine, "c", "q", at=10)
    machine.ask("d", parent="c")
    assert refused(machine.do(Tick(), at=11)) == [("d", "starvation")]


def test_what_it_only_awaits_runs_beside_it() -> None:
    machine = with_a_cell_inside(1, 1, shared=True)
    assert granted(call(machine, "c", parent=None)) == [("c", "p-1")]


def test_what_a_cell_waited_for_outlives_its_pool() -> None:
    machine = with_a_cell_inside(1, 1, shared=True)
    machine.declare("q", scaling(1, 1))
    machine.ready(*started(machine.do(PoolWarmed("q"))))
    call(machine, "c", "q")
    machine.do(PoolStopped("p", force=True))
    machine.exit("p-1", "the pool was stopped")
    machine.do(ClientGone("ada"))
    machine.do(ClientGone("cyd"))
    assert [pool.key for pool in machine.scheduler.snapshot().pools] == ["q"]
    machine.release("c")
    assert machine.states("q") == {"q-2": "ready"}
