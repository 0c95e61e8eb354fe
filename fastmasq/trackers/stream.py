"""One direction of a TCP connection that is followed: which octets of a segment are new, each once and in order.

A segment that begins behind a hole cannot be read, since nobody knows what it goes on with: it is to be dropped, and
its sender repeats it in order. A sender that never fills the hole would stall, so after MOST_DROPS of them in a row the
stream is lost, and passed on unread.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_DROPS = 256
FURTHEST = 1 << 20  # octets; who is further ahead is nobody's sender, and does not count
_SEQUENCES = 1 << 32


class New(NamedTuple):
    """New octets of a stream, and the sequence number of the first of them."""

    sequence: int
    octets: bytes


class Stream:
    """Where a stream is. `expected`: the sequence number of its next octet, None until its SYN was seen."""

    def __init__(self) -> None:
        self.expected: int | None = None
        self.has_read = False
        self._drops = 0  # since the last progress

    def begin(self, sequence: int) -> None:
        """Tell the sequence number of a SYN: the first octet follows it. A late copy changes nothing."""
        if not self.has_read:
            self.expected = (sequence + 1) % _SEQUENCES

    def go_on(self, expected: int, *, has_read: bool) -> None:
        """Be where another process was."""
        self.expected, self.has_read = expected, has_read

    def is_behind_hole(self, sequence: int) -> bool:
        """Return whether a segment is to be dropped, since something before it is missing; counts it."""
        ahead = distance(self.expected, sequence)
        self._drops += 0 < ahead <= FURTHEST
        return ahead > 0

    @property
    def is_lost(self) -> bool:
        """Whether nothing of the stream can be read any more."""
        return self.expected is None or self._drops > MOST_DROPS

    def take(self, sequence: int, payload: bytes) -> New:
        """Return what is new of a segment that no hole is before, and go on behind it."""
        old = min(-distance(self.expected, sequence), len(payload))
        new = New((sequence + old) % _SEQUENCES, payload[old:])
        if new.octets:
            self.expected = (sequence + len(payload)) % _SEQUENCES
            self.has_read, self._drops = True, 0
        return new


def distance(start: int, sequence: int) -> int:
    """Return how far `sequence` is ahead of `start`, negative when behind (RFC 9293 section 3.4)."""
    return (sequence - start + (_SEQUENCES >> 1)) % _SEQUENCES - (_SEQUENCES >> 1)
