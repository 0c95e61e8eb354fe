"""IPsec through a running fastmasq, spoken by real hosts: rules K-1 to K-11 and E-1 to E-33 of the original systems."""

from __future__ import annotations

import socket
import struct
import threading
from collections import Counter

import pytest

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.wire.numbers import AH, ESP
from tests.support.ipsec_hosts import NO_COOKIE, IpsecHost, Message, Peer
from tests.support.lab_network import INSIDE_ADDRESS, ROUTER_ADDRESS, Network, eventually, send_and_compare
from tests.support.speakers import talking
from tests.support.vpn_network import HOSTS, SECOND_INSIDE, SECOND_SERVER, THIRD_INSIDE, VpnNetwork

NEW_ADDRESS = "200.200.200.77"
FORWARD = f"""
[[forward]]
protocol = "udp"
listen = "eth1:500"
to = "{THIRD_INSIDE}:500"
"""
VERSIONS = pytest.mark.parametrize("version", [1, 2], ids=["ikev1", "ikev2"])
CLIENTS = (INSIDE_ADDRESS, SECOND_INSIDE)


@pytest.fixture
def vpn(net: Network) -> VpnNetwork:
    net.start(FORWARD)
    return VpnNetwork(net)


def connected(vpn: VpnNetwork, server: IpsecHost, *addresses: str, version: int = 1) -> list[Peer]:
    """Have inside hosts negotiate with a server, one after the other, and each send through its tunnel."""
    peers = []
    for address in addresses:
        peers.append(vpn.ipsec(address).negotiate(server.address, version=version))
        peers[-1].exchange(2)
    return peers


def both_ways(*peers: tuple[Peer, IpsecHost], count: int = 3) -> None:
    """Have each tunnel carry pings that each of its ends begins."""
    for peer, host in peers:
        peer.exchange(count)
        host.peer_of(peer.sa).exchange(count)


def spi_packet(spi: int, number: int = 1) -> bytes:
    """Return an ESP packet that nobody can open."""
    return struct.pack(">II", spi, number) + bytes(48)


# --- start, traffic, rekeying: K-1 to K-6, K-11, E-3, E-9, E-17, E-18 --------------------------------------------


@VERSIONS
@pytest.mark.parametrize("ring", ["v2", "v3", "socket"])
def test_e18_two_clients_of_one_server(net: Network, version: int, ring: str) -> None:
    net.start(f'[rings]\nmode = "{ring}"')
    vpn = VpnNetwork(net)
    heard = net.sniff("router", "eth0")
    server = vpn.ipsec(SERVER_ADDRESS)
    peers = connected(vpn, server, *CLIENTS, version=version)
    both_ways(*((peer, server) for peer in peers))
    assert {(each.source_port, each.destination_port) for each in heard.of(protocol=socket.IPPROTO_UDP)} == {(500, 500)}
    assert {each.source for each in heard.of(protocol=ESP)} == {EXTERNAL_ADDRESS, SERVER_ADDRESS}
    assert [(row["inside"], row["state"], row["outbound_spi"], row["inbound_spi"]) for row in vpn.listed("sas")] == [
        (peer.host.address, "established", peer.sa.spi_out, peer.sa.spi_in) for peer in peers
    ]
    assert [(row["initiator"], row["responder"]) for row in vpn.listed("exchanges")] == [
        (peer.initiator.hex(), peer.responder.hex()) for peer in peers
    ]
    assert vpn.undisturbed() and [peer.repeated for peer in peers] == [0, 0]


@VERSIONS
@pytest.mark.parametrize("by", ["client", "server"])
def test_k10_e17_rekeying_under_traffic(vpn: VpnNetwork, version: int, by: str) -> None:
    """Both ends of both tunnels talk all the time, while one of them brings new SPIs again and again."""
    server = vpn.ipsec(SERVER_ADDRESS)
    peers = connected(vpn, server, *CLIENTS, version=version)
    ends = [end for peer in peers for end in (peer, server.peer_of(peer.sa))]
    with talking(*(end.answers for end in ends)):
        for _ in range(3):
            for peer, other in (ends[:2], ends[2:]):
                (peer if by == "client" else other).rekey()
                eventually(
                    lambda pair=(peer, other): all(end.sas[-1].opened > 2 for end in pair), what="the new SA's use"
                )
    assert len({sa.spi_in for end in ends for sa in end.sas}) == 16
    assert vpn.net.drops() == {}, "nobody has to wait"
    established = {row["inbound_spi"]: row["inside"] for row in vpn.listed("sas", state="established")}
    for peer in peers:
        assert established[peer.sa.spi_in] == peer.host.address


