"""Forwarder: receive a batch, look up, rewrite, send; open sessions from compiled policy; hold what lacks a next hop.

A packet's way, in the order of the functions below: `process_link` takes a batch off a ring, parses all frames, fetches
the table lines they will need into the cache, then handles them in order. `handle` finds the session and calls
`forward_flow`; a miss goes to `miss_inside` or `miss_outside`, which decide by route and policy. What trackers decide is in
`followed.pxd`. The ways out are in `leave.pxd`: `send_packet` (verdict forward), `deliver` (the host's own traffic: the
kernel has it already), `reply_error` or `count_drop`, so that verdicts and drop reasons add up to packets received.

Nothing here allocates, raises, logs, reads a clock or touches a Python object.
"""

import contextlib

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from fastmasq.path.datagrams cimport (
    COVERS_BOTH, COVERS_NEW, COVERS_OLD, Coverage, DATAGRAMS, Datagram, Datagrams, FIRST_MISSING, FRAGMENT_MS, HOST_OWN,
    NOBODY, PIECES, PIECE_ROOM, Piece, REFUSED, TRANSLATED, begin_datagram, coverage, end_datagram, find_datagram,
    is_complete, keep_piece, mark, take_kept,
)
from fastmasq.path.demand cimport (
    DemandTable, Mark, count_session, find_mark, is_kept_port, keeps_port, note_contact, triggered_host,
)
from fastmasq.path.egress cimport flush_all, send_packet
from fastmasq.path.filter cimport admitted, forward_verdict
from fastmasq.path.followed cimport (
    find_quoted_by_tracker, find_way_of, forward_tunnel, inbound_followed, is_answered, is_asked_about,
    is_asked_about_quote, is_control, is_tunnel, masquerade_followed, write_addresses,
)
from fastmasq.path.gather cimport send_all_gathered
from fastmasq.path.icmp_error cimport (
    ErrorRewrite, QUOTE_UNKNOWN, Quote, find_quoted_mapping, find_quoted_session, find_quoted_tunnel, note_path_mtu,
    parse_quote, quoted_tunnel_id, rewrite_error, turn_error_round,
)
from fastmasq.path.leave cimport (
    deliver, is_masqueraded, may_leave, no_hop, passes_output, reason_of, refuse_session, send_plain,
)
from fastmasq.path.parse cimport parse_frame
from fastmasq.path.programs cimport tell_what_was_asked
from fastmasq.path.punts cimport (
    ANSWER_DROP, ANSWER_NONE, ANSWER_SEND, Answer, PUNTS, PUNT_CONTROL, PUNT_ISAKMP, PUNT_QUOTE, PUNT_TUNNEL, Punt, PuntQueue,
    punt_memory,
)
from fastmasq.path.reply cimport is_unicast_source, reply_error
from fastmasq.path.rewrite cimport decrement_ttl, rewrite_endpoints, rewrite_flow
from fastmasq.path.route cimport find_route, hop_of_route
from fastmasq.path.rules cimport MASQ, RuleTable
from fastmasq.path.state cimport (
    ACTION_DROP, ACTION_MASQUERADE, ACTION_REFUSE, ACTION_ROUTE, DROP_REASONS, HELD, HOLD_MS, HOPS, HOP_FAILED,
    HOP_INCOMPLETE, HOP_VALID, Held, Hop, KIND_FRAGMENT, KIND_ICMP_ERROR, KIND_ICMP_OTHER, KIND_PROTOCOL_OTHER,
    KIND_SESSION, KIND_TUNNEL, LINKS, Link, LinkCounters, NOTES as NOTES_ROOM, NO_HOP_ROW, NO_LINK, Parsed, Path,
    REDIRECTS, Redirect, ROUTE_BLACKHOLE, ROUTE_BROADCAST, ROUTE_LOCAL, ROUTE_MULTICAST, ROUTE_UNICAST, RULES, Route, Rule,
    VERDICTS, count_drop,
)
from fastmasq.path.tunnels cimport (
    ANY_CALL_ID, QUOTED, TUNNELS, TUNNEL_INDEX, Tunnel, Way, forget_way, index_way, tunnel_key1,
)
from fastmasq.path.verdict cimport (
    AH_NOT_MASQUERADED, DELIVER, DROP_REASON_COUNT, ESP_NO_ROW, FILTERED, FRAGMENT_DUPLICATE, FRAGMENT_ORPHAN,
    FRAGMENT_OVERLAP, FRAGMENT_REFUSED, FRAGMENT_TOO_LONG, GRE_NO_ROW, ICMP_TYPE_REFUSED, LINK_DOWN, MARTIAN_DESTINATION,
    MARTIAN_SOURCE, NEIGHBOUR_FAILED, NEIGHBOUR_UNRESOLVED, NOTE_BATCHES, NOTE_COUNT, NOTE_STATELESS_INBOUND,
    NO_EXTERNAL_ADDRESS, NO_ROUTE, NO_SESSION, POLICY_REFUSED, PROTOCOL_NOT_MASQUERADED, PUNT, TCP_RST_OUT_OF_WINDOW,
    VERDICT_COUNT,
)
from fastmasq.ring.abi cimport PACKET_HOST
from fastmasq.ring.ring cimport (
    BATCH, BIG_FRAME, Frame, HEADROOM, Ring, RxRing, TxBatch, ring_pending, ring_receive, ring_release,
)
from fastmasq.table.filtering cimport admits
from fastmasq.table.forwards cimport Target
from fastmasq.table.hosts cimport host_hash
from fastmasq.table.index cimport IndexEntry
from fastmasq.table.keys cimport Ends, INSIDE, LOCAL, OUTSIDE, make_ends, make_key0, make_key1
from fastmasq.table.mappings cimport (
    endpoint_hash, external_of, find_external, find_internal, mapping_address, mapping_row, pool_of,
)
from fastmasq.table.masq cimport MasqTable
from fastmasq.table.opening cimport (
    Programs, forward_target, may_lead_to, open_forwarded, open_inbound, open_local, open_plain, open_redirected, open_session,
)
from fastmasq.table.ports cimport is_allowed
from fastmasq.table.rows cimport (
    CLASS_ICMP, Flow, ICMP_ACTIVE, INBOUND, MAPPING_BY_SESSION, MAPPING_FORWARD, MAPPING_OPEN, MAPPING_ORPHAN, NONE,
    NO_HOP, OUTBOUND, PLAIN_ACTIVE, SESSION_HAIRPIN, SESSION_REPLIED, Session, TCP_RESUMED, TCP_SYN_RECEIVED, TCP_SYN_SENT,
    TCP_UNANSWERED, UDP_ACTIVE, UDP_UNANSWERED, class_of,
)
from fastmasq.table.sessions cimport (
    Birth, close_session, expire_sessions, find_flow, make_birth, note_half_open, refresh_session, retime_session,
)
from fastmasq.table.table cimport REFUSED_HALF_OPEN, Table, key_hash, next_random
from fastmasq.table.tcp_state cimport Segment, TCP_CHANGED, TCP_OUT_OF_WINDOW, TCP_REFRESH, TcpVerdict, tcp_segment
from fastmasq.table.wheel cimport TICK_MS
from fastmasq.wire.checksum cimport delta16, delta32, update_full_at
from fastmasq.wire.gre cimport PROTOCOL_GRE
from fastmasq.wire.icmp cimport (
    ADMINISTRATIVELY_PROHIBITED, DESTINATION_UNREACHABLE, HOST_UNREACHABLE, NET_UNREACHABLE, is_query,
)
from fastmasq.wire.ipv4 cimport (
    IPV4_DESTINATION, IPV4_FRAGMENT, IPV4_ID, IPV4_SOURCE, MORE_FRAGMENTS, OFFSET_MASK, PROTOCOL_AH, PROTOCOL_ICMP,
    PROTOCOL_TCP, PROTOCOL_UDP,
)
from fastmasq.wire.octets cimport load16, load32
from fastmasq.wire.tcp cimport (
    ACK, FIN, RST, SYN, TCP_ACKNOWLEDGMENT, TCP_CHECKSUM, TCP_FLAGS, TCP_SEQUENCE, TCP_WINDOW,
    header_length as tcp_header_length, window_scale,
)

from fastmasq.path import world
from fastmasq.path.verdict import DROP_REASONS as DROP_NAMES, NOTES, VERDICTS as VERDICT_NAMES

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from * nogil:
    """
    #define PREFETCH(address) __builtin_prefetch((const void *)(address), 1, 3)
    #define ATOMIC_ADD(word, value) __atomic_add_fetch(word, value, __ATOMIC_SEQ_CST)
    #define ATOMIC_LOAD(word) __atomic_load_n(word, __ATOMIC_ACQUIRE)
    """
    void PREFETCH(const void *address)
    int ATOMIC_ADD(int *word, int value)
    int ATOMIC_LOAD(const int *word)

cdef enum:
    EXPIRE_BUDGET = 256         # sessions looked at between two batches
    TURN_BATCHES = 8            # of one link before the next has its turn: answers in a bunch wake their hosts less often

if DROP_REASON_COUNT > DROP_REASONS or VERDICT_COUNT != VERDICTS or NOTE_COUNT != NOTES_ROOM:
    raise ImportError("path/state.pxd has no room for all counters of path/verdict.pxd")
if (world.LINK.itemsize != sizeof(Link) or world.ROUTE.itemsize != sizeof(Route) or world.HOP.itemsize != sizeof(Hop)
        or world.RULE.itemsize != sizeof(Rule) or world.REDIRECT.itemsize != sizeof(Redirect)
        or world.TUNNEL.itemsize != sizeof(Tunnel)):
    raise ImportError("path/state.pxd and path/world.py disagree about the layout of a row")


PUNT_KINDS = {PUNT_CONTROL: "control", PUNT_TUNNEL: "tunnel", PUNT_ISAKMP: "isakmp", PUNT_QUOTE: "quote"}
"""What `Forwarder.next_punt` calls the kinds of packets that wait for a tracker."""


# -- a packet of a session -------------------------------------------------------------------------------------------

