"""The attacks of the soak: what an inside host, a stranger outside, and a program on the gateway may try.

Each is a sequence of packets without an end and a rate. Packets go out by raw sockets, whose kernel fills in length and
checksum of the IPv4 header (raw(7)).
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from fastmasq.lab import hosts
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.ring.packet_socket import PACKET_VNET_HDR, SOL_PACKET
from fastmasq.wire.numbers import ESP, GRE, ICMP, TCP, UDP
from tests.soak.place import ATTACKER, CLOSED_PORT, GATEWAY_MAC, ISAKMP_PORT, NOWHERE, ORDINARY, SERVICE_PORT
from tests.support import packets
from tests.support.packets import to_address

SERVER, EXTERNAL, SILENCE = to_address(SERVER_ADDRESS), to_address(EXTERNAL_ADDRESS), to_address(NOWHERE)
GREEDY = to_address("10.66.0.0")  # a /24
SECOND_NETWORK = to_address("172.20.0.0")
BURSTS_PER_S = 100
POOL = 4096  # packets that are dear to make: made once, sent again and again
CLIENTS = 32  # of the control socket, at a time
FLAGS = ("S", "SA", "A", "PA", "FA", "R", "RA", "F")


class Known(NamedTuple):
    """A live session, as an attacker may have guessed it: endpoints are (address, port)."""

    protocol: int
    inside: tuple[int, int]
    external: tuple[int, int]
    remote: tuple[int, int]


Packets = Callable[[Random, Sequence[Known]], Iterator[bytes]]


@dataclass(frozen=True)
class Attack:
    """Packets, how many of them a second, and the socket by which they leave."""

    packets: Packets
    rate: int
    send: Callable[[], Callable[[bytes], object]]


def raw_socket() -> Callable[[bytes], object]:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    return lambda packet: raw.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))


def offloading_socket() -> Callable[[bytes], object]:
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    raw.bind(("eth0", 0))
    return raw.send


def ipv4(source: int, destination: int, protocol: int, payload: bytes, fragment: int = 0, number: int = 0) -> bytes:
    """Return a packet whose length and checksum the kernel will fill in."""
    return struct.pack(">BBHHHBBHII", 0x45, 0, 0, number, fragment, 64, protocol, 0, source, destination) + payload


def udp(source: int, port: int, destination: int, to_port: int, payload: bytes = b"") -> bytes:
    """Return a datagram without a checksum (RFC 768)."""
    return ipv4(source, destination, UDP, struct.pack(">HHHH", port, to_port, 8 + len(payload), 0) + payload)


def pool(make: Callable[[Random, Sequence[Known]], bytes]) -> Packets:
    """Return the packets of POOL calls, over and over."""
    return lambda random, known: itertools.cycle([make(random, known) for _ in range(POOL)])


def address(random: Random) -> int:
    """Return an address that somebody outside may have."""
    return random.randrange(to_address("11.0.0.0"), to_address("100.0.0.0"))


# -- from inside ------------------------------------------------------------------------------------------------------


def neighbour_sweep(random: Random, known: Sequence[Known]) -> Iterator[bytes]:
    """Small datagrams to all addresses of the other inside link, most of which nobody has."""
    for number in itertools.cycle(range(256, 65_280)):
        yield udp(to_address(ATTACKER), 4000, SECOND_NETWORK + number, CLOSED_PORT, b"?")


def port_grab(random: Random, known: Sequence[Known]) -> Iterator[bytes]:
    """All ports of all addresses of a /24, to somebody who answers or nobody."""
    for number in itertools.count(random.randrange(1 << 24)):
        remote = SERVER if number & 1 else SILENCE
        yield udp(GREEDY + 1 + number % 250, 1024 + number // 250 % 64_000, remote, CLOSED_PORT)


def syn_flood(random: Random, known: Sequence[Known]) -> bytes:
    source = (GREEDY + random.randrange(1, 250), random.randrange(1024, 65_536))
    return packets.tcp(source, (random.choice((SERVER, SILENCE)), CLOSED_PORT), "S", seq=random.getrandbits(32))


def many_sources(random: Random, known: Sequence[Known]) -> Iterator[bytes]:
    """Each packet from another address of the inside network."""
    while True:
        source = to_address("10.1.0.0") + random.randrange(254 << 16)
        yield udp(source, random.randrange(1024, 65_536), SILENCE, CLOSED_PORT)


def new_spis(random: Random, known: Sequence[Known]) -> Iterator[bytes]:
    while True:
        yield ipv4(to_address(ATTACKER), SERVER, ESP, struct.pack(">II", random.getrandbits(32) | 256, 1) + bytes(32))


def source_of_another_link(random: Random, known: Sequence[Known]) -> bytes:
    """What would be a live session's, if it did not come by the wrong link."""
    others = [each for each in known if each.inside[0] >> 16 == SECOND_NETWORK >> 16] or [_guess(random)]
    return _of_session(random, random.choice(others))


