"""PPTP calls and IPsec SAs when the external address changes, by `[masquerade] dynaddr`: rules P-28, E-10, C-61."""

from __future__ import annotations

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.wire.numbers import ESP, GRE, UDP
from tests.support.lab_network import INSIDE_ADDRESS, ROUTER_ADDRESS, Network, eventually
from tests.support.vpn_network import SECOND_INSIDE, SECOND_SERVER, THIRD_INSIDE, VpnNetwork

NEW_ADDRESS = "200.200.200.77"
FORWARDS = "".join(
    f'[[forward]]\nprotocol = "{protocol}"\nlisten = "{EXTERNAL_ADDRESS}:{port}"\nto = "{THIRD_INSIDE}:{port}"\n'
    for protocol, port in (("tcp", 1723), ("udp", 500))
)


def change_address(net: Network, new: str) -> None:
    net.ip("gateway", "address flush dev eth1")
    net.ip("gateway", f"address add {new}/24 dev eth1")
    net.ip("gateway", f"route add default via {ROUTER_ADDRESS}")
    eventually(lambda: net.status()["external"]["address"] == new, what="the new address")


def externals(vpn: VpnNetwork, *kinds: str) -> set[str]:
    return {row["external"] for kind in kinds for row in vpn.listed(kind)}


@pytest.mark.parametrize(
    ("dynaddr", "external"), [(0, EXTERNAL_ADDRESS), (4, EXTERNAL_ADDRESS), (1, NEW_ADDRESS), (2, NEW_ADDRESS)]
)
def test_p28_e10_dynaddr_has_tunnels_follow_or_not(net: Network, dynaddr: int, external: str) -> None:
    """With bit 1 or 2 they follow; otherwise their packets leave with the dead address (C-61)."""
    net.start(f"[masquerade]\ndynaddr = {dynaddr}")
    vpn = VpnNetwork(net)
    vpn.pptp_server()
    vpn.ipsec(SECOND_SERVER)
    call = vpn.pptp(INSIDE_ADDRESS).dial(SERVER_ADDRESS, 7)
    peer = vpn.ipsec(SECOND_INSIDE).negotiate(SECOND_SERVER)
    call.exchange(2)
    peer.exchange(2)
    change_address(net, NEW_ADDRESS)
    assert externals(vpn, "calls", "sas", "exchanges") == {external}
    heard = net.sniff("router", "eth0")
    call.ask()
    peer.inform()
    peer.ping()
    for wanted in (
        {"protocol": GRE, "destination": SERVER_ADDRESS},
        {"protocol": ESP, "destination": SECOND_SERVER},
        {"protocol": UDP, "destination": SECOND_SERVER},
    ):
        eventually(lambda wanted=wanted: heard.of(**wanted), what=f"{wanted} at the router")
        assert {packet.source for packet in heard.of(**wanted)} == {external}
    assert externals(vpn, "calls", "sas", "exchanges") == {external}


def test_c61_without_dynaddr_all_goes_on_when_the_address_comes_back(net: Network) -> None:
    net.start("[masquerade]\ndynaddr = 0")
    vpn = VpnNetwork(net)
    vpn.pptp_server()
    vpn.ipsec(SECOND_SERVER)
    call = vpn.pptp(INSIDE_ADDRESS).dial(SERVER_ADDRESS, 7)
    peer = vpn.ipsec(SECOND_INSIDE).negotiate(SECOND_SERVER)
    call.exchange(2)
    peer.exchange(2)
    change_address(net, NEW_ADDRESS)
    change_address(net, EXTERNAL_ADDRESS)
    call.exchange(2)
    call.connection.echo()
    peer.exchange(2)
    peer.rekey()
    peer.exchange(2)
    assert vpn.undisturbed()


def test_pf9_tunnels_of_a_forward_stay_where_it_listens(net: Network) -> None:
    """The address is still the host's, though not the external one, and forwards name it: remotes notice nothing."""
    net.start(FORWARDS)
    vpn = VpnNetwork(net)
    inside_server, inside_peer = vpn.pptp_server(THIRD_INSIDE), vpn.ipsec(THIRD_INSIDE)
    client = vpn.pptp(SERVER_ADDRESS)
    call = client.dial(EXTERNAL_ADDRESS, 7)
    peer = vpn.ipsec(SECOND_SERVER).negotiate(EXTERNAL_ADDRESS)
    call.exchange(2)
    peer.exchange(2)
    net.ip("gateway", f"address add {EXTERNAL_ADDRESS}/32 dev lo")
    change_address(net, NEW_ADDRESS)
    assert externals(vpn, "connections", "calls", "sas", "exchanges") == {EXTERNAL_ADDRESS}
    call.exchange(2)
    inside_server.calls()[0].exchange(2)
    again = call.connection.call(8)
    again.exchange(2)
    peer.exchange(2)
    inside_peer.peer_of(peer.sa).rekey()
    inside_peer.peer_of(peer.sa).exchange(2)
    peer.rekey()
    peer.exchange(2)
    assert externals(vpn, "connections", "calls", "sas", "exchanges") == {EXTERNAL_ADDRESS}
    assert vpn.undisturbed() and not call.connection.ended
