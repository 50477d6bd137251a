"""What a task needs from its notebook, piece by piece: made by the client, applied by a replica.

Each definition has a digest of all that it means, so that a replica applies only what it has not got.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceDefinition:
    """A function or class, as the user wrote it.

    `lines` start at line `first_line` of `filename`, so that tracebacks show the user's own lines.
    `flags` are compiler flags (`from __future__ import annotations`). `wrap`, if any, is a pickled
    callable that gets the new object and returns what the name shall be bound to.
    """

    name: str
    digest: str
    lines: str
    filename: str
    first_line: int
    flags: int = 0
    wrap: bytes | None = None


@dataclass(frozen=True, slots=True)
class ImportDefinition:
    """`import module as name`, or `from module import attribute as name`."""

    name: str
    digest: str
    module: str
    attribute: str | None = None


@dataclass(frozen=True, slots=True)
class ValueDefinition:
    """A value, or code that has no source, pickled by cloudpickle."""

    name: str
    digest: str
    pickled: bytes
    type_name: str


Definition = SourceDefinition | ImportDefinition | ValueDefinition


@dataclass(frozen=True, slots=True)
class Closure:
    """`entry` and everything it refers to, in an order in which they can be defined one after the other.

    `digest` covers every definition: an equal digest means that nothing has to be sent.
    """

    entry: str
    digest: str
    definitions: tuple[Definition, ...]
