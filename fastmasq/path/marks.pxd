# Marks: new sessions of packets that the input chain has marked are shared out among the mark's targets (mfw).

from libc.stdint cimport uint16_t, uint32_t

cdef enum:
    MARKS = 256
    MARK_TARGETS = 1024         # of all marks together


cdef struct MarkTarget:
    uint32_t address
    uint32_t weight             # sessions in a row; 0: the turn never passes on by itself
    uint32_t left               # sessions until the turn passes on
    uint16_t port               # 0: the packet's own
    uint16_t reserved

cdef struct Mark:
    uint32_t mark
    uint16_t first              # row of its first target; the others follow
    uint16_t count
    uint16_t turn               # which of them gets the next session
    uint16_t reserved

cdef struct Marks:
    Mark rows[MARKS]
    MarkTarget targets[MARK_TARGETS]
    int count


cdef inline Mark *find_mark(Marks *m, uint32_t mark) noexcept nogil:
    """Return the row of a mark, or NULL."""
    cdef int i
    if mark:
        for i in range(m.count):
            if m.rows[i].mark == mark:
                return &m.rows[i]
    return NULL


cdef inline const MarkTarget *target_of(const Marks *m, const Mark *mark) noexcept nogil:
    """Return the target whose turn it is."""
    return &m.targets[mark.first + mark.turn]


cdef inline void rotate(Marks *m, Mark *mark) noexcept nogil:
    """Pass the turn on now; a single target keeps it."""
    cdef MarkTarget *target = &m.targets[mark.first + mark.turn]
    if mark.count > 1:
        target.left = target.weight
        mark.turn = <uint16_t>((mark.turn + 1) % mark.count)


cdef inline void count_session(Marks *m, Mark *mark) noexcept nogil:
    """Count a new session of the target whose turn it is."""
    cdef MarkTarget *target = &m.targets[mark.first + mark.turn]
    if mark.count == 1 or target.weight == 0:
        return
    target.left -= 1
    if target.left == 0:
        rotate(m, mark)
