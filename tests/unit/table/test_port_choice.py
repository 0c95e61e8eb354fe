"""External ports: kept if free, else same class and parity, unpredictable; one owner; the host may take one away."""

from __future__ import annotations

import itertools
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tables import (
    CLASS,
    ECHO,
    EXTERNAL,
    HOST,
    ICMP,
    OTHER_HOST,
    PROTOCOLS,
    REMOTE,
    SECOND,
    TCP,
    UDP,
    allowed,
    external_port,
    is_open,
    make_table,
    opened,
)


def ports_for(table, protocol: int, wanted: int, count: int) -> list[int]:
    """Open `count` sessions of different hosts that all would like the same port; return what they got."""
    return [external_port(table, opened(table, protocol, wanted, host=HOST + number)) for number in range(count)]


# --- the same port first -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("port", [1, 500, 1023, 1024, 4000, 65535])
def test_the_port_is_kept_if_it_is_free(protocol: int, port: int) -> None:
    """RFC 4787 section 4.2.1 and RFC 5382 section 7.1: preservation without overloading."""
    table = make_table()
    assert external_port(table, opened(table, protocol, port)) == port


def test_the_classes_do_not_share_ports() -> None:
    table = make_table()
    assert [external_port(table, opened(table, protocol, 4000)) for protocol in PROTOCOLS] == [4000, 4000, 4000]


def test_clients_keep_their_ports_whatever_system_they_have() -> None:
    """Two hundred hosts of Linux, whose connect(2) prefers even ports, and 200 of Windows, with 50 connections each."""
    random = Random(1)
    ports = np.setdiff1d(np.arange(1024, 65536), np.arange(20480, 24576))
    table = make_table(ports=ports, capacity=32768)
    wanted = [
        (HOST + number, port)
        for number in range(400)
        for port in random.sample(range(32768, 61000, 2) if number % 2 else range(49152, 65536), 50)
    ]
    random.shuffle(wanted)
    got = {end: external_port(table, opened(table, TCP, end[1], host=end[0])) for end in wanted}
    rivals = Counter(port for _, port in wanted)
    assert sum(count == 1 for count in rivals.values()) > 5000
    assert all(got[end] == end[1] for end in wanted if rivals[end[1]] == 1)
    assert sum(got[end] == end[1] for end in wanted) == len(rivals), "and of several one"
    displaced = {end: port for end, port in got.items() if port != end[1]}
    assert len(displaced) > 4000
    assert all(port < 32768 and port % 2 == end[1] % 2 for end, port in displaced.items())


def test_port_0_is_never_given() -> None:
    """Not even to somebody who sends from it."""
    table = make_table(ports=range(65536))
    for protocol in PROTOCOLS:
        assert 0 not in ports_for(table, protocol, 0, 50)


# --- class and parity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("port", [4000, 4001, 65534, 1024])
def test_rfc4787_req4_parity_is_kept(protocol: int, port: int) -> None:
    got = ports_for(make_table(), protocol, port, 200)
    assert all(other % 2 == port % 2 for other in got)
    assert all(other >= 1024 for other in got)


@pytest.mark.parametrize("port", [500, 501, 1023])
def test_rfc4787_req3a_low_ports_stay_low(port: int) -> None:
    got = ports_for(make_table(), UDP, port, 200)
    assert all(1 <= other < 1024 and other % 2 == port % 2 for other in got)


def test_rfc4787_req3a_high_ports_never_become_low() -> None:
    """Ports under 1024 are for those who asked for one, even if nothing else is left."""
    table = make_table(ports=[*range(1, 1024), 4000, 4001])
    assert sorted(ports_for(table, UDP, 4000, 2)) == [4000, 4001]
    assert table.open(UDP, 0x0A0000FF, 4000, REMOTE, 80, 0) == "ports_exhausted"


def test_parity_gives_way_before_the_session_does() -> None:
    table = make_table(ports=[4000, 4002, 4001, 4003])
    got = ports_for(table, TCP, 4000, 4)
    assert got[0] == 4000
    assert got[1] == 4002
    assert sorted(got[2:]) == [4001, 4003]


