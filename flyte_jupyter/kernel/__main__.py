"""`python -m flyte_jupyter.kernel -f CONNECTION_FILE`: one replica. The broker starts it."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys


def main(arguments: list[str]) -> None:
    """Be a replica, told by the environment who started it and where it listens; does not return."""
    os.umask(0o077)
    from . import seams
    from .kernel import ReplicaApp, die_with_parent

    die_with_parent(int(os.environ.pop("FLYTE_JUPYTER_PARENT")))
    app = ReplicaApp.instance()
    app.initialize(arguments)
    faulthandler.enable(file=2, all_threads=False)  # all of them would push the culprit out of the log tail
    app.open_task_channel(socket.socket(fileno=int(os.environ.pop("FLYTE_JUPYTER_TASK_FD"))))
    app.start()
    # Not sys.exit(): a thread that a task left behind would be waited for.
    seams.run_exit_functions()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
