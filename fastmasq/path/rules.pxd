# Chains of rules in the path: one packet against one chain, and what is remembered of it so that a flow asks only once.
#
# A chain is a run of rows ended by a row that always matches: the policy of a built-in chain, or the way back of a user
# chain. Counters, log requests and the list of matched rows are kept on the way. Semantics: policy/evaluate.py.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    MATCHED = 22                # matched rows remembered of a packet; one with more is not cached
    VERDICT_PATHS = 4096        # different lists of matched rows remembered at a time
    ROUTED_FLOWS = 65536        # cached flows without a session
    LOG_RECORDS = 256
    LOG_HEADER = 60             # octets of the packet kept in a log record
    LOG_RATE = 20               # log records a second
    LOG_BURST = 100
    NOWHERE = 0xFFFFFFFFU

cdef enum:                 # built-in chains, by number
    CHAIN_INPUT = 0
    CHAIN_FORWARD = 1
    CHAIN_OUTPUT = 2
    CHAIN_ACCOUNTING = 3

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

cdef struct CallerRow:
    uint64_t packet             # serial number of the packet that is in the chain
    uint32_t row                # where it goes on afterwards

cdef struct Probe:
    # what rules see of a packet, and what they have made of its mark and TOS
    const uint8_t *ip
    uint32_t saddr
    uint32_t daddr
    uint32_t octets
    uint32_t mark
    uint16_t sport              # of ICMP, the type
    uint16_t dport              # of ICMP, the code
    uint16_t link_bit
    uint8_t link
    uint8_t protocol
    uint8_t shows
    uint8_t tos_and
    uint8_t tos_xor

cdef struct LogRecord:
    uint32_t row
    uint32_t saddr
    uint32_t daddr
    uint16_t sport
    uint16_t dport
    uint8_t link
    uint8_t base                # the built-in chain
    uint8_t shows
    uint8_t loop                # not the rule's own wish: its jump closed a loop
    uint8_t ip[60]

cdef struct VerdictPath:
    # a list of matched rows with what it did, shared by all flows that match the same
    uint64_t admitted_packets   # past the input chain: counts for the first `admitted` rows
    uint64_t admitted_octets
    uint64_t sent_packets       # past the output chain: counts for the others
    uint64_t sent_octets
    uint8_t verdict             # MASQ: translated, ACCEPT: as it is
    uint8_t tos_and
    uint8_t tos_xor
    uint8_t admitted
    uint8_t count
    uint8_t reserved[3]
    uint32_t rows[22]

cdef struct CachedVerdict:
    uint64_t key0
    uint64_t key1
    uint64_t generation         # of rules << 32 | of the world
    uint32_t path
    uint32_t link               # it arrived on, and of a tunnel its way's serial number << 8

cdef struct Chains:
    const ChainRule *rows
    const PortRange *ranges
    RuleCount *counts           # of each row
    CallerRow *callers          # of each chain
    uint32_t first[4]           # rows where the built-in chains begin
    uint32_t generation
    bint default_forward        # nobody has touched the forward chain
    bint accounting             # the accounting chain has rules
    bint redirects              # a rule may redirect, so datagrams in pieces have to be put together first (C-57)
    # the packet in hand
    Probe probe
    uint64_t packet             # its serial number
    uint32_t matched[22]
    int matched_count           # MATCHED + 1: too many
    int admitted                # how many of them until it was let in
    bint logged
    bint again                  # it was let in before, and waited: not to be counted twice
    bint asked_tracker          # and it got past the forward chain as well
    bint is_cacheable
    bint has_flow               # it belongs to a session
    bint redirected             # to a program of this host
    uint16_t redirect_port      # its port, 0: the one that the packet has
    uint8_t forwarded           # verdict of the forward chain on it; 0 before
    CachedVerdict *slot         # where its verdict is, or is to be, remembered
    VerdictPath *settled        # its verdict is known
    # remembered verdicts
    CachedVerdict *flows        # two for each row of the session table
    CachedVerdict *routed       # [ROUTED_FLOWS]
    VerdictPath *paths          # [VERDICT_PATHS]
    uint16_t *path_index        # [2 * VERDICT_PATHS]: hash of the rows -> path + 1
    uint32_t path_count
    # log records
    LogRecord *log              # [LOG_RECORDS]
    uint32_t log_count
    uint32_t log_tokens         # in thousandths
    uint32_t log_stamp_ms
    uint64_t log_suppressed


# -- one rule --------------------------------------------------------------------------------------------------------

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


