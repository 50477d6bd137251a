"""What the side panel reads is what the models write: this writes `snapshot.json`, a TypeScript test reads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from flyte_jupyter.core import protocol as p
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
from flyte_jupyter.core.timeline import RecentView
from flyte_jupyter.core.usage import DeviceUsage, OwnerView, ReplicaUsage, Usage

FILE = Path(__file__).with_name("snapshot.json")
GIB = 2**30
WRITE = "FLYTE_JUPYTER_WRITE_CONTRACT"


def replica(index: int, state: str, **changes: Any) -> ReplicaView:
    fields: dict[str, Any] = {
        "id": f"{index:08x}",
        "index": index,
        "name": f"gpu[{index}]",
        "state": state,
        "pid": 4000 + index,
        "devices": (f"GPU-{index}",),
        "leases": (),
        "started_at": 900.0,
        "ready_at": 941.0,
        "idle_since": None,
        "stops_at": None,
        "generation_current": True,
        "why": "a call waits",
    }
    return ReplicaView(**fields | changes)


def pool(name: str, **changes: Any) -> PoolView:
    fields: dict[str, Any] = {
        "key": name.encode().hex().ljust(16, "0")[:16],
        "name": name,
        "state": "stopped",
        "scaling": Scaling(min_replicas=1, max_replicas=3, idle_ttl=1800, scaledown_ttl=300),
        "devices": DeviceRequest(),
        "single_use": False,
        "retiring": False,
        "declared_by": ("train.ipynb",),
        "replicas": (),
        "queue": (),
        "waiting": 0,
        "idle_stops_at": None,
        "kept_until": None,
        "failure": None,
        "notes": (),
        "waits_for": None,
        "starts": 0,
        "failures": 0,
        "calls": 0,
        "cold_starts_avoided": 0,
        "cold_start_s": None,
    }
    return PoolView(**fields | changes)


def usage() -> Usage:
    """Three GPUs: shared with others, idle, one whose driver says little; of the fourth nothing is known."""
    owners = (
        OwnerView(label="gpu[0]", kind="replica", replica="00000000", pid=4000, user="me", bytes=6 * GIB),
        OwnerView(label="python", kind="process", replica=None, pid=812, user="alice", bytes=4 * GIB),
        OwnerView(label="tune.ipynb", kind="notebook", replica=None, pid=77, user="me", bytes=2 * GIB),
    )
    hidden = OwnerView(label="unknown", kind="process", replica=None, pid=9, user=None, bytes=None)
    return Usage(
        measured_at=999.0,
        devices={
            "GPU-0": DeviceUsage(used_bytes=13 * GIB, utilization=62, temperature_c=61, owners=owners),
            "GPU-1": DeviceUsage(used_bytes=0, utilization=0, temperature_c=34, owners=()),
            "GPU-2": DeviceUsage(used_bytes=GIB, utilization=None, temperature_c=None, owners=(hidden,)),
        },
        replicas={"00000000": ReplicaUsage(memory_bytes=3 * GIB), "00000001": ReplicaUsage(memory_bytes=700 << 20)},
    )


def recent(id: int, of: PoolView, task: str, **changes: Any) -> RecentView:
    fields: dict[str, Any] = {
        "id": id,
        "replica": "00000000",
        "kind": "running",
        "task": task,
        "client": "train.ipynb",
        "outcome": "succeeded",
        "calls": 1,
        "pool": of.key,
    }
    return RecentView(**fields | changes)


def snapped() -> p.Snapped:
    """A bit of everything that a panel may have to show."""
    call = LeaseView(lease="l1", task="train", client="train.ipynb", since=993.0)
    kept = LeaseView(lease="l3", task="load", client="train.ipynb", since=999.4, running=False, session="s")
    gpu = pool(
        "gpu",
        state="busy",
        devices=DeviceRequest(count=1),
        replicas=(
            replica(0, "busy", leases=(call,)),
            replica(1, "ready", leases=(kept,)),
            replica(2, "loading", ready_at=None, started_at=988.0, generation_current=False),
        ),
        queue=(
            RequestView(lease="l2", task="evaluate", client="eval.ipynb", since=996.0, position=0, expected_at=1007.0),
        ),
        waiting=1,
        idle_stops_at=2780.0,
        kept_until=2780.0,
        notes=("at most 2 of 3 replicas: each needs 1 of this machine's 2 matching GPUs",),
        waits_for="GPU 0: gpu[0]",
        starts=3,
        calls=41,
        cold_starts_avoided=38,
        cold_start_s=40.5,
    )
    failure = FailureView(cause="ImportError: no <b>transformers</b>", replica="asr[0]", attempts=2, retry_at=1030.0)
    asr = pool("asr", state="failed", failure=failure, starts=2, failures=2)
    return p.Snapped(
        epoch_offset=1_767_000_000.0,
        log_dir="logs",
        spawned={asr.key: "a secret was declared"},
        usage=usage(),
        recent=(
            recent(17, gpu, "load", began=998.0, ended=999.4),
            recent(16, gpu, "<img src=x>", began=990.0, ended=992.5, outcome="failed"),
        ),
        snapshot=Snapshot(
            revision=57,
            now=999.5,
            pools=(gpu, asr, pool("embed")),
            devices=tuple(
                DeviceView(
                    uuid=f"GPU-{index}",
                    index=index,
                    model="NVIDIA GeForce RTX 4090",
                    partition=None,
                    memory_bytes=24 * 2**30,
                    replica=f"{index:08x}" if index < 3 else None,
                    replica_name=f"gpu[{index}]" if index < 3 else None,
                )
                for index in range(4)
            ),
            device_problem=None,
            clients=(ClientView(client="c1", label="train.ipynb", kind="notebook", pid=77, leases=1, waiting=0),),
        ),
    )


def state() -> dict[str, Any]:
    """As `GET flyte-jupyter/pools` answers; docs/server-api.md says what is around the snapshot."""
    said = snapped().model_dump(mode="json")
    return {
        "now": 1_767_001_000.0,
        "refused": {},
        "tag": "9f3a61c2.57",
        "state": "connected",
        "message": None,
        "versions": {"server": "0.1.0", "broker": "0.1.0"},
        "broker_pid": 4711,
        **{name: said[name] for name in ("epoch_offset", "zygotes", "spawned", "usage", "recent", "snapshot")},
    }


def test_the_panel_reads_what_the_models_write() -> None:
    text = json.dumps(state(), indent=1) + "\n"
    if os.environ.get(WRITE):
        FILE.write_text(text)
    assert FILE.read_text() == text, f"run this test with {WRITE}=1, then the panel's tests"
