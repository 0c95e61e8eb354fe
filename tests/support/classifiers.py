"""Runs classifiers that the kernel has loaded on frames, without a network: bpf(2), BPF_PROG_TEST_RUN."""

from __future__ import annotations

import ctypes
import struct

from fastmasq.kernel.bpf.calls import system_call

_BPF_PROG_TEST_RUN = 10
_GROWTH = 256  # octets that a frame may be longer by when a program has run

_libc = ctypes.CDLL(None, use_errno=True)


def run_classifier(program: int, frame: bytes, context: bytes = b"", flags: int = 0) -> tuple[int, bytes]:
    """Run a loaded classifier on a frame; return what it says, and what it has made of the frame. Raises OSError.

    context: the beginning of a struct __sk_buff, where that is not all zeros; flags: BPF_F_TEST_* (linux/bpf.h).
    """
    given, around = (ctypes.create_string_buffer(octets, len(octets)) for octets in (frame, context))
    left = ctypes.create_string_buffer(len(frame) + _GROWTH)
    attributes = ctypes.create_string_buffer(
        struct.pack(
            "=IIIIQQIIIIQQI",
            program,
            0,  # what it says
            len(frame),
            len(left),
            ctypes.addressof(given),
            ctypes.addressof(left),
            1,  # how often
            0,  # how long it took
            len(context),
            0,
            ctypes.addressof(around) if context else 0,
            0,
            flags,
        )
    )
    if _libc.syscall(system_call(), _BPF_PROG_TEST_RUN, attributes, len(attributes)) < 0:
        raise OSError(ctypes.get_errno(), "BPF_PROG_TEST_RUN")
    said, _, octets = struct.unpack_from("=iII", attributes, 4)
    return said, left.raw[:octets]
