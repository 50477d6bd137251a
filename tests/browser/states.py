"""States as the server sends them, for what is hard to bring about with a real broker."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

_CONTRACT = json.loads((Path(__file__).parents[1] / "contract" / "snapshot.json").read_text())


def rich() -> dict[str, Any]:
    """The state of the contract, as if it were of this moment: its broker's clock shows 1000."""
    state = copy.deepcopy(_CONTRACT)
    state["epoch_offset"] = time.time() - 1000
    return state


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
