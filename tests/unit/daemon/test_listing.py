"""Sessions filtered and spelled out."""

from __future__ import annotations

import pytest

from fastmasq.daemon import listing
from fastmasq.errors import ConfigurationError
from fastmasq.table.masq import MasqTable
from tests.support.tables import ECHO, ICMP, SECOND, TCP, UDP, make_table, opened


@pytest.fixture
def table() -> MasqTable:
    """Two hosts: 10.0.0.2 with a TCP and a UDP session, 10.0.0.3 with a ping; and one session that has been closed."""
    table = make_table()
    opened(table, TCP, 4000)
    opened(table, UDP, 4000, remote=0xC7000002, remote_port=53)
    opened(table, ICMP, 77, host=0x0A000003, remote_port=ECHO)
    table.close(opened(table, TCP, 5000))
    return table


def remotes(table: MasqTable, **filters: str | None) -> list[str]:
    chosen = {"host": None, "protocol": None, "state": None, **filters}
    rows = listing.select(table.sessions, **chosen)
    return sorted(listing.describe(row, table, 0)["protocol"] for row in rows)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["icmp", "tcp", "udp"]),
        ({"protocol": "udp"}, ["udp"]),
        ({"state": "syn-sent"}, ["tcp"]),
        ({"state": "active"}, ["icmp", "udp"]),
        ({"host": "10.0.0.2"}, ["tcp", "udp"]),
        ({"host": "199.0.0.2"}, ["udp"]),
        ({"host": "200.200.200.200"}, ["icmp", "tcp", "udp"]),
        ({"host": "10.0.0.2", "protocol": "icmp"}, []),
        ({"host": "10.9.9.9"}, []),
    ],
)
def test_filters(table: MasqTable, filters: dict[str, str], found: list[str]) -> None:
    assert remotes(table, **filters) == found


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"protocol": "sctp"}, "'sctp' is not a protocol; there are: tcp, udp, icmp"),
        ({"state": "open"}, "'open' is not a state; there are: active, closing"),
        ({"state": "free"}, "'free' is not a state"),
        ({"host": "localhost"}, "'localhost' is not an IPv4 address"),
    ],
)
def test_filters_that_cannot_match_are_refused(table: MasqTable, filters: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        remotes(table, **filters)
    assert words in str(refused.value)


def test_a_session_spelled_out(table: MasqTable) -> None:
    [row] = listing.select(table.sessions, None, "udp", None)
    told = listing.describe(row, table, 10 * SECOND)
    assert (told["inside"], told["external"], told["remote"]) == (
        "10.0.0.2:4000",
        "200.200.200.200:4000",
        "199.0.0.2:53",
    )
    assert (told["protocol"], told["state"], told["packets_out"], told["packets_in"]) == ("udp", "active", 0, 0)
    assert 9.5 <= told["idle_s"] <= 10.5
    assert 289.5 <= told["expires_s"] <= 290.5


def test_the_remote_of_a_ping_has_no_port(table: MasqTable) -> None:
    [row] = listing.select(table.sessions, None, "icmp", None)
    told = listing.describe(row, table, 0)
    assert (told["inside"], told["external"], told["remote"]) == ("10.0.0.3:77", "200.200.200.200:77", "199.0.0.1")


def test_a_session_that_is_overdue_has_no_time_left(table: MasqTable) -> None:
    [row] = listing.select(table.sessions, None, "icmp", None)
    assert listing.describe(row, table, 1000 * SECOND)["expires_s"] == 0
