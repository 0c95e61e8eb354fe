# Identifications of packets that may be cut further on: inside hosts share an address, and must not share these (RFC 6864).
#
# A counter for each destination, by a bucket of a keyed hash, as Linux has them: among what goes to one, and with one protocol,
# none comes again before 65536 others have gone there. Which one a destination is at nobody else can tell.

from libc.stdint cimport uint16_t, uint32_t

from fastmasq.path.carrier cimport IDENTIFICATION_BITS
from fastmasq.path.packet cimport Packet
from fastmasq.path.state cimport Path
from fastmasq.ring.abi cimport GSO_NONE
from fastmasq.wire cimport ipv4
from fastmasq.wire.checksum cimport delta16
from fastmasq.wire.octets cimport load16, store16

cdef extern from * nogil:
    uint32_t __atomic_fetch_add(uint32_t *counter, uint32_t count, int order)
    int __ATOMIC_RELAXED


cdef inline uint16_t take(Path *p, uint32_t destination, uint32_t protocol, uint32_t count) noexcept nogil:
    """Return the first of `count` identifications in a row for packets to a destination."""
    cdef uint32_t hash = (destination ^ protocol << 16) * p.identification_key
    cdef uint32_t *counter = &p.identifications.counters[hash >> (32 - IDENTIFICATION_BITS)]
    cdef uint32_t first = counter[0]
    if p.carrier == NULL:
        counter[0] = first + count
    else:
        first = __atomic_fetch_add(counter, count, __ATOMIC_RELAXED)    # flow.bpf.c takes from it as well
    return <uint16_t>(first + hash)


cdef inline uint32_t segments_of(const Packet *packet) noexcept nogil:
    """Return as many as a large send is cut into, or more: whoever cuts it counts identifications on."""
    cdef uint32_t size = packet.frame.vnet.gso_size
    return 1 if packet.frame.vnet.gso_type == GSO_NONE or size == 0 else packet.length // size + 1


cdef inline bint wants_own(const Path *p, const Packet *packet, uint32_t saddr) noexcept nogil:
    """Whether a packet that leaves with this source is to have an identification of its own: if it came with another.

    What must not be cut may have any (RFC 6864 section 4.1); pieces have that of their datagram.
    """
    return ipv4.may_be_cut(packet.ip) and p.renumbers and not packet.is_fragment and saddr != packet.ends.saddr


cdef inline uint32_t renumber(Path *p, Packet *packet, uint32_t saddr, uint32_t daddr) noexcept nogil:
    """Write the identification that a packet leaves with between these addresses; return the delta for its header's checksum."""
    cdef uint16_t before
    if not packet.renumbered:
        if not wants_own(p, packet, saddr):
            return 0
        packet.identification = take(p, daddr, packet.protocol, segments_of(packet))
        packet.renumbered = True
    before = load16(packet.ip + ipv4.ID)
    store16(packet.ip + ipv4.ID, packet.identification)
    return delta16(before, packet.identification)
