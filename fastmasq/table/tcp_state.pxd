# What a TCP segment does to its session: the states of RFC 6146 section 3.5.2 as RFC 7857 section 2 asks, with resets
# and other state changes believed only when their sequence numbers are plausible (RFC 5961 section 3).
#
#                  out SYN                 in SYN
#   (no session) ----------> SYN_SENT ----------------> ESTABLISHED <---- any segment ---- TRANSITORY
#        |  out SYN+ACK                   any in          |   |  |                             ^
#        +-------------> SYN_RECEIVED ------------------->+   |  +--- reset in window, exact --+
#        |  out, mid-stream               any in          |   |
#        +-------------> RESUMED ------------------------>+   +-- FIN out --> FIN_OUT -- FIN in --+
#                                                             |                                   v
#                                                             +-- FIN in ---> FIN_IN -- FIN out -> FIN_BOTH
#   SYN in TRANSITORY or FIN_BOTH: SYN_SENT again (RFC 6191, RFC 7857 section 2.3).
#
# Timeouts: ESTABLISHED, FIN_OUT and FIN_IN live for tcp_established (a half-closed connection may be busy for hours),
# all others for tcp_transitory. Segments refresh their session in both directions, with these exceptions: in FIN_BOTH
# nothing refreshes; in SYN_SENT, SYN_RECEIVED and RESUMED only the inside does, so that strangers hold nothing open.
#
# Departures: RESUMED is not in RFC 6146; it keeps a gateway's restart from cutting idle connections. A reset inside the
# window that is not exact is passed, but changes no state: the end host will challenge it (RFC 5961 section 3.2).

from libc.stdint cimport int32_t, uint8_t, uint32_t

from fastmasq.table.entry cimport (
    INBOUND, OUTBOUND, SESSION_REPLIED, SESSION_SEEN_IN, SESSION_SEEN_OUT, Session, TCP_ESTABLISHED, TCP_FIN_BOTH, TCP_FIN_IN,
    TCP_FIN_OUT, TCP_RESUMED, TCP_SYN_RECEIVED, TCP_SYN_SENT, TCP_TRANSITORY, TcpEnd, UNKNOWN_SCALE,
)
from fastmasq.wire.tcp cimport ACK, FIN, MAXIMUM_SCALE, RST, SYN

cdef enum:
    WINDOW_SLACK = 66000        # octets an old but honest segment may lie behind the last acknowledgment, unscaled


cdef enum TcpVerdict:
    TCP_PASS = 0                # no state change, no refresh
    TCP_REFRESH = 1             # same state, timer restarted
    TCP_CHANGED = 2             # state changed, timer restarted for the new state
    TCP_OUT_OF_WINDOW = 3       # drop


cdef inline uint32_t later(uint32_t a, uint32_t b) noexcept nogil:
    return a if <int32_t>(a - b) > 0 else b


cdef inline void tcp_track(Session *s, int direction, uint8_t flags, uint32_t seq, uint32_t ack, uint32_t window,
                           uint32_t length, uint8_t scale) noexcept nogil:
    """Note what this end says: its highest sequence number and how far it lets the other end send."""
    cdef TcpEnd *end = &s.tcp[direction]
    cdef uint8_t seen = SESSION_SEEN_IN if direction == INBOUND else SESSION_SEEN_OUT
    cdef uint8_t shift = (s.scale & 0x0F) if direction == INBOUND else (s.scale >> 4)
    cdef uint32_t last = seq + length
    if flags & SYN:
        last += 1
        shift = 0
        if direction == INBOUND:
            s.scale = (s.scale & 0xF0) | scale
        else:
            s.scale = (s.scale & 0x0F) | (scale << 4)
    elif shift == UNKNOWN_SCALE:
        shift = MAXIMUM_SCALE
    if flags & FIN:
        last += 1
    if not s.flags & seen or flags & SYN:
        s.flags |= seen
        end.end = last
        end.ack = ack if flags & ACK else 0
        end.edge = end.ack + (window << shift) if flags & ACK else 0
        return
    end.end = later(last, end.end)
    if flags & ACK:
        end.ack = later(ack, end.ack)
        end.edge = later(ack + (window << shift), end.edge)


cdef inline bint tcp_plausible(const Session *s, int direction, uint32_t seq, uint32_t last) noexcept nogil:
    """Whether a segment from `direction` fits what its receiver has acknowledged and offered; unknown counts as yes."""
    cdef const TcpEnd *receiver = &s.tcp[1 - direction]
    cdef uint8_t seen = SESSION_SEEN_OUT if direction == INBOUND else SESSION_SEEN_IN
    cdef uint8_t shift = (s.scale >> 4) if direction == INBOUND else (s.scale & 0x0F)
    if not s.flags & seen or receiver.edge == 0:
        return True
    if shift == UNKNOWN_SCALE:
        shift = MAXIMUM_SCALE
    return (<int32_t>(last - receiver.edge) <= 0
            and <int32_t>(last - receiver.ack) >= -<int32_t>(<uint32_t>WINDOW_SLACK << shift))


