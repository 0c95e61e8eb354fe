"""The outside address changes or is missing for a while: old sessions end quickly, new ones are on the new address."""

from __future__ import annotations

import errno
import socket
import time
from pathlib import Path

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.lab_network import (
    ECHO_PORT,
    GATEWAY_INSIDE,
    ROUTER_ADDRESS,
    Network,
    eventually,
    icmp_error,
    round_trip,
)

NEW_ADDRESS = "200.200.200.77"
FOLLOWED_S = 5.0  # how long it may take until a change of the address is followed, also on a busy machine
SERVER = (SERVER_ADDRESS, ECHO_PORT)


def change_address(net: Network, new: str = NEW_ADDRESS) -> None:
    """Give the outside link another address, as a redial does: for a moment there is none, and no default route."""
    remove_address(net)
    add_address(net, new)


def remove_address(net: Network) -> None:
    net.ip("gateway", "address flush dev eth1")


def add_address(net: Network, new: str) -> None:
    net.ip("gateway", f"address add {new}/24 dev eth1")
    net.ip("gateway", f"route add default via {ROUTER_ADDRESS}")


@pytest.fixture
def running(net: Network) -> Network:
    """Return the network with fastmasq and echo servers."""
    net.start()
    net.echo_udp()
    net.echo_tcp()
    return net


def test_new_sessions_are_on_the_new_address_at_once(running: Network) -> None:
    net = running
    assert net.answers("inside", SERVER_ADDRESS)
    listener = net.listen("server", SERVER_ADDRESS)
    change_address(net)

    def connects() -> bool:
        try:
            near = net.connect("inside", listener.getsockname(), timeout=FOLLOWED_S)
        except OSError:  # told that there is no address at the moment
            return False
        far, (address, _) = listener.accept()
        near.sendall(b"hello")
        return net.keep(far).recv(100) == b"hello" and address == NEW_ADDRESS

    heard = net.sniff("router", "eth0")
    eventually(connects, FOLLOWED_S, "a connection from the new address")
    told = heard.of(sent=False, source=NEW_ADDRESS)
    assert [each for each in told if each.protocol == socket.IPPROTO_TCP and each.tcp_flags & 4] == [], "a reset"
    assert net.answers("inside", SERVER_ADDRESS)
    assert net.status()["external"]["address"] == NEW_ADDRESS


def test_udp_goes_on_with_its_next_packet(running: Network) -> None:
    net = running
    server, client = net.udp("server", SERVER_ADDRESS, 9000), net.udp("inside")
    client.sendto(b"one", (SERVER_ADDRESS, 9000))
    assert server.recvfrom(100)[1][0] == EXTERNAL_ADDRESS
    change_address(net)

    def is_on_new_address() -> bool:
        client.sendto(b"two", (SERVER_ADDRESS, 9000))
        server.settimeout(0.05)
        try:
            return server.recvfrom(100)[1][0] == NEW_ADDRESS
        except TimeoutError:
            return False

    eventually(is_on_new_address, FOLLOWED_S, "a datagram from the new address")
    assert round_trip(client, SERVER, b"and back")
    assert {session["external"].partition(":")[0] for session in net.sessions()} == {NEW_ADDRESS}


@pytest.mark.parametrize("waits_for", ["nothing", "data"])
def test_an_established_connection_is_reset_quickly(running: Network, waits_for: str) -> None:
    """Its program learns at once that the connection is lost; without the reset it would hang for many minutes."""
    net = running
    connections = [net.connect("inside", SERVER) for _ in range(20)]
    for connection in connections:
        assert round_trip(connection, None, b"before")
    if waits_for == "data":
        for connection in connections:
            connection.sendall(b"under way")
            connection.recv(100)
    change_address(net)
    started = time.monotonic()
    for connection in connections:
        with pytest.raises(ConnectionResetError):
            connection.recv(100)
    assert time.monotonic() - started < FOLLOWED_S
    eventually(lambda: net.sessions(protocol="tcp", state="established") == [], what="no old session")
    assert "20 sessions of 200.200.200.200 closed, 20 inside ends reset" in net.fastmasq.errors()


