# Where a packet on its way meets the chains: input as it arrives, forward before it is masqueraded, output after (T-1..T-9).
#
# All begins with `admitted`; the others may rely on what it noted in p.chains. Without rules p.chains is NULL, and the
# path asks none of these. The verdict on a packet of a flow is remembered as the list of rows that it matched: the next
# one of the flow only adds to that list's counters. A packet that logs, or whose verdict may differ from that on the
# flow's others (a TCP segment without ACK, a reset, an ICMP query with a code), asks the rules itself.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fastmasq.path.reply cimport reply_error
from fastmasq.path.rules cimport (
    ACCEPT, CHAIN_ACCOUNTING, CHAIN_FORWARD, CHAIN_INPUT, CHAIN_OUTPUT, CachedVerdict, Chains, MASQ, MATCHED, NOWHERE, Probe,
    REDIRECT, REJECT, ROUTED_FLOWS, SHOWS_ACK, SHOWS_FRAGMENT, SHOWS_LEAVING, SHOWS_PORTS, SHOWS_SYN, evaluate_chain, intern_path,
)
from fastmasq.path.state cimport KIND_SESSION, KIND_TUNNEL, Parsed, Path, count_drop
from fastmasq.path.verdict cimport (
    FORWARD_DENIED, FORWARD_REJECTED, INPUT_DENIED, INPUT_REJECTED, OUTPUT_DENIED, OUTPUT_REJECTED,
)
from fastmasq.ring.abi cimport PACKET_HOST
from fastmasq.ring.ring cimport Frame
from fastmasq.table.keys cimport LOCAL
from fastmasq.wire.checksum cimport delta16, update_full_at
from fastmasq.wire.icmp cimport DESTINATION_UNREACHABLE, HOST_UNREACHABLE, ICMP_CODE, ICMP_TYPE, PORT_UNREACHABLE
from fastmasq.wire.ipv4 cimport (
    IPV4_CHECKSUM, IPV4_FRAGMENT, IPV4_TOS, OFFSET_MASK, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP,
)
from fastmasq.wire.octets cimport load16
from fastmasq.wire.tcp cimport ACK, RST, SYN, TCP_FLAGS


cdef inline void show_flags(Probe *probe, uint8_t flags) noexcept nogil:
    if flags & (ACK | RST):
        probe.shows |= SHOWS_ACK
    elif flags & SYN:
        probe.shows |= SHOWS_SYN


cdef inline void describe(Probe *probe, int link, const Parsed *parsed) noexcept nogil:
    """Fill in a probe for a packet that has just arrived. The door has seen to it that a first fragment shows all (C-59)."""
    memset(probe, 0, sizeof(Probe))
    probe.ip = parsed.ip
    probe.saddr = parsed.saddr
    probe.daddr = parsed.daddr
    probe.octets = parsed.length
    probe.link = <uint8_t>link
    probe.link_bit = <uint16_t>(1 << link)
    probe.protocol = parsed.protocol
    probe.tos_and = 0xFF
    if load16(parsed.ip + IPV4_FRAGMENT) & OFFSET_MASK:
        probe.shows = SHOWS_FRAGMENT
    elif parsed.protocol == PROTOCOL_ICMP:
        probe.shows = SHOWS_PORTS
        probe.sport, probe.dport = parsed.transport[ICMP_TYPE], parsed.transport[ICMP_CODE]
    elif parsed.protocol == PROTOCOL_TCP or parsed.protocol == PROTOCOL_UDP:
        probe.shows = SHOWS_PORTS
        probe.sport, probe.dport = parsed.sid, parsed.did
        if parsed.protocol == PROTOCOL_TCP:
            show_flags(probe, parsed.transport[TCP_FLAGS])


cdef inline bint speaks_for_its_flow(const Parsed *parsed) noexcept nogil:
    """Whether rules can tell this packet from no other of the same flow that says True."""
    if parsed.protocol == PROTOCOL_TCP:
        return (parsed.transport[TCP_FLAGS] & (ACK | RST)) == ACK
    return parsed.kind == KIND_TUNNEL or parsed.protocol == PROTOCOL_UDP or parsed.transport[ICMP_CODE] == 0


cdef inline uint64_t verdict_generation(const Path *p) noexcept nogil:
    return (<uint64_t>p.chains.generation << 32) | p.generation


cdef inline uint32_t way_in(int link, const Parsed *parsed) noexcept nogil:
    """Return what tells flows with one key apart: the link they come by, and of tunnels whose the key was."""
    return <uint32_t>link | (parsed.tunnel_serial << 8 if parsed.kind == KIND_TUNNEL else 0)


cdef inline void find_verdict(Path *p, int link, const Frame *frame, const Parsed *parsed, int64_t ref) noexcept nogil:
    """Find where the verdict on the packet's flow is remembered, or is to be; ref is its flow, negative without one."""
    cdef Chains *c = p.chains
    cdef CachedVerdict *slot
    c.slot = NULL
    c.settled = NULL
    if frame.packet_type != PACKET_HOST or not c.is_cacheable or not (
            parsed.kind == KIND_SESSION or (parsed.kind == KIND_TUNNEL and ref >= 0)) or not speaks_for_its_flow(parsed):
        return
    c.has_flow = ref >= 0
    if ref >= 0 and parsed.kind == KIND_SESSION:
        slot = &c.flows[ref]
    else:
        slot = &c.routed[parsed.hash & (ROUTED_FLOWS - 1)]
    c.slot = slot
    if (slot.generation == verdict_generation(p) and slot.key0 == parsed.key0 and slot.key1 == parsed.key1
            and slot.link == way_in(link, parsed)):
        c.settled = &c.paths[slot.path]


