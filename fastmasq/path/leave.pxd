# Whether a packet may leave: by TTL, MTU and next hop, in this order. Asked once for each next hop that it might take.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmasq.path cimport links, verdict
from fastmasq.path.hold cimport hold
from fastmasq.path.hops cimport choose_hop, find_hop
from fastmasq.path.packet cimport LEAST_SEGMENT, Packet, refused
from fastmasq.path.links cimport Hop, Route
from fastmasq.path.route cimport route_towards
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.abi cimport GSO_NONE
from fastmasq.ring.ring cimport Frame
from fastmasq.table cimport keys
from fastmasq.wire cimport icmp, ipv4, numbers, tcp, udp
from fastmasq.wire.octets cimport load16


cdef inline Outcome check_ttl(Packet *packet) noexcept nogil:
    """Whether a packet may go one link further (RFC 1812 section 5.3.1)."""
    if packet.ip[ipv4.TTL] > 1:
        return verdict.GOES_ON
    return refused(packet, verdict.TTL_EXCEEDED, icmp.TIME_EXCEEDED, 0, 0)


cdef inline Outcome fit_size(Packet *packet) noexcept nogil:
    """Have a packet longer than its hop's MTU go on, if it may: in fragments, or as a large send with segments that fit."""
    cdef Frame *frame = packet.frame
    cdef uint32_t mtu = packet.hop.mtu
    cdef uint32_t headers = packet.header_length
    cdef bint may_fragment = not load16(packet.ip + ipv4.FRAGMENT) & ipv4.DONT_FRAGMENT
    if frame.vnet.gso_type == GSO_NONE:
        if may_fragment:
            return verdict.GOES_ON          # send_packet cuts it
    else:
        headers += tcp.header_length(packet.transport) if packet.protocol == numbers.TCP else udp.MINIMUM
        if headers + frame.vnet.gso_size <= mtu:
            return verdict.GOES_ON
        if (may_fragment or packet.guessed) and packet.protocol == numbers.TCP and mtu >= headers + LEAST_SEGMENT:
            frame.vnet.gso_size = <uint16_t>(mtu - headers)     # smaller segments need no fragments
            return verdict.GOES_ON
        if may_fragment:
            return verdict.CANNOT_SEGMENT
    return refused(packet, verdict.FRAGMENTATION_NEEDED, icmp.DESTINATION_UNREACHABLE, icmp.FRAGMENTATION_NEEDED,
                   <uint16_t>mtu)


cdef inline Outcome may_leave(Path *p, Packet *packet) noexcept nogil:
    """Whether a packet may leave by the hop that has been chosen."""
    cdef Hop *hop = packet.hop
    cdef Outcome outcome
    if p.links[hop.link].side != keys.LOCAL:
        outcome = check_ttl(packet)
        if outcome != verdict.GOES_ON:
            return outcome
    if p.senders[hop.link] == NULL:
        return verdict.LINK_DOWN            # detached, and the routes have not followed yet
    if packet.length > hop.mtu:
        outcome = fit_size(packet)
        if outcome != verdict.GOES_ON:
            return outcome
    if hop.state != links.HOP_VALID:
        return hold(p, packet)
    return verdict.GOES_ON


cdef inline bint has_clear_way(const Path *p, const Packet *packet) noexcept nogil:
    """Whether nothing that `may_leave` asks for is in a packet's way, which is so of nearly all: it need not be asked then."""
    cdef const Hop *hop = packet.hop
    return (packet.ip[ipv4.TTL] > 1 and p.senders[hop.link] != NULL and packet.length <= hop.mtu
            and hop.state == links.HOP_VALID)


cdef inline Outcome refuse_route(Packet *packet, const Route *way) noexcept nogil:
    """Drop a packet by a route that leads nowhere, and say so as the kernel does (RFC 1812 section 5.2.7.1)."""
    cdef uint8_t code = icmp.NET_UNREACHABLE
    if way.kind == links.ROUTE_BLACKHOLE:
        return verdict.NO_ROUTE
    if way.kind == links.ROUTE_UNREACHABLE:
        code = icmp.HOST_UNREACHABLE
    elif way.kind == links.ROUTE_PROHIBIT:
        code = icmp.ADMINISTRATIVELY_PROHIBITED
    return refused(packet, verdict.NO_ROUTE, icmp.DESTINATION_UNREACHABLE, code, 0)


cdef inline Outcome tell_no_hop(const Path *p, Packet *packet, uint32_t address, Outcome reason) noexcept nogil:
    """Drop a packet that has no next hop towards an address; only where that is for want of a route its sender is told."""
    return refuse_route(packet, route_towards(p, packet, address)) if reason == verdict.NO_ROUTE else reason


cdef inline Outcome towards(Path *p, Packet *packet, uint32_t address) noexcept nogil:
    """Choose the next hop towards an address, and say whether the packet may leave by it; asked again, it stays so."""
    cdef Outcome outcome
    if packet.hop != NULL and packet.towards == address:
        return verdict.GOES_ON
    outcome = choose_hop(p, packet, address)
    if outcome != verdict.GOES_ON:
        return tell_no_hop(p, packet, address, outcome)
    return may_leave(p, packet)


cdef inline Outcome over(Path *p, Packet *packet, const Route *way, uint32_t address) noexcept nogil:
    """The same towards an address that is known to be reached over a route."""
    cdef Outcome outcome = find_hop(p, packet, way, address)
    if outcome != verdict.GOES_ON:
        return outcome
    packet.towards = address
    return may_leave(p, packet)


cdef inline Outcome quietly_towards(Path *p, Packet *packet, uint32_t address) noexcept nogil:
    """The same for a packet whose sender need not know the ways inside: it is not told that there is no route."""
    cdef Outcome outcome = choose_hop(p, packet, address)
    return may_leave(p, packet) if outcome == verdict.GOES_ON else outcome
