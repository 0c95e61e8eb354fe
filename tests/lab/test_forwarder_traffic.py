"""Ordinary traffic through a running fastmasq, whatever ring it uses and whatever the links offload."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from fastmasq.lab import services
from fastmasq.lab.topology import SERVER_ADDRESS
from tests.support.lab_network import ECHO_PORT, SOL_UDP, UDP_SEGMENT, Network, round_trip, send_and_compare

TRANSFER_BYTES = 8 << 20
SEGMENT, SEGMENTS = 1200, 40


def send_segmented(sender: socket.socket, remote: tuple[str, int]) -> list[bytes]:
    """Have the kernel cut one large send into datagrams of SEGMENT octets (udp(7), UDP_SEGMENT); return them."""
    pieces = [bytes([number]) * SEGMENT for number in range(SEGMENTS)]
    control = [(SOL_UDP, UDP_SEGMENT, struct.pack("H", SEGMENT))]
    sender.sendmsg([b"".join(pieces)], control, 0, remote)
    return pieces


def receive_all(receiver: socket.socket, count: int) -> list[bytes]:
    """Return the next datagrams, as many as come of `count` before none comes for a while."""
    received = []
    receiver.settimeout(2)
    try:
        while len(received) < count:
            received.append(receiver.recv(65536))
    except TimeoutError:
        pass
    return received


@pytest.fixture(params=[True, False], ids=["offloads", "no-offloads"])
def offloads(request: pytest.FixtureRequest, net: Network) -> bool:
    net.lab.offloads(request.param)
    return request.param


@pytest.fixture(params=["auto", "off"], ids=["vnet", "no-vnet"])
def vnet_header(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("ring", ["v2", "v3", "socket"])
def test_traffic_in_every_ring_mode(net: Network, offloads: bool, vnet_header: str, ring: str) -> None:
    net.start(f'[rings]\nmode = "{ring}"\nvnet_header = "{vnet_header}"')
    assert {(link["ring"], link["vnet_header"]) for link in net.status()["links"]} == {(ring, vnet_header == "auto")}

    net.run("inside", "ping", "-n", "-c", "10", "-i", "0.01", "-s", "1472", "-M", "do", "-W", "1", SERVER_ADDRESS)
    services.start_dns(net.lab)
    for options in (["A", "www.example.test", "+notcp"], ["TXT", "long.example.test", "+tcp"]):
        assert "NOERROR" in net.run("inside", "dig", "+tries=1", f"@{SERVER_ADDRESS}", "-t", *options)

    near, far = net.pair()
    send_and_compare(near, far, TRANSFER_BYTES)
    send_and_compare(far, near, TRANSFER_BYTES)
    downward = threading.Thread(target=send_and_compare, args=(far, near, TRANSFER_BYTES))
    downward.start()
    send_and_compare(near, far, TRANSFER_BYTES)
    downward.join()

    net.echo_udp()
    client = net.udp("inside")
    for size in (0, 1, 63, 1471, 1472):
        assert round_trip(client, (SERVER_ADDRESS, ECHO_PORT), b"x" * size), f"a datagram of {size} octets"

    server = net.udp("server", SERVER_ADDRESS, 9000)
    sent = send_segmented(client, (SERVER_ADDRESS, 9000))
    print("got", [len(x) for x in receive_all(server, SEGMENTS)][:3])
    print("drops", net.drops(), "verdicts", net.status()["verdicts"], [l["ring_drops"] for l in net.status()["links"]])
