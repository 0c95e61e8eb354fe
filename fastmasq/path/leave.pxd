# How packets leave the path: to the host, into a drop counter, to wait for a next hop, or on, by TTL, MTU, rules and hop.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from fastmasq.path.egress cimport send_packet
from fastmasq.path.filter cimport forward_verdict, sent_out
from fastmasq.path.reply cimport reply_error
from fastmasq.path.rewrite cimport decrement_ttl
from fastmasq.path.rules cimport ACCEPT, MASQ
from fastmasq.path.state cimport (
    HELD, HELD_PER_HOP, HOP_FAILED, HOP_INCOMPLETE, HOP_VALID, Held, Hop, Parsed, Path, count_drop,
)
from fastmasq.path.verdict cimport (
    DELIVER, ENDPOINT_CLASH, FRAGMENTATION_NEEDED, HALF_OPEN_LIMIT, HOST_PORT_LIMIT, HOST_RATE_LIMIT,
    HOST_SESSION_LIMIT, HOST_TABLE_FULL, LINK_DOWN, CANNOT_SEGMENT, NEIGHBOUR_UNRESOLVED, NOTE_HELD,
    NO_EXTERNAL_ADDRESS, NO_ROUTE, PORTS_EXHAUSTED, PUNT, TABLE_FULL, TTL_EXCEEDED,
)
from fastmasq.ring.abi cimport GSO_NONE
from fastmasq.ring.ring cimport BIG_FRAME, Frame, HEADROOM
from fastmasq.table.keys cimport LOCAL
from fastmasq.table.table cimport (
    REFUSED_CLASH, REFUSED_HALF_OPEN, REFUSED_HOST_PORTS, REFUSED_HOST_RATE, REFUSED_HOST_SESSIONS,
    REFUSED_HOST_TABLE_FULL, REFUSED_NO_EXTERNAL, REFUSED_PORTS_EXHAUSTED, REFUSED_TABLE_FULL,
)
from fastmasq.wire.icmp cimport (
    ADMINISTRATIVELY_PROHIBITED, DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED as CODE_FRAGMENTATION_NEEDED,
    HOST_UNREACHABLE, NET_UNREACHABLE, TIME_EXCEEDED,
)
from fastmasq.wire.ipv4 cimport DONT_FRAGMENT, IPV4_FRAGMENT, IPV4_TTL, PROTOCOL_TCP
from fastmasq.wire.octets cimport load16
from fastmasq.wire.tcp cimport header_length as tcp_header_length


# -- ways out --------------------------------------------------------------------------------------------------------

cdef inline void deliver(Path *p) noexcept nogil:
    """The host's own traffic: its kernel has seen the packet, and the guard lets it have it."""
    p.verdicts[DELIVER] += 1


cdef inline int reason_of(int64_t refusal) noexcept nogil:
    if refusal == REFUSED_TABLE_FULL:
        return TABLE_FULL
    if refusal == REFUSED_PORTS_EXHAUSTED:
        return PORTS_EXHAUSTED
    if refusal == REFUSED_HOST_SESSIONS:
        return HOST_SESSION_LIMIT
    if refusal == REFUSED_HOST_PORTS:
        return HOST_PORT_LIMIT
    if refusal == REFUSED_HOST_RATE:
        return HOST_RATE_LIMIT
    if refusal == REFUSED_HOST_TABLE_FULL:
        return HOST_TABLE_FULL
    if refusal == REFUSED_CLASH:
        return ENDPOINT_CLASH
    if refusal == REFUSED_HALF_OPEN:
        return HALF_OPEN_LIMIT
    return NO_EXTERNAL_ADDRESS


cdef inline void refuse_session(Path *p, int link, Frame *frame, Parsed *parsed, int64_t refusal) noexcept nogil:
    """Drop, and tell the inside host: its own share (3/13), or a shared resource (3/1) (RFC 5508 REQ-8, 6888 REQ-11)."""
    cdef uint8_t code = ADMINISTRATIVELY_PROHIBITED
    if refusal == REFUSED_NO_EXTERNAL:
        code = NET_UNREACHABLE
    elif refusal == REFUSED_TABLE_FULL or refusal == REFUSED_PORTS_EXHAUSTED or refusal == REFUSED_HOST_TABLE_FULL:
        code = HOST_UNREACHABLE
    count_drop(p, reason_of(refusal))
    reply_error(p, link, frame, parsed, DESTINATION_UNREACHABLE, code, 0)


cdef inline void no_hop(Path *p, int link, Frame *frame, Parsed *parsed, int hop) noexcept nogil:
    count_drop(p, -hop - 1)
    if -hop - 1 == NO_ROUTE:
        reply_error(p, link, frame, parsed, DESTINATION_UNREACHABLE, NET_UNREACHABLE, 0)


