"""Several external addresses at once: a packet has that which fits its route, or each inside host has one of a pool."""

from __future__ import annotations

import pytest

from fastmasq.path.rows import ROUTE_KINDS
from tests.support.harness import HOWTO_ROUTES, Harness, address, plain, unicast
from tests.support.packets import ICMP, TCP, UDP, decode, icmp_error, ipv4, tcp, udp
from tests.support.path_network import (
    GATEWAY_OUT,
    HERE,
    HOST,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    PROTOCOLS,
    THERE,
    answer,
    dropped,
    passes,
    query,
)

OWN, MODEM = "192.168.100.2", ("192.168.100.1", 80)
NEAR_THE_MODEM = [
    *HOWTO_ROUTES,
    ("192.168.100.0/24", unicast(OUTSIDE) | {"source": address(OWN)}),
    (f"{OWN}/32", plain("local")),
]
SIX_IN_FOUR = 41


def source(packet: bytes) -> int:
    return decode(packet).source


def two_subnets() -> Harness:
    """Two networks on the outside link, the modem's and the internet's."""
    harness = Harness(routes=NEAR_THE_MODEM)
    harness.table.hold_external(address(OWN), harness.allowed)
    return harness


def pool_of_two() -> Harness:
    harness = Harness(routes=[*HOWTO_ROUTES, ("200.200.200.201/32", plain("local"))])
    addresses = [address(GATEWAY_OUT), address("200.200.200.201")]
    harness.table.hold_external(addresses[1], harness.allowed, addresses)
    harness.table.set_pool(addresses)
    return harness


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_network_outside_is_reached_by_its_own_address(protocol: int):
    harness = two_subnets()
    for remote, own in ((MODEM, OWN), (THERE, GATEWAY_OUT)):
        assert source(passes(harness, INSIDE, query(protocol, HERE, remote))) == address(own)
        back = decode(passes(harness, OUTSIDE, answer(protocol, remote, (own, HERE[1]))))
        assert (back.source, back.destination) == (address(remote[0]), address(HOST))
    assert {session["external"] for session in harness.sessions()} == {
        (address(OWN), 4000),
        (address(GATEWAY_OUT), 4000),
    }


def test_so_are_protocols_without_ports_and_errors():
    harness = two_subnets()
    harness.forwarder.carry_by_address({SIX_IN_FOUR})
    for remote, own in ((MODEM, OWN), (THERE, GATEWAY_OUT)):
        assert source(passes(harness, INSIDE, ipv4(HOST, remote[0], SIX_IN_FOUR, b"six in four"))) == address(own)
        sent = passes(harness, INSIDE, query(UDP, HERE, remote))
        told = decode(passes(harness, OUTSIDE, icmp_error(remote[0], own, 3, 3, sent)))
        assert told.destination == address(HOST)


def test_a_route_whose_address_we_have_not_leaves_with_the_usual_one():
    harness = Harness(routes=NEAR_THE_MODEM)
    assert source(passes(harness, INSIDE, query(UDP, HERE, MODEM))) == address(GATEWAY_OUT)


def test_rfc4787_req2_each_host_has_one_address_of_the_pool_in_every_protocol():
    harness = pool_of_two()
    harness.forwarder.carry_by_address({SIX_IN_FOUR})
    seen = set()
    for number in range(2, 40):
        host = f"10.0.0.{number}"
        own = harness.table.external_for(address(host))
        for protocol in (TCP, UDP, ICMP):
            assert source(passes(harness, INSIDE, query(protocol, (host, 4000), THERE))) == own
        remote = f"199.0.1.{number}"
        assert source(passes(harness, INSIDE, ipv4(host, remote, SIX_IN_FOUR, b"six in four"))) == own
        seen.add(own)
    assert seen == {address(GATEWAY_OUT), address("200.200.200.201")}


def test_hosts_of_a_pool_reach_each_other_by_their_external_endpoints():
    harness = pool_of_two()
    hosts = [f"10.0.0.{number}" for number in range(2, 10)]
    for host in hosts:
        passes(harness, INSIDE, query(UDP, (host, 5000), THERE))
    own = {host: harness.table.external_for(address(host)) for host in hosts}
    external = {session["inside"][0]: session["external"] for session in harness.sessions()}
    assert len(set(own.values())) == 2
    for one in hosts:
        for other in hosts:
            if one == other:
                continue
            to = (".".join(map(str, external[address(other)][0].to_bytes(4, "big"))), external[address(other)][1])
            [out] = harness.send(INSIDE, udp((one, 5000), to))
            arrived = decode(out.packet)
            assert (arrived.source, arrived.destination) == (own[one], address(other))


def test_what_inside_hosts_say_about_packets_without_a_session_names_their_own_address():
    harness = pool_of_two()
    harness.table.set_filtering("endpoint-independent")
    for host in (HOST, OTHER_HOST, "10.0.0.4", "10.0.0.5"):
        sent = decode(passes(harness, INSIDE, query(UDP, (host, 6000), THERE)))
        stranger = udp(("199.0.0.77", 7), (".".join(map(str, sent.source.to_bytes(4, "big"))), sent.source_port))
        arrived = passes(harness, OUTSIDE, stranger)
        told = decode(passes(harness, INSIDE, icmp_error(host, "199.0.0.77", 3, 3, arrived)))
        assert told.source == harness.table.external_for(address(host))


def test_without_an_address_nothing_leaves():
    harness = pool_of_two()
    harness.table.set_pool(())
    harness.table.set_external(None, harness.allowed)
    harness.send(INSIDE, tcp(HERE, THERE, "S", seq=1))
    assert harness.drops() == {"no_external_address": 1}
    harness.set_routes([*NEAR_THE_MODEM, ("199.0.0.0/24", {"kind": ROUTE_KINDS["blackhole"]})])
    assert dropped(harness, INSIDE, udp(HERE, THERE)) == "no_route"
