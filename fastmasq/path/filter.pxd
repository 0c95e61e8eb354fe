# Where a packet on its way meets the chains: input as it arrives, forward before it is masqueraded, output after (T-1..T-9).
#
# All begins with `admitted`; the others may rely on what it noted in the packet's passage. Without rules p.chains is NULL, and
# the path asks none of these. The verdict on a packet of a flow is remembered as the list of rows that it matched: the next
# one of the flow only adds to that list's counters. A packet that logs, or whose verdict may differ from that on the
# flow's others (a TCP segment without ACK, a reset, an ICMP query with a code), asks the rules itself.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmasq.path cimport carrying, match, remembered, rules, verdict
from fastmasq.path.match cimport Probe
from fastmasq.path.packet cimport KIND_SESSION, KIND_TUNNEL, Packet, refused
from fastmasq.path.remembered cimport CachedVerdict
from fastmasq.path.rules cimport Chains, Passage
from fastmasq.path.state cimport Path
from fastmasq.path.verdict cimport Outcome
from fastmasq.ring.abi cimport PACKET_HOST
from fastmasq.table cimport keys
from fastmasq.table.keys cimport Ends
from fastmasq.wire cimport icmp, ipv4, numbers, tcp
from fastmasq.wire.checksum cimport delta16, update_full_at
from fastmasq.wire.octets cimport load16


# -- what rules see of a packet --------------------------------------------------------------------------------------

cdef inline void show_flags(Probe *probe, uint8_t flags) noexcept nogil:
    if flags & (tcp.ACK | tcp.RST):
        probe.shows |= match.SHOWS_ACK
    elif flags & tcp.SYN:
        probe.shows |= match.SHOWS_SYN


cdef inline void show_link(Probe *probe, int link) noexcept nogil:
    probe.link = <uint8_t>link
    probe.link_bit = <uint16_t>(1 << link)


cdef inline void describe(Probe *probe, const Packet *packet) noexcept nogil:
    """Fill in a probe for a packet that has just arrived. The door has seen to it that a first fragment shows all (C-59)."""
    memset(probe, 0, sizeof(Probe))
    probe.ip = packet.ip
    probe.ends.saddr, probe.ends.daddr = packet.ends.saddr, packet.ends.daddr
    probe.octets = packet.length
    show_link(probe, packet.link)
    probe.protocol = packet.protocol
    probe.tos_and = 0xFF
    if load16(packet.ip + ipv4.FRAGMENT) & ipv4.OFFSET_MASK:
        probe.shows = match.SHOWS_FRAGMENT
    elif packet.protocol == numbers.ICMP:
        probe.shows = match.SHOWS_PORTS
        probe.ends.sid, probe.ends.did = packet.transport[icmp.TYPE], packet.transport[icmp.CODE]
    elif packet.protocol == numbers.TCP or packet.protocol == numbers.UDP:
        probe.shows = match.SHOWS_PORTS
        probe.ends = packet.ends
        if packet.protocol == numbers.TCP:
            show_flags(probe, packet.transport[tcp.FLAGS])


# -- what is remembered of its flow ----------------------------------------------------------------------------------

cdef inline bint speaks_for_its_flow(const Packet *packet) noexcept nogil:
    """Whether rules can tell this packet from no other of the same flow that says True."""
    if packet.protocol == numbers.TCP:
        return (packet.transport[tcp.FLAGS] & (tcp.ACK | tcp.RST)) == tcp.ACK
    return packet.kind == KIND_TUNNEL or packet.protocol == numbers.UDP or packet.transport[icmp.CODE] == 0


cdef inline uint64_t verdict_generation(const Path *p) noexcept nogil:
    return remembered.generation_of(&p.chains.remembered, p.generation)


cdef inline uint32_t way_in(const Packet *packet) noexcept nogil:
    """Return what tells flows with one key apart: the link they come by, and of tunnels whose the key was."""
    return <uint32_t>packet.link | (packet.tunnel_serial << 8 if packet.kind == KIND_TUNNEL else 0)


