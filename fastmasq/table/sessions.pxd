# Sessions: found by the key of either flow, placed in a row, refreshed, and closed together with what only they held.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmasq.table cimport (
    carried, filtering, forwards, growth, holds, hosts, index, keys, mappings, rows, streams, table, wheel,
)
from fastmasq.table.index cimport Index
from fastmasq.table.keys cimport Ends
from fastmasq.table.order cimport keep_order
from fastmasq.table.rows cimport Flow, INBOUND, OUTBOUND, Session
from fastmasq.table.table cimport Table
from fastmasq.wire cimport numbers
from fastmasq.wire.checksum cimport delta16, delta32, fold


cdef struct Birth:
    # what a session begins with, and when; tick and now_ms are the same moment
    uint8_t protocol
    uint8_t state
    uint8_t flags               # SESSION_HAIRPIN, SESSION_REPLIED
    uint32_t tick
    uint32_t now_ms


cdef struct Place:
    # where a session belongs, and what its far end sees in the place of the near one
    uint32_t host               # row of the host that it counts for
    uint32_t mapping            # of (external, port), or NONE
    uint32_t external
    uint16_t port               # 0 in protocols without
    uint8_t near                # sides that the two ends are on
    uint8_t far


cdef inline Birth make_birth(uint8_t protocol, uint8_t state, uint8_t flags, uint32_t tick, uint32_t now_ms) noexcept nogil:
    cdef Birth birth
    birth.protocol, birth.state, birth.flags = protocol, state, flags
    birth.tick, birth.now_ms = tick, now_ms
    return birth


cdef inline Place on_address(uint32_t host, uint32_t external) noexcept nogil:
    """Return the place of a session in a protocol without ports: behind an external address."""
    cdef Place place
    place.host, place.mapping = host, rows.NONE
    place.external, place.port = external, 0
    place.near, place.far = keys.INSIDE, keys.OUTSIDE
    return place


cdef inline Place on_mapping(const Table *t, uint32_t host, uint32_t mapping) noexcept nogil:
    """Return the place of a session behind the external endpoint of a mapping."""
    cdef Place place = on_address(host, mappings.mapping_address(t, mapping))
    place.mapping = mapping
    place.port = mappings.row_port(mapping)
    return place


# -- finding ---------------------------------------------------------------------------------------------------------

cdef inline Flow *flow_at(const Table *t, int64_t ref) noexcept nogil:
    return &t.sessions[rows.row_of(ref)].flow[rows.direction_of(ref)]


cdef inline int64_t find_in(const Table *t, const Index *searched, uint64_t key0, uint64_t key1, uint32_t hash) noexcept nogil:
    cdef uint32_t at = hash & searched.mask
    cdef uint32_t ref
    cdef const Flow *flow
    while True:
        ref = searched.entries[at].ref
        if ref == 0:
            return -1
        if searched.entries[at].hash == hash:
            ref -= 1
            flow = flow_at(t, ref)
            if flow.key0 == key0 and flow.key1 == key1:
                return ref
        at = (at + 1) & searched.mask


cdef inline int64_t find_flow(const Table *t, uint64_t key0, uint64_t key1, uint32_t hash) noexcept nogil:
    """Return the flow with this key (rows.ref_of), or -1."""
    cdef int64_t ref = find_in(t, &t.index, key0, key1, hash)
    if ref < 0 and t.old_index.slots:
        return find_in(t, &t.old_index.index, key0, key1, hash)
    return ref


cdef inline int64_t find_between(const Table *t, uint8_t protocol, uint8_t side, Ends ends) noexcept nogil:
    """Return the flow that a packet between these ends belongs to, from this side; or -1."""
    cdef uint64_t key0 = keys.make_key0(ends.saddr, ends.daddr)
    cdef uint64_t key1 = keys.make_key1(protocol, side, ends.sid, ends.did)
    return find_flow(t, key0, key1, table.key_hash(t, key0, key1))


cdef inline bint has_flow(const Table *t, uint8_t protocol, uint8_t side, Ends ends) noexcept nogil:
    return find_between(t, protocol, side, ends) >= 0


# -- opening and closing ---------------------------------------------------------------------------------------------

