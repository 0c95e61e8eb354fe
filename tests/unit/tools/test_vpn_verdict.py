"""Findings: a VPN is played through a gateway, packets get lost at one place, and the finding must name that place."""

from __future__ import annotations

import pytest
from scapy.layers import pptp as scapy_pptp
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.ipsec import AH, ESP
from scapy.layers.isakmp import ISAKMP
from scapy.layers.l2 import GRE_PPTP
from scapy.packet import Packet, Raw

from fastmasq.tools.sniff import verdict
from fastmasq.tools.sniff.packets import decode
from fastmasq.tools.sniff.verdict import Finding, Watch, WatchedLink
from fastmasq.wire import pptp

HOST, OTHER_HOST, EXTERNAL, REMOTE = "10.0.0.2", "10.0.0.3", "200.200.200.200", "199.0.0.1"
BOTH = (WatchedLink("eth0", "inside"), WatchedLink("eth1", "outside"))
BLIND = (WatchedLink("eth0", "inside", False), WatchedLink("eth1", "outside", False))
OUTSIDE = (WatchedLink("eth1", "outside"),)
INSIDE = (WatchedLink("eth0", "inside"),)
UNKNOWN = (WatchedLink("any0", ""),)

SYN, SYN_ACK, RESET = TCP(flags="S"), TCP(flags="SA"), TCP(flags="RA")
START, CALL = Raw(pptp.start_request()), Raw(pptp.outgoing_call_request(1))
STARTED = Raw(bytes(scapy_pptp.PPTPStartControlConnectionReply(result_code=1)))
CALLED = Raw(bytes(scapy_pptp.PPTPOutgoingCallReply(result_code=1)))
GRE = GRE_PPTP(call_id=1, seqnum_present=1)
MAIN = UDP(sport=500, dport=500) / ISAKMP(init_cookie=b"initiat1", exch_type=2)
ANSWER = UDP(sport=500, dport=500) / ISAKMP(init_cookie=b"initiat1", resp_cookie=b"respond1", exch_type=2)
QUICK = UDP(sport=500, dport=500) / ISAKMP(init_cookie=b"initiat1", resp_cookie=b"respond1", exch_type=32)
DATA = ESP(spi=0x1000, seq=1, data=bytes(32))
MOVED = UDP(sport=4500, dport=4500) / Raw(bytes(4)) / QUICK.payload
NATT = UDP(sport=4500, dport=4500) / Raw(bytes(DATA))


class Gateway:
    """A gateway between a host and a remote. Packets are seen at the watched links, up to where they are lost.

    `lost` is one of the HOWTO's points (before it, whatever passes there is lost) by kind of packet.
    """

    def __init__(self, links=BOTH, *, client: str = "near", host: str = HOST) -> None:
        self.watch = Watch(links)
        self.client_near, self.host = client == "near", host
        self.lost: dict[str, int] = {}

    def away(self, packet: Packet, near: str | None = None) -> None:
        """Let the near host send."""
        near = near or self.host
        points = (1, 2) if self.client_near else (5, 6)
        self._pass(packet, points, (("inside", False, near, REMOTE), ("outside", True, EXTERNAL, REMOTE)))

    def back(self, packet: Packet, near: str | None = None) -> None:
        """Let the remote send."""
        near = near or self.host
        points = (7, 8) if self.client_near else (3, 4)
        self._pass(packet, points, (("outside", False, REMOTE, EXTERNAL), ("inside", True, REMOTE, near)))

    def ask(self, packet: Packet) -> None:
        (self.away if self.client_near else self.back)(self._control(packet, to_server=True))

    def answer(self, packet: Packet) -> None:
        (self.back if self.client_near else self.away)(self._control(packet, to_server=False))

    def control(self) -> None:
        """Play a PPTP control connection up to its call."""
        for asked, answered in ((SYN, SYN_ACK), (START, STARTED), (CALL, CALLED)):
            self.ask(asked)
            self.answer(answered)

    def negotiation(self) -> None:
        self.ask(MAIN)
        self.answer(ANSWER)
        self.ask(QUICK)
        self.answer(QUICK)

    def finding(self) -> Finding:
        (finding,) = self.watch.findings()
        return finding

    def _control(self, packet: Packet, to_server: bool) -> Packet:
        ports = {"sport": 40000, "dport": 1723} if to_server else {"sport": 1723, "dport": 40000}
        if isinstance(packet, TCP):
            return TCP(flags=packet.flags, **ports)
        return TCP(flags="PA", **ports) / packet if isinstance(packet, Raw) else packet

    def _pass(self, packet: Packet, points, steps) -> None:
        for point, (side, sent, source, destination) in zip(points, steps, strict=True):
            seen = decode(bytes(IP(src=source, dst=destination) / packet))
            if self.lost.get(seen.kind) == point:
                return
            link = next((link for link in self.watch.links.values() if link.side in (side, "")), None)
            hidden = link is None or (sent and not link.sees_sent) or (link.side == "" and side == "outside")
            if not hidden:
                self.watch.add(link.name, sent, seen)


