"""Whether one match takes all packets of another, by example and against the evaluation of packets."""

from __future__ import annotations

import random
from ipaddress import IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fastmasq.policy.chains import ANY_PORT, Match
from fastmasq.policy.coverage import covers
from fastmasq.policy.evaluate import Packet, matches


def network(text: str) -> tuple[int, int]:
    parsed = IPv4Network(text)
    return int(parsed.network_address), int(parsed.netmask)


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        (Match(), Match(protocol=6, interface="eth1"), True),
        (Match(protocol=6), Match(), False),
        (Match(source=network("10.0.0.0/8")), Match(source=network("10.1.0.0/16")), True),
        (Match(source=network("10.1.0.0/16")), Match(source=network("10.0.0.0/8")), False),
        (Match(source=network("10.0.0.0/8"), not_source=True), Match(source=network("192.168.0.0/16")), True),
        (Match(source=network("10.0.0.0/8"), not_source=True), Match(source=network("10.1.0.0/16")), False),
        (Match(interface="ppp+"), Match(interface="ppp0"), True),
        (Match(interface="ppp0"), Match(interface="ppp+"), False),
        (Match(interface="lo", not_interface=True), Match(interface="eth0"), True),
        (Match(destination_ports=(ANY_PORT,)), Match(protocol=47), True),
        (Match(destination_ports=((80, 90),)), Match(destination_ports=((80, 80),)), True),
        (Match(destination_ports=((80, 90),)), Match(), False),
        (Match(protocol=6, syn=True), Match(protocol=6), False),
        (Match(syn=True), Match(protocol=17), True),
        (Match(source=network("10.0.0.0/8")), Match(source=network("10.0.0.2/32"), swapped_too=True), False),
    ],
)
def test_examples(wide: Match, narrow: Match, covered: bool) -> None:
    assert covers(wide, narrow) == covered


_ends = st.sampled_from([network(text) for text in ("0.0.0.0/0", "10.0.0.0/30", "10.0.0.2/32", "10.0.0.2/31")])
_ports = st.sampled_from([(), (ANY_PORT,), ((1, 2),), ((2, 2),), ((1, 1), (3, 3))])
_flags = st.sampled_from([None, True, False])
_links = st.sampled_from(["", "eth0", "eth+", "ppp0"])

_match = st.builds(
    Match,
    source=_ends,
    destination=_ends,
    protocol=st.sampled_from([0, 6, 17, 47]),
    source_ports=_ports,
    destination_ports=_ports,
    interface=_links,
    interface_address=st.sampled_from([0, 7]),
    syn=_flags,
    ack=st.booleans(),
    fragment=_flags,
    swapped_too=st.booleans(),
    not_source=st.booleans(),
    not_destination=st.booleans(),
    not_protocol=st.booleans(),
    not_source_ports=st.booleans(),
    not_destination_ports=st.booleans(),
    not_interface=st.booleans(),
)
_random = random.Random(1999)
_PACKETS = [
    Packet(
        source=0x0A000000 + _random.randrange(5),
        destination=0x0A000000 + _random.randrange(5),
        protocol=_random.choice([6, 6, 17, 47]),
        source_port=_random.randint(1, 3),
        destination_port=_random.randint(1, 3),
        syn=_random.random() < 0.5,
        ack=_random.random() < 0.5,
        fragment=_random.random() < 0.2,
        interface=_random.choice(["eth0", "eth1", "ppp0"]),
        interface_address=_random.choice([7, 8]),
    )
    for _ in range(150)
]


@settings(deadline=None, max_examples=50)
@given(_match, _match)
def test_no_packet_contradicts(wide: Match, narrow: Match) -> None:
    if covers(wide, narrow):
        assert all(matches(wide, packet) for packet in _PACKETS if matches(narrow, packet))


@settings(deadline=None, max_examples=50)
@given(_match)
def test_a_slightly_wider_match_covers(narrow: Match) -> None:
    """Random pairs seldom cover each other; leaving out a condition makes pairs that often do."""
    for wider in (
        replace(narrow, source=(0, 0), not_source=False),
        replace(narrow, destination_ports=(), not_destination_ports=False),
        replace(narrow, protocol=0, not_protocol=False, syn=None, ack=False),
        replace(narrow, interface="", not_interface=False),
    ):
        if covers(wider, narrow):
            assert all(matches(wider, packet) for packet in _PACKETS if matches(narrow, packet))
    assert covers(Match(), narrow)
    assert covers(narrow, narrow)