cdef inline void find_verdict(Path *p, Packet *packet, int64_t ref) noexcept nogil:
    """Find where the verdict on the packet's flow is remembered, or is to be; ref is its flow, negative without one."""
    cdef Passage *passage = packet.passage
    cdef CachedVerdict *slot
    if packet.frame.packet_type != PACKET_HOST or not p.chains.is_cacheable or not (
            packet.kind == KIND_SESSION or (packet.kind == KIND_TUNNEL and ref >= 0)) or not speaks_for_its_flow(packet):
        return
    passage.has_flow = ref >= 0
    if ref >= 0 and packet.kind == KIND_SESSION:
        slot = &p.chains.remembered.flows[ref]
    else:
        slot = &p.chains.remembered.routed[packet.hash & (remembered.ROUTED_FLOWS - 1)]
    passage.slot = slot
    if (slot.generation == verdict_generation(p) and slot.key0 == packet.key0 and slot.key1 == packet.key1
            and slot.link == way_in(packet)):
        passage.settled = &p.chains.remembered.paths[slot.path]


cdef inline void remember_verdict(Path *p, Packet *packet, uint8_t decision) noexcept nogil:
    """Remember what the packet has matched, for all of its flow.

    Not of a packet translated without a flow of its own: its endpoints would be others the next time.
    """
    cdef Chains *c = p.chains
    cdef Passage *passage = packet.passage
    cdef CachedVerdict *slot = passage.slot
    cdef uint32_t path
    if (slot == NULL or passage.logged or packet.has_waited or passage.matched.count > remembered.MATCHED
            or (decision == match.MASQ and not passage.has_flow)):
        return
    if p.carrier != NULL and passage.has_flow and packet.kind == KIND_SESSION:
        carrying.charge(p, <uint32_t>(slot - c.remembered.flows))
    path = remembered.intern_path(&c.remembered, &passage.matched, decision, &passage.probe)
    if path == remembered.NOWHERE:
        if p.carrier != NULL:
            carrying.begin_rules(p)
            carrying.charge_all(p)
        remembered.forget_paths(&c.remembered, c.counts)
        return
    slot.key0 = packet.key0
    slot.key1 = packet.key1
    slot.generation = verdict_generation(p)
    slot.path = path
    slot.link = way_in(packet)


# -- the chains ------------------------------------------------------------------------------------------------------

cdef inline Outcome turn_away(Packet *packet, uint8_t decision, int denied, uint8_t code) noexcept nogil:
    """Drop what a chain does not accept; the reason for a rejection comes next to that for a denial (T-9)."""
    if decision == match.REJECT:
        return refused(packet, denied + 1, icmp.DESTINATION_UNREACHABLE, code, 0)
    return denied


cdef inline Outcome admitted(Path *p, Packet *packet, int64_t ref) noexcept nogil:
    """The input chain, on a packet as it came from the wire; ref is its flow, negative without one.

    It does not see what a program of the host has sent. What is redirected is let in, and its passage says so (T-10).
    """
    cdef Chains *c = p.chains
    cdef Passage *passage = packet.passage
    cdef uint8_t decision = match.ACCEPT
    find_verdict(p, packet, ref)
    if passage.settled != NULL:
        if not packet.has_waited:
            passage.settled.admitted_packets += 1
            passage.settled.admitted_octets += packet.length
        return verdict.GOES_ON
    describe(&passage.probe, packet)
    if packet.side != keys.LOCAL:
        if c.accounting and not packet.has_waited:
            rules.evaluate_chain(c, passage, rules.CHAIN_ACCOUNTING, p.now_ms)
        decision = rules.evaluate_chain(c, passage, rules.CHAIN_INPUT, p.now_ms)
    passage.matched.admitted = passage.matched.count
    passage.is_redirected = decision == match.REDIRECT
    if decision != match.ACCEPT and decision != match.REDIRECT:
        return turn_away(packet, decision, verdict.INPUT_DENIED, icmp.PORT_UNREACHABLE)
    return verdict.GOES_ON


cdef inline uint32_t mark_of(const Packet *packet) noexcept nogil:
    """Return what the input chain has marked a packet with, 0 where it was not asked."""
    return packet.passage.probe.mark if packet.passage != NULL and packet.passage.settled == NULL else 0


