# Chains of rules: one packet against one chain, and the packet's passage through them all.
#
# A chain is a run of rows ended by a row that always matches: the policy of a built-in chain, or the way back of a user
# chain. Counters, log requests and the list of matched rows are kept on the way. Semantics: policy/evaluate.py.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastmasq.path cimport match
from fastmasq.path.match cimport ChainRule, PortRange, Probe, RuleCount
from fastmasq.path.remembered cimport CachedVerdict, MATCHED, Matched, Remembered, VerdictPath
from fastmasq.table.bucket cimport Bucket, take_token

cdef enum:
    LOG_RECORDS = 256
    LOG_HEADER = 60             # octets of the packet kept in a log record
    LOG_RATE = 20               # log records a second
    LOG_BURST = 100

cdef enum:                 # built-in chains, by number
    CHAIN_INPUT = 0
    CHAIN_FORWARD = 1
    CHAIN_OUTPUT = 2
    CHAIN_ACCOUNTING = 3
    CHAINS = 4


cdef struct CallerRow:
    uint64_t asked              # serial number of the question that is in the chain
    uint32_t row                # where it goes on afterwards

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
    uint8_t ip[LOG_HEADER]

cdef struct Passage:
    # what the rules remember of the packet in hand
    CachedVerdict *slot         # where its verdict is, or is to be, remembered; NULL: nowhere
    VerdictPath *settled        # its verdict is known; NULL: it is not
    bint has_flow               # it belonged to a session or tunnel when it came
    bint logged
    bint is_redirected          # to a program of this host
    uint16_t redirect_port      # its port, 0: the one that the packet has
    uint8_t forwarded           # verdict of the forward chain on it; 0 before
    uint8_t counts_from         # of the built-in chains those before have counted it already
    Matched matched
    Probe probe

cdef struct Chains:
    const ChainRule *rows
    const PortRange *ranges
    RuleCount *counts           # of each row
    CallerRow *callers          # of each chain
    uint32_t first[CHAINS]      # rows where the built-in chains begin
    bint default_forward        # nobody has touched the forward chain
    bint accounting             # the accounting chain has rules
    bint redirects              # a rule may redirect, so datagrams in pieces have to be put together first (C-57)
    bint is_cacheable
    uint64_t asked              # how often a built-in chain was: the serial number of that
    Remembered remembered
    # log records
    LogRecord *log              # [LOG_RECORDS]
    uint32_t log_count
    Bucket log_bucket
    uint64_t log_suppressed


cdef inline void begin_passage(Passage *passage, uint8_t counts_from) noexcept nogil:
    """Begin with a packet that no rule has seen."""
    passage.slot = NULL
    passage.settled = NULL
    passage.has_flow = False
    passage.logged = False
    passage.is_redirected = False
    passage.forwarded = 0
    passage.counts_from = counts_from
    passage.matched.count = 0


cdef inline void request_log(Chains *c, const Probe *probe, int base, uint32_t row, bint loop, uint32_t now_ms) noexcept nogil:
    """Have the daemon print a line about the packet, LOG_RATE a second at the most."""
    cdef LogRecord *record
    if c.log_count == LOG_RECORDS or not take_token(&c.log_bucket, now_ms, LOG_RATE, LOG_BURST):
        c.log_suppressed += 1
        return
    record = &c.log[c.log_count]
    c.log_count += 1
    record.row = row
    record.saddr, record.daddr = probe.ends.saddr, probe.ends.daddr
    record.sport, record.dport = probe.ends.sid, probe.ends.did
    record.link = probe.link
    record.base = base
    record.shows = probe.shows
    record.loop = loop
    memcpy(record.ip, probe.ip, (probe.ip[0] & 15) * 4)


cdef inline void note_match(Chains *c, Passage *passage, int base, uint32_t row, uint32_t now_ms) noexcept nogil:
    """Count and log a match, and apply what the rule does to mark and TOS."""
    cdef const ChainRule *rule = &c.rows[row]
    cdef Probe *probe = &passage.probe
    if passage.matched.count < MATCHED:
        passage.matched.rows[passage.matched.count] = row
        passage.matched.count += 1
    else:
        passage.matched.count = MATCHED + 1
    probe.mark = (probe.mark & rule.mark_and) + rule.mark_add
    probe.tos_and &= rule.tos_and
    probe.tos_xor = (probe.tos_xor & rule.tos_and) ^ rule.tos_xor
    if base < passage.counts_from:
        return
    c.counts[row].packets += 1
    c.counts[row].octets += probe.octets
    if rule.flags & match.LOGS:
        passage.logged = True
        request_log(c, probe, base, row, False, now_ms)


cdef inline uint8_t evaluate_chain(Chains *c, Passage *passage, int base, uint32_t now_ms) noexcept nogil:
    """Return what a built-in chain says about the probe: ACCEPT, DENY, REJECT, MASQ, REDIRECT or LOOP.

    A jump into a chain that the packet has not left yet is a loop. Only the input chain redirects (section 5.3).
    """
    cdef uint32_t row = c.first[base]
    cdef const ChainRule *rule
    cdef CallerRow *caller
    c.asked += 1
    while True:
        rule = &c.rows[row]
        if not match.rule_matches(c.ranges, rule, &passage.probe):
            row += 1
            continue
        if rule.target == match.TARGET_END:
            caller = &c.callers[rule.chain]
            caller.asked = 0
            row = caller.row
            continue
        note_match(c, passage, base, row, now_ms)
        if rule.target == match.TARGET_NONE:
            row += 1
        elif rule.target == match.TARGET_RETURN:
            row = rule.target_row
        elif rule.target == match.TARGET_JUMP:
            caller = &c.callers[c.rows[rule.target_row].chain]
            if caller.asked == c.asked:
                passage.logged = True
                request_log(c, &passage.probe, base, row, True, now_ms)
                return match.LOOP
            caller.asked = c.asked
            caller.row = row + 1
            row = rule.target_row
        elif rule.target == match.MASQ and base != CHAIN_FORWARD:
            return match.ACCEPT         # only a user chain can say so, and there it means no more
        elif rule.target == match.REDIRECT and base != CHAIN_INPUT:
            return match.DENY if base == CHAIN_FORWARD else match.ACCEPT
        elif rule.target == match.REDIRECT:
            passage.redirect_port = <uint16_t>rule.target_row
            return match.REDIRECT
        else:
            return rule.target


cdef class RuleTable:
    cdef Chains chains
    cdef readonly object counts
    cdef object _rows, _ranges, _callers, _flows, _routed, _paths, _path_index, _log
    cdef void _show(self, Passage *passage, uint8_t *header, shown)
