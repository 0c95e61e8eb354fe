# A session that the table refuses: what its packet is dropped for, and what its sender is told.

from libc.stdint cimport int64_t, uint8_t

from fastmasq.path cimport verdict
from fastmasq.path.packet cimport Packet, refused
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport table
from fastmasq.wire cimport icmp


cdef inline Outcome reason_of(int64_t refusal) noexcept nogil:
    if refusal == table.REFUSED_TABLE_FULL:
        return verdict.TABLE_FULL
    if refusal == table.REFUSED_PORTS_EXHAUSTED:
        return verdict.PORTS_EXHAUSTED
    if refusal == table.REFUSED_HOST_SESSIONS:
        return verdict.HOST_SESSION_LIMIT
    if refusal == table.REFUSED_HOST_PORTS:
        return verdict.HOST_PORT_LIMIT
    if refusal == table.REFUSED_HOST_RATE:
        return verdict.HOST_RATE_LIMIT
    if refusal == table.REFUSED_HOST_TABLE_FULL:
        return verdict.HOST_TABLE_FULL
    if refusal == table.REFUSED_CLASH:
        return verdict.ENDPOINT_CLASH
    if refusal == table.REFUSED_NETWORK:
        return verdict.NETWORK_LIMIT
    if refusal == table.REFUSED_HALF_OPEN:
        return verdict.HALF_OPEN_LIMIT
    return verdict.NO_EXTERNAL_ADDRESS


cdef inline Outcome refuse_inside(Packet *packet, int64_t refusal) noexcept nogil:
    """Tell an inside host: its own share (3/13), or a shared resource (3/1) (RFC 5508 REQ-8, 6888 REQ-11)."""
    cdef uint8_t code = icmp.ADMINISTRATIVELY_PROHIBITED
    if refusal == table.REFUSED_NO_EXTERNAL:
        code = icmp.NET_UNREACHABLE
    elif (refusal == table.REFUSED_TABLE_FULL or refusal == table.REFUSED_PORTS_EXHAUSTED
          or refusal == table.REFUSED_HOST_TABLE_FULL):
        code = icmp.HOST_UNREACHABLE
    return refused(packet, reason_of(refusal), icmp.DESTINATION_UNREACHABLE, code, 0)
