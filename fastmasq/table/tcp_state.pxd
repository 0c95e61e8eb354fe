# What a TCP segment does to its session: the states of RFC 6146 section 3.5.2 as RFC 7857 section 2 asks, with resets
# and other state changes believed only when their numbers are plausible: of the sequence (RFC 5961 section 3), and of what is
# acknowledged (section 5.2). What is not believed passes for the end host to judge, and changes nothing here.
#
#                  out SYN                 in SYN
#   (no session) ----------> SYN_SENT ----------------> ESTABLISHED <---- any segment ---- TRANSITORY
#        |  out SYN+ACK                   any in          |   |  |                             ^
#        +-------------> SYN_RECEIVED ------------------->+   |  +--- reset in window, exact --+
#        |  out, mid-stream               any in          |   |
#        +-------------> RESUMED ------------------------>+   +-- FIN out --> FIN_OUT -- FIN in --+
#                                                             |                                   v
#                                                             +-- FIN in ---> FIN_IN -- FIN out -> FIN_BOTH
#   (no session) -- any in, to a forward --> UNANSWERED -- out SYN --> SYN_RECEIVED, -- any other out --> ESTABLISHED
#   SYN in TRANSITORY or FIN_BOTH: SYN_SENT again (RFC 6191, RFC 7857 section 2.3).
#
# Timeouts: ESTABLISHED, FIN_OUT and FIN_IN live for tcp_established (a half-closed connection may be busy for hours),
# all others for tcp_transitory, but UNANSWERED for a minute at most. Segments refresh their session in both directions,
# with these exceptions: in FIN_BOTH nothing refreshes; in SYN_SENT, SYN_RECEIVED, RESUMED and UNANSWERED only the inside does,
# so that strangers hold nothing open. For the same reason a stranger's SYN, sent again, and resets leave SYN_RECEIVED and
# UNANSWERED as they are.
#
# An acknowledgment is believed if the other end may have sent what it acknowledges, and not long ago. The other end may have
# sent a little more than has been seen here: of a segment in fragments only the first shows its numbers. An answer to a SYN
# must acknowledge it; a SYN alone that meets ours (a simultaneous open) proves nothing, and the SYN+ACK that follows it does.
#
# Departures: RESUMED is not in RFC 6146; it keeps a gateway's restart from cutting idle connections. A reset inside the
# window that is not exact is passed, but changes no state: the end host will challenge it (RFC 5961 section 3.2).

from libc.stdint cimport int32_t, uint8_t, uint32_t

from fastmasq.table.order cimport keep_order
from fastmasq.table.rows cimport (
    INBOUND, OUTBOUND, SESSION_ACKED_IN, SESSION_ACKED_OUT, SESSION_HAIRPIN, SESSION_REPLIED, SESSION_SEEN_IN,
    SESSION_SEEN_OUT, SESSION_UNSCALED_IN, SESSION_UNSCALED_OUT, Session, TCP_ESTABLISHED, TCP_FIN_BOTH, TCP_FIN_IN, TCP_FIN_OUT,
    TCP_RESUMED, TCP_SYN_RECEIVED, TCP_SYN_SENT, TCP_TRANSITORY, TCP_UNANSWERED, TcpEnd, UNKNOWN_SCALE,
)
from fastmasq.wire.tcp cimport ACK, FIN, MAXIMUM_SCALE, RST, SYN

cdef enum:
    WINDOW_SLACK = 66000        # octets an old but honest segment may lie behind the last acknowledgment, unscaled; and an
    #                             acknowledgment behind what the other end has sent (nf_conntrack's MAXACKWINCONST), or before it


cdef enum TcpVerdict:
    TCP_PASS = 0                # no state change, no refresh
    TCP_REFRESH = 1             # same state, timer restarted
    TCP_CHANGED = 2             # state changed, timer restarted for the new state
    TCP_OUT_OF_WINDOW = 3       # drop


cdef struct Segment:
    # numbers in host order; window as in the header, unscaled; scale as offered by a SYN, -1 without the option
    uint32_t seq
    uint32_t ack
    uint32_t window
    uint32_t last               # one past the last sequence number, SYN and FIN counted
    int scale
    uint8_t flags


cdef inline uint32_t later(uint32_t a, uint32_t b) noexcept nogil:
    return a if <int32_t>(a - b) > 0 else b


cdef inline uint8_t window_shift(const Session *s, int direction) noexcept nogil:
    """Return the scale of the windows that the end sending in `direction` offers; in force only if both SYNs had it."""
    cdef uint8_t scale = (s.scale & 0x0F) if direction == INBOUND else (s.scale >> 4)
    if s.flags & (SESSION_UNSCALED_OUT | SESSION_UNSCALED_IN):
        return 0
    return MAXIMUM_SCALE if scale == UNKNOWN_SCALE else scale


