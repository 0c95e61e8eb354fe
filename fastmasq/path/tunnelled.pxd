# A packet of a tunnel that its tracker has settled: found by Call ID or SPI, and moved as its way says.

from libc.stdint cimport int64_t, uint32_t, uint64_t

from fastmasq.path cimport filter, hops, leave, links, route, tunnels, verdict
from fastmasq.path.egress cimport send_packet
from fastmasq.path.packet cimport Packet
from fastmasq.path.plain cimport send_plain
from fastmasq.path.rewrite cimport rewrite_addresses
from fastmasq.path.state cimport Path
from fastmasq.path.tunnels cimport Way
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport keys, rows, table
from fastmasq.table.keys cimport Ends
from fastmasq.wire cimport esp, gre, numbers


cdef inline int64_t find_flow(const Path *p, Packet *packet) noexcept nogil:
    """Return the way of a tunnel's packet, or -1; a Call ID of its own goes before a way that takes any."""
    cdef int64_t found
    packet.key0 = keys.make_key0(packet.ends.saddr, packet.ends.daddr)
    packet.key1 = tunnels.tunnel_key1(packet.protocol, packet.side, packet.tunnel_id)
    packet.hash = table.key_hash(p.table, packet.key0, packet.key1)
    found = tunnels.find_any_way(&p.tunnels, &p.table.secret, packet.hash, packet.key0, packet.key1, False)
    if found >= 0:
        packet.tunnel_serial = tunnels.way_at(&p.tunnels, found).serial
    return found


cdef inline Outcome check_link(Path *p, const Packet *packet, Way *way) noexcept nogil:
    """Whether a packet may come by its link, asked like of a session's; what has changed since is looked up anew."""
    if way.generation == p.generation and way.came_by == packet.link:
        return verdict.GOES_ON
    if route.is_martian_source(p, packet):
        return verdict.MARTIAN_SOURCE
    if way.generation != p.generation:
        way.hop = rows.NO_HOP
        way.generation = p.generation
    way.came_by = packet.link
    return verdict.GOES_ON


cdef inline Outcome choose_way_hop(Path *p, Packet *packet, Way *way) noexcept nogil:
    """Choose the way's next hop, once its link has been checked."""
    cdef Outcome outcome
    if way.hop != rows.NO_HOP:
        packet.hop, packet.towards = &p.hops[way.hop], way.daddr
        return verdict.GOES_ON
    outcome = hops.choose_hop(p, packet, way.daddr)
    if outcome == verdict.GOES_ON:
        way.hop = hops.number_of(p, packet.hop)
    return outcome


cdef inline void count_way(const Path *p, Way *way, const Packet *packet) noexcept nogil:
    way.packets += 1
    way.last_ms = p.now_ms
    if packet.protocol == numbers.ESP:
        way.sequence = esp.sequence(packet.transport)


cdef inline Ends ends_after(const Packet *packet, const Way *way) noexcept nogil:
    cdef Ends ends = packet.ends
    ends.saddr, ends.daddr = way.saddr, way.daddr
    return ends


cdef inline Outcome send_by_way(Path *p, Packet *packet, const Way *way) noexcept nogil:
    if way.renumbered:
        gre.set_call_id(packet.transport, way.call_id)
    rewrite_addresses(p, packet, way.saddr, way.daddr)
    return send_packet(p, packet)


cdef inline Outcome no_row(const Packet *packet) noexcept nogil:
    """Return the reason to drop a tunnel's packet that nothing explains."""
    return verdict.GRE_NO_ROW if packet.protocol == numbers.GRE else verdict.ESP_NO_ROW


cdef inline Outcome turn_round(Path *p, Packet *packet, Way *sent) noexcept nogil:
    """A packet from inside to an address of ours that a server inside stands behind: out by one way, in by another.

    The client's way makes it what a host outside would send, and the server's takes it in, as sessions turn round.
    """
    cdef uint64_t key0 = keys.make_key0(sent.saddr, sent.daddr)
    cdef uint64_t key1 = tunnels.tunnel_key1(packet.protocol, keys.OUTSIDE, packet.tunnel_id)
    cdef int64_t found = tunnels.find_way(&p.tunnels, table.key_hash(p.table, key0, key1), key0, key1, False)
    cdef Way *received
    cdef Outcome outcome
    cdef Ends ends
    if found < 0:
        return no_row(packet)
    received = tunnels.way_at(&p.tunnels, found)
    outcome = check_link(p, packet, received)
    if outcome == verdict.GOES_ON:
        outcome = choose_way_hop(p, packet, received)
    if outcome != verdict.GOES_ON:
        return leave.tell_no_hop(p, packet, received.daddr, outcome)
    outcome = leave.may_leave(p, packet)
    if outcome != verdict.GOES_ON:
        return outcome
    ends = ends_after(packet, received)
    outcome = filter.sent_round(p, packet, &ends)
    if outcome != verdict.GOES_ON:
        return outcome
    count_way(p, sent, packet)
    count_way(p, received, packet)
    return send_by_way(p, packet, received)


cdef inline Outcome forward(Path *p, Packet *packet, uint32_t ref) noexcept nogil:
    """Translate and send a packet of the tunnel's way `ref`."""
    cdef int direction = rows.direction_of(ref)
    cdef Way *way = tunnels.way_at(&p.tunnels, ref)
    cdef Outcome outcome = check_link(p, packet, way)
    cdef Ends ends
    if outcome != verdict.GOES_ON:
        return outcome
    outcome = choose_way_hop(p, packet, way)
    if outcome != verdict.GOES_ON:
        if direction == rows.OUTBOUND and route.route_towards(p, packet, way.daddr).kind == links.ROUTE_LOCAL:
            return turn_round(p, packet, way)
        return leave.tell_no_hop(p, packet, way.daddr, outcome)
    outcome = leave.may_leave(p, packet)
    if outcome == verdict.GOES_ON and p.chains != NULL and direction == rows.OUTBOUND and not p.chains.default_forward:
        outcome = filter.ask_forward(p, packet)
        if outcome == verdict.GOES_ON and not filter.is_translated(packet):
            return send_plain(p, packet)
    if outcome == verdict.GOES_ON:
        ends = ends_after(packet, way)
        outcome = filter.sent_translated(p, packet, &ends)
    if outcome != verdict.GOES_ON:
        return outcome
    count_way(p, way, packet)
    return send_by_way(p, packet, way)
