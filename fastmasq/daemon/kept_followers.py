"""Keeps in the table's memory how far each followed control connection was read, for the process that comes next.

A row has the key of its session's outbound flow, as a stream has (table/streams.pxd): key0 is written last. It is
written after the edits of a segment, and before the segment leaves: whoever is killed between has left edits beyond
what the row says was read, or no row, and the connection goes on unread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fastmasq.table.keys import Ends, ends_of
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import INBOUND, OUTBOUND, STATES
from fastmasq.trackers.alg.follower import Direction, Known
from fastmasq.trackers.stream import Stream, distance

WAYS: dict[Direction, int] = {"outbound": OUTBOUND, "inbound": INBOUND}
_KNOWN, _READ = 1, 2  # progress of a direction: where it is, and that something of it was read
_FINISHED = ("fin-out", "fin-in", "closing", "transitory")  # states of a session in which a FIN counts in its ends


class Kept(NamedTuple):
    """What is kept of one connection: its ends as the inside sees them, what is known of it, and its streams."""

    ends: Ends
    known: Known
    streams: dict[Direction, Stream]


class KeptFollowers:
    """The rows of one table."""

    def __init__(self, table: MasqTable) -> None:
        self._table = table
        self._places: dict[int, int] = {}  # by the row of a session

    def note(self, row: int, known: Known, streams: dict[Direction, Stream]) -> None:
        """Have the connection of a session be kept as it is now, if there is room."""
        rows = self._table.followers()
        if row not in self._places:
            free = np.flatnonzero(rows["key0"] == 0)
            if not len(free):
                return
            self._places[row] = int(free[0])
        place = rows[self._places[row]]
        flow = self._table.sessions[row]["flow"][OUTBOUND]
        place["key0"] = 0
        place["key1"] = flow["key1"]
        place["facts"] = known
        for direction, way in WAYS.items():
            stream = streams[direction]
            place["progress"][way] = _KNOWN * (stream.expected is not None) | _READ * stream.has_read
            place["expected"][way] = stream.expected or 0
        place["key0"] = flow["key0"]

    def forget(self, row: int) -> None:
        """Have the connection of a session be kept no more."""
        if row in self._places:
            self._table.followers()[self._places.pop(row)]["key0"] = 0


def read_kept(rows: np.ndarray) -> Iterator[Kept]:
    """Yield what another process has kept."""
    for row in rows[rows["key0"] != 0]:
        streams: dict[Direction, Stream] = {"outbound": Stream(), "inbound": Stream()}
        for direction, way in WAYS.items():
            if row["progress"][way] & _KNOWN:
                streams[direction].go_on(int(row["expected"][way]), has_read=bool(row["progress"][way] & _READ))
        yield Kept(ends_of(row), Known(int(row["facts"])), streams)


def has_read_all(table: MasqTable, row: int, streams: dict[Direction, Stream]) -> bool:
    """Whether nothing of a session has passed, or was edited, that its streams have not read."""
    session = table.sessions[row]
    fin = STATES[session["state"]] in _FINISHED
    for direction, way in WAYS.items():
        expected = streams[direction].expected
        if expected is None:
            continue
        edits = table.edits(row, way)
        at, _, before, _ = edits[-1] if edits else (expected, 0, 0, b"")
        as_tracked = table.leaves_as(row, way, expected) if way == INBOUND else expected  # as the inside numbers
        if distance(expected, at + before) > 0 or distance(as_tracked, int(session["tcp"]["end"][way]) - fin) > 0:
            return False
    return True
