"""A snapshot in words, for terminals and notebooks: pure functions of a snapshot and `now` on its clock.

Whatever a user, a task or a driver named goes through `visible` before it is shown.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ..core import words
from ..core.protocol import ZygoteView
from ..core.snapshot import (
    ClientView,
    DeviceView,
    FailureView,
    LeaseView,
    PoolView,
    ReplicaView,
    RequestView,
    Snapshot,
)
from ..core.spec import Scaling

LONGEST_NAME: Final = 48
SHOWN_REQUESTS: Final = 10
_REPLICA_STATES: Final = ("ready", "busy", "attached", "loading", "starting", "draining", "stopping")
_HEAD: Final = ("#", "state", "GPU", "task", "age", "pid")


visible, countdown, duration, size = words.visible, words.countdown, words.duration, words.size


def roughly(seconds: float) -> str:
    """An estimate, for people.

    Example:
        >>> roughly(0.3), roughly(42), roughly(130), roughly(9000)
        ('1 s', '42 s', '2 min', '2.5 h')
    """
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def cold_starts(view: PoolView) -> str:
    """What it was good for that replicas stay: "cold starts avoided: 3 (about 2 min saved)"."""
    saved = view.cold_starts_avoided * (view.cold_start_s or 0.0)
    about = f" (about {roughly(saved)} saved)" if saved else ""
    return f"cold starts avoided: {view.cold_starts_avoided}{about}"


def pool_state(view: PoolView) -> str:
    """What its replicas do: "2 ready · 1 busy"."""
    count = Counter(replica.state for replica in view.replicas)
    known: tuple[str, ...] = tuple(dict.fromkeys((*_REPLICA_STATES, *count)))
    words = [f"{count[state]} {state}" for state in known if count[state]]  # type: ignore[index]
    if view.state in ("failed", "waiting") or not words:
        words.insert(0, view.state)
    return " · ".join(words)


def pool_line(view: PoolView | None, scaling: Scaling, *, now: float) -> str:
    """One line about a pool."""
    if view is None:
        return f"not started · {_range(scaling)}"
    words = [pool_state(view), _range(view.scaling)]
    if view.waiting:
        words.append(f"queue {view.waiting}")
    return " · ".join((*words, *_timers(view, now)))


def pool_table(
    name: str,
    view: PoolView | None,
    scaling: Scaling,
    *,
    now: float,
    devices: Sequence[DeviceView] = (),
) -> str:
    """A pool with its replicas and its queue, as a table.

    Args:
        name: How to call it while the broker does not know it.
        view: What the broker knows; None is nothing.
        scaling: What it was declared with.
        now: The present instant, on the clock of the snapshot.
        devices: The machine's GPUs, so that the table can name those that a replica holds.
    """
    if view is None:
        return f"{_short(name)}: not started · {_range(scaling)} · {_ttls(scaling)}"
    head = [_short(view.name), f"{pool_state(view)} · {_range(view.scaling)}"]
    if view.single_use:
        head[0] += " (a fresh kernel per call)"
    if view.retiring:
        head[0] += " (replaced)"
    head += [" · ".join(timers)] if (timers := _timers(view, now)) else []
    lines = ["┌ " + " ── ".join(head)]
    if view.replicas:
        names = {device.uuid: _device_name(device) for device in devices}
        rows = [_HEAD, *(_replica_row(replica, view, names, now) for replica in view.replicas)]
        lines += [f"│ {line}" for line in _columns(rows)]
    if view.waiting:
        lines.append(f"├ queue {view.waiting}")
        lines += [f"│ {_request(request, now)}" for request in view.queue[:SHOWN_REQUESTS]]
        if view.waiting > SHOWN_REQUESTS:
            lines.append(f"│ and {view.waiting - SHOWN_REQUESTS} more")
    if view.waits_for:
        lines.append(f"├ waits for ── {visible(view.waits_for)}")
    lines += [f"├ note ── {visible(note)}" for note in view.notes]
    if view.failure is not None:
        lines.append(f"├ failed ── {_failure(view.failure, now)}")
    if view.cold_starts_avoided:
        lines.append(f"├ {cold_starts(view)}")
    lines.append(f"└ {_history(view)} · {_ttls(view.scaling)}")
    return "\n".join(lines)


def snapshot_table(snapshot: Snapshot, *, now: float, pools: Iterable[PoolView] | None = None) -> str:
    """The whole picture: pools, GPUs, clients; or only `pools`."""
    shown = snapshot.pools if pools is None else tuple(pools)
    parts = [pool_table(pool.name, pool, pool.scaling, now=now, devices=snapshot.devices) for pool in shown]
    if pools is None:
        if not shown:
            parts.append("No pool yet. One appears with the first call of a task.")
        parts.append(devices_table(snapshot))
        parts.append(clients_table(snapshot.clients))
    return "\n\n".join(parts)


def devices_table(snapshot: Snapshot) -> str:
    """The machine's GPUs and who holds them."""
    if not snapshot.devices:
        return f"GPUs: none{f' ({visible(snapshot.device_problem)})' if snapshot.device_problem else ''}"
    rows = [("GPU", "memory", "held by")]
    for device in snapshot.devices:
        memory = size(device.memory_bytes) if device.memory_bytes else "-"
        rows.append((_device_name(device), memory, _short(device.replica_name or "-")))
    return "\n".join(_columns(rows))