def test_e8_clients_that_start_at_once(vpn: VpnNetwork) -> None:
    """Three clients negotiate and start together, again and again: all of them get through, each with its own SPIs."""
    vpn.ipsec(SERVER_ADDRESS)
    hosts = [vpn.ipsec(address) for address in (*CLIENTS, THIRD_INSIDE)]
    failures: list[BaseException] = []

    def start(host: IpsecHost) -> None:
        try:
            host.negotiate(SERVER_ADDRESS).exchange(3, again_s=0.3)
            for _ in range(3):
                host.peers[0].rekey()
                host.peers[0].exchange(3, again_s=0.3)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=start, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert vpn.net.drops() == {}, "nobody has to wait"


def test_k11_isakmp_is_not_delayed_by_a_start_that_waits(vpn: VpnNetwork) -> None:
    """An SA that is never answered keeps others from starting, and not from negotiating."""
    server = vpn.ipsec(SERVER_ADDRESS)
    first, second = vpn.ipsec(INSIDE_ADDRESS), vpn.ipsec(SECOND_INSIDE)
    first.send_esp((SERVER_ADDRESS, 500), spi_packet(0x1111))
    eventually(lambda: server.strays, what="the packet at the server")
    peer = second.negotiate(SERVER_ADDRESS)
    peer.rekey()
    assert len(server.peers) == 1 and vpn.net.drops() == {}


def test_k1_another_source_port_is_plain_udp(vpn: VpnNetwork) -> None:
    net = vpn.net
    asking, server = net.udp("inside", port=501), net.udp("server", SERVER_ADDRESS, 500)
    message = Message(b"COOKIE-I", NO_COOKIE, 1, 2, 0, 0, bytes(20)).emit()
    asking.sendto(message, (SERVER_ADDRESS, 500))
    octets, remote = server.recvfrom(2048)
    server.sendto(octets, remote)
    assert asking.recv(2048) == message
    assert remote[1] != 500 and len(net.sessions(protocol="udp")) == 1
    assert vpn.listed("exchanges") == []


def test_e3_packets_larger_than_the_mtu(vpn: VpnNetwork) -> None:
    server = vpn.ipsec(SERVER_ADDRESS)
    peers = connected(vpn, server, *CLIENTS)
    for end in (*peers, *(server.peer_of(peer.sa) for peer in peers)):
        number = end.ping(3000)
        eventually(lambda end=end, number=number: number in end.replies, what="an answer in fragments")
    assert vpn.undisturbed()


def test_h10_ordinary_traffic_goes_on_beside_tunnels(vpn: VpnNetwork) -> None:
    server = vpn.ipsec(SERVER_ADDRESS)
    peers = connected(vpn, server, *CLIENTS)
    near, far = vpn.net.pair()
    with talking(*(peer.answers for peer in peers), *(server.peer_of(peer.sa).answers for peer in peers)):
        send_and_compare(near, far, 8 << 20)
        send_and_compare(far, near, 8 << 20)
    assert vpn.strays() == []


# --- who waits for whom: E-1 to E-9, E-30 to E-33 ----------------------------------------------------------------


