# Which packets from outside belong to an exchange, a call or an SA that an inside host takes part in: told without a tracker.
#
# What a tracker has let out is noted here: of ISAKMP the remote and the initiator's cookie, which a stranger cannot guess, of
# GRE and ESP the remote. An answer finds that note, and need not share what trackers can do with strangers. Rows are overwritten
# where two notes fall on one, which costs the older no more than that: trackers bound how much one host may begin.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastmasq.path.packet cimport KIND_SESSION, Packet
from fastmasq.path.punts cimport Live
from fastmasq.path.state cimport Path
from fastmasq.table.siphash cimport siphash
from fastmasq.wire cimport numbers, udp
from fastmasq.wire.octets cimport load32

cdef enum:
    LIVE = 8192                 # rows
    LIVE_MS = 1800000           # without a packet from inside: as long as an SA lives by default ([vpn] ipsec_lifetime)
    COOKIE = 8                  # octets


cdef inline uint64_t remote_key(const Path *p, uint32_t remote, uint8_t protocol, uint64_t id) noexcept nogil:
    return siphash(&p.table.secret, (<uint64_t>remote << 32) | protocol, id) | 1      # 0 is no key


cdef inline uint64_t live_key(const Path *p, const Packet *packet, uint32_t remote) noexcept nogil:
    """Return what a packet of ISAKMP or of a tunnel and the answers to it have in common, and nobody else's."""
    cdef uint64_t cookie = 0
    if packet.kind == KIND_SESSION and packet.length >= packet.header_length + udp.MINIMUM + COOKIE:
        cookie = (<uint64_t>load32(packet.transport + udp.MINIMUM) << 32) | load32(packet.transport + udp.MINIMUM + 4)
    return remote_key(p, remote, packet.protocol, cookie)


cdef inline void note(Path *p, uint64_t key) noexcept nogil:
    cdef Live *row = &p.live[(key >> 32) & (LIVE - 1)]
    row.key = key
    row.seen_ms = p.now_ms


cdef inline void note_live(Path *p, const Packet *packet) noexcept nogil:
    """Note that an inside host's packet leaves; who exchanges keys may be sent ESP at any time."""
    note(p, live_key(p, packet, packet.ends.daddr))
    if packet.kind == KIND_SESSION:
        note(p, remote_key(p, packet.ends.daddr, numbers.ESP, 0))


cdef inline bint is_live(const Path *p, uint64_t key) noexcept nogil:
    """Whether what a key stands for has been noted, not too long ago."""
    cdef const Live *row = &p.live[(key >> 32) & (LIVE - 1)]
    return row.key == key and p.now_ms - row.seen_ms < LIVE_MS
