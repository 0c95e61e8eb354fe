"""The PPTP programs that people use, pptp and pptpd, through a running fastmasq: they need no kernel module for GRE."""

from __future__ import annotations

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.wire.numbers import PPTP_PORT
from tests.support.lab_network import INSIDE_ADDRESS, Network, eventually
from tests.support.pptp_programs import Client, start_pptpd
from tests.support.vpn_network import SECOND_INSIDE, THIRD_INSIDE, VpnNetwork

FORWARD = f"""
[[forward]]
protocol = "tcp"
listen = "eth1:{PPTP_PORT}"
to = "{THIRD_INSIDE}:{PPTP_PORT}"
"""


@pytest.fixture
def vpn(net: Network) -> VpnNetwork:
    net.start(FORWARD)
    return VpnNetwork(net)


def test_h12_h42_pptp_and_pptpd_clients_and_a_server_at_once(vpn: VpnNetwork) -> None:
    net = vpn.net
    start_pptpd(net, "server", SERVER_ADDRESS)
    start_pptpd(net, "inside2", THIRD_INSIDE)
    clients = [Client(net, "inside", SERVER_ADDRESS), Client(net, "inside2", SERVER_ADDRESS)]
    clients.append(Client(net, "server", EXTERNAL_ADDRESS))
    for number in (1, 2, 3):
        for client in clients:
            assert client.answers(number)
    assert set(states(vpn).values()) == {"established"}
    assert [row["missing"] for row in vpn.listed("connections")] == [""] * 3
    assert net.drops() == {}
    clients[0].close()
    gone = {(INSIDE_ADDRESS, SERVER_ADDRESS): "closing", (SECOND_INSIDE, SERVER_ADDRESS): "established"}
    eventually(lambda: states(vpn) == {**gone, (THIRD_INSIDE, SERVER_ADDRESS): "established"}, what="the end of a call")
    assert clients[1].answers(4) and clients[2].answers(4)
    # A closed socket resets each segment that still comes, by that one's acknowledgment; a later one has been seen.
    assert net.drops().keys() <= {"tcp_rst_out_of_window"}


def test_pf5_pptp_inside_reaches_pptpd_inside_by_the_external_address(vpn: VpnNetwork) -> None:
    net = vpn.net
    start_pptpd(net, "inside2", THIRD_INSIDE)
    clients = [Client(net, host, EXTERNAL_ADDRESS) for host in ("inside", "inside2", "server")]
    for number in (1, 2, 3):
        for client in clients:
            assert client.answers(number)
    assert net.drops() == {}
    clients[0].close()
    eventually(
        lambda: sorted(row["state"] for row in vpn.listed("calls")) == ["closing"] * 2 + ["established"] * 3,
        what="the end of a call at both ends",
    )
    assert clients[1].answers(4) and clients[2].answers(4)
    assert net.drops().keys() <= {"tcp_rst_out_of_window"}


def states(vpn: VpnNetwork) -> dict[tuple[str, str], str]:
    """Return the states of calls by inside host and remote."""
    return {(row["inside"], row["remote"]): row["state"] for row in vpn.listed("calls")}
