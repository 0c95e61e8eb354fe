"""The tests' own PPTP and IPsec hosts against each other on one wire, so that tests through fastmasq can trust them."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers import pptp
from scapy.layers.inet import ICMP, IP
from scapy.layers.ipsec import IPSecIntegrityError

from tests.support.ipsec_hosts import IpsecHost, Sa
from tests.support.lab_network import Sniffer, eventually
from tests.support.namespaces import Namespace, join
from tests.support.pptp_hosts import BUSY, CONNECTED, Call, GrePacket, PptpHost
from tests.support.speakers import talking

NEAR, NEAR_2, FAR = "10.0.0.2", "10.0.0.3", "10.0.0.9"


class Wire:
    """Two hosts joined by a cable: `near` with two addresses, `far` with one."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root: run the tests as root")
        self.open = contextlib.ExitStack()
        self.near, self.far = self._namespace(), self._namespace()
        join(self.near, "eth0", self.far, "eth0")
        for address in (NEAR, NEAR_2):
            self.near.ip(f"addr add {address}/8 dev eth0")
        self.far.ip(f"addr add {FAR}/8 dev eth0")

    def _namespace(self) -> Namespace:
        made = Namespace()
        self.open.callback(made.remove)
        return made

    def pptp(self, address: str, **options: int) -> PptpHost:
        place = self.far.entered if address == FAR else self.near.entered
        return self.open.enter_context(contextlib.closing(PptpHost(place, address, **options)))

    def ipsec(self, address: str, **options: bool) -> IpsecHost:
        place = self.far.entered if address == FAR else self.near.entered
        return self.open.enter_context(contextlib.closing(IpsecHost(place, address, **options)))

    def sniff(self) -> Sniffer:
        """Hear what passes at the far host from now on."""
        with self.far.entered():
            raw = self.open.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
        raw.bind(("eth0", 0x0003))
        return Sniffer(raw)


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    with wire.open:
        yield wire


@pytest.fixture
def server(wire: Wire) -> PptpHost:
    return wire.pptp(FAR).listen()


def far_end(call: Call, server: PptpHost) -> Call:
    """Return the server's end of a call."""
    return next(each for each in server.calls() if each.own_id == call.peer_id)


def segments(sniffer: Sniffer) -> list[bytes]:
    """Return what came in each TCP segment with data to port 1723, whatever TCP has sent once more."""
    found: dict[bytes, bytes] = {}  # by source port and sequence number
    for each in sniffer.of(protocol=socket.IPPROTO_TCP, destination_port=1723):
        octets = each.payload
        data = octets[(octets[12] >> 4) * 4 :]
        if data:
            found.setdefault(octets[:2] + octets[4:8], data)
    return list(found.values())


# --- PPTP --------------------------------------------------------------------------------------------------------


def test_a_call_carries_frames_both_ways(wire: Wire, server: PptpHost) -> None:
    call = wire.pptp(NEAR).dial(FAR, 0x4000)
    other = far_end(call, server)
    assert (call.peer_id, other.peer_id, call.result) == (0x11, 0x4000, CONNECTED)
    call.exchange(20)
    other.exchange(20)
    assert call.replies == other.questions and other.replies == call.questions
    assert (call.sent, other.sent) == (40, 40)
    assert call.received == call.acknowledged == other.received == other.acknowledged == 39
    assert call.late == other.late == 0


def test_gre_is_as_rfc2637_section_4_has_it(wire: Wire, server: PptpHost) -> None:
    heard = wire.sniff()
    call = wire.pptp(NEAR).dial(FAR, 0x4000)
    call.exchange(2)
    to_server = [each.payload for each in heard.of(protocol=47, sent=False)]
    first, *others = [GrePacket.parse(octets) for octets in to_server]
    assert to_server[0][:12] == struct.pack(">HHHHI", 0x3001, 0x880B, len(first.payload), 0x11, 0)
    assert (first.acknowledgment, first.payload[:5]) == (None, b"\xff\x03\xc0\x21\x09")
    assert [(each.sequence, each.acknowledgment, len(each.payload)) for each in others] == [
        (None, 0, 0), (1, 0, 64), (None, 1, 0),
    ]  # fmt: skip
    assert {struct.unpack_from(">H", each.payload, 6)[0] for each in heard.of(protocol=47, sent=True)} == {0x4000}


