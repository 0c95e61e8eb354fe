# ICMP errors about our sessions, in both directions: the packet quoted inside is looked up as its own answer would be.
#
# An error that arrives on a link quotes a packet that left on it. Swapping the quote's ends gives the key of the flow
# that the answer to it would match, and what that flow writes is what must be written here: its new source becomes the
# quote's destination, its new destination the quote's source and the destination of the error itself. The outer source
# is kept (any router may report, RFC 4787 REQ-12a) unless the flow hides its source, i.e. the error comes from inside
# (RFC 5508 REQ-5: also when an inner router reports). The session's timer and state are not touched (REQ-6).

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.path.rewrite cimport sums_addresses
from fastmasq.path.state cimport Link, Parsed, Path
from fastmasq.path.tunnels cimport Way, find_quoted_way
from fastmasq.path.verdict cimport BAD_ICMP_CHECKSUM, BAD_MTU_IN_ICMP, BAD_QUOTED_HEADER, NO_SESSION
from fastmasq.table.keys cimport INSIDE, KEY_REPLY, OUTSIDE, make_key0, make_key1
from fastmasq.table.mappings cimport endpoint_hash, find_external, find_internal, mapping_address
from fastmasq.table.rows cimport Flow, INBOUND, NONE, OUTBOUND, SESSION_SEEN_IN, SESSION_SEEN_OUT, Session, class_of
from fastmasq.table.sessions cimport find_flow
from fastmasq.table.table cimport Table, key_hash
from fastmasq.wire.checksum cimport delta16, delta32, fold, sum_octets, update_full, update_full_at
from fastmasq.wire.esp cimport PROTOCOL_ESP, spi
from fastmasq.wire.gre cimport GRE_CALL_ID, PROTOCOL_GRE, call_id, is_pptp
from fastmasq.wire.icmp cimport (
    DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED, ICMP_CHECKSUM, ICMP_IDENTIFIER, ICMP_LENGTH, ICMP_MTU, is_query,
    is_reply, query_of,
)
from fastmasq.wire.ipv4 cimport (
    IPV4_CHECKSUM, IPV4_DESTINATION, IPV4_FRAGMENT, IPV4_MINIMUM, IPV4_PROTOCOL, IPV4_SOURCE, OFFSET_MASK,
    PROTOCOL_DCCP, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_UDP_LITE,
)
from fastmasq.wire.octets cimport load16, load32, store16, store32
from fastmasq.wire.tcp cimport TCP_CHECKSUM, TCP_SEQUENCE
from fastmasq.wire.udp cimport UDP_CHECKSUM

cdef enum:
    SMALLEST_MTU = 68           # RFC 791: every link must carry it
    LARGEST_WINDOW = 0x40000000  # RFC 7323: octets in flight at the most
    QUOTE_UNKNOWN = -2          # instead of a DropReason: no session has sent the quoted packet


cdef struct Quote:
    uint8_t *ip
    uint8_t *transport
    uint32_t available          # octets of transport that are quoted
    uint8_t protocol
    uint32_t saddr
    uint32_t daddr
    uint16_t sid
    uint16_t did

cdef struct ErrorRewrite:
    # what to write over the error and its quote
    uint32_t saddr
    uint32_t daddr
    uint32_t quoted_saddr
    uint32_t quoted_daddr
    uint16_t quoted_sid
    uint16_t quoted_did
    uint16_t quoted_call_id     # to write if renumbered
    bint renumbered
    long long ref               # of the flow that the answer to the quoted packet would match, or -1


