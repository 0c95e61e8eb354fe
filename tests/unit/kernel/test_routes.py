"""Flattening routing tables: the intervals say for every address what a slow longest-prefix match says."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmasq.kernel.routes import (
    BROADCAST,
    LAST_ADDRESS,
    LOCAL,
    NONE,
    PROHIBIT,
    THROW,
    UNICAST,
    UNREACHABLE,
    KernelRoute,
    Route,
    flatten,
)
from fastmasq.kernel.rtnetlink import TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN
from tests.support.harness import address

NOWHERE = (NONE, 0, 0, 0, 0)


def route(prefix: str, table: int = TABLE_MAIN, metric: int = 0, kind: str = UNICAST, **rest: int) -> KernelRoute:
    network = IPv4Network(prefix)
    return KernelRoute(table, int(network.network_address), network.prefixlen, metric, kind, **rest)


def covers(route: KernelRoute, wanted: int) -> bool:
    return route.length == 0 or wanted >> (32 - route.length) == route.destination >> (32 - route.length)


def naive_lookup(routes: Sequence[KernelRoute], wanted: int) -> tuple:
    """Do what the kernel does: local and main together, then default; a throw means: not in this table."""
    for tables in ((TABLE_LOCAL, TABLE_MAIN), (TABLE_DEFAULT,)):
        candidates = [each for each in routes if each.table in tables and covers(each, wanted)]
        if candidates:
            best = min(candidates, key=lambda each: (-each.length, -each.table, each.metric))
            if best.kind != THROW:
                return best[4:-1]
    return NOWHERE


def lookup(intervals: Sequence[Route], wanted: int) -> tuple:
    return next(tuple(each[2:]) for each in intervals if each.first <= wanted <= each.last)


@st.composite
def kernel_routes(draw: st.DrawFn) -> KernelRoute:
    length = draw(st.integers(0, 32))
    crowded = draw(st.sampled_from((0, 0x0A000000, 0x0A000100, 0xC0A80000, 0xFFFFFFFF)))
    destination = crowded ^ draw(st.integers(0, 7)) << draw(st.integers(0, 29))
    destination = destination & LAST_ADDRESS >> (32 - length) << (32 - length)
    return KernelRoute(
        table=draw(st.sampled_from((TABLE_LOCAL, TABLE_MAIN, TABLE_MAIN, TABLE_DEFAULT))),
        destination=destination & LAST_ADDRESS,
        length=length,
        metric=draw(st.integers(0, 3)),
        kind=draw(st.sampled_from((UNICAST, UNICAST, LOCAL, UNREACHABLE, PROHIBIT, THROW))),
        ifindex=draw(st.integers(1, 3)),
        gateway=draw(st.integers(0, 3)),
    )


@given(st.lists(kernel_routes(), max_size=30), st.lists(st.integers(0, LAST_ADDRESS), max_size=10))
def test_flattened_equals_longest_prefix_match(routes: list[KernelRoute], elsewhere: list[int]) -> None:
    intervals = flatten(routes)
    assert intervals[0].first == 0 and intervals[-1].last == LAST_ADDRESS
    for before, after in itertools.pairwise(intervals):
        assert after.first == before.last + 1
        assert after[2:] != before[2:], "neighbours with the same outcome are merged"
    edges = {edge for each in routes for edge in (each.destination, each.destination | LAST_ADDRESS >> each.length)}
    for edge in [*edges, *elsewhere]:
        for wanted in {max(edge - 1, 0), edge, min(edge + 1, LAST_ADDRESS)}:
            assert lookup(intervals, wanted) == naive_lookup(routes, wanted), IPv4Address(wanted)


def test_no_routes_at_all() -> None:
    assert flatten([]) == (Route(0, LAST_ADDRESS, NONE),)


def test_lowest_metric_wins_then_the_kernel_order() -> None:
    routes = [
        route("10.0.0.0/8", metric=20, ifindex=1),
        route("10.0.0.0/8", metric=10, ifindex=2),
        route("10.0.0.0/8", metric=10, ifindex=3),
    ]
    assert lookup(flatten(routes), address("10.1.2.3")) == (UNICAST, 2, 0, 0, 0)


def test_longer_prefix_wins_over_lower_metric() -> None:
    routes = [route("0.0.0.0/0", metric=0, ifindex=1), route("10.0.0.0/8", metric=500, ifindex=2)]
    intervals = flatten(routes)
    assert [(each.first, each.ifindex) for each in intervals] == [
        (0, 1),
        (address("10.0.0.0"), 2),
        (address("11.0.0.0"), 1),
    ]


def test_local_wins_over_main_for_the_same_prefix() -> None:
    routes = [
        route("10.0.0.1/32", ifindex=2),
        route("10.0.0.1/32", TABLE_LOCAL, metric=9, kind=LOCAL, ifindex=1),
    ]
    assert lookup(flatten(routes), address("10.0.0.1"))[0] == LOCAL


def test_table_default_only_fills_holes() -> None:
    routes = [route("0.0.0.0/0", TABLE_DEFAULT, ifindex=9), route("10.0.0.0/8", ifindex=1)]
    intervals = flatten(routes)
    assert lookup(intervals, address("10.255.255.255"))[1] == 1
    assert lookup(intervals, address("9.255.255.255"))[1] == 9
    assert lookup(intervals, address("11.0.0.0"))[1] == 9


def test_of_several_next_hops_the_one_on_our_links_counts() -> None:
    """As with `ip route add default nexthop dev eth2 nexthop dev eth1` where eth1 is our outside link."""
    several = route("0.0.0.0/0", ifindex=4, gateway=9, hops=((4, 9), (3, 8), (2, 7)))
    routes = [several, route("10.0.0.0/8", ifindex=5)]
    for ours, expected in (({2}, (2, 7)), ({2, 3}, (3, 8)), ({4, 2}, (4, 9)), ({5}, (4, 9)), (set(), (4, 9))):
        assert lookup(flatten(routes, ours), address("199.0.0.1"))[1:3] == expected


@pytest.mark.timeout(60)  # with the square of their number it would take much longer
def test_rfc1812_section_4_2_3_1_a_networks_own_address_is_a_broadcast() -> None:
    routes = [
        route("10.0.0.0/8", ifindex=2),
        route("10.1.0.0/16", ifindex=3),
        route("10.2.0.0/31", ifindex=4),
        route("10.3.0.0/32", TABLE_LOCAL, kind=LOCAL, ifindex=5),
    ]
    links = ["10.0.0.1/8", "10.1.0.1/16", "10.3.0.0/24", "200.200.200.200/24"]
    networks = [(address(each.partition("/")[0]), int(each.partition("/")[2])) for each in links]
    intervals = flatten(routes, (), networks)
    assert [lookup(intervals, address(each))[0] for each in ("10.0.0.0", "10.1.0.0")] == [BROADCAST] * 2
    assert lookup(intervals, address("200.200.200.0"))[0] == BROADCAST
    assert lookup(intervals, address("10.3.0.0"))[0] == LOCAL
    assert lookup(intervals, address("10.1.0.1"))[:2] == (UNICAST, 3)


def test_rfc3021_section_2_2_a_network_of_two_addresses_has_no_address_of_its_own() -> None:
    routes = [route("10.0.0.0/8", ifindex=1), route("10.0.0.0/31", ifindex=2), route("10.9.0.0/32", ifindex=3)]
    intervals = flatten(routes, (), [(address("10.0.0.1"), 8), (address("10.0.0.1"), 31), (address("10.9.0.0"), 32)])
    assert [lookup(intervals, address(each))[1] for each in ("10.0.0.0", "10.0.0.1", "10.9.0.0")] == [2, 2, 3]


def test_ten_thousand_routes_flatten() -> None:
    chance = random.Random(1)
    routes = [route("0.0.0.0/0", ifindex=1, gateway=1)]
    for _ in range(10_000):
        length = chance.randint(12, 32)
        destination = chance.getrandbits(32) >> (32 - length) << (32 - length)
        routes.append(KernelRoute(TABLE_MAIN, destination, length, 0, UNICAST, chance.randint(1, 9)))
    assert len(flatten(routes)) > 10_000
