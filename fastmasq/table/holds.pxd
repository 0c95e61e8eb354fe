# External ports held down: for two minutes after their mapping has closed, late packets must not reach another host.
#
# RFC 6888 REQ-8. Until then a port is given to a host that had it and asks for it; to the inside endpoint that had it, if that is
# back before another port is held; or to anybody when no other is left, the longest held first. Ports held down wait in a queue
# for each pool, linked through their mapping rows: `host` has the next port and the previous one, `sessions` the tick at which
# the port is free. In the manner of 1999 (rule C-2), where all ports are given in turn, none is held.

from libc.stdint cimport uint16_t, uint32_t

from fastmasq.table cimport ports, rows, table
from fastmasq.table.order cimport keep_order
from fastmasq.table.rows cimport Mapping
from fastmasq.table.table cimport HoldQueue, Table
from fastmasq.table.wheel cimport TICKS_PER_SECOND

cdef enum:
    HOLD_DOWN_TICKS = 120 * TICKS_PER_SECOND + 1  # never less


cdef inline uint16_t next_held(const Mapping *mapping) noexcept nogil:
    return <uint16_t>(mapping.host >> 16)


cdef inline uint16_t previous_held(const Mapping *mapping) noexcept nogil:
    return <uint16_t>mapping.host


cdef inline void set_neighbours(Mapping *mapping, uint16_t previous, uint16_t following) noexcept nogil:
    mapping.host = (<uint32_t>following << 16) | previous


cdef inline void hold_down(Table *t, int pool, uint16_t port) noexcept nogil:
    """Put the port of a closed mapping at the end of its pool's queue."""
    cdef HoldQueue *queue = &t.held[pool]
    cdef Mapping *of_pool = &t.mappings[rows.mapping_row(pool, 0)]
    of_pool[port].sessions = t.now + HOLD_DOWN_TICKS
    set_neighbours(&of_pool[port], queue.last, 0)
    keep_order()
    of_pool[port].in_use = rows.MAPPING_HELD_DOWN
    if queue.last:
        set_neighbours(&of_pool[queue.last], previous_held(&of_pool[queue.last]), port)
    else:
        queue.first = port
    queue.last = port
    queue.count += port >= ports.LOW_PORTS


cdef inline void end_hold(Table *t, int pool, uint16_t port) noexcept nogil:
    """Take a port out of the queue; it is neither held down nor free then."""
    cdef HoldQueue *queue = &t.held[pool]
    cdef Mapping *of_pool = &t.mappings[rows.mapping_row(pool, 0)]
    cdef uint16_t after = next_held(&of_pool[port])
    cdef uint16_t before = previous_held(&of_pool[port])
    if before:
        set_neighbours(&of_pool[before], previous_held(&of_pool[before]), after)
    else:
        queue.first = after
    if after:
        set_neighbours(&of_pool[after], before, next_held(&of_pool[after]))
    else:
        queue.last = before
    of_pool[port].in_use = rows.MAPPING_FREE
    of_pool[port].host = of_pool[port].sessions = 0
    queue.count -= port >= ports.LOW_PORTS


cdef inline int end_holds(Table *t, uint32_t tick, int budget) noexcept nogil:
    """Free the ports whose time is over at `tick`, at most `budget` of them; return how many that were."""
    cdef int freed = 0
    cdef int pool
    cdef uint16_t port
    for pool in range(table.POOLS):
        while freed < budget:
            port = t.held[pool].first
            if port == 0 or <int>(t.mappings[rows.mapping_row(pool, port)].sessions - tick) > 0:
                break
            end_hold(t, pool, port)
            ports.give_back_port(&t.pools[pool], port)
            freed += 1
    return freed


cdef inline bint was_of(const Table *t, int pool, uint16_t port, uint32_t address) noexcept nogil:
    """Whether a port is held down, may still be given, and had this host as its last owner."""
    cdef const Mapping *mapping = &t.mappings[rows.mapping_row(pool, port)]
    return mapping.in_use == rows.MAPPING_HELD_DOWN and mapping.address == address and ports.is_allowed(&t.pools[pool], port)


cdef inline bint was_last_of(const Table *t, int pool, uint32_t address, uint16_t id) noexcept nogil:
    """Whether the port that is held down since last may still be given, and had this inside endpoint as its owner."""
    cdef uint16_t port = t.held[pool].last
    cdef const Mapping *mapping = &t.mappings[rows.mapping_row(pool, port)]
    return port and mapping.address == address and mapping.id == id and ports.is_allowed(&t.pools[pool], port)


cdef inline int longest_held(const Table *t, int pool, bint low) noexcept nogil:
    """Return the port that is held down longest, one under LOW_PORTS only if `low`; or NO_PORT."""
    cdef uint16_t port = t.held[pool].first
    while port and (not ports.is_allowed(&t.pools[pool], port) or (port < ports.LOW_PORTS and not low)):
        port = next_held(&t.mappings[rows.mapping_row(pool, port)])
    if port == 0:
        return ports.NO_PORT
    return port
