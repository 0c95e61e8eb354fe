# From a frame to offsets and a flow key: every length is checked here, once, and never again.
#
# What the checks promise when `drop` is -1: `ip` points at an IPv4 header of `header_length` octets with a right
# checksum; `length` octets from `ip` on exist; `transport` points behind the header; for KIND_SESSION the whole TCP
# header, UDP header, or 8 octets of ICMP exist, and ports or identifier are in sid and did; for the other ICMP kinds 8
# octets exist. A datagram's first fragment is parsed like a whole packet, a later one is KIND_FRAGMENT. Not promised: that
# transport checksums are right (a wrong one stays wrong, RFC 1624).

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from fastmasq.path.state cimport (
    KIND_FRAGMENT, KIND_ICMP_ERROR, KIND_ICMP_OTHER, KIND_PROTOCOL_OTHER, KIND_SESSION, Link, Parsed,
)
from fastmasq.path.verdict cimport (
    BAD_HEADER_LENGTH, BAD_IP_CHECKSUM, BAD_IP_OPTIONS, BAD_TOTAL_LENGTH, BAD_TRANSPORT_HEADER, FRAGMENT_BAD, FRAGMENT_TINY,
    NOT_FOR_US, NOT_IPV4, SOURCE_ROUTE, TOO_SHORT, TRUNCATED, VLAN_TAGGED,
)
from fastmasq.ring.abi cimport (
    GSO_NONE, GSO_TCPV4, GSO_UDP_L4, PACKET_HOST, PACKET_OTHERHOST, PACKET_OUTGOING, VNET_NEEDS_CSUM, VnetHeader,
)
from fastmasq.ring.ring cimport Frame
from fastmasq.table.keys cimport KEY_REPLY, make_key0, make_key1
from fastmasq.wire.checksum cimport sum_octets
from fastmasq.wire.ethernet cimport ETHERNET_TYPE, ETHERTYPE_IPV4
from fastmasq.wire.icmp cimport ICMP_IDENTIFIER, ICMP_LENGTH, is_error, is_query, is_reply, query_of
from fastmasq.wire.ipv4 cimport (
    IPV4_DESTINATION, IPV4_FRAGMENT, IPV4_MINIMUM, IPV4_PROTOCOL, IPV4_SOURCE, IPV4_TOTAL_LENGTH,
    MORE_FRAGMENTS, OFFSET_MASK, OPTIONS_PLAIN, OPTIONS_SOURCE_ROUTE, OptionsCheck,
    PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, check_options, is_fragment,
)
from fastmasq.wire.octets cimport load16, load32
from fastmasq.wire.tcp cimport TCP_CHECKSUM, TCP_MINIMUM, header_length as tcp_header_length
from fastmasq.wire.udp cimport UDP_CHECKSUM, UDP_LENGTH, UDP_LENGTH_OCTETS

cdef enum:
    GUESSED_MTU = 1280          # for segments whose size nothing tells: hardly a path is narrower (RFC 8200 section 5)


cdef inline int parse_network(const uint8_t *ip, uint32_t available, Parsed *parsed) noexcept nogil:
    """Check the IPv4 header in `available` octets and fill in the network fields; return a DropReason or -1."""
    cdef uint32_t header_length
    cdef OptionsCheck options
    if available < IPV4_MINIMUM:
        return TOO_SHORT
    if ip[0] >> 4 != 4:
        return NOT_IPV4
    header_length = (ip[0] & 0x0F) * 4
    if header_length < IPV4_MINIMUM or header_length > available:
        return BAD_HEADER_LENGTH
    parsed.length = load16(ip + IPV4_TOTAL_LENGTH)
    if parsed.length < header_length or parsed.length > available:
        return BAD_TOTAL_LENGTH
    if sum_octets(ip, header_length) != 0xFFFF:
        return BAD_IP_CHECKSUM
    if header_length > IPV4_MINIMUM:
        options = check_options(ip, header_length)
        if options != OPTIONS_PLAIN:
            return SOURCE_ROUTE if options == OPTIONS_SOURCE_ROUTE else BAD_IP_OPTIONS
    parsed.header_length = <uint8_t>header_length
    parsed.protocol = ip[IPV4_PROTOCOL]
    parsed.saddr = load32(ip + IPV4_SOURCE)
    parsed.daddr = load32(ip + IPV4_DESTINATION)
    return -1


cdef inline int parse_icmp(const uint8_t *icmp, uint32_t length, Parsed *parsed) noexcept nogil:
    if length < ICMP_LENGTH:
        return BAD_TRANSPORT_HEADER
    if is_query(icmp[0]) or is_reply(icmp[0]):
        parsed.kind = KIND_SESSION
        if is_query(icmp[0]):
            parsed.sid = load16(icmp + ICMP_IDENTIFIER)
            parsed.did = icmp[0]
        else:
            parsed.sid = query_of(icmp[0])
            parsed.did = load16(icmp + ICMP_IDENTIFIER)
    else:
        parsed.kind = KIND_ICMP_ERROR if is_error(icmp[0]) else KIND_ICMP_OTHER
    return -1


