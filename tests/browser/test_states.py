"""What the panel and a pool's details show for each state that a server can be in; its answers are made up here.

Most of it happens on one page that gets new states: a page load takes longer than what is tested.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import states
from conftest import FakeServer, Jupyter, Lab, checked_page, keep_sight, serious, wait_on
from support import TIME_SCALE

Until = Callable[[Callable[[], Any], float], Any]

THEMES = ("JupyterLab Light", "JupyterLab Dark", "JupyterLab Dark High Contrast")
EVIL = "<img src=x onerror='window.broken = true'>\x1b[31m\u202e"
SHOWN = "<img src=x onerror='window.broken = true'>\\u001b[31m\\u202e"


def seconds(text: str) -> int:
    """ "29:40" in a text, as seconds."""
    found = re.search(r"(?:(\d+):)?(\d+):(\d\d)", text)
    assert found, text
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + rest


def served(page: Any) -> FakeServer:
    """A server that has something to tell."""
    made = FakeServer(page)
    made.state = states.rich()
    made.answers = {"/timeline": states.timeline, "/log": states.log}
    return made


@pytest.fixture
def fake(page: Any) -> FakeServer:
    return served(page)


@pytest.fixture(scope="module")
def shared(context: Any, jupyter: Jupyter) -> Iterator[tuple[Lab, FakeServer]]:
    with checked_page(context) as page:
        fake = served(page)
        yield Lab(page, jupyter).open(), fake


@pytest.fixture
def here(shared: tuple[Lab, FakeServer]) -> Iterator[tuple[Lab, FakeServer]]:
    """The page that many tests share: the panel is open and shows what `states.rich` says."""
    lab, fake = shared
    fake.status, fake.message, fake.answers = 200, "no", {"/timeline": states.timeline, "/log": states.log}
    fake.send(states.changed())
    lab.show_panel()
    with lab.page.expect_response(re.compile(r"/flyte-jupyter/pools(\?|$)")):
        lab.execute("flyte-jupyter:refresh")
    wait_on(lab.page)(lambda: fake.listeners)
    lab.panel.locator(".fj-Hint").wait_for(state="detached")
    lab.pool("gpu").wait_for()
    fake.settle()
    fake.requests.clear()
    yield shared
    lab.page.keyboard.press("Escape")  # a menu or dialog that is open
    lab.page.evaluate("() => window.jupyterapp.commands.execute('application:close-all')")
    lab.page.evaluate("() => window.jupyterapp.commands.execute('apputils:dismiss-notification')")


@pytest.fixture
def until(request: pytest.FixtureRequest) -> Until:
    """As conftest's, with whichever page the test has."""
    lab = request.getfixturevalue("here")[0] if "here" in request.fixturenames else request.getfixturevalue("lab")
    return wait_on(lab.page)


Here = tuple[Lab, FakeServer]


@pytest.mark.parametrize("kind", states.EMPTY_AND_FAILED)
def test_an_empty_or_failed_state_has_a_text_and_one_action(here: Here, kind: str) -> None:
    lab, fake = here
    status, state = states.EMPTY_AND_FAILED[kind]
    if state is None:
        fake.drop(status)
    else:
        fake.send(state)
    hint = lab.panel.locator(f".fj-Hint[data-kind={kind}]")
    hint.wait_for()
    assert len(hint.inner_text()) > 40
    assert hint.get_by_role("button").count() == 1


def test_a_lost_connection_keeps_the_last_state_and_recovers(here: Here) -> None:
    lab, fake = here
    tab = lab.details("gpu")
    fake.drop(502)
    lab.panel.locator(".fj-Hint[data-kind=lost]").wait_for()
    assert lab.panel.locator(".fj-mod-stale .fj-Pool").count() == 3
    tab.locator(".fj-mod-stale").get_by_text("what is shown is old").wait_for()
    with lab.page.expect_request("**/flyte-jupyter/pools*"):
        lab.panel.get_by_role("button", name="Try now").click()
    fake.status = 200  # found out without the button, too
    lab.panel.locator(".fj-Hint").wait_for(state="detached")
    tab.locator(".fj-mod-stale").wait_for(state="detached")


