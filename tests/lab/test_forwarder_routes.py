"""Routes: several inside networks, routers behind the gateway, and a routing table that changes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import (
    ECHO_PORT,
    GATEWAY_INSIDE,
    INSIDE_ADDRESS,
    ROUTER_ADDRESS,
    Network,
    eventually,
    icmp_error,
    is_told,
    round_trip,
    send_and_compare,
)

FOLLOWED_S = 5.0  # how long it may take until a change of the routing table is followed, also on a busy machine
SERVER = (SERVER_ADDRESS, ECHO_PORT)
OTHER = ("199.0.0.2", 8)
BEHIND, SECOND = "192.168.5.2", "192.168.7.2"


STREAMED = 20_000
STREAM = f"""
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("{SERVER_ADDRESS}", 9))
print("streaming", flush=True)
started = time.perf_counter()
for number in range({STREAMED}):
    s.send(b"x" * 18)
    while number / 20_000 > time.perf_counter() - started:
        pass
"""


@pytest.fixture
def running(net: Network) -> Network:
    """Return the network with fastmasq and an echo server."""
    net.start()
    net.echo_udp()
    net.echo_tcp()
    return net


def add_network_behind(net: Network) -> None:
    """Make inside2 the router of 192.168.5.0/24, where the inside host has a second address, BEHIND."""
    net.wire("inside2", "eth1", "inside", "eth1")
    net.ip("inside2", "address add 192.168.5.1/24 dev eth1")
    net.ip("inside2", "link set eth1 up")
    net.run("inside2", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    net.ip("inside", f"address add {BEHIND}/24 dev eth1")
    net.ip("inside", "link set eth1 up")
    net.ip("inside", f"rule add from {BEHIND} lookup 100")
    net.ip("inside", "route add default via 192.168.5.1 table 100")
    net.ip("gateway", "route add 192.168.5.0/24 via 10.0.0.3")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_network_behind_an_inside_router(net: Network, when: str) -> None:
    net.echo_udp()
    if when == "before":
        add_network_behind(net)
    net.start()
    if when == "after":
        add_network_behind(net)
    client = net.udp("inside", BEHIND)
    eventually(lambda: round_trip(client, SERVER, b"?", 0.2), FOLLOWED_S, "an answer")
    near = net.listen("server", SERVER_ADDRESS)
    with net.on("inside"):
        connection = net.udp("inside", BEHIND)
    assert round_trip(connection, SERVER, b"x" * 1472)
    (session,) = net.sessions(host=BEHIND, protocol="udp")[:1]
    assert session["external"].startswith(EXTERNAL_ADDRESS)
    hops = net.run("inside", "traceroute", "-n", "-q", "1", "-w", "1", "-s", BEHIND, SERVER_ADDRESS).splitlines()[1:]
    assert [line.split()[1] for line in hops] == ["192.168.5.1", GATEWAY_INSIDE, ROUTER_ADDRESS, SERVER_ADDRESS]
    near.close()


def test_two_inside_links(net: Network) -> None:
    net.add_second_inside(SECOND, 24)
    net.start(inside=["eth0", "eth2"])
    net.echo_udp()
    for host in ("inside", "inside2"):
        assert round_trip(net.udp(host), SERVER, b"?"), host
    assert {session["inside"].partition(":")[0] for session in net.sessions()} == {INSIDE_ADDRESS, SECOND}

    before = net.status()["sessions"]["opened_total"]
    near, far = net.pair("inside", "inside2", SECOND)
    assert far.getpeername()[0] == INSIDE_ADDRESS, "between inside networks nothing is translated"
    send_and_compare(near, far, 4 << 20)
    send_and_compare(far, near, 4 << 20)
    assert net.status()["sessions"]["opened_total"] == before
    hops = net.run("inside2", "traceroute", "-n", "-q", "1", "-w", "1", INSIDE_ADDRESS).splitlines()[1:]
    assert [line.split()[1] for line in hops] == ["192.168.7.1", INSIDE_ADDRESS]
    assert net.drops().keys() <= {"ttl_exceeded"}


def test_a_forged_source_from_the_wrong_inside_link_goes_nowhere(net: Network) -> None:
    net.add_second_inside(SECOND, 24)
    net.start(inside=["eth0", "eth2"])
    heard = net.sniff("router", "eth0")
    net.ip("inside2", "address add 10.0.0.9/32 dev eth0")
    net.udp("inside2", "10.0.0.9").sendto(b"forged", SERVER)
    eventually(lambda: net.drops().get("martian_source") == 1, what="a drop")
    assert heard.of(protocol=17) == []


def test_the_default_route_is_replaced(running: Network) -> None:
    net = running
    net.ip("router", "address add 200.200.200.3/24 dev eth0")
    client, connection = net.udp("inside"), net.connect("inside", SERVER)
    assert round_trip(client, SERVER, b"before") and round_trip(connection, None, b"before")
    net.ip("router", f"address delete {ROUTER_ADDRESS}/24 dev eth0")
    net.ip("router", "address add 200.200.200.3/24 dev eth0")
    net.ip("gateway", "route replace default via 200.200.200.3")
    eventually(lambda: round_trip(client, SERVER, b"after", 0.1), FOLLOWED_S, "an answer over the new router")
    assert round_trip(connection, None, b"after")


def test_of_a_multipath_route_the_hop_on_our_link_is_taken(running: Network) -> None:
    net = running
    client = net.udp("inside")
    assert round_trip(client, SERVER, b"before")
    net.ip("gateway", "link add eth2 type veth peer name eth3")
    for name in ("eth2", "eth3"):
        net.ip("gateway", f"link set {name} up")
    net.ip("gateway", "route replace default nexthop dev eth2 nexthop via 200.200.200.1 dev eth1")
    net.ip("gateway", "rule add priority 500 from 10.0.0.0/8 lookup 100")
    for number in range(20):
        assert round_trip(client, SERVER, b"after %d" % number)
    assert net.drops() == {}
    assert net.fastmasq.ask("status")["ip_rules"] == ["500: from 10.0.0.0/8 lookup 100"]
    assert "Not followed" in net.fastmasq.run_command("status")


@pytest.mark.parametrize(
    ("route", "error"),
    [
        ("unreachable", (3, 1, 0, GATEWAY_INSIDE)),
        ("prohibit", (3, 13, 0, GATEWAY_INSIDE)),
        ("blackhole", None),
    ],
)
def test_a_route_that_leads_nowhere(running: Network, route: str, error: tuple | None) -> None:
    net = running
    net.echo_udp("server", "199.0.0.2", OTHER[1])
    client = net.udp("inside")
    assert round_trip(client, OTHER, b"before")
    net.ip("gateway", f"route add {route} 199.0.0.2")
    asking = net.asking("inside", OTHER)
    if error:
        eventually(lambda: is_told(asking, error), FOLLOWED_S, "an answer that there is no way")
    else:
        eventually(lambda: asking.send(b"?") and "no_route" in net.drops(), FOLLOWED_S, "a drop")
        assert icmp_error(asking, 0.2) is None
    drops = net.drops()
    assert drops.pop("no_route")
    assert drops.keys() <= {"martian_source"}, "an answer was under way when the route came"
    assert round_trip(client, SERVER, b"others are not affected")
    net.ip("gateway", f"route delete {route} 199.0.0.2")
    eventually(lambda: round_trip(client, OTHER, b"after", 0.1), FOLLOWED_S, "an answer")


def test_without_a_default_route_inside_hosts_are_told(running: Network) -> None:
    net = running
    connection = net.connect("inside", SERVER)
    assert round_trip(connection, None, b"before")
    net.ip("gateway", "route delete default")
    asking = net.asking("inside", SERVER)
    eventually(lambda: is_told(asking, (3, 0, 0, GATEWAY_INSIDE)), FOLLOWED_S, "an answer that there is no way")
    net.ip("gateway", f"route add default via {ROUTER_ADDRESS}")
    assert round_trip(connection, None, b"after")


def test_changes_elsewhere_lose_no_packet(running: Network) -> None:
    """Routes of others come and go; a steady stream that they do not concern must not notice."""
    net = running
    sink = net.udp("server", SERVER_ADDRESS, 9)
    assert round_trip(net.udp("inside"), SERVER, b"before")
    with net.lab.popen("inside", [sys.executable, "-c", STREAM], stdout=subprocess.PIPE, text=True) as stream:
        assert stream.stdout.readline() == "streaming\n"
        while stream.poll() is None:
            for verb in ("add", "delete"):
                net.ip("gateway", f"route {verb} 172.16.0.0/24 via {ROUTER_ADDRESS}")
    assert stream.returncode == 0
    assert net.drops() == {}
    assert net.status()["verdicts"]["forward"] >= STREAMED
    sink.close()
