# MasqTable, declared for those who work on its C struct: the packet path, and the table of forwards.

from fastmasq.table.table cimport Table


cdef class MasqTable:
    cdef Table table
    cdef readonly object sessions, mappings, hosts
    cdef object memory
    cdef bint _is_ready
