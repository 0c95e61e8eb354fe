# What an ICMP error quotes, and whose that was: the packet quoted inside is looked up as its own answer would be.
#
# An error that arrives on a link quotes a packet that left on it. Swapping the quote's ends gives the key of the flow
# that the answer to it would match, and what that flow writes is what must be written here: its new source becomes the
# quote's destination, its new destination the quote's source and the destination of the error itself. The outer source
# is kept (any router may report, RFC 4787 REQ-12a) unless the flow hides its source, i.e. the error comes from inside
# (RFC 5508 REQ-5: also when an inner router reports).

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from fastmasq.path cimport punts, trackers, tunnels, verdict
from fastmasq.path.packet cimport Packet
from fastmasq.path.state cimport Path
from fastmasq.path.tunnels cimport Way
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport keys, mappings, rows, sessions, streams
from fastmasq.table.keys cimport Ends
from fastmasq.table.rows cimport Flow, Session
from fastmasq.table.table cimport Table
from fastmasq.wire cimport esp, gre, icmp, ipv4, numbers, tcp
from fastmasq.wire.checksum cimport is_right_header, sum_octets
from fastmasq.wire.octets cimport load16, load32

cdef enum:
    LARGEST_WINDOW = 0x40000000  # RFC 7323: octets in flight at the most
    UNKNOWN = -10               # instead of an Outcome: nothing here has sent the quoted packet


cdef struct Quote:
    uint8_t *ip
    uint8_t *transport
    uint32_t available          # octets of transport that are quoted
    uint8_t protocol
    Ends ends

cdef struct Rewrite:
    # what to write over the error and its quote
    uint32_t saddr
    uint32_t daddr
    Ends quoted
    uint32_t number             # of a TCP segment of a session
    uint16_t quoted_call_id     # to write if renumbered
    bint renumbered
    int64_t ref                 # of the flow that the answer to the quoted packet would match, or -1


# -- reading it ------------------------------------------------------------------------------------------------------

cdef inline Outcome parse_ids(Quote *quote) noexcept nogil:
    """Fill in the ids of a quoted packet; without ports they are 0."""
    cdef const uint8_t *at = quote.transport
    if quote.protocol == numbers.TCP or quote.protocol == numbers.UDP:
        quote.ends.sid = load16(at)
        quote.ends.did = load16(at + 2)
    elif quote.protocol != numbers.ICMP:
        quote.ends.sid = quote.ends.did = 0
    elif icmp.is_query(at[icmp.TYPE]):
        quote.ends.sid = load16(at + icmp.IDENTIFIER)
        quote.ends.did = at[icmp.TYPE]
    elif icmp.is_reply(at[icmp.TYPE]):
        quote.ends.sid = icmp.query_of(at[icmp.TYPE])
        quote.ends.did = load16(at + icmp.IDENTIFIER)
    else:
        return verdict.NO_SESSION
    return verdict.GOES_ON


cdef inline Outcome parse_quote(const Packet *packet, Quote *quote) noexcept nogil:
    """Check an ICMP error and the packet in it (RFC 5508 REQ-3)."""
    cdef uint8_t *at = packet.transport
    cdef uint32_t length = packet.length - packet.header_length
    cdef uint32_t available = length - icmp.LENGTH
    cdef uint32_t header_length
    cdef Outcome outcome
    if sum_octets(at, length) != 0xFFFF:
        return verdict.BAD_ICMP_CHECKSUM
    if available < ipv4.MINIMUM:
        return verdict.BAD_QUOTED_HEADER
    quote.ip = at + icmp.LENGTH
    header_length = (quote.ip[0] & 0x0F) * 4
    if quote.ip[0] >> 4 != 4 or header_length < ipv4.MINIMUM or available < header_length + 8:
        return verdict.BAD_QUOTED_HEADER
    if not is_right_header(quote.ip, header_length) or load16(quote.ip + ipv4.FRAGMENT) & ipv4.OFFSET_MASK:
        return verdict.BAD_QUOTED_HEADER
    if at[icmp.TYPE] == icmp.DESTINATION_UNREACHABLE and at[icmp.CODE] == icmp.FRAGMENTATION_NEEDED:
        # RFC 1191 section 4: zero means an old router that does not tell
        if load16(at + icmp.MTU) != 0 and load16(at + icmp.MTU) < ipv4.LEAST_MTU:
            return verdict.BAD_MTU_IN_ICMP
    quote.transport = quote.ip + header_length
    quote.available = available - header_length
    quote.protocol = quote.ip[ipv4.PROTOCOL]
    quote.ends.saddr = load32(quote.ip + ipv4.SOURCE)
    quote.ends.daddr = load32(quote.ip + ipv4.DESTINATION)
    outcome = parse_ids(quote)
    if outcome != verdict.GOES_ON:
        return outcome
    # only the sender of the quoted packet may be told of it
    return verdict.GOES_ON if packet.ends.daddr == quote.ends.saddr else verdict.NO_SESSION


