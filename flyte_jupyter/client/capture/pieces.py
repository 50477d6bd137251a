"""The pieces of one notebook's names, and what they have to do with each other."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .piece import NOTHING, Names, Piece
from .places import aliases

if TYPE_CHECKING:
    from .values import Pickled


class Pieces:
    """What has been captured so far of the globals of a notebook, script or module.

    Pieces are shared by all functions that mention a name: on a replica a name is one object.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self.lock = threading.RLock()
        self.pieces: dict[str, Piece] = {}
        self.generation = 0
        """Counts pieces that were made, so that a closure knows whether another function has renewed one."""
        self.bound: dict[str, int] = {}
        """How often a cell has bound this name: of a number that is bound to the same one again, nothing else tells."""
        self.warned: set[str] = set()
        self._aliases: dict[int, str] | None = None

    def aliases(self) -> dict[int, str]:
        """As `places.aliases`, found once for each time that a closure is made."""
        if self._aliases is None:
            self._aliases = aliases(self.names)
        return self._aliases

    @abstractmethod
    def piece(self, name: str, obj: Any, symbol: str, user: Piece | None) -> Piece:
        """What is known of this name's object, captured again if it has changed."""

    def _renew(self, owner: Piece, symbol: str) -> None:
        if not owner.members:
            self.piece(owner.name, self.names.get(owner.name, NOTHING), symbol, None)
        elif self.has_changed(owner, owner.seen) and self.pieces.get(owner.name) is owner:
            self.dissolve(owner)

    def dissolve(self, group: Piece) -> None:
        """Its members are captured again, each alone as far as that goes."""
        for name in (group.name, *group.members):
            self.pieces.pop(name, None)
        self.generation += 1

    def owners(self, pickled: Pickled, name: str, symbol: str) -> list[Piece]:
        """The pieces that an object shares parts with, brought up to date."""
        mine = pickled.found.keys()

        def shared() -> list[Piece]:
            return [p for p in self.pieces.values() if p.name != name and p.found and not mine.isdisjoint(p.found)]

        for piece in shared():
            self._renew(piece, symbol)
        return [piece for piece in shared() if not _depends(piece, name)]

    def has_changed(self, piece: Piece, obj: Any) -> bool:
        return piece.changed(self.names, obj) or self.has_lost_an_owner(piece)

    def has_lost_an_owner(self, piece: Piece) -> bool:
        """Whether what it refers to has been captured again."""
        return any(self.pieces.get(owner.name) is not owner for owner in piece.owners)

    def circle(self, name: str, needed: Iterable[str]) -> list[str]:
        """The names that need this name to be made, and are needed by it; itself included."""
        reached = self._reached(needed)
        return sorted({name} | {each for each in reached if name in self._reached([each])})

    def _reached(self, names: Iterable[str]) -> set[str]:
        reached: set[str] = set()
        queue = list(names)
        while queue:
            name = queue.pop()
            if name not in reached:
                reached.add(name)
                known = self.pieces.get(name)
                if known is not None and not self.has_lost_an_owner(known):  # else it is to be captured again
                    queue += known.definition.early
        return reached


def _depends(piece: Piece, name: str) -> bool:
    return any(owner.name == name or _depends(owner, name) for owner in piece.owners)
