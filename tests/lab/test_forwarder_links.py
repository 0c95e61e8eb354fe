"""Links that go down, come back, are renamed, made anew or are not there yet: fastmasq follows, sessions stay."""

from __future__ import annotations

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
    round_trip,
)

BACK_S = 5.0  # how long it may take until packets flow again, also on a busy machine
SERVER = (SERVER_ADDRESS, ECHO_PORT)
VIRTUAL = "200.200.200.250"

FLOOD = f"""
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    s.sendto(b"x" * 100, ("{SERVER_ADDRESS}", 9))
"""


@pytest.fixture
def running(net: Network) -> Network:
    """Return the network with fastmasq and an echo server."""
    net.start()
    net.echo_udp()
    net.echo_tcp()
    return net


def wait_for_state(net: Network, link: str, state: str) -> None:
    eventually(lambda: net.link(link)["state"] == state, BACK_S, f"{link} {state}")


def make_outside_link(net: Network) -> None:
    """Make the gateway's eth1 and its other end, with new MAC addresses, and configure them as the lab does."""
    net.wire("gateway", "eth1", "router", "eth0")
    net.ip("router", f"address add {ROUTER_ADDRESS}/24 dev eth0")
    net.ip("router", "link set eth0 up")
    net.ip("gateway", f"address add {EXTERNAL_ADDRESS}/24 dev eth1")
    net.ip("gateway", "link set eth1 up")
    net.ip("gateway", f"route add default via {ROUTER_ADDRESS}")


@pytest.mark.parametrize("link", ["eth0", "eth1"])
def test_a_session_survives_its_link_down_and_up(running: Network, link: str) -> None:
    net = running
    connection = net.connect("inside", SERVER)
    assert round_trip(connection, None, b"before")
    net.ip("gateway", f"link set {link} down")
    wait_for_state(net, link, "down")
    net.ip("gateway", f"link set {link} up")
    if link == "eth1":  # the kernel has forgotten the route
        net.ip("gateway", f"route add default via {ROUTER_ADDRESS}")
    assert round_trip(connection, None, b"after", BACK_S)
    wait_for_state(net, link, "up")
    assert net.answers("inside", SERVER_ADDRESS)


@pytest.mark.parametrize(("link", "peer"), [("eth0", ("lan", "gateway")), ("eth1", ("router", "eth0"))])
def test_a_session_survives_a_pulled_cable(running: Network, link: str, peer: tuple[str, str]) -> None:
    net = running
    host, interface = peer
    connection = net.connect("inside", SERVER)
    assert round_trip(connection, None, b"before")
    net.ip(host, f"link set {interface} down")
    wait_for_state(net, link, "down")
    net.ip(host, f"link set {interface} up")
    assert round_trip(connection, None, b"after", BACK_S)


def test_packets_while_the_outside_is_down_are_counted_and_harmless(running: Network) -> None:
    net = running
    client = net.udp("inside")
    assert round_trip(client, SERVER, b"before")
    net.ip("router", "link set eth0 down")
    wait_for_state(net, "eth1", "down")
    for _ in range(50):
        client.sendto(b"nowhere", SERVER)
    eventually(lambda: sum(net.drops().values()), what="a drop")
    net.ip("router", "link set eth0 up")
    assert eventually(lambda: round_trip(client, SERVER, b"after", 0.1), BACK_S) < BACK_S


def test_an_outside_link_made_anew_is_used_at_once(running: Network) -> None:
    net = running
    connection, client = net.connect("inside", SERVER), net.udp("inside")
    assert round_trip(connection, None, b"before") and round_trip(client, SERVER, b"before")
    ifindex = net.link("eth1")["ifindex"]
    net.ip("gateway", "link delete eth1")
    wait_for_state(net, "eth1", "missing")
    client.sendto(b"nowhere", SERVER)
    make_outside_link(net)
    eventually(lambda: round_trip(client, SERVER, b"after", 0.1), BACK_S, "forwarding")
    assert round_trip(connection, None, b"after", BACK_S)
    assert net.link("eth1")["ifindex"] not in (0, ifindex)
    assert net.status()["sessions"]["opened_total"] == 2, "the sessions of before go on"


