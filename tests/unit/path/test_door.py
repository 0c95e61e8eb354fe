"""The checks at the door: every malformed or misdirected packet is dropped by its own name, before all else."""

from __future__ import annotations

import struct

import pytest

from fastmasq.path.rows import link_row
from tests.support.harness import GATEWAY_MAC, LINKS, STATION_MAC, Harness, address
from tests.support.packets import (
    TCP,
    UDP,
    icmp,
    ipv4,
    ping,
    tcp,
    udp,
    with_ip_checksum,
)
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
    delivered,
    dropped,
    opened,
    passes,
)

OTHERHOST, OUTGOING, BROADCAST, MULTICAST = 3, 4, 1, 2
PLAIN = {INSIDE: udp(HERE, THERE, b"payload"), OUTSIDE: udp(THERE, EXTERNAL, b"payload")}
ENDS = {INSIDE: (HOST, SERVER), OUTSIDE: (SERVER, GATEWAY_OUT)}

both_links = pytest.mark.parametrize("link", [INSIDE, OUTSIDE])


def changed(packet: bytes, at: int, value: bytes, *, sum_right: bool = True) -> bytes:
    """Return the packet with some octets overwritten; the header checksum follows unless told otherwise."""
    result = packet[:at] + value + packet[at + len(value) :]
    return with_ip_checksum(result) if sum_right else result


def with_options(link: str, options: bytes, payload: bytes = b"payload") -> bytes:
    """Return a datagram with these raw IP options."""
    ends = (HERE, THERE) if link == INSIDE else (THERE, EXTERNAL)
    return udp(*ends, payload, options=options)


def raw_frame(harness: Harness, link: str, frame: bytes, packet_type: int = 0) -> list:
    """Let a frame, link header and all, arrive as it is."""
    harness.rings[link].push(frame, None, packet_type)
    return harness.run()


# --- the frame -----------------------------------------------------------------------------------------------------


@both_links
@pytest.mark.parametrize("length", [0, 1, 13, 14, 15, 33])
def test_too_short(link: str, length: int) -> None:
    harness = opened()
    frame = (GATEWAY_MAC[link] + STATION_MAC[link] + b"\x08\x00" + PLAIN[link])[:length]
    assert raw_frame(harness, link, frame) == []
    assert harness.drops() == {"too_short": 1}


@both_links
def test_too_short_on_a_link_without_a_header(link: str) -> None:
    harness = Harness(header_length={"inside": 0, "outside": 0})
    for length in (0, 1, 19):
        assert dropped(harness, link, PLAIN[link][:length]) == "too_short"


@both_links
@pytest.mark.parametrize("kind", [b"\x08\x06", b"\x86\xdd", b"\x81\x00", b"\x88\x64", b"\x00\x08"])
def test_not_ipv4_by_its_link_header(link: str, kind: bytes) -> None:
    harness = opened()
    assert raw_frame(harness, link, GATEWAY_MAC[link] + STATION_MAC[link] + kind + PLAIN[link]) == []
    assert harness.drops() == {"not_ipv4": 1}


@both_links
@pytest.mark.parametrize("version", [0, 1, 5, 6, 15])
def test_not_ipv4_by_its_version(link: str, version: int) -> None:
    assert dropped(opened(), link, changed(PLAIN[link], 0, bytes([version << 4 | 5]))) == "not_ipv4"


@both_links
@pytest.mark.parametrize("packet_type", [OTHERHOST, OUTGOING])
def test_not_for_us(link: str, packet_type: int) -> None:
    harness = opened()
    harness.inject(link, PLAIN[link], packet_type=packet_type)
    assert harness.run() == []
    assert harness.drops() == {"not_for_us": 1}


