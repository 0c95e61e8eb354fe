"""Shares that depend on what is left: who takes all he can leaves as much as he has, host or network."""

from __future__ import annotations

import pytest

from fastmasq.table.limits import Limits
from fastmasq.table.masq import MasqTable
from tests.support.harness import new_table
from tests.support.tables import EXTERNAL, ICMP, REMOTE, TCP, UDP, allowed

GREEDY, ORDINARY, NET = 0x0A000000, 0x0A010000, 256
MS = 1_000_000


def shared(ports=range(1024, 65536), prefix: int = 24, **settings) -> MasqTable:
    table = new_table(prefix=prefix, **{"capacity": 300_000, "ports_per_host": 65535, **settings})
    table.set_external(EXTERNAL, allowed(ports))
    return table


def take(table: MasqTable, protocol: int, hosts, count: int) -> tuple[int, set[str]]:
    """Open up to `count` sessions, each of another port, from these hosts in turn; return how many, and refusals."""
    opened, refused = 0, set()
    for number in range(count):
        row = table.open(protocol, hosts[number % len(hosts)], 1024 + number // len(hosts), REMOTE, 80, 0)
        if isinstance(row, str):
            refused.add(row)
        else:
            opened += 1
    return opened, refused


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_rfc6888_req4_a_host_holds_at_most_as_many_ports_as_are_left(protocol: int) -> None:
    table = shared(prefix=32)
    assert take(table, protocol, [GREEDY + 1], 64_000) == (64_512 // 2, {"host_port_limit"})
    assert take(table, protocol, [GREEDY + 2], 64_000)[0] == 64_512 // 4
    assert take(table, protocol, [GREEDY + 3], 64_000)[0] == 64_512 // 8
    assert isinstance(table.open(protocol, ORDINARY + 1, 7, REMOTE, 80, 0), int)


def test_a_network_is_one_holder() -> None:
    """One host with all the addresses of its /24."""
    table = shared()
    hosts = [GREEDY + number for number in range(1, 255)]
    assert take(table, UDP, hosts, 70_000) == (64_512 // 2, {"network_limit"})
    assert take(table, UDP, [ORDINARY + 1], 64_000) == (64_512 // 4, {"host_port_limit"})


def test_identifiers_of_pings_are_shared_as_well() -> None:
    table = shared()
    assert take(table, ICMP, [GREEDY + 1], 60_000) == (64_512 // 2, {"host_port_limit"})


def test_low_ports_are_not_what_is_left_for_others() -> None:
    """They are only for who has a low port itself: the share ends where half of the others are taken."""
    table = shared(ports=range(1, 4096), prefix=32)
    assert take(table, UDP, [GREEDY + 1], 5000)[0] == (4096 - 1024) // 2
    low = [table.open(UDP, GREEDY + 1, port, REMOTE, 80, 0) for port in range(1, 10)]
    assert all(isinstance(row, int) for row in low)


def test_ports_held_down_are_left() -> None:
    table = shared(ports=range(61000, 61100), prefix=32)
    rows = [table.open(UDP, GREEDY + 1, 4000 + number, REMOTE, 80, 0) for number in range(50)]
    assert table.open(UDP, GREEDY + 1, 5000, REMOTE, 80, 0) == "host_port_limit"
    for row in rows[:10]:
        table.close(row)
    assert isinstance(table.open(UDP, GREEDY + 1, 5000, REMOTE, 80, 0), int)


def test_a_host_holds_at_most_as_many_sessions_as_are_left() -> None:
    table = shared(capacity=1000)
    opened = [table.open(UDP, GREEDY + 1, 5000, REMOTE + number, 80, 0) for number in range(600)]
    assert opened[499:501] == [499, "host_session_limit"]
    assert isinstance(table.open(UDP, ORDINARY + 1, 5000, REMOTE, 80, 0), int)
    assert table.open(UDP, GREEDY + 2, 5000, REMOTE, 80, 0) == "network_limit"


def test_rows_of_hosts_are_shared_by_networks() -> None:
    """A forger of all sources of a /16 leaves as many rows for a newcomer's network as each of its own has."""
    table = shared(ports=range(1, 65536))
    refused = 0
    for number in range(65_536 + 4096):
        refused += (
            table.open(UDP, GREEDY + number % 256 * 256 + number // 256, 53, REMOTE, 80, number) == "network_limit"
        )
    assert refused
    fresh = [table.open(UDP, 0x0B000000 + host, 53, REMOTE, 80, 0) for host in range(100)]
    assert all(isinstance(row, int) for row in fresh)


def test_without_a_prefix_nobody_shares() -> None:
    table = shared(prefix=0, capacity=100)
    assert all(isinstance(table.open(UDP, GREEDY + 1, 5000, REMOTE + number, 80, 0), int) for number in range(100))
    assert table.open(UDP, GREEDY + 1, 5000, REMOTE - 1, 80, 0) == "table_full"


def test_another_prefix_counts_what_is_held_anew() -> None:
    table = shared(ports=range(61000, 61100), prefix=32)
    assert take(table, UDP, [GREEDY + 1, GREEDY + 2, GREEDY + 3], 120)[0] == 75
    table.set_limits(Limits(1000, 1000, prefix=24))
    assert table.open(UDP, GREEDY + 4, 77, REMOTE, 80, 0) == "network_limit"
    assert isinstance(table.open(UDP, ORDINARY + 4, 77, REMOTE, 80, 0), int)
    table.set_limits(Limits(1000, 1000, prefix=32))
    assert isinstance(table.open(UDP, GREEDY + 4, 77, REMOTE, 80, 0), int)


def test_a_greedy_network_and_two_hundred_ordinary_hosts() -> None:
    """The bar: 50 connections each, 10 new ones a second, and none is refused while a /24 takes whatever it gets."""
    table = shared(rate_per_host=2000)
    ordinary = [ORDINARY + number for number in range(1, 201)]
    held = {host: [] for host in ordinary}
    greedy_port, taken, refused = 0, 0, set()
    for second in range(12):
        now = second * 1000 * MS
        for _ in range(9000):
            greedy_port += 1
            row = table.open(TCP, GREEDY + 1 + greedy_port % 250, 1024 + greedy_port // 250, REMOTE, 80, now)
            taken += isinstance(row, int)
            refused |= {row} if isinstance(row, str) else set()
        for host in ordinary:
            for number in range(10):
                row = table.open(TCP, host, 2000 + second * 10 + number, REMOTE, 443, now)
                assert isinstance(row, int), row
                held[host].append(row)
                if len(held[host]) > 50:
                    table.close(held[host].pop(0))
    assert refused == {"network_limit"}
    assert taken > 20_000
