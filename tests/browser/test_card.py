"""The pool card in a real notebook, with real replicas, while a cell blocks; elsewhere with made-up answers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import states
from conftest import Jupyter, Lab, checked_page, keep_sight, serious, settled, wait_on
from support import TIME_SCALE

from flyte_jupyter import widgets
from flyte_jupyter.widgets.card import PoolCard
from flyte_jupyter.widgets.esm import packed

Until = Callable[[Callable[[], Any], float], Any]

WIDGETS = Path(widgets.__file__).parent
EVIL = "<img src=x onerror='window.hacked=1'>\x1b[31m\u202e<script>window.hacked=1</script>"
SHOWN = "<img src=x onerror='window.hacked=1'>\\u001b[31m\\u202e<script>window.hacked=1</script>"
ESCAPED = SHOWN.replace("u001b", "x1b")  # as Python does it
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
FAILED = """
while (seen := flyte.pool(sick).status()) is None or seen.failure is None:
    time.sleep(0.05)
flyte.pool(sick)
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
        cells = (SETUP, "pool", "pool", FAILED, BLOCKED.format(gates=gates))
        self.messages = 0
        lab.page.set_viewport_size({"width": 1200, "height": 3000})  # JupyterLab hides cells that are out of sight
        lab.page.on("websocket", lambda socket: socket.on("framereceived", self.note))
        lab.open(lab.jupyter.notebook(NOTEBOOK, *cells), panel=False)
        lab.run_cells()
        self.all = lab.page.locator(".flyte-card")
        self.all.nth(2).wait_for(timeout=30_000 * TIME_SCALE)
        self.first, self.second, self.sick = (self.all.nth(place) for place in range(3))

    def note(self, frame: str | bytes) -> None:
        """Count what the first card is told; the page talks of other things, too."""
        said = frame.encode() if isinstance(frame, str) else frame
        self.messages += b"comm_msg" in said and b"carded[0]" in said

    def nothing_goes_on(self) -> bool:
        """Whether no client holds a slot, and the failed pool has given up: its starts have memory measured."""
        pools = {pool["name"]: pool for pool in self.lab.snapshot()["pools"]}
        return pools["sick"]["state"] == "failed" and not any(each["leases"] for each in pools["carded"]["replicas"])

    def press(self, name: str) -> None:
        self.first.get_by_role("button", name=name, exact=True).click()

    def says(self, text: str) -> Any:
        return self.first.get_by_text(text).first


# What happens in one notebook, step by step.


def it_shows_what_runs_and_who_waits_while_a_cell_blocks(cards: Cards) -> None:
    cards.first.locator(".flyte-state[data-mark='►']").wait_for(timeout=30_000 * TIME_SCALE)
    task = cards.first.locator(".flyte-task")
    assert task.inner_text() == f"carded.{SHOWN} ({NOTEBOOK})"
    queue = cards.first.locator(".flyte-queue")
    queue.filter(has_text="queue 1 · this notebook is next").wait_for()
    assert queue.inner_text().count("\\u202e") == 1
    cards.second.locator("header").get_by_text("1 busy").wait_for()


def an_error_is_shown_as_text(cards: Cards) -> None:
    failed = cards.sick.locator(".flyte-failed summary")
    failed.wait_for(timeout=30_000 * TIME_SCALE)
    assert f"ValueError: {SHOWN}" in failed.inner_text()
    failed.click()
    assert SHOWN in cards.sick.locator(".flyte-failed pre").inner_text()
    assert cards.all.locator("img, script").count() == 0
    assert cards.lab.page.evaluate("() => window.hacked") is None


def a_replica_can_be_asked_what_it_does(cards: Cards) -> None:
    cards.press("Actions for carded[0]")
    cards.press("Peek")
    cards.first.locator("pre").get_by_text("pass_gate").wait_for()
    cards.press("Log")
    cards.first.locator("pre").get_by_text("pass_gate").wait_for(state="detached")
    cards.press("Actions for carded[0]")
    assert cards.first.get_by_role("button", name="Peek").count() == 0


