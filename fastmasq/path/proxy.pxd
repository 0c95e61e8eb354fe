# A packet that a rule redirects to a program of this host, whatever its destination (T-10): it opens a session with that.

from libc.stdint cimport int64_t

from fastmasq.path cimport leave, links, route, session, verdict
from fastmasq.path.original_destination cimport tell_original_destination
from fastmasq.path.links cimport Route
from fastmasq.path.packet cimport KIND_SESSION, Packet
from fastmasq.path.refusal cimport reason_of, refuse_inside
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport keys, opening, rows
from fastmasq.table.opening cimport Proxies
from fastmasq.wire cimport numbers


cdef inline bint takes(const Path *p, Packet *packet) noexcept nogil:
    """Whether a packet is redirected, and may be: what has an address of ours may not.

    An external endpoint is its mapping's (T-10: that is tried first), all else the host's own.
    """
    return (packet.passage != NULL and packet.passage.is_redirected and packet.kind == KIND_SESSION
            and route.route_of(p, packet).kind != links.ROUTE_LOCAL)


cdef inline Outcome open(Path *p, Packet *packet) noexcept nogil:
    """Open the session of a program, and send the packet there.

    What may open none gets no session: the program's host is not asked what it thinks of a stray reset.
    """
    cdef int state = session.first_inbound_state(packet)
    cdef const Route *way = route.find_route(p, p.proxies_first)
    cdef Proxies proxies
    cdef Outcome outcome
    cdef int64_t row
    if state < 0:
        return verdict.NO_SESSION
    if not route.leads_to_proxies(p, way):
        return verdict.LINK_DOWN if p.observation == NULL else verdict.DELIVERED
    outcome = leave.over(p, packet, way, p.proxies_first)
    if outcome != verdict.GOES_ON:
        return outcome
    proxies.first, proxies.count = p.proxies_first, p.proxies
    proxies.port = packet.passage.redirect_port if packet.passage.redirect_port else packet.ends.did
    row = opening.open_proxied(p.table, packet.ends, packet.side, proxies, session.birth_of(p, packet, state, 0))
    if row < 0:
        return refuse_inside(packet, row) if packet.side == keys.INSIDE else reason_of(row)
    if packet.protocol == numbers.TCP:
        tell_original_destination(p, &p.table.sessions[row])
    return session.forward_opened(p, packet, row, rows.INBOUND)
