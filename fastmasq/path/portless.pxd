# Protocols without ports, by their addresses alone: an inside host has a remote one to itself. Trackers go first.

from libc.stdint cimport int64_t, uint32_t

from fastmasq.path cimport leave, ownership, redirects, route, session, verdict
from fastmasq.path.packet cimport Packet
from fastmasq.path.refusal cimport reason_of, refuse_inside
from fastmasq.path.redirects cimport Redirect
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport keys, opening, rows, sessions
from fastmasq.table.sessions cimport Birth
from fastmasq.wire cimport numbers


cdef inline int64_t find_flow(const Path *p, Packet *packet) noexcept nogil:
    """Return the flow of a packet of a protocol without ports, or -1."""
    packet.ends.sid = packet.ends.did = 0
    return sessions.find_between(p.table, packet.protocol, packet.side, packet.ends)


cdef inline Outcome redirect_inbound(Path *p, Packet *packet) noexcept nogil:
    """A packet from outside that is for a redirect's host, which has it unless a session or a tracker does."""
    cdef const Redirect *redirect = ownership.find_inbound_redirect(p, packet)
    cdef Outcome outcome = leave.towards(p, packet, redirect.host)
    cdef int64_t row
    if outcome != verdict.GOES_ON:
        return outcome
    row = opening.open_redirected(p.table, keys.make_ends(redirect.host, 0, packet.ends.saddr, 0), packet.ends.daddr, True,
                                  session.birth_of(p, packet, rows.PLAIN_ACTIVE, 0))
    return session.forward_opened(p, packet, row, rows.INBOUND) if row >= 0 else reason_of(row)


cdef inline Outcome masquerade(Path *p, Packet *packet) noexcept nogil:
    """A packet from inside: the host that a redirect gives its protocol to may begin, without one any host."""
    cdef const Redirect *redirect = redirects.find(&p.redirects, packet.protocol, packet.ends.daddr)
    cdef bint may_begin
    cdef int place
    cdef uint32_t external
    cdef Birth birth
    cdef Outcome outcome
    cdef int64_t row
    may_begin = redirect.host == packet.ends.saddr if redirect != NULL else p.redirects.by_address[packet.protocol] != 0
    if not may_begin:
        return verdict.AH_NOT_MASQUERADED if packet.protocol == numbers.AH else verdict.PROTOCOL_NOT_MASQUERADED
    place = route.external_by(p, packet)
    if place < 0:
        return verdict.NO_EXTERNAL_ADDRESS
    outcome = leave.towards(p, packet, packet.ends.daddr)
    if outcome != verdict.GOES_ON:
        return outcome
    external = p.table.external[place]
    birth = session.birth_of(p, packet, rows.PLAIN_ACTIVE, 0)
    if redirect != NULL:
        row = opening.open_redirected(p.table, packet.ends, external, False, birth)
    else:
        row = opening.open_plain(p.table, packet.ends, external, birth)
    return session.forward_opened(p, packet, row, rows.OUTBOUND) if row >= 0 else refuse_inside(packet, row)