cdef inline TcpVerdict track_tcp(Session *s, int direction, const Parsed *parsed) noexcept nogil:
    cdef const uint8_t *tcp = parsed.transport
    cdef uint32_t header = tcp_header_length(tcp)
    cdef Segment segment
    segment.flags = tcp[TCP_FLAGS]
    segment.seq = load32(tcp + TCP_SEQUENCE)
    segment.ack = load32(tcp + TCP_ACKNOWLEDGMENT)
    segment.window = load16(tcp + TCP_WINDOW)
    segment.last = segment.seq + parsed.length - parsed.header_length - header
    segment.last += (1 if segment.flags & SYN else 0) + (1 if segment.flags & FIN else 0)
    segment.scale = window_scale(tcp, header) if segment.flags & SYN else -1
    return tcp_segment(s, direction, &segment)


cdef inline Ends ends_of(const Parsed *parsed) noexcept nogil:
    return make_ends(parsed.saddr, parsed.sid, parsed.daddr, parsed.did)


cdef inline Birth birth_of(const Path *p, const Parsed *parsed, int state, uint8_t flags) noexcept nogil:
    """Return what a session that this packet opens begins with."""
    return make_birth(parsed.protocol, <uint8_t>state, flags, p.tick, p.now_ms)


cdef inline bint advance(Path *p, uint32_t row, int direction, const Parsed *parsed) noexcept nogil:
    """Move the session on by one packet and restart its timer where that is due; False: out of window, to be dropped."""
    cdef Session *s = &p.table.sessions[row]
    cdef TcpVerdict tcp
    cdef int before = s.state
    if parsed.protocol == PROTOCOL_TCP:
        tcp = track_tcp(s, direction, parsed)
        if tcp == TCP_OUT_OF_WINDOW:
            count_drop(p, TCP_RST_OUT_OF_WINDOW)
            return False
        if tcp == TCP_REFRESH:
            refresh_session(p.table, s, p.tick)
        elif tcp == TCP_CHANGED:
            note_half_open(p.table, s.mapping, before, s.state)
            retime_session(p.table, row, p.tick)
    elif before == UDP_UNANSWERED:
        if direction == OUTBOUND:
            s.state = UDP_ACTIVE
            note_half_open(p.table, s.mapping, before, UDP_ACTIVE)
        refresh_session(p.table, s, p.tick)     # what nobody answers, such as log messages, keeps to one target
    elif direction == OUTBOUND:
        refresh_session(p.table, s, p.tick)     # inbound packets hold nothing open (RFC 4787 REQ-6)
    else:
        s.flags |= SESSION_REPLIED
    s.flow[direction].packets += 1
    return True


cdef inline int flow_hop(Path *p, Session *s, Flow *flow) noexcept nogil:
    """Return the row of the flow's next hop, or -reason - 1; looked up again when the world has changed."""
    cdef int row
    if s.generation != p.generation:
        s.flow[0].hop = NO_HOP
        s.flow[1].hop = NO_HOP
        s.generation = p.generation
    if flow.hop != NO_HOP:
        return flow.hop
    row = hop_of_route(p, find_route(p, flow.daddr), flow.daddr)
    if row >= 0:
        flow.hop = <uint16_t>row
    return row


cdef inline bint is_own_mapping(const Path *p, const Session *s) noexcept nogil:
    """Whether a session is by its inside endpoint's own mapping: what answers strangers has another."""
    return s.mapping != NONE and p.table.mappings[s.mapping].in_use == MAPPING_OPEN


cdef inline void forward_flow(Path *p, int link, Frame *frame, Parsed *parsed, uint32_t ref) noexcept nogil:
    """Translate and send a packet of the flow `ref` (row << 1 | direction), and restart its timer where that is due."""
    cdef uint32_t row = ref >> 1
    cdef int direction = ref & 1
    cdef Session *s = &p.table.sessions[row]
    cdef Flow *flow = &s.flow[direction]
    cdef int hop
    if s.flags & SESSION_HAIRPIN:
        if direction == OUTBOUND:
            turn_round(p, link, frame, parsed, row, s.mapping)
        else:
            count_drop(p, MARTIAN_SOURCE)       # answers turn round here: one that comes from a link is forged
        return
    hop = flow_hop(p, s, flow)
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
        return
    if parsed.guessed and flow.path_mtu:
        mind_path_mtu(frame, parsed, flow.path_mtu)
    if not may_leave(p, link, hop, frame, parsed):
        return
    if (p.chains != NULL and direction == OUTBOUND and p.links[link].side != LOCAL
            and not is_masqueraded(p, link, hop, frame, parsed)):
        return
    if (p.follows_pptp and parsed.protocol == PROTOCOL_TCP and s.mapping != NONE and is_control(p, row, flow, parsed)
            and not is_answered(p, link, frame, parsed, PUNT_CONTROL, ref)):
        return
    if not advance(p, row, direction, parsed):
        return
    if passes_output(p, link, hop, frame, parsed, flow.saddr, flow.sid, flow.daddr, flow.did):
        if p.demand != NULL and direction == OUTBOUND and is_own_mapping(p, s):
            note_contact(p.demand, parsed.protocol, parsed.saddr, parsed.daddr, parsed.did, p.tick)
        rewrite_flow(parsed, flow)
        send_packet(p, link, &p.hops[hop], frame, parsed)


cdef inline void mind_path_mtu(Frame *frame, const Parsed *parsed, uint16_t mtu) noexcept nogil:
    """Lower a guessed segment size to what the path is known to take."""
    cdef uint32_t headers = parsed.header_length + tcp_header_length(parsed.transport)
    if mtu > headers and headers + frame.vnet.gso_size > mtu:
        frame.vnet.gso_size = <uint16_t>(mtu - headers)


cdef inline bint is_turned_control(const Path *p, uint32_t row, int64_t returning, const Parsed *parsed) noexcept nogil:
    """Whether a segment that turns round is to be read: by the follower of the sender's session or the receiver's."""
    cdef const Flow *flow = &p.table.sessions[row].flow[OUTBOUND]
    return (p.follows_pptp and parsed.protocol == PROTOCOL_TCP
            and (is_control(p, row, flow, parsed) or is_control(p, <uint32_t>(returning >> 1), flow, parsed)))


cdef void turn_round(Path *p, int link, Frame *frame, Parsed *parsed, uint32_t row, uint32_t mapping) noexcept nogil:
    """A packet from inside to an external endpoint of ours: out by the sender's mapping, in by the receiver's.

    It is treated as if it had gone out and come back (RFC 4787 REQ-9, 9a): it moves on the sender's session (row, or NONE)
    and then the receiver's, and both live by their own packets. The filter keeps strangers out, and this is none.
    """
    cdef Table *t = p.table
    cdef uint32_t external = mapping_address(t, mapping)
    cdef uint16_t port = <uint16_t>mapping
    cdef uint32_t receiver = find_external(t, parsed.daddr, class_of(parsed.protocol), parsed.did)
    cdef uint64_t key0 = make_key0(external, parsed.daddr)
    cdef uint64_t key1 = make_key1(parsed.protocol, OUTSIDE, port, parsed.did)
    cdef int64_t returning
    cdef uint32_t target
    cdef uint16_t target_port
    cdef const Target *forwarded
    cdef int hop
    if receiver == NONE:
        count_drop(p, NO_SESSION)
        return
    returning = find_flow(t, key0, key1, <uint32_t>key_hash(t, key0, key1))
    target = t.mappings[receiver].address
    target_port = t.mappings[receiver].id
    if t.mappings[receiver].in_use != MAPPING_OPEN:
        if returning >= 0:
            target = t.sessions[returning >> 1].flow[INBOUND].daddr
            target_port = t.sessions[returning >> 1].flow[INBOUND].did
        elif t.mappings[receiver].in_use == MAPPING_FORWARD:
            forwarded = forward_target(t, receiver, external, port)
            target, target_port = forwarded.address, forwarded.port
        else:
            count_drop(p, NO_SESSION)
            return
    hop = hop_of_route(p, find_route(p, target), target)
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
        return
    if not may_leave(p, link, hop, frame, parsed):
        return
    if returning < 0 and t.mappings[receiver].in_use == MAPPING_FORWARD and first_inbound_state(parsed) >= 0:
        returning = open_forwarded(t, receiver, external, port,
                                   birth_of(p, parsed, first_inbound_state(parsed), SESSION_HAIRPIN))
        if returning < 0 and returning != REFUSED_HALF_OPEN:
            count_drop(p, reason_of(returning))
            if row != NONE and t.sessions[row].flow[OUTBOUND].packets == 0:
                close_session(t, row)           # this packet has opened it
            return
        returning = returning << 1 if returning >= 0 else returning
    if row != NONE and returning >= 0 and is_turned_control(p, row, returning, parsed):
        if not is_answered(p, link, frame, parsed, PUNT_CONTROL, <int64_t>row << 1 | OUTBOUND):
            return
    if row != NONE and not advance(p, row, OUTBOUND, parsed):
        return
    if returning >= 0 and not advance(p, <uint32_t>(returning >> 1), INBOUND, parsed):
        return
    if p.chains != NULL:
        p.chains.slot = NULL        # the receiver may be another the next time
    if not passes_output(p, link, hop, frame, parsed, external, port, target, target_port):
        return
    rewrite_endpoints(parsed, external, port, target, target_port)
    send_packet(p, link, &p.hops[hop], frame, parsed)


# -- a packet without a session --------------------------------------------------------------------------------------

cdef inline void forward_plain(Path *p, int link, const Route *route, Frame *frame, Parsed *parsed) noexcept nogil:
    """Route a packet as it is."""
    cdef int hop = hop_of_route(p, route, parsed.daddr)
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
        return
    if may_leave(p, link, hop, frame, parsed):
        send_plain(p, link, hop, frame, parsed)


cdef inline uint8_t action_for(const Path *p, const Parsed *parsed, uint8_t out_side) noexcept nogil:
    """First match in the compiled policy; nothing matches: drop."""
    cdef int i
    cdef const Rule *rule
    for i in range(p.rule_count):
        rule = &p.rules[i]
        if (rule.source_first <= parsed.saddr <= rule.source_last
                and rule.destination_first <= parsed.daddr <= rule.destination_last
                and (rule.protocol == 0 or rule.protocol == parsed.protocol)
                and (rule.out_side == 0xFF or rule.out_side == out_side)):
            return rule.action
    return ACTION_DROP


