"""`python -m flyte_jupyter.attach -f CONNECTION_FILE`: the kernel of one front end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..client.identity import present_as
from .proxy import Proxy
from .target import notebook
from .terminal import terminal

WANTED: Final = "FLYTE_JUPYTER_ATTACH"
SHARED: Final = "FLYTE_JUPYTER_ATTACH_SHARED"


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the kernel of one front end; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flyte_jupyter.attach", description=__doc__)
    parser.add_argument("-f", dest="file", type=Path, metavar="CONNECTION_FILE")
    parser.add_argument("--terminal", action="store_true", help="a console here; with -f only the channels")
    parser.add_argument("--replica", default=os.environ.get(WANTED, ""), metavar="NAME[1]")
    parser.add_argument("--shared", action="store_true", default=os.environ.get(SHARED, "") not in ("", "0"))
    options = parser.parse_args(arguments)
    os.umask(0o077)
    present_as(notebook() or "console", "attached")
    if options.terminal:
        return terminal(options.replica, shared=options.shared, file=options.file)
    if options.file is None:
        parser.error("-f CONNECTION_FILE is missing")
    return Proxy(options.file, options.replica, options.shared).run()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # the threads that wait for the broker need not end first