# --- PPTP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [BOTH, BLIND, INSIDE, OUTSIDE, UNKNOWN])
@pytest.mark.parametrize("client", ["near", "far"])
def test_h_80_pptp_that_works(links, client: str) -> None:
    gateway = Gateway(links, client=client)
    gateway.control()
    gateway.ask(GRE)
    gateway.answer(GRE)
    gateway.answer(GRE)
    finding = gateway.finding()
    assert (finding.good, finding.said, finding.hint) == (True, "works: both channels go both ways", "")
    assert finding.far == REMOTE or links == UNKNOWN
    if links == BOTH:
        assert finding.lights["gre"] == ((1, 2) if client == "near" else (2, 1))
        assert finding.near == HOST


@pytest.mark.parametrize(("point", "client", "said", "hint"), [
    (1, "near", "TCP port 1723 goes both ways, and there is no GRE (IP protocol 47): missing at point 1",
     "the client sends none"),
    (2, "near", "GRE (IP protocol 47) is lost in this gateway: missing at point 2, out to the server",
     "rules that masquerade the control channel alone do not cover GRE"),
    (7, "near", "GRE (IP protocol 47) is sent and nothing comes back: missing at point 7, in from the server",
     "`fastmasq traceroute --gre 199.0.0.1`"),
    (8, "near", "GRE (IP protocol 47) is lost in this gateway: missing at point 8, out to the inside client",
     "does not know whose it is"),
    (3, "far", "GRE (IP protocol 47) comes from this side alone: missing at point 3, in from the client",
     "something on the way blocks GRE"),
    (4, "far", "GRE (IP protocol 47) is lost in this gateway: missing at point 4, out to the inside server",
     "does not know which host it is for"),
    (5, "far", "GRE (IP protocol 47) is sent and nothing comes back: missing at point 5, in from the inside server",
     "the server sends none"),
    (6, "far", "GRE (IP protocol 47) is lost in this gateway: missing at point 6, out to the client",
     "the gateway loses it"),
])  # fmt: skip
def test_h_80_each_point_where_gre_is_lost(point: int, client: str, said: str, hint: str) -> None:
    """HOWTO 5.3: control works, and GRE gets up to one of the eight points."""
    gateway = Gateway(client=client)
    gateway.control()
    gateway.lost["gre"] = point
    if point != 1:
        gateway.ask(GRE)
    if point not in (1, 5):
        gateway.answer(GRE)
    finding = gateway.finding()
    assert finding.good is False
    assert finding.said.startswith(said)
    assert hint in finding.hint
    assert (finding.missing, finding.point) == ("gre", point)


@pytest.mark.parametrize(("point", "client", "hint"), [
    (2, "near", "its rules must masquerade it"),
    (7, "near", "`fastmasq test pptp 199.0.0.1`"),
    (8, "near", "the gateway loses the answers"),
    (4, "far", "`fastmasq forward list`"),
    (5, "far", "the server does not answer"),
    (6, "far", "the gateway loses the answers"),
])  # fmt: skip
def test_h_80_each_point_where_control_is_lost(point: int, client: str, hint: str) -> None:
    gateway = Gateway(client=client)
    gateway.lost["control"] = point
    gateway.ask(SYN)
    if point not in (2, 4, 5, 7):
        gateway.answer(SYN_ACK)
    finding = gateway.finding()
    assert (finding.good, finding.missing, finding.point) == (False, "control", point)
    assert hint in finding.hint


def test_h_71_gre_out_and_nothing_in_is_said_for_each_remote() -> None:
    gateway = Gateway(OUTSIDE)
    gateway.control()
    gateway.ask(GRE)
    finding = gateway.finding()
    assert (finding.near, finding.far, finding.point) == (EXTERNAL, REMOTE, 7)
    assert finding.lights["gre"] == (1, 0)
    assert "not watched: point 1, 8" in finding.said


