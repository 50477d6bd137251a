"""A replica's part, as a test's script plays it: see `scripted`."""

from __future__ import annotations

import array
import fcntl
import json
import pickle
import select
import socket
import struct
import termios
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from scripted_broker import PATIENCE_S, Notes

from flyte_jupyter.core import failure, payload
from flyte_jupyter.core.frames import HEADER, Frame, Kind, Output, Status, encode

SHORT: Final = "short"
"""The argument of calls that are only made so that the client learns how long a call takes."""


class Wire:
    """A replica's end of a connection for calls. The script says what is read of it, and what is written."""

    def __init__(self, stream: socket.socket, lease: str) -> None:
        self.lease = lease
        self.length = 0
        """Bytes of the frame that was read last."""
        self._stream = stream

    # --- in

    def read(self, count: int) -> bytes:
        """Exactly that many bytes."""
        data = b""
        while len(data) < count:
            more = self._stream.recv(count - len(data))
            if not more:
                raise EOFError(f"the client hung up after {len(data)} of {count} bytes")
            data += more
        return data

    def frame(self) -> Frame:
        """The next frame, and not a byte more."""
        kind, flags, count, call, size = HEADER.unpack(self.read(HEADER.size))
        sizes = struct.unpack(f"!{count}Q", self.read(8 * count))
        self.length = HEADER.size + 8 * count + size + sum(sizes)
        return Frame(kind, call, flags, self.read(size), [self.read(each) for each in sizes])

    def call(self, *args: object) -> Frame:
        """The next call, which must have these arguments. Where the client is, which it says before, is passed over."""
        frame = self.any_call()
        assert arguments(frame) == args
        return frame

    def any_call(self) -> Frame:
        frame = self.next(Kind.PLACE, Kind.CALL)
        while frame.kind != Kind.CALL:
            frame = self.next(Kind.PLACE, Kind.CALL)
        return frame

    def answer_short_ones(self, until: threading.Event) -> None:
        """Answer calls of `SHORT` at once, until another call comes after that is set. It is not read."""
        while True:
            assert select.select([self._stream], [], [], PATIENCE_S)[0], "no call comes"
            if until.is_set():
                return
            self.answer(self.call(SHORT))

    def next(self, *kinds: Kind) -> Frame:
        frame = self.frame()
        assert frame.kind in kinds, frame
        return frame

    def unread(self) -> int:
        """How many bytes lie here that nobody has read."""
        count = array.array("i", [0])
        fcntl.ioctl(self._stream, termios.FIONREAD, count)
        return count[0]

    def wait_unread(self, least: int = 1) -> None:
        """Until that many bytes lie here."""
        deadline = time.monotonic() + PATIENCE_S
        while self.unread() < least:
            assert time.monotonic() < deadline, f"only {self.unread()} of {least} bytes have come"
            time.sleep(0.001)

    def rest(self) -> bytes:
        """What the client wrote until it hung up."""
        data = b""
        with suppress(ConnectionResetError):
            while more := self._stream.recv(1 << 16):
                data += more
        return data

    def stop_reading(self) -> None:
        """The client cannot write any more."""
        self._stream.shutdown(socket.SHUT_RD)

    # --- out

    def write(self, data: bytes) -> None:
        self._stream.sendall(data)

    def send(self, kind: int, call: int, body: bytes = b"", flags: int = 0) -> None:
        self.write(b"".join(encode(kind, call, body, flags=flags)))

    def answer(self, call: Frame, value: object = None) -> None:
        """Its value is the outcome."""
        self.send(Kind.OUTCOME, call.call, payload.dump_result(value).data, Status.OK)

    def half_answer(self, call: Frame, value: object = None) -> Callable[[], None]:
        """The first half of the outcome; what is returned sends the rest."""
        data = b"".join(encode(Kind.OUTCOME, call.call, payload.dump_result(value).data, flags=Status.OK))
        half = HEADER.size // 2 if len(data) < 2 * HEADER.size else len(data) // 2
        self.write(data[:half])
        return lambda: self.write(data[half:])

    def fail(self, call: Frame, error: BaseException) -> None:
        self.send(Kind.OUTCOME, call.call, pickle.dumps(failure.describe(error), 5), Status.ERROR)

    def cancelled(self, call: int) -> None:
        self.send(Kind.OUTCOME, call, flags=Status.CANCELLED)

    def withdrawn(self, first: int, count: int = 1) -> None:
        self.send(Kind.WITHDRAWN, first, flags=count)

    def print(self, call: Frame, text: str) -> None:
        self.send(Kind.OUTPUT, call.call, text.encode(), Output.STDOUT)

    def need(self, call: Frame) -> None:
        self.send(Kind.NEED, call.call, pickle.dumps({}, 5))

    def end(self) -> None:
        """Close it after all was read: the client sees the end of the stream."""
        assert not self.unread(), "that would be a reset"
        self.close()

    def end_unread(self) -> None:
        """The end of the stream, although something was not read."""
        self.wait_unread()
        self._stream.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close it with something unread: the client sees a reset."""
        self.wait_unread()
        self.close()

    def close(self) -> None:
        self._stream.close()

    def shut_down(self) -> None:
        """Close it, also under a thread that reads."""
        with suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()


class ScriptedReplica:
    """Greets connections. Orders (cancel, withdraw) are read as they come; calls by the script."""

    def __init__(self, path: Path, notes: Notes, *, deaf: bool = False) -> None:
        self.address = str(path)
        self.name = path.name
        self.orders: list[Frame] = []
        self._notes = notes
        self._wires: deque[Wire] = deque()
        self._opened: list[Wire] = []
        self._unread_orders: deque[Frame] = deque()
        self._controls: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.address)
        self._listening.listen()
        self._threads: list[threading.Thread] = []
        if not deaf:
            self._begin(self._accept)

    def wire(self) -> Wire:
        """The next connection for calls."""
        return self._notes.wait(
            lambda: self._wires.popleft() if self._wires else None, lambda: f"a connection to {self.name}"
        )

    def order(self, kind: Kind) -> Frame:
        """The next order, which must be of that kind."""
        found = self._notes.wait(
            lambda: self._unread_orders.popleft() if self._unread_orders else None,
            lambda: f"{kind.name} to {self.name}",
        )
        assert found.kind == kind, found
        return found

    def wait_visited(self) -> None:
        """Until somebody has connected to a deaf one."""
        assert select.select([self._listening], [], [], PATIENCE_S)[0]

    def die(self) -> None:
        """Nobody listens here any more. Connections that were not accepted are reset."""
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        if not self._threads:
            self._listening.close()

    def close(self) -> None:
        self.die()
        for _ in range(2):  # a connection may be accepted during the first round
            for wire in list(self._opened):
                wire.shut_down()
            for control in list(self._controls):
                with suppress(OSError):
                    control.shutdown(socket.SHUT_RDWR)
            for thread in list(self._threads):
                thread.join(PATIENCE_S)

    # --- private

    def _begin(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with self._listening, suppress(OSError):
            while True:
                stream, _ = self._listening.accept()
                stream.settimeout(PATIENCE_S)
                wire = Wire(stream, "")
                self._opened.append(wire)
                with suppress(EOFError, ConnectionError):
                    hello = json.loads(wire.next(Kind.HELLO).body)
                    if hello["role"] == "control":
                        self._controls.append(stream)
                        self._begin(self._take_orders, wire)
                    else:
                        wire.lease = hello["lease"]
                        self._wires.append(wire)
                        self._notes.tell()

    def _take_orders(self, wire: Wire) -> None:
        with suppress(EOFError, OSError):
            while True:
                order = wire.frame()
                self.orders.append(order)
                self._unread_orders.append(order)
                self._notes.tell()


def arguments(call: Frame) -> tuple[Any, ...]:
    """The positional arguments of a call."""
    data, *buffers = call.buffers
    args: tuple[Any, ...] = payload.load(data, buffers)[0]
    return args