def test_a_missing_driver_is_named_beside_the_pools(here: Here) -> None:
    lab, fake = here
    fake.send(states.changed(devices=[], device_problem="the driver did not answer: library not found"))
    problem = lab.panel.locator("[data-kind=no-gpu]")
    problem.wait_for()
    assert "library not found" in problem.inner_text()
    assert problem.get_by_role("button").count() == 1
    lab.pool("gpu").wait_for()


def test_a_failed_pool_says_why_and_offers_a_retry(here: Here, until: Until) -> None:
    lab, fake = here
    fake.answers["/failure"] = lambda: {"cause": f"Traceback\n  {EVIL}", "replica": "asr[0]", "attempts": 2}
    pool = lab.pool("asr")
    assert "ImportError: no <b>transformers</b>" in pool.inner_text()
    assert pool.locator("b").count() == 0
    pool.get_by_role("button", name="Retry").click()
    until(lambda: any("/warm" in request for request in fake.requests), 5)
    lab.menu(pool, "Show Failure")
    lab.page.locator(".fj-Text").get_by_text(SHOWN).wait_for()


def test_devices_show_how_full_they_are_and_of_what(here: Here) -> None:
    lab, fake = here
    device = lab.panel.locator("[data-device=GPU-0]")
    assert "14.1 GiB of 24.0 GiB · 83 % busy · 62 °C" in device.inner_text()
    assert device.get_by_role("meter").get_attribute("aria-valuenow") == "59"
    assert device.locator("li").all_inner_texts() == ["gpu[0]\n6.6 GiB", "python (alice)\n4.3 GiB"]
    assert lab.panel.locator("[data-device=GPU-2] .fj-Holder").inner_text() == "held by gpu[2]"
    replica = lab.panel.locator("[data-replica='00000000']")
    assert "GPU 0 · 6.6 GiB GPU memory · 3.0 GiB RAM" in replica.inner_text()
    assert "8.6 GiB GPU memory · 3.2 GiB RAM" in lab.pool("gpu").inner_text()
    fake.send(states.changed() | {"usage": {"measured_at": None, "problem": None, "devices": {}, "replicas": {}}})
    device.get_by_role("meter").wait_for(state="detached")
    assert device.inner_text() == "GPU 0 · RTX 4090\n24.0 GiB\nheld by gpu[0]"


def test_recent_calls_say_how_they_ended(here: Here) -> None:
    lab, _ = here
    rows = lab.panel.locator(".fj-Recent > [data-kind=call]")
    assert rows.nth(0).get_attribute("data-outcome") == "succeeded"
    texts = [" ".join(text.split()) for text in rows.all_inner_texts()]
    assert texts[0] == "✓ train train.ipynb · gpu[0] succeeded 0.8 s"
    assert texts[1] == "✕ evaluate train.ipynb · gpu[0] failed 12 s"
    assert texts[2].startswith("✓ noop \u00d7 40")


