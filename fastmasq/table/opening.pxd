# The ways a session is opened: by an inside host, by strangers through a forward or a trigger, by address alone, and for a
# program of this host. Each returns the row of the session, or a Refusal that has changed nothing.
#
# `ends` are those of the session as its near end sees them: (saddr, sid) is the inside endpoint, (daddr, did) the remote one.
# What strangers open touches neither the rate nor the ports of the inside host: they would use them up.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.table cimport forwards, holds, hosts, keys, mappings, ports, rows, sessions, siphash, table
from fastmasq.table.forwards cimport Target
from fastmasq.table.keys cimport Ends
from fastmasq.table.rows cimport Mapping
from fastmasq.table.sessions cimport Birth, Place
from fastmasq.table.table cimport Table


# -- by an inside host -----------------------------------------------------------------------------------------------

cdef inline int64_t may_use_forward(const Table *t, uint32_t mapping, Ends ends, Birth birth) noexcept nogil:
    """Return 0 or the Refusal for a session that a target of a forward opens itself."""
    cdef Ends answer = keys.make_ends(ends.daddr, ends.did, mappings.mapping_address(t, mapping), mappings.row_port(mapping))
    if sessions.has_flow(t, birth.protocol, keys.OUTSIDE, answer):
        return table.REFUSED_CLASH          # another target has that remote endpoint
    if forwards.is_half_open(birth.state) and forwards.is_crowded(&t.forwards, t.mappings[mapping].host):
        return table.REFUSED_HALF_OPEN
    return 0


cdef inline int64_t find_place(Table *t, int external, Ends ends, Birth birth, int wanted, Place *place) noexcept nogil:
    """Find the place of a session of an inside endpoint: on the mapping it has on an external address, or a new one.

    wanted: as for mappings.take_mapping. Returns 0 or a Refusal; the rest is as for `open_session`.
    """
    cdef int port_class = rows.class_of(birth.protocol)
    cdef int64_t host, mapping
    cdef int64_t refusal = 0
    cdef uint64_t endpoint
    if external < 0:
        return table.REFUSED_NO_EXTERNAL
    if table.is_full(t):
        return table.REFUSED_TABLE_FULL
    host = hosts.paying_host(t, ends.saddr, birth.now_ms)
    if host < 0:
        return host
    endpoint = mappings.endpoint_hash(t, port_class, ends.saddr, ends.sid)
    mapping = mappings.find_internal(t, external, port_class, ends.saddr, ends.sid, endpoint)
    if mapping == rows.NONE:
        mapping = mappings.take_mapping(t, external, port_class, <uint32_t>host, ends.sid, endpoint, wanted)
        refusal = mapping if mapping < 0 else 0
    elif t.mappings[mapping].in_use == rows.MAPPING_FORWARD:
        refusal = may_use_forward(t, <uint32_t>mapping, ends, birth)
    if refusal < 0:
        hosts.give_back_unused_host(t, <uint32_t>host)
        return refusal
    place[0] = sessions.on_mapping(t, <uint32_t>host, <uint32_t>mapping)
    return 0


cdef inline int64_t open_session(Table *t, int external, Ends ends, Birth birth, bint keep) noexcept nogil:
    """Open the session of an inside endpoint towards a remote one, by the mapping it has on an external address or a new one.

    external: the row of that address, negative without one.
    birth.flags is SESSION_HAIRPIN when the remote is an external endpoint of ours, else 0. keep: the port is to stay the same.
    """
    cdef Place place
    cdef int64_t refusal = find_place(t, external, ends, birth, <int>ends.sid if keep else ports.NO_PORT, &place)
    return refusal if refusal < 0 else sessions.place_session(t, ends, place, birth)


cdef inline int64_t open_towards(Table *t, int external, Ends ends, Birth birth, int wanted) noexcept nogil:
    """The same before the endpoint has sent anything; wanted: as for mappings.take_mapping."""
    cdef Place place
    cdef int64_t refusal = find_place(t, external, ends, birth, wanted, &place)
    return refusal if refusal < 0 else sessions.place_session(t, ends, place, birth)


# -- for a remote that was told ----------------------------------------------------------------------------------------
#
# Where a remote was told of an inside endpoint, and is to come to it, a session without its port holds the mapping open for it.

cdef inline int64_t expect(Table *t, int external, Ends ends, Birth birth) noexcept nogil:
    """Expect one session of (saddr, sid) with the remote address daddr, 0 for any, from whatever port.

    birth.state is EXPECTED.

    One that is expected already is so from now on.
    """
    cdef Place place
    cdef int64_t refusal, ref
    ends.did = 0
    refusal = find_place(t, external, ends, birth, ports.NO_PORT, &place)
    if refusal < 0:
        return refusal
    place.near |= keys.KEY_EXPECTED
    place.far |= keys.KEY_EXPECTED
    ref = sessions.find_between(t, birth.protocol, place.near, ends)
    if ref >= 0:
        sessions.refresh_session(t, &t.sessions[rows.row_of(ref)], birth.tick)
        return rows.row_of(ref)
    return sessions.place_session(t, ends, place, birth)


