"""The HOWTO's endpoints and a few questions that most tests of the path ask of a Harness."""

from __future__ import annotations

import random
import struct

from tests.support.harness import Harness, Out
from tests.support.packets import (
    ICMP,
    TCP,
    UDP,
    decode,
    dotted,
    internet_checksum,
    ipv4,
    ones_sum,
    ping,
    problems,
    pseudo_header,
    reassemble,
    tcp,
    udp,
)

INSIDE, OUTSIDE = "inside", "outside"
HOST, OTHER_HOST, SERVER, ROUTER = "10.0.0.2", "10.0.0.3", "199.0.0.1", "199.0.0.254"
GATEWAY_IN, GATEWAY_OUT = "10.0.0.1", "200.200.200.200"
HERE, THERE, EXTERNAL = (HOST, 4000), (SERVER, 80), (GATEWAY_OUT, 4000)
PROTOCOLS = (TCP, UDP, ICMP)
GSO_TCPV4, NEEDS_CHECKSUM = 1, 1  # linux/virtio_net.h


def query(protocol: int, source=HERE, remote=THERE, payload: bytes = b"question", **ip) -> bytes:
    """Return what an inside endpoint sends first; for a ping the port is the identifier."""
    if protocol == TCP:
        return tcp(source, remote, "S", seq=1000, payload=payload, **ip)
    if protocol == UDP:
        return udp(source, remote, payload, **ip)
    return ping(source[0], remote[0], source[1], payload=payload, **ip)


def answer(protocol: int, source=THERE, destination=EXTERNAL, payload: bytes = b"answer", **ip) -> bytes:
    """Return what the remote answers to `query`."""
    if protocol == TCP:
        return tcp(source, destination, "SA", seq=5000, ack=1001, payload=payload, **ip)
    if protocol == UDP:
        return udp(source, destination, payload, **ip)
    return ping(source[0], destination[0], destination[1], kind=0, payload=payload, **ip)


def only(sent: list[Out]) -> Out:
    """Return the one frame that was sent."""
    assert len(sent) == 1, f"{len(sent)} frames were sent"
    return sent[0]


def passes(harness: Harness, link: str, packet: bytes, vnet: bytes | None = None) -> bytes:
    """Send a packet that must come out on the other link; return it as it left."""
    out = only(harness.send(link, packet, vnet=vnet))
    assert out.link != link
    return out.packet


def dropped(harness: Harness, link: str, packet: bytes) -> str:
    """Send a packet that must be dropped, without an answer; return the reason."""
    harness.drops()
    sent = harness.send(link, packet)
    assert sent == [], f"sent: {sent}"
    [(reason, count)] = harness.drops().items() or [("none", 1)]
    assert count == 1
    return reason


def refused(harness: Harness, link: str, packet: bytes) -> tuple[str, bytes]:
    """Send a packet that must be dropped and answered on its own link; return the reason and the answer."""
    harness.drops()
    out = only(harness.send(link, packet))
    assert out.link == link
    [(reason, count)] = harness.drops().items()
    assert count == 1
    return reason, out.packet


def delivered(harness: Harness, link: str, packet: bytes) -> bool:
    """Whether a packet is left to the host's own kernel: nothing sent, nothing dropped."""
    before = harness.forwarder.verdicts()["deliver"]
    sent = harness.send(link, packet)
    return sent == [] and harness.drops() == {} and harness.forwarder.verdicts()["deliver"] == before + 1


def opened(protocol: int = UDP, **settings) -> Harness:
    """Return a Harness with one session HERE -> THERE of this protocol, answered."""
    harness = Harness(**settings)
    external = passes(harness, INSIDE, query(protocol))
    source_port = int.from_bytes(external[24:26] if protocol == ICMP else external[20:22], "big")
    passes(harness, OUTSIDE, answer(protocol, destination=(GATEWAY_OUT, source_port)))
    harness.drops()
    return harness


def cut(packet: bytes, *sizes: int) -> list[bytes]:
    """Return the packet as fragments of these payload sizes, the last as long as what is left."""
    whole = decode(packet)
    payload = packet[whole.header_length :]
    pieces, at = [], 0
    for size in (*sizes, len(payload)):
        part = payload[at : at + size]
        if not part:
            break
        more = at + len(part) < len(payload)
        pieces.append(
            ipv4(
                whole.source,
                whole.destination,
                whole.protocol,
                part,
                ttl=whole.ttl,
                identification=whole.identification,
                df=whole.df,
                mf=more,
                offset=at,
            )
        )
        at += len(part)
    return pieces


def body(length: int = 3000, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


def through(harness: Harness, link: str, pieces: list[bytes]) -> list[bytes]:
    """Let pieces arrive one by one; return what left, in order."""
    return [out.packet for piece in pieces for out in harness.send(link, piece)]


def joined(pieces: list[bytes]) -> bytes:
    """Return the datagram of these pieces, without its identification, which is ours on the way out."""
    whole = reassemble(sorted(pieces, key=lambda piece: decode(piece).offset))
    return whole[:4] + whole[6:10] + whole[12:]


def bare(packet: bytes) -> bytes:
    return packet[:4] + packet[6:10] + packet[12:]


# -- offloads --------------------------------------------------------------------------------------------------------


def partial(packet: bytes) -> bytes:
    """Return the packet with the sum of the pseudo-header as its transport checksum."""
    protocol, start = packet[9], (packet[0] & 15) * 4
    at = start + (16 if protocol == TCP else 6)
    source, destination = struct.unpack(">II", packet[12:20])
    total = ones_sum(pseudo_header(source, destination, protocol, len(packet) - start))
    return packet[:at] + struct.pack(">H", total) + packet[at + 2 :]


def completed(packet: bytes) -> bytes:
    """Finish a partial checksum as a device does."""
    start = (packet[0] & 15) * 4
    at = start + (16 if packet[9] == TCP else 6)
    return packet[:at] + struct.pack(">H", internet_checksum(packet[start:]) or 0xFFFF) + packet[at + 2 :]


def large(kind: int, size: int, headers: int = 54, offset: int = 16, start: int = 34) -> bytes:
    """Return the virtio header of a large send."""
    return struct.pack("=BBHHHH", NEEDS_CHECKSUM, kind, headers, size, start, offset)


def plain_ends(raw: bytes) -> tuple[str, str, bytes]:
    """Return source, destination and payload of a packet without ports whose header is right."""
    assert problems(raw) == []
    decoded = decode(raw)
    return dotted(decoded.source), dotted(decoded.destination), decoded.body