def test_points_that_cannot_be_watched_prove_nothing() -> None:
    """What a forwarder sends past the queue is hidden: GRE that comes in is taken for delivered."""
    gateway = Gateway(BLIND)
    gateway.control()
    gateway.lost["gre"] = 8
    gateway.ask(GRE)
    gateway.answer(GRE)
    assert gateway.finding().good
    gateway = Gateway(BLIND)
    gateway.control()
    gateway.ask(GRE)
    finding = gateway.finding()
    assert finding.point == 7
    assert "not watched: point 2, 8" in finding.said


def test_h_61_a_refused_connection() -> None:
    gateway = Gateway()
    gateway.ask(SYN)
    gateway.answer(RESET)
    assert gateway.finding().said == "the server refuses the connection"


def test_h_64_a_server_that_does_not_answer() -> None:
    gateway = Gateway()
    gateway.ask(SYN)
    gateway.ask(SYN)
    finding = gateway.finding()
    assert (finding.missing, finding.point) == ("control", 7)
    assert finding.said.startswith("TCP port 1723 is sent and nothing comes back")


def test_h_65_a_client_that_tries_for_ever() -> None:
    gateway = Gateway()
    for _ in range(3):
        gateway.control()
        gateway.ask(GRE)
        gateway.answer(GRE)
        gateway.answer(Raw(pptp.message(pptp.Type.CALL_DISCONNECT_NOTIFY)))
    finding = gateway.finding()
    assert (finding.good, finding.said) == (False, "both channels work, and the client began 3 times")
    assert "128-bit" in finding.hint


def test_a_start_request_without_an_answer() -> None:
    gateway = Gateway()
    for packet, back in ((SYN, SYN_ACK), (START, TCP(flags="FA"))):
        gateway.ask(packet)
        gateway.answer(back)
    assert "does not answer the Start request" in gateway.finding().said


def test_a_connection_that_is_reset_later_was_not_refused() -> None:
    gateway = Gateway()
    for packet, back in ((SYN, SYN_ACK), (START, RESET)):
        gateway.ask(packet)
        gateway.answer(back)
    assert "does not answer the Start request" in gateway.finding().said


def test_a_call_that_is_refused() -> None:
    gateway = Gateway()
    gateway.control()
    gateway.answer(Raw(bytes(scapy_pptp.PPTPOutgoingCallReply(result_code=4))))
    finding = gateway.finding()
    assert (finding.good, finding.said) == (False, "Outgoing call reply: refused: busy")


@pytest.mark.parametrize(("first", "said"), [
    ("answer", "the server made the call and ended it without any GRE (IP protocol 47)"),
    ("ask", "GRE (IP protocol 47) is sent and nothing comes back: missing at point 7, in from the server"),
])  # fmt: skip
def test_a_call_without_gre_that_the_server_ends(first: str, said: str) -> None:
    gateway = Gateway()
    gateway.control()
    gateway.ask(GRE)
    for way in (first, "ask", "answer"):
        getattr(gateway, way)(TCP(flags="FA"))
    assert gateway.finding().said == said


def test_a_control_connection_without_a_call_is_no_failure() -> None:
    gateway = Gateway()
    for packet, back in ((SYN, SYN_ACK), (START, STARTED)):
        gateway.ask(packet)
        gateway.answer(back)
    assert gateway.finding().good is None


def test_a_refusal_by_name_says_who_refuses() -> None:
    gateway = Gateway()
    gateway.control()
    gateway.ask(GRE)
    quote = IP(src=EXTERNAL, dst=REMOTE) / GRE
    gateway.watch.add(
        "eth1", False, decode(bytes(IP(src="200.200.200.1", dst=EXTERNAL) / ICMP(type=3, code=13) / quote))
    )
    finding = gateway.finding()
    assert finding.said == "200.200.200.1 says administratively prohibited about GRE (IP protocol 47)"
    assert (finding.near, finding.lights["gre"]) == (HOST, (1, 0))


def test_h_80_what_the_gateway_itself_refuses_from_outside_is_lost_in_it() -> None:
    """Its kernel says protocol unreachable of GRE that nothing leads on to the inside host."""
    gateway = Gateway()
    gateway.control()
    gateway.lost["gre"] = 8
    gateway.ask(GRE)
    gateway.answer(GRE)
    quote = IP(src=REMOTE, dst=EXTERNAL) / GRE
    error = IP(src=EXTERNAL, dst=REMOTE) / ICMP(type=3, code=2) / quote
    gateway.watch.add("eth1", True, decode(bytes(error)))
    finding = gateway.finding()
    assert (finding.missing, finding.point) == ("gre", 8)


