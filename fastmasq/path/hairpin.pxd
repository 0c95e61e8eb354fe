# A packet from inside to an external endpoint of ours: it turns round here, out by the sender's mapping, in by the receiver's.
#
# It is treated as if it had gone out and come back (RFC 4787 REQ-9, 9a): it moves on the sender's session and then the
# receiver's, and both live by their own packets. The filter keeps strangers out, and this is none,
# but for a forward that is for some remote endpoints only.

from libc.stdint cimport int64_t, uint32_t

from fastmasq.path cimport filter, leave, punts, trackers, verdict
from fastmasq.path.egress cimport send_packet
from fastmasq.path.packet cimport Packet
from fastmasq.path.refusal cimport reason_of
from fastmasq.path.rewrite cimport rewrite_ends
from fastmasq.path.session cimport advance, birth_of, check_link, first_inbound_state
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport forwards, keys, mappings, opening, rows, sessions, table
from fastmasq.table.keys cimport Ends
from fastmasq.table.rows cimport Flow
from fastmasq.table.forwards cimport Target
from fastmasq.table.table cimport Table


cdef struct Turn:
    uint32_t row                # the sender's session, or NONE
    bint is_new                 # this packet has opened it
    Ends ends                   # of the packet as the receiver gets it
    uint32_t receiver           # mapping
    int64_t returning           # flow of the receiver's session, negative without one


cdef inline Outcome find_receiver(const Path *p, const Packet *packet, uint32_t sender, Turn *turn) noexcept nogil:
    """Find who is behind the external endpoint that a packet is for; sender is the mapping that it turns round by."""
    cdef Table *t = p.table
    cdef const Flow *flow
    cdef const Target *target
    turn.receiver = mappings.find_external(t, packet.ends.daddr, rows.class_of(packet.protocol), packet.ends.did)
    if turn.receiver == rows.NONE:
        return verdict.NO_SESSION
    turn.ends.saddr = mappings.mapping_address(t, sender)
    turn.ends.sid = mappings.row_port(sender)
    turn.ends.daddr, turn.ends.did = packet.ends.daddr, packet.ends.did
    turn.returning = sessions.find_between(t, packet.protocol, keys.OUTSIDE, turn.ends)
    if t.mappings[turn.receiver].in_use == rows.MAPPING_OPEN:
        turn.ends.daddr = t.mappings[turn.receiver].address
        turn.ends.did = t.mappings[turn.receiver].id
    elif turn.returning >= 0:
        flow = &t.sessions[rows.row_of(turn.returning)].flow[rows.INBOUND]
        turn.ends.daddr, turn.ends.did = flow.daddr, flow.did
    elif t.mappings[turn.receiver].in_use == rows.MAPPING_FORWARD:
        if not forwards.is_for(&t.forwards, t.mappings[turn.receiver].host, turn.ends.saddr, turn.ends.sid):
            return verdict.FILTERED
        target = opening.forward_target(t, turn.receiver, turn.ends.saddr, turn.ends.sid)
        turn.ends.daddr, turn.ends.did = target.address, target.port
    else:
        return verdict.NO_SESSION
    return verdict.GOES_ON


cdef inline Outcome open_receiver(Path *p, const Packet *packet, Turn *turn) noexcept nogil:
    """Open the receiver's session if it is a forward's target, and has none yet that it could have."""
    cdef Table *t = p.table
    cdef int state = first_inbound_state(packet)
    cdef int64_t opened
    if turn.returning >= 0 or t.mappings[turn.receiver].in_use != rows.MAPPING_FORWARD or state < 0:
        return verdict.GOES_ON
    opened = opening.open_forwarded(t, turn.receiver, turn.ends.saddr, turn.ends.sid,
                                    birth_of(p, packet, state, rows.SESSION_HAIRPIN))
    if opened >= 0:
        turn.returning = rows.ref_of(<uint32_t>opened, rows.INBOUND)
    elif opened != table.REFUSED_HALF_OPEN:
        return reason_of(opened)
    return verdict.GOES_ON


