# Followed TCP connections: which sessions they are, and what of their streams leaves otherwise than it came.
#
# An *edit* replaces `before` octets of a stream, from the number `at` on, by `after` others. The octets of an edit leave one for
# one, as far as both are there; with the last of those replaced leaves all that is left of the others. So every octet that came
# stands for some that leave, whatever cuts a sender makes of its stream, and `leaves_as` is the number of the first of them.
# It never falls; `stands_for` is its inverse, for acknowledgments: the furthest octet before which all has left. An edit that
# leaves nothing holds octets back until the rest of them is known: they are acknowledged with what has left before them.
#
# The last edits of each direction are remembered, in a ring; where the next one is written never counts, so that whoever is
# killed while writing it has written none. What came before the oldest of them is taken to be shifted as it was there. A stream
# lasts as a session does (table.pxd): its keys are written last, and taken away first.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmasq.table.index cimport Index, remove
from fastmasq.table.order cimport keep_order
from fastmasq.table.rows cimport DIRECTIONS

cdef enum:
    STREAMS = 512               # sessions that have edits, at the most (memory.py)
    EDITS = 16                  # in a ring; one less is remembered
    TEXT = 48                   # octets that an edit may leave
    TEXT_WORDS = 6
    FOLLOWED_PORTS = 32


cdef struct Edit:
    uint32_t at                 # as its sender numbers
    uint32_t shift              # what is added to numbers before it
    uint16_t before
    uint16_t after
    uint32_t reserved
    uint64_t text[TEXT_WORDS]   # of one that leaves nothing: the octet that has left before it

cdef struct Stream:
    uint64_t key0               # of its session's outbound flow; 0 without one
    uint64_t key1
    uint32_t made[DIRECTIONS]   # edits so far
    uint32_t reserved[DIRECTIONS]

cdef struct StreamSet:
    Stream *rows                # [STREAMS]
    Edit *edits                 # [STREAMS][DIRECTIONS][EDITS]
    Index of_session            # rows by those of their sessions
    uint64_t *followed          # a bit for each session: one of these ports is an end of it
    uint64_t *unread            # and of these: its segments are not to be read any more
    uint16_t ports[FOLLOWED_PORTS]
    int port_count
    uint32_t in_use


# -- which sessions --------------------------------------------------------------------------------------------------

cdef inline bint is_marked(const uint64_t *bits, uint32_t row) noexcept nogil:
    return bits[row >> 6] >> (row & 63) & 1


cdef inline void mark(uint64_t *bits, uint32_t row, bint on) noexcept nogil:
    if on:
        bits[row >> 6] |= <uint64_t>1 << (row & 63)
    else:
        bits[row >> 6] &= ~(<uint64_t>1 << (row & 63))


cdef inline bint is_followed_port(const StreamSet *s, uint16_t port) noexcept nogil:
    cdef int i
    for i in range(s.port_count):
        if s.ports[i] == port:
            return True
    return False


cdef inline void note_session(StreamSet *s, uint32_t row, bint is_followed) noexcept nogil:
    """Note whether a session that is opened in a row is one of those that are followed."""
    if is_followed != is_marked(s.followed, row):
        mark(s.followed, row, is_followed)
    if is_followed:
        mark(s.unread, row, False)


cdef inline uint32_t stream_of(const StreamSet *s, uint32_t row) noexcept nogil:
    """Return the row of a session's stream, plus one; 0 without edits."""
    cdef uint32_t at = row & s.of_session.mask
    if s.in_use == 0:
        return 0
    while s.of_session.entries[at].ref:
        if s.of_session.entries[at].hash == row:
            return s.of_session.entries[at].ref
        at = (at + 1) & s.of_session.mask
    return 0


cdef inline void forget_session(StreamSet *s, uint32_t row) noexcept nogil:
    """Forget the edits of a session that is closed."""
    cdef uint32_t stream = stream_of(s, row)
    if stream == 0:
        return
    s.rows[stream - 1].key0 = s.rows[stream - 1].key1 = 0
    remove(&s.of_session, row, stream - 1)
    s.in_use -= 1


cdef inline void begin_anew(StreamSet *s, uint32_t row) noexcept nogil:
    """Have a session whose ends begin a new connection be read, and forget the edits of the one before."""
    forget_session(s, row)
    mark(s.unread, row, False)


# -- edits -----------------------------------------------------------------------------------------------------------

cdef inline Edit *edit_at(const StreamSet *s, uint32_t stream, int direction, uint32_t number) noexcept nogil:
    """Return one of the edits of a stream (its row plus one)."""
    return &s.edits[((stream - 1) * DIRECTIONS + <uint32_t>direction) * EDITS + (number & (EDITS - 1))]


cdef inline uint32_t made(const StreamSet *s, uint32_t stream, int direction) noexcept nogil:
    return s.rows[stream - 1].made[direction]


