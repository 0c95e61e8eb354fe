"""Sessions that triggered ranges, direct ports (autofw) and marks (mfw) open on the packet path, section 5.5."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest

from fastmasq.errors import CapacityError
from fastmasq.path.triggers_and_marks import TriggerTable
from fastmasq.policy.chains import Match, Rule, RuleSet
from fastmasq.table.forward_table import ForwardTable
from tests.support.harness import Harness, address
from tests.support.packets import TCP, UDP, decode, dotted, icmp_error, ping, problems, tcp, udp
from tests.support.path_network import (
    GATEWAY_OUT,
    HOST,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    SERVER,
    delivered,
    dropped,
    passes,
)

PEER, STRANGER = "199.0.0.1", "199.0.0.9"
CONTROL = (PEER, 7070)
MEDIA = (UDP, 6970, 7170, TCP, 7070)  # autofw -A -r udp 6970 7170 -c tcp 7070
PLAYER = (HOST, 1025)
WEB, OTHER_WEB = (HOST, 80), (OTHER_HOST, 80)
Ends = tuple[tuple[str, int], tuple[str, int]]


def leading(
    triggers: Iterable = (), directs: Iterable = (), marks: dict | None = None, *, ports=range(1024, 65536), **settings
) -> Harness:
    """Return a Harness with these rows in force; marks are {mark: [(host, port, weight), ...]}."""
    half_open, renews = settings.pop("half_open", 1024), settings.pop("renews", False)
    harness = Harness(ports=ports, **settings)
    harness.triggers = TriggerTable(half_open, renews=renews)
    set_rows(harness, triggers, directs, marks)
    return harness


def set_rows(harness: Harness, triggers: Iterable = (), directs: Iterable = (), marks: dict | None = None) -> None:
    """Put rows in force as the daemon does: their ports are not for mappings. Port 80 and 9000 are those of marks."""
    triggers, directs, marks = list(triggers), list(directs), marks or {}
    rows = {
        mark: [(address(host), port, weight, weight) for host, port, weight in hosts] for mark, hosts in marks.items()
    }
    harness.triggers.set_rows(triggers, directs, rows)
    reserved = np.zeros((3, 65536), bool)
    for protocol, first, last, *_ in triggers:
        reserved[0 if protocol == TCP else 1, first : last + 1] = True
    if marks:
        reserved[:2, [80, 9000]] = True
    ours = reserved.copy()
    for protocol, _, _ in directs:
        ours[0 if protocol == TCP else 1, 1:32768] = True
    harness.triggers.set_ports(ours)
    harness.forwarder.set_triggers(harness.triggers if triggers or directs or marks else None)
    harness.table.set_external(address(GATEWAY_OUT), harness.allowed & ~reserved)


def marking(harness: Harness, *rules: tuple[int, int, int]) -> Harness:
    """Have the input chain mark packets from outside: (protocol, port, mark) each."""
    rule_set = RuleSet()
    for protocol, port, mark in rules:
        match = Match(protocol=protocol, destination_ports=((port, port),), interface="eth1")
        rule_set.append("input", Rule(match=match, mark=("set", mark), target="ACCEPT"))
    harness.set_rule_set(rule_set)
    return harness


def ends(packet: bytes) -> Ends:
    """Return source and destination endpoint of a packet that is whole and has right checksums."""
    assert problems(packet) == []
    decoded = decode(packet)
    return (dotted(decoded.source), decoded.source_port), (dotted(decoded.destination), decoded.destination_port)


def contact(harness: Harness, inside: tuple[str, int] = PLAYER, control: tuple[str, int] = CONTROL) -> None:
    """Let an inside endpoint send to a control port: the first packet of a TCP connection."""
    passes(harness, INSIDE, tcp(inside, control, "S", seq=1))


def syn(remote: tuple[str, int], port: int = 80) -> bytes:
    return tcp(remote, (GATEWAY_OUT, port), "S", seq=1)


# -- triggered ranges --------------------------------------------------------------------------------------------------


def test_5_5_autofw_example_2_the_contacted_peer_reaches_the_range_with_its_source_kept():
    harness = leading([(*MEDIA, True, True)])
    contact(harness)
    arrived = passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"sound"))
    assert ends(arrived) == ((PEER, 5000), (HOST, 6970))
    back = passes(harness, INSIDE, udp((HOST, 6970), (PEER, 5000), b"more"))
    assert ends(back) == ((GATEWAY_OUT, 6970), (PEER, 5000))
    assert ends(passes(harness, OUTSIDE, udp((PEER, 6000), (GATEWAY_OUT, 7170), b"sound")))[1] == (HOST, 7170)


def test_5_5_autofw_an_idle_range_leads_nowhere_and_is_not_the_hosts():
    harness = leading([(*MEDIA, True, True)])
    for port in (6970, 7170):
        assert dropped(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, port), b"sound")) == "no_session"
    assert dropped(harness, OUTSIDE, tcp((PEER, 5000), (GATEWAY_OUT, 6970), "S", seq=1)) == "no_session"
    assert harness.sessions() == []


def test_5_5_autofw_the_limit_of_15_seconds_is_enforced():
    harness = leading([(*MEDIA, True, True)])
    contact(harness)
    harness.advance(15)
    passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"in time"))
    harness.advance(0.5)
    assert dropped(harness, OUTSIDE, udp((PEER, 5001), (GATEWAY_OUT, 6971), b"too late")) == "no_session"
    passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"the session lives on"))


def test_5_5_autofw_every_packet_to_the_control_port_renews_the_limit():
    harness = leading([(*MEDIA, True, True)])
    contact(harness)
    passes(harness, OUTSIDE, tcp(CONTROL, (GATEWAY_OUT, PLAYER[1]), "SA", seq=1, ack=2))
    harness.advance(14)
    passes(harness, INSIDE, tcp(PLAYER, CONTROL, "A", seq=2, ack=2))
    harness.advance(14)
    assert ends(passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x")))[1] == (HOST, 6970)


def test_5_5_autofw_inbound_packets_do_not_renew_the_limit():
    harness = leading([(*MEDIA, True, True)])
    contact(harness)
    for _ in range(3):
        harness.advance(5)
        passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x"))
    harness.advance(1)
    assert dropped(harness, OUTSIDE, udp((PEER, 5001), (GATEWAY_OUT, 6970), b"x")) == "no_session"


def test_5_5_autofw_in_the_manner_of_2_0_an_inbound_session_renews_the_limit():
    harness = leading([(*MEDIA, True, True)], renews=True)
    contact(harness)
    for port in (5000, 5001, 5002):
        harness.advance(10)
        passes(harness, OUTSIDE, udp((PEER, port), (GATEWAY_OUT, 6970), b"x"))
    harness.advance(15.5)
    assert dropped(harness, OUTSIDE, udp((PEER, 5003), (GATEWAY_OUT, 6970), b"x")) == "no_session"


def test_5_5_autofw_in_the_manner_of_2_0_what_is_refused_renews_nothing():
    harness = leading([(*MEDIA, True, True)], renews=True, half_open=1)
    contact(harness)
    passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x"))
    harness.advance(10)
    assert dropped(harness, OUTSIDE, udp((PEER, 5001), (GATEWAY_OUT, 6970), b"x")) == "half_open_limit"
    harness.advance(5.5)
    assert dropped(harness, OUTSIDE, udp((PEER, 5002), (GATEWAY_OUT, 6970), b"x")) == "no_session"


def test_5_5_autofw_the_peer_is_enforced():
    harness = leading([(*MEDIA, True, True)])
    contact(harness)
    assert dropped(harness, OUTSIDE, udp((STRANGER, 5000), (GATEWAY_OUT, 6970), b"x")) == "no_session"


def test_5_5_autofw_u_lifts_the_limit_and_i_lets_anybody_in():
    harness = leading([(UDP, 6970, 6979, TCP, 7070, False, True), (UDP, 6980, 6989, TCP, 7070, True, False)])
    contact(harness)
    passes(harness, OUTSIDE, udp((STRANGER, 5000), (GATEWAY_OUT, 6980), b"x"))
    assert dropped(harness, OUTSIDE, udp((STRANGER, 5000), (GATEWAY_OUT, 6970), b"x")) == "no_session"
    harness.advance(200)
    passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x"))
    assert dropped(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6980), b"x")) == "no_session"


def test_5_5_autofw_the_last_host_to_contact_has_the_range():
    harness = leading([(*MEDIA, True, True)])
    contact(harness)
    contact(harness, (OTHER_HOST, 2000))
    assert ends(passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x")))[1] == (OTHER_HOST, 6970)


def test_5_5_autofw_only_the_control_port_and_protocol_trigger():
    harness = leading([(*MEDIA, True, True)])
    passes(harness, INSIDE, udp(PLAYER, CONTROL, b"x"))
    passes(harness, INSIDE, tcp(PLAYER, (PEER, 7071), "S", seq=1))
    assert dropped(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x")) == "no_session"


def test_5_5_autofw_a_refused_packet_triggers_nothing():
    harness = leading([(*MEDIA, True, True)])
    rule_set = RuleSet()
    rule_set.append("output", Rule(match=Match(protocol=TCP), target="DENY"))
    harness.set_rule_set(rule_set)
    assert dropped(harness, INSIDE, tcp(PLAYER, CONTROL, "S", seq=1)) == "output_denied"
    assert dropped(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x")) == "no_session"


def test_5_5_autofw_the_answer_of_a_server_triggers_nothing():
    harness = leading([(*MEDIA, True, True)])
    forwards = ForwardTable(harness.table)
    forwards.place(address(GATEWAY_OUT), 0, 8080, [(address(HOST), 80, 1)])
    passes(harness, OUTSIDE, tcp(CONTROL, (GATEWAY_OUT, 8080), "S", seq=1))
    assert ends(passes(harness, INSIDE, tcp(WEB, CONTROL, "SA", seq=1, ack=2)))[1] == CONTROL
    assert dropped(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x")) == "no_session"


def test_5_5_autofw_a_tcp_range():
    harness = leading([(TCP, 2000, 2010, TCP, 7070, True, True)])
    contact(harness)
    assert ends(passes(harness, OUTSIDE, syn((PEER, 20), 2000))) == ((PEER, 20), (HOST, 2000))
    assert ends(passes(harness, INSIDE, tcp((HOST, 2000), (PEER, 20), "SA", seq=1, ack=2)))[0] == (GATEWAY_OUT, 2000)
    passes(harness, OUTSIDE, tcp((PEER, 20), (GATEWAY_OUT, 2000), "A", seq=2, ack=2))
    assert sorted(one["state"] for one in harness.sessions()) == ["established", "syn-sent"]
    assert dropped(harness, OUTSIDE, tcp((PEER, 21), (GATEWAY_OUT, 2001), "R", seq=1)) == "no_session"


def test_5_5_autofw_the_range_is_for_no_outbound_mapping_but_the_triggered_hosts():
    harness = leading([(*MEDIA, True, True)])
    assert ends(passes(harness, INSIDE, udp((OTHER_HOST, 6970), (SERVER, 53), b"x")))[0][1] != 6970
    contact(harness)
    own = passes(harness, INSIDE, udp((HOST, 6971), (PEER, 6971), b"x"))
    assert ends(own)[0] == (GATEWAY_OUT, 6971)
    assert ends(passes(harness, INSIDE, udp((OTHER_HOST, 6972), (PEER, 6971), b"x")))[0][1] != 6972
    arrived = passes(harness, OUTSIDE, udp((PEER, 9), (GATEWAY_OUT, 6971), b"from another port"))
    assert ends(arrived)[1] == (HOST, 6971)
    harness.advance(1000)
    assert ends(passes(harness, INSIDE, udp((HOST, 6971), (PEER, 6971), b"x")))[0][1] != 6971


def test_5_5_autofw_the_range_of_another_hosts_mapping_is_left_to_it():
    harness = leading([(*MEDIA, True, False)])
    contact(harness)
    passes(harness, INSIDE, udp((HOST, 6971), (PEER, 6971), b"x"))
    contact(harness, (OTHER_HOST, 2000))
    assert dropped(harness, OUTSIDE, udp((STRANGER, 5), (GATEWAY_OUT, 6971), b"x")) == "filtered"
    assert ends(passes(harness, OUTSIDE, udp((STRANGER, 5), (GATEWAY_OUT, 6972), b"x")))[1] == (OTHER_HOST, 6972)


def test_5_5_autofw_ports_are_given_back_with_the_last_session():
    harness = leading([(*MEDIA, True, True)])
    contact(harness)
    passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x"))
    assert harness.table.is_mapped(address(GATEWAY_OUT), 1, 6970)
    harness.advance(700)
    assert harness.sessions() == []
    assert not harness.table.is_mapped(address(GATEWAY_OUT), 1, 6970)
    set_rows(harness)
    assert ends(passes(harness, INSIDE, udp((OTHER_HOST, 6970), (SERVER, 53), b"x")))[0] == (GATEWAY_OUT, 6970)


def test_5_5_autofw_example_5_live_sessions_outlive_their_row():
    harness = leading([(*MEDIA, True, True)])
    contact(harness)
    passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x"))
    set_rows(harness)
    assert ends(passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x")))[1] == (HOST, 6970)
    assert dropped(harness, OUTSIDE, udp((PEER, 5001), (GATEWAY_OUT, 6970), b"x")) == "no_session"


def test_5_5_autofw_a_change_of_rows_leaves_a_range_open_that_stays():
    harness = leading([(*MEDIA, True, True)])
    contact(harness)
    set_rows(harness, [(TCP, 1, 2, TCP, 3, True, True), (*MEDIA, True, True)])
    passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x"))
    set_rows(harness, [(*MEDIA, True, False)])
    assert dropped(harness, OUTSIDE, udp((PEER, 5001), (GATEWAY_OUT, 6970), b"x")) == "no_session"


def test_5_5_autofw_what_is_shown_of_a_trigger():
    harness = leading([(*MEDIA, True, True), (UDP, 1, 2, TCP, 7070, False, True)])
    assert harness.triggers.active(harness.now_ns) == [(0, 0, 0)] * 2
    contact(harness)
    harness.advance(5)
    ends_of = (address(HOST), address(PEER))
    assert harness.triggers.active(harness.now_ns) == [(*ends_of, 10_000_000_000), (*ends_of, 0)]
    harness.advance(11)
    assert harness.triggers.active(harness.now_ns) == [(0, 0, 0), (*ends_of, 0)]


def test_c48_errors_about_a_triggered_session_are_translated():
    harness = leading([(*MEDIA, True, True)])
    contact(harness)
    arrived = passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x"))
    told = decode(passes(harness, INSIDE, icmp_error(HOST, PEER, 3, 3, arrived)))
    assert (dotted(told.source), ends(told.quote)) == (GATEWAY_OUT, ((PEER, 5000), (GATEWAY_OUT, 6970)))


def test_an_inside_host_does_not_reach_the_range_by_the_external_address():
    harness = leading([(*MEDIA, True, False)])
    contact(harness)
    assert dropped(harness, INSIDE, udp((OTHER_HOST, 5000), (GATEWAY_OUT, 6970), b"x")) == "no_session"
    passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x"))
    assert dropped(harness, INSIDE, udp((OTHER_HOST, 5000), (GATEWAY_OUT, 6970), b"x")) == "no_session"


def test_a_port_forward_of_the_same_port_goes_first():
    harness = leading([(*MEDIA, True, True)])
    forwards = ForwardTable(harness.table)
    assert forwards.place(address(GATEWAY_OUT), 1, 6970, [(address(OTHER_HOST), 9, 1)])
    contact(harness)
    assert ends(passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x")))[1] == (OTHER_HOST, 9)
    assert ends(passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6971), b"x")))[1] == (HOST, 6971)
    forwards.remove(address(GATEWAY_OUT), 1, 6970)
    assert ends(passes(harness, OUTSIDE, udp((PEER, 5001), (GATEWAY_OUT, 6970), b"x")))[1] == (HOST, 6970)
    assert ends(passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x")))[1] == (OTHER_HOST, 9)


def test_a_forward_may_take_a_port_that_has_triggered_sessions():
    harness = leading([(*MEDIA, True, True)])
    forwards = ForwardTable(harness.table)
    contact(harness)
    passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x"))
    assert forwards.place(address(GATEWAY_OUT), 1, 6970, [(address(OTHER_HOST), 9, 1)])
    assert ends(passes(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x")))[1] == (HOST, 6970)
    assert ends(passes(harness, OUTSIDE, udp((PEER, 5001), (GATEWAY_OUT, 6970), b"x")))[1] == (OTHER_HOST, 9)
    harness.advance(700)
    assert harness.sessions() == []
    assert ends(passes(harness, OUTSIDE, udp((PEER, 5002), (GATEWAY_OUT, 6970), b"x")))[1] == (OTHER_HOST, 9)


def test_a_host_that_already_talks_to_the_remote_endpoint_is_not_given_it_twice():
    harness = leading([(*MEDIA, True, True)])
    passes(harness, INSIDE, udp((HOST, 6970), (PEER, 5000), b"before the contact"))
    contact(harness)
    assert dropped(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 6970), b"x")) == "endpoint_clash"


def test_without_rows_the_ports_are_ports_like_all():
    harness = leading()
    assert harness.forwarder.triggers is None
    assert ends(passes(harness, INSIDE, udp((HOST, 6970), (SERVER, 53), b"x")))[0] == (GATEWAY_OUT, 6970)


def test_there_is_room_for_so_many_rows_and_no_more():
    table = TriggerTable()
    row = (UDP, 1, 2, TCP, 3, True, True)
    table.set_rows([row] * 64, [(UDP, 1, 2)] * 64, {mark: [(1, 1, 1, 1)] * 4 for mark in range(1, 257)})
    for triggers, directs, marks in (
        ([row] * 65, [], {}),
        ([], [(UDP, 1, 2)] * 65, {}),
        ([], [], {mark: [(1, 1, 1, 1)] for mark in range(1, 258)}),
        ([], [], {1: [(1, 1, 1, 1)] * 1025}),
    ):
        with pytest.raises(CapacityError):
            table.set_rows(triggers, directs, marks)
    assert len(table.triggers()) == 64
    assert len(table.marks()) == 256


# -- direct ports ------------------------------------------------------------------------------------------------------


def test_5_5_autofw_example_3_sessions_to_direct_ports_keep_their_source_port():
    harness = leading(directs=[(UDP, 28800, 28900)], ports=range(61000, 65096))
    assert ends(passes(harness, INSIDE, udp((HOST, 28850), (PEER, 28850), b"x")))[0] == (GATEWAY_OUT, 28850)
    assert ends(passes(harness, OUTSIDE, udp((PEER, 28850), (GATEWAY_OUT, 28850), b"x")))[1] == (HOST, 28850)
    assert ends(passes(harness, INSIDE, udp((HOST, 1025), (PEER, 28900), b"x")))[0] == (GATEWAY_OUT, 1025)
    for packet in (udp((HOST, 1026), (PEER, 28901), b"x"), tcp((HOST, 1027), (PEER, 28850), "S", seq=1)):
        assert ends(passes(harness, INSIDE, packet))[0][1] >= 61000


def test_5_5_autofw_direct_ports_hold_in_the_manner_of_1999():
    harness = leading(directs=[(UDP, 28800, 28900)], ports=range(61000, 65096), sequential=True)
    assert ends(passes(harness, INSIDE, udp((HOST, 1025), (PEER, 53), b"x")))[0] == (GATEWAY_OUT, 61000)
    assert ends(passes(harness, INSIDE, udp((HOST, 28850), (PEER, 28850), b"x")))[0] == (GATEWAY_OUT, 28850)
    harness.advance(700)
    assert ends(passes(harness, INSIDE, udp((OTHER_HOST, 28850), (PEER, 28850), b"x")))[0] == (GATEWAY_OUT, 28850)


def test_5_5_autofw_a_direct_port_that_is_taken_or_the_hosts_is_not_kept():
    harness = leading(directs=[(UDP, 28800, 28900)], ports=range(61000, 65096))
    passes(harness, INSIDE, udp((HOST, 28850), (PEER, 28850), b"x"))
    assert ends(passes(harness, INSIDE, udp((OTHER_HOST, 28850), (PEER, 28850), b"x")))[0][1] >= 61000
    assert ends(passes(harness, INSIDE, udp((HOST, 40000), (PEER, 28850), b"x")))[0][1] >= 61000


def test_5_5_autofw_a_kept_port_is_held_down_for_its_host():
    harness = leading(directs=[(UDP, 28800, 28900)], ports=range(61000, 65096))
    passes(harness, INSIDE, udp((HOST, 28850), (PEER, 28850), b"x"))
    harness.advance(310)
    assert harness.sessions() == []
    assert dropped(harness, OUTSIDE, udp((PEER, 28850), (GATEWAY_OUT, 28850), b"late")) == "no_session"
    assert ends(passes(harness, INSIDE, udp((OTHER_HOST, 28850), (PEER, 28850), b"x")))[0][1] >= 61000
    assert ends(passes(harness, INSIDE, udp((HOST, 28850), (PEER, 28850), b"x")))[0] == (GATEWAY_OUT, 28850)


# -- marks -------------------------------------------------------------------------------------------------------------


def by_mark(*hosts: tuple[str, int, int], protocol: int = TCP, port: int = 80, **settings) -> Harness:
    return marking(leading(marks={1: list(hosts)}, **settings), (protocol, port, 1))


def servers(harness: Harness, count: int, first: int = 5000) -> list[str]:
    """Return which hosts get `count` new connections."""
    return [ends(passes(harness, OUTSIDE, syn((PEER, first + number))))[1][0] for number in range(count)]


def test_5_5_mfw_example_1_each_marked_syn_opens_a_session_and_later_segments_follow_it():
    harness = by_mark((HOST, 80, 10))
    assert ends(passes(harness, OUTSIDE, syn((PEER, 5000)))) == ((PEER, 5000), WEB)
    assert ends(passes(harness, INSIDE, tcp(WEB, (PEER, 5000), "SA", seq=9, ack=2)))[0] == (GATEWAY_OUT, 80)
    assert ends(passes(harness, OUTSIDE, tcp((PEER, 5000), (GATEWAY_OUT, 80), "A", seq=2, ack=10)))[1] == WEB
    assert [one["state"] for one in harness.sessions()] == ["established"]
    marking(harness, (TCP, 80, 0))
    assert ends(passes(harness, OUTSIDE, tcp((PEER, 5000), (GATEWAY_OUT, 80), "PA", seq=2, ack=10)))[1] == WEB
    assert harness.triggers.marks() == {1: [(address(HOST), 80, 10, 10)]}  # a single host never rotates


def test_5_5_mfw_example_2_two_hosts_share_by_preference():
    harness = by_mark((HOST, 80, 10), (OTHER_HOST, 80, 20))
    assert servers(harness, 60) == ([HOST] * 10 + [OTHER_HOST] * 20) * 2
    assert servers(harness, 3, 6000) == [HOST] * 3
    assert harness.triggers.marks()[1][0] == (address(HOST), 80, 10, 7)


def test_5_5_mfw_example_3_preference_0_is_pinned():
    harness = by_mark((HOST, 80, 0), (OTHER_HOST, 80, 20))
    assert servers(harness, 40) == [HOST] * 40


def test_5_5_mfw_only_a_syn_without_ack_opens_and_only_marked_packets_do():
    harness = marking(leading(marks={1: [(HOST, 80, 10)]}), (TCP, 80, 1), (UDP, 9000, 2))
    for flags in ("A", "SA", "FA", "R"):
        assert dropped(harness, OUTSIDE, tcp((PEER, 5000), (GATEWAY_OUT, 80), flags, seq=1, ack=1)) == "no_session"
    assert dropped(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 9000), b"mark 2 leads nowhere")) == "no_session"
    assert dropped(harness, OUTSIDE, udp((PEER, 5000), (GATEWAY_OUT, 80), b"unmarked")) == "no_session"


def test_5_5_mfw_udp_and_the_packets_own_port():
    harness = by_mark((HOST, 0, 1), (OTHER_HOST, 7, 1), protocol=UDP, port=9000)
    assert ends(passes(harness, OUTSIDE, udp((PEER, 1), (GATEWAY_OUT, 9000), b"x")))[1] == (HOST, 9000)
    assert ends(passes(harness, OUTSIDE, udp((PEER, 2), (GATEWAY_OUT, 9000), b"x")))[1] == (OTHER_HOST, 7)
    assert ends(passes(harness, OUTSIDE, udp((PEER, 1), (GATEWAY_OUT, 9000), b"x")))[1] == (HOST, 9000)
    assert ends(passes(harness, INSIDE, udp((OTHER_HOST, 7), (PEER, 2), b"x")))[0] == (GATEWAY_OUT, 9000)


def test_5_5_mfw_marks_tell_clients_of_one_port_apart():
    harness = leading(marks={1: [(HOST, 80, 10)], 2: [(OTHER_HOST, 80, 10)]})
    rule_set = RuleSet()
    for source, mark in ((PEER, 1), (STRANGER, 2)):
        match = Match(protocol=TCP, source=(address(source), 0xFFFFFFFF), destination_ports=((80, 80),), syn=True)
        rule_set.append("input", Rule(match=match, mark=("set", mark), target="ACCEPT"))
    harness.set_rule_set(rule_set)
    for _ in range(2):
        assert ends(passes(harness, OUTSIDE, syn((PEER, 5000))))[1] == WEB
        assert ends(passes(harness, OUTSIDE, syn((STRANGER, 5000))))[1] == OTHER_WEB


def test_5_5_mfw_a_mark_made_of_several_rules_counts():
    harness = leading(marks={3: [(HOST, 80, 10)]})
    rule_set = RuleSet()
    for mark in (("set", 1), ("add", 2)):
        rule_set.append("input", Rule(match=Match(protocol=TCP), mark=mark))
    harness.set_rule_set(rule_set)
    assert ends(passes(harness, OUTSIDE, syn((PEER, 5000))))[1] == WEB


def test_5_5_mfw_the_mark_of_a_packet_is_not_that_of_the_next():
    harness = by_mark((HOST, 80, 10))
    passes(harness, OUTSIDE, syn((PEER, 5000)))
    assert delivered(harness, OUTSIDE, syn((PEER, 5001), 443))
    assert dropped(harness, OUTSIDE, syn((PEER, 5001), 2000)) == "no_session"
    assert delivered(harness, OUTSIDE, ping(PEER, GATEWAY_OUT, 7))
    harness.forwarder.set_chains(None)
    assert dropped(harness, OUTSIDE, syn((PEER, 5002))) == "no_session"


def test_5_5_mfw_a_port_of_masquerading_that_is_free_can_be_marked_and_one_in_use_is_left_alone():
    harness = marking(leading(marks={1: [(HOST, 80, 10)]}), (TCP, 2000, 1), (TCP, 2001, 1))
    assert ends(passes(harness, OUTSIDE, syn((PEER, 5000), 2000)))[1] == WEB
    assert ends(passes(harness, INSIDE, tcp((OTHER_HOST, 2000), (SERVER, 80), "S", seq=1)))[0][1] != 2000
    passes(harness, INSIDE, tcp((OTHER_HOST, 2001), (SERVER, 80), "S", seq=1))
    assert dropped(harness, OUTSIDE, syn((STRANGER, 5000), 2001)) == "filtered"


def test_5_5_mfw_a_packet_held_for_its_next_hop_is_led_once():
    harness = by_mark((HOST, 80, 1), (OTHER_HOST, 80, 1))
    assert servers(harness, 4) == [HOST, OTHER_HOST] * 2


def test_5_5_mfw_half_open_sessions_of_strangers_are_limited_and_given_back():
    harness = by_mark((HOST, 80, 10), half_open=4)
    servers(harness, 4)
    assert dropped(harness, OUTSIDE, syn((PEER, 6000))) == "half_open_limit"
    passes(harness, INSIDE, tcp(WEB, (PEER, 5000), "SA", seq=9, ack=2))
    passes(harness, OUTSIDE, tcp((PEER, 5000), (GATEWAY_OUT, 80), "A", seq=2, ack=10))
    passes(harness, OUTSIDE, syn((PEER, 6000)))
    assert dropped(harness, OUTSIDE, syn((PEER, 6001))) == "half_open_limit"
    harness.advance(300)
    assert [one["state"] for one in harness.sessions()] == ["established"]
    assert servers(harness, 4, 7000) == [HOST] * 4


def test_5_5_mfw_a_refused_session_does_not_pass_the_turn_on():
    harness = by_mark((HOST, 80, 1), (OTHER_HOST, 80, 1), half_open=1)
    servers(harness, 1)
    assert dropped(harness, OUTSIDE, syn((PEER, 6000))) == "half_open_limit"
    assert harness.triggers.marks()[1][0][0] == address(OTHER_HOST)


# -- all of it against a slow model ------------------------------------------------------------------------------------


class Slow:
    """What becomes of packets to the external address, in plain Python; times in seconds, multiples of 0.25."""

    def __init__(self, triggers: list[tuple], marks: dict[int, list[tuple[str, int, int]]]) -> None:
        self.triggers = [[row, None, None, 0.0] for row in triggers]
        self.marks = {mark: [[host, port, weight, weight] for host, port, weight in row] for mark, row in marks.items()}

    def outbound(self, protocol: int, host: str, peer: str, port: int, now: float) -> None:
        for trigger in self.triggers:
            if trigger[0][3:5] == (protocol, port):
                trigger[1:] = host, peer, now

    def inbound(self, protocol: int, peer: str, port: int, mark: int, now: float) -> tuple[str, int] | None:
        for row, host, contacted, since in self.triggers:
            in_range = row[0] == protocol and row[1] <= port <= row[2]
            in_time = not row[5] or now - since <= 15
            if in_range and host and in_time and (not row[6] or contacted == peer):
                return host, port
        hosts = self.marks.get(mark)
        if not hosts:
            return None
        host, to, weight, _ = hosts[0]
        if len(hosts) > 1 and weight:
            hosts[0][3] -= 1
            if not hosts[0][3]:
                hosts[0][3] = weight
                hosts.append(hosts.pop(0))
        return host, to or port


@pytest.mark.parametrize("seed", range(12))
def test_5_5_random_traffic_is_led_as_the_slow_model_leads_it(seed: int):
    chance = random.Random(seed)
    triggers = [
        (
            chance.choice([TCP, UDP]),
            first,
            first + 3,
            chance.choice([TCP, UDP]),
            chance.choice([7070, 7071]),
            chance.random() < 0.7,
            chance.random() < 0.6,
        )
        for first in (6970, 6972, 6980)
    ]
    marks = {
        mark: [(host, chance.choice([0, 80]), chance.randrange(4)) for host in ("10.0.0.7", "10.0.0.8", "10.0.0.9")]
        for mark in (1, 2)
    }
    harness = marking(leading(triggers, marks=marks), (TCP, 80, 1), (UDP, 9000, 2))
    slow, start, led = Slow(triggers, marks), harness.now_ns, 0
    for number in range(600):
        harness.advance(chance.choice([0, 0.25, 1, 5]))
        now = (harness.now_ns - start) / 1e9
        protocol, peer = chance.choice([TCP, UDP]), chance.choice([PEER, STRANGER])
        remote = (peer, 10_000 + number)
        if chance.random() < 0.3:
            host, port = chance.choice([HOST, OTHER_HOST]), chance.choice([7070, 7071, 7072])
            inside = (host, 20_000 + number)
            packet = udp(inside, (peer, port), b"x") if protocol == UDP else tcp(inside, (peer, port), "S", seq=1)
            passes(harness, INSIDE, packet)
            slow.outbound(protocol, host, peer, port, now)
            continue
        port = chance.choice([80, 80, 80, 9000, 9000, 9000, *range(6969, 6986)])
        outside = (GATEWAY_OUT, port)
        packet = udp(remote, outside, b"x") if protocol == UDP else tcp(remote, outside, "S", seq=1)
        mark = {(TCP, 80): 1, (UDP, 9000): 2}.get((protocol, port), 0)
        expected = slow.inbound(protocol, peer, port, mark, now)
        sent = harness.send(OUTSIDE, packet)
        assert [ends(out.packet)[1] for out in sent] == ([expected] if expected else []), (number, protocol, port)
        led += expected is not None
    assert led > 50
    shown = {mark: [(address(one[0]), *one[1:]) for one in hosts] for mark, hosts in slow.marks.items()}
    assert harness.triggers.marks() == shown
