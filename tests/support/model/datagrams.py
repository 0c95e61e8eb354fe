"""Datagrams in pieces, in the specification: the first piece decides, the others share its fate (RFC 4787 REQ-14).

Pieces that come before the first wait for it, `LIFE` at most. What has come before is dropped; a piece of which only a
part has come before, or that contradicts the end of the datagram, ends it (RFC 1858 section 4). The host reassembles
what is its own, so it gets every piece. A datagram is forgotten when it is complete or its time is over; one that has
been refused is remembered until then, whatever comes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.model.state import SECOND, Drop, Forward
from tests.support.model.wire import MORE_FRAGMENTS, Parsed

LIFE = 15 * SECOND
HOST, REFUSED = "host", "refused"


@dataclass
class Datagram:
    """What has come of a datagram. `fate`: where the first piece went, HOST or REFUSED; None until it has come."""

    since: int
    fate: Forward | str | None = None
    identification: int | None = None  # what its pieces leave with, once that is known
    came: set[int] = field(default_factory=set)  # octet offsets / 8
    end: int | None = None  # of the last piece, in the same unit
    waiting: list[Parsed] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return self.end is not None and len(self.came) == self.end

    def place(self, piece: Parsed) -> Drop | None:
        """Take note of a piece, or say why it is dropped."""
        covered, is_last = extent(piece)
        known = self.came.intersection(covered)
        beyond = self.end is not None and (covered.stop > self.end or (is_last and covered.stop != self.end))
        too_early = is_last and not known and any(unit >= covered.stop for unit in self.came)
        if beyond or known or too_early:
            if self.fate == HOST:
                return None
            if not beyond and len(known) == len(covered):
                return Drop("fragment_duplicate")
            self.fate = REFUSED
            return Drop("fragment_overlap")
        self.came.update(covered)
        self.end = covered.stop if is_last else self.end
        return None


def extent(piece: Parsed) -> tuple[range, bool]:
    """Return the units of 8 octets that a piece covers, and whether it is the last of its datagram."""
    first = piece.offset // 8
    count = -(-(len(piece.raw) - piece.start) // 8)
    return range(first, first + count), not int.from_bytes(piece.raw[6:8], "big") & MORE_FRAGMENTS
