"""Packets redirected to programs of this host on the packet path: rule T-10 and section 5.3, REDIRECT."""

from __future__ import annotations

import pytest

from fastmasq.policy.chains import Match, Rule, RuleSet
from tests.support.harness import HOWTO_ROUTES, PROGRAMS, Harness, address, plain
from tests.support.packets import TCP, UDP, decode, dotted, icmp_error, problems, tcp, udp
from tests.support.path_network import (
    GATEWAY_IN,
    GATEWAY_OUT,
    HOST,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    ROUTER,
    SERVER,
    cut,
    delivered,
    dropped,
    opened,
    passes,
    refused,
)

LOCAL = "programs"
CLIENT, ASKED, PROGRAM = (HOST, 4000), ("198.51.100.7", 80), (PROGRAMS, 8080)
SECOND_PROGRAM = ("169.254.255.2", 8080)
OUTSIDER = (SERVER, 4000)


def redirecting(port: int = 8080, *, protocol: int = TCP, cache: bool = True, more=(), **settings) -> Harness:
    """Return a Harness whose input chain redirects port 80 of a protocol, after the rules in `more`."""
    harness = Harness(**settings)
    harness.set_rule_set(rule_set(port, protocol, more), cache=cache)
    return harness


def rule_set(port: int = 8080, protocol: int = TCP, more=()) -> RuleSet:
    result = RuleSet()
    for chain, rule in more:
        result.append(chain, rule)
    match = Match(protocol=protocol, destination_ports=((80, 80),))
    result.append("input", Rule(match=match, target="REDIRECT", redirect_port=port))
    return result


def ends(packet: bytes) -> tuple[tuple[str, int], tuple[str, int]]:
    """Return both endpoints of a packet that is whole and has right checksums."""
    assert problems(packet) == []
    decoded = decode(packet)
    return (dotted(decoded.source), decoded.source_port), (dotted(decoded.destination), decoded.destination_port)


def syn(source=CLIENT, destination=ASKED, **ip) -> bytes:
    return tcp(source, destination, "S", seq=1, **ip)


def syn_ack(source=PROGRAM, destination=CLIENT) -> bytes:
    return tcp(source, destination, "SA", seq=100, ack=2)


@pytest.mark.parametrize("cache", [True, False])
def test_t10_there_and_back(cache):
    harness = redirecting(cache=cache)
    for _ in range(3):
        assert ends(passes(harness, INSIDE, syn())) == (CLIENT, PROGRAM)
        assert ends(passes(harness, LOCAL, syn_ack())) == (ASKED, CLIENT)
        assert ends(passes(harness, INSIDE, tcp(CLIENT, ASKED, "A", seq=2, ack=101))) == (CLIENT, PROGRAM)
    [session] = harness.sessions()
    assert (session["protocol"], session["state"]) == ("tcp", "established")
    assert harness.rule_counts() == {
        ("input", 1): (6, 3 * (len(syn()) + len(tcp(CLIENT, ASKED, "A")))),
        ("output", 0): (3, 3 * len(syn_ack())),
    }
    assert harness.drops() == {}


def test_t10_without_a_port_the_packets_own_is_kept():
    harness = redirecting(0, protocol=UDP)
    assert ends(passes(harness, INSIDE, udp(CLIENT, ASKED, b"?"))) == (CLIENT, (PROGRAMS, 80))
    assert ends(passes(harness, LOCAL, udp((PROGRAMS, 80), CLIENT, b"!"))) == (ASKED, CLIENT)


def test_t10_a_packet_of_a_session_is_not_redirected():
    harness = opened(TCP)
    harness.set_rule_set(rule_set())
    went = passes(harness, INSIDE, tcp((HOST, 4000), (SERVER, 80), "A", seq=1001, ack=5001))
    assert ends(went) == ((GATEWAY_OUT, 4000), (SERVER, 80))


def test_t10_what_is_for_the_host_is_not_redirected_after_something_that_is():
    harness = redirecting()
    passes(harness, INSIDE, syn())
    assert delivered(harness, INSIDE, syn(CLIENT, (GATEWAY_IN, 22)))


def test_t10_what_has_an_address_of_ours_is_not_redirected():
    """A mapping gets what is for it; without one its port is nobody's."""
    harness = redirecting(protocol=UDP)
    assert dropped(harness, OUTSIDE, udp(OUTSIDER, (GATEWAY_OUT, 80))) == "no_session"
    passes(harness, INSIDE, udp((HOST, 80), (SERVER, 53), b"?"))
    assert ends(passes(harness, OUTSIDE, udp(OUTSIDER, (GATEWAY_OUT, 80), b"!"))) == (OUTSIDER, (HOST, 80))


def test_t10_the_last_hop_takes_no_hop():
    """What is delivered to this host has not been forwarded: it may come with its last hop."""
    assert ends(passes(redirecting(), INSIDE, syn(ttl=1))) == (CLIENT, PROGRAM)


