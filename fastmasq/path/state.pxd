# Everything the packet path knows between packets: rings, links, routes, next hops, policy, what waits, and the batch in hand.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.path.carrier cimport Carrier, Identifications
from fastmasq.path.datagrams cimport Datagrams
from fastmasq.path.gathering cimport Gathering
from fastmasq.path.held cimport HeldPackets
from fastmasq.path.liveness cimport Live
from fastmasq.path.packet cimport Packet
from fastmasq.path.punts cimport ASKERS, PuntQueue
from fastmasq.path.links cimport Hop, HOP_QUEUES, HOP_SOURCES, HopQueue, LINKS, Link, LinkCounters, Route, Want
from fastmasq.path.observation cimport Observation
from fastmasq.path.redirects cimport Redirects
from fastmasq.path.rules cimport Chains, Passage
from fastmasq.path.triggers_and_marks cimport TriggersAndMarks
from fastmasq.path.tunnels cimport Tunnels
from fastmasq.path.untranslated cimport Untranslated
from fastmasq.path.verdict cimport DROP_REASON_COUNT, NOTE_COUNT
from fastmasq.ring.ring cimport BATCH, Frame, Ring, Sender
from fastmasq.table.bucket cimport Bucket
from fastmasq.table.index cimport Index
from fastmasq.table.order cimport show_in_order
from fastmasq.table.table cimport Table

cdef enum:
    GENERATIONS = 0xFFFFFF      # then they begin again: a session keeps 24 bits
    BUCKETS = 1024              # error buckets by source address


cdef struct Path:
    Table *table
    Link links[LINKS]
    Ring *rings[LINKS]
    Sender *senders[LINKS]
    int link_count
    LinkCounters traffic[LINKS]
    # what the kernel knows, compiled by the daemon
    const uint32_t *route_first  # sorted; the routes cover all addresses without gaps
    const Route *routes
    uint32_t route_count
    Hop *hops                   # [HOPS]
    Want *wants                 # [HOPS]
    uint32_t hop_count          # rows [hop_count, HOPS) were never used
    uint32_t hops_in_use
    uint16_t hop_free           # first of the rows given back
    HopQueue hop_queues[HOP_QUEUES]     # by state
    Index hop_index
    bint hops_wanted
    uint16_t of_source[HOP_SOURCES]     # hops
    uint16_t waiting_of_source[HOP_SOURCES]     # incomplete ones
    uint16_t waiting_of_link[LINKS]
    Bucket asked_of_source[HOP_SOURCES]
    Bucket asked_of_link[LINKS]
    uint32_t generation         # of that, 1 to GENERATIONS
    Carrier *carrier            # what the kernel carries sessions by, NULL if it carries none
    # policy
    Chains *chains              # NULL without rules
    Redirects redirects
    uint32_t proxies_first      # of the addresses where packets reach programs of this host
    int proxies                 # how many there are
    int destination_map         # descriptor of the map that tells them original destinations, -1 without
    uint64_t namespace_cookie   # of our network namespace
    long bpf_call               # number of bpf(2)
    TriggersAndMarks *triggers_and_marks  # NULL without triggers, direct ports and marks
    bint hairpin
    bint renumbers              # packets that may be cut, see identification.pxd
    Identifications *identifications
    uint32_t identification_key  # odd
    uint32_t mss                # that SYNs may offer, see mss.pxd
    Observation *observation    # NULL unless nothing is sent, and all is only judged
    # what waits
    HeldPackets held            # for a next hop
    Datagrams datagrams         # in pieces, for the first one
    PuntQueue punts             # for a tracker's word
    # what trackers follow
    bint follows_pptp
    bint follows_ipsec
    Tunnels tunnels
    Live *live                  # [LIVE], see liveness.pxd
    Bucket strangers            # from outside that trackers are asked about
    Bucket strangers_of[ASKERS]     # by /24
    Bucket answers_of[ASKERS]   # to what inside hosts take part in
    uint8_t *image              # [IMAGE]: what the octets of a segment leave as, see edited.pxd
    # errors we send
    bint limit_errors
    uint32_t error_rate         # a second and link
    uint32_t error_burst
    uint32_t error_rate_source  # a second and source address
    Bucket link_buckets[LINKS]
    Bucket source_buckets[BUCKETS]
    # time of the batch
    uint64_t turn_octets        # received in the turn
    uint32_t tick
    uint32_t now_ms
    # counters
    uint64_t forwarded
    uint64_t delivered
    uint64_t replied            # drops that their sender was told of
    uint64_t drops[DROP_REASON_COUNT]
    uint64_t notes[NOTE_COUNT]
    Untranslated *untranslated  # [UNTRANSLATED]
    # the batch
    Frame frames[BATCH]
    Packet packets[BATCH]
    Passage passage             # of the packet in hand
    Gathering gathering


cdef inline void begin_generation(Path *p) noexcept nogil:
    """Have every flow look anew at where its packets go, and whether they come by the right link.

    Called before rows of hops are others than flows took them for.
    """
    p.generation = p.generation % GENERATIONS + 1
    if p.carrier != NULL:
        p.carrier.generation = p.generation
        show_in_order()
