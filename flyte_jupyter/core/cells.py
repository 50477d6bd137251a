"""A cell of a notebook on its way to a replica, and what comes back of it. Pickled by value: both sides import this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Scope = Literal["fresh", "session", "replica"]

PARENT: Final = "flyte_jupyter:parent"
"""In place of the id of the message that the client's front end is running, which only the client knows: the
`msg_id` that an Output widget of a replica asks for."""

PEEK: Final = b"peek-"
"""How the routing id of a client begins that only looks into a replica."""


@dataclass(frozen=True, slots=True)
class CellRequest:
    """The arguments of a cell's CALL.

    Attributes:
        code: The cell's body as the user wrote it: magics, `!shell` and top-level `await` included.
        filename: Under which the user's own IPython knows the cell, for tracebacks.
        first_line: The line of the cell at which the body begins; 2 below a `%%flyte_task` on line 1.
        scope: Where the names live: dropped after the cell, kept for a session, or those of the replica itself.
        session: The session's name; "" for the notebook's own.
        push: Names and values put into the namespace first.
        definitions: Names that came by source, with the call's closure; put into the namespace, too.
        pull: Names whose values are wanted back.
        silent: The last expression is not displayed.
    """

    code: str
    filename: str
    first_line: int = 1
    scope: Scope = "fresh"
    session: str = ""
    push: Mapping[str, Any] = field(default_factory=dict)
    definitions: tuple[str, ...] = ()
    pull: tuple[str, ...] = ()
    silent: bool = False


@dataclass(frozen=True, slots=True)
class CellReply:
    """The value of a cell's OUTCOME.

    Attributes:
        pulled: The names of `CellRequest.pull` that exist after the cell.
        missing: Those that do not.
    """

    pulled: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
