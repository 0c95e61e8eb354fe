"""RuleTable: the compiled chains, their counters, the verdicts remembered for flows, and the log records they asked for."""

from typing import NamedTuple

import numpy as np

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from fastmasq.path cimport match, remembered
from fastmasq.path.remembered cimport PATH_INDEX, ROUTED_FLOWS, VERDICT_PATHS
from fastmasq.table.bucket cimport fill
from fastmasq.table.pattern cimport lay_pattern

from fastmasq.path import rows
from fastmasq.table.rows import compare, pattern

cdef union Row:
    ChainRule rule
    PortRange range
    RuleCount count
    LogRecord record

ctypedef fused AnyRow:
    ChainRule
    PortRange
    RuleCount
    LogRecord


cdef check_mirror(name, AnyRow *row):
    """Raise ImportError where rows.py has a row otherwise than its struct has it."""
    lay_pattern(row, pattern(sizeof(AnyRow)))
    compare(rows, name, sizeof(AnyRow), row[0])


def check_mirrors():
    """Raise ImportError where rows.py has a row otherwise than the structs of this folder."""
    cdef Row row
    check_mirror("CHAIN_RULE", &row.rule)
    check_mirror("PORT_RANGE", &row.range)
    check_mirror("RULE_COUNT", &row.count)
    check_mirror("LOG_RECORD", &row.record)


check_mirrors()

TARGETS = {
    "": match.TARGET_NONE, "RETURN": match.TARGET_RETURN, "ACCEPT": match.ACCEPT, "DENY": match.DENY, "REJECT": match.REJECT,
    "MASQ": match.MASQ, "LOOP": match.LOOP, "REDIRECT": match.REDIRECT,
}
"""Codes of the targets that have one of their own."""

JUMP, END = match.TARGET_JUMP, match.TARGET_END
VERDICTS = {code: name for name, code in TARGETS.items() if code >= match.ACCEPT}
BASES = ("input", "forward", "output", "acct")
FLAGS = {
    "not_source": match.NOT_SOURCE, "not_destination": match.NOT_DESTINATION, "not_protocol": match.NOT_PROTOCOL,
    "not_source_ports": match.NOT_SOURCE_PORTS, "not_destination_ports": match.NOT_DESTINATION_PORTS,
    "swapped_too": match.SWAPPED_TOO, "log": match.LOGS, "syn": match.WANTS_SYN, "no_syn": match.WANTS_NO_SYN,
    "ack": match.WANTS_ACK, "fragment": match.WANTS_FRAGMENT, "no_fragment": match.WANTS_NO_FRAGMENT,
    "in": match.ONLY_ARRIVING, "out": match.ONLY_LEAVING,
}
SHOWS = {
    "ports": match.SHOWS_PORTS, "syn": match.SHOWS_SYN, "ack": match.SHOWS_ACK, "fragment": match.SHOWS_FRAGMENT,
    "out": match.SHOWS_LEAVING,
}


class Shown(NamedTuple):
    """What rules see of a packet: its ends in host order, of ICMP type and code as ports, and `shows`, of SHOWS."""

    saddr: int
    daddr: int
    protocol: int
    sport: int = 0
    dport: int = 0
    shows: int = 0
    link: int = 0
    mark: int = 0
    octets: int = 0


