"""Packets that may be cut further on, of hosts that share an address: each has an identification of its own."""

from __future__ import annotations

import pytest

from tests.support.harness import Harness
from tests.support.packets import Packet, decode, icmp_error, ipv4, ping, problems, tcp, udp
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
    cut,
    large,
    only,
    partial,
    passes,
)

GSO_UDP_L4 = 5


@pytest.fixture
def harness() -> Harness:
    harness = Harness()
    harness.forwarder.set_renumbering(True)
    return harness


def sent(harness: Harness, packet: bytes, link: str = INSIDE) -> Packet:
    out = only(harness.send(link, packet)).packet
    assert problems(out) == []
    return decode(out)


def test_rfc6864_section_5_3_1_no_two_packets_to_a_remote_have_one_identification(harness: Harness) -> None:
    """Whichever host sends them, in whatever session; drawn at random, some of so many would be the same."""
    found = []
    for number in range(600):
        source = (HOST if number % 2 else OTHER_HOST, 4000 + number % 7)
        found.append(sent(harness, udp(source, (SERVER, 53 + number % 3), b"query", identification=1)).identification)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "packet",
    [
        udp(HERE, THERE, b"x", identification=7),
        tcp(HERE, THERE, "S", identification=7),
        ping(HOST, SERVER, 9, identification=7),
        ipv4(HOST, SERVER, 41, b"without ports", identification=7),
    ],
    ids=["udp", "tcp", "ping", "other"],
)
def test_rfc6864_section_5_3_1_of_every_protocol(harness: Harness, packet: bytes) -> None:
    harness.forwarder.carry_by_address({41})
    assert len({sent(harness, packet).identification for _ in range(20)}) == 20


def test_rfc6864_section_4_1_what_must_not_be_cut_keeps_its_own(harness: Harness) -> None:
    assert sent(harness, udp(HERE, THERE, b"x", identification=7, df=True)).identification == 7


def test_who_does_not_share_an_address_keeps_his_own(harness: Harness) -> None:
    """A remote's, what is routed as it is, and everybody's with the habits of 1999."""
    sent(harness, udp(HERE, THERE, b"x"))
    assert sent(harness, udp(THERE, EXTERNAL, b"x", identification=7), OUTSIDE).identification == 7
    assert sent(harness, udp(HERE, (OTHER_HOST, 80), b"x", identification=7)).identification == 7
    harness.forwarder.set_renumbering(False)
    assert sent(harness, udp(HERE, THERE, b"x", identification=7)).identification == 7


def test_what_turns_round_and_errors_of_inside_hosts_as_well(harness: Harness) -> None:
    sent(harness, udp((OTHER_HOST, 5000), THERE, b"x"))
    turned = {sent(harness, udp(HERE, (GATEWAY_OUT, 5000), b"x", identification=7)).identification for _ in range(20)}
    assert len(turned) == 20
    received = passes(harness, OUTSIDE, udp(THERE, (GATEWAY_OUT, 5000), b"x"))
    refusal = icmp_error(OTHER_HOST, SERVER, 3, 3, received, identification=7)
    assert len({sent(harness, refusal).identification for _ in range(20)}) == 20


def test_a_large_send_takes_as_many_as_it_is_cut_into() -> None:
    harness = Harness(outside_vnet=False)
    harness.forwarder.set_renumbering(True)
    burst = partial(udp(HERE, THERE, bytes(3000), identification=7))
    found = []
    for _ in range(5):
        out = harness.send(INSIDE, burst, vnet=large(GSO_UDP_L4, 500, 42, 6))
        assert len(out) == 6
        found += [decode(each.packet).identification for each in out]
        found.append(sent(harness, udp((OTHER_HOST, 1), THERE, b"x")).identification)
    assert len(set(found)) == len(found)


def test_rfc6864_pieces_and_whole_ones_share_the_count(harness: Harness) -> None:
    found = set()
    for number in range(100):
        found.add(sent(harness, udp(HERE, THERE, b"x")).identification)
        for piece in cut(udp(HERE, THERE, bytes(64), identification=number), 48):
            last = sent_piece(harness, piece)
        found.add(last)
    assert len(found) == 200


def sent_piece(harness: Harness, piece: bytes) -> int:
    return decode(only(harness.send(INSIDE, piece)).packet).identification
