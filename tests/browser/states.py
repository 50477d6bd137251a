"""States as the server sends them, for what is hard to bring about with a real broker."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

_CONTRACT = json.loads((Path(__file__).parents[1] / "contract" / "snapshot.json").read_text())


GIB = 2**30
GPU, ASR, EMBED = (pool["key"] for pool in _CONTRACT["snapshot"]["pools"])


def rich() -> dict[str, Any]:
    """The state of the contract, as if it were of this moment: its broker's clock shows 1000."""
    state: dict[str, Any] = copy.deepcopy(_CONTRACT)
    state["epoch_offset"] = time.time() - 1000
    state["recent"] = [
        {**span(9, 998.2, 999.0, task="train"), "pool": GPU},
        {**span(8, 950.0, 962.0, task="evaluate", outcome="failed"), "pool": GPU},
        {**span(7, 940.0, 941.5, task="noop", calls=40), "pool": GPU},
    ]
    state["usage"] = {
        "measured_at": 999.0,
        "problem": None,
        "devices": {
            "GPU-0": device(14.1, 83, 62, owner("gpu[0]", 6.6, replica="00000000"), owner("python", 4.3, user="alice")),
            "GPU-1": device(2.0, 0, 41, owner("gpu[1]", 2.0, replica="00000001")),
            "GPU-2": device(0.4, None, None),
        },
        "replicas": {"00000000": {"memory_bytes": 3 * GIB}, "00000001": {"memory_bytes": 200 * 2**20}},
    }
    return state


def owner(label: str, gib: float, *, replica: str | None = None, user: str | None = None) -> dict[str, Any]:
    kind = "process" if replica is None else "replica"
    fields = {"label": label, "kind": kind, "replica": replica, "pid": 5000 + int(10 * gib), "user": user}
    return {**fields, "bytes": int(gib * GIB)}


def device(used: float, busy: int | None, heat: int | None, *owners: dict[str, Any]) -> dict[str, Any]:
    return {"used_bytes": int(used * GIB), "utilization": busy, "temperature_c": heat, "owners": list(owners)}


def span(id: int, began: float, ended: float | None, **changes: Any) -> dict[str, Any]:
    """A piece of a timeline: a call, unless `changes` say otherwise."""
    fields = {"id": id, "replica": "00000000", "kind": "running", "task": "train", "client": "train.ipynb"}
    outcome = None if ended is None else "succeeded"
    return {**fields, "began": began, "ended": ended, "outcome": outcome, "calls": 1, **changes}


def timeline(**changes: Any) -> dict[str, Any]:
    """What happened in the last minutes to the pool that is called gpu."""
    lanes = [
        {"replica": f"0000000{index}", "name": f"gpu[{index}]", "index": index, "started_at": at, "why": "a call waits"}
        for index, at in ((0, 900.0), (1, 900.0), (2, 988.0))
    ]
    return {
        "now": time.time(),
        "epoch_offset": time.time() - 1000,
        "mark": f"m{time.time()}",
        "whole": True,
        "window_s": 600,
        "lanes": [lane | {"ready_at": 941.0 if lane["index"] < 2 else None, "ended_at": None} for lane in lanes],
        "spans": [
            span(1, 900.0, 903.0, kind="starting"),
            span(2, 903.0, 941.0, kind="loading", task="gpu"),
            span(3, 930.0, 941.0, kind="waiting"),
            span(7, 942.0, 943.5, task="noop", calls=40),
            span(8, 950.0, 962.0, task="evaluate", outcome="failed"),
            span(12, 955.0, 985.0, kind="attached", task="attached console, shared", client="console"),
            span(9, 993.0, None),
            span(13, 970.0, None, kind="attached", task="attached notebook", client="look.ipynb", replica="00000001"),
            span(10, 988.0, None, kind="starting", replica="00000002"),
            span(11, 996.0, None, kind="waiting", replica=None, task="evaluate", client="eval.ipynb"),
        ],
        "changes": [
            {"id": 4, "at": 900.0, "text": "gpu[0] starts: a call waits"},
            {"id": 5, "at": 988.0, "text": "gpu[2] starts: 1 call waits"},
        ],
    } | changes


def changed(**snapshot: Any) -> dict[str, Any]:
    """The same with other parts of the snapshot, and a tag of its own."""
    state = rich()
    state["snapshot"] |= snapshot
    state["tag"] = str(time.time())
    return state


def without_snapshot(name: str, **changes: Any) -> dict[str, Any]:
    """A state in which there is nothing to show."""
    return rich() | {"state": name, "snapshot": None, "epoch_offset": None, "broker_pid": None} | changes


EMPTY_AND_FAILED: dict[str, tuple[int, dict[str, Any] | None]] = {
    "no-broker": (200, without_snapshot("no-broker", message="No broker runs.")),
    "no-pool": (200, changed(pools=[], devices=[])),
    "version-mismatch": (
        200,
        without_snapshot(
            "version-mismatch",
            message="The broker speaks another protocol.",
            versions={"server": "0.1.0", "broker": "0.2.0"},
        ),
    ),
    "unavailable": (200, without_snapshot("unavailable", message="A broker runs (pid 12), but it does not answer.")),
    "absent": (404, None),
    "refused": (403, None),
    "lost": (500, None),
}
