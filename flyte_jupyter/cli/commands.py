"""The command line: its arguments, and which function does what they say."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from .. import _version, errors, runtime
from ..client import text
from ..core.arguments import parse_count, parse_duration
from ..core.verbs import POOL
from .doctor import run_doctor
from .gpu import run_gpu
from .logs import run_logs
from .replicas import run_attach, run_peek
from .status import run_status
from .stop import run_stop
from .story import run_story
from .terminal import FAILED, INTERRUPTED, OK, UNKNOWN
from .verbs import NAMES, about, add_arguments, add_warm_arguments, example, run_verb

CODES: Final = {
    "warm": "0 ready, 1 they failed or are not ready in time, 2 no such pool, or more than its maximum",
    "restart": "0 begun, 1 no answer, 2 no such pool or replica",
    "interrupt": "0 told, 1 no answer, 2 no such pool or replica",
}
"""Of verbs that have done less, or more, than it seems when they return."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 still shows everything
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except errors.PoolError as problem:
        for part in (str(problem), *getattr(problem, "__notes__", ())):
            print(text.visible(part, keep="\n\t"), file=sys.stderr)
        return UNKNOWN if isinstance(problem, errors.NoSuchPool | errors.NoSuchReplica) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flyte-jupyter",
        description="Pools of warm Jupyter kernels for Flyte tasks: what runs, and the verbs for it.",
        epilog="exit codes: 0 done, 1 it did not work, 2 no such pool or bad arguments, 130 interrupted\n"
        f"The runtime folder is {runtime.VARIABLE} or the platform's; `flyte-jupyter doctor` shows it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"flyte-jupyter {_version.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(
        name: str,
        command: Callable[[argparse.Namespace], int],
        help: str,
        example: str,
        codes: str,
        *shared: argparse.ArgumentParser,
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(
            name,
            help=help,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=f"example: {example}\nexit codes: {codes}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=shared,
        )
        one.set_defaults(command=command)
        return one

    as_json = _argument(
        "--json",
        action="store_true",
        help="for programs; instants are seconds since 1970, or have an `epoch_offset` beside them",
    )
    a_pool = _argument("pool", metavar="POOL", help="by name or key")
    perhaps_a_pool = _argument("pool", nargs="?", metavar="POOL", help="only this one, by name or key")
    a_replica = _argument("replica", metavar="POOL|NAME[i]")
    last_lines = _argument("--tail", type=parse_count(0), default=100, metavar="N", help="the last N lines (100)")

    status = add(
        "status",
        run_status,
        "show pools, their replicas and queues, GPUs and clients",
        "flyte-jupyter status gpu --watch",
        "0 also when no broker runs, 1 it does not answer, 2 no such pool",
        perhaps_a_pool,
        as_json,
    )
    status.add_argument("--watch", action="store_true", help="draw again on every change; Ctrl-C ends")

    add(
        "gpu",
        run_gpu,
        "show the GPUs, and who uses their memory: replicas, other notebooks, other processes",
        "flyte-jupyter gpu --json",
        "0 also when there is no GPU, 1 what is used cannot be measured",
        as_json,
    )

    stop = add(
        "stop",
        run_stop,
        f"{POOL['stop'].does}; without POOL the broker and everything it started",
        "flyte-jupyter stop gpu --force",
        "0 also when nothing ran, 1 it still runs, 2 no such pool",
        perhaps_a_pool,
        as_json,
    )
    stop.add_argument("--force", "--now", action="store_true", help="do not wait for running calls, which fail")
    stop.add_argument("--timeout", type=parse_duration, default=30.0, metavar="T", help="wait for a pool's tasks (30s)")

    add(
        "story",
        run_story,
        "print what a pool did in the last ten minutes: calls, waits, starts, and why it scaled",
        "flyte-jupyter story gpu",
        "0 printed, 1 no answer, 2 no such pool",
        a_pool,
        last_lines,
        as_json,
    )

    logs = add(
        "logs",
        run_logs,
        "print the newest log of a pool, of a replica (also a dead one) or of the broker",
        "flyte-jupyter logs 'gpu[0]' --follow",
        "0 printed, 2 there is no such log",
        last_lines,
    )
    logs.add_argument("what", nargs="?", metavar="POOL|NAME[i]|ID", help="default: the newest of all replicas")
    logs.add_argument("--broker", action="store_true", help="the broker's own log")
    logs.add_argument("--follow", "-f", action="store_true", help="go on as it grows; Ctrl-C ends")

    attach = add(
        "attach",
        run_attach,
        "open a console on a warm replica, which stays as warm as it was",
        "flyte-jupyter attach 'gpu[1]'",
        "0 detached, 1 the replica ended, 2 no such pool or replica",
        a_replica,
    )
    attach.add_argument("--shared", action="store_true", help="tasks may still run there meanwhile")
    attach.add_argument(
        "--existing-file",
        type=Path,
        metavar="PATH",
        help="serve this connection file for another client (`jupyter console --existing PATH`); written if not there",
    )

    peek = add(
        "peek",
        run_peek,
        "show what a replica does now, and values in it, without disturbing it",
        "flyte-jupyter peek 'gpu[1]' step 'loss.shape'",
        "0 shown, 1 it does not answer, 2 no such pool or replica",
        a_replica,
        as_json,
    )
    peek.add_argument("expressions", nargs="*", metavar="EXPR", help="with the names of the code that runs")
    peek.add_argument("--stack", action="store_true", help="where it is; also shown when nothing else is asked for")
    peek.add_argument("--gpu", action="store_true", help="the GPU memory that its torch holds")
    peek.add_argument("--timeout", type=parse_duration, default=2.0, metavar="T", help="wait this long (2s)")

    for name in NAMES:
        if name != "stop":  # which also ends the broker: above
            codes = CODES.get(name, "0 done, 1 no answer, 2 no such pool or replica")
            verb = add(name, run_verb, about(name), example(name), codes, as_json)
            add_arguments(verb, name)
            if name == "warm":
                add_warm_arguments(verb)

    doctor = add(
        "doctor",
        run_doctor,
        "check versions, the runtime folder, the broker, GPUs and processes, and say what to do",
        "flyte-jupyter doctor --call",
        "0 nothing failed (warnings may be there), 1 something failed",
        as_json,
    )
    doctor.add_argument("--call", action="store_true", help="also start a kernel and run a task in it")
    return parser


def _argument(*names: str, **options: Any) -> argparse.ArgumentParser:
    """An argument that several commands have."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(*names, **options)
    return parser