# -- whose it was ----------------------------------------------------------------------------------------------------

cdef inline uint32_t number_before(const Table *t, uint32_t row, int direction, uint32_t number) noexcept nogil:
    """Return the number with which a segment came that has left with this one, in a direction of a TCP session."""
    cdef uint32_t stream = streams.stream_of(&t.streams, row)
    return streams.stands_for(&t.streams, stream, direction, number) if stream else number


cdef inline bint quote_in_window(const Session *s, int direction, const Quote *quote, uint32_t number) noexcept nogil:
    """Whether a quoted TCP segment was sent by us not long ago (RFC 5927 section 4.1); unknown counts as yes.

    direction is the flow's that the answer to the quoted segment would match, so the segment went the other way; number:
    the one that it came with. Where streams are edited, what the inside sends and hears is tracked.
    """
    cdef uint8_t seen = rows.SESSION_SEEN_OUT if direction == rows.INBOUND else rows.SESSION_SEEN_IN
    cdef uint32_t behind
    if quote.protocol != numbers.TCP or not s.flags & seen:
        return True
    behind = s.tcp[1 - direction].end - (number if direction == rows.INBOUND else load32(quote.transport + tcp.SEQUENCE))
    return behind <= LARGEST_WINDOW


cdef inline uint8_t answer_side(uint8_t side, const Quote *quote) noexcept nogil:
    """Return the side in the key of the answer to a quoted packet: the answer to an ICMP query is a reply."""
    if quote.protocol == numbers.ICMP and icmp.is_query(quote.transport[icmp.TYPE]):
        return side | keys.KEY_REPLY
    return side


cdef inline Outcome find_session(const Path *p, uint8_t side, const Packet *packet, const Quote *quote,
                                 Rewrite *new) noexcept nogil:
    """Fill in `new` from the session of the quoted packet; UNKNOWN without one."""
    cdef Table *t = p.table
    cdef int64_t ref = sessions.find_between(t, quote.protocol, answer_side(side, quote), keys.turned(quote.ends))
    cdef int direction = rows.direction_of(ref)
    cdef const Flow *flow
    if ref < 0:
        return UNKNOWN
    flow = sessions.flow_at(t, ref)
    if quote.protocol == numbers.TCP:
        new.number = number_before(t, rows.row_of(ref), 1 - direction, load32(quote.transport + tcp.SEQUENCE))
    if not quote_in_window(&t.sessions[rows.row_of(ref)], direction, quote, new.number):
        return verdict.NO_SESSION
    new.quoted.saddr, new.quoted.sid = flow.daddr, flow.did
    new.quoted.daddr, new.quoted.did = flow.saddr, flow.sid
    new.daddr = flow.daddr
    new.renumbered = False
    new.ref = ref
    new.saddr = flow.saddr if flow.saddr != quote.ends.daddr else packet.ends.saddr
    return verdict.GOES_ON


cdef inline Outcome find_mapping(const Path *p, const Packet *packet, const Quote *quote, Rewrite *new) noexcept nogil:
    """The same for an error from inside about a packet that came in through a mapping without a session."""
    cdef Table *t = p.table
    cdef int port_class = rows.class_of(quote.protocol)
    cdef int external = mappings.external_for(t, quote.ends.daddr)
    cdef uint32_t mapping
    if external < 0 or port_class < 0 or (quote.protocol == numbers.ICMP and icmp.is_query(quote.transport[icmp.TYPE])):
        return verdict.NO_SESSION
    mapping = mappings.find_internal(t, external, port_class, quote.ends.daddr, quote.ends.did,
                                     mappings.endpoint_hash(t, port_class, quote.ends.daddr, quote.ends.did))
    if mapping == rows.NONE:
        return verdict.NO_SESSION
    new.saddr = mappings.mapping_address(t, mapping)
    new.daddr = packet.ends.daddr
    new.quoted = quote.ends
    new.quoted.daddr = new.saddr
    new.quoted.did = mappings.row_port(mapping)
    new.renumbered = False
    new.ref = -1
    return verdict.GOES_ON


