# The octets under a row that is compared with its mirror (rows.py).

from libc.string cimport memcpy


cdef inline void lay_pattern(void *row, bytes octets) noexcept:
    memcpy(row, <const char *>octets, len(octets))
