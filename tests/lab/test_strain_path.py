"""Under strain: one host, one mistake in a table of the kernel, one flood must not stop the others."""

from __future__ import annotations

import socket
import struct

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support import packets
from tests.support.lab_network import ECHO_PORT, INSIDE_ADDRESS, Network, eventually, round_trip

SERVER = (SERVER_ADDRESS, ECHO_PORT)
IP_MTU_DISCOVER, IP_PMTUDISC_DONT = 10, 0
SECOND, ELSEWHERE = "172.20.0.2", "199.0.0.3"
MOST_NEIGHBOURS = 1024  # of the kernel, gc_thresh3


def test_a_route_with_an_impossible_mtu(net: Network) -> None:
    """One packet without DF to it had the worker spin for ever; it leaves in pieces that every link takes."""
    net.start()
    net.echo_udp()
    net.ip("gateway", f"route add {ELSEWHERE} via 200.200.200.1 mtu 24")
    heard = net.sniff("router", "eth0")
    asking = net.udp("inside")
    asking.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)

    def pieces() -> list:
        asking.sendto(b"x" * 1000, (ELSEWHERE, 9))
        return [each for each in heard.of(destination=ELSEWHERE) if each.length <= 68]

    eventually(lambda: len(pieces()) >= 21, what="21 pieces")
    assert round_trip(net.udp("inside"), SERVER, b"others")


def test_a_guest_does_not_send_by_a_session_of_the_lan(net: Network) -> None:
    net.add_second_inside(SECOND, 16)
    net.start(inside=["eth0", "eth2"])
    net.echo_udp()
    near = net.udp("inside", port=4000)
    assert round_trip(near, SERVER, b"before")
    net.ip("inside2", f"address add {INSIDE_ADDRESS}/32 dev eth0")
    heard = net.sniff("router", "eth0")
    net.udp("inside2", INSIDE_ADDRESS, 4000).sendto(b"forged", SERVER)
    eventually(lambda: net.drops().get("martian_source") == 1, what="a drop")
    assert not [each for each in heard.of(protocol=17) if each.payload.endswith(b"forged")]
    assert round_trip(near, SERVER, b"after")


def test_a_scan_of_the_other_link_costs_nobody_a_next_hop(net: Network) -> None:
    """5000 small datagrams a second to a /16: known hosts of both links go on, and the kernel's table keeps room."""
    net.add_second_inside(SECOND, 16)
    net.start(inside=["eth0", "eth2"])
    net.echo_udp()
    near, other = net.udp("inside"), net.udp("inside2")
    assert round_trip(near, SERVER, b"known")
    assert round_trip(other, SERVER, b"known")
    scan = net.udp("inside", port=4000)
    for turn in range(40):
        for number in range(250):
            scan.sendto(b"?", (f"172.20.{1 + turn}.{number + 1}", 9))
        assert round_trip(other, SERVER, b"other link %d" % turn), turn
        assert round_trip(near, SERVER, b"same host %d" % turn), turn
    drops = net.drops()
    assert drops["neighbour_limit"] > 9000
    assert drops.keys() <= {"neighbour_limit", "neighbour_unresolved", "neighbour_failed"}
    known = net.ip("gateway", "neighbour show").splitlines()
    assert len(known) < MOST_NEIGHBOURS // 4


def test_who_takes_all_ports_leaves_as_many(net: Network) -> None:
    """Three addresses of one host; a host of another network still gets each port that it asks for."""
    net.add_second_inside(SECOND, 16)
    net.start(
        '[masquerade]\nports = "61000-62999"\n[limits]\nports_per_host = 1999\nnew_sessions_per_host = "0/s"',
        inside=["eth0", "eth2"],
    )
    net.echo_udp()
    raw = net.raw("inside", socket.IPPROTO_RAW)
    for address in (INSIDE_ADDRESS, "10.0.0.77", "10.0.0.78"):
        for port in range(2000, 3500):
            raw.sendto(packets.udp((address, port), SERVER, b"mine"), (SERVER_ADDRESS, 0))
    eventually(
        lambda: net.drops().get("network_limit", 0) + net.drops().get("host_port_limit", 0) > 2000, what="refusals"
    )
    assert len(net.sessions(protocol="udp")) <= 1001
    for number in range(50):
        assert round_trip(net.udp("inside2"), SERVER, b"ordinary %d" % number)


def isakmp(cookie: int) -> bytes:
    return struct.pack(">QQBBBBII", cookie, 0, 1, 0x10, 2, 0, 0, 28)


def test_forged_esp_from_outside_does_not_slow_key_exchanges(net: Network) -> None:
    """Packets of nobody's SA, each from another network, come between every question and its answer."""
    net.start()
    net.echo_udp(port=500)
    near = net.udp("inside", port=500)
    raw = net.raw("router", socket.IPPROTO_RAW)
    forged = [
        packets.ipv4(
            f"{20 + number}.{number}.7.9", EXTERNAL_ADDRESS, 50, struct.pack(">II", 0x1000 + number, 1) + bytes(24)
        )
        for number in range(100)
    ]
    assert round_trip(near, (SERVER_ADDRESS, 500), isakmp(1))
    answered = 0
    for number in range(2, 102):
        for packet in forged:
            raw.sendto(packet, (EXTERNAL_ADDRESS, 0))
        answered += round_trip(near, (SERVER_ADDRESS, 500), isakmp(number), 0.5)
    assert answered >= 95
    assert net.drops()["punts_full"] > 1000
