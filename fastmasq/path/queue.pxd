# Into a link's sender: the header of the link before a packet, the virtio header where it is wanted, and whole checksums.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from fastmasq.path.packet cimport Packet
from fastmasq.path.links cimport Hop
from fastmasq.path.state cimport Path
from fastmasq.ring.abi cimport VNET_LENGTH, VnetHeader
from fastmasq.ring.ring cimport Frame, Sender, sender_queue
from fastmasq.wire cimport ethernet, ipv4, numbers
from fastmasq.wire.checksum cimport sum_octets
from fastmasq.wire.octets cimport store16


cdef inline void finish_header(uint8_t *ip, uint32_t header_length) noexcept nogil:
    """Compute the IPv4 header checksum anew."""
    store16(ip + ipv4.CHECKSUM, 0)
    store16(ip + ipv4.CHECKSUM, <uint16_t>~sum_octets(ip, header_length))


cdef inline void complete_checksum(Packet *packet) noexcept nogil:
    """Turn a partial checksum into a full one: the field already holds the sum of the pseudo-header."""
    cdef Frame *frame = packet.frame
    cdef uint8_t *start = frame.data + frame.vnet.csum_start
    cdef uint8_t *stop = packet.ip + packet.length
    cdef uint8_t *field = start + frame.vnet.csum_offset
    cdef uint16_t checksum
    if start < packet.transport or field + 2 > stop:
        return
    checksum = <uint16_t>~sum_octets(start, stop - start)
    if checksum == 0 and packet.protocol == numbers.UDP:
        checksum = 0xFFFF
    store16(field, checksum)
    frame.vnet.flags = 0
    packet.partial = False


cdef inline uint8_t *write_link_header(const Hop *hop, uint8_t *ip) noexcept nogil:
    """Put the link header before a packet, and return where the frame begins."""
    cdef uint8_t *start = ip - hop.header_length
    if hop.header_length:
        memcpy(start, hop.header, ethernet.LENGTH)
    return start


cdef inline void count_out(Path *p, const Hop *hop, uint32_t packets, uint32_t octets) noexcept nogil:
    p.traffic[hop.link].tx_packets += packets
    p.traffic[hop.link].tx_bytes += octets


cdef inline void queue_frame(Path *p, const Hop *hop, uint8_t *ip, uint32_t length, const VnetHeader *vnet,
                             uint16_t weight) noexcept nogil:
    """Put the link header and, where wanted, the virtio header before the packet at `ip`, and queue it; vnet may be NULL.

    weight: 1 where a packet ends with the frame, else a Weight.
    """
    cdef Sender *sender = p.senders[hop.link]
    cdef uint8_t *start = write_link_header(hop, ip)
    length += hop.header_length
    count_out(p, hop, 1, length)
    if sender.vnet:
        start -= VNET_LENGTH
        if vnet != NULL:
            memcpy(start, vnet, VNET_LENGTH)
        else:
            memset(start, 0, VNET_LENGTH)
        length += VNET_LENGTH
    sender_queue(sender, start, length, weight)