cdef inline int64_t tunnel_id(const Quote *quote) noexcept nogil:
    """Return the Call ID or SPI of a quoted packet, or -1 when it is of no tunnel."""
    if quote.protocol == numbers.ESP:
        return esp.spi(quote.transport)
    if quote.protocol == numbers.GRE and gre.is_pptp(quote.transport):
        return gre.call_id(quote.transport)
    return -1


cdef inline Outcome find_tunnel(const Path *p, uint8_t side, const Packet *packet, const Quote *quote, int64_t id,
                                Rewrite *new) noexcept nogil:
    """The same from the tunnel of a quoted GRE or ESP packet with this id, which is found as it left (C-48)."""
    cdef const Way *way
    cdef int64_t found
    if id < 0:
        return UNKNOWN
    found = tunnels.find_quoted_way(&p.tunnels, &p.table.secret, quote.protocol, side, quote.ends.saddr, quote.ends.daddr,
                                    <uint32_t>id)
    if found < 0:
        return UNKNOWN
    way = tunnels.way_at(&p.tunnels, found)
    new.quoted.saddr = keys.key_saddr(way.key0)
    new.quoted.daddr = keys.key_daddr(way.key0)
    new.quoted_call_id = <uint16_t>way.original_id
    new.renumbered = way.renumbered
    new.daddr = new.quoted.saddr
    new.saddr = packet.ends.saddr if rows.direction_of(found) == rows.OUTBOUND else new.quoted.daddr
    new.ref = -1
    return verdict.GOES_ON


cdef inline Outcome find_session_or_tunnel(const Path *p, const Packet *packet, const Quote *quote, Rewrite *new) noexcept nogil:
    cdef Outcome outcome = find_session(p, packet.side, packet, quote, new)
    return find_tunnel(p, packet.side, packet, quote, tunnel_id(quote), new) if outcome == UNKNOWN else outcome


cdef inline bint is_asked_about(const Path *p, const Quote *quote) noexcept nogil:
    """Whether only a tracker can know whose a quoted packet was: ISAKMP, told by its cookies, and ESP not settled yet."""
    if quote.protocol == numbers.UDP:
        return p.follows_ipsec and trackers.are_isakmp(&quote.ends)
    return p.follows_ipsec and quote.protocol == numbers.ESP


cdef inline Outcome find_by_tracker(Path *p, const Packet *packet, const Quote *quote, Rewrite *new) noexcept nogil:
    """The same for what only a tracker knows, which is asked."""
    cdef Outcome outcome = trackers.ask_tracker(p, packet, punts.PUNT_QUOTE, -1)
    if outcome != verdict.GOES_ON:
        return outcome
    new.quoted = quote.ends
    if packet.side == keys.OUTSIDE:
        new.saddr, new.daddr = packet.ends.saddr, packet.answer.address
        new.quoted.saddr = packet.answer.address
    else:
        new.saddr, new.daddr = packet.answer.address, packet.ends.daddr
        new.quoted.daddr = packet.answer.address
    new.renumbered = False
    new.ref = -1
    return verdict.GOES_ON


cdef inline Outcome turn_round(const Path *p, const Packet *packet, const Quote *quote, Rewrite *new) noexcept nogil:
    """Take an error from inside to an external address of ours on to the inside host behind it (RFC 5508 REQ-7)."""
    cdef Quote outside = quote[0]
    cdef Rewrite turned
    cdef Outcome outcome
    outside.ends = new.quoted
    outcome = find_session(p, keys.OUTSIDE, packet, &outside, &turned)
    if outcome == UNKNOWN:
        outcome = find_tunnel(p, keys.OUTSIDE, packet, &outside,
                              new.quoted_call_id if new.renumbered else tunnel_id(quote), &turned)
        if new.renumbered:
            turned.renumbered, turned.quoted_call_id = True, new.quoted_call_id
    if outcome != verdict.GOES_ON:
        return verdict.NO_SESSION
    turned.saddr = new.saddr
    new[0] = turned
    return verdict.GOES_ON
