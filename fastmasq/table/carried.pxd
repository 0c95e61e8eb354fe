# Which sessions the kernel may carry, by offload/flow.bpf.c, which reads their rows while we write them.
#
# A session has a *ticket* while it may be carried: a number that no other has had for 2^32 tickets. It is given when all of the
# row is written, and taken before anything is that does not change in a session's life: what it is found by, and what is written
# over its packets. The program reads the ticket, then the row, then the ticket again; if that is the same, what it has read is
# of one session, and of one moment of what it says of addresses and ports.
#
# It then stamps the row and counts. By that time the session may be closed, so its row rests: for one whole tick at least
# nobody is given it, and no program runs that long. What it counts last is not lost: counts are taken when the row is.

from libc.stdint cimport uint32_t

from fastmasq.table cimport rows
from fastmasq.table.order cimport show_in_order
from fastmasq.table.rows cimport Carried
from fastmasq.table.table cimport Table


cdef inline bint has_ticket(const Table *t, uint32_t row) noexcept nogil:
    return t.carried != NULL and t.carried[row].ticket != 0


cdef inline void give_ticket(Table *t, uint32_t row) noexcept nogil:
    """Let the kernel carry a session, whose row is written."""
    t.tickets += 1
    if t.tickets == 0:
        t.tickets = 1
    show_in_order()
    t.carried[row].ticket = t.tickets


cdef inline void take_ticket(Table *t, uint32_t row) noexcept nogil:
    """Have the kernel carry a session no longer; what comes next in the program's order of reading may be written then."""
    t.carried[row].ticket = 0
    show_in_order()


cdef inline void begin_counts(Table *t, uint32_t row) noexcept nogil:
    """Add what was carried of the session before to the totals; a new one is in its row."""
    cdef Carried *carried
    cdef int direction
    if t.carried == NULL:
        return
    carried = &t.carried[row]
    for direction in range(rows.DIRECTIONS):
        t.carried_packets += carried.packets[direction]
        t.carried_octets += carried.octets[direction]
        carried.packets[direction] = carried.octets[direction] = 0


# -- rows that rest --------------------------------------------------------------------------------------------------

cdef inline void rest(Table *t, uint32_t row) noexcept nogil:
    """Have a row that a program may still write to be given to nobody for one whole tick."""
    t.sessions[row].timer_next = rows.NONE
    if t.resting.last == rows.NONE:
        t.resting.first = row
    else:
        t.sessions[t.resting.last].timer_next = row
    t.resting.last = row


cdef inline void end_rest(Table *t) noexcept nogil:
    """A tick has begun: give back the rows that have rested for the whole of the one before."""
    if t.rested.last != rows.NONE:
        t.sessions[t.rested.last].timer_next = t.free_row
        t.free_row = t.rested.first
    t.rested = t.resting
    t.resting.first = t.resting.last = rows.NONE
