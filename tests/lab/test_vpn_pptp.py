"""PPTP through a running fastmasq, spoken by real hosts: rules P-1 to P-50 of the original systems, RFC 2637."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers import pptp as messages

from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS
from fastmasq.wire.numbers import GRE, PPTP_PORT
from tests.support.lab_network import INSIDE_ADDRESS, ROUTER_ADDRESS, Network, Sniffer, eventually, send_and_compare
from tests.support.pptp_hosts import BUSY, Call, GrePacket, PptpHost
from tests.support.speakers import talking
from tests.support.vpn_network import HOSTS, SECOND_INSIDE, SECOND_SERVER, THIRD_INSIDE, VpnNetwork

NEW_ADDRESS = "200.200.200.77"
FORWARD = f"""
[[forward]]
protocol = "tcp"
listen = "eth1:{PPTP_PORT}"
to = "{THIRD_INSIDE}:{PPTP_PORT}"
"""
CLASSIC_IDS = range(61000, 65096)  # the external Call IDs that the kernels gave


@pytest.fixture
def vpn(net: Network) -> VpnNetwork:
    net.start(FORWARD)
    return VpnNetwork(net)


def far_end(call: Call, host: PptpHost) -> Call:
    """Return the other end of a call, at that host."""
    return next(each for each in host.calls() if each.own_id == call.peer_id)


def both_ways(*calls: tuple[Call, PptpHost], count: int = 3) -> None:
    """Have each call carry traffic that each of its ends begins."""
    for call, host in calls:
        call.exchange(count)
        far_end(call, host).exchange(count)


def gre_ids(heard: Sniffer, **wanted: object) -> set[int]:
    """Return the Call IDs of the GRE packets heard."""
    return {GrePacket.parse(each.payload).call_id for each in heard.of(protocol=GRE, **wanted)}


# --- calls: P-1, P-40 to P-44, P-49 ------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", ["v2", "v3", "socket"])
def test_p49_two_clients_and_a_server_with_packets(net: Network, ring: str) -> None:
    """Two clients with one Call ID and a server behind the gateway, at once: GRE in six directions, and one end."""
    net.start(f'{FORWARD}\n[rings]\nmode = "{ring}"')
    vpn = VpnNetwork(net)
    server, other = vpn.pptp_server(), vpn.pptp_server(SECOND_SERVER)
    first, second, inside_server = vpn.pptp(INSIDE_ADDRESS), vpn.pptp(SECOND_INSIDE), vpn.pptp_server(THIRD_INSIDE)
    taken = first.dial(SECOND_SERVER, 0x11)  # so that the server's own number, 0x11, is not free with that remote
    heard = net.sniff("router", "eth0")
    calls = [host.dial(SERVER_ADDRESS, 0x4000) for host in (first, second)]
    assert [call.peer_id for call in calls] == [0x11, 0x12]
    seen = [far_end(call, server).peer_id for call in calls]
    assert seen[0] == 0x4000 and seen[1] in CLASSIC_IDS
    asked = server.connections[1].wait_for(messages.PPTPOutgoingCallRequest)
    assert asked.call_id == seen[1], "the server knows the second client by the other number"

    incoming = other.dial(EXTERNAL_ADDRESS, 0x4000)
    assert incoming.peer_id in CLASSIC_IDS and incoming.peer_id != seen[1]
    served = inside_server.calls()[0]
    assert (served.own_id, served.peer_id) == (0x11, 0x4000)

    both_ways((calls[0], server), (calls[1], server), (taken, other))
    incoming.exchange(3)
    served.exchange(3)
    assert gre_ids(heard, source=SERVER_ADDRESS) == {0x4000, seen[1]}
    assert gre_ids(heard, source=EXTERNAL_ADDRESS, destination=SERVER_ADDRESS) == {0x11, 0x12}
    assert gre_ids(heard, source=EXTERNAL_ADDRESS, destination=SECOND_SERVER) == {0x4000, taken.peer_id}
    assert heard.of(source=INSIDE_ADDRESS) == heard.of(source=SECOND_INSIDE) == heard.of(source=THIRD_INSIDE) == []

    far_end(calls[1], server).disconnect()
    eventually(lambda: calls[1].disconnected, what="the disconnect at the second client")
    assert vpn.call_states() == {
        (INSIDE_ADDRESS, SECOND_SERVER, 0x11): "established",
        (INSIDE_ADDRESS, SERVER_ADDRESS, 0x4000): "established",
        (SECOND_INSIDE, SERVER_ADDRESS, seen[1]): "closing",
        (THIRD_INSIDE, SECOND_SERVER, incoming.peer_id): "established",
    }
    both_ways((calls[0], server))
    incoming.exchange(3)
    assert vpn.undisturbed()


def test_p40_many_clients_with_one_call_id(vpn: VpnNetwork) -> None:
    """Equal Call IDs from three hosts, and for two servers: each pair keeps its own number if it is free there."""
    server, other = vpn.pptp_server(), vpn.pptp_server(SECOND_SERVER)
    clients = [vpn.pptp(address) for address in (INSIDE_ADDRESS, SECOND_INSIDE, THIRD_INSIDE)]
    calls = [(client.dial(SERVER_ADDRESS, 7), server) for client in clients]
    calls += [(client.dial(SECOND_SERVER, 7), other) for client in clients]
    both_ways(*calls)
    for host in (server, other):
        first, *others = [call.peer_id for call in host.calls()]
        assert first == 7 and len(set(others)) == 2 and set(others) < set(CLASSIC_IDS)
    assert vpn.undisturbed()
    assert [row["packets_out"] for row in vpn.listed("calls")] == [row["packets_in"] for row in vpn.listed("calls")]


def test_p44_several_calls_on_one_control_connection(vpn: VpnNetwork) -> None:
    server = vpn.pptp_server()
    first, second = vpn.pptp(INSIDE_ADDRESS), vpn.pptp(SECOND_INSIDE)
    calls = []
    for client in (first, second):
        connection = client.connect(SERVER_ADDRESS)
        connection.start()
        calls += [connection.call(call_id) for call_id in (0x4000, 1, 65535)]
    both_ways(*((call, server) for call in calls))
    assert [len(connection.calls) for connection in server.connections] == [3, 3]
    calls[1].clear()
    calls[3].clear()
    both_ways(*((call, server) for call in calls if not call.disconnected))
    assert sorted(vpn.call_states().values()) == ["closing"] * 2 + ["established"] * 4
    assert vpn.undisturbed()


def test_p1_calls_that_the_server_offers(vpn: VpnNetwork) -> None:
    """Roles do not matter: the remote asks, the inside host's own number is in its reply."""
    server = vpn.pptp_server()
    for address in (INSIDE_ADDRESS, SECOND_INSIDE):
        vpn.pptp(address).connect(SERVER_ADDRESS).start()
    calls = [connection.offer(5 + number) for number, connection in enumerate(server.connections)]
    first, second = [call.peer_id for call in calls]
    assert first == 0x11 and second in CLASSIC_IDS, "both clients have answered with 0x11"
    for call, client in zip(calls, vpn.hosts[1:], strict=True):
        client.connections[0].wait_for(messages.PPTPIncomingCallConnected, peer_call_id=0x11)
        call.exchange(3)
        client.calls()[0].exchange(3)
    assert vpn.undisturbed()


