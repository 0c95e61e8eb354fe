# Inside hosts: what each holds of the table and of the ports, and how fast it may open sessions.
#
# A row goes with the last session of its host. Limits keep one host from taking what all share (RFC 6888 REQ-4): those of
# the configuration, and one that follows from what is left. A host may hold at most as much as is still free, and so may
# all hosts of its network together, since one host easily has many addresses. So whoever takes all he can leaves as much
# as he has, and there is always something for who has nothing yet.

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmasq.table cimport bucket, index, rows, siphash, table
from fastmasq.table.rows cimport Host, Network
from fastmasq.table.table cimport Table

cdef enum:
    HOSTS = 65536               # and networks


cdef inline uint32_t host_hash(const Table *t, uint32_t address) noexcept nogil:
    return <uint32_t>siphash.siphash(&t.secret, address, <uint64_t>0x484f << 48)


cdef inline uint32_t find_host(const Table *t, uint32_t address, uint32_t hash) noexcept nogil:
    cdef uint32_t at = hash & t.host_index.mask
    cdef uint32_t row
    while True:
        row = t.host_index.entries[at].ref
        if row == 0:
            return rows.NONE
        row -= 1
        if t.host_index.entries[at].hash == hash and t.hosts[row].address == address:
            return row
        at = (at + 1) & t.host_index.mask


cdef inline bint has_share(const Table *t, uint32_t of_host, uint32_t of_network, uint32_t left) noexcept nogil:
    """Whether a holder of so much may have more, where so much is left."""
    return not t.limits.shares or (of_host < left and of_network < left)


cdef inline uint32_t network_hash(const Table *t, uint32_t address) noexcept nogil:
    return <uint32_t>siphash.siphash(&t.secret, address, <uint64_t>0x4e45 << 48)


cdef inline uint32_t find_network(const Table *t, uint32_t address, uint32_t hash) noexcept nogil:
    """Return the row of a network, or NONE."""
    cdef uint32_t at = hash & t.network_index.mask
    cdef uint32_t row
    while t.network_index.entries[at].ref:
        row = t.network_index.entries[at].ref - 1
        if t.network_index.entries[at].hash == hash and t.networks[row].address == address:
            return row
        at = (at + 1) & t.network_index.mask
    return rows.NONE


cdef inline uint32_t join_network(Table *t, uint32_t address) noexcept nogil:
    """Return the row of a host's network, which has one host more now. There always is one: each has a host."""
    cdef uint32_t network = address & t.limits.network_mask
    cdef uint32_t hash = network_hash(t, network)
    cdef uint32_t row = find_network(t, network, hash)
    if row == rows.NONE:
        row = t.network_free
        if row != rows.NONE:
            t.network_free = t.networks[row].next_free
        else:
            row = t.network_fresh
            t.network_fresh += 1
        memset(&t.networks[row], 0, sizeof(Network))
        t.networks[row].address = network
        index.insert(&t.network_index, hash, row)
    t.networks[row].hosts += 1
    return row


cdef inline void leave_network(Table *t, uint32_t row) noexcept nogil:
    cdef Network *network = &t.networks[row]
    network.hosts -= 1
    if network.hosts == 0:
        index.remove(&t.network_index, network_hash(t, network.address), row)
        network.next_free = t.network_free
        t.network_free = row


cdef inline Network *network_of(const Table *t, uint32_t host) noexcept nogil:
    return &t.networks[t.hosts[host].network]


cdef inline void count_session(Table *t, uint32_t host, int change) noexcept nogil:
    """Count one session more or less of a host."""
    t.hosts[host].sessions += change
    network_of(t, host).sessions += change


cdef inline void count_port(Table *t, uint32_t host, int port_class, int change) noexcept nogil:
    t.hosts[host].ports[port_class] += change
    network_of(t, host).ports[port_class] += change


cdef inline uint32_t take_host(Table *t, uint32_t address, uint32_t hash, uint32_t now_ms) noexcept nogil:
    """Give an inside address a row and a full bucket; NONE when there are HOSTS already."""
    cdef uint32_t row = t.host_free
    if row != rows.NONE:
        t.host_free = t.hosts[row].next_free
    elif t.host_fresh < t.host_capacity:
        row = t.host_fresh
        t.host_fresh += 1
    else:
        return rows.NONE
    memset(&t.hosts[row], 0, sizeof(Host))
    t.hosts[row].address = address
    bucket.fill(&t.hosts[row].bucket, now_ms, t.limits.burst_per_host)
    t.hosts[row].network = join_network(t, address)
    t.hosts_in_use += 1
    index.insert(&t.host_index, hash, row)
    return row


cdef inline void give_back_unused_host(Table *t, uint32_t row) noexcept nogil:
    """Give back the row of a host that has no sessions, if this one has none."""
    if t.hosts[row].sessions:
        return
    index.remove(&t.host_index, host_hash(t, t.hosts[row].address), row)
    leave_network(t, t.hosts[row].network)
    t.hosts[row].address = 0
    t.hosts[row].next_free = t.host_free
    t.host_free = row
    t.hosts_in_use -= 1


cdef inline int64_t sharing_host(Table *t, uint32_t address, uint32_t now_ms) noexcept nogil:
    """Return the row of the host whose share a new session is of, a new row if it has none; or a Refusal."""
    cdef uint32_t hash = host_hash(t, address)
    cdef uint32_t host = find_host(t, address, hash)
    cdef uint32_t of_host = 0
    cdef uint32_t network
    if host == rows.NONE:
        network = find_network(t, address & t.limits.network_mask, network_hash(t, address & t.limits.network_mask))
        if network != rows.NONE and not has_share(t, 0, t.networks[network].hosts, t.host_capacity - t.hosts_in_use):
            return table.REFUSED_NETWORK
    else:
        network = t.hosts[host].network
        of_host = t.hosts[host].sessions
        if of_host >= t.limits.sessions_per_host or not has_share(t, of_host, 0, t.capacity - t.active):
            return table.REFUSED_HOST_SESSIONS
    if network != rows.NONE and not has_share(t, 0, t.networks[network].sessions, t.capacity - t.active):
        return table.REFUSED_NETWORK
    if host == rows.NONE:
        host = take_host(t, address, hash, now_ms)
        if host == rows.NONE:
            return table.REFUSED_HOST_TABLE_FULL
    return host


cdef inline int64_t paying_host(Table *t, uint32_t address, uint32_t now_ms) noexcept nogil:
    """The same for a session that the host opens itself: it takes one of those that its rate allows."""
    cdef int64_t host = sharing_host(t, address, now_ms)
    if (host >= 0 and t.limits.rate_per_host
            and not bucket.take_token(&t.hosts[host].bucket, now_ms, t.limits.rate_per_host, t.limits.burst_per_host)):
        return table.REFUSED_HOST_RATE
    return host
