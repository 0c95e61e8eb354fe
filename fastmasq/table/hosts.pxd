# Inside hosts: what each holds of the table and of the ports, and how fast it may open sessions.
#
# A row goes with the last session of its host. Limits keep one host from taking what all share (RFC 6888 REQ-4).

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmasq.table cimport index, rows, siphash, table
from fastmasq.table.rows cimport Host
from fastmasq.table.table cimport Table

cdef enum:
    HOSTS = 65536
    TOKEN = 1000                # tokens are counted in thousandths: a rate a second is one a millisecond


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
    t.hosts[row].tokens = t.limits.burst_per_host * TOKEN
    t.hosts[row].stamp_ms = now_ms
    t.hosts_in_use += 1
    index.insert(&t.host_index, hash, row)
    return row


cdef inline void give_back_host(Table *t, uint32_t row) noexcept nogil:
    index.remove(&t.host_index, host_hash(t, t.hosts[row].address), row)
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
    if tokens > <uint64_t>t.limits.burst_per_host * TOKEN:
        tokens = <uint64_t>t.limits.burst_per_host * TOKEN
    host.stamp_ms = now_ms
    host.tokens = <uint32_t>tokens
    if tokens < TOKEN:
        return False
    host.tokens -= TOKEN
    return True


cdef inline int64_t sharing_host(Table *t, uint32_t address, uint32_t now_ms) noexcept nogil:
    """Return the row of the host whose share a new session is of, a new row if it has none; or a Refusal."""
    cdef uint32_t hash = host_hash(t, address)
    cdef uint32_t host = find_host(t, address, hash)
    if host == rows.NONE:
        host = take_host(t, address, hash, now_ms)
        if host == rows.NONE:
            return table.REFUSED_HOST_TABLE_FULL
    elif t.hosts[host].sessions >= t.limits.sessions_per_host:
        return table.REFUSED_HOST_SESSIONS
    return host


cdef inline int64_t paying_host(Table *t, uint32_t address, uint32_t now_ms) noexcept nogil:
    """The same for a session that the host opens itself, which its rate must allow."""
    cdef int64_t host = sharing_host(t, address, now_ms)
    if host >= 0 and not host_may_open(t, <uint32_t>host, now_ms):
        return table.REFUSED_HOST_RATE
    return host
