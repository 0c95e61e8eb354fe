"""ICMP errors: every type, in both directions, about every protocol, with short and long quotes; and those refused."""

from __future__ import annotations

import struct

import pytest

from tests.support.harness import Harness
from tests.support.packets import (
    BAD,
    ICMP,
    TCP,
    UDP,
    cut,
    icmp,
    icmp_error,
    ipv4,
    ping,
    problems,
    tcp,
    udp,
    with_ip_checksum,
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
    ROUTER,
    SERVER,
    THERE,
    delivered,
    dropped,
    opened,
    passes,
)

OTHER_PORT = 61000
INNER_ROUTER = "10.9.9.9"
TYPES = [
    *((3, code, 0) for code in range(16) if code != 4),
    (3, 4, 1280),
    (3, 4, 0),
    (4, 0, 0),
    (11, 0, 0),
    (11, 1, 0),
    (12, 0, 0x14000000),
    (12, 1, 0x01000000),
]
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


class Flow:
    """A session of one protocol, and its packets as they look inside and outside."""

    def __init__(self, protocol: int, *, keep: bool = True, **settings) -> None:
        self.protocol = protocol
        self.harness = Harness(ports=range(1, 65536) if keep else [OTHER_PORT], **settings)
        if protocol == ICMP and not keep:
            passes(self.harness, INSIDE, ping(OTHER_HOST, SERVER, HERE[1]))  # has the identifier already
        out = passes(self.harness, INSIDE, self.outbound(HERE))
        external = struct.unpack(">H", out[24:26] if protocol == ICMP else out[20:22])[0]
        assert (external == HERE[1]) is keep
        self.external = (GATEWAY_OUT, external)
        passes(self.harness, OUTSIDE, self.inbound(self.external))

    def outbound(self, source, payload: bytes = b"question", **ip) -> bytes:
        """A packet of the inside end, as sent by `source`: HERE inside, the external endpoint outside."""
        if self.protocol == TCP:
            return tcp(source, THERE, "S", seq=1000, payload=payload, **ip)
        if self.protocol == UDP:
            return udp(source, THERE, payload, **ip)
        return ping(source[0], SERVER, source[1], payload=payload, **ip)

    def inbound(self, destination, payload: bytes = b"answer", **ip) -> bytes:
        if self.protocol == TCP:
            return tcp(THERE, destination, "SA", seq=5000, ack=1009, payload=payload, **ip)
        if self.protocol == UDP:
            return udp(THERE, destination, payload, **ip)
        return ping(SERVER, destination[0], destination[1], kind=0, payload=payload, **ip)

    def from_outside(
        self, quote=lambda packet: packet, kind: int = 3, code: int = 3, rest: int = 0, **ip
    ) -> tuple[bytes, bytes]:
        """Let a router report a packet of ours; return what the inside gets, and what it should get."""
        left = self.outbound(self.external, ttl=7, **ip)
        expected = self.outbound(HERE, ttl=7, **ip)
        got = passes(
            self.harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, kind, code, quote(left), mtu=rest, tos=0xC0)
        )
        return got, icmp_error(ROUTER, HOST, kind, code, quote(expected), mtu=rest, tos=0xC0, ttl=63)

    def from_inside(
        self, quote=lambda packet: packet, kind: int = 3, code: int = 3, rest: int = 0, reporter: str = HOST, **ip
    ) -> tuple[bytes, bytes]:
        """Let an inside host or router report a packet that came in; return what goes out, and what should."""
        arrived = self.inbound(HERE, ttl=7, **ip)
        expected = self.inbound(self.external, ttl=7, **ip)
        got = passes(self.harness, INSIDE, icmp_error(reporter, SERVER, kind, code, quote(arrived), mtu=rest))
        return got, icmp_error(GATEWAY_OUT, SERVER, kind, code, quote(expected), mtu=rest, ttl=63)


def same(pair: tuple[bytes, bytes]) -> None:
    """What came out is what should have, octet for octet, all checksums included."""
    got, expected = pair
    assert got == expected
    assert problems(got) == []