def test_e5_a_start_that_is_not_answered_loses_its_turn(vpn: VpnNetwork) -> None:
    """1999's rules, as no ISAKMP was seen: six tries after the first contender, then it is squelched."""
    net = vpn.net
    server = vpn.ipsec(SERVER_ADDRESS)
    first, second = vpn.ipsec(INSIDE_ADDRESS), vpn.ipsec(SECOND_INSIDE)

    def sends(host: IpsecHost, spi: int, drops: dict[str, int] | None = None) -> None:
        """Send a packet; it must arrive, or be dropped so that there are these drops."""
        before = len(server.strays)
        host.send_esp((SERVER_ADDRESS, 500), spi_packet(spi))
        if drops is None:
            eventually(lambda: len(server.strays) == before + 1, what=f"the packet from {host.address}")
            assert server.strays[-1] == (EXTERNAL_ADDRESS, spi)
        else:
            eventually(lambda: net.drops() == drops, what=f"the drops {drops}")

    for _ in range(8):
        sends(first, 0x1111)
    sends(second, 0x2222, {"esp_blocked": 1})
    [waiting] = vpn.listed("waiting")
    assert (waiting["inside"], waiting["waits_for"], waiting["outbound_spi"]) == (SECOND_INSIDE, INSIDE_ADDRESS, 0x2222)
    for _ in range(5):
        sends(first, 0x1111)
    sends(first, 0x1111, {"esp_blocked": 1, "esp_squelched": 1})
    sends(second, 0x2222)
    sends(first, 0x1111, {"esp_blocked": 1, "esp_squelched": 2})
    sends(first, 0x3333, {"esp_blocked": 2, "esp_squelched": 2})
    said = net.fastmasq.errors()
    assert f"init {SECOND_INSIDE} -> {SERVER_ADDRESS} temporarily blocked by pending {INSIDE_ADDRESS} init" in said
    assert (
        f"init {INSIDE_ADDRESS} -> {SERVER_ADDRESS} SPI 1111 no response after 6 tries, unblocking & squelching" in said
    )


def test_e8_other_remotes_are_not_blocked(vpn: VpnNetwork) -> None:
    vpn.ipsec(SERVER_ADDRESS)
    other = vpn.ipsec(SECOND_SERVER)
    vpn.ipsec(INSIDE_ADDRESS).send_esp((SERVER_ADDRESS, 500), spi_packet(0x1111))
    connected(vpn, other, SECOND_INSIDE)
    assert vpn.net.drops() == {}


def test_e1_e15_spi_zero_is_discarded(vpn: VpnNetwork) -> None:
    server, inside = vpn.ipsec(SERVER_ADDRESS), vpn.ipsec(INSIDE_ADDRESS)
    inside.send_esp((SERVER_ADDRESS, 500), spi_packet(0))
    server.send_esp((EXTERNAL_ADDRESS, 500), spi_packet(0))
    eventually(lambda: vpn.net.drops() == {"esp_zero_spi": 2}, what="the drops")
    said = vpn.net.fastmasq.errors()
    assert f"ip_fw_masq_esp(): zero SPI from {INSIDE_ADDRESS} discarded" in said
    assert f"ip_fw_demasq_esp(): zero SPI from {SERVER_ADDRESS} discarded" in said
    assert vpn.strays() == []


@pytest.mark.parametrize("head", ["[vpn]\nipsec_parallel = false", 'compat = "2.2"'], ids=["setting", "compat"])
def test_e32_a_remote_belongs_to_one_host_without_parallel_sessions(net: Network, head: str) -> None:
    net.start(head)
    vpn = VpnNetwork(net)
    server, other = vpn.ipsec(SERVER_ADDRESS), vpn.ipsec(SECOND_SERVER)
    [peer] = connected(vpn, server, INSIDE_ADDRESS)
    second = vpn.ipsec(SECOND_INSIDE)
    second.send_isakmp((SERVER_ADDRESS, 500), Message(b"COOKIE-2", NO_COOKIE, 1, 2, 0, 0, bytes(20)))
    second.send_esp((SERVER_ADDRESS, 500), spi_packet(0x2222))
    eventually(lambda: net.drops() == {"parallel_disabled": 2}, what="the drops")
    assert "blocked: parallel sessions disabled" in net.fastmasq.errors()
    second.negotiate(SECOND_SERVER).exchange(2)
    both_ways((peer, server))
    assert len(server.peers) == 1 and len(other.peers) == 1


# --- cookies: K-5, K-7 to K-10 -----------------------------------------------------------------------------------


def test_k8_the_same_initiator_cookie_must_wait_for_the_answer(vpn: VpnNetwork) -> None:
    """While the first exchange is unanswered the second host's is dropped; afterwards both can be told apart."""
    net = vpn.net
    hosts = [vpn.ipsec(address) for address in CLIENTS]
    begins = Message(b"the same", NO_COOKIE, 1, 2, 0, 0, bytes(20))
    for host in hosts:
        host.send_isakmp((SERVER_ADDRESS, 500), begins)
    eventually(lambda: net.drops() == {"isakmp_collision": 1}, what="the drop")
    server = vpn.ipsec(SERVER_ADDRESS)
    peers = [host.negotiate(SERVER_ADDRESS, cookie=b"the same") for host in hosts]
    assert peers[0].responder != peers[1].responder
    both_ways(*((peer, server) for peer in peers))
    assert net.drops() == {"isakmp_collision": 1}


