# A segment of a stream that is edited (table/streams.pxd): it leaves with other numbers, and perhaps with other octets.
#
# Everything here follows from the edits that the table has, so a segment that is sent again leaves as it did before, whoever has
# cut it differently in between. A segment without changed octets is written over where it lies. One with them, which may have
# become longer than its link or its sender allows, is made anew in segments of at most that size.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmasq.path cimport verdict
from fastmasq.path.cut cimport queue_payload
from fastmasq.path.egress cimport send_packet
from fastmasq.path.gather cimport send_all_gathered
from fastmasq.path.packet cimport LEAST_SEGMENT, Packet
from fastmasq.path.rewrite cimport checksum_is_right, rewrite_flow
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.abi cimport GSO_NONE
from fastmasq.ring.ring cimport HEADROOM, SCRATCH_FRAME
from fastmasq.table.rows cimport Flow, Session
from fastmasq.table.streams cimport Edit, StreamSet, begins_at, first_within, least, leaves_as, stands_for, write_image
from fastmasq.table.tcp_state cimport window_shift
from fastmasq.wire cimport tcp
from fastmasq.wire.checksum cimport delta16, sum_octets, update_full_at
from fastmasq.wire.octets cimport load16, load32, store16, store32


cdef inline void renumber_blocks(uint8_t *at, const StreamSet *s, uint32_t stream, int other) noexcept nogil:
    """Write what selective acknowledgments of the stream `other` stand for (RFC 2018 section 3)."""
    cdef uint32_t block = tcp.find_option(at, tcp.header_length(at), tcp.OPTION_SACK, 0)
    cdef uint32_t stop = block + at[block + 1] if block else 0
    block += 2
    while block + tcp.SACK_BLOCK <= stop:
        store32(at + block, begins_at(s, stream, other, load32(at + block)))
        store32(at + block + 4, stands_for(s, stream, other, load32(at + block + 4)))
        block += tcp.SACK_BLOCK


cdef inline void renumber(Packet *packet, const Session *session, const StreamSet *s, uint32_t stream,
                          int direction) noexcept nogil:
    """Write the numbers that a segment leaves with: where it begins, what it acknowledges, and how much more may come."""
    cdef uint8_t *at = packet.transport
    cdef uint32_t header = tcp.header_length(at)
    cdef uint32_t number = load32(at + tcp.SEQUENCE)
    cdef uint32_t acknowledged = load32(at + tcp.ACKNOWLEDGMENT)
    cdef uint32_t new = leaves_as(s, stream, direction, number)
    cdef uint8_t shift = 0 if at[tcp.FLAGS] & tcp.SYN else window_shift(session, direction)
    cdef uint32_t edge = acknowledged + (<uint32_t>load16(at + tcp.WINDOW) << shift)
    cdef uint16_t before = sum_octets(at, header)
    store32(at + tcp.SEQUENCE, new)
    if at[tcp.FLAGS] & tcp.URG:
        store16(at + tcp.URGENT, <uint16_t>(leaves_as(s, stream, direction, number + load16(at + tcp.URGENT)) - new))
    if at[tcp.FLAGS] & tcp.ACK:
        new = stands_for(s, stream, 1 - direction, acknowledged)
        store32(at + tcp.ACKNOWLEDGMENT, new)
        edge = stands_for(s, stream, 1 - direction, edge) - new + (<uint32_t>1 << shift) - 1     # no window is to become 0
        store16(at + tcp.WINDOW, <uint16_t>least(edge >> shift, 0xFFFF))
        renumber_blocks(at, s, stream, 1 - direction)
    if not packet.partial:
        update_full_at(at + tcp.CHECKSUM, delta16(before, sum_octets(at, header)))


cdef inline Outcome send_image(Path *p, Packet *packet, uint32_t headers, uint32_t count) noexcept nogil:
    """Send a translated segment with `count` octets of the image in the place of its own."""
    cdef uint32_t room = least(packet.hop.mtu, SCRATCH_FRAME - HEADROOM)
    cdef uint32_t size = room - headers
    if room < headers + LEAST_SEGMENT:
        return verdict.CANNOT_SEGMENT
    if packet.frame.vnet.gso_type != GSO_NONE and packet.frame.vnet.gso_size:
        size = least(size, packet.frame.vnet.gso_size)
    packet.length = headers + count
    packet.hop.used += 1
    send_all_gathered(p)        # what has come before it leaves before it
    queue_payload(p, packet, headers, p.image, size)
    return verdict.FORWARDED


cdef inline uint8_t octet_before(const Edit *edit) noexcept nogil:
    """Return the octet that leaves last before the end of an edit."""
    return (<const uint8_t *>edit.text)[edit.after - 1 if edit.after else 0]


cdef inline Outcome send(Path *p, Packet *packet, uint32_t row, uint32_t stream, int direction, const Flow *flow) noexcept nogil:
    """Translate and send a segment of a session that has edits, by its stream (its row plus one).

    What leaves nothing is sent with the octet before it, which has left already, so that it is acknowledged.
    """
    cdef const StreamSet *s = &p.table.streams
    cdef uint32_t headers = packet.header_length + tcp.header_length(packet.transport)
    cdef uint32_t payload = packet.length - headers
    cdef uint32_t number = load32(packet.transport + tcp.SEQUENCE)
    cdef uint32_t count = 0
    cdef const Edit *edit = NULL
    if payload:
        edit = first_within(s, stream, direction, number, number + payload)
    if edit != NULL and packet.is_fragment:
        return verdict.EDIT_IN_FRAGMENT
    if edit != NULL and not checksum_is_right(packet):
        edit = NULL                 # nobody will take its octets for anything
    if edit != NULL:
        count = write_image(s, stream, direction, number, packet.ip + headers, payload, p.image)
    renumber(packet, &p.table.sessions[row], s, stream, direction)
    rewrite_flow(p, packet, flow)
    if edit == NULL:
        return send_packet(p, packet)
    if count == 0 and not packet.transport[tcp.FLAGS] & tcp.FIN:
        p.image[0] = octet_before(edit)
        store32(packet.transport + tcp.SEQUENCE, load32(packet.transport + tcp.SEQUENCE) - 1)
        count = 1
    return send_image(p, packet, headers, count)
