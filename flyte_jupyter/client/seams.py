"""Private parts of other packages that a client uses; `tests/test_seams.py` has a test for each.

Each of them only saves time or makes a guess better: where a name has moved, the client does without.
"""

from __future__ import annotations

from typing import Any


def has_unsent(stream: Any) -> bool:
    """Whether a stream of ipykernel's has kept something that is still to be sent; True if that cannot be told."""
    return bool(getattr(stream, "_flush_pending", True))


def send_result(hook: Any) -> bool:
    """Send the result that a kernel's display hook has made, if nothing else takes part in it; whether it is sent."""
    if getattr(hook, "_hooks", True) or not getattr(hook, "session", None) or not getattr(hook, "msg", None):
        return False
    hook.session.send(hook.pub_socket, hook.msg, ident=hook.topic)
    hook.msg = None
    return True


def cell_numbers(shell: Any) -> dict[str, int]:
    """The latest number of each cell, by the name that IPython gives its text; {} if that cannot be told."""
    numbers: dict[str, int] = getattr(getattr(shell, "compile", None), "_filename_map", {})
    return numbers