def clients_table(clients: Sequence[ClientView]) -> str:
    """Who is connected."""
    if not clients:
        return "Clients: none"
    rows = [("client", "kind", "pid", "calls", "waiting")]
    rows += [
        (_short(client.label), _short(client.kind), str(client.pid), str(client.leases), str(client.waiting))
        for client in clients
    ]
    return "\n".join(_columns(rows))


def zygotes_table(zygotes: Sequence[ZygoteView], spawned: Mapping[str, str], pools: Iterable[PoolView]) -> str:
    """What replicas are forked from, and which are not forked and why; empty if there is nothing to say."""
    lines = [
        f"zygote {zygote.pid} · {size(zygote.memory_bytes)} · {duration(zygote.age_s)} old · forked {zygote.replicas}"
        f" of the live replicas · preimports: {_short(', '.join(zygote.preimports), 60) or 'none'}"
        for zygote in zygotes
    ]
    names = {view.key: view.name for view in pools}
    lines += [f"{_short(names[pool])}: {visible(why)}" for pool, why in spawned.items() if pool in names]
    return "\n".join(lines)


def _range(scaling: Scaling) -> str:
    lowest, highest = scaling.min_replicas, scaling.max_replicas
    noun = "replica" if highest == 1 else "replicas"
    count = f"{highest} {noun}" if lowest == highest else f"{lowest} to {highest} {noun}"
    return count if scaling.concurrency == 1 else f"{count} × {scaling.concurrency} slots"  # noqa: RUF001


def _ttls(scaling: Scaling) -> str:
    words = [f"idle_ttl {duration(scaling.idle_ttl)}"]
    if scaling.min_replicas < scaling.max_replicas:
        words.append(f"scaledown_ttl {duration(scaling.scaledown_ttl)}")
    return " · ".join(words)


def _timers(view: PoolView, now: float) -> list[str]:
    timers = []
    if view.idle_stops_at is not None:
        kept = " (kept)" if view.idle_stops_at == view.kept_until else ""
        timers.append(f"idle off in {countdown(view.idle_stops_at - now)}{kept}")
    elif view.kept_until is not None and view.kept_until > now:
        timers.append(f"kept for {countdown(view.kept_until - now)}")
    return timers


def _replica_row(replica: ReplicaView, view: PoolView, names: dict[str, str], now: float) -> tuple[str, ...]:
    state: str = replica.state
    if replica.running:
        state += f" {countdown(now - min(lease.since for lease in replica.running))}"
    elif replica.ready_at is None:
        state += f" {countdown(now - replica.started_at)}"
    gpus = ", ".join(names.get(uuid) or _short(uuid, 12) for uuid in replica.devices)
    remarks = []
    if replica.stops_at is not None and replica.stops_at != view.idle_stops_at:
        remarks.append(f"off in {countdown(replica.stops_at - now)}")
    if not replica.generation_current:
        remarks.append("old preload")
    if replica.state in ("draining", "stopping") and replica.why:
        remarks.append(visible(replica.why))
    return (
        str(replica.index),
        state,
        gpus or "-",
        _tasks(replica.running),
        duration(now - replica.started_at),
        "-" if replica.pid is None else str(replica.pid),
        ", ".join(remarks),
    )


def _tasks(leases: Sequence[LeaseView]) -> str:
    if not leases:
        return "-"
    more = f" and {len(leases) - 1} more" if len(leases) > 1 else ""
    return f"{_call(leases[0])}{more}"


def _call(lease: LeaseView) -> str:
    return f"{_short(lease.task)} ({_short(lease.client)})"


def _request(request: RequestView, now: float) -> str:
    return f"{request.position + 1}. {_call(request)}, waits {countdown(now - request.since)}"


def _failure(failure: FailureView, now: float) -> str:
    said = [line for line in failure.cause.splitlines() if line.strip()]
    tries = "1 attempt" if failure.attempts == 1 else f"{failure.attempts} attempts"
    again = "given up" if failure.retry_at is None else f"next in {countdown(failure.retry_at - now)}"
    return f"{visible(said[-1].strip()) if said else 'unknown'} ({visible(failure.replica)}, {tries}, {again})"


def _history(view: PoolView) -> str:
    calls = "1 call" if view.calls == 1 else f"{view.calls} calls"
    starts = "1 start" if view.starts == 1 else f"{view.starts} starts"
    return f"{calls} · {starts}"


def _device_name(device: DeviceView) -> str:
    model = device.model.removeprefix("NVIDIA ").removeprefix("GeForce ")
    return f"{device.index} · {_short(model)}{f' {_short(device.partition)}' if device.partition else ''}"


def _short(text: str, longest: int = LONGEST_NAME) -> str:
    return visible(text if len(text) <= longest else text[: longest - 1] + "…")


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [
        max((_width(row[column]) for row in rows if column < len(row)), default=0)
        for column in range(max(map(len, rows)))
    ]
    return [
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        2 if unicodedata.east_asian_width(character) in "WF" else 0 if unicodedata.combining(character) else 1
        for character in text
    )
