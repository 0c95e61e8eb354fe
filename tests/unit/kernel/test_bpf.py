"""The eBPF assembler: encodings as in RFC 9669, and jumps to labels."""

from __future__ import annotations

import struct
import sys

import pytest

from fastmasq.kernel.bpf.assembler import R0, R1, R6, R8, Assembler


def decoded(code: Assembler) -> list[tuple[int, int, int, int, int]]:
    """Return (opcode, destination, source, offset, immediate) of each instruction."""
    assert sys.byteorder == "little", "the register nibbles are the other way round on big-endian machines"
    return [
        (opcode, registers & 15, registers >> 4, offset, immediate)
        for opcode, registers, offset, immediate in struct.iter_unpack("=BBhi", code.program())
    ]


def test_encodings() -> None:
    code = Assembler()
    code.move(R6, R1)
    code.load(R0, R6, 16, 4)
    code.load(R8, R8, 0, 1)
    code.load_packet(30, 2)
    code.load_map_value(R8, 5, 8192)
    code.set(R0, -1)
    code.exit()
    assert decoded(code) == [
        (0xBF, 6, 1, 0, 0),
        (0x61, 0, 6, 16, 0),
        (0x71, 8, 8, 0, 0),
        (0x28, 0, 0, 0, 30),
        (0x18, 8, 2, 0, 5),
        (0x00, 0, 0, 0, 8192),
        (0xB4, 0, 0, 0, -1),
        (0x95, 0, 0, 0, 0),
    ]


def test_jumps_count_from_the_next_instruction() -> None:
    code = Assembler()
    code.label("again")
    code.jump_if_equal(R0, 1, "end")
    code.set(R0, 7)
    code.jump("again")
    code.label("end")
    code.exit()
    assert [offset for _, _, _, offset, _ in decoded(code)] == [2, 0, -3, 0]


def test_unknown_label_is_an_error() -> None:
    code = Assembler()
    code.jump("nowhere")
    with pytest.raises(KeyError):
        code.program()
