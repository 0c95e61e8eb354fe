"""ICMP errors of our own: what they say, who is never answered (RFC 1812 section 4.3.2.7), and how often others are."""

from __future__ import annotations

import itertools
import struct

import pytest

from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rows import link_row
from tests.support.harness import GATEWAY_MAC, HOWTO_ROUTES, Harness, address, plain
from tests.support.packets import (
    UDP,
    decode,
    icmp,
    icmp_error,
    ipv4,
    ping,
    problems,
    tcp,
    udp,
)
from tests.support.path_network import (
    EXTERNAL,
    GATEWAY_IN,
    GATEWAY_OUT,
    HERE,
    HOST,
    INSIDE,
    OTHER_HOST,
    OUTSIDE,
    PROTOCOLS,
    SERVER,
    THERE,
    answer,
    delivered,
    dropped,
    only,
    opened,
    query,
    refused,
)

NET, HOST_UNREACHABLE, PROHIBITED = 0, 1, 13  # codes of destination unreachable


def is_error(packet: bytes, kind: int, code: int, about: bytes, *, source: str = GATEWAY_IN, rest: int = 0) -> None:
    """The packet is exactly such an error of ours, quoting what was received as far as 576 octets allow."""
    error = decode(packet)
    expected = icmp_error(
        source,
        error.destination,
        kind,
        code,
        about[:548],
        mtu=rest,
        tos=0xC0,
        ttl=64,
        identification=error.identification,
    )
    assert packet == expected
    assert error.destination == decode(about).source


# --- what they say -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("ttl", [0, 1])
def test_rfc1812_section_5_3_1_time_exceeded(protocol: int, ttl: int) -> None:
    packet = query(protocol, ttl=ttl)
    reason, error = refused(Harness(), INSIDE, packet)
    assert reason == "ttl_exceeded"
    is_error(error, 11, 0, packet)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_time_exceeded_towards_the_outside(protocol: int) -> None:
    """Also answers from outside may arrive with their last hop spent; the error shows the external address only."""
    packet = answer(protocol, ttl=1)
    reason, error = refused(opened(protocol), OUTSIDE, packet)
    assert reason == "ttl_exceeded"
    is_error(error, 11, 0, packet, source=GATEWAY_OUT)


def test_a_packet_whose_time_has_run_out_opens_no_session() -> None:
    """traceroute's first probe: no port is spent on it."""
    harness = Harness()
    refused(harness, INSIDE, udp(HERE, THERE, ttl=1))
    assert harness.sessions() == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_packet_whose_time_has_run_out_refreshes_no_session(protocol: int) -> None:
    harness = opened(protocol)
    before = [(session["packets_out"], session["packets_in"]) for session in harness.sessions()]
    refused(harness, INSIDE, query(protocol, ttl=1))
    refused(harness, OUTSIDE, answer(protocol, ttl=1))
    assert [(session["packets_out"], session["packets_in"]) for session in harness.sessions()] == before


@pytest.mark.parametrize("of_session", [False, True])
@pytest.mark.parametrize(("kind", "code"), [("none", NET), ("unreachable", 1), ("prohibit", 13), ("blackhole", None)])
def test_no_route(kind: str, code: int | None, of_session: bool) -> None:
    """RFC 1812 section 5.2.7.1, in the kernel's words (ip-route(8)); a blackhole swallows in silence."""
    harness = opened(UDP) if of_session else Harness()
    harness.set_routes([*HOWTO_ROUTES, ("199.0.0.0/24", plain(kind))])
    packet = udp(HERE, THERE)
    if code is None:
        reason = dropped(harness, INSIDE, packet)
    else:
        reason, error = refused(harness, INSIDE, packet)
        is_error(error, 3, code, packet)
    assert reason == "no_route"


def test_no_external_address() -> None:
    packet = udp(HERE, THERE)
    reason, error = refused(Harness(external=None), INSIDE, packet)
    assert reason == "no_external_address"
    is_error(error, 3, NET, packet)


@pytest.mark.parametrize(
    ("settings", "reason", "code"),
    [
        ({"capacity": 1}, "table_full", HOST_UNREACHABLE),
        ({"ports": [4000]}, "ports_exhausted", HOST_UNREACHABLE),
        ({"sessions_per_host": 1}, "host_session_limit", PROHIBITED),
        ({"ports_per_host": 1}, "host_port_limit", PROHIBITED),
    ],
)
def test_rfc6888_req11_a_refused_session_is_answered(settings: dict, reason: str, code: int) -> None:
    """A shared resource is used up: host unreachable. The host's own share is (RFC 5508 REQ-8): prohibited."""
    harness = opened(UDP, **settings)
    packet = udp((HOST, 4001), THERE, b"one more")
    got, error = refused(harness, INSIDE, packet)
    assert got == reason
    is_error(error, 3, code, packet)


