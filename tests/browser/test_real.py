"""The whole way: a notebook cell makes a pool in a real broker, the real server reports it, buttons act on it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Jupyter, Lab, checked_page, wait_on
from support import TIME_SCALE

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


@pytest.fixture(scope="module")
def shared(context: Any, jupyter: Jupyter) -> Iterator[Lab]:
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


def test_a_pool_is_listed_within_two_seconds(lab: Lab) -> None:
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
    started = next(pool for pool in lab.snapshot()["pools"] if pool["name"] == "listed")["replicas"][0]["started_at"]
    assert shown - started <= 2 * TIME_SCALE
    lab.page.locator(".jp-OutputArea-output").get_by_text("42").wait_for()


def test_the_countdown_of_an_idle_pool_ticks(warm: Warm, until: Until) -> None:
    _, row = warm
    timer = row.get_by_role("timer")
    timer.wait_for()
    first = timer.inner_text()
    until(lambda: timer.inner_text() != first, 5)


def test_a_button_changes_the_number_of_replicas(warm: Warm, until: Until) -> None:
    lab, row = warm
    row.get_by_role("button", name="Raise the minimum").click()
    until(lambda: ready(row) >= 2 and lab.scaling("warm")["min_replicas"] == 2, 20)
    row.get_by_role("button", name="Lower the minimum").click()
    until(lambda: lab.scaling("warm")["min_replicas"] == 1, 10)


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
    lab.page.locator(".fj-Text").first.wait_for()
    lab.execute("application:close")


def test_a_peek_says_what_a_replica_does(warm: Warm) -> None:
    lab, row = warm
    lab.menu(row.locator(".fj-Replica").first, "Peek")
    lab.page.locator(".fj-Text").get_by_text("nothing runs on its main thread").wait_for()
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


def test_the_running_panel_lists_pools_and_asks_before_it_stops_them(warm: Warm) -> None:
    lab, row = warm
    lab.execute("running:show-panel")
    section = lab.page.locator(".jp-RunningSessions")
    section.get_by_text("warm", exact=True).wait_for()
    section.get_by_text("Stop All Pools").click()
    dialog = lab.dialog()
    assert "loaded" in dialog.inner_text()
    dialog.get_by_role("button", name="Cancel").click()
    lab.show_panel()
    assert ready(row) >= 1


def test_a_running_call_is_shown_and_can_be_stopped(lab: Lab, until: Until) -> None:
    row = open_pool(lab, "running", "slow(120)")
    call = row.locator(".fj-Call").filter(has_text="slow")
    call.wait_for(timeout=30_000 * TIME_SCALE)
    assert "running.ipynb" in call.inner_text()
    call.get_by_role("button", name="Stop call").click()
    lab.page.locator(".jp-OutputArea-output").get_by_text("TaskCancelled").first.wait_for()
    until(lambda: ready(row) == 1, 20)
    lab.panel.locator(".fj-Recent > [data-outcome=cancelled]").get_by_text("slow").wait_for()


def test_a_console_on_a_replica_and_all_kernels_go_and_leave_it_warm(lab: Lab, until: Until) -> None:
    row = open_pool(lab, "survives")
    until(lambda: ready(row) == 1, 20)

    def replicas_of(name: str) -> Any:
        return next(pool for pool in lab.snapshot()["pools"] if pool["name"] == name)["replicas"]

    [pid] = [each["pid"] for each in replicas_of("survives")]
    lab.menu(row.locator(".fj-Replica"), "Open Console")
    # Its banner is there with the kernel, and a new prompt with both.
    lab.page.locator(".jp-CodeConsole").get_by_text("Interactive Python").wait_for(timeout=30_000 * TIME_SCALE)
    prompt = lab.page.locator(".jp-CodeConsole-promptCell .cm-content")
    prompt.click()
    lab.page.keyboard.type("import os; os.getpid()")
    lab.page.keyboard.press("Shift+Enter")
    output = lab.page.locator(".jp-CodeConsole .jp-OutputArea-output")
    output.get_by_text(str(pid), exact=True).wait_for(timeout=30_000 * TIME_SCALE)
    row.locator(".fj-Replica[data-state=attached]").wait_for()
    lab.execute("kernelmenu:shutdownAll")
    dialog = lab.page.locator(".jp-Dialog")
    dialog.wait_for()
    dialog.locator("button.jp-mod-accept").click()
    until(lambda: "0 notebooks" in lab.panel.locator(".fj-Service").inner_text(), 20)
    until(lambda: ready(row) == 1, 20)  # the notebook and the console go one after the other
    assert [each["pid"] for each in replicas_of("survives")] == [pid]


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
    gone.wait_for()  # a page has one document there: the tab is below it
    assert gone.bounding_box()["y"] > page.locator(".jp-Notebook").bounding_box()["y"]
