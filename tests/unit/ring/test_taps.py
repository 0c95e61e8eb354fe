"""Real taps on a veth pair, in every mode: what was sent arrives octet for octet, in order, and nothing else does."""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from fastmasq.errors import KernelError
from fastmasq.kernel.guard.backends import make_guard
from fastmasq.kernel.guard.specification import Guard, GuardSpec
from fastmasq.ring import packet_socket
from fastmasq.ring.geometry import V3_BLOCK
from fastmasq.ring.packet_socket import GUARD_MARK, MODES, Tap, open_sender, open_tap
from fastmasq.ring.ring import RxRing
from tests.support.harness import Harness, address
from tests.support.namespaces import open_tun
from tests.support.packets import TCP, UDP, tcp, udp
from tests.support.veth import (
    ARP,
    HERE_MAC,
    IPV4,
    IPV6,
    QINQ,
    THERE_MAC,
    VLAN,
    Pair,
    checksum_offset,
    counted,
    ethernet,
    nothing_more,
    partial,
    receive,
    vnet_header,
    wait_for_frames,
)

HOST, BROADCAST, MULTICAST, OTHERHOST = 0, 1, 2, 3  # sll_pkttype
SO_DETACH_FILTER = 27
NO_VNET = bytes(10)
GSO_TCPV4, GSO_UDP_L4 = 1, 5
V3_FRAMES_PER_BLOCK = V3_BLOCK // 2048
LARGEST = 65535 - 54  # octets of payload: the kernel passes frames of up to 64 KiB - 1 whole and cuts longer ones

modes = pytest.mark.parametrize("mode", MODES)
with_and_without_vnet = pytest.mark.parametrize("vnet", [True, False], ids=["vnet", "plain"])


def datagram(number: int, length: int = 64) -> bytes:
    """Return a UDP frame that says its number and has a payload all its own."""
    payload = struct.pack(">I", number) + random.Random(number).randbytes(max(0, length - 4))
    return ethernet(udp("199.0.0.1:53", "10.0.0.2:4000", payload))


def large_send(payload: bytes, size: int = 1448) -> tuple[bytes, bytes]:
    """Return virtio header and frame of a TCP segment that is to be cut into pieces of `size` octets."""
    segment = partial(tcp("199.0.0.1:80", "10.0.0.2:4000", "PA", seq=1, ack=1, payload=payload), checksum_offset(TCP))
    return vnet_header(gso_type=GSO_TCPV4, headers=54, size=size), ethernet(segment)


def large_datagrams(payload: bytes, size: int = 1000) -> tuple[bytes, bytes]:
    """Return virtio header and frame of UDP datagrams sent as one (UDP_SEGMENT)."""
    packet = partial(udp("199.0.0.1:53", "10.0.0.2:4000", payload), checksum_offset(UDP))
    return vnet_header(gso_type=GSO_UDP_L4, headers=42, size=size, offset=6), ethernet(packet)


# --- octet for octet ---------------------------------------------------------------------------------------------


@modes
@with_and_without_vnet
def test_frames_of_every_size(pair, open_ring, mode: str, vnet: bool) -> None:
    ring = open_ring(mode, vnet_header=vnet)
    assert (ring.tap.mode, ring.tap.vnet_header, ring.tap.refused) == (mode, vnet, {})
    frames = [datagram(number, length) for number, length in enumerate([0, 1, 4, 5, 17, 18, 64, 511, 1023, 1471, 1472])]
    for frame in frames:
        pair.send(frame)
    assert receive(ring, len(frames)) == [(frame, NO_VNET, HOST, False) for frame in frames]
    assert nothing_more(ring)


@modes
def test_a_deaf_tap_hears_from_when_it_is_told_to(pair, open_ring, mode: str) -> None:
    """What came before is not there, whatever was heard by others."""
    ring, others = open_ring(mode, deaf=True), open_ring("v2")
    pair.send(datagram(1))
    assert len(receive(others, 1)) == 1 and nothing_more(ring)
    ring.tap.hear()
    pair.send(ethernet(b"", ARP))
    pair.send(datagram(2))
    assert [frame for frame, *_ in receive(ring, 1)] == [datagram(2)]
    assert nothing_more(ring)


