"""What tells a process and a network namespace from others that had the same number before; and who ends with whom."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import threading
from pathlib import Path
from typing import NamedTuple

from fastmasq.errors import KernelError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, since Linux 5.14
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Namespace(NamedTuple):
    """A network namespace: its inode is unique while it exists, its cookie (0: unknown) until the next boot.

    Before Linux 3.8 nothing tells one from another, and the inode of all is 0.
    """

    inode: int
    cookie: int
    boot: str

    def is_same(self, other: Namespace) -> bool:
        """Whether both are one; where a kernel tells no cookie, inode and boot must do."""
        known = self.cookie and other.cookie
        return (self.inode, self.boot) == (other.inode, other.boot) and (not known or self.cookie == other.cookie)


def network_namespace() -> Namespace:
    """Return the network namespace that this thread lives in."""
    try:
        cookie = namespace_cookie()
    except OSError:
        cookie = 0
    return Namespace(_inode(_thread_folder() / "ns/net"), cookie, _BOOT_ID.read_text().strip())


def namespace_cookie() -> int:
    """Return the cookie of this thread's network namespace. Raises OSError on a kernel before 5.14."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0]


def _inode(file: Path) -> int:
    try:
        os.readlink(file)  # before Linux 3.8 it is no link, and has a number of its own
    except OSError:
        return 0
    return file.stat().st_ino


def _thread_folder() -> Path:
    """Return the folder of /proc about this thread; before Linux 3.17 it has no name of its own."""
    try:
        return Path("/proc", os.readlink("/proc/thread-self"))
    except FileNotFoundError:
        return Path(f"/proc/self/task/{threading.get_native_id()}")


def start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if there is no such process, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, started = fields[0], fields[19]
    return None if state in "ZX" else int(started)


def end_with(parent: int) -> None:
    """Have the kernel send us SIGTERM when the process that has started us ends. Raises KernelError if it has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if start_time(parent) is None:
        raise KernelError("the supervisor has ended meanwhile; start it again")