def test_k5_a_zero_cookie_is_told_and_passes(vpn: VpnNetwork) -> None:
    net = vpn.net
    inside, server = net.udp("inside", port=500), net.udp("server", SERVER_ADDRESS, 500)
    message = Message(NO_COOKIE, NO_COOKIE, 1, 5, 0, 1, bytes(20)).emit()
    inside.sendto(message, (SERVER_ADDRESS, 500))
    assert server.recvfrom(2048) == (message, (EXTERNAL_ADDRESS, 500))
    server.sendto(message, (EXTERNAL_ADDRESS, 500))
    assert inside.recvfrom(2048) == (message, (SERVER_ADDRESS, 500))
    assert f"ip_masq_out_get_isakmp(): zero cookie from {INSIDE_ADDRESS}" in net.fastmasq.errors()


def test_k10_a_phase_1_that_the_remote_begins_reaches_the_host_that_talked_last(net: Network) -> None:
    net.start()
    vpn = VpnNetwork(net)
    server, stranger = vpn.ipsec(SERVER_ADDRESS), vpn.ipsec(SECOND_SERVER)
    connected(vpn, server, *CLIENTS)
    stranger.send_isakmp((EXTERNAL_ADDRESS, 500), Message(b"stranger", NO_COOKIE, 1, 2, 0, 0, bytes(20)))
    eventually(lambda: net.drops() == {"isakmp_no_row": 1}, what="the drop of a stranger's")
    anew = server.negotiate(EXTERNAL_ADDRESS)
    anew.exchange(3)
    second = vpn.hosts[-1]
    assert second.address == SECOND_INSIDE and len(second.peers) == 2
    second.peer_of(anew.sa).exchange(3)
    assert "with unknown cookies sent to 10.0.0.3, which talked to it last" in net.fastmasq.errors()


# --- servers behind the gateway: K-9, E-24 -----------------------------------------------------------------------


@VERSIONS
def test_e24_a_server_behind_the_gateway_beside_clients(vpn: VpnNetwork, version: int) -> None:
    """Its first ESP packet finds it by its ISAKMP: with the forward of port 500 nothing else is needed."""
    inside_server = vpn.ipsec(THIRD_INSIDE)
    outside = [vpn.ipsec(address) for address in (SERVER_ADDRESS, SECOND_SERVER)]
    peers = connected(vpn, outside[0], *CLIENTS, version=version)
    incoming = outside[1].negotiate(EXTERNAL_ADDRESS, version=version)
    incoming.exchange(3)
    served = inside_server.peer_of(incoming.sa)
    served.exchange(3)
    with talking(incoming.answers, served.answers, *(peer.answers for peer in peers)):
        incoming.rekey()
        eventually(lambda: incoming.sas[-1].opened > 3, what="the new SA's use")
        served.rekey()
        eventually(lambda: incoming.sas[-1].opened > 3, what="the newer SA's use")
    assert (incoming.remote[0], served.remote[0]) == (EXTERNAL_ADDRESS, SECOND_SERVER)
    assert vpn.net.drops() == {}, "nobody has to wait"


def test_e24_a_redirect_of_esp_names_the_server(net: Network) -> None:
    net.start(f'{FORWARD}\n[[redirect]]\nprotocol = {ESP}\nto = "{THIRD_INSIDE}"\n\n[vpn]\nipsec_guess = false\n')
    vpn = VpnNetwork(net)
    inside_server, remote = vpn.ipsec(THIRD_INSIDE), vpn.ipsec(SERVER_ADDRESS)
    peer = remote.negotiate(EXTERNAL_ADDRESS)
    peer.exchange(3)
    inside_server.peer_of(peer.sa).exchange(3)
    assert vpn.undisturbed()


# --- what nobody can know: E-19 to E-22 --------------------------------------------------------------------------


def test_e20_an_unknown_spi_goes_to_all_that_talked_lately(vpn: VpnNetwork) -> None:
    server = vpn.ipsec(SERVER_ADDRESS)
    peers = connected(vpn, server, *CLIENTS)
    server.send_esp((EXTERNAL_ADDRESS, 500), spi_packet(0x9999, 70_000))
    for peer in peers:
        eventually(lambda peer=peer: peer.host.strays == [(SERVER_ADDRESS, 0x9999)], what="a copy at each host")
    both_ways(*((peer, server) for peer in peers))
    assert vpn.net.drops() == {}


