"""The pool card in a real kernel: what the front end receives, and what its buttons do."""

from __future__ import annotations

import queue
import textwrap
import time
from collections.abc import Iterator
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
    """A front end: runs cells, and keeps every message of the card."""

    def __init__(self) -> None:
        self.manager: KernelManager
        self.manager, self.client = start_new_kernel()
        self.model = ""
        self.state: dict[str, Any] = {}
        self.said: list[dict[str, Any]] = []
        self.asked = 0

    def next(self) -> dict[str, Any]:
        message: dict[str, Any] = self.client.get_iopub_msg(timeout=START_S * TIME_SCALE)
        content = message["content"]
        if content.get("comm_id") == self.model and message["msg_type"] == "comm_msg":
            if content["data"]["method"] == "update":
                self.state = content["data"]["state"].get("state", self.state)
            else:
                self.said.append(content["data"]["content"])
        return message

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
    front.press("drain")
    front.until(lambda pool: not pool["replicas"])


def test_what_it_cannot_do_is_said(front: Front) -> None:
    error = front.ask("scale", minimum=3, maximum=1)["error"]
    assert "minimum" in error.lower() or "replicas" in error
    assert front.ask("explode")["error"] == "a card cannot 'explode'"
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
    [result] = [
        each["content"]
        for each in front.run("""
            import gc
            from flyte_jupyter.client import handle
            brief = flyte.TaskEnvironment("brief", reusable=flyte.ReusePolicy(replicas=1))
            brief
        """)
        if each["msg_type"] == "execute_result"
    ]
    kept, front.model = front.model, result["data"][VIEW]["model_id"]
    try:
        front.run("""
            brief = flyte.TaskEnvironment("brief", env_vars={"A": "1"}, reusable=flyte.ReusePolicy(replicas=1))
            flyte.pool(brief)
            Out.clear()
            del _, __, ___
            gc.collect();
        """)
        assert "run the cell again for its card" in front.ask("warm")["error"]
    finally:
        front.model = kept


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