def its_buttons_act_while_a_cell_blocks(cards: Cards) -> None:
    cards.press("Raise the maximum to 2")
    cards.says("2 busy").wait_for(timeout=20_000 * TIME_SCALE)
    assert cards.lab.scaling("carded")["max_replicas"] == 2
    assert cards.first.locator(".flyte-queue").count() == 0
    cards.second.get_by_text("2 busy").wait_for()


def a_call_that_ends_is_no_longer_shown(cards: Cards) -> None:
    for gate in cards.gates:
        gate.touch()
    cards.says("2 ready").wait_for()
    assert cards.first.locator(".flyte-task").all_inner_texts() == ["-", "-"]
    cards.says("2 calls · 2 starts · cold starts avoided: 0").wait_for()


def the_timeline_tells_what_was(cards: Cards) -> None:
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


def keep_lasts_until_it_is_taken_back(cards: Cards) -> None:
    cards.press("Keep 2 h")
    cards.says("1:59:").wait_for()
    cards.press("Stop keeping")
    cards.first.get_by_role("button", name="Keep 2 h").wait_for()


def it_is_accessible(cards: Cards) -> None:
    for theme in ("JupyterLab Dark", "JupyterLab Dark High Contrast", "JupyterLab Light"):
        cards.lab.theme(theme)
        keep_sight(cards.first, f"card, {theme}")
        assert serious(cards.lab.page, ".flyte-card") == [], theme


def what_cannot_be_done_is_said(cards: Cards) -> None:
    refused = {"status": 403, "json": {"message": EVIL}}
    cards.lab.page.route("**/flyte-jupyter/pools/*/stop", lambda route: route.fulfill(**refused))
    cards.press("Stop")
    cards.first.locator(".flyte-said").get_by_text(SHOWN).wait_for()
    cards.lab.page.unroute("**/flyte-jupyter/pools/*/stop")


def the_countdown_ticks_without_messages(cards: Cards) -> None:
    cards.says("idle off in").wait_for()
    page, timer = cards.lab.page, cards.first.get_by_role("timer")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/flyte-jupyter/" in request.url else None)
    wait_on(page)(cards.nothing_goes_on, 30)
    said = None
    while said != (said := (cards.messages, [*asked])):  # memory is measured once more, 3 s after the last change
        page.wait_for_timeout(4000)
    before = timer.inner_text()
    page.wait_for_function("([timer, text]) => timer.textContent !== text", arg=[timer.element_handle(), before])
    between = timer.inner_text()
    page.wait_for_function("([timer, text]) => timer.textContent !== text", arg=[timer.element_handle(), between])
    assert (cards.messages, asked) == said
    assert cards.messages > 0  # they are counted at all


def stop_asks_first(cards: Cards) -> None:
    cards.press("Stop now…")
    cards.press("Cancel")
    assert cards.says("2 ready").count() == 1
    cards.press("Stop now…")
    cards.press("Stop now")
    cards.first.locator(".flyte-wide").wait_for(state="detached")
    assert cards.lab.page.evaluate("() => window.hacked") is None


def a_notebook_that_is_opened_again_shows_what_was(cards: Cards) -> None:
    page = cards.lab.page
    page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save'); }")
    page.evaluate("async () => { await window.jupyterapp.serviceManager.sessions.shutdownAll(); }")
    cards.lab.load(NOTEBOOK)
    still = page.locator(".jp-OutputArea-output .flyte-still")
    still.nth(2).wait_for(timeout=30_000 * TIME_SCALE)
    assert "carded" in still.first.inner_text()
    assert f"ValueError: {ESCAPED}" in still.nth(2).inner_text()
    assert page.get_by_text("Run the cell again to reconnect.").count() == 3
    assert page.get_by_text("Error displaying widget").count() == 0
    assert cards.all.count() == 0
    assert page.evaluate("() => window.hacked") is None
    keep_sight(page, "opened again")


