"""`logs`: of a pool, of a replica that is or was there, or of the broker."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import re
import sys
import time
from pathlib import Path

from .. import errors, runtime
from ..client import text
from ..logs import seek_tail
from .connection import talk
from .terminal import OK, UNKNOWN, complain


def run_logs(options: argparse.Namespace) -> int:
    folder = runtime.private_folder()
    log = runtime.broker_log(folder) if options.broker else _find_log(folder, options.what)
    if log is None or not log.exists():
        complain(
            "There is no log yet." if options.what is None else f'There is no log of "{options.what}".',
            f"Logs are in {runtime.log_folder(folder)}; the newest 50 are kept."
            " Name a pool, a replica (gpu[0]) or a replica's id, or use --broker.",
        )
        return UNKNOWN
    with log.open("rb") as file:
        seek_tail(file, options.tail)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                data = file.read(1 << 16)
                if data:
                    sys.stdout.write(text.visible(decoder.decode(data), keep="\n\t"))
                    continue
                sys.stdout.flush()
                if not options.follow:
                    break
                time.sleep(0.1)
    return OK


def _find_log(folder: Path, what: str | None) -> Path | None:
    """The newest log of a replica, of a pool's replicas, or of any replica."""
    logs = runtime.log_folder(folder)
    newest = sorted(logs.glob("*-*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    if what is None:
        return newest[0] if newest else None
    names = _past_names(folder) | _present_names()
    for log in newest:
        name = names.get(log.stem, "")
        if what in (log.stem, name, name.rpartition("[")[0]):
            return log
    return None


def _present_names() -> dict[str, str]:
    with contextlib.suppress(errors.PoolError), talk(2.0) as broker:
        if broker is not None:
            pools = broker.snapshot().snapshot.pools
            return {replica.id: replica.name for view in pools for replica in view.replicas}
    return {}


def _past_names(folder: Path) -> dict[str, str]:
    """Names of replicas that are gone: the broker's log tells which were started."""
    names = {}
    log = runtime.broker_log(folder)
    for path in (log.with_name(f"{log.name}.1"), log):
        with contextlib.suppress(OSError), path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if started := re.search(r": start (.+) \(([0-9a-f]{8}-\d+)\): ", line):
                    names[started[2]] = started[1]
    return names
