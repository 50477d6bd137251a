"""The scheduler's rules, one by one, at literal instants."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from flyte_jupyter.core.commands import (
    AskAfter,
    Command,
    ForgetPool,
    Grant,
    Interrupt,
    Lose,
    Recall,
    Refuse,
    StartReplica,
    StopReplica,
)
from flyte_jupyter.core.events import (
    CallsReported,
    ClientConnected,
    ClientGone,
    DevicesFound,
    Event,
    LeaseCancelled,
    LeaseEnded,
    LeaseKept,
    LeaseReleased,
    LeaseRequested,
    LeaseRevoked,
    LeaseUse,
    PoolDeclared,
    PoolInterrupted,
    PoolKept,
    PoolRestarted,
    PoolScaled,
    PoolStopped,
    PoolWarmed,
    ReplicaExited,
    ReplicaFailed,
    ReplicaInterrupted,
    ReplicaLoading,
    ReplicaReady,
    ReplicaRestarted,
    Tick,
)
from flyte_jupyter.core.inventory import Device
from flyte_jupyter.core.scheduler import Scheduler
from flyte_jupyter.core.snapshot import LeaseView, PoolView, Snapshot
from flyte_jupyter.core.spec import DeviceRequest, Scaling


def scaling(low: int, high: int, concurrency: int = 1, idle_ttl: float = 300, scaledown_ttl: float = 60) -> Scaling:
    return Scaling(
        min_replicas=low,
        max_replicas=high,
        concurrency=concurrency,
        idle_ttl=idle_ttl,
        scaledown_ttl=scaledown_ttl,
    )


class Machine:
    """A scheduler with short verbs; `now` is kept between them."""

    def __init__(self, gpus: int = 0, model: str = "NVIDIA RTX 4090") -> None:
        self.scheduler = Scheduler()
        self.now = 0.0
        for client in ("ada", "bob", "cyd"):
            self.do(ClientConnected(client, f"{client}.ipynb", "notebook", 1))
        devices = tuple(Device(f"GPU-{n}", model, index=n) for n in range(gpus))
        self.do(DevicesFound(devices, None if gpus else "driver not found"))

    def do(self, *events: Event, at: float | None = None) -> list[Command]:
        self.now = self.now if at is None else at
        return [command for event in events for command in self.scheduler.handle(event, now=self.now)]

    def declare(
        self,
        key: str,
        scaling: Scaling,
        *,
        client: str = "ada",
        gpus: int = 0,
        generation: str = "",
        name: str = "",
        single_use: bool = False,
        model: str | None = None,
    ) -> list[Command]:
        devices = DeviceRequest(count=gpus, model=model)
        return self.do(PoolDeclared(client, key, name or key, scaling, devices, generation, single_use))

    def ask(
        self,
        *leases: str,
        pool: str = "p",
        client: str = "ada",
        parent: str | None = None,
        at: float | None = None,
    ) -> list[Command]:
        return self.do(*(LeaseRequested(client, lease, pool, f"task-{lease}", parent) for lease in leases), at=at)

    def ready(self, *replicas: str, at: float | None = None) -> list[Command]:
        return self.do(*map(ReplicaReady, replicas), at=at)

    def release(self, *leases: str, at: float | None = None) -> list[Command]:
        return self.do(*map(LeaseReleased, leases), at=at)

    def exit(self, replica: str, cause: str = "exit code 0", at: float | None = None) -> list[Command]:
        return self.do(ReplicaExited(replica, cause), at=at)

    def pool(self, key: str = "p") -> PoolView:
        return next(pool for pool in self.scheduler.snapshot().pools if pool.key == key)

    def states(self, key: str = "p") -> dict[str, str]:
        return {replica.id: replica.state for replica in self.pool(key).replicas}


def started(commands: Iterable[Command]) -> list[str]:
    return [command.replica for command in commands if isinstance(command, StartReplica)]


def stopped(commands: Iterable[Command]) -> list[str]:
    return [command.replica for command in commands if isinstance(command, StopReplica)]


def granted(commands: Iterable[Command]) -> list[tuple[str, str]]:
    return [(command.lease, command.replica) for command in commands if isinstance(command, Grant)]


def refused(commands: Iterable[Command]) -> list[tuple[str, str]]:
    return [(command.lease, command.reason) for command in commands if isinstance(command, Refuse)]


def warm(low: int, high: int, concurrency: int = 1, **ttls: float) -> Machine:
    """A pool "p" whose minimum is ready at 0."""
    machine = Machine()
    machine.declare("p", scaling(low, high, concurrency, **ttls))
    machine.ready(*started(machine.do(PoolWarmed("p"))))
    return machine


# Starting


def test_declaring_a_pool_starts_nothing() -> None:
    machine = Machine()
    assert machine.declare("p", scaling(2, 2)) == []
    assert machine.pool().state == "stopped"
    assert machine.scheduler.next_deadline() == math.inf


def test_the_first_request_starts_all_replicas_of_a_fixed_pool() -> None:
    machine = Machine()
    machine.declare("p", scaling(3, 3))
    assert started(machine.ask("a")) == ["p-1", "p-2", "p-3"]
    assert [replica.name for replica in machine.pool().replicas] == ["p[0]", "p[1]", "p[2]"]


def test_a_range_starts_at_its_minimum_and_grows_by_one_when_all_slots_are_taken() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 3, concurrency=2))
    assert started(machine.ask("a")) == ["p-1"]
    assert started(machine.ask("b")) == []
    assert started(machine.ask("c")) == ["p-2"]
    assert started(machine.ask("d")) == []
    assert started(machine.ask("e", "f", "g")) == ["p-3"]


def test_a_minimum_of_zero_starts_one_replica_on_the_first_call() -> None:
    machine = Machine()
    machine.declare("p", scaling(0, 2))
    assert machine.do(PoolWarmed("p")) == []
    assert machine.ask("a") == [StartReplica("p-1", "p", "", (), "a call waits")]


def test_warming_starts_as_many_as_asked_for_up_to_the_maximum() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 3))
    assert started(machine.do(PoolWarmed("p", replicas=2))) == ["p-1", "p-2"]
    assert started(machine.do(PoolWarmed("p", replicas=9))) == ["p-3"]


def test_a_replica_goes_from_starting_over_loading_to_ready() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 1))
    machine.ask("a")
    assert machine.states() == {"p-1": "starting"}
    machine.do(ReplicaLoading("p-1", 4711))
    assert machine.states() == {"p-1": "loading"}
    assert machine.ready("p-1") == [Grant("ada", "a", "p-1")]
    assert machine.states() == {"p-1": "busy"}


def test_a_freed_display_index_is_used_again_but_an_id_never() -> None:
    machine = warm(2, 2)
    assert started(machine.exit("p-1", "signal SIGKILL", at=5)) == []
    machine.do(Tick(), at=6)
    assert [(r.id, r.index) for r in machine.pool().replicas] == [("p-3", 0), ("p-2", 1)]


# Granting


def test_the_least_loaded_replica_of_the_lowest_index_serves() -> None:
    machine = warm(2, 2, concurrency=2)
    assert granted(machine.ask("a", "b", "c", "d")) == [
        ("a", "p-1"),
        ("b", "p-2"),
        ("c", "p-1"),
        ("d", "p-2"),
    ]


def test_no_slot_is_sold_twice() -> None:
    machine = warm(1, 1, concurrency=2)
    assert granted(machine.ask("a", "b", "c")) == [("a", "p-1"), ("b", "p-1")]
    assert granted(machine.release("a")) == [("c", "p-1")]


def test_lowering_the_concurrency_kills_nothing_and_grants_nothing_more() -> None:
    machine = warm(1, 1, concurrency=3)
    machine.ask("a", "b", "c")
    assert machine.do(PoolScaled("p", scaling(1, 1, concurrency=1))) == []
    machine.ask("d")
    assert granted(machine.release("a", "b")) == []
    assert granted(machine.release("c")) == [("d", "p-1")]


def test_a_request_for_an_unknown_pool_is_refused_with_the_names_there_are() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 1), name="infer")
    machine.declare("q", scaling(1, 1), name="embed")
    assert machine.ask("a", pool="x") == [Refuse("ada", "a", "no-such-pool", {"pools": "embed, infer"})]


def test_a_release_undoes_a_queued_request() -> None:
    machine = warm(1, 1)
    machine.ask("a", "b", "c")
    assert machine.release("b") == []
    assert granted(machine.release("a")) == [("c", "p-1")]


def test_late_facts_are_ignored_and_change_no_revision() -> None:
    machine = warm(1, 1)
    revision = machine.scheduler.revision
    late: list[Event] = [
        LeaseReleased("x"),
        ReplicaReady("x"),
        ReplicaExited("x", "?"),
        ClientGone("x"),
        PoolWarmed("x"),
    ]
    assert machine.do(*late, LeaseRevoked("x", "?"), PoolStopped("x"), ReplicaFailed("x", "?")) == []
    assert machine.ask("a", client="nobody") == []
    assert machine.scheduler.revision == revision


# Fairness


def test_the_client_with_the_fewest_leases_goes_first() -> None:
    machine = warm(2, 2)
    machine.ask("a1", "a2", "a3", client="ada")
    machine.ask("b1", "b2", client="bob")
    assert granted(machine.release("a1")) == [("b1", "p-1")]
    assert granted(machine.release("b1")) == [("b2", "p-1")]
    assert granted(machine.release("a2")) == [("a3", "p-2")]


def test_equal_clients_take_turns_and_each_is_served_in_order() -> None:
    machine = warm(1, 1)
    machine.ask("a1", "a2", "a3", client="ada")
    machine.ask("b1", "b2", client="bob")
    order = [granted(machine.release(lease))[0][0] for lease in ("a1", "b1", "a2", "b2")]
    assert order == ["b1", "a2", "b2", "a3"]


def test_who_comes_back_after_each_call_does_not_overtake_who_has_been_waiting() -> None:
    machine = warm(1, 1)
    machine.ask("b0", client="bob")
    machine.ask("b1", client="bob")
    machine.ask("a1", client="ada")
    machine.ask("c1", client="cyd")
    assert granted(machine.release("b0")) == [("a1", "p-1")]
    machine.ask("a2", client="ada")
    assert granted(machine.release("a1")) == [("c1", "p-1")]
    assert granted(machine.release("c1")) == [("b1", "p-1")]
    assert granted(machine.release("b1")) == [("a2", "p-1")]


def test_a_lease_is_recalled_once_for_a_client_that_has_fewer() -> None:
    machine = warm(2, 2)
    machine.ask("a1", "a2", client="ada")
    assert machine.ask("b1", client="bob") == [Recall("ada", "a1")]
    assert machine.ask("b2", client="bob") == []
    assert granted(machine.release("a1")) == [("b1", "p-1")]


def test_nothing_is_recalled_for_ones_own_requests() -> None:
    machine = warm(1, 1)
    assert machine.ask("a1", "a2") == [Grant("ada", "a1", "p-1")]


# Going idle


def test_a_replica_above_the_minimum_stops_when_its_ttl_is_over() -> None:
    machine = warm(1, 2, scaledown_ttl=30)
    machine.ready(*started(machine.ask("a", "b", at=1)), at=2)
    machine.release("a", at=3)
    assert machine.scheduler.next_deadline() == 33
    assert machine.do(Tick(), at=32.9) == []
    assert machine.do(Tick(), at=33) == [StopReplica("p-1", "idle for 30 s")]


def test_the_minimum_is_kept_while_anything_runs() -> None:
    machine = warm(2, 2, idle_ttl=100, scaledown_ttl=30)
    machine.ask("a", at=1)
    assert machine.scheduler.next_deadline() == math.inf
    machine.release("a", at=500)
    assert machine.scheduler.next_deadline() == 600


def test_when_nothing_ran_for_idle_ttl_all_replicas_go_and_the_next_request_starts_them() -> None:
    machine = warm(2, 2, idle_ttl=100)
    machine.ask("a", at=10)
    machine.release("a", at=20)
    assert stopped(machine.do(Tick(), at=119.9)) == []
    assert stopped(machine.do(Tick(), at=120)) == ["p-1", "p-2"]
    machine.exit("p-1")
    machine.exit("p-2")
    assert machine.pool().state == "stopped"
    assert started(machine.ask("b", at=200)) == ["p-3", "p-4"]


def test_a_model_may_take_longer_to_load_than_idle_ttl() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 1, idle_ttl=30))
    machine.do(PoolWarmed("p"))
    assert machine.scheduler.next_deadline() == math.inf
    machine.ready("p-1", at=400)
    assert machine.scheduler.next_deadline() == 430


def test_kept_replicas_stay_until_then() -> None:
    machine = warm(1, 1, idle_ttl=30)
    machine.do(PoolKept("p", 100), at=10)
    assert machine.do(Tick(), at=109) == []
    assert stopped(machine.do(Tick(), at=110)) == ["p-1"]


def test_a_replica_idle_for_long_goes_while_others_work() -> None:
    machine = warm(0, 2, idle_ttl=30, scaledown_ttl=60)
    machine.ready(*started(machine.ask("a", "b")))
    machine.release("b", at=10)
    assert machine.scheduler.next_deadline() == 70
    assert stopped(machine.do(Tick(), at=70)) == ["p-2"]


def test_a_declaration_is_forgotten_when_nobody_makes_it_and_nothing_is_left() -> None:
    machine = warm(1, 1, idle_ttl=30)
    assert machine.do(ClientGone("ada"), at=10) == []
    machine.do(Tick(), at=30)
    assert machine.exit("p-1", at=31) == [ForgetPool("p")]
    assert machine.scheduler.snapshot().pools == ()


# Resizing and stopping


def test_lowering_the_maximum_drains_idle_replicas_first() -> None:
    machine = warm(3, 3)
    machine.ask("a")
    assert stopped(machine.do(PoolScaled("p", scaling(1, 1)))) == ["p-3", "p-2"]


def test_a_busy_surplus_replica_stops_after_its_task() -> None:
    machine = warm(2, 2)
    machine.ask("a", "b")
    assert machine.do(PoolScaled("p", scaling(1, 1))) == [Recall("ada", "b")]
    assert machine.states() == {"p-1": "busy", "p-2": "draining"}
    assert stopped(machine.release("b")) == ["p-2"]


def test_saying_the_same_again_does_not_undo_an_explicit_scale() -> None:
    machine = warm(1, 1)
    assert started(machine.do(PoolScaled("p", scaling(2, 2)))) == ["p-2"]
    assert machine.declare("p", scaling(1, 1)) == []
    assert machine.pool().scaling.max_replicas == 2
    assert started(machine.declare("p", scaling(3, 3))) == ["p-3"]


def test_stopping_refuses_the_queue_stops_the_idle_and_drains_the_busy() -> None:
    machine = warm(2, 2)
    machine.ask("a")
    assert machine.do(PoolStopped("p")) == [Recall("ada", "a"), StopReplica("p-2", "the pool was stopped")]
    assert stopped(machine.release("a")) == ["p-1"]


def test_stopping_refuses_who_waits() -> None:
    machine = warm(1, 1)
    machine.ask("a", "b")
    refusal = Refuse("ada", "b", "pool-stopped", {"pool": "p"})
    assert machine.do(PoolStopped("p")) == [refusal, Recall("ada", "a")]
    assert machine.states() == {"p-1": "draining"}


def test_stopping_by_force_ends_running_tasks() -> None:
    machine = warm(1, 1)
    machine.ask("a")
    assert machine.do(PoolStopped("p", force=True)) == [StopReplica("p-1", "the pool was stopped", force=True)]
    assert machine.exit("p-1", "signal SIGKILL") == [Lose("ada", "a", "the pool was stopped")]
    assert machine.pool().failures == 0


def test_a_superseded_pool_serves_what_it_has_and_then_goes_at_once() -> None:
    machine = warm(1, 1)
    machine.ask("a", "b")
    assert machine.declare("q", scaling(1, 1), name="p") == []
    assert granted(machine.release("a")) == [("b", "p-1")]
    assert stopped(machine.release("b")) == ["p-1"]
    assert machine.exit("p-1") == [ForgetPool("p")]


def test_a_pool_that_another_client_declares_too_is_not_superseded() -> None:
    machine = warm(1, 1)
    machine.declare("p", scaling(1, 1), client="bob")
    assert machine.declare("q", scaling(1, 1), name="p", client="ada") == []
    assert machine.states() == {"p-1": "ready"}


# Renewal


def test_a_changed_preload_renews_replicas_one_by_one() -> None:
    machine = warm(2, 2)
    assert started(machine.declare("p", scaling(2, 2), generation="B")) == ["p-3"]
    assert granted(machine.ask("a")) == [("a", "p-1")]
    commands = machine.ready("p-3")
    assert stopped(commands) == ["p-2"]
    assert started(commands) == ["p-4"]
    assert granted(machine.ask("b")) == [("b", "p-3")]
    assert machine.ready("p-4") == [Recall("ada", "a")]
    assert stopped(machine.release("a")) == ["p-1"]
    assert set(machine.states()) == {"p-1", "p-2", "p-3", "p-4"}


def test_replicas_that_still_load_the_old_preload_stop_at_once() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 1))
    machine.ask("a")
    commands = machine.declare("p", scaling(1, 1), generation="B")
    assert stopped(commands) == ["p-1"]
    assert started(commands) == ["p-2"]
    assert machine.exit("p-1") == []


def test_old_replicas_go_on_serving_when_the_new_preload_fails() -> None:
    machine = warm(1, 1)
    machine.declare("p", scaling(1, 1), generation="B")
    machine.ask("a", "b")
    assert machine.do(ReplicaFailed("p-2", "SyntaxError")) == [StopReplica("p-2", "it failed to start", force=True)]
    assert granted(machine.release("a")) == [("b", "p-1")]
    assert machine.scheduler.next_deadline() == 1
    assert started(machine.do(Tick(), at=1)) == ["p-3"]


def test_without_a_spare_gpu_an_old_replica_makes_room_for_the_new_one() -> None:
    machine = Machine(gpus=1)
    machine.declare("p", scaling(1, 1), gpus=1)
    machine.ready(*started(machine.do(PoolWarmed("p"))))
    assert stopped(machine.declare("p", scaling(1, 1), gpus=1, generation="B")) == ["p-1"]
    assert started(machine.exit("p-1")) == ["p-2"]


# Restart, interrupt, cancel

THE_POOL = "the pool is being restarted"
BY_HAND = "it was restarted by hand"


def test_a_restarted_pool_replaces_its_replicas_one_by_one_while_the_old_ones_answer() -> None:
    machine = warm(2, 2)
    assert machine.do(PoolRestarted("p")) == [StartReplica("p-3", "p", "", (), THE_POOL)]
    assert granted(machine.ask("a")) == [("a", "p-1")]
    commands = machine.ready("p-3")
    assert stopped(commands) == ["p-2"]
    assert started(commands) == ["p-4"]
    assert granted(machine.ask("b")) == [("b", "p-3")]
    assert machine.ready("p-4") == [Recall("ada", "a")]
    assert stopped(machine.release("a")) == ["p-1"]
    assert machine.pool().replicas[0].why == THE_POOL


def test_an_old_replica_serves_beside_a_restarted_one() -> None:
    machine = warm(3, 3)
    machine.do(PoolRestarted("p"))
    machine.ready("p-4")
    assert granted(machine.ask("a", "b")) == [("a", "p-4"), ("b", "p-2")]


def test_replicas_of_a_restarted_pool_that_are_still_loading_are_replaced_too() -> None:
    machine = Machine()
    machine.declare("p", scaling(0, 2))
    machine.do(PoolWarmed("p", 2))
    commands = machine.do(PoolRestarted("p"))
    assert stopped(commands) == ["p-1", "p-2"] or stopped(commands) == ["p-2", "p-1"]
    assert started(commands) == ["p-3", "p-4"]


def test_a_restart_without_a_spare_gpu_replaces_what_it_took_away_even_above_the_minimum() -> None:
    machine = Machine(gpus=2)
    machine.declare("p", scaling(0, 2), gpus=1)
    machine.ready(*started(machine.do(PoolWarmed("p", 2))))
    assert stopped(machine.do(PoolRestarted("p"))) == ["p-1"]
    assert started(machine.exit("p-1")) == ["p-3"]
    assert stopped(machine.ready("p-3")) == ["p-2"]
    assert started(machine.exit("p-2")) == ["p-4"]
    assert stopped(machine.ready("p-4")) == []


def test_a_restarted_replica_takes_no_call_and_is_replaced_after_the_one_it_has() -> None:
    machine = warm(1, 1)
    machine.ask("a")
    assert machine.do(ReplicaRestarted("p-1")) == [Recall("ada", "a")]
    assert machine.states() == {"p-1": "draining"}
    assert machine.ask("b") == []
    assert machine.release("a") == [StopReplica("p-1", BY_HAND), StartReplica("p-2", "p", "", (), "a call waits")]


def test_a_restart_of_one_that_goes_already_forgives_its_pool_and_every_view_shows_it() -> None:
    machine = warm(2, 2)
    machine.do(ReplicaExited("p-2", "it broke"), PoolStopped("p"))
    before, shown = machine.scheduler.revision, machine.pool().failure
    machine.do(ReplicaRestarted("p-1"))
    assert shown is not None
    assert machine.pool().failure is None
    assert machine.scheduler.revision > before


def test_a_restarted_replica_is_replaced_even_above_the_minimum() -> None:
    machine = warm(0, 2)
    machine.ready(*started(machine.do(PoolWarmed("p", 2))))
    machine.ask("a")
    commands = machine.do(ReplicaRestarted("p-2"))
    assert commands == [StopReplica("p-2", BY_HAND), StartReplica("p-3", "p", "", (), "kept warm")]
    machine.do(ReplicaRestarted("p-1"))
    machine.exit("p-2")
    assert started(machine.release("a")) == ["p-4"]
    assert machine.ready("p-3", "p-4") == []


def test_a_restart_by_force_loses_the_calls_that_run() -> None:
    machine = warm(1, 1)
    machine.ask("a")
    commands = machine.do(ReplicaRestarted("p-1", force=True))
    assert commands == [
        StopReplica("p-1", BY_HAND, force=True),
        StartReplica("p-2", "p", "", (), "kept warm"),
    ]
    assert machine.exit("p-1", "signal SIGKILL") == [Lose("ada", "a", BY_HAND)]
    assert machine.pool().failures == 0


def test_a_replica_that_is_restarted_twice_is_replaced_once() -> None:
    machine = warm(0, 3)
    machine.ready(*started(machine.do(PoolWarmed("p", 1))))
    machine.ask("a")
    assert started(machine.do(ReplicaRestarted("p-1"), ReplicaRestarted("p-1"))) == ["p-2"]


def test_a_pool_that_is_stopped_owes_no_replica() -> None:
    machine = warm(0, 1)
    machine.ready(*started(machine.do(PoolWarmed("p", 1))))
    machine.ask("a")
    machine.do(ReplicaRestarted("p-1"), PoolStopped("p"))
    assert started(machine.release("a")) == []
    assert started(machine.exit("p-1")) == []


def test_a_restart_makes_a_failed_pool_try_again() -> None:
    machine = warm(1, 2)
    for attempt in range(2, 7):
        machine.do(PoolWarmed("p", 2), at=float(attempt))
        machine.do(ReplicaFailed(f"p-{attempt}", "ImportError"), ReplicaExited(f"p-{attempt}", "exit code 1"))
    assert machine.pool().failure is not None
    assert started(machine.do(PoolRestarted("p"))) == ["p-7"]
    assert machine.pool().failure is None


def test_an_interrupt_reaches_a_replica_and_leaves_its_leases() -> None:
    machine = warm(1, 1)
    machine.ask("a")
    assert machine.do(ReplicaInterrupted("p-1")) == [Interrupt("p-1")]
    assert machine.states() == {"p-1": "busy"}
    assert machine.do(ReplicaInterrupted("gone")) == []


def test_an_interrupted_pool_stops_what_runs_on_each_replica_and_nothing_else() -> None:
    machine = warm(2, 3)
    assert machine.do(PoolInterrupted("p")) == []
    machine.ask("a")
    assert machine.do(PoolInterrupted("p")) == [Interrupt("p-1")]
    machine.ask("b", "c")
    assert machine.do(PoolInterrupted("p")) == [Interrupt("p-1"), Interrupt("p-2")]
    assert machine.states() == {"p-1": "busy", "p-2": "busy", "p-3": "starting"}
    assert machine.pool().waiting == 1
    assert machine.do(PoolInterrupted("gone")) == []


def test_a_cancelled_request_is_refused_and_a_cancelled_call_interrupted() -> None:
    machine = warm(1, 1)
    machine.ask("a", "b")
    [refusal] = machine.do(LeaseCancelled("b"))
    assert refusal == Refuse("ada", "b", "cancelled", {"pool": "p", "task": "task-b"})
    assert machine.do(LeaseCancelled("a")) == [Interrupt("p-1", "a")]
    assert machine.pool().waiting == 0
    assert machine.do(LeaseCancelled("b")) == []


# Deaths and failures


def test_a_death_under_a_task_loses_the_lease_and_is_replaced_at_once() -> None:
    machine = warm(1, 1)
    machine.ask("a")
    commands = machine.exit("p-1", "signal SIGSEGV")
    assert commands == [Lose("ada", "a", "signal SIGSEGV"), StartReplica("p-2", "p", "", (), "kept warm")]
    assert machine.pool().failure is None


def test_a_failed_preload_refuses_those_who_wait_and_is_tried_again_later() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 1))
    machine.ask("a")
    detail = {"pool": "p", "cause": "ImportError: x", "replica": "p[0]", "attempts": "1", "state": "starting"}
    stop = StopReplica("p-1", "it failed to start", force=True)
    assert machine.do(ReplicaFailed("p-1", "ImportError: x")) == [
        stop,
        Refuse("ada", "a", "pool-failed", detail),
    ]
    assert machine.exit("p-1") == []
    assert machine.ask("b", at=0.5) == []
    assert machine.scheduler.next_deadline() == 1
    assert started(machine.do(Tick(), at=1)) == ["p-2"]


def test_the_wait_after_a_failure_doubles() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 1))
    machine.do(PoolWarmed("p"))
    for at, retry in [(0, 1), (1, 3), (3, 7), (7, 15)]:
        [replica] = machine.states()
        machine.exit(replica, "exit code 1", at=at)
        assert machine.scheduler.next_deadline() == retry
        machine.do(Tick(), at=retry)


def failed_pool() -> Machine:
    machine = Machine()
    machine.declare("p", scaling(1, 1))
    machine.do(PoolWarmed("p"))
    for at in (0, 1, 3, 7, 15):
        machine.do(Tick(), at=at)
        [replica] = machine.states()
        machine.exit(replica, "exit code 1", at=at)
    return machine


def test_five_failures_within_two_minutes_are_a_verdict() -> None:
    machine = failed_pool()
    assert machine.pool().state == "failed"
    detail = {"pool": "p", "cause": "exit code 1", "replica": "p[0]", "attempts": "5", "state": "starting"}
    assert machine.ask("a", at=100) == [Refuse("ada", "a", "pool-failed", detail)]


def test_a_verdict_ends_by_warming_or_by_another_preload_only() -> None:
    machine = failed_pool()
    assert started(machine.declare("p", scaling(1, 1))) == []
    assert started(machine.do(PoolWarmed("p"))) == ["p-6"]
    machine = failed_pool()
    assert started(machine.declare("p", scaling(1, 1), generation="B")) == ["p-6"]
    assert machine.pool().failure is None


def test_a_finished_call_resets_the_wait() -> None:
    machine = warm(1, 1)
    machine.exit("p-1", "signal SIGKILL", at=10)
    machine.do(Tick(), at=11)
    machine.ready("p-2")
    machine.ask("a")
    machine.release("a")
    machine.exit("p-2", "signal SIGKILL", at=20)
    assert machine.scheduler.next_deadline() == 21


def test_a_task_that_does_not_listen_takes_its_replica_with_it() -> None:
    machine = warm(1, 1, concurrency=2)
    machine.ask("a", client="ada")
    machine.ask("b", client="bob")
    commands = machine.do(LeaseRevoked("a", "cancelled"))
    assert commands[0] == StopReplica("p-1", "cancelled", force=True)
    assert started(commands) == ["p-2"]
    commands = machine.exit("p-1", "signal SIGKILL")
    assert commands == [Lose("ada", "a", "cancelled"), Lose("bob", "b", "signal SIGKILL")]


def test_a_lost_client_gives_back_what_it_held_and_asked_for() -> None:
    machine = warm(1, 1)
    machine.ask("a1", "a2", client="ada")
    machine.ask("b1", client="bob")
    assert machine.do(ClientGone("ada"), at=5) == [AskAfter("p-1", "a1")]
    assert machine.pool().waiting == 1
    assert granted(machine.do(LeaseEnded("a1"), at=6)) == [("b1", "p-1")]
    assert machine.do(Tick(), at=11) == []


def test_a_call_may_be_known_to_have_stopped_before_its_client_is_known_to_be_gone() -> None:
    machine = warm(1, 1)
    machine.ask("a1", client="ada")
    machine.ask("b1", client="bob")
    assert machine.do(LeaseEnded("a1"), at=5) == []
    assert granted(machine.do(ClientGone("ada"), at=5)) == [("b1", "p-1")]
    assert machine.do(Tick(), at=11) == []


def test_a_call_that_outlives_its_client_costs_its_replica() -> None:
    machine = warm(1, 1)
    machine.ask("a1", client="ada")
    machine.do(ClientGone("ada"), at=5)
    assert machine.scheduler.next_deadline() == 11
    assert machine.do(Tick(), at=10.9) == []
    why = "task-a1 does not stop, and its client is gone"
    assert machine.do(Tick(), at=11)[0] == StopReplica("p-1", why, force=True)


def test_a_call_that_stops_at_the_last_moment_does_not() -> None:
    machine = warm(1, 1)
    machine.ask("a1", client="ada")
    machine.do(ClientGone("ada"), at=5)
    assert machine.do(LeaseEnded("a1"), at=11.1) == []


# Single use


def test_a_single_use_replica_serves_one_call_and_stops() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 2, concurrency=5), single_use=True)
    assert started(machine.ask("a", "b", "c")) == ["p-1", "p-2"]
    assert machine.ready("p-1")[0] == Grant("ada", "a", "p-1", single_use=True)
    assert granted(machine.ready("p-2")) == [("b", "p-2")]
    commands = machine.release("a")
    assert stopped(commands) == ["p-1"]
    assert started(commands) == ["p-3"]


# GPUs


def test_a_replica_is_bound_to_devices_until_it_has_exited() -> None:
    machine = Machine(gpus=1)
    machine.declare("p", scaling(0, 1), gpus=1)
    assert machine.ask("a") == [StartReplica("p-1", "p", "", ("GPU-0",), "a call waits")]
    machine.ready("p-1")
    machine.do(PoolStopped("p", force=True))
    assert machine.ask("b") == []
    assert machine.pool().waits_for == "GPU 0: p[0]"
    assert started(machine.exit("p-1")) == ["p-2"]


def test_asking_for_a_gpu_where_there_is_none_is_refused_at_once() -> None:
    machine = Machine()
    machine.declare("p", scaling(1, 1), gpus=1)
    detail = {"pool": "p", "problem": "driver not found", "wanted": "1"}
    assert machine.ask("a") == [Refuse("ada", "a", "no-gpu", detail)]


def test_asking_for_more_gpus_than_the_machine_has_names_who_holds_them() -> None:
    machine = Machine(gpus=2)
    machine.declare("q", scaling(1, 1), gpus=1, name="infer")
    machine.do(PoolWarmed("q"))
    machine.declare("p", scaling(1, 1), gpus=3)
    detail = {"pool": "p", "wanted": "3", "total": "2", "held": "GPU 0: infer[0]"}
    assert machine.ask("a") == [Refuse("ada", "a", "no-room", detail)]


def test_the_machine_caps_the_maximum_and_the_pool_says_so() -> None:
    machine = Machine(gpus=1, model="NVIDIA RTX 4090")
    machine.declare("p", scaling(1, 4), gpus=1, model="A100")
    assert started(machine.ask("a", "b", "c")) == ["p-1"]
    assert machine.pool().notes == (
        "asked for A100, this machine has NVIDIA RTX 4090",
        "at most 1 of 4 replicas: each needs 1 of this machine's 1 matching GPUs",
    )


def test_an_idle_replica_above_its_minimum_gives_its_gpu_to_a_waiting_request() -> None:
    machine = Machine(gpus=1)
    machine.declare("q", scaling(0, 1), gpus=1)
    machine.ask("a", pool="q")
    machine.ready("q-1")
    machine.declare("p", scaling(0, 1), gpus=1)
    assert machine.ask("b") == []
    assert machine.release("a") == [StopReplica("q-1", "a call to p needs its GPU")]
    assert started(machine.exit("q-1")) == ["p-2"]


def test_a_warm_minimum_keeps_its_gpu_until_its_pool_is_idle() -> None:
    machine = Machine(gpus=1)
    machine.declare("q", scaling(1, 1, idle_ttl=30), gpus=1)
    machine.ready(*started(machine.do(PoolWarmed("q"))))
    machine.declare("p", scaling(0, 1), gpus=1)
    assert machine.ask("a") == []
    assert stopped(machine.do(Tick(), at=30)) == ["q-1"]
    assert started(machine.exit("q-1")) == ["p-2"]


def test_keeping_warm_never_takes_a_gpu_that_a_request_waits_for() -> None:
    machine = Machine(gpus=2)
    machine.declare("q", scaling(2, 2), gpus=1)
    machine.ready(*started(machine.do(PoolWarmed("q"))))
    machine.ask("a1", "a2", pool="q")
    machine.declare("p", scaling(0, 1), gpus=2)
    machine.ask("b")
    assert started(machine.exit("q-1", "signal SIGKILL")) == []
    machine.release("b")
    assert machine.states("q").keys() == {"q-2", "q-3"}


# Starvation


def test_a_call_that_can_never_be_served_is_refused_after_a_second() -> None:
    machine = warm(1, 1)
    machine.ask("parent")
    machine.ask("child", client="bob", parent="parent", at=10)
    assert machine.scheduler.next_deadline() == 11
    [refuse] = machine.do(Tick(), at=11)
    assert refuse == Refuse(
        "bob",
        "child",
        "starvation",
        {
            "parent": "task-parent",
            "child": "task-child",
            "pool": "p",
            "replicas": "1",
            "concurrency": "1",
            "chain": "task-parent -> task-child",
        },
    )


def test_a_call_that_comes_back_to_a_full_pool_through_another_starves() -> None:
    machine = warm(1, 1)
    machine.declare("q", scaling(1, 1))
    machine.ready(*started(machine.do(PoolWarmed("q"))))
    machine.ask("a", pool="p")
    machine.ask("b", pool="q", parent="a")
    machine.ask("c", pool="p", parent="b", at=10)
    [refuse] = machine.do(Tick(), at=11)
    assert isinstance(refuse, Refuse)
    assert refuse.detail["chain"] == "task-a -> task-b -> task-c"


def test_two_pools_that_wait_for_each_other_lose_the_newest_call() -> None:
    machine = warm(1, 1)
    machine.declare("q", scaling(1, 1))
    machine.ready(*started(machine.do(PoolWarmed("q"))))
    machine.ask("a", pool="p")
    machine.ask("b", pool="q")
    machine.ask("a1", pool="q", parent="a")
    assert machine.scheduler.next_deadline() > 100
    machine.ask("b1", pool="p", parent="b", at=5)
    assert refused(machine.do(Tick(), at=6)) == [("b1", "starvation")]
    assert granted(machine.release("b")) == [("a1", "q-2")]


def test_a_single_gpu_held_by_the_parent_starves_its_child() -> None:
    machine = Machine(gpus=1)
    machine.declare("p", scaling(1, 1), gpus=1)
    machine.declare("q", scaling(1, 1), gpus=1)
    machine.ask("parent")
    machine.ready("p-1")
    machine.ask("child", pool="q", parent="parent", at=10)
    assert refused(machine.do(Tick(), at=11)) == [("child", "starvation")]


@pytest.mark.parametrize(("high", "concurrency"), [(1, 2), (2, 1)])
def test_room_for_one_more_is_no_starvation(high: int, concurrency: int) -> None:
    machine = warm(1, high, concurrency)
    machine.ask("parent")
    machine.ask("child", parent="parent", at=10)
    assert refused(machine.do(Tick(), at=20)) == []


def test_a_slot_that_somebody_else_will_release_is_no_starvation() -> None:
    machine = warm(1, 1, concurrency=2)
    machine.ask("parent", "other")
    machine.ask("child", parent="parent", at=10)
    assert refused(machine.do(Tick(), at=20)) == []
    machine.ask("child2", parent="other", at=30)
    assert refused(machine.do(Tick(), at=31)) == [("child2", "starvation")]
    assert refused(machine.do(Tick(), at=31.5)) == []


# What views see


def told(
    replica: str, lease: str, task: str, *, running: bool = True, since: float = 0, ended: int = 0
) -> CallsReported:
    return CallsReported(replica, (), (LeaseUse(lease, running, task, since),), ended)


def test_a_lease_shows_the_call_that_runs_in_it() -> None:
    machine = warm(1, 1)
    machine.ask("a", at=5)
    assert machine.pool().replicas[0].running == (LeaseView(lease="a", task="task-a", client="ada.ipynb", since=5),)
    machine.do(told("p-1", "a", "second", since=5.5, ended=1), at=6)
    assert machine.pool().replicas[0].running == (LeaseView(lease="a", task="second", client="ada.ipynb", since=5.5),)


@pytest.mark.parametrize(
    ("session", "keeper", "written"),
    [("s", 'session "s"', "s"), ("", "the session", "''"), ("a b", 'session "a b"', "'a b'")],
)
def test_a_slot_that_a_session_keeps_is_named_with_what_frees_it(session: str, keeper: str, written: str) -> None:
    machine = warm(1, 1)
    machine.do(LeaseRequested("ada", "a", "p", "cell", session=session))
    machine.do(told("p-1", "a", "cell", running=False, ended=1))
    [view] = machine.pool().replicas
    assert view.leases[0].keeper == f"{keeper} of ada.ipynb"
    end = f"%flyte_cancel --session {written} --pool {machine.pool().name}"
    assert machine.pool().notes == (f"{view.name} is held by {keeper} of ada.ipynb: `{end}` there frees it",)
    machine.do(LeaseKept("a", "other"))
    assert 'held by session "other" of' in machine.pool().notes[0]
    machine.do(LeaseReleased("a"), LeaseKept("a", "other"))
    assert machine.pool().notes == ()


def test_a_replica_is_not_busy_while_a_client_only_keeps_its_slot() -> None:
    machine = warm(1, 1)
    machine.ask("a", at=5)
    assert (machine.pool().state, machine.states()) == ("busy", {"p-1": "busy"})
    machine.do(told("p-1", "a", "task-a", running=False, since=5.9, ended=1), at=6)
    pool = machine.pool()
    assert (pool.state, machine.states(), pool.replicas[0].running) == ("ready", {"p-1": "ready"}, ())
    assert [lease.running for lease in pool.replicas[0].leases] == [False]
    assert (pool.idle_stops_at, machine.ask("b", at=7)) == (None, [])  # the slot is taken all the same


def test_what_is_told_of_a_lease_that_is_over_changes_no_other() -> None:
    machine = warm(1, 1)
    machine.ask("a", "b", at=5)
    machine.release("a")
    machine.do(told("p-1", "a", "task-a", running=False, ended=1), told("p-9", "b", "x"), at=6)
    assert [lease.task for lease in machine.pool().replicas[0].running] == ["task-b"]


def test_each_call_but_the_first_of_each_replica_avoids_a_cold_start() -> None:
    machine = warm(2, 2)
    machine.do(told("p-1", "a", "t", ended=1))
    assert machine.pool().cold_starts_avoided == 0
    machine.do(told("p-1", "a", "t", ended=2), told("p-2", "b", "t", ended=5))
    assert (machine.pool().calls, machine.pool().cold_starts_avoided) == (8, 6)


def test_the_mean_cold_start_is_from_the_order_until_ready() -> None:
    machine = Machine()
    machine.declare("p", scaling(0, 2))
    machine.ask("a", "b", at=10)
    assert machine.pool().cold_start_s is None
    machine.ready("p-1", at=12)
    machine.ready("p-2", at=16)
    assert machine.pool().cold_start_s == 4


def test_the_snapshot_is_json() -> None:
    machine = warm(1, 2)
    machine.ask("a", at=5)
    machine.ask("b", at=6)
    snapshot = machine.scheduler.snapshot()
    assert Snapshot.model_validate_json(snapshot.model_dump_json()) == snapshot
    [pool] = snapshot.pools
    assert (pool.state, pool.calls, pool.starts) == ("busy", 0, 2)
    assert [(request.client, request.position) for request in pool.queue] == [("ada.ipynb", 0)]
    assert pool.replicas[0].leases[0].since == 5


def test_the_snapshot_says_when_a_replica_will_stop() -> None:
    machine = warm(1, 1, idle_ttl=100)
    assert machine.pool().idle_stops_at == 100
    assert machine.pool().replicas[0].stops_at == 100
    machine.do(PoolKept("p", 500), at=10)
    assert machine.pool().replicas[0].stops_at == 510


def test_the_story_keeps_what_happened_and_what_was_commanded() -> None:
    machine = warm(1, 1)
    machine.ask("a", at=7)
    assert machine.scheduler.story[-1] == (
        7,
        LeaseRequested("ada", "a", "p", "task-a"),
        (Grant("ada", "a", "p-1"),),
    )
