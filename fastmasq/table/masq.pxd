# The masquerade table: sessions found by their 16-byte key, opened and closed together with mapping, port, host and timer.
#
# Theory of operation. A *session* is one row of 128 octets with two mirrored flows; both flows are in one index, so one
# lookup serves both directions. A *mapping* is the external endpoint that an internal endpoint has been given, the same
# for every remote (RFC 4787 REQ-1); its row number *is* the external endpoint, so that inbound packets without a session
# find it by arithmetic. Sessions hold their mapping open; the last one to close gives the port back. A *host* row counts
# what one inside address holds, so that one host can take neither the table nor the ports.
#
# A port given back is held down for two minutes (RFC 6888 REQ-8): late packets for its last owner must not reach another
# host. Until then it is given to a host that had it and asks for it, or to anybody when no other port is left, the longest
# held first. Ports held down wait in a queue for each pool, linked through their mapping rows. In the manner of 1999 (rule
# C-2), where all ports are given in turn, none is held.
#
# Nothing here allocates, and no call does an unbounded amount of work except `port_choose` on a nearly empty pool (at
# most 1024 words, or as many ports under 1024). A full table refuses the new session and touches no old one (RFC 6888
# REQ-11).
#
# Size: 128 octets a session, 32 in the index, 32 in the permits, and for its mapping 20 + 16 at the most: 228.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmasq.table.entry cimport (
    CLASS_COUNT, CLASS_ICMP, CLASS_NONE, CLASS_TCP, CLASS_UDP, Flow, Host, INBOUND, INSIDE, KEY_REPLY, LOCAL, MAPPING_BY_SESSION,
    MAPPING_FORWARD, MAPPING_FREE, MAPPING_HELD_DOWN, MAPPING_OPEN, Mapping, NO_HOP, NONE, OUTBOUND, OUTSIDE, PLAIN_ACTIVE,
    SESSION_REPLIED, STATE_COUNT, STATE_FREE, Session,
    UNKNOWN_SCALE, key_did, key_sid, key_side, make_key0, make_key1,
)
from fastmasq.table.forwards cimport ForwardSet, Target, is_crowded, is_half_open, is_target, pass_turn
from fastmasq.table.index cimport Index, index_insert, index_remove
from fastmasq.table.permits cimport PermitSet, permit_grant, permit_held, permit_revoke
from fastmasq.table.ports cimport (
    LOW_PORTS, NO_PORT, POOL_WORDS, PortPool, port_choose, port_choose_next, port_give_back, port_is_free, port_take,
)
from fastmasq.table.siphash cimport Secret, siphash
from fastmasq.table.wheel cimport TICK_MS, WHEEL_SLOTS, Wheel, wheel_link, wheel_unlink
from fastmasq.wire.checksum cimport delta16, delta32, fold
from fastmasq.wire.ipv4 cimport PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP

cdef enum:
    EXTERNALS = 4               # external addresses at once: the present one, those of forwards, and those that are ending
    PORTS = 65536
    HOLD_DOWN_TICKS = 120000 // TICK_MS + 1  # RFC 6888 REQ-8, never less

cdef enum Filtering:            # RFC 4787 section 5
    ENDPOINT_INDEPENDENT = 0
    ADDRESS_DEPENDENT = 1
    ADDRESS_AND_PORT_DEPENDENT = 2

cdef enum Refusal:              # why no session was opened; negative, since rows are not
    REFUSED_TABLE_FULL = -1
    REFUSED_PORTS_EXHAUSTED = -2
    REFUSED_HOST_SESSIONS = -3
    REFUSED_HOST_PORTS = -4
    REFUSED_HOST_RATE = -5
    REFUSED_HOST_TABLE_FULL = -6
    REFUSED_NO_EXTERNAL = -7
    REFUSED_HALF_OPEN = -8      # a forward has its share: the packet may pass without a session
    REFUSED_CLASH = -9          # the two endpoints already have a session by another way


cdef struct Limits:
    uint32_t sessions_per_host
    uint32_t ports_per_host     # of each class
    uint32_t rate_per_host      # new sessions a second; 0: any
    uint32_t burst_per_host


cdef struct HoldQueue:          # ports held down, in the order of their times; 0, which is never given, ends it
    uint16_t first
    uint16_t last


cdef struct Table:
    Session *sessions
    uint32_t capacity
    uint32_t fresh              # rows [fresh, capacity) were never used
    uint32_t free_row           # first of the rows given back, linked by timer_next
    uint32_t active
    uint32_t active_by_class[4]    # with CLASS_NONE
    Index index
    Mapping *mappings           # [EXTERNALS][CLASS_COUNT][PORTS]
    Index mapping_index
    uint32_t mappings_in_use    # dynamic ones
    ForwardSet forwards
    PermitSet permits
    Host *hosts
    uint32_t host_capacity
    uint32_t host_fresh
    uint32_t host_free
    uint32_t hosts_in_use
    Index host_index
    PortPool pools[12]          # [EXTERNALS * CLASS_COUNT]
    HoldQueue held[12]          # of each pool
    uint64_t *allowed           # [EXTERNALS * CLASS_COUNT][POOL_WORDS]: what may be taken at all
    uint32_t external[4]        # addresses; 0 is an unused row
    int current                 # row of the external address for new mappings, or -1
    Wheel wheel
    uint32_t timeout[14]        # [STATE_COUNT], ticks
    Filtering filtering
    Limits limits
    uint32_t now                # the last tick that expire_sessions was told
    bint sequential             # ports as in 1999: never kept, ascending
    uint32_t next_sequential
    Secret secret
    uint64_t random
    uint64_t opened
    uint64_t closed
    uint64_t expired