@modes
@with_and_without_vnet
def test_a_packet_of_64_kib_arrives_whole(pair, open_ring, mode: str, vnet: bool) -> None:
    """Longer than any slot: a large send with offloads on. With the virtio header its segment size comes along."""
    ring = open_ring(mode, vnet_header=vnet, frames=64)
    header, frame = large_send(random.Random(1).randbytes(LARGEST))
    pair.send_offloaded(header, frame)
    [(got, told, kind, truncated)] = receive(ring, 1)
    assert got == frame
    assert (kind, truncated) == (HOST, False)
    if vnet:
        flags, gso_type, headers, size, start, offset = struct.unpack("=BBHHHH", told)
        assert (flags & 1, gso_type, size, start, offset) == (1, GSO_TCPV4, 1448, 34, 16)
        assert headers >= 54
    else:
        assert told == b"\x01" + bytes(9)


@modes
@with_and_without_vnet
def test_datagrams_sent_as_one_arrive_as_one(pair, open_ring, mode: str, vnet: bool) -> None:
    ring = open_ring(mode, vnet_header=vnet, frames=64)
    header, frame = large_datagrams(random.Random(2).randbytes(30_000))
    pair.send_offloaded(header, frame)
    [(got, told, _, truncated)] = receive(ring, 1)
    assert got == frame
    assert not truncated
    if vnet:
        assert (told[0] & 1, told[1], struct.unpack("=H", told[4:6])[0]) == (1, GSO_UDP_L4, 1000)


@modes
@with_and_without_vnet
def test_large_and_small_in_order(pair, open_ring, mode: str, vnet: bool) -> None:
    """Copies of long packets are queued beside the ring: they must not change places with others."""
    ring = open_ring(mode, vnet_header=vnet)
    large = [large_send(random.Random(number).randbytes(2000 + 1000 * number), 1000) for number in range(60)]
    small = [datagram(number, 100) for number in range(60)]
    sent = [large[number][1] if number % 3 else small[number] for number in range(60)]
    got = []
    for first in range(0, 60, 12):
        for number in range(first, first + 12):
            if number % 3:
                pair.send_offloaded(*large[number])
            else:
                pair.send(small[number])
        got += receive(ring, 12)
    assert [frame for frame, *_ in got] == sent
    assert not any(truncated for *_, truncated in got)


@modes
@with_and_without_vnet
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_partial_checksum_is_marked(pair, open_ring, mode: str, vnet: bool, protocol: int) -> None:
    """The virtio header says where it is; without, the ring's status says that there is one."""
    ring = open_ring(mode, vnet_header=vnet)
    build = tcp if protocol == TCP else udp
    whole = build("199.0.0.1:80", "10.0.0.2:4000", payload=b"left to the device")
    frame = ethernet(partial(whole, checksum_offset(protocol)))
    pair.send_offloaded(vnet_header(offset=checksum_offset(protocol)), frame)
    pair.send(ethernet(whole))
    (got, told, _, _), (complete, nothing, _, _) = receive(ring, 2)
    assert got == frame
    if vnet:
        flags, gso_type, _, _, start, offset = struct.unpack("=BBHHHH", told)
        assert (flags & 1, gso_type, start, offset) == (1, 0, 34, checksum_offset(protocol))
    else:
        assert told == b"\x01" + bytes(9)
    assert (complete, nothing) == (ethernet(whole), NO_VNET)


# --- what is not for us --------------------------------------------------------------------------------------------


@modes
@with_and_without_vnet
def test_only_untagged_ipv4_is_seen(pair, open_ring, mode: str, vnet: bool) -> None:
    """Tagged frames belong to VLAN sub-interfaces, the rest to the kernel."""
    ring = open_ring(mode, vnet_header=vnet)
    inner = udp("199.0.0.1:53", "10.0.0.2:4000", b"not ours")
    for kind, payload in [
        (VLAN, b"\x00\x05" + IPV4 + inner),
        (VLAN, b"\x00\x00" + IPV4 + inner),
        (QINQ, b"\x00\x05" + VLAN + b"\x00\x06" + IPV4 + inner),
        (ARP, bytes(28)),
        (IPV6, bytes(60)),
        (b"\x88\xb5", inner),
    ]:
        pair.send(ethernet(payload, kind))
    pair.send(datagram(7))
    assert [frame for frame, *_ in receive(ring, 1)] == [datagram(7)]
    assert nothing_more(ring)