# --- what is translated --------------------------------------------------------------------------------------------


@every_protocol
@pytest.mark.parametrize("keep", [True, False], ids=["port kept", "other port"])
@pytest.mark.parametrize(("kind", "code", "rest"), TYPES)
def test_C45_every_type_both_ways(protocol: int, keep: bool, kind: int, code: int, rest: int) -> None:
    flow = Flow(protocol, keep=keep)
    same(flow.from_outside(kind=kind, code=code, rest=rest))
    same(flow.from_inside(kind=kind, code=code, rest=rest))
    for quote in (cut, lambda packet: cut(packet, 9), lambda packet: cut(packet, 12)):
        same(flow.from_outside(quote, kind=kind, code=code, rest=rest))
        same(flow.from_inside(quote, kind=kind, code=code, rest=rest))


@every_protocol
@pytest.mark.parametrize("octets", [8, 9, 11, 16, 18, 19, 20, 21, 27])
def test_quotes_of_every_length(protocol: int, octets: int) -> None:
    """A TCP checksum is rewritten only if all of it is quoted (18 octets); odd lengths are padded for the sum."""
    flow = Flow(protocol, keep=False)
    same(flow.from_outside(lambda packet: cut(packet, octets)))
    same(flow.from_inside(lambda packet: cut(packet, octets)))


def test_half_a_quoted_tcp_checksum_is_left_as_it_is() -> None:
    got, expected = Flow(TCP, keep=False).from_outside(lambda packet: cut(packet, 17))
    assert got[:22] + got[24:-1] == expected[:22] + expected[24:-1]
    assert problems(got) == []


@every_protocol
@pytest.mark.parametrize("reporter", [HOST, OTHER_HOST, INNER_ROUTER])
def test_rfc5508_req5_the_inside_reporter_is_hidden(protocol: int, reporter: str) -> None:
    """Also a router inside: its private address never shows; and it was its packet to report."""
    flow = Flow(protocol)
    same(flow.from_inside(kind=11, code=0, reporter=reporter))


@every_protocol
def test_rfc4787_req12a_the_outside_reporter_is_shown(protocol: int) -> None:
    """Any router may report, also the server itself, whose error has the source of the session's remote."""
    for reporter in (ROUTER, SERVER, "8.8.8.8", "200.200.200.1"):
        flow = Flow(protocol)
        left, expected = flow.outbound(flow.external, ttl=5), flow.outbound(HERE, ttl=5)
        out = passes(flow.harness, OUTSIDE, icmp_error(reporter, GATEWAY_OUT, 11, 0, left))
        assert out == icmp_error(reporter, HOST, 11, 0, expected, ttl=63)


@every_protocol
def test_rfc4884_extensions_travel_behind_the_quote(protocol: int) -> None:
    """The quote is padded to 128 octets, an extension object (an MPLS label stack) follows; the length field stays."""
    extension = bytes.fromhex("2000dc6e0008010118881101")

    def quote(packet: bytes) -> bytes:
        return packet[:128].ljust(128, b"\0") + extension

    flow = Flow(protocol, keep=False)
    for kind, code in ((11, 0), (3, 1), (12, 0)):
        same(flow.from_outside(quote, kind=kind, code=code, rest=32 << 16))
        same(flow.from_inside(quote, kind=kind, code=code, rest=32 << 16))


@every_protocol
@pytest.mark.parametrize("options", ["94040000", "0707040000000000", "01" * 40])
def test_rfc5508_req3b_options_in_the_quoted_header(protocol: int, options: str) -> None:
    flow = Flow(protocol, keep=False)
    same(flow.from_outside(options=bytes.fromhex(options)))
    same(flow.from_inside(options=bytes.fromhex(options)))
    same(flow.from_outside(cut, options=bytes.fromhex(options)))


