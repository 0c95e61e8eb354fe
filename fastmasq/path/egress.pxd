# The last step: link header, virtio header, and where the link takes no offloads, checksums, segments and fragments.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from fastmasq.path.gather cimport gather, send_all_gathered
from fastmasq.path.state cimport Hop, Link, Parsed, Path, count_drop
from fastmasq.path.verdict cimport (
    CANNOT_SEGMENT, FORWARD, LINK_DOWN, NOTE_FRAGMENTED, NOTE_SEGMENTED, NOTE_TX_CALLS, TX_NO_BUFFER, TX_REFUSED,
)
from fastmasq.ring.abi cimport (
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_UDP_L4, VNET_LENGTH, VNET_NEEDS_CSUM, VnetHeader,
)
from fastmasq.ring.ring cimport Frame, HEADROOM, SCRATCH_FRAME, Sender, sender_flush, sender_queue, sender_scratch
from fastmasq.wire.checksum cimport delta16, fold, sum_octets, sum_pseudo_header, update_full_at
from fastmasq.wire.ipv4 cimport (
    IPV4_CHECKSUM, IPV4_DESTINATION, IPV4_FRAGMENT, IPV4_ID, IPV4_MINIMUM, IPV4_SOURCE, IPV4_TOTAL_LENGTH,
    MORE_FRAGMENTS, OFFSET_MASK, OPTION_COPIED, OPTION_END, OPTION_NOP, PROTOCOL_TCP, PROTOCOL_UDP,
)
from fastmasq.wire.octets cimport load16, load32, store16, store32
from fastmasq.wire.tcp cimport FIN, PSH, TCP_CHECKSUM, TCP_FLAGS, TCP_SEQUENCE, header_length as tcp_header_length
from fastmasq.wire.udp cimport UDP_CHECKSUM, UDP_LENGTH, UDP_LENGTH_OCTETS

cdef enum:
    CWR = 0x80


cdef inline void finish_header(uint8_t *ip, uint32_t header_length) noexcept nogil:
    """Compute the IPv4 header checksum anew."""
    store16(ip + IPV4_CHECKSUM, 0)
    store16(ip + IPV4_CHECKSUM, <uint16_t>~sum_octets(ip, header_length))


cdef inline void complete_checksum(Frame *frame, Parsed *parsed) noexcept nogil:
    """Turn a partial checksum into a full one: the field already holds the sum of the pseudo-header."""
    cdef uint8_t *start = frame.data + frame.vnet.csum_start
    cdef uint8_t *stop = parsed.ip + parsed.length
    cdef uint8_t *field = start + frame.vnet.csum_offset
    cdef uint16_t checksum
    if start < parsed.transport or field + 2 > stop:
        return
    checksum = <uint16_t>~sum_octets(start, stop - start)
    if checksum == 0 and parsed.protocol == PROTOCOL_UDP:
        checksum = 0xFFFF
    store16(field, checksum)
    frame.vnet.flags = 0
    parsed.partial = False


cdef inline void queue_frame(Path *p, const Hop *hop, uint8_t *ip, uint32_t length, VnetHeader *vnet) noexcept nogil:
    """Put the link header and, where wanted, the virtio header before the packet at `ip`, and queue it."""
    cdef Sender *sender = p.senders[hop.link]
    cdef uint8_t *start = ip - hop.header_length
    if hop.header_length:
        memcpy(start, hop.header, 14)
    length += hop.header_length
    p.traffic[hop.link].tx_packets += 1
    p.traffic[hop.link].tx_bytes += length
    if sender.vnet:
        start -= VNET_LENGTH
        if vnet != NULL:
            memcpy(start, vnet, VNET_LENGTH)
        else:
            memset(start, 0, VNET_LENGTH)
        length += VNET_LENGTH
    sender_queue(sender, start, length, 1)


