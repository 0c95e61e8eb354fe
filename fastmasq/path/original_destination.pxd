# The original destination of a proxied connection, told to its program by the map of kernel/bpf/original_destination.py.
#
# One system call for each proxied TCP session that is opened; none for its other packets. An entry that cannot be made
# is not made: the program then sees its own address. A map is of one process: that of the next is told of the sessions adopted.

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmasq.path.state cimport Path
from fastmasq.table.keys cimport LOCAL, key_daddr, key_did, key_saddr, key_sid, key_side
from fastmasq.table.rows cimport Flow, INBOUND, OUTBOUND, STATE_FREE, Session
from fastmasq.wire.numbers cimport CLASS_TCP
from fastmasq.wire.octets cimport htonl, htons

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef enum:
    BPF_MAP_UPDATE_ELEM = 2


cdef struct OriginalKey:
    # addresses and remote_port as they are on the wire
    uint64_t namespace_cookie
    uint32_t local
    uint32_t remote
    uint32_t local_port         # host order
    uint32_t remote_port

cdef struct OriginalValue:
    uint32_t address
    uint16_t port
    uint16_t reserved

cdef struct MapUpdate:
    uint32_t map
    uint32_t reserved
    uint64_t key
    uint64_t value
    uint64_t flags


cdef inline void tell_original_destination(const Path *p, const Session *s) noexcept nogil:
    """Let the program that a session leads to learn what its client asked for."""
    cdef const Flow *flow = &s.flow[INBOUND]
    cdef OriginalKey key
    cdef OriginalValue value
    cdef MapUpdate update
    if p.destination_map < 0:
        return
    memset(&key, 0, sizeof(key))
    memset(&value, 0, sizeof(value))
    key.namespace_cookie = p.namespace_cookie
    key.local = htonl(flow.daddr)
    key.remote = htonl(key_saddr(flow.key0))
    key.local_port = flow.did
    key.remote_port = htons(key_sid(flow.key1))
    value.address = htonl(key_daddr(flow.key0))
    value.port = htons(<uint16_t>key_did(flow.key1))
    update.map = <uint32_t>p.destination_map
    update.reserved = 0
    update.key = <uint64_t><size_t>&key
    update.value = <uint64_t><size_t>&value
    update.flags = 0
    syscall(p.bpf_call, BPF_MAP_UPDATE_ELEM, &update, sizeof(update))


cdef inline void tell_original_destinations(const Path *p) noexcept nogil:
    """The same of all sessions with programs that are open."""
    cdef const Session *s
    cdef uint32_t row
    for row in range(p.table.fresh):
        s = &p.table.sessions[row]
        if s.state != STATE_FREE and s.port_class == CLASS_TCP and key_side(s.flow[OUTBOUND].key1) == LOCAL:
            tell_original_destination(p, s)
