# Which remote addresses may send to a mapping without a session of their own (RFC 4787 section 5).

from libc.stdint cimport uint32_t, uint64_t

from fastmasq.table cimport permits, siphash, table
from fastmasq.table.table cimport Table


cdef inline uint64_t permit_fingerprint(const Table *t, uint32_t mapping, uint32_t remote) noexcept nogil:
    return siphash.siphash(&t.secret, (<uint64_t>mapping << 32) | remote, <uint64_t>0x5045 << 48)


cdef inline bint admits(const Table *t, uint32_t mapping, uint32_t remote) noexcept nogil:
    """Whether a remote address without a session of its own may send to a mapping."""
    if t.filtering == table.ENDPOINT_INDEPENDENT:
        return True
    if t.filtering == table.ADDRESS_AND_PORT_DEPENDENT:
        return False
    return permits.is_held_in_either(&t.permits, &t.old_permits, permit_fingerprint(t, mapping, remote))


cdef inline void permit_remote(Table *t, uint32_t mapping, uint32_t remote) noexcept nogil:
    """Note that a mapping has a session more with a remote address."""
    cdef uint64_t fingerprint
    if t.filtering == table.ADDRESS_DEPENDENT:
        fingerprint = permit_fingerprint(t, mapping, remote)
        permits.grant(permits.holder(&t.permits, &t.old_permits, fingerprint), fingerprint)


cdef inline void withdraw_permit(Table *t, uint32_t mapping, uint32_t remote) noexcept nogil:
    """Note that a mapping has a session less with a remote address."""
    cdef uint64_t fingerprint
    if t.filtering == table.ADDRESS_DEPENDENT:
        fingerprint = permit_fingerprint(t, mapping, remote)
        permits.revoke(permits.holder(&t.permits, &t.old_permits, fingerprint), fingerprint)
