# Next hops: their rows, who waits for them, and which row goes when there is none left.
#
# A row begins incomplete, and the daemon is told that it is wanted. It becomes valid, or failed when nobody answers. Rows that
# are not valid are in queues by age; where there is no room the oldest failed one goes, then the oldest incomplete one, and a
# valid one never for a packet. What one sender wants does not cost others what they have: a source may wait for so many
# hops, so may all who come by one link, since sources are easily forged, and the kernel is asked so often for each.
# Sources are told apart by buckets of a keyed hash. What comes from outside is wanted by whom it is for, on their link: they
# have asked for it, and a server that answers many is nobody's accomplice.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from fastmasq.path cimport held, links, route, verdict
from fastmasq.path.packet cimport Packet
from fastmasq.path.links cimport Hop, HopQueue, Link, Party, Route, Want
from fastmasq.path.state cimport Path, begin_generation
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport index, keys, rows
from fastmasq.table.bucket cimport take_token
from fastmasq.table.siphash cimport siphash
from fastmasq.wire cimport ethernet
from fastmasq.wire.octets cimport store16

cdef enum:
    WAITING_OF_SOURCE = 32      # incomplete hops that one source waits for
    WAITING_OF_LINK = 512       # and all that come by one link
    HOPS_OF_SOURCE = links.HOPS // 4
    EXPECTED = links.HOPS // 4
    ASKED_OF_SOURCE = 20        # of the kernel a second
    ASKED_OF_LINK = 150         # in its table they lie for 3 seconds, and it has room for 1024 (arp(7), gc_thresh3)
    GIVE_UP_MS = 4000           # the kernel has found out by then: it asks three times, a second apart (arp(7))
    ASK_AGAIN_MS = 1000
    GIVE_UP_BUDGET = 8          # rows looked at for each packet
    IDLE_LOOKS = 8              # of the daemon, without a packet between, after which a valid hop may go


cdef inline Party party_of(const Path *p, const Packet *packet, int link) noexcept nogil:
    """Return who wants the hop on `link` that a packet needs on its way to `packet.towards`."""
    cdef Party party
    cdef bint is_answer = packet.side == keys.OUTSIDE
    cdef uint32_t address = packet.towards if is_answer else packet.ends.saddr
    party.source = <uint16_t>(siphash(&p.table.secret, address, 0x686f70) & (links.HOP_SOURCES - 1))
    party.link = <uint8_t>link if is_answer else packet.link
    return party


# -- the state of a row ----------------------------------------------------------------------------------------------

cdef inline void enqueue(Path *p, HopQueue *queue, uint16_t row) noexcept nogil:
    p.wants[row].older = queue.newest
    p.wants[row].newer = rows.NO_HOP
    if queue.newest != rows.NO_HOP:
        p.wants[queue.newest].newer = row
    else:
        queue.oldest = row
    queue.newest = row


cdef inline void dequeue(Path *p, HopQueue *queue, uint16_t row) noexcept nogil:
    cdef const Want *want = &p.wants[row]
    if want.older != rows.NO_HOP:
        p.wants[want.older].newer = want.newer
    else:
        queue.oldest = want.newer
    if want.newer != rows.NO_HOP:
        p.wants[want.newer].older = want.older
    else:
        queue.newest = want.older


cdef inline void leave_state(Path *p, uint16_t row) noexcept nogil:
    cdef const Want *want = &p.wants[row]
    cdef uint8_t state = p.hops[row].state
    if state != links.HOP_VALID:
        dequeue(p, &p.hop_queues[state], row)
    if state == links.HOP_INCOMPLETE:
        p.waiting_of_source[want.source] -= 1
        p.waiting_of_link[want.link] -= 1


cdef inline void enter_state(Path *p, uint16_t row, uint8_t state) noexcept nogil:
    cdef const Want *want = &p.wants[row]
    p.hops[row].state = state
    if state != links.HOP_VALID:
        enqueue(p, &p.hop_queues[state], row)
    if state == links.HOP_INCOMPLETE:
        p.waiting_of_source[want.source] += 1
        p.waiting_of_link[want.link] += 1