cdef inline void set_flow(Flow *flow, uint8_t protocol, uint8_t side, Ends arrives, Ends leaves) noexcept nogil:
    """Have a flow carry packets that come from this side between the ends `arrives` on between the ends `leaves`."""
    cdef uint32_t delta = delta32(arrives.saddr, leaves.saddr) + delta32(arrives.daddr, leaves.daddr)
    flow.key0 = keys.make_key0(arrives.saddr, arrives.daddr)
    flow.key1 = keys.make_key1(protocol, side, arrives.sid, arrives.did)
    flow.saddr = leaves.saddr
    flow.daddr = leaves.daddr
    flow.sid = leaves.sid
    flow.did = leaves.did
    flow.address_delta = fold(delta)
    if protocol == numbers.ICMP:
        # no pseudo-header; the identifier is the source id outbound, the destination id inbound, the type is no field
        flow.transport_delta = fold(delta16(arrives.sid, leaves.sid) + delta16(arrives.did, leaves.did))
    else:
        flow.transport_delta = fold(<uint64_t>fold(delta) + delta16(arrives.sid, leaves.sid)
                                    + delta16(arrives.did, leaves.did))
    flow.hop = rows.NO_HOP
    flow.path_mtu = 0
    flow.packets = 0


cdef inline void set_flows(Session *s, uint8_t protocol, Ends ends, Place place) noexcept nogil:
    """Have a session translate between (saddr, sid) on the near side, and (daddr, did) on the far one."""
    cdef Ends translated = keys.make_ends(place.external, place.port, ends.daddr, ends.did)
    set_flow(&s.flow[OUTBOUND], protocol, place.near, ends, translated)
    set_flow(&s.flow[INBOUND], protocol, place.far | keys.KEY_REPLY if protocol == numbers.ICMP else place.far,
             keys.turned(translated), keys.turned(ends))


cdef inline uint32_t take_row(Table *t) noexcept nogil:
    cdef uint32_t row = t.free_row
    if row != rows.NONE:
        t.free_row = t.sessions[row].timer_next
        return row
    row = t.fresh
    t.fresh += 1
    if t.fresh == t.low_water:
        t.asks_for_memory = True
    return row


cdef inline uint32_t flow_hash(const Table *t, const Flow *flow) noexcept nogil:
    return table.key_hash(t, flow.key0, flow.key1)


cdef inline void note_half_open(Table *t, uint32_t mapping, int before, int after) noexcept nogil:
    """Keep the count of half-open sessions, if the mapping has one, when a session changes from state `before` to `after`."""
    cdef uint32_t *half_open
    if mapping == rows.NONE or forwards.is_half_open(before) == forwards.is_half_open(after):
        return
    if t.mappings[mapping].in_use == rows.MAPPING_FORWARD:
        half_open = &t.forwards.rows[t.mappings[mapping].host].half_open
    elif t.mappings[mapping].in_use == rows.MAPPING_BY_SESSION:
        half_open = &t.mappings[mapping].host
    else:
        return
    if forwards.is_half_open(after):
        half_open[0] += 1
    elif half_open[0]:                  # sessions of the time before the forward was taken away and put back are not counted
        half_open[0] -= 1


cdef inline bint is_followed(const Table *t, Ends ends, Place place, Birth birth) noexcept nogil:
    """Whether a session is one of those that are followed, by the ports of its ends."""
    return (birth.protocol == numbers.TCP and place.mapping != rows.NONE and birth.state != rows.EXPECTED
            and (streams.is_followed_port(&t.streams, ends.did) or streams.is_followed_port(&t.streams, ends.sid)
                 or streams.is_followed_port(&t.streams, place.port)))


cdef inline uint32_t place_session(Table *t, Ends ends, Place place, Birth birth) noexcept nogil:
    """Take a row for the session of (saddr, sid) on the near side with (daddr, did) on the far one, and return it.

    There must be a row left, and no flow with either key.
    """
    cdef int port_class = rows.class_of(birth.protocol)
    cdef uint32_t row = take_row(t)
    cdef Session *s = &t.sessions[row]
    if port_class < 0:
        port_class = rows.CLASS_NONE
    growth.make_room(t)
    carried.begin_counts(t, row)
    memset(s, 0, sizeof(Session))
    streams.note_session(&t.streams, row, is_followed(t, ends, place, birth))
    s.mapping = place.mapping
    s.flags = birth.flags
    s.scale = (rows.UNKNOWN_SCALE << 4) | rows.UNKNOWN_SCALE
    s.port_class = port_class
    s.expires = birth.tick + t.timeout[birth.state]
    set_flows(s, birth.protocol, ends, place)
    keep_order()
    s.state = birth.state
    index.insert(&t.index, flow_hash(t, &s.flow[OUTBOUND]), rows.ref_of(row, OUTBOUND))
    index.insert(&t.index, flow_hash(t, &s.flow[INBOUND]), rows.ref_of(row, INBOUND))
    if place.mapping != rows.NONE:
        filtering.permit_remote(t, place.mapping, ends.daddr)
        note_half_open(t, place.mapping, rows.STATE_FREE, birth.state)
        t.mappings[place.mapping].sessions += 1
    hosts.count_session(t, place.host, 1)
    t.expected += birth.state == rows.EXPECTED
    t.active += 1
    t.active_by_class[port_class] += 1
    t.opened_by_class[port_class] += 1
    wheel.link(&t.wheel, t.sessions, row, s.expires)
    carried.keep(t, row)
    return row


