"""The kernel's snapshot as what the path, the guard and forwards want: rows of links and routes, lists of addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address

import numpy as np

from fastmasq.kernel import local_link
from fastmasq.kernel.addresses import fitting, primary
from fastmasq.kernel.links import Link
from fastmasq.kernel.routes import UNICAST, Route
from fastmasq.kernel.watch import Snapshot
from fastmasq.path import rows as shared
from fastmasq.policy.forwards import OUTSIDE

_LARGEST_LOCAL_RANGE = 4096  # a longer run of local addresses (127/8) never appears on a wire
_MOST_OF_ALL = 1 << 31  # addresses: a default route leads to so many, be it in two halves
MOST_BY_ROUTES = 2  # addresses that inside hosts leave with where the settings name none
_SIDES = {"inside": shared.INSIDE, "outside": shared.OUTSIDE, "local": shared.LOCAL}


def link_row(link: Link) -> np.ndarray:
    """Return the shared.LINK row of a link, up, down or missing."""
    framed = link.header_length > 0
    return shared.link_row(
        side=_SIDES[link.role],
        mtu=link.mtu,
        address=link.addresses[0].address if link.addresses else 0,
        mac=(link.mac or bytes(6)) if framed else b"",
        header_length=link.header_length if framed else 0,
        up=link.up,
        macvlans=link.macvlans,
    )


def route_rows(
    routes: tuple[Route, ...],
    link_of_ifindex: Mapping[int, int],
    local: int = shared.NO_LINK,
    outside: Link | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (first addresses, shared.ROUTE rows); routes over interfaces that are not ours lead nowhere.

    `local` is the number of the link to programs of this host: the addresses that it is for are the host's, behind it.
    What leaves by a route over the link `outside` gets the address that fits it.
    """
    first = np.fromiter((route.first for route in routes), "u4", len(routes))
    rows = np.zeros(len(routes), shared.ROUTE)
    for row, route in zip(rows, routes, strict=True):
        row["kind"] = shared.ROUTE_KINDS[route.kind]
        row["link"] = link_of_ifindex.get(route.ifindex, shared.NO_LINK)
        row["gateway"] = route.gateway
        row["mtu"] = route.mtu
        if outside is not None and route.ifindex == outside.ifindex and route.kind == UNICAST:
            row["source"] = fitting(outside.addresses, route) or 0
        if _is_of_proxies(route):
            row["kind"], row["link"], row["gateway"] = shared.ROUTE_KINDS["unicast"], local, local_link.FIRST
    return first, rows


def _is_of_proxies(route: Route) -> bool:
    return route.kind == "local" and 0 <= route.first - local_link.FIRST + 1 < local_link.NETWORK.num_addresses


def external_addresses(snapshot: Snapshot, wanted: Sequence[str], before: int | None) -> list[int]:
    """Return the addresses that inside hosts leave with just now, the first of them that of the outside link.

    wanted: those of the settings, of which the link's count. Without any in the settings the first is that of the
    default route, or while there is none that of `before`, and the others are those that fit other routes over it.
    """
    outside = snapshot.outside
    if wanted:
        own = {each.address for each in outside.addresses}
        return [address for address in map(int, map(IPv4Address, wanted)) if address in own]
    leads: dict[int, int] = {}
    for route in snapshot.routes:
        if route.kind == UNICAST and route.ifindex == outside.ifindex:
            address = fitting(outside.addresses, route)
            if address is not None:
                leads[address] = leads.get(address, 0) + route.last - route.first + 1
    usual = before if before in [each.address for each in outside.addresses] else primary(outside.addresses)
    if usual is not None and max(leads.values(), default=0) < _MOST_OF_ALL:
        leads[usual] = _MOST_OF_ALL
    return sorted(leads, key=lambda address: -leads[address])[:MOST_BY_ROUTES]


def missing_addresses(snapshot: Snapshot, wanted: Sequence[str]) -> list[str]:
    """Return the addresses of the settings that the outside link has not, so that nobody leaves with them.

    None are while there is no such link, or it has no address at all.
    """
    own = {each.address for each in snapshot.outside.addresses}
    return [address for address in wanted if own and int(IPv4Address(address)) not in own]


def local_addresses(routes: tuple[Route, ...]) -> list[int]:
    """Return the addresses that are the host's own, and the broadcasts of its links."""
    return [
        address
        for route in routes
        if route.kind in ("local", "broadcast")
        and route.last - route.first < _LARGEST_LOCAL_RANGE
        and not _is_of_proxies(route)
        for address in range(route.first, route.last + 1)
    ]


def addresses_by_name(snapshot: Snapshot, external: int | None) -> dict[str, int]:
    """Return what forwards may listen on just now: links by name, each by its own address, and our addresses.

    external: the first that inside hosts leave with, which is that of the outside link.
    """
    found = {str(IPv4Address(address)): address for address in local_addresses(snapshot.routes)}
    for link in snapshot.links:
        if link.addresses:
            found[link.name] = link.addresses[0].address
        if link.role == "outside" and external is not None:
            found[OUTSIDE] = found[link.name] = external
    return found
