# Mappings: the external endpoint that an inside endpoint has, found from both sides, taken and given back.
#
# The row number of a mapping is its external endpoint: (external address, class) is the pool, the port the row in it. From
# inside it is found by a hash of the endpoint; forwards are found so by each of their targets.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from fastmasq.table cimport forwards, growth, holds, hosts, index, ports, rows, siphash, table
from fastmasq.table.index cimport Index
from fastmasq.table.order cimport keep_order
from fastmasq.table.rows cimport Mapping
from fastmasq.table.table cimport Table
from fastmasq.wire cimport numbers


cdef inline int pool_of(int external, int port_class) noexcept nogil:
    return external * numbers.CLASS_COUNT + port_class


cdef inline uint32_t mapping_row(int external, int port_class, uint16_t port) noexcept nogil:
    return rows.mapping_row(pool_of(external, port_class), port)


cdef inline int row_pool(uint32_t row) noexcept nogil:
    return row >> 16


cdef inline int row_class(uint32_t row) noexcept nogil:
    return row_pool(row) % numbers.CLASS_COUNT


cdef inline uint16_t row_port(uint32_t row) noexcept nogil:
    return <uint16_t>row


cdef inline uint32_t mapping_address(const Table *t, uint32_t row) noexcept nogil:
    return t.external[row_pool(row) // numbers.CLASS_COUNT]


# -- finding ---------------------------------------------------------------------------------------------------------

cdef inline int external_of(const Table *t, uint32_t address) noexcept nogil:
    """Return the row of an external address, or -1."""
    cdef int i
    if address:
        for i in range(table.EXTERNALS):
            if t.external[i] == address:
                return i
    return -1


cdef inline int external_for(const Table *t, uint32_t host) noexcept nogil:
    """Return the external row that an inside host's mappings are on, or -1: of a pool always the same (RFC 4787 REQ-2).

    A keyed hash of both addresses decides, so that what comes into the pool, or leaves it, moves no more hosts than it must.
    """
    cdef int row = t.current
    cdef uint64_t score
    cdef uint64_t most = 0
    cdef int i
    for i in range(t.pool_size):
        score = siphash.siphash(&t.secret, (<uint64_t>host << 32) | t.external[t.pool[i]], 0x706f6f6c)
        if i == 0 or score > most:
            row, most = t.pool[i], score
    return row


cdef inline uint32_t find_external(const Table *t, uint32_t address, int port_class, uint16_t port) noexcept nogil:
    """Return the mapping of an external endpoint, or NONE."""
    cdef int external = external_of(t, address)
    cdef uint32_t row
    if external < 0:
        return rows.NONE
    row = mapping_row(external, port_class, port)
    if t.mappings[row].in_use == rows.MAPPING_FREE or t.mappings[row].in_use == rows.MAPPING_HELD_DOWN:
        return rows.NONE
    return row


cdef inline uint64_t endpoint_hash(const Table *t, int port_class, uint32_t address, uint16_t id) noexcept nogil:
    """Return the hash of an internal endpoint: the low 32 bits find its mapping, the others choose its port (ports.pxd)."""
    return siphash.siphash(&t.secret, address, (<uint64_t>(0x4d00 | port_class) << 48) | id)


cdef inline uint32_t find_internal_in(const Table *t, const Index *searched, int external, int port_class, uint32_t address,
                                      uint16_t id, uint32_t hash) noexcept nogil:
    cdef uint32_t at = hash & searched.mask
    cdef int pool = pool_of(external, port_class)
    cdef uint32_t row
    while True:
        row = searched.entries[at].ref
        if row == 0:
            return rows.NONE
        row -= 1
        if searched.entries[at].hash == hash:
            if t.mappings[row].in_use == rows.MAPPING_FORWARD:
                if row_class(row) == port_class and forwards.is_target(&t.forwards, t.mappings[row].host, address, id):
                    return row
            elif t.mappings[row].address == address and t.mappings[row].id == id and row_pool(row) == pool:
                return row
        at = (at + 1) & searched.mask


cdef inline uint32_t find_internal(const Table *t, int external, int port_class, uint32_t address, uint16_t id,
                                   uint32_t hash) noexcept nogil:
    """Return the mapping of an internal endpoint: on this external address, or a forward's on any; or NONE.

    hash is the endpoint's (endpoint_hash), of which its low half is enough.
    """
    cdef uint32_t row = find_internal_in(t, &t.mapping_index, external, port_class, address, id, hash)
    if row == rows.NONE and t.old_mapping_index.slots:
        return find_internal_in(t, &t.old_mapping_index.index, external, port_class, address, id, hash)
    return row


# -- taking and giving back ------------------------------------------------------------------------------------------

cdef inline int keep_port(Table *t, int pool, uint32_t address, uint16_t wanted) noexcept nogil:
    """Take just this external port for a host, though it may not be one for mappings; NO_PORT if it is in use."""
    cdef Mapping *mapping = &t.mappings[rows.mapping_row(pool, wanted)]
    if mapping.in_use == rows.MAPPING_HELD_DOWN and mapping.address == address:
        holds.end_hold(t, pool, wanted)
        return wanted
    if mapping.in_use != rows.MAPPING_FREE or wanted == 0:
        return ports.NO_PORT
    if ports.is_free(&t.pools[pool], wanted):
        ports.take_port(&t.pools[pool], wanted)
    return wanted


cdef inline int choose_port(Table *t, int pool, int port_class, uint32_t address, uint16_t wanted,
                            uint64_t hash) noexcept nogil:
    """Return the external port for an inside endpoint, taken from the free ones or those held down; or NO_PORT.

    hash is the endpoint's (endpoint_hash).
    """
    cdef bint keep_parity = port_class != numbers.CLASS_ICMP
    cdef uint16_t choice
    cdef int port
    if t.sequential:
        port = ports.choose_next_port(&t.pools[pool], &t.next_sequential)
    elif ports.is_free(&t.pools[pool], wanted):
        port = wanted
    elif holds.was_of(t, pool, wanted, address):
        holds.end_hold(t, pool, wanted)
        return wanted
    else:
        choice = ports.first_choice(wanted, keep_parity, hash)
        if t.held[pool].first:      # what follows reads rows that have to be waited for: only where there can be something
            if not ports.is_free(&t.pools[pool], choice) and holds.was_of(t, pool, choice, address):
                holds.end_hold(t, pool, choice)
                return choice
            if holds.was_last_of(t, pool, address, wanted):     # a packet that turns round and waits opens its session twice
                port = t.held[pool].last
                holds.end_hold(t, pool, <uint16_t>port)
                return port
        port = ports.choose_port(&t.pools[pool], wanted, keep_parity, choice, hash)
    if port != ports.NO_PORT:
        ports.take_port(&t.pools[pool], <uint16_t>port)
        return port
    port = holds.longest_held(t, pool, port_class == numbers.CLASS_ICMP or wanted < ports.LOW_PORTS)
    if port != ports.NO_PORT:
        holds.end_hold(t, pool, <uint16_t>port)
    return port


cdef inline uint32_t ports_left(const Table *t, int pool, bint low) noexcept nogil:
    """Return how many ports of a pool can still be given, those held down included; low ones only if `low`."""
    cdef uint32_t left = t.pools[pool].free_count + t.held[pool].count
    return left if low else left - t.pools[pool].free_low


cdef inline void give_mapping(Table *t, uint32_t row, uint32_t host, uint16_t id, uint32_t hash) noexcept nogil:
    """Give a mapping that nobody has to the endpoint of a host with this id; hash is the endpoint's."""
    cdef Mapping *mapping = &t.mappings[row]
    mapping.address = t.hosts[host].address
    mapping.id = id
    mapping.host = host
    mapping.sessions = 0
    keep_order()
    mapping.in_use = rows.MAPPING_OPEN
    hosts.count_port(t, host, row_class(row), 1)
    growth.make_room_for_mapping(t)
    t.mappings_in_use += 1
    index.insert(&t.mapping_index, hash, row)


cdef inline int64_t take_mapping(Table *t, int external, int port_class, uint32_t host, uint16_t id, uint64_t hash,
                                 int wanted) noexcept nogil:
    """Give the endpoint of a host with this id one on this external address.

    host is the row of the inside host, hash the endpoint's. wanted: the port if that is possible, though it may not be one for
    mappings; NO_PORT for any that is. Returns the row of the mapping, or a Refusal.
    """
    cdef uint32_t address = t.hosts[host].address
    cdef int pool = pool_of(external, port_class)
    cdef int port = ports.NO_PORT
    cdef uint32_t row, left
    if t.hosts[host].ports[port_class] >= t.limits.ports_per_host:
        return table.REFUSED_HOST_PORTS
    left = ports_left(t, pool, port_class == numbers.CLASS_ICMP or id < ports.LOW_PORTS)
    if not hosts.has_share(t, t.hosts[host].ports[port_class], 0, left) and left:
        return table.REFUSED_HOST_PORTS
    if not hosts.has_share(t, 0, hosts.network_of(t, host).ports[port_class], left) and left:
        return table.REFUSED_NETWORK
    if wanted != ports.NO_PORT:
        port = keep_port(t, pool, address, <uint16_t>wanted)
    if port == ports.NO_PORT:
        port = choose_port(t, pool, port_class, address, id, hash)
    if port == ports.NO_PORT:
        return table.REFUSED_PORTS_EXHAUSTED
    row = mapping_row(external, port_class, <uint16_t>port)
    give_mapping(t, row, host, id, hash)
    return row


cdef inline void forget_owner(Table *t, uint32_t row) noexcept nogil:
    """Take a dynamic mapping from its inside endpoint."""
    cdef Mapping *mapping = &t.mappings[row]
    cdef int port_class = row_class(row)
    index.remove_from_either(&t.mapping_index, &t.old_mapping_index,
                             endpoint_hash(t, port_class, mapping.address, mapping.id), row)
    hosts.count_port(t, mapping.host, port_class, -1)
    t.mappings_in_use -= 1


cdef inline void give_back_mapping(Table *t, uint32_t row) noexcept nogil:
    """Free a mapping that has no sessions left, unless it is a forward's."""
    cdef Mapping *mapping = &t.mappings[row]
    if mapping.in_use == rows.MAPPING_FORWARD:
        return
    if mapping.in_use == rows.MAPPING_OPEN:
        forget_owner(t, row)
        if not t.sequential:
            holds.hold_down(t, row_pool(row), row_port(row))
            return
    mapping.in_use = rows.MAPPING_FREE
    ports.give_back_port(&t.pools[row_pool(row)], row_port(row))