cdef inline void change_state(Path *p, uint16_t row, uint8_t state) noexcept nogil:
    if p.hops[row].state != state:
        leave_state(p, row)
        enter_state(p, row, state)


cdef inline void want(Path *p, uint16_t row) noexcept nogil:
    """Have the daemon find out the link address of a hop."""
    p.wants[row].asked_ms = p.now_ms
    p.hops[row].wanted = 1
    p.hops_wanted = True


# -- who may wait ----------------------------------------------------------------------------------------------------

cdef inline bint has_room(const Path *p, Party party) noexcept nogil:
    return p.waiting_of_source[party.source] < WAITING_OF_SOURCE and p.waiting_of_link[party.link] < WAITING_OF_LINK


cdef inline bint may_wait(Path *p, Party party) noexcept nogil:
    """Whether somebody may wait for one more hop; those that have not answered in time have failed."""
    cdef uint16_t oldest
    cdef int _i
    if has_room(p, party):
        return True
    for _i in range(GIVE_UP_BUDGET):
        oldest = p.hop_queues[links.HOP_INCOMPLETE].oldest
        if oldest == rows.NO_HOP or p.now_ms - p.wants[oldest].since_ms < GIVE_UP_MS:
            break
        change_state(p, oldest, links.HOP_FAILED)
    return has_room(p, party)


cdef inline void begin_waiting(Path *p, Party party, uint16_t row) noexcept nogil:
    """Ask for a hop again that has failed: `may_wait` has been asked. This party waits now."""
    leave_state(p, row)
    p.of_source[p.wants[row].source] -= 1
    p.wants[row].source = party.source
    p.of_source[party.source] += 1
    p.wants[row].link = party.link
    p.wants[row].since_ms = p.now_ms
    p.wants[row].was_asked = False
    enter_state(p, row, links.HOP_INCOMPLETE)
    want(p, row)


# -- rows ------------------------------------------------------------------------------------------------------------

cdef struct Search:
    # for the rows of a next hop: one for each MTU by which it is reached
    uint32_t address
    uint32_t hash
    uint32_t at                 # in the index
    int link


cdef inline uint32_t hop_hash(const Path *p, int link, uint32_t address) noexcept nogil:
    return <uint32_t>siphash(&p.table.secret, address, (<uint64_t>0x686f70 << 32) | <uint32_t>link)


cdef inline Search search_for(const Path *p, int link, uint32_t address) noexcept nogil:
    cdef Search search
    search.link, search.address = link, address
    search.hash = hop_hash(p, link, address)
    search.at = search.hash & p.hop_index.mask
    return search


cdef inline uint16_t next_found(const Path *p, Search *search) noexcept nogil:
    """Return the next row that is looked for; NO_HOP after the last."""
    cdef uint32_t row, hash
    while p.hop_index.entries[search.at].ref:
        row = p.hop_index.entries[search.at].ref - 1
        hash = p.hop_index.entries[search.at].hash
        search.at = (search.at + 1) & p.hop_index.mask
        if hash == search.hash and p.hops[row].address == search.address and p.hops[row].link == search.link:
            return <uint16_t>row
    return rows.NO_HOP


cdef inline void give_back(Path *p, uint16_t row) noexcept nogil:
    """Free a row. Flows that refer to it, which only those of a hop that was valid may, look their hop up anew."""
    cdef Hop *hop = &p.hops[row]
    leave_state(p, row)
    index.remove(&p.hop_index, hop_hash(p, hop.link, hop.address), row)
    p.of_source[p.wants[row].source] -= 1
    if p.wants[row].was_valid:
        begin_generation(p)
    if hop.held:
        held.lose_hop(&p.held, row)
    hop.state = links.HOP_FREE
    hop.wanted = 0
    p.wants[row].older = p.hop_free
    p.hop_free = row
    p.hops_in_use -= 1