cdef inline int64_t find_expected(const Table *t, uint8_t protocol, Ends ends) noexcept nogil:
    """Return the row of the session that a packet from outside between these ends is expected by, or -1."""
    cdef int64_t ref
    if t.expected == 0:
        return -1
    ends.sid = 0
    ref = sessions.find_between(t, protocol, keys.OUTSIDE | keys.KEY_EXPECTED, ends)
    if ref < 0:
        ends.saddr = 0
        ref = sessions.find_between(t, protocol, keys.OUTSIDE | keys.KEY_EXPECTED, ends)
    return rows.row_of(ref) if ref >= 0 else -1


# -- by strangers ----------------------------------------------------------------------------------------------------

cdef inline const Target *forward_target(const Table *t, uint32_t mapping, uint32_t remote, uint16_t port) noexcept nogil:
    """Return the target of a forward for a remote endpoint without a session: whose turn it is, when a session can be had.

    Without one it must be the same for all packets of the remote endpoint: then the endpoint decides.
    """
    cdef uint32_t row = t.mappings[mapping].host
    cdef uint32_t at = t.forwards.rows[row].turn
    cdef uint32_t best = at
    cdef uint64_t score, least = 0xFFFFFFFFFFFFFFFFULL
    cdef uint32_t _i
    if forwards.is_crowded(&t.forwards, row):
        for _i in range(t.forwards.rows[row].targets):
            score = siphash.siphash(&t.secret, (<uint64_t>remote << 32) | (0x4657U << 16) | port,
                                    (<uint64_t>t.forwards.targets[at].port << 32) | t.forwards.targets[at].address)
            if score <= least:
                least, best = score, at
            at = t.forwards.targets[at].next
    return &t.forwards.targets[best]


cdef inline int64_t inbound_host(Table *t, Ends ends, Birth birth) noexcept nogil:
    """Return the host row of an inside endpoint that is to get a session of a remote one's making; or a Refusal."""
    if sessions.has_flow(t, birth.protocol, keys.INSIDE, ends):
        return table.REFUSED_CLASH          # it talks to that remote endpoint through another mapping
    return hosts.sharing_host(t, ends.saddr, birth.now_ms)


cdef inline int64_t open_forwarded(Table *t, uint32_t mapping, uint32_t remote, uint16_t port, Birth birth) noexcept nogil:
    """Open the session of a remote endpoint with the target whose turn it is; mapping is a forward's."""
    cdef uint32_t forward = t.mappings[mapping].host
    cdef const Target *target = &t.forwards.targets[t.forwards.rows[forward].turn]
    cdef Ends ends = keys.make_ends(target.address, target.port, remote, port)
    cdef int64_t host
    cdef uint32_t row
    if table.is_full(t):
        return table.REFUSED_TABLE_FULL
    if forwards.is_crowded(&t.forwards, forward):
        return table.REFUSED_HALF_OPEN
    host = inbound_host(t, ends, birth)
    if host < 0:
        return host
    birth.flags |= rows.SESSION_REPLIED
    row = sessions.place_session(t, ends, sessions.on_mapping(t, <uint32_t>host, mapping), birth)
    t.forwards.rows[forward].opened += 1
    forwards.pass_turn(&t.forwards, forward)
    return row


cdef inline bint may_lead_to(const Table *t, uint32_t row, uint32_t address, uint16_t id) noexcept nogil:
    """Whether sessions of an inside endpoint may be opened on a mapping: its own, or one that is no forward's or other's."""
    cdef const Mapping *mapping = &t.mappings[row]
    if mapping.in_use == rows.MAPPING_OPEN:
        return mapping.address == address and mapping.id == id
    return mapping.in_use != rows.MAPPING_FORWARD


cdef inline void let_sessions_have(Table *t, uint32_t row) noexcept nogil:
    """Make a mapping that nobody has one of MAPPING_BY_SESSION."""
    cdef Mapping *mapping = &t.mappings[row]
    cdef int pool = mappings.row_pool(row)
    cdef uint16_t port = mappings.row_port(row)
    if mapping.in_use == rows.MAPPING_HELD_DOWN:
        holds.end_hold(t, pool, port)
    elif mapping.in_use == rows.MAPPING_FREE and ports.is_free(&t.pools[pool], port):
        ports.take_port(&t.pools[pool], port)
    mapping.address = mapping.id = mapping.host = 0
    mapping.in_use = rows.MAPPING_BY_SESSION