def fragments_inside(random: Random, known: Sequence[Known]) -> Iterator[bytes]:
    return _fragments(random, lambda: GREEDY + random.randrange(1, 250), SERVER)


def hairpins(random: Random, known: Sequence[Known]) -> Iterator[bytes]:
    while True:
        yield udp(to_address(ATTACKER), random.randrange(1024, 65_536), EXTERNAL, random.randrange(1, 65_536), b"turn")


def odd_inside(random: Random, known: Sequence[Known]) -> bytes:
    return _odd(random, to_address(ATTACKER), SERVER)


def forged_offloads(random: Random, known: Sequence[Known]) -> bytes:
    """A frame with a virtio header that may say anything (virtio 1.1 section 5.1.6)."""
    size = random.choice((0, 8, 100, 1400, 4000, 30_000))
    source = (ATTACKER, random.randrange(1024, 65_536))
    make = packets.tcp if random.random() < 0.5 else packets.udp
    more = {"flags": random.choice(FLAGS)} if make is packets.tcp else {}
    packet = make(source, (SERVER, random.choice((SERVICE_PORT, CLOSED_PORT))), payload=bytes(size), **more)
    flags, kind, length = (
        random.choice((0, 1, 1, 2, 3)),
        random.choice((0, 0, 1, 3, 4, 5, 0x81)),
        random.choice((0, 54)),
    )
    start, offset = random.choice((0, 14, 34, 54, 60_000)), random.choice((0, 2, 6, 6, 16, 16, 18, 40_000))
    header = struct.pack("=BBHHHH", flags, kind, length, 1400, start, offset)
    return header + bytes.fromhex(GATEWAY_MAC.replace(":", "")) + bytes.fromhex("020000000066 0800") + packet


# -- from outside -----------------------------------------------------------------------------------------------------


def forged_esp(random: Random, known: Sequence[Known]) -> bytes:
    return ipv4(address(random), EXTERNAL, ESP, struct.pack(">II", random.getrandbits(32), 1) + bytes(24))


def forged_isakmp_and_gre(random: Random, known: Sequence[Known]) -> bytes:
    source = random.choice((address(random), SERVER))
    if random.random() < 0.5:
        call = struct.pack(">HHHHI", 0x3081, 0x880B, 8, random.getrandbits(16), 1)
        return ipv4(source, EXTERNAL, GRE, call + bytes(8))
    cookies = struct.pack(">QQ", random.getrandbits(64), random.choice((0, random.getrandbits(64))))
    return udp(source, ISAKMP_PORT, EXTERNAL, ISAKMP_PORT, cookies + struct.pack(">BBBBII", 1, 0x10, 2, 0, 0, 28))


