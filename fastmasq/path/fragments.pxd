# Fragments of datagrams that may be translated: the first decides, and the others get what it got (RFC 4787 REQ-14).

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.path cimport datagrams, dispatch, identification as identifications, leave, links, route, verdict
from fastmasq.path.datagrams cimport Coverage, Datagram, Piece
from fastmasq.path.egress cimport send_packet
from fastmasq.path.finish cimport finish, flush_all, lose
from fastmasq.path.gather cimport send_all_gathered
from fastmasq.path.packet cimport Packet
from fastmasq.path.parse cimport take_frame
from fastmasq.path.rewrite cimport rewrite_addresses
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.abi cimport PACKET_HOST
from fastmasq.ring.ring cimport HEADROOM
from fastmasq.table cimport hosts, keys, mappings, table
from fastmasq.wire cimport ipv4, numbers
from fastmasq.wire.octets cimport load16, load32


cdef inline bint is_reassembled(const Path *p, Packet *packet) noexcept nogil:
    """Whether a fragment may be one of a translated datagram.

    It goes outside, to an external address, is a program's, or for one by a rule, to wherever it is addressed.
    """
    cdef const links.Route *way = route.route_of(p, packet)
    if packet.frame.packet_type != PACKET_HOST or route.is_martian_source(p, packet):
        return False
    if way.kind == links.ROUTE_LOCAL:
        return mappings.external_of(p.table, packet.ends.daddr) >= 0 and (packet.side == keys.OUTSIDE or p.hairpin)
    if route.is_to_many(p, packet):
        return False
    if p.chains != NULL and p.chains.redirects:
        return True
    if not route.leads_on(way):
        return False
    return packet.side == keys.LOCAL or (packet.side == keys.INSIDE and p.links[way.link].side == keys.OUTSIDE)


cdef inline int32_t datagram_of(Path *p, const Packet *packet) noexcept nogil:
    """Return the row of a fragment's datagram, a new one if there is none.

    The pieces of a datagram that leaves get an identification of their own: two inside hosts may use the same towards
    one remote, which would take their pieces for one datagram (RFC 6864 section 5.3.1).
    """
    cdef uint16_t identification = load16(packet.ip + ipv4.ID)
    cdef uint64_t key0 = keys.make_key0(packet.ends.saddr, packet.ends.daddr)
    cdef uint64_t key1 = datagrams.datagram_key1(packet.link, packet.protocol, identification)
    cdef uint32_t hash = table.key_hash(p.table, key0, key1)
    cdef int32_t row = datagrams.find_datagram(&p.datagrams, key0, key1, hash)
    cdef uint8_t source
    if row == datagrams.NOBODY:
        source = <uint8_t>hosts.host_hash(p.table, packet.ends.saddr)
        lose(p, verdict.FRAGMENT_ORPHAN, datagrams.make_room(&p.datagrams, source))
        row = datagrams.begin_datagram(&p.datagrams, key0, key1, hash, source, p.now_ms)
        if packet.side == keys.INSIDE:
            identification = identifications.take(p, packet.ends.daddr, packet.protocol, 1)
        p.datagrams.rows[row].identification = identification
    return row


cdef inline Outcome forward_first(Path *p, Packet *packet, Datagram *datagram) noexcept nogil:
    """Treat a first fragment as the packet it begins, and remember for the others what came of it."""
    cdef Outcome outcome = dispatch.handle_packet(p, packet)
    if outcome == verdict.FORWARDED:
        datagram.state = datagrams.TRANSLATED
        datagram.saddr = load32(packet.ip + ipv4.SOURCE)
        datagram.daddr = load32(packet.ip + ipv4.DESTINATION)
        datagram.generation = p.generation
    elif outcome == verdict.DELIVERED:
        datagram.state = datagrams.HOST_OWN
    elif outcome != verdict.WAITING:
        datagram.state = datagrams.REFUSED
    return outcome


cdef inline Outcome forward_later(Path *p, Packet *packet, const Datagram *datagram) noexcept nogil:
    """Give a later fragment the addresses that the first was given."""
    cdef Outcome outcome
    if datagram.state == datagrams.HOST_OWN:
        return verdict.DELIVERED
    if datagram.state == datagrams.REFUSED or datagram.generation != p.generation:
        return verdict.FRAGMENT_REFUSED
    outcome = leave.towards(p, packet, datagram.daddr)
    if outcome != verdict.GOES_ON:
        return outcome
    rewrite_addresses(p, packet, datagram.saddr, datagram.daddr)
    return send_packet(p, packet)