cdef inline int64_t open_inbound(Table *t, uint32_t row, Ends ends, uint32_t half_open_limit, Birth birth) noexcept nogil:
    """Open the session of a remote endpoint with the inside one on a mapping that may lead there (may_lead_to)."""
    cdef Mapping *mapping = &t.mappings[row]
    cdef int64_t host
    if table.is_full(t):
        return table.REFUSED_TABLE_FULL
    if mapping.in_use == rows.MAPPING_BY_SESSION and mapping.host >= half_open_limit:
        return table.REFUSED_HALF_OPEN
    host = inbound_host(t, ends, birth)
    if host < 0:
        return host
    if mapping.in_use != rows.MAPPING_OPEN and mapping.in_use != rows.MAPPING_BY_SESSION:
        let_sessions_have(t, row)
    birth.flags |= rows.SESSION_REPLIED
    return sessions.place_session(t, ends, sessions.on_mapping(t, <uint32_t>host, row), birth)


# -- in protocols without ports --------------------------------------------------------------------------------------

cdef inline int64_t may_open_plain(Table *t, Ends ends, uint32_t external, uint8_t protocol) noexcept nogil:
    """Return 0 or a Refusal: only addresses are translated, so one inside host has a remote one to itself."""
    cdef Ends answer = keys.make_ends(ends.daddr, 0, external, 0)
    if table.is_full(t):
        return table.REFUSED_TABLE_FULL
    if sessions.has_flow(t, protocol, keys.OUTSIDE, answer) or sessions.has_flow(t, protocol, keys.INSIDE, ends):
        return table.REFUSED_CLASH
    return 0


cdef inline int64_t open_plain(Table *t, Ends ends, uint32_t external, Birth birth) noexcept nogil:
    """Open the session of an inside host with a remote one behind an external address; the ids are 0."""
    cdef int64_t refusal = may_open_plain(t, ends, external, birth.protocol)
    cdef int64_t host
    if refusal < 0:
        return refusal
    host = hosts.paying_host(t, ends.saddr, birth.now_ms)
    if host < 0:
        return host
    return sessions.place_session(t, ends, sessions.on_address(<uint32_t>host, external), birth)


cdef inline int64_t open_redirected(Table *t, Ends ends, uint32_t external, bint from_outside, Birth birth) noexcept nogil:
    """The same for a host that policy names.

    It has no limit, but strangers open no more once half of its share of sessions is used.
    """
    cdef uint32_t hash = hosts.host_hash(t, ends.saddr)
    cdef uint32_t host = hosts.find_host(t, ends.saddr, hash)
    cdef int64_t refusal = may_open_plain(t, ends, external, birth.protocol)
    if refusal < 0:
        return refusal
    if host == rows.NONE:
        host = hosts.take_host(t, ends.saddr, hash, birth.now_ms)
        if host == rows.NONE:
            return table.REFUSED_HOST_TABLE_FULL
    elif from_outside and t.hosts[host].sessions >= (t.limits.sessions_per_host + 1) // 2:
        return table.REFUSED_HOST_SESSIONS
    return sessions.place_session(t, ends, sessions.on_address(host, external), birth)


# -- with a program of this host -------------------------------------------------------------------------------------

cdef struct Proxies:
    # where the programs of this host that connections are led to are reached
    uint32_t first              # address
    int count                   # of addresses from the first on
    uint16_t port


cdef inline int64_t open_proxied(Table *t, Ends original, uint8_t side, Proxies proxies, Birth birth) noexcept nogil:
    """Open the session of a program of this host with (saddr, sid) of `original`, who asked for its (daddr, did) (T-10).

    The asking end is on `side`. The program is reached at an address where that end is not talking already: of what was
    asked for, the program's end shows nothing. Where the first address is taken, the search begins at a place of what was
    asked for. The session is one of an inside host's share; those of outside ones have the program's address's.
    """
    cdef Ends ends = keys.make_ends(proxies.first, proxies.port, original.saddr, original.sid)
    cdef Place place
    cdef uint32_t hash
    cdef int64_t host
    cdef int tried
    if table.is_full(t):
        return table.REFUSED_TABLE_FULL
    if sessions.has_flow(t, birth.protocol, keys.LOCAL, ends):
        hash = hosts.host_hash(t, original.daddr)
        for tried in range(proxies.count):
            ends.saddr = proxies.first + (hash + <uint32_t>tried) % <uint32_t>proxies.count
            if not sessions.has_flow(t, birth.protocol, keys.LOCAL, ends):
                break
        else:
            return table.REFUSED_CLASH
    host = hosts.paying_host(t, original.saddr if side == keys.INSIDE else ends.saddr, birth.now_ms)
    if host < 0:
        return host
    place = sessions.on_address(<uint32_t>host, original.daddr)
    place.port = original.did
    place.near, place.far = keys.LOCAL, side
    birth.flags |= rows.SESSION_REPLIED
    return sessions.place_session(t, ends, place, birth)