@both_links
def test_what_is_for_a_macvlan_over_the_link_is_for_us(link: str) -> None:
    """As VRRP makes one for the address of a virtual router: to the kernel the frame is another station's."""
    harness = opened()
    virtual = [bytes.fromhex(f"00005e0001{number:02x}") for number in range(9)]
    number = LINKS.index(link)

    def arrives(mac: bytes, packet_type: int = OTHERHOST) -> bool:
        return bool(raw_frame(harness, link, mac + STATION_MAC[link] + b"\x08\x00" + PLAIN[link], packet_type))

    described = {"side": number, "mtu": 1500, "mac": GATEWAY_MAC[link], "address": address("10.0.0.1")}
    harness.forwarder.set_link(number, link_row(**described, macvlans=virtual))
    assert all(arrives(mac) for mac in virtual[:8])
    assert not arrives(virtual[0], OUTGOING)
    assert not arrives(virtual[8]), "more than there is room for"
    assert not arrives(GATEWAY_MAC[link])
    assert raw_frame(harness, link, virtual[0] + STATION_MAC[link], OTHERHOST) == []
    harness.forwarder.set_link(number, link_row(**described))
    assert not arrives(virtual[0])
    assert harness.drops() == {"not_for_us": 5}


@both_links
@pytest.mark.parametrize("packet_type", [BROADCAST, MULTICAST])
def test_rfc1812_section_5_3_4_a_link_broadcast_is_never_forwarded(link: str, packet_type: int) -> None:
    """Even if its IP addresses are those of a session: the kernel may have it, we leave it alone."""
    harness = opened()
    harness.inject(link, PLAIN[link], packet_type=packet_type)
    assert harness.run() == []
    assert harness.drops() == {}
    assert harness.forwarder.verdicts()["deliver"] == 1


# --- TCP flags -------------------------------------------------------------------------------------------------------

LETTERS = "FSRPAUEC"


@both_links
def test_rfc9293_section_3_10_flags_that_no_stack_sends(link: str) -> None:
    """Of all 256 combinations those pass, or are judged by what else they are, that some stack sends."""
    ends = (HERE, THERE) if link == INSIDE else (THERE, EXTERNAL)
    sent = {"S", "SA", "A", "FA", "R", "RA", "FRA"}
    harness = Harness()
    for number in range(256):
        flags = "".join(letter for bit, letter in enumerate(LETTERS) if number >> bit & 1)
        harness.send(link, tcp(*ends, number, seq=1, ack=1))
        is_sent = {*flags} & {*"FSRA"} in [{*each} for each in sent]
        assert (harness.drops() != {"bad_tcp_flags": 1}) == is_sent, flags


# --- the IPv4 header -------------------------------------------------------------------------------------------------


@both_links
@pytest.mark.parametrize("words", [0, 1, 4])
def test_header_length_under_20(link: str, words: int) -> None:
    assert (
        dropped(opened(), link, changed(PLAIN[link], 0, bytes([0x40 | words]), sum_right=False)) == "bad_header_length"
    )


@both_links
def test_header_length_past_the_end(link: str) -> None:
    short = ipv4(*ENDS[link], UDP, bytes(8))
    for words in range(8, 16):
        assert dropped(opened(), link, changed(short, 0, bytes([0x40 | words]), sum_right=False)) == "bad_header_length"


@both_links
def test_total_length_shorter_than_the_header(link: str) -> None:
    for length in (0, 1, 19):
        assert dropped(opened(), link, changed(PLAIN[link], 2, struct.pack(">H", length))) == "bad_total_length"
    options = with_options(link, b"\x01" * 8)
    assert dropped(opened(), link, changed(options, 2, struct.pack(">H", 27))) == "bad_total_length"


@both_links
def test_total_length_longer_than_the_frame(link: str) -> None:
    for length in (len(PLAIN[link]) + 1, 65535):
        assert dropped(opened(), link, changed(PLAIN[link], 2, struct.pack(">H", length))) == "bad_total_length"


@both_links
def test_every_cut_packet_is_dropped(link: str) -> None:
    """Whatever the place of the cut, the lengths no longer fit."""
    harness = opened()
    for length in range(len(PLAIN[link])):
        assert dropped(harness, link, PLAIN[link][:length]) == ("too_short" if length < 20 else "bad_total_length")


