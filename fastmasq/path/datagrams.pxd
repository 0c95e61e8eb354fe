# Datagrams that come in fragments: what has come of each, the pieces that wait for the first one, and bounds for it all.
#
# Virtual reassembly (RFC 4787 REQ-14): only the first fragment has ports, so it decides what happens to its datagram.
# Pieces that come before it are kept; afterwards each is translated like the first and goes on at once, in the size it
# came in. A row remembers, bit by bit, which units of 8 octets have come, so an overlap is seen for what it is (RFC 1858
# section 4) and a complete datagram gives its row back.
#
# Bounds: rows and kept pieces are fixed in number, each source has its share of them, and room is made by giving up the
# oldest datagram of the source that has most: a flood of incomplete datagrams harms its own source only (REQ-14a).
# Sources are told apart by 256 buckets of a keyed hash. Nothing here allocates, sends or counts packets: what gives up kept
# pieces returns how many, for the path to count.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from fastmasq.ring.ring cimport Frame, HEADROOM
from fastmasq.table cimport index
from fastmasq.table.index cimport Index

cdef enum:
    DATAGRAMS = 1024
    PIECES = 2048
    PIECE_ROOM = 2048           # octets a kept piece may have, HEADROOM before it included
    DATAGRAM_SOURCES = 256      # buckets
    DATAGRAMS_PER_SOURCE = 64
    PIECES_PER_SOURCE = 128     # 256 KiB
    FRAGMENT_MS = 15000         # how long a datagram may stay incomplete
    UNITS = 8192                # of 8 octets in a datagram
    UNIT_WORDS = UNITS // 64
    NOBODY = -1

cdef enum DatagramState:
    FIRST_MISSING = 0
    TRANSLATED = 1              # later pieces are given saddr and daddr
    HOST_OWN = 2                # for the gateway itself: its kernel reassembles
    REFUSED = 3                 # later pieces are dropped like the first

cdef enum Coverage:
    COVERS_NEW = 0
    COVERS_OLD = 1              # all of it has come before: a duplicate
    COVERS_BOTH = 2             # an overlap, or beyond the datagram's end


cdef struct Datagram:
    uint64_t key0               # source << 32 | destination
    uint64_t key1               # link << 32 | protocol << 16 | identification
    uint32_t hash
    uint32_t since_ms
    uint32_t generation         # of what the kernel knows, when the first piece went on
    uint32_t saddr              # what later pieces are given
    uint32_t daddr
    uint16_t identification     # what all pieces are given
    uint16_t came               # units that have come
    uint16_t total              # units in all, 0 while the last piece is missing
    uint8_t state
    uint8_t source              # bucket
    int32_t older               # neighbours by age; older also links free rows
    int32_t newer
    int32_t kept_first          # pieces kept, in the order they came
    int32_t kept_last
    uint64_t units[UNIT_WORDS]       # a bit for each unit that has come


cdef struct Piece:
    Frame frame
    uint8_t link
    int32_t next


cdef struct Datagrams:
    Datagram *rows              # [DATAGRAMS]
    Piece *pieces               # [PIECES]
    uint8_t *memory             # [PIECES][PIECE_ROOM]
    Index index
    int32_t free_row            # first of those given back
    int32_t free_piece
    int32_t fresh_row           # first of those never used, whose memory was not touched yet
    int32_t fresh_piece
    int32_t oldest
    int32_t newest
    uint32_t count
    uint32_t kept
    uint16_t of_source[DATAGRAM_SOURCES]    # rows
    uint16_t kept_of_source[DATAGRAM_SOURCES]


cdef inline void make_empty(Datagrams *d) noexcept nogil:
    """Have no datagram, and all rows and pieces free; the memory is zeroed."""
    d.free_row = d.free_piece = NOBODY
    d.oldest = d.newest = NOBODY


cdef inline int32_t take_row(Datagrams *d) noexcept nogil:
    """Return a row that is free; `make_room` has made one."""
    cdef int32_t row = d.free_row
    if row != NOBODY:
        d.free_row = d.rows[row].older
        return row
    d.fresh_row += 1
    return d.fresh_row - 1


