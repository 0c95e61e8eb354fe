"""The program `filtered.py SOCKET PROGRAM ...`, which puts itself under a seccomp filter and becomes PROGRAM."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import sys

SECCOMP = {"x86_64": 317}
SET_MODE_FILTER, NEW_LISTENER = 1, 1 << 3


def main() -> None:
    """The filter's listener is left open until the supervisor has taken it, and is closed by exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as supervisor:
        supervisor.connect(sys.argv[1])
        code = ctypes.create_string_buffer(supervisor.recv(65536))
        program = struct.pack("HxxxxxxQ", (len(code) - 1) // 8, ctypes.addressof(code))
        listener = libc.syscall(SECCOMP[platform.machine()], SET_MODE_FILTER, NEW_LISTENER, program)
        if listener < 0:
            sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
        # from here on only calls that no filter asks about, until the supervisor answers
        os.write(supervisor.fileno(), struct.pack("=I", listener))
        os.read(supervisor.fileno(), 1)
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
