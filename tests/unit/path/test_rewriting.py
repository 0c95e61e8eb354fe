"""Translation octet by octet: addresses, ports, identifiers and every checksum, with scapy as an independent judge."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP as ScapyIcmp
from scapy.layers.inet import IP
from scapy.layers.inet import TCP as ScapyTcp
from scapy.layers.inet import UDP as ScapyUdp

from tests.support.harness import Harness
from tests.support.packets import (
    BAD,
    ICMP,
    TCP,
    UDP,
    ones_sum,
    ping,
    problems,
    pseudo_header,
    tcp,
    udp,
)
from tests.support.path_network import (
    EXTERNAL,
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
    opened,
    partial,
    passes,
    query,
)

OTHER_PORT = 61000
LAYERS = {TCP: ScapyTcp, UDP: ScapyUdp, ICMP: ScapyIcmp}
both = pytest.mark.parametrize("protocol", PROTOCOLS)
payloads = st.binary(max_size=64) | st.sampled_from([b"", b"\0", b"\xff", b"\xff" * 33, bytes(34)])


def by_scapy(packet: bytes, protocol: int, **fields) -> bytes:
    """Return the packet with other fields, all lengths and checksums computed by scapy; TTL one less."""
    parsed = IP(packet)
    parsed.ttl -= 1
    layer = parsed[LAYERS[protocol]]
    for name in ("src", "dst"):
        if name in fields:
            setattr(parsed, name, fields.pop(name))
    for name, value in fields.items():
        setattr(layer, name, value)
    del parsed.chksum, layer.chksum
    return bytes(parsed)


def ports(protocol: int, **fields: int) -> dict[str, int]:
    """Return the fields that scapy calls by other names for a ping."""
    return {"id": next(iter(fields.values()))} if protocol == ICMP else fields


# --- both ways -----------------------------------------------------------------------------------------------------


@both
@settings(max_examples=60, deadline=None)
@given(
    payload=payloads,
    back=payloads,
    port=st.integers(1, 65535),
    keep=st.booleans(),
    ttl=st.integers(2, 255),
    tos=st.integers(0, 255),
)
def test_out_and_back(protocol: int, payload: bytes, back: bytes, port: int, keep: bool, ttl: int, tos: int) -> None:
    """With the port kept and with another one; TTL and header checksum as well."""
    harness = Harness(ports=range(1, 65536) if keep else [OTHER_PORT])
    if protocol == ICMP and not keep:
        passes(harness, INSIDE, ping(OTHER_HOST, SERVER, port))  # has the identifier already
    ip = {"ttl": ttl, "tos": tos, "identification": 0xBEEF, "df": True}
    packet = query(protocol, (HOST, port), payload=payload, **ip)
    out = passes(harness, INSIDE, packet)
    external = struct.unpack(">H", out[24:26] if protocol == ICMP else out[20:22])[0]
    assert (external == port) is (keep or (protocol != ICMP and port == OTHER_PORT))
    assert out == by_scapy(packet, protocol, src=GATEWAY_OUT, **ports(protocol, sport=external))
    reply = answer(protocol, destination=(GATEWAY_OUT, external), payload=back, **ip)
    assert passes(harness, OUTSIDE, reply) == by_scapy(reply, protocol, dst=HOST, **ports(protocol, dport=port))


@pytest.mark.parametrize(("request_type", "reply_type"), [(8, 0), (13, 14), (15, 16), (17, 18)])
@pytest.mark.parametrize("identifier", [0, 1, 8, 13, 15, 17, 4000, 65535])
def test_C46_every_icmp_query(request_type: int, reply_type: int, identifier: int) -> None:
    harness = Harness()
    packet = ping(HOST, SERVER, identifier, kind=request_type, seq=7, payload=bytes(12))
    out = passes(harness, INSIDE, packet)
    external = struct.unpack(">H", out[24:26])[0]
    assert external == identifier or identifier == 0
    assert out == ping(GATEWAY_OUT, SERVER, external, kind=request_type, seq=7, payload=bytes(12), ttl=63)
    reply = ping(SERVER, GATEWAY_OUT, external, kind=reply_type, seq=7, payload=bytes(12))
    assert passes(harness, OUTSIDE, reply) == ping(
        SERVER, HOST, identifier, kind=reply_type, seq=7, payload=bytes(12), ttl=63
    )


def test_C46_queries_of_one_identifier_and_different_types_are_different_sessions() -> None:
    harness = Harness()
    passes(harness, INSIDE, ping(HOST, SERVER, 7, kind=8))
    passes(harness, INSIDE, ping(HOST, SERVER, 7, kind=13))
    assert len(harness.sessions()) == 2
    assert len({session["external"] for session in harness.sessions()}) == 1
    out = passes(harness, OUTSIDE, ping(SERVER, GATEWAY_OUT, 7, kind=14))
    assert out == ping(SERVER, HOST, 7, kind=14, ttl=63)
    assert [session["packets_in"] for session in harness.sessions()] == [0, 1]


@both
def test_ip_options_travel_along(protocol: int) -> None:
    for options in (b"\x94\x04\x00\x00", b"\x01" * 40):
        packet = query(protocol, options=options)
        out = passes(Harness(), INSIDE, packet)
        assert out == query(protocol, EXTERNAL, options=options, ttl=63)


# --- checksums -----------------------------------------------------------------------------------------------------


@both
def test_rfc1624_a_bad_transport_checksum_stays_bad(protocol: int) -> None:
    """By the same error, in both directions: the gateway must not make good what was damaged on the way."""
    harness = Harness(ports=[OTHER_PORT])
    out = passes(harness, INSIDE, query(protocol, checksum=BAD))
    external = struct.unpack(">H", out[24:26] if protocol == ICMP else out[20:22])[0]
    assert out == query(protocol, (GATEWAY_OUT, external), checksum=BAD, ttl=63)
    assert problems(out)
    back = passes(harness, OUTSIDE, answer(protocol, destination=(GATEWAY_OUT, external), checksum=BAD))
    assert back == answer(protocol, destination=HERE, checksum=BAD, ttl=63)


def test_C32_udp_without_a_checksum_stays_without() -> None:
    harness = Harness(ports=[OTHER_PORT])
    assert passes(harness, INSIDE, udp(HERE, THERE, b"none", checksum=0)) == udp(
        (GATEWAY_OUT, OTHER_PORT), THERE, b"none", checksum=0, ttl=63
    )
    assert passes(harness, OUTSIDE, udp(THERE, (GATEWAY_OUT, OTHER_PORT), b"none", checksum=0)) == udp(
        THERE, HERE, b"none", checksum=0, ttl=63
    )


def word_for(target: int, build) -> bytes:
    """Return the two octets of payload for which `build(payload)` has the transport checksum `target`."""
    for word in range(65536):
        payload = struct.pack(">H", word)
        if struct.unpack(">H", build(payload)[26:28])[0] == target:
            return payload
    raise AssertionError("no such payload")


def test_rfc768_a_checksum_that_becomes_zero_is_written_as_ones() -> None:
    """The payload is chosen so that the translated datagram's sum comes to zero; and the one that was ffff before."""
    external = (GATEWAY_OUT, OTHER_PORT)
    for payload in (
        word_for(0xFFFF, lambda data: udp(external, THERE, data)),
        word_for(0xFFFF, lambda data: udp(HERE, THERE, data)),
    ):
        harness = Harness(ports=[OTHER_PORT])
        out = passes(harness, INSIDE, udp(HERE, THERE, payload))
        assert out == udp(external, THERE, payload, ttl=63)
        assert problems(out) == []
        assert out[26:28] != b"\0\0"