def test_an_outside_link_deleted_and_made_in_the_midst_of_traffic(running: Network) -> None:
    """Under one name, but it is another interface: the old socket hears nothing, and nothing can be sent on it."""
    net = running
    client = net.udp("inside")
    assert round_trip(client, SERVER, b"before")
    with net.lab.popen("inside", [sys.executable, "-c", FLOOD]) as flood:
        for _ in range(5):
            net.ip("gateway", "link delete eth1")
            make_outside_link(net)
            eventually(lambda: round_trip(client, SERVER, b"after", 0.1), BACK_S, "forwarding")
        flood.kill()
    assert net.fastmasq.is_running()


def test_an_inside_link_made_anew_is_used_at_once(running: Network) -> None:
    net = running
    connection = net.connect("inside", SERVER)
    assert round_trip(connection, None, b"before")
    net.ip("gateway", "link delete eth0")
    wait_for_state(net, "eth0", "missing")
    assert net.answers("gateway", SERVER_ADDRESS)
    net.wire("gateway", "eth0", "lan", "gateway")
    net.ip("lan", "link set gateway master bridge up")
    net.ip("gateway", f"address add {GATEWAY_INSIDE}/8 dev eth0")
    net.ip("gateway", "link set eth0 up")
    client = net.udp("inside")

    def is_back() -> bool:
        net.announce("gateway", "eth0", GATEWAY_INSIDE)
        return round_trip(client, SERVER, b"after", 0.05)

    eventually(is_back, BACK_S, "forwarding")
    assert round_trip(connection, None, b"after", BACK_S)


def test_a_link_renamed_away_and_back(running: Network) -> None:
    net = running
    connection = net.connect("inside", SERVER)
    assert round_trip(connection, None, b"before")
    net.ip("gateway", "link set eth1 name wan0")
    wait_for_state(net, "eth1", "missing")
    assert not net.answers("inside", SERVER_ADDRESS, 0.2)
    net.ip("gateway", "link set wan0 name eth1")
    wait_for_state(net, "eth1", "up")
    assert round_trip(connection, None, b"after", BACK_S)


def test_another_link_that_takes_the_name_is_used(running: Network) -> None:
    """The outside link is whatever bears its name: the old one, renamed away, is left alone."""
    net = running
    client = net.udp("inside")
    assert round_trip(client, SERVER, b"before")
    net.ip("gateway", "link set eth1 name old0")
    net.ip("gateway", f"address delete {EXTERNAL_ADDRESS}/24 dev old0")
    net.ip("router", f"address delete {ROUTER_ADDRESS}/24 dev eth0")
    net.ip("router", "link set eth0 name old0")
    make_outside_link(net)
    eventually(lambda: round_trip(client, SERVER, b"after", 0.1), BACK_S, "forwarding")


def test_an_outside_link_that_appears_after_the_start(net: Network) -> None:
    net.echo_udp()
    net.ip("gateway", "link delete eth1")
    said = net.start()
    assert "no address yet" in said
    assert net.link("eth1")["state"] == "missing"
    assert net.status()["external"]["address"] is None
    client = net.asking("inside", SERVER)
    client.send(b"too early")
    assert icmp_error(client) == (3, 0, 0, GATEWAY_INSIDE)
    client = net.udp("inside")
    make_outside_link(net)
    eventually(lambda: round_trip(client, SERVER, b"now", 0.1), BACK_S, "forwarding")
    assert net.status()["external"]["address"] == EXTERNAL_ADDRESS
    assert not net.answers("server", "10.0.0.2", 0.2)


