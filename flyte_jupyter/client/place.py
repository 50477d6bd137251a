"""Where this process is, as far as a task must find it there, too: folder, arguments, import path, loaded modules."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Final

from .. import modules
from .warning import warn


@dataclass(frozen=True, slots=True)
class Place:
    """What a replica is told before the first call, and again when it has changed.

    Attributes:
        folder: "" if there is none any more.
        path: `sys.path` as it is; it is told in absolute paths.
        modules: The user's modules that are loaded here.
    """

    folder: str
    arguments: list[str]
    path: list[str]
    modules: modules.Table

    @classmethod
    def here(cls) -> Place:
        table = modules.current()
        for name, loaded in table.modules.items():
            if not loaded.is_known and (name, loaded.file) not in _warned:
                _warned.add((name, loaded.file))
                warn(
                    f'{loaded.file} has changed since "{name}" was imported here, and what it was then is not known: '
                    f"tasks use it as it is now. `importlib.reload({name})` makes that so here, too."
                )
        return cls(_folder(), _arguments(), list(sys.path), table)

    def still_holds(self) -> bool:
        """Whether all is as it was. Each call asks."""
        try:
            return (
                os.getcwd() == self.folder
                and sys.path == self.path
                and sys.argv == self.arguments
                and modules.current() is self.modules
            )
        except (FileNotFoundError, AttributeError):  # a folder that was removed; a `sys.argv` that was deleted
            return False

    def as_json(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "arguments": self.arguments,
            "path": [os.path.abspath(entry) for entry in self.path if isinstance(entry, str)],  # as Python does
            "modules": [self.modules.digest, self.modules.described],
        }

    def described(self) -> str:
        return json.dumps(self.as_json())


_warned: Final[set[tuple[str, str]]] = set()


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed under our feet
        return ""


def _arguments() -> list[str]:
    """`sys.argv` as text: programs put all kinds of things there, or take it away."""
    argv = getattr(sys, "argv", None)
    return [str(each) for each in argv] if isinstance(argv, list) else [""]