cdef class RuleTable:
    """What the path knows of the rules. The daemon calls these methods under the path's lock.

    sessions: rows of the session table; each has room for two remembered verdicts, touched only when used.
    """

    def __init__(self, uint32_t sessions):
        cdef Chains *c = &self.chains
        self._flows = np.zeros(2 * sessions * sizeof(CachedVerdict), "u1")
        self._routed = np.zeros(ROUTED_FLOWS * sizeof(CachedVerdict), "u1")
        self._paths = np.zeros(VERDICT_PATHS * sizeof(VerdictPath), "u1")
        self._path_index = np.zeros(PATH_INDEX, "u2")
        self._log = np.zeros(LOG_RECORDS, rows.LOG_RECORD)
        c.remembered.flows = <CachedVerdict *><size_t>self._flows.ctypes.data
        c.remembered.routed = <CachedVerdict *><size_t>self._routed.ctypes.data
        c.remembered.paths = <VerdictPath *><size_t>self._paths.ctypes.data
        c.remembered.path_index = <uint16_t *><size_t>self._path_index.ctypes.data
        c.log = <LogRecord *><size_t>self._log.ctypes.data
        fill(&c.log_bucket, 0, LOG_BURST)
        c.is_cacheable = True

    def load(self, compiled):
        """Put other chains in force, with counters at zero: `collect` the old ones before.

        compiled: what policy.compile.compile_chains makes, of which rows, ranges, first, chains, default_forward and
        accounting matter here. What is wrong with them is not checked.
        """
        cdef Chains *c = &self.chains
        if self.counts is not None:
            remembered.forget_paths(&c.remembered, c.counts)
        self._rows = np.ascontiguousarray(compiled.rows, rows.CHAIN_RULE)
        self._ranges = np.ascontiguousarray(compiled.ranges, rows.PORT_RANGE)
        self._callers = np.zeros(compiled.chains * sizeof(CallerRow), "u1")
        self.counts = np.zeros(len(self._rows), rows.RULE_COUNT)
        c.rows = <const ChainRule *><size_t>self._rows.ctypes.data
        c.ranges = <const PortRange *><size_t>self._ranges.ctypes.data
        c.callers = <CallerRow *><size_t>self._callers.ctypes.data
        c.counts = <RuleCount *><size_t>self.counts.ctypes.data
        for base in range(CHAINS):
            c.first[base] = compiled.first[base]
        c.remembered.generation += 1
        c.default_forward = compiled.default_forward
        c.accounting = compiled.accounting
        c.redirects = bool((self._rows["target"] == match.REDIRECT).any())

    def set_cache(self, bint on):
        """Remember verdicts, or ask the rules about every packet. For tests and measurements."""
        self.chains.is_cacheable = on
        if self.counts is not None:
            remembered.forget_paths(&self.chains.remembered, self.chains.counts)

    def collect(self):
        """Return rows.RULE_COUNT of every row, what it has counted since the last call."""
        if self.counts is None:
            return np.zeros(0, rows.RULE_COUNT)
        remembered.fold_paths(&self.chains.remembered, self.chains.counts)
        counted = self.counts.copy()
        self.counts[:] = 0
        return counted

    def drain_log(self):
        """Return the rows.LOG_RECORD asked for since the last call, and how many more there would have been."""
        records = self._log[:self.chains.log_count].copy()
        suppressed = self.chains.log_suppressed
        self.chains.log_count = 0
        self.chains.log_suppressed = 0
        return records, suppressed

    def evaluate(self, int base, shown, uint32_t now_ms=0):
        """Put one packet, a Shown, to a chain, as the path does.

        Returns (verdict, mark, (and, xor) of TOS, matched rows).
        """
        cdef uint8_t header[LOG_HEADER]
        cdef Passage passage
        cdef uint8_t verdict
        self._show(&passage, header, shown)
        verdict = evaluate_chain(&self.chains, &passage, base, now_ms)
        matched = [passage.matched.rows[i] for i in range(min(passage.matched.count, <int>MATCHED))]
        return VERDICTS[verdict], passage.probe.mark, (passage.probe.tos_and, passage.probe.tos_xor), matched

    cdef void _show(self, Passage *passage, uint8_t *header, shown):
        """Begin the passage of a packet that has no more than a header of LOG_HEADER octets at most."""
        memset(header, 0, LOG_HEADER)
        memset(passage, 0, sizeof(Passage))
        header[0] = 0x45
        passage.probe.ip = header
        passage.probe.ends.saddr, passage.probe.ends.sid = shown.saddr, shown.sport
        passage.probe.ends.daddr, passage.probe.ends.did = shown.daddr, shown.dport
        passage.probe.protocol, passage.probe.shows = shown.protocol, shown.shows
        passage.probe.link, passage.probe.link_bit = shown.link, 1 << shown.link
        passage.probe.octets, passage.probe.mark = shown.octets, shown.mark
        passage.probe.tos_and = 0xFF

    def rounds(self, int base, int count, shown):
        """Put one packet, a Shown, to a chain `count` times; return how often it was accepted. For measurements."""
        cdef uint8_t header[LOG_HEADER]
        cdef Passage passage
        cdef int accepted = 0
        cdef int _
        self._show(&passage, header, shown)
        with nogil:
            for _ in range(count):
                passage.matched.count = 0
                accepted += evaluate_chain(&self.chains, &passage, base, 0) == match.ACCEPT
        return accepted

    @property
    def remembered(self):
        """How many different lists of matched rows there are."""
        return self.chains.remembered.path_count
