"""The user's modules on this replica: for each call those that its caller has loaded, as the caller has loaded them.

A module whose text differs is loaded anew in place, as IPython's autoreload does it: what a preload has loaded and what
tasks have left behind go on with the new code. Of modules that share a name and not a file, each caller finds its own.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from types import CodeType, ModuleType
from typing import Any, Final, Protocol

from ..errors import with_notes
from ..modules import (
    Loaded,
    Table,
    current,
    digest_of_text,
    imports_of,
    is_installed,
    is_users,
    note,
    package_of,
    read,
    stamp_of,
    text_in,
)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """The place where a caller is.

    Attributes:
        process: Its token.
        path: Its `sys.path`, absolute; empty for one that has none.
        modules: File and digest of each module of the user's that it has loaded, by name.
    """

    process: str = ""
    path: tuple[str, ...] = ()
    modules: Mapping[str, tuple[str, str]] = field(default_factory=dict)


NOWHERE: Final = Place()


class Caller(Protocol):
    """Somebody who can be asked for a module's text."""

    def module_text(self, number: int, name: str) -> str | None: ...


class Modules:
    """The user's modules, kept as the caller says they are. On the main thread."""

    def __init__(self, renewed: Callable[[frozenset[str]], None]) -> None:
        self._renewed = renewed
        self._places: dict[tuple[str, tuple[str, ...], str], Place] = {}
        self._present = NOWHERE
        self._seen: Table | None = None
        self._asked: tuple[Caller, int] | None = None
        self._texts: dict[str, str] = {}  # by digest
        self._beside: dict[str, tuple[str, tuple[int, int] | None]] = {}
        """Loaded here, and not by the caller: each one's file, and its stamp when that was read last."""
        self._of_preload: frozenset[str] = frozenset()
        self._put_away: dict[tuple[str, str], ModuleType] = {}
        """By name and file, modules in whose place another one is."""
        self._left: dict[tuple[str, ...], dict[str, ModuleType]] = {}
        """By path, modules that only tasks from there have loaded."""
        self._objects: dict[Any, Any] = {}  # autoreload's: what modules had before they were loaded anew
        sys.meta_path.insert(sys.meta_path.index(PathFinder), self)

    def place(self, process: str, path: Sequence[str], digest: str, described: str) -> Place:
        """The place; the same object for the same one.

        Args:
            digest: Of the caller's `modules.Table`; `described`: what that says.
        """
        if not path:
            return NOWHERE
        key = process, tuple(path), digest
        if key not in self._places:
            if len(self._places) >= MOST_PLACES:
                self._places.clear()
            self._places[key] = Place(process, key[1], read(described) if described else {})
        return self._places[key]

    def give(self, texts: Iterable[str]) -> None:
        """Texts that may be asked for when nobody can be asked."""
        self._texts.update((digest_of_text(text), text) for text in texts)

    def preloaded(self) -> None:
        """The preload has run: what it has loaded is there for everybody."""
        self._of_preload = frozenset(current().modules)

    def enter(self, place: Place, caller: Caller | None = None, number: int = 0) -> None:
        """A call begins whose caller is there.

        Raises:
            Exception: Whatever a module raises when it is loaded anew; it stays as it was, and a note says so.
            ImportError: Its text is not in its file any more, and the caller does not send it.
        """
        if (place is self._present and self._seen is not None and not self._beside) or place is NOWHERE:
            return
        self._asked = None if caller is None else (caller, number)
        self._seen = None  # if this fails, the next call tries again
        if place is not self._present:
            self._move(place)
        before, self._beside = self._beside, {}
        for name, each in current().modules.items():
            if name not in place.modules:
                known = before.get(name)
                self._beside[name] = known if known is not None and known[0] == each.file else (each.file, None)
        stale = {name: (file, digest) for name, (file, digest) in place.modules.items() if _differs(name, digest)}
        stale.update(self._edited())
        for name in _ordered(stale, current().modules):
            self._load_anew(name, *stale[name])
        if stale:
            self._renewed(frozenset(stale))
        self._seen = current()

    def left(self) -> None:
        """A call has ended: what it has imported is what the files say now."""
        if current() is not self._seen:
            self._seen = None  # the next call looks

    def check(self, name: str) -> None:
        """A caller uses this module.

        Raises: ImportError if its name means a module here that cannot make way for the caller's.
        """
        wanted, found = self._present.modules.get(name), sys.modules.get(name)
        file = getattr(found, "__file__", None)
        if wanted is not None and isinstance(found, ModuleType) and not is_users(found) and file != wanted[0]:
            raise ImportError(
                f'"{name}" is {wanted[0]} in the notebook; on the replica it is {file or "built into Python"}, which '
                "other code uses there. Give your module another name.",
                name=name,
            )

    # --- as a finder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where the caller has this module from; if it has not, what its file says, which is kept in mind.

        Source: importlib.abc.MetaPathFinder.
        """
        wanted = self._present.modules.get(name)
        if wanted is None:
            spec = PathFinder.find_spec(name, path, target)
            file = None if spec is None else spec.origin
            if spec is not None and file and type(spec.loader) is SourceFileLoader and not is_installed(file):
                text = text_in(file)
                spec.loader = spec.loader if text is None else _Kept(name, file, text)
            return spec
        file, digest = wanted
        text = text_in(file)
        is_there = text is not None and digest_of_text(text) == digest
        loader = _Kept(name, file, text or "") if is_there else _Given(name, file, self._text(name, file, digest))
        inside = [os.path.dirname(file)] if os.path.basename(file) == "__init__.py" else None
        return spec_from_file_location(name, file, loader=loader, submodule_search_locations=inside)

    # ---

    def _move(self, place: Place) -> None:
        before, self._present = self._present, place
        rest = [entry for entry in sys.path if entry not in before.path and entry not in place.path]
        sys.path[:] = [*place.path, *rest]
        if before.process != place.process and before.path != place.path:
            left = self._left.setdefault(before.path, {})
            for name in current().modules.keys() - place.modules.keys() - self._of_preload:
                left[name] = sys.modules.pop(name)
            for name, module in self._left.pop(place.path, {}).items():
                sys.modules.setdefault(name, module)
        for name, (file, _) in place.modules.items():
            found = current().modules.get(name)
            if found is not None and not _is_same_file(found.file, file):
                self._put_away[name, found.file] = sys.modules.pop(name)
                if (other := self._put_away.pop((name, file), None)) is not None:
                    sys.modules[name] = other

    def _edited(self) -> Iterator[tuple[str, tuple[str, str]]]:
        """A module that only tasks have imported is as its file says."""
        for name, (file, stamp) in list(self._beside.items()):
            now = stamp_of(file)
            if now is not None and now != stamp:
                text = text_in(file)
                self._beside[name] = file, now
                if text is not None and _differs(name, digest_of_text(text)):
                    yield name, (file, digest_of_text(text))

    def _text(self, name: str, file: str, digest: str) -> str:
        known = self._texts.get(digest)
        if known is not None:
            return known
        text = text_in(file)
        if text is not None and digest_of_text(text) == digest:
            return text
        text = None if self._asked is None else self._asked[0].module_text(self._asked[1], name)
        if text is None or digest_of_text(text) != digest:
            raise ImportError(
                f'"{name}" was loaded in the notebook before {file} became what it is, and the notebook did not send '
                f"what it was. `importlib.reload({name})` there, or a restart, makes them the same.",
                name=name,
                path=file,
            )
        self._texts[digest] = text
        return text

    def _load_anew(self, name: str, file: str, digest: str) -> None:
        from IPython.extensions.autoreload import superreload

        text = self._text(name, file, digest)
        module = sys.modules[name]
        before = dict(vars(module))
        head: dict[str, Any] = {each: before[each] for each in _HEAD if each in before}

        def execute(module: ModuleType) -> ModuleType:
            vars(module).update(head)
            exec(compile(text, file, "exec", dont_inherit=True), vars(module))
            return module

        _show(file, text)
        try:
            superreload(module, reload=execute, old_objects=self._objects)
        except BaseException as error:
            vars(module).clear()
            vars(module).update(before)
            with_notes(error, f'"{name}" has changed, and loading it anew failed on the replica.')
            raise
        note(name, text, file)


class _Kept(SourceFileLoader):
    """A loader of a module from its file, which keeps in mind what that said.

    It says so before the module runs: Python leaves its own lines out of a traceback, and would not leave out ours.
    """

    def __init__(self, name: str, file: str, text: str) -> None:
        super().__init__(name, file)
        self._text = text

    def get_code(self, fullname: str) -> CodeType | None:
        self._note()
        return super().get_code(fullname)

    def _note(self) -> None:
        if self.name in sys.modules:
            note(self.name, self._text, self.path)


class _Given(_Kept):
    """A loader of a module from a text that is not in its file any more."""

    def get_source(self, fullname: str) -> str:
        return self._text

    def get_code(self, fullname: str) -> CodeType:
        self._note()
        _show(self.path, self._text)
        return compile(self._text, self.path, "exec", dont_inherit=True)


MOST_PLACES: Final = 200
_HEAD: Final[tuple[str, ...]] = (
    "__name__",
    "__spec__",
    "__loader__",
    "__file__",
    "__path__",
    "__package__",
    "__cached__",
    "__builtins__",
)


def _differs(name: str, digest: str) -> bool:
    found = current().modules.get(name)
    return found is not None and (found.digest != digest or not found.is_known)


def _is_same_file(one: str, other: str) -> bool:
    return one == other or os.path.realpath(one) == os.path.realpath(other)


def _ordered(names: Iterable[str], modules: Mapping[str, Loaded]) -> list[str]:
    """Each after those that it imports."""
    wanted = set(names)
    done: dict[str, None] = {}
    visiting: set[str] = set()

    def visit(name: str) -> None:
        if name in done or name in visiting:
            return
        visiting.add(name)
        loaded = modules[name]
        for needed in imports_of(loaded.text, package_of(name, loaded.file), attributes=True):
            if needed in wanted:
                visit(needed)
        done[name] = None

    for name in sorted(wanted):
        visit(name)
    return list(done)


def _show(file: str, text: str) -> None:
    """Let tracebacks find the lines that run. Without a time of change, they are not looked for in the file."""
    lines = text.splitlines(keepends=True)
    linecache.cache[file] = (len(text), None, lines, file)
