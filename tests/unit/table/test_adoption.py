"""Sessions that outlive their table: at any point of any history all are there again, and nothing else is."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from fastmasq.policy.chains import Match, Rule, RuleSet
from fastmasq.table import memory, rows
from fastmasq.table.forward_table import ForwardTable
from fastmasq.table.masq import MasqTable
from tests.support.adoption import LOCAL, PROXIES, adopt_all, adopted, assert_consistent, empty, shared, unshared
from tests.support.harness import HOWTO_ROUTES, PROGRAMS, Harness, address, unicast
from tests.support.packets import tcp
from tests.support.tables import (
    CLASS,
    ECHO,
    EXTERNAL,
    HOST,
    ICMP,
    INSIDE,
    NEW_EXTERNAL,
    OTHER_HOST,
    OTHER_REMOTE,
    OUTSIDE,
    REMOTE,
    REPLY,
    SECOND,
    TCP,
    UDP,
    allowed,
    external_port,
    make_table,
    opened,
)
from tests.unit.table import test_table_history as history

CAPACITY = 64
ALL_PORTS = range(1, 65536)
NOW = 1000 * SECOND


class HistoryOfTables(history.TableHistory):
    """The same histories, in which a table dies now and then, and the next one goes on with what it has left."""

    def make_table(self, **limits: object) -> MasqTable:
        self.buffer = unshared(history.CAPACITY)
        return super().make_table(buffer=self.buffer, **limits)

    @rule()
    def start_again(self) -> None:
        left = self.buffer
        former = memory.lay_out(history.CAPACITY, left)
        self.table = self.make_table(secret=None)
        dropped = adopt_all(self.table, former, self.now)
        assert dropped == {}
        self.table.set_external(EXTERNAL, allowed(self.pool))
        for (protocol, host, port, remote, remote_port), session in self.known.items():
            session.row, _ = self.table.find(protocol, INSIDE, host, port, remote, remote_port)


TestHistoryOfTables = HistoryOfTables.TestCase
TestHistoryOfTables.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)


class Left:
    """A table of every kind of session, and the memory that it leaves."""

    def __init__(self, ports: range = ALL_PORTS, **limits: object) -> None:
        self.buffer = shared(CAPACITY)
        self.table = make_table(ports, capacity=CAPACITY, buffer=self.buffer, now_ns=NOW, **limits)
        self.sessions = memory.lay_out(CAPACITY, self.buffer).sessions
        self.mappings = memory.lay_out(CAPACITY, self.buffer).mappings

    def open(self, protocol: int, port: int, **ends: int) -> int:
        return opened(self.table, protocol, port, now_ns=NOW, **ends)

    def adopted(self, now_ns: int = NOW, **limits: object) -> tuple[MasqTable, dict[str, int]]:
        return adopted(self.buffer, CAPACITY, now_ns, **limits)


def test_a_session_is_what_it_had_come_to() -> None:
    left = Left()
    row = left.open(TCP, 40000)
    session = left.sessions[row : row + 1]
    session["state"], session["flags"], session["scale"] = 3, 0x3E, 0x79
    session["tcp"] = [[(1, 2, 3), (4, 5, 6)]]
    session["flow"]["packets"], session["flow"]["path_mtu"] = [[7, 8]], [[1400, 0]]
    session["flow"]["hop"], session["known"] = 5, 0x1234
    left.table.refresh(row, NOW)
    table, dropped = left.adopted(NOW + 60 * SECOND)
    assert (dropped, table.counts()["adopted"], table.counts()["opened_total"]) == ({}, 1, 0)
    again = table.sessions[:1]
    for name in ("state", "flags", "scale", "tcp", "expires", "mapping", "port_class"):
        assert again[name].tolist() == session[name].tolist(), name
    assert again["flow"]["packets"].tolist() == [[7, 8]] and again["flow"]["path_mtu"].tolist() == [[1400, 0]]
    assert_consistent(table, (EXTERNAL,))
    table.expire(NOW + 7439 * SECOND)
    assert table.counts()["active"] == 1
    table.expire(NOW + 7442 * SECOND)
    assert table.counts()["active"] == 0, "it ends when it would have"


def test_what_has_ended_meanwhile_is_not_adopted() -> None:
    left = Left()
    left.open(UDP, 40000)
    assert left.adopted(NOW + 299 * SECOND)[1] == {}
    assert left.adopted(NOW + 301 * SECOND)[1] == {"expired": 1}


def test_a_time_that_is_too_far_away_is_the_timeout() -> None:
    left = Left()
    row = left.open(UDP, 40000)
    left.sessions["expires"][row] += 1 << 30
    table, dropped = left.adopted()
    assert dropped == {}
    table.expire(NOW + 302 * SECOND)
    assert table.counts()["active"] == 0


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_who_is_expected_still_is_for_what_is_left_of_the_minute(protocol: int) -> None:
    left = Left()
    row, port = left.table.expect(protocol, HOST, 40000, REMOTE, EXTERNAL, NOW)
    table, dropped = left.adopted(NOW + 50 * SECOND)
    assert dropped == {}
    [again] = table.expected()
    assert table.is_expected(again, HOST, 40000, REMOTE)
    assert table.sessions[again]["flow"].tolist() == left.sessions[row]["flow"].tolist() and port == 40000
    table.expire(NOW + 62 * SECOND)
    assert not len(table.expected())
    left.sessions["state"][row] = 8
    assert left.adopted()[1] == {"torn": 1}, "one that nobody expects has no such key"


def test_ports_permits_and_holds_are_as_they_were() -> None:
    left = Left(range(2000, 2003))
    left.open(UDP, 2000)
    left.table.close(left.open(UDP, 2001))
    left.open(ICMP, 2002, remote_port=ECHO)
    table, dropped = left.adopted(NOW + 60 * SECOND)
    assert dropped == {}
    table.set_external(EXTERNAL, allowed(range(2000, 2003)))
    assert table.admits(EXTERNAL, CLASS[UDP], 2000, REMOTE) and not table.admits(
        EXTERNAL, CLASS[UDP], 2000, OTHER_REMOTE
    )
    assert table.find(ICMP, OUTSIDE | REPLY, REMOTE, ECHO, EXTERNAL, 2002) == (1, 1)
    # 2000 is in use, 2001 held down for its host until two minutes after it was closed
    other = opened(table, UDP, 2001, host=OTHER_HOST, now_ns=NOW + 60 * SECOND)
    assert external_port(table, other) == 2002
    same = opened(table, UDP, 2001, now_ns=NOW + 60 * SECOND)
    assert external_port(table, same) == 2001
    table.close(other)
    table.expire(NOW + 200 * SECOND)
    assert external_port(table, opened(table, UDP, 2002, host=OTHER_HOST, now_ns=NOW + 200 * SECOND)) == 2002


def test_a_hold_ends_when_it_would_have() -> None:
    left = Left(range(2000, 2002))
    left.table.close(left.open(UDP, 2001))
    for after_s, port in ((100, 2000), (121, 2001)):
        now = NOW + after_s * SECOND
        table, _ = left.adopted(now)
        table.set_external(EXTERNAL, allowed(range(2000, 2002)))
        table.expire(now)
        assert external_port(table, opened(table, UDP, 2001, host=OTHER_HOST, now_ns=now)) == port


def test_the_same_endpoint_keeps_its_port_towards_others() -> None:
    left = Left(range(2000, 2100))
    row = left.open(TCP, 50000)
    table, _ = left.adopted()
    table.set_external(EXTERNAL, allowed(range(2000, 2100)))
    assert external_port(table, opened(table, TCP, 50000, remote=OTHER_REMOTE)) == external_port(left.table, row)


def test_sessions_of_a_forward_are_its_again_or_orphans() -> None:
    left = Left()
    ForwardTable(left.table).place(EXTERNAL, CLASS[TCP], 8080, [(HOST, 80, 10)])
    row = left.open(TCP, 80)
    assert external_port(left.table, row) == 8080
    table, dropped = left.adopted()
    assert dropped == {} and table.orphans() == {(EXTERNAL, CLASS[TCP], 8080)}
    assert_consistent(table, (EXTERNAL,))
    table.set_external(EXTERNAL, allowed(ALL_PORTS))
    assert external_port(table, opened(table, TCP, 80, remote=OTHER_REMOTE)) == 80, "no forward, no port of it"
    assert ForwardTable(table).place(EXTERNAL, CLASS[TCP], 8080, [(OTHER_HOST, 80, 10)])
    assert table.orphans() == set()
    assert external_port(table, opened(table, TCP, 80, host=OTHER_HOST, remote=OTHER_REMOTE)) == 8080
    empty_but_for = {(EXTERNAL, CLASS[TCP], 8080)}
    for row in np.flatnonzero(table.sessions["state"]):
        table.close(int(row))
    assert {port for port in empty_but_for if table.is_mapped(*port)} == empty_but_for


def test_sessions_that_have_their_own_endpoints_on_one_mapping() -> None:
    """As a trigger opens them: each inside endpoint is its session's, and who has not answered is counted."""
    left = Left()
    row = left.open(UDP, 40000)
    left.sessions["state"][row] = 12  # unanswered
    mapping = left.sessions["mapping"][row]
    left.mappings[mapping] = (0, 1, 1, 0, rows.MAPPING_BY_SESSION)
    table, dropped = left.adopted()
    assert dropped == {}
    assert table.mappings[mapping].tolist() == (0, 1, 1, 0, rows.MAPPING_BY_SESSION)
    assert_consistent(table, (EXTERNAL,))
    empty(table)


