"""The names that are defined on this replica: a module for the preload and one for each process that makes calls.

The runner asks for a call's function by the digest of its closure; only if that is unknown are definitions
sent and applied, and of those only the ones that differ from what the module has. Not thread-safe: code is
defined on the main thread, where a cell would run.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import linecache
import operator
import weakref
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any, Final

from ..core.context import current
from ..core.definitions import (
    ABSENT,
    ORIGIN,
    AbsentDefinition,
    Closure,
    Definition,
    ImportDefinition,
    Mark,
    SourceDefinition,
    Text,
    ValueDefinition,
    texts_of,
)
from ..core.payload import Finder, plain_find
from ..errors import with_notes
from .process import NOBODY, Process
from .rebuilding import Bound, Rebuilder


class NotSent(LookupError):
    """Definitions are missing that the replica seemed to have: another call has replaced them meanwhile."""


class NotebookModule:
    """One process's names on this replica, layered over those of the preload.

    For what runs there it is `__main__`, as in the notebook. `scope` is for the capture, when a task calls a task.
    """

    def __init__(self, notebook_id: str, process: Process = NOBODY, preload: NotebookModule | None = None) -> None:
        self.notebook_id = notebook_id
        self.process = process
        self.module = ModuleType("__main__")
        self.names: dict[str, Any] = vars(self.module)
        self.scope: Any = None
        self.aside_of: NotebookModule | None = None
        """The module whose objects this one shares, but for those that a running call still needs as they are there."""
        self._preload = preload
        self._former: dict[str, Bound] = {}
        self._cleared = False  # its process has ended, and the next one has not come yet
        self._begin()

    def _begin(self) -> None:
        self.names.clear()
        self.names.update(vars(ModuleType("__main__", f"The names of {self.notebook_id!r} on this replica.")))
        self.names.update({"__builtins__": builtins, ORIGIN: self})
        self._bound: dict[str, Bound] = {}
        self._holders: dict[str, set[str]] = {}  # by name, whose definitions have ever held its object, or parts of it
        self._private: dict[str, Any] = {}  # what has a name that no variable can have
        self._closures: dict[str, tuple[Any, Mapping[str, Mark]]] = {}
        self.manifests: dict[str, Mapping[str, Mark]] = {}
        """By digest, what each closure that was ever defined here takes."""
        self._preloaded: set[str] = set()
        self._pending: dict[str, Definition] = {}
        self._loading: dict[str, Rebuilder] = {}
        self._parts: dict[str, tuple[str, int]] = {}  # being made: of what else they are parts
        self._steps = 0
        self.objects: MutableMapping[str, Any] = weakref.WeakValueDictionary()
        if self._preload is not None:
            self._layer_over(self._preload)

    def clear(self) -> None:
        """Let go of all values, once the process has ended; keep what the next one of its notebook may use again."""
        self._former = {name: bound for name, bound in self._bound.items() if bound.made and not bound.preloaded}
        self._begin()
        self._cleared = True

    def take_over(self, process: Process) -> None:
        """Begin anew for another process, after that one has ended: its values go, its caches may be used again."""
        if not self._cleared:
            self.clear()
        self._cleared = False
        self.process = process

    def lookup(self, closure_digest: str) -> Any:
        """The entry of a closure that is wholly defined; None if it is not, or no longer."""
        found = self._closures.get(closure_digest)
        return None if found is None else found[0]

    def marks(self) -> dict[str, tuple[str, ...] | None]:
        """The marks of all definitions, for `Closure.beyond`; None for a name that the preload made: it stays.

        Plain tuples: there may be thousands, and it takes five times as long to send marks.
        """
        found: dict[str, tuple[str, ...] | None] = {name: bound.mark[:2] for name, bound in self._bound.items()}
        return found | dict.fromkeys(self._preloaded)

    def received(self, name: str, obj: object) -> tuple[Mark, str] | None:
        """The mark and the identity with which this object came, if it came as a definition of that name."""
        bound = self._bound.get(name)
        return None if bound is None or bound.value is not obj else (bound.mark, bound.identity)

    def define(self, closure: Closure) -> Any:
        """Apply what differs, and return the entry; the module itself for a closure without one.

        What was applied before an error stays, so that a second attempt goes on from there.

        Raises:
            NotSent: A definition that the manifest names was neither sent nor defined before.
            Exception: Whatever the user's definitions raise: an import that fails, a decorator's error. Its
                traceback has the user's own file and line; a note tells which name could not be defined.
        """
        self._preloaded.discard(closure.entry)
        try:
            for _ in range(MOST_ROUNDS):  # what was there may have to be made again for what came after it
                wanted = [each for each in closure.definitions if not self._has(each.name, each.mark)]
                self._pending = {definition.name: definition for definition in wanted}
                for definition in wanted:
                    self._ensure(definition.name)
        finally:
            self._pending = {}
        if missing := [name for name, mark in closure.manifest.items() if not self._has(name, mark)]:
            raise NotSent(f"{self.notebook_id} needs definitions that were not sent: {', '.join(sorted(missing))}")
        for name, mark in closure.manifest.items():
            if mark.deep and (bound := self._bound.get(name)) is not None and bound.deep != mark.deep:
                bound.mixed = True
        entry = self._entry(closure.entry)
        self._closures[closure.digest] = (entry, closure.manifest)
        self.manifests[closure.digest] = closure.manifest
        if len(self.manifests) > MOST_MANIFESTS:  # calls that began long ago may still want one of the latest
            for digest in [each for each in self.manifests if each not in self._closures][: MOST_MANIFESTS // 2]:
                del self.manifests[digest]
        return entry

    def beside(self, closures: Iterable[Closure], in_use: Iterable[Mapping[str, Mark]]) -> NotebookModule:
        """The module to define these closures in: another one if this would change names that are `in_use`.

        It shares with this one all that neither changes nor uses what does.
        """
        wanted = {name: mark for closure in closures for name, mark in closure.manifest.items()}
        changing = {name for name, mark in wanted.items() if not self._has(name, mark)}
        while shaped := {n for n in wanted if n not in changing and not changing.isdisjoint(self._shaped_by(n))}:
            changing |= shaped
        if not any(name in manifest for manifest in in_use for name in changing):
            return self
        affected = set(changing)
        while more := {n for n in wanted if n not in affected and not affected.isdisjoint(self._uses(n))}:
            affected |= more
        made = NotebookModule(self.notebook_id, self.process, self._preload)
        made.aside_of = self
        for name in wanted.keys() - affected:
            if name in self._bound:
                made._share(name, self._bound[name])
        return made

    def _shaped_by(self, name: str) -> frozenset[str]:
        bound = self._bound.get(name)
        return frozenset() if bound is None else bound.shaping | bound.linked

    def _uses(self, name: str) -> frozenset[str]:
        bound = self._bound.get(name)
        return frozenset() if bound is None else bound.uses

    def _share(self, name: str, bound: Bound) -> None:
        self._enter(name, bound)
        self._preloaded.discard(name)
        if ":" in name:  # an entry that no variable means
            self._private[name] = bound.value
        elif "." not in name:  # a submodule needs no place: its package holds it
            self.names[name] = bound.value

    def _enter(self, name: str, bound: Bound) -> None:
        self._bound[name] = bound
        for needed in bound.shaping | bound.linked:
            self._holders.setdefault(needed, set()).add(name)

    def attribute(self, path: str) -> Any:
        """The object at a dotted path: `"Config"`, `"Outer.Inner"`.

        Raises: AttributeError if the notebook has sent no such name.
        """
        name, _, rest = path.partition(".")
        if name in self._loading:
            found = self._loading[name].root()
        elif name in self._parts:
            found = self.shared(*self._parts[name])
        else:
            self._ensure(name)
            names = self.ask(name)
            found = names[name] if name in names else getattr(self.module, name)
        return operator.attrgetter(rest)(found) if rest else found

    def ask(self, name: str) -> Mapping[str, Any]:
        """Where the running call finds what its notebook calls so now, if it is the notebook that has the name.

        The notebook is asked, whatever looks for it: what is here may have come with another call, long ago.
        """
        bound = self._bound.get(name)
        has_own = name in self.names if bound is None else bound.preloaded or self.names.get(name) is not bound.value
        if not has_own and name.isidentifier() and name[:2] != "__" and not self._loading:
            task = current.get()
            if task is not None and task.main is self.module and task.want is not None:
                found: Mapping[str, Any] = task.want(task, name)
                return found
        return self.names

    def let_go(self, name: str) -> None:
        """The notebook has no such name any more."""
        self._unbind(name)

    def shared(self, name: str, position: int) -> Any:
        """A part of what a name stands for, by its position in that definition's pickle."""
        if name in self._loading:
            return self._loading[name].part(position)
        self._ensure(name)
        return self._bound[name].parts[position]

    def is_used(self, key: str, besides: str) -> bool:
        """Whether a definition of another name holds that object of the notebook."""
        pending = (d.kept for d in self._pending.values() if isinstance(d, ValueDefinition) and d.name != besides)
        bound = (each.kept for name, each in self._bound.items() if name != besides and each.mark is not _STALE)
        return any(key == kept_key for kept in (*pending, *bound) for kept_key, _ in kept)

    def find_class(self, module: str, name: str) -> Any:
        """The object that a pickle of the notebook means by this global."""
        return self.attribute(name) if module == "__main__" else plain_find(module, name)

    # --- making

    def _ensure(self, name: str) -> None:
        definition = self._pending.get(name)
        if definition is None or (self._has(name, definition.mark) and not self._is_outdated(name)):
            self._pending.pop(name, None)
            return
        # The rest is asked for while it is loaded, and may then ask for this one.
        for needed in sorted(definition.first):
            if needed not in self._loading:
                self._ensure(needed)
        if isinstance(definition, SourceDefinition):  # what is executed calls what it needs
            self._ensure_used(definition)
        if self._pending.pop(name, None) is None:
            return
        try:
            self._apply(definition)
        except Exception as error:
            note = f"{_describe(definition)}, which the task needs, failed on the replica."
            if note not in getattr(error, "__notes__", ()):
                with_notes(error, note)
            raise

    def _is_outdated(self, name: str) -> bool:
        """Whether it holds an object in whose place another is being made."""
        for needed in self._shaped_by(name) & self._loading.keys():
            with suppress(KeyError):
                if self._loading[needed].root() is not self._bound[needed].value:
                    return True
        return False

    def _ensure_used(self, definition: SourceDefinition) -> None:
        reached = {definition.name}
        queue = sorted(definition.first, reverse=True)
        while queue:
            name = queue.pop()
            if name not in reached:
                reached.add(name)
                pending = self._pending.get(name)
                uses = self._uses(name) if pending is None else pending.uses
                self._ensure(name)
                queue += sorted(uses, reverse=True)

    def _has(self, name: str, mark: Mark) -> bool:
        if name in self._preloaded:
            return True
        bound = self._bound.get(name)
        return (ABSENT if bound is None else bound.mark).covers(mark)

    def _apply(self, definition: Definition) -> None:
        name = definition.name
        self._steps += 1
        began = self._steps
        old = self._bound.get(name) or self._former.pop(name, None)
        for text in texts_of(definition):
            _show(text)
        match definition:
            case AbsentDefinition():
                self._unbind(name)
                return
            case ImportDefinition(module=module, attribute=attribute):
                made = importlib.import_module(module)
                value = operator.attrgetter(attribute)(made) if attribute else made
                self._bind(definition, Bound(value, definition.mark, module=module), began)
            case ValueDefinition():
                self._bind(definition, self._rebuilt(definition, old), began)
            case SourceDefinition():
                self._bind(definition, self._executed(definition, old), began)

    def _rebuilt(self, definition: ValueDefinition, old: Bound | None) -> Bound:
        if definition.part_of is not None:
            self._parts[definition.name] = definition.part_of
            try:
                return Bound(self.shared(*definition.part_of), definition.mark, definition.identity)
            finally:
                del self._parts[definition.name]
        rebuilder = self._loading[definition.name] = Rebuilder(self, definition, old)
        try:
            value = rebuilder.renewed(rebuilder.load())
        finally:
            del self._loading[definition.name]
        bound = _bound(definition, old, value, rebuilder.made)
        bound.kept, bound.parts = definition.kept, rebuilder.parts()
        return bound

    def _executed(self, definition: SourceDefinition, old: Bound | None) -> Bound:
        made: Any
        before: set[str] = set()
        if old is not None and (_is_again(definition, old) or _is_edited(definition, old)):
            made, before = old.value, _text_and_state(old)[1]
        else:
            text = definition.text
            # Blank lines put the text where the user wrote it. Indented text stood inside an `if` or `with`,
            # which began on an earlier line: the `if` put there keeps the columns right, too.
            indented = text.lines[:1] in " \t"
            code = "\n" * (text.first_line - 1 - indented) + "if 1:\n" * indented + text.lines
            # A task's bare function must not take the place of the task of that name.
            names: dict[str, Any] = {}
            exec(compile(code, text.filename, "exec", flags=definition.flags, dont_inherit=True), self.names, names)
            made = names[definition.defines]
            if definition.wrap is not None:
                made = Finder(definition.wrap, self.find_class).load()(made)
        state = set() if definition.state is None else set(self._set(definition, made))
        if not before <= state:  # something was taken away again
            return self._executed(definition, None)
        return _bound(definition, old, made, {0: (definition.text.lines, state)})

    def _set(self, definition: SourceDefinition, made: Any) -> Iterable[str]:
        """Set what the notebook has set on it since, or evaluated when it was made; the names of those attributes."""
        assert definition.state is not None, "there is a state to set"
        previous = self.names.get(definition.name, _NOTHING)
        self.names[definition.name] = made  # which its functions may refer to
        try:
            state = Rebuilder(self, definition.state).load()
        finally:
            if previous is _NOTHING:
                del self.names[definition.name]
            else:
                self.names[definition.name] = previous
        if isinstance(made, type):
            for name, value in state["attributes"].items():
                type.__setattr__(made, name, value)
            return list(state["attributes"])
        function = inspect.unwrap(getattr(made, "func", made))
        if isinstance(function, FunctionType):
            function.__defaults__ = state["defaults"]
            function.__kwdefaults__ = state["keywords"]
        return ()

    # --- binding

    def _bind(self, definition: Definition, bound: Bound, began: int) -> None:
        name = definition.name
        bound.step = self._steps
        bound.uses, bound.linked = definition.uses, definition.linked
        before = self._bound.get(name)
        self._share(name, bound)
        self._changed(name, before is not None and before.value is bound.value, began)

    def _unbind(self, name: str) -> None:
        if self._bound.pop(name, None) is not None:
            self.names.pop(name, None)
            self._private.pop(name, None)
            self._changed(name, False, self._steps)

    def _changed(self, name: str, is_same_object: bool, began: int) -> None:
        """Forget what no longer holds: closures with another such definition, and what has taken in the old object.

        What was made since `began` has met the new one already.
        """
        stale = {name}
        for other in self._holders.get(name, ()):
            bound = self._bound.get(other)
            if bound is None or other == name or other in self._loading or bound.step >= began:
                continue
            if name in bound.linked or (name in bound.shaping and not is_same_object):
                bound.mark = _STALE
                stale.add(other)
        self._closures = {
            digest: (entry, manifest)
            for digest, (entry, manifest) in self._closures.items()
            if all(each not in manifest or self._has(each, manifest[each]) for each in stale)
        }

    def reloaded(self, modules: frozenset[str]) -> None:
        """Import again what was imported from these."""
        for name, bound in list(self._bound.items()):
            if bound.module in modules and not bound.preloaded:
                self._steps += 1
                bound.mark = _STALE
                self._changed(name, False, self._steps)

    def _layer_over(self, preload: NotebookModule) -> None:
        for name, value in preload.names.items():
            if name.startswith("__") and name.endswith("__"):
                continue
            self.names[name] = value
            # A name that running the preload made, or made anew, wins over a definition of that name.
            bound = preload._bound.get(name)
            if bound is not None and bound.value is value:
                layered = Bound(
                    value,
                    bound.mark,
                    bound.identity,
                    shaping=bound.shaping,
                    linked=bound.linked,
                    deep=bound.deep,
                    parts=bound.parts,
                    preloaded=True,
                    uses=bound.uses,
                )
                self._enter(name, layered)
            else:
                self._preloaded.add(name)

    def _entry(self, name: str) -> Any:
        if not name:
            return self.module
        entry = self._private[name] if name in self._private else self.names[name]
        # A module's task is imported as the task; what a runner calls is the function inside.
        capture = getattr(type(entry), "__flyte_capture__", None)
        return entry if capture is None else capture(entry)[0]


