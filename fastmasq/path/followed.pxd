# A packet of a tunnel or of ISAKMP that no row explains: its tracker says which address it leaves with, or whom it is for.

from libc.stdint cimport uint8_t

from fastmasq.path cimport filter, leave, liveness, punts, trackers, verdict
from fastmasq.path.egress cimport send_packet
from fastmasq.path.packet cimport KIND_SESSION, KIND_TUNNEL, Packet
from fastmasq.path.refusal cimport refuse_inside
from fastmasq.path.rewrite cimport rewrite_addresses, rewrite_ends
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport table
from fastmasq.table.keys cimport Ends
from fastmasq.wire cimport gre


cdef inline Outcome ask(Path *p, const Packet *packet) noexcept nogil:
    cdef uint8_t kind = punts.PUNT_TUNNEL if packet.kind == KIND_TUNNEL else punts.PUNT_ISAKMP
    return trackers.ask_tracker(p, packet, kind, -1)


cdef inline Outcome send_answered(Path *p, Packet *packet, const Ends *ends) noexcept nogil:
    """Send a packet with the ends that its tracker has decided."""
    cdef Outcome outcome = filter.sent_translated(p, packet, ends)
    if outcome != verdict.GOES_ON:
        return outcome
    if packet.kind == KIND_SESSION:
        rewrite_ends(p, packet, ends)
    else:
        if packet.answer.renumbered:
            gre.set_call_id(packet.transport, packet.answer.call_id)
        rewrite_addresses(p, packet, ends.saddr, ends.daddr)
    return send_packet(p, packet)


cdef inline Outcome masquerade(Path *p, Packet *packet) noexcept nogil:
    """A packet from inside: the tracker says which address it leaves with."""
    cdef Ends ends = packet.ends
    cdef Outcome outcome
    if p.table.current < 0:
        return refuse_inside(packet, table.REFUSED_NO_EXTERNAL)
    outcome = leave.towards(p, packet, packet.ends.daddr)
    if outcome == verdict.GOES_ON:
        outcome = ask(p, packet)
    if outcome != verdict.GOES_ON:
        return outcome
    liveness.note_live(p.live, &p.table.secret, packet, p.now_ms)
    ends.saddr = packet.answer.address
    return send_answered(p, packet, &ends)


cdef inline Outcome admit(Path *p, Packet *packet) noexcept nogil:
    """A packet from outside to an address of ours: the tracker says which inside host it is for."""
    cdef Ends ends = packet.ends
    cdef Outcome outcome
    if packet.answer != NULL and packet.answer.outcome == verdict.GOES_ON:
        outcome = leave.towards(p, packet, packet.answer.address)
    else:
        outcome = leave.check_ttl(packet)
    if outcome == verdict.GOES_ON:
        outcome = ask(p, packet)
    if outcome != verdict.GOES_ON:
        return outcome
    ends.daddr = packet.answer.address
    return send_answered(p, packet, &ends)
