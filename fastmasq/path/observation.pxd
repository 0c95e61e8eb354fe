# What a path that only observes remembers: whom inside hosts have asked, and the flows that it would have dropped packets of.
#
# The host's kernel masquerades meanwhile, so an answer comes to a port of the kernel's choice. That is nearly always the port
# which the inside host itself has sent from: with the remote endpoint it tells whose answer it is. The memory is a cache with
# one place for each hash: what is overwritten is asked again with the next session.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmasq.path cimport verdict
from fastmasq.path.packet cimport KIND_SESSION, Packet
from fastmasq.path.remembered cimport MATCHED
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport keys
from fastmasq.table.siphash cimport Secret, siphash
from fastmasq.wire cimport icmp, numbers

cdef enum:
    ASKED = 65536               # places for what inside hosts have asked
    DROPPED_FLOWS = 1024        # rows in all
    DROPPED_WAYS = 8            # rows for flows with one hash
    NO_RULE = 0xFFFFFFFFU


cdef struct Asked:
    # an inside host that has sent to a remote endpoint
    uint64_t ends               # remote address << 32 | its port or ICMP type << 16 | port or identifier sent from; 0: any
    uint32_t inside             # its address
    uint8_t protocol            # 0: an unused place
    uint8_t reserved[3]

cdef struct DroppedFlow:
    # what goes from one host to a port of another, and has been dropped for one reason; unused while packets is 0
    uint64_t packets
    uint32_t saddr
    uint32_t daddr
    uint32_t rule               # row of the chains that has decided, or NO_RULE
    uint16_t port               # of the destination, 0 without one; of ICMP the type
    uint8_t protocol
    uint8_t reason              # a drop reason
    uint8_t link                # it came by
    uint8_t has_port
    uint8_t reserved[6]

cdef struct Observation:
    Asked *asked                # [ASKED]
    DroppedFlow *dropped        # [DROPPED_FLOWS]
    uint64_t forgotten          # packets of flows whose row others have got since
    uint64_t until_ns           # frames that have come later, by the wall clock, are left to the next turn


# -- whom inside hosts have asked ------------------------------------------------------------------------------------

cdef inline Asked *place_of(Observation *o, const Secret *secret, uint8_t protocol, uint64_t ends) noexcept nogil:
    return &o.asked[siphash(secret, ends, protocol) & (ASKED - 1)]


cdef inline uint64_t asked_ends(uint32_t remote, uint16_t port, uint16_t own) noexcept nogil:
    return <uint64_t>remote << 32 | <uint32_t>port << 16 | own


cdef inline void remember(Observation *o, const Secret *secret, uint8_t protocol, uint64_t ends, uint32_t inside) noexcept nogil:
    cdef Asked *asked = place_of(o, secret, protocol, ends)
    asked.ends, asked.inside, asked.protocol = ends, inside, protocol


cdef inline void note_asked(Observation *o, const Secret *secret, const Packet *packet) noexcept nogil:
    """Remember who has sent a packet from inside, and to whom: a session that it opens or, dropped here, the kernel's."""
    remember(o, secret, packet.protocol, asked_ends(packet.ends.daddr, packet.ends.did, packet.ends.sid), packet.ends.saddr)
    remember(o, secret, packet.protocol, asked_ends(packet.ends.daddr, packet.ends.did, 0), packet.ends.saddr)


cdef inline uint32_t asked_by(Observation *o, const Secret *secret, uint8_t protocol, uint64_t ends) noexcept nogil:
    """Return the inside host that has asked so, 0 if none has or it is forgotten."""
    cdef const Asked *asked = place_of(o, secret, protocol, ends)
    return asked.inside if asked.ends == ends and asked.protocol == protocol else 0


# -- what would have been dropped ------------------------------------------------------------------------------------

cdef inline uint32_t rule_of(const Packet *packet, Outcome reason) noexcept nogil:
    """Return the row of the chains that has decided a packet's fate, if one has."""
    cdef int count
    if not verdict.INPUT_DENIED <= reason <= verdict.OUTPUT_REJECTED or packet.passage == NULL:
        return NO_RULE
    count = packet.passage.matched.count
    return packet.passage.matched.rows[count - 1] if 0 < count <= MATCHED else NO_RULE


cdef inline DroppedFlow describe_drop(const Packet *packet, Outcome reason) noexcept nogil:
    cdef DroppedFlow flow
    memset(&flow, 0, sizeof(DroppedFlow))
    flow.packets = 1
    flow.saddr, flow.daddr = packet.ends.saddr, packet.ends.daddr
    flow.rule = rule_of(packet, reason)
    flow.protocol = packet.protocol
    flow.reason = <uint8_t>reason
    flow.link = packet.link
    if packet.protocol == numbers.ICMP and not packet.is_fragment:
        flow.port, flow.has_port = packet.transport[icmp.TYPE], True
    elif packet.kind == KIND_SESSION and packet.protocol != numbers.ICMP:
        flow.port, flow.has_port = packet.ends.did, True
    return flow


cdef inline bint is_same(const DroppedFlow *one, const DroppedFlow *other) noexcept nogil:
    return (one.saddr == other.saddr and one.daddr == other.daddr and one.rule == other.rule and one.port == other.port
            and one.protocol == other.protocol and one.reason == other.reason and one.link == other.link
            and one.has_port == other.has_port and one.packets)


cdef inline void note_dropped(Observation *o, const Secret *secret, const Packet *packet, Outcome reason) noexcept nogil:
    """Count a packet that is dropped, if its headers are right, for its flow; where there is no row, the least gives way.

    Its answer comes all the same, since the kernel has sent it on.
    """
    cdef DroppedFlow flow
    cdef DroppedFlow *rows
    cdef DroppedFlow *least
    cdef int way
    if packet.door != verdict.GOES_ON:
        return
    if packet.side == keys.INSIDE and packet.kind == KIND_SESSION:
        note_asked(o, secret, packet)
    flow = describe_drop(packet, reason)
    rows = &o.dropped[siphash(secret, <uint64_t>flow.saddr << 32 | flow.daddr, <uint32_t>flow.port << 16 | flow.reason)
                      % (DROPPED_FLOWS // DROPPED_WAYS) * DROPPED_WAYS]
    least = rows
    for way in range(DROPPED_WAYS):
        if is_same(&rows[way], &flow):
            rows[way].packets += 1
            return
        if rows[way].packets < least.packets:
            least = &rows[way]
    o.forgotten += least.packets
    least[0] = flow


cdef inline void forget_rules(Observation *o) noexcept nogil:
    """Have what was dropped not name its rules any more: others have their rows now."""
    cdef int row
    for row in range(DROPPED_FLOWS):
        o.dropped[row].rule = NO_RULE
