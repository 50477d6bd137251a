"""Makes the piece of one object: by its place in a module, by value or, where a library asks for it, by its text."""

from __future__ import annotations

import collections
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ...core.definitions import ORIGIN, ImportDefinition, Mark, SourceDefinition, Text, ValueDefinition, digest_of
from ...errors import ArgumentNotSerializable
from ..identity import process_token
from ..warning import warn
from .digest import content_digest
from .piece import NOTHING, Names, Piece, bare_of, is_value, links_of, members_of, serial_of, source_of
from .pieces import Pieces
from .places import importable_path, is_dispatcher, is_importable, path_of_task
from .source import Source, class_source, decorated_source, references, text_of
from .watch import Watch, is_fixed

if TYPE_CHECKING:
    from .values import Pickled

LARGE_BYTES: Final = 10 * 1024 * 1024
"""A captured value of more than this warns: it travels to every replica, and is compared at every call."""


class Maker:
    """Makes the piece of one object."""

    def __init__(
        self,
        scope: Pieces,
        name: str,
        obj: Any,
        symbol: str,
        user: Piece | None,
        known: Piece | None,
        members: tuple[str, ...] = (),
    ) -> None:
        self._members = members
        self._scope = scope
        self._names = scope.names
        self._name = name
        self._obj = obj
        self._symbol = symbol
        self._user = user
        self._known = known

    def piece(self) -> Piece:
        """For an object that has a name."""
        obj = self._obj
        if isinstance(obj, types.ModuleType):
            if is_importable(obj.__name__) or obj.__name__ == "__main__":
                return self._import(obj.__name__, None)
            return self._value(())
        bare, is_task = bare_of(obj)
        path = path_of_task(bare, obj) if is_task else importable_path(obj)
        if path is not None:
            return self._import(*path)
        return self._value(())

    def entry(self, owners: tuple[Piece, ...]) -> Piece:
        """For the function that is called, where its name means something else: a task, mostly."""
        function = self._obj
        path = importable_path(function) or path_of_task(function)
        if path is not None:
            self._name = _entry_name(function, self._names, "")
            return self._import(*path)
        self._name = ":"
        made = self._value(owners)
        made.name = _entry_name(function, self._names, made.definition.mark.content)
        made.definition = replace(made.definition, name=made.name)
        return made

    def _import(self, module: str, attribute: str | None) -> Piece:
        imports = frozenset() if attribute is None else frozenset([module])
        return Piece(self._name, self._obj, import_definition(self._name, module, attribute), imports=imports)

    # --- by value

    def _value(self, owners: tuple[Piece, ...]) -> Piece:
        from .values import NeedsSource

        try:
            try:
                return self._by_value(owners)
            except NeedsSource:
                found = self._by_source()
                return self._by_value(owners, forced=True) if found is None else found
        except ArgumentNotSerializable:
            raise
        except Exception as error:
            try:
                by_source = self._by_source()
            except Exception:
                by_source = None
            if by_source is not None:
                return by_source
            line = None if self._user is None else self._user.line_of(self._name)
            raise ArgumentNotSerializable(self._shown, _culprit(self._obj, error), line, str(error)) from error

    @property
    def _shown(self) -> str:
        return self._symbol if self._name == ":" else self._name

    def _by_value(self, owners: tuple[Piece, ...], *, forced: bool = False) -> Piece:
        pickled = self._pickled(name=self._name, forced=forced)
        if not owners and pickled.found and self._name != ":":
            owners = tuple(self._scope.owners(pickled, self._name, self._symbol))
            needed = {owner.name for owner in owners}
            together = self._scope.circle(self._name, needed | pickled.early)
            # Those that only name each other find each other while they are made; parts do not.
            known = (self._scope.pieces.get(name) for name in together if name != self._name)
            if not needed.isdisjoint(together) or any(each is not None and each.owners for each in known):
                return self._together(together)
        if owners:
            pickled = self._pickled(name=self._name, forced=forced, links=links_of(owners))
        return self._piece_of(pickled, owners)

    def _pickled(self, **options: Any) -> Pickled:
        from .values import pickle_value

        return pickle_value(self._obj, self._names, aliases=self._scope.aliases, **options)

    def _together(self, names: list[str]) -> Piece:
        """Objects that need each other's parts go in one pickle; each of them then is a part of that."""
        scope = self._scope
        kept = [name for name in names if name == self._name or is_value(scope.pieces.get(name))]
        members = tuple(sorted({each for name in kept for each in (members_of(scope.pieces.get(name)) or (name,))}))
        for name in kept:
            if (old := scope.pieces.get(name)) is not None and old.members:
                scope.dissolve(old)
        for name in members:
            scope.pieces.pop(name, None)
        objects = {name: self._names[name] for name in members if name in self._names}
        group = Maker(scope, "+".join(objects), objects, self._symbol, self._user, None, tuple(objects)).group()
        scope.pieces[group.name] = group
        made: dict[str, Piece] = {}
        for name, obj in objects.items():
            made[name] = Maker(scope, name, obj, self._symbol, self._user, None, tuple(objects)).part_of(group)
            scope.pieces[name] = made[name]
        scope.generation += 1
        return made[self._name]

    def group(self) -> Piece:
        """All objects of a dictionary, as one piece."""
        pickled = self._pickled(name=self._name)
        owners = tuple(
            owner for owner in self._scope.owners(pickled, self._name, self._symbol) if owner.name not in self._members
        )
        if owners:
            pickled = self._pickled(name=self._name, links=links_of(owners))
        made = self._piece_of(pickled, owners)
        made.name = f"{self._name}:"
        made.definition = replace(made.definition, name=made.name)
        made.members = self._members
        made.names |= frozenset(self._members)  # its code may look for any of them
        made.named = {**made.named, **self._obj}
        return made

    def part_of(self, group: Piece) -> Piece:
        """An object that the group has made."""
        made = self._piece_of(self._pickled(links=links_of((group,))), (group,))
        position, _ = group.found[id(self._obj)]
        assert isinstance(made.definition, ValueDefinition)
        made.definition = replace(made.definition, part_of=(group.name, position))
        return made

    def _piece_of(self, pickled: Pickled, owners: tuple[Piece, ...]) -> Piece:
        self._warn(len(pickled.data))
        content = content_digest(pickled.data, has_code=bool(pickled.kept))
        own = set(self._name.split("+"))
        serials = self._serials(pickled.watch.parts)
        epoch, identity = self._epoch(content, serials)
        early, shaping = frozenset(pickled.early), frozenset(pickled.shaping)
        definition = ValueDefinition(
            self._name,
            Mark(content, epoch),
            pickled.data,
            _type_name(self._obj),
            identity,
            tuple(pickled.places),
            _kept(pickled),
            _texts(pickled),
            early - own,
            frozenset(pickled.first),
            shaping - own,
            frozenset(pickled.linked),
            frozenset(early | pickled.late) - own,
            root=pickled.root,
        )
        return Piece(
            self._name,
            self._obj,
            definition,
            names=definition.uses,
            modules=frozenset(pickled.modules),
            imports=frozenset(pickled.imports),
            watch=None if is_fixed(self._obj) else pickled.watch,
            found=pickled.found,
            owners=owners,
            serials=serials,
            caches=pickled.caches,
            named=pickled.named,
        )

    def _serials(self, parts: Iterable[Any]) -> dict[int, tuple[Any, int]]:
        known = {} if self._known is None else self._known.serials
        return {id(part): (part, serial_of(part, known)) for part in parts}

    def _epoch(self, content: str, serials: dict[int, tuple[Any, int]]) -> tuple[str, str]:
        # A replica that calls a task speaks for its notebook: what it has from there, and has left as it was, is that.
        origin = self._names.get(ORIGIN)
        received = None if origin is None else origin.received(self._name, self._obj)
        if received is not None and received[0].content == content:
            return received[0].epoch, received[1]
        token = process_token()
        root = serials.get(id(self._obj))
        identity = "" if root is None else f"{token}:{root[1]}"
        numbers = [serial for _, serial in serials.values()] or [-1, self._scope.bound.get(self._name, 0)]
        return digest_of(token, *numbers), identity

    def _warn(self, size: int) -> None:
        if size > LARGE_BYTES and self._name not in self._scope.warned:
            self._scope.warned.add(self._name)
            warn(
                f'"{self._shown}" is {size / 2**20:.0f} MiB and is sent to every replica that runs '
                f'"{self._symbol or self._shown}", and compared at every call. Make it in the preload instead '
                "(`@pool.preload`), so that each replica has it before the first call."
            )

    # --- by its text

    def _by_source(self) -> Piece | None:
        from .values import bytes_of

        bare, is_task = bare_of(self._obj)
        wrap = type(self._obj).__flyte_capture__(self._obj)[1] if is_task else None
        source = self._named_source(bare, is_task)
        if source is None:
            return None
        names = _globals_of(bare, source, self._names)
        if names is not self._names:  # its names mean something else
            return None
        bound = names.get(source.node.name, self._obj)
        source = source.without_decorators(_is_ours, names, certain=hasattr(type(bound), "__flyte_capture__"))
        mentions = references(source, names)
        is_class = isinstance(bare, type)  # a function's closure may hold anything
        watch = Watch(functools.partial(bytes_of, self._names, "", None, {}) if is_class else lambda value: b"")
        state, late = self._state(bare, source, watch)
        content = digest_of(
            "source", source.lines, source.flags, source.node.name, wrap, None if state is None else state.mark.content
        )
        serials = self._serials(watch.parts)
        epoch, identity = self._epoch(content, serials)
        own = {self._name, source.node.name}
        early = (mentions.early | (frozenset() if state is None else state.early)) - own
        definition = SourceDefinition(
            self._name,
            Mark(content, epoch),
            Text(source.filename, source.first_line, source.lines),
            source.node.name,
            source.flags,
            wrap,
            state,
            identity,
            early,
            early,
            mentions.shaping - own,
            frozenset(),
            early | mentions.late | late,
        )
        return Piece(
            self._name,
            self._obj,
            definition,
            names=definition.uses,
            modules=mentions.modules,
            watch=watch,
            serials=serials,
            caches=not is_class,
            source=source,
        )

    def _named_source(self, obj: Any, is_task: bool) -> Source | None:
        """The text whose execution makes a thing like `obj`, if there is one."""
        name = getattr(obj, "__name__", "") if self._name == ":" or is_task else self._name
        if isinstance(obj, type):
            source = None if is_importable(obj.__module__) else class_source(obj)
            return source if source and source.node.name == name else None
        if not callable(obj) or is_dispatcher(obj):
            return None
        source = source_of(obj)
        if source is not None and (is_task or source.node.name == name):
            return source if _is_plain(obj) or source.decorated else None  # else wrapped by hand
        if getattr(obj, "__name__", None) == name and source is None and _is_plain(obj):
            return None
        return decorated_source(name, _module_of(obj))

    def _state(self, obj: Any, source: Source, watch: Watch) -> tuple[ValueDefinition | None, frozenset[str]]:
        """What the notebook has set on it since, or evaluated then."""
        state: Names
        if isinstance(obj, type):
            watch.attributes(obj)
            held = self._held_by(obj, source)
            for value in held.values():
                watch.value(value)
            state = {"attributes": {**_set_since(obj, source), **held}}
        else:
            try:
                function = inspect.unwrap(obj)
            except ValueError:
                function = obj
            if not isinstance(function, types.FunctionType):
                return None, frozenset()
            watch.function(function)
            state = {"defaults": function.__defaults__, "keywords": function.__kwdefaults__}
        if not any(state.values()):
            return None, frozenset()
        from .values import pickle_value

        pickled = pickle_value(state, self._names, name="")
        definition = ValueDefinition(
            self._name,
            Mark(content_digest(pickled.data, has_code=True)),
            pickled.data,
            "dict",
            places=tuple(pickled.places),
            kept=_kept(pickled),
            texts=_texts(pickled),
            early=frozenset(pickled.early),
        )
        return definition, frozenset(pickled.late)

    def _held_by(self, cls: type, source: Source) -> Names:
        """Lists, dictionaries and sets on a class: its text says what was in them at first."""
        from .values import bytes_of

        bound = None if type(cls) is type else source.bound()  # a metaclass keeps its own things on a class
        found: Names = {}
        for name, value in vars(cls).items():
            if type(value) not in _CONTAINERS or name[:1] == name[-1:] == "_":
                continue
            if bound is None or name in bound:
                with suppress(Exception):  # the text makes it, as it makes what it holds
                    bytes_of(self._names, "", None, {}, value)
                    found[name] = value
        return found


