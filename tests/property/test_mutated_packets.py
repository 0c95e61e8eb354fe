"""A hundred thousand mutated packets from both sides, while established flows and tunnels go on undisturbed."""

from __future__ import annotations

import random

import pytest

from fastmasq.table.timeouts import Timeouts
from fastmasq.wire.numbers import ESP, GRE
from fastmasq.wire.pptp import Type, message
from tests.support import packets
from tests.support.model.state import INSIDE, OUTSIDE
from tests.support.packets import TCP, UDP, Malformed, decode, problems, with_ip_checksum
from tests.support.vpn_gateway import RESPONDER, Control, Gateway, esp, gre, isakmp

PACKETS = 100_000
BATCH = 50
PROBE_HOST, PROBE_PORT = "10.0.0.77", 7777
PROBE_SERVER = "199.0.0.77"
INTERESTING = (0, 1, 4, 5, 6, 17, 20, 63, 64, 127, 128, 254, 255)


def seeds() -> list[tuple[str, bytes]]:
    """Return well-formed packets of every kind, with the link each belongs to."""
    quoted = packets.udp("200.200.200.200:4000", "199.0.0.1:53", b"question")
    received = packets.tcp("199.0.0.1:80", "10.0.0.2:4000", "PA", seq=7, payload=b"answer")
    options = bytes.fromhex("070b04000000000000000001")
    request = message(Type.OUTGOING_CALL_REQUEST, b"\x00\x05")
    return [
        (INSIDE, packets.udp("10.0.0.2:4000", "199.0.0.1:53", b"question", options=options)),
        (INSIDE, packets.udp("10.0.0.2:4001", "199.0.0.1:53", bytes(600))),
        (INSIDE, packets.tcp("10.0.0.2:4000", "199.0.0.1:80", "S", seq=1, scale=7)),
        (INSIDE, packets.tcp("10.0.0.2:4000", "199.0.0.1:80", "PA", seq=2, ack=8, payload=b"GET /")),
        (INSIDE, packets.ping("10.0.0.2", "199.0.0.1", 9, payload=bytes(56))),
        (INSIDE, packets.icmp_error("10.0.0.2", "199.0.0.1", 3, 3, received)),
        (INSIDE, packets.udp("10.0.0.3:5000", "200.200.200.200:4000", b"hairpin")),
        (INSIDE, packets.ipv4("10.0.0.2", "199.0.0.1", 47, bytes(24))),
        (INSIDE, gre("10.0.0.2", "199.0.0.1", 5)),
        (INSIDE, esp("10.0.0.2", "199.0.0.1", 0x1000)),
        (INSIDE, esp("10.0.0.3", "199.0.0.1", 0x1001)),
        (INSIDE, isakmp("10.0.0.2", "199.0.0.1", b"cookie")),
        (INSIDE, packets.tcp("10.0.0.2:4001", "199.0.0.1:1723", "S", seq=1)),
        (INSIDE, packets.tcp("10.0.0.2:4001", "199.0.0.1:1723", "PA", seq=2, ack=8, payload=request)),
        (OUTSIDE, packets.udp("199.0.0.1:53", "200.200.200.200:4000", b"answer")),
        (OUTSIDE, packets.tcp("199.0.0.1:80", "200.200.200.200:4000", "SA", seq=7, ack=2)),
        (OUTSIDE, packets.tcp("199.0.0.1:80", "200.200.200.200:4000", "R", seq=8)),
        (OUTSIDE, packets.ping("199.0.0.1", "200.200.200.200", 9, kind=0)),
        (OUTSIDE, gre("199.0.0.1", "200.200.200.200", 6)),
        (OUTSIDE, esp("199.0.0.1", "200.200.200.200", 0x2000)),
        (OUTSIDE, isakmp("199.0.0.1", "200.200.200.200", b"cookie", RESPONDER)),
        (OUTSIDE, packets.tcp("199.0.0.1:1723", "200.200.200.200:4001", "SA", seq=7, ack=2)),
        (
            OUTSIDE,
            packets.icmp_error("199.0.0.254", "200.200.200.200", 11, 0, esp("200.200.200.200", "199.0.0.1", 0x1000)),
        ),
        (OUTSIDE, packets.icmp_error("199.0.0.254", "200.200.200.200", 11, 0, gre("200.200.200.200", "199.0.0.1", 5))),
        (
            OUTSIDE,
            packets.icmp_error(
                "199.0.0.254", "200.200.200.200", 3, 3, isakmp("200.200.200.200", "199.0.0.1", b"cookie")
            ),
        ),
        (OUTSIDE, packets.icmp_error("199.0.0.254", "200.200.200.200", 11, 0, quoted)),
        (OUTSIDE, packets.icmp_error("199.0.0.254", "200.200.200.200", 3, 4, quoted, mtu=1280)),
    ]


