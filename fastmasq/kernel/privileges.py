"""Whether this process may do what a forwarder has to do, and what it has to go without.

Root may do all of it. So may any user with the capabilities of NEEDED and WANTED (capabilities(7)), as a service or as
the owner of a file that has them; `hand_down` lets the programs that we start, such as nft, have them, too, and
`hand_nothing_down` keeps them from those that are none of ours.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from fastmasq.errors import KernelError

_STATUS = Path("/proc/self/status")

NEEDED = {"CAP_NET_ADMIN": "settings, guard, next hops", "CAP_NET_RAW": "packets"}
WANTED = {
    "CAP_BPF": "no guard tc, and no original destination for proxies",
    "CAP_PERFMON": "perhaps no guard tc, and no original destination for proxies",
}
"""What for, and what is missing without it. Before Linux 5.8 CAP_SYS_ADMIN stands for those that are wanted."""

_BIT = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}

_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3, linux/capability.h
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 2, 4
_libc = ctypes.CDLL(None, use_errno=True)


def missing(status: str | None = None, *, to_observe: bool = False) -> list[str]:
    """Return the capabilities of NEEDED that we lack; `status` is the text of /proc/self/status.

    To observe, packet sockets are enough.
    """
    effective = _mask("CapEff", status)
    return [name for name in (("CAP_NET_RAW",) if to_observe else NEEDED) if not _has(effective, name)]


def wanting(status: str | None = None) -> list[str]:
    """Return the capabilities of WANTED that we lack, when CAP_SYS_ADMIN does not stand for them."""
    effective = _mask("CapEff", status)
    if _has(effective, "CAP_SYS_ADMIN"):
        return []
    return [name for name in WANTED if not _has(effective, name)]


def require(*, to_observe: bool = False) -> None:
    """Raise KernelError unless we have what we need to forward, or to observe."""
    lacking = missing(to_observe=to_observe)
    if lacking:
        reasons = " and ".join(f"{name} ({NEEDED[name]})" for name in lacking)
        raise KernelError(
            f"fastmasq lacks {reasons}: run it as root, or under systemd with "
            f"AmbientCapabilities={' '.join([*NEEDED, *WANTED])}"
        )


def hand_down() -> None:
    """Let the programs that this thread starts have what we have; root's have it anyway.

    Where the kernel refuses (before Linux 4.3) they go without, and say so.
    """
    if os.geteuid() == 0:
        return
    permitted = _mask("CapPrm")
    effective, inheritable = _mask("CapEff"), _mask("CapInh") | permitted
    halves = [mask >> shift & 0xFFFFFFFF for shift in (0, 32) for mask in (effective, permitted, inheritable)]
    _libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), struct.pack("=6I", *halves))
    for name in (*NEEDED, *WANTED, "CAP_SYS_ADMIN"):
        if _has(permitted, name):
            _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _BIT[name], 0, 0)


def hand_nothing_down() -> None:
    """Let the programs that this thread starts have nothing that we have beyond other users; root's are root's."""
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def _mask(field: str, status: str | None = None) -> int:
    """Return a set of capabilities, a bit for each, from the text of /proc/self/status (proc(5))."""
    lines = (status if status is not None else _STATUS.read_text()).splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith(f"{field}:"))


def _has(mask: int, name: str) -> bool:
    return bool(mask >> _BIT[name] & 1)
