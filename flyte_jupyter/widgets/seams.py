"""Private parts of other packages that the card uses; `tests/test_seams.py` has a test for each."""

from __future__ import annotations

from typing import Any


def answer_where_asked(comm: Any) -> None:
    """Have a widget's comm answer a view in the thread that the view asks for.

    ipykernel passes the message of a view to the thread from which the comm spoke last, which may be that of a cell
    that blocks.
    """
    comm._reply_subshell_for = lambda _, asked_for: asked_for
