"""A small eBPF assembler, and the bpf(2) calls to make maps, load programs, and attach them to a control group.

Only what fastmasq needs. Programs refer to jump targets by label; `Assembler.program` resolves them.
Instruction encodings are those of linux/bpf.h and RFC 9669.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

from fastmasq.errors import KernelError

SYSTEM_CALL = {"x86_64": 321, "i686": 357, "aarch64": 280, "riscv64": 280, "armv7l": 386, "ppc64le": 361, "s390x": 351}
_BPF_MAP_CREATE, _BPF_MAP_UPDATE_ELEM, _BPF_PROG_LOAD, _BPF_LINK_CREATE = 0, 2, 5, 28
_BPF_MAP_TYPE_ARRAY, _BPF_MAP_TYPE_LRU_HASH = 2, 9
_BPF_PROG_TYPE_SCHED_CLS = 3
_BPF_PSEUDO_MAP_FD, _BPF_PSEUDO_MAP_VALUE = 1, 2
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # system calls, the same on every machine
_CLOSE_ON_EXEC, _CREATE = 1, 6
_LOG_BYTES = 1 << 16

R0, R1, R2, R3, R6, R7, R8, STACK = 0, 1, 2, 3, 6, 7, 8, 10
MAP_LOOKUP, NETNS_COOKIE = 1, 122  # helper functions

_SIZES = {8: 0x18, 4: 0x00, 2: 0x08, 1: 0x10}  # BPF_DW, BPF_W, BPF_H, BPF_B

_libc = ctypes.CDLL(None, use_errno=True)


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


def system_call() -> int:
    """Return the number of bpf(2) on this machine. Raises KernelError."""
    number = SYSTEM_CALL.get(platform.machine())
    if number is None:
        raise KernelError(f"bpf: the system call's number on {platform.machine()} is not known to fastmasq")
    return number


def _bpf(command: int, attributes: bytes) -> int:
    """Do one bpf(2) system call; return a descriptor or 0. Raises OSError."""
    number = system_call()
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _checked(_libc.syscall(number, command, buffer, len(attributes)), "bpf")


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def load_value(value: bytes) -> int:
    """Make an array map whose only entry is `value`, and return its descriptor."""
    descriptor = _bpf(_BPF_MAP_CREATE, struct.pack("=IIII", _BPF_MAP_TYPE_ARRAY, 4, len(value), 1))
    key = ctypes.c_uint32(0)
    content = ctypes.create_string_buffer(value, len(value))
    try:
        _bpf(
            _BPF_MAP_UPDATE_ELEM,
            struct.pack("=I4xQQQ", descriptor, ctypes.addressof(key), ctypes.addressof(content), 0),
        )
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def make_cache(key_bytes: int, value_bytes: int, entries: int) -> int:
    """Make a hash map that forgets what was not used for longest, and return its descriptor. Raises OSError."""
    return _bpf(_BPF_MAP_CREATE, struct.pack("=IIII", _BPF_MAP_TYPE_LRU_HASH, key_bytes, value_bytes, entries))


def open_root_group() -> int:
    """Return a descriptor of the root control group, wherever its file system is mounted or not. Raises OSError."""
    context = _checked(_libc.syscall(_FSOPEN, b"cgroup2", _CLOSE_ON_EXEC), "cgroup2")
    try:
        _checked(_libc.syscall(_FSCONFIG, context, _CREATE, None, None, 0), "cgroup2")
        return _checked(_libc.syscall(_FSMOUNT, context, _CLOSE_ON_EXEC, 0), "cgroup2")
    finally:
        os.close(context)


def attach_to_group(program: int, group: int, attach_type: int) -> int:
    """Attach a program to a control group for as long as the descriptor returned is open. Raises OSError."""
    return _bpf(_BPF_LINK_CREATE, struct.pack("=IIII", program, group, attach_type, 0))


def load_classifier(program: bytes, name: str) -> int:
    """Load a tc classifier and return its descriptor. Raises OSError, with the verifier's reason if it refused."""
    return load_program(program, name, _BPF_PROG_TYPE_SCHED_CLS)


def load_program(program: bytes, name: str, kind: int, attach_type: int = 0) -> int:
    """Load a program of a kind (BPF_PROG_TYPE_*), return its descriptor. Raises OSError, with the verifier's reason."""
    code = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(_LOG_BYTES)

    def load(log_level: int) -> int:
        return _bpf(
            _BPF_PROG_LOAD,
            struct.pack(
                "=IIQQIIQII16sII",
                kind,
                len(program) // 8,
                ctypes.addressof(code),
                ctypes.addressof(licence),
                log_level,
                _LOG_BYTES if log_level else 0,
                ctypes.addressof(log) if log_level else 0,
                0,  # kernel version
                0,  # flags
                name.encode()[:15],
                0,  # interface
                attach_type,
            ),
        )

    try:
        return load(log_level=0)
    except PermissionError:
        raise
    except OSError as error:
        try:
            return load(log_level=1)
        except OSError:
            lines = log.value.decode(errors="replace").splitlines()
            reasons = [line for line in lines if line and not line.startswith("processed")]
            raise OSError(error.errno, f"{error.strerror}: {reasons[-1] if reasons else 'no reason given'}") from None
