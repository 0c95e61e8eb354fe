# What trackers decide: which packets are theirs, what waits for their word, and what is done once they have spoken.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.path.egress cimport send_packet
from fastmasq.path.icmp_error cimport ErrorRewrite, Quote
from fastmasq.path.leave cimport is_masqueraded, may_leave, no_hop, passes_output, refuse_session, ttl_left
from fastmasq.path.punts cimport (
    ANSWER_DROP, ANSWER_NONE, ANSWER_SEND, OUTSIDE_BURST, OUTSIDE_RATE, PUNT_CONTROL, PUNT_ISAKMP, PUNT_QUOTE, PUNT_TUNNEL,
    has_room, keep_punt,
)
from fastmasq.path.reply cimport take_token
from fastmasq.path.rewrite cimport decrement_ttl, rewrite_endpoints
from fastmasq.path.route cimport find_route, hop_of_route
from fastmasq.path.state cimport KIND_SESSION, KIND_TUNNEL, Parsed, Path, ROUTE_LOCAL, Route, count_drop
from fastmasq.path.tunnels cimport Way, find_any_way, find_way, tunnel_key1
from fastmasq.path.verdict cimport ESP_NO_ROW, GRE_NO_ROW, PUNT, PUNTS_FULL
from fastmasq.ring.ring cimport Frame
from fastmasq.table.keys cimport OUTSIDE, make_key0
from fastmasq.table.rows cimport Flow, NO_HOP, OUTBOUND
from fastmasq.table.table cimport REFUSED_NO_EXTERNAL, key_hash
from fastmasq.wire.checksum cimport delta32
from fastmasq.wire.esp cimport PROTOCOL_ESP, sequence as esp_sequence, spi
from fastmasq.wire.gre cimport (
    GRE_MINIMUM, PROTOCOL_GRE, call_id as gre_call_id, gre_header_length, is_pptp, set_call_id,
)
from fastmasq.wire.ipv4 cimport IPV4_DESTINATION, IPV4_SOURCE, PROTOCOL_UDP
from fastmasq.wire.isakmp cimport ISAKMP_PORT
from fastmasq.wire.octets cimport store32
from fastmasq.wire.tcp cimport FIN, RST, SYN, TCP_FLAGS, header_length as tcp_header_length

cdef enum:
    PPTP_PORT = 1723            # of the server's end of a control connection (RFC 2637 section 3)


cdef inline bint is_answered(Path *p, int link, const Frame *frame, const Parsed *parsed, uint8_t kind,
                             int64_t ref) noexcept nogil:
    """Whether a tracker wants the packet in hand to go on. If it has not been asked it is now, and the packet waits."""
    cdef bint is_strange = p.links[link].side == OUTSIDE and kind != PUNT_CONTROL
    if p.answer.kind == ANSWER_NONE:
        if (has_room(&p.punts, parsed.saddr, frame.length, kind, is_strange)
                and (not is_strange or take_token(&p.stranger_bucket, p.now_ms, OUTSIDE_RATE, OUTSIDE_BURST))):
            keep_punt(&p.punts, frame, link, parsed.saddr, kind, ref, is_strange)
            p.verdicts[PUNT] += 1
        else:
            count_drop(p, PUNTS_FULL)
        return False
    if p.answer.kind == ANSWER_DROP:
        count_drop(p, p.answer.reason)
        return False
    return True


cdef inline bint is_control(const Path *p, uint32_t row, const Flow *flow, const Parsed *parsed) noexcept nogil:
    """Whether a segment is one that the follower of a PPTP control connection wants to see: not a bare acknowledgment."""
    if parsed.did != PPTP_PORT and parsed.sid != PPTP_PORT and flow.did != PPTP_PORT and flow.sid != PPTP_PORT:
        return False
    if parsed.fragment or p.unfollowed[row >> 6] >> (row & 63) & 1:
        return False
    return (parsed.length > parsed.header_length + tcp_header_length(parsed.transport)
            or parsed.transport[TCP_FLAGS] & (SYN | FIN | RST))


cdef inline bint is_followed_isakmp(const Path *p, const Parsed *parsed) noexcept nogil:
    """Whether a packet is UDP from port 500 to port 500 (K-1), too short for ISAKMP or not: no session may have the pair."""
    return (p.follows_ipsec and parsed.kind == KIND_SESSION and parsed.protocol == PROTOCOL_UDP
            and parsed.sid == ISAKMP_PORT and parsed.did == ISAKMP_PORT)


