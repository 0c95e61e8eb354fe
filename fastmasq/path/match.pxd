# One rule against one packet: the rows that chains are made of, what a packet shows of itself, and whether they fit.
#
# Semantics: policy/evaluate.py.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastmasq.table.keys cimport Ends
from fastmasq.wire cimport numbers

cdef enum:                 # targets of rows; those from ACCEPT on are verdicts
    TARGET_NONE = 0
    TARGET_JUMP = 1
    TARGET_RETURN = 2
    TARGET_END = 3              # the end of a user chain
    ACCEPT = 4
    DENY = 5
    REJECT = 6
    MASQ = 7
    LOOP = 8
    REDIRECT = 9

cdef enum:                 # flags of rows
    NOT_SOURCE = 0x0001
    NOT_DESTINATION = 0x0002
    NOT_PROTOCOL = 0x0004
    NOT_SOURCE_PORTS = 0x0008
    NOT_DESTINATION_PORTS = 0x0010
    SWAPPED_TOO = 0x0020
    LOGS = 0x0040
    WANTS_SYN = 0x0080
    WANTS_NO_SYN = 0x0100
    WANTS_ACK = 0x0200
    WANTS_FRAGMENT = 0x0400
    WANTS_NO_FRAGMENT = 0x0800
    ONLY_ARRIVING = 0x1000
    ONLY_LEAVING = 0x2000
    ASKS = 0x3F80               # any of the seven before

cdef enum:                 # what a packet shows
    SHOWS_PORTS = 0x01
    SHOWS_SYN = 0x02            # SYN set, ACK and RST clear
    SHOWS_ACK = 0x04            # ACK or RST set
    SHOWS_FRAGMENT = 0x08       # a second or further fragment
    SHOWS_LEAVING = 0x10        # about to be sent


cdef struct ChainRule:
    uint32_t source
    uint32_t source_mask
    uint32_t destination
    uint32_t destination_mask
    uint32_t target_row         # first row of the chain jumped to; of RETURN, the end of its own chain; of REDIRECT, the port
    uint32_t mark_and           # mark := (mark & mark_and) + mark_add
    uint32_t mark_add
    uint32_t ports              # first of its ranges: those of the source, then those of the destination
    uint16_t links              # a bit for each link that its interface and interface address fit
    uint16_t flags
    uint16_t chain              # number of the chain it is in
    uint8_t source_ports        # number of ranges; 0: any
    uint8_t destination_ports
    uint8_t protocol            # 0: any
    uint8_t target
    uint8_t tos_and             # TOS := (TOS & tos_and) ^ tos_xor
    uint8_t tos_xor

cdef struct PortRange:
    uint16_t first
    uint16_t last

cdef struct RuleCount:
    uint64_t packets
    uint64_t octets


cdef struct Probe:
    # what rules see of a packet, and what they have made of its mark and TOS
    const uint8_t *ip
    uint32_t octets
    uint32_t mark
    Ends ends                   # of ICMP, type and code stand for the ports
    uint16_t link_bit
    uint8_t link
    uint8_t protocol
    uint8_t shows
    uint8_t tos_and
    uint8_t tos_xor


cdef inline bint port_matches(const PortRange *ranges, int count, uint16_t port, bint shown, bint inverted) noexcept nogil:
    """A packet that shows no ports fits only a rule that asks for none; the full range asks for none."""
    cdef int i
    if count == 0:
        return True
    if not shown:
        return count == 1 and ranges[0].first == 0 and ranges[0].last == 0xFFFF
    for i in range(count):
        if ranges[i].first <= port <= ranges[i].last:
            return not inverted
    return inverted


cdef inline bint ends_match(const PortRange *ranges, const ChainRule *rule, uint8_t shows, const Ends *ends) noexcept nogil:
    cdef bint shown = shows & SHOWS_PORTS
    if ((ends.saddr & rule.source_mask) != rule.source) != (rule.flags & NOT_SOURCE != 0):
        return False
    if ((ends.daddr & rule.destination_mask) != rule.destination) != (rule.flags & NOT_DESTINATION != 0):
        return False
    if rule.source_ports == 0 and rule.destination_ports == 0:
        return True
    ranges += rule.ports
    return (port_matches(ranges, rule.source_ports, ends.sid, shown, rule.flags & NOT_SOURCE_PORTS)
            and port_matches(ranges + rule.source_ports, rule.destination_ports, ends.did, shown,
                             rule.flags & NOT_DESTINATION_PORTS))


cdef inline Ends swapped(const Probe *probe) noexcept nogil:
    """Return the ends of a packet the other way round; ICMP type and code stay what they are."""
    cdef Ends ends = probe.ends
    ends.saddr, ends.daddr = probe.ends.daddr, probe.ends.saddr
    if probe.protocol != numbers.ICMP:
        ends.sid, ends.did = probe.ends.did, probe.ends.sid
    return ends


cdef inline bint asks_match(const ChainRule *rule, const Probe *probe) noexcept nogil:
    """Direction, fragment and TCP flags: only TCP has flags to ask for, and a later fragment does not show them."""
    if rule.flags & (ONLY_LEAVING if not probe.shows & SHOWS_LEAVING else ONLY_ARRIVING):
        return False
    if rule.flags & (WANTS_FRAGMENT if not probe.shows & SHOWS_FRAGMENT else WANTS_NO_FRAGMENT):
        return False
    if probe.protocol != numbers.TCP or not rule.flags & (WANTS_SYN | WANTS_NO_SYN | WANTS_ACK):
        return True
    if probe.shows & SHOWS_FRAGMENT:
        return False
    if rule.flags & WANTS_ACK and not probe.shows & SHOWS_ACK:
        return False
    if rule.flags & WANTS_SYN:
        return probe.shows & SHOWS_SYN != 0
    return not (rule.flags & WANTS_NO_SYN and probe.shows & SHOWS_SYN)


cdef inline bint rule_matches(const PortRange *ranges, const ChainRule *rule, const Probe *probe) noexcept nogil:
    """Whether a rule fits a packet; ranges are those of all rules."""
    cdef Ends other
    if not rule.links & probe.link_bit:
        return False
    if rule.protocol and (rule.protocol == probe.protocol) == (rule.flags & NOT_PROTOCOL != 0):
        return False
    if not ends_match(ranges, rule, probe.shows, &probe.ends):
        if not rule.flags & SWAPPED_TOO:
            return False
        other = swapped(probe)
        if not ends_match(ranges, rule, probe.shows, &other):
            return False
    return not rule.flags & ASKS or asks_match(rule, probe)