cdef inline int first_state(const Parsed *parsed) noexcept nogil:
    """Return the State of a session that this outbound packet may open, or -1 when it may open none."""
    cdef uint8_t flags
    if parsed.protocol == PROTOCOL_UDP:
        return UDP_ACTIVE
    if parsed.protocol == PROTOCOL_ICMP:
        return ICMP_ACTIVE if is_query(parsed.transport[0]) else -1
    flags = parsed.transport[TCP_FLAGS]
    if flags & RST:
        return -1
    if flags & SYN:
        return TCP_SYN_RECEIVED if flags & ACK else TCP_SYN_SENT
    return TCP_RESUMED


cdef inline int first_inbound_state(const Parsed *parsed) noexcept nogil:
    """Return the State of a session that this packet to a forward may open, or -1 when it may open none."""
    cdef uint8_t flags
    if parsed.protocol == PROTOCOL_UDP:
        return UDP_UNANSWERED
    flags = parsed.transport[TCP_FLAGS]
    return -1 if flags & RST or (flags & SYN and flags & ACK) else TCP_UNANSWERED


cdef void pass_stateless(Path *p, int link, int hop, uint32_t saddr, uint16_t sid, uint32_t daddr, uint16_t did, Frame *frame,
                         Parsed *parsed) noexcept nogil:
    """Translate and send a packet that leaves no trace, if the output chain lets it."""
    if p.chains != NULL:
        p.chains.slot = NULL        # another packet of its flow may go to another host
    if not passes_output(p, link, hop, frame, parsed, saddr, sid, daddr, did):
        return
    p.notes[NOTE_STATELESS_INBOUND] += 1
    rewrite_endpoints(parsed, saddr, sid, daddr, did)
    send_packet(p, link, &p.hops[hop], frame, parsed)


cdef void answer_stateless(Path *p, int link, int hop, bint turns_round, Frame *frame, Parsed *parsed) noexcept nogil:
    """The answer of a forward's target to a packet that passed without a session."""
    cdef Table *t = p.table
    cdef int port_class = class_of(parsed.protocol)
    cdef uint32_t mapping = find_internal(t, port_class, parsed.saddr, parsed.sid,
                                          <uint32_t>endpoint_hash(t, port_class, parsed.saddr, parsed.sid))
    if turns_round:
        turn_round(p, link, frame, parsed, NONE, mapping)
        return
    pass_stateless(p, link, hop, mapping_address(t, mapping), <uint16_t>mapping, parsed.daddr, parsed.did, frame, parsed)


cdef inline void forward_opened(Path *p, int link, int hop, int64_t row, int direction, Frame *frame,
                                Parsed *parsed) noexcept nogil:
    """Send on the packet that has opened a session; its next hop has been looked up and has let it pass already."""
    p.hops[hop].used -= 1           # forward_flow counts the packet again
    p.table.sessions[row].generation = p.generation
    p.table.sessions[row].flow[direction].hop = <uint16_t>hop
    forward_flow(p, link, frame, parsed, <uint32_t>row << 1 | direction)


cdef bint is_kept(Path *p, const Parsed *parsed) noexcept nogil:
    """Whether the external port of a new mapping is to be that of the packet."""
    cdef int port_class = class_of(parsed.protocol)
    return port_class != CLASS_ICMP and keeps_port(p.demand, parsed.protocol, port_class, parsed.saddr, parsed.sid, parsed.did,
                                                   p.tick)


cdef void masquerade(Path *p, int link, const Route *route, uint32_t forward_to, uint8_t flags, Frame *frame,
                     Parsed *parsed) noexcept nogil:
    """Open a session for an outbound packet and send it on; refused, held or unsendable packets open none.

    route leads to forward_to: the destination, or with SESSION_HAIRPIN in flags the inside host behind it.
    """
    cdef int state = first_state(parsed)
    cdef int hop
    cdef int64_t row
    if state < 0:
        count_drop(p, NO_SESSION)
        return
    hop = hop_of_route(p, route, forward_to)
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
        return
    if not may_leave(p, link, hop, frame, parsed):
        return
    row = open_session(p.table, ends_of(parsed), birth_of(p, parsed, state, flags), p.demand != NULL and is_kept(p, parsed))
    if row == REFUSED_HALF_OPEN:
        answer_stateless(p, link, hop, flags & SESSION_HAIRPIN, frame, parsed)
        return
    if row < 0:
        refuse_session(p, link, frame, parsed, row)
        return
    forward_opened(p, link, hop, row, OUTBOUND, frame, parsed)


cdef inline bint source_belongs(const Path *p, int link, uint32_t saddr) noexcept nogil:
    """Whether the way back to a source leads over the link it came from (RFC 3704 section 2.2, strict)."""
    cdef const Route *back
    if not is_unicast_source(saddr):
        return False
    back = find_route(p, saddr)
    return back.kind == ROUTE_UNICAST and back.link == link


cdef inline bint is_martian_destination(uint32_t daddr) noexcept nogil:
    return daddr >> 24 == 0 or daddr >> 24 == 127 or daddr >= 0xF0000000U


cdef void masquerade_new(Path *p, int link, const Route *route, Frame *frame, Parsed *parsed) noexcept nogil:
    """Masquerade a packet without a session, if its kind can be."""
    if is_asked_about(p, parsed):
        masquerade_followed(p, link, route, frame, parsed)
    elif parsed.kind == KIND_SESSION:
        masquerade(p, link, route, parsed.daddr, 0, frame, parsed)
    elif parsed.kind == KIND_ICMP_ERROR:
        count_drop(p, NO_SESSION)
    elif parsed.kind == KIND_ICMP_OTHER:
        count_drop(p, ICMP_TYPE_REFUSED)
    else:
        masquerade_plain(p, link, route, frame, parsed)


cdef void forward_by_chain(Path *p, int link, const Route *route, Frame *frame, Parsed *parsed) noexcept nogil:
    """Do with a packet without a session what the forward chain says (T-3, T-4).

    Only what leaves by the outside link is masqueraded: towards an inside network there is no address to hide behind,
    and MASQ lets a packet pass as it is.
    """
    cdef int hop = hop_of_route(p, route, parsed.daddr)
    cdef uint8_t decision
    cdef int out_link
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
        return
    if not may_leave(p, link, hop, frame, parsed):
        return
    out_link = p.hops[hop].link
    decision = forward_verdict(p, link, out_link, frame, parsed)
    if decision == MASQ and p.links[out_link].side == OUTSIDE:
        p.hops[hop].used -= 1       # masquerade counts the packet again
        if p.links[link].side == INSIDE:
            masquerade_new(p, link, route, frame, parsed)
        else:
            count_drop(p, POLICY_REFUSED)
    elif decision:
        send_plain(p, link, hop, frame, parsed)


cdef void forward_new(Path *p, int link, const Route *route, Frame *frame, Parsed *parsed) noexcept nogil:
    """Do with a packet from inside that belongs to no session what policy says: masquerade, route, refuse or drop."""
    cdef uint8_t action
    if p.chains != NULL and not p.chains.default_forward:
        forward_by_chain(p, link, route, frame, parsed)
        return
    action = action_for(p, parsed, p.links[route.link].side)
    if action == ACTION_ROUTE:
        forward_plain(p, link, route, frame, parsed)
    elif action == ACTION_MASQUERADE:
        masquerade_new(p, link, route, frame, parsed)
    else:
        count_drop(p, POLICY_REFUSED)
        if action == ACTION_REFUSE:
            reply_error(p, link, frame, parsed, DESTINATION_UNREACHABLE, ADMINISTRATIVELY_PROHIBITED, 0)


cdef void translate_error(Path *p, int link, const Route *route, Frame *frame, Parsed *parsed) noexcept nogil:
    """An ICMP error, from either side: find what it is about, rewrite it outside and inside, send it on.

    route is that of its destination, local or over one of our links.
    """
    cdef Quote quote
    cdef ErrorRewrite new
    cdef int side = p.links[link].side
    cdef int reason = parse_quote(parsed, &quote)
    cdef int hop
    memset(&new, 0, sizeof(new))        # not all that may be found has ids
    if reason < 0:
        reason = find_quoted_session(p, <uint8_t>side, parsed, &quote, &new)
        if reason == QUOTE_UNKNOWN:
            reason = find_quoted_tunnel(p, <uint8_t>side, parsed, &quote, quoted_tunnel_id(&quote), &new)
        if reason == QUOTE_UNKNOWN and is_asked_about_quote(p, &quote):
            if not find_quoted_by_tracker(p, link, frame, parsed, &quote, &new):
                return
            reason = -1
        if reason == QUOTE_UNKNOWN:
            reason = find_quoted_mapping(p, parsed, &quote, &new) if side == INSIDE else NO_SESSION
        if reason < 0 and side == INSIDE and route.kind == ROUTE_LOCAL:
            reason = turn_error_round(p, parsed, &quote, &new)
    if reason == NO_SESSION and route.kind == ROUTE_LOCAL:
        deliver(p)                  # about the host's own traffic
        return
    if reason == NO_SESSION and side == INSIDE:
        forward_new(p, link, route, frame, parsed)
        return
    if reason >= 0:
        count_drop(p, reason)
        return
    hop = hop_of_route(p, find_route(p, new.daddr), new.daddr)
    if hop < 0:
        count_drop(p, -hop - 1)
        return
    if not may_leave(p, link, hop, frame, parsed):
        return
    if not passes_output(p, link, hop, frame, parsed, new.saddr, 0, new.daddr, 0):
        return
    note_path_mtu(p.table, parsed, &new)
    rewrite_error(parsed, &quote, &new)
    decrement_ttl(parsed.ip, delta32(parsed.saddr, new.saddr) + delta32(parsed.daddr, new.daddr))
    send_packet(p, link, &p.hops[hop], frame, parsed)


cdef inline bint port_is_ours(const Path *p, uint32_t address, int port_class, uint16_t port) noexcept nogil:
    cdef int external = external_of(p.table, address)
    if external < 0:
        return False
    if p.demand != NULL and external == p.table.current and port_class != CLASS_ICMP and is_kept_port(p.demand, port_class, port):
        return True
    return is_allowed(&p.table.pools[pool_of(external, port_class)], port)


