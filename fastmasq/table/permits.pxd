# Which remote addresses an external endpoint has talked to (RFC 4787 section 5, address-dependent filtering).
#
# A counted set of 64-bit keyed fingerprints: no row to compare, since nobody without the secret can find two that agree.

from libc.stdint cimport uint32_t, uint64_t


cdef struct Permit:
    uint64_t fingerprint
    uint32_t count              # sessions that grant it; 0 is an empty entry
    uint32_t reserved


cdef struct PermitSet:
    Permit *entries
    uint32_t mask


cdef inline bint is_held(const PermitSet *permits, uint64_t fingerprint) noexcept nogil:
    cdef uint32_t at = <uint32_t>fingerprint & permits.mask
    while permits.entries[at].count:
        if permits.entries[at].fingerprint == fingerprint:
            return True
        at = (at + 1) & permits.mask
    return False


cdef inline void grant(PermitSet *permits, uint64_t fingerprint, uint32_t sessions) noexcept nogil:
    """Have so many sessions more grant it."""
    cdef uint32_t at = <uint32_t>fingerprint & permits.mask
    while permits.entries[at].count:
        if permits.entries[at].fingerprint == fingerprint:
            permits.entries[at].count += sessions
            return
        at = (at + 1) & permits.mask
    permits.entries[at].fingerprint = fingerprint
    permits.entries[at].count = sessions


cdef inline void revoke(PermitSet *permits, uint64_t fingerprint) noexcept nogil:
    cdef uint32_t gap = <uint32_t>fingerprint & permits.mask
    cdef uint32_t at
    while permits.entries[gap].fingerprint != fingerprint or permits.entries[gap].count == 0:
        if permits.entries[gap].count == 0:
            return
        gap = (gap + 1) & permits.mask
    permits.entries[gap].count -= 1
    if permits.entries[gap].count:
        return
    at = gap
    while True:
        at = (at + 1) & permits.mask
        if permits.entries[at].count == 0:
            break
        if ((at - <uint32_t>permits.entries[at].fingerprint) & permits.mask) >= ((at - gap) & permits.mask):
            permits.entries[gap] = permits.entries[at]
            gap = at
    permits.entries[gap].count = 0
