"""`#| flyte_task: gpu -o y`, the spelling of a task cell that is plain Python; and a word about misplaced magics.

Linters, formatters and type checkers skip a cell that begins with `%%`, and read one that begins with a comment.
"""

from __future__ import annotations

import ast
import re
from typing import Final

from IPython.core.error import UsageError

DIRECTIVE: Final = re.compile(r"#\|\s*flyte_(task|preload):[ \t]*(.*)")
MAGIC: Final = re.compile(r"%%flyte_(task|preload)\b")


def rewrite(lines: list[str]) -> list[str]:
    """An input transformer: the directive becomes the magic.

    Example:
        >>> rewrite(["#| flyte_task: gpu -o y\\n", "y = 1\\n"])
        ['%%flyte_task gpu -o y\\n', 'y = 1\\n']
    """
    found = DIRECTIVE.match(lines[0]) if lines else None
    if found is None:
        return lines
    return [f"%%flyte_{found[1]} {found[2]}".rstrip() + "\n", *lines[1:]]


def refuse_misplaced(lines: list[str]) -> list[str]:
    """An input transformer that changes nothing.

    Raises: UsageError if a task cell's magic is not on the first line, where IPython would look for it in vain.
    """
    if lines and not lines[0].startswith("%%"):  # in another magic's body it may mean anything
        for number, line in enumerate(lines[1:], 2):
            found = MAGIC.match(line)
            if found is not None and not _is_python("".join(lines)):
                raise UsageError(
                    f"%%flyte_{found[1]} is on line {number}; it has to be the first line of its cell. "
                    "Move what is above it into another cell."
                )
    return lines


refuse_misplaced.has_side_effects = True  # type: ignore[attr-defined] # not to be asked at each key of a prompt


def _is_python(code: str) -> bool:
    """Then the line is part of a string."""
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True