cdef inline uint16_t free_row(Path *p) noexcept nogil:
    """Return a free row, the oldest that has failed or is incomplete if need be; NO_HOP when all are valid."""
    cdef uint16_t row
    if p.hop_free == rows.NO_HOP and p.hop_count == links.HOPS:
        row = p.hop_queues[links.HOP_FAILED].oldest
        if row == rows.NO_HOP:
            row = p.hop_queues[links.HOP_INCOMPLETE].oldest
        if row == rows.NO_HOP:
            return row
        give_back(p, row)
    row = p.hop_free
    if row != rows.NO_HOP:
        p.hop_free = p.wants[row].older
        return row
    p.hop_count += 1
    return <uint16_t>(p.hop_count - 1)


cdef inline Outcome take_hop(Path *p, Packet *packet, int link, uint32_t address, uint32_t mtu) noexcept nogil:
    """Start a new row for a packet's next hop, which the daemon is asked to resolve.

    A path that only observes asks nobody, and takes the hop for there.
    """
    cdef bint has_neighbours = p.links[link].header_length != 0 and p.observation == NULL
    cdef Party party = party_of(p, packet, link)
    cdef uint16_t row
    cdef Hop *hop
    if has_neighbours and (p.of_source[party.source] >= HOPS_OF_SOURCE or not may_wait(p, party)):
        return verdict.NEIGHBOUR_LIMIT
    row = free_row(p)
    if row == rows.NO_HOP:
        return verdict.NEIGHBOUR_TABLE_FULL
    hop = &p.hops[row]
    memset(hop, 0, sizeof(Hop))
    memset(&p.wants[row], 0, sizeof(Want))
    hop.link = link
    hop.address = address
    hop.mtu = mtu
    hop.header_length = p.links[link].header_length
    p.wants[row].source = party.source
    p.wants[row].link = party.link
    p.wants[row].since_ms = p.now_ms
    p.of_source[party.source] += 1
    p.hops_in_use += 1
    index.insert(&p.hop_index, hop_hash(p, link, address), row)
    if has_neighbours:
        memcpy(hop.header + ethernet.SOURCE, p.links[link].mac, ethernet.MAC)
        store16(hop.header + ethernet.TYPE, ethernet.ETHERTYPE_IPV4)
        enter_state(p, row, links.HOP_INCOMPLETE)
        want(p, row)
    else:
        p.wants[row].was_valid = True
        enter_state(p, row, links.HOP_VALID)
    packet.hop = hop
    return verdict.GOES_ON


cdef inline Outcome find_hop(Path *p, Packet *packet, const Route *way, uint32_t address) noexcept nogil:
    """Find the next hop towards an address over a route that leads on, or start a row for it."""
    cdef const Link *link = &p.links[way.link]
    cdef uint32_t mtu = way.mtu if way.mtu and way.mtu < link.mtu else link.mtu
    cdef uint32_t next_hop = 0
    cdef Search search
    cdef uint16_t row
    if link.header_length:
        next_hop = way.gateway if way.gateway else address
    search = search_for(p, way.link, next_hop)
    row = next_found(p, &search)
    while row != rows.NO_HOP:
        if p.hops[row].mtu == mtu:
            packet.hop = &p.hops[row]
            return verdict.GOES_ON
        row = next_found(p, &search)
    return take_hop(p, packet, way.link, next_hop, mtu)


cdef inline Outcome choose_hop(Path *p, Packet *packet, uint32_t address) noexcept nogil:
    """Choose the next hop by which a packet is to leave, towards its destination or another address."""
    cdef const Route *way = route.route_towards(p, packet, address)
    if not route.leads_on(way):
        return verdict.NO_ROUTE
    packet.towards = address
    return find_hop(p, packet, way, address)


cdef inline uint16_t number_of(const Path *p, const Hop *hop) noexcept nogil:
    """Return what a flow keeps of its hop: its row, if that is valid; others may become another hop's."""
    return <uint16_t>(hop - p.hops) if hop.state == links.HOP_VALID else rows.NO_HOP


# -- what the daemon finds out ---------------------------------------------------------------------------------------

