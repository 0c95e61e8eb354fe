# What is gathered of a TCP stream, and which segment can follow it; gather.pxd has the rules and sends it.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

from fastmasq.path.links cimport Hop
from fastmasq.path.packet cimport Packet
from fastmasq.ring.abi cimport iovec
from fastmasq.wire cimport ipv4, tcp
from fastmasq.wire.octets cimport load16, load32

cdef enum:
    GATHERS = 8                 # TCP streams at once
    GATHER_SEGMENTS = 64        # of one large send
    LARGEST_PACKET = 65535


cdef struct Gather:
    # segments of one TCP stream to be sent as one; unused when segments is 0
    const Hop *hop
    uint8_t *ip                 # headers of the first segment, in its frame
    uint8_t *tcp
    uint32_t headers            # octets: IPv4 and TCP
    uint32_t payload            # octets, all segments together
    uint32_t next_sequence
    uint16_t size               # payload octets of every segment but the last
    bint partial                # the segments' checksums are partial
    int segments
    iovec pieces[GATHER_SEGMENTS]  # the segments' payloads

cdef struct Gathering:
    Gather rows[GATHERS]
    int count                   # of those in use
    int turn                    # who is sent on where there is no room


cdef inline bint is_of(const Gather *g, const Packet *packet) noexcept nogil:
    """Whether a packet, already translated, belongs to the gathering's stream."""
    return (g.segments != 0 and g.hop == packet.hop and load32(g.tcp) == load32(packet.transport)
            and memcmp(g.ip + ipv4.SOURCE, packet.ip + ipv4.SOURCE, 8) == 0)


cdef inline bint continues(const Gather *g, const Packet *packet, uint32_t payload) noexcept nogil:
    """Whether a segment of the same stream can follow what is gathered."""
    cdef const uint8_t *ip = packet.ip
    cdef const uint8_t *at = packet.transport
    return (load32(at + tcp.SEQUENCE) == g.next_sequence and payload <= g.size
            and g.segments < GATHER_SEGMENTS and g.headers + g.payload + payload <= LARGEST_PACKET
            and g.partial == packet.partial
            and load16(g.ip) == load16(ip)                                          # version, TOS
            and load16(g.ip + ipv4.FRAGMENT) == load16(ip + ipv4.FRAGMENT)
            and load16(g.ip + ipv4.TTL) == load16(ip + ipv4.TTL)
            and (load16(ip + ipv4.FRAGMENT) & ipv4.DONT_FRAGMENT
                 or load16(ip + ipv4.ID) == <uint16_t>(load16(g.ip + ipv4.ID) + g.segments))
            and load32(g.tcp + tcp.ACKNOWLEDGMENT) == load32(at + tcp.ACKNOWLEDGMENT)
            and g.tcp[tcp.DATA_OFFSET] == at[tcp.DATA_OFFSET] and load16(g.tcp + tcp.WINDOW) == load16(at + tcp.WINDOW)
            and memcmp(g.tcp + tcp.MINIMUM, at + tcp.MINIMUM, tcp.header_length(at) - tcp.MINIMUM) == 0)


cdef inline void take_segment(Gather *g, uint8_t *payload, uint32_t length) noexcept nogil:
    g.pieces[g.segments].iov_base = payload
    g.pieces[g.segments].iov_len = length
    g.segments += 1
    g.payload += length
    g.next_sequence += length


cdef inline void begin_gather(Gather *g, Packet *packet, uint32_t headers, uint32_t payload) noexcept nogil:
    g.hop = packet.hop
    g.ip = packet.ip
    g.tcp = packet.transport
    g.headers = headers
    g.size = <uint16_t>payload
    g.partial = packet.partial
    g.payload = 0
    g.segments = 0
    g.next_sequence = load32(packet.transport + tcp.SEQUENCE)
    take_segment(g, packet.ip + headers, payload)


cdef inline Gather *find(Gathering *g, const Packet *packet) noexcept nogil:
    """Return what is gathered of a packet's stream, or NULL."""
    cdef int i
    if g.count:
        for i in range(GATHERS):
            if is_of(&g.rows[i], packet):
                return &g.rows[i]
    return NULL


cdef inline Gather *next_to_go(Gathering *g) noexcept nogil:
    """Return the row that is to be sent on for another, each in its turn; NULL while one is unused."""
    if g.count < GATHERS:
        return NULL
    g.turn = (g.turn + 1) % GATHERS
    return &g.rows[g.turn]


cdef inline Gather *take_row(Gathering *g) noexcept nogil:
    """Take an unused row; there must be one."""
    cdef int i
    for i in range(GATHERS):
        if g.rows[i].segments == 0:
            break
    g.count += 1
    return &g.rows[i]


cdef inline void give_back(Gathering *g, Gather *row) noexcept nogil:
    row.segments = 0
    g.count -= 1
