"""A TCP connection of two hosts through a Gateway: a sender that cuts and repeats, a receiver that puts together."""

from __future__ import annotations

import struct

from tests.support.packets import TCP, Packet, decode, dotted, ones_sum, problems, pseudo_header, tcp
from tests.support.path_network import GSO_TCPV4, INSIDE, NEEDS_CHECKSUM, OUTSIDE
from tests.support.vpn_gateway import Gateway

LINK_HEADER = 14
SEQUENCES = 1 << 32
OTHER = {INSIDE: OUTSIDE, OUTSIDE: INSIDE}

Endpoint = tuple[str, int]


class Receiver:
    """What one end has received, by the numbers it knows."""

    def __init__(self, first: int) -> None:
        self.first = first  # number of the first octet
        self.octets = bytearray()  # in order
        self.later: dict[int, int] = {}  # by place: octets behind a hole

    def take(self, sequence: int, payload: bytes) -> None:
        place = (sequence - self.first + (SEQUENCES >> 1)) % SEQUENCES - (SEQUENCES >> 1)
        for at, octet in enumerate(payload, place):
            if at < len(self.octets):
                assert self.octets[at] == octet, "what was sent again is not what was sent"
            else:
                assert self.later.setdefault(at, octet) == octet, "what was sent again is not what was sent"
        while len(self.octets) in self.later:
            self.octets.append(self.later.pop(len(self.octets)))

    @property
    def acknowledges(self) -> int:
        return (self.first + len(self.octets)) % SEQUENCES

    def blocks(self) -> bytes:
        """Return the option of selective acknowledgment, with the first three blocks there are (RFC 2018)."""
        edges: list[list[int]] = []
        for at in sorted(self.later):
            if edges and edges[-1][1] == at:
                edges[-1][1] += 1
            else:
                edges.append([at, at + 1])
        numbers = [(self.first + edge) % SEQUENCES for block in edges[:3] for edge in block]
        return bytes((1, 1, 5, 2 + 4 * len(numbers))) + struct.pack(f">{len(numbers)}I", *numbers) if numbers else b""


class Talk:
    """A connection from `client` to `server`; `inside` is that of the two which is."""

    def __init__(
        self,
        gateway: Gateway,
        client: tuple[str, Endpoint],
        server: tuple[str, Endpoint],
        seen: Endpoint | None = None,
        first: tuple[int, int] = (1000, 7000),
    ) -> None:
        """client, server: link and endpoint; seen: where the client sees the server, if elsewhere."""
        self.gateway = gateway
        self.link = {"client": client[0], "server": server[0]}
        self.own = {"client": client[1], "server": server[1]}
        self.towards = {"client": seen or server[1], "server": client[1]}
        self.sequence = {"client": (first[0] + 1) % SEQUENCES, "server": (first[1] + 1) % SEQUENCES}  # of first octets
        self.received = {"client": Receiver(self.sequence["server"]), "server": Receiver(self.sequence["client"])}
        self.said = {"client": b"", "server": b""}
        self.acknowledged = {"client": 0, "server": 0}  # octets that the end has heard to be
        opened = self.passes("client", self.segment("client", "S", -1))
        self.towards["server"] = (dotted(opened.source), opened.source_port)
        self.passes("server", self.segment("server", "SA", -1))
        self.passes("client", self.segment("client", "A", 0))

    def segment(self, end: str, flags: str, place: int, payload: bytes = b"", options: bytes = b"", **more) -> bytes:
        other = self.received[end]
        return tcp(
            self.own[end],
            self.towards[end],
            flags,
            seq=self.sequence[end] + place,
            ack=other.acknowledges if "A" in flags else 0,
            payload=payload,
            tcp_options=options,
            **more,
        )

    def passes(self, end: str, packet: bytes, vnet: bytes | None = None) -> Packet:
        sent = self.gateway.send(self.link[end], packet, vnet)
        assert [out.link for out in sent] == [OTHER[self.link[end]]], self.gateway.harness.drops()
        return decode(sent[0].packet)

    def send(
        self, end: str, start: int, stop: int, *, size: int = 0, lost: bool = False, options: bytes = b""
    ) -> int:  # fmt: skip
        """Send what an end has said, from `start` to `stop`; return how many segments arrived.

        size: that of the segments of a large send with a partial checksum; 0: one segment. lost: on the way behind us.
        """
        packet, vnet = self.segment(end, "PA", start, self.said[end][start:stop], options), None
        if size and stop - start > size:
            packet, vnet = large(packet, size)
        sent = self.gateway.send(self.link[end], packet, vnet)
        for out in sent:
            assert out.link == OTHER[self.link[end]]
            if out.vnet is None or not any(out.vnet):
                assert problems(out.packet) == []
            if not lost:
                arrived = decode(out.packet)
                self.received[other(end)].take(arrived.seq, arrived.payload)
        return 0 if lost else len(sent)

    def acknowledge(self, end: str, *, lost: bool = False) -> None:
        """Have an end acknowledge what it has received, selectively as well; the other one hears it."""
        receiver = self.received[end]
        arrived = self.passes(end, self.segment(end, "A", len(self.said[end]), options=receiver.blocks()))
        if lost:
            return
        heard = (arrived.ack - self.sequence[other(end)] + (SEQUENCES >> 1)) % SEQUENCES - (SEQUENCES >> 1)
        assert 0 <= heard <= len(self.said[other(end)]), "what was never said is acknowledged"
        self.acknowledged[other(end)] = max(self.acknowledged[other(end)], heard)

    def say(self, end: str, octets: bytes, piece: int = 0, size: int = 0) -> bytes:
        """Say octets, and acknowledge them; return what arrives in all.

        piece: octets of a segment, 0: all; size: see `send`.
        """
        start = len(self.said[end])
        self.said[end] += octets
        for at in range(start, len(self.said[end]), piece or len(octets)):
            self.send(end, at, min(at + (piece or len(octets)), len(self.said[end])), size=size)
            self.acknowledge(other(end))
        assert self.acknowledged[end] == len(self.said[end])
        return bytes(self.received[other(end)].octets)


def other(end: str) -> str:
    return "server" if end == "client" else "client"


def large(packet: bytes, size: int) -> tuple[bytes, bytes]:
    """Return a segment as a large send with a partial checksum, and its virtio header (virtio 1.1 section 5.1.6)."""
    decoded = decode(packet)
    start = decoded.header_length
    partial = ones_sum(pseudo_header(decoded.source, decoded.destination, TCP, len(decoded.body)))
    headers = LINK_HEADER + len(packet) - len(decoded.payload)
    vnet = struct.pack("=BBHHHH", NEEDS_CHECKSUM, GSO_TCPV4, headers, size, LINK_HEADER + start, 16)
    return packet[: start + 16] + struct.pack(">H", partial) + packet[start + 18 :], vnet
