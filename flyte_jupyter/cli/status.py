"""`status`: what runs, once or for as long as somebody looks."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from .. import errors, runtime
from ..client import text
from ..core import protocol as p
from .connection import Connection, named, talk
from .terminal import INTERRUPTED, OK, clock, dump, say, say_json

REDRAW_S: Final = 1.0


def run_status(options: argparse.Namespace) -> int:
    with contextlib.suppress(KeyboardInterrupt):
        if options.watch:
            return _watch(options)
        with talk() as broker:
            if broker is None:
                _show_none(options)
            else:
                _show(options, broker, broker.snapshot(usage=True))
        return OK
    return OK if options.watch else INTERRUPTED


def _watch(options: argparse.Namespace) -> int:
    alone = False
    while True:
        with talk() as broker:
            if broker is None:
                if not alone:
                    _draw(lambda: _show_none(options))
                alone = True
                time.sleep(REDRAW_S / 4)
                continue
            alone = False
            broker.send(p.Watch(usage=True))
            last: p.Snapped | None = None
            with contextlib.suppress(errors.BrokerGone):
                while True:
                    message = broker.receive(REDRAW_S)
                    if isinstance(message, p.Snapped):
                        last = message
                    elif message is not None or not sys.stdout.isatty() or options.json:
                        continue  # only a terminal gets its countdowns redrawn
                    if last is not None:
                        snapped, said_by = last, broker
                        _draw(lambda: _show(options, said_by, snapped))  # noqa: B023


def _draw(show: Callable[[], None]) -> None:
    if not sys.stdout.isatty():
        show()
        return
    import io

    with io.StringIO() as page:
        with contextlib.redirect_stdout(page):
            show()
        lines = page.getvalue().splitlines()
    room = shutil.get_terminal_size().lines - 1
    if len(lines) > room:
        lines = [*lines[: room - 1], f"... {len(lines) - room + 1} more lines"]
    sys.stdout.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
    sys.stdout.flush()


def _show_none(options: argparse.Namespace) -> None:
    if options.json:
        say_json({"broker": None})
    else:
        say(f"No broker runs in {runtime.runtime_folder()}. It starts with the first call of a task.")


def _show(options: argparse.Namespace, broker: Connection, snapped: p.Snapped) -> None:
    snapshot = snapped.snapshot
    snapshot = snapshot.model_copy(
        update={"clients": tuple(client for client in snapshot.clients if client.pid != os.getpid())}
    )
    pools = None if options.pool is None else named(options.pool, snapshot.pools)
    if options.json:
        shown = dump(snapshot.model_dump(mode="json"), snapped.epoch_offset)
        if pools is not None:
            keys = {view.key for view in pools}
            shown["pools"] = [view for view in shown["pools"] if view["key"] in keys]
        zygotes = [zygote.model_dump(mode="json") for zygote in snapped.zygotes]
        forks = {"zygotes": zygotes, "spawned": snapped.spawned}
        usage = dump(snapped.usage.model_dump(mode="json"), snapped.epoch_offset)
        facts = {"broker": _broker_facts(broker), "taken_at": time.time(), "usage": usage}
        say_json({**facts, **forks, **shown})
        return
    parts = [text.snapshot_table(snapshot, now=clock(snapped), pools=pools, usage=snapped.usage)]
    if pools is None:
        parts.insert(0, _broker_line(broker))
        parts.append(text.zygotes_table(snapped.zygotes, snapped.spawned, snapshot.pools))
    say("\n\n".join(filter(None, parts)))


def _broker_facts(broker: Connection) -> dict[str, Any]:
    import psutil

    facts: dict[str, Any] = {
        "pid": broker.pid,
        "version": broker.version,
        "folder": str(runtime.runtime_folder()),
        "started_at": None,
        "memory_bytes": None,
    }
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(broker.pid)
        facts["started_at"] = process.create_time()
        facts["memory_bytes"] = process.memory_info().rss
    return facts


def _broker_line(broker: Connection) -> str:
    facts = _broker_facts(broker)
    words = [f"broker {facts['pid']}", f"flyte_jupyter {facts['version']}"]
    if facts["started_at"] is not None:
        words += [f"up {text.duration(time.time() - facts['started_at'])}", text.size(facts["memory_bytes"])]
    return " · ".join((*words, facts["folder"]))
