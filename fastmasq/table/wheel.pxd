# A timer wheel over session rows: linked once, refreshed by writing a stamp, looked at again only when its slot is due.
#
# One level of 250 ms ticks. A session that was refreshed since it was linked is linked again at its new time when its
# slot comes round; a time beyond the horizon (8192 s) is linked at the horizon and linked on from there.

from libc.stdint cimport uint32_t

from fastmasq.table.rows cimport NONE, Session

cdef enum:
    TICK_MS = 250
    TICKS_PER_SECOND = 4
    WHEEL_SLOTS = 32768
    FIRST_IN_SLOT = 0x80000000U  # timer_prev of the first row of a slot: this bit and the slot


cdef struct Wheel:
    uint32_t *slots             # [WHEEL_SLOTS], first row or NONE
    uint32_t tick               # the slot of this tick is the next to be looked at


cdef inline void link(Wheel *wheel, Session *sessions, uint32_t row, uint32_t due) noexcept nogil:
    """Link `row` so that it is looked at no later than tick `due`."""
    cdef uint32_t slot
    cdef uint32_t first
    if <int>(due - wheel.tick) < 1:
        due = wheel.tick + 1
    elif due - wheel.tick >= WHEEL_SLOTS:
        due = wheel.tick + WHEEL_SLOTS - 1
    slot = due & (WHEEL_SLOTS - 1)
    first = wheel.slots[slot]
    sessions[row].timer_next = first
    sessions[row].timer_prev = FIRST_IN_SLOT | slot
    if first != NONE:
        sessions[first].timer_prev = row
    wheel.slots[slot] = row


cdef inline void unlink(Wheel *wheel, Session *sessions, uint32_t row) noexcept nogil:
    cdef uint32_t next_row = sessions[row].timer_next
    cdef uint32_t prev_row = sessions[row].timer_prev
    if prev_row & FIRST_IN_SLOT:
        wheel.slots[prev_row & (WHEEL_SLOTS - 1)] = next_row
    else:
        sessions[prev_row].timer_next = next_row
    if next_row != NONE:
        sessions[next_row].timer_prev = prev_row