@both_links
def test_rfc1812_section_5_2_2_link_padding_is_not_part_of_the_packet(link: str) -> None:
    """Ethernet pads to 60 octets: what is behind the total length does not go on, nor into a checksum."""
    for padding in (b"\x00", b"\xff" * 7, bytes(1000)):
        assert passes(opened(), link, PLAIN[link] + padding) == passes(opened(), link, PLAIN[link])


@both_links
def test_every_single_wrong_bit_of_a_header_is_noticed(link: str) -> None:
    harness = opened()
    for bit in range(160):
        packet = bytearray(PLAIN[link])
        packet[bit // 8] ^= 0x80 >> bit % 8
        reason = dropped(harness, link, bytes(packet))
        if bit < 4:
            assert reason == "not_ipv4"
        elif bit < 8:
            assert reason in ("bad_header_length", "bad_ip_checksum")
        elif 16 <= bit < 32:
            assert reason in ("bad_total_length", "bad_ip_checksum")
        else:
            assert reason == "bad_ip_checksum"


# --- IPv4 options --------------------------------------------------------------------------------------------------


@both_links
@pytest.mark.parametrize(
    "options",
    ["83070400000000", "89070400000000", "01830704c0000201", "0101018907040a0000", "07030483070400000000"],
    ids=["loose", "strict", "after no-operation", "after three", "after record route"],
)
def test_rfc7126_source_routes_are_refused(link: str, options: str) -> None:
    assert dropped(opened(), link, with_options(link, bytes.fromhex(options))) == "source_route"


@both_links
@pytest.mark.parametrize(
    "options",
    ["07000000", "07010000", "44050000", "01010107", "01010183", "0703044409", "0101019400000000"],
    ids=[
        "length 0",
        "length 1",
        "past the end",
        "type only",
        "source route cut",
        "second past the end",
        "second length 0",
    ],
)
def test_options_of_impossible_length(link: str, options: str) -> None:
    assert dropped(opened(), link, with_options(link, bytes.fromhex(options))) == "bad_ip_options"


@both_links
@pytest.mark.parametrize(
    "options",
    [
        "01010101",
        "00000000",
        "0083ffff",
        "94040000",
        "0707040000000000",
        "44080501000000ff",
        "01" * 39 + "00",
        "9e02",
        "0728" + "04" + "00" * 37,
    ],
    ids=[
        "no-operation",
        "end",
        "end hides the rest",
        "router alert",
        "record route",
        "timestamp",
        "40 octets",
        "unknown",
        "one of 40",
    ],
)
def test_other_options_pass_untouched(link: str, options: str) -> None:
    packet = with_options(link, bytes.fromhex(options))
    out = passes(opened(), link, packet)
    length = (packet[0] & 15) * 4
    assert out[20:length] == packet[20:length]
    assert out[length + 8 :] == b"payload"


# --- the transport header ------------------------------------------------------------------------------------------


def tcp_header(offset: int, length: int) -> bytes:
    return struct.pack(">HHIIBBHHH", 4000, 80, 1, 1, offset // 4 << 4, 0x10, 1000, 0, 0)[:length].ljust(length, b"\x01")


@both_links
@pytest.mark.parametrize(
    ("offset", "length"), [(20, 0), (20, 1), (20, 19), (16, 20), (0, 40), (24, 20), (24, 23), (60, 59)]
)
def test_tcp_headers_that_contradict_themselves(link: str, offset: int, length: int) -> None:
    assert dropped(Harness(), link, ipv4(*ENDS[link], TCP, tcp_header(offset, length))) == "bad_transport_header"


@both_links
@pytest.mark.parametrize(
    ("said", "length"), [(8, 0), (8, 7), (0, 8), (7, 8), (7, 100), (9, 8), (101, 100), (65535, 100)]
)
def test_udp_headers_that_contradict_themselves(link: str, said: int, length: int) -> None:
    datagram = struct.pack(">HHHH", 4000, 80, said, 0)[:length].ljust(length, b"\x01")
    assert dropped(Harness(), link, ipv4(*ENDS[link], UDP, datagram)) == "bad_transport_header"


@both_links
@pytest.mark.parametrize("length", [0, 1, 4, 7])
@pytest.mark.parametrize("kind", [0, 3, 5, 8, 11, 13, 99])
def test_icmp_cut_short(link: str, kind: int, length: int) -> None:
    assert (
        dropped(Harness(), link, ipv4(*ENDS[link], 1, bytes([kind]).ljust(length, b"\0")[:length]))
        == "bad_transport_header"
    )


def test_a_datagram_shorter_than_its_packet_passes_whole() -> None:
    """UDP length counts for UDP; octets between it and the IP total length are passed on as they are."""
    packet = ipv4(HOST, SERVER, UDP, udp(HERE, THERE, b"payload")[20:] + b"and more")
    assert passes(Harness(), INSIDE, packet) == ipv4(
        GATEWAY_OUT, SERVER, UDP, udp(EXTERNAL, THERE, b"payload")[20:] + b"and more", ttl=63
    )


def test_the_smallest_headers_pass() -> None:
    harness = Harness()
    assert passes(harness, INSIDE, udp(HERE, THERE)) == udp(EXTERNAL, THERE, ttl=63)
    assert passes(harness, INSIDE, tcp(HERE, THERE, "S")) == tcp(EXTERNAL, THERE, "S", ttl=63)
    assert passes(harness, INSIDE, ping(HOST, SERVER, 7)) == ping(GATEWAY_OUT, SERVER, 7, ttl=63)
    options = b"\x01" * 40
    assert passes(harness, INSIDE, tcp(HERE, THERE, "A", tcp_options=options)) == tcp(
        EXTERNAL, THERE, "A", tcp_options=options, ttl=63
    )


# --- fragments -----------------------------------------------------------------------------------------------------


@both_links
@pytest.mark.parametrize(
    ("fields", "octets", "reason"),
    [
        ({"offset": 8, "mf": True}, 9, "fragment_bad"),
        ({"offset": 8, "mf": True}, 0, "fragment_bad"),
        ({"offset": 65528}, 8, "fragment_bad"),
        ({"offset": 65520}, 0, "fragment_bad"),
        ({"offset": 8}, 64, "fragment_tiny"),
        ({"mf": True}, 16, "fragment_tiny"),
    ],
)
def test_rfc791_places_of_fragments_are_checked(link: str, fields: dict, octets: int, reason: str) -> None:
    """Past 65 535 octets (ping of death), uneven lengths, and TCP headers that are cut (RFC 1858, RFC 3128)."""
    source, destination = (HOST, SERVER) if link == INSIDE else (SERVER, GATEWAY_OUT)
    assert dropped(opened(), link, ipv4(source, destination, TCP, tcp_header(20, octets), **fields)) == reason


def test_rfc6864_an_unused_flag_is_no_fragment() -> None:
    """The reserved bit, RFC 3514's evil one, and DF."""
    for bits in (0x8000, 0x4000, 0xC000):
        packet = changed(udp(HERE, THERE, b"payload"), 6, struct.pack(">H", bits))
        out = passes(Harness(), INSIDE, packet)
        assert out == changed(udp(EXTERNAL, THERE, b"payload", ttl=63), 6, struct.pack(">H", bits))


# --- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.255.255.254",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
    ],
)
@both_links
def test_rfc1812_section_5_3_7_sources_that_are_no_host(link: str, source: str) -> None:
    ends = ((source, 4000), THERE) if link == INSIDE else ((source, 80), EXTERNAL)
    assert dropped(opened(), link, udp(*ends)) == "martian_source"


