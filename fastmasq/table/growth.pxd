# The indexes of a table: small ones while it is young, and whole ones when it has more than YOUNG sessions at once.
#
# An index is probed at random, so all of it is touched and wants memory, however few sessions there are: for a million that is 80
# MB. A young table has 4 MB of them. The move is made once, by a packet that opens a session, and takes some milliseconds; there
# is no way back. Memory that is touched for the first time is dear, most of all in a virtual machine (3 ms a megabyte were seen).
# So the daemon is asked in time to make it ready (MasqTable.make_ready), and until it has, the small indexes fill up further.

from libc.stdint cimport uint32_t

from fastmasq.table cimport index, permits
from fastmasq.table.index cimport Index
from fastmasq.table.permits cimport PermitSet
from fastmasq.table.table cimport Table


cdef enum:
    YOUNG = 32768               # sessions at which the small indexes are half full, as memory.py lays out
    CRAMMED = YOUNG + YOUNG // 4 * 3    # at which they have to be left, whatever that takes
    FEW = 2048                  # sessions from which on the memory of the whole ones is wanted


cdef inline void move_index(Index *index_in_use, const Index *whole) noexcept nogil:
    """Have every entry of an index in a larger, empty one, and use that in its place."""
    cdef Index young = index_in_use[0]
    cdef uint32_t at
    index_in_use[0] = whole[0]
    for at in range(young.mask + 1):
        if young.entries[at].ref:
            index.insert(index_in_use, young.entries[at].hash, young.entries[at].ref - 1)


cdef inline void move_permits(PermitSet *permits_in_use, const PermitSet *whole) noexcept nogil:
    """Have every permit of a set in a larger, empty one, and use that in its place."""
    cdef PermitSet young = permits_in_use[0]
    cdef uint32_t at
    permits_in_use[0] = whole[0]
    for at in range(young.mask + 1):
        if young.entries[at].count:
            permits.grant(permits_in_use, young.entries[at].fingerprint, young.entries[at].count)


cdef inline void use_whole_indexes(Table *t) noexcept nogil:
    """Leave the small indexes."""
    move_index(&t.index, &t.whole_index)
    move_index(&t.mapping_index, &t.whole_mapping_index)
    move_permits(&t.permits, &t.whole_permits)
    t.indexed = t.capacity


cdef inline void make_room(Table *t) noexcept nogil:
    """Have room in the indexes for one session more."""
    if t.active == FEW and not t.has_memory:
        t.asks_for_memory = True
    if t.active >= t.indexed and (t.has_memory or t.active == CRAMMED):
        use_whole_indexes(t)
