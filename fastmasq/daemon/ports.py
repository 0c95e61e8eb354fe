"""Which external ports are ours: what the settings allow less what the host uses itself."""

from __future__ import annotations

import socket

import numpy as np

from fastmasq.config.values import PortRanges
from fastmasq.kernel.ports import EPHEMERAL_RANGE, PortSet, format_ports, host_ports, parse_ports

_PROTOCOLS = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)


def wanted_ports(ranges: PortRanges) -> PortSet:
    """Return the ports the settings name; "auto" is all of them."""
    if not ranges:
        wanted = np.ones(65536, bool)
        wanted[0] = False
        return wanted
    return parse_ports(str(ranges))


def allowed_ports(ranges: PortRanges) -> np.ndarray:
    """Return bool[3][65536] by port class (TCP, UDP, ICMP): what masquerading may use at this moment.

    Ports that the settings name are taken from the host's ephemeral range; with "auto" the host keeps all of that.
    """
    allowed = np.zeros((3, 65536), bool)
    wanted = wanted_ports(ranges)
    for row, protocol in enumerate(_PROTOCOLS):
        allowed[row] = wanted & ~host_ports(protocol, ours=wanted if ranges else None)
    allowed[2] = wanted if ranges else True
    return allowed


def is_bound(protocol: int, port: int) -> bool:
    """Whether a program of the host has bound a port (protocol: IPPROTO_TCP or IPPROTO_UDP)."""
    return bool(host_ports(protocol, ours=np.ones(65536, bool))[port])


def reservation(ranges: PortRanges, present: str) -> str | None:
    """Return the value ip_local_reserved_ports must have so that the host stays off our ports; None to leave it.

    present: the value it has, in the spelling of the kernel.
    """
    if not ranges:
        return None
    first, last = map(int, EPHEMERAL_RANGE.read_text().split())
    ephemeral = np.zeros(65536, bool)
    ephemeral[first : last + 1] = True
    wanted = wanted_ports(ranges)
    if not (wanted & ephemeral).any():
        return None
    return format_ports(parse_ports(present) | wanted)
