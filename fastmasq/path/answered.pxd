# While the path only observes: a packet from outside that answers what the host's kernel has translated or sent itself.
#
# It comes to a port that the kernel has chosen. The answer to an inside host whose session is known is taken for the one
# that would have come to the port of ours, and judged as that; any other is the host's, and nobody's to judge here.

from libc.stdint cimport int64_t, uint32_t

from fastmasq.path cimport errors, links, observation, route, trackers
from fastmasq.path.packet cimport KIND_ICMP_ERROR, KIND_SESSION, Packet
from fastmasq.path.state cimport Path
from fastmasq.ring.abi cimport PACKET_HOST
from fastmasq.table cimport keys, mappings, rows, sessions, table
from fastmasq.table.rows cimport Flow
from fastmasq.wire cimport icmp, numbers, tcp

cdef enum:
    NOT_AN_ANSWER = -1
    ANSWERS_HOST = -2


cdef inline int64_t find_session(Path *p, Packet *packet) noexcept nogil:
    """Return the flow of an answer to an inside host, whose port is that of ours from now on; else NOT_AN_ANSWER.

    Only what is known of the packet is changed, not the packet.
    """
    cdef uint32_t inside = observation.asked_by(p.observation, &p.table.secret, packet.protocol, observation.asked_ends(
        packet.ends.saddr, packet.ends.sid, packet.ends.did))
    cdef int64_t ref
    cdef const Flow *flow
    if inside == 0:
        return NOT_AN_ANSWER
    ref = sessions.find_between(p.table, packet.protocol, keys.INSIDE, keys.make_ends(
        inside, packet.ends.did, packet.ends.saddr, packet.ends.sid))
    if ref < 0:
        return NOT_AN_ANSWER
    flow = &p.table.sessions[rows.row_of(ref)].flow[rows.OUTBOUND]
    packet.ends.daddr, packet.ends.did = flow.saddr, flow.sid
    flow = &p.table.sessions[rows.row_of(ref)].flow[rows.INBOUND]
    packet.key0, packet.key1 = flow.key0, flow.key1
    packet.hash = table.key_hash(p.table, packet.key0, packet.key1)
    return rows.ref_of(rows.row_of(ref), rows.INBOUND)


cdef inline bint begins_something(Path *p, const Packet *packet) noexcept nogil:
    """Whether a packet of KIND_SESSION may be the first that its sender has ever sent to us."""
    if packet.protocol == numbers.ICMP:
        return icmp.is_query(packet.transport[icmp.TYPE])
    if packet.protocol == numbers.TCP:
        return packet.transport[tcp.FLAGS] & (tcp.SYN | tcp.ACK) == tcp.SYN
    return observation.asked_by(p.observation, &p.table.secret, packet.protocol, observation.asked_ends(
        packet.ends.saddr, packet.ends.sid, 0)) == 0


cdef inline bint is_to_forward(const Path *p, const Packet *packet) noexcept nogil:
    """Whether a packet is to a port forward, which goes on with what began before anybody observed."""
    cdef uint32_t mapping = mappings.find_external(p.table, packet.ends.daddr, rows.class_of(packet.protocol), packet.ends.did)
    return mapping != rows.NONE and p.table.mappings[mapping].in_use == rows.MAPPING_FORWARD


cdef inline int64_t find(Path *p, Packet *packet) noexcept nogil:
    """Return the flow of a packet that has none by its own ends, or ANSWERS_HOST; NOT_AN_ANSWER if it is as any other."""
    cdef int64_t ref
    if (packet.side != keys.OUTSIDE or packet.frame.packet_type != PACKET_HOST
            or route.route_of(p, packet).kind != links.ROUTE_LOCAL):
        return NOT_AN_ANSWER
    if packet.kind == KIND_ICMP_ERROR:
        return NOT_AN_ANSWER if errors.is_about_answer(p, packet) else ANSWERS_HOST
    if packet.kind != KIND_SESSION or trackers.is_asked_about(p, packet) or is_to_forward(p, packet):
        return NOT_AN_ANSWER
    ref = find_session(p, packet)
    if ref != NOT_AN_ANSWER:
        return ref
    return NOT_AN_ANSWER if begins_something(p, packet) else ANSWERS_HOST