def _kept(pickled: Pickled) -> tuple[tuple[str, str], ...]:
    from cloudpickle.cloudpickle import _get_or_create_tracker_id

    token = process_token()
    return tuple(
        ("", "") if obj is None else (
            f"{token}:{serial_of(obj, {})}",
            _get_or_create_tracker_id(obj) if isinstance(obj, type | typing.TypeVar) else "",
        )
        for obj in pickled.kept
    )  # fmt: skip


def _set_since(cls: type, source: Source) -> Names:
    """Functions and plain values of a class that its text does not make."""
    end = source.node.end_lineno or 0
    found: Names = {}
    constants = source.constants()
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        if isinstance(function, types.FunctionType):
            code = function.__code__
            written = code.co_filename == source.filename and source.first_line <= code.co_firstlineno <= end
            if not written and not is_importable(function.__module__):
                found[name] = value
        elif name[:2] != "__" and type(value) in _CONSTANTS:
            written_value = constants.get(name, NOTHING)
            if type(written_value) is not type(value) or written_value != value:
                found[name] = value
    return found


def import_definition(name: str, module: str, attribute: str | None) -> ImportDefinition:
    return ImportDefinition(name, Mark(digest_of("import", module, attribute)), module, attribute)


def _texts(pickled: Pickled) -> tuple[Text, ...]:
    texts = (text_of(code) for code in pickled.codes)
    return tuple(dict.fromkeys(text for text in texts if text is not None))