def test_a_connection_with_much_under_way_is_reset(running: Network) -> None:
    """The inside end's window has moved on since the last packet that fastmasq saw; it must believe the reset."""
    net = running
    near, far = net.pair()
    near.setblocking(False)
    sent = 0
    try:
        while sent < 64 << 20:
            sent += near.send(b"x" * 65536)
    except BlockingIOError:
        pass
    change_address(net)
    near.settimeout(FOLLOWED_S)
    with pytest.raises(OSError, match="reset") as caught:
        near.recv(100)
    assert caught.value.errno == errno.ECONNRESET
    far.close()


def test_the_same_address_coming_back_keeps_connections(running: Network) -> None:
    net = running
    connection, client = net.connect("inside", SERVER), net.udp("inside")
    assert round_trip(connection, None, b"before") and round_trip(client, SERVER, b"before")
    sessions = {(each["inside"], each["external"]) for each in net.sessions()}
    remove_address(net)
    eventually(lambda: net.status()["external"]["address"] is None, FOLLOWED_S, "no address")
    asking = net.asking("inside", SERVER)
    asking.send(b"?")
    assert icmp_error(asking) == (3, 0, 0, GATEWAY_INSIDE)
    add_address(net, EXTERNAL_ADDRESS)
    assert round_trip(connection, None, b"after")
    eventually(lambda: round_trip(client, SERVER, b"after", 0.1), FOLLOWED_S, "an answer")
    assert sessions <= {(each["inside"], each["external"]) for each in net.sessions()}


def test_away_and_back_with_another_in_between(running: Network) -> None:
    net = running
    client = net.udp("inside")
    for address in (NEW_ADDRESS, EXTERNAL_ADDRESS, "200.200.200.78", "200.200.200.79", "200.200.200.80", NEW_ADDRESS):
        change_address(net, address)
        eventually(lambda: round_trip(client, SERVER, b"?", 0.1), FOLLOWED_S, f"an answer on {address}")
        assert net.status()["external"]["address"] == address


def test_a_second_address_changes_nothing(running: Network) -> None:
    net = running
    connection = net.connect("inside", SERVER)
    net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
    assert round_trip(connection, None, b"after")
    eventually(lambda: net.answers("server", NEW_ADDRESS, 0.2), FOLLOWED_S, "the host's own, once the guard knows")
    near, far = net.pair()
    assert far.getpeername()[0] == EXTERNAL_ADDRESS
    near.close()


def test_the_old_address_is_the_guards_no_more(running: Network) -> None:
    """The host may use an address that is no longer ours as it likes; the new one is guarded."""
    net = running
    net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
    net.ip("gateway", f"address delete {EXTERNAL_ADDRESS}/24 dev eth1")
    net.ip("gateway", f"address add {EXTERNAL_ADDRESS}/32 dev lo")
    if not net.run("gateway", "ip", "route", "show", "default"):
        net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
        net.ip("gateway", f"route add default via {ROUTER_ADDRESS}")
    eventually(lambda: net.status()["external"]["address"] == NEW_ADDRESS, FOLLOWED_S, "the new address")
    with pytest.raises(TimeoutError):
        net.connect("server", (NEW_ADDRESS, 5000), timeout=0.2)
    with pytest.raises(ConnectionRefusedError):
        net.connect("server", (EXTERNAL_ADDRESS, 5000), timeout=2)


@pytest.mark.parametrize(("dynaddr", "survives"), [(0, True), (1, True), (4, False)])
def test_dynaddr_decides_what_happens_to_old_sessions(net: Network, dynaddr: int, survives: bool) -> None:
    net.start(f"[masquerade]\ndynaddr = {dynaddr}")
    net.echo_tcp()
    connection = net.connect("inside", SERVER)
    assert round_trip(connection, None, b"before")
    change_address(net)
    eventually(lambda: net.status()["external"]["address"] == NEW_ADDRESS, FOLLOWED_S, "the new address")
    assert bool(net.sessions(state="established")) == survives
    if survives:  # it can go on when the old address comes back
        change_address(net, EXTERNAL_ADDRESS)
        assert round_trip(connection, None, b"after")


