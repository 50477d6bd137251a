"""The functions that call tasks. The package says where they are: tasks are declared without loading any of it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol


class Calls(Protocol):
    """The module `remote`."""

    def call(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any: ...
    def acall(self, task: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Coroutine[Any, Any, Any]: ...


_registered: list[Callable[[], Calls]] = []


def register_calls(load: Callable[[], Calls]) -> None:
    """Let tasks be called by these from now on."""
    _registered[:] = [load]


def calls() -> Calls:
    return _registered[0]()