cdef void to_local_address(Path *p, int link, const Route *route, Frame *frame, Parsed *parsed) noexcept nogil:
    """A packet from inside to an address of the host: turned round at an external endpoint, refused, or the host's own."""
    cdef Table *t = p.table
    cdef int port_class = class_of(parsed.protocol)
    cdef uint32_t receiver, sender, target
    if parsed.kind == KIND_ICMP_ERROR:
        translate_error(p, link, route, frame, parsed)
        return
    if parsed.kind == KIND_TUNNEL and external_of(t, parsed.daddr) >= 0:
        count_drop(p, GRE_NO_ROW if parsed.protocol == PROTOCOL_GRE else ESP_NO_ROW)    # the guard keeps it from the host
        return
    if not p.hairpin or parsed.kind != KIND_SESSION or port_class == CLASS_ICMP:
        deliver(p)
        return
    receiver = find_external(t, parsed.daddr, port_class, parsed.did)
    if receiver == NONE:
        if port_is_ours(p, parsed.daddr, port_class, parsed.did):
            count_drop(p, NO_SESSION)
        else:
            deliver(p)
        return
    if parsed.protocol == PROTOCOL_TCP and parsed.transport[TCP_FLAGS] & RST:
        # refuses a connection that only the other host has a session of: passes if that session exists
        sender = find_internal(t, port_class, parsed.saddr, parsed.sid,
                               <uint32_t>endpoint_hash(t, port_class, parsed.saddr, parsed.sid))
        if sender != NONE and expects(t, receiver, sender, parsed):
            turn_round(p, link, frame, parsed, NONE, sender)
            return
    target = hairpin_target(t, receiver, parsed)
    if target == 0:
        count_drop(p, NO_SESSION)
        return
    masquerade(p, link, find_route(p, target), target, SESSION_HAIRPIN, frame, parsed)


cdef inline uint32_t hairpin_target(const Table *t, uint32_t receiver, const Parsed *parsed) noexcept nogil:
    """Return an inside host that a packet to this external endpoint may turn round to, 0 without one."""
    if t.mappings[receiver].in_use == MAPPING_FORWARD:
        return forward_target(t, receiver, parsed.saddr, parsed.sid).address
    return t.mappings[receiver].address


cdef inline bint expects(const Table *t, uint32_t receiver, uint32_t sender, const Parsed *parsed) noexcept nogil:
    """Whether the receiver has a session with the sender's external endpoint."""
    cdef uint64_t key0 = make_key0(mapping_address(t, sender), parsed.daddr)
    cdef uint64_t key1 = make_key1(parsed.protocol, OUTSIDE, <uint16_t>sender, <uint16_t>receiver)
    return find_flow(t, key0, key1, <uint32_t>key_hash(t, key0, key1)) >= 0


# -- protocols without ports -----------------------------------------------------------------------------------------

cdef inline int64_t find_plain(const Path *p, int link, Parsed *parsed) noexcept nogil:
    """Return the flow of a packet of a protocol without ports, or -1. Trackers that know more of a protocol go first."""
    parsed.sid = 0
    parsed.did = 0
    parsed.key0 = make_key0(parsed.saddr, parsed.daddr)
    parsed.key1 = make_key1(parsed.protocol, p.links[link].side, 0, 0)
    return find_flow(p.table, parsed.key0, parsed.key1, <uint32_t>key_hash(p.table, parsed.key0, parsed.key1))


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
    if external_of(p.table, address) >= 0:
        return False
    for i in range(p.link_count):
        if p.links[i].side == INSIDE and p.links[i].address == address:
            return True
    return False


cdef inline const Redirect *find_inbound_redirect(const Path *p, const Parsed *parsed) noexcept nogil:
    """Return the redirect that takes a packet from outside to an address of ours, or NULL."""
    return NULL if is_inside_only(p, parsed.daddr) else find_redirect(p, parsed.protocol, parsed.saddr)


cdef void open_by_address(Path *p, int link, int hop, int direction, bint redirected, uint32_t inside, uint32_t remote,
                          uint32_t external, Frame *frame, Parsed *parsed) noexcept nogil:
    """Open the session of an inside host with a remote one, and send the packet on."""
    cdef Ends ends = make_ends(inside, 0, remote, 0)
    cdef Birth birth = birth_of(p, parsed, PLAIN_ACTIVE, 0)
    cdef int64_t row
    if not may_leave(p, link, hop, frame, parsed):
        return
    if redirected:
        row = open_redirected(p.table, ends, external, direction == INBOUND, birth)
    else:
        row = open_plain(p.table, ends, external, birth)
    if row < 0 and direction == OUTBOUND:
        refuse_session(p, link, frame, parsed, row)
        return
    if row < 0:
        count_drop(p, reason_of(row))
        return
    forward_opened(p, link, hop, row, direction, frame, parsed)


cdef void redirect_inbound(Path *p, int link, Frame *frame, Parsed *parsed) noexcept nogil:
    """A protocol without ports that no session and no tracker claims: for a redirect's host, or for our own."""
    cdef const Redirect *redirect = find_inbound_redirect(p, parsed)
    cdef int hop
    if redirect == NULL:
        deliver(p)
        return
    hop = hop_of_route(p, find_route(p, redirect.host), redirect.host)
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
        return
    open_by_address(p, link, hop, INBOUND, True, redirect.host, parsed.saddr, parsed.daddr, frame, parsed)


cdef void masquerade_plain(Path *p, int link, const Route *route, Frame *frame, Parsed *parsed) noexcept nogil:
    """A protocol without ports from inside: the host that a redirect gives it to may begin, without one any host."""
    cdef const Redirect *redirect = find_redirect(p, parsed.protocol, parsed.daddr)
    cdef bint may_begin = redirect.host == parsed.saddr if redirect != NULL else p.by_address[parsed.protocol] != 0
    cdef int hop
    if not may_begin:
        count_drop(p, AH_NOT_MASQUERADED if parsed.protocol == PROTOCOL_AH else PROTOCOL_NOT_MASQUERADED)
        return
    if p.table.current < 0:
        count_drop(p, NO_EXTERNAL_ADDRESS)
        return
    hop = hop_of_route(p, route, parsed.daddr)
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
        return
    open_by_address(p, link, hop, OUTBOUND, redirect != NULL, parsed.saddr, parsed.daddr,
                    p.table.external[p.table.current], frame, parsed)


# -- a program of this host --------------------------------------------------------------------------------------------

cdef inline bint leads_to_programs(const Path *p, const Route *route) noexcept nogil:
    """Whether a route is that of the addresses where redirected packets reach programs of this host: nobody else may."""
    return route.kind == ROUTE_UNICAST and route.link != NO_LINK and p.links[route.link].side == LOCAL


cdef inline bint may_be_redirected(const Path *p, const Parsed *parsed) noexcept nogil:
    """Whether a packet that a rule redirects may open a session with a program: what has an address of ours may not.

    An external endpoint is its mapping's (T-10: that is tried first), all else the host's own.
    """
    return parsed.kind == KIND_SESSION and find_route(p, parsed.daddr).kind != ROUTE_LOCAL


cdef void redirect(Path *p, int link, Frame *frame, Parsed *parsed) noexcept nogil:
    """Open the session of a program of this host that gets a packet, whatever its destination (T-10), and send it there.

    What may open none gets no session: the program's host is not asked what it thinks of a stray reset.
    """
    cdef const Route *route = find_route(p, p.programs_first)
    cdef int state = first_inbound_state(parsed)
    cdef uint16_t port = p.chains.redirect_port if p.chains.redirect_port else parsed.did
    cdef Programs programs
    cdef int64_t row
    cdef int hop
    if is_martian_destination(parsed.daddr) or leads_to_programs(p, find_route(p, parsed.daddr)):
        count_drop(p, MARTIAN_DESTINATION)
        return
    if not source_belongs(p, link, parsed.saddr):
        count_drop(p, MARTIAN_SOURCE)
        return
    if state < 0:
        count_drop(p, NO_SESSION)
        return
    if not leads_to_programs(p, route):
        count_drop(p, LINK_DOWN)
        return
    hop = hop_of_route(p, route, p.programs_first)
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
        return
    if not may_leave(p, link, hop, frame, parsed):
        return
    programs.first, programs.count, programs.port = p.programs_first, p.programs, port
    row = open_local(p.table, ends_of(parsed), p.links[link].side, programs, birth_of(p, parsed, state, 0))
    if row < 0 and p.links[link].side == INSIDE:
        refuse_session(p, link, frame, parsed, row)
        return
    if row < 0:
        count_drop(p, reason_of(row))
        return
    if parsed.protocol == PROTOCOL_TCP:
        tell_what_was_asked(p, &p.table.sessions[row])
    p.chains.slot = NULL            # the verdict is remembered with the session
    forward_opened(p, link, hop, row, INBOUND, frame, parsed)


cdef void miss_local(Path *p, int link, Frame *frame, Parsed *parsed) noexcept nogil:
    """A packet that a program of this host sends to nobody who was redirected to it."""
    cdef const Route *route = find_route(p, parsed.daddr)
    if parsed.kind == KIND_ICMP_ERROR:
        translate_error(p, link, route, frame, parsed)
    else:
        count_drop(p, NO_SESSION)


# -- which side it comes from ------------------------------------------------------------------------------------------

cdef void miss_inside(Path *p, int link, Frame *frame, Parsed *parsed) noexcept nogil:
    """A packet from inside that belongs to no session: for the host, for another inside network, or a new session."""
    cdef const Route *route = find_route(p, parsed.daddr)
    if route.kind == ROUTE_BROADCAST or route.kind == ROUTE_MULTICAST or frame.packet_type != PACKET_HOST:
        deliver(p)
        return
    if is_martian_destination(parsed.daddr) or leads_to_programs(p, route):
        count_drop(p, MARTIAN_DESTINATION)
        return
    if not source_belongs(p, link, parsed.saddr):
        count_drop(p, MARTIAN_SOURCE)
        return
    if route.kind == ROUTE_LOCAL:
        to_local_address(p, link, route, frame, parsed)
        return
    if route.kind != ROUTE_UNICAST or route.link == NO_LINK:
        count_drop(p, NO_ROUTE)
        if route.kind != ROUTE_BLACKHOLE:
            reply_error(p, link, frame, parsed, DESTINATION_UNREACHABLE, NET_UNREACHABLE, 0)
        return
    if parsed.kind == KIND_ICMP_ERROR:
        translate_error(p, link, route, frame, parsed)
    else:
        forward_new(p, link, route, frame, parsed)


