"""The pool card in a real notebook, with real replicas, while a cell blocks; its timeline with made-up answers, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Jupyter, Lab, checked_page, keep_sight, serious
from support import TIME_SCALE

Until = Callable[[Callable[[], Any], float], Any]

EVIL = "<img src=x onerror='window.hacked=1'>\x1b[31m\u202e<script>window.hacked=1</script>"
SHOWN = "<img src=x onerror='window.hacked=1'>\\u001b[31m\\u202e<script>window.hacked=1</script>"
NOTEBOOK = "<img src=x onerror=hacked=1>.ipynb"
SETUP = f"""
import pathlib
import time
import flyte_jupyter as flyte

env = flyte.TaskEnvironment("carded", reusable=flyte.ReusePolicy(replicas=(1, 1), idle_ttl=1800))
sick = flyte.TaskEnvironment("sick", reusable=flyte.ReusePolicy(replicas=1))

def pass_gate(path: str) -> None:
    while not pathlib.Path(path).exists():
        time.sleep(0.02)

pass_gate.__name__ = {EVIL!r}
gate = env.task(pass_gate)

@flyte.pool(sick).preload
def load():
    raise ValueError({EVIL!r})

pool = flyte.pool(env)
"""
BLOCKED = """
executor = pool.executor()
passed = [executor.submit(gate, path) for path in ({gates})]
while True:
    time.sleep(3600)
"""


class Cards:
    """A notebook with two views of one card and one of a failed pool; its last cell blocks the kernel for good."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.gates = [folder / "first", folder / "second"]
        gates = ", ".join(repr(str(gate)) for gate in self.gates)
        cells = (SETUP, "pool", "pool", "flyte.pool(sick)", BLOCKED.format(gates=gates))
        self.messages = 0
        lab.page.on("websocket", lambda socket: socket.on("framereceived", self.note))
        lab.open(lab.jupyter.notebook(NOTEBOOK, *cells), panel=False)
        lab.run_cells()
        self.all = lab.page.locator(".flyte-card")
        self.all.nth(2).wait_for(timeout=30_000 * TIME_SCALE)
        self.first, self.second, self.sick = (self.all.nth(place) for place in range(3))

    def note(self, frame: str | bytes) -> None:
        """Count what widgets are told; the page talks of other things, too."""
        if b"comm_msg" in (frame.encode() if isinstance(frame, str) else frame):
            self.messages += 1

    def press(self, name: str) -> None:
        self.first.get_by_role("button", name=name, exact=True).click()

    def says(self, text: str) -> Any:
        return self.first.get_by_text(text).first


@pytest.fixture(scope="module")
def cards(context: Any, jupyter: Jupyter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cards]:
    with checked_page(context) as page:
        yield Cards(Lab(page, jupyter), tmp_path_factory.mktemp("gates"))


# These share one notebook, and tell what happens in it one after the other.


def test_it_shows_what_runs_and_who_waits_while_a_cell_blocks(cards: Cards) -> None:
    cards.first.locator(".flyte-state[data-mark='▶']").wait_for(timeout=30_000 * TIME_SCALE)
    task = cards.first.locator(".flyte-task")
    assert task.inner_text() == f"carded.{SHOWN} ({NOTEBOOK})"
    assert "queue 1 · this notebook is next" in cards.first.locator(".flyte-queue").inner_text()
    assert cards.first.locator(".flyte-queue").inner_text().count("\\u202e") == 1
    assert "1 busy" in cards.second.locator("header").inner_text()


def test_an_error_is_shown_as_text(cards: Cards) -> None:
    failed = cards.sick.locator(".flyte-failed summary")
    failed.wait_for(timeout=30_000 * TIME_SCALE)
    assert f"ValueError: {SHOWN}" in failed.inner_text()
    failed.click()
    assert SHOWN in cards.sick.locator(".flyte-failed pre").inner_text()
    assert cards.all.locator("img, script").count() == 0
    assert cards.lab.page.evaluate("() => window.hacked") is None


