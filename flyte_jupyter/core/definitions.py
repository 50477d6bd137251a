"""What a task needs from its notebook, piece by piece: made by the client, applied by a replica.

A definition is an object, by value: a replica makes it from what the object *is*, and does not run again what once made
it. Each is marked, so that a replica applies only what it has not got.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

ORIGIN: Final = "__flyte_notebook__"
"""The global in a replica's notebook module that holds the module's `Origin`."""


class Mark(NamedTuple):
    """What tells a definition from another of the same name.

    Attributes:
        content: Digest of all that it means: equal in every process and wherever the code stands. "" says that the
            notebook has no such name.
        epoch: Digest of which mutable objects these are, in which process: an equal list that was made anew, or by
            another process, starts anew on a replica, too; so does a number that a cell has bound again. "" for an
            import, and for a preload's.
        deep: Of what holds a cache: digest of the content of all that it uses. A new cache may only take over what an
            older one holds if both would compute the same.
    """

    content: str
    epoch: str = ""
    deep: str = ""

    def covers(self, wanted: Mark) -> bool:
        """Whether a replica that has this one needs nothing for the other. What a preload made has no epoch."""
        return self.content == wanted.content and self.epoch in (wanted.epoch, "")


ABSENT: Final = Mark("")


class Text(NamedTuple):
    """Lines of the user's for tracebacks: those from `first_line` on of `filename`."""

    filename: str
    first_line: int
    lines: str


@dataclass(frozen=True, slots=True)
class ImportDefinition:
    """`import module as name`, or `from module import attribute as name`; `attribute` may be dotted.

    A dotted `name` binds nothing: it is a submodule that must have been imported (`import xml.dom`).
    """

    name: str
    mark: Mark
    module: str
    attribute: str | None = None
    early: frozenset[str] = frozenset()
    first: frozenset[str] = frozenset()
    shaping: frozenset[str] = frozenset()
    linked: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ValueDefinition:
    """Anything by value: a list, a function, a class.

    Attributes:
        identity: Which object of which process it is: as long as that is the same, a class stays one class on a
            replica, whatever is set on it. "" where that does not matter.
        pickled: Made by `client.capture.values`, loaded by `kernel.rebuilding`.
        places: Of each code object inside: its file and first line. Not part of the mark, so that moving a function
            keeps its caches.
        kept: Of each function, class and the like inside: which object of which process it is, so that it stays one
            object on a replica; and cloudpickle's id of a class, by which an instance finds back to it.
        texts: The user's lines, for tracebacks and `inspect`.
        early: Names that must be defined before it is loaded; `first` ones before that even begins.
        shaping: Those of them whose object it holds: when a replica gets another object of that name, this one is
            made again.
        linked: Names of whose object it holds parts: when that is made again, so is this one.
        uses: All names that it mentions.
        part_of: The other definition, and the position in its pickle, that makes the object; then that is all.
        root: The position of the object itself among those that the pickle numbers; -1 if it has none.
    """

    name: str
    mark: Mark
    pickled: bytes
    type_name: str
    identity: str = ""
    places: tuple[tuple[str, int], ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    texts: tuple[Text, ...] = ()
    early: frozenset[str] = frozenset()
    first: frozenset[str] = frozenset()
    shaping: frozenset[str] = frozenset()
    linked: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()
    part_of: tuple[str, int] | None = None
    root: int = -1


@dataclass(frozen=True, slots=True)
class SourceDefinition:
    """A function or class as the user wrote it, for what cannot go by value: it is executed on the replica.

    `text` keeps its indentation; neither its file nor its first line is part of the mark. `defines` is the name in
    the text, `name` what it is bound to. `flags` are compiler flags (`from __future__ import annotations`).
    `wrap`, if any, is a pickled callable that gets the new object and returns what the name shall be bound to.
    `state` is what the notebook has set on the object since, or evaluated then: a dict by value. The other attributes
    are those of `ValueDefinition`.
    """

    name: str
    mark: Mark
    text: Text
    defines: str
    flags: int = 0
    wrap: bytes | None = None
    state: ValueDefinition | None = None
    identity: str = ""
    early: frozenset[str] = frozenset()
    first: frozenset[str] = frozenset()
    shaping: frozenset[str] = frozenset()
    linked: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class AbsentDefinition:
    """The notebook has no such name (any more): a replica that had it from a definition lets go of it."""

    name: str
    mark: Mark = ABSENT
    early: frozenset[str] = frozenset()
    first: frozenset[str] = frozenset()
    shaping: frozenset[str] = frozenset()
    linked: frozenset[str] = frozenset()
    uses: frozenset[str] = frozenset()


Definition = ImportDefinition | ValueDefinition | SourceDefinition | AbsentDefinition


def texts_of(definition: Definition) -> tuple[Text, ...]:
    """The user's lines that a definition comes from."""
    match definition:
        case ValueDefinition(texts=texts):
            return texts
        case SourceDefinition(text=text, state=state):
            return (text, *(() if state is None else state.texts))
    return ()


@dataclass(frozen=True, slots=True)
class Closure:
    """`entry` and everything it refers to, in an order in which they can be defined one after the other.

    `entry` is "" if it is only a set of names. `manifest` marks every definition, also those that `beyond` left out;
    `digest` covers the manifest: an equal digest means that nothing has to be sent.
    """

    entry: str
    digest: str
    definitions: tuple[Definition, ...]
    manifest: Mapping[str, Mark] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: str, definitions: Iterable[Definition]) -> Closure:
        definitions = tuple(definitions)
        manifest = {definition.name: definition.mark for definition in definitions}
        parts = (part for name in sorted(manifest) for part in (name, *manifest[name]))
        return cls(entry, digest_of(entry, *parts), definitions, manifest)

    def beyond(self, has: Mapping[str, Sequence[str] | None]) -> Closure:
        """The same closure, less what a replica has; see `NotebookModule.marks`.

        A name that it has with no mark is the preload's, and stays; but the entry is always the notebook's own.
        """
        wanted = [d for d in self.definitions if d.name == self.entry or has.get(d.name, ABSENT) is not None]
        sent = {d.name for d in wanted if not Mark(*(has.get(d.name) or ABSENT)).covers(d.mark)}
        # What holds an object of another definition goes along with it: it may be given another one.
        while more := {d.name for d in wanted if d.name not in sent and not sent.isdisjoint(d.shaping | d.linked)}:
            sent |= more
        return replace(self, definitions=tuple(d for d in self.definitions if d.name in sent))


def digest_of(*parts: str | bytes | int | None) -> str:
    """One digest of several parts, in which no part can run into the next."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()


def make(kind: str, *arguments: Any) -> Any:
    """Stands in the pickle of a definition for a part that a replica makes: `kernel.rebuilding` puts its own in place.

    Raises: LookupError wherever else it is loaded.
    """
    raise LookupError(f"a part of a notebook ({kind}) can only be loaded by a replica that knows the notebook")


def fill(made: Any, state: Any) -> None:
    """Stands for what gives such a part its state; see `make`."""
    raise LookupError("a part of a notebook can only be loaded by a replica that knows the notebook")
