"""The whole way: a notebook cell makes a pool in a real broker, the real server reports it, buttons act on it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Jupyter, Lab, checked_page, keep_sight, serious, wait_on
from support import TIME_SCALE

from flyte_jupyter.server.access import CHANGE

Until = Callable[[Callable[[], Any], float], Any]
Warm = tuple[Lab, Any]

POOL = """
import flyte_jupyter as flyte
env = flyte.TaskEnvironment("{name}", reusable=flyte.ReusePolicy(replicas={replicas}, idle_ttl=1800))

@env.task
def double(number: int) -> int:
    return 2 * number

@env.task
def slow(seconds: float) -> str:
    import time
    print("slow begins")
    time.sleep(seconds)
    return "done"
"""


def open_pool(lab: Lab, name: str, call: str = "double(21)") -> Any:
    """A notebook that declares a pool and calls a task; the pool's row in the panel."""
    lab.open(lab.jupyter.notebook(f"{name}.ipynb", POOL.format(name=name, replicas="(1, 3)"), call))
    lab.run_cells()
    row = lab.pool(name)
    row.wait_for(timeout=30_000 * TIME_SCALE)
    return row


def ready(row: Any) -> int:
    return int(row.locator(".fj-Replica[data-state=ready]").count())


def replicas(lab: Lab, name: str) -> list[dict[str, Any]]:
    """As the server says."""
    found: list[dict[str, Any]] = next(pool for pool in lab.snapshot()["pools"] if pool["name"] == name)["replicas"]
    return found


@contextmanager
def page_with_a_pool(context: Any, jupyter: Jupyter) -> Iterator[Lab]:
    """A page, and a script that uses a pool: no kernel of a notebook, since another test ends all of them."""
    script = jupyter.home / "warm.py"
    script.write_text(POOL.format(name="warm", replicas="(1, 3)") + "\ndouble(21)\ninput()\n")
    process = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, env=jupyter.environment(), cwd=jupyter.home
    )
    try:
        with checked_page(context) as page:
            lab = Lab(page, jupyter).open()
            row = lab.pool("warm")
            row.wait_for(timeout=30_000 * TIME_SCALE)
            wait_on(page)(lambda: ready(row) == 1, 20)
            yield lab
    finally:
        process.communicate(b"\n", timeout=10 * TIME_SCALE)


@pytest.fixture(scope="module")
def shared(context: Any, jupyter: Jupyter) -> Iterator[Lab]:
    with page_with_a_pool(context, jupyter) as lab:
        yield lab


@pytest.fixture
def until(request: pytest.FixtureRequest) -> Until:
    """As conftest's, with whichever page the test has."""
    of = "shared" if "warm" in request.fixturenames else "lab"
    return wait_on(request.getfixturevalue(of).page)


@pytest.fixture
def warm(shared: Lab) -> Iterator[Warm]:
    """A page that many tests share, and the row of a pool there: one replica is ready, one to three may be."""
    lab, until = shared, wait_on(shared.page)
    lab.show_panel()
    row = lab.pool("warm")
    lab.act("warm", "scale", minimum=1, maximum=3)
    lab.act("warm", "keep", seconds=0)
    lab.act("warm", "warm")
    until(lambda: ready(row) >= 1 and lab.scaling("warm")["min_replicas"] == 1, 20)
    yield lab, row
    lab.page.keyboard.press("Escape")


def test_without_a_broker_the_panel_says_so(lab: Lab) -> None:
    # The first test with a real server in this file's order; others may have started a broker before it.
    lab.open()
    lab.panel.locator(".fj-Hint[data-kind=no-broker], .fj-Hint[data-kind=no-pool], .fj-Pool").first.wait_for()


