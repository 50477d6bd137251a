"""The pool card in a real kernel: what the front end receives, and what its buttons do."""

from __future__ import annotations

import queue
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbconvert
import nbformat
import pytest
from jupyter_client.manager import KernelManager, start_new_kernel
from support import START_S, TIME_SCALE

pytestmark = pytest.mark.kernel

VIEW = "application/vnd.jupyter.widget-view+json"


class Front:
    """A front end: runs cells, and keeps what cards say. `model` is the one that a test is about."""

    def __init__(self) -> None:
        self.manager: KernelManager
        self.manager, self.client = start_new_kernel()
        self.model = ""
        self.cards: dict[str, dict[str, Any]] = {}
        self.updates: Counter[str] = Counter()
        self.said: list[dict[str, Any]] = []
        self.asked = 0

    def next(self) -> dict[str, Any]:
        message: dict[str, Any] = self.client.get_iopub_msg(timeout=START_S * TIME_SCALE)
        content = message["content"]
        if message["msg_type"] == "comm_msg":
            card, data = content["comm_id"], content["data"]
            if data["method"] == "update":
                self.cards[card] = self.cards.get(card, {}) | data["state"]
                self.updates[card] += 1
            elif card == self.model:
                self.said.append(data["content"])
        return message

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.cards.get(self.model, {}).get("state", {})
        return found

    @contextmanager
    def looking_at(self, shown: list[dict[str, Any]]) -> Iterator[None]:
        """At the card that a cell has shown."""
        [bundle] = [each["content"]["data"] for each in shown if each["msg_type"] == "execute_result"]
        kept, self.model = self.model, bundle[VIEW]["model_id"]
        try:
            yield
        finally:
            self.model = kept

    def start(self, code: str) -> str:
        asked: str = self.client.execute(textwrap.dedent(code))
        return asked

    def run(self, code: str) -> list[dict[str, Any]]:
        asked, found = self.start(code), []
        while True:
            message = self.next()
            if message["parent_header"].get("msg_id") == asked:
                if message["content"].get("execution_state") == "idle":
                    return found
                assert message["msg_type"] != "error", message["content"]
                found.append(message)

    def until(self, condition: Any) -> None:
        while (pool := self.state.get("pool")) is None or not condition(pool):
            self.next()

    def press(self, verb: str, replica: str | None = None, subshell: str | None = None, **body: Any) -> int:
        self.asked += 1
        question = {"number": self.asked, "verb": verb, "body": body, "replica": replica}
        content = {"comm_id": self.model, "data": {"method": "custom", "content": question}}
        message = self.client.session.msg("comm_msg", content)
        if subshell is not None:
            message["header"]["subshell_id"] = subshell
        self.client.shell_channel.send(message)
        return self.asked

    def ask(self, verb: str, replica: str | None = None, subshell: str | None = None, **body: Any) -> dict[str, Any]:
        """What the card answers: an answer or an error."""
        number = self.press(verb, replica, subshell, **body)
        while True:
            for said in self.said:
                if said["number"] == number:
                    return said
            self.next()


@pytest.fixture(scope="module")
def front(shared_broker: Path) -> Iterator[Front]:
    made = Front()
    try:
        shown = made.run("""
            import time
            import flyte_jupyter as flyte
            env = flyte.TaskEnvironment("carded", reusable=flyte.ReusePolicy(replicas=(1, 3)))
            @env.task
            def echo(x: int) -> int:
                return x
            pool = flyte.pool(env)
            pool
        """)
        [bundle] = [each["content"]["data"] for each in shown if each["msg_type"] == "execute_result"]
        assert {"text/plain", "text/html", VIEW} <= set(bundle)
        made.model = bundle[VIEW]["model_id"]
        yield made
    finally:
        made.run("pool.stop(force=True)")
        made.client.stop_channels()
        made.manager.shutdown_kernel()


