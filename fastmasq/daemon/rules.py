"""The rule set of the running forwarder: listed, changed and questioned over the control socket.

Methods, with their parameters and results in JSON. Numbers are in host order; what a rule and its match hold is in
policy/chains.py, and keys at their default are left out: `{}` is the rule that counts everything.

    rules {"chain": "input", "zero": true}              both optional; zero lists first, then sets counters to zero
     -> {"generation": 7, "default_forward": false, "chains": [CHAIN, ...]}
        CHAIN is {"name": "input", "policy": "DENY", "packets": 3, "bytes": 180, "references": 0,
                  "rules": [{"rule": RULE, "packets": 1, "bytes": 60, "from": "configuration"}, ...]}
        RULE is {"match": {"source": [167772160, 4278190080], "protocol": 6, "destination_ports": [[80, 80]]},
                 "target": "ACCEPT", "log": true, "mark": ["set", 1], "tos": [255, 0]}
        chains come in the order of their making: input, forward, output, then user chains; a user chain's policy is
        null. The accounting chain "acct" comes last. from is "configuration", rule files included, or "command".

    rules.change, see daemon/policy.py
     -> {"generation": 8}
        a CHANGE is {"do": "append", "chain": "input", "rule": RULE}
                    {"do": "insert", "chain": "input", "rule": RULE, "number": 1}
                    {"do": "replace", "chain": "input", "rule": RULE, "number": 1}
                    {"do": "delete", "chain": "input", "number": 1}
                    {"do": "delete_equal", "chain": "input", "rule": RULE}
                    {"do": "flush", "chain": "input"}, {"do": "zero", "chain": "input"}, or without chain: all
                    {"do": "policy", "chain": "forward", "target": "DENY"}
                    {"do": "new_chain", "chain": "vpn"}
                    {"do": "delete_chain", "chain": "vpn"}, or without chain: all user chains
                    {"do": "reset"}: the chain forward is the built-in policy again

    rules.check {"chain": "input", "packet": PACKET}    counts nothing
     -> {"verdict": "REJECT", "redirect_port": 0, "mark": 0, "tos": 0,
         "steps": [{"chain": "input", "number": 2, "target": "vpn"}, {"chain": "vpn", "number": 1, "target": "REJECT"}]}
        PACKET is policy.evaluate.Packet, the result its Decision.

A change that cannot be made is a RuleError here and at the client, with the same `reason`.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from msgspec import Struct

from fastmasq.daemon.policy import read_parameters
from fastmasq.observe.packet_log import packet_line
from fastmasq.path.forwarder import Forwarder
from fastmasq.path.rules import RuleTable
from fastmasq.policy.chains import Chain, RuleSet
from fastmasq.policy.compile import CompiledChains, LinkView, compile_chains, is_idle
from fastmasq.policy.evaluate import Packet, evaluate

log = logging.getLogger("fastmasq.rules")


class _List(Struct, forbid_unknown_fields=True):
    chain: str | None = None
    zero: bool = False


class _Check(Struct, forbid_unknown_fields=True):
    chain: str
    packet: Packet


class Rules:
    """The rule set of one gateway, and the chains of the path, which are kept equal to it.

    sessions: how many rows the path's table of them has. compat: which kernel's lines the log has.
    """

    def __init__(self, forwarder: Forwarder, sessions: int, compat: str = "modern") -> None:
        self.rule_set = RuleSet()
        self._compat = compat
        self._forwarder = forwarder
        self._table = RuleTable(sessions)
        self._links: list[LinkView] = []
        self._compiled: CompiledChains | None = None  # what the path has, None for nothing

    # -- with the path ---------------------------------------------------------------------------------------------

    def check(self, rule_set: RuleSet) -> None:
        """Raise RuleError for what the path cannot do."""
        compile_chains(rule_set, self._links)

    def put(self, rule_set: RuleSet) -> None:
        """Make this the rule set, in the path as well. Raises RuleError for what it cannot do; then all stays."""
        compiled = None if is_idle(rule_set) else compile_chains(rule_set, self._links)
        self.print_log()
        with self._forwarder.locked():
            self._forwarder.charge_carried(for_good=True)
            counts = self._table.collect()
            if compiled is None:
                self._forwarder.set_chains(None)
            else:
                self._table.load(compiled)
                self._forwarder.set_chains(self._table)
        if self._compiled is not None:
            self._compiled.add(counts, rule_set)
        self._compiled = compiled
        self.rule_set = rule_set

    def follow_links(self, links: list[LinkView]) -> None:
        """Have rules ask for these links, by number: their names, and the addresses they have just now."""
        if links != self._links:
            self._links = links
            self.put(self.rule_set)

    def count(self) -> None:
        """Bring the counters of rules and policies up to date with what packets of the path have matched."""
        if self._compiled is not None:
            with self._forwarder.locked():
                self._forwarder.charge_carried()
                counts = self._table.collect()
            self._compiled.add(counts, self.rule_set)

    def name_of(self, row: int) -> str:
        """Return which rule a row of the path's chains is, as `rule list` numbers them."""
        chain, number = self._compiled.places[row] if self._compiled else ("", 0)
        return f"{chain} rule {number}" if number else f"{chain} policy"

    def judge(self) -> RuleTable | None:
        """Return a table of its own with the chains in force, to question without counting; None without rules."""
        if self._compiled is None:
            return None
        table = RuleTable(1)
        table.load(self._compiled)
        return table

    def print_log(self) -> None:
        """Log a line for each packet that a rule wants logged."""
        if self._compiled is None:
            return
        with self._forwarder.locked():
            records, suppressed = self._table.drain_log()
        names = [link.name for link in self._links]
        for record in records:
            log.info("%s", packet_line(record, self._compiled, names, self._compat))
        if suppressed:
            log.warning("rules: %d more packets were to be logged", suppressed)

    # -- for the control socket ------------------------------------------------------------------------------------

    def listed(self, params: dict[str, Any]) -> dict[str, Any]:
        """Answer the control method `rules` with the counters as they are."""
        wanted = read_parameters("rules", params, _List)
        rules = self.rule_set
        chains = [*rules.chains.values(), rules.accounting] if wanted.chain is None else [rules.chain(wanted.chain)]
        answer = {
            "generation": rules.generation,
            "default_forward": rules.default_forward,
            "chains": [self._describe(chain) for chain in chains],
        }
        if wanted.zero:
            zeroed = rules.copy()
            zeroed.zero(wanted.chain)
            self.put(zeroed)
        return answer

    def evaluate(self, params: dict[str, Any]) -> dict[str, Any]:
        """Answer the control method `rules.check`."""
        wanted = read_parameters("rules", params, _Check)
        return msgspec.to_builtins(evaluate(self.rule_set, wanted.chain, wanted.packet))

    def _describe(self, chain: Chain) -> dict[str, Any]:
        return {**msgspec.to_builtins(chain), "references": self.rule_set.references(chain.name)}
