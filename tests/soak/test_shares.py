"""Shares at full size: 200 ordinary hosts have each port that they ask for beside a network that takes all it gets."""

from __future__ import annotations

import contextlib
import itertools
import resource
import selectors
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from random import Random

import pytest

from fastmasq.lab import hosts
from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from tests.soak import attacks, ordinary
from tests.soak.attacks import GREEDY, SERVER, Attack, Known, raw_socket, udp
from tests.soak.parts import Parts
from tests.soak.place import CLOSED_PORT, SECOND_GATEWAY, SERVICE_PORT
from tests.support.lab_network import ETH_P_ARP, ETH_P_IP, Network, eventually
from tests.support.packets import dotted

HOSTS, NEW_PER_S, CONNECTIONS = 200, 10, 50
ORDINARY = [f"172.20.5.{number}" for number in range(1, HOSTS + 1)]
TAKERS = [GREEDY + number for number in range(1, 251)]
TAKEN_PER_S = 5000
REFUSALS = 5000  # by which the greedy network is known to have all that it gets
PATIENCE_S = 2.0
DESCRIPTORS = HOSTS * CONNECTIONS + 1000


@pytest.fixture
def net(lab: Lab) -> Iterator[Network]:
    """Return the network with 200 ordinary hosts on a link of their own, and a /24 of greedy ones on the other."""
    network = Network(lab)
    network.add_second_inside("172.20.0.2", 16)
    for host, prefix, addresses in (("inside2", 16, ORDINARY), ("inside", 8, map(dotted, TAKERS))):
        hosts.configure([f"address add {address}/{prefix} dev eth0" for address in addresses], lab.namespace(host))
    yield network
    network.close()


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Have room for a socket of each connection."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, max(DESCRIPTORS, before[1])))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def port_grab(remote_port: int) -> Attack:
    """Return what takes a port after the other, of all hosts of the greedy network, towards a port of the server."""

    def packets(random: Random, known: Sequence[Known]) -> Iterator[bytes]:
        for port, source in itertools.product(range(1024, 65_536), TAKERS):
            yield udp(source, port, SERVER, remote_port)

    return Attack(packets, TAKEN_PER_S, raw_socket)


def look_for_the_gateway(net: Network) -> None:
    """Have each ordinary host ask by ARP where the gateway is, as hosts do that have a kernel each (RFC 826)."""
    with net.on("inside2"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", ETH_P_ARP))
        mac = raw.getsockname()[4]
        for address in ORDINARY:
            ends = mac + socket.inet_aton(address) + bytes(6) + socket.inet_aton(SECOND_GATEWAY)
            frame = bytes(b"\xff" * 6 + mac + struct.pack(">HHHBBH", ETH_P_ARP, 1, ETH_P_IP, 6, 4, 1) + ends)
            raw.send(frame)
    eventually(lambda: net.ip("gateway", "neighbour show dev eth2").count(" lladdr ") >= HOSTS, what="neighbours")


def ask(net: Network, address: str) -> socket.socket:
    """Send a datagram to the server from a new port of an ordinary host, whose namespace this thread lives in."""
    made = net.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    made.setblocking(False)
    made.bind((address, 0))
    made.connect((SERVER_ADDRESS, SERVICE_PORT))
    made.send(b"one more")
    return made


def unanswered(asking: list[socket.socket]) -> list[socket.socket]:
    """Return those that have no answer when time is up."""
    waiting = set(asking)
    until = time.monotonic() + PATIENCE_S
    with selectors.DefaultSelector() as selector:
        for made in asking:
            selector.register(made, selectors.EVENT_READ)
        while waiting and time.monotonic() < until:
            for key, _ in selector.select(0.05):
                with contextlib.suppress(BlockingIOError):
                    key.fileobj.recv(2048)
                    waiting.discard(key.fileobj)
                    selector.unregister(key.fileobj)
    return list(waiting)


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("remote_port", [CLOSED_PORT, SERVICE_PORT], ids=["unanswered", "answered"])
def test_a_greedy_network_and_two_hundred_ordinary_hosts(net: Network, remote_port: int) -> None:
    """A /24 takes 5000 ports a second while it gets any; 200 hosts of another open 10 a second until each has 50."""
    net.start(inside=["eth0", "eth2"])
    look_for_the_gateway(net)
    with Parts() as parts, net.on("inside2"):
        parts.begin(lambda: ordinary.serve(net.lab.namespace("server")))
        parts.start(attacks.carry_out, port_grab(remote_port), net.lab.namespace("inside"), 1)
        eventually(lambda: net.drops().get("network_limit", 0) > REFUSALS, 30, "refusals")
        for _ in range(CONNECTIONS // NEW_PER_S):
            began = time.monotonic()
            asking = []
            for _ in range(NEW_PER_S):
                asking += [ask(net, address) for address in ORDINARY]
                time.sleep(0.5 / NEW_PER_S)
            left = unanswered(asking)
            for made in left:
                made.send(b"once more")  # a busy machine loses some; who was refused is so again
            assert unanswered(left) == [], net.drops()
            time.sleep(max(0.0, began + 1 - time.monotonic()))
    assert net.drops().keys() == {"network_limit"}
    assert {net.fastmasq.ask("sessions", host=each)["total"] for each in ORDINARY} == {CONNECTIONS}