def test_p24_what_concerns_a_call_reaches_the_right_client(vpn: VpnNetwork) -> None:
    """Set-Link-Info and WAN-Error-Notify name the receiver's number, which comes back as the client's own."""
    server = vpn.pptp_server()
    calls = [vpn.pptp(address).dial(SERVER_ADDRESS, 9) for address in (INSIDE_ADDRESS, SECOND_INSIDE)]
    for call in calls:
        call.set_link_info()
        far_end(call, server).notify_wan_error()
        eventually(lambda call=call: call.wan_errors == 1, what="the error at its client")
        eventually(lambda call=call: far_end(call, server).link_infos == [(0xFFFFFFFF, 0)], what="the link's settings")
    for call in calls:
        call.connection.echo()
        far_end(call, server).connection.echo()
    assert {len(call.connection.heard(messages.PPTPWANErrorNotify, peer_call_id=9)) for call in calls} == {1}


def test_p44_frames_larger_than_the_mtu(vpn: VpnNetwork) -> None:
    server = vpn.pptp_server()
    calls = [vpn.pptp(address).dial(SERVER_ADDRESS, 9) for address in (INSIDE_ADDRESS, SECOND_INSIDE)]
    for call in (*calls, *(far_end(call, server) for call in calls)):
        number = call.ask(4000)
        eventually(lambda call=call, number=number: number in call.replies, what="an answer in fragments")
    assert vpn.undisturbed()


