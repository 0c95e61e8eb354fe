"""Real senders behind the path: large sends go out whole or cut, and a refused packet takes no other with it."""

from __future__ import annotations

import os
import random
import struct
import time

import pytest

from fastmasq.ring import packet_socket
from fastmasq.ring.packet_socket import open_sender
from fastmasq.ring.ring import TxBatch
from tests.lab.net_namespaces import checked, open_tun
from tests.support.harness import GATEWAY_MAC, STATION_MAC, Harness
from tests.support.packets import (
    TCP,
    UDP,
    decode,
    internet_checksum,
    problems,
    pseudo_header,
    tcp,
    udp,
)
from tests.unit.ring.veth import DEVICE, checksum_offset, nothing_more, partial, receive, vnet_header

HERE, EXTERNAL, SERVER = "10.0.0.2:4000", "200.200.200.200:4000", "199.0.0.1:80"
GSO_TCPV4, GSO_UDP_L4 = 1, 5


class Gateway(Harness):
    """A Harness whose outside sender is a real socket on the veth pair; its frames arrive at a tap on the other side."""

    def __init__(self, pair, *, vnet: bool = True, mtu: int = 1500, qdisc_bypass: bool = False, **settings) -> None:
        super().__init__(mtu={"inside": 65535, "outside": mtu}, **settings)
        self.socket = pair.sender(vnet_header=vnet, qdisc_bypass=qdisc_bypass)
        assert self.socket.refused == []
        self.real = TxBatch(self.socket)
        self.forwarder.attach(1, self.rings["outside"], self.real)
        self.tap = pair.tap_there()
        self.send_one(udp(HERE, "199.0.0.1:9", b"so that the next hop is known"))
        receive(self.tap, 1)

    def send_one(self, packet: bytes, vnet: bytes | None = None) -> None:
        self.inject("inside", packet, vnet=vnet)
        self.run()

    def arrived(self, count: int) -> list[tuple[bytes, bytes]]:
        """Return (packet, virtio header) of the next frames on the other side."""
        frames = receive(self.tap, count)
        expected = STATION_MAC["outside"] + GATEWAY_MAC["outside"] + b"\x08\x00"
        assert all(frame[:14] == expected and not truncated for frame, _, _, truncated in frames)
        return [(frame[14:], vnet) for frame, vnet, *_ in frames]

    def close(self) -> None:
        self.real.close()
        self.tap.close()


