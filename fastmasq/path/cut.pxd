# What a link cannot take whole: a large send cut into segments, and a packet without DF into fragments.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from fastmasq.path cimport verdict
from fastmasq.path.packet cimport Packet
from fastmasq.path.queue cimport complete_checksum, finish_header, queue_frame
from fastmasq.path.links cimport Hop
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.abi cimport GSO_UDP_L4, VNET_NEEDS_CSUM
from fastmasq.ring.ring cimport HEADROOM, SCRATCH_FRAME, Sender, WEIGHT_PIECE, sender_scratch
from fastmasq.wire cimport ipv4, numbers, tcp, udp
from fastmasq.wire.checksum cimport fold, sum_octets, sum_pseudo_header
from fastmasq.wire.octets cimport load16, load32, store16, store32


cdef inline void write_segment_header(uint8_t *ip, const Packet *packet, uint32_t headers, uint32_t offset,
                                      uint32_t payload, int number) noexcept nogil:
    """Copy the headers of a large send for the segment with `payload` octets from `offset` on; all but checksums are right."""
    cdef uint8_t *at = ip + packet.header_length
    memcpy(ip, packet.ip, headers)
    store16(ip + ipv4.TOTAL_LENGTH, <uint16_t>(headers + payload))
    store16(ip + ipv4.ID, <uint16_t>(load16(packet.ip + ipv4.ID) + number))
    if packet.protocol == numbers.TCP:
        store32(at + tcp.SEQUENCE, load32(at + tcp.SEQUENCE) + offset)
        if headers + offset + payload < packet.length:
            at[tcp.FLAGS] &= ~(tcp.FIN | tcp.PSH)
        if number:
            at[tcp.FLAGS] &= ~tcp.CWR
    else:
        store16(at + udp.LENGTH, <uint16_t>(headers - packet.header_length + payload))


cdef inline void finish_transport(uint8_t *ip, uint32_t header_length, uint32_t length) noexcept nogil:
    """Compute the TCP or UDP checksum of a whole packet anew."""
    cdef uint8_t *transport = ip + header_length
    cdef uint8_t *field = transport + (tcp.CHECKSUM if ip[ipv4.PROTOCOL] == numbers.TCP else udp.CHECKSUM)
    cdef uint16_t checksum
    store16(field, 0)
    checksum = <uint16_t>~fold(
        <unsigned long long>sum_pseudo_header(load32(ip + ipv4.SOURCE), load32(ip + ipv4.DESTINATION), ip[ipv4.PROTOCOL],
                                              <uint16_t>(length - header_length))
        + sum_octets(transport, length - header_length))
    if checksum == 0 and ip[ipv4.PROTOCOL] == numbers.UDP:
        checksum = 0xFFFF
    store16(field, checksum)


cdef inline void queue_payload(Path *p, const Packet *packet, uint32_t headers, const uint8_t *octets,
                               uint32_t size) noexcept nogil:
    """Send the headers of a packet with what `octets` are of its payload, in segments of at most `size` of them."""
    cdef Sender *sender = p.senders[packet.hop.link]
    cdef uint32_t offset = 0
    cdef uint32_t total = packet.length - headers
    cdef uint32_t payload
    cdef int number = 0
    cdef uint8_t *ip
    while True:                         # what has no payload is a segment, too
        payload = size if total - offset > size else total - offset
        ip = sender_scratch(sender)
        write_segment_header(ip, packet, headers, offset, payload, number)
        finish_header(ip, packet.header_length)
        memcpy(ip + headers, octets + offset, payload)
        finish_transport(ip, packet.header_length, headers + payload)
        queue_frame(p, packet.hop, ip, headers + payload, NULL, 1 if offset + payload == total else WEIGHT_PIECE)
        offset += payload
        number += 1
        if offset == total:
            break


