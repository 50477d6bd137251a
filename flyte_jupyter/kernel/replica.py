"""The replica: all channels of this process, and what they share."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..core.definitions import ORIGIN, Mark
from ..core.frames import FIRST_CALL, FrameReader, Kind
from . import descriptors
from .calls import CallChannel, CallerHello
from .cells import Cells
from .comms import Comms
from .listener import Listener
from .modules import Modules
from .namespace import NotebookModule
from .namespaces import Namespaces
from .process import Process, Watch
from .recorder import Recorder
from .runner import Runner, RunningCall

if TYPE_CHECKING:
    from .control import ControlChannel


class Replica:
    """All channels of this process, and what they share.

    `_lock` protects the three tables of channels and the cancels that came before their channel. The rest belongs to
    the thread that is named above each part.
    """

    def __init__(
        self,
        runner: Runner,
        namespaces: Namespaces,
        cells: Cells,
        comms: Comms,
        control_loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.runner = runner
        self.namespaces = namespaces
        self.modules = Modules(namespaces.reloaded)
        self.cells = cells
        self.comms = comms
        self.supervisor: ControlChannel | None = None
        self.recorder = Recorder(self.later, self._running_calls, self._can_tell, self._tell)
        self._control_loop = control_loop
        self._control_thread = 0
        control_loop.call_soon_threadsafe(self._note_control_thread)
        self._lock = threading.Lock()
        self._channels: dict[str, CallChannel] = {}
        self._by_fd: dict[int, CallChannel] = {}
        self._left: set[CallChannel] = set()  # by their client, and something still runs there
        self._early_cancels: dict[str, dict[int, bool]] = {}  # lease -> calls, and whether their client cancels them
        self._listener: Listener | None = None
        self._processes = Watch(control_loop, self._process_ended)
        self._ended: set[str] = set()  # processes of which something still runs
        self.front_end_interrupted: Callable[[str], None] = lambda session: None
        self.front_end_left: Callable[[str], None] = lambda session: None
        """What a front end that was attached by hand leaves behind is the kernel's to end; on the control thread."""

    def _note_control_thread(self) -> None:
        self._control_thread = threading.get_ident()

    def listen(self, listening: socket.socket) -> None:
        self._listener = Listener(listening, self._control_loop, self)

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call `callback` on the control thread, where a busy task cannot hold it up."""
        if self.on_control_thread():
            self._control_loop.call_later(delay, callback)
        else:
            self._control_loop.call_soon_threadsafe(self._control_loop.call_later, delay, callback)

    def on_control_thread(self) -> bool:
        return threading.get_ident() == self._control_thread

    def log(self, text: str) -> None:
        descriptors.log(f"flyte_jupyter: {text}\n")

    # --- on the main thread

    def attach(self, channel: CallChannel) -> None:
        if _hung_up(channel.connection):  # while this thread was busy: its calls must not begin any more
            channel.close()
            return
        if self._listener is not None:
            self._listener.watch_hangup(channel.connection)
        channel.open()

    def manifests_in_use(self, module: NotebookModule) -> list[Mapping[str, Mark]]:
        """The definitions that the calls of now take from that module, or from one beside it."""
        with self._lock:
            calls = [each.running for each in (*self._channels.values(), *self._left)]
        mains = [(call, getattr(call.context.main, ORIGIN)) for call in calls if call is not None]
        found = (main.manifests.get(d) for call, main in mains if module in (main, main.aside_of) for d in call.digests)
        return [manifest for manifest in found if manifest is not None]

    def forget(self, channel: CallChannel) -> None:
        if self._listener is not None:
            self._listener.unwatch(channel.connection)
        with self._lock:
            self._channels.pop(channel.hello.lease, None)
            if channel.running is not None:
                self._left.add(channel)
            self._by_fd.pop(channel.connection.fileno(), None)
        if channel.hello.session:
            self._control_loop.call_soon_threadsafe(self.front_end_left, channel.hello.session)

    def lease_of(self, session: bytes) -> str:
        """That of the front end whose Jupyter session this is; "" if it is attached to nothing."""
        with self._lock:
            found = (lease for lease, each in self._channels.items() if each.hello.session)
            return next((lease for lease in found if self._channels[lease].hello.session.encode() == session), "")

    def watch(self, process: Process) -> None:
        """Free what it leaves here once it has ended."""
        self._control_loop.call_soon_threadsafe(self._processes.add, process)

    def _free(self, token: str) -> None:
        self.cells.process_ended(token)
        if self.namespaces.process_ended(token):
            self._ended.discard(token)
        else:
            self._ended.add(token)

    def set_up(self, body: bytes) -> None:
        from .preload import run_preload

        run_preload(self, body)

    def stop(self) -> None:
        self.runner.exit()

    # --- on the control thread

    def _process_ended(self, token: str) -> None:
        self.runner.loop.call_soon_threadsafe(self._free, token)

    def connected(self, connection: socket.socket, reader: FrameReader, hello: CallerHello) -> None:
        """Calls will come here. They wait for the main thread, their cancels do not."""
        channel = CallChannel(connection, reader, hello, self)
        with self._lock:
            self._channels[hello.lease] = channel
            self._by_fd[connection.fileno()] = channel
            early = self._early_cancels.pop(hello.lease, {})
        for number, by_client in early.items():
            channel.cancel(number, by_client=by_client)
        self.runner.loop.call_soon_threadsafe(self.attach, channel)

    def cancel(self, lease: str, number: int, *, by_client: bool = True) -> None:
        with self._lock:
            channel = self._channels.get(lease)
            if channel is None:
                early = self._early_cancels.setdefault(lease, {})
                early[number] = by_client or early.get(number, False)
                return
        call = channel.cancel(number, by_client=by_client)
        if call is not None:
            self.runner.cancel(call)

    def interrupt(self, lease: str) -> None:
        """Stop the call, or an attached front end's cell, that runs in this lease; in all of them if none is named."""
        with self._lock:
            channels = [each for each in self._channels.values() if lease in ("", each.hello.lease)]
        calls = [(each, each.running) for each in channels]
        for channel, call in calls:
            if call is not None and channel.cancel(call.number, by_client=False) is call:
                self.runner.cancel(call)
        guests = [each.hello.session for each in channels if each.hello.session]
        if lease and not guests and not any(call for _, call in calls):
            # It was granted a moment ago, and its call is still to come; a later one is not what somebody has seen.
            self.cancel(lease, FIRST_CALL, by_client=False)
        for session in guests:
            self.front_end_interrupted(session)

    def withdraw(self, lease: str, first: int, last: int) -> None:
        with self._lock:
            channel = self._channels.get(lease)
        if channel is not None:  # else it is not connected yet: its calls run when their turn comes
            channel.withdraw(first, last)

    def hung_up(self, fd: int) -> None:
        with self._lock:
            channel = self._by_fd.get(fd)
            call = None if channel is None else channel.running
        if channel is not None and channel.hello.session:
            self.front_end_left(channel.hello.session)
        if call is not None:
            self.runner.cancel(call)

    def ask_after(self, lease: str) -> None:
        """The broker lost this lease's client. If it never connected, nothing else will say that it is over."""
        with self._lock:
            known = lease in self._channels
        if not known:
            self.abandoned_call_ended(lease)

    # --- to the broker

    def report(self, state: str, **fields: Any) -> None:
        if self.supervisor is not None:
            self.supervisor.send(Kind.STATE, json.dumps({"state": state, **fields}).encode())

    def _running_calls(self) -> list[RunningCall]:
        with self._lock:
            calls = [each.running for each in (*self._channels.values(), *self._left)]
        return [call for call in calls if call is not None and call.began]

    def _can_tell(self) -> bool:
        return self.supervisor is None or self.supervisor.ready()

    def _tell(self, body: bytes) -> None:
        if self.supervisor is not None:
            self.supervisor.send(Kind.CALLS, body)

    def left_for_good(self, channel: CallChannel) -> None:
        """Its client was gone already; now nothing runs there any more."""
        with self._lock:
            self._left.discard(channel)
        self.abandoned_call_ended(channel.hello.lease)
        if channel.hello.process[0] in self._ended:
            self._free(channel.hello.process[0])

    def abandoned_call_ended(self, lease: str) -> None:
        if self.supervisor is not None:
            self.supervisor.send(Kind.ENDED, lease.encode())


def _hung_up(connection: socket.socket) -> bool:
    if not hasattr(select, "POLLRDHUP"):
        return False
    poller = select.poll()
    poller.register(connection, select.POLLRDHUP)
    return bool(poller.poll(0))