def forged_segments(random: Random, known: Sequence[Known]) -> bytes:
    """Segments of the right endpoints, with numbers that are guesses."""
    session = random.choice([each for each in known if each.protocol == TCP] or [_guess(random)])
    seq, ack = random.getrandbits(32), random.getrandbits(32)
    flags, window = random.choice(FLAGS), random.getrandbits(16)
    return packets.tcp(session.remote, session.external, flags, seq=seq, ack=ack, window=window)


def datagrams(random: Random, known: Sequence[Known]) -> Iterator[bytes]:
    """To all ports, from strangers and, as it seems, from the server."""
    while True:
        source = random.choice((address(random), SERVER))
        yield udp(source, SERVICE_PORT, EXTERNAL, random.randrange(1, 65_536), b"junk")


def forged_errors(random: Random, known: Sequence[Known]) -> bytes:
    """ICMP errors about packets of live sessions that were never sent."""
    session = random.choice([*known, _guess(random)])
    make = packets.tcp if session.protocol == TCP else packets.udp
    more = {"flags": "A", "seq": random.getrandbits(32)} if session.protocol == TCP else {}
    kind, code = random.choice(((3, 1), (3, 3), (3, 4), (11, 0), (12, 0)))
    quote = make(session.external, session.remote, payload=bytes(8), **more)
    return packets.icmp_error(address(random), EXTERNAL, kind, code, quote, mtu=random.choice((0, 68, 576, 1400)))


def fragments_outside(random: Random, known: Sequence[Known]) -> Iterator[bytes]:
    return _fragments(random, lambda: random.choice((address(random), SERVER)), EXTERNAL)


def odd_outside(random: Random, known: Sequence[Known]) -> bytes:
    return _odd(random, address(random), EXTERNAL)


# -- from the gateway itself ------------------------------------------------------------------------------------------


def odd_requests(random: Random, known: Sequence[Known]) -> Iterator[bytes]:
    """What programs may send to the control socket, right or not; empty: a client that says nothing."""
    while True:
        yield random.choice(
            (
                b"",
                b"[" * 20_000 + b"\n",
                b'{"method":"status"}\n',
                b'{"method":"sessions","params":{"limit":[[[[]]]]}}\n',
                b'{"method":"sessions","params":{"host":"' + b"9" * 5000 + b'"}}\n',
                b'{"method":"rule","params":' + b'{"a":' * 3000 + b"\n",
                random.randbytes(2000) + b"\n",
                b'{"method":"status"',
            )
        )


def control_socket(path: str) -> Callable[[bytes], object]:
    """Return what sends each request by a connection of its own, which stays until there are CLIENTS younger ones."""
    clients: list[socket.socket] = []

    def send(request: bytes) -> None:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(0.5)
        clients.append(client)
        if len(clients) > CLIENTS:
            clients.pop(0).close()
        client.connect(path)
        client.sendall(request)

    return send


# -- common -----------------------------------------------------------------------------------------------------------


def _guess(random: Random) -> Known:
    """Return a session that there might be."""
    inside = to_address(random.choice(ORDINARY["second"]))
    port = random.randrange(1024, 65_536)
    return Known(random.choice((TCP, UDP)), (inside, port), (EXTERNAL, port), (SERVER, SERVICE_PORT))


def _of_session(random: Random, session: Known) -> bytes:
    if session.protocol == TCP:
        return packets.tcp(session.inside, session.remote, random.choice(FLAGS), seq=random.getrandbits(32))
    if session.protocol == ICMP:
        return packets.ping(session.inside[0], session.remote[0], session.inside[1])
    return packets.udp(session.inside, session.remote, b"forged")


def _fragments(random: Random, source: Callable[[], int], destination: int) -> Iterator[bytes]:
    """Pieces of datagrams that will never be whole: first ones and later ones."""
    while True:
        fragment = random.choice((0x2000, 0x2000 | random.randrange(1, 100), random.randrange(1, 8191)))
        header = struct.pack(">HHHH", random.randrange(1024, 65_536), CLOSED_PORT, 4000, 0)
        yield ipv4(source(), destination, UDP, header + bytes(64), fragment, random.randrange(1, 65_536))


