"""The sniffer's sockets: what the kernel lets through to them, in which direction, and in which order."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from fastmasq.tools.sniff.listener import Heard, Listener
from tests.support.lab_network import eventually
from tests.support.namespaces import Namespace, join

NEAR, FAR = "192.0.2.1", "192.0.2.2"
WANTED = {
    "control": TCP(sport=40000, dport=1723),
    "control back": TCP(sport=1723, dport=40000),
    "ISAKMP": UDP(sport=500, dport=500) / Raw(bytes(28)),
    "ISAKMP from another port": UDP(sport=1500, dport=500) / Raw(bytes(28)),
    "NAT-T": UDP(sport=4500, dport=4500) / Raw(b"\xff"),
    "ping": ICMP(),
}
UNWANTED = {
    "web": TCP(sport=40000, dport=80),
    "DNS": UDP(sport=40000, dport=53) / Raw(b"x"),
    "a number elsewhere": UDP(sport=40000, dport=53) / Raw(b"\x06\xbb\x01\xf4"),
}
PROTOCOLS = {"GRE": 47, "ESP": 50, "AH": 51}
OURS = 0x4242  # identification of packets that the tests send
BURST = 300  # more than are read at a time
LAST = b"the last one"


@pytest.fixture
def pair(lab_prefix: Callable[[], str]) -> Iterator[tuple[Namespace, Namespace]]:
    """Return two hosts with a link between them; asking for a prefix skips the test without root."""
    near, far = Namespace(), Namespace()
    join(near, "eth0", far, "eth0")
    near.ip(f"addr add {NEAR}/24 dev eth0")
    far.ip(f"addr add {FAR}/24 dev eth0")
    wait_for_link(near, FAR)
    with on_one_processor():
        yield near, far
    near.remove()
    far.remove()


@contextlib.contextmanager
def on_one_processor() -> Iterator[None]:
    """Stay on one processor: what two have sent may arrive in another order, and these tests look at the order."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def wait_for_link(near: Namespace, address: str) -> None:
    """Wait until a new link carries packets; the kernel drops what is sent before."""
    eventually(lambda: ", 1 received" in near.sh(f"ping -c 1 -W 0.2 {address}", check=False), what="the link")


@contextlib.contextmanager
def listening(near: Namespace, links: list[str]) -> Iterator[Listener]:
    """Listen on links of a host, once the kernel stamps packets as they come, which it does not begin at once."""
    with near.entered():
        listener = Listener(links, time.time_ns)
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 50)

    def is_stamped() -> bool:
        raw.sendto(b"stamped?", (FAR, 0))
        before = time.time_ns()
        heard: list[Heard] = []
        while not listener.is_idle():
            heard += [one for one in listener.hear(0) if one.packet[9] == 50]
        return [one.time_ns < before for one in heard] == [True]

    with raw, contextlib.closing(listener):
        eventually(is_stamped, what="a packet's time")
        yield listener


def heard_until_last(listener: Listener) -> list[Heard]:
    """Return what is heard up to both last packets; of what the hosts' kernels answer, nothing."""
    heard: list[Heard] = []
    eventually(
        lambda: heard.extend(listener.hear(0.1)) or sum(LAST in one.packet for one in heard) == 2,
        what="both last packets",
    )
    return [one for one in heard if int.from_bytes(one.packet[4:6], "big") == OURS]


def test_only_vpns_are_heard_both_ways(pair: tuple[Namespace, Namespace]) -> None:
    near, far = pair
    with near.entered():
        out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with far.entered():
        back = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with out, back, listening(near, ["eth0"]) as listener:
        for sender, source, destination in ((out, NEAR, FAR), (back, FAR, NEAR)):
            for payload in (*UNWANTED.values(), *WANTED.values()):
                packet = IP(src=source, dst=destination, id=OURS) / payload
                sender.sendto(bytes(packet), (destination, 0))
            for protocol in (89, *PROTOCOLS.values()):
                packet = IP(src=source, dst=destination, id=OURS, proto=protocol) / Raw(bytes(16))
                sender.sendto(bytes(packet), (destination, 0))
            fragment = IP(src=source, dst=destination, id=OURS, proto=6, frag=100) / Raw(
                b"\x06\xbb\x06\xbb" + bytes(12)
            )
            sender.sendto(bytes(fragment), (destination, 0))
            sender.sendto(bytes(IP(src=source, dst=destination, id=OURS, proto=50) / Raw(LAST)), (destination, 0))
        heard = heard_until_last(listener)
    for sent, source in ((True, NEAR), (False, FAR)):
        own = [one for one in heard if one.sent == sent]
        assert [one.packet[9] for one in own] == [6, 6, 17, 17, 17, 1, 47, 50, 51, 50]
        assert {socket.inet_ntoa(one.packet[12:16]) for one in own} == {source}
    assert {one.link for one in heard} == {"eth0"}
    times = [one.time_ns for one in heard]
    assert times == sorted(times)
    assert times[0] > 0


def test_a_burst_on_two_links_is_heard_in_order_and_whole(pair: tuple[Namespace, Namespace]) -> None:
    near, far = pair
    join(near, "eth1", far, "eth1")
    near.ip("addr add 198.51.100.1/24 dev eth1")
    far.ip("addr add 198.51.100.2/24 dev eth1")
    wait_for_link(near, "198.51.100.2")
    with near.entered():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 50)
    with raw, listening(near, ["eth0", "eth1"]) as listener:
        for number in range(BURST):
            for destination in (FAR, "198.51.100.2"):
                raw.sendto(number.to_bytes(8, "big"), (destination, 0))
        heard: list[Heard] = []
        while not listener.is_idle():
            heard += [one for one in listener.hear(0) if one.packet[9] == 50]
        assert listener.lost() == 0
    numbers = [int.from_bytes(one.packet[20:28], "big") for one in heard]
    assert numbers == [number for number in range(BURST) for _ in range(2)]
    assert [one.link for one in heard] == ["eth0", "eth1"] * BURST


def test_packets_of_a_vlan_are_not_the_links_own(pair: tuple[Namespace, Namespace]) -> None:
    near, far = pair
    with listening(near, ["eth0"]) as listener, far.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        packet = IP(src=FAR, dst=NEAR, id=OURS, proto=50)
        for frame in (
            Ether(dst="ff:ff:ff:ff:ff:ff") / Dot1Q(vlan=7) / packet / Raw(b"tagged, on a VLAN"),
            Ether(dst="ff:ff:ff:ff:ff:ff") / packet / Raw(LAST),
            Ether(dst="ff:ff:ff:ff:ff:ff") / packet / Raw(LAST),
        ):
            raw.send(bytes(frame))
        assert [one.packet[20:] for one in heard_until_last(listener)] == [LAST, LAST]
