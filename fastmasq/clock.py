"""The one clock: monotonic nanoseconds, and a settable one for tests."""

from __future__ import annotations

import time


def now_ns() -> int:
    """Return monotonic nanoseconds; unaffected by changes of the wall clock."""
    return time.monotonic_ns()


class SettableClock:
    """A clock that stands still until told: for tests of everything that takes time as an argument."""

    def __init__(self, start_ns: int = 1_000_000_000) -> None:
        self.now_ns = start_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> int:
        self.now_ns += round(seconds * 1e9)
        return self.now_ns
