"""The packet builders and the checker, compared with scapy as an independent oracle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Raw

from tests.support import packets
from tests.support.packets import BAD, decode, internet_checksum, problems

payloads = st.binary(max_size=64)
words = st.integers(0, 0xFFFF)


@given(words, words, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), payloads)
def test_tcp_as_scapy_builds_it(sport: int, dport: int, seq: int, ack: int, payload: bytes) -> None:
    ours = packets.tcp(("10.0.0.2", sport), ("199.0.0.1", dport), "SA", seq=seq, ack=ack, window=512, payload=payload)
    header = TCP(sport=sport, dport=dport, flags="SA", seq=seq, ack=ack, window=512)
    assert ours == bytes(IP(src="10.0.0.2", dst="199.0.0.1", id=0) / header / Raw(payload))
    assert problems(ours) == []


@given(words, words, payloads, st.integers(0, 255), words, st.integers(0, 255))
def test_udp_as_scapy_builds_it(sport: int, dport: int, payload: bytes, ttl: int, ipid: int, tos: int) -> None:
    fields = {"ttl": ttl, "identification": ipid, "tos": tos, "df": True}
    ours = packets.udp(("10.0.0.2", sport), ("199.0.0.1", dport), payload, **fields)
    header = IP(src="10.0.0.2", dst="199.0.0.1", ttl=ttl, id=ipid, tos=tos, flags="DF")
    assert ours == bytes(header / UDP(sport=sport, dport=dport) / Raw(payload))
    assert problems(ours) == []


@given(words, words, payloads)
def test_ping_as_scapy_builds_it(identifier: int, seq: int, payload: bytes) -> None:
    ours = packets.ping("10.0.0.2", "199.0.0.1", identifier, seq=seq, payload=payload)
    assert ours == bytes(IP(src="10.0.0.2", dst="199.0.0.1", id=0) / ICMP(id=identifier, seq=seq) / Raw(payload))


def test_icmp_error_as_scapy_builds_it() -> None:
    quote = packets.udp("200.200.200.200:4000", "199.0.0.1:53", b"question")
    ours = packets.icmp_error("199.0.0.254", "200.200.200.200", 3, 4, quote, mtu=1280)
    theirs = IP(src="199.0.0.254", dst="200.200.200.200", id=0) / ICMP(type=3, code=4, nexthopmtu=1280) / Raw(quote)
    assert ours == bytes(theirs)
    assert problems(ours) == []
    assert decode(ours).mtu == 1280
    assert decode(ours).quote == quote


def test_rfc_1071_example() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


@pytest.mark.parametrize(
    ("packet", "wrong"),
    [
        (packets.udp("10.0.0.2:1", "199.0.0.1:2", b"x", checksum=BAD), ["UDP checksum"]),
        (packets.udp("10.0.0.2:1", "199.0.0.1:2", b"x", checksum=0), []),
        (packets.udp("10.0.0.2:1", "199.0.0.1:2", b"x", length=7), ["UDP length"]),
        (packets.tcp("10.0.0.2:1", "199.0.0.1:2", "S", checksum=BAD), ["TCP checksum"]),
        (packets.tcp("10.0.0.2:1", "199.0.0.1:2", "S", data_offset=24), ["TCP data offset"]),
        (packets.ping("10.0.0.2", "199.0.0.1", 7, checksum=BAD), ["ICMP checksum"]),
        (packets.ping("10.0.0.2", "199.0.0.1", 7, ip_checksum=BAD), ["IPv4 checksum"]),
        (packets.ping("10.0.0.2", "199.0.0.1", 7, total_length=29), ["total length 29, but 28 octets"]),
        (packets.ping("10.0.0.2", "199.0.0.1", 7)[:27], ["total length 28, but 27 octets", "icmp header cut short"]),
        (b"\x45\0", ["2 octets are less than an IPv4 header"]),
    ],
)
def test_problems_names_what_is_wrong(packet: bytes, wrong: list[str]) -> None:
    assert problems(packet) == wrong


def test_problems_of_a_quote() -> None:
    quote = packets.udp("200.200.200.200:4000", "199.0.0.1:53", b"question", checksum=BAD)
    whole = packets.icmp_error("199.0.0.254", "200.200.200.200", 3, 3, quote)
    assert problems(whole) == ["quote: UDP checksum"]
    assert problems(packets.icmp_error("199.0.0.254", "200.200.200.200", 3, 3, packets.cut(quote))) == []


def test_a_bad_checksum_is_bad_by_a_fixed_amount() -> None:
    right = packets.udp("10.0.0.2:1", "199.0.0.1:2", b"x")
    bad = packets.udp("10.0.0.2:1", "199.0.0.1:2", b"x", checksum=BAD)
    difference = int.from_bytes(bad[26:28], "big") - int.from_bytes(right[26:28], "big")
    assert difference % 0xFFFF == packets.BAD_ERROR


@given(st.binary(max_size=80))
def test_no_octets_upset_the_checker(octets: bytes) -> None:
    problems(octets)
    problems(b"\x45" + octets)
