# Whose a packet is that no flow explains: the host's own, or of something here that an address of ours stands for.
#
# The host's own is judged by its kernel, by the rules of the input chain, and counted there (T-5): so nobody here is to judge
# it as well. What is somebody's here the guard keeps from the host.

from libc.stdint cimport uint32_t

from fastmasq.path cimport links, redirects, route, trackers, triggers_and_marks
from fastmasq.path.packet cimport KIND_ICMP_ERROR, KIND_PROTOCOL_OTHER, KIND_SESSION, KIND_TUNNEL, Packet
from fastmasq.path.redirects cimport Redirect
from fastmasq.path.state cimport Path
from fastmasq.table cimport keys, mappings, ports, rows
from fastmasq.wire cimport icmp, numbers

cdef enum Owner:
    OWNER_NONE = 0              # it is for another address, or an ICMP error, which may be about anything
    OWNER_HOST = 1
    OWNER_TRACKER = 2
    OWNER_REDIRECT = 3          # the inside host that gets its protocol
    OWNER_ENDPOINT = 4          # an external endpoint: a mapping, or a port kept for what may become one


cdef inline bint is_kept_port(const Path *p, const Packet *packet, int port_class) noexcept nogil:
    """Whether the port that a packet is for is one for mappings, or kept for triggers and marks. Of ICMP none is."""
    cdef int external = mappings.external_of(p.table, packet.ends.daddr)
    if external < 0 or port_class == numbers.CLASS_ICMP:
        return False
    if (p.triggers_and_marks != NULL and external == p.table.current
            and triggers_and_marks.is_kept_port(p.triggers_and_marks, port_class, packet.ends.did)):
        return True
    return ports.is_allowed(&p.table.pools[mappings.pool_of(external, port_class)], packet.ends.did)


cdef inline bint is_to_endpoint(const Path *p, const Packet *packet) noexcept nogil:
    """Whether a packet is to an external endpoint; an ICMP query never is."""
    cdef int port_class = rows.class_of(packet.protocol)
    if packet.kind != KIND_SESSION or (packet.protocol == numbers.ICMP and icmp.is_query(packet.transport[icmp.TYPE])):
        return False
    return (mappings.find_external(p.table, packet.ends.daddr, port_class, packet.ends.did) != rows.NONE
            or is_kept_port(p, packet, port_class))


cdef inline bint is_inside_only(const Path *p, uint32_t address) noexcept nogil:
    """Whether an address of ours is an inside link's: nothing leaves with it as its source (RFC 3022 section 5.1)."""
    cdef int i
    if mappings.external_of(p.table, address) >= 0:
        return False
    for i in range(p.link_count):
        if p.links[i].side == keys.INSIDE and p.links[i].address == address:
            return True
    return False


cdef inline const Redirect *find_inbound_redirect(const Path *p, const Packet *packet) noexcept nogil:
    """Return the redirect that takes a packet from outside to an address of ours, or NULL."""
    if is_inside_only(p, packet.ends.daddr):
        return NULL
    return redirects.find(&p.redirects, packet.protocol, packet.ends.saddr)


cdef inline Owner owner_from_outside(const Path *p, const Packet *packet) noexcept nogil:
    if trackers.is_asked_about(p, packet):
        return OWNER_TRACKER if mappings.external_of(p.table, packet.ends.daddr) >= 0 else OWNER_HOST
    if packet.kind == KIND_PROTOCOL_OTHER:
        return OWNER_REDIRECT if find_inbound_redirect(p, packet) != NULL else OWNER_HOST
    return OWNER_ENDPOINT if is_to_endpoint(p, packet) else OWNER_HOST


cdef inline Owner owner_from_inside(const Path *p, const Packet *packet) noexcept nogil:
    if packet.kind == KIND_TUNNEL:
        return OWNER_TRACKER if mappings.external_of(p.table, packet.ends.daddr) >= 0 else OWNER_HOST
    if not p.hairpin or packet.protocol == numbers.ICMP:
        return OWNER_HOST
    return OWNER_ENDPOINT if is_to_endpoint(p, packet) else OWNER_HOST


cdef inline Owner owner_of(const Path *p, Packet *packet) noexcept nogil:
    if route.route_of(p, packet).kind != links.ROUTE_LOCAL or packet.kind == KIND_ICMP_ERROR:
        return OWNER_NONE
    return owner_from_outside(p, packet) if packet.side == keys.OUTSIDE else owner_from_inside(p, packet)
