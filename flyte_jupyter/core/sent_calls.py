"""The calls sent over one connection: which of them is running, and what was written of each. No socket, no clock.

A replica reads the bytes of a connection in order, runs its calls in order, one at a time, and begins none before the
client's socket has the outcome of the one before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from .frames import Frame


class Numbered(Protocol):
    """A call, as far as its connection is concerned.

    Attributes:
        number: On this connection.
        end: The place of its last byte among all bytes of the connection.
    """

    number: int
    end: int


C = TypeVar("C", bound=Numbered)


class SentCalls(Generic[C]):
    """Calls on their way to a replica and running there, in order. The first one is running, or will be next."""

    def __init__(self) -> None:
        self._calls: deque[C] = deque()
        self._unwritten: deque[C] = deque()  # their last byte is not written yet
        self._queued = 0  # bytes, written or not
        self._written = 0

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[C]:
        return iter(self._calls)

    @property
    def first(self) -> C | None:
        return self._calls[0] if self._calls else None

    @property
    def last(self) -> C | None:
        return self._calls[-1] if self._calls else None

    def add(self, call: C, size: int) -> None:
        """So many bytes of it are about to be written."""
        self._queued += size
        call.end = self._queued
        self._calls.append(call)
        self._unwritten.append(call)

    def reply(self, size: int) -> None:
        """So many bytes more are about to be written, for the first call."""
        self._queued += size
        if len(self._calls) == 1:
            self._calls[0].end = self._queued  # it is unread until this is read, too

    def wrote(self, size: int) -> None:
        """So many bytes more were written."""
        self._written += size

    def wholly_written(self) -> Iterator[C]:
        """The calls whose last byte was written since the last time."""
        while self._unwritten and self._unwritten[0].end <= self._written:
            yield self._unwritten.popleft()

    def unwritten(self) -> Iterator[C]:
        """The calls whose last byte is not written yet."""
        return iter(self._unwritten)

    def find(self, number: int) -> C | None:
        return next((call for call in self._calls if call.number == number), None)

    def pop_first(self) -> C:
        """Its outcome has come."""
        call = self._calls.popleft()
        if self._unwritten and self._unwritten[0] is call:
            self._unwritten.popleft()
        return call

    def take_back(self, withdrawn: Frame) -> list[C]:
        """The calls that a WITHDRAWN names, in order: they will not begin here.

        Only those: a late answer to an order before this one must not touch what was sent since.
        """
        numbers = range(withdrawn.call, withdrawn.call + withdrawn.flags)
        back = [call for call in self._calls if call.number in numbers]
        for call in back:
            self._calls.remove(call)
            if call in self._unwritten:  # it goes elsewhere, and its last byte here means nothing to it
                self._unwritten.remove(call)
        return back

    def end(self, *, reset: bool) -> list[tuple[C, bool]]:
        """The connection has ended: all calls, and whether the replica has certainly not read all of each.

        Args:
            reset: It ended with bytes unread. If nothing was written after a call, those are of it.
        """
        calls = [
            (call, index > 0 or self._written < call.end or (reset and self._written <= call.end))
            for index, call in enumerate(self._calls)
        ]
        self._calls.clear()
        self._unwritten.clear()
        return calls