@pytest.mark.parametrize(
    "source", ["199.0.0.1", "200.200.200.1", "10.0.0.1", "200.200.200.200", "10.255.255.255", "11.0.0.1"]
)
def test_rfc3704_sources_that_do_not_belong_inside(source: str) -> None:
    assert dropped(opened(), INSIDE, udp((source, 4000), THERE)) == "martian_source"


@pytest.mark.parametrize("source", ["10.0.0.2", "10.0.0.1", "200.200.200.200", "200.200.200.255"])
def test_rfc3704_sources_that_do_not_belong_outside(source: str) -> None:
    assert dropped(opened(), OUTSIDE, udp((source, 81), EXTERNAL)) == "martian_source"


@pytest.mark.parametrize("destination", ["0.0.0.0", "0.9.9.9", "127.0.0.1", "240.0.0.1", "255.255.255.254"])
@both_links
def test_rfc1812_section_5_3_7_destinations_that_are_no_host(link: str, destination: str) -> None:
    ends = (HERE, (destination, 80)) if link == INSIDE else (THERE, (destination, 4000))
    assert dropped(opened(), link, udp(*ends)) == "martian_destination"


@pytest.mark.parametrize("destination", ["10.255.255.255", "255.255.255.255", "224.0.0.251", "239.255.255.250"])
def test_rfc2644_broadcast_and_multicast_are_left_to_the_host(destination: str) -> None:
    harness = opened()
    assert delivered(harness, INSIDE, udp(HERE, (destination, 80)))
    assert delivered(harness, OUTSIDE, udp(THERE, (destination, 80)))
    assert len(harness.sessions()) == 1