cdef inline int parse_quote(const Parsed *parsed, Quote *quote) noexcept nogil:
    """Check an ICMP error and the packet in it; return a DropReason or -1 (RFC 5508 REQ-3)."""
    cdef uint32_t length = parsed.length - parsed.header_length
    cdef uint32_t available = length - ICMP_LENGTH
    cdef uint32_t header_length
    cdef uint8_t *icmp = parsed.transport
    if sum_octets(icmp, length) != 0xFFFF:
        return BAD_ICMP_CHECKSUM
    if available < IPV4_MINIMUM:
        return BAD_QUOTED_HEADER
    quote.ip = icmp + ICMP_LENGTH
    header_length = (quote.ip[0] & 0x0F) * 4
    if quote.ip[0] >> 4 != 4 or header_length < IPV4_MINIMUM or available < header_length + 8:
        return BAD_QUOTED_HEADER
    if sum_octets(quote.ip, header_length) != 0xFFFF or load16(quote.ip + IPV4_FRAGMENT) & OFFSET_MASK:
        return BAD_QUOTED_HEADER
    if icmp[0] == DESTINATION_UNREACHABLE and icmp[1] == FRAGMENTATION_NEEDED:
        # RFC 1191 section 4: zero means an old router that does not tell
        if load16(icmp + ICMP_MTU) != 0 and load16(icmp + ICMP_MTU) < SMALLEST_MTU:
            return BAD_MTU_IN_ICMP
    quote.transport = quote.ip + header_length
    quote.available = available - header_length
    quote.protocol = quote.ip[IPV4_PROTOCOL]
    quote.saddr = load32(quote.ip + IPV4_SOURCE)
    quote.daddr = load32(quote.ip + IPV4_DESTINATION)
    if quote.protocol == PROTOCOL_TCP or quote.protocol == PROTOCOL_UDP:
        quote.sid = load16(quote.transport)
        quote.did = load16(quote.transport + 2)
    elif quote.protocol == PROTOCOL_ICMP and is_query(quote.transport[0]):
        quote.sid = load16(quote.transport + ICMP_IDENTIFIER)
        quote.did = quote.transport[0]
    elif quote.protocol == PROTOCOL_ICMP and is_reply(quote.transport[0]):
        quote.sid = query_of(quote.transport[0])
        quote.did = load16(quote.transport + ICMP_IDENTIFIER)
    elif quote.protocol == PROTOCOL_ICMP:
        return NO_SESSION
    else:                           # without ports
        quote.sid = 0
        quote.did = 0
    # only the sender of the quoted packet may be told of it
    return -1 if parsed.daddr == quote.saddr else NO_SESSION


cdef inline bint quote_in_window(const Session *s, int direction, const Quote *quote) noexcept nogil:
    """Whether a quoted TCP segment was sent by us not long ago (RFC 5927 section 4.1); unknown counts as yes.

    direction is the flow's that the answer to the quoted segment would match, so the segment went the other way.
    """
    cdef uint8_t seen = SESSION_SEEN_OUT if direction == INBOUND else SESSION_SEEN_IN
    cdef uint32_t behind
    if quote.protocol != PROTOCOL_TCP or not s.flags & seen:
        return True
    behind = s.tcp[1 - direction].end - load32(quote.transport + TCP_SEQUENCE)
    return behind <= LARGEST_WINDOW


cdef inline uint8_t answer_side(uint8_t side, const Quote *quote) noexcept nogil:
    """Return the side in the key of the answer to a quoted packet: the answer to an ICMP query is a reply."""
    if quote.protocol == PROTOCOL_ICMP and is_query(quote.transport[0]):
        return side | KEY_REPLY
    return side


cdef inline int find_quoted_session(Path *p, uint8_t side, const Parsed *parsed, const Quote *quote,
                                    ErrorRewrite *new) noexcept nogil:
    """Fill in `new` from the session of the quoted packet; return a DropReason, QUOTE_UNKNOWN, or -1."""
    cdef Table *t = p.table
    cdef uint64_t key0 = make_key0(quote.daddr, quote.saddr)
    cdef uint64_t key1 = make_key1(quote.protocol, answer_side(side, quote), quote.did, quote.sid)
    cdef long long ref = find_flow(t, key0, key1, <uint32_t>key_hash(t, key0, key1))
    cdef const Flow *flow
    if ref < 0:
        return QUOTE_UNKNOWN
    flow = &t.sessions[ref >> 1].flow[ref & 1]
    if not quote_in_window(&t.sessions[ref >> 1], ref & 1, quote):
        return NO_SESSION
    new.quoted_saddr = flow.daddr
    new.quoted_sid = flow.did
    new.quoted_daddr = flow.saddr
    new.quoted_did = flow.sid
    new.daddr = flow.daddr
    new.renumbered = False
    new.ref = ref
    new.saddr = flow.saddr if flow.saddr != quote.daddr else parsed.saddr
    return -1


