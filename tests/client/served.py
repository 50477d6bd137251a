"""A script that serves whatever comes: as many slots as it is told, and for each call its own argument."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from functools import partial

from scripted import Stage
from scripted_broker import PATIENCE_S
from scripted_replica import ScriptedReplica, arguments

from flyte_jupyter.core import protocol as p


class Service:
    """Grants requests in order while a slot is free; recalls a lease when none is.

    Args:
        patience: Seconds for which a request may wait.
    """

    def __init__(self, stage: Stage, slots: int = 1, patience: float = PATIENCE_S) -> None:
        self.ran: list[object] = []
        """What calls had as their argument, in order."""
        self.numbers: dict[tuple[str, int], object] = {}
        """The same, by lease and number."""
        self.held: dict[str, bool] = {}
        """Each lease that was granted, and whether it was recalled."""
        self.over = threading.Event()
        self._stage = stage
        self._slots = slots
        self._patience = patience
        self._waiting: deque[p.Acquire] = deque()
        self._threads: list[threading.Thread] = []

    def __call__(self, *requests: p.Acquire) -> None:
        """Serve these and whatever comes, until it is over."""
        self._waiting += requests
        self._serve()
        next_one = partial(self._stage.broker.next, p.Acquire, p.Release, until=self.over)
        while (message := next_one(patience=self._patience if self._waiting else None)) is not None:
            if isinstance(message, p.Acquire):
                self._waiting.append(message)
            elif isinstance(message, p.Release):
                self.held.pop(message.lease, None)
                self._waiting = deque(each for each in self._waiting if each.lease != message.lease)
            self._serve()

    def _serve(self) -> None:
        while self._waiting and len(self.held) < self._slots:
            self._grant(self._waiting.popleft())
        if self._waiting:
            for lease in [lease for lease, recalled in self.held.items() if not recalled]:
                self.held[lease] = True
                self._stage.broker.send(p.Recalled(lease=lease))

    def _grant(self, request: p.Acquire) -> None:
        self.held[request.lease] = False
        replica = self._stage.replica()
        thread = threading.Thread(target=self._answer, args=(replica,), daemon=True)
        self._threads.append(thread)
        thread.start()
        self._stage.say_granted(request, replica)

    def _answer(self, replica: ScriptedReplica) -> None:
        with suppress(AssertionError, EOFError, OSError):  # the lease was given back, or the test is over
            wire = replica.wire()
            while True:
                call = wire.any_call()
                (argument,) = arguments(call)
                self.ran.append(argument)
                self.numbers[wire.lease, call.call] = argument
                wire.answer(call, argument)
