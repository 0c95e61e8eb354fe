# Which remote addresses an external endpoint has talked to (RFC 4787 section 5, address-dependent filtering).
#
# A counted set of 64-bit keyed fingerprints: no row to compare, since nobody without the secret can find two that agree.
# A larger set takes the place of a smaller one as a larger index does (index.pxd); a fingerprint is in one of the two.

from libc.stdint cimport uint32_t, uint64_t


cdef struct Permit:
    uint64_t fingerprint
    uint32_t count              # sessions that grant it; 0 is an empty entry
    uint32_t reserved


cdef struct PermitSet:
    Permit *entries
    uint32_t mask

cdef struct OldPermitSet:
    PermitSet permits
    uint32_t at                 # slot from which on permits are still here, round to the first that was looked at
    uint32_t slots              # so many; 0: there is no old set


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


cdef inline bint is_held_in_either(const PermitSet *permits, const OldPermitSet *old, uint64_t fingerprint) noexcept nogil:
    return is_held(permits, fingerprint) or old.slots and is_held(&old.permits, fingerprint)


cdef inline PermitSet *holder(PermitSet *permits, OldPermitSet *old, uint64_t fingerprint) noexcept nogil:
    """Return the set in which a fingerprint is counted."""
    return &old.permits if old.slots and is_held(&old.permits, fingerprint) else permits


cdef inline void replace(PermitSet *permits, OldPermitSet *old, const PermitSet *larger) noexcept nogil:
    """Use a larger set, which is empty, from now on; what is in the other is moved by `move`."""
    old.permits = permits[0]
    old.slots = permits.mask + 1
    old.at = 0
    while old.permits.entries[old.at].count:
        old.at += 1
    permits[0] = larger[0]


cdef inline void move(PermitSet *permits, OldPermitSet *old, uint32_t slots) noexcept nogil:
    """Empty so many slots of the old set, and what remains of the run of permits there."""
    cdef Permit *permit
    while old.slots:
        permit = &old.permits.entries[old.at]
        if permit.count:
            grant(permits, permit.fingerprint, permit.count)
            permit.count = 0
        elif slots == 0:
            return
        old.at = (old.at + 1) & old.permits.mask
        old.slots -= 1
        if slots:
            slots -= 1
