# Segments of one TCP stream that came one after the other leave as one large send (what the kernel's GRO does on cards).
#
# A sender without segmentation offload hands us a packet a segment, and each costs a system call's share, a trip through
# the kernel's sending code and, over veth, a softirq of its receiver. Segments of a batch that follow each other and
# differ in nothing but sequence number and payload are therefore sent as one frame with a virtio header; the link, or the
# kernel for it, cuts it into the same segments again. Nothing waits: what a batch has gathered leaves with the batch, and
# a packet of a stream never overtakes an earlier one, since whatever does not continue a gathering ends it first.
#
# The rules are those of the kernel's GRO: same headers and options, acknowledgment and window; every segment but the last
# of one size. The large send's checksum is computed anew, so only segments whose checksum is right are taken: a wrong one
# travels alone, and stays wrong.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from fastmasq.path cimport verdict
from fastmasq.path.packet cimport Packet
from fastmasq.path.state cimport GATHERS, GATHER_SEGMENTS, Gather, Path
from fastmasq.ring.abi cimport GSO_NONE, GSO_TCPV4, VNET_DATA_VALID, VNET_LENGTH, VNET_NEEDS_CSUM, VnetHeader
from fastmasq.ring.ring cimport Sender, sender_append, sender_queue, sender_reserve
from fastmasq.wire cimport ethernet, ipv4, numbers, tcp
from fastmasq.wire.checksum cimport delta16, fold, sum_octets, sum_pseudo_header, update_full_at
from fastmasq.wire.octets cimport load16, load32, store16

cdef enum:
    LEAST_PAYLOAD = 256         # octets: smaller segments are somebody typing
    LARGEST_PACKET = 65535


cdef inline bint checksum_is_right(const Packet *packet) noexcept nogil:
    """Whether the TCP checksum may be computed anew: partial, vouched for by the device, or verified here."""
    cdef uint32_t length = packet.length - packet.header_length
    if packet.partial or packet.frame.vnet.flags & VNET_DATA_VALID:
        return True
    return fold(<unsigned long long>sum_pseudo_header(load32(packet.ip + ipv4.SOURCE), load32(packet.ip + ipv4.DESTINATION),
                                                      numbers.TCP, <uint16_t>length)
                + sum_octets(packet.transport, length)) == 0xFFFF


cdef inline bint may_gather(const Path *p, const Packet *packet, uint32_t payload) noexcept nogil:
    """Whether this is a plain segment of data, for a link that takes large sends.

    Plain: no options in the IPv4 header, no flag but ACK and PSH, no need of fragments.
    """
    return (payload >= LEAST_PAYLOAD and p.senders[packet.hop.link].vnet and packet.length <= packet.hop.mtu
            and packet.header_length == ipv4.MINIMUM and packet.frame.vnet.gso_type == GSO_NONE
            and packet.transport[tcp.FLAGS] & ~tcp.PSH == tcp.ACK)


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


cdef inline void make_large(Gather *g, VnetHeader *vnet) noexcept nogil:
    """Turn the first segment's headers into those of the whole, and describe the large send."""
    cdef uint32_t length = g.headers + g.payload
    cdef uint16_t before = load16(g.ip + ipv4.TOTAL_LENGTH)
    store16(g.ip + ipv4.TOTAL_LENGTH, <uint16_t>length)
    update_full_at(g.ip + ipv4.CHECKSUM, delta16(before, <uint16_t>length))
    store16(g.tcp + tcp.CHECKSUM,
            sum_pseudo_header(load32(g.ip + ipv4.SOURCE), load32(g.ip + ipv4.DESTINATION), numbers.TCP,
                              <uint16_t>(length - ipv4.MINIMUM)))
    vnet.flags = VNET_NEEDS_CSUM
    vnet.gso_type = GSO_TCPV4
    vnet.hdr_len = <uint16_t>(g.hop.header_length + g.headers)
    vnet.gso_size = g.size
    vnet.csum_start = <uint16_t>(g.hop.header_length + ipv4.MINIMUM)
    vnet.csum_offset = tcp.CHECKSUM


