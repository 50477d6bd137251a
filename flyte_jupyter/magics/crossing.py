"""Values and errors between a notebook and its task cells."""

from __future__ import annotations

import difflib
import re
import sys
from typing import Any, Final

from IPython.core.error import UsageError

from .. import errors
from ..client.capture.places import is_ipython
from ..client.cells.names import names as names_there
from ..client.cells.request import RETRY_REASONS
from ..client.cells.target import CellTarget
from ..client.target import missing_name
from ..core import failure
from ..core.cells import CellReply
from .present import presentable, stand_in


class Crossing:
    """One shell, as its task cells and background cells need it."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell

    def values(self, names: list[str]) -> dict[str, Any]:
        """The notebook's variables of these names. Raises UsageError before anything is sent."""
        there = self.shell.user_ns
        for name in names:
            if name not in there:
                close = difflib.get_close_matches(name, [each for each in there if not each.startswith("_")], 1, 0.75)
                meant = f" Did you mean {close[0]}?" if close else ""
                raise UsageError(f"-i {name}: there is no variable {name} in this notebook.{meant}")
        return {name: there[name] for name in names}

    def assign(self, reply: CellReply, pulls: list[tuple[str, str]]) -> Any:
        """Put what came back among the notebook's names, and return it; one value, or a dict of several.

        Args:
            pulls: What it is called there and here; "" is only returned.

        Raises: NameError for what the cell has not made.
        """
        taken = {here: reply.pulled[there] for there, here in pulls if there in reply.pulled}
        self.shell.push({name: value for name, value in taken.items() if name})
        if reply.missing:
            names = ", ".join(reply.missing)
            error = stand_in("NameError", f"-o {names}: not defined when the cell ends")
            raise presentable(self.shell, error, None)
        if not pulls:
            return None
        return taken[""] if "" in taken else next(iter(taken.values())) if len(taken) == 1 else taken

    def explained(self, error: BaseException, target: CellTarget) -> BaseException:
        """The error of a cell as it is shown, with what can be done about it in a notebook."""
        described = failure.of(error)
        name = None if described is None else missing_name(error, described)
        if name is not None:
            _explain_name(error, name, target, self.shell.user_ns)
        elif isinstance(error, errors.MaxRuntimeExceededError):
            error.args = (str(error).replace(f"Task {target.name}", "Your cell"),)
            error.add_note("Raise `--timeout`, or use `--bg` for long work.")
        elif isinstance(error, errors.StarvationError):
            error.__notes__ = [
                _OVERRIDE.sub("or call it from the notebook itself.", note).replace(
                    "`flyte-jupyter scale", "`%flyte_pool scale"
                )
                for note in getattr(error, "__notes__", ())
            ]
        elif RETRY_REASONS["oom"](error):
            again = f"If that does not help: `%flyte_pool restart {target.pool.name}`."
            errors.with_notes(error, f"Run it again, use a smaller batch, or `--retry-on oom`. {again}")
        elif isinstance(error, errors.ReplicaDied):
            tried = target.attempt + 1
            was = "The cell was not repeated" if tried == 1 else f"The cell was run {tried} times, not once more"
            error.__notes__ = [
                note.replace("The task was not repeated", was).replace("`retries=1` to the task", "`--retries 1`")
                for note in getattr(error, "__notes__", ())
                if tried == 1 or not note.startswith("Run it again")
            ]
        return presentable(self.shell, error, failure.remote_frames(error))


def _explain_name(error: BaseException, name: str, target: CellTarget, names: dict[str, Any]) -> None:
    if name not in names or is_ipython(name, names[name]):
        return
    there = [each for each in names_there(target.pool, target.cell.scope, target.cell.session) if each not in _ALWAYS]
    shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "")
    only = f"the preload names: {shown}" if shown else "the preload names"  # which cannot be told, or are none
    where = target.times.replica or target.pool.name
    errors.with_notes(
        error,
        f'FJ401 "{name}" exists in your notebook; task cells run on {where} and see only {only}.',
        f"Send it with `-i {name}`{_size(names[name])}, or create it in `%%flyte_preload {target.pool.name}`.",
    )


_OVERRIDE: Final = re.compile(r"or make the parent use no replica: `cell .*?`\.")  # which a cell cannot
_ALWAYS: Final = frozenset(("In", "Out", "exit", "quit", "open", "get_ipython", "preload_cell"))


def _size(value: object) -> str:
    count = getattr(value, "nbytes", None)
    if not isinstance(count, int):
        count = sys.getsizeof(value) if isinstance(value, str | bytes | bytearray) else 0
    return f" ({count / 1e6:.0f} MB)" if count >= 1e6 else ""
