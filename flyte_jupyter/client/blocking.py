"""Makes a call on the calling thread and waits for it: no thread hop, no event loop.

Ctrl-C is recorded as an event of the call, at a moment when nothing is half done. It is raised at once only where the
thread waits, or where it runs code that may take long: pickling, output, questions to the user.
"""

from __future__ import annotations

import _signal
import select
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any, Final

from ..core import context
from ..core.call import Call, State
from ..core.call_events import (
    INTERRUPTED,
    TICK,
    Broken,
    Command,
    Do,
    Event,
    Explained,
    Failed,
    Granted,
    Note,
    Raise,
    Refused,
    Reply,
    Sent,
)
from ..core.frames import OK, OUTCOME, Buffer, Frame
from . import gpu_memory, looping, outputs
from .answering import answer, order
from .lease import Lease
from .leases import Slots, ThreadWaiter
from .target import Outgoing, Target, stalled_cell

_SEND: Final = Do.SEND
_GIVE_BACK: Final = Do.GIVE_BACK
_RETURN: Final = Do.RETURN
_NEVER: Final = float("inf")
_SIGINT: Final = signal.SIGINT
_set_handler: Final = _signal.signal  # without the enums of `signal`, which take longer than all of this
_default_handler: Final = _signal.default_int_handler
_get_ident: Final = threading.get_ident
_main_thread: Final = threading.main_thread