cdef inline void make_single(const Gather *g, VnetHeader *vnet) noexcept nogil:
    """Describe a segment that stayed alone: as it came."""
    memset(vnet, 0, VNET_LENGTH)
    if g.partial:
        vnet.flags = VNET_NEEDS_CSUM
        vnet.csum_start = <uint16_t>(g.hop.header_length + ipv4.MINIMUM)
        vnet.csum_offset = tcp.CHECKSUM


cdef inline void send_gathered(Path *p, Gather *g) noexcept nogil:
    """Queue what is gathered: headers and first payload as they lie in their frame, the other payloads behind them."""
    cdef Sender *sender = p.senders[g.hop.link]
    cdef uint8_t *start = g.ip - g.hop.header_length
    cdef uint32_t length = g.hop.header_length + g.headers
    cdef int i
    if g.hop.header_length:
        memcpy(start, g.hop.header, ethernet.LENGTH)
    if g.segments > 1:
        make_large(g, <VnetHeader *>(start - VNET_LENGTH))
        p.notes[verdict.NOTE_GATHERED] += g.segments
    else:
        make_single(g, <VnetHeader *>(start - VNET_LENGTH))
    p.traffic[g.hop.link].tx_packets += g.segments
    p.traffic[g.hop.link].tx_bytes += g.segments * length + g.payload
    sender_reserve(sender, g.segments)
    sender_queue(sender, start - VNET_LENGTH, VNET_LENGTH + length + <uint32_t>g.pieces[0].iov_len, g.segments)
    for i in range(1, g.segments):
        sender_append(sender, g.pieces[i].iov_base, <uint32_t>g.pieces[i].iov_len)
    g.segments = 0
    p.gathering -= 1


cdef inline Gather *find_gather(Path *p, const Packet *packet) noexcept nogil:
    cdef int i
    if p.gathering:
        for i in range(GATHERS):
            if is_of(&p.gathers[i], packet):
                return &p.gathers[i]
    return NULL


cdef inline Gather *free_gather(Path *p) noexcept nogil:
    """Return an unused row; when all are in use, one is sent on for it, each in its turn."""
    cdef int i
    if p.gathering == GATHERS:
        p.gather_turn = (p.gather_turn + 1) % GATHERS
        send_gathered(p, &p.gathers[p.gather_turn])
    for i in range(GATHERS):
        if p.gathers[i].segments == 0:
            break
    p.gathering += 1
    return &p.gathers[i]


cdef inline bint gather(Path *p, Packet *packet) noexcept nogil:
    """Take over a translated TCP packet to be sent with its neighbours; False: send it by itself.

    Whatever was gathered of its stream and cannot go on with it has been queued then.
    """
    cdef uint32_t headers = packet.header_length + tcp.header_length(packet.transport)
    cdef uint32_t payload = packet.length - headers
    cdef Gather *g = find_gather(p, packet)
    if not may_gather(p, packet, payload) or not checksum_is_right(packet):
        if g != NULL:
            send_gathered(p, g)
        return False
    if g != NULL and continues(g, packet, payload):
        take_segment(g, packet.ip + headers, payload)
        g.tcp[tcp.FLAGS] |= packet.transport[tcp.FLAGS]
    else:
        if g != NULL:
            send_gathered(p, g)
        g = free_gather(p)
        begin_gather(g, packet, headers, payload)
    if payload < g.size or packet.transport[tcp.FLAGS] & tcp.PSH:
        send_gathered(p, g)
    return True


cdef inline void send_all_gathered(Path *p) noexcept nogil:
    """Queue everything gathered: the end of a batch."""
    cdef int i
    if p.gathering:
        for i in range(GATHERS):
            if p.gathers[i].segments:
                send_gathered(p, &p.gathers[i])
