"""RuleTable: the compiled chains, their counters, the verdicts remembered for flows, and the log records they asked for."""

import numpy as np

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from fastmasq.path import world

if (world.CHAIN_RULE.itemsize != sizeof(ChainRule) or world.PORT_RANGE.itemsize != sizeof(PortRange)
        or world.RULE_COUNT.itemsize != sizeof(RuleCount) or world.LOG_RECORD.itemsize != sizeof(LogRecord)):
    raise ImportError("path/rules.pxd and path/world.py disagree about the layout of a row")

TARGETS = {"": TARGET_NONE, "RETURN": TARGET_RETURN, "ACCEPT": ACCEPT, "DENY": DENY, "REJECT": REJECT, "MASQ": MASQ,
           "LOOP": LOOP, "REDIRECT": REDIRECT}
"""Codes of the targets that have one of their own."""

JUMP, END = TARGET_JUMP, TARGET_END
VERDICTS = {code: name for name, code in TARGETS.items() if code >= ACCEPT}
BASES = ("input", "forward", "output", "acct")
FLAGS = {
    "not_source": NOT_SOURCE, "not_destination": NOT_DESTINATION, "not_protocol": NOT_PROTOCOL,
    "not_source_ports": NOT_SOURCE_PORTS, "not_destination_ports": NOT_DESTINATION_PORTS, "swapped_too": SWAPPED_TOO,
    "log": LOGS, "syn": WANTS_SYN, "no_syn": WANTS_NO_SYN, "ack": WANTS_ACK, "fragment": WANTS_FRAGMENT,
    "no_fragment": WANTS_NO_FRAGMENT, "in": ONLY_ARRIVING, "out": ONLY_LEAVING,
}
SHOWS = {"ports": SHOWS_PORTS, "syn": SHOWS_SYN, "ack": SHOWS_ACK, "fragment": SHOWS_FRAGMENT, "out": SHOWS_LEAVING}


cdef class RuleTable:
    """What the path knows of the rules. The daemon calls these methods under the path's lock.

    sessions: rows of the session table; each has room for two remembered verdicts, touched only when used.
    """

    def __init__(self, uint32_t sessions):
        cdef Chains *c = &self.chains
        self._flows = np.zeros(2 * sessions * sizeof(CachedVerdict), "u1")
        self._routed = np.zeros(ROUTED_FLOWS * sizeof(CachedVerdict), "u1")
        self._paths = np.zeros(VERDICT_PATHS * sizeof(VerdictPath), "u1")
        self._path_index = np.zeros(2 * VERDICT_PATHS, "u2")
        self._log = np.zeros(LOG_RECORDS, world.LOG_RECORD)
        c.flows = <CachedVerdict *><size_t>self._flows.ctypes.data
        c.routed = <CachedVerdict *><size_t>self._routed.ctypes.data
        c.paths = <VerdictPath *><size_t>self._paths.ctypes.data
        c.path_index = <uint16_t *><size_t>self._path_index.ctypes.data
        c.log = <LogRecord *><size_t>self._log.ctypes.data
        c.log_tokens = LOG_BURST * 1000
        c.is_cacheable = True

    def load(self, compiled):
        """Put other chains in force, with counters at zero: `collect` the old ones before.

        compiled: what policy.compile.compile_chains makes, of which rows, ranges, first, chains, default_forward and
        accounting matter here. What is wrong with them is not checked.
        """
        cdef Chains *c = &self.chains
        if self.counts is not None:
            forget_paths(c)
        self._rows = np.ascontiguousarray(compiled.rows, world.CHAIN_RULE)
        self._ranges = np.ascontiguousarray(compiled.ranges, world.PORT_RANGE)
        self._callers = np.zeros(compiled.chains * sizeof(CallerRow), "u1")
        self.counts = np.zeros(len(self._rows), world.RULE_COUNT)
        c.rows = <const ChainRule *><size_t>self._rows.ctypes.data
        c.ranges = <const PortRange *><size_t>self._ranges.ctypes.data
        c.callers = <CallerRow *><size_t>self._callers.ctypes.data
        c.counts = <RuleCount *><size_t>self.counts.ctypes.data
        for base in range(4):
            c.first[base] = compiled.first[base]
        c.generation += 1
        c.default_forward = compiled.default_forward
        c.accounting = compiled.accounting
        c.redirects = bool((self._rows["target"] == REDIRECT).any())

    def set_cache(self, bint on):
        """Remember verdicts, or ask the rules about every packet. For tests and measurements."""
        self.chains.is_cacheable = on
        if self.counts is not None:
            forget_paths(&self.chains)

    def collect(self):
        """Return world.RULE_COUNT of every row, what it has counted since the last call."""
        if self.counts is None:
            return np.zeros(0, world.RULE_COUNT)
        fold_paths(&self.chains)
        counted = self.counts.copy()
        self.counts[:] = 0
        return counted

    def drain_log(self):
        """Return the world.LOG_RECORD asked for since the last call, and how many more there would have been."""
        records = self._log[:self.chains.log_count].copy()
        suppressed = self.chains.log_suppressed
        self.chains.log_count = 0
        self.chains.log_suppressed = 0
        return records, suppressed

    def evaluate(self, int base, *, uint32_t saddr, uint32_t daddr, uint8_t protocol, uint16_t sport=0, uint16_t dport=0,
                 uint8_t shows=0, int link=0, uint32_t mark=0, uint32_t octets=0, uint32_t now_ms=0):
        """Put one packet to a chain, as the path does; return (verdict, mark, (and, xor) of TOS, matched rows)."""
        cdef Chains *c = &self.chains
        cdef uint8_t header[60]
        cdef uint8_t verdict
        memset(header, 0, sizeof(header))
        header[0] = 0x45
        memset(&c.probe, 0, sizeof(Probe))
        c.probe.ip = header
        c.probe.saddr, c.probe.daddr, c.probe.protocol = saddr, daddr, protocol
        c.probe.sport, c.probe.dport, c.probe.shows = sport, dport, shows
        c.probe.link, c.probe.link_bit = link, 1 << link
        c.probe.octets, c.probe.mark, c.probe.tos_and = octets, mark, 0xFF
        c.matched_count = 0
        verdict = evaluate_chain(c, base, c.first[base], now_ms)
        matched = [c.matched[i] for i in range(min(c.matched_count, <int>MATCHED))]
        return VERDICTS[verdict], c.probe.mark, (c.probe.tos_and, c.probe.tos_xor), matched

    def rounds(self, int base, int count, *, uint32_t saddr, uint32_t daddr, uint8_t protocol, uint16_t sport, uint16_t dport):
        """Put one packet to a chain `count` times; return how often it was accepted. For measurements."""
        cdef Chains *c = &self.chains
        cdef int accepted = 0
        cdef int _
        self.evaluate(base, saddr=saddr, daddr=daddr, protocol=protocol, sport=sport, dport=dport, shows=SHOWS_PORTS)
        with nogil:
            for _ in range(count):
                c.matched_count = 0
                accepted += evaluate_chain(c, base, c.first[base], 0) == ACCEPT
        return accepted

    @property
    def remembered(self):
        """How many different lists of matched rows there are."""
        return self.chains.path_count
