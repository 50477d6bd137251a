"""A real JupyterLab in a folder of its own, a real broker, and a real browser; each test gets a fresh page.

Run apart from the other tests, `pytest tests/browser`: playwright holds an event loop of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import chromium
import pytest
from support import TIME_SCALE, end_broker, wait_until

from flyte_jupyter import runtime

playwright_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jupyterlab")

ARGUMENTS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-dev-shm-usage "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
AXE = Path(__file__).parents[2] / "labextension" / "node_modules" / "axe-core" / "axe.min.js"
STEP_MS = 15_000 * TIME_SCALE
QUIET = {"fetchNews": "false", "checkForUpdates": False}
NOTEBOOK = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
SPEC = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


class Jupyter:
    """A server with everything of its own: home, settings, runtime folder, broker. Lab and Notebook 7 at once.

    `more` is added to its configuration, which is Python.
    """

    def __init__(self, home: Path, more: str = "") -> None:
        self.home = home
        self.root = home / "root"
        self.root.mkdir()
        # Unix sockets: a short path.
        self.runtime = Path(tempfile.mkdtemp(prefix="fj-", dir="/tmp"))
        self.settings = home / "settings"
        self.token = "browser-tests"
        self.write_setting("@jupyterlab/apputils-extension", "notification", QUIET)
        config = home / "config.py"
        config.write_text(
            "c.LabApp.expose_app_in_browser = True\n"
            "c.JupyterNotebookApp.expose_app_in_browser = True\n"
            "c.LabApp.extension_manager = 'readonly'\n" + more
        )
        self.log = home / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                    *("--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--IdentityProvider.token={self.token}"),
                    *(f"--ServerApp.root_dir={self.root}", f"--config={config}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                cwd=home,
                start_new_session=True,
            )
        self.url = wait_until(self._find, 30, f"JupyterLab does not start, see {self.log}")

    def environment(self) -> dict[str, str]:
        """Of programs that are to find its broker, and nothing else of this machine."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY", "FLYTE_JUPYTER_"))}
        folders = {name: str(self.home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
        return {
            **kept,
            **folders,
            "HOME": str(self.home),
            "IPYTHONDIR": str(self.home / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(self.home / "jupyter_runtime_dir"),
            "JUPYTERLAB_SETTINGS_DIR": str(self.settings),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.home / "workspaces"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "FLYTE_JUPYTER_GPUS": "[]",
            runtime.VARIABLE: str(self.runtime),
        }

    def _find(self) -> str:
        assert self.process.poll() is None, self.log.read_text()
        for path in (self.home / "jupyter_runtime_dir").glob("jpserver-*.json"):
            with suppress(OSError, ValueError):
                url: str = json.loads(path.read_text())["url"]
                with urllib.request.urlopen(f"{url}api/status?token={self.token}", timeout=5):
                    return url
        return ""

    def address(self, path: str = "lab") -> str:
        return f"{self.url}{path}{'&' if '?' in path else '?'}token={self.token}"

    def write_setting(self, plugin: str, name: str, value: dict[str, Any]) -> Path:
        path = self.settings / plugin / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
        return path

    def notebook(self, name: str, *sources: str) -> str:
        cells = [
            {
                "cell_type": "code",
                "id": f"c{index}",
                "source": source,
                "metadata": {},
                "outputs": [],
                "execution_count": None,
            }
            for index, source in enumerate(sources)
        ]
        (self.root / name).write_text(json.dumps({**NOTEBOOK, "cells": cells, "metadata": SPEC}))
        return name

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(15 * TIME_SCALE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        try:
            end_broker(self.runtime)
        finally:
            shutil.rmtree(self.runtime, ignore_errors=True)


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    server = Jupyter(tmp_path_factory.mktemp("lab"))
    yield server
    server.end()


@pytest.fixture(scope="session")
def context() -> Iterator[Any]:
    path = chromium.find()
    if path is None:
        pytest.fail(chromium.HOW)
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        # One context for all: its cache makes a page load take 4 s and not 6.
        made = browser.new_context(viewport={"width": 1200, "height": 900})
        made.set_default_timeout(STEP_MS)
        yield made
        browser.close()


@contextmanager
def checked_page(context: Any) -> Iterator[Any]:
    """A page on which no script may fail."""
    made = context.new_page()
    errors: list[str] = []

    def note(error: Any) -> None:
        # Notebook 7.6 stumbles over a schema of its own, also without any extension.
        if "/static/notebook/" not in (error.stack or ""):
            errors.append(f"{error}\n{error.stack}")

    made.on("pageerror", note)
    yield made
    made.close()
    assert errors == []


@pytest.fixture
def page(context: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page that fails its test if a script on it fails; its last sight is kept in SCREENSHOTS when that is set."""
    with checked_page(context) as made:
        yield made
        keep_sight(made, request.node.name)


def keep_sight(of: Any, name: str) -> None:
    """Keep how a page or a part of one looks, in SCREENSHOTS when that is set."""
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        with suppress(playwright_api.Error):
            of.screenshot(path=str(Path(folder) / f"{name}.png"))


def serious(page: Any, selector: str) -> list[Any]:
    """What axe finds there that keeps somebody out."""
    if not AXE.exists():
        pytest.skip("no axe-core: run `npm ci` in labextension/")
    page.add_script_tag(path=str(AXE))
    result = page.evaluate("selector => axe.run(selector)", selector)
    return [
        (found["id"], [(node["html"][:160], node["failureSummary"][:200]) for node in found["nodes"]])
        for found in result["violations"]
        if found["impact"] in ("serious", "critical")
    ]


_WORKSPACES = itertools.count()


class Lab:
    """JupyterLab in a page, with the panel open."""

    def __init__(self, page: Any, jupyter: Jupyter) -> None:
        self.page = page
        self.jupyter = jupyter
        self.panel = page.locator(".fj-Panel")
        # Two pages with one workspace would not leave each other alone.
        self.workspace = f"lab/workspaces/w{next(_WORKSPACES)}"

    def open(self, path: str = "", *, panel: bool = True) -> Lab:
        self.load(path)
        if panel:
            self.show_panel()
        return self

    def load(self, path: str = "") -> None:
        """Load the page anew, with the layout that it had."""
        target = f"{self.workspace}/tree/{path}" if path else self.workspace
        self.page.goto(self.jupyter.address(target))
        self.page.wait_for_function("() => window.jupyterapp")
        self.page.evaluate("async () => { await window.jupyterapp.restored; }")
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def show_panel(self) -> None:
        self.execute("flyte-jupyter:open")
        self.panel.wait_for()

    def details(self, name: str) -> Any:
        """The tab about a pool, opened from its row."""
        self.pool(name).get_by_role("button", name=name, exact=True).click()
        tab = self.page.locator(".fj-Details:not(.lm-mod-hidden)")
        tab.get_by_role("heading", name=name, exact=True).wait_for()
        return tab

    def execute(self, command: str, **arguments: Any) -> None:
        self.page.evaluate("([id, args]) => void window.jupyterapp.commands.execute(id, args)", [command, arguments])

    def run_cells(self) -> None:
        """Run all cells of the notebook that is open, once its kernel is there."""
        self.page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=30_000 * TIME_SCALE)
        self.execute("notebook:run-all-cells")

    def pool(self, name: str) -> Any:
        return self.panel.locator(".fj-Pool").filter(has=self.page.get_by_text(name, exact=True))

    def menu(self, row: Any, item: str) -> None:
        """Choose from a row's menu."""
        self.open_menu(row).get_by_text(item, exact=True).click()

    def open_menu(self, row: Any) -> Any:
        row.get_by_role("button", name="More actions").first.click()
        menu = self.page.locator(".lm-Menu")
        menu.wait_for()
        return menu

    def snapshot(self) -> dict[str, Any]:
        """What the server says, with the instants of pools in Unix time."""
        address = f"{self.jupyter.url}flyte-jupyter/pools?token={self.jupyter.token}"
        with urllib.request.urlopen(address, timeout=STEP_MS / 1000) as answer:
            state = json.load(answer)
        for pool in state["snapshot"]["pools"]:
            for replica in pool["replicas"]:
                replica["started_at"] += state["epoch_offset"]
        found: dict[str, Any] = state["snapshot"]
        return found

    def act(self, pool: str, verb: str, **body: Any) -> None:
        """Ask the real server for something."""
        key = next(each["key"] for each in self.snapshot()["pools"] if each["name"] == pool)
        headers = {"Authorization": f"token {self.jupyter.token}", "Content-Type": "application/json"}
        url = f"{self.jupyter.url}flyte-jupyter/pools/{key}/{verb}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        urllib.request.urlopen(request, timeout=STEP_MS / 1000).close()

    def scaling(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(pool for pool in self.snapshot()["pools"] if pool["name"] == name)["scaling"]
        return found

    def dialog(self) -> Any:
        found = self.page.locator(".jp-Dialog")
        found.wait_for()
        return found

    def theme(self, name: str) -> None:
        self.page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', { theme: name })", name)
        self.page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")


@pytest.fixture
def lab(page: Any, jupyter: Jupyter) -> Lab:
    return Lab(page, jupyter)


class FakeServer:
    """Answers in place of our server extension, for states that are hard to bring about."""

    def __init__(self, page: Any) -> None:
        self.requests: list[str] = []
        self.status = 200
        self.message = "no"
        """What an error says."""
        self.state: dict[str, Any] | None = None
        self.answers: dict[str, Callable[[], Any]] = {}
        """By the end of a path: what answers there, instead of the state."""
        self._page = page
        self.listeners: list[Any] = []
        """The sockets of those who hear of changes."""
        page.route(re.compile(r"^http://[^/]+/flyte-jupyter/"), self._answer)  # not the files of the panel
        page.route_web_socket(re.compile(r"/flyte-jupyter/stream"), self._open)

    def _answer(self, route: Any) -> None:
        self.requests.append(f"{route.request.method} {route.request.url.split('flyte-jupyter/')[1]}")
        if self.status != 200 or self.state is None:
            route.fulfill(status=self.status, json={"message": self.message, "reason": "no"})
        elif answer := self._answer_to(route.request.url):
            route.fulfill(json=answer())
        elif route.request.method == "POST":
            route.fulfill(status=202, json={})
        else:
            route.fulfill(json=self.state | {"now": time.time()})

    def _answer_to(self, url: str) -> Callable[[], Any] | None:
        path = url.partition("?")[0]
        return next((answer for end, answer in self.answers.items() if path.endswith(end)), None)

    def _open(self, socket: Any) -> None:
        self.requests.append("stream")
        if self.status != 200 or self.state is None:
            socket.close()
            return
        self.listeners.append(socket)
        socket.send(json.dumps(self.state | {"now": time.time()}))

    def settle(self) -> None:
        """Until all that the page has asked so far is in `requests`."""
        self._page.evaluate("async () => { await fetch('/flyte-jupyter/settled'); }")

    def send(self, state: dict[str, Any]) -> None:
        self.state = state
        for socket in self.listeners:
            socket.send(json.dumps(state | {"now": time.time()}))

    def drop(self, status: int) -> None:
        """From now on, errors only."""
        self.status = status
        for socket in self.listeners:
            socket.close()
        self.listeners.clear()


@pytest.fixture
def fake(page: Any) -> FakeServer:
    return FakeServer(page)


def wait_on(page: Any) -> Callable[[Callable[[], Any], float], Any]:
    """What waits for a condition on this side while the page goes on."""

    def wait(condition: Callable[[], Any], seconds: float = 10) -> Any:
        deadline = time.monotonic() + seconds * TIME_SCALE
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {seconds:g} s"
            page.wait_for_timeout(20)
        return value

    return wait


def settled(page: Any, count: Callable[[], object]) -> Any:
    """What is counted, once it has been the same for a second: what was under way is over."""
    for _ in range(20):
        before = count()
        page.wait_for_timeout(1000)
        if before == (now := count()):
            return now
    raise AssertionError(f"it goes on: {now}")


@pytest.fixture
def until(page: Any) -> Callable[[Callable[[], Any], float], Any]:
    return wait_on(page)
