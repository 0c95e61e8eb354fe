"""The sniffer's lines: packets built by scapy, and what is said of each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import pptp as scapy_pptp
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.ipsec import AH, ESP
from scapy.layers.isakmp import ISAKMP
from scapy.layers.l2 import GRE, GRE_PPTP
from scapy.packet import Packet, Raw

from fastmasq.tools.sniff.packets import BARE, Seen, decode
from fastmasq.wire import pptp

HOST, SERVER, ROUTER = "10.0.0.2", "199.0.0.1", "200.200.200.1"
I_COOKIE, R_COOKIE = b"initiat1", b"respond1"


def seen(*layers: Packet | bytes, source: str = HOST, destination: str = SERVER, **ip: int) -> Seen | None:
    packet = IP(src=source, dst=destination, **ip)
    for layer in layers:
        packet /= layer
    return decode(bytes(packet))


def isakmp(exchange: int, responder: bytes = R_COOKIE, version: int = 0x10, **fields: int) -> ISAKMP:
    return ISAKMP(init_cookie=I_COOKIE, resp_cookie=responder, exch_type=exchange, version=version, **fields)


@pytest.mark.parametrize(("flags", "words", "tags"), [
    ("S", "PPTP connects", ("syn",)),
    ("SA", "PPTP accepts the connection", ("syn_ack",)),
    ("RA", "PPTP resets the connection", ("rst",)),
    ("FA", "PPTP closes the connection", ("fin",)),
    ("A", "PPTP acknowledgment", BARE),
])  # fmt: skip
def test_h_80_control_segments(flags: str, words: str, tags: tuple[str, ...]) -> None:
    packet = seen(TCP(sport=40000, dport=1723, flags=flags))
    assert (packet.kind, packet.text, packet.tags, packet.server) == ("control", words, tags, "destination")
    back = seen(TCP(sport=1723, dport=40000, flags=flags), source=SERVER, destination=HOST)
    assert back.server == "source"
    assert str(back) == f"{SERVER} -> {HOST}  {words}"


@pytest.mark.parametrize("kind", pptp.Type, ids=str)
def test_h_80_control_messages_by_name(kind: pptp.Type) -> None:
    packet = seen(TCP(sport=40000, dport=1723, flags="PA"), Raw(pptp.message(kind)))
    assert str(kind) in packet.text
    assert kind.name.lower() in packet.tags


def test_a_control_message_shows_ids_names_and_result() -> None:
    two = pptp.start_request("pc", "Microsoft") + pptp.outgoing_call_request(513)
    packet = seen(TCP(sport=40000, dport=1723, flags="PA"), Raw(two))
    assert packet.text == "PPTP Start request (host 'pc', vendor 'Microsoft'); Outgoing call request (Call ID 513)"
    reply = bytes(scapy_pptp.PPTPOutgoingCallReply(call_id=9, peer_call_id=513, result_code=4))
    packet = seen(TCP(sport=1723, dport=40000, flags="PA"), Raw(reply))
    assert packet.text == "PPTP Outgoing call reply (Call ID 9, Peer's Call ID 513): refused: busy"
    assert packet.problem == "Outgoing call reply: refused: busy"
    assert "call_accepted" not in packet.tags
    reply = bytes(scapy_pptp.PPTPOutgoingCallReply(call_id=9, peer_call_id=513, result_code=1))
    assert "call_accepted" in seen(TCP(sport=1723, dport=40000, flags="PA"), Raw(reply)).tags


def test_the_middle_of_a_message_is_not_guessed_at() -> None:
    packet = seen(TCP(sport=40000, dport=1723, flags="A"), Raw(pptp.start_request()[5:]))
    assert packet.text == "PPTP 151 octets in the middle of a message"


def test_h_80_gre_with_call_id_and_numbers() -> None:
    packet = seen(GRE_PPTP(call_id=513, seqnum_present=1, acknum_present=1, sequence_number=5, ack_number=4), Raw(b"x"))
    assert packet.kind == "gre"
    assert packet.text.startswith("GRE Call ID 513, sequence 5, acknowledges 4, ")
    assert seen(GRE_PPTP(call_id=513, acknum_present=1, ack_number=4)).text.endswith("acknowledges 4, no data")
    assert seen(GRE(), Raw(bytes(20))).text == "GRE that is not PPTP's, version 0, 24 octets"


@pytest.mark.parametrize(("packet", "text"), [
    (isakmp(2, bytes(8)), "identity protection (main mode), cookies 696e697469617431/0000000000000000"),
    (isakmp(4, bytes(8)), "aggressive mode, cookies 696e697469617431/0000000000000000"),
    (isakmp(32, flags=1, id=7), "quick mode, encrypted, cookies 696e697469617431/726573706f6e6431, message 0x00000007"),
    (isakmp(34, bytes(8), version=0x20, flags=8), "IKE_SA_INIT, request, cookies 696e697469617431/0000000000000000"),
    (isakmp(35, version=0x20, flags=0x20, id=1),
     "IKE_AUTH, response, cookies 696e697469617431/726573706f6e6431, message 0x00000001"),
    (isakmp(99), "exchange 99, cookies 696e697469617431/726573706f6e6431"),
])  # fmt: skip
def test_h_80_isakmp_with_exchange_and_cookies(packet: ISAKMP, text: str) -> None:
    """RFC 2408 section 3.1; of version 2, RFC 7296 section 3.1."""
    shown = seen(UDP(sport=500, dport=500), packet)
    assert (shown.kind, shown.text) == ("isakmp", f"ISAKMP {text}")
    assert ("begins" in shown.tags) == (packet.resp_cookie == bytes(8))
    assert ("makes_sa" in shown.tags) == (packet.exch_type in (32, 35, 36))


def test_isakmp_from_another_port_says_so() -> None:
    shown = seen(UDP(sport=1500, dport=500), isakmp(2))
    assert shown.text.endswith(", ports 1500 and 500")


def test_h_80_esp_with_spi_and_sequence() -> None:
    shown = seen(ESP(spi=0xABCD1234, seq=7, data=bytes(32)))
    assert (shown.kind, shown.text) == ("esp", "ESP SPI 0xabcd1234, sequence 7, 40 octets")


def test_natt_is_told_apart() -> None:
    """RFC 3948 section 2."""
    moved = seen(UDP(sport=4500, dport=4500), Raw(bytes(4)), isakmp(32))
    assert (moved.kind, moved.tags) == ("isakmp", ("makes_sa", "moved"))
    data = seen(UDP(sport=4500, dport=4500), Raw(bytes.fromhex("abcd123400000007") + bytes(24)))
    assert (data.kind, data.text) == ("natt", "ESP in UDP, SPI 0xabcd1234, sequence 7, 32 octets")
    assert seen(UDP(sport=4500, dport=4500), Raw(b"\xff")).text == "NAT keep-alive"


def test_ah_is_shown() -> None:
    assert seen(AH(spi=1, seq=1)).kind == "ah"


def test_later_fragments_are_shown_without_a_header() -> None:
    assert seen(Raw(bytes(40)), proto=50, frag=185).text == "ESP, a later fragment, 40 octets"
    assert seen(Raw(bytes(40)), proto=6, frag=185) is None


@pytest.mark.parametrize("layers", [
    (TCP(sport=40000, dport=80),), (UDP(sport=40000, dport=53),), (ICMP(),), (Raw(b"x"),),
    (ICMP(type=3), IP(src=HOST, dst=SERVER) / UDP(sport=40000, dport=53)),
    (ICMP(type=3), IP(src=HOST, dst=SERVER) / ICMP(type=3) / IP(src=HOST, dst=SERVER) / ESP(spi=1, seq=1)),
], ids=["web", "dns", "ping", "unknown", "error", "error about an error"])  # fmt: skip
def test_what_is_no_vpn_is_not_shown(layers) -> None:
    assert seen(*layers) is None


@pytest.mark.parametrize(("kind", "code", "quoted", "words", "about", "name"), [
    (3, 2, GRE_PPTP(call_id=513), "protocol unreachable", "GRE Call ID 513, no data", "GRE (IP protocol 47)"),
    (3, 2, GRE_PPTP(call_id=513, seqnum_present=1), "protocol unreachable", "GRE Call ID 513, cut",
     "GRE (IP protocol 47)"),
    (3, 13, ESP(spi=0x1234, seq=3), "administratively prohibited", "ESP SPI 0x00001234, sequence 3, 8 octets",
     "ESP (IP protocol 50)"),
    (3, 3, UDP(sport=500, dport=500), "port unreachable", "UDP port 500", "ISAKMP (UDP port 500)"),
    (11, 0, TCP(sport=40000, dport=1723), "time exceeded", "PPTP control connection", "TCP port 1723"),
    (3, 4, ESP(spi=0x1234, seq=3), "fragmentation needed", "ESP SPI 0x00001234, sequence 3, 8 octets", ""),
])  # fmt: skip
def test_h_80_icmp_errors_say_what_they_are_about(
    kind: int, code: int, quoted: Packet, words: str, about: str, name: str
) -> None:
    """The quote is as short as RFC 792 has it. Fragmentation needed is no failure."""
    quote = bytes(IP(src=HOST, dst=SERVER) / quoted)[:28]
    shown = seen(ICMP(type=kind, code=code), Raw(quote), source=ROUTER, destination=HOST)
    assert str(shown) == f"{ROUTER} -> {HOST}  ICMP {words}, about {HOST} -> {SERVER} {about}"
    assert shown.problem == (f"{ROUTER} says {words} about {name}" if name else "")
    assert (shown.source, shown.destination) == (HOST, SERVER)


@given(st.binary(max_size=80), st.sampled_from([1, 6, 17, 47, 50, 51]), st.sampled_from([0, 1723, 500, 4500]))
def test_whatever_comes_is_shown_or_not(payload: bytes, protocol: int, port: int) -> None:
    packet = bytes(IP(src=HOST, dst=SERVER, proto=protocol) / Raw(port.to_bytes(2, "big") * 2 + payload))
    for length in range(len(packet)):
        shown = decode(packet[:length])
        assert shown is None or str(shown).isprintable()
