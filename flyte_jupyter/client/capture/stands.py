"""What stands in a pickle for things that cannot be pickled as they are."""

from __future__ import annotations

import types
from typing import Any, Final

from ...core.definitions import make

Names = dict[str, Any]


class Stand:
    """Stands for an object that must not be pickled itself: a notebook's globals, for example."""

    def __init__(self, *made: Any, is_module: bool = False) -> None:
        self._made = made
        self.is_module = is_module

    def reduced(self) -> Any:
        return make, self._made


class Foreign(Stand):
    """The globals of code that belongs to no module: functions that share them do so on a replica."""

    def __init__(self, index: int, names: Names) -> None:
        head = {name: names[name] for name in ("__name__", "__package__", "__file__") if name in names}
        super().__init__("namespace", index, head)
        self.names = names


class Shell(Stand):
    """A closure's cell, before anything is in it."""

    def __init__(self, cell: types.CellType, index: int, function: int, number: int) -> None:
        super().__init__("cell", index, function, number)
        self.cell = cell


def attributes_of(cls: type) -> Names:
    """What is set on a class; less what Python makes of it by itself."""
    found = {}
    for name, value in vars(cls).items():
        own = getattr(value, "__objclass__", None) is cls
        if own and isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            continue  # made of `__slots__`; `__dict__`, `__weakref__`
        if name in _MADE_BY_PYTHON or (name == "__annotations__" and not value):
            continue
        # Their order differs from process to process.
        is_of_text = isinstance(value, frozenset) and all(isinstance(each, str) for each in value)
        found[name] = Stand("frozenset", sorted(value)) if is_of_text else value
    slots = found.get("__slots__")
    if slots is not None and not isinstance(slots, str | tuple | list | dict):  # an iterator, which is used up
        found["__slots__"] = tuple(
            name for name, value in vars(cls).items() if isinstance(value, types.MemberDescriptorType)
        )
    # Python adds some of its own names sooner on a replica than it did here. The user's order is the user's.
    special = sorted(name for name in found if name[:2] == name[-2:] == "__")
    return {name: found[name] for name in (*special, *(name for name in found if name not in special))}


_MADE_BY_PYTHON: Final = frozenset(
    "__dict__ __weakref__ __slotnames__ _abc_impl __firstlineno__ __annotate_func__ __annotations_cache__".split()
)
