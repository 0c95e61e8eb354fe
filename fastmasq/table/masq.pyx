"""MasqTable: the translation state with its memory, made once, and the slow calls on it.

The packet path works on the C struct `Table` (table.pxd) without the GIL; the methods here are for the daemon, which
calls them under the path's lock, and for tests. Addresses and ports are host-order integers, times are nanoseconds of
one monotonic clock, kept as ticks of 250 ms.
"""

import os

import numpy as np

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.table cimport (
    carried, forwards, growth, hosts, keys, mappings, opening, ports, rows, sessions, shortage, siphash, streams, table,
    wheel,
)
from fastmasq.table.filtering cimport admits, permit_remote
from fastmasq.table.forwards cimport Forward, Remote, Target
from fastmasq.table.index cimport Index, IndexEntry, insert
from fastmasq.table.keys cimport Ends
from fastmasq.table.order cimport keep_order
from fastmasq.table.pattern cimport lay_pattern
from fastmasq.table.permits cimport PermitSet
from fastmasq.table.rows cimport Carried, Host, Mapping, Network, OUTBOUND, Session, Tally
from fastmasq.table.sessions cimport Birth
from fastmasq.table.streams cimport EDITS, Edit, FOLLOWED_PORTS, STREAMS, Stream, TEXT
from fastmasq.table.table cimport EXTERNALS, Growth, POOLS, PORTS, Table

from fastmasq.errors import CapacityError
from fastmasq.table import rows as mirrors
from fastmasq.table.limits import Limits
from fastmasq.table.memory import EDITS_OF_STREAM, lay_out, offset_of
from fastmasq.table.timeouts import Timeouts
from fastmasq.wire cimport numbers

TICK_NS = wheel.TICK_MS * 1_000_000
MAXIMUM_SESSIONS = 1 << 26
REFUSALS = {
    table.REFUSED_TABLE_FULL: "table_full", table.REFUSED_PORTS_EXHAUSTED: "ports_exhausted",
    table.REFUSED_HOST_SESSIONS: "host_session_limit", table.REFUSED_HOST_PORTS: "host_port_limit",
    table.REFUSED_HOST_RATE: "host_rate_limit", table.REFUSED_HOST_TABLE_FULL: "host_table_full",
    table.REFUSED_NO_EXTERNAL: "no_external_address", table.REFUSED_HALF_OPEN: "half_open",
    table.REFUSED_CLASH: "endpoint_clash", table.REFUSED_NETWORK: "network_limit",
}
FILTERINGS = {
    "endpoint-independent": table.ENDPOINT_INDEPENDENT, "address-dependent": table.ADDRESS_DEPENDENT,
    "address-and-port-dependent": table.ADDRESS_AND_PORT_DEPENDENT,
}

cdef union Row:
    Session session
    Carried carried
    Tally tally
    Mapping mapping
    Host host
    Network network
    Forward forward
    Target target
    Remote remote
    IndexEntry entry
    Stream stream
    Edit edit

ctypedef fused AnyRow:
    Session
    Carried
    Tally
    Mapping
    Host
    Network
    Forward
    Target
    Remote
    IndexEntry
    Stream
    Edit


cdef check_mirror(name, AnyRow *row):
    """Raise ImportError where rows.py has a row otherwise than its struct has it."""
    lay_pattern(row, mirrors.pattern(sizeof(AnyRow)))
    mirrors.compare(mirrors, name, sizeof(AnyRow), row[0])


def check_mirrors():
    """Raise ImportError where rows.py has a row otherwise than the structs of this folder."""
    cdef Row row
    check_mirror("SESSION", &row.session)
    check_mirror("CARRIED", &row.carried)
    check_mirror("TALLY", &row.tally)
    check_mirror("MAPPING", &row.mapping)
    check_mirror("HOST", &row.host)
    check_mirror("NETWORK", &row.network)
    check_mirror("FORWARD", &row.forward)
    check_mirror("TARGET", &row.target)
    check_mirror("REMOTE", &row.remote)
    check_mirror("INDEX_ENTRY", &row.entry)
    check_mirror("STREAM", &row.stream)
    check_mirror("EDIT", &row.edit)


check_mirrors()
if sizeof(Session) != 128:
    raise ImportError(f"a session has {sizeof(Session)} octets, not 128: two cache lines")
if len(mirrors.STATES) != rows.STATE_COUNT:
    raise ImportError("table/rows.py does not name every state")
if ((mirrors.POOLS, mirrors.PORTS, mirrors.POOL_WORDS, mirrors.HOST_ROWS, mirrors.WHEEL_SLOTS, mirrors.FORWARD_ROWS,
     mirrors.TARGET_ROWS, mirrors.REMOTE_ROWS, mirrors.YOUNG, mirrors.SIZES) != (
        POOLS, PORTS, ports.POOL_WORDS, hosts.HOSTS, wheel.WHEEL_SLOTS, forwards.FORWARDS, forwards.TARGETS,
        forwards.REMOTES, growth.YOUNG, table.SIZES)
        or (mirrors.STREAMS, mirrors.EDITS, mirrors.TEXT, mirrors.FOLLOWED_PORTS) != (STREAMS, EDITS, TEXT, FOLLOWED_PORTS)):
    raise ImportError("table/rows.py and table/*.pxd disagree about how many rows there are")
if len(Timeouts().by_state()) != rows.STATE_COUNT:
    raise ImportError("table/timeouts.py does not give every state a timeout")


cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *address, size_t length, int advice)

