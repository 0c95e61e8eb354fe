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
from libc.string cimport memset

from fastmasq.path cimport gathering, verdict
from fastmasq.path.gathering cimport GATHERS, Gather
from fastmasq.path.packet cimport Packet
from fastmasq.path.queue cimport count_out, write_link_header
from fastmasq.path.rewrite cimport checksum_is_right
from fastmasq.path.state cimport Path
from fastmasq.ring.abi cimport GSO_NONE, GSO_TCPV4, VNET_LENGTH, VNET_NEEDS_CSUM, VnetHeader
from fastmasq.ring.ring cimport Sender, sender_append, sender_queue, sender_reserve
from fastmasq.wire cimport ipv4, numbers, tcp
from fastmasq.wire.checksum cimport delta16, sum_pseudo_header, update_full_at
from fastmasq.wire.octets cimport load16, load32, store16

cdef enum:
    LEAST_PAYLOAD = 256         # octets: smaller segments are somebody typing


cdef inline bint may_gather(const Path *p, const Packet *packet, uint32_t payload) noexcept nogil:
    """Whether this is a plain segment of data, for a link that takes large sends.

    Plain: no options in the IPv4 header, no flag but ACK and PSH, no need of fragments, now or further on.
    """
    return (payload >= LEAST_PAYLOAD and p.senders[packet.hop.link].vnet and packet.length <= packet.hop.mtu
            and packet.header_length == ipv4.MINIMUM and packet.frame.vnet.gso_type == GSO_NONE
            and not packet.renumbered and packet.transport[tcp.FLAGS] & ~tcp.PSH == tcp.ACK)


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
    cdef uint8_t *start = write_link_header(g.hop, g.ip)
    cdef uint32_t length = g.hop.header_length + g.headers
    cdef int i
    if g.segments > 1:
        make_large(g, <VnetHeader *>(start - VNET_LENGTH))
        p.notes[verdict.NOTE_GATHERED] += g.segments
    else:
        make_single(g, <VnetHeader *>(start - VNET_LENGTH))
    count_out(p, g.hop, g.segments, g.segments * length + g.payload)
    sender_reserve(sender, g.segments)
    sender_queue(sender, start - VNET_LENGTH, VNET_LENGTH + length + <uint32_t>g.pieces[0].iov_len, g.segments)
    for i in range(1, g.segments):
        sender_append(sender, g.pieces[i].iov_base, <uint32_t>g.pieces[i].iov_len)
    gathering.give_back(&p.gathering, g)


cdef inline bint gather(Path *p, Packet *packet) noexcept nogil:
    """Take over a translated TCP packet to be sent with its neighbours; False: send it by itself.

    Whatever was gathered of its stream and cannot go on with it has been queued then.
    """
    cdef uint32_t headers = packet.header_length + tcp.header_length(packet.transport)
    cdef uint32_t payload = packet.length - headers
    cdef Gather *g = gathering.find(&p.gathering, packet)
    cdef Gather *other
    if not may_gather(p, packet, payload) or not checksum_is_right(packet):
        if g != NULL:
            send_gathered(p, g)
        return False
    if g != NULL and gathering.continues(g, packet, payload):
        gathering.take_segment(g, packet.ip + headers, payload)
        g.tcp[tcp.FLAGS] |= packet.transport[tcp.FLAGS]
    else:
        other = g if g != NULL else gathering.next_to_go(&p.gathering)
        if other != NULL:
            send_gathered(p, other)
        g = gathering.take_row(&p.gathering)
        gathering.begin_gather(g, packet, headers, payload)
    if payload < g.size or packet.transport[tcp.FLAGS] & tcp.PSH:
        send_gathered(p, g)
    return True


cdef inline void send_all_gathered(Path *p) noexcept nogil:
    """Queue everything gathered: the end of a batch."""
    cdef int i
    if p.gathering.count:
        for i in range(GATHERS):
            if p.gathering.rows[i].segments:
                send_gathered(p, &p.gathering.rows[i])
