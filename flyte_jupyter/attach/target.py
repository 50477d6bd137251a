"""The replica that a front end means: what its session says, as Jupyter servers pass it on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

KERNEL: Final = "flyte-attach"
METADATA: Final = "flyte_jupyter"
"""A notebook's metadata `{"flyte_jupyter": {"attach": "gpu[1]"}}` name its replica."""


def session_target(pools: Sequence[str]) -> str:
    """The replica or the pool that the front end's session names; "" if it names none.

    Jupyter servers tell a kernel the folder and the name of its session, and of a nameless one the path. A notebook
    says it in its metadata; a console is called `flyte-attach/gpu[1]/` with 8 hex digits behind it, `gpu[1]`, or as
    one of `pools`.
    """
    session = os.environ.get("JPY_SESSION_NAME", "")
    if session.endswith(".ipynb"):
        return _target_of_notebook(Path(session))
    marked = re.search(rf"(?:^|/){KERNEL}/(.+)/[0-9a-f]{{8}}$", session)
    if marked is not None:
        return marked[1]
    name = session.rpartition("/")[2]
    return name if name in pools or re.fullmatch(r".+\[\d+\]", name) else ""


def _target_of_notebook(path: Path) -> str:
    try:
        metadata = json.loads(path.read_text())["metadata"]
    except (OSError, ValueError, LookupError, TypeError):  # not there, or not yet what it shall be
        return ""
    own = metadata.get(METADATA, {}) if isinstance(metadata, dict) else {}
    target = own.get("attach", "") if isinstance(own, dict) else ""
    return target if isinstance(target, str) else json.dumps(target)


def notebook() -> str:
    """The notebook that this kernel is for, as Jupyter servers tell it."""
    path = os.environ.get("JPY_SESSION_NAME", "")
    return Path(path).name if path.endswith(".ipynb") else ""