def test_a_pool_is_listed_within_two_seconds(lab: Lab, until: Until) -> None:
    lab.open(lab.jupyter.notebook("listed.ipynb", "1", POOL.format(name="listed", replicas=1), "double(21)"))
    lab.page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=30_000 * TIME_SCALE)
    # What counts is the time from the broker to the page: the import is over before.
    lab.page.evaluate(
        """() => {
            window.listed = new Promise(done => {
                const look = () => {
                    const found = [...document.querySelectorAll('.fj-Pool .fj-Name')].some(
                        node => node.textContent === 'listed');
                    found ? done(Date.now()) : setTimeout(look, 20);
                };
                look();
            });
        }"""
    )
    lab.execute("notebook:run-all-cells")
    shown = lab.page.evaluate("() => window.listed") / 1000
    # It may be listed before its first call, and its replica starts with that.
    [replica] = until(lambda: replicas(lab, "listed"), 10)
    assert shown - replica["started_at"] <= 2 * TIME_SCALE
    lab.page.locator(".jp-OutputArea-output").get_by_text("42").wait_for()


def test_the_countdown_of_an_idle_pool_ticks(warm: Warm, until: Until) -> None:
    _, row = warm
    timer = row.get_by_role("timer")
    timer.wait_for(timeout=20_000 * TIME_SCALE)
    first = timer.inner_text()
    until(lambda: timer.inner_text() != first, 5)


def test_a_button_changes_the_number_of_replicas(warm: Warm, until: Until) -> None:
    lab, row = warm
    row.get_by_role("button", name="Raise the minimum").click()
    until(lambda: ready(row) >= 2 and lab.scaling("warm")["min_replicas"] == 2, 20)
    row.get_by_role("button", name="Lower the minimum").click()
    until(lambda: lab.scaling("warm")["min_replicas"] == 1, 10)


def test_two_clicks_in_a_row_count_twice(warm: Warm, until: Until) -> None:
    lab, row = warm
    row.get_by_role("button", name="Raise the maximum").dblclick()
    until(lambda: lab.scaling("warm")["max_replicas"] == 5, 10)
    row.locator("output").nth(1).get_by_text("5", exact=True).wait_for()


def test_scale_asks_for_two_numbers(warm: Warm, until: Until) -> None:
    lab, row = warm
    lab.menu(row, "Scale…")
    dialog = lab.dialog()
    dialog.get_by_label("At least").fill("2")
    dialog.get_by_label("At most").fill("2")
    dialog.get_by_role("button", name="Scale").click()
    until(lambda: ready(row) == 2, 20)


def test_stop_asks_first(warm: Warm, until: Until) -> None:
    lab, row = warm
    row.get_by_role("button", name="Stop…").click()
    dialog = lab.dialog()
    assert "warm replica" in dialog.inner_text().replace("\xa0", " ")
    dialog.get_by_role("button", name="Cancel").click()
    dialog.wait_for(state="detached")
    assert ready(row) >= 1
    row.get_by_role("button", name="Stop…").click()
    lab.dialog().get_by_role("button", name="Stop").click()
    until(lambda: row.locator(".fj-Replica").count() == 0, 20)
    row.get_by_role("button", name="Warm now").click()
    until(lambda: ready(row) == 1, 20)


def test_keep_changes_the_countdown(warm: Warm, until: Until) -> None:
    _, row = warm
    row.get_by_role("button", name="Keep 2 h").click()
    row.get_by_role("button", name="Stop keeping").wait_for()
    until(lambda: "1:59:" in row.get_by_role("timer").inner_text(), 10)
    row.get_by_role("button", name="Stop keeping").click()
    row.get_by_role("button", name="Keep 2 h").wait_for()


def test_a_log_opens_in_a_tab(warm: Warm) -> None:
    lab, row = warm
    lab.menu(row.locator(".fj-Replica").first, "Show Log")
    lab.page.locator(".fj-Text:visible").wait_for()
    lab.execute("application:close")


def test_a_peek_says_what_a_replica_does(warm: Warm) -> None:
    lab, row = warm
    lab.menu(row.locator(".fj-Replica").first, "Peek")
    text = lab.page.locator(".fj-Text")
    text.get_by_text("nothing runs on its main thread").wait_for()
    lab.page.get_by_label("Show also").fill("6 * 7\n'<b>' * 2\nnone_such")
    # Not that of a failed pool, which another test may have left.
    lab.page.locator("#main button.jp-mod-styled").get_by_text("Show", exact=True).click()
    text.get_by_text("6 * 7 = 42\n'<b>' * 2 = '<b><b>'\nnone_such: NameError").wait_for()
    lab.execute("application:close")