def test_the_details_tell_all_about_a_pool(here: Here, until: Until) -> None:
    lab, fake = here
    tab = lab.details("gpu")
    table = tab.get_by_role("table").first
    head = [" ".join(text.split()) for text in table.locator("thead th").all_inner_texts()]
    assert head == ["Replica", "State", "GPU", "Memory", "Task", "Age", "Actions"]
    busy, held, loading = table.locator("tbody tr").all()
    assert re.search(r"busy[\s\S]*6\.6 GiB GPU memory[\s\S]*train train\.ipynb", busy.inner_text())
    assert "held by train.ipynb" in held.inner_text()
    assert held.locator(".fj-Call").count() == 0
    assert re.search(r"loading[\s\S]*old preload", loading.inner_text())
    loading.get_by_text("“shard 2/4”", exact=True).wait_for()
    assert "1.\nevaluate eval.ipynb" in tab.locator(".fj-Queue").inner_text()
    assert tab.locator(".fj-Saved, .fj-Counts").get_by_text("cold starts avoided: 38 (about 26 min saved)").count() == 1
    canvas = tab.locator("canvas")
    canvas.wait_for()
    until(lambda: "calls: 42" in (canvas.get_attribute("aria-label") or ""), 5)
    tab.locator(".fj-Changes li").nth(1).wait_for()
    changes = tab.locator(".fj-Changes li").all_inner_texts()
    assert [text.split("\n")[-1] for text in changes] == ["gpu[2] starts: 1 call waits", "gpu[0] starts: a call waits"]
    first = seconds(tab.get_by_role("timer").inner_text())
    until(lambda: seconds(tab.get_by_role("timer").inner_text()) < first, 3)
    tab.get_by_role("button", name="Raise the minimum").click()
    until(lambda: f"POST pools/{states.GPU}/scale" in " ".join(fake.requests), 5)
    failed = lab.details("asr")
    assert "ImportError: no <b>transformers</b>" in failed.inner_text()
    state = states.changed()
    del state["snapshot"]["pools"][1]
    fake.send(state)
    gone = lab.page.locator(".fj-Details .fj-Hint[data-kind=gone]")
    gone.get_by_text("There is no pool asr any more").wait_for()
    gone.get_by_role("button", name="Close this tab").click()
    gone.wait_for(state="detached")
    assert lab.page.locator(".fj-Details").count() == 1


def test_names_with_markup_are_shown_as_text_everywhere(here: Here) -> None:
    lab, fake = here
    state = states.changed()
    pool = state["snapshot"]["pools"][0]
    replica = pool["replicas"][0]
    pool["name"] = replica["name"] = replica["why"] = EVIL
    replica["leases"][0] |= {"task": EVIL, "client": EVIL}
    pool["queue"][0] |= {"task": EVIL, "client": EVIL}
    pool["notes"], pool["waits_for"] = [EVIL], EVIL
    pool["failure"] = {"cause": EVIL, "replica": EVIL, "attempts": 1, "retry_at": None}
    state["snapshot"]["device_problem"] = EVIL
    state["snapshot"]["clients"][0]["label"] = EVIL
    state["snapshot"]["devices"][0] |= {"model": EVIL, "partition": EVIL}
    state["recent"][0] |= {"task": EVIL, "client": EVIL}
    state["usage"]["devices"]["GPU-0"]["owners"] = [states.owner(EVIL, 1, user=EVIL)]
    state["usage"]["problem"] = EVIL
    lane = states.timeline()["lanes"][0] | {"name": EVIL, "why": EVIL}
    spans = [states.span(1, 990.0, 995.0, task=EVIL, client=EVIL)]
    changes = [{"id": 1, "at": 990.0, "text": EVIL}]
    fake.answers = {
        "/timeline": lambda: states.timeline(lanes=[lane], spans=spans, changes=changes),
        "/peek": lambda: {"lines": [EVIL], "stack": [], "values": [], "gpu": None},
        "/log": lambda: {"text": EVIL, "offset": 0, "next": 1},
    }
    fake.send(state)
    lab.panel.get_by_text(SHOWN).first.wait_for()
    lab.execute("flyte-jupyter:details", pool=pool["key"])
    tab = lab.page.locator(".fj-Details")
    tab.locator(".fj-Changes").get_by_text(SHOWN).wait_for()
    for part in (".fj-Device", ".fj-Owners", ".fj-Note", ".fj-Replica", ".fj-Queue", ".fj-Recent", ".fj-Clients"):
        assert SHOWN in lab.panel.locator(part).first.inner_text(), part
    for part in (".fj-Pool-head", ".fj-Replica", ".fj-Queue", ".fj-Note"):
        assert SHOWN in tab.locator(part).first.inner_text(), part
    tab.locator("canvas").focus()
    lab.page.keyboard.press("ArrowDown")
    tab.locator(".flyte-tip").get_by_text(SHOWN).first.wait_for()
    for command in ("peek", "logs"):
        lab.execute(f"flyte-jupyter:{command}", replica=replica["id"])
        text = lab.page.locator(".fj-Text:visible").get_by_text(SHOWN)
        text.wait_for()
        lab.execute("application:close")
        text.wait_for(state="detached")
    fake.status = 503
    for command in ("stop", "scale", "keep-for", "restart"):
        lab.execute(f"flyte-jupyter:{command}", pool=pool["key"])
        dialog = lab.dialog()
        dialog.get_by_text(SHOWN).first.wait_for()
        lab.page.keyboard.press("Escape")
        dialog.wait_for(state="detached")
    assert lab.page.locator("#main img[src=x], .jp-Dialog img").count() == 0
    assert lab.page.evaluate("() => window.broken") is None