@modes
@pytest.mark.parametrize("option", ["granted", "refused"])
def test_what_we_send_ourselves_is_not_seen(pair, open_ring, mode: str, option: str, monkeypatch) -> None:
    """By PACKET_IGNORE_OUTGOING, and on kernels without it (before 4.20) by the filter."""
    if option == "refused":
        monkeypatch.setattr(packet_socket, "PACKET_IGNORE_OUTGOING", 999)
    ring = open_ring(mode)
    assert list(ring.tap.refused) == ([packet_socket.IGNORE_OUTGOING] if option == "refused" else [])
    there = pair.tap_there()
    sender = pair.sender(vnet_header=False)
    try:
        ours = THERE_MAC + HERE_MAC + IPV4 + udp("10.0.0.2:4000", "199.0.0.1:53", b"ours")
        sender.socket.send(ours)
        assert [frame for frame, *_ in receive(there, 1)] == [ours]
        pair.send(datagram(1))
        assert [frame for frame, *_ in receive(ring, 1)] == [datagram(1)]
        assert nothing_more(ring)
    finally:
        there.close()
        sender.close()


@modes
def test_whom_a_frame_is_addressed_to(pair, open_ring, mode: str) -> None:
    ring = open_ring(mode)
    stations = [
        (HERE_MAC, HOST),
        (b"\xff" * 6, BROADCAST),
        (bytes.fromhex("01005e000001"), MULTICAST),
        (bytes.fromhex("020000000077"), OTHERHOST),
    ]
    packet = udp("199.0.0.1:53", "10.0.0.2:4000", b"to whom")
    for station, _ in stations:
        pair.send(ethernet(packet, destination=station))
    assert [(frame[:6], kind) for frame, _, kind, _ in receive(ring, 4)] == stations


# --- behind a guard that marks -------------------------------------------------------------------------------------


@pytest.fixture
def guard(pair: Pair) -> Iterator[Guard]:
    """A guard in force here, to which all is ours that is not for 10.0.0.1."""
    with pair.here.entered():
        made = make_guard("tc")
        made.update(KEPT)
    yield made
    with pair.here.entered():
        made.remove()


def number_of(pair: Pair, interface: str) -> int:
    return int(pair.here.sh(f"cat /sys/class/net/{interface}/ifindex"))


KEPT = GuardSpec(inside=["eth0"], outside=[], local_addresses=[address("10.0.0.1")], external={})
TRANSIT = udp("10.0.0.2:4000", "199.0.0.1:53", b"ours")
HOSTS_OWN = udp("10.0.0.2:4000", "10.0.0.1:53", b"the host's")
OTHER_MAC = bytes.fromhex("020000000077")


@modes
@with_and_without_vnet
def test_behind_the_guard_what_is_ours_is_for_this_host(pair, open_ring, guard, mode: str, vnet: bool) -> None:
    """Of what is another station's, or of a VLAN that has no interface here, there is enough to count it.

    A tag that says a priority alone is gone.
    """
    ring = open_ring(mode, vnet_header=vnet, behind=(number_of(pair, "eth0"),))
    many, group = ethernet(TRANSIT, destination=b"\xff" * 6), ethernet(TRANSIT, destination=b"\1\0\x5e\0\0\1")
    header, large = large_send(random.Random(3).randbytes(LARGEST))
    pair.send(ethernet(bytes(28), ARP))
    pair.send(ethernet(TRANSIT))
    pair.send(ethernet(HOSTS_OWN))
    pair.send(many)
    pair.send(group)
    pair.send(ethernet(TRANSIT, destination=OTHER_MAC))
    pair.send(ethernet(b"\x00\x05" + IPV4 + TRANSIT, VLAN))
    pair.send(ethernet(b"\xe0\x00" + IPV4 + TRANSIT, VLAN))
    pair.send_offloaded(header, large)
    got = receive(ring, 8)
    assert [(frame, kind) for frame, _, kind, _ in got] == [
        (ethernet(TRANSIT), HOST),
        (ethernet(HOSTS_OWN), HOST),
        (many, BROADCAST),
        (group, MULTICAST),
        (OTHER_MAC[:1], OTHERHOST),
        (HERE_MAC[:1], OTHERHOST),
        (ethernet(TRANSIT), HOST),
        (large, HOST),
    ]
    assert (got[7][1][1] == GSO_TCPV4) == vnet
    assert nothing_more(ring)


