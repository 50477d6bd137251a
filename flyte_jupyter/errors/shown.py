"""What is shown of an error that says all there is to say, and of one whose cause is Flyte's error of the same."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    with without_flytes(error):
        lines: list[str] = (
            shell.InteractiveTB.get_exception_only(type(error), error)
            if tb is None
            else shell.InteractiveTB.structured_traceback(type(error), error, tb, tb_offset=0)
        )
    return lines


def show_as_ours(error: BaseException) -> None:
    """Let IPython show an error in the same way; our own have the method that it asks for."""
    vars(error)["_render_traceback_"] = _LinesShown(error)


class _LinesShown:
    """That method. It can be pickled, as the error may have to be."""

    def __init__(self, error: BaseException | None = None) -> None:
        self._found: Callable[[], BaseException | None]
        try:
            # Else a cancelled call would be kept, with its arguments, until the collector comes.
            self._found = (lambda: None) if error is None else weakref.ref(error)
        except TypeError:  # a KeyboardInterrupt, a class that is not made in Python; but those are few
            self._found = lambda: error

    def __call__(self) -> list[str]:
        error = self._found()
        if error is None:
            error = sys.exc_info()[1]  # a copy, which is being shown
        return [] if error is None else lines_shown(error)

    def __reduce__(self) -> tuple[Any, ...]:
        return _LinesShown, ()


# --- an error that cannot be Flyte's, too, and Flyte's error beside it

_BESIDE: Final = "_flyte_jupyter_beside"


def put_beside(error: BaseException, flytes: BaseException) -> None:
    """Note that this one of Flyte's is about the same as a task's own error, which is shown as ours are."""
    vars(error)[_BESIDE] = flytes
    show_as_ours(error)


def beside(error: BaseException) -> BaseException | None:
    """Flyte's error, if it is another object than the task's own."""
    found: BaseException | None = vars(error).get(_BESIDE)
    return found


@contextmanager
def without_flytes(error: BaseException) -> Iterator[None]:
    """Within the block, what would say again what an error in this chain has said is not among its causes."""
    left_out: list[tuple[BaseException, BaseException]] = []
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        flytes = beside(each)
        if flytes is not None and each.__cause__ is flytes:
            left_out.append((each, flytes))
            BaseException.__setattr__(each, "__cause__", flytes.__cause__)
        shown_instead = None if each.__suppress_context__ else each.__context__
        each = shown_instead if each.__cause__ is None else each.__cause__
    try:
        yield
    finally:
        for each, cause in left_out:
            BaseException.__setattr__(each, "__cause__", cause)