def test_ports_of_clients_are_given_only_when_no_other_is_left() -> None:
    """A parity that is kept comes first: there is no other sign of a pair (RFC 4787 REQ-4)."""
    table = make_table(ports=[5000, 5001, 40000, 40001, 50000])
    got = ports_for(table, TCP, 40000, 5)
    assert got[:3] == [40000, 5000, 50000]
    assert got[3:] == [5001, 40001]


def test_low_ports_give_way_to_the_other_parity_and_then_to_high_ones() -> None:
    table = make_table(ports=[600, 602, 601, 5000, 5001])
    got = ports_for(table, UDP, 600, 5)
    assert (got[0], got[1], got[2]) == (600, 602, 601)
    assert (got[3], got[4]) == (5000, 5001)


def test_identifiers_of_pings_have_neither_class_nor_parity() -> None:
    got = ports_for(make_table(capacity=4096), ICMP, 4000, 400)[1:]
    assert {other % 2 for other in got} == {0, 1}


# --- unpredictable -----------------------------------------------------------------------------------------------


def test_rfc6056_ports_are_spread_over_the_range() -> None:
    """2000 choices, none of them kept: all sixteenths of the range get about their share, and no order is visible."""
    got = ports_for(make_table(capacity=4096), UDP, 4000, 2001)[1:]
    sixteenths = np.bincount([(port - 1024) * 16 // (32768 - 1024) for port in got], minlength=16)
    assert sixteenths.min() > 70 and sixteenths.max() < 190, sixteenths.tolist()
    rising = sum(after > before for before, after in itertools.pairwise(got))
    assert 850 < rising < 1150
    gaps = {abs(after - before) for before, after in itertools.pairwise(got)}
    assert len(gaps) > 1000
    assert {port % 64 for port in got} == set(range(0, 64, 2))


def test_rfc6056_the_secret_decides() -> None:
    one, other = (
        ports_for(make_table(secret=secret), UDP, 4000, 50)[1:] for secret in (bytes(16), b"\x01" + bytes(15))
    )
    assert sum(mine == theirs for mine, theirs in zip(one, other, strict=True)) < 3


# --- by arithmetic -----------------------------------------------------------------------------------------------


def changed_ports(table, ends: list[tuple[int, int, int]]) -> dict[tuple[int, int, int], int]:
    """Open a session of each (protocol, host, port); return the external ports of those that could not keep theirs."""
    got = {end: external_port(table, opened(table, end[0], end[2], host=end[1])) for end in ends}
    return {end: port for end, port in got.items() if port != end[2]}


def rivals(hosts: int, protocol: int = UDP, port: int = 40000) -> list[tuple[int, int, int]]:
    return [(protocol, HOST + number, port) for number in range(hosts)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("port", [600, 40000])
def test_who_comes_back_when_all_is_forgotten_has_the_port_it_had(protocol: int, port: int) -> None:
    """Another table of the same secret: after a start without the state of before."""
    ends = rivals(20, protocol, port)
    before, after = (changed_ports(make_table(), ends) for _ in range(2))
    assert before == after and len(before) == 19
    assert changed_ports(make_table(secret=bytes(16)), ends) != before


def test_nearly_all_have_the_port_they_had_in_whatever_order_they_come_back() -> None:
    """What differs had met another, who came first this time: 3000 are given one of 13 824."""
    ends = rivals(3001)
    usual = np.setdiff1d(np.arange(1024, 65536), np.arange(20480, 24576))
    before = changed_ports(make_table(usual, capacity=4096), ends)
    Random(1).shuffle(ends)
    ends.sort(key=lambda end: end[1] != HOST)  # who keeps the port that all want
    after = changed_ports(make_table(usual, capacity=4096), ends)
    assert before.keys() == after.keys()
    same = sum(before[end] == after[end] for end in before)
    assert same > 0.8 * len(before), same


def test_a_session_that_ended_and_comes_back_has_its_port_again_also_while_it_is_held_down() -> None:
    table = make_table()
    opened(table, UDP, 40000, host=OTHER_HOST)
    ports = []
    for now in (0, SECOND, 200 * SECOND):
        table.expire(now)
        row = opened(table, UDP, 40000, now_ns=now)
        ports.append(external_port(table, row))
        table.close(row)
    assert len(set(ports)) == 1 and ports[0] != 40000


def test_an_endpoint_that_comes_back_at_once_has_its_port_again_though_it_was_no_first_choice() -> None:
    table = make_table((1024, 2000, 40001))
    for _ in range(2):
        row = opened(table, UDP, 1025)
        assert external_port(table, row) == 40001
        table.close(row)
    assert external_port(table, opened(table, UDP, 1027)) in (1024, 2000), "another endpoint's"
    assert external_port(table, opened(table, UDP, 1025, host=OTHER_HOST)) in (1024, 2000), "another host's"


def test_the_port_depends_on_host_port_and_class() -> None:
    ends = [(protocol, host, port) for protocol in (TCP, UDP) for host in (HOST, HOST + 1) for port in (40000, 40002)]
    table = make_table()
    for protocol, port in itertools.product((TCP, UDP), (40000, 40002)):
        opened(table, protocol, port, host=OTHER_HOST + 5)
    assert len(set(changed_ports(table, ends).values())) == len(ends)


# --- no overloading, exhaustion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wanted", [4000, 61000, 61001])
def test_rfc4787_req3_every_port_once_and_then_none(protocol: int, wanted: int) -> None:
    pool = range(61000, 61096)
    table = make_table(ports=pool)
    assert sorted(ports_for(table, protocol, wanted, len(pool))) == list(pool)
    assert table.open(protocol, 0x0A00FFFF, wanted, REMOTE, 80, 0) == "ports_exhausted"
    assert table.counts()["active"] == len(pool)


def test_rfc4787_req3_the_same_port_towards_another_remote_is_no_excuse() -> None:
    """One external endpoint never belongs to two inside ones, whoever the remotes are."""
    table = make_table(ports=[61000])
    opened(table, UDP, 4000)
    assert table.open(UDP, OTHER_HOST, 4000, REMOTE + 1, 53, 0) == "ports_exhausted"


@pytest.mark.parametrize("sequential", [False, True])
def test_a_port_given_back_is_found_among_all_others_taken(sequential: bool) -> None:
    table = make_table(ports=range(61000, 61096), sequential=sequential)
    rows = [opened(table, TCP, 4000, host=HOST + number) for number in range(96)]
    for row in (rows[0], rows[50], rows[95]):
        port = external_port(table, row)
        table.close(row)
        assert external_port(table, opened(table, TCP, 4000, host=0x0A0000FF + row)) == port


NEAR_EDGES = st.sampled_from(
    [1, 2, 62, 63, 64, 65, 127, 128, 60999, 61000, 61001, 61055, 61056, 65471, 65472, 65534, 65535]
)


@given(st.sets(NEAR_EDGES, min_size=1), st.lists(st.integers(0, 16), max_size=30))
def test_c_2_in_turn_is_the_next_free_port_after_the_one_before(ports: set[int], steps: list[int]) -> None:
    """Each step opens a session, or closes the one of that number if there is one; 0 always opens."""
    table = make_table(ports=sorted(ports), sequential=True)
    free, rows, after = set(ports), [], 61000
    for number, step in enumerate(steps):
        if 0 < step <= len(rows):
            row, port = rows.pop(step - 1)
            table.close(row)
            free.add(port)
        elif free:
            row = opened(table, TCP, 4000, host=HOST + number)
            port = min(free, key=lambda port, after=after: (port - after) % 65536)
            assert external_port(table, row) == port
            free.remove(port)
            rows.append((row, port))
            after = port + 1
        else:
            assert table.open(TCP, HOST + number, 4000, REMOTE, 80, 0) == "ports_exhausted"


def test_a_refusal_leaves_nothing_behind() -> None:
    table = make_table(ports=[61000])
    opened(table, UDP, 4000)
    before = table.counts()
    for number in range(10):
        assert table.open(UDP, OTHER_HOST + number, 4000, REMOTE, 53, 0) == "ports_exhausted"
    assert table.counts() == before


# --- held down ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rfc6888_req8_another_host_waits_two_minutes(protocol: int) -> None:
    table = make_table()
    table.close(opened(table, protocol, 4000))
    for now in (0, 60 * SECOND, 120 * SECOND - 1):
        table.expire(now)
        row = opened(table, protocol, 4000, host=OTHER_HOST, now_ns=now)
        assert external_port(table, row) != 4000
        table.close(row)
    table.expire(121 * SECOND)
    assert external_port(table, opened(table, protocol, 4000, host=OTHER_HOST, now_ns=121 * SECOND)) == 4000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rfc6888_req8_the_same_host_need_not_wait(protocol: int) -> None:
    """Each time it is given back the two minutes begin anew."""
    table = make_table()
    for now in (0, SECOND, 100 * SECOND):
        table.expire(now)
        row = opened(table, protocol, 4000, now_ns=now)
        assert external_port(table, row) == 4000
        table.close(row)
    table.expire(150 * SECOND)
    assert external_port(table, opened(table, protocol, 4000, host=OTHER_HOST, now_ns=150 * SECOND)) != 4000


def test_rfc6888_req8_when_nothing_else_is_left_the_longest_held_is_given() -> None:
    table = make_table(ports=[600, 5000, 5001, 5002])
    rows = {port: opened(table, UDP, port) for port in (600, 5000, 5001, 5002)}
    for second, port in enumerate((600, 5001, 5000, 5002)):
        table.expire(second * SECOND)
        table.close(rows[port])
    got = [external_port(table, opened(table, UDP, 4000 + number, host=OTHER_HOST)) for number in range(3)]
    assert got == [5001, 5000, 5002], "and one under 1024 only to those who ask for one"
    assert table.open(UDP, OTHER_HOST, 4010, REMOTE, 80, 0) == "ports_exhausted"
    assert external_port(table, opened(table, UDP, 700, host=OTHER_HOST)) == 600


def test_rfc6888_req8_ports_of_a_whole_pool_come_back() -> None:
    """Taken out of the queue at its beginning, its end and in between, every port is free once, and only once."""
    table = make_table(ports=range(5000, 5012))
    rows = {port: opened(table, TCP, port) for port in range(5000, 5012)}
    for row in rows.values():
        table.close(row)
    again = {port: opened(table, TCP, port) for port in (5000, 5011, 5005, 5006)}
    assert {port: external_port(table, row) for port, row in again.items()} == {port: port for port in again}
    for row in again.values():
        table.close(row)
    table.expire(121 * SECOND)
    assert sorted(ports_for(table, TCP, 5003, 12)) == list(range(5000, 5012))
    assert table.open(TCP, 0x0A00FFFF, 5003, REMOTE, 80, 121 * SECOND) == "ports_exhausted"


def test_rfc6888_req8_a_port_that_the_host_has_taken_meanwhile_is_not_given() -> None:
    table = make_table(ports=[5000, 5001])
    table.close(opened(table, UDP, 5000))
    table.set_external(EXTERNAL, allowed([5001]))
    assert external_port(table, opened(table, UDP, 5000)) == 5001
    assert table.open(UDP, OTHER_HOST, 5000, REMOTE, 80, 0) == "ports_exhausted"
    table.expire(121 * SECOND)
    assert table.open(UDP, OTHER_HOST, 5000, REMOTE, 80, 121 * SECOND) == "ports_exhausted"


# --- in order, as in 1999 ----------------------------------------------------------------------------------------


def test_C2_ports_ascend_and_are_never_kept() -> None:
    table = make_table(ports=range(61000, 65096), sequential=True)
    assert ports_for(table, TCP, 61500, 5) == [61000, 61001, 61002, 61003, 61004]


def test_C2_one_counter_serves_all_protocols() -> None:
    table = make_table(ports=range(61000, 65096), sequential=True)
    got = [external_port(table, opened(table, protocol, 4000)) for protocol in (TCP, UDP, ICMP)]
    assert got == [61000, 61001, 61002]


def test_C2_a_port_is_used_again_only_when_the_counter_comes_round() -> None:
    table = make_table(ports=range(61000, 61010), sequential=True)
    got = []
    for number in range(25):
        row = opened(table, TCP, 4000 + number)
        got.append(external_port(table, row))
        table.close(row)
    assert got == [61000 + number % 10 for number in range(25)]


def test_C2_ports_in_use_are_passed_over() -> None:
    table = make_table(ports=range(61000, 61010), sequential=True)
    rows = [opened(table, TCP, 4000 + number) for number in range(10)]
    for row in (rows[7], rows[2]):
        table.close(row)
    assert external_port(table, opened(table, TCP, 5000)) == 61002
    assert external_port(table, opened(table, TCP, 5001)) == 61007
    assert table.open(TCP, HOST, 5002, REMOTE, 80, 0) == "ports_exhausted"


# --- shared with the host ----------------------------------------------------------------------------------------


def test_a_port_the_host_uses_is_never_given() -> None:
    table = make_table(ports=range(61000, 61010))
    table.set_external(EXTERNAL, allowed(set(range(61000, 61010)) - {61003}))
    got = ports_for(table, TCP, 61003, 9)
    assert 61003 not in got
    assert table.open(TCP, 0x0A00FFFF, 61003, REMOTE, 80, 0) == "ports_exhausted"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_port_taken_away_in_use_stays_until_its_session_ends_and_no_longer(protocol: int) -> None:
    pool = set(range(61000, 61004))
    table = make_table(ports=pool)
    row = opened(table, protocol, 61000)
    table.set_external(EXTERNAL, allowed(pool - {61000}))
    assert is_open(table, row)
    assert table.is_mapped(EXTERNAL, CLASS[protocol], 61000)
    again = opened(table, protocol, 61000, remote=REMOTE + 1)
    assert external_port(table, again) == 61000
    table.close(row)
    table.close(again)
    assert not table.is_mapped(EXTERNAL, CLASS[protocol], 61000)
    assert sorted(ports_for(table, protocol, 61000, 3)) == [61001, 61002, 61003]
    assert table.open(protocol, 0x0A00FFFF, 61000, REMOTE, 80, 0) == "ports_exhausted"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_port_the_host_has_left_is_ours_again(protocol: int) -> None:
    pool = set(range(61000, 61004))
    table = make_table(ports=pool)
    row = opened(table, protocol, 61000)
    table.set_external(EXTERNAL, allowed(pool - {61000}))
    table.close(row)
    table.set_external(EXTERNAL, allowed(pool))
    assert external_port(table, opened(table, protocol, 61000)) == 61000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_port_taken_away_and_given_back_in_use_has_one_owner_all_the_time(protocol: int) -> None:
    """However often the host changes its mind, the pool neither loses a port nor gives one away twice."""
    pool = set(range(61000, 61008))
    table = make_table(ports=pool)
    rows = [opened(table, protocol, port) for port in (61000, 61001)]
    for lost in ({61000}, {61000, 61001, 61005}, set(), {61001}, set()):
        table.set_external(EXTERNAL, allowed(pool - lost))
    assert sorted(ports_for(table, protocol, 4000, 6)) == [61002, 61003, 61004, 61005, 61006, 61007]
    assert table.open(protocol, 0x0A00FFFF, 4000, REMOTE, 80, 0) == "ports_exhausted"
    for row in rows:
        table.close(row)
    assert sorted(ports_for(table, protocol, 4001, 2)) == [61000, 61001]
    assert table.open(protocol, 0x0A00FFFF, 4000, REMOTE, 80, 0) == "ports_exhausted"


def test_the_classes_have_allowed_ports_of_their_own() -> None:
    table = make_table()
    bits = allowed([])
    bits[CLASS[TCP], 61000] = bits[CLASS[UDP], 61001] = bits[CLASS[ICMP], 61002] = True
    table.set_external(EXTERNAL, bits)
    assert [external_port(table, opened(table, protocol, 5, remote_port=ECHO)) for protocol in (TCP, UDP, ICMP)] == [
        61000,
        61001,
        61002,
    ]