@every_protocol
def test_a_quote_may_be_damaged_where_only_its_owner_looks(protocol: int) -> None:
    """A wrong transport checksum in the quote is the same afterwards: it is not ours to judge (RFC 5508 REQ-3)."""
    flow = Flow(protocol, keep=False)
    same_but_for_the_quote = flow.from_outside(checksum=BAD)
    assert same_but_for_the_quote[0] == same_but_for_the_quote[1]
    got, expected = flow.from_inside(checksum=BAD)
    assert got == expected


def test_a_quoted_udp_datagram_without_checksum() -> None:
    flow = Flow(UDP, keep=False)
    same(flow.from_outside(checksum=0))
    same(flow.from_inside(checksum=0))


def test_a_large_error_is_no_longer_than_it_was() -> None:
    """RFC 1812 allows 576 octets, but longer ones exist; nothing is cut or padded."""
    flow = Flow(UDP, keep=False)
    for length in (1, 520, 521, 1424):
        same(flow.from_outside(payload=bytes(length)))
        same(flow.from_inside(payload=bytes(length)))


def test_ip_options_before_an_error() -> None:
    flow = Flow(UDP)
    quote, expected = flow.outbound(flow.external, ttl=3), flow.outbound(HERE, ttl=3)
    out = passes(flow.harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 1, quote, options=b"\x94\x04\x00\x00"))
    assert out == icmp_error(ROUTER, HOST, 3, 1, expected, options=b"\x94\x04\x00\x00", ttl=63)


def test_an_error_about_a_later_segment_of_a_connection() -> None:
    """RFC 5927: the quoted sequence number must be one we have sent, up to a window ago, also across the wrap."""
    harness = opened(TCP)
    passes(harness, INSIDE, tcp(HERE, THERE, "A", seq=1009, ack=5007))
    passes(harness, INSIDE, tcp(HERE, THERE, "PA", seq=1009, ack=5007, payload=bytes(1000)))
    for seq in (1009, 2009, 2008, 1000):
        quote = tcp(EXTERNAL, THERE, "PA", seq=seq, ack=5007, payload=bytes(8))
        assert passes(harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 1, quote))


@pytest.mark.parametrize("seq", [2010, 3000, 0x50000000, 0xC0000000 - 5])
def test_rfc5927_an_error_about_a_segment_we_never_sent(seq: int) -> None:
    """A blind attacker has to guess: what was not sent, or an age ago, is none of ours."""
    harness = opened(TCP)
    passes(harness, INSIDE, tcp(HERE, THERE, "PA", seq=1009, ack=5007, payload=bytes(1000)))
    quote = tcp(EXTERNAL, THERE, "PA", seq=seq, ack=5007, payload=bytes(8))
    assert delivered(harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 1, quote))


# --- what an error may not do --------------------------------------------------------------------------------------


@every_protocol
def test_rfc5508_req6_an_error_refreshes_nothing_and_ends_nothing(protocol: int) -> None:
    life = {TCP: 7440, UDP: 300, ICMP: 60}[protocol]
    flow = Flow(protocol)
    if protocol == ICMP:
        flow.harness.advance(0.1)
    before = flow.harness.sessions()
    flow.harness.advance(life - 1)
    for kind, code, rest in TYPES:
        flow.from_outside(kind=kind, code=code, rest=rest)
        flow.from_inside(kind=kind, code=code, rest=rest)
    assert flow.harness.sessions() == before
    flow.harness.advance(1.6)
    assert flow.harness.sessions() == []


@every_protocol
def test_rfc5508_req4_an_error_opens_nothing(protocol: int) -> None:
    harness = Harness()
    inbound = Flow(protocol).inbound(HERE)
    assert dropped(harness, INSIDE, icmp_error(HOST, SERVER, 3, 3, inbound)) == "no_session"
    assert harness.sessions() == []


@every_protocol
def test_errors_about_nothing_of_ours_are_the_hosts(protocol: int) -> None:
    """The gateway's own programs get errors as well: its kernel sorts them out."""
    flow = Flow(protocol)
    other = flow.outbound((GATEWAY_OUT, 999))
    if protocol != ICMP:
        assert delivered(flow.harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 1, other))
    to_other_remote = other[:16] + bytes((8, 8, 8, 8)) + other[20:]
    assert delivered(flow.harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 1, with_ip_checksum(to_other_remote)))


