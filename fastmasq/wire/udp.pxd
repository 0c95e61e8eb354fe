# The UDP header (RFC 768): offsets.

cdef enum:
    UDP_LENGTH_OCTETS = 8       # of the header
    UDP_SOURCE = 0
    UDP_DESTINATION = 2
    UDP_LENGTH = 4
    UDP_CHECKSUM = 6
