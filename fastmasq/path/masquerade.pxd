# A new session from inside: opened if its packet may leave, so that refused, held or unsendable packets open none.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from fastmasq.path cimport hairpin, leave, observation, plain, route, session, triggers, triggers_and_marks, verdict
from fastmasq.path.packet cimport Packet
from fastmasq.path.refusal cimport refuse_inside
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport mappings, opening, rows, table
from fastmasq.table.keys cimport Ends
from fastmasq.wire cimport numbers


cdef inline bint keeps_port(Path *p, const Packet *packet) noexcept nogil:
    """Whether the external port of a new mapping is to be that of the packet."""
    cdef int port_class = rows.class_of(packet.protocol)
    return (p.triggers_and_marks != NULL and port_class != numbers.CLASS_ICMP
            and triggers_and_marks.is_kept_port(p.triggers_and_marks, port_class, packet.ends.sid)
            and triggers.keeps_port(&p.triggers_and_marks.triggers, packet.protocol, &packet.ends, p.tick))


cdef inline uint32_t sender_mapping(const Path *p, const Packet *packet) noexcept nogil:
    """Return the mapping of a packet's source, or NONE."""
    cdef int port_class = rows.class_of(packet.protocol)
    return mappings.find_internal(p.table, mappings.external_for(p.table, packet.ends.saddr), port_class,
                                  packet.ends.saddr, packet.ends.sid,
                                  mappings.endpoint_hash(p.table, port_class, packet.ends.saddr, packet.ends.sid))


cdef inline Outcome answer_stateless(Path *p, Packet *packet, bint turns_round) noexcept nogil:
    """The answer of a forward's target to a packet that passed without a session."""
    cdef uint32_t mapping = sender_mapping(p, packet)
    cdef Ends ends = packet.ends
    if turns_round:
        return hairpin.turn_stateless(p, packet, mapping)
    ends.saddr = mappings.mapping_address(p.table, mapping)
    ends.sid = mappings.row_port(mapping)
    return plain.pass_stateless(p, packet, &ends)


cdef inline Outcome open(Path *p, Packet *packet, uint32_t towards, uint8_t flags) noexcept nogil:
    """Open a session for an outbound packet and send it on.

    towards: its destination, or with SESSION_HAIRPIN in flags an inside host behind that.
    """
    cdef int state = session.first_state(packet)
    cdef Outcome outcome
    cdef int64_t row
    if state < 0:
        return verdict.NO_SESSION
    outcome = leave.towards(p, packet, towards)
    if outcome != verdict.GOES_ON:
        return outcome
    row = opening.open_session(p.table, route.external_by(p, packet), packet.ends,
                               session.birth_of(p, packet, state, flags), keeps_port(p, packet))
    if row == table.REFUSED_HALF_OPEN:
        return answer_stateless(p, packet, flags & rows.SESSION_HAIRPIN)
    if row < 0:
        return refuse_inside(packet, row)
    if flags & rows.SESSION_HAIRPIN:
        return hairpin.turn_round(p, packet, <uint32_t>row, True)
    if p.observation != NULL:
        observation.note_asked(p.observation, &p.table.secret, packet)
    return session.forward_opened(p, packet, row, rows.OUTBOUND)