def test_the_gateways_own_client_is_not_missed_inside() -> None:
    gateway = Gateway()
    gateway.lost["control"] = gateway.lost["gre"] = 0
    for sent, packet in ((True, SYN), (False, SYN_ACK), (True, GRE), (False, GRE)):
        ends = (EXTERNAL, REMOTE) if sent else (REMOTE, EXTERNAL)
        whole = IP(src=ends[0], dst=ends[1]) / gateway._control(packet, to_server=sent)
        gateway.watch.add("eth1", sent, decode(bytes(whole)))
    finding = gateway.finding()
    assert (finding.good, finding.near) == (True, EXTERNAL)


def test_two_clients_of_one_server_have_findings_of_their_own() -> None:
    gateway = Gateway()
    gateway.control()
    gateway.ask(GRE)
    gateway.answer(GRE)
    gateway.host = OTHER_HOST
    gateway.control()
    gateway.lost["gre"] = 8
    gateway.ask(GRE)
    gateway.answer(GRE)
    first, second = gateway.watch.findings()
    assert (first.near, first.good) == (HOST, True)
    assert (second.near, second.good, second.point) == (OTHER_HOST, False, 8)
    assert "another client's" in second.hint


@pytest.mark.parametrize("client", ["near", "far"])
def test_what_the_server_drops_is_not_lost_in_the_gateway_whose_sending_is_hidden(client: str) -> None:
    """On default links what fastmasq sends is seen by nobody: no point 2, and so nothing that is missing there."""
    gateway = Gateway(BLIND, client=client)
    gateway.lost["control"] = 7 if client == "near" else 5
    for _ in range(3):
        gateway.ask(SYN)
        gateway.answer(SYN_ACK)
    finding = gateway.finding()
    place = {"near": (7, "in from the server"), "far": (5, "in from the inside server")}[client]
    assert finding.said.startswith("TCP port 1723 is sent and nothing comes back: missing at point ")
    assert (finding.point, finding.said.count(place[1])) == (place[0], 1)


def test_a_server_that_filters_is_no_control_connection_that_works() -> None:
    gateway = Gateway((WatchedLink("eth0", "inside", False),))
    for packet in (SYN, SYN, START, CALL):
        gateway.ask(packet)
        assert (gateway.finding().good, gateway.finding().said) == (None, "the client asks; answers are not watched")
    gateway.ask(GRE)
    assert gateway.finding().good


@pytest.mark.parametrize(("first", "server_did"), [("ask", False), ("answer", True)])
def test_who_ended_a_call_is_told_by_the_order_on_both_links(first: str, server_did: bool) -> None:
    gateway = Gateway(BLIND)
    gateway.control()
    gateway.ask(GRE)
    for way in (first, "ask", "answer"):
        getattr(gateway, way)(TCP(flags="FA"))
    assert gateway.finding().said.startswith("the server made the call and ended it") is server_did


def test_an_earlier_connection_that_the_server_closes_now_is_not_the_call() -> None:
    """As when a client dials again at once."""
    gateway = Gateway(BLIND)
    gateway.control()
    gateway.ask(GRE)
    gateway.back(TCP(sport=1723, dport=39999, flags="FA"))
    gateway.ask(TCP(flags="FA"))
    gateway.answer(TCP(flags="FA"))
    assert not gateway.finding().said.startswith("the server made the call and ended it")


# --- IPsec -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("links", [BOTH, BLIND, INSIDE, OUTSIDE, UNKNOWN])
@pytest.mark.parametrize("client", ["near", "far"])
def test_h_80_ipsec_that_works(links, client: str) -> None:
    gateway = Gateway(links, client=client)
    gateway.negotiation()
    gateway.ask(DATA)
    gateway.answer(DATA)
    assert gateway.finding().good


