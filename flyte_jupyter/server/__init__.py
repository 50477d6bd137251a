"""The Jupyter server extension: shows the broker's state and passes verbs on. It decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp


def _load_jupyter_server_extension(server: ServerApp) -> None:
    from .handlers import routes

    server.web_app.add_handlers(".*$", routes(server.base_url))
