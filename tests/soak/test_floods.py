"""Floods at full size: key exchanges and ESP of others go on as when idle; some minutes."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

import pytest

from fastmasq.lab.topology import SERVER_ADDRESS, Lab
from tests.soak import attacks
from tests.soak.parts import start
from tests.support.ipsec_hosts import REPEAT_S, Peer
from tests.support.lab_network import INSIDE_ADDRESS, Network
from tests.support.vpn_network import SECOND_INSIDE, VpnNetwork

ROUNDS = 50  # of each of two hosts: a hundred exchanges, and a hundred packets under new SAs
BAR = 95  # of a hundred
FLOODS = {"idle": None, "outside": "forged ESP", "inside": "new ESP SPIs"}


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
