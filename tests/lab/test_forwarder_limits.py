"""Limits: a host that has used up its share is told so and hurts nobody else; status says what was refused and why."""

from __future__ import annotations

import socket

import pytest

from fastmasq.lab.topology import SERVER_ADDRESS
from tests.support.lab_network import ECHO_PORT, GATEWAY_INSIDE, Network, eventually, icmp_error, round_trip

SERVER = (SERVER_ADDRESS, ECHO_PORT)
SHARE, SHARED = (3, 13, 0, GATEWAY_INSIDE), (3, 1, 0, GATEWAY_INSIDE)  # its own share is used up; what all share is


def use_up(net: Network, host: str, count: int, first_port: int = 20_000) -> list[socket.socket]:
    """Open sessions from a host, one for each of `count` ports; all of them must work."""
    clients = [net.udp(host, port=first_port + number) for number in range(count)]
    for client in clients:
        assert round_trip(client, SERVER, b"?")
    return clients


def refusal(net: Network, host: str, port: int = 0) -> tuple | None:
    """Send from a new port of a host; return the ICMP error that comes back."""
    asking = net.asking(host, SERVER)
    asking.send(b"one more")
    return icmp_error(asking)


def reasons(net: Network) -> dict[str, str]:
    """Return the sentence of each reason for which packets were dropped."""
    return {row["reason"]: row["sentence"] for row in net.status()["drops"]}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("[limits]\nsessions_per_host = 20", "host_session_limit"),
        ("[limits]\nports_per_host = 20", "host_port_limit"),
    ],
)
def test_a_host_that_has_used_up_its_share(net: Network, settings: str, reason: str) -> None:
    net.start(settings)
    net.echo_udp()
    clients = use_up(net, "inside", 20)
    assert refusal(net, "inside") == SHARE
    assert round_trip(net.udp("inside2"), SERVER, b"another host")
    assert round_trip(clients[0], SERVER, b"its own old sessions")
    assert reasons(net).keys() == {reason}
    assert "share" in reasons(net)[reason]
    with pytest.raises(OSError):
        net.connect("inside", SERVER, timeout=1)  # TCP: the refusal ends the attempt, or it gets no answer


def test_a_share_that_becomes_free_again(net: Network) -> None:
    net.start("[limits]\nsessions_per_host = 5\n[masquerade.timeouts]\nudp = 1")
    net.echo_udp()
    use_up(net, "inside", 5)
    assert refusal(net, "inside") == SHARE
    eventually(lambda: net.status()["sessions"]["active"] == 0, what="an empty table")
    use_up(net, "inside", 5, first_port=30_000)


def test_a_host_that_opens_too_fast(net: Network) -> None:
    net.start('[limits]\nnew_sessions_per_host = "10/s"')
    assert net.answers("inside", SERVER_ADDRESS), "next hops are known from here on"
    net.echo_udp()
    asking = [net.asking("inside", SERVER) for _ in range(40)]
    for client in asking:
        client.send(b"?")
    eventually(lambda: net.drops().get("host_rate_limit", 0) >= 10, what="refusals")
    assert SHARE in [icmp_error(client, 0) for client in asking]
    assert round_trip(net.udp("inside2"), SERVER, b"another host")
    eventually(lambda: round_trip(net.udp("inside"), SERVER, b"after a while", 0.1), what="a new session")


def test_ports_that_are_exhausted(net: Network) -> None:
    net.start('[masquerade]\nports = "61000-61019"\n[limits]\nports_per_host = 1000\nprefix = 0')
    net.echo_udp()
    clients = use_up(net, "inside", 20)
    assert refusal(net, "inside2") == SHARED
    assert reasons(net).keys() == {"ports_exhausted"}
    assert round_trip(clients[-1], SERVER, b"its own old sessions")
    assert net.answers("inside2", SERVER_ADDRESS), "ICMP identifiers are another pool"
    external = {session["external"] for session in net.sessions(protocol="udp")}
    assert external == {f"200.200.200.200:{port}" for port in range(61000, 61020)}


def test_a_table_that_is_full(net: Network) -> None:
    net.start("[limits]\nsessions = 32\nsessions_per_host = 32\nprefix = 0")
    net.echo_udp()
    clients = use_up(net, "inside", 32)
    assert refusal(net, "inside2") == SHARED
    assert reasons(net).keys() == {"table_full"}
    assert round_trip(clients[0], SERVER, b"its own old sessions")
    sessions = net.status()["sessions"]
    assert (sessions["active"], sessions["capacity"]) == (32, 32)
    assert net.answers("gateway", SERVER_ADDRESS), "the host itself is not affected"


def test_refusals_are_not_a_flood_themselves(net: Network) -> None:
    net.start("[limits]\nsessions_per_host = 1")
    net.echo_udp()
    use_up(net, "inside", 1)
    heard = net.sniff("inside", "eth0")
    sender = net.udp("inside")
    for port in range(300):
        sender.sendto(b"?", (SERVER_ADDRESS, 1000 + port))
    eventually(lambda: net.drops().get("host_session_limit", 0) == 300, what="300 refusals")
    told = [each for each in heard.of(sent=False, protocol=socket.IPPROTO_ICMP)]
    assert 1 <= len(told) <= 60
