"""Where the rows of a table live: what must outlive a process in a buffer that is given, the rest in memory of its own.

Sessions and mappings cannot be found out again, and external addresses say what the rows of mappings mean: these can
lie in a file, from which adoption.pyx opens the sessions again. Indexes, permits, hosts, networks, ports and timers
follow from them, and are made anew.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np

from fastmasq.errors import CapacityError
from fastmasq.table import rows

ALIGNMENT = 64  # octets: a cache line, so that a session's row lies in two


@dataclass(frozen=True)
class Memory:
    """The arrays of a table; the C struct `Table` points into them."""

    header: np.ndarray
    mappings: np.ndarray
    sessions: np.ndarray
    index: np.ndarray
    permits: np.ndarray
    mapping_index: np.ndarray
    whole_index: np.ndarray
    whole_permits: np.ndarray
    whole_mapping_index: np.ndarray
    hosts: np.ndarray
    host_index: np.ndarray
    networks: np.ndarray
    network_index: np.ndarray
    free_ports: np.ndarray
    allowed_ports: np.ndarray
    wheel_slots: np.ndarray
    forwards: np.ndarray
    targets: np.ndarray


Arrays = dict[str, tuple[np.dtype, tuple[int, ...]]]


def lasting(capacity: int) -> Arrays:
    """Return (type, shape) of the arrays of a table for so many sessions that may outlive it, as the buffer has them.

    Each begins at a page, so that each pool of mappings, and a thousand rows of sessions, is of whole pages.
    """
    return {
        "header": (rows.HEADER, (1,)),
        "mappings": (rows.MAPPING, (rows.POOLS * rows.PORTS,)),
        "sessions": (rows.SESSION, (capacity,)),
    }


def passing(capacity: int) -> Arrays:
    """Return (type, shape) of the others.

    Indexes and permits are powers of two, and at most half full. Those of a young table have room for rows.YOUNG
    sessions; the whole ones, which replace them once (growth.pxd), are empty where there can be no more.
    """
    young = min(capacity, rows.YOUNG)
    whole = capacity if capacity > rows.YOUNG else 0
    return {
        "index": (rows.INDEX_ENTRY, (_power_of_two(4 * young),)),
        "permits": (rows.PERMIT, (_power_of_two(2 * young),)),
        "mapping_index": (rows.INDEX_ENTRY, (_mapping_index(young),)),
        "whole_index": (rows.INDEX_ENTRY, (_power_of_two(4 * whole),)),
        "whole_permits": (rows.PERMIT, (_power_of_two(2 * whole),)),
        "whole_mapping_index": (rows.INDEX_ENTRY, (_mapping_index(whole),)),
        "hosts": (rows.HOST, (rows.HOST_ROWS,)),
        "host_index": (rows.INDEX_ENTRY, (2 * rows.HOST_ROWS,)),
        "networks": (rows.NETWORK, (rows.HOST_ROWS,)),
        "network_index": (rows.INDEX_ENTRY, (2 * rows.HOST_ROWS,)),
        "free_ports": (np.dtype("u8"), (rows.POOLS, rows.POOL_WORDS)),
        "allowed_ports": (np.dtype("u8"), (rows.POOLS, rows.POOL_WORDS)),
        "wheel_slots": (np.dtype("u4"), (rows.WHEEL_SLOTS,)),
        "forwards": (rows.FORWARD, (rows.FORWARD_ROWS,)),
        "targets": (rows.TARGET, (rows.TARGET_ROWS,)),
    }


def size_of(capacity: int) -> int:
    """Return how many octets a buffer for the lasting arrays of a table of so many sessions must have."""
    return sum(_padded(_octets(*array)) for array in lasting(capacity).values())


def offset_of(name: str, capacity: int) -> int:
    """Return where in the buffer a lasting array begins."""
    arrays = lasting(capacity)
    before = list(arrays)[: list(arrays).index(name)]
    return sum(_padded(_octets(*arrays[each])) for each in before)


def lay_out(capacity: int, buffer=None) -> Memory:
    """Return the arrays of a table for so many sessions.

    buffer: for the lasting ones: writable, zeroed, aligned to a page and of at least size_of(capacity) octets; the
    arrays keep it alive. Others get memory of their own, each array by itself, so that a sanitizer knows its end; it is
    touched only as it is used. Raises ValueError about a buffer that does not do, and CapacityError when memory cannot
    be had.
    """
    room = _Room(size_of(capacity), buffer) if buffer is not None else None
    try:
        octets = {
            **{
                name: room.take(_octets(*each)) if room else _zeros(_octets(*each))
                for name, each in lasting(capacity).items()
            },
            **{name: _zeros(_octets(*each)) for name, each in passing(capacity).items()},
        }
    except MemoryError:
        raise CapacityError(f"no memory for {capacity} sessions ([limits] sessions): choose fewer") from None
    arrays = {**lasting(capacity), **passing(capacity)}
    return Memory(**{name: octets[name].view(dtype).reshape(shape) for name, (dtype, shape) in arrays.items()})


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


def _zeros(octets: int) -> np.ndarray:
    """Return aligned memory that the kernel gives when it is touched."""
    memory = np.zeros(octets + ALIGNMENT, "u1")
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + octets]


def _mapping_index(sessions: int) -> int:
    """Return the entries of an index for the mappings of so many sessions and all targets of forwards; 0 for none."""
    return _power_of_two(2 * (min(sessions, rows.POOLS * rows.PORTS) + rows.TARGET_ROWS)) if sessions else 0


def _octets(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * int(np.prod(shape))


def _padded(octets: int) -> int:
    return -(-octets // mmap.PAGESIZE) * mmap.PAGESIZE


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length() if at_least else 0