cdef void inbound_by_forward(Path *p, int link, uint32_t mapping, Frame *frame, Parsed *parsed) noexcept nogil:
    """A packet to a port forward from a remote without a session: open one with the target whose turn it is.

    What may open none passes all the same: a reset, and anything while the forward has its share of half-open sessions.
    """
    cdef const Target *target = forward_target(p.table, mapping, parsed.saddr, parsed.sid)
    cdef int hop = hop_of_route(p, find_route(p, target.address), target.address)
    cdef int state = first_inbound_state(parsed)
    cdef int64_t row = REFUSED_HALF_OPEN
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
        return
    if not may_leave(p, link, hop, frame, parsed):
        return
    if state >= 0:
        row = open_forwarded(p.table, mapping, parsed.saddr, parsed.sid, birth_of(p, parsed, state, 0))
    if row == REFUSED_HALF_OPEN:
        pass_stateless(p, link, hop, parsed.saddr, parsed.sid, target.address, target.port, frame, parsed)
        return
    if row < 0:
        count_drop(p, reason_of(row))
        return
    forward_opened(p, link, hop, row, INBOUND, frame, parsed)


cdef inline uint32_t mark_of(const Path *p) noexcept nogil:
    """Return what the input chain has marked the packet in hand with."""
    return p.chains.probe.mark if p.chains != NULL and p.chains.settled == NULL else 0


cdef inline Mark *mark_to_follow(Path *p, const Parsed *parsed) noexcept nogil:
    """Return the mark that this packet may open a session by, or NULL: of TCP, a SYN without ACK."""
    if parsed.protocol == PROTOCOL_TCP and parsed.transport[TCP_FLAGS] & (SYN | ACK) != SYN:
        return NULL
    return find_mark(p.demand, mark_of(p))


cdef bint inbound_on_demand(Path *p, int link, int port_class, Frame *frame, Parsed *parsed) noexcept nogil:
    """Open the session of a packet that a trigger or its mark leads inside; False: nothing leads it there."""
    cdef int external = external_of(p.table, parsed.daddr)
    cdef int state, hop
    cdef uint32_t mapping
    cdef uint32_t host
    cdef uint16_t port = parsed.did
    cdef Mark *marked = NULL
    cdef int64_t row
    if port_class == CLASS_ICMP or external < 0 or external != p.table.current or first_inbound_state(parsed) < 0:
        return False
    state = first_inbound_state(parsed)
    mapping = mapping_row(external, port_class, parsed.did)
    host = triggered_host(p.demand, parsed.protocol, parsed.did, parsed.saddr, p.tick)
    if host == 0:
        marked = mark_to_follow(p, parsed)
        if marked == NULL:
            return False
        host = p.demand.targets[marked.first + marked.turn].address
        port = p.demand.targets[marked.first + marked.turn].port or parsed.did
    if not may_lead_to(p.table, mapping, host, port):
        return False
    hop = hop_of_route(p, find_route(p, host), host)
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
        return True
    if not may_leave(p, link, hop, frame, parsed):
        return True
    row = open_inbound(p.table, mapping, make_ends(host, port, parsed.saddr, parsed.sid), p.demand.half_open_limit,
                       birth_of(p, parsed, state, 0))
    if row < 0:
        count_drop(p, reason_of(row))
        return True
    if marked != NULL:
        count_session(p.demand, marked)
    forward_opened(p, link, hop, row, INBOUND, frame, parsed)
    return True


cdef void inbound_by_mapping(Path *p, int link, Frame *frame, Parsed *parsed) noexcept nogil:
    """A packet to an external endpoint from a remote without a session: filter, then translate without keeping state."""
    cdef int port_class = class_of(parsed.protocol)
    cdef uint32_t mapping = find_external(p.table, parsed.daddr, port_class, parsed.did)
    cdef uint32_t target
    cdef int hop
    if mapping == NONE and (port_class == CLASS_ICMP or not port_is_ours(p, parsed.daddr, port_class, parsed.did)):
        deliver(p)
        return
    if p.demand != NULL and inbound_on_demand(p, link, port_class, frame, parsed):
        return
    if mapping == NONE:
        count_drop(p, NO_SESSION)
        return
    if p.table.mappings[mapping].in_use == MAPPING_FORWARD:
        inbound_by_forward(p, link, mapping, frame, parsed)
        return
    if p.table.mappings[mapping].in_use == MAPPING_ORPHAN or p.table.mappings[mapping].in_use == MAPPING_BY_SESSION:
        count_drop(p, NO_SESSION)
        return
    if not admits(p.table, mapping, parsed.saddr):
        if port_class == CLASS_ICMP:
            deliver(p)                  # the host pings as well
        else:
            count_drop(p, FILTERED)
        return
    target = p.table.mappings[mapping].address
    hop = hop_of_route(p, find_route(p, target), target)
    if hop < 0:
        count_drop(p, -hop - 1)
        return
    if not may_leave(p, link, hop, frame, parsed):
        return
    pass_stateless(p, link, hop, parsed.saddr, parsed.sid, target, p.table.mappings[mapping].id, frame, parsed)


cdef bint is_about_answer(Path *p, const Parsed *parsed) noexcept nogil:
    """Whether an ICMP error from outside, to an address that is not ours, quotes what a program has answered as that."""
    cdef Quote quote
    cdef ErrorRewrite new
    return parse_quote(parsed, &quote) < 0 and find_quoted_session(p, OUTSIDE, parsed, &quote, &new) == -1


cdef void miss_outside(Path *p, int link, Frame *frame, Parsed *parsed) noexcept nogil:
    """A packet from outside that belongs to no session: for the host, for a mapping, or nobody's."""
    cdef const Route *route = find_route(p, parsed.daddr)
    if route.kind == ROUTE_BROADCAST or route.kind == ROUTE_MULTICAST or frame.packet_type != PACKET_HOST:
        deliver(p)
        return
    if is_martian_destination(parsed.daddr) or leads_to_programs(p, route):
        count_drop(p, MARTIAN_DESTINATION)
        return
    if not source_belongs(p, link, parsed.saddr):
        count_drop(p, MARTIAN_SOURCE)
        return
    if route.kind != ROUTE_LOCAL:
        if parsed.kind == KIND_ICMP_ERROR and is_about_answer(p, parsed):
            translate_error(p, link, route, frame, parsed)
        elif p.chains != NULL and not p.chains.default_forward:
            forward_by_chain(p, link, route, frame, parsed)
        else:
            count_drop(p, POLICY_REFUSED)
        return
    if parsed.kind == KIND_ICMP_ERROR:
        translate_error(p, link, route, frame, parsed)
    elif is_asked_about(p, parsed) and external_of(p.table, parsed.daddr) >= 0:
        inbound_followed(p, link, frame, parsed)
    elif parsed.kind == KIND_SESSION and not (parsed.protocol == PROTOCOL_ICMP and is_query(parsed.transport[0])):
        inbound_by_mapping(p, link, frame, parsed)
    elif parsed.kind == KIND_PROTOCOL_OTHER:
        redirect_inbound(p, link, frame, parsed)
    else:
        deliver(p)


cdef bint is_for_host(const Path *p, int link, const Frame *frame, const Parsed *parsed) noexcept nogil:
    """Whether a packet without a session is the host's own: its kernel judges that by the input chain, and counts it (T-5).

    What might be about a session of ours, an ICMP error, is judged here as well.
    """
    cdef const Route *route = find_route(p, parsed.daddr)
    cdef int port_class
    if route.kind == ROUTE_BROADCAST or route.kind == ROUTE_MULTICAST or frame.packet_type != PACKET_HOST:
        return True
    if route.kind != ROUTE_LOCAL or parsed.kind == KIND_ICMP_ERROR:
        return False
    if p.links[link].side == OUTSIDE and is_asked_about(p, parsed):
        return external_of(p.table, parsed.daddr) < 0
    if parsed.kind == KIND_PROTOCOL_OTHER and p.links[link].side == OUTSIDE:
        return find_inbound_redirect(p, parsed) == NULL
    if parsed.kind != KIND_SESSION or (parsed.protocol == PROTOCOL_ICMP and is_query(parsed.transport[0])):
        return True
    port_class = class_of(parsed.protocol)
    return (find_external(p.table, parsed.daddr, port_class, parsed.did) == NONE
            and (port_class == CLASS_ICMP or not port_is_ours(p, parsed.daddr, port_class, parsed.did)))


# -- the batch -------------------------------------------------------------------------------------------------------

cdef inline void handle(Path *p, int link, Frame *frame, Parsed *parsed) noexcept nogil:
    if parsed.drop >= 0:
        count_drop(p, parsed.drop)
    elif parsed.fragment and is_reassembled(p, link, frame, parsed):
        handle_fragment(p, link, frame, parsed)
    else:
        if parsed.fragment:
            parsed.kind = KIND_FRAGMENT     # routed as it is: a first one like the others
        handle_packet(p, link, frame, parsed)


cdef inline void handle_packet(Path *p, int link, Frame *frame, Parsed *parsed) noexcept nogil:
    """A packet that is whole, or stands for the pieces of its datagram, or is routed as it is."""
    cdef int64_t ref = -1
    if parsed.kind == KIND_SESSION and frame.packet_type == PACKET_HOST:
        ref = find_flow(p.table, parsed.key0, parsed.key1, parsed.hash)
    elif parsed.kind == KIND_PROTOCOL_OTHER and frame.packet_type == PACKET_HOST:
        ref = find_way_of(p, link, parsed) if is_tunnel(p, parsed) else find_plain(p, link, parsed)
    if p.chains != NULL:
        p.chains.redirected = False
        if not (ref < 0 and is_for_host(p, link, frame, parsed)) and not admitted(p, link, frame, parsed, ref):
            return
    if ref >= 0 and parsed.kind == KIND_TUNNEL:
        forward_tunnel(p, link, frame, parsed, <uint32_t>ref)
    elif ref >= 0:
        forward_flow(p, link, frame, parsed, <uint32_t>ref)
    elif p.chains != NULL and p.chains.redirected and may_be_redirected(p, parsed):
        redirect(p, link, frame, parsed)
    elif p.links[link].side == INSIDE:
        miss_inside(p, link, frame, parsed)
    elif p.links[link].side == LOCAL:
        miss_local(p, link, frame, parsed)
    else:
        miss_outside(p, link, frame, parsed)


