"""IPv4 addresses of interfaces, and which of them masquerading uses."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fastmasq.kernel import netlink, rtnetlink
from fastmasq.kernel.routes import Route

IFA_F_SECONDARY = 0x1


class InterfaceAddress(NamedTuple):
    """One address with its prefix length. `scope` is RT_SCOPE_* (0 = global)."""

    address: int
    prefix: int
    scope: int = rtnetlink.SCOPE_UNIVERSE
    secondary: bool = False

    def contains(self, address: int) -> bool:
        """Whether an address is in the network of this one."""
        return (address ^ self.address) >> (32 - self.prefix) == 0

    def __str__(self) -> str:
        return f"{ipaddress.IPv4Address(self.address)}/{self.prefix}"


def address_request() -> bytes:
    """Return the body of an RTM_GETADDR dump of the IPv4 addresses of all interfaces."""
    return rtnetlink.IFADDRMSG.pack(family=socket.AF_INET)


def read_addresses(messages: Iterable[bytes]) -> Iterator[tuple[int, InterfaceAddress]]:
    """Yield (ifindex, address) of the RTM_NEWADDR messages; on a point-to-point link the address is our own end."""
    for message in messages:
        _, prefix, flags, scope, ifindex = rtnetlink.IFADDRMSG.read(message)
        values = rtnetlink.IFADDRMSG.attributes(message)
        address = netlink.read_address(values, rtnetlink.IFA_LOCAL)
        address = address or netlink.read_address(values, rtnetlink.IFA_ADDRESS)
        if address and prefix <= 32:
            yield ifindex, InterfaceAddress(address, prefix, scope, secondary=bool(flags & IFA_F_SECONDARY))


def fitting(addresses: Iterable[InterfaceAddress], route: Route) -> int | None:
    """Return the address that the kernel would send from by a route over their interface, or None.

    It is what the route names, else the first whose network the next hop is in, else the first (inet_select_addr).
    """
    candidates = [each for each in addresses if each.scope == rtnetlink.SCOPE_UNIVERSE]
    if route.source in [each.address for each in candidates]:
        return route.source
    primaries = [each for each in candidates if not each.secondary]
    next_hop = route.gateway or route.first
    near = [each for each in primaries if each.contains(next_hop)]
    return next((each.address for each in (*near, *primaries)), None)


def primary(addresses: Iterable[InterfaceAddress]) -> int | None:
    """Return the first global, non-secondary address in the kernel's order, or None."""
    for each in addresses:
        if each.scope == rtnetlink.SCOPE_UNIVERSE and not each.secondary:
            return each.address
    return None