def test_what_has_happened_is_told(warm: Warm, until: Until) -> None:
    lab, _ = warm
    call = lab.panel.locator(".fj-Recent > [data-outcome=succeeded]").filter(has_text="warm.py")
    assert "double" in call.first.inner_text()
    tab = lab.details("warm")
    until(lambda: "calls: 1" in (tab.locator("canvas").get_attribute("aria-label") or ""), 10)
    tab.locator(".fj-Changes").get_by_text("warm[0] starts").first.wait_for()
    tab.locator(".fj-Replica").get_by_text("RAM").first.wait_for()
    lab.execute("application:close")
    tab.wait_for(state="detached")


def test_the_running_panel_lists_pools_and_asks_before_it_stops_them(warm: Warm, until: Until) -> None:
    lab, row = warm
    lab.execute("running:show-panel")
    section = lab.page.locator(".jp-RunningSessions")
    section.get_by_text("warm", exact=True).wait_for()
    section.get_by_title("Stop…").first.wait_for(state="attached")
    section.get_by_text("Stop All Pools").click()
    dialog = lab.dialog()
    assert "loaded" in dialog.inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    dialog.wait_for(state="detached")
    lab.show_panel()
    until(lambda: ready(row) >= 1, 20)


def test_a_running_call_is_shown_and_can_be_stopped(lab: Lab, until: Until) -> None:
    row = open_pool(lab, "running", "slow(120)")
    call = row.locator(".fj-Call").filter(has_text="slow")
    call.wait_for(timeout=20_000 * TIME_SCALE)
    assert "running.ipynb" in call.inner_text()
    call.get_by_role("button", name="Stop call").click()
    lab.page.locator(".jp-OutputArea-output").get_by_text("TaskCancelled").first.wait_for(timeout=20_000 * TIME_SCALE)
    until(lambda: ready(row) == 1, 20)
    lab.panel.locator(".fj-Recent > [data-outcome=cancelled]").get_by_text("slow").wait_for()


def test_a_console_on_a_replica_and_all_kernels_go_and_leave_it_warm(lab: Lab, until: Until) -> None:
    row = open_pool(lab, "survives")
    until(lambda: ready(row) == 1, 20)
    [replica] = replicas(lab, "survives")
    lab.menu(row.locator(".fj-Replica"), "Open Console")
    # Its banner is there with the kernel, and a new prompt with both. It is the replica's if that was asked in time.
    banner = re.compile("Interactive Python|A warm kernel of flyte_jupyter")
    lab.page.locator(".jp-CodeConsole").get_by_text(banner).wait_for(timeout=30_000 * TIME_SCALE)
    prompt = lab.page.locator(".jp-CodeConsole-promptCell .cm-content")
    prompt.click()
    lab.page.keyboard.type("import os; os.getpid()")
    lab.page.keyboard.press("Shift+Enter")
    output = lab.page.locator(".jp-CodeConsole .jp-OutputArea-output")
    output.get_by_text(str(replica["pid"]), exact=True).wait_for(timeout=30_000 * TIME_SCALE)
    row.locator(".fj-Replica[data-state=attached]").wait_for()
    lab.execute("kernelmenu:shutdownAll")
    dialog = lab.page.locator(".jp-Dialog")
    dialog.wait_for()
    dialog.locator("button.jp-mod-accept").click()
    until(lambda: "0 notebooks" in lab.panel.locator(".fj-Broker").inner_text(), 20)
    until(lambda: ready(row) == 1, 20)
    assert [each["pid"] for each in replicas(lab, "survives")] == [replica["pid"]]