cdef inline void hold(Path *p, int link, int hop_row, Frame *frame, Parsed *parsed) noexcept nogil:
    """Keep a packet, as received, until its next hop's address is known; at most HELD_PER_HOP for each."""
    cdef Hop *hop = &p.hops[hop_row]
    cdef Held *held
    cdef uint8_t *memory
    cdef int slot
    if hop.state == HOP_FAILED:
        hop.state = HOP_INCOMPLETE
    hop.wanted = 1
    p.hops_wanted = True
    if p.held_count == HELD or hop.held == HELD_PER_HOP or frame.length > BIG_FRAME:
        count_drop(p, NEIGHBOUR_UNRESOLVED)
        return
    for slot in range(HELD):
        if not p.held[slot].in_use:
            break
    held = &p.held[slot]
    memory = p.held_memory + <size_t>slot * (HEADROOM + BIG_FRAME) + HEADROOM
    memcpy(memory, frame.data, frame.length)
    held.frame = frame[0]
    held.frame.data = memory
    held.answer = p.answer
    held.since_ms = p.now_ms
    held.hop = <uint16_t>hop_row
    held.link = link
    held.in_use = 1
    hop.held += 1
    p.held_count += 1
    p.notes[NOTE_HELD] += 1
    p.verdicts[PUNT] += 1


# -- checks on the way -----------------------------------------------------------------------------------------------

cdef inline bint ttl_left(Path *p, int link, Frame *frame, Parsed *parsed) noexcept nogil:
    """Whether the packet may go one link further; if not, it is dropped and its sender told (RFC 1812 section 5.3.1)."""
    if parsed.ip[IPV4_TTL] > 1:
        return True
    count_drop(p, TTL_EXCEEDED)
    reply_error(p, link, frame, parsed, TIME_EXCEEDED, 0, 0)
    return False


cdef inline bint too_big(Path *p, int link, const Hop *hop, Frame *frame, Parsed *parsed) noexcept nogil:
    """Deal with a packet, or the segments of a large send, that exceed the hop's MTU; return whether it was dropped."""
    cdef uint32_t headers = parsed.header_length
    cdef bint may_fragment = not load16(parsed.ip + IPV4_FRAGMENT) & DONT_FRAGMENT
    if frame.vnet.gso_type == GSO_NONE:
        if may_fragment:
            return False            # send_packet cuts it
    else:
        if parsed.protocol == PROTOCOL_TCP:
            headers += tcp_header_length(parsed.transport)
        else:
            headers += 8
        if headers + frame.vnet.gso_size <= hop.mtu:
            return False
        if (may_fragment or parsed.guessed) and parsed.protocol == PROTOCOL_TCP and hop.mtu > headers:
            frame.vnet.gso_size = <uint16_t>(hop.mtu - headers)     # smaller segments need no fragments
            return False
        if may_fragment:
            count_drop(p, CANNOT_SEGMENT)
            return True
    count_drop(p, FRAGMENTATION_NEEDED)
    reply_error(p, link, frame, parsed, DESTINATION_UNREACHABLE, CODE_FRAGMENTATION_NEEDED, <uint16_t>hop.mtu)
    return True


cdef inline bint may_leave(Path *p, int link, int hop_row, Frame *frame, Parsed *parsed) noexcept nogil:
    """TTL, MTU and next hop in order; False when the packet has been dropped, answered or held."""
    cdef Hop *hop = &p.hops[hop_row]
    if p.links[hop.link].side != LOCAL and not ttl_left(p, link, frame, parsed):
        return False
    if p.senders[hop.link] == NULL:
        count_drop(p, LINK_DOWN)        # detached, and the routes have not followed yet
        return False
    if parsed.length > hop.mtu and too_big(p, link, hop, frame, parsed):
        return False
    if hop.state != HOP_VALID:
        hold(p, link, hop_row, frame, parsed)
        return False
    hop.used += 1
    return True


# -- rules, when there are any -----------------------------------------------------------------------------------------

cdef inline bint passes_output(Path *p, int link, int hop, const Frame *frame, Parsed *parsed, uint32_t saddr, uint16_t sid,
                               uint32_t daddr, uint16_t did) noexcept nogil:
    """Whether a packet may be sent with these endpoints, its new ones; if not, it has been dropped."""
    return p.chains == NULL or sent_out(p, link, p.hops[hop].link, frame, parsed, saddr, sid, daddr, did, MASQ)


cdef inline void send_plain(Path *p, int link, int hop, Frame *frame, Parsed *parsed) noexcept nogil:
    """Send a packet untranslated, if the output chain lets it."""
    if p.chains != NULL and not sent_out(p, link, p.hops[hop].link, frame, parsed, parsed.saddr, parsed.sid, parsed.daddr,
                                         parsed.did, ACCEPT):
        return
    decrement_ttl(parsed.ip, 0)
    send_packet(p, link, &p.hops[hop], frame, parsed)


cdef inline bint is_masqueraded(Path *p, int link, int hop, Frame *frame, Parsed *parsed) noexcept nogil:
    """Whether the forward chain wants a packet of a session translated; if not, it is dropped or sent as it is (2.6)."""
    cdef uint8_t decision
    if p.chains.default_forward:
        return True
    decision = forward_verdict(p, link, p.hops[hop].link, frame, parsed)
    if decision == ACCEPT:
        send_plain(p, link, hop, frame, parsed)
    return decision == MASQ