def test_a_countdown_ticks_without_any_request(here: Here, until: Until) -> None:
    lab, fake = here
    timer = lab.pool("gpu").get_by_role("timer")
    first = seconds(timer.inner_text())
    assert 1780 - 10 * TIME_SCALE <= first <= 1780
    until(lambda: seconds(timer.inner_text()) <= first - 3, 10)
    # One replica loads: only what its preload says is asked for.
    assert [request for request in fake.requests if "replicas/00000002/log?tail=5" not in request] == []


def test_what_is_hidden_makes_no_request(lab: Lab, fake: FakeServer, until: Until) -> None:
    lab.open(panel=False)
    lab.page.wait_for_timeout(2500)
    assert fake.requests == []
    lab.show_panel()
    tab = lab.details("gpu")
    until(lambda: "stream" in fake.requests, 5)

    def asked() -> int:
        return sum("/timeline" in request for request in fake.requests)

    lab.execute("filebrowser:activate")
    lab.panel.wait_for(state="hidden")
    before = asked()
    until(lambda: asked() >= before + 2, 5)  # the tab goes on
    assert any("timeline?since=m" in request for request in fake.requests)
    lab.execute("launcher:create")
    tab.wait_for(state="hidden")
    fake.settle()
    known = list(fake.requests)
    fake.send(states.changed(pools=[]))
    lab.page.wait_for_timeout(4000)
    assert fake.requests == known
    lab.show_panel()
    lab.panel.locator(".fj-Hint[data-kind=no-pool]").wait_for()


def test_the_details_come_back_when_the_page_does(lab: Lab, fake: FakeServer) -> None:
    lab.open()
    lab.details("gpu")
    with lab.page.expect_response(lambda answer: "/api/workspaces/" in answer.url and answer.request.method == "PUT"):
        lab.execute("filebrowser:activate")  # the layout is saved some time after each change
    lab.load()
    tab = lab.page.locator(".fj-Details")
    tab.get_by_role("heading", name="gpu", exact=True).wait_for()
    assert tab.count() == 1


def test_the_running_panel_is_up_to_date_while_it_can_be_seen(here: Here) -> None:
    lab, fake = here
    lab.execute("running:show-panel")
    running = lab.page.locator(".jp-RunningSessions")
    running.get_by_text("gpu", exact=True).wait_for()
    fake.send(states.changed(pools=[]))
    running.get_by_text("gpu", exact=True).wait_for(state="detached")
    lab.execute("filebrowser:activate")
    running.wait_for(state="hidden")
    fake.settle()
    before = list(fake.requests)
    lab.page.wait_for_timeout(3000)
    assert fake.requests == before


def test_changes_are_announced_politely_and_seldom(lab: Lab, fake: FakeServer) -> None:
    lab.open()  # a page of its own, on which nothing was announced in the last ten seconds
    lab.pool("gpu").wait_for()
    lab.page.evaluate(
        """() => {
            const live = document.querySelector('.fj-Panel [aria-live=polite]');
            window.said = [];
            new MutationObserver(() => window.said.push(live.textContent)).observe(
                live, { childList: true, characterData: true, subtree: true });
        }"""
    )
    began = time.monotonic()
    for waiting in range(2, 8):
        state = states.changed()
        state["snapshot"]["pools"][0]["waiting"] = waiting
        fake.send(state)
        lab.pool("gpu").get_by_text(f"queue\u00a0{waiting}").wait_for()
    said = lab.page.evaluate("() => window.said")
    assert said[0] == "Pool gpu: busy. 2 calls wait."
    assert len(said) <= 1 + (time.monotonic() - began) // 10  # the rest comes in one go, ten seconds later


