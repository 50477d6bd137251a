"""The user's own modules that this process has loaded, and the text that each was loaded from.

A replica that imports one of them, or has imported it before, must run what its caller runs: not what the file says by
now, nor what it said when another caller came. So both sides keep the texts: the file may have changed since.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import site
import struct
import sys
import sysconfig
import textwrap
import threading
import tokenize
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from .core.code import canonical


@dataclass(frozen=True, slots=True)
class Loaded:
    """A module as it was loaded.

    Attributes:
        digest: Of the text.
        is_known: False if the file has changed since, and what it said then is not known: this is what it says now.
    """

    file: str
    digest: str
    text: str
    is_known: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The modules of a process at one moment, by name. `digest` tells tables apart; `described` is `read`'s input."""

    modules: Mapping[str, Loaded]
    digest: str
    described: str

    @classmethod
    def of(cls, modules: Mapping[str, Loaded]) -> Table:
        described = json.dumps({name: (each.file, each.digest) for name, each in sorted(modules.items())})
        return cls(modules, digest_of_text(described) if modules else "", described)

    def reachable(self, names: Iterable[str]) -> list[str]:
        """Of these modules and all that their texts import, those that are in the table; in alphabetical order."""
        reached: set[str] = set()
        queue = list(names)
        while queue:
            name = queue.pop()
            if name in reached or name not in self.modules:
                parent = name.rpartition(".")[0]
                queue += [parent] if parent and parent not in reached else []
                continue
            reached.add(name)
            loaded = self.modules[name]
            queue += [name.rpartition(".")[0], *imports_of(loaded.text, package_of(name, loaded.file), attributes=True)]
        return sorted(reached)


def read(described: str) -> dict[str, tuple[str, str]]:
    """File and digest of each module of a table."""
    return {name: (file, digest) for name, (file, digest) in json.loads(described).items()}


def current() -> Table:
    """The table of now; the same object as before if no module was loaded or loaded anew since.

    Each call asks for it, so it compares objects: 0.1 us, and as much again for each module of the user's.
    """
    state = _state
    if len(sys.modules) != state.count:
        state.renew()
        return state.table
    times, get = state.times, sys.modules.get
    for name, module, spec, time in state.watched:
        changed = get(name) is not module or getattr(module, "__spec__", None) is not spec
        if changed or (times is not None and times.get(name) != time):
            state.renew()
            break
    return state.table


def note(name: str, text: str, file: str) -> None:
    """This module has been loaded from that text, whatever its file says."""
    _state.note(name, Loaded(file, digest_of_text(text), text))


def loaded(name: str) -> Loaded | None:
    """How a module of the user's was loaded; None of any other."""
    return current().modules.get(name)


