# MasqTable, declared for those who work on its C struct: the packet path, and the table of forwards.

from libc.stdint cimport uint32_t, uint64_t

from fastmasq.table.table cimport Table


cdef class MasqTable:
    cdef Table table
    cdef readonly object sessions, mappings, hosts
    cdef readonly object memory
    cdef object _back
    cdef set _backed_externals
    cdef bint _is_ready
    cdef int row_of_external(self, uint32_t address, wanted) except -1
    cdef give_external(self, int row, uint32_t address)
    cdef take_secret(self, uint64_t k0, uint64_t k1)
    cpdef reserve(self, uint32_t ahead)