def test_behind_the_guard_the_clock_is_not_asked_for_what_is_ours(pair, open_ring, guard) -> None:
    """The kernel does for every packet that comes to a ring without a time; what the guard gives is a mark's number."""
    ring = open_ring("v2", behind=(number_of(pair, "eth0"),))
    before = int(time.time())
    pair.send(ethernet(TRANSIT))
    pair.send(ethernet(HOSTS_OWN))
    assert len(receive(ring, 2)) == 2
    size = ring.tap.geometry.frame_size
    slots = ring.memory[: 2 * size].reshape(2, size)
    ours, hosts = slots[:, 16:20].copy().view(np.uint32)[:, 0]  # tp_sec of struct tpacket2_hdr
    assert ours == GUARD_MARK // 10**9
    assert before <= hosts <= time.time()


@modes
def test_behind_the_guard_the_interfaces_named_are_heard_alone(pair, open_ring, guard, mode: str) -> None:
    """The kernel hands a tap on a link all that the link has passed on to what is over it, as to a VLAN's interface."""
    virtual = bytes.fromhex("00005e000101")
    pair.here.ip(f"link add link eth0 name vrrp.1 address {virtual.hex(':')} type macvlan mode private")
    pair.here.ip("link set vrrp.1 up")
    try:
        link = number_of(pair, "eth0")
        both = link, number_of(pair, "vrrp.1")
        ring, deaf = open_ring(mode, behind=(link,)), open_ring(mode, behind=(link,), deaf=True)
        for_virtual = ethernet(TRANSIT, destination=virtual)

        def heard() -> list[bytes]:
            pair.send(for_virtual)
            pair.send(ethernet(TRANSIT))
            frames = receive(ring, 1)
            if frames[0][0] != ethernet(TRANSIT):
                frames += receive(ring, 1)
            assert {kind for *_, kind, _ in frames} == {HOST}
            return [frame for frame, *_ in frames]

        assert heard() == [ethernet(TRANSIT)]
        ring.tap.hear_of(both)
        deaf.tap.hear_of(both)
        assert heard() == [for_virtual, ethernet(TRANSIT)]
        with pair.here.entered():
            guard.update(replace(KEPT, inside=["eth0", "vrrp.1"]))
        assert heard() == [for_virtual, ethernet(TRANSIT)]
        assert nothing_more(deaf)
        deaf.tap.hear()
        assert len(heard()) == len(receive(deaf, 2)) == 2
    finally:
        pair.here.ip("link delete vrrp.1")


# --- round and round ---------------------------------------------------------------------------------------------


@modes
@with_and_without_vnet
@pytest.mark.parametrize("burst", [1, 7, 40])
def test_many_times_round_the_ring(pair, open_ring, mode: str, vnet: bool, burst: int) -> None:
    """A small ring, gone round again and again, with every octet checked; batches end anywhere in it.

    In V3 each burst takes one block at least, and one for each frame when a millisecond passes after each.
    """
    ring = open_ring(mode, vnet_header=vnet, frames=(burst + 1) * V3_FRAMES_PER_BLOCK if mode == "v3" else 64)
    rounds = 80 if mode == "v3" else 1200 // burst
    for number in range(0, rounds * burst, burst):
        frames = [datagram(number + one, 16 + (number + one) % 1400) for one in range(burst)]
        for frame in frames:
            pair.send(frame)
        assert [frame for frame, *_ in receive(ring, burst)] == frames
    assert nothing_more(ring)
    assert ring.tap.statistics()[1] == 0


