# A packet from inside that belongs to no session: for the host, for another inside network, or one that opens a session.

from libc.stdint cimport uint8_t, uint32_t

from fastmasq.path cimport filter, followed, hairpin, leave, masquerade, ownership, plain, portless, route, trackers, tunnelled
from fastmasq.path cimport verdict
from fastmasq.path.ownership cimport Owner
from fastmasq.path.packet cimport KIND_ICMP_ERROR, KIND_ICMP_OTHER, KIND_SESSION, Packet
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport keys, mappings, opening, rows, sessions
from fastmasq.table.table cimport Table
from fastmasq.wire cimport numbers, tcp


# -- on, by policy ---------------------------------------------------------------------------------------------------

cdef inline Outcome masquerade_new(Path *p, Packet *packet) noexcept nogil:
    """Masquerade a packet without a session, if its kind can be."""
    if trackers.is_asked_about(p, packet):
        return followed.masquerade(p, packet)
    if packet.kind == KIND_SESSION:
        return masquerade.open(p, packet, packet.ends.daddr, 0)
    if packet.kind == KIND_ICMP_ERROR:
        return verdict.NO_SESSION
    if packet.kind == KIND_ICMP_OTHER:
        return verdict.ICMP_TYPE_REFUSED
    return portless.masquerade(p, packet)


cdef inline Outcome forward_by_chain(Path *p, Packet *packet) noexcept nogil:
    """Do with a packet without a session what the forward chain says (T-3, T-4).

    Only what leaves by the outside link is masqueraded: towards an inside network there is no address to hide behind,
    and MASQ lets a packet pass as it is.
    """
    cdef Outcome outcome = leave.towards(p, packet, packet.ends.daddr)
    if outcome == verdict.GOES_ON:
        outcome = filter.ask_forward(p, packet)
    if outcome != verdict.GOES_ON:
        return outcome
    if not filter.is_translated(packet) or p.links[packet.hop.link].side != keys.OUTSIDE:
        return plain.send_plain(p, packet)
    return masquerade_new(p, packet) if packet.side == keys.INSIDE else verdict.POLICY_REFUSED


cdef inline Outcome forward_new(Path *p, Packet *packet) noexcept nogil:
    """Do with a packet from inside that is for somebody else what the forward chain says.

    Where nobody has touched that: all that leaves by the outside link is masqueraded, and inside networks reach each other.
    """
    cdef uint8_t side = p.links[packet.route.link].side
    if p.chains != NULL and not p.chains.default_forward:
        return forward_by_chain(p, packet)
    if side == keys.OUTSIDE:
        return masquerade_new(p, packet)
    return plain.forward_plain(p, packet) if side == keys.INSIDE else verdict.POLICY_REFUSED


# -- to an address of ours -------------------------------------------------------------------------------------------

cdef inline uint32_t find_target(const Table *t, uint32_t receiver, const Packet *packet) noexcept nogil:
    """Return an inside host that a packet to this external endpoint may turn round to, 0 without one."""
    if t.mappings[receiver].in_use == rows.MAPPING_FORWARD:
        return opening.forward_target(t, receiver, packet.ends.saddr, packet.ends.sid).address
    return t.mappings[receiver].address


cdef inline bint expects(const Table *t, uint32_t receiver, uint32_t sender, const Packet *packet) noexcept nogil:
    """Whether the receiver has a session with the sender's external endpoint."""
    return sessions.has_flow(t, packet.protocol, keys.OUTSIDE, keys.make_ends(
        mappings.mapping_address(t, sender), mappings.row_port(sender), packet.ends.daddr, mappings.row_port(receiver)))


cdef inline Outcome turn_round(Path *p, Packet *packet, uint32_t receiver) noexcept nogil:
    """A packet to the external endpoint of the mapping `receiver`, from somebody who has no session with it."""
    cdef Table *t = p.table
    cdef uint32_t sender, target
    if packet.protocol == numbers.TCP and packet.transport[tcp.FLAGS] & tcp.RST:
        # refuses a connection that only the other host has a session of: passes if that session exists
        sender = masquerade.sender_mapping(p, packet)
        if sender != rows.NONE and expects(t, receiver, sender, packet):
            return hairpin.turn_stateless(p, packet, sender)
    target = find_target(t, receiver, packet)
    if target == 0:
        return verdict.NO_SESSION
    return masquerade.open(p, packet, target, rows.SESSION_HAIRPIN)


cdef inline Outcome take_to_endpoint(Path *p, Packet *packet) noexcept nogil:
    """A packet to an external endpoint of ours, which may be nobody's just now."""
    cdef uint32_t receiver = mappings.find_external(p.table, packet.ends.daddr, rows.class_of(packet.protocol), packet.ends.did)
    return turn_round(p, packet, receiver) if receiver != rows.NONE else verdict.NO_SESSION


cdef inline Outcome take(Path *p, Packet *packet, Owner owner) noexcept nogil:
    if owner == ownership.OWNER_NONE:
        return forward_new(p, packet) if route.leads_on(packet.route) else leave.refuse_route(packet, packet.route)
    if owner == ownership.OWNER_TRACKER:
        return tunnelled.no_row(packet)         # the guard keeps it from the host
    return take_to_endpoint(p, packet) if owner == ownership.OWNER_ENDPOINT else verdict.DELIVERED
