# The translation state as one struct: sessions found by their 16-octet key, with mapping, port, host and timer.
#
# Theory of operation. A *session* is one row of 128 octets with two mirrored flows; both flows are in one index, so one
# lookup serves both directions (sessions.pxd). A *mapping* is the external endpoint that an internal endpoint has been given,
# the same for every remote (RFC 4787 REQ-1); its row number *is* the external endpoint, so that inbound packets without a
# session find it by arithmetic (mappings.pxd). Sessions hold their mapping open; the last one to close gives the port back,
# which is then held down for a while (holds.pxd). A *host* row counts what one inside address holds, a *network* row what all
# with one prefix hold, so that neither can take the table or the ports (hosts.pxd). Sessions are opened in as many ways as
# there are in opening.pxd. What nobody has answered goes before its time while something is short (shortage.pxd).
#
# A table's sessions and mappings may outlive it, and whoever writes them may be killed anywhere (adoption.pyx reads what is then
# there). So there is an order of writes:
#
# * A row of a session counts while its `state` is not STATE_FREE. That is written last when one is opened, and first when one is
#   closed; flows and mapping do not change between. What does - state, timer, counts, what TCP ends have said - is written in
#   words that stand for themselves, and a flag that a number is known after the number.
# * A mapping is there, `in_use` written last, before the first session on it, and is given back after the last. What lies in it
#   means what `in_use` says at every moment, but for `host` and `sessions`, which are counted anew.
# * An external address is taken away before the rows of its mappings are emptied, and put there after.
#
# * An edit of a stream is written before it counts (streams.pxd), and all that is said of it before the packet leaves.
#
# keep_order (order.pxd) stands where a compiler could change that; a processor shows others what it writes in its order once
# the writer is dead. tests/support/stopped.py holds the built code to it: a table, and the path, are stopped at each of their
# writes, and what is left is adopted, and compared with what the executable model knew.
#
# Nothing here allocates, and no call does an unbounded amount of work except the choice of a port from a nearly empty pool
# (at most 1024 words, or as many ports under 1024). A full table refuses the new session and touches no old one (RFC 6888
# REQ-11).
#
# Size: 128 octets a session, 32 in the index, 16 in the permits, and for its mapping 20 + 16 at the most: 212. While there are
# few sessions, or few mappings, their indexes are smaller (growth.pxd).

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from fastmasq.table cimport rows, siphash
from fastmasq.table.forwards cimport ForwardSet
from fastmasq.table.index cimport Index, OldIndex
from fastmasq.table.permits cimport OldPermitSet, PermitSet
from fastmasq.table.ports cimport PortPool
from fastmasq.table.rows cimport Carried, Host, Mapping, Network, Session, Tally
from fastmasq.table.siphash cimport Secret
from fastmasq.table.streams cimport StreamSet
from fastmasq.table.wheel cimport Wheel
from fastmasq.wire cimport numbers

cdef enum:
    EXTERNALS = 4               # external addresses at once: the present ones, those of forwards, and those that are ending
    POOLS = EXTERNALS * numbers.CLASS_COUNT
    PORTS = 65536
    SIZES = 4                   # of indexes at the most: YOUNG (growth.pxd), sixteen times that, and so on

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
    REFUSED_NETWORK = -10       # the host's network has as much as is left


cdef struct Limits:
    uint32_t sessions_per_host
    uint32_t ports_per_host     # of each class
    uint32_t rate_per_host      # new sessions a second; 0: any
    uint32_t burst_per_host
    uint32_t network_mask       # hosts with the same address under it are one holder
    bint shares                 # nobody may have more than is left, no host and no network


cdef struct HoldQueue:          # ports held down, in the order of their times; 0, which is never given, ends it
    uint16_t first
    uint16_t last
    uint32_t count              # of ports that are not low (ports.pxd)


