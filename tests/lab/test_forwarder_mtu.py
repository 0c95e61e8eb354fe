"""Links with smaller packets: senders learn the size, for each segment of a large send; others are cut in pieces."""

from __future__ import annotations

import contextlib
import re
import socket

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import (
    GATEWAY_INSIDE,
    INSIDE_ADDRESS,
    ROUTER_ADDRESS,
    Network,
    Overheard,
    eventually,
    icmp_error,
    round_trip,
    send_and_compare,
)

TRANSFER_BYTES = 4 << 20
IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IP_PMTUDISC_DO = 10, 0, 2
DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000


@pytest.fixture(params=[True, False], ids=["offloads", "no-offloads"])
def offloads(request: pytest.FixtureRequest, net: Network) -> bool:
    net.lab.offloads(request.param)
    return request.param


@pytest.fixture(params=["auto", "off"], ids=["vnet", "no-vnet"])
def running(request: pytest.FixtureRequest, net: Network, offloads: bool) -> Network:
    """Return the network with fastmasq, which lowers no MSS; the test still has to make a link smaller."""
    net.start(f'[rings]\nvnet_header = "{request.param}"\n[masquerade]\nmss = "off"')
    return net


def known_mtu(net: Network, host: str, destination: str) -> int | None:
    """Return the path MTU that a host has learnt, None if none."""
    found = re.search(r"\bmtu (\d+)", net.run(host, "ip", "route", "get", destination))
    return int(found[1]) if found else None


def fragment_field(each: Overheard) -> int:
    return int.from_bytes(each.packet[6:8], "big")


def test_a_small_link_far_away(running: Network) -> None:
    """The router beyond says so; its error is translated back to the inside host, which then sends less at a time."""
    net = running
    net.ip("router", "link set eth1 mtu 1280")
    near, far = net.pair()
    send_and_compare(near, far, TRANSFER_BYTES)
    asking = net.asking("inside", (SERVER_ADDRESS, 9000))
    asking.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    with contextlib.suppress(OSError):  # the transfer has told it already
        asking.send(b"x" * 1400)
        assert icmp_error(asking) == (3, 4, 1280, ROUTER_ADDRESS)
    with pytest.raises(OSError, match="too long"):
        asking.send(b"x" * 1253)
    assert known_mtu(net, "inside", SERVER_ADDRESS) == 1280


def test_a_small_outside_link(running: Network) -> None:
    """The gateway itself says so, also about a large send that the inside host left to its interface to cut."""
    net = running
    net.ip("gateway", "link set eth1 mtu 1400")
    net.ip("router", "link set eth0 mtu 1400")
    eventually(lambda: net.link("eth1")["mtu"] == 1400, what="the new MTU")
    near, far = net.pair()
    send_and_compare(near, far, TRANSFER_BYTES)
    if net.link("eth0")["vnet_header"]:  # else we have cut the large sends ourselves, and to fit
        assert known_mtu(net, "inside", SERVER_ADDRESS) == 1400
    send_and_compare(far, near, TRANSFER_BYTES)
    assert net.drops().keys() <= {"fragmentation_needed"}


def test_rfc6691_no_end_needs_to_hear_that_a_packet_was_too_long(net: Network) -> None:
    """Nobody is told, and all that is sent fits: the SYNs have said what does."""
    net.start()
    net.ip("gateway", "link set eth1 mtu 1400")
    net.ip("router", "link set eth0 mtu 1400")
    eventually(lambda: net.link("eth1")["mtu"] == 1400, what="the new MTU")
    near, far = net.pair()
    assert [end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for end in (near, far)] == [1348, 1348]
    send_and_compare(near, far, TRANSFER_BYTES)
    send_and_compare(far, near, TRANSFER_BYTES)
    assert known_mtu(net, "inside", SERVER_ADDRESS) is None
    assert net.drops() == {}