@pytest.fixture
def gateway(pair):
    made = []

    def make(**settings) -> Gateway:
        made.append(Gateway(pair, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def completed(packet: bytes, offset: int) -> bytes:
    """Finish a partial checksum as a device does: sum from the transport header on, the field included."""
    start = (packet[0] & 15) * 4
    at = start + offset
    return packet[:at] + struct.pack(">H", internet_checksum(packet[start:])) + packet[at + 2 :]


def numbered(count: int) -> list[bytes]:
    return [udp(HERE, SERVER, struct.pack(">I", number) + bytes(number)) for number in range(count)]


def translated(packet: bytes) -> bytes:
    return udp(EXTERNAL, SERVER, decode(packet).payload, ttl=63)


# --- what goes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vnet", [True, False], ids=["vnet", "plain"])
@pytest.mark.parametrize("qdisc_bypass", [True, False], ids=["bypass", "qdisc"])
def test_a_batch_goes_out_in_one_call_and_in_order(gateway, vnet: bool, qdisc_bypass: bool) -> None:
    way = gateway(vnet=vnet, qdisc_bypass=qdisc_bypass)
    calls, sent = way.real.calls, way.real.sent
    packets = numbered(64)
    for packet in packets:
        way.inject("inside", packet)
    way.run()
    assert [packet for packet, _ in way.arrived(64)] == [translated(packet) for packet in packets]
    assert (way.real.calls - calls, way.real.sent - sent) == (1, 64)
    assert way.drops() == {}


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_a_large_send_goes_out_whole(gateway, protocol: int) -> None:
    """The virtio header goes with it; the partial checksum has followed the addresses, so the device can finish it."""
    way = gateway()
    payload = random.Random(1).randbytes(60_000 if protocol == TCP else 40_000)
    build = tcp if protocol == TCP else udp
    packet = partial(build(HERE, SERVER, payload=payload, df=True), checksum_offset(protocol))
    kind, headers, size = (GSO_TCPV4, 54, 1448) if protocol == TCP else (GSO_UDP_L4, 42, 1400)
    vnet = vnet_header(gso_type=kind, headers=headers, size=size, offset=checksum_offset(protocol))
    way.send_one(packet, vnet)
    [(got, told)] = way.arrived(1)
    flags, gso_type, _, gso_size, start, offset = struct.unpack("=BBHHHH", told)
    assert (flags & 1, gso_type, gso_size, start, offset) == (1, kind, size, 34, checksum_offset(protocol))
    whole = completed(got, checksum_offset(protocol))
    assert problems(whole) == []
    assert whole == build(EXTERNAL, SERVER, payload=payload, df=True, ttl=63)
    assert way.forwarder.notes()["segmented"] == 0


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_without_the_virtio_header_a_large_send_is_cut(gateway, protocol: int) -> None:
    way = gateway(vnet=False)
    payload = random.Random(2).randbytes(60_000)
    build = tcp if protocol == TCP else udp
    kind, headers, size = (GSO_TCPV4, 54, 1448) if protocol == TCP else (GSO_UDP_L4, 42, 1400)
    packet = partial(build(HERE, SERVER, payload=payload, df=True), checksum_offset(protocol))
    way.send_one(packet, vnet_header(gso_type=kind, headers=headers, size=size, offset=checksum_offset(protocol)))
    pieces = [packet for packet, _ in way.arrived(-(-60_000 // size))]
    assert all(problems(piece) == [] for piece in pieces)
    assert b"".join(decode(piece).payload for piece in pieces) == payload
    assert way.drops() == {}


def test_a_partial_checksum_is_left_to_the_device(gateway) -> None:
    way = gateway()
    way.send_one(partial(udp(HERE, SERVER, b"left"), 6), vnet_header(offset=6))
    [(got, told)] = way.arrived(1)
    assert told[0] & 1
    source, destination = struct.unpack(">II", got[12:20])
    assert got[26:28] == struct.pack(">H", 0xFFFF - internet_checksum(pseudo_header(source, destination, UDP, len(got) - 20)))
    assert completed(got, 6) == udp(EXTERNAL, SERVER, b"left", ttl=63)


def test_a_link_without_a_header_is_told_that_it_is_ipv4(pair) -> None:
    """On tun nothing in the frame says so: the message's address must."""
    with open_tun(pair.here, "tun9") as peer, pair.here.entered():
        harness = Harness(header_length={"inside": 14, "outside": 0})
        sender = TxBatch(open_sender("tun9"), link_header=False)
        try:
            harness.forwarder.attach(1, harness.rings["outside"], sender)
            packets = numbered(3)
            for packet in packets:
                harness.inject("inside", packet)
            harness.run()
            assert [os.read(peer, 4096) for _ in packets] == [translated(packet) for packet in packets]
            assert harness.drops() == {}
        finally:
            sender.close()


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vnet", [True, False], ids=["vnet", "plain"])
@pytest.mark.parametrize("where", [(0,), (2,), (5,), (0, 1, 2), (1, 4), (0, 1, 2, 3, 4, 5)])
def test_emsgsize_is_counted_and_the_others_still_go(gateway, vnet: bool, where: tuple[int, ...]) -> None:
    """The link's MTU has shrunk behind our back: only the packets that are too long for it are lost."""
    way = gateway(vnet=vnet, mtu=9000)
    small = numbered(6)
    for number, packet in enumerate(small):
        way.inject("inside", udp(HERE, SERVER, bytes(3000)) if number in where else packet)
    way.run()
    expected = [translated(packet) for number, packet in enumerate(small) if number not in where]
    assert [packet for packet, _ in way.arrived(len(expected))] == expected
    assert nothing_more(way.tap)
    assert way.drops() == {"tx_refused": len(where)}
    way.send_one(small[0])
    assert [packet for packet, _ in way.arrived(1)] == [translated(small[0])]


def test_a_link_that_is_down_is_counted_as_down(pair, gateway) -> None:
    """ENETDOWN concerns the whole batch; once the link is up again packets go out as before."""
    way = gateway()
    pair.here.ip(f"link set {DEVICE} down")
    try:
        for packet in numbered(10):
            way.inject("inside", packet)
        way.run()
        assert way.drops() == {"link_down": 10}
    finally:
        pair.here.ip(f"link set {DEVICE} up")
    until = time.monotonic() + 5
    while time.monotonic() < until and not (got := way.send_one(numbered(1)[0]) or receive(way.tap, 1, 0.1)):
        pass
    assert [frame[14:] for frame, *_ in got] == [translated(numbered(1)[0])]


def test_a_full_queue_is_counted_as_such(pair, gateway) -> None:
    """The user's shaper drops (ENOBUFS): counted, and what it has taken still goes."""
    checked("tc", "-n", pair.here.name, *f"qdisc add dev {DEVICE} root tbf rate 64kbit burst 2000 limit 4000".split())
    try:
        way = gateway()
        time.sleep(0.3)
        for number in range(20):
            way.inject("inside", udp(HERE, SERVER, struct.pack(">I", number) + bytes(900)))
        way.run()
        drops = way.drops()
        assert drops.keys() == {"tx_no_buffer"}
        got = [struct.unpack(">I", decode(packet).payload[:4])[0] for packet, _ in way.arrived(20 - drops["tx_no_buffer"])]
        assert got == sorted(got)
        assert got[0] == 0
    finally:
        checked("tc", "-n", pair.here.name, "qdisc", "delete", "dev", DEVICE, "root")


def test_a_closed_sender_counts_its_packets_as_lost_to_the_link(gateway) -> None:
    way = gateway()
    way.real.close()
    for packet in numbered(3):
        way.inject("inside", packet)
    way.run()
    assert way.drops() == {"link_down": 3}


def test_a_detached_link_drops_by_name(gateway) -> None:
    way = gateway()
    assert way.forwarder.attach(1, None, None) == (way.rings["outside"], way.real)
    way.send_one(numbered(1)[0])
    assert way.drops() == {"link_down": 1}


def test_refused_packets_are_counted_once_among_the_verdicts(gateway) -> None:
    """What the kernel refused is a drop, and no longer a packet forwarded."""
    way = gateway(mtu=9000)
    before = way.forwarder.verdicts()
    for packet in (numbered(1)[0], udp(HERE, SERVER, bytes(3000))):
        way.inject("inside", packet)
    way.run()
    after = way.forwarder.verdicts()
    moved = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert moved == {"forward": 1, "drop": 1}


# --- options -----------------------------------------------------------------------------------------------------


def test_options_that_are_refused_are_given_up(pair, monkeypatch) -> None:
    monkeypatch.setattr(packet_socket, "PACKET_VNET_HDR", 999)
    monkeypatch.setattr(packet_socket, "PACKET_QDISC_BYPASS", 998)
    sender = pair.sender(qdisc_bypass=True)
    assert (sender.vnet_header, sender.qdisc_bypass) == (False, False)
    assert sender.refused == ["PACKET_VNET_HDR", "PACKET_QDISC_BYPASS"]
    sender.close()


def test_a_sender_receives_nothing(pair) -> None:
    sender = pair.sender()
    pair.send(bytes(14) + udp(SERVER, HERE, b"in"))
    time.sleep(0.01)
    with pytest.raises(BlockingIOError):
        sender.socket.recv(2048)
    sender.close()


def test_the_memory_sender_has_room_for_so_many() -> None:
    harness = Harness()
    harness.senders["outside"] = TxBatch(vnet=False, slots=4)
    harness.forwarder.attach(1, harness.rings["outside"], harness.senders["outside"])
    for packet in numbered(6):
        harness.inject("inside", packet)
    assert [out.packet for out in harness.run()] == [translated(packet) for packet in numbered(4)]
    assert harness.drops() == {"tx_no_buffer": 2}
    assert harness.senders["outside"].sent == 4
