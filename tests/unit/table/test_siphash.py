"""The keyed hash against an implementation written from the paper, and what the table needs of it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fastmasq.table.masq import MasqTable

MASK = (1 << 64) - 1


def rotated(value: int, count: int) -> int:
    return (value << count | value >> 64 - count) & MASK


def sip_round(v: list[int]) -> None:
    v[0] = (v[0] + v[1]) & MASK
    v[1] = rotated(v[1], 13) ^ v[0]
    v[0] = rotated(v[0], 32)
    v[2] = (v[2] + v[3]) & MASK
    v[3] = rotated(v[3], 16) ^ v[2]
    v[0] = (v[0] + v[3]) & MASK
    v[3] = rotated(v[3], 21) ^ v[0]
    v[2] = (v[2] + v[1]) & MASK
    v[1] = rotated(v[1], 17) ^ v[2]
    v[2] = rotated(v[2], 32)


def siphash(key: bytes, message: bytes, compressions: int, finalisations: int) -> int:
    """SipHash-c-d of Aumasson and Bernstein, over a message of any length."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    tail = len(message) % 8
    whole = len(message) - tail
    blocks = [int.from_bytes(message[at : at + 8], "little") for at in range(0, whole, 8)]
    blocks.append(int.from_bytes(message[whole:], "little") | (len(message) & 0xFF) << 56)
    for block in blocks:
        v[3] ^= block
        for _ in range(compressions):
            sip_round(v)
        v[0] ^= block
    v[2] ^= 0xFF
    for _ in range(finalisations):
        sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def test_the_reference_is_right() -> None:
    """The vector of the paper's appendix A, for SipHash-2-4; the rounds are parameters."""
    assert siphash(bytes(range(16)), bytes(range(15)), 2, 4) == 0xA129CA6149BE45E5


@pytest.mark.parametrize(
    "secret", [bytes(16), bytes(range(16)), b"\xff" * 16, b"\x80" + bytes(15), bytes(15) + b"\x01"]
)
def test_siphash_1_3(secret: bytes) -> None:
    chance = random.Random(secret)
    words = [(0, 0), (MASK, MASK), (1, 0), (0, 1)] + [
        (chance.randrange(1 << 64), chance.randrange(1 << 64)) for _ in range(200)
    ]
    for first, second in words:
        message = first.to_bytes(8, "little") + second.to_bytes(8, "little")
        assert MasqTable.siphash(secret, first, second) == siphash(secret, message, 1, 3)


def test_every_bit_of_the_key_and_of_the_message_matters() -> None:
    secret, first, second = bytes(range(16)), 0x0A000002C7000001, 0x0600_0FA0_0000_0050
    seen = {MasqTable.siphash(secret, first, second)}
    for bit in range(64):
        seen.add(MasqTable.siphash(secret, first ^ 1 << bit, second))
        seen.add(MasqTable.siphash(secret, first, second ^ 1 << bit))
    for bit in range(128):
        other = (int.from_bytes(secret, "little") ^ 1 << bit).to_bytes(16, "little")
        seen.add(MasqTable.siphash(other, first, second))
    assert len(seen) == 1 + 2 * 64 + 128


def test_a_secret_is_drawn_for_each_table() -> None:
    """Without the secret nobody can choose keys that collide: two tables give an endpoint different random ports."""

    def ports() -> list[int]:
        table = MasqTable(capacity=64)
        allowed = np.ones((3, 65536), bool)
        allowed[:, 4000] = False
        table.set_external(0xC8C8C8C8, allowed)
        rows = [table.open(17, 0x0A000002 + host, 4000, 0xC7000001, 53, 0) for host in range(8)]
        return [int(table.sessions["flow"][row, 0]["sid"]) for row in rows]

    assert ports() != ports()