def test_a_host_that_opens_too_fast_is_answered() -> None:
    harness = Harness(rate_per_host=1)
    for port in (4000, 4001):
        only(harness.send(INSIDE, udp((HOST, port), THERE)))
    packet = udp((HOST, 4002), THERE)
    reason, error = refused(harness, INSIDE, packet)
    assert reason == "host_rate_limit"
    is_error(error, 3, PROHIBITED, packet)


@pytest.mark.parametrize("length", [0, 1, 519, 520, 521, 1472])
def test_rfc1812_section_4_3_2_3_size(length: int) -> None:
    """As much of the packet as fits into 576 octets, and all of a shorter one."""
    packet = udp(HERE, THERE, bytes(length), ttl=1)
    _, error = refused(Harness(), INSIDE, packet)
    assert len(error) == min(576, 28 + len(packet))
    is_error(error, 11, 0, packet)
    assert problems(error) == []


def test_options_of_the_packet_are_quoted_and_not_answered() -> None:
    packet = udp(HERE, THERE, ttl=1, options=b"\x94\x04\x00\x00" * 10)
    _, error = refused(Harness(), INSIDE, packet)
    is_error(error, 11, 0, packet)


def test_link_padding_is_not_quoted() -> None:
    packet = udp(HERE, THERE, b"x", ttl=1)
    [error] = Harness().send(INSIDE, packet + b"\xee" * 20)
    is_error(error.packet, 11, 0, packet)


def test_the_error_goes_to_the_station_that_sent_the_packet() -> None:
    """Its link address is in the frame; no next hop on that link needs to be looked up."""
    harness = Harness()
    router = b"\x02\x00\x00\x00\x01\x55"
    harness.rings[INSIDE].push(GATEWAY_MAC[INSIDE] + router + b"\x08\x00" + udp(HERE, THERE, ttl=1))
    harness.forwarder.step(harness.now_ns)
    [(vnet, frame)] = harness.senders[INSIDE].pop()
    assert frame[:14] == router + GATEWAY_MAC[INSIDE] + b"\x08\x00"
    assert vnet == bytes(10)
    assert all(link != 0 for link, _ in harness.forwarder.wanted_hops())
    assert harness.forwarder.traffic(0) == {"rx_packets": 1, "rx_bytes": 42, "tx_packets": 1, "tx_bytes": len(frame)}


def test_identifications_of_errors_differ() -> None:
    """Unpredictable, like the ports: an observer outside learns no count from them."""
    harness = Harness()
    numbers = [decode(refused(harness, INSIDE, udp(HERE, THERE, ttl=1))[1]).identification for _ in range(50)]
    assert len(set(numbers)) > 45
    assert len({after - before for before, after in itertools.pairwise(numbers)}) > 40


# --- who is never answered -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_never_about_an_icmp_error(kind: int) -> None:
    harness = opened()
    inbound = udp(THERE, HERE, b"answer")
    assert dropped(harness, INSIDE, icmp(HOST, SERVER, kind, 1, payload=inbound, ttl=1)) in (
        "ttl_exceeded",
        "icmp_type_refused",
    )
    outbound = udp(EXTERNAL, THERE, b"question")
    packet = icmp(SERVER, GATEWAY_OUT, kind, 1, payload=outbound, ttl=1)
    assert delivered(harness, OUTSIDE, packet) if kind == 5 else dropped(harness, OUTSIDE, packet) == "ttl_exceeded"


@pytest.mark.parametrize("kind", [5, 9, 40, 255])
def test_never_about_an_icmp_type_that_may_be_an_error(kind: int) -> None:
    """RFC 1812: an unknown type is treated like an error."""
    harness = Harness(routes=[*HOWTO_ROUTES, ("199.0.0.0/24", plain("none"))])
    assert dropped(harness, INSIDE, icmp(HOST, SERVER, kind, payload=bytes(20))) == "no_route"


def test_but_about_icmp_queries_and_replies() -> None:
    harness = Harness(routes=[*HOWTO_ROUTES, ("199.0.0.0/24", plain("none"))])
    for kind in (8, 0, 13, 14):
        packet = ping(HOST, SERVER, 1, kind=kind)
        reason, error = refused(harness, INSIDE, packet)
        assert reason == "no_route"
        is_error(error, 3, NET, packet)


@pytest.mark.parametrize(("offset", "answered"), [(0, True), (8, False), (65472, False)])
def test_never_about_a_later_fragment(offset: int, answered: bool) -> None:
    harness = Harness(routes=[*HOWTO_ROUTES, ("199.0.0.0/24", plain("none"))])
    packet = ipv4(HOST, SERVER, UDP, udp(HERE, THERE, bytes(24))[20:], offset=offset, mf=offset < 100)
    if answered:
        reason, error = refused(harness, INSIDE, packet)
        is_error(error, 3, NET, packet)
    else:
        reason = dropped(harness, INSIDE, packet)
    assert reason == "no_route"