def test_a_next_hop_that_changes_its_mac_address(running: Network) -> None:
    net = running
    client, connection = net.udp("inside"), net.connect("inside", SERVER)
    assert round_trip(client, SERVER, b"before") and round_trip(connection, None, b"before")
    net.ip("router", "link set eth0 address 02:00:00:00:00:99")

    def is_back() -> bool:
        net.announce("router", "eth0", ROUTER_ADDRESS)  # again and again: the kernel ignores one that comes too soon
        return round_trip(client, SERVER, b"after", 0.05)

    eventually(is_back, BACK_S, "forwarding to the new MAC address")
    assert round_trip(connection, None, b"after", BACK_S)


def test_an_inside_host_that_changes_its_mac_address(running: Network) -> None:
    net = running
    client = net.udp("inside")
    assert round_trip(client, SERVER, b"before")
    net.ip("inside", "link set eth0 address 02:00:00:00:00:77")

    def is_back() -> bool:
        net.announce("inside", "eth0", "10.0.0.2")
        return round_trip(client, SERVER, b"after", 0.05)

    eventually(is_back, BACK_S, "forwarding to the new MAC address")


def test_a_gateway_that_changes_its_mac_address(running: Network) -> None:
    net = running
    client = net.udp("inside")
    assert round_trip(client, SERVER, b"before")
    heard = net.sniff("router", "eth0")
    net.ip("gateway", "link set eth1 address 02:00:00:00:00:55")

    def is_back() -> bool:
        net.announce("gateway", "eth1", EXTERNAL_ADDRESS)
        return round_trip(client, SERVER, b"after", 0.05)

    eventually(is_back, BACK_S, "answers to the new MAC address")
    assert heard.of(sent=False, source=EXTERNAL_ADDRESS)


def test_what_comes_for_a_macvlan_over_a_link_is_forwarded_and_kept_from_the_host(running: Network) -> None:
    """As VRRP has them: a virtual router's link address inside, and one outside whose address has a forward."""
    net = running
    net.echo_tcp("inside")
    heard = {peer: net.sniff(peer, "eth0") for peer in ("inside", "router")}
    macvlans = (
        ("vrrp.51", "eth0", "00:00:5e:00:01:33", "10.0.0.254"),
        ("vrrp.52", "eth1", "00:00:5e:00:01:34", VIRTUAL),
    )
    for name, below, mac, address in macvlans:
        net.ip("gateway", f"link add link {below} name {name} address {mac} type macvlan mode private")
        net.ip("gateway", f"address add {address}/32 dev {name}")
        net.ip("gateway", f"link set {name} up")
    net.ip("inside", f"neighbour replace {GATEWAY_INSIDE} lladdr {macvlans[0][2]} dev eth0 nud permanent")
    net.ip("router", f"neighbour replace {VIRTUAL} lladdr {macvlans[1][2]} dev eth0 nud permanent")
    net.fastmasq.run_command("forward", "add", "tcp", f"{VIRTUAL}:8080", f"{INSIDE_ADDRESS}:{ECHO_PORT}")
    out = net.connect("inside", SERVER)
    eventually(lambda: round_trip(out, None, b"out", 0.2), BACK_S, "a way out")
    for asking in (out, net.connect("server", (VIRTUAL, 8080)), net.connect("inside", (VIRTUAL, 8080))):
        assert round_trip(asking, None, b"there and back")
    assert not net.drops().get("not_for_us")
    assert not [each for peer in heard.values() for each in peer.of(protocol=6, sent=False) if each.tcp_flags & 4]
    net.ip("gateway", "link delete vrrp.51")
    eventually(lambda: out.send(b"nobody's") and "not_for_us" in net.drops(), BACK_S, "frames that are nobody's")


def test_a_next_hop_that_does_not_answer_is_reported_to_the_sender(running: Network) -> None:
    net = running
    net.ip("gateway", "route add 199.0.0.3 via 200.200.200.77")
    asking = net.asking("inside", ("199.0.0.3", ECHO_PORT))
    asking.send(b"?")
    assert icmp_error(asking) == (3, 1, 0, GATEWAY_INSIDE)
    assert net.drops().keys() <= {"neighbour_failed", "neighbour_unresolved"}
