# Flows that the kernel may carry: which they are, and what the program that does it is told.
#
# What the program does with a packet has to be what the path would do. So it gets no session of which a packet must be seen
# here: none of whose ends turns round or is this host, none that a tracker reads, none while there are rules, triggers or marks.
# Whatever of the others is not plain, it leaves to us.

from libc.stdint cimport uint32_t

from fastmasq.path.carrier cimport Carrier
from fastmasq.path.state cimport Path
from fastmasq.table cimport carried, keys, rows, streams
from fastmasq.table.order cimport show_in_order
from fastmasq.table.rows cimport Flow, INBOUND, OUTBOUND, Session
from fastmasq.wire cimport numbers

cdef enum:
    # all that can be known of the ends of a connection
    ENDS_KNOWN = (rows.SESSION_REPLIED | rows.SESSION_SEEN_OUT | rows.SESSION_SEEN_IN | rows.SESSION_ACKED_OUT
                  | rows.SESSION_ACKED_IN)


cdef inline bint is_read(const Path *p, uint32_t row, const Flow *outbound) noexcept nogil:
    """Whether a session's packets are read: those of connections that are followed, and of ISAKMP."""
    if keys.key_protocol(outbound.key1) == numbers.TCP:
        return streams.is_marked(p.table.streams.followed, row)
    return keys.key_sid(outbound.key1) == numbers.ISAKMP_PORT and keys.key_did(outbound.key1) == numbers.ISAKMP_PORT


cdef inline bint may_be_carried(const Path *p, uint32_t row) noexcept nogil:
    cdef const Session *s = &p.table.sessions[row]
    if s.state == rows.TCP_ESTABLISHED:
        if s.flags & ENDS_KNOWN != ENDS_KNOWN:
            return False
    elif s.state != rows.UDP_ACTIVE:
        return False
    return (not s.flags & rows.SESSION_HAIRPIN and keys.key_side(s.flow[OUTBOUND].key1) == keys.INSIDE
            and keys.key_side(s.flow[INBOUND].key1) == keys.OUTSIDE and not is_read(p, row, &s.flow[OUTBOUND]))


cdef inline void offer(Path *p, uint32_t row) noexcept nogil:
    """Let the kernel carry a session from now on, if it may. One of a single packet is not worth it.

    The path has handled a packet of it: what outlives us of the session is as it is now.
    """
    cdef const Session *s = &p.table.sessions[row]
    if (p.table.carried[row].ticket == 0 and p.carrier.is_open and s.flow[OUTBOUND].packets + s.flow[INBOUND].packets > 1
            and may_be_carried(p, row)):
        carried.give_ticket(p.table, row)
    carried.keep(p.table, row)


cdef inline void tell_time(Path *p) noexcept nogil:
    """Have the program know of the tick, and of what may have become other with it."""
    cdef Carrier *carrier = p.carrier
    if carrier.tick == p.tick:
        return
    carrier.secret = p.table.secret
    carrier.index_mask = p.table.index.mask
    carrier.tcp_established = p.table.timeout[rows.TCP_ESTABLISHED]
    carrier.udp_active = p.table.timeout[rows.UDP_ACTIVE]
    carrier.identification_key = p.identification_key if p.renumbers else 0
    show_in_order()
    carrier.tick = p.tick