cdef inline int32_t take_piece(Datagrams *d) noexcept nogil:
    """The same of a piece; `make_room_for_piece` has made one."""
    cdef int32_t piece = d.free_piece
    if piece != NOBODY:
        d.free_piece = d.pieces[piece].next
        return piece
    d.fresh_piece += 1
    return d.fresh_piece - 1


cdef inline uint64_t datagram_key1(uint8_t link, uint8_t protocol, uint16_t identification) noexcept nogil:
    return (<uint64_t>link << 32) | (<uint64_t>protocol << 16) | identification


cdef inline int32_t find_datagram(const Datagrams *d, uint64_t key0, uint64_t key1, uint32_t hash) noexcept nogil:
    """Return the row of a datagram, or NOBODY."""
    cdef uint32_t at = hash & d.index.mask
    cdef uint32_t ref
    while True:
        ref = d.index.entries[at].ref
        if ref == 0:
            return NOBODY
        if (d.index.entries[at].hash == hash and d.rows[ref - 1].key0 == key0 and d.rows[ref - 1].key1 == key1):
            return <int32_t>(ref - 1)
        at = (at + 1) & d.index.mask


cdef inline void give_back_piece(Datagrams *d, int32_t piece, uint8_t source) noexcept nogil:
    d.pieces[piece].next = d.free_piece
    d.free_piece = piece
    d.kept -= 1
    d.kept_of_source[source] -= 1


cdef inline int32_t take_kept(Datagrams *d, int32_t row) noexcept nogil:
    """Take the piece kept longest off a datagram, or NOBODY. Its memory stays until the next piece is kept."""
    cdef Datagram *datagram = &d.rows[row]
    cdef int32_t piece = datagram.kept_first
    if piece != NOBODY:
        datagram.kept_first = d.pieces[piece].next
        give_back_piece(d, piece, datagram.source)
    return piece


cdef inline uint32_t end_datagram(Datagrams *d, int32_t row) noexcept nogil:
    """Give a row back; return how many pieces were still kept of it, which are given up."""
    cdef Datagram *datagram = &d.rows[row]
    cdef uint32_t given_up = 0
    while take_kept(d, row) != NOBODY:
        given_up += 1
    index.remove(&d.index, datagram.hash, <uint32_t>row)
    if datagram.older != NOBODY:
        d.rows[datagram.older].newer = datagram.newer
    else:
        d.oldest = datagram.newer
    if datagram.newer != NOBODY:
        d.rows[datagram.newer].older = datagram.older
    else:
        d.newest = datagram.older
    d.of_source[datagram.source] -= 1
    d.count -= 1
    datagram.older = d.free_row
    d.free_row = row
    return given_up


cdef inline uint32_t end_expired(Datagrams *d, uint32_t now_ms) noexcept nogil:
    """Give up all that have been incomplete for too long; return how many kept pieces were lost with them."""
    cdef uint32_t given_up = 0
    while d.count and now_ms - d.rows[d.oldest].since_ms >= FRAGMENT_MS:
        given_up += end_datagram(d, d.oldest)
    return given_up


cdef inline uint32_t end_oldest_of(Datagrams *d, uint8_t source, bint with_pieces) noexcept nogil:
    """Give up the oldest datagram of a source, with_pieces: the oldest that has pieces kept; return how many it had."""
    cdef int32_t row = d.oldest
    while row != NOBODY:
        if d.rows[row].source == source and not (with_pieces and d.rows[row].kept_first == NOBODY):
            return end_datagram(d, row)
        row = d.rows[row].newer
    return 0


cdef inline uint8_t heaviest(const uint16_t *counts) noexcept nogil:
    cdef int source
    cdef int best = 0
    for source in range(1, DATAGRAM_SOURCES):
        if counts[source] > counts[best]:
            best = source
    return <uint8_t>best


