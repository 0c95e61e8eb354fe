"""The bpf(2) calls to make maps, and to load and attach programs; only what fastmasq needs."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from fastmasq.errors import KernelError

SYSTEM_CALL = {"x86_64": 321, "i686": 357, "aarch64": 280, "riscv64": 280, "armv7l": 386, "ppc64le": 361, "s390x": 351}
_BPF_MAP_CREATE, _BPF_MAP_UPDATE_ELEM, _BPF_PROG_LOAD, _BPF_LINK_CREATE = 0, 2, 5, 28
_BPF_MAP_TYPE_ARRAY, _BPF_MAP_TYPE_LRU_HASH, _BPF_MAP_TYPE_RINGBUF = 2, 9, 27
_BPF_PROG_TYPE_SCHED_CLS = 3
_BPF_F_MMAPABLE = 1 << 10
_BPF_TCX_INGRESS = 46
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # system calls, the same on every machine
_CLOSE_ON_EXEC, _CREATE = 1, 6
_LOG_BYTES = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


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
    try:
        write_value(descriptor, value)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def write_value(descriptor: int, value: bytes) -> None:
    """Have a map that `load_value` has made hold another value of the same size. Raises OSError.

    Programs that read it meanwhile find parts of both.
    """
    key = ctypes.c_uint32(0)
    content = ctypes.create_string_buffer(value, len(value))
    _bpf(
        _BPF_MAP_UPDATE_ELEM,
        struct.pack("=I4xQQQ", descriptor, ctypes.addressof(key), ctypes.addressof(content), 0),
    )


def make_array(name: str, row_bytes: int, rows: int) -> int:
    """Make an array map of rows, zeroed, that can be mapped into memory; return its descriptor. Raises OSError.

    row_bytes is a multiple of 8, so that the rows lie there one behind the other.
    """
    head = struct.pack("=IIIII", _BPF_MAP_TYPE_ARRAY, 4, row_bytes, rows, _BPF_F_MMAPABLE)
    return _bpf(_BPF_MAP_CREATE, head + struct.pack("=II16s", 0, 0, name.encode()[:15]))


def make_cache(key_bytes: int, value_bytes: int, entries: int) -> int:
    """Make a hash map that forgets what was not used for longest, and return its descriptor. Raises OSError."""
    return _bpf(_BPF_MAP_CREATE, struct.pack("=IIII", _BPF_MAP_TYPE_LRU_HASH, key_bytes, value_bytes, entries))


def make_ring(octets: int) -> int:
    """Make a ring buffer of a page or more, and return its descriptor, to be mapped and polled. Raises OSError."""
    return _bpf(_BPF_MAP_CREATE, struct.pack("=IIII", _BPF_MAP_TYPE_RINGBUF, 0, 0, octets))


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


def attach_to_interface(program: int, ifindex: int) -> int:
    """Have a classifier be asked of what comes in by an interface, for as long as the descriptor returned is open.

    It is asked before the filters of the clsact discipline. Raises OSError; before Linux 6.6 there is no such place.
    """
    return _bpf(_BPF_LINK_CREATE, struct.pack("=IIIIIIQ", program, ifindex, _BPF_TCX_INGRESS, 0, 0, 0, 0))


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
    except OSError as error:
        if error.errno == errno.EPERM:  # EACCES is the verifier's
            raise
        try:
            return load(log_level=1)
        except OSError:
            lines = log.value.decode(errors="replace").splitlines()
            reasons = [line for line in lines if line and not line.startswith("processed")]
            raise OSError(error.errno, f"{error.strerror}: {reasons[-1] if reasons else 'no reason given'}") from None
