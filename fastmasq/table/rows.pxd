# The rows of the translation state: session (two mirrored flows), mapping, host; `masq.pyx` checks the mirrors in rows.py.
#
# Addresses, ports and identifiers are host-order integers here; big-endian exists only in frames.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.table.bucket cimport Bucket
from fastmasq.wire cimport numbers


cdef enum:
    OUTBOUND = 0
    INBOUND = 1
    DIRECTIONS = 2

cdef enum:
    CLASS_NONE = 3              # of sessions that have no ports
    SESSION_CLASSES = 4         # with CLASS_NONE

    NONE = 0xFFFFFFFFU          # no row
    NO_HOP = 0xFFFF             # next hop not looked up yet

    UNKNOWN_SCALE = 15

    CARRIED_RESERVED = 5        # words, which make it a cache line

cdef enum:
    STATE_FREE = 0
    TCP_SYN_SENT = 1            # RFC 6146 "INIT", opened from inside
    TCP_SYN_RECEIVED = 2        # INIT, opened from outside: the inside answered
    TCP_ESTABLISHED = 3
    TCP_FIN_OUT = 4             # the inside has finished
    TCP_FIN_IN = 5              # the outside has finished
    TCP_FIN_BOTH = 6
    TCP_TRANSITORY = 7          # after a reset
    TCP_RESUMED = 8             # picked up in mid-stream, nothing heard from outside yet
    UDP_ACTIVE = 9
    ICMP_ACTIVE = 10
    TCP_UNANSWERED = 11         # opened from outside through a forward: the inside has not answered yet
    UDP_UNANSWERED = 12
    PLAIN_ACTIVE = 13           # a protocol without ports
    EXPECTED = 14               # a remote was told of an inside endpoint, and has not come yet; its port is 0
    STATE_COUNT = 15

cdef enum:
    SESSION_HAIRPIN = 0x01      # the remote is an external endpoint of ours: packets turn round to the inside
    SESSION_REPLIED = 0x02      # the remote has been heard
    SESSION_SEEN_OUT = 0x04     # a TCP sequence number of the outbound end is known
    SESSION_SEEN_IN = 0x08
    SESSION_ACKED_OUT = 0x10    # an acknowledgment, and so a window, of the outbound end is known
    SESSION_ACKED_IN = 0x20
    SESSION_UNSCALED_OUT = 0x40  # the outbound end's SYN did not offer window scaling
    SESSION_UNSCALED_IN = 0x80


cdef struct Flow:
    # one direction: the key a packet must carry (keys.pxd), and what is written over it
    uint64_t key0
    uint64_t key1
    uint32_t saddr
    uint32_t daddr
    uint16_t sid
    uint16_t did
    uint16_t address_delta      # checksum delta of the addresses (IPv4 header, partial transport checksum)
    uint16_t transport_delta    # checksum delta of a full transport checksum
    uint16_t hop                # next-hop row of the path, or NO_HOP
    uint16_t path_mtu           # least MTU that an ICMP error has reported for this direction, or 0
    uint32_t packets


cdef struct TcpEnd:
    # what one end has said; sequence numbers wrap (RFC 9293 section 3.4)
    uint32_t end                # highest sequence number sent + 1
    uint32_t ack                # highest acknowledgment sent
    uint32_t edge               # highest acknowledgment + window sent: the other end may not send past it


cdef struct Session:
    Flow flow[DIRECTIONS]
    TcpEnd tcp[DIRECTIONS]
    uint32_t expires            # tick at which the session is dead if nothing refreshes it
    uint32_t timer_next         # neighbours in the timer wheel; timer_next also links free rows
    uint32_t timer_prev
    uint32_t mapping            # or NONE: of protocols without ports, and of redirected sessions
    uint32_t known              # generation of what the kernel knows for which hops were looked up and links judged << 8
    #                             | link that packets of the inbound flow come by << 4 | that of the outbound flow's
    uint8_t state
    uint8_t flags
    uint8_t scale               # window scale of the outbound end << 4 | of the inbound end
    uint8_t port_class


cdef struct Carried:
    # of a session that the kernel may carry (carried.pxd): what it has of each flow
    uint64_t packets[DIRECTIONS]
    uint64_t octets[DIRECTIONS]
    uint32_t ticket             # by which it may; 0: it may not
    uint32_t rules[DIRECTIONS]  # number of the rules that let it carry packets of each flow (path/carrier.pxd); 0: none do
    uint32_t reserved[CARRIED_RESERVED]


cdef struct Tally:
    # beside that, for us alone
    uint64_t octets[DIRECTIONS]     # that the path has sent of each flow
    uint64_t charged_packets[DIRECTIONS]    # carried ones that rules have been told of
    uint64_t charged_octets[DIRECTIONS]


cdef enum:
    MAPPING_FREE = 0
    MAPPING_OPEN = 1
    MAPPING_HELD_DOWN = 2       # closed not long ago: its port is for the same host, or for nobody
    MAPPING_FORWARD = 3         # the external endpoint of a port forward: never goes by itself
    MAPPING_ORPHAN = 4          # nobody's any more: its sessions live on, new ones are not opened by it
    MAPPING_BY_SESSION = 5      # each of its sessions has an inside endpoint of its own (path/triggers.pxd)

cdef struct Mapping:
    # internal endpoint <-> external endpoint; the row number is the external endpoint
    uint32_t address            # of a forward: none, its targets are in the table of forwards
    uint32_t host               # row of the inside host, or of the forward. Held down: next port << 16 | previous in the queue.
    #                             By session: how many of them are half-open
    uint32_t sessions           # sessions that hold the mapping open. Held down: tick at which it is free
    uint16_t id
    uint16_t in_use             # MAPPING_FREE and so on


cdef struct Host:
    uint32_t address
    uint32_t sessions
    uint32_t ports[numbers.CLASS_COUNT]    # mappings by class
    Bucket bucket               # of sessions that it may open
    uint32_t next_free
    uint32_t network            # row of the network that it is in


cdef struct Network:
    # inside hosts with one prefix, who are one holder as well
    uint32_t address
    uint32_t hosts
    uint32_t sessions
    uint32_t ports[numbers.CLASS_COUNT]
    uint32_t next_free
    uint32_t reserved


cdef inline int class_of(uint8_t protocol) noexcept nogil:
    """Return the port class of a protocol, or -1 for a protocol without ports."""
    if protocol == numbers.TCP:
        return numbers.CLASS_TCP
    if protocol == numbers.UDP:
        return numbers.CLASS_UDP
    if protocol == numbers.ICMP:
        return numbers.CLASS_ICMP
    return -1


# A flow, or a way of a tunnel, is referred to by one number: of its row, and which of the two there it is.

cdef inline uint32_t ref_of(uint32_t row, int direction) noexcept nogil:
    return row << 1 | <uint32_t>direction


cdef inline uint32_t row_of(int64_t ref) noexcept nogil:
    return <uint32_t>(ref >> 1)


cdef inline int direction_of(int64_t ref) noexcept nogil:
    return ref & 1


cdef inline uint32_t mapping_row(int pool, uint16_t port) noexcept nogil:
    """Return the row of the mapping of a port in a pool."""
    return (<uint32_t>pool << 16) | port
