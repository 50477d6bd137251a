"""The requests of docs/server-api.md. Each is authenticated, then authorized for a resource of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Annotated, Any, Final, TypeVar

from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from jupyter_server.utils import url_path_join
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tornado import web
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from ..core.verbs import LEASE, POOL, REPLICA, NoSuchVerb, Verbs, explained
from ..errors import NoSuchReplica, ProtocolError, ReplicaSilent, whole_text
from ..logs import read_log
from ..peek import Look, peek_async
from .access import CHANGE, KERNELS, LOGS, PEEK, POOLS, READ_LOGS, refusals
from .connection import Connection, Unreachable, connected
from .feed import Feed

MAX_BODY_BYTES: Final = 16 * 1024
MAX_LINES: Final = 10_000

B = TypeVar("B", bound=BaseModel)


def routes(base_url: str) -> list[tuple[Any, ...]]:
    """All handlers of one server; they share one feed."""
    feed = {"feed": Feed()}
    paths: list[tuple[str, Any, dict[str, Any]]] = [
        ("pools", PoolsHandler, feed),
        ("stream", StreamHandler, feed),
        ("pools/([0-9a-f]{16})/failure", FailureHandler, {}),
        ("pools/([0-9a-f]{16})/timeline", TimelineHandler, {}),
        ("replicas/([0-9a-f]{8}-[0-9]{1,12})/log", LogHandler, {}),
        ("replicas/([0-9a-f]{8}-[0-9]{1,12})/peek", PeekHandler, {}),
        ("pools/([0-9a-f]{16})/([a-z]+)", VerbHandler, {"verbs": POOL}),
        ("replicas/([0-9a-f]{8}-[0-9]{1,12})/([a-z]+)", VerbHandler, {"verbs": REPLICA}),
        ("leases/([0-9a-f]{1,64})/([a-z]+)", VerbHandler, {"verbs": LEASE}),
    ]
    return [(url_path_join(base_url, "flyte-jupyter", path), handler, given) for path, handler, given in paths]


class Problem(web.HTTPError):
    """An error whose text is for people."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status)
        self.text = text


class Handler(APIHandler):
    auth_resource = POOLS

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        if isinstance(error, Problem):
            self.finish({"message": error.text, "reason": self._reason})
        else:
            super().write_error(status_code, **kwargs)

    def body(self, kind: type[B]) -> B:
        """What was sent."""
        if len(self.request.body) > MAX_BODY_BYTES:
            raise Problem(413, f"The body is longer than {MAX_BODY_BYTES} bytes.")
        try:
            return kind.model_validate_json(self.request.body or b"{}")
        except ValidationError as problem:
            raise Problem(400, f"The body does not fit: {explained(problem)}.") from None

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Connection]:
        try:
            async with connected() as broker:
                yield broker
        except Unreachable as why:
            raise Problem(503, str(why)) from None

    def number(self, name: str, default: int | None, most: int) -> int | None:
        """A whole number of the query."""
        text = self.get_query_argument(name, None)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
            raise Problem(400, f"{name} must be a whole number from 0 to {most}, not {text!r}.")
        return int(text)


class PoolsHandler(Handler):
    _track_activity = False  # polling is not work

    def initialize(self, feed: Feed) -> None:
        self.feed = feed

    @web.authenticated
    @authorized("read")
    async def get(self) -> None:
        state = await self.feed.state()
        if self.get_query_argument("since", None) == state.tag:
            self.set_status(204)
            self.finish()
        else:
            self.finish(state.text(await refusals(self)))