def test_tcp_checksums_near_zero() -> None:
    """TCP has no rule about zero: it is written as it comes, and is right either way."""
    external = (GATEWAY_OUT, OTHER_PORT)

    def segment(payload: bytes) -> bytes:
        """Put the TCP checksum where that of UDP would be."""
        packet = tcp(external, THERE, "A", seq=1, ack=1, payload=payload)
        return packet[:26] + packet[36:38]

    for target in (0x0000, 0x0001, 0xFFFE):
        payload = word_for(target, segment)
        out = passes(Harness(ports=[OTHER_PORT]), INSIDE, tcp(HERE, THERE, "A", seq=1, ack=1, payload=payload))
        assert problems(out) == []
        assert struct.unpack(">H", out[36:38])[0] == target


@both
@pytest.mark.parametrize("edge", [0x0000, 0x0001, 0xFFFE])
def test_ip_header_checksums_at_the_edge(protocol: int, edge: int) -> None:
    """The identification is chosen so that the translated header's checksum is 0000 (never ffff), 0001 or fffe."""
    for identification in range(65536):
        expected = query(protocol, EXTERNAL, ttl=63, identification=identification)
        if expected[10:12] == struct.pack(">H", edge):
            break
    assert expected[10:12] == struct.pack(">H", edge)
    assert passes(Harness(), INSIDE, query(protocol, identification=identification)) == expected


@both
def test_ttl_and_identification_over_all_values(protocol: int) -> None:
    harness = Harness()
    for ttl in range(2, 256):
        packet = query(protocol, ttl=ttl, identification=ttl * 257)
        assert passes(harness, INSIDE, packet) == query(protocol, EXTERNAL, ttl=ttl - 1, identification=ttl * 257)


# --- partial checksums ---------------------------------------------------------------------------------------------


def vnet(protocol: int, start: int = 34) -> bytes:
    return struct.pack("=BBHHHH", 1, 0, 0, 0, start, 16 if protocol == TCP else 6)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("keep", [True, False])