cdef inline Outcome queue_segments(Path *p, Packet *packet) noexcept nogil:
    """Cut a large send into segments for a sender without virtio headers; refuse one of datagrams of unknown size."""
    cdef uint32_t size = packet.frame.vnet.gso_size
    cdef uint32_t headers = packet.header_length
    if packet.protocol == numbers.TCP:
        headers += tcp.header_length(packet.transport)
    elif packet.protocol == numbers.UDP and packet.frame.vnet.gso_type == GSO_UDP_L4:
        if size == 0:
            return verdict.SEGMENT_SIZE_UNKNOWN
        headers += udp.MINIMUM
    else:
        return verdict.CANNOT_SEGMENT
    if size == 0 or headers + size > SCRATCH_FRAME - HEADROOM:
        return verdict.CANNOT_SEGMENT
    queue_payload(p, packet, headers, packet.ip + headers, size)
    p.notes[verdict.NOTE_SEGMENTED] += 1
    return verdict.FORWARDED


cdef inline uint32_t clamped(uint32_t number, uint32_t least, uint32_t most) noexcept nogil:
    return least if number < least else most if number > most else number


cdef inline uint32_t copy_fragment_options(uint8_t *to, const uint8_t *ip, uint32_t header_length) noexcept nogil:
    """Write the options that every fragment carries (RFC 791 section 3.1, copied flag), padded; return their octets."""
    cdef uint32_t at = ipv4.MINIMUM
    cdef uint32_t length
    cdef uint32_t written = 0
    while at < header_length and ip[at] != ipv4.OPTION_END:
        if ip[at] == ipv4.OPTION_NOP:
            at += 1
            continue
        length = ip[at + 1]             # check_options found it right at the door
        if length < 2:
            break
        if ip[at] & ipv4.OPTION_COPIED:
            memcpy(to + written, ip + at, length)
            written += length
        at += length
    while written & 3:
        to[written] = ipv4.OPTION_END
        written += 1
    return written


cdef inline Outcome queue_fragments(Path *p, Packet *packet) noexcept nogil:
    """Send a packet without DF in pieces that fit the hop, first piece first (RFC 791 section 3.2, RFC 4787 REQ-13a).

    The packet may be a fragment itself: its pieces then go on from its offset.
    """
    cdef const Hop *hop = packet.hop
    cdef Sender *sender = p.senders[hop.link]
    cdef uint32_t room = clamped(hop.mtu, ipv4.LEAST_MTU, SCRATCH_FRAME - HEADROOM)     # a piece has 8 octets at least
    cdef uint32_t header_length = packet.header_length
    cdef uint32_t offset = 0
    cdef uint32_t total = packet.length - header_length
    cdef uint32_t piece
    cdef uint16_t field = load16(packet.ip + ipv4.FRAGMENT)
    cdef uint16_t more
    cdef uint8_t *ip
    if packet.frame.vnet.flags & VNET_NEEDS_CSUM:
        complete_checksum(packet)
    while offset < total:
        ip = sender_scratch(sender)
        memcpy(ip, packet.ip, ipv4.MINIMUM)
        if offset == 0:
            memcpy(ip, packet.ip, header_length)
        else:
            header_length = ipv4.MINIMUM + copy_fragment_options(ip + ipv4.MINIMUM, packet.ip, packet.header_length)
            ip[0] = <uint8_t>(0x40 | (header_length >> 2))
        piece = (room - header_length) & ~<uint32_t>7
        if piece >= total - offset:
            piece = total - offset
        store16(ip + ipv4.TOTAL_LENGTH, <uint16_t>(header_length + piece))
        more = ipv4.MORE_FRAGMENTS if offset + piece < total else field & ipv4.MORE_FRAGMENTS
        store16(ip + ipv4.FRAGMENT, <uint16_t>((field & ipv4.OFFSET_MASK) + (offset >> 3)) | more)
        finish_header(ip, header_length)
        memcpy(ip + header_length, packet.ip + packet.header_length + offset, piece)
        queue_frame(p, hop, ip, header_length + piece, NULL, 1 if offset + piece == total else WEIGHT_PIECE)
        offset += piece
    p.notes[verdict.NOTE_FRAGMENTED] += 1
    return verdict.FORWARDED