MOST_MANIFESTS: Final = 1000
MOST_ROUNDS: Final = 10
_NOTHING: Final[Any] = object()
_STALE: Final = Mark("stale")


def _bound(
    definition: ValueDefinition | SourceDefinition, old: Bound | None, value: Any, made: dict[int, Any]
) -> Bound:
    return Bound(
        value,
        definition.mark,
        definition.identity,
        shaping=definition.shaping,
        deep=definition.mark.deep,
        mixed=_is_still_mixed(definition, old),
        made=made,
    )


def _is_again(definition: SourceDefinition, old: Bound) -> bool:
    """Whether what the same text made before may be kept, with all that it may have cached."""
    if old.mark.content != definition.mark.content:
        return False
    same = bool(definition.identity) and old.identity == definition.identity
    return same or (not old.mixed and old.deep == definition.mark.deep)


def _is_edited(definition: SourceDefinition, old: Bound) -> bool:
    """Whether it is the same class, on which more has been set."""
    same = bool(definition.identity) and old.identity == definition.identity and isinstance(old.value, type)
    return same and _text_and_state(old)[0] == definition.text.lines


def _text_and_state(bound: Bound) -> tuple[str, set[str]]:
    """Of what was made of a text: that, and which attributes were set on it since."""
    found = bound.made.get(0)
    return found if isinstance(found, tuple) else ("", set())


def _is_still_mixed(definition: ValueDefinition | SourceDefinition, old: Bound | None) -> bool:
    """Whether its caches may hold results of what it used before."""
    return (
        old is not None
        and bool(definition.identity)
        and old.identity == definition.identity
        and (old.mixed or old.deep != definition.mark.deep)
    )


def _describe(definition: Definition) -> str:
    match definition:
        case ImportDefinition(module=module, attribute=None):
            return f"`import {module}`"
        case ImportDefinition(module=module, attribute=attribute):
            return f"`from {module} import {attribute}`"
        case _:
            return f'Defining "{definition.name}"'


def _show(text: Text) -> None:
    """Let tracebacks and `inspect` find the text under the name that the notebook gave its cell.

    Several definitions of one cell share its name, so each adds its own lines. Without a time of change
    the entry is not checked against a file, which mostly does not exist on this side.
    """
    filename, first = text.filename, text.first_line - 1
    new = [f"{line}\n" for line in text.lines.removesuffix("\n").split("\n")]
    old = linecache.getlines(filename)
    if old[first : first + len(new)] == new:
        return
    lines = [*old, *["\n"] * (first - len(old))]
    lines[first : first + len(new)] = new
    linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