def test_sessions_of_two_external_addresses() -> None:
    left = Left()
    left.open(UDP, 2000)
    left.table.set_external(NEW_EXTERNAL, allowed(ALL_PORTS))
    left.open(UDP, 2000, remote=OTHER_REMOTE)
    table, dropped = left.adopted()
    assert dropped == {}
    assert_consistent(table, (EXTERNAL, NEW_EXTERNAL))
    assert table.set_external(NEW_EXTERNAL, allowed(ALL_PORTS)) == [EXTERNAL]
    assert table.mapped_ports(EXTERNAL)[CLASS[UDP]].nonzero()[0].tolist() == [2000]


def test_hosts_are_dealt_the_same_of_several_addresses() -> None:
    left = Left()
    left.table.hold_external(NEW_EXTERNAL, allowed(ALL_PORTS))
    left.table.set_pool((EXTERNAL, NEW_EXTERNAL))
    dealt = [left.table.external_for(HOST + number) for number in range(64)]
    assert set(dealt) == {EXTERNAL, NEW_EXTERNAL}
    assert memory.lay_out(CAPACITY, left.buffer).header["pool"][0].tolist() == [EXTERNAL, NEW_EXTERNAL, 0, 0]
    table, _ = left.adopted()
    for external in (NEW_EXTERNAL, EXTERNAL):
        table.hold_external(external, allowed(ALL_PORTS))
    table.set_pool((NEW_EXTERNAL, EXTERNAL))
    assert [table.external_for(HOST + number) for number in range(64)] == dealt