def test_every_control_message_is_understood(wire: Wire, server: PptpHost) -> None:
    """Types 1 to 15 each come and do what they say."""
    client = wire.pptp(NEAR)
    call = client.dial(FAR, 7)
    near, [far] = call.connection, server.connections
    near.echo()
    far.echo()
    call.set_link_info()
    eventually(lambda: far_end(call, server).link_infos == [(0xFFFFFFFF, 0)])
    far_end(call, server).notify_wan_error()
    eventually(lambda: call.wan_errors == 1)
    call.clear()
    assert far_end(call, server).disconnected

    offered = far.offer(9)
    assert far.call_of(own_id=9).peer_id == 0x11 and near.call_of(peer_id=9).own_id == 0x11
    near.wait_for(pptp.PPTPIncomingCallConnected, peer_call_id=0x11)
    offered.exchange()
    near.call_of(peer_id=9).exchange()
    offered.disconnect()
    eventually(lambda: near.call_of(peer_id=9).disconnected)
    near.stop()
    eventually(lambda: near.ended and far.ended, what="the end of the connection")
    heard = {message.ctrl_msg_type for connection in (near, far) for message in connection.messages}
    assert heard == set(range(1, 16))
    assert [len(bytes(message)) for message in near.heard(pptp.PPTPIncomingCallRequest)] == [220]


def test_several_calls_on_one_connection_and_two_clients(wire: Wire, server: PptpHost) -> None:
    first, second = wire.pptp(NEAR), wire.pptp(NEAR_2)
    connection = first.connect(FAR)
    connection.start()
    calls = [connection.call(call_id) for call_id in (0x4000, 1, 65535)]
    calls.append(second.dial(FAR, 0x4000))
    for call in calls:
        call.exchange(3)
    assert [len(each.calls) for each in server.connections] == [3, 1]
    calls[0].clear()
    assert not calls[0].answers(0.1)
    for call in calls[1:]:
        call.exchange(3)
    assert first.strays == second.strays == []
    assert [stray.octets[6:8] for stray in server.strays] == [b"\x00\x11"]


def test_a_refused_call_is_reported(wire: Wire, server: PptpHost) -> None:
    connection = wire.pptp(NEAR).connect(FAR)
    connection.start()
    server.connections[0].answer = BUSY
    call = connection.begin_call(5)
    eventually(lambda: call.result == BUSY)


@pytest.mark.parametrize(
    "cuts",
    [(1,), (12,), (13,), (14, 15, 16), tuple(range(1, 10)), tuple(range(1, 220))],
    ids=["length", "header", "call-id", "ids", "header-octets", "octets"],
)
def test_messages_can_be_cut_anywhere(wire: Wire, server: PptpHost, cuts: tuple[int, ...]) -> None:
    heard = wire.sniff()
    connection = wire.pptp(NEAR).connect(FAR)
    connection.start()
    connection.cuts = server.connections[0].cuts = cuts
    before = len(segments(heard))
    connection.call(0x4000).exchange()
    pieces = segments(heard)[before:]
    assert sum(map(len, pieces)) == 168
    assert len(pieces[0]) == cuts[0]
    assert len(pieces) == len(cuts) + 1 or len(pieces) > 10, "so many that TCP joins some again"


def test_messages_can_share_a_segment(wire: Wire, server: PptpHost) -> None:
    heard = wire.sniff()
    connection = wire.pptp(NEAR).connect(FAR)
    connection.start()
    with connection.joined():
        calls = [connection.begin_call(call_id) for call_id in (1, 2, 3)]
    eventually(lambda: all(call.result == CONNECTED for call in calls))
    assert [len(piece) for piece in segments(heard)] == [156, 3 * 168]
    for call in calls:
        call.exchange(2)


