# An open-addressing hash from a 32-bit hash to a row reference, with linear probing and backward-shift deletion.
#
# Entries keep the whole 32-bit hash, so that deletion finds every entry's home without looking at its row, and a
# probe touches a row only when the hashes agree. Load stays at or under one half by construction, or three quarters for a moment.
#
# A larger index takes the place of a smaller one a few entries at a time: until the old one is empty, an entry is in one of the
# two. Runs of entries are moved whole, so that what stays is found, and removed, as before.

from libc.stdint cimport uint32_t


cdef struct IndexEntry:
    uint32_t hash
    uint32_t ref                # reference + 1; 0 is an empty entry


cdef struct Index:
    IndexEntry *entries
    uint32_t mask               # entries - 1; entries is a power of two

cdef struct OldIndex:
    Index index
    uint32_t at                 # slot from which on entries are still here, round to the first that was looked at
    uint32_t slots              # so many; 0: there is no old index


cdef inline void insert(Index *index, uint32_t hash, uint32_t ref) noexcept nogil:
    cdef uint32_t at = hash & index.mask
    while index.entries[at].ref:
        at = (at + 1) & index.mask
    index.entries[at].hash = hash
    index.entries[at].ref = ref + 1


cdef inline bint remove(Index *index, uint32_t hash, uint32_t ref) noexcept nogil:
    """Remove the entry of (hash, ref) and close the gap; return whether it was there."""
    cdef uint32_t gap = hash & index.mask
    cdef uint32_t at
    while not (index.entries[gap].ref == ref + 1 and index.entries[gap].hash == hash):
        if index.entries[gap].ref == 0:
            return False
        gap = (gap + 1) & index.mask
    at = gap
    while True:
        at = (at + 1) & index.mask
        if index.entries[at].ref == 0:
            break
        # an entry may move back to the gap if the gap is not before its home
        if ((at - index.entries[at].hash) & index.mask) >= ((at - gap) & index.mask):
            index.entries[gap] = index.entries[at]
            gap = at
    index.entries[gap].ref = 0
    return True


cdef inline void remove_from_either(Index *index, OldIndex *old, uint32_t hash, uint32_t ref) noexcept nogil:
    if not remove(index, hash, ref) and old.slots:
        remove(&old.index, hash, ref)


cdef inline void replace(Index *index, OldIndex *old, const Index *larger) noexcept nogil:
    """Use a larger index, which is empty, from now on; what is in the other is moved by `move`."""
    old.index = index[0]
    old.slots = index.mask + 1
    old.at = 0
    while old.index.entries[old.at].ref:
        old.at += 1
    index[0] = larger[0]


cdef inline void move(Index *index, OldIndex *old, uint32_t slots) noexcept nogil:
    """Empty so many slots of the old index, and what remains of the run of entries there."""
    cdef IndexEntry *entry
    while old.slots:
        entry = &old.index.entries[old.at]
        if entry.ref:
            insert(index, entry.hash, entry.ref - 1)
            entry.ref = 0
        elif slots == 0:
            return
        old.at = (old.at + 1) & old.index.mask
        old.slots -= 1
        if slots:
            slots -= 1