cdef inline bint is_tunnel(const Path *p, Parsed *parsed) noexcept nogil:
    """Whether a packet without ports belongs to a kind of tunnel that a tracker follows; notes that and its id."""
    cdef uint32_t length = parsed.length - parsed.header_length
    if length < GRE_MINIMUM:            # ESP_MINIMUM as well
        return False
    if parsed.protocol == PROTOCOL_ESP and p.follows_ipsec:
        parsed.tunnel_id = spi(parsed.transport)
    elif (parsed.protocol == PROTOCOL_GRE and p.follows_pptp and is_pptp(parsed.transport)
          and length >= gre_header_length(parsed.transport)):
        parsed.tunnel_id = gre_call_id(parsed.transport)
    else:
        return False
    parsed.kind = KIND_TUNNEL
    return True


cdef inline int64_t find_way_of(const Path *p, int link, Parsed *parsed) noexcept nogil:
    """Return row << 1 | direction of a tunnel's packet, or -1; a Call ID of its own goes before a way that takes any."""
    cdef uint8_t side = p.links[link].side
    cdef int64_t found
    parsed.key0 = make_key0(parsed.saddr, parsed.daddr)
    parsed.key1 = tunnel_key1(parsed.protocol, side, parsed.tunnel_id)
    parsed.hash = <uint32_t>key_hash(p.table, parsed.key0, parsed.key1)
    found = find_any_way(&p.tunnels, &p.table.secret, parsed.hash, parsed.key0, parsed.key1, parsed.protocol, side, False)
    if found >= 0:
        parsed.tunnel_serial = p.tunnels.rows[found >> 1].way[found & 1].serial
    return found


cdef inline void write_addresses(Parsed *parsed, uint32_t saddr, uint32_t daddr) noexcept nogil:
    """Give a packet that no checksum of its own ties to its addresses new ones; TTL decremented."""
    decrement_ttl(parsed.ip, delta32(parsed.saddr, saddr) + delta32(parsed.daddr, daddr))
    store32(parsed.ip + IPV4_SOURCE, saddr)
    store32(parsed.ip + IPV4_DESTINATION, daddr)


cdef inline int way_hop(Path *p, Way *way) noexcept nogil:
    """Return the row of a way's next hop, or -reason - 1; looked up again when the world has changed."""
    cdef int hop
    if way.hop != NO_HOP and way.generation == p.generation:
        return way.hop
    hop = hop_of_route(p, find_route(p, way.daddr), way.daddr)
    if hop >= 0:
        way.hop = <uint16_t>hop
        way.generation = p.generation
    return hop


cdef inline void count_way(const Path *p, Way *way, const Parsed *parsed) noexcept nogil:
    way.packets += 1
    way.last_ms = p.now_ms
    if parsed.protocol == PROTOCOL_ESP:
        way.sequence = esp_sequence(parsed.transport)


cdef inline void send_by_way(Path *p, int link, int hop, const Way *way, Frame *frame, Parsed *parsed) noexcept nogil:
    if way.renumbered:
        set_call_id(parsed.transport, way.call_id)
    write_addresses(parsed, way.saddr, way.daddr)
    send_packet(p, link, &p.hops[hop], frame, parsed)


cdef inline void forward_tunnel(Path *p, int link, Frame *frame, Parsed *parsed, uint32_t ref) noexcept nogil:
    """Translate and send a packet of the tunnel's way `ref` (row << 1 | direction)."""
    cdef int direction = ref & 1
    cdef Way *way = &p.tunnels.rows[ref >> 1].way[direction]
    cdef int hop = way_hop(p, way)
    if hop < 0:
        if direction == OUTBOUND and find_route(p, way.daddr).kind == ROUTE_LOCAL:
            turn_tunnel_round(p, link, way, frame, parsed)
        else:
            no_hop(p, link, frame, parsed, hop)
        return
    if not may_leave(p, link, hop, frame, parsed):
        return
    if p.chains != NULL and direction == OUTBOUND and not is_masqueraded(p, link, hop, frame, parsed):
        return
    if not passes_output(p, link, hop, frame, parsed, way.saddr, 0, way.daddr, 0):
        return
    count_way(p, way, parsed)
    send_by_way(p, link, hop, way, frame, parsed)


cdef inline void turn_tunnel_round(Path *p, int link, Way *sent, Frame *frame, Parsed *parsed) noexcept nogil:
    """A packet from inside to an address of ours that a server inside stands behind: out by one way, in by another.

    The client's way makes it what a host outside would send, and the server's takes it in, as sessions turn round.
    """
    cdef uint64_t key0 = make_key0(sent.saddr, sent.daddr)
    cdef uint64_t key1 = tunnel_key1(parsed.protocol, OUTSIDE, parsed.tunnel_id)
    cdef int64_t found = find_way(&p.tunnels, <uint32_t>key_hash(p.table, key0, key1), key0, key1, False)
    cdef Way *received
    cdef int hop
    if found < 0:
        count_drop(p, GRE_NO_ROW if parsed.protocol == PROTOCOL_GRE else ESP_NO_ROW)
        return
    received = &p.tunnels.rows[found >> 1].way[found & 1]
    hop = way_hop(p, received)
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
        return
    if not may_leave(p, link, hop, frame, parsed):
        return
    if p.chains != NULL:
        p.chains.slot = NULL        # the receiver may be another the next time
    if not passes_output(p, link, hop, frame, parsed, received.saddr, 0, received.daddr, 0):
        return
    count_way(p, sent, parsed)
    count_way(p, received, parsed)
    send_by_way(p, link, hop, received, frame, parsed)


