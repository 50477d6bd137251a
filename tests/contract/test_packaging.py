"""What pip installs besides the package, and what the panel's build may and may not depend on."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
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


@pytest.mark.parametrize(
    ("version", "enough"),
    [("v18.19.0", False), ("v20.19.0", True), ("v21.7.3", False), ("v22.12.0", True), ("not installed", False)],
)
def test_a_node_that_is_too_old_is_no_node(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, enough: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hook._npm() is None
    program(tmp_path / "npm", "")
    program(tmp_path / "node", f"echo {version}")
    assert (hook._npm() is not None) == enough


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@dataclass(slots=True)
class Environment:
    """An empty environment that sees what this one has, except our package; and no Node."""

    folder: Path

    def __post_init__(self) -> None:
        venv.create(self.folder, symlinks=True)
        packages = sysconfig.get_path("purelib", vars={"base": str(self.folder)})
        Path(packages, "others.pth").write_text(sysconfig.get_path("purelib"))

    def run(self, *arguments: str) -> str:
        return run(str(self.folder / "bin" / "python"), *arguments, cwd=self.folder)

    def pip(self, *arguments: str) -> None:
        to = ("--python", str(self.folder / "bin" / "python"), "--disable-pip-version-check")
        run(sys.executable, "-m", "pip", *to, *arguments, cwd=self.folder)

    def files(self) -> set[str]:
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if not path.is_dir())
        return {name for name in found if "__pycache__" not in name}


def run(*command: str, cwd: Path, path: str | None = None) -> str:
    """With no Node, unless PATH is given, and nobody's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "PYTHON", "SKIP_"))}
    own = {"HOME": str(cwd), "PATH": path or str(cwd / "bin"), "JUPYTER_CONFIG_DIR": str(cwd / "none")}
    done = subprocess.run(
        command, cwd=cwd, env={**kept, **own}, capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout, so that its own build for development stays."""
    if not (NPM / "node_modules" / ".package-lock.json").exists():
        pytest.skip("the tools of the side panel are not installed: run `npm ci` in labextension/, or `make test`")
    copy = tmp_path_factory.mktemp("checkout") / "checkout"
    left_out = shutil.ignore_patterns(".git", ".venv", ".*_cache", "node_modules", "__pycache__", "lib", "dist")
    shutil.copytree(ROOT, copy, ignore=left_out)
    shutil.rmtree(copy / "flyte_jupyter" / "labextension", ignore_errors=True)
    (copy / "labextension" / "node_modules").symlink_to(NPM / "node_modules")
    os.utime(copy / "labextension" / "package-lock.json", (0, 0))  # old: `npm ci` would empty what the link leads to
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", cwd=copy, path=os.environ["PATH"])
    (made,) = (copy / "dist").glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    """Built from the sdist where there is no Node."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    source = sdist.parent / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", cwd=source)
    (made,) = (source / "dist").glob("*.whl")
    return made


@pytest.mark.timeout(300)
def test_a_wheel_holds_the_panel_once(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    data = f"flyte_jupyter-{flyte_jupyter.__version__}.data/data"
    assert f"{data}/etc/jupyter/jupyter_server_config.d/flyte_jupyter.json" in names
    assert f"{data}/share/jupyter/kernels/flyte-attach/kernel.json" in names
    panel = [name for name in names if "remoteEntry" in name]
    assert len(panel) == 1
    assert panel[0].startswith(f"{data}/share/jupyter/labextensions/flyte-jupyter/static/")
    assert [name for name in names if name.endswith((".ts", ".tsx", ".map")) and "/widgets/" not in name] == []


@pytest.mark.timeout(300)
def test_an_installed_wheel_is_enabled_and_uninstalls_without_a_trace(wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("jupyterlab")
    environment = Environment(tmp_path / "environment")
    before = environment.files()
    for _ in range(2):
        environment.pip("install", "--no-deps", "--no-index", str(wheel))
    panels = environment.run("-c", "from jupyterlab.labextensions import main; main()", "list")
    assert re.search(rf"flyte-jupyter v{re.escape(flyte_jupyter.__version__)} enabled +OK", panels)
    servers = environment.run("-c", "from jupyter_server.extension.serverextension import main; main()", "list")
    assert re.search(rf"flyte_jupyter {re.escape(flyte_jupyter.__version__)} OK", servers)
    where = environment.run("-c", "import flyte_jupyter; print(flyte_jupyter.__file__)")
    assert where.startswith(str(environment.folder))
    card = environment.run("-c", "from flyte_jupyter.widgets.card import PoolCard; print(PoolCard._esm)")
    scripts = {path.name for path in (ROOT / "flyte_jupyter" / "widgets").glob("*.js")}
    assert {name for name in scripts - {"load_modules.js"} if f'"{name}": "' not in card} == set()
    environment.pip("uninstall", "--yes", "flyte-jupyter")
    assert environment.files() - before == set()


def test_every_command_in_a_menu_exists() -> None:
    menus = read(NPM / "schema" / "plugin.json")["jupyter.lab.menus"]
    context = {item["command"] for item in menus["context"] if "command" in item}
    main = {item["command"] for menu in menus["main"] for item in menu["items"]}
    source = (NPM / "src" / "commands" / "ids.ts").read_text()
    assert [command for command in context | main if f"'{command}'" not in source] == []


def test_no_file_of_the_panel_has_more_than_300_lines() -> None:
    files = [*(NPM / "src").rglob("*.ts"), *(NPM / "src").rglob("*.tsx")]
    lines = {path.name: sum(map(bool, map(str.strip, path.read_text().splitlines()))) for path in files}
    assert {name: count for name, count in lines.items() if count > 300} == {}


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