_CONTAINERS: Final = frozenset(
    {list, dict, set, collections.deque, collections.defaultdict, collections.Counter, collections.OrderedDict}
)
_CONSTANTS: Final = frozenset({int, float, complex, bool, str, bytes, type(None)})


def _entry_name(function: Callable[..., Any], scope: Names, content: str) -> str:
    """The function's own name if that means this function; else one that no variable can have.

    A task's name means the task, which the function may call; two tasks may call each other; and of a name that was
    bound to several tasks, each is another function.
    """
    name: str = getattr(function, "__name__", type(function).__name__)
    if scope.get(name) is function:
        return name
    path: str = getattr(function, "__qualname__", name)
    found = scope.get(name)
    return f"{path}:" if found is not None and bare_of(found)[0] is function else f"{path}:{content[:12]}"


def _globals_of(obj: Any, source: Source, scope: Names) -> Names:
    """Where the names in the source are looked up: not where those of a decorator's inner function are."""
    try:
        function = inspect.unwrap(obj)
    except ValueError:
        return scope
    if isinstance(function, types.FunctionType) and function.__code__.co_filename == source.filename:
        return function.__globals__
    return scope


def _is_ours(decorator: object) -> bool:
    owner = getattr(decorator, "__self__", None)
    return getattr(owner, "__flyte_decorates__", None) is True


def _is_plain(obj: Any) -> bool:
    return isinstance(obj, types.FunctionType) and not hasattr(obj, "__wrapped__")


def _module_of(obj: Any) -> str | None:
    names = getattr(obj, "__globals__", None)
    module = names.get("__name__") if isinstance(names, dict) else getattr(obj, "__module__", None)
    return module if isinstance(module, str) else None


def _type_name(obj: Any) -> str:
    cls = type(obj)
    prefix = "" if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}."
    return prefix + cls.__qualname__


def _culprit(obj: Any, error: Exception) -> str:
    """The type that refused: something inside a list or an instance more often than the thing itself."""
    named = re.search(r"cannot pickle '([^']+)' object", str(error))
    name = _type_name(obj)
    return named[1] if named and named[1] != type(obj).__name__ else name