cdef inline void remember_verdict(Path *p, int link, const Parsed *parsed, uint8_t verdict) noexcept nogil:
    """Remember what the packet in hand has matched, for all of its flow.

    Not of a packet translated without a flow of its own: its endpoints would be others the next time.
    """
    cdef Chains *c = p.chains
    cdef uint32_t path
    if c.slot == NULL or c.logged or c.again or c.matched_count > MATCHED or (verdict == MASQ and not c.has_flow):
        return
    path = intern_path(c, verdict)
    if path == NOWHERE:
        return
    c.slot.key0 = parsed.key0
    c.slot.key1 = parsed.key1
    c.slot.generation = verdict_generation(p)
    c.slot.path = path
    c.slot.link = way_in(link, parsed)


cdef inline void turn_away(Path *p, int link, const Frame *frame, const Parsed *parsed, uint8_t verdict, int denied,
                           uint8_t code) noexcept nogil:
    """Drop what a chain does not accept; the reason for a rejection comes next to that for a denial (T-9)."""
    if verdict == REJECT:
        count_drop(p, denied + 1)
        reply_error(p, link, frame, parsed, DESTINATION_UNREACHABLE, code, 0)
    else:
        count_drop(p, denied)


cdef inline bint admitted(Path *p, int link, const Frame *frame, const Parsed *parsed, int64_t ref) noexcept nogil:
    """The input chain, on a packet as it came from the wire; False: dropped.

    It does not see what a program of the host has sent. What is redirected is let in, and p.chains says so (T-10).
    """
    cdef Chains *c = p.chains
    cdef uint8_t verdict = ACCEPT
    find_verdict(p, link, frame, parsed, ref)
    if c.settled != NULL:
        if not c.again:
            c.settled.admitted_packets += 1
            c.settled.admitted_octets += parsed.length
        return True
    c.forwarded = 0
    c.logged = False
    c.matched_count = 0
    describe(&c.probe, link, parsed)
    if p.links[link].side != LOCAL:
        if c.accounting and not c.again:
            evaluate_chain(c, CHAIN_ACCOUNTING, c.first[CHAIN_ACCOUNTING], p.now_ms)
        verdict = evaluate_chain(c, CHAIN_INPUT, c.first[CHAIN_INPUT], p.now_ms)
    c.admitted = c.matched_count
    c.redirected = verdict == REDIRECT
    if verdict != ACCEPT and verdict != REDIRECT:
        turn_away(p, link, frame, parsed, verdict, INPUT_DENIED, PORT_UNREACHABLE)
        return False
    return True


cdef inline uint8_t forward_verdict(Path *p, int link, int out_link, const Frame *frame, const Parsed *parsed) noexcept nogil:
    """The forward chain, on a packet as it came, about to leave by out_link; MASQ, ACCEPT, or 0: dropped. Asked once."""
    cdef Chains *c = p.chains
    if c.settled != NULL:
        return c.settled.verdict
    if c.forwarded:
        return c.forwarded
    c.probe.link = <uint8_t>out_link
    c.probe.link_bit = <uint16_t>(1 << out_link)
    c.forwarded = evaluate_chain(c, CHAIN_FORWARD, c.first[CHAIN_FORWARD], p.now_ms)
    if c.forwarded != ACCEPT and c.forwarded != MASQ:
        turn_away(p, link, frame, parsed, c.forwarded, FORWARD_DENIED, HOST_UNREACHABLE)
        return 0
    return c.forwarded


cdef inline void write_tos(uint8_t *ip, uint8_t keep, uint8_t change) noexcept nogil:
    cdef uint16_t before = load16(ip)
    ip[IPV4_TOS] = (ip[IPV4_TOS] & keep) ^ change
    update_full_at(ip + IPV4_CHECKSUM, delta16(before, load16(ip)))


cdef inline bint sent_out(Path *p, int link, int out_link, const Frame *frame, Parsed *parsed, uint32_t saddr, uint16_t sid,
                          uint32_t daddr, uint16_t did, uint8_t verdict) noexcept nogil:
    """The output chain, on a packet about to leave by out_link with these endpoints; False: dropped.

    The packet itself is still as it came, but for its TOS. verdict is MASQ when it is translated, else ACCEPT. What is
    for a program of the host does not leave, so only the rules that let it in may have changed its TOS.
    """
    cdef Chains *c = p.chains
    cdef uint8_t output
    if c.settled != NULL:
        c.settled.sent_packets += 1
        c.settled.sent_octets += parsed.length
        if c.settled.tos_and != 0xFF or c.settled.tos_xor:
            write_tos(parsed.ip, c.settled.tos_and, c.settled.tos_xor)
        return True
    c.probe.link = <uint8_t>out_link
    c.probe.link_bit = <uint16_t>(1 << out_link)
    c.probe.saddr = saddr
    c.probe.daddr = daddr
    if parsed.kind == KIND_SESSION and parsed.protocol != PROTOCOL_ICMP:
        c.probe.sport = sid
        c.probe.dport = did
    c.probe.shows |= SHOWS_LEAVING
    if p.links[out_link].side != LOCAL:
        output = evaluate_chain(c, CHAIN_OUTPUT, c.first[CHAIN_OUTPUT], p.now_ms)
        if output != ACCEPT:
            turn_away(p, link, frame, parsed, output, OUTPUT_DENIED, HOST_UNREACHABLE)
            return False
        if c.accounting:
            evaluate_chain(c, CHAIN_ACCOUNTING, c.first[CHAIN_ACCOUNTING], p.now_ms)
    remember_verdict(p, link, parsed, verdict)
    if c.probe.tos_and != 0xFF or c.probe.tos_xor:
        write_tos(parsed.ip, c.probe.tos_and, c.probe.tos_xor)
    return True