cdef inline Outcome forward_piece(Path *p, Packet *packet, Datagram *datagram) noexcept nogil:
    """Send on a fragment whose datagram's fate is known, or is decided by it; refuse one that overlaps."""
    cdef uint16_t field = load16(packet.ip + ipv4.FRAGMENT)
    cdef uint32_t first = field & ipv4.OFFSET_MASK
    cdef uint32_t count = (packet.length - packet.header_length + 7) >> 3
    cdef bint last = not field & ipv4.MORE_FRAGMENTS
    cdef Coverage covers = datagrams.coverage(datagram, first, count, last)
    cdef Outcome outcome
    if covers == datagrams.COVERS_OLD and datagram.state != datagrams.HOST_OWN:
        return verdict.FRAGMENT_DUPLICATE
    if covers == datagrams.COVERS_BOTH and datagram.state != datagrams.HOST_OWN:
        datagram.state = datagrams.REFUSED
        return verdict.FRAGMENT_OVERLAP
    packet.identification = datagram.identification
    packet.renumbered = True
    outcome = forward_first(p, packet, datagram) if first == 0 else forward_later(p, packet, datagram)
    if covers == datagrams.COVERS_NEW and outcome != verdict.WAITING:
        datagrams.mark(datagram, first, count, last)    # what waits comes here again
    return outcome


cdef inline void release_kept(Path *p, int32_t row) noexcept nogil:
    """Send on what was kept until the first fragment came, in the order it came."""
    cdef Packet packet
    cdef Piece *piece
    cdef int32_t number = datagrams.take_kept(&p.datagrams, row)
    while number != datagrams.NOBODY:
        piece = &p.datagrams.pieces[number]
        take_frame(&packet, &piece.frame, p.links, piece.link)
        finish(p, &packet, forward_piece(p, &packet, &p.datagrams.rows[row]))
        number = datagrams.take_kept(&p.datagrams, row)
    flush_all(p)                    # from where they are kept; the room is used again


cdef inline Outcome keep(Path *p, const Packet *packet, int32_t row) noexcept nogil:
    """Keep a piece that has come before the first of its datagram."""
    cdef const Datagram *datagram = &p.datagrams.rows[row]
    if packet.frame.length > datagrams.PIECE_ROOM - HEADROOM:
        return verdict.FRAGMENT_TOO_LONG
    lose(p, verdict.FRAGMENT_ORPHAN, datagrams.make_room_for_piece(&p.datagrams, datagram.source))
    if datagrams.find_datagram(&p.datagrams, datagram.key0, datagram.key1, datagram.hash) != row:
        return verdict.FRAGMENT_ORPHAN      # its datagram was the oldest itself
    datagrams.keep_piece(&p.datagrams, row, packet.frame, packet.link)
    return verdict.WAITING


cdef inline Outcome take(Path *p, Packet *packet) noexcept nogil:
    """A fragment that `is_reassembled`: those that come before the first wait for it."""
    cdef int32_t row = datagram_of(p, packet)
    cdef Datagram *datagram = &p.datagrams.rows[row]
    cdef Outcome outcome
    if packet.protocol == numbers.TCP:
        send_all_gathered(p)        # a stream's segments keep their order
    if datagram.state == datagrams.FIRST_MISSING and load16(packet.ip + ipv4.FRAGMENT) & ipv4.OFFSET_MASK:
        return keep(p, packet, row)
    outcome = forward_piece(p, packet, datagram)
    if datagram.state != datagrams.FIRST_MISSING:
        release_kept(p, row)
        if datagrams.is_complete(datagram) and datagram.state != datagrams.REFUSED:
            lose(p, verdict.FRAGMENT_ORPHAN, datagrams.end_datagram(&p.datagrams, row))
    return outcome


cdef inline void expire_datagrams(Path *p) noexcept nogil:
    """Give up datagrams that have been incomplete for too long."""
    lose(p, verdict.FRAGMENT_ORPHAN, datagrams.end_expired(&p.datagrams, p.now_ms))
