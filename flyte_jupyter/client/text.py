"""A snapshot in words, for terminals and notebooks: pure functions of a snapshot and `now` on its clock.

Whatever a user, a task or a driver named goes through `visible` before it is shown.
"""

from __future__ import annotations

import html
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ..core import format as written
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
from ..core.usage import DeviceUsage, OwnerView, Usage

LONGEST_NAME: Final = 48
SHOWN_REQUESTS: Final = 10
_REPLICA_STATES: Final = ("ready", "busy", "attached", "loading", "starting", "draining", "stopping")
_HEAD: Final = ("#", "state", "GPU", "task", "age", "pid")
_OWNERS: Final = {"replica": "replicas", "notebook": "other notebooks", "process": "other processes"}
NOTHING_USED: Final = Usage()

visible, countdown, duration, size = written.visible, written.countdown, written.duration, written.size
roughly = written.roughly


def cold_starts(view: PoolView) -> str:
    """What it was good for that replicas stay: "cold starts avoided: 3 (about 2 min saved)"."""
    saved = view.cold_starts_avoided * (view.cold_start_s or 0.0)
    about = f" (about {roughly(saved)} saved)" if saved else ""
    return f"cold starts avoided: {view.cold_starts_avoided}{about}"


def expectation(request: RequestView, now: float, words: str) -> str:
    """How long it is likely to wait yet: ", about 12 s"; empty if nothing is known.

    Args:
        request: A call that waits.
        now: The present instant, on the clock of the snapshot.
        words: What to say before the time.
    """
    if request.expected_at is None:
        return ""
    left = request.expected_at - now
    return f", {words} {roughly(left)}" if left > 0 else ", longer than usual"


def kept(lease: LeaseView, replica: ReplicaView, view: PoolView) -> str:
    """A slot that is not free although nothing runs in it, and what frees it."""
    assert lease.session is not None
    return f"{replica.name} held by {lease.keeper} (`{view.end_of_session(lease.session)}` there frees it)"


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
    usage: Usage = NOTHING_USED,
) -> str:
    """A pool with its replicas and its queue, as a table.

    Args:
        name: How to call it while the broker does not know it.
        view: What the broker knows; None is nothing.
        scaling: What it was declared with.
        now: The present instant, on the clock of the snapshot.
        devices: The machine's GPUs, so that the table can name those that a replica holds.
        usage: What is used, as far as it is known.
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
        if any(replica.id in usage.replicas for replica in view.replicas):
            rows = [(*row[:3], said, *row[3:]) for row, said in zip(rows, _memory(view, usage), strict=True)]
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


def still(plain: str, taken: str) -> str:
    """A picture as HTML, for where no card can be: a saved notebook without a kernel, an export.

    Args:
        plain: The picture as text.
        taken: The time of day and the date of it.

    Example:
        >>> still("a < b", "2026-01-02 03:04:05")
        '<pre class="flyte-still">a &lt; b</pre><p>As of 2026-01-02 03:04:05. Run the cell again to reconnect.</p>'
    """
    return f'<pre class="flyte-still">{html.escape(plain)}</pre><p>As of {taken}. Run the cell again to reconnect.</p>'


def snapshot_table(
    snapshot: Snapshot, *, now: float, pools: Iterable[PoolView] | None = None, usage: Usage = NOTHING_USED
) -> str:
    """The whole picture: pools, GPUs, clients; or only `pools`."""
    shown = snapshot.pools if pools is None else tuple(pools)
    parts = [
        pool_table(pool.name, pool, pool.scaling, now=now, devices=snapshot.devices, usage=usage) for pool in shown
    ]
    if pools is None:
        if not shown:
            parts.append("No pool yet. One appears with the first call of a task.")
        parts.append(devices_table(snapshot, usage))
        parts.append(clients_table(snapshot.clients))
    return "\n\n".join(parts)


def devices_table(snapshot: Snapshot, usage: Usage = NOTHING_USED) -> str:
    """The machine's GPUs and who holds them."""
    if not snapshot.devices:
        return no_devices(snapshot.device_problem)
    rows = [("GPU", "memory", "held by")]
    rows += [
        (_device_name(device), _of_memory(device, usage), _short(device.replica_name or "-"))
        for device in snapshot.devices
    ]
    return "\n".join(_columns(rows))


def no_devices(problem: str | None) -> str:
    """That there is no GPU, and why."""
    return f"GPUs: none{f' ({visible(problem)})' if problem else ''}"


def usage_table(devices: Sequence[DeviceView], usage: Usage) -> str:
    """Each GPU: what is used of it, and by whom."""
    return "\n\n".join("\n".join(_device_lines(device, usage)) for device in devices)


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


def _memory(view: PoolView, usage: Usage) -> list[str]:
    """A column of the replicas' table, with its head."""
    found = (usage.replicas.get(replica.id) for replica in view.replicas)
    return ["memory", *("-" if used is None else size(used.memory_bytes) for used in found)]


def _of_memory(device: DeviceView, usage: Usage) -> str:
    used = usage.devices.get(device.uuid)
    total = size(device.memory_bytes) if device.memory_bytes else "-"
    return total if used is None else f"{size(used.used_bytes)} of {total}"


def _device_lines(device: DeviceView, usage: Usage) -> list[str]:
    used = usage.devices.get(device.uuid)
    words = [f"GPU {_device_name(device)}", f"{_of_memory(device, usage)}{' · use unknown' if used is None else ''}"]
    if used is not None and used.utilization is not None:
        words.append(f"{used.utilization} % busy")
    if used is not None and used.temperature_c is not None:
        words.append(f"{used.temperature_c} °C")
    if device.replica_name:
        words.append(f"held by {_short(device.replica_name)}")
    return [" ── ".join((words[0], " · ".join(words[1:]))), *([] if used is None else _owner_lines(used))]


def _owner_lines(used: DeviceUsage) -> list[str]:
    rows = []
    for kind, title in _OWNERS.items():
        owners = [owner for owner in used.owners if owner.kind == kind]
        if owners:
            rows.append((f"  {title}", " · ".join(_owner(owner) for owner in owners)))
    rest = used.used_bytes - sum(owner.bytes or 0 for owner in used.owners)
    if rest >= 2**20:
        rows.append(("  the rest", f"{size(rest)} (the driver, and what it does not say)"))
    return _columns(rows)


def _owner(owner: OwnerView) -> str:
    who = "" if owner.kind == "replica" else f" ({_short(owner.user)}, pid {owner.pid})" if owner.user else ""
    return f"{_short(owner.label)}{who} {'unknown' if owner.bytes is None else size(owner.bytes)}"


def _tasks(leases: Sequence[LeaseView]) -> str:
    if not leases:
        return "-"
    more = f" and {len(leases) - 1} more" if len(leases) > 1 else ""
    return f"{_call(leases[0])}{more}"


def _call(lease: LeaseView) -> str:
    return f"{_short(lease.task)} ({_short(lease.client)})"


def _request(request: RequestView, now: float) -> str:
    rest = expectation(request, now, "starts in about")
    return f"{request.position + 1}. {_call(request)}, waits {countdown(now - request.since)}{rest}"


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
