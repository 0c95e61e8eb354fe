"""Checksums against a slow reference: RFC 1071 sums of any length, RFC 1624 updates, the rules of UDP and offloads."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scapy.utils import checksum as scapy_checksum

from fastmasq.wire import sums

EDGES = (0x0000, 0x0001, 0x00FF, 0x0100, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)


def ones_complement_sum(words) -> int:
    """Add one word after the other, with the end-around carry of RFC 1071 section 1."""
    total = 0
    for word in words:
        total += word
        if total > 0xFFFF:
            total -= 0xFFFF
    return total


def big_endian_words(data: bytes) -> list[int]:
    return [data[at] << 8 | (data[at + 1] if at + 1 < len(data) else 0) for at in range(0, len(data), 2)]


def slow_checksum(words) -> int:
    return 0xFFFF - ones_complement_sum(words)


# --- sums over octets --------------------------------------------------------------------------------------------


def test_rfc1071_worked_example() -> None:
    """RFC 1071 section 3: 00 01 f2 03 f4 f5 f6 f7 sums up to ddf2."""
    assert sums.internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


@pytest.mark.parametrize("length", [*range(41), 1499, 1500, 65534, 65535])
def test_any_length_and_alignment(length: int) -> None:
    """Odd lengths are padded with a zero octet, and the start may lie at any address."""
    chance = random.Random(length)
    memory = bytearray(chance.randbytes(length + 8))
    for start in range(8 if length < 100 else 2):
        data = memory[start : start + length]
        assert sums.internet_checksum(memoryview(memory)[start : start + length]) == slow_checksum(
            big_endian_words(data)
        )


@pytest.mark.parametrize("octet", [0x00, 0x01, 0xFF])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 65535])
def test_carries_of_extreme_octets(octet: int, length: int) -> None:
    data = bytes([octet]) * length
    assert sums.internet_checksum(data) == slow_checksum(big_endian_words(data))


@pytest.mark.parametrize("edge", EDGES)
def test_every_word_beside_an_edge(edge: int) -> None:
    """All 2^16 values of one word, next to a word at the edge."""
    pairs = np.empty((65536, 2), ">u2")
    pairs[:, 0] = np.arange(65536)
    pairs[:, 1] = edge
    raw = pairs.tobytes()
    for word in range(65536):
        assert sums.internet_checksum(raw[4 * word : 4 * word + 4]) == slow_checksum((word, edge))


def test_a_sum_to_start_from() -> None:
    assert sums.internet_checksum(b"\x12\x34\x56", 0xFFFF_FFFF) == slow_checksum((0x1234, 0x5600, 0xFFFF, 0xFFFF))
    assert sums.internet_checksum(b"", 0x1234) == 0xFFFF - 0x1234


@pytest.mark.parametrize("length", [20, 24, 60])
def test_against_scapy(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert sums.internet_checksum(data) == scapy_checksum(data)


@pytest.mark.parametrize("length", [0, 8, 20, 0xFFFF])
@pytest.mark.parametrize("protocol", [1, 6, 17, 255])
def test_rfc793_pseudo_header(protocol: int, length: int) -> None:
    for source, destination in [(0, 0), (0x0A000002, 0xC7000001), (0xFFFFFFFF, 0xFFFFFFFF), (0xC8C8C8C8, 1)]:
        words = (source >> 16, source & 0xFFFF, destination >> 16, destination & 0xFFFF, protocol, length)
        assert sums.pseudo_header_sum(source, destination, protocol, length) == ones_complement_sum(words)


# --- updates of a full checksum ----------------------------------------------------------------------------------


def test_rfc1624_section_4_example() -> None:
    """HC = dd2f, m = 5555, m' = 3285: the right answer is 0000, where RFC 1141 came to ffff."""
    assert sums.update_full(0xDD2F, sums.delta([0x5555], [0x3285])) == 0x0000


