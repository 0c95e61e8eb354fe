"""The open-addressing index: insertion, removal and its backward shift, judged by what can be found afterwards."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tables import (
    EXTERNAL,
    HOST,
    INSIDE,
    OUTSIDE,
    REMOTE,
    UDP,
    external_port,
    key_hash,
    make_table,
    opened,
    outbound_key,
)

CAPACITY = 16
ENTRIES = 64  # of the index: a power of two, four times the capacity


def crowded_ports(homes: range, count: int) -> list[int]:
    """Return source ports whose outbound keys all want one of a few neighbouring entries of a small index."""
    wanted = {home % ENTRIES for home in homes}
    return [
        port for port in range(1024, 65536) if key_hash(outbound_key(UDP, HOST, port, REMOTE, 53)) % ENTRIES in wanted
    ][:count]


CROWDED = crowded_ports(range(ENTRIES - 3, ENTRIES + 2), 40)  # the run of entries wraps from the last to the first


def found(table, port: int) -> tuple | None:
    return table.find(UDP, INSIDE, HOST, port, REMOTE, 53)


def check(table, rows: dict[int, int]) -> None:
    """Every session is found by both of its keys, and nothing else is found."""
    for port in CROWDED:
        if port in rows:
            row = rows[port]
            assert found(table, port) == (row, 0)
            assert table.find(UDP, OUTSIDE, REMOTE, 53, EXTERNAL, external_port(table, row)) == (row, 1)
        else:
            assert found(table, port) is None
            assert table.find(UDP, OUTSIDE, REMOTE, 53, EXTERNAL, port) is None
    assert table.counts()["active"] == len(rows)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["open", "open", "close"]), st.integers(0, len(CROWDED) - 1)), max_size=60)
)
def test_against_a_dict_where_all_keys_crowd_together(steps: list[tuple[str, int]]) -> None:
    table = make_table(capacity=CAPACITY)
    rows: dict[int, int] = {}
    for what, number in steps:
        port = CROWDED[number]
        if what == "close" and rows:
            table.close(rows.pop(sorted(rows)[number % len(rows)]))
        elif what == "open" and port not in rows and len(rows) < CAPACITY:
            rows[port] = opened(table, UDP, port, remote_port=53)
        check(table, rows)


def test_backward_shift_over_the_end_of_the_index() -> None:
    """Removing the first of a run that wraps must not lose those behind the end."""
    for first in range(8):
        table = make_table(capacity=CAPACITY)
        rows = {port: opened(table, UDP, port, remote_port=53) for port in CROWDED[:CAPACITY]}
        table.close(rows.pop(CROWDED[first]))
        check(table, rows)


def test_two_keys_with_the_same_32_bit_hash() -> None:
    """The whole key decides, not the hash: neither is taken for the other, and each can go alone."""
    by_hash = defaultdict(list)
    pair = None
    for remote in range(REMOTE, REMOTE + 8):
        for port in range(1024, 65536):
            key = outbound_key(UDP, HOST, port, remote, 53)
            by_hash[key_hash(key)].append((port, remote))
            if len(by_hash[key_hash(key)]) == 2:
                pair = by_hash[key_hash(key)]
                break
        if pair:
            break
    assert pair, "half a million keys without two of the same 32-bit hash"
    for survivor in (0, 1):
        table = make_table(capacity=CAPACITY)
        rows = [opened(table, UDP, port, remote=remote, remote_port=53) for port, remote in pair]
        for row, (port, remote) in zip(rows, pair, strict=True):
            assert table.find(UDP, INSIDE, HOST, port, remote, 53) == (row, 0)
        table.close(rows[1 - survivor])
        assert table.find(UDP, INSIDE, HOST, pair[survivor][0], pair[survivor][1], 53) == (rows[survivor], 0)
        assert table.find(UDP, INSIDE, HOST, pair[1 - survivor][0], pair[1 - survivor][1], 53) is None


def test_a_full_table_finds_all_and_only_its_sessions() -> None:
    table = make_table(capacity=4096)
    rows = {port: opened(table, UDP, port, remote_port=53) for port in range(2000, 2000 + 4096)}
    assert table.open(UDP, HOST, 9999, REMOTE, 53, 0) == "table_full"
    for port, row in rows.items():
        assert found(table, port) == (row, 0)
    assert found(table, 1999) is None
    order = list(rows)
    random.Random(4).shuffle(order)
    for port in order[:4000]:
        table.close(rows.pop(port))
    for port in order:
        assert found(table, port) == ((rows[port], 0) if port in rows else None)


def test_every_field_is_part_of_the_key() -> None:
    table = make_table()
    row = opened(table, UDP, 4000, remote_port=53)
    assert table.find(UDP, INSIDE, HOST, 4000, REMOTE, 53) == (row, 0)
    for other in [
        (6, INSIDE, HOST, 4000, REMOTE, 53),
        (UDP, OUTSIDE, HOST, 4000, REMOTE, 53),
        (UDP, INSIDE, HOST + 1, 4000, REMOTE, 53),
        (UDP, INSIDE, HOST, 4001, REMOTE, 53),
        (UDP, INSIDE, HOST, 4000, REMOTE + 1, 53),
        (UDP, INSIDE, HOST, 4000, REMOTE, 54),
        (UDP, INSIDE, REMOTE, 53, HOST, 4000),
        (UDP, INSIDE, HOST, 4000, REMOTE, 53 | 1 << 16),
    ]:
        assert table.find(*other) is None


def test_find_many_counts_what_is_there() -> None:
    table = make_table()
    for port in range(1000, 1010):
        opened(table, UDP, port, remote_port=53)
    keys = np.array([outbound_key(UDP, HOST, port, REMOTE, 53) for port in range(995, 1005)], "u8")
    assert table.find_many(keys) == 5