def test_all_can_be_used_with_the_keyboard_alone(here: Here) -> None:
    lab, fake = here
    press = lab.page.keyboard.press

    def focused(what: str = "node.textContent") -> str:
        return str(lab.page.evaluate(f"() => {{ const node = document.activeElement; return {what}; }}") or "")

    def walk(key: str, what: str, expected: str, most: int = 30) -> None:
        for _ in range(most):
            if expected in focused(what):
                return
            press(key)
        raise AssertionError(f"{expected!r} is not reached by {key}")

    def choose(item: str) -> None:
        lab.page.locator(".lm-Menu").first.wait_for()
        active = "() => document.querySelector('.lm-Menu-item.lm-mod-active')?.innerText ?? ''"
        for _ in range(20):
            before = lab.page.evaluate(active)
            if item in before:
                break
            press("ArrowDown")
            lab.page.wait_for_function(f"before => ({active})() !== before", arg=before)  # drawn some time after
        press("Enter")

    name = "node.getAttribute('aria-label')"
    lab.page.locator(".jp-Launcher").first.wait_for()  # opens by itself, and takes the focus
    lab.show_panel()
    lab.page.wait_for_function("() => document.activeElement?.title === 'Refresh'")
    walk("Tab", name, "Replicas of gpu")
    press("ArrowDown")
    assert focused(name) == "Replicas of asr"
    press("End")
    assert focused(name) == "Replicas of embed"
    press("Home")
    assert focused("node.getAttribute('aria-expanded')") == "true"
    press("Enter")
    assert focused("node.getAttribute('aria-expanded')") == "false"
    lab.pool("gpu").locator(".fj-Replicas").wait_for(state="hidden")
    press("Space")
    lab.pool("gpu").locator(".fj-Replicas").wait_for()
    walk("Tab", "node.title", "Insert a task cell")
    press("Tab")
    assert "More actions for gpu" in focused("node.title")
    press("Enter")
    choose("Stop…")
    dialog = lab.dialog()
    assert "Stop pool gpu?" in dialog.inner_text()
    press("Escape")
    dialog.wait_for(state="detached")
    lab.page.wait_for_function("() => document.activeElement?.title === 'More actions for gpu'")
    walk("Tab", "node.title", "More actions for gpu[0]")
    press("Enter")
    choose("Restart Replica…")
    assert "Restart replica gpu[0]?" in lab.dialog().inner_text()
    press("Escape")
    lab.page.locator(".jp-Dialog").wait_for(state="detached")

    walk("Shift+Tab", "node.className", "fj-Pool-name")
    press("Enter")
    tab = lab.page.locator(".fj-Details")
    tab.wait_for()
    lab.page.wait_for_function("() => document.activeElement.closest('.fj-Details')")
    walk("Tab", "node.title", "More actions for gpu[1]")
    press("ContextMenu")
    choose("Copy ID")
    walk("Tab", "node.tagName", "CANVAS")
    press("ArrowDown")
    tab.locator(".flyte-tip").get_by_text("train.ipynb").wait_for()
    assert not any(request.startswith("POST") for request in fake.requests)


POOL_MENU = [
    *("Insert Task Cell", "Insert Connection Code", "Details", "Scale…", "Warm Now", "Keep…", "Restart One by One…"),
    *("Open Console", "Open Notebook", "Show Failure", "Interrupt All Calls", "Stop…", "Copy ID"),
]
REPLICA_MENU = [
    *("Open Console", "Open Notebook", "Peek", "Interrupt", "Restart Replica…", "Show Log", "Copy ID"),
]