@pytest.mark.parametrize("new", EDGES)
def test_rfc1624_update_is_recomputation(new: int) -> None:
    """Every old word, changed to a word at the edge: the update comes to the checksum of the new message, exactly."""
    constant = 0x4500
    expected = slow_checksum((constant, new))
    for old in range(65536):
        assert sums.update_full(slow_checksum((constant, old)), sums.delta((old,), (new,))) == expected


@pytest.mark.parametrize("old", EDGES)
def test_rfc1624_update_to_every_word(old: int) -> None:
    constant = 0x0001
    before = slow_checksum((constant, old))
    for new in range(65536):
        assert sums.update_full(before, sums.delta((old,), (new,))) == slow_checksum((constant, new))


def test_a_delta_of_several_words() -> None:
    """What a session does at birth: all changed words in one number, used for any packet of the flow."""
    chance = random.Random(1624)
    for _ in range(2000):
        old, new, rest = ([chance.choice((*EDGES, chance.randrange(65536))) for _ in range(6)] for _ in range(3))
        rest[0] = 0x4500
        assert sums.update_full(slow_checksum(old + rest), sums.delta(old, new)) == slow_checksum(new + rest)


@pytest.mark.parametrize("change", [(0x0000, 0xFFFF), (0xFFFF, 0x0000), (0x1234, 0x1234)])
def test_a_change_that_is_none(change: tuple[int, int]) -> None:
    """ffff and 0000 are the same number in one's complement: no checksum but the ambiguous zero may move."""
    delta = sums.delta([change[0]], [change[1]])
    for checksum in range(65535):
        assert sums.update_full(checksum, delta) == checksum


@pytest.mark.parametrize("error", [0x0001, 0x1111, 0x8000, 0xFFFE])
def test_rfc1624_a_wrong_checksum_stays_wrong(error: int) -> None:
    """The difference to the right checksum is the same before and after."""
    for old, new in [(0x0A00, 0xC8C8), (0x0000, 0xFFFE), (0xFFFF, 0x0001)]:
        wrong = ones_complement_sum((slow_checksum((0x4500, old)), error))
        after = sums.update_full(wrong, sums.delta([old], [new]))
        assert after % 0xFFFF == ones_complement_sum((slow_checksum((0x4500, new)), error)) % 0xFFFF
        assert after % 0xFFFF != slow_checksum((0x4500, new)) % 0xFFFF


def test_words_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError):
        sums.delta([1, 2], [1])


# --- UDP ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", EDGES)
def test_rfc3022_udp_without_checksum_stays_without(delta: int) -> None:
    assert sums.update_udp(0, delta) == 0


@pytest.mark.parametrize("delta", EDGES)
def test_rfc768_a_computed_zero_is_sent_as_ones(delta: int) -> None:
    """No update ever makes a checksum disappear, and otherwise UDP is updated like everybody else."""
    for checksum in range(1, 65536):
        full = sums.update_full(checksum, delta)
        assert sums.update_udp(checksum, delta) == (full or 0xFFFF)


# --- partial checksums -------------------------------------------------------------------------------------------


def test_a_partial_checksum_follows_the_addresses() -> None:
    """CHECKSUM_PARTIAL holds the plain sum of the pseudo-header; after the update it is that of the new one."""
    chance = random.Random(42)
    addresses = [0x0A000002, 0xC8C8C8C8, 0xC7000001, 0xFFFFFFFF, 0x00000001] + [
        chance.randrange(1 << 32) for _ in range(20)
    ]
    for old in addresses:
        for new in addresses:
            delta = sums.delta((old >> 16, old & 0xFFFF), (new >> 16, new & 0xFFFF))
            for length in (20, 1480, 65515):
                before = sums.pseudo_header_sum(old, 0xC7000001, 6, length)
                assert sums.update_partial(before, delta) == sums.pseudo_header_sum(new, 0xC7000001, 6, length)


@pytest.mark.parametrize("delta", EDGES)
def test_partial_and_full_are_complements(delta: int) -> None:
    for checksum in range(65536):
        assert sums.update_partial(checksum, delta) == 0xFFFF - sums.update_full(0xFFFF - checksum, delta)