@pytest.mark.parametrize(("point", "said", "hint"), [
    (1, "ISAKMP (UDP port 500) goes both ways, and there is no ESP (IP protocol 50)", "the client sends none"),
    (2, "ESP (IP protocol 50) is lost in this gateway: missing at point 2", "masquerade the control channel alone"),
    (7, "ESP (IP protocol 50) is sent and nothing comes back: missing at point 7", "traceroute --esp 199.0.0.1"),
    (8, "ESP (IP protocol 50) is lost in this gateway: missing at point 8", "does not know whose it is"),
])  # fmt: skip
def test_h_72_negotiated_and_no_data(point: int, said: str, hint: str) -> None:
    """ISAKMP but no ESP, ESP only one way: HOWTO 5.2 (9) and 5.3."""
    gateway = Gateway()
    gateway.negotiation()
    gateway.lost["esp"] = point
    if point > 1:
        gateway.ask(DATA)
    if point == 8:
        gateway.answer(DATA)
    finding = gateway.finding()
    assert finding.said.startswith(said)
    assert hint in finding.hint
    assert (finding.missing, finding.point) == ("esp", point)


def test_an_unanswered_negotiation() -> None:
    gateway = Gateway()
    gateway.ask(MAIN)
    finding = gateway.finding()
    assert (finding.missing, finding.point) == ("isakmp", 7)
    assert "traceroute --udp" in finding.hint


@pytest.mark.parametrize("quick", [None, "ask", "answer"])
def test_a_negotiation_that_does_not_end(quick: str | None) -> None:
    gateway = Gateway()
    gateway.ask(MAIN)
    gateway.answer(ANSWER)
    if quick:
        getattr(gateway, quick)(QUICK)
    finding = gateway.finding()
    assert (finding.good, finding.missing) == (False, None)
    assert "does not get to quick mode" in finding.said


def test_a_remote_that_begins_and_is_led_nowhere() -> None:
    gateway = Gateway(client="far")
    gateway.lost["isakmp"] = 4
    gateway.ask(MAIN)
    finding = gateway.finding()
    assert (finding.near, finding.missing, finding.point) == (EXTERNAL, "isakmp", 4)


def test_natt_data_counts_as_data() -> None:
    gateway = Gateway()
    gateway.negotiation()
    gateway.ask(MOVED)
    gateway.answer(MOVED)
    gateway.ask(NATT)
    assert gateway.finding().missing == "natt"
    gateway.answer(NATT)
    assert gateway.finding().good


def test_ah_cannot_work() -> None:
    gateway = Gateway()
    gateway.negotiation()
    gateway.away(AH(spi=1, seq=1))
    finding = gateway.finding()
    assert finding.good is False
    assert finding.said.startswith("AH")


def test_data_alone_is_judged_by_itself() -> None:
    """Watching began late: no negotiation was seen."""
    gateway = Gateway()
    gateway.ask(DATA)
    assert (gateway.finding().missing, gateway.finding().point) == ("esp", 7)
    gateway.answer(DATA)
    assert gateway.finding().good


# --- links of unknown side, and limits ---------------------------------------------------------------------------


@pytest.mark.parametrize(("answered", "said"), [
    (False, "GRE (IP protocol 47) is sent and nothing comes back"), (True, "works: both channels go both ways"),
])  # fmt: skip
def test_a_link_of_unknown_side_has_no_points(answered: bool, said: str) -> None:
    gateway = Gateway(UNKNOWN)
    gateway.control()
    gateway.ask(GRE)
    if answered:
        gateway.answer(GRE)
    finding = gateway.finding()
    assert (finding.said, finding.point, finding.near) == (said, 0, HOST)


def test_on_such_a_link_the_client_is_near_whoever_is_heard_first() -> None:
    gateway = Gateway(UNKNOWN)
    gateway.answer(SYN_ACK)
    gateway.ask(START)
    gateway.answer(GRE)
    assert gateway.finding().near == HOST


def test_on_such_a_link_a_pair_stays_as_it_was_seen_first() -> None:
    gateway = Gateway(UNKNOWN)
    for packet in (DATA, DATA):
        gateway.answer(packet)
        gateway.ask(packet)
    finding = gateway.finding()
    assert (finding.near, finding.lights) == (REMOTE, {"esp": (2, 2)})


def test_on_such_a_link_gre_before_its_control_is_of_the_same_pair() -> None:
    gateway = Gateway(UNKNOWN)
    gateway.answer(GRE)
    gateway.control()
    assert gateway.finding().near == REMOTE
    gateway.ask(GRE)
    assert gateway.finding().good


def test_of_too_many_pairs_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "MOST_TALKS", 1)
    gateway = Gateway(INSIDE)
    gateway.away(DATA)
    gateway.away(DATA, near=OTHER_HOST)
    gateway.away(DATA)
    assert (gateway.watch.packets, gateway.watch.unjudged) == (3, 1)
    assert gateway.finding().lights == {"esp": (2, 0)}
