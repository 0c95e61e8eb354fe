"""The kernel's IPv4 routing tables, flattened into disjoint intervals that a binary search can use.

The kernel looks into the tables local and main together (one trie; the longest prefix wins, local first when equal),
then into the table default. `flatten` does the same once for all addresses: prefixes either nest or are disjoint, so
one sweep over the prefixes in order of address, with the enclosing ones on a stack, yields the intervals.
Tables other than these three belong to policy routing and are ignored, as are routes for a certain TOS.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from fastmasq.kernel import netlink, rtnetlink

LAST_ADDRESS = 0xFFFFFFFF

UNICAST, LOCAL, BROADCAST, MULTICAST = "unicast", "local", "broadcast", "multicast"
BLACKHOLE, UNREACHABLE, PROHIBIT, THROW, NONE = "blackhole", "unreachable", "prohibit", "throw", "none"

# anycast is accepted like a local address
_KINDS = {
    rtnetlink.RTN_UNICAST: UNICAST,
    rtnetlink.RTN_LOCAL: LOCAL,
    rtnetlink.RTN_BROADCAST: BROADCAST,
    rtnetlink.RTN_ANYCAST: LOCAL,
    rtnetlink.RTN_MULTICAST: MULTICAST,
    rtnetlink.RTN_BLACKHOLE: BLACKHOLE,
    rtnetlink.RTN_UNREACHABLE: UNREACHABLE,
    rtnetlink.RTN_PROHIBIT: PROHIBIT,
    rtnetlink.RTN_THROW: THROW,
}

_RTNH_F_DEAD = 0x1
_RTM_F_CLONED = 0x200

_RTNEXTHOP = struct.Struct("=HBBi")  # length with the attributes that follow, flags, hops, ifindex


class KernelRoute(NamedTuple):
    """One route as the kernel has it. `mtu` and `metric` are 0 when unset; `gateway` 0 means on-link.

    `hops` has (ifindex, gateway) of all that are usable of a route with several next hops, the one named by it first.
    """

    table: int
    destination: int
    length: int
    metric: int
    kind: str
    ifindex: int = 0
    gateway: int = 0
    mtu: int = 0
    source: int = 0
    hops: tuple[tuple[int, int], ...] = ()


class Route(NamedTuple):
    """What happens to the addresses first..last. `mtu` 0 means the link's; `source` 0 means none preferred."""

    first: int
    last: int
    kind: str
    ifindex: int = 0
    gateway: int = 0
    mtu: int = 0
    source: int = 0


def concerns_us(message: bytes) -> bool:
    """Tell from the fixed part of a route message whether it is an IPv4 route of one of our three tables."""
    family, _, _, tos, table, _, _, _, flags = rtnetlink.RTMSG.read(message)
    return family == socket.AF_INET and table >= rtnetlink.TABLE_DEFAULT and tos == 0 and not flags & _RTM_F_CLONED


def dump_request() -> bytes:
    """Return the body of an RTM_GETROUTE dump of all IPv4 routes."""
    return rtnetlink.RTMSG.pack(family=socket.AF_INET)


def list_routes() -> list[KernelRoute]:
    """Return the routes of the current network namespace as the kernel has them."""
    requests = netlink.RequestSocket()
    try:
        messages, _ = requests.dump(netlink.RTM_GETROUTE, dump_request())
    finally:
        requests.close()
    return [read_route(message) for message in messages if concerns_us(message)]


def read_route(message: bytes) -> KernelRoute:
    """Read an RTM_NEWROUTE message. Of several next hops the first usable one counts; without one there is none."""
    _, length, _, _, table, _, _, kind_number, flags = rtnetlink.RTMSG.read(message)
    values = rtnetlink.RTMSG.attributes(message)
    kind = _KINDS.get(kind_number, NONE)
    ifindex, gateway = netlink.read_number(values, rtnetlink.RTA_OIF), 0
    hops: tuple[tuple[int, int], ...] = ()
    if kind == UNICAST:
        hops = tuple(_next_hops(values, flags))
        kind, ifindex, gateway = (UNICAST, *hops[0]) if hops else (NONE, 0, 0)
    return KernelRoute(
        table=table,
        destination=netlink.read_address(values, rtnetlink.RTA_DST),
        length=length,
        metric=netlink.read_number(values, rtnetlink.RTA_PRIORITY),
        kind=kind,
        ifindex=ifindex,
        gateway=gateway,
        mtu=netlink.read_number(netlink.attributes(values.get(rtnetlink.RTA_METRICS, b"")), rtnetlink.RTAX_MTU),
        source=netlink.read_address(values, rtnetlink.RTA_PREFSRC),
        hops=hops if len(hops) > 1 else (),
    )


def _next_hops(values: dict[int, bytes], flags: int) -> Iterator[tuple[int, int]]:
    """Yield (ifindex, gateway) of the next hops that are alive, without encapsulation, and over IPv4."""
    if rtnetlink.RTA_MULTIPATH not in values:
        yield from _next_hop(flags, netlink.read_number(values, rtnetlink.RTA_OIF), values)
        return
    encoded = values[rtnetlink.RTA_MULTIPATH]
    while len(encoded) >= _RTNEXTHOP.size:
        length, flags, _, ifindex = _RTNEXTHOP.unpack_from(encoded)
        if length < _RTNEXTHOP.size:
            return
        yield from _next_hop(flags, ifindex, netlink.attributes(encoded[_RTNEXTHOP.size : length]))
        encoded = encoded[(length + 3) & ~3 :]


