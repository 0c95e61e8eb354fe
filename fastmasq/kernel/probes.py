"""Questions to the kernel that change nothing: what of the uses in `features` it does not allow, and why not."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
from collections.abc import Callable

from fastmasq.errors import KernelError
from fastmasq.kernel import features, identity, netlink
from fastmasq.kernel.bpf.binds import Binds
from fastmasq.kernel.bpf.original_destination import OriginalDestinations
from fastmasq.kernel.guard.backends import make_guard
from fastmasq.kernel.host_rules.ruleset import HostRules
from fastmasq.kernel.ports import why_idle_ports_are_unknown, why_no_settings
from fastmasq.ring import packet_socket

_MADV_POPULATE_WRITE = 23
_GUARDS = {features.GUARD_TC: "tc", features.GUARD_NFTABLES: "nftables", features.GUARD_IPTABLES: "iptables"}


def unnoticed() -> dict[str, str]:
    """Return what is lacking, with the reason, of the uses that a running forwarder does not notice by itself."""
    found = {
        features.AHEAD: _why_not_ahead(),
        features.IDLE_PORTS: why_idle_ports_are_unknown(),
        features.PORT_SETTINGS: why_no_settings(),
        features.FORWARDING_NEWS: _why_no_news_of_forwarding(),
        features.NAMESPACE_NUMBERS: "" if identity.network_namespace().inode else "/proc/self/ns/net is no link",
        features.THREAD_SELF: _why_no_thread_self(),
    }
    return {use: reason for use, reason in found.items() if reason} | features.told_by_version()


def lacking() -> dict[str, str]:
    """Return all that is lacking, with the reason, in the order of `features.USES`. Raises KernelError."""
    found = packet_socket.lacking() | unnoticed()
    checks: dict[str, Callable[[], None]] = {
        **{use: make_guard(backend).check for use, backend in _GUARDS.items()},
        features.HOST_RULES: HostRules().check,
        features.ORIGINAL_DESTINATIONS: OriginalDestinations.check,
        features.BINDS: Binds.check,
    }
    for use, check in checks.items():
        try:
            check()
        except KernelError as error:
            found[use] = str(error)
    return {use: found[use] for use in features.USES if use in found}


def _why_no_news_of_forwarding() -> str:
    """What the kernel can be asked for it also tells of: both came with one series of patches."""
    requests = netlink.RequestSocket()
    try:
        requests.dump(netlink.RTM_GETNETCONF, bytes([socket.AF_INET, 0, 0, 0]))
    except OSError as error:
        return f"RTM_GETNETCONF: {error.strerror}"
    finally:
        requests.close()
    return ""


def _why_no_thread_self() -> str:
    try:
        os.readlink("/proc/thread-self")
    except OSError as error:
        return f"/proc/thread-self: {error.strerror}"
    return ""


def _why_not_ahead() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        first = ctypes.c_char.from_buffer(page)
        refused = libc.madvise(ctypes.byref(first), ctypes.c_size_t(mmap.PAGESIZE), _MADV_POPULATE_WRITE)
        del first  # or the page could not be closed
        return os.strerror(ctypes.get_errno()) if refused else ""
