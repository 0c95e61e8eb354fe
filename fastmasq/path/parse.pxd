# From a frame to offsets and a flow key: every length is checked here, once, and never again.
#
# What the checks promise when `door` is GOES_ON: `ip` points at an IPv4 header of `header_length` octets with a right
# checksum; `length` octets from `ip` on exist; `transport` points behind the header; for KIND_SESSION the whole TCP
# header, UDP header, or 8 octets of ICMP exist, and ports or identifier are in its ends; for the other ICMP kinds 8
# octets exist. A datagram's first fragment is parsed like a whole packet, a later one is KIND_FRAGMENT. Not promised: that
# transport checksums are right (a wrong one stays wrong, RFC 1624).

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memset

from fastmasq.path cimport verdict
from fastmasq.path.packet cimport (
    KIND_FRAGMENT, KIND_ICMP_ERROR, KIND_ICMP_OTHER, KIND_PROTOCOL_OTHER, KIND_SESSION, LEAST_SEGMENT, Packet,
)
from fastmasq.path.links cimport Link
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.abi cimport (
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_UDP_L4, PACKET_HOST, PACKET_OTHERHOST, PACKET_OUTGOING, VNET_NEEDS_CSUM,
    VnetHeader,
)
from fastmasq.ring.ring cimport Frame
from fastmasq.table cimport keys
from fastmasq.wire cimport ethernet, icmp, ipv4, numbers, tcp, udp
from fastmasq.wire.branches cimport rarely
from fastmasq.wire.checksum cimport is_right_header
from fastmasq.wire.octets cimport load16, load32

cdef enum:
    GUESSED_MTU = 1280          # for segments whose size nothing tells: hardly a path is narrower (RFC 8200 section 5)
    UDP_SEGMENTS = 128          # of one large send at the most (udp(7), UDP_SEGMENT)
    SCTP_CHECKSUM = 8           # RFC 9260 section 3.1
    TUNNEL_HEADER = 8           # octets at least before what a tunnel carries: of UDP, of GRE with a key, of ESP


cdef inline Outcome parse_network(Packet *packet, uint32_t available) noexcept nogil:
    """Check the IPv4 header in `available` octets and fill in the network fields."""
    cdef const uint8_t *ip = packet.ip
    cdef uint32_t header_length
    cdef ipv4.OptionsCheck options
    if available < ipv4.MINIMUM:
        return verdict.TOO_SHORT
    if ip[0] >> 4 != 4:
        return verdict.NOT_IPV4
    header_length = (ip[0] & 0x0F) * 4
    if header_length < ipv4.MINIMUM or header_length > available:
        return verdict.BAD_HEADER_LENGTH
    packet.length = load16(ip + ipv4.TOTAL_LENGTH)
    if packet.length < header_length or packet.length > available:
        return verdict.BAD_TOTAL_LENGTH
    if not is_right_header(ip, header_length):
        return verdict.BAD_IP_CHECKSUM
    if rarely(header_length > ipv4.MINIMUM):
        options = ipv4.check_options(ip, header_length)
        if options != ipv4.OPTIONS_PLAIN:
            return verdict.SOURCE_ROUTE if options == ipv4.OPTIONS_SOURCE_ROUTE else verdict.BAD_IP_OPTIONS
    packet.header_length = <uint8_t>header_length
    packet.protocol = ip[ipv4.PROTOCOL]
    packet.ends.saddr = load32(ip + ipv4.SOURCE)
    packet.ends.daddr = load32(ip + ipv4.DESTINATION)
    return verdict.GOES_ON