def _next_hop(flags: int, ifindex: int, values: dict[int, bytes]) -> Iterator[tuple[int, int]]:
    if ifindex and not flags & _RTNH_F_DEAD and rtnetlink.RTA_VIA not in values and rtnetlink.RTA_ENCAP not in values:
        yield ifindex, netlink.read_address(values, rtnetlink.RTA_GATEWAY)


def flatten(
    routes: Sequence[KernelRoute], ours: Collection[int] = (), networks: Iterable[tuple[int, int]] = ()
) -> tuple[Route, ...]:
    """Return disjoint intervals, sorted, that cover 0..2^32-1; where no route matches, the kind is NONE.

    Of routes with the same prefix the one that comes first in `routes` wins among equal metrics. Of several next hops
    the first one counts that leads over an interface in `ours`, without one of those the first of all. Neighbouring
    intervals with the same outcome are merged. networks: (address, length) of those that our links are in, whose own
    addresses are nobody's.
    """
    routes = [_over(route, ours) if route.hops else route for route in routes]
    routes += _own_addresses(networks, routes)
    intervals = _sweep(route for route in routes if route.table != rtnetlink.TABLE_DEFAULT)
    fallback = [route for route in routes if route.table == rtnetlink.TABLE_DEFAULT]
    if fallback:
        intervals = _fill_holes(intervals, _sweep(fallback))
    return tuple(_as_routes(intervals))


def _own_addresses(networks: Iterable[tuple[int, int]], routes: Sequence[KernelRoute]) -> list[KernelRoute]:
    """Return the routes of networks' own addresses, those with host part zero: broadcasts (RFC 1812 section 4.2.3.1).

    So they were to Linux up to 5.13. A network of two addresses has none (RFC 3021), and what a longer prefix says goes
    before, such as that it is an address of the host.
    """
    firsts = {(address >> (32 - length) << (32 - length), length) for address, length in networks if length < 31}
    return [
        KernelRoute(rtnetlink.TABLE_LOCAL, first, 32, 0, BROADCAST)
        for first, length in sorted(firsts)
        if not any(each.length > length and (each.destination ^ first) >> (32 - each.length) == 0 for each in routes)
    ]


def _over(route: KernelRoute, ours: Collection[int]) -> KernelRoute:
    ifindex, gateway = next((hop for hop in route.hops if hop[0] in ours), route.hops[0])
    return route._replace(ifindex=ifindex, gateway=gateway, hops=())


# Between the steps an interval is (first, last, route), with None for a hole: no route, or a throw.
_Interval = tuple[int, int, "KernelRoute | None"]


def _sweep(routes: Iterable[KernelRoute]) -> list[_Interval]:
    """Return intervals covering everything, each with its longest prefix."""
    best: dict[tuple[int, int], KernelRoute] = {}
    for route in routes:
        rival = best.get((route.destination, route.length))
        if rival is None or (-route.table, route.metric) < (-rival.table, rival.metric):
            best[route.destination, route.length] = route

    intervals: list[_Interval] = []
    enclosing: list[tuple[int, KernelRoute | None]] = [(LAST_ADDRESS, None)]  # (last address, route), innermost last
    position = 0

    def advance(end: int) -> None:
        """Emit position..end-1 from the enclosing prefixes, leaving those that end before `end`."""
        nonlocal position
        while position < end:
            last, route = enclosing[-1]
            stop = min(last, end - 1)
            if position <= stop:
                intervals.append((position, stop, None if route and route.kind == THROW else route))
                position = stop + 1
            if last < end and len(enclosing) > 1:
                enclosing.pop()

    for destination, length in sorted(best):
        advance(destination)
        while enclosing[-1][0] < destination:
            enclosing.pop()
        enclosing.append((destination | (LAST_ADDRESS >> length), best[destination, length]))
    advance(LAST_ADDRESS + 1)
    return intervals


def _fill_holes(intervals: list[_Interval], fallback: list[_Interval]) -> list[_Interval]:
    """Return `intervals` with each hole replaced by what `fallback` has there. Both cover everything."""
    filled: list[_Interval] = []
    index = 0
    for first, last, route in intervals:
        while fallback[index][1] < first:
            index += 1
        if route is not None:
            filled.append((first, last, route))
            continue
        position = first
        while position <= last:
            _, end, other = fallback[index]
            stop = min(end, last)
            filled.append((position, stop, other))
            position = stop + 1
            if end <= last and index + 1 < len(fallback):
                index += 1
    return filled


def _as_routes(intervals: Iterable[_Interval]) -> Iterator[Route]:
    """Yield routes, merging neighbours with the same outcome."""
    start, end, outcome = 0, -1, None
    for first, last, route in intervals:
        here = (NONE, 0, 0, 0, 0) if route is None else route[4:-1]
        if here != outcome:
            if outcome is not None:
                yield Route(start, end, *outcome)
            start, outcome = first, here
        end = last
    yield Route(start, end, *outcome)