# -- datagrams in pieces ---------------------------------------------------------------------------------------------

cdef inline bint is_reassembled(Path *p, int link, const Frame *frame, const Parsed *parsed) noexcept nogil:
    """Whether a fragment may be one of a translated datagram.

    It goes outside, to an external address, is a program's, or for one by a rule, to wherever it is addressed.
    """
    cdef const Route *route = find_route(p, parsed.daddr)
    if frame.packet_type != PACKET_HOST or not source_belongs(p, link, parsed.saddr):
        return False
    if route.kind == ROUTE_LOCAL:
        return external_of(p.table, parsed.daddr) >= 0 and (p.links[link].side == OUTSIDE or p.hairpin)
    if route.kind == ROUTE_BROADCAST or route.kind == ROUTE_MULTICAST:
        return False
    if p.chains != NULL and p.chains.redirects:
        return True
    if route.kind != ROUTE_UNICAST or route.link == NO_LINK:
        return False
    return p.links[link].side == LOCAL or (p.links[link].side == INSIDE and p.links[route.link].side == OUTSIDE)


cdef inline void count_given_up(Path *p) noexcept nogil:
    """Turn pieces that were kept for nothing into drops."""
    p.drops[FRAGMENT_ORPHAN] += p.datagrams.given_up
    p.verdicts[4] += p.datagrams.given_up
    p.verdicts[PUNT] -= p.datagrams.given_up
    p.datagrams.given_up = 0


cdef int32_t datagram_of(Path *p, int link, const Parsed *parsed) noexcept nogil:
    """Return the row of a fragment's datagram, a new one if there is none.

    The pieces of a datagram that leaves get an identification of their own: two inside hosts may use the same towards
    one remote, which would take their pieces for one datagram (RFC 6864 section 5.3.1).
    """
    cdef uint16_t identification = load16(parsed.ip + IPV4_ID)
    cdef uint64_t key0 = make_key0(parsed.saddr, parsed.daddr)
    cdef uint64_t key1 = (<uint64_t>link << 32) | (<uint64_t>parsed.protocol << 16) | identification
    cdef uint32_t hash = <uint32_t>key_hash(p.table, key0, key1)
    cdef int32_t row = find_datagram(&p.datagrams, key0, key1, hash)
    if row == NOBODY:
        row = begin_datagram(&p.datagrams, key0, key1, hash, <uint8_t>host_hash(p.table, parsed.saddr), p.now_ms)
        if p.links[link].side == INSIDE:
            identification = <uint16_t>next_random(p.table)
        p.datagrams.rows[row].identification = identification
        count_given_up(p)
    return row


cdef void forward_first(Path *p, int link, Frame *frame, Parsed *parsed, Datagram *datagram) noexcept nogil:
    """Treat a first fragment as the packet it begins, and remember for the others what came of it."""
    cdef uint64_t delivered = p.verdicts[DELIVER]
    cdef uint64_t held = p.verdicts[PUNT]
    p.sent = False
    handle_packet(p, link, frame, parsed)
    if p.sent:
        datagram.state = TRANSLATED
        datagram.saddr = load32(parsed.ip + IPV4_SOURCE)
        datagram.daddr = load32(parsed.ip + IPV4_DESTINATION)
        datagram.generation = p.generation
    elif p.verdicts[DELIVER] != delivered:
        datagram.state = HOST_OWN
    elif p.verdicts[PUNT] == held:
        datagram.state = REFUSED


cdef void forward_later(Path *p, int link, Frame *frame, Parsed *parsed, const Datagram *datagram) noexcept nogil:
    """Give a later fragment the addresses that the first was given."""
    cdef int hop
    if datagram.state == HOST_OWN:
        deliver(p)
        return
    if datagram.state == REFUSED or datagram.generation != p.generation:
        count_drop(p, FRAGMENT_REFUSED)
        return
    hop = hop_of_route(p, find_route(p, datagram.daddr), datagram.daddr)
    if hop < 0:
        no_hop(p, link, frame, parsed, hop)
    elif may_leave(p, link, hop, frame, parsed):
        write_addresses(parsed, datagram.saddr, datagram.daddr)
        send_packet(p, link, &p.hops[hop], frame, parsed)


cdef void forward_piece(Path *p, int link, Frame *frame, Parsed *parsed, int32_t row) noexcept nogil:
    """Send on a fragment whose datagram's fate is known, or is decided by it; refuse one that overlaps."""
    cdef Datagram *datagram = &p.datagrams.rows[row]
    cdef uint16_t field = load16(parsed.ip + IPV4_FRAGMENT)
    cdef uint32_t first = field & OFFSET_MASK
    cdef uint32_t count = (parsed.length - parsed.header_length + 7) >> 3
    cdef bint last = not field & MORE_FRAGMENTS
    cdef Coverage covers = coverage(datagram, first, count, last)
    cdef uint64_t held = p.verdicts[PUNT]
    if covers == COVERS_OLD and datagram.state != HOST_OWN:
        count_drop(p, FRAGMENT_DUPLICATE)
        return
    if covers == COVERS_BOTH and datagram.state != HOST_OWN:
        datagram.state = REFUSED
        count_drop(p, FRAGMENT_OVERLAP)
        return
    parsed.identification = datagram.identification
    parsed.renumbered = True
    if first == 0:
        forward_first(p, link, frame, parsed, datagram)
    else:
        forward_later(p, link, frame, parsed, datagram)
    if covers == COVERS_NEW and p.verdicts[PUNT] == held:
        mark(datagram, first, count, last)      # else it waits for a next hop, and comes here again


cdef void release_kept(Path *p, int32_t row) noexcept nogil:
    """Send on what was kept until the first fragment came, in the order it came."""
    cdef Parsed parsed
    cdef Piece *piece
    cdef int32_t number = take_kept(&p.datagrams, row)
    while number != NOBODY:
        piece = &p.datagrams.pieces[number]
        p.verdicts[PUNT] -= 1
        parse_frame(&piece.frame, &p.links[piece.link], &parsed)
        forward_piece(p, piece.link, &piece.frame, &parsed, row)
        number = take_kept(&p.datagrams, row)
    flush_all(p)                    # from where they are kept; the room is used again


cdef void handle_fragment(Path *p, int link, Frame *frame, Parsed *parsed) noexcept nogil:
    """A fragment of a datagram that may be translated: the first decides, those before it wait (RFC 4787 REQ-14)."""
    cdef int32_t row = datagram_of(p, link, parsed)
    cdef Datagram *datagram = &p.datagrams.rows[row]
    if parsed.protocol == PROTOCOL_TCP:
        send_all_gathered(p)        # a stream's segments keep their order
    if datagram.state == FIRST_MISSING and load16(parsed.ip + IPV4_FRAGMENT) & OFFSET_MASK:
        if keep_piece(&p.datagrams, row, frame, <uint8_t>link):
            p.verdicts[PUNT] += 1
        else:
            count_drop(p, FRAGMENT_TOO_LONG)
        count_given_up(p)
        return
    forward_piece(p, link, frame, parsed, row)
    if datagram.state != FIRST_MISSING:
        release_kept(p, row)
        if is_complete(datagram) and datagram.state != REFUSED:
            end_datagram(&p.datagrams, row)


cdef void expire_datagrams(Path *p) noexcept nogil:
    """Give up datagrams that have been incomplete for too long."""
    while p.datagrams.count and p.now_ms - p.datagrams.rows[p.datagrams.oldest].since_ms >= FRAGMENT_MS:
        end_datagram(&p.datagrams, p.datagrams.oldest)
    count_given_up(p)


cdef inline void prefetch_session(const Table *t, uint32_t hash) noexcept nogil:
    """Fetch the row that the first index entry with this hash refers to."""
    cdef uint32_t at = hash & t.index.mask
    cdef const Session *s
    while t.index.entries[at].ref:
        if t.index.entries[at].hash == hash:
            s = &t.sessions[(t.index.entries[at].ref - 1) >> 1]
            PREFETCH(s)
            PREFETCH(<const uint8_t *>s + 64)
            return
        at = (at + 1) & t.index.mask


cdef int process_link(Path *p, int link) noexcept nogil:
    """Receive, translate and send one batch of a link; return how many frames there were."""
    cdef Ring *ring = p.rings[link]
    cdef Table *t = p.table
    cdef Parsed *parsed
    cdef uint64_t octets = 0
    cdef int count, i
    if ring == NULL:
        return 0
    count = ring_receive(ring, p.frames, BATCH)
    if count == 0:
        return 0
    for i in range(count):
        parsed = &p.parsed[i]
        octets += p.frames[i].length
        parse_frame(&p.frames[i], &p.links[link], parsed)
        if parsed.drop < 0 and parsed.kind == KIND_SESSION:
            parsed.hash = <uint32_t>key_hash(t, parsed.key0, parsed.key1)
            PREFETCH(&t.index.entries[parsed.hash & t.index.mask])
    p.traffic[link].rx_packets += count
    p.traffic[link].rx_bytes += octets
    p.turn_octets += octets
    if count > 1:
        for i in range(count):
            if p.parsed[i].drop < 0 and p.parsed[i].kind == KIND_SESSION:
                prefetch_session(t, p.parsed[i].hash)
    for i in range(count):
        handle(p, link, &p.frames[i], &p.parsed[i])
    flush_all(p)
    ring_release(ring)
    p.notes[NOTE_BATCHES] += 1
    return count


cdef void give_up(Path *p, Held *held, int reason) noexcept nogil:
    """A held packet whose next hop did not come: drop it and tell its sender (RFC 1812 section 5.2.7.1)."""
    cdef Parsed *parsed = &p.parsed[0]
    parse_frame(&held.frame, &p.links[held.link], parsed)
    count_drop(p, reason)
    reply_error(p, held.link, &held.frame, parsed, DESTINATION_UNREACHABLE, HOST_UNREACHABLE, 0)