cdef inline int class_of(uint8_t protocol) noexcept nogil:
    """Return the port class of a protocol, or -1 for a protocol without ports."""
    if protocol == PROTOCOL_TCP:
        return CLASS_TCP
    if protocol == PROTOCOL_UDP:
        return CLASS_UDP
    if protocol == PROTOCOL_ICMP:
        return CLASS_ICMP
    return -1


cdef inline uint8_t protocol_of(int port_class) noexcept nogil:
    if port_class == CLASS_TCP:
        return PROTOCOL_TCP
    return PROTOCOL_UDP if port_class == CLASS_UDP else PROTOCOL_ICMP


cdef inline uint64_t next_random(Table *t) noexcept nogil:
    """Return 64 bits nobody can foresee without the secret: SipHash of a counter."""
    t.random += 1
    return siphash(&t.secret, t.random, 0x72616e646f6d)


cdef inline uint64_t key_hash(const Table *t, uint64_t key0, uint64_t key1) noexcept nogil:
    return siphash(&t.secret, key0, key1)


# -- finding ---------------------------------------------------------------------------------------------------------

cdef inline int64_t find_flow(const Table *t, uint64_t key0, uint64_t key1, uint32_t hash) noexcept nogil:
    """Return row << 1 | direction of the flow with this key, or -1."""
    cdef uint32_t at = hash & t.index.mask
    cdef uint32_t ref
    cdef const Flow *flow
    while True:
        ref = t.index.entries[at].ref
        if ref == 0:
            return -1
        if t.index.entries[at].hash == hash:
            ref -= 1
            flow = &t.sessions[ref >> 1].flow[ref & 1]
            if flow.key0 == key0 and flow.key1 == key1:
                return ref
        at = (at + 1) & t.index.mask


cdef inline uint32_t mapping_row(int external, int port_class, uint16_t port) noexcept nogil:
    return (<uint32_t>(external * CLASS_COUNT + port_class) << 16) | port


cdef inline int external_of(const Table *t, uint32_t address) noexcept nogil:
    """Return the row of an external address, or -1."""
    cdef int i
    if address:
        for i in range(EXTERNALS):
            if t.external[i] == address:
                return i
    return -1


cdef inline uint32_t find_external(const Table *t, uint32_t address, int port_class, uint16_t port) noexcept nogil:
    """Return the mapping of an external endpoint, or NONE."""
    cdef int external = external_of(t, address)
    cdef uint32_t row
    if external < 0:
        return NONE
    row = mapping_row(external, port_class, port)
    return row if t.mappings[row].in_use != MAPPING_FREE and t.mappings[row].in_use != MAPPING_HELD_DOWN else NONE


cdef inline uint64_t endpoint_hash(const Table *t, int port_class, uint32_t address, uint16_t id) noexcept nogil:
    return siphash(&t.secret, address, (<uint64_t>(0x4d00 | port_class) << 48) | id)


cdef inline uint32_t find_internal(const Table *t, int port_class, uint32_t address, uint16_t id,
                                   uint32_t hash) noexcept nogil:
    """Return the mapping of an internal endpoint: on the current external address, or a forward's; or NONE."""
    cdef uint32_t at = hash & t.mapping_index.mask
    cdef uint32_t pool = <uint32_t>(t.current * CLASS_COUNT + port_class)
    cdef uint32_t row
    while True:
        row = t.mapping_index.entries[at].ref
        if row == 0:
            return NONE
        row -= 1
        if t.mapping_index.entries[at].hash == hash:
            if t.mappings[row].in_use == MAPPING_FORWARD:
                if (row >> 16) % CLASS_COUNT == <uint32_t>port_class and is_target(
                        &t.forwards, t.mappings[row].host, address, id):
                    return row
            elif t.mappings[row].address == address and t.mappings[row].id == id and row >> 16 == pool:
                return row
        at = (at + 1) & t.mapping_index.mask


cdef inline const Target *forward_target(const Table *t, uint32_t mapping, uint32_t remote, uint16_t port) noexcept nogil:
    """Return the target of a forward for a remote endpoint without a session: whose turn it is, when a session can be had.

    Without one it must be the same for all packets of the remote endpoint: then the endpoint decides.
    """
    cdef uint32_t row = t.mappings[mapping].host
    cdef uint32_t at = t.forwards.rows[row].turn
    cdef uint32_t best = at
    cdef uint64_t score, least = 0xFFFFFFFFFFFFFFFFULL
    cdef uint32_t _i
    if is_crowded(&t.forwards, row):
        for _i in range(t.forwards.rows[row].targets):
            score = siphash(&t.secret, (<uint64_t>remote << 32) | (0x4657U << 16) | port,
                            (<uint64_t>t.forwards.targets[at].port << 32) | t.forwards.targets[at].address)
            if score <= least:
                least, best = score, at
            at = t.forwards.targets[at].next
    return &t.forwards.targets[best]