cdef inline void forget_end(Session *s, int direction, int scale) noexcept nogil:
    """Start the numbers of one end anew, for its SYN with this window scale (-1: none offered)."""
    cdef uint8_t nibble = <uint8_t>scale if scale >= 0 else 0
    if direction == INBOUND:
        s.flags &= ~(SESSION_SEEN_IN | SESSION_ACKED_IN | SESSION_UNSCALED_IN)
        s.flags |= SESSION_UNSCALED_IN if scale < 0 else 0
        s.scale = (s.scale & 0xF0) | nibble
    else:
        s.flags &= ~(SESSION_SEEN_OUT | SESSION_ACKED_OUT | SESSION_UNSCALED_OUT)
        s.flags |= SESSION_UNSCALED_OUT if scale < 0 else 0
        s.scale = (s.scale & 0x0F) | (nibble << 4)
    keep_order()


cdef inline void tcp_track(Session *s, int direction, const Segment *segment) noexcept nogil:
    """Note what this end says: its highest sequence number, and how far it lets the other end send."""
    cdef TcpEnd *end = &s.tcp[direction]
    cdef uint8_t seen = SESSION_SEEN_IN if direction == INBOUND else SESSION_SEEN_OUT
    cdef uint8_t acked = SESSION_ACKED_IN if direction == INBOUND else SESSION_ACKED_OUT
    cdef uint8_t shift = 0
    cdef uint32_t edge
    if segment.flags & SYN:
        forget_end(s, direction, segment.scale)
    else:
        shift = window_shift(s, direction)
    if s.flags & seen:
        end.end = later(segment.last, end.end)
    else:
        end.end = segment.last
        keep_order()
        s.flags |= seen
    if segment.flags & ACK:
        edge = segment.ack + (segment.window << shift)
        if s.flags & acked:
            end.ack = later(segment.ack, end.ack)
            end.edge = later(edge, end.edge)
        else:
            end.ack, end.edge = segment.ack, edge
            keep_order()
            s.flags |= acked


cdef inline bint fits_window(const Session *s, int direction, const Segment *segment) noexcept nogil:
    """Whether a segment begins where its receiver lets it and ends not too far behind what that has acknowledged.

    Unknown counts as yes. One octet past the window is what a sender asks a closed one with (RFC 9293 section 3.8.6.1).
    """
    cdef const TcpEnd *receiver = &s.tcp[1 - direction]
    cdef uint8_t acked = SESSION_ACKED_OUT if direction == INBOUND else SESSION_ACKED_IN
    if not s.flags & acked:
        return True
    return (<int32_t>(segment.seq - receiver.edge) <= 0
            and <int32_t>(segment.last - receiver.ack) >= -<int32_t>(<uint32_t>WINDOW_SLACK << window_shift(s, 1 - direction)))


cdef inline bint acknowledges(const Session *s, int direction, const Segment *segment) noexcept nogil:
    """Whether a segment acknowledges what the other end may have sent, and not long ago; unknown counts as yes.

    A SYN can only acknowledge a SYN, and the data that may be in it (RFC 7413).
    """
    cdef const TcpEnd *sender = &s.tcp[1 - direction]
    cdef uint8_t seen = SESSION_SEEN_OUT if direction == INBOUND else SESSION_SEEN_IN
    cdef int32_t ahead = <int32_t>(segment.ack - sender.end)
    if not segment.flags & ACK or not s.flags & seen:
        return True
    if segment.flags & SYN:
        return -WINDOW_SLACK <= ahead <= 0
    return -<int32_t>(<uint32_t>WINDOW_SLACK << window_shift(s, direction)) <= ahead <= WINDOW_SLACK


cdef inline bint is_plausible(const Session *s, int direction, const Segment *segment) noexcept nogil:
    return fits_window(s, direction, segment) and acknowledges(s, direction, segment)


