"""The state of a replica's process that a task may change for itself, and that the next task finds as it was before.

Streams, hooks, `print`, warning filters, the recursion limit. Context variables, such as NumPy's error handling and the
precision of `decimal`, need nothing: each call has a context of its own. Environment variables and the state of other
libraries stay as a task leaves them.
"""

from __future__ import annotations

import builtins
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Final

from . import seams

State = tuple[Any, ...]
"""The values of the attributes below; the warning filters; the recursion limit; the error handling of an old NumPy."""

_ATTRIBUTES: Final = (
    *((vars(sys), name) for name in ("stdout", "stderr", "stdin", "displayhook", "excepthook")),
    (vars(builtins), "print"),
    *((vars(warnings), name) for name in ("showwarning", "_showwarnmsg_impl", "filters")),  # `catch_warnings` sets all
)
_RULES: Final = len(_ATTRIBUTES)
_FILTERS: Final = _RULES - 1  # the list that has them
_ABSENT: Final = object()
_recursion_limit: Final = sys.getrecursionlimit


class Surroundings:
    """The surroundings that the tasks of a replica find, and find again.

    The process is looked at after a task alone: what else changes it says so (`by_hand`), and the next task begins with
    what that has left. A look at the beginning, too, would cost as much again, and would take for the rule what another
    thread has redirected for a moment.

    Async tasks run beside each other, and nobody can tell which of them has changed what. So all that they have changed
    is put back when the last of them ends; what one has set meanwhile is there for the others, as within one program.

    What a module sets when it is imported stays, although a task imports it: the next task's import does nothing.
    """

    __slots__ = (
        "_beside",
        "_displayhook",
        "_excepthook",
        "_filters",
        "_hands",
        "_limit",
        "_main",
        "_numpy_errors",
        "_numpy_state",
        "_print",
        "_rules",
        "_showwarning",
        "_state",
        "_stderr",
        "_stdin",
        "_stdout",
        "known",
        "tasks",
    )

    def __init__(self) -> None:
        self.tasks = 0
        """Async tasks that run."""
        self.known = False
        """Whether only tasks have run since it was noted."""
        self._state: State = ()
        self._beside: State | None = None
        self._hands: set[object] = set()  # cells of a person that run
        self._numpy_errors: Callable[[], object] | None = None
        self._main = threading.main_thread().ident

    def by_hand(self) -> ExitStack:
        """Changes that are made meanwhile are on purpose. On any thread."""
        hand = object()
        self._hands.add(hand)

        def over() -> None:
            self.known = False
            self._hands.discard(hand)

        stack = ExitStack()
        stack.callback(over)
        return stack

    # --- around a task; on the main thread

    def note(self) -> None:
        """A task begins, and no other runs: remember what there is."""
        self._remember(take())
        self.known = True

    def put_back(self) -> None:
        """A task has ended, and no other runs."""
        try:  # each call pays for this: nothing is made or copied here
            if (
                sys.stdout is self._stdout
                and sys.stderr is self._stderr
                and sys.stdin is self._stdin
                and sys.displayhook is self._displayhook
                and sys.excepthook is self._excepthook
                and builtins.print is self._print
                and warnings.showwarning is self._showwarning
                and warnings.filters is self._filters
                and self._filters == self._rules
                and _recursion_limit() == self._limit
                and (self._numpy_errors is None or self._numpy_errors() == self._numpy_state)
            ):
                return
        except AttributeError:  # something was deleted
            pass
        # A person's cell has run beside it: what is whose cannot be told, and what that has set must stay.
        if self.known and not self._hands:
            with suppress(Exception):  # a task may have broken even what this needs
                put(self._state)

    def begin_beside(self) -> bool:
        """A sync cell begins while async ones wait: nothing else runs until it ends, so what it changes is known.

        Returns: What `end_beside` wants.
        """
        known, self.known, self._beside = self.known, True, take()
        return known

    def end_beside(self, known: bool) -> None:
        state, self._beside = self._beside, None
        if state is not None and self.known and not self._hands:
            with suppress(Exception):
                put(state)
            self.known = known

    # --- imports

    def watch_imports(self) -> None:
        """See what modules set while they are imported; for the rest of this process's life."""
        bootstrap = seams.importing()
        load = bootstrap._find_and_load  # asked only for what is not there yet
        importing = False

        def _find_and_load(name: str, import_: Any) -> Any:
            nonlocal importing
            if importing or threading.get_ident() != self._main:
                return load(name, import_)
            before = take()
            try:
                importing = True
                return load(name, import_)
            finally:
                importing = False
                self._imported(before, take())

        # So tracebacks leave its lines out, as they do with the function in whose place it is.
        _find_and_load.__code__ = _find_and_load.__code__.replace(co_filename=load.__code__.co_filename)
        bootstrap._find_and_load = _find_and_load

    def _imported(self, before: State, after: State) -> None:
        made = changes(before, after)
        if made and self._beside is not None:
            self._beside = changed(self._beside, made, before)
        if made and self.known:
            self._remember(changed(self._state, made, before))

    def _remember(self, state: State) -> None:
        self._state = state
        (
            self._stdout,
            self._stderr,
            self._stdin,
            self._displayhook,
            self._excepthook,
            self._print,
            self._showwarning,
            _,
            self._filters,
            rules,
            self._limit,
            errors,
        ) = state
        self._rules = list(rules)
        self._numpy_state = list(errors)
        self._numpy_errors = getattr(sys.modules.get("numpy"), "geterrobj", None)


def take() -> State:
    """The state of now."""
    errors = getattr(sys.modules.get("numpy"), "geterrobj", None)  # before 2.0; they are a thread's, not a context's
    return (
        *(names.get(name, _ABSENT) for names, name in _ATTRIBUTES),
        tuple(vars(warnings).get("filters") or ()),
        sys.getrecursionlimit(),
        () if errors is None else tuple(errors()),  # NumPy changes its list in place
    )


def put(state: State) -> None:
    """Let it be as it was then."""
    *attributes, rules, limit, errors = state
    for (names, name), value in zip(_ATTRIBUTES, attributes, strict=True):
        if value is _ABSENT:
            names.pop(name, None)
        else:
            names[name] = value
    warnings.filters[:] = rules  # type: ignore[index]
    with warnings.catch_warnings():
        pass  # tells the interpreter that the filters are others now
    with suppress(RecursionError):  # this is deeper than that
        sys.setrecursionlimit(limit)
    if errors:
        sys.modules["numpy"].seterrobj(list(errors))


def changes(before: State, after: State) -> dict[int, Any]:
    """The parts that are not as before, by their place in the state."""
    return {
        place: new
        for place, (old, new) in enumerate(zip(before, after, strict=True))
        if old is not new and (place < _RULES or old != new)
    }


def changed(state: State, by: Mapping[int, Any], since: State | None = None) -> State:
    """The state with these changes; of the warning filters, only those that were not there `since`."""
    if since is not None and since[_FILTERS] is not state[_FILTERS]:  # inside `catch_warnings`, which forgets them
        by = {place: value for place, value in by.items() if place not in (_FILTERS, _RULES)}
    elif since is not None and _RULES in by:
        old, rules = since[_RULES], by[_RULES]
        first = next((index for index, rule in enumerate(rules) if rule in old), len(rules))
        new = [rule for rule in rules if rule not in old and rule not in state[_RULES]]
        front = [rule for rule in new if rule in rules[:first]]
        by = {**by, _RULES: (*front, *state[_RULES], *(rule for rule in new if rule not in front))}
    return tuple(by.get(place, value) for place, value in enumerate(state))
