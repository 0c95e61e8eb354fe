# The indexes of a table: small ones while it has few sessions, and larger ones, one size after the other, as it has more.
#
# An index is probed at random, so all of it is touched and wants memory, however few sessions there are: for a million sessions
# and mappings that is 64 MB. So a table begins with 2.5 MB of indexes, for YOUNG of each, and has sixteen times as much when
# these are half full: of sessions and their permits as there are sessions, of mappings as there are mappings, which may be far
# fewer. There is no way back. What the old indexes know moves a few entries at a time, with each row that is opened and with
# each tick, so that no packet waits for all of it; until then it is looked for in both. The next growth finds the move over: it
# takes half as many rows as the old indexes were for, at the most.
#
# Memory that is touched for the first time is dear, most of all in a virtual machine (3 ms a megabyte were seen). So the daemon
# is asked in time to make it ready (MasqTable.make_ready): while as many rows can still be opened as would be in the time that
# this takes, at half a million a second. Until it has, the indexes in use fill up further.

from libc.stdint cimport uint32_t, uint64_t

from fastmasq.table cimport index, permits
from fastmasq.table.order cimport keep_order
from fastmasq.table.table cimport Growth, Table


cdef enum:
    YOUNG = 32768               # rows at which the smallest indexes are half full, as memory.py lays them out
    MOVED = 16                  # slots of each old index that are emptied when a row is opened
    MOVED_A_TICK = 1024         # the same when time goes on: those that stay are found later
    ALL = 0xFFFFFFFF
    SESSIONS_IN_TIME = 32       # larger indexes are asked for so early: this part of the sessions that they are for,
    MAPPINGS_IN_TIME = 96       # and of mappings, whose entries are a third as long


cdef inline uint32_t asks_at(const Growth *g, int size, uint32_t in_time) noexcept nogil:
    """Return at how many rows indexes are wanted that are larger than those of a size."""
    cdef uint32_t early = g.rows[size + 1] // in_time
    return g.rows[size] - early if early < g.rows[size] else 0


cdef inline bint wants_memory(const Growth *g, uint32_t count, uint32_t in_time) noexcept nogil:
    """Whether memory for the next size is to be made ready, now that there are so many rows."""
    return g.ready < g.sizes and g.ready == g.size + 1 and count >= asks_at(g, g.size, in_time)


cdef inline bint is_over(Table *t, const Growth *g, uint32_t count, uint32_t in_time) noexcept nogil:
    """Whether the indexes in use are to be left for the next with one row more than `count`; asks for memory in time."""
    if g.size + 1 >= g.sizes:
        return False
    if count == asks_at(g, g.size, in_time) and g.ready == g.size + 1:
        t.asks_for_memory = True
    return count >= g.rows[g.size] and (g.ready > g.size + 1 or count >= g.rows[g.size] // 2 * 3)


cdef inline bint has_outgrown(const Growth *g, uint64_t count) noexcept nogil:
    """Whether so many rows want larger indexes than those in use."""
    return g.size + 1 < g.sizes and count > g.rows[g.size]


cdef inline bint is_moving(const Table *t) noexcept nogil:
    """Whether old indexes of sessions are still in use."""
    return t.old_index.slots or t.old_permits.slots


cdef inline void move_entries(Table *t, uint32_t slots) noexcept nogil:
    """Empty so many slots of each old index of sessions."""
    index.move(&t.index, &t.old_index, slots)
    permits.move(&t.permits, &t.old_permits, slots)


cdef inline void move_mappings(Table *t, uint32_t slots) noexcept nogil:
    """The same of mappings."""
    index.move(&t.mapping_index, &t.old_mapping_index, slots)


cdef inline void use_larger(Table *t) noexcept nogil:
    """Leave the indexes in use for the next; the old ones are empty. Who sees the new size sees what is still to be moved."""
    cdef int size = t.growth.size + 1
    index.replace(&t.index, &t.old_index, &t.indexes[size])
    permits.replace(&t.permits, &t.old_permits, &t.permit_sets[size])
    keep_order()
    t.growth.size = size


cdef inline void use_larger_for_mappings(Table *t) noexcept nogil:
    """The same of mappings."""
    cdef int size = t.mapping_growth.size + 1
    index.replace(&t.mapping_index, &t.old_mapping_index, &t.mapping_indexes[size])
    keep_order()
    t.mapping_growth.size = size


cdef inline void make_room(Table *t) noexcept nogil:
    """Have room in the indexes for one session more."""
    if is_moving(t):
        move_entries(t, MOVED)
    if is_over(t, &t.growth, t.active, SESSIONS_IN_TIME):
        use_larger(t)


cdef inline void make_room_for_mapping(Table *t) noexcept nogil:
    """The same of a mapping."""
    if t.old_mapping_index.slots:
        move_mappings(t, MOVED)
    if is_over(t, &t.mapping_growth, t.mappings_in_use, MAPPINGS_IN_TIME):
        use_larger_for_mappings(t)


cdef inline void go_on_moving(Table *t) noexcept nogil:
    """Empty slots of old indexes, as a tick goes by."""
    move_entries(t, MOVED_A_TICK)
    move_mappings(t, MOVED_A_TICK)
