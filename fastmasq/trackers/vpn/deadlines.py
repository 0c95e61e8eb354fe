"""When rows of a tracker end: a heap that is corrected only when a deadline comes up, so moving one on is cheap."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator

FOREVER = 1 << 63  # nanoseconds; a deadline that never comes


class Deadlines:
    """Deadlines in nanoseconds by key. One heap entry for each key counts; others are left over and ignored."""

    def __init__(self) -> None:
        self._when: dict[Hashable, int] = {}
        self._queued: dict[Hashable, int] = {}  # the heap entry that counts
        self._heap: list[tuple[int, int, Hashable]] = []
        self._order = 0  # keys need not be comparable

    def __len__(self) -> int:
        return len(self._when)

    def set(self, key: Hashable, when: int) -> None:
        """Let `key` end at `when`, earlier or later than before."""
        self._when[key] = when
        if when < self._queued.get(key, FOREVER):
            self._push(key, when)

    def get(self, key: Hashable) -> int | None:
        return self._when.get(key)

    def forget(self, key: Hashable) -> None:
        self._when.pop(key, None)
        self._queued.pop(key, None)

    def due(self, now: int) -> Iterator[Hashable]:
        """Yield and forget every key whose deadline is not after `now`, earliest first."""
        while self._heap and self._heap[0][0] <= now:
            queued, _, key = heapq.heappop(self._heap)
            if self._queued.get(key) != queued:
                continue
            when = self._when[key]
            if when <= now:
                self.forget(key)
                yield key
            else:
                del self._queued[key]
                if when < FOREVER:
                    self._push(key, when)

    def _push(self, key: Hashable, when: int) -> None:
        self._order += 1
        self._queued[key] = when
        heapq.heappush(self._heap, (when, self._order, key))
