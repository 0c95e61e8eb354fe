"""A small eBPF assembler.

Only what fastmasq needs. Programs refer to jump targets by label; `Assembler.program` resolves them.
Instruction encodings are those of linux/bpf.h and RFC 9669.
"""

from __future__ import annotations

import struct

_BPF_PSEUDO_MAP_FD, _BPF_PSEUDO_MAP_VALUE = 1, 2

R0, R1, R2, R3, R4, R6, R7, R8, STACK = 0, 1, 2, 3, 4, 6, 7, 8, 10
MAP_LOOKUP, CHANGE_TYPE, NETNS_COOKIE, RING_OUTPUT = 1, 32, 122, 130  # helper functions

_SIZES = {8: 0x18, 4: 0x00, 2: 0x08, 1: 0x10}  # BPF_DW, BPF_W, BPF_H, BPF_B


class Assembler:
    """Collects instructions. Registers are numbers; comparisons are unsigned and of 32 bits."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, str | int, int]] = []  # opcode, dst, src, offset or label, immediate
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def _emit(self, opcode: int, dst: int = 0, src: int = 0, offset: str | int = 0, immediate: int = 0) -> None:
        self._code.append((opcode, dst, src, offset, immediate & 0xFFFFFFFF))

    def move(self, dst: int, src: int) -> None:
        self._emit(0xBF, dst, src)

    def set(self, dst: int, value: int) -> None:
        self._emit(0xB4, dst, immediate=value)

    def add(self, dst: int, src: int) -> None:
        self._emit(0x0F, dst, src)

    def add_value(self, dst: int, value: int) -> None:
        self._emit(0x07, dst, immediate=value)

    def bit_and(self, dst: int, value: int) -> None:
        self._emit(0x54, dst, immediate=value)

    def shift_left(self, dst: int, bits: int) -> None:
        self._emit(0x64, dst, immediate=bits)

    def shift_right(self, dst: int, bits: int) -> None:
        self._emit(0x74, dst, immediate=bits)

    def shift_right_by(self, dst: int, src: int) -> None:
        self._emit(0x7C, dst, src)

    def load(self, dst: int, base: int, offset: int, size: int) -> None:
        """dst = native-endian memory of 1, 2, 4 or 8 bytes at base + offset."""
        self._emit(0x61 | _SIZES[size], dst, base, offset)

    def store(self, base: int, offset: int, src: int, size: int) -> None:
        """Native-endian memory of 1, 2, 4 or 8 bytes at base + offset = src."""
        self._emit(0x63 | _SIZES[size], base, src, offset)

    def store_value(self, base: int, offset: int, value: int, size: int) -> None:
        self._emit(0x62 | _SIZES[size], base, offset=offset, immediate=value)

    def call(self, helper: int) -> None:
        self._emit(0x85, immediate=helper)

    def load_packet(self, offset: int, size: int) -> None:
        """R0 = big-endian packet bytes at `offset`; a packet too short ends the program with 0. Needs R6 = context."""
        self._emit(0x20 | _SIZES[size], immediate=offset)

    def load_packet_indexed(self, index: int, offset: int, size: int) -> None:
        """R0 = big-endian packet bytes at register `index` + offset, otherwise like load_packet."""
        self._emit(0x40 | _SIZES[size], src=index, immediate=offset)

    def load_map_value(self, dst: int, map_descriptor: int, offset: int) -> None:
        """dst = address of `offset` in the value of a one-entry array map."""
        self._emit(0x18, dst, _BPF_PSEUDO_MAP_VALUE, immediate=map_descriptor)
        self._emit(0x00, immediate=offset)

    def load_map(self, dst: int, map_descriptor: int) -> None:
        self._emit(0x18, dst, _BPF_PSEUDO_MAP_FD, immediate=map_descriptor)
        self._emit(0x00)

    def jump_if_zero(self, register: int, target: str) -> None:
        """Jump if all 64 bits are zero: a pointer that leads nowhere."""
        self._emit(0x15, register, offset=target)

    def jump_if_above(self, register: int, other: int, target: str) -> None:
        """Compare two registers, all 64 bits of them: the bounds of memory."""
        self._emit(0x2D, register, other, target)

    def jump(self, target: str) -> None:
        self._emit(0x05, offset=target)

    def jump_if_equal(self, register: int, value: int, target: str) -> None:
        self._emit(0x16, register, offset=target, immediate=value)

    def jump_if_not_equal(self, register: int, value: int, target: str) -> None:
        self._emit(0x56, register, offset=target, immediate=value)

    def jump_if_at_least(self, register: int, value: int, target: str) -> None:
        self._emit(0x36, register, offset=target, immediate=value)

    def exit(self) -> None:
        self._emit(0x95)

    def program(self) -> bytes:
        """Return the machine code in host byte order."""
        encoded = bytearray()
        for position, (opcode, dst, src, offset, immediate) in enumerate(self._code):
            if isinstance(offset, str):
                offset = self._labels[offset] - position - 1
            encoded += struct.pack("=BBhI", opcode, _registers(dst, src), offset, immediate)
        return bytes(encoded)


def _registers(dst: int, src: int) -> int:
    return dst | src << 4 if struct.pack("=H", 1)[0] else dst << 4 | src
