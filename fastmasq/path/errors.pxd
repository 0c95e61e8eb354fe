# ICMP errors about our sessions, in both directions: found by what they quote, rewritten outside and inside, sent on.
#
# The session's timer and state are not touched (RFC 5508 REQ-6).

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from fastmasq.path cimport filter, inbound, leave, links, outbound, quote as quotes, route, verdict
from fastmasq.path.egress cimport send_packet
from fastmasq.path.packet cimport Packet
from fastmasq.path.quote cimport Quote, Rewrite
from fastmasq.path.rewrite cimport rewrite_addresses, sums_addresses
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport keys, rows
from fastmasq.table.keys cimport Ends
from fastmasq.table.rows cimport Flow
from fastmasq.table.table cimport Table
from fastmasq.wire cimport gre, icmp, ipv4, numbers, tcp, udp
from fastmasq.wire.checksum cimport delta16, delta32, fold, update_full, update_full_at
from fastmasq.wire.octets cimport load16, load32, store16, store32


# -- writing ---------------------------------------------------------------------------------------------------------

cdef inline uint8_t *quoted_checksum(const Quote *quote) noexcept nogil:
    """Return where a quoted transport checksum is, NULL where there is none or it is not quoted."""
    cdef uint8_t *at = quote.transport
    if quote.protocol == numbers.ICMP:
        return at + icmp.CHECKSUM           # always there, within the first 8 octets
    if quote.protocol == numbers.TCP:
        return at + tcp.CHECKSUM if quote.available >= tcp.CHECKSUM + 2 else NULL
    if quote.protocol == numbers.DCCP:
        return at + udp.CHECKSUM
    return at + udp.CHECKSUM if load16(at + udp.CHECKSUM) != 0 else NULL


cdef inline uint32_t update_quoted_checksum(const Quote *quote, uint32_t delta) noexcept nogil:
    """Add `delta` to a quoted transport checksum, if there is one; return what that adds to the ICMP sum."""
    cdef uint8_t *field = quoted_checksum(quote)
    cdef uint16_t before, after
    if field == NULL:
        return 0
    before = load16(field)
    after = update_full(before, fold(delta))
    if after == 0 and (quote.protocol == numbers.UDP or quote.protocol == numbers.UDP_LITE):
        after = 0xFFFF              # the reporting router saw what we sent, and a computed 0 is sent so (RFC 768)
    store16(field, after)
    return delta16(before, after)


cdef inline uint32_t rewrite_quoted_transport(const Quote *quote, const Rewrite *new, uint32_t address_delta) noexcept nogil:
    """Write the quoted ids and, as far as it is quoted, their checksum; return the delta of all that for the ICMP sum."""
    cdef uint8_t *at = quote.transport
    cdef uint32_t ids = delta16(quote.ends.sid, new.quoted.sid) + delta16(quote.ends.did, new.quoted.did)
    cdef uint16_t before
    if sums_addresses(quote.protocol, quote.available):
        return update_quoted_checksum(quote, address_delta)
    if rows.class_of(quote.protocol) < 0:
        if not new.renumbered:
            return 0
        before = gre.call_id(at)
        gre.set_call_id(at, new.quoted_call_id)
        return delta16(before, new.quoted_call_id)
    if quote.protocol == numbers.ICMP:
        store16(at + icmp.IDENTIFIER, new.quoted.sid if icmp.is_query(at[icmp.TYPE]) else new.quoted.did)
        return ids + update_quoted_checksum(quote, ids)
    store16(at, new.quoted.sid)
    store16(at + 2, new.quoted.did)
    if quote.protocol == numbers.TCP and new.ref >= 0:
        ids += delta32(load32(at + tcp.SEQUENCE), new.number)
        store32(at + tcp.SEQUENCE, new.number)
    return ids + update_quoted_checksum(quote, ids + address_delta)


cdef inline void rewrite_error(Path *p, Packet *packet, const Quote *quote, const Rewrite *new) noexcept nogil:
    """Write `new` over the error and its quote, all checksums between included."""
    cdef uint32_t quoted_delta = delta32(quote.ends.saddr, new.quoted.saddr) + delta32(quote.ends.daddr, new.quoted.daddr)
    cdef uint32_t total
    cdef uint16_t before
    store32(quote.ip + ipv4.SOURCE, new.quoted.saddr)
    store32(quote.ip + ipv4.DESTINATION, new.quoted.daddr)
    before = load16(quote.ip + ipv4.CHECKSUM)
    update_full_at(quote.ip + ipv4.CHECKSUM, quoted_delta)
    total = quoted_delta + delta16(before, load16(quote.ip + ipv4.CHECKSUM))
    total += rewrite_quoted_transport(quote, new, quoted_delta)
    update_full_at(packet.transport + icmp.CHECKSUM, total)
    rewrite_addresses(p, packet, new.saddr, new.daddr)


