"""Counters turned into rates: what moved in the last few seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW = 3  # samples, one a second


class Rates:
    """A short history of counter snapshots; `rate` is the mean over the window, per second."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, Mapping[str, int]]] = deque(maxlen=WINDOW + 1)

    def add(self, now_ns: int, counters: Mapping[str, int]) -> None:
        self._samples.append((now_ns, dict(counters)))

    def rate(self, name: str) -> float:
        """Return how much `name` grew per second; 0.0 until two samples exist."""
        if len(self._samples) < 2:
            return 0.0
        (start_ns, before), (end_ns, after) = self._samples[0], self._samples[-1]
        if end_ns <= start_ns:
            return 0.0
        return (after.get(name, 0) - before.get(name, 0)) * 1e9 / (end_ns - start_ns)
