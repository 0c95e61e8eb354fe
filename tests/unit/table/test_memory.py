"""Where the rows live: in memory of their own or in a buffer that is given, aligned and apart from one another."""

from __future__ import annotations

import dataclasses
import mmap
from itertools import pairwise

import numpy as np
import pytest

from fastmasq.table import memory, rows
from fastmasq.table.masq import MasqTable
from tests.support.tables import EXTERNAL, HOST, OUTSIDE, REMOTE, SECOND, TCP, allowed, make_table, opened

CAPACITY = 100


def zeroed(octets: int) -> mmap.mmap:
    """Return memory as the kernel gives it: zeroed, and at the beginning of a page."""
    return mmap.mmap(-1, octets)


def spans(laid_out: memory.Memory) -> list[tuple[int, int]]:
    """Return (first address, one past the last) of every array that has rows, in ascending order."""
    arrays = [getattr(laid_out, field.name) for field in dataclasses.fields(laid_out)]
    return sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays if array.size)


@pytest.mark.parametrize("capacity", [1, CAPACITY, 4097, rows.YOUNG + 1])
def test_a_buffer_of_the_size_asked_for_holds_all_arrays(capacity: int) -> None:
    buffer = zeroed(memory.size_of(capacity))
    whole = np.frombuffer(buffer, "u1")
    found = spans(memory.lay_out(capacity, buffer))
    assert found[0][0] == whole.ctypes.data
    assert found[-1][1] <= whole.ctypes.data + memory.size_of(capacity)
    assert all(one[1] <= other[0] for one, other in pairwise(found))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("capacity", "arrays"), [(CAPACITY, 14), (rows.YOUNG + 1, 17)])
def test_every_array_begins_at_a_cache_line(given: bool, capacity: int, arrays: int) -> None:
    buffer = zeroed(memory.size_of(capacity)) if given else None
    assert [first % memory.ALIGNMENT for first, _ in spans(memory.lay_out(capacity, buffer))] == [0] * arrays


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


def test_a_buffer_in_the_middle_of_a_cache_line_is_refused() -> None:
    with pytest.raises(ValueError, match=f"not at a multiple of {memory.ALIGNMENT}"):
        memory.lay_out(CAPACITY, memoryview(zeroed(memory.size_of(CAPACITY) + 8))[8:])