cdef inline uint32_t host_of_session(const Table *t, const Session *s) noexcept nogil:
    """Return the row of the inside host that a session counts for."""
    cdef uint32_t address = keys.key_saddr(s.flow[OUTBOUND].key0)
    if s.mapping != rows.NONE and t.mappings[s.mapping].in_use == rows.MAPPING_OPEN:
        return t.mappings[s.mapping].host
    if keys.key_side(s.flow[INBOUND].key1) == keys.INSIDE:
        address = keys.key_daddr(s.flow[OUTBOUND].key0)      # who has been redirected
    return hosts.find_host(t, address, hosts.host_hash(t, address))


cdef inline void close_session(Table *t, uint32_t row) noexcept nogil:
    """Forget a session; its mapping and its host row go with their last one."""
    cdef Session *s = &t.sessions[row]
    cdef uint32_t mapping = s.mapping
    cdef uint32_t host = host_of_session(t, s)
    cdef int state = s.state
    cdef bint was_carried = carried.has_ticket(t, row)
    if was_carried:
        carried.take_ticket(t, row)
    carried.keep_no_longer(t, row)
    s.state = rows.STATE_FREE
    keep_order()
    streams.forget_session(&t.streams, row)
    t.expected -= state == rows.EXPECTED
    wheel.unlink(&t.wheel, t.sessions, row)
    index.remove_from_either(&t.index, &t.old_index, flow_hash(t, &s.flow[OUTBOUND]), rows.ref_of(row, OUTBOUND))
    index.remove_from_either(&t.index, &t.old_index, flow_hash(t, &s.flow[INBOUND]), rows.ref_of(row, INBOUND))
    t.active_by_class[s.port_class] -= 1
    t.active -= 1
    t.closed += 1
    if mapping != rows.NONE:
        filtering.withdraw_permit(t, mapping, keys.key_daddr(s.flow[OUTBOUND].key0))
        note_half_open(t, mapping, state, rows.STATE_FREE)
        t.mappings[mapping].sessions -= 1
        if t.mappings[mapping].sessions == 0:
            mappings.give_back_mapping(t, mapping)
    hosts.count_session(t, host, -1)
    hosts.give_back_unused_host(t, host)
    if was_carried:
        carried.rest(t, row)
        return
    s.timer_next = t.free_row
    t.free_row = row


# -- time ------------------------------------------------------------------------------------------------------------

cdef inline void refresh_session(Table *t, Session *s, uint32_t tick) noexcept nogil:
    """Restart the timer of an unchanged state: only a stamp; the wheel finds out when it comes round."""
    s.expires = tick + t.timeout[s.state]


cdef inline void retime_session(Table *t, uint32_t row, uint32_t tick) noexcept nogil:
    """Restart the timer after a change of state: the new time may be the nearer one, so the row is linked anew."""
    refresh_session(t, &t.sessions[row], tick)
    wheel.unlink(&t.wheel, t.sessions, row)
    wheel.link(&t.wheel, t.sessions, row, t.sessions[row].expires)


cdef inline int expire_sessions(Table *t, uint32_t tick, int budget) noexcept nogil:
    """Close what is dead at `tick`, looking at no more than `budget` rows; return how many rows were looked at."""
    cdef int looked = 0
    cdef uint32_t row
    if t.now != tick:
        t.now = tick
        carried.end_rest(t)
        holds.end_holds(t, tick, budget)
        growth.go_on_moving(t)
    while <int>(tick - t.wheel.tick) >= 0:
        row = t.wheel.slots[t.wheel.tick & (wheel.WHEEL_SLOTS - 1)]
        while row != rows.NONE:
            if looked == budget:
                return looked
            looked += 1
            if <int>(t.sessions[row].expires - tick) <= 0:
                close_session(t, row)
                t.expired += 1
            else:
                wheel.unlink(&t.wheel, t.sessions, row)
                wheel.link(&t.wheel, t.sessions, row, t.sessions[row].expires)
            row = t.wheel.slots[t.wheel.tick & (wheel.WHEEL_SLOTS - 1)]
        t.wheel.tick += 1
    return looked
