"""Mappings: one external endpoint for each inside endpoint, held open by sessions; filtering; changes of address."""

from __future__ import annotations

import pytest

from fastmasq.errors import CapacityError
from fastmasq.table.forward_table import ForwardTable
from fastmasq.table.masq import MasqTable
from fastmasq.table.rows import POOLS, STATES
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
    PROTOCOLS,
    REMOTE,
    REPLY,
    SECOND,
    TCP,
    UDP,
    allowed,
    external_endpoint,
    external_port,
    is_open,
    make_table,
    opened,
)

REPLIED = 0x02  # rows.pxd, SESSION_REPLIED
ALL_PORTS = range(1, 65536)
EXTERNALS = POOLS // len(CLASS)  # addresses at once


# --- one mapping for each inside endpoint ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rfc4787_req1_the_same_mapping_for_every_remote(protocol: int) -> None:
    table = make_table(ports=range(61000, 65096))
    rows = [
        opened(table, protocol, 4000, remote=remote, remote_port=port)
        for remote in (REMOTE, OTHER_REMOTE)
        for port in (8, 80)
    ]
    assert len({external_endpoint(table, row) for row in rows}) == 1
    assert table.counts()["mappings"] == 1
    mapping = table.mappings[table.sessions["mapping"][rows[0]]]
    assert int(mapping["sessions"]) == 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_mapping_lives_as_long_as_its_last_session(protocol: int) -> None:
    table = make_table()
    rows = [opened(table, protocol, 4000, remote=REMOTE + number) for number in range(3)]
    for row in rows:
        assert table.is_mapped(EXTERNAL, CLASS[protocol], 4000)
        table.close(row)
    assert not table.is_mapped(EXTERNAL, CLASS[protocol], 4000)
    assert table.counts()["mappings"] == 0
    assert table.counts()["hosts"] == 0
    assert external_port(table, opened(table, protocol, 4000)) == 4000


def test_the_timer_of_each_session_counts_for_the_mapping() -> None:
    table = make_table()
    opened(table, UDP, 4000, remote=REMOTE)
    later = opened(table, UDP, 4000, remote=OTHER_REMOTE, now_ns=200 * SECOND)
    table.expire(301 * SECOND)
    assert table.counts()["active"] == 1
    assert table.is_mapped(EXTERNAL, CLASS[UDP], 4000)
    table.refresh(later, 400 * SECOND)
    table.expire(699 * SECOND)
    assert table.is_mapped(EXTERNAL, CLASS[UDP], 4000)
    table.expire(701 * SECOND)
    assert not table.is_mapped(EXTERNAL, CLASS[UDP], 4000)


def test_endpoints_that_differ_in_anything_have_mappings_of_their_own() -> None:
    table = make_table()
    rows = [
        opened(table, protocol, port, host=host)
        for protocol in PROTOCOLS
        for port in (4000, 4002)
        for host in (HOST, OTHER_HOST)
    ]
    assert table.counts()["mappings"] == len(rows) == 12
    assert table.counts()["hosts"] == 2
    for protocol in PROTOCOLS:
        ports = [external_port(table, row) for row in rows if table.sessions["port_class"][row] == CLASS[protocol]]
        assert len(set(ports)) == 4


def test_a_mapping_is_found_from_outside_by_its_number() -> None:
    table = make_table(ports=[61007])
    opened(table, UDP, 4000)
    assert table.is_mapped(EXTERNAL, CLASS[UDP], 61007)
    for address, port_class, port in [
        (EXTERNAL, CLASS[TCP], 61007),
        (EXTERNAL, CLASS[UDP], 61006),
        (NEW_EXTERNAL, CLASS[UDP], 61007),
        (0, CLASS[UDP], 61007),
    ]:
        assert not table.is_mapped(address, port_class, port)


# --- keys and what is written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_both_flows_of_a_session_are_found(protocol: int) -> None:
    table = make_table(ports=[61007])
    row = opened(table, protocol, 4000)
    assert table.find(protocol, INSIDE, HOST, 4000, REMOTE, 80) == (row, 0)
    assert table.find(protocol, OUTSIDE, REMOTE, 80, EXTERNAL, 61007) == (row, 1)
    assert table.find(protocol, OUTSIDE, HOST, 4000, REMOTE, 80) is None
    assert table.find(protocol, INSIDE, REMOTE, 80, EXTERNAL, 61007) is None


