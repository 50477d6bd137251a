"""Every module of names on a replica: one for the preload, and one for each process that makes calls."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from ..core.definitions import Closure
from ..memory.mapping import mappings
from .namespace import NotebookModule
from .process import Process


class Namespaces:
    """Every module of names on this replica."""

    def __init__(self) -> None:
        self.preload = NotebookModule("preload")
        self._notebooks: dict[tuple[str, str], NotebookModule] = {}
        self.in_use: Callable[[NotebookModule], bool] = lambda module: False
        """Whether something runs in that module."""

    def define_preload(self, closure: Closure) -> Any:
        """Define the preload; running what this returns is the caller's part, before any notebook comes."""
        return self.preload.define(closure)

    def notebook(self, notebook_id: str, token: str = "", pid: int = 0) -> NotebookModule:
        """The module of this process; a new one starts with the names that the preload has made.

        A process that has ended leaves its caches to the next one of its notebook.
        """
        found = self._notebooks.get((notebook_id, token))
        if found is not None:
            return found
        process = Process.of(token, pid)
        ended = [
            key
            for key, module in self._notebooks.items()
            if key[0] == notebook_id and module.process.has_ended() and not self.in_use(module)
        ]
        if ended:
            found = self._notebooks[ended[-1]]
            for key in ended:
                del self._notebooks[key]
            found.take_over(process)
        else:
            found = NotebookModule(notebook_id, process, self.preload)
        self._notebooks[notebook_id, token] = found
        return found

    def reloaded(self, modules: frozenset[str]) -> None:
        """These modules have been loaded anew."""
        for module in self._notebooks.values():
            module.reloaded(modules)

    def process_ended(self, token: str) -> bool:
        """Let go of the values that it had here; False if something of it still runs."""
        found = [module for key, module in self._notebooks.items() if key[1] == token]
        for module in found:
            if self.in_use(module):
                return False
            module.clear()
        gc.collect()
        mappings.close()  # of what it had sent, and is kept for its next call
        return True