cdef void handle_again(Path *p, int link, Frame *frame, const Answer *answer) noexcept nogil:
    """Handle a packet that has waited, for its next hop or for a tracker that has answered by now."""
    cdef Parsed *parsed = &p.parsed[0]
    p.answer = answer[0]
    if p.chains != NULL:
        p.chains.again = True
        p.chains.asked_tracker = p.answer.kind != ANSWER_NONE
    parse_frame(frame, &p.links[link], parsed)
    if parsed.drop < 0 and parsed.kind == KIND_SESSION:
        parsed.hash = <uint32_t>key_hash(p.table, parsed.key0, parsed.key1)
    handle(p, link, frame, parsed)
    p.answer.kind = ANSWER_NONE
    if p.chains != NULL:
        p.chains.again = p.chains.asked_tracker = False


cdef void process_held(Path *p) noexcept nogil:
    """Look after the packets that wait for a next hop: send those whose hop is known now, give up the others in time.

    One whose hop has been forgotten is handled as if it had just come: its link may be another by now.
    """
    cdef int slot
    cdef Held *held
    cdef Hop *hop
    for slot in range(HELD):
        held = &p.held[slot]
        if not held.in_use:
            continue
        hop = NULL if held.hop == NO_HOP_ROW else &p.hops[held.hop]
        if hop != NULL and hop.state == HOP_INCOMPLETE and p.now_ms - held.since_ms < HOLD_MS:
            continue
        held.in_use = 0
        p.held_count -= 1
        p.verdicts[PUNT] -= 1
        if hop != NULL:
            hop.held -= 1
        if hop == NULL or hop.state == HOP_VALID:
            handle_again(p, held.link, &held.frame, &held.answer)
        else:
            give_up(p, held, NEIGHBOUR_FAILED if hop.state == HOP_FAILED else NEIGHBOUR_UNRESOLVED)
    flush_all(p)


cdef void edit_segment(Parsed *parsed, uint32_t offset, uint8_t octet) noexcept nogil:
    """Write one octet of a TCP segment's payload, and what that does to its checksum unless that is still to be summed up."""
    cdef uint32_t header = tcp_header_length(parsed.transport)
    cdef uint8_t *at = parsed.transport + header + offset
    cdef uint16_t before = at[0] if offset & 1 else <uint16_t>at[0] << 8
    cdef uint16_t after = octet if offset & 1 else <uint16_t>octet << 8
    if parsed.header_length + header + offset >= parsed.length:
        return
    at[0] = octet
    if not parsed.partial:
        update_full_at(parsed.transport + TCP_CHECKSUM, delta16(before, after))