def test_C46_queries_and_replies_have_keys_of_their_own() -> None:
    """A ping whose identifier is the number of a type: query and reply are told apart by the side, not by chance."""
    table = make_table()
    row = opened(table, ICMP, ECHO, remote_port=ECHO)
    assert table.find(ICMP, INSIDE, HOST, ECHO, REMOTE, ECHO) == (row, 0)
    assert table.find(ICMP, OUTSIDE | REPLY, REMOTE, ECHO, EXTERNAL, ECHO) == (row, 1)
    assert table.find(ICMP, OUTSIDE, REMOTE, ECHO, EXTERNAL, ECHO) is None
    assert table.find(ICMP, INSIDE | REPLY, HOST, ECHO, REMOTE, ECHO) is None


# --- filtering ---------------------------------------------------------------------------------------------------


def test_rfc4787_req8_address_dependent_filtering() -> None:
    table = make_table()
    row = opened(table, UDP, 4000, remote=REMOTE, remote_port=53)
    assert table.admits(EXTERNAL, CLASS[UDP], 4000, REMOTE)
    assert not table.admits(EXTERNAL, CLASS[UDP], 4000, OTHER_REMOTE)
    assert not table.admits(EXTERNAL, CLASS[TCP], 4000, REMOTE)
    assert not table.admits(EXTERNAL, CLASS[UDP], 4001, REMOTE)
    table.close(row)
    assert not table.admits(EXTERNAL, CLASS[UDP], 4000, REMOTE)


def test_a_permit_is_held_by_each_session_with_the_remote() -> None:
    table = make_table()
    first, second, other = (
        opened(table, UDP, 4000, remote=remote, remote_port=port)
        for remote, port in ((REMOTE, 53), (REMOTE, 123), (OTHER_REMOTE, 53))
    )
    table.close(first)
    assert table.admits(EXTERNAL, CLASS[UDP], 4000, REMOTE)
    table.close(second)
    assert not table.admits(EXTERNAL, CLASS[UDP], 4000, REMOTE)
    assert table.admits(EXTERNAL, CLASS[UDP], 4000, OTHER_REMOTE)
    table.close(other)


def test_a_permit_does_not_pass_to_the_next_owner_of_a_port() -> None:
    table = make_table()
    table.close(opened(table, UDP, 4000, remote=REMOTE))
    opened(table, UDP, 4000, host=OTHER_HOST, remote=OTHER_REMOTE)
    assert not table.admits(EXTERNAL, CLASS[UDP], 4000, REMOTE)


def test_many_permits_come_and_go() -> None:
    """The set is as crowded as it ever gets (one half); removals must lose no neighbour in it."""
    table = make_table(capacity=256)
    rows = {remote: opened(table, UDP, 4000, remote=remote) for remote in range(REMOTE, REMOTE + 256)}
    for step, remote in enumerate(list(rows)):
        table.close(rows.pop(remote))
        if step % 16 == 0 or len(rows) < 4:
            held = {
                other for other in range(REMOTE - 4, REMOTE + 260) if table.admits(EXTERNAL, CLASS[UDP], 4000, other)
            }
            assert held == set(rows)


def test_a_permit_lasts_as_long_as_one_of_more_sessions_than_it_can_count() -> None:
    """A count has 16 bits; with port 0 there are more sessions between a mapping and an address."""
    table = make_table(capacity=70_000)
    rows = [opened(table, UDP, 4000, remote=REMOTE, remote_port=port) for port in range(65536)]
    for row in rows[:-1]:
        table.close(row)
    assert table.admits(EXTERNAL, CLASS[UDP], 4000, REMOTE)
    table.close(rows[-1])
    assert not table.admits(EXTERNAL, CLASS[UDP], 4000, REMOTE)


