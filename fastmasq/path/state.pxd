# Everything the packet path knows between packets: links, routes, next hops, policy, counters, and the batch in hand.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t


from fastmasq.path.datagrams cimport Datagrams
from fastmasq.path.demand cimport Demand
from fastmasq.path.punts cimport Answer, PuntQueue
from fastmasq.path.rules cimport Chains
from fastmasq.path.tunnels cimport Tunnels
from fastmasq.ring.abi cimport VnetHeader, iovec
from fastmasq.ring.ring cimport Frame, Ring, Sender
from fastmasq.table.index cimport Index
from fastmasq.table.table cimport Table

cdef enum:
    LINKS = 16
    NO_LINK = 0xFF
    HOPS = 16384
    NO_HOP_ROW = 0xFFFF         # of a waiting packet whose next hop is looked up anew
    HELD = 256                  # packets waiting for a next hop's address
    HELD_PER_HOP = 64
    HOLD_MS = 3000
    RULES = 256
    REDIRECTS = 64
    BUCKETS = 1024              # error buckets by source address

    DROP_REASONS = 96           # room for the counters; forward.pyx checks that it suffices
    VERDICTS = 5
    NOTES = 8

    GATHERS = 8                 # TCP streams gathered at once
    GATHER_SEGMENTS = 64        # of one large send

cdef enum:
    ROUTE_UNREACHABLE = 0
    ROUTE_UNICAST = 1
    ROUTE_LOCAL = 2
    ROUTE_BROADCAST = 3
    ROUTE_MULTICAST = 4
    ROUTE_BLACKHOLE = 5

cdef enum:
    HOP_INCOMPLETE = 0
    HOP_VALID = 1
    HOP_FAILED = 2

cdef enum:
    ACTION_DROP = 0
    ACTION_MASQUERADE = 1
    ACTION_ROUTE = 2
    ACTION_REFUSE = 3           # drop, and say so to the sender

cdef enum:                 # of a parsed packet
    KIND_SESSION = 0            # TCP, UDP, ICMP query or reply: has a flow key
    KIND_ICMP_ERROR = 1
    KIND_ICMP_OTHER = 2
    KIND_PROTOCOL_OTHER = 3
    KIND_FRAGMENT = 4           # a later one: without a transport header
    KIND_TUNNEL = 5             # GRE of PPTP or ESP, while a tracker follows it


cdef struct Link:
    uint32_t address            # primary IPv4 address, 0 without
    uint32_t mtu
    uint8_t side                # Side
    uint8_t up
    uint8_t header_length       # 14, or 0 where frames start at the IP header
    uint8_t mac[6]
    uint8_t reserved[3]

cdef struct Route:
    uint32_t gateway            # 0: the destination is on the link
    uint32_t mtu                # 0: the link's
    uint8_t kind                # RouteKind
    uint8_t link
    uint8_t reserved[2]

cdef struct Hop:
    uint8_t header[14]          # the link header to write
    uint8_t link
    uint8_t state               # HopState
    uint32_t address            # 0 on links without neighbours
    uint32_t mtu                # of the link and the route
    uint32_t used               # packets since the daemon last asked
    uint16_t held
    uint8_t wanted              # the daemon is to resolve it
    uint8_t header_length

cdef struct Rule:
    uint32_t source_first
    uint32_t source_last
    uint32_t destination_first
    uint32_t destination_last
    uint8_t protocol            # 0: any
    uint8_t out_side            # Side; 0xFF: any
    uint8_t action
    uint8_t reserved

cdef struct Redirect:
    uint32_t host               # inside host that gets the protocol
    uint32_t source_first       # of the remote addresses it gets it from
    uint32_t source_last
    uint8_t protocol
    uint8_t reserved[3]

cdef struct Bucket:
    uint32_t tokens             # in thousandths
    uint32_t stamp_ms

