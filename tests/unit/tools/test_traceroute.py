"""Traces: probes find their answers again, and two ways beside each other mean what they should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.ipsec import ESP
from scapy.layers.l2 import GRE_PPTP
from scapy.packet import Raw

from fastmasq.tools.traceroute.trace import (
    FIRST_PORT,
    MOST_SILENT,
    NUMBERS,
    SPI,
    Answer,
    Hop,
    IcmpError,
    Probes,
    Trace,
    judge,
)

HERE, THERE, ROUTER = "10.0.0.2", "199.0.0.1", "200.200.200.1"


def error_about(probes: Probes, number: int, quoted: int = 8, **icmp: int) -> bytes:
    """Return an ICMP error of a router that quotes a header and `quoted` octets of a probe."""
    if probes.protocol == "udp":
        packet = IP(src=HERE, dst=THERE) / UDP(sport=probes.base, dport=FIRST_PORT + number) / probes.octets(number)
    else:
        packet = IP(src=HERE, dst=THERE, proto=NUMBERS[probes.protocol]) / Raw(probes.octets(number))
    return bytes(IP(src=ROUTER, dst=HERE) / ICMP(**{"type": 11, **icmp}) / bytes(packet)[: 20 + quoted])


# --- probes ------------------------------------------------------------------------------------------------------


def test_a_gre_probe_is_a_bare_acknowledgment_of_pptp() -> None:
    """RFC 2637 section 4.1: key and acknowledgment present, no payload."""
    read = GRE_PPTP(Probes("gre", THERE, 100).octets(3))
    assert (read.call_id, read.payload_len, read.version, read.proto) == (103, 0, 1, 0x880B)
    assert (read.key_present, read.acknum_present, read.seqnum_present) == (1, 1, 0)


def test_esp_probes_have_one_spi_and_numbers_from_1() -> None:
    """RFC 4303 sections 2.1 and 2.2."""
    read = [ESP(Probes("esp", THERE, 0).octets(number)) for number in (0, 1)]
    assert [(one.spi, one.seq) for one in read] == [(SPI, 1), (SPI, 2)]


@pytest.mark.parametrize("protocol", ["gre", "esp", "udp"])
@given(base=st.integers(0, 0xFFFF), number=st.integers(0, 255 * 10))
def test_an_error_is_about_the_probe_it_quotes(protocol, base: int, number: int) -> None:
    probes = Probes(protocol, THERE, base)
    error = IcmpError.parse(error_about(probes, number))
    assert error[:3] == (ROUTER, 11, 0)
    assert probes.number_of(error) == number


@pytest.mark.parametrize("protocol", ["gre", "esp", "udp"])
def test_other_errors_are_about_no_probe(protocol) -> None:
    probes = Probes(protocol, THERE, 0x1234)
    packet = error_about(probes, 1)
    assert Probes(protocol, "199.0.0.2", 0x1234).number_of(IcmpError.parse(packet)) is None
    if protocol == "udp":  # any Call ID may be one of ours
        assert Probes(protocol, THERE, 0x1235).number_of(IcmpError.parse(packet)) is None
    if protocol == "esp":
        foreign = packet[:-8] + bytes.fromhex("abcd1234") + packet[-4:]
        assert probes.number_of(IcmpError.parse(foreign)) is None
    others = [other for other in NUMBERS if other != protocol]
    assert all(Probes(other, THERE, 0x1234).number_of(IcmpError.parse(packet)) is None for other in others)
    assert probes.number_of(IcmpError.parse(error_about(probes, 1, quoted=7))) is None


@given(st.binary(max_size=64))
def test_whatever_comes_is_an_error_or_none(octets: bytes) -> None:
    error = IcmpError.parse(octets)
    for protocol in NUMBERS:
        assert error is None or Probes(protocol, THERE, 1).number_of(error) is None or len(error.quoted) >= 8


def test_echo_replies_are_no_errors() -> None:
    assert IcmpError.parse(bytes(IP(src=ROUTER, dst=HERE) / ICMP(type=0) / bytes(28))) is None


# --- what two ways mean ------------------------------------------------------------------------------------------


def router(ttl: int) -> str:
    return f"192.0.2.{ttl}"


def way(text: str) -> list[Hop]:
    """Return a way: t time exceeded, * silent, D the host (port unreachable), P/X/H/U a router's unreachable."""
    codes = {"P": 2, "U": 3, "H": 1, "X": 13}
    hops = []
    for ttl, letter in enumerate(text, 1):
        answer = {
            "t": Answer(router(ttl), 11, 0, 1),
            "*": None,
            "D": Answer(THERE, 3, 3, 1),
            "N": Answer(THERE, 3, 2, 1),
            "Z": Answer(THERE, 3, 13, 1),
        }.get(letter) or (Answer(router(ttl), 3, codes[letter], 1) if letter in codes else None)
        hops.append(Hop(ttl, (None, answer)))
    return hops


