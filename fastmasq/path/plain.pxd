# A packet that leaves no trace: routed as it is, or translated without a session.

from fastmasq.path cimport filter, leave, match, untranslated, verdict
from fastmasq.path.egress cimport send_packet
from fastmasq.path.packet cimport Packet
from fastmasq.path.rewrite cimport rewrite_ends, rewrite_header
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.table cimport keys
from fastmasq.table.keys cimport Ends


cdef inline void mind_source(Path *p, const Packet *packet) noexcept nogil:
    """Take note of a private source that leaves the inside as it is: what came from outside is no business of ours."""
    if (p.links[packet.hop.link].side == keys.OUTSIDE and packet.side == keys.INSIDE
            and untranslated.is_private(packet.ends.saddr)):
        p.notes[verdict.NOTE_PRIVATE_UNTRANSLATED] += 1
        untranslated.note(p.untranslated, &p.table.secret, &packet.ends)


cdef inline Outcome send_plain(Path *p, Packet *packet) noexcept nogil:
    """Send a packet untranslated by its hop, if the output chain lets it."""
    cdef Outcome outcome = verdict.GOES_ON
    if p.chains != NULL:
        outcome = filter.sent_out(p, packet, &packet.ends, match.ACCEPT)
    if outcome != verdict.GOES_ON:
        return outcome
    mind_source(p, packet)
    rewrite_header(p, packet, packet.ends.saddr, packet.ends.daddr, 0)
    return send_packet(p, packet)


cdef inline Outcome forward_plain(Path *p, Packet *packet) noexcept nogil:
    """Route a packet as it is."""
    cdef Outcome outcome = leave.towards(p, packet, packet.ends.daddr)
    return send_plain(p, packet) if outcome == verdict.GOES_ON else outcome


cdef inline Outcome pass_stateless(Path *p, Packet *packet, const Ends *ends) noexcept nogil:
    """Translate and send a packet by its hop, if the output chain lets it."""
    cdef Outcome outcome = filter.sent_translated(p, packet, ends)
    if outcome != verdict.GOES_ON:
        return outcome
    p.notes[verdict.NOTE_STATELESS_INBOUND] += 1
    rewrite_ends(p, packet, ends)
    return send_packet(p, packet)
