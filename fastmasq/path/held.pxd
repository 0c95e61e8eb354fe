# The places of packets that wait for a next hop, and how many of them each source and each link has.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from fastmasq.path.links cimport HOP_SOURCES, LINKS, LOST_HOP, Party
from fastmasq.path.punts cimport Answer
from fastmasq.ring.ring cimport BIG_FRAME, Frame, HEADROOM
from fastmasq.table.rows cimport NO_HOP

cdef enum:
    HELD = 256                  # packets at once


cdef struct Held:
    Frame frame
    uint32_t since_ms
    uint16_t hop                # row, NO_HOP or LOST_HOP
    Party party                 # that wants it
    uint8_t link                # that the frame came by
    uint8_t in_use
    Answer answer               # of a tracker
    bint is_answered            # one has been asked about it

cdef struct HeldPackets:
    Held places[HELD]
    uint8_t *memory             # [HELD][HEADROOM + BIG_FRAME]
    int count
    uint16_t of_source[HOP_SOURCES]
    uint16_t of_link[LINKS]


cdef inline Held *keep(HeldPackets *h, const Frame *frame, uint8_t link, uint16_t hop, Party party) noexcept nogil:
    """Copy a frame of BIG_FRAME octets at most, as received, into a place of its own; there must be one left."""
    cdef Held *held
    cdef int place
    for place in range(HELD):
        if not h.places[place].in_use:
            break
    held = &h.places[place]
    held.frame = frame[0]
    held.frame.data = h.memory + <size_t>place * (HEADROOM + BIG_FRAME) + HEADROOM
    memcpy(held.frame.data, frame.data, frame.length)
    held.link, held.hop, held.party = link, hop, party
    held.in_use = 1
    h.count += 1
    h.of_source[party.source] += 1
    h.of_link[party.link] += 1
    return held


cdef inline void give_back(HeldPackets *h, Held *held) noexcept nogil:
    """Free a place; the frame's memory stays until the next packet is kept."""
    held.in_use = 0
    h.count -= 1
    h.of_source[held.party.source] -= 1
    h.of_link[held.party.link] -= 1


cdef inline void lose_hop(HeldPackets *h, uint16_t row) noexcept nogil:
    """Note that a next hop had to go: what waits for it waits in vain."""
    cdef int place
    for place in range(HELD):
        if h.places[place].hop == row:
            h.places[place].hop = LOST_HOP


cdef inline void forget_hop(HeldPackets *h, uint16_t row) noexcept nogil:
    """Have what waits for a next hop look it up anew."""
    cdef int place
    for place in range(HELD):
        if h.places[place].hop == row:
            h.places[place].hop = NO_HOP