cdef inline uint32_t make_room(Datagrams *d, uint8_t source) noexcept nogil:
    """Have a row free for another datagram of a source; return how many kept pieces were given up for that."""
    if d.of_source[source] >= DATAGRAMS_PER_SOURCE:
        return end_oldest_of(d, source, False)
    return end_oldest_of(d, heaviest(d.of_source), False) if d.count == DATAGRAMS else 0


cdef inline int32_t begin_datagram(Datagrams *d, uint64_t key0, uint64_t key1, uint32_t hash, uint8_t source,
                                   uint32_t now_ms) noexcept nogil:
    """Return a row for a new datagram; `make_room` has made it free."""
    cdef int32_t row = take_row(d)
    cdef Datagram *datagram = &d.rows[row]
    memset(datagram, 0, sizeof(Datagram))
    datagram.key0 = key0
    datagram.key1 = key1
    datagram.hash = hash
    datagram.source = source
    datagram.since_ms = now_ms
    datagram.kept_first = NOBODY
    datagram.older = d.newest
    datagram.newer = NOBODY
    if d.newest != NOBODY:
        d.rows[d.newest].newer = row
    else:
        d.oldest = row
    d.newest = row
    d.of_source[source] += 1
    d.count += 1
    index.insert(&d.index, hash, <uint32_t>row)
    return row


cdef inline uint32_t make_room_for_piece(Datagrams *d, uint8_t source) noexcept nogil:
    """Have room for another piece of a source; return how many kept pieces were given up for that.

    The datagram that it is of may be given up itself.
    """
    if d.kept_of_source[source] >= PIECES_PER_SOURCE:
        return end_oldest_of(d, source, True)
    return end_oldest_of(d, heaviest(d.kept_of_source), True) if d.kept == PIECES else 0


cdef inline void keep_piece(Datagrams *d, int32_t row, const Frame *frame, uint8_t link) noexcept nogil:
    """Copy a frame of PIECE_ROOM - HEADROOM octets at most, as received, behind the pieces kept of a datagram."""
    cdef Datagram *datagram = &d.rows[row]
    cdef int32_t piece = take_piece(d)
    d.pieces[piece].frame = frame[0]
    d.pieces[piece].frame.data = d.memory + <size_t>piece * PIECE_ROOM + HEADROOM
    memcpy(d.pieces[piece].frame.data, frame.data, frame.length)
    d.pieces[piece].link = link
    d.pieces[piece].next = NOBODY
    if datagram.kept_first == NOBODY:
        datagram.kept_first = piece
    else:
        d.pieces[datagram.kept_last].next = piece
    datagram.kept_last = piece
    d.kept += 1
    d.kept_of_source[datagram.source] += 1


cdef inline Coverage coverage(const Datagram *datagram, uint32_t first, uint32_t count, bint last) noexcept nogil:
    """Compare a piece of `count` units from unit `first` on with what has come."""
    cdef uint32_t unit
    cdef uint32_t known = 0
    cdef uint32_t end = first + count
    if datagram.total and (end > datagram.total or (last and end != datagram.total)):
        return COVERS_BOTH
    for unit in range(first, end):
        known += (datagram.units[unit >> 6] >> (unit & 63)) & 1
    if known == 0:
        if last:
            for unit in range(end, UNITS):
                if (datagram.units[unit >> 6] >> (unit & 63)) & 1:
                    return COVERS_BOTH
        return COVERS_NEW
    return COVERS_OLD if known == count else COVERS_BOTH


cdef inline void mark(Datagram *datagram, uint32_t first, uint32_t count, bint last) noexcept nogil:
    """Note that a piece has come."""
    cdef uint32_t unit
    for unit in range(first, first + count):
        datagram.units[unit >> 6] |= <uint64_t>1 << (unit & 63)
    datagram.came += <uint16_t>count
    if last:
        datagram.total = <uint16_t>(first + count)


cdef inline bint is_complete(const Datagram *datagram) noexcept nogil:
    return datagram.total != 0 and datagram.came == datagram.total
