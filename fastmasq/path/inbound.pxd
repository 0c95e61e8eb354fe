# A packet from outside that belongs to no session: for the host, for a mapping, or nobody's.

from libc.stdint cimport int64_t, uint16_t, uint32_t

from fastmasq.path cimport filter, followed, leave, marks, outbound, ownership, plain, portless, session, triggers, verdict
from fastmasq.path.marks cimport Mark, MarkTarget
from fastmasq.path.ownership cimport Owner
from fastmasq.path.packet cimport Packet
from fastmasq.path.refusal cimport reason_of
from fastmasq.path.state cimport Path
from fastmasq.path.triggers cimport Trigger
from fastmasq.path.triggers_and_marks cimport TriggersAndMarks
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport filtering, forwards, keys, mappings, opening, rows, sessions, table
from fastmasq.table.keys cimport Ends
from fastmasq.table.forwards cimport Target
from fastmasq.table.rows cimport Flow
from fastmasq.wire cimport numbers, tcp


# -- forwards --------------------------------------------------------------------------------------------------------

cdef inline Outcome open_forwarded(Path *p, Packet *packet, uint32_t mapping) noexcept nogil:
    """A packet to a port forward: open a session with the target whose turn it is.

    What may open none passes all the same: a reset, and anything while the forward has its share of half-open sessions.
    """
    cdef const Target *target = opening.forward_target(p.table, mapping, packet.ends.saddr, packet.ends.sid)
    cdef int state = session.first_inbound_state(packet)
    cdef int64_t row = table.REFUSED_HALF_OPEN
    cdef Ends ends = packet.ends
    cdef Outcome outcome
    if not forwards.is_for(&p.table.forwards, p.table.mappings[mapping].host, packet.ends.saddr, packet.ends.sid):
        return verdict.FILTERED
    outcome = leave.towards(p, packet, target.address)
    if outcome != verdict.GOES_ON:
        return outcome
    ends.daddr, ends.did = target.address, target.port
    if state >= 0:
        row = opening.open_forwarded(p.table, mapping, packet.ends.saddr, packet.ends.sid,
                                     session.birth_of(p, packet, state, 0))
    if row == table.REFUSED_HALF_OPEN:
        return plain.pass_stateless(p, packet, &ends)
    return session.forward_opened(p, packet, row, rows.INBOUND) if row >= 0 else reason_of(row)


# -- triggers and marks ----------------------------------------------------------------------------------------------

cdef struct Led:
    # inside endpoint that a trigger or a mark leads to
    uint32_t address
    uint16_t port
    Trigger *trigger            # that leads there; NULL: a mark does
    Mark *mark


cdef inline Mark *mark_of(TriggersAndMarks *t, const Packet *packet) noexcept nogil:
    """Return the mark that this packet may open a session by, or NULL: of TCP, a SYN without ACK."""
    if packet.protocol == numbers.TCP and packet.transport[tcp.FLAGS] & (tcp.SYN | tcp.ACK) != tcp.SYN:
        return NULL
    return marks.find_mark(&t.marks, filter.mark_of(packet))


cdef inline bint is_led_inside(Path *p, const Packet *packet, Led *led) noexcept nogil:
    """Whether a trigger, or the packet's mark, leads to an inside host; which one."""
    cdef TriggersAndMarks *t = p.triggers_and_marks
    cdef const MarkTarget *target
    led.trigger = triggers.find_trigger(&t.triggers, packet.protocol, &packet.ends, p.tick)
    if led.trigger != NULL:
        led.address, led.port, led.mark = led.trigger.host, packet.ends.did, NULL
        return True
    led.mark = mark_of(t, packet)
    if led.mark == NULL:
        return False
    target = marks.target_of(&t.marks, led.mark)
    led.address = target.address
    led.port = target.port or packet.ends.did
    return True


cdef inline Outcome open_led(Path *p, Packet *packet, uint32_t mapping, const Led *led) noexcept nogil:
    """Open the session of a packet with the inside endpoint that it is led to."""
    cdef int64_t row
    cdef Outcome outcome = leave.towards(p, packet, led.address)
    if outcome != verdict.GOES_ON:
        return outcome
    row = opening.open_inbound(p.table, mapping, keys.make_ends(led.address, led.port, packet.ends.saddr, packet.ends.sid),
                               p.triggers_and_marks.half_open_limit,
                               session.birth_of(p, packet, session.first_inbound_state(packet), 0))
    if row < 0:
        return reason_of(row)
    if led.trigger != NULL:
        triggers.note_session(&p.triggers_and_marks.triggers, led.trigger, p.tick)
    else:
        marks.count_session(&p.triggers_and_marks.marks, led.mark)
    return session.forward_opened(p, packet, row, rows.INBOUND)


