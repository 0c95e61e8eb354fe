# Writing new addresses and ids over a packet, with the checksums that cover them; numbers are added, nothing is summed up.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmasq.path cimport identification
from fastmasq.path.packet cimport Packet
from fastmasq.path.state cimport Path
from fastmasq.ring.abi cimport VNET_DATA_VALID
from fastmasq.table.keys cimport Ends
from fastmasq.table.rows cimport Flow
from fastmasq.wire cimport icmp, ipv4, numbers, tcp, udp
from fastmasq.wire.checksum cimport (
    delta16, delta32, fold, sum_octets, sum_pseudo_header, update_full_at, update_partial, update_udp_at,
)
from fastmasq.wire.octets cimport load16, load32, store16, store32


cdef inline void rewrite_header(Path *p, Packet *packet, uint32_t saddr, uint32_t daddr, uint32_t address_delta) noexcept nogil:
    """Write these addresses, one less in the TTL (RFC 1812 section 5.3.1), and another identification where it is due."""
    cdef uint8_t *ip = packet.ip
    cdef uint16_t before = load16(ip + ipv4.TTL)
    cdef uint16_t after = before - ipv4.ONE_LINK
    cdef uint32_t delta = address_delta + delta16(before, after) + identification.renumber(p, packet, saddr, daddr)
    store16(ip + ipv4.TTL, after)
    update_full_at(ip + ipv4.CHECKSUM, delta)
    store32(ip + ipv4.SOURCE, saddr)
    store32(ip + ipv4.DESTINATION, daddr)


cdef inline bint sums_addresses(uint8_t protocol, uint32_t length) noexcept nogil:
    """Whether a protocol whose ports are not translated has a checksum over the addresses within `length` octets.

    UDP-Lite (RFC 3828 section 3.1) and DCCP (RFC 4340 section 9.1) have it where UDP has its own.
    """
    return (protocol == numbers.UDP_LITE or protocol == numbers.DCCP) and length >= udp.MINIMUM


cdef inline void rewrite_transport(Packet *packet, uint16_t sid, uint16_t did, uint16_t address_delta,
                                   uint16_t transport_delta) noexcept nogil:
    cdef uint8_t *at = packet.transport
    cdef uint8_t protocol = packet.protocol
    if protocol == numbers.TCP or protocol == numbers.UDP:
        store16(at, sid)
        store16(at + 2, did)
        at += tcp.CHECKSUM if protocol == numbers.TCP else udp.CHECKSUM
        if packet.partial:
            # the field holds the sum of the pseudo-header: whoever completes it will add the new ports
            store16(at, update_partial(load16(at), address_delta))
        elif protocol == numbers.TCP:
            update_full_at(at, transport_delta)
        else:
            update_udp_at(at, transport_delta)
    elif protocol == numbers.ICMP:
        store16(at + icmp.IDENTIFIER, sid if icmp.is_query(at[0]) else did)
        update_full_at(at + icmp.CHECKSUM, transport_delta)
    elif sums_addresses(protocol, packet.length - packet.header_length):
        if protocol == numbers.DCCP:
            update_full_at(at + udp.CHECKSUM, transport_delta)
        else:
            update_udp_at(at + udp.CHECKSUM, transport_delta)


cdef inline void rewrite_flow(Path *p, Packet *packet, const Flow *flow) noexcept nogil:
    """Turn a packet that matches `flow` into what the flow writes."""
    rewrite_header(p, packet, flow.saddr, flow.daddr, flow.address_delta)
    rewrite_transport(packet, flow.sid, flow.did, flow.address_delta, flow.transport_delta)


cdef inline void rewrite_addresses(Path *p, Packet *packet, uint32_t saddr, uint32_t daddr) noexcept nogil:
    """Give new addresses to a packet that no checksum of its own ties to them."""
    rewrite_header(p, packet, saddr, daddr, delta32(packet.ends.saddr, saddr) + delta32(packet.ends.daddr, daddr))


cdef inline void rewrite_ends(Path *p, Packet *packet, const Ends *ends) noexcept nogil:
    """Give a packet new ends, as a flow would; deltas are computed here."""
    cdef uint32_t address_delta = delta32(packet.ends.saddr, ends.saddr) + delta32(packet.ends.daddr, ends.daddr)
    cdef uint16_t transport_delta = fold(delta16(packet.ends.sid, ends.sid) + delta16(packet.ends.did, ends.did))
    if packet.protocol == numbers.TCP or packet.protocol == numbers.UDP:
        transport_delta = fold(<uint32_t>transport_delta + fold(address_delta))
    rewrite_addresses(p, packet, ends.saddr, ends.daddr)
    rewrite_transport(packet, ends.sid, ends.did, fold(address_delta), transport_delta)


cdef inline bint checksum_is_right(const Packet *packet) noexcept nogil:
    """Whether the TCP checksum may be computed anew: partial, vouched for by the device, or verified here."""
    cdef uint32_t length = packet.length - packet.header_length
    if packet.partial or packet.frame.vnet.flags & VNET_DATA_VALID:
        return True
    return fold(<unsigned long long>sum_pseudo_header(load32(packet.ip + ipv4.SOURCE), load32(packet.ip + ipv4.DESTINATION),
                                                      numbers.TCP, <uint16_t>length)
                + sum_octets(packet.transport, length)) == 0xFFFF


cdef inline void edit_payload(Packet *packet, uint32_t offset, uint8_t octet) noexcept nogil:
    """Write one octet of a TCP segment's payload, and what that does to its checksum unless that is still to be summed up."""
    cdef uint32_t header = tcp.header_length(packet.transport)
    cdef uint8_t *at = packet.transport + header + offset
    cdef uint16_t before = at[0] if offset & 1 else <uint16_t>at[0] << 8
    cdef uint16_t after = octet if offset & 1 else <uint16_t>octet << 8
    if packet.header_length + header + offset >= packet.length:
        return
    at[0] = octet
    if not packet.partial:
        update_full_at(packet.transport + tcp.CHECKSUM, delta16(before, after))
