"""What a task needs from the notebook: a closure of definitions, made again only when something has changed.

A call asks its `Captured` for the closure every time. The unchanged case compares identities: each name's object with
the one that was captured, and what is inside it as `watch` says.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ...core.definitions import AbsentDefinition, Closure, Definition, Mark, digest_of
from ...modules import current
from .making import Maker, import_definition
from .piece import NOTHING, Names, Piece, bare_of
from .places import follow, is_ipython
from .scope import Scope
from .watch import Watch


class Captured:
    """One function of a notebook, script or module, and what it needs.

    Args:
        function: The bare function, not the task made of it.

    Threads may ask at once: what was found is replaced as a whole.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        function = bare_of(function)[0]
        self._setup(_scope_of(function), (), function)
        self._symbol = str(getattr(function, "__qualname__", type(function).__qualname__))

    @classmethod
    def of_names(cls, names: Iterable[str], namespace: Names, *, made: Names | None = None) -> Captured:
        """Any names of a notebook instead of one function; the closure has no entry.

        Args:
            made: Objects that are about to be bound to such a name: a decorator's product, inside the decorator. The
                closure has no epochs then: it belongs to no process.

        Raises: NameError if one of them is not in `namespace`.
        """
        roots = tuple(dict.fromkeys(name.partition(".")[0] for name in names))
        for name in roots:
            if name not in namespace and name not in (made or ()):
                raise NameError(f"name {name!r} is not defined in the notebook", name=name)
        captured = cls.__new__(cls)
        captured._setup(namespace, roots, None, made)
        return captured

    @property
    def function(self) -> Any:
        """The bare function; None if these are only names."""
        return self._function

    @property
    def namespace(self) -> Names:
        """The globals that its names are looked up in."""
        return self._scope.names

    def _setup(self, names: Names, roots: tuple[str, ...], function: Any, made: Names | None = None) -> None:
        self._scope = Scope.of(names)
        self._roots = roots
        self._function = function
        self._made = made
        self._symbol = ""
        self._entry: Piece | None = None
        self._found: _Found | None = None

    def closure(self) -> Closure:
        """What the function needs now; the same object as before if nothing changed.

        Raises:
            ArgumentNotSerializable: A value that it uses cannot be copied to another process.
        """
        if self._scope.binding:
            self._scope.catch_up()
        found = self._found
        if found is None or found.changed():
            with self._scope.lock:
                found = self._found = self._find()
        return found.closure

    def _find(self) -> _Found:
        scope = self._scope
        scope.purge()
        pieces: dict[str, Piece] = {}
        watched: dict[str, Any] = {}
        function = self._function
        own: str = getattr(function, "__name__", "")
        is_named = function is not None and scope.names.get(own, NOTHING) is function
        roots = (own,) if is_named else self._roots
        entry = None if function is None or is_named else self._entry_piece()
        queue: list[tuple[str, Piece | None]] = [(root, None) for root in reversed(roots)]
        while True:
            if entry is not None:
                queue += [(name, entry) for name in sorted(entry.names, reverse=True)]
            while queue:
                name, user = queue.pop()
                if name in watched or name in pieces:
                    continue
                if name in scope.pieces and scope.pieces[name].members:
                    group = pieces[name] = scope.pieces[name]
                    queue += [(each, group) for each in sorted(group.names, reverse=True)]
                    continue
                obj = watched[name] = self._get(name)
                if is_ipython(name, obj):
                    continue
                if obj is NOTHING:
                    pieces[name] = Piece(name, NOTHING, AbsentDefinition(name))
                    continue
                piece = pieces[name] = self._piece(name, obj, user)
                queue += [(each, piece) for each in sorted(piece.names, reverse=True)]
            # One may have been captured again since, together with another that needs it.
            stale = [p for p in pieces.values() if self._is_stale(p)]
            if stale:
                for piece in stale:
                    del pieces[piece.name]
                    watched.pop(piece.name, None)
                queue = [(piece.name, None) for piece in stale if not piece.members]
                continue
            if entry is None or (entry.owners and all(pieces.get(owner.name) is owner for owner in entry.owners)):
                break
            # Only now is it known which of the named objects it shares parts with.
            alone = entry if not entry.owners else self._capture_entry(())
            shared = tuple(p for p in pieces.values() if not p.found.keys().isdisjoint(alone.found))
            entry = self._capture_entry(shared) if shared else alone
            if not shared:
                break
        if entry is not None:
            self._entry = entry
            pieces[entry.name] = entry
        # An object may have changed others while it was pickled; then these pieces are no longer the scope's.
        generation = scope.generation
        closure = self._closure(pieces, own if is_named else "" if entry is None else entry.name)
        return _Found(scope, watched, tuple(pieces.values()), generation, closure)

    def _get(self, name: str) -> Any:
        if self._made is not None and name in self._made:
            return self._made[name]
        return self._scope.names.get(name, NOTHING)

    def _piece(self, name: str, obj: Any, user: Piece | None) -> Piece:
        if self._made is not None and name in self._made:
            return Maker(self._scope, name, obj, self._symbol, user, None).piece()
        return self._scope.piece(name, obj, self._symbol, user)

    def _is_stale(self, piece: Piece) -> bool:
        if piece.seen is NOTHING or (self._made is not None and piece.name in self._made):
            return False
        return self._scope.pieces.get(piece.name) is not piece or self._scope.has_lost_an_owner(piece)

    def _entry_piece(self) -> Piece:
        known = self._entry
        if known is not None and not self._scope.has_changed(known, self._function):
            return known
        return self._capture_entry(())

    def _capture_entry(self, owners: tuple[Piece, ...]) -> Piece:
        return Maker(self._scope, "", self._function, self._symbol, None, self._entry).entry(owners)

    def _closure(self, pieces: dict[str, Piece], entry: str) -> Closure:
        owned = self._made is None
        definitions: dict[str, Definition] = {}
        for name, piece in pieces.items():
            mark = piece.definition.mark
            deep = _deep(piece, pieces) if piece.caches else ""
            if deep or not owned:
                mark = Mark(mark.content, mark.epoch if owned else "", deep)
                definitions[name] = replace(piece.definition, mark=mark)
            else:
                definitions[name] = piece.definition
        modules = {path for piece in pieces.values() for path in piece.modules}
        imports = [import_definition(path, path, None) for path in sorted(modules) if path not in definitions]
        return Closure.of(entry, [*imports, *_ordered(definitions, entry)])


