"""`story`: what a pool did in the last minutes, and why it scaled."""

from __future__ import annotations

import argparse
import time
from typing import Final

from ..client import text
from ..core.format import measured
from ..core.timeline import SpanView, TimelineView
from .connection import one_pool
from .terminal import OK, say, say_json

DID: Final = {
    "starting": "started its process",
    "loading": "ran its preload",
    "waiting": "waited",
    "attached": "left after",
}
"""What a span of such a kind, once it has ended, says that somebody did."""

NO_PRELOAD_S: Final = 0.001
"""Where there is none it still takes a moment."""


def run_story(options: argparse.Namespace) -> int:
    with one_pool(options.pool) as (broker, view):
        told = broker.timeline(view.key)
        if options.json:
            say_json(told.model_dump(mode="json", exclude={"mark", "whole"}))
            return OK
        shown = _events(told)[-options.tail :] if options.tail else []
        say(*(f"{time.strftime('%H:%M:%S', time.localtime(at + told.epoch_offset))}  {what}" for at, what in shown))
        if not shown:
            say(f"Nothing happened in {view.name} in the last {text.duration(told.window_s)}.")
        say(text.cold_starts(view))
    return OK


def _events(told: TimelineView) -> list[tuple[float, str]]:
    """Changes when they happened, everything else when it ended or, if it goes on, now; oldest first."""
    names = {lane.replica: lane.name for lane in told.lanes}
    now = told.now - told.epoch_offset
    events = [(change.at, change.text) for change in told.changes]
    for span in told.spans:
        ended = now if span.ended is None else span.ended
        if span.kind != "loading" or ended - span.began >= NO_PRELOAD_S:
            events.append((ended, _line(span, names, now)))
    return sorted(events, key=lambda event: event[0])


def _line(span: SpanView, names: dict[str, str], now: float) -> str:
    where = "queue" if span.kind == "waiting" else names.get(span.replica or "", "a replica that is gone")
    long = measured((now if span.ended is None else span.ended) - span.began)
    who = f"{span.task} ({span.client})" if span.client else ""
    what = span.kind if span.ended is None else DID.get(span.kind, span.outcome or "")
    if span.ended is not None and span.kind != "running" and span.outcome != "succeeded":
        what = f"{what}, {span.outcome}"
    calls = f" in {span.calls} calls" if span.calls > 1 else ""
    return " ".join(filter(None, (f"{where}:", who, what, f"{long}{calls}")))