cdef enum:
    MADV_DONTNEED = 4
    MADV_POPULATE_WRITE = 23    # Linux 5.14; older kernels refuse it, and pages come when first touched
    PAGE = 4096
    FEW = 4096                  # sessions up to which a table is young
    FIRST_ROWS = 32768          # sessions that there is room for while it is, half of them touched
    ROWS_LEFT = 65536           # sessions before which more room is asked for, later: 131 ms at half a million a second
    ROWS_AT_ONCE = 16384        # sessions by which it grows: whole pages
    ROWS_AHEAD = ROWS_LEFT + ROWS_AT_ONCE
    STREAMS_AT_ONCE = 64        # streams by whose edits their room grows: whole pages


cdef void *address_of(array):
    return <void *><size_t>array.ctypes.data


cdef point_index(Index *index, array):
    """Have an index lie in an array."""
    index.entries = <IndexEntry *>address_of(array)
    index.mask = <uint32_t>(len(array) - 1)


cdef point_permits(PermitSet *permits, array):
    """The same of a set of permits."""
    permits.permits = <uint64_t *>address_of(array)
    permits.mask = <uint32_t>(len(array) - 1)


cdef populate_array(array):
    """Have memory there before it is touched: making a huge page on the way of a packet stalls all packets behind it."""
    cdef size_t first = array.ctypes.data
    cdef size_t stop = (first + <size_t>array.nbytes + PAGE - 1) & ~<size_t>(PAGE - 1)
    first &= ~<size_t>(PAGE - 1)
    with nogil:
        madvise(<void *>first, stop - first, MADV_POPULATE_WRITE)


cdef give_back_array(array):
    """Have no memory for an array that nobody looks at any more; it reads as zeros."""
    cdef size_t first = (<size_t>array.ctypes.data + PAGE - 1) & ~<size_t>(PAGE - 1)
    cdef size_t stop = (<size_t>array.ctypes.data + <size_t>array.nbytes) & ~<size_t>(PAGE - 1)
    if first < stop:
        madvise(<void *>first, stop - first, MADV_DONTNEED)


cdef note_sizes(Growth *g, of_sizes):
    """Have a growth know for how many rows the indexes of each size are."""
    g.sizes = len(of_sizes)
    for size, indexes in enumerate(of_sizes):
        g.rows[size] = indexes.rows


cdef populate_indexes(indexes):
    for array in indexes.arrays.values():
        populate_array(array)


cdef populate_next(Growth *g, uint64_t count, uint32_t in_time, of_sizes):
    """Have memory for the indexes that so many rows want."""
    while g.ready < g.sizes and count >= growth.asks_at(g, g.ready - 1, in_time):
        populate_indexes(of_sizes[g.ready])
        g.ready += 1


cdef give_back_indexes(of_sizes):
    for indexes in of_sizes:
        for array in indexes.arrays.values():
            give_back_array(array)


cdef void look_sooner(Table *t) noexcept nogil:
    """Link sessions anew so that none outlives a timeout that has become shorter: a refresh alone does not move them."""
    cdef uint32_t row, due
    for row in range(t.fresh):
        if t.sessions[row].state == rows.STATE_FREE:
            continue
        due = t.wheel.tick + t.timeout[t.sessions[row].state]
        if <int>(t.sessions[row].expires - due) > 0:
            wheel.unlink(&t.wheel, t.sessions, row)
            wheel.link(&t.wheel, t.sessions, row, due)


cdef int64_t row_between(const Table *t, uint8_t protocol, Ends ends) noexcept nogil:
    """Return the row of the session of an inside endpoint with a remote one, or -1."""
    cdef int64_t ref = sessions.find_between(t, protocol, keys.INSIDE, ends)
    return rows.row_of(ref) if ref >= 0 else -1


def are_edits(made, edits):
    """Return whether rows of EDIT, [2][EDITS], are those of a stream that has made so many each way."""
    for count, ring in zip(made.tolist(), edits, strict=True):
        known = [ring[number % EDITS] for number in range(max(0, count - (EDITS - 1)), count)]
        for edit in known:
            if not edit["before"] or edit["after"] > TEXT:
                return False
        for edit, after in zip(known, known[1:]):
            shift = (int(edit["shift"]) + int(edit["after"]) - int(edit["before"])) & 0xFFFFFFFF
            behind = (int(after["at"]) - int(edit["at"]) - int(edit["before"])) & 0xFFFFFFFF
            if after["shift"] != shift or behind >> 31:
                return False
    return True


