"""Snapshots in words: exact strings, from pictures made by hand."""

from __future__ import annotations

import doctest

import pytest

from flyte_jupyter.client import text
from flyte_jupyter.core.protocol import ZygoteView
from flyte_jupyter.core.snapshot import (
    ClientView,
    DeviceView,
    FailureView,
    LeaseView,
    PoolView,
    ReplicaView,
    RequestView,
    Snapshot,
)
from flyte_jupyter.core.spec import DeviceRequest, Scaling
from flyte_jupyter.core.usage import DeviceUsage, OwnerView, ReplicaUsage, Usage

SCALING = Scaling(min_replicas=1, max_replicas=3, idle_ttl=1800, scaledown_ttl=300)
NOW = 10_000.0
GPUS = tuple(
    DeviceView(
        uuid=f"GPU-{index}",
        index=index,
        model="NVIDIA GeForce RTX 4090",
        partition=None,
        memory_bytes=24 * 2**30,
        replica="r0" if index == 0 else None,
        replica_name="gpu[0]" if index == 0 else None,
    )
    for index in (0, 1)
)


def replica(index: int = 0, **facts: object) -> ReplicaView:
    values: dict[str, object] = {
        "id": f"r{index}",
        "index": index,
        "name": f"gpu[{index}]",
        "state": "ready",
        "pid": 4121 + index,
        "devices": (f"GPU-{index}",),
        "leases": (),
        "started_at": NOW - 2460,
        "ready_at": NOW - 2420,
        "idle_since": None,
        "stops_at": None,
        "generation_current": True,
        "why": "the minimum",
    }
    return ReplicaView.model_validate(values | facts)


def pool(**facts: object) -> PoolView:
    values: dict[str, object] = {
        "key": "0123456789abcdef",
        "name": "gpu",
        "state": "ready",
        "scaling": SCALING,
        "devices": DeviceRequest(count=1),
        "single_use": False,
        "retiring": False,
        "declared_by": (),
        "replicas": (),
        "queue": (),
        "waiting": 0,
        "idle_stops_at": None,
        "kept_until": None,
        "failure": None,
        "notes": (),
        "waits_for": None,
        "starts": 2,
        "failures": 0,
        "calls": 12,
        "cold_starts_avoided": 11,
        "cold_start_s": 12.0,
    }
    return PoolView.model_validate(values | facts)


def lease(task: str = "gpu.train", client: str = "train.ipynb", since: float = NOW - 7) -> LeaseView:
    return LeaseView(lease="l", task=task, client=client, since=since)


def table(view: PoolView | None) -> list[str]:
    return text.pool_table("gpu", view, SCALING, now=NOW, devices=GPUS).splitlines()


def test_a_pool_at_work() -> None:
    view = pool(
        state="busy",
        replicas=(
            replica(0, state="busy", leases=(lease(),)),
            replica(1, stops_at=NOW + 252),
            replica(2, state="loading", started_at=NOW - 12, ready_at=None, pid=None, devices=("GPU-1",)),
        ),
        queue=(
            RequestView(
                lease="a", task="gpu.train", client="train.ipynb", since=NOW - 4, position=0, expected_at=NOW + 12
            ),
            RequestView(
                lease="b", task="gpu.eval", client="eval.ipynb", since=NOW - 2, position=1, expected_at=NOW - 1
            ),
        ),
        waiting=2,
    )
    assert table(view) == [
        "┌ gpu ── 1 ready · 1 busy · 1 loading · 1 to 3 replicas",
        "│ #  state         GPU           task                     age  pid",
        "│ 0  busy 0:07     0 · RTX 4090  gpu.train (train.ipynb)  41m  4121",
        "│ 1  ready         1 · RTX 4090  -                        41m  4122  off in 4:12",
        "│ 2  loading 0:12  1 · RTX 4090  -                        12s  -",
        "├ queue 2",
        "│ 1. gpu.train (train.ipynb), waits 0:04, starts in about 12 s",
        "│ 2. gpu.eval (eval.ipynb), waits 0:02, longer than usual",
        "├ cold starts avoided: 11 (about 2 min saved)",
        "└ 12 calls · 2 starts · idle_ttl 30m · scaledown_ttl 5m",
    ]


def test_an_idle_pool_counts_down() -> None:
    view = pool(idle_stops_at=NOW + 1780, replicas=(replica(stops_at=NOW + 1780),))
    assert table(view)[:3] == [
        "┌ gpu ── 1 ready · 1 to 3 replicas ── idle off in 29:40",
        "│ #  state  GPU           task  age  pid",
        "│ 0  ready  0 · RTX 4090  -     41m  4121",
    ]
    assert text.pool_line(view, SCALING, now=NOW + 1) == "1 ready · 1 to 3 replicas · idle off in 29:39"