def digest_of_text(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def text_in(file: str) -> str | None:
    """What a source file says now; None if it cannot be read."""
    found = _read(file)
    return None if found is None else found[0]


def stamp_of(file: str) -> tuple[int, int] | None:
    """Changes when the file does; None if there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def is_users(module: ModuleType) -> bool:
    """Whether its source is a file that its user may edit: neither Python's, nor an installed package's, nor ours."""
    names = getattr(module, "__dict__", {})
    file, spec, name = names.get("__file__"), names.get("__spec__"), names.get("__name__")
    if not isinstance(file, str) or not file.endswith(".py") or spec is None or not isinstance(name, str):
        return False
    return name not in _MAIN and not is_installed(file)


@lru_cache(maxsize=10_000)
def is_installed(file: str) -> bool:
    """Whether a file lies where packages are installed, is Python's own, or this package's."""
    return any(part in _PACKAGES for part in file.split(os.sep)) or file.startswith(_places())


@lru_cache(maxsize=1_000)
def imports_of(text: str, package: str = "", *, attributes: bool = False) -> tuple[str, ...]:
    """The modules that a text imports anywhere, as far as their names are written there.

    Args:
        package: What relative imports start from.
        attributes: Give what is imported from them, too: it may be a submodule.
    """
    try:
        tree = ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError):
        return ()
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(dict.fromkeys(alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if package else []
                base = ".".join([*above, *([node.module] if node.module else [])])
            found[base] = None
            if attributes:
                found.update(dict.fromkeys(f"{base}.{alias.name}" for alias in node.names))
    return tuple(name for name in found if name)


def package_of(name: str, file: str) -> str:
    """What relative imports in that module start from."""
    return name if os.path.basename(file) == "__init__.py" else name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A module of the user's, and what changes when it is loaded anew."""

    module: ModuleType
    spec: Any
    time: float | None
    loaded: Loaded

    def loaded_now(self, module: ModuleType, spec: Any, time: float | None) -> Loaded:
        # At first, autoreload only notes when a module's file was written; later, when it has loaded it anew.
        if self.module is module and self.spec is spec and self.time in (time, None):
            return self.loaded
        now, before = _load(module, str(module.__file__)) or self.loaded, self.loaded
        # A text that raises leaves the module as it was.
        failed = not _describes(now.text, module) and self.module is module and _describes(before.text, module)
        return before if failed or now == before else now


class _State:
    """What has been seen of `sys.modules`."""

    def __init__(self) -> None:
        self.table = Table.of({})
        self.count = -1
        self.times: dict[str, float] | None = None
        self.watched: tuple[tuple[str, ModuleType, Any, float | None], ...] = ()
        self._lock = threading.Lock()
        self._users: dict[str, _Seen] = {}
        self._others: dict[str, Any] = {}

    def renew(self) -> None:
        with self._lock:
            count = len(sys.modules)
            self._look(list(sys.modules.items()))
            self.count = count

    def _look(self, found: list[tuple[str, Any]]) -> None:
        self.times = times = _reload_times()
        users: dict[str, _Seen] = {}
        for name, module in found:
            if self._others.get(name, self) is module:
                continue
            if not isinstance(module, ModuleType) or not is_users(module):
                self._others[name] = module
                continue
            spec, time = module.__spec__, None if times is None else times.get(name)
            seen = self._users.get(name)
            loaded = _load(module, str(module.__file__)) if seen is None else seen.loaded_now(module, spec, time)
            if loaded is None:  # in a zip file, or removed before anybody looked
                self._others[name] = module
                continue
            users[name] = _Seen(module, spec, time, loaded)
        self._set(users)

    def note(self, name: str, loaded: Loaded) -> None:
        with self._lock:
            module = sys.modules[name]
            time = None if self.times is None else self.times.get(name)
            self._set({**self._users, name: _Seen(module, getattr(module, "__spec__", None), time, loaded)})

    def _set(self, users: dict[str, _Seen]) -> None:
        self._users = users
        self.watched = tuple((name, each.module, each.spec, each.time) for name, each in users.items())
        modules = {name: each.loaded for name, each in users.items()}
        if modules != self.table.modules:
            self.table = Table.of(modules)


_state: Final = _State()
_MAIN: Final = ("__main__", "__mp_main__")
_PACKAGES: Final = frozenset({"site-packages", "dist-packages"})


@cache
def _places() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    places = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    with suppress(Exception):  # an interpreter without `site`
        places.update((site.getusersitepackages(), *site.getsitepackages()))
    ours = os.path.dirname(os.path.abspath(__file__))
    return tuple(place.rstrip(os.sep) + os.sep for place in (*places, ours))


def _reload_times() -> dict[str, float] | None:
    """When `%autoreload` has loaded which module anew, if that is on: it may do so within the module and its functions.

    Source: IPython.extensions.autoreload.ModuleReloader.
    """
    if "IPython.extensions.autoreload" not in sys.modules:
        return None
    with suppress(Exception):
        shell = sys.modules["IPython"].get_ipython()
        times = shell.magics_manager.registry["AutoreloadMagics"]._reloader.modules_mtimes
        return times if isinstance(times, dict) else None
    return None


def _load(module: ModuleType, file: str) -> Loaded | None:
    found = _read(file)
    if found is None:
        return None
    text, time, size = found
    return Loaded(file, digest_of_text(text), text, _is_of(module, text, time, size))


def _read(file: str) -> tuple[str, int, int] | None:
    try:
        with open(file, "rb") as opened:
            status = os.fstat(opened.fileno())
            data = opened.read()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = io.IncrementalNewlineDecoder(None, translate=True).decode(data.decode(encoding))
    except (OSError, SyntaxError, UnicodeError, LookupError):
        return None
    return text, int(status.st_mtime), status.st_size


def _is_of(module: ModuleType, text: str, time: int, size: int) -> bool:
    """Whether that text, of a file that was written then, is what the module was made of."""
    cached = getattr(module.__spec__, "cached", None)
    try:
        with open(str(cached), "rb") as opened:
            flags, written, length = struct.unpack("<4xIII", opened.read(16))
    except (OSError, struct.error):  # Python keeps none of it: nothing says that it has changed
        return True
    if flags or (written, length) == (time & 0xFFFFFFFF, size & 0xFFFFFFFF):
        return True
    return _describes(text, module)


def _describes(text: str, module: ModuleType) -> bool:
    """Whether the text has all functions of the module; False if it has none."""
    try:
        made = {canonical(code) for code in _codes(compile(text, str(module.__file__), "exec", dont_inherit=True))}
    except (SyntaxError, ValueError):
        return False
    functions = [each for each in vars(module).values() if isinstance(each, FunctionType)]
    own = [each for each in functions if each.__module__ == module.__name__ and not hasattr(each, "__wrapped__")]
    return bool(own) and all(canonical(each.__code__) in made for each in own)


def _codes(code: CodeType) -> Iterable[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from _codes(each)