def test_h10_ordinary_traffic_goes_on_beside_calls(vpn: VpnNetwork) -> None:
    server = vpn.pptp_server()
    calls = [vpn.pptp(address).dial(SERVER_ADDRESS, 9) for address in (INSIDE_ADDRESS, SECOND_INSIDE)]
    near, far = vpn.net.pair()
    with talking(*(call.answers for call in calls), *(far_end(call, server).answers for call in calls)):
        send_and_compare(near, far, 8 << 20)
        send_and_compare(far, near, 8 << 20)
    assert vpn.strays() == []


# --- the control stream: P-41, P-42 ------------------------------------------------------------------------------


def clashing(vpn: VpnNetwork, prepare: Callable[[Any], None]) -> tuple[Call, PptpHost]:
    """Make a call whose Call ID clashes with another's, on a connection that has been prepared at both ends."""
    server = vpn.pptp_server()
    vpn.pptp(INSIDE_ADDRESS).dial(SERVER_ADDRESS, 0x4000)
    connection = vpn.pptp(SECOND_INSIDE).connect(SERVER_ADDRESS)
    eventually(lambda: len(server.connections) == 2)
    for end in (connection, server.connections[1]):
        prepare(end)
    connection.start()
    return connection.call(0x4000), server


def is_followed(vpn: VpnNetwork) -> bool:
    return [row["missing"] for row in vpn.listed("connections")] == ["", ""]


@pytest.mark.parametrize(
    "cuts",
    [(1,), (12,), (13,), (15,), (14, 15, 16), tuple(range(1, 14)), tuple(range(1, 220))],
    ids=["length", "header", "call-id", "peer-call-id", "ids", "header-octets", "octets"],
)
def test_p42_messages_in_pieces(vpn: VpnNetwork, cuts: tuple[int, ...]) -> None:
    call, server = clashing(vpn, lambda end: setattr(end, "cuts", cuts))
    both_ways((call, server), (vpn.hosts[1].calls()[0], server))
    assert far_end(call, server).peer_id != 0x4000
    call.clear()
    eventually(lambda: far_end(call, server).disconnected, what="the server's own note of the disconnect it has sent")
    assert is_followed(vpn) and vpn.strays() == []
    too_many = {"punts_full", "stream_out_of_order"} if len(cuts) > 16 else set()  # more than may wait at once
    assert vpn.net.drops().keys() <= too_many


def test_p41_a_request_that_is_repeated_gets_the_same_id(vpn: VpnNetwork) -> None:
    call, server = clashing(vpn, lambda end: setattr(end, "copies", 3))
    both_ways((call, server))
    requests = server.connections[1].heard(messages.PPTPOutgoingCallRequest)
    assert {request.call_id for request in requests} == {far_end(call, server).peer_id}
    eventually(lambda: len(call.connection.heard(messages.PPTPOutgoingCallReply, peer_call_id=0x4000)) == 9)
    assert len(requests) == 3 and len(vpn.listed("calls")) == 2 and vpn.undisturbed()


