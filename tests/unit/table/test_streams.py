"""Edits of followed connections in the table: how many are remembered, whose they are, and what outlives the table."""

from __future__ import annotations

import pytest

from fastmasq.errors import CapacityError
from fastmasq.table import memory
from fastmasq.table.rows import EDITS, FOLLOWED_PORTS, INBOUND, OUTBOUND, TEXT
from tests.support.adoption import adopted, shared
from tests.support.tables import TCP, make_table, opened

CAPACITY = 256
FOLLOWED = 80


def followed_table(**settings):
    table = make_table(**settings)
    table.follow_ports([FOLLOWED])
    return table


def acknowledge(table, row: int, direction: int, number: int) -> None:
    """Have the end that receives in a direction have acknowledged all before a number."""
    table.sessions[row]["tcp"]["ack"][1 - direction] = number


def test_edits_are_kept_in_order_with_what_they_shift() -> None:
    table = followed_table()
    row = opened(table, TCP, 40000)
    assert not table.is_edited(row) and table.edits_left(row, OUTBOUND) == EDITS - 1
    table.edit(row, OUTBOUND, 100, 4, b"longer")
    table.edit(row, OUTBOUND, 200, 6, b"less")
    table.edit(row, OUTBOUND, 300, 3, b"", b"x")
    table.edit(row, INBOUND, 0xFFFFFFFE, 4, b"wraps")
    assert table.edits(row, OUTBOUND) == [(100, 0, 4, b"longer"), (200, 2, 6, b"less"), (300, 0, 3, b"")]
    assert table.edits(row, INBOUND) == [(0xFFFFFFFE, 0, 4, b"wraps")]
    assert table.is_edited(row) and table.edits_left(row, OUTBOUND) == EDITS - 4


@pytest.mark.parametrize("direction", [OUTBOUND, INBOUND])
def test_an_edit_is_forgotten_only_when_it_is_acknowledged(direction: int) -> None:
    table = followed_table()
    row = opened(table, TCP, 40000)
    for number in range(EDITS - 1):
        table.edit(row, direction, 100 * number, 1, b"xyz")
    assert table.edits_left(row, direction) == 0
    with pytest.raises(CapacityError):
        table.edit(row, direction, 5000, 1, b"xyz")
    stop = 201 if direction == OUTBOUND else 200 + 4 + 3  # of the third, as who acknowledges it numbers
    acknowledge(table, row, direction, stop - 1)
    assert table.edits_left(row, direction) == 2
    acknowledge(table, row, direction, stop)
    assert table.edits_left(row, direction) == 3
    for number in range(3):
        table.edit(row, direction, 5000 + number, 1, b"xyz")
    assert table.edits_left(row, direction) == 0
    assert table.edits(row, direction)[0] == (300, 6, 1, b"xyz")


def test_what_can_be_no_edit_is_refused() -> None:
    table = followed_table()
    row, other = opened(table, TCP, 40000), opened(table, TCP, 40001, remote_port=81)
    for before, text, last in ((0, b"x", b""), (1, b"", b""), (1, bytes(TEXT + 1), b""), (1 << 16, b"x", b"")):
        with pytest.raises(ValueError, match="an edit replaces"):
            table.edit(row, OUTBOUND, 1, before, text, last)
    with pytest.raises(ValueError, match="is not followed"):
        table.edit(other, OUTBOUND, 1, 1, b"x")
    with pytest.raises(ValueError, match="at most"):
        table.follow_ports(range(1, FOLLOWED_PORTS + 2))


def test_edits_go_with_their_session_and_only_so_many_have_some() -> None:
    table = followed_table(capacity=CAPACITY)
    most = memory.stream_rows(CAPACITY)
    rows = [opened(table, TCP, 40000 + number) for number in range(most + 1)]
    for row in rows[:most]:
        table.edit(row, OUTBOUND, row, 1, b"xy")
    assert table.edits_left(rows[most], OUTBOUND) == 0
    with pytest.raises(CapacityError):
        table.edit(rows[most], OUTBOUND, 1, 1, b"xy")
    table.close(rows[3])
    table.edit(rows[most], OUTBOUND, 1, 1, b"z")
    assert table.edits(rows[most], OUTBOUND) == [(1, 0, 1, b"z")]
    assert [table.edits(row, OUTBOUND)[0][0] for row in rows[4:most]] == rows[4:most]
    again = opened(table, TCP, 50000)
    assert again == rows[3] and not table.is_edited(again)


def test_edits_outlive_the_table() -> None:
    left = shared(CAPACITY)
    table = followed_table(capacity=CAPACITY, buffer=left)
    opened(table, TCP, 39999)
    rows = [opened(table, TCP, 40000 + number) for number in range(3)]
    table.close(0)
    for row in rows:
        for number in range(20):
            acknowledge(table, row, OUTBOUND, 100 * number)
            table.edit(row, OUTBOUND, 100 * number, 2, b"%d" % row)
    table.edit(rows[1], INBOUND, 7, 2, b"seven")
    new, dropped = adopted(left, CAPACITY, 0)
    assert dropped == {}
    for row in rows:
        found = new.find(TCP, 0, *_ends(table, row))
        for direction in (OUTBOUND, INBOUND):
            assert new.edits(found[0], direction) == table.edits(row, direction)
        assert new.is_edited(found[0])


@pytest.mark.parametrize(
    ("name", "value"), [("before", 0), ("after", TEXT + 1), ("shift", 5), ("at", 1_000_000)], ids=str
)
def test_a_session_whose_edits_are_torn_does_not_go_on(name: str, value: int) -> None:
    left = shared(CAPACITY)
    table = followed_table(capacity=CAPACITY, buffer=left)
    row, whole = opened(table, TCP, 40000), opened(table, TCP, 40001)
    for each in (row, whole):
        for number in range(3):
            table.edit(each, OUTBOUND, 100 * number, 2, b"xyz")
    memory.lay_out(CAPACITY, left).edits[1][name] = value
    new, dropped = adopted(left, CAPACITY, 0)
    assert dropped == {"torn": 1}
    assert new.find(TCP, 0, *_ends(table, row)) is None
    assert new.edits(new.find(TCP, 0, *_ends(table, whole))[0], OUTBOUND) == table.edits(whole, OUTBOUND)


def _ends(table, row: int) -> tuple[int, int, int, int]:
    key0, key1 = (int(table.sessions[row]["flow"][OUTBOUND][name]) for name in ("key0", "key1"))
    return key0 >> 32, key1 >> 32 & 0xFFFF, key0 & 0xFFFFFFFF, key1 & 0xFFFF