def _deep(piece: Piece, pieces: dict[str, Piece]) -> str:
    """Digest of the content of all that the piece uses when it runs, itself included."""
    reached: dict[str, str] = {}
    queue = [piece.name]
    while queue:
        name = queue.pop()
        if name in reached or name not in pieces:
            continue
        reached[name] = pieces[name].definition.mark.content
        queue += pieces[name].names
    return digest_of(*(part for name in sorted(reached) for part in (name, reached[name])))


class _Found:
    """One capture, and what must still be so for it to hold."""

    __slots__ = ("_checks", "_generation", "_names", "_paths", "_pieces", "_scope", "_table", "_watched", "closure")

    def __init__(
        self, scope: Scope, watched: Names, pieces: tuple[Piece, ...], generation: int, closure: Closure
    ) -> None:
        self.closure = closure
        self._scope = scope
        self._names = scope.names
        self._watched = tuple(watched.items())  # absent names too: one that is defined later shadows a builtin
        self._checks = Watch.all_of(piece.watch for piece in pieces if piece.watch is not None).checks()
        named = (item for piece in pieces for item in piece.named.items())
        self._paths = tuple((path, there) for path, there in named if "." in path)  # a bare name is watched anyhow
        self._pieces = pieces
        self._generation = generation
        table = current()
        imports = any(name in table.modules for piece in pieces for name in piece.imports)
        self._table = table if imports else None

    def changed(self) -> bool:
        names = self._names
        for name, seen in self._watched:
            if names.get(name, NOTHING) is not seen:
                return True
        for check in self._checks:
            if check():
                return True
        for path, there in self._paths:
            if follow(names, path) is not there:
                return True
        if self._table is not None and self._table is not (now := current()):
            if any(piece.has_changed_modules() for piece in self._pieces if piece.imports):
                return True
            self._table = now
        return self._generation != self._scope.generation and self._replaced()

    def _replaced(self) -> bool:
        """Whether another function's capture has renewed a piece of this one."""
        generation = self._scope.generation
        pieces = self._scope.pieces
        for piece in self._pieces:
            for each in (piece, *piece.owners):
                if (each.members or each.name in self._names) and pieces.get(each.name) is not each:
                    return True
        self._generation = generation
        return False


def _ordered(definitions: dict[str, Definition], entry: str) -> Iterator[Definition]:
    """Each after what it needs to be made; where they need each other, a replica sees to it."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[Definition]:
        if name in done or name not in definitions:
            return
        done.add(name)
        for needed in sorted(definitions[name].early):
            yield from visit(needed)
        yield definitions[name]

    for name in sorted(definitions, key=lambda name: (name != entry, name)):
        yield from visit(name)


def _scope_of(function: Any) -> Names:
    """The globals of the function that a partial, a method or a wrapper calls in the end."""
    function = inspect.unwrap(function)
    if isinstance(function, functools.partial):
        return _scope_of(function.func)
    function = getattr(function, "__func__", function)
    module = sys.modules.get(type(function).__module__)
    scope: Names = getattr(function, "__globals__", vars(module) if module else {})
    return scope
