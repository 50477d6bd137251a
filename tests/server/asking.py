"""What the tests of the server extension share: one request, a server's configuration, who may do what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

from jupyter_server.auth import Authorizer
from tornado.httpclient import HTTPClientError
from traitlets.config import Config

NOBODY = {"Authorization": ""}


@dataclass
class Answer:
    code: int
    body: Any


Ask = Callable[..., Awaitable[Answer]]


class LooksOnly(Authorizer):
    """Everybody may look, but not at a resource in `hidden`; nobody may act, but for what is in `allowed`."""

    hidden: tuple[str, ...] = ()
    allowed: Collection[tuple[str, str]] = ()

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        return (action == "read" and resource not in self.hidden) or (action, resource) in self.allowed


def server_config(**more: Any) -> Config:
    own = {
        "jpserver_extensions": {"flyte_jupyter": True, "jupyter_server_terminals": False},
        "allow_unauthenticated_access": False,
        **more,
    }
    return Config({"ServerApp": own})


async def logged_in(jp_fetch: Any, jp_serverapp: Any) -> dict[str, str]:
    """The headers of a browser that has logged in: cookies, and no token. The cookie's name has the host in it."""
    page = await jp_fetch("login", headers={**NOBODY})
    cookies = _cookies(page)
    form = f"password={jp_serverapp.identity_provider.token}&_xsrf={cookies['_xsrf'].replace('|', '%7C')}"
    headers = {**NOBODY, "Cookie": f"_xsrf={cookies['_xsrf']}"}
    try:
        answer = await jp_fetch("login", method="POST", body=form, headers=headers, follow_redirects=False)
    except HTTPClientError as redirect:
        answer = redirect.response
    cookies |= _cookies(answer)
    host = f"127.0.0.1:{jp_serverapp.port}"
    return {**NOBODY, "Host": host, "Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}


def _cookies(answer: Any) -> dict[str, str]:
    return dict(each.split(";")[0].split("=", 1) for each in answer.headers.get_list("Set-Cookie"))