def test_a_small_inside_link(running: Network) -> None:
    net = running
    for host, interface in (("gateway", "eth0"), ("inside", "eth0")):
        net.ip(host, f"link set {interface} mtu 1300")
    eventually(lambda: net.link("eth0")["mtu"] == 1300, what="the new MTU")
    listener = net.listen("server", SERVER_ADDRESS)
    near = net.connect("inside", listener.getsockname())
    far = net.keep(listener.accept()[0])
    send_and_compare(far, near, TRANSFER_BYTES)
    send_and_compare(near, far, TRANSFER_BYTES)
    asking = net.asking("server", (EXTERNAL_ADDRESS, 9000))
    client = net.udp("inside", INSIDE_ADDRESS, 9000)
    client.sendto(b"?", (SERVER_ADDRESS, asking.getsockname()[1]))
    assert asking.recv(100) == b"?"
    asking.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    asking.send(b"x" * 1400)
    error = icmp_error(asking)
    assert error is not None and error == (3, 4, 1300, EXTERNAL_ADDRESS)


def test_a_datagram_that_may_be_cut_is_cut(running: Network) -> None:
    net = running
    net.ip("gateway", "link set eth1 mtu 1400")
    eventually(lambda: net.link("eth1")["mtu"] == 1400, what="the new MTU")
    server, client = net.udp("server", SERVER_ADDRESS, 9000), net.udp("inside")
    client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
    heard = net.sniff("router", "eth0")
    payload = bytes(number % 251 for number in range(1472))
    client.sendto(payload, (SERVER_ADDRESS, 9000))
    received, sender = server.recvfrom(65536)
    assert received == payload and sender[0] == EXTERNAL_ADDRESS
    pieces = heard.of(sent=False, source=EXTERNAL_ADDRESS)
    assert [each.length for each in pieces] == [20 + 1376, 20 + 104]
    assert [fragment_field(each) for each in pieces] == [MORE_FRAGMENTS, 1376 // 8]
    assert net.drops() == {}


def test_a_datagram_that_must_not_be_cut_is_refused(running: Network) -> None:
    net = running
    net.ip("gateway", "link set eth1 mtu 1400")
    eventually(lambda: net.link("eth1")["mtu"] == 1400, what="the new MTU")
    asking = net.asking("inside", (SERVER_ADDRESS, 9000))
    asking.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    asking.send(b"x" * 1472)
    assert icmp_error(asking) == (3, 4, 1400, GATEWAY_INSIDE)
    with pytest.raises(OSError, match="too long"):
        asking.send(b"x" * 1373)
    asking.send(b"x" * 1372)
    assert net.sessions(protocol="udp")[0]["packets_out"] == 1
    assert net.drops() == {"fragmentation_needed": 1}


def test_a_route_with_an_mtu_of_its_own(running: Network) -> None:
    net = running
    net.ip("gateway", f"route add 199.0.0.2 via {ROUTER_ADDRESS} mtu 1200")
    net.ip("router", "address add 200.200.200.3/24 dev eth0")
    asking = net.asking("inside", ("199.0.0.2", 9000))
    asking.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
    asking.send(b"x" * 1400)
    assert icmp_error(asking) == (3, 4, 1200, GATEWAY_INSIDE)
    server, client = net.udp("server", SERVER_ADDRESS, 9000), net.udp("inside")
    client.sendto(b"x" * 1472, (SERVER_ADDRESS, 9000))
    assert len(server.recv(65536)) == 1472, "other destinations are not affected"


def test_jumbo_frames_on_every_link(net: Network) -> None:
    """Larger than a ring's slot by default: sized when the link is opened, and when it grows later, read as copies."""
    net.start()
    net.echo_udp()
    for host, interface in (
        ("inside", "eth0"), ("lan", "inside"), ("lan", "gateway"), ("lan", "bridge"), ("gateway", "eth0"),
        ("gateway", "eth1"), ("router", "eth0"), ("router", "eth1"), ("server", "eth0"),
    ):  # fmt: skip
        net.ip(host, f"link set {interface} mtu 9000")
    eventually(lambda: {link["mtu"] for link in net.status()["links"]} == {9000}, what="the new MTU")
    client = net.udp("inside")
    for size in (1472, 1473, 4000, 8972):
        assert round_trip(client, (SERVER_ADDRESS, 7), b"x" * size), size
    near, far = net.pair()
    send_and_compare(near, far, TRANSFER_BYTES)
    send_and_compare(far, near, TRANSFER_BYTES)
    assert net.drops() == {}
