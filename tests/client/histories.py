"""A notebook's history in two worlds: plain Python, and a replica that gets each change as definitions.

Both halves of the package are here in one process: the capture sees the notebook's names, the replica's module is
another dictionary. A call must give on the replica what the same function gives in the notebook.
"""

from __future__ import annotations

import linecache
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flyte_jupyter.client import identity
from flyte_jupyter.client.capture import Captured, scope
from flyte_jupyter.core import context
from flyte_jupyter.core.definitions import Closure
from flyte_jupyter.kernel import process as processes
from flyte_jupyter.kernel import rebuilding
from flyte_jupyter.kernel.namespace import NotebookModule
from flyte_jupyter.kernel.namespaces import Namespaces

_cells = iter(range(1, 1_000_000_000))


class Process:
    """A kernel or a script: its own names, and a token that no other has."""

    def __init__(self, number: int) -> None:
        self.token = f"process {number}"
        self.pid = number
        self.module = types.ModuleType("__main__")
        self.names: dict[str, Any] = vars(self.module)
        self.cells: list[str] = []
        self._captured: dict[int, tuple[Any, Captured]] = {}

    def captured(self, function: Any) -> Captured:
        known = self._captured.get(id(function))
        if known is None:
            known = self._captured[id(function)] = function, Captured(function)
        return known[1]

    def cell(self, text: str) -> BaseException | None:
        """Run a cell; its error, if it raises one."""
        self.cells.append(text)
        filename = f"<cell {next(_cells)}>"
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
        try:
            with main(self.module):
                exec(compile(text, filename, "exec", dont_inherit=True), self.names)
        except Exception as error:
            return error
        return None


class Worlds:
    """Some processes of one notebook, and a replica."""

    def __init__(self) -> None:
        self.namespaces = Namespaces()
        self._number = 0
        self.ended: set[int] = set()
        self.process = self.start()

    def start(self) -> Process:
        self._number += 1
        return Process(self._number)

    def restart(self) -> None:
        self.ended.add(self.process.pid)
        self.process = self.start()

    def replica(self, process: Process) -> NotebookModule:
        return self.namespaces.notebook("notebook", process.token, process.pid)

    def there(self, name: str, process: Process | None = None) -> Callable[..., Any]:
        """The function of that name on the replica, as a call of it finds it now."""
        process = process or self.process
        module = self.replica(process)
        with speaking(process):
            closure = process.captured(process.names[name]).closure()
        with main(module.module):
            entry = module.lookup(closure.digest)
            if entry is None:
                part: Closure = pickle.loads(pickle.dumps(closure.beyond(module.marks()), 5))
                entry = module.define(part)

        def call(*arguments: Any) -> Any:
            with main(module.module):
                return entry(*arguments)

        return call

    def here(self, name: str, process: Process | None = None) -> Callable[..., Any]:
        process = process or self.process

        def call(*arguments: Any) -> Any:
            with main(process.module):
                return process.names[name](*arguments)

        return call


@contextmanager
def main(module: types.ModuleType) -> Iterator[None]:
    """What `__main__` is for a while."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        yield
    finally:
        sys.modules["__main__"] = before


@contextmanager
def speaking(process: Process) -> Iterator[None]:
    before = identity._token
    identity._token = (before[0], process.token)
    try:
        with main(process.module):
            yield
    finally:
        identity._token = before


@contextmanager
def worlds() -> Iterator[Worlds]:
    """Two worlds in one process: what knows classes by process-wide ids must not confuse them."""
    patch = pytest.MonkeyPatch()
    made = Worlds()

    def has_ended(process: processes.Process) -> bool:
        return process.pid in made.ended

    identity.process_token()
    patch.setattr(rebuilding, "_track", lambda tracker, made: None)
    patch.setattr(processes.Process, "of", classmethod(lambda cls, token, pid: cls(token, pid, 1.0)))
    patch.setattr(processes.Process, "has_ended", has_ended)
    scopes = list(scope._main)
    try:
        yield made
    finally:
        patch.undo()
        scope._main[:] = scopes
        assert context.current.get() is None