@pytest.mark.parametrize("mode", ["v2", "v3"])
def test_many_times_round_the_memory_with_large_packets(pair, open_ring, mode: str) -> None:
    """In V3 blocks wrap after about thirty of them; in V2 every one is read as a copy."""
    ring = open_ring(mode, frames=64)
    for number in range(0, 240, 3):
        sent = [large_send(random.Random(number + one).randbytes(50_000 + number + one)) for one in range(3)]
        for header, frame in sent:
            pair.send_offloaded(header, frame)
        assert [frame for frame, *_ in receive(ring, 3)] == [frame for _, frame in sent]


@modes
def test_a_reader_that_takes_one_at_a_time(pair, open_ring, mode: str) -> None:
    ring = open_ring(mode)
    frames = [datagram(number) for number in range(15)]
    for frame in frames:
        pair.send(frame)
    assert [receive(ring, 1)[0][0] for _ in frames] == frames
    assert nothing_more(ring)


# --- too much ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["v2", "v3"])
def test_drops_are_counted_when_nobody_reads(pair, open_ring, mode: str) -> None:
    """What the ring took is intact and in order; the rest is counted; afterwards everything works as before."""
    ring = open_ring(mode, frames=64)
    pair.send(datagram(0))
    assert len(receive(ring, 1)) == 1
    assert ring.tap.statistics() == (1, 0)
    room = ring.tap.geometry.frame_count if mode == "v2" else ring.tap.geometry.length // 1500
    sent, drops = room + 300, 0
    for first in range(0, sent, 100):
        numbers = range(first, min(first + 100, sent))
        for number in numbers:
            pair.send(datagram(number, 1400))
        drops += counted(ring, len(numbers))
    got = receive(ring, sent - drops)
    assert nothing_more(ring)
    assert drops == sent - len(got) >= 100
    assert [frame for frame, *_ in got] == [datagram(number, 1400) for number in range(len(got))]
    if mode == "v2":
        assert len(got) == room
    assert ring.tap.statistics() == (0, 0), "each drop is told once"
    again = [datagram(1_000_000 + number) for number in range(3)]
    for frame in again:
        pair.send(frame)
    assert [frame for frame, *_ in receive(ring, 3)] == again


def test_drops_are_counted_in_socket_mode(pair, open_ring) -> None:
    ring = open_ring("socket")
    ring.tap.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    drops = 0
    for first in range(0, 1000, 100):
        for number in range(first, first + 100):
            pair.send(datagram(number))
        drops += counted(ring, 100)
    got = receive(ring, 1000 - drops)
    assert nothing_more(ring)
    assert drops == 1000 - len(got) > 0
    assert [frame for frame, *_ in got] == [datagram(number) for number in range(len(got))]


def test_a_long_packet_without_room_for_its_copy_is_marked_truncated(pair, open_ring) -> None:
    """V2: the slot holds its beginning only; it must never be taken for a whole packet, nor spoil the next ones."""
    ring = open_ring("v2", frames=64)
    ring.tap.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
    sent = [large_send(random.Random(number).randbytes(60_000)) for number in range(10)]
    for header, frame in sent:
        pair.send_offloaded(header, frame)
    pair.send(datagram(1))
    counted(ring, 11)
    got = receive(ring, 11)
    assert len(got) == 11
    whole = [not truncated for *_, truncated in got]
    assert whole[0] and whole[10] and not all(whole)
    for (frame, _, _, truncated), (_, original) in zip(got[:10], sent, strict=True):
        assert (len(frame) < len(original)) if truncated else (frame == original)
    assert got[10][0] == datagram(1)
    header, frame = sent[0]
    pair.send_offloaded(header, frame)
    assert receive(ring, 1)[0][0] == frame