ASKED = "198.51.100.7"


def proxied(side: str = "inside", client: str = "10.0.0.2", programs: str = PROGRAMS) -> np.void:
    """Return the row of a session that a client's connection to ASKED has with a program of this host."""
    harness = Harness(now_ns=NOW, routes=[*HOWTO_ROUTES, (f"{programs}/32", unicast("programs", PROGRAMS))])
    harness.forwarder.set_proxies(address(programs), 2)
    rules = RuleSet()
    rules.append("input", Rule(match=Match(protocol=TCP), target="REDIRECT", redirect_port=8080))
    harness.set_rule_set(rules)
    harness.send(side, tcp((client, 4000), (ASKED, 80), "S", seq=1))
    assert len(harness.sessions()) == 1
    return harness.table.sessions[0].copy()


@pytest.mark.parametrize(("side", "client", "holder"), [("inside", "10.0.0.2", HOST), ("outside", "199.0.0.1", None)])
def test_sessions_with_programs_of_this_host(side: str, client: str, holder: int | None) -> None:
    """They are of the client's share if that is inside, else of the program's address."""
    left = Left()
    left.sessions[7] = proxied(side, client)
    table, dropped = left.adopted()
    assert (dropped, table.has_adopted_proxied) == ({}, True)
    assert [int(row["address"]) for row in table.hosts if row["address"]] == [holder or PROXIES[0]]
    assert_consistent(table, (EXTERNAL,))
    empty(table)


