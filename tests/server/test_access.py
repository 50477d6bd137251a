"""Who may look, and who may act: each request is authenticated, authorized, and not forged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from asking import NOBODY, Ask, LooksOnly, logged_in, server_config
from tornado.httpclient import HTTPClientError
from tornado.web import HTTPError
from traitlets.config import Config

from flyte_jupyter import runtime
from flyte_jupyter.server import handlers

KEY, REPLICA, LEASE = "0123456789abcdef", "01234567-1", "abcdef0123456789"
READS = ["pools", f"pools/{KEY}/timeline", f"pools/{KEY}/failure", f"replicas/{REPLICA}/log"]
VERBS = [
    *(f"pools/{KEY}/{verb}" for verb in ("scale", "warm", "keep", "stop", "restart", "interrupt")),
    *(f"replicas/{REPLICA}/{verb}" for verb in ("restart", "interrupt")),
    f"leases/{LEASE}/cancel",
]
PEEK = f"replicas/{REPLICA}/peek"
ACTS = [*VERBS, PEEK]


@pytest.fixture
def jp_server_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv(runtime.VARIABLE, str(tmp_path / "none"))
    return server_config()


@pytest.fixture
def looks_only(jp_serverapp: Any) -> LooksOnly:
    authorizer = LooksOnly(parent=jp_serverapp)
    jp_serverapp.web_app.settings["authorizer"] = authorizer
    return authorizer


def test_these_are_all_endpoints() -> None:
    paths = {path for path, *_ in handlers.routes("/")}
    assert len(paths) == 9
    verbs = {verb for kind in (handlers.POOL, handlers.REPLICA, handlers.LEASE) for verb in kind}
    assert verbs == {path.rpartition("/")[2] for path in VERBS}


@pytest.mark.parametrize("path", READS)
async def test_nobody_reads_without_a_token(ask: Ask, path: str) -> None:
    assert (await ask(path, headers=NOBODY)).code == 403


@pytest.mark.parametrize("path", ACTS)
async def test_nobody_acts_without_a_token(ask: Ask, path: str) -> None:
    answer = await ask(path, {}, headers=NOBODY)
    assert answer.code == 403
    assert answer.body["message"]


@pytest.mark.parametrize("path", ACTS)
async def test_nothing_changes_on_a_get(ask: Ask, path: str) -> None:
    assert (await ask(path)).code == 405


@pytest.mark.parametrize("path", ACTS)
async def test_who_may_only_look_does_not_act(ask: Ask, looks_only: LooksOnly, path: str) -> None:
    answer = await ask(path, {})
    assert answer.code == 403
    what = "execute on kernels" if path == PEEK else "write on flyte-jupyter-pools"
    assert "You may" in answer.body["message"]
    assert answer.body["message"].endswith(f"({what}).")


async def test_who_may_only_look_looks(ask: Ask, looks_only: LooksOnly) -> None:
    assert (await ask("pools")).code == 200
    assert (await ask(f"replicas/{REPLICA}/log")).code == 404
    assert (await ask(f"pools/{KEY}/failure")).code == 503


async def test_logs_and_tracebacks_are_a_resource_of_their_own(ask: Ask, looks_only: LooksOnly) -> None:
    looks_only.hidden = ("flyte-jupyter-logs",)
    assert (await ask("pools")).code == 200
    assert (await ask(f"replicas/{REPLICA}/log")).code == 403
    assert (await ask(f"pools/{KEY}/failure")).code == 403


# --- what is refused is said beforehand


async def test_who_may_all_is_refused_nothing(ask: Ask) -> None:
    assert (await ask("pools")).body["refused"] == {}


async def test_who_may_only_look_is_told_why_before_they_try(ask: Ask, looks_only: LooksOnly) -> None:
    looks_only.hidden = ("flyte-jupyter-logs",)
    refused = (await ask("pools")).body["refused"]
    tried = {"change": await ask(VERBS[0], {}), "peek": await ask(PEEK, {}), "logs": await ask(READS[-1])}
    assert {act: answer.body["message"] for act, answer in tried.items()} == {
        act: why for act, why in refused.items() if act != "attach"
    }
    assert refused["attach"].endswith("(write on sessions, execute on kernels).")


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        ({("write", "flyte-jupyter-pools")}, {"peek", "attach"}),
        ({("execute", "kernels")}, {"change", "attach"}),
        ({("execute", "kernels"), ("write", "sessions")}, {"change"}),
    ],
)
async def test_each_act_has_a_resource_of_its_own(
    ask: Ask, looks_only: LooksOnly, allowed: set[tuple[str, str]], refused: set[str]
) -> None:
    looks_only.allowed = allowed
    assert (await ask("pools")).body["refused"].keys() == refused


class SaysNoLoudly(LooksOnly):
    async def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:  # type: ignore[override]
        if not super().is_authorized(handler, user, action, resource):
            raise HTTPError(403)
        return True


async def test_an_authorizer_may_be_slow_and_may_raise(ask: Ask, jp_serverapp: Any) -> None:
    jp_serverapp.web_app.settings["authorizer"] = SaysNoLoudly(parent=jp_serverapp)
    assert (await ask("pools")).body["refused"].keys() == {"change", "peek", "attach"}


# --- the socket


async def refused(jp_ws_fetch: Any, **headers: str) -> int:
    with pytest.raises(HTTPClientError) as caught:
        await jp_ws_fetch("flyte-jupyter", "stream", headers=headers)
    return caught.value.code


async def test_the_socket_asks_who_it_is(jp_ws_fetch: Any) -> None:
    assert await refused(jp_ws_fetch, Authorization="") == 403


async def test_the_socket_asks_whether_one_may_look(jp_ws_fetch: Any, looks_only: LooksOnly) -> None:
    looks_only.hidden = ("flyte-jupyter-pools",)
    assert await refused(jp_ws_fetch) == 403
    looks_only.hidden = ()
    socket = await jp_ws_fetch("flyte-jupyter", "stream")
    state = json.loads(await socket.read_message())
    assert state["state"] == "no-broker"
    assert state["refused"].keys() == {"change", "peek", "attach"}
    socket.close()


# --- a browser, which sends its cookie along whoever makes it ask


async def test_a_browser_that_has_logged_in_reads(ask: Ask, jp_fetch: Any, jp_serverapp: Any) -> None:
    headers = await logged_in(jp_fetch, jp_serverapp)
    assert (await ask("pools", headers=headers)).code == 200


@pytest.mark.parametrize("path", ACTS)
async def test_an_order_without_the_xsrf_token_is_refused(
    ask: Ask, jp_fetch: Any, jp_serverapp: Any, path: str
) -> None:
    headers = await logged_in(jp_fetch, jp_serverapp)
    answer = await ask(path, {"minimum": 1, "maximum": 1} if "scale" in path else {}, headers=headers)
    assert answer.code == 403
    assert "_xsrf" in answer.body["message"]


async def test_an_order_with_the_xsrf_token_is_heard(ask: Ask, jp_fetch: Any, jp_serverapp: Any) -> None:
    headers = await logged_in(jp_fetch, jp_serverapp)
    token = headers["Cookie"].split("_xsrf=")[1].split(";")[0]
    answer = await ask(f"pools/{KEY}/stop", {}, headers={**headers, "X-XSRFToken": token})
    assert answer.code == 503  # there is no broker


async def test_a_page_from_elsewhere_gets_nothing(ask: Ask, jp_fetch: Any, jp_serverapp: Any, jp_ws_fetch: Any) -> None:
    headers = await logged_in(jp_fetch, jp_serverapp)
    assert await refused(jp_ws_fetch, **headers, Origin="http://evil.example") == 403
    assert await refused(jp_ws_fetch, **headers, Origin="http://localhost.evil.example") == 403
    for path in READS:
        assert (await ask(path, headers={**headers, "Origin": "http://evil.example"})).code == 404
    assert (await ask(VERBS[0], {}, headers={**headers, "Origin": "http://evil.example"})).code in {403, 404}


async def test_a_page_of_this_server_gets_the_socket(jp_fetch: Any, jp_serverapp: Any, jp_ws_fetch: Any) -> None:
    headers = await logged_in(jp_fetch, jp_serverapp)
    headers["Origin"] = f"http://{headers['Host']}"
    socket = await jp_ws_fetch("flyte-jupyter", "stream", headers=headers)
    state = json.loads(await socket.read_message())
    assert state["state"] == "no-broker"
    assert state["refused"] == {}
    socket.close()