@every_protocol
def test_only_the_sender_of_the_quoted_packet_may_be_told(protocol: int) -> None:
    """The quote's source must be where the error goes."""
    flow = Flow(protocol)
    assert delivered(flow.harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 1, flow.inbound(flow.external)))
    assert dropped(flow.harness, INSIDE, icmp_error(HOST, "8.8.8.8", 3, 1, flow.inbound(HERE))) == "no_session"


@pytest.mark.parametrize("protocol", [2, 47, 50, 99])
def test_an_error_about_another_protocol(protocol: int) -> None:
    harness = opened()
    quote = ipv4(GATEWAY_OUT, SERVER, protocol, bytes(16))
    assert delivered(harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 2, quote))
    assert (
        dropped(harness, INSIDE, icmp_error(HOST, SERVER, 3, 2, ipv4(SERVER, HOST, protocol, bytes(16))))
        == "no_session"
    )


def test_rfc1122_an_error_about_an_error_is_not_translated() -> None:
    flow = Flow(UDP)
    inner = icmp_error(GATEWAY_OUT, SERVER, 3, 3, flow.inbound(flow.external))
    assert delivered(flow.harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 11, 0, inner))


def test_an_error_with_its_time_run_out_goes_no_further_and_is_not_answered() -> None:
    flow = Flow(UDP)
    for ttl in (0, 1):
        packet = icmp_error(ROUTER, GATEWAY_OUT, 3, 1, flow.outbound(flow.external), ttl=ttl)
        assert dropped(flow.harness, OUTSIDE, packet) == "ttl_exceeded"


def test_a_redirect_is_never_translated() -> None:
    flow = Flow(UDP)
    assert delivered(flow.harness, OUTSIDE, icmp(ROUTER, GATEWAY_OUT, 5, 1, payload=flow.outbound(flow.external)))
    assert dropped(flow.harness, INSIDE, icmp(HOST, SERVER, 5, 1, payload=flow.inbound(HERE))) == "icmp_type_refused"


# --- damaged errors ------------------------------------------------------------------------------------------------


@every_protocol
def test_rfc5508_req3a_a_wrong_icmp_checksum(protocol: int) -> None:
    flow = Flow(protocol)
    quote = flow.outbound(flow.external)
    assert (
        dropped(flow.harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 1, quote, checksum=BAD))
        == "bad_icmp_checksum"
    )
    inside = icmp_error(HOST, SERVER, 3, 3, flow.inbound(HERE), checksum=BAD)
    assert dropped(flow.harness, INSIDE, inside) == "bad_icmp_checksum"


@every_protocol
def test_rfc5508_req3b_a_wrong_checksum_of_the_quoted_header(protocol: int) -> None:
    flow = Flow(protocol)
    for quote in (flow.outbound(flow.external, ip_checksum=BAD), flow.outbound(flow.external, ip_checksum=0)):
        assert dropped(flow.harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 1, quote)) == "bad_quoted_header"


@every_protocol
def test_a_quote_cut_too_short(protocol: int) -> None:
    """Less than a header and 8 octets cannot be translated, nor may it pass as it is."""
    flow = Flow(protocol)
    whole = flow.outbound(flow.external)
    for octets in range(28):
        assert (
            dropped(flow.harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 1, whole[:octets])) == "bad_quoted_header"
        )
    with_options = flow.outbound(flow.external, options=b"\x01" * 8)
    for octets in (28, 35):
        packet = icmp_error(ROUTER, GATEWAY_OUT, 3, 1, with_options[:octets])
        assert dropped(flow.harness, OUTSIDE, packet) == "bad_quoted_header"


@every_protocol
@pytest.mark.parametrize("first_octet", [0x05, 0x65, 0x44, 0x40, 0x4F])
def test_a_quote_that_is_no_ipv4_header(protocol: int, first_octet: int) -> None:
    flow = Flow(protocol)
    quote = bytes([first_octet]) + flow.outbound(flow.external)[1:]
    assert dropped(flow.harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 3, 1, quote)) == "bad_quoted_header"