def test_a_repeated_request_makes_one_call(wire: Wire, server: PptpHost) -> None:
    connection = wire.pptp(NEAR).connect(FAR)
    connection.start()
    connection.copies = 3
    connection.call(0x4000).exchange()
    eventually(lambda: len(connection.heard(pptp.PPTPOutgoingCallReply, call_id=0x11)) == 3)
    assert len(server.calls()) == 1


def test_a_reset_ends_a_connection(wire: Wire, server: PptpHost) -> None:
    call = wire.pptp(NEAR).dial(FAR, 1)
    call.connection.reset()
    eventually(lambda: server.connections[0].ended)


def test_what_is_not_pptp_is_noticed(wire: Wire, server: PptpHost) -> None:
    """A broken peer fails the test that has it, and does not just leave it waiting."""
    client = wire.pptp(NEAR)
    call = client.dial(FAR, 1)
    client.gre.sendto(struct.pack(">HHHH", 0x3001, 0x880B, 9, call.peer_id), (FAR, 0))
    eventually(lambda: server.strays)
    with pytest.raises(ValueError, match="says 9 octets of payload, and has -4"):
        GrePacket.parse(server.strays[0].octets)
    client.connections[0].stream.sendall(b"\x00\x10 this is not PPTP")
    eventually(lambda: not server.is_alive())
    with pytest.raises(AssertionError):
        server.close()
    server.close = lambda: None


# --- IPsec -------------------------------------------------------------------------------------------------------

VERSIONS = pytest.mark.parametrize("version", [1, 2], ids=["ikev1", "ikev2"])


@VERSIONS
@pytest.mark.parametrize("natt", [False, True], ids=["plain", "natt"])
def test_a_tunnel_carries_pings_both_ways(wire: Wire, version: int, natt: bool) -> None:
    near, far = wire.ipsec(NEAR, natt=natt), wire.ipsec(FAR, natt=natt)
    heard = wire.sniff()
    peer = near.negotiate(FAR, version=version)
    other = far.peer_of(peer.sa)
    peer.exchange(5)
    other.exchange(5)
    if natt:
        near.keep_alive(peer)
    assert (peer.repeated, other.repeated) == (0, 0)
    assert peer.replies == other.questions == [1, 2, 3, 4, 5]
    assert (peer.sa.sent, peer.sa.opened) == (10, 10)
    assert near.strays == far.strays == []
    assert peer.sa.spi_in != peer.sa.spi_out
    if natt:
        assert {each.protocol for each in heard.packets()} == {socket.IPPROTO_UDP}
        assert {each.payload[6:8] for each in heard.packets()} == {b"\0\0"}, "UDP checksums"
    else:
        esp = [each.payload for each in heard.of(protocol=socket.IPPROTO_ESP, sent=False)]
        assert [struct.unpack_from(">II", octets) for octets in esp] == [(peer.sa.spi_out, n) for n in range(1, 11)]
        assert not any(b"....." in octets for octets in esp), "it is encrypted"


def headers(sniffer: Sniffer) -> list[tuple]:
    """Return (sent by the far host, cookies, version, exchange, flags, message id) of each ISAKMP packet."""
    heard = sniffer.of(protocol=socket.IPPROTO_UDP, source_port=500, destination_port=500)
    return [(each.sent, *struct.unpack_from(">8s8sxBBBI", each.payload, 8)) for each in heard]


def test_ikev1_messages_have_the_headers_of_rfc2408(wire: Wire) -> None:
    near, _ = wire.ipsec(NEAR), wire.ipsec(FAR)
    heard = wire.sniff()
    peer = near.negotiate(FAR, version=1, cookie=b"COOKIE-I")
    peer.exchange(1)
    seen = headers(heard)
    assert {row[1] for row in seen} == {b"COOKIE-I"}
    assert [row[2] for row in seen] == [bytes(8)] + [peer.responder] * 8
    assert [row[0] for row in seen] == [False, True] * 4 + [False]
    assert {row[3] for row in seen} == {0x10}
    assert [(row[4], row[5]) for row in seen] == [(2, 0)] * 4 + [(2, 1)] * 2 + [(32, 1)] * 3
    numbers = [row[6] for row in seen]
    assert numbers[:6] == [0] * 6 and numbers[6] == numbers[7] == numbers[8] != 0