def test_each_of_two_networks_on_the_outside_link_is_reached_by_its_own_address(net: Network) -> None:
    """The modem's network comes first on the link, the internet's second; the next hop decides, as in the kernel."""
    net.ip("router", "address add 192.168.100.1/24 dev eth0")
    remove_address(net)
    net.ip("gateway", "address add 192.168.100.2/24 dev eth1")
    add_address(net, EXTERNAL_ADDRESS)
    assert f"({EXTERNAL_ADDRESS})" in net.start()
    net.echo_udp()
    net.echo_udp("router")
    inside, modem = net.udp("inside"), ("192.168.100.1", ECHO_PORT)
    heard = net.sniff("router", "eth0")
    for remote, own in ((SERVER, EXTERNAL_ADDRESS), (modem, "192.168.100.2")):
        assert round_trip(inside, remote, b"?")
        assert {each.source for each in heard.of(destination=remote[0], sent=False)} == {own}
    net.ip("gateway", "route replace default via 192.168.100.1")
    eventually(lambda: net.status()["external"]["address"] == "192.168.100.2", what="the address that fits now")
    assert round_trip(inside, SERVER, b"and the session that was there")
    assert net.drops() == {}


def test_rfc4787_req2_hosts_share_the_addresses_of_the_settings(net: Network) -> None:
    net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
    net.start(f'[masquerade]\naddresses = ["{EXTERNAL_ADDRESS}", "{NEW_ADDRESS}"]')
    net.echo_udp()
    net.echo_tcp()
    heard = net.sniff("router", "eth0")
    for number in range(4, 12):
        net.ip("inside", f"address add 10.0.0.{number}/8 dev eth0")
        assert round_trip(net.udp("inside", f"10.0.0.{number}"), SERVER, b"?")
    sources = {each["inside"].partition(":")[0]: each["external"].partition(":")[0] for each in net.sessions()}
    assert set(sources.values()) == {EXTERNAL_ADDRESS, NEW_ADDRESS}
    assert {each.source for each in heard.of(destination=SERVER_ADDRESS, sent=False)} == set(sources.values())
    assert net.status()["external"]["addresses"] == [EXTERNAL_ADDRESS, NEW_ADDRESS]
    with pytest.raises(TimeoutError):  # the guard keeps the host off the ports of both
        net.connect("server", (NEW_ADDRESS, 20000), timeout=0.3)
    text = net.fastmasq.configuration.read_text()
    net.fastmasq.configuration.write_text(text.replace(f'"{EXTERNAL_ADDRESS}", ', ""))
    assert net.fastmasq.ask("reload")["changed"] == ["masquerade.addresses"]
    asking = net.udp("inside", "10.0.0.4")
    assert round_trip(asking, SERVER, b"?")
    assert {each["external"].partition(":")[0] for each in net.sessions(host="10.0.0.4")} >= {NEW_ADDRESS}


def test_h16_programs_are_run_when_the_address_changes_and_at_the_end(net: Network, tmp_path: Path) -> None:
    told, tells = tmp_path / "told", tmp_path / "tells"
    tells.write_text(f'#!/bin/sh\necho "$FASTMASQ_EVENT $FASTMASQ_OLD_ADDRESS $FASTMASQ_ADDRESS" >>{told}\n')
    tells.chmod(0o755)
    net.start("[hooks]\n" + "".join(f'{name} = "{tells}"\n' for name in ("up", "down", "address_changed")))

    def was_told(*lines: str) -> bool:
        return told.exists() and told.read_text().splitlines() == list(lines)

    begin = (f"up  {EXTERNAL_ADDRESS}", f"address_changed  {EXTERNAL_ADDRESS}")
    eventually(lambda: was_told(*begin), what="what there is at the start")
    change_address(net)
    change = f"address_changed {EXTERNAL_ADDRESS} {NEW_ADDRESS}"
    eventually(lambda: change in told.read_text().splitlines(), what="the change")
    net.fastmasq.remove()
    assert told.read_text().splitlines()[-1] == f"down  {NEW_ADDRESS}"