def test_p42_messages_that_share_a_segment(vpn: VpnNetwork) -> None:
    server = vpn.pptp_server()
    vpn.pptp(INSIDE_ADDRESS).dial(SERVER_ADDRESS, 2)
    connection = vpn.pptp(SECOND_INSIDE).connect(SERVER_ADDRESS)
    with connection.joined():
        connection.send(messages.PPTPStartControlConnectionRequest())
        calls = [connection.begin_call(call_id) for call_id in (1, 2, 3)]
    eventually(lambda: all(call.result for call in calls), what="replies")
    both_ways(*((call, server) for call in calls))
    assert is_followed(vpn) and vpn.undisturbed()


@pytest.mark.parametrize("lost", [f"tcp dport {PPTP_PORT}", f"tcp sport {PPTP_PORT}"], ids=["out", "back"])
def test_p42_segments_that_are_lost_are_repeated(vpn: VpnNetwork, lost: str) -> None:
    """The kernels' TCP sends again what the router loses, behind holes and together with what follows."""
    server = vpn.pptp_server()
    vpn.pptp(INSIDE_ADDRESS).dial(SERVER_ADDRESS, 2)
    rule = f"{lost} numgen inc mod 3 0 drop"
    vpn.net.run("router", "nft", f"table ip lossy {{ chain c {{ type filter hook forward priority 0; {rule}; }}; }}")
    connection = vpn.pptp(SECOND_INSIDE).connect(SERVER_ADDRESS)
    connection.start()
    connection.cuts = server.connections[1].cuts = (5, 13, 14, 40)
    calls = [connection.begin_call(call_id) for call_id in (1, 2, 3)]
    eventually(lambda: all(call.result for call in calls), 30, "replies")
    vpn.net.run("router", "nft", "delete table ip lossy")
    both_ways(*((call, server) for call in calls))
    assert is_followed(vpn) and vpn.strays() == []
    assert set(vpn.net.drops()) <= {"stream_out_of_order"}


def test_p42_what_is_no_pptp_is_passed_on(vpn: VpnNetwork) -> None:
    """Lost sync never breaks the connection, and is said once."""
    net = vpn.net
    listener = net.listen("server", SERVER_ADDRESS, PPTP_PORT)
    near = net.connect("inside", (SERVER_ADDRESS, PPTP_PORT))
    far = net.keep(listener.accept()[0])
    send_and_compare(near, far, 4 << 20)
    send_and_compare(far, near, 4 << 20)
    assert net.drops() == {}
    [row] = vpn.listed("connections")
    assert "could not be followed" in row["missing"]


def test_p42_octets_that_break_the_protocol_arrive_unchanged(vpn: VpnNetwork) -> None:
    """After a good start one side sends garbage: it arrives, and what came before stays as it is."""
    net = vpn.net
    listener = net.listen("server", SERVER_ADDRESS, PPTP_PORT)
    near = net.connect("inside", (SERVER_ADDRESS, PPTP_PORT))
    far = net.keep(listener.accept()[0])
    near.sendall(bytes(messages.PPTPStartControlConnectionRequest()))
    garbage = b"\x00\x10 nothing of the kind" * 100
    near.sendall(garbage)
    received = b""
    while len(received) < 156 + len(garbage):
        received += far.recv(65536)
    assert received[156:] == garbage
    send_and_compare(near, far, 1 << 20)
    send_and_compare(far, near, 1 << 20)


# --- ends: P-23, P-47 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["clear", "disconnect", "stop", "server-stop", "fin", "rst", "server-rst"])
def test_p47_every_way_to_end_a_call(vpn: VpnNetwork, way: str) -> None:
    """A call that has ended is retired, however it was; another client's with the same Call ID goes on."""
    server = vpn.pptp_server()
    first, second = [vpn.pptp(address).dial(SERVER_ADDRESS, 7) for address in (INSIDE_ADDRESS, SECOND_INSIDE)]
    both_ways((first, server), (second, server))
    other = far_end(second, server)
    ends = {
        "clear": second.clear,
        "disconnect": other.disconnect,
        "stop": second.connection.stop,
        "server-stop": other.connection.stop,
        "fin": second.connection.close,
        "rst": second.connection.reset,
        "server-rst": other.connection.reset,
    }
    ends[way]()
    expected = {
        (INSIDE_ADDRESS, SERVER_ADDRESS, 7): "established",
        (SECOND_INSIDE, SERVER_ADDRESS, other.peer_id): "closing",
    }
    eventually(lambda: vpn.call_states() == expected, what="the end of the second client's call")
    both_ways((first, server))