@pytest.mark.parametrize(("gre", "udp", "verdict", "hop", "said"), [
    ("ttN", "ttD", "reached", 3, "does not speak GRE itself (protocol unreachable)"),
    ("ttD", "ttD", "reached", 3, "GRE reaches 199.0.0.1 (hop 3)"),
    ("tt*", "ttD", "passes", 2, "GRE passes every router that answers, up to hop 2"),
    ("t**", "t*D", "passes", 1, "GRE passes every router that answers, up to hop 1"),
    ("*", "D", "passes", 0, "up to hop 0, none"),
    ("t***", "tttD", "filtered", 1, "no further than hop 1, 192.0.2.1, and UDP goes on to hop 2, 192.0.2.2"),
    ("****", "*ttD", "filtered", 0, "no further than this host, and UDP goes on to hop 2, 192.0.2.2"),
    ("t*****", "ttt***", "filtered", 1, "UDP goes on to hop 2, 192.0.2.2"),
    ("tX", "tt", "refused", 2, "192.0.2.2 (hop 2) refuses GRE: administratively prohibited"),
    ("tP", "tt", "refused", 2, "192.0.2.2 (hop 2) refuses GRE: protocol unreachable"),
    ("tU", "tt", "refused", 2, "192.0.2.2 (hop 2) refuses GRE: port unreachable"),
    ("ttZ", "ttD", "refused", 3, "199.0.0.1 (hop 3) refuses GRE: administratively prohibited"),
    ("tt*****", "tt*****", "broken", 2, "GRE and UDP both end behind hop 2, 192.0.2.2"),
    ("tH", "tH", "broken", 2, "192.0.2.2 (hop 2) says: host unreachable"),
    ("t*", "tH", "broken", 1, "192.0.2.2 says of UDP: host unreachable"),
    ("*****", "*****", "silent", 0, "neither GRE nor UDP gets any answer"),
    ("ttt*****", "t*******", "undecided", 3, "GRE gets to hop 3, 192.0.2.3, and UDP only to hop 1"),
    ("t*****", "******", "undecided", 1, "and UDP nowhere"),
])  # fmt: skip
def test_h_69_a_filtered_protocol_is_told_from_a_broken_path(
    gre: str, udp: str, verdict: str, hop: int, said: str
) -> None:
    finding = judge("gre", way(gre), way(udp), THERE)
    assert (finding.verdict, finding.hop) == (verdict, hop)
    assert said in finding.said
    assert finding.hint or verdict == "reached"


@pytest.mark.parametrize(
    ("udp", "verdict"), [("ttD", "reached"), ("tt*", "undecided"), ("***", "silent"), ("tX", "refused")]
)
def test_one_protocol_alone(udp: str, verdict: str) -> None:
    assert judge("udp", way(udp), None, THERE).verdict == verdict


def run(gre: str, udp: str | None, most_hops: int = 30) -> Trace:
    """Let a trace go along these ways; what it does not ask for is not told."""
    ways = {"gre": way(gre), **({"udp": way(udp)} if udp is not None else {})}
    trace = Trace(THERE, list(ways), most_hops)
    while (asked := trace.wanted())[1]:
        ttl, protocols = asked
        trace.add({each: ways[each][ttl - 1] if ttl <= len(ways[each]) else Hop(ttl, (None,)) for each in protocols})
    return trace


@pytest.mark.parametrize(("gre", "udp", "tried"), [
    ("ttN", "ttD", (3, 3)),
    ("t", "tttD", (4, 4)),  # GRE is tried as far as UDP gets
    ("tX", "tttD", (2, 2)),  # refused by name: nothing more to learn
    ("tttN", "tX", (4, 2)),  # UDP refused, GRE goes on
    ("tt", "tt", (2 + MOST_SILENT, 2 + MOST_SILENT)),
    ("ttN", None, (3, 0)),
])  # fmt: skip
def test_a_trace_ends(gre: str, udp: str | None, tried: tuple[int, int]) -> None:
    trace = run(gre, udp)
    assert (len(trace.hops["gre"]), len(trace.hops.get("udp", []))) == tried


def test_a_trace_has_at_most_so_many_hops() -> None:
    assert len(run("t" * 40, "t" * 40, most_hops=12).hops["gre"]) == 12
