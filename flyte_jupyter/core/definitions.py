"""What a task needs from its notebook, piece by piece: made by the client, applied by a replica.

Each definition has a digest of all that it means, so that a replica applies only what it has not got.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

PRELOAD_MODULE = "flyte_preload"
NOTEBOOK_ID = "__flyte_notebook__"
"""The global in a replica's notebook module that holds the notebook's id: a task that calls another task
sends it on, so that both share one module."""


def notebook_module_name(notebook_id: str) -> str:
    """The module that holds a notebook's names on every replica; the same everywhere, so pickles agree."""
    return f"notebook_{hashlib.blake2b(notebook_id.encode(), digest_size=4).hexdigest()}"


def is_notebook_module(module: str) -> bool:
    """Whether a replica made this module from a notebook's names: no other process can import it."""
    prefix, _, digits = module.partition("_")
    return module == PRELOAD_MODULE or (
        prefix == "notebook" and len(digits) == 8 and all(digit in "0123456789abcdef" for digit in digits)
    )


def module_at_client(module: str) -> str:
    """What a replica's module is called in the notebook itself, where such names live in `__main__`."""
    return "__main__" if is_notebook_module(module) else module


def notebook_attribute(path: str) -> Any:
    """Stands in a pickle for `path` ("Config", "Outer.Inner") of the notebook, whichever module that is.

    Never called: a replica's unpickler puts its own in its place (`NotebookModule.find_class`).
    """
    raise LookupError(f"{path!r} belongs to a notebook and can only be unpickled by a replica that knows it")


def notebook_globals() -> dict[str, Any]:
    """Stands in a pickle for the notebook's globals; see `notebook_attribute`."""
    raise LookupError("a notebook's function can only be unpickled by a replica that knows the notebook")


def digest_of(*parts: str | bytes | int | None) -> str:
    """One digest of several parts, in which no part can run into the next."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class SourceDefinition:
    """A function or class, as the user wrote it.

    `lines` start at line `first_line` of `filename` and keep their indentation, so that tracebacks show the
    user's own lines; neither place is part of the digest: moving a function within its cell keeps its caches.
    `defines` is the name in the source, `name` what it is bound to. `flags` are compiler flags
    (`from __future__ import annotations`). `wrap`, if any, is a pickled callable that gets the new object and
    returns what the name shall be bound to.
    """

    name: str
    digest: str
    lines: str
    filename: str
    first_line: int
    defines: str
    flags: int = 0
    wrap: bytes | None = None


@dataclass(frozen=True, slots=True)
class ImportDefinition:
    """`import module as name`, or `from module import attribute as name`; `attribute` may be dotted.

    A dotted `name` binds nothing: it is a submodule that must have been imported (`import xml.dom`).
    """

    name: str
    digest: str
    module: str
    attribute: str | None = None


@dataclass(frozen=True, slots=True)
class ValueDefinition:
    """A value, or code that has no source, pickled by cloudpickle; `wrap` as in `SourceDefinition`."""

    name: str
    digest: str
    pickled: bytes
    type_name: str
    wrap: bytes | None = None


Definition = SourceDefinition | ImportDefinition | ValueDefinition


@dataclass(frozen=True, slots=True)
class Closure:
    """`entry` and everything it refers to, in an order in which they can be defined one after the other.

    `entry` is "" if it is only a set of names. `manifest` names every definition with its digest, also those
    that `only` left out; `digest` covers the manifest: an equal digest means that nothing has to be sent.
    """

    entry: str
    digest: str
    definitions: tuple[Definition, ...]
    manifest: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, entry: str, definitions: Iterable[Definition]) -> Closure:
        definitions = tuple(definitions)
        manifest = tuple(sorted((definition.name, definition.digest) for definition in definitions))
        digest = digest_of(entry, *(part for pair in manifest for part in pair))
        return cls(entry, digest, definitions, manifest)

    def only(self, names: Collection[str]) -> Closure:
        """The same closure, carrying just these definitions: what a replica said it is missing."""
        return replace(self, definitions=tuple(d for d in self.definitions if d.name in names))

    def beyond(self, digests: Mapping[str, str]) -> Closure:
        """The same closure, less what a replica has: `NotebookModule.digests`, where "" is never replaced."""
        has = {name for name, digest in self.manifest if digests.get(name) == digest}
        has |= {name for name, digest in digests.items() if digest == "" and name != self.entry}
        return self.only({name for name, _ in self.manifest} - has)
