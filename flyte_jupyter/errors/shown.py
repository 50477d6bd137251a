"""What IPython shows of an error that says all there is to say."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Final


def users_frames(tb: TracebackType | None) -> TracebackType | None:
    """A traceback without our frames, and without those of Python's library that ours have called.

    It is a copy: a debugger that is started later still finds all of them.
    """
    kept = []
    ours = False
    while tb is not None:
        path = tb.tb_frame.f_code.co_filename
        ours = path.startswith(_PACKAGE) or (ours and path.startswith(_LIBRARY) and "site-packages" not in path)
        if not ours:
            kept.append(tb)
        tb = tb.tb_next
    shown = None
    for each in reversed(kept):
        shown = TracebackType(shown, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return shown


_PACKAGE: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARY: Final = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


def lines_shown(error: BaseException) -> list[str]:
    """What IPython shows of an error that says all there is to say: the lines of the user's code, and none of ours."""
    import IPython

    shell: Any = IPython.get_ipython()
    tb = users_frames(error.__traceback__)
    around = os.path.dirname(IPython.__file__) + os.sep
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(around):
        tb = tb.tb_next
    lines: list[str] = (
        shell.InteractiveTB.get_exception_only(type(error), error)
        if tb is None
        else shell.InteractiveTB.structured_traceback(type(error), error, tb, tb_offset=0)
    )
    return lines