cdef inline int find_quoted_mapping(Path *p, const Parsed *parsed, const Quote *quote,
                                    ErrorRewrite *new) noexcept nogil:
    """The same for an error from inside about a packet that came in through a mapping without a session."""
    cdef Table *t = p.table
    cdef int port_class = class_of(quote.protocol)
    cdef uint32_t mapping
    if t.current < 0 or port_class < 0 or (quote.protocol == PROTOCOL_ICMP and is_query(quote.transport[0])):
        return NO_SESSION
    mapping = find_internal(t, port_class, quote.daddr, quote.did,
                            <uint32_t>endpoint_hash(t, port_class, quote.daddr, quote.did))
    if mapping == NONE:
        return NO_SESSION
    new.saddr = mapping_address(t, mapping)
    new.daddr = parsed.daddr
    new.quoted_saddr = quote.saddr
    new.quoted_sid = quote.sid
    new.quoted_daddr = new.saddr
    new.quoted_did = <uint16_t>mapping
    new.renumbered = False
    new.ref = -1
    return -1


cdef inline int64_t quoted_tunnel_id(const Quote *quote) noexcept nogil:
    """Return the Call ID or SPI of a quoted packet, or -1 when it is of no tunnel."""
    if quote.protocol == PROTOCOL_ESP:
        return spi(quote.transport)
    if quote.protocol == PROTOCOL_GRE and is_pptp(quote.transport):
        return call_id(quote.transport)
    return -1


cdef inline int find_quoted_tunnel(Path *p, uint8_t side, const Parsed *parsed, const Quote *quote, int64_t id,
                                   ErrorRewrite *new) noexcept nogil:
    """Fill in `new` from the tunnel of a quoted GRE or ESP packet with this id, which is found as it left (C-48)."""
    cdef const Way *way
    cdef int64_t found
    if id < 0:
        return QUOTE_UNKNOWN
    found = find_quoted_way(&p.tunnels, &p.table.secret, quote.protocol, side, quote.saddr, quote.daddr, <uint32_t>id)
    if found < 0:
        return QUOTE_UNKNOWN
    way = &p.tunnels.rows[found >> 1].way[found & 1]
    new.quoted_saddr = <uint32_t>(way.key0 >> 32)
    new.quoted_daddr = <uint32_t>way.key0
    new.quoted_call_id = <uint16_t>way.original_id
    new.renumbered = way.renumbered
    new.daddr = new.quoted_saddr
    new.saddr = parsed.saddr if found & 1 == OUTBOUND else new.quoted_daddr
    new.ref = -1
    return -1


cdef inline void note_path_mtu(Table *t, const Parsed *parsed, const ErrorRewrite *new) noexcept nogil:
    """Remember a reported MTU for the direction of the quoted packet, for large sends whose segment size nobody tells us."""
    cdef Flow *quoted
    cdef uint16_t mtu = load16(parsed.transport + ICMP_MTU)
    if (new.ref < 0 or parsed.transport[0] != DESTINATION_UNREACHABLE or parsed.transport[1] != FRAGMENTATION_NEEDED
            or mtu < SMALLEST_MTU):
        return
    quoted = &t.sessions[new.ref >> 1].flow[1 - (new.ref & 1)]
    if quoted.path_mtu == 0 or mtu < quoted.path_mtu:
        quoted.path_mtu = mtu