cdef inline bint ends_match(const Chains *c, const ChainRule *rule, const Probe *probe, uint32_t saddr, uint32_t daddr,
                            uint16_t sport, uint16_t dport) noexcept nogil:
    cdef const PortRange *ranges
    cdef bint shown
    if ((saddr & rule.source_mask) != rule.source) != (rule.flags & NOT_SOURCE != 0):
        return False
    if ((daddr & rule.destination_mask) != rule.destination) != (rule.flags & NOT_DESTINATION != 0):
        return False
    if rule.source_ports == 0 and rule.destination_ports == 0:
        return True
    ranges = &c.ranges[rule.ports]
    shown = probe.shows & SHOWS_PORTS
    return (port_matches(ranges, rule.source_ports, sport, shown, rule.flags & NOT_SOURCE_PORTS)
            and port_matches(ranges + rule.source_ports, rule.destination_ports, dport, shown,
                             rule.flags & NOT_DESTINATION_PORTS))


cdef inline bint asks_match(const ChainRule *rule, const Probe *probe) noexcept nogil:
    """Direction, fragment and TCP flags: only TCP has flags to ask for, and a later fragment does not show them."""
    if rule.flags & (ONLY_LEAVING if not probe.shows & SHOWS_LEAVING else ONLY_ARRIVING):
        return False
    if rule.flags & (WANTS_FRAGMENT if not probe.shows & SHOWS_FRAGMENT else WANTS_NO_FRAGMENT):
        return False
    if probe.protocol != 6 or not rule.flags & (WANTS_SYN | WANTS_NO_SYN | WANTS_ACK):
        return True
    if probe.shows & SHOWS_FRAGMENT:
        return False
    if rule.flags & WANTS_ACK and not probe.shows & SHOWS_ACK:
        return False
    if rule.flags & WANTS_SYN:
        return probe.shows & SHOWS_SYN != 0
    return not (rule.flags & WANTS_NO_SYN and probe.shows & SHOWS_SYN)


cdef inline bint rule_matches(const Chains *c, const ChainRule *rule, const Probe *probe) noexcept nogil:
    cdef bint swap_ports
    if not rule.links & probe.link_bit:
        return False
    if rule.protocol and (rule.protocol == probe.protocol) == (rule.flags & NOT_PROTOCOL != 0):
        return False
    if not ends_match(c, rule, probe, probe.saddr, probe.daddr, probe.sport, probe.dport):
        if not rule.flags & SWAPPED_TOO:
            return False
        swap_ports = probe.protocol != 1        # ICMP type and code stay what they are
        if not ends_match(c, rule, probe, probe.daddr, probe.saddr, probe.dport if swap_ports else probe.sport,
                          probe.sport if swap_ports else probe.dport):
            return False
    return not rule.flags & ASKS or asks_match(rule, probe)


# -- one chain -------------------------------------------------------------------------------------------------------

cdef inline void request_log(Chains *c, int base, uint32_t row, bint loop, uint32_t now_ms) noexcept nogil:
    """Have the daemon print a line about the packet, LOG_RATE a second at the most."""
    cdef uint64_t tokens = c.log_tokens + <uint64_t>(now_ms - c.log_stamp_ms) * LOG_RATE
    cdef LogRecord *record
    c.logged = True
    c.log_tokens = <uint32_t>(tokens if tokens < LOG_BURST * 1000 else LOG_BURST * 1000)
    c.log_stamp_ms = now_ms
    if c.log_tokens < 1000 or c.log_count == LOG_RECORDS:
        c.log_suppressed += 1
        return
    c.log_tokens -= 1000
    record = &c.log[c.log_count]
    c.log_count += 1
    record.row = row
    record.saddr = c.probe.saddr
    record.daddr = c.probe.daddr
    record.sport = c.probe.sport
    record.dport = c.probe.dport
    record.link = c.probe.link
    record.base = base
    record.shows = c.probe.shows
    record.loop = loop
    memcpy(record.ip, c.probe.ip, (c.probe.ip[0] & 15) * 4)


cdef inline void note_match(Chains *c, int base, uint32_t row, uint32_t now_ms) noexcept nogil:
    """Count and log a match, and apply what the rule does to mark and TOS."""
    cdef const ChainRule *rule = &c.rows[row]
    if c.matched_count < MATCHED:
        c.matched[c.matched_count] = row
        c.matched_count += 1
    else:
        c.matched_count = MATCHED + 1
    c.probe.mark = (c.probe.mark & rule.mark_and) + rule.mark_add
    c.probe.tos_and &= rule.tos_and
    c.probe.tos_xor = (c.probe.tos_xor & rule.tos_and) ^ rule.tos_xor
    if c.again and (base == CHAIN_INPUT or (base == CHAIN_FORWARD and c.asked_tracker)):
        return
    c.counts[row].packets += 1
    c.counts[row].octets += c.probe.octets
    if rule.flags & LOGS:
        request_log(c, base, row, False, now_ms)


