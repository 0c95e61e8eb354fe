# What the program in the kernel is told that carries sessions (offload/flow.bpf.c): one row, which only the path writes; and what
# both take identifications from (identification.pxd).

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from fastmasq.path.links cimport LINKS
from fastmasq.table.siphash cimport Secret

cdef enum:
    IDENTIFICATION_BITS = 12    # of the hash that counters of identifications are chosen by
    IDENTIFICATIONS = 1 << IDENTIFICATION_BITS


cdef struct CarrierLink:
    uint32_t ifindex            # 0: nothing may leave by it
    uint16_t reserved
    uint8_t side
    uint8_t header_length


cdef struct Carrier:
    Secret secret               # what sessions are found by
    uint32_t index_mask
    uint32_t is_open            # whether anything may be carried
    uint32_t generation         # that of the path
    uint32_t tick
    uint32_t tcp_established    # timeouts in ticks
    uint32_t udp_active
    uint32_t identification_key  # 0: packets keep theirs
    uint32_t rules              # number of the rules in force, or of there being none; never 0
    CarrierLink links[LINKS]


cdef struct Identifications:
    uint32_t counters[IDENTIFICATIONS]
