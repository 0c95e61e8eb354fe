"""Where the rows live: in memory of their own or in a buffer that is given, aligned and apart from one another."""

from __future__ import annotations

import dataclasses
import mmap
import resource
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fastmasq.errors import CapacityError
from fastmasq.table import memory, rows
from fastmasq.table.masq import MasqTable
from tests.support.tables import EXTERNAL, HOST, OUTSIDE, REMOTE, SECOND, TCP, make_table, opened

CAPACITY = 100


def zeroed(octets: int) -> mmap.mmap:
    """Return memory as the kernel gives it: zeroed, and at the beginning of a page."""
    return mmap.mmap(-1, octets)


def spans(laid_out: memory.Memory) -> list[tuple[int, int]]:
    """Return (first address, one past the last) of every array, in ascending order."""
    arrays = [getattr(laid_out, field.name) for field in dataclasses.fields(laid_out)]
    return sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays)


@pytest.mark.parametrize("capacity", [1, CAPACITY, 4097])
def test_a_buffer_of_the_size_asked_for_holds_all_arrays(capacity: int) -> None:
    buffer = zeroed(memory.size_of(capacity))
    whole = np.frombuffer(buffer, "u1")
    found = spans(memory.lay_out(capacity, buffer))
    assert found[0][0] == whole.ctypes.data
    assert found[-1][1] <= whole.ctypes.data + memory.size_of(capacity)
    assert all(one[1] <= other[0] for one, other in pairwise(found))


@pytest.mark.parametrize("given", [False, True])
def test_every_array_begins_at_a_cache_line(given: bool) -> None:
    buffer = zeroed(memory.size_of(CAPACITY)) if given else None
    assert [first % memory.ALIGNMENT for first, _ in spans(memory.lay_out(CAPACITY, buffer))] == [0] * 14


def test_a_table_lives_in_the_buffer() -> None:
    buffer = zeroed(memory.size_of(CAPACITY))
    table = make_table(capacity=CAPACITY, buffer=buffer)
    row = opened(table, TCP, 40000)
    assert table.find(TCP, OUTSIDE, REMOTE, 80, EXTERNAL, 40000) == (row, 1)
    session = np.frombuffer(buffer, rows.SESSION, CAPACITY)[row]
    assert (rows.STATES[session["state"]], int(session["flow"][1]["daddr"])) == ("syn-sent", HOST)
    table.expire(1000 * SECOND)
    assert np.count_nonzero(np.frombuffer(buffer, rows.SESSION, CAPACITY)["state"]) == 0


def test_tables_in_two_buffers_are_two_tables() -> None:
    one, other = (make_table(capacity=CAPACITY, buffer=zeroed(memory.size_of(CAPACITY))) for _ in range(2))
    opened(one, TCP, 40000)
    assert (one.counts()["active"], other.counts()["active"]) == (1, 0)
    assert other.find(TCP, OUTSIDE, REMOTE, 80, EXTERNAL, 40000) is None


def test_a_buffer_that_is_too_short_is_refused_with_both_sizes() -> None:
    needed = memory.size_of(CAPACITY)
    with pytest.raises(ValueError, match=f"the buffer has {needed - 1} octets: the table needs {needed}"):
        MasqTable(CAPACITY, buffer=memoryview(zeroed(needed))[: needed - 1])


def test_a_buffer_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="read-only"):
        memory.lay_out(CAPACITY, bytes(memory.size_of(CAPACITY)))


def test_a_buffer_in_the_middle_of_a_cache_line_is_refused() -> None:
    with pytest.raises(ValueError, match=f"not at a multiple of {memory.ALIGNMENT}"):
        memory.lay_out(CAPACITY, memoryview(zeroed(memory.size_of(CAPACITY) + 8))[8:])


def resident() -> int:
    """Return how many octets of this process are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def fill(table: MasqTable, first: int, count: int) -> None:
    """Open sessions number first to first + count - 1."""
    for number in range(first, first + count):
        opened(table, TCP, 1 + number % 60_000, host=HOST + number % 10)


def faults_of(action: Callable[[], object]) -> int:
    """Return how often this process touched memory for the first time meanwhile."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    action()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_memory_is_made_ready_once_there_are_sessions_and_as_they_become_more() -> None:
    table = make_table(capacity=20_000, buffer=memory.private(20_000))
    assert not table.make_ready()
    fill(table, 0, 1023)
    assert not table.make_ready()
    fill(table, 1023, 1)
    assert table.make_ready()
    assert not table.make_ready()
    fill(table, 1024, 1000)
    assert table.make_ready()
    fill(table, 2024, 17_976)
    assert table.make_ready()
    assert not table.make_ready(), "all of it is there"


def test_a_session_in_a_table_made_ready_touches_no_new_memory() -> None:
    table = make_table(capacity=1_000_000, buffer=memory.private(1_000_000))
    made = faults_of(lambda: fill(table, 0, 1024))
    table.make_ready()
    assert faults_of(lambda: fill(table, 1024, 1024)) < made / 20


def test_a_private_buffer_takes_no_memory_before_it_is_used() -> None:
    before = resident()
    table = make_table(capacity=1_000_000, buffer=memory.private(1_000_000))
    assert resident() - before < 4 << 20
    opened(table, TCP, 40000)
    assert resident() - before < 4 << 20


def test_a_private_buffer_that_cannot_be_had_is_refused() -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), limits[1]))
    try:
        with pytest.raises(CapacityError, match=r"no memory for 1000000 sessions .* choose fewer"):
            memory.private(1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