def test_p47_a_client_that_dials_again_gets_through(vpn: VpnNetwork) -> None:
    server = vpn.pptp_server()
    client = vpn.pptp(INSIDE_ADDRESS)
    vpn.pptp(SECOND_INSIDE).dial(SERVER_ADDRESS, 7)
    for end in (Call.clear, lambda call: call.connection.stop(), lambda call: call.connection.reset()):
        call = client.dial(SERVER_ADDRESS, 7)
        both_ways((call, server))
        end(call)
    assert vpn.undisturbed()


def test_a_call_that_is_refused_is_told(vpn: VpnNetwork) -> None:
    server = vpn.pptp_server()
    connection = vpn.pptp(INSIDE_ADDRESS).connect(SERVER_ADDRESS)
    connection.start()
    server.connections[0].answer = BUSY
    call = connection.begin_call(5)
    eventually(lambda: call.result == BUSY)
    eventually(lambda: vpn.listed("calls", state="closing"), what="the row's end")


# --- GRE without a call: P-44 to P-46, 5.6 -----------------------------------------------------------------------


def raw_gre(net: Network, address: str) -> socket.socket:
    made = net.raw(HOSTS[address], GRE)
    made.bind((address, 0))
    return made


def hears(receiver: socket.socket, call_id: int) -> str:
    """Return the source of the next GRE packet, which must have this Call ID."""
    packet, (source, _) = receiver.recvfrom(2048)
    assert GrePacket.parse(packet[20:]).call_id == call_id
    return source


def frame(call_id: int) -> bytes:
    return GrePacket(call_id, 0, None, b"a PPP frame").emit()


def test_p46_the_only_host_of_a_remote_needs_no_call(vpn: VpnNetwork) -> None:
    """The single-client mode of 1999: GRE passes with its Call IDs as they are, one inside host for each remote."""
    net = vpn.net
    inside, second, server, other = [
        raw_gre(net, each) for each in (INSIDE_ADDRESS, SECOND_INSIDE, SERVER_ADDRESS, SECOND_SERVER)
    ]
    for number in (1, 2, 3):
        inside.sendto(frame(number), (SERVER_ADDRESS, 0))
        assert hears(server, number) == EXTERNAL_ADDRESS
        server.sendto(frame(100 + number), (EXTERNAL_ADDRESS, 0))
        assert hears(inside, 100 + number) == SERVER_ADDRESS
    second.sendto(frame(1), (SERVER_ADDRESS, 0))
    eventually(lambda: net.drops() == {"gre_other_host": 1}, what="the drop of the second host's")
    assert "Outbound GRE to 199.0.0.1 has no masq table entry" in net.fastmasq.errors()
    second.sendto(frame(1), (SECOND_SERVER, 0))
    assert hears(other, 1) == EXTERNAL_ADDRESS
    assert [row["state"] for row in vpn.listed("calls")] == ["passthrough"] * 2


def test_p46_gre_goes_to_the_only_host_with_a_control_connection(vpn: VpnNetwork) -> None:
    """The control connection lost sync, so no call is known; there is only one host that it can be for."""
    net = vpn.net
    vpn.pptp_server()
    inside, server = raw_gre(net, INSIDE_ADDRESS), raw_gre(net, SERVER_ADDRESS)
    vpn.pptp(INSIDE_ADDRESS).connect(SERVER_ADDRESS).start()
    server.sendto(frame(0x4711), (EXTERNAL_ADDRESS, 0))
    assert hears(inside, 0x4711) == SERVER_ADDRESS


