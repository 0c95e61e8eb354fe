"""Rows that packets from outside have made, and no inside host has answered: few, and the oldest gives way to the next.

Anybody can send packets to a forward or a redirect from any number of addresses. What they make must neither use up the
rows of the inside host nor keep the next stranger, who may be a real one, from being heard.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

MOST = 256  # of one tracker


class _Numbered(Protocol):
    number: int


Row = TypeVar("Row", bound=_Numbered)


class Unanswered(dict[int, Row]):
    """Such rows by number, oldest first."""

    def make_room(self, remove: Callable[[Row], None]) -> None:
        """Let the oldest row go if there are as many as there may be; `remove` takes it out of here as well."""
        if len(self) >= MOST:
            remove(next(iter(self.values())))

    def settle(self, row: Row) -> bool:
        """Note that the inside host has answered; return whether that is news."""
        return self.pop(row.number, None) is not None