@pytest.mark.parametrize(
    ("filtering", "known", "stranger"),
    [
        ("endpoint-independent", True, True),
        ("address-dependent", True, False),
        ("address-and-port-dependent", False, False),
    ],
)
def test_the_settings_of_filtering(filtering: str, known: bool, stranger: bool) -> None:
    """Asked only of packets without a session of their own: another port of a known address, and a stranger."""
    table = make_table(filtering=filtering)
    opened(table, UDP, 4000, remote=REMOTE)
    assert table.admits(EXTERNAL, CLASS[UDP], 4000, REMOTE) is known
    assert table.admits(EXTERNAL, CLASS[UDP], 4000, OTHER_REMOTE) is stranger
    assert not table.admits(EXTERNAL, CLASS[UDP], 4001, REMOTE)


def test_an_unknown_filtering_is_no_setting() -> None:
    with pytest.raises(KeyError):
        make_table(filtering="none")


# --- no address, another address ---------------------------------------------------------------------------------


def test_without_an_external_address_nothing_is_opened() -> None:
    table = make_table(external=None)
    assert table.open(UDP, HOST, 4000, REMOTE, 53, 0) == "no_external_address"
    table.set_external(EXTERNAL, allowed(ALL_PORTS))
    opened(table, UDP, 4000)
    table.set_external(None, None)
    assert table.open(UDP, HOST, 4001, REMOTE, 53, 0) == "no_external_address"
    assert table.open(UDP, HOST, 4000, OTHER_REMOTE, 53, 0) == "no_external_address"
    assert table.counts()["active"] == table.counts()["hosts"] == 1


def test_sessions_survive_an_address_that_goes_and_comes_back() -> None:
    table = make_table()
    row = opened(table, UDP, 4000)
    assert table.set_external(None, None) == [EXTERNAL]
    assert table.find(UDP, OUTSIDE, REMOTE, 80, EXTERNAL, 4000) == (row, 1)
    assert table.set_external(EXTERNAL, allowed(ALL_PORTS)) == []
    again = opened(table, UDP, 4000, remote=OTHER_REMOTE)
    assert table.sessions["mapping"][again] == table.sessions["mapping"][row]
    other = opened(table, UDP, 4000, host=OTHER_HOST)
    assert external_port(table, other) != 4000


def test_C60_new_sessions_use_the_new_address_and_old_ones_the_old() -> None:
    table = make_table()
    old = opened(table, UDP, 4000)
    assert table.set_external(NEW_EXTERNAL, allowed(ALL_PORTS)) == [EXTERNAL]
    new = opened(table, UDP, 4000, remote=OTHER_REMOTE)
    assert external_endpoint(table, old) == (EXTERNAL, 4000)
    assert external_endpoint(table, new) == (NEW_EXTERNAL, 4000)
    assert table.is_mapped(EXTERNAL, CLASS[UDP], 4000) and table.is_mapped(NEW_EXTERNAL, CLASS[UDP], 4000)
    table.close(old)
    assert table.is_mapped(NEW_EXTERNAL, CLASS[UDP], 4000) and not table.is_mapped(EXTERNAL, CLASS[UDP], 4000)
    third = opened(table, UDP, 4000, remote=REMOTE)
    assert table.sessions["mapping"][third] == table.sessions["mapping"][new]


def test_addresses_without_mappings_are_not_named() -> None:
    """What set_external returns are the addresses whose sessions are still to be closed."""
    table = make_table()
    row = opened(table, UDP, 4000)
    assert table.set_external(NEW_EXTERNAL, allowed(ALL_PORTS)) == [EXTERNAL]
    table.close(row)
    assert table.set_external(NEW_EXTERNAL, allowed(ALL_PORTS)) == []


def test_an_address_left_by_all_makes_room() -> None:
    """So many addresses at once are the limit; those without sessions do not count, however many there have been."""
    table = make_table()
    for number in range(40):
        table.set_external(EXTERNAL + number, allowed(ALL_PORTS))
        table.close(opened(table, UDP, 4000))
    rows = []
    for number in range(100, 100 + EXTERNALS):
        table.set_external(EXTERNAL + number, allowed(ALL_PORTS))
        rows.append(opened(table, UDP, 4000))
    assert len({external_endpoint(table, row) for row in rows}) == EXTERNALS
    with pytest.raises(CapacityError, match=f"{EXTERNALS} external addresses"):
        table.set_external(EXTERNAL + 200, allowed(ALL_PORTS))
    table.close(rows[1])
    table.set_external(EXTERNAL + 200, allowed(ALL_PORTS))
    assert external_endpoint(table, opened(table, UDP, 4000)) == (EXTERNAL + 200, 4000)


