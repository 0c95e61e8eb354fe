"""The path's rows for tunnels: which tracker's row has which, and when packets went over it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rows import TUNNEL

OUTBOUND, INBOUND = 0, 1
NS_PER_MS = 1_000_000
_WRAP_MS = 1 << 32

Key = tuple[str, int]  # kind of tracker, number of its row


class Way(NamedTuple):
    """One direction of a tunnel; addresses and ids in host order. id None: any Call ID. call_id: to write, if given."""

    arrives: tuple[int, int, int | None]
    leaves: tuple[int, int]
    call_id: int | None = None


class Moved(NamedTuple):
    """A tunnel that packets went over: when the last went each way, in ns, 0 for never, and its last ESP number in."""

    key: Key
    outbound_ns: int
    inbound_ns: int
    sequence: int


class TunnelRows:
    """Puts tunnels into the path and takes them out. The path must have been told to `follow`."""

    def __init__(self, forwarder: Forwarder) -> None:
        self.forwarder = forwarder
        self.rows = forwarder.tunnels
        self._fresh = 0  # the first row that was never used
        self._returned: list[int] = []
        self._row_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._ways: dict[int, list[Way | None]] = {}
        self._waiting: dict[Key, tuple[int, Way | None, Way | None]] = {}  # for a row, oldest first
        self._seen = np.zeros((len(self.rows), 2), "u8")
        self._by_tracker: dict[Key, list[int]] = {}  # packets that a tracker let pass, outbound and inbound

    def place(self, key: Key, protocol: int, outbound: Way | None, inbound: Way | None) -> bool:
        """Let the path move these ways of a tunnel, and no others; counters of a tunnel that has a row go on.

        Without a free row the path moves none of them, until one is free. Returns whether there was one.
        """
        row = self._row_of.get(key)
        if row is None:
            row = self._take_row()
            if row is None:
                self._waiting[key] = (protocol, outbound, inbound)
                return False
            self._row_of[key] = row
            self._key_of[row] = key
            self._ways[row] = [None, None]
        present, wanted = self._ways[row], (outbound, inbound)
        changed = [direction for direction in (OUTBOUND, INBOUND) if present[direction] != wanted[direction]]
        if not changed:
            return True
        with self.forwarder.locked():
            for direction in changed:
                self.forwarder.remove_way(row, direction)
                present[direction] = None
            for direction in changed:
                way = wanted[direction]
                if way is not None:
                    self.forwarder.set_way(row, direction, protocol, way.arrives, way.leaves, way.call_id)
                    present[direction] = way
        return True

    def remove(self, key: Key) -> None:
        """Take a tunnel out of the path, if it is in; the one that has waited longest for a row gets it."""
        self._waiting.pop(key, None)
        row = self._row_of.pop(key, None)
        if row is None:
            return
        with self.forwarder.locked():
            self.forwarder.remove_way(row, OUTBOUND)
            self.forwarder.remove_way(row, INBOUND)
            self.rows[row] = np.zeros((), TUNNEL)
        self._seen[row] = 0
        del self._key_of[row], self._ways[row]
        self._returned.append(row)
        if self._waiting:
            next_key = next(iter(self._waiting))
            self.place(next_key, *self._waiting.pop(next_key))

    def forget(self, key: Key) -> None:
        """Take a tunnel out for good, with its counters."""
        self.remove(key)
        self._by_tracker.pop(key, None)

    def count(self, key: Key, direction: int) -> None:
        """Note a packet of a tunnel that its tracker lets pass, unless the path will find its way and count it."""
        row = self._row_of.get(key)
        if row is None or self._ways[row][direction] is None:
            self._by_tracker.setdefault(key, [0, 0])[direction] += 1

    def packets(self, key: Key) -> tuple[int, int]:
        """Return how many packets have passed, outbound and inbound."""
        outbound, inbound = self._by_tracker.get(key, (0, 0))
        row = self._row_of.get(key)
        if row is None:
            return outbound, inbound
        moved = self.rows["way"]["packets"][row]
        return outbound + int(moved[OUTBOUND]), inbound + int(moved[INBOUND])

    def moved(self, now_ns: int) -> Iterator[Moved]:
        """Yield the tunnels that packets went over since the last call."""
        ways, seen = self.rows["way"][: self._fresh], self._seen[: self._fresh]
        with self.forwarder.locked():
            packets = ways["packets"].copy()
            last_ms = ways["last_ms"].copy()
            sequence = ways["sequence"][:, INBOUND].copy()
        changed = np.flatnonzero((packets != seen).any(axis=1))
        seen[:] = packets
        for row in changed:
            times = [
                _time_of(int(last_ms[row, way]), now_ns) if packets[row, way] else 0 for way in (OUTBOUND, INBOUND)
            ]
            yield Moved(self._key_of[int(row)], times[OUTBOUND], times[INBOUND], int(sequence[row]))

    def _take_row(self) -> int | None:
        """Return a row that nobody has, None if there is none."""
        if self._returned:
            return self._returned.pop()
        if self._fresh == len(self.rows):
            return None
        self._fresh += 1
        return self._fresh - 1


def _time_of(last_ms: int, now_ns: int) -> int:
    """Return a time of the path, whose milliseconds wrap, in nanoseconds; it may be a moment after `now_ns`."""
    age = (now_ns // NS_PER_MS - last_ms) % _WRAP_MS
    return now_ns if age > _WRAP_MS // 2 else now_ns - age * NS_PER_MS
