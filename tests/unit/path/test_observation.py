"""A path that only observes: it knows answers to the host's NAT, remembers what it would drop, and sends nothing."""

from __future__ import annotations

import numpy as np
import pytest

from fastmasq.path.rows import NO_RULE
from fastmasq.path.verdict import DROP_CODE, DROP_REASONS
from fastmasq.policy.chains import ACCEPT, DENY, INPUT, Match, Rule, RuleSet
from fastmasq.table.forward_table import ForwardTable
from tests.support.harness import HOWTO_ROUTES, Harness, address
from tests.support.packets import ICMP, TCP, UDP, icmp_error, tcp, udp
from tests.support.path_network import (
    EXTERNAL,
    GATEWAY_OUT,
    HERE,
    HOST,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    SERVER,
    THERE,
    answer,
    query,
)

OURS = range(61000, 65096)  # never what the kernel chooses, which keeps the port of the inside host
STRANGER = ("199.0.0.77", 4444)


def observing(**settings) -> Harness:
    return Harness(ports=OURS, observes=True, **settings)


def fate(harness: Harness, link: str, packet: bytes) -> str:
    """Return the verdict on a packet, of a drop the reason; "answer" if it is one to the host. Nothing may be sent."""
    before, notes = harness.forwarder.verdicts(), harness.forwarder.notes()
    assert harness.send(link, packet) == []
    after, noted = harness.forwarder.verdicts(), harness.forwarder.notes()
    moved = [name for name in ("forward", "deliver", "drop") if after[name] > before[name]]
    assert len(moved) == 1, f"{moved}: one packet has one verdict"
    if moved == ["drop"]:
        return next(iter(harness.drops()))
    return "answer" if noted["answers_to_host"] > notes["answers_to_host"] else moved[0]


@pytest.mark.parametrize("protocol", [TCP, UDP, ICMP])
def test_an_answer_to_the_kernels_port_is_the_answer_to_ours(protocol: int) -> None:
    harness = observing()
    assert fate(harness, INSIDE, query(protocol)) == "forward"
    assert fate(harness, OUTSIDE, answer(protocol)) == "forward"
    [session] = harness.sessions()
    assert (session["packets_out"], session["packets_in"]) == (1, 1)
    if protocol != ICMP:
        assert session["external"][1] in OURS


def test_a_connection_is_followed_by_what_both_ends_say() -> None:
    harness = observing()
    for link, packet in (
        (INSIDE, tcp(HERE, THERE, "S", seq=1000)),
        (OUTSIDE, tcp(THERE, EXTERNAL, "SA", seq=5000, ack=1001)),
        (INSIDE, tcp(HERE, THERE, "A", seq=1001, ack=5001)),
    ):
        assert fate(harness, link, packet) == "forward"
    assert harness.sessions()[0]["state"] == "established"


def test_two_hosts_with_one_port_are_told_apart_by_whom_they_ask() -> None:
    harness = observing()
    other = ("199.0.0.2", 80)
    fate(harness, INSIDE, udp(HERE, THERE))
    fate(harness, INSIDE, udp((OTHER_HOST, HERE[1]), other))
    assert fate(harness, OUTSIDE, udp(other, EXTERNAL)) == "forward"
    came_in = {session["inside"][0]: session["packets_in"] for session in harness.sessions()}
    assert came_in == {address(HOST): 0, address(OTHER_HOST): 1}


@pytest.mark.parametrize("flags", ["A", "SA", "R", "FA", "PA"])
def test_a_segment_that_begins_nothing_answers_the_host(flags: str) -> None:
    assert fate(observing(), OUTSIDE, tcp(THERE, EXTERNAL, flags, seq=1, ack=1)) == "answer"


def test_icmp_that_nobody_here_asked_for_answers_the_host() -> None:
    harness = observing()
    assert fate(harness, OUTSIDE, answer(ICMP)) == "answer"
    sent_by_kernel = udp(EXTERNAL, THERE)
    assert fate(harness, OUTSIDE, icmp_error(SERVER, GATEWAY_OUT, 3, 3, sent_by_kernel)) == "answer"


def test_a_datagram_from_whom_nobody_asked_begins_something() -> None:
    harness = observing()
    assert fate(harness, INSIDE, udp(HERE, THERE)) == "forward"
    to_another_port = (GATEWAY_OUT, 61005)
    assert fate(harness, OUTSIDE, udp(THERE, to_another_port)) == "answer"
    assert fate(harness, OUTSIDE, udp(STRANGER, to_another_port)) == "no_session"


def test_the_answer_to_what_would_have_been_dropped_is_the_hosts() -> None:
    harness = observing()
    rules = RuleSet()
    rules.append(INPUT, Rule(match=Match(interface="eth0"), target=DENY))
    harness.set_rule_set(rules)
    here = (HOST, 61005)
    for protocol in (TCP, UDP, ICMP):
        assert fate(harness, INSIDE, query(protocol, here)) == "input_denied"
        assert fate(harness, OUTSIDE, answer(protocol, destination=(GATEWAY_OUT, here[1]))) == "answer"


