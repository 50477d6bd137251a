"""What the panel shows for each state that a server can be in; the server's answers are made up here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import states
from conftest import FakeServer, Lab, serious

THEMES = ("JupyterLab Light", "JupyterLab Dark", "JupyterLab Dark High Contrast")


def seconds(text: str) -> int:
    """ "29:40" in a text, as seconds."""
    found = re.search(r"(?:(\d+):)?(\d+):(\d\d)", text)
    assert found, text
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + rest


@pytest.mark.parametrize("kind", states.EMPTY_AND_FAILED)
def test_an_empty_or_failed_state_has_a_text_and_one_action(lab: Lab, fake: FakeServer, kind: str) -> None:
    fake.status, fake.state = states.EMPTY_AND_FAILED[kind]
    lab.open()
    hint = lab.panel.locator(f".fj-Hint[data-kind={kind}]")
    hint.wait_for()
    assert len(hint.inner_text()) > 40
    assert hint.get_by_role("button").count() == 1


def test_a_lost_connection_keeps_the_last_state_and_recovers(lab: Lab, fake: FakeServer) -> None:
    fake.state = states.rich()
    lab.open()
    lab.pool("gpu").wait_for()
    fake.drop(502)
    lab.panel.locator(".fj-Hint[data-kind=lost]").wait_for()
    assert lab.panel.locator(".fj-mod-stale .fj-Pool").count() == 3
    fake.status = 200
    lab.panel.get_by_role("button", name="Try now").click()
    lab.panel.locator(".fj-Hint").wait_for(state="detached")


def test_a_missing_driver_is_named_beside_the_pools(lab: Lab, fake: FakeServer) -> None:
    fake.state = states.changed(devices=[], device_problem="the driver did not answer: library not found")
    lab.open()
    problem = lab.panel.locator("[data-kind=no-gpu]")
    problem.wait_for()
    assert "library not found" in problem.inner_text()
    assert problem.get_by_role("button").count() == 1
    lab.pool("gpu").wait_for()


def test_a_failed_pool_says_why_and_offers_a_retry(
    lab: Lab, fake: FakeServer, until: Callable[[Callable[[], Any], float], Any]
) -> None:
    fake.state = states.rich()
    lab.open()
    pool = lab.pool("asr")
    assert "ImportError: no <b>transformers</b>" in pool.inner_text()
    assert pool.locator("b").count() == 0
    pool.get_by_role("button", name="Retry").click()
    until(lambda: any("/warm" in request for request in fake.requests), 5)


def test_names_with_markup_are_shown_as_text(lab: Lab, fake: FakeServer) -> None:
    odd = "<img src=x onerror='window.broken = true'>"
    state = states.changed()
    pool = state["snapshot"]["pools"][0]
    pool["name"] = pool["replicas"][0]["leases"][0]["task"] = pool["queue"][0]["client"] = odd
    pool["notes"] = [odd]
    fake.state = state
    lab.open()
    lab.panel.get_by_text("<img src=x").first.wait_for()
    assert lab.panel.locator("img").count() == 0
    pool["replicas"][0]["leases"] = []
    fake.send(state | {"tag": "later"})  # what ended is named, too
    lab.panel.locator(".fj-Recent").get_by_text("<img").wait_for()
    lab.execute("flyte-jupyter:stop", pool=pool["key"])
    assert "<img" in lab.dialog().inner_text()
    assert lab.page.evaluate("() => window.broken") is None


def test_a_countdown_ticks_without_any_request(lab: Lab, fake: FakeServer) -> None:
    fake.state = states.rich()
    lab.open()
    timer = lab.pool("gpu").get_by_role("timer")
    first = seconds(timer.inner_text())
    assert 1770 <= first <= 1780
    before = len(fake.requests)
    lab.page.wait_for_timeout(3200)
    assert 2 <= first - seconds(timer.inner_text()) <= 5
    assert len(fake.requests) == before


def test_a_hidden_panel_makes_no_request(
    lab: Lab, fake: FakeServer, until: Callable[[Callable[[], Any], float], Any]
) -> None:
    fake.state = states.rich()
    lab.open(panel=False)
    lab.page.wait_for_timeout(2500)
    assert fake.requests == []
    lab.execute("flyte-jupyter:open")
    lab.pool("gpu").wait_for()
    assert "stream" in fake.requests
    lab.execute("filebrowser:activate")
    lab.panel.wait_for(state="hidden")
    before = list(fake.requests)
    fake.send(states.changed(pools=[]))
    lab.page.wait_for_timeout(5000)
    assert fake.requests == before
    lab.execute("flyte-jupyter:open")
    lab.panel.locator(".fj-Hint[data-kind=no-pool]").wait_for()


def test_the_running_panel_is_up_to_date_while_it_can_be_seen(lab: Lab, fake: FakeServer) -> None:
    fake.state = states.rich()
    lab.open(panel=False)
    lab.execute("running:show-panel")
    running = lab.page.locator(".jp-RunningSessions")
    running.get_by_text("gpu", exact=True).wait_for()
    fake.send(states.changed(pools=[]))
    running.get_by_text("gpu", exact=True).wait_for(state="detached")
    lab.execute("filebrowser:activate")
    running.wait_for(state="hidden")
    before = list(fake.requests)
    lab.page.wait_for_timeout(4000)
    assert fake.requests == before


def test_changes_are_announced_politely_and_seldom(lab: Lab, fake: FakeServer) -> None:
    fake.state = states.rich()
    lab.open()
    lab.pool("gpu").wait_for()
    lab.page.evaluate(
        """() => {
            const live = document.querySelector('.fj-Panel [aria-live=polite]');
            window.said = [];
            new MutationObserver(() => window.said.push(live.textContent)).observe(
                live, { childList: true, characterData: true, subtree: true });
        }"""
    )
    for waiting in range(2, 8):
        state = states.changed()
        state["snapshot"]["pools"][0]["waiting"] = waiting
        fake.send(state)
        lab.page.wait_for_timeout(300)
    assert lab.page.evaluate("() => window.said.length") == 1
    lab.page.wait_for_timeout(10_000)
    said = lab.page.evaluate("() => window.said")
    assert len(said) == 2
    assert "7 calls wait" in said[1]


def test_the_panel_can_be_used_with_the_keyboard_alone(lab: Lab, fake: FakeServer) -> None:
    fake.state = states.rich()
    lab.open()
    lab.pool("gpu").wait_for()
    press = lab.page.keyboard.press

    def focused(what: str = "node.textContent") -> str:
        return str(lab.page.evaluate(f"() => {{ const node = document.activeElement; return {what}; }}") or "")

    assert focused("node.title") == "Refresh"  # opening the panel goes there
    press("Tab")
    press("Tab")
    assert "gpu" in focused()
    press("ArrowDown")
    assert "asr" in focused()
    press("End")
    assert "embed" in focused()
    press("Home")
    assert focused("node.getAttribute('aria-expanded')") == "true"
    press("Enter")
    assert focused("node.getAttribute('aria-expanded')") == "false"
    assert not lab.pool("gpu").locator(".fj-Replicas").is_visible()
    press("Space")
    assert lab.pool("gpu").locator(".fj-Replicas").is_visible()

    press("Tab")
    assert "Insert a task cell" in focused("node.title")
    press("Tab")
    assert "More actions" in focused("node.title")
    press("Enter")
    menu = lab.page.locator(".lm-Menu")
    menu.wait_for()
    assert "Scale…" in menu.inner_text()
    for _ in range(12):
        if "Stop…" in lab.page.locator(".lm-Menu-item.lm-mod-active").all_inner_texts().__str__():
            break
        press("ArrowDown")
    press("Enter")
    dialog = lab.dialog()
    assert "Stop pool gpu?" in dialog.inner_text()
    press("Escape")
    dialog.wait_for(state="detached")
    assert not any(request.startswith("POST") for request in fake.requests)


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing_serious(lab: Lab, fake: FakeServer, theme: str) -> None:
    fake.state = states.rich()
    lab.open()
    lab.theme(theme)
    lab.pool("gpu").wait_for()
    found = serious(lab.page, ".fj-Panel")
    lab.theme("JupyterLab Light")
    assert found == []


@pytest.mark.parametrize("theme", THEMES)
def test_a_screenshot_of_everything(lab: Lab, fake: FakeServer, theme: str, tmp_path: Path) -> None:
    fake.state = states.rich()
    lab.open()
    lab.theme(theme)
    lab.pool("gpu").wait_for()
    path = Path(os.environ.get("SCREENSHOTS") or tmp_path) / f"panel, {theme}.png"
    lab.page.screenshot(path=str(path))
    lab.theme("JupyterLab Light")
    assert path.stat().st_size > 10_000


def test_a_pool_is_dragged_into_a_notebook(lab: Lab, fake: FakeServer) -> None:
    fake.state = states.rich()
    name = lab.jupyter.notebook("drag.ipynb", "first = 1")
    lab.open(name)
    cell = lab.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell").first
    cell.wait_for()
    source = lab.pool("gpu").locator(".fj-Counts").bounding_box()
    target = cell.bounding_box()
    mouse = lab.page.mouse
    mouse.move(source["x"] + 60, source["y"] + 5)
    mouse.down()
    mouse.move(source["x"] + 80, source["y"] + 20, steps=4)
    mouse.move(target["x"] + 200, target["y"] + 10, steps=10)
    mouse.up()
    lab.page.locator(".jp-CodeCell").get_by_text("%%flyte_task gpu").wait_for()


def test_a_button_inserts_the_same_cell(lab: Lab, fake: FakeServer) -> None:
    fake.state = states.rich()
    lab.open(lab.jupyter.notebook("insert.ipynb", "first = 1"))
    lab.page.locator(".jp-CodeCell").first.wait_for()
    lab.page.get_by_role("button", name="Insert a task cell for gpu").click()
    lab.page.locator(".jp-CodeCell").get_by_text("%%flyte_task gpu").wait_for()
    assert lab.page.locator(".jp-CodeCell").count() == 2


def test_the_example_goes_into_a_new_notebook_if_none_is_open(lab: Lab, fake: FakeServer) -> None:
    fake.status, fake.state = states.EMPTY_AND_FAILED["no-broker"]
    lab.open()
    lab.panel.get_by_role("button", name="Insert an example", exact=True).click()
    lab.page.locator(".jp-CodeCell").get_by_text("TaskEnvironment").wait_for(timeout=30_000)
    assert lab.page.locator(".jp-CodeCell").count() == 1


def test_the_palette_asks_which_pool_is_meant(lab: Lab, fake: FakeServer) -> None:
    fake.state = states.rich()
    lab.open()
    lab.pool("gpu").wait_for()
    lab.execute("apputils:activate-command-palette")
    lab.page.locator(".lm-CommandPalette-input, .jp-modal-CommandPalette input").first.fill("warm now")
    lab.page.locator(".lm-CommandPalette-item.lm-mod-active").wait_for()
    lab.page.keyboard.press("Enter")
    dialog = lab.dialog()
    dialog.locator("select").select_option(index=2)
    with lab.page.expect_request("**/warm*") as request:
        dialog.locator("button.jp-mod-accept").click()
    assert states.rich()["snapshot"]["pools"][2]["key"] in request.value.url
    assert request.value.post_data_json == {"replicas": 1}


def test_a_refusal_is_shown(lab: Lab, fake: FakeServer) -> None:
    fake.state = states.rich()
    lab.open()
    lab.pool("gpu").wait_for()
    fake.status = 503
    lab.pool("gpu").get_by_role("button", name="Raise the minimum").click()
    lab.page.locator(".jp-Notification-List, .Toastify__toast, .jp-toastContainer").get_by_text("no").first.wait_for()