cdef inline Outcome reach_receiver(Path *p, Packet *packet, uint32_t sender, Turn *turn) noexcept nogil:
    """Find the receiver, the hop to it, and its session; sender is the mapping that the packet turns round by.

    The sender's session, if the packet has opened it on the way here, goes where that is refused, or has to wait: then the
    packet opens it again.
    """
    cdef Outcome outcome = find_receiver(p, packet, sender, turn)
    if outcome == verdict.GOES_ON:
        outcome = leave.towards(p, packet, turn.ends.daddr)
    if outcome == verdict.GOES_ON:
        outcome = open_receiver(p, packet, turn)
    if outcome != verdict.GOES_ON and turn.is_new:
        sessions.close_session(p.table, turn.row)
    return outcome


cdef inline bint wants_to_see(const Path *p, const Packet *packet, uint32_t row) noexcept nogil:
    return trackers.is_followed(p, row, packet) and trackers.is_control(p, row, packet)


cdef inline bint is_turned_control(const Path *p, const Packet *packet, const Turn *turn) noexcept nogil:
    """Whether a segment that turns round is to be read: by the follower of the sender's session or the receiver's."""
    if turn.row == rows.NONE or turn.returning < 0:
        return False
    return wants_to_see(p, packet, turn.row) or wants_to_see(p, packet, rows.row_of(turn.returning))


cdef inline Outcome advance_both(Path *p, const Packet *packet, const Turn *turn) noexcept nogil:
    """Move on the sender's session and the receiver's, as far as there are any."""
    cdef Outcome outcome = verdict.GOES_ON
    if turn.row != rows.NONE:
        outcome = advance(p, packet, turn.row, rows.OUTBOUND, 0)
    if outcome == verdict.GOES_ON and turn.returning >= 0:
        outcome = advance(p, packet, rows.row_of(turn.returning), rows.INBOUND, 0)
    return outcome


cdef inline Outcome turn_by(Path *p, Packet *packet, uint32_t mapping, Turn *turn) noexcept nogil:
    """Turn a packet round by its sender's mapping; the sender's session is in `turn`."""
    cdef Outcome outcome = reach_receiver(p, packet, mapping, turn)
    if outcome == verdict.GOES_ON and is_turned_control(p, packet, turn):
        outcome = trackers.ask_tracker(p, packet, punts.PUNT_CONTROL, rows.ref_of(turn.row, rows.OUTBOUND))
    if outcome == verdict.GOES_ON:
        outcome = advance_both(p, packet, turn)
    if outcome == verdict.GOES_ON:
        outcome = filter.sent_round(p, packet, &turn.ends)
    if outcome != verdict.GOES_ON:
        return outcome
    rewrite_ends(p, packet, &turn.ends)
    return send_packet(p, packet)


cdef inline Outcome turn_round(Path *p, Packet *packet, uint32_t row, bint is_new) noexcept nogil:
    """Turn a packet round by its sender's session, which it may have opened just now."""
    cdef Turn turn
    turn.row, turn.is_new = row, is_new
    return turn_by(p, packet, p.table.sessions[row].mapping, &turn)


cdef inline Outcome turn_stateless(Path *p, Packet *packet, uint32_t mapping) noexcept nogil:
    """Turn a packet round by its sender's mapping alone."""
    cdef Turn turn
    turn.row, turn.is_new = rows.NONE, False
    return turn_by(p, packet, mapping, &turn)


cdef inline Outcome forward(Path *p, Packet *packet, uint32_t ref) noexcept nogil:
    """A packet that the table has a flow for, of a session with an external endpoint of ours."""
    cdef Outcome outcome
    if rows.direction_of(ref) != rows.OUTBOUND:
        return verdict.MARTIAN_SOURCE       # answers turn round here: one that comes from a link is forged
    outcome = check_link(p, packet, rows.row_of(ref), rows.OUTBOUND)
    if outcome != verdict.GOES_ON:
        return outcome
    return turn_round(p, packet, rows.row_of(ref), False)
