"""Floods at full size: VPNs go on as when idle, and ordinary hosts get every port that they ask for; some minutes."""

from __future__ import annotations

import contextlib
import itertools
import resource
import selectors
import socket
import time
from collections.abc import Iterator

import pytest

from fastmasq.lab import hosts
from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from tests.soak import attacks, ordinary
from tests.soak.run import start
from tests.support.ipsec_hosts import REPEAT_S, Peer
from tests.support.lab_network import GATEWAY_INSIDE, INSIDE_ADDRESS, Network, eventually
from tests.support.vpn_network import SECOND_INSIDE, VpnNetwork

ROUNDS = 50  # of each of two hosts: a hundred exchanges, and a hundred packets under new SAs
BAR = 95  # of a hundred
FLOODS = {"idle": None, "outside": "forged ESP", "inside": "new ESP SPIs"}
HOSTS, NEW_PER_S, CONNECTIONS = 200, 10, 50
DESCRIPTORS = 2 * HOSTS * CONNECTIONS
REFUSALS = 5000  # by which the greedy network is known to have all that it gets


@pytest.fixture
def net(lab: Lab) -> Iterator[Network]:
    network = Network(lab)
    yield network
    network.close()


@contextlib.contextmanager
def attacked(net: Network, side: str, name: str) -> Iterator[None]:
    """Attack from the inside host or from the router meanwhile."""
    namespace = net.lab.namespace("inside" if side == "inside" else "router")
    process = start(attacks.commit, name, side, namespace, 1, [], "")
    try:
        yield
    finally:
        process.kill()
        process.join()


def rekeys(peer: Peer) -> bool:
    """Whether a quick mode goes through without a message sent twice."""
    began = time.monotonic()
    peer.rekey()
    return time.monotonic() - began < REPEAT_S


@pytest.mark.parametrize("side", FLOODS)
def test_key_exchanges_and_esp_of_others_under_a_flood(net: Network, side: str) -> None:
    """Half of the exchanges are of each of two hosts with the server that the flood is about."""
    net.start()
    vpn = VpnNetwork(net)
    server = vpn.ipsec(SERVER_ADDRESS)
    peers = [vpn.ipsec(address).negotiate(server.address) for address in (INSIDE_ADDRESS, SECOND_INSIDE)]
    with attacked(net, side, FLOODS[side]) if FLOODS[side] else contextlib.nullcontext():
        agreed = arrived = 0
        for _, peer in itertools.product(range(ROUNDS), peers):
            agreed += rekeys(peer)
            arrived += peer.answers(seconds=0.5)
    assert (agreed >= BAR, arrived >= BAR) == (True, True), (agreed, arrived)


def ask(net: Network, address: str, remote: str = SERVER_ADDRESS) -> socket.socket:
    """Send a datagram to the server, or another remote, from a new port of an ordinary host."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.bind((address, 0))
    made.connect((remote, ordinary.SERVICE_PORT))
    made.send(b"one more")
    return net.keep(made)


def wait_for_answers(asking: list[socket.socket], patience_s: float) -> list[socket.socket]:
    """Return those that have no answer when time is up."""
    waiting = set(asking)
    until = time.monotonic() + patience_s
    with selectors.DefaultSelector() as selector:
        for made in asking:
            selector.register(made, selectors.EVENT_READ)
        while waiting and time.monotonic() < until:
            for key, _ in selector.select(0.05):
                with contextlib.suppress(OSError):
                    key.fileobj.recv(2048)
                    waiting.discard(key.fileobj)
                    selector.unregister(key.fileobj)
    return list(waiting)


def test_a_greedy_network_and_two_hundred_ordinary_hosts(net: Network) -> None:
    """A /24 takes all ports that it gets, 5000 a second; 200 hosts open 10 connections a second until each has 50."""
    net.start()
    addresses = [f"10.5.0.{number}" for number in range(1, HOSTS + 1)]
    hosts.configure([f"address add {address}/8 dev eth0" for address in addresses], net.lab.namespace("inside2"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    with net.on("inside2"):
        for address in addresses:
            ask(net, address, GATEWAY_INSIDE)  # which finds out where they are, as it does of hosts that look for it
    eventually(lambda: net.ip("gateway", "neighbour show").count(" lladdr ") >= HOSTS, what="neighbours")
    server = start(ordinary.in_background, lambda: ordinary.serve(net.lab.namespace("server")))
    heard = net.sniff("inside2", "eth0")
    try:
        with attacked(net, "inside", "port grab by a /24"), net.on("inside2"):
            eventually(lambda: net.drops().get("network_limit", 0) > REFUSALS, 30, "refusals")
            for _ in range(CONNECTIONS // NEW_PER_S):
                began = time.monotonic()
                asking = [ask(net, address) for address in addresses for _ in range(NEW_PER_S)]
                left = wait_for_answers(asking, 2)
                for made in left:
                    made.send(b"once more")  # the machine may lose one
                assert wait_for_answers(left, 2) == []
                time.sleep(max(0.0, began + 1 - time.monotonic()))
    finally:
        server.kill()
        server.join()
    refused = [each for each in heard.of(source=GATEWAY_INSIDE, protocol=socket.IPPROTO_ICMP) if not each.sent]
    assert refused == []
