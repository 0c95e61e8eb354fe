# Where a packet goes: the route of an address, the row of its next hop, and which addresses have no business on a link.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmasq.path cimport links, verdict
from fastmasq.path.packet cimport Packet
from fastmasq.path.links cimport Hop, Link, Route
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport index, keys
from fastmasq.table.siphash cimport siphash
from fastmasq.wire cimport ethernet
from fastmasq.wire.octets cimport store16


# -- routes ----------------------------------------------------------------------------------------------------------

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


cdef inline const Route *route_of(const Path *p, Packet *packet) noexcept nogil:
    """Return the route of a packet's destination, which is looked up once."""
    if packet.route == NULL:
        packet.route = find_route(p, packet.ends.daddr)
    return packet.route


cdef inline const Route *route_towards(const Path *p, Packet *packet, uint32_t address) noexcept nogil:
    """Return the route by which a packet gets to an address: most often its destination."""
    return route_of(p, packet) if address == packet.ends.daddr else find_route(p, address)


cdef inline bint leads_on(const Route *route) noexcept nogil:
    """Whether a route leads over one of our links."""
    return route.kind == links.ROUTE_UNICAST and route.link != links.NO_LINK


cdef inline bint leads_to_many(const Route *route) noexcept nogil:
    return route.kind == links.ROUTE_BROADCAST or route.kind == links.ROUTE_MULTICAST


cdef inline bint leads_to_programs(const Path *p, const Route *route) noexcept nogil:
    """Whether a route is that of the addresses where packets reach programs of this host by proxy: nobody else may."""
    return leads_on(route) and p.links[route.link].side == keys.LOCAL


# -- addresses that are wrong where they are seen (RFC 1812 section 5.3.7) ---------------------------------------------

cdef inline bint is_unicast_source(uint32_t address) noexcept nogil:
    """Whether an address can be that of one host: not 0/8, 127/8, multicast, 240/4 or broadcast."""
    return not (address >> 24 == 0 or address >> 24 == 127 or address >= 0xE0000000U)


cdef inline bint is_martian_destination(const Path *p, Packet *packet) noexcept nogil:
    cdef uint32_t daddr = packet.ends.daddr
    return (daddr >> 24 == 0 or daddr >> 24 == 127 or daddr >= 0xF0000000U
            or leads_to_programs(p, route_of(p, packet)))


cdef inline bint is_martian_source(const Path *p, const Packet *packet) noexcept nogil:
    """Whether the way back to the source does not lead over the link it came from (RFC 3704 section 2.2, strict)."""
    cdef const Route *back
    if not is_unicast_source(packet.ends.saddr):
        return True
    back = find_route(p, packet.ends.saddr)
    return back.kind != links.ROUTE_UNICAST or back.link != packet.link


# -- next hops -------------------------------------------------------------------------------------------------------

cdef inline uint32_t hop_hash(const Path *p, int link, uint32_t address, uint32_t mtu) noexcept nogil:
    return <uint32_t>siphash(&p.table.secret, address, (<uint64_t>link << 48) | mtu)


cdef inline Hop *take_hop(Path *p, int link, uint32_t address, uint32_t mtu, uint32_t hash) noexcept nogil:
    """Start a new row for a next hop, which the daemon is asked to resolve; NULL when there is none.

    A path that only observes asks nobody, and takes the hop for there.
    """
    cdef Hop *hop
    if p.hop_count == links.HOPS:
        p.hops_full = True
        return NULL
    hop = &p.hops[p.hop_count]
    memset(hop, 0, sizeof(Hop))
    hop.link = link
    hop.address = address
    hop.mtu = mtu
    hop.header_length = p.links[link].header_length
    if hop.header_length:
        memcpy(hop.header + ethernet.SOURCE, p.links[link].mac, ethernet.MAC)
        store16(hop.header + ethernet.TYPE, ethernet.ETHERTYPE_IPV4)
    if hop.header_length and p.observation == NULL:
        hop.state = links.HOP_INCOMPLETE
        hop.wanted = 1
        p.hops_wanted = True
    else:
        hop.state = links.HOP_VALID
    index.insert(&p.hop_index, hash, p.hop_count)
    p.hop_count += 1
    return hop


cdef inline Hop *find_hop(Path *p, const Route *route, uint32_t address) noexcept nogil:
    """Return the next hop towards an address over a route that leads on; NULL when a new one has no row."""
    cdef const Link *link = &p.links[route.link]
    cdef uint32_t next_hop = 0
    cdef uint32_t mtu, hash, at, row
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
            return &p.hops[row]
        at = (at + 1) & p.hop_index.mask


cdef inline Outcome choose_hop(Path *p, Packet *packet, uint32_t address) noexcept nogil:
    """Choose the next hop by which a packet is to leave, towards its destination or another address."""
    cdef const Route *route = route_towards(p, packet, address)
    if not leads_on(route):
        return verdict.NO_ROUTE
    packet.hop = find_hop(p, route, address)
    packet.towards = address
    return verdict.GOES_ON if packet.hop != NULL else verdict.NEIGHBOUR_TABLE_FULL
