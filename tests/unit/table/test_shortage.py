"""While something is short, what nobody has answered is the first to go: mappings, sessions, rows of hosts."""

from __future__ import annotations

import pytest

from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import STATES
from tests.support.harness import new_table
from tests.support.tables import EXTERNAL, ICMP, REMOTE, SECOND, TCP, UDP, allowed, is_open

REPLIED = 0x02
ESTABLISHED = STATES.index("established")
FORGED, ORDINARY = 0x0A000000, 0x0B000000
NET = 256
PATIENCE = 5 * SECOND  # and the second in which it is noticed


def short_of(ports=range(1024, 65536), prefix: int = 24, **settings) -> MasqTable:
    table = new_table(prefix=prefix, **{"capacity": 100_000, "ports_per_host": 65535, **settings})
    table.set_external(EXTERNAL, allowed(ports))
    return table


def take(table: MasqTable, count: int, protocol: int = UDP, now: int = 0) -> list[int]:
    """Open as many sessions, each from a host of another network."""
    rows = [table.open(protocol, FORGED + number * NET + 1, 4000, REMOTE, 80, now) for number in range(count)]
    assert all(isinstance(row, int) for row in rows)
    return rows


def answer(table: MasqTable, row: int, now: int = 0) -> None:
    if table.sessions[row]["port_class"] == 0:
        table.retime(row, ESTABLISHED, now)
    table.sessions["flags"][row] |= REPLIED


@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP])
def test_ports_that_are_short(protocol: int) -> None:
    table = short_of(ports=range(61000, 61100))
    rows = take(table, 68, protocol)
    for row in rows[:10]:
        answer(table, row)
    table.expire(4 * SECOND)
    assert all(is_open(table, row) for row in rows)
    table.expire(PATIENCE)
    assert [row for row in rows if is_open(table, row)] == rows[:10]


def test_while_a_third_is_left_nothing_goes() -> None:
    table = short_of(ports=range(61000, 61100))
    rows = take(table, 67)
    table.expire(200 * SECOND)
    assert all(is_open(table, row) for row in rows)


def test_sessions_that_are_short() -> None:
    table = short_of(capacity=100)
    rows = take(table, 68)
    answer(table, rows[7])
    table.expire(PATIENCE)
    assert [row for row in rows if is_open(table, row)] == [rows[7]]


def test_rows_of_hosts_that_are_short() -> None:
    table = short_of()
    for number in range(43_691):
        assert isinstance(table.open(TCP if number % 2 else UDP, FORGED + number, 5353, REMOTE, 80, 0), int)
    table.expire(PATIENCE)
    assert table.counts()["hosts"] == 43_691
    assert isinstance(table.open(TCP, ORDINARY, 5353, REMOTE, 80, PATIENCE), int)
    table.expire(PATIENCE + SECOND)
    assert table.counts()["hosts"] == 1


def test_who_goes_on_asking_is_left() -> None:
    table = short_of(capacity=100)
    rows = take(table, 68)
    table.refresh(rows[3], 3 * SECOND)
    table.expire(PATIENCE)
    assert [row for row in rows if is_open(table, row)] == [rows[3]]


def test_without_shares_nothing_goes() -> None:
    table = short_of(capacity=100, prefix=0)
    rows = take(table, 100)
    table.expire(200 * SECOND)
    assert all(is_open(table, row) for row in rows)


def test_a_round_is_made_a_little_at_a_time() -> None:
    table = short_of(capacity=100)
    rows = take(table, 80)
    for step in range(8):
        table.expire(PATIENCE, budget=10)
        assert sum(is_open(table, row) for row in rows) == 70 - 10 * step


def test_forged_sources_of_all_networks_and_two_hundred_ordinary_hosts() -> None:
    """Each forged packet is another network's; 50 connections each, 10 new ones a second: none is refused."""
    table = short_of(capacity=200_000, rate_per_host=2000)
    ordinary = [ORDINARY + number for number in range(1, 201)]
    held: dict[int, list[int]] = {host: [] for host in ordinary}
    forged = 0
    for second in range(30):
        now = second * SECOND
        for number in range(5000):
            source = FORGED + (second * 5000 + number) % 65_536 * NET + 1
            forged += isinstance(table.open(UDP, source, 1024 + second, REMOTE, 80, now), int)
        for host in ordinary:
            for number in range(10):
                row = table.open(TCP if number % 2 else UDP, host, 2000 + second * 10 + number, REMOTE, 443, now)
                assert isinstance(row, int), (row, second)
                answer(table, row, now)
                held[host].append(row)
                if len(held[host]) > 50:
                    table.close(held[host].pop(0))
        table.expire(now)
    assert forged > 70_000
