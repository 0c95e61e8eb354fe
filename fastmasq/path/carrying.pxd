# Flows that the kernel may carry: which they are, and what the program that does it is told.
#
# What the program does with a packet has to be what the path would do. So it gets no session of which a packet must be seen
# here: none of whose ends turns round or is this host, none that a tracker reads, none while there are triggers or marks.
# Whatever of the others is not plain, it leaves to us.
#
# Where there are rules, it carries packets of a flow whose verdict is remembered: they would match what those before have
# matched, and nothing would be done to them for it. The rules are told of them when somebody looks, or when the verdict is
# another.

from libc.stdint cimport uint32_t, uint64_t

from fastmasq.path cimport match
from fastmasq.path.carrier cimport Carrier
from fastmasq.path.packet cimport Packet
from fastmasq.path.remembered cimport CachedVerdict, Remembered, VerdictPath, generation_of
from fastmasq.path.state cimport Path
from fastmasq.table cimport carried, keys, rows, streams
from fastmasq.table.order cimport show_in_order
from fastmasq.table.rows cimport Carried, Flow, INBOUND, OUTBOUND, Session, Tally
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


# -- rules -----------------------------------------------------------------------------------------------------------

cdef inline void begin_rules(Path *p) noexcept nogil:
    """Have the program carry nothing by what rules have said so far."""
    p.carrier.rules += 1
    if p.carrier.rules == 0:
        p.carrier.rules = 1
    show_in_order()


cdef inline uint32_t rules_for(const Path *p, const Packet *packet, uint32_t ref) noexcept nogil:
    """Return the number of the rules by which the kernel may carry packets like this of its flow; 0 if they want to see them."""
    cdef const Remembered *r
    cdef const CachedVerdict *slot
    cdef const VerdictPath *path
    if p.chains == NULL:
        return p.carrier.rules
    r = &p.chains.remembered
    slot = &r.flows[ref]
    if (slot.generation != generation_of(r, p.generation) or slot.key0 != packet.key0 or slot.key1 != packet.key1
            or slot.link != packet.link):
        return 0
    path = &r.paths[slot.path]
    return p.carrier.rules if path.verdict == match.MASQ and path.tos_and == 0xFF and path.tos_xor == 0 else 0


cdef inline void charge(Path *p, uint32_t ref) noexcept nogil:
    """Tell the rows of rules that packets of a flow match of those that the kernel has carried since the last time."""
    cdef Remembered *r = &p.chains.remembered
    cdef const Carried *counted = &p.table.carried[rows.row_of(ref)]
    cdef Tally *tally = &p.table.tallies[rows.row_of(ref)]
    cdef int direction = rows.direction_of(ref)
    cdef uint64_t packets = counted.packets[direction] - tally.charged_packets[direction]
    cdef uint64_t octets = counted.octets[direction] - tally.charged_octets[direction]
    cdef VerdictPath *path
    if packets == 0 and octets == 0:
        return
    tally.charged_packets[direction] += packets
    tally.charged_octets[direction] += octets
    if r.flows[ref].generation >> 32 != r.generation:
        return
    path = &r.paths[r.flows[ref].path]
    path.admitted_packets += packets
    path.admitted_octets += octets
    path.sent_packets += packets
    path.sent_octets += octets


cdef inline void charge_all(Path *p) noexcept nogil:
    cdef uint32_t ref
    for ref in range(2 * p.table.fresh):
        charge(p, ref)


# -- sessions --------------------------------------------------------------------------------------------------------

cdef inline void forbid(Path *p, uint32_t row, int direction) noexcept nogil:
    """Have the kernel carry nothing of a flow until the path has sent a packet of it."""
    p.table.carried[row].rules[direction] = 0
    show_in_order()


cdef inline void offer(Path *p, const Packet *packet, uint32_t ref) noexcept nogil:
    """Let the kernel carry a session from now on, if it may. One of a single packet is not worth it.

    The path is about to send a packet of the flow `ref`: what outlives us of the session is as it is now.
    """
    cdef uint32_t row = rows.row_of(ref)
    cdef int direction = rows.direction_of(ref)
    cdef const Session *s = &p.table.sessions[row]
    p.table.tallies[row].octets[direction] += packet.length
    p.table.carried[row].rules[direction] = rules_for(p, packet, ref)
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
