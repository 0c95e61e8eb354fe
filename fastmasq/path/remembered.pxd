# Remembered verdicts: what a packet of a flow has matched, so that the next one of it need not ask the rules.
#
# A *list of matched rows*, with what they did, is shared by all flows whose packets match the same. A flow remembers the
# number of its list; each further packet of it adds to the list's counters, which `fold_paths` adds to the rules' own.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.path.match cimport Probe, RuleCount

cdef enum:
    MATCHED = 22                # matched rows remembered of a packet; one with more is not cached
    VERDICT_PATHS = 4096        # different lists of matched rows remembered at a time
    PATH_INDEX = 2 * VERDICT_PATHS
    ROUTED_FLOWS = 65536        # cached flows without a session
    NOWHERE = 0xFFFFFFFFU


cdef struct Matched:
    uint32_t rows[MATCHED]
    int count                   # MATCHED + 1: too many
    int admitted                # how many of them until it was let in

cdef struct VerdictPath:
    # a list of matched rows with what it did
    uint64_t admitted_packets   # past the input chain: counts for the first `admitted` rows
    uint64_t admitted_octets
    uint64_t sent_packets       # past the output chain: counts for the others
    uint64_t sent_octets
    uint8_t verdict             # MASQ: translated, ACCEPT: as it is
    uint8_t tos_and
    uint8_t tos_xor
    uint8_t admitted
    uint8_t count
    uint8_t reserved[3]
    uint32_t rows[MATCHED]

cdef struct CachedVerdict:
    uint64_t key0
    uint64_t key1
    uint64_t generation         # of rules << 32 | of what the kernel knows
    uint32_t path
    uint32_t link               # it arrived on, and of a tunnel its way's serial number << 8

cdef struct Remembered:
    CachedVerdict *flows        # two for each row of the session table
    CachedVerdict *routed       # [ROUTED_FLOWS]
    VerdictPath *paths          # [VERDICT_PATHS]
    uint16_t *path_index        # [PATH_INDEX]: hash of the rows -> path + 1
    uint32_t path_count
    uint32_t generation


cdef inline uint64_t generation_of(const Remembered *r, uint32_t of_kernel) noexcept nogil:
    """Return what a verdict that is remembered now says of the rules, and of what the kernel knows."""
    return (<uint64_t>r.generation << 32) | of_kernel


cdef inline void fold_paths(Remembered *r, RuleCount *counts) noexcept nogil:
    """Add what was counted for lists of matched rows to the rows themselves."""
    cdef VerdictPath *path
    cdef RuleCount *count
    cdef uint32_t number
    cdef int i
    for number in range(r.path_count):
        path = &r.paths[number]
        for i in range(path.count):
            count = &counts[path.rows[i]]
            if i < path.admitted:
                count.packets += path.admitted_packets
                count.octets += path.admitted_octets
            else:
                count.packets += path.sent_packets
                count.octets += path.sent_octets
        path.admitted_packets = path.admitted_octets = path.sent_packets = path.sent_octets = 0


cdef inline void forget_paths(Remembered *r, RuleCount *counts) noexcept nogil:
    """Have every flow ask the rules again."""
    cdef uint32_t i
    fold_paths(r, counts)
    for i in range(PATH_INDEX):
        r.path_index[i] = 0
    r.path_count = 0
    r.generation += 1


cdef inline bint same_path(const VerdictPath *path, const Matched *matched, uint8_t verdict) noexcept nogil:
    cdef int i
    if path.count != matched.count or path.admitted != matched.admitted or path.verdict != verdict:
        return False
    for i in range(matched.count):
        if path.rows[i] != matched.rows[i]:
            return False
    return True


cdef inline uint32_t path_place(const Remembered *r, const Matched *matched, uint8_t verdict) noexcept nogil:
    """Return where in the index a list of matched rows is, or is to be."""
    cdef uint32_t hash = 2166136261U + verdict
    cdef uint32_t at
    cdef int i
    for i in range(matched.count):
        hash = (hash ^ matched.rows[i]) * 16777619U
    at = (hash ^ (hash >> 16)) & (PATH_INDEX - 1)
    while r.path_index[at] and not same_path(&r.paths[r.path_index[at] - 1], matched, verdict):
        at = (at + 1) & (PATH_INDEX - 1)
    return at


cdef inline void write_path(VerdictPath *path, const Matched *matched, uint8_t verdict, const Probe *probe) noexcept nogil:
    cdef int i
    path.admitted_packets = path.admitted_octets = path.sent_packets = path.sent_octets = 0
    path.verdict = verdict
    path.tos_and = probe.tos_and
    path.tos_xor = probe.tos_xor
    path.admitted = <uint8_t>matched.admitted
    path.count = <uint8_t>matched.count
    for i in range(matched.count):
        path.rows[i] = matched.rows[i]


cdef inline uint32_t intern_path(Remembered *r, const Matched *matched, uint8_t verdict, const Probe *probe) noexcept nogil:
    """Return the number of a list of matched rows; NOWHERE while there are too many."""
    cdef uint32_t at = path_place(r, matched, verdict)
    if r.path_index[at]:
        return r.path_index[at] - 1
    if r.path_count == VERDICT_PATHS:
        return NOWHERE
    write_path(&r.paths[r.path_count], matched, verdict, probe)
    r.path_count += 1
    r.path_index[at] = <uint16_t>r.path_count
    return r.path_count - 1