def test_what_is_no_session_with_a_program_of_this_host() -> None:
    inside, outside = proxied(), proxied("outside", "199.0.0.1")

    def judged(row: np.void, *, ours: str = "0.0.0.0", inbound_side: int = 0, **fields: int) -> dict[str, int]:
        left = Left()
        memory.lay_out(CAPACITY, left.buffer).header["external"][0, 1] = address(ours)
        left.sessions[7] = row
        for name, value in fields.items():
            left.sessions[name][7] = value
        left.sessions["flow"]["key1"][7, 1] += inbound_side << 48
        table, dropped = left.adopted()
        assert table.has_adopted_proxied == (not dropped)
        empty(table)
        return dropped

    assert judged(inside, ours=ASKED) == {}, "nobody outside can have meant us by it"
    assert judged(outside, ours=ASKED) == {"torn": 1}
    assert judged(proxied(programs="203.0.113.1")) == {"torn": 1}
    assert judged(inside, inbound_side=LOCAL) == judged(inside, inbound_side=REPLY) == {"torn": 1}
    assert judged(inside, mapping=4000) == judged(inside, flags=1) == judged(inside, port_class=3) == {"torn": 1}


def test_a_smaller_table_takes_what_it_has_room_for() -> None:
    left = Left()
    for port in range(2000, 2010):
        left.open(UDP, port)
    former = memory.lay_out(CAPACITY, left.buffer)
    table = make_table(capacity=4, external=None, now_ns=NOW)
    assert adopt_all(table, former, NOW) == {"no room": 6}
    assert_consistent(table, (EXTERNAL,))


# -- what is no session ------------------------------------------------------------------------------------------------

OUT, BACK = ("flow", 0), ("flow", 1)
FIELDS = [
    *[
        (name, value)
        for name, value in (("state", 9), ("state", 14), ("state", 13), ("port_class", 1), ("port_class", 3))
    ],
    ("mapping", 0xFFFFFFFF),
    ("mapping", 12 << 16),
    ("mapping", 1),
    ("flags", 1),
]
FLOW_FIELDS = ["key0", "key1", "saddr", "daddr", "sid", "did", "address_delta", "transport_delta"]


@pytest.mark.parametrize(("field", "value"), FIELDS)
def test_a_field_that_does_not_fit_the_others(field: str, value: int) -> None:
    left = Left()
    row = left.open(TCP, 40000)
    left.open(TCP, 40001)
    left.sessions[field][row] = value
    table, dropped = left.adopted()
    assert sum(dropped.values()) == 1 and table.counts()["active"] == 1
    assert_consistent(table, (EXTERNAL,))


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("field", FLOW_FIELDS)
def test_a_flow_that_is_not_what_opening_would_write(field: str, direction: int) -> None:
    left = Left()
    row = left.open(TCP, 40000)
    left.sessions["flow"][field][row, direction] ^= 1
    table, dropped = left.adopted()
    assert dropped == {"torn": 1} and table.counts()["active"] == 0
    empty(table)


@pytest.mark.parametrize(("field", "value"), [("address", 1), ("id", 1), ("in_use", 0), ("in_use", 2), ("in_use", 9)])
def test_a_mapping_that_is_another_s(field: str, value: int) -> None:
    left = Left()
    row = left.open(UDP, 40000)
    left.mappings[field][left.sessions["mapping"][row]] = value
    table, dropped = left.adopted()
    assert dropped == {"no mapping": 1}
    empty(table)


def test_a_session_that_is_there_twice_is_adopted_once() -> None:
    left = Left()
    row = left.open(UDP, 40000)
    left.sessions[row + 5] = left.sessions[row]
    table, dropped = left.adopted()
    assert dropped == {"twice": 1}
    assert_consistent(table, (EXTERNAL,))


def test_an_endpoint_with_two_mappings_keeps_one() -> None:
    left = Left()
    left.open(UDP, 40000)
    other = left.open(UDP, 40001, remote=OTHER_REMOTE)
    forged = make_table(range(40001, 40002), capacity=CAPACITY, buffer=shared(CAPACITY), now_ns=NOW)
    left.sessions[other] = forged.sessions[opened(forged, UDP, 40000, remote=OTHER_REMOTE, now_ns=NOW)]
    left.mappings["id"][left.sessions["mapping"][other]] = 40000
    table, dropped = left.adopted()
    assert dropped == {"no mapping": 1}
    assert_consistent(table, (EXTERNAL,))


def test_without_its_external_address_a_mapping_means_nothing() -> None:
    left = Left()
    left.open(UDP, 40000)
    memory.lay_out(CAPACITY, left.buffer).header["external"] = 0
    assert left.adopted()[1] == {"no mapping": 1}


