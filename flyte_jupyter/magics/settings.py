"""Defaults of this notebook's task cells, and where each of them comes from: `%flyte_config`."""

from __future__ import annotations

import argparse
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast, get_args

from ..client import text
from ..client.outputs import LIMIT_BYTES
from ..core.arguments import parse_duration, parse_size
from ..core.cells import Scope

FILE: Final = "flyte_jupyter.toml"
TABLE: Final = "cells"


def parse_scope(value: str) -> Scope:
    """One of the scopes."""
    if value in get_args(Scope):
        return cast("Scope", value)
    raise argparse.ArgumentTypeError(f"{value!r} is not a scope; write {', '.join(get_args(Scope))}")


def parse_flag(value: str) -> bool:
    """A choice in words."""
    if value.lower() not in ("true", "false", "yes", "no", "on", "off"):
        raise argparse.ArgumentTypeError(f"{value!r} is neither on nor off")
    return value.lower() in ("true", "yes", "on")


PARSERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "pool": str,
    "scope": parse_scope,
    "timeout": parse_duration,
    "progress_after": parse_duration,
    "quiet": parse_flag,
    "output_limit": parse_size,
}
DEFAULTS: Final[Mapping[str, Any]] = {
    "pool": "",
    "scope": "fresh",
    "timeout": 0.0,  # none
    "progress_after": 2.0,
    "quiet": False,
    "output_limit": LIMIT_BYTES,
}


class Settings:
    """What a task cell does that says nothing else: defaults, the user's file, the project's, then the notebook."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = dict(DEFAULTS)
        self.origins: dict[str, str] = dict.fromkeys(DEFAULTS, "default")
        self.problems: list[str] = []
        for origin, path in (("user", user_file()), ("project", project_file())):
            self._read(origin, path)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def set(self, name: str, value: Any, origin: str = "notebook") -> None:
        self.values[name] = value
        self.origins[name] = origin

    def table(self) -> str:
        """Each setting with its value and where it comes from."""
        rows = [(name.replace("_", "-"), _written(name, self.values[name]), self.origins[name]) for name in self.values]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *self.problems])

    def save(self, where: str) -> Path:
        """Store what this notebook has set for others: where=\"user\" or \"project\"."""
        path = user_file() if where == "user" else project_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text("utf-8") if path.exists() else ""
        kept = re.sub(rf"(?ms)^\[{TABLE}\]\n.*?(?=^\[|\Z)", "", old).rstrip()
        stored = _table(tomllib.loads(old)) if old else {}
        mine = {name: _written(name, self.values[name]) for name, origin in self.origins.items() if origin != "default"}
        lines = [f'{name.replace("_", "-")} = "{value}"' for name, value in {**stored, **mine}.items()]
        path.write_text("\n".join([*([kept, ""] if kept else []), f"[{TABLE}]", *lines, ""]), "utf-8")
        return path

    def _read(self, origin: str, path: Path) -> None:
        try:
            stored = _table(tomllib.loads(path.read_text("utf-8")))
            for name, value in stored.items():
                self.set(name, PARSERS[name](value), origin)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, argparse.ArgumentTypeError) as problem:
            self.problems.append(f"{path.name} ({origin}) is not used: {problem}")


def user_file() -> Path:
    import platformdirs

    return Path(platformdirs.user_config_dir("flyte_jupyter")) / FILE


def project_file() -> Path:
    return Path(os.getcwd()) / FILE


def _table(stored: dict[str, Any]) -> dict[str, str]:
    return {name.replace("-", "_"): str(value) for name, value in stored.get(TABLE, {}).items()}


def _written(name: str, value: Any) -> str:
    if name == "output_limit":
        return f"{value}" if value % 2**20 else f"{value // 2**20}MiB"
    if name in ("timeout", "progress_after"):
        return "0" if not value else text.duration(value) if value == int(value) else f"{value:g}"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
