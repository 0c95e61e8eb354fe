# Whose a packet is that is whole, or stands for the pieces of its datagram: a flow's, the host's, or that of the side it is from.

from libc.stdint cimport int64_t, uint32_t

from fastmasq.path cimport answered, errors, filter, hairpin, inbound, outbound, ownership, portless, proxy, route, rules
from fastmasq.path cimport session, trackers, tunnelled, verdict
from fastmasq.path.ownership cimport Owner
from fastmasq.path.packet cimport KIND_FRAGMENT, KIND_ICMP_ERROR, KIND_PROTOCOL_OTHER, KIND_SESSION, KIND_TUNNEL, Packet
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.abi cimport PACKET_HOST
from fastmasq.table cimport keys, rows, sessions
from fastmasq.wire.branches cimport rarely


cdef inline int64_t find_flow(const Path *p, Packet *packet) noexcept nogil:
    """Return the flow of a packet, or the way of a tunnel, as rows.ref_of has it; negative without one."""
    if packet.frame.packet_type != PACKET_HOST:
        return -1
    if packet.kind == KIND_SESSION:
        return sessions.find_flow(p.table, packet.key0, packet.key1, packet.hash)
    if packet.kind != KIND_PROTOCOL_OTHER:
        return -1
    return tunnelled.find_flow(p, packet) if trackers.is_tunnel(p, packet) else portless.find_flow(p, packet)


cdef inline Outcome forward(Path *p, Packet *packet, uint32_t ref) noexcept nogil:
    """A packet of the flow or the way `ref`."""
    if rarely(packet.kind == KIND_TUNNEL):
        return tunnelled.forward(p, packet, ref)
    if rarely(p.table.sessions[rows.row_of(ref)].flags & rows.SESSION_HAIRPIN):
        return hairpin.forward(p, packet, ref)
    return session.forward(p, packet, ref)


cdef inline bint is_for_many(const Path *p, Packet *packet) noexcept nogil:
    return route.is_to_many(p, packet) or packet.frame.packet_type != PACKET_HOST


cdef inline bint stands_for_pieces(const Packet *packet) noexcept nogil:
    """Whether a packet is the first piece of a datagram that is reassembled: its source has been judged for that."""
    return packet.is_fragment and packet.kind != KIND_FRAGMENT


cdef inline Outcome take_new(Path *p, Packet *packet) noexcept nogil:
    """A packet that belongs to no session and no tunnel."""
    cdef Owner owner
    cdef Outcome outcome
    if is_for_many(p, packet) and packet.side != keys.LOCAL:
        return verdict.DELIVERED
    owner = ownership.owner_of(p, packet)
    if p.chains != NULL and owner != ownership.OWNER_HOST:
        outcome = filter.admitted(p, packet, -1)
        if outcome != verdict.GOES_ON:
            return outcome
    if packet.side == keys.LOCAL:          # to nobody who was redirected to the program that sends it
        return errors.translate(p, packet) if packet.kind == KIND_ICMP_ERROR else verdict.NO_SESSION
    if route.is_martian_destination(p, packet):
        return verdict.MARTIAN_DESTINATION
    if packet.kind == KIND_ICMP_ERROR:
        return errors.take(p, packet)
    if not stands_for_pieces(packet) and route.is_martian_source(p, packet):
        return verdict.MARTIAN_SOURCE
    if proxy.takes(p, packet):
        return proxy.open(p, packet)
    return outbound.take(p, packet, owner) if packet.side == keys.INSIDE else inbound.take(p, packet, owner)


cdef inline int first_counted(const Packet *packet) noexcept nogil:
    """Return the first built-in chain that has not seen the packet: of what waited for a tracker, only the last has not."""
    if packet.answer != NULL:
        return rules.CHAIN_OUTPUT
    return rules.CHAIN_FORWARD if packet.has_waited else rules.CHAIN_INPUT


cdef inline Outcome handle_packet(Path *p, Packet *packet) noexcept nogil:
    cdef int64_t ref = find_flow(p, packet)
    cdef Outcome outcome
    if ref < 0 and rarely(p.observation != NULL):
        ref = answered.find(p, packet)
        if ref == answered.ANSWERS_HOST:
            p.notes[verdict.NOTE_ANSWERS_TO_HOST] += 1
            return verdict.DELIVERED
    if p.chains != NULL:
        packet.passage = &p.passage
        rules.begin_passage(packet.passage, first_counted(packet))
    if rarely(ref < 0):
        return take_new(p, packet)
    if p.chains != NULL:
        outcome = filter.admitted(p, packet, ref)
        if outcome != verdict.GOES_ON:
            return outcome
    return forward(p, packet, <uint32_t>ref)