@pytest.mark.parametrize("offset", [8, 1480])
def test_a_quoted_later_fragment_has_no_ports(offset: int) -> None:
    flow = Flow(UDP)
    quote = ipv4(GATEWAY_OUT, SERVER, UDP, udp(flow.external, THERE, b"fragment")[20:], offset=offset)
    assert dropped(flow.harness, OUTSIDE, icmp_error(ROUTER, GATEWAY_OUT, 11, 1, quote)) == "bad_quoted_header"


def test_a_quoted_first_fragment_is_translated() -> None:
    """Reassembly time exceeded (11/1) quotes the first fragment: it has all that is needed."""
    same(Flow(UDP).from_outside(kind=11, code=1, mf=True))


@pytest.mark.parametrize("mtu", [1, 67])
def test_rfc791_an_mtu_under_68_cannot_be(mtu: int) -> None:
    flow = Flow(UDP)
    packet = icmp_error(ROUTER, GATEWAY_OUT, 3, 4, flow.outbound(flow.external), mtu=mtu)
    assert dropped(flow.harness, OUTSIDE, packet) == "bad_mtu_in_icmp"
    packet = icmp_error(HOST, SERVER, 3, 4, flow.inbound(HERE), mtu=mtu)
    assert dropped(flow.harness, INSIDE, packet) == "bad_mtu_in_icmp"


@pytest.mark.parametrize("mtu", [0, 68, 576, 65535])
def test_C50_other_mtus_are_passed_on(mtu: int) -> None:
    """0 is what routers before RFC 1191 say."""
    same(Flow(UDP).from_outside(kind=3, code=4, rest=mtu))


# --- without a session, and turned round ---------------------------------------------------------------------------


def test_an_error_from_inside_about_a_packet_that_came_in_without_a_session() -> None:
    """The remote's other port came in through the mapping; the host's port unreachable goes back to it."""
    harness = opened(UDP, ports=[OTHER_PORT])
    stranger, external = (SERVER, 9999), (GATEWAY_OUT, OTHER_PORT)
    assert passes(harness, OUTSIDE, udp(stranger, external, b"hello")) == udp(stranger, HERE, b"hello", ttl=63)
    out = passes(harness, INSIDE, icmp_error(HOST, SERVER, 3, 3, udp(stranger, HERE, b"hello", ttl=63)))
    assert out == icmp_error(GATEWAY_OUT, SERVER, 3, 3, udp(stranger, external, b"hello", ttl=63), ttl=63)
    assert harness.forwarder.notes()["stateless_inbound"] == 1


def test_rfc5508_req7_an_error_between_inside_hosts_is_turned_round() -> None:
    """A talks to B's external endpoint; B's error reaches A in terms of what A sent, and hides B."""
    harness = Harness(ports=[61000, 61001])
    b, a = (OTHER_HOST, 5000), (HOST, 4000)
    b_external = (GATEWAY_OUT, struct.unpack(">H", passes(harness, INSIDE, udp(b, THERE))[20:22])[0])
    [out] = harness.send(INSIDE, udp(a, b_external, b"hello"))
    a_external = (GATEWAY_OUT, struct.unpack(">H", out.packet[20:22])[0])
    assert out == ("inside", udp(a_external, b, b"hello", ttl=63), bytes(10))
    [error] = harness.send(INSIDE, icmp_error(OTHER_HOST, GATEWAY_OUT, 3, 3, out.packet))
    assert error.link == INSIDE
    assert error.packet == icmp_error(GATEWAY_OUT, HOST, 3, 3, udp(a, b_external, b"hello", ttl=63), ttl=63)


def test_an_error_to_the_gateway_about_its_own_traffic() -> None:
    assert delivered(opened(), INSIDE, icmp_error(HOST, GATEWAY_IN, 3, 3, udp((GATEWAY_IN, 53), HERE, b"late answer")))
