"""One captured object of a notebook: its definition, and what must still be so for it to hold."""

from __future__ import annotations

import inspect
import itertools
import types
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ...core.definitions import Definition, ValueDefinition
from ...core.payload import VARIABLES
from ...modules import Table, current
from .places import follow, is_importable
from .source import Source, function_source
from .watch import LRU_CACHE, Watch

if TYPE_CHECKING:
    from .values import Links

Names = dict[str, Any]
NOTHING: Final[Any] = object()


@dataclass(slots=True, eq=False)
class Piece:
    """One captured object. `definition` has a mark without `deep`, which depends on all the others of a closure."""

    name: str
    seen: Any
    definition: Definition
    names: frozenset[str] = frozenset()  # all that it mentions
    modules: frozenset[str] = frozenset()
    imports: frozenset[str] = frozenset()  # modules whose functions and classes it takes from there
    table: Table = field(default_factory=current)  # the user's modules as they were
    watch: Watch | None = None
    found: dict[int, tuple[int, Any]] = field(default_factory=dict)
    owners: tuple[Piece, ...] = ()
    serials: dict[int, tuple[Any, int]] = field(default_factory=dict)
    caches: bool = False
    source: Source | None = None
    named: dict[str, Any] = field(default_factory=dict)  # what stands in it by its name
    members: tuple[str, ...] = ()  # of objects that can only be made together: their names

    def changed(self, names: Names, obj: Any) -> bool:
        if obj is not self.seen or (self.watch is not None and self.watch.changed()):
            return True
        if self.imports and self.has_changed_modules():
            return True
        return any(follow(names, path) is not there for path, there in self.named.items())

    def has_changed_modules(self) -> bool:
        """Whether a module that it imports from has been loaded anew: what came from there may be there no more."""
        before, now = self.table.modules, current().modules
        return before is not now and any(before.get(name) is not now.get(name) for name in self.imports)

    def line_of(self, name: str) -> int | None:
        """The user's first line that mentions this name."""
        source = self.source or source_of(self.seen)
        return None if source is None else source.line_of(name)


def links_of(owners: Iterable[Piece]) -> Links:
    return {key: (owner.name, index) for owner in reversed([*owners]) for key, (index, _) in owner.found.items()}


def is_value(piece: Piece | None) -> bool:
    return piece is not None and isinstance(piece.definition, ValueDefinition)


def members_of(piece: Piece | None) -> tuple[str, ...]:
    return () if piece is None else piece.members


def bare_of(obj: Any) -> tuple[Any, bool]:
    """The function inside a task, and whether it is one."""
    capture = getattr(type(obj), "__flyte_capture__", None)
    return (obj, False) if capture is None else (capture(obj)[0], True)


def source_of(obj: Any) -> Source | None:
    """The `def` behind a function or what wraps it, if it belongs to a notebook."""
    try:
        function = inspect.unwrap(bare_of(obj)[0])
    except ValueError:  # it wraps itself
        return None
    if not isinstance(function, types.FunctionType) or is_importable(function.__module__):
        return None
    return function_source(function)


def serial_of(part: Any, known: dict[int, tuple[Any, int]]) -> int:
    """A number for this very object: equal ones have others."""
    if isinstance(part, (types.FunctionType, LRU_CACHE, type, *VARIABLES)):
        with suppress(TypeError):  # a metaclass whose classes have no hash
            serial = _of_functions.get(part)
            if serial is None:
                serial = _of_functions[part] = next(_numbers)
            return serial
    found = known.get(id(part))
    return next(_numbers) if found is None else found[1]


_numbers: Final = itertools.count(1)
_of_functions: Final[weakref.WeakKeyDictionary[Any, int]] = weakref.WeakKeyDictionary()