def test_truncated_frames_are_dropped_by_name(pair, open_ring) -> None:
    """The path takes such a ring's frames: only whole ones go on. Here there is room for one copy, but not for two."""
    ring = open_ring("v2", frames=64)
    ring.tap.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    harness = Harness(mtu={"inside": 1500, "outside": 65535})
    harness.forwarder.attach(0, ring, harness.senders["inside"])
    for _ in range(2):
        pair.send_offloaded(*large_send(bytes(60_000)))
    pair.send(ethernet(udp("10.0.0.2:4000", "199.0.0.1:53", b"whole")))
    counted(ring, 3)
    assert [out.packet for out in harness.run()] == [udp("200.200.200.200:4000", "199.0.0.1:53", b"whole", ttl=63)]
    drops = harness.drops()
    harness.forwarder.attach(0, None, None)
    assert drops == {"martian_source": 1, "truncated": 1}


@modes
def test_tagged_frames_are_dropped_by_name_where_the_filter_cannot_tell(pair, open_ring, mode: str) -> None:
    """Kernels before 3.8 do not know the filter's question; then the ring's status word tells."""
    ring = open_ring(mode)
    ring.tap.socket.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    harness = Harness()
    harness.forwarder.attach(0, ring, harness.senders["inside"])
    pair.send(ethernet(b"\x00\x05" + IPV4 + udp("10.0.0.2:4000", "199.0.0.1:53", b"tagged"), VLAN))
    wait_for_frames(ring)
    sent = harness.run()
    drops = harness.drops()
    harness.forwarder.attach(0, None, None)
    assert sent == []
    assert drops == {"vlan_tagged": 1}


# --- waiting -----------------------------------------------------------------------------------------------------


@modes
def test_a_waiting_frame_is_seen_with_and_without_a_system_call(pair, open_ring, mode: str) -> None:
    ring = open_ring(mode)
    assert not ring.pending()
    assert select.select([ring.fileno()], [], [], 0)[0] == []
    pair.send(datagram(1))
    wait_for_frames(ring)
    assert ring.pending() is (mode != "socket")
    assert len(receive(ring, 1)) == 1
    assert not ring.pending()
    assert select.select([ring.fileno()], [], [], 0)[0] == []


def test_a_v3_block_half_read_is_pending(pair, open_ring, monkeypatch) -> None:
    """Only a full block is handed over here: how many frames share one does not depend on how fast they are sent."""
    monkeypatch.setattr(packet_socket, "V3_RETIRE_MS", 60_000)
    ring = open_ring("v3")
    block_holds = V3_BLOCK // 60_200
    sent = [large_send(random.Random(number).randbytes(60_000)) for number in range(block_holds + 1)]
    for header, frame in sent[:block_holds]:
        pair.send_offloaded(header, frame)
    counted(ring, block_holds)
    assert not ring.pending(), "the block may still be filled"
    pair.send_offloaded(*sent[block_holds])
    wait_for_frames(ring)
    assert [frame for frame, *_ in ring.receive(4)] == [frame for _, frame in sent[:4]]
    assert ring.pending()
    assert [frame for frame, *_ in ring.receive()] == [frame for _, frame in sent[4:block_holds]]
    assert not ring.pending()


@modes
def test_a_closed_ring_receives_nothing(pair, open_ring, mode: str) -> None:
    ring = open_ring(mode)
    pair.send(datagram(1))
    ring.close()
    assert ring.receive() == []
    assert not ring.pending()
    assert ring.fileno() == -1


# --- links that start at the IP header ---------------------------------------------------------------------------


@modes
@with_and_without_vnet
def test_a_link_without_a_header(pair, open_ring, mode: str, vnet: bool) -> None:
    with open_tun(pair.here, "tun0") as peer:
        ring = open_ring(mode, device="tun0", vnet_header=vnet)
        packets = [udp("199.0.0.1:53", "10.0.0.2:4000", bytes(length)) for length in (0, 1, 500, 1472)]
        for packet in packets:
            os.write(peer, packet)
        assert receive(ring, len(packets)) == [(packet, NO_VNET, HOST, False) for packet in packets]


# --- choosing ----------------------------------------------------------------------------------------------------


def test_auto_takes_the_first_mode_the_kernel_grants(pair, open_ring) -> None:
    assert (open_ring("auto").tap.mode, open_ring("auto", vnet_header=False).tap.vnet_header) == ("v2", False)