cdef inline int turn_error_round(Path *p, const Parsed *parsed, const Quote *quote, ErrorRewrite *new) noexcept nogil:
    """Take an error from inside to an external address of ours on to the inside host behind it (RFC 5508 REQ-7)."""
    cdef Quote outside = quote[0]
    cdef ErrorRewrite turned
    cdef int reason
    outside.saddr = new.quoted_saddr
    outside.sid = new.quoted_sid
    outside.daddr = new.quoted_daddr
    outside.did = new.quoted_did
    reason = find_quoted_session(p, OUTSIDE, parsed, &outside, &turned)
    if reason == QUOTE_UNKNOWN:
        reason = find_quoted_tunnel(p, OUTSIDE, parsed, &outside,
                                    new.quoted_call_id if new.renumbered else quoted_tunnel_id(quote), &turned)
        if new.renumbered:
            turned.renumbered, turned.quoted_call_id = True, new.quoted_call_id
    if reason != -1:
        return NO_SESSION
    turned.saddr = new.saddr
    new[0] = turned
    return -1


cdef inline uint32_t rewrite_quoted_transport(const Quote *quote, const ErrorRewrite *new,
                                              uint32_t address_delta) noexcept nogil:
    """Write the quoted ids and, as far as it is quoted, their checksum; return the delta of all that for the ICMP sum."""
    cdef uint8_t *at = quote.transport
    cdef uint32_t ids = delta16(quote.sid, new.quoted_sid) + delta16(quote.did, new.quoted_did)
    cdef uint32_t total = 0
    cdef uint8_t *field = NULL
    cdef uint16_t before, after
    if sums_addresses(quote.protocol, quote.available):
        ids = 0
        if quote.protocol == PROTOCOL_DCCP or load16(at + UDP_CHECKSUM) != 0:
            field = at + UDP_CHECKSUM
    elif class_of(quote.protocol) < 0:
        if not new.renumbered:
            return 0
        before = load16(at + GRE_CALL_ID)
        store16(at + GRE_CALL_ID, new.quoted_call_id)
        return delta16(before, new.quoted_call_id)
    elif quote.protocol == PROTOCOL_ICMP:
        # one identifier; the quoted checksum is always there, within the first 8 octets
        store16(at + ICMP_IDENTIFIER, new.quoted_sid if is_query(at[0]) else new.quoted_did)
        field = at + ICMP_CHECKSUM
        address_delta = 0
    else:
        store16(at, new.quoted_sid)
        store16(at + 2, new.quoted_did)
        if quote.protocol == PROTOCOL_TCP and quote.available >= TCP_CHECKSUM + 2:
            field = at + TCP_CHECKSUM
        elif quote.protocol == PROTOCOL_UDP and load16(at + UDP_CHECKSUM) != 0:
            field = at + UDP_CHECKSUM
    total = ids
    if field != NULL:
        before = load16(field)
        after = update_full(before, fold(<uint64_t>ids + address_delta))
        if after == 0 and (quote.protocol == PROTOCOL_UDP or quote.protocol == PROTOCOL_UDP_LITE):
            after = 0xFFFF          # the reporting router saw what we sent, and a computed 0 is sent so (RFC 768)
        store16(field, after)
        total += delta16(before, after)
    return total


cdef inline void rewrite_error(Parsed *parsed, const Quote *quote, const ErrorRewrite *new) noexcept nogil:
    """Write `new` over the error and its quote, all checksums between included; the TTL is decremented by the caller."""
    cdef uint32_t quoted_delta = (delta32(quote.saddr, new.quoted_saddr) + delta32(quote.daddr, new.quoted_daddr))
    cdef uint32_t total
    cdef uint16_t before
    store32(quote.ip + IPV4_SOURCE, new.quoted_saddr)
    store32(quote.ip + IPV4_DESTINATION, new.quoted_daddr)
    before = load16(quote.ip + IPV4_CHECKSUM)
    update_full_at(quote.ip + IPV4_CHECKSUM, quoted_delta)
    total = quoted_delta + delta16(before, load16(quote.ip + IPV4_CHECKSUM))
    total += rewrite_quoted_transport(quote, new, quoted_delta)
    update_full_at(parsed.transport + ICMP_CHECKSUM, total)
    store32(parsed.ip + IPV4_SOURCE, new.saddr)
    store32(parsed.ip + IPV4_DESTINATION, new.daddr)