def ready(count: int) -> Any:
    return lambda pool: [each["state"] for each in pool["replicas"]] == ["ready"] * count


def test_it_follows_the_pool_while_a_cell_blocks(front: Front) -> None:
    front.run("pool.stop(force=True); pool.scale(1, 3); echo(1)")
    front.until(ready(1))
    asked = front.start("pool.warm(2, wait=False); time.sleep(600)")
    front.until(ready(2))
    front.manager.interrupt_kernel()
    while True:
        message = front.next()
        if message["parent_header"].get("msg_id") == asked and message["content"].get("execution_state") == "idle":
            break
    assert front.state["broker"] is True
    assert front.state["pool"]["replicas"][0]["pid"] > 0


def test_its_buttons_act_on_the_pool(front: Front) -> None:
    front.run("pool.scale(1, 3); echo(1)")
    front.press("scale", minimum=3, maximum=3)
    front.until(lambda pool: pool["scaling"]["max_replicas"] == 3 and pool["scaling"]["min_replicas"] == 3)
    front.until(ready(3))
    front.press("keep", seconds=7200)
    front.until(lambda pool: pool["kept_until"] is not None)
    front.press("stop", force=True)
    front.until(lambda pool: not pool["replicas"])
    front.press("warm")
    front.until(ready(3))
    front.press("stop")
    front.until(lambda pool: not pool["replicas"])


def test_what_it_cannot_do_is_said(front: Front) -> None:
    error = front.ask("scale", minimum=3, maximum=1)["error"]
    assert "minimum" in error.lower() or "replicas" in error
    assert (
        front.ask("explode")["error"]
        == "A pool has no verb explode; it has scale, warm, keep, stop, restart, interrupt."
    )
    assert front.ask("peek", replica="12345678-9")["error"] == "pool 'carded' has no replica '12345678-9' any more"


def test_it_answers_what_a_view_asks(front: Front) -> None:
    front.run("pool.scale(1, 3); echo(1); echo(2)")
    front.until(lambda pool: pool["replicas"] and pool["replicas"][0]["state"] == "ready")
    tasks: set[str] = set()
    while "carded.echo" not in tasks:  # a replica tells a few times a second
        whole = front.ask("timeline", since=None)["answer"]
        assert whole["whole"] is True
        tasks = {span["task"] for span in whole["spans"] if span["kind"] == "running"}
    assert front.ask("timeline", since=whole["mark"])["answer"]["whole"] is False
    replica = front.state["pool"]["replicas"][0]
    lines = front.ask("peek", replica=replica["id"])["answer"]["lines"]
    assert lines[0].startswith(f"{replica['name']} · pid {replica['pid']}")
    assert "text" in front.ask("log", replica=replica["id"], tail=5)["answer"]
    assert front.ask("clock")["answer"]["now"] == pytest.approx(time.time(), abs=30)


def test_the_card_of_a_pool_that_was_declared_anew_says_so(front: Front) -> None:
    shown = front.run("""
        import gc
        from flyte_jupyter.client import handle
        brief = flyte.TaskEnvironment("brief", reusable=flyte.ReusePolicy(replicas=1))
        brief
    """)
    with front.looking_at(shown):
        front.run("""
            brief = flyte.TaskEnvironment("brief", env_vars={"A": "1"}, reusable=flyte.ReusePolicy(replicas=1))
            flyte.pool(brief)
            Out.clear()
            del _, __, ___
            gc.collect();
        """)
        assert "run the cell again for its card" in front.ask("warm")["error"]
        front.run("""
            brief = flyte.TaskEnvironment("brief", reusable=flyte.ReusePolicy(replicas=1))
            flyte.pool(brief);
        """)
        assert "answer" in front.ask("warm"), "it is the pool of this card again"
        model = front.model
        with front.looking_at(front.run("brief")):
            assert front.model == model
        front.until(ready(1))
        front.ask("stop", force=True)
        front.until(lambda pool: not pool["replicas"])