cdef inline uint32_t oldest(const StreamSet *s, uint32_t stream, int direction) noexcept nogil:
    """Return the number of the oldest edit that is remembered."""
    cdef uint32_t count = made(s, stream, direction)
    return count - (EDITS - 1) if count >= EDITS else 0


cdef inline uint32_t least(uint32_t a, uint32_t b) noexcept nogil:
    return a if a < b else b


cdef inline uint32_t shift_after(const Edit *edit) noexcept nogil:
    return edit.shift + edit.after - edit.before


cdef inline uint32_t leaves_as(const StreamSet *s, uint32_t stream, int direction, uint32_t number) noexcept nogil:
    """Return the number with which what came with this one leaves."""
    cdef uint32_t first = oldest(s, stream, direction)
    cdef uint32_t i = made(s, stream, direction)
    cdef const Edit *edit
    cdef int32_t into
    if i == 0:
        return number
    while i != first:
        i -= 1
        edit = edit_at(s, stream, direction, i)
        into = <int32_t>(number - edit.at)
        if into >= <int32_t>edit.before:
            return number + shift_after(edit)
        if into >= 0:
            return edit.at + edit.shift + least(<uint32_t>into, edit.after)
    return number + edit_at(s, stream, direction, first).shift


cdef inline uint32_t stands_for(const StreamSet *s, uint32_t stream, int direction, uint32_t number) noexcept nogil:
    """Return the furthest number before which all that came has left before this one."""
    cdef uint32_t first = oldest(s, stream, direction)
    cdef uint32_t i = made(s, stream, direction)
    cdef const Edit *edit
    cdef int32_t into
    if i == 0:
        return number
    while i != first:
        i -= 1
        edit = edit_at(s, stream, direction, i)
        into = <int32_t>(number - edit.at - edit.shift)
        if into >= <int32_t>edit.after:
            return number - shift_after(edit)
        if into >= 0:
            return edit.at + least(<uint32_t>into, <uint32_t>edit.before - 1)
    return number - edit_at(s, stream, direction, first).shift


cdef inline uint32_t begins_at(const StreamSet *s, uint32_t stream, int direction, uint32_t number) noexcept nogil:
    """Return the first number from which on nothing that came has left before this one."""
    cdef uint32_t found = stands_for(s, stream, direction, number)
    return found if leaves_as(s, stream, direction, found) == number else found + 1


cdef inline const Edit *first_within(const StreamSet *s, uint32_t stream, int direction, uint32_t start,
                                     uint32_t stop) noexcept nogil:
    """Return the first edit of which octets lie between two numbers, or NULL."""
    cdef uint32_t i = oldest(s, stream, direction)
    cdef const Edit *edit
    while i != made(s, stream, direction):
        edit = edit_at(s, stream, direction, i)
        if <int32_t>(stop - edit.at) > 0 and <int32_t>(edit.at + edit.before - start) > 0:
            return edit
        i += 1
    return NULL


cdef inline uint32_t write_image(const StreamSet *s, uint32_t stream, int direction, uint32_t start, const uint8_t *octets,
                                 uint32_t count, uint8_t *image) noexcept nogil:
    """Write what `count` octets that came with the number `start` leave as; return how many those are.

    They are at most (EDITS - 1) * TEXT more than came.
    """
    cdef uint32_t i = oldest(s, stream, direction)
    cdef uint32_t at = start
    cdef uint32_t stop = start + count
    cdef uint32_t written = 0
    cdef uint32_t first, last, plain
    cdef const Edit *edit
    while i != made(s, stream, direction) and at != stop:
        edit = edit_at(s, stream, direction, i)
        i += 1
        if <int32_t>(edit.at + edit.before - at) <= 0:
            continue
        if <int32_t>(stop - edit.at) <= 0:
            break
        if <int32_t>(edit.at - at) > 0:
            plain = edit.at - at
            memcpy(image + written, octets + (at - start), plain)
            written += plain
            at = edit.at
        first = least(at - edit.at, edit.after)
        at = edit.at + least(stop - edit.at, edit.before)
        last = edit.after if at == edit.at + edit.before else least(at - edit.at, edit.after)
        memcpy(image + written, <const uint8_t *>edit.text + first, last - first)
        written += last - first
    memcpy(image + written, octets + (at - start), stop - at)
    return written + stop - at


cdef inline void add_edit(StreamSet *s, uint32_t stream, int direction, uint32_t at, uint16_t before, const uint8_t *text,
                          uint16_t after, uint16_t stored) noexcept nogil:
    """Add an edit behind all others of a direction; `stored` octets of text are kept, of which `after` leave."""
    cdef uint32_t number = made(s, stream, direction)
    cdef Edit *edit = edit_at(s, stream, direction, number)
    edit.shift = shift_after(edit_at(s, stream, direction, number - 1)) if number else 0
    edit.at = at
    edit.before, edit.after = before, after
    memcpy(edit.text, text, stored)
    keep_order()
    s.rows[stream - 1].made[direction] = number + 1
