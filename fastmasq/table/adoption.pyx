"""Opens the sessions of a process that has died again, in a table of our own: no octet that it has left is trusted.

What it has left are the arrays that last (memory.py), in whatever state it was killed in (table.pxd says which there are), or
worse: somebody may have written over them. So each row is judged by itself: state, class and protocol have to agree, and both
flows have to be just what opening the session would write, with checksum deltas and all. Then by the others: its mapping must
be there, for its endpoint and on its external endpoint, its endpoint must have no other, and no session before it the same key.
What passes is opened as any session is, in a row that need not be the one before: thereby indexes, permits, hosts, ports and
timers are made anew. It keeps what it has come to: state, TCP numbers, counts, and the time at which it ends, since ticks are of
one clock from boot to boot.

A mapping is the one before if it was an inside endpoint's own, or its sessions'. A forward's is nobody's (MAPPING_ORPHAN), as
when a forward is taken away; the forwards that are placed afterwards find it, and have its sessions. Ports held down stay so.
"""

import numpy as np

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

from fastmasq.table cimport carried, holds, hosts, keys, mappings, rows, sessions, table, wheel
from fastmasq.table.keys cimport Ends
from fastmasq.table.masq cimport MasqTable
from fastmasq.table.rows cimport INBOUND, Mapping, OUTBOUND, Session
from fastmasq.table.sessions cimport Place
from fastmasq.table.table cimport EXTERNALS, POOLS, PORTS, Table

from fastmasq.wire cimport numbers

cdef enum:
    WRITTEN = 32                # octets of a flow that opening the session decides, and nothing changes: those before `hop`

cdef enum Fate:
    ADOPTED
    TORN
    UNMAPPED
    TWICE
    EXPIRED
    FULL
    FATES

REASONS = {
    TORN: "torn",               # fields that no session has
    UNMAPPED: "no mapping",     # its external endpoint is not its own
    TWICE: "twice",             # another session has its packets
    EXPIRED: "expired",         # before we began
    FULL: "no room",
}


cdef struct Former:
    # what the rows of mappings meant, and where programs of this host are reached: at `proxies` addresses from the first on
    const Mapping *mappings
    uint32_t external[EXTERNALS]
    uint32_t proxies_first
    uint32_t proxies


cdef inline bint is_expected(const Session *s) noexcept nogil:
    """Whether a session waits for a remote's first packet (opening.expect)."""
    return (s.state == rows.EXPECTED and keys.key_side(s.flow[OUTBOUND].key1) == keys.INSIDE | keys.KEY_EXPECTED
            and s.port_class <= numbers.CLASS_UDP)


cdef inline bint is_state_of(int port_class, int state) noexcept nogil:
    """Whether a session of a class, or of none (-1), may be in a state."""
    if port_class == numbers.CLASS_TCP:
        return rows.TCP_SYN_SENT <= state <= rows.TCP_RESUMED or state == rows.TCP_UNANSWERED
    if port_class == numbers.CLASS_UDP:
        return state == rows.UDP_ACTIVE or state == rows.UDP_UNANSWERED
    if port_class == numbers.CLASS_ICMP:
        return state == rows.ICMP_ACTIVE
    return state == rows.PLAIN_ACTIVE


cdef inline bint is_external(const Former *former, uint32_t address) noexcept nogil:
    cdef int external
    for external in range(EXTERNALS):
        if address and former.external[external] == address:
            return True
    return False


cdef inline bint may_be_proxied(const Former *former, const Session *s, Ends ends, Place place) noexcept nogil:
    """Whether a session may be one with a program of this host, in the place of whom its far end asked for."""
    if s.port_class != numbers.CLASS_TCP and s.port_class != numbers.CLASS_UDP:
        return False
    if place.far != keys.INSIDE and (place.far != keys.OUTSIDE or is_external(former, place.external)):
        return False
    return ends.saddr - former.proxies_first < former.proxies and s.mapping == rows.NONE and not s.flags & rows.SESSION_HAIRPIN


