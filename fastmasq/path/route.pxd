# Where a packet goes: the route of an address, and which addresses have no business on a link.

from libc.stdint cimport uint32_t

from fastmasq.path cimport links
from fastmasq.path.packet cimport Packet
from fastmasq.path.links cimport Route
from fastmasq.path.state cimport Path
from fastmasq.table cimport keys, mappings


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


cdef inline int external_by(const Path *p, Packet *packet) noexcept nogil:
    """Return the external row that a new session of a packet from inside leaves with, by the way to its destination; or -1.

    That way may want one that fits its next hop; else it is the inside host's.
    """
    cdef const Route *way = route_of(p, packet)
    cdef int row = mappings.external_of(p.table, way.source)
    return row if row >= 0 else mappings.external_for(p.table, packet.ends.saddr)


cdef inline bint leads_on(const Route *route) noexcept nogil:
    """Whether a route leads over one of our links."""
    return route.kind == links.ROUTE_UNICAST and route.link != links.NO_LINK


cdef inline bint is_multicast(uint32_t address) noexcept nogil:
    return address >> 28 == 0xE


cdef inline bint is_to_many(const Path *p, Packet *packet) noexcept nogil:
    """Whether a packet is to more hosts than one. For multicast addresses the kernel has no routes of its own."""
    cdef const Route *way = route_of(p, packet)
    return (is_multicast(packet.ends.daddr) or way.kind == links.ROUTE_BROADCAST or way.kind == links.ROUTE_MULTICAST)


cdef inline bint leads_to_proxies(const Path *p, const Route *route) noexcept nogil:
    """Whether a route is that of the addresses where packets reach programs of this host by proxy: nobody else may."""
    return leads_on(route) and p.links[route.link].side == keys.LOCAL


# -- addresses that are wrong where they are seen (RFC 1812 section 5.3.7) ---------------------------------------------

cdef inline bint is_unicast_source(uint32_t address) noexcept nogil:
    """Whether an address can be that of one host: not 0/8, 127/8, multicast, 240/4 or broadcast."""
    return not (address >> 24 == 0 or address >> 24 == 127 or address >= 0xE0000000U)


cdef inline bint is_martian_destination(const Path *p, Packet *packet) noexcept nogil:
    cdef uint32_t daddr = packet.ends.daddr
    return (daddr >> 24 == 0 or daddr >> 24 == 127 or daddr >= 0xF0000000U
            or leads_to_proxies(p, route_of(p, packet)))


cdef inline bint may_be_a_router(const Path *p, uint32_t address) noexcept nogil:
    """Whether an address can be that of some router, wherever: one host's, and not one of this host's own."""
    cdef const Route *route = find_route(p, address)
    return (is_unicast_source(address) and route.kind != links.ROUTE_LOCAL and route.kind != links.ROUTE_BROADCAST
            and not leads_to_proxies(p, route))


cdef inline bint is_martian_source(const Path *p, const Packet *packet) noexcept nogil:
    """Whether the way back to the source does not lead over the link it came from (RFC 3704 section 2.2, strict)."""
    cdef const Route *back
    if not is_unicast_source(packet.ends.saddr):
        return True
    back = find_route(p, packet.ends.saddr)
    return back.kind != links.ROUTE_UNICAST or back.link != packet.link