cdef inline uint32_t mapping_address(const Table *t, uint32_t row) noexcept nogil:
    return t.external[(row >> 16) // CLASS_COUNT]


cdef inline uint64_t permit_fingerprint(const Table *t, uint32_t mapping, uint32_t remote) noexcept nogil:
    return siphash(&t.secret, (<uint64_t>mapping << 32) | remote, <uint64_t>0x5045 << 48)


cdef inline bint admits(const Table *t, uint32_t mapping, uint32_t remote) noexcept nogil:
    """Whether a remote address without a session of its own may send to a mapping (RFC 4787 section 5)."""
    if t.filtering == ENDPOINT_INDEPENDENT:
        return True
    if t.filtering == ADDRESS_AND_PORT_DEPENDENT:
        return False
    return permit_held(&t.permits, permit_fingerprint(t, mapping, remote))


# -- hosts -----------------------------------------------------------------------------------------------------------

cdef inline uint32_t host_hash(const Table *t, uint32_t address) noexcept nogil:
    return <uint32_t>siphash(&t.secret, address, <uint64_t>0x484f << 48)


cdef inline uint32_t find_host(const Table *t, uint32_t address, uint32_t hash) noexcept nogil:
    cdef uint32_t at = hash & t.host_index.mask
    cdef uint32_t row
    while True:
        row = t.host_index.entries[at].ref
        if row == 0:
            return NONE
        row -= 1
        if t.host_index.entries[at].hash == hash and t.hosts[row].address == address:
            return row
        at = (at + 1) & t.host_index.mask


cdef inline uint32_t take_host(Table *t, uint32_t address, uint32_t hash, uint32_t now_ms) noexcept nogil:
    cdef uint32_t row = t.host_free
    if row != NONE:
        t.host_free = t.hosts[row].next_free
    elif t.host_fresh < t.host_capacity:
        row = t.host_fresh
        t.host_fresh += 1
    else:
        return NONE
    memset(&t.hosts[row], 0, sizeof(Host))
    t.hosts[row].address = address
    t.hosts[row].tokens = t.limits.burst_per_host * 1000
    t.hosts[row].stamp_ms = now_ms
    t.hosts_in_use += 1
    index_insert(&t.host_index, hash, row)
    return row


cdef inline void give_back_host(Table *t, uint32_t row) noexcept nogil:
    index_remove(&t.host_index, host_hash(t, t.hosts[row].address), row)
    t.hosts[row].address = 0
    t.hosts[row].next_free = t.host_free
    t.host_free = row
    t.hosts_in_use -= 1


cdef inline bint host_may_open(Table *t, uint32_t row, uint32_t now_ms) noexcept nogil:
    """Take one token of the host's bucket of new sessions; False when it is empty."""
    cdef Host *host = &t.hosts[row]
    cdef uint64_t tokens
    if t.limits.rate_per_host == 0:
        return True
    tokens = host.tokens + <uint64_t>(now_ms - host.stamp_ms) * t.limits.rate_per_host
    if tokens > <uint64_t>t.limits.burst_per_host * 1000:
        tokens = <uint64_t>t.limits.burst_per_host * 1000
    host.stamp_ms = now_ms
    host.tokens = <uint32_t>tokens
    if tokens < 1000:
        return False
    host.tokens -= 1000
    return True


# -- ports held down -------------------------------------------------------------------------------------------------

cdef inline uint16_t next_held(const Mapping *mapping) noexcept nogil:
    return <uint16_t>(mapping.host >> 16)


cdef inline void hold_down(Table *t, int pool, uint16_t port) noexcept nogil:
    """Put the port of a closed mapping at the end of its pool's queue."""
    cdef HoldQueue *queue = &t.held[pool]
    cdef Mapping *rows = &t.mappings[<uint32_t>pool << 16]
    rows[port].in_use = MAPPING_HELD_DOWN
    rows[port].sessions = t.now + HOLD_DOWN_TICKS
    rows[port].host = queue.last
    if queue.last:
        rows[queue.last].host |= <uint32_t>port << 16
    else:
        queue.first = port
    queue.last = port


cdef inline void end_hold(Table *t, int pool, uint16_t port) noexcept nogil:
    """Take a port out of the queue; it is neither held down nor free then."""
    cdef HoldQueue *queue = &t.held[pool]
    cdef Mapping *rows = &t.mappings[<uint32_t>pool << 16]
    cdef uint16_t after = next_held(&rows[port])
    cdef uint16_t before = <uint16_t>rows[port].host
    if before:
        rows[before].host = (<uint32_t>after << 16) | (rows[before].host & 0xFFFF)
    else:
        queue.first = after
    if after:
        rows[after].host = (rows[after].host & 0xFFFF0000U) | before
    else:
        queue.last = before
    rows[port].in_use = MAPPING_FREE


cdef inline bint is_allowed(const Table *t, int pool, uint16_t port) noexcept nogil:
    """Whether a port may be given at all: some belong to the host itself."""
    return (t.allowed[<size_t>pool * POOL_WORDS + (port >> 6)] >> (port & 63)) & 1


cdef inline void free_port(Table *t, int pool, uint16_t port) noexcept nogil:
    if is_allowed(t, pool, port):
        port_give_back(&t.pools[pool], port)


cdef inline int end_holds(Table *t, uint32_t tick, int budget) noexcept nogil:
    """Free the ports whose time is over at `tick`, at most `budget` of them; return how many that were."""
    cdef int freed = 0
    cdef int pool
    cdef uint16_t port
    for pool in range(EXTERNALS * CLASS_COUNT):
        while freed < budget:
            port = t.held[pool].first
            if port == 0 or <int>(t.mappings[(<uint32_t>pool << 16) | port].sessions - tick) > 0:
                break
            end_hold(t, pool, port)
            free_port(t, pool, port)
            freed += 1
    return freed


cdef inline bint was_of(const Table *t, int pool, uint16_t port, uint32_t address) noexcept nogil:
    """Whether a port is held down, may still be given, and had this host as its last owner."""
    cdef const Mapping *mapping = &t.mappings[(<uint32_t>pool << 16) | port]
    return mapping.in_use == MAPPING_HELD_DOWN and mapping.address == address and is_allowed(t, pool, port)


cdef inline int longest_held(const Table *t, int pool, bint low) noexcept nogil:
    """Return the port that is held down longest, one under LOW_PORTS only if `low`; or NO_PORT."""
    cdef uint16_t port = t.held[pool].first
    while port and (not is_allowed(t, pool, port) or (port < LOW_PORTS and not low)):
        port = next_held(&t.mappings[(<uint32_t>pool << 16) | port])
    if port == 0:
        return NO_PORT
    return port


# -- mappings --------------------------------------------------------------------------------------------------------

cdef inline int keep_port(Table *t, int pool, uint32_t address, uint16_t wanted) noexcept nogil:
    """Take just this external port for a host, though it may not be one for mappings; NO_PORT if it is in use."""
    cdef Mapping *mapping = &t.mappings[(<uint32_t>pool << 16) | wanted]
    if mapping.in_use == MAPPING_HELD_DOWN and mapping.address == address:
        end_hold(t, pool, wanted)
        return wanted
    if mapping.in_use != MAPPING_FREE or wanted == 0:
        return NO_PORT
    if port_is_free(&t.pools[pool], wanted):
        port_take(&t.pools[pool], wanted)
    return wanted


cdef inline int choose_port(Table *t, int pool, int port_class, uint32_t address, uint16_t wanted) noexcept nogil:
    """Return the external port for an inside endpoint, taken from the free ones or those held down; or NO_PORT."""
    cdef int port
    if t.sequential:
        port = port_choose_next(&t.pools[pool], &t.next_sequential)
    elif was_of(t, pool, wanted, address):
        end_hold(t, pool, wanted)
        return wanted
    else:
        port = port_choose(&t.pools[pool], wanted, port_class != CLASS_ICMP, next_random(t))
    if port != NO_PORT:
        port_take(&t.pools[pool], <uint16_t>port)
        return port
    port = longest_held(t, pool, port_class == CLASS_ICMP or wanted < LOW_PORTS)
    if port != NO_PORT:
        end_hold(t, pool, <uint16_t>port)
    return port


cdef inline int64_t take_mapping(Table *t, int port_class, uint32_t address, uint16_t id, uint32_t hash, uint32_t host,
                                 bint keep) noexcept nogil:
    """Give an internal endpoint its external one, with `keep` of the same port if at all possible; or return a Refusal."""
    cdef Mapping *mapping
    cdef int port = NO_PORT
    cdef uint32_t row
    if t.current < 0:
        return REFUSED_NO_EXTERNAL
    if t.hosts[host].ports[port_class] >= t.limits.ports_per_host:
        return REFUSED_HOST_PORTS
    if keep:
        port = keep_port(t, t.current * CLASS_COUNT + port_class, address, id)
    if port == NO_PORT:
        port = choose_port(t, t.current * CLASS_COUNT + port_class, port_class, address, id)
    if port == NO_PORT:
        return REFUSED_PORTS_EXHAUSTED
    row = mapping_row(t.current, port_class, <uint16_t>port)
    mapping = &t.mappings[row]
    mapping.address = address
    mapping.id = id
    mapping.host = host
    mapping.sessions = 0
    mapping.in_use = MAPPING_OPEN
    t.hosts[host].ports[port_class] += 1
    t.mappings_in_use += 1
    index_insert(&t.mapping_index, hash, row)
    return row


cdef inline void forget_owner(Table *t, uint32_t row) noexcept nogil:
    """Take a dynamic mapping from its inside endpoint."""
    cdef Mapping *mapping = &t.mappings[row]
    cdef int port_class = (row >> 16) % CLASS_COUNT
    index_remove(&t.mapping_index, <uint32_t>endpoint_hash(t, port_class, mapping.address, mapping.id), row)
    t.hosts[mapping.host].ports[port_class] -= 1
    t.mappings_in_use -= 1


cdef inline void give_back_mapping(Table *t, uint32_t row) noexcept nogil:
    """Free a mapping that has no sessions left, unless it is a forward's."""
    cdef Mapping *mapping = &t.mappings[row]
    cdef int pool = row >> 16
    cdef uint16_t port = <uint16_t>row
    if mapping.in_use == MAPPING_FORWARD:
        return
    if mapping.in_use == MAPPING_OPEN:
        forget_owner(t, row)
        if not t.sequential:
            hold_down(t, pool, port)
            return
    mapping.in_use = MAPPING_FREE
    free_port(t, pool, port)


# -- sessions --------------------------------------------------------------------------------------------------------

cdef inline void set_flow(Flow *flow, uint8_t protocol, uint8_t side, uint32_t saddr, uint16_t sid, uint32_t daddr,
                          uint16_t did, uint32_t new_saddr, uint16_t new_sid, uint32_t new_daddr,
                          uint16_t new_did) noexcept nogil:
    cdef uint32_t delta = delta32(saddr, new_saddr) + delta32(daddr, new_daddr)
    flow.key0 = make_key0(saddr, daddr)
    flow.key1 = make_key1(protocol, side, sid, did)
    flow.saddr = new_saddr
    flow.daddr = new_daddr
    flow.sid = new_sid
    flow.did = new_did
    flow.address_delta = fold(delta)
    if protocol == PROTOCOL_ICMP:
        # no pseudo-header; the identifier is the source id outbound, the destination id inbound, the type is no field
        flow.transport_delta = fold(delta16(sid, new_sid) + delta16(did, new_did))
    else:
        flow.transport_delta = fold(<uint64_t>fold(delta) + delta16(sid, new_sid) + delta16(did, new_did))
    flow.hop = NO_HOP
    flow.path_mtu = 0
    flow.packets = 0


cdef inline uint32_t take_row(Table *t) noexcept nogil:
    cdef uint32_t row = t.free_row
    if row != NONE:
        t.free_row = t.sessions[row].timer_next
        return row
    row = t.fresh
    t.fresh += 1
    return row


cdef inline uint32_t place_session_between(Table *t, uint8_t protocol, uint8_t near, uint8_t far, uint32_t mapping,
                                           uint32_t external, uint16_t port, uint32_t host, uint32_t saddr, uint16_t sid,
                                           uint32_t daddr, uint16_t did, uint8_t flags, uint8_t state,
                                           uint32_t tick) noexcept nogil:
    """Take a row for the session of (saddr, sid) on the side `near` with (daddr, did) on `far`, and return it.

    (external, port) is what the far end sees in the place of the near one; mapping is that endpoint's, or NONE.
    """
    cdef int port_class = class_of(protocol)
    cdef uint32_t row = take_row(t)
    cdef Session *s = &t.sessions[row]
    if port_class < 0:
        port_class = CLASS_NONE
    memset(s, 0, sizeof(Session))
    s.mapping = mapping
    s.state = state
    s.flags = flags
    s.scale = (UNKNOWN_SCALE << 4) | UNKNOWN_SCALE
    s.port_class = port_class
    set_flow(&s.flow[OUTBOUND], protocol, near, saddr, sid, daddr, did, external, port, daddr, did)
    set_flow(&s.flow[INBOUND], protocol, far | KEY_REPLY if protocol == PROTOCOL_ICMP else far,
             daddr, did, external, port, daddr, did, saddr, sid)
    index_insert(&t.index, <uint32_t>key_hash(t, s.flow[OUTBOUND].key0, s.flow[OUTBOUND].key1), row << 1)
    index_insert(&t.index, <uint32_t>key_hash(t, s.flow[INBOUND].key0, s.flow[INBOUND].key1), (row << 1) | 1)
    if mapping != NONE:
        if t.filtering == ADDRESS_DEPENDENT:
            permit_grant(&t.permits, permit_fingerprint(t, mapping, daddr))
        t.mappings[mapping].sessions += 1
    t.hosts[host].sessions += 1
    t.active += 1
    t.active_by_class[port_class] += 1
    t.opened += 1
    s.expires = tick + t.timeout[state]
    wheel_link(&t.wheel, t.sessions, row, s.expires)
    return row


cdef inline uint32_t place_session(Table *t, uint8_t protocol, uint32_t mapping, uint32_t external, uint32_t host,
                                   uint32_t saddr, uint16_t sid, uint32_t daddr, uint16_t did, uint8_t flags, uint8_t state,
                                   uint32_t tick) noexcept nogil:
    """Take a row for the session of the inside endpoint (saddr, sid) with the remote one (daddr, did), and return it.

    external is the address of the mapping; without ports there is no mapping, and the ids are 0.
    """
    cdef uint16_t port = <uint16_t>mapping if mapping != NONE else 0
    return place_session_between(t, protocol, INSIDE, OUTSIDE, mapping, external, port, host, saddr, sid, daddr, did, flags,
                                 state, tick)


cdef inline bint has_flow(const Table *t, uint8_t protocol, uint8_t side, uint32_t saddr, uint16_t sid, uint32_t daddr,
                          uint16_t did) noexcept nogil:
    cdef uint64_t key0 = make_key0(saddr, daddr)
    cdef uint64_t key1 = make_key1(protocol, side, sid, did)
    return find_flow(t, key0, key1, <uint32_t>key_hash(t, key0, key1)) >= 0


cdef inline int64_t may_use_forward(Table *t, uint32_t mapping, uint8_t protocol, uint32_t daddr, uint16_t did,
                                    uint8_t state) noexcept nogil:
    """Return 0 or the Refusal for a session that a target of a forward opens itself."""
    cdef uint32_t forward = t.mappings[mapping].host
    if has_flow(t, protocol, OUTSIDE, daddr, did, mapping_address(t, mapping), <uint16_t>mapping):
        return REFUSED_CLASH            # another target has that remote endpoint
    if is_half_open(state):
        if is_crowded(&t.forwards, forward):
            return REFUSED_HALF_OPEN
        t.forwards.rows[forward].half_open += 1
    return 0


cdef inline int64_t sharing_host(Table *t, uint32_t address, uint32_t now_ms) noexcept nogil:
    """Return the row of the host whose share a new session is of, a new row if it has none; or a Refusal."""
    cdef uint32_t hash = host_hash(t, address)
    cdef uint32_t host = find_host(t, address, hash)
    if host == NONE:
        host = take_host(t, address, hash, now_ms)
        if host == NONE:
            return REFUSED_HOST_TABLE_FULL
    elif t.hosts[host].sessions >= t.limits.sessions_per_host:
        return REFUSED_HOST_SESSIONS
    return host


cdef inline int64_t paying_host(Table *t, uint32_t address, uint32_t now_ms) noexcept nogil:
    """The same for a session that the host opens itself, which its rate must allow."""
    cdef int64_t host = sharing_host(t, address, now_ms)
    if host >= 0 and not host_may_open(t, <uint32_t>host, now_ms):
        return REFUSED_HOST_RATE
    return host


cdef inline int64_t open_session(Table *t, uint8_t protocol, uint32_t saddr, uint16_t sid, uint32_t daddr, uint16_t did,
                                 uint8_t flags, uint8_t state, bint keep, uint32_t tick, uint32_t now_ms) noexcept nogil:
    """Open the session of an inside endpoint (saddr, sid) towards (daddr, did); return its row or a Refusal.

    flags is SESSION_HAIRPIN when (daddr, did) is an external endpoint of ours, else 0. keep: the port is to stay the same.
    """
    cdef int port_class = class_of(protocol)
    cdef int64_t host, mapping
    cdef int64_t refusal = 0
    cdef uint32_t endpoint
    if t.current < 0:
        return REFUSED_NO_EXTERNAL
    if t.active >= t.capacity:
        return REFUSED_TABLE_FULL
    host = paying_host(t, saddr, now_ms)
    if host < 0:
        return host
    endpoint = <uint32_t>endpoint_hash(t, port_class, saddr, sid)
    mapping = find_internal(t, port_class, saddr, sid, endpoint)
    if mapping == NONE:
        mapping = take_mapping(t, port_class, saddr, sid, endpoint, <uint32_t>host, keep)
        refusal = mapping if mapping < 0 else 0
    elif t.mappings[mapping].in_use == MAPPING_FORWARD:
        refusal = may_use_forward(t, <uint32_t>mapping, protocol, daddr, did, state)
    if refusal < 0:
        if t.hosts[host].sessions == 0:
            give_back_host(t, <uint32_t>host)       # the row is new
        return refusal
    return place_session(t, protocol, <uint32_t>mapping, mapping_address(t, <uint32_t>mapping), <uint32_t>host, saddr, sid,
                         daddr, did, flags, state, tick)


cdef inline int64_t inbound_host(Table *t, uint8_t protocol, uint32_t address, uint16_t id, uint32_t remote, uint16_t port,
                                 uint32_t now_ms) noexcept nogil:
    """Return the host row of an inside endpoint that is to get a session of a remote one's making; or a Refusal."""
    if has_flow(t, protocol, INSIDE, address, id, remote, port):
        return REFUSED_CLASH            # it talks to that remote endpoint through another mapping
    return sharing_host(t, address, now_ms)


cdef inline int64_t open_forwarded(Table *t, uint8_t protocol, uint32_t mapping, uint32_t remote, uint16_t port,
                                   uint8_t flags, uint8_t state, uint32_t tick, uint32_t now_ms) noexcept nogil:
    """Open the session of a remote endpoint with the target whose turn it is; return its row or a Refusal.

    mapping is a forward's. The rate and the ports of the inside host are not touched: strangers would use them up.
    """
    cdef uint32_t forward = t.mappings[mapping].host
    cdef const Target *target = &t.forwards.targets[t.forwards.rows[forward].turn]
    cdef int64_t host
    cdef uint32_t row
    if t.active >= t.capacity:
        return REFUSED_TABLE_FULL
    if is_crowded(&t.forwards, forward):
        return REFUSED_HALF_OPEN
    host = inbound_host(t, protocol, target.address, target.port, remote, port, now_ms)
    if host < 0:
        return host
    row = place_session(t, protocol, mapping, mapping_address(t, mapping), <uint32_t>host, target.address, target.port, remote,
                        port, flags | SESSION_REPLIED, state, tick)
    t.forwards.rows[forward].half_open += is_half_open(state)
    pass_turn(&t.forwards, forward)
    return row


cdef inline bint may_lead_to(const Table *t, uint32_t row, uint32_t address, uint16_t id) noexcept nogil:
    """Whether sessions of an inside endpoint may be opened on a mapping: its own, or one that is no forward's or other's."""
    cdef const Mapping *mapping = &t.mappings[row]
    if mapping.in_use == MAPPING_OPEN:
        return mapping.address == address and mapping.id == id
    return mapping.in_use != MAPPING_FORWARD


cdef inline void let_sessions_have(Table *t, uint32_t row) noexcept nogil:
    """Make a mapping that nobody has one of MAPPING_BY_SESSION."""
    cdef Mapping *mapping = &t.mappings[row]
    cdef int pool = row >> 16
    if mapping.in_use == MAPPING_HELD_DOWN:
        end_hold(t, pool, <uint16_t>row)
        mapping.sessions = 0
    elif mapping.in_use == MAPPING_FREE and port_is_free(&t.pools[pool], <uint16_t>row):
        port_take(&t.pools[pool], <uint16_t>row)
    mapping.address = mapping.id = mapping.host = 0
    mapping.in_use = MAPPING_BY_SESSION


cdef inline int64_t open_inbound(Table *t, uint8_t protocol, uint32_t row, uint32_t address, uint16_t id, uint32_t remote,
                                 uint16_t port, uint8_t state, uint32_t half_open_limit, uint32_t tick,
                                 uint32_t now_ms) noexcept nogil:
    """Open the session of a remote endpoint with the inside one (address, id) on a mapping; return its row or a Refusal.

    The mapping may lead there (may_lead_to). The rate and the ports of the inside host are not touched.
    """
    cdef Mapping *mapping = &t.mappings[row]
    cdef int64_t host
    if t.active >= t.capacity:
        return REFUSED_TABLE_FULL
    if mapping.in_use == MAPPING_BY_SESSION and mapping.host >= half_open_limit:
        return REFUSED_HALF_OPEN
    host = inbound_host(t, protocol, address, id, remote, port, now_ms)
    if host < 0:
        return host
    if mapping.in_use != MAPPING_OPEN:
        if mapping.in_use != MAPPING_BY_SESSION:
            let_sessions_have(t, row)
        mapping.host += is_half_open(state)
    return place_session(t, protocol, row, mapping_address(t, row), <uint32_t>host, address, id, remote, port,
                         SESSION_REPLIED, state, tick)


cdef inline int64_t may_open_plain(Table *t, uint8_t protocol, uint32_t inside, uint32_t remote,
                                   uint32_t external) noexcept nogil:
    """Return 0 or a Refusal: only addresses are translated, so one inside host has a remote one to itself."""
    if t.active >= t.capacity:
        return REFUSED_TABLE_FULL
    if has_flow(t, protocol, OUTSIDE, remote, 0, external, 0) or has_flow(t, protocol, INSIDE, inside, 0, remote, 0):
        return REFUSED_CLASH
    return 0


cdef inline int64_t open_plain(Table *t, uint8_t protocol, uint32_t inside, uint32_t remote, uint32_t external,
                               uint32_t tick, uint32_t now_ms) noexcept nogil:
    """Open the session of an inside host with a remote one in a protocol without ports; return its row or a Refusal."""
    cdef int64_t refusal = may_open_plain(t, protocol, inside, remote, external)
    cdef int64_t host
    if refusal < 0:
        return refusal
    host = paying_host(t, inside, now_ms)
    if host < 0:
        return host
    return place_session(t, protocol, NONE, external, <uint32_t>host, inside, 0, remote, 0, 0, PLAIN_ACTIVE, tick)


cdef inline int64_t open_redirected(Table *t, uint8_t protocol, uint32_t inside, uint32_t remote, uint32_t external,
                                    bint from_outside, uint32_t tick, uint32_t now_ms) noexcept nogil:
    """The same for a host that policy names.

    It has no limit, but strangers open no more once half of its share of sessions is used.
    """
    cdef uint32_t hash = host_hash(t, inside)
    cdef uint32_t host = find_host(t, inside, hash)
    cdef int64_t refusal = may_open_plain(t, protocol, inside, remote, external)
    if refusal < 0:
        return refusal
    if host == NONE:
        host = take_host(t, inside, hash, now_ms)
        if host == NONE:
            return REFUSED_HOST_TABLE_FULL
    elif from_outside and t.hosts[host].sessions >= (t.limits.sessions_per_host + 1) // 2:
        return REFUSED_HOST_SESSIONS
    return place_session(t, protocol, NONE, external, host, inside, 0, remote, 0, 0, PLAIN_ACTIVE, tick)


cdef inline int64_t open_local(Table *t, uint8_t protocol, uint8_t side, uint32_t remote, uint16_t remote_port,
                               uint32_t asked, uint16_t asked_port, uint32_t first, int count, uint16_t port, uint8_t state,
                               uint32_t tick, uint32_t now_ms) noexcept nogil:
    """Open the session of a program of this host with who asked for (asked, asked_port) (T-10); return its row or a Refusal.

    remote is on `side`. The program is reached at `port` and an address where the remote endpoint is not talking already:
    of what it asked for, the program's end shows nothing. There are `count` addresses from `first` on; where that is taken,
    the search begins at a place of what was asked for. The session is one of an inside remote's share; those of outside ones
    have the program's address's.
    """
    cdef uint32_t local = first
    cdef uint32_t hash
    cdef int64_t host
    cdef int tried
    if t.active >= t.capacity:
        return REFUSED_TABLE_FULL
    if has_flow(t, protocol, LOCAL, local, port, remote, remote_port):
        hash = host_hash(t, asked)
        for tried in range(count):
            local = first + (hash + <uint32_t>tried) % <uint32_t>count
            if not has_flow(t, protocol, LOCAL, local, port, remote, remote_port):
                break
        else:
            return REFUSED_CLASH
    host = paying_host(t, remote if side == INSIDE else local, now_ms)
    if host < 0:
        return host
    return place_session_between(t, protocol, LOCAL, side, NONE, asked, asked_port, <uint32_t>host, local, port, remote,
                                 remote_port, SESSION_REPLIED, state, tick)


cdef inline void note_half_open(Table *t, uint32_t mapping, int before, int after) noexcept nogil:
    """Keep the count of half-open sessions, if the mapping has one, when a session changes from state `before` to `after`."""
    cdef uint32_t *half_open
    if mapping == NONE or is_half_open(before) == is_half_open(after):
        return
    if t.mappings[mapping].in_use == MAPPING_FORWARD:
        half_open = &t.forwards.rows[t.mappings[mapping].host].half_open
    elif t.mappings[mapping].in_use == MAPPING_BY_SESSION:
        half_open = &t.mappings[mapping].host
    else:
        return
    if is_half_open(after):
        half_open[0] += 1
    elif half_open[0]:                  # sessions of the time before the forward was taken away and put back are not counted
        half_open[0] -= 1


cdef inline uint32_t host_of_session(const Table *t, const Session *s) noexcept nogil:
    """Return the row of the inside host that a session counts for."""
    cdef uint32_t address = <uint32_t>(s.flow[OUTBOUND].key0 >> 32)
    if s.mapping != NONE and t.mappings[s.mapping].in_use == MAPPING_OPEN:
        return t.mappings[s.mapping].host
    if key_side(s.flow[INBOUND].key1) == INSIDE:
        address = <uint32_t>s.flow[OUTBOUND].key0       # who has been redirected
    return find_host(t, address, host_hash(t, address))


cdef inline void close_session(Table *t, uint32_t row) noexcept nogil:
    """Forget a session; its mapping and its host row go with their last one."""
    cdef Session *s = &t.sessions[row]
    cdef uint32_t mapping = s.mapping
    cdef uint32_t host = host_of_session(t, s)
    wheel_unlink(&t.wheel, t.sessions, row)
    index_remove(&t.index, <uint32_t>key_hash(t, s.flow[OUTBOUND].key0, s.flow[OUTBOUND].key1), row << 1)
    index_remove(&t.index, <uint32_t>key_hash(t, s.flow[INBOUND].key0, s.flow[INBOUND].key1), (row << 1) | 1)
    t.active_by_class[s.port_class] -= 1
    t.active -= 1
    t.closed += 1
    if mapping != NONE:
        if t.filtering == ADDRESS_DEPENDENT:
            permit_revoke(&t.permits, permit_fingerprint(t, mapping, <uint32_t>s.flow[OUTBOUND].key0))
        note_half_open(t, mapping, s.state, STATE_FREE)
        t.mappings[mapping].sessions -= 1
        if t.mappings[mapping].sessions == 0:
            give_back_mapping(t, mapping)
    t.hosts[host].sessions -= 1
    if t.hosts[host].sessions == 0:
        give_back_host(t, host)
    s.state = STATE_FREE
    s.timer_next = t.free_row
    t.free_row = row


cdef inline void refresh_session(Table *t, Session *s, uint32_t tick) noexcept nogil:
    """Restart the timer of an unchanged state: only a stamp; the wheel finds out when it comes round."""
    s.expires = tick + t.timeout[s.state]


cdef inline void retime_session(Table *t, uint32_t row, uint32_t tick) noexcept nogil:
    """Restart the timer after a change of state: the new time may be the nearer one, so the row is linked anew."""
    refresh_session(t, &t.sessions[row], tick)
    wheel_unlink(&t.wheel, t.sessions, row)
    wheel_link(&t.wheel, t.sessions, row, t.sessions[row].expires)


cdef inline int expire_sessions(Table *t, uint32_t tick, int budget) noexcept nogil:
    """Close what is dead at `tick`, looking at no more than `budget` rows; return how many rows were looked at."""
    cdef int looked = 0
    cdef uint32_t row
    if t.now != tick:
        t.now = tick
        end_holds(t, tick, budget)
    while <int>(tick - t.wheel.tick) >= 0:
        row = t.wheel.slots[t.wheel.tick & (WHEEL_SLOTS - 1)]
        while row != NONE:
            if looked == budget:
                return looked
            looked += 1
            if <int>(t.sessions[row].expires - tick) <= 0:
                close_session(t, row)
                t.expired += 1
            else:
                wheel_unlink(&t.wheel, t.sessions, row)
                wheel_link(&t.wheel, t.sessions, row, t.sessions[row].expires)
            row = t.wheel.slots[t.wheel.tick & (WHEEL_SLOTS - 1)]
        t.wheel.tick += 1
    return looked


cdef class MasqTable:
    cdef Table table
    cdef readonly object sessions, mappings, hosts
    cdef bint _is_ready
    cdef object _index, _mapping_index, _host_index, _permits, _free, _allowed, _slots