def test_a_partial_checksum_follows_the_addresses_and_leaves_the_ports(protocol: int, keep: bool) -> None:
    harness = Harness(ports=range(1, 65536) if keep else [OTHER_PORT])
    external = EXTERNAL if keep else (GATEWAY_OUT, OTHER_PORT)
    [out] = harness.send(INSIDE, partial(query(protocol)), vnet=vnet(protocol))
    assert out.packet == partial(query(protocol, external, ttl=63))
    assert out.vnet == vnet(protocol)
    [back] = harness.send(OUTSIDE, partial(answer(protocol, destination=external)), vnet=vnet(protocol))
    assert back.packet == partial(answer(protocol, destination=HERE, ttl=63))
    assert back.vnet == vnet(protocol)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_partial_checksum_is_completed_for_a_link_without_offloads(protocol: int) -> None:
    harness = Harness(ports=[OTHER_PORT], outside_vnet=False, inside_vnet=False)
    external = (GATEWAY_OUT, OTHER_PORT)
    [out] = harness.send(INSIDE, partial(query(protocol)), vnet=vnet(protocol))
    assert (out.packet, out.vnet) == (query(protocol, external, ttl=63), None)
    [back] = harness.send(OUTSIDE, partial(answer(protocol, destination=external)), vnet=vnet(protocol))
    assert (back.packet, back.vnet) == (answer(protocol, destination=HERE, ttl=63), None)


def test_a_completed_udp_checksum_of_zero_is_written_as_ones() -> None:
    payload = word_for(0xFFFF, lambda data: udp((GATEWAY_OUT, OTHER_PORT), THERE, data))
    harness = Harness(ports=[OTHER_PORT], outside_vnet=False)
    [out] = harness.send(INSIDE, partial(udp(HERE, THERE, payload)), vnet=vnet(UDP))
    assert out.packet == udp((GATEWAY_OUT, OTHER_PORT), THERE, payload, ttl=63)
    assert out.packet[26:28] == b"\xff\xff"


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("outside_vnet", [True, False])
def test_a_ring_without_virtio_headers_says_only_that_the_checksum_is_partial(
    protocol: int, outside_vnet: bool
) -> None:
    """Then start and field are found from the packet itself (csum_start 0 is what such a ring reports)."""
    harness = Harness(outside_vnet=outside_vnet)
    [out] = harness.send(INSIDE, partial(query(protocol)), vnet=b"\x01" + bytes(9))
    if outside_vnet:
        assert (out.packet, out.vnet) == (partial(query(protocol, EXTERNAL, ttl=63)), vnet(protocol))
    else:
        assert (out.packet, out.vnet) == (query(protocol, EXTERNAL, ttl=63), None)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_partial_checksum_behind_ip_options(protocol: int) -> None:
    options = b"\x94\x04\x00\x00"
    packet = query(protocol, options=options)
    at = 24 + (16 if protocol == TCP else 6)
    source, destination = struct.unpack(">II", packet[12:20])
    total = ones_sum(pseudo_header(source, destination, protocol, len(packet) - 24))
    packet = packet[:at] + struct.pack(">H", total) + packet[at + 2 :]
    for header in (vnet(protocol, 38), b"\x01" + bytes(9)):
        harness = Harness(outside_vnet=False)
        [out] = harness.send(INSIDE, packet, vnet=header)
        assert out.packet == query(protocol, EXTERNAL, options=options, ttl=63)


def test_a_validated_checksum_is_a_full_one() -> None:
    """VIRTIO_NET_HDR_F_DATA_VALID only says that the device has looked: the checksum is complete."""
    harness = Harness()
    [out] = harness.send(INSIDE, udp(HERE, THERE, b"valid"), vnet=b"\x02" + bytes(9))
    assert out.packet == udp(EXTERNAL, THERE, b"valid", ttl=63)
    assert out.vnet[0] & 1 == 0


# --- the same flow, many times -------------------------------------------------------------------------------------


@both
def test_a_session_translates_every_packet_alike(protocol: int) -> None:
    """The deltas are computed once; thousands of different packets later they are still right."""
    harness = opened(protocol)
    chance = random.Random(protocol)
    for _ in range(500):
        payload = chance.randbytes(chance.randrange(100))
        if protocol == TCP:
            fields = {"seq": 1001, "ack": 5001, "window": chance.randrange(65536), "payload": payload}
            assert passes(harness, INSIDE, tcp(HERE, THERE, "PA", **fields)) == tcp(
                EXTERNAL, THERE, "PA", ttl=63, **fields
            )
            fields["seq"], fields["ack"] = fields["ack"], fields["seq"]
            assert passes(harness, OUTSIDE, tcp(THERE, EXTERNAL, "PA", **fields)) == tcp(
                THERE, HERE, "PA", ttl=63, **fields
            )
        else:
            assert passes(harness, INSIDE, query(protocol, payload=payload)) == query(
                protocol, EXTERNAL, payload=payload, ttl=63
            )
            assert passes(harness, OUTSIDE, answer(protocol, payload=payload)) == answer(
                protocol, destination=HERE, payload=payload, ttl=63
            )
