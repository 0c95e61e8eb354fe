# ICMP errors of our own: who may be answered, how often, and with what (RFC 1812 section 4.3.2, RFC 792).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmasq.path.egress cimport finish_header
from fastmasq.path.state cimport (
    BUCKETS, Bucket, KIND_FRAGMENT, KIND_ICMP_ERROR, KIND_ICMP_OTHER, Link, NO_LINK, Parsed, Path, ROUTE_UNICAST,
)
from fastmasq.path.verdict cimport NOTE_REPLIES_SUPPRESSED, REPLY
from fastmasq.ring.abi cimport PACKET_HOST, VNET_LENGTH
from fastmasq.ring.ring cimport Frame, Sender, sender_queue, sender_scratch
from fastmasq.table.keys cimport LOCAL
from fastmasq.table.siphash cimport siphash
from fastmasq.table.table cimport next_random
from fastmasq.wire.checksum cimport sum_octets
from fastmasq.wire.ethernet cimport ETHERNET_LENGTH, ETHERNET_TYPE, ETHERTYPE_IPV4
from fastmasq.wire.icmp cimport ICMP_CHECKSUM, ICMP_LENGTH, ICMP_MTU, is_query, is_reply
from fastmasq.wire.ipv4 cimport (
    IPV4_DESTINATION, IPV4_FRAGMENT, IPV4_ID, IPV4_MINIMUM, IPV4_PROTOCOL, IPV4_SOURCE, IPV4_TOTAL_LENGTH, IPV4_TTL,
    OFFSET_MASK, PROTOCOL_ICMP,
)
from fastmasq.wire.octets cimport load16, store16, store32

cdef enum:
    QUOTE_LENGTH = 548          # octets: the whole error stays within 576 (RFC 1812 section 4.3.2.3)
    INTERNETWORK_CONTROL = 0xC0  # precedence of errors (RFC 1812 section 4.3.2.5)
    REPLY_TTL = 64


cdef inline bint is_unicast_source(uint32_t address) noexcept nogil:
    """Whether an address can be that of one host: not 0/8, 127/8, multicast, 240/4 or broadcast (RFC 1812 section 5.3.7)."""
    return not (address >> 24 == 0 or address >> 24 == 127 or address >= 0xE0000000U)


cdef inline bint take_token(Bucket *bucket, uint32_t now_ms, uint32_t rate, uint32_t burst) noexcept nogil:
    cdef uint64_t tokens = bucket.tokens + <uint64_t>(now_ms - bucket.stamp_ms) * rate
    if tokens > <uint64_t>burst * 1000:
        tokens = <uint64_t>burst * 1000
    bucket.stamp_ms = now_ms
    bucket.tokens = <uint32_t>tokens
    if tokens < 1000:
        return False
    bucket.tokens -= 1000
    return True


cdef inline bint may_answer_fragment(const Parsed *parsed) noexcept nogil:
    """Only about a first fragment, and not about that of an ICMP error either."""
    if load16(parsed.ip + IPV4_FRAGMENT) & OFFSET_MASK:
        return False
    if parsed.protocol != PROTOCOL_ICMP:
        return True
    return parsed.length > parsed.header_length and (is_query(parsed.transport[0]) or is_reply(parsed.transport[0]))


cdef inline bint may_answer(Path *p, int link, const Frame *frame, const Parsed *parsed) noexcept nogil:
    """Never about an error, a later fragment, a broadcast or multicast, or to an address that is not one host's."""
    cdef uint64_t hash
    if (p.links[link].address == 0 and p.links[link].side != LOCAL) or frame.packet_type != PACKET_HOST:
        return False
    if parsed.kind == KIND_ICMP_ERROR or parsed.kind == KIND_ICMP_OTHER:
        return False
    if parsed.kind == KIND_FRAGMENT and not may_answer_fragment(parsed):
        return False
    if not is_unicast_source(parsed.saddr) or not is_unicast_source(parsed.daddr):
        return False
    if not p.limit_errors:
        return True
    hash = siphash(&p.table.secret, parsed.saddr, 0x6572726f72)
    return (take_token(&p.source_buckets[hash & (BUCKETS - 1)], p.now_ms, p.error_rate_source, p.error_rate_source)
            and take_token(&p.link_buckets[link], p.now_ms, p.error_rate, p.error_burst))


cdef inline void reply_error(Path *p, int link, const Frame *frame, const Parsed *parsed, uint8_t type, uint8_t code,
                             uint16_t mtu) noexcept nogil:
    """Answer a packet, still as it was received, to the station that sent it; mtu is 0 except for code 4 of type 3.

    A program of this host is told by the address that it sent to: what comes from one of the host's own, or from where
    the host knows no way to, the kernel drops.
    """
    cdef Sender *sender = p.senders[link]
    cdef uint8_t *ip
    cdef uint8_t *icmp
    cdef uint8_t *start
    cdef uint32_t quote = parsed.length if parsed.length < QUOTE_LENGTH else QUOTE_LENGTH
    cdef uint32_t length = IPV4_MINIMUM + ICMP_LENGTH + quote
    if sender == NULL or not may_answer(p, link, frame, parsed):
        p.notes[NOTE_REPLIES_SUPPRESSED] += 1
        return
    ip = sender_scratch(sender)
    icmp = ip + IPV4_MINIMUM
    memset(ip, 0, IPV4_MINIMUM + ICMP_LENGTH)
    ip[0] = 0x45
    ip[1] = INTERNETWORK_CONTROL
    store16(ip + IPV4_TOTAL_LENGTH, <uint16_t>length)
    store16(ip + IPV4_ID, <uint16_t>next_random(p.table))
    ip[IPV4_TTL] = REPLY_TTL
    ip[IPV4_PROTOCOL] = PROTOCOL_ICMP
    store32(ip + IPV4_SOURCE, p.links[link].address if p.links[link].side != LOCAL else parsed.daddr)
    store32(ip + IPV4_DESTINATION, parsed.saddr)
    finish_header(ip, IPV4_MINIMUM)
    icmp[0] = type
    icmp[1] = code
    store16(icmp + ICMP_MTU, mtu)
    memcpy(icmp + ICMP_LENGTH, parsed.ip, quote)
    store16(icmp + ICMP_CHECKSUM, <uint16_t>~sum_octets(icmp, ICMP_LENGTH + quote))
    start = ip
    if p.links[link].header_length:
        start -= ETHERNET_LENGTH
        memcpy(start, frame.data + 6, 6)
        memcpy(start + 6, p.links[link].mac, 6)
        store16(start + ETHERNET_TYPE, ETHERTYPE_IPV4)
        length += ETHERNET_LENGTH
    p.traffic[link].tx_packets += 1
    p.traffic[link].tx_bytes += length
    if sender.vnet:
        start -= VNET_LENGTH
        memset(start, 0, VNET_LENGTH)
        length += VNET_LENGTH
    sender_queue(sender, start, length, 1)
    p.verdicts[REPLY] += 1
