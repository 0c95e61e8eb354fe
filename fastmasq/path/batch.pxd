# One turn of the path: batches of frames from every link's ring, what has waited, and what is due.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmasq.path cimport carrying, dispatch, fragments, hold, verdict
from fastmasq.path.finish cimport finish, flush_all
from fastmasq.path.held cimport HELD, Held
from fastmasq.path.packet cimport KIND_FRAGMENT, KIND_SESSION, Packet, refused
from fastmasq.path.parse cimport take_frame
from fastmasq.path.punts cimport Answer
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.ring cimport BATCH, Frame, Ring, ring_next_ns, ring_receive, ring_release
from fastmasq.table cimport rows, sessions, shortage, table
from fastmasq.table.rows cimport Session
from fastmasq.table.table cimport Table
from fastmasq.table.wheel cimport TICK_MS
from fastmasq.wire cimport icmp
from fastmasq.wire.branches cimport rarely

cdef extern from * nogil:
    """
    #define PREFETCH(address) __builtin_prefetch((const void *)(address), 1, 3)
    """
    void PREFETCH(const void *address)

cdef enum:
    EXPIRE_BUDGET = 256         # sessions looked at between two batches
    SHORTAGE_BUDGET = 64        # and for what nobody has answered
    TURN_BATCHES = 8            # of one link before the next has its turn: answers in a bunch wake their hosts less often
    OBSERVED_FRAMES = 1024      # of all links, in one turn of a path that only observes


cdef inline void handle(Path *p, Packet *packet) noexcept nogil:
    """Take a packet from the door to the end of its way."""
    cdef Outcome outcome = packet.door
    if outcome == verdict.GOES_ON:
        if rarely(packet.is_fragment) and fragments.is_reassembled(p, packet):
            outcome = fragments.take(p, packet)
        else:
            if rarely(packet.is_fragment):
                packet.kind = KIND_FRAGMENT     # routed as it is: a first one like the others
            outcome = dispatch.handle_packet(p, packet)
    finish(p, packet, outcome)


# -- frames that have just come --------------------------------------------------------------------------------------

cdef inline bint has_flow_key(const Packet *packet) noexcept nogil:
    return packet.door == verdict.GOES_ON and packet.kind == KIND_SESSION


cdef inline void prefetch_session(const Table *t, uint32_t hash) noexcept nogil:
    """Fetch the row that the first index entry with this hash refers to."""
    cdef uint32_t at = hash & t.index.mask
    cdef const Session *s
    while t.index.entries[at].ref:
        if t.index.entries[at].hash == hash:
            s = &t.sessions[rows.row_of(t.index.entries[at].ref - 1)]
            PREFETCH(s)
            PREFETCH(<const uint8_t *>s + 64)
            return
        at = (at + 1) & t.index.mask


cdef inline int process_link(Path *p, int link) noexcept nogil:
    """Receive, translate and send one batch of a link; return how many frames there were."""
    cdef Ring *ring = p.rings[link]
    cdef Table *t = p.table
    cdef Packet *packet
    cdef uint64_t octets = 0
    cdef int count, i
    if ring == NULL:
        return 0
    count = ring_receive(ring, p.frames, BATCH)
    if count == 0:
        return 0
    for i in range(count):
        packet = &p.packets[i]
        octets += p.frames[i].length
        take_frame(packet, &p.frames[i], p.links, link)
        if has_flow_key(packet):
            packet.hash = table.key_hash(t, packet.key0, packet.key1)
            PREFETCH(&t.index.entries[packet.hash & t.index.mask])
    p.traffic[link].rx_packets += count
    p.traffic[link].rx_bytes += octets
    p.turn_octets += octets
    if count > 1:
        for i in range(count):
            if has_flow_key(&p.packets[i]):
                prefetch_session(t, p.packets[i].hash)
    for i in range(count):
        handle(p, &p.packets[i])
    flush_all(p)
    ring_release(ring)
    p.notes[verdict.NOTE_BATCHES] += 1
    return count


cdef inline int process_batches(Path *p) noexcept nogil:
    """Take some batches of one link after the other; return how many frames there were."""
    cdef int link, _batch, received
    cdef int count = 0
    for link in range(p.link_count):
        for _batch in range(TURN_BATCHES):
            received = process_link(p, link)
            count += received
            if received < BATCH:
                break
    return count