def test_ikev2_messages_have_the_headers_of_rfc7296(wire: Wire) -> None:
    near, far = wire.ipsec(NEAR), wire.ipsec(FAR)
    heard = wire.sniff()
    peer = near.negotiate(FAR, version=2)
    peer.rekey()
    far.peer_of(peer.sa).rekey()
    seen = [(*row[:1], *row[4:]) for row in headers(heard)]
    assert seen == [
        (False, 34, 0x08, 0), (True, 34, 0x20, 0), (False, 35, 0x08, 1), (True, 35, 0x20, 1),
        (False, 36, 0x08, 2), (True, 36, 0x20, 2), (True, 36, 0x00, 0), (False, 36, 0x28, 0),
    ]  # fmt: skip


@VERSIONS
@pytest.mark.parametrize("by", ["client", "server"])
def test_rekeying_under_traffic_loses_nothing(wire: Wire, version: int, by: str) -> None:
    near, far = wire.ipsec(NEAR), wire.ipsec(FAR)
    peer = near.negotiate(FAR, version=version)
    other = far.peer_of(peer.sa)
    first = peer.sa
    with talking(peer.answers, other.answers):
        for _ in range(3):
            (peer if by == "client" else other).rekey()
            eventually(lambda: peer.sas[-1].opened > 3 and other.sas[-1].opened > 3, what="traffic by the new SA")
    assert (peer.repeated, other.repeated) == (0, 0)
    assert len(peer.sas) == len(other.sas) == 4
    assert peer.sa is peer.sas[-1] is not first and other.sa is other.sas[-1]
    assert len({sa.spi_in for sa in peer.sas} | {sa.spi_out for sa in peer.sas}) == 8
    assert near.strays == far.strays == []


def test_two_peers_may_have_the_same_initiator_cookie(wire: Wire) -> None:
    first, second, far = wire.ipsec(NEAR), wire.ipsec(NEAR_2), wire.ipsec(FAR)
    peers = [host.negotiate(FAR, cookie=b"the same") for host in (first, second)]
    for peer in peers:
        peer.exchange(2)
    assert len(far.peers) == 2 and peers[0].responder != peers[1].responder


def test_lost_messages_are_sent_again(wire: Wire) -> None:
    near, far = wire.ipsec(NEAR), wire.ipsec(FAR)
    rules = "table ip t { chain c { type filter hook input priority 0; udp dport 500 numgen inc mod 2 0 drop; }; }"
    wire.far.sh(f"nft '{rules}'")
    peer = near.negotiate(FAR)
    peer.exchange(2)
    assert near.unknown == far.unknown == []


def test_a_changed_packet_is_not_opened() -> None:
    one = Sa(1000, b"k" * 48, 2000, b"K" * 48, NEAR, FAR)
    two = Sa(2000, b"K" * 48, 1000, b"k" * 48, FAR, NEAR)
    sealed = one.seal(IP(src=NEAR, dst=FAR) / ICMP())
    outer = IP(src=NEAR, dst=FAR, proto=socket.IPPROTO_ESP)
    assert two.open(IP(bytes(outer / sealed)))[ICMP].type == 8
    with pytest.raises(IPSecIntegrityError):
        two.open(IP(bytes(outer / (sealed[:-1] + bytes((sealed[-1] ^ 1,))))))


def test_what_no_sa_opens_is_kept_as_a_stray(wire: Wire) -> None:
    near, far = wire.ipsec(NEAR), wire.ipsec(FAR)
    near.send_esp((FAR, 500), struct.pack(">II", 0x1234, 1) + bytes(40))
    eventually(lambda: [(stray.remote, stray.spi) for stray in far.strays] == [(NEAR, 0x1234)])
