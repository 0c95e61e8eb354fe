"""A veth pair between two namespaces for the tests of this folder: frames put in on one side arrive on the other."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from fastmasq.ring.packet_socket import PACKET_VNET_HDR, SOL_PACKET, SendSocket, open_sender, open_tap
from fastmasq.ring.ring import RxRing
from tests.support.namespaces import Namespace, join
from tests.support.packets import TCP, UDP, ones_sum, pseudo_header

DEVICE = "eth0"
HERE_MAC, THERE_MAC = b"\x02\x00\x00\x00\x00\x01", b"\x02\x00\x00\x00\x00\x02"
IPV4, ARP, IPV6, VLAN, QINQ = b"\x08\x00", b"\x08\x06", b"\x86\xdd", b"\x81\x00", b"\x88\xa8"
PATIENCE_S = 5.0
QUIET_S = 0.05  # how long nothing must arrive until nothing is believed to come


class Pair:
    """Namespaces `here` (where taps and senders are) and `there`, joined eth0 to eth0."""

    def __init__(self) -> None:
        self.here, self.there = Namespace(), Namespace()
        join(self.here, DEVICE, self.there, DEVICE)
        for namespace, mac in ((self.here, HERE_MAC), (self.there, THERE_MAC)):
            namespace.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
            namespace.ip(f"link set {DEVICE} address {mac.hex(':')}")
        with self.there.entered():
            self._plain = raw_socket(DEVICE)
            self._offload = raw_socket(DEVICE, vnet_header=True)

    def remove(self) -> None:
        self._plain.close()
        self._offload.close()
        self.here.remove()
        self.there.remove()

    def send(self, frame: bytes) -> None:
        """Send one frame from there."""
        self._plain.send(frame)

    def send_offloaded(self, vnet: bytes, frame: bytes) -> None:
        """Send one frame from there whose checksum, and segments, are left to whoever comes next."""
        self._offload.send(vnet + frame)

    def tap(self, mode: str, device: str = DEVICE, **options) -> RxRing:
        with self.here.entered():
            return RxRing(open_tap(device, mode, **options))

    def tap_there(self, mode: str = "v2", **options) -> RxRing:
        with self.there.entered():
            return RxRing(open_tap(DEVICE, mode, **options))

    def sender(self, **options) -> SendSocket:
        with self.here.entered():
            return open_sender(DEVICE, **options)


def raw_socket(device: str, *, vnet_header: bool = False) -> socket.socket:
    """Return a packet socket of this namespace that only sends."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    if vnet_header:
        raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    raw.bind((device, 0))
    return raw


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """One pair for all tests of a module."""
    made = Pair()
    yield made
    made.remove()


@pytest.fixture
def open_ring(pair: Pair) -> Iterator[Callable[..., RxRing]]:
    """Return a function that opens a tap here, closed after the test."""
    opened = []

    def open_one(mode: str, **options) -> RxRing:
        ring = pair.tap(mode, **options)
        opened.append(ring)
        return ring

    yield open_one
    for ring in opened:
        ring.close()


def receive(ring: RxRing, count: int, patience_s: float = PATIENCE_S) -> list[tuple[bytes, bytes, int, bool]]:
    """Return the next `count` frames as (frame, virtio header, packet type, truncated), fewer if they do not come."""
    frames = ring.receive(min(count, 64))
    until = time.monotonic() + patience_s
    while len(frames) < count and time.monotonic() < until:
        select.select([ring.fileno()], [], [], 0.01)
        frames += ring.receive(min(count - len(frames), 64))
    return frames


def nothing_more(ring: RxRing) -> bool:
    return receive(ring, 1, QUIET_S) == []


def wait_for_frames(ring: RxRing) -> None:
    """Wait until the ring has something to receive."""
    assert select.select([ring.fileno()], [], [], PATIENCE_S)[0], "nothing arrives"


def counted(ring: RxRing, count: int) -> int:
    """Wait until the kernel has put `count` more frames into the ring, or dropped them; return how many it dropped.

    Frames sent are not there at once: on a busy machine a kernel thread takes them from one interface to the other.
    It keeps no more than a thousand meanwhile.
    """
    packets = drops = 0
    until = time.monotonic() + PATIENCE_S
    while packets < count and time.monotonic() < until:
        more, lost = ring.tap.statistics()
        packets, drops = packets + more, drops + lost
        if packets < count:
            time.sleep(0.001)
    assert packets == count
    return drops


def ethernet(packet: bytes, kind: bytes = IPV4, destination: bytes = HERE_MAC) -> bytes:
    return destination + THERE_MAC + kind + packet


def partial(packet: bytes, offset: int) -> bytes:
    """Return the packet with a partial transport checksum: the pseudo-header's sum alone; offset is the field's."""
    header = (packet[0] & 15) * 4
    source, destination = struct.unpack(">II", packet[12:20])
    total = ones_sum(pseudo_header(source, destination, packet[9], len(packet) - header))
    at = header + offset
    return packet[:at] + struct.pack(">H", total) + packet[at + 2 :]


def checksum_offset(protocol: int) -> int:
    return {TCP: 16, UDP: 6}[protocol]


def vnet_header(
    *, flags: int = 1, gso_type: int = 0, headers: int = 0, size: int = 0, start: int = 34, offset: int = 16
) -> bytes:
    """Return a virtio header in the machine's byte order; start counts from the first octet of the frame."""
    return struct.pack("=BBHHHH", flags, gso_type, headers, size, start, offset)
