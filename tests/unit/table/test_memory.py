"""Where the rows live: in their own memory or in a buffer that is given, aligned and apart; and when it is there."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
from itertools import pairwise

import numpy as np
import pytest

from fastmasq.table import memory, rows
from fastmasq.table.masq import MasqTable
from tests.support.tables import (
    EXTERNAL,
    HOST,
    NEW_EXTERNAL,
    OUTSIDE,
    REMOTE,
    SECOND,
    TCP,
    UDP,
    allowed,
    make_table,
    opened,
)

CAPACITY = 100
PROT_NONE = 0  # mprotect(2)
AT_ONCE = 32768  # sessions that there is memory for at first


def zeroed(octets: int) -> mmap.mmap:
    """Return memory as the kernel gives it: zeroed, and at the beginning of a page."""
    return mmap.mmap(-1, octets)


def spans(laid_out: memory.Memory) -> list[tuple[int, int]]:
    """Return (first address, one past the last) of all arrays that have rows, in ascending order."""
    indexes = ("indexes", "mapping_indexes")
    arrays = [getattr(laid_out, field.name) for field in dataclasses.fields(laid_out) if field.name not in indexes]
    for of_all_sizes in (laid_out.indexes, laid_out.mapping_indexes):
        arrays += [array for each in of_all_sizes for array in each.arrays.values()]
    return sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays if array.size)


@pytest.mark.parametrize("capacity", [1, CAPACITY, 4097, rows.YOUNG + 1])
def test_a_buffer_of_the_size_asked_for_holds_the_lasting_arrays(capacity: int) -> None:
    buffer = zeroed(memory.size_of(capacity))
    first = np.frombuffer(buffer, "u1").ctypes.data
    laid_out = memory.lay_out(capacity, buffer)
    lasting = [getattr(laid_out, name) for name in memory.lasting(capacity)]
    found = [(array.ctypes.data, array.ctypes.data + array.nbytes) for array in lasting]
    assert [begin - first for begin, _ in found] == [
        memory.offset_of(name, capacity) for name in ("header", "mappings", "sessions", "streams", "edits", "followers")
    ]
    assert not any(begin % mmap.PAGESIZE for begin, _ in found)
    assert found[-1][1] <= first + memory.size_of(capacity)
    everything = spans(laid_out)
    assert all(one[1] <= other[0] for one, other in pairwise(everything))
    assert [each for each in everything if first <= each[0] < first + memory.size_of(capacity)] == found


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("capacity", "arrays"), [(CAPACITY, 22), (rows.YOUNG + 1, 25), (1_000_000, 28)])
def test_every_array_begins_at_a_cache_line(given: bool, capacity: int, arrays: int) -> None:
    buffer = zeroed(memory.size_of(capacity)) if given else None
    assert [first % memory.ALIGNMENT for first, _ in spans(memory.lay_out(capacity, buffer))] == [0] * arrays


def test_a_table_lives_in_the_buffer() -> None:
    buffer = zeroed(memory.size_of(CAPACITY))
    table = make_table(capacity=CAPACITY, buffer=buffer)
    row = opened(table, TCP, 40000)
    assert table.find(TCP, OUTSIDE, REMOTE, 80, EXTERNAL, 40000) == (row, 1)
    in_buffer = np.frombuffer(buffer, rows.SESSION, CAPACITY, memory.offset_of("sessions", CAPACITY))
    session = in_buffer[row]
    assert (rows.STATES[session["state"]], int(session["flow"][1]["daddr"])) == ("syn-sent", HOST)
    table.expire(1000 * SECOND)
    assert np.count_nonzero(in_buffer["state"]) == 0


def test_tables_in_two_buffers_are_two_tables() -> None:
    one, other = (make_table(capacity=CAPACITY, buffer=zeroed(memory.size_of(CAPACITY))) for _ in range(2))
    opened(one, TCP, 40000)
    assert (one.counts()["active"], other.counts()["active"]) == (1, 0)
    assert other.find(TCP, OUTSIDE, REMOTE, 80, EXTERNAL, 40000) is None


def test_the_memory_of_a_buffer_is_made_ready_like_any_other() -> None:
    table = MasqTable(CAPACITY, buffer=zeroed(memory.size_of(CAPACITY)))
    table.make_ready()
    table.set_external(EXTERNAL, allowed(range(1, 65536)))
    table.make_ready()
    opened(table, TCP, 40000)


def test_a_buffer_that_is_too_short_is_refused_with_both_sizes() -> None:
    needed = memory.size_of(CAPACITY)
    with pytest.raises(ValueError, match=f"the buffer has {needed - 1} octets: the table needs {needed}"):
        MasqTable(CAPACITY, buffer=memoryview(zeroed(needed))[: needed - 1])


def test_a_buffer_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="read-only"):
        memory.lay_out(CAPACITY, bytes(memory.size_of(CAPACITY)))


def test_a_buffer_in_the_middle_of_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match=f"not at a multiple of {mmap.PAGESIZE}"):
        memory.lay_out(CAPACITY, memoryview(zeroed(memory.size_of(CAPACITY) + 64))[64:])


# -- what is shared with the kernel ----------------------------------------------------------------------------------


def apart(capacity: int) -> dict[str, mmap.mmap]:
    return {name: zeroed(dtype.itemsize * shape[0]) for name, (dtype, shape) in memory.shared(capacity).items()}


@pytest.mark.parametrize("capacity", [CAPACITY, rows.YOUNG + 1])
def test_what_is_shared_lives_in_buffers_of_its_own_and_the_rest_where_it_did(capacity: int) -> None:
    buffer, own = zeroed(memory.size_of(capacity)), apart(capacity)
    table = make_table(capacity=capacity, buffer=buffer, apart=own)
    row = opened(table, TCP, 40000)
    assert np.frombuffer(own["sessions"], rows.SESSION)["flow"]["daddr"][row].tolist() == [REMOTE, HOST]
    assert np.count_nonzero(np.frombuffer(own["index"], rows.INDEX_ENTRY)["ref"]) == 2
    assert len(table.carried_rows) == capacity
    mappings = np.frombuffer(buffer, rows.MAPPING, 12 * 65536, memory.offset_of("mappings", capacity))
    assert np.count_nonzero(mappings["in_use"]) == 1
    assert table.find(TCP, OUTSIDE, REMOTE, 80, EXTERNAL, 40000) == (row, 1)


def test_an_index_that_is_shared_is_whole_from_the_start() -> None:
    """The program knows one, and that must not move."""
    capacity = rows.YOUNG + 8192
    own = apart(capacity)
    table = make_table(capacity=capacity, ports_per_host=65535, apart=own)
    for number in range(capacity):
        opened(table, UDP, number % 50_000 + 1, remote=REMOTE + number // 50_000)
    assert np.count_nonzero(np.frombuffer(own["index"], rows.INDEX_ENTRY)["ref"]) == 2 * capacity
    assert table.open(UDP, HOST, 50_001, REMOTE, 80, 0) == "table_full"


def test_a_shared_buffer_that_is_too_short_is_refused() -> None:
    own = {**apart(CAPACITY), "carried": zeroed(4096)}
    with pytest.raises(ValueError, match="the buffer has 4096 octets: the table needs 6400"):
        make_table(capacity=CAPACITY, apart=own)


# -- memory that is there when it is asked for -------------------------------------------------------------------------


class Reluctant:
    """A buffer whose pages cannot be touched before `back` was called for them: the process would die."""

    def __init__(self, capacity: int) -> None:
        self.octets = memory.size_of(capacity)
        self.buffer = mmap.mmap(-1, self.octets)
        self.address = np.frombuffer(self.buffer, "u1").ctypes.data
        self.backed = 0
        self._protect(0, self.octets, PROT_NONE)

    def back(self, offset: int, octets: int) -> None:
        self.backed += octets
        self._protect(offset, octets, mmap.PROT_READ | mmap.PROT_WRITE)

    def _protect(self, offset: int, octets: int, allowed: int) -> None:
        octets = -(-octets // mmap.PAGESIZE) * mmap.PAGESIZE
        assert offset % mmap.PAGESIZE == 0 and offset + octets <= self.octets + mmap.PAGESIZE
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(self.address + offset), ctypes.c_size_t(octets), allowed) == 0


def test_nothing_is_touched_before_it_has_memory() -> None:
    capacity = 200_000
    given = Reluctant(capacity)
    table = make_table(capacity=capacity, ports_per_host=65535, buffer=given.buffer, back=given.back, external=None)
    table.make_ready()
    assert given.backed < 8 << 20, "an idle table takes 4 MB for sessions, and 3 for mappings"
    for external in (EXTERNAL, NEW_EXTERNAL):
        table.set_external(external, allowed(range(1, 65536)))
        opened(table, TCP, 40000)
    table.expire(1000 * SECOND)
    table.set_external(EXTERNAL, allowed(range(1, 65536)))
    for number in range(100_000):
        if table.wants_memory:
            table.make_ready()
        opened(table, UDP, number % 50_000 + 1, remote=REMOTE + number // 50_000)
    assert table.counts()["active"] == 100_000


def test_what_is_expected_has_memory_at_once() -> None:
    """Opening it asks for no more, and what comes after it has as much as ever."""
    given = Reluctant(400_000)
    table = make_table(capacity=400_000, ports_per_host=65535, buffer=given.buffer, back=given.back)
    table.make_ready(50_000)
    backed = given.backed
    for number in range(50_000):
        opened(table, UDP, number + 1)
        assert not table.wants_memory
    assert given.backed == backed


def test_without_more_memory_a_table_is_full() -> None:
    given = Reluctant(100_000)
    table = make_table(capacity=100_000, ports_per_host=65535, buffer=given.buffer, back=given.back)
    for number in range(AT_ONCE):
        opened(table, UDP, number + 1)
    assert table.open(UDP, HOST, 40_001, REMOTE, 80, 0) == "table_full"
    table.close(7)
    assert opened(table, UDP, 40_001) == 7
    table.make_ready()
    assert opened(table, UDP, 40_002) == AT_ONCE
