"""A server for loads that want answers: an eBPF program that sends UDP packets back out of the interface they came by.

It runs at the interface's tc ingress, so an answer costs far less than one by a program with a socket. Source and
destination change places in the Ethernet, IP and UDP headers, which leaves every checksum as it was.
"""

from __future__ import annotations

import os
import socket
import struct

from fastmasq.kernel import netlink
from fastmasq.kernel.bpf import calls, clsact

_CONTEXT, _DATA, _END, _A, _B = 6, 7, 3, 4, 5  # registers; 1 and 2 are arguments, 0 the result
_SKB_IFINDEX, _SKB_DATA, _SKB_DATA_END = 40, 76, 80  # offsets in struct __sk_buff
_PULL_DATA, _REDIRECT = 39, 23  # helper functions
_HEADERS = 14 + 20 + 8
_TC_ACT_UNSPEC = -1
_PRIORITY = 1

_BYTE, _HALF, _WORD = 0x10, 0x08, 0x00

# (offset, offset, width) of the fields that change places
_SWAPS = (
    (0, 6, _WORD), (4, 10, _HALF),      # Ethernet addresses
    (26, 30, _WORD),                    # IP addresses
    (34, 36, _HALF),                    # ports
)  # fmt: skip


def attach(interface: str, port: int) -> None:
    """Reflect what comes to the UDP port on an interface of this thread's network namespace. Raises OSError."""
    index = socket.if_nametoindex(interface)
    descriptor = calls.load_classifier(_program(port), "bench_reflect")
    kernel = netlink.RequestSocket()
    try:
        clsact.add(kernel, index)
        classifier = clsact.classifier(index, _PRIORITY)
        clsact.attach(kernel, classifier, descriptor, "reflect", netlink.NLM_F_EXCL)
    finally:
        kernel.close()
        os.close(descriptor)


def _program(port: int) -> bytes:
    """Return the machine code. Packets without options only; everything else goes on to the server."""
    tests = ((12, _HALF, socket.htons(0x0800)), (14, _BYTE, 0x45), (23, _BYTE, 17), (36, _HALF, socket.htons(port)))
    body = b""
    for first, second, width in _SWAPS:
        body += _load(_A, _DATA, first, width) + _load(_B, _DATA, second, width)
        body += _store(_DATA, first, _B, width) + _store(_DATA, second, _A, width)
    body += _load(1, _CONTEXT, _SKB_IFINDEX, _WORD) + _set(2, 0) + _call(_REDIRECT) + _EXIT
    checks = b""
    for offset, width, value in reversed(tests):
        skip = (len(checks) + len(body)) // 8
        checks = _load(_A, _DATA, offset, width) + _jump_unless_equal(_A, value, skip) + checks
    body = checks + body
    bounds = _load(_DATA, _CONTEXT, _SKB_DATA, _WORD) + _load(_END, _CONTEXT, _SKB_DATA_END, _WORD)
    bounds += _copy(_A, _DATA) + _add(_A, _HEADERS) + _jump_if_greater(_A, _END, len(body) // 8)
    start = _copy(_CONTEXT, 1) + _set(2, _HEADERS) + _call(_PULL_DATA)
    return start + bounds + body + _set(0, _TC_ACT_UNSPEC) + _EXIT


def _instruction(opcode: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    registers = destination | source << 4 if struct.pack("=H", 1)[0] else destination << 4 | source
    return struct.pack("=BBhi", opcode, registers, offset, immediate)


_EXIT = _instruction(0x95)


def _load(destination: int, base: int, offset: int, width: int) -> bytes:
    return _instruction(0x61 | width, destination, base, offset)


def _store(base: int, offset: int, source: int, width: int) -> bytes:
    return _instruction(0x63 | width, base, source, offset)


def _copy(destination: int, source: int) -> bytes:
    return _instruction(0xBF, destination, source)


def _set(destination: int, value: int) -> bytes:
    return _instruction(0xB7, destination, immediate=value)


def _add(destination: int, value: int) -> bytes:
    return _instruction(0x07, destination, immediate=value)


def _call(helper: int) -> bytes:
    return _instruction(0x85, immediate=helper)


def _jump_unless_equal(register: int, value: int, instructions: int) -> bytes:
    return _instruction(0x55, register, offset=instructions, immediate=value)


def _jump_if_greater(register: int, other: int, instructions: int) -> bytes:
    return _instruction(0x2D, register, other, instructions)
