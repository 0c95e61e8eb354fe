"""The links of this host that a gateway could have, and which of them lead where, as far as can be guessed."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NamedTuple

from fastmasq.kernel import links

_ROUTES = Path("/proc/net/route")
_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))  # RFC 1918, section 3


class Candidate(NamedTuple):
    """A link, with its IPv4 addresses and whether it is up and has a carrier."""

    name: str
    is_up: bool
    addresses: tuple[IPv4Address, ...]

    @property
    def has_private_address(self) -> bool:
        return any(address in network for address in self.addresses for network in _PRIVATE)

    def describe(self) -> str:
        state = "up" if self.is_up else "down"
        return f"{self.name:<15} {state:<4} {', '.join(map(str, self.addresses)) or 'no address'}"


def candidates() -> list[Candidate]:
    """Return the links of this host that fastmasq works on, by name."""
    interfaces = links.list_interfaces()
    addresses = links.interface_addresses()
    return [
        Candidate(
            each.name,
            bool(each.flags & links.IFF_UP and each.flags & links.IFF_LOWER_UP),
            tuple(map(IPv4Address, addresses.get(each.name, ()))),
        )
        for each in sorted(interfaces, key=lambda each: each.name)
        if links.complaint(each.name, "inside", each, interfaces) is None
    ]


def default_outside(found: list[Candidate], routes: str | None = None) -> str:
    """Return the link of the best default route, or "" if none has it; `routes` is the text of /proc/net/route."""
    names = {each.name for each in found}
    rows = [line.split() for line in (_ROUTES.read_text() if routes is None else routes).splitlines()[1:]]
    defaults = [(int(row[6]), row[0]) for row in rows if row[1] == row[7] == "00000000" and row[0] in names]
    return min(defaults)[1] if defaults else ""


def default_inside(found: list[Candidate], outside: str) -> list[str]:
    """Return the links beside the outside one that have a private address; those that are up, if there are any."""
    others = [each for each in found if each.name != outside and each.has_private_address]
    return [each.name for each in others if each.is_up] or [each.name for each in others]
