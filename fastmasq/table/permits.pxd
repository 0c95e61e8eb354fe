# Which remote addresses an external endpoint has talked to (RFC 4787 section 5, address-dependent filtering).
#
# A counted set of 48-bit keyed fingerprints: no row to compare, since nobody without the secret can find two that agree, and who
# tries ten million a second meets one in a year. A permit is one word, fingerprint and count, and 0 an empty slot; where a
# count is full, the next slot of the same fingerprint goes on.
# A larger set takes the place of a smaller one as a larger index does (index.pxd); a fingerprint is in one of the two.

from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    COUNT_BITS = 16             # the low ones of a permit: sessions that grant it
    MOST = 0xFFFF


cdef struct PermitSet:
    uint64_t *permits
    uint32_t mask

cdef struct OldPermitSet:
    PermitSet set
    uint32_t at                 # slot from which on permits are still here, round to the first that was looked at
    uint32_t slots              # so many; 0: there is no old set


cdef inline uint32_t home(const PermitSet *s, uint64_t permit) noexcept nogil:
    """Return the slot from which on a permit is looked for."""
    return <uint32_t>(permit >> COUNT_BITS) & s.mask


cdef inline bint is_held(const PermitSet *s, uint64_t fingerprint) noexcept nogil:
    cdef uint64_t wanted = fingerprint << COUNT_BITS
    cdef uint32_t at = home(s, wanted)
    while s.permits[at]:
        if s.permits[at] & ~<uint64_t>MOST == wanted:
            return True
        at = (at + 1) & s.mask
    return False


cdef inline void put(PermitSet *s, uint64_t permit) noexcept nogil:
    """Have a permit in a slot of its own."""
    cdef uint32_t at = home(s, permit)
    while s.permits[at]:
        at = (at + 1) & s.mask
    s.permits[at] = permit


cdef inline void grant(PermitSet *s, uint64_t fingerprint) noexcept nogil:
    """Have one session more grant it."""
    cdef uint64_t wanted = fingerprint << COUNT_BITS
    cdef uint32_t at = home(s, wanted)
    while s.permits[at]:
        if s.permits[at] - wanted < MOST:
            s.permits[at] += 1
            return
        at = (at + 1) & s.mask
    s.permits[at] = wanted + 1


cdef inline void revoke(PermitSet *s, uint64_t fingerprint) noexcept nogil:
    """Have one session less grant it."""
    cdef uint64_t wanted = fingerprint << COUNT_BITS
    cdef uint32_t gap = home(s, wanted)
    cdef uint32_t at
    while s.permits[gap] and s.permits[gap] & ~<uint64_t>MOST != wanted:
        gap = (gap + 1) & s.mask
    if s.permits[gap] == 0:
        return
    s.permits[gap] -= 1
    if s.permits[gap] & MOST:
        return
    at = gap
    while True:
        at = (at + 1) & s.mask
        if s.permits[at] == 0:
            break
        if ((at - home(s, s.permits[at])) & s.mask) >= ((at - gap) & s.mask):
            s.permits[gap] = s.permits[at]
            gap = at
    s.permits[gap] = 0


cdef inline bint is_held_in_either(const PermitSet *s, const OldPermitSet *old, uint64_t fingerprint) noexcept nogil:
    return is_held(s, fingerprint) or old.slots and is_held(&old.set, fingerprint)


cdef inline PermitSet *holder(PermitSet *s, OldPermitSet *old, uint64_t fingerprint) noexcept nogil:
    """Return the set in which a fingerprint is counted."""
    return &old.set if old.slots and is_held(&old.set, fingerprint) else s


cdef inline void replace(PermitSet *s, OldPermitSet *old, const PermitSet *larger) noexcept nogil:
    """Use a larger set, which is empty, from now on; what is in the other is moved by `move`."""
    old.set = s[0]
    old.slots = s.mask + 1
    old.at = 0
    while old.set.permits[old.at]:
        old.at += 1
    s[0] = larger[0]


cdef inline void move(PermitSet *s, OldPermitSet *old, uint32_t slots) noexcept nogil:
    """Empty so many slots of the old set, and what remains of the run of permits there."""
    cdef uint64_t *permit
    while old.slots:
        permit = &old.set.permits[old.at]
        if permit[0]:
            put(s, permit[0])
            permit[0] = 0
        elif slots == 0:
            return
        old.at = (old.at + 1) & old.set.mask
        old.slots -= 1
        if slots:
            slots -= 1
