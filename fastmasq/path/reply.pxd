# ICMP errors of our own: who may be answered, how often, and with what (RFC 1812 section 4.3.2, RFC 792).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmasq.path.packet cimport KIND_FRAGMENT, KIND_ICMP_ERROR, KIND_ICMP_OTHER, Packet
from fastmasq.path.queue cimport finish_header, queue_frame
from fastmasq.path.route cimport is_unicast_source
from fastmasq.path.links cimport Hop, Link
from fastmasq.path.state cimport BUCKETS, Path
from fastmasq.ring.abi cimport PACKET_HOST
from fastmasq.ring.ring cimport Sender, WEIGHT_NOTICE, sender_scratch
from fastmasq.table cimport keys, table
from fastmasq.table.bucket cimport take_token
from fastmasq.table.siphash cimport siphash
from fastmasq.wire cimport ethernet, icmp, ipv4, numbers
from fastmasq.wire.checksum cimport sum_octets
from fastmasq.wire.octets cimport load16, store16, store32

cdef enum:
    QUOTE_LENGTH = 548          # octets: the whole error stays within 576 (RFC 1812 section 4.3.2.3)
    INTERNETWORK_CONTROL = 0xC0  # precedence of errors (RFC 1812 section 4.3.2.5)
    REPLY_TTL = 64


cdef inline bint may_answer_fragment(const Packet *packet) noexcept nogil:
    """Only about a first fragment, and not about that of an ICMP error either."""
    if load16(packet.ip + ipv4.FRAGMENT) & ipv4.OFFSET_MASK:
        return False
    if packet.protocol != numbers.ICMP:
        return True
    return packet.length > packet.header_length and (icmp.is_query(packet.transport[0]) or icmp.is_reply(packet.transport[0]))


cdef inline bint may_answer(Path *p, const Packet *packet) noexcept nogil:
    """Never about an error, a later fragment, a broadcast or multicast, or to an address that is not one host's."""
    cdef uint64_t hash
    if (p.links[packet.link].address == 0 and packet.side != keys.LOCAL) or packet.frame.packet_type != PACKET_HOST:
        return False
    if packet.kind == KIND_ICMP_ERROR or packet.kind == KIND_ICMP_OTHER:
        return False
    if packet.kind == KIND_FRAGMENT and not may_answer_fragment(packet):
        return False
    if not is_unicast_source(packet.ends.saddr) or not is_unicast_source(packet.ends.daddr):
        return False
    if not p.limit_errors:
        return True
    hash = siphash(&p.table.secret, packet.ends.saddr, 0x6572726f72)
    return (take_token(&p.source_buckets[hash & (BUCKETS - 1)], p.now_ms, p.error_rate_source, p.error_rate_source)
            and take_token(&p.link_buckets[packet.link], p.now_ms, p.error_rate, p.error_burst))


cdef inline uint32_t write_error(uint8_t *ip, const Packet *packet, uint32_t source, uint16_t id) noexcept nogil:
    """Write the error that a packet's sender is told, quoting the packet; return its octets."""
    cdef uint8_t *at = ip + ipv4.MINIMUM
    cdef uint32_t quote = packet.length if packet.length < QUOTE_LENGTH else QUOTE_LENGTH
    cdef uint32_t length = ipv4.MINIMUM + icmp.LENGTH + quote
    memset(ip, 0, ipv4.MINIMUM + icmp.LENGTH)
    ip[0] = 0x45
    ip[ipv4.TOS] = INTERNETWORK_CONTROL
    store16(ip + ipv4.TOTAL_LENGTH, <uint16_t>length)
    store16(ip + ipv4.ID, id)
    ip[ipv4.TTL] = REPLY_TTL
    ip[ipv4.PROTOCOL] = numbers.ICMP
    store32(ip + ipv4.SOURCE, source)
    store32(ip + ipv4.DESTINATION, packet.ends.saddr)
    finish_header(ip, ipv4.MINIMUM)
    at[icmp.TYPE] = packet.told.type
    at[icmp.CODE] = packet.told.code
    store16(at + icmp.MTU, packet.told.mtu)
    memcpy(at + icmp.LENGTH, packet.ip, quote)
    store16(at + icmp.CHECKSUM, <uint16_t>~sum_octets(at, icmp.LENGTH + quote))
    return length


cdef inline void write_way_back(Hop *back, const Packet *packet, const Link *link) noexcept nogil:
    """Fill in the next hop by which a packet came, as far as queue_frame asks for it."""
    back.link = packet.link
    back.header_length = link.header_length
    if back.header_length:
        memcpy(back.header, packet.frame.data + ethernet.SOURCE, ethernet.MAC)
        memcpy(back.header + ethernet.SOURCE, link.mac, ethernet.MAC)
        store16(back.header + ethernet.TYPE, ethernet.ETHERTYPE_IPV4)


cdef inline bint reply_error(Path *p, const Packet *packet) noexcept nogil:
    """Send a packet's `told` to the station that sent it, the packet still being as received; False: it may not be.

    A program of this host is told by the address that it sent to: what comes from one of the host's own, or from where
    the host knows no way to, the kernel drops.
    """
    cdef const Link *link = &p.links[packet.link]
    cdef Sender *sender = p.senders[packet.link]
    cdef Hop back
    cdef uint8_t *ip
    cdef uint32_t length
    if sender == NULL or not may_answer(p, packet):
        return False
    ip = sender_scratch(sender)
    length = write_error(ip, packet, link.address if packet.side != keys.LOCAL else packet.ends.daddr,
                         <uint16_t>table.next_random(p.table))
    write_way_back(&back, packet, link)
    queue_frame(p, &back, ip, length, NULL, WEIGHT_NOTICE)
    return True