@pytest.mark.timeout(400)
def test_a_card_follows_its_pool(context: Any, jupyter: Jupyter, tmp_path: Path) -> None:
    with checked_page(context) as page:
        cards = Cards(Lab(page, jupyter), tmp_path)
        for step in (
            it_shows_what_runs_and_who_waits_while_a_cell_blocks,
            an_error_is_shown_as_text,
            a_replica_can_be_asked_what_it_does,
            its_buttons_act_while_a_cell_blocks,
            a_call_that_ends_is_no_longer_shown,
            the_timeline_tells_what_was,
            keep_lasts_until_it_is_taken_back,
            it_is_accessible,
            what_cannot_be_done_is_said,
            the_countdown_ticks_without_messages,
            stop_asks_first,
            a_notebook_that_is_opened_again_shows_what_was,
        ):
            step(cards)


# On a page that is not JupyterLab's: no server to ask, no theme. State and answers are made up.

PAGE = """<!doctype html><html lang="en"><title>elsewhere</title><style>
{css} @media (prefers-color-scheme: dark) {{ body {{ background: #1e1e1e; }} }}
</style><main id="host"></main></html>"""
SHOW = """async ([state, timeline]) => {
    const listeners = {};
    const values = { name: 'gpu', key: '0123456789abcdef', client: 'eval.ipynb', state };
    const said = { timeline, log: { text: 'loaded\\n\\u001b[31mred' }, peek: { lines: ['train.py:7 step'] } };
    window.said = said;
    window.sent = [];
    window.held = []; // answers that the test gives
    window.heard = []; // what the preload that runs was asked for
    window.ahead = 0; // seconds of the kernel's clock
    const model = {
        get: name => values[name],
        on: (event, listener) => (listeners[event] ??= new Set()).add(listener),
        off: (event, listener) => listeners[event].delete(listener),
        send: question => {
            if (question.verb === 'clock') said.clock = { now: Date.now() / 1000 + window.ahead };
            else (question.replica === '00000002' ? window.heard : window.sent).push(question); // it loads
            const told = said[question.verb] ?? {};
            const answer = { number: question.number, ...(told.error ? told : { answer: told }) };
            const give = () => listeners['msg:custom'].forEach(each => each(answer));
            question.verb === 'scale' ? window.held.push(give) : queueMicrotask(give);
        }
    };
    window.change = (state, others) => {
        Object.assign(values, others, { state });
        listeners['change:state'].forEach(each => each());
    };
    const { default: widget } = await import('/widget.js');
    window.show = () => widget.render({ model, el: document.getElementById('host') });
    window.dispose = window.show();
}"""
DRAW = """async answer => {
    window.frames_ms = [];
    const request = window.requestAnimationFrame;
    window.requestAnimationFrame = draw => request(() => {
        const began = performance.now();
        draw();
        window.frames_ms.push(performance.now() - began);
    });
    const { Timeline } = await import('/timeline.js');
    window.timeline = new Timeline(document.getElementById('host'));
    window.timeline.take(answer);
}"""


@pytest.fixture
def elsewhere(page: Any) -> Any:
    """A page with nothing of JupyterLab. It can import the card's widget and each of its files."""

    def answer(route: Any) -> None:
        name = route.request.url.rpartition("/")[2]
        if name == "widget.js":
            route.fulfill(body=str(PoolCard._esm), content_type="text/javascript")
        elif name.endswith(".js"):
            route.fulfill(path=WIDGETS / name, content_type="text/javascript")
        else:
            route.fulfill(body=PAGE.format(css=PoolCard._css), content_type="text/html")

    page.route("http://elsewhere.test/**", answer)
    page.goto("http://elsewhere.test/")
    page.evaluate("() => localStorage.clear()")
    return page


def hide(elsewhere: Any) -> None:
    """Until the card knows: its own observer was there before, and is told before."""
    elsewhere.evaluate(
        """() => new Promise(told => {
            const host = document.getElementById('host');
            host.style.display = 'none';
            new IntersectionObserver(seen => seen.at(-1).isIntersecting || told()).observe(host);
        })"""
    )


def told(state: dict[str, Any], **others: Any) -> dict[str, Any]:
    """What a kernel tells a card of the first pool of such a state, but for these."""
    shown = {"now": time.time(), "broker": True, "spawned": None, "devices": [], "pool": state["snapshot"]["pools"][0]}
    return {**shown, "epoch_offset": state["epoch_offset"], "usage": state["usage"], **others}


