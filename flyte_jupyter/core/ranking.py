"""Keys in the order of their ranks: with it, no question costs more in a long queue or with many replicas."""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush


class Ranking:
    """Keys in the order of their ranks; changing a rank costs O(log n).

    An outdated entry stays in the heap until it comes up; the dict says which entry counts.
    """

    __slots__ = ("_heap", "_ranks")

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, ...], str]] = []
        self._ranks: dict[str, tuple[float, ...]] = {}

    def __len__(self) -> int:
        return len(self._ranks)

    def put(self, key: str, *rank: float) -> None:
        ranks = self._ranks
        if ranks.get(key) == rank:
            return
        ranks[key] = rank
        heap = self._heap
        heappush(heap, (rank, key))
        if len(heap) > 2 * len(ranks) + 64:
            heap[:] = [(rank, key) for key, rank in ranks.items()]
            heapify(heap)

    def __contains__(self, key: str) -> bool:
        return key in self._ranks

    def drop(self, key: str) -> None:
        self._ranks.pop(key, None)

    def pop(self) -> str:
        """Remove the first key; only when there is one."""
        key = self.first()
        assert key is not None
        self.drop(key)
        return key

    def first(self) -> str | None:
        heap, ranks = self._heap, self._ranks
        while heap:
            rank, key = heap[0]
            if ranks.get(key) == rank:
                return key
            heappop(heap)
        return None

    def first_rank(self) -> float:
        """The leading number of the first rank; infinity when nothing is ranked."""
        return math.inf if self.first() is None else self._heap[0][0][0]

    def in_order(self) -> list[str]:
        return sorted(self._ranks, key=lambda key: (self._ranks[key], key))
