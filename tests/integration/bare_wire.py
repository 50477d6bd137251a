"""A lease that a test drives by hand, without the client's machine."""

from __future__ import annotations

import pickle
import select
import time

from support import START_S, TIME_SCALE

from flyte_jupyter.client.answering import answer
from flyte_jupyter.client.lease import Lease
from flyte_jupyter.client.target import Target
from flyte_jupyter.core.call_events import Do
from flyte_jupyter.core.frames import Frame, Kind, encode


class BareWire:
    """A lease whose frames are read one by one; `seen` holds what has come for the present call."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.lease: Lease = target.group().ask("").future.result(START_S)
        self.channel = self.lease.channel()
        self.seen: list[Frame] = []

    def send(self, *args: object) -> None:
        outgoing = self._target.encode(args, {}, 0)
        self.number, pieces = outgoing.on(self.channel)
        self._outgoing = outgoing
        self.seen = []
        self.channel.send(pieces)

    def cancel(self) -> None:
        self.lease.cancel(self.number)

    def next(self, timeout: float = START_S) -> Frame | None:
        """The next frame of the call; None if none comes in that time."""
        until = time.monotonic() + timeout * TIME_SCALE
        reader, stream = self.channel.reader, self.channel.socket
        while (frame := reader.next_frame()) is None:
            if not select.select([stream], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            count = stream.recv_into(reader.get_buffer())
            assert count, "the replica has closed the connection"
            reader.buffer_updated(count)
        assert frame.call == self.number
        self.seen.append(frame)
        if frame.kind == Kind.NEED:
            missing = [closure.beyond(pickle.loads(frame.body)) for closure in self._outgoing.closures]
            self.channel.send(encode(Kind.DEFINE, self.number, pickle.dumps(missing, 5)))
        elif frame.kind == Kind.WANT:
            reply = answer(Do.GIVE, frame, self._outgoing.names)
            assert reply is not None
            self.channel.send(reply)
        return frame

    def close(self) -> None:
        self.lease.group.drop(self.lease)