cdef inline void note_path_mtu(Table *t, const Packet *packet, const Rewrite *new) noexcept nogil:
    """Remember a reported MTU for the direction of the quoted packet, for large sends whose segment size nobody tells us."""
    cdef const uint8_t *at = packet.transport
    cdef uint16_t mtu = load16(at + icmp.MTU)
    cdef Flow *quoted
    if (new.ref < 0 or at[icmp.TYPE] != icmp.DESTINATION_UNREACHABLE or at[icmp.CODE] != icmp.FRAGMENTATION_NEEDED
            or mtu < ipv4.LEAST_MTU):
        return
    quoted = &t.sessions[rows.row_of(new.ref)].flow[1 - rows.direction_of(new.ref)]
    if quoted.path_mtu == 0 or mtu < quoted.path_mtu:
        quoted.path_mtu = mtu


# -- the way of an error ---------------------------------------------------------------------------------------------

cdef inline Outcome find_quoted(Path *p, Packet *packet, Quote *quote, Rewrite *new) noexcept nogil:
    """Find out what an error is about, and what to write over it for that."""
    cdef Outcome outcome = quotes.parse_quote(packet, quote)
    memset(new, 0, sizeof(Rewrite))         # not all that may be found has ids
    if outcome != verdict.GOES_ON:
        return outcome
    if route.find_route(p, quote.ends.daddr).link != packet.link:
        return verdict.NO_SESSION           # what it quotes has not left by the link that it comes from
    outcome = quotes.find_session_or_tunnel(p, packet, quote, new)
    if outcome == quotes.UNKNOWN and quotes.is_asked_about(p, quote):
        outcome = quotes.find_by_tracker(p, packet, quote, new)
    if outcome == quotes.UNKNOWN:
        outcome = quotes.find_mapping(p, packet, quote, new) if packet.side == keys.INSIDE else verdict.NO_SESSION
    if outcome == verdict.GOES_ON and packet.side == keys.INSIDE and route.route_of(p, packet).kind == links.ROUTE_LOCAL:
        outcome = quotes.turn_round(p, packet, quote, new)
    return outcome


cdef inline Outcome translate(Path *p, Packet *packet) noexcept nogil:
    """Translate an error about a session of ours; one about the host's own traffic is the host's, others are as any packet."""
    cdef Quote quote
    cdef Rewrite new
    cdef Ends ends
    cdef Outcome outcome = find_quoted(p, packet, &quote, &new)
    if outcome == verdict.NO_SESSION and route.route_of(p, packet).kind == links.ROUTE_LOCAL:
        return verdict.DELIVERED
    if outcome == verdict.NO_SESSION and packet.side == keys.INSIDE:
        return outbound.forward_new(p, packet)
    if outcome == verdict.GOES_ON:
        outcome = leave.quietly_towards(p, packet, new.daddr)
    if outcome == verdict.GOES_ON:
        ends = packet.ends
        ends.saddr, ends.daddr = new.saddr, new.daddr
        outcome = filter.sent_translated(p, packet, &ends)
    if outcome != verdict.GOES_ON:
        return outcome
    note_path_mtu(p.table, packet, &new)
    rewrite_error(p, packet, &quote, &new)
    return send_packet(p, packet)


cdef inline bint quotes_session(const Path *p, const Packet *packet) noexcept nogil:
    """Whether an error quotes exactly what a session or a tunnel of ours has sent over the link that it comes by."""
    cdef Quote quote
    cdef Rewrite new
    return (quotes.parse_quote(packet, &quote) == verdict.GOES_ON
            and route.find_route(p, quote.ends.daddr).link == packet.link
            and quotes.find_session_or_tunnel(p, packet, &quote, &new) == verdict.GOES_ON)


cdef inline bint is_martian_source(const Path *p, const Packet *packet) noexcept nogil:
    """Whether an error may not be from where it says: a router may have any address that is not ours (RFC 4787 REQ-12a).

    Some carriers number their links as the inside is numbered, and without their word path MTU discovery fails. Who
    quotes a session has seen a packet of it.
    """
    if not route.is_martian_source(p, packet):
        return False
    return not route.may_be_a_router(p, packet.ends.saddr) or not quotes_session(p, packet)


cdef inline bint is_about_answer(const Path *p, const Packet *packet) noexcept nogil:
    """Whether an error from outside, to an address that is not ours, quotes what a program has answered as that."""
    cdef Quote quote
    cdef Rewrite new
    return (quotes.parse_quote(packet, &quote) == verdict.GOES_ON
            and quotes.find_session(p, keys.OUTSIDE, packet, &quote, &new) == verdict.GOES_ON)


cdef inline Outcome take(Path *p, Packet *packet) noexcept nogil:
    """An error from inside or outside."""
    if is_martian_source(p, packet):
        return verdict.MARTIAN_SOURCE
    if route.route_of(p, packet).kind != links.ROUTE_LOCAL:
        if packet.side == keys.INSIDE and not route.leads_on(packet.route):
            return leave.refuse_route(packet, packet.route)
        if packet.side == keys.OUTSIDE and not is_about_answer(p, packet):
            return inbound.pass_through(p, packet)
    return translate(p, packet)