cdef inline bint settle(Path *p, int link, uint32_t address, const uint8_t *mac) noexcept nogil:
    """Note the link address of a next hop, NULL when it does not answer; return whether there is such a hop."""
    cdef Search search = search_for(p, link, address)
    cdef uint16_t row = next_found(p, &search)
    cdef bint found = False
    while row != rows.NO_HOP:
        if p.hops[row].header_length:
            found = True
            if mac == NULL:
                change_state(p, row, links.HOP_FAILED)
            else:
                if p.hops[row].state == links.HOP_VALID and memcmp(p.hops[row].header, mac, ethernet.MAC) != 0:
                    begin_generation(p)     # who carries packets there must not see half of it
                memcpy(p.hops[row].header, mac, ethernet.MAC)
                p.wants[row].was_valid = True
                change_state(p, row, links.HOP_VALID)
        row = next_found(p, &search)
    return found


cdef inline void expect(Path *p, int link, uint32_t address, const uint8_t *mac) noexcept nogil:
    """Have a next hop on a link be valid before any packet wants it, as if it had been wanted by itself.

    Most rows are left for those that packets do want: anybody on a link can make the kernel know any address.
    """
    cdef Search search = search_for(p, link, address)
    cdef Packet packet
    if p.links[link].header_length == 0 or p.hops_in_use >= EXPECTED or next_found(p, &search) != rows.NO_HOP:
        return
    memset(&packet, 0, sizeof(packet))
    packet.side, packet.ends.saddr, packet.link = keys.INSIDE, address, <uint8_t>link
    if take_hop(p, &packet, link, address, p.links[link].mtu) == verdict.GOES_ON:
        settle(p, link, address, mac)
        packet.hop.wanted = 0       # found out already


cdef inline bint may_ask(Path *p, int link, uint32_t address) noexcept nogil:
    """Whether the kernel may be asked for a next hop now: so often for each source, and for all that come by one link.

    It has forgotten a valid one if that is asked for: then only packets on their way count.
    """
    cdef Search search = search_for(p, link, address)
    cdef uint16_t row = next_found(p, &search)
    cdef Want *wanted
    if row == rows.NO_HOP:
        return False
    if p.hops[row].state == links.HOP_VALID:
        return p.hops[row].used != 0
    wanted = &p.wants[row]
    if not (take_token(&p.asked_of_source[wanted.source], p.now_ms, ASKED_OF_SOURCE, WAITING_OF_SOURCE)
            and take_token(&p.asked_of_link[wanted.link], p.now_ms, ASKED_OF_LINK, ASKED_OF_LINK)):
        return False
    wanted.was_asked = True
    return True


cdef inline void stop_wanting(Path *p) noexcept nogil:
    """Note that the daemon knows of all hops that it is to find out about."""
    cdef uint32_t row
    for row in range(p.hop_count):
        p.hops[row].wanted = 0
    p.hops_wanted = False


cdef inline uint32_t take_use(Path *p, uint16_t row) noexcept nogil:
    """Return how many packets a valid next hop has sent on since the last look; 0 of others.

    Where more than half of all rows are in use, one that was not used for IDLE_LOOKS looks goes.
    """
    cdef Hop *hop = &p.hops[row]
    cdef uint32_t packets = hop.used
    if hop.state != links.HOP_VALID:
        return 0
    if packets:
        hop.used = p.wants[row].idle = 0
    elif p.wants[row].idle < IDLE_LOOKS:
        p.wants[row].idle += 1
    elif p.hops_in_use > links.HOPS // 2:
        give_back(p, row)
    return packets


cdef inline void begin(Path *p) noexcept nogil:
    """Begin without hops; all is zero."""
    memset(p.hop_queues, 0xFF, sizeof(p.hop_queues))        # NO_HOP each
    p.hop_free = rows.NO_HOP
    begin_generation(p)


cdef inline void forget_link(Path *p, int link) noexcept nogil:
    """Have every hop on a link looked up anew, also those that packets wait for. Those of other links stay known."""
    cdef uint32_t row
    for row in range(p.hop_count):
        if p.hops[row].state == links.HOP_FREE or p.hops[row].link != link:
            continue
        if p.hops[row].held:
            held.forget_hop(&p.held, <uint16_t>row)
            p.hops[row].held = 0
        give_back(p, <uint16_t>row)
    begin_generation(p)
