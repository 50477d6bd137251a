"""What has been defined on this replica: a module for the preload and one for each notebook, by digest.

The runner asks for a call's function by the digest of its closure; only if that is unknown are definitions
sent and applied, and of those only the ones that differ from what the module has. Not thread-safe: code is
defined on the main thread, where a cell would run.
"""

from __future__ import annotations

import functools
import importlib
import io
import linecache
import operator
import pickle
import sys
from collections.abc import Callable, Iterable
from types import FunctionType, ModuleType
from typing import Any

from ..core.definitions import (
    NOTEBOOK_ID,
    PRELOAD_MODULE,
    Closure,
    Definition,
    ImportDefinition,
    SourceDefinition,
    ValueDefinition,
    notebook_attribute,
    notebook_globals,
    notebook_module_name,
)


class NotebookModule:
    """One notebook's names on this replica, layered over those of the preload.

    The module is in `sys.modules`, so that instances of the notebook's classes are pickled by reference.
    """

    def __init__(self, name: str, notebook_id: str, preload: NotebookModule | None = None) -> None:
        self.name = name
        self.module = ModuleType(name, f"The names of notebook {notebook_id!r} on this replica.")
        self.names: dict[str, Any] = vars(self.module)
        self._digests: dict[str, str] = {}
        self._private: dict[str, Any] = {}  # what has a name that no variable can have
        self._closures: dict[str, tuple[Any, dict[str, str]]] = {}
        self._preloaded: set[str] = set()
        self._bound: dict[str, Any] = {}  # of the preload only: what its definitions made
        if preload is not None:
            self._layer_over(preload)
        self.names[NOTEBOOK_ID] = notebook_id
        sys.modules[name] = self.module

    def lookup(self, closure_digest: str) -> Any:
        """The entry of a closure that is wholly defined; None if it is not, or no longer."""
        found = self._closures.get(closure_digest)
        return None if found is None else found[0]

    def digests(self) -> dict[str, str]:
        """What is defined, for `Closure.beyond`; "" for a name that the preload made: it stays."""
        return self._digests | dict.fromkeys(self._preloaded, "")

    def missing(self, manifest: Iterable[tuple[str, str]], entry: str = "") -> list[str]:
        """Those names, of a closure's manifest, whose definitions must be sent."""
        return [
            name
            for name, digest in manifest
            if not self._has(name, digest) or (name == entry and name in self._preloaded)
        ]

    def define(self, closure: Closure) -> Any:
        """Apply what differs, and return the entry; the module itself for a closure without one.

        What was applied before an error stays, so that a second attempt goes on from there.

        Raises:
            LookupError: A definition that the manifest names was neither sent nor defined before.
            Exception: Whatever the user's definitions raise: an import that fails, a decorator's error. Its
                traceback has the user's own file and line; a note tells which name could not be defined.
        """
        self._preloaded.discard(closure.entry)
        for definition in closure.definitions:
            if not self._has(definition.name, definition.digest):
                try:
                    made = self._make(definition)
                except Exception as error:
                    error.add_note(f"{_describe(definition)}, which the task needs, failed on the replica.")
                    raise
                self._bind(definition, made)
        if missing := self.missing(closure.manifest):
            raise LookupError(f"{self.name} needs definitions that were not sent: {', '.join(missing)}")
        entry = self._entry(closure.entry)
        self._closures[closure.digest] = (entry, dict(closure.manifest))
        return entry

    def attribute(self, path: str) -> Any:
        """The object at a dotted path: `"Config"`, `"Outer.Inner"`.

        Raises: AttributeError if the notebook has sent no such name.
        """
        return operator.attrgetter(path)(self.module)

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle made by the notebook means by this global. `__main__` there is this module here."""
        if module in ("__main__", self.name):
            return self.attribute(name)
        if module == notebook_attribute.__module__:
            if name == notebook_attribute.__name__:
                return self.attribute
            if name == notebook_globals.__name__:
                return lambda: self.names
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))

    def _layer_over(self, preload: NotebookModule) -> None:
        for name, value in preload.names.items():
            if name.startswith("__") and name.endswith("__"):
                continue
            self.names[name] = value
            # A name that running the preload made, or made anew, wins over a definition of that name.
            if preload._bound.get(name, _NOTHING) is value:
                self._digests[name] = preload._digests[name]
            else:
                self._preloaded.add(name)

    def _has(self, name: str, digest: str) -> bool:
        return self._digests.get(name) == digest or name in self._preloaded

    def _make(self, definition: Definition) -> Any:
        match definition:
            case SourceDefinition():
                made = self._execute(definition)
            case ImportDefinition(module=module, attribute=attribute):
                made = importlib.import_module(module)
                return operator.attrgetter(attribute)(made) if attribute else made
            case ValueDefinition(pickled=pickled):
                made = self._load(pickled)
                if isinstance(made, type | FunctionType) and made.__module__ == "__main__":
                    made.__module__ = self.name  # else its instances would not find it again
        return made if definition.wrap is None else self._load(definition.wrap)(made)

    def _execute(self, definition: SourceDefinition) -> Any:
        _show_lines(definition)
        # Blank lines put the text where the user wrote it. What is indented stood inside an `if` or `with`,
        # which began on an earlier line: the `if` put there keeps the columns right, too.
        indented = definition.lines[:1] in " \t"
        text = "\n" * (definition.first_line - 1 - indented) + "if 1:\n" * indented + definition.lines
        code = compile(text, definition.filename, "exec", flags=definition.flags, dont_inherit=True)
        # A task's bare function must not take the place of the task of that name.
        made: dict[str, Any] = {}
        exec(code, self.names, made)
        return made[definition.defines]

    def _load(self, pickled: bytes) -> Any:
        return _Unpickler(io.BytesIO(pickled), self.find_class).load()

    def _bind(self, definition: Definition, made: Any) -> None:
        name, digest = definition.name, definition.digest
        self._digests[name] = digest
        if name.isidentifier():
            self.names[name] = made
            if self.name == PRELOAD_MODULE:
                self._bound[name] = made
        elif not (isinstance(definition, ImportDefinition) and isinstance(made, ModuleType)):
            self._private[name] = made  # a submodule needs no place: its package holds it
        self._closures = {
            known: (entry, manifest)
            for known, (entry, manifest) in self._closures.items()
            if manifest.get(name, digest) == digest
        }

    def _entry(self, name: str) -> Any:
        if not name:
            return self.module
        entry = self._private[name] if name in self._private else self.names[name]
        # A module's task is imported as the task; what a runner calls is the function inside.
        capture = getattr(type(entry), "__flyte_capture__", None)
        return entry if capture is None else capture(entry)[0]


class Namespaces:
    """Every module of notebook names on this replica."""

    def __init__(self) -> None:
        self.preload = NotebookModule(PRELOAD_MODULE, "")
        self._notebooks: dict[str, NotebookModule] = {}

    def define_preload(self, closure: Closure) -> Any:
        """Define the preload; running what this returns is the caller's part, before any notebook comes."""
        return self.preload.define(closure)

    def notebook(self, notebook_id: str) -> NotebookModule:
        """The module of this notebook; a new one starts with the names that the preload has made."""
        found = self._notebooks.get(notebook_id)
        if found is None:
            name = notebook_module_name(notebook_id)
            found = self._notebooks[notebook_id] = NotebookModule(name, notebook_id, self.preload)
        return found

    def find_class(self, notebook: NotebookModule) -> Callable[[str, str], Any]:
        """`find_class` for an unpickler of what this notebook sends."""
        return notebook.find_class

    def forget(self, notebook_id: str) -> None:
        """Let go of all that a notebook defined, so that a cached model of a closed one can be freed."""
        found = self._notebooks.pop(notebook_id, None)
        if found is not None and sys.modules.get(found.name) is found.module:
            del sys.modules[found.name]


_NOTHING: Any = object()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, find: Callable[[str, str], Any]) -> None:
        super().__init__(file)
        self._find = find

    def find_class(self, module: str, name: str) -> Any:
        return self._find(module, name)


def _describe(definition: Definition) -> str:
    match definition:
        case ImportDefinition(module=module, attribute=None):
            return f"`import {module}`"
        case ImportDefinition(module=module, attribute=attribute):
            return f"`from {module} import {attribute}`"
        case _:
            return f'Defining "{definition.name}"'


def _show_lines(definition: SourceDefinition) -> None:
    """Let tracebacks and `inspect` find the text under the name that the notebook gave its cell.

    Several definitions of one cell share its name, so each adds its own lines. Without a time of change
    the entry is not checked against a file, which mostly does not exist on this side.
    """
    filename, first = definition.filename, definition.first_line - 1
    new = [f"{line}\n" for line in definition.lines.removesuffix("\n").split("\n")]
    old = linecache.getlines(filename)
    if old[first : first + len(new)] == new:
        return
    lines = [*old, *["\n"] * (first - len(old))]
    lines[first : first + len(new)] = new
    linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
