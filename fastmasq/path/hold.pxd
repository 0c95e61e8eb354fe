# Packets that wait for the link address of their next hop: kept as received, and handled again once it is known.
#
# Nobody has all the room: a hop may keep so many waiting, so may a source, and all that come by one link.

from libc.stdint cimport uint16_t

from fastmasq.path cimport held, hops, links, verdict
from fastmasq.path.held cimport Held
from fastmasq.path.packet cimport Packet
from fastmasq.path.links cimport Hop, Party
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.ring cimport BIG_FRAME
from fastmasq.table cimport rows

cdef enum:
    HELD_PER_HOP = 64
    HELD_PER_SOURCE = 64
    HELD_PER_LINK = 160
    HOLD_MS = 3000


cdef inline void want_again(Path *p, uint16_t row) noexcept nogil:
    """Have the daemon asked for a hop once more, a second after the last time."""
    if p.now_ms - p.wants[row].asked_ms >= hops.ASK_AGAIN_MS:
        hops.want(p, row)


cdef inline void remind(Path *p, uint16_t row) noexcept nogil:
    """Have it asked for a hop that packets wait for, and for which the kernel had no turn: no other packet may come."""
    if not p.wants[row].was_asked:
        want_again(p, row)


cdef inline bint has_room(const Path *p, const Packet *packet, Party party) noexcept nogil:
    return (p.held.count < held.HELD and packet.hop.held < HELD_PER_HOP and p.held.of_source[party.source] < HELD_PER_SOURCE
            and p.held.of_link[party.link] < HELD_PER_LINK and packet.frame.length <= BIG_FRAME)


cdef inline Outcome hold(Path *p, const Packet *packet) noexcept nogil:
    """Keep a packet until its hop's address is known, if there is room for it; the daemon is told, once a second."""
    cdef Hop *hop = packet.hop
    cdef uint16_t row = <uint16_t>(hop - p.hops)
    cdef Party party = hops.party_of(p, packet, hop.link)
    cdef Held *waits
    if hop.state == links.HOP_FAILED:
        if not hops.may_wait(p, party):
            return verdict.NEIGHBOUR_LIMIT
        hops.begin_waiting(p, party, row)
    else:
        want_again(p, row)
    if not has_room(p, packet, party):
        return verdict.NEIGHBOUR_UNRESOLVED
    waits = held.keep(&p.held, packet.frame, packet.link, row, party)
    waits.since_ms = p.now_ms
    waits.is_answered = packet.answer != NULL
    if waits.is_answered:
        waits.answer = packet.answer[0]
    hop.held += 1
    p.notes[verdict.NOTE_HELD] += 1
    return verdict.WAITING


cdef inline Hop *hop_of_held(const Path *p, const Held *waits) noexcept nogil:
    """Return the next hop that a packet waits for, NULL when that is not there any more."""
    return &p.hops[waits.hop] if waits.hop < links.HOPS else NULL


cdef inline bint is_due(const Path *p, const Held *waits) noexcept nogil:
    """Whether a packet has waited long enough: its next hop has answered or failed, or its time is over."""
    cdef const Hop *hop = hop_of_held(p, waits)
    return hop == NULL or hop.state != links.HOP_INCOMPLETE or p.now_ms - waits.since_ms >= HOLD_MS


cdef inline Outcome take_back(Path *p, Held *waits) noexcept nogil:
    """Take a packet that is due out of its place; return the reason to drop it, or GOES_ON. Its memory stays for now."""
    cdef Hop *hop = hop_of_held(p, waits)
    held.give_back(&p.held, waits)
    if hop == NULL:
        return verdict.GOES_ON if waits.hop == rows.NO_HOP else verdict.NEIGHBOUR_UNRESOLVED
    hop.held -= 1
    if hop.state == links.HOP_VALID:
        return verdict.GOES_ON
    return verdict.NEIGHBOUR_FAILED if hop.state == links.HOP_FAILED else verdict.NEIGHBOUR_UNRESOLVED