def test_p45_a_stranger_cannot_speak_for_the_server(vpn: VpnNetwork) -> None:
    server = vpn.pptp_server()
    call = vpn.pptp(INSIDE_ADDRESS).dial(SERVER_ADDRESS, 7)
    stranger = raw_gre(vpn.net, SECOND_SERVER)
    stranger.sendto(frame(7), (EXTERNAL_ADDRESS, 0))
    eventually(lambda: vpn.net.drops() == {"gre_wrong_source": 1}, what="the drop")
    stranger.sendto(frame(8), (EXTERNAL_ADDRESS, 0))
    eventually(lambda: vpn.net.drops() == {"gre_wrong_source": 1, "gre_no_row": 1}, what="the other drop")
    both_ways((call, server))
    assert vpn.strays() == []


def test_5_6_a_redirect_of_gre_serves_what_no_call_explains(net: Network) -> None:
    net.start(f'[[redirect]]\nprotocol = {GRE}\nto = "{THIRD_INSIDE}"\n')
    vpn = VpnNetwork(net)
    server = vpn.pptp_server()
    call = vpn.pptp(INSIDE_ADDRESS).dial(SERVER_ADDRESS, 7)
    third, other = raw_gre(net, THIRD_INSIDE), raw_gre(net, SECOND_SERVER)
    other.sendto(frame(9), (EXTERNAL_ADDRESS, 0))
    assert hears(third, 9) == SECOND_SERVER
    third.sendto(frame(10), (SECOND_SERVER, 0))
    assert hears(other, 10) == EXTERNAL_ADDRESS
    both_ways((call, server))
    assert vpn.undisturbed()


# --- a server inside, called from inside by the external address: PF-5 --------------------------------------------


def test_pf5_clients_inside_reach_the_server_by_the_external_address(vpn: VpnNetwork) -> None:
    """Two inside clients, one of them the server's own host, and one outside, all with one Call ID."""
    net = vpn.net
    inside_server = vpn.pptp_server(THIRD_INSIDE)
    router, near, far = (net.sniff(host, "eth0") for host in ("router", "inside", "inside2"))
    clients = [vpn.pptp(address) for address in (INSIDE_ADDRESS, SECOND_INSIDE)]
    calls = [client.dial(EXTERNAL_ADDRESS, 7) for client in clients]
    assert router.of(protocol=GRE) == [] and near.of(source=THIRD_INSIDE) == far.of(source=INSIDE_ADDRESS) == []
    outside = vpn.pptp(SERVER_ADDRESS).dial(EXTERNAL_ADDRESS, 7)
    served = inside_server.calls()
    for ends in zip([*calls, outside], served, strict=True):
        for call in ends:
            call.exchange(3)
    assert [call.connection.remote for call in served] == [EXTERNAL_ADDRESS, EXTERNAL_ADDRESS, SERVER_ADDRESS]
    assert len({call.peer_id for call in served[:2]} | {call.peer_id for call in calls}) == 4, "one space of numbers"
    assert near.of(source=THIRD_INSIDE) == far.of(source=INSIDE_ADDRESS) == [], "each sees the external address"
    second = calls[0].connection.call(8)
    offered = served[1].connection.offer(9)
    answering = next(each for each in clients[1].calls() if each not in calls)
    for call in (second, inside_server.calls()[-1], offered, answering):
        call.exchange(3)
    with talking(*(call.answers for call in (*calls, second, offered, *served))):
        for connection in (calls[0].connection, served[1].connection):
            connection.echo()
    served[0].disconnect()
    eventually(lambda: calls[0].disconnected, what="the disconnect at the client")
    second.exchange(2)
    assert sorted(row["state"] for row in vpn.listed("calls")) == ["closing"] * 2 + ["established"] * 7
    assert [row["missing"] for row in vpn.listed("connections")] == [""] * 5
    assert vpn.undisturbed()


