# The last step of a packet that goes on: in what form it goes to its hop's link, whole or gathered or cut.

from libc.stdint cimport uint16_t, uint32_t

from fastmasq.path cimport mss, verdict
from fastmasq.path.cut cimport queue_fragments, queue_segments
from fastmasq.path.gather cimport gather
from fastmasq.path.packet cimport Packet
from fastmasq.path.queue cimport complete_checksum, queue_frame
from fastmasq.path.links cimport Hop
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.abi cimport GSO_NONE, VNET_NEEDS_CSUM, VnetHeader
from fastmasq.ring.ring cimport Frame, Sender
from fastmasq.wire cimport numbers, tcp, udp
from fastmasq.wire.branches cimport rarely


cdef inline uint32_t headers_of(const Packet *packet) noexcept nogil:
    """Return the octets of a large send that each of its segments begins with: IPv4 and TCP or UDP header."""
    return packet.header_length + (tcp.header_length(packet.transport) if packet.protocol == numbers.TCP else udp.MINIMUM)


cdef inline Outcome send_packet(Path *p, Packet *packet) noexcept nogil:
    """Send a packet, translated if it is to be, to its next hop in whatever form the hop's link takes."""
    cdef Hop *hop = packet.hop
    cdef const Sender *sender = p.senders[hop.link]
    cdef Frame *frame = packet.frame
    cdef const VnetHeader *vnet = NULL
    hop.used += 1
    if packet.protocol == numbers.TCP:
        if not packet.is_fragment and gather(p, packet):
            return verdict.FORWARDED
        if mss.may_offer(packet):
            mss.clamp(p, packet)
    if rarely(frame.vnet.gso_type != GSO_NONE and (frame.vnet.gso_size == 0 or not sender.vnet)):
        return queue_segments(p, packet)
    if rarely(frame.vnet.gso_type == GSO_NONE and packet.length > hop.mtu):
        return queue_fragments(p, packet)
    if not sender.vnet:
        if frame.vnet.flags & VNET_NEEDS_CSUM:
            complete_checksum(packet)
    elif frame.vnet.flags | frame.vnet.gso_type:
        frame.vnet.flags &= VNET_NEEDS_CSUM
        frame.vnet.csum_start += <int>hop.header_length - <int>p.links[packet.link].header_length
        if frame.vnet.gso_type != GSO_NONE:
            frame.vnet.hdr_len = <uint16_t>(hop.header_length + headers_of(packet))
        vnet = &frame.vnet
    queue_frame(p, hop, packet.ip, packet.length, vnet, 1)
    return verdict.FORWARDED