def test_a_kept_pool_says_so() -> None:
    kept = pool(idle_stops_at=NOW + 7200, kept_until=NOW + 7200, replicas=(replica(),))
    assert text.pool_line(kept, SCALING, now=NOW) == "1 ready · 1 to 3 replicas · idle off in 2:00:00 (kept)"
    busy = pool(kept_until=NOW + 60, replicas=(replica(state="busy", leases=(lease(), lease())),))
    assert text.pool_line(busy, SCALING, now=NOW) == "1 busy · 1 to 3 replicas · kept for 1:00"
    assert "gpu.train (train.ipynb) and 1 more" in table(busy)[2]


def test_a_failed_pool_tells_the_cause() -> None:
    cause = "Traceback (most recent call last):\n  ...\nRuntimeError: no weights\n"
    failure = FailureView(cause=cause, replica="gpu[0]", attempts=2, retry_at=NOW + 5)
    assert table(pool(state="waiting", failure=failure)) == [
        "┌ gpu ── waiting · 1 to 3 replicas",
        "├ failed ── RuntimeError: no weights (gpu[0], 2 attempts, next in 0:05)",
        "├ cold starts avoided: 11 (about 2 min saved)",
        "└ 12 calls · 2 starts · idle_ttl 30m · scaledown_ttl 5m",
    ]
    over = failure.model_copy(update={"retry_at": None, "attempts": 1})
    assert table(pool(state="failed", failure=over))[1].endswith("(gpu[0], 1 attempt, given up)")


def test_notes_and_what_a_pool_waits_for() -> None:
    view = pool(state="waiting", waits_for="GPU 0: infer[0]", notes=("asked for A100, this machine has L4",))
    assert table(view)[1:3] == [
        "├ waits for ── GPU 0: infer[0]",
        "├ note ── asked for A100, this machine has L4",
    ]


def test_a_replica_that_goes_says_why() -> None:
    view = pool(replicas=(replica(state="draining", generation_current=False, why="the preload changed"),))
    assert table(view)[2].endswith("4121  old preload, the preload changed")


def test_a_pool_that_the_broker_does_not_know() -> None:
    fixed = Scaling(min_replicas=1, max_replicas=1, concurrency=4, idle_ttl=90, scaledown_ttl=30)
    assert text.pool_line(None, fixed, now=0) == "not started · 1 replica × 4 slots"  # noqa: RUF001
    assert table(None) == ["gpu: not started · 1 to 3 replicas · idle_ttl 30m · scaledown_ttl 5m"]


def test_the_whole_picture() -> None:
    clients = (ClientView(client="c", label="train.ipynb", kind="notebook", pid=77, leases=1, waiting=2),)
    snapshot = Snapshot(revision=1, now=NOW, pools=(), devices=GPUS, device_problem=None, clients=clients)
    assert text.snapshot_table(snapshot, now=NOW).splitlines() == [
        "No pool yet. One appears with the first call of a task.",
        "",
        "GPU           memory    held by",
        "0 · RTX 4090  24.0 GiB  gpu[0]",
        "1 · RTX 4090  24.0 GiB  -",
        "",
        "client       kind      pid  calls  waiting",
        "train.ipynb  notebook  77   1      2",
    ]
    none = snapshot.model_copy(update={"devices": (), "device_problem": "no driver", "clients": ()})
    assert text.snapshot_table(none, now=NOW).splitlines()[2:] == ["GPUs: none (no driver)", "", "Clients: none"]


def owner(label: str, kind: str, used: int | None, user: str | None = "me", pid: int = 812) -> OwnerView:
    values = {"label": label, "kind": kind, "replica": None, "pid": pid, "user": user, "bytes": used}
    return OwnerView.model_validate(values)


GIB = 2**30
USAGE = Usage(
    measured_at=NOW,
    devices={
        "GPU-0": DeviceUsage(
            used_bytes=14 * GIB + GIB // 2,
            utilization=62,
            temperature_c=61,
            owners=(
                owner("gpu[0]", "replica", 6 * GIB),
                owner("python", "process", 4 * GIB, "alice"),
                owner("tune.ipynb", "notebook", 2 * GIB),
                owner("Xorg", "process", None, "root", 44),
                owner("unknown", "process", GIB, None),
            ),
        )
    },
    replicas={"r0": ReplicaUsage(memory_bytes=3 * GIB)},
)