cdef inline void send_answered(Path *p, int link, const Route *route, uint32_t forward_to, uint32_t saddr, uint32_t daddr,
                               Frame *frame, Parsed *parsed) noexcept nogil:
    """Send a tunnel's or ISAKMP's packet as its tracker has decided, who names the address that is 0 here.

    forward_to is the destination that route leads to, or 0 if the tracker names that.
    """
    cdef uint8_t kind = PUNT_TUNNEL if parsed.kind == KIND_TUNNEL else PUNT_ISAKMP
    cdef int hop = 0
    if forward_to == 0 and p.answer.kind == ANSWER_SEND:
        route, forward_to = find_route(p, p.answer.address), p.answer.address
    if forward_to:
        hop = hop_of_route(p, route, forward_to)
        if hop < 0:
            no_hop(p, link, frame, parsed, hop)
            return
        if not may_leave(p, link, hop, frame, parsed):
            return
    elif not ttl_left(p, link, frame, parsed):
        return
    if not is_answered(p, link, frame, parsed, kind, -1):
        return
    saddr = saddr if saddr else p.answer.address
    daddr = daddr if daddr else p.answer.address
    if p.chains != NULL:
        p.chains.slot = NULL        # the next packet of its flow may be for another host
    if not passes_output(p, link, hop, frame, parsed, saddr, parsed.sid, daddr, parsed.did):
        return
    if parsed.kind == KIND_SESSION:
        rewrite_endpoints(parsed, saddr, parsed.sid, daddr, parsed.did)
    else:
        if p.answer.renumbered:
            set_call_id(parsed.transport, p.answer.call_id)
        write_addresses(parsed, saddr, daddr)
    send_packet(p, link, &p.hops[hop], frame, parsed)


cdef inline bint is_asked_about(const Path *p, const Parsed *parsed) noexcept nogil:
    """Whether a packet that no row explains goes to a tracker."""
    return parsed.kind == KIND_TUNNEL or is_followed_isakmp(p, parsed)


cdef inline void masquerade_followed(Path *p, int link, const Route *route, Frame *frame, Parsed *parsed) noexcept nogil:
    """A tunnel's or ISAKMP's packet from inside: the tracker says which address it leaves with."""
    if p.table.current < 0:
        refuse_session(p, link, frame, parsed, REFUSED_NO_EXTERNAL)
        return
    send_answered(p, link, route, parsed.daddr, 0, parsed.daddr, frame, parsed)


cdef inline void inbound_followed(Path *p, int link, Frame *frame, Parsed *parsed) noexcept nogil:
    """The same from outside to an address of ours: the tracker says which inside host it is for."""
    send_answered(p, link, NULL, 0, parsed.saddr, 0, frame, parsed)


cdef inline bint is_asked_about_quote(const Path *p, const Quote *quote) noexcept nogil:
    """Whether only a tracker can know whose a quoted packet was: ISAKMP, told by its cookies, and ESP not settled yet."""
    if quote.protocol == PROTOCOL_UDP:
        return p.follows_ipsec and quote.sid == ISAKMP_PORT and quote.did == ISAKMP_PORT
    return p.follows_ipsec and quote.protocol == PROTOCOL_ESP


cdef inline bint find_quoted_by_tracker(Path *p, int link, const Frame *frame, const Parsed *parsed, const Quote *quote,
                                        ErrorRewrite *new) noexcept nogil:
    """Fill in `new` for an error about what only a tracker knows; False: it waits for the answer, or was dropped."""
    if not is_answered(p, link, frame, parsed, PUNT_QUOTE, -1):
        return False
    if p.links[link].side == OUTSIDE:
        new.saddr, new.daddr = parsed.saddr, p.answer.address
        new.quoted_saddr, new.quoted_daddr = p.answer.address, quote.daddr
    else:
        new.saddr, new.daddr = p.answer.address, parsed.daddr
        new.quoted_saddr, new.quoted_daddr = quote.saddr, p.answer.address
    new.quoted_sid, new.quoted_did = quote.sid, quote.did
    new.renumbered = False
    new.ref = -1
    return True
