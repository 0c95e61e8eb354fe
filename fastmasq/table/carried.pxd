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
from libc.string cimport memcpy

from fastmasq.table cimport rows
from fastmasq.table.order cimport keep_order, show_in_order
from fastmasq.table.rows cimport Carried, Session, Tally
from fastmasq.table.table cimport Table

cdef enum:
    MOVING = rows.SESSION_SEEN_OUT | rows.SESSION_SEEN_IN | rows.SESSION_ACKED_OUT | rows.SESSION_ACKED_IN


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
    cdef Tally *tally
    cdef int direction
    if t.carried == NULL:
        return
    carried, tally = &t.carried[row], &t.tallies[row]
    for direction in range(rows.DIRECTIONS):
        t.carried_packets += carried.packets[direction]
        t.carried_octets += carried.octets[direction]
        tally.charged_packets[direction] -= carried.packets[direction]      # what is still to be charged stays the same
        tally.charged_octets[direction] -= carried.octets[direction]
        tally.octets[direction] = 0
        carried.packets[direction] = carried.octets[direction] = 0
        carried.rules[direction] = 0


# -- what outlives us ------------------------------------------------------------------------------------------------
#
# Sessions that are shared with the kernel do not, so a copy of each does. It is written with every packet that the path sees
# of one; what the program does to a row is added once a second, but for the numbers that the ends of TCP are at: those are
# unknown in the copy of a session with a ticket, and its next packets say them.

cdef inline void keep_counts(Table *t, uint32_t row) noexcept nogil:
    """Have the copy of a session say how many packets there have been, by whichever way."""
    cdef int direction
    for direction in range(rows.DIRECTIONS):
        t.kept[row].flow[direction].packets = (t.sessions[row].flow[direction].packets
                                               + <uint32_t>t.carried[row].packets[direction])


cdef inline void keep(Table *t, uint32_t row) noexcept nogil:
    """Have the copy of a session be as it is now; for whom a kill in the midst of this leaves, see table.pxd."""
    cdef const Session *s = &t.sessions[row]
    cdef Session *kept
    if t.kept == NULL:
        return
    kept = &t.kept[row]
    memcpy(kept, s, <size_t>(<const char *>&s.state - <const char *>s))
    keep_counts(t, row)
    kept.scale, kept.port_class = s.scale, s.port_class
    kept.flags = s.flags & ~MOVING & 0xFF if has_ticket(t, row) else s.flags
    keep_order()
    kept.state = s.state


cdef inline void keep_no_longer(Table *t, uint32_t row) noexcept nogil:
    if t.kept != NULL:
        t.kept[row].state = rows.STATE_FREE
        keep_order()


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