cdef inline TcpVerdict tcp_reset(Session *s, int direction, const Segment *segment) noexcept nogil:
    cdef const TcpEnd *sender = &s.tcp[direction]
    cdef const TcpEnd *receiver = &s.tcp[1 - direction]
    cdef uint8_t sender_seen = SESSION_SEEN_IN if direction == INBOUND else SESSION_SEEN_OUT
    cdef uint8_t receiver_acked = SESSION_ACKED_OUT if direction == INBOUND else SESSION_ACKED_IN
    if s.state == TCP_SYN_SENT and direction == INBOUND:
        # answers a SYN: believed when it acknowledges it (RFC 9293 section 3.10.7.3)
        if segment.flags & ACK and segment.ack == receiver.end:
            s.state = TCP_TRANSITORY
            return TCP_CHANGED
        return TCP_OUT_OF_WINDOW
    if (s.flags & sender_seen and segment.seq == sender.end) or (
            s.flags & receiver_acked and segment.seq == receiver.ack):
        if (s.state == TCP_TRANSITORY or s.state == TCP_FIN_BOTH or s.state == TCP_SYN_RECEIVED
                or s.state == TCP_UNANSWERED):
            return TCP_PASS
        s.state = TCP_TRANSITORY
        return TCP_CHANGED
    if s.flags & receiver_acked and not (
            <int32_t>(segment.seq - receiver.ack) >= 0 and <int32_t>(segment.seq - receiver.edge) <= 0):
        return TCP_OUT_OF_WINDOW
    return TCP_PASS


cdef inline TcpVerdict tcp_synchronise(Session *s, int direction, const Segment *segment) noexcept nogil:
    if direction == OUTBOUND and (s.state == TCP_TRANSITORY or s.state == TCP_FIN_BOTH):
        s.flags &= SESSION_HAIRPIN
        keep_order()
        s.state = TCP_SYN_RECEIVED if segment.flags & ACK else TCP_SYN_SENT
        s.scale = (UNKNOWN_SCALE << 4) | UNKNOWN_SCALE
        tcp_track(s, direction, segment)
        return TCP_CHANGED
    if s.state != TCP_SYN_SENT and s.state != TCP_SYN_RECEIVED and s.state != TCP_RESUMED and s.state != TCP_UNANSWERED:
        return TCP_PASS             # a SYN on a live connection is for the end host to challenge
    if direction == OUTBOUND:
        if not acknowledges(s, OUTBOUND, segment):
            s.flags &= ~(SESSION_SEEN_IN | SESSION_ACKED_IN)   # it answers another SYN than the one that was noted
        tcp_track(s, OUTBOUND, segment)
        if s.state != TCP_UNANSWERED:
            return TCP_REFRESH
        s.state = TCP_SYN_RECEIVED
        return TCP_CHANGED
    if s.state == TCP_UNANSWERED:
        tcp_track(s, INBOUND, segment)
        return TCP_PASS             # sent again, by whom no proof has been seen that the answer reaches it
    if not segment.flags & ACK or not is_plausible(s, INBOUND, segment):
        return TCP_PASS
    tcp_track(s, INBOUND, segment)
    s.state = TCP_ESTABLISHED
    s.flags |= SESSION_REPLIED
    return TCP_CHANGED


cdef inline TcpVerdict tcp_segment(Session *s, int direction, const Segment *segment) noexcept nogil:
    """Advance the session for one segment from one end."""
    cdef uint8_t state = s.state
    cdef bint fin = segment.flags & FIN
    if segment.flags & RST:
        return tcp_reset(s, direction, segment)
    if segment.flags & SYN:
        return tcp_synchronise(s, direction, segment)
    if not is_plausible(s, direction, segment):
        return TCP_PASS
    tcp_track(s, direction, segment)
    if direction == INBOUND:
        s.flags |= SESSION_REPLIED
    if state == TCP_ESTABLISHED:
        if fin:
            s.state = TCP_FIN_OUT if direction == OUTBOUND else TCP_FIN_IN
            return TCP_CHANGED
        return TCP_REFRESH
    if state == TCP_FIN_OUT or state == TCP_FIN_IN:
        if fin and (state == TCP_FIN_OUT) == (direction == INBOUND):
            s.state = TCP_FIN_BOTH
            return TCP_CHANGED
        return TCP_REFRESH
    if state == TCP_FIN_BOTH:
        return TCP_PASS
    if state == TCP_TRANSITORY:
        s.state = TCP_ESTABLISHED
        return TCP_CHANGED
    if state == TCP_UNANSWERED:
        if direction == INBOUND:
            return TCP_PASS
        s.state = TCP_FIN_OUT if fin else TCP_ESTABLISHED
        return TCP_CHANGED
    # SYN_SENT, SYN_RECEIVED, RESUMED: the inside refreshes, the outside establishes
    if direction == OUTBOUND:
        return TCP_REFRESH
    if state == TCP_SYN_SENT:
        return TCP_PASS             # an acknowledgment without SYN is a challenge, not an answer
    s.state = TCP_ESTABLISHED
    return TCP_CHANGED
