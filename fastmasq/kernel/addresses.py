"""IPv4 addresses of interfaces, and which of them masquerading uses."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import NamedTuple

from fastmasq.kernel import netlink, rtnetlink

IFA_F_SECONDARY = 0x1


class InterfaceAddress(NamedTuple):
    """One address with its prefix length. `scope` is RT_SCOPE_* (0 = global)."""

    address: int
    prefix: int
    scope: int = rtnetlink.SCOPE_UNIVERSE
    secondary: bool = False

    def __str__(self) -> str:
        return f"{ipaddress.IPv4Address(self.address)}/{self.prefix}"


def address_request() -> bytes:
    """Return the body of an RTM_GETADDR dump of the IPv4 addresses of all interfaces."""
    return rtnetlink.IFADDRMSG.pack(family=socket.AF_INET)


def address_ifindex(message: bytes) -> int:
    """Return the interface of an address message without decoding it."""
    return rtnetlink.IFADDRMSG.read(message)[4]


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
        if each.scope == rtnetlink.SCOPE_UNIVERSE and not each.secondary:
            return each.address
    return None