def several() -> mmap.mmap:
    """Return what a table with sessions of all classes on two addresses, a forward and a hold has left."""
    left = Left()
    for number in range(8):
        left.open((TCP, UDP, ICMP)[number % 3], 2000 + number % 4, host=HOST + number % 2)
    ForwardTable(left.table).place(EXTERNAL, CLASS[TCP], 8080, [(HOST, 80, 10)])
    left.open(TCP, 80)
    left.table.close(left.open(UDP, 3000))
    left.table.set_external(NEW_EXTERNAL, allowed(ALL_PORTS))
    left.open(UDP, 2000, remote=OTHER_REMOTE)
    left.sessions[left.table.fresh] = proxied()
    return left.buffer


SEVERAL = several()
IN_USE = np.flatnonzero(memory.lay_out(CAPACITY, SEVERAL).mappings["in_use"])


def apart(buffer: mmap.mmap) -> memory.Memory:
    """Return what a buffer has in arrays of their own: a sanitizer knows their ends, and not those within a buffer."""
    there, alone = memory.lay_out(CAPACITY, buffer), memory.lay_out(CAPACITY)
    for name in memory.lasting(CAPACITY):
        getattr(alone, name)[:] = getattr(there, name)
    return alone


def change(array: np.ndarray, row: int, name: str, value: int) -> None:
    """Have a field of a row be what is left of a value in it."""
    array[name][row] = value % (1 << 8 * array.dtype[name].itemsize)


places = st.integers(0, len(IN_USE) + 3)
values = st.integers(0, 14) | st.sampled_from([1 << 16, (12 << 16) - 1, 12 << 16]) | st.integers(0, (1 << 32) - 1)
SINGLE = [name for name in rows.SESSION.names if name not in ("flow", "tcp")]


@given(
    octets=st.lists(st.tuples(st.integers(0, (len(IN_USE) + 4) * 128 - 1), st.integers(0, 255)), max_size=40),
    in_sessions=st.lists(st.tuples(places, st.sampled_from(SINGLE), values), max_size=10),
    in_mappings=st.lists(st.tuples(places, st.sampled_from(rows.MAPPING.names), values), max_size=10),
    in_header=st.lists(st.tuples(st.integers(0, rows.HEADER.itemsize - 1), st.integers(0, 255)), max_size=2),
    again=st.lists(st.tuples(places, places), max_size=3),
)
@settings(max_examples=80, deadline=None)
def test_of_changed_memory_only_what_is_consistent_is_adopted(
    octets, in_sessions, in_mappings, in_header, again
) -> None:
    former = apart(SEVERAL)
    for row, name, value in in_sessions:
        change(former.sessions, row, name, value)
    for row, name, value in in_mappings:
        change(former.mappings, IN_USE[row % len(IN_USE)], name, value)
    for source, target in again:
        former.sessions[target] = former.sessions[source]
    for at, octet in octets:
        former.sessions.view("u1")[at] = octet
    for at, octet in in_header:
        former.header.view("u1")[at] = octet
    table = make_table(capacity=CAPACITY, external=None, now_ns=NOW)
    adopt_all(table, former, NOW)
    externals = tuple(int(one) for one in former.header["external"][0])
    assert_consistent(table, externals)
    table.set_external(EXTERNAL, allowed(ALL_PORTS))
    opened(table, TCP, 60000, now_ns=NOW)
    empty(table)
    table.expire(NOW + 1000 * SECOND)


@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=10, deadline=None)
def test_random_memory_is_no_session(seed: int) -> None:
    former = memory.lay_out(CAPACITY)
    random = np.random.default_rng(seed)
    former.sessions[:] = np.frombuffer(random.bytes(former.sessions.nbytes), rows.SESSION)
    former.mappings[: 1 << 16] = np.frombuffer(random.bytes(rows.MAPPING.itemsize << 16), rows.MAPPING)
    former.header[:] = np.frombuffer(random.bytes(rows.HEADER.itemsize), rows.HEADER)
    table = make_table(capacity=CAPACITY, external=None, now_ns=NOW)
    dropped = adopt_all(table, former, NOW)
    assert table.counts()["active"] == 0 and sum(dropped.values()) == np.count_nonzero(former.sessions["state"])
    table.set_external(EXTERNAL, allowed(ALL_PORTS))
    opened(table, TCP, 60000, now_ns=NOW)
    table.expire(NOW + 1000 * SECOND)
    empty(table)
