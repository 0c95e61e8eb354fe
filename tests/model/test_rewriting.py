"""Checksum correction and fragments in the specification, against computing everything from scratch."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import packets
from tests.support.model.wire import Refused, Rewriter, corrected, fragments, parse
from tests.support.packets import internet_checksum, problems, reassemble

words = st.integers(0, 0xFFFF)
EDGES = (0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)


@pytest.mark.parametrize("before", EDGES)
@pytest.mark.parametrize("after", EDGES)
def test_correction_is_exact_at_the_edges(before: int, after: int) -> None:
    for rest in (1, 0x1234, 0xFFFE):
        checksum = internet_checksum(struct.pack(">HH", before, rest))
        right = internet_checksum(struct.pack(">HH", after, rest))
        assert corrected(checksum, struct.pack(">H", before), struct.pack(">H", after)) == right


@given(st.lists(words, min_size=2, max_size=10), st.lists(words, min_size=2, max_size=10))
def test_correction_equals_a_new_sum(before: list[int], after: list[int]) -> None:
    length = min(len(before), len(after))
    old, new = (struct.pack(f">{length}H", *numbers[:length]) for numbers in (before, after))
    rest = b"\x12\x34"
    assert corrected(internet_checksum(old + rest), old, new) == internet_checksum(new + rest)


@given(st.binary(max_size=64), st.integers(1, 65535), st.integers(0, 2**32 - 1))
def test_a_rewritten_packet_is_as_if_it_had_been_sent_so(payload: bytes, port: int, address: int) -> None:
    original = parse(packets.udp("10.0.0.2:4000", "199.0.0.1:53", payload))
    rewriter = Rewriter(original.raw, original.start, original.protocol)
    rewriter.source(address, port)
    rewriter.hop()
    assert rewriter.bytes() == packets.udp((address, port), ("199.0.0.1", 53), payload, ttl=63)


@given(
    length=st.integers(0, 3000),
    mtu=st.integers(68, 1500),
    option=st.binary(max_size=8),
    fields=st.sampled_from([{}, {"mf": True}, {"offset": 64}, {"offset": 4096, "mf": True}]),
)
def test_fragments_make_the_packet_again(length: int, mtu: int, option: bytes, fields: dict) -> None:
    options = bytes((0x94, len(option) + 2)) + option
    packet = packets.ipv4("10.0.0.2", "199.0.0.1", 47, bytes(length), options=options, identification=7, **fields)
    pieces = fragments(packet, mtu)
    assert all(len(piece) <= mtu for piece in pieces)
    assert all(problems(piece) == [] for piece in pieces if len(pieces) > 1)
    assert reassemble(list(pieces)) == packet


@given(st.binary(max_size=100))
def test_no_octets_upset_the_parser(octets: bytes) -> None:
    for packet in (octets, b"\x45" + octets, b"\x46\0\0\x28" + octets):
        try:
            parsed = parse(packet)
        except Refused:
            continue
        assert len(parsed.raw) <= len(packet)