cdef inline Outcome ask_forward(Path *p, Packet *packet) noexcept nogil:
    """The forward chain, on a packet as it came, about to leave by its hop; asked once.

    A packet that it lets pass GOES_ON, and `is_translated` says whether it is to be masqueraded.
    """
    cdef Passage *passage = packet.passage
    if passage.settled != NULL or passage.forwarded:
        return verdict.GOES_ON
    show_link(&passage.probe, packet.hop.link)
    passage.forwarded = rules.evaluate_chain(p.chains, passage, rules.CHAIN_FORWARD, p.now_ms)
    if passage.forwarded != match.ACCEPT and passage.forwarded != match.MASQ:
        return turn_away(packet, passage.forwarded, verdict.FORWARD_DENIED, icmp.HOST_UNREACHABLE)
    return verdict.GOES_ON


cdef inline bint is_translated(const Packet *packet) noexcept nogil:
    """Whether the forward chain has said MASQ to a packet that it lets pass."""
    cdef const Passage *passage = packet.passage
    return (passage.settled.verdict if passage.settled != NULL else passage.forwarded) == match.MASQ


cdef inline void write_tos(uint8_t *ip, uint8_t keep, uint8_t change) noexcept nogil:
    cdef uint16_t before = load16(ip)
    if keep == 0xFF and change == 0:
        return
    ip[ipv4.TOS] = (ip[ipv4.TOS] & keep) ^ change
    update_full_at(ip + ipv4.CHECKSUM, delta16(before, load16(ip)))


cdef inline Outcome ask_output(Path *p, Packet *packet, const Ends *ends) noexcept nogil:
    """The output chain and accounting, on a packet about to leave by its hop with these ends."""
    cdef Chains *c = p.chains
    cdef Probe *probe = &packet.passage.probe
    cdef uint8_t decision
    show_link(probe, packet.hop.link)
    probe.ends.saddr, probe.ends.daddr = ends.saddr, ends.daddr
    if packet.kind == KIND_SESSION and packet.protocol != numbers.ICMP:
        probe.ends.sid, probe.ends.did = ends.sid, ends.did
    probe.shows |= match.SHOWS_LEAVING
    if p.links[packet.hop.link].side == keys.LOCAL:
        return verdict.GOES_ON
    decision = rules.evaluate_chain(c, packet.passage, rules.CHAIN_OUTPUT, p.now_ms)
    if decision != match.ACCEPT:
        return turn_away(packet, decision, verdict.OUTPUT_DENIED, icmp.HOST_UNREACHABLE)
    if c.accounting:
        rules.evaluate_chain(c, packet.passage, rules.CHAIN_ACCOUNTING, p.now_ms)
    return verdict.GOES_ON


cdef inline Outcome leaves(Path *p, Packet *packet, const Ends *ends) noexcept nogil:
    """Let a packet leave with these ends, if the output chain lets it; it is still as it came, but for its TOS.

    What is for a program of the host does not leave, so only the rules that let it in may have changed its TOS.
    """
    cdef Passage *passage = packet.passage
    cdef Outcome outcome
    if passage.settled != NULL:
        passage.settled.sent_packets += 1
        passage.settled.sent_octets += packet.length
        write_tos(packet.ip, passage.settled.tos_and, passage.settled.tos_xor)
        return verdict.GOES_ON
    outcome = ask_output(p, packet, ends)
    if outcome == verdict.GOES_ON:
        write_tos(packet.ip, passage.probe.tos_and, passage.probe.tos_xor)
    return outcome


cdef inline Outcome sent_out(Path *p, Packet *packet, const Ends *ends, uint8_t decision) noexcept nogil:
    """The same, and remember it for the packet's flow; decision is MASQ when it is translated, else ACCEPT."""
    cdef Outcome outcome = leaves(p, packet, ends)
    if outcome == verdict.GOES_ON and packet.passage.settled == NULL:
        remember_verdict(p, packet, decision)
    return outcome


cdef inline Outcome sent_translated(Path *p, Packet *packet, const Ends *ends) noexcept nogil:
    """Whether a packet may be sent with these ends, its new ones."""
    return sent_out(p, packet, ends, match.MASQ) if p.chains != NULL else verdict.GOES_ON


cdef inline Outcome sent_round(Path *p, Packet *packet, const Ends *ends) noexcept nogil:
    """The same for a packet that turns round here, which is not remembered: its receiver may be another the next time."""
    return leaves(p, packet, ends) if p.chains != NULL else verdict.GOES_ON