def test_an_address_used_again_for_another_row_starts_empty() -> None:
    """The row of an address that is gone serves the next one: nothing of the old may shine through."""
    table = make_table()
    for number in range(EXTERNALS):
        table.set_external(EXTERNAL + number, allowed(ALL_PORTS))
        table.close(opened(table, UDP, 4000))
    table.set_external(EXTERNAL + 9, allowed([61000, 61001]))
    assert sorted(external_port(table, opened(table, UDP, 5000 + n)) for n in range(2)) == [61000, 61001]
    assert table.open(UDP, HOST, 5002, REMOTE, 53, 0) == "ports_exhausted"


@pytest.mark.parametrize("changes_address", [False, True])
def test_pf9_a_port_that_was_held_down_is_free_when_its_forward_has_gone(changes_address: bool) -> None:
    """Nothing is left of the hold, of the same address or of one before, that would keep the port for ever."""
    table = make_table()
    forwards = ForwardTable(table)
    table.close(opened(table, TCP, 8080))
    if changes_address:
        for number in range(1, 5):  # the row of the first serves the last
            table.set_external(EXTERNAL + number, allowed(ALL_PORTS))
    address = EXTERNAL + 4 if changes_address else EXTERNAL
    assert forwards.place(address, CLASS[TCP], 8080, [(OTHER_HOST, 80, 1)])
    forwards.remove(address, CLASS[TCP], 8080)
    assert not table.is_mapped(address, CLASS[TCP], 8080)
    assert external_port(table, opened(table, TCP, 8080, host=OTHER_HOST)) == 8080


def pooled(table: MasqTable, *addresses: int) -> None:
    """Deal inside hosts out to these addresses, of which the first is the current one."""
    table.set_external(addresses[0], allowed(ALL_PORTS), addresses)
    for address in addresses[1:]:
        table.hold_external(address, allowed(ALL_PORTS), addresses)
    table.set_pool(addresses)


def addresses_of(table: MasqTable, hosts: range) -> dict[int, int]:
    """Return the external address that each of some hosts gets, by a session that is closed again."""
    found = {}
    for host in hosts:
        row = opened(table, UDP, 4000, host=host)
        found[host] = external_endpoint(table, row)[0]
        assert table.external_for(host) == found[host]
        table.close(row)
    return found


HOSTS = range(HOST, HOST + 200)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rfc4787_req2_a_host_has_one_address_of_the_pool(protocol: int) -> None:
    table = make_table(external=None)
    pooled(table, EXTERNAL, NEW_EXTERNAL)
    for host in HOSTS:
        rows = [opened(table, protocol, 4000 + n, host=host, remote=REMOTE + n) for n in range(3)]
        assert {external_endpoint(table, row)[0] for row in rows} == {table.external_for(host)}
        for row in rows:
            table.close(row)


def test_hosts_are_spread_over_the_pool_and_few_move_when_it_changes() -> None:
    table = make_table(external=None)
    pooled(table, EXTERNAL, EXTERNAL + 1, EXTERNAL + 2)
    before = addresses_of(table, HOSTS)
    assert min(list(before.values()).count(EXTERNAL + n) for n in range(3)) > len(HOSTS) // 5
    pooled(table, EXTERNAL, EXTERNAL + 1)
    after = addresses_of(table, HOSTS)
    assert all(after[host] == before[host] for host in HOSTS if before[host] != EXTERNAL + 2)
    table.set_pool(())
    assert set(addresses_of(table, HOSTS).values()) == {EXTERNAL}


