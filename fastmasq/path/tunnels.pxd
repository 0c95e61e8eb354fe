# The tunnels that trackers have settled: PPTP calls and IPsec SAs, found by Call ID or SPI, so that the path moves them alone.
#
# A row has two ways, out and in. What arrives is found by (protocol, source, destination, id); each way of a tunnel has an
# id of its own, chosen by its receiver, which is why a tunnel is no Session. As a packet leaves, it may be quoted in an ICMP
# error later: so each way is found by what it writes as well. Rows are made and taken away by the daemon alone.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.table cimport index
from fastmasq.table.index cimport Index
from fastmasq.table.keys cimport INSIDE, OUTSIDE, key_protocol, key_side, make_key0, make_key1
from fastmasq.table.rows cimport DIRECTIONS, NO_HOP, OUTBOUND, direction_of, ref_of, row_of
from fastmasq.table.siphash cimport Secret, siphash
from fastmasq.wire cimport numbers

cdef enum:
    TUNNELS = 20480             # rows: calls and SAs, as many as the trackers may have
    TUNNEL_INDEX = 262144       # entries: four for each row, and as much again free
    ANY_CALL_ID = 0x10000       # of a way that carries whatever Call ID comes
    QUOTED = 0x04               # added to the side in the key of a packet as it left


cdef struct Way:
    # one direction of a tunnel; keys and addresses in host order
    uint64_t key0               # as it arrives
    uint64_t key1
    uint64_t quoted0            # as it leaves
    uint64_t quoted1
    uint64_t packets
    uint32_t saddr              # to write
    uint32_t daddr
    uint32_t last_ms            # when the last packet went this way, of the path's time
    uint32_t sequence           # of the last one, of ESP
    uint32_t original_id        # as it arrives
    uint32_t generation         # of what the kernel knows for which the hop was looked up
    uint16_t hop                # next-hop row of the path, or NO_HOP
    uint16_t call_id            # to write, if renumbered
    uint8_t renumbered
    uint8_t in_use
    uint8_t came_by             # link of the last packet, judged under that generation
    uint8_t reserved
    uint32_t serial             # another one each time the way is set
    uint32_t padding

cdef struct Translation:
    # what a way is to do: packets that arrive between the first two addresses with this id leave between the others
    uint32_t arrives_from
    uint32_t arrives_to
    uint32_t leaves_from
    uint32_t leaves_to
    uint32_t id                 # Call ID or SPI, or ANY_CALL_ID
    uint16_t call_id            # to write, if renumbered
    bint renumbered
    uint8_t protocol

cdef struct Tunnel:
    Way way[DIRECTIONS]

cdef struct Tunnels:
    Tunnel *rows                # NULL while nobody tracks any
    uint32_t serial             # of the way set last
    Index index                 # of ways: entry_of


cdef inline uint64_t tunnel_key1(uint8_t protocol, uint8_t side, uint32_t id) noexcept nogil:
    return make_key1(protocol, side, 0, id)


cdef inline Way *way_at(const Tunnels *tunnels, int64_t ref) noexcept nogil:
    return &tunnels.rows[row_of(ref)].way[direction_of(ref)]


cdef inline uint32_t entry_of(uint32_t row, int direction, bint quoted) noexcept nogil:
    """Return what the index has for a way as it arrives, or as it is quoted."""
    return ref_of(row, direction) << 1 | <uint32_t>quoted


cdef inline int64_t find_way(const Tunnels *tunnels, uint32_t hash, uint64_t key0, uint64_t key1, bint quoted) noexcept nogil:
    """Return the way with this key, whose hash this is (rows.ref_of), or -1."""
    cdef uint32_t at = hash & tunnels.index.mask
    cdef uint32_t entry
    cdef const Way *way
    while tunnels.index.entries[at].ref:
        entry = tunnels.index.entries[at].ref - 1
        if tunnels.index.entries[at].hash == hash and (entry & 1) == quoted:
            way = way_at(tunnels, entry >> 1)
            if quoted and way.quoted0 == key0 and way.quoted1 == key1:
                return entry >> 1
            if not quoted and way.key0 == key0 and way.key1 == key1:
                return entry >> 1
        at = (at + 1) & tunnels.index.mask
    return -1


cdef inline int64_t find_any_way(const Tunnels *tunnels, const Secret *secret, uint32_t hash, uint64_t key0, uint64_t key1,
                                 bint quoted) noexcept nogil:
    """Return the way with this key, or of GRE one between the same ends that takes any Call ID; or -1."""
    cdef int64_t found = find_way(tunnels, hash, key0, key1, quoted)
    if found < 0 and key_protocol(key1) == numbers.GRE:
        key1 = tunnel_key1(numbers.GRE, key_side(key1), ANY_CALL_ID)
        found = find_way(tunnels, <uint32_t>siphash(secret, key0, key1), key0, key1, quoted)
    return found


cdef inline int64_t find_quoted_way(const Tunnels *tunnels, const Secret *secret, uint8_t protocol, uint8_t side,
                                    uint32_t saddr, uint32_t daddr, uint32_t id) noexcept nogil:
    """Return the way that a quoted packet left by, or -1; side is where the error comes from."""
    cdef uint64_t key0 = make_key0(saddr, daddr)
    cdef uint64_t key1 = tunnel_key1(protocol, side | QUOTED, id)
    if tunnels.rows == NULL:
        return -1
    return find_any_way(tunnels, secret, <uint32_t>siphash(secret, key0, key1), key0, key1, True)


cdef inline void forget_way(Tunnels *tunnels, const Secret *secret, uint32_t row, int direction) noexcept nogil:
    """Take a way out of the index; its counters stay."""
    cdef Way *way = &tunnels.rows[row].way[direction]
    if not way.in_use:
        return
    index.remove(&tunnels.index, <uint32_t>siphash(secret, way.key0, way.key1), entry_of(row, direction, False))
    index.remove(&tunnels.index, <uint32_t>siphash(secret, way.quoted0, way.quoted1), entry_of(row, direction, True))
    way.in_use = 0


cdef inline void set_way(Tunnels *tunnels, const Secret *secret, uint32_t row, int direction,
                         const Translation *wanted) noexcept nogil:
    """Have a way move other packets from now on; its counters go on. The link of the first is judged."""
    cdef Way *way = &tunnels.rows[row].way[direction]
    cdef uint8_t from_side = INSIDE if direction == OUTBOUND else OUTSIDE
    cdef uint8_t to_side = OUTSIDE if direction == OUTBOUND else INSIDE
    forget_way(tunnels, secret, row, direction)
    way.saddr, way.daddr = wanted.leaves_from, wanted.leaves_to
    way.original_id = wanted.id
    way.renumbered = wanted.renumbered
    way.call_id = wanted.call_id
    way.key0 = make_key0(wanted.arrives_from, wanted.arrives_to)
    way.key1 = tunnel_key1(wanted.protocol, from_side, wanted.id)
    way.quoted0 = make_key0(way.saddr, way.daddr)
    way.quoted1 = tunnel_key1(wanted.protocol, QUOTED | to_side, way.call_id if way.renumbered else way.original_id)
    way.hop = NO_HOP
    way.generation = 0
    way.in_use = 1
    tunnels.serial += 1
    way.serial = tunnels.serial
    index.insert(&tunnels.index, <uint32_t>siphash(secret, way.key0, way.key1), entry_of(row, direction, False))
    index.insert(&tunnels.index, <uint32_t>siphash(secret, way.quoted0, way.quoted1), entry_of(row, direction, True))