@pytest.mark.parametrize("destination", ["10.0.0.2", "8.8.8.8", "200.200.200.1"])
def test_nothing_is_forwarded_from_outside_to_anybody_else(destination: str) -> None:
    """A router outside that knows our inside network gets nowhere with it."""
    harness = opened()
    assert dropped(harness, OUTSIDE, udp(THERE, (destination, 4000))) == "policy_refused"
    assert dropped(harness, OUTSIDE, ping(SERVER, destination, 4000, kind=0)) == "policy_refused"


# --- virtio headers ------------------------------------------------------------------------------------------------


def virtio(kind: int = 0, size: int = 0, start: int = 34, offset: int = 16, headers: int = 0) -> bytes:
    """Return a virtio header whose checksum is to be completed (linux/virtio_net.h)."""
    return struct.pack("=BBHHHH", 1, kind, headers, size, start, offset)


SEGMENT, DATAGRAM = tcp(HERE, THERE, "A", payload=b"x" * 100), udp(HERE, THERE, b"x" * 100)
QUERY, CALL = ping(HOST, SERVER, 77, payload=b"x" * 100), ipv4(HOST, SERVER, 47, bytes.fromhex("2001880b") + bytes(100))


@pytest.mark.parametrize(
    ("packet", "vnet"),
    [
        (SEGMENT, virtio(offset=0)),  # over the source port, which has been translated by then
        (SEGMENT, virtio(offset=2)),
        (SEGMENT, virtio(start=14, offset=12)),  # over the source address
        (SEGMENT, virtio(start=26, offset=0)),
        (SEGMENT, virtio(start=33, offset=17)),
        (SEGMENT, virtio(start=35, offset=15)),
        (SEGMENT, virtio(start=54, offset=16)),  # TCP carries no tunnel
        (SEGMENT, virtio(offset=6)),
        (DATAGRAM, virtio(offset=16)),
        (DATAGRAM, virtio(offset=0)),
        (DATAGRAM, virtio(start=41, offset=6)),
        (DATAGRAM, virtio(start=142, offset=0)),  # past the end
        (DATAGRAM, virtio(start=42, offset=99)),
        (DATAGRAM, virtio(start=0xFFFF, offset=0xFFFF)),
        (QUERY, virtio(offset=4)),  # over the identifier
        (QUERY, virtio(start=42, offset=0)),
        (CALL, virtio(offset=6)),  # over the Call ID
        (SEGMENT, virtio(kind=4, size=100)),  # TCP over IPv6
        (SEGMENT, virtio(kind=5, size=100)),
        (SEGMENT, virtio(kind=7, size=100)),
        (SEGMENT, virtio(kind=1, size=0)),
        (SEGMENT, virtio(kind=1, size=7)),
        (DATAGRAM, virtio(kind=1, size=100, offset=6)),
        (DATAGRAM, virtio(kind=5, size=100, start=42, offset=6)),
        (udp(HERE, THERE, bytes(1290)), virtio(kind=5, size=10, offset=6)),  # more than 128 datagrams
        (QUERY, bytes((0, 1, 0, 0, 100, 0, 0, 0, 0, 0))),
    ],
)
def test_a_virtio_header_that_is_not_true_of_its_packet(packet: bytes, vnet: bytes) -> None:
    """It comes from the other end of a veth, or from a guest: whoever completes it would write over what was judged."""
    harness = opened()
    assert harness.send(INSIDE, packet, vnet=vnet) == []
    assert harness.drops() == {"bad_offload": 1}
    assert len(harness.sessions()) == 1