cdef class MasqTable:
    """All sessions with their indexes, mappings, ports, hosts and timers.

    capacity: sessions at the most (default one million), reserved now but touched only as they are used.
    filtering: one of FILTERINGS (RFC 4787 section 5). secret: 16 bytes for the keyed hash, random by default; by the same one
    inside hosts are given the same ports and addresses.
    sequential: ports ascending and never kept, as in 1999 (rule C-2). buffer: where the rows of sessions and mappings are
    to live (memory.lay_out). back(offset, octets) is called before a part of the buffer is touched for the first time, and
    has memory there when it returns; without it all may be touched. apart: where what is shared with the kernel is to live.
    Raises CapacityError when the memory cannot be had.

    A file on tmpfs takes memory when room is made in it, not when it is mapped, and what finds no room dies of SIGBUS. So
    room is made by the daemon's thread: for the mappings of an external address (3 MB) when there is one, and for sessions
    FIRST_ROWS (4 MB) while there are FEW, then ROWS_AHEAD of what is used (10 MB), by ROWS_AT_ONCE (2 MB); the path asks
    when ROWS_LEFT are left, and opens nothing beyond what there is (`Table.backed`).
    """

    def __init__(self, uint32_t capacity=1_000_000, *, limits=Limits(), filtering="address-dependent", bint sequential=False,
                 secret=None, now_ns=0, buffer=None, back=None, apart=None):
        if not 1 <= capacity <= MAXIMUM_SESSIONS:
            raise CapacityError(f"{capacity} sessions: choose between 1 and {MAXIMUM_SESSIONS}")
        cdef Table *t = &self.table
        self.memory = lay_out(capacity, buffer, apart)
        self.sessions, self.mappings, self.hosts = self.memory.sessions, self.memory.mappings, self.memory.hosts
        self._back = back
        self._is_shared = apart is not None
        if back is not None:
            back(0, self.memory.header.nbytes)
        self._backed_externals = set()
        self._backed_streams = 0
        self._has_followers = False
        self._point_into_memory()
        self.memory.wheel_slots[:] = <uint32_t>rows.NONE
        t.capacity = capacity
        t.growth.ready = t.mapping_growth.ready = 1
        t.host_capacity = hosts.HOSTS
        t.free_row = t.host_free = t.network_free = rows.NONE
        t.resting.first = t.resting.last = t.rested.first = t.rested.last = rows.NONE
        t.current = -1
        t.low_water = rows.NONE
        t.next_sequential = 61000
        t.wheel.tick = t.now = now_ns // TICK_NS
        t.filtering = FILTERINGS[filtering]
        t.sequential = sequential
        key = secret or os.urandom(16)
        self.take_secret(int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))
        self.set_limits(limits)
        self.set_timeouts(Timeouts())
        self.reserve(FIRST_ROWS)

    cdef take_secret(self, uint64_t k0, uint64_t k1):
        """Have a table that is empty find its rows by another secret."""
        self.table.secret.k0, self.table.secret.k1 = k0, k1
        self.memory.header["secret"] = k0, k1

    def _point_into_memory(self):
        """Have the C struct use the arrays."""
        cdef Table *t = &self.table
        memory = self.memory
        t.sessions = <Session *>address_of(memory.sessions)
        t.mappings = <Mapping *>address_of(memory.mappings)
        t.hosts = <Host *>address_of(memory.hosts)
        for size, indexes in enumerate(memory.indexes):
            point_index(&t.indexes[size], indexes.arrays["index"])
            point_permits(&t.permit_sets[size], indexes.arrays["permits"])
        for size, indexes in enumerate(memory.mapping_indexes):
            point_index(&t.mapping_indexes[size], indexes.arrays["mapping_index"])
        note_sizes(&t.growth, memory.indexes)
        note_sizes(&t.mapping_growth, memory.mapping_indexes)
        t.index, t.mapping_index, t.permits = t.indexes[0], t.mapping_indexes[0], t.permit_sets[0]
        t.carried = <Carried *>address_of(memory.carried) if self._is_shared else NULL
        t.tallies = <Tally *>address_of(memory.tallies) if self._is_shared else NULL
        t.kept = <Session *>address_of(memory.kept) if len(memory.kept) else NULL
        point_index(&t.host_index, memory.host_index)
        t.networks = <Network *>address_of(memory.networks)
        point_index(&t.network_index, memory.network_index)
        t.forwards.rows = <Forward *>address_of(memory.forwards)
        t.forwards.targets = <Target *>address_of(memory.targets)
        t.forwards.remotes = <Remote *>address_of(memory.remotes)
        t.wheel.slots = <uint32_t *>address_of(memory.wheel_slots)
        t.streams.rows = <Stream *>address_of(memory.streams)
        t.streams.edits = <Edit *>address_of(memory.edits)
        point_index(&t.streams.of_session, memory.stream_index)
        t.streams.followed = <uint64_t *>address_of(memory.followed)
        t.streams.unread = <uint64_t *>address_of(memory.unread)
        for pool in range(POOLS):
            t.pools[pool].free = <uint64_t *>address_of(memory.free_ports[pool])
            t.pools[pool].allowed = <uint64_t *>address_of(memory.allowed_ports[pool])

    @property
    def wants_memory(self):
        """Whether `make_ready` is to be called soon."""
        cdef Table *t = &self.table
        return (growth.wants_memory(&t.growth, t.active, growth.SESSIONS_IN_TIME)
                or growth.wants_memory(&t.mapping_growth, t.mappings_in_use, growth.MAPPINGS_IN_TIME)
                or t.fresh >= t.low_water)

    cpdef reserve(self, uint32_t ahead):
        """Have memory for so many rows of sessions that were never used, as far as there are rows. May be called while
        the path runs."""
        cdef Table *t = &self.table
        cdef uint64_t wanted = -(-(<uint64_t>t.fresh + ahead) // ROWS_AT_ONCE) * ROWS_AT_ONCE
        cdef uint32_t until = <uint32_t>min(wanted, <uint64_t>t.capacity)
        if self._back is None:
            t.backed = t.capacity
        while t.backed < until:     # step by step: the path goes on with each
            self._back_sessions(min(until - t.backed, <uint32_t>ROWS_AT_ONCE))
        if until == t.capacity:
            t.low_water = <uint32_t>rows.NONE
        else:
            t.low_water = max(until, <uint32_t>ROWS_LEFT) - ROWS_LEFT if ahead > FIRST_ROWS else FEW

    def _back_sessions(self, uint32_t count):
        """Have memory for so many rows of sessions more."""
        cdef Table *t = &self.table
        self._back(offset_of("sessions", t.capacity) + t.backed * sizeof(Session), count * sizeof(Session))
        self.memory.header["rows"] = t.backed + count
        t.backed += count

    def _reserve_mappings(self, int external):
        """Have memory for the mappings of an external row."""
        cdef size_t octets = numbers.CLASS_COUNT * PORTS * sizeof(Mapping)
        if self._back is not None and external not in self._backed_externals:
            self._back(offset_of("mappings", self.table.capacity) + external * octets, octets)
        self._backed_externals.add(external)

    def make_ready(self, uint32_t expected=0):
        """Have the kernel back the indexes, and the rows that come next, with memory; call again as the table fills.

        expected: so many sessions are to be opened at once, before the path runs; else it may run. Where the kernel
        cannot, nothing happens.
        """
        cdef Table *t = &self.table
        cdef bint is_young = t.fresh + expected < FEW
        self.reserve(expected + (FIRST_ROWS if is_young else ROWS_AHEAD))
        if not self._is_ready:
            self._is_ready = True
            self._reserve_mappings(0)
            populate_array(self.mappings[:numbers.CLASS_ICMP * PORTS])  # of TCP and UDP
            populate_indexes(self.memory.indexes[0])
            populate_indexes(self.memory.mapping_indexes[0])
        populate_next(&t.growth, t.active + expected, growth.SESSIONS_IN_TIME, self.memory.indexes)
        populate_next(&t.mapping_growth, t.mappings_in_use + expected, growth.MAPPINGS_IN_TIME, self.memory.mapping_indexes)
        while expected and growth.has_outgrown(&t.growth, t.active + expected):
            growth.move_entries(t, growth.ALL)
            growth.use_larger(t)
        while expected and growth.has_outgrown(&t.mapping_growth, t.mappings_in_use + expected):
            growth.move_mappings(t, growth.ALL)
            growth.use_larger_for_mappings(t)
        self._give_back_indexes()
        populate_array(self.sessions[t.fresh:min(t.fresh + expected + (FIRST_ROWS // 2 if is_young else ROWS_AHEAD), t.backed)])

    def _give_back_indexes(self):
        """Have no memory for indexes that were left and are empty."""
        cdef Table *t = &self.table
        cdef int size = t.growth.size
        cdef int mapping_size = t.mapping_growth.size
        keep_order()                # the path may leave these for larger ones just now, and then they are still wanted
        if not growth.is_moving(t):
            give_back_indexes(self.memory.indexes[:size])
        if not t.old_mapping_index.slots:
            give_back_indexes(self.memory.mapping_indexes[:mapping_size])

    def set_timeouts(self, timeouts):
        """Use these idle times from each session's next packet on, never retroactively (rule C-20)."""
        for state, nanoseconds in enumerate(timeouts.by_state()):
            self.table.timeout[state] = max(1, -(-nanoseconds // TICK_NS)) + 1
        with nogil:
            look_sooner(&self.table)

    def set_limits(self, limits):
        """Let one inside host have so much from now on; what it has above that it keeps."""
        cdef Table *t = &self.table
        t.limits.shares = limits.prefix > 0
        self._group_hosts(<uint32_t>(0xFFFFFFFF << (32 - limits.prefix) & 0xFFFFFFFF))
        t.limits.sessions_per_host = t.capacity if limits.sessions_per_host is None else limits.sessions_per_host
        t.limits.ports_per_host = limits.ports_per_host
        t.limits.rate_per_host = limits.rate_per_host
        t.limits.burst_per_host = min(2 * limits.rate_per_host, 0xFFFFFFFF // 1000)

    def _group_hosts(self, uint32_t mask):
        """Count what hosts hold by networks with this mask."""
        cdef Table *t = &self.table
        cdef uint32_t row
        cdef int port_class
        if t.limits.network_mask == mask:
            return
        t.limits.network_mask = mask
        if t.network_fresh:
            self.memory.network_index[:] = 0
        t.network_fresh, t.network_free = 0, rows.NONE
        for row in range(t.host_fresh):
            if t.hosts[row].address:
                t.hosts[row].network = hosts.join_network(t, t.hosts[row].address)
                hosts.network_of(t, row).sessions += t.hosts[row].sessions
                for port_class in range(numbers.CLASS_COUNT):
                    hosts.network_of(t, row).ports[port_class] += t.hosts[row].ports[port_class]

    def set_filtering(self, filtering):
        """Filter so from the next packet on, as if all open sessions had been opened under it; one of FILTERINGS."""
        cdef Table *t = &self.table
        cdef Session *s
        cdef uint32_t row
        if FILTERINGS[filtering] == t.filtering:
            return
        if t.filtering == table.ADDRESS_DEPENDENT:
            self.memory.indexes[t.growth.size].arrays["permits"][:] = 0
            t.old_permits.slots = 0
        t.filtering = FILTERINGS[filtering]
        if t.filtering != table.ADDRESS_DEPENDENT:
            return
        with nogil:
            for row in range(t.fresh):
                s = &t.sessions[row]
                if s.state != rows.STATE_FREE and s.mapping != rows.NONE:
                    permit_remote(t, s.mapping, keys.key_daddr(s.flow[OUTBOUND].key0))

    # -- external addresses and ports ---------------------------------------------------------------------------

    def set_external(self, address, allowed, wanted=()):
        """Use `address` (int, or None while there is none) for new mappings; `allowed` is bool[3][65536] by class.

        The rows of `wanted` addresses are not given up for it.
        Returns the external addresses that are no longer current but still hold mappings.
        """
        cdef Table *t = &self.table
        if address is None:
            t.current = -1
        else:
            t.current = self.row_of_external(address, wanted)
            self._allow(t.current, allowed)
        self.memory.header["current"] = address or 0
        return [t.external[row] for row in range(EXTERNALS)
                if t.external[row] and row != t.current and self._holds_mappings(row)]

    def hold_external(self, address, allowed, wanted=()):
        """Have a row for an address besides the current one, for forwards or mappings; `allowed` and `wanted` as above."""
        self._allow(self.row_of_external(address, wanted), allowed)

    cdef int row_of_external(self, uint32_t address, wanted) except -1:
        """Return the row of an external address, which it is given if it has none. Raises CapacityError."""
        cdef Table *t = &self.table
        cdef int row = mappings.external_of(t, address)
        if row >= 0:
            return row
        row = self._unused_external(wanted)
        self.give_external(row, address)
        return row

    cdef give_external(self, int row, uint32_t address):
        """Have an external row, on which no mapping is open, be an address's from now on."""
        external = self.memory.header["external"][0]
        external[row] = 0
        self._reserve_mappings(row)
        if self.table.external[row]:
            self._forget_holds(row)
        self.table.external[row] = external[row] = address

    def set_pool(self, addresses):
        """Deal inside hosts out to these external addresses, which have rows; without any, all have the current one."""
        cdef Table *t = &self.table
        for number, address in enumerate(addresses):
            t.pool[number] = mappings.external_of(t, address)
        t.pool_size = len(addresses)
        pool = self.memory.header["pool"][0]
        pool[:] = 0
        pool[:len(addresses)] = addresses

    def external_for(self, uint32_t host):
        """Return the external address that an inside host's mappings are on, None while there is none."""
        cdef int row = mappings.external_for(&self.table, host)
        return self.table.external[row] if row >= 0 else None

    def _unused_external(self, wanted):
        cdef Table *t = &self.table
        for row in range(EXTERNALS):
            if t.external[row] == 0 or (
                    row != t.current and t.external[row] not in wanted and not self._holds_mappings(row)):
                return row
        raise CapacityError(f"sessions of {EXTERNALS} external addresses are still open")

    def _holds_mappings(self, row):
        in_use = self._in_use(row)
        return bool(((in_use != rows.MAPPING_FREE) & (in_use != rows.MAPPING_HELD_DOWN)).any())

    def _forget_holds(self, row):
        """Empty the queues of an external row that gets another address; no mapping is open on it."""
        span = numbers.CLASS_COUNT * PORTS
        of_external = self.mappings[row * span:(row + 1) * span]
        of_external[of_external["in_use"] != rows.MAPPING_FREE] = 0
        for pool in range(row * numbers.CLASS_COUNT, (row + 1) * numbers.CLASS_COUNT):
            self.table.held[pool].first = self.table.held[pool].last = 0
            self.table.held[pool].count = 0

    def _allow(self, int external, allowed):
        bits = np.array(allowed, bool).reshape(numbers.CLASS_COUNT, PORTS)
        bits[:, 0] = False
        used = self._in_use(external) != rows.MAPPING_FREE
        for port_class in range(numbers.CLASS_COUNT):
            pool = external * numbers.CLASS_COUNT + port_class
            self.memory.allowed_ports[pool] = np.packbits(bits[port_class], bitorder="little").view("u8")
            free = bits[port_class] & ~used[port_class]
            self.memory.free_ports[pool] = np.packbits(free, bitorder="little").view("u8")
            self.table.pools[pool].free_count = int(free.sum())
            self.table.pools[pool].free_low = int(free[:ports.LOW_PORTS].sum())
            self.table.pools[pool].free_middle = int(free[ports.LOW_PORTS:ports.CLIENT_PORTS].sum())
            self.table.pools[pool].allowed_count = int(bits[port_class][ports.LOW_PORTS:].sum())

    def close_external(self, address, first=0, count=<uint32_t>rows.NONE, only_without_reply=False):
        """Close the sessions on `address` among rows [first, first + count); return (closed, next row to look at).

        only_without_reply leaves those that have been answered (rule C-61, ip_dynaddr without bit 4).
        """
        cdef Table *t = &self.table
        cdef int external = mappings.external_of(t, address)
        cdef uint32_t old = address
        cdef uint32_t row = first
        cdef uint32_t stop = min(t.fresh, first + <uint64_t>count)
        cdef bint spare = only_without_reply
        cdef int closed = 0
        if external < 0:
            return 0, t.fresh
        with nogil:
            while row < stop:
                if t.sessions[row].state != rows.STATE_FREE and t.sessions[row].flow[OUTBOUND].saddr == old:
                    if not (spare and t.sessions[row].flags & rows.SESSION_REPLIED):
                        sessions.close_session(t, row)
                        closed += 1
                row += 1
        return closed, row

    # -- connections that are followed -----------------------------------------------------------------------------

    def follow_ports(self, wanted):
        """Have TCP sessions that are opened from now on, and have an end with one of these ports, be followed.

        Raises ValueError for more than FOLLOWED_PORTS.
        """
        cdef int i
        if len(wanted) > FOLLOWED_PORTS:
            raise ValueError(f"{len(wanted)} ports: at most {FOLLOWED_PORTS} are followed")
        for i, port in enumerate(wanted):
            self.table.streams.ports[i] = port
        self.table.streams.port_count = len(wanted)

    def leave_unread(self, uint32_t row, bint on):
        """Have no segment of a followed session be read any more, or again; its edits stay in force."""
        if row >= self.table.capacity:
            raise ValueError(f"session {row}: the table has {self.table.capacity} rows")
        streams.mark(self.table.streams.unread, row, on)

    def edit(self, uint32_t row, int direction, uint32_t at, int before, bytes text, last=b""):
        """Have `before` octets of a followed session's stream, from the number `at` on, leave as `text`.

        They must be behind all that was edited there. last: the octet that leaves before them, where the text is empty.
        Raises CapacityError when there is no room for it (`edits_left`), and nothing has changed then.
        """
        cdef uint32_t stream
        stored = text or last
        if not 1 <= before <= 0xFFFF or not 1 <= len(stored) <= TEXT:
            raise ValueError(f"an edit replaces 1 to 65535 octets by at most {TEXT}, not {before} by {len(text)}")
        if not streams.is_marked(self.table.streams.followed, row):
            raise ValueError(f"session {row} is not followed")
        if not self.edits_left(row, direction):
            raise CapacityError(f"no room for another edit of session {row}")
        stream = self._stream(row)
        streams.add_edit(&self.table.streams, stream, direction, at, <uint16_t>before, stored, <uint16_t>len(text),
                         <uint16_t>len(stored))

    cdef uint32_t _stream(self, uint32_t row):
        """Return the stream of a session, plus one, which it is given if it has none; 0 when there is none left."""
        cdef Table *t = &self.table
        cdef uint32_t stream = streams.stream_of(&t.streams, row)
        if stream:
            return stream
        free = np.flatnonzero(self.memory.streams["key0"] == 0) if t.streams.in_use else (0,)
        if len(free) == 0:
            return 0
        self._place_stream(row, free[0])
        return streams.stream_of(&t.streams, row)

    cdef _place_stream(self, uint32_t row, uint32_t place):
        cdef Table *t = &self.table
        cdef Stream *stream
        self._back_streams(place)
        stream = &t.streams.rows[place]
        stream.made[0] = stream.made[1] = 0
        stream.key1 = t.sessions[row].flow[OUTBOUND].key1
        stream.key0 = t.sessions[row].flow[OUTBOUND].key0
        insert(&t.streams.of_session, row, place)
        t.streams.in_use += 1

    def _back_streams(self, place):
        """Have memory for streams up to this one."""
        if self._back is None or place < self._backed_streams:
            return
        capacity = self.table.capacity
        if self._backed_streams == 0:
            self._back(offset_of("streams", capacity), self.memory.streams.nbytes)
        octets = STREAMS_AT_ONCE * EDITS_OF_STREAM * sizeof(Edit)
        at = self._backed_streams // STREAMS_AT_ONCE * octets
        self._back(offset_of("edits", capacity) + at, min(octets, self.memory.edits.nbytes - at))
        self._backed_streams += STREAMS_AT_ONCE
        self._back_streams(place)

    def followers(self):
        """Return the rows of FOLLOWER that outlive the table: of zeros until they are written."""
        if self._back is not None and not self._has_followers:
            self._back(offset_of("followers", self.table.capacity), self.memory.followers.nbytes)
        self._has_followers = True
        return self.memory.followers

    def leaves_as(self, uint32_t row, int direction, uint32_t number):
        """Return the sequence number with which what came with this one leaves."""
        cdef uint32_t stream = streams.stream_of(&self.table.streams, row)
        return streams.leaves_as(&self.table.streams, stream, direction, number) if stream else number

    def is_edited(self, uint32_t row):
        return streams.stream_of(&self.table.streams, row) > 0

    def edits_left(self, uint32_t row, int direction):
        """Return how many edits may be made of a stream now: each pushes out an old one, which must be acknowledged."""
        cdef Table *t = &self.table
        cdef uint32_t stream = streams.stream_of(&t.streams, row)
        cdef uint32_t number, stop
        if stream == 0:
            return EDITS - 1 if t.streams.in_use < len(self.memory.streams) else 0
        number = streams.oldest(&t.streams, stream, direction)
        stop = streams.made(&t.streams, stream, direction)
        while number != stop and self._is_acknowledged(row, stream, direction, number):
            number += 1
        return EDITS - 1 - (stop - number)

    cdef bint _is_acknowledged(self, uint32_t row, uint32_t stream, int direction, uint32_t number):
        """Whether the other end has acknowledged all that an edit leaves, by what path/session.pxd tracks."""
        cdef Table *t = &self.table
        cdef const Edit *edit = streams.edit_at(&t.streams, stream, direction, number)
        cdef uint32_t stop = edit.at + edit.before if direction == OUTBOUND else edit.at + edit.shift + edit.after
        return <int>(t.sessions[row].tcp[1 - direction].ack - stop) >= 0

    def edits(self, uint32_t row, int direction):
        """Return the edits of a session that are remembered, oldest first: (at, shift, before, text) each."""
        cdef Table *t = &self.table
        cdef uint32_t stream = streams.stream_of(&t.streams, row)
        if stream == 0:
            return []
        first, stop = streams.oldest(&t.streams, stream, direction), streams.made(&t.streams, stream, direction)
        places = [((stream - 1) * 2 + direction) * EDITS + (number & (EDITS - 1)) for number in range(first, stop)]
        return [(int(edit["at"]), int(edit["shift"]), int(edit["before"]), edit["text"].tobytes()[:edit["after"]])
                for edit in self.memory.edits[places]]

    def adopt_stream(self, stream, edits):
        """Have the session of a STREAM of a table before, which was adopted, keep its EDITs; return what is wrong, or "".

        Without them its numbers would be others from here on: what cannot go on is closed.
        """
        cdef Table *t = &self.table
        cdef uint64_t key0 = stream["key0"]
        cdef uint64_t key1 = stream["key1"]
        cdef int64_t ref = sessions.find_flow(t, key0, key1, table.key_hash(t, key0, key1))
        cdef uint32_t row, place
        if ref < 0 or rows.direction_of(ref) != OUTBOUND:
            return "no session"
        row = rows.row_of(ref)
        if streams.stream_of(&t.streams, row):
            return "twice"
        if not streams.is_marked(t.streams.followed, row):
            streams.mark(t.streams.followed, row, True)
        if not are_edits(stream["made"], edits.reshape(2, EDITS)) or self._stream(row) == 0:
            sessions.close_session(t, row)
            return "torn"
        place = streams.stream_of(&t.streams, row) - 1
        self.memory.edits[place * EDITS_OF_STREAM:(place + 1) * EDITS_OF_STREAM] = edits
        self.memory.streams[place]["made"] = stream["made"]
        streams.mark(t.streams.unread, row, True)       # who has read it is gone
        return ""

    def expect(self, uint8_t protocol, uint32_t host, uint16_t port, uint32_t remote, uint32_t address, now_ns):
        """Expect one session of an inside endpoint with a remote address (0: any), for a minute, by an external address.

        Returns (row, external port), or the name of the refusal.
        """
        cdef Table *t = &self.table
        cdef Birth birth = sessions.make_birth(protocol, rows.EXPECTED, 0, now_ns // TICK_NS, (now_ns // 1_000_000) & 0xFFFFFFFF)
        cdef int64_t row = opening.expect(t, mappings.external_of(t, address), keys.make_ends(host, port, remote, 0), birth)
        return (row, t.sessions[row].flow[OUTBOUND].sid) if row >= 0 else REFUSALS[row]

    def is_expected(self, uint32_t row, uint32_t host, uint16_t port, uint32_t remote):
        """Return whether the session that `expect` has returned is still expected."""
        cdef const Session *s = &self.table.sessions[row]
        return bool(s.state == rows.EXPECTED and s.flow[rows.INBOUND].daddr == host and s.flow[rows.INBOUND].did == port
                    and s.flow[OUTBOUND].daddr == remote)

    def expected(self):
        """Return the rows of the sessions that are expected."""
        return np.flatnonzero(self.sessions["state"][:self.fresh] == rows.EXPECTED) if self.table.expected else ()

    # -- for who asks that a session be there ----------------------------------------------------------------------

    def prolong(self, uint8_t protocol, uint32_t host, uint16_t port, uint32_t remote, uint16_t remote_port, now_ns):
        """Have the timer of a session begin again, unless its connection has ended; return its external address and port.

        Returns None if there is no session of this inside endpoint with the remote one.
        """
        cdef int64_t row = row_between(&self.table, protocol, keys.make_ends(host, port, remote, remote_port))
        cdef Session *s
        if row < 0:
            return None
        s = &self.table.sessions[row]
        if s.state != rows.TCP_FIN_BOTH and s.state != rows.TCP_TRANSITORY:
            sessions.refresh_session(&self.table, s, now_ns // TICK_NS)
        return s.flow[OUTBOUND].saddr, s.flow[OUTBOUND].sid

    def open_towards(self, uint8_t protocol, uint32_t host, uint16_t port, uint32_t remote, uint16_t remote_port,
                     uint32_t address, uint16_t wanted, now_ns):
        """Open the session of an inside endpoint with a remote one by an external address, before either sends anything.

        wanted: the port there if that is possible, of an endpoint that has none; 0: any. A TCP connection may begin, or go on
        as if this had been a restart. Returns the row of the session, which may be there already, or the name of the refusal.
        """
        cdef uint8_t first = rows.TCP_RESUMED if protocol == numbers.TCP else rows.UDP_ACTIVE
        cdef Birth birth = sessions.make_birth(protocol, first, 0, now_ns // TICK_NS, (now_ns // 1_000_000) & 0xFFFFFFFF)
        cdef Ends ends = keys.make_ends(host, port, remote, remote_port)
        cdef int64_t row = row_between(&self.table, protocol, ends)
        if row < 0:
            row = opening.open_towards(&self.table, mappings.external_of(&self.table, address), ends, birth,
                                       <int>wanted if wanted else ports.NO_PORT)
        return row if row >= 0 else REFUSALS[row]

    def close_unused(self, uint8_t protocol, uint32_t host, uint16_t port, uint32_t remote, uint16_t remote_port):
        """Close a session that has had no packet, if there is one."""
        cdef int64_t row = row_between(&self.table, protocol, keys.make_ends(host, port, remote, remote_port))
        if row >= 0 and self.table.sessions[row].flow[0].packets + self.table.sessions[row].flow[1].packets == 0:
            sessions.close_session(&self.table, <uint32_t>row)

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def fresh(self):
        """Rows from here on were never used: a snapshot need not look at them."""
        return self.table.fresh

    @property
    def has_adopted_proxied(self):
        """Whether sessions with programs of this host are among those that were adopted."""
        return self.table.adopted_proxied > 0

    def counts(self):
        """Return what is open and what has been, as a dict of integers."""
        cdef Table *t = &self.table
        return {
            "active": t.active, "capacity": t.capacity, "tcp": t.active_by_class[numbers.CLASS_TCP],
            "udp": t.active_by_class[numbers.CLASS_UDP], "icmp": t.active_by_class[numbers.CLASS_ICMP],
            "mappings": t.mappings_in_use, "hosts": t.hosts_in_use, "adopted": t.adopted, "opened_total": sum(t.opened_by_class),
            "opened_tcp": t.opened_by_class[numbers.CLASS_TCP], "opened_udp": t.opened_by_class[numbers.CLASS_UDP],
            "opened_icmp": t.opened_by_class[numbers.CLASS_ICMP], "opened_other": t.opened_by_class[rows.CLASS_NONE],
            "closed_total": t.closed, "expired_total": t.expired,
        }

    def carried(self):
        """Return (packets, octets) that the kernel has carried of all sessions there ever were."""
        cdef Table *t = &self.table
        now = self.memory.carried[:t.fresh]
        return t.carried_packets + int(now["packets"].sum()), t.carried_octets + int(now["octets"].sum())

    def keep_carried(self, *, bint exactly=False):
        """Have what is kept of sessions that the kernel carries say when they end now, and what they had; the path may run.

        exactly: all that there is to say, as the kernel carries none any more, and the path stands still.
        """
        cdef Table *t = &self.table
        cdef uint32_t row
        if t.kept == NULL:
            return
        with nogil:
            for row in range(t.fresh):
                if not carried.has_ticket(t, row):
                    continue
                if exactly:
                    carried.take_ticket(t, row)
                    carried.keep(t, row)
                else:
                    t.kept[row].expires = t.sessions[row].expires
                    carried.keep_counts(t, row)

    @property
    def carried_rows(self):
        """Rows of rows.CARRIED beside those of `sessions`; empty where the kernel carries none."""
        return self.memory.carried

    @property
    def tallies(self):
        """Rows of rows.TALLY beside those of `sessions`; empty where the kernel carries none."""
        return self.memory.tallies

    def timeout_ns(self, state):
        return self.table.timeout[state] * TICK_NS

    def mapped_ports(self, address):
        """Return which ports of an external address have a mapping, bool[3][65536] by class."""
        cdef int external = mappings.external_of(&self.table, address)
        if external < 0:
            return np.zeros((numbers.CLASS_COUNT, PORTS), bool)
        in_use = self._in_use(external)
        return (in_use != rows.MAPPING_FREE) & (in_use != rows.MAPPING_HELD_DOWN)

    def orphans(self):
        """Return (address, class, port) of the external endpoints that are nobody's but for their sessions."""
        return {(self.table.external[external], int(port_class), int(port))
                for external in range(EXTERNALS) if self.table.external[external]
                for port_class, port in np.argwhere(self._in_use(external) == rows.MAPPING_ORPHAN)}

    def _in_use(self, int external):
        """Return what the mappings of an external row are, by class and port."""
        span = numbers.CLASS_COUNT * PORTS
        of_external = self.mappings["in_use"][external * span:(external + 1) * span]
        return of_external.reshape(numbers.CLASS_COUNT, PORTS)

    def is_mapped(self, address, int port_class, uint16_t port):
        return mappings.find_external(&self.table, address, port_class, port) != rows.NONE

    def external_of(self, int port_class, uint32_t host, uint16_t port):
        """Return (address, port) of the external endpoint that an inside endpoint has, or a forward of it; None without."""
        cdef Table *t = &self.table
        cdef int external = mappings.external_for(t, host)
        cdef uint32_t hash = <uint32_t>mappings.endpoint_hash(t, port_class, host, port)
        cdef uint32_t row = mappings.find_internal(t, external, port_class, host, port, hash)
        return None if row == rows.NONE else (mappings.mapping_address(t, row), mappings.row_port(row))

    def is_free(self, address, int port_class, uint16_t port, uint32_t host):
        """Whether nobody has an external endpoint, nor has just had it, but for this host (see holds.pxd)."""
        cdef Table *t = &self.table
        cdef int external = mappings.external_of(t, address)
        cdef Mapping *mapping
        if external < 0:
            return True
        mapping = &t.mappings[mappings.mapping_row(external, port_class, port)]
        return mapping.in_use == rows.MAPPING_FREE or (mapping.in_use == rows.MAPPING_HELD_DOWN and mapping.address == host)

    # -- the calls of the path, one at a time, for tests and benchmarks --------------------------------------------

    def open(self, uint8_t protocol, uint32_t saddr, uint16_t sid, uint32_t daddr, uint16_t did, now_ns):
        """Open a session; return its row, or the name of the refusal."""
        cdef uint8_t first = (rows.TCP_SYN_SENT, rows.UDP_ACTIVE, rows.ICMP_ACTIVE)[rows.class_of(protocol)]
        cdef Birth birth = sessions.make_birth(protocol, first, 0, now_ns // TICK_NS, (now_ns // 1_000_000) & 0xFFFFFFFF)
        cdef Ends ends = keys.make_ends(saddr, sid, daddr, did)
        cdef int64_t row = opening.open_session(&self.table, mappings.external_for(&self.table, saddr), ends, birth, False)
        return row if row >= 0 else REFUSALS[row]

    def close(self, uint32_t row):
        sessions.close_session(&self.table, row)

    def find(self, uint8_t protocol, int side, uint32_t saddr, uint16_t sid, uint32_t daddr, uint32_t did):
        """Return (row, direction) of the flow that a packet with these fields belongs to, or None.

        side is INSIDE (0) or OUTSIDE (1), plus KEY_REPLY (2) for an ICMP reply.
        """
        cdef uint64_t key0 = keys.make_key0(saddr, daddr)
        cdef uint64_t key1 = keys.make_key1(protocol, <uint8_t>side, sid, did)
        cdef int64_t ref = sessions.find_flow(&self.table, key0, key1, table.key_hash(&self.table, key0, key1))
        return None if ref < 0 else (rows.row_of(ref), rows.direction_of(ref))

    def find_many(self, const uint64_t[:, ::1] wanted):
        """Look up every (key0, key1); return how many were found. For benchmarks."""
        cdef int found = 0
        cdef Py_ssize_t i
        with nogil:
            for i in range(wanted.shape[0]):
                if sessions.find_flow(&self.table, wanted[i, 0], wanted[i, 1],
                                      table.key_hash(&self.table, wanted[i, 0], wanted[i, 1])) >= 0:
                    found += 1
        return found

    def refresh(self, uint32_t row, now_ns):
        sessions.refresh_session(&self.table, &self.table.sessions[row], now_ns // TICK_NS)

    def retime(self, uint32_t row, uint8_t state, now_ns):
        self.table.sessions[row].state = state
        sessions.retime_session(&self.table, row, now_ns // TICK_NS)

    def expire(self, now_ns, int budget=1 << 30):
        """Close what is dead at `now_ns`, and what goes first if something is short; return how many rows were due."""
        cdef int looked = sessions.expire_sessions(&self.table, now_ns // TICK_NS, budget)
        shortage.relieve(&self.table, now_ns // TICK_NS, budget)
        return looked

    def admits(self, address, int port_class, uint16_t port, uint32_t remote):
        mapping = mappings.find_external(&self.table, address, port_class, port)
        return mapping != rows.NONE and bool(admits(&self.table, mapping, remote))

    @staticmethod
    def siphash(secret, uint64_t word0, uint64_t word1):
        """SipHash-1-3 of two little-endian words under a 16-byte secret."""
        cdef Table t
        t.secret.k0 = int.from_bytes(secret[:8], "little")
        t.secret.k1 = int.from_bytes(secret[8:], "little")
        return siphash.siphash(&t.secret, word0, word1)
