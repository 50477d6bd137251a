"""`attach`, `peek`: one replica at work."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from .. import errors
from ..core.snapshot import ReplicaView
from .connection import talk
from .terminal import FAILED, OK, UNKNOWN, clock, complain, say, say_json


def run_attach(options: argparse.Namespace) -> int:
    import signal
    import subprocess

    _find_replica(options.replica)  # what is not there is said here
    command = [sys.executable, "-m", "flyte_jupyter.attach", "--terminal", "--replica", options.replica]
    command += ["--shared"] if options.shared else []
    command += ["-f", str(options.existing_file)] if options.existing_file is not None else []
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the console
    return OK if subprocess.call(command) == 0 else FAILED


def run_peek(options: argparse.Namespace) -> int:
    from ..peek import peek

    replica, now = _find_replica(options.replica, busy=True)
    stack = options.stack or not (options.expressions or options.gpu)
    peeked = peek(replica, options.expressions, stack=stack, gpu=options.gpu, timeout=options.timeout)
    if options.json:
        say_json(asdict(peeked) | {"replica": replica.name, "pid": replica.pid})
    else:
        say(*peeked.lines(now, stack=stack))
    return OK


def _find_replica(wanted: str, *, busy: bool = False) -> tuple[ReplicaView, float]:
    from ..client.attached import find_replica

    with talk() as broker:
        if broker is None:
            raise errors.NoSuchReplica(wanted)
        snapped = broker.snapshot()
        try:
            return find_replica(snapped.snapshot, wanted, busy=busy)[1], clock(snapped)
        except argparse.ArgumentTypeError as problem:
            complain(str(problem))
            raise SystemExit(UNKNOWN) from None