def test_rows_have_menus(here: Here) -> None:
    lab, _ = here

    def items(row: Any, which: str = "") -> list[str]:
        menu = lab.open_menu(row)
        labels = menu.locator(f".lm-Menu-item[data-type=command]{which} .lm-Menu-itemLabel").all_inner_texts()
        lab.page.keyboard.press("Escape")
        menu.wait_for(state="detached")
        return [label for label in labels if "Browser Menu" not in label]  # JupyterLab's own

    assert items(lab.pool("gpu")) == POOL_MENU
    assert items(lab.panel.locator("[data-replica='00000000']")) == REPLICA_MENU
    impossible = items(lab.panel.locator("[data-replica='00000002']"), ".lm-mod-disabled")
    assert impossible == ["Open Console", "Open Notebook", "Peek", "Interrupt"]  # it still loads
    tab = lab.details("gpu")
    assert items(tab.locator("header")) == POOL_MENU
    assert items(tab.locator("[data-replica='00000001']")) == REPLICA_MENU


def test_a_peek_opens_in_a_tab_and_can_be_repeated(here: Here) -> None:
    lab, fake = here
    fake.answers["/peek"] = lambda: {"lines": ["gpu[0] · pid 4000", "→ train  step 1"], "stack": [], "values": []}
    lab.menu(lab.panel.locator("[data-replica='00000000']"), "Peek")
    text = lab.page.locator(".fj-Text")
    text.get_by_text("gpu[0] · pid 4000\n→ train step 1").wait_for()
    fake.answers["/peek"] = lambda: {"lines": ["→ train  step 2"], "stack": [], "values": []}
    lab.page.get_by_role("button", name="Load again").click()
    text.get_by_text("step 2").wait_for()
    fake.status = 504
    lab.page.get_by_role("button", name="Load again").click()
    text.get_by_text("no", exact=False).wait_for()
    text.get_by_text("step 2").wait_for(state="detached")


def test_a_peek_shows_expressions_too(here: Here) -> None:
    lab, fake = here
    fake.answers["/peek"] = lambda: {"lines": ["→ train  step 1"], "stack": [], "values": []}
    lab.execute("flyte-jupyter:peek", replica="00000000")
    tab = lab.page.locator(".fj-PeekTab")
    tab.locator(".fj-Text").get_by_text("step 1").wait_for()
    lab.page.wait_for_function("() => document.activeElement.closest('.fj-PeekTab')")
    field = tab.get_by_label("Show also (expressions, one per line)")
    for _ in range(5):
        if field.evaluate("field => field === document.activeElement"):
            break
        lab.page.keyboard.press("Shift+Tab")
    lab.page.keyboard.type("step")
    lab.page.keyboard.press("Enter")
    lab.page.keyboard.press("Enter")
    lab.page.keyboard.type("loss.item()")
    fake.answers["/peek"] = lambda: {"lines": ["→ train  step 2", f"step = {EVIL}"], "stack": [], "values": []}
    with lab.page.expect_request("**/peek*") as request:
        lab.page.keyboard.press("Shift+Enter")
    assert request.value.post_data_json == {"expressions": ["step", "loss.item()"], "stack": True, "gpu": True}
    tab.locator(".fj-Text").get_by_text(f"step = {SHOWN}").wait_for()
    assert tab.locator("img").count() == 0
    fake.answers["/peek"] = lambda: {"lines": ["→ train  step 3"], "stack": [], "values": []}
    lab.page.keyboard.press("Tab")
    with lab.page.expect_request("**/peek*") as request:
        lab.page.keyboard.press("Enter")  # on the button
    assert request.value.post_data_json["expressions"] == ["step", "loss.item()"]
    tab.locator(".fj-Text").get_by_text("step 3").wait_for()
    assert lab.page.evaluate("() => window.broken") is None