def test_t10_from_outside():
    harness = redirecting(more=[("forward", Rule(match=Match(), target="DENY"))])
    assert ends(passes(harness, OUTSIDE, syn(OUTSIDER, (HOST, 80)))) == (OUTSIDER, PROGRAM)
    assert ends(passes(harness, LOCAL, syn_ack(PROGRAM, OUTSIDER))) == ((HOST, 80), OUTSIDER)


def test_t10_each_destination_of_one_source_port_has_its_own_address():
    harness = redirecting()
    third = ("198.51.100.9", 80)
    assert ends(passes(harness, INSIDE, syn())) == (CLIENT, PROGRAM)
    assert ends(passes(harness, INSIDE, syn(CLIENT, ("198.51.100.8", 80)))) == (CLIENT, SECOND_PROGRAM)
    assert ends(passes(harness, LOCAL, syn_ack())) == (ASKED, CLIENT)
    assert ends(passes(harness, LOCAL, syn_ack(SECOND_PROGRAM))) == (("198.51.100.8", 80), CLIENT)
    reason, answer = refused(harness, INSIDE, syn(CLIENT, third))
    assert reason == "endpoint_clash"
    assert decode(answer).kind == 3
    assert ends(passes(harness, INSIDE, syn((HOST, 4001), third))) == ((HOST, 4001), PROGRAM)


def test_t10_an_icmp_error_of_the_program_names_what_was_asked():
    harness = redirecting(protocol=UDP)
    arrived = passes(harness, INSIDE, udp(CLIENT, ASKED, b"?"))
    told = passes(harness, LOCAL, icmp_error(PROGRAMS, HOST, 3, 3, arrived))
    assert problems(told) == []
    quoted = decode(decode(told).quote)
    assert (dotted(decode(told).source), dotted(decode(told).destination)) == (ASKED[0], HOST)
    assert (dotted(quoted.source), quoted.source_port) == CLIENT
    assert (dotted(quoted.destination), quoted.destination_port) == ASKED


def test_t10_an_icmp_error_about_an_answer_reaches_the_program():
    harness = redirecting(protocol=UDP)
    passes(harness, INSIDE, udp(CLIENT, ASKED, b"?"))
    answer = passes(harness, LOCAL, udp(PROGRAM, CLIENT, b"!"))
    told = passes(harness, INSIDE, icmp_error(HOST, ASKED[0], 3, 3, answer))
    quoted = decode(decode(told).quote)
    assert dotted(decode(told).destination) == PROGRAMS
    assert (dotted(quoted.source), quoted.source_port) == PROGRAM


def test_t10_an_icmp_error_from_outside_reaches_the_program():
    harness = redirecting(protocol=UDP)
    passes(harness, OUTSIDE, udp(OUTSIDER, (HOST, 80), b"?"))
    answer = passes(harness, LOCAL, udp(PROGRAM, OUTSIDER, b"!"))
    told = passes(harness, OUTSIDE, icmp_error(ROUTER, HOST, 3, 1, answer))
    assert problems(told) == []
    quoted = decode(decode(told).quote)
    assert (dotted(decode(told).source), dotted(decode(told).destination)) == (ROUTER, PROGRAMS)
    assert (dotted(quoted.source), quoted.source_port) == PROGRAM
    stray = icmp_error(ROUTER, HOST, 3, 1, udp((HOST, 81), OUTSIDER))
    assert dropped(harness, OUTSIDE, stray) == "policy_refused"


@pytest.mark.parametrize(
    ("link", "source", "destination"),
    [
        (INSIDE, CLIENT, ASKED),
        (INSIDE, CLIENT, ("10.9.9.9", 80)),  # another inside network, towards which nothing is translated
        (INSIDE, CLIENT, ("192.0.2.1", 80)),  # no route leads there
        (OUTSIDE, OUTSIDER, (HOST, 80)),
    ],
)
def test_t10_a_datagram_in_pieces(link, source, destination):
    """Redirecting needs whole datagrams (C-57), wherever they go."""
    harness = redirecting(protocol=UDP, routes=[*HOWTO_ROUTES, ("192.0.2.0/24", plain("unreachable"))])
    pieces = cut(udp(source, destination, bytes(3000)), 1480, 1480)
    for piece in reversed(pieces):
        harness.inject(link, piece)
    sent = harness.run()
    assert {(out.link, dotted(decode(out.packet).destination)) for out in sent} == {(LOCAL, PROGRAMS)}
    assert len(sent) == len(pieces)