cdef inline Outcome parse_icmp(Packet *packet, uint32_t length) noexcept nogil:
    cdef const uint8_t *at = packet.transport
    if length < icmp.LENGTH:
        return verdict.BAD_TRANSPORT_HEADER
    if icmp.is_query(at[icmp.TYPE]):
        packet.kind = KIND_SESSION
        packet.ends.sid = load16(at + icmp.IDENTIFIER)
        packet.ends.did = at[icmp.TYPE]
    elif icmp.is_reply(at[icmp.TYPE]):
        packet.kind = KIND_SESSION
        packet.ends.sid = icmp.query_of(at[icmp.TYPE])
        packet.ends.did = load16(at + icmp.IDENTIFIER)
    else:
        packet.kind = KIND_ICMP_ERROR if icmp.is_error(at[icmp.TYPE]) else KIND_ICMP_OTHER
    return verdict.GOES_ON


cdef inline Outcome parse_transport(Packet *packet) noexcept nogil:
    """Check the transport header and set kind and ids.

    A first fragment has its transport header whole (RFC 1858 section 3), but not all that a UDP header announces.
    """
    cdef const uint8_t *at = packet.transport
    cdef uint32_t length = packet.length - packet.header_length
    cdef uint32_t size
    if packet.protocol == numbers.TCP:
        if length < tcp.MINIMUM:
            return verdict.BAD_TRANSPORT_HEADER
        size = tcp.header_length(at)
        if size < tcp.MINIMUM or size > length:
            return verdict.BAD_TRANSPORT_HEADER
        if rarely(tcp.is_impossible(at[tcp.FLAGS])):
            return verdict.BAD_TCP_FLAGS
    elif packet.protocol == numbers.UDP:
        if length < udp.MINIMUM:
            return verdict.BAD_TRANSPORT_HEADER
        size = load16(at + udp.LENGTH)
        if size < udp.MINIMUM or (size > length and not packet.is_fragment):
            return verdict.BAD_TRANSPORT_HEADER
    elif packet.protocol == numbers.ICMP:
        return parse_icmp(packet, length)
    else:
        packet.kind = KIND_PROTOCOL_OTHER
        return verdict.GOES_ON
    packet.kind = KIND_SESSION
    packet.ends.sid = load16(at)
    packet.ends.did = load16(at + 2)
    return verdict.GOES_ON


cdef inline Outcome check_fragment(const Packet *packet) noexcept nogil:
    """Check offset and length of a fragment (RFC 791 section 3.2, RFC 3128 section 4)."""
    cdef uint16_t field = load16(packet.ip + ipv4.FRAGMENT)
    cdef uint32_t offset = <uint32_t>(field & ipv4.OFFSET_MASK) * 8
    cdef uint32_t octets = packet.length - packet.header_length
    if octets == 0 or (field & ipv4.MORE_FRAGMENTS and octets & 7) or packet.header_length + offset + octets > 65535:
        return verdict.FRAGMENT_BAD
    if packet.protocol == numbers.TCP and offset == 8:
        return verdict.FRAGMENT_TINY
    return verdict.GOES_ON


cdef inline uint16_t guessed_segment(const Link *link, uint32_t headers) noexcept nogil:
    """Return a size for the segments of a large send that nothing tells, with so many octets of IPv4 and TCP header."""
    cdef uint32_t largest = link.mtu if link.mtu < GUESSED_MTU else GUESSED_MTU
    return <uint16_t>(largest - headers) if largest >= headers + LEAST_SEGMENT else LEAST_SEGMENT


cdef inline uint32_t checksum_offset(uint8_t protocol) noexcept nogil:
    """Return where the checksum that a sender may leave to its device is in a transport header, 0 where there is none."""
    if protocol == numbers.TCP:
        return tcp.CHECKSUM
    if protocol == numbers.UDP:
        return udp.CHECKSUM
    return SCTP_CHECKSUM if protocol == numbers.SCTP else 0


