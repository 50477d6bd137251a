"""A Jupyter server with the extension, and a broker beside it.

The fixtures are imported and not named as plugins: pytest-jupyter's event loop is for these tests alone.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from asking import Answer, Ask
from pytest_jupyter.jupyter_core import *  # noqa: F403
from pytest_jupyter.jupyter_server import *  # noqa: F403
from pytest_jupyter.pytest_tornasync import *  # noqa: F403
from tornado.httpclient import HTTPClientError


@pytest.fixture
def ask(jp_fetch: Any) -> Ask:
    """One request below `flyte-jupyter/`; its status and JSON, whatever the status is."""

    async def ask(path: str, body: Any = None, **kwargs: Any) -> Answer:
        if body is not None:
            kwargs |= {"method": "POST", "body": body if isinstance(body, str) else json.dumps(body)}
        try:
            response = await jp_fetch("flyte-jupyter", *path.split("/"), **kwargs)
        except HTTPClientError as error:
            response = error.response
        return Answer(response.code, json.loads(response.body) if response.body else None)

    return ask
