"""The size of the table: memory per session, rows as declared, and sizes that are refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from fastmasq.errors import CapacityError
from fastmasq.table.masq import MAXIMUM_SESSIONS, MasqTable
from fastmasq.table.rows import HOST, MAPPING, SESSION, STATES, mirrors
from fastmasq.wire.numbers import CLASSES
from tests.support.tables import TCP, make_table, opened

LIMIT = 300  # octets a session


def memory_of(capacity: int) -> int:
    """Return the octets that all arrays of a full table come to: most are not touched before they are used.

    Smaller indexes, which it had before, have been given back to the kernel.
    """
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        table = MasqTable(capacity)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert table.counts()["capacity"] == capacity
    left = (*table.memory.indexes[:-1], *table.memory.mapping_indexes[:-1])
    return after - before - sum(array.nbytes for each in left for array in each.arrays.values())


def test_at_most_300_octets_a_session_by_default() -> None:
    assert MasqTable().counts()["capacity"] == 1_000_000
    assert memory_of(1_000_000) / 1_000_000 <= LIMIT


@pytest.mark.parametrize("capacity", [400_000, (1 << 20) + 1, 2_000_000, (1 << 22) + 1])
def test_at_most_300_octets_at_other_sizes(capacity: int) -> None:
    """Indexes are powers of two: the worst case is just over one, since the next doubles them."""
    assert memory_of(capacity) / capacity <= LIMIT


def test_rows_are_what_the_manual_says() -> None:
    assert SESSION.itemsize == 128
    assert MAPPING.itemsize == 16
    assert HOST.itemsize == 36


def test_rows_read_from_python_are_the_rows_of_the_path() -> None:
    table = make_table()
    row = table.sessions[opened(table, TCP, 40000)]
    out, back = row["flow"]
    assert (int(out["key0"]), int(out["key1"])) == (0x0A000002_C7000001, 6 << 56 | 40000 << 32 | 80)
    assert (int(out["saddr"]), int(out["sid"]), int(out["daddr"]), int(out["did"])) == (
        0xC8C8C8C8,
        40000,
        0xC7000001,
        80,
    )
    assert (int(back["key0"]), int(back["key1"])) == (0xC7000001_C8C8C8C8, 6 << 56 | 1 << 48 | 80 << 32 | 40000)
    assert (int(back["saddr"]), int(back["sid"]), int(back["daddr"]), int(back["did"])) == (
        0xC7000001,
        80,
        0x0A000002,
        40000,
    )
    assert STATES[row["state"]] == "syn-sent"
    assert CLASSES[row["port_class"]] == "tcp"
    mapping = table.mappings[row["mapping"]]
    assert (int(mapping["address"]), int(mapping["id"]), int(mapping["sessions"])) == (0x0A000002, 40000, 1)
    host = table.hosts[mapping["host"]]
    assert (int(host["address"]), int(host["sessions"]), host["ports"].tolist()) == (0x0A000002, 1, [1, 0, 0])


@pytest.mark.parametrize("capacity", [0, MAXIMUM_SESSIONS + 1])
def test_impossible_sizes_are_refused_with_the_bounds(capacity: int) -> None:
    with pytest.raises(CapacityError, match=f"choose between 1 and {MAXIMUM_SESSIONS}"):
        MasqTable(capacity)


def test_a_table_of_one() -> None:
    table = make_table(capacity=1)
    row = opened(table, TCP, 40000)
    assert table.open(TCP, 0x0A000002, 40001, 0xC7000001, 80, 0) == "table_full"
    table.close(row)
    assert opened(table, TCP, 40001) == row


def test_rows_given_back_are_used_before_fresh_ones() -> None:
    table = make_table()
    rows = [opened(table, TCP, 40000 + number) for number in range(10)]
    assert table.fresh == 10
    for row in rows[3:6]:
        table.close(row)
    assert {opened(table, TCP, 50000 + number) for number in range(3)} == set(rows[3:6])
    assert table.fresh == 10
    assert np.count_nonzero(table.sessions["state"]) == 10


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ([("address", "u4"), ("id", "u2"), ("in_use", "u2")], True),
        ([("address", "u4"), ("in_use", "u2"), ("id", "u2")], False),
        ([("address", "u4"), ("id", "u2"), ("state", "u2")], False),
        ([("address", "u4"), ("id", "u2"), ("in_use", "u1"), ("reserved", "u1")], False),
        ([("address", "u4"), ("id", "u2")], False),
    ],
)
def test_a_mirror_has_every_field_where_the_struct_has_it(fields: list[tuple[str, str]], same: bool) -> None:
    struct = {"address": 0x04030201, "id": 0x0605, "in_use": 0x0007}
    assert mirrors(np.dtype(fields), 8, struct) == same


@pytest.mark.parametrize(("length", "same"), [(6, True), (4, False)])
def test_an_array_of_octets_may_end_a_struct(length: int, same: bool) -> None:
    """Cython reads it as text, to the first 0, which is the last octet: beyond that would be another's memory."""
    fields = [("link", "u2"), ("mac", "u1", length), ("rest", "u1", 6 - length)]
    assert mirrors(np.dtype(fields), 8, {"link": 0x0201, "mac": bytes(range(3, 8)), "rest": b""}) == same