def test_notebook_7_has_the_panel(page: Any, jupyter: Jupyter) -> None:
    name = jupyter.notebook("seven.ipynb", "1")
    page.goto(jupyter.address(f"notebooks/{name}"))
    page.locator(".jp-Notebook").wait_for(timeout=30_000 * TIME_SCALE)
    page.wait_for_function("() => window.jupyterapp")
    page.evaluate("async () => { await window.jupyterapp.restored; }")
    page.wait_for_function("() => window.jupyterapp.commands.hasCommand('flyte-jupyter:open')")
    page.evaluate("() => void window.jupyterapp.commands.execute('flyte-jupyter:open')")
    panel = page.locator(".fj-Panel")
    panel.wait_for()
    panel.locator(".fj-Hint, .fj-Pool").first.wait_for()
    page.evaluate("() => void window.jupyterapp.commands.execute('flyte-jupyter:details', { pool: 'none' })")
    gone = page.locator(".fj-Details").get_by_text("There is no pool none any more")
    gone.wait_for()
    # A page has one document there: the tab is below it, or beside it in a Notebook that has nothing below.
    shown, document = gone.bounding_box(), page.locator(".jp-Notebook").bounding_box()
    assert shown["y"] > document["y"] or shown["x"] >= document["x"] + document["width"]


LOOKS_ONLY = """
from jupyter_server.auth import Authorizer

class LooksOnly(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        return action == "read" or resource not in ("flyte-jupyter-pools", "kernels", "sessions")

c.ServerApp.authorizer_class = LooksOnly
"""


@pytest.fixture
def looking(context: Any, tmp_path: Path) -> Iterator[Lab]:
    """A page of a server whose users may look and not act."""
    server = Jupyter(tmp_path, LOOKS_ONLY)
    try:
        with page_with_a_pool(context, server) as lab:
            yield lab
    finally:
        server.end()


@pytest.mark.timeout(120)
def test_who_may_only_look_is_offered_nothing_else(looking: Lab) -> None:
    lab, page, row = looking, looking.page, looking.pool("warm")
    orders: list[str] = []
    page.on("request", lambda asked: orders.append(asked.url) if asked.method == "POST" else None)
    why = CHANGE.refusal
    lab.panel.get_by_text("You may look at these pools, but not change them.").wait_for()

    def offered(part: Any) -> list[str]:
        return [button.inner_text() for button in part.locator(".fj-Controls button:not([aria-disabled])").all()]

    assert (offered(row), offered(lab.details("warm"))) == ([], [])
    button = row.get_by_role("button", name="Raise the minimum", description=why)
    button.focus()
    page.keyboard.press("Enter")
    button.click(force=True)

    def disabled(part: Any) -> list[str]:
        menu = lab.open_menu(part)
        labels = menu.locator(".lm-mod-disabled .lm-Menu-itemLabel").all_inner_texts()
        page.keyboard.press("Escape")
        menu.wait_for(state="detached")
        return [label for label in labels if "Browser Menu" not in label]  # JupyterLab's own

    replica = row.locator(".fj-Replica")
    opens = ["Open Console", "Open Notebook"]
    verbs = [
        "Scale…",
        "Warm Now",
        "Keep…",
        "Restart One by One…",
        *opens,
        "Show Failure",
        "Interrupt All Calls",
        "Stop…",
    ]
    assert disabled(row) == verbs
    assert disabled(replica) == [*opens, "Peek", "Interrupt", "Restart Replica…"]
    lab.menu(replica, "Show Log")
    page.locator(".fj-Text").wait_for()
    keep_sight(page, "who may only look")
    assert serious(page, ".fj-View") == []

    lab.execute("apputils:activate-command-palette")
    page.locator(".lm-CommandPalette-input, .jp-modal-CommandPalette input").first.fill("Stop All Pools")
    # JupyterLab hides what is disabled there.
    item = page.locator(".lm-CommandPalette-item[data-command='flyte-jupyter:stop-all']")
    item.and_(page.locator(".lm-mod-disabled")).wait_for(state="attached")
    page.keyboard.press("Escape")

    lab.execute("running:show-panel")
    section = page.locator(".jp-RunningSessions")
    key = row.locator(".fj-Pool-head").get_attribute("data-pool")
    section.get_by_title(key).wait_for()
    assert section.get_by_title("Stop…").count() == 0
    section.get_by_text("Stop All Pools").click()
    lab.dialog().get_by_text(why).wait_for()
    page.keyboard.press("Escape")

    lab.show_panel()
    lab.execute("flyte-jupyter:stop", pool=key)
    page.locator(".Toastify__toast").get_by_text(why).first.wait_for()
    assert [url for url in orders if "/flyte-jupyter/" in url] == []
    assert ready(row) == 1