def test_console_and_notebook_name_the_replica(lab: Lab, fake: FakeServer) -> None:
    lab.open()

    def started() -> Any:
        return lab.page.expect_request(lambda asked: asked.method == "POST" and "/api/sessions" in asked.url)

    with started() as session:
        lab.menu(lab.panel.locator("[data-replica='00000001']"), "Open Console")
    wanted = session.value.post_data_json
    assert wanted["path"].startswith("flyte-attach/gpu[1]/")
    assert (wanted["name"], wanted["kernel"]["name"]) == ("gpu[1]", "flyte-attach")
    saving = lab.page.expect_request(lambda asked: asked.method == "PUT" and "/api/contents/" in asked.url)
    with started() as session, saving as saved:
        lab.menu(lab.pool("gpu"), "Open Notebook")
    assert saved.value.post_data_json["content"]["metadata"] == {
        "kernelspec": {"name": "flyte-attach", "display_name": "Flyte: attach to a warm kernel"},
        "flyte_jupyter": {"attach": "gpu"},
    }
    assert session.value.post_data_json["kernel"]["name"] == "flyte-attach"
    session.value.response()


def test_a_pool_that_goes_soon_is_announced_with_a_button_that_keeps_it(here: Here) -> None:
    lab, fake = here
    state = states.changed()
    state["snapshot"]["pools"][0]["idle_stops_at"] = 1000 + 110
    fake.send(state)
    toast = lab.page.locator(".Toastify__toast")
    toast.get_by_text("Pool gpu stops in 2 min: it is idle.").wait_for()
    with lab.page.expect_request("**/keep*") as request:
        toast.get_by_role("button", name="Keep for 2 h").click()
    assert request.value.post_data_json == {"seconds": 7200}  # also if it was kept until now
    fake.send(states.changed())
    toast.wait_for(state="detached")


@pytest.mark.parametrize("theme", THEMES)
def test_axe_finds_nothing_serious(here: Here, theme: str, tmp_path: Path) -> None:
    lab, fake = here
    fake.answers["/peek"] = lambda: {"lines": ["→ train  step 1"], "stack": [], "values": []}
    lab.theme(theme)
    try:
        lab.details("gpu").locator(".fj-Changes").wait_for()
        path = Path(os.environ.get("SCREENSHOTS") or tmp_path) / f"panel, {theme}.png"
        lab.page.screenshot(path=str(path))
        assert path.stat().st_size > 10_000
        found = serious(lab.page, ".fj-View")
        for row in (lab.pool("gpu"), lab.panel.locator("[data-replica='00000000']")):
            lab.open_menu(row)
            # Between its groups a menu of JupyterLab has rows that are no items.
            found += [each for each in serious(lab.page, ".lm-Menu") if each[0] != "aria-required-children"]
            lab.page.keyboard.press("Escape")
        for command in ("stop", "scale", "keep-for", "restart", "restart-replica"):
            lab.execute(f"flyte-jupyter:{command}", pool=states.GPU, replica="00000000")
            dialog = lab.dialog()
            found += serious(lab.page, ".jp-Dialog")
            lab.page.keyboard.press("Escape")
            dialog.wait_for(state="detached")
        lab.execute("flyte-jupyter:peek", replica="00000000")
        tab = lab.page.locator(".fj-PeekTab")
        tab.locator(".fj-Text").wait_for()
        keep_sight(lab.page, f"peek, {theme}")
        found += serious(lab.page, ".fj-Expressions") + serious(lab.page, ".fj-Text")
        assert found == []
    finally:
        lab.theme("JupyterLab Light")


def test_cells_come_into_notebooks(lab: Lab, fake: FakeServer, until: Until) -> None:
    lab.open(lab.jupyter.notebook("cells.ipynb", "first = 1"))
    cells = lab.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")
    cells.first.wait_for()
    counts, mouse = lab.pool("gpu").locator(".fj-Counts").first, lab.page.mouse
    counts.hover(position={"x": 60, "y": 5})
    mouse.down()
    counts.hover(position={"x": 80, "y": 5}, force=True)
    lab.page.locator(".fj-Drag").wait_for()

    def over_a_cell() -> int:
        target = cells.first.bounding_box()
        if target is not None:  # else the notebook is just laid out
            mouse.move(target["x"] + 200, target["y"] + 10, steps=4)
        return int(lab.page.locator(".jp-Cell.jp-mod-dropTarget").count())

    until(over_a_cell, 10)
    mouse.up()
    cells.get_by_text("%%flyte_task gpu").wait_for()
    lab.page.get_by_role("button", name="Insert a task cell for gpu").click()
    cells.nth(2).wait_for()
    lab.menu(lab.pool("gpu"), "Insert Connection Code")
    cells.get_by_text("%flyte_pool show gpu").wait_for()
    assert cells.count() == 4
    lab.execute("docmanager:save")
    lab.page.locator(".jp-NotebookPanel").wait_for()