cdef inline bint may_be_led(const Path *p, const Packet *packet, int port_class) noexcept nogil:
    """Whether a packet to an external endpoint may open a session there, if something leads it inside."""
    return (p.triggers_and_marks != NULL and port_class != numbers.CLASS_ICMP and p.table.current >= 0
            and packet.ends.daddr == p.table.external[p.table.current] and session.first_inbound_state(packet) >= 0)


# -- what is expected ------------------------------------------------------------------------------------------------

cdef inline bint may_be_expected(const Packet *packet) noexcept nogil:
    """Whether a packet may be the first of a session that is expected: of TCP, a SYN without ACK."""
    return packet.protocol == numbers.UDP or packet.transport[tcp.FLAGS] & (tcp.SYN | tcp.ACK | tcp.RST) == tcp.SYN


cdef inline Outcome open_expected(Path *p, Packet *packet, uint32_t mapping, uint32_t expected) noexcept nogil:
    """Open the session of a packet that was expected, and expect no further one."""
    cdef const Flow *flow = &p.table.sessions[expected].flow[rows.INBOUND]
    cdef int64_t row
    cdef Outcome outcome = leave.towards(p, packet, flow.daddr)
    if outcome != verdict.GOES_ON:
        return outcome
    row = opening.open_inbound(p.table, mapping, keys.make_ends(flow.daddr, flow.did, packet.ends.saddr, packet.ends.sid), 0,
                               session.birth_of(p, packet, session.first_inbound_state(packet), 0))
    if row < 0:
        return reason_of(row)
    sessions.close_session(p.table, expected)
    return session.forward_opened(p, packet, row, rows.INBOUND)


# -- mappings --------------------------------------------------------------------------------------------------------

cdef inline Outcome pass_mapping(Path *p, Packet *packet, uint32_t mapping) noexcept nogil:
    """A packet to the mapping of an inside endpoint, from a remote that has no session: filtered, then let in."""
    cdef Ends ends = packet.ends
    cdef Outcome outcome
    if not filtering.admits(p.table, mapping, packet.ends.saddr):
        # the host pings as well
        return verdict.DELIVERED if rows.class_of(packet.protocol) == numbers.CLASS_ICMP else verdict.FILTERED
    ends.daddr, ends.did = p.table.mappings[mapping].address, p.table.mappings[mapping].id
    outcome = leave.quietly_towards(p, packet, ends.daddr)
    return plain.pass_stateless(p, packet, &ends) if outcome == verdict.GOES_ON else outcome


cdef inline Outcome take_to_endpoint(Path *p, Packet *packet) noexcept nogil:
    """A packet to a port or an ICMP identifier that is ours."""
    cdef int port_class = rows.class_of(packet.protocol)
    cdef uint32_t mapping = mappings.find_external(p.table, packet.ends.daddr, port_class, packet.ends.did)
    cdef uint32_t led_by
    cdef int64_t expected
    cdef Led led
    if may_be_led(p, packet, port_class) and is_led_inside(p, packet, &led):
        led_by = mappings.mapping_row(p.table.current, port_class, packet.ends.did)
        if opening.may_lead_to(p.table, led_by, led.address, led.port):
            return open_led(p, packet, led_by, &led)
    if mapping == rows.NONE:
        return verdict.NO_SESSION
    if p.table.mappings[mapping].in_use == rows.MAPPING_FORWARD:
        return open_forwarded(p, packet, mapping)
    if port_class != numbers.CLASS_ICMP and may_be_expected(packet):
        expected = opening.find_expected(p.table, packet.protocol, packet.ends)
        if expected >= 0:
            return open_expected(p, packet, mapping, <uint32_t>expected)
    if p.table.mappings[mapping].in_use == rows.MAPPING_OPEN:
        return pass_mapping(p, packet, mapping)
    return verdict.NO_SESSION


# -- which of these --------------------------------------------------------------------------------------------------

cdef inline Outcome pass_through(Path *p, Packet *packet) noexcept nogil:
    """A packet to an address that is not ours: only the forward chain can let it pass."""
    if p.chains != NULL and not p.chains.default_forward:
        return outbound.forward_by_chain(p, packet)
    return verdict.POLICY_REFUSED


cdef inline Outcome take(Path *p, Packet *packet, Owner owner) noexcept nogil:
    if owner == ownership.OWNER_NONE:
        return pass_through(p, packet)
    if owner == ownership.OWNER_TRACKER:
        return followed.admit(p, packet)
    if owner == ownership.OWNER_ENDPOINT:
        return take_to_endpoint(p, packet)
    return portless.redirect_inbound(p, packet) if owner == ownership.OWNER_REDIRECT else verdict.DELIVERED
