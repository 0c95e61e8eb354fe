# Who talks to whom: the two ends of a packet as numbers, and the 16-octet key that its flow is found by.
#
# The key is the same for every protocol:
#   key0    source address << 32 | destination address
#   key1    protocol << 56 | side of arrival (and KEY_REPLY) << 48 | source id << 32 | destination id
# An id is a port, an ICMP identifier or type, a Call ID, or an ESP SPI, which needs all 32 bits of the destination id.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    INSIDE = 0
    OUTSIDE = 1
    LOCAL = 4                   # the host itself, as the other end of redirected sessions

    KEY_REPLY = 0x02            # added to the side in the key of an ICMP reply, which has type and identifier swapped
    KEY_EXPECTED = 0x08         # the same of a session that waits for a remote's first packet: no packet has that key


cdef struct Ends:
    # host order; ids are ports or ICMP identifiers, 0 in protocols without
    uint32_t saddr
    uint32_t daddr
    uint16_t sid
    uint16_t did


cdef inline Ends make_ends(uint32_t saddr, uint16_t sid, uint32_t daddr, uint16_t did) noexcept nogil:
    cdef Ends ends
    ends.saddr, ends.daddr = saddr, daddr
    ends.sid, ends.did = sid, did
    return ends


cdef inline Ends turned(Ends ends) noexcept nogil:
    """Return the ends of an answer."""
    return make_ends(ends.daddr, ends.did, ends.saddr, ends.sid)


cdef inline uint64_t make_key0(uint32_t saddr, uint32_t daddr) noexcept nogil:
    return (<uint64_t>saddr << 32) | daddr


cdef inline uint64_t make_key1(uint8_t protocol, uint8_t side, uint16_t sid, uint32_t did) noexcept nogil:
    return (<uint64_t>protocol << 56) | (<uint64_t>side << 48) | (<uint64_t>sid << 32) | did


cdef inline uint32_t key_saddr(uint64_t key0) noexcept nogil:
    return <uint32_t>(key0 >> 32)


cdef inline uint32_t key_daddr(uint64_t key0) noexcept nogil:
    return <uint32_t>key0


cdef inline uint8_t key_protocol(uint64_t key1) noexcept nogil:
    return <uint8_t>(key1 >> 56)


cdef inline uint8_t key_side(uint64_t key1) noexcept nogil:
    """Return the side of arrival, KEY_REPLY included."""
    return <uint8_t>(key1 >> 48)


cdef inline uint16_t key_sid(uint64_t key1) noexcept nogil:
    return <uint16_t>(key1 >> 32)


cdef inline uint32_t key_did(uint64_t key1) noexcept nogil:
    return <uint32_t>key1