def test_the_example_goes_into_a_new_notebook_if_none_is_open(lab: Lab, fake: FakeServer) -> None:
    fake.status, fake.state = states.EMPTY_AND_FAILED["no-broker"]
    lab.open()
    lab.panel.get_by_role("button", name="Insert an example", exact=True).click()
    lab.page.locator(".jp-CodeCell").get_by_text("TaskEnvironment").wait_for(timeout=30_000 * TIME_SCALE)
    assert lab.page.locator(".jp-CodeCell").count() == 1


def test_without_its_kernel_it_says_what_to_install(lab: Lab, fake: FakeServer) -> None:
    def without(route: Any) -> None:
        answer = route.fetch().json()
        del answer["kernelspecs"]["flyte-attach"]
        route.fulfill(json=answer)

    lab.page.route(re.compile(r"/api/kernelspecs(\?|$)"), without)
    lab.open()
    lab.menu(lab.pool("gpu"), "Open Console")
    toast = lab.page.locator(".Toastify__toast")
    toast.get_by_text("Install flyte-jupyter there").wait_for()
    assert lab.page.locator(".jp-CodeConsole").count() == 0


def test_the_palette_asks_which_pool_is_meant(here: Here) -> None:
    lab, _ = here
    lab.execute("apputils:activate-command-palette")
    lab.page.locator(".lm-CommandPalette-input, .jp-modal-CommandPalette input").first.fill("warm now")
    lab.page.locator(".lm-CommandPalette-item.lm-mod-active").wait_for()
    lab.page.keyboard.press("Enter")
    dialog = lab.dialog()
    dialog.locator("select").select_option(index=2)
    with lab.page.expect_request("**/warm*") as request:
        dialog.locator("button.jp-mod-accept").click()
    assert states.EMBED in request.value.url
    assert request.value.post_data_json == {"replicas": 1}


def test_two_clicks_before_the_next_state_count_twice(here: Here, until: Until) -> None:
    lab, _ = here
    orders: list[Any] = []

    def hold(order: Any) -> None:
        orders.append(order)

    lab.page.route("**/scale*", hold)
    row, tab = lab.pool("gpu"), lab.details("gpu")
    row.get_by_role("button", name="Raise the minimum").dblclick()
    for part in (row, tab):
        part.locator("output").first.get_by_text("3", exact=True).wait_for()
    for minimum in (2, 3):
        until(lambda: orders, 5)
        order = orders.pop()
        assert order.request.post_data_json == {"minimum": minimum, "maximum": 3}
        order.fulfill(status=202, json={})
    lab.page.unroute("**/scale*")


def test_limits_that_are_refused_are_taken_back(here: Here) -> None:
    lab, fake = here
    row = lab.pool("gpu")
    fake.status = 403
    row.get_by_role("button", name="Raise the maximum").dblclick()
    lab.page.locator(".Toastify__toast").get_by_text("no").first.wait_for()
    row.locator("output").nth(1).get_by_text("3", exact=True).wait_for()


def test_a_refusal_is_shown(here: Here) -> None:
    lab, fake = here
    fake.status = 403
    lab.pool("gpu").get_by_role("button", name="Raise the minimum").click()
    lab.page.locator(".Toastify__toast").get_by_text("no").first.wait_for()
    lab.pool("gpu").wait_for()  # whoever may only look still sees


def test_a_long_refusal_is_shown_to_its_end(here: Here) -> None:
    lab, fake = here
    fake.status, fake.message = 503, "The broker is another one. " * 8 + f"Restart Jupyter {EVIL}."
    lab.pool("gpu").get_by_role("button", name="Raise the minimum").click()
    lab.dialog().get_by_text(f"Restart Jupyter {SHOWN}.").wait_for()
