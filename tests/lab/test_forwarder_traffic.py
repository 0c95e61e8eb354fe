"""Ordinary traffic through a running fastmasq, whatever ring it uses and whatever the links offload."""

from __future__ import annotations

import concurrent.futures
import socket
import threading

import pytest

from fastmasq.lab import scenario, services
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from tests.support.bursts import SEGMENTS, receive_all, send_segmented
from tests.support.lab_network import (
    ECHO_PORT,
    GATEWAY_INSIDE,
    INSIDE_ADDRESS,
    ROUTER_ADDRESS,
    Network,
    eventually,
    icmp_error,
    round_trip,
    send_and_compare,
)

TRANSFER_BYTES = 8 << 20


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
    large_sends_work = vnet_header == "auto" or not offloads  # without the header nothing tells the size of the pieces
    sent = send_segmented(client, server.getsockname())
    assert receive_all(server, SEGMENTS) == (sent if large_sends_work else [])
    client.sendto(b"hello", server.getsockname())
    sent = send_segmented(server, server.recvfrom(100)[1])
    assert receive_all(client, SEGMENTS) == (sent if large_sends_work else [])

    assert net.drops() == ({} if large_sends_work else {"segment_size_unknown": 2})


@pytest.mark.parametrize("offloads", [True, False], ids=["offloads", "no-offloads"])
@pytest.mark.parametrize("ring", ["v2", "v3", "socket"])
def test_rfc4787_req14_datagrams_in_fragments(net: Network, ring: str, offloads: bool) -> None:
    """Real hosts cut them and put them together again: UDP up to the largest, and ping."""
    net.lab.offloads(offloads)
    net.start(f'[rings]\nmode = "{ring}"')
    net.echo_udp()
    client = net.udp("inside")
    for size in (1473, 3000, 20_000, 65_507):
        assert round_trip(client, (SERVER_ADDRESS, ECHO_PORT), b"x" * size), f"a datagram of {size} octets"
    assert " 0% packet loss" in net.run("inside", *f"ping -c 2 -i 0.2 -W 2 -s 8000 {SERVER_ADDRESS}".split())
    assert net.drops() == {}


@pytest.mark.parametrize("ring", ["v2", "v3", "socket"])
def test_many_connections_at_once(net: Network, ring: str) -> None:
    """Both directions of eight connections together: more than a batch, and more large packets than a ring holds."""
    net.start(f'[rings]\nmode = "{ring}"\nframes = 256')
    pairs = [net.pair() for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        ways = [way for near, far in pairs for way in ((near, far), (far, near))]
        for done in [pool.submit(send_and_compare, *way, TRANSFER_BYTES // 4) for way in ways]:
            done.result()
    assert net.drops() == {}


def test_real_programs(net: Network) -> None:
    """The demo's own checks: ping, traceroute, dig, curl and nginx, ssh and sshd, ftp."""
    stage = scenario.set_stage(net.lab)
    net.start()
    for check in scenario.CHECKS:
        assert check.run(stage), check.title
    assert net.drops().keys() <= scenario.HONEST_DROPS


def test_errors_come_back_to_their_senders(net: Network) -> None:
    net.start()
    asking = net.asking("inside", (SERVER_ADDRESS, 999))
    asking.send(b"nobody there")
    assert icmp_error(asking) == (3, 3, 0, SERVER_ADDRESS)
    asking = net.asking("inside", (SERVER_ADDRESS, 998))
    for ttl, hop in ((1, GATEWAY_INSIDE), (2, ROUTER_ADDRESS)):
        asking.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        asking.send(b"?")
        assert icmp_error(asking) == (11, 0, 0, hop)
    with pytest.raises(ConnectionRefusedError):
        net.connect("inside", (SERVER_ADDRESS, 997), timeout=2)


def test_nothing_comes_in_uninvited(net: Network) -> None:
    net.start()
    net.ip("server", "route add 10.0.0.0/8 via 199.0.0.254")
    net.ip("router", "route add 10.0.0.0/8 via 200.200.200.200")
    heard = net.sniff("inside", "eth0")
    knocking = net.udp("server", SERVER_ADDRESS)
    knocking.sendto(b"knock", (INSIDE_ADDRESS, 9000))
    knocking.sendto(b"knock", (EXTERNAL_ADDRESS, 9000))
    with pytest.raises(TimeoutError):
        net.connect("server", (INSIDE_ADDRESS, 22), timeout=0.2)
    eventually(lambda: net.drops().keys() == {"policy_refused", "no_session"}, what="the drops")
    assert heard.of(sent=False) == []


def test_inside_hosts_reach_each_other_by_their_external_endpoints(net: Network) -> None:
    net.start()
    net.echo_udp()
    first, second = net.udp("inside", port=7000), net.udp("inside2", port=7001)
    assert round_trip(first, (SERVER_ADDRESS, ECHO_PORT), b"open")
    second.sendto(b"hello", (EXTERNAL_ADDRESS, 7000))
    assert first.recvfrom(100) == (b"hello", (EXTERNAL_ADDRESS, 7001))
    first.sendto(b"hello yourself", (EXTERNAL_ADDRESS, 7001))
    assert second.recvfrom(100) == (b"hello yourself", (EXTERNAL_ADDRESS, 7000))
