"""Which modules the code of a preload imports: installed packages', which a zygote shall have, and the user's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from functools import cache

from ...core.definitions import Closure, ImportDefinition, ValueDefinition, texts_of
from ...modules import Table, imports_of


def imported_modules(closure: Closure) -> set[str]:
    """Names of installed packages' modules that the closure's definitions import, at their top or inside."""
    found: set[str] = set()
    for definition in closure.definitions:
        if isinstance(definition, ImportDefinition):
            found.add(definition.module)
        for text in texts_of(definition):
            found.update(imports_of(text.lines))
    return {name for name in found if is_installed(name.partition(".")[0])}


def users_modules(closures: Iterable[Closure], table: Table) -> Table:
    """Of the user's modules, those that the closures may import, and what these import."""
    names: set[str] = set()
    for definition in (each for closure in closures for each in closure.definitions):
        if isinstance(definition, ImportDefinition):
            names.add(definition.module)
        for text in texts_of(definition):
            names.update(imports_of(text.lines, attributes=True))
        if isinstance(definition, ValueDefinition):
            names.update(name for name in table.modules if name.encode() in definition.pickled)
    return Table.of({name: table.modules[name] for name in table.reachable(names)})


@cache
def is_installed(package: str) -> bool:
    """Whether it comes from where packages are installed. A file beside the notebook changes too often to be kept."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec else []
    return any("site-packages" in place or "dist-packages" in place for place in places)
