"""The one clock: monotonic nanoseconds."""

from __future__ import annotations

import time


def now_ns() -> int:
    """Return monotonic nanoseconds; unaffected by changes of the wall clock."""
    return time.monotonic_ns()