@pytest.mark.parametrize(
    ("refused", "chosen"),
    [
        ({("v2", True)}, ("v3", True)),
        ({("v2", True), ("v3", True)}, ("socket", True)),
        ({("v2", True), ("v3", True), ("socket", True)}, ("v2", False)),
        ({("v2", True), ("v3", True), ("socket", True), ("v2", False), ("v3", False)}, ("socket", False)),
    ],
)
def test_auto_falls_back_one_step_at_a_time(monkeypatch, refused: set, chosen: tuple[str, bool]) -> None:
    def grant(interface: str, mode: str, header: bool, *_):
        if (mode, header) in refused:
            raise OSError(92, "Protocol not available")
        return Tap(None, mode, header)

    monkeypatch.setattr(packet_socket, "_open", grant)
    tap = open_tap("eth0", "auto")
    assert (tap.mode, tap.vnet_header) == chosen
    assert (packet_socket.HEADER in tap.refused) == (not tap.vnet_header)


@pytest.mark.parametrize(
    ("mode", "chosen"),
    [("auto", ("socket", True)), ("v2", ("v2", False)), ("v3", ("v3", True)), ("socket", ("socket", True))],
)
def test_a_ring_v2_has_no_header_where_that_may_stop_it(pair, open_ring, mode: str, chosen: tuple[str, bool]) -> None:
    tap = open_ring(mode, v2_may_stop=True).tap
    assert (tap.mode, tap.vnet_header) == chosen


def test_a_forced_mode_that_is_refused_is_an_error(monkeypatch) -> None:
    def refuse(*_):
        raise OSError(92, "Protocol not available")

    monkeypatch.setattr(packet_socket, "_open", refuse)
    with pytest.raises(
        KernelError, match=r"^eth0: no packet socket to be had \(v3: Protocol not available; v3: Protocol"
    ):
        open_tap("eth0", "v3")


def test_a_missing_interface_is_named(pair) -> None:
    with pair.here.entered():
        with pytest.raises(KernelError, match=r"^nowhere: no packet socket to be had \(v2: No such device"):
            open_tap("nowhere", "v2")
        with pytest.raises(KernelError, match=r"^nowhere: cannot send on it: No such device"):
            open_sender("nowhere")


@pytest.mark.parametrize("mtu", [68, 576, 1500, 9000, 65535])
@pytest.mark.parametrize("frames", [64, 100, 4096])
def test_the_kernel_accepts_our_geometry(pair, open_ring, mtu: int, frames: int) -> None:
    for mode in ("v2", "v3"):
        ring = open_ring(mode, frames=frames, mtu=mtu)
        assert ring.memory.nbytes == ring.tap.geometry.length
        ring.close()


# --- the memory ring ---------------------------------------------------------------------------------------------


def test_the_memory_ring_is_a_queue_of_64_frames() -> None:
    ring = RxRing()
    frames = [bytes([number]) * (number + 1) for number in range(64)]
    for number, frame in enumerate(frames):
        ring.push(frame, bytes([number]) * 10, number % 5)
    with pytest.raises(BufferError, match="64 frames wait already"):
        ring.push(b"one too many")
    assert ring.receive(10) == [(frame, bytes([n]) * 10, n % 5, False) for n, frame in enumerate(frames)][:10]
    for frame in frames[:10]:
        ring.push(frame)
    assert [frame for frame, *_ in ring.receive(64)] == frames[10:] + frames[:10]
    assert not ring.pending()


def test_the_memory_ring_refuses_what_no_link_carries() -> None:
    ring = RxRing()
    with pytest.raises(ValueError, match="longer than"):
        ring.push(bytes(70_000))
    with pytest.raises(ValueError, match="10 octets, not 9"):
        ring.push(bytes(60), bytes(9))
    ring.push(b"")
    assert ring.receive() == [(b"", bytes(10), 0, False)]


def test_only_a_memory_ring_can_be_pushed_to(open_ring) -> None:
    with pytest.raises(TypeError):
        open_ring("v2").push(bytes(60))
