"""Packets as senders with offloads leave them: partial checksums and large sends end as the very same packets.

Whatever form a packet takes on its way - checksum still to be completed, up to 64 KiB waiting to be cut - after the
last link has done its part it is, octet for octet, what the specification makes of the packet as it was meant.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import packets, traffic
from tests.support.harness import Harness, Out
from tests.support.model.nat import Model
from tests.support.model.state import ANY_PORT, INSIDE, OUTSIDE, Observed, Settings
from tests.support.notation import show
from tests.support.packets import TCP, UDP, decode, internet_checksum, ones_sum, problems, pseudo_header

LINK_HEADER = 14
NEEDS_CHECKSUM = 1
GSO_NONE, GSO_TCPV4 = 0, 1
FIELD = {TCP: 16, UDP: 6}  # where the checksum is in its header
NOW = 1_000_000_000_000
ALL_PORTS = Settings(ports=ANY_PORT)

sizes = st.sampled_from([0, 1, 7, 100, 1459, 1460])
protocols = st.sampled_from([TCP, UDP])


@dataclass(frozen=True)
class Vnet:
    """The virtio header (virtio 1.1 section 5.1.6) that goes with a frame; numbers count from the link header on."""

    flags: int = 0
    gso_type: int = GSO_NONE
    header_length: int = 0
    gso_size: int = 0
    checksum_start: int = 0
    checksum_offset: int = 0

    def pack(self) -> bytes:
        numbers = (self.header_length, self.gso_size, self.checksum_start, self.checksum_offset)
        return struct.pack("=BBHHHH", self.flags, self.gso_type, *numbers)

    @classmethod
    def unpack(cls, octets: bytes) -> Vnet:
        return cls(*struct.unpack("=BBHHHH", octets))


def segment(protocol: int, source: tuple, destination: tuple, payload: bytes, **fields) -> bytes:
    if protocol == TCP:
        return packets.tcp(source, destination, "PA", seq=100, ack=7, payload=payload, **fields)
    return packets.udp(source, destination, payload, **fields)


def with_partial_checksum(packet: bytes) -> tuple[bytes, Vnet]:
    """Return the packet as a sender with checksum offload leaves it: only the pseudo-header is summed up."""
    decoded = decode(packet)
    start, offset = decoded.header_length, FIELD[decoded.protocol]
    partial = ones_sum(pseudo_header(decoded.source, decoded.destination, decoded.protocol, len(decoded.body)))
    at = start + offset
    unfinished = packet[:at] + struct.pack(">H", partial) + packet[at + 2 :]
    return unfinished, Vnet(NEEDS_CHECKSUM, checksum_start=LINK_HEADER + start, checksum_offset=offset)


def completed(out: Out) -> bytes:
    """Return the packet after its link has completed the checksum, if that was left to it."""
    vnet = Vnet.unpack(out.vnet) if out.vnet else Vnet()
    if not vnet.flags & NEEDS_CHECKSUM:
        return out.packet
    start = vnet.checksum_start - LINK_HEADER
    at = start + vnet.checksum_offset
    checksum = internet_checksum(out.packet[start:])
    if checksum == 0 and vnet.checksum_offset == FIELD[UDP]:
        checksum = 0xFFFF
    return out.packet[:at] + struct.pack(">H", checksum) + out.packet[at + 2 :]


@pytest.mark.parametrize("outside_vnet", [True, False], ids=["offloads_on", "offloads_off"])
@given(protocol=protocols, source=traffic.inside_endpoints, size=sizes, fields=st.sampled_from([{}, {"df": True}]))
def test_partial_checksum_out(outside_vnet: bool, protocol: int, source, size: int, fields: dict) -> None:
    """want 1: a partial checksum is completed for what the packet has become, by the last link or by us."""
    packet = segment(protocol, source, ("199.0.0.1", 80), packets.pattern(size), **fields)
    [expected] = Model(ALL_PORTS).step(INSIDE, packet, NOW).packets
    unfinished, vnet = with_partial_checksum(packet)
    [out] = Harness(outside_vnet=outside_vnet).send(INSIDE, unfinished, vnet=vnet.pack())
    assert completed(out) == expected
    assert problems(completed(out)) == []


@given(protocol=protocols, source=traffic.inside_endpoints, size=sizes)
def test_partial_checksum_in(protocol: int, source, size: int) -> None:
    """The same on the way in, with a mapping made before."""
    remote = ("199.0.0.1", 80)
    first = segment(protocol, source, remote, b"")
    model, harness = Model(ALL_PORTS), Harness(inside_vnet=False)
    [seen] = harness.send(INSIDE, first)
    port = decode(seen.packet).source_port
    model.step(INSIDE, first, NOW, Observed(port))
    answer = segment(protocol, remote, (traffic.EXTERNAL, port), packets.pattern(size))
    [expected] = model.step(OUTSIDE, answer, NOW).packets
    unfinished, vnet = with_partial_checksum(answer)
    [out] = harness.send(OUTSIDE, unfinished, vnet=vnet.pack())
    assert completed(out) == expected


def large_send(payload: bytes, gso_size: int) -> tuple[bytes, Vnet]:
    """Return a TCP packet of any length that waits to be cut into segments of `gso_size` octets of payload."""
    packet = packets.tcp("10.0.0.2:4000", "199.0.0.1:80", "PA", seq=2**32 - 5000, ack=7, payload=payload, df=True)
    unfinished, vnet = with_partial_checksum(packet)
    return unfinished, replace(vnet, gso_type=GSO_TCPV4, header_length=LINK_HEADER + 40, gso_size=gso_size)


lengths = st.sampled_from([1449, 2896, 3000, 14480, 40001, 65495])
gso_sizes = st.sampled_from([1448, 536, 1460])


@given(length=lengths, gso_size=gso_sizes)
def test_a_large_send_passes_whole(length: int, gso_size: int) -> None:
    """Where the outside link cuts segments itself it gets the packet in one piece, segment size and all."""
    packet, vnet = large_send(packets.pattern(length), gso_size)
    [out] = Harness().send(INSIDE, packet, vnet=vnet.pack())
    seen = decode(out.packet)
    assert (len(seen.payload), seen.source_port, seen.ttl) == (length, 4000, 63)
    assert Vnet.unpack(out.vnet) == vnet
    assert problems(completed(out)) == []


@given(length=lengths, gso_size=gso_sizes)
def test_a_large_send_is_cut_for_a_plain_link(length: int, gso_size: int) -> None:
    """Where it does not, segments leave: in order, each right in itself, together the octets that were sent."""
    payload = packets.pattern(length)
    packet, vnet = large_send(payload, gso_size)
    sent = [decode(out.packet) for out in Harness(outside_vnet=False).send(INSIDE, packet, vnet=vnet.pack())]
    assert [problem for seen in sent for problem in problems(seen.raw)] == []
    assert b"".join(seen.payload for seen in sent) == payload
    assert all(len(seen.payload) == gso_size for seen in sent[:-1])
    assert [(seen.seq - sent[0].seq) % 2**32 for seen in sent] == list(range(0, length, gso_size))
    assert [seen.has_flags("P") for seen in sent] == [False] * (len(sent) - 1) + [True]
    assert all(seen.source_port == 4000 and seen.df for seen in sent)


def test_a_large_send_is_compared_with_the_mtu_by_segment() -> None:
    """RFC 1191: segments too big for the outside link are refused with its MTU, however large the packet is."""
    packet, vnet = large_send(packets.pattern(14480), 1448)
    harness = Harness(mtu={INSIDE: 1500, OUTSIDE: 1280})
    [out] = harness.send(INSIDE, packet, vnet=vnet.pack())
    answer = decode(out.packet)
    assert (out.link, answer.kind, answer.code, answer.mtu) == (INSIDE, 3, 4, 1280), show(out.packet)
    assert harness.drops() == {"fragmentation_needed": 1}
    packet, vnet = large_send(packets.pattern(14480), 1240)
    [out] = harness.send(INSIDE, packet, vnet=vnet.pack())
    assert out.link == OUTSIDE


@given(
    protocol=protocols,
    flags=st.integers(0, 3),
    gso_type=st.sampled_from([0, 1, 3, 4, 5, 0x81, 255]),
    numbers=st.tuples(*[st.sampled_from([0, 6, 8, 14, 16, 20, 33, 34, 42, 54, 65535]) | st.integers(0, 200)] * 4),
)
def test_no_virtio_header_writes_over_what_was_translated(
    protocol: int, flags: int, gso_type: int, numbers: tuple
) -> None:
    """want 1: whatever a virtio header claims, what leaves is what the specification says, but for its payload."""
    packet = segment(protocol, ("10.0.0.2", 4000), ("199.0.0.1", 80), packets.pattern(100))
    unfinished, _ = with_partial_checksum(packet)
    vnet = struct.pack("=BBHHHH", flags, gso_type, *numbers)
    harness = Harness()
    for out in harness.send(INSIDE, unfinished, vnet=vnet):
        told = Vnet.unpack(out.vnet)
        octets = bytearray(out.packet)
        if told.flags & NEEDS_CHECKSUM:
            at = told.checksum_start - LINK_HEADER + told.checksum_offset
            assert at + 2 <= len(octets)
            octets[at : at + 2] = b"\xff\xff"
        seen = decode(bytes(octets))
        assert (seen.source, seen.source_port) == (packets.to_address(traffic.EXTERNAL), 4000)
        assert (seen.destination, seen.destination_port) == (packets.to_address("199.0.0.1"), 80)
    assert sum(harness.drops().values()) + harness.forwarder.verdicts()["forward"] == 1
