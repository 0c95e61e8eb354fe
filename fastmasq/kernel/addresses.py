"""IPv4 addresses of interfaces, and which of them masquerading uses."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable
from typing import NamedTuple

from fastmasq.kernel import netlink

SCOPE_UNIVERSE = 0
IFA_F_SECONDARY = 0x1

_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, ifindex


class InterfaceAddress(NamedTuple):
    """One address with its prefix length. `scope` is RT_SCOPE_* (0 = global)."""

    address: int
    prefix: int
    scope: int = SCOPE_UNIVERSE
    secondary: bool = False

    def __str__(self) -> str:
        return f"{ipaddress.IPv4Address(self.address)}/{self.prefix}"


def address_request() -> bytes:
    """Return the body of an RTM_GETADDR dump of the IPv4 addresses of all interfaces."""
    return _IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 0)


def address_ifindex(message: bytes) -> int:
    """Return the interface of an address message without decoding it (struct ifaddrmsg)."""
    return _IFADDRMSG.unpack_from(message, netlink.HEADER.size)[4]


def read_address(message: bytes) -> InterfaceAddress:
    """Read an RTM_NEWADDR message; on a point-to-point link the address is our own end."""
    decoded = netlink.decode(message)
    text = decoded.get_attr("IFA_LOCAL") or decoded.get_attr("IFA_ADDRESS")
    return InterfaceAddress(
        address=int(ipaddress.IPv4Address(text)),
        prefix=decoded["prefixlen"],
        scope=decoded["scope"],
        secondary=bool(decoded["flags"] & IFA_F_SECONDARY),
    )


def primary(addresses: Iterable[InterfaceAddress]) -> int | None:
    """Return the first global, non-secondary address in the kernel's order, or None."""
    for each in addresses:
        if each.scope == SCOPE_UNIVERSE and not each.secondary:
            return each.address
    return None