@pytest.mark.parametrize("packet_type", [1, 2])
def test_never_about_a_link_broadcast(packet_type: int) -> None:
    harness = Harness(routes=[*HOWTO_ROUTES, ("199.0.0.0/24", plain("none"))])
    harness.inject(INSIDE, udp(HERE, THERE, ttl=1), packet_type=packet_type)
    assert harness.run() == []


@pytest.mark.parametrize("source", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.255.255.255"])
def test_never_to_an_address_that_is_not_one_hosts(source: str) -> None:
    assert dropped(Harness(), INSIDE, udp((source, 4000), THERE, ttl=1)) == "martian_source"


@pytest.mark.parametrize("destination", ["10.255.255.255", "255.255.255.255", "224.0.0.9"])
def test_never_about_a_broadcast_or_multicast_destination(destination: str) -> None:
    assert delivered(Harness(), INSIDE, udp(HERE, (destination, 80), ttl=1))


def test_never_from_a_link_without_an_address() -> None:
    harness = Harness()
    harness.forwarder.set_link(0, link_row(side=0, mtu=1500, address=0, mac=GATEWAY_MAC[INSIDE]))
    assert dropped(harness, INSIDE, udp(HERE, THERE, ttl=1)) == "ttl_exceeded"
    assert harness.forwarder.notes()["replies_suppressed"] == 1


def test_never_with_what_filtering_refuses() -> None:
    """Strangers learn nothing, not even that there is a mapping."""
    harness = opened(UDP)
    assert dropped(harness, OUTSIDE, udp(("8.8.8.8", 53), EXTERNAL)) == "filtered"
    assert dropped(harness, OUTSIDE, udp(("8.8.8.8", 53), EXTERNAL, ttl=1)) == "filtered"
    assert dropped(harness, OUTSIDE, udp(("8.8.8.8", 53), (GATEWAY_OUT, 999))) == "no_session"
    assert dropped(harness, OUTSIDE, tcp(("8.8.8.8", 53), (GATEWAY_OUT, 999), "S")) == "no_session"


# --- how often -----------------------------------------------------------------------------------------------------


def errors_for(harness: Harness, sources: list[str]) -> list[bytes]:
    """Send one expired packet from each source in turn; return the answers."""
    answers = []
    for number, source in enumerate(sources):
        answers += [
            out.packet for out in harness.send(INSIDE, udp((source, 4000), THERE, struct.pack(">I", number), ttl=1))
        ]
    return answers


def test_rfc1812_section_4_3_2_8_ten_a_second_for_each_source() -> None:
    harness = Harness(limit_errors=True)
    assert len(errors_for(harness, [HOST] * 30)) == 10
    assert len(errors_for(harness, [OTHER_HOST] * 30)) == 10
    for _ in range(5):
        harness.now_ns += 1_000_000_000
        assert len(errors_for(harness, [HOST] * 30)) == 10
    harness.now_ns += 100_000_000
    assert len(errors_for(harness, [HOST] * 30)) == 1
    harness.now_ns += 3600 * 1_000_000_000
    assert len(errors_for(harness, [HOST] * 30)) == 10, "silence must not earn more than a burst"


def test_rfc1812_section_4_3_2_8_a_hundred_a_second_for_each_link() -> None:
    harness = Harness(limit_errors=True)
    crowd = [f"10.1.{number // 250}.{number % 250 + 1}" for number in range(500)]
    first = len(errors_for(harness, crowd))
    assert 45 <= first <= 50
    harness.now_ns += 200_000_000
    assert 15 <= len(errors_for(harness, crowd[100:])) <= 20
    harness.now_ns += 10_000_000_000
    assert 45 <= len(errors_for(harness, crowd)) <= 50


def test_a_limited_answer_is_still_a_drop_by_its_reason() -> None:
    harness = Harness(limit_errors=True)
    errors_for(harness, [HOST] * 30)
    assert harness.drops() == {"ttl_exceeded": 30}
    assert harness.forwarder.notes()["replies_suppressed"] == 20
    assert harness.forwarder.verdicts()["reply"] == 10


def test_links_have_limits_of_their_own() -> None:
    harness = opened(UDP, limit_errors=True)
    errors_for(harness, [f"10.1.0.{number + 1}" for number in range(200)])
    assert harness.send(OUTSIDE, udp(THERE, EXTERNAL, ttl=1))


def test_by_default_answers_are_limited() -> None:
    harness = Harness()
    forwarder = Forwarder(harness.table)
    for number, link in enumerate((INSIDE, OUTSIDE)):
        forwarder.attach(number, harness.rings[link], harness.senders[link])
        row = link_row(side=number, mtu=1500, address=address("10.0.0.1"), mac=GATEWAY_MAC[link])
        forwarder.set_link(number, row)
    harness.forwarder = forwarder
    harness.set_routes(HOWTO_ROUTES)
    assert len(errors_for(harness, [HOST] * 30)) == 10
