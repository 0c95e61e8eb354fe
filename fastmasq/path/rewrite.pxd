# Writing new addresses and ids over a packet, with the checksums that cover them; numbers are added, nothing is summed up.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmasq.path.state cimport Parsed
from fastmasq.table.rows cimport Flow
from fastmasq.wire.checksum cimport delta16, delta32, fold, update_full_at, update_partial, update_udp_at
from fastmasq.wire.icmp cimport ICMP_CHECKSUM, ICMP_IDENTIFIER, is_query
from fastmasq.wire.ipv4 cimport (
    IPV4_CHECKSUM, IPV4_DESTINATION, IPV4_SOURCE, IPV4_TTL, PROTOCOL_DCCP, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP,
    PROTOCOL_UDP_LITE,
)
from fastmasq.wire.octets cimport load16, store16, store32
from fastmasq.wire.tcp cimport TCP_CHECKSUM
from fastmasq.wire.udp cimport UDP_CHECKSUM, UDP_LENGTH_OCTETS


cdef inline void decrement_ttl(uint8_t *ip, uint32_t delta) noexcept nogil:
    """Take one from the TTL, and update the header checksum for that and for `delta` (RFC 1812 section 5.3.1)."""
    cdef uint16_t before = load16(ip + IPV4_TTL)
    ip[IPV4_TTL] -= 1
    update_full_at(ip + IPV4_CHECKSUM, delta16(before, load16(ip + IPV4_TTL)) + delta)


cdef inline bint sums_addresses(uint8_t protocol, uint32_t length) noexcept nogil:
    """Whether a protocol whose ports are not translated has a checksum over the addresses within `length` octets.

    UDP-Lite (RFC 3828 section 3.1) and DCCP (RFC 4340 section 9.1) have it where UDP has its own.
    """
    return (protocol == PROTOCOL_UDP_LITE or protocol == PROTOCOL_DCCP) and length >= UDP_LENGTH_OCTETS


cdef inline void rewrite_transport(Parsed *parsed, uint16_t sid, uint16_t did, uint16_t address_delta,
                                   uint16_t transport_delta) noexcept nogil:
    cdef uint8_t *at = parsed.transport
    if parsed.protocol == PROTOCOL_TCP or parsed.protocol == PROTOCOL_UDP:
        store16(at, sid)
        store16(at + 2, did)
        at += TCP_CHECKSUM if parsed.protocol == PROTOCOL_TCP else UDP_CHECKSUM
        if parsed.partial:
            # the field holds the sum of the pseudo-header: whoever completes it will add the new ports
            store16(at, update_partial(load16(at), address_delta))
        elif parsed.protocol == PROTOCOL_TCP:
            update_full_at(at, transport_delta)
        else:
            update_udp_at(at, transport_delta)
    elif parsed.protocol == PROTOCOL_ICMP:
        store16(at + ICMP_IDENTIFIER, sid if is_query(at[0]) else did)
        update_full_at(at + ICMP_CHECKSUM, transport_delta)
    elif sums_addresses(parsed.protocol, parsed.length - parsed.header_length):
        if parsed.protocol == PROTOCOL_DCCP:
            update_full_at(at + UDP_CHECKSUM, transport_delta)
        else:
            update_udp_at(at + UDP_CHECKSUM, transport_delta)


cdef inline void rewrite_flow(Parsed *parsed, const Flow *flow) noexcept nogil:
    """Turn a packet that matches `flow` into what the flow writes; TTL decremented."""
    decrement_ttl(parsed.ip, flow.address_delta)
    store32(parsed.ip + IPV4_SOURCE, flow.saddr)
    store32(parsed.ip + IPV4_DESTINATION, flow.daddr)
    rewrite_transport(parsed, flow.sid, flow.did, flow.address_delta, flow.transport_delta)


cdef inline void rewrite_endpoints(Parsed *parsed, uint32_t saddr, uint16_t sid, uint32_t daddr,
                                   uint16_t did) noexcept nogil:
    """The same without a flow: new endpoints, deltas computed here."""
    cdef uint16_t address_delta = fold(delta32(parsed.saddr, saddr) + delta32(parsed.daddr, daddr))
    cdef uint16_t transport_delta = fold(delta16(parsed.sid, sid) + delta16(parsed.did, did))
    if parsed.protocol == PROTOCOL_TCP or parsed.protocol == PROTOCOL_UDP:
        transport_delta = fold(<uint32_t>transport_delta + address_delta)
    decrement_ttl(parsed.ip, address_delta)
    store32(parsed.ip + IPV4_SOURCE, saddr)
    store32(parsed.ip + IPV4_DESTINATION, daddr)
    rewrite_transport(parsed, sid, did, address_delta, transport_delta)
