# Links, routes and next hops, in the rows that the daemon writes for the path; `rows.py` mirrors them for numpy.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.wire cimport ethernet

cdef enum:
    LINKS = 16
    MACVLANS = 8                # over one link
    NO_LINK = 0xFF
    HOPS = 16384
    LOST_HOP = 0xFFFE           # in place of a row: the next hop that a packet waits for had to go
    HOP_SOURCES = 1024          # buckets of those who want next hops

cdef enum:                 # kinds of routes
    ROUTE_UNICAST = 1           # 0: there is none
    ROUTE_LOCAL = 2
    ROUTE_BROADCAST = 3
    ROUTE_MULTICAST = 4
    ROUTE_BLACKHOLE = 5
    ROUTE_UNREACHABLE = 6
    ROUTE_PROHIBIT = 7

cdef enum:                 # states of next hops
    HOP_INCOMPLETE = 0
    HOP_VALID = 1
    HOP_FAILED = 2
    HOP_FREE = 3                # the row of none
    HOP_QUEUES = 3              # one for each state; valid ones are in none


cdef struct Link:
    uint32_t address            # primary IPv4 address, 0 without
    uint32_t mtu
    uint8_t side                # INSIDE, OUTSIDE or LOCAL
    uint8_t up                  # a link that comes or goes is news, see Forwarder.set_link
    uint8_t header_length       # ethernet.LENGTH, or 0 where frames start at the IP header
    uint8_t mac[ethernet.MAC]
    uint8_t macvlan_count
    uint8_t reserved[2]
    uint8_t macvlans[MACVLANS][ethernet.MAC]    # link addresses of macvlans over it, which are ours as well

cdef struct Route:
    uint32_t gateway            # 0: the destination is on the link
    uint32_t mtu                # 0: the link's
    uint32_t source             # external address that new sessions by it leave with; 0: that of their inside host
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

cdef struct Party:
    # who wants a next hop
    uint16_t source             # bucket
    uint8_t link

cdef struct Want:
    # who waits for a next hop, beside its row, which packets on their way read
    uint32_t since_ms           # incomplete
    uint32_t asked_ms           # when the daemon was told last
    uint16_t older              # neighbours in the queue of its state, by age; older also links free rows
    uint16_t newer
    uint16_t source             # bucket of who asked for it
    uint8_t link                # that they came by
    uint8_t was_valid           # flows may refer to the row
    uint8_t idle                # looks of the daemon since the last packet
    uint8_t was_asked           # the kernel has been asked since it is incomplete
    uint8_t reserved[2]

cdef struct HopQueue:
    uint16_t oldest             # NO_HOP where there is none
    uint16_t newest

cdef struct LinkCounters:
    uint64_t rx_packets
    uint64_t rx_bytes
    uint64_t tx_packets
    uint64_t tx_bytes
