# The packet in hand: what is known of it, filled in on its way. Every stage is `Outcome stage(Path *p, Packet *packet)`.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.path.punts cimport Answer
from fastmasq.path.links cimport Hop, Route
from fastmasq.path.rules cimport Passage
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.ring cimport Frame
from fastmasq.table.keys cimport Ends

cdef enum:
    PACKET_OCTETS = 128         # two cache lines
    LEAST_SEGMENT = 8           # octets of payload in a segment of a large send; Linux makes none smaller (tcp_mss_to_mtu)

cdef enum:                 # of packets
    KIND_SESSION = 0            # TCP, UDP, ICMP query or reply: has a flow key
    KIND_ICMP_ERROR = 1
    KIND_ICMP_OTHER = 2
    KIND_PROTOCOL_OTHER = 3
    KIND_FRAGMENT = 4           # a later one: without a transport header
    KIND_TUNNEL = 5             # GRE of PPTP or ESP, while a tracker follows it


cdef struct Told:
    # the ICMP error by which the sender of a dropped packet learns of it
    uint8_t type                # 0, an echo reply, stands for none
    uint8_t code
    uint16_t mtu                # 0 except for code 4 of type 3


cdef struct Packet:
    # PACKET_OCTETS: a batch of them stays in the first-level cache
    Frame *frame
    # as it came, see parse.pxd
    uint8_t *ip
    uint8_t *transport
    uint64_t key0               # of the flow it would be in
    uint64_t key1
    Ends ends
    uint32_t hash               # of the key
    uint32_t length             # IPv4 total length
    uint8_t header_length
    uint8_t protocol
    uint8_t kind
    uint8_t link                # it came by
    uint8_t side                # of that link
    uint8_t is_fragment         # of a datagram in pieces
    uint8_t partial             # the transport checksum is the pseudo-header sum only
    uint8_t guessed             # a large send without a virtio header: its segment size is our guess
    Outcome door                # what the checks of its headers say: GOES_ON, or a drop reason
    # on its way
    const Route *route          # of its destination; NULL: not looked up yet
    Hop *hop                    # it leaves by; NULL: not known yet
    uint32_t towards            # the address that the hop has been chosen for
    uint16_t identification     # that a fragment is to leave with, if renumbered
    uint8_t renumbered
    uint8_t has_waited          # it was let in before, and waited: not to be counted twice
    const Answer *answer        # of a tracker that has been asked about it; NULL: none has
    Passage *passage            # through the rules; NULL where there are none
    uint32_t tunnel_id          # of KIND_TUNNEL: Call ID or SPI
    uint32_t tunnel_serial      # of its way, if there is one
    Told told


cdef inline Outcome refused(Packet *packet, int reason, uint8_t type, uint8_t code, uint16_t mtu) noexcept nogil:
    """Drop a packet, still as it was received, and have its sender told by an ICMP error; returns the reason."""
    packet.told.type = type
    packet.told.code = code
    packet.told.mtu = mtu
    return reason