cdef inline void guess_offload(Packet *packet, const Link *link) noexcept nogil:
    """Note what a virtio header would say, where the ring only tells that the checksum is missing."""
    cdef Frame *frame = packet.frame
    cdef uint32_t start = <uint32_t>(packet.transport - frame.data)
    memset(&frame.vnet, 0, sizeof(VnetHeader))
    if packet.protocol != numbers.TCP and packet.protocol != numbers.UDP:
        return
    frame.vnet.flags = VNET_NEEDS_CSUM
    frame.vnet.csum_start = <uint16_t>start
    frame.vnet.csum_offset = <uint16_t>checksum_offset(packet.protocol)
    packet.partial = True
    if packet.length <= link.mtu:
        return
    if packet.protocol == numbers.UDP:
        frame.vnet.gso_type = GSO_UDP_L4            # several datagrams, of a size that nothing tells: cannot be cut
    else:
        frame.vnet.gso_type = GSO_TCPV4
        frame.vnet.gso_size = guessed_segment(link, start + tcp.header_length(packet.transport) - link.header_length)
        packet.guessed = True


cdef inline bint may_be_summed(const Packet *packet) noexcept nogil:
    """Whether a missing checksum is where the packet has one: the transport's own, or one further inside (a tunnel's).

    Whoever completes it writes over two octets where the virtio header says. No octet that has been judged by then, or
    translated, may be among them: of a sum further inside, none of the first 8 behind the IPv4 header.
    """
    cdef const VnetHeader *vnet = &packet.frame.vnet
    cdef uint32_t start = <uint32_t>(packet.transport - packet.frame.data)
    cdef uint32_t end = start + packet.length - packet.header_length
    if <uint32_t>vnet.csum_start + vnet.csum_offset + 2 > end:
        return False
    if vnet.csum_start == start:
        return vnet.csum_offset != 0 and vnet.csum_offset == checksum_offset(packet.protocol)
    return (vnet.csum_start >= start + TUNNEL_HEADER and packet.protocol != numbers.TCP
            and packet.protocol != numbers.ICMP)


cdef inline bint may_be_cut(const Packet *packet) noexcept nogil:
    """Whether a large send is of a kind that its protocol has, and not of more segments than a kernel makes one for.

    Datagrams of no size at all are those of `guess_offload` that have waited, and are dropped where they would be cut.
    """
    cdef const VnetHeader *vnet = &packet.frame.vnet
    cdef uint8_t kind = vnet.gso_type & ~<uint8_t>GSO_ECN
    if vnet.flags & VNET_NEEDS_CSUM and not packet.partial:
        return False
    if packet.protocol == numbers.TCP:
        return kind == GSO_TCPV4 and vnet.gso_size >= LEAST_SEGMENT
    if packet.protocol == numbers.UDP and kind == GSO_UDP_L4 and vnet.gso_size == 0:
        return True
    return (packet.protocol == numbers.UDP and (kind == GSO_UDP_L4 or kind == GSO_UDP)
            and <uint32_t>vnet.gso_size * UDP_SEGMENTS >= packet.length - packet.header_length - udp.MINIMUM)


cdef inline Outcome settle_offload(Packet *packet, const Link *link) noexcept nogil:
    """Find out whether the transport checksum is partial, and whether the virtio header is true of the packet.

    The host's kernel passes on whatever the peer of a veth or the guest behind a tap has written there.
    """
    cdef Frame *frame = packet.frame
    packet.partial = False
    packet.guessed = False
    if not (frame.vnet.flags & VNET_NEEDS_CSUM or frame.vnet.gso_type):
        return verdict.GOES_ON
    if frame.vnet.flags & VNET_NEEDS_CSUM:
        if frame.vnet.csum_start == 0:
            guess_offload(packet, link)
            return verdict.GOES_ON
        if not may_be_summed(packet):
            return verdict.BAD_OFFLOAD
        packet.partial = frame.vnet.csum_start == <uint32_t>(packet.transport - frame.data)
    return verdict.GOES_ON if frame.vnet.gso_type == GSO_NONE or may_be_cut(packet) else verdict.BAD_OFFLOAD


