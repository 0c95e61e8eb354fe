"""The packets of a load: UDP frames of one size over so many flows, or those of tunnels, as the rows of one array."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import numpy as np

from fastmasq.wire.numbers import ESP

SMALL_FRAME = 60  # octets without FCS: the shortest Ethernet frame
LARGE_FRAME = 1514  # an Ethernet header and an IPv4 packet of 1500 octets
DISCARD_PORT = 9  # the lab's server drops what comes here
REFLECT_PORT = 19  # the lab's server sends back what comes here

_IP = 14  # where the headers begin in a frame
_UDP = _IP + 20
_SOURCE_MAC = bytes.fromhex("020000000001")
INSIDE_HOSTS = "10.0.1.0/24"
_FIRST_HOST = int(ipaddress.IPv4Address("10.0.1.1"))
_FIRST_REMOTE = int(ipaddress.IPv4Address("199.0.1.1"))
_FIRST_PORT = 1024  # from here on every endpoint has a port of its own, which a NAT can then keep
_PORTS_PER_HOST = 100


@dataclass(frozen=True)
class Flows:
    """So many inside hosts with so many ports each, towards one port of so many remote hosts."""

    hosts: int
    remotes: int = 1
    ports: int = _PORTS_PER_HOST
    remote_port: int = DISCARD_PORT

    @property
    def count(self) -> int:
        """The number of flows, which is the number of sessions they open."""
        return self.hosts * self.ports * self.remotes

    def frames(self, gateway: bytes, length: int = SMALL_FRAME) -> np.ndarray:
        """Return one frame of so many octets per flow (uint8, without FCS) for the gateway with that Ethernet address.

        Inside hosts change from row to row, ports when all hosts had their turn, remote hosts when all ports had.
        """
        port_and_remote, host = np.divmod(np.arange(self.count), self.hosts)
        remote, port = np.divmod(port_and_remote, self.ports)
        frames = _packets(gateway, length, 17, _FIRST_HOST + host, _FIRST_REMOTE + remote)
        _store(frames, _UDP, 2, _FIRST_PORT + host * self.ports + port)
        _store(frames, _UDP + 2, 2, self.remote_port)
        _store(frames, _UDP + 4, 2, length - _UDP)
        pseudo_header = _words(frames[:, _IP + 12 : _UDP]) + 17 + (length - _UDP)
        _store(frames, _UDP + 6, 2, _checksum(frames[:, _UDP:], pseudo_header))
        return frames


@dataclass(frozen=True)
class Tunnels:
    """So many tunnels, each of an inside host with a remote host of its own; there are HOSTS inside hosts at the most.

    protocol is GRE (PPTP's, Call IDs from 1 on) or ESP (SPIs from FIRST_SPI on).
    """

    protocol: int
    count: int

    HOSTS = 250
    FIRST_SPI = 0x1000

    def frames(self, gateway: bytes, length: int = SMALL_FRAME) -> np.ndarray:
        """Return one frame of so many octets per tunnel, as Flows.frames does."""
        number = np.arange(self.count)
        frames = _packets(gateway, length, self.protocol, _FIRST_HOST + number % self.HOSTS, _FIRST_REMOTE + number)
        if self.protocol == ESP:
            _store(frames, _UDP, 4, self.FIRST_SPI + number)
            _store(frames, _UDP + 4, 4, 2)
        else:
            _store(frames, _UDP, 4, 0x3001880B)
            _store(frames, _UDP + 4, 2, length - _UDP - 12)
            _store(frames, _UDP + 6, 2, 1 + number)
        return frames

    def answers(self, gateway: str) -> list[tuple[str, bytes]]:
        """Return (source, IPv4 packet) of what each remote host sends first to the gateway's outside address."""
        destination = int(ipaddress.IPv4Address(gateway)).to_bytes(4, "big")
        packets = []
        for number in range(self.count):
            source = ipaddress.IPv4Address(_FIRST_REMOTE + number)
            payload = (self.FIRST_SPI + number).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes(16)
            header = (
                bytes((0x45, 0)) + (20 + len(payload)).to_bytes(2, "big") + bytes((0, 0, 0, 0, 64, self.protocol, 0, 0))
            )
            packets.append((str(source), header + source.packed + destination + payload))
        return packets


def _packets(
    gateway: bytes, length: int, protocol: int, sources: np.ndarray | int, destinations: np.ndarray
) -> np.ndarray:
    """Return frames of so many octets with Ethernet and IPv4 headers, one for each destination."""
    frames = np.zeros((len(destinations), length), dtype=np.uint8)
    frames[:, 0:6] = np.frombuffer(gateway, dtype=np.uint8)
    frames[:, 6:12] = np.frombuffer(_SOURCE_MAC, dtype=np.uint8)
    _store(frames, 12, 2, 0x0800)
    _store(frames, _IP, 1, 0x45)
    _store(frames, _IP + 2, 2, length - _IP)
    _store(frames, _IP + 8, 1, 64)
    _store(frames, _IP + 9, 1, protocol)
    _store(frames, _IP + 12, 4, sources)
    _store(frames, _IP + 16, 4, destinations)
    _store(frames, _IP + 10, 2, _checksum(frames[:, _IP:_UDP]))
    return frames


def _store(frames: np.ndarray, offset: int, octets: int, value: np.ndarray | int) -> None:
    """Write numbers of so many octets in network byte order at the same place of every frame."""
    for position in range(octets):
        frames[:, offset + position] = (value >> 8 * (octets - 1 - position)) & 0xFF


def _words(octets: np.ndarray) -> np.ndarray:
    """Return the sum of the big-endian 16-bit words of every row; the number of columns is even."""
    return octets[:, 0::2].sum(axis=1, dtype=np.int64) * 256 + octets[:, 1::2].sum(axis=1, dtype=np.int64)


def _checksum(octets: np.ndarray, start: np.ndarray | int = 0) -> np.ndarray:
    """Return the RFC 1071 checksum of every row; 0xFFFF for 0, which UDP would take for "none"."""
    total = _words(octets) + start
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    return np.where(total == 0xFFFF, 0xFFFF, total ^ 0xFFFF)