def test_e21_without_guessing_it_goes_nowhere(net: Network) -> None:
    net.start("[vpn]\nipsec_guess = false")
    vpn = VpnNetwork(net)
    server = vpn.ipsec(SERVER_ADDRESS)
    connected(vpn, server, *CLIENTS)
    server.send_esp((EXTERNAL_ADDRESS, 500), spi_packet(0x9999, 70_000))
    eventually(lambda: net.drops() == {"esp_no_row": 1}, what="the drop")
    assert f"Inbound from {SERVER_ADDRESS} SPI 9999 has no masq table entry." in net.fastmasq.errors()
    assert vpn.strays() == []


def test_tunnels_survive_a_restart(vpn: VpnNetwork) -> None:
    """Everything that was known is gone; both clients send on, and their SPIs are found out again."""
    server = vpn.ipsec(SERVER_ADDRESS)
    peers = connected(vpn, server, *CLIENTS)
    vpn.net.fastmasq.remove()
    vpn.net.start()
    for peer in peers:
        peer.exchange(3)
    both_ways(*((peer, server) for peer in peers))
    assert Counter(row["inside"] for row in vpn.listed("sas", state="established")) == dict.fromkeys(CLIENTS, 1)


# --- addresses and errors: E-10, C-48 ----------------------------------------------------------------------------


def test_e10_tunnels_follow_a_new_address(vpn: VpnNetwork) -> None:
    """The server answers to where authentic packets come from, as it must for hosts that move."""
    net = vpn.net
    server = vpn.ipsec(SERVER_ADDRESS)
    peers = connected(vpn, server, *CLIENTS)
    net.ip("gateway", "address flush dev eth1")
    net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
    net.ip("gateway", f"route add default via {ROUTER_ADDRESS}")
    eventually(lambda: net.status()["external"]["address"] == NEW_ADDRESS, what="the new address")
    for peer in peers:
        peer.exchange(2)
    both_ways(*((peer, server) for peer in peers))
    assert {other.remote for other in server.peers} == {(NEW_ADDRESS, 500)}
    for peer in peers:
        peer.rekey()
        peer.exchange(2)
    assert {row["external"] for kind in ("sas", "exchanges") for row in vpn.listed(kind)} == {NEW_ADDRESS}
    assert f"change maddr from {EXTERNAL_ADDRESS} to {NEW_ADDRESS}" in net.fastmasq.errors()


@pytest.mark.parametrize("what", ["esp", "isakmp"])
def test_c48_an_error_reaches_the_host_that_it_is_about(vpn: VpnNetwork, what: str) -> None:
    server = vpn.ipsec(SERVER_ADDRESS)
    first, second = connected(vpn, server, *CLIENTS)
    both_ways((first, server), (second, server))
    heard = vpn.net.sniff("inside2", "eth0")
    through = second.host.esp if what == "esp" else second.host.udp
    through.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)
    if what == "esp":
        second.ping()
    else:
        second.inform()
    eventually(lambda: heard.of(protocol=socket.IPPROTO_ICMP, sent=False), what="the error")
    [error] = heard.of(protocol=socket.IPPROTO_ICMP, sent=False)
    quote = error.payload[8:]
    assert (error.source, error.icmp_type_and_code) == (ROUTER_ADDRESS, (11, 0))
    assert (socket.inet_ntoa(quote[12:16]), socket.inet_ntoa(quote[16:20])) == (SECOND_INSIDE, SERVER_ADDRESS)
    expected = struct.pack(">I", second.sa.spi_out) if what == "esp" else struct.pack(">HH", 500, 500)
    assert quote[20:24] == expected


# --- what is logged: H-82 ---------------------------------------------------------------------------------------


def test_h_82_details_are_logged_while_they_are_asked_for(vpn: VpnNetwork) -> None:
    fastmasq = vpn.net.fastmasq
    started = f"fastmasq: debug: ip_fw_masq_esp(): init {{}} -> {SERVER_ADDRESS} SPI"
    server = vpn.ipsec(SERVER_ADDRESS)
    connected(vpn, server, INSIDE_ADDRESS)
    assert "debug" not in fastmasq.errors()
    fastmasq.run_command("log", "vpn", "debug")
    connected(vpn, server, SECOND_INSIDE)
    eventually(lambda: started.format(SECOND_INSIDE) in fastmasq.errors(), what="the line about the start")
    assert started.format(INSIDE_ADDRESS) not in fastmasq.errors()
    fastmasq.run_command("log", "vpn", "debug", "--for", "10ms")
    eventually(lambda: "log level of vpn: info again" in fastmasq.errors(), what="the level of the start")
    connected(vpn, server, THIRD_INSIDE)
    assert started.format(THIRD_INSIDE) not in fastmasq.errors()


