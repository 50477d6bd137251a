"""What all commands say and return: lines, JSON, exit codes. Nothing is printed that could move a cursor."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

from ..client import text
from ..core import protocol as p
from ..core.snapshot import PoolView

OK: Final = 0
FAILED: Final = 1
UNKNOWN: Final = 2
INTERRUPTED: Final = 130


def say(*lines: str) -> None:
    for line in lines:
        print(text.visible(line, keep="\n\t"), flush=True)


def complain(*lines: str) -> None:
    for line in lines:
        print(text.visible(line, keep="\n\t"), file=sys.stderr)


def say_json(value: Any) -> None:
    # ASCII only: control characters and bidi overrides come out as escapes; DEL is the one that JSON leaves.
    print(json.dumps(value, indent=2).replace("\x7f", "\\u007f"), flush=True)


def dump(value: Any, offset: float) -> Any:
    """JSON of a part of a snapshot; instants become Unix time."""
    if isinstance(value, list):
        return [dump(item, offset) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: item + offset
        if isinstance(item, int | float) and (name in ("now", "since") or name.endswith(("_at", "_since", "_until")))
        else dump(item, offset)
        for name, item in value.items()
    }


def pool_json(view: PoolView, snapped: p.Snapped) -> Any:
    return dump(view.model_dump(mode="json"), snapped.epoch_offset)


def clock(snapped: p.Snapped) -> float:
    """Now, on the clock of the snapshot."""
    return time.time() - snapped.epoch_offset


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
