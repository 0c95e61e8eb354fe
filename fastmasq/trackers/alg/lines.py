"""Edits a stream of lines while it passes: nothing waits for the end of a line, but for what may have to be edited.

What goes in are the new octets of a stream, in whatever pieces; what comes out are the changes of them. A reader says
of each whole line which part of it is to leave otherwise, and of a line whose end has not come yet where such a part
may have begun. From there on the octets are held back: they leave nothing, until the rest of them is there, and all of
it leaves in their place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

MOST_HELD = 32  # octets: longer than any address and port, and what is behind them fits an edit with the new ones


class Change(NamedTuple):
    """`length` octets from `start` on, of those that went in, leave as `text`; if as nothing, `last` leaves before."""

    start: int
    length: int
    text: bytes
    last: bytes = b""


class Part(NamedTuple):
    """The octets of a line from `start` to before `stop` leave as `text`."""

    start: int
    stop: int
    text: bytes


class Reader(Protocol):
    """What is done with lines. `has_ended`: no more of them is to be read."""

    longest: int
    has_ended: bool

    def line(self, line: bytes) -> Part | None:
        """Read a whole line, its end included; return what of it is to leave otherwise."""

    def holds_from(self, line: bytes) -> int | None:
        """Return where, in a line that goes on, a part that may have to leave otherwise begins; at least at 1."""

    def overlong(self) -> None:
        """Hear of a line that has more than `longest` octets; the rest of it passes."""


class Lines:
    """The lines of one direction of a connection."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._line = bytearray()  # as far as it has come
        self._held: int | None = None  # where in it that begins which is held back
        self._passes = False  # what is left of the line is not read

    @property
    def is_holding(self) -> bool:
        return self._held is not None

    @property
    def is_within(self) -> bool:
        """Whether a line has begun that has not ended."""
        return self._passes or bool(self._line)

    def pass_line(self) -> None:
        """Have what is left of the line that has begun pass unread."""
        self._passes = True

    def read(self, octets: bytes) -> list[Change]:
        """Return the changes of new octets, in order."""
        changes: list[Change] = []
        at = 0
        while at < len(octets) and (self.is_holding or not self._reader.has_ended):
            end = octets.find(b"\n", at) + 1
            piece = octets[at : end or len(octets)]
            changes += self._piece(at, piece, is_end=end > 0)
            at += len(piece)
        return changes

    def _piece(self, at: int, piece: bytes, *, is_end: bool) -> Iterator[Change]:
        settled, base = len(self._line), at - len(self._line)
        if not self._passes:
            self._line += piece
            if self._reader.has_ended:
                yield from self._release(base, settled)
                self._passes = True
            elif len(self._line) > self._reader.longest:
                yield from self._release(base, settled)
                self._passes = True
                self._reader.overlong()
            elif is_end:
                yield from self._finish(base, settled)
            else:
                yield from self._wait(base, settled)
        if is_end or self._passes:
            self._line.clear()
            self._held = None
        self._passes = self._passes and not is_end

    def _finish(self, base: int, settled: int) -> Iterator[Change]:
        part = self._reader.line(bytes(self._line))
        if self._held is None:
            if part is not None and part.start >= settled:
                yield Change(base + part.start, part.stop - part.start, part.text)
        elif part is None:
            yield from self._release(base, settled)
        else:
            stop = max(part.stop, settled + 1)  # an edit leaves with octets of this segment, if it be one behind it
            text = self._line[self._held : part.start] + part.text + self._line[part.stop : stop]
            yield Change(base + settled, stop - settled, bytes(text))

    def _wait(self, base: int, settled: int) -> Iterator[Change]:
        start = self._reader.holds_from(bytes(self._line))
        if start is not None and (len(self._line) - start > MOST_HELD or (self._held is None and start < settled)):
            start = None
        if self._held is not None and start != self._held:
            yield from self._release(base, settled)
            self._line.clear()
            self._held, self._passes = None, True
        elif start is not None and start < len(self._line):
            self._held, first = start, max(start, settled)
            before = bytes(self._line[start - 1 : start])
            yield Change(base + first, len(self._line) - first, b"", before)

    def _release(self, base: int, settled: int) -> Iterator[Change]:
        """Have what is held back leave as it came, with the first octet that has come now."""
        if self._held is not None:
            yield Change(base + settled, 1, bytes(self._line[self._held : settled + 1]))
            self._held = None
