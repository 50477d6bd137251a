"""The broker's loop: the only writer of the scheduler. Events come in, commands are carried out.

Nothing here decides; see `core.scheduler`. What a command brings about returns through the inbox as an event.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType
from typing import Final, Protocol

import anyio
from anyio import CancelScope, create_memory_object_stream, current_time
from anyio.abc import TaskGroup

from ..core import commands, events
from ..core.protocol import (
    Declaration,
    Goodbye,
    Granted,
    Lost,
    Message,
    Recalled,
    Refused,
    Snapped,
    ToldTimeline,
    ZygoteView,
)
from ..core.scheduler import Scheduler
from ..core.timeline import Timeline
from ..core.usage import Usage
from .exits import Exit
from .life import Orders
from .sampler import Aside, Sampler

log = logging.getLogger(__name__)

WATCH_FIRST_S: Final = 0.01
WATCH_BURST: Final = 10.0
WATCH_INTERVAL_S: Final = 0.1
SHUTDOWN_S: Final = 5.0
MEMORY_S: Final = 0.25
"""How old what was measured may be when a call asks for a fresh kernel, or waits for memory."""


class LaunchesReplicas(Protocol):
    """What the engine asks of a launcher; tests play one without processes."""

    def address(self, replica: str) -> str: ...

    async def live(
        self,
        command: commands.StartReplica,
        declaration: Declaration,
        name: str,
        post: Callable[[events.Event], None],
        ended: Callable[[str], None],
        orders: Orders,
    ) -> Exit: ...


class Engine:
    """Runs one scheduler.

    Args:
        idle_s: End after this many seconds with neither client nor replica.
        find_devices: Asks the machine for its GPUs; may block, runs in a thread.
        find_memory: Asks it for its main memory, which takes no time; without it there is enough.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        launcher: LaunchesReplicas,
        *,
        idle_s: float = 600,
        find_devices: Callable[[], events.DevicesFound],
        log_dir: str = "",
        zygotes: Callable[[], tuple[ZygoteView, ...]] = tuple,
        spawned: Mapping[str, str] = MappingProxyType({}),
        sampler: Sampler | None = None,
        find_memory: Callable[[], events.MemoryMeasured] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._timeline = Timeline(secrets.token_hex(4), scheduler.index_of)
        self._launcher = launcher
        self._idle_s = idle_s
        self._find_devices = find_devices
        self._log_dir = log_dir
        self._zygotes = zygotes
        self._spawned = spawned
        self.sampler = sampler or Sampler()
        self._find_memory = find_memory
        self._measured_at = -math.inf
        self._send_event, self._inbox = create_memory_object_stream[events.Event | anyio.Event](math.inf)
        self._clients: dict[str, Callable[[Message], None]] = {}
        self._nested: set[str] = set()
        self._spectators: dict[str, Callable[[Message], None]] = {}
        self._declarations: dict[str, Declaration] = {}
        self._coming: Counter[str] = Counter()  # pools whose PoolDeclared is still in the inbox
        self._lives: dict[str, Orders] = {}
        self._leases: dict[str, str] = {}  # lease -> replica
        self._exits: dict[str, Exit] = {}
        self._names: dict[str, str] = {}
        self._changed = anyio.Event()
        self._devices_known = anyio.Event()
        self._quiet_since: float | None = None
        self._ending = anyio.Event()
        self._tasks: TaskGroup | None = None

    # --- for connections

    def post(self, event: events.Event) -> None:
        """Report a fact; never waits."""
        with suppress(anyio.ClosedResourceError):  # the engine has ended
            self._send_event.send_nowait(event)

    async def caught_up(self) -> None:
        """Until all that has been posted is handled, so that what is told next shows it."""
        reached = anyio.Event()
        try:
            self._send_event.send_nowait(reached)
        except anyio.ClosedResourceError:  # the engine has ended
            return
        await reached.wait()

    def connect(self, client: str, send: Callable[[Message], None], *, nested: bool = False) -> None:
        """`nested` is a replica whose task calls tasks."""
        self._clients[client] = send
        if nested:
            self._nested.add(client)

    def look_on(self, spectator: str, send: Callable[[Message], None]) -> None:
        """A view of ours: it asks for no lease, nobody counts it, and the broker does not stay for its sake."""
        self._spectators[spectator] = send

    def disconnect(self, client: str) -> None:
        self._nested.discard(client)
        self._spectators.pop(client, None)
        if self._clients.pop(client, None) is not None:
            self.post(events.ClientGone(client))

    async def declare(self, client: str, declaration: Declaration) -> None:
        spec = declaration.spec
        if spec.devices.count:
            await self._devices_known.wait()
        known = self._declarations.get(spec.key)
        if known is not None and client in self._nested:
            declaration = known  # a replica that calls a task repeats what its notebook has said better
        elif known is not None and declaration.preload is None:
            # A notebook without a preload does not take away the one that another notebook has given the pool.
            declaration = declaration.model_copy(update={"preload": known.preload})
        self._declarations[spec.key] = declaration
        self._coming[spec.key] += 1
        self.post(
            events.PoolDeclared(
                client=client,
                pool=spec.key,
                name=spec.name,
                scaling=declaration.scaling,
                devices=spec.devices,
                generation=declaration.preload.generation if declaration.preload else "",
                single_use=spec.single_use,
                memory_bytes=spec.memory_bytes,
            )
        )

    async def watch(self, *, usage: bool = False) -> AsyncIterator[Snapped]:
        """A snapshot now and after each change: soon after a few, such as a start, and less often while they go on.

        With `usage`, what is used counts, too, as far as it is measured.
        """
        seen: tuple[int, Usage | None] | None = None
        quick = WATCH_BURST  # how many more may come soon; one more each `WATCH_INTERVAL_S`
        last = current_time()
        while True:
            while seen == (self.scheduler.revision, self.sampler.usage if usage else None):
                await self._changed.wait()
            now = current_time()
            quick, last = min(WATCH_BURST, quick + (now - last) / WATCH_INTERVAL_S) - 1, now
            seen = self.scheduler.revision, self.sampler.usage if usage else None
            yield self.snapped()
            await anyio.sleep(WATCH_FIRST_S if quick >= 1 else WATCH_INTERVAL_S)

    def snapped(self, question: int | None = None) -> Snapped:
        now = current_time()
        return Snapped(
            epoch_offset=time.time() - now,
            log_dir=self._log_dir,
            zygotes=self._zygotes(),
            spawned=dict(self._spawned),
            usage=self.sampler.usage,
            recent=self._timeline.recent(),
            snapshot=self.scheduler.snapshot(),
            question=question,
        )

    async def measured(self, question: int | None = None) -> Snapped:
        """A snapshot with what is used just now, if that can be said quickly."""
        await self.sampler.fresh()
        return self.snapped(question)

    def timeline(self, pool: str, since: str | None, question: int | None = None) -> ToldTimeline:
        now = current_time()
        view = self._timeline.view(pool, since, now=now, epoch_offset=time.time() - now)
        return ToldTimeline(pool=pool, timeline=view, question=question)

    @property
    def ending(self) -> anyio.Event:
        """Set once the broker has begun to end: it takes no more clients."""
        return self._ending

    def end(self) -> None:
        """Begin to end: everything that was started is stopped."""
        self._ending.set()

    # --- the loop

    async def run(self) -> None:
        """Until `end()`, or until nothing has been needed for `idle_s`. No replica is left afterwards."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._ask_for_devices)
                tasks.start_soon(self._loop)
                tasks.start_soon(self.sampler.run, self.scheduler.snapshot, self._announce)
                await self._ending.wait()
                await self._stop_everything()
                tasks.cancel_scope.cancel()
        finally:
            self._send_event.close()
            self._inbox.close()

    async def _loop(self) -> None:
        while True:
            event: events.Event | anyio.Event = events.Tick()
            with CancelScope(deadline=self._deadline()):
                event = await self._inbox.receive()
            if isinstance(event, anyio.Event):
                event.set()
                continue
            now = current_time()
            revision = self.scheduler.revision
            if isinstance(event, events.PoolDeclared):
                self._coming[event.pool] -= 1
            if self._find_memory is not None and self._needs_memory(event) and now >= self._measured_at + MEMORY_S:
                self._measured_at = now
                self._handle(self._find_memory(), now)
            self._handle(event, now)
            self._after(event, revision, now)

    def _handle(self, event: events.Event, now: float) -> None:
        done = self.scheduler.handle(event, now=now)
        self._timeline.record(event, done, now=now)
        for command in done:
            self._perform(command)

    def _needs_memory(self, event: events.Event) -> bool:
        """Whether the scheduler is about to ask itself how much memory is free."""
        if isinstance(event, events.LeaseRequested):
            declaration = self._declarations.get(event.pool)
            return declaration is not None and declaration.spec.single_use
        return self.scheduler.lacks_memory

    def _deadline(self) -> float:
        quiet = math.inf if self._quiet_since is None else self._quiet_since + self._idle_s
        measure = self._measured_at + MEMORY_S if self.scheduler.lacks_memory else math.inf
        return min(self.scheduler.next_deadline(), quiet, measure)

    def _after(self, event: events.Event, revision: int, now: float) -> None:
        match event:
            case events.LeaseReleased(lease):
                self._leases.pop(lease, None)
            case events.ReplicaExited(replica):
                # Also those that ended with their client, without a release.
                for lease in [lease for lease, holder in self._leases.items() if holder == replica]:
                    del self._leases[lease]
                self._exits.pop(replica, None)
                self._names.pop(replica, None)
            case events.Tick() | events.CallsReported():
                pass
            case _:
                log.debug("%s", event)
        if self.scheduler.revision != revision:
            self._announce()
        if self._clients or self._lives:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = now
        elif now >= self._quiet_since + self._idle_s:
            log.info("nothing to do for %g s: ending", self._idle_s)
            self._ending.set()

    def _announce(self) -> None:
        """Wake those who watch."""
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _perform(self, command: commands.Command) -> None:
        assert self._tasks is not None
        match command:
            case commands.StartReplica() if self._ending.is_set():
                pass  # in place of one that was just stopped
            case commands.StartReplica():
                orders = self._lives[command.replica] = Orders()
                declaration = self._declarations[command.pool]
                name = self._names[command.replica] = self.scheduler.name_of(command.replica)
                log.info("start %s (%s): %s", name, command.replica, command.why)
                self._tasks.start_soon(self._live, command, declaration, name, orders)
            case commands.StopReplica(replica, why, force):
                life = self._lives.get(replica)
                if life is not None:
                    log.info("stop %s (%s)%s: %s", self._names.get(replica), replica, " now" if force else "", why)
                    (life.kill if force else life.stop).set()
            case commands.Grant(client, lease, replica, single_use):
                self._leases[lease] = replica
                self._tell(
                    client,
                    Granted(
                        lease=lease,
                        replica=replica,
                        name=self._names[replica],
                        address=self._launcher.address(replica),
                        single_use=single_use,
                    ),
                )
            case commands.Refuse(client, lease, reason, detail):
                self._tell(client, Refused(lease=lease, reason=reason, detail=detail))
            case commands.Recall(client, lease):
                self._tell(client, Recalled(lease=lease))
            case commands.Lose(client, lease, cause):
                self._lose(client, lease, cause)
            case commands.AskAfter(replica, lease):
                if (asked := self._lives.get(replica)) is not None:
                    asked.ask_after(lease)
            case commands.Interrupt(replica, lease):
                if (told := self._lives.get(replica)) is not None:
                    log.info("interrupt %s (%s): %s", self._names.get(replica), replica, lease or "all that runs")
                    told.interrupt(lease)
            case commands.ForgetPool(pool):
                # Its last client left while another was declaring it: that one's declaration is here already.
                if not self._coming[pool]:
                    del self._coming[pool]
                    self._declarations.pop(pool, None)

    def _lose(self, client: str, lease: str, cause: str) -> None:
        replica = self._leases.pop(lease, "")
        how = self._exits.get(replica, Exit(cause))
        log.info("lease %s lost with %s: %s", lease, self._names.get(replica, replica), cause)
        self._tell(
            client,
            Lost(
                lease=lease,
                replica=replica,
                name=self._names.get(replica, replica),
                cause=cause,
                exit_code=how.exit_code,
                signal=how.signal,
                out_of_memory=how.out_of_memory,
                log_tail=how.log_tail,
            ),
        )

    def _tell(self, client: str, message: Message) -> None:
        send = self._clients.get(client)
        if send is not None:  # else it is gone, and its ClientGone is on the way
            send(message)

    async def _live(self, command: commands.StartReplica, declaration: Declaration, name: str, orders: Orders) -> None:
        how = Exit("was cancelled")
        try:
            how = await self._launcher.live(command, declaration, name, self.post, self._lease_ended, orders)
        except Exception as problem:
            log.exception("%s (%s) could not be watched", name, command.replica)
            how = Exit(f"the broker could not watch it: {problem!r}")
        finally:
            self._lives.pop(command.replica, None)
            self._exits[command.replica] = how
            log.info("%s (%s) is gone: %s", name, command.replica, how.cause)
            self.post(events.ReplicaExited(command.replica, how.cause))

    def _lease_ended(self, lease: str) -> None:
        self.post(events.LeaseEnded(lease))

    async def _ask_for_devices(self) -> None:
        try:
            # Abandoned, not awaited, at the end: a driver may hang.
            found = await Aside("flyte_jupyter: devices").run(self._find_devices)
        except Exception as problem:
            log.exception("asking for GPUs failed")
            found = events.DevicesFound((), f"asking the machine for GPUs failed: {problem!r}")
        self.post(found)
        self._devices_known.set()

    async def _stop_everything(self) -> None:
        """Idle replicas end themselves; what still runs after a while is killed."""
        for send in (*self._clients.values(), *self._spectators.values()):
            send(Goodbye(why="the broker was stopped"))
        for life in list(self._lives.values()):
            life.stop.set()
        with anyio.move_on_after(SHUTDOWN_S):
            while self._lives:
                await anyio.sleep(0.02)
        for life in list(self._lives.values()):
            life.kill.set()
        with anyio.move_on_after(SHUTDOWN_S, shield=True):
            while self._lives:
                await anyio.sleep(0.02)


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[TaskGroup]:
    """The engine at work, for as long as the block lasts."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.run)
        try:
            yield tasks
        finally:
            engine.end()
