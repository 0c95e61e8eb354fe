# Where a packet goes: the route of an address, and the row of its next hop.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmasq.path.state cimport (
    HOPS, HOP_INCOMPLETE, HOP_VALID, Hop, Link, NO_LINK, Path, ROUTE_BLACKHOLE, ROUTE_UNICAST, Route,
)
from fastmasq.path.verdict cimport NEIGHBOUR_TABLE_FULL, NO_ROUTE
from fastmasq.table cimport index
from fastmasq.table.rows cimport NONE
from fastmasq.table.siphash cimport siphash
from fastmasq.wire.ethernet cimport ETHERNET_TYPE, ETHERTYPE_IPV4
from fastmasq.wire.octets cimport store16


cdef inline const Route *find_route(const Path *p, uint32_t address) noexcept nogil:
    """Return the route of an address: binary search in intervals that cover the whole address space."""
    cdef uint32_t low = 0
    cdef uint32_t high = p.route_count
    cdef uint32_t middle
    while high - low > 1:
        middle = (low + high) >> 1
        if p.route_first[middle] <= address:
            low = middle
        else:
            high = middle
    return &p.routes[low]


cdef inline uint32_t hop_hash(const Path *p, int link, uint32_t address, uint32_t mtu) noexcept nogil:
    return <uint32_t>siphash(&p.table.secret, address, (<uint64_t>link << 48) | mtu)


cdef inline int take_hop(Path *p, int link, uint32_t address, uint32_t mtu, uint32_t hash) noexcept nogil:
    """Start a new row for a next hop; the daemon is asked to resolve it. Returns the row or -NEIGHBOUR_TABLE_FULL - 1."""
    cdef Hop *hop
    if p.hop_count == HOPS:
        p.hops_full = True
        return -NEIGHBOUR_TABLE_FULL - 1
    hop = &p.hops[p.hop_count]
    memset(hop, 0, sizeof(Hop))
    hop.link = link
    hop.address = address
    hop.mtu = mtu
    hop.header_length = p.links[link].header_length
    if hop.header_length:
        memcpy(hop.header + 6, p.links[link].mac, 6)
        store16(hop.header + ETHERNET_TYPE, ETHERTYPE_IPV4)
        hop.state = HOP_INCOMPLETE
        hop.wanted = 1
        p.hops_wanted = True
    else:
        hop.state = HOP_VALID
    index.insert(&p.hop_index, hash, p.hop_count)
    p.hop_count += 1
    return <int>p.hop_count - 1


cdef inline int hop_of_route(Path *p, const Route *route, uint32_t address) noexcept nogil:
    """Return the row of the next hop towards `address` over `route`, or -reason - 1."""
    cdef const Link *link
    cdef uint32_t next_hop, mtu, hash, at, row
    if route.kind != ROUTE_UNICAST or route.link == NO_LINK:
        return -NO_ROUTE - 1
    link = &p.links[route.link]
    next_hop = 0
    if link.header_length:
        next_hop = route.gateway if route.gateway else address
    mtu = route.mtu if route.mtu and route.mtu < link.mtu else link.mtu
    hash = hop_hash(p, route.link, next_hop, mtu)
    at = hash & p.hop_index.mask
    while True:
        row = p.hop_index.entries[at].ref
        if row == 0:
            return take_hop(p, route.link, next_hop, mtu, hash)
        row -= 1
        if (p.hop_index.entries[at].hash == hash and p.hops[row].address == next_hop
                and p.hops[row].link == route.link and p.hops[row].mtu == mtu):
            return <int>row
        at = (at + 1) & p.hop_index.mask