def mutated(packet: bytes, chance: random.Random) -> bytes:
    """Return the packet with up to six octets changed, or cut, or prolonged; two out of three have a right IPv4 sum."""
    octets = bytearray(packet)
    for _ in range(chance.randint(1, 6)):
        at = min(chance.randrange(len(octets)), chance.randrange(len(octets)))
        one_bit_off = octets[at] ^ 1 << chance.randrange(8)
        octets[at] = chance.choice((chance.choice(INTERESTING), chance.randrange(256), one_bit_off))
    if chance.random() < 0.2:
        del octets[chance.randrange(1, len(octets)) :]
    elif chance.random() < 0.2:
        octets += chance.randbytes(chance.randint(1, 40))
    length = (octets[0] & 15) * 4
    if chance.random() < 0.66 and 20 <= length <= len(octets):
        return with_ip_checksum(bytes(octets))
    return bytes(octets)


class Probe:
    """Flows of TCP, UDP and ping, a PPTP call and an SA, whose packets must pass as if nothing else happened."""

    def __init__(self, gateway: Gateway) -> None:
        harness = self.harness = gateway.harness
        here, there = (PROBE_HOST, PROBE_PORT), ("200.200.200.200", PROBE_PORT)
        server = (PROBE_SERVER, 80)
        self.pairs = [
            (INSIDE, packets.udp(here, server, b"out"), packets.udp(there, server, b"out", ttl=63)),
            (OUTSIDE, packets.udp(server, there, b"in"), packets.udp(server, here, b"in", ttl=63)),
            (INSIDE, self.segment(here, server, 101, 501), self.segment(there, server, 101, 501, ttl=63)),
            (OUTSIDE, self.segment(server, there, 501, 101), self.segment(server, here, 501, 101, ttl=63)),
            (INSIDE, self.ping(PROBE_HOST, PROBE_SERVER, 8), self.ping(there[0], PROBE_SERVER, 8, ttl=63)),
            (OUTSIDE, self.ping(PROBE_SERVER, there[0], 0), self.ping(PROBE_SERVER, PROBE_HOST, 0, ttl=63)),
        ]
        Control(gateway, PROBE_HOST, PROBE_SERVER).call(0x4000, 0x11)
        gateway.passes(INSIDE, esp(PROBE_HOST, PROBE_SERVER, 0x1000))
        gateway.passes(OUTSIDE, esp(PROBE_SERVER, there[0], 0x2000))
        for tunnel, outbound, inbound in ((gre, 0x11, 0x4000), (esp, 0x1000, 0x2000)):
            out, back = (PROBE_SERVER, outbound, 2), (inbound, 2)
            self.pairs += [
                (INSIDE, tunnel(PROBE_HOST, *out), tunnel(there[0], *out, ttl=63)),
                (OUTSIDE, tunnel(PROBE_SERVER, there[0], *back), tunnel(PROBE_SERVER, PROBE_HOST, *back, ttl=63)),
            ]
        harness.send(INSIDE, packets.tcp(here, server, "S", seq=100))
        harness.send(OUTSIDE, packets.tcp(server, there, "SA", seq=500, ack=101))

    @staticmethod
    def segment(source: tuple[str, int], destination: tuple[str, int], seq: int, ack: int, ttl: int = 64) -> bytes:
        return packets.tcp(source, destination, "A", seq=seq, ack=ack, ttl=ttl)

    @staticmethod
    def ping(source: str, destination: str, kind: int, ttl: int = 64) -> bytes:
        return packets.ping(source, destination, PROBE_PORT, kind=kind, ttl=ttl)

    def check(self) -> None:
        for link, packet, expected in self.pairs:
            assert [out.packet for out in self.harness.send(link, packet)] == [expected]


@pytest.mark.timeout(300)
def test_a_hundred_thousand_mutated_packets() -> None:
    chance = random.Random(1999)
    gateway = Gateway(capacity=65536, timeouts=Timeouts(udp=30_000_000_000))
    harness = gateway.harness
    probe = Probe(gateway)
    whole = seeds()
    for _ in range(PACKETS // BATCH):
        for _ in range(BATCH):
            link, packet = chance.choice(whole)
            harness.inject(link, mutated(packet, chance))
        for out in gateway.settle():
            check_sent(out.link, out.packet)
        gateway.second(0.01)
        probe.check()
    verdicts = harness.forwarder.verdicts()
    assert sum(verdicts.values()) >= PACKETS
    assert verdicts["forward"] > PACKETS // 20
    drops = harness.forwarder.drops()
    assert drops["esp_blocked"] and drops["gre_no_row"] and "tracker_failed" not in drops


def check_sent(link: str, packet: bytes) -> None:
    """What leaves can be decoded, has right lengths and a right header checksum, and no private source outside."""
    try:
        decoded = decode(packet)
    except Malformed as error:
        raise AssertionError(f"{packet.hex()} was sent: {error}") from error
    wrong = [problem for problem in problems(packet) if "total length" in problem or problem == "IPv4 checksum"]
    assert not wrong, f"{packet.hex()} was sent: {wrong}"
    if link == OUTSIDE:
        assert decoded.source == 0xC8C8C8C8
        assert decoded.protocol in (packets.ICMP, TCP, UDP, GRE, ESP)
