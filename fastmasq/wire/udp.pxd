# The UDP header (RFC 768): offsets.

cdef enum:
    MINIMUM = 8                 # of the header
    SOURCE = 0
    DESTINATION = 2
    LENGTH = 4
    CHECKSUM = 6
