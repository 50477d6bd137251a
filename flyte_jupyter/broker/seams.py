"""Private parts of other packages that the broker uses; `tests/test_seams.py` has a test for each.

Nothing is imported here: a zygote asks only about modules that it has imported anyway.
"""

from __future__ import annotations

from typing import Any


def set_kernel_spec(manager: Any, spec: Any) -> None:
    """Let jupyter_client's manager start this, and look for no kernelspec in a folder."""
    manager._kernel_spec = spec


def has_context(zmq: Any) -> bool:
    """Whether this process has a ZMQ context, which does not survive a fork."""
    return zmq.Context._instance is not None


def has_running_loop(asyncio: Any) -> bool:
    """Whether an event loop runs in this thread."""
    return asyncio.events._get_running_loop() is not None
