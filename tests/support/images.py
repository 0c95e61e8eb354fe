"""Images of tables as other versions would have written them: the same rows, their numbers elsewhere and otherwise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastmasq.table import image, memory
from fastmasq.table.adoption import adopt
from fastmasq.table.image import Array, Description, Image, Number
from fastmasq.table.masq import MasqTable
from tests.support.adoption import PROXIES

Change = Callable[[Number], Number | None]
"""What another version has in the place of a number of ours, wherever it is; None for nothing."""

_GAP = 3  # octets before each number


def rewritten(capacity: int, buffer, change: Change) -> tuple[Description, bytes]:
    """Return an image of what a table of so many sessions has left in a buffer, each of its numbers changed so.

    They come in turned order, with gaps between them.
    """
    left = memory.lay_out(capacity, buffer)
    description, octets = {}, b""
    for name, ours in image.describe(capacity).items():
        rows = getattr(left, name)
        was = rows.view(image.row_type(ours.numbers, ours.size))
        kept = {number.name: new for number in reversed(ours.numbers) if (new := change(number)) is not None}
        numbers, end = [], 0
        for new in kept.values():
            numbers.append(Number(new.name, new.type, end + _GAP))
            end = numbers[-1].end
        theirs = np.zeros(len(rows), image.row_type(numbers, end))
        for path, number in zip(kept, numbers, strict=True):
            theirs[number.name] = was[path]
        description[name] = Array(len(octets), len(rows), end, tuple(numbers))
        octets += theirs.tobytes()
    return description, octets


def read(version: int, description: Description, octets: bytes) -> Image:
    """Return an image that lies in memory."""

    def fill(into: np.ndarray, at: int) -> None:
        there = np.frombuffer(octets[at : at + len(into)], "u1")
        into[: len(there)] = there

    return Image(version, description, fill)


def adopt_image(table: MasqTable, found: Image, now_ns: int) -> dict[str, int]:
    """Open the sessions of an image in an empty table; return how many were dropped, by reason."""
    header = found.rows("header", 0, 1)
    mapped = found.rows("mappings", 0, len(table.mappings))
    sessions = found.rows("sessions", 0, min(int(header["rows"][0]), found.count("sessions"), len(table.sessions)))
    return adopt(table, header[0], mapped, [sessions], now_ns, PROXIES)
