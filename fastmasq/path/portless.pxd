# Protocols without ports, by their addresses alone: an inside host has a remote one to itself. Trackers go first.

from libc.stdint cimport int64_t, uint8_t, uint32_t

from fastmasq.path cimport leave, session, verdict
from fastmasq.path.packet cimport Packet
from fastmasq.path.refusal cimport reason_of, refuse_inside
from fastmasq.path.state cimport Path, Redirect
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport keys, mappings, opening, rows, sessions
from fastmasq.table.sessions cimport Birth
from fastmasq.wire cimport numbers


cdef inline int64_t find_flow(const Path *p, Packet *packet) noexcept nogil:
    """Return the flow of a packet of a protocol without ports, or -1."""
    packet.ends.sid = packet.ends.did = 0
    return sessions.find_between(p.table, packet.protocol, packet.side, packet.ends)


cdef inline const Redirect *find_redirect(const Path *p, uint8_t protocol, uint32_t remote) noexcept nogil:
    """Return the first redirect that takes a protocol from a remote address, or NULL."""
    cdef int i
    for i in range(p.redirect_count):
        if p.redirects[i].protocol == protocol and p.redirects[i].source_first <= remote <= p.redirects[i].source_last:
            return &p.redirects[i]
    return NULL


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
    return find_redirect(p, packet.protocol, packet.ends.saddr)


cdef inline Outcome redirect_inbound(Path *p, Packet *packet) noexcept nogil:
    """A packet from outside that no session and no tracker claims: for a redirect's host, or for our own."""
    cdef const Redirect *redirect = find_inbound_redirect(p, packet)
    cdef Outcome outcome
    cdef int64_t row
    if redirect == NULL:
        return verdict.DELIVERED
    outcome = leave.towards(p, packet, redirect.host)
    if outcome != verdict.GOES_ON:
        return outcome
    row = opening.open_redirected(p.table, keys.make_ends(redirect.host, 0, packet.ends.saddr, 0), packet.ends.daddr, True,
                                  session.birth_of(p, packet, rows.PLAIN_ACTIVE, 0))
    return session.forward_opened(p, packet, row, rows.INBOUND) if row >= 0 else reason_of(row)


cdef inline Outcome masquerade(Path *p, Packet *packet) noexcept nogil:
    """A packet from inside: the host that a redirect gives its protocol to may begin, without one any host."""
    cdef const Redirect *redirect = find_redirect(p, packet.protocol, packet.ends.daddr)
    cdef bint may_begin
    cdef uint32_t external
    cdef Birth birth
    cdef Outcome outcome
    cdef int64_t row
    may_begin = redirect.host == packet.ends.saddr if redirect != NULL else p.by_address[packet.protocol] != 0
    if not may_begin:
        return verdict.AH_NOT_MASQUERADED if packet.protocol == numbers.AH else verdict.PROTOCOL_NOT_MASQUERADED
    if p.table.current < 0:
        return verdict.NO_EXTERNAL_ADDRESS
    outcome = leave.towards(p, packet, packet.ends.daddr)
    if outcome != verdict.GOES_ON:
        return outcome
    external = p.table.external[p.table.current]
    birth = session.birth_of(p, packet, rows.PLAIN_ACTIVE, 0)
    if redirect != NULL:
        row = opening.open_redirected(p.table, packet.ends, external, False, birth)
    else:
        row = opening.open_plain(p.table, packet.ends, external, birth)
    return session.forward_opened(p, packet, row, rows.OUTBOUND) if row >= 0 else refuse_inside(packet, row)
