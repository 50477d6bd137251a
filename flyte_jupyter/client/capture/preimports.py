"""Which modules a zygote shall have imported: those of installed packages that the code of a preload imports."""

from __future__ import annotations

import ast
import importlib.util
import textwrap
from collections.abc import Iterator
from functools import cache

from ...core.definitions import Closure, ImportDefinition, texts_of


def imported_modules(closure: Closure) -> set[str]:
    """Names of installed packages' modules that the closure's definitions import, at their top or inside."""
    found: set[str] = set()
    for definition in closure.definitions:
        if isinstance(definition, ImportDefinition):
            found.add(definition.module)
        for text in texts_of(definition):
            found.update(_inside(text.lines))
    return {name for name in found if is_installed(name.partition(".")[0])}


@cache
def is_installed(package: str) -> bool:
    """Whether it comes from where packages are installed. A file beside the notebook changes too often to be kept."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec else []
    return any("site-packages" in place or "dist-packages" in place for place in places)


def _inside(lines: str) -> Iterator[str]:
    try:
        tree = ast.parse(textwrap.dedent(lines))
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
