"""A table that leaves its small indexes behind: nothing that it knows is lost, at the border, above or back below."""

from __future__ import annotations

import pytest

from fastmasq.table.rows import YOUNG
from tests.support.tables import (
    CLASS,
    EXTERNAL,
    HOST,
    INSIDE,
    NEW_EXTERNAL,
    OUTSIDE,
    REMOTE,
    UDP,
    allowed,
    external_port,
    make_table,
    opened,
)

HOSTS = 32
PORTS = range(1025, 1281)
REMOTES = 9
SESSIONS = HOSTS * len(PORTS) * REMOTES  # 73 728, 8192 mappings


def every(number: int) -> tuple[int, int, int]:
    """Return (host, port, remote) of a session, by turns from another host."""
    number, host = divmod(number, HOSTS)
    remote, port = divmod(number, len(PORTS))
    return HOST + host, PORTS[port], REMOTE + remote


def fill(table, sessions: range) -> list[int]:
    """Open these sessions; return their rows."""
    rows = []
    for number in sessions:
        host, port, remote = every(number)
        rows.append(opened(table, UDP, port, host=host, remote=remote))
    return rows


@pytest.fixture
def table():
    return make_table(capacity=100_000)


def assert_known(table, numbers: range, rows: list[int]) -> None:
    """Both flows of each session are found, and its remote may send to its mapping."""
    for number, row in zip(numbers, rows, strict=True):
        host, port, remote = every(number)
        external = external_port(table, row)
        assert table.find(UDP, INSIDE, host, port, remote, 80) == (row, 0)
        assert table.find(UDP, OUTSIDE, remote, 80, EXTERNAL, external) == (row, 1)
        assert table.admits(EXTERNAL, CLASS[UDP], external, remote)


def test_a_growing_table_knows_all_that_the_young_one_knew(table) -> None:
    numbers = range(SESSIONS)
    rows = fill(table, numbers)
    assert_known(table, numbers, rows)
    # an endpoint of the time before has its mapping still, and one permit is not two
    last = opened(table, UDP, PORTS[0], host=HOST, remote=REMOTE + REMOTES)
    assert external_port(table, last) == external_port(table, rows[0])
    assert table.counts()["mappings"] == HOSTS * len(PORTS)
    table.close(rows[0])
    assert not table.admits(EXTERNAL, CLASS[UDP], external_port(table, last), REMOTE)


def test_a_table_that_has_grown_empties_to_the_last_entry(table) -> None:
    rows = fill(table, range(SESSIONS))
    for row in rows:
        table.close(row)
    assert (table.counts()["active"], table.counts()["mappings"], table.counts()["hosts"]) == (0, 0, 0)
    again = fill(table, range(1000))
    assert_known(table, range(1000), again)


@pytest.mark.parametrize("asked", [0, 2000, 10_000, YOUNG + 10, SESSIONS - 10])
def test_memory_may_be_made_ready_at_any_time(table, asked: int) -> None:
    """Before it is wanted, while the small indexes do, when they are more than half full, and when it is too late."""
    table.make_ready()
    rows = fill(table, range(asked))
    table.make_ready()
    assert not table.wants_memory
    rows += fill(table, range(asked, SESSIONS))
    assert_known(table, range(SESSIONS), rows)
    table.make_ready()
    assert not table.wants_memory


def test_memory_is_wanted_long_before_the_small_indexes_are_full(table) -> None:
    table.make_ready()
    fill(table, range(2000))
    assert not table.wants_memory
    fill(table, range(2000, 3000))
    assert table.wants_memory


def test_a_small_table_wants_none() -> None:
    table = make_table(capacity=YOUNG)
    table.make_ready()
    rows = fill(table, range(YOUNG))
    assert not table.wants_memory
    assert_known(table, range(YOUNG), rows)
    assert table.open(UDP, HOST, 1, REMOTE, 80, 0) == "table_full"


def test_the_filter_of_a_grown_table_is_changed_as_that_of_a_young_one(table) -> None:
    rows = fill(table, range(SESSIONS))
    table.set_filtering("endpoint-independent")
    table.close(rows[0])
    table.set_filtering("address-dependent")
    assert_known(table, range(1, SESSIONS), rows[1:])
    table.set_external(NEW_EXTERNAL, allowed(range(1, 65536)))
    assert not table.admits(EXTERNAL, CLASS[UDP], external_port(table, rows[1]), REMOTE + REMOTES)
