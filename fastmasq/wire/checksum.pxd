# Internet checksums (RFC 1071) and their incremental update (RFC 1624), full and partial.
#
# A *full* checksum is the complement of the sum over pseudo-header, header and payload. A *partial* one (what a sender
# with checksum offload leaves behind, CHECKSUM_PARTIAL) is the plain sum of the pseudo-header alone; whoever sends the
# packet for good completes it. They need different updates, so there are two functions with two names.
#
# A *delta* is the folded sum of ~old + new over the 16-bit words that change. It is computed once, when a session is
# born, and added to every packet: eqn. 3 of RFC 1624, HC' = ~(~HC + ~m + m').

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmasq.wire.branches cimport rarely
from fastmasq.wire.ipv4 cimport MINIMUM
from fastmasq.wire.octets cimport load16, ntohs, store16


# Two halves are added by adding the whole to itself turned by a half: the upper half is their sum then, and what the lower
# one carries into it is the end-around carry.

cdef inline uint16_t fold32(uint32_t total) noexcept nogil:
    """Fold a sum of up to 2^16 words of 16 bits into one, end-around carry included."""
    return <uint16_t>((total + (total << 16 | total >> 16)) >> 16)


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """Fold a sum of up to 2^48 words of 16 bits into one."""
    return fold32(<uint32_t>((total + (total << 32 | total >> 32)) >> 32))


cdef inline uint64_t add_around(uint64_t total, uint64_t words) noexcept nogil:
    """Add four words of 16 bits at once to a sum of such, end-around carry included."""
    total += words
    return total + (total < words)


cdef inline uint16_t sum_octets(const uint8_t *data, size_t length) noexcept nogil:
    """Return the folded one's-complement sum of `length` octets as big-endian words; an odd octet is padded with zero."""
    cdef uint64_t total = 0
    cdef uint64_t word
    cdef uint32_t half
    cdef uint16_t pair
    while length >= 8:
        memcpy(&word, data, 8)
        total += word & 0xFFFFFFFFU
        total += word >> 32
        data += 8
        length -= 8
    if length >= 4:
        memcpy(&half, data, 4)
        total += half
        data += 4
        length -= 4
    if length >= 2:
        memcpy(&pair, data, 2)
        total += pair
        data += 2
        length -= 2
    if length:
        pair = 0
        memcpy(&pair, data, 1)
        total += pair
    return ntohs(fold(total))


cdef inline bint is_right_header(const uint8_t *ip, uint32_t length) noexcept nogil:
    """Whether an IPv4 header of `length` octets, a multiple of 4 and 20 at least, has a right checksum (RFC 791 section 3.1).

    The sum of words that are right is 0xFFFF in whatever order of octets (RFC 1071 section 1.2, B).
    """
    cdef uint64_t head[2]
    cdef uint32_t last
    if rarely(length != MINIMUM):
        return sum_octets(ip, length) == 0xFFFF
    memcpy(head, ip, 16)
    memcpy(&last, ip + 16, 4)
    return fold(add_around(add_around(head[0], head[1]), last)) == 0xFFFF


cdef inline uint16_t sum_pseudo_header(uint32_t saddr, uint32_t daddr, uint8_t protocol, uint16_t length) noexcept nogil:
    """Return the folded sum of the IPv4 pseudo-header (RFC 793 section 3.1); length is that of header and payload."""
    return fold(<uint64_t>(saddr >> 16) + (saddr & 0xFFFF) + (daddr >> 16) + (daddr & 0xFFFF) + protocol + length)


cdef inline uint32_t delta16(uint16_t old, uint16_t new) noexcept nogil:
    """Return the unfolded delta of one 16-bit word."""
    return <uint32_t>(<uint16_t>~old) + new


cdef inline uint32_t delta32(uint32_t old, uint32_t new) noexcept nogil:
    """Return the unfolded delta of one 32-bit word."""
    return delta16(<uint16_t>(old >> 16), <uint16_t>(new >> 16)) + delta16(<uint16_t>old, <uint16_t>new)


cdef inline uint16_t update_full(uint16_t checksum, uint32_t delta) noexcept nogil:
    """Return a full checksum after a change (RFC 1624 section 3, eqn. 3). A wrong checksum stays wrong."""
    return <uint16_t>~fold32(<uint16_t>~checksum + delta)


cdef inline uint16_t update_partial(uint16_t checksum, uint32_t address_delta) noexcept nogil:
    """Return a partial checksum (uncomplemented pseudo-header sum) after a change of addresses only."""
    return fold32(checksum + address_delta)


cdef inline void update_full_at(uint8_t *field, uint32_t delta) noexcept nogil:
    store16(field, update_full(load16(field), delta))


cdef inline void update_udp_at(uint8_t *field, uint32_t delta) noexcept nogil:
    """Update a full UDP checksum: none (0) stays none (RFC 3022 section 4.1), a computed 0 is sent as 0xFFFF (RFC 768)."""
    cdef uint16_t checksum = load16(field)
    if checksum == 0:
        return
    checksum = update_full(checksum, delta)
    store16(field, checksum if checksum else 0xFFFF)