def test_a_card_follows_the_name_of_its_pool_to_the_one_that_is_declared_anew(front: Front) -> None:
    declare = """
        again = flyte.TaskEnvironment("again", env_vars={"A": "%s"}, reusable=flyte.ReusePolicy(replicas=1))
        @again.task
        def one() -> int:
            return 1
        one()
    """
    front.run(declare % "1")
    with front.looking_at(front.run("flyte.pool(again)")):
        front.until(lambda pool: pool["calls"] == 1)
        before = front.state["pool"]
        front.run(declare % "2")  # the first one's handle is alive: `Out` has it
        front.until(lambda pool: pool["key"] != before["key"] and pool["calls"] == 1)
        after = front.state["pool"]
        assert (front.cards[front.model]["key"], after["name"], after["retiring"]) == (after["key"], "again", False)
        lanes = front.ask("timeline", since=None)["answer"]["lanes"]
        assert [lane["replica"] for lane in lanes] == [replica["id"] for replica in after["replicas"]]
        model = front.model
        with front.looking_at(front.run("flyte.pool(again)")):
            assert front.model == model
        front.run(declare % "1")
        front.until(lambda pool: pool["key"] == before["key"])
        assert "answer" in front.ask("stop", force=True)
        front.until(lambda pool: not pool["replicas"])


def test_a_pool_that_nobody_has_called_yet_keeps_its_card_beside_the_one_before(front: Front) -> None:
    front.run("""
        anew = flyte.TaskEnvironment("anew", reusable=flyte.ReusePolicy(replicas=1))
        @anew.task
        def one() -> int:
            return 1
        one()
        newer = flyte.TaskEnvironment("anew", env_vars={"A": "1"}, reusable=flyte.ReusePolicy(replicas=1))
    """)
    with front.looking_at(front.run("newer")):
        while not front.state.get("broker") or front.state["pool"] is not None:
            front.next()
        front.run("one()")  # that of the one before
        [key] = [each["content"]["data"] for each in front.run("flyte.pool(newer).key") if "data" in each["content"]]
        front.ask("warm")
        front.until(lambda pool: pool["key"] == key["text/plain"].strip("'"))
        assert "key" not in front.cards[front.model], "it has turned to the other"
        front.ask("stop", force=True)
        front.until(lambda pool: not pool["replicas"])


def test_it_answers_in_a_subshell_while_a_cell_blocks(front: Front) -> None:
    front.run("pool.scale(1, 3); echo(1)")
    front.until(lambda pool: pool["replicas"] and pool["replicas"][0]["state"] == "ready")
    front.client.control_channel.send(front.client.session.msg("create_subshell_request", {}))
    subshell = front.client.get_control_msg(timeout=START_S * TIME_SCALE)["content"]["subshell_id"]
    asked = front.start("time.sleep(600)")
    assert front.ask("timeline", subshell=subshell, since=None)["answer"]["lanes"]
    front.manager.interrupt_kernel()
    while True:
        message = front.next()
        if message["parent_header"].get("msg_id") == asked and message["content"].get("execution_state") == "idle":
            break


def test_it_shows_the_memory_of_replicas(front: Front) -> None:
    front.run("pool.scale(1, 3); echo(1)")
    front.until(lambda pool: any(each["id"] in front.state["usage"]["replicas"] for each in pool["replicas"]))
    [used, *_] = front.state["usage"]["replicas"].values()
    assert used["memory_bytes"] > 2**20