@pytest.mark.parametrize("outside_vnet", [True, False])
def test_a_checksum_inside_a_tunnel_is_left_alone(outside_vnet: bool) -> None:
    """VXLAN and its like: the outer datagram has its own checksum, the packet inside has a partial one."""
    harness = Harness(outside_vnet=outside_vnet)
    [out] = harness.send(INSIDE, DATAGRAM, vnet=virtio(start=92, offset=16))
    assert harness.drops() == {}
    assert out.vnet == (virtio(start=92, offset=16) if outside_vnet else None)


# --- protocols and types -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 2, 4, 41, 47, 50, 51, 89, 103, 132, 255])
def test_C30_other_protocols_do_not_leak(protocol: int) -> None:
    reason = "ah_not_masqueraded" if protocol == 51 else "protocol_not_masqueraded"
    assert dropped(opened(), INSIDE, ipv4(HOST, SERVER, protocol, bytes(40))) == reason


@pytest.mark.parametrize("protocol", [2, 4, 41, 47, 50, 51, 89, 255])
def test_other_protocols_from_outside_are_the_hosts(protocol: int) -> None:
    assert delivered(opened(), OUTSIDE, ipv4(SERVER, GATEWAY_OUT, protocol, bytes(40)))


@pytest.mark.parametrize("kind", [1, 2, 5, 6, 7, 9, 10, 30, 37, 40, 42, 255])
def test_C47_other_icmp_types_are_not_passed_on(kind: int) -> None:
    harness = opened()
    assert dropped(harness, INSIDE, icmp(HOST, SERVER, kind, payload=bytes(28))) == "icmp_type_refused"
    assert delivered(harness, OUTSIDE, icmp(SERVER, GATEWAY_OUT, kind, payload=bytes(28)))


@pytest.mark.parametrize("kind", [0, 14, 16, 18])
def test_C46_replies_open_nothing(kind: int) -> None:
    assert dropped(opened(), INSIDE, ping(HOST, SERVER, 77, kind=kind)) == "no_session"


@pytest.mark.parametrize("kind", [8, 13, 15, 17])
def test_queries_from_outside_are_for_the_host(kind: int) -> None:
    """Even if their identifier is that of an inside host's ping."""
    harness = opened(1)
    assert delivered(harness, OUTSIDE, ping(SERVER, GATEWAY_OUT, 4000, kind=kind))


def test_what_the_inside_asks_of_the_gateway_is_the_hosts() -> None:
    harness = opened()
    assert delivered(harness, INSIDE, udp(HERE, ("10.0.0.1", 53)))
    assert delivered(harness, INSIDE, tcp(HERE, ("10.0.0.1", 22), "S"))
    assert delivered(harness, INSIDE, ping(HOST, "10.0.0.1", 1))
    assert delivered(harness, INSIDE, ping(OTHER_HOST, GATEWAY_OUT, 1))
    assert delivered(harness, INSIDE, ipv4(HOST, "10.0.0.1", 47, bytes(20)))


def test_what_waits_for_its_next_hop_waits_on_when_hops_are_looked_up_anew():
    """A link that comes up after its first packet changes what is known of next hops, not what becomes of it."""
    harness = Harness()
    harness.inject(INSIDE, udp(HERE, THERE, b"question"))
    assert harness.forwarder.step(harness.now_ns) == 1
    assert harness.forwarder.verdicts()["punt"] == 1
    harness.forwarder.forget_hops(1)
    [out] = harness.run()
    assert out.link == OUTSIDE
    assert (harness.drops(), harness.forwarder.verdicts()["punt"]) == ({}, 0)