cdef inline bint is_for_macvlan(const Frame *frame, const Link *link) noexcept nogil:
    """Whether a frame that the kernel calls another station's is to a macvlan over the link."""
    cdef int i
    if link.header_length == 0 or frame.length < ethernet.LENGTH:
        return False
    for i in range(link.macvlan_count):
        if memcmp(frame.data + ethernet.DESTINATION, link.macvlans[i], ethernet.MAC) == 0:
            return True
    return False


cdef inline Outcome check_frame(Frame *frame, const Link *link) noexcept nogil:
    """Check what the ring says of a frame, and that there is room for an IPv4 header in it.

    One that is to a macvlan over the link is for us, whatever the kernel says.
    """
    if rarely(frame.packet_type == PACKET_OTHERHOST):
        if not is_for_macvlan(frame, link):
            return verdict.NOT_FOR_US
        frame.packet_type = PACKET_HOST
    elif frame.packet_type == PACKET_OUTGOING:
        return verdict.NOT_FOR_US
    if frame.truncated:
        return verdict.TRUNCATED
    if frame.tagged:
        return verdict.VLAN_TAGGED
    if frame.length < <uint32_t>link.header_length + ipv4.MINIMUM:
        return verdict.TOO_SHORT
    if link.header_length and load16(frame.data + ethernet.TYPE) != ethernet.ETHERTYPE_IPV4:
        return verdict.NOT_IPV4
    return verdict.GOES_ON


cdef inline Outcome parse_packet(Packet *packet, const Link *link) noexcept nogil:
    """Check the packet in a frame that has passed, and fill in what is known of it as it came."""
    cdef Frame *frame = packet.frame
    cdef Outcome outcome
    cdef uint8_t side = link.side
    packet.ip = frame.data + link.header_length
    outcome = parse_network(packet, frame.length - link.header_length)
    if outcome != verdict.GOES_ON:
        return outcome
    packet.transport = packet.ip + packet.header_length
    packet.partial = False
    packet.guessed = False
    packet.is_fragment = ipv4.is_fragment(packet.ip)
    packet.renumbered = False
    if rarely(packet.is_fragment):
        memset(&frame.vnet, 0, sizeof(VnetHeader))      # its checksum covers more than is here: nobody can complete it
        outcome = check_fragment(packet)
        if outcome != verdict.GOES_ON:
            return outcome
        if load16(packet.ip + ipv4.FRAGMENT) & ipv4.OFFSET_MASK:
            packet.kind = KIND_FRAGMENT
            return verdict.GOES_ON
    outcome = parse_transport(packet)
    if outcome != verdict.GOES_ON:
        return verdict.FRAGMENT_TINY if packet.is_fragment and outcome == verdict.BAD_TRANSPORT_HEADER else outcome
    if not packet.is_fragment:
        outcome = settle_offload(packet, link)
        if outcome != verdict.GOES_ON:
            return outcome
    if packet.kind == KIND_SESSION:
        if packet.protocol == numbers.ICMP and icmp.is_reply(packet.transport[icmp.TYPE]):
            side |= keys.KEY_REPLY
        packet.key0 = keys.make_key0(packet.ends.saddr, packet.ends.daddr)
        packet.key1 = keys.make_key1(packet.protocol, side, packet.ends.sid, packet.ends.did)
    return verdict.GOES_ON


cdef inline void take_frame(Packet *packet, Frame *frame, const Link *links, int link) noexcept nogil:
    """Take a frame received on a link in hand: what is wrong with it, if anything, is in `door` then."""
    packet.frame = frame
    packet.link = <uint8_t>link
    packet.side = links[link].side
    packet.route = NULL
    packet.hop = NULL
    packet.answer = NULL
    packet.passage = NULL
    packet.has_waited = False
    packet.told.type = 0
    packet.door = check_frame(frame, &links[link])
    if packet.door == verdict.GOES_ON:
        packet.door = parse_packet(packet, &links[link])
