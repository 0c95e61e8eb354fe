"""Rows of a tracker that were made, changed or removed since they were taken last."""

from __future__ import annotations

from collections.abc import Iterator

from fastmasq.trackers.vpn.unanswered import Row


class Changes(dict[int, Row]):
    """Such rows by number, each once, in the order in which they changed first."""

    def take(self) -> Iterator[Row]:
        """Yield them; none is here any more when it has been yielded."""
        for row in list(self.values()):
            del self[row.number]
            yield row