cdef inline TcpVerdict tcp_reset(Session *s, int direction, uint8_t flags, uint32_t seq, uint32_t ack) noexcept nogil:
    cdef const TcpEnd *sender = &s.tcp[direction]
    cdef const TcpEnd *receiver = &s.tcp[1 - direction]
    cdef uint8_t seen_sender = SESSION_SEEN_IN if direction == INBOUND else SESSION_SEEN_OUT
    cdef uint8_t seen_receiver = SESSION_SEEN_OUT if direction == INBOUND else SESSION_SEEN_IN
    cdef bint exact
    if s.state == TCP_SYN_SENT and direction == INBOUND:
        # answers a SYN: believed when it acknowledges it (RFC 9293 section 3.10.7.3)
        if flags & ACK and ack == receiver.end:
            s.state = TCP_TRANSITORY
            return TCP_CHANGED
        return TCP_OUT_OF_WINDOW
    exact = ((s.flags & seen_sender and seq == sender.end)
             or (s.flags & seen_receiver and receiver.edge and seq == receiver.ack))
    if exact:
        if s.state == TCP_TRANSITORY or s.state == TCP_FIN_BOTH:
            return TCP_PASS
        s.state = TCP_TRANSITORY
        return TCP_CHANGED
    if s.flags & seen_receiver and receiver.edge and not (
            <int32_t>(seq - receiver.ack) >= 0 and <int32_t>(seq - receiver.edge) <= 0):
        return TCP_OUT_OF_WINDOW
    return TCP_PASS


cdef inline TcpVerdict tcp_segment(Session *s, int direction, uint8_t flags, uint32_t seq, uint32_t ack, uint32_t window,
                                   uint32_t length, uint8_t scale) noexcept nogil:
    """Advance the session for one segment; sequence numbers in host order, window unscaled, length of the payload."""
    cdef uint8_t state = s.state
    cdef uint32_t last = seq + length + (1 if flags & FIN else 0)
    cdef bint plausible
    if flags & RST:
        return tcp_reset(s, direction, flags, seq, ack)
    if flags & SYN:
        if direction == OUTBOUND and (state == TCP_TRANSITORY or state == TCP_FIN_BOTH):
            s.state = TCP_SYN_SENT
            s.flags &= ~(SESSION_SEEN_OUT | SESSION_SEEN_IN | SESSION_REPLIED)
            s.scale = (UNKNOWN_SCALE << 4) | UNKNOWN_SCALE
            tcp_track(s, direction, flags, seq, ack, window, length, scale)
            return TCP_CHANGED
        if state == TCP_SYN_SENT or state == TCP_SYN_RECEIVED or state == TCP_RESUMED:
            tcp_track(s, direction, flags, seq, ack, window, length, scale)
            if direction == OUTBOUND:
                return TCP_REFRESH
            s.state = TCP_ESTABLISHED
            s.flags |= SESSION_REPLIED
            return TCP_CHANGED
        return TCP_PASS          # a SYN on a live connection is for the end host to challenge
    plausible = tcp_plausible(s, direction, seq, last)
    if not plausible:
        return TCP_PASS
    tcp_track(s, direction, flags, seq, ack, window, length, scale)
    if direction == INBOUND:
        s.flags |= SESSION_REPLIED
    if state == TCP_ESTABLISHED:
        if flags & FIN:
            s.state = TCP_FIN_OUT if direction == OUTBOUND else TCP_FIN_IN
            return TCP_CHANGED
        return TCP_REFRESH
    if state == TCP_FIN_OUT or state == TCP_FIN_IN:
        if flags & FIN and (state == TCP_FIN_OUT) == (direction == INBOUND):
            s.state = TCP_FIN_BOTH
            return TCP_CHANGED
        return TCP_REFRESH
    if state == TCP_FIN_BOTH:
        return TCP_PASS
    if state == TCP_TRANSITORY:
        s.state = TCP_ESTABLISHED
        return TCP_CHANGED
    # SYN_SENT, SYN_RECEIVED, RESUMED: the inside refreshes, the outside establishes
    if direction == OUTBOUND:
        return TCP_REFRESH
    if state == TCP_SYN_SENT:
        return TCP_PASS          # an acknowledgment without SYN is a challenge, not an answer
    s.state = TCP_ESTABLISHED
    return TCP_CHANGED