# -- frames in the order of their coming -----------------------------------------------------------------------------
#
# A path that forwards sees an answer after it has sent the question. One that only observes would see both at once, and
# could take the link of the answer first.

cdef inline int earliest_link(const Path *p, uint32_t empty) noexcept nogil:
    """Return the link whose next frame has come first, of those that have no bit in `empty`; -1 if none is due."""
    cdef uint64_t first = p.observation.until_ns + 1
    cdef uint64_t came
    cdef int link
    cdef int found = -1
    for link in range(p.link_count):
        if empty >> link & 1 or p.rings[link] == NULL:
            continue
        came = ring_next_ns(p.rings[link])
        if came < first:
            first, found = came, link
    return found


cdef inline int process_in_order(Path *p) noexcept nogil:
    """Take frames one by one, the oldest first; return how many there were."""
    cdef Packet *packet = &p.packets[0]
    cdef int count = 0
    cdef int link
    cdef uint32_t empty = 0
    while count < OBSERVED_FRAMES:
        link = earliest_link(p, empty)
        if link < 0:
            break
        if ring_receive(p.rings[link], p.frames, 1) == 0:
            empty |= <uint32_t>1 << link
            continue
        p.traffic[link].rx_packets += 1
        p.traffic[link].rx_bytes += p.frames[0].length
        take_frame(packet, &p.frames[0], p.links, link)
        if has_flow_key(packet):
            packet.hash = table.key_hash(p.table, packet.key0, packet.key1)
        handle(p, packet)
        flush_all(p)
        ring_release(p.rings[link])
        count += 1
    return count


# -- what has waited -------------------------------------------------------------------------------------------------

cdef inline Packet *take_again(Path *p, Frame *frame, int link, const Answer *answer) noexcept nogil:
    """Take a frame in hand that has waited; answer is that of the tracker that has been asked about it, or NULL."""
    cdef Packet *packet = &p.packets[0]
    take_frame(packet, frame, p.links, link)
    packet.has_waited = True
    packet.answer = answer
    if has_flow_key(packet):
        packet.hash = table.key_hash(p.table, packet.key0, packet.key1)
    return packet


cdef inline void process_held(Path *p) noexcept nogil:
    """Look after the packets that wait for a next hop: send those whose hop is known now, give up the others in time.

    One whose hop has been forgotten is handled as if it had just come: its link may be another by now. Of the others the
    sender is told (RFC 1812 section 5.2.7.1).
    """
    cdef int place
    cdef Held *held
    cdef Packet *packet
    cdef Answer answer
    cdef Outcome reason
    for place in range(HELD):
        held = &p.held.places[place]
        if not held.in_use:
            continue
        if not hold.is_due(p, held):
            hold.remind(p, held.hop)
            continue
        reason = hold.take_back(p, held)
        answer = held.answer
        packet = take_again(p, &held.frame, held.link, &answer if held.is_answered else NULL)
        if reason == verdict.GOES_ON:
            handle(p, packet)
        else:
            finish(p, packet, refused(packet, reason, icmp.DESTINATION_UNREACHABLE, icmp.HOST_UNREACHABLE, 0))
    flush_all(p)


# -- the turn --------------------------------------------------------------------------------------------------------

cdef inline int process(Path *p, uint64_t now_ns) noexcept nogil:
    """One turn: held packets, some frames of every link, and some of the sessions due; return frames handled.

    Held packets come first: those of their flows that have come meanwhile must not overtake them.
    """
    cdef int count
    p.turn_octets = 0
    p.now_ms = <uint32_t>(now_ns // 1000000)
    p.tick = <uint32_t>(now_ns // (<uint64_t>TICK_MS * 1000000))
    if rarely(p.carrier != NULL):
        carrying.tell_time(p)
    if rarely(p.held.count != 0):
        process_held(p)
    count = process_in_order(p) if rarely(p.observation != NULL) else process_batches(p)
    if rarely(p.datagrams.count != 0):
        fragments.expire_datagrams(p)
    sessions.expire_sessions(p.table, p.tick, EXPIRE_BUDGET)
    shortage.relieve(p.table, p.tick, SHORTAGE_BUDGET)
    return count
