# Which packets from outside belong to an exchange, a call or an SA that an inside host takes part in: told without a tracker.
#
# What a tracker has let out is noted here: of ISAKMP the remote and the initiator's cookie, which a stranger cannot guess, of
# GRE and ESP the remote. An answer finds that note, and need not share what trackers can do with strangers. Rows are overwritten
# where two notes fall on one, which costs the older no more than that: trackers bound how much one host may begin.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmasq.path.packet cimport KIND_SESSION, Packet
from fastmasq.table.siphash cimport Secret, siphash
from fastmasq.wire cimport numbers, udp
from fastmasq.wire.octets cimport load32

cdef enum:
    LIVE = 8192                 # rows
    LIVE_MS = 1800000           # without a packet from inside: as long as an SA lives by default ([vpn] ipsec_lifetime)
    COOKIE = 8                  # octets


cdef struct Live:
    # an exchange, or the calls and SAs with a remote, that an inside host takes part in
    uint64_t key                # 0: unused
    uint32_t seen_ms
    uint32_t reserved


cdef inline uint64_t remote_key(const Secret *secret, uint32_t remote, uint8_t protocol, uint64_t id) noexcept nogil:
    return siphash(secret, (<uint64_t>remote << 32) | protocol, id) | 1      # 0 is no key


cdef inline uint64_t live_key(const Secret *secret, const Packet *packet, uint32_t remote) noexcept nogil:
    """Return what a packet of ISAKMP or of a tunnel and the answers to it have in common, and nobody else's."""
    cdef uint64_t cookie = 0
    if packet.kind == KIND_SESSION and packet.length >= packet.header_length + udp.MINIMUM + COOKIE:
        cookie = (<uint64_t>load32(packet.transport + udp.MINIMUM) << 32) | load32(packet.transport + udp.MINIMUM + 4)
    return remote_key(secret, remote, packet.protocol, cookie)


cdef inline void note(Live *rows, uint64_t key, uint32_t now_ms) noexcept nogil:
    cdef Live *row = &rows[(key >> 32) & (LIVE - 1)]
    row.key = key
    row.seen_ms = now_ms


cdef inline void note_live(Live *rows, const Secret *secret, const Packet *packet, uint32_t now_ms) noexcept nogil:
    """Note that an inside host's packet leaves; who exchanges keys may be sent ESP at any time."""
    note(rows, live_key(secret, packet, packet.ends.daddr), now_ms)
    if packet.kind == KIND_SESSION:
        note(rows, remote_key(secret, packet.ends.daddr, numbers.ESP, 0), now_ms)


cdef inline bint is_live(const Live *rows, uint64_t key, uint32_t now_ms) noexcept nogil:
    """Whether what a key stands for has been noted, not too long ago."""
    cdef const Live *row = &rows[(key >> 32) & (LIVE - 1)]
    return row.key == key and now_ms - row.seen_ms < LIVE_MS