# --- NAT traversal and AH: section 4.6, 4.7, C-30 ----------------------------------------------------------------


@VERSIONS
def test_rfc3948_nat_traversal_is_plain_udp(vpn: VpnNetwork, version: int) -> None:
    """Both clients use port 4500, checksums are zero, one octet keeps the mapping alive."""
    net = vpn.net
    heard = net.sniff("router", "eth0")
    server = vpn.ipsec(SERVER_ADDRESS, natt=True)
    peers = [vpn.ipsec(address, natt=True).negotiate(SERVER_ADDRESS, version=version) for address in CLIENTS]
    both_ways(*((peer, server) for peer in peers))
    for peer in peers:
        peer.host.keep_alive(peer)
    with talking(*(peer.answers for peer in peers)):
        for peer in peers:
            server.peer_of(peer.sa).rekey()
            eventually(lambda peer=peer: peer.sas[-1].opened > 2, what="the new SA's use")
    ports = {other.remote for other in server.peers}
    assert len(ports) == 2 and {address for address, _ in ports} == {EXTERNAL_ADDRESS}
    kept = [each for each in heard.of(source=EXTERNAL_ADDRESS) if each.payload[8:] == b"\xff"]
    assert {each.source_port for each in kept} == {port for _, port in ports}
    assert {each.payload[6:8] for each in heard.of(protocol=socket.IPPROTO_UDP)} == {b"\0\0"}
    assert len(net.sessions(protocol="udp")) == 2
    rows = vpn.listed("natt", remote=f"{SERVER_ADDRESS}:4500", state="active", missing="")
    assert {(row["inside"], row["external"]) for row in rows} == {
        (f"{peer.host.address}:4500", f"{EXTERNAL_ADDRESS}:{port}")
        for peer, (_, port) in zip(peers, [server.peer_of(peer.sa).remote for peer in peers], strict=True)
    }
    assert all(row["packets_out"] >= 6 and row["packets_in"] >= 6 for row in rows)
    shown = net.fastmasq.run_command("vpn")
    assert "IPsec by NAT traversal" in shown and "0 calls, 0 SAs, 2 by NAT traversal" in shown
    assert vpn.undisturbed() and [peer.repeated for peer in peers] == [0, 0]


def test_pf5_nat_traversal_reaches_a_server_inside_by_the_external_address(net: Network) -> None:
    net.start(FORWARD.replace("500", "4500"))
    vpn = VpnNetwork(net)
    server = vpn.ipsec(THIRD_INSIDE, natt=True)
    peers = [vpn.ipsec(address, natt=True).negotiate(EXTERNAL_ADDRESS) for address in CLIENTS]
    both_ways(*((peer, server) for peer in peers))
    assert {other.remote[0] for other in server.peers} == {EXTERNAL_ADDRESS}
    assert vpn.undisturbed()


def test_c30_ah_is_refused_by_name(vpn: VpnNetwork) -> None:
    """Outbound it is dropped and its sender is not left in the dark; inbound it is nobody's inside."""
    net = vpn.net
    heard, inside = net.sniff("router", "eth0"), net.sniff("inside", "eth0")
    for address, remote in ((INSIDE_ADDRESS, SERVER_ADDRESS), (SERVER_ADDRESS, EXTERNAL_ADDRESS)):
        raw = net.raw(HOSTS[address], AH)
        raw.sendto(struct.pack(">BBHII", 50, 4, 0, 0x1234, 1) + bytes(12), (remote, 0))
    eventually(lambda: heard.of(protocol=AH, sent=True), what="the server's packet on its way")
    eventually(lambda: net.drops().get("ah_not_masqueraded") == 1, what="the drop")
    assert heard.of(protocol=AH, source=EXTERNAL_ADDRESS) == heard.of(protocol=AH, source=INSIDE_ADDRESS) == []
    assert inside.of(protocol=AH, sent=False) == []