cdef inline void write_segment_header(uint8_t *ip, const uint8_t *from_ip, uint32_t headers, uint32_t header_length,
                                      uint32_t payload, uint32_t offset, int number, bint last) noexcept nogil:
    """Copy the headers of a large send for one segment, adjusting lengths, id, sequence number and flags."""
    cdef uint8_t *transport = ip + header_length
    memcpy(ip, from_ip, headers)
    store16(ip + IPV4_TOTAL_LENGTH, <uint16_t>(headers + payload))
    store16(ip + IPV4_ID, <uint16_t>(load16(from_ip + IPV4_ID) + number))
    finish_header(ip, header_length)
    if ip[9] == PROTOCOL_TCP:
        store32(transport + TCP_SEQUENCE, load32(transport + TCP_SEQUENCE) + offset)
        if not last:
            transport[TCP_FLAGS] &= ~(FIN | PSH)
        if number:
            transport[TCP_FLAGS] &= ~CWR
    else:
        store16(transport + UDP_LENGTH, <uint16_t>(headers - header_length + payload))


cdef inline void finish_transport(uint8_t *ip, uint32_t header_length, uint32_t length) noexcept nogil:
    """Compute the TCP or UDP checksum of a whole packet anew."""
    cdef uint8_t *transport = ip + header_length
    cdef uint8_t *field = transport + (TCP_CHECKSUM if ip[9] == PROTOCOL_TCP else UDP_CHECKSUM)
    cdef uint16_t checksum
    store16(field, 0)
    checksum = <uint16_t>~fold(
        <unsigned long long>sum_pseudo_header(load32(ip + IPV4_SOURCE), load32(ip + IPV4_DESTINATION), ip[9],
                                              <uint16_t>(length - header_length))
        + sum_octets(transport, length - header_length))
    if checksum == 0 and ip[9] == PROTOCOL_UDP:
        checksum = 0xFFFF
    store16(field, checksum)


cdef inline bint queue_segments(Path *p, const Hop *hop, Frame *frame, Parsed *parsed) noexcept nogil:
    """Cut a large send into segments for a sender without virtio headers; return whether it could be done."""
    cdef Sender *sender = p.senders[hop.link]
    cdef uint32_t size = frame.vnet.gso_size
    cdef uint32_t headers = parsed.header_length
    cdef uint32_t offset = 0
    cdef uint32_t total, payload
    cdef int number = 0
    cdef uint8_t *ip
    if parsed.protocol == PROTOCOL_TCP:
        headers += tcp_header_length(parsed.transport)
    elif parsed.protocol == PROTOCOL_UDP and frame.vnet.gso_type == GSO_UDP_L4:
        headers += UDP_LENGTH_OCTETS
    else:
        return False
    if size == 0 or headers + size > SCRATCH_FRAME - HEADROOM:
        return False
    total = parsed.length - headers
    while offset < total:
        payload = size if total - offset > size else total - offset
        ip = sender_scratch(sender)
        write_segment_header(ip, parsed.ip, headers, parsed.header_length, payload, offset, number,
                             offset + payload == total)
        memcpy(ip + headers, parsed.ip + headers + offset, payload)
        finish_transport(ip, parsed.header_length, headers + payload)
        queue_frame(p, hop, ip, headers + payload, NULL)
        offset += payload
        number += 1
    p.notes[NOTE_SEGMENTED] += 1
    return True


cdef inline uint32_t copy_fragment_options(uint8_t *to, const uint8_t *ip, uint32_t header_length) noexcept nogil:
    """Write the options that every fragment carries (RFC 791 section 3.1, copied flag), padded; return their octets."""
    cdef uint32_t at = IPV4_MINIMUM
    cdef uint32_t length
    cdef uint32_t written = 0
    while at < header_length and ip[at] != OPTION_END:
        if ip[at] == OPTION_NOP:
            at += 1
            continue
        length = ip[at + 1]
        if ip[at] & OPTION_COPIED:
            memcpy(to + written, ip + at, length)
            written += length
        at += length
    while written & 3:
        to[written] = OPTION_END
        written += 1
    return written


