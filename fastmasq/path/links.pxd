# Links, routes and next hops, in the rows that the daemon writes for the path; `rows.py` mirrors them for numpy.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmasq.wire cimport ethernet

cdef enum:
    LINKS = 16
    NO_LINK = 0xFF
    HOPS = 16384
    NO_HOP_ROW = 0xFFFF         # of a waiting packet whose next hop is looked up anew

cdef enum:                 # kinds of routes
    ROUTE_UNREACHABLE = 0
    ROUTE_UNICAST = 1
    ROUTE_LOCAL = 2
    ROUTE_BROADCAST = 3
    ROUTE_MULTICAST = 4
    ROUTE_BLACKHOLE = 5

cdef enum:                 # states of next hops
    HOP_INCOMPLETE = 0
    HOP_VALID = 1
    HOP_FAILED = 2


cdef struct Link:
    uint32_t address            # primary IPv4 address, 0 without
    uint32_t mtu
    uint8_t side                # INSIDE, OUTSIDE or LOCAL
    uint8_t up
    uint8_t header_length       # ethernet.LENGTH, or 0 where frames start at the IP header
    uint8_t mac[ethernet.MAC]
    uint8_t reserved[3]

cdef struct Route:
    uint32_t gateway            # 0: the destination is on the link
    uint32_t mtu                # 0: the link's
    uint8_t kind                # ROUTE_UNICAST and so on
    uint8_t link
    uint8_t reserved[2]

cdef struct Hop:
    uint8_t header[ethernet.LENGTH]   # the link header to write
    uint8_t link
    uint8_t state               # HOP_VALID and so on
    uint32_t address            # 0 on links without neighbours
    uint32_t mtu                # of the link and the route
    uint32_t used               # packets sent since the daemon last asked
    uint16_t held
    uint8_t wanted              # the daemon is to resolve it
    uint8_t header_length