class StreamHandler(WebSocketMixin, WebSocketHandler, JupyterHandler):
    auth_resource = POOLS

    def initialize(self, feed: Feed) -> None:
        self.feed = feed
        self.refused: dict[str, str] = {}
        self.sending: asyncio.Task[None] | None = None

    def set_default_headers(self) -> None:
        """Those of a page mean nothing here."""

    @property
    def max_message_size(self) -> int:
        return MAX_BODY_BYTES

    @ws_authenticated
    @authorized("read")
    async def get(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.refused = await refusals(self)
        await super().get(*args, **kwargs)  # checks the origin, then upgrades

    def open(self, *args: Any, **kwargs: Any) -> None:
        super().open(*args, **kwargs)  # starts the pings
        self.sending = asyncio.create_task(self.send())

    async def send(self) -> None:
        with suppress(WebSocketClosedError):
            async with self.feed.watching() as states:
                async for state in states:
                    await self.write_message(state.text(self.refused))  # returns once what came before is taken

    def on_message(self, message: str | bytes) -> None:
        """Nothing is expected."""

    def on_close(self) -> None:
        if self.sending is not None:
            self.sending.cancel()


class TimelineHandler(Handler):
    _track_activity = False

    @web.authenticated
    @authorized("read")
    async def get(self, key: str) -> None:
        since = self.get_query_argument("since", None)
        async with self.broker() as broker:
            timeline = await broker.timeline(key, since)
        if timeline is None:
            raise Problem(404, f"There is no pool {key}.")
        self.finish(timeline.model_dump_json())


class FailureHandler(Handler):
    auth_resource = LOGS

    @web.authenticated
    @authorized("read", message=READ_LOGS.refusal)
    async def get(self, key: str) -> None:
        async with self.broker() as broker:
            pool = (await broker.snapshot()).snapshot.pool(key)
        if pool is None:
            raise Problem(404, f"There is no pool {key}.")
        if pool.failure is None:
            raise Problem(404, f"No start of pool {pool.name} has failed.")
        self.finish(pool.failure.model_dump(include={"cause", "replica", "attempts"}))


class LogHandler(Handler):
    auth_resource = LOGS
    _track_activity = False

    @web.authenticated
    @authorized("read", message=READ_LOGS.refusal)
    async def get(self, replica: str) -> None:
        tail = self.number("tail", 200, MAX_LINES)
        since = self.number("since", None, 2**60)
        assert tail is not None
        try:
            piece = await asyncio.to_thread(read_log, replica, tail=tail, since=since)
        except OSError:
            raise Problem(404, f"There is no log of replica {replica}.") from None
        self.finish(asdict(piece))


class LookBody(BaseModel):
    """What somebody wants to see of a replica."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    expressions: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(default=[], max_length=20)
    stack: bool = True
    gpu: bool = False


class PeekHandler(Handler):
    auth_resource = KERNELS

    @web.authenticated
    @authorized("execute", message=PEEK.refusal)
    async def post(self, id_: str) -> None:
        look = self.body(LookBody)
        async with self.broker() as broker:
            snapped = await broker.snapshot()
        replica = snapped.snapshot.replica(id_)
        if replica is None:
            raise Problem(404, f"There is no replica {id_}.")
        try:
            seen = await peek_async(replica, Look(tuple(look.expressions), look.stack, look.gpu))
        except NoSuchReplica:
            raise Problem(404, f"{replica.name} has just ended, or is not up yet.") from None
        except ReplicaSilent as problem:
            raise Problem(504, whole_text(problem)) from None
        except ProtocolError as problem:
            raise Problem(502, whole_text(problem)) from None
        now = time.time() - snapped.epoch_offset
        lines = seen.lines(now, stack=look.stack)
        self.finish({"lines": lines, "stack": seen.stack, "values": seen.values, "gpu": seen.gpu})


class VerbHandler(Handler):
    """Finds what a verb is for, and passes the order on."""

    def initialize(self, verbs: Verbs[Any]) -> None:
        self.verbs = verbs

    @web.authenticated
    @authorized("write", message=CHANGE.refusal)
    async def post(self, id_: str, verb: str) -> None:
        try:
            order = self.body(self.verbs[verb])
        except NoSuchVerb as problem:
            raise Problem(404, str(problem)) from None
        try:
            async with self.broker() as broker:
                target = self.verbs.find((await broker.snapshot()).snapshot, id_)
                if target is None:
                    raise Problem(404, f"There is no {self.verbs.noun} {id_}.")
                await broker.send(order.message(target))
                await broker.snapshot()  # so the order has been read
        except ValueError as problem:
            raise Problem(400, str(problem)) from None
        self.set_status(202)
        self.finish({})