cdef int process(Path *p, uint64_t now_ns) noexcept nogil:
    """One turn: held packets, some batches of every link, and some of the sessions due; return frames handled.

    Held packets come first: those of their flows that have come meanwhile must not overtake them.
    """
    cdef int link, _batch, received
    cdef int count = 0
    p.turn_octets = 0
    p.now_ms = <uint32_t>(now_ns // 1000000)
    p.tick = <uint32_t>(now_ns // (<uint64_t>TICK_MS * 1000000))
    if p.held_count:
        process_held(p)
    for link in range(p.link_count):
        for _batch in range(TURN_BATCHES):
            received = process_link(p, link)
            count += received
            if received < BATCH:
                break
    if p.datagrams.count:
        expire_datagrams(p)
    expire_sessions(p.table, p.tick, EXPIRE_BUDGET)
    return count


cdef class Forwarder:
    """The packet path over a table, with up to LINKS links attached.

    The worker calls `turn`; everybody else takes the lock first: `with forwarder.locked():`. All integers are in host
    order, times in nanoseconds of the monotonic clock.
    """

    def __init__(self, MasqTable table, *, bint hairpin=True, bint limit_errors=True, error_rate=100, error_burst=50,
                 error_rate_source=10):
        cdef Path *p = &self.path
        pthread_mutex_init(&self.mutex, NULL)
        self.table = table
        self.rings = [None] * LINKS
        self.senders = [None] * LINKS
        self._hops = np.zeros(HOPS, world.HOP)
        self._hop_index = np.zeros(2 * HOPS, "u8")
        self._held = np.zeros((HELD, HEADROOM + BIG_FRAME), "u1")
        p.table = &table.table
        p.hops = <Hop *><size_t>self._hops.ctypes.data
        p.hop_index.entries = <IndexEntry *><size_t>self._hop_index.ctypes.data
        p.hop_index.mask = 2 * HOPS - 1
        p.held_memory = <uint8_t *><size_t>self._held.ctypes.data
        self._make_datagrams()
        p.hairpin = hairpin
        p.limit_errors = limit_errors
        p.error_rate = error_rate
        p.error_burst = error_burst
        p.error_rate_source = error_rate_source
        p.generation = 1
        p.asked_map = -1
        self.set_routes(np.zeros(1, "u4"), np.zeros(1, world.ROUTE))

    def _make_datagrams(self):
        cdef Datagrams *d = &self.path.datagrams
        cdef int i
        rows = np.zeros((DATAGRAMS, sizeof(Datagram)), "u1")
        pieces = np.zeros((PIECES, sizeof(Piece)), "u1")
        memory = np.zeros((PIECES, PIECE_ROOM), "u1")
        index = np.zeros(2 * DATAGRAMS, "u8")
        self._datagrams = [rows, pieces, memory, index]
        d.rows = <Datagram *><size_t>rows.ctypes.data
        d.pieces = <Piece *><size_t>pieces.ctypes.data
        d.memory = <uint8_t *><size_t>memory.ctypes.data
        d.index.entries = <IndexEntry *><size_t>index.ctypes.data
        d.index.mask = 2 * DATAGRAMS - 1
        for i in range(DATAGRAMS):
            d.rows[i].older = i + 1 if i + 1 < DATAGRAMS else NOBODY
        for i in range(PIECES):
            d.pieces[i].next = i + 1 if i + 1 < PIECES else NOBODY
        d.oldest = d.newest = NOBODY

    # -- the worker's side ---------------------------------------------------------------------------------------

    cdef int turn(self, uint64_t now_ns) noexcept nogil:
        """Process one batch of every link under the lock, and let others have the lock if they wait for it."""
        cdef int count
        cdef int patience = 1000
        pthread_mutex_lock(&self.mutex)
        count = process(&self.path, now_ns)
        pthread_mutex_unlock(&self.mutex)
        while ATOMIC_LOAD(&self.waiting) and patience:
            sched_yield()
            patience -= 1
        return count

    cdef bint pending(self) noexcept nogil:
        """Whether a ring has frames, without a system call."""
        cdef int link
        for link in range(self.path.link_count):
            if self.path.rings[link] != NULL and ring_pending(self.path.rings[link]):
                return True
        return False

    cdef void lock(self) noexcept nogil:
        ATOMIC_ADD(&self.waiting, 1)
        pthread_mutex_lock(&self.mutex)
        ATOMIC_ADD(&self.waiting, -1)

    cdef void unlock(self) noexcept nogil:
        pthread_mutex_unlock(&self.mutex)

    @contextlib.contextmanager
    def locked(self):
        """Hold the path still. Keep what is done inside short: packets wait."""
        with nogil:
            self.lock()
        try:
            yield
        finally:
            self.unlock()

    def step(self, now_ns):
        """Process one turn; return the number of frames. For tests and benchmarks: the worker has its own loop."""
        cdef uint64_t now = now_ns
        cdef int count
        with nogil:
            count = self.turn(now)
        return count

    # -- what the daemon tells the path --------------------------------------------------------------------------

    def attach(self, int link, RxRing ring, TxBatch sender):
        """Connect ring and sender (or None, None) as link number `link`; returns the pair that was there."""
        before = self.rings[link], self.senders[link]
        self.path.rings[link] = &ring.ring if ring is not None else NULL
        self.path.senders[link] = &sender.sender if sender is not None else NULL
        self.rings[link] = ring
        self.senders[link] = sender
        self.path.link_count = max(self.path.link_count, link + 1)
        self.forget_hops()
        self._drop_punts()
        return before

    def set_link(self, int link, description):
        """Describe a link by a row of world.LINK; if that is news, next hops are looked up again."""
        row = np.array(description, world.LINK)
        if memcmp(&self.path.links[link], <const uint8_t *><size_t>row.ctypes.data, sizeof(Link)):
            memcpy(&self.path.links[link], <const uint8_t *><size_t>row.ctypes.data, sizeof(Link))
            self.forget_hops()
            self._drop_punts()
        self.path.link_count = max(self.path.link_count, link + 1)

    def set_routes(self, first, routes):
        """Route by intervals: `first` (uint32, sorted, starting at 0) and one world.ROUTE row for each.

        Every flow asks for its route again; what is known about next hops stays known.
        """
        if len(first) != len(routes) or first[0] != 0:
            raise ValueError("routes must cover all addresses: the first interval starts at 0")
        self._route_first = np.ascontiguousarray(first, "u4")
        self._routes = np.ascontiguousarray(routes, world.ROUTE)
        self.path.route_first = <const uint32_t *><size_t>self._route_first.ctypes.data
        self.path.routes = <const Route *><size_t>self._routes.ctypes.data
        self.path.route_count = len(first)
        self.path.generation += 1

    def set_programs(self, uint32_t first, int count):
        """Redirect to programs of this host at `count` addresses from `first` on, over the link that is on side LOCAL."""
        self.path.programs_first = first
        self.path.programs = count

    def tell_programs(self, int asked_map, uint64_t cookie, long bpf_call):
        """Note in a map what each redirected TCP session asked for, see kernel/bpf/original_destination.py; -1: nowhere."""
        self.path.asked_map = asked_map
        self.path.asked_cookie = cookie
        self.path.bpf_call = bpf_call

    def set_rules(self, rules):
        """Use these world.RULE rows, at most RULES, as policy for new sessions."""
        if len(rules) > RULES:
            raise ValueError(f"{len(rules)} rules: at most {RULES}")
        rows = np.ascontiguousarray(rules, world.RULE)
        memcpy(self.path.rules, <const uint8_t *><size_t>rows.ctypes.data, len(rows) * sizeof(Rule))
        self.path.rule_count = len(rows)

    def set_hairpin(self, bint on):
        """Let inside hosts reach external endpoints of ours, or not; sessions that do so already go on."""
        self.path.hairpin = on

    def set_chains(self, RuleTable chains):
        """Put packets to these chains; None: to none, and the rows of `set_rules` decide alone."""
        self.chains = chains
        self.path.chains = &chains.chains if chains is not None else NULL

    def set_demand(self, DemandTable demand):
        """Open sessions by these triggers and marks as well, and keep ports by its direct rows; None: by none."""
        self.demand = demand
        self.path.demand = &demand.demand if demand is not None else NULL

    def set_redirects(self, redirects):
        """Use these world.REDIRECT rows, at most REDIRECTS, in order; sessions that are open stay."""
        if len(redirects) > REDIRECTS:
            raise ValueError(f"{len(redirects)} redirects: at most {REDIRECTS}")
        rows = np.ascontiguousarray(redirects, world.REDIRECT)
        memcpy(self.path.redirects, <const uint8_t *><size_t>rows.ctypes.data, len(rows) * sizeof(Redirect))
        self.path.redirect_count = len(rows)

    def carry_by_address(self, protocols):
        """Let any inside host begin these protocols without ports, one host for each remote; sessions that are open stay."""
        cdef int protocol
        for protocol in range(256):
            self.path.by_address[protocol] = protocol in protocols

    # -- what trackers tell the path, and are asked by it ----------------------------------------------------------

    def follow(self, *, bint pptp, bint ipsec):
        """Ask trackers from now on about what these protocols send: see `next_punt`. Before any packet has come."""
        cdef Path *p = &self.path
        self.tunnels = np.zeros(TUNNELS, world.TUNNEL)
        self._tunnel_index = np.zeros(TUNNEL_INDEX, "u8")
        self._punts = np.zeros((PUNTS + 1, HEADROOM + BIG_FRAME), "u1")
        self._unfollowed = np.zeros((p.table.capacity >> 6) + 1, "u8")
        p.tunnels.rows = <Tunnel *><size_t>self.tunnels.ctypes.data
        p.tunnels.index.entries = <IndexEntry *><size_t>self._tunnel_index.ctypes.data
        p.tunnels.index.mask = TUNNEL_INDEX - 1
        p.punts.memory = <uint8_t *><size_t>self._punts.ctypes.data
        p.unfollowed = <uint64_t *><size_t>self._unfollowed.ctypes.data
        p.follows_pptp = pptp
        p.follows_ipsec = ipsec

    def set_way(self, uint32_t row, int direction, uint8_t protocol, arrives, leaves, call_id=None):
        """Let the path move one way of a tunnel; its counters go on.

        arrives: (source, destination, Call ID or SPI; None takes any Call ID); leaves: (source, destination).
        call_id is written into GRE if given.
        """
        cdef Way *way
        if row >= TUNNELS or direction not in (OUTBOUND, INBOUND):
            raise ValueError(f"way {direction} of row {row}: there are {TUNNELS} rows of two")
        self.remove_way(row, direction)
        way = &self.path.tunnels.rows[row].way[direction]
        way.original_id = ANY_CALL_ID if arrives[2] is None else arrives[2]
        way.renumbered = call_id is not None and call_id != arrives[2]
        way.call_id = call_id if way.renumbered else 0
        way.key0 = make_key0(arrives[0], arrives[1])
        way.key1 = tunnel_key1(protocol, OUTSIDE if direction == INBOUND else INSIDE, way.original_id)
        way.saddr, way.daddr = leaves
        way.quoted0 = make_key0(way.saddr, way.daddr)
        way.quoted1 = tunnel_key1(protocol, QUOTED | (INSIDE if direction == INBOUND else OUTSIDE),
                                  way.call_id if way.renumbered else way.original_id)
        way.hop = NO_HOP
        way.in_use = 1
        self.path.tunnels.serial += 1
        way.serial = self.path.tunnels.serial
        index_way(&self.path.tunnels, &self.path.table.secret, row, direction)

    def remove_way(self, uint32_t row, int direction):
        """Stop moving one way of a tunnel, if the path does."""
        forget_way(&self.path.tunnels, &self.path.table.secret, row, direction)

    def leave_unread(self, uint32_t row, bint on):
        """Pass the segments of a session on port 1723 on without asking, or ask again."""
        cdef uint64_t bit = <uint64_t>1 << (row & 63)
        if row >= self.path.table.capacity:
            raise ValueError(f"session {row}: the table has {self.path.table.capacity} rows")
        if on:
            self.path.unfollowed[row >> 6] |= bit
        else:
            self.path.unfollowed[row >> 6] &= ~bit

    def next_punt(self):
        """Return the packet that has waited longest for an answer, or None.

        It is (kind, side, ref, packet): kind is one of PUNT_KINDS, side 0 inside, 1 outside, where it came from; ref the
        flow (row << 1 | direction) of a control segment; packet the octets from the IPv4 header on.
        """
        cdef Punt *punt = &self.path.punts.waiting[self.path.punts.first]
        cdef Parsed *parsed = &self.path.parsed[0]
        if self.path.punts.count == 0:
            return None
        parse_frame(&punt.frame, &self.path.links[punt.link], parsed)
        return PUNT_KINDS[punt.kind], self.path.links[punt.link].side, punt.ref, parsed.ip[:parsed.length]

    def answer_punt(self, addresses, int reason, call_id=None, edits=()):
        """Decide about the packet that `next_punt` has returned.

        addresses: what a tunnel's or ISAKMP's packet gets for its own address, outbound as source, inbound as destination,
        a copy for each; (0,) for a control segment. Without any it is dropped for `reason`, a code of verdict.DROP_CODE.
        call_id is written into GRE; edits are (offset in TCP payload, octets) to write.
        """
        cdef Path *p = &self.path
        cdef int slot = p.punts.first
        cdef Punt *punt = &p.punts.waiting[slot]
        cdef Frame frame = punt.frame
        cdef Answer answer
        cdef size_t number
        if p.punts.count == 0:
            raise ValueError("no packet waits for an answer")
        p.punts.first = (slot + 1) & (PUNTS - 1)
        p.punts.count -= 1
        p.verdicts[PUNT] -= 1
        parse_frame(&frame, &p.links[punt.link], &p.parsed[0])
        for offset, octets in edits:
            for number, octet in enumerate(octets):
                edit_segment(&p.parsed[0], offset + number, octet)
        answer.renumbered = call_id is not None
        answer.call_id = call_id if call_id is not None else 0
        answer.reason = reason
        answer.kind = ANSWER_SEND if addresses else ANSWER_DROP
        if p.parsed[0].fragment:
            addresses = addresses[:1]   # the other pieces follow the first one's addresses, which are of one host
        for number, address in enumerate(addresses or (0,)):
            answer.address = address
            frame = punt.frame
            if number + 1 < len(addresses):
                frame.data = punt_memory(&p.punts, PUNTS)
                memcpy(frame.data, punt.frame.data, frame.length)
            handle_again(p, punt.link, &frame, &answer)
            flush_all(p)                # while the frame's memory is still its own

    def _drop_punts(self):
        """Drop what waits for a tracker: a link has changed, and what came over it can no longer be read as it did."""
        cdef PuntQueue *punts = &self.path.punts
        while punts.count:
            punts.first = (punts.first + 1) & (PUNTS - 1)
            punts.count -= 1
            self.path.verdicts[PUNT] -= 1
            count_drop(&self.path, LINK_DOWN)

    # -- next hops ---------------------------------------------------------------------------------------------------

    def forget_hops(self):
        """Have every next hop looked up again from the routes, also those that packets wait for."""
        cdef int slot
        for slot in range(HELD):
            self.path.held[slot].hop = NO_HOP_ROW
        self.path.hop_count = 0
        self.path.hops_full = False
        self.path.hops_wanted = False
        self._hop_index[:] = 0
        self.path.generation += 1

    def wanted_hops(self):
        """Return the (link, address) of next hops that packets want and whose link address is not known; asks once."""
        if not self.path.hops_wanted:
            return []
        if self.path.hops_full:
            self.forget_hops()
            return []
        self.path.hops_wanted = False
        rows = self._hops[:self.path.hop_count]
        wanted = np.flatnonzero(rows["wanted"])
        result = [(int(rows["link"][row]), int(rows["address"][row])) for row in wanted]
        rows["wanted"][wanted] = 0
        return result

    @property
    def hops_wanted(self):
        return bool(self.path.hops_wanted)

    def used_hops(self):
        """Return {(link, address): packets} of the valid next hops used since the last call."""
        rows = self._hops[:self.path.hop_count]
        used = {(int(row["link"]), int(row["address"])): int(row["used"])
                for row in rows[(rows["used"] > 0) & (rows["state"] == HOP_VALID)]}
        rows["used"] = 0
        return used

    def set_neighbour(self, int link, uint32_t address, mac):
        """Tell the link address of a next hop: 6 octets, or None when it does not answer. Returns whether it is in use."""
        rows = self._hops[:self.path.hop_count]
        matching = np.flatnonzero((rows["link"] == link) & (rows["address"] == address) & (rows["header_length"] > 0))
        for row in matching:
            if mac is None:
                rows["state"][row] = HOP_FAILED
            else:
                rows["header"][row, :6] = np.frombuffer(mac, "u1")
                rows["state"][row] = HOP_VALID
        return len(matching) > 0

    # -- what the path tells the daemon ----------------------------------------------------------------------------

    def drops(self):
        """Return {reason: packets} of the reasons that have counted anything."""
        return {name: self.path.drops[code] for code, (name, _) in enumerate(DROP_NAMES) if self.path.drops[code]}

    def verdicts(self):
        return {name: self.path.verdicts[code] for code, name in enumerate(VERDICT_NAMES)}

    def notes(self):
        return {name: self.path.notes[code] for code, name in enumerate(NOTES)}

    def traffic(self, int link):
        """Return packets and octets received and sent on a link."""
        cdef LinkCounters *counters = &self.path.traffic[link]
        return {"rx_packets": counters.rx_packets, "rx_bytes": counters.rx_bytes,
                "tx_packets": counters.tx_packets, "tx_bytes": counters.tx_bytes}
