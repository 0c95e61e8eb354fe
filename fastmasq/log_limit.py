"""How many lines a second the log gets about one thing at most; the rest is counted, and said in one line."""

from __future__ import annotations

import logging


class LogLimit:
    """A limit for the lines about `subject`, such as "VPNs". `every_second` begins another second."""

    def __init__(self, log: logging.Logger, per_second: int, subject: str) -> None:
        self._log = log
        self._per_second = per_second
        self._subject = subject
        self._lines = 0  # of this second, said or not

    @property
    def left(self) -> int:
        """How many more lines may be said in this second."""
        return max(0, self._per_second - self._lines)

    def allows(self, level: int) -> bool:
        """Count a line, if lines of its level are wanted; return whether it may be said."""
        if not self._log.isEnabledFor(level):
            return False
        self._lines += 1
        return self._lines <= self._per_second

    def every_second(self) -> None:
        """Say how many lines were suppressed, and begin anew."""
        if self._lines > self._per_second:
            self._log.warning("%d more lines about %s were suppressed", self._lines - self._per_second, self._subject)
        self._lines = 0
