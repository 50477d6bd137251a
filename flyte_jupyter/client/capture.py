"""What a task needs from the notebook: definitions by source, imports, small values.

A call asks its `Captured` for the closure every time, so the unchanged case does no more than compare, for
each name, the object in the notebook with the one seen last.

The digest of a definition covers its own text and, of what it mentions, only what made it what it is: bases,
decorators, defaults. A helper that it merely calls is looked up when it runs. So an edited helper leaves a
cached loader alone, and an edited base class renews its subclasses.
"""

from __future__ import annotations

import enum
import functools
import inspect
import pathlib
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..core.definitions import (
    Closure,
    Definition,
    ImportDefinition,
    SourceDefinition,
    ValueDefinition,
    digest_of,
)
from ..errors import ArgumentNotSerializable
from .source import (
    Source,
    class_source,
    decorated_source,
    function_source,
    importable_path,
    is_dispatcher,
    is_importable,
    is_ipython,
    references,
)

LARGE_BYTES = 10 * 1024 * 1024
"""A captured value of more than this warns: it travels to every replica, and is compared at every call."""

Names = dict[str, Any]


class Captured:
    """One function of a notebook, script or module, and what it needs.

    Args:
        function: The bare function, not the task made of it.
        skip: Names never to send, such as those that the preload makes on each replica.

    Threads may ask at once: what was found is replaced as a whole.
    """

    def __init__(self, function: Callable[..., Any], *, skip: Collection[str] = ()) -> None:
        function = _bare(function)[0]
        scope = _scope_of(function)
        self._entry = _entry_name(function, scope)
        self._symbol = self._entry.partition(":")[0]
        self._function: Callable[..., Any] | None = function
        self._setup(scope, (), skip)

    @classmethod
    def of_names(cls, names: Iterable[str], namespace: Names, *, skip: Collection[str] = ()) -> Captured:
        """Any names of a notebook instead of one function; the closure has no entry.

        Raises: NameError if one of them is not in `namespace`.
        """
        captured = cls.__new__(cls)
        captured._entry = captured._symbol = ""
        captured._function = None
        roots = tuple(dict.fromkeys(name.partition(".")[0] for name in names))
        for name in roots:
            if name not in namespace:
                raise NameError(f"name {name!r} is not defined in the notebook", name=name)
        captured._setup(namespace, roots, skip)
        return captured

    def _setup(self, scope: Names, roots: tuple[str, ...], skip: Collection[str]) -> None:
        self._scope, self._roots, self._skip = scope, roots, frozenset(skip)
        self._warned: set[str] = set()
        self._found: _Found | None = None

    def closure(self) -> Closure:
        """What the function needs now; the same object as before if nothing changed.

        Raises:
            ArgumentNotSerializable: A value that it uses cannot be copied to another process.
        """
        found = self._found
        if found is None or found.changed():
            found = self._found = self._find(found)
        return found.closure

    def _find(self, previous: _Found | None) -> _Found:
        known = previous.pieces if previous else {}
        pieces: dict[str, _Piece] = {}
        claims: dict[str, tuple[Names, Any]] = {}  # which object each name stands for, and where that was seen
        queue: list[tuple[str, _Piece | None]] = []
        foreign: list[_Piece] = []

        def want(names: Iterable[str], scope: Names, user: _Piece | None) -> None:
            for name in sorted(names):
                if name not in claims and name not in self._skip:
                    claims[name] = (scope, scope.get(name, _ABSENT))
                    queue.append((name, user))

        want(self._roots, self._scope, None)
        if self._function is not None:
            entry = known.get(self._entry) or self._entry_piece(self._function)
            pieces[self._entry] = entry
            claims.setdefault(self._entry, (self._scope, self._scope.get(self._entry, _ABSENT)))
            want(entry.names, entry.scope, entry)
        while queue or foreign:
            if not queue:  # the notebook's own names come first, so that others give way to them
                piece = foreign.pop()
                name = piece.definition.name
                if any(_differs(claims.get(n), piece.scope.get(n, _ABSENT)) for n in piece.names):
                    piece = pieces[name] = self._value(name, self._scope, piece.seen, None)
                want(piece.names, piece.scope, piece)
                continue
            name, user = queue.pop()
            scope, obj = claims[name]
            if obj is _ABSENT or is_ipython(name, obj):
                continue
            known_piece = known.get(name)
            if known_piece is not None and not known_piece.changed(obj):
                piece = known_piece
            else:
                piece = self._piece(name, scope, obj, user)
            pieces[name] = piece
            if piece.scope is self._scope:
                want(piece.names, piece.scope, piece)
            else:
                foreign.append(piece)
        closure = Closure.of(self._entry, _ordered(pieces, self._entry))
        return _Found(pieces, [(scope, name, obj) for name, (scope, obj) in claims.items()], closure)

    def _entry_piece(self, function: Callable[..., Any]) -> _Piece:
        name = self._entry
        path = importable_path(function) or _path_of_task(function)
        if path is not None:
            return _import_piece(name, self._scope, function, *path)
        source = _source_of(function)
        if source is None or is_dispatcher(function) or not (_is_plain(function) or source.decorated):
            return self._value(name, self._scope, function, None)
        return _source_piece(name, self._scope, function, source, None)

    def _piece(self, name: str, scope: Names, obj: Any, user: _Piece | None) -> _Piece:
        if isinstance(obj, types.ModuleType):
            if is_importable(obj.__name__) or obj.__name__ == "__main__":
                return _import_piece(name, scope, obj, obj.__name__, None)
            return self._value(name, scope, obj, user)
        bare, wrap, is_task = _bare(obj)
        path = importable_path(bare) if not is_task else _path_of_task(bare, obj)
        if path is not None:
            return _import_piece(name, scope, obj, *path)
        source = self._named_source(name, bare, is_task)
        if source is not None:
            return _source_piece(name, scope, obj, source, wrap)
        if is_task:
            return replace(self._value(name, scope, bare, user, wrap=wrap), seen=obj)
        return self._value(name, scope, obj, user)

    def _named_source(self, name: str, obj: Any, is_task: bool) -> Source | None:
        """The source whose execution binds `name` to a thing like `obj`, if there is one."""
        if isinstance(obj, type):
            source = None if is_importable(obj.__module__) else class_source(obj)
            return source if source and source.node.name == name else None
        if not callable(obj) or is_dispatcher(obj):
            return None
        source = _source_of(obj)
        if source is not None and (is_task or source.node.name == name):
            return source if _is_plain(obj) or source.decorated else None  # else wrapped by hand
        if getattr(obj, "__name__", None) == name and source is None and _is_plain(obj):
            return None
        return decorated_source(name, _module_of(obj))

    def _value(self, name: str, scope: Names, obj: Any, user: _Piece | None, *, wrap: bytes | None = None) -> _Piece:
        from .values import pickle_value

        try:
            pickled = pickle_value(obj, name, scope)
        except Exception as error:
            line = user.source.line_of(name) if user is not None and user.source is not None else None
            raise ArgumentNotSerializable(name, _culprit(obj, error), line, str(error)) from error
        size = len(pickled.data)
        if size > LARGE_BYTES and name not in self._warned:
            self._warned.add(name)
            warnings.warn(
                f'"{name}" is {size / 2**20:.0f} MiB and is sent to every replica that runs '
                f'"{self._symbol or name}", and compared at every call. Make it in the preload instead '
                "(`@pool.preload`), so that each replica has it before the first call.",
                UserWarning,
                stacklevel=4,
            )
        digest = digest_of("value", pickled.data, wrap)
        type_name = _type_name(obj)
        return _Piece(
            scope=scope,
            seen=obj,
            definition=ValueDefinition(name, digest, pickled.data, type_name, wrap),
            early=pickled.early,
            shaping=pickled.early,
            names=pickled.early | pickled.late,
            mutable=not _is_fixed(obj),
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    """One captured name: its definition with a digest of itself alone, and the names it mentions."""

    scope: Names  # where its own names are looked up
    seen: Any  # the object that was captured
    definition: Definition
    early: frozenset[str] = frozenset()
    shaping: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()  # all of them, early and late
    modules: frozenset[str] = frozenset()
    mutable: bool = False  # compared by its pickle, not by identity
    source: Source | None = None

    def changed(self, obj: Any) -> bool:
        return obj is not self.seen or (self.mutable and self.changed_inside())

    def changed_inside(self) -> bool:
        from .values import pickle_value

        assert isinstance(self.definition, ValueDefinition), "only a value can change inside"
        try:
            return pickle_value(self.seen, self.definition.name, self.scope).data != self.definition.pickled
        except Exception:  # capturing it again says what is wrong, and with which name
            return True


class _Found:
    """One capture, and what must still be so for it to hold."""

    def __init__(self, pieces: dict[str, _Piece], watched: list[tuple[Names, str, Any]], closure: Closure) -> None:
        self.pieces = pieces
        self.closure = closure
        self._watched = tuple(watched)  # absent names too: one that is defined later shadows a builtin
        self._mutable = tuple(piece for piece in pieces.values() if piece.mutable)

    def changed(self) -> bool:
        for names, name, seen in self._watched:
            if names.get(name, _ABSENT) is not seen:
                return True
        return any(piece.changed_inside() for piece in self._mutable) if self._mutable else False


_ABSENT: Any = object()


def _differs(claim: tuple[Names, Any] | None, obj: Any) -> bool:
    """Functions of two namespaces may mean two objects by one name; a replica has one module for both."""
    return claim is not None and claim[1] is not obj


def _ordered(pieces: dict[str, _Piece], entry: str) -> Iterator[Definition]:
    """The definitions with their full digests, each after what it needs to be executed.

    That is its early names with everything that those use, as a decorator is called at once. A name that is
    only used when something runs comes later, or cycles would have no order: a base class may make
    instances of its subclass.
    """
    done: dict[str, None] = {}
    active: set[str] = set()

    def visit(name: str) -> None:
        if name in done or name in active or name not in pieces:
            return
        active.add(name)
        piece = pieces[name]
        for needed in sorted(piece.early):
            visit(needed)
        ready = all(needed in done or needed not in pieces for needed in piece.early)
        active.discard(name)
        if not ready:  # what it needs is being visited further up and will come back to it
            postponed.append(name)
            return
        done[name] = None
        for used in sorted(piece.names - piece.early):
            visit(used)

    postponed: list[str] = []
    for name in [entry, *sorted(pieces)]:
        visit(name)
    while postponed:
        waiting, postponed = postponed, []
        before = len(done)
        for name in waiting:
            visit(name)
        if len(done) == before:  # they need each other to be executed; the replica will say which
            done.update(dict.fromkeys(waiting))
            break

    digests: dict[str, str] = {}
    for name in done:
        piece = pieces[name]
        parts = [part for n in sorted(piece.shaping) if n in digests for part in (n, digests[n])]
        digests[name] = digest_of(piece.definition.digest, *parts) if parts else piece.definition.digest

    modules = {path for piece in pieces.values() for path in piece.modules}
    for path in sorted(modules):
        yield ImportDefinition(path, digest_of("import", path, None), path)
    for name in done:
        yield replace(pieces[name].definition, digest=digests[name])


def _source_piece(name: str, scope: Names, obj: Any, source: Source, wrap: bytes | None) -> _Piece:
    names = _globals_of(obj, source, scope)
    bound = scope.get(source.node.name, obj)
    source = source.without_decorators(_is_ours, names, certain=hasattr(type(bound), "__flyte_capture__"))
    mentioned = references(source, names)
    symbol = source.node.name
    digest = digest_of("source", source.lines, source.flags, symbol, wrap)
    return _Piece(
        scope=names,
        seen=obj,
        definition=SourceDefinition(
            name, digest, source.lines, source.filename, source.first_line, symbol, source.flags, wrap
        ),
        early=mentioned.early,
        shaping=mentioned.shaping,
        names=mentioned.early | mentioned.late,
        modules=mentioned.modules,
        source=source,
    )


def _globals_of(obj: Any, source: Source, scope: Names) -> Names:
    """Where the names in the source are looked up: not where those of a decorator's inner function are."""
    function = inspect.unwrap(_bare(obj)[0])
    if isinstance(function, types.FunctionType) and function.__code__.co_filename == source.filename:
        return function.__globals__
    return scope


def _import_piece(name: str, scope: Names, obj: Any, module: str, attribute: str | None) -> _Piece:
    digest = digest_of("import", module, attribute)
    return _Piece(scope=scope, seen=obj, definition=ImportDefinition(name, digest, module, attribute))


def _entry_name(function: Callable[..., Any], scope: Names) -> str:
    """The function's own name if that means this function; else one that no variable can have.

    A task's name means the task, which the function may call; and two tasks may call each other.
    """
    name: str = getattr(function, "__name__", type(function).__name__)
    if scope.get(name) is function:
        return name
    path: str = getattr(function, "__qualname__", name)
    code = getattr(inspect.unwrap(function), "__code__", None)
    line = "" if code is None or path.isidentifier() else code.co_firstlineno  # one lambda is not another
    return f"{path}:{line}"


def _scope_of(function: Any) -> Names:
    """The globals of the function that a partial, a method or a wrapper calls in the end."""
    function = inspect.unwrap(function)
    if isinstance(function, functools.partial):
        return _scope_of(function.func)
    function = getattr(function, "__func__", function)
    module = sys.modules.get(type(function).__module__)
    scope: Names = getattr(function, "__globals__", vars(module) if module else {})
    return scope


def _bare(obj: Any) -> tuple[Any, bytes | None, bool]:
    """The function inside a task, how to make it a task again on a replica, and whether it is one."""
    capture = getattr(type(obj), "__flyte_capture__", None)
    if capture is None:
        return obj, None, False
    bare, wrap = capture(obj)
    return bare, wrap, True


def _path_of_task(bare: Any, task: Any = None) -> tuple[str, str] | None:
    """Where to import the task from that a module made of this function."""
    module, path = getattr(bare, "__module__", None), getattr(bare, "__qualname__", None)
    if not isinstance(path, str) or not is_importable(module):
        return None
    found = vars(sys.modules[str(module)]).get(path)
    same = found is task if task is not None else found is not None and _bare(found)[0] is bare
    return (str(module), path) if same else None


def _source_of(obj: Any) -> Source | None:
    """The `def` behind a function or what wraps it, if it belongs to a notebook."""
    try:
        function = inspect.unwrap(obj)
    except ValueError:  # it wraps itself
        return None
    if not isinstance(function, types.FunctionType) or is_importable(function.__module__):
        return None
    return function_source(function)


def _is_ours(decorator: object) -> bool:
    owner = getattr(decorator, "__self__", None)
    return getattr(owner, "__flyte_decorates__", None) is True


def _is_plain(obj: Any) -> bool:
    return isinstance(obj, types.FunctionType) and not hasattr(obj, "__wrapped__")


def _module_of(obj: Any) -> str | None:
    names = getattr(obj, "__globals__", None)
    module = names.get("__name__") if isinstance(names, dict) else getattr(obj, "__module__", None)
    return module if isinstance(module, str) else None


_FIXED = (
    int, float, complex, bool, str, bytes, range, type(None), type(...), type(NotImplemented),
    type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, typing.TypeVar,
    enum.Enum, re.Pattern, pathlib.PurePath,
)  # fmt: skip


def _is_fixed(obj: Any) -> bool:
    """Whether the object means the same for as long as it is the same object."""
    if type(obj) in (tuple, frozenset):
        return all(map(_is_fixed, obj))
    if is_dispatcher(obj):
        return False
    return isinstance(obj, _FIXED) or hasattr(type(obj), "__flyte_capture__")


def _type_name(obj: Any) -> str:
    cls = type(obj)
    prefix = "" if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}."
    return prefix + cls.__qualname__


def _culprit(obj: Any, error: Exception) -> str:
    """The type that refused: something inside a list or an instance more often than the thing itself."""
    named = re.search(r"cannot pickle '([^']+)' object", str(error))
    name = _type_name(obj)
    return named[1] if named and named[1] != type(obj).__name__ else name
