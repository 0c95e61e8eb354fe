# Packets that a tracker has to decide about: they wait here, in order, until the daemon has read and answered them.
#
# A packet is handled twice. The first time it gets as far as the place where the tracker's word is wanted, and is kept; with
# the answer it is handled once more from the start, by all the same rules and checks, and gets past that place.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.ring cimport BIG_FRAME, Frame, HEADROOM

cdef enum:
    PUNTS = 64                  # packets waiting at once
    PUNTS_OF_ONE = 16           # of one source address and kind
    PUNTS_OF_STRANGERS = 16     # from outside, and of nothing that an inside host takes part in
    STRANGER_RATE = 500         # of those a second: a tracker takes its time, and has other work
    STRANGER_BURST = 50
    PREFIX_RATE = 50            # of those from one /24
    PREFIX_BURST = 16
    ANSWER_RATE = 200           # a second of one exchange or one remote's calls and SAs, whose sender may be forged
    ANSWER_BURST = 64
    ASKERS = 1024               # buckets
    SEGMENTS_OF_ONE = 48        # of control connections: more of its segments may come in a bunch

cdef enum PuntKind:
    PUNT_CONTROL = 1            # a segment of a PPTP control connection; ref is its flow
    PUNT_TUNNEL = 2             # GRE of PPTP or ESP, that no row explains
    PUNT_ISAKMP = 3
    PUNT_QUOTE = 4              # an ICMP error about ISAKMP or unsettled ESP

cdef struct Punt:
    Frame frame
    int64_t ref
    uint32_t saddr
    uint8_t kind
    uint8_t link
    bint is_strange

cdef struct Answer:
    # what a tracker has decided about a packet
    Outcome outcome             # GOES_ON, or the reason to drop it
    uint32_t address            # outbound its new source, inbound the inside host
    uint16_t call_id            # to write, if renumbered
    bint renumbered

cdef struct PuntQueue:
    Punt waiting[PUNTS]         # a ring: `count` of them from `first` on
    uint8_t *memory             # [PUNTS + 1][HEADROOM + BIG_FRAME]; the last one is for copies
    int first
    int count
    bint is_news                # the daemon has not been told yet


cdef inline uint8_t *punt_memory(const PuntQueue *queue, int slot) noexcept nogil:
    return queue.memory + <size_t>slot * (HEADROOM + BIG_FRAME) + HEADROOM


cdef inline bint has_room(const PuntQueue *queue, uint32_t saddr, uint32_t length, uint8_t kind,
                          bint is_strange) noexcept nogil:
    """Whether a packet of a source may wait: nobody may have the whole queue."""
    cdef int i
    cdef int same = 0
    cdef int strange = 0
    cdef int most = SEGMENTS_OF_ONE if kind == PUNT_CONTROL else PUNTS_OF_ONE
    if queue.count == PUNTS or length > BIG_FRAME:
        return False
    for i in range(queue.count):
        same += (queue.waiting[(queue.first + i) & (PUNTS - 1)].saddr == saddr
                 and queue.waiting[(queue.first + i) & (PUNTS - 1)].kind == kind)
        strange += queue.waiting[(queue.first + i) & (PUNTS - 1)].is_strange
    return same < most and not (is_strange and strange >= PUNTS_OF_STRANGERS)


cdef inline void take_first(PuntQueue *queue) noexcept nogil:
    """Take the packet that has waited longest off the queue; its memory stays until the next packet is kept."""
    queue.first = (queue.first + 1) & (PUNTS - 1)
    queue.count -= 1


cdef inline void take_all(PuntQueue *queue) noexcept nogil:
    queue.first = (queue.first + queue.count) & (PUNTS - 1)
    queue.count = 0
