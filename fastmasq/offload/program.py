"""The program of flow.bpf.c: read from what the compiler has made of it, tied to the arrays, and loaded.

What the compiler makes is an ELF file (elf(5)). Of it we need the instructions, and where they name an array: there
goes the descriptor of the map. An array of one row is named by its memory, which the program reads without a call.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fastmasq.errors import KernelError
from fastmasq.kernel.bpf import calls

FILE = Path(__file__).with_name("flow.bpf.o")
SECTION = "classifier"
NAME = "fastmasq_flow"
SINGLE = ("carrier", "identifications", "here")  # arrays of one row

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_HERE = struct.Struct("=I4x")
_RELOCATIONS = 9  # SHT_REL
_MAP, _MAP_VALUE = 1, 2  # BPF_PSEUDO_MAP_FD and _VALUE, in place of the source register


class Program(NamedTuple):
    """Instructions, and the array that is named at each of these places."""

    code: bytes
    names: Mapping[int, str]


def read(file: Path = FILE) -> Program:
    """Raises KernelError if there is none."""
    try:
        octets = file.read_bytes()
    except OSError:
        raise KernelError("the program was not built: there was no compiler for it (gcc-bpf)") from None
    (at,) = struct.unpack_from("<Q", octets, 0x28)
    size, count, names = struct.unpack_from("<HHH", octets, 0x3A)
    sections = [_SECTION.unpack_from(octets, at + number * size) for number in range(count)]

    def content(number: int) -> bytes:
        first, length = sections[number][4:6]
        return octets[first : first + length]

    titles = [_text(content(names), section[0]) for section in sections]
    code = titles.index(SECTION)
    found = {}
    for number, section in enumerate(sections):
        if section[1] != _RELOCATIONS or section[7] != code:
            continue
        symbols = content(section[6])
        texts = content(sections[section[6]][6])
        for place, info in _RELOCATION.iter_unpack(content(number)):
            found[place] = _text(texts, _SYMBOL.unpack_from(symbols, (info >> 32) * _SYMBOL.size)[0])
    return Program(content(code), found)


def _text(texts: bytes, at: int) -> str:
    return texts[at : texts.index(b"\0", at)].decode()


def load(program: Program, descriptors: Mapping[str, int], link: int) -> int:
    """Load the program for the link of this number; return its descriptor, which holds the arrays.

    Raises KernelError.
    """
    here = calls.load_value(_HERE.pack(link))
    try:
        return calls.load_classifier(_tied(program, {**descriptors, "here": here}), NAME)
    except OSError as error:
        raise KernelError(f"the kernel refused the program: {error.strerror}") from None
    finally:
        os.close(here)


def _tied(program: Program, descriptors: Mapping[str, int]) -> bytes:
    code = bytearray(program.code)
    for place, name in program.names.items():
        kind = _MAP_VALUE if name in SINGLE else _MAP
        (offset,) = struct.unpack_from("<i", code, place + 4)
        code[place + 1] = code[place + 1] & 0x0F | kind << 4
        struct.pack_into("<i", code, place + 4, descriptors[name])
        struct.pack_into("<i", code, place + 12, offset)
    return bytes(code)
