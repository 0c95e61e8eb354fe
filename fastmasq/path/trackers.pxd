# Trackers: which packets they want to see, and how they are asked: the packet waits for the answer, or has it with it.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmasq.path cimport liveness, punts, verdict
from fastmasq.path.packet cimport KIND_SESSION, KIND_TUNNEL, Packet
from fastmasq.path.punts cimport Punt, PuntQueue
from fastmasq.path.rewrite cimport checksum_is_right
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport keys, streams
from fastmasq.table.bucket cimport take_token
from fastmasq.table.keys cimport Ends
from fastmasq.table.siphash cimport siphash
from fastmasq.wire cimport esp, gre, numbers, tcp


cdef inline bint is_followed(const Path *p, uint32_t row, const Packet *packet) noexcept nogil:
    """Whether a packet is of a TCP connection that is followed, or was: what leaves of it may be edited."""
    return packet.protocol == numbers.TCP and streams.is_marked(p.table.streams.followed, row)


cdef inline bint is_control(const Path *p, uint32_t row, const Packet *packet) noexcept nogil:
    """Whether a segment of such a connection is one that its follower wants to see: whole, and no bare acknowledgment."""
    if packet.is_fragment or streams.is_marked(p.table.streams.unread, row):
        return False
    return ((packet.length > packet.header_length + tcp.header_length(packet.transport)
             or packet.transport[tcp.FLAGS] & (tcp.SYN | tcp.FIN | tcp.RST)) and checksum_is_right(packet))


cdef inline bint are_isakmp(const Ends *ends) noexcept nogil:
    """Whether UDP between these ends is ISAKMP (K-1)."""
    return ends.sid == numbers.ISAKMP_PORT and ends.did == numbers.ISAKMP_PORT


cdef inline bint is_tunnel(const Path *p, Packet *packet) noexcept nogil:
    """Whether a packet without ports belongs to a kind of tunnel that a tracker follows; notes that and its id."""
    cdef uint32_t length = packet.length - packet.header_length
    if length < gre.MINIMUM:            # esp.MINIMUM as well
        return False
    if packet.protocol == numbers.ESP and p.follows_ipsec:
        packet.tunnel_id = esp.spi(packet.transport)
    elif (packet.protocol == numbers.GRE and p.follows_pptp and gre.is_pptp(packet.transport)
          and length >= gre.header_length(packet.transport)):
        packet.tunnel_id = gre.call_id(packet.transport)
    else:
        return False
    packet.kind = KIND_TUNNEL
    return True


cdef inline bint is_asked_about(const Path *p, const Packet *packet) noexcept nogil:
    """Whether a packet that no row explains goes to a tracker. Of ISAKMP, too short or not, no session may have the ports."""
    if packet.kind == KIND_SESSION:
        return p.follows_ipsec and packet.protocol == numbers.UDP and are_isakmp(&packet.ends)
    return packet.kind == KIND_TUNNEL


cdef inline void keep_punt(Path *p, const Packet *packet, uint8_t kind, int64_t ref, bint is_strange) noexcept nogil:
    """Keep a packet, as received, for a tracker; `has_room` must have been asked."""
    cdef PuntQueue *queue = &p.punts
    cdef int slot = (queue.first + queue.count) & (punts.PUNTS - 1)
    cdef Punt *punt = &queue.waiting[slot]
    memcpy(punts.punt_memory(queue, slot), packet.frame.data, packet.frame.length)
    punt.frame = packet.frame[0]
    punt.frame.data = punts.punt_memory(queue, slot)
    punt.ref = ref
    punt.saddr = packet.ends.saddr
    punt.kind = kind
    punt.link = packet.link
    punt.is_strange = is_strange
    queue.count += 1
    queue.is_news = True


cdef inline bint may_strangers_ask(Path *p, uint32_t saddr) noexcept nogil:
    """Whether a tracker may be bothered with a stranger's packet: so often for each /24, and for all of them together."""
    cdef uint64_t hash = siphash(&p.table.secret, saddr >> 8, 0x7374726e67)
    return (take_token(&p.strangers_of[hash & (punts.ASKERS - 1)], p.now_ms, punts.PREFIX_RATE, punts.PREFIX_BURST)
            and take_token(&p.strangers, p.now_ms, punts.STRANGER_RATE, punts.STRANGER_BURST))


cdef inline bint may_answer_ask(Path *p, uint64_t key) noexcept nogil:
    """The same for what may be an answer to an inside host."""
    return take_token(&p.answers_of[key >> 32 & (punts.ASKERS - 1)], p.now_ms, punts.ANSWER_RATE, punts.ANSWER_BURST)


cdef inline Outcome ask_tracker(Path *p, const Packet *packet, uint8_t kind, int64_t ref) noexcept nogil:
    """What a tracker says of the packet in hand. If none has been asked, one is now, and the packet waits.

    kind: a PuntKind; ref: the flow of a control segment, else -1.
    """
    cdef bint is_from_outside = packet.side == keys.OUTSIDE and kind != punts.PUNT_CONTROL
    cdef bint is_strange = False
    cdef uint64_t key = 0
    if packet.answer != NULL:
        return packet.answer.outcome
    if is_from_outside:
        key = liveness.live_key(&p.table.secret, packet, packet.ends.saddr)
        is_strange = kind == punts.PUNT_QUOTE or not liveness.is_live(p.live, key, p.now_ms)
    if not punts.has_room(&p.punts, packet.ends.saddr, packet.frame.length, kind, is_strange):
        return verdict.PUNTS_FULL
    if is_from_outside and not (may_strangers_ask(p, packet.ends.saddr) if is_strange else may_answer_ask(p, key)):
        return verdict.PUNTS_FULL
    keep_punt(p, packet, kind, ref, is_strange)
    return verdict.WAITING
