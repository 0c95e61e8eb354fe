"""Protocols without ports, and those whose ports fastmasq does not know: UDP-Lite of the kernel, raw sockets."""

from __future__ import annotations

import socket

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.wire.numbers import UDP_LITE
from tests.support.lab_network import INSIDE_ADDRESS, Network, eventually, icmp_error

SIX_IN_FOUR = 41
PORT = 4000


def received(near: socket.socket) -> tuple[str, bytes]:
    """Return who sent the next packet of a raw socket, and what is behind its header."""
    packet, (source, _) = near.recvfrom(65535)
    return source, packet[(packet[0] & 15) * 4 :]


def test_rfc3828_programs_talk_udp_lite(net: Network) -> None:
    net.start()
    server = net.udp("server", port=PORT, protocol=UDP_LITE)
    client = net.asking("inside", (SERVER_ADDRESS, PORT), UDP_LITE)
    for payload in (b"question", b"odd", bytes(1400), bytes(5000)):  # the last in pieces
        client.send(payload)
        asked, (source, port) = server.recvfrom(65535)
        assert (asked, source, port) == (payload, EXTERNAL_ADDRESS, client.getsockname()[1])
        server.sendto(payload[::-1], (source, port))
        assert client.recv(65535) == payload[::-1]
    server.close()
    client.send(b"is anybody there")
    error = icmp_error(client)
    assert (error.type, error.code, error.offender) == (3, 3, SERVER_ADDRESS)
    assert net.drops() == {}
    [session] = net.sessions()
    assert session["inside"].startswith(INSIDE_ADDRESS)


@pytest.mark.parametrize("guard", ["nftables", "tc"])
def test_this_host_does_not_answer_for_an_inside_host(net: Network, guard: str) -> None:
    net.start(f'[takeover]\nguard = "{guard}"\n')
    client, server = (
        net.udp("inside", port=PORT, protocol=UDP_LITE),
        net.asking("server", (EXTERNAL_ADDRESS, PORT), UDP_LITE),
    )
    client.sendto(b"question", (SERVER_ADDRESS, server.getsockname()[1]))
    assert server.recv(100) == b"question"
    for _ in range(5):
        server.send(b"answer")
        assert client.recv(100) == b"answer"
    assert icmp_error(server, 0.5) is None


@pytest.mark.parametrize("guard", ["nftables", "tc"])
def test_what_this_host_uses_itself_stays_its_own(net: Network, guard: str) -> None:
    gateway, server, client = (net.raw(host, SIX_IN_FOUR, 1) for host in ("gateway", "server", "inside"))
    net.start(f'[takeover]\nguard = "{guard}"\n')
    client.sendto(b"from inside", (SERVER_ADDRESS, 0))
    eventually(lambda: net.drops() == {"protocol_not_masqueraded": 1}, what="the drop")
    server.sendto(b"to the gateway", (EXTERNAL_ADDRESS, 0))
    assert received(gateway) == (SERVER_ADDRESS, b"to the gateway")


def test_one_inside_host_has_a_remote_and_the_other_is_told(net: Network) -> None:
    net.start()
    server, first, second = (net.raw(host, SIX_IN_FOUR, 1) for host in ("server", "inside", "inside2"))
    first.sendto(b"from the first", (SERVER_ADDRESS, 0))
    assert received(server) == (EXTERNAL_ADDRESS, b"from the first")
    server.sendto(b"to the first", (EXTERNAL_ADDRESS, 0))
    assert received(first) == (SERVER_ADDRESS, b"to the first")
    second.sendto(b"from the second", (SERVER_ADDRESS, 0))
    eventually(lambda: net.drops() == {"endpoint_clash": 1}, what="the drop")
    with pytest.raises(TimeoutError):
        received(server)


def test_other_protocols_can_be_refused(net: Network) -> None:
    net.start("[masquerade]\nother_protocols = false\n")
    net.raw("inside", SIX_IN_FOUR).sendto(b"from inside", (SERVER_ADDRESS, 0))
    eventually(lambda: net.drops() == {"protocol_not_masqueraded": 1}, what="the drop")
