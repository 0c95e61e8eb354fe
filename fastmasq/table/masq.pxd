# MasqTable, declared for those who work on its C struct: the packet path, and the table of forwards.

from libc.stdint cimport uint32_t, uint64_t

from fastmasq.table.table cimport Table


cdef class MasqTable:
    cdef Table table
    cdef readonly object sessions, mappings, hosts
    cdef readonly object memory
    cdef object _back
    cdef set _backed_externals
    cdef uint32_t _backed_streams
    cdef bint _has_followers
    cdef bint _is_ready
    cdef bint _is_shared
    cdef int row_of_external(self, uint32_t address, wanted) except -1
    cdef give_external(self, int row, uint32_t address)
    cdef take_secret(self, uint64_t k0, uint64_t k1)
    cpdef reserve(self, uint32_t ahead)
    cdef uint32_t _stream(self, uint32_t row)
    cdef _place_stream(self, uint32_t row, uint32_t place)
    cdef bint _is_acknowledged(self, uint32_t row, uint32_t stream, int direction, uint32_t number)
