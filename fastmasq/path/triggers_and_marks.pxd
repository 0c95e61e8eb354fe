# Sessions from outside that policy opens besides forwards: by triggers and by marks, on external endpoints that nobody owns.
#
# Without any row the path has none of this, and asks one pointer.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from fastmasq.path.marks cimport Marks
from fastmasq.path.triggers cimport Triggers
from fastmasq.table.ports cimport POOL_WORDS

cdef enum:
    PORT_CLASSES = 2            # TCP and UDP


cdef struct TriggersAndMarks:
    Triggers triggers
    Marks marks
    uint32_t half_open_limit    # of each external endpoint
    uint64_t ours[PORT_CLASSES][POOL_WORDS]  # ports kept for triggers and marks, and all that a direct row may keep


cdef inline bint is_kept_port(const TriggersAndMarks *t, int port_class, uint16_t port) noexcept nogil:
    """Whether a port of this class, TCP or UDP, is one of ours for what is here, be it one for mappings or not."""
    return (t.ours[port_class][port >> 6] >> (port & 63)) & 1


cdef class TriggerTable:
    cdef TriggersAndMarks rows
