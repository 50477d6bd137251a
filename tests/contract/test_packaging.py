"""What pip installs besides the package, and what the panel's build may and may not depend on."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import flyte_jupyter

ROOT = Path(__file__).parents[2]
NPM = ROOT / "labextension"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture
def hook() -> ModuleType:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_panel_and_package_have_one_version() -> None:
    assert read(NPM / "package.json")["version"] == flyte_jupyter.__version__
    assert read(NPM / "package-lock.json")["version"] == flyte_jupyter.__version__


def test_the_lock_file_names_no_registry() -> None:
    lock = (NPM / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    assert re.findall(r"https?://[^/\"]*(?:registry|npmjs|yarnpkg)[^\"]*", lock) == []
    assert "integrity" in lock


def test_an_installation_enables_panel_and_server() -> None:
    shared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    places = shared["shared-data"]
    name = read(NPM / "package.json")["name"]
    assert places["flyte_jupyter/labextension"] == f"share/jupyter/labextensions/{name}"
    config = next(path for path, place in places.items() if place.startswith("etc/jupyter/jupyter_server_config.d/"))
    assert read(ROOT / config) == {"ServerApp": {"jpserver_extensions": {"flyte_jupyter": True}}}
    assert (NPM / "install.json").exists()


def test_every_command_in_a_menu_exists() -> None:
    menus = read(NPM / "schema" / "plugin.json")["jupyter.lab.menus"]
    context = {item["command"] for item in menus["context"] if "command" in item}
    main = {item["command"] for menu in menus["main"] for item in menu["items"]}
    source = (NPM / "src" / "commands.ts").read_text()
    assert [command for command in context | main if f"'{command}'" not in source] == []


def test_the_panel_is_built_again_exactly_when_a_source_changes(hook: ModuleType, tmp_path: Path) -> None:
    panel = tmp_path / "labextension"
    panel.mkdir()
    for name in ("package.json", "package-lock.json", "src", "schema"):
        source = NPM / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, panel / name)
    widgets = shutil.copytree(ROOT / "flyte_jupyter" / "widgets", tmp_path / "flyte_jupyter" / "widgets")
    before = hook.inputs_hash(panel, "prod")
    assert hook.inputs_hash(panel, "prod") == before
    assert hook.inputs_hash(panel, "dev") != before
    (panel / "src" / "__tests__" / "new.spec.ts").write_text("")
    assert hook.inputs_hash(panel, "prod") == before
    index = panel / "src" / "index.ts"
    index.write_bytes(index.read_bytes().replace(b"\n", b"\r\n"))
    assert hook.inputs_hash(panel, "prod") == before
    (widgets / "card.py").write_text("")
    assert hook.inputs_hash(panel, "prod") == before
    timeline = widgets / "timeline.js"
    timeline.write_text(timeline.read_text() + "// more\n")
    after = hook.inputs_hash(panel, "prod")
    assert after != before
    index.write_text(index.read_text() + "// more\n")
    assert hook.inputs_hash(panel, "prod") != after