def call(target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The value of a call.

    Raises: Whatever the call raises; the errors of `errors` about its pool; KeyboardInterrupt.
    """
    if not context.cell.get():
        return _Driver(target, args, kwargs).run()
    token = context.stalls.set(stalled_cell())
    try:
        return _Driver(target, args, kwargs).run()
    finally:
        context.stalls.reset(token)


class _Driver:
    """One call on this thread."""

    _lease: Lease | None = None
    _waiter: ThreadWaiter | None = None
    _group: Slots
    _frame: Frame
    _number = 0  # of the present attempt, once it is written
    _sent: Outgoing
    _outgoing: Outgoing | None
    _may_raise = False  # an interrupt may be raised here and now
    _interrupted = False  # it was not, and is still to be handled

    def __init__(self, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._target = target
        self._args = args
        self._kwargs = kwargs

    def run(self) -> Any:
        # What cannot be sent is an error at once: no slot is asked for, and no broker is started.
        self._outgoing = self._target.encode(self._args, self._kwargs, 0)
        before = None
        if _get_ident() == _main_thread().ident:
            before = _set_handler(_SIGINT, self._on_interrupt)
            if before is not _default_handler:
                before = _checked(before)
        try:
            value = self._at_once()
        finally:
            self._may_raise = False
            if before is not None:
                _set_handler(_SIGINT, before)
            if self._waiter is not None:
                self._waiter.withdraw()
            if self._lease is not None:
                self._group.drop(self._lease)
        if self._interrupted:
            raise KeyboardInterrupt
        return value

    def _at_once(self) -> Any:
        """The common case needs no machine: a slot is at hand, and the first thing that comes is a value."""
        target = self._target
        self._group = group = target.group()
        self._lease = lease = group.take()
        if lease is None or target.limited:
            return self._run(None if lease is None else lease.granted)
        event = self._send()
        if event is None:
            event = self._wait_for_frame(_NEVER)
            if type(event) is Frame and event.kind == OUTCOME and event.flags == OK and event.call == self._number:
                self._lease = None
                group.give_back(lease)
                self._may_raise = True
                return target.result(event, lease)
        return self._run(lease.granted, event)

    def _run(self, granted: Granted | None, happened: Event | None = None) -> Any:
        """The life of the call by its machine.

        Args:
            granted: It has a slot already.
            happened: It was sent there, and this came of it.
        """
        now = time.monotonic
        self._call = call = Call(self._target.request, now=now())
        commands = call.start(now=now()) if granted is None else call.handle(granted, now=now())
        lease, event = self._lease, happened
        if happened is not None:
            if self._number:
                call.handle(Sent(self._number, self._sent.closures), now=now())
            commands = call.handle(happened, now=now())
        while True:
            event = None
            for command in commands:
                if command is _SEND:
                    event = self._send() or Sent(self._number, self._sent.closures)
                elif command is _GIVE_BACK:
                    lease, self._lease = self._lease, None
                    if lease is not None:
                        self._group.give_back(lease)
                elif command is _RETURN:
                    assert lease is not None
                    try:
                        self._may_raise = True
                        return self._target.result(self._frame, lease)
                    except BaseException as error:
                        event = Failed(error)
                    finally:
                        self._may_raise = False
                elif type(command) is Raise:
                    raise self._explained(command.error)
                else:
                    event = self._do(command) or event
            if event is None:
                event = self._wait()
            commands = call.handle(event, now=now())

    # --- commands

    def _send(self) -> Event | None:
        """Write the call; None if that went well."""
        lease = self._lease
        assert lease is not None
        try:
            self._may_raise = True
            try:
                channel = lease.channel()
            except OSError:
                return Broken(unread=True)  # its replica has just ended
            outgoing = self._outgoing or self._target.encode(self._args, self._kwargs, self._call.attempt)
            self._outgoing = None
            number, pieces = outgoing.on(channel)
            try:
                channel.send(pieces)
            except OSError:
                return Broken(unread=True)
            self._number = number
            self._sent = outgoing
            return None
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            return Failed(error)
        finally:
            self._may_raise = False

    def _do(self, command: Command) -> Event | None:
        lease = self._lease
        try:
            match command:
                case Do.ASK | Do.ASK_FIRST:
                    return self._ask()
                case Do.WITHDRAW:
                    waiter, self._waiter = self._waiter, None
                    if waiter is not None:
                        waiter.withdraw()
                case Do.DROP:
                    self._lease = None
                    if lease is not None:
                        self._group.drop(lease)
                case Do.SHOW | Do.ANSWER | Do.GIVE:
                    self._may_raise = True
                    pieces = answer(command, self._frame, self._sent.names)
                    if pieces is not None and lease is not None:
                        return _reply(lease, pieces)
                case Reply(pieces) if lease is not None:
                    self._may_raise = True
                    return _reply(lease, pieces)
                case Do.EXPLAIN if lease is not None:
                    self._may_raise = True
                    why = lease.why_lost()
                    return Explained(self._target.lost(lease, why, self._call.attempt))
                case Note(text):
                    outputs.note(text)
                case _ if lease is not None:
                    order(command, lease, self._call.number)
        except KeyboardInterrupt:
            self._interrupted = True
        except Exception as problem:  # the output cannot be shown, or what is asked for cannot be sent
            return Failed(problem)
        finally:
            self._may_raise = False
        return None

    def _explained(self, error: BaseException) -> BaseException:
        if gpu_memory.ran_out(error):
            gpu_memory.name_holders(error, self._target.name)
        return error

    def _ask(self) -> Event | None:
        self._waiter = None
        target = self._target
        try:
            if self._outgoing is None:
                self._outgoing = target.encode(self._args, self._kwargs, self._call.attempt)
            self._group = target.group()
        except Exception as error:
            return Refused(error)
        self._lease = lease = self._group.take()
        if lease is not None:
            return lease.granted
        # The event loop of this thread stands still meanwhile: others see to its calls, and use its slots.
        looping.hand_over()
        self._waiter = self._group.ask(target.shown, priority=target.priority)
        return None

    # --- waiting

    def _wait(self) -> Event:
        """The next event; what is waited for depends on where the call is."""
        state = self._call.state
        try:
            self._may_raise = True
            if self._interrupted:
                raise KeyboardInterrupt
            if state is State.WAITING:
                return self._wait_for_slot()
            if state is State.PAUSED:
                time.sleep(max(0.0, self._call.next_deadline() - time.monotonic()))
                return TICK
        except KeyboardInterrupt:
            self._interrupted = False
            return INTERRUPTED
        finally:
            self._may_raise = False
        return self._wait_for_frame(self._call.next_deadline())

    def _wait_for_slot(self) -> Event:
        waiter, until = self._waiter, self._call.next_deadline()
        assert waiter is not None
        try:
            lease = waiter.future.result(None if until == _NEVER else max(0.0, until - time.monotonic()))
        except TimeoutError:
            return TICK
        except Exception as error:
            self._may_raise = False
            self._waiter = None
            return Refused(error)
        self._may_raise = False
        self._waiter = None
        self._lease = lease
        return lease.granted

    def _wait_for_frame(self, until: float) -> Event:
        lease = self._lease
        assert lease is not None
        channel = lease.channel()
        reader, receive = channel.reader, channel.socket.recv_into
        received: list[int] = []
        try:
            while (frame := reader.next_frame()) is None:
                self._may_raise = True
                if self._interrupted:
                    raise KeyboardInterrupt
                if until != _NEVER and not _readable(channel.socket, until):
                    return TICK
                # `extend` keeps the count even if an interrupt is raised as soon as the bytes are there.
                received.extend(map(receive, (reader.get_buffer(),)))
                self._may_raise = False
                count = received.pop()
                if count == 0:
                    return Broken()
                reader.buffer_updated(count)
        except KeyboardInterrupt:
            self._interrupted = False
            if received:
                reader.buffer_updated(received.pop())
            return INTERRUPTED
        except ConnectionError:
            return Broken(unread=True)
        finally:
            self._may_raise = False
        self._frame = frame
        return frame

    # --- Ctrl-C

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._may_raise:
            self._may_raise = False
            raise KeyboardInterrupt
        self._interrupted = True


def _reply(lease: Lease, pieces: list[Buffer]) -> Event | None:
    try:
        lease.channel().send(pieces)
    except OSError:
        return Broken(unread=True)
    return None


def _readable(stream: socket.socket, until: float) -> bool:
    poller = select.poll()
    poller.register(stream, select.POLLIN)
    return bool(poller.poll(max(0.0, until - time.monotonic()) * 1000))


def _checked(before: Any) -> Any:
    """The handler to put back later; None where it is somebody's own, which stays.

    The handlers of asyncio and ipykernel only tell the event loop, which stands still while this thread waits.
    """
    if looping.is_handled_by_loop(before):
        return before
    _set_handler(_SIGINT, before if before is not None else signal.SIG_DFL)
    return None