cdef struct Parsed:
    uint8_t *ip
    uint8_t *transport
    uint32_t length             # IPv4 total length
    uint32_t saddr
    uint32_t daddr
    uint64_t key0
    uint64_t key1
    uint32_t hash
    int drop                    # a DropReason, or -1
    uint16_t sid
    uint16_t did
    uint16_t identification     # that a fragment is to leave with, if renumbered
    uint32_t tunnel_id          # of KIND_TUNNEL: Call ID or SPI
    uint32_t tunnel_serial      # of its way, if there is one
    uint8_t header_length
    uint8_t protocol
    uint8_t kind
    bint renumbered
    bint fragment               # of a datagram in pieces
    bint partial                # the transport checksum is the pseudo-header sum only
    bint guessed                # a large send without a virtio header: its segment size is our guess

cdef struct Gather:
    # segments of one TCP stream to be sent as one, see gather.pxd; unused when segments is 0
    const Hop *hop
    uint8_t *ip                 # headers of the first segment, in its frame
    uint8_t *tcp
    uint32_t headers            # octets: IPv4 and TCP
    uint32_t payload            # octets, all segments together
    uint32_t next_sequence
    uint16_t size               # payload octets of every segment but the last
    bint partial                # the segments' checksums are partial
    int segments
    iovec pieces[64]            # the segments' payloads

cdef struct LinkCounters:
    uint64_t rx_packets
    uint64_t rx_bytes
    uint64_t tx_packets
    uint64_t tx_bytes

cdef struct Held:
    Frame frame
    uint32_t since_ms
    uint16_t hop
    uint8_t link
    uint8_t in_use
    Answer answer               # of a tracker that has been asked about it

cdef struct Path:
    Table *table
    Link links[16]
    Ring *rings[16]
    Sender *senders[16]
    int link_count
    LinkCounters traffic[16]
    # the world, compiled by the daemon
    const uint32_t *route_first  # sorted; the routes cover all addresses without gaps
    const Route *routes
    uint32_t route_count
    Hop *hops
    uint32_t hop_count
    Index hop_index
    bint hops_full
    bint hops_wanted
    uint32_t generation
    Rule rules[256]
    int rule_count
    Chains *chains              # NULL without rules
    Redirect redirects[64]
    int redirect_count
    uint8_t by_address[256]     # protocols without ports that any inside host may begin
    uint32_t programs_first     # of the addresses where redirected packets reach programs of this host
    int programs                # how many there are
    int asked_map               # descriptor of the map that tells them what was asked for, -1 without
    uint64_t asked_cookie       # of our network namespace
    long bpf_call               # number of bpf(2)
    Demand *demand              # NULL without triggers, direct ports and marks
    bint hairpin
    Datagrams datagrams         # in pieces
    bint sent                   # send_packet has been called: looked at for a datagram's first fragment
    # packets waiting for a next hop
    Held held[256]
    uint8_t *held_memory        # [HELD][HEADROOM + BIG_FRAME]
    int held_count
    # what trackers follow
    bint follows_pptp
    bint follows_ipsec
    Tunnels tunnels
    PuntQueue punts
    Bucket stranger_bucket      # of packets from outside that trackers are asked about
    Answer answer               # of the tracker, to the packet in hand
    uint64_t *unfollowed        # bit set by session row: control connections that are passed on unread
    # errors we send
    bint limit_errors
    uint32_t error_rate         # a second and link
    uint32_t error_burst
    uint32_t error_rate_source  # a second and source address
    Bucket link_buckets[16]
    Bucket source_buckets[1024]
    uint64_t turn_octets        # received in the turn
    # time of the batch
    uint32_t tick
    uint32_t now_ms
    # counters
    uint64_t drops[96]
    uint64_t verdicts[5]
    uint64_t notes[8]
    # the batch
    Frame frames[64]
    Parsed parsed[64]
    Gather gathers[8]
    int gathering               # rows of gathers in use
    int gather_turn


cdef inline void count_drop(Path *p, int reason) noexcept nogil:
    p.drops[reason] += 1
    p.verdicts[4] += 1
