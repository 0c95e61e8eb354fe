"""What SYNs offer as their MSS: lowered to what links and routes can carry or to what is set, and never raised."""

from __future__ import annotations

import pytest

from fastmasq.table.forward_table import ForwardTable
from tests.support.harness import HOWTO_ROUTES, Harness, address, unicast
from tests.support.packets import decode, problems, tcp
from tests.support.path_network import (
    EXTERNAL,
    GATEWAY_OUT,
    HERE,
    HOST,
    INSIDE,
    NEEDS_CHECKSUM,
    OTHER_HOST,
    OUTSIDE,
    SERVER,
    THERE,
    completed,
    large,
    only,
    partial,
    passes,
)

MSS, AT_ODD_OFFSET = b"\2\4", b"\1\2\4"
SMALL_OUTSIDE = {"mtu": {INSIDE: 1500, OUTSIDE: 1400}}


def offering(octets: int, source=HERE, destination=THERE, flags: str = "S", option: bytes = MSS, **fields) -> bytes:
    return tcp(source, destination, flags, seq=1, tcp_options=option + octets.to_bytes(2, "big"), **fields)


def offered(packet: bytes) -> int:
    """Return the MSS that a packet offers, whose checksums are right."""
    assert problems(packet) == []
    options = decode(packet).body[20:]
    at = options.index(MSS) + 2
    return int.from_bytes(options[at : at + 2], "big")


def sent(harness: Harness, link: str, packet: bytes) -> int:
    return offered(only(harness.send(link, packet)).packet)


@pytest.mark.parametrize("option", [MSS, AT_ODD_OFFSET])
@pytest.mark.parametrize("octets", [1361, 1460, 1461, 0x8000, 65535])
def test_rfc6691_section_2_both_syns_are_lowered_to_the_smaller_link(octets: int, option: bytes) -> None:
    for mtu in ({INSIDE: 1500, OUTSIDE: 1400}, {INSIDE: 1400, OUTSIDE: 1500}):
        harness = Harness(mtu=mtu)
        assert sent(harness, INSIDE, offering(octets, option=option)) == 1360
        assert sent(harness, OUTSIDE, offering(octets, THERE, EXTERNAL, "SA", option, ack=2)) == 1360
        assert harness.drops() == {}


@pytest.mark.parametrize("octets", [0, 1, 536, 1359, 1360])
def test_nothing_is_raised(octets: int) -> None:
    assert sent(Harness(**SMALL_OUTSIDE), INSIDE, offering(octets)) == octets


def test_rfc6691_section_2_routes_count_as_well() -> None:
    """That to the destination, and that by which the answers' data goes: a SYN says what its sender takes."""
    harness = Harness(routes=[*HOWTO_ROUTES, ("199.0.0.0/16", unicast(OUTSIDE, "200.200.200.1", mtu=1300))])
    assert sent(harness, INSIDE, offering(1460)) == 1260
    assert sent(harness, OUTSIDE, offering(1460, THERE, EXTERNAL, "SA", ack=2)) == 1260
    assert sent(harness, INSIDE, offering(1460, destination=("62.1.2.3", 80))) == 1460


def test_a_number_goes_for_every_way_and_off_for_none() -> None:
    harness = Harness(**SMALL_OUTSIDE)
    harness.forwarder.set_mss(1000)
    assert sent(harness, INSIDE, offering(1460)) == 1000
    assert sent(harness, INSIDE, offering(999, (HOST, 4001))) == 999
    harness.forwarder.set_mss(0)
    assert sent(harness, INSIDE, offering(1460, (HOST, 4002))) == 1460
    harness.forwarder.set_mss(None)
    assert sent(harness, INSIDE, offering(1460, (HOST, 4003))) == 1360


def test_forwards_hairpin_and_routes_between_inside_networks() -> None:
    harness = Harness(mtu={INSIDE: 1400, OUTSIDE: 1500})
    forwards = ForwardTable(harness.table, 1024)
    forwards.place(address(GATEWAY_OUT), 0, 80, [(address(HOST), 80, 1)])
    client = ("62.1.2.3", 5000)
    assert sent(harness, OUTSIDE, offering(1460, client, (GATEWAY_OUT, 80))) == 1360
    assert sent(harness, INSIDE, offering(1460, (HOST, 80), client, "SA", ack=2)) == 1360
    assert sent(harness, INSIDE, offering(1460, (OTHER_HOST, 5000), (GATEWAY_OUT, 80))) == 1360
    assert sent(harness, INSIDE, offering(1460, (OTHER_HOST, 5000), (HOST, 80))) == 1360


@pytest.mark.parametrize("option", [MSS, AT_ODD_OFFSET])
@pytest.mark.parametrize("outside_vnet", [True, False], ids=["offloads", "no-offloads"])
def test_a_partial_checksum_is_right_once_it_is_completed(option: bytes, outside_vnet: bool) -> None:
    harness = Harness(outside_vnet=outside_vnet, **SMALL_OUTSIDE)
    unfinished = partial(offering(1460, option=option))
    out = only(harness.send(INSIDE, unfinished, vnet=large(0, 0)))
    assert (out.vnet is not None and out.vnet[0] == NEEDS_CHECKSUM) == outside_vnet
    assert offered(completed(out.packet) if outside_vnet else out.packet) == 1360


def test_data_that_looks_like_the_option_stays_as_it_is() -> None:
    harness = Harness(**SMALL_OUTSIDE)
    sent(harness, INSIDE, offering(1360))
    for flags in ("A", "PA", "FA"):
        segment = tcp(HERE, THERE, flags, seq=2, ack=1, payload=MSS + b"\5\xb4")
        assert decode(passes(harness, INSIDE, segment)).payload == MSS + b"\5\xb4"
    fast_open = tcp((HOST, 4001), THERE, "S", seq=1, payload=MSS + b"\5\xb4")
    assert decode(passes(harness, INSIDE, fast_open)).payload == MSS + b"\5\xb4"


def test_a_syn_that_waits_for_its_next_hop_is_lowered_once_it_goes() -> None:
    harness = Harness(**SMALL_OUTSIDE)
    harness.inject(INSIDE, offering(1460, destination=(SERVER, 81)))
    assert [offered(out.packet) for out in harness.run()] == [1360]