def made_up(lanes: int, spans: int) -> dict[str, Any]:
    """The last ten minutes of a pool whose replicas had so many short calls, of which some went wrong."""
    now, each = 5000.0, 560 * lanes / spans
    outcomes = ["succeeded"] * 17 + ["failed", "cancelled", "lost"]
    calls = [
        {
            **{"id": number, "replica": f"r{number % lanes}", "kind": "running", "task": f"embed {EVIL}", "calls": 1},
            **{"client": "train.ipynb", "outcome": outcomes[number % 20]},
            **{"began": (began := now - 570 + each * (number // lanes)), "ended": began + each / 2},
        }
        for number in range(spans)
    ]
    return {
        **{"now": time.time(), "epoch_offset": time.time() - now, "mark": "m", "whole": True, "window_s": 600},
        "lanes": [
            {
                **{"replica": f"r{index}", "name": f"gpu[{index}]", "index": index, "why": "a call waits"},
                **{"started_at": now - 590, "ready_at": now - 575, "ended_at": None},
            }
            for index in range(lanes)
        ],
        "spans": calls,
        "changes": [{"id": 1, "at": now - 590, "text": f"gpu[0] starts: {EVIL}"}],
    }


def test_a_frame_of_5000_spans_is_drawn_in_8_ms(elsewhere: Any, until: Until) -> None:
    elsewhere.evaluate(DRAW, made_up(20, 5000))
    for x in range(120):  # each move has it drawn again
        elsewhere.mouse.move(200 + 5 * x, 60)
    until(lambda: elsewhere.evaluate("() => window.frames_ms.length") >= 100, 20)
    frames = sorted(elsewhere.evaluate("() => window.frames_ms"))
    print(
        f"{len(frames)} frames: median {frames[len(frames) // 2]:.1f} ms, 95 % {frames[len(frames) * 95 // 100]:.1f} ms"
    )
    assert frames[len(frames) // 2] < 8 * TIME_SCALE
    keep_sight(elsewhere, "timeline of 5000 spans")


def test_the_timeline_moves_and_stands_still_while_it_is_out_of_sight(elsewhere: Any, until: Until) -> None:
    elsewhere.evaluate(DRAW, made_up(2, 50))
    frames = "() => window.frames_ms.length"
    until(lambda: elsewhere.evaluate(frames) >= 3, 10)
    elsewhere.evaluate("() => { document.getElementById('host').style.marginTop = '5000px'; }")
    seen = settled(elsewhere, lambda: elsewhere.evaluate(frames))
    elsewhere.wait_for_timeout(2500)
    assert elsewhere.evaluate(frames) == seen
    elsewhere.evaluate("() => { document.getElementById('host').style.marginTop = '0'; }")
    until(lambda: elsewhere.evaluate(frames) > seen, 10)
    elsewhere.evaluate("() => window.timeline.dispose()")
    assert elsewhere.locator(".flyte-timeline").count() == 0
    seen = settled(elsewhere, lambda: elsewhere.evaluate(frames))
    elsewhere.evaluate("answer => window.timeline.take(answer)", made_up(2, 50))  # it was on its way
    elsewhere.wait_for_timeout(1500)
    assert elsewhere.evaluate(frames) == seen


def test_a_span_under_the_pointer_is_told(elsewhere: Any) -> None:
    elsewhere.evaluate(DRAW, made_up(1, 4))
    box = elsewhere.locator("canvas").bounding_box()
    elsewhere.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + 14)
    tip = elsewhere.locator(".flyte-tip div")
    tip.first.wait_for()
    assert tip.all_inner_texts() == [f"embed {SHOWN}", "train.ipynb", "succeeded 1 min 10 s", "gpu[0]"]
    elsewhere.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] + 50)
    tip.first.wait_for(state="detached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_and_used_without_jupyterlab(elsewhere: Any, scheme: str) -> None:
    elsewhere.emulate_media(color_scheme=scheme)
    state = states.rich()
    pool = state["snapshot"]["pools"][0]
    pool["failure"] = {"cause": f"Traceback\nValueError: {EVIL}", "replica": "gpu[1]", "attempts": 2, "retry_at": None}
    shown = told(state, pool=pool, devices=state["snapshot"]["devices"])
    elsewhere.evaluate(SHOW, [shown, made_up(3, 300)])
    card = elsewhere.locator(".flyte-card")
    card.get_by_text("Timeline", exact=True).click()
    card.locator("canvas[aria-label*='calls: 300']").wait_for()
    card.get_by_text("Why it scaled").click()
    card.get_by_text(f"starts: {SHOWN}").wait_for()
    card.get_by_role("button", name="Actions for gpu[0]").click()
    card.get_by_role("button", name="Log").click()
    card.locator("pre").get_by_text("\\u001b[31mred").wait_for()
    card.get_by_role("button", name="Stop", exact=True).click()
    sent = elsewhere.evaluate("() => window.sent.map(each => each.verb)")
    # The timeline is asked for again in a while, since a second part of the card has been opened.
    assert [verb for verb in sent if verb != "timeline"] == ["log", "stop"]
    assert sent[0] == "timeline"
    assert serious(elsewhere, ".flyte-card") == []
    keep_sight(card, f"card elsewhere, {scheme}")
    assert elsewhere.evaluate("() => window.hacked") is None
    elsewhere.evaluate("() => window.dispose()")


def test_a_wait_is_foretold_and_what_takes_longer_is_said(elsewhere: Any, until: Until) -> None:
    state = states.rich()
    pool = state["snapshot"]["pools"][0]
    mine, foreign = {"client": "eval.ipynb", "expected_at": 1080.0}, {"lease": "l9", "expected_at": None}
    pool["queue"] = [pool["queue"][0] | mine, pool["queue"][0] | foreign | {"client": "b.ipynb", "position": 1}]
    shown = told(state, pool=pool | {"waiting": 2})
    elsewhere.evaluate(SHOW, [shown, made_up(1, 4)])
    queue = elsewhere.locator(".flyte-queue")
    head, first, second = queue.inner_text().split("\n")
    assert re.fullmatch(r"queue 2 · this notebook is next, about \d+ s", head)
    assert re.fullmatch(r"evaluate \(eval\.ipynb\), waits \d:\d\d, starts in about \d+ s", first.strip())
    assert re.fullmatch(r"evaluate \(b\.ipynb\), waits \d:\d\d", second.strip())
    until(lambda: queue.inner_text().split("\n")[0] != head, 5)  # it counts down by itself
    keep_sight(elsewhere.locator(".flyte-card"), "a wait")
    pool["queue"][0]["expected_at"] = 999.0
    elsewhere.evaluate("state => window.change(state)", {**shown, "pool": pool | {"waiting": 2}})
    head, first, _ = queue.inner_text().split("\n")
    assert head == "queue 2 · this notebook is next, longer than usual"
    assert first.endswith(", longer than usual")


def test_a_view_that_is_made_late_counts_on_the_kernels_clock(elsewhere: Any) -> None:
    state = states.rich()
    pool = state["snapshot"]["pools"][0] | {"idle_stops_at": 1600.0}
    shown = told(state, pool=pool, now=time.time() - 300)
    elsewhere.evaluate(SHOW, [shown, made_up(1, 4)])
    timer = elsewhere.get_by_role("timer")
    assert re.search(r"idle off in (10:00|9:5\d)", timer.inner_text())
    elsewhere.evaluate("() => { window.dispose(); window.ahead = -120; window.dispose = window.show(); }")
    timer.get_by_text(re.compile(r"(12:00|11:5\d)")).wait_for()


def test_a_card_out_of_sight_asks_for_nothing(elsewhere: Any, until: Until) -> None:
    shown = told(states.rich())
    elsewhere.evaluate(SHOW, [shown, made_up(1, 4)])
    elsewhere.locator(".flyte-card").get_by_text("Timeline", exact=True).click()
    sent = "() => window.sent.length"
    until(lambda: elsewhere.evaluate(sent) == 1, 5)
    hide(elsewhere)
    for calls in range(3):
        elsewhere.evaluate("state => window.change(state)", {**shown, "pool": {**shown["pool"], "calls": calls}})
        elsewhere.wait_for_timeout(600)
    assert elsewhere.evaluate(sent) == 1
    elsewhere.evaluate("() => { document.getElementById('host').style.display = ''; }")
    until(lambda: elsewhere.evaluate(sent) == 2, 5)


def test_two_clicks_before_the_next_state_count_twice(elsewhere: Any, until: Until) -> None:
    shown = told(states.rich())
    elsewhere.evaluate(SHOW, [shown, made_up(1, 4)])
    card = elsewhere.locator(".flyte-card")
    card.get_by_role("button", name="Raise the maximum to 4").dblclick()
    card.get_by_text("max 5", exact=True).wait_for()
    for _ in range(2):
        until(lambda: elsewhere.evaluate("() => window.held.length"), 5)
        elsewhere.evaluate("() => window.held.pop()()")
    assert [asked["body"] for asked in elsewhere.evaluate("() => window.sent")] == [
        {"minimum": 1, "maximum": 4},
        {"minimum": 1, "maximum": 5},
    ]
    for maximum in (5, 2):  # what was asked for; then what somebody else did
        shown["pool"]["scaling"]["max_replicas"] = maximum
        elsewhere.evaluate("state => window.change(state)", shown)
    card.get_by_text("max 2", exact=True).wait_for()


def test_a_row_says_what_the_preload_says_while_it_can_be_seen(elsewhere: Any, until: Until) -> None:
    shown = told(states.rich())
    pool = shown["pool"]
    elsewhere.evaluate(SHOW, [shown, made_up(1, 4)])
    log = "first\nshard 1/4\rshard 2/4 \x1b[31m<img src=x onerror='window.hacked=1'>\n\n"
    elsewhere.evaluate("text => { window.said.log.text = text; }", log)
    row = elsewhere.locator(".flyte-wide tbody tr").nth(2)
    row.get_by_text("“shard 2/4 \\u001b[31m<img src=x onerror='window.hacked=1'>”").wait_for()
    keep_sight(elsewhere.locator(".flyte-card"), "a preload")
    elsewhere.evaluate("text => { window.said.log.text = text; }", "x" * 5000)
    row.get_by_text(f"“{'x' * 119}…”").wait_for()
    assert elsewhere.evaluate("() => window.hacked") is None
    asked = "() => window.heard.length"
    assert elsewhere.evaluate("() => [window.sent.length, new Set(window.heard.map(each => each.verb)).size]") == [0, 1]
    hide(elsewhere)
    seen = elsewhere.evaluate(asked)
    elsewhere.wait_for_timeout(5000)
    assert elsewhere.evaluate(asked) == seen
    elsewhere.evaluate("() => { document.getElementById('host').style.display = ''; }")
    until(lambda: elsewhere.evaluate(asked) > seen, 10)
    pool["replicas"][2]["state"] = "ready"
    elsewhere.evaluate("state => window.change(state)", shown)
    row.get_by_text("xxx").wait_for(state="detached")


def test_a_log_that_cannot_be_had_is_not_asked_for_with_each_state(elsewhere: Any, until: Until) -> None:
    shown = told(states.rich())
    elsewhere.evaluate(SHOW, [shown, made_up(1, 4)])
    until(lambda: elsewhere.evaluate("() => window.heard.length"), 5)
    elsewhere.evaluate("() => { window.said.log = { error: 'no' }; }")
    paused_ms = elsewhere.evaluate(
        """async state => {
            const [before, asked] = [window.heard.length, []];
            for (let calls = 0; asked.length < 2; calls++) {
                window.change({ ...state, pool: { ...state.pool, calls } });
                await new Promise(done => setTimeout(done, 20));
                if (window.heard.length > before + asked.length) asked.push(performance.now());
            }
            return asked[1] - asked[0];
        }""",
        shown,
    )
    assert paused_ms > 1000


def test_a_card_that_turns_to_another_pool_has_its_timeline(elsewhere: Any, until: Until) -> None:
    shown = told(states.rich())
    elsewhere.evaluate(SHOW, [shown, made_up(1, 4)])
    elsewhere.locator(".flyte-card").get_by_text("Timeline", exact=True).click()
    sent = "() => window.sent.map(each => each.body.since)"
    until(lambda: elsewhere.evaluate(sent) == [None], 5)
    elsewhere.evaluate("state => window.change(state)", {**shown, "pool": {**shown["pool"], "calls": 42}})
    until(lambda: elsewhere.evaluate(sent) == [None, "m"], 5)
    anew = {**shown, "pool": {**shown["pool"], "key": "f" * 16}}
    elsewhere.evaluate("([state, key]) => window.change(state, { key })", [anew, "f" * 16])
    until(lambda: elsewhere.evaluate(sent) == [None, "m", None], 5)


SCRIPT = {"Content-Type": "text/javascript; charset=utf-8"}
NEIGHBOURS = {
    "entry.js": """import { first } from "./first.js";
import * as second from "./second.js";
import {
  again,
  text,
} from "./text-3.js";
import "./effect.js";
const LIMIT = 1;
export default [LIMIT, first(), second.LIMIT, again === first, text, globalThis.effects];
""",
    "first.js": """const LIMIT = 2;
class Card {}
export const first = () => [LIMIT, Card.name];
""",
    "second.js": """export const LIMIT = 3;
class Card {}
""",
    "text-3.js": """export { first as again } from "./first.js";
export const text = `$& $1 </script> \\u2028 " \u00fc`;
""",
    "effect.js": """globalThis.effects = (globalThis.effects ?? 0) + 1;
""",
}


def test_each_file_of_a_widget_has_names_of_its_own(elsewhere: Any, tmp_path: Path) -> None:
    for name, text in NEIGHBOURS.items():
        (tmp_path / name).write_text(text, "utf-8")
    elsewhere.route("**/packed.js", lambda route: route.fulfill(body=packed(tmp_path / "entry.js"), headers=SCRIPT))
    value = elsewhere.evaluate("async () => (await import('/packed.js')).default")
    assert value == [1, [2, "Card"], 3, True, '$& $1 </script> \u2028 " \u00fc', 1]


def test_numbers_are_written_as_people_read_them(elsewhere: Any) -> None:
    def all_of(function: str, *values: Any) -> Any:
        return elsewhere.evaluate(
            "async ([name, values]) => { const words = await import('/words.js');"
            "return values.map(value => words[name](value)); }",
            [function, values],
        )

    assert all_of("duration", 0.0004, 0.012, 3.21, 9.97, 42, 60, 125, 5400, 7200) == [
        *("less than 1 ms", "12 ms", "3.2 s", "10 s", "42 s", "1 min", "2 min 5 s", "1 h 30 min", "2 h")
    ]
    assert all_of("clock", 7, 1780.2, 7200, -3) == ["0:07", "29:40", "2:00:00", "0:00"]
    assert all_of("size", 50_000_000, 24 * 2**30) == ["48 MiB", "24.0 GiB"]
    assert all_of("visible", "a\tb\u202e\u2028", "x" * 300) == ["a\\u0009b\\u202e\\u2028", "x" * 199 + "…"]


def test_a_button_keeps_its_focus_and_a_click_when_the_state_changes(elsewhere: Any) -> None:
    shown = told(states.rich())
    pool = shown["pool"]
    elsewhere.evaluate(SHOW, [shown, made_up(1, 4)])
    button = elsewhere.get_by_role("button", name="Stop", exact=True)
    button.hover()
    elsewhere.mouse.down()
    elsewhere.evaluate("state => window.change(state)", {**shown, "pool": {**pool, "calls": 77}})
    elsewhere.get_by_text("77 calls").wait_for()
    elsewhere.mouse.up()
    assert elsewhere.evaluate("() => window.sent.map(each => each.verb)") == ["stop"]
    elsewhere.evaluate("state => window.change(state)", {**shown, "pool": {**pool, "replicas": [], "waiting": 0}})
    elsewhere.locator(".flyte-wide").wait_for(state="detached")
    assert elsewhere.evaluate("() => document.activeElement.textContent") == "Stop"