def test_an_answer_too_big_for_the_clients_link_is_told_to_the_program():
    """As if by the client: an address that the host has, or has no way to, would be dropped there."""
    harness = redirecting(protocol=UDP, mtu={INSIDE: 1280})
    passes(harness, INSIDE, udp(CLIENT, ASKED, b"?"))
    answer = udp(PROGRAM, CLIENT, bytes(1400), df=True)
    reason, told = refused(harness, LOCAL, answer)
    assert reason == "fragmentation_needed"
    assert problems(told) == []
    assert (dotted(decode(told).source), dotted(decode(told).destination)) == (HOST, PROGRAMS)
    assert answer.startswith(decode(told).quote[:28])


def test_pieces_that_no_rule_redirects_are_routed_as_they_came():
    harness = redirecting(protocol=UDP, more=[("forward", Rule(match=Match(), target="ACCEPT"))])
    pieces = cut(udp(OUTSIDER, (HOST, 81), bytes(3000)), 1480, 1480)
    for piece in reversed(pieces):
        harness.inject(OUTSIDE, piece)
    sent = harness.run()
    assert {(out.link, dotted(decode(out.packet).destination)) for out in sent} == {(INSIDE, HOST)}
    assert {decode(out.packet).identification for out in sent} == {decode(pieces[0]).identification}
    assert (
        b"".join(out.packet[20:] for out in sorted(sent, key=lambda out: decode(out.packet).offset))
        == udp(OUTSIDER, (HOST, 81), bytes(3000))[20:]
    )


def test_no_session_no_way_out():
    """What a program sends to somebody who was not redirected to it, and a reset that would open a session."""
    harness = redirecting()
    assert dropped(harness, LOCAL, syn_ack()) == "no_session"
    assert dropped(harness, LOCAL, udp(PROGRAM, (SERVER, 53))) == "no_session"
    assert dropped(harness, INSIDE, tcp(CLIENT, ASKED, "R", seq=1)) == "no_session"
    assert harness.sessions() == []


def test_nobody_reaches_the_link_by_its_addresses():
    harness = redirecting()
    assert dropped(harness, INSIDE, syn(CLIENT, (PROGRAMS, 8080))) == "martian_destination"
    assert dropped(harness, OUTSIDE, syn(OUTSIDER, (PROGRAMS, 8080))) == "martian_destination"
    assert dropped(harness, INSIDE, udp(PROGRAM, (SERVER, 53))) == "martian_source"
    assert dropped(harness, OUTSIDE, syn(CLIENT, ASKED)) == "martian_source"


def test_rfc1812_5_3_7_a_martian_destination_is_not_redirected():
    harness = redirecting()
    for asked in ("127.0.0.1", "0.0.0.0", "240.0.0.1", PROGRAMS):
        assert dropped(harness, INSIDE, syn(CLIENT, (asked, 80))) == "martian_destination"


def test_a_stranger_is_not_told_of_a_limit():
    harness = redirecting(sessions_per_host=1)
    passes(harness, OUTSIDE, syn(OUTSIDER, (HOST, 80)))
    assert dropped(harness, OUTSIDE, syn((SERVER, 4001), (HOST, 80))) == "host_session_limit"


def test_an_inside_host_pays_from_its_share():
    harness = redirecting(sessions_per_host=2)
    passes(harness, INSIDE, syn())
    passes(harness, INSIDE, syn((HOST, 4001)))
    assert refused(harness, INSIDE, syn((HOST, 4002)))[0] == "host_session_limit"
    assert ends(passes(harness, INSIDE, syn((OTHER_HOST, 4000)))) == ((OTHER_HOST, 4000), PROGRAM)
    assert harness.table.counts()["hosts"] == 2
    harness.advance(3600)
    assert (harness.table.counts()["active"], harness.table.counts()["hosts"]) == (0, 0)


def test_a_stranger_who_does_not_go_on_is_forgotten_soon():
    harness = redirecting()
    passes(harness, OUTSIDE, syn(OUTSIDER, (HOST, 80)))
    passes(harness, LOCAL, syn_ack(PROGRAM, OUTSIDER))
    harness.advance(5 * 60)
    assert harness.sessions() == []


def test_without_the_link_there_is_a_name_for_it():
    harness = redirecting()
    harness.forwarder.set_proxies(address("203.0.113.1"), 2)
    assert dropped(harness, INSIDE, syn()) == "link_down"


def test_5_3_only_the_input_chain_redirects():
    match = Match(protocol=TCP)
    for chain, reason in (("forward", "forward_denied"), ("output", None)):
        harness = Harness()
        rules = RuleSet()
        rules.new_chain("aside")
        rules.append("aside", Rule(match=match, target="REDIRECT", redirect_port=8080))
        rules.append("forward", Rule(match=Match(), target="aside" if chain == "forward" else "MASQ"))
        if chain == "output":
            rules.append("output", Rule(match=match, target="aside"))
        harness.set_rule_set(rules)
        if reason:
            assert dropped(harness, INSIDE, syn()) == reason
        else:
            assert ends(passes(harness, INSIDE, syn())) == ((GATEWAY_OUT, 4000), ASKED)