def test_what_begins_something_is_judged() -> None:
    harness = observing()
    assert fate(harness, OUTSIDE, tcp(STRANGER, (GATEWAY_OUT, 61005), "S")) == "no_session"
    assert fate(harness, OUTSIDE, tcp(STRANGER, (GATEWAY_OUT, 22), "S")) == "deliver"
    assert fate(harness, OUTSIDE, query(ICMP, STRANGER, (GATEWAY_OUT, 1))) == "deliver"


def test_rules_see_an_answer_as_it_would_have_come() -> None:
    harness = observing()
    rules = RuleSet()
    ours = Match(interface="eth1", protocol=UDP, destination_ports=((OURS.start, OURS.stop - 1),))
    rules.append(INPUT, Rule(match=ours, target=ACCEPT))
    rules.append(INPUT, Rule(match=Match(interface="eth1"), target=DENY))
    harness.set_rule_set(rules)
    fate(harness, INSIDE, udp(HERE, THERE))
    harness.rule_counts()
    for _ in range(2):
        assert fate(harness, OUTSIDE, udp(THERE, EXTERNAL)) == "forward"
    assert harness.rule_counts()[INPUT, 1][0] == 2


def test_a_forward_goes_on_with_connections_of_before() -> None:
    harness = observing()
    forwards = ForwardTable(harness.table)
    endpoint = (address(GATEWAY_OUT), 0, 8080)
    forwards.place(*endpoint, [(address(HOST), 80, 10)])
    assert fate(harness, OUTSIDE, tcp(STRANGER, (GATEWAY_OUT, 8080), "A", seq=1, ack=1)) == "forward"
    assert fate(harness, INSIDE, tcp((HOST, 80), STRANGER, "A", seq=1, ack=2)) == "forward"
    assert forwards.opened(*endpoint) == 1
    assert forwards.opened(address(GATEWAY_OUT), 0, 8081) == 0


def test_what_would_be_dropped_is_remembered_with_its_rule() -> None:
    harness = observing()
    rules = RuleSet()
    rules.append(INPUT, Rule(match=Match(source=(address(OTHER_HOST), 0xFFFFFFFF)), target=DENY))
    harness.set_rule_set(rules)
    for port in (1, 2, 3):
        assert fate(harness, INSIDE, udp((OTHER_HOST, port), THERE)) == "input_denied"
    [flow], others = harness.forwarder.dropped_flows()
    assert (flow["packets"], flow["saddr"], flow["daddr"], flow["port"]) == (
        3,
        address(OTHER_HOST),
        address(SERVER),
        80,
    )
    assert (DROP_REASONS[flow["reason"]][0], flow["protocol"], flow["link"], others) == ("input_denied", UDP, 0, 0)
    assert harness.compiled.places[flow["rule"]] == (INPUT, 1)
    harness.set_rule_set(rules)
    assert harness.forwarder.dropped_flows()[0]["rule"] == NO_RULE, "its row may be another rule's now"


def test_a_flood_of_flows_is_counted_whole_in_bounded_room() -> None:
    harness = observing()
    count = 5000
    for number in range(count):
        assert (
            fate(harness, OUTSIDE, udp((f"199.1.{number >> 8}.{number & 255}", 9), (GATEWAY_OUT, 61005)))
            == "no_session"
        )
    flows, others = harness.forwarder.dropped_flows()
    assert len(flows) <= 1024
    assert int(flows["packets"].sum()) + others == count
    assert np.all(flows["reason"] == DROP_CODE["no_session"])


def test_a_damaged_packet_has_a_reason_and_no_flow() -> None:
    harness = observing()
    assert fate(harness, INSIDE, udp(HERE, THERE)[:19]) == "too_short"
    assert len(harness.forwarder.dropped_flows()[0]) == 0


def test_errors_are_counted_and_not_sent() -> None:
    harness = observing()
    assert fate(harness, INSIDE, udp(HERE, THERE, ttl=1)) == "ttl_exceeded"
    assert harness.forwarder.verdicts()["reply"] == 1
    assert harness.senders[INSIDE].sent == 1, "it has gone as far as its sender"


def test_what_is_redirected_to_a_program_is_the_hosts() -> None:
    harness = observing()
    harness.set_routes([route for route in HOWTO_ROUTES if not route[0].startswith("169.254")])
    rules = RuleSet()
    rules.append(
        INPUT, Rule(match=Match(protocol=TCP, destination_ports=((80, 80),)), target="REDIRECT", redirect_port=3128)
    )
    harness.set_rule_set(rules)
    assert fate(harness, INSIDE, tcp(HERE, THERE, "S")) == "deliver"
