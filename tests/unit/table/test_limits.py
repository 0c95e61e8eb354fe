"""Capacity and fairness: a full table touches nobody, and one host can take neither the table nor the ports."""

from __future__ import annotations

import pytest

from tests.support.tables import (
    HOST,
    ICMP,
    OTHER_HOST,
    PROTOCOLS,
    REMOTE,
    SECOND,
    TCP,
    UDP,
    is_open,
    make_table,
    opened,
)

HOSTS = 65536  # rows for hosts


def fill(table, host: int, protocol: int = UDP, now_ns: int = 0, most: int = 10_000) -> tuple[list[int], str]:
    """Open sessions from ever new ports of a host until one is refused; return their rows and the refusal."""
    rows = []
    for port in range(1024, 1024 + most):
        row = table.open(protocol, host, port, REMOTE, 80, now_ns)
        if isinstance(row, str):
            return rows, row
        rows.append(row)
    return rows, "none"


# --- the table ---------------------------------------------------------------------------------------------------


def test_rfc6888_req11_a_full_table_refuses_the_new_and_touches_no_old_session() -> None:
    table = make_table(capacity=100)
    rows, refusal = fill(table, HOST)
    assert (len(rows), refusal) == (100, "table_full")
    before = table.sessions.copy()
    counts = table.counts()
    for host in (HOST, OTHER_HOST):
        for protocol in PROTOCOLS:
            assert table.open(protocol, host, 999, REMOTE, 80, SECOND) == "table_full"
    assert table.counts() == counts
    assert (table.sessions == before).all()
    table.close(rows[40])
    opened(table, TCP, 999, host=OTHER_HOST)


def test_more_hosts_than_rows_for_them() -> None:
    table = make_table(capacity=HOSTS + 10)
    for number in range(HOSTS):
        opened(table, UDP if number < 40_000 else TCP, 1024 + number % 40_000, host=0x0A000000 + number)
    assert table.open(UDP, 0x0B000000, 4000, REMOTE, 80, 0) == "host_table_full"
    opened(table, UDP, 65000, host=0x0A000000)
    assert table.counts()["hosts"] == HOSTS
    table.close(0)
    table.close(table.counts()["active"])
    opened(table, UDP, 4000, host=0x0B000000)


# --- one host's share --------------------------------------------------------------------------------------------


def test_rfc5508_req8_sessions_of_one_host() -> None:
    table = make_table(sessions_per_host=10)
    rows, refusal = fill(table, HOST)
    assert (len(rows), refusal) == (10, "host_session_limit")
    assert table.open(ICMP, HOST, 1, REMOTE, 8, 0) == "host_session_limit"
    assert len(fill(table, OTHER_HOST)[0]) == 10
    table.close(rows[3])
    opened(table, TCP, 999)
    assert table.open(TCP, HOST, 998, REMOTE, 80, 0) == "host_session_limit"


def test_a_limit_of_sessions_of_one() -> None:
    table = make_table(sessions_per_host=1)
    opened(table, UDP, 4000)
    assert table.open(UDP, HOST, 4001, REMOTE, 80, 0) == "host_session_limit"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ports_of_one_host_are_limited_class_by_class(protocol: int) -> None:
    table = make_table(ports_per_host=10)
    rows, refusal = fill(table, HOST, protocol)
    assert (len(rows), refusal) == (10, "host_port_limit")
    assert len(fill(table, OTHER_HOST, protocol)[0]) == 10
    for other in set(PROTOCOLS) - {protocol}:
        assert len(fill(table, HOST, other)[0]) == 10
    table.close(rows[9])
    opened(table, protocol, 65000)


def test_a_host_at_its_limit_of_ports_goes_on_using_those_it_has() -> None:
    table = make_table(ports_per_host=2)
    fill(table, HOST)
    for number in range(50):
        opened(table, UDP, 1024 + number % 2, remote=REMOTE + 1 + number)
    assert table.counts()["mappings"] == 2


def test_a_refused_host_leaves_no_row() -> None:
    table = make_table(ports_per_host=0)
    assert table.open(UDP, HOST, 4000, REMOTE, 80, 0) == "host_port_limit"
    assert table.counts()["hosts"] == 0


def test_rows_of_hosts_are_used_again() -> None:
    table = make_table()
    for number in range(3 * HOSTS):
        table.close(opened(table, UDP, 4000, host=0x0A000000 + number))
    assert table.counts()["hosts"] == 0


# --- how fast one host may open sessions -------------------------------------------------------------------------


def test_a_burst_of_two_seconds_and_then_the_rate() -> None:
    table = make_table(capacity=4096, rate_per_host=100)
    assert len(fill(table, HOST)[0]) == 200
    assert table.open(UDP, HOST, 65000, REMOTE, 80, 9 * SECOND // 1000) == "host_rate_limit"
    opened(table, UDP, 65000, now_ns=SECOND // 100)
    assert table.open(UDP, HOST, 65001, REMOTE, 80, SECOND // 100) == "host_rate_limit"
    opened(table, UDP, 1024, host=OTHER_HOST)


def test_the_rate_over_a_long_time() -> None:
    """A host that tries a thousand times a second gets its rate, neither more nor less, in any second."""
    table = make_table(capacity=4096, rate_per_host=50)
    port = 1024
    granted = []
    for millisecond in range(20_000):
        row = table.open(UDP, HOST, port, REMOTE, 80, millisecond * SECOND // 1000)
        if not isinstance(row, str):
            granted.append(millisecond)
            port += 1
    assert 20 * 50 + 100 - 2 <= len(granted) <= 20 * 50 + 100
    for start in range(3000, 19_000, 500):
        assert 49 <= sum(start <= millisecond < start + 1000 for millisecond in granted) <= 51


def test_tokens_do_not_pile_up_beyond_the_burst() -> None:
    table = make_table(capacity=4096, rate_per_host=10)
    keep = opened(table, TCP, 4000)
    table.retime(keep, 3, 0)
    assert len(fill(table, HOST, now_ns=3600 * SECOND)[0]) == 20


@pytest.mark.parametrize("rate", [1, 2_000_000, 2_147_484, 3_000_000, 10_000_000])
def test_any_rate_that_the_settings_admit_lets_a_first_session_through(rate: int) -> None:
    table = make_table(rate_per_host=rate)
    for number in range(2):
        opened(table, UDP, 4000 + number)
    assert isinstance(table.open(UDP, HOST, 5000, REMOTE, 80, 3 * SECOND), int)


def test_no_rate_is_no_limit() -> None:
    table = make_table(capacity=4096, rate_per_host=0)
    assert len(fill(table, HOST, most=4000)[0]) == 4000


def test_known_sessions_do_not_need_tokens() -> None:
    table = make_table(rate_per_host=1)
    row = opened(table, UDP, 4000)
    opened(table, UDP, 4001)
    assert table.open(UDP, HOST, 4002, REMOTE, 80, 0) == "host_rate_limit"
    table.refresh(row, SECOND)
    assert is_open(table, row)
