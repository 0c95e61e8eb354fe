# An open-addressing hash from a 32-bit hash to a row reference, with linear probing and backward-shift deletion.
#
# Entries keep the whole 32-bit hash, so that deletion finds every entry's home without looking at its row, and a
# probe touches a row only when the hashes agree. Load stays at or under one half by construction.

from libc.stdint cimport uint32_t


cdef struct IndexEntry:
    uint32_t hash
    uint32_t ref                # reference + 1; 0 is an empty entry


cdef struct Index:
    IndexEntry *entries
    uint32_t mask               # entries - 1; entries is a power of two


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
