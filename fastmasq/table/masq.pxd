# MasqTable, declared for those who work on its C struct: the packet path, and the table of forwards.

from libc.stdint cimport uint32_t

from fastmasq.table.table cimport Table


cdef class MasqTable:
    cdef Table table
    cdef readonly object sessions, mappings, hosts
    cdef object memory
    cdef uint32_t _ready        # rows whose memory is there
