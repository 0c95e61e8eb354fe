"""Where the rows of a table live: what must outlive a process in a buffer that is given, the rest in memory of its own.

Sessions and mappings cannot be found out again, and external addresses say what the rows of mappings mean: these can
lie in a file, from which adoption.pyx opens the sessions again. Indexes, permits, hosts, networks, ports and timers
follow from them, and are made anew.

What a program in the kernel reads to carry sessions is *shared* with it: each such array then lies in a buffer of its
own, and there is one size of indexes, since the program knows one. These buffers do not outlive the process, so a copy
of the sessions is *kept* in the place that they would have had (carried.pxd says when).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fastmasq.errors import CapacityError
from fastmasq.table import rows

ALIGNMENT = 64  # octets: a cache line, so that a session's row lies in two
EDITS_OF_STREAM = 2 * rows.EDITS


@dataclass(frozen=True)
class Indexes:
    """By what sessions are found, or mappings, for so many of them: arrays by their names."""

    rows: int
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Memory:
    """The arrays of a table; the C struct `Table` points into them. Indexes: of each size, the smallest first."""

    header: np.ndarray
    mappings: np.ndarray
    sessions: np.ndarray
    indexes: tuple[Indexes, ...]
    mapping_indexes: tuple[Indexes, ...]
    hosts: np.ndarray
    host_index: np.ndarray
    networks: np.ndarray
    network_index: np.ndarray
    free_ports: np.ndarray
    allowed_ports: np.ndarray
    wheel_slots: np.ndarray
    forwards: np.ndarray
    targets: np.ndarray
    remotes: np.ndarray
    streams: np.ndarray
    edits: np.ndarray
    followers: np.ndarray
    stream_index: np.ndarray
    followed: np.ndarray
    unread: np.ndarray
    carried: np.ndarray
    tallies: np.ndarray
    kept: np.ndarray


Arrays = dict[str, tuple[np.dtype, tuple[int, ...]]]


def lasting(capacity: int) -> Arrays:
    """Return (type, shape) of the arrays of a table for so many sessions that may outlive it, as the buffer has them.

    Each begins at a page, so that each pool of mappings, and a thousand rows of sessions, is of whole pages.
    """
    return {
        "header": (rows.HEADER, (1,)),
        "mappings": (rows.MAPPING, (rows.POOLS * rows.PORTS,)),
        "sessions": (rows.SESSION, (capacity,)),
        "streams": (rows.STREAM, (stream_rows(capacity),)),
        "edits": (rows.EDIT, (stream_rows(capacity) * EDITS_OF_STREAM,)),
        "followers": (rows.FOLLOWER, (stream_rows(capacity),)),
    }


def shared(capacity: int) -> Arrays:
    """Return (type, shape) of the arrays that are shared with the kernel, if it is to carry sessions."""
    arrays = {**lasting(capacity), **indexes(capacity), **passing(capacity, capacity)}
    return {name: arrays[name] for name in ("sessions", "index", "carried")}


def passing(capacity: int, carried: int = 0) -> Arrays:
    """Return (type, shape) of the others, but for indexes of sessions and mappings; carried: sessions that may be."""
    return {
        "hosts": (rows.HOST, (rows.HOST_ROWS,)),
        "host_index": (rows.INDEX_ENTRY, (2 * rows.HOST_ROWS,)),
        "networks": (rows.NETWORK, (rows.HOST_ROWS,)),
        "network_index": (rows.INDEX_ENTRY, (2 * rows.HOST_ROWS,)),
        "free_ports": (np.dtype("u8"), (rows.POOLS, rows.POOL_WORDS)),
        "allowed_ports": (np.dtype("u8"), (rows.POOLS, rows.POOL_WORDS)),
        "wheel_slots": (np.dtype("u4"), (rows.WHEEL_SLOTS,)),
        "forwards": (rows.FORWARD, (rows.FORWARD_ROWS,)),
        "targets": (rows.TARGET, (rows.TARGET_ROWS,)),
        "remotes": (rows.REMOTE, (rows.REMOTE_ROWS,)),
        "stream_index": (rows.INDEX_ENTRY, (_power_of_two(2 * stream_rows(capacity)),)),
        "followed": (np.dtype("u8"), (capacity // 64 + 1,)),
        "unread": (np.dtype("u8"), (capacity // 64 + 1,)),
        "carried": (rows.CARRIED, (carried,)),
        "tallies": (rows.TALLY, (carried,)),
    }


def indexes(sessions: int) -> Arrays:
    """Return (type, shape) of the indexes for so many sessions: powers of two, at most half full of them.

    Until larger ones take their place there may be half as many sessions more (growth.pxd).
    """
    return {
        "index": (rows.INDEX_ENTRY, (_power_of_two(4 * sessions),)),
        "permits": (np.dtype("u8"), (_power_of_two(2 * sessions),)),
    }


def mapping_indexes(mappings: int) -> Arrays:
    """Return the same for so many mappings, of which there may be half as many more for a while, too.

    All targets of forwards are in this index, of which there are few as a rule: with all of them it is seven eighths
    full at the most.
    """
    return {"mapping_index": (rows.INDEX_ENTRY, (_power_of_two((mappings * 3 // 2 + rows.TARGET_ROWS) * 8 // 7),))}


def sizes(most: int) -> list[int]:
    """Return for how many rows there are indexes: sixteen times as many each time, then as many as can be."""
    found = [min(most, rows.YOUNG)]
    while found[-1] < most:
        found.append(min(most, 16 * found[-1]))
    return found


def stream_rows(capacity: int) -> int:
    """Return how many of so many sessions may have edits, and of how many is kept how far they were read."""
    return min(capacity, 16 + capacity // 2048, rows.STREAMS)


def size_of(capacity: int) -> int:
    """Return how many octets a buffer for the lasting arrays of a table of so many sessions must have."""
    return sum(_padded(_octets(*array)) for array in lasting(capacity).values())


def offset_of(name: str, capacity: int) -> int:
    """Return where in the buffer a lasting array begins."""
    arrays = lasting(capacity)
    before = list(arrays)[: list(arrays).index(name)]
    return sum(_padded(_octets(*arrays[each])) for each in before)


def lay_out(capacity: int, buffer=None, apart: Mapping | None = None) -> Memory:
    """Return the arrays of a table for so many sessions.

    buffer: for the lasting ones: writable, zeroed, aligned to a page and of at least size_of(capacity) octets; the
    arrays keep it alive. apart: a buffer for each array that is shared with the kernel, by its name, likewise; without
    them none is. Others get memory of their own, each array by itself, so that a sanitizer knows its end; it is
    touched only as it is used. Raises ValueError about a buffer that does not do, and CapacityError when memory cannot
    be had.
    """
    arrays = {**lasting(capacity), **passing(capacity, 0 if apart is None else capacity)}
    room = _Room(size_of(capacity), buffer) if buffer is not None else None
    in_buffer = lasting(capacity) if room else ()

    def own(name: str, octets: int) -> np.ndarray:
        return _Room(octets, apart[name]).take(octets) if name in (apart or ()) else _zeros(octets)

    try:
        octets = {
            name: room.take(_octets(*each)) if name in in_buffer else own(name, _octets(*each))
            for name, each in arrays.items()
        }
        octets["kept"] = _zeros(0)
        if apart is not None and room:
            octets["kept"] = octets["sessions"]
            octets["sessions"] = own("sessions", octets["kept"].size)
        of_sessions = tuple(
            _made(size, indexes(size), own) for size in (sizes(capacity) if apart is None else [capacity])
        )
        of_mappings = tuple(
            _made(size, mapping_indexes(size), own) for size in sizes(min(capacity, rows.POOLS * rows.PORTS))
        )
    except MemoryError:
        raise CapacityError(f"no memory for {capacity} sessions ([limits] sessions): choose fewer") from None
    arrays["kept"] = rows.SESSION, (octets["kept"].size // rows.SESSION.itemsize,)
    found = {name: octets[name].view(dtype).reshape(shape) for name, (dtype, shape) in arrays.items()}
    return Memory(indexes=of_sessions, mapping_indexes=of_mappings, **found)


class _Room:
    """What is left of a buffer."""

    def __init__(self, needed: int, buffer) -> None:
        self._octets = np.frombuffer(buffer, "u1")
        self._taken = 0
        if not self._octets.flags.writeable:
            raise ValueError("a table cannot live in a buffer that is read-only")
        if self._octets.size < needed:
            raise ValueError(f"the buffer has {self._octets.size} octets: the table needs {needed}")
        if self._octets.ctypes.data % mmap.PAGESIZE:
            raise ValueError(
                f"the buffer begins at {self._octets.ctypes.data:#x}: not at a multiple of {mmap.PAGESIZE}"
            )

    def take(self, octets: int) -> np.ndarray:
        first = self._taken
        self._taken += _padded(octets)
        return self._octets[first : first + octets]


def _made(size: int, arrays: Arrays, own: Callable[[str, int], np.ndarray]) -> Indexes:
    return Indexes(size, {name: own(name, _octets(*each)).view(each[0]) for name, each in arrays.items()})


def _zeros(octets: int) -> np.ndarray:
    """Return aligned memory that the kernel gives when it is touched."""
    memory = np.zeros(octets + ALIGNMENT, "u1")
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + octets]


def _octets(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * int(np.prod(shape))


def _padded(octets: int) -> int:
    return -(-octets // mmap.PAGESIZE) * mmap.PAGESIZE


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()
