"""A `%%flyte_preload` cell as a loader: a function that runs the cell's text among the preload's names."""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Callable
from typing import Any, Final

NAME: Final = "preload_cell"

_BODY: Final = """\
{define} {NAME}():
    import linecache
    text, name = {code!r}, {filename!r}
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name
    {run}eval(compile(text, name, "exec", {flags}), globals())
"""


def make_loader(shell: Any, cell: str, filename: str) -> Callable[[], Any]:
    """The loader of a pool whose set-up is this cell; what it assigns is there for every task cell.

    Its magics are those of the notebook, and it may await.
    """
    code = "\n" + shell.transform_cell(cell)  # as below the magic
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    awaits = compile(code, filename, "exec", flags, dont_inherit=True).co_flags & inspect.CO_COROUTINE
    source = _BODY.format(
        NAME=NAME,
        code=code,
        filename=filename,
        flags=flags if awaits else 0,
        define="async def" if awaits else "def",
        run="await " if awaits else "",
    )
    # Found there when it is captured, as a function of a notebook's cell is.
    place = f"<flyte_preload {filename}>"
    linecache.cache[place] = len(source), None, source.splitlines(keepends=True), place
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, place, "exec", dont_inherit=True), names)
    loader: Callable[[], Any] = names[NAME]
    return loader
