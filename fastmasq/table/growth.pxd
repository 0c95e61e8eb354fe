# The indexes of a table: small ones while it has few sessions, and larger ones, one size after the other, as it has more.
#
# An index is probed at random, so all of it is touched and wants memory, however few sessions there are: for a million that is 84
# MB. So a table begins with 3 MB of indexes, for YOUNG sessions, and has sixteen times as much when these are half full. There is
# no way back. What the old indexes know moves a few entries at a time, with each session that is opened and with each tick, so
# that no packet waits for all of it; until then it is looked for in both. The next growth finds the move over: it takes half as
# many sessions as the old indexes were for, at the most.
#
# Memory that is touched for the first time is dear, most of all in a virtual machine (3 ms a megabyte were seen). So the daemon
# is asked in time to make it ready (MasqTable.make_ready), and until it has, the indexes in use fill up further.

from libc.stdint cimport uint32_t

from fastmasq.table cimport index, permits
from fastmasq.table.order cimport keep_order
from fastmasq.table.table cimport Indexes, Table


cdef enum:
    YOUNG = 32768               # sessions at which the smallest indexes are half full, as memory.py lays them out
    MOVED = 16                  # slots of each old index that are emptied when a session is opened
    MOVED_A_TICK = 1024         # the same when time goes on: those that stay are found later
    ALL = 0xFFFFFFFF


cdef inline uint32_t nearly_full(uint32_t sessions) noexcept nogil:
    """Return how many of the sessions that indexes are for are so many that larger ones are wanted."""
    return sessions // 4 * 3


cdef inline const Indexes *larger_indexes(const Table *t) noexcept nogil:
    """Return those that come next, or NULL where there can be no more sessions."""
    return &t.indexes[t.size + 1] if t.size + 1 < t.sizes else NULL


cdef inline void move_entries(Table *t, uint32_t slots) noexcept nogil:
    """Empty so many slots of each old index."""
    index.move(&t.index, &t.old_index, slots)
    index.move(&t.mapping_index, &t.old_mapping_index, slots)
    permits.move(&t.permits, &t.old_permits, slots)


cdef inline bint is_moving(const Table *t) noexcept nogil:
    """Whether old indexes are still in use."""
    return t.old_index.slots or t.old_mapping_index.slots or t.old_permits.slots


cdef inline void use_larger_indexes(Table *t) noexcept nogil:
    """Leave the indexes in use for the next; the old ones are empty. Who sees the new size sees what is still to be moved."""
    cdef const Indexes *larger = larger_indexes(t)
    index.replace(&t.index, &t.old_index, &larger.index)
    index.replace(&t.mapping_index, &t.old_mapping_index, &larger.mapping_index)
    permits.replace(&t.permits, &t.old_permits, &larger.permits)
    keep_order()
    t.size += 1
    t.indexed = larger.sessions


cdef inline void make_room(Table *t) noexcept nogil:
    """Have room in the indexes for one session more."""
    if is_moving(t):
        move_entries(t, MOVED)
    if t.active < nearly_full(t.indexed) or larger_indexes(t) == NULL:
        return
    if t.active == nearly_full(t.indexed) and t.ready == t.size + 1:
        t.asks_for_memory = True
    if t.active >= t.indexed and (t.ready > t.size + 1 or t.active >= t.indexed // 2 * 3):
        use_larger_indexes(t)