def test_pf5_pf4_the_forward_may_listen_on_another_address(net: Network) -> None:
    """The client's external address is the usual one then, and the server's that of its forward."""
    net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
    net.start(FORWARD.replace("eth1:", f"{NEW_ADDRESS}:"))
    vpn = VpnNetwork(net)
    inside_server = vpn.pptp_server(THIRD_INSIDE)
    call = vpn.pptp(INSIDE_ADDRESS).dial(NEW_ADDRESS, 7)
    [served] = inside_server.calls()
    call.exchange(3)
    served.exchange(3)
    assert served.connection.remote == EXTERNAL_ADDRESS
    assert {row["external"] for row in vpn.listed("calls")} == {EXTERNAL_ADDRESS, NEW_ADDRESS}
    assert vpn.undisturbed()


def test_pf5_p42_call_ids_that_turn_round_may_be_cut_anywhere(vpn: VpnNetwork) -> None:
    inside_server, client = vpn.pptp_server(THIRD_INSIDE), vpn.pptp(INSIDE_ADDRESS)
    taken = vpn.pptp(SECOND_INSIDE).dial(EXTERNAL_ADDRESS, 7)
    for cut in (2, 12, 13, 14, 15):
        connection = client.connect(EXTERNAL_ADDRESS)
        connection.cuts = (cut,)
        connection.start()
        inside_server.connections[-1].cuts = (cut,)
        call = connection.call(7)
        call.exchange(2)
        inside_server.calls()[-1].exchange(2)
        connection.stop()
    taken.exchange(2)
    assert vpn.undisturbed()


def test_pf5_p47_the_end_of_a_connection_that_turns_round_ends_its_calls_at_both_ends(vpn: VpnNetwork) -> None:
    vpn.pptp_server(THIRD_INSIDE)
    ends = ("reset", "close", "stop")
    calls = [vpn.pptp(INSIDE_ADDRESS).dial(EXTERNAL_ADDRESS, 7)]
    calls += [calls[0].connection.host.dial(EXTERNAL_ADDRESS, 7) for _ in ends[1:]]
    for call, end in zip(calls, ends, strict=True):
        getattr(call.connection, end)()
    eventually(
        lambda: [row["state"] for row in vpn.listed("calls")] == ["closing"] * 6,
        what="the end of both rows of every call",
    )


def test_pf5_p50_an_error_about_gre_that_turned_round_reaches_its_sender(vpn: VpnNetwork) -> None:
    """The server's host refuses protocol 47; the client hears of its packet as it sent it."""
    net = vpn.net
    inside_server = vpn.pptp_server(THIRD_INSIDE)
    vpn.pptp(SECOND_INSIDE).dial(EXTERNAL_ADDRESS, 0x12)  # so that the server's second number is not free
    call = vpn.pptp(INSIDE_ADDRESS).dial(EXTERNAL_ADDRESS, 7)
    call.exchange(1)
    assert call.peer_id != inside_server.calls()[-1].own_id
    refusal = "ip protocol gre reject with icmp type prot-unreachable"
    net.run("inside2", "nft", f"table ip deaf {{ chain c {{ type filter hook input priority 0; {refusal}; }}; }}")
    heard = net.sniff("inside", "eth0")
    call.ask()
    eventually(lambda: heard.of(protocol=socket.IPPROTO_ICMP, sent=False), what="the error")
    [error] = heard.of(protocol=socket.IPPROTO_ICMP, sent=False)
    quote = error.payload[8:]
    assert (error.source, error.icmp_type_and_code) == (EXTERNAL_ADDRESS, (3, 2))
    assert (socket.inet_ntoa(quote[12:16]), socket.inet_ntoa(quote[16:20])) == (INSIDE_ADDRESS, EXTERNAL_ADDRESS)
    assert struct.unpack_from(">H", quote, 26) == (call.peer_id,)


# --- errors and addresses: P-28, P-50 ----------------------------------------------------------------------------