def test_it_shows_the_memory_of_replicas_that_are_never_idle(front: Front, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    front.run("""
        pool.scale(1, 1)
        @env.task
        def grow() -> None:
            import builtins
            builtins.kept = b"x" * (300 << 20)
        echo(1)
    """)
    asked = front.start(f"""
        import os
        grow()
        while not os.path.exists({str(seen)!r}):
            echo(1)
            time.sleep(0.06)
    """)
    while not any(each["memory_bytes"] > 300 << 20 for each in front.state["usage"]["replicas"].values()):
        front.next()
    seen.touch()
    while True:
        message = front.next()
        if message["parent_header"].get("msg_id") == asked and message["content"].get("execution_state") == "idle":
            break


def test_restart_replaces_the_replica(front: Front) -> None:
    front.run("pool.scale(1, 3); echo(1)")
    front.until(lambda pool: pool["replicas"] and pool["replicas"][0]["state"] == "ready")
    old = front.state["pool"]["replicas"][0]["id"]
    assert front.ask("restart", replica=old)["answer"] == {}
    front.until(lambda pool: pool["replicas"] and old not in {each["id"] for each in pool["replicas"]})


def test_nothing_is_sent_while_nothing_changes(front: Front) -> None:
    front.run("pool.stop(force=True); pool.scale(1, 3); echo(1)")
    front.until(ready(1))
    for _ in range(5):
        try:
            front.client.get_iopub_msg(timeout=2)  # a countdown by messages would send one each second
        except queue.Empty:
            break
    else:
        pytest.fail("there is always something said")


def test_what_happens_in_another_pool_is_not_sent(front: Front) -> None:
    front.run("pool.stop(force=True); pool.keep(0).scale(1, 3); echo(1)")
    front.until(ready(1))
    front.run("pool.stop(force=True)")
    front.until(lambda pool: not pool["replicas"])
    while front.state["usage"]["replicas"]:  # measured some time after
        front.next()
    before = front.updates[front.model]
    front.run("""
        beside = flyte.TaskEnvironment("beside", reusable=flyte.ReusePolicy(replicas=1))
        @beside.task
        def one() -> int:
            return 1
        for _ in range(5):
            one()
        flyte.pool(beside).stop(force=True)
    """)
    front.ask("keep", seconds=600)
    front.until(lambda pool: pool["kept_until"])
    assert front.updates[front.model] - before == 1
    front.run("pool.keep(0)")


def test_it_can_be_asked_what_a_preload_says(front: Front, tmp_path: Path) -> None:
    shown = front.run(f"""
        import pathlib
        slow = flyte.TaskEnvironment("slow", reusable=flyte.ReusePolicy(replicas=1))
        gate = pathlib.Path({str(tmp_path / "gate")!r})
        @flyte.pool(slow).preload
        def load():
            print("shard 2/4")
            while not gate.exists():
                time.sleep(0.02)
        flyte.pool(slow).warm(wait=False)
    """)
    with front.looking_at(shown):
        front.until(lambda pool: [each["state"] for each in pool["replicas"]] == ["loading"])
        [replica] = front.state["pool"]["replicas"]
        while "shard 2/4" not in front.ask("log", replica=replica["id"], tail=5)["answer"]["text"]:
            time.sleep(0.05)
        (tmp_path / "gate").touch()
        front.until(ready(1))
        front.ask("stop", force=True)
        front.until(lambda pool: not pool["replicas"])


def test_a_saved_notebook_shows_it_without_a_kernel(front: Front) -> None:
    front.run("pool.scale(1, 3); echo(1)")
    [result] = [each["content"] for each in front.run("pool") if each["msg_type"] == "execute_result"]
    assert "Run the cell again to reconnect." in result["data"]["text/html"]
    output = nbformat.v4.new_output("execute_result", data=result["data"], execution_count=1)
    saved = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("pool", outputs=[output], execution_count=1)])
    page, _ = nbconvert.HTMLExporter().from_notebook_node(saved)
    assert '<pre class="flyte-still">┌ carded' in page
    assert "Run the cell again to reconnect." in page


def test_a_pool_shown_twice_has_one_card(front: Front) -> None:
    [result] = [each for each in front.run("pool") if each["msg_type"] == "execute_result"]
    assert result["content"]["data"][VIEW]["model_id"] == front.model
