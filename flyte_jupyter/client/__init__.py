"""The process of the user: a notebook, a script, or a replica whose task calls another task."""

import sys

if sys.platform == "win32":
    raise ImportError(
        "flyte_jupyter needs Unix sockets and processes that can be forked and signalled: it runs on Linux and macOS."
        " On Windows, use it inside WSL 2."
    )
