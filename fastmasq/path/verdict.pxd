# What can become of a packet: its outcome, which for a drop is the reason; `verdict.pyx` gives each reason its sentence.
#
# Every stage returns an Outcome, and `finish.pxd` counts it at the end of the packet's way.

ctypedef int Outcome            # one of these four, or a drop reason

cdef enum:
    GOES_ON = -1                # not decided yet: it is the next stage's
    FORWARDED = -2
    DELIVERED = -3              # the host's own: its kernel has seen the packet, and the guard lets it have it
    WAITING = -4                # for a next hop, its first fragment or a tracker's word; handled again then

cdef enum:
    # at the door
    TRUNCATED
    NOT_FOR_US
    VLAN_TAGGED
    TOO_SHORT
    NOT_IPV4
    BAD_HEADER_LENGTH
    BAD_TOTAL_LENGTH
    BAD_IP_CHECKSUM
    SOURCE_ROUTE
    BAD_IP_OPTIONS
    BAD_TRANSPORT_HEADER
    BAD_TCP_FLAGS
    BAD_OFFLOAD
    FRAGMENT_BAD
    FRAGMENT_TINY
    FRAGMENT_OVERLAP
    FRAGMENT_DUPLICATE
    FRAGMENT_ORPHAN
    FRAGMENT_REFUSED
    FRAGMENT_TOO_LONG
    MARTIAN_SOURCE
    MARTIAN_DESTINATION
    # no way on
    NO_ROUTE
    TTL_EXCEEDED
    FRAGMENTATION_NEEDED
    NEIGHBOUR_UNRESOLVED
    NEIGHBOUR_FAILED
    # policy
    POLICY_REFUSED
    PROTOCOL_NOT_MASQUERADED
    AH_NOT_MASQUERADED
    NO_SESSION
    FILTERED
    ENDPOINT_CLASH
    TCP_RST_OUT_OF_WINDOW
    # rules; a rejection comes next to its denial
    INPUT_DENIED
    INPUT_REJECTED
    FORWARD_DENIED
    FORWARD_REJECTED
    OUTPUT_DENIED
    OUTPUT_REJECTED
    # ICMP
    ICMP_TYPE_REFUSED
    BAD_ICMP_CHECKSUM
    BAD_QUOTED_HEADER
    BAD_MTU_IN_ICMP
    # what trackers say
    GRE_NO_ROW
    GRE_OTHER_HOST
    GRE_WRONG_SOURCE
    STREAM_OUT_OF_ORDER
    EDITS_FULL
    EDIT_IN_FRAGMENT
    CALLS_FULL
    ISAKMP_NO_ROW
    ISAKMP_COLLISION
    ISAKMP_FULL
    ISAKMP_HOST_LIMIT
    PARALLEL_DISABLED
    ESP_NO_ROW
    ESP_ZERO_SPI
    ESP_BLOCKED
    ESP_SQUELCHED
    ESP_FULL
    ESP_HOST_LIMIT
    # capacity
    PUNTS_FULL
    TRACKER_FAILED
    NO_EXTERNAL_ADDRESS
    HOST_SESSION_LIMIT
    HOST_PORT_LIMIT
    HOST_RATE_LIMIT
    NETWORK_LIMIT
    HOST_TABLE_FULL
    TABLE_FULL
    PORTS_EXHAUSTED
    HALF_OPEN_LIMIT
    NEIGHBOUR_TABLE_FULL
    NEIGHBOUR_LIMIT
    # sending
    LINK_DOWN
    TX_REFUSED
    TX_NO_BUFFER
    CANNOT_SEGMENT
    SEGMENT_SIZE_UNKNOWN
    DROP_REASON_COUNT

cdef enum:
    # things worth counting that are not drops
    NOTE_REPLIES_SUPPRESSED
    NOTE_STATELESS_INBOUND
    NOTE_BATCHES
    NOTE_TX_CALLS
    NOTE_HELD
    NOTE_SEGMENTED
    NOTE_FRAGMENTED
    NOTE_GATHERED
    NOTE_ANSWERS_TO_HOST
    NOTE_PRIVATE_UNTRANSLATED
    NOTE_COUNT
