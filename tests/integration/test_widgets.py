"""The pool card in a real kernel: what the front end receives, and what its buttons do."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

    def press(self, verb: str, **body: Any) -> None:
        content = {"comm_id": self.model, "data": {"method": "custom", "content": {"verb": verb, "body": body}}}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", content))


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
    front.press("scale", minimum=3, maximum=1)
    while not front.said:
        front.next()
    assert "minimum" in front.said[-1]["error"].lower() or "replicas" in front.said[-1]["error"]
    front.said.clear()
    front.press("explode")
    while not front.said:
        front.next()
    assert front.said[-1]["error"] == "a card cannot 'explode'"


def test_a_pool_shown_twice_has_one_card(front: Front) -> None:
    [result] = [each for each in front.run("pool") if each["msg_type"] == "execute_result"]
    assert result["content"]["data"][VIEW]["model_id"] == front.model