cdef Fate judge(const Former *former, const Session *s, Ends ends, Place place) noexcept nogil:
    """Return what is wrong with a session in itself, which should be that of `ends` at `place`; or ADOPTED."""
    cdef uint8_t protocol = keys.key_protocol(s.flow[OUTBOUND].key1)
    cdef int port_class = rows.class_of(protocol)
    cdef Session made
    if (not (is_state_of(port_class, s.state) or is_expected(s))
            or s.port_class != (rows.CLASS_NONE if port_class < 0 else port_class)):
        return TORN
    sessions.set_flows(&made, protocol, ends, place)
    if (memcmp(&made.flow[OUTBOUND], &s.flow[OUTBOUND], WRITTEN) != 0
            or memcmp(&made.flow[INBOUND], &s.flow[INBOUND], WRITTEN) != 0):
        return TORN
    if place.near == keys.LOCAL:
        return ADOPTED if may_be_proxied(former, s, ends, place) else TORN
    if s.flags & rows.SESSION_HAIRPIN and not is_external(former, ends.daddr):
        return TORN
    if port_class < 0:
        return TORN if ends.sid or ends.did or place.port or s.mapping != rows.NONE else ADOPTED
    return ADOPTED


cdef Fate judge_mapping(const Former *former, const Session *s, Ends ends, Place place) noexcept nogil:
    """Return whether the mapping of a session is its own; or what is wrong with it."""
    cdef const Mapping *mapping
    if s.mapping == rows.NONE and (s.port_class == rows.CLASS_NONE or place.near == keys.LOCAL):
        return ADOPTED
    if (s.mapping >= POOLS * PORTS or place.port == 0 or place.port != mappings.row_port(s.mapping)
            or s.port_class != mappings.row_class(s.mapping) or place.external == 0
            or place.external != former.external[mappings.row_pool(s.mapping) // numbers.CLASS_COUNT]):
        return UNMAPPED
    mapping = &former.mappings[s.mapping]
    if mapping.in_use == rows.MAPPING_OPEN:
        return ADOPTED if mapping.address == ends.saddr and mapping.id == ends.sid else UNMAPPED
    if (mapping.in_use == rows.MAPPING_FORWARD or mapping.in_use == rows.MAPPING_ORPHAN
            or mapping.in_use == rows.MAPPING_BY_SESSION):
        return ADOPTED
    return UNMAPPED


cdef inline bint have_mapping(Table *t, const Former *former, uint32_t row, Ends ends, uint32_t host) noexcept nogil:
    """Have a mapping be as it was for a session of a host on it; False when the endpoint has another one."""
    cdef Mapping *mapping = &t.mappings[row]
    cdef int port_class = mappings.row_class(row)
    cdef uint32_t hash
    if mapping.in_use != rows.MAPPING_FREE:
        return True
    if former.mappings[row].in_use != rows.MAPPING_OPEN:
        mapping.in_use = (rows.MAPPING_BY_SESSION if former.mappings[row].in_use == rows.MAPPING_BY_SESSION
                          else rows.MAPPING_ORPHAN)
        return True
    hash = mappings.endpoint_hash(t, port_class, ends.saddr, ends.sid)
    if mappings.find_internal(t, mappings.row_pool(row) // numbers.CLASS_COUNT, port_class, ends.saddr, ends.sid,
                              hash) != rows.NONE:
        return False
    mappings.give_mapping(t, row, host, ends.sid, hash)
    return True


cdef inline void go_on(Table *t, uint32_t row, const Session *s) noexcept nogil:
    """Have a session that has just been opened again be what it had come to."""
    cdef Session *new = &t.sessions[row]
    cdef int direction
    for direction in range(rows.DIRECTIONS):
        new.tcp[direction] = s.tcp[direction]
        new.flow[direction].path_mtu = s.flow[direction].path_mtu
        new.flow[direction].packets = s.flow[direction].packets
    new.scale = s.scale
    if <int>(s.expires - new.expires) < 0:
        wheel.unlink(&t.wheel, t.sessions, row)
        new.expires = s.expires
        wheel.link(&t.wheel, t.sessions, row, new.expires)
    carried.keep(t, row)
    t.opened_by_class[new.port_class] -= 1      # it was opened before
    t.adopted += 1


cdef Fate adopt_session(Table *t, const Former *former, const Session *s, uint32_t now_ms) noexcept nogil:
    """Open a session again; return what has become of it."""
    cdef uint8_t protocol = keys.key_protocol(s.flow[OUTBOUND].key1)
    cdef Ends ends = keys.make_ends(
        keys.key_saddr(s.flow[OUTBOUND].key0), keys.key_sid(s.flow[OUTBOUND].key1),
        keys.key_daddr(s.flow[OUTBOUND].key0), <uint16_t>keys.key_did(s.flow[OUTBOUND].key1))
    cdef Place place = sessions.on_address(rows.NONE, s.flow[OUTBOUND].saddr)
    cdef uint32_t holder = ends.saddr
    cdef uint32_t hash
    cdef Fate fate
    place.port, place.mapping = s.flow[OUTBOUND].sid, s.mapping
    if keys.key_side(s.flow[OUTBOUND].key1) == keys.LOCAL:
        place.near, place.far = keys.LOCAL, keys.key_side(s.flow[INBOUND].key1)
        holder = ends.daddr if place.far == keys.INSIDE else ends.saddr
    if is_expected(s):
        place.near |= keys.KEY_EXPECTED
        place.far |= keys.KEY_EXPECTED
    fate = judge(former, s, ends, place)
    if fate == ADOPTED:
        fate = judge_mapping(former, s, ends, place)
    if fate != ADOPTED:
        return fate
    if <int>(s.expires - t.now) <= 0:
        return EXPIRED
    if (sessions.find_flow(t, s.flow[OUTBOUND].key0, s.flow[OUTBOUND].key1, sessions.flow_hash(t, &s.flow[OUTBOUND])) >= 0
            or sessions.find_flow(t, s.flow[INBOUND].key0, s.flow[INBOUND].key1,
                                  sessions.flow_hash(t, &s.flow[INBOUND])) >= 0):
        return TWICE
    if table.is_full(t):
        return FULL
    hash = hosts.host_hash(t, holder)
    place.host = hosts.find_host(t, holder, hash)
    if place.host == rows.NONE:
        place.host = hosts.take_host(t, holder, hash, now_ms)
    if place.host == rows.NONE:
        return FULL
    if place.mapping != rows.NONE and not have_mapping(t, former, place.mapping, ends, place.host):
        hosts.give_back_unused_host(t, place.host)
        return UNMAPPED
    go_on(t, sessions.place_session(t, ends, place, sessions.make_birth(protocol, s.state, s.flags, t.now, now_ms)), s)
    t.adopted_proxied += place.near == keys.LOCAL
    return ADOPTED


cdef void keep_held(Table *t, const Former *former, uint32_t row) noexcept nogil:
    """Hold a port down that was, for as long as was left; called in the order of these times."""
    cdef Mapping *mapping = &t.mappings[row]
    cdef uint32_t until = former.mappings[row].sessions
    if (former.external[mappings.row_pool(row) // numbers.CLASS_COUNT] == 0 or mappings.row_port(row) == 0
            or mapping.in_use != rows.MAPPING_FREE or not 0 < <int>(until - t.now) <= <int>holds.HOLD_DOWN_TICKS):
        return
    mapping.address = former.mappings[row].address
    holds.hold_down(t, mappings.row_pool(row), mappings.row_port(row))
    mapping.sessions = until


def adopt(MasqTable into, header, mapped, pieces, now_ns, proxies=(0, 0), followed=()):
    """Open the sessions of `pieces` in a table that is empty; return how many were dropped, by reason.

    header: one of rows.HEADER; mapped: all rows of mappings, as it means them; pieces: arrays of rows.SESSION, aligned.
    followed: (STREAM, its EDITs) of those that have edits.
    proxies: the first address that programs of this host are reached at, and how many there are (opening.Proxies).
    No external address is the current one afterwards, and no port is free: MasqTable.set_external says which are.
    """
    cdef Table *t = &into.table
    cdef Former former
    cdef const Session *s
    cdef uint32_t row, held, count
    cdef uint32_t now_ms = <uint32_t>(now_ns // 1_000_000 & 0xFFFFFFFF)
    cdef uint32_t fates[FATES]
    for row in range(FATES):
        fates[row] = 0
    into.take_secret(header["secret"][0], header["secret"][1])  # so that a host is dealt the same of several addresses
    former.proxies_first, former.proxies = proxies
    former.mappings = <const Mapping *><size_t>mapped.ctypes.data
    for row in range(EXTERNALS):
        former.external[row] = 0 if header["external"][row] in header["external"][:row] else header["external"][row]
        if former.external[row]:
            into.give_external(row, former.external[row])
    for piece in pieces:
        count = len(piece)
        into.reserve(count)
        s = <const Session *><size_t>piece.ctypes.data
        with nogil:
            for row in range(count):
                if s[row].state != rows.STATE_FREE:
                    fates[<int>adopt_session(t, &former, &s[row], now_ms)] += 1
    for stream, edits in followed:
        fates[<int>TORN] += into.adopt_stream(stream, edits) == "torn"
    if not t.sequential:
        found = np.flatnonzero(mapped["in_use"] == rows.MAPPING_HELD_DOWN)
        left = (mapped["sessions"][found] - np.uint32(t.now)).astype("i4")
        for held in found[np.argsort(left, kind="stable")]:
            keep_held(t, &former, held)
    return {reason: fates[<int>fate] for fate, reason in REASONS.items() if fates[<int>fate]}