def test_rows_of_wanted_addresses_are_not_given_up_for_others() -> None:
    table = make_table(external=None)
    for round_ in range(EXTERNALS):
        wanted = [EXTERNAL + 10 * round_ + n for n in range(3)]
        pooled(table, *wanted)
        assert set(addresses_of(table, HOSTS).values()) == {*wanted}


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_C60_closing_what_used_the_old_address(chunk: int) -> None:
    """A little at a time, and nothing of any other address."""
    table = make_table()
    old = [opened(table, protocol, 4000 + number) for number in range(4) for protocol in PROTOCOLS]
    table.set_external(NEW_EXTERNAL, allowed(ALL_PORTS))
    new = [opened(table, UDP, 5000 + number) for number in range(3)]
    total, row = 0, 0
    while row < table.fresh:
        closed, after = table.close_external(EXTERNAL, row, chunk)
        assert row < after <= row + chunk
        total, row = total + closed, after
    assert total == len(old)
    assert not any(is_open(table, row) for row in old)
    assert all(is_open(table, row) for row in new)
    assert table.counts()["mappings"] == 3
    assert table.close_external(EXTERNAL) == (0, table.fresh)


def test_C61_answered_sessions_are_spared_without_bit_4() -> None:
    table = make_table()
    silent, answered = opened(table, TCP, 4000), opened(table, TCP, 4001)
    table.sessions["flags"][answered] |= REPLIED
    table.retime(answered, STATES.index("established"), 0)
    table.set_external(NEW_EXTERNAL, allowed(ALL_PORTS))
    assert table.close_external(EXTERNAL, only_without_reply=True)[0] == 1
    assert not is_open(table, silent)
    assert is_open(table, answered)
    assert table.close_external(EXTERNAL)[0] == 1
    assert not is_open(table, answered)


def test_closing_an_address_that_never_was() -> None:
    table = make_table()
    row = opened(table, UDP, 4000)
    assert table.close_external(NEW_EXTERNAL)[0] == 0
    assert is_open(table, row)


def test_changed_filtering_treats_open_sessions_as_if_opened_under_it() -> None:
    table = make_table(filtering="endpoint-independent")
    row = opened(table, UDP, 4000, remote=REMOTE)
    table.set_filtering("address-dependent")
    assert table.admits(EXTERNAL, CLASS[UDP], 4000, REMOTE)
    assert not table.admits(EXTERNAL, CLASS[UDP], 4000, OTHER_REMOTE)
    table.set_filtering("address-and-port-dependent")
    assert not table.admits(EXTERNAL, CLASS[UDP], 4000, REMOTE)
    table.set_filtering("address-dependent")
    table.close(row)
    assert not table.admits(EXTERNAL, CLASS[UDP], 4000, REMOTE)


# --- what is asked of it without a packet --------------------------------------------------------------------------


def test_an_inside_endpoint_is_told_its_external_one() -> None:
    table = make_table()
    assert table.external_of(CLASS[TCP], HOST, 4000) is None
    row = opened(table, TCP, 4000)
    assert table.external_of(CLASS[TCP], HOST, 4000) == (EXTERNAL, external_port(table, row))
    assert table.external_of(CLASS[UDP], HOST, 4000) is None
    ForwardTable(table).place(EXTERNAL, CLASS[UDP], 8080, ((HOST, 4000, 1),))
    assert table.external_of(CLASS[UDP], HOST, 4000) == (EXTERNAL, 8080)


def test_an_external_endpoint_is_free_for_a_host_if_no_other_has_it_or_has_just_had_it() -> None:
    table = make_table()
    assert table.is_free(EXTERNAL, CLASS[TCP], 4000, HOST)
    row = opened(table, TCP, 4000)
    assert not table.is_free(EXTERNAL, CLASS[TCP], 4000, HOST)
    assert table.is_free(EXTERNAL, CLASS[UDP], 4000, OTHER_HOST)
    table.close(row)
    assert table.is_free(EXTERNAL, CLASS[TCP], 4000, HOST)
    assert not table.is_free(EXTERNAL, CLASS[TCP], 4000, OTHER_HOST)  # held down
    ForwardTable(table).place(EXTERNAL, CLASS[TCP], 8080, ((HOST, 80, 1),))
    assert not table.is_free(EXTERNAL, CLASS[TCP], 8080, HOST)
    assert table.is_free(NEW_EXTERNAL, CLASS[TCP], 4000, OTHER_HOST)  # nobody's address yet