def test_p50_an_error_about_gre_reaches_the_client_with_its_own_ids(vpn: VpnNetwork) -> None:
    """The router reports a frame whose time is exceeded; the quote is the packet as the client sent it."""
    server = vpn.pptp_server()
    calls = [vpn.pptp(address).dial(SERVER_ADDRESS, 7) for address in (INSIDE_ADDRESS, SECOND_INSIDE)]
    both_ways(*((call, server) for call in calls))
    heard = vpn.net.sniff("inside2", "eth0")
    vpn.hosts[2].gre.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 2)
    calls[1].ask()
    eventually(lambda: heard.of(protocol=socket.IPPROTO_ICMP, sent=False), what="the error")
    [error] = heard.of(protocol=socket.IPPROTO_ICMP, sent=False)
    quote = error.payload[8:]
    assert (error.source, error.icmp_type_and_code) == (ROUTER_ADDRESS, (11, 0))
    assert (socket.inet_ntoa(quote[12:16]), socket.inet_ntoa(quote[16:20])) == (SECOND_INSIDE, SERVER_ADDRESS)
    assert struct.unpack_from(">HH", quote, 22) == (0x880B, 64)
    assert struct.unpack_from(">H", quote, 26) == (calls[1].peer_id,)


def test_p50_an_error_about_inbound_gre_reaches_the_server_with_the_ids_it_knows(vpn: VpnNetwork) -> None:
    """The second client's host refuses protocol 47; the server hears of its packet, not of the client's form of it."""
    server = vpn.pptp_server()
    calls = [vpn.pptp(address).dial(SERVER_ADDRESS, 7) for address in (INSIDE_ADDRESS, SECOND_INSIDE)]
    refusal = "ip protocol gre reject with icmp type prot-unreachable"
    vpn.net.run("inside2", "nft", f"table ip deaf {{ chain c {{ type filter hook input priority 0; {refusal}; }}; }}")
    heard = vpn.net.sniff("server", "eth0")
    far = far_end(calls[1], server)
    far.ask()
    eventually(lambda: heard.of(protocol=socket.IPPROTO_ICMP, sent=False), what="the error")
    [error] = heard.of(protocol=socket.IPPROTO_ICMP, sent=False)
    quote = error.payload[8:]
    assert (error.source, error.icmp_type_and_code) == (EXTERNAL_ADDRESS, (3, 2))
    assert (socket.inet_ntoa(quote[12:16]), socket.inet_ntoa(quote[16:20])) == (SERVER_ADDRESS, EXTERNAL_ADDRESS)
    assert struct.unpack_from(">H", quote, 26) == (far.peer_id,)


def test_p28_calls_are_dialled_again_after_a_change_of_address(vpn: VpnNetwork) -> None:
    """The control connection is reset, as every TCP connection is; the next call is on the new address."""
    net = vpn.net
    server = vpn.pptp_server()
    clients = [vpn.pptp(address) for address in (INSIDE_ADDRESS, SECOND_INSIDE)]
    for client in clients:
        client.dial(SERVER_ADDRESS, 7)
    net.ip("gateway", "address flush dev eth1")
    net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
    net.ip("gateway", f"route add default via {ROUTER_ADDRESS}")
    eventually(lambda: all(client.connections[0].ended for client in clients), what="the resets")
    eventually(lambda: net.status()["external"]["address"] == NEW_ADDRESS, what="the new address")
    calls = [client.dial(SERVER_ADDRESS, 7) for client in clients]
    both_ways(*((call, server) for call in calls))
    assert {connection.remote for connection in server.connections[2:]} == {NEW_ADDRESS}
    assert vpn.strays() == []


def test_h_2_a_server_inside_is_reached_at_the_new_address(vpn: VpnNetwork) -> None:
    """Its forward names the link, so it follows a dynamic address without any script."""
    net = vpn.net
    inside_server, client = vpn.pptp_server(THIRD_INSIDE), vpn.pptp(SERVER_ADDRESS)
    both_ways((client.dial(EXTERNAL_ADDRESS, 7), inside_server))
    net.ip("gateway", "address flush dev eth1")
    net.ip("gateway", f"address add {NEW_ADDRESS}/24 dev eth1")
    net.ip("gateway", f"route add default via {ROUTER_ADDRESS}")
    eventually(lambda: net.status()["external"]["address"] == NEW_ADDRESS, what="the new address")
    both_ways((client.dial(NEW_ADDRESS, 8), inside_server))
    assert vpn.strays() == []
