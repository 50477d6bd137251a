"""A cell in one line, for people: why it waits, and where and how long it ran."""

from __future__ import annotations

import time
from contextlib import suppress

from ... import errors
from ...core import protocol as p
from ...core.format import last_line
from .. import broker, text
from ..identity import describe_client
from ..running import RunningPool
from .target import Times


def waiting_line(pool: RunningPool, snapped: p.Snapped, name: str) -> str:
    """Why a cell has no replica yet, for people: "gpu: 2nd in the queue · replica 0 busy 0:12 (cell #3, a.ipynb)"."""
    now = time.time() - snapped.epoch_offset
    view = snapped.snapshot.pool(pool.key)
    if view is None:
        return f"{pool.name}: starting"
    label = describe_client().label
    ours = (request for request in view.queue if request.task == name and request.client == label)
    ask = next(ours, None)
    words = []
    if ask is not None:
        place = "next in the queue" if ask.position == 0 else f"{_ordinal(ask.position + 1)} in the queue"
        words.append(f"{place if view.waiting > 1 else ''}{text.expectation(ask, now, 'about')}".removeprefix(", "))
    if view.waits_for:
        words.append(f"waits for {view.waits_for}")
    for replica in view.replicas:
        if replica.state in ("starting", "loading"):
            words.append(f"{replica.name} {replica.state} {text.countdown(now - replica.started_at)}")
        elif replica.running:
            lease = replica.running[0]
            since = text.countdown(now - lease.since)
            words.append(f"{replica.name} {replica.state} {since} ({lease.task}, {lease.client})")
        else:
            words += [text.kept(lease, replica, view) for lease in replica.calls if lease.session is not None]
    if view.failure is not None and view.failure.cause.strip():
        words.append(f"last start failed: {last_line(view.failure.cause)}")
    said = " · ".join([word for word in words if word][:4])
    return text.visible(f"Waiting for {view.name}: {said or text.pool_state(view)}")


def _ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def footer(pool: RunningPool, times: Times) -> str:
    """One line about a cell that has run: "gpu[1] · GPU 0 · 0.8 s run · 0.0 s wait"; "" if it reached no replica."""
    if times.began_at is None or times.ended_at is None:
        return ""
    words = [times.replica]
    connection = broker.current()
    if connection is not None and pool.uses_gpus:
        with suppress(errors.BaseRuntimeError):
            devices = connection.snapshot().snapshot.devices
            held = [str(device.index) for device in devices if device.replica == times.replica_id]
            words += [f"GPU {', '.join(held)}"] if held else []
    words.append(f"{times.ended_at - times.began_at:.1f} s run")
    words.append(f"{times.began_at - times.asked_at:.1f} s wait")
    return " · ".join(words)
