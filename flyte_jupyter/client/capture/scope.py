"""What has been captured of one notebook: a piece for each name, which all of its functions share."""

from __future__ import annotations

import itertools
import linecache
import sys
import threading
import weakref
from types import CodeType, FrameType
from typing import Any, Final

from ...core.context import current
from ...core.definitions import ORIGIN
from ..identity import ipython
from .making import Maker
from .piece import NOTHING, Names, Piece
from .pieces import Pieces
from .source import Binding, Position, bindings_of


class Scope(Pieces):
    """The globals of a notebook, script or module, with the cell that runs there, and who captures them."""

    def __init__(self, names: Names) -> None:
        super().__init__(names)
        self.binding: list[Binding] = []
        """What the cell that runs has not bound yet, as far as is known."""
        self._renewing: set[str] = set()

    @classmethod
    def of(cls, names: Names) -> Scope:
        """The one of these globals."""
        with _scopes_lock:
            found = _scopes.get(id(names))
            if found is None or found.names is not names:
                found = _scopes[id(names)] = cls(names)
                # Functions come and go; what is known of their program's objects stays.
                origin = names.get(ORIGIN)
                if origin is not None:
                    origin.scope = found
                elif names.get("__name__") == "__main__" and current.get() is None:
                    _main[:] = [found]
                    found._watch_cells()
            return found

    def _watch_cells(self) -> None:
        shell = ipython()
        if shell is None or shell.user_ns is not self.names:
            return
        frame = self._cell_frame()
        if frame is not None:  # the first call is made while its cell runs
            self.binding = bindings_of("".join(linecache.getlines(frame.f_code.co_filename)))
            self.catch_up()
        shell.events.register("pre_run_cell", self._cell_begins)
        shell.events.register("post_run_cell", self._cell_has_run)

    def _cell_begins(self, info: Any) -> None:
        self.binding = bindings_of(info.raw_cell)

    def _cell_has_run(self, result: Any) -> None:
        with self.lock:
            if result.error_before_exec is None:
                self._bound_until(self._failed_at(result.error_in_exec))
            self.binding = []
            self.purge()

    def catch_up(self) -> None:
        """A call is made while a cell runs: what that has bound before the call is bound."""
        frame = self._cell_frame()
        with self.lock:
            # What other tasks and threads do is mostly what the cell has prepared.
            self._bound_until(None if frame is None else _position(frame.f_code, frame.f_lasti))

    def _bound_until(self, now: Position | None) -> None:
        """Names that the cell has bound start anew on replicas, also where they mean the same as before.

        Of an object that can change, its identity tells that: what is still the same list has not been made anew.

        Args:
            now: Where in its text the cell is; None at its end.
        """
        bound = [each for each in self.binding if now is None or each.end <= now]
        self.binding = [each for each in self.binding if each not in bound]
        for name in {name for each in bound for name in each.names}:
            self.bound[name] = self.bound.get(name, 0) + 1
            known = self.pieces.get(name)
            if known is not None and not known.serials and not known.members:
                del self.pieces[name]
                self.generation += 1

    def _cell_frame(self) -> FrameType | None:
        """Where the cell is that makes this call; None on other threads, and in asyncio's tasks."""
        found = None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if self._is_cell(frame):
                found = frame
            frame = frame.f_back
        return found

    def _is_cell(self, frame: FrameType) -> bool:
        return frame.f_globals is self.names and frame.f_code.co_name.startswith(("<module>", "<cell line:"))

    def _failed_at(self, error: BaseException | None) -> Position | None:
        """Where the cell was when it raised this."""
        step = None if error is None else error.__traceback__
        while step is not None and not self._is_cell(step.tb_frame):
            step = step.tb_next
        return None if step is None else _position(step.tb_frame.f_code, step.tb_lasti)

    def purge(self) -> None:
        """Let go of objects that their names no longer mean."""
        self._aliases = None
        for name, piece in list(self.pieces.items()):
            if not (piece.members or self.names.get(name, NOTHING) is piece.seen):
                del self.pieces[name]
        for piece in list(self.pieces.values()):
            if piece.members and any(member not in self.pieces for member in piece.members):
                self.dissolve(piece)

    def piece(self, name: str, obj: Any, symbol: str, user: Piece | None) -> Piece:
        """What is known of this name's object, captured again if it has changed."""
        known = self.pieces.get(name)
        if known is not None:
            if name in self._renewing:
                return known
            self._renewing.add(name)
            try:
                for owner in known.owners:
                    self._renew(owner, symbol)
            finally:
                self._renewing.discard(name)
            if not self.has_changed(known, obj):
                return known
        self._renewing.add(name)
        try:
            made = Maker(self, name, obj, symbol, user, known).piece()
        finally:
            self._renewing.discard(name)
        self.pieces[name] = made
        self.generation += 1
        return made


def _position(code: CodeType, instruction: int) -> Position:
    """Where in its text that instruction begins."""
    line, _, column, _ = next(itertools.islice(code.co_positions(), instruction // 2, None))
    return Position(line or 0, column or 0)


_scopes: weakref.WeakValueDictionary[int, Scope] = weakref.WeakValueDictionary()
_main: Final[list[Scope]] = []
_scopes_lock: Final = threading.Lock()
