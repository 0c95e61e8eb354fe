# While something is short, what nobody has answered goes first: of a flood that is all there is, of a host that is in use
# hardly anything.
#
# Short is: less than one part in SHORT is left of the sessions, of the rows for hosts, or of the external ports of a class.
# Once a second that is asked, and if it is so, one round over all rows closes the sessions that have heard nothing from
# their other end, and nothing from their own for PATIENCE_TICKS; ports and rows of hosts go with their last session. So
# room is made before somebody is refused, no packet pays for it, and nothing that is in use is given up for what is new
# (RFC 6888 REQ-11). Without shares (hosts.pxd) all keep what they have.

from libc.stdint cimport uint32_t

from fastmasq.table cimport mappings, rows, sessions
from fastmasq.table.rows cimport Session
from fastmasq.table.table cimport Table
from fastmasq.table.wheel cimport TICKS_PER_SECOND
from fastmasq.wire cimport numbers

cdef enum:
    SHORT = 3                   # one who takes all he can leaves a half: it must begin before others have that
    PATIENCE_TICKS = 4 * TICKS_PER_SECOND   # a SYN is sent again after 1, 2 and 4 seconds


cdef inline bint is_scarce(uint32_t left, uint32_t of_all) noexcept nogil:
    return left < of_all // SHORT


cdef inline bint is_short(const Table *t) noexcept nogil:
    cdef int port_class, pool
    if not t.limits.shares:
        return False
    if is_scarce(t.capacity - t.active, t.capacity) or is_scarce(t.host_capacity - t.hosts_in_use, t.host_capacity):
        return True
    if t.current < 0:
        return False
    for port_class in range(numbers.CLASS_COUNT):
        pool = mappings.pool_of(t.current, port_class)
        if is_scarce(mappings.ports_left(t, pool, False), t.pools[pool].allowed_count):
            return True
    return False


cdef inline bint is_unanswered(const Session *s) noexcept nogil:
    """Whether only the end that has begun a session has been heard; what has no ports, either end may have begun."""
    if (s.state == rows.TCP_SYN_SENT or s.state == rows.TCP_SYN_RECEIVED or s.state == rows.TCP_RESUMED
            or s.state == rows.TCP_UNANSWERED or s.state == rows.UDP_UNANSWERED):
        return True
    if s.state == rows.UDP_ACTIVE or s.state == rows.ICMP_ACTIVE:
        return not s.flags & rows.SESSION_REPLIED
    return s.state == rows.PLAIN_ACTIVE and (s.flow[rows.INBOUND].packets == 0 or s.flow[rows.OUTBOUND].packets == 0)


cdef inline bint waits_long(const Table *t, const Session *s, uint32_t tick) noexcept nogil:
    return <int>(tick - (s.expires - t.timeout[s.state])) > PATIENCE_TICKS


cdef inline void relieve(Table *t, uint32_t tick, int budget) noexcept nogil:
    """Go on with a round, or begin one when a second has passed and something is short; look at `budget` rows at most."""
    cdef const Session *s
    cdef int _i
    if tick // TICKS_PER_SECOND != t.short_second:
        t.short_second = tick // TICKS_PER_SECOND
        if t.short_rows == 0 and is_short(t):
            t.short_rows = t.fresh
    for _i in range(budget):
        if t.short_rows == 0:
            break
        t.short_rows -= 1
        s = &t.sessions[t.short_rows]
        if is_unanswered(s) and waits_long(t, s, tick):
            sessions.close_session(t, t.short_rows)
            t.expired += 1