cdef inline uint8_t evaluate_chain(Chains *c, int base, uint32_t row, uint32_t now_ms) noexcept nogil:
    """Return what a built-in chain, beginning at `row`, says about c.probe: ACCEPT, DENY, REJECT, MASQ, REDIRECT or LOOP.

    A jump into a chain that the packet has not left yet is a loop. Only the input chain redirects (section 5.3).
    """
    cdef const ChainRule *rule
    cdef CallerRow *caller
    c.packet += 1
    while True:
        rule = &c.rows[row]
        if not rule_matches(c, rule, &c.probe):
            row += 1
            continue
        if rule.target == TARGET_END:
            caller = &c.callers[rule.chain]
            caller.packet = 0
            row = caller.row
            continue
        note_match(c, base, row, now_ms)
        if rule.target == TARGET_NONE:
            row += 1
        elif rule.target == TARGET_RETURN:
            row = rule.target_row
        elif rule.target == TARGET_JUMP:
            caller = &c.callers[c.rows[rule.target_row].chain]
            if caller.packet == c.packet:
                request_log(c, base, row, True, now_ms)
                return LOOP
            caller.packet = c.packet
            caller.row = row + 1
            row = rule.target_row
        elif rule.target == MASQ and base != CHAIN_FORWARD:
            return ACCEPT               # only a user chain can say so, and there it means no more
        elif rule.target == REDIRECT and base != CHAIN_INPUT:
            return DENY if base == CHAIN_FORWARD else ACCEPT
        elif rule.target == REDIRECT:
            c.redirect_port = <uint16_t>rule.target_row
            return REDIRECT
        else:
            return rule.target


# -- verdicts remembered ---------------------------------------------------------------------------------------------

cdef inline void fold_paths(Chains *c) noexcept nogil:
    """Add what was counted for lists of matched rows to the rows themselves."""
    cdef VerdictPath *path
    cdef RuleCount *count
    cdef uint32_t number
    cdef int i
    for number in range(c.path_count):
        path = &c.paths[number]
        for i in range(path.count):
            count = &c.counts[path.rows[i]]
            if i < path.admitted:
                count.packets += path.admitted_packets
                count.octets += path.admitted_octets
            else:
                count.packets += path.sent_packets
                count.octets += path.sent_octets
        path.admitted_packets = path.admitted_octets = path.sent_packets = path.sent_octets = 0


cdef inline void forget_paths(Chains *c) noexcept nogil:
    """Have every flow ask the rules again."""
    cdef uint32_t i
    fold_paths(c)
    for i in range(2 * VERDICT_PATHS):
        c.path_index[i] = 0
    c.path_count = 0
    c.generation += 1


cdef inline bint same_path(const Chains *c, const VerdictPath *path, uint8_t verdict) noexcept nogil:
    cdef int i
    if path.count != c.matched_count or path.admitted != c.admitted or path.verdict != verdict:
        return False
    for i in range(c.matched_count):
        if path.rows[i] != c.matched[i]:
            return False
    return True


cdef inline uint32_t intern_path(Chains *c, uint8_t verdict) noexcept nogil:
    """Return the number of the list of matched rows of the packet in hand; NOWHERE while there are too many."""
    cdef uint32_t hash = 2166136261U + verdict
    cdef uint32_t at, number
    cdef VerdictPath *path
    cdef int i
    for i in range(c.matched_count):
        hash = (hash ^ c.matched[i]) * 16777619U
    at = (hash ^ (hash >> 16)) & (2 * VERDICT_PATHS - 1)
    while c.path_index[at]:
        number = c.path_index[at] - 1
        if same_path(c, &c.paths[number], verdict):
            return number
        at = (at + 1) & (2 * VERDICT_PATHS - 1)
    if c.path_count == VERDICT_PATHS:
        forget_paths(c)
        return NOWHERE
    number = c.path_count
    c.path_count += 1
    c.path_index[at] = <uint16_t>(number + 1)
    path = &c.paths[number]
    path.admitted_packets = path.admitted_octets = path.sent_packets = path.sent_octets = 0
    path.verdict = verdict
    path.tos_and = c.probe.tos_and
    path.tos_xor = c.probe.tos_xor
    path.admitted = <uint8_t>c.admitted
    path.count = <uint8_t>c.matched_count
    for i in range(c.matched_count):
        path.rows[i] = c.matched[i]
    return number


cdef class RuleTable:
    cdef Chains chains
    cdef readonly object counts
    cdef object _rows, _ranges, _callers, _flows, _routed, _paths, _path_index, _log