def test_a_replica_can_be_asked_what_it_does(cards: Cards) -> None:
    cards.press("Actions for carded[0]")
    cards.press("Peek")
    cards.first.locator("pre").get_by_text("pass_gate").wait_for()
    cards.press("Log")
    cards.first.locator("pre").get_by_text("pass_gate").wait_for(state="detached")
    cards.press("Actions for carded[0]")
    assert cards.first.get_by_role("button", name="Peek").count() == 0


def test_its_buttons_act_while_a_cell_blocks(cards: Cards) -> None:
    cards.press("Raise the maximum to 2")
    cards.says("2 busy").wait_for(timeout=20_000 * TIME_SCALE)
    assert cards.lab.scaling("carded")["max_replicas"] == 2
    assert cards.first.locator(".flyte-queue").count() == 0
    cards.second.get_by_text("2 busy").wait_for()


def test_a_call_that_ends_is_no_longer_shown(cards: Cards) -> None:
    for gate in cards.gates:
        gate.touch()
    cards.says("2 ready").wait_for()
    assert cards.first.locator(".flyte-task").all_inner_texts() == ["-", "-"]
    cards.says("2 calls · 2 starts · cold starts avoided: 0").wait_for()


def test_the_timeline_tells_what_was(cards: Cards) -> None:
    cards.first.get_by_text("Timeline", exact=True).click()
    canvas = cards.first.locator("canvas")
    cards.first.locator("canvas[aria-label*='calls: 2']").wait_for()
    assert "replicas: 2" in canvas.get_attribute("aria-label")
    canvas.focus()
    cards.lab.page.keyboard.press("ArrowDown")
    tip = cards.first.locator(".flyte-tip")
    tip.get_by_text("succeeded").wait_for()
    assert tip.locator("div").all_inner_texts()[:2] == [f"carded.{SHOWN}", NOTEBOOK]
    cards.lab.page.keyboard.press("Home")
    tip.get_by_text("starting").wait_for()
    cards.lab.page.keyboard.press("Escape")
    tip.locator("div").first.wait_for(state="detached")
    cards.first.get_by_text("Why it scaled").click()
    cards.first.locator(".flyte-history").get_by_text("carded[1]").first.wait_for()


def test_the_countdown_ticks_without_messages(cards: Cards) -> None:
    cards.says("idle off in").wait_for()
    page, timer = cards.lab.page, cards.first.get_by_role("timer")
    page.wait_for_timeout(1500)  # what was under way
    before, messages, asked = timer.inner_text(), cards.messages, []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_function("([timer, text]) => timer.textContent !== text", arg=[timer.element_handle(), before])
    between = timer.inner_text()
    page.wait_for_function("([timer, text]) => timer.textContent !== text", arg=[timer.element_handle(), between])
    assert cards.messages == messages > 10
    assert [url for url in asked if "flyte-jupyter" in url] == []


def test_keep_lasts_until_it_is_taken_back(cards: Cards) -> None:
    cards.press("Keep 2 h")
    cards.says("1:59:").wait_for()
    cards.press("Stop keeping")
    cards.first.get_by_role("button", name="Keep 2 h").wait_for()


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark", "JupyterLab Dark High Contrast"])
def test_it_is_accessible(cards: Cards, theme: str) -> None:
    cards.lab.theme(theme)
    keep_sight(cards.first, f"card, {theme}")
    assert serious(cards.lab.page, ".flyte-card") == []
    cards.lab.theme("JupyterLab Light")


def test_what_cannot_be_done_is_said(cards: Cards) -> None:
    refused = {"status": 403, "json": {"message": EVIL}}
    cards.lab.page.route("**/flyte-jupyter/pools/*/drain", lambda route: route.fulfill(**refused))
    cards.press("Drain")
    cards.first.locator(".flyte-said").get_by_text(SHOWN).wait_for()
    cards.lab.page.unroute("**/flyte-jupyter/pools/*/drain")


def test_stop_asks_first(cards: Cards) -> None:
    cards.press("Stop…")
    cards.press("Cancel")
    assert cards.says("2 ready").count() == 1
    cards.press("Stop…")
    cards.press("Stop now")
    cards.first.locator(".flyte-wide").wait_for(state="detached")
    assert cards.lab.page.evaluate("() => window.hacked") is None