cdef inline void queue_fragments(Path *p, const Hop *hop, Frame *frame, Parsed *parsed) noexcept nogil:
    """Send a packet without DF in pieces that fit the hop, first piece first (RFC 791 section 3.2, RFC 4787 REQ-13a).

    The packet may be a fragment itself: its pieces then go on from its offset.
    """
    cdef Sender *sender = p.senders[hop.link]
    cdef uint32_t room = hop.mtu if hop.mtu < SCRATCH_FRAME - HEADROOM else SCRATCH_FRAME - HEADROOM
    cdef uint32_t header_length = parsed.header_length
    cdef uint32_t offset = 0
    cdef uint32_t total = parsed.length - header_length
    cdef uint32_t piece
    cdef uint16_t field = load16(parsed.ip + IPV4_FRAGMENT)
    cdef uint16_t more
    cdef uint8_t *ip
    if frame.vnet.flags & VNET_NEEDS_CSUM:
        complete_checksum(frame, parsed)
    while offset < total:
        ip = sender_scratch(sender)
        memcpy(ip, parsed.ip, IPV4_MINIMUM)
        if offset == 0:
            memcpy(ip, parsed.ip, header_length)
        else:
            header_length = IPV4_MINIMUM + copy_fragment_options(ip + IPV4_MINIMUM, parsed.ip, parsed.header_length)
            ip[0] = <uint8_t>(0x40 | (header_length >> 2))
        piece = (room - header_length) & ~<uint32_t>7
        if piece >= total - offset:
            piece = total - offset
        store16(ip + IPV4_TOTAL_LENGTH, <uint16_t>(header_length + piece))
        more = MORE_FRAGMENTS if offset + piece < total else field & MORE_FRAGMENTS
        store16(ip + IPV4_FRAGMENT, <uint16_t>((field & OFFSET_MASK) + (offset >> 3)) | more)
        finish_header(ip, header_length)
        memcpy(ip + header_length, parsed.ip + parsed.header_length + offset, piece)
        queue_frame(p, hop, ip, header_length + piece, NULL)
        offset += piece
    p.notes[NOTE_FRAGMENTED] += 1


cdef inline void renumber(Parsed *parsed) noexcept nogil:
    cdef uint16_t before = load16(parsed.ip + IPV4_ID)
    store16(parsed.ip + IPV4_ID, parsed.identification)
    update_full_at(parsed.ip + IPV4_CHECKSUM, delta16(before, parsed.identification))


cdef inline void send_packet(Path *p, int link, const Hop *hop, Frame *frame, Parsed *parsed) noexcept nogil:
    """Send a translated packet that came in on `link` to its next hop, in whatever form the hop's link takes."""
    cdef int growth = <int>hop.header_length - <int>p.links[link].header_length
    p.sent = True
    if parsed.renumbered:
        renumber(parsed)
    if parsed.protocol == PROTOCOL_TCP and not parsed.fragment and gather(p, hop, frame, parsed):
        p.verdicts[FORWARD] += 1
        return
    if frame.vnet.gso_type != GSO_NONE and not p.senders[hop.link].vnet:
        if queue_segments(p, hop, frame, parsed):
            p.verdicts[FORWARD] += 1
        else:
            count_drop(p, CANNOT_SEGMENT)
        return
    p.verdicts[FORWARD] += 1
    if frame.vnet.gso_type == GSO_NONE and parsed.length > hop.mtu:
        queue_fragments(p, hop, frame, parsed)
        return
    if p.senders[hop.link].vnet:
        if frame.vnet.flags | frame.vnet.gso_type:
            frame.vnet.flags &= VNET_NEEDS_CSUM
            frame.vnet.csum_start += growth
            if frame.vnet.hdr_len:              # 0 unless it is a large send
                frame.vnet.hdr_len += growth
            queue_frame(p, hop, parsed.ip, parsed.length, &frame.vnet)
        else:
            queue_frame(p, hop, parsed.ip, parsed.length, NULL)
        return
    if frame.vnet.flags & VNET_NEEDS_CSUM:
        complete_checksum(frame, parsed)
    queue_frame(p, hop, parsed.ip, parsed.length, NULL)


cdef inline void flush_all(Path *p) noexcept nogil:
    """Send what every link has queued, and take over what the kernel refused into the drop counters."""
    cdef int i
    cdef Sender *sender
    send_all_gathered(p)
    for i in range(p.link_count):
        sender = p.senders[i]
        if sender == NULL or sender.count == 0:
            continue
        sender_flush(sender)
        p.notes[NOTE_TX_CALLS] += 1
        if sender.refused | sender.no_buffer | sender.down:
            p.drops[TX_REFUSED] += sender.refused
            p.drops[TX_NO_BUFFER] += sender.no_buffer
            p.drops[LINK_DOWN] += sender.down
            p.verdicts[4] += sender.refused + sender.no_buffer + sender.down
            p.verdicts[FORWARD] -= sender.refused + sender.no_buffer + sender.down
            sender.refused = sender.no_buffer = sender.down = 0