def test_who_uses_a_gpu() -> None:
    assert text.usage_table(GPUS, USAGE).splitlines() == [
        "GPU 0 · RTX 4090 ── 14.5 GiB of 24.0 GiB · 62 % busy · 61 °C · held by gpu[0]",
        "  replicas         gpu[0] 6.0 GiB",
        "  other notebooks  tune.ipynb (me, pid 812) 2.0 GiB",
        "  other processes  python (alice, pid 812) 4.0 GiB · Xorg (root, pid 44) unknown · unknown 1.0 GiB",
        "  the rest         1.5 GiB (the driver, and what it does not say)",
        "",
        "GPU 1 · RTX 4090 ── 24.0 GiB · use unknown",
    ]


def test_what_is_used_in_the_whole_picture() -> None:
    view = pool(replicas=(replica(0), replica(1)))
    snapshot = Snapshot(revision=1, now=NOW, pools=(view,), devices=GPUS, device_problem=None, clients=())
    shown = text.snapshot_table(snapshot, now=NOW, usage=USAGE).splitlines()
    assert shown[1:4] == [
        "│ #  state  GPU           memory   task  age  pid",
        "│ 0  ready  0 · RTX 4090  3.0 GiB  -     41m  4121",
        "│ 1  ready  1 · RTX 4090  -        -     41m  4122",
    ]
    assert shown[shown.index("") + 1 :][:3] == [
        "GPU           memory                held by",
        "0 · RTX 4090  14.5 GiB of 24.0 GiB  gpu[0]",
        "1 · RTX 4090  24.0 GiB              -",
    ]


def test_names_of_strangers_are_made_visible() -> None:
    evil = "\x1b]0;x\x07\u202e"
    used = DeviceUsage(used_bytes=1, utilization=None, temperature_c=None, owners=(owner(evil, "process", 1, evil),))
    shown = text.usage_table(GPUS, Usage(devices={"GPU-0": used}))
    assert not set(shown) & set("\x1b\x07\u202e")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"),
        ("naïve 模型 · ✓", "naïve 模型 · ✓"),
        ("\x1b[2Jx\r\n", "\\x1b[2Jx\\r\\n"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("a\u202egpj.exe\u2066", "a\\u202egpj.exe\\u2066"),
        ("\u200b\u2028\ud800", "\\u200b\\u2028\\ud800"),
    ],
)
def test_what_would_steer_a_terminal_is_made_visible(raw: str, shown: str) -> None:
    assert text.visible(raw) == shown
    assert text.visible(shown) == shown


def test_every_name_in_a_table_is_made_visible() -> None:
    evil = "\x1b]0;x\x07\u202e"
    everywhere = pool(
        name=evil,
        replicas=(replica(state="draining", leases=(lease(evil, evil),), devices=(evil,), why=evil),),
        queue=(RequestView(lease="a", task=evil, client=evil, since=NOW, position=0),),
        waiting=1,
        notes=(evil,),
        waits_for=evil,
        failure=FailureView(cause=evil, replica=evil, attempts=1, retry_at=None),
    )
    device = GPUS[0].model_copy(update={"model": evil, "partition": evil, "replica_name": evil})
    client = ClientView(client="c", label=evil, kind=evil, pid=1, leases=0, waiting=0)
    snapshot = Snapshot(
        revision=1, now=NOW, pools=(everywhere,), devices=(device,), device_problem=None, clients=(client,)
    )
    shown = text.snapshot_table(snapshot, now=NOW)
    assert not set(shown) & set("\x1b\x07\u202e")
    assert shown.count("\\x1b]0;x\\x07\\u202e") == 16
    assert evil not in text.pool_table(evil, None, SCALING, now=NOW)


def test_columns_line_up_with_wide_characters() -> None:
    view = pool(replicas=(replica(0, leases=(lease("模型", "é\u0301"),)), replica(1)))
    first, second = (line[: line.index("41m")] for line in table(view)[2:4])
    assert len(first) + 2 - 1 == len(second)  # two wide characters, one that takes no room


def test_the_examples_are_true() -> None:
    assert doctest.testmod(text).failed == 0


def test_zygotes_and_what_is_not_forked_are_told() -> None:
    zygote = ZygoteView(pid=71, preimports=("numpy", "torch"), memory_bytes=200 * 2**20, age_s=65, replicas=2)
    shown = text.zygotes_table([zygote], {"gone": "x"}, [])
    assert shown.startswith("zygote 71 · 200 MiB · ")
    assert shown.endswith("forked 2 of the live replicas · preimports: numpy, torch")
    assert text.zygotes_table([], {}, []) == ""
