"""Links whose packets start at the IP header: a tun interface as outside, and as inside."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import select
import struct
import threading
from collections.abc import Iterator

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support import packets
from tests.support.lab_network import (
    ECHO_PORT,
    GATEWAY_INSIDE,
    ROUTER_ADDRESS,
    Network,
    eventually,
    is_told,
    round_trip,
    send_and_compare,
)

TUNSETIFF, IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0001, 0x1000, 0x4000
TRANSFER_BYTES = 2 << 20
SERVER = (SERVER_ADDRESS, ECHO_PORT)
INSIDE_NETWORK, FAR_INSIDE = "192.168.9", "192.168.9.2"


class Tunnel:
    """Two tun interfaces on two hosts and a thread that carries packets between them, looking at each."""

    def __init__(self, net: Network, ends: tuple[tuple[str, str], tuple[str, str]]) -> None:
        self.faults: list[str] = []
        self.carried = 0
        self._ends = [_open_tun(net, host, name) for host, name in ends]
        self._stop_reading, self._stop_writing = os.pipe()
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def close(self) -> None:
        os.close(self._stop_writing)
        self._thread.join()
        for descriptor in (*self._ends, self._stop_reading):
            os.close(descriptor)

    def _carry(self) -> None:
        left, right = self._ends
        while True:
            ready, _, _ = select.select([left, right, self._stop_reading], [], [])
            if self._stop_reading in ready:
                return
            for source, target in ((left, right), (right, left)):
                if source in ready:
                    packet = os.read(source, 65536)
                    if packet[0] >> 4 == 4:
                        self._check(packet)
                    with contextlib.suppress(OSError):  # that end is not up yet
                        os.write(target, packet)

    def _check(self, packet: bytes) -> None:
        self.carried += 1
        try:
            self.faults += packets.problems(packet)
        except packets.Malformed as error:
            self.faults.append(str(error))


def _open_tun(net: Network, host: str, name: str) -> int:
    with net.on(host):
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


@pytest.fixture
def outside_tunnel(net: Network) -> Iterator[Tunnel]:
    """Put a tunnel in the place of the wire between gateway and router; fastmasq is not started."""
    net.ip("gateway", "link delete eth1")
    tunnel = Tunnel(net, (("gateway", "tun0"), ("router", "tun0")))
    for host, address in (("router", ROUTER_ADDRESS), ("gateway", EXTERNAL_ADDRESS)):
        net.ip(host, f"address add {address}/24 dev tun0")
        net.ip(host, "link set tun0 up")
    net.ip("gateway", "route add default dev tun0")
    yield tunnel
    tunnel.close()


@pytest.mark.parametrize("vnet_header", ["auto", "off"], ids=["vnet", "no-vnet"])
@pytest.mark.parametrize("ring", ["v2", "v3", "socket"])
def test_a_tun_as_outside(net: Network, outside_tunnel: Tunnel, ring: str, vnet_header: str) -> None:
    net.start(f'[rings]\nmode = "{ring}"\nvnet_header = "{vnet_header}"', outside="tun0")
    net.echo_udp()
    assert net.answers("inside", SERVER_ADDRESS)
    client = net.udp("inside")
    for size in (0, 1, 100, 1472):
        assert round_trip(client, SERVER, b"x" * size), size
    near, far = net.pair()
    assert far.getpeername()[0] == EXTERNAL_ADDRESS
    send_and_compare(near, far, TRANSFER_BYTES)
    send_and_compare(far, near, TRANSFER_BYTES)
    hops = net.run("inside", "traceroute", "-n", "-q", "1", "-w", "1", SERVER_ADDRESS).splitlines()[1:]
    assert [line.split()[1] for line in hops] == [GATEWAY_INSIDE, ROUTER_ADDRESS, SERVER_ADDRESS]
    assert round_trip(net.udp("gateway"), SERVER, b"the gateway's own")
    assert outside_tunnel.carried > 100
    assert outside_tunnel.faults == []
    assert net.drops().keys() <= {"ttl_exceeded"}


def test_the_kernel_carries_to_and_from_a_tun(net: Network, outside_tunnel: Tunnel) -> None:
    net.start('[offload]\nmode = "auto"\n', outside="tun0")
    near, far = net.pair()
    for source, target in ((near, far), (far, near)):
        send_and_compare(source, target, 4 * TRANSFER_BYTES)
    carried = net.fastmasq.ask("status")["offload"]
    assert carried["packets"] > 0.95 * carried["forwarded"]
    assert outside_tunnel.faults == []


def test_silence_for_ports_that_are_ours_on_a_tun(net: Network, outside_tunnel: Tunnel) -> None:
    net.start(outside="tun0")
    heard = net.sniff("router", "tun0")
    knocking = net.udp("server", SERVER_ADDRESS)
    knocking.sendto(b"?", (EXTERNAL_ADDRESS, 5000))
    with pytest.raises(TimeoutError):
        net.connect("server", (EXTERNAL_ADDRESS, 5000), timeout=0.1)
    with pytest.raises(ConnectionRefusedError):
        net.connect("server", (EXTERNAL_ADDRESS, 20_500), timeout=2)
    assert {each.source_port for each in heard.of(sent=False)} == {20_500}


def test_a_small_tun(net: Network, outside_tunnel: Tunnel) -> None:
    net.ip("gateway", "link set tun0 mtu 1400")
    net.start('[masquerade]\nmss = "off"', outside="tun0")
    near, far = net.pair()
    send_and_compare(near, far, TRANSFER_BYTES)
    assert "mtu 1400" in net.run("inside", "ip", "route", "get", SERVER_ADDRESS)
    assert outside_tunnel.faults == []


def test_a_tun_as_inside(net: Network) -> None:
    """As for people who come in by a VPN: they are masqueraded, and reach the other inside network as they are."""
    net.ip("inside2", "link delete eth0")
    tunnel = net.keep(Tunnel(net, (("gateway", "tun0"), ("inside2", "tun0"))))
    for host, number in (("gateway", 1), ("inside2", 2)):
        net.ip(host, f"address add {INSIDE_NETWORK}.{number}/24 dev tun0")
        net.ip(host, "link set tun0 up")
    net.ip("inside2", "route add default dev tun0")
    net.start(inside=["eth0", "tun0"])
    net.echo_udp()
    assert net.answers("inside2", SERVER_ADDRESS)
    assert round_trip(net.udp("inside2"), SERVER, b"x" * 1472)
    near, far = net.pair("inside2")
    assert far.getpeername()[0] == EXTERNAL_ADDRESS
    send_and_compare(near, far, TRANSFER_BYTES)
    send_and_compare(far, near, TRANSFER_BYTES)
    _, across = net.pair("inside", "inside2", FAR_INSIDE)
    assert across.getpeername()[0] == "10.0.0.2"
    asking = net.asking("inside2", ("199.0.0.3", 9000))
    net.ip("gateway", "route add unreachable 199.0.0.3")

    no_way = (3, 1, 0, f"{INSIDE_NETWORK}.1")
    eventually(lambda: is_told(asking, no_way), what="the gateway's word that there is no way")
    assert tunnel.faults == []


def test_a_ring_that_a_packet_has_stopped_is_opened_anew(net: Network) -> None:
    """By UDP fragments sent as one (UFO), which the kernel cannot describe in the virtio header."""
    with net.on("gateway"):
        wire = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(wire, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    try:
        net.ip("gateway", "address add 10.200.0.1/24 dev tun0")
        net.ip("gateway", "link set tun0 up")
        net.start(inside=["eth0", "tun0"])
        net.echo_udp()
        assert net.link("tun0")["ring"] == "v2"

        numbers = itertools.count()

        def is_answered() -> bool:
            """Whether a question is answered soon; an answer to one of before is none."""
            question = b"%d?" % next(numbers)
            os.write(wire, bytes(10) + packets.udp("10.200.0.2:4000", f"{SERVER_ADDRESS}:7", question))
            while select.select([wire], [], [], 0.2)[0]:
                if os.read(wire, 100)[10 + 28 :] == question:
                    return True
            return False

        eventually(is_answered, what="an answer before it")
        large = struct.pack("=BBHHHH", 1, 3, 28, 1480, 20, 6)  # VIRTIO_NET_HDR_GSO_UDP
        large += packets.udp("10.200.0.2:4000", f"{SERVER_ADDRESS}:7", bytes(4000))
        os.write(wire, large)
        assert not is_answered()
        eventually(is_answered, what="an answer after it")
        link = net.link("tun0")
        assert (link["ring"], link["vnet_header"]) == ("socket", True)
        os.write(wire, large)
        eventually(is_answered, what="an answer after another")
        assert net.link("tun0") | {"ring": "socket", "vnet_header": True} == net.link("tun0")
    finally:
        os.close(wire)
