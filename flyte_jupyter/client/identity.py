"""Who this process is: its label for people, and the notebook whose names it defines on replicas."""

from __future__ import annotations

import os
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Client:
    label: str  # "train.ipynb"
    kind: str  # "notebook", "script", "terminal" or "replica"
    notebook: str  # whose definitions these are; the same again after the notebook's kernel restarted


_unnamed = uuid.uuid4().hex
_token = (0, "")


def process_token() -> str:
    """This process, among all that there are and were; a forked child is another one."""
    global _token  # noqa: PLW0603
    pid, token = _token
    if pid != os.getpid():
        _token = pid, token = os.getpid(), uuid.uuid4().hex
    return token


_presented: Client | None = None


def present_as(label: str, kind: str) -> None:
    """This process speaks for somebody else: the front end that it attaches to a replica."""
    global _presented  # noqa: PLW0603
    _presented = Client(label, kind, _unnamed)


def describe_client() -> Client:
    """Asked anew each time: VS Code names the notebook only after the first cell."""
    if _presented is not None:
        return _presented
    replica = os.environ.get("FLYTE_JUPYTER_REPLICA_NAME")
    if replica is not None:
        return Client(replica, "replica", f"replica:{os.environ.get('FLYTE_JUPYTER_REPLICA', '')}")
    main = sys.modules.get("__main__")
    shell = ipython()
    if shell is None:
        script = getattr(main, "__file__", None)
        if script is None:
            return Client("Python", "terminal", _unnamed)
        path = os.path.abspath(script)
        return Client(Path(path).name, "script", path)
    path = os.environ.get("JPY_SESSION_NAME") or shell.user_ns.get("__vsc_ipynb_file__") or ""
    if type(shell).__name__ == "TerminalInteractiveShell":
        return Client("IPython", "terminal", _unnamed)
    return Client(Path(path).name or "notebook", "notebook", path or _unnamed)


def ipython() -> Any:
    """The running IPython shell, or None; does not import IPython to find out."""
    module = sys.modules.get("IPython")
    get = getattr(module, "get_ipython", None)  # another thread may be in the middle of importing it
    return None if get is None else get()