def _odd(random: Random, source: int, destination: int) -> bytes:
    """Return a packet of any protocol with some octets that are not what they should be, and the address to go to."""
    protocol = random.choice((TCP, UDP, ICMP, GRE, ESP, 51, 132, random.randrange(256)))
    packet = bytearray(ipv4(source, destination, protocol, random.randbytes(random.choice((0, 1, 8, 20, 60, 1000)))))
    for _ in range(random.randrange(4)):
        packet[random.choice((1, 6, 7, 8, 9, 12, 13, 14, 15, *range(20, len(packet))))] = random.getrandbits(8)
    return bytes(packet)


INSIDE = {
    "neighbour sweep": Attack(neighbour_sweep, 5000, raw_socket),
    "port grab by a /24": Attack(port_grab, 5000, raw_socket),
    "SYN flood by a /24": Attack(pool(syn_flood), 3000, raw_socket),
    "sources of a /8": Attack(many_sources, 5000, raw_socket),
    "new ESP SPIs": Attack(new_spis, 200, raw_socket),
    "another link's source": Attack(pool(source_of_another_link), 3000, raw_socket),
    "fragments": Attack(fragments_inside, 3000, raw_socket),
    "hairpins": Attack(hairpins, 3000, raw_socket),
    "odd packets": Attack(pool(odd_inside), 3000, raw_socket),
    "forged virtio headers": Attack(pool(forged_offloads), 1000, offloading_socket),
}
OUTSIDE = {
    "forged ESP": Attack(pool(forged_esp), 5000, raw_socket),
    "forged ISAKMP and GRE": Attack(pool(forged_isakmp_and_gre), 3000, raw_socket),
    "forged TCP segments": Attack(pool(forged_segments), 3000, raw_socket),
    "datagrams to all ports": Attack(datagrams, 5000, raw_socket),
    "forged ICMP errors": Attack(pool(forged_errors), 3000, raw_socket),
    "fragments": Attack(fragments_outside, 3000, raw_socket),
    "odd packets": Attack(pool(odd_outside), 3000, raw_socket),
}
LOCAL = "clients of the control socket"  # its packets are requests; it takes its turn with those from outside


def commit(name: str, side: str, namespace: str, seed: int, sessions: Sequence[dict[str, Any]], control: str) -> None:
    """Commit an attack by its name until killed: the life of a process."""
    attack = (INSIDE if side == "inside" else OUTSIDE).get(name)
    if attack is None:
        attack = Attack(odd_requests, 50, lambda: control_socket(control))
    carry_out(attack, namespace, seed, sessions)


def carry_out(attack: Attack, namespace: str, seed: int, sessions: Sequence[dict[str, Any]] = ()) -> None:
    """Attack from a namespace until killed: the life of a process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    with hosts.entered(namespace):
        send = attack.send()
    _flood(send, attack.packets(Random(seed), known_of(sessions)), attack.rate)


def known_of(sessions: Sequence[dict[str, Any]]) -> list[Known]:
    """Return sessions, as the control socket lists them, that have ports."""
    found = []
    for each in sessions:
        protocol = {"tcp": TCP, "udp": UDP}.get(each["protocol"])
        if protocol:
            ends = [packets.to_endpoint(each[end]) for end in ("inside", "external", "remote")]
            found.append(Known(protocol, *ends))
    return found


def _flood(send: Callable[[bytes], object], wanted: Iterator[bytes], rate: int) -> None:
    """Send so many a second as evenly as bursts of a hundredth allow; what is late is not made up for."""
    burst = max(1, rate // BURSTS_PER_S)
    due = time.monotonic()
    while True:
        for packet in itertools.islice(wanted, burst):
            with contextlib.suppress(OSError):  # the kernel does not take everything that is odd
                send(packet)
        now = time.monotonic()
        due = max(due + burst / rate, now - burst / rate)
        time.sleep(max(0.0, due - now))