cdef struct Growth:             # of the indexes by which sessions are found, or mappings
    uint32_t rows[SIZES]        # that those of each size are for, the smallest first
    int sizes                   # that there are
    int size                    # of those in use
    int ready                   # first of the sizes that there is no memory for


cdef struct RestQueue:          # rows of sessions, linked by timer_next; NONE in both: without any
    uint32_t first
    uint32_t last


cdef struct Table:
    Session *sessions
    uint32_t capacity
    uint32_t backed             # rows of sessions that there is memory for; those from here on must not be touched yet
    uint32_t low_water          # row from which on more are wanted, or NONE
    bint asks_for_memory        # the daemon has not been told yet
    uint32_t fresh              # rows [fresh, backed) were never used
    uint32_t free_row           # first of the rows given back, linked by timer_next
    Carried *carried            # beside each session; NULL: the kernel carries none
    Tally *tallies              # beside those
    Session *kept               # what outlives us of sessions that lie elsewhere; NULL: nothing, or they do themselves
    uint32_t tickets            # the last one that was given
    RestQueue resting           # rows given back in this tick that had one
    RestQueue rested            # and in the tick before
    uint64_t carried_packets    # of the sessions that were in rows before those that are there
    uint64_t carried_octets
    uint32_t active
    uint32_t active_by_class[rows.SESSION_CLASSES]
    Index index
    Mapping *mappings           # [POOLS][PORTS]
    Index mapping_index
    uint32_t mappings_in_use    # dynamic ones
    ForwardSet forwards
    PermitSet permits
    OldIndex old_index          # what these three take the place of, until it is empty
    OldIndex old_mapping_index
    OldPermitSet old_permits
    Index indexes[SIZES]        # of each size
    Index mapping_indexes[SIZES]
    PermitSet permit_sets[SIZES]    # of the sizes of the indexes of sessions
    Growth growth
    Growth mapping_growth
    StreamSet streams           # of TCP connections that are followed
    uint32_t expected           # sessions that wait for a remote's first packet
    Host *hosts
    uint32_t host_capacity
    uint32_t host_fresh
    uint32_t host_free
    uint32_t hosts_in_use
    Index host_index
    Network *networks
    uint32_t network_fresh
    uint32_t network_free
    Index network_index
    PortPool pools[POOLS]       # [EXTERNALS][CLASS_COUNT]
    HoldQueue held[POOLS]
    uint32_t external[EXTERNALS]    # addresses; 0 is an unused row
    int current                 # row of the external address for new mappings, or -1
    int pool[EXTERNALS]         # rows that inside hosts are dealt out to, if there are any
    int pool_size
    Wheel wheel
    uint32_t timeout[rows.STATE_COUNT]    # ticks
    Filtering filtering
    Limits limits
    uint32_t now                # the last tick that expire_sessions was told
    uint32_t short_second       # in which it was last asked whether something is short (shortage.pxd)
    uint32_t short_rows         # rows [0, short_rows) are still to be looked at for what nobody has answered
    bint sequential             # ports as in 1999: never kept, ascending
    uint32_t next_sequential
    Secret secret
    uint64_t random
    uint64_t opened_by_class[rows.SESSION_CLASSES]
    uint64_t adopted            # sessions of a table before this one
    uint64_t adopted_proxied    # those with programs of this host among them
    uint64_t closed
    uint64_t expired


cdef inline bint is_full(const Table *t) noexcept nogil:
    """Whether no row of a session can be taken."""
    return t.free_row == rows.NONE and t.fresh >= t.backed


cdef inline uint64_t next_random(Table *t) noexcept nogil:
    """Return 64 bits nobody can foresee without the secret: SipHash of a counter."""
    t.random += 1
    return siphash.siphash(&t.secret, t.random, 0x72616e646f6d)


cdef inline uint32_t key_hash(const Table *t, uint64_t key0, uint64_t key1) noexcept nogil:
    return <uint32_t>siphash.siphash(&t.secret, key0, key1)
