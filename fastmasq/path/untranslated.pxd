# Private sources that leave by the outside link as they are: whose they are, until the daemon asks.
#
# Only rules let them, and they pass as rules say; but nobody outside can answer. Translated packets do not come here.

from libc.stdint cimport uint32_t, uint64_t

from fastmasq.table.keys cimport Ends
from fastmasq.table.siphash cimport Secret, siphash

cdef enum:
    UNTRANSLATED = 64           # rows in all
    UNTRANSLATED_WAYS = 4       # rows for hosts with one hash


cdef struct Untranslated:
    # a host whose packets have left so; unused while packets is 0
    uint64_t packets            # since the daemon last asked
    uint32_t source
    uint32_t destination        # of the last one


cdef inline bint is_private(uint32_t address) noexcept nogil:
    """Whether no answer to an address can come over the internet (RFC 1918 section 3, RFC 6598 section 7)."""
    return (address >> 24 == 10 or address >> 20 == 0xAC1 or address >> 16 == 0xC0A8        # 172.16/12, 192.168/16
            or address >> 22 == 0x64400000 >> 22)                                           # 100.64/10


cdef inline void note(Untranslated *hosts, const Secret *secret, const Ends *ends) noexcept nogil:
    """Count a packet with these ends for its host; where there is no row, the one with the fewest packets gives way."""
    cdef Untranslated *rows = &hosts[siphash(secret, ends.saddr, 0x756e7472)
                                     % (UNTRANSLATED // UNTRANSLATED_WAYS) * UNTRANSLATED_WAYS]
    cdef Untranslated *row = rows
    cdef int way
    for way in range(UNTRANSLATED_WAYS):
        if rows[way].packets and rows[way].source == ends.saddr:
            row = &rows[way]
            break
        if rows[way].packets < row.packets:
            row = &rows[way]
    if row.source != ends.saddr:
        row.packets = 0
    row.packets += 1
    row.source, row.destination = ends.saddr, ends.daddr
