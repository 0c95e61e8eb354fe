# The MSS that a SYN offers, lowered to what fits the ways of both ends: where nobody hears that a packet was too long, none is.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmasq.path cimport route
from fastmasq.path.links cimport Route
from fastmasq.path.packet cimport KIND_FRAGMENT, Packet
from fastmasq.path.state cimport Path
from fastmasq.wire cimport ipv4, tcp
from fastmasq.wire.branches cimport rarely
from fastmasq.wire.checksum cimport delta16, update_full_at
from fastmasq.wire.octets cimport load16, store16

cdef enum:
    OFF = 0
    AUTOMATIC = 0x10000         # what the ways of both ends can carry


cdef inline bint may_offer(const Packet *packet) noexcept nogil:
    """Whether a TCP packet may have the option: both SYNs of a connection may (RFC 9293 section 3.7.1)."""
    return rarely(packet.kind != KIND_FRAGMENT and packet.transport[tcp.FLAGS] & tcp.SYN != 0)


cdef inline uint32_t fitting(const Path *p, const Packet *packet) noexcept nogil:
    """Return what fits the links that a packet comes and leaves by, and the routes of both its ends (RFC 6691 section 2)."""
    cdef const Route *back = route.find_route(p, packet.ends.saddr)
    cdef uint32_t mtu = p.links[packet.link].mtu
    if packet.hop.mtu < mtu:
        mtu = packet.hop.mtu
    if back.mtu and back.mtu < mtu:
        mtu = back.mtu
    return mtu - ipv4.MINIMUM - tcp.MINIMUM


cdef inline void clamp(const Path *p, Packet *packet) noexcept nogil:
    """Lower the MSS that a SYN offers; never raise it. A partial checksum does not cover it yet.

    Where none is offered 536 is meant, which fits nearly everywhere.
    """
    cdef uint32_t at = tcp.find_option(packet.transport, tcp.header_length(packet.transport), tcp.OPTION_MSS, tcp.MSS_LENGTH)
    cdef uint32_t limit = p.mss
    cdef uint16_t offered, lowered
    cdef uint8_t *value
    if at == 0 or limit == OFF:
        return
    if limit == AUTOMATIC:
        limit = fitting(p, packet)
    value = packet.transport + at + 2
    offered = load16(value)
    if offered <= limit:
        return
    lowered = <uint16_t>limit
    store16(value, lowered)
    if packet.partial:
        return
    if at & 1:                      # the two octets are in two words
        update_full_at(packet.transport + tcp.CHECKSUM, delta16(offered >> 8, lowered >> 8)
                       + delta16(<uint16_t>(offered << 8), <uint16_t>(lowered << 8)))
    else:
        update_full_at(packet.transport + tcp.CHECKSUM, delta16(offered, lowered))
