"""The queue of one pool: who is served next, and which leases are recalled for the sake of whom.

Clients take turns: who holds the fewest leases comes first, and of equals the one served longest ago.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from .ranking import Ranking


class Request(Protocol):
    """What a queue has to know of a lease: whose it is, and its place in the order of arrival."""

    id: str
    client: str
    order: int

    @property
    def parent(self) -> object: ...  # the call that makes this one, if that is a task's


R = TypeVar("R", bound=Request)


@dataclass(slots=True, eq=False)
class Share(Generic[R]):
    """One client's part of one pool: what it holds and what it waits for."""

    client: str
    turn: int  # when it was last served; of equals, the one served longest ago comes next
    held: int = 0
    waiting: OrderedDict[str, R] = field(default_factory=OrderedDict)
    recallable: OrderedDict[str, R] = field(default_factory=OrderedDict)
    claims: int = 0  # leases of others that are being recalled on its behalf


class Queue(Generic[R]):
    """The shares of all clients that wait for slots of a pool, or hold some.

    Args:
        nested_first: Calls of tasks come before all others: each of them keeps a replica that waits for it.
    """

    __slots__ = ("_askers", "_claims", "_givers", "_nested_first", "_next_up", "_shares", "_turns", "waiting")

    def __init__(self, *, nested_first: bool = False) -> None:
        self.waiting = 0
        self._nested_first = nested_first
        self._shares: dict[str, Share[R]] = {}
        self._next_up = Ranking()  # clients that wait
        self._askers = Ranking()  # clients that wait and may have a lease recalled
        self._givers = Ranking()  # clients with leases that can be recalled
        self._claims: dict[str, Share[R]] = {}  # leases that are being recalled, and on whose behalf
        self._turns = 0

    def __iter__(self) -> Iterator[R]:
        """Every request that waits."""
        for share in self._shares.values():
            yield from share.waiting.values()

    def is_late(self, share: Share[R]) -> bool:
        """Whether calls of tasks come before those of this client, which waits."""
        return self._nested_first and next(iter(share.waiting.values())).parent is None

    def shares(self) -> Iterator[Share[R]]:
        yield from self._shares.values()

    def add(self, request: R) -> None:
        share = self._share_of(request.client)
        share.waiting[request.id] = request
        self.waiting += 1
        self._rank(share)

    def remove(self, request: R) -> None:
        share = self._shares[request.client]
        del share.waiting[request.id]
        self.waiting -= 1
        self._rank(share)

    def first(self) -> R:
        """The oldest request of the client that holds the fewest leases here. Somebody must be waiting."""
        client = self._next_up.first()
        assert client is not None
        return next(iter(self._shares[client].waiting.values()))

    def serve(self, lease: R) -> None:
        """Its client holds this lease from now on."""
        share = self._share_of(lease.client)
        share.recallable[lease.id] = lease
        share.held += 1
        self._turns += 2
        share.turn = self._turns
        self._rank(share)

    def take_back(self, lease: R) -> None:
        """Its client holds it no longer."""
        self._settle_claim(lease)
        share = self._shares[lease.client]
        share.held -= 1
        share.recallable.pop(lease.id, None)
        self._rank(share)

    def unfair_lease(self) -> tuple[R, Share[R]] | None:
        """A lease of the client with the most of them, and a client that waits and has fewer."""
        asker, giver = self._askers.first(), self._givers.first()
        if asker is None or giver is None:
            return None
        poor, rich = self._shares[asker], self._shares[giver]
        if len(rich.recallable) <= poor.held + poor.claims:
            return None
        return next(iter(rich.recallable.values())), poor

    def claim(self, lease: R, share: Share[R]) -> None:
        """This lease is being recalled on behalf of that client."""
        self._claims[lease.id] = share
        share.claims += 1
        self._rank(share)
        giver = self._shares[lease.client]
        del giver.recallable[lease.id]
        self._rank(giver)

    def offer(self, lease: R) -> None:
        """It may be recalled for the sake of others."""
        share = self._shares[lease.client]
        share.recallable[lease.id] = lease
        self._rank(share)

    def spare(self, lease: R) -> None:
        """It may not: that would free no slot."""
        self._settle_claim(lease)
        share = self._shares[lease.client]
        share.recallable.pop(lease.id, None)
        self._rank(share)

    def _settle_claim(self, lease: R) -> None:
        if share := self._claims.pop(lease.id, None):
            share.claims -= 1
            self._rank(share)

    def _share_of(self, client: str) -> Share[R]:
        share = self._shares.get(client)
        if share is None:
            # As if served just before the last one: who comes back after each call must not overtake
            # who has been waiting, and who comes anew need not wait for a second call of the last one.
            share = self._shares[client] = Share(client, self._turns - 1)
        return share

    def _rank(self, share: Share[R]) -> None:
        """Rank a client anew: what it holds, waits for or claims has changed."""
        if share.waiting:
            head = next(iter(share.waiting.values())).order
            self._next_up.put(share.client, self.is_late(share), share.held, share.turn, head)
            if share.claims < len(share.waiting):
                self._askers.put(share.client, share.held + share.claims, head)
            else:
                self._askers.drop(share.client)
        else:
            self._next_up.drop(share.client)
            self._askers.drop(share.client)
        if share.recallable:
            self._givers.put(share.client, -len(share.recallable))
        else:
            self._givers.drop(share.client)
        if not (share.waiting or share.held or share.claims):
            del self._shares[share.client]