cdef inline int parse_transport(const uint8_t *transport, Parsed *parsed) noexcept nogil:
    """Check the transport header and set kind and ids; return a DropReason or -1.

    A first fragment has its transport header whole (RFC 1858 section 3), but not all that a UDP header announces.
    """
    cdef uint32_t length = parsed.length - parsed.header_length
    cdef uint32_t size
    if parsed.protocol == PROTOCOL_TCP:
        if length < TCP_MINIMUM:
            return BAD_TRANSPORT_HEADER
        size = tcp_header_length(transport)
        if size < TCP_MINIMUM or size > length:
            return BAD_TRANSPORT_HEADER
    elif parsed.protocol == PROTOCOL_UDP:
        if length < UDP_LENGTH_OCTETS:
            return BAD_TRANSPORT_HEADER
        size = load16(transport + UDP_LENGTH)
        if size < UDP_LENGTH_OCTETS or (size > length and not parsed.fragment):
            return BAD_TRANSPORT_HEADER
    elif parsed.protocol == PROTOCOL_ICMP:
        return parse_icmp(transport, length, parsed)
    else:
        parsed.kind = KIND_PROTOCOL_OTHER
        return -1
    parsed.kind = KIND_SESSION
    parsed.sid = load16(transport)
    parsed.did = load16(transport + 2)
    return -1


cdef inline int check_fragment(const Parsed *parsed) noexcept nogil:
    """Check offset and length of a fragment; return a DropReason or -1 (RFC 791 section 3.2, RFC 3128 section 4)."""
    cdef uint16_t field = load16(parsed.ip + IPV4_FRAGMENT)
    cdef uint32_t offset = <uint32_t>(field & OFFSET_MASK) * 8
    cdef uint32_t octets = parsed.length - parsed.header_length
    if octets == 0 or (field & MORE_FRAGMENTS and octets & 7) or parsed.header_length + offset + octets > 65535:
        return FRAGMENT_BAD
    if parsed.protocol == PROTOCOL_TCP and offset == 8:
        return FRAGMENT_TINY
    return -1


cdef inline void settle_offload(Frame *frame, Parsed *parsed, const Link *link) noexcept nogil:
    """Find out whether the transport checksum is partial; where no virtio header told, note start and segment size."""
    cdef uint32_t start = <uint32_t>(parsed.transport - frame.data)
    parsed.partial = False
    parsed.guessed = False
    if not frame.vnet.flags & VNET_NEEDS_CSUM:
        return
    if frame.vnet.csum_start == 0:
        if parsed.protocol == PROTOCOL_TCP:
            frame.vnet.csum_offset = TCP_CHECKSUM
        elif parsed.protocol == PROTOCOL_UDP:
            frame.vnet.csum_offset = UDP_CHECKSUM
        else:
            frame.vnet.flags = 0
            return
        frame.vnet.csum_start = <uint16_t>start
        if parsed.protocol == PROTOCOL_UDP and parsed.length > link.mtu:
            frame.vnet.gso_type = GSO_UDP_L4        # several datagrams, of a size that nothing tells: cannot be cut
        elif parsed.length > link.mtu:
            frame.vnet.gso_type = GSO_TCPV4
            frame.vnet.hdr_len = <uint16_t>(start + tcp_header_length(parsed.transport))
            frame.vnet.gso_size = <uint16_t>((link.mtu if link.mtu < GUESSED_MTU else GUESSED_MTU)
                                             - (frame.vnet.hdr_len - link.header_length))
            parsed.guessed = True
    # a partial checksum further inside (a tunnel's) does not cover our header and is left alone
    parsed.partial = frame.vnet.csum_start == start


cdef inline void parse_frame(Frame *frame, const Link *link, Parsed *parsed) noexcept nogil:
    """Fill in `parsed` for one frame received on `link`."""
    cdef uint8_t *ip = frame.data + link.header_length
    cdef uint8_t side
    parsed.drop = -1
    if frame.truncated:
        parsed.drop = TRUNCATED
        return
    if frame.packet_type == PACKET_OTHERHOST or frame.packet_type == PACKET_OUTGOING:
        parsed.drop = NOT_FOR_US
        return
    if frame.tagged:
        parsed.drop = VLAN_TAGGED
        return
    if frame.length < <uint32_t>link.header_length + IPV4_MINIMUM:
        parsed.drop = TOO_SHORT
        return
    if link.header_length and load16(frame.data + ETHERNET_TYPE) != ETHERTYPE_IPV4:
        parsed.drop = NOT_IPV4
        return
    parsed.ip = ip
    parsed.drop = parse_network(ip, frame.length - link.header_length, parsed)
    if parsed.drop >= 0:
        return
    parsed.transport = ip + parsed.header_length
    parsed.partial = False
    parsed.guessed = False
    parsed.fragment = is_fragment(ip)
    parsed.renumbered = False
    if parsed.fragment:
        memset(&frame.vnet, 0, sizeof(VnetHeader))      # its checksum covers more than is here: nobody can complete it
        parsed.drop = check_fragment(parsed)
        if parsed.drop >= 0:
            return
        if load16(ip + IPV4_FRAGMENT) & OFFSET_MASK:
            parsed.kind = KIND_FRAGMENT
            return
    parsed.drop = parse_transport(parsed.transport, parsed)
    if parsed.drop >= 0:
        if parsed.fragment:
            parsed.drop = FRAGMENT_TINY
        return
    if not parsed.fragment:
        settle_offload(frame, parsed, link)
    if parsed.kind == KIND_SESSION:
        parsed.key0 = make_key0(parsed.saddr, parsed.daddr)
        side = link.side
        if parsed.protocol == PROTOCOL_ICMP and is_reply(parsed.transport[0]):
            side |= KEY_REPLY
        parsed.key1 = make_key1(parsed.protocol, side, parsed.sid, parsed.did)
